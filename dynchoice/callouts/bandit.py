"""Callouts: a page of benefits that learns what to show, by Thompson sampling in batches.

SOURCES.md 2, 3 and 8A.6; Teo et al. (2016) for diversity. Between batches the posterior stands
still. It is represented by ``draws`` vectors of weights; a decision follows one of them, picked at
random, so that the propensity of what is shown, the share of draws that would show it, is known
exactly (:mod:`dynchoice.callouts.thompson`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice.callouts.blocked_items import find_capped_pairs, list_blocked_items
from dynchoice.callouts.catalogue import Catalogue, Moment, as_time, when_of
from dynchoice.callouts.category_weights import learn_category_weights, read_category_weights
from dynchoice.callouts.delay import Delays
from dynchoice.callouts.expected import table_expected_clicks
from dynchoice.callouts.feature_terms import Terms, code_context
from dynchoice.callouts.feedback import Feedback, Learned, read_impressions
from dynchoice.callouts.prior import MetaPrior
from dynchoice.callouts.probit import Gaussian, Prior, Probit, prior_mapping
from dynchoice.callouts.thompson import Rules, Slates, Snapshot, empty_slates
from dynchoice.callouts.values import read_values
from dynchoice.errors import SpecificationError
from dynchoice.panel.states import StateSpace, check_labels
from dynchoice.storage import load_tree, save_tree
from dynchoice.typing import FloatArray, IntArray, Level, Progress

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

KIND = "callouts"
RANDOM = "random"
CHUNK = 200_000
"""Members decided for at a time: progress, and room for their slates."""
SMALL = 1000
"""Features up to which all covariances are kept by default."""


class Callouts:
    """A policy that chooses callouts for members and learns from what they click.

    Parameters
    ----------
    catalogue : pandas.DataFrame
        See :class:`dynchoice.callouts.catalogue.Catalogue`: ``item``, attributes, availability
        (``starts``, ``ends``), frequency ``cap``, eligibility (``for_COLUMN``).
    context : mapping or StateSpace, optional
        Column of the members' table -> its levels: plan held, tenure, engagement ...
    terms : sequence of str
        Features: ``"1"``, columns of catalogue and context, ``"slot"``, products with ``:``. Each
        term is a feature group with a prior of its own.
    slots : int
        Callouts on a page, best first.
    values : pandas.DataFrame, optional
        What a click is worth: columns of catalogue or context and ``value``. Default: all alike.
        Long-run values come from :func:`dynchoice.discovery_values`.
    prior : mapping or MetaPrior, optional
        Term -> variance or (mean, variance). Default: N(-1.5, 1) for ``"1"``, N(0, 0.1) for others.
    method : str, optional
        Of inference; see :class:`Probit`. Default: ``"joint"`` up to 1,000 features, then
        ``"adf"``.
    forget : float
        Share of what was known that is kept at each batch.
    window : float
        Attribution window in days: clicks later than this are not the callout's.
    pending : str
        Impressions within the window and not clicked yet: ``"due"`` (likelihood
        ``1 - D(age) p``, with the delays' distribution ``D`` estimated), ``"wait"`` (all outcomes
        wait for the window's end) or ``"failure"`` (taken for failures at once; biased where delays
        differ, here for comparison).
    delay_by : str, optional
        Column of the catalogue by which delays differ.
    delays : array, optional
        Share of clicks in each day of delay, assumed before any is seen. Default: alike.
    category : str, optional
        Column of the catalogue for diversity. Needed for ``diversity`` and members' weights.
    diversity : float
        0 ranks by value times probability. Above, slates maximise
        ``sum_c w_c log(1 + diversity S_c)``, ``S_c`` the category's summed scores relative to the
        best item's.
    cap_window : float
        Days over which the catalogue's ``cap`` counts.
    draws : int
        Vectors of weights that stand for the posterior; propensities are multiples of one over it.
    explore : bool
        False ranks by the posterior mean: a greedy recommender, for comparison.
    at_random : float
        Share of visits that see eligible items at random. Once a policy has made up its mind it
        never shows most items: then its log cannot value policies that would
        (:func:`dynchoice.off_policy`). A few visits in a hundred keep that possible.
    seed : int

    Raises
    ------
    SpecificationError, DataError, ColumnError
        What is wrong with terms, catalogue or values.

    Examples
    --------
    >>> import pandas as pd
    >>> items = pd.DataFrame({"item": ["ship", "film", "song"], "benefit": ["a", "b", "b"]})
    >>> policy = Callouts(items, {"plan": ["none", "monthly"]}, ["1", "item", "benefit:plan"])
    >>> members = pd.DataFrame({"member": [1, 2], "plan": ["none", "monthly"]})
    >>> list(policy.decide(members).columns)
    ['member', 'slot', 'item', 'propensity', 'slate_propensity', 'probability', 'snapshot']
    """

    def __init__(
        self,
        catalogue: pd.DataFrame | Catalogue,
        context: Mapping[str, Sequence[Level]] | StateSpace | None = None,
        terms: Sequence[str] = ("1", "item"),
        *,
        slots: int = 1,
        values: pd.DataFrame | None = None,
        prior: Prior | None = None,
        method: str | None = None,
        forget: float = 1.0,
        window: float = 7.0,
        pending: str = "due",
        delay_by: str | None = None,
        delays: FloatArray | None = None,
        category: str | None = None,
        diversity: float = 0.0,
        cap_window: float = 7.0,
        draws: int = 256,
        explore: bool = True,
        at_random: float = 0.0,
        seed: int = 0,
    ) -> None:
        if context is not None and not isinstance(context, StateSpace):
            context = StateSpace.from_axes(context) if context else None
        self.context = context
        if not isinstance(catalogue, Catalogue):
            catalogue = Catalogue(catalogue, context)
        self.catalogue = catalogue
        self.slots = checks.whole(slots, "slots", 1)
        self.seed = checks.whole(seed, "seed")
        self.explore = bool(explore)
        self.draws = checks.whole(draws, "draws", 1) if explore else 1
        self.at_random = checks.share(at_random, "at_random")
        self.diversity = checks.number(diversity, "diversity", 0)
        self.cap_window = checks.number(cap_window, "cap_window", 0)
        for what, column in (("category", category), ("delay_by", delay_by)):
            if column is not None:
                checks.known([column], catalogue.levels, f"{what}: column of the catalogue")
        self.category, self.delay_by = category, delay_by
        if diversity > 0 and category is None:
            raise SpecificationError("diversity needs category=, a column of the catalogue")
        self.terms = Terms(terms, catalogue.levels, context, self.slots)
        start = {t: (-1.5, 1.0) if t == "1" else (0.0, 0.1) for t in self.terms.names}
        if method is None:
            method = "joint" if self.terms.size <= SMALL else "adf"
        moments = start | dict(prior_mapping(prior))
        self.model = Probit(self.terms.groups, moments, method=method, forget=forget)
        groups = 1 if delay_by is None else len(catalogue.levels[delay_by])
        self.feedback = Feedback(Delays(window, groups, delays), pending)
        self.snapshot, self.decisions = 0, 0
        self.files: dict[str, str] = {}
        self.prior_method = "no"
        self.values: pd.DataFrame | None = None
        self._value_of: Callable[[int], FloatArray] | None = None
        self._bind()
        self.set_values(values)
        self.snapshot = 0

    def _bind(self) -> None:
        """Set what follows from the catalogue; drop what was computed from the old one."""
        if self.category is None:
            self._category, self._categories = np.zeros(self.catalogue.size, np.int64), 1
        else:
            self._category = self.catalogue.codes[self.category]
            self._categories = len(self.catalogue.levels[self.category])
        self.refresh()

    def refresh(self) -> None:
        """Drop what was computed from the posterior and the items: they have changed."""
        self._current: Snapshot | None = None

    @property
    def current(self) -> Snapshot:
        """The fixed policy that decides until the next batch."""
        if self._current is None:
            waiting = self.feedback.open(self._delay_groups())
            cells = None if waiting is None else waiting.cells(self.terms, self.catalogue)
            self._current = Snapshot(
                number=self.snapshot,
                posterior=self.model.with_open(cells, seed=self.seed),
                catalogue=self.catalogue,
                terms=self.terms,
                values=self.item_values,
                category=self._category,
                categories=self._categories,
                slots=self.slots,
                draws=self.draws,
                diversity=self.diversity,
                explore=self.explore,
                at_random=self.at_random,
                seed=self.seed,
            )
        return self._current

    # -- the value of a click

    def set_values(self, values: pd.DataFrame | None) -> Callouts:
        """Set the value of a click; return the policy. Columns: see ``values`` of the class."""
        read = None if values is None else read_values(values, self.catalogue, self.context)
        self.values, self._value_of = values, read
        self.snapshot += 1
        self.refresh()
        return self

    def item_values(self, code: int) -> FloatArray:
        """Return the value of a click on each item in a context, shape (I,)."""
        if self._value_of is None:
            return np.ones(self.catalogue.size)
        return self._value_of(code)

    # -- learning

    def learn(
        self,
        impressions: pd.DataFrame | None,
        clicks: pd.DataFrame | None = None,
        *,
        batch: str,
        now: Moment | None = None,
    ) -> Learned:
        """Learn a batch of feedback, once: a batch that was learned changes nothing.

        Parameters
        ----------
        impressions : pandas.DataFrame, optional
            What was shown since the last batch: ``impression`` (a key), ``item``, ``time``, the
            context's columns, ``slot`` where there are several, and optionally ``clicked_at``.
        clicks : pandas.DataFrame, optional
            ``impression`` and ``time`` of clicks, also on impressions of earlier batches.
        batch : str
            Names the batch, e.g. its date.
        now : number or date, optional
            Until when clicks are known. Default: the last time in the batch.

        Returns
        -------
        Learned
            Counts of what was learned, is pending, came too late or could not be matched.

        Raises
        ------
        DataError
            The batch was learned with other content; keys repeat; clicks before their impression.
        """
        rows = None
        if impressions is not None:
            rows = read_impressions(impressions, self.catalogue, self.context, self.slots)
        report, after, settled = self.feedback.examine(
            batch, rows, clicks, when_of(now), self.model.forget, self._delay_groups()
        )
        if settled is None:
            return report
        # a copy learns: whoever interrupts leaves model and feedback as they were, both
        cells = settled.cells(self.terms, self.catalogue)
        model = copy.copy(self.model).learn(cells, seed=self.seed)
        self.model, self.feedback = model, after
        self.snapshot += 1
        self.refresh()
        return report

    def learn_prior(self, method: str = "moments", **options: Any) -> MetaPrior:
        """Learn the prior from what the policy has seen, and replay the data under it.

        Options: see :meth:`MetaPrior.learn`. New items start from their group's prior. One that did
        not converge is returned, with a warning, and not taken over.
        """
        prior = MetaPrior.learn(self.model, method, **options)
        if not prior.converged:
            return prior
        self.model, self.prior_method = copy.copy(self.model).set_prior(prior), method
        self.snapshot += 1
        self.refresh()
        return prior

    @property
    def posterior(self) -> Gaussian:
        """The belief over the weights, open impressions taken into account."""
        return self.current.posterior

    def _delay_groups(self) -> IntArray:
        """Return the group of delays (I,) of each item."""
        if self.delay_by is None:
            return np.zeros(self.catalogue.size, np.int64)
        return self.catalogue.codes[self.delay_by]

    def context_codes(self, df: pd.DataFrame) -> IntArray:
        """Return the code of each row's context."""
        if self.context is None:
            return np.zeros(len(df), np.int64)
        return self.context.codes(df)

    # -- deciding

    def decide(
        self,
        members: pd.DataFrame,
        *,
        now: Moment | None = None,
        blocked: pd.DataFrame | None = None,
        weights: pd.DataFrame | ArrayLike | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Choose callouts for members.

        Parameters
        ----------
        members : pandas.DataFrame
            A column ``member`` (or the index) and the context's columns.
        now : number or date, optional
            Needed where items have dates.
        blocked : pandas.DataFrame, optional
            ``member`` and ``item``: what may not be shown (:meth:`capped` makes it from a log).
        weights : pandas.DataFrame or array (members, categories), optional
            Personal weights of categories (:meth:`category_weights`). Default: one.
        seed : int, optional
            Default: another one at each call, kept with the policy.
        progress : callable, optional

        Returns
        -------
        pandas.DataFrame
            A row for each member and slot filled: ``member``, ``slot``, ``item``, ``propensity``
            (of the item in the slot), ``slate_propensity`` (of the whole slate), ``probability`` of
            a click (posterior mean), ``snapshot`` of the policy.
        """
        import pandas as pd

        when = when_of(now)
        checks.columns(members, (), "members")
        names = members["member"].to_numpy() if "member" in members else members.index.to_numpy()
        codes = self.context_codes(members)
        rng = np.random.default_rng([self.seed, self.decisions if seed is None else seed])
        draw = rng.integers(0, self.draws, len(members))
        start, taken = list_blocked_items(self.catalogue, names, blocked)
        table = read_category_weights(self.catalogue, self.category, weights, names)
        random = rng.random(len(members)) < self.at_random
        rules = Rules(codes, draw, start, taken, table, random)
        parts = [empty_slates(0, self.slots)]
        for begin in range(0, len(members), CHUNK):
            end = min(begin + CHUNK, len(members))
            parts.append(self.current.decide(rules.part(begin, end), when, rng))
            if progress is not None:
                progress(end, len(members), "decided")
        self.decisions += 1
        slates = Slates(*map(np.concatenate, zip(*parts, strict=True)))
        filled = slates.items >= 0
        row, slot = np.nonzero(filled)
        item = slates.items[filled]
        return pd.DataFrame(
            {
                "member": names[row],
                "slot": slot + 1,
                "item": pd.Index(list(self.catalogue.items)).take(item),
                "propensity": slates.shares[filled],
                "slate_propensity": slates.whole[row],
                "probability": self.current.probability(item, codes[row], slot),
                "snapshot": self.snapshot,
            }
        )

    def decide_one(
        self, *, now: Moment | None = None, draw: int | None = None, **context: Level
    ) -> tuple[tuple[Level, ...], tuple[float, ...]]:
        """Return the slate for one member and the items' propensities.

        A lookup in contexts that were asked for (or :meth:`prepare`-d) since the last batch.
        """
        rng = None
        if draw is None:
            rng = np.random.default_rng([self.seed, self.decisions])
            draw = int(rng.integers(self.draws))
            self.decisions += 1
        elif not 0 <= draw < self.draws:
            raise SpecificationError(f"draw={draw!r}: there are {self.draws}, from 0")
        code = code_context(self.context, context)
        slate, shares = self.current.decide_one(code, when_of(now), draw, rng)
        kept = slate >= 0
        return tuple(self.catalogue.items[i] for i in slate[kept]), tuple(shares[kept].tolist())

    def best(self, code: int, draw: int, out: FloatArray | None = None) -> int:
        """Return the item that one draw of the weights ranks first of all in a context.

        Scans every item, eligible or not: the price of a decision that nothing was prepared for.
        """
        scores = np.empty(self.catalogue.size) if out is None else out
        return int(self.current.scores(code, draw, scores).argmax())

    def prepare(self, members: pd.DataFrame, *, now: Moment | None = None) -> Callouts:
        """Work out the shortlists of the contexts of a table beforehand; return the policy."""
        when = when_of(now)
        for code in np.unique(self.context_codes(members)):
            self.current.slates(int(code), when)
        return self

    def slates(self, code: int, when: float | None = None) -> IntArray:
        """Return each draw's slate (R, slots) in a context."""
        return self.current.slates(code, when).items

    def propensity(
        self, members: pd.DataFrame, items: ArrayLike, *, now: Moment | None = None
    ) -> FloatArray:
        """Return the probability (n,) that the policy now would show each member an item first.

        For one slot without caps: the target policy's probabilities in off-policy evaluation.
        """
        item = self._item_of_each(items, members)
        table, row = self.current.first_shares(self.context_codes(members), when_of(now))
        return np.asarray(table[row, item])

    def expected_clicks(
        self,
        members: pd.DataFrame,
        by: str,
        *,
        page: str | Callouts | None = None,
        now: Moment | None = None,
    ) -> pd.DataFrame:
        """Return expected clicks a visit, by context and a column of the catalogue.

        Parameters
        ----------
        members : pandas.DataFrame
            The context's columns.
        by : str
            Column of the catalogue, such as the benefit.
        page : "random", Callouts or None
            Default: what this policy shows, over all its draws; or eligible items at random, or
            what another policy shows of the same items, by what this one knows of clicks.
        now : number or date, optional

        Returns
        -------
        pandas.DataFrame
            Columns of the context, ``by``, ``clicks`` and ``members``; every level of ``by``.
        """
        shown = None if page == RANDOM else self.current
        if page is not None and page != RANDOM:
            hint = f"pass another policy, {RANDOM!r} or None"
            shown = checks.instance(page, "page", Callouts, hint).current
        codes = self.context_codes(members)
        return table_expected_clicks(self.current, shown, codes, by, when_of(now))

    def first_shares(self, members: pd.DataFrame, *, now: Moment | None = None) -> FloatArray:
        """Return the probability (n, I) that each item is shown first to each member now."""
        table, row = self.current.first_shares(self.context_codes(members), when_of(now))
        return table[row]

    def _item_of_each(self, items: ArrayLike, members: pd.DataFrame) -> IntArray:
        """Return the code of each member's item: one each."""
        codes = self.catalogue.item_codes(items)
        if codes.shape != (len(members),):
            raise SpecificationError(f"{len(members):,} members and {codes.size:,} items: one each")
        return codes

    # -- scoring

    def score(self, members: pd.DataFrame, items: ArrayLike | None = None) -> FloatArray:
        """Return probabilities of a click on the first slot.

        Parameters
        ----------
        members : pandas.DataFrame
            The context's columns.
        items : array (n,), optional
            One a row: probabilities (n,). Default: every item for every row, (n, I).
        """
        codes = self.context_codes(members)
        if items is not None:
            return self.current.probability(self._item_of_each(items, members), codes)
        n, size = len(codes), self.catalogue.size
        every = np.tile(np.arange(size), n)
        return self.current.probability(every, np.repeat(codes, size)).reshape(n, size)

    # -- rules and personal weights

    def capped(self, log: pd.DataFrame, now: Moment) -> pd.DataFrame:
        """Return ``member`` and ``item`` pairs that have reached the item's cap.

        ``log`` has ``member``, ``item`` and ``time`` of impressions; those of the last
        ``cap_window`` days count.
        """
        when = as_time(now)
        return find_capped_pairs(self.catalogue, log, when - self.cap_window, when)

    def category_weights(self, log: pd.DataFrame, *, strength: float = 5.0) -> pd.DataFrame:
        """Return personal weights of categories from clicks: Dirichlet means, times their number.

        ``log`` has ``member`` and ``item`` of clicks. A member's share of clicks is drawn towards
        everyone's by ``strength`` clicks; weights average one over categories.
        """
        return learn_category_weights(self.catalogue, self.category, log, strength)

    # -- the catalogue changes

    def add(self, items: pd.DataFrame) -> Callouts:
        """Add items; what is known stays, new ones start from their group's prior."""
        from dynchoice.callouts.policy_file import move_policy

        return self.become(move_policy(self, self.catalogue.extend(items), self.values))

    def become(self, other: Callouts) -> Callouts:
        """Take over another policy's state, all of it at once; return this one."""
        self.__dict__.update(other.__dict__)
        return self

    def end(self, items: str | Sequence[Level], when: Moment) -> Callouts:
        """Take items out of the page from a time on; what was learned of them stays."""
        labels = check_labels([items] if isinstance(items, str) else items, "items to end")
        self.catalogue = self.catalogue.end(np.array(labels, object), as_time(when, "when"))
        self.snapshot += 1
        self._bind()
        return self

    # -- the state

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole state to one file: arrays and JSON, no pickle; whole or not at all."""
        from dynchoice.callouts.policy_file import policy_to_tree

        return save_tree(path, KIND, policy_to_tree(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Callouts:
        """Return the policy that :meth:`save` wrote.

        Raises
        ------
        StorageError
            No such file; damaged; another kind of object.
        """
        from dynchoice.callouts.policy_file import policy_from_tree

        return policy_from_tree(load_tree(path, KIND))

    def __repr__(self) -> str:
        model = self.model
        return (
            f"Callouts({self.catalogue.size:,} items, {self.terms.size:,} features,"
            f" {model.impressions:,.0f} impressions, {model.clicks:,.0f} clicks,"
            f" {self.feedback.waiting:,} within their window, batch {model.batches})"
        )
