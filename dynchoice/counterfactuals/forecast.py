"""Forecast: today's distribution over states pushed forward exactly, with bands.

No member is simulated, so the path has no simulation noise; bands come from draws of the
parameters (and laws of motion), each of which re-solves the model. All scenarios of a draw share
it: differences between scenarios have bands of their own, not the sum of two.
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

from dynchoice.counterfactuals.calibrated import Calibrated, calibrated_fits
from dynchoice.counterfactuals.draws import Draw, bootstrap_draws, delta_draws, draws_of
from dynchoice.counterfactuals.forecast_tables import lay_out
from dynchoice.counterfactuals.mixtures import by_type
from dynchoice.counterfactuals.population import (
    Group,
    GroupPaths,
    Shared,
    Task,
    check_ramps,
    run_task,
)
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import (
    ConvergenceError,
    DataError,
    DataWarning,
    SpecificationError,
    first_few,
    suggest,
)
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.membership.membership import Membership
from dynchoice.names import ALL, BASELINE
from dynchoice.panel.counts import Counts, period_label
from dynchoice.panel.panel import Panel
from dynchoice.panel.states import as_floats
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray, Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("dynchoice.counterfactuals")

BANDS = ("draws", "bootstrap", "delta")
BY = (None, "type", "region")
TABLES = ("take_up", "flows", "welfare", "outcomes", "long_run", "badges")


@dataclass(frozen=True)
class Forecast:
    """Paths of take-up by scenario, segment and period.

    Attributes
    ----------
    take_up : pandas.DataFrame
        scenario, segment, period, label, choice, share, lower, upper, members. Every table has a
        column ``type`` or ``region`` too where asked for with ``by=``. Choices of the period.
    flows : pandas.DataFrame
        scenario, segment, period, label, source, choice, share, lower, upper: who moves from
        which choice last period to which this period, as a share of all members. Rows add up to
        last period's shares, columns to this period's.
    outcomes : pandas.DataFrame
        For memberships: scenario, segment, period, label, measure, value, lower, upper,
        lower_uniform, upper_uniform. Stocks and moves as shares of customers, rates, and money
        and surplus per customer and period. The uniform band holds the whole path at once.
        Stocks (``outside``, ``in trial``, ``paid``, ``penetration``: paid states, trials apart)
        are of the start of a period, before its choices: a change shows in them a period after
        it shows in ``take_up``. ``renewed`` counts whoever takes any plan when a contract ends.
        A rate is NaN where its denominator is zero (nobody due).
    welfare : pandas.DataFrame
        scenario, segment, change, lower, upper: mean change of the ex-ante value against the
        baseline, in utils a member, when the scenario becomes known; ``money`` where there is a
        price parameter.
    long_run : pandas.DataFrame
        For memberships: measures in the new steady state and, per customer of today, the present
        value of revenue and profit (``lifetime ...``).
    badges : pandas.DataFrame
        scenario, segment, badge, reasons: what the numbers rest on (the data: ``identified``; the
        functional form; the anchor; assumed values). Tables repeat it in a column ``badge``.
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
    outcomes: Any = None
    long_run: Any = None
    badges: Any = None
    bands: str = "draws"
    notes: tuple[str, ...] = ()

    @property
    def revenue(self) -> pd.DataFrame:
        """Payments less refunds per customer and period: the rows of :attr:`outcomes`."""
        table = self.outcomes[self.outcomes["measure"] == "revenue"]
        return table.drop(columns="measure").reset_index(drop=True)

    def plot(self, segments: Sequence[Any] | None = None, path: Any = None) -> Any:
        """Draw take-up by period: a column a segment, a row a choice, a line a scenario.

        Returns the matplotlib figure; with ``path`` it is saved too (needs the extra
        ``report``).
        """
        from dynchoice.plots.forecast import plot_forecast

        return plot_forecast(self.take_up, self.level, self.draws, segments, path)

    def plot_outcomes(
        self, measures: Sequence[str] | None = None, segments: Any = None, path: Any = None
    ) -> Any:
        """Draw measures of :attr:`outcomes` by period with pointwise and uniform bands."""
        from dynchoice.plots.outcomes import plot_outcomes

        return plot_outcomes(self.outcomes, measures, segments, path)

    def plot_flows(
        self, scenario: str, segment: Any = None, period: int | None = None, path: Any = None
    ) -> Any:
        """Draw who moves from which plan to which in one period, beside the baseline."""
        from dynchoice.plots.outcomes import plot_flows

        return plot_flows(self.flows, scenario, segment, period, path)

    def save(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write the tables as Parquet files into a folder."""
        from dynchoice.storage import write_atomically

        written = []
        for name in TABLES:
            table = getattr(self, name)
            if table is not None and len(table):
                write = partial(table.to_parquet, index=False)
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
    results: Results | MixtureResults | Membership | Mapping[Any, Results],
    scenarios: Scenario | Iterable[Scenario] = (),
    *,
    start: Any = None,
    periods: int = 24,
    draws: int | None = None,
    level: float = 0.9,
    bands: str = "draws",
    by: str | None = None,
    long_run: str = "point",
    seed: int | None = 0,
    n_jobs: int = 1,
    strict: bool = False,
    progress: Progress | None = None,
) -> Forecast:
    """Forecast take-up by month under the baseline and scenarios.

    Parameters
    ----------
    results : Results, MixtureResults, Membership, or mapping of segment -> Results
        One fit for everyone, or one a segment. A mixture is forecast type by type, from the
        Panel of the fit, each member counting by its posterior; its bands draw the types'
        parameters independently. A Membership is forecast at its own parameters, by its types
        and segments.
    scenarios : Scenario or sequence of them
        The baseline is always there.
    start : Panel, Counts, array (S,), mapping segment -> array, or "steady state"
        Where members stand. A panel gives the choices of its last period, moved one period on;
        an array gives the distribution (or numbers of members) over states in period 1.
        ``"steady state"`` (the default for a Membership) is the baseline's; ``"newcomers"``
        starts a Membership with everyone outside.
    periods : int
        Periods ahead ``T``.
    draws : int
        Draws behind the bands; 0 for no bands. Default: 200, and 0 for a Membership.
    level : float
        Coverage of the bands, pointwise (``lower``, ``upper``) and over whole paths
        (``lower_uniform``, ``upper_uniform``).
    bands : {"draws", "bootstrap", "delta"}
        They are around the expected path of the customers at ``start``: estimation error, not
        the chance in what so many customers do. ``"draws"`` takes them from the normal
        approximation of the estimator, laws of motion drawn with it (the edges of a band are noisy
        with few: raise ``draws`` where they matter); ``"bootstrap"`` from the
        fits' own bootstrap (``fit(cov_type="bootstrap")``); ``"delta"`` takes derivatives by
        central differences, laws held.
    by : {None, "type", "region"}
        Split every table further. Regions need a Panel or Counts with regions.
    long_run : {"point", "bands", "none"}
        Whether the steady state and lifetime values of memberships are computed, and whether at
        every draw.
    seed : int, optional
        Each segment has its own stream, so results do not depend on ``n_jobs``.
    n_jobs : int
        Threads (-1: all cores).
    strict : bool
        Raise if some solution did not converge.
    progress : callable, optional
        ``progress(done, total, message)`` after each fit (segment, type) and chunk of draws.

    Returns
    -------
    Forecast

    Raises
    ------
    SpecificationError, DataError
        Scenarios with the same name; segments that do not match; no member to start from.
    """
    if draws is None:
        draws = 0 if isinstance(results, Membership) else 200
    check_options(periods, draws, level, bands, by, long_run, seed, n_jobs)
    listed = list_scenarios(scenarios, periods)
    everyone = [Scenario(BASELINE), *[s for s in listed if s.name != BASELINE]]
    names = [s.name for s in everyone]
    if len(set(names)) < len(names):
        raise SpecificationError(f"scenarios need distinct names, got {names}")
    fits, groups, first = match_groups(results, start, by, everyone)
    check_ramps(everyone, groups)
    labels = [] if first is None else [period_label(first[0] + t, first[1]) for t in range(periods)]
    streams = np.random.SeedSequence(seed).spawn(len(fits))
    shared = Shared(everyone)
    for fit in fits.values():  # before the threads start: what they share is only read there
        shared.models(fit.model)
    tasks = [
        Task(
            fit,
            [g for g in groups if g.fit == key],
            everyone,
            periods,
            _draws(fit, draws, bands, streams[i]),
            long_run,
            shared,
        )
        for i, (key, fit) in enumerate(fits.items())
    ]
    done = run_tasks(tasks, n_jobs, progress)
    failures = sum(d.failures for d in done)
    solved = sum(d.solved for d in done)
    message = f"{failures} of {solved} solutions did not converge" if failures else "converged"
    if failures and strict:
        raise ConvergenceError(message)
    notes = list(dict.fromkeys(n for d in done for n in d.notes))
    lost = sum(int(np.isnan(d.alpha[1:]).sum()) for d in done if np.isfinite(d.alpha[0]))
    if lost:
        notes.append(
            f"{lost} draws have a price parameter of zero or below: bands of money leave them out"
        )
    tables = lay_out(done, groups, everyone, labels, level, bands, by, _choices(everyone, done))
    return Forecast(
        tables["take_up"],
        tables["flows"],
        tables["welfare"],
        level,
        draws,
        seed,
        not failures,
        message,
        tables["outcomes"],
        tables["long_run"],
        tables["badges"],
        bands,
        tuple(notes),
    )


def check_options(
    periods: Any,
    draws: Any,
    level: Any,
    bands: Any,
    by: Any,
    long_run: Any,
    seed: Any,
    n_jobs: Any,
) -> None:
    """Refuse options that cannot be."""
    wanted = (("periods", periods, 1), ("draws", draws, 0), ("n_jobs", n_jobs, None))
    for name, x, low in wanted:
        whole = isinstance(x, (int, np.integer)) and not isinstance(x, bool)
        if not whole or (x == 0 if low is None else x < low):
            limit = "not 0" if low is None else f"at least {low}"
            raise SpecificationError(f"{name}={x!r} must be a whole number, {limit}")
    if not isinstance(level, float | int | np.floating) or not 0 < level < 1:
        raise SpecificationError(f"level={level!r} must lie between 0 and 1 (0.95 for 95%)")
    if seed is not None and (not isinstance(seed, (int, np.integer)) or seed < 0):
        raise SpecificationError(f"seed={seed!r} must be a non-negative whole number or None")
    if bands not in BANDS:
        raise SpecificationError(f"bands={bands!r}: use {', '.join(map(repr, BANDS))}")
    if by not in BY:
        raise SpecificationError(f"by={by!r}: use None, 'type' or 'region'")
    if long_run not in ("point", "bands", "none"):
        raise SpecificationError(f"long_run={long_run!r}: use 'point', 'bands' or 'none'")


def _draws(fit: Any, n: int, bands: str, stream: Any) -> list[Draw]:
    if not n:
        return []
    if bands == "bootstrap":
        return bootstrap_draws(fit, n)
    if bands == "delta":
        return delta_draws(fit)
    return draws_of(fit, n, np.random.default_rng(stream))


def _choices(scenarios: Sequence[Scenario], done: Sequence[GroupPaths]) -> list[tuple[Any, ...]]:
    """Return each scenario's choice labels; segments may differ only by what they share."""
    return [done[0].choices[i] for i in range(len(scenarios))]


def run_tasks(tasks: list[Task], n_jobs: int, progress: Progress | None) -> list[GroupPaths]:
    """Run the fits' tasks; those left over when each core has had as many are split by draws."""
    from joblib import Parallel, cpu_count, delayed

    cores = cpu_count() if n_jobs < 0 else n_jobs
    whole = len(tasks) - len(tasks) % cores
    parts = [
        (i, part)
        for i, task in enumerate(tasks)
        for part in ([task] if i < whole else task.split(cores))
    ]
    with one_blas_thread():
        if cores == 1:
            found = []
            for i, part in parts:
                found.append(run_task(part))
                if progress is not None:
                    progress(len(found), len(parts), f"forecast {tasks[i].groups[0].segment}")
        else:
            # kernels release the interpreter's lock, so threads share memory and still run at once;
            # a cluster named by joblib.parallel_config takes their place
            running = Parallel(n_jobs=cores, prefer="threads", return_as="generator")(
                delayed(run_task)(part) for _, part in parts
            )
            found = []
            for (i, _), one in zip(parts, running, strict=True):
                found.append(one)
                if progress is not None:
                    progress(len(found), len(parts), f"forecast {tasks[i].groups[0].segment}")
    out: list[GroupPaths] = []
    for i in range(len(tasks)):
        own = [f for (k, _), f in zip(parts, found, strict=True) if k == i]
        out.append(own[0].with_draws_of(own[1:]))
    return out


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
        if s.ramp is not None and not s.ramp:
            raise SpecificationError(f"scenario {s.name!r}: ramp={{}} starts nowhere")
        if s.starts > periods and s.ramp is None:
            raise SpecificationError(
                f"scenario {s.name!r} starts in period {s.starts}, after the last one ({periods})"
            )
    return listed


def match_groups(
    results: Any, start: Any, by: str | None, scenarios: Sequence[Scenario]
) -> tuple[dict[Any, Any], list[Group], tuple[int, str] | None]:
    """Return fits by key, groups of customers, and the first period's number and kind if known."""
    if isinstance(results, Membership):
        return (*_calibrated_groups(results, start, by), None)
    regional = by == "region" or any(s.ramp for s in scenarios)
    kind, typed = "segment", None
    if isinstance(results, MixtureResults):
        results, parts, period = by_type(results, start, regional)
        kind, typed = "type", (parts, period)
    if isinstance(results, Mapping) and not results:
        raise SpecificationError("there is no fit to forecast with: the mapping is empty")
    fits_given = results.values() if isinstance(results, Mapping) else [results]
    for fit in fits_given:
        if not isinstance(fit, Results):
            raise SpecificationError(
                f"forecast() takes Results, MixtureResults, a Membership, or a mapping of segment"
                f" to Results; got {type(fit).__name__}"
            )
        fit.require_model("a forecast")
    starts, first = _starts(results, start, regional) if typed is None else typed
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
    groups: list[Group] = []
    for m, fit in fits.items():
        mass = sum(float(part.sum()) for _, part in starts[m])
        if not mass > 0:
            raise DataError(f"segment {m!r} has no member in the last period to start from")
        if fit.model.horizon is not None:
            raise SpecificationError("forecast() is for infinite horizons")
        for region, part in starts[m]:
            if len(part) != fit.model.states.size:
                raise SpecificationError(
                    f"start of {m!r} is over {len(part)} states, the model has"
                    f" {fit.model.states.size}"
                )
            last = part if part.ndim == 2 else None
            mu = part if last is None else fit.model.transitions.push(np.ascontiguousarray(part))
            groups.append(
                Group(m, m, m if kind == "type" else ALL, region, mu, last, float(part.sum()))
            )
    return fits, groups, first


def _starts(
    results: Any, start: Any, regional: bool
) -> tuple[dict[Any, list[tuple[Any, FloatArray]]], tuple[int, str] | None]:
    """Return (region, choices (S, J) or distribution (S,)) parts by segment, and the period."""
    counts = start.counts if isinstance(start, Panel) else start
    if isinstance(counts, Counts):
        first = (counts.last_period + 1, counts.period_kind)
        if regional:
            return _by_region(counts), first
        last = counts.at_period()
        return {label: [(ALL, last[m])] for m, label in enumerate(counts.segments)}, first
    if regional:
        raise SpecificationError("by region needs start= a Panel (or Counts) with regions")
    if start is None or isinstance(start, str):
        if start not in (None, "steady state"):
            raise SpecificationError(f"start={start!r}: a Panel, an array or 'steady state'")
        if start is None:
            raise SpecificationError("start= is needed: the Panel, an array, or 'steady state'")
        from dynchoice.counterfactuals.population import baseline_steady_state

        keys = list(results) if isinstance(results, Mapping) else [ALL]
        fits = results if isinstance(results, Mapping) else {ALL: results}
        return {m: [(ALL, baseline_steady_state(fits[m]))] for m in keys}, None
    if hasattr(start, "columns"):
        raise SpecificationError(
            "start= is a table: pass the Panel, its Counts, or an array over states"
            " (np.bincount(states.codes(table), minlength=states.size))"
        )
    arrays = start if isinstance(start, Mapping) else {ALL: start}
    out: dict[Any, list[tuple[Any, FloatArray]]] = {}
    for label, a in arrays.items():
        mu = as_floats(a, f"start of {label!r}")
        if mu.ndim != 1 or not (mu >= 0).all() or not np.isfinite(mu).all():
            raise SpecificationError(
                f"start of {label!r} must be a non-negative vector over states, got {mu.shape}"
            )
        out[label] = [(ALL, mu)]
    return out, None


def _by_region(counts: Counts) -> dict[Any, list[tuple[Any, FloatArray]]]:
    """Return last-period choices (S, J) by segment and region."""
    if counts.regions is None:
        counts.by_region()  # says what to do
    own = counts.regions
    assert own is not None
    S, J = counts.states.size, len(counts.choices)
    out: dict[Any, list[tuple[Any, FloatArray]]] = {}
    for m, label in enumerate(counts.segments):
        mine = (own.cells[:, 0] == m) & (own.cells[:, 2] == counts.last_period)
        parts = []
        for r, region in enumerate(own.labels):
            at = mine & (own.cells[:, 1] == r)
            if at.any():
                n = np.zeros((S, J))
                np.add.at(n, (own.cells[at, 3], own.cells[at, 4]), own.n[at])
                parts.append((region, n))
        out[label] = parts
    return out


def _own_start(start: Mapping[Any, Any], key: tuple[str, str]) -> Any:
    """Return the start of a (segment, type): named by both, by the type or by the segment."""
    for name in (key, key[1], key[0]):
        if name in start:
            return start[name]
    raise SpecificationError(
        f"start has nothing for {key[0]!r}, type {key[1]!r}; it names {first_few(list(start))}"
    )


def _calibrated_groups(
    club: Membership, start: Any, by: str | None
) -> tuple[dict[Any, Calibrated], list[Group]]:
    """Return models and groups of a programme's own segments and types."""
    from dynchoice.counterfactuals.population import baseline_steady_state

    if by == "region":
        raise SpecificationError("a programme without a panel has no regions")
    fits = calibrated_fits(club)
    groups = []
    for key, fit in fits.items():
        if start is None or (isinstance(start, str) and start == "steady state"):
            mu = baseline_steady_state(fit)
        elif isinstance(start, str) and start == "newcomers":
            assert fit.model.membership is not None
            mu = fit.model.membership.newcomers()
        else:
            given = _own_start(start, key) if isinstance(start, Mapping) else start
            mu = as_floats(given, "start")
            if mu.shape != (fit.model.states.size,) or not (mu >= 0).all() or not mu.sum() > 0:
                raise SpecificationError(
                    f"start must be a non-negative vector over {fit.model.states.size} states"
                )
        groups.append(
            Group(key, key[0], key[1], ALL, fit.share * mu, None, fit.share * float(mu.sum()))
        )
    return dict(fits), groups
