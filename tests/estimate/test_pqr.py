"""Rewards by Deep PQR and GenPQR on states that are levels."""

from dataclasses import replace
from functools import cache

import numpy as np
import oracles
import pytest
from builders import (
    as_spec,
    choice_counts,
    from_oracle,
    membership_panel,
    rust,
    simulated_counts,
    small_membership,
)

import dynchoice as dc
from dynchoice.estimate.finite_dependence import psi, psi_derivative
from dynchoice.estimate.rewards.normalised import normalised

BETAS = [0.0, 0.5, 0.95, 0.999]


@cache
def truth(seed, beta, masks=True, attention=True, S=30, J=4):
    """A random model with its values and probabilities by the oracle's Newton steps."""
    spec = oracles.random_model(seed, S, J, 3, beta, masks, attention)
    V, _, _, P = oracles.solve_newton(spec, spec["params"])
    return spec, from_oracle(spec), V, P


def reference(seed, model):
    """A random policy over what is offered."""
    mu = np.random.default_rng(seed).random(model.shape[:2]) * model.available
    return mu / mu.sum(axis=1, keepdims=True)


# exactness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", range(3))
def test_reward_is_recovered_from_the_true_policy_and_law(seed, beta):
    spec, model, V, P = truth(seed, beta)
    r = np.where(model.available, model.utility.flow(spec["params"]), 0.0)
    mu = reference(seed, model)
    found = normalised(model, P, mu, (mu * r).sum(axis=1))
    assert np.abs(found.r - r).max() < 1e-10
    assert np.abs(found.V - V).max() < 1e-9 / (1 - beta)


@pytest.mark.parametrize("beta", BETAS)
def test_the_three_steps_of_the_paper(beta):
    """Equations (i)-(iii) of Deep PQR by dense algebra give the same Q and reward."""
    spec, model, _, P = truth(3, beta, masks=False, attention=False)
    g = np.random.default_rng(0).normal(size=30)
    F0, logs = spec["F"][:, 1], np.log(P)
    W = np.linalg.solve(np.eye(30) - beta * F0, g - beta * F0 @ logs[:, 1])
    Q = W[:, None] + logs - logs[:, [1]]
    r = Q - beta * (spec["F"] @ (W - logs[:, 1]))
    mu = np.zeros((30, 4))
    mu[:, 1] = 1
    found = normalised(model, P, mu, g)
    assert np.allclose(found.Q, Q, atol=1e-9 / (1 - beta))
    assert np.allclose(found.r, r, atol=1e-10)
    assert np.allclose(found.r[:, 1], g, atol=1e-10)


def test_genpqr_is_the_linear_equation_of_its_theorem():
    spec, model, _, P = truth(4, 0.9, masks=False, attention=False)
    S, J = P.shape
    mu, g = reference(4, model), np.random.default_rng(1).normal(size=S)
    # Q = log pi - g + gamma E[sum_a' mu Q(s', a') | s, a], solved as one system of S x J unknowns
    A = np.eye(S * J) - 0.9 * (spec["F"][:, :, :, None] * mu).reshape(S * J, S * J)
    Q = np.linalg.solve(A, (np.log(P) - g[:, None]).reshape(-1)).reshape(S, J)
    r = Q - (mu * Q).sum(axis=1, keepdims=True) + g[:, None]
    found = normalised(model, P, mu, g)
    assert np.allclose(found.r, r, atol=1e-11)
    assert np.allclose(found.V, -(mu * Q).sum(axis=1), atol=1e-11)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("seed", range(5))
def test_error_bound_in_the_sup_norm_of_log_probabilities(seed, size):
    beta = 0.92
    spec, model, _, P = truth(seed, beta, masks=False, attention=False)
    r = model.utility.flow(spec["params"])
    rng = np.random.default_rng(seed)
    noisy = P * np.exp(size * rng.uniform(-0.5, 0.5, P.shape))
    noisy /= noisy.sum(axis=1, keepdims=True)
    d = np.abs(np.log(noisy / P)).max()
    mu = np.zeros_like(P)
    mu[:, 0] = 1
    right, found = (normalised(model, p, mu, r[:, 0]) for p in (P, noisy))
    W, What = (f.V - f.psi[:, 0] for f in (right, found))
    assert 0 < np.abs(What - W).max() <= beta * d / (1 - beta)
    assert np.abs(found.Q - right.Q).max() <= 2 * d + beta * d / (1 - beta)
    assert np.abs(found.r - r).max() <= 2 * d / (1 - beta)


def test_a_wrong_anchor_gives_the_class_of_equivalent_rewards():
    beta = 0.9
    spec, model, _, P = truth(7, beta, masks=False, attention=False)
    F, r = spec["F"], model.utility.flow(spec["params"])
    mu = np.zeros_like(P)
    mu[:, 0] = 1
    found = normalised(model, P, mu, np.zeros(30))
    left = np.linalg.inv(np.eye(30) - beta * F[:, 0])
    for a in range(4):
        A = (np.eye(30) - beta * F[:, a]) @ left
        assert np.allclose(found.r[:, a], r[:, a] - A @ r[:, 0], atol=1e-10)
    own = model.with_parts(utility=dc.Utility.from_array(np.zeros((30, 4, 0)), [], found.r))
    assert np.allclose(dc.solve(own, np.zeros(0)).ccp, P, atol=1e-10)


# derivatives -------------------------------------------------------------------------------------


def test_psi_derivative_is_the_finite_difference():
    _, model, _, P = truth(2, 0.9)
    d = np.random.default_rng(0).normal(size=(2, *P.shape))
    derivative = psi_derivative(model, P, d)
    for s, j in [(0, int(model.default[0])), (5, int(model.available[5].argmax()))]:
        # along a direction that keeps the row's sum, as unmix() assumes
        other = int(np.flatnonzero(model.available[s])[-1])
        e = np.zeros_like(P)
        e[s, j] += 1e-6
        e[s, other] -= 1e-6
        change = [(d * psi(model, P + sign * e)).sum(axis=(1, 2)) for sign in (1, -1)]
        slope = derivative[:, s, j] - derivative[:, s, other]
        assert np.allclose((change[0] - change[1]) / 2e-6, slope, rtol=1e-5, atol=1e-7)


def test_adjoint_is_the_finite_difference_of_a_functional():
    spec, model, _, P = truth(6, 0.95)
    mu, rng = reference(6, model), np.random.default_rng(5)
    g, b = rng.normal(size=30), rng.normal(size=P.shape) * model.available
    at = normalised(model, P, mu, g)
    d = at.adjoint(b)
    dF = spec["F"][rng.permutation(30)] - spec["F"]
    e = 1e-6
    moved = [
        normalised(
            from_oracle({**spec, "F": spec["F"] + sign * e * dF}), P, mu, g
        ) for sign in (1, -1)
    ]  # fmt: skip
    slope = (b * (moved[0].r - moved[1].r)).sum() / (2 * e)
    assert np.isclose(slope, -0.95 * (d * (dF @ at.V)).sum(), rtol=1e-6)


# the estimator -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def club(membership, fitted):
    return membership, fitted[1]


@pytest.fixture(scope="module")
def few():
    made = small_membership(members=400)
    return made, membership_panel(made, made.frame).counts


@pytest.fixture(scope="module")
def fit(club):
    made, panel = club
    return dc.DeepPQR(made.unknown, panel).fit()


def test_parameters_agree_with_the_truth_and_with_nfxp(club, fit):
    made, panel = club
    nested = dc.NFXP(made.unknown, panel).fit()
    away = (fit.vector - made.theta) / fit.std_errors
    assert np.abs(away).max() < 3, away
    gap = (fit.vector - nested.vector) / fit.std_errors
    assert np.abs(gap).max() < 2, gap
    assert (fit.std_errors > 0.95 * nested.std_errors).all()  # no better than the efficient one


def test_the_reward_reproduces_the_first_stage_and_solves_the_bellman_equation(club, fit):
    made, panel = club
    n = panel.counts.n_sj()
    shares = n / n.sum(axis=1, keepdims=True)
    often = n.sum(axis=1) > 500
    assert np.abs(fit.ccp - shares)[often].max() < 0.02  # smoothed frequencies
    assert fit.solution.converged
    reward = fit.reward().to_numpy()
    assert np.isnan(reward).sum() == (~made.unknown.available).sum()
    assert np.nanmax(np.abs(reward[:, 0])) < 1e-9  # "none" is the anchor


@pytest.mark.parametrize("first_stage", ["smoothed", "frequencies", "logit"])
@pytest.mark.parametrize("kind", ["anchor", "uniform", "known"])
def test_influence_is_the_derivative_by_the_counts(few, first_stage, kind):
    """What one more move adds to the estimate, against refits with the counts a little changed."""
    made, counts = few
    options = {
        "anchor": {}, "uniform": {"reference": "uniform"}, "known": {"reward": np.zeros(40)}
    }[kind]  # fmt: skip
    fit = dc.GenPQR(made.unknown, counts, first_stage=first_stage, **options).fit()
    rng = np.random.default_rng(0)
    moved = [int(b) for b in rng.choice(counts.buckets, 4, replace=False)]
    for bucket in moved:
        w, e = np.ones(counts.buckets), 1e-3
        ends = []
        for sign in (1, -1):
            w[bucket] = 1 + sign * e
            own = dc.GenPQR(
                made.unknown, counts.reweighted(w), first_stage=first_stage, **options
            ).fit(cov_type="unadjusted")
            ends.append(own.vector)
        slope = (ends[0] - ends[1]) / (2 * e)
        assert np.allclose(slope, fit.influence[bucket], rtol=2e-3, atol=2e-5 * np.abs(slope).max())


def test_analytic_errors_agree_with_the_bootstrap(club, fit):
    made, panel = club
    spread = dc.DeepPQR(made.unknown, panel).fit(cov_type="bootstrap", draws=200, seed=0)
    assert np.allclose(spread.std_errors / fit.std_errors, 1, atol=0.2)


def test_any_reference_recovers_features_that_hold_exactly():
    """Features are normalised as the reward is: the truth comes back whatever is known."""
    spec, model, _, P = truth(9, 0.95, attention=False)
    counts = choice_counts(model, 1e7 * P)
    found = [
        dc.GenPQR(model, counts, reference=mu, first_stage="frequencies").fit(cov_type="opg")
        for mu in (reference(1, model), "uniform")
    ]
    for one in found:
        assert np.allclose(one.vector, spec["params"], atol=1e-5)


@pytest.mark.parametrize("anchor", ["keep", "replace"])
def test_either_choice_of_a_bus_engine_may_be_the_anchor(anchor):
    """Its reward is not zero: features are normalised with it, and the truth comes back."""
    theta = np.array([0.4, 2.0])
    known = rust()
    _, counts, _ = simulated_counts({**as_spec(known, theta)}, 20_000, 20, seed=1)
    counts = replace(counts, states=known.states, choices=known.choices)
    fit = dc.DeepPQR(rust(None), counts, anchor=anchor).fit()
    assert np.abs((fit.vector - theta) / fit.std_errors).max() < 3
    nested = dc.NFXP(rust(None), counts).fit()
    assert np.abs((fit.vector - nested.vector) / fit.std_errors).max() < 2


def test_attention_is_unmixed():
    spec = oracles.random_model(12, 8, 3, 2, 0.9, masks=False)
    model, counts, _ = simulated_counts(spec, 20000, 12, seed=3)
    fit = dc.GenPQR(model, counts, reference="uniform", first_stage="frequencies").fit()
    assert np.abs((fit.vector - spec["params"]) / fit.std_errors).max() < 3


# what a user sees --------------------------------------------------------------------------------


def test_summary_says_support_and_what_the_parameters_are(fit):
    text = str(fit.summary)
    assert "DeepPQR" in text and "projection of the estimated reward" in text
    assert "largest ratio of reference to observed probability" in text


def test_information_criteria_count_the_rewards(club, fit):
    made, panel = club
    nested = dc.NFXP(made.unknown, panel).fit()
    assert fit.loglik > nested.loglik and fit.bic > nested.bic
    assert dc.compare({"NFXP": nested, "DeepPQR": fit}).best("bic") == "NFXP"


def test_results_come_back_from_a_file(fit, tmp_path):
    again = dc.load(fit.save(tmp_path / "fit.npz"))
    assert again.reward().equals(fit.reward()) and again.params.equals(fit.params)


def test_a_counterfactual_that_changes_nothing_changes_nothing(fit):
    same = dc.counterfactual(fit, dc.Scenario("same"))
    assert np.abs(same.ccp - fit.ccp).max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor": "nune"}, "Did you mean 'none'"),
        ({"anchor": ["none"]}, "one choice"),
        ({"reward": [1.0, 2.0]}, "one finite number, or 40 by state"),
        ({"reward": np.nan}, "finite"),
        ({"support": 10**6}, "support=1,000,000"),
        ({"first_stage": "smothed"}, "smoothed"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(club, options, message):
    made, panel = club
    with pytest.raises(dc.DynChoiceError, match=message):
        dc.DeepPQR(made.unknown, panel, **options)


def test_collinear_features_are_named(club):
    made, panel = club
    x = np.concatenate([made.unknown.utility.x, made.unknown.utility.x[:, :, :1]], axis=2)
    names = [*made.unknown.names, "again"]
    twice = made.unknown.with_parts(utility=dc.Utility.from_array(x, names))
    with pytest.raises(dc.IdentificationError, match="again"):
        dc.DeepPQR(twice, panel).fit()


def test_an_anchor_that_states_with_a_choice_do_not_offer_is_refused():
    spec = oracles.random_model(3, 12, 4, 2, 0.9)
    model, counts, _ = simulated_counts(spec, 500, 8, seed=3)
    with pytest.raises(dc.SpecificationError, match=r"takes 'c0', which \d+ of 12 states"):
        dc.DeepPQR(model, counts, anchor="c0")
    with pytest.raises(dc.SpecificationError, match="name the choice with a known reward"):
        dc.DeepPQR(model, counts)
    mu = np.full((12, 4), 0.25)
    with pytest.raises(dc.SpecificationError, match=r"does? not offer|do not offer"):
        dc.GenPQR(model, counts, reference=mu)
    with pytest.raises(dc.SpecificationError, match="sum to one"):
        dc.GenPQR(model, counts, reference=2 * mu)
