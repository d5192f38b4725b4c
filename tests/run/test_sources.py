"""The same rows from Parquet, from DuckDB and from PostgreSQL: the same run; and no secret shown.

PostgreSQL is started here, with passwords, as in ``tests/panel/test_engines.py``: where CI is set
it must be there; elsewhere its absence is told and skipped.
"""

import contextlib
import difflib
import io
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest

from dynchoice.run import cli
from dynchoice.run.init import write_sample

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "draws = 100": "draws = 3",
    "periods = 24": "periods = 4",
    "picture = true": "picture = false",
}
SECRET = "s3cr3t/ with:odd@chars%41#?&é+'\""
"""A password that needs quoting wherever it goes."""
ODD = [("main", "my table"), ("my schema", 'a"b'), ('s"; drop schema public', "x; drop table y")]


def missing(what):
    """Skip for want of an engine, but not where all engines ought to be."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing: .ci/run installs all engines")
    pytest.skip(f"{what} is not installed")


def tool(name):
    """Path of one of PostgreSQL's programs."""
    found = shutil.which(name) or next(
        iter(sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))), None
    )
    return found or missing(f"PostgreSQL ({name})")


class Server:
    """A PostgreSQL server of our own, on 127.0.0.1, that wants passwords."""

    user, port = "me", 0

    def __init__(self, base):
        self.base = base
        # PostgreSQL refuses to run as root
        names = [p.pw_name for p in pwd.getpwall()]
        user = "postgres" if "postgres" in names else "nobody"
        self.lead = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []

    def tell(self, program, *args):
        done = subprocess.run(
            [*self.lead, tool(program), "-D", str(self.base / "data"), *args],
            capture_output=True, text=True, cwd="/", timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self):
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = f"-k {self.base} -c listen_addresses=127.0.0.1 -p {self.port} -F"
        self.tell("pg_ctl", "-w", "-o", options, "-l", str(self.base / "log"), "start")

    def stop(self):
        self.tell("pg_ctl", "-m", "immediate", "stop")

    def admin(self):
        """A connection that commits as it goes."""
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=SECRET,
            dbname="postgres", autocommit=True,
        )  # fmt: skip

    def url(self, password="${PGTESTPW}"):
        return f"postgres://{self.user}:{password}@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg") if not os.environ.get("CI") else None
    base = Path(tempfile.mkdtemp(prefix="dynchoice-pg-"))
    base.chmod(0o777)
    (base / "password").write_text(SECRET + "\n", encoding="utf-8")
    (base / "password").chmod(0o644)
    own = Server(base)
    own.tell("initdb", "-U", own.user, "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8",
             "--pwfile", str(base / "password"))  # fmt: skip
    own.start()
    try:
        yield own
    finally:
        own.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample of ``dynchoice init`` on a fifth of its members."""
    folder = tmp_path_factory.mktemp("sample") / "sample"
    write_sample(folder)
    text = (folder / "run.toml").read_text()
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "run.toml").write_text(text)
    rows = pd.read_parquet(folder / "members.parquet")
    rows[rows["member"] % 5 == 0].to_parquet(folder / "members.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def rows(sample):
    return pd.read_parquet(sample / "members.parquet")


@pytest.fixture(scope="module")
def parquet(sample):
    """What is published from the Parquet file."""
    code, said = here(sample)
    assert code == 0, said
    return read(sample / "out" / "current")


@pytest.fixture
def empty(sample, tmp_path):
    """The run file without rows: they come from elsewhere."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(sample / "run.toml", folder)
    return folder


@pytest.fixture(scope="module")
def loaded(server, rows):
    """The server with the rows, in another order."""
    with server.admin() as con:
        create(con, "public", "members", rows)
    return server


def create(con, schema, table, rows):
    """Write rows into a table of PostgreSQL, last first."""
    from psycopg import sql

    kinds = ["bigint" if pd.api.types.is_integer_dtype(k) else "text" for k in rows.dtypes]
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
        for name, kind in zip(rows.columns, kinds, strict=True)
    )
    where = sql.Identifier(schema, table)
    con.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    con.execute(sql.SQL("CREATE TABLE {} ({})").format(where, columns))
    with con.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(where)) as copy:
        for row in rows.iloc[::-1].itertuples(index=False):
            copy.write_row(row)


def from_elsewhere(folder, **keys):
    """Have the run file read from elsewhere."""
    text = (folder / "run.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("path = ")]
    at = lines.index(next(line for line in lines if line.startswith("[data]"))) + 1
    told = [f"{key} = {toml(value)}" for key, value in keys.items()]
    (folder / "run.toml").write_text("\n".join([*lines[:at], *told, *lines[at:]]) + "\n")


def toml(text):
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def command(folder, *args):
    return [sys.executable, "-m", "dynchoice", "forecast", str(folder / "run.toml"), *args]


def environment(folder, secret):
    """Our own temporary folder: a trace that is kept for a report of a mistake is looked at too."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    own = {"TMPDIR": str(temporary)} | ({} if secret is None else {"PGTESTPW": secret})
    return {k: v for k, v in os.environ.items() if k != "PGTESTPW"} | own


NO_REPORT = ("--set", "output.report=false")


def forecast(folder, *args, secret=SECRET, hidden=None):
    """Run a forecast in a process of its own; whatever happens, nobody sees the secret."""
    done = subprocess.run(
        command(folder, *args), capture_output=True, cwd=ROOT, timeout=120,
        env=environment(folder, secret),
    )  # fmt: skip
    unseen(folder, done.stdout + done.stderr, hidden or secret)
    return done.returncode, done.stderr.decode()


def here(folder, *args):
    """Run a forecast in this process, which is quicker."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGTESTPW", SECRET)
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = cli.main(["forecast", str(folder / "run.toml"), *args])
    unseen(folder, said.getvalue().encode(), SECRET)
    return code, said.getvalue()


def unseen(folder, said, secret):
    """Assert that a secret is in no output and no file below a folder, in whatever form."""
    if not secret:
        return
    forms = {secret, quote(secret, safe=""), quote(secret), secret.replace("'", "\\'")}
    forms |= {secret.encode("unicode_escape").decode(), repr(secret)[1:-1]}
    forms |= {part for part in re.split(r"[^A-Za-z0-9]", secret) if len(part) >= 6}
    for form in forms:
        assert form.encode() not in said, said.decode(errors="replace")
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert form.encode() not in path.read_bytes(), path


def read(run):
    """The bytes of a published run."""
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


OF_THE_SOURCE = re.compile(
    r"; digest [0-9a-f]{32}\.|<td>[0-9a-f]{64}</td>|&#34;(path|duckdb|connection|table|schema)&#34;"
)


def compared(folder, parquet, report=True):
    """Assert that a run is that of the Parquet file, but for what says where the rows were.

    The manifest names source, digests and times; the report the source, its files, the digests.
    """
    got = read(folder / "out" / "current")
    want = {name: b for name, b in parquet.items() if report or name != "report.html"}
    assert set(got) == set(want) and sum(n.endswith(".parquet") for n in got) >= 10
    differ = {name for name in got if got[name] != want[name]}
    assert differ == {"manifest.json"} | ({"report.html"} if report else set())
    if report:
        pages = [b["report.html"].decode().splitlines() for b in (got, want)]
        told = [x for x in difflib.ndiff(*pages) if x[0] in "+-"]
        assert told and all(OF_THE_SOURCE.search(line) for line in told), told


# the same run from everywhere --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "table"), ODD)
def test_duckdb_gives_the_same_run(empty, rows, parquet, schema, table):
    import duckdb
    import pyarrow as pa

    plain = schema == "main"
    names = [name.replace('"', '""') for name in (schema, table)]
    with duckdb.connect(str(empty / "warehouse.duckdb")) as con:
        con.register("given", pa.Table.from_pandas(rows.iloc[::-1], preserve_index=False))
        con.execute(f'CREATE SCHEMA IF NOT EXISTS "{names[0]}"')
        con.execute('CREATE TABLE "{}"."{}" AS SELECT * FROM given'.format(*names))
        con.execute("CREATE TABLE y AS SELECT 1 AS one")
    more = {} if plain else {"schema": schema}
    from_elsewhere(empty, duckdb="warehouse.duckdb", table=table, **more)
    report = () if plain else NO_REPORT
    code, said = here(empty, *report)
    assert code == 0, said
    compared(empty, parquet, report=plain)
    with duckdb.connect(str(empty / "warehouse.duckdb"), read_only=True) as con:
        assert con.execute("SELECT one FROM y").fetchone() == (1,)
    code, said = here(empty, *report, "--exit-code-unchanged", "99")
    assert code == 99, said


@pytest.mark.slow
def test_postgresql_gives_the_same_run(empty, loaded, parquet):
    from_elsewhere(empty, connection=loaded.url(), table="members")
    code, said = forecast(empty, "--log", "json")
    assert code == 0, said
    compared(empty, parquet)
    # it is counted each time, and nothing else is done where the counts are the same
    code, said = forecast(empty, "--exit-code-unchanged", "99")
    assert code == 99, said
    assert len(list((empty / "out").glob("run-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "table"), ODD)
def test_postgresql_quotes_odd_names(empty, loaded, rows, parquet, schema, table):
    with loaded.admin() as con:
        con.execute("CREATE TABLE IF NOT EXISTS y (one int)")
        create(con, schema, table, rows)
    from_elsewhere(empty, connection=loaded.url(), schema=schema, table=table)
    code, said = here(empty, *NO_REPORT)
    assert code == 0, said
    compared(empty, parquet, report=False)
    with loaded.admin() as con:
        assert con.execute("SELECT count(*) FROM y").fetchone() == (0,)
        assert con.execute("SELECT count(*) FROM public.members").fetchone() == (len(rows),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"table": "membrs"}, r"no table 'membrs'.*Did you mean 'members'"),
        ({"table": "members; DROP TABLE members"}, r"no table 'members; DROP TABLE members'"),
        ({"table": "members", "schema": "gone"}, r"no (schema|table).*'gone'"),
        ({"table": 'members" WHERE false; --'}, "no table"),
    ],
)
def test_a_table_that_is_not_there_is_said(empty, loaded, rows, keys, told):
    from_elsewhere(empty, connection=loaded.url(), **keys)
    code, said = here(empty)
    assert code == 5 and re.search(told, said), said
    assert "Traceback" not in said
    with loaded.admin() as con:
        assert con.execute("SELECT count(*) FROM public.members").fetchone() == (len(rows),)


# secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        "postgres://me:hunter2word@127.0.0.1/db",
        "postgres://me:hunter2word${PGTESTPW}@127.0.0.1/db",
        "postgres://127.0.0.1/db?user=me&password=hunter2word",
        "postgres://me@127.0.0.1/db?sslpassword=hunter2word",
        "mysql://me:hunter2word@127.0.0.1:3306/db",
    ],
)
def test_a_password_in_the_run_file_is_refused(empty, connection):
    from_elsewhere(empty, connection=connection, table="members")
    code, said = here(empty)
    assert code == 2 and "holds a password. Take it from the environment" in said, said
    assert "hunter2word" not in said
    assert not (empty / "out" / "current").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["login", "user", "database", "port", "host", "unset"])
def test_a_connection_that_fails_is_said_in_a_line_without_the_secret(empty, loaded, how):
    secret = "wr0ngs3cret wôrd" if how == "login" else SECRET
    url = {
        "login": loaded.url(),
        "unset": loaded.url(),
        "user": loaded.url().replace("//me:", "//${PGTESTPW}:"),
        "database": loaded.url().replace("/postgres", "/${PGTESTPW}"),
        "port": loaded.url().replace(f":{loaded.port}", ":1"),
        "host": loaded.url().replace("127.0.0.1", "${PGTESTPW}.invalid"),
    }[how]
    from_elsewhere(empty, connection=url, table="members")
    code, said = forecast(empty, secret=None if how == "unset" else secret)
    last = said.strip().splitlines()[-1]
    if how == "unset":
        assert code == 2 and "environment variable PGTESTPW is not set" in last, said
    else:
        assert code == 1 and last.startswith("dynchoice: SourceError: cannot connect"), said
    assert "Traceback" not in said and "mistake in dynchoice" not in said


WHOLE = {
    "no such scheme": "posgres://me:{}@127.0.0.1/db",
    "no number as port": "postgres://me:pw@127.0.0.1:{}/db",
    # not quoted, the password ends the host: what follows is read as something else
    "not quoted": "postgres://me:{}/more@127.0.0.1/db",
    "refused": "postgres://me:{}@127.0.0.1:1/db",
    "no URL": "{}",
    "brackets": "postgres://me:{}@[::1/db",
    "in the query": "postgres://me@127.0.0.1:1/db?password={}",
    "no such option": "postgres://me:{}@127.0.0.1:1/db?colour={}",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", WHOLE)
def test_a_variable_that_holds_the_whole_url_is_as_secret(empty, how):
    from_elsewhere(empty, connection="${PGTESTPW}", table="members")
    url = WHOLE[how].replace("{}", "c0rrecthorse")
    code, said = forecast(empty, secret=url, hidden="c0rrecthorse")
    assert code in (1, 2), said
    assert re.match(r"dynchoice: (Config|Source)Error: ", said.strip().splitlines()[-1]), said
    assert "Traceback" not in said and "mistake in dynchoice" not in said


@pytest.mark.slow
def test_a_secret_that_is_a_common_word_changes_no_table(empty, loaded, rows):
    with loaded.admin() as con:
        con.execute("CREATE ROLE plain LOGIN PASSWORD 'monthly'")
        con.execute("GRANT SELECT ON public.members TO plain")
    from_elsewhere(empty, connection=loaded.url().replace("me:", "plain:"), table="members")
    done = subprocess.run(
        command(empty, *NO_REPORT), capture_output=True, cwd=ROOT, timeout=120,
        env=environment(empty, "monthly"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    take_up = pd.read_parquet(empty / "out" / "current" / "take_up.parquet")
    assert set(take_up["choice"]) == {"none", "monthly", "annual"}


# a database that goes away ------------------------------------------------------------------------


def blocked(server, folder, secret=SECRET):
    """Start a run that has to wait for its rows; return it, its backend and who holds the rows."""
    holder = server.admin()
    holder.autocommit = False
    holder.execute("LOCK TABLE public.members IN ACCESS EXCLUSIVE MODE")
    process = subprocess.Popen(
        command(folder, *NO_REPORT), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        env=environment(folder, secret),
    )  # fmt: skip
    waits = (
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND backend_type = 'client backend'"
    )
    with server.admin() as con:
        for _ in range(600):
            found = con.execute(waits).fetchall()
            if found:
                return process, found[0][0], holder
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    raise AssertionError("the run never waited for its rows")


@pytest.fixture(scope="module")
def published(sample, loaded, tmp_path_factory):
    """A folder with a run published from the database."""
    folder = tmp_path_factory.mktemp("published") / "published"
    folder.mkdir()
    shutil.copy(sample / "run.toml", folder)
    from_elsewhere(folder, connection=loaded.url(), table="members")
    code, said = here(folder, *NO_REPORT)
    assert code == 0, said
    return folder


@pytest.fixture
def ready(published, loaded, tmp_path):
    """A copy of it; a server that was started anew has another port."""
    folder = tmp_path / "ready"
    shutil.copytree(published, folder, symlinks=True)
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{loaded.port}", text))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminated", "crashed"])
def test_a_database_that_is_lost_is_said_and_nothing_is_lost(ready, loaded, how):
    before = (ready / "out" / "current").resolve()
    was = read(before)
    process, backend, holder = blocked(loaded, ready)
    try:
        if how == "terminated":
            with loaded.admin() as con:
                con.execute("SELECT pg_terminate_backend(%s)", [backend])
        else:
            loaded.stop()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        try:
            holder.close()
        finally:
            if how == "crashed":
                loaded.start()
    said = err.decode()
    unseen(ready, out + err, SECRET)
    last = [line for line in said.splitlines() if not line.startswith("[")]
    assert process.returncode == 1, said
    assert len(last) == 1 and last[0].startswith("dynchoice: SourceError: "), said
    assert "the database was lost while it was read" in last[0]
    assert (ready / "out" / "current").resolve() == before and read(before) == was
    assert not list((ready / "out").rglob(".writing-*"))
    if how == "terminated":
        code, said = here(ready, *NO_REPORT, "--exit-code-unchanged", "99")
        assert code == 99, said


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_waits_for_its_rows_can_be_stopped(ready, loaded, how):
    before = (ready / "out" / "current").resolve()
    process, _, holder = blocked(loaded, ready)
    try:
        began = time.perf_counter()
        process.send_signal(how)
        out, err = process.communicate(timeout=30)
        took = time.perf_counter() - began
    finally:
        process.kill()
        holder.close()
    unseen(ready, out + err, SECRET)
    assert process.returncode == 130, err.decode()
    assert took < 5
    assert "Traceback" not in err.decode()
    assert (ready / "out" / "current").resolve() == before
    with loaded.admin() as con:
        for _ in range(100):
            found = con.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).fetchone()
            if found == (1,):
                break
            time.sleep(0.05)
        assert found == (1,)  # no query of ours goes on in the server
