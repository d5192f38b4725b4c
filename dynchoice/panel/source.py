"""Turns whatever a user passes as data into one ibis table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, MissingExtraError, first_few
from dynchoice.typing import TableLike

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa
    from ibis.backends.duckdb import Backend

LEAST = 200_000_000
"""Bytes that DuckDB gets at least: below, it cannot sort what it reads at a time."""


def connect_duckdb(memory: int | None = None) -> Backend:
    """Return a DuckDB connection that prints nothing and spills to the disk beyond ``memory``."""
    import tempfile

    import ibis

    con = ibis.duckdb.connect(temp_directory=str(Path(tempfile.gettempdir()) / "dynchoice-duckdb"))
    con.raw_sql("SET enable_progress_bar = false")
    con.raw_sql("SET preserve_insertion_order = false")
    if memory is not None:
        con.raw_sql(f"SET memory_limit = '{max(memory, LEAST) // 10**6}MB'")
    return con


def as_table(
    data: TableLike, used: list[str], memory: int | None = None
) -> tuple[ir.Table, Backend | None]:
    """Return data as an ibis table, and the DuckDB connection of our own that holds it or None.

    ``used`` names the columns that are needed; ``memory`` bounds the bytes that DuckDB holds: it
    takes the disk for the rest.

    Raises
    ------
    ColumnError, DataError
        A column is missing; a file cannot be found; a column mixes types.
    """
    try:
        import ibis
    except ImportError as error:  # pragma: no cover - base dependencies
        raise MissingExtraError(f"Panel needs ibis-framework[duckdb]: {error}") from None

    if isinstance(data, pd.DataFrame):
        return _from_frame(data, used, memory)
    if isinstance(data, ibis.Table):
        return data, None
    # known by its module: who passes no pyarrow table need not import pyarrow
    if type(data).__module__.startswith("pyarrow"):
        con = connect_duckdb(memory)
        return con.create_table("panel", data, temp=True), con
    if isinstance(data, (str, Path)) or (
        isinstance(data, (list, tuple)) and all(isinstance(p, (str, Path)) for p in data)
    ):
        return read_files(data, memory)
    raise DataError(
        f"data is a {type(data).__name__}; pass a pandas frame, a pyarrow table, Parquet or CSV"
        " path(s), or an ibis table"
    )


def _from_frame(
    data: pd.DataFrame, used: list[str], memory: int | None
) -> tuple[ir.Table, Backend]:
    """Return the used columns of a frame as a DuckDB table, and its connection."""
    checks.columns(data, used, "the table")
    doubled = data.columns[data.columns.duplicated()]
    if len(doubled):
        raise DataError(f"the frame has more than one column {doubled[0]!r}")
    frame = data[list(dict.fromkeys(used))].copy()
    for name in frame.columns:
        # DuckDB knows neither: categories become their labels, periods the date on which they start
        if isinstance(frame[name].dtype, (pd.CategoricalDtype, pd.PeriodDtype)):
            present = frame[name].notna()
            if isinstance(frame[name].dtype, pd.PeriodDtype):
                starts = frame[name].dt.start_time.dt.strftime("%Y-%m-%d")
                frame[name] = starts.where(present, None)
            else:
                plain = frame[name].astype(object).where(present, None)
                frame[name] = plain.infer_objects()
    try:
        con = connect_duckdb(memory)
        return con.create_table("panel", frame.reset_index(drop=True), temp=True), con
    except Exception as error:
        raise DataError(
            f"the frame cannot be read as a table ({error}); a column that mixes types is"
            " the usual cause: convert it to one"
        ) from error


def read_files(
    paths: str | Path | list[str | Path] | tuple[str | Path, ...], memory: int | None = None
) -> tuple[ir.Table, Backend]:
    """Return Parquet or CSV files as one lazy DuckDB table, and its connection.

    Raises
    ------
    DataError
        No such file; Parquet and CSV mixed; files that cannot be read.
    """
    import glob

    names = [str(p) for p in (paths if isinstance(paths, (list, tuple)) else [paths])]
    names = [f"{n}/*.parquet" if Path(n).is_dir() else n for n in names]
    files = [f for n in names for f in (sorted(glob.glob(n)) if "*" in n else [n])]
    absent = [f for f in files if not Path(f).exists()]
    if absent or not files:
        raise DataError(f"no such file: {first_few(absent or names)}")
    kinds = {("csv" if ".csv" in Path(f).name.lower() else "parquet") for f in files}
    if len(kinds) > 1:
        raise DataError(f"files mix Parquet and CSV: {first_few(files)}")
    con = connect_duckdb(memory)
    literal = [glob.escape(f) for f in files]  # DuckDB takes [ ] ? in names for patterns
    try:
        return (con.read_csv(literal) if kinds == {"csv"} else con.read_parquet(literal)), con
    except Exception as error:
        raise DataError(f"cannot read {first_few(files)}: {error}") from error


def stream(con: Backend | None, table: ir.Table) -> Iterator[pa.RecordBatch]:
    """Yield a query's result as Arrow batches, whatever the version of DuckDB.

    ``con`` is the DuckDB connection that holds the table, or None: some engine of the user's.
    """
    import ibis
    import pyarrow as pa

    if con is None:
        yield from table.to_pyarrow().to_batches()
        return
    relation = con.con.sql(str(ibis.to_sql(table, dialect="duckdb")))
    yield from pa.RecordBatchReader.from_stream(relation)
