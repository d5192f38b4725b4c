"""A member's value one period before: a state column that plan histories seldom carry."""

from __future__ import annotations

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, first_few
from dynchoice.typing import AnyArray

FIRST_MONTH, LAST_MONTH = 190001, 299912
"""Numbers between these look like ``YYYYMM``, if their last two digits are a month."""


def previous(
    df: pd.DataFrame, *, member: str, time: str, column: str, months: bool | None = None
) -> pd.Series:
    """Return a column's value one period before, missing at entry and after a gap.

    A plain ``groupby().shift()`` takes the previous *row*: across a gap that is a guess.

    Parameters
    ----------
    df : pandas.DataFrame
        One row per member and period, in any order.
    member, time, column : str
        ``time`` holds numbers (consecutive periods differ by one; ``YYYYMM`` reads as months),
        periods, dates or texts ``YYYY-MM`` (months).
    months : bool, optional
        Whether numbers read as ``YYYYMM``. Default: where all of them look like it.

    Returns
    -------
    pandas.Series
        Aligned with ``df``; drop the rows where it is missing, or say what they mean.

    Raises
    ------
    ColumnError
        A column is missing.
    DataError
        A time that cannot be read; a member with two rows in one period.

    Examples
    --------
    >>> import pandas as pd
    >>> df = pd.DataFrame({"id": [1, 1, 1], "month": ["2023-01", "2023-02", "2023-04"],
    ...                    "plan": ["none", "basic", "basic"]})
    >>> previous(df, member="id", time="month", column="plan").tolist()
    [nan, 'none', nan]
    """
    checks.columns(df, (member, time, column), "the table")
    period = period_numbers(df[time], time, months)
    rows = pd.DataFrame(
        {"member": df[member].to_numpy(), "period": period, "value": df[column].to_numpy()}
    )
    order = rows.sort_values(["member", "period"], kind="stable").index.to_numpy()
    rows = rows.loc[order]
    step = rows.groupby("member")["period"].diff()
    if (step == 0).any():
        members = rows.loc[step == 0, "member"].astype(str).unique().tolist()
        raise DataError(
            f"{int((step == 0).sum()):,} row(s) repeat a member and period, first: member"
            f" {first_few(members)}"
        )
    shifted = rows.groupby("member")["value"].shift().where(step == 1)
    return pd.Series(shifted.sort_index().to_numpy(), index=df.index, name=f"previous_{column}")


def period_numbers(when: pd.Series, name: str, months: bool | None = None) -> AnyArray:
    """Return periods as numbers that differ by one from one period to the next.

    Parameters
    ----------
    when : pandas.Series
        Numbers (``YYYYMM`` reads as months), periods, dates or texts ``YYYY-MM``.
    name : str
        Of the column, for messages.
    months : bool, optional
        Whether numbers read as ``YYYYMM``. Default: where all of them look like it.

    Raises
    ------
    DataError
        Missing values, or values that are no dates.
    """
    if when.isna().any():
        raise DataError(f"{int(when.isna().sum()):,} value(s) of {name!r} are missing")
    if pd.api.types.is_numeric_dtype(when.dtype):
        number = when.to_numpy(dtype=np.float64)
        if months is None:
            in_range = (number >= FIRST_MONTH) & (number <= LAST_MONTH)
            has_month = (number % 100 >= 1) & (number % 100 <= 12)
            months = bool(len(number)) and bool((in_range & has_month).all())
        if months:
            number = 12 * (number // 100) + number % 100  # YYYYMM
    elif isinstance(when.dtype, pd.PeriodDtype):
        number = when.astype("int64").to_numpy()
    else:
        text = when.astype(str).str.slice(0, 7)
        stamp = pd.to_datetime(text, format="%Y-%m", errors="coerce")
        if stamp.isna().any():
            bad = when[stamp.isna()].astype(str).unique().tolist()
            raise DataError(
                f"{int(stamp.isna().sum()):,} value(s) of {name!r} are no dates: {first_few(bad)}"
            )
        number = (12 * stamp.dt.year + stamp.dt.month).to_numpy()
    return np.asarray(number)
