"""Likelihood and derivatives of models too large to expand, beside the expanded model."""

import builders
import numpy as np
import oracles
import pytest
from solver_models import EPS, KINDS, counts, model_of, unexpanded

import dynchoice as dc
from dynchoice.estimate import start as start_module
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.solvers import linear as linear_module


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.95, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_and_derivatives_are_those_of_the_expanded_model(rng, kind, beta):
    """Several parameters in a row, then the Hessian of each: no evaluation lends its arrays."""
    for seed in (1, 3, 6, 100):
        small, spec = model_of(seed, beta, kind)
        n = counts(rng, small)
        points = spec["params"] + np.vstack([np.zeros(2), 0.5 * rng.normal(size=(2, 2))])
        one = Likelihood(small, n)
        wanted = [one.evaluate(p) for p in points]
        with unexpanded():
            large, _ = model_of(seed, beta, kind)
            two = Likelihood(large, n)
            assert two.solver.system.method == ("levels" if beta else "identity")
            found = [two.evaluate(p) for p in points]
            held = [
                {k: v.copy() for k, v in vars(e).items() if isinstance(v, np.ndarray)}
                for e in found
            ]
            curves = [two.hessian(e) for e in (found[1], found[0], found[2])]
        for e, kept in zip(found, held, strict=True):
            for name, array in kept.items():
                np.testing.assert_array_equal(getattr(e, name), array, err_msg=name)
        near = 1e-9 if beta < 0.99 else 1e-7
        for w, f, H in zip(wanted, found, (curves[1], curves[0], curves[2]), strict=True):
            assert w.converged and f.converged
            scale = np.sqrt(np.outer(np.diag(w.outer), np.diag(w.outer))) + n.sum()
            assert f.loglik == pytest.approx(w.loglik, rel=near)
            np.testing.assert_allclose(f.score, w.score, atol=near * scale.max())
            np.testing.assert_allclose(f.outer, w.outer, atol=near * scale.max())
            np.testing.assert_allclose(H, one.hessian(w), atol=10 * near * scale.max())
            for name in ("P", "pi", "policy", "dlogp"):
                a, b = getattr(f, name), getattr(w, name)
                np.testing.assert_allclose(a, b, atol=100 * near * (1 + np.abs(b).max()))


@pytest.mark.parametrize("beta", [0.5, 0.99])
def test_expanded_models_that_factor_badly(rng, monkeypatch, beta):
    """Where neither dense nor sparse LU pays, whatever takes their place finds the same, also
    where the expanded law falls into more pieces than it has offers."""
    pieces_of = set()
    for seed in (1, 4, 6, 7, 72, 100):
        model, spec = model_of(seed, beta)
        n = counts(rng, model)
        one = Likelihood(model, n)
        want = one.evaluate(spec["params"])
        with monkeypatch.context() as patched:
            patched.setattr(linear_module, "DENSE_STATES", 0)
            patched.setattr(linear_module, "LU_WORK", 0.0)
            other, _ = model_of(seed, beta)
            two = Likelihood(other, n)
        assert two.solver.system.method in ("levels", "gmres")
        found = two.evaluate(spec["params"])
        assert want.converged and found.converged, (seed, found.message)
        scale = 1e-8 * (1 + np.abs(want.outer).max())
        np.testing.assert_allclose(found.score, want.score, atol=scale)
        np.testing.assert_allclose(two.hessian(found), one.hessian(want), atol=10 * scale)
        np.testing.assert_allclose(found.P, want.P, atol=1e-8)
        pieces_of.add(len(np.unique(other.transitions.blocks)) > other.transitions.product.B)
    assert pieces_of == {True, False}


@pytest.mark.parametrize("beta", [0.5, 0.9999])
def test_score_and_hessian_against_the_oracle(rng, beta):
    for seed in (3, 7, 100):
        model, spec = model_of(seed, beta)
        with unexpanded():
            if model.transitions.product.B > 1 and beta > 0.99:
                continue
            n = counts(rng, model)
            likelihood = Likelihood(model, n)
            at = likelihood.evaluate(spec["params"])
            H = likelihood.hessian(at)
        want = oracles.gradient(spec, spec["params"], n)
        near = n.sum() * (1e-8 + 1e3 * EPS / (1 - beta))
        np.testing.assert_allclose(at.score, want, atol=near)
        assert at.loglik == pytest.approx(oracles.loglik(spec, spec["params"], n), rel=1e-9)
        np.testing.assert_allclose(
            H, oracles.hessian_fd(spec, spec["params"], n), rtol=2e-5, atol=1e2 * near
        )


@pytest.mark.parametrize("beta", [0.5, 0.999, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_hessian_against_differences_of_the_score(rng, kind, beta):
    for seed in (3, 101):
        with unexpanded():
            model, spec = model_of(seed, beta, kind)
            likelihood = Likelihood(model, counts(rng, model))
            at = likelihood.evaluate(spec["params"])
            H = likelihood.hessian(at)
            step = 1e-3

            def score(p, likelihood=likelihood):
                e = likelihood.evaluate(p)
                assert e.converged
                return e.score

            slopes = np.stack(
                [oracles.central5(score, spec["params"], k, step) for k in range(2)], axis=1
            )
            again = likelihood.hessian(at)  # of an evaluation that is not the last one
        np.testing.assert_allclose(again, H, rtol=1e-8, atol=1e-8 * np.abs(H).max())
        np.testing.assert_allclose(slopes, H, atol=2e-5 * np.abs(H).max())


def test_derivatives_where_members_hardly_move(rng):
    """Second modes as slow as discounting: what an accuracy of 1e-10 leaves of the derivative."""
    n1, C, n2 = 5, 7, 4
    R = np.zeros((2, C, C))
    R[0, :, 0] = 1.0
    R[1, np.arange(C), np.maximum(np.arange(C) - 1, 0)] = 1.0
    R[1, 0] = np.eye(C)[C - 1]

    def rows(n, *lead):
        return 0.9999 * np.eye(n) + 1e-4 * rng.dirichlet(np.ones(n), size=(*lead, n))

    laws = {
        "a": dc.Markov(("choice",), rows(n1, 2)),
        "c": dc.Markov(("choice",), R),
        "b": dc.Markov(("choice", "a"), rows(n2, 2, n1)),
    }
    states, x = dc.StateSpace(a=range(n1), c=range(C), b=range(n2)), rng.normal(size=(140, 2, 2))
    model = dc.DDC(
        states=states,
        choices=["out", "in"],
        utility=dc.Utility.from_array(0.3 * x, ["k0", "k1"]),
        transitions=dc.Transitions.factored(states, ["out", "in"], laws),
        beta=0.9999,
    )
    theta, n = np.array([0.4, -0.7]), rng.integers(0, 9, (140, 2)).astype(float)
    with unexpanded():
        likelihood = Likelihood(model, n)
        assert likelihood.solver.system.method == "levels"
        far = likelihood.evaluate(theta + 0.3)
        at = likelihood.evaluate(theta)
    assert far.converged and at.converged
    spec = builders.as_spec(model, theta)
    want = oracles.scores_cs(spec, theta)
    np.testing.assert_allclose(at.dlogp, want, atol=1e-8 * np.abs(want).max())


def test_counts_change_and_others_lend_their_solution(rng):
    with unexpanded():
        model, spec = model_of(100, 0.99)
        n, m = counts(rng, model), counts(rng, model)
        likelihood = Likelihood(model, n)
        first = likelihood.evaluate(spec["params"])
        likelihood.recount(m)
        at, fresh = likelihood.evaluate(spec["params"]), Likelihood(model, m)
        assert at.dlogp is first.dlogp
        want = fresh.evaluate(spec["params"])
        warm = Likelihood(model, m)
        warm.warm(first)
        also = warm.evaluate(spec["params"] + 0.1)
        there = fresh.evaluate(spec["params"] + 0.1)
        for a, b in ((at, want), (also, there)):
            np.testing.assert_allclose(a.score, b.score, atol=1e-7 * n.sum())
        H = fresh.hessian(want)
        np.testing.assert_allclose(likelihood.hessian(at), H, atol=1e-8 * np.abs(H).max())


def test_pseudo_likelihood_stages_do_not_disturb_an_evaluation(rng):
    """The default start borrows the likelihood's system and leaves another policy in it."""
    with unexpanded():
        model, spec = model_of(100, 0.95, "attentive")
        n = counts(rng, model)
        likelihood = Likelihood(model, n)
        at = likelihood.evaluate(spec["params"])
        H = likelihood.hessian(at)
        start_module.large_start(model, n, likelihood)
        np.testing.assert_allclose(
            likelihood.hessian(at), H, rtol=1e-8, atol=1e-8 * np.abs(H).max()
        )
