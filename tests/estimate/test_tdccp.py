"""TD-CCP: values by temporal differences, then a pseudo-likelihood."""

import numpy as np
import pytest
from estimate.test_pqr_rows import BETA, CHOICES, THETA, chain, line, loaded, members_on, spec
from scipy.optimize import minimize

import dynchoice as dc

__all__ = ["line"]


def by_cells(frame):
    """The classical estimator by cells: empirical (s, a) -> (s', a') moves, dense algebra."""
    n = frame.sort_values(["id", "t"]).reset_index(drop=True)
    a = n["plan"].map({c: j for j, c in enumerate(CHOICES)}).to_numpy()
    s = n["s"].to_numpy()
    taken = np.zeros((5, 3))
    np.add.at(taken, (s, a), 1)
    P = taken / taken.sum(axis=1, keepdims=True)
    i = np.flatnonzero((n["id"].shift(-1) == n["id"]).to_numpy())
    moves = np.zeros((15, 15))
    np.add.at(moves, (s[i] * 3 + a[i], s[i + 1] * 3 + a[i + 1]), 1)
    moves /= moves.sum(axis=1, keepdims=True)
    x = np.zeros((5, 3, 3))
    x[:, 1:, 0], x[:, 1:, 1], x[:, 2, 2] = 1, np.arange(5)[:, None] / 2, 1
    left = np.linalg.inv(np.eye(15) - BETA * moves)
    h = (left @ x.reshape(15, 3)).reshape(5, 3, 3)
    g = (left @ (BETA * moves @ -np.log(P).reshape(15))).reshape(5, 3)

    def minus(theta):
        v = h @ theta + g
        return -(taken * (v - np.log(np.exp(v).sum(axis=1, keepdims=True)))).sum()

    best = minimize(minus, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    return best.x, h, g


def test_with_cell_dummies_it_is_the_classical_estimator():
    frame = chain(0)
    theta, h, g = by_cells(frame)
    fit = dc.TDCCP(spec(), loaded(frame), degree=1).fit()
    assert np.allclose(fit.vector, theta, atol=1e-5)
    states = frame.drop_duplicates("s").sort_values("s")
    assert np.allclose(fit.values(states), h @ theta + g, atol=1e-4)


def test_the_truth_is_within_its_errors_and_so_is_deep_pqr(line):
    rows = loaded(members_on(line, 6000, 10, 0), ["hours"])
    fit = dc.TDCCP(spec(), rows, degree=3).fit()
    assert np.abs((fit.vector - THETA) / fit.std_errors).max() < 3
    other = dc.DeepPQR(spec(), rows, degree=3).fit()
    assert np.abs((fit.vector - other.vector) / other.std_errors).max() < 2
    assert np.nanmax(np.abs(fit.predict(rows.frame()) - other.predict(rows.frame()))) < 0.05
    assert (fit.reward(rows.frame())["out"] == 0).all()


def test_the_robust_moment_is_solved_and_agrees(line):
    """Halves of the members swap their first stages; the truth is as near as before."""
    rows = loaded(members_on(line, 1500, 8, 0), ["hours"])
    plain = dc.TDCCP(spec(), rows, degree=3).fit()
    fit = dc.TDCCP(spec(), rows, degree=3, robust=True).fit(seed=1)
    assert fit.converged and "locally robust moment" in fit.notes[0]
    assert np.abs((fit.vector - plain.vector) / plain.std_errors).max() < 0.5
    assert (fit.std_errors / plain.std_errors).between(0.8, 1.25).all()
    # every member's score comes from the other half: their sum is zero at the estimate
    sums = fit.influence
    assert np.abs(sums.sum(axis=0)).max() < 1e-4 * np.abs(sums).sum(axis=0).max()


def test_the_robust_moment_hangs_on_its_seed_only(line):
    rows = loaded(members_on(line, 300, 8, 0), ["hours"])
    one, again, other = (
        dc.TDCCP(spec(), rows, degree=2, robust=True).fit(seed=seed).params for seed in (1, 1, 2)
    )
    assert again.equals(one) and not other.equals(one)


def test_the_robust_moment_does_not_move_with_small_errors_of_values(line):
    """Neyman orthogonality: perturb the values, the moment moves by the square only."""
    rows = loaded(members_on(line, 4000, 8, 3), ["hours"])
    made = dc.TDCCP(spec(), rows, degree=2)
    policy = made.policy.policy(1e-8, 100)
    system, omega, xi = made._differences(policy)
    theta = made._maximise(policy, omega, xi, 1e-8, 100)[0]
    gamma = made._evaluate(policy, omega, xi, theta)[3]
    way = np.random.default_rng(0).normal(size=xi.shape)

    def moment(e, corrected):
        if not corrected:
            return made._evaluate(policy, omega, xi + e * way, theta)[1]
        sums, w = made._influence(policy, omega, xi + e * way, theta, system, gamma)
        return w @ sums

    for e in (0.01, 0.005):
        plain, robust = (np.abs(moment(e, c) - moment(0, c)).max() for c in (False, True))
        assert robust < 0.2 * plain
    halves = [np.abs(moment(e, True) - moment(0, True)).max() for e in (0.01, 0.005)]
    assert halves[1] < 0.35 * halves[0]  # a quarter, were it the square alone


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say(line):
    held, draws = [], 50
    for seed in range(draws):
        rows = loaded(members_on(line, 800, 10, 500 + seed), ["hours"])
        fit = dc.TDCCP(spec(), rows, degree=3).fit()
        held.append(np.abs(fit.vector - THETA) < 1.96 * fit.std_errors)
    share = np.mean(held, axis=0)
    assert (share > 0.95 - 4 * np.sqrt(0.05 * 0.95 / draws)).all(), share


def test_results_come_back_from_a_file(line, tmp_path):
    frame = members_on(line, 500, 6, 1)
    fit = dc.TDCCP(spec(), loaded(frame, ["hours"])).fit()
    again = dc.load(fit.save(tmp_path / "fit.npz"))
    assert again.params.equals(fit.params) and str(again.summary) == str(fit.summary)
    assert again.values(frame.head(5)).equals(fit.values(frame.head(5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "takes a RewardModel and Trajectories"),
        ({"reward": 1.0}, "reward is zero"),
        ({"degree": 0}, "degree=0"),
        ({"cov_type": "opg"}, "clustered by member"),
    ],
)
def test_bad_arguments_are_named(change, message):
    rows = loaded(chain(0))
    model = change.get("model") or spec(reward=change.get("reward", 0.0))
    with pytest.raises(dc.DynChoiceError, match=message):
        dc.TDCCP(model, rows, degree=change.get("degree", 1)).fit(
            cov_type=change.get("cov_type", "clustered")
        )
