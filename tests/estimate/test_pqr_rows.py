"""Rewards by Deep PQR and GenPQR on rows whose states are numbers."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import dynchoice as dc

BETA = 0.9
CHOICES = ["out", "in", "more"]
ATTRIBUTES = pd.DataFrame({"choice": CHOICES, "member": [0, 1, 1], "plus": [0, 0, 1]})
FEATURES = "0 + member + member:hours + plus"


def spec(**changes):
    own = {"beta": BETA, "anchor": "out", "features": FEATURES, "attributes": ATTRIBUTES}
    return dc.RewardModel(CHOICES, **{**own, **changes})


# a chain of five levels, as dummies: the sieve is saturated, so everything is a table ------------


def chain(seed, members=60, periods=30):
    """Members on a random chain with random probabilities."""
    return _chain(seed, members, periods).copy()


@cache
def _chain(seed, members, periods, S=5, J=3):
    rng = np.random.default_rng(seed)
    F = rng.dirichlet(np.ones(S), size=(S, J))
    P = rng.dirichlet(3 * np.ones(J), size=S)
    rows = []
    for m in range(members):
        s = rng.integers(S)
        for t in range(periods):
            a = rng.choice(J, p=P[s])
            rows.append((m, t, s, CHOICES[a]))
            s = rng.choice(S, p=F[s, a])
    frame = pd.DataFrame(rows, columns=["id", "t", "s", "plan"])
    for k in range(1, S):
        frame[f"d{k}"] = (frame["s"] == k).astype(float)
    frame["hours"] = frame["s"] / 2
    return frame


def loaded(frame, features=("d1", "d2", "d3", "d4", "hours"), **options):
    return dc.Trajectories(
        frame, member="id", time="t", choice="plan", features=features, choices=CHOICES, **options
    )


def by_hand(frame, g=0.0, weights=None):
    """Deep PQR on frequencies of the rows that have a next row, in dense algebra."""
    n = frame.sort_values(["id", "t"]).reset_index(drop=True)
    w = np.ones(len(n)) if weights is None else weights[n["id"].to_numpy()]
    a = n["plan"].map({c: j for j, c in enumerate(CHOICES)}).to_numpy()
    s = n["s"].to_numpy()
    taken = np.zeros((5, 3))
    np.add.at(taken, (s, a), w)
    P = taken / taken.sum(axis=1, keepdims=True)
    follows = (n["id"].shift(-1) == n["id"]).to_numpy()
    moves = np.zeros((5, 3, 5))
    np.add.at(moves, (s[follows], a[follows], s[np.flatnonzero(follows) + 1]), w[follows])
    count = moves.sum(axis=2)
    F = moves / count[:, :, None]
    W = np.linalg.solve(np.eye(5) - BETA * F[:, 0], g - BETA * F[:, 0] @ np.log(P[:, 0]))
    V = W - np.log(P[:, 0])
    r = V[:, None] + np.log(P) - BETA * F @ V
    x = np.zeros((5, 3, 3))
    x[:, 1:, 0], x[:, 1:, 1], x[:, 2, 2] = 1, np.arange(5)[:, None] / 2, 1
    gram = np.einsum("sj,sjk,sjl->kl", count, x, x)
    theta = np.linalg.solve(gram, np.einsum("sj,sjk,sj->k", count, x, r))
    return P, W, r, theta


@pytest.mark.parametrize("g", [0.0, -0.7])
def test_with_a_saturated_sieve_everything_is_the_table(g):
    frame = chain(0)
    P, W, r, theta = by_hand(frame, g)
    fit = dc.DeepPQR(spec(reward=g), loaded(frame), degree=1).fit()
    states = frame.drop_duplicates("s").sort_values("s")
    assert np.allclose(fit.predict(states), P, atol=2e-6)
    assert np.allclose(fit.values(states)["out"], W, atol=2e-5)
    assert np.allclose(fit.reward(states), r, atol=5e-5)
    assert np.allclose(fit.vector, theta, atol=2e-5)
    assert np.allclose(fit.reward(states)["out"], g, atol=5e-5)


def test_genpqr_with_a_saturated_sieve_and_no_pooling_is_the_same_table():
    frame = chain(1)
    _, _, r, _ = by_hand(frame)
    fit = dc.GenPQR(spec(), loaded(frame), degree=1, pool=1e-6).fit()
    states = frame.drop_duplicates("s").sort_values("s")
    assert np.allclose(fit.reward(states), r, atol=1e-4)


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_influence_is_the_derivative_by_the_weight_of_a_member(kind):
    frame = chain(2).assign(w=1.0)
    model = spec()
    base = kind(model, loaded(frame, weights="w"), degree=1)
    sums = base.made.steps.fit().sums
    for m in (0, 7, 31):
        ends = []
        for e in (1e-3, -1e-3):
            moved = frame.assign(w=np.where(frame["id"] == m, 1 + e, 1.0))
            ends.append(kind(model, loaded(moved, weights="w"), degree=1).fit().vector)
        slope = (ends[0] - ends[1]) / 2e-3
        assert np.allclose(slope, sums[m], rtol=1e-3, atol=1e-3 * np.abs(sums).max())


# a line, solved on a fine grid -------------------------------------------------------------------

THETA = np.array([-0.6, 0.5, -0.4])
GRID = np.linspace(0, 4, 201)


@pytest.fixture(scope="module")
def line():
    """Hours watched in [0, 4] that follow last month's and the plan: laws, rewards, policy."""
    edges = np.r_[-np.inf, (GRID[1:] + GRID[:-1]) / 2, np.inf]
    F = np.stack(
        [
            np.diff(norm.cdf((edges - (0.6 * GRID + m)[:, None]) / 0.5), axis=1)
            for m in (0.3, 0.9, 1.2)
        ]
    )
    u = np.stack([0 * GRID, THETA[0] + THETA[1] * GRID, THETA.sum() - THETA[1] * (1 - GRID)], 1)
    V = np.zeros(len(GRID))
    for _ in range(500):
        v = u + BETA * (F @ V).T
        V = np.log(np.exp(v).sum(axis=1))
    return F, u, np.exp(v - V[:, None])


def members_on(line, members, periods, seed):
    F, _, P = line
    rng = np.random.default_rng(seed)
    i, parts = rng.integers(0, len(GRID), members), []
    chance, ahead = P.cumsum(axis=1), F.cumsum(axis=2)
    for t in range(periods):
        a = (rng.random(members)[:, None] > chance[i]).sum(axis=1).clip(0, 2)
        row = {"id": np.arange(members), "t": t, "hours": GRID[i], "plan": np.array(CHOICES)[a]}
        parts.append(pd.DataFrame(row))
        i = (rng.random(members)[:, None] > ahead[a, i]).sum(axis=1).clip(0, len(GRID) - 1)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module", params=[dc.DeepPQR, dc.GenPQR])
def fit(request, line):
    frame = members_on(line, 6000, 10, 0)
    return request.param(spec(), loaded(frame, ["hours"]), degree=3).fit(), frame


def test_the_truth_is_within_its_errors(fit, line):
    results, _ = fit
    assert np.abs((results.vector - THETA) / results.std_errors).max() < 3
    _, u, P = line
    inner = slice(20, 160)
    table = pd.DataFrame({"hours": GRID[inner]})
    assert np.abs(results.predict(table) - P[inner]).max(axis=None) < 0.03
    assert np.abs(results.reward(table) - u[inner]).max(axis=None) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_intervals_hold_the_truth_as_often_as_they_say(line, kind):
    held, draws = [], 50
    for seed in range(draws):
        rows = loaded(members_on(line, 800, 10, 100 + seed), ["hours"])
        results = kind(spec(), rows, degree=3).fit()
        held.append(np.abs(results.vector - THETA) < 1.96 * results.std_errors)
    share = np.mean(held, axis=0)
    assert (share > 0.95 - 4 * np.sqrt(0.05 * 0.95 / draws)).all(), share


def test_the_value_solves_its_own_equation_on_anchor_rows(fit):
    """Fitted-Q iteration from the estimate stays there: the solve is its limit."""
    results, frame = fit
    if results.estimator != "DeepPQR":
        pytest.skip("the anchor's rows are Deep PQR's")
    rows = loaded(frame, ["hours"])
    own = np.flatnonzero((rows.choice == 0) & (rows.next >= 0))
    at, ahead = rows.x[own], rows.x[rows.next[own]]
    logs = np.log(results.predict(pd.DataFrame(ahead, columns=["hours"]))["out"].to_numpy())
    c = np.zeros(results.sieve.size)
    for _ in range(400):
        y = BETA * (-logs + results.sieve(ahead) @ c)
        c = np.linalg.lstsq(results.sieve(at), y, rcond=None)[0]
    assert np.allclose(c, results.value_coefficients, atol=1e-8)


# contracts, ends, weights ------------------------------------------------------------------------


def test_a_contract_books_its_reward_when_it_is_bought():
    """In a locked month one choice is offered; the reward of both months comes at the start."""
    rng, rows = np.random.default_rng(0), []
    r_long = 1.0
    # free: "out" (0) or "in" (two months, r_long booked at the start); V solves a scalar equation
    V = 0.0
    for _ in range(2000):
        V = np.log(np.exp(BETA * V) + np.exp(r_long + BETA**2 * V))
    p = np.exp(BETA * V - V)
    for m in range(3000):
        locked = 0
        for t in range(12):
            a = "in" if locked or rng.random() > p else "out"
            rows.append((m, t, locked, 1 - locked, a))
            locked = 1 if (a == "in" and not locked) else 0
    frame = pd.DataFrame(rows, columns=["id", "t", "locked", "free", "plan"])
    model = dc.RewardModel(
        ["out", "in"], beta=BETA, anchor="out", names=["contract"], available={"out": "free"},
        features=lambda table: np.stack(
            [0 * table[["free"]].to_numpy(), table[["free"]].to_numpy()], axis=1
        ),
    )  # fmt: skip
    data = dc.Trajectories(
        frame, member="id", time="t", choice="plan", features=["locked", "free"],
        choices=["out", "in"],
    )  # fmt: skip
    fit = dc.DeepPQR(model, data, degree=1).fit()
    assert abs(fit.vector[0] - r_long) < 3 * fit.std_errors.iloc[0] < 0.3
    assert np.isnan(fit.reward(frame.head(50))["out"][frame["locked"].head(50) == 1]).all()


def two_periods(members, seed, theta=0.4, leave=-0.7):
    """A contract of two periods whose second is earned as well, and a cost of leaving it."""
    rng, rows = np.random.default_rng(seed), []
    V = np.zeros(3)  # free and new, locked, free after a contract
    for _ in range(3000):
        out = np.array([0.0, -np.inf, leave]) + BETA * V[0]
        stay = np.array([theta + BETA * V[1], theta + BETA * V[2], theta + BETA * V[1]])
        V = np.logaddexp(out, stay)
    p = np.exp(out - V)
    for m in range(members):
        state = 0
        for t in range(12):
            a = "out" if rng.random() < p[state] else "in"
            rows.append((m, t, float(state == 1), float(state == 2), a))
            state = 0 if a == "out" else (2 if state == 1 else 1)
    frame = pd.DataFrame(rows, columns=["id", "t", "locked", "after", "plan"])
    frame["free"] = 1 - frame["locked"]
    model = dc.RewardModel(
        ["out", "in"], beta=BETA, anchor="out", names=["member", "leave"],
        available={"out": "free"},
        features=lambda t: np.stack([
            np.stack([np.zeros(len(t)), -t["after"].to_numpy()], axis=1),
            np.stack([np.ones(len(t)), np.zeros(len(t))], axis=1)], axis=1),
    )  # fmt: skip
    return frame, model


def in_contracts(frame, **options):
    return dc.Trajectories(
        frame, member="id", time="t", choice="plan", features=["locked", "free", "after"],
        choices=["out", "in"], **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR, dc.GLADIUS])
def test_what_a_contract_earns_and_what_leaving_costs_are_features_of_the_reference(kind):
    """The anchor pays for leaving, the locked month earns: both are the parameters' to say."""
    frame, model = two_periods(4000, 0)
    fit = kind(model, in_contracts(frame), degree=1).fit()
    assert np.abs((fit.vector - [0.4, 0.7]) / fit.std_errors).max() < 3
    assert fit.std_errors.max() < 0.1
    states = frame.drop_duplicates(["locked", "after"]).sort_values(["locked", "after"])
    found = fit.reward(states).to_numpy()  # new, after, locked
    want = np.array([[0, 0.4], [-0.7, 0.4], [np.nan, 0.4]])
    seen = np.isfinite(want)
    assert (np.isfinite(found) == seen).all() and np.abs(found - want)[seen].max() < 0.2
    assert np.allclose(fit.predict(states)["out"], np.nan_to_num(
        np.exp(fit.values(states)["out"] - np.log(np.exp(fit.values(states)).sum(axis=1)))
    ), atol=1e-6)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_errors_go_through_the_references_features(kind):
    """Against the spread over samples: the contract's month is worth more than the month itself."""
    found, errors = [], []
    for seed in range(40):
        frame, model = two_periods(500, 100 + seed)
        fit = kind(model, in_contracts(frame), degree=1).fit()
        found.append(fit.vector)
        errors.append(fit.std_errors.to_numpy())
    ratio = np.mean(errors, axis=0) / np.std(found, axis=0, ddof=1)
    assert (np.abs(ratio - 1) < 0.35).all(), ratio
    bias = (np.mean(found, axis=0) - [0.4, 0.7]) / (np.std(found, axis=0, ddof=1) / 40**0.5)
    assert (np.abs(bias) < 3.5).all()


def test_learners_and_features_of_the_reference_do_not_go_together():
    frame, model = two_periods(200, 2)

    class Zero:
        def fit(self, X, y):
            return self

        def predict(self, X):
            return np.zeros(len(X))

    with pytest.raises(dc.SpecificationError, match="need a reference without features"):
        dc.DeepPQR(model, in_contracts(frame), degree=1, regressor=Zero(), folds=2).fit()
    both = lambda t: np.ones((len(t), 2, 1))  # noqa: E731
    same = dc.RewardModel(["out", "in"], beta=BETA, anchor="out", features=both, names=["all"],
                          available={"out": "free"})  # fmt: skip
    with pytest.raises(dc.IdentificationError, match="earns alike: 'all'"):
        dc.DeepPQR(same, in_contracts(frame), degree=1).fit()


def test_after_a_terminal_row_nothing_follows():
    """Members who leave for good: the value of leaving is its reward and no more."""
    rng, rows = np.random.default_rng(1), []
    stay = 0.4  # reward of "in"; "out" ends it
    V = 0.0
    for _ in range(2000):
        V = np.log(1 + np.exp(stay + BETA * V))
    p = np.exp(-V)
    for m in range(4000):
        for t in range(10):
            leave = rng.random() < p
            rows.append((m, t, 1.0, "out" if leave else "in", int(leave)))
            if leave:
                break
    frame = pd.DataFrame(rows, columns=["id", "t", "one", "plan", "ended"])
    model = dc.RewardModel(
        ["out", "in"], beta=BETA, anchor="out", features=lambda t: np.ones((len(t), 2, 1)) *
        np.array([0.0, 1.0])[:, None], names=["stay"],
    )  # fmt: skip
    for kind in (dc.DeepPQR, dc.GenPQR):
        data = dc.Trajectories(
            frame, member="id", time="t", choice="plan", features=["one"], choices=["out", "in"],
            terminal="ended",
        )  # fmt: skip
        fit = kind(model, data).fit()
        assert abs(fit.vector[0] - stay) < 3 * fit.std_errors.iloc[0] < 0.2


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_weights_are_repeats_and_order_does_not_matter(kind):
    frame = chain(4)
    twice = pd.concat([frame, frame.assign(id=frame["id"] + 1000)])
    weighted = kind(spec(), loaded(frame.assign(w=2.0), weights="w"), degree=1).fit()
    repeated = kind(spec(), loaded(twice.sample(frac=1, random_state=0)), degree=1).fit()
    assert np.allclose(weighted.vector, repeated.vector, atol=1e-9)
    assert np.allclose(weighted.cov, repeated.cov, rtol=1e-6)
    assert weighted.nobs == repeated.nobs


# what a user sees --------------------------------------------------------------------------------


def test_results_come_back_from_a_file(fit, tmp_path):
    results, frame = fit
    again = dc.load(results.save(tmp_path / "reward.npz"))
    assert again.params.equals(results.params) and again.cov.equals(results.cov)
    assert again.reward(frame.head(9)).equals(results.reward(frame.head(9)))
    assert str(again.summary) == str(results.summary)


def test_summary_says_what_the_estimate_rests_on(fit):
    text = str(fit[0].summary)
    assert "Rows with the anchor" in text and "projection of the estimated reward" in text
    assert "Columns of the sieve" in text


def test_comparison_with_another_fit(fit):
    table = dc.compare({"a": fit[0], "b": fit[0]})
    assert list(table.params.columns) == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": "aut"}, "Did you mean 'out'"),
        ({"beta": 1.0}, r"in \[0, 1\)"),
        ({"features": len}, "names="),
        ({"features": "0 + member:houres"}, "Did you mean 'hours'"),
        ({"reward": "cost"}, "'cost' is no feature"),
        ({"available": {"mor": "d1"}}, "Did you mean 'more'"),
        ({"available": {"out": "d1"}}, "not offered|offer several choices"),
        ({"attributes": ATTRIBUTES.head(2)}, "one row a choice"),
        ({"features": "0 + member + plus + I(member)"}, "collinear|do"),
    ],
)
def test_bad_models_are_named(changes, message):
    with pytest.raises(dc.DynChoiceError, match=message):
        dc.DeepPQR(spec(**changes), loaded(chain(0)), degree=1).fit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 0}, "degree=0"),
        ({"support": 10**6}, "support=1,000,000"),
        ({"anchor": "out"}, "anchor= is for a DDC only"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(dc.DynChoiceError, match=message):
        dc.DeepPQR(spec(), loaded(chain(0)), **options).fit()
    with pytest.raises(dc.SpecificationError, match="clustered by member"):
        dc.DeepPQR(spec(), loaded(chain(0)), degree=1).fit(cov_type="opg")
    with pytest.raises(dc.SpecificationError, match="takes Trajectories"):
        dc.DeepPQR(spec(), chain(0))
    with pytest.raises(dc.SpecificationError, match="pool=0 must be a positive number"):
        dc.GenPQR(spec(), loaded(chain(0)), pool=0)
