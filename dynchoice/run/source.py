"""Where a run's rows come from: files, a DuckDB file, or a database; credentials from outside.

A connection is a URL in which ``${NAME}`` stands for an environment variable. What such a variable
holds appears in no message, log, manifest or report.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
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
    from dynchoice.run.config import Run

logger = logging.getLogger("dynchoice.run")

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET = re.compile(r"pass|pw|secret|token|key|credential|sig|auth", re.IGNORECASE)
SEPARATORS, SHORTEST = re.compile(r"[/:@?#&=]"), 3
HIDDEN = "***"


def files_of(run: Run) -> list[Path]:
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


def variables(run: Run) -> list[str]:
    """Return the environment variables that the connection names."""
    return VARIABLE.findall(run.spec.data.connection or "")


def secrets(run: Run) -> list[str]:
    """Return what must not be shown: what these variables hold, as it is, quoted, and in parts.

    Of a whole URL every part counts: a driver may quote any of them, and where a password holds a
    slash or an at sign nobody can say which part it is.
    """
    values = {os.environ.get(name, "") for name in variables(run)}
    parts = {p for v in values if "://" in v for p in SEPARATORS.split(v.split("://", 1)[1])}
    whole = {v for v in values if v} | {p for p in parts if len(p) >= SHORTEST}
    shown = whole | {quote(v, safe="") for v in whole} | {unquote(v) for v in whole}
    shown |= {repr(v)[1:-1] for v in whole}
    return sorted(shown, key=len, reverse=True)


def hidden(text: str, run: Run) -> str:
    """Return a text without the values of the connection's variables."""
    for value in secrets(run):
        text = text.replace(value, HIDDEN)
    return text


def address(run: Run) -> str:
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
    whole = VARIABLE.fullmatch(text)  # one variable may hold the whole URL
    if whole:
        return os.environ[whole[1]]
    return VARIABLE.sub(lambda m: quote(os.environ[m[1]], safe=""), text)


def refuse_secrets(text: str, run: Run) -> None:
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
    given = [password] if password else []
    given += [v for k, v in query if SECRET.search(k)]
    if any(v != "VARIABLE" for v in given):
        raise ConfigError(f"{run.source}: data.connection holds a password. {how}")
    if not parts.scheme and not VARIABLE.fullmatch(text):
        raise ConfigError(
            f"{run.source}: data.connection is no URL such as"
            " postgres://user:${DATABASE_PASSWORD}@host/database"
        )


@contextmanager
def opened(run: Run) -> Iterator[Any]:
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
        found = files_of(run)
        check_readable(found or [run.path(p) for p in _listed(spec.path)])
        with told(run, first_few([p.name for p in found], 2)):
            if not is_csv(found[0]):
                check_names(found[0], used_columns(run))
            yield [str(p) for p in found]
        return
    if spec.duckdb is not None:
        file = run.path(spec.duckdb)
        check_readable([file])
        with told(run, spec.duckdb):
            con = connected(run, lambda ibis: ibis.duckdb.connect(file, read_only=True, **OFFLINE))
            try:
                con.raw_sql("SET enable_progress_bar = false")
                yield table_of(con, run)
            finally:
                con.disconnect()
        return
    url = address(run)
    with told(run, "the database"):
        con = connected(run, lambda ibis: ibis.connect(url))
        try:
            yield table_of(con, run)
        finally:
            close(con)


def _listed(path: Any) -> list[str]:
    return path if isinstance(path, list) else [path]


def close(con: Any) -> None:
    """Close a connection that may be lost already."""
    try:
        con.disconnect()
    except Exception as error:
        logger.debug("disconnect: %s", type(error).__name__)


def connected(run: Run, connect: Any) -> Any:
    """Return a connection, or say why there is none."""
    import ibis

    try:
        return connect(ibis)
    except (ImportError, ModuleNotFoundError) as error:
        raise MissingExtraError(
            f"{hidden(str(error), run)}: install ibis-framework with the extra of your database,"
            " as in pip install 'ibis-framework[postgres]'"
        ) from None
    except DynChoiceError:
        raise
    except Exception as error:
        if "know how to connect" in str(error):
            raise ConfigError(
                f"{run.source}: data.connection: {one_line(hidden(str(error), run))}; known are"
                " postgres, mysql, bigquery, snowflake and what else ibis has"
            ) from None
        text = one_line(hidden(str(error), run))
        if run.spec.data.duckdb is not None:
            if "lock" in text.lower():
                raise SourceError(
                    f"{run.spec.data.duckdb} is being written by another process: {text}"
                ) from None
            raise DataError(f"cannot open {run.spec.data.duckdb}: {text}") from None
        raise SourceError(f"cannot connect to {run.spec.data.connection}: {text}") from None


def table_of(con: Any, run: Run) -> Any:
    """Return the table of a connection; ibis quotes its name."""
    spec = run.spec.data
    name = str(spec.table)
    where = {"database": spec.schema_} if spec.schema_ else {}
    try:
        return con.table(name, **where)
    except Exception as error:
        text = one_line(hidden(str(error), run))
        if lost(error, text):
            raise
        known = tables_of(con, spec.schema_)
        place = f" in {spec.schema_!r}" if spec.schema_ else ""
        if known and name in known:
            raise DataError(f"cannot open the table {name!r}{place}: {text}") from None
        raise DataError(
            f"no table {name!r}{place}.{suggest(name, known)}"
            f" Tables: {first_few(known, 8) if known else 'none'}"
        ) from None


def tables_of(con: Any, schema: str | None) -> list[str]:
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
    """Refuse files that are not there, or that this user may not read."""
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
    "connection", "server closed", "terminating", "network", "timeout", "timed out", "broken pipe",
    "could not receive", "ssl",
)  # fmt: skip
"""Words by which drivers say that a database is gone; each has exceptions of its own."""
DRIVERS = ("duckdb", "_duckdb", "psycopg", "psycopg2", "ibis", "pyarrow", "sqlglot")
FULL = ("no space left", "failed to offload", "out of disk", "could not write")


def lost(error: BaseException, text: str) -> bool:
    """Return whether a driver says that its database is gone."""
    low = text.lower()
    return "Operational" in type(error).__name__ or any(w in low for w in LOST)


@contextmanager
def told(run: Run, what: str) -> Iterator[None]:
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
        text = one_line(hidden(str(error), run))
        if any(w in text.lower() for w in FULL):
            raise SourceError(f"the disk is full while {what} is read: {text}") from None
        if run.spec.data.connection is not None and lost(error, text):
            raise SourceError(f"{what} was lost while it was read: {text}") from None
        raise DataError(f"cannot read {what}: {text}") from None


NESTED = ("is_array", "is_struct", "is_map", "is_binary", "is_json", "is_geospatial")


def is_csv(path: Path) -> bool:
    """Return whether a file is read as CSV."""
    return ".csv" in path.name.lower()


def used_columns(run: Run) -> list[str]:
    """Return the columns of the rows that a run reads."""
    d = run.spec.data
    roles = [d.member, d.time, d.choice, d.segment, d.region, d.weights, d.decision, d.contract]
    axes = [a.column or name for name, a in (run.spec.axes or {}).items()]
    more = [*axes, *d.engagement.values(), *d.columns.values()]
    if run.spec.membership is not None:
        more += [name for name in run.states.axes if name not in d.engagement]
    return list(dict.fromkeys(x for x in (*roles, *more) if x is not None))


def check_columns(table: Any, used: Iterable[str]) -> None:
    """Refuse columns of lists, records or bytes: one value a row is needed.

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
    """Refuse a Parquet file in which a column that is used is there twice, capitals apart."""
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


def described(run: Run) -> Mapping[str, Any]:
    """Return where the rows are, for a manifest: without a secret."""
    spec = run.spec.data
    if spec.connection is not None:
        return {"connection": spec.connection, "schema": spec.schema_, "table": spec.table}
    if spec.duckdb is not None:
        return {"duckdb": spec.duckdb, "schema": spec.schema_, "table": spec.table}
    return {"path": spec.path}
