"""The panel as it was at an earlier date, and what its members chose afterwards.

Backtests and the calibration of past forecasts need both: counts up to an origin, without what was
known later, and the later choices of the members seen at the origin.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.panel import query
from dynchoice.panel.counts import period_label
from dynchoice.typing import Level

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from dynchoice.panel.panel import Panel

NUMBERS = itertools.count()
"""Numbers of the temporary tables that :func:`until` makes: no two may be named alike."""


def period_of(panel: Panel, label: Level) -> int:
    """Return the number of a period, given as it reads in the data or as that number.

    Raises
    ------
    SpecificationError
        No period of the panel.
    """
    first, last = panel.span
    by_label = {period_label(p, panel.kind): p for p in range(first, last + 1)}
    number = label if isinstance(label, int) else by_label.get(str(label))
    if number is None or not first <= number <= last:
        names = list(by_label)
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
    for name in ("segments", "regions", "counts"):  # cached of the whole panel
        part.__dict__.pop(name, None)
    part._tally = None
    kept = panel.kept.filter(panel.kept.period <= last)
    part._total = int(kept.count().execute())
    part._refused = part._refused.iloc[:0]
    part.kept = part.rows = part._store(query.add_next_states(kept), f"until_{next(NUMBERS)}")
    part._set_span(part.rows)
    part._totals = part._summarise()
    part.report = part._make_report()
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
    first = period_of(panel, origin)
    rows = panel.kept
    at_origin = rows.filter(rows.period == first)
    at_origin = at_origin.select("member", "segment", "state", "choice", "weight")
    after = rows.filter((rows.period > first) & (rows.period <= first + horizon))
    after = after.select("member", period=after.period - first, later=after.choice)
    keys = ["segment", "state", "choice", "period", "later"]
    return _count_members(at_origin.inner_join(after, "member"), keys)


def pairs(panel: Panel) -> pd.DataFrame:
    """Return choices of consecutive periods: ``segment``, ``choice``, ``later`` (codes), ``n``."""
    rows = panel.kept
    before = rows.select("member", "segment", "choice", "weight", period=rows.period + 1)
    after = rows.select("member", "period", later=rows.choice)
    both = before.inner_join(after, ["member", "period"])
    return _count_members(both, ["segment", "choice", "later"])


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
    by_time = ibis.window(group_by="member", order_by="period")
    r = r.mutate(
        period_before=r.period.lag().over(by_time),
        inside_before=r.inside.lag().over(by_time),
        period_after=r.period.lead().over(by_time),
        inside_after=r.inside.lead().over(by_time),
    )
    # a row before or after counts only where no period lies between: a gap ends a spell
    follows = (r.period_before == r.period - 1).fill_null(False)
    r = r.mutate(
        begins=(r.inside & ~(follows & r.inside_before.fill_null(False))).cast("int64"),
        begin_known=(follows & ~r.inside_before.fill_null(True)).cast("int64"),
    )
    up_to_now = ibis.window(group_by="member", order_by="period", preceding=None, following=0)
    r = r.mutate(spell=r.begins.sum().over(up_to_now))
    r = r.filter(r.inside)
    in_order = ibis.window(group_by=["member", "spell"], order_by="period")
    whole_spell = ibis.window(group_by=["member", "spell"])
    next_known = (r.period_after == r.period + 1).fill_null(False)
    lapsed = ibis.ifelse(next_known, (~r.inside_after.fill_null(True)).cast("int64"), -1)
    r = r.mutate(
        age=ibis.row_number().over(in_order) + 1,
        # the beginning of a spell is known in its first row only: all its rows take it from there
        seen=r.begin_known.max().over(whole_spell),
        lapsed=lapsed,
        last=(r.period == panel.span[1]).cast("int64"),
    )
    return _count_members(r, ["segment", "age", "seen", "last", "lapsed"])


def _count_members(rows: ir.Table, keys: Sequence[str]) -> pd.DataFrame:
    """Count rows by keys, each as many members as its weight says, in order of the keys."""
    cells = query.count_cells(rows, keys).execute()
    cells["n"] = cells["weight"].astype(float) * cells["rows"]
    # sums of floats depend on the order of what is added: weights are sorted too
    cells = cells.sort_values([*keys, "weight"], kind="stable")
    out: pd.DataFrame = cells.groupby(list(keys), as_index=False)["n"].sum()
    return out
