"""Schedules of offers: which menu or bundle was in force, where and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError
from dynchoice.panel.history import period_numbers
from dynchoice.typing import AnyArray

if TYPE_CHECKING:
    import pandas as pd


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
        A missing column; two offers from the same period on; rows before the first offer.
    """
    checks.columns(offers, ("from", axis), "schedule of offers")
    schedule = offers[offers[axis].notna()]
    if schedule.empty:
        raise DataError(f"the schedule of offers has no row that says {axis}")
    when = period_numbers(df[time], time, months)
    start = period_numbers(schedule["from"], "from")
    by_region = region is not None and region in schedule.columns
    out = np.full(len(df), None, dtype=object)
    for place in schedule[region].unique() if by_region else [None]:
        entries = np.ones(len(schedule), dtype=bool)
        rows = np.ones(len(df), dtype=bool)
        if by_region:
            entries = (schedule[region] == place).to_numpy()
            rows = (df[region] == place).to_numpy()
        order = np.argsort(start[entries], kind="stable")
        dates, labels = start[entries][order], schedule[axis].to_numpy()[entries][order]
        clash = (np.diff(dates) == 0) & (labels[1:] != labels[:-1])
        if clash.any():
            k = int(np.flatnonzero(clash)[0])
            raise DataError(
                f"the schedule of offers has both {labels[k]!r} and {labels[k + 1]!r} as {axis}"
                " from the same period on"
                + (f" in {place!r}" if by_region else "; name region= where they differ by region")
            )
        latest = np.searchsorted(dates, when[rows], side="right") - 1
        out[rows] = np.where(latest >= 0, labels[np.maximum(latest, 0)], None)
    missing = np.array([x is None for x in out])
    if missing.any():
        row = df.loc[missing].iloc[0]
        raise DataError(
            f"{int(missing.sum()):,} row(s) have no {axis} in the schedule of offers, first:"
            f" {time} {row[time]}" + (f", {region} {row[region]}" if region else "")
        )
    return out
