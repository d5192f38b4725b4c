"""Plan histories longer than memory: some members at a time, all of their months together.

Where a member stands follows from its own months alone, so members can be read in parts. Each
part's contract levels are written down as Parquet, in a temporary folder that goes with the panel;
the panel counts those files as it counts any (:mod:`dynchoice.panel.grid`).
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice.errors import DataError
from dynchoice.memory import in_bytes, limit
from dynchoice.model.terms import CONTRACT
from dynchoice.panel.panel import Panel
from dynchoice.panel.query import bucket_of, column
from dynchoice.panel.source import as_table

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

    from dynchoice.model.plan_history import Reading

ROW_BYTES = 600
"""Bytes that a row takes while its contract level is derived, about."""
PART_ROWS = 4_000_000
"""Rows of a part at most: more save no time."""


def count_of(data: Any, used: list[str], memory: str | int | None) -> tuple[ir.Table, int]:
    """Return data as a table, and its number of rows.

    Raises
    ------
    ColumnError, DataError
        A column is missing; no such file.
    """
    bound = limit() // 2 if memory is None else in_bytes(memory)
    table, _ = as_table(data, used, bound // 2)
    for name in used:
        column(table, name, "plan history")
    return table, int(table.count().execute())


def by_parts(reading: Reading, table: ir.Table, rows: int, told: Mapping[str, Any]) -> Panel:
    """Return the panel of a long history, read some members at a time.

    ``told`` are the arguments of :class:`dynchoice.Panel`.

    Raises
    ------
    DataError
        What is wrong with the first part where something is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dynchoice.model.plan_history import NOTHING_LEFT, Findings

    memory, progress = told.get("memory"), told.get("progress")
    bound = limit() // 2 if memory is None else in_bytes(memory)
    most = max(min(PART_ROWS, bound // (2 * ROW_BYTES)), 1)
    parts = -(-rows // most)
    who = table[reading.member]
    # members without an id are refused like any other wrong row, and must be read for that
    own = bucket_of(who, 16 * parts).fill_null(0) % parts
    schema = schema_of(reading, table)
    folder = Path(tempfile.mkdtemp(prefix="dynchoice-history-"))
    found, done = Findings(), 0
    try:
        for part in range(parts):
            if progress is not None:
                progress(done, rows, f"plan histories, part {part + 1} of {parts}")
            frame = table.filter(own == part).select(*reading.used).execute()
            done += len(frame)
            if not len(frame):
                continue
            try:
                made, here = reading.derive(frame)
            except DataError as error:
                raise type(error)(
                    f"{error} (in part {part + 1} of {parts} of the members; the others were not"
                    " looked at)"
                ) from error
            found.add(here)
            if len(made):
                out = pa.Table.from_pandas(made, schema=schema, preserve_index=False)
                pq.write_table(out, folder / f"part-{part:05d}.parquet")
        if progress is not None:
            progress(rows, rows, "plan histories")
        found.tell(reading.club, 4)
        if found.lost == found.rows:
            raise DataError(NOTHING_LEFT)
        panel = Panel(folder, **told)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(panel, shutil.rmtree, folder, ignore_errors=True)
    return panel


def schema_of(reading: Reading, table: ir.Table) -> pa.Schema:
    """Return the columns of a part: a part without any value knows no type of its own."""
    import pyarrow as pa

    source = table.schema().to_pyarrow()
    fields = {reading.member: reading.member, reading.time: reading.time}
    types = {name: source.field(column).type for name, column in fields.items()}
    types[reading.plan] = source.field(reading.plan).type
    types[CONTRACT] = pa.string()
    types |= {benefit: pa.int64() for benefit in reading.named}
    types |= {axis: pa.array(reading.offers[axis]).type for axis in reading.by_schedule}
    types |= {axis: source.field(column).type for axis, column in reading.columns.items()}
    types |= {name: source.field(name).type for name in reading.kept}
    return pa.schema(list(types.items()))
