"""Plan histories longer than memory: some members at a time, all of their months together.

Where a member stands follows from its own months alone, so members can be read in parts. Each
part's contract levels are written down as Parquet, in a temporary folder that goes with the panel;
the panel counts those files as it counts any (:mod:`dynchoice.panel.grid`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice.errors import DataError
from dynchoice.membership.history import NOTHING_LEFT, Findings, Reading
from dynchoice.membership.names import CONTRACT
from dynchoice.memory import in_bytes, limit
from dynchoice.panel import checks
from dynchoice.panel.history import FIRST_MONTH, LAST_MONTH
from dynchoice.panel.panel import Panel
from dynchoice.panel.query import bucket_of, column, period_number
from dynchoice.panel.source import as_table

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd
    import pyarrow as pa


ROW_BYTES = 600
"""Bytes that a row takes while its contract level is derived, about."""
LEAST_ROWS, MOST_ROWS = 50_000, 4_000_000
"""Rows of a part: fewer would read the source too often, more save no time."""


def open_source(data: Any, used: list[str], memory: str | int | None) -> tuple[ir.Table, int]:
    """Return the columns that a history uses as a table, and its number of rows.

    Raises
    ------
    ColumnError, DataError
        A column is missing; no such file.
    """
    bound = limit() // 2 if memory is None else in_bytes(memory)
    table, _ = as_table(data, used, bound // 2)
    fields = {name: column(table, name, "plan history") for name in used}
    # identifiers that neither pandas nor Parquet has a type for
    fields = {k: x.cast("string") if x.type().is_uuid() else x for k, x in fields.items()}
    return table.select(**fields), int(table.count().execute())


def panel_by_parts(
    reading: Reading, table: ir.Table, rows: int, options: Mapping[str, Any]
) -> Panel:
    """Return the panel of a long history, read some members at a time.

    ``options`` are the arguments of :class:`dynchoice.Panel`.

    Raises
    ------
    DataError
        What is wrong with the first part where something is; no room for the files.
    """
    memory, progress = options.get("memory"), options.get("progress")
    bound = limit() // 2 if memory is None else in_bytes(memory)
    parts = -(-rows // max(min(MOST_ROWS, bound // (2 * ROW_BYTES)), LEAST_ROWS))
    reading = replace(reading, months=_months(table, reading, options.get("freq")))
    schema = part_schema(reading, table)
    part_of_row = member_parts(table, reading.member, parts)
    folder = _make_folder(rows)
    findings, done = Findings(), 0
    undo = ExitStack()
    undo.callback(_remove, folder, os.getpid())
    try:
        for part in range(parts):
            if progress is not None:
                progress(done, rows, f"plan histories, part {part + 1} of {parts}")
            frame = table.filter(part_of_row == part).execute()
            done += len(frame)
            if len(frame):
                try:
                    made = reading.derive(frame, findings)
                except DataError as error:
                    raise type(error)(
                        f"{error} (in part {part + 1} of {parts} of the members; the others were"
                        " not looked at)"
                    ) from error
                _write(made, schema, folder / f"part-{part:05d}.parquet", rows)
        if progress is not None:
            progress(rows, rows, "plan histories")
        if findings.lost == findings.rows:
            raise DataError(NOTHING_LEFT)
        panel = Panel(sorted(folder.iterdir()), **options)
        undo.pop_all()
    finally:
        undo.close()
        findings.warn(reading.club, 4)
    # with the engine, which whatever reads the files holds: queries, and copies of the panel
    weakref.finalize(panel.engine, _remove, folder, os.getpid())
    return panel


def member_parts(table: ir.Table, member: str, parts: int) -> ir.Value:
    """Return the part (0 to parts - 1) of each row's member.

    By the engine's own hash where it has one: buckets go by the last characters of an id, which
    may be the same for all (``@example.com``).
    """
    from ibis.common.exceptions import OperationNotDefinedError

    ids = table[member]
    hashed: Any = ids.hash()
    try:
        table._find_backend().compile(table.select(hashed=hashed))
    except OperationNotDefinedError:
        hashed = bucket_of(ids, 16 * parts)
    # members without an id are refused like any other wrong row, and must be read for that
    return (hashed % parts + parts).fill_null(0) % parts


def _months(table: ir.Table, reading: Reading, freq: str | None) -> bool | None:
    """Return whether times read as ``YYYYMM``: all rows decide, not those of a part.

    Raises
    ------
    SpecificationError, DataError
        A time or ``freq`` that no panel takes: said before anything is read.
    """
    when = table[reading.time]
    period_number(when, freq)
    if reading.months is not None or not when.type().is_numeric():
        return reading.months
    month = when % 100
    odd = ((month < 1) | (month > 12)).sum()
    ends = table.agg(first=when.min(), last=when.max(), odd=odd).execute().iloc[0]
    alike = bool(ends["first"] >= FIRST_MONTH and ends["last"] <= LAST_MONTH and not ends["odd"])
    if alike and freq is None:
        raise DataError(checks.like_months(reading.time))
    return alike


def _make_folder(rows: int) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="dynchoice-history-"))
    except OSError as error:
        raise _no_room(error, rows) from error


def _write(made: pd.DataFrame, schema: pa.Schema, target: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not len(made):
        return
    try:
        pq.write_table(pa.Table.from_pandas(made, schema=schema, preserve_index=False), target)
    except OSError as error:
        raise _no_room(error, rows) from error


def _no_room(error: OSError, rows: int) -> DataError:
    return DataError(
        f"cannot write temporary files in {tempfile.gettempdir()} ({error}): a history of {rows:,}"
        " rows needs room for a copy of the columns it uses; TMPDIR names another place"
    )


def _remove(folder: Path, maker: int) -> None:
    """Remove the files, in the process that made them: a forked one only inherits them."""
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)


def part_schema(reading: Reading, table: ir.Table) -> pa.Schema:
    """Return the columns of a part: a part without any value knows no type of its own.

    Raises
    ------
    DataError
        Labels of several types in the schedule of offers.
    """
    import pyarrow as pa

    source = table.schema().to_pyarrow()
    types = {name: source.field(name).type for name in (reading.member, reading.time)}
    types[reading.plan] = source.field(reading.plan).type
    types[CONTRACT] = pa.string()
    types |= dict.fromkeys(reading.use, pa.int64())
    for axis in reading.by_schedule:
        assert reading.offers is not None
        labels = reading.offers[axis]
        try:
            types[axis] = pa.array(labels[labels.notna()]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"offers: column {axis!r} mixes types ({error}); write all labels alike"
            ) from error
    types |= {axis: source.field(column).type for axis, column in reading.columns.items()}
    types |= {name: source.field(name).type for name in reading.kept}
    types |= dict.fromkeys(reading.use, pa.int64())  # a column kept as well is a number too
    return pa.schema(list(types.items()))
