"""Score and Vuong tests, audit, profile of beta, type grid: against simulated truth."""

import builders
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

import dynchoice as dc

PLANS = ["none", "monthly"]


def club(features=("member", "use", "join"), known=True):
    """Plan held and use; the features asked for."""
    states = dc.StateSpace(held=PLANS, use=[0, 1, 2])
    frame = states.frame()
    columns = {
        "member": np.ones(6),
        "use": frame["use"].to_numpy(float),
        "square": frame["use"].to_numpy(float) ** 2,
        "join": -1.0 * (frame["held"] == "none").to_numpy(),
    }
    x = np.zeros((6, 2, len(features)))
    for k, name in enumerate(features):
        x[:, 1, k] = columns[name]
    use = [[0.7, 0.25, 0.05], [0.2, 0.6, 0.2], [0.05, 0.3, 0.65]]
    laws = {
        "held": dc.Deterministic(lambda level, choice: choice),
        "use": dc.Markov(given=(), probabilities=use if known else None),
    }
    return dc.DDC(
        states=states,
        choices=PLANS,
        utility=dc.Utility.from_array(x, list(features)),
        transitions=dc.Transitions.factored(states, PLANS, laws),
        beta=0.9,
    )


THETA = np.array([-1.0, 0.8, 0.7])


def counts_of(model, theta, members, periods, seed):
    paths = dc.simulate(
        model,
        params=theta,
        members=members,
        periods=periods,
        seed=seed,
        start=0 * np.arange(members),
    )
    states, choices = paths.states, paths.choices
    member, period = np.divmod(np.arange(states.size), periods)
    following = np.full(states.shape, -1)
    following[:, :-1] = states[:, 1:]
    return builders.counts_from(
        model, member, period, states.reshape(-1), choices.reshape(-1), following.reshape(-1)
    )


@pytest.fixture(scope="module")
def sample():
    model = club()
    return model, counts_of(model, THETA, 600, 10, 3)


# score test --------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [True, False])
def test_score_test_has_its_size_and_power(robust):
    small, large = club(), club(("member", "use", "join", "square"))
    pvalues = []
    for seed in range(60):
        counts = counts_of(small, THETA, 150, 8, 100 + seed)
        fit = dc.NFXP(small, counts).fit(cov_type="opg")
        pvalues.append(dc.score_test(fit, large, counts, robust=robust).pval)
    assert kstest(pvalues, "uniform").pvalue > 0.01
    counts = counts_of(large, np.r_[THETA, 0.5], 1200, 10, 1)
    fit = dc.NFXP(small, counts).fit()
    found = dc.score_test(fit, large, counts, robust=robust)
    assert found.df == 1 and found.pval < 1e-6 and "square = 0" in found.null


def test_score_wald_and_ratio_agree_nearby(sample):
    small, counts = sample
    large = club(("member", "use", "join", "square"))
    fit, full = dc.NFXP(small, counts).fit(), dc.NFXP(large, counts).fit(cov_type="unadjusted")
    score = dc.score_test(fit, large, counts, robust=False)
    ratio = full.lr_test(fit)
    wald = full.wald_test(formula="square = 0")
    assert abs(score.stat - ratio.stat) < 0.15 * max(ratio.stat, 1)
    assert abs(wald.stat - ratio.stat) < 0.15 * max(ratio.stat, 1)


def test_score_test_refuses(sample):
    model, counts = sample
    fit = dc.NFXP(model, counts).fit()
    with pytest.raises(dc.SpecificationError, match="adds no parameter"):
        dc.score_test(fit, model, counts)
    with pytest.raises(dc.SpecificationError, match="does not have 'join'"):
        dc.score_test(fit, club(("member", "use", "square")), counts)
    other = counts_of(model, THETA, 50, 5, 8)
    with pytest.raises(dc.SpecificationError, match="not the data of the fit"):
        dc.score_test(fit, club(("member", "use", "join", "square")), other)
    ccp = dc.CCP(model, counts).fit()
    with pytest.raises(dc.SpecificationError, match="maximum likelihood"):
        dc.score_test(ccp, club(("member", "use", "join", "square")), counts)


# Vuong -------------------------------------------------------------------------------------------


def test_vuong_by_hand_and_its_direction(sample):
    model, counts = sample
    good = dc.NFXP(model, counts).fit()
    bad = dc.NFXP(club(("member", "square", "join")), counts).fit()
    test = dc.vuong_test(good, bad, counts, correct=False)
    gap = np.log(good.ccp) - np.log(bad.ccp)
    own = counts.members
    cells = own.cells[:, 1:3]
    each = own.matrix() @ gap[cells[:, 0], cells[:, 1]]
    assert test.difference == pytest.approx(good.loglik - bad.loglik)
    want = each.sum() / np.sqrt(((each - each.mean()) ** 2).sum())
    assert test.stat == pytest.approx(want) and test.stat > 3 and test.pval < 1e-2
    assert "favoured at 5%: the first" in str(test)
    back = dc.vuong_test(bad, good, counts)
    assert -back.difference == pytest.approx(test.difference)  # as many parameters
    nested = dc.NFXP(club(("member", "join")), counts).fit()
    with pytest.raises(dc.SpecificationError, match="use lr_test"):
        dc.vuong_test(good, nested, counts)
    with pytest.raises(dc.SpecificationError, match="not nested"):
        nested.lr_test(dc.NFXP(club(("square",)), counts).fit())
    with pytest.raises(dc.SpecificationError, match="nested"):
        dc.vuong_test(good, good, counts)


def test_vuong_takes_mixtures_that_are_not_nested(sample):
    model, counts = sample
    one = dc.NFXP(model, counts).fit()
    two = dc.CCPEM(model, counts, types=1).fit()
    with pytest.raises(dc.SpecificationError, match="nested"):
        dc.vuong_test(two, one, counts)
    other = dc.NFXP(club(("member", "square", "join")), counts).fit()
    assert dc.vuong_test(two, other, counts).stat == pytest.approx(
        dc.vuong_test(one, other, counts).stat, abs=1e-6
    )


# audit and profile -------------------------------------------------------------------------------


def test_audit_finds_the_estimate_again():
    model = club(known=False)
    counts = counts_of(club(), THETA, 500, 10, 5)
    fit = dc.NFXP(model, counts).fit()
    table = dc.audit(fit, counts, draws=120, seed=1)
    frame = table.frame()
    assert table.failed == 0 and (table.truth == fit.theta).all()
    assert frame["se / sd"].between(0.82, 1.22).all()
    assert frame["coverage"].between(0.88, 0.995).all()
    assert (frame["bias / sd"].abs() < 0.35).all()
    again = dc.audit(fit, counts, draws=10, seed=1)
    assert (again.estimates == table.estimates[:10]).all()
    with pytest.raises(dc.SpecificationError, match="at least 10"):
        dc.audit(fit, counts, draws=3)


def test_profile_of_beta():
    # engagement depends on membership and pays only later: the future is in the choices
    membership = builders.small_membership(members=3000, periods=14, seed=3)
    panel = builders.membership_panel(membership, membership.frame)
    table = dc.profile_beta(membership.known, panel, [0.3, 0.8, 0.97])
    assert table["converged"].all() and list(table["beta"]) == [0.3, 0.8, 0.97]
    assert list(table["inside"]) == [False, True, True]
    fit = dc.NFXP(membership.known, panel).fit()
    assert table["loglik"].iloc[2] == pytest.approx(fit.loglik, abs=1e-6)
    # where choices have no later consequence the data say nothing of the discount factor
    model = club()
    flat = dc.profile_beta(model, counts_of(model, THETA, 600, 10, 3), [0.0, 0.5, 0.9])
    assert flat["inside"].all() and np.ptp(flat["loglik"]) < 0.1
    with pytest.raises(dc.SpecificationError, match="at least two"):
        dc.profile_beta(model, panel, [0.9])


# type grid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["moments", "likelihood"])
def test_type_grid_finds_the_weights(method):
    model = club()
    low, high = THETA, THETA + np.array([1.5, 0.0, 0.0])
    # moments are noisier than histories: more members for the same bounds
    times = 5 if method == "moments" else 1
    first = counts_of(model, low, 7000 * times, 12, 11)
    second = counts_of(model, high, 3000 * times, 12, 12)
    grid = pd.DataFrame([low + np.array([d, 0, 0]) for d in np.linspace(-1.5, 3, 7)],
                        columns=model.names)  # fmt: skip
    fit = dc.TypeGrid(model, first + second, grid, method=method).fit()
    assert fit.weights.min() >= 0 and fit.weights.sum() == pytest.approx(1)
    moments = fit.moments()
    assert moments.loc["member", "mean"] == pytest.approx(-1.0 + 0.3 * 1.5, abs=0.08)
    assert moments.loc["member", "sd"] == pytest.approx(1.5 * np.sqrt(0.21), abs=0.12)
    assert (moments.loc[["use", "join"], "sd"] < 1e-6).all()
    assert "types have weight" in str(fit)


def test_type_grid_bootstrap_and_refusals(sample):
    model, counts = sample
    grid = [THETA, THETA + 1.0, THETA - 1.0]
    fit = dc.TypeGrid(model, counts, grid, method="likelihood").fit(draws=20, seed=3)
    assert fit.draws.shape == (20, 3) and np.allclose(fit.draws.sum(axis=1), 1)
    assert {"mean_se", "sd_se"} <= set(fit.moments())
    for bad, message in (
        ({"grid": [THETA]}, "at least two"),
        ({"grid": [[1.0, 2.0], [1.0, 3.0]]}, "3 parameters"),
        ({"grid": grid, "method": "guess"}, "'moments' or 'likelihood'"),
    ):
        with pytest.raises(dc.SpecificationError, match=message):
            dc.TypeGrid(model, counts, **bad)
    with pytest.raises(dc.SpecificationError, match="need the Panel"):
        dc.TypeGrid(model, counts, grid).fit(draws=20)


# number of types ---------------------------------------------------------------------------------


def test_the_number_of_types_by_bic():
    model = club()
    low, high = THETA, THETA + np.array([2.0, 0.0, 0.0])
    both = counts_of(model, low, 300, 12, 21) + counts_of(model, high, 300, 12, 22)
    found = dc.select_types(model, both, (1, 2), varying=["member"], fit={"starts": 2})
    assert list(found.results) == ["1 type", "2 types"] and found.best() == "2 types"
    one = dc.select_types(model, counts_of(model, low, 300, 12, 21), (1,))
    assert one.best("aic") == "1 type"
    with pytest.raises(dc.SpecificationError, match="'bic' or 'aic'"):
        found.best("loglik")


def test_a_mixture_goes_into_a_forecast_type_by_type(sample):
    model, counts = sample
    fit = dc.CCPEM(model, counts, types=1).fit()
    for use in (
        lambda: dc.forecast(fit, start=counts),
        lambda: dc.counterfactual(fit, dc.Scenario("same")),
        lambda: dc.simulate(fit, members=5),
        lambda: dc.causal_check(fit, counts),
    ):
        with pytest.raises(dc.SpecificationError, match="type"):
            use()


@pytest.mark.filterwarnings("ignore:CCPEM. not converged")
def test_a_mixture_is_forecast_from_where_its_members_stand():
    membership = builders.small_membership(members=400, periods=8, seed=4)
    panel = builders.membership_panel(membership, membership.frame)
    fit = dc.CCPEM(membership.unknown, panel, types=2, varying=["member"]).fit(starts=2)
    found = dc.forecast(fit, start=panel, periods=3, draws=0)
    table = found.take_up
    assert set(table["segment"]) == {"type 0", "type 1", "all"}
    sizes = table[table["period"] == 1].groupby("segment")["members"].sum()
    assert sizes["all"] == pytest.approx(400) and sizes["type 0"] == pytest.approx(
        fit.posteriors[:, 0].sum(), rel=0.2
    )
