"""Counterfactuals of rewards over numbers, against a model solved on a fine grid."""

import numpy as np
import pytest
from estimate.test_pqr_rows import BETA, CHOICES, GRID, line, loaded, members_on, spec

import dynchoice as dc

__all__ = ["line"]


@pytest.fixture(scope="module")
def fitted(line):
    rows = loaded(members_on(line, 4000, 8, 0), ["hours"])
    return dc.DeepPQR(spec(), rows, degree=3).fit(), rows


def iterated(u, F, beta):
    V = np.zeros(len(GRID))
    for _ in range(400):  # beta^400 is below 1e-18
        v = u + beta * (F @ V).T
        V = np.log(np.exp(v).sum(axis=1))
    return V, np.exp(v - V[:, None])


def test_nothing_changes_nothing(fitted):
    found = dc.reward_counterfactual(*fitted)
    assert found.welfare == 0 and (found.shares["change"] == 0).all()
    assert found.converged and found.identified and found.fit_gap < 1e-6


SUBSIDY, NEVER = np.array([0, 0.5, 0.5]), -1e9
CASES = [
    ("subsidy", {"reward": "0 + I(0.5 * member)"}, lambda u: u + SUBSIDY, BETA, True),
    ("callable", {"reward": lambda t: np.tile(SUBSIDY, (len(t), 1))}, lambda u: u + SUBSIDY, BETA,
     True),
    ("drop", {"drop": ["more"]}, lambda u: u + np.array([0, 0, NEVER]), BETA, True),
    ("drop the anchor", {"drop": "out"}, lambda u: u + np.array([NEVER, 0, 0]), BETA, True),
    ("scale", {"scale": 1.5}, lambda u: 1.5 * u, BETA, True),
    ("beta", {"beta": 0.8}, lambda u: u, 0.8, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "change", "beta", "identified"), CASES)
def test_scenarios_are_those_of_the_solved_model(fitted, line, name, options, change, beta,
                                                 identified):  # fmt: skip
    fit, rows = fitted
    F, u, _ = line
    found = dc.reward_counterfactual(fit, rows, **options)
    at = np.round(rows.x[:, 0] / GRID[1]).astype(int)
    (V0, _), (V1, P1) = iterated(u, F, BETA), iterated(change(u), F, beta)
    assert found.converged and found.identified is identified
    assert np.abs(found.shares["scenario"] - P1[at].mean(axis=0)).max() < 0.015
    assert abs(found.welfare - (V1 - V0)[at].mean()) < 0.05 * abs((V1 - V0)[at].mean()) + 0.02
    table = rows.frame().head(200)
    assert np.abs(found.predict(table).to_numpy() - P1[at[:200]]).max() < 0.06
    values = found.values(table).to_numpy()
    best = np.exp(values - np.nanmax(values, axis=1, keepdims=True))
    shown = np.nan_to_num(best / np.nansum(best, axis=1, keepdims=True))
    assert np.allclose(shown, found.predict(table), atol=1e-9)


def test_a_changed_law_rests_on_the_anchor_and_moves_members(fitted):
    found = dc.reward_counterfactual(
        *fitted, moves=lambda after, now, plan: after.assign(hours=after["hours"] * (plan != "in"))
    )
    assert found.converged and not found.identified and found.normalisation > 1e-3
    assert found.shares["change"]["in"] < -0.02  # "in" now takes next month's hours away
    assert "DEPENDS ON WHAT THE ANCHOR PAYS" in str(found)


def test_another_anchor_reward_gives_the_same_answer_where_it_says_so(line):
    """The class of rewards is that of other fits: the anchor paid by hours, same answer."""
    rows = loaded(members_on(line, 1000, 8, 0), ["hours"])
    fit = dc.DeepPQR(spec(), rows, degree=3).fit()
    other = dc.DeepPQR(spec(reward="hours"), rows, degree=3).fit()
    assert np.abs(other.reward(rows.frame()) - fit.reward(rows.frame())).max().max() > 0.5
    for options, same in (({"drop": "more"}, True), ({"beta": 0.8}, False)):
        a, b = (dc.reward_counterfactual(f, rows, **options) for f in (fit, other))
        gap = np.abs(a.predict(rows.frame()) - b.predict(rows.frame())).max().max()
        assert a.identified is same and (gap < 1e-6) == same


def test_on_levels_is_a_model_that_can_be_solved(fitted, line):
    fit, _ = fitted
    F, _, P = line
    states = dc.StateSpace(hours=GRID.tolist())
    model = fit.on_levels(states, dc.Transitions.dense(np.moveaxis(F, 0, 1)))
    solution = dc.solve(model, fit.params)
    weight = P[:, 0] > 0.02
    assert solution.converged and np.abs(solution.ccp - P)[weight].max() < 0.06
    assert np.allclose(
        model.flow_utility(fit.params), fit.reward(states.frame().astype(float)), atol=1e-12
    )
    with pytest.raises(dc.SpecificationError, match="no feature"):
        fit.on_levels(dc.StateSpace(hour=[0, 1]), dc.Transitions.dense(np.full((2, 3, 2), 0.5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["mor"]}, "Did you mean 'more'"),
        ({"drop": CHOICES}, "without any choice"),
        ({"scale": -1}, "scale=-1"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"reward": "0 + member + plus"}, "2 columns"),
        ({"reward": lambda t: np.zeros(3)}, "finite numbers of shape"),
        ({"moves": lambda a, n, c: a.drop(columns="hours")}, "must return a table"),
        ({"moves": lambda a, n, c: a * np.nan}, "not finite"),
    ],
)
def test_bad_scenarios_are_named(fitted, options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.reward_counterfactual(*fitted, **options)
    with pytest.raises(dc.SpecificationError, match="takes a RewardResults"):
        dc.reward_counterfactual(1, fitted[1])


def test_contracts_do_not_hide_what_is_identified():
    """A choice that a contract never offers has columns its rows cannot tell apart."""
    from estimate.test_pqr_rows import in_contracts, two_periods

    frame, model = two_periods(1500, 3)
    rows = in_contracts(frame)
    fit = dc.DeepPQR(model, rows, degree=2).fit()
    nothing = dc.reward_counterfactual(fit, rows, degree=2)
    assert nothing.converged and nothing.identified and nothing.welfare == 0
    paid = dc.reward_counterfactual(
        fit, rows, degree=2, reward=lambda t: np.tile([0.0, 0.3], (len(t), 1))
    )
    assert paid.converged and paid.identified and paid.shares.loc["out", "change"] < -0.02
    later = dc.reward_counterfactual(fit, rows, degree=2, beta=0.5)
    assert later.converged and not later.identified


def test_a_law_that_changes_far_down_the_sieve_is_seen():
    """Twenty levels as dummies: only the nineteenth's way is changed."""
    rng, rows = np.random.default_rng(0), []
    F = rng.dirichlet(np.ones(20), size=(20, 3))
    for m in range(400):
        s = int(rng.integers(20))
        for t in range(12):
            a = int(rng.integers(3))
            rows.append((m, t, s, CHOICES[a]))
            s = int(rng.choice(20, p=F[s, a]))
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["id", "t", "s", "plan"])
    names = [f"d{k}" for k in range(1, 20)]
    for k in range(1, 20):
        frame[f"d{k}"] = (frame["s"] == k).astype(float)
    data = loaded(frame.assign(hours=frame["s"] / 2), names)
    model = spec(features=lambda t: np.stack(
        [np.zeros((len(t), 1)), np.ones((len(t), 1)), np.zeros((len(t), 1))], 1), names=["in"]
    )  # fmt: skip
    fit = dc.DeepPQR(model, data, degree=1).fit()

    def moves(after, now, plan):
        out = after.copy()
        out.loc[(now["d19"] == 1) & (plan == "in"), names] = 0.0
        return out

    found = dc.reward_counterfactual(fit, data, moves=moves, degree=1)
    assert found.converged and not found.identified
    assert dc.reward_counterfactual(fit, data, drop="more", degree=1).identified
