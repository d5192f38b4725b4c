"""Processes side by side end with the one that started them, and only they."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import joblib
import pytest
from joblib import delayed
from processes import group

from dynchoice.estimate.workers import processes

WATCH = "ends with its parent"


def watched(_):
    return os.getpid(), any(t.name == WATCH for t in threading.enumerate())


def look(n_jobs):
    return processes(n_jobs)(delayed(watched)(i) for i in range(4))


def test_workers_watch_their_parent_from_the_start():
    found = look(2)
    assert all(pid != os.getpid() and seen for pid, seen in found)
    assert all(t.name != WATCH for t in threading.enumerate())


@pytest.mark.parametrize("config", [{"n_jobs": 1}, {"backend": "threading", "n_jobs": 2}])
def test_no_process_of_its_own_nothing_to_watch(config):
    with joblib.parallel_config(**config):
        assert look(None) == [(os.getpid(), False)] * 4


def own_initializer():
    os.environ["OWN_INITIALIZER"] = "ran"


def own(_):
    return os.environ.get("OWN_INITIALIZER"), watched(_)[1]


def test_an_initializer_of_the_users_is_kept():
    with joblib.parallel_config("loky", n_jobs=2, initializer=own_initializer):
        assert processes(None)(delayed(own)(i) for i in range(2)) == [("ran", False)] * 2


SCRIPT = """
import sys, time
from joblib import delayed
from dynchoice.estimate.workers import processes

if __name__ == "__main__":
    running = processes(2, return_as="generator")(delayed(time.sleep)(60) for _ in range(4))
    print("started", flush=True)
    next(running)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.2, 0.5, 1, 4])
def test_workers_of_a_killed_process_end_whether_they_have_begun_or_not(tmp_path, seconds):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    assert len(group(process.pid)) > 1
    process.kill()
    process.wait(timeout=60)
    # importing the package comes first, and may take long on a busy machine
    deadline = time.perf_counter() + 60
    while (alive := group(process.pid)) and time.perf_counter() < deadline:
        time.sleep(0.1)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    process.stdout.close()
    assert not alive
