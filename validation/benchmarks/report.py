"""Every row of the speed table and the peers beside it, in one run: writes REPORT.md.

    python validation/benchmarks/report.py [--quick] [--peers DIR] [--rows 1e8] [--only NAME ...]

Each part runs in a process of its own, one BLAS thread; its CPU and wall seconds and its peak of
memory (the largest process of the part) are told. Read ratios within a run; run it on a quiet
machine. ``--quick`` runs small sizes to see that everything works. ``--peers`` is where other
packages are installed (kept for the next time); without it they go to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE / "REPORT.md"


def parts(given: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return the commands of a run, by name."""
    quick = ["--quick"] if given.quick else []
    rows = "1e6" if given.quick else str(given.rows)
    peers = ["--env", str(given.peers)] if given.peers else []
    found = {
        "small": ["run.py", *quick],
        "large": ["large.py"],
        "large fit": ["large.py", "--fit"],
        "seasons": ["large.py", "--seasons"],
        "growth": ["growth.py", *quick],
        "counting": ["counting.py", "--rows", rows, "--engines", "--folder", str(folder)],
        "histories": ["histories.py", "--rows", "1e6" if given.quick else "1e7"],
        "sizes": ["sizes.py", "--draws", "2" if given.quick else "200"],
        "peers": ["peers.py", *quick, *peers],
    }
    return {name: c for name, c in found.items() if not given.only or name in given.only}


def as_typed(command: list[str]) -> str:
    """Return a command without the folders of this machine."""
    kept, skip = [], False
    for word in command:
        skip = skip or word in ("--folder", "--env")
        if not skip:
            kept.append(word)
        skip = word in ("--folder", "--env")
    return "python validation/benchmarks/" + " ".join(kept)


def run_part(name: str, command: list[str], out: Path) -> dict:
    """Run one part and return its claims, tables, seconds and peak of memory."""
    target = out / f"{name.replace(' ', '-')}.json"
    env = {**os.environ, "VALIDATION_OUT": str(target)}
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    found = {
        "name": name, "command": as_typed(command),
        "wall": time.perf_counter() - begun, "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss / 1e6, "exit": os.waitstatus_to_exitcode(status),
        "claims": [], "tables": [],
    }  # fmt: skip
    if target.exists():
        found.update(json.loads(target.read_text()))
    else:
        found["tables"] = [text[-2000:]]
    print(
        f"{name}: {found['wall']:.0f} s, {found['peak']:.2f} GB, exit {found['exit']}", flush=True
    )
    return found


def as_markdown(done: list[dict]) -> str:
    """Return the report."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    held = sum(c["ok"] for d in done for c in d["claims"])
    total = sum(len(d["claims"]) for d in done)
    now = datetime.now(UTC).isoformat(timespec="minutes")
    lines = [
        "# Benchmarks",
        "",
        f"Written by `python validation/benchmarks/report.py`, {now}; {os.cpu_count()} cores of"
        f" {cpu}, Python {platform.python_version()}. {held} of {total} claims hold.",
        "",
        "| part | wall s | CPU s | peak GB | claims |",
        "|---|---|---|---|---|",
    ]
    for d in done:
        good = sum(c["ok"] for c in d["claims"])
        count = f"{good} of {len(d['claims'])}" if d["claims"] else f"exit {d['exit']}"
        lines.append(
            f"| {d['name']} | {d['wall']:.0f} | {d['cpu']:.0f} | {d['peak']:.2f} | {count} |"
        )
    for d in done:
        lines += ["", f"## {d['name']}", "", f"`{d['command']}`", ""]
        if d["claims"]:
            lines += ["| claim | got | bound | |", "|---|---|---|---|"]
        for c in d["claims"]:
            low, high = c["want"] - c["tolerance"], c["want"] + c["tolerance"]
            bound = f"{c['want']:g}" if c["tolerance"] == 0 else f"{low:.3g} to {high:.3g}"
            mark = "ok" if c["ok"] else "**FAILS**"
            lines.append(f"| {c['claim']} | {c['got']:.4g} | {bound} | {mark} |")
        lines += ["", *(f"```\n{t}\n```\n" for t in d["tables"])]
    plan = on_paper(done)
    return "\n".join([*lines, "", plan]) if plan else "\n".join(lines)


def on_paper(done: list[dict]) -> str:
    """Return the plan for 200 million members, from this run's figures."""
    text = "\n".join(t for d in done for t in d["tables"])

    def figure(pattern: str) -> list[float]:
        match = re.findall(pattern, text)
        if not match:
            return []
        last = match[-1] if isinstance(match[-1], tuple) else (match[-1],)
        return [float(x.replace(",", "")) for x in last]

    counted = figure(r"([\d,]+) Parquet rows: ([\d.]+) s wall")
    size = figure(r"Parquet takes ([\d.]+) bytes a row")
    spark = figure(r"spark, ([\d,]+) rows: ([\d.]+) s wall")
    month = figure(r"a month added to ([\d,]+) rows: ([\d.]+) s")
    fit = figure(r"one worker \(([\d.]+) ms a segment\)")
    forecast = figure(r"take-up and flows: ([\d.]+) ms a scenario")
    if not all((counted, size, spark, month, fit, forecast)):
        return ""
    rows = 200e6 * 60
    single = rows / counted[0] * counted[1] / 3600
    cluster = rows / spark[0] * spark[1] * 2 / 64 / 60
    # a month of all members and their seams; the store measured has 20 months
    each = month[1] * 200e6 / (month[0] / 20) / 60
    draws = 500 * 10 * 200 * forecast[0] / 1e3 / 3600
    passes = -(-rows * 2 // 16e9)
    price, cores = 0.05, 64
    table = [
        ("rows on disk", f"{size[0]:.1f} bytes a row, as here", f"{rows * size[0] / 1e9:.0f} GB"),
        (
            "count all, one machine of this kind",
            f"grid of 16 GB: {passes:.0f} passes over the files",
            f"{passes * single:.1f} hours",
        ),
        (
            f"count all, Spark on {cores} cores",
            f"{spark[1]:.0f} s for {spark[0]:,.0f} rows on two cores here",
            f"{cluster:.0f} minutes",
        ),
        (
            "add a month to counts (`CountStore`)",
            f"{month[1]:.1f} s for {month[0] / 20:,.0f} members here, with their seams",
            f"{each:.0f} minutes, one machine",
        ),
        ("what fits see", "cells, not rows", "as many as for 5,000 members"),
        ("fit 500 segments", f"{fit[0]:.0f} ms each, 504 states", f"{fit[0] / 2:.0f} s, one core"),
        (
            "forecast 500 segments x 10 scenarios x 200 draws",
            f"{forecast[0]:.1f} ms each, 5,040 states x 24 months, values known",
            f"{draws:.1f} hours of one core",
        ),
    ]
    lines = [
        "## On paper: 200 million members, 60 months",
        "",
        "12 billion rows. From the figures above, with counting linear in rows and fits flat:",
        "",
        "| step | how | takes |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        f"Money at {price} USD a core-hour (price lists' order of magnitude, not a quote): the"
        f" first count on the cluster {price * cores * cluster / 60:.2f} USD, a month's fits and"
        f" forecast {price * (draws + 500 * fit[0] / 3.6e6):.2f} USD.",
        "",
        "Assumed: rows spread evenly over cores, storage delivers"
        f" {rows * size[0] / 1e6 / (cluster * 60 * cores):.1f} MB/s a core, and Spark's figure"
        " holds per core on more of them (it includes its start, so it is on the safe side).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", type=Path, metavar="DIR")
    parser.add_argument("--rows", type=float, default=1e8)
    parser.add_argument("--folder", type=Path, help="where rows to count are kept")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "rows"
        done = [
            run_part(name, command, Path(temporary))
            for name, command in parts(given, folder).items()
        ]
    target = (
        TARGET if not (given.quick or given.only) else Path(tempfile.gettempdir()) / "REPORT.md"
    )
    target.write_text(as_markdown(done) + "\n", encoding="utf-8")
    print(f"wrote {target}")
    sys.exit(4 if any(d["exit"] for d in done) else 0)
