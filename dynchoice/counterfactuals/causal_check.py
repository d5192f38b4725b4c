"""Does the structural model agree with the quasi-experiment?

For every roll-out (and price change) that comes to regions at different times, a two-way fixed
effects regression of region-by-month take-up, which knows nothing of the model, stands beside the
same regression on the take-up that the fitted model predicts for the same regions and months. The
regression weighs early and late months of early and late regions alike in both, and whatever makes
untreated trends differ (another price, another starting point) is in both; so the two agree where
the model is right, also where the regression is no clean average effect. That average, predicted
with and without the roll-out, is shown as well. The difference is tested with a jackknife over
regions that redoes every stage of both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import ConvergenceError, DynChoiceWarning, SpecificationError
from dynchoice.estimate.ccp import CCP
from dynchoice.estimate.nfxp import NFXP
from dynchoice.estimate.npl import NPL
from dynchoice.inference.results import Results
from dynchoice.inference.summary import wrapped
from dynchoice.model.regions import MarketEvent, RegionGrid, market_events
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.solvers.push_forward import mover
from dynchoice.solvers.solve import solve
from dynchoice.typing import FloatArray, IntArray, Progress

LEAST_TREATED = 4
"""Treated regions with months before the roll-out that a test of pre-trends needs."""
FEW_REGIONS = 6
"""Regions, treated and others together, below which no inference is attempted."""


@dataclass(frozen=True)
class EventCheck:
    """One roll-out: both effects on take-up (a share), their difference, and pre-trends.

    Attributes
    ----------
    event : MarketEvent
    effect, effect_se : float
        Difference-in-differences, standard error clustered by region.
    structural : float
        The same regression on the model's predicted take-up.
    average : float
        The model's effect on take-up, with less without the roll-out, averaged over treated
        regions and months.
    difference_se, pval : float
        Of ``effect - structural``: jackknife over regions, t with regions - 1 degrees.
    pretrend_pval : float
        Test that take-up did not move in the months just before the roll-out, against the months
        before those: jackknife over regions, t with regions - 1 degrees (NaN where fewer than
        four regions have such months).
    paths : pandas.DataFrame
        By months since the roll-out: observed and predicted effect, standard error.
    reason : str
        Why there is no comparison, or empty.
    """

    event: MarketEvent
    effect: float = float("nan")
    effect_se: float = float("nan")
    structural: float = float("nan")
    average: float = float("nan")
    difference_se: float = float("nan")
    pval: float = float("nan")
    pretrend_pval: float = float("nan")
    paths: Any = None
    reason: str = ""

    @property
    def difference(self) -> float:
        """Effect seen less effect predicted."""
        return self.effect - self.structural


@dataclass(frozen=True)
class CausalCheck:
    """Every roll-out of a panel: does the structural effect agree with the one seen?"""

    checks: tuple[EventCheck, ...]
    outcome: str

    def frame(self) -> pd.DataFrame:
        """Return one row an event."""
        return pd.DataFrame(
            [
                {
                    "event": c.event.label,
                    "effect": c.effect,
                    "std_error": c.effect_se,
                    "structural": c.structural,
                    "average_effect": c.average,
                    "difference": c.difference,
                    "difference_se": c.difference_se,
                    "pval": c.pval,
                    "pretrend_pval": c.pretrend_pval,
                    "note": c.reason,
                }
                for c in self.checks
            ]
        )

    def __str__(self) -> str:
        lines = [f"Causal check: effects on {self.outcome}, in percentage points"]
        for c in self.checks:
            if c.reason:
                lines.append(f"{c.event.label}: {c.reason}")
                continue
            verdict = "agree" if c.pval >= 0.05 else "DISAGREE"
            lines.append(
                f"{c.event.label}: difference-in-differences {100 * c.effect:+.2f}"
                f" ({100 * c.effect_se:.2f}), structural model {100 * c.structural:+.2f};"
                f" difference {100 * c.difference:+.2f} ({100 * c.difference_se:.2f}),"
                f" p = {c.pval:.3f}: they {verdict} (average effect in the model"
                f" {100 * c.average:+.2f})"
            )
            if np.isfinite(c.pretrend_pval):
                calm = c.pretrend_pval >= 0.05
                word = "no sign of anticipation" if calm else "take-up MOVED just before it"
                lines.append(f"    pre-trends: {word} (p = {c.pretrend_pval:.3f})")
        if not self.checks:
            lines.append("no roll-out or price change in this panel")
        return "\n".join(wrapped(line) if line[:4].strip() else line for line in lines)

    __repr__ = __str__


def causal_check(
    results: Results,
    data: Any,
    *,
    outcome: Any = None,
    window: tuple[int, int] = (6, 12),
    events: Iterable[MarketEvent] | None = None,
    refit: Callable[[Counts], Results] | None = None,
    progress: Progress | None = None,
) -> CausalCheck:
    """Compare every roll-out's effect on take-up with what the fitted model predicts.

    Parameters
    ----------
    results : Results
        Infinite horizon, with the events' axes as ``Fixed`` laws.
    data : Panel or Counts
        The data of the fit, with regions.
    outcome : label or list of labels, optional
        Choices whose share is the outcome; default: all but the model's first choice.
    window : (int, int)
        Months before and after the roll-out that the event study shows.
    events : optional
        Default: all that :func:`dynchoice.model.regions.market_events` finds.
    refit : callable, optional
        Counts -> Results, to redo the fit in the jackknife; default: the estimator of
        ``results`` with its usual options (NFXP, NPL or CCP).

    Returns
    -------
    CausalCheck

    Raises
    ------
    SpecificationError
        No regions; other data than the fit's; an outcome that is no choice; a finite horizon.
    ConvergenceError
        A refit of the jackknife failed.

    Notes
    -----
    A price change that comes to all regions in the same month has no comparison: the check says
    so instead of a number. Predictions follow the members who stood in each region in its first
    month through every change that the region saw; members who enter later are taken to stand where
    the others have come to.
    """
    if not isinstance(results, Results) or "type" in results.uses:
        raise SpecificationError(
            "causal_check() takes one fit of everybody (Results): take-up is everybody's, so a"
            " mixture or one of its types cannot be set against it"
        )
    results.require_model("the causal check")
    counts = data.counts if isinstance(data, Panel) else data
    if not isinstance(counts, Counts):
        raise SpecificationError(f"data is a {type(data).__name__}; pass a Panel or its Counts")
    if counts.digest != results.data_digest:
        raise SpecificationError("these are not the data of the fit (their digests differ)")
    model = results.model
    if model.horizon is not None:
        raise SpecificationError("the causal check is for infinite horizons")
    chosen = list(model.choices[1:]) if outcome is None else outcome
    chosen = chosen if isinstance(chosen, list | tuple) else [chosen]
    if not chosen:
        raise SpecificationError("outcome names no choice")
    good = isinstance(window, tuple | list) and len(window) == 2
    if not good or not all(isinstance(x, int) and x >= 1 for x in window):
        raise SpecificationError(f"window={window!r}: pass months before and after, both >= 1")
    unknown = [c for c in chosen if c not in model.choices]
    if unknown:
        raise SpecificationError(
            f"outcome {unknown[0]!r} is no choice; choices: {', '.join(map(str, model.choices))}"
        )
    take = np.isin(np.arange(len(model.choices)), [model.choices.index(c) for c in chosen])
    grid = RegionGrid(model, counts)
    found = market_events(model, counts, grid) if events is None else list(events)
    if refit is None:
        refit = _same_estimator(results)

    checks = []
    for i, event in enumerate(found):
        checks.append(_check(results, counts, grid, event, take, window, refit))
        if progress is not None:
            progress(i + 1, len(found), event.label)
    name = "the share of " + " + ".join(map(str, chosen))
    return CausalCheck(tuple(checks), name)


def _same_estimator(results: Results) -> Callable[[Counts], Results]:
    """Return a function that redoes a fit on other counts."""
    model, start = results.model, results.theta
    if results.estimator in ("NFXP", "NFXP (joint)"):
        return lambda c: NFXP(model, c).fit(start=start, cov_type="unadjusted", tol=1e-6)
    if results.estimator == "NPL":
        return lambda c: NPL(model, c).fit(cov_type="unadjusted", tol=1e-6)
    if results.estimator == "CCP":
        return lambda c: CCP(model, c).fit(cov_type="unadjusted", tol=1e-6)
    raise SpecificationError(
        f"the jackknife does not know how {results.estimator} was made: pass refit=, a function of"
        " Counts that returns Results"
    )


def _check(
    results: Results,
    counts: Counts,
    grid: RegionGrid,
    event: MarketEvent,
    take: Any,
    window: tuple[int, int],
    refit: Callable[[Counts], Results],
) -> EventCheck:
    if event.at_once:
        return EventCheck(event, reason="it came everywhere in the same month: no comparison")
    used = grid.alive.any(axis=1)
    if int(used.sum()) < FEW_REGIONS:
        return EventCheck(event, reason=f"{int(used.sum())} regions are too few to compare")
    starts = np.array([event.starts.get(x, -1) for x in grid.labels]) - grid.first
    starts[starts < 0] = -1
    if int((starts >= 0).sum()) < 2:
        return EventCheck(event, reason="one region only: nothing to average over")
    table = take_up_table(grid, take)
    predicted = predicted_take_up(results, grid, take)
    treated = (starts[:, None] >= 0) & (np.arange(grid.T) >= starts[:, None])
    since = np.where(starts[:, None] >= 0, np.arange(grid.T) - starts[:, None], -999)
    effect, se = two_way(table, treated, used)
    structural = two_way(_like(table, predicted), treated, used)[0]
    for r in [-1, *np.flatnonzero(used)]:
        keep = used & (np.arange(len(used)) != r)
        if not compares(treated, np.isfinite(table[0]) & keep[:, None]):
            left = "" if r < 0 else f" without region {grid.labels[r]!r}"
            return EventCheck(event, reason=f"no month has regions with and without it{left}")
    differences = []
    by_region = counts.by_region()
    for r in np.flatnonzero(used):
        keep = used.copy()
        keep[r] = False
        factor = np.ones(by_region.buckets)
        factor[r] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DynChoiceWarning)
            fit = refit(by_region.reweighted(factor))
        if not fit.converged:
            raise ConvergenceError(f"jackknife without region {grid.labels[r]!r}: {fit.message}")
        own = predicted_take_up(fit, grid, take)
        gap = two_way(table, treated, keep)[0] - two_way(_like(table, own), treated, keep)[0]
        differences.append(gap)
    G = len(differences)
    d = np.array(differences)
    spread = float(np.sqrt((G - 1) / G * ((d - d.mean()) ** 2).sum()))
    from scipy.stats import t as student

    pval = float(2 * student.sf(abs(effect - structural) / spread, G - 1))
    paths = event_study(table, predicted, since, used, window)
    pretrend = pretrend_pvalue(table, since, used, window[0])
    with_and_without = predicted_effect(results, grid, event, starts, take)
    weight = np.where(treated & np.isfinite(table[0]), table[1], 0.0)
    average = float((with_and_without * weight).sum() / weight.sum())
    return EventCheck(event, effect, se, structural, average, spread, pval, pretrend, paths)


def take_up_table(grid: RegionGrid, take: Any) -> tuple[FloatArray, FloatArray]:
    """Return take-up (R, T), NaN where nobody was seen, and members behind it."""
    size = grid.n.sum(axis=(2, 3))
    hits = grid.n[..., take].sum(axis=(2, 3))
    share = np.divide(hits, size, out=np.full_like(hits, np.nan), where=size > 0)
    return share, size


def _like(
    table: tuple[FloatArray, FloatArray], effect: FloatArray
) -> tuple[FloatArray, FloatArray]:
    return np.where(np.isnan(table[0]), np.nan, effect), table[1]


def compares(treated: Any, seen: Any) -> bool:
    """Return whether region and month effects leave any variation of the treatment."""
    r, t = np.nonzero(seen)
    d = treated[r, t].astype(np.float64)
    for _ in range(200):
        before = d.copy()
        for g in (r, t):
            d = d - (np.bincount(g, weights=d) / np.maximum(np.bincount(g), 1))[g]
        if np.abs(d - before).max(initial=0.0) < 1e-13:
            break
    return bool((d**2).sum() > 1e-8)


def two_way(table: tuple[FloatArray, FloatArray], treated: Any, used: Any) -> tuple[float, float]:
    """Return the difference-in-differences and its standard error clustered by region.

    linearmodels' PanelOLS with region and month effects, weighted by members.
    """
    from linearmodels.panel import PanelOLS

    y, size = table
    r, t = np.nonzero(np.isfinite(y) & used[:, None])
    index = pd.MultiIndex.from_arrays([r, t])
    frame = pd.DataFrame(
        {"y": y[r, t], "treated": treated[r, t].astype(float), "w": size[r, t]}, index=index
    )
    fit = PanelOLS(
        frame["y"],
        frame[["treated"]],
        weights=frame["w"] / frame["w"].mean(),
        entity_effects=True,
        time_effects=True,
    ).fit(cov_type="clustered", cluster_entity=True, debiased=True)
    return float(fit.params["treated"]), float(fit.std_errors["treated"])


def event_study(
    table: tuple[FloatArray, FloatArray],
    predicted: FloatArray,
    since: IntArray,
    used: Any,
    window: tuple[int, int],
) -> pd.DataFrame:
    """Return effects by months since the roll-out.

    The month before is the reference; months outside the window are pooled at its ends.
    """
    from linearmodels.panel import PanelOLS

    before, after = window
    y, size = table
    r, t = np.nonzero(np.isfinite(y) & used[:, None])
    k = since[r, t]
    ever = k > -900
    k = np.where(ever, np.clip(k, -before, after), -1)
    levels = [x for x in range(-before, after + 1) if x != -1 and (k[ever] == x).any()]
    index = pd.MultiIndex.from_arrays([r, t])
    x = pd.DataFrame(
        {f"month {m:+d}": (ever & (k == m)).astype(float) for m in levels}, index=index
    )
    weights = pd.Series(size[r, t] / size[r, t].mean(), index=index)

    def fit(values: FloatArray) -> Any:
        own = pd.Series(values[r, t], index=index, name="y")
        return PanelOLS(
            own, x, weights=weights, entity_effects=True, time_effects=True, drop_absorbed=True
        ).fit(cov_type="clustered", cluster_entity=True, debiased=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen, model = fit(y), fit(predicted)
    names = list(seen.params.index)
    return pd.DataFrame(
        {
            "month": [int(n.split()[1]) for n in names],
            "effect": seen.params.to_numpy(),
            "std_error": seen.std_errors.to_numpy(),
            "structural": model.params.reindex(names).to_numpy(),
        }
    )


def pretrend_pvalue(
    table: tuple[FloatArray, FloatArray], since: IntArray, used: Any, before: int
) -> float:
    """Return the p-value of no move in the last half of the months before the roll-out.

    One coefficient, not one a month: with few treated regions a joint test of many clustered
    coefficients rejects far too often.
    """
    from scipy.stats import t as student

    last = max(before // 2, 1)
    y, size = table
    early = np.where((since >= 0) & (since > -900), np.nan, y)
    lead = (since < 0) & (since >= -last)
    seen = np.isfinite(early) & used[:, None]
    # regions with months in the window and months before it
    able = (lead & seen).any(axis=1) & ((since < -last) & (since > -900) & seen).any(axis=1)
    if int(able.sum()) < LEAST_TREATED:
        return float("nan")
    effect, _ = two_way((early, size), lead, used)
    parts = []
    for r in np.flatnonzero(used):
        keep = used.copy()
        keep[r] = False
        parts.append(two_way((early, size), lead, keep)[0])
    d, G = np.array(parts), int(used.sum())
    spread = float(np.sqrt((G - 1) / G * ((d - d.mean()) ** 2).sum()))
    return float(2 * student.sf(abs(effect) / spread, G - 1))


def _fitted_moves(results: Results) -> tuple[Callable[[FloatArray], FloatArray], FloatArray]:
    """Return how mass moves under the fitted policy, and the fitted choice probabilities."""
    model = results.model
    solution = results.solution if results.converged else solve(model, results.theta, strict=True)
    return mover(model.transitions, solution.ccp), solution.ccp


def predicted_take_up(results: Results, grid: RegionGrid, take: Any) -> FloatArray:
    """Return take-up (R, T) that the model predicts from each region's first month on."""
    with one_blas_thread():
        move, ccp = _fitted_moves(results)
        outcome = ccp[:, take].sum(axis=1)
        S = len(ccp)
        out = np.zeros((len(grid.labels), grid.T))
        for r in np.flatnonzero(grid.alive.any(axis=1)):
            first = int(grid.alive[r].argmax())
            present = grid.n[r, first].sum(axis=1)
            mu = present / present.sum()
            for t in range(first, grid.T):
                out[r, t] = outcome @ mu
                if t < grid.T - 1:
                    to = grid.offset[grid.to[r, t, grid.fixed]] + grid.base
                    mu = _moved(to, move(mu), S)
        return out


def _moved(to: IntArray, mu: FloatArray, S: int) -> FloatArray:
    """Return the distribution after every state ``s`` became ``to[s]``."""
    return np.asarray(np.bincount(to, weights=mu, minlength=S), dtype=np.float64)


def predicted_effect(
    results: Results, grid: RegionGrid, event: MarketEvent, starts: IntArray, take: Any
) -> FloatArray:
    """Return the model's effect of a roll-out on take-up, (R, T); zero where it has not come.

    Members who stood in the region when it came are followed with and without it.
    """
    with one_blas_thread():
        model = results.model
        move, ccp = _fitted_moves(results)
        outcome = ccp[:, take].sum(axis=1)
        axis = model.states.axis(event.axis)
        levels = list(model.states.axes[event.axis])
        stride = int(np.prod(model.states.shape[axis + 1 :]))
        own = model.states.axis_codes(event.axis)
        shift = (levels.index(event.before) - levels.index(event.after)) * stride
        S = model.states.size
        # states with the roll-out undone, and states of the next period's market without it
        undone = np.where(own == levels.index(event.after), np.arange(S) + shift, np.arange(S))
        out = np.zeros((len(grid.labels), grid.T))
        for r, first in enumerate(starts):
            if first < 0 or first >= grid.T:
                continue
            present = grid.n[r, first].sum(axis=1)
            if present.sum() <= 0:
                continue
            with_it = present / present.sum()
            without = _moved(undone, with_it, S)
            for t in range(first, grid.T):
                out[r, t] = outcome @ with_it - outcome @ without
                if t == grid.T - 1:
                    break
                to = grid.offset[grid.to[r, t, grid.fixed]] + grid.base
                with_it = _moved(to, move(with_it), S)
                # other changes reach the branch without the roll-out through its twin states
                twin = _twins(grid, r, t, own, levels, event, shift, S)
                without = _moved(twin, move(without), S)
        return out


def _twins(
    grid: RegionGrid,
    r: int,
    t: int,
    own: IntArray,
    levels: list[Any],
    event: MarketEvent,
    shift: int,
    S: int,
) -> IntArray:
    """Return where a state without the roll-out stands next period: its twin's move, undone."""
    here = np.arange(S)
    before = own == levels.index(event.before)
    twin = np.where(before, here - shift, here)
    moved = grid.offset[grid.to[r, t, grid.fixed[twin]]] + grid.base[twin]
    back = before & (own[moved] == levels.index(event.after))
    return np.asarray(np.where(back, moved + shift, moved), dtype=np.int64)
