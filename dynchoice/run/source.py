"""Where a run's rows come from: files, a DuckDB file, or a database; credentials from outside.

A connection is a URL in which ``${NAME}`` stands for an environment variable. What such a variable
holds appears in no message, log, manifest or report.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from dynchoice.errors import (
    ColumnError,
    ConfigError,
    DataError,
    DynChoiceError,
    MissingExtraError,
    SourceError,
    SpecificationError,
    first_few,
    suggest,
)

if TYPE_CHECKING:
    from types import ModuleType

    import ibis.expr.types as ir
    from ibis.backends import BaseBackend

    from dynchoice.run.inputs import Inputs

logger = logging.getLogger("dynchoice.run")

Rows: TypeAlias = "list[str | Path] | ir.Table"
"""What holds a run's rows while they are open: paths of files, or an ibis table."""

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET = re.compile(r"pass|pw|secret|token|key|credential|sig|auth", re.IGNORECASE)
SEPARATORS, SHORTEST = re.compile(r"[/:@?#&=]"), 3
HIDDEN = "***"


def files_of(run: Inputs) -> list[Path]:
    """Return the files that hold the panel, sorted; none where a database does."""
    spec = run.spec.data
    if spec.connection is not None:
        return []
    if spec.duckdb is not None:
        return [run.path(spec.duckdb)]
    named = spec.path if isinstance(spec.path, list) else [str(spec.path)]
    return list(dict.fromkeys(p for name in named for p in matching(run.path(name))))


def matching(path: Path) -> list[Path]:
    """Return the files that a path means: a folder's Parquet files, what a pattern matches."""
    try:
        if path.is_dir():
            return sorted(path.glob("*.parquet"))
        return [Path(p) for p in sorted(glob.glob(str(path)))] if "*" in str(path) else [path]
    except OSError:  # a name that cannot be: said when it is read
        return [path]


def variables(run: Inputs) -> list[str]:
    """Return the environment variables that the connection names."""
    return VARIABLE.findall(run.spec.data.connection or "")


def secrets(run: Inputs) -> list[str]:
    """Return what must not be shown: what these variables hold, as it is, quoted, and in parts.

    Of a whole URL every part counts: a driver may quote any of them, and where a password holds a
    slash or an at sign nobody can say which part it is.
    """
    values = {os.environ.get(name, "") for name in variables(run)}
    parts = {p for v in values if "://" in v for p in SEPARATORS.split(v.split("://", 1)[1])}
    plain = {v for v in values if v} | {p for p in parts if len(p) >= SHORTEST}
    forms = plain | {quote(v, safe="") for v in plain} | {unquote(v) for v in plain}
    forms |= {repr(v)[1:-1] for v in plain}
    # the longest first: a part of a secret must not be taken out of the whole
    return sorted(forms, key=len, reverse=True)


def hide_secrets(text: str, run: Inputs) -> str:
    """Return a text without the values of the connection's variables."""
    for value in secrets(run):
        text = text.replace(value, HIDDEN)
    return text


def read_address(run: Inputs) -> str:
    """Return the connection's URL with its variables filled in.

    Raises
    ------
    ConfigError
        A variable is not set; the URL holds a password itself.
    """
    text = run.spec.data.connection or ""
    refuse_secrets(text, run)
    missing = [n for n in variables(run) if not os.environ.get(n)]
    if missing:
        raise ConfigError(
            f"{run.source}: data.connection: the environment variable {missing[0]} is not set"
            f" (needed: {', '.join(variables(run))})"
        )
    alone = VARIABLE.fullmatch(text)  # one variable may hold the whole URL
    if alone:
        return os.environ[alone[1]]
    return VARIABLE.sub(lambda m: quote(os.environ[m[1]], safe=""), text)


def refuse_secrets(text: str, run: Inputs) -> None:
    """Raise where a connection holds a password, or is no URL."""
    plain = VARIABLE.sub("VARIABLE", text)
    how = (
        "Take it from the environment: postgres://user:${DATABASE_PASSWORD}@host/database (with"
        " letters such as / # ? in it, too)"
    )
    # what stands between user and host, whatever a reader of URLs makes of it
    inside = re.search(r"^[^/@:]*:(.*)@", re.sub(r"^[^/@:]*://", "", plain))
    if inside and inside[1] not in ("", "VARIABLE"):
        raise ConfigError(f"{run.source}: data.connection holds a password. {how}")
    try:
        parts = urlsplit(plain)
        password, query = parts.password, parse_qsl(parts.query)
        parts.port  # noqa: B018  raises where it is no number
    except ValueError:  # its text may hold what must not be shown
        raise ConfigError(
            f"{run.source}: data.connection is no URL such as"
            " postgres://user:${DATABASE_PASSWORD}@host/database"
        ) from None
    secret_parts = [password] if password else []
    secret_parts += [v for k, v in query if SECRET.search(k)]
    if any(v != "VARIABLE" for v in secret_parts):
        raise ConfigError(f"{run.source}: data.connection holds a password. {how}")
    if not parts.scheme and not VARIABLE.fullmatch(text):
        raise ConfigError(
            f"{run.source}: data.connection is no URL such as"
            " postgres://user:${DATABASE_PASSWORD}@host/database"
        )


@contextmanager
def opened(run: Inputs) -> Iterator[Rows]:
    """Yield what :class:`dynchoice.Panel` reads: paths, or an ibis table of a database.

    Raises
    ------
    ConfigError
        The connection cannot be as it is written.
    DataError
        A file that is not there or cannot be read; no such table.
    SourceError
        The database cannot be reached, or is lost while it is read.
    """
    spec = run.spec.data
    if spec.path is not None:
        paths = files_of(run)
        check_readable(paths or [run.path(p) for p in _listed(spec.path)])
        with explain_reading(run, first_few([p.name for p in paths], 2)):
            if not is_csv(paths[0]):
                check_names(paths[0], used_columns(run))
            yield list(map(str, paths))
        return
    if spec.duckdb is not None:
        file = run.path(spec.duckdb)
        check_readable([file])
        with explain_reading(run, spec.duckdb):
            con = connect(run, lambda ibis: ibis.duckdb.connect(file, read_only=True, **OFFLINE))
            try:
                con.raw_sql("SET enable_progress_bar = false")
                yield open_table(con, run)
            finally:
                con.disconnect()
        return
    url = read_address(run)
    with explain_reading(run, "the database"):
        con = connect(run, lambda ibis: ibis.connect(url))
        try:
            yield open_table(con, run)
        finally:
            close(con)


def _listed(path: str | list[str]) -> list[str]:
    return path if isinstance(path, list) else [path]


def close(con: BaseBackend) -> None:
    """Close a connection that may be lost already."""
    try:
        con.disconnect()
    except Exception as error:
        logger.debug("disconnect: %s", type(error).__name__)


def connect(run: Inputs, make: Callable[[ModuleType], BaseBackend]) -> BaseBackend:
    """Return a connection, or say why there is none."""
    import ibis

    try:
        return make(ibis)
    except (ImportError, ModuleNotFoundError) as error:
        text = hide_secrets(str(error), run)
        raise MissingExtraError(
            f"{text}: install ibis-framework with the extra of your database,"
            " as in pip install 'ibis-framework[postgres]'"
        ) from None
    except DynChoiceError:
        raise
    except Exception as error:
        text = one_line(hide_secrets(str(error), run))
        if "know how to connect" in str(error):
            raise ConfigError(
                f"{run.source}: data.connection: {text}; known are postgres, mysql, bigquery,"
                " snowflake and what else ibis has"
            ) from None
        if run.spec.data.duckdb is not None:
            if "lock" in text.lower():
                raise SourceError(
                    f"{run.spec.data.duckdb} is being written by another process: {text}"
                ) from None
            raise DataError(f"cannot open {run.spec.data.duckdb}: {text}") from None
        raise SourceError(f"cannot connect to {run.spec.data.connection}: {text}") from None


def open_table(con: BaseBackend, run: Inputs) -> ir.Table:
    """Return the table that the run file names; ibis quotes its name."""
    spec = run.spec.data
    name = str(spec.table)
    where = {"database": spec.schema_} if spec.schema_ else {}
    try:
        return con.table(name, **where)
    except Exception as error:
        text = one_line(hide_secrets(str(error), run))
        if says_lost(error, text):
            raise
        tables = list_tables(con, spec.schema_)
        place = f" in {spec.schema_!r}" if spec.schema_ else ""
        if name in tables:
            raise DataError(f"cannot open the table {name!r}{place}: {text}") from None
        raise DataError(
            f"no table {name!r}{place}.{suggest(name, tables)}"
            f" Tables: {first_few(tables, 8) or 'none'}"
        ) from None


def list_tables(con: BaseBackend, schema: str | None) -> list[str]:
    """Return the names of a connection's tables, as far as it tells."""
    try:
        if con.name == "duckdb":
            rows = con.raw_sql(
                "SELECT table_schema, table_name FROM information_schema.tables"
            ).fetchall()
            return sorted(t for s, t in rows if s == (schema or "main"))
        return sorted(con.list_tables(**({"database": schema} if schema else {})))
    except Exception as error:
        logger.debug("list of tables: %s", type(error).__name__)
        return []


def check_readable(paths: list[Path]) -> None:
    """Raise for files that are not there, or that this user may not read."""
    try:
        absent = [str(p) for p in paths if not p.exists()]
    except (OSError, ValueError) as error:  # a name that cannot be
        text = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {first_few([str(p)[:100] for p in paths])}: {text}") from None
    if absent:
        raise DataError(f"no such file: {first_few(absent)}")
    closed = [str(p) for p in paths if not os.access(p, os.R_OK)]
    if closed:
        raise DataError(f"no permission to read {first_few(closed)}")
    folders = [str(p) for p in paths if p.is_dir()]
    if folders:
        raise DataError(f"no Parquet file in the folder {first_few(folders)}")
    empty = [str(p) for p in paths if p.stat().st_size == 0]
    if empty:
        raise DataError(f"empty file: {first_few(empty)}")


OFFLINE = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
"""A file that is no DuckDB database must not send DuckDB to the network for what might read it."""
LOST = (
    "connection",
    "server closed",
    "terminating",
    "network",
    "timeout",
    "timed out",
    "broken pipe",
    "could not receive",
    "ssl",
)
"""Words by which drivers say that a database is gone; each has exceptions of its own."""
DRIVERS = ("duckdb", "_duckdb", "psycopg", "psycopg2", "ibis", "pyarrow", "sqlglot")
FULL = ("no space left", "failed to offload", "out of disk", "could not write")


def says_lost(error: BaseException, text: str) -> bool:
    """Return whether a driver says that its database is gone."""
    low = text.lower()
    return "Operational" in type(error).__name__ or any(w in low for w in LOST)


@contextmanager
def explain_reading(run: Inputs, what: str) -> Iterator[None]:
    """Turn what an engine raises while it reads into an error of this package that says where."""
    try:
        yield
    except (ColumnError, DataError) as error:
        raise type(error)(f"{what}: {error}") from error
    except SpecificationError as error:  # the run file has been checked: rows do not fit it
        raise DataError(f"{what}: {error}") from error
    except (DynChoiceError, KeyboardInterrupt, GeneratorExit, MemoryError):
        raise
    except Exception as error:
        module = type(error).__module__.split(".")[0]
        if module not in DRIVERS and not isinstance(error, (OSError, UnicodeError)):
            raise
        text = one_line(hide_secrets(str(error), run))
        if any(w in text.lower() for w in FULL):
            raise SourceError(f"the disk is full while {what} is read: {text}") from None
        if run.spec.data.connection is not None and says_lost(error, text):
            raise SourceError(f"{what} was lost while it was read: {text}") from None
        raise DataError(f"cannot read {what}: {text}") from None


NESTED = ("is_array", "is_struct", "is_map", "is_binary", "is_json", "is_geospatial")


def as_table(data: Rows) -> ir.Table:
    """Return rows that are open as one table."""
    from dynchoice.panel.source import read_files

    return read_files(data)[0] if isinstance(data, list) else data


def is_csv(path: Path) -> bool:
    """Return whether a file is read as CSV."""
    return ".csv" in path.name.lower()


def used_columns(run: Inputs) -> list[str]:
    """Return the columns of the rows that a run reads."""
    data = run.spec.data
    roles = ("member", "time", "choice", "segment", "region", "weights", "decision", "contract")
    names = [getattr(data, role) for role in roles]
    names += [a.column or name for name, a in (run.spec.axes or {}).items()]
    names += [*data.engagement.values(), *data.columns.values()]
    if run.spec.membership is not None:
        names += [name for name in run.states.axes if name not in data.engagement]
    return list(dict.fromkeys(x for x in names if x is not None))


def check_columns(table: ir.Table, used: Iterable[str]) -> None:
    """Raise for columns of lists, records or bytes: one value a row is needed.

    Raises
    ------
    DataError
        The first such column; columns that are missing are left to who reads them.
    """
    schema = table.schema()
    for name in used:
        kind = schema.get(name)
        if kind is not None and any(getattr(kind, test)() for test in NESTED):
            raise DataError(
                f"column {name!r} holds {kind}: one number, text or date a row is needed"
            )


def check_names(path: Path, used: Iterable[str]) -> None:
    """Raise for a Parquet file that has a used column twice, capitals apart."""
    import pyarrow.parquet as pq

    names = [str(n) for n in pq.read_schema(path).names]
    for name in used:
        same = [n for n in names if n.lower() == name.lower()]
        if len(same) > 1:
            raise DataError(
                f"more than one column is called {name!r}: {first_few([repr(n) for n in same])}"
            )


def one_line(text: str) -> str:
    """Return the first lines of a driver's message as one."""
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    return "; ".join(lines[:3])[:500]


def describe_source(run: Inputs) -> Mapping[str, object]:
    """Return where the rows are, for a manifest: without a secret."""
    spec = run.spec.data
    if spec.connection is not None:
        return {"connection": spec.connection, "schema": spec.schema_, "table": spec.table}
    if spec.duckdb is not None:
        return {"duckdb": spec.duckdb, "schema": spec.schema_, "table": spec.table}
    return {"path": spec.path}
