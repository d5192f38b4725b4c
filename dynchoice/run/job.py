"""The main job: count, estimate by segment, diagnose, forecast, guard, report, publish."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dynchoice.errors import ConfigError, MissingExtraError
from dynchoice.run import publish
from dynchoice.run.inputs import Inputs
from dynchoice.run.lock import locked
from dynchoice.run.publish import Outcome
from dynchoice.run.release import Release
from dynchoice.run.stage_work import Job, Options
from dynchoice.typing import Progress

__all__ = ["Options", "Outcome", "Step", "locked", "plan", "run_forecast", "run_job"]


@dataclass(frozen=True)
class Step:
    """One stage as a plan shows it."""

    stage: str
    name: str
    status: str


def run_forecast(run: Inputs, *, jobs: int = 1, progress: Progress | None = None) -> Path:
    """Run a forecast from a run file and return the folder that was published."""
    return run_job(run, Options(jobs=jobs), progress).folder


def run_job(run: Inputs, options: Options, progress: Progress | None = None) -> Outcome:
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
    check_start(run, options.jobs)
    with locked(run.out):
        job = Job(run, options, progress)
        segments = job.do_stages()
        return Release(job, segments).publish()


def check_start(run: Inputs, jobs: int) -> None:
    """Raise for what would fail later for want of a core, a folder, or an optional package."""
    if jobs == 0:
        raise ConfigError("--jobs 0: give a number of segments at once, or -1 for all cores")
    publish.check_folder(run.out)
    output = run.spec.output
    needed = ["matplotlib"] if output.picture or output.report else []
    needed += ["jinja2"] if output.report else []
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} missing: pip install 'dynchoice[report]', or set"
            " output.report = false and output.picture = false"
        )


def plan(run: Inputs, options: Options | None = None) -> list[Step]:
    """Return which stages a run would do, as far as that is known without doing any.

    Steps have the status ``done``, ``to do`` or, where it rests on one to do, ``unknown``.
    """
    job = Job(run, options or Options(), None)
    keys, find = job.keys, job.stages.find
    key = keys.count()
    count = None if key is None else find("count", "panel", key)
    steps = [Step("count", "panel", "done" if count else "to do")]
    if count is None:
        return [*steps, *(Step(s, "", "unknown") for s in ("estimate", "diagnose", "forecast"))]
    job.use(count)
    segments = job.choose(count)
    wanted = [("estimate", m, keys.estimate(m)) for m in segments]
    wanted += [("diagnose", m, keys.diagnose(m)) for m in segments]
    wanted += [("forecast", n, keys.forecast(segments, n)) for n in keys.names]
    for stage, name, key in wanted:
        steps.append(Step(stage, name, "done" if find(stage, name, key) else "to do"))
    if segments != job.choose(count, by_hand=False):
        return [*steps, Step("write", "some segments only, not published", "to do")]
    before = publish.current_run(run.out)
    same = before is not None and before.digest == keys.whole(segments)
    done = same and before is not None and before.whole() and not job.options.force
    return [*steps, Step("publish", "current", "done" if done else "to do")]
