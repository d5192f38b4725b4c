"""The output folder: one run at a time, and ``current``, which is the old run or the new one.

A run is written into a folder of its own, renamed when it is whole, and then ``current``, a
symbolic link, is replaced by one that points to it. Who reads several tables should resolve
``current`` once and read from the folder that it names: that folder does not change any more.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dynchoice.errors import ConfigError, StorageError
from dynchoice.run import files, manifest
from dynchoice.run.stages import WRITING

logger = logging.getLogger("dynchoice.run")

CURRENT, MANIFEST = "current", "manifest.json"
RUN, BACKTEST = "run", "backtest"
COMPLETE, HELD, PARTIAL = "complete", "held", "partial"


def check_folder(out: Path) -> None:
    """Check the output folder before any work.

    Raises
    ------
    ConfigError
        A file is in its way; its name is impossible; something is called ``current``.
    """
    try:
        if "\0" in str(out):
            raise ValueError("a name may not hold a null character")
        for folder in (out, *out.parents):
            if folder.exists():
                if not folder.is_dir():
                    raise ConfigError(
                        f"cannot make the output folder {out}: {folder} is a file (output.folder)"
                    )
                break
        current_run(out)
        link = out / BACKTEST
        if link.exists() and not link.is_symlink():
            raise ConfigError(f"{link} is in the way: backtests are published by such a link")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        text = getattr(error, "strerror", None) or error
        name = str(out) if len(str(out)) < 200 else f"{str(out)[:197]}..."
        raise ConfigError(
            f"cannot make the output folder {name!r}: {text} (output.folder)"
        ) from None


@dataclass(frozen=True)
class Outcome:
    """What became of a run: ``status`` is ``complete``, ``unchanged`` or ``partial``."""

    folder: Path
    status: str
    digest: str
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A run that was written: its folder (links resolved) and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Digest of all that went in."""
        return str(self.manifest.get("digest", ""))

    @property
    def status(self) -> str:
        """``complete``, ``held`` or ``partial``."""
        return str(self.manifest.get("status", ""))

    def whole(self) -> bool:
        """Return whether every file is there and what it was."""
        try:
            return all(manifest.same(self.folder / f["name"], f) for f in self.manifest["outputs"])
        except (OSError, KeyError, TypeError):
            return False

    def table(self, name: str) -> Any:
        """Return one of its tables as a frame, or None where it is not there or not what it was."""
        import pandas as pd

        described = {f["name"]: f for f in self.manifest.get("outputs", ())}
        path = self.folder / f"{name}.parquet"
        try:
            if manifest.same(path, described[path.name]):
                return pd.read_parquet(path)
            logger.warning("%s is damaged: nothing is compared with it", path)
        except (OSError, KeyError):
            logger.debug("%s is not there", path)
        return None


def opened(folder: Path) -> Published | None:
    """Return the run in a folder, or None where there is no readable manifest."""
    try:
        where = folder.resolve(strict=True)
        return Published(where, json.loads((where / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def current_run(out: Path) -> Published | None:
    """Return the run that ``current`` points to, if any.

    Raises
    ------
    ConfigError
        Something else is called ``current``.
    """
    link = out / CURRENT
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is in the way: runs are published by a link of that name")
    return opened(link) if link.exists() else None


def runs(out: Path, kind: str = RUN) -> list[Published]:
    """Return the runs (or backtests) of a folder, oldest first."""
    opened_runs = [opened(p) for p in sorted(out.glob(f"{kind}-*")) if p.is_dir()]
    return sorted((r for r in opened_runs if r is not None), key=started)


def started(run: Published) -> tuple[str, str]:
    """Return by what runs are ordered: when they started, then their folder."""
    return str(run.manifest.get("started", "")), run.folder.name


def same_run(out: Path, digest: str, status: str, before: Published | None) -> Published | None:
    """Return a whole run of that digest and status: it need not be written again.

    Only one that was compared with the run published now: guard rails hold against that one.
    """
    previous = None if before is None else before.folder.name
    for run in reversed(runs(out)):
        alike = run.digest == digest and run.status == status
        if alike and run.manifest.get("previous") == previous and run.whole():
            return run
    return None


def write_run(
    out: Path, begun: datetime, write: Callable[[Path], Mapping[str, Any]], prefix: str = RUN
) -> Published:
    """Write a run into a fresh folder and give it its name once it is whole.

    ``write(folder)`` writes the files and returns the manifest, to which outputs are added.

    Raises
    ------
    StorageError
        The disk is full or cannot be written; nothing is left behind.
    """
    try:
        work = Path(tempfile.mkdtemp(dir=out, prefix=WRITING))
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror or error}") from error
    try:
        facts = write(work)
        outputs = manifest.describe_files(files.files_below(work), work)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        manifest.write(work / MANIFEST, {**facts, "finished": finished, "outputs": outputs})
        files.open_to_all(work)
        files.flush_files(work)
        target = free_name(out, f"{prefix}-{begun:%Y%m%dT%H%M%SZ}")
        os.rename(work, target)
        files.flush(out)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)  # gone already where the rename came through
    made = opened(target)
    assert made is not None
    return made


def point_to(out: Path, run: Published, name: str = CURRENT) -> None:
    """Let ``current`` (or another link) point to a run, at once.

    Raises
    ------
    StorageError
        The link cannot be made; the run itself is whole.
    """
    try:
        link = out / f".{name}-new"
        link.unlink(missing_ok=True)
        link.symlink_to(run.folder.name)
        os.replace(link, out / name)
        files.flush(out)
    except OSError as error:
        raise StorageError(
            f"the run is complete in {run.folder}, but {out / name} cannot point to it:"
            f" {error.strerror}"
        ) from error


def free_name(out: Path, name: str) -> Path:
    """Return a folder name not yet taken."""
    target, n = out / name, 1
    while target.exists():
        n += 1
        target = out / f"{name}-{n}"
    return target


def prune_runs(out: Path, keep: int, kind: str = RUN) -> None:
    """Remove all but the last ``keep`` runs (or backtests) and the one linked to (0: none)."""
    linked = opened(out / (CURRENT if kind == RUN else BACKTEST))
    every = runs(out, kind)
    # held and partial runs apart, or many of them would push out those that were published
    whole = [[r for r in every if (r.status == COMPLETE) is same] for same in (True, False)]
    for run in [r for group in whole for r in group[:-keep]] if keep else []:
        if linked is None or run.folder != linked.folder:
            logger.info("removing %s: output.keep is %d", run.folder, keep)
            gone = Path(tempfile.mkdtemp(dir=out, prefix=WRITING))
            os.rename(run.folder, gone / run.folder.name)  # what is half removed is no run
            shutil.rmtree(gone, ignore_errors=True)


def stages_in_use(out: Path, recent: int) -> set[str]:
    """Return the names of stages that the last runs, and the backtest, go back to."""
    linked = (opened(out / name) for name in (CURRENT, BACKTEST))
    kept = [*runs(out)[-recent:], *[r for r in linked if r is not None]]
    return {str(name) for r in kept for name in r.manifest.get("stages", {}).values()}
