"""``dynchoice callouts train | score | evaluate``: a callout policy kept by scheduled jobs.

The state is one file, written whole or not at all, and each batch of feedback is learned once: a
job killed at any moment is simply run again.
"""

from __future__ import annotations

import glob
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic import ValidationError

from dynchoice import checks
from dynchoice.errors import ConfigError, ConvergenceError, DataError, DynChoiceError
from dynchoice.run.callout_schema import CalloutFile, EvaluatePart
from dynchoice.run.callout_tables import Labels, by_number, read_table, tables
from dynchoice.run.config import changed, explain, read_toml
from dynchoice.run.lock import locked
from dynchoice.run.manifest import digest
from dynchoice.run.publish import check_folder
from dynchoice.storage import write_atomically
from dynchoice.typing import Progress

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from dynchoice.callouts.bandit import Callouts
    from dynchoice.callouts.catalogue import Moment

STATE = "callouts.npz"
DECISIONS = "decisions.parquet"
VALUE = "evaluation.json"
SUMMARY = "summary.txt"
PRIOR = "prior learned"
"""Key of a policy's ``files`` under which the prior stands that was learned last."""
GONE_ITEM = ". An item that has left the catalogue? Keep its row, with an end (column ends)"
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
        files: list[Path] = []
        for name in [names] if isinstance(names, str) else names:
            matching = sorted((Path(p) for p in glob.glob(str(self.path(name)))), key=by_number)
            if not matching:
                raise ConfigError(f"{self.source}: {key}: no file is {name!r}")
            files += matching
        stems = [p.stem for p in files]
        twice = [s for s in stems if stems.count(s) > 1]
        if twice:
            raise ConfigError(f"{self.source}: {key}: two files are called {twice[0]!r}")
        return files


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
        mistakes = "\n".join(explain(error, raw, CalloutFile))
        raise ConfigError(f"{source}:\n{mistakes}") from None
    job = Job(spec, source)
    check_folder(job.out)
    return job


def make_policy(job: Job) -> Callouts:
    """Return a policy that has learned nothing."""
    from dynchoice.callouts.bandit import Callouts

    spec = job.spec
    catalogue = read_table(
        job.path(spec.catalogue), labels=Labels({"item": (), **rule_columns(spec)})
    )
    labels = Labels(spec.context | {"item": list(catalogue.get("item", ()))})
    values = None if spec.values is None else read_table(job.path(spec.values), labels=labels)
    return Callouts(
        catalogue, spec.context or None, spec.policy.terms, values=values, **spec.options()
    )


def rule_columns(spec: CalloutFile) -> dict[str, tuple[Any, ...]]:
    """Return the catalogue's columns of rules, without levels: their values stay texts."""
    return {f"for_{c}": () for c in spec.context}


def labels_of(policy: Callouts) -> Labels:
    """Return how files' texts become labels of a policy's items and contexts."""
    context = {} if policy.context is None else dict(policy.context.axes)
    return Labels({"item": policy.catalogue.items, **context})


def restore_policy(job: Job) -> Callouts:
    """Return the saved policy, with the catalogue, values and page of today.

    Raises
    ------
    ConfigError
        What was learned does not fit the file any more: terms, context, method, window.
    """
    from dynchoice.callouts.bandit import Callouts
    from dynchoice.callouts.policy_file import merge_catalogues, move_policy

    new = make_policy(job)
    path = job.out / STATE
    if not path.exists():
        return new
    old = Callouts.load(path)
    refuse_other_model(job, path, old, new)
    policy = move_policy(old, merge_catalogues(old.catalogue, new.catalogue), new.values, new)
    if job.spec.policy.learn_prior == "no":
        policy.prior_method = "no"
    if job.spec.policy.learn_prior == "no" and policy.model.prior != new.model.prior:
        policy.model.set_prior(new.model.prior)
    elif same_page(old, policy):
        policy.snapshot = old.snapshot  # it decides as before: its draws and its number stay
    policy.refresh()
    return policy


def refuse_other_model(job: Job, path: Path, old: Callouts, new: Callouts) -> None:
    """Raise if what was learned does not fit the file any more.

    Raises
    ------
    ConfigError
        Terms, context, method, window or what else was another.
    """
    from dynchoice.callouts.probit import MOST_JOINT

    same = {
        "policy.terms": (old.terms.names, new.terms.names),
        "context": (old.context, new.context),
        "feedback.window": (old.feedback.delays.window, new.feedback.delays.window),
        "feedback.pending": (old.feedback.pending, new.feedback.pending),
        "feedback.delay_by": (old.delay_by, new.delay_by),
    }
    # without a method in the file the state's stands: a catalogue may grow beyond joint's size
    outgrown = old.model.method == "adf" and new.terms.size > MOST_JOINT
    if job.spec.policy.method is not None and not outgrown:
        same["policy.method"] = (old.model.method, new.model.method)
    if "slot" in ":".join(new.terms.names):
        same["policy.slots"] = (old.slots, new.slots)
    for key, (before, now) in same.items():
        if before != now:
            raise ConfigError(
                f"{job.source}: {key} is not what {path} was learned with: put it back, or start"
                " anew in another folder"
            )


def same_page(old: Callouts, new: Callouts) -> bool:
    """Return whether two policies of one model show the same: options, catalogue and values."""
    from dynchoice.callouts.values import table_to_text

    options = ("slots", "category", "diversity", "draws", "explore", "at_random", "seed")
    if any(getattr(old, name) != getattr(new, name) for name in options):
        return False
    pages = [
        (
            table_to_text(policy.catalogue.in_days()),
            None if policy.values is None else table_to_text(policy.values),
        )
        for policy in (old, new)
    ]
    return pages[0] == pages[1]


def train(job: Job, progress: Progress | None = None) -> str:
    """Learn every file of feedback that was not learned, and save the state; say what was done.

    Files are known by name and content. Clicks whose impressions were learned before are learned by
    themselves.
    """
    spec = job.spec.feedback
    shown = {p.stem: p for p in job.files(spec.impressions, "feedback.impressions")}
    clicks = {}
    if spec.clicks is not None:
        clicks = {p.stem: p for p in job.files(spec.clicks, "feedback.clicks")}
    stems = sorted({*shown, *clicks}, key=lambda s: by_number(Path(s)))
    with locked(job.out):
        policy = restore_policy(job)
        said: list[str] = []
        try:
            for i, stem in enumerate(stems):
                if progress is not None:
                    progress(i, len(stems), f"batch {stem}")
                said += learn_batch(job, policy, stem, shown.get(stem), clicks.get(stem))
            said += learn_prior(job, policy)
        except DynChoiceError:
            policy.save(job.out / STATE)  # what came before the mistake was learned
            raise
        policy.save(job.out / STATE)
        if progress is not None:
            progress(len(stems), len(stems), "learned")
        head = f"{job.spec.title}: {policy!r}"
        text = "\n".join([head, *(said or ["no new batch"])])
        write_atomically(job.out / SUMMARY, lambda h: h.write(f"{text}\n".encode()))
    return text


def find_new_files(
    policy: Callouts, stem: str, files: Mapping[str, Path | None]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files of a batch that were not learned, and the digests to know them by.

    Digests are taken before the files are read, since a file may grow meanwhile.

    Parameters
    ----------
    policy : Callouts
    stem : str
        The batch.
    files : mapping
        ``"impressions"`` and ``"clicks"`` -> file.

    Raises
    ------
    DataError
        A file was learned with other content.
    """
    new: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for kind, path in files.items():
        if path is None:
            continue
        name, content = f"{kind} {stem}", digest(path)
        if name not in policy.files:
            new[kind], digests[name] = path, content
        elif policy.files[name] != content:
            raise DataError(
                f"{path} was learned with other content: put it back, or give what is new another"
                " name"
            )
    return new, digests


def learn_batch(
    job: Job, policy: Callouts, stem: str, shown: Path | None, clicked: Path | None
) -> list[str]:
    """Learn one batch, or what of it is new; return what to say of it."""
    spec, labels = job.spec.feedback, labels_of(policy)
    new, digests = find_new_files(policy, stem, {"impressions": shown, "clicks": clicked})
    if not new:
        return []
    if "impressions" not in new and f"impressions {stem}" not in policy.files:
        return [
            f"NOTE: {clicked} waits: the impressions of {stem!r}, of the same name, have not come"
        ]
    rows = taps = None
    try:
        if "impressions" in new:
            rows = read_table(new["impressions"], spec.columns, labels, ("impression",))
            refuse_future(rows, new["impressions"])
        if "clicks" in new:
            taps = read_table(new["clicks"], spec.click_columns, None, ("impression",))
            refuse_future(taps, new["clicks"])
        said = []
        if (rows is not None and len(rows)) or (taps is not None and len(taps)):
            batch = stem if "impressions" in new else f"{stem} (clicks)"
            report = policy.learn(rows, taps, batch=batch)
            said = [str(report)]
            if report.unmatched > report.clicks:
                said.append(
                    f"NOTE: most clicks of {stem!r} have no impression that waits: are they of the"
                    " same ids, and in time?"
                )
    except DynChoiceError as error:
        names = " and ".join(str(p) for p in new.values())
        hint = GONE_ITEM if "column 'item'" in str(error) else ""
        text = str(error) if names in str(error) else f"{names}: {error}"
        raise type(error)(text + hint) from None
    policy.files |= digests
    return said


def refuse_future(frame: pd.DataFrame, path: Path) -> None:
    """Raise for times that have not come yet: one of them would end every window before it.

    Raises
    ------
    DataError
        Their number.
    """
    from dynchoice.callouts.catalogue import as_times

    for column in ("time", "clicked_at"):
        if column not in frame.columns or not len(frame):
            continue
        times = as_times(frame[column], column)
        ahead = (times > DATES) & (times > time.time() / 86_400 + 1)
        if ahead.any():
            raise DataError(
                f"{path}: {int(ahead.sum()):,} times lie in the future (column {column!r})"
            )


def learn_prior(job: Job, policy: Callouts) -> list[str]:
    """Learn the prior as the file says, if anything is new since; return what to say of it."""
    method = job.spec.policy.learn_prior
    state = f"{method} {policy.model.batches}"
    if method == "no" or policy.files.get(PRIOR) == state:
        return []
    if not policy.model.impressions:
        return ["no prior was learned: no impression is past its window yet"]
    prior = policy.learn_prior(method)
    if not prior.converged:  # what was learned stays; the prior learned before does not
        raise ConvergenceError(f"the prior by {method} did not converge:\n{prior}")
    policy.files[PRIOR] = state
    return [str(prior)]


def trained_policy(job: Job) -> Callouts:
    """Return the policy that was trained.

    Raises
    ------
    ConfigError
        None was.
    """
    if not (job.out / STATE).exists():
        raise ConfigError(f"no policy in {job.out}: run `dynchoice callouts train {job.source}`")
    return restore_policy(job)


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
    policy = trained_policy(job)
    labels = labels_of(policy)
    name = datetime.now(UTC).date().isoformat() if name is None else name
    moment = moment_of(policy, now)
    blocked = weights = None
    if spec.seen is not None:
        files = job.files(spec.seen, "score.seen")
        need: tuple[str, ...] = ("member", "item", "time")
        log = pd.concat([read_table(p, spec.log_columns, labels, need) for p in files])
        if moment is None:
            raise ConfigError("score.seen counts impressions up to a time: say --now")
        blocked = policy.capped(log, moment)
    if spec.clicked is not None:
        files = job.files(spec.clicked, "score.clicked")
        need = ("member", "item")
        log = pd.concat([read_table(p, spec.log_columns, labels, need) for p in files])
        weights = policy.category_weights(log)
    target = job.out / DECISIONS
    done = 0

    def write(handle: BinaryIO) -> None:
        nonlocal done
        writer, empty = None, None
        try:
            for path in job.files(spec.members, "score.members"):
                for frame in tables(path, spec.columns, labels, ("member",)):
                    seed = zlib.crc32(f"{name}/{done}".encode())
                    shown = policy.decide(
                        frame, now=moment, blocked=blocked, weights=weights, seed=seed
                    )
                    table = pa.Table.from_pandas(shown, preserve_index=False)
                    if not len(shown):  # nobody, or nobody who may see anything
                        empty = table
                        done += len(frame)
                        continue
                    if writer is None:
                        writer = pq.ParquetWriter(handle, table.schema)
                    writer.write_table(cast_decisions(table, writer.schema, path))
                    done += len(frame)
                    if progress is not None:
                        progress(done, done, "members decided for")
            if writer is None and empty is not None:
                writer = pq.ParquetWriter(handle, empty.schema)
        finally:
            if writer is not None:
                writer.close()

    with locked(job.out):
        return write_atomically(target, write)


def cast_decisions(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    """Return decisions with the column types of those before.

    Raises
    ------
    DataError
        Ids of members are of another kind.
    """
    import pyarrow as pa

    if table.schema == schema:
        return table
    try:
        kind = table.schema.field("member").type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if text and pa.types.is_integer(schema.field("member").type):
            raise ValueError("007 is not 7")
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError):
        raise DataError(
            f"{path}: members are {table.schema.field('member').type} here and"
            f" {schema.field('member').type} before: one kind is needed"
        ) from None


def moment_of(policy: Callouts, now: str | None) -> Moment | None:
    """Return the time to decide for: ``now``, else the present, or in bare days the last time."""
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
    from dynchoice.callouts.catalogue import as_times
    from dynchoice.callouts.evaluation import cross_fitted, off_policy

    spec = job.spec.evaluate
    if spec is None:
        raise ConfigError(f"{job.source}: the section [evaluate] is missing")
    policy = trained_policy(job)
    log, notes = read_log(job, spec, policy)
    moment = moment_of(policy, now)
    options: dict[str, Any] = spec.model_dump(exclude={"log", "columns"})
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
    if "time" in log.columns:
        times = as_times(log["time"], "time")
        inside = int((times <= policy.feedback.now).sum())
        if inside:
            notes.append(
                f"{inside:,} rows are of times from which the policy has learned: were they among"
                " what it learned from, its value on them is too good"
            )
    text = "\n".join([str(value), *(f"NOTE: {x}" for x in notes)])
    report = {
        "title": job.spec.title,
        "estimators": value.table.to_dict(orient="index"),
        "nobs": value.nobs,
        "effective": value.effective,
        "largest weight": value.largest,
        "clipped mass": value.clipped_mass,
        "notes": [*value.warnings, *notes],
    }
    data = json.dumps(report, indent=1, ensure_ascii=False).encode()
    write_atomically(job.out / VALUE, lambda h: h.write(data))
    if progress is not None:
        progress(2, 2, "valued")
    return text


def read_log(job: Job, spec: EvaluatePart, policy: Callouts) -> tuple[pd.DataFrame, list[str]]:
    """Return the log on which a policy is valued, and what a reader should know of it.

    Of a page with several slots the first counts: of it the propensities of single items speak.
    """
    import pandas as pd

    labels = labels_of(policy)
    files = job.files(spec.log, "evaluate.log")
    log = pd.concat([read_table(p, spec.columns, labels) for p in files], ignore_index=True)
    checks.columns(log, ["item"], "the log")
    if policy.slots == 1:
        return log, []
    checks.columns(log, ["slot"], f"the log of a page with {policy.slots} slots")
    first = log["slot"].astype(str) == "1"
    note = f"the first slot only: {int(first.sum()):,} of {len(log):,} rows"
    return log[first].reset_index(drop=True), [note]
