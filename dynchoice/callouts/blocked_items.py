"""Items that a member may not see: their cap is reached, or a table blocks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.callouts.catalogue import Catalogue, as_texts, as_times
from dynchoice.errors import DataError
from dynchoice.typing import AnyArray, IntArray

if TYPE_CHECKING:
    import pandas as pd


def find_capped_pairs(
    catalogue: Catalogue, log: pd.DataFrame, since: float, now: float
) -> pd.DataFrame:
    """Return ``member``, ``item`` whose impressions in a time have reached the item's cap."""
    import pandas as pd

    checks.columns(log, ("member", "item", "time"), "the log")
    times = as_times(log["time"], "time")
    recent = (times >= since) & (times <= now)
    item = catalogue.item_codes(log["item"].to_numpy()[recent])
    pairs = pd.DataFrame({"member": as_texts(log["member"].to_numpy()[recent]), "item": item})
    shown = pairs.groupby(["member", "item"], sort=False).size().reset_index(name="n")
    full = shown[shown["n"].to_numpy() >= catalogue.caps[shown["item"].to_numpy(np.int64)]]
    labels = pd.Index(list(catalogue.items)).take(full["item"].to_numpy(np.int64))
    # members go out as they came in: as_texts was for counting only
    member_of_text = dict(zip(as_texts(log["member"]), log["member"], strict=True))
    return pd.DataFrame({"member": [member_of_text[m] for m in full["member"]], "item": labels})


def list_blocked_items(
    catalogue: Catalogue, members: AnyArray, blocked: pd.DataFrame | None
) -> tuple[IntArray, IntArray]:
    """Return what each member may not see: positions (n + 1,) into item codes."""
    import pandas as pd

    if blocked is None or not len(blocked):
        return np.zeros(len(members) + 1, np.int64), np.zeros(0, np.int64)
    checks.columns(blocked, ("member", "item"), "the table of blocked items")
    # ids of one table may be numbers and of another texts: what is written alike is one member
    index = pd.Index(as_texts(members))
    if not index.is_unique:
        raise DataError("members repeat: with blocked items each may be asked for once")
    row = index.get_indexer(pd.Index(as_texts(blocked["member"].to_numpy())))
    item = catalogue.item_codes(blocked["item"].to_numpy(), "blocked items")
    row, item = row[row >= 0], item[row >= 0]
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=len(members))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), item[order]
