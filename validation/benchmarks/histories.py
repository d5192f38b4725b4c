"""Plan histories longer than memory: contract levels derived some members at a time.

    python validation/benchmarks/histories.py [--rows 1e7] [--memory 800MB]

The prototype's members are simulated into Parquet files, contract levels left out, and read by
``Membership.panel``: seconds and the peak of memory of the reading process, and the same counts
with other parts. Where rows are few, also from a frame in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, end

import dynchoice as dc

MEMBERS, PERIODS = 40_000, 25
COLUMNS = {"member": "member", "time": "period", "plan": "choice"}


def programme() -> dc.Membership:
    """The prototype."""
    return dc.Membership.from_toml(HERE.parent / "primelike" / "prime_like.toml")


def write(folder: Path, rows: int) -> int:
    """Simulate about so many rows; return how many."""
    club, files = programme(), max(rows // (MEMBERS * PERIODS), 1)
    members = min(MEMBERS, max(rows // PERIODS, 1))
    for i in range(files):
        paths = dc.simulate(
            club.model(), params=club.theta(), members=members, periods=PERIODS, seed=i,
            start=club.newcomers(),
        )  # fmt: skip
        frame = paths.frame().drop(columns="contract")
        frame["member"] += i * members
        frame.to_parquet(folder / f"{i:04d}.parquet", index=False)
    return files * members * PERIODS


def read(folder: str, memory: str | None, limit: int) -> None:
    """Read and count; print what came out (a process of its own: its peak is the row's)."""
    warnings.simplefilter("ignore", dc.DataWarning)
    begun = time.perf_counter()
    # the simulated return to trials is at random, and histories read it as a rule
    panel = programme().panel(folder, **COLUMNS, broken="drop", memory=memory, member_limit=limit)
    found = {
        "digest": panel.counts.digest, "rows": panel.report["rows"],
        "seconds": time.perf_counter() - begun,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }  # fmt: skip
    print(json.dumps(found))


def child(folder: str, memory: str, limit: int) -> dict:
    """Run :func:`read` in a fresh process."""
    command = [
        sys.executable,
        __file__,
        "--read",
        folder,
        "--memory",
        memory,
        "--limit",
        str(limit),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run(rows: int, memory: str) -> Study:
    """Write, read twice, compare."""
    study = Study("histories")
    with tempfile.TemporaryDirectory() as folder:
        made = write(Path(folder), rows)
        first = child(folder, memory, made // 10)
        other = child(folder, "3GB", made // 10)
        study.say(
            f"{made:,} member-months of plans from Parquet ({first['rows']:,} kept):"
            f" {first['seconds']:.1f} s, {first['peak']:.2f} GB with memory={memory!r};"
            f" {other['seconds']:.1f} s, {other['peak']:.2f} GB with '3GB'"
        )
        study.check("histories: same counts in other parts", first["digest"] == other["digest"],
                    1, 0, "own oracle")  # fmt: skip
        if made <= 2_000_000:
            whole = child(folder, "8GB", 2 * made)
            same = whole["rows"] == first["rows"]
            study.check("histories: as many rows as at once", same, 1, 0, "own oracle")
        study.check("histories: memory, GB", first["peak"], 0, 1.2, "design.md 6")
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=lambda x: int(float(x)), default=10_000_000)
    parser.add_argument("--memory", default="800MB")
    parser.add_argument("--limit", type=int, default=5_000_000)
    parser.add_argument("--read")
    given = parser.parse_args()
    if given.read:
        read(given.read, given.memory, given.limit)
    else:
        end(run(given.rows, given.memory))
