"""The fixed policy between two batches: draws of the weights, and the slates that they show.

The posterior is represented by draws of all weights; each decision follows one, picked at random.
What a context's members see without rules of their own is worked out once for all draws; members
with blocked items or weights of categories are ranked from shortlists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from dynchoice.callouts.catalogue import Catalogue
from dynchoice.callouts.feature_terms import Terms
from dynchoice.callouts.probit import Gaussian
from dynchoice.kernels import callouts as kernels
from dynchoice.typing import BoolArray, FloatArray, IntArray

SPARE = 4
"""Items listed of each category beyond the slots, for members who may not see some."""
EMPTY = -1
"""Stands for an item where no item fills the slot."""
BY_DRAW = -2
"""First in a slate that is not given: the member's draw decides (see the kernel ``decide``)."""


Draws: TypeAlias = FloatArray | NDArray[np.float32]


class Shortlist(NamedTuple):
    """A context's best items by draw and category.

    ``scores`` and ``items`` (R, C, K); ``complete`` (C,) says whose list leaves none out.
    """

    scores: FloatArray
    items: IntArray
    complete: BoolArray


class Slates(NamedTuple):
    """Slates (n, slots) of draws or members.

    ``shares`` (n, slots) and ``whole`` (n,): the share of draws in which an item stands in its
    slot, and in which the whole slate is shown: the propensities.
    """

    items: IntArray
    shares: FloatArray
    whole: FloatArray


class Rules(NamedTuple):
    """The members' part of a decision: contexts, draws, blocked items, weights.

    ``codes`` (n,) of contexts; ``draw`` (n,) that decides; ``taken[start[i]:start[i + 1]]`` the
    items that member ``i`` may not see; ``weights`` (n, C) of categories; ``random`` (n,) the
    visits that see eligible items at random instead.
    """

    codes: IntArray
    draw: IntArray
    start: IntArray
    taken: IntArray
    weights: FloatArray
    random: BoolArray

    def part(self, start: int, stop: int) -> Rules:
        """Return the rules of some members."""
        return Rules(
            codes=self.codes[start:stop],
            draw=self.draw[start:stop],
            start=self.start[start : stop + 1],
            taken=self.taken,
            weights=self.weights[start:stop],
            random=self.random[start:stop],
        )

    def taken_by(self, member: int) -> IntArray:
        """Return the items that a member may not see."""
        return self.taken[self.start[member] : self.start[member + 1]]


def plain_rules(codes: IntArray, draw: IntArray, random: BoolArray, categories: int) -> Rules:
    """Return rules of members who have none of their own: nothing blocked, all weights alike."""
    return Rules(
        codes=codes,
        draw=draw,
        start=np.zeros(len(codes) + 1, np.int64),
        taken=np.zeros(0, np.int64),
        weights=np.ones((len(codes), categories)),
        random=random,
    )


def empty_slates(n: int, slots: int) -> Slates:
    """Return room for slates, to be filled."""
    return Slates(np.empty((n, slots), np.int64), np.empty((n, slots)), np.empty(n))


class Snapshot:
    """The fixed policy between two batches: what it shows depends on who asks alone.

    Parameters
    ----------
    number : int
        Of the snapshot; with ``seed`` it picks the draws.
    posterior : Gaussian
    catalogue : Catalogue
    terms : Terms
    values : callable
        Context code -> value of a click on each item (I,).
    category, categories : integer array (I,), int
        Category of each item, and their number.
    slots, draws, seed : int
    diversity : float
    explore : bool
    at_random : float
        Share of visits that see eligible items at random.
    """

    def __init__(
        self,
        *,
        number: int,
        posterior: Gaussian,
        catalogue: Catalogue,
        terms: Terms,
        values: Callable[[int], FloatArray],
        category: IntArray,
        categories: int,
        slots: int,
        draws: int,
        diversity: float,
        explore: bool,
        at_random: float,
        seed: int,
    ) -> None:
        self.number, self.posterior = number, posterior
        self.catalogue, self.terms, self.values = catalogue, terms, values
        self.category, self.categories = category, categories
        self.slots, self.draws = slots, draws
        self.diversity, self.explore, self.at_random = diversity, explore, at_random
        self.seed = seed
        self.icode = terms.item_codes(catalogue.codes)
        # where the features of an item stand, which with a context's code are the pair's
        self._places = (terms.base, terms.width, self.icode)
        self._weights: Draws | None = None
        self._lists: dict[tuple[int, bytes, int], Shortlist] = {}
        self._slates: dict[tuple[int, bytes], Slates] = {}

    @property
    def weights(self) -> Draws:
        """Draws (R, n) of all weights."""
        if self._weights is None:
            rng = np.random.default_rng([self.seed, self.number, 1])
            mean, variance = self.posterior.mean, self.posterior.variance
            if not self.explore:
                self._weights = mean[None].copy()
            elif self.posterior.covariance is not None:
                self._weights = self.posterior.draw(self.draws, rng)
            else:  # in single precision: of many features there are many draws
                z = rng.standard_normal((self.draws, len(mean)), dtype=np.float32)
                z *= np.sqrt(variance).astype(np.float32)
                z += mean.astype(np.float32)
                self._weights = z
        return self._weights

    def eligible(self, code: int, when: float | None) -> BoolArray:
        """Return the items (I,) that a member in a context may see at a time."""
        return self.catalogue.open_at(when) & self.catalogue.eligible(code)

    def scores(self, code: int, draw: int, out: FloatArray) -> FloatArray:
        """Write every item's value times probability (I,) in a context under one draw."""
        ccode = self.terms.context_codes(np.array([code]))[0]
        values = self.values(code)
        kernels.item_scores(*self._places, ccode, self.weights[draw], values, out)
        return out

    def shortlist(self, code: int, when: float | None, spare: int = SPARE) -> Shortlist:
        """Return the best items of each category, ``spare`` more than there are slots."""
        open_ = self.catalogue.open_at(when)
        # in powers of two, so that few lengths are worked out and kept
        spare = SPARE if spare <= SPARE else 2 ** int(np.ceil(np.log2(spare)))
        key = (code, open_.tobytes(), spare)
        if key not in self._lists:
            self._lists[key] = self._make_shortlist(code, open_, self.slots + spare)
        return self._lists[key]

    def _make_shortlist(self, code: int, open_: BoolArray, most: int) -> Shortlist:
        """Work out a shortlist with up to ``most`` items of each category."""
        allowed = np.flatnonzero(open_ & self.catalogue.eligible(code))
        # ties go to a random item, not to the catalogue's first
        order = np.random.default_rng([self.seed, self.number, 2]).permutation(allowed)
        values = self.values(code)
        alike = bool((values == values[0]).all() and values[0] > 0)
        size = np.bincount(self.category[allowed], minlength=self.categories)
        K = max(1, min(most, int(size.max(initial=1))))
        scores = np.empty((self.draws, self.categories, K))
        items = np.empty(scores.shape, np.int64)
        ccode = self.terms.context_codes(np.array([code]))[0]
        # where features stand, the weights; what scores are made of; which items; what is written
        kernels.shortlists(
            *self._places, ccode, self.weights, values, alike, self.category, order, scores, items
        )
        return Shortlist(scores, items, size <= K)

    def slates(self, code: int, when: float | None) -> Slates:
        """Return what each draw shows members of a context who have no rules of their own."""
        key = (code, self.catalogue.open_at(when).tobytes())
        if key not in self._slates:
            lists = self.shortlist(code, when)
            slates = empty_slates(self.draws, self.slots)
            nothing_blocked = np.zeros(self.catalogue.size, bool)
            all_alike = np.ones(self.categories)
            kernels.diverse(
                lists.scores,
                lists.items,
                all_alike,
                self.diversity,
                nothing_blocked,
                lists.complete,
                slates.items,
            )
            kernels.all_shares(*slates)
            self._slates[key] = slates
        return self._slates[key]

    def decide(self, rules: Rules, when: float | None, rng: np.random.Generator) -> Slates:
        """Return the slates (n, slots) of members, with the shares that are their propensities."""
        n = len(rules.codes)
        out = empty_slates(n, self.slots)
        unique, context = np.unique(rules.codes, return_inverse=True)
        personal = (np.diff(rules.start) > 0) | (rules.weights != 1.0).any(axis=1)
        number = np.empty(n, np.int64)
        given = np.full((n, self.slots), BY_DRAW, np.int64)
        for x, code in enumerate(unique):
            inside = context == x
            eligible = self.eligible(int(code), when)
            self._draw_at_random(eligible, np.flatnonzero(inside), rules, rng, number, given)
            members = np.flatnonzero(inside & ~personal)
            if len(members):
                self._look_up(self.slates(int(code), when), members, rules, given, out)
            members = np.flatnonzero(inside & personal)
            if len(members):
                lists = self.shortlist(int(code), when)
                short = self._rank(lists, members, rules, given, out)
                if len(short):  # a list ran out through blocked items: as many more then
                    most = int((rules.start[short + 1] - rules.start[short]).max())
                    self._rank(self.shortlist(int(code), when, most), short, rules, given, out)
        return self.mix(out, number)

    def mix(self, slates: Slates, number: IntArray) -> Slates:
        """Return slates with the shares of a page that is at random now and then.

        ``number`` (n,) is how many items each member may see.
        """
        e = self.at_random
        if e == 0.0:
            return slates
        orders = np.ones(len(number))  # ordered slates that a random visit may see
        for s in range(self.slots):
            orders *= np.maximum(number - s, 1)
        # what stays empty is empty in either case
        chance = np.where(slates.items >= 0, e / np.maximum(number, 1)[:, None], e)
        return Slates(
            slates.items, (1 - e) * slates.shares + chance, (1 - e) * slates.whole + e / orders
        )

    def _draw_at_random(
        self,
        eligible: BoolArray,
        members: IntArray,
        rules: Rules,
        rng: np.random.Generator,
        number: IntArray,
        given: IntArray,
    ) -> None:
        """Write how many items members of a context may see, and slates of those at random.

        Parameters
        ----------
        eligible : array of bool, shape (I,)
        members : integer array
        rules : Rules
        rng : Generator
        number : integer array, shape (n,)
            Written.
        given : integer array, shape (n, slots)
            Written for visits at random.
        """
        items = np.flatnonzero(eligible)
        number[members] = len(items)
        if self.at_random == 0.0:
            return
        blocked = np.flatnonzero(np.diff(rules.start)[members] > 0)
        for i in members[blocked]:
            number[i] = len(items) - int(eligible[np.unique(rules.taken_by(i))].sum())
        for i in members[rules.random[members]]:
            taken = rules.taken_by(i)
            left = items if not len(taken) else np.setdiff1d(items, taken)
            chosen = rng.choice(left, min(self.slots, len(left)), replace=False)
            given[i] = EMPTY
            given[i, : len(chosen)] = chosen

    def _look_up(
        self, common: Slates, members: IntArray, rules: Rules, given: IntArray, out: Slates
    ) -> None:
        """Write the slates of members without rules of their own: those of their draws."""
        draw = rules.draw[members]
        for whole, part in zip(out, common, strict=True):
            whole[members] = part[draw]
        for i in members[rules.random[members]]:
            same = common.items == given[i]
            out.items[i], out.shares[i] = given[i], same.mean(axis=0)
            out.whole[i] = same.all(axis=1).mean()

    def _rank(
        self, lists: Shortlist, members: IntArray, rules: Rules, given: IntArray, out: Slates
    ) -> IntArray:
        """Write the slates of members with rules of their own; return those whose list ran out."""
        begin, end = rules.start[members], rules.start[members + 1]
        start = np.concatenate([[0], np.cumsum(end - begin)])
        pieces = [rules.taken[a:b] for a, b in zip(begin, end, strict=True) if b > a]
        taken = np.concatenate([rules.taken[:0], *pieces])
        slates = empty_slates(len(members), self.slots)
        short = np.zeros(len(members), bool)
        kernels.decide(
            # shortlists of one context, and which of them is each member's
            lists.scores[None],
            lists.items[None],
            lists.complete[None],
            np.zeros(len(members), np.int64),
            # how categories are weighed
            np.ascontiguousarray(rules.weights[members]),
            self.diversity,
            # the members' rules: what is taken, which draw decides, slates that are given
            start,
            taken,
            rules.draw[members],
            np.ascontiguousarray(given[members]),
            # room: blocked items of one member, slates of all draws
            np.zeros(self.catalogue.size, bool),
            np.empty((self.draws, self.slots), np.int64),
            # written
            *slates,
            short,
        )
        for whole, part in zip(out, slates, strict=True):
            whole[members] = part
        return members[short]

    def decide_one(
        self, code: int, when: float | None, draw: int, rng: np.random.Generator | None
    ) -> tuple[IntArray, FloatArray]:
        """Return the slate of one visit without rules of its own, and its items' propensities."""
        slates = self.slates(code, when)
        if self.at_random == 0.0:
            return slates.items[draw], slates.shares[draw]
        random = rng is not None and bool(rng.random() < self.at_random)
        rules = plain_rules(np.array([code]), np.array([draw]), np.array([random]), self.categories)
        out = self.decide(rules, when, rng or np.random.default_rng(0))
        return out.items[0], out.shares[0]

    def first_choice(self, code: int, when: float | None) -> FloatArray:
        """Return the probability (I,) that each item is shown first in a context."""
        first = self.slates(code, when).items[:, 0]
        share = np.bincount(first[first >= 0], minlength=self.catalogue.size) / self.draws
        if self.at_random == 0.0:
            return share
        eligible = self.eligible(code, when)
        chance = self.at_random * eligible / max(eligible.sum(), 1)
        return np.asarray((1 - self.at_random) * share + chance)

    def first_shares(self, codes: IntArray, when: float | None) -> tuple[FloatArray, IntArray]:
        """Return shares (contexts, I) of first places by distinct context, and each row's."""
        unique, row = np.unique(codes, return_inverse=True)
        table = np.empty((len(unique), self.catalogue.size))
        for k, code in enumerate(unique):
            table[k] = self.first_choice(int(code), when)
        return table, row.reshape(-1)

    def probability(
        self, item: IntArray, codes: IntArray, slot: IntArray | None = None
    ) -> FloatArray:
        """Return posterior mean probabilities of a click, for pairs of items and contexts.

        ``slot`` counts from 0; without it the first is meant.
        """
        assert len(item) == len(codes)  # kernels do not look
        if slot is None:
            unique, row = np.unique(codes, return_inverse=True)
            ccode = self.terms.context_codes(unique)
        else:
            pair = codes * self.slots + slot
            unique, row = np.unique(pair, return_inverse=True)
            ccode = self.terms.context_codes(unique // self.slots, unique % self.slots)
        posterior = self.posterior
        if posterior.covariance is not None:
            index = self.terms.index(self.icode[item], ccode[row])
            mean, var = posterior.moments(index, np.ones(index.shape))
        else:  # features are worked out pair by pair: no table of them is made
            mean, var = np.empty(len(item)), np.empty(len(item))
            pairs = (*self._places, ccode, item, row)
            kernels.pair_moments(*pairs, posterior.mean, posterior.variance, mean, var)
        return np.asarray(ndtr(mean / np.sqrt(1 + var)))
