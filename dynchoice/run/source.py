"""Where a run's rows come from: files, a DuckDB file, or a database; credentials from outside.

A connection is a URL in which ``${NAME}`` stands for an environment variable. What such a variable
holds appears in no message, log, manifest or report.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

from dynchoice.errors import (
    ConfigError,
    DataError,
    DynChoiceError,
    MissingExtraError,
    SourceError,
    first_few,
    suggest,
)

if TYPE_CHECKING:
    from dynchoice.run.config import Run

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET = re.compile(r"pass|pwd|secret|token|key|credential", re.IGNORECASE)
HIDDEN = "***"


def files_of(run: Run) -> list[Path]:
    """Return the files that hold the panel, sorted; none where a database does."""
    spec = run.spec.data
    if spec.connection is not None:
        return []
    if spec.duckdb is not None:
        return [run.path(spec.duckdb)]
    named = spec.path if isinstance(spec.path, list) else [str(spec.path)]
    out: list[Path] = []
    for name in named:
        path = run.path(name)
        if path.is_dir():
            out += sorted(path.glob("*.parquet"))
        elif "*" in name:
            out += [Path(p) for p in sorted(glob.glob(str(path)))]
        else:
            out.append(path)
    return list(dict.fromkeys(out))


def variables(run: Run) -> list[str]:
    """Return the environment variables that the connection names."""
    return VARIABLE.findall(run.spec.data.connection or "")


def secrets(run: Run) -> list[str]:
    """Return what must not be shown: the values of these variables, as they are and quoted."""
    values = [os.environ.get(name, "") for name in variables(run)]
    shown = {v for v in values if v} | {quote(v, safe="") for v in values if v}
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
    try:
        parts = urlsplit(plain)
        password, query = parts.password, parse_qsl(parts.query)
    except ValueError as error:
        raise ConfigError(f"{run.source}: data.connection is no URL: {error}") from None
    given = [password] if password else []
    given += [v for k, v in query if SECRET.search(k)]
    if any(v != "VARIABLE" for v in given):
        raise ConfigError(
            f"{run.source}: data.connection holds a password. Take it from the environment:"
            " postgres://user:${DATABASE_PASSWORD}@host/database"
        )
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
        with told(run, "the files"):
            yield [str(p) for p in found]
        return
    if spec.duckdb is not None:
        file = run.path(spec.duckdb)
        check_readable([file])
        with told(run, str(spec.duckdb)):
            con = connected(run, lambda ibis: ibis.duckdb.connect(file, read_only=True))
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
        import logging

        logging.getLogger("dynchoice.run").debug("disconnect: %s", type(error).__name__)


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
        raise SourceError(
            f"cannot connect to {run.spec.data.connection or run.spec.data.duckdb}:"
            f" {one_line(hidden(str(error), run))}"
        ) from None


def table_of(con: Any, run: Run) -> Any:
    """Return the table of a connection; ibis quotes its name."""
    spec = run.spec.data
    name = str(spec.table)
    where = {"database": spec.schema_} if spec.schema_ else {}
    try:
        known = con.list_tables(**where)
    except Exception as error:
        raise DataError(
            f"no schema {spec.schema_!r} in the database: {one_line(hidden(str(error), run))}"
        ) from None
    if name not in known:
        place = f" in {spec.schema_}" if spec.schema_ else ""
        raise DataError(
            f"no table {name!r}{place}.{suggest(name, known)} Tables: {first_few(sorted(known), 8)}"
        )
    return con.table(name, **where)


def check_readable(paths: list[Path]) -> None:
    """Refuse files that are not there, or that this user may not read."""
    absent = [str(p) for p in paths if not p.exists()]
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


LOST = (
    "connection", "server closed", "terminating", "network", "timeout", "timed out", "broken pipe",
    "could not receive", "ssl",
)  # fmt: skip
"""Words by which drivers say that a database is gone; each has exceptions of its own."""
DRIVERS = ("duckdb", "_duckdb", "psycopg", "psycopg2", "ibis", "pyarrow", "sqlglot")
FULL = ("no space left", "failed to offload", "out of disk", "could not write")


@contextmanager
def told(run: Run, what: str) -> Iterator[None]:
    """Turn what an engine raises while it reads into an error of this package."""
    try:
        yield
    except (DynChoiceError, KeyboardInterrupt, GeneratorExit, MemoryError):
        raise
    except Exception as error:
        module = type(error).__module__.split(".")[0]
        if module not in DRIVERS and not isinstance(error, OSError):
            raise
        text = one_line(hidden(str(error), run))
        low = text.lower()
        if any(w in low for w in FULL):
            raise SourceError(f"the disk is full while {what} is read: {text}") from None
        lost = "Operational" in type(error).__name__ or any(w in low for w in LOST)
        if lost and run.spec.data.connection is not None:
            raise SourceError(f"{what} was lost while it was read: {text}") from None
        raise DataError(f"cannot read {what}: {text}") from None


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
