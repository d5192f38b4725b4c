"""Files of a callout job, CSV or Parquet: some rows at a time, ids and labels as they are meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import ColumnError, ConfigError, DataError, DynChoiceError, suggest

if TYPE_CHECKING:
    import pandas as pd

ROWS = 500_000
"""Rows read, decided for and written at a time."""
OURS = ("member", "impression", "item", "time", "slot", "clicked_at", "reward", "propensity")
TEXTS = ("member", "impression")
"""Ids, which a CSV must not turn into numbers: 007 is not 7."""


def by_number(path: Path) -> list[tuple[int, str]]:
    """Return a key that puts batch 2 before batch 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(x), "") if x.isdigit() else (-1, x) for x in parts]


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


def read_table(
    path: Path,
    columns: Mapping[str, str] | None = None,
    labels: Labels | None = None,
    needed: Sequence[str] = (),
) -> pd.DataFrame:
    """Read a whole CSV or Parquet file; see :func:`tables`."""
    import pandas as pd

    parts = list(tables(path, columns or {}, labels, needed))
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def tables(
    path: Path,
    columns: Mapping[str, str],
    labels: Labels | None = None,
    needed: Sequence[str] = (),
) -> Iterator[pd.DataFrame]:
    """Yield a file's rows, some at a time.

    Parameters
    ----------
    path : Path
    columns : mapping
        Our name -> the file's.
    labels : Labels, optional
    needed : sequence of str
        Columns that must be there, without gaps.

    Raises
    ------
    ConfigError, DataError, ColumnError
        No such file, unreadable, or a column that is not there.
    """
    import pandas as pd

    if not path.exists():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file: {path}.{suggest(path.name, near)}")
    known = [*OURS, *(labels.of if labels else ())]
    for name in columns:
        if name not in known:
            raise ConfigError(f"columns: {name!r} is no name of ours.{suggest(name, known)}")
    text = {columns.get(c, c): str for c in (*TEXTS, "item", *(labels.of if labels else ()))}
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
            for c in needed:
                if c not in own.columns:
                    raise ColumnError(f"{path} has no column {c!r}.{suggest(c, own.columns)}")
                gaps = int(own[c].isna().sum())
                if gaps:
                    raise DataError(f"{path}: column {c!r} is empty in {gaps:,} rows")
            yield own if labels is None else labels.applied(own)
    except (OSError, ValueError) as error:
        if isinstance(error, DynChoiceError):
            raise
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def renamed(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Return a table with the file's names turned into ours."""
    lost = [c for c in columns.values() if c not in frame.columns]
    if lost:
        raise ColumnError(f"{path} has no column {lost[0]!r}.{suggest(lost[0], frame.columns)}")
    taken = [o for o in columns if o in frame.columns and o not in columns.values()]
    ours = {theirs: own for own, theirs in columns.items()}
    return frame.drop(columns=taken).rename(columns=ours)
