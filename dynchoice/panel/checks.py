"""What a panel's rows must be, and how rows that are not are told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynchoice.errors import DataError, SpecificationError, first_few, suggest
from dynchoice.panel.states import StateSpace
from dynchoice.typing import Level

if TYPE_CHECKING:
    import ibis.expr.types as ir

OFFENDERS = 3


@dataclass(frozen=True)
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


def options(invalid: str, buckets: int) -> None:
    """Raise for options that no panel has.

    Raises
    ------
    SpecificationError
    """
    if invalid not in ("raise", "drop"):
        raise SpecificationError(f"invalid={invalid!r}: use 'raise' or 'drop'")
    if buckets < 2:
        raise SpecificationError(f"buckets={buckets}: at least 2 are needed")


def like_months(time: str) -> str:
    """Return what to say of integers that look like months."""
    return (
        f"column {time!r} looks like YYYYMM, where December and January are not consecutive"
        " integers: pass freq='month' (or freq='integer' to count as is)"
    )


def rules(names: Names, rows: ir.Table) -> dict[str, tuple[Any, str]]:
    """Return rule name -> (predicate of bad rows, column of the offending value)."""
    found: dict[str, tuple[Any, str]] = {
        f"missing {names.member!r} (member)": (rows.member.isnull(), "raw_time"),
        f"missing or unreadable {names.time!r} (time)": (rows.period.isnull(), "raw_time"),
        f"missing {names.choice!r} (choice)": (rows.raw_choice.isnull(), "raw_choice"),
        f"unknown choice in {names.choice!r}": (
            rows.choice.isnull() & rows.raw_choice.notnull(),
            "raw_choice",
        ),
    }
    for k, name in enumerate(names.states.axes):
        raw, code = rows[f"raw_axis_{k}"], rows[f"axis_{k}"]
        label = f"{names.axes[name]!r} (state axis {name})"
        found[f"missing {label}"] = (raw.isnull(), f"raw_axis_{k}")
        found[f"unknown level in {label}"] = (code.isnull() & raw.notnull(), f"raw_axis_{k}")
    for group, column in (("segment", names.segment), ("region", names.region)):
        if column:
            found[f"missing {column!r} ({group})"] = (rows[group].isnull(), group)
    if names.decision:
        found[f"not 0 or 1 in {names.decision!r} (decision)"] = (rows.decides.isnull(), "decides")
    if names.weights:
        bad = rows.weight.isnull() | ~((rows.weight > 0) & (rows.weight < 1e300))
        found[f"weight not positive in {names.weights!r}"] = (bad, "weight")
    return found


def refusal(
    names: Names, rows: ir.Table, bad: list[tuple[str, int]], total: int, offenders: bool = True
) -> str:
    """Return what is wrong with how many rows, the first of each kind, and what to do."""
    lines = [f"{sum(c for _, c in bad):,} value(s) in {total:,} rows are refused:"]
    known = rules(names, rows)
    for name, count in bad:
        line = f"- {name}: {count:,} row(s)"
        if offenders:
            flag, value = known[name]
            few = (
                rows.filter(flag.fill_null(False))
                .order_by(["member", "period"])
                .select("member", "raw_time", shown=rows[value].cast("string"))
                .limit(OFFENDERS)
                .execute()
            )
            seen = [
                f"member {r.member} at {r.raw_time}"
                + (f" ({r.shown!r})" if "unknown" in name or "weight" in name else "")
                for r in few.itertuples()
            ]
            line += f", first: {first_few(seen)}"
            if "unknown choice" in name:
                line += f".{suggest(few.shown.iloc[0], names.choices)}"
                line += f" Choices: {', '.join(map(str, names.choices))}"
            elif "unknown level" in name:
                axis = name.split("state axis ")[1].rstrip(")")
                line += f".{suggest(few.shown.iloc[0], names.states.axes[axis])}"
                line += f" Levels: {first_few(list(names.states.axes[axis]), 8)}"
        lines.append(line)
    if offenders:
        pairs = rows.group_by(["member", "period"]).agg(copies=rows.count())
        doubled = int(pairs.filter(pairs.copies > 1).count().execute())
        if doubled:
            lines.append(f"- and {doubled:,} (member, time) pairs appear more than once")
    lines.append("Mend the table, or pass invalid='drop' to leave these rows out (reported).")
    return "\n".join(lines)


def refuse_doubles(names: Names, rows: ir.Table) -> None:
    """Raise if a member has two rows in one period, with their number and the first ones."""
    doubles = (
        rows.group_by(["member", "period"])
        .agg(copies=lambda t: t.count(), at=lambda t: t.raw_time.min())
        .filter(lambda t: t.copies > 1)
    )
    total = doubles.agg(pairs=doubles.count(), copies=doubles.copies.sum()).execute()
    if int(total["pairs"].iloc[0]):
        few = doubles.order_by(["member", "period"]).limit(OFFENDERS).execute()
        seen = [f"member {r.member} at {r.at} ({r.copies} rows)" for r in few.itertuples()]
        raise DataError(
            f"{int(total['pairs'].iloc[0]):,} (member, time) pairs appear more than once"
            f" ({int(total['copies'].iloc[0]):,} rows), first: {first_few(seen)}."
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
