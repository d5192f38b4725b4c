"""Forecast: today's distribution over states pushed forward exactly, with bands.

    m_t(s, j) = mu_t(s) P(j|s),   share_t(j) = sum_s m_t(s, j),
    mu_{t+1}(s') = sum_{s,j} m_t(s, j) F(s'|s, j).

No member is simulated, so the path has no simulation noise; bands come from draws of the
parameters, each of which re-solves the model.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.counterfactual.mixtures import by_type
from dynchoice.counterfactual.scenario import Scenario
from dynchoice.errors import (
    ConvergenceError,
    DataError,
    DataWarning,
    SpecificationError,
    first_few,
    suggest,
)
from dynchoice.inference.mixture import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts, period_label
from dynchoice.panel.panel import Panel
from dynchoice.panel.states import as_floats
from dynchoice.solve.linear import one_blas_thread
from dynchoice.solve.warm import WarmSolution, WarmSolver
from dynchoice.typing import FloatArray, IntArray, Level, Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("dynchoice.counterfactual")

BASELINE = "baseline"
ALL = "all"


@dataclass(frozen=True)
class SegmentPath:
    """One path: shares (T, J), flows (T, J, J) and mean value change (a number)."""

    shares: FloatArray
    flows: FloatArray
    welfare: float


@dataclass(frozen=True)
class Forecast:
    """Paths of take-up by scenario, segment and period.

    Attributes
    ----------
    take_up : pandas.DataFrame
        scenario, segment, period, label, choice, share, lower, upper, members.
    flows : pandas.DataFrame
        scenario, segment, period, label, source, choice, share, lower, upper: who moves from
        which choice last period to which this period, as a share of all members.
    welfare : pandas.DataFrame
        scenario, segment, change, lower, upper: mean change of the ex-ante value against the
        baseline, in utils a member, when the scenario starts.
    converged : bool
        Whether every solution, draws included, met its tolerance; ``message`` counts failures.
    """

    take_up: pd.DataFrame
    flows: pd.DataFrame
    welfare: pd.DataFrame
    level: float
    draws: int
    seed: int | None
    converged: bool
    message: str

    def plot(self, segments: Sequence[Any] | None = None, path: Any = None) -> Any:
        """Draw take-up by period: a column a segment, a row a choice, a line a scenario.

        Returns the matplotlib figure; with ``path`` it is saved too (needs the extra
        ``report``).
        """
        from dynchoice.counterfactual.plot import plot_forecast

        return plot_forecast(self, segments, path)

    def save(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write ``take_up``, ``flows`` and ``welfare`` as Parquet files into a folder."""
        from dynchoice.storage import write_atomically

        written = []
        for name in ("take_up", "flows", "welfare"):
            write = partial(getattr(self, name).to_parquet, index=False)
            written.append(write_atomically(Path(directory) / f"{name}.parquet", write))
        return written

    def __repr__(self) -> str:
        t = self.take_up
        state = "converged" if self.converged else f"NOT CONVERGED: {self.message}"
        return (
            f"Forecast({t.scenario.nunique()} scenarios, {t.segment.nunique()} segments,"
            f" {t.period.nunique()} periods, {self.draws} draws; {state})"
        )


def forecast(
    results: Results | MixtureResults | Mapping[Any, Results],
    scenarios: Scenario | Iterable[Scenario] = (),
    *,
    start: Any,
    periods: int = 24,
    draws: int = 200,
    level: float = 0.9,
    seed: int | None = 0,
    n_jobs: int = 1,
    strict: bool = False,
    progress: Progress | None = None,
) -> Forecast:
    """Forecast take-up by month under the baseline and scenarios.

    Parameters
    ----------
    results : Results, MixtureResults, or mapping of segment -> Results
        One fit for everyone, or one a segment. A mixture is forecast type by type, from the
        Panel of the fit, each member counting by its posterior; its bands draw the types'
        parameters independently.
    scenarios : Scenario or sequence of them
        The baseline is always there.
    start : Panel, Counts, or array (S,) / mapping segment -> array
        Where members stand. A panel gives the choices of its last period, moved one period on;
        an array gives the distribution (or numbers of members) over states in period 1.
    periods : int
        Periods ahead ``T``.
    draws : int
        Parameter draws behind the bands, from the normal approximation of the estimator; 0 for
        no bands. Transitions are held at their estimates.
    level : float
        Pointwise coverage of the bands.
    seed : int, optional
        Each segment has its own stream, so results do not depend on ``n_jobs``.
    n_jobs : int
        Segments at once (joblib processes).
    strict : bool
        Raise if some solution did not converge.

    Returns
    -------
    Forecast

    Raises
    ------
    SpecificationError, DataError
        Scenarios with the same name; segments that do not match; no member to start from.
    """
    if isinstance(results, MixtureResults):
        results, start = by_type(results, start)
    listed = list_scenarios(scenarios, periods)
    everyone = [Scenario(BASELINE), *[s for s in listed if s.name != BASELINE]]
    names = [s.name for s in everyone]
    if len(set(names)) < len(names):
        raise SpecificationError(f"scenarios need distinct names, got {names}")
    whole = all(isinstance(x, (int, np.integer)) for x in (periods, draws, n_jobs))
    if not whole or periods < 1 or draws < 0 or not 0 < level < 1 or n_jobs == 0:
        raise SpecificationError(
            f"periods={periods} (>= 1), draws={draws} (>= 0) and n_jobs={n_jobs} (not 0) must be"
            f" whole numbers, level={level:g} must lie between 0 and 1"
        )
    if seed is not None and (not isinstance(seed, (int, np.integer)) or seed < 0):
        raise SpecificationError(f"seed={seed!r} must be a non-negative whole number or None")
    fits, masses, first = match_segments(results, start)
    labels = [] if first is None else [period_label(first[0] + t, first[1]) for t in range(periods)]
    streams = np.random.SeedSequence(seed).spawn(len(fits))
    tasks = [(fits[m], masses[m], everyone, periods, draws, streams[i]) for i, m in enumerate(fits)]
    if n_jobs == 1:
        done = []
        for i, task in enumerate(tasks):
            done.append(segment_paths(*task))
            if progress is not None:
                progress(i + 1, len(tasks), f"forecast {list(fits)[i]}")
    else:
        from joblib import Parallel, delayed

        done = Parallel(n_jobs=n_jobs)(delayed(segment_paths)(*t) for t in tasks)
    failures = sum(d[2] for d in done)
    solved = sum(d[3] for d in done)
    message = f"{failures} of {solved} solutions did not converge" if failures else "converged"
    if failures and strict:
        raise ConvergenceError(message)
    sizes = {m: float(masses[m].mass) for m in fits}
    choices = next(iter(fits.values())).model.choices
    return _tables(done, list(fits), sizes, everyone, labels, level, draws, seed, message, choices)


def list_scenarios(scenarios: Any, periods: int) -> list[Scenario]:
    """Return scenarios as a list; refuse other things, and what could not show in the forecast."""
    listed = [scenarios] if isinstance(scenarios, Scenario) else scenarios
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Iterable):
        raise SpecificationError(f"scenarios must be Scenario objects, got {scenarios!r}")
    listed = list(listed)
    for s in listed:
        if not isinstance(s, Scenario):
            raise SpecificationError(f"scenarios must be Scenario objects, got {s!r}")
        if s.name == BASELINE and s != Scenario(BASELINE):
            raise SpecificationError(
                f"the name {BASELINE!r} is kept for the forecast without changes: rename"
                " the scenario"
            )
        if s.starts > periods:
            raise SpecificationError(
                f"scenario {s.name!r} starts in period {s.starts}, after the last one ({periods})"
            )
    return listed


@dataclass(frozen=True)
class Start:
    """Members of one segment: last choices (S, J) or a distribution (S,), and how many."""

    last: FloatArray | None
    mu: FloatArray | None
    mass: float


def match_segments(
    results: Results | Mapping[Any, Results], start: Any
) -> tuple[dict[Any, Results], dict[Any, Start], tuple[int, str] | None]:
    """Return fits and starts by segment, and the first period's number and kind if known."""
    first: tuple[int, str] | None = None
    for fit in results.values() if isinstance(results, Mapping) else [results]:
        if not isinstance(fit, Results):
            raise SpecificationError(
                f"forecast() takes Results, MixtureResults, or a mapping of segment to Results; got"
                f" {type(fit).__name__}"
            )
        fit.require_model("a forecast")
    starts: dict[Any, Start] = {}
    counts = start.counts if isinstance(start, Panel) else start
    if isinstance(counts, Counts):
        last = counts.at_period()
        for m, label in enumerate(counts.segments):
            starts[label] = Start(last[m], None, float(last[m].sum()))
        first = (counts.last_period + 1, counts.period_kind)
    else:
        arrays = start if isinstance(start, Mapping) else {ALL: start}
        for label, a in arrays.items():
            mu = as_floats(a, f"start of {label!r}")
            if mu.ndim != 1 or not (mu >= 0).all() or not np.isfinite(mu).all():
                raise SpecificationError(
                    f"start of {label!r} must be a non-negative vector over states, got {mu.shape}"
                )
            starts[label] = Start(None, mu, float(mu.sum()))
    if isinstance(results, Results):
        fits = dict.fromkeys(starts, results)
    else:
        fits = dict(results)
        missing = [m for m in fits if m not in starts]
        if missing:
            raise SpecificationError(
                f"there is a fit of segment {missing[0]!r} but no member of it to start from."
                f"{suggest(missing[0], starts)}"
            )
    left_out = [m for m in starts if m not in fits]
    if left_out:
        warnings.warn(
            f"no fit for segment(s) {first_few(left_out)}: their members are not in the forecast",
            DataWarning,
            stacklevel=3,
        )
    if len(fits) > 1 and ALL in map(str, fits):
        raise SpecificationError(f"a segment may not be named {ALL!r}: it stands for all together")
    if len({fit.model.choices for fit in fits.values()}) > 1:
        raise SpecificationError("the fits of the segments have different choices")
    empty = [m for m in fits if not starts[m].mass > 0]
    if empty:
        raise DataError(f"segment {empty[0]!r} has no member in the last period to start from")
    for m, fit in fits.items():
        at = starts[m]
        size = len(at.mu) if at.mu is not None else len(at.last)  # type: ignore[arg-type]
        if size != fit.model.states.size:
            raise SpecificationError(
                f"start of {m!r} is over {size} states, the model has {fit.model.states.size}"
            )
        if fit.model.horizon is not None:
            raise SpecificationError("forecast() is for infinite horizons")
    return fits, {m: starts[m] for m in fits}, first


class Regime:
    """A model and policy in force: how mass moves, prepared once and applied every period."""

    def __init__(self, model: DDC, P: FloatArray) -> None:
        self.transitions, self.P = model.transitions, P
        self._moves: Any = None
        rows = model.transitions.stacked()
        if rows is not None:
            from scipy.sparse import csr_array

            indptr, indices, data = rows
            S, J = P.shape
            # J stacked rows of a state, one after the other, are its row of sum_j diag(P_j) F_j
            weights = data * np.repeat(P.reshape(-1), np.diff(indptr))
            # gathered by next state with short indices: half the memory traffic a period
            small = np.int32 if len(indices) < 2**31 else np.int64
            merged = csr_array(
                (weights, indices.astype(small), indptr[::J].astype(small)), shape=(S, S)
            )
            self._moves = merged.T.tocsr()

    def push(self, mu: FloatArray) -> FloatArray:
        """Return next period's distribution (S,)."""
        if self._moves is not None:
            return np.asarray(self._moves @ mu)
        return self.transitions.push(mu[:, None] * self.P)

    def flows(self, ahead: FloatArray) -> FloatArray:
        """Return ``P(j|s) E[ahead(s', k) | s, j]`` as (S, J * J)."""
        following = self.transitions.expect(np.ascontiguousarray(ahead))
        return np.asarray((self.P[:, :, None] * following).reshape(len(self.P), -1))


def push_path(
    before: Regime,
    after: Regime,
    mu: FloatArray,
    periods: int,
    starts: int,
    state_map: IntArray | None,
) -> tuple[FloatArray, FloatArray]:
    """Return shares (T, J) and flows (T - 1, J, J) of a path with one change of regime.

    ``before`` holds until period ``starts``, ``after`` from then on; ``state_map`` moves members
    when the change comes. ``mu`` (S,) sums to one.
    """
    J = before.P.shape[1]
    shares, flows = np.empty((periods, J)), np.empty((periods - 1, J, J))
    tables: dict[tuple[bool, bool], FloatArray] = {}
    for t in range(1, periods + 1):
        regime = after if t >= starts else before
        if t == starts and state_map is not None:
            moved_mass = np.bincount(state_map, weights=mu, minlength=len(mu))
            mu = np.asarray(moved_mass, dtype=np.float64)
        shares[t - 1] = mu @ regime.P
        if t == periods:
            break
        changes = t + 1 == starts
        key = (t >= starts, changes)
        if key not in tables:
            ahead = after.P if t + 1 >= starts else before.P
            moved = changes and state_map is not None
            tables[key] = regime.flows(ahead[state_map] if moved else ahead)
        flows[t - 1] = (mu @ tables[key]).reshape(J, J)
        mu = regime.push(mu)
    return shares, flows


def segment_paths(
    fit: Results,
    start: Start,
    scenarios: Sequence[Scenario],
    periods: int,
    draws: int,
    stream: np.random.SeedSequence,
) -> tuple[list[SegmentPath], list[list[SegmentPath]], int, int]:
    """Return each scenario's path at the estimates, its draws, failures and solutions."""
    with one_blas_thread():
        base = fit.model
        models = [s.changed(base) for s in scenarios]
        maps = [s.state_map(base) for s in scenarios]
        value = fit.value if fit.value.size else None
        solvers: list[WarmSolver] = []
        for s, model in zip(scenarios, models, strict=True):
            theta = s.theta(base, fit.theta)
            same = [
                o
                for o, other in zip(solvers, models, strict=False)
                if other is model and np.array_equal(o.base_params, theta)
            ]
            solvers.append(same[0] if same else WarmSolver(model, theta, value))
        failures = solved = 0
        thetas = [fit.theta]
        if draws:
            thetas += list(fit.draws(draws, np.random.default_rng(stream)))
        paths: list[list[SegmentPath]] = []
        for theta in thetas:
            found: dict[tuple[int, bytes], WarmSolution] = {}
            solutions = []
            for s, solver in zip(scenarios, solvers, strict=True):
                own = s.theta(base, theta)
                key = (id(solver), own.tobytes())
                if key not in found:
                    found[key] = solver.at(own)
                    solved += 1
                    failures += not found[key].point.converged
                solutions.append(found[key])
            paths.append(
                [
                    one_path(models, maps, solutions, i, scenarios[i], start, periods)
                    for i in range(len(scenarios))
                ]
            )
    return paths[0], paths[1:], failures, solved


def one_path(
    models: Sequence[DDC],
    maps: Sequence[IntArray | None],
    solutions: Sequence[WarmSolution],
    i: int,
    scenario: Scenario,
    start: Start,
    periods: int,
) -> SegmentPath:
    """Return the path of scenario ``i``; the baseline is number 0."""
    base, new = solutions[0], solutions[i]
    mu = start.mu if start.mu is not None else models[0].transitions.push(_full(start.last))
    mu = mu / start.mass
    before = Regime(models[0], base.P)
    after = before if new is base else Regime(models[i], new.P)
    shares, flows = push_path(before, after, mu, periods, scenario.starts, maps[i])
    J = shares.shape[1]
    first = np.full((1, J, J), np.nan)
    if start.last is not None:
        # the first period's flows come from the choices that members were seen to make
        later = new.P if scenario.starts == 1 else base.P
        if scenario.starts == 1 and maps[i] is not None:
            later = later[maps[i]]
        seen = start.last / start.mass
        first[0] = np.einsum("sj,sjk->jk", seen, models[0].transitions.expect(later))
    at = mu
    for _ in range(min(scenario.starts, periods) - 1):
        at = before.push(at)
    V = new.V if maps[i] is None else new.V[maps[i]]
    return SegmentPath(shares, np.concatenate([first, flows]), float(at @ (V - base.V)))


def _full(last: FloatArray | None) -> FloatArray:
    assert last is not None
    return np.ascontiguousarray(last)


def _band(draws: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    """Return pointwise quantiles over the first axis; NaN without draws."""
    if not len(draws):
        gap = np.full(draws.shape[1:], np.nan)
        return gap, gap
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return low, high


def _tables(
    done: Sequence[Any],
    segments: list[Any],
    sizes: dict[Any, float],
    scenarios: Sequence[Scenario],
    labels: list[str],
    level: float,
    draws: int,
    seed: int | None,
    message: str,
    choices: Sequence[Level],
) -> Forecast:
    """Lay paths out as tidy tables, with everyone together where there are several segments."""
    import pandas as pd

    labels_of = list(choices)
    weights = np.array([sizes[m] for m in segments])
    groups: list[tuple[Any, FloatArray, float]] = [
        (m, np.eye(len(segments))[i], sizes[m]) for i, m in enumerate(segments)
    ]
    if len(segments) > 1:
        groups.append((ALL, weights / weights.sum(), float(weights.sum())))
    take_up, flows, welfare = [], [], []
    for i, scenario in enumerate(scenarios):
        for segment, w, size in groups:
            # pooled draws pair the n-th draw of every segment: segments are independent samples
            point = {
                k: sum(wm * getattr(done[m][0][i], k) for m, wm in enumerate(w) if wm)
                for k in ("shares", "flows", "welfare")
            }
            drawn = {
                k: np.array(
                    [
                        sum(wm * getattr(done[m][1][b][i], k) for m, wm in enumerate(w) if wm)
                        for b in range(draws)
                    ]
                ).reshape(draws, *np.shape(point[k]))
                for k in point
            }
            T, J = point["shares"].shape
            low, high = _band(drawn["shares"], level)
            t, j = np.divmod(np.arange(T * J), J)
            take_up.append(
                pd.DataFrame(
                    {
                        "scenario": scenario.name,
                        "segment": str(segment),
                        "period": t + 1,
                        "choice": [labels_of[c] for c in j],
                        "share": point["shares"].reshape(-1),
                        "lower": low.reshape(-1),
                        "upper": high.reshape(-1),
                        "members": point["shares"].reshape(-1) * size,
                    }
                )
            )
            low, high = _band(drawn["flows"], level)
            code = np.arange(T * J * J)
            flows.append(
                pd.DataFrame(
                    {
                        "scenario": scenario.name,
                        "segment": str(segment),
                        "period": code // (J * J) + 1,
                        "source": [labels_of[c] for c in code // J % J],
                        "choice": [labels_of[c] for c in code % J],
                        "share": point["flows"].reshape(-1),
                        "lower": low.reshape(-1),
                        "upper": high.reshape(-1),
                    }
                ).dropna(subset=["share"])
            )
            low, high = _band(drawn["welfare"], level)
            welfare.append(
                {
                    "scenario": scenario.name,
                    "segment": str(segment),
                    "change": float(point["welfare"]),
                    "lower": float(low),
                    "upper": float(high),
                }
            )
    return Forecast(
        _labelled(pd.concat(take_up, ignore_index=True), labels),
        _labelled(pd.concat(flows, ignore_index=True), labels),
        pd.DataFrame(welfare),
        level,
        draws,
        seed,
        message == "converged",
        message,
    )


def _labelled(table: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Add the period's label after its number."""
    text = [labels[t - 1] if labels else str(t) for t in table["period"]]
    table.insert(3, "label", text)
    return table
