"""Snapshot: a policy between two batches, when nothing moves but who asks.

The posterior is represented by draws of all weights; each decision follows one, picked at random.
What a context's members see without rules of their own is worked out once for all draws; members
with blocked items or weights of categories are ranked from shortlists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from dynchoice.callouts.catalogue import Catalogue
from dynchoice.callouts.feature_terms import Terms
from dynchoice.callouts.probit import Gaussian
from dynchoice.errors import SpecificationError
from dynchoice.kernels import callouts as kernels
from dynchoice.typing import BoolArray, FloatArray, IntArray

SPARE = 4
"""Items listed of each category beyond the slots, for members who may not see some."""


def check_numbers(
    slots: Any, draws: Any, diversity: Any, cap_window: Any, seed: Any, at_random: Any
) -> None:
    """Refuse numbers of a page that cannot be.

    Raises
    ------
    SpecificationError
        The first of them, by name.
    """
    for what, number in (("slots", slots), ("draws", draws)):
        if not isinstance(number, int | np.integer) or number < 1:
            raise SpecificationError(f"{what}={number!r}: a whole number above 0 is needed")
    for what, real in (("diversity", diversity), ("cap_window", cap_window), ("seed", seed)):
        if not isinstance(real, int | float | np.number) or not 0 <= real < np.inf:
            raise SpecificationError(f"{what}={real!r}: a number of at least 0 is needed")
    if not isinstance(at_random, int | float) or not 0 <= at_random <= 1:
        raise SpecificationError(f"at_random={at_random!r}: a share of visits, from 0 to 1")


class Shortlist(NamedTuple):
    """Scores and items (R, C, K) of a context's best by category; which lists hide none (C,)."""

    scores: FloatArray
    items: IntArray
    complete: BoolArray


class Slates(NamedTuple):
    """Slates (R, slots) of all draws, shares of their items, and of the whole slates (R,)."""

    items: IntArray
    shares: FloatArray
    whole: FloatArray


class Rules(NamedTuple):
    """What members asked with: context codes, draws, blocked items by member, weights (n, C).

    ``random`` (n,) says which visits see eligible items at random instead.
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
            self.codes[start:stop], self.draw[start:stop], self.start[start : stop + 1],
            self.taken, self.weights[start:stop], self.random[start:stop],
        )  # fmt: skip


class Snapshot:
    """What decides until the next batch.

    Parameters
    ----------
    number : int
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
        self, number: int, posterior: Gaussian, catalogue: Catalogue, terms: Terms,
        values: Callable[[int], FloatArray], category: IntArray, categories: int, *, slots: int,
        draws: int, diversity: float, explore: bool, at_random: float, seed: int,
    ) -> None:  # fmt: skip
        self.number, self.posterior = number, posterior
        self.catalogue, self.terms, self.values = catalogue, terms, values
        self.category, self.categories = category, categories
        self.slots, self.draws = slots, draws
        self.diversity, self.explore, self.at_random = diversity, explore, at_random
        self.seed = seed
        self.icode = terms.item_codes(catalogue.codes)
        self._weights: Any = None
        self._lists: dict[tuple[int, bytes, int], Shortlist] = {}
        self._slates: dict[tuple[int, bytes], Slates] = {}

    @property
    def weights(self) -> Any:
        """Draws (R, n) of all weights."""
        if self._weights is None:
            rng = np.random.default_rng([self.seed, self.number, 1])
            own = self.posterior
            if not self.explore:
                self._weights = own.mean[None].copy()
            elif own.covariance is not None:
                self._weights = own.draw(self.draws, rng)
            else:  # in single precision: of many features there are many draws
                shape = (self.draws, len(own.mean))
                z = rng.standard_normal(shape, dtype=np.float32)
                z *= np.sqrt(own.variance).astype(np.float32)
                z += own.mean.astype(np.float32)
                self._weights = z
        return self._weights

    def scores(self, code: int, draw: int, out: FloatArray) -> FloatArray:
        """Write every item's value times probability (I,) in a context under one draw."""
        ccode = self.terms.context_codes(np.array([code]))[0]
        kernels.item_scores(
            self.terms.base, self.terms.width, self.icode, ccode, self.weights[draw],
            self.values(code), out,
        )  # fmt: skip
        return out

    def shortlist(self, code: int, when: float | None, spare: int = SPARE) -> Shortlist:
        """Return the best items of each category, ``spare`` more than there are slots."""
        open_ = self.catalogue.open_at(when)
        spare = SPARE if spare <= SPARE else 2 ** int(np.ceil(np.log2(spare)))
        key = (code, open_.tobytes(), spare)
        if key not in self._lists:
            self._lists[key] = self._listed(code, open_, self.slots + spare)
        return self._lists[key]

    def _listed(self, code: int, open_: BoolArray, most: int) -> Shortlist:
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
        kernels.shortlists(
            self.terms.base, self.terms.width, self.icode, ccode, self.weights, values, alike,
            self.category, order, scores, items,
        )  # fmt: skip
        return Shortlist(scores, items, size <= K)

    def slates(self, code: int, when: float | None) -> Slates:
        """Return what each draw shows members of a context who have no rules of their own."""
        key = (code, self.catalogue.open_at(when).tobytes())
        if key not in self._slates:
            own = self.shortlist(code, when)
            items = np.empty((self.draws, self.slots), np.int64)
            kernels.diverse(
                own.scores, own.items, np.ones(self.categories), self.diversity,
                np.zeros(self.catalogue.size, bool), own.complete, items,
            )  # fmt: skip
            shares, whole = np.empty(items.shape), np.empty(self.draws)
            kernels.all_shares(items, shares, whole)
            self._slates[key] = Slates(items, shares, whole)
        return self._slates[key]

    def decide(self, rules: Rules, when: float | None, rng: np.random.Generator) -> Slates:
        """Return the slates (n, slots) of members, with the shares that are their propensities."""
        n = len(rules.codes)
        out = Slates(np.empty((n, self.slots), np.int64), np.empty((n, self.slots)), np.empty(n))
        unique, at = np.unique(rules.codes, return_inverse=True)
        alone = (np.diff(rules.start) > 0) | (rules.weights != 1.0).any(axis=1)
        number = np.empty(n, np.int64)
        given = np.full((n, self.slots), -2, np.int64)
        for x, code in enumerate(unique):
            here = at == x
            may = self.catalogue.open_at(when) & self.catalogue.eligible(int(code))
            self._at_random(may, np.flatnonzero(here), rules, rng, number, given)
            of = np.flatnonzero(here & ~alone)
            if len(of):
                common, draw = self.slates(int(code), when), rules.draw[of]
                for whole, part in zip(out, common, strict=True):
                    whole[of] = part[draw]
                for i in of[rules.random[of]]:
                    same = common.items == given[i]
                    out.items[i], out.shares[i] = given[i], same.mean(axis=0)
                    out.whole[i] = same.all(axis=1).mean()
            of = np.flatnonzero(here & alone)
            if len(of):
                short = self._personal(self.shortlist(int(code), when), of, rules, given, out)
                if len(short):  # a list ran out through blocked items: as many more then
                    most = int((rules.start[short + 1] - rules.start[short]).max())
                    longer = self.shortlist(int(code), when, most)
                    self._personal(longer, short, rules, given, out)
        return self.mixed(out, number)

    def mixed(self, slates: Slates, number: IntArray) -> Slates:
        """Return slates with the shares of a page that is at random now and then.

        ``number`` (n,) is how many items each member may see.
        """
        e = self.at_random
        if e == 0.0:
            return slates
        orders = np.ones(len(number))
        for s in range(self.slots):
            orders *= np.maximum(number - s, 1)
        shares = np.where(
            slates.items >= 0, e / np.maximum(number, 1)[:, None], e
        )  # what stays empty is empty in either case
        return Slates(
            slates.items, (1 - e) * slates.shares + shares, (1 - e) * slates.whole + e / orders
        )

    def _at_random(
        self, may: BoolArray, of: IntArray, rules: Rules, rng: np.random.Generator,
        number: IntArray, given: IntArray,
    ) -> None:  # fmt: skip
        """Write how many items members of a context may see, and slates of those at random."""
        items = np.flatnonzero(may)
        number[of] = len(items)
        taken = np.flatnonzero(np.diff(rules.start)[of] > 0)
        if self.at_random == 0.0:
            return
        for i in of[taken]:
            mine = rules.taken[rules.start[i] : rules.start[i + 1]]
            number[i] = len(items) - int(may[np.unique(mine)].sum())
        for i in of[rules.random[of]]:
            mine = rules.taken[rules.start[i] : rules.start[i + 1]]
            left = items if not len(mine) else np.setdiff1d(items, mine)
            chosen = rng.choice(left, min(self.slots, len(left)), replace=False)
            given[i] = -1
            given[i, : len(chosen)] = chosen

    def _personal(
        self, lists: Shortlist, of: IntArray, rules: Rules, given: IntArray, out: Slates
    ) -> IntArray:
        """Fill slates of members with rules of their own; return those whose list ran out."""
        begin, end = rules.start[of], rules.start[of + 1]
        start = np.concatenate([[0], np.cumsum(end - begin)])
        pieces = [rules.taken[a:b] for a, b in zip(begin, end, strict=True) if b > a]
        taken = np.concatenate([rules.taken[:0], *pieces])
        own = Slates(
            np.empty((len(of), self.slots), np.int64), np.empty((len(of), self.slots)),
            np.empty(len(of)),
        )  # fmt: skip
        short = np.zeros(len(of), bool)
        kernels.decide(
            lists.scores[None], lists.items[None], lists.complete[None],
            np.zeros(len(of), np.int64), np.ascontiguousarray(rules.weights[of]), self.diversity,
            start, taken, rules.draw[of], np.ascontiguousarray(given[of]),
            np.zeros(self.catalogue.size, bool), np.empty((self.draws, self.slots), np.int64),
            *own, short,
        )  # fmt: skip
        for whole, part in zip(out, own, strict=True):
            whole[of] = part
        return of[short]

    def one(
        self, code: int, when: float | None, draw: int, rng: np.random.Generator | None
    ) -> tuple[IntArray, FloatArray]:
        """Return the slate of one visit without rules of its own, and its items' propensities."""
        items, shares, whole = self.slates(code, when)
        if self.at_random == 0.0:
            return items[draw], shares[draw]
        none = np.zeros(2, np.int64)
        random = rng is not None and bool(rng.random() < self.at_random)
        rules = Rules(
            np.array([code]), np.array([draw]), none, none[:0],
            np.ones((1, self.categories)), np.array([random]),
        )  # fmt: skip
        out = self.decide(rules, when, rng or np.random.default_rng(0))
        return out.items[0], out.shares[0]

    def first_choice(self, code: int, when: float | None) -> FloatArray:
        """Return the probability (I,) that each item is shown first in a context."""
        first = self.slates(code, when).items[:, 0]
        share = np.bincount(first[first >= 0], minlength=self.catalogue.size) / self.draws
        if self.at_random == 0.0:
            return share
        may = self.catalogue.open_at(when) & self.catalogue.eligible(code)
        return np.asarray((1 - self.at_random) * share + self.at_random * may / max(may.sum(), 1))

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
        own = self.posterior
        assert len(item) == len(codes)  # kernels do not look
        if slot is None:
            unique, row = np.unique(codes, return_inverse=True)
            ccode = self.terms.context_codes(unique)
        else:
            pair = codes * self.slots + slot
            unique, row = np.unique(pair, return_inverse=True)
            ccode = self.terms.context_codes(unique // self.slots, unique % self.slots)
        if own.covariance is not None:
            index = self.terms.index(self.icode[item], ccode[row])
            mean, var = own.moments(index, np.ones(index.shape))
        else:
            mean, var = np.empty(len(item)), np.empty(len(item))
            kernels.pair_moments(
                self.terms.base, self.terms.width, self.icode, ccode, item, row, own.mean,
                own.variance, mean, var,
            )  # fmt: skip
        return np.asarray(ndtr(mean / np.sqrt(1 + var)))
