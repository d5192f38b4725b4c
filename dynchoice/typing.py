"""Aliases of types used in every signature: arrays, labels and levels, tables, paths."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import ibis.expr.types as ir
    import pandas as pd
    import pyarrow as pa

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
AnyArray: TypeAlias = NDArray[Any]
Level: TypeAlias = Hashable
"""A level of a state axis or a choice: an int, a str, a bool or a float."""
Progress: TypeAlias = Callable[[int, int, str], None]
"""Called as ``progress(done, total, message)``; the command line draws bars with it."""
FilePath: TypeAlias = "str | os.PathLike[str]"
TableLike: TypeAlias = "pd.DataFrame | pa.Table | ir.Table | str | Path | list[str | Path]"
"""Rows as users have them: a pandas frame, a pyarrow table, an ibis table of any engine, or the
path(s) of Parquet or CSV files (a folder, a pattern with ``*``)."""
