"""The main job: count, estimate by segment, diagnose, forecast, guard, report, publish.

Each stage is kept by the digest of what went in (:mod:`dynchoice.run.stages`): what is there is
not done again, so a run that was killed goes on where it was, and a change redoes what rests on
it. Tables are made from what the stages wrote, never from what happens to be in memory: a run that
was resumed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice import errors
from dynchoice.errors import (
    ConfigError,
    ConvergenceError,
    DataError,
    DynChoiceError,
    DynChoiceWarning,
    MissingExtraError,
    first_few,
)
from dynchoice.names import BASELINE
from dynchoice.run import publish, source
from dynchoice.run.config import Run
from dynchoice.run.publish import Outcome, locked
from dynchoice.run.stage_keys import Keys
from dynchoice.run.stages import Stage, Stages
from dynchoice.typing import Progress

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.estimate.segments import Attempt
    from dynchoice.inference.results import Results
    from dynchoice.panel.counts import Counts

__all__ = ["Options", "Outcome", "locked", "run_forecast", "run_job"]

logger = logging.getLogger("dynchoice.run")

LARGEST_GRID = 50_000_000
"""Regions x periods x states x choices that are looked at for roll-outs, side by side in memory."""
ORIGINS = 3
"""Earlier months whose members are followed, to calibrate the forecasts made then."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the run file."""

    jobs: int = 1
    force: bool = False
    accept: bool = False
    segments: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One stage as a plan shows it."""

    stage: str
    name: str
    status: str


def run_forecast(run: Run, *, jobs: int = 1, progress: Progress | None = None) -> Path:
    """Run a forecast from a run file and return the folder that was published."""
    return run_job(run, Options(jobs=jobs), progress).folder


def run_job(run: Run, options: Options, progress: Progress | None = None) -> Outcome:
    """Run a forecast from a run file; what was finished before is not done again.

    Returns
    -------
    Outcome

    Raises
    ------
    CheckError
        A guard rail holds the run: it is written for inspection and not published.
    DynChoiceError
        Whatever is wrong with file, data, model or estimates; nothing is published then.
    """
    if options.jobs == 0:
        raise ConfigError("--jobs 0: give a number of segments at once, or -1 for all cores")
    publish.check_folder(run.out)
    check_extras(run)
    with locked(run.out):
        return Job(run, options, progress).run_all()


def check_extras(run: Run) -> None:
    """Refuse to start what would fail at the end for want of an optional package."""
    from importlib.util import find_spec

    o = run.spec.output
    needed = (["matplotlib"] if o.picture or o.report else []) + (["jinja2"] if o.report else [])
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} missing: pip install 'dynchoice[report]', or set"
            " output.report = false and output.picture = false"
        )


def plan(run: Run, options: Options | None = None) -> list[Step]:
    """Return which stages a run would do, as far as that is known without doing any.

    Steps have the status ``done``, ``to do`` or, where it rests on one to do, ``unknown``.
    """
    job = Job(run, options or Options(), None)
    return job.plan()


@dataclass
class Job:
    """One run of a run file: its stages in order, each found or done."""

    run: Run
    options: Options
    progress: Progress | None
    warned: list[str] = field(default_factory=list)
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.stages = Stages(self.run.out, self.options.force)
        self.keys = Keys(self.run)

    # the whole ------------------------------------------------------------------------------

    def run_all(self) -> Outcome:
        """Do what is to do, then publish, hold or leave things as they are."""
        self.stages.sweep()
        self.tell(0, 4, "checking")
        self.check()
        self.tell(0, 4, "counting")
        count = self.count()
        segments = self.chosen(count)
        if any(s.ramp or s.mix for s in self.run.spec.scenario):
            from dynchoice.run.build import check_places

            check_places(self.run, segments, count.facts["regions"])
        total = len(segments) + 3
        self.estimate(segments, total)
        self.refuse_failures(segments)
        for segment in segments:
            self.diagnose(segment)
        self.tell(total - 2, total, "forecasting")
        self.forecast(segments)
        from dynchoice.run.release import Release

        return Release(self, segments).publish(total)

    def tell(self, done: int, total: int, message: str) -> None:
        """Report progress."""
        logger.info("%d/%d %s", done, total, message)
        if self.progress is not None:
            self.progress(done, total, message)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Collect the warnings of a stage: they are kept with it and told once."""
        own: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DynChoiceWarning)
            yield own
        own += dict.fromkeys(str(w.message) for w in caught if self.ours(w))
        for w in caught:
            if not self.ours(w):  # of other packages: by the log, as --quiet and --log say
                logger.warning("%s: %s", w.category.__name__, w.message)

    @staticmethod
    def ours(w: warnings.WarningMessage) -> bool:
        """Return whether a warning is one of this package."""
        return issubclass(w.category, DynChoiceWarning)

    # stages ---------------------------------------------------------------------------------

    def check(self) -> Stage:
        """Build model and scenarios once, before rows are read."""
        run, key = self.run, self.keys.check()
        found = self.stages.find("check", "model", key)
        if found is not None:
            return found
        from dynchoice.run.build import check_model

        began = time.perf_counter()
        with self.watched() as said:
            model = check_model(run)
        facts = {
            "states": model.states.size,
            "choices": [str(c) for c in model.choices],
            "parameters": list(model.names),
            "warnings": said,
        }
        return self.stages.finish("check", "model", key, lambda folder: facts, began)

    def count(self) -> Stage:
        """Read, check and count the panel."""
        key = self.keys.count()
        found = None if key is None else self.stages.find("count", "panel", key)
        return self.use(found or self.count_rows(key))

    def use(self, counted: Stage) -> Stage:
        """Take the counts from a stage: later keys go by it."""
        self.counted = counted
        self.keys.facts, self.keys.key = counted.facts, str(counted.record["key"])
        return counted

    def count_rows(self, key: str | None) -> Stage:
        """Read the rows; of a database the key comes from what they say."""
        from dynchoice.panel.cohorts import followed
        from dynchoice.panel.saved import full_digest, save_counts
        from dynchoice.run.build import read
        from dynchoice.run.guard import observed_since

        began, run = time.perf_counter(), self.run
        with self.watched() as said, source.opened(run) as data:
            total = rows_in(data)
            panel = read(run, data)
            counts = panel.counts
            first, last = panel.span
            origins = range(max(first, last - ORIGINS), last)
            since = observed_since(
                {o: self.of_chosen(followed(panel, o, ORIGINS)) for o in origins}, panel.choices
            )
        report = panel.report
        digests = {str(m): full_digest(counts.segment(m)) for m in counts.segments}
        facts = {
            "digest": full_digest(counts),
            "segments": digests,
            "regions": [str(r) for r in panel.regions],
            "rows": report["rows"],
            "members": report["members"],
            # a plan history leaves rows out before the panel sees them
            "refused": max(total - report["rows"], report["rows refused"]),
            "first": first,
            "last": last,
            "kind": panel.kind,
            "first_label": counts.period_label(first),
            "last_label": counts.period_label(last),
            "report": {str(k): int(v) for k, v in report.table["count"].items()},
            "warnings": said,
        }
        if key is None:
            key = self.keys.counted(facts, hashlib.sha256(since.to_csv().encode()).hexdigest())
            again = self.stages.find("count", "panel", key)
            if again is not None:
                return again
        self.keys.refuse_changes()

        def write(folder: Path) -> Mapping[str, Any]:
            save_counts(counts, folder / "counts.npz")
            since.to_parquet(folder / "cohorts.parquet", index=False)
            (folder / "panel.txt").write_text(f"{report}\n", encoding="utf-8")
            return facts

        return self.stages.finish("count", "panel", key, write, began)

    def of_chosen(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of the segments that the run file names, or all."""
        wanted = self.run.spec.data.segments
        if wanted is None:
            return table
        return table[table["segment"].astype(str).isin([str(m) for m in wanted])]

    @cached_property
    def counts(self) -> Counts:
        """The counts of all segments, as they were written."""
        from dynchoice.panel.saved import load_counts

        return load_counts(self.counted.file("counts.npz"))

    def chosen(self, count: Stage, by_hand: bool = True) -> list[str]:
        """Return the segments to run: of the run file, and of these the command line's."""
        segments = known = list(count.facts["segments"])
        asked: list[tuple[str, Any]] = [("data.segments", self.run.spec.data.segments)]
        asked += [("--segments", self.options.segments)] if by_hand else []
        for key, wanted in asked:
            if wanted is None:
                continue
            missing = [str(m) for m in wanted if str(m) not in known]
            if missing:
                raise (ConfigError if key == "--segments" else DataError)(
                    f"{key}: no row is of segment {missing[0]!r}."
                    f"{errors.suggest(missing[0], known)} Segments: {first_few(known, 8)}"
                )
            segments = [m for m in segments if m in [str(w) for w in wanted]]
        return segments

    def estimate(
        self, segments: list[str], total: int, failed: dict[str, Attempt] | None = None
    ) -> None:
        """Estimate the segments that have no fit yet, and keep each as soon as it is there.

        Segments without a fit go into ``failed``, or raise where that is not given.
        """
        missing = []
        for i, segment in enumerate(segments):
            if self.stages.find("estimate", segment, self.keys.estimate(segment)) is None:
                missing.append(segment)
            else:
                self.tell(i + 1, total, f"{segment}: estimated before")
        if not missing:
            return
        from dynchoice.estimate.segments import run_all

        tasks: dict[Any, tuple[Any, ...]] = {m: self.task(m) for m in missing}
        collect = failed is not None
        failed = {} if failed is None else failed
        waiting = iter(missing)
        self.tell(segments.index(missing[0]) + 1, total, f"estimating {next(waiting)}")

        def done(segment: Any, attempt: Attempt) -> None:
            results = attempt.results
            if results is None:
                failed[segment] = attempt
            else:
                self.keep_fit(segment, results, attempt)
            follows = next(waiting, None)
            if follows is not None:
                self.tell(segments.index(follows) + 1, total, f"estimating {follows}")

        run_all(tasks, self.options.jobs, done)
        if failed and not collect:
            segment, attempt = next(iter(failed.items()))
            kind = getattr(errors, attempt.error, None)
            known = isinstance(kind, type) and issubclass(kind, DynChoiceError)
            text = f"{len(failed)} of {len(segments)} fits failed: {segment}: {attempt.message}"
            raise (kind if known and kind is not None else ConvergenceError)(text)

    def task(self, segment: str) -> tuple[Any, ...]:
        """Return one fit as a task of :func:`dynchoice.estimate.segments.run_all`."""
        e = self.run.spec.estimate
        options: dict[str, Any] = {"cov_type": e.cov_type, "tol": e.tol, "maxiter": e.maxiter}
        options |= {"cluster": e.cluster, "draws": e.draws, "seed": e.seed}
        return (
            estimator_of(e.method, e.transitions), self.run.model(segment),
            self.counts.segment(segment), None, options,
        )  # fmt: skip

    def keep_fit(self, segment: str, fit: Results, attempt: Attempt) -> None:
        """Write one fit."""

        def write(folder: Path) -> Mapping[str, Any]:
            fit.save(folder / "results.npz")
            self.keys.refuse_changes()
            own = [f"{segment}: {text}" for text in attempt.warnings]
            return {**fit_facts(fit), "warnings": own}

        key = self.keys.estimate(segment)
        self.stages.finish("estimate", segment, key, write, time.perf_counter() - attempt.seconds)

    def fit(self, segment: str) -> Results:
        """Return a fit as it was written."""
        from dynchoice.inference.files import load

        fit = load(self.stages.done[f"estimate/{segment}"].file("results.npz"))
        assert isinstance(fit, Results)
        return fit

    @cached_property
    def fits(self) -> dict[str, Results]:
        """Fits of all segments of the run, as they were written."""
        return {m: self.fit(m) for m in self.segments_run}

    def refuse_failures(self, segments: list[str]) -> None:
        """Raise where a fit did not converge; it is kept and told again each time."""
        self.segments_run = segments
        facts = {m: self.stages.done[f"estimate/{m}"].facts for m in segments}
        failed = [f"{m} ({f['message']})" for m, f in facts.items() if not f["converged"]]
        if failed:
            raise ConvergenceError(
                f"{len(failed)} of {len(segments)} fits failed: {first_few(failed)}. Nothing is"
                " published"
            )

    def diagnose(self, segment: str) -> Stage:
        """Look at one fit: what the data tell apart, where they are thin, how it fits."""
        key = self.keys.diagnose(segment)
        found = self.stages.find("diagnose", segment, key)
        if found is not None:
            return found
        from dynchoice.run.tables import diagnostics_of, fit_table

        began = time.perf_counter()
        with self.watched() as said:
            fit, counts = self.fits[segment], self.counts.segment(segment)
            text = what_was_learnt(segment, fit, counts)
            rows, shares = diagnostics_of(segment, fit, counts), fit_table(segment, fit, counts)

        def write(folder: Path) -> Mapping[str, Any]:
            (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
            shares.to_parquet(folder / "fit.parquet", index=False)
            rows.to_parquet(folder / "diagnostics.parquet", index=False)
            return {"warnings": said}

        return self.stages.finish("diagnose", segment, key, write, began)

    def forecast(self, segments: list[str]) -> None:
        """Forecast the scenarios that have none yet, together, and keep each by itself."""
        keys = {n: self.keys.forecast(segments, n) for n in self.keys.names}
        missing = [n for n, k in keys.items() if self.stages.find("forecast", n, k) is None]
        if not missing:
            return
        if self.keys.regional:
            missing = list(keys)
        from dynchoice.counterfactuals.forecast import forecast
        from dynchoice.run.tables import forecast_tables

        f, began = self.run.spec.forecast, time.perf_counter()
        listed = {s.name: s for s in self.keys.coming[0]}
        wanted = [listed[n] for n in missing if n != BASELINE]
        with self.watched() as said:
            result = forecast(
                self.fits,
                wanted,
                start=self.start(segments),
                periods=f.periods,
                draws=f.draws,
                level=f.level,
                bands=f.bands,
                long_run=f.long_run,
                seed=f.seed,
                n_jobs=self.options.jobs,
                strict=True,
            )
            tables = forecast_tables(result)
        notes = list(result.notes)
        for name in missing:

            def write(folder: Path, name: str = name) -> Mapping[str, Any]:
                self.keys.refuse_changes()
                for table, rows in tables.items():
                    own = rows[rows["scenario"] == name].reset_index(drop=True)
                    if len(own):
                        own.to_parquet(folder / f"{table}.parquet", index=False)
                return {
                    "draws": result.draws,
                    "level": result.level,
                    "message": result.message,
                    "notes": notes,
                    "warnings": said,
                }

            self.stages.finish("forecast", name, keys[name], write, began)

    def start(self, segments: list[str]) -> Counts:
        """Return the counts of the segments of the run."""
        whole = self.counts
        if list(whole.segments) == segments:
            return whole
        parts = [whole.segment(m) for m in segments]
        return sum(parts[1:], parts[0])

    # plan -----------------------------------------------------------------------------------

    def plan(self) -> list[Step]:
        """Return what a run would do."""
        out = []
        key = self.keys.count()
        count = None if key is None else self.stages.find("count", "panel", key)
        out.append(Step("count", "panel", "done" if count else "to do"))
        if count is None:
            return [*out, *(Step(s, "", "unknown") for s in ("estimate", "diagnose", "forecast"))]
        self.use(count)
        segments = self.chosen(count)
        for stage, key_for in (("estimate", self.keys.estimate), ("diagnose", self.keys.diagnose)):
            for m in segments:
                found = self.stages.find(stage, m, key_for(m))
                out.append(Step(stage, m, "done" if found else "to do"))
        for name in self.keys.names:
            found = self.stages.find("forecast", name, self.keys.forecast(segments, name))
            out.append(Step("forecast", name, "done" if found else "to do"))
        before = publish.current_run(self.run.out)
        if segments != self.chosen(count, by_hand=False):
            return [*out, Step("write", "some segments only, not published", "to do")]
        same = before is not None and before.digest == self.keys.whole(segments)
        done = same and before is not None and before.whole() and not self.options.force
        return [*out, Step("publish", "current", "done" if done else "to do")]


def rows_in(data: Any) -> int:
    """Return the number of rows of a source that is open."""
    from dynchoice.panel.source import read_files

    table = read_files(data)[0] if isinstance(data, list) else data
    return int(table.count().execute())


def estimator_of(method: str, transitions: str) -> Callable[..., Any]:
    """Return the estimator of a run file: one that worker processes can be sent."""
    from functools import partial

    from dynchoice.estimate.ccp import CCP
    from dynchoice.estimate.nfxp import NFXP
    from dynchoice.estimate.npl import NPL

    if method == "NFXP":
        return partial(NFXP, transitions=transitions)
    return {"NPL": NPL, "CCP": CCP}[method]


def fit_facts(r: Results) -> dict[str, Any]:
    """Return what the manifest says of a fit."""
    return {
        "converged": r.converged,
        "message": r.message,
        "estimator": r.estimator,
        "loglik": r.loglik,
        "nobs": r.nobs,
        "nmembers": r.nmembers,
        "cov_type": r.cov_type,
        "params": {str(k): float(v) for k, v in r.params.items()},
        "std_errors": {str(k): float(v) for k, v in r.std_errors.items()},
        "notes": list(r.notes),
    }


def what_was_learnt(segment: Any, fit: Results, counts: Counts) -> str:
    """Return a segment's estimates, what tells them apart, and where the data are thin."""
    told = ""
    if counts.regions is not None:
        periods = counts.last_period - counts.first_period + 1
        cells = len(counts.regions.labels) * periods * counts.shape[0] * counts.shape[1]
        if cells > LARGEST_GRID:
            told = (
                f"\n\n{len(counts.regions.labels):,} regions are too many for a look at roll-outs:"
                " name a coarser column as data.region"
            )
            counts = replace(counts, regions=None)
    known = fit.identification(counts) if fit.model.horizon is None else fit.identification()
    return f"Segment: {segment}\n\n{fit.summary}\n\n{known}{told}\n\n{fit.support()}"
