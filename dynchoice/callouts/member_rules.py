"""What is one member's own: callouts not to be shown again, and weights of categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.callouts.catalogue import Catalogue, as_times
from dynchoice.errors import ColumnError, DataError, SpecificationError, suggest
from dynchoice.panel.states import as_floats
from dynchoice.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd


def check_table(frame: Any, what: str) -> None:
    """Refuse what is no table.

    Raises
    ------
    SpecificationError
        It has no columns.
    """
    if not hasattr(frame, "columns"):
        raise SpecificationError(f"{what} must be a pandas table, got a {type(frame).__name__}")


def as_texts(values: Any) -> AnyArray:
    """Return labels as they are written."""
    return np.array([str(x) for x in values], object)


def need(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    """Refuse a table that lacks a column.

    Raises
    ------
    ColumnError
        The first one missing.
    """
    check_table(frame, what)
    for c in columns:
        if c not in frame.columns:
            raise ColumnError(f"{what} lacks the column {c!r}.{suggest(c, frame.columns)}")


def capped_pairs(catalogue: Catalogue, log: pd.DataFrame, since: float, now: float) -> pd.DataFrame:
    """Return ``member``, ``item`` whose impressions in a time have reached the item's cap."""
    import pandas as pd

    need(log, ("member", "item", "time"), "the log")
    times = as_times(log["time"], "time")
    recent = (times >= since) & (times <= now)
    item = catalogue.item_codes(log["item"].to_numpy()[recent])
    pairs = pd.DataFrame({"member": as_texts(log["member"].to_numpy()[recent]), "item": item})
    seen = pairs.groupby(["member", "item"], sort=False).size().reset_index(name="n")
    full = seen[seen["n"].to_numpy() >= catalogue.caps[seen["item"].to_numpy(np.int64)]]
    labels = pd.Index(list(catalogue.items)).take(full["item"].to_numpy(np.int64))
    own = dict(zip(as_texts(log["member"]), log["member"], strict=True))
    return pd.DataFrame({"member": [own[m] for m in full["member"]], "item": labels})


def dirichlet_weights(
    catalogue: Catalogue, category: str | None, log: pd.DataFrame, strength: float
) -> pd.DataFrame:
    """Return each member's weights of categories (Teo et al. 2016), from clicks."""
    import pandas as pd

    if category is None:
        raise SpecificationError("members' weights need category=, a column of the catalogue")
    if not strength > 0:
        raise SpecificationError(f"strength={strength!r}: a positive number of clicks")
    need(log, ("member", "item"), "the log")
    levels = list(catalogue.levels[category])
    codes = catalogue.codes[category][catalogue.item_codes(log["item"].to_numpy())]
    nobody = int(log["member"].isna().sum())
    if nobody:
        raise DataError(f"the log has {nobody:,} clicks of no member")
    row, texts = pd.factorize(as_texts(log["member"]))
    first = np.unique(row, return_index=True)[1]
    names = log["member"].to_numpy()[first] if len(texts) else log["member"].to_numpy()[:0]
    counts = np.zeros((len(names), len(levels)))
    np.add.at(counts, (row, codes), 1.0)
    common = counts.sum(axis=0) + 1.0
    share = counts + strength * common / common.sum()
    share /= share.sum(axis=1, keepdims=True)
    return pd.DataFrame(share * len(levels), index=names, columns=levels)


def weight_table(
    catalogue: Catalogue, category: str | None, weights: Any, names: AnyArray
) -> FloatArray:
    """Return weights (members, categories); members that are not in the table weigh all alike."""
    C = 1 if category is None else len(catalogue.levels[category])
    if weights is None:
        return np.ones((len(names), C))
    if hasattr(weights, "columns"):
        if category is None:
            raise SpecificationError("weights need category=, a column of the catalogue")
        levels = list(catalogue.levels[category])
        need(weights, tuple(levels), "the table of weights")  # type: ignore[arg-type]
        own = weights.set_index("member") if "member" in weights.columns else weights
        own = own.set_axis(as_texts(own.index.to_numpy()))
        if not own.index.is_unique:
            raise DataError("members repeat in the table of weights")
        found = own[levels].reindex(as_texts(names))
        table = as_floats(found.to_numpy(float, na_value=np.nan), "weights")
        table = np.where(np.isnan(table), 1.0, table)
    else:
        table = as_floats(weights, "weights")
    if table.shape != (len(names), C):
        raise SpecificationError(f"weights are {table.shape}; needed: {(len(names), C)}")
    if not np.isfinite(table).all() or (table < 0).any():
        raise DataError("weights of categories must be numbers of at least 0")
    return np.ascontiguousarray(table)


def blocked_items(catalogue: Catalogue, names: AnyArray, blocked: Any) -> tuple[IntArray, IntArray]:
    """Return what each member may not see: positions (n + 1,) into item codes."""
    import pandas as pd

    if blocked is None or not len(blocked):
        return np.zeros(len(names) + 1, np.int64), np.zeros(0, np.int64)
    need(blocked, ("member", "item"), "the table of blocked items")
    # ids of one table may be numbers and of another texts: what is written alike is one member
    index = pd.Index(as_texts(names))
    if not index.is_unique:
        raise DataError("members repeat: with blocked items each may be asked for once")
    row = index.get_indexer(pd.Index(as_texts(blocked["member"].to_numpy())))
    item = catalogue.item_codes(blocked["item"].to_numpy(), "blocked items")
    row, item = row[row >= 0], item[row >= 0]
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=len(names))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), item[order]
