"""Finished work kept by the digest of what went in: what is there is not done again.

A stage's folder is written beside its place and renamed when it is whole, so that a process that is
killed leaves either a finished stage or nothing that counts. Its name holds the digest of its
inputs: data, the parts of the run file that it reads, this package's code, the versions of the
libraries. A folder whose files are not what they were when written is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from dynchoice.errors import StorageError
from dynchoice.run import files, manifest

logger = logging.getLogger("dynchoice.run")

FOLDER, RECORD, WRITING = ".stages", "stage.json", ".writing-"
LENGTH = 32
"""Hexadecimal digits of a key: 128 bits."""


@cache
def code_digest() -> str:
    """Return the sha256 of this package's source: other code is other work."""
    import dynchoice

    root = Path(dynchoice.__file__).parent
    h = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".html", ".css", ".js", ".toml"):
            h.update(path.relative_to(root).as_posix().encode())
            h.update(hashlib.sha256(path.read_bytes()).digest())
    return h.hexdigest()


def canonical(value: object) -> str:
    """Return nested plain values as one text, whatever order their keys are in."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=True, default=str)


def key_of(stage: str, inputs: Mapping[str, Any]) -> str:
    """Return the digest of a stage's inputs, of the code and of the versions."""
    whole = {
        "stage": stage,
        "inputs": inputs,
        "code": code_digest(),
        "versions": manifest.versions(),
    }
    return hashlib.sha256(canonical(whole).encode()).hexdigest()[:LENGTH]


@dataclass(frozen=True)
class Stage:
    """One finished piece of work: its folder and what its record says."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage said of itself when it was done."""
        facts: Mapping[str, Any] = self.record["facts"]
        return facts

    @property
    def seconds(self) -> float:
        """How long it took when it was done."""
        return float(self.record["seconds"])

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name


@dataclass
class Stages:
    """The finished stages below an output folder.

    Parameters
    ----------
    out : Path
        The output folder.
    force : bool
        Do everything again.
    """

    out: Path
    force: bool = False
    done: dict[str, Stage] = field(default_factory=dict)
    """Stages used by this run, by ``stage/name``."""
    fresh: list[str] = field(default_factory=list)
    """Those of them that this run did."""
    _again: set[str] = field(default_factory=set)

    def place(self, stage: str, key: str) -> Path:
        """Return where a stage's folder is."""
        return self.out / FOLDER / f"{stage}-{key}"

    def find(self, stage: str, name: str, key: str) -> Stage | None:
        """Return a finished stage, or None where it has to be done."""
        if self.force and key not in self._again:
            return None
        folder = self.place(stage, key)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            whole = all(manifest.same(folder / f["name"], f) for f in record["files"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            logger.warning("%s is damaged: its work is done again", folder)
            return None
        done = Stage(folder, record)
        self.done[f"{stage}/{name}"] = done
        return done

    def finish(
        self,
        stage: str,
        name: str,
        key: str,
        write: Callable[[Path], Mapping[str, Any]],
        began: float | None = None,
    ) -> Stage:
        """Do a stage's work and keep it.

        Parameters
        ----------
        write : callable
            ``write(folder)`` writes the stage's files and returns its facts.
        began : float, optional
            When the work began (``time.perf_counter()``), if that was before now.

        Raises
        ------
        StorageError
            The disk is full or cannot be written; the stage is then not done.
        """
        began = time.perf_counter() if began is None else began
        target = self.place(stage, key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=target.parent, prefix=WRITING))
        except OSError as error:
            raise StorageError(f"cannot write to {self.out}: {error.strerror or error}") from error
        try:
            facts = write(work)
            record = {
                "stage": stage,
                "name": name,
                "key": key,
                "facts": facts,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - began, 3),
                "files": manifest.describe_files(files.files_below(work), work),
            }
            manifest.write(work / RECORD, record)
            files.open_to_all(work)
            swap(work, target)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot write to {self.out}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)  # gone already where the rename came through
        self._again.add(key)
        self.fresh.append(f"{stage}/{name}")
        done = Stage(target, json.loads((target / RECORD).read_text(encoding="utf-8")))
        self.done[f"{stage}/{name}"] = done
        return done

    def sweep(self) -> None:
        """Remove what killed runs left half-written."""
        for stale in (self.out / FOLDER).glob(f"{WRITING}*"):
            shutil.rmtree(stale, ignore_errors=True)

    def prune(self, kept: Iterable[str], since: float) -> int:
        """Remove stages done before ``since`` that neither this run nor the runs kept need."""
        wanted = {s.folder.name for s in self.done.values()} | set(kept)
        gone = 0
        for folder in (self.out / FOLDER).iterdir():
            old = folder.stat().st_mtime < since or not (folder / RECORD).exists()
            if old and folder.name not in wanted and not folder.name.startswith(WRITING):
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
        return gone


def swap(work: Path, target: Path) -> None:
    """Rename a finished folder to its place; one that is there already (damaged, forced) goes."""
    files.flush_files(work)
    try:
        os.rename(work, target)
    except OSError:
        if not target.is_dir():
            raise
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=WRITING))
        os.rename(target, old / "old")
        os.rename(work, target)
        shutil.rmtree(old, ignore_errors=True)
    files.flush(target.parent)
