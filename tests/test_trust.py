"""The trust tests of design.md 5: each is a failure that a rival ships."""

from __future__ import annotations

import builders
import numpy as np
import oracles
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.estimate.likelihood import Likelihood

BETAS = [0.95, 0.99, 0.999, 0.9999]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("attention", [False, True], ids=["attentive", "inattentive"])
def test_a_counterfactual_that_changes_nothing_changes_nothing(beta, attention):
    spec = oracles.random_model(5, 60, 3, 3, beta, attention=attention)
    model, counts, _ = builders.simulated_counts(spec, 1500, 6, 1)
    fit = dc.NFXP(model, counts).fit()
    null = dc.counterfactual(fit, dc.Scenario("nothing"))
    same_values = dc.counterfactual(
        fit,
        dc.Scenario(
            "same",
            params=dict(fit.params),
            utility=np.zeros(model.shape[:2]),
            available=spec["available"],
            transitions=dc.Transitions.dense(spec["F"]),
        ),
    )
    for cf in (null, same_values):
        assert cf.welfare == 0.0
        assert (cf.baseline_V == cf.V).all()
        assert (cf.ccp == cf.baseline_ccp).all()
    assert (null.ccp == fit.ccp).all()


def test_row_order_does_not_matter(membership):
    digests, fits = set(), []
    for seed in (0, 1):
        shuffled = membership.frame.sample(frac=1, random_state=seed)
        panel = builders.membership_panel(membership, shuffled)
        digests.add(panel.counts.digest)
        fits.append(dc.NFXP(membership.unknown, panel).fit())
    assert len(digests) == 1
    assert (fits[0].params == fits[1].params).all()
    assert (fits[0].cov == fits[1].cov).all(axis=None)


def test_duplicated_rows_are_refused_with_count_and_offenders(people):
    doubled = pd.concat([people, people.iloc[:2]])
    with pytest.raises(dc.DataError, match=r"2 \(member, time\) pairs appear more than once"):
        dc.Panel(
            doubled,
            member="id",
            time="t",
            choice="plan",
            states=dc.StateSpace(x=range(2)),
            choices=["out", "in"],
        )


def test_gaps_are_reported_and_not_bridged(people):
    panel = dc.Panel(
        people,
        member="id",
        time="t",
        choice="plan",
        states=dc.StateSpace(x=range(2)),
        choices=["out", "in"],
    )
    assert panel.report["gaps"] == 1
    moves, n = panel.counts.moves()
    assert n.sum() == 3 + 1 + 1  # ann 3, bob 0 -> 1 only, eve 1 -> 2
    assert panel.counts.nobs == 9


def test_first_stage_transitions_are_unbiased_in_three_period_panels():
    # econirl invents a last next-state: (.6, .1, .3) came out as (.40, .40, .20)
    states, choices = dc.StateSpace(m=range(60)), ["keep", "replace"]
    truth = np.array([0.6, 0.1, 0.3])
    x = np.zeros((60, 2, 2))
    x[:, 0, 0], x[:, 1, 1] = -0.05 * np.arange(60), -1
    utility = dc.Utility.from_array(x, ["cost", "RC"])

    def model(p):
        law = {"m": dc.Increment(2, "replace", probabilities=p)}
        F = dc.Transitions.factored(states, choices, law)
        return dc.DDC(states=states, choices=choices, utility=utility, transitions=F, beta=0.9)

    paths = dc.simulate(
        model(truth),
        params=[1.0, 3.0],
        members=40_000,
        periods=3,
        seed=2,
        start=np.zeros(40_000, dtype=int),
    )
    panel = dc.Panel(
        paths.frame(),
        member="member",
        time="period",
        choice="choice",
        states=states,
        choices=choices,
    )
    fit = dc.NFXP(model(None), panel).fit()
    estimated = fit.first_stage[0]["probabilities"][0]
    moves = 80_000
    assert fit.first_stage[0]["counts"].sum() == moves
    assert np.abs((estimated - truth) / np.sqrt(truth * (1 - truth) / moves)).max() < 4


def test_a_finite_horizon_uses_each_periods_own_ccp():
    spec = oracles.random_model(8, 12, 3, 2, 0.9, attention=True)
    T = 5
    model = builders.from_oracle(spec).with_parts(horizon=T)
    _, _, P = oracles.solve_finite(spec, spec["params"], T)
    solution = dc.solve(model, spec["params"])
    np.testing.assert_allclose(solution.ccp, P, atol=1e-13)
    rng = np.random.default_rng(0)
    state = rng.integers(0, 12, 20_000)
    rows = []
    for t in range(T):
        draw = rng.random(len(state))
        choice = (draw[:, None] >= np.cumsum(P[t], axis=1)[state]).sum(axis=1).clip(max=2)
        rows.append(
            pd.DataFrame({"id": np.arange(len(state)), "t": t, "s": state, "choice": choice})
        )
        cdf = np.cumsum(spec["F"][state, choice], axis=1)
        state = (rng.random(len(state))[:, None] >= cdf).sum(axis=1).clip(max=11)
    frame = pd.concat(rows)
    frame["choice"] = "c" + frame["choice"].astype(str)
    panel = dc.Panel(
        frame, member="id", time="t", choice="choice", states=model.states, choices=model.choices
    )
    fit = dc.NFXP(model, panel).fit()
    assert fit.converged
    assert np.abs((fit.params - spec["params"]) / fit.std_errors).max() < 4
    at_truth = oracles.loglik_finite(spec, spec["params"], panel.counts.n_tsj(T))
    assert fit.loglik >= at_truth
    assert fit.loglik == pytest.approx(
        oracles.loglik_finite(spec, fit.theta, panel.counts.n_tsj(T)), rel=1e-12
    )


def test_two_models_at_one_point_do_not_share_a_cache():
    spec = oracles.random_model(3, 20, 3, 2, 0.95)
    other = {**spec, "beta": 0.5}
    n = np.ones((20, 3)) * spec["available"]
    first = Likelihood(builders.from_oracle(spec), n).evaluate(spec["params"]).loglik
    second = Likelihood(builders.from_oracle(other), n).evaluate(spec["params"]).loglik
    assert first == pytest.approx(oracles.loglik(spec, spec["params"], n), rel=1e-12)
    assert second == pytest.approx(oracles.loglik(other, spec["params"], n), rel=1e-12)
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.95, 0.9999])
def test_converged_means_a_zero_gradient(beta):
    spec = oracles.random_model(21, 40, 3, 3, beta)
    model, counts, _ = builders.simulated_counts(spec, 1000, 5, 4)
    fit = dc.NFXP(model, counts).fit()
    assert fit.converged
    n = counts.n_sj()
    scores = oracles.scores_fd(spec, fit.theta, None)
    gradient = np.einsum("sj,sjk->k", n, scores) / n.sum()
    assert np.abs(gradient).max() < 1e-7
    with pytest.warns(dc.ConvergenceWarning, match="not converged"):
        short = dc.NFXP(model, counts).fit(start=spec["params"] + 1.0, maxiter=1)
    assert not short.converged
    assert "NOT CONVERGED" in str(short.summary())
    with pytest.raises(dc.ConvergenceError, match="gradient"):
        dc.NFXP(model, counts).fit(start=spec["params"] + 1.0, maxiter=1, strict=True)


def test_an_unidentified_direction_is_named_not_inverted():
    spec = oracles.random_model(2, 30, 3, 2, 0.9, attention=False)
    spec["x"] = np.concatenate([spec["x"], spec["x"].sum(axis=2, keepdims=True)], axis=2)
    spec["params"] = np.append(spec["params"], 0.0)
    model, counts, _ = builders.simulated_counts(spec, 500, 4, 4)
    with pytest.raises(dc.IdentificationError, match=r"does not change along.*k0.*k1.*k2|k2"):
        dc.NFXP(model, counts).fit()


def test_the_loglikelihood_printed_is_the_likelihood():
    spec = oracles.random_model(9, 30, 4, 2, 0.97)
    model, counts, _ = builders.simulated_counts(spec, 800, 5, 9)
    n = counts.n_sj()
    for estimator in (dc.NFXP, dc.CCP):
        fit = estimator(model, counts).fit()
        assert fit.loglik == pytest.approx(oracles.loglik(spec, fit.theta, n), rel=1e-12)
        assert f"{fit.loglik:.4f}" in str(fit.summary())
    assert fit.pseudo_loglik is not None and fit.pseudo_loglik != fit.loglik
    assert "Pseudo-log-likelihood" in str(fit.summary())


@pytest.mark.parametrize("cov_type", ["unadjusted", "opg", "robust", "clustered"])
def test_weights_equal_repeats(membership, cov_type):
    rng = np.random.default_rng(0)
    members = membership.frame["member"].unique()[:600]
    frame = membership.frame[membership.frame["member"].isin(members)].copy()
    copies = pd.Series(rng.integers(1, 4, len(members)), index=members)
    frame["weight"] = frame["member"].map(copies)
    repeated = frame.loc[frame.index.repeat(frame["weight"])].copy()
    repeated["member"] = (
        repeated["member"].astype(str) + "-" + (repeated.groupby(level=0).cumcount().astype(str))
    )
    weighted = builders.membership_panel(membership, frame, weights="weight")
    copied = builders.membership_panel(membership, repeated.drop(columns="weight"))
    assert weighted.counts.nobs == copied.counts.nobs
    a = dc.NFXP(membership.unknown, weighted).fit(cov_type=cov_type)
    b = dc.NFXP(membership.unknown, copied).fit(cov_type=cov_type)
    assert (a.params == b.params).all()
    np.testing.assert_allclose(a.cov, b.cov, rtol=1e-10)


def test_splitting_the_panel_changes_nothing_to_the_bit(membership):
    whole = builders.membership_panel(membership, membership.frame).counts
    part = membership.frame["member"] % 3
    pieces = [
        builders.membership_panel(membership, membership.frame[part == k]).counts for k in range(3)
    ]
    added = pieces[2] + (pieces[0] + pieces[1])
    assert added.digest == whole.digest
    assert (added.n == whole.n).all() and (added.cells == whole.cells).all()
    assert (added.at_period() == whole.at_period()).all()
    a = dc.NFXP(membership.unknown, whole).fit()
    b = dc.NFXP(membership.unknown, added).fit()
    assert (a.params == b.params).all() and a.loglik == b.loglik
    np.testing.assert_allclose(a.cov, b.cov, rtol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_estimates_agree_with_an_independent_dense_version(seed):
    rng = np.random.default_rng(seed)
    S, J = int(rng.integers(5, 120)), int(rng.integers(2, 6))
    K = int(rng.integers(1, 5))
    beta = [0.0, 0.9, 0.99, 0.9999][seed % 4]
    spec = oracles.random_model(
        seed, S, J, K, beta, masks=seed % 2 == 0, attention=seed % 3 == 0, sparse=seed % 5 == 0
    )
    model, counts, _ = builders.simulated_counts(spec, 3000, 4, seed)
    n = counts.n_sj()
    fit = dc.NFXP(model, counts).fit(cov_type="unadjusted")
    params, loglik, hessian = oracles.mle(spec, n, spec["params"])
    assert fit.converged
    assert np.abs((fit.params - params) / fit.std_errors).max() < 1e-6
    assert fit.loglik == pytest.approx(loglik, rel=1e-10)
    np.testing.assert_allclose(fit.cov, np.linalg.inv(-hessian), rtol=1e-5)
