"""What a panel's rows must be, and the messages about rows that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dynchoice import checks
from dynchoice.errors import DataError, first_few, suggest
from dynchoice.panel.states import StateSpace
from dynchoice.typing import Level

if TYPE_CHECKING:
    import ibis.expr.types as ir

OFFENDERS = 3
"""How many offenders of a kind a message shows."""
MOST_WEIGHT = 1e300
"""A weight from here on is refused: sums of such would be infinite."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Columns as the user names them, and the labels that they may hold."""

    member: str
    time: str
    choice: str
    axes: dict[str, str]
    segment: str | None
    region: str | None
    weights: str | None
    decision: str | None
    states: StateSpace
    choices: tuple[Level, ...]


class Rule(NamedTuple):
    """One thing that rows are checked for.

    ``broken`` says by row whether it breaks the rule (null counts as no), ``column`` names the
    column of the offending value, ``kind`` is ``"missing"``, ``"unknown"``, ``"decision"`` or
    ``"weight"``, and ``axis`` is the state axis that the rule is about, or None.
    """

    broken: ir.BooleanValue
    column: str
    kind: str
    axis: str | None = None


def options(invalid: str, buckets: int) -> None:
    """Check the options ``invalid`` and ``buckets`` of a panel.

    Raises
    ------
    SpecificationError
        ``invalid`` is neither ``"raise"`` nor ``"drop"``; fewer than 2 buckets.
    """
    checks.one_of(invalid, "invalid", ("raise", "drop"))
    checks.whole(buckets, "buckets", 2)


def like_months(time: str) -> str:
    """Return what to say of integers that look like months."""
    return (
        f"column {time!r} looks like YYYYMM, where December and January are not consecutive"
        " integers: pass freq='month' (or freq='integer' to count as is)"
    )


def weight_is_good(weight: ir.NumericColumn) -> ir.BooleanValue:
    """Return whether each weight is a positive number; null where there is none."""
    return (weight > 0) & (weight < MOST_WEIGHT)


def rules(names: Names, rows: ir.Table) -> dict[str, Rule]:
    """Return what coded rows are checked for, by the name that messages and reports give it."""
    by_name = {
        f"missing {names.member!r} (member)": Rule(rows.member.isnull(), "raw_time", "missing"),
        f"missing or unreadable {names.time!r} (time)": Rule(
            rows.period.isnull(), "raw_time", "missing"
        ),
        f"missing {names.choice!r} (choice)": Rule(
            rows.raw_choice.isnull(), "raw_choice", "missing"
        ),
        f"unknown choice in {names.choice!r}": Rule(
            rows.choice.isnull() & rows.raw_choice.notnull(), "raw_choice", "unknown"
        ),
    }
    for k, axis in enumerate(names.states.axes):
        column = f"raw_axis_{k}"
        raw, code = rows[column], rows[f"axis_{k}"]
        label = f"{names.axes[axis]!r} (state axis {axis})"
        by_name[f"missing {label}"] = Rule(raw.isnull(), column, "missing", axis)
        by_name[f"unknown level in {label}"] = Rule(
            code.isnull() & raw.notnull(), column, "unknown", axis
        )
    for group, source in (("segment", names.segment), ("region", names.region)):
        if source:
            by_name[f"missing {source!r} ({group})"] = Rule(rows[group].isnull(), group, "missing")
    if names.decision:
        by_name[f"not 0 or 1 in {names.decision!r} (decision)"] = Rule(
            rows.decides.isnull(), "decides", "decision"
        )
    if names.weights:
        by_name[f"weight not positive in {names.weights!r}"] = Rule(
            rows.weight.isnull() | ~weight_is_good(rows.weight), "weight", "weight"
        )
    return by_name


def describe_bad_rows(
    names: Names, rows: ir.Table, bad: list[tuple[str, int]], total: int, offenders: bool = True
) -> str:
    """Return what is wrong with how many rows, the first of each kind, and what to do.

    Parameters
    ----------
    bad : list of (name of a rule, number of rows that break it)
    total : int
        Number of rows of the table.
    offenders : bool
        Whether to look the first offenders up.
    """
    lines = [f"{sum(c for _, c in bad):,} value(s) in {total:,} rows are refused:"]
    by_name = rules(names, rows)
    for name, count in bad:
        line = f"- {name}: {count:,} row(s)"
        if offenders:
            line += _describe_offenders(names, rows, by_name[name])
        lines.append(line)
    if offenders:
        pairs = rows.group_by(["member", "period"]).agg(copies=rows.count())
        doubled = int(pairs.filter(pairs.copies > 1).count().execute())
        if doubled:
            lines.append(f"- and {doubled:,} (member, time) pairs appear more than once")
    lines.append("Mend the table, or pass invalid='drop' to leave these rows out (reported).")
    return "\n".join(lines)


def _describe_offenders(names: Names, rows: ir.Table, rule: Rule) -> str:
    """Return the first rows that break a rule, and what their value may have meant."""
    few = (
        rows.filter(rule.broken.fill_null(False))
        .order_by(["member", "period"])
        .select("member", "raw_time", shown=rows[rule.column].cast("string"))
        .limit(OFFENDERS)
        .execute()
    )
    with_value = rule.kind in ("unknown", "weight")
    offenders = [
        f"member {r.member} at {r.raw_time}" + (f" ({r.shown!r})" if with_value else "")
        for r in few.itertuples()
    ]
    text = f", first: {first_few(offenders)}"
    if rule.kind != "unknown":
        return text
    labels = names.choices if rule.axis is None else names.states.axes[rule.axis]
    text += f".{suggest(few.shown.iloc[0], labels)}"
    if rule.axis is None:
        return f"{text} Choices: {', '.join(map(str, labels))}"
    return f"{text} Levels: {first_few(list(labels), 8)}"


def refuse_doubles(names: Names, rows: ir.Table) -> None:
    """Raise if a member has two rows in one period, with their number and the first ones."""
    doubles = (
        rows.group_by(["member", "period"])
        .agg(copies=lambda t: t.count(), first_time=lambda t: t.raw_time.min())
        .filter(lambda t: t.copies > 1)
    )
    total = doubles.agg(pairs=doubles.count(), copies=doubles.copies.sum()).execute()
    if int(total["pairs"].iloc[0]):
        few = doubles.order_by(["member", "period"]).limit(OFFENDERS).execute()
        offenders = [
            f"member {r.member} at {r.first_time} ({r.copies} rows)" for r in few.itertuples()
        ]
        raise DataError(
            f"{int(total['pairs'].iloc[0]):,} (member, time) pairs appear more than once"
            f" ({int(total['copies'].iloc[0]):,} rows), first: {first_few(offenders)}."
            f" Keep one row per {names.member!r} and {names.time!r}."
        )


def refuse_uneven(by_member: ir.Table) -> None:
    """Raise if a member's weight changes; ``by_member`` has each one's ``least`` and ``most``."""
    uneven = by_member.filter(by_member.least < by_member.most)
    count = int(uneven.count().execute())
    if count:
        few = uneven.order_by("member").limit(OFFENDERS).execute()
        raise DataError(
            f"the weight of {count:,} member(s) changes over time,"
            f" first: {first_few([f'member {m}' for m in few.member])}. A weight says how"
            " many members a history stands for: make it constant within a member."
        )
