"""``dynchoice backtest``: forecasts from earlier months, beside what happened and beside baselines.

At each origin the panel is what it was then; the model is estimated on it, forecasts the members
seen in that month, and is compared with what these members did. Stages are kept and shared with
the forecast: an origin at which a scheduled run forecast before is not estimated again.
"""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import (
    ConfigError,
    ConvergenceError,
    DataError,
    DynChoiceError,
    first_few,
    suggest,
)
from dynchoice.run import build, manifest, publish, source
from dynchoice.run.inputs import Inputs
from dynchoice.run.job import check_start
from dynchoice.run.lock import locked
from dynchoice.run.stage_work import Job, Options
from dynchoice.run.stages import Stage, key_of
from dynchoice.run.tables import forecast_tables, write_table
from dynchoice.typing import Level, Progress

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.estimate.segments import Attempt
    from dynchoice.inference.results import Results
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel

logger = logging.getLogger("dynchoice.run")

LINK = publish.BACKTEST


@dataclass(frozen=True)
class Backtested:
    """A backtest that was written: its folder, its summary in words, and whether all converged."""

    folder: Path
    text: str
    unchanged: bool


def run_backtest(
    run: Inputs, *, jobs: int = 1, force: bool = False, progress: Progress | None = None
) -> Backtested:
    """Backtest a run file's model over rolling origins.

    Returns
    -------
    Backtested

    Raises
    ------
    ConvergenceError
        Some origin's fit did not converge: results are written without it, and it is named.
    DynChoiceError
        Whatever a forecast would refuse; origins that the panel does not have.
    """
    check_start(run, jobs)
    with locked(run.out):
        job = Job(run, Options(jobs=jobs, force=force), progress)
        return Backtest(job).run_all()


class Backtest:
    """The origins of one run file, each with its stages."""

    def __init__(self, job: Job) -> None:
        self.job, self.run, self.stages = job, job.run, job.stages
        self.spec = job.run.spec.backtest
        self.failed: list[str] = []

    def run_all(self) -> Backtested:
        """Do what is to do and write the result."""
        self.stages.sweep()
        self.job.tell(0, 3, "checking")
        self.job.check()
        self.job.tell(0, 3, "counting")
        whole = self.job.count()
        segments = self.job.choose(whole)
        origins = self.origins(whole.facts)
        total = len(origins) + 2
        self.job.tell(1, total, "counting at the origins")
        stages = self.count_origins(whole, origins)
        scored = {}
        for i, origin in enumerate(origins):
            label = self.label(whole.facts, origin)
            self.job.tell(i + 1, total, f"estimating as of {label}")
            scored[label] = self.score_origin(stages[origin], segments, label)
        self.job.tell(total - 1, total, "writing")
        done = self.write(scored, whole.facts)
        self.job.tell(total, total, f"{done.folder}")
        if self.failed:
            raise ConvergenceError(
                f"{len(self.failed)} fits of the backtest failed: {first_few(self.failed)}. The"
                f" others are in {done.folder}"
            )
        return done

    # origins ---------------------------------------------------------------------------------

    def label(self, facts: Mapping[str, Any], period: int) -> str:
        """Return a period as it reads in the data."""
        from dynchoice.panel.counts import period_label

        return period_label(period, facts["kind"])

    def origins(self, facts: Mapping[str, Any]) -> list[int]:
        """Return the numbers of the origins' periods, earliest first."""
        first, last = facts["first"], facts["last"]
        earliest = first + 2  # two moves at least, or no law of motion can be learnt
        if isinstance(self.spec.origins, int):
            newest = last - self.spec.horizon
            wanted = [newest - k * self.spec.step for k in range(self.spec.origins)]
            kept = sorted(o for o in wanted if o >= earliest)
            if not kept:
                raise ConfigError(
                    f"backtest: the panel goes from {facts['first_label']} to"
                    f" {facts['last_label']}: too short for a horizon of {self.spec.horizon}"
                )
            if len(kept) < len(wanted):
                logger.warning(
                    "backtest: %d of %d origins lie too early and are left out",
                    len(wanted) - len(kept),
                    len(wanted),
                )
            return kept
        names = {self.label(facts, p): p for p in range(earliest, last)}
        unknown = [o for o in self.spec.origins if o not in names]
        if unknown:
            raise ConfigError(
                f"backtest.origins: {unknown[0]!r} is no month to forecast from."
                f"{suggest(unknown[0], names)} There are {first_few(list(names), 2)}"
            )
        return sorted({names[o] for o in self.spec.origins})

    def outside(self, choices: tuple[Level, ...]) -> int:
        """Return the code of the choice that is no plan."""
        wanted: Level = self.spec.outside
        if wanted is None:
            wanted = "none" if "none" in choices else choices[0]
        checks.known([wanted], choices, "backtest.outside: choice", error=ConfigError)
        return choices.index(wanted)

    def count_origins(self, whole: Stage, origins: list[int]) -> dict[int, Stage]:
        """Return the stage of each origin: counts then, and what members did since."""
        keys = {o: self.origin_key(whole, o) for o in origins}
        found = {o: self.stages.find("origin", str(o), k) for o, k in keys.items()}
        stages = {o: stage for o, stage in found.items() if stage is not None}
        missing = [o for o in origins if o not in stages]
        if missing:
            from dynchoice.panel.saved import full_digest

            with self.job.collect_warnings() as texts, source.opened(self.run) as data:
                panel = build.read(self.run, data)
                if full_digest(panel.counts) != whole.facts["digest"]:
                    raise DataError("the rows changed while they were used: run again")
                for o in missing:
                    stages[o] = self.count_origin(panel, o, keys[o])
            for text in texts:
                logger.info("%s", text)
        return stages

    def origin_key(self, whole: Stage, origin: int) -> str:
        """Return the key of what was known at an origin."""
        inputs = {
            "count": whole.record["key"],
            "origin": origin,
            "horizon": self.spec.horizon,
            "outside": self.spec.outside,
        }
        return key_of("origin", inputs)

    def count_origin(self, panel: Panel, origin: int, key: str) -> Stage:
        """Count what was known at an origin, and what its members did after it."""
        from dynchoice.panel.cohorts import followed, pairs, spells, until
        from dynchoice.panel.saved import full_digest, save_counts

        began = time.perf_counter()
        then = until(panel, origin)
        counts = then.counts
        outside = self.outside(panel.choices)
        tables = {
            "followed": followed(panel, origin, self.spec.horizon),
            "pairs": pairs(then),
            "spells": spells(then, outside),
        }

        def write(folder: Path) -> Mapping[str, Any]:
            save_counts(counts, folder / "counts.npz")
            for name, table in tables.items():
                table.to_parquet(folder / f"{name}.parquet", index=False)
            return {
                "segments": {str(m): full_digest(counts.segment(m)) for m in counts.segments},
                "last": origin,
                "kind": panel.kind,
                "outside": outside,
            }

        return self.stages.finish("origin", str(origin), key, write, began)

    # one origin ------------------------------------------------------------------------------

    def score_origin(self, counted: Stage, segments: list[str], label: str) -> Stage | None:
        """Estimate, forecast and compare at one origin; None where no fit converged."""
        present = [m for m in segments if m in counted.facts["segments"]]
        job = Job(self.run, self.job.options, None)
        job.stages = self.stages
        job.use(counted)
        key = key_of(
            "score",
            {
                "origin": counted.record["key"],
                "fits": {m: job.keys.estimate(m) for m in present},
                "backtest": self.spec.model_dump(mode="json", exclude={"origins", "step"}),
                "forecast": self.run.spec.forecast.model_dump(mode="json"),
            },
        )
        lost: dict[str, Attempt] = {}
        job.estimate(present, len(present) + 3, lost)
        self.failed += [f"{m} as of {label} ({a.message})" for m, a in lost.items()]
        converged = self.converged_segments(job, [m for m in present if m not in lost], label)
        if not converged:
            return None
        done = self.stages.find("score", label, key)
        done = done or self.score(job, counted, converged, label, key)
        self.failed += done.facts["failed"]
        return done

    def converged_segments(self, job: Job, segments: list[str], label: str) -> list[str]:
        """Return the segments that can be forecast from an origin; say which cannot."""
        converged, last = [], job.counts.at_period().sum(axis=(1, 2))
        for m in segments:
            facts = self.stages.done[f"estimate/{m}"].facts
            if not last[job.counts.segments.index(m)] > 0:
                self.failed.append(f"{m} as of {label} (nobody was seen in that month)")
            elif not facts["converged"]:
                self.failed.append(f"{m} as of {label} ({facts['message']})")
            else:
                converged.append(m)
        return converged

    def score(self, job: Job, counted: Stage, segments: list[str], label: str, key: str) -> Stage:
        """Forecast from an origin and compare."""
        import pandas as pd

        from dynchoice.counterfactuals.backtest_scores import Known, evaluate
        from dynchoice.counterfactuals.forecast import forecast

        began, failed = time.perf_counter(), list[str]()
        job.segments_run = segments
        names = ("followed", "pairs", "spells")
        tables = {n: pd.read_parquet(counted.file(f"{n}.parquet")) for n in names}
        spec, H = self.run.spec.forecast, self.spec.horizon
        with job.collect_warnings() as texts:
            ahead = forecast(
                job.fits,
                start=job.start(segments),
                periods=H,
                draws=self.spec.draws,
                level=spec.level,
                # a bootstrap at each origin would cost more than all else
                bands=spec.bands if spec.bands != "bootstrap" else "draws",
                long_run="none",
                seed=spec.seed,
                n_jobs=self.job.options.jobs,
                strict=True,
            )
            take_up = forecast_tables(ahead)["take_up"]
            kinds: dict[str, list[dict[str, Any]]] = {"errors": [], "scores": [], "bins": []}
            for m in segments:
                parts = {n: t[t["segment"] == m] for n, t in tables.items()}
                if parts["followed"].empty:
                    continue
                counts = job.counts.segment(m)
                known = Known(
                    fit=job.fits[m],
                    static=self.fit_static(m, counts, label, failed),
                    counts=counts,
                    outside=counted.facts["outside"],
                    against=tuple(self.spec.against),
                    **parts,
                )
                bands = take_up[take_up["segment"] == m]
                for kind, rows in zip(kinds, evaluate(m, known, bands, H, spec.level), strict=True):
                    kinds[kind] += [{"origin": label, **row} for row in rows]

        def write(folder: Path) -> Mapping[str, Any]:
            for name, rows in kinds.items():
                pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet", index=False)
            return {"warnings": texts, "segments": segments, "failed": failed}

        return self.stages.finish("score", label, key, write, began)

    def fit_static(
        self, segment: str, counts: Counts, label: str, failed: list[str]
    ) -> Results | None:
        """Return the same model without a future, or None where it is not asked for."""
        from dynchoice.estimate.nfxp import NFXP

        if "static logit" not in self.spec.against:
            return None
        spec = self.run.spec.estimate
        model = build.model(self.run, segment).with_parts(beta=0.0)
        options: dict[str, Any] = {"tol": spec.tol, "maxiter": spec.maxiter}
        try:
            fit: Results = NFXP(model, counts).fit(cov_type="unadjusted", **options)
        except (DynChoiceError, ArithmeticError, np.linalg.LinAlgError) as error:
            failed.append(f"static logit of {segment} as of {label} ({error})")
            return None
        if not fit.converged:
            failed.append(f"static logit of {segment} as of {label} ({fit.message})")
            return None
        return fit

    # what is written -------------------------------------------------------------------------

    def write(self, scored: Mapping[str, Stage | None], facts: Mapping[str, Any]) -> Backtested:
        """Write the result, or find that it is there."""
        whole = [s for s in scored.values() if s is not None]
        if not whole:
            raise ConvergenceError(f"no origin has a fit that converged: {first_few(self.failed)}")
        output = self.run.spec.output
        inputs = {
            "scores": [s.record["key"] for s in whole],
            "origins": list(scored),
            "failed": self.failed,
            "output": output.model_dump(mode="json", exclude={"folder", "keep"}),
            "title": self.run.spec.title,
        }
        digest = key_of("backtest", inputs)
        tables = self.tables(whole)
        text = in_words(tables["summary"], list(scored), tables["errors"])
        before = publish.opened(self.run.out / LINK)
        again = self.job.options.force and bool(self.stages.fresh)
        same = before is not None and before.digest == digest and not again
        if same and before is not None and before.whole():
            return Backtested(before.folder, text, True)

        def write(folder: Path) -> Mapping[str, Any]:
            for name, table in tables.items():
                write_table(table, folder, name, output.csv)
            (folder / "backtest.txt").write_text(text + "\n", encoding="utf-8")
            record = self.facts(digest, list(scored), facts)
            if output.report:
                from dynchoice.run.report import write_backtest

                write_backtest(folder / "backtest.html", tables, record, self.run.spec)
            if output.picture:
                from dynchoice.plots.report import backtest_picture

                backtest_picture(tables, folder / "backtest.png")
            return record

        written = publish.write_run(self.run.out, self.job.begun, write, prefix=LINK)
        publish.point_to(self.run.out, written, LINK)
        try:
            publish.prune_runs(self.run.out, output.keep, LINK)
        except OSError as error:  # it is published all the same
            logger.warning("old backtests stay: %s", error)
        return Backtested(written.folder, text, False)

    def tables(self, scored: list[Stage]) -> dict[str, pd.DataFrame]:
        """Return the tables of the backtest, from what the stages wrote."""
        import pandas as pd

        from dynchoice.counterfactuals.backtest_scores import by_segment, pooled_bins, summary_of

        errors, scores, bins = (
            pd.concat(
                [pd.read_parquet(s.file(f"{name}.parquet")) for s in scored], ignore_index=True
            )
            for name in ("errors", "scores", "bins")
        )
        return {
            "summary": summary_of(errors, scores),
            "errors": errors,
            "scores": scores,
            "by_segment": by_segment(errors),
            "calibration": pooled_bins(bins),
        }

    def facts(self, digest: str, origins: list[str], counted: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the manifest says beside its tables."""
        panel = ("rows", "members", "first_label", "last_label")
        return {
            "started": self.job.begun.isoformat(timespec="microseconds"),
            "status": publish.COMPLETE,
            "digest": digest,
            "run_file": self.run.source.name,
            "config": self.run.spec.model_dump(mode="json", by_alias=True),
            "versions": dict(manifest.versions()),
            "source": source.describe_source(self.run),
            "panel": {k: counted[k] for k in panel},
            "origins": origins,
            "failed": self.failed,
            "stages": {n: s.folder.name for n, s in self.stages.done.items()},
            "timings": {n: s.seconds for n, s in self.stages.done.items()},
        }


def in_words(summary: pd.DataFrame, origins: list[str], errors: pd.DataFrame) -> str:
    """Return the table that a reader looks at first."""
    lines = [
        f"{len(origins)} origins, {origins[0]} to {origins[-1]}; take-up of the members seen then,"
        f" by segment and choice ({errors['segment'].nunique()} segments)",
        "",
        f"{'':<18}{'ahead':>6}{'error':>8}{'largest':>9}{'in band':>9}{'+chance':>9}"
        f"{'score':>9}{'model gains':>13}{'s.e.':>8}",
    ]
    for r in summary.itertuples():
        cells = [
            f"{r.error:8.2f}",
            f"{r.largest:9.2f}",
            share(r.coverage),
            share(r.coverage_wide),
            number(r.score, 9),
            number(r.model_gains, 13),
            number(r.std_error, 8),
        ]
        lines.append(f"{r.method:<18}{r.horizon:>6}{''.join(cells)}")
    from dynchoice.counterfactuals.backtest_scores import cells_in_words

    over = cells_in_words(errors)
    lines += [
        *(["", *textwrap.wrap(over, 90)] if over else []),
        "",
        "error: mean absolute difference of shares, points; in band: share of what happened that",
        "lies in the model's bands (estimation error only), and with the chance of so many people;",
        "score: mean log probability of what each member chose; gains: the model's over the method",
    ]
    return "\n".join(lines)


def share(value: float) -> str:
    """Return a share as a cell, empty where there is none."""
    return f"{value:9.0%}" if value == value else " " * 9


def number(value: float, width: int) -> str:
    """Return a number as a cell, empty where there is none."""
    return f"{value:{width}.4f}" if value == value else " " * width
