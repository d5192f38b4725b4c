"""CCP and NPL against dense algebra, finite differences and simulation."""

import importlib.util
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import oracles
import pytest

import dynchoice as dc
from dynchoice.estimate.choice_probabilities import FirstStageChoice
from dynchoice.estimate.finite_dependence import DependentLikelihood
from dynchoice.estimate.policy_inversion import SimulatedValues, valuation
from dynchoice.solvers.linear import PolicySystem

builders.RUST_THETA = np.array([0.4, 2.0])
DEPENDENT = {"valuation": "finite-dependence"}


def expected(spec, total=1e6):
    """Expected counts of the stationary distribution, and the true probabilities."""
    P = oracles.solve_newton(spec, spec["params"])[3]
    return total * oracles.stationary(spec["F"], P)[:, None] * P, P


def expected_by_period(spec, T, total=1e6):
    P = oracles.solve_finite(spec, spec["params"], T)[2]
    S = len(spec["attention"])
    mu, _ = oracles.push_forward(spec, P, None, np.full(S, 1 / S), T)
    return total * mu[:T, :, None] * P, P


def counts_by_period(model, n):
    """Counts of choices n (T, S, J) without member cells."""
    t, s, j = np.nonzero(n)
    zero = np.zeros_like(t)
    pooled = builders.choice_counts(model, n.sum(axis=0))
    by_period = np.stack([zero, t, s, j, zero + 1], axis=1)
    return replace(pooled, period_cells=by_period, period_n=n[t, s, j], _cache={})


def gap(a, b):
    """Largest distance of two fits in standard errors of the first."""
    return np.abs((a.params - b.params) / a.std_errors).max()


# ---------------------------------------------------------------- NPL


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beta", "attention"), [(0.9, True), (0.995, False)])
def test_npl_is_maximum_likelihood(seed, beta, attention):
    spec = oracles.random_model(seed, 25, 3, 3, beta, attention=attention)
    model, counts, _ = builders.simulated_counts(spec, 500, 6, seed)
    nfxp, npl = dc.NFXP(model, counts).fit(), dc.NPL(model, counts).fit()
    assert npl.converged and npl.pseudo_loglik is None
    assert gap(nfxp, npl) < 1e-6
    assert npl.loglik == pytest.approx(nfxp.loglik, rel=1e-12)
    np.testing.assert_allclose(npl.cov, nfxp.cov, rtol=1e-5, atol=1e-10)


def test_npl_on_the_membership_panel(membership, fitted):
    nfxp, panel = fitted
    for first_stage in ("smoothed", "frequencies", "logit"):
        npl = dc.NPL(membership.unknown, panel, first_stage=first_stage).fit()
        assert npl.converged and gap(nfxp, npl) < 1e-6
    np.testing.assert_allclose(npl.cov, nfxp.cov, rtol=1e-5)
    again = dc.NPL(membership.unknown, panel).fit(start=membership.theta)
    assert gap(nfxp, again) < 1e-6


@pytest.mark.parametrize("first_stage", ["smoothed", "frequencies", "logit"])
def test_one_stage_is_ccp_and_more_stages_approach_the_maximum(first_stage):
    spec = oracles.random_model(3, 20, 3, 2, 0.95)
    model, counts, _ = builders.simulated_counts(spec, 800, 6, 2)
    nfxp = dc.NFXP(model, counts).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.IdentificationWarning)
        ccp = dc.CCP(model, counts, first_stage=first_stage).fit()
    steps = [dc.NPL(model, counts, steps=k, first_stage=first_stage).fit() for k in (1, 2, 6)]
    np.testing.assert_allclose(steps[0].params, ccp.params, atol=1e-9)
    assert steps[0].pseudo_loglik == pytest.approx(ccp.pseudo_loglik, rel=1e-12)
    np.testing.assert_allclose(steps[0].cov, ccp.cov, rtol=1e-8)
    assert gap(nfxp, steps[2]) < 1e-3 and gap(nfxp, steps[2]) < gap(nfxp, steps[0])
    assert ccp.loglik <= nfxp.loglik and steps[0].estimator == "NPL (1 steps)"


def test_npl_that_did_not_converge_says_so():
    spec = oracles.random_model(3, 20, 3, 2, 0.95)
    model, counts, _ = builders.simulated_counts(spec, 300, 5, 2)
    with pytest.warns(dc.ConvergenceWarning, match="not converged"):
        fit = dc.NPL(model, counts).fit(maxiter=1)
    assert not fit.converged and "NOT CONVERGED" in repr(fit)
    with pytest.raises(dc.ConvergenceError):
        dc.NPL(model, counts).fit(maxiter=1, strict=True)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2"])
def test_wrong_steps(steps):
    spec = oracles.random_model(3, 6, 2, 1, 0.9)
    model, counts, _ = builders.simulated_counts(spec, 50, 3, 2)
    with pytest.raises(dc.SpecificationError, match="steps="):
        dc.NPL(model, counts, steps=steps)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_exact_values_against_a_dense_solve(beta):
    spec = oracles.random_model(6, 20, 3, 3, beta)
    model = builders.from_oracle(spec)
    V, _, pi, P = oracles.solve_newton(spec, spec["params"])
    Wz, We = valuation(model, PolicySystem(model.transitions, beta), P, pi)
    want_z, want_e = oracles.policy_values(spec, P)
    np.testing.assert_allclose(Wz, want_z, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(We, want_e, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(Wz @ spec["params"] + We, V, rtol=1e-9, atol=1e-9)


def test_simulated_values_come_within_their_own_error():
    spec = oracles.random_model(6, 12, 3, 2, 0.8)
    model = builders.from_oracle(spec)
    _, _, pi, P = oracles.solve_newton(spec, spec["params"])
    Wz, We = oracles.policy_values(spec, P)
    ahead = 0.8 * np.einsum("sjt,tk->sjk", spec["F"], np.c_[Wz, We])
    want = np.concatenate([spec["x"], spec["offset"][:, :, None]], axis=2) + ahead
    values = SimulatedValues(model, np.arange(12), P, 20_000, 5)
    x, offset = values.index()
    got = np.concatenate([x, offset[:, :, None]], axis=2)
    each = 0.8 * np.einsum("sjt,btk->bsjk", spec["F"], values.batches)
    each = each - each[:, :, :1]
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    off = (got - got[:, :1]) - (want - want[:, :1])
    z = (off / np.where(error > 0, error, 1))[:, 1:]
    assert values.paths >= 20_000 and values.truncation < 1.1e-3
    assert np.abs(off).max() < 0.05
    assert np.abs(z).max() < 5 and 0.4 < np.sqrt((z**2).mean()) < 1.7


@pytest.mark.filterwarnings("ignore:CCP. the estimate is .* standard errors from where")
@pytest.mark.filterwarnings("ignore:CCP. simulated values are poor")
def test_the_simulation_variance_reported_is_the_one_across_seeds():
    spec = oracles.random_model(7, 12, 3, 2, 0.9, attention=False)
    model = builders.from_oracle(spec)
    counts = builders.choice_counts(model, expected(spec, 1e10)[0])  # no noise but simulation
    estimator = dc.CCP(model, counts, valuation="simulation", paths=400)
    fits = [estimator.fit(seed=s, cov_type="unadjusted") for s in range(30)]
    theta = np.array([f.theta for f in fits])
    reported = np.mean([np.diag(f.cov_matrix) for f in fits], axis=0)
    ratio = theta.var(axis=0, ddof=1) / reported
    assert (ratio > 0.45).all() and (ratio < 2.0).all()  # chi-squared with 29 degrees
    z = (theta.mean(axis=0) - spec["params"]) / np.sqrt(reported / 30)
    assert np.abs(z).max() < 4.5
    assert fits[0].cov_matrix[0, 0] > 100 / counts.nobs
    assert (estimator.fit(seed=3, cov_type="opg").theta == fits[3].theta).all()


def test_many_paths_reach_the_exact_estimate():
    spec = oracles.random_model(7, 12, 3, 2, 0.9)
    model, counts, _ = builders.simulated_counts(spec, 1000, 5, 1)
    exact = dc.CCP(model, counts).fit()
    far = dc.CCP(model, counts, valuation="simulation", paths=40).fit(seed=1)
    near = dc.CCP(model, counts, valuation="simulation", paths=20_000).fit(seed=1)
    assert gap(exact, near) < 0.25
    assert (near.std_errors < far.std_errors).all()
    assert (near.std_errors / exact.std_errors).between(0.95, 1.1).all()
    assert any("simulated paths of" in note for note in near.notes)
    with pytest.raises(dc.SpecificationError, match="paths=10"):
        dc.CCP(model, counts, valuation="simulation", paths=10).fit()


# ---------------------------------------------------------------- finite dependence: derivatives


def dense_case(attention, horizon=None):
    spec = oracles.random_model(4, 10, 3, 2, 0.9, attention=attention)
    model = builders.from_oracle(spec).with_parts(horizon=horizon)
    rng = np.random.default_rng(1)
    first = spec["params"] + 0.2  # first-stage probabilities away from the truth
    if horizon is None:
        P = oracles.solve_newton(spec, first)[3]
        shape = (10, 3)
    else:
        P = oracles.solve_finite(spec, first, horizon)[2].reshape(-1, 3)
        shape = (horizon, 10, 3)
    n = rng.integers(1, 30, shape) * spec["available"]
    return model, n.astype(float), P


CASES = {
    "dense": lambda: dense_case(False),
    "inattention": lambda: dense_case(True),
    "finite horizon": lambda: dense_case(False, 4),
    "finite horizon, inattention": lambda: dense_case(True, 4),
    "builders.rust, horizon": lambda: (
        builders.rust(horizon=6),
        np.random.default_rng(2).integers(1, 20, (6, 8, 2)).astype(float),
        np.random.default_rng(3).dirichlet([3, 3], size=48),
    ),
}


def prepared(case, free_beta):
    model, n, P = CASES[case]()
    likelihood = DependentLikelihood(model, n, 2, free_beta)
    likelihood.set_probabilities(P)
    at = np.r_[np.random.default_rng(0).normal(size=2) * 0.5, [0.85] * free_beta]
    return likelihood, P, at


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("free_beta", [False, True])
def test_derivatives_of_the_pseudo_likelihood(case, free_beta):
    likelihood, P, at = prepared(case, free_beta)
    here = likelihood.evaluate(at)
    hessian, K = likelihood.hessian(here), len(at)
    for k in range(K):
        slope = oracles.central5(lambda p: likelihood.evaluate(p).loglik, at, k, 1e-3)
        assert here.score[k] == pytest.approx(slope, rel=1e-6, abs=1e-5)
        bend = oracles.central5(lambda p: likelihood.evaluate(p).score, at, k, 1e-3)
        np.testing.assert_allclose(hessian[:, k], bend, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("free_beta", [False, True])
def test_derivative_by_the_first_stage(case, free_beta):
    likelihood, P, at = prepared(case, free_beta)
    D = likelihood.probability_derivative(likelihood.evaluate(at))
    rng = np.random.default_rng(4)

    def score(Q):
        likelihood.set_probabilities(Q)
        return likelihood.evaluate(at).score

    # the score of beta also moves through its regressor, by nothing in expectation: next test
    for _ in range(4):
        change = rng.normal(size=P.shape) * P * (P > 0)
        change -= P * change.sum(axis=1, keepdims=True)
        h = 1e-4
        slope = (8 * (score(P + h * change) - score(P - h * change))) / (12 * h)
        slope -= (score(P + 2 * h * change) - score(P - 2 * h * change)) / (12 * h)
        got = np.einsum("krj,rj->k", D, change)
        np.testing.assert_allclose(got[:2], slope[:2], rtol=1e-5, atol=1e-6)
    likelihood.set_probabilities(P)


@pytest.mark.parametrize("free_beta", [False, True])
@pytest.mark.parametrize("horizon", [None, 6])
def test_derivative_by_the_first_stage_at_the_truth(free_beta, horizon):
    # expected counts: now the score of beta too, which moves with P in two ways
    model = builders.rust(horizon=horizon)
    spec = builders.as_spec(model, builders.RUST_THETA)
    n, P = expected(spec) if horizon is None else expected_by_period(spec, horizon)
    likelihood = DependentLikelihood(model, n, 1, free_beta)
    P = P.reshape(-1, 2)
    at = np.r_[builders.RUST_THETA, [0.9] * free_beta]
    likelihood.set_probabilities(P)
    D = likelihood.probability_derivative(likelihood.evaluate(at))
    change = np.random.default_rng(5).normal(size=(len(P), 1)) * [[1.0, -1.0]] * P[:, 1:] * P[:, :1]

    def score(h):
        likelihood.set_probabilities(P + h * change)
        return likelihood.evaluate(at).score

    slope = (8 * (score(1e-4) - score(-1e-4)) - (score(2e-4) - score(-2e-4))) / 12e-4
    np.testing.assert_allclose(np.einsum("krj,rj->k", D, change), slope, rtol=1e-6, atol=1e-4)


def rust_with_law(panel_states, p, horizon):
    """A Rust model whose law counts as estimated, with probabilities p."""
    model = builders.rust(None, horizon=horizon)
    m = np.zeros((1, 3))
    m[0] = p
    law = model.transitions.bound[0]
    bound = replace(law, table=law.fill(m))
    return model.with_transitions(model.transitions.with_bound((bound,)))


@pytest.mark.parametrize("horizon", [None, 6])
@pytest.mark.parametrize("free_beta", [False, True])
def test_derivative_by_the_transitions(horizon, free_beta):
    truth = np.array([0.3, 0.5, 0.2])
    spec = builders.as_spec(builders.rust(truth, horizon=horizon), builders.RUST_THETA)
    if horizon is None:
        (n, P), V = expected(spec), oracles.solve_newton(spec, builders.RUST_THETA)[0]
    else:
        (n, P), V = (
            expected_by_period(spec, horizon),
            oracles.solve_finite(spec, builders.RUST_THETA, horizon)[0],
        )
    at = np.r_[builders.RUST_THETA, [0.9] * free_beta]

    def evaluated(p):
        likelihood = DependentLikelihood(builders.rust(p, horizon=horizon), n, 2, free_beta)
        likelihood.set_probabilities(P.reshape(-1, 2))
        return likelihood, likelihood.evaluate(at)

    estimated = rust_with_law(None, truth, horizon)
    likelihood = DependentLikelihood(estimated, n, 2, free_beta)
    likelihood.set_probabilities(P.reshape(-1, 2))
    here = likelihood.evaluate(at)
    assert np.abs(here.score).max() < 1e-5
    (C,) = likelihood.transition_derivative(here, V[:6] if horizon else V).values()
    for change in ([1.0, -1.0, 0.0], [0.5, 0.5, -1.0]):
        change, h = np.array(change), 1e-4
        up, down = (evaluated(truth + s * h * change)[1].score for s in (1, -1))
        slope = (up - down) / (2 * h)
        np.testing.assert_allclose(C[:, 0] @ change, slope, rtol=1e-5, atol=1e-2)


def test_derivative_by_the_transitions_of_the_membership_model(membership, fitted):
    from dynchoice.estimate.first_stage import first_stage

    first = first_stage(membership.unknown, fitted[1].counts, fitted[1])
    model, theta = first.model, membership.theta
    spec = builders.as_spec(model, theta)
    V, _, _, P = oracles.solve_newton(spec, theta)
    n = 1000 * P
    likelihood = DependentLikelihood(model, n, 2, False)
    likelihood.set_probabilities(P)
    here = likelihood.evaluate(theta)
    assert np.abs(here.score).max() < 1e-6
    C = likelihood.transition_derivative(here, V)
    rng = np.random.default_rng(1)
    for e in first.estimates:
        change = rng.normal(size=e.probabilities.shape) * 0.1 * e.probabilities
        change -= e.probabilities * change.sum(axis=1, keepdims=True)

        def score(h, e=e, change=change):
            bound = tuple(
                replace(law, table=law.fill(e.probabilities + h * change))
                if law.name == e.name
                else law
                for law in model.transitions.bound
            )
            moved = model.with_transitions(model.transitions.with_bound(bound))
            other = DependentLikelihood(moved, n, 2, False)
            assert (other.found.periods == likelihood.found.periods).all()
            other.set_probabilities(P)
            return other.evaluate(theta).score

        slope = (score(1e-3) - score(-1e-3)) / 2e-3
        got = np.einsum("krm,rm->k", C[e.name], change)
        np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------- consistency


@pytest.mark.parametrize("valuation_kind", ["exact", "finite-dependence"])
@pytest.mark.parametrize("attention", [False, True])
def test_expected_counts_give_the_truth(valuation_kind, attention):
    spec = oracles.random_model(8, 12, 3, 2, 0.95, attention=attention)
    model = builders.from_oracle(spec)
    counts = builders.choice_counts(model, expected(spec)[0])
    fit = dc.CCP(model, counts, first_stage="frequencies", valuation=valuation_kind).fit(
        cov_type="unadjusted"
    )
    assert fit.converged
    np.testing.assert_allclose(fit.params, spec["params"], atol=1e-6)


def test_expected_counts_give_the_truth_in_rust_with_and_without_beta():
    model = builders.rust()
    spec = builders.as_spec(model, builders.RUST_THETA)
    counts = builders.choice_counts(model, expected(spec)[0])
    for beta in (None, "estimate"):
        fit = dc.CCP(model, counts, first_stage="frequencies", beta=beta, **DEPENDENT).fit(
            cov_type="unadjusted"
        )
        want = [*builders.RUST_THETA, *([0.9] if beta else [])]
        np.testing.assert_allclose(fit.params, want, atol=1e-6)
    assert fit.names == ("cost", "RC", "beta")


def test_expected_counts_give_the_truth_in_the_membership_model(membership):
    spec = builders.as_spec(membership.known, membership.theta)
    P = oracles.solve_newton(spec, membership.theta)[3]
    counts = builders.choice_counts(membership.known, 1e5 * P)
    fit = dc.CCP(membership.known, counts, first_stage="frequencies", **DEPENDENT).fit(
        cov_type="unadjusted"
    )
    assert fit.converged
    np.testing.assert_allclose(fit.params, membership.theta, atol=1e-6)


@pytest.mark.parametrize("beta", [None, "estimate"])
def test_expected_counts_give_the_truth_at_a_finite_horizon(beta):
    model = builders.rust(horizon=6)
    spec = builders.as_spec(model, builders.RUST_THETA)
    counts = counts_by_period(model, expected_by_period(spec, 6)[0])
    fit = dc.CCP(model, counts, first_stage="frequencies", beta=beta, **DEPENDENT).fit(
        cov_type="unadjusted"
    )
    np.testing.assert_allclose(fit.theta, builders.RUST_THETA, atol=1e-6)
    assert beta is None or fit.params["beta"] == pytest.approx(0.9, abs=1e-6)


# ---------------------------------------------------------------- first stages


def stages(model):
    phi = np.random.default_rng(9).normal(size=(*model.shape[:2], 3))
    own = dc.Utility.from_array(phi, ["f", "g", "h"])
    return {"frequencies": "frequencies", "smoothed": "smoothed", "logit": "logit", "features": own}


@pytest.mark.parametrize("kind", ["frequencies", "smoothed", "logit", "features"])
@pytest.mark.parametrize("attention", [False, True])
def test_first_stage_influence_by_one_more_choice(kind, attention):
    spec = oracles.random_model(10, 9, 3, 2, 0.9, attention=attention)
    model = builders.from_oracle(spec)
    rng = np.random.default_rng(0)
    n = rng.integers(20, 200, (9, 3)) * spec["available"] * 1.0
    stage = FirstStageChoice.of(model, stages(model)[kind])
    D = rng.normal(size=(2, 9, 3)) * spec["available"]
    first = stage.estimate(model, n)
    assert np.allclose(first.P.sum(axis=1), 1) and (first.P[~spec["available"]] == 0).all()
    got = first.influence(D)
    for s, j in [(0, int(spec["default"][0])), (3, int(spec["default"][3])), (8, -1)]:
        j = int(np.flatnonzero(spec["available"][s])[j]) if j < 0 else j
        h = 0.05
        up, down = n.copy(), n.copy()
        up[s, j] += h
        down[s, j] -= h
        slope = (stage.estimate(model, up).P - stage.estimate(model, down).P) / (2 * h)
        want = np.einsum("ksj,sj->k", D, slope)
        np.testing.assert_allclose(got[s, j], want, rtol=2e-3, atol=2e-3 * np.abs(got).max())


def test_first_stages_by_hand():
    spec = oracles.random_model(10, 6, 3, 2, 0.9)
    model = builders.from_oracle(spec)
    n = np.array([[3.0, 1, 0], [0, 0, 0], [5, 5, 10], [1, 1, 1], [0, 9, 1], [2, 2, 2]])
    n *= spec["available"]
    P = FirstStageChoice.of(model, "frequencies").estimate(model, n)
    for s in (2, 3, 5):
        np.testing.assert_allclose(P.P[s], n[s] / n[s].sum(), atol=1e-5)
    hollow = spec["available"] & (n == 0) & (n.sum(axis=1, keepdims=True) > 0)
    assert P.empty == hollow.sum() and (P.P[spec["available"]] > 0).all()
    shrunk = FirstStageChoice.of(model, "smoothed").estimate(model, n).P
    large = FirstStageChoice.of(model, "smoothed").estimate(model, 1e6 * n).P
    seen = n.sum(axis=1) > 0
    np.testing.assert_allclose(large[seen], (n[seen].T / n[seen].sum(axis=1)).T, atol=1e-4)
    assert (shrunk[spec["available"]] > 0).all() and np.allclose(shrunk.sum(axis=1), 1)


def test_a_formula_for_the_first_stage():
    model = builders.rust()
    spec = builders.as_spec(model, builders.RUST_THETA)
    n = expected(spec)[0]
    stage = FirstStageChoice.of(model, "m + I(m**2)")
    # a logit in m and m^2, fitted by hand
    P = stage.estimate(model, n).P
    m = np.arange(8.0)
    phi = np.c_[np.ones(8), m, m**2]
    np.testing.assert_allclose(phi.T @ (n[:, 1] - n.sum(axis=1) * P[:, 1]), 0, atol=2)
    logit = np.log(P[:, 1] / P[:, 0])
    assert np.abs(np.linalg.lstsq(phi, logit, rcond=None)[1]).max() < 1e-12
    for wrong, message in (
        ("frequencie", "Did you mean 'frequencies'"),
        ("m + q", "cannot be used"),
        (3, "is a int"),
    ):
        with pytest.raises(dc.SpecificationError, match=message):
            FirstStageChoice.of(model, wrong)


# ---------------------------------------------------------------- standard errors


def rust_panel(spec, members, periods, seed):
    rows = oracles.simulate(spec, builders.RUST_THETA, members, periods, seed)
    member, period, state, choice, following = rows
    moved = np.where(period == periods - 1, -1, following)
    return builders.counts_from(builders.rust(), member, period, state, choice, moved)


def test_standard_errors_match_the_spread_of_estimates():
    spec = builders.as_spec(builders.rust(), builders.RUST_THETA)
    estimates, errors, naive = [], [], []
    for seed in range(150):
        counts = rust_panel(spec, 150, 10, seed)
        fit = dc.CCP(builders.rust(None), counts, first_stage="smoothed", **DEPENDENT).fit()
        assert fit.converged and fit.cov_config["clusters"] == 150
        estimates.append(fit.theta)
        errors.append(fit.std_errors.to_numpy())
        naive.append(np.sqrt(np.diag(np.linalg.inv(-fit.hessian))))
    spread = np.std(estimates, axis=0, ddof=1)
    ratio = np.mean(errors, axis=0) / spread
    assert (ratio > 0.85).all() and (ratio < 1.15).all(), ratio
    assert (np.mean(naive, axis=0) / spread).min() < 0.8
    z = (np.mean(estimates, axis=0) - builders.RUST_THETA) / (spread / np.sqrt(150))
    assert np.abs(z).max() < 5


def test_every_covariance_agrees_where_the_model_is_right():
    spec = builders.as_spec(builders.rust(), builders.RUST_THETA)
    counts = rust_panel(spec, 3000, 8, 1)
    errors = {
        (c, f): dc.CCP(builders.rust(None), counts, first_stage=f, **DEPENDENT)
        .fit(cov_type=c)
        .std_errors
        for c in ("unadjusted", "opg", "robust", "clustered")
        for f in ("frequencies", "smoothed", "logit")
    }
    for f in ("frequencies", "smoothed", "logit"):
        base = errors["clustered", f]
        for c in ("unadjusted", "opg", "robust"):
            assert (errors[c, f] / base).between(0.9, 1.1).all(), (c, f)


@pytest.mark.parametrize("cov_type", ["unadjusted", "opg", "robust", "clustered"])
def test_beta_may_be_estimated_with_the_laws(cov_type):
    counts = rust_panel(builders.as_spec(builders.rust(), builders.RUST_THETA), 20_000, 8, 1)
    fit = dc.CCP(builders.rust(None, beta=0.5), counts, beta="estimate", **DEPENDENT).fit(
        cov_type=cov_type
    )
    assert fit.converged and fit.names == ("cost", "RC", "beta")
    assert np.abs((fit.params - [*builders.RUST_THETA, 0.9]) / fit.std_errors).max() < 4
    assert fit.model.beta == pytest.approx(fit.params["beta"])
    assert (fit.std_errors > 0).all()


@pytest.mark.parametrize("first_stage", ["frequencies", "smoothed"])
@pytest.mark.parametrize("cov_type", ["unadjusted", "opg"])
def test_an_empty_cell_does_not_blow_up_the_standard_errors(first_stage, cov_type):
    spec = oracles.random_model(3, 12, 3, 2, 0.9, attention=False)
    model, counts, _ = builders.simulated_counts(spec, 60, 4, 1)
    assert (model.available & (counts.n_sj() == 0)).any()
    ccp = dc.CCP(model, counts, first_stage=first_stage, **DEPENDENT)
    ratio = ccp.fit(cov_type=cov_type).std_errors / ccp.fit().std_errors
    assert ratio.between(0.5, 2).all(), ratio


@pytest.mark.filterwarnings("ignore:CCP. the estimate is .* standard errors from where")
@pytest.mark.parametrize("first_stage", ["frequencies", "smoothed", "logit"])
def test_first_stages_know_about_inattention(first_stage):
    # a first stage that forgets it may put less on the default than those who do not look
    spec = oracles.random_model(3, 12, 3, 2, 0.9, attention=True)
    model, counts, _ = builders.simulated_counts(spec, 300, 4, 1)
    fit = dc.CCP(model, counts, first_stage=first_stage, **DEPENDENT).fit()
    assert (fit.std_errors < 10).all(), fit.std_errors
    assert np.abs((fit.params - spec["params"]) / fit.std_errors).max() < 5


def test_incomplete_dependence_covariances_agree():
    # states without dependence are left out of the pseudo-likelihood, not of the first stage
    spec = oracles.random_model(2, 14, 3, 1, 0.9, sparse=True, masks=False, attention=False)
    model, counts, _ = builders.simulated_counts(spec, 6000, 6, 1)
    spans = dc.finite_dependence(model, 1).periods
    assert (spans == -1).sum() == 20 and (spans == 1).sum() == 8
    fits = {
        c: dc.CCP(model, counts, dependence=1, **DEPENDENT).fit(cov_type=c)
        for c in ("unadjusted", "opg", "robust", "clustered")
    }
    assert any("left out" in note for note in fits["opg"].notes)
    base = fits["clustered"]
    assert np.abs((base.params - spec["params"]) / base.std_errors).max() < 4
    for c in ("unadjusted", "opg", "robust"):
        assert (fits[c].std_errors / base.std_errors).between(0.9, 1.1).all(), c


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valuation": "exactly"}, "Did you mean 'exact'"),
        ({"beta": "free"}, "'estimate' frees it"),
        ({"beta": "estimate"}, "needs valuation='finite-dependence'"),
        ({"first_stage": np.zeros(3)}, "first_stage is a ndarray"),
    ],
)
def test_refusals(options, message):
    counts = builders.choice_counts(builders.rust(), np.ones((8, 2)))
    with pytest.raises(dc.SpecificationError, match=message):
        dc.CCP(builders.rust(), counts, **options)


def test_no_finite_dependence_is_refused():
    spec = oracles.random_model(2, 7, 2, 1, 0.9, sparse=True, masks=False, attention=True)
    model, counts, _ = builders.simulated_counts(spec, 100, 4, 1)
    if not dc.finite_dependence(model, 1).holds.sum() > 7:
        with pytest.raises(dc.SpecificationError, match="no state has finite dependence within 1"):
            dc.CCP(model, counts, dependence=1, **DEPENDENT).fit()


VALIDATION = Path(__file__).resolve().parents[2] / "validation"


@pytest.mark.filterwarnings("ignore:CCP. the estimate is .* standard errors from where")
def test_a_one_step_estimate_far_from_the_maximum_is_said_to_be():
    spec = importlib.util.spec_from_file_location(
        "bench_models", VALIDATION / "benchmarks" / "models.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = module.bus_model(90, 0.99, [0.39, 0.6, 0.01])
    theta = np.array([10.0, 2.3])
    paths = dc.simulate(model, params=theta, members=100, periods=100, seed=1,
                        start=np.zeros(100, int))  # fmt: skip
    data = dc.Panel(paths.frame(), member="member", time="period", choice="choice",
                    states=model.states, choices=model.choices)  # fmt: skip
    with pytest.warns(dc.IdentificationWarning, match="standard errors from where|is far from"):
        dc.CCP(model, data, first_stage="logit").fit()
    with pytest.warns(dc.IdentificationWarning, match="simulated values are poor"):
        dc.CCP(model, data, valuation="simulation", paths=40).fit(seed=1)
