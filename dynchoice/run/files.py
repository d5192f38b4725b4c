"""Folders of finished work on the disk: their files, rights, and being flushed to it."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Return all files of a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def open_to_all(folder: Path) -> None:
    """Give a temporary folder, made for its owner alone, the rights that the umask gives."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)


def flush(folder: Path) -> None:
    """Have the disk hold a folder's names (where the system can say so)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on every system
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def flush_files(folder: Path) -> None:
    """Have the disk hold every file of a folder: a run must survive a power cut."""
    for path in files_below(folder):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    flush(folder)
