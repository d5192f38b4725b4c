"""One counting expression on engines that scale: the same counts, bit for bit.

PostgreSQL is started here (``initdb`` and ``pg_ctl`` from the system), Spark in local mode (a Java
from the system). Where CI is set they must be there; elsewhere their absence is told and skipped.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import pytest
from builders import HISTORY as SPEC
from builders import member_history as history
from builders import same_counts as same

import dynchoice as dc
from dynchoice.errors import DataError

OPTIONS = {"segment": "segment", "region": "region", "weights": "w", "decision": "d"}


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


@pytest.fixture(scope="module")
def postgres():
    """A connection to a server of our own, on a socket."""
    pytest.importorskip("psycopg") if not os.environ.get("CI") else None
    import ibis

    base = Path(tempfile.mkdtemp(prefix="dynchoice-pg-"))
    base.chmod(0o777)
    # PostgreSQL refuses to run as root
    names = [p.pw_name for p in pwd.getpwall()]
    user = ["postgres" if "postgres" in names else "nobody"] if os.getuid() == 0 else []

    def run(program, *args):
        lead = ["runuser", "-u", *user, "--"] if user else []
        done = subprocess.run(
            [*lead, tool(program), "-D", str(base / "data"), *args],
            capture_output=True, text=True, cwd="/", timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "-U", "me", "--auth=trust", "--no-sync")
    options = f"-k {base} -c listen_addresses='' -F"
    run("pg_ctl", "-w", "-o", options, "-l", str(base / "log"), "start")
    try:
        yield ibis.postgres.connect(host=str(base), user="me", database="postgres")
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def spark():
    """A session of Spark on this machine: half a minute, so only where CI is set."""
    if not os.environ.get("CI"):
        pytest.skip("Spark takes half a minute to count: set CI=true")
    if shutil.which("java") is None:
        missing("Java")
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        missing("pyspark")
    import ibis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
        }
        builder = SparkSession.builder.master("local[2]")
        for name, value in settings.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        yield ibis.pyspark.connect(session)
        session.stop()


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["int", "text"])
def test_postgres_counts_the_same(postgres, ids):
    df = history(6, ids=ids)
    table = postgres.create_table("members", df, overwrite=True)
    there, here = dc.Panel(table, **SPEC, **OPTIONS), dc.Panel(df, **SPEC, **OPTIONS)
    same(there.counts, here.counts)
    assert str(there.report) == str(here.report)
    assert there.counts.members.matrix().sum() == here.counts.members.matrix().sum()
    bad = postgres.create_table("bad", df.assign(c=df.c.where(df.t != 3, "oops")), overwrite=True)
    with pytest.raises(DataError, match=r"unknown choice in 'c': .* first: member"):
        dc.Panel(bad, **SPEC)


@pytest.mark.filterwarnings("ignore")
def test_spark_counts_the_same(spark):
    df = history(7, members=60)
    spark._session.createDataFrame(df).createOrReplaceTempView("members")
    options = {**OPTIONS, "member_limit": 0}
    there = dc.Panel(spark.table("members"), **SPEC, **options)
    here = dc.Panel(df, **SPEC, **OPTIONS)
    same(there.counts, here.counts)
    assert str(there.report) == str(here.report)


def test_an_auditor_who_runs_the_query_finds_the_counts():
    panel = dc.Panel(history(8), **SPEC, **OPTIONS)
    found = panel.engine.con.sql(panel.sql("duckdb")).df()
    assert found["rows"].sum() == panel.report["rows"]
    assert (found["rows"] * found["weight"]).sum() == pytest.approx(panel.counts.n.sum())
    moved = (found["rows"] * found["weight"])[found["next_state"] >= 0].sum()
    assert moved == pytest.approx(panel.counts.moves()[1].sum())


def test_a_dialect_that_nobody_speaks_is_refused():
    with pytest.raises(dc.DynChoiceError, match=r"dialect='klingon'.*bigquery"):
        dc.Panel(history(8), **SPEC).sql("klingon")
