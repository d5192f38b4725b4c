"""``dynchoice callouts train | score | evaluate``: a callout policy kept by scheduled jobs.

The state is one file, written whole or not at all, and each batch of feedback is learned once: a
job killed at any moment is simply run again.
"""

from __future__ import annotations

import glob
import json
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from dynchoice.errors import ColumnError, ConfigError, DataError, DynChoiceError, suggest
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
DATES = 10_000
"""Days above which times are dates: the year 1997."""
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
            own = sorted((Path(p) for p in glob.glob(str(self.path(name)))), key=by_number)
            if not own:
                raise ConfigError(f"{self.source}: {key}: no file is {name!r}")
            found += own
        stems = [p.stem for p in found]
        twice = [s for s in stems if stems.count(s) > 1]
        if twice:
            raise ConfigError(f"{self.source}: {key}: two files are called {twice[0]!r}")
        return found


def by_number(path: Path) -> list[tuple[int, str]]:
    """Return a key that puts batch 2 before batch 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(x), "") if x.isdigit() else (-1, x) for x in parts]


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


def read_table(
    path: Path, columns: Mapping[str, str] | None = None, labels: Labels | None = None
) -> pd.DataFrame:
    """Read a whole CSV or Parquet file; see :func:`tables`."""
    import pandas as pd

    parts = list(tables(path, columns or {}, labels))
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def renamed(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Return a table with the file's names turned into ours."""
    lost = [c for c in columns.values() if c not in frame.columns]
    if lost:
        raise ColumnError(f"{path} has no column {lost[0]!r}.{suggest(lost[0], frame.columns)}")
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


class Labels:
    """How a file's texts become labels: a CSV does not tell 1 from "1", nor "None" from nothing.

    Parameters
    ----------
    levels : mapping
        Column -> its levels: items, and columns of the context.
    """

    def __init__(self, levels: Mapping[str, Sequence[Any]]) -> None:
        self.of = {c: {str(x): x for x in known} for c, known in levels.items()}

    def applied(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a table in which values that are written like a level are that level."""
        for c, known in self.of.items():
            if c in frame.columns:
                own = [known.get(str(x), x) for x in frame[c]]
                frame[c] = np.array([*own, None], object)[:-1]
        return frame


def tables(
    path: Path, columns: Mapping[str, str], labels: Labels | None = None
) -> Iterator[pd.DataFrame]:
    """Yield a file's rows, some at a time; ``columns`` maps our names to the file's.

    Raises
    ------
    ConfigError, DataError, ColumnError
        No such file, unreadable, or a column that is not there.
    """
    import pandas as pd

    if not path.exists():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file: {path}.{suggest(path.name, near)}")
    text = {columns.get(c, c): str for c in (labels.of if labels else {"item": None})}
    try:
        if ".csv" in path.suffixes:
            parts: Iterator[pd.DataFrame] = pd.read_csv(
                path, chunksize=ROWS, dtype=text, keep_default_na=False, na_values=[""]
            )
        else:
            import pyarrow.parquet as pq

            file = pq.ParquetFile(path)
            empty = file.schema_arrow.empty_table()
            batches = (b.to_pandas() for b in file.iter_batches(ROWS))
            parts = batches if file.metadata.num_rows else iter([empty.to_pandas()])
        for frame in parts:
            own = renamed(frame, columns, path)
            yield own if labels is None else labels.applied(own)
    except (OSError, ValueError) as error:
        if isinstance(error, DynChoiceError):
            raise
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def fresh(job: Job) -> Callouts:
    """Return a policy that has learned nothing."""
    from dynchoice.callouts.bandit import Callouts

    spec = job.spec
    catalogue = read_table(job.path(spec.catalogue), labels=Labels({"item": (), **rules(spec)}))
    labels = Labels(spec.context | {"item": list(catalogue.get("item", ()))})
    values = None if spec.values is None else read_table(job.path(spec.values), labels=labels)
    return Callouts(
        catalogue, spec.context or None, spec.policy.terms, values=values, **spec.options()
    )


def rules(spec: CalloutFile) -> dict[str, tuple[Any, ...]]:
    """Return the catalogue's columns of rules, which are texts."""
    return {f"for_{c}": () for c in spec.context}


def labels_of(policy: Callouts) -> Labels:
    """Return how files' texts become labels of a policy's items and contexts."""
    context = {} if policy.context is None else dict(policy.context.axes)
    return Labels({"item": policy.catalogue.items, **context})


def restored(job: Job) -> Callouts:
    """Return the policy as it stands, with the catalogue, values and page of today.

    Raises
    ------
    ConfigError
        What was learned does not fit the file any more: terms, context, method, window.
    """
    from dynchoice.callouts.bandit import Callouts
    from dynchoice.callouts.state import merged, moved
    from dynchoice.callouts.values import text_of

    new = fresh(job)
    path = job.out / STATE
    if not path.exists():
        return new
    old = Callouts.load(path)
    same = {
        "policy.terms": (old.terms.names, new.terms.names),
        "context": (old.context, new.context),
        "policy.method": (old.model.method, new.model.method),
        "feedback.window": (old.feedback.delays.window, new.feedback.delays.window),
        "feedback.pending": (old.feedback.pending, new.feedback.pending),
        "feedback.delay_by": (old.delay_by, new.delay_by),
    }
    if "slot" in ":".join(new.terms.names):
        same["policy.slots"] = (old.slots, new.slots)
    for key, (before, now) in same.items():
        if before != now and not (key == "policy.method" and before == "adf"):
            raise ConfigError(
                f"{job.source}: {key} is not what {path} was learned with: put it back, or start"
                " anew in another folder"
            )
    catalogue = merged(old.catalogue, new.catalogue)
    own = moved(old, catalogue, new.values, new)
    if job.spec.policy.learn_prior == "no" and own.model.prior != new.model.prior:
        own.model.set_prior(new.model.prior)
    elif text_of(catalogue.in_days()) == text_of(old.catalogue.in_days()) and (
        (new.values is None and old.values is None)
        or (new.values is not None and old.values is not None
            and text_of(new.values) == text_of(old.values))
    ):  # fmt: skip
        own.snapshot = old.snapshot
    own.refresh()
    return own


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
        labels, said, new = labels_of(policy), [], 0
        for i, path in enumerate(files):
            if progress is not None:
                progress(i, len(files), f"batch {path.stem}")
            own = clicks.get(path.stem)
            told = policy.learn(
                read_table(path, spec.columns, labels),
                None if own is None else read_table(own, spec.click_columns),
                batch=path.stem,
            )
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
    labels = labels_of(policy)
    name = datetime.now(UTC).date().isoformat() if name is None else name
    moment = moment_of(policy, now)
    blocked = weights = None
    if spec.seen is not None:
        files = job.files(spec.seen, "score.seen")
        log = pd.concat([read_table(p, spec.log_columns, labels) for p in files])
        if moment is None:
            raise ConfigError("score.seen counts impressions up to a time: say --now")
        blocked = policy.capped(log, moment)
    if spec.clicked is not None:
        files = job.files(spec.clicked, "score.clicked")
        log = pd.concat([read_table(p, spec.log_columns, labels) for p in files])
        weights = policy.category_weights(log)
    target = job.out / DECISIONS
    done = 0

    def write(handle: Any) -> None:
        nonlocal done
        writer = None
        for path in job.files(spec.members, "score.members"):
            for frame in tables(path, spec.columns, labels):
                if not len(frame) and writer is not None:
                    continue
                shown = policy.decide(
                    frame, now=moment, blocked=blocked, weights=weights,
                    seed=zlib.crc32(f"{name}/{done}".encode()),
                )  # fmt: skip
                table = pa.Table.from_pandas(shown, preserve_index=False)
                if writer is None:
                    writer = pq.ParquetWriter(handle, table.schema)
                if table.schema != writer.schema:
                    try:
                        table = table.cast(writer.schema)
                    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError):
                        raise DataError(
                            f"{path}: members are {table.schema.field('member').type} here and"
                            f" {writer.schema.field('member').type} before: one kind is needed"
                        ) from None
                writer.write_table(table)
                done += len(frame)
                if progress is not None:
                    progress(done, done, "members decided for")
        if writer is not None:
            writer.close()

    with locked(job.out):
        return write_atomically(target, write)


def moment_of(policy: Callouts, now: str | None) -> Any:
    """Return the time to decide for: as said, or now, or (in bare days) the last feedback's."""
    if now is not None:
        try:
            return float(now)
        except ValueError:
            return now
    last = policy.feedback.now
    if not np.isfinite(last):
        return None
    return time.time() / 86_400 if last > DATES else last


def evaluate(job: Job, *, now: str | None = None, progress: Progress | None = None) -> str:
    """Value the policy on a log with propensities; return the table and write it as JSON."""
    import pandas as pd

    from dynchoice.callouts.evaluation import cross_fitted, off_policy

    spec = job.spec.evaluate
    if spec is None:
        raise ConfigError(f"{job.source}: the section [evaluate] is missing")
    policy = trained(job)
    files = job.files(spec.log, "evaluate.log")
    labels = labels_of(policy)
    log = pd.concat([read_table(p, spec.columns, labels) for p in files], ignore_index=True)
    if "item" not in log.columns:
        raise ColumnError(f"the log lacks the column 'item'.{suggest('item', log.columns)}")
    notes = []
    if policy.slots > 1:  # what is shown first is what propensities of single items speak of
        if "slot" not in log.columns:
            raise ColumnError(f"the log lacks the column 'slot' (the page has {policy.slots})")
        first = log["slot"].astype(str) == "1"
        notes.append(f"the first slot only: {int(first.sum()):,} of {len(log):,} rows")
        log = log[first].reset_index(drop=True)
    moment = moment_of(policy, now)
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
    if known:
        notes.append(
            f"the policy has learned from {len(known)} of these files ({known[0]!r} ...): its value"
            " on them is too good"
        )
    text = "\n".join([str(value), *(f"NOTE: {x}" for x in notes)])
    told = {
        "title": job.spec.title,
        "estimators": value.table.to_dict(orient="index"),
        "nobs": value.nobs,
        "effective": value.effective,
        "largest weight": value.largest,
        "clipped mass": value.clipped_mass,
        "notes": [*value.warnings, *notes],
    }
    data = json.dumps(told, indent=1, ensure_ascii=False).encode()
    write_atomically(job.out / VALUE, lambda h: h.write(data))
    if progress is not None:
        progress(2, 2, "valued")
    return text
