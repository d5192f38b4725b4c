"""Scenarios that mean something else than in the last run."""

from types import SimpleNamespace

import pandas as pd

from dynchoice.run.guard import drift_of_scenarios
from dynchoice.run.schema import Guard


def test_a_scenario_that_means_something_else_is_told_and_not_held():
    base = pd.DataFrame(
        {"scenario": "cheap", "segment": "s", "label": ["m1"], "choice": "in", "share": [0.17]}
    )
    before = SimpleNamespace(
        table=lambda name: base, folder=SimpleNamespace(name="run-1")
    )  # fmt: skip
    found = drift_of_scenarios(Guard(), base.assign(share=0.93), before)
    assert found.status == "warning" and "76.0 points" in found.text
    assert drift_of_scenarios(Guard(), base, before).status == "ok"
