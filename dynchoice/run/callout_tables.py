"""Files of a callout job, CSV or Parquet: read some rows at a time, ids and labels restored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import ConfigError, DataError, DynChoiceError, suggest
from dynchoice.typing import Level

if TYPE_CHECKING:
    import pandas as pd

ROWS = 500_000
"""Rows read, decided for and written at a time."""
OUR_NAMES = ("member", "impression", "item", "time", "slot", "clicked_at", "reward", "propensity")
"""Columns that a job may ask for, beside those of the context."""
TEXTS = ("member", "impression")
"""Ids, which a CSV must not turn into numbers: 007 is not 7."""


def by_number(path: Path) -> list[tuple[int, str]]:
    """Return a key for sorting that puts batch 2 before batch 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(x), "") if x.isdigit() else (-1, x) for x in parts]


class Labels:
    """The labels that a file's texts stand for: a CSV does not tell 1 from "1", nor None from "".

    Parameters
    ----------
    levels : mapping
        Column -> its levels: items, and columns of the context.
    """

    def __init__(self, levels: Mapping[str, Sequence[Level]]) -> None:
        self.by_text = {c: {str(x): x for x in labels} for c, labels in levels.items()}

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a table in which values that are written like a level are that level."""
        for c, label_of in self.by_text.items():
            if c in frame.columns:
                values = [label_of.get(str(x), x) for x in frame[c]]
                # with None at the end, numpy makes no array of numbers or texts of them
                frame[c] = np.array([*values, None], object)[:-1]
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
    label_columns = list(labels.by_text) if labels else []
    checks.known(columns, [*OUR_NAMES, *label_columns], "columns: name", error=ConfigError)
    text = {columns.get(c, c): str for c in (*TEXTS, "item", *label_columns)}
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
            table = rename_columns(frame, columns, path)
            checks.columns(table, needed, str(path))
            for c in needed:
                gaps = int(table[c].isna().sum())
                if gaps:
                    raise DataError(f"{path}: column {c!r} is empty in {gaps:,} rows")
            yield table if labels is None else labels.apply(table)
    except (OSError, ValueError) as error:
        if isinstance(error, DynChoiceError):
            raise
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def rename_columns(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Return a table with the file's names turned into ours."""
    checks.columns(frame, columns.values(), str(path))
    # a column of the file that happens to bear the name of ours is not the one that is meant
    taken = [name for name in columns if name in frame.columns and name not in columns.values()]
    our_name = {theirs: ours for ours, theirs in columns.items()}
    return frame.drop(columns=taken).rename(columns=our_name)
