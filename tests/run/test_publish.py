"""What is said and kept when a run ends at or after its publication."""

import contextlib
import io
import os
import signal
import time

import pytest
from run.test_unattended import done, forecast, started

from dynchoice.run import cli
from dynchoice.run.init import write_sample

FAST = [
    *("--set", "forecast.draws=3", "--set", "forecast.periods=4", "--set", "output.picture=false"),
    *("--set", "output.report=false", "--set", 'guard.drift_estimates="off"'),
    *("--set", 'guard.drift_take_up="off"', "--set", 'guard.calibration="off"'),
]


@pytest.mark.slow
def test_a_stop_after_the_publication_says_that_it_happened(tmp_path):
    write_sample(tmp_path)
    done(tmp_path, *FAST)
    ended = set()
    for i in range(4):
        title = f'title="Run {i}"'
        process = started(tmp_path, *FAST, "--set", title)
        link, was = tmp_path / "out/current", os.readlink(tmp_path / "out/current")
        while process.poll() is None and os.readlink(link) == was:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert os.readlink(link) != was and "nothing was published" not in said
        ended.add(process.returncode)
    assert ended <= {0, -signal.SIGTERM}


@pytest.mark.slow
def test_a_full_output_after_the_publication_is_no_failure(tmp_path):
    write_sample(tmp_path)
    said, full = io.StringIO(), open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with contextlib.redirect_stdout(full), contextlib.redirect_stderr(said):
        code = cli.main(["forecast", str(tmp_path / "run.toml"), *FAST])
    with contextlib.suppress(OSError):
        full.close()
    assert "nothing was published" not in said.getvalue() and code == 0
    assert (tmp_path / "out/current").exists()


def test_a_file_called_backtest_is_not_replaced(tmp_path):
    write_sample(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/backtest").write_text("mine", encoding="utf-8")
    code, said = forecast(tmp_path, *FAST)
    assert code == 2 and "is in the way" in said
    assert (tmp_path / "out/backtest").read_text(encoding="utf-8") == "mine"
