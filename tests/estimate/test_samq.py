"""SAmQ: states aggregated by their values, then nested fixed point."""

import numpy as np
import pandas as pd
import pytest
from estimate.test_pqr_rows import THETA, chain, line, loaded, members_on, spec

import dynchoice as dc

__all__ = ["line"]


def test_with_a_cluster_a_level_it_is_nfxp_on_the_levels():
    frame = chain(3, members=200)
    found = dc.SAmQ(spec(), loaded(frame), clusters=5, degree=1)
    fit = found.fit()
    x = np.zeros((5, 3, 3))
    x[:, 1:, 0], x[:, 1:, 1], x[:, 2, 2] = 1, np.arange(5)[:, None] / 2, 1
    states = dc.StateSpace(s=range(5))
    law = {"s": dc.Markov(given=("choice",))}
    model = dc.DDC(
        states=states, choices=["out", "in", "more"], beta=0.9,
        utility=dc.Utility.from_array(x, fit.names),
        transitions=dc.Transitions.factored(states, ["out", "in", "more"], law),
    )  # fmt: skip
    panel = dc.Panel(
        frame, member="id", time="t", choice="plan", states=states, choices=["out", "in", "more"]
    )
    nested = dc.NFXP(model, panel).fit()
    assert np.allclose(fit.vector, nested.vector, atol=1e-7)
    assert np.isclose(fit.loglik, nested.loglik)
    assert "5 clusters of like values" in str(fit.summary)


@pytest.mark.slow
def test_bias_falls_with_the_number_of_clusters(line):
    rows = loaded(members_on(line, 6000, 10, 2), ["hours"])
    first = dc.DeepPQR(spec(), rows, degree=3).fit()
    off, spread = [], []
    for clusters in (2, 5, 25):
        fit = dc.SAmQ(spec(), rows, clusters=clusters, first=first).fit()
        off.append(float(((fit.vector - THETA) ** 2).sum()))
        spread.append(float(str(fit.notes[-1]).split("mean ")[1].split(")")[0]))
    assert off[0] > off[1] > off[2] and spread[0] > spread[1] > spread[2]
    assert np.abs((fit.vector - THETA) / fit.std_errors).max() < 3


def test_counterfactuals_are_solved_on_the_clusters(line):
    rows = loaded(members_on(line, 2000, 8, 3), ["hours"])
    fit = dc.SAmQ(spec(), rows, clusters=12, degree=3).fit()
    same = dc.counterfactual(fit, dc.Scenario("same"))
    assert np.abs(same.ccp - fit.ccp).max() < 1e-12
    dear = dc.counterfactual(fit, dc.Scenario("dear", params={"member": fit.params["member"] - 1}))
    assert (dear.ccp[:, 0] > fit.ccp[:, 0]).all()


def test_clusters_keep_what_is_offered_apart():
    """A month in which one choice is offered never shares a cluster with a free one."""
    rng, rows = np.random.default_rng(0), []
    for m in range(400):
        locked = 0
        for t in range(10):
            a = "in" if locked or rng.random() < 0.4 else "out"
            rows.append((m, t, locked, 1 - locked, rng.normal(), a))
            locked = 1 if (a == "in" and not locked) else 0
    frame = pd.DataFrame(rows, columns=["id", "t", "locked", "free", "spend", "plan"])
    model = dc.RewardModel(
        ["out", "in"], beta=0.9, anchor="out", features="0 + start:free",
        attributes=pd.DataFrame({"choice": ["out", "in"], "start": [0, 1]}),
        available={"out": "free"},
    )  # fmt: skip
    data = dc.Trajectories(
        frame, member="id", time="t", choice="plan", features=["locked", "free", "spend"],
        choices=["out", "in"],
    )  # fmt: skip
    found = dc.SAmQ(model, data, clusters=4, degree=1)
    for cluster in np.unique(found.labels):
        assert len(np.unique(data.x[found.labels == cluster, 0])) == 1
    assert (found.aggregated.available[:, 0].astype(int) + 0 < 2).all()
    assert found.aggregated.available.sum() == 4 + (found.aggregated.available[:, 0]).sum()
    assert found.fit().converged


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR, dc.TDCCP])
def test_a_known_part_is_taken_out_of_the_reward(line, kind):
    """With plus known, the others are as with plus at its known value; reward() has all of it."""
    rows = loaded(members_on(line, 4000, 10, 5), ["hours"])
    own = spec(features="0 + member + member:hours", offset="0 + I(-0.4 * plus)")
    fit = kind(own, rows, degree=3).fit()
    assert np.abs((fit.vector - THETA[:2]) / fit.std_errors).max() < 3
    table = pd.DataFrame({"hours": [1.0, 2.0]})
    gap = fit.reward(table)["more"] - fit.reward(table)["in"]
    assert np.allclose(gap, -0.4, atol=0.15)
    with pytest.raises(dc.SpecificationError, match="2 columns"):
        kind(spec(offset="0 + member + plus"), rows).fit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "whole number of at least 2"),
        ({"clusters": 10**7}, "rows"),
        ({"clusters": 2.0}, "whole number"),
        ({"degree": 0}, "degree=0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.SAmQ(spec(), loaded(chain(0)), **{"degree": 1, **options})
    with pytest.raises(dc.SpecificationError, match="takes a RewardModel and Trajectories"):
        dc.SAmQ(spec(), chain(0))


def test_what_the_anchor_is_paid_is_part_of_the_model(line):
    """The same choices with an anchor paid one util: every membership is worth one more."""
    rows = loaded(members_on(line, 1500, 6, 2), ["hours"])
    offset = "0 + I(0.3 * member)"
    plain, paid, moved = (
        dc.SAmQ(spec(**own), rows, clusters=20, degree=3).fit()
        for own in ({}, {"reward": 1.0}, {"offset": offset})
    )
    gap = paid.params - plain.params
    assert abs(gap["member"] - 1) < 0.05 and gap.drop("member").abs().max() < 0.05
    assert np.allclose(moved.params["member"], plain.params["member"] - 0.3, atol=1e-3)


def test_a_choice_that_a_cluster_never_saw_moves_as_in_the_cluster_like_it():
    """Two clusters of "in"-goers never go out; what out leads to is known from the third."""
    rng, rows = np.random.default_rng(0), []
    for m in range(300):
        s = m % 3
        for t in range(6):
            a = "in" if s < 2 else str(rng.choice(["out", "in", "more"]))
            a = str(rng.choice(["in", "more"])) if s < 2 else a
            rows.append((m, t, float(s), a))
            s = int(rng.integers(3)) if a != "out" else 2
    frame = pd.DataFrame(rows, columns=["id", "t", "hours", "plan"])
    states = dc.StateSpace(s=range(3))
    law = dc.Markov(given=("choice",), stand_ins=[[2, 2, 2], [0, 1, 2], [0, 1, 2]])
    choices = ["out", "in", "more"]
    model = dc.DDC(
        states=states, choices=choices, beta=0.9,
        utility=dc.Utility.from_array(np.stack([np.zeros((3, 1)), *np.ones((2, 3, 1))], 1), ["m"]),
        transitions=dc.Transitions.factored(states, choices, {"s": law}),
    )  # fmt: skip
    panel = dc.Panel(
        frame.assign(s=frame["hours"].astype(int)), member="id", time="t", choice="plan",
        states=states, choices=choices,
    )  # fmt: skip
    fit = dc.NFXP(model, panel).fit()
    F = np.asarray(fit.transitions.dense())
    assert (F[0, 0] == F[2, 0]).all() and (F[1, 0] == F[2, 0]).all()
    assert F[0, 0, 2] > 0.95 and any("in the state like theirs" in n for n in fit.notes)
    pooled = dc.DDC(
        states=states, choices=choices, beta=0.9, utility=model.utility,
        transitions=dc.Transitions.factored(states, choices, {"s": dc.Markov(given=("choice",))}),
    )  # fmt: skip
    assert np.asarray(dc.NFXP(pooled, panel).fit().transitions.dense())[0, 0, 2] < 0.6
    with pytest.raises(dc.SpecificationError, match="stand_ins"):
        dc.Transitions.factored(
            states, choices, {"s": dc.Markov(given=("choice",), stand_ins=[[0, 1, 2]])}
        )


def test_errors_go_through_stand_ins():
    """The law of a row that another stands in for moves with the other's counts."""
    from dynchoice.estimate.first_stage import first_stage, influence

    states, choices = dc.StateSpace(s=range(3)), ["out", "in"]
    law = dc.Markov(given=("choice",), stand_ins=[[1, 1, 2], [0, 1, 2]])
    model = dc.DDC(
        states=states, choices=choices, beta=0.9,
        utility=dc.Utility.from_array(np.zeros((3, 2, 1)) + [[0.0], [1.0]], ["m"]),
        transitions=dc.Transitions.factored(states, choices, {"s": law}),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    rows = [
        (m, t, int(rng.integers(3)), "in" if rng.random() < 0.5 else "out")
        for m in range(80) for t in range(5)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["id", "t", "s", "plan"])
    frame.loc[frame["s"] == 0, "plan"] = "in"
    panel = dc.Panel(frame, member="id", time="t", choice="plan", states=states, choices=choices)
    found = first_stage(model, panel.counts, panel)
    (e,) = found.estimates
    assert e.sources.tolist() == [1, 1, 2, 3, 4, 5] and e.borrowed == 1
    weight = rng.normal(size=(1, 6, 3))
    _, V = influence(found.model, found.estimates, {"s": weight})
    # the same functional of the rows that were seen, with the first row's weight on its stand-in
    seen = weight.copy()
    seen[0, 1] += seen[0, 0]
    seen[0, 0] = 0
    total = e.counts.sum(axis=1, keepdims=True)
    centred = seen[0] - (seen[0] * e.probabilities).sum(axis=1, keepdims=True)
    own = np.divide(centred, total, out=np.zeros_like(centred), where=total > 0)
    assert np.allclose(V, (own**2 * e.counts).sum())


def test_terminal_rows_are_refused():
    frame = chain(0)
    frame["ended"] = (frame["t"] == 29).astype(int)
    with pytest.raises(dc.SpecificationError, match="60 rows are terminal"):
        dc.SAmQ(spec(), loaded(frame, terminal="ended"), clusters=3, degree=1)
