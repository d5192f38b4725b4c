"""The stages of a job: each is found as it was left, or done and kept.

Each is kept by the digest of what went in (:mod:`dynchoice.run.stages`): what is there is not
done again, so a run that was killed goes on where it was, and a change redoes what rests on
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
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice import errors
from dynchoice.errors import (
    ConfigError,
    ConvergenceError,
    DataError,
    DynChoiceError,
    DynChoiceWarning,
    first_few,
)
from dynchoice.names import BASELINE
from dynchoice.run import source
from dynchoice.run.inputs import Inputs, check_places, choose_segments
from dynchoice.run.stage_keys import Keys
from dynchoice.run.stages import Stage, Stages
from dynchoice.typing import Level, Progress

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.estimate.segments import Attempt
    from dynchoice.inference.results import Results
    from dynchoice.model.ddc import DDC
    from dynchoice.panel.counts import Counts

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


@dataclass
class Job:
    """One run of a run file: its stages in order, each found or done."""

    run: Inputs
    options: Options
    progress: Progress | None
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.stages = Stages(self.run.out, self.options.force)
        self.keys = Keys(self.run)
        self.models: dict[str, DDC] = {}
        """Models built so far, by what tells them apart: segments may share one."""

    # the whole ------------------------------------------------------------------------------

    def do_stages(self) -> list[str]:
        """Do what is to do, up to the forecasts, and return the segments of the run."""
        self.stages.sweep()
        self.tell(0, 4, "checking")
        self.check()
        self.tell(0, 4, "counting")
        count = self.count()
        segments = self.choose(count)
        check_places(self.run, segments, count.facts["regions"])
        total = steps_of(segments)
        self.estimate(segments, total)
        self.run.reader.forget()
        self.refuse_failures(segments)
        for segment in segments:
            self.diagnose(segment)
        self.tell(total - 2, total, "forecasting")
        self.forecast(segments)
        return segments

    def tell(self, done: int, total: int, message: str) -> None:
        """Report progress."""
        logger.info("%d/%d %s", done, total, message)
        if self.progress is not None:
            self.progress(done, total, message)

    @contextmanager
    def collect_warnings(self) -> Iterator[list[str]]:
        """Collect the package's warnings of a stage: they are kept with it and shown once."""
        texts: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DynChoiceWarning)
            yield texts
        for w in caught:
            if not issubclass(w.category, DynChoiceWarning):  # by the log, as --quiet and --log say
                logger.warning("%s: %s", w.category.__name__, w.message)
            elif str(w.message) not in texts:
                texts.append(str(w.message))

    # stages ---------------------------------------------------------------------------------

    def check(self) -> Stage:
        """Build model and scenarios once, before rows are read."""
        run, key = self.run, self.keys.check()
        stage = self.stages.find("check", "model", key)
        if stage is not None:
            return stage
        from dynchoice.run import build

        began = time.perf_counter()
        with self.collect_warnings() as texts:
            model = build.check_model(run)
            self.models[build.label_of_model(run, build.any_segment(run))] = model
        facts = {
            "states": model.states.size,
            "choices": [str(c) for c in model.choices],
            "parameters": list(model.names),
            "warnings": texts,
        }
        return self.stages.finish("check", "model", key, lambda folder: facts, began)

    def count(self) -> Stage:
        """Read, check and count the panel."""
        key = self.keys.count()
        stage = None if key is None else self.stages.find("count", "panel", key)
        return self.use(stage or self.count_rows(key))

    def use(self, counted: Stage) -> Stage:
        """Take the counts from a stage: later keys go by it."""
        self.counted = counted
        self.keys.facts, self.keys.key = counted.facts, str(counted.record["key"])
        return counted

    def count_rows(self, key: str | None) -> Stage:
        """Read the rows; of a database the key comes from what they say."""
        from dynchoice.panel.cohorts import followed
        from dynchoice.panel.saved import full_digest, save_counts
        from dynchoice.run import build
        from dynchoice.run.guard import observed_since

        began, run = time.perf_counter(), self.run
        with self.collect_warnings() as texts, source.opened(run) as data:
            total = int(source.as_table(data).count().execute())
            panel = build.read(run, data)
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
            "warnings": texts,
        }
        if key is None:
            key = self.keys.counted(facts, hashlib.sha256(since.to_csv().encode()).hexdigest())
            stage = self.stages.find("count", "panel", key)
            if stage is not None:
                return stage
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

    def choose(self, count: Stage, by_hand: bool = True) -> list[str]:
        """Return the segments to run: of the run file, and of these the command line's."""
        labels = list(count.facts["segments"])
        segments = choose_segments(labels, self.run.spec.data.segments, "data.segments", DataError)
        if by_hand:
            named = choose_segments(labels, self.options.segments, "--segments", ConfigError)
            segments = [m for m in segments if m in named]
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

        collect = failed is not None
        failed = {} if failed is None else failed
        waiting = iter(missing)
        self.tell(segments.index(missing[0]) + 1, total, f"estimating {next(waiting)}")

        def keep(segment: Level, attempt: Attempt) -> None:
            name = str(segment)
            if attempt.results is None:
                failed[name] = attempt
            else:
                self.keep_fit(name, attempt.results, attempt)
            follows = next(waiting, None)
            if follows is not None:
                self.tell(segments.index(follows) + 1, total, f"estimating {follows}")

        run_all({m: self.task(m) for m in missing}, self.options.jobs, keep)
        self.models.clear()  # large ones should not stand beside a forecast
        if failed and not collect:
            segment, attempt = next(iter(failed.items()))
            kind = getattr(errors, attempt.error, None)
            is_ours = isinstance(kind, type) and issubclass(kind, DynChoiceError)
            text = f"{len(failed)} of {len(segments)} fits failed: {segment}: {attempt.message}"
            raise (kind if is_ours and kind is not None else ConvergenceError)(text)

    def task(self, segment: str) -> tuple[Any, ...]:
        """Return one fit as a task of :func:`dynchoice.estimate.segments.run_all`."""
        from dynchoice.run import build

        spec = self.run.spec.estimate
        keys = ("cov_type", "tol", "maxiter", "cluster", "draws", "seed")
        options = {key: getattr(spec, key) for key in keys}
        label = build.label_of_model(self.run, segment)
        if label not in self.models:
            self.models[label] = build.model(self.run, segment)
        estimator = estimator_of(spec.method, spec.transitions)
        return estimator, self.models[label], self.counts.segment(segment), None, options

    def keep_fit(self, segment: str, fit: Results, attempt: Attempt) -> None:
        """Write one fit."""

        def write(folder: Path) -> Mapping[str, Any]:
            fit.save(folder / "results.npz")
            self.keys.refuse_changes()
            texts = [f"{segment}: {text}" for text in attempt.warnings]
            return {**fit_facts(fit), "warnings": texts}

        key = self.keys.estimate(segment)
        self.stages.finish("estimate", segment, key, write, time.perf_counter() - attempt.seconds)

    def fit(self, segment: str) -> Results:
        """Return a fit as it was written."""
        from dynchoice.inference.files import load
        from dynchoice.inference.results import Results

        results = load(self.stages.done[f"estimate/{segment}"].file("results.npz"))
        assert isinstance(results, Results)
        return results

    @cached_property
    def fits(self) -> dict[str, Results]:
        """Fits of all segments of the run, as they were written."""
        return {m: self.fit(m) for m in self.segments_run}

    def refuse_failures(self, segments: list[str]) -> None:
        """Raise where a fit did not converge; it is kept, so each later run says so again."""
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
        stage = self.stages.find("diagnose", segment, key)
        if stage is not None:
            return stage
        from dynchoice.run.tables import diagnostics_of, fit_table

        began = time.perf_counter()
        with self.collect_warnings() as texts:
            fit, counts = self.fits[segment], self.counts.segment(segment)
            text = what_was_learnt(segment, fit, counts)
            rows, shares = diagnostics_of(segment, fit, counts), fit_table(segment, fit, counts)

        def write(folder: Path) -> Mapping[str, Any]:
            (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
            shares.to_parquet(folder / "fit.parquet", index=False)
            rows.to_parquet(folder / "diagnostics.parquet", index=False)
            return {"warnings": texts}

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

        spec, began = self.run.spec.forecast, time.perf_counter()
        listed = {s.name: s for s in self.keys.coming[0]}
        wanted = [listed[n] for n in missing if n != BASELINE]
        with self.collect_warnings() as texts:
            result = forecast(
                self.fits,
                wanted,
                start=self.start(segments),
                periods=spec.periods,
                draws=spec.draws,
                level=spec.level,
                bands=spec.bands,
                long_run=spec.long_run,
                seed=spec.seed,
                n_jobs=self.options.jobs,
                strict=True,
            )
            tables = forecast_tables(result)
        notes = list(result.notes)
        for name in missing:

            def write(folder: Path, name: str = name) -> Mapping[str, Any]:
                self.keys.refuse_changes()
                for table, rows in tables.items():
                    part = rows[rows["scenario"] == name].reset_index(drop=True)
                    if len(part):
                        part.to_parquet(folder / f"{table}.parquet", index=False)
                return {
                    "draws": result.draws,
                    "level": result.level,
                    "message": result.message,
                    "notes": notes,
                    "warnings": texts,
                }

            self.stages.finish("forecast", name, keys[name], write, began)

    def start(self, segments: list[str]) -> Counts:
        """Return the counts of the segments of the run."""
        whole = self.counts
        if list(whole.segments) == segments:
            return whole
        parts = [whole.segment(m) for m in segments]
        return sum(parts[1:], parts[0])


def steps_of(segments: list[str]) -> int:
    """Return how many steps a job's progress has: a fit each, forecasting, writing, the end."""
    return len(segments) + 3


def estimator_of(method: str, transitions: str) -> Callable[..., Any]:
    """Return the estimator of a run file: one that worker processes can be sent."""
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


def what_was_learnt(segment: str, fit: Results, counts: Counts) -> str:
    """Return a segment's estimates, what tells them apart, and where the data are thin."""
    left_out = ""
    if counts.regions is not None:
        periods = counts.last_period - counts.first_period + 1
        cells = len(counts.regions.labels) * periods * counts.shape[0] * counts.shape[1]
        if cells > LARGEST_GRID:
            left_out = (
                f"\n\n{len(counts.regions.labels):,} regions are too many for a look at roll-outs:"
                " name a coarser column as data.region"
            )
            counts = replace(counts, regions=None)
    identified = fit.identification(counts) if fit.model.horizon is None else fit.identification()
    return f"Segment: {segment}\n\n{fit.summary}\n\n{identified}{left_out}\n\n{fit.support()}"
