"""GLADIUS, networks and maximum causal entropy."""

import subprocess
import sys

import builders
import numpy as np
import pandas as pd
import pytest
from estimate.test_pqr_rows import (
    ATTRIBUTES,
    CHOICES,
    GRID,
    THETA,
    by_hand,
    chain,
    line,
    loaded,
    members_on,
    spec,
)
from oracles import maximum_causal_entropy
from scipy.optimize import minimize

import dynchoice as dc

__all__ = ["line"]


def test_with_a_column_a_level_and_choice_it_is_the_table():
    frame = chain(0)
    P, _, r, theta = by_hand(frame)
    fit = dc.GLADIUS(spec(), loaded(frame), degree=1, pool=1e-6).fit()
    states = frame.drop_duplicates("s").sort_values("s")
    assert np.allclose(fit.predict(states), P, atol=2e-6)
    assert np.allclose(fit.reward(states), r, atol=1e-4)
    assert np.allclose(fit.vector, theta, atol=1e-4)


def test_it_is_the_minimum_of_the_papers_objective():
    """Against a general optimiser on the objective as printed, zeta a projection."""
    frame, beta, pool, weight = chain(3, members=40), 0.9, 7.0, 2.5
    made = dc.GLADIUS(spec(), loaded(frame, ["hours"]), degree=2, pool=pool, weight=weight).made
    fit = made.fit()
    n = frame.sort_values(["id", "t"]).reset_index(drop=True)
    a = n["plan"].map({c: j for j, c in enumerate(CHOICES)}).to_numpy()
    phi = made.steps.sieve(n[["hours"]].to_numpy())
    G = phi.shape[1]
    on = np.flatnonzero((n["id"].shift(-1) == n["id"]).to_numpy() & (a == 0))

    def objective(b):
        q = (phi @ b[:G])[:, None] + phi @ b[G:].reshape(3, G).T
        V = np.log(np.exp(q).sum(axis=1))
        follow = V[on + 1]
        zeta = phi[on] @ np.linalg.lstsq(phi[on], follow, rcond=None)[0]
        square = (beta * follow - q[on, 0]) ** 2 - beta**2 * (follow - zeta) ** 2
        return (V - q[np.arange(len(a)), a]).sum() + weight * square.sum() + pool / 2 * (
            b[G:] ** 2
        ).sum()  # fmt: skip

    best = minimize(objective, fit.value_coefficients * 0.9, method="BFGS", options={"gtol": 1e-5})
    assert objective(fit.value_coefficients) <= best.fun + 1e-5
    assert objective(fit.value_coefficients) < objective(fit.value_coefficients * 1.01)


def test_the_truth_is_within_its_errors_and_a_file_brings_it_back(line, tmp_path):
    rows = loaded(members_on(line, 4000, 10, 0), ["hours"])
    fit = dc.GLADIUS(spec(), rows, degree=3).fit()
    assert np.abs((fit.vector - THETA) / fit.std_errors).max() < 3
    again = dc.load(fit.save(tmp_path / "gladius.npz"))
    table = pd.DataFrame({"hours": GRID[::20]})
    assert again.reward(table).equals(fit.reward(table)) and again.params.equals(fit.params)
    assert dc.reward_counterfactual(fit, rows, drop="more").identified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0}, "weight=0"),
        ({"weight": "a"}, "weight='a'"),
        ({"weight": None}, "weight=None"),
        ({"pool": [1]}, r"pool=\[1\]"),
        ({"pairs": "yes"}, "pairs='yes'"),
        ({"support": 0}, "support=0"),
        ({"support": 1.5}, "support=1.5"),
        ({"pool": -1}, "pool=-1"),
        ({"folds": 2}, "folds= goes with a network="),
        ({"network": 3}, "a dynchoice.Network is needed"),
        ({"support": 10**6}, "support=1,000,000"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(dc.DynChoiceError, match=message):
        dc.GLADIUS(spec(), loaded(chain(0)), **options)
    with pytest.raises(dc.SpecificationError, match="takes a RewardModel"):
        dc.GLADIUS(spec(), chain(0))


# networks ----------------------------------------------------------------------------------------


def test_without_torch_the_message_names_the_cpu_wheel():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, dynchoice as dc\n"
        "learner = dc.Network((4,))\n"
        "try:\n    learner.fit(np.zeros((3, 1)), np.zeros(3))\n"
        "except dc.MissingExtraError as e:\n    print(e, e.exit_code)\n"
        "print(hasattr(dc, 'GLADIUS'), 'torch' in dir(dc))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "download.pytorch.org/whl/cpu" in done.stdout and "the sieve 2" in done.stdout
    assert "True" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ()}, "hidden is empty"),
        ({"epochs": 0}, "epochs=0"),
        ({"holdout": 1.0}, "holdout=1 must lie between 0 and 1"),
        ({"rate": -1}, "rate=-1"),
        ({"rate": "fast"}, "rate='fast'"),
        ({"decay": float("inf")}, "decay=inf"),
        ({"hidden": True}, "hidden=True"),
        ({"hidden": None}, "hidden=None"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_networks_are_named(options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.Network(**options)


@pytest.mark.slow
def test_a_network_learns_a_surface_and_classes():
    pytest.importorskip("torch", reason="the extra 'deep' is not installed")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 2))
    y = np.sin(2 * X[:, 0]) * X[:, 1]
    net = dc.Network((32, 32)).fit(X, y)
    assert np.mean((net.predict(X) - y) ** 2) < 0.1 * y.var()
    again = dc.Network((32, 32)).fit(X, y)
    assert (again.predict(X) == net.predict(X)).all()
    p = 1 / (1 + np.exp(-2 * X[:, 0]))
    d = (rng.random(4000) < p).astype(np.int64) * 2  # classes 0 and 2
    found = dc.Network((16,), patience=3).fit(X, d)
    assert found.classes_.tolist() == [0, 2] and found.epochs_run < 100
    assert np.abs(found.predict_proba(X)[:, 1] - p).mean() < 0.05


@pytest.mark.slow
def test_networks_in_every_step(line):
    pytest.importorskip("torch", reason="the extra 'deep' is not installed")
    rows = loaded(members_on(line, 1500, 10, 1), ["hours"])
    net = dc.Network((16, 16), epochs=30)
    table = pd.DataFrame({"hours": GRID[30:160]})
    plain = dc.DeepPQR(spec(), rows, degree=2).fit()
    for fit in (
        dc.GLADIUS(spec(), rows, network=net).fit(seed=0),
        dc.DeepPQR(spec(), rows, regressor=net, classifier=net, folds=2, rounds=10).fit(seed=0),
    ):
        assert np.abs((fit.vector - plain.vector) / plain.std_errors).max() < 1
        assert np.abs(fit.reward(table) - line[1][30:160]).mean().max() < 0.25


@pytest.mark.slow
def test_a_network_that_diverges_is_no_worse_than_the_sieve_or_says_so(line):
    pytest.importorskip("torch", reason="the extra 'deep' is not installed")
    import warnings

    rows = loaded(members_on(line, 500, 8, 1), ["hours"])
    plain = dc.DeepPQR(spec(), rows, degree=2).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.ConvergenceWarning)
        fit = dc.GLADIUS(spec(), rows, network=dc.Network((16,), rate=0.99)).fit(seed=0)
    away = np.abs((fit.vector - plain.vector) / plain.std_errors).max()
    assert away < 1 or not fit.converged


# maximum causal entropy --------------------------------------------------------------------------


def test_maximum_causal_entropy_by_the_textbook_is_nfxp():
    """Soft value iteration, forward visitation, features matched: the multipliers are NFXP's."""
    membership = builders.small_membership(members=400, periods=8, seed=5)
    panel = builders.membership_panel(membership, membership.frame)
    fit = dc.MCEIRL(membership.unknown, panel).fit()
    nested = dc.NFXP(membership.unknown, panel).fit()
    assert fit.estimator == "MCEIRL" and fit.params.equals(nested.params)
    assert fit.cov.equals(nested.cov) and fit.converged
    model = fit.model
    F = np.asarray(model.transitions.dense())
    n = fit.counts
    theta = maximum_causal_entropy(
        F, model.utility.x, model.utility.offset, model.available, model.beta, n
    )
    assert np.abs((theta - fit.vector) / fit.std_errors).max() < 1e-3
    match = dc.feature_match(fit)
    assert np.allclose(match["observed"], match["model"], rtol=1e-5, atol=1e-7)
    other = dc.feature_match(dc.CCP(membership.unknown, panel).fit())
    assert not np.allclose(other["observed"], other["model"], rtol=1e-5, atol=1e-7)


def test_all_agree_on_a_table_of_levels():
    """One truth, seven estimators, one table (reference, 8A.7)."""
    rng = np.random.default_rng(4)
    S, beta = 6, 0.9
    F = rng.dirichlet(np.ones(S), size=(S, 3))
    x = np.zeros((S, 3, 3))
    x[:, 1:, 0], x[:, 1:, 1], x[:, 2, 2] = 1, np.arange(S)[:, None] / 2, 1
    theta, V = np.array([-0.8, 0.5, -0.3]), np.zeros(S)
    for _ in range(1000):
        v = x @ theta + beta * F @ V
        V = np.log(np.exp(v).sum(axis=1))
    P, rows = np.exp(v - V[:, None]), []
    s = rng.integers(S, size=2000)
    for t in range(10):
        a = (rng.random(2000)[:, None] > P[s].cumsum(axis=1)).sum(axis=1).clip(0, 2)
        rows.append(pd.DataFrame({"id": np.arange(2000), "t": t, "s": s, "a": a}))
        s = (rng.random(2000)[:, None] > F[s, a].cumsum(axis=1)).sum(axis=1).clip(0, S - 1)
    frame = pd.concat(rows, ignore_index=True)
    frame["plan"], frame["hours"] = np.array(CHOICES)[frame["a"]], frame["s"] / 2
    for k in range(1, S - 1):
        frame[f"d{k}"] = (frame["s"] == k).astype(float)
    states = dc.StateSpace(s=range(S))
    names = ["member", "member:hours", "plus"]
    model = dc.DDC(
        states=states, choices=CHOICES, beta=beta, utility=dc.Utility.from_array(x, names),
        transitions=dc.Transitions.factored(states, CHOICES, {"s": dc.Markov()}),
    )  # fmt: skip
    panel = dc.Panel(frame, member="id", time="t", choice="plan", states=states, choices=CHOICES)
    data = dc.Trajectories(
        frame, member="id", time="t", choice="plan", choices=CHOICES,
        features=["hours", *(f"d{k}" for k in range(1, S - 1))],
    )  # fmt: skip
    reward = dc.RewardModel(
        CHOICES, beta=beta, anchor="out", attributes=ATTRIBUTES,
        features="0 + member + member:hours + plus",
    )  # fmt: skip
    fits = {
        "NFXP": dc.NFXP(model, panel).fit(),
        "MCE-IRL": dc.MCEIRL(model, panel).fit(),
        "NPL": dc.NPL(model, panel).fit(),
        "CCP": dc.CCP(model, panel).fit(),
        "DeepPQR": dc.DeepPQR(model, panel, anchor="out").fit(),
        "GenPQR": dc.GenPQR(model, panel, reference="uniform",
                            reward=(x @ theta).mean(axis=1)).fit(),
        "DeepPQR, rows": dc.DeepPQR(reward, data, degree=1).fit(),
        "GenPQR, rows": dc.GenPQR(reward, data, degree=1).fit(),
        "TDCCP": dc.TDCCP(reward, data, degree=1).fit(),
        "GLADIUS": dc.GLADIUS(reward, data, degree=1).fit(),
    }  # fmt: skip
    table = dc.compare(fits)
    gap = table.params.sub(theta, axis=0) / table.std_errors
    assert (table.params.index == names).all() and gap.abs().max().max() < 3
    # a less efficient estimator is away from the efficient one by the difference of variances
    away = table.params.sub(table.params["NFXP"], axis=0).abs()
    lost = table.std_errors.pow(2).sub(table.std_errors["NFXP"] ** 2, axis=0).clip(lower=0)
    near = away <= 3 * lost**0.5 + 0.1 * table.std_errors
    # GenPQR was told the truth's mean reward, so it need not be less efficient
    assert near.drop(columns="GenPQR").all(axis=None), away / lost**0.5
    assert "DeepPQR, rows" in str(table) and "first-stage policy" in str(table)
    assert table.best("aic") not in ("DeepPQR, rows", "GenPQR, rows", "GLADIUS")
