"""Counting out of core: 100 million Parquet rows, growth in rows, engines, a month added.

    python validation/benchmarks/counting.py [--rows 1e8] [--engines] [--folder DIR]

Months of a simulated programme are written as Parquet (one file a month, members in one order) and
counted in processes of their own: wall and CPU seconds and the peak of memory of each. Beside it
the same counts by hand in DuckDB (a window by member). ``--engines`` counts ten million rows from a
frame, from Parquet, by SQL in DuckDB, PostgreSQL and Spark: the digests must be one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, end

MONTHS = 20
SECONDS, GIGABYTES = 20, 1.2
PLANS = ["none", "monthly", "annual"]


def write_months(folder: Path, members: int) -> None:
    """Write months of contracts and use; one row in a thousand is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    contract = np.zeros(members, dtype=np.int8)
    use = rng.integers(0, 10, members).astype(np.int8)
    segment = rng.integers(0, 4, members).astype(np.int8)
    for t in range(MONTHS):
        u = rng.random(members, dtype=np.float32)
        choice = np.where(contract > 1, 2, np.where(u < 0.4, 0, np.where(u < 0.8, 1, 2)))
        choice = choice.astype(np.int8)
        kept = np.flatnonzero(rng.random(members, dtype=np.float32) < 0.999)

        def words(codes: np.ndarray, labels: list[str], kept: np.ndarray = kept) -> object:
            return pa.DictionaryArray.from_arrays(pa.array(codes[kept]), pa.array(labels))

        table = pa.table(
            {
                "member": pa.array(kept.astype(np.int64)),
                "month": pa.array(np.full(len(kept), 202101 + t % 12 + 100 * (t // 12), np.int32)),
                "plan": words(choice, PLANS),
                "contract": pa.array(contract[kept]),
                "use": pa.array(use[kept]),
                "segment": words(segment, ["a", "b", "c", "d"]),
            }
        )
        pq.write_table(table, folder / f"m{t:02d}.parquet", row_group_size=1_000_000)
        longer = np.where(contract > 1, contract - 1, 12)
        contract = np.where(choice == 2, longer, np.where(choice == 1, 1, 0)).astype(np.int8)
        r = rng.random(members, dtype=np.float32)
        use = np.clip(use + (r < 0.2).astype(np.int8) - (r > 0.8).astype(np.int8), 0, 9)
        use = use.astype(np.int8)


def spec() -> dict:
    """How the rows are read."""
    import dynchoice as dc

    return {
        "member": "member", "time": "month", "choice": "plan", "segment": "segment",
        "states": dc.StateSpace(contract=range(13), use=range(10)), "choices": PLANS,
        "freq": "month",
    }  # fmt: skip


def report(begun: float, digest: str, rows: float) -> None:
    """Print what a process of its own found."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found = {
        "wall": time.perf_counter() - begun, "cpu": time.process_time(), "peak": peak,
        "digest": digest, "rows": rows,
    }  # fmt: skip
    print(json.dumps(found))


def count_files(folder: str, memory: str) -> None:
    """Our counts of a folder of Parquet."""
    import dynchoice as dc

    begun = time.perf_counter()
    counts = dc.Panel(f"{folder}/*.parquet", **spec(), member_limit=0, memory=memory).counts
    report(begun, counts.digest, float(counts.n.sum()))


def count_frame(folder: str, memory: str) -> None:
    """Our counts of a pandas frame."""
    import pandas as pd

    import dynchoice as dc

    frame = pd.read_parquet(folder)
    begun = time.perf_counter()
    counts = dc.Panel(frame, **spec(), member_limit=0, memory=memory).counts
    report(begun, counts.digest, float(counts.n.sum()))


def count_table(table: object, begun: float) -> None:
    """Our counts by the one SQL expression, wherever the table is."""
    import dynchoice as dc

    counts = dc.Panel(table, **spec(), member_limit=0).counts
    report(begun, counts.digest, float(counts.n.sum()))


def count_sql(folder: str, memory: str) -> None:
    """Our SQL expression in DuckDB."""
    import ibis

    con = ibis.duckdb.connect()
    begun = time.perf_counter()
    count_table(con.read_parquet(f"{folder}/*.parquet"), begun)


def count_spark(folder: str, memory: str) -> None:
    """Our SQL expression in Spark on this machine."""
    import ibis
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]")
    for name, value in {
        "spark.ui.enabled": "false", "spark.driver.memory": "6g",
        "spark.sql.shuffle.partitions": "8", "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }.items():  # fmt: skip
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.read.parquet(folder).createOrReplaceTempView("members")
    begun = time.perf_counter()
    count_table(ibis.pyspark.connect(session).table("members"), begun)


def count_postgres(folder: str, memory: str) -> None:
    """Our SQL expression in a PostgreSQL started for the purpose."""
    import pwd

    import ibis
    import pyarrow.parquet as pq

    base = Path(tempfile.mkdtemp(prefix="pg-"))
    base.chmod(0o777)
    names = [p.pw_name for p in pwd.getpwall()]
    lead = []
    if os.getuid() == 0:
        lead = ["runuser", "-u", "postgres" if "postgres" in names else "nobody", "--"]

    def run(program: str, *args: str) -> None:
        found = shutil.which(program) or next(
            iter(sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))))
        )
        command = [*lead, found, "-D", str(base / "data"), *args]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    run("initdb", "-U", "me", "--auth=trust", "--no-sync")
    options = f"-k {base} -c listen_addresses='' -F -c shared_buffers=1GB -c work_mem=256MB"
    run("pg_ctl", "-w", "-o", options, "-l", str(base / "log"), "start")
    try:
        con = ibis.postgres.connect(host=str(base), user="me", database="postgres")
        con.raw_sql(
            "CREATE TABLE members (member bigint, month int, plan text, contract int, use int,"
            " segment text)"
        )
        con.con.commit()
        with con.con.cursor() as cursor:
            for file in sorted(Path(folder).glob("*.parquet")):
                frame = pq.read_table(file).to_pandas().astype({"plan": str, "segment": str})
                copy = "COPY members FROM STDIN (FORMAT csv)"
                with cursor.copy(copy) as out:
                    out.write(frame.to_csv(index=False, header=False))
        con.con.commit()
        begun = time.perf_counter()
        count_table(con.table("members"), begun)
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(base, ignore_errors=True)


def by_hand(folder: str, memory: str) -> None:
    """The same counts as an analyst would write them in DuckDB."""
    import duckdb

    con = duckdb.connect()
    con.execute(f"SET memory_limit='{memory}'; SET enable_progress_bar=false")
    con.execute(f"SET temp_directory='{folder}/spill'; SET preserve_insertion_order=false")
    begun = time.perf_counter()
    con.execute(f"""
        CREATE TABLE counts AS
        WITH coded AS (
            SELECT member, (month // 100 * 12 + month % 100) AS p, plan AS j,
                   (contract::INTEGER * 10 + use)::USMALLINT AS s, segment
            FROM read_parquet('{folder}/*.parquet')
        ), ahead AS (
            SELECT *, lead(p) OVER w AS p2, lead(s) OVER w AS s2
            FROM coded WINDOW w AS (PARTITION BY member ORDER BY p)
        )
        SELECT segment, hash(member) % 200 AS b, s, j,
               CASE WHEN p2 = p + 1 THEN s2 ELSE -1 END AS next, count(*) AS n
        FROM ahead GROUP BY ALL""")
    rows = con.execute("SELECT sum(n) FROM counts").fetchone()[0]
    report(begun, "by hand", float(rows))


def add_month(folder: str, memory: str) -> None:
    """A month added to stored counts, and whether that is a recount."""
    import dynchoice as dc

    months = sorted(Path(folder).glob("*.parquet"))
    kept = Path(tempfile.mkdtemp(prefix="store-")) / "counts"
    start = dc.Panel([str(m) for m in months[:-1]], **spec(), member_limit=0, memory=memory)
    store = dc.CountStore.create(kept, start)
    begun = time.perf_counter()
    store.update(str(months[-1]), memory=memory)
    report(begun, store.counts.digest, float(store.counts.n.sum()))
    shutil.rmtree(kept.parent)


WAYS = {
    "files": count_files, "frame": count_frame, "sql": count_sql, "spark": count_spark,
    "postgres": count_postgres, "hand": by_hand, "month": add_month,
}  # fmt: skip


def in_own_process(way: str, folder: Path, memory: str) -> dict:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--memory", memory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(study: Study, rows: float, engines: bool, base: Path) -> None:
    """Measure growth in rows up to ``rows``, a month added, and engines."""
    points = []
    sizes = [s for s in (1e6, 1e7, 1e8) if s <= rows] or [rows]
    for size in sizes:
        folder = base / f"rows{size:.0e}"
        if not folder.exists():
            write_months(folder, int(size / MONTHS))
        found = in_own_process("files", folder, "800MB")
        points.append((found["rows"], found["wall"]))
        study.say(
            f"{found['rows']:,.0f} Parquet rows: {found['wall']:.1f} s wall, {found['cpu']:.1f} s"
            f" CPU, {found['peak']:.2f} GB"
        )
    largest = sizes[-1]
    size = sum(f.stat().st_size for f in (base / f"rows{largest:.0e}").glob("*.parquet"))
    study.say(f"Parquet takes {size / found['rows']:.2f} bytes a row")
    if largest >= 1e8:
        study.check("counting 1e8 rows, s", found["wall"], 0, SECONDS, "design.md 6")
        study.check("counting 1e8 rows, GB", found["peak"], 0, GIGABYTES, "design.md 6")
    if len(points) > 1:
        x, y = np.log(np.array(points[-2:])).T
        growth = float((y[1] - y[0]) / (x[1] - x[0]))
        study.say(f"cost of counting grows as rows to the power {growth:.2f}")
        study.within("counting: growth in rows", growth, 0, 1.1, "issue 5")
    hand = in_own_process("hand", base / f"rows{largest:.0e}", "1GB")
    study.say(
        f"by hand in DuckDB (window, 1 GB): {hand['wall']:.1f} s, {hand['peak']:.2f} GB; ratio"
        f" {hand['wall'] / points[-1][1]:.1f}"
    )
    study.check("counting: all rows", found["rows"] == hand["rows"], 1, 0, "own oracle")
    size = min(largest, 1e7)
    folder = base / f"rows{size:.0e}"
    recount = in_own_process("files", folder, "800MB")
    month = in_own_process("month", folder, "800MB")
    study.say(
        f"a month added to {size:,.0f} rows: {month['wall']:.1f} s, recount {recount['wall']:.1f} s"
    )
    same = month["digest"] == recount["digest"]
    study.check("a month added is a recount, to the bit", same, 1, 0, "own oracle")
    if engines:
        for way in ("frame", "sql", "postgres", "spark"):
            one = in_own_process(way, folder, "2GB")
            study.say(f"{way}, {one['rows']:,.0f} rows: {one['wall']:.1f} s wall")
            same = one["digest"] == recount["digest"]
            study.check(f"counts from {way} are those from Parquet", same, 1, 0, "own oracle")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, default=1e8)
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the months are (kept) or go")
    parser.add_argument("--way", choices=WAYS, help="for processes of its own")
    parser.add_argument("--memory", default="800MB")
    given = parser.parse_args()
    if given.way:
        WAYS[given.way](str(given.folder), given.memory)
        sys.exit()
    study = Study("counting")
    base = given.folder or Path(tempfile.mkdtemp(prefix="dynchoice-rows-"))
    try:
        run(study, given.rows, given.engines, base)
    finally:
        if given.folder is None:
            shutil.rmtree(base)
    end(study)
