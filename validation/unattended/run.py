"""Unattended runs: killed at any moment, the next run ends with the bytes of one never killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main

import dynchoice
from dynchoice.membership.membership import Membership
from dynchoice.run import init

HERE = Path(__file__).resolve().parent
KIND = "design"
MEMBERS = 120
"""Members of each of the 8 segments."""
OFF = ["refused", "drift_estimates", "drift_take_up", "calibration"]
EVENTS = ("manifest", "name", "link")
"""Steps of publication: the manifest is written, the folder gets its name, ``current`` changes."""
PATIENCE = 5.0
"""Seconds that workers of a killed run may go on once its next run has ended."""
SETTINGS = {
    "forecast.draws": 5,
    "forecast.periods": 6,
    "output.picture": "false",
    **{f"guard.{name}": '"off"' for name in OFF},
    "guard.lost": '"warn"',
}
STAGES = ("check", "count", "estimate", "diagnose", "forecast")
TEXTS = ("report.html", "forecast.txt", "summary.txt", "panel.txt")


# a run, from outside -----------------------------------------------------------------------------


@dataclass
class Started:
    """A run of the command line, in a process group of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    told: Path
    """Where its error stream goes: not into a pipe, which processes that outlive it would hold."""
    began: float

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def end(self) -> tuple[int, str]:
        """Wait and return the exit code and what it said."""
        code = self.process.wait(timeout=300)
        return code, self.told.read_text(encoding="utf-8")


def start(folder: Path, jobs: int, changes: dict[str, Any]) -> Started:
    """Start ``python -m dynchoice forecast`` with temporary files in the folder beside its own."""
    temporary = folder.parent / f"{folder.name}-tmp"
    temporary.mkdir(exist_ok=True)
    root = str(Path(dynchoice.__file__).resolve().parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    own = {"PYTHONPATH": path, "TMPDIR": str(temporary), "JOBLIB_TEMP_FOLDER": str(temporary)}
    words = [sys.executable, "-m", "dynchoice", "forecast", str(folder / "run.toml")]
    for key, value in {**SETTINGS, **changes}.items():
        words += ["--set", f"{key}={value}"]
    told = folder.parent / f"{folder.name}.txt"
    with told.open("wb") as handle:
        process = subprocess.Popen(
            [*words, "--jobs", str(jobs)],
            stdout=subprocess.DEVNULL, stderr=handle, cwd=root,
            env={**os.environ, **own}, start_new_session=True,
        )  # fmt: skip
    return Started(folder, process, told, time.perf_counter())


def group(pid: int) -> list[int]:
    """Return the processes of a group that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(words[2]) == pid and words[0] != "Z":
                found.append(int(entry.name))
    return found


def workers(pid: int) -> list[int]:
    """Return joblib's workers of a run."""
    found = []
    for worker in group(pid):
        try:
            words = Path(f"/proc/{worker}/cmdline").read_bytes()
        except OSError:
            continue
        if b"popen_loky" in words:
            found.append(worker)
    return found


def kill(pid: int, whole_group: bool = False) -> None:
    """Kill a process or its group, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)


# what a folder holds ------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def whole(run: Path) -> bool:
    """Return whether a run's files are those of its manifest, and what it says of them."""
    try:
        said = json.loads((run / "manifest.json").read_text())["outputs"]
        there = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
        same = all(digest(run / f["name"]) == f["sha256"] for f in said)
    except (OSError, ValueError, KeyError):
        return False
    return same and there == {f["name"] for f in said} | {"manifest.json"}


def published(run: Path) -> dict[str, str]:
    """Return the digests of what a reader uses: every table and text."""
    names = [*sorted(p.name for p in run.glob("*.parquet")), *TEXTS]
    return {name: digest(run / name) for name in names if (run / name).exists()}


def current(out: Path) -> Path | None:
    """Return the run that ``current`` names, its link followed once."""
    try:
        return out / os.readlink(out / "current")
    except FileNotFoundError:
        return None


def left_over(out: Path) -> list[str]:
    """Return what should not be there when no run is going on."""
    found = [p.name for p in out.iterdir() if not re.fullmatch(r"\.lock|\.stages|current", p.name)]
    stray = [n for n in found if not (n.startswith("run-") and whole(out / n))]
    return stray + [p.name for p in (out / ".stages").glob(".writing-*")]


def reached(out: Path, before: set[str], old: Path | None) -> str:
    """Return how far a killed run had come, by what it left."""
    if not out.exists():
        return "starting"
    now, runs = current(out), {p.name for p in out.glob("run-*")}
    if now is not None and now != old:
        return "published"
    if runs - {name for name in before if name.startswith("run-")}:
        return "written, not published"
    if list(out.glob(".writing-*")):
        return "writing the run"
    fresh = [p.name for p in (out / ".stages").glob("*-*")] if (out / ".stages").exists() else []
    fresh = [name for name in fresh if name not in before]
    done = [s for s in STAGES if any(name.startswith(f"{s}-") for name in fresh)]
    if any(name.startswith(".writing-") for name in fresh):
        return "a stage half-written"
    return f"after {done[-1]}" if done else "starting"


def listed(out: Path) -> set[str]:
    """Return the names of stages and runs."""
    return {p.name for p in [*out.glob("*"), *out.glob(".stages/*")]} if out.exists() else set()


# situations --------------------------------------------------------------------------------------


@dataclass
class Situation:
    """Where a run starts from, and what it has to end with."""

    name: str
    folder: Path
    """Run file, data, and what is in the output folder before."""
    changes: dict[str, Any]
    want: dict[str, str] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    """How long a run takes, by ``--jobs``; it follows what else the machine does."""

    @property
    def old(self) -> str | None:
        """The name of the run that is published before."""
        found = current(self.folder / "out")
        return None if found is None else found.name


def sample(folder: Path, months: int) -> None:
    """Write a run file and the rows of 8 segments up to a month."""
    import tomllib

    folder.mkdir(parents=True)
    text = files("dynchoice.run").joinpath("templates/run.toml").read_text(encoding="utf-8")
    (folder / "run.toml").write_text(text, encoding="utf-8")
    club = Membership.from_dict(tomllib.loads(text)["membership"])
    truths, parts = list(init.TRUTH), []
    for i in range(8):
        seed = np.random.SeedSequence([11, i])
        own = init.own_months(club, truths[i % len(truths)], i * init.MEMBERS, seed)
        parts.append(own[own["member"] % init.MEMBERS < MEMBERS].assign(segment=f"segment {i}"))
    rows = pd.concat(parts, ignore_index=True)
    last = sorted(rows["month"].unique())[months - 1]
    rows[rows["month"] <= last].to_parquet(folder / "members.parquet", index=False)


def copied(source: Path, target: Path) -> Path:
    """Return a fresh copy of a folder, links as links."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


def situations(study: Study, base: Path, quick: bool) -> list[Situation]:
    """Return where runs start from, each with its reference: nothing; a month less; a title.

    The quick form leaves out the month less, and reports.
    """
    bare = {"output.report": "false"}
    sample(base / "empty", init.MONTHS)
    out = [Situation("from nothing", base / "empty", bare)]
    refer(study, out[0], base, quick)
    copied(base / "reference", base / "again")
    out.append(Situation("only another title", base / "again", {**bare, "title": '"Another"'}))
    if not quick:
        out.append(Situation("from nothing, with a report", base / "empty", {}))
        sample(base / "month", init.MONTHS - 1)
        code, said = start(base / "month", 1, {}).end()
        assert code == 0, said
        shutil.copy(base / "empty" / "members.parquet", base / "month" / "members.parquet")
        out.append(Situation("a month more", base / "month", bare))
        out.append(Situation("a month more, with a report", base / "month", {}))
    for s in out[1:]:
        refer(study, s, base, quick)
    return out


def refer(study: Study, s: Situation, base: Path, quick: bool) -> None:
    """Make the reference of a situation: runs that nobody kills, one and two segments at once.

    The quick form compares two jobs with one by the kills alone.
    """
    for jobs in (1,) if quick else (1, 2):
        started = start(copied(s.folder, base / "reference"), jobs, s.changes)
        code, said = started.end()
        assert code == 0, said
        s.seconds[jobs] = time.perf_counter() - started.began
        found = current(started.out)
        assert found is not None and whole(found)
        tables = published(found)
        if s.want:
            same = float(tables == s.want)
            study.check(f"{s.name}: two jobs give the bytes of one", same, 1, 0, KIND)
        s.want = tables
    s.seconds.setdefault(2, 1.5 * s.seconds[1])
    took = ", ".join(f"{t:.1f} s with {jobs} jobs" for jobs, t in s.seconds.items())
    study.say(f"{s.name}: {took}")


def wait_for(started: Started, event: str) -> bool:
    """Wait for a step of publication; return False where the run ended before it was seen."""
    out, runs = started.out, listed(started.out)
    old = current(out)
    while started.process.poll() is None:
        if event == "manifest":
            seen = any((w / "manifest.json").exists() for w in out.glob(".writing-*"))
        elif event == "name":
            seen = any(p.name not in runs for p in out.glob("run-*"))
        else:
            seen = current(out) != old
        if seen:
            return True
        # publication takes milliseconds, what comes before it seconds
        time.sleep(0.0002 if any(out.glob(".writing-*")) else 0.005)
    return False


# kills -------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the kills."""

    kills: int = 0
    late: int = 0
    """Runs that had ended by themselves when they were to be killed: not counted as kills."""
    torn: list[str] = field(default_factory=list)
    """``current`` was neither absent, nor the old run whole, nor the new one whole."""
    not_done: list[str] = field(default_factory=list)
    other_bytes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    temporary: Counter[str] = field(default_factory=Counter)
    stages: Counter[tuple[str, str]] = field(default_factory=Counter)
    next_runs: list[float] = field(default_factory=list)


def kill_once(s: Situation, started: Started, rng: random.Random, jobs: int) -> tuple[str, bool]:
    """Kill a run at a random moment; return the moment in words and whether it had ended."""
    if rng.random() < 0.4:
        event, delay = rng.choice(EVENTS), rng.choice([0.0, rng.uniform(0, 0.01)])
        moment = f"{1000 * delay:.1f} ms after its {event}"
        wait_for(started, event)
        seen = time.perf_counter()
        while time.perf_counter() < seen + delay:
            pass
        ended = started.process.poll() is not None
    else:
        delay = rng.uniform(0, s.seconds[jobs])
        moment = f"{delay:.2f} s after the start"
        try:
            started.process.wait(max(started.began + delay - time.perf_counter(), 0))
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        # runs are quicker or slower than the one that was measured, by what else the machine does
        s.seconds[jobs] *= 0.7 if ended else 1.03
    with_workers = rng.random() < 0.5
    kill(started.process.pid, with_workers)
    started.end()
    return f"{moment}, {'group' if with_workers else 'process'}", ended


def look(s: Situation, started: Started, tally: Tally, where: str) -> None:
    """Look as a reader does, before anything else runs."""
    now = current(started.out)
    if now is None:
        if s.old is not None:
            tally.torn.append(f"{where}: current is gone")
    elif not whole(now):
        tally.torn.append(f"{where}: {now.name} is not whole")
    elif now.name != s.old and published(now) != s.want:
        tally.torn.append(f"{where}: {now.name} is neither the old run nor the new one")


def follow(s: Situation, folder: Path, jobs: int, tally: Tally, where: str) -> None:
    """Run uninterrupted after a kill, and compare with the reference."""
    began = time.perf_counter()
    code, said = start(folder, jobs, s.changes).end()
    tally.next_runs.append(time.perf_counter() - began)
    if code != 0:
        tally.not_done.append(f"{where}: exit code {code}: {said[-400:]}")
        return
    found = current(folder / "out")
    if found is None or not whole(found):
        tally.not_done.append(f"{where}: exit code 0 and no whole run")
        return
    tables = published(found)
    names = [n for n in {*tables, *s.want} if tables.get(n) != s.want.get(n)]
    if names:
        tally.other_bytes.append(f"{where}: {', '.join(sorted(names))}")
    tally.left += [f"{where}: {name}" for name in left_over(folder / "out")]
    if s.old is not None and not whole(folder / "out" / s.old):
        tally.lost.append(f"{where}: {s.old}")


def one(s: Situation, base: Path, rng: random.Random, tally: Tally) -> None:
    """Kill one run (one time in five its next run too), and let the next one finish."""
    jobs, groups = 1 + (tally.kills + tally.late) % 2, []
    folder = copied(s.folder, base / "killed")
    shutil.rmtree(base / "killed-tmp", ignore_errors=True)
    for _ in range(2 if rng.random() < 0.2 else 1):
        out = folder / "out"
        before, old = listed(out), current(out)
        started = start(folder, jobs, s.changes)
        groups.append(started.process.pid)
        moment, ended = kill_once(s, started, rng, jobs)
        where = f"kill {tally.kills} ({s.name}, {jobs} jobs, {moment})"
        if ended:
            tally.late += 1
        else:
            tally.kills += 1
            tally.stages[(s.name, reached(out, before, old))] += 1
        look(s, started, tally, where)
    follow(s, folder, jobs, tally, where)
    for pid in groups:
        deadline = time.perf_counter() + PATIENCE
        while group(pid) and time.perf_counter() < deadline:
            time.sleep(0.1)
        if group(pid):
            tally.orphans.append(f"{where}: {len(group(pid))} processes")
            kill(pid, whole_group=True)
    tally.temporary.update(
        re.sub(r"[0-9a-f]{6,}|\d+", "#", p.name)[:24] for p in (base / "killed-tmp").iterdir()
    )


def kill_workers(study: Study, s: Situation, base: Path, times: int, rng: random.Random) -> None:
    """Kill workers and leave their run alone: it ends well, or says in words that it did not."""
    ends: Counter[str] = Counter()
    bad, killed = [], 0
    for i in range(times):
        folder = copied(s.folder, base / "workers")
        started = start(folder, 2, s.changes)
        found: list[int] = []
        while started.process.poll() is None and not found:
            found = workers(started.process.pid)
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1.0))
        found = workers(started.process.pid)
        chosen = found if i % 3 == 2 else found[:1]
        for pid in chosen:
            kill(pid)
        killed += len(chosen)
        code, said = started.end()
        last = said.strip().splitlines()[-1] if said.strip() else ""
        where = f"workers {i} ({len(chosen)} killed): exit code {code}: {last}"
        ends[f"exit code {code}"] += 1
        now = current(folder / "out")
        if code == 0 and (now is None or not whole(now) or published(now) != s.want):
            bad.append(f"{where}: other bytes")
        if code != 0 and (now is not None or "worker" not in last or "Traceback" in said):
            bad.append(where)
        code, said = start(folder, 2, s.changes).end()
        now = current(folder / "out")
        if code != 0 or now is None or not whole(now) or published(now) != s.want:
            bad.append(f"{where}; the next run: exit code {code}: {said[-300:]}")
    study.say(f"Workers killed: {killed} in {times} runs: {dict(ends)}")
    complain(study, bad)
    study.check("workers killed: runs that end neither well nor in words", len(bad), 0, 0, KIND)


def concurrent_reader(study: Study, s: Situation, base: Path, times: int) -> None:
    """Publish again and again while a reader reads every file of what ``current`` names."""
    folder = copied(s.folder, base / "read")
    out, stop = folder / "out", threading.Event()
    seen: Counter[str] = Counter()
    torn: list[str] = []

    def read() -> None:
        while not stop.is_set():
            run = current(out)
            if run is None or not whole(run):
                torn.append(f"{run}: not whole")
            else:
                seen[run.name] += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(times):
            code, said = start(folder, 1, {**s.changes, "title": f'"Number {i}"'}).end()
            assert code == 0, said
    finally:
        stop.set()
        reader.join()
    study.say(f"A reader beside {times} publications: {sum(seen.values())} readings of {len(seen)}")
    complain(study, torn)
    study.check("a reader beside a run: readings not whole", len(torn), 0, 0, KIND)
    study.check("a reader beside a run: runs it has seen", len(seen), times + 1, 1, KIND)


def complain(study: Study, found: list[str]) -> None:
    """Show the first of what went wrong."""
    if found:
        study.say("\n".join(found[:20]))


# the study ---------------------------------------------------------------------------------------


def run(quick: bool) -> Study:
    """Kill runs, and compare what the next ones publish with what nobody disturbed."""
    study = Study("unattended")
    want = expected(HERE)["quick" if quick else "full"]
    rng = random.Random(want["seed"])
    base = Path(tempfile.mkdtemp(prefix="dynchoice-unattended-"))
    try:
        return measured(study, want, rng, base, quick)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def measured(
    study: Study, want: dict[str, Any], rng: random.Random, base: Path, quick: bool
) -> Study:
    """Do the kills of :func:`run`."""
    known = situations(study, base, quick)
    tally = Tally()
    while tally.kills < want["kills"] and tally.late < want["kills"]:
        one(rng.choice(known + known[1:] * quick), base, rng, tally)
        if len(tally.next_runs) % 20 == 0:
            print(f"{tally.kills} kills", flush=True)
    told(study, tally)
    check_tally(study, tally, want)
    kill_workers(study, known[0], base, want["worker_runs"], rng)
    concurrent_reader(study, known[1], base, want["publications"])
    return study


def told(study: Study, tally: Tally) -> None:
    """Say where the kills fell, and what the next runs took."""
    table = pd.Series(tally.stages).unstack(0, fill_value=0)
    table["all"] = table.sum(axis=1)
    study.say(f"{tally.kills} kills by what was reached:\n{table.to_string()}")
    study.say(f"{tally.late} runs more had ended before they were killed")
    took = np.array(tally.next_runs)
    study.say(
        f"{len(took)} runs after a kill: median {np.median(took):.1f} s, longest {took.max():.1f} s"
    )
    if tally.temporary:
        study.say(f"left in the temporary folder, over all kills: {dict(tally.temporary)}")


def check_tally(study: Study, tally: Tally, want: dict[str, Any]) -> None:
    """Claim that nothing went wrong."""
    what: list[tuple[str, Callable[[Tally], list[str]]]] = [
        ("current neither the old run nor the new one", lambda t: t.torn),
        ("the next run does not end with exit code 0", lambda t: t.not_done),
        ("tables or texts with other bytes than the reference", lambda t: t.other_bytes),
        ("things left over after the next run", lambda t: t.left),
        ("runs published before that are lost", lambda t: t.lost),
        ("runs whose processes outlive the next run", lambda t: t.orphans),
    ]
    study.within("kills", tally.kills, want["kills"], want["kills"] + 1, KIND)
    for name, of in what:
        complain(study, of(tally))
        study.check(f"kills: {name}", len(of(tally)), 0, 0, KIND)


if __name__ == "__main__":
    main(run)
