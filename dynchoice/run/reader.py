"""The files beside the panel that a run file names, each read once a run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dynchoice.run import manifest

if TYPE_CHECKING:
    import pandas as pd

Stamp: TypeAlias = tuple[int, ...]
Kept = TypeVar("Kept")

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zip": "zip", ".zst": "zstd"}
"""Endings by which pandas knows a compression of files; for bytes it needs the word."""


def stamp(path: Path) -> Stamp:
    """Return what changes with a file: its size, time of change, number on the disk."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


class Reader:
    """What was read of a run's files; a file that has changed since is read again.

    What a digest is of and what a table is made of are the same bytes.

    Parameters
    ----------
    tables : collection of Path
        Files small enough to be kept whole; of others (the panel) only the digest is.
    """

    def __init__(self, tables: Collection[Path]) -> None:
        self.tables = frozenset(tables)
        self._kept: dict[tuple[object, ...], tuple[Stamp, object]] = {}

    def __getstate__(self) -> dict[str, object]:
        # workers that are sent a model's maker read for themselves
        return {"tables": self.tables, "_kept": {}}

    def _once(self, path: Path, key: tuple[object, ...], make: Callable[[], Kept]) -> Kept:
        """Return what was made of a file as it is now, made where that was not done."""
        mark = stamp(path)  # before it is read: what changes meanwhile is read again next time
        kept = self._kept.get((path, *key))
        if kept is None or kept[0] != mark:
            kept = self._kept[path, *key] = mark, make()
        return kept[1]  # type: ignore[return-value]  # what was kept under a key is of its kind

    def content(self, path: Path) -> bytes:
        """Return the bytes of a file."""
        return self._once(path, ("content",), path.read_bytes)

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file."""
        if path not in self.tables:
            return self._once(path, ("digest",), lambda: manifest.digest(path))
        content = self.content
        return self._once(path, ("digest",), lambda: hashlib.sha256(content(path)).hexdigest())

    def csv(self, path: Path, texts: Sequence[str] = ()) -> pd.DataFrame:
        """Return a CSV as a table, not to be changed; columns of ``texts`` are no numbers.

        Raises
        ------
        OSError, ValueError
            It cannot be read.
        """
        import pandas as pd

        def parse() -> pd.DataFrame:
            return pd.read_csv(
                io.BytesIO(self.content(path)),
                keep_default_na=False,  # a level may be called None or NA
                na_values=[""],
                dtype=dict.fromkeys(texts, str),
                compression=COMPRESSED.get(path.suffix.lower()),
            )

        return self._once(path, ("csv", *texts), parse)

    def forget(self) -> None:
        """Let go of what tables held; digests stay."""
        self._kept = {k: v for k, v in self._kept.items() if k[1] == "digest"}
