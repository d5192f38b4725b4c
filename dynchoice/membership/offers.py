"""Schedules of offers: which menu or bundle was in force, where and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice.errors import ColumnError, DataError, suggest
from dynchoice.panel.history import period_numbers
from dynchoice.typing import AnyArray

if TYPE_CHECKING:
    import pandas as pd


def need(df: pd.DataFrame, *columns: str) -> None:
    """Raise for the first column that the table does not have."""
    for name in columns:
        if name not in df.columns:
            raise ColumnError(f"the table has no column {name!r}.{suggest(name, df.columns)}")


def in_force(
    df: pd.DataFrame,
    offers: pd.DataFrame,
    axis: str,
    time: str,
    region: str | None,
    months: bool | None = None,
) -> AnyArray:
    """Return the menu or bundle in force in each row, from a schedule.

    ``offers`` has a column ``from`` (first period), one named like the axis, and one named like
    ``region`` where offers differ by region.

    Raises
    ------
    ColumnError, DataError
        No column ``from``; rows before the first offer.
    """
    need(offers, "from", axis)
    schedule = offers[offers[axis].notna()]
    if schedule.empty:
        raise DataError(f"the schedule of offers has no row that says {axis}")
    when = period_numbers(df[time], time, months)
    start = period_numbers(schedule["from"], "from")
    by_region = region is not None and region in schedule.columns
    out = np.full(len(df), None, dtype=object)
    groups = schedule[region].unique() if by_region else [None]
    for place in groups:
        mine = np.ones(len(schedule), dtype=bool)
        rows = np.ones(len(df), dtype=bool)
        if by_region:
            mine, rows = (schedule[region] == place).to_numpy(), (df[region] == place).to_numpy()
        order = np.argsort(start[mine], kind="stable")
        dates, labels = start[mine][order], schedule[axis].to_numpy()[mine][order]
        clash = (np.diff(dates) == 0) & (labels[1:] != labels[:-1])
        if clash.any():
            k = int(np.flatnonzero(clash)[0])
            raise DataError(
                f"the schedule of offers has both {labels[k]!r} and {labels[k + 1]!r} as {axis}"
                " from the same period on"
                + (f" in {place!r}" if by_region else "; name region= where they differ by region")
            )
        at = np.searchsorted(dates, when[rows], side="right") - 1
        found = np.where(at >= 0, labels[np.maximum(at, 0)], None)
        out[rows] = found
    missing = np.array([x is None for x in out])
    if missing.any():
        where = df.loc[missing].iloc[0]
        raise DataError(
            f"{int(missing.sum()):,} row(s) have no {axis} in the schedule of offers, first:"
            f" {time} {where[time]}" + (f", {region} {where[region]}" if region else "")
        )
    return out
