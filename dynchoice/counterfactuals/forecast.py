"""Forecast: today's distribution over states pushed forward exactly, with bands.

No member is simulated, so the path has no simulation noise; bands come from draws of the
parameters (and laws of motion), each of which re-solves the model. All scenarios of a draw share
it: differences between scenarios have bands of their own, not the sum of two.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.draws import draw_fit
from dynchoice.counterfactuals.forecast_tables import lay_out
from dynchoice.counterfactuals.group_paths import GroupPaths, Shared, Task, check_ramps, run_task
from dynchoice.counterfactuals.population import Fits, Start, population
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import (
    ConvergenceError,
    SpecificationError,
)
from dynchoice.membership.membership import Membership
from dynchoice.names import BASELINE
from dynchoice.panel.counts import period_label
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FilePath, Level, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("dynchoice.counterfactuals")

BANDS = ("draws", "bootstrap", "delta")
BY = (None, "type", "region")
LONG_RUN = ("point", "bands", "none")
TABLES = ("take_up", "flows", "welfare", "outcomes", "long_run", "badges")


@dataclass(frozen=True, kw_only=True)
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
    outcomes: pd.DataFrame | None = None
    long_run: pd.DataFrame | None = None
    badges: pd.DataFrame | None = None
    bands: str = "draws"
    notes: tuple[str, ...] = ()

    @property
    def revenue(self) -> pd.DataFrame:
        """Payments less refunds per customer and period: the rows of :attr:`outcomes`."""
        if self.outcomes is None:
            raise SpecificationError("revenue is of memberships: this model knows no payments")
        table = self.outcomes[self.outcomes["measure"] == "revenue"]
        return table.drop(columns="measure").reset_index(drop=True)

    def plot(self, segments: Sequence[Level] | None = None, path: FilePath | None = None) -> Figure:
        """Draw take-up by period: a column a segment, a row a choice, a line a scenario.

        Returns the matplotlib figure; with ``path`` it is saved too (needs the extra
        ``report``).
        """
        from dynchoice.plots.forecast import plot_forecast

        return plot_forecast(self.take_up, self.level, self.draws, segments, path)

    def plot_outcomes(
        self,
        measures: Sequence[str] | None = None,
        segments: Sequence[Level] | None = None,
        path: FilePath | None = None,
    ) -> Figure:
        """Draw measures of :attr:`outcomes` by period with pointwise and uniform bands."""
        from dynchoice.plots.outcomes import plot_outcomes

        return plot_outcomes(self.outcomes, measures, segments, path)

    def plot_flows(
        self,
        scenario: str,
        segment: Level | None = None,
        period: int | None = None,
        path: FilePath | None = None,
    ) -> Figure:
        """Draw who moves from which plan to which in one period, beside the baseline."""
        from dynchoice.plots.outcomes import plot_flows

        return plot_flows(self.flows, scenario, segment, period, path)

    def save(self, directory: FilePath) -> list[Path]:
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
        table = self.take_up
        state = "converged" if self.converged else f"NOT CONVERGED: {self.message}"
        return (
            f"Forecast({table.scenario.nunique()} scenarios, {table.segment.nunique()} segments,"
            f" {table.period.nunique()} periods, {self.draws} draws; {state})"
        )


def forecast(
    results: Fits,
    scenarios: Scenario | Iterable[Scenario] = (),
    *,
    start: Start = None,
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
    check_options(
        periods=periods,
        draws=draws,
        level=level,
        bands=bands,
        by=by,
        long_run=long_run,
        seed=seed,
        n_jobs=n_jobs,
    )
    listed = list_scenarios(scenarios, periods)
    listed = [Scenario(BASELINE), *[s for s in listed if s.name != BASELINE]]
    names = [s.name for s in listed]
    if len(set(names)) < len(names):
        raise SpecificationError(f"scenarios need distinct names, got {names}")
    regional = by == "region" or any(s.ramp for s in listed)
    people = population(results, start, regional)
    check_ramps(listed, people.groups)
    first = people.period
    labels = [] if first is None else [period_label(first[0] + t, first[1]) for t in range(periods)]
    parts = people.by_fit()
    streams = np.random.SeedSequence(seed).spawn(len(parts))
    shared = Shared(listed)
    for part in parts:  # before the threads start: what they share is only read there
        shared.applied(part[0].model)
    tasks = [
        Task(
            fit=part[0].fit,
            groups=part,
            scenarios=listed,
            periods=periods,
            # once a fit: groups that share it share its error, and their sum has the same
            draws=draw_fit(part[0].fit, draws, bands, stream),
            long_run=long_run,
            shared=shared,
        )
        for part, stream in zip(parts, streams, strict=True)
    ]
    done = run_tasks(tasks, n_jobs, progress)
    failures = sum(paths.failures for paths in done)
    solved = sum(paths.solved for paths in done)
    message = f"{failures} of {solved} solutions did not converge" if failures else "converged"
    if failures and strict:
        raise ConvergenceError(message)
    lost = sum(int(np.isnan(p.alpha[1:]).sum()) for p in done if np.isfinite(p.alpha[0]))
    notes: tuple[str, ...] = ()
    if lost:
        notes = (
            f"{lost} draws have a price parameter of zero or below: bands of money leave them out",
        )
    tables = lay_out(done, parts, listed, labels, level=level, kind=bands, by=by)
    return Forecast(
        take_up=tables["take_up"],
        flows=tables["flows"],
        welfare=tables["welfare"],
        level=level,
        draws=draws,
        seed=seed,
        converged=not failures,
        message=message,
        outcomes=tables["outcomes"],
        long_run=tables["long_run"],
        badges=tables["badges"],
        bands=bands,
        notes=notes,
    )


def check_options(
    *,
    periods: object,
    draws: object,
    level: object,
    bands: object,
    by: object,
    long_run: object,
    seed: object,
    n_jobs: object,
) -> None:
    """Validate the options of :func:`forecast`."""
    checks.whole(periods, "periods", 1)
    checks.whole(draws, "draws")
    checks.share(level, "level", open_interval=True)
    checks.one_of(bands, "bands", BANDS)
    checks.one_of(by, "by", BY)
    checks.one_of(long_run, "long_run", LONG_RUN)
    checks.seed(seed)
    if checks.whole(n_jobs, "n_jobs", -1) == 0:
        raise SpecificationError("n_jobs=0: 1 thread, more, or -1 for all cores")


def run_tasks(tasks: list[Task], n_jobs: int, progress: Progress | None) -> list[GroupPaths]:
    """Run the fits' tasks; those left over when each core has had as many are split by draws."""
    from joblib import Parallel, cpu_count, delayed

    cores = cpu_count() if n_jobs < 0 else n_jobs
    unsplit = len(tasks) - len(tasks) % cores
    chunks = [
        (i, chunk)
        for i, task in enumerate(tasks)
        for chunk in ([task] if i < unsplit else task.split(cores))
    ]
    done: list[list[GroupPaths]] = [[] for _ in tasks]
    with one_blas_thread():
        running: Iterable[GroupPaths]
        if cores == 1:
            running = (run_task(chunk) for _, chunk in chunks)
        else:
            # kernels release the interpreter's lock, so threads share memory and still run at once;
            # a cluster named by joblib.parallel_config takes their place
            running = Parallel(n_jobs=cores, prefer="threads", return_as="generator")(
                delayed(run_task)(chunk) for _, chunk in chunks
            )
        for count, ((i, _), paths) in enumerate(zip(chunks, running, strict=True), start=1):
            done[i].append(paths)
            if progress is not None:
                progress(count, len(chunks), tasks[i].title)
    return [first.with_draws_of(later) for first, *later in done]


def list_scenarios(scenarios: Scenario | Iterable[Scenario], periods: int) -> list[Scenario]:
    """Return scenarios as a list.

    Raises
    ------
    SpecificationError
        Other things than scenarios, and scenarios that could not show in the forecast.
    """
    listed = [scenarios] if isinstance(scenarios, Scenario) else scenarios
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
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
