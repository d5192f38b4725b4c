"""The lock of an output folder: of two runs at once, one works and the other says who does."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dynchoice.errors import ConfigError, LockError, StorageError
from dynchoice.run.stages import WRITING

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder.

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
        raise LockError(
            f"another run holds {folder / LOCK} ({who_holds(owner)}): try later"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot lock {folder}: {error.strerror or error}") from error
    try:
        try:
            for stale in folder.glob(f"{WRITING}*"):  # left by a run that was killed
                shutil.rmtree(stale, ignore_errors=True)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            owner.write_text(f"host {socket.gethostname()}, pid {os.getpid()}, since {now}\n")
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def who_holds(owner: Path) -> str:
    """Return host, pid and start of the run that holds a lock."""
    try:
        return owner.read_text(encoding="utf-8").strip() or "it has just started"
    except OSError:
        return "it has just started"
