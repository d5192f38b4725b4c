"""``dynchoice callouts train | score | evaluate``: a callout policy kept by scheduled jobs.

The state is one file, written whole or not at all, and each batch of feedback is learned once: a
job killed at any moment is simply run again.
"""

from __future__ import annotations

import glob
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from dynchoice.errors import ColumnError, ConfigError, DataError, StorageError, suggest
from dynchoice.run.callout_schema import CalloutFile
from dynchoice.run.config import changed, explain, read_toml
from dynchoice.run.publish import check_folder, locked
from dynchoice.storage import write_atomically
from dynchoice.typing import Progress

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.callouts.bandit import Callouts

STATE, DECISIONS, VALUE, SUMMARY = (
    "callouts.npz", "decisions.parquet", "evaluation.json", "summary.txt",
)  # fmt: skip
ROWS = 500_000
"""Members read, decided for and written at a time."""
MOST_FOR_DR = 20_000_000
"""Rows times items up to which the doubly robust estimator is computed."""


class Job:
    """A callout file, read and checked."""

    def __init__(self, spec: CalloutFile, source: Path) -> None:
        self.spec, self.source, self.folder = spec, source, source.resolve().parent

    def path(self, name: str) -> Path:
        """Return a path relative to the callout file."""
        return self.folder / name

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.path(self.spec.folder)

    def files(self, names: str | Sequence[str], key: str) -> list[Path]:
        """Return the files that patterns name, in order of their names.

        Raises
        ------
        ConfigError
            A pattern names no file, or two files have one name.
        """
        found: list[Path] = []
        for name in [names] if isinstance(names, str) else names:
            own = sorted(Path(p) for p in glob.glob(str(self.path(name))))
            if not own:
                raise ConfigError(f"{self.source}: {key}: no file is {name!r}")
            found += own
        stems = [p.stem for p in found]
        twice = [s for s in stems if stems.count(s) > 1]
        if twice:
            raise ConfigError(f"{self.source}: {key}: two files are called {twice[0]!r}")
        return found


def load_job(path: str | Path, changes: Mapping[str, Any] | None = None) -> Job:
    """Read and check a callout file.

    Raises
    ------
    ConfigError
        Not TOML; unknown keys, wrong types, missing values: all of them.
    """
    source = Path(path)
    raw = read_toml(source)
    for key, value in (changes or {}).items():
        raw = changed(raw, key, value)
    try:
        spec = CalloutFile.model_validate(raw)
    except ValidationError as error:
        told = "\n".join(explain(error, raw, CalloutFile))
        raise ConfigError(f"{source}:\n{told}") from None
    job = Job(spec, source)
    check_folder(job.out)
    return job


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a CSV or Parquet file; ``columns`` maps our names to the file's.

    Raises
    ------
    ConfigError, DataError, ColumnError
        No such file, unreadable, or a column that is not there.
    """
    import pandas as pd

    if not path.exists():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file: {path}.{suggest(path.name, near)}")
    try:
        frame = pd.read_csv(path) if ".csv" in path.suffixes else pd.read_parquet(path)
    except Exception as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    return renamed(frame, columns or {}, path)


def renamed(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Return a table with the file's names turned into ours."""
    lost = [c for c in columns.values() if c not in frame.columns]
    if lost:
        raise ColumnError(f"{path} has no column {lost[0]!r}.{suggest(lost[0], frame.columns)}")
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


def tables(path: Path, columns: Mapping[str, str]) -> Iterator[pd.DataFrame]:
    """Yield a file's rows, some at a time."""
    import pandas as pd

    if not path.exists():
        raise ConfigError(f"no such file: {path}")
    try:
        if ".csv" in path.suffixes:
            for frame in pd.read_csv(path, chunksize=ROWS):
                yield renamed(frame, columns, path)
        else:
            import pyarrow.parquet as pq

            for part in pq.ParquetFile(path).iter_batches(ROWS):
                yield renamed(part.to_pandas(), columns, path)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError | StorageError):
            raise
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def fresh(job: Job) -> Callouts:
    """Return a policy that has learned nothing."""
    from dynchoice.callouts.bandit import Callouts

    spec = job.spec
    values = None if spec.values is None else read_table(job.path(spec.values))
    return Callouts(
        read_table(job.path(spec.catalogue)), spec.context or None, spec.policy.terms,
        values=values, **spec.options(),
    )  # fmt: skip


def restored(job: Job) -> Callouts:
    """Return the policy as it stands, with the catalogue and the values of today.

    Raises
    ------
    ConfigError
        What was learned does not fit the file any more: terms, context, items' attributes.
    """
    from dynchoice.callouts.bandit import Callouts

    new = fresh(job)
    path = job.out / STATE
    if not path.exists():
        return new
    old = Callouts.load(path)
    same = {
        "policy.terms": (old.terms.names, new.terms.names),
        "context": (old.context, new.context),
        "policy.method": (old.model.method, new.model.method),
        "policy.slots": (old.slots, new.slots),
        "feedback.window": (old.feedback.delays.window, new.feedback.delays.window),
        "feedback.pending": (old.feedback.pending, new.feedback.pending),
        "feedback.delay_by": (old.delay_by, new.delay_by),
    }
    for key, (before, now) in same.items():
        if before != now:
            raise ConfigError(
                f"{job.source}: {key} is not what {path} was learned with: put it back, or start"
                " anew in another folder"
            )
    return old.with_catalogue(new)


def train(job: Job, progress: Progress | None = None) -> str:
    """Learn every batch that was not learned, and save the state; return what was done."""
    spec = job.spec.feedback
    files = job.files(spec.impressions, "feedback.impressions")
    clicks = {} if spec.clicks is None else {
        p.stem: p for p in job.files(spec.clicks, "feedback.clicks")}  # fmt: skip
    strange = set(clicks) - {p.stem for p in files}
    if strange:
        raise ConfigError(
            f"{job.source}: feedback.clicks: no impressions are of the batch {sorted(strange)[0]!r}"
        )
    with locked(job.out):
        policy = restored(job)
        said, new = [], 0
        for i, path in enumerate(files):
            if progress is not None:
                progress(i, len(files), f"batch {path.stem}")
            own = clicks.get(path.stem)
            told = policy.learn(
                read_table(path, spec.columns), None if own is None else read_table(own),
                batch=path.stem,
            )  # fmt: skip
            if not told.repeated:
                said.append(str(told))
                new += 1
        learns = job.spec.policy.learn_prior != "no"
        if learns and not policy.model.impressions:
            said.append("no prior was learned: no impression is past its window yet")
        elif new and learns:
            prior = policy.learn_prior(job.spec.policy.learn_prior)
            said.append(str(prior))
        policy.save(job.out / STATE)
        if progress is not None:
            progress(len(files), len(files), "learned")
        head = f"{job.spec.title}: {policy!r}"
        text = "\n".join([head, *(said or ["no new batch"])])
        write_atomically(job.out / SUMMARY, lambda h: h.write(f"{text}\n".encode()))
    return text


def trained(job: Job) -> Callouts:
    """Return the policy that was trained.

    Raises
    ------
    ConfigError
        None was.
    """
    if not (job.out / STATE).exists():
        raise ConfigError(f"no policy in {job.out}: run `dynchoice callouts train {job.source}`")
    return restored(job)


def score(
    job: Job, *, name: str | None = None, now: str | None = None, progress: Progress | None = None
) -> Path:
    """Decide for the members of ``score.members``; return the file of decisions.

    ``name`` (today, if not given) picks the random draws: the same name gives the same decisions.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec = job.spec.score
    if spec is None:
        raise ConfigError(f"{job.source}: the section [score] is missing")
    policy = trained(job)
    name = datetime.now(UTC).date().isoformat() if name is None else name
    when = policy.feedback.now if now is None else now
    moment: Any = None if isinstance(when, float) and not np.isfinite(when) else when
    moment = float(moment) if isinstance(moment, str) and is_number(moment) else moment
    blocked = weights = None
    if spec.seen is not None:
        log = pd.concat([read_table(p) for p in job.files(spec.seen, "score.seen")])
        if moment is None:
            raise ConfigError("score.seen counts impressions up to a time: say --now")
        blocked = policy.capped(log, moment)
    if spec.clicked is not None:
        log = pd.concat([read_table(p) for p in job.files(spec.clicked, "score.clicked")])
        weights = policy.category_weights(log)
    target = job.out / DECISIONS
    done = 0

    def write(handle: Any) -> None:
        nonlocal done
        writer = None
        for path in job.files(spec.members, "score.members"):
            for frame in tables(path, spec.columns):
                shown = policy.decide(
                    frame, now=moment, blocked=blocked, weights=weights,
                    seed=zlib.crc32(f"{name}/{done}".encode()),
                )  # fmt: skip
                table = pa.Table.from_pandas(shown, preserve_index=False)
                writer = pq.ParquetWriter(handle, table.schema) if writer is None else writer
                writer.write_table(table)
                done += len(frame)
                if progress is not None:
                    progress(done, done, "members decided for")
        if writer is not None:
            writer.close()

    with locked(job.out):
        return write_atomically(target, write)


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def evaluate(job: Job, *, now: str | None = None, progress: Progress | None = None) -> str:
    """Value the policy on a log with propensities; return the table and write it as JSON."""
    import pandas as pd

    from dynchoice.callouts.evaluation import cross_fitted, off_policy

    spec = job.spec.evaluate
    if spec is None:
        raise ConfigError(f"{job.source}: the section [evaluate] is missing")
    policy = trained(job)
    files = job.files(spec.log, "evaluate.log")
    log = pd.concat([read_table(p, spec.columns) for p in files], ignore_index=True)
    if "item" not in log.columns:
        raise ColumnError(f"the log lacks the column 'item'.{suggest('item', log.columns)}")
    moment: Any = policy.feedback.now if now is None else now
    moment = float(moment) if isinstance(moment, str) and is_number(moment) else moment
    moment = None if isinstance(moment, float) and not np.isfinite(moment) else moment
    options: dict[str, Any] = {
        "reward": spec.reward, "propensity": spec.propensity, "clip": spec.clip,
        "cluster": spec.cluster, "level": spec.level, "interval": spec.interval,
    }  # fmt: skip
    binary = spec.reward in log.columns and set(log[spec.reward].unique()) <= {0, 1}
    if progress is not None:
        progress(0, 2, "target policy")
    if binary and len(log) * policy.catalogue.size <= MOST_FOR_DR:
        target = policy.first_shares(log, now=moment)
        item = policy.catalogue.item_codes(log["item"].to_numpy())
        if progress is not None:
            progress(1, 2, "model of rewards")
        model = cross_fitted(policy, log, reward=spec.reward, cluster=spec.cluster)
        value = off_policy(log, target, shown=item, model=model, **options)
    else:
        target = policy.propensity(log, log["item"].to_numpy(), now=moment)
        value = off_policy(log, target, **options)
    known = [p.stem for p in files if p.stem in policy.feedback.learned]
    text = str(value)
    if known:
        text += (
            f"\nNOTE: the policy has learned from {len(known)} of these files"
            f" ({known[0]!r} ...): its value on them is too good"
        )
    told = {
        "title": job.spec.title,
        "estimators": value.table.to_dict(orient="index"),
        "nobs": value.nobs,
        "effective": value.effective,
        "largest weight": value.largest,
        "clipped mass": value.clipped_mass,
        "notes": list(value.warnings),
    }
    data = json.dumps(told, indent=1, ensure_ascii=False).encode()
    write_atomically(job.out / VALUE, lambda h: h.write(data))
    if progress is not None:
        progress(2, 2, "valued")
    return text
