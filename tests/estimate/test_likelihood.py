import builders
import numpy as np
import oracles
import pytest

from dynchoice.estimate.likelihood import FiniteLikelihood, Likelihood

CASES = [
    pytest.param(0.0, False, id="static"),
    pytest.param(0.95, False, id="attentive"),
    pytest.param(0.95, True, id="inattentive"),
    pytest.param(0.9999, True, id="patient and inattentive"),
]


def setting(beta, attention):
    spec = oracles.random_model(13, 30, 4, 3, beta, attention=attention)
    rng = np.random.default_rng(0)
    n = rng.integers(0, 30, (30, 4)) * spec["available"].astype(float)
    return spec, n


@pytest.mark.parametrize(("beta", "attention"), CASES)
def test_value_score_and_hessian(beta, attention):
    spec, n = setting(beta, attention)
    likelihood = Likelihood(builders.from_oracle(spec), n)
    at = likelihood.evaluate(spec["params"])
    assert at.loglik == pytest.approx(oracles.loglik(spec, spec["params"], n), rel=1e-12)
    scores = oracles.scores_fd(spec, spec["params"], None)
    seen = n > 0
    np.testing.assert_allclose(at.dlogp[seen], scores[seen], atol=2e-7)
    np.testing.assert_allclose(at.score, np.einsum("sj,sjk->k", n, scores), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        at.outer, np.einsum("sj,sjk,sjl->kl", n, scores, scores), rtol=1e-5, atol=1e-4
    )
    hessian = oracles.hessian_fd(spec, spec["params"], n)
    np.testing.assert_allclose(
        likelihood.hessian(at), hessian, rtol=2e-5, atol=2e-5 * np.abs(hessian).max()
    )


@pytest.mark.parametrize("attention", [False, True])
def test_finite_horizon_score_and_hessian(attention):
    spec, _ = setting(0.9, attention)
    T = 4
    model = builders.from_oracle(spec).with_parts(horizon=T)
    n = np.random.default_rng(1).integers(0, 9, (T, 30, 4)) * spec["available"].astype(float)
    likelihood = FiniteLikelihood(model, n)
    theta = spec["params"]
    at = likelihood.evaluate(theta)
    assert at.loglik == pytest.approx(oracles.loglik_finite(spec, theta, n), rel=1e-12)
    steps = np.eye(3) * 1e-5
    gradient = [
        (oracles.loglik_finite(spec, theta + h, n) - oracles.loglik_finite(spec, theta - h, n))
        / 2e-5
        for h in steps
    ]
    np.testing.assert_allclose(at.score, gradient, rtol=1e-6, atol=1e-4)
    second = [
        (FiniteLikelihood(model, n).evaluate(theta + h).score
         - FiniteLikelihood(model, n).evaluate(theta - h).score) / 2e-5
        for h in steps
    ]  # fmt: skip
    np.testing.assert_allclose(likelihood.hessian(at), second, rtol=1e-6, atol=1e-3)


def test_warm_starts_do_not_change_the_answer():
    spec, n = setting(0.99, True)
    model = builders.from_oracle(spec)
    path = Likelihood(model, n)
    rng = np.random.default_rng(0)
    for _ in range(5):
        theta = spec["params"] + 0.3 * rng.normal(size=3)
        warm, cold = path.evaluate(theta), Likelihood(model, n).evaluate(theta)
        assert warm.loglik == pytest.approx(cold.loglik, rel=1e-12)
        np.testing.assert_allclose(warm.score, cold.score, rtol=1e-8, atol=1e-8)


def test_derivatives_belong_to_the_evaluation_they_are_asked_of():
    # an optimiser evaluates trial points and then asks for the curvature at an earlier one
    spec, n = setting(0.99, True)
    model = builders.from_oracle(spec)
    likelihood = Likelihood(model, n)
    at = likelihood.evaluate(spec["params"])
    want = likelihood.hessian(at)
    likelihood.evaluate(spec["params"] + 1.0)
    np.testing.assert_allclose(likelihood.hessian(at), want, rtol=1e-12)


def perturbed(membership, name, j, g, i, change):
    """The membership model with one row of one law moved by ``change``."""
    from dataclasses import replace

    F = membership.known.transitions
    bound = []
    for law in F.bound:
        if law.name == name:
            table = law.table.copy()
            table[j, g, i] += change
            law = replace(law, table=table)
        bound.append(law)
    return membership.known.with_transitions(F.with_bound(tuple(bound)))


def test_cross_derivative_against_finite_differences(membership, fitted):
    fit, panel = fitted
    n = panel.counts.n_sj()
    theta = membership.theta + 0.1
    from dataclasses import replace

    F = membership.known.transitions
    families = {law.name: law.family for law in membership.unknown.transitions.bound}
    bound = tuple(replace(law, family=families[law.name]) for law in F.bound)
    model = membership.known.with_transitions(F.with_bound(bound))
    likelihood = Likelihood(model, n)
    cross = likelihood.cross_derivative(likelihood.evaluate(theta))
    score = likelihood.transition_score(likelihood.evaluate(theta))
    h = 1e-6
    change = np.array([-h, h])
    for name, j, g, i in [("ship", 0, 0, 1), ("ship", 2, 0, 0), ("video", 1, 1, 0)]:
        up, down = (
            Likelihood(perturbed(membership, name, j, g, i, s * change), n).evaluate(theta)
            for s in (1, -1)
        )
        law = next(law for law in F.bound if law.name == name)
        row = (j * law.groups + g) * law.n + i
        numeric = (up.score - down.score) / (2 * h)
        analytic = cross[name][:, row, 1] - cross[name][:, row, 0]
        np.testing.assert_allclose(analytic, numeric, rtol=1e-4, atol=1e-2)
        slope = (up.loglik - down.loglik) / (2 * h)
        assert score[name][row, 1] - score[name][row, 0] == pytest.approx(slope, rel=1e-4, abs=1e-2)
