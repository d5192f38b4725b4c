"""Fits of models too large to expand, beside the expanded model."""

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import builders
import numpy as np
import pytest
from solver_models import KINDS, unexpanded

import dynchoice as dc
from dynchoice.estimate import start as start_module
from dynchoice.estimate.likelihood import Likelihood


@pytest.fixture(scope="module")
def members():
    """Membership models of every kind, and a panel simulated from each."""
    base = builders.small_membership(members=900, periods=8)
    contract = base.known.states.axis_codes("contract")
    default = np.array([0, 1, 0, 2, 2])[contract]  # what a contract does where nobody looks

    @lru_cache
    def panel(kind):
        if kind == "attentive":
            return builders.membership_panel(base, base.frame)
        paths = dc.simulate(
            make(kind),
            params=base.theta,
            members=900,
            periods=8,
            seed=np.random.default_rng(3),
            start=np.random.default_rng(4).choice(np.flatnonzero(contract == 0), 900),
        )
        return builders.membership_panel(base, paths.frame())

    def make(kind, known=True, beta=0.97):
        old = base.known
        options = {} if kind == "attentive" else {"attention": 0.4 + 0.3 * (contract > 0)}
        if options:
            options["default"] = default
        if kind == "naive":
            options["perceived"] = 1.0
        return dc.DDC(
            states=old.states,
            choices=old.choices,
            utility=old.utility,
            transitions=dc.Transitions.factored(
                old.states, old.choices, builders.small_laws(known)
            ),
            beta=beta,
            available=old.available,
            **options,
        )

    return SimpleNamespace(theta=base.theta, make=make, panel=panel, contract=contract)


def same_fit(a, b, near=1e-6):
    assert a.converged and b.converged
    se = a.std_errors.to_numpy()
    assert np.abs((a.params - b.params).to_numpy() / se).max() < near
    np.testing.assert_allclose(b.std_errors, se, rtol=near)
    np.testing.assert_allclose(b.cov, a.cov, atol=10 * near * np.outer(se, se).max())
    np.testing.assert_allclose(b.cov / np.outer(se, se), a.cov / np.outer(se, se), atol=10 * near)
    assert b.loglik == pytest.approx(a.loglik, rel=1e-10)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_fits_are_those_of_the_expanded_model(members, kind, known):
    panel = members.panel(kind)
    small = dc.NFXP(members.make(kind, known), panel).fit(tol=1e-10)
    with unexpanded():
        nfxp = dc.NFXP(members.make(kind, known), panel)
        assert nfxp.likelihood().solver.system.method == "levels"
        large = nfxp.fit(tol=1e-10)
    same_fit(small, large)


@pytest.mark.parametrize("cov_type", ["robust", "opg", "unadjusted"])
def test_covariances_are_those_of_the_expanded_model(members, cov_type):
    panel = members.panel("inattentive")
    small = dc.NFXP(members.make("inattentive", False), panel).fit(cov_type=cov_type, tol=1e-10)
    with unexpanded():
        large = dc.NFXP(members.make("inattentive", False), panel).fit(
            cov_type=cov_type, start=0 * members.theta, tol=1e-10
        )
    same_fit(small, large)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9999])
def test_fits_at_other_discount_factors(members, beta):
    panel = members.panel("attentive")
    small = dc.NFXP(members.make("attentive", True, beta), panel).fit(tol=1e-10)
    with unexpanded():
        large = dc.NFXP(members.make("attentive", True, beta), panel).fit(tol=1e-10)
    same_fit(small, large, 1e-5 if beta > 0.999 else 1e-6)


def test_other_estimators_through_the_large_path(members):
    panel = members.panel("inattentive")

    def fits():
        model = members.make("inattentive", False)
        return [dc.NPL(model, panel).fit(), dc.CCP(model, panel).fit()]

    small = fits()
    with unexpanded():
        large = fits()
    for a, b in zip(small, large, strict=True):
        same_fit(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_estimated_laws(members, kind, rng):
    """Along random changes of the laws' rows that keep their sums, by differences."""
    with unexpanded():
        nfxp = dc.NFXP(members.make(kind, False), members.panel(kind))
        likelihood, n = nfxp.likelihood(), nfxp.counts.n_sj()
        model = likelihood.model
        theta = 0.9 * members.theta
        at = likelihood.evaluate(theta)
        score, cross = likelihood.transition_score(at), likelihood.cross_derivative(at)
        assert set(score) == set(cross) == {"ship", "video"}
        for law in model.transitions.bound:
            if not law.estimated:
                continue
            change = rng.normal(size=score[law.name].shape)
            change -= change.mean(axis=1, keepdims=True)
            ends = []
            for step in (1e-5, -1e-5):
                table = law.table + step * law.fill(change)
                bound = tuple(
                    replace(other, table=table) if other is law else other
                    for other in model.transitions.bound
                )
                F = model.transitions.with_bound(bound)
                ends.append(Likelihood(model.unchecked(transitions=F), n).evaluate(theta))
            slope = (ends[0].loglik - ends[1].loglik) / 2e-5
            assert (score[law.name] * change).sum() == pytest.approx(slope, rel=1e-5, abs=1e-3)
            slopes = (ends[0].score - ends[1].score) / 2e-5
            found = np.einsum("krm,rm->k", cross[law.name], change)
            np.testing.assert_allclose(found, slopes, rtol=1e-4, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("kind", ["attentive", "inattentive"])
def test_the_default_start_is_near_the_maximum(members, kind):
    with unexpanded():
        nfxp = dc.NFXP(members.make(kind), members.panel(kind))
        likelihood = nfxp.likelihood()
        n = nfxp.counts.n_sj()
        theta, sound = start_module.default_start(likelihood.model, n, likelihood)
        at = likelihood.evaluate(theta)
        fit = nfxp.fit()
    assert sound and at.converged and at.point.contractions == 0  # from the value handed over
    assert np.abs((theta - fit.params) / fit.std_errors).max() < 0.1
    # the value is that of the start's parameters, nearly
    h = likelihood.value - likelihood.value[at.point.h == 0][0]
    blocks = likelihood.model.transitions.blocks
    for b in np.unique(blocks):
        own = np.flatnonzero(blocks == b)
        d = (likelihood.value - at.point.h)[own]
        assert np.ptp(d) < 0.05 * max(1.0, np.ptp(h))


def test_stages_of_the_start_invert_what_is_observed_of_naive_members(members, monkeypatch):
    """With the policy that naive members expect of themselves, the inversion takes away default
    choices that are not in it."""
    seen, flows = [], start_module.policy_flows

    def spy(model, P, pi):
        seen.append((model, P.copy(), pi.copy()))
        return flows(model, P, pi)

    monkeypatch.setattr(start_module, "policy_flows", spy)
    with unexpanded():
        nfxp = dc.NFXP(members.make("naive"), members.panel("naive"))
        fit = nfxp.fit()
    assert len(seen) == start_module.LARGE_STAGES
    for model, P, pi in seen[1:]:
        rows = np.arange(len(P))
        assert (P[rows, model.default] >= 1 - model.attention - 1e-12).all()
        mixed = model.attention[:, None] * pi
        mixed[rows, model.default] += 1 - model.attention
        np.testing.assert_allclose(mixed, P, atol=1e-8)
    off = (fit.optimization["start"] - fit.params) / fit.std_errors
    assert np.abs(off).max() < 4  # 2.4 when it is right, 10 when it is not


def test_what_nothing_identifies_is_refused(members):
    old = members.make("attentive")
    season = (old.states.axis_codes("offer") + 0.5) * np.ones((3, 1))
    for extra in (old.utility.x[:, :, :1], season.T[:, :, None]):
        x = np.concatenate([old.utility.x, extra], axis=2)
        utility = dc.Utility.from_array(x, [*old.names, "extra"])
        with unexpanded():
            model = members.make("attentive").with_parts(utility=utility)
            with pytest.raises(dc.IdentificationError, match="extra"):
                dc.NFXP(model, members.panel("attentive")).fit()


@pytest.mark.parametrize("kind", ["attentive", "naive"])
def test_forecasts_through_the_large_path(members, kind):
    panel = members.panel(kind)
    dear = dc.Scenario("dear", params={"pay": lambda p: 2 * p})

    def tables():
        fit = dc.NFXP(members.make(kind, False), panel).fit(start=members.theta)
        result = dc.forecast(fit, dear, start=panel, periods=4, draws=5, seed=2)
        return [t.select_dtypes("number").to_numpy() for t in (result.take_up, result.flows)]

    small = tables()
    with unexpanded():
        large = tables()
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6, equal_nan=True)
