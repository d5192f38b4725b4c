"""The sample panel's identification report: the pair, what separates it, and without it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.run.config import load_run

PRIME = Path(__file__).resolve().parents[2] / "data" / "prime"
BENEFITS = ["member:shipping", "member:video", "member:music", "member:grocery:grocery_on"]
PAIR = ("member:shipping", "member:grocery:grocery_on")


@pytest.fixture(scope="module")
def families():
    run = load_run(PRIME / "run.toml")
    frame = pd.read_parquet(PRIME / "prime.parquet")
    return run, frame[frame["segment"] == "US families"]


def report(run, frame):
    panel = dc.Panel(
        frame, member="member", time="month", choice="plan", region="region",
        states=run.states, choices=run.spec.model.choices,
    )  # fmt: skip
    fit = dc.NFXP(run.model("US families"), panel).fit()
    return fit, fit.identification(panel)


@pytest.mark.slow
def test_the_hard_pair_and_the_roll_out_that_separates_it(families):
    run, frame = families
    _, found = report(run, frame)
    assert found.hardest(BENEFITS) == PAIR
    text = found.pair_in_words(BENEFITS)
    assert "bundle no_grocery -> with_grocery in 12 of 20 regions (2021-05 to 2022-10)" in text
    share = found.shares()[
        "bundle no_grocery -> with_grocery in 12 of 20 regions (2021-05 to 2022-10)"
    ]
    assert share[list(PAIR)].min() > 0.85 and share["member:video"] < 0.75
    assert "it separates member:shipping and member:grocery:grocery_on" in str(found)
    # and the price: one change, everywhere at once, is all that there is
    assert "without the months after it nothing tells them apart" in str(found)
    # whoever has not fitted yet sees the same before
    before = dc.identification(run.model("US families").with_transitions(_known(run, frame)),
                               _counts(run, frame))  # fmt: skip
    assert before.hardest(BENEFITS) == PAIR


def test_without_the_roll_out_rows_nothing_does(families):
    run, frame = families
    fit, whole = report(run, frame)
    moved = frame.groupby("region")["bundle"].transform("nunique") > 1
    less, found = report(run, frame[~moved])
    assert found.hardest(BENEFITS) == PAIR
    rows = found.pairs(BENEFITS)
    assert (
        abs(rows["correlation"].iloc[0])
        > 0.8
        > 2 * abs(whole.pairs(BENEFITS)["correlation"].iloc[0])
    )
    assert "no roll-out or price change separates them" in found.pair_in_words(BENEFITS)
    for name in PAIR:
        assert less.std_errors[name] > 3 * fit.std_errors[name]
    assert np.isclose(
        rows["correlation"].iloc[0],
        whole.pairs(BENEFITS).filter(like="without bundle").iloc[0, 0],
        atol=0.05,
    )


def _counts(run, frame):
    return dc.Panel(
        frame, member="member", time="month", choice="plan", region="region",
        states=run.states, choices=run.spec.model.choices,
    ).counts  # fmt: skip


def _known(run, frame):
    moves, n = _counts(run, frame).moves()
    return run.model("US families").transitions.estimate(moves, n)[0]
