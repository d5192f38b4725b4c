import builders
import numpy as np
import oracles
import pytest

import dynchoice as dc
from dynchoice.model import factored
from dynchoice.model import level_product as product
from dynchoice.solvers import linear
from dynchoice.solvers.linear import PolicySystem, choose_method


@pytest.mark.parametrize("seed", range(14))
def test_solution_against_an_independent_newton(seed):
    rng = np.random.default_rng(seed)
    S, J = int(rng.integers(1, 120)), int(rng.integers(2, 6))
    beta = [0.0, 0.5, 0.95, 0.99, 0.999, 0.9999, 0.99999][seed % 7]
    spec = oracles.random_model(
        seed, S, J, 2, beta, masks=seed % 2 == 0, attention=seed % 3 == 0, sparse=seed % 4 == 0
    )
    solution = dc.solve(builders.from_oracle(spec), spec["params"])
    V, v, _, P = oracles.solve_newton(spec, spec["params"])
    assert solution.converged and solution.residual < 1e-10
    np.testing.assert_allclose(solution.ccp, P, atol=1e-11)
    np.testing.assert_allclose(solution.V, V, rtol=1e-10, atol=1e-10)
    offered = np.isfinite(v)
    np.testing.assert_allclose(solution.v[offered], v[offered], rtol=1e-10, atol=1e-10)
    assert np.isneginf(solution.v[~offered]).all()


def test_solution_against_fifty_thousand_contractions():
    spec = oracles.random_model(4, 25, 3, 2, 0.999)
    V, _, _, P = oracles.solve_contraction(spec, spec["params"], steps=50_000)
    solution = dc.solve(builders.from_oracle(spec), spec["params"])
    np.testing.assert_allclose(solution.V, V, rtol=1e-11)
    np.testing.assert_allclose(solution.ccp, P, atol=1e-12)


def test_bus_engine_at_beta_099999_reaches_the_residual():
    states, choices = dc.StateSpace(m=range(90)), ["keep", "replace"]
    x = np.zeros((90, 2, 2))
    x[:, 1, 0], x[:, 0, 1] = -1, -0.001 * np.arange(90)
    law = {"m": dc.Increment(2, "replace", [0.39, 0.6, 0.01])}
    model = dc.DDC(
        states=states,
        choices=choices,
        beta=0.99999,
        utility=dc.Utility.from_array(x, ["RC", "theta11"]),
        transitions=dc.Transitions.factored(states, choices, law),
    )
    solution = dc.solve(model, {"RC": 10.0, "theta11": 2.3})
    assert solution.converged and solution.residual < 1e-10
    assert solution.stats["newton"] <= 10


def test_newton_steps_do_not_depend_on_beta():
    steps = []
    for beta in (0.95, 0.99, 0.999, 0.9999, 0.99999):
        spec = oracles.random_model(2, 60, 3, 2, beta)
        steps.append(dc.solve(builders.from_oracle(spec), spec["params"]).stats["newton"])
    assert max(steps) <= 8


def test_one_state_closed_form():
    states = dc.StateSpace(on=range(1))
    model = dc.DDC(
        states=states,
        choices=["a", "b"],
        beta=0.9,
        utility=dc.Utility.from_array(np.array([[[0.0], [1.0]]]), ["k"]),
        transitions=dc.Transitions.dense(np.ones((1, 2, 1))),
    )
    solution = dc.solve(model, [0.7])
    assert solution.V[0] == pytest.approx(np.log(1 + np.exp(0.7)) / 0.1, rel=1e-13)
    assert solution.frame()["P(b)"][0] == pytest.approx(1 / (1 + np.exp(-0.7)), rel=1e-13)


def clock_model(beta=0.99):
    """Two offers that never meet, a clock, a drifting level: 2 blocks of 60 states."""
    states = dc.StateSpace(offer=["a", "b"], clock=range(6), level=range(10))
    choices = ["stay", "move", "rest"]
    rng = np.random.default_rng(0)
    drift = np.zeros((3, 10, 10))
    for j, up in enumerate((0.1, 0.5, 0.3)):
        for i in range(10):
            drift[j, i, min(i + 1, 9)] += up
            drift[j, i, max(i - 1, 0)] += 0.2
            drift[j, i, i] += 0.8 - up
    laws = {
        "offer": dc.Fixed(),
        "clock": dc.Deterministic(lambda level, choice: 0 if choice == "move" else (level + 1) % 6),
        "level": dc.Markov(("choice",), drift),
    }
    utility = dc.Utility.from_array(rng.normal(size=(120, 3, 4)), list("abcd"))
    return dc.DDC(
        states=states,
        choices=choices,
        utility=utility,
        beta=beta,
        transitions=dc.Transitions.factored(states, choices, laws),
    )


def test_status_is_honest_when_steps_run_out():
    model, theta = clock_model(0.9999), np.array([0.5, -0.3, 0.2, 1.0])
    short = dc.solve(model, theta, maxiter=0)
    assert not short.converged and "not converged" in short.message
    with pytest.raises(dc.ConvergenceError, match="not converged"):
        dc.solve(model, theta, maxiter=0, strict=True)
    with pytest.raises(dc.SpecificationError, match="start has shape"):
        dc.solve(model, theta, start=np.zeros(3))


@pytest.mark.parametrize(
    "method", ["dense", "sparse", "gmres", "levels", "expanded levels", "matrix-free"]
)
def test_every_linear_solver_gives_the_same_answers(method, monkeypatch):
    if method in ("sparse", "gmres"):
        monkeypatch.setattr(linear, "DENSE_STATES", 0)
    if method in ("gmres", "expanded levels"):
        monkeypatch.setattr(linear, "DENSE_STATES", 0)
        monkeypatch.setattr(linear, "LU_WORK", 0)
    if method in ("levels", "matrix-free"):
        monkeypatch.setattr(factored, "STACKED_LIMIT", 0)
    if method in ("matrix-free", "gmres"):  # a law without the form that sweeps need
        monkeypatch.setattr(product, "LARGEST_HALF", 0)
    model = clock_model()
    chosen, reason = choose_method(model.transitions)
    assert chosen == method.replace("matrix-free", "gmres").replace("expanded ", "") and reason
    theta = np.array([0.5, -0.3, 0.2, 1.0])
    solution = dc.solve(model, theta)
    assert solution.converged and solution.stats["method"] == chosen
    F, P = model.transitions.dense(), solution.ccp
    A = np.eye(120) - 0.99 * np.einsum("sj,sjt->st", P, F)
    b = np.random.default_rng(1).normal(size=(120, 3))
    system = PolicySystem(model.transitions, 0.99)
    system.factor(P)
    np.testing.assert_allclose(A @ system.solve(b), b, atol=1e-8)
    np.testing.assert_allclose(A.T @ system.solve(b[:, 0], transposed=True), b[:, 0], atol=1e-8)
    V = np.linalg.solve(A, (P * (model.flow_utility(theta) - np.log(P))).sum(axis=1))
    np.testing.assert_allclose(solution.V, V, rtol=1e-9)


def test_blocks_are_closed_groups():
    blocks = clock_model().transitions.blocks
    assert len(np.unique(blocks)) == 2 and (blocks[:60] == blocks[0]).all()


@pytest.mark.parametrize("attention", [False, True])
def test_backward_induction(attention):
    spec = oracles.random_model(6, 15, 3, 2, 0.95, attention=attention)
    model = builders.from_oracle(spec).with_parts(horizon=6)
    V, v, P = oracles.solve_finite(spec, spec["params"], 6)
    solution = dc.solve(model, spec["params"])
    np.testing.assert_allclose(solution.V, V[:6], atol=1e-12)
    np.testing.assert_allclose(solution.ccp, P, atol=1e-13)
    assert np.abs(solution.ccp[0] - solution.ccp[-1]).max() > 1e-3


def test_a_long_horizon_approaches_the_infinite_one():
    spec = oracles.random_model(6, 15, 3, 2, 0.9)
    model = builders.from_oracle(spec)
    long = dc.solve(model.with_parts(horizon=400), spec["params"])
    np.testing.assert_allclose(long.ccp[0], dc.solve(model, spec["params"]).ccp, atol=1e-12)


def test_what_cannot_fit_is_refused_before_it_is_allocated(monkeypatch):
    states = dc.StateSpace(x=range(30_000))
    F = dc.Transitions.factored(states, ["a", "b"], {"x": dc.Cycle()})
    utility = dc.Utility.from_array(np.ones((30_000, 2, 1)), ["k"])
    model = dc.DDC(states=states, choices=["a", "b"], utility=utility, transitions=F, beta=0.9)
    monkeypatch.setenv("DYNCHOICE_MEMORY", "20MB")
    told = r"a solution of 30,000 states takes about 0\.\d GB, DYNCHOICE_MEMORY allows 0\.0 GB: use"
    with pytest.raises(dc.DynChoiceError, match=told):
        dc.solve(model, [1.0])
    from dynchoice.estimate.likelihood import Likelihood

    with pytest.raises(MemoryError, match="a likelihood of 30,000 states and 1 parameters"):
        Likelihood(model, np.ones((30_000, 2)))
    monkeypatch.delenv("DYNCHOICE_MEMORY")
    assert dc.solve(model, [1.0]).converged
