"""What a click is worth: a table by item or attribute and context, read into arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import ColumnError, DataError, first_few, suggest
from dynchoice.panel.states import code_labels
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd

VALUE = "value"


def value_table(values: pd.DataFrame, policy: Any) -> Callable[[int], FloatArray]:
    """Return a function of a context's code to the value of a click on each item (I,).

    Parameters
    ----------
    values : pandas.DataFrame
        ``value`` and any columns of catalogue and context that it depends on; a row for each
        combination of their levels.
    policy : Callouts

    Raises
    ------
    ColumnError
        No column ``value``, or one that is neither of catalogue nor of context.
    DataError
        Combinations missing or twice; values that are no numbers, or all at most 0.
    """
    catalogue, context = policy.catalogue, policy.context
    axes = {} if context is None else context.axes
    if VALUE not in getattr(values, "columns", ()):
        raise ColumnError("the table of values needs a column 'value'")
    by = [c for c in values.columns if c != VALUE]
    unknown = [c for c in by if c not in axes and c not in catalogue.levels]
    if unknown:
        known = [*catalogue.levels, *axes]
        raise ColumnError(
            f"values depend on {unknown[0]!r}, no column of catalogue or context."
            f"{suggest(unknown[0], known)}"
        )
    levels = {c: axes[c] if c in axes else catalogue.levels[c] for c in by}
    kept = values
    for c in by:  # a table may speak of items or levels that are not here (yet)
        kept = kept[kept[c].isin(list(levels[c]))]
    shape = tuple(len(levels[c]) for c in by)
    at = tuple(code_labels(kept[c].to_numpy(), levels[c], f"column {c!r}") for c in by)
    flat = np.ravel_multi_index(at, shape) if by else np.zeros(len(kept), np.int64)
    size = int(np.prod(shape, dtype=np.int64))
    times = np.bincount(flat, minlength=size)
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
        named = [
            ", ".join(f"{c}={levels[c][int(i)]}" for c, i in zip(by, np.unravel_index(w, shape),
                                                                strict=True))
            for w in wrong[:3]
        ]  # fmt: skip
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
    table[flat] = numbers
    table = table.reshape(shape)

    def of(code: int) -> FloatArray:
        grid = (
            {}
            if context is None
            else dict(zip(axes, np.unravel_index(code, context.shape), strict=True))
        )
        where = tuple(int(grid[c]) if c in axes else catalogue.codes[c] for c in by)
        return np.ascontiguousarray(np.broadcast_to(table[where], (catalogue.size,)), float)

    return of


def text_of(frame: pd.DataFrame) -> str:
    """Return a table as JSON, numbers to their last digit; lists become texts with bars between."""

    def plain(x: Any) -> Any:
        if isinstance(x, list | tuple | np.ndarray):
            return "|".join(map(str, x))
        if isinstance(x, np.generic):
            return x.item()
        return None if x is None or x is pd.NA else x

    import pandas as pd

    return json.dumps({c: [plain(x) for x in frame[c].astype(object)] for c in frame.columns})


def frame_of(text: str) -> pd.DataFrame:
    """Return a table from its JSON."""
    import pandas as pd

    return pd.DataFrame(json.loads(text))
