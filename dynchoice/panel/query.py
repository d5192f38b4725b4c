"""The one ibis expression that turns rows of people into coded rows.

Everything here builds lazy expressions from the common subset of SQL (CASE, arithmetic, LEAD,
GROUP BY, COUNT), so that the same expression compiles for DuckDB, Spark and the warehouses.
Nothing is executed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynchoice import checks
from dynchoice.errors import ColumnError, SpecificationError, suggest
from dynchoice.names import ALL
from dynchoice.typing import Level

if TYPE_CHECKING:
    import ibis.expr.types as ir

DIALECTS = (
    "duckdb",
    "bigquery",
    "snowflake",
    "athena",
    "trino",
    "pyspark",
    "databricks",
    "postgres",
    "redshift",
    "clickhouse",
    "mssql",
    "mysql",
    "oracle",
)
"""Engines for which a count can be printed as SQL."""
FREQUENCIES = ("integer", "month", "quarter", "year")
PRIME = 1_048_573
"""Modulus of the buckets' polynomial: products of three remainders stay below 2**63."""
HASH_WEIGHTS = (1, 131, 17_161, 2_248_091)
"""Multipliers of the last four characters of a text id: a portable spread over buckets."""


def column(table: ir.Table, name: str, role: str) -> ir.Column:
    """Return a column, or say which role lacks it and which name is near."""
    if name not in table.columns:
        raise ColumnError(
            f"the table has no column {name!r} ({role}).{suggest(name, table.columns)}"
            f" Columns: {', '.join(table.columns[:20])}"
        )
    return table[name]


def without_nan(col: ir.Column) -> ir.Column:
    """Return the column with NaN as null; files of Parquet and Arrow may hold both."""
    import ibis

    return ibis.ifelse(col.isnan(), ibis.null(col.type()), col) if col.type().is_floating() else col


def level_code(col: ir.Column, levels: Sequence[Level]) -> ir.IntegerColumn:
    """Return the code of a column's value among the levels; null where it is none of them.

    Raises
    ------
    SpecificationError
        The levels are numbers and the column holds none.
    """
    import ibis

    null = ibis.null("int64")
    if col.type().is_boolean():
        col = col.cast("int64")
        levels = [int(x) if isinstance(x, bool) else x for x in levels]
    numeric = col.type().is_numeric()
    if all(isinstance(x, str) for x in levels):
        text = col if col.type().is_string() else col.cast("string")
        return text.cases(*[(x, i) for i, x in enumerate(levels)], else_=null).cast("int64")
    if not numeric:
        raise SpecificationError(
            f"column {col.get_name()!r} holds {col.type()}, its levels are numbers"
            f" ({levels[0]!r} ...): make both text or both numbers"
        )
    # evenly spaced whole levels are coded by arithmetic: a CASE of a thousand branches is slow
    values = [float(x) for x in levels]  # type: ignore[arg-type]
    step = values[1] - values[0] if len(values) > 1 else 1.0
    whole = all(v == int(v) for v in values)
    if whole and step > 0 and all(v == values[0] + i * step for i, v in enumerate(values)):
        first, width, n = int(values[0]), int(step), len(values)
        inside = (col >= first) & (col <= first + width * (n - 1))
        if col.type().is_integer() and width == 1:
            return ibis.ifelse(inside, col.cast("int64") - first, null)
        # engines refuse to cast what is out of range, so that is replaced before the cast
        safe = ibis.ifelse(inside, col, ibis.literal(first))
        whole_part = safe.cast("int64")
        fits = inside & (whole_part == safe) & ((whole_part - first) % width == 0)
        code = ((whole_part - first) / width).cast("int64") if width > 1 else whole_part - first
        return ibis.ifelse(fits, code, null)
    return col.cases(*[(x, i) for i, x in enumerate(levels)], else_=null).cast("int64")


def period_number(col: ir.Column, freq: str | None) -> tuple[ir.IntegerColumn, str]:
    """Return the time column as a running integer (null where it cannot be read) and its kind.

    Integers count periods one by one; dates and texts ``YYYY-MM[-DD]`` count months (or quarters
    or years, by ``freq``); integers with ``freq="month"`` read as ``YYYYMM``.

    Raises
    ------
    SpecificationError
        An unknown ``freq``, or one that the column's type cannot be read by; a time zone.
    """
    import ibis

    if freq is not None:
        checks.one_of(freq, "freq", FREQUENCIES)
    dtype = col.type()
    if dtype.is_integer() or dtype.is_floating():
        number = col.try_cast("int64") if dtype.is_floating() else col.cast("int64")
        if dtype.is_floating():
            number = ibis.ifelse(number.cast("float64") == col, number, ibis.null("int64"))
        if freq == "month":
            month = number % 100
            good = (month >= 1) & (month <= 12)
            months = ((number - month) / 100).cast("int64") * 12 + month - 1
            return ibis.ifelse(good, months, ibis.null("int64")), "month"
        if freq not in (None, "integer"):
            raise SpecificationError(
                f"freq={freq!r} needs dates or texts; column {col.get_name()!r} holds integers"
            )
        return number, "integer"
    if dtype.is_string():
        good = col.re_search(r"^\d{4}-(0[1-9]|1[0-2])")
        year = ibis.ifelse(good, col.substr(0, 4), ibis.null("string")).cast("int64")
        month = ibis.ifelse(good, col.substr(5, 2), ibis.null("string")).cast("int64")
    elif dtype.is_timestamp() and dtype.timezone is not None:
        raise SpecificationError(
            f"time column {col.get_name()!r} has the time zone {dtype.timezone}; engines read its"
            " month in UTC: convert it to local dates or 'YYYY-MM' first"
        )
    elif dtype.is_date() or dtype.is_timestamp():
        year, month = col.year().cast("int64"), col.month().cast("int64")
    else:
        raise SpecificationError(
            f"time column {col.get_name()!r} holds {dtype}; use integers, dates or 'YYYY-MM'"
        )
    kind = freq or "month"
    if kind == "integer":
        raise SpecificationError(f"freq='integer' needs integers, {col.get_name()!r} is {dtype}")
    if kind == "month":
        return year * 12 + month - 1, kind
    if kind == "quarter":
        return year * 4 + ((month - 1) / 3).floor().cast("int64"), kind
    return year, kind


def bucket_of(member: ir.Column, buckets: int) -> ir.IntegerColumn:
    """Return the member's bucket, the same on every engine (no engine hash function).

    A cubic polynomial modulo a prime: unlike a remainder or any linear rule it does not deal
    consecutive ids out evenly. Buckets that each held their share of every run of ids would be
    more alike than random ones, and errors resampled by bucket too small.
    """
    number: Any  # an ibis expression, whose arithmetic has no types
    if member.type().is_integer():
        number = member.cast("int64")
        number = _remainder(number, PRIME) + (number / PRIME).floor().cast("int64") % 7919
        number = _remainder(number, PRIME)
    else:
        text = member.cast("string")
        number = 0
        for k, weight in enumerate(HASH_WEIGHTS):
            char = text.right(k + 1).substr(0, 1)
            number = number + char.ascii_str().fill_null(0).cast("int64") * weight
        number = number % PRIME
    square = number * number % PRIME
    mixed = (square * number % PRIME + 48_271 * square + 69_621 * number + 12_345) % PRIME
    return (mixed % buckets).cast("int64")


def _remainder(number: ir.NumericValue, modulus: int) -> ir.NumericValue:
    """Return the remainder in 0 .. modulus - 1: SQL's has the sign of the number."""
    return (number % modulus + modulus) % modulus


def coded_rows(
    table: ir.Table,
    *,
    member: str,
    time: str,
    choice: str,
    axes: dict[str, tuple[str, tuple[Level, ...]]],
    choices: tuple[Level, ...],
    segment: str | None,
    region: str | None,
    weights: str | None,
    decision: str | None,
    freq: str | None,
    buckets: int,
) -> tuple[ir.Table, str]:
    """Return coded rows and the kind of period.

    Columns: ``member``, ``bucket``, ``period``, ``choice`` and ``axis_0`` ... (codes, null where
    unknown), ``state``, ``segment`` and ``region`` (texts), ``weight``, ``decides`` (0 or 1), and
    ``raw_...`` texts of what could not be coded.
    """
    import ibis

    member_id = without_nan(column(table, member, "member"))
    period, kind = period_number(column(table, time, "time"), freq)
    raw_choice = column(table, choice, "choice")
    fields: dict[str, ir.Value] = {
        "member": member_id,
        "bucket": bucket_of(member_id, buckets),
        "period": period,
        "choice": level_code(raw_choice, choices),
        "raw_time": table[time].cast("string"),
        "raw_choice": raw_choice.cast("string"),
    }
    state: Any = 0  # an ibis expression after the first axis; the last axis is fastest
    for k, (name, (source, levels)) in enumerate(axes.items()):
        col = column(table, source, f"state axis {name!r}")
        code = level_code(col, levels)
        fields[f"axis_{k}"] = code
        fields[f"raw_axis_{k}"] = col.cast("string")
        state = state * len(levels) + code
    fields["state"] = state.cast("int64")
    for group, source_of_group in (("segment", segment), ("region", region)):
        fields[group] = (
            without_nan(column(table, source_of_group, group)).cast("string")
            if source_of_group
            else ibis.literal(ALL)
        )
    fields["weight"] = (
        column(table, weights, "weights").try_cast("float64") if weights else ibis.literal(1.0)
    )
    if decision:
        fields["decides"] = level_code(column(table, decision, "decision"), (0, 1))
    else:
        fields["decides"] = ibis.literal(1, "int64")
    return table.select(**fields), kind


def add_next_states(rows: ir.Table) -> ir.Table:
    """Add ``next_period`` and ``next_state`` (-1 where the next month is not observed)."""
    import ibis

    window = ibis.window(group_by=[rows.member], order_by=[rows.period])
    ahead = rows.mutate(
        next_period=rows.period.lead().over(window), state_ahead=rows.state.lead().over(window)
    )
    follows = ahead.next_period == ahead.period + 1
    return ahead.mutate(
        next_state=ibis.ifelse(follows.fill_null(False), ahead.state_ahead, -1).cast("int64")
    ).drop("state_ahead")


def count_cells(rows: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Return numbers of coded rows by keys and weight: the query behind every count."""
    return rows.group_by([*keys, "weight"]).agg(rows=lambda t: t.count())
