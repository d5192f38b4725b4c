"""The main job: read the panel, estimate by segment, forecast scenarios, publish.

Everything is written into a fresh folder beside the published ones and renamed when complete;
``current`` then points to it. A reader sees the old run or the new one, never a mixture.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.counterfactual.forecast import Forecast, forecast, list_scenarios
from dynchoice.counterfactual.point import counterfactual
from dynchoice.counterfactual.scenario import Scenario
from dynchoice.errors import (
    ConfigError,
    ConvergenceError,
    LockError,
    SpecificationError,
    StorageError,
)
from dynchoice.estimate.nfxp import NFXP
from dynchoice.inference.results import Results
from dynchoice.panel.panel import Panel
from dynchoice.run import manifest
from dynchoice.run.config import Run
from dynchoice.typing import Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("dynchoice.run")

LOCK = ".lock"
WRITING = ".writing-"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder, or say who does.

    Raises
    ------
    LockError
        Another run holds it.
    StorageError
        The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the output folder {folder}: {error.strerror}") from error
    lock, owner = FileLock(str(folder / LOCK), timeout=0), folder / f"{LOCK}.owner"
    try:
        lock.acquire()
    except Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "unknown"
        raise LockError(f"another run holds {folder / LOCK} ({who}): try later") from None
    except OSError as error:
        raise StorageError(f"cannot lock {folder}: {error.strerror or error}") from error
    try:
        for stale in folder.glob(f"{WRITING}*"):  # left by a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner.write_text(f"host {socket.gethostname()}, pid {os.getpid()}, since {now}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def run_forecast(run: Run, *, jobs: int = 1, progress: Progress | None = None) -> Path:
    """Run a forecast from a run file and return the folder that was published.

    Raises
    ------
    DynChoiceError
        Whatever is wrong with file, data, model or estimates; nothing is published then.
    """
    if jobs == 0:
        raise ConfigError("--jobs 0: give a number of segments at once, or -1 for all cores")
    out = run.path(run.spec.output.folder)
    current = out / "current"
    if current.exists() and not current.is_symlink():
        raise ConfigError(f"{current} is in the way: runs are published by a link of that name")
    started = datetime.now(UTC)
    clock = {"start": time.perf_counter()}
    timings: dict[str, float] = {}

    def lap(name: str) -> None:
        timings[name] = round(time.perf_counter() - clock["start"], 3)
        clock["start"] = time.perf_counter()

    def tell(done: int, total: int, message: str) -> None:
        logger.info("%d/%d %s", done, total, message)
        if progress is not None:
            progress(done, total, message)

    check_scenarios(run)
    with locked(out):
        inputs = manifest.describe_files([p for p in run.inputs if p.exists()], run.folder)
        tell(0, 4, "reading the panel")
        panel = run.panel()
        segments = panel.segments
        total = len(segments) + 3
        counts = panel.counts
        lap("panel")
        fits: dict[Any, Results] = {}
        for i, segment in enumerate(segments):
            tell(i + 1, total, f"estimating {segment}")
            fits[segment] = fit_segment(run, panel, segment)
        lap("estimate")
        failed = [f"{m} ({r.message})" for m, r in fits.items() if not r.converged]
        if failed:
            raise ConvergenceError(f"{len(failed)} of {len(fits)} fits failed: {failed[0]}")
        tell(total - 2, total, "forecasting")
        f = run.spec.forecast
        result = forecast(
            fits,
            run.scenarios(),
            start=counts,
            periods=f.periods,
            draws=f.draws,
            level=f.level,
            seed=f.seed,
            n_jobs=jobs,
            strict=True,
        )
        lap("forecast")
        tell(total - 1, total, "writing")
        facts = {
            "started": started.isoformat(timespec="seconds"),
            "status": "complete",
            "run_file": str(run.source.name),
            "config": run.spec.model_dump(mode="json"),
            "versions": manifest.versions(),
            "inputs": inputs,
            "panel": {k: int(v) for k, v in panel.report.table["count"].items()},
            "data_digest": counts.digest,
            "seed": f.seed,
            "jobs": jobs,
            "fits": {str(m): _fit_facts(r) for m, r in fits.items()},
            "forecast": {"message": result.message, "draws": result.draws, "level": result.level},
            "timings": timings,
        }
        folder = publish(out, run, panel, fits, result, facts, started)
        tell(total, total, f"published {folder}")
        return folder


def check_scenarios(run: Run) -> None:
    """Refuse mistakes of model and scenarios before a single row is read."""
    trial = run.model(run.any_segment())
    try:
        for scenario in list_scenarios(run.scenarios(), run.spec.forecast.periods):
            scenario.theta(trial, np.zeros(len(trial.names)))
            scenario.state_map(trial)
    except SpecificationError as error:
        raise ConfigError(f"{run.source}: {error}") from error


def in_words(fits: dict[Any, Results], scenarios: list[Scenario], result: Forecast) -> str:
    """Return the last month's take-up by segment and scenario, and what each rests on."""
    table = result.take_up[result.take_up["period"] == result.take_up["period"].max()]
    when, level = table["label"].iloc[0], f"{result.level:.0%}"
    lines = [f"Take-up in {when} (bands: {level} of draws, parameters and laws)"]
    for segment, part in table.groupby("segment", sort=False):
        lines.append(f"\n{segment}")
        for scenario, rows in part.groupby("scenario", sort=False):
            cells = [
                f"{r.choice} {r.share:.1%}"
                + (f" [{r.lower:.1%}, {r.upper:.1%}]" if r.lower == r.lower else "")
                for r in rows.itertuples()
            ]
            lines.append(f"  {scenario}: " + "; ".join(cells))
    lines.append("\nWhat the scenarios rest on")
    for segment, fit in fits.items():
        for scenario in scenarios:
            found = counterfactual(fit, scenario)
            verdict = "identified" if found.identified else "depends on the normalisation or form"
            lines.append(f"  {segment}, {scenario.name}: {verdict} ({'; '.join(found.reasons)})")
    return "\n".join(lines)


def fit_segment(run: Run, panel: Panel, segment: Any) -> Results:
    """Estimate one segment with the run file's options."""
    e = run.spec.estimate
    counts = panel.counts.segment(segment) if len(panel.segments) > 1 else panel
    estimator = NFXP(run.model(segment), counts, transitions=e.transitions)
    return estimator.fit(cov_type=e.cov_type, tol=e.tol, maxiter=e.maxiter)


def what_was_learnt(segment: Any, fit: Results, panel: Panel) -> str:
    """Return a segment's estimates, what tells them apart, and where the data are thin."""
    counts = panel.counts.segment(segment) if len(panel.segments) > 1 else panel.counts
    known = fit.identification(counts) if fit.model.horizon is None else fit.identification()
    return f"Segment: {segment}\n\n{fit.summary}\n\n{known}\n\n{fit.support()}"


def _fit_facts(r: Results) -> dict[str, Any]:
    return {
        "converged": r.converged,
        "message": r.message,
        "loglik": r.loglik,
        "nobs": r.nobs,
        "nmembers": r.nmembers,
        "cov_type": r.cov_type,
        "params": {str(k): float(v) for k, v in r.params.items()},
        "std_errors": {str(k): float(v) for k, v in r.std_errors.items()},
        "notes": list(r.notes),
    }


def estimates_table(fits: dict[Any, Results]) -> pd.DataFrame:
    """Return all estimates as one tidy table."""
    import pandas as pd

    parts = []
    for segment, r in fits.items():
        interval = r.conf_int()
        parts.append(
            pd.DataFrame(
                {
                    "segment": str(segment),
                    "parameter": list(r.params.index),
                    "estimate": r.params.to_numpy(),
                    "std_error": r.std_errors.to_numpy(),
                    "tstat": r.tstats.to_numpy(),
                    "pvalue": r.pvalues.to_numpy(),
                    "lower": interval["lower"].to_numpy(),
                    "upper": interval["upper"].to_numpy(),
                    "converged": r.converged,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def publish(
    out: Path,
    run: Run,
    panel: Panel,
    fits: dict[Any, Results],
    result: Forecast,
    facts: dict[str, Any],
    started: datetime,
) -> Path:
    """Write all outputs to a fresh folder, then let ``current`` point to it."""
    work = Path(tempfile.mkdtemp(dir=out, prefix=WRITING))
    try:
        result.save(work)
        estimates_table(fits).to_parquet(work / "estimates.parquet", index=False)
        for i, (segment, r) in enumerate(fits.items()):
            r.save(work / "results" / f"{i:03d}-{_slug(segment)}.npz")
        text = "\n\n".join(what_was_learnt(m, r, panel) for m, r in fits.items())
        (work / "summary.txt").write_text(text + "\n", encoding="utf-8")
        words = in_words(fits, run.scenarios(), result)
        (work / "forecast.txt").write_text(words + "\n", encoding="utf-8")
        (work / "panel.txt").write_text(f"{panel.report}\n", encoding="utf-8")
        if run.spec.output.picture:
            result.plot(path=work / "forecast.png")
        outputs = sorted(p for p in work.rglob("*") if p.is_file())
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        record = {**facts, "finished": finished, "outputs": manifest.describe_files(outputs, work)}
        manifest.write(work / "manifest.json", record)
        work.chmod(0o755)
        target = _free(out, f"run-{started:%Y%m%dT%H%M%SZ}")
        os.rename(work, target)
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)  # gone already where the rename came through
    try:
        link = out / ".current-new"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.replace(link, out / "current")
    except OSError as error:
        raise StorageError(
            f"the run is complete in {target}, but {out / 'current'} cannot point to it:"
            f" {error.strerror}"
        ) from error
    return target


def _free(out: Path, name: str) -> Path:
    """Return a folder name not yet taken."""
    target, n = out / name, 1
    while target.exists():
        n += 1
        target = out / f"{name}-{n}"
    return target


def _slug(segment: Any) -> str:
    return "".join(c if c.isalnum() else "-" for c in str(segment)).strip("-").lower()
