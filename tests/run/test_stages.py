"""Stages of runs that were killed are kept as long as they are of use."""

import os
import time

import pandas as pd
import pytest
from run.test_unattended import done

from dynchoice.run.init import write_sample
from dynchoice.run.stages import RECORD, Stages

FAST = [
    *("--set", "forecast.draws=3", "--set", "forecast.periods=4", "--set", "output.picture=false"),
    *("--set", "output.report=false", "--set", 'guard.drift_estimates="off"'),
    *("--set", 'guard.drift_take_up="off"', "--set", 'guard.calibration="off"'),
]


def test_stages_of_a_killed_run_stay_until_a_later_run_has_been_published(tmp_path):
    stages, now = Stages(tmp_path), time.time()
    for name, age in (("a-old", 100), ("b-fresh", 1), ("c-kept", 100), ("d-half", 1)):
        folder = tmp_path / ".stages" / name
        folder.mkdir(parents=True)
        if name != "d-half":
            (folder / RECORD).write_text("{}", encoding="utf-8")
        os.utime(folder, (now - age, now - age))
    assert stages.prune({"c-kept"}, now - 50) == 2
    assert sorted(p.name for p in (tmp_path / ".stages").iterdir()) == ["b-fresh", "c-kept"]


@pytest.mark.slow
def test_a_run_of_some_segments_keeps_what_a_killed_one_finished(tmp_path):
    write_sample(tmp_path)
    segments = dict.fromkeys(pd.read_parquet(tmp_path / "members.parquet")["segment"])
    done(tmp_path, *FAST, "--segments", next(iter(segments)))  # as if killed after one estimate
    before = {p.name for p in (tmp_path / "out/.stages").iterdir()}
    done(tmp_path, *FAST, "--segments", list(segments)[1])
    assert before <= {p.name for p in (tmp_path / "out/.stages").iterdir()}
    said = done(tmp_path, *FAST)
    assert said.count("estimated before") == 2 or "estimating" not in said
