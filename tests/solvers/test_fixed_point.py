"""Solutions of infinite horizons against independent ones."""

import pickle

import builders
import numpy as np
import oracles
import pytest
from solver_models import CASES, EPS, groups_of, model_of, unexpanded

import dynchoice as dc
from dynchoice.model.level_product import Product


def test_copies_for_other_processes(rng):
    with unexpanded():
        model, spec = model_of(100, 0.95)
        at = dc.solve(model, spec["params"])
        assert isinstance(model.transitions.__dict__["product"], Product)
        copy = pickle.loads(pickle.dumps(model))
        again = dc.solve(copy, spec["params"])
        assert (again.V == at.V).all() and (again.ccp == at.ccp).all()
        law = model.transitions.product.trimmed(model.transitions.product.laid(model.available))
        twin = pickle.loads(pickle.dumps(law))
    x = rng.normal(size=law.S)
    assert (twin.expect(x) == law.expect(x)).all()


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.5, 0.99, 0.99999])
def test_solutions_against_dense_newton(beta):
    for seed in CASES:
        model, spec = model_of(seed, beta)
        with unexpanded():
            found = dc.solve(model, spec["params"])
        assert found.converged, (seed, found.message)
        assert beta == 0 or found.stats["method"] == "levels"
        P = np.zeros_like(spec["offset"])
        V = np.zeros(len(P))
        with unexpanded():
            groups = groups_of(model) if beta > 0 else [np.arange(len(P))]
        for own in groups:
            part = {k: spec[k][own] for k in ("x", "offset", "available", "attention", "default")}
            part |= {"F": spec["F"][np.ix_(own, range(P.shape[1]), own)], "beta": beta}
            V[own], _, _, P[own] = oracles.solve_newton(part, spec["params"])
        near = 1e-9 + 20 * EPS / (1 - beta)
        np.testing.assert_allclose(found.ccp, P, atol=near)
        np.testing.assert_allclose(found.V, V, rtol=near, atol=near * (1 + np.abs(V).max()))


@pytest.mark.parametrize(("seed", "beta"), [(4, 0.999), (4, 0.99999), (72, 0.99999)])
def test_chains_in_several_pieces_converge_as_the_expanded_model_does(seed, beta):
    """Laws whose cycles hang on the choice: gains differ between them until the policy is right,
    so that a Newton step solved to a tenth throws the values by 0.1 / (1 - beta)."""
    model, spec = model_of(seed, beta, "attentive")
    want = dc.solve(model, spec["params"])
    assert want.converged
    with unexpanded():
        other, _ = model_of(seed, beta, "attentive")
        found = dc.solve(other, spec["params"])
    assert found.stats["method"] == "levels"
    assert found.converged, found.message
    np.testing.assert_allclose(found.ccp, want.ccp, atol=1e-6)


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
