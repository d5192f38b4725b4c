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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.event_study import (
    NEVER,
    compares,
    event_study,
    jackknife,
    leave_one_out,
    pretrend_pvalue,
    take_up_table,
    two_way,
    with_take_up,
)
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
from dynchoice.solvers.solve import solve
from dynchoice.solvers.solver import mover
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level, Progress

FEW_REGIONS = 6
"""Regions, treated and others together, below which no inference is attempted."""


@dataclass(frozen=True, kw_only=True)
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
    paths: pd.DataFrame | None = None
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
    data: Panel | Counts,
    *,
    outcome: Level | Sequence[Level] | None = None,
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
    labels = list(model.choices[1:]) if outcome is None else outcome
    labels = checks.items(labels if isinstance(labels, list | tuple) else [labels], "outcome")
    pair = isinstance(window, tuple | list) and len(window) == 2
    if not pair or not all(isinstance(x, int) and x >= 1 for x in window):
        raise SpecificationError(f"window={window!r}: pass months before and after, both >= 1")
    checks.known(labels, model.choices, "outcome: choice")
    taken = np.array([choice in labels for choice in model.choices])
    grid = RegionGrid(model, counts)
    events = market_events(model, counts, grid) if events is None else list(events)
    if refit is None:
        refit = _same_estimator(results)
    done = []
    for i, event in enumerate(events):
        done.append(_check(results, counts, grid, event, taken, window, refit))
        if progress is not None:
            progress(i + 1, len(events), event.label)
    return CausalCheck(tuple(done), "the share of " + " + ".join(map(str, labels)))


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
    taken: BoolArray,
    window: tuple[int, int],
    refit: Callable[[Counts], Results],
) -> EventCheck:
    """Compare the two effects of one event, or say why there is no comparison."""
    used = grid.alive.any(axis=1)
    # the month of the panel in which it comes, -1 where it never does
    starts = np.array([event.starts.get(x, -1) for x in grid.labels]) - grid.first
    starts[starts < 0] = -1
    table = take_up_table(grid, taken)
    treated = (starts[:, None] >= 0) & (np.arange(grid.T) >= starts[:, None])
    reason = _why_not(event, grid, used, starts, treated, np.isfinite(table[0]))
    if reason:
        return EventCheck(event=event, reason=reason)
    predicted = predicted_take_up(results, grid, taken)
    effect, effect_se = two_way(table, treated, used)
    structural = two_way(with_take_up(table, predicted), treated, used)[0]
    differences = []
    by_region = counts.by_region()
    for r, keep in zip(np.flatnonzero(used), leave_one_out(used), strict=True):
        factor = np.ones(by_region.buckets)
        factor[r] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DynChoiceWarning)
            fit = refit(by_region.reweighted(factor))
        if not fit.converged:
            raise ConvergenceError(f"jackknife without region {grid.labels[r]!r}: {fit.message}")
        refitted = with_take_up(table, predicted_take_up(fit, grid, taken))
        differences.append(two_way(table, treated, keep)[0] - two_way(refitted, treated, keep)[0])
    difference_se, pval = jackknife(effect - structural, differences)
    since = np.where(starts[:, None] >= 0, np.arange(grid.T) - starts[:, None], NEVER)
    by_month = predicted_effect(results, grid, event, starts, taken)
    weight = np.where(treated & np.isfinite(table[0]), table[1], 0.0)
    return EventCheck(
        event=event,
        effect=effect,
        effect_se=effect_se,
        structural=structural,
        average=float((by_month * weight).sum() / weight.sum()),
        difference_se=difference_se,
        pval=pval,
        pretrend_pval=pretrend_pvalue(table, since, used, window[0]),
        paths=event_study(table, predicted, since, used, window),
    )


def _why_not(
    event: MarketEvent,
    grid: RegionGrid,
    used: BoolArray,
    starts: IntArray,
    treated: BoolArray,
    cells: BoolArray,
) -> str:
    """Return why an event leaves nothing to compare, or an empty text.

    ``cells`` (R, T) says where somebody was seen.
    """
    if event.at_once:
        return "it came everywhere in the same month: no comparison"
    if int(used.sum()) < FEW_REGIONS:
        return f"{int(used.sum())} regions are too few to compare"
    if int((starts >= 0).sum()) < 2:
        return "one region only: nothing to average over"
    if not compares(treated, cells & used[:, None]):
        return "no month has regions with and without it"
    # the jackknife needs a comparison without each region too
    for r, keep in zip(np.flatnonzero(used), leave_one_out(used), strict=True):
        if not compares(treated, cells & keep[:, None]):
            return f"no month has regions with and without it without region {grid.labels[r]!r}"
    return ""


def _fitted_moves(results: Results) -> tuple[Callable[[FloatArray], FloatArray], FloatArray]:
    """Return how mass moves under the fitted policy, and the fitted choice probabilities."""
    model = results.model
    solution = results.solution if results.converged else solve(model, results.theta, strict=True)
    return mover(model.transitions, solution.ccp), solution.ccp


def predicted_take_up(results: Results, grid: RegionGrid, taken: BoolArray) -> FloatArray:
    """Return take-up (R, T) that the model predicts from each region's first month on."""
    with one_blas_thread():
        move, ccp = _fitted_moves(results)
        outcome = ccp[:, taken].sum(axis=1)
        S = len(ccp)
        out = np.zeros((len(grid.labels), grid.T))
        for r in np.flatnonzero(grid.alive.any(axis=1)):
            first = int(grid.alive[r].argmax())
            present = grid.n[r, first].sum(axis=1)
            mu = present / present.sum()
            for t in range(first, grid.T):
                out[r, t] = outcome @ mu
                if t < grid.T - 1:
                    mu = _relabel(_next_market(grid, int(r), t), move(mu), S)
        return out


def _next_market(grid: RegionGrid, r: int, t: int) -> IntArray:
    """Return the state (S,) that each state of a region becomes as its market moves on."""
    return np.asarray(grid.offset[grid.to[r, t, grid.fixed]] + grid.base)


def _relabel(to: IntArray, mu: FloatArray, S: int) -> FloatArray:
    """Return the distribution after every state ``s`` became ``to[s]``."""
    return np.asarray(np.bincount(to, weights=mu, minlength=S), dtype=np.float64)


def predicted_effect(
    results: Results,
    grid: RegionGrid,
    event: MarketEvent,
    starts: IntArray,
    taken: BoolArray,
) -> FloatArray:
    """Return the model's effect of a roll-out on take-up, (R, T); zero where it has not come.

    Members who stood in the region when it came are followed with and without it.
    """
    with one_blas_thread():
        model = results.model
        move, ccp = _fitted_moves(results)
        outcome = ccp[:, taken].sum(axis=1)
        axis = model.states.axis(event.axis)
        levels = list(model.states.axes[event.axis])
        stride = int(np.prod(model.states.shape[axis + 1 :]))
        codes = model.states.axis_codes(event.axis)
        before, after = levels.index(event.before), levels.index(event.after)
        shift = (before - after) * stride
        S = model.states.size
        undone = np.where(codes == after, np.arange(S) + shift, np.arange(S))
        out = np.zeros((len(grid.labels), grid.T))
        for r, first in enumerate(starts):
            if first < 0 or first >= grid.T:
                continue
            present = grid.n[r, first].sum(axis=1)
            if present.sum() <= 0:
                continue
            with_it = present / present.sum()
            without = _relabel(undone, with_it, S)
            for t in range(first, grid.T):
                out[r, t] = outcome @ with_it - outcome @ without
                if t == grid.T - 1:
                    break
                market = _next_market(grid, r, t)
                with_it = _relabel(market, move(with_it), S)
                # other changes reach the branch without the roll-out through its twin states:
                # a state without it moves as its twin with it does, and the roll-out is undone
                twin = np.where(codes == before, np.arange(S) - shift, np.arange(S))
                moved = market[twin]
                back = (codes == before) & (codes[moved] == after)
                without = _relabel(np.where(back, moved + shift, moved), move(without), S)
        return out
