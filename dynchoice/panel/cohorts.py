"""What became of whom: the panel as it was at an earlier date, and what its members did since.

Backtests and the calibration of past forecasts need both: counts up to an origin, without what was
known later, and the later choices of the members seen at the origin.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

from dynchoice.errors import SpecificationError
from dynchoice.panel import query
from dynchoice.panel.counts import period_label
from dynchoice.typing import Level

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.panel.panel import Panel

NAMES = itertools.count()


def period_of(panel: Panel, label: Level) -> int:
    """Return the number of a period, given as it reads in the data or as that number.

    Raises
    ------
    SpecificationError
        No period of the panel.
    """
    first, last = panel.span
    known = {period_label(p, panel.kind): p for p in range(first, last + 1)}
    number = label if isinstance(label, int) else known.get(str(label))
    if number is None or not first <= number <= last:
        names = list(known)
        raise SpecificationError(
            f"{label!r} is no period of the panel, which goes from {names[0]} to {names[-1]}"
        )
    return number


def until(panel: Panel, period: Level) -> Panel:
    """Return the panel as it was after ``period``: the counts of its rows up to then.

    A member's row of that period has no next state yet. The counts are those of a panel of these
    rows alone, to the bit; state axes that were derived from a member's past stay as they are.

    Parameters
    ----------
    panel : Panel
    period : label or int
        As it reads in the data (``"2017-11"``), or its running number.

    Raises
    ------
    SpecificationError
        No period of the panel.
    """
    last = period_of(panel, period)
    part = copy.copy(panel)
    for name in ("segments", "regions", "counts"):
        part.__dict__.pop(name, None)
    part._tally = None
    kept = panel.kept.filter(panel.kept.period <= last)
    part._total = int(kept.count().execute())
    part._refused = part._refused.iloc[:0]
    part.kept = part.rows = part._store(query.with_next(kept), f"until_{next(NAMES)}")
    part._set_span(part.rows)
    part._members = part._summary()
    part.report = part._report()
    return part


def followed(panel: Panel, origin: Level, horizon: int) -> pd.DataFrame:
    """Return what the members seen in one period chose later.

    Parameters
    ----------
    panel : Panel
    origin : label or int
        The period in which they are seen.
    horizon : int
        How many periods to follow them.

    Returns
    -------
    pandas.DataFrame
        ``segment``, ``state`` and ``choice`` at the origin (codes), ``period`` (1 is the next),
        ``later`` (code of the choice then) and ``n``: members (sum of weights) who have a row then.
    """
    at = period_of(panel, origin)
    rows = panel.kept
    own = ["member", "segment", "state", "choice", "weight"]
    begun = rows.filter(rows.period == at).select(own)
    after = rows.filter((rows.period > at) & (rows.period <= at + horizon))
    after = after.select("member", period=after.period - at, later=after.choice)
    keys = ["segment", "state", "choice", "period", "later"]
    return _weighed(begun.inner_join(after, "member"), keys)


def pairs(panel: Panel) -> pd.DataFrame:
    """Return choices of consecutive periods: ``segment``, ``choice``, ``later`` (codes), ``n``."""
    rows = panel.kept
    before = rows.select("member", "segment", "choice", "weight", period=rows.period + 1)
    after = rows.select("member", "period", later=rows.choice)
    return _weighed(before.inner_join(after, ["member", "period"]), ["segment", "choice", "later"])


def spells(panel: Panel, outside: int) -> pd.DataFrame:
    """Return how long members hold a plan: numbers at risk and lapsed by age of the spell.

    Parameters
    ----------
    panel : Panel
    outside : int
        Code of the choice that is no plan.

    Returns
    -------
    pandas.DataFrame
        ``segment``, ``age`` (1 in a spell's first period), ``seen`` (1 where the period before is
        known to be outside, so that the age is the spell's), ``last`` (1 in the panel's last
        period), ``lapsed`` (1: outside in the next period; 0: not; -1: not observed), ``n``.
    """
    import ibis

    rows = panel.kept
    r = rows.select("member", "segment", "weight", "period", inside=(rows.choice != outside))
    w = ibis.window(group_by="member", order_by="period")
    r = r.mutate(
        before=r.period.lag().over(w), was=r.inside.lag().over(w),
        after=r.period.lead().over(w), stays=r.inside.lead().over(w),
    )  # fmt: skip
    follows = (r.before == r.period - 1).fill_null(False)
    r = r.mutate(
        begins=(r.inside & ~(follows & r.was.fill_null(False))).cast("int64"),
        known=(follows & ~r.was.fill_null(True)).cast("int64"),
    )
    r = r.mutate(spell=r.begins.sum().over(ibis.window(group_by="member", order_by="period",
                                                       preceding=None, following=0)))  # fmt: skip
    r = r.filter(r.inside)
    own = ibis.window(group_by=["member", "spell"], order_by="period")
    whole = ibis.window(group_by=["member", "spell"])
    next_known = (r.after == r.period + 1).fill_null(False)
    lapsed = ibis.ifelse(next_known, (~r.stays.fill_null(True)).cast("int64"), -1)
    r = r.mutate(
        age=ibis.row_number().over(own) + 1, seen=r.known.max().over(whole), lapsed=lapsed,
        last=(r.period == panel.span[1]).cast("int64"),
    )  # fmt: skip
    return _weighed(r, ["segment", "age", "seen", "last", "lapsed"])


def _weighed(rows: Any, keys: list[str]) -> pd.DataFrame:
    """Count rows by keys, each as many members as its weight says, in order of the keys."""
    found = query.cell_counts(rows, keys).execute()
    found["n"] = found["weight"].astype(float) * found["rows"]
    found = found.sort_values([*keys, "weight"], kind="stable")
    out: pd.DataFrame = found.groupby(keys, as_index=False)["n"].sum()
    return out
