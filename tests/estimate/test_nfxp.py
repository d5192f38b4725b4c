import builders
import numpy as np
import oracles
import pandas as pd
import pytest

import dynchoice as dc


def test_recovery_and_status(membership, fitted):
    fit, _ = fitted
    assert fit.converged
    assert np.abs((fit.params - membership.theta) / fit.std_errors).max() < 3.5
    assert fit.optimization["evaluations"] < 12
    assert fit.cov_config["by"] == "member" and fit.cov_config["clusters"] == 3000
    assert fit.nobs == len(membership.frame) and fit.nmembers == 3000


def test_two_step_clustered_covariance_against_the_oracle():
    # three free transition probabilities, estimated by frequencies; everything row by row
    states, choices = dc.StateSpace(m=range(8)), ["keep", "replace"]
    x = np.zeros((8, 2, 2))
    x[:, 0, 0], x[:, 1, 1] = -np.arange(8.0), -1.0
    utility = dc.Utility.from_array(x, ["cost", "RC"])

    def model(p):
        law = {"m": dc.Increment(2, "replace", probabilities=p)}
        F = dc.Transitions.factored(states, choices, law)
        return dc.DDC(states=states, choices=choices, utility=utility, transitions=F, beta=0.9)

    paths = dc.simulate(
        model([0.3, 0.5, 0.2]),
        params=[0.4, 2.0],
        members=250,
        periods=9,
        seed=5,
        start=np.zeros(250, dtype=int),
    )
    frame = paths.frame()
    panel = dc.Panel(
        frame, member="member", time="period", choice="choice", states=states, choices=choices
    )
    fit = dc.NFXP(model(None), panel).fit(cov_type="clustered")
    p = fit.first_stage[0]["probabilities"][0]
    own, following = paths.states[:, :-1], paths.states[:, 1:]
    step = following - np.where(paths.choices[:, :-1] == 1, 0, own)
    informative = (paths.choices[:, :-1] == 1) | (own + 2 <= 7)
    total = informative.sum()
    influence = (
        np.stack(
            [
                ((step == k) & informative).sum(axis=1) - p[k] * informative.sum(axis=1)
                for k in (1, 2)
            ],
            axis=1,
        )
        / total
    )

    def build(gamma):
        F = model([1 - gamma.sum(), *gamma]).transitions.dense()
        return {
            "x": x,
            "offset": np.zeros((8, 2)),
            "F": F,
            "beta": 0.9,
            "available": np.ones((8, 2), bool),
            "attention": np.ones(8),
            "default": np.zeros(8, int),
            "params": fit.theta,
        }

    want = oracles.twostep_cov(
        build,
        p[1:],
        fit.theta,
        np.repeat(np.arange(250), 9),
        paths.states.reshape(-1),
        paths.choices.reshape(-1),
        influence,
    )
    np.testing.assert_allclose(fit.cov, want, rtol=1e-5)
    ignored = dc.NFXP(model(p), panel).fit(cov_type="clustered")
    assert np.abs(fit.cov.to_numpy() / ignored.cov.to_numpy() - 1).max() > 1e-3


@pytest.mark.parametrize(
    ("cov_type", "oracle"),
    [
        ("unadjusted", oracles.cov_hessian),
        ("opg", oracles.cov_opg),
        ("robust", oracles.cov_robust),
        ("clustered", None),
    ],
)
def test_covariances_with_known_transitions(cov_type, oracle):
    spec = oracles.random_model(7, 25, 3, 2, 0.95, attention=True)
    model, counts, rows = builders.simulated_counts(spec, 400, 5, 3)
    fit = dc.NFXP(model, counts).fit(cov_type=cov_type)
    member, _, state, choice, _ = rows
    want = (
        oracle(spec, fit.theta, counts.n_sj())
        if oracle is not None
        else oracles.cov_clustered(spec, fit.theta, member, state, choice)
    )
    np.testing.assert_allclose(fit.cov, want, rtol=1e-4, atol=1e-9)


def test_joint_estimation_maximises_the_full_likelihood(membership, fitted):
    two_step, panel = fitted
    joint = dc.NFXP(membership.unknown, panel, transitions="joint").fit()
    assert joint.converged and joint.estimator == "NFXP (joint)"
    full = joint.loglik + joint.loglik_transitions
    assert full >= two_step.loglik + two_step.loglik_transitions
    assert np.abs((joint.params - two_step.params) / two_step.std_errors).max() < 1
    assert (joint.std_errors / two_step.std_errors).between(0.8, 1.2).all()
    free = sum(len(f["counts"]) for f in joint.first_stage)
    assert joint.extra_params == free


def test_joint_score_against_finite_differences(membership, fitted):
    from dynchoice.estimate.first_stage import first_stage
    from dynchoice.estimate.joint import JointLikelihood

    _, panel = fitted
    first = first_stage(membership.unknown, panel.counts, panel)
    likelihood = JointLikelihood(first, panel.counts)
    at = likelihood.start(membership.theta + 0.05)
    at += 0.02 * np.random.default_rng(0).normal(size=at.size)
    score = likelihood.evaluate(at).score
    for k in range(0, at.size, 3):
        h = np.zeros(at.size)
        h[k] = 1e-5
        slope = (likelihood.evaluate(at + h).loglik - likelihood.evaluate(at - h).loglik) / 2e-5
        assert score[k] == pytest.approx(slope, rel=1e-5, abs=1e-2)


def test_multistart_reaches_one_maximum_and_keeps_its_trace():
    spec = oracles.random_model(31, 30, 3, 3, 0.95)
    model, counts, _ = builders.simulated_counts(spec, 800, 5, 2)
    one = dc.NFXP(model, counts).fit()
    many = dc.NFXP(model, counts).fit(starts=4, seed=1)
    again = dc.NFXP(model, counts).fit(starts=4, seed=1)
    assert len(many.optimization["starts"]) == 4
    np.testing.assert_allclose(many.params, one.params, atol=1e-6)
    assert (many.params == again.params).all()
    with pytest.raises(dc.SpecificationError, match="starts=0"):
        dc.NFXP(model, counts).fit(starts=0)


def test_start_may_be_named_and_progress_is_called():
    spec = oracles.random_model(31, 30, 3, 2, 0.95)
    model, counts, _ = builders.simulated_counts(spec, 800, 5, 2)
    seen = []
    fit = dc.NFXP(model, counts).fit(
        start={"k1": 0.0, "k0": 0.1}, progress=lambda *args: seen.append(args)
    )
    assert fit.converged and seen and seen[-1][2].startswith("log-likelihood")
    with pytest.raises(dc.SpecificationError, match="no parameter 'k9'"):
        dc.NFXP(model, counts).fit(start={"k0": 0, "k9": 0})


def test_a_parameter_that_nothing_identifies_is_named():
    spec = oracles.random_model(2, 30, 3, 2, 0.9, attention=False)
    spec["x"][:, :, 1] = 3.0  # the same in every state and choice
    model, counts, _ = builders.simulated_counts(spec, 500, 4, 4)
    with pytest.raises(dc.IdentificationError, match=r"parameter\(s\) 'k1' move no choice"):
        dc.NFXP(model, counts).fit()


def test_join_and_cancel_costs_are_not_told_apart(membership):
    # entry and exit costs: only about their sum matters (Aguirregabiria and Suzuki 2014)
    base = membership.unknown
    contract = base.states.axis_codes("contract")
    cancel = np.zeros((base.states.size, 3, 1))
    cancel[contract != 0, 0, 0] = -1
    utility = dc.Utility.from_array(
        np.concatenate([base.utility.x, cancel], axis=2), [*base.names, "cancel"]
    )
    panel = builders.membership_panel(membership, membership.frame)
    with pytest.raises(dc.IdentificationError, match=r"does not change along.*cancel"):
        dc.NFXP(base.with_parts(utility=utility), panel).fit()


def test_choices_that_the_state_does_not_offer_are_refused(membership):
    frame = membership.frame.copy()
    bad = frame.index[frame["contract"] == "annual_1"][:2]
    frame.loc[bad, "choice"] = "monthly"
    panel = builders.membership_panel(membership, frame)
    who = frame.loc[bad[0], "member"]
    message = rf"(?s)member-months take a choice.*'monthly' in \(contract=annual_1.*member {who} at"
    with pytest.raises(dc.DataError, match=message):
        dc.NFXP(membership.unknown, panel)


def test_impossible_contract_moves_are_refused(membership):
    frame = membership.frame.copy()
    at = frame.index[(frame["contract"] == "annual_2") & (frame["period"] == 5)][0]
    frame.loc[at + 1, "contract"] = "annual_2"
    frame.loc[at + 1, "choice"] = "annual"
    panel = builders.membership_panel(membership, frame)
    message = r"(?s)move where the transition law does not allow.*contract=annual_2.*after 'annual'"
    with pytest.raises(dc.DataError, match=message):
        dc.NFXP(membership.unknown, panel)
    known = dc.Transitions.dense(membership.known.transitions.dense())
    with pytest.raises(dc.DataError, match="transition law does not allow"):
        dc.NFXP(membership.known.with_transitions(known), panel)


def test_offers_that_move_are_surprises_and_reported(membership):
    frame = membership.frame.copy()
    frame["offer"] = np.where(frame["period"] >= 7, "new", "old")
    fit = dc.NFXP(membership.unknown, builders.membership_panel(membership, frame)).fit()
    assert any("change the level of a Fixed axis" in note for note in fit.notes)


def test_states_never_seen_are_counted(fitted, membership):
    frame = membership.frame[membership.frame["offer"] == "old"]
    fit = dc.NFXP(membership.unknown, builders.membership_panel(membership, frame)).fit()
    assert any("20 of 40 states are never seen" in note for note in fit.notes)
    assert fit.support().seen == 20
    assert "20 never seen (there" in str(fit.support())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m, p: dc.NFXP(m, pd.DataFrame()), "pass a Panel or its Counts"),
        (lambda m, p: dc.NFXP(m, p, transitions="both"), "Use 'two-step' or 'joint'"),
        (lambda m, p: dc.NFXP(m, p).fit(cov_type="robst"), "Did you mean 'robust'"),
        (
            lambda m, p: dc.NFXP(m.with_parts(choices=["none", "annual", "monthly"],
                                              transitions=dc.Transitions.dense(
                                                  np.full((40, 3, 40), 1 / 40))), p),
            "the order counts",
        ),
        (lambda m, p: dc.CCP(m.with_parts(horizon=3), p), "exact values is for infinite horizons"),
    ],
)  # fmt: skip
def test_model_and_panel_must_fit(membership, fitted, build, message):
    with pytest.raises(dc.SpecificationError, match=message):
        build(membership.unknown, fitted[1])


def test_known_transitions_cannot_be_joint(membership, fitted):
    with pytest.raises(dc.SpecificationError, match="given already"):
        dc.NFXP(membership.known, fitted[1], transitions="joint")


def test_finite_horizon_clusters_and_first_stage(membership):
    paths = dc.simulate(
        membership.known.with_parts(horizon=6),
        params=membership.theta,
        members=1500,
        periods=6,
        seed=3,
    )
    panel = builders.membership_panel(membership, paths.frame())
    model = membership.unknown.with_parts(horizon=6)
    fit = dc.NFXP(model, panel).fit()
    assert fit.converged and fit.cov_config["first_stage"]
    assert np.abs((fit.params - membership.theta) / fit.std_errors).max() < 4
    robust = dc.NFXP(model, panel).fit(cov_type="robust")
    assert (fit.std_errors / robust.std_errors).between(0.8, 1.25).all()
    with pytest.raises(dc.SpecificationError, match="needs the Panel"):
        dc.NFXP(model, panel.counts).fit()
    assert dc.NFXP(model, panel.counts).fit(cov_type="opg").converged
    with pytest.raises(dc.DataError, match="the model's horizon is 4"):
        dc.NFXP(model.with_parts(horizon=4), panel).fit()


def test_ccp_agrees_with_nfxp_in_a_large_sample(membership, fitted):
    fit, panel = fitted
    ccp = dc.CCP(membership.unknown, panel).fit()
    assert ccp.converged
    assert np.abs((ccp.params - fit.params) / fit.std_errors).max() < 1.0
    assert (ccp.std_errors / fit.std_errors).between(0.9, 1.1).all()


def test_hotz_miller_valuation_against_the_oracle():
    from dynchoice.estimate.ccp import valuation
    from dynchoice.solvers.linear import PolicySystem

    spec = oracles.random_model(5, 30, 3, 2, 0.95, attention=False)
    model = builders.from_oracle(spec)
    P = np.random.default_rng(0).dirichlet(np.ones(3), size=30) * spec["available"]
    P /= P.sum(axis=1, keepdims=True)
    Wz, We = valuation(model, PolicySystem(model.transitions, 0.95), P, P)
    want_z, want_e = oracles.hotz_miller(spec, P)
    np.testing.assert_allclose(Wz, want_z, atol=1e-10)
    np.testing.assert_allclose(We, want_e, atol=1e-10)


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_ccp_at_the_true_probabilities_is_consistent_under_inattention(beta):
    from dynchoice.estimate.ccp import pseudo_likelihood, unmix
    from dynchoice.estimate.optimise import maximise
    from dynchoice.solvers.linear import PolicySystem

    spec = oracles.random_model(5, 30, 3, 2, beta, attention=True)
    model = builders.from_oracle(spec)
    _, _, pi, P = oracles.solve_newton(spec, spec["params"])
    np.testing.assert_allclose(unmix(model, P), pi, atol=1e-9)
    n = 1000 * P
    system = PolicySystem(model.transitions, beta)
    likelihood, _, _ = pseudo_likelihood(model, system, n, P)
    best, status = maximise(likelihood.evaluate, likelihood.hessian, np.zeros(2), n.sum())
    assert status.converged
    np.testing.assert_allclose(best.params, spec["params"], atol=1e-5)
