"""The value of a click: a table by item or attribute and context, read into arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.callouts.catalogue import Catalogue
from dynchoice.errors import ColumnError, DataError, first_few
from dynchoice.panel.states import StateSpace, code_labels
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd

VALUE = "value"


def read_values(
    values: pd.DataFrame, catalogue: Catalogue, context: StateSpace | None
) -> Callable[[int], FloatArray]:
    """Return a function of a context's code to the value of a click on each item (I,).

    Parameters
    ----------
    values : pandas.DataFrame
        ``value`` and any columns of catalogue and context that it depends on; a row for each
        combination of their levels.
    catalogue : Catalogue
    context : StateSpace, optional

    Raises
    ------
    ColumnError
        No column ``value``, or one that is neither of catalogue nor of context.
    DataError
        Combinations missing or twice; values that are no numbers, or all at most 0.
    """
    axes = {} if context is None else context.axes
    checks.columns(values, [VALUE], "the table of values")
    by = [c for c in values.columns if c != VALUE]
    checks.known(by, [*catalogue.levels, *axes], "the table of values: column", error=ColumnError)
    levels = {c: axes[c] if c in axes else catalogue.levels[c] for c in by}
    kept = values
    for c in by:  # a table may speak of items or levels that are not here (yet)
        kept = kept[kept[c].isin(list(levels[c]))]
    shape = tuple(len(levels[c]) for c in by)
    codes = tuple(code_labels(kept[c].to_numpy(), levels[c], f"column {c!r}") for c in by)
    cell = np.ravel_multi_index(codes, shape) if by else np.zeros(len(kept), np.int64)
    size = int(np.prod(shape, dtype=np.int64))
    times = np.bincount(cell, minlength=size)
    # items that have left the catalogue need no value
    live = ~catalogue.gone
    needed = np.ones(shape, bool)
    for axis, c in enumerate(by):
        if c in catalogue.levels:
            used = np.isin(np.arange(shape[axis]), catalogue.codes[c][live])
            needed &= used.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    bad = (times > 1) | ((times == 0) & needed.reshape(-1))
    if bad.any():
        wrong = np.flatnonzero(bad)
        named = []
        for w in wrong[:3]:
            places = zip(by, np.unravel_index(w, shape), strict=True)
            named.append(", ".join(f"{c}={levels[c][int(i)]}" for c, i in places))
        raise DataError(
            f"{len(wrong):,} combinations have no value or several (first: {first_few(named)}):"
            " one each is needed"
        )
    try:
        numbers = kept[VALUE].to_numpy(float)
    except (TypeError, ValueError):
        raise DataError("values must be numbers") from None
    if not np.isfinite(numbers).all():
        raise DataError(f"{int((~np.isfinite(numbers)).sum()):,} values are no numbers")
    table = np.zeros(size)
    table[cell] = numbers
    table = table.reshape(shape)

    def item_values(code: int) -> FloatArray:
        level_of = {}
        if context is not None:
            level_of = dict(zip(axes, np.unravel_index(code, context.shape), strict=True))
        cells = tuple(int(level_of[c]) if c in axes else catalogue.codes[c] for c in by)
        return np.ascontiguousarray(np.broadcast_to(table[cells], (catalogue.size,)), float)

    return item_values


def table_to_text(frame: pd.DataFrame) -> str:
    """Return a table as JSON, numbers to their last digit; lists become texts with bars between."""

    def plain(x: object) -> object:
        if isinstance(x, list | tuple | np.ndarray):
            return "|".join(map(str, x))
        if isinstance(x, np.generic):
            return x.item()
        return None if x is None or x is pd.NA else x

    import pandas as pd

    return json.dumps({c: [plain(x) for x in frame[c].astype(object)] for c in frame.columns})


def table_from_text(text: str) -> pd.DataFrame:
    """Return a table from its JSON."""
    import pandas as pd

    return pd.DataFrame(json.loads(text))
