"""Runs that nobody watches: two at once, stopped, killed, on a full disk, with nothing to do, held.

Whatever happens, ``current`` is a whole run, and the run that follows ends with the same bytes.
"""

import contextlib
import errno
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import group

from dynchoice.run import cli
from dynchoice.run.init import write_sample

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "draws = 100": "draws = 3",
    "periods = 24": "periods = 4",
    "report = true": "report = false",
    "picture = true": "picture = false",
}
OFF = [
    *("--set", 'guard.drift_estimates="off"', "--set", 'guard.drift_take_up="off"'),
    *("--set", 'guard.calibration="off"', "--set", 'guard.lost="warn"'),
]


# runs, in this process and in their own ----------------------------------------------------------


def forecast(folder, *args):
    """Run a forecast in this process; return exit code and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = cli.main(["forecast", str(folder / "run.toml"), *map(str, args)])
    return code, said.getvalue()


def done(folder, *args):
    """Run a forecast that has to come to its end."""
    code, said = forecast(folder, *args)
    assert code == 0, said
    return said


def started(folder, *args, module="dynchoice", cwd=ROOT, **options):
    """Start a forecast in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "forecast", str(folder / "run.toml"), *args],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip


def until(process, word):
    """Wait until a run says a word."""
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"it ended without {word!r}")


# what a folder holds -----------------------------------------------------------------------------


def current(folder):
    """The run that is published, or None."""
    link = folder / "out" / "current"
    return link.resolve(strict=True) if link.is_symlink() else None


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


def fresh(folder):
    """Stages that the published run did itself."""
    return set(manifest(current(folder))["fresh"])


def whole(run):
    """Whether a run's files are those of its manifest."""
    from hashlib import sha256

    said = {f["name"]: f["sha256"] for f in manifest(run)["outputs"]}
    there = {
        str(p.relative_to(run)): sha256(p.read_bytes()).hexdigest()
        for p in run.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    return there == said


def read(run):
    """The bytes of a run's tables and texts."""
    return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.suffix != ".json"}


def runs(folder):
    return sorted(p.name for p in (folder / "out").glob("run-*"))


def stages(folder):
    return sorted(p.name for p in (folder / "out" / ".stages").iterdir())


def stage_of(folder, name):
    """The folder of a stage of the published run."""
    return folder / "out" / ".stages" / manifest(current(folder))["stages"][name]


def clean(folder):
    """Whether only what belongs there is in an output folder."""
    out = folder / "out"
    odd = [
        p.name for p in out.iterdir() if not re.fullmatch(r"run-.*|current|\.(lock|stages)", p.name)
    ]
    return not odd and not list((out / ".stages").glob(".writing-*"))


# folders to start from ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample of ``dynchoice init`` on a fifth of its members, without a run."""
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
def first(sample, tmp_path_factory):
    """The sample with one published run."""
    folder = tmp_path_factory.mktemp("first") / "first"
    shutil.copytree(sample, folder)
    done(folder)
    return folder


@pytest.fixture(scope="module")
def expected(first, tmp_path_factory):
    """Other rows after that run: what is published in the end, if nothing disturbs."""
    folder = other_rows(copied(first, tmp_path_factory.mktemp("expected")))
    done(folder)
    return read(current(folder))


def copied(source, target):
    """Copy a folder, links as links, into another."""
    folder = target / source.name
    shutil.copytree(source, folder, symlinks=True)
    return folder


def other_rows(folder):
    """Leave a member of each segment out: everything is estimated again, no guard rail minds."""
    change(folder, lambda rows: rows[~rows["member"].isin([0, 500])])
    return folder


def change(folder, of):
    """Change the rows of a folder."""
    rows = pd.read_parquet(folder / "members.parquet")
    of(rows).to_parquet(folder / "members.parquet", index=False)


@pytest.fixture
def folder(first, tmp_path):
    """A copy of the sample with one published run."""
    return copied(first, tmp_path)


@pytest.fixture
def empty(sample, tmp_path):
    """A copy of the sample without a run."""
    return copied(sample, tmp_path)


# two at once -------------------------------------------------------------------------------------


def test_of_two_runs_at_once_one_works_and_the_other_says_who_does(empty):
    works = started(empty)
    until(works, "counting")
    began = time.perf_counter()
    other = started(empty)
    said = other.communicate(timeout=60)[1]
    took = time.perf_counter() - began
    assert other.returncode == 75, said
    assert took < 3
    assert f"host {socket.gethostname()}, pid {works.pid}, since 20" in said
    assert "Traceback" not in said
    rest = works.communicate(timeout=120)[1]
    assert works.returncode == 0, rest
    assert whole(current(empty)) and len(runs(empty)) == 1 and clean(empty)


# stopped -----------------------------------------------------------------------------------------


LAST_MOMENT = """
import os, signal, sys, time
from dynchoice.run import cli, publish

point_to = publish.point_to

def after_a_signal(*args):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    point_to(*args)

publish.point_to = after_a_signal
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "how", "setting"),
    [
        ("counting", signal.SIGTERM, "title='Membership forecast'"),
        ("estimating", signal.SIGINT, "title='Membership forecast'"),
        ("forecasting", signal.SIGTERM, "forecast.seed=2"),
        ("publishing", signal.SIGINT, "title='Other'"),
    ],
)
def test_a_run_that_is_stopped_leaves_everything_as_it_was(folder, tmp_path, word, how, setting):
    before = current(folder)
    if word in ("counting", "estimating"):
        other_rows(folder)
    undisturbed = copied(folder, tmp_path / "undisturbed")
    done(undisturbed, "--set", setting)
    if word == "publishing":  # a moment that no line tells
        (tmp_path / "last_moment.py").write_text(LAST_MOMENT)
        process = started(folder, "--set", setting, module="last_moment", cwd=tmp_path)
    else:
        process = started(folder, "--set", setting)
        until(process, word)
        process.send_signal(how)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, rest
    assert "interrupted; nothing was published" in rest and "Traceback" not in rest
    assert current(folder) == before and whole(before) and clean(folder)
    done(folder, "--set", setting)
    assert read(current(folder)) == read(current(undisturbed))
    assert len(runs(folder)) == 2 and clean(folder)


@pytest.mark.slow
def test_a_run_whose_workers_are_stopped_with_it_says_so_once(empty):
    process = started(empty, "--jobs", "2", start_new_session=True)
    until(process, "estimating")
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd and container engines do
    rest = process.communicate(timeout=60)[1]
    said = [line for line in rest.splitlines() if not line.startswith("[")]
    assert process.returncode == 130, rest
    assert said[0] == "dynchoice: interrupted; nothing was published" and "Traceback" not in rest
    assert current(empty) is None and clean(empty)


WHERE_A_SIGNAL_COMES = {
    # DuckDB turns SIGINT into a RuntimeError, where it sees it
    "in a query": """
        import duckdb
        for after in (0.5, 5.0, 10.0, 20.0):  # a busy machine may not be in the query yet
            late = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
            late.daemon = True
            late.start()
        duckdb.sql("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b").show()
    """,
    # Python's handler never runs: as where DuckDB waits for a thread with one long task
    "in a library that does not return": """
        import ctypes
        library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        library.pthread_mutex_init(lock, None)
        late = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        late.start()
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)
    """,
    # Python prints what is raised in __del__ and goes on
    "in a destructor": """
        class Last:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
        Last()
    """,
    # an extension module turns it into an ImportError
    "in an import": """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        except BaseException:
            raise ImportError("initialization failed") from None
    """,
    # started by python -m, CPython then dies of SIGINT at its end instead of exiting as told
    "in code compiled from a text": """
        exec("os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)")
    """,
}
DRIVER = """
import os, signal, sys, threading, time
from dynchoice.run import build, cli

checks = build.check_model

def then_a_signal(run):
    found = checks(run)
    BODY
    return found

build.check_model = then_a_signal
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", WHERE_A_SIGNAL_COMES)
def test_a_signal_is_obeyed_wherever_it_comes(empty, tmp_path, where):
    body = textwrap.indent(textwrap.dedent(WHERE_A_SIGNAL_COMES[where]), "    ")
    (tmp_path / "driver.py").write_text(DRIVER.replace("    BODY", body))
    process = subprocess.run(
        [sys.executable, "-m", "driver", "forecast", str(empty / "run.toml")],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 130, process.stderr
    stuck = "interrupted in a step that did not stop by itself" in process.stderr
    said = "interrupted; nothing was published" in process.stderr
    assert stuck if where == "in a library that does not return" else said != stuck
    assert said or where.startswith(("in a query", "in a library"))
    assert "estimating" not in process.stderr
    assert current(empty) is None
    if stuck:  # as after kill -9
        done(empty)
    assert clean(empty)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 3])
def test_workers_end_with_the_run_that_was_killed(empty, seconds):
    """Soon, and not after joblib's five minutes, whether they have begun to work or not."""
    process = started(empty, "--jobs", "2", start_new_session=True)
    until(process, "estimating")
    time.sleep(seconds)
    process.kill()
    process.wait(timeout=60)
    alive = group(process.pid)
    deadline = time.perf_counter() + 15
    while alive and time.perf_counter() < deadline:
        time.sleep(0.1)
        alive = group(process.pid)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    process.stderr.close()
    assert not alive


# killed ------------------------------------------------------------------------------------------


MORE = [pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3)]


@pytest.mark.parametrize("seed", [1, *MORE])
def test_a_run_that_is_killed_is_resumed_to_the_same_bytes(folder, expected, seed):
    before = current(folder)
    other_rows(folder)
    process = started(folder)
    until(process, random.Random(seed).choice(["counting", "estimating", "forecasting"]))
    time.sleep(random.Random(seed).uniform(0, 0.5))
    process.kill()
    process.communicate(timeout=60)
    assert whole(current(folder)) and whole(before)
    done(folder)
    assert read(current(folder)) == expected
    assert whole(before) and len(runs(folder)) == 2 and clean(folder)


@pytest.mark.slow
def test_whatever_stage_is_missing_the_bytes_are_the_same(folder, expected, tmp_path):
    other_rows(folder)
    before = current(folder)
    done(folder)
    second = current(folder)
    names = manifest(second)["stages"]
    assert len(names) == 9
    for name, stage in names.items():
        if name not in ("count/panel", "estimate/families", "forecast/annual 15% off"):
            continue
        shutil.rmtree(second)
        (folder / "out" / "current").unlink()
        (folder / "out" / "current").symlink_to(before.name)
        shutil.rmtree(folder / "out" / ".stages" / stage)
        done(folder)
        second = current(folder)
        assert fresh(folder) == {name}
        assert read(second) == expected, name


@pytest.mark.slow
def test_what_a_killed_run_may_leave_is_swept(folder):
    out = folder / "out"
    for place in (out, out / ".stages"):
        (place / ".writing-old").mkdir()
        (place / ".writing-old" / "half.parquet").write_text("x")
    (out / ".current-new").symlink_to("nowhere")
    (out / ".lock.owner").write_text("host far, pid 1, since long ago\n")
    (out / ".stages" / "estimate-0123").mkdir()  # as if killed while it was removed
    other_rows(folder)
    done(folder)
    assert clean(folder) and "estimate-0123" not in stages(folder)


# no space ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of our own: ``small_disk(bytes)`` mounts it, or changes its size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(size):
        how = f"size={size}" if not mounted else f"remount,size={size}"
        call = ["mount", "-t", "tmpfs", "-o", how, "none", str(place)]
        if os.getuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root can mount a file system")
        found = subprocess.run(call, capture_output=True, text=True, check=False)
        if found.returncode != 0:
            pytest.skip(f"cannot mount a file system here: {found.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def on_disk(folder):
    """Bytes that a folder takes in whole pages."""
    sizes = [p.lstat().st_size for p in folder.rglob("*")]
    return sum(-(-s // 4096) * 4096 for s in sizes)


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_next_run_completes(first, small_disk, tmp_path):
    need, want = on_disk(first / "out"), read(current(first))
    reached = set()
    for i, share in enumerate((0.02, 0.4, 0.8)):
        folder = tmp_path / f"case-{i}"
        shutil.copytree(first, folder, ignore=shutil.ignore_patterns("out"))
        place = small_disk(int(share * need))
        (folder / "out").symlink_to(place)
        code, said = forecast(folder)
        assert code == 1, said
        last = said.strip().splitlines()[-1]
        assert last.startswith("dynchoice: StorageError: cannot write"), said
        assert os.strerror(errno.ENOSPC) in last and "Traceback" not in said
        reached.add(re.findall(r"\[\d/\d\] (\w+)", said)[-1])
        assert current(folder) is None and not runs(folder)
        assert not list(place.glob(".writing-*")) and not list(place.glob(".stages/.writing-*"))
        small_disk(10 * need)
        done(folder)
        assert read(current(folder)) == want and clean(folder)
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert len(reached) >= 3, reached


@pytest.mark.slow
def test_on_a_full_disk_the_published_run_stays(folder, expected, small_disk):
    before = current(folder)
    other_rows(folder)
    place = small_disk(on_disk(folder / "out") + 60_000)
    shutil.copytree(folder / "out", place, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder / "out")
    (folder / "out").symlink_to(place)
    code, said = forecast(folder)
    assert code == 1 and os.strerror(errno.ENOSPC) in said, said
    assert current(folder).name == before.name and whole(current(folder)) and clean(folder)
    small_disk(10_000_000)
    done(folder)
    assert read(current(folder)) == expected and clean(folder)


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_file_that_may_not_grow_is_said_and_the_next_run_completes(folder, expected, size):
    before = current(folder)
    other_rows(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        code, said = forecast(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1, said
    assert re.search(r"StorageError: cannot write .*File too large", said), said
    assert "Traceback" not in said
    assert current(folder) == before and whole(before) and clean(folder)
    done(folder)
    assert read(current(folder)) == expected and clean(folder)


# nothing to do, or only some of it ----------------------------------------------------------------


def test_a_rerun_with_nothing_changed_takes_no_time_and_does_nothing(folder):
    out = folder / "out"

    def state():
        return {
            str(p.relative_to(out)): (p.lstat().st_mtime_ns, p.lstat().st_size)
            for p in out.rglob("*")
            if not p.name.startswith(".lock") and p != out / ".stages"
        }

    before = state()
    began = time.perf_counter()
    process = started(folder, "--exit-code-unchanged", "99")
    said = process.communicate(timeout=60)[1]
    assert time.perf_counter() - began < 2
    assert process.returncode == 99 and "nothing has changed" in said
    assert state() == before
    assert forecast(folder)[0] == 0
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("count/panel", "flipped"),
        ("count/panel", "record"),
        ("estimate/families", "cut"),
        ("diagnose/students", "gone"),
        ("forecast/baseline", "flipped"),
    ],
)
def test_a_damaged_stage_is_done_again(folder, stage, how):
    where = stage_of(folder, stage)
    files = [p for p in sorted(where.iterdir()) if p.name != "stage.json"]
    before = {p.name: p.read_bytes() for p in files}
    path = files[0]
    if how == "flipped":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "gone":
        path.unlink()
    else:
        (where / "stage.json").write_text('{"stage": "count", "fil')
    said = done(folder)
    assert {p.name: p.read_bytes() for p in files} == before
    if how != "gone":
        assert f"{where} is damaged: its work is done again" in said
    assert len(runs(folder)) == 1 and clean(folder)
    assert "nothing has changed" in done(folder)


def names_of_files():
    tables = ("estimates", "take_up", "guard")
    return [*(f"{t}.parquet" for t in tables), "results/000-families.npz", "manifest.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of_files())
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_published_run_is_written_again(folder, name, how):
    want = read(current(folder))
    before = current(folder)
    path = before / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    code, said = forecast(folder, *OFF)
    assert code == 0, said
    assert current(folder) != before and whole(current(folder)) and clean(folder)
    got = read(current(folder))
    assert {k: v for k, v in got.items() if k != "guard.parquet"} == {
        k: v for k, v in want.items() if k != "guard.parquet"
    }


@pytest.mark.slow
def test_a_damaged_earlier_run_stops_nothing(folder):
    old = folder / "out" / "run-20200101T000000Z"
    shutil.copytree(current(folder), old)
    facts = {**manifest(old), "started": "2020-01-01T00:00:00+00:00"}
    facts["panel"]["last"] -= 1  # it foresaw a month that is observed now
    (old / "manifest.json").write_text(json.dumps(facts))
    for name in ("take_up.parquet", "estimates.parquet"):
        (old / name).write_bytes(b"PAR1 no longer")
    done(folder, "--set", "title='Other'")
    assert whole(current(folder))


ALL_FORECASTS = {"forecast/baseline", "forecast/music for all", "forecast/annual 15% off"}


def test_changed_rows_of_one_segment_redo_that_segment_only(folder):
    change(folder, lambda rows: rows[rows["member"] != 5])
    done(folder)
    assert fresh(folder) == {
        "count/panel", "estimate/families", "diagnose/families", *ALL_FORECASTS
    }  # fmt: skip


@pytest.mark.slow
def test_a_month_completed_for_one_segment_redoes_that_segment_only(sample, tmp_path):
    folder = copied(sample, tmp_path)
    rows = pd.read_parquet(folder / "members.parquet")
    there = (rows["month"] < rows["month"].max()) | (rows["segment"] == "students")
    change(folder, lambda rows: rows[there | (rows["member"] % 10 == 0)])
    done(folder)
    rows.to_parquet(folder / "members.parquet", index=False)
    done(folder, *OFF)
    assert fresh(folder) == {
        "count/panel", "estimate/families", "diagnose/families", *ALL_FORECASTS
    }  # fmt: skip


@pytest.fixture(scope="module")
def a_month_less(sample, tmp_path_factory):
    """The sample with a run published when it was a month shorter."""
    folder = copied(sample, tmp_path_factory.mktemp("less"))
    change(folder, shorter)
    done(folder)
    shutil.copy(sample / "members.parquet", folder)
    return folder


@pytest.mark.slow
def test_a_month_more_of_all_is_another_run_beside_the_old_one(a_month_less, tmp_path):
    folder = copied(a_month_less, tmp_path)
    before = current(folder)
    done(folder)
    assert fresh(folder) == {
        "count/panel", "estimate/families", "estimate/students", "diagnose/families",
        "diagnose/students", *ALL_FORECASTS,
    }  # fmt: skip
    assert manifest(current(folder))["previous"] == before.name and whole(before)
    guard = pd.read_parquet(current(folder) / "guard.parquet").set_index("guard")
    assert guard.loc["calibration", "status"] == "ok"
    assert guard.loc["calibration", "value"] < 5
    assert before.name in guard.loc["calibration", "text"]


def test_a_changed_scenario_redoes_its_forecast_only(folder):
    before = pd.read_parquet(current(folder) / "take_up.parquet")
    text = (folder / "run.toml").read_text()
    assert "times = 0.85" in text
    (folder / "run.toml").write_text(text.replace("times = 0.85", "times = 0.7"))
    done(folder)
    assert fresh(folder) == {"check/model", "forecast/annual 15% off"}
    after = pd.read_parquet(current(folder) / "take_up.parquet")
    same = after["scenario"] != "annual 15% off"
    pd.testing.assert_frame_equal(after[same], before[same])
    assert not after[~same].equals(before[~same])
    alone = folder.parent / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("out"))
    done(alone)
    got, want = read(current(folder)), read(current(alone))
    got.pop("guard.parquet"), want.pop("guard.parquet")  # there is a run before, or there is none
    assert got == want


@pytest.mark.slow
def test_a_scenario_more_or_less_redoes_no_other(folder):
    text = (folder / "run.toml").read_text()
    more = '\n[[scenario]]\nname = "loved"\nscale = {shipping = 1.5}\n'
    (folder / "run.toml").write_text(text + more)
    done(folder)
    assert fresh(folder) == {"check/model", "forecast/loved"}
    (folder / "run.toml").write_text(text)
    done(folder)
    assert fresh(folder) <= {"check/model"}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["guard.calibration=9", "output.csv=true", "title='Other'"])
def test_guard_rails_and_outputs_redo_no_estimate(folder, setting):
    before = current(folder)
    done(folder, "--set", setting)
    assert fresh(folder) == set()
    assert current(folder) != before and whole(before)
    if setting.startswith("output.csv"):
        assert (current(folder) / "take_up.csv").exists()


@pytest.mark.slow
def test_force_does_everything_again(folder):
    before = current(folder)
    names = set(manifest(before)["stages"])
    done(folder, "--force")
    assert fresh(folder) == names and current(folder) != before
    got, want = read(current(folder)), read(before)
    got.pop("guard.parquet"), want.pop("guard.parquet")
    assert got == want


@pytest.mark.slow
def test_a_run_of_some_segments_is_kept_and_not_published(folder):
    before = current(folder)
    said = done(folder, "--segments", "students")
    assert "not published" in said and current(folder) == before and len(runs(folder)) == 2
    partial = Path(said.strip().splitlines()[-1])
    assert manifest(partial)["status"] == "partial" and whole(partial)
    assert list(manifest(partial)["fits"]) == ["students"]
    done(folder, "--segments", "students")
    assert len(runs(folder)) == 2
    code, said = forecast(folder, "--segments", "studens")
    assert code == 2 and "Did you mean 'students'" in said


def test_a_dry_run_does_nothing(empty, folder):
    said = done(empty, "--dry-run")
    assert "to do    count panel" in said
    assert not (empty / "out").exists()
    before, was = stages(folder), (folder / "out").stat().st_mtime_ns
    said = done(folder, "--dry-run")
    assert "to do" not in said and "done     estimate families" in said
    other_rows(folder)
    assert "to do    count panel" in done(folder, "--dry-run")
    assert stages(folder) == before and len(runs(folder)) == 1
    assert (folder / "out").stat().st_mtime_ns == was


@pytest.mark.slow
def test_old_runs_are_removed_but_not_the_current_one(folder):
    first_run = current(folder)
    keep = ["--set", "output.keep=2"]
    done(folder, *keep, "--set", "title='second'")
    done(folder, *keep, "--set", "title='third'")
    assert len(runs(folder)) == 2 and not first_run.exists()
    published = current(folder)
    change(folder, lambda rows: rows[rows["member"] != 5])
    for i in range(2):  # held runs are newer than the current one
        held = ["--set", "guard.drift_take_up=0", "--set", f"title='held {i}'"]
        assert forecast(folder, *keep, *held)[0] == 4
    assert current(folder) == published and whole(published)
    done(folder, *keep)
    # two that were published, and apart from them the two that were held
    assert whole(current(folder)) and len(runs(folder)) == 4 and clean(folder)


@pytest.mark.slow
def test_a_run_half_removed_is_no_run_any_more(folder, monkeypatch):
    """A kill while an old run is removed leaves nothing that counts as a run, and it is swept."""
    before = current(folder)

    def begin(path, **options):
        for file in sorted(Path(path).glob("*"))[:1]:
            file.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", begin)
        done(folder, "--set", "output.keep=1", "--set", "title='Other'")
    assert not before.exists()
    assert runs(folder) == [current(folder).name] and whole(current(folder))
    done(folder, "--set", "output.keep=1", "--set", "title='Another'")
    assert len(runs(folder)) == 1 and clean(folder)


# guard rails -------------------------------------------------------------------------------------


def without_students(rows):
    return rows[rows["segment"] != "students"]


def shorter(rows):
    return rows[rows["month"] < rows["month"].max()]


def one_member_less(rows):
    return rows[rows["member"] != 0]


def bad_rows(rows):
    return rows.assign(shipping=rows["shipping"].where(rows["member"] != 5, 9))


def same(rows):
    return rows


GUARDS = {
    "refused": (bad_rows, ["data.invalid='drop'", "guard.refused=0"], "refused"),
    "drift of estimates": (one_member_less, ["guard.drift_estimates=0"], "standard errors"),
    "drift of take-up": (one_member_less, ["guard.drift_take_up=0"], "points"),
    "lost: a segment": (without_students, [], r"segment\(s\) students are gone"),
    "lost: a month": (shorter, [], "data end in 2025-11, ended in 2025-12"),
    "lost: rows": (same, ["title='More rows before'"], "rows, there were"),
    "identification": (same, ["guard.identification='hold'"], "the data leave flat: .* nothing"),
}


def flat_directions(folder, monkeypatch):
    """Have the diagnostics find what no fit of these data can show: those stop before."""
    from dynchoice.run import tables

    found = tables.diagnostics_of

    def flat(segment, fit, counts):
        rows = found(segment, fit, counts)
        at = rows["diagnostic"] == "flat directions"
        assert at.sum() == 1
        rows.loc[at, ["value", "note"]] = [1.0, "nothing"]
        return rows

    monkeypatch.setattr(tables, "diagnostics_of", flat)
    for stage in (folder / "out" / ".stages").glob("diagnose-*"):
        shutil.rmtree(stage)


@pytest.mark.parametrize("guard", GUARDS)
def test_every_guard_rail_can_hold_a_run(folder, guard, monkeypatch):
    rows, settings, told = GUARDS[guard]
    if guard == "identification":
        flat_directions(folder, monkeypatch)
    before = current(folder)
    if guard == "lost: rows":
        facts = manifest(before)
        facts["panel"]["rows"] *= 3
        (before / "manifest.json").write_text(json.dumps(facts))
    change(folder, rows)
    off = {'guard.drift_estimates="off"', 'guard.drift_take_up="off"', 'guard.calibration="off"'}
    off = {s for s in off if s.split("=")[0] not in {t.split("=")[0] for t in settings}}
    off |= set() if guard.startswith("lost") else {'guard.lost="warn"'}
    more = [x for s in [*sorted(off), *settings] for x in ("--set", s)]
    code, said = forecast(folder, *more)
    assert code == 4, said
    assert re.search(rf"- {guard.split(':')[0]}: .*{told}", said), said
    assert "publish it with --accept" in said and "1 guard rail(s) hold" in said
    assert current(folder) == before and whole(before) and clean(folder)
    (name,) = set(runs(folder)) - {before.name}
    held = folder / "out" / name
    assert manifest(held)["status"] == "held" and whole(held)
    table = pd.read_parquet(held / "guard.parquet")
    assert set(table["guard"][table["status"] == "breach"]) == {guard.split(":")[0]}
    code, said = forecast(folder, *more)
    assert code == 4 and str(held) in said and len(runs(folder)) == 2
    if guard not in ("drift of take-up", "lost: a month"):
        return
    done(folder, *more, "--accept")
    accepted = current(folder)
    assert accepted not in (before, held) and manifest(accepted)["status"] == "complete"
    assert manifest(accepted)["accepted"] is True and whole(accepted) and whole(before)
    assert fresh(folder) == set()
    code, said = forecast(folder, *more, "--exit-code-unchanged", "99")
    assert code == 99, said


def test_a_forecast_that_was_wrong_holds_the_next(a_month_less, tmp_path):
    folder = copied(a_month_less, tmp_path)
    rows = pd.read_parquet(folder / "members.parquet")
    before = current(folder)
    late = rows["month"] == rows["month"].max()
    free = rows["contract"].isin(["none", "monthly", "annual_0"])
    rows.loc[late & free, "plan"] = "none"  # nobody wants it any more
    rows.to_parquet(folder / "members.parquet", index=False)
    off = ["--set", 'guard.drift_estimates="off"', "--set", 'guard.drift_take_up="off"']
    code, said = forecast(folder, *off)
    assert code == 4 and f"- calibration: {before.name} foresaw" in said, said
    assert current(folder) == before
    done(folder, *off, "--set", 'guard.calibration="off"')
    assert current(folder) != before


def test_a_first_run_has_nothing_to_fear(first):
    table = pd.read_parquet(current(first) / "guard.parquet").set_index("guard")
    assert set(table["status"]) <= {"ok", "none"}
    assert (table.loc[["drift of estimates", "drift of take-up", "lost"], "status"] == "none").all()


@pytest.mark.slow
def test_going_back_to_older_rows_is_held_as_any_loss(folder):
    rows = pd.read_parquet(folder / "members.parquet")
    change(folder, shorter)
    done(folder, *OFF)
    short = current(folder)
    rows.to_parquet(folder / "members.parquet", index=False)
    done(folder, *OFF)
    newest = current(folder)
    change(folder, shorter)
    off = [*OFF[:-1], 'guard.lost="hold"']
    code, said = forecast(folder, *off)
    assert code == 4 and "- lost: data end in 2025-11" in said, said
    code, said = forecast(folder, *OFF[:-2])
    assert code == 4 and current(folder) == newest and whole(short)
