"""Bootstrap, clusters by region, contrasts of estimators and score bootstraps."""

from dataclasses import replace

import builders
import numpy as np
import oracles
import pandas as pd
import pytest
import scipy.stats

import dynchoice as dc
from dynchoice.estimate.bootstrap import weights_of
from dynchoice.panel.cells import RegionCells, group_sum

S, J, T = 12, 3, 6
SPEC = oracles.random_model(7, S, J, 2, 0.9, attention=False)
MODEL = builders.from_oracle(SPEC)


def rows_frame(members, seed, regions=40, periods=T):
    """A simulated panel, one row a member-month, with the member's region."""
    rows = oracles.simulate(SPEC, SPEC["params"], members, periods, seed)
    member, period, state, choice, _ = rows
    frame = pd.DataFrame({"member": member, "period": period, "s": state})
    frame["choice"] = np.array(MODEL.choices)[choice]
    frame["region"] = [f"r{m % regions:02d}" for m in member]
    return frame, (member, state, choice)


def panel_of(frame, **options):
    return dc.Panel(
        frame,
        member="member",
        time="period",
        choice="choice",
        states=MODEL.states,
        choices=MODEL.choices,
        **options,
    )


@pytest.fixture(scope="module")
def data():
    frame, rows = rows_frame(400, 3)
    return panel_of(frame, region="region", buckets=100), frame, rows


@pytest.fixture(scope="module")
def bootstrapped(data):
    fit = dc.NFXP(MODEL, data[0]).fit(cov_type="bootstrap", draws=150, seed=5)
    return fit, dc.NFXP(MODEL, data[0]).fit()


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_agrees_with_clusters(bootstrapped):
    fit, clustered = bootstrapped
    assert (fit.params == clustered.params).all() and fit.loglik == clustered.loglik
    assert fit.cov_type == "bootstrap" and fit.bootstrap.shape == (150, 2)
    assert fit.cov_config["draws"] == 150 and fit.cov_config["failed"] == 0
    np.testing.assert_allclose(fit.cov, np.cov(fit.bootstrap.T), rtol=1e-12)
    # the standard deviation of 150 draws has an error of 6%
    assert (fit.std_errors / clustered.std_errors).between(0.8, 1.25).all()
    assert np.abs((fit.bootstrap.mean(axis=0) - fit.params) / fit.std_errors).max() < 0.4
    assert "bootstrap" in str(fit.summary).lower()


def test_percentiles_are_quantiles_of_the_draws(bootstrapped):
    fit, clustered = bootstrapped
    lower, upper = np.sort(fit.bootstrap, axis=0)[[0, -1]]
    wide = fit.conf_int(1 - 1e-9, method="percentile")
    np.testing.assert_allclose(wide.to_numpy(), np.c_[lower, upper], atol=1e-6)
    narrow = fit.conf_int(0.9, method="percentile")
    inside = (fit.bootstrap >= narrow["lower"].to_numpy()) & (
        fit.bootstrap <= narrow["upper"].to_numpy()
    )
    assert (np.abs(inside.mean(axis=0) - 0.9) < 0.02).all()
    with pytest.raises(dc.SpecificationError, match="percentiles need a fit"):
        clustered.conf_int(method="percentile")


def test_draws_are_the_fits_of_repeated_members(data):
    # the first draw, by hand: member rows copied as often as their bucket was drawn
    panel, frame, _ = data
    fit = dc.NFXP(MODEL, panel).fit(cov_type="bootstrap", draws=20, seed=2)
    weight = weights_of(panel.counts, 20, 2)
    members = panel.counts.members
    assert (weight.sum(axis=1) == len(np.unique(members.bucket))).all()
    times = weight[0][members.bucket].astype(int)
    labels = np.sort(frame["member"].unique())
    parts = []
    for copy in range(1, times.max() + 1):
        again = frame[frame["member"].isin(labels[times >= copy])].copy()
        again["member"] = again["member"] + 10_000 * copy
        parts.append(again)
    by_hand = dc.NFXP(MODEL, panel_of(pd.concat(parts, ignore_index=True))).fit()
    np.testing.assert_allclose(fit.bootstrap[0], by_hand.theta, atol=1e-6)


def test_the_same_seed_gives_the_same_draws_on_any_number_of_processes(data):
    estimator = dc.CCP(MODEL, data[0])
    one, two = (estimator.fit(cov_type="bootstrap", draws=20, seed=1, jobs=k) for k in (1, 2))
    again = estimator.fit(cov_type="bootstrap", draws=20, seed=1)
    other = estimator.fit(cov_type="bootstrap", draws=20, seed=2)
    assert (one.bootstrap == again.bootstrap).all()
    assert (one.bootstrap == two.bootstrap).all()
    assert (one.bootstrap != other.bootstrap).any()


@pytest.mark.parametrize("cluster", ["member", "region"])
def test_bootstrap_with_estimated_laws_and_clusters(cluster, membership):
    frame = membership.frame[membership.frame["member"] < 800].copy()
    frame["region"] = frame["member"] % 50
    panel = builders.membership_panel(membership, frame, region="region")
    estimator = dc.NFXP(membership.unknown, panel)
    boot = estimator.fit(cov_type="bootstrap", cluster=cluster, draws=60, seed=0)
    clustered = estimator.fit(cluster=cluster)
    assert (boot.std_errors / clustered.std_errors).between(0.65, 1.5).all()
    assert boot.cov_config["first_stage_label"] == "redone in every draw"
    filled = len(np.unique(panel.counts.cells[:, 1]))
    assert filled > 190
    units = {"member": ("bucket of members", filled), "region": ("region", 50)}[cluster]
    assert (boot.cov_config["by"], boot.cov_config["clusters"]) == units


@pytest.mark.parametrize("cluster", ["member", "region"])
def test_bootstrap_at_a_finite_horizon(cluster, data):
    model = MODEL.with_parts(horizon=T)
    for estimator in (
        dc.NFXP(model, data[0]),
        dc.CCP(model, data[0], valuation="finite-dependence"),
    ):
        boot = estimator.fit(cov_type="bootstrap", cluster=cluster, draws=24, seed=1)
        clustered = estimator.fit(cluster=cluster)
        assert (boot.std_errors / clustered.std_errors).between(0.6, 1.6).all()
    with pytest.raises(dc.SpecificationError, match="needs the Panel"):
        dc.NFXP(model, data[0].counts).fit(cov_type="bootstrap", draws=20)


def test_one_stage_of_npl_redoes_its_first_stage(data):
    options = {"cov_type": "bootstrap", "draws": 20, "seed": 3}
    one = dc.NPL(MODEL, data[0], steps=1).fit(**options)
    ccp = dc.CCP(MODEL, data[0]).fit(**options)
    np.testing.assert_allclose(one.bootstrap, ccp.bootstrap, atol=1e-7)


@pytest.mark.filterwarnings("ignore:CCP. the estimate is .* standard errors from where")
@pytest.mark.filterwarnings("ignore:CCP. simulated values are poor")
def test_the_bootstrap_of_simulated_values_has_the_simulation_in_it():
    # next to no noise in the data: what is left is that of the paths
    P = oracles.solve_newton(SPEC, SPEC["params"])[3]
    n = 1e7 * oracles.stationary(SPEC["F"], P)[:, None] * P
    counts = builders.choice_counts(MODEL, n)
    cells = np.concatenate([counts.cells, counts.cells + [0, 1, 0, 0, 0, 0]])
    counts = replace(counts, cells=cells, n=np.r_[counts.n, counts.n] / 2, _cache={})
    estimator = dc.CCP(MODEL, counts, valuation="simulation", paths=400)
    noise = estimator.fit(seed=1, cov_type="unadjusted").std_errors
    with pytest.warns(dc.IdentificationWarning):  # two units carry no clustered errors
        boot = estimator.fit(seed=1, cov_type="bootstrap", draws=30).std_errors
    assert (boot / noise).between(0.5, 2).all(), boot / noise


def test_fits_that_fail_are_counted(data, monkeypatch):
    estimator = dc.CCP(MODEL, data[0])
    calls, again = [], dc.CCP.again

    def sometimes(self, counts):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise dc.DataError("no luck")
        return again(self, counts)

    monkeypatch.setattr(dc.CCP, "again", sometimes)
    with pytest.warns(dc.ConvergenceWarning, match="5 of 20 bootstrap fits failed.*no luck"):
        fit = estimator.fit(cov_type="bootstrap", draws=20, seed=1)
    assert fit.cov_config["failed"] == 5 and fit.bootstrap.shape == (15, 2)
    assert any("5 of 20 bootstrap fits failed" in note for note in fit.notes)
    with pytest.raises(dc.ConvergenceError, match="bootstrap fits failed"):
        estimator.fit(cov_type="bootstrap", draws=20, seed=1, strict=True)


def test_fits_that_do_not_converge_are_counted(data):
    with pytest.warns(dc.ConvergenceWarning):
        fit = dc.NPL(MODEL, data[0]).fit(cov_type="bootstrap", draws=20, seed=1, maxiter=1)
    assert not fit.converged and fit.cov_config["failed"] > 0


def test_progress_is_reported(data):
    seen = []
    dc.CCP(MODEL, data[0]).fit(
        cov_type="bootstrap", draws=20, seed=1, progress=lambda *args: seen.append(args)
    )
    assert seen[-1][:2] == (20, 20) and seen[-1][2] == "bootstrap"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 19}, "draws=19"),
        ({"draws": 20, "jobs": 0}, "jobs=0"),
        ({"draws": 20, "cluster": "regoin"}, "Did you mean 'region'"),
        ({"cov_type": "bootstrp"}, "Did you mean 'bootstrap'"),
    ],
)
def test_wrong_arguments(data, options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.NFXP(MODEL, data[0]).fit(**{"cov_type": "bootstrap", **options})


def test_no_regions_or_one_unit(data):
    frame = data[1]
    plain = panel_of(frame)
    for cov_type in ("clustered", "bootstrap"):
        with pytest.raises(dc.SpecificationError, match="has no regions: build it with region="):
            dc.NFXP(MODEL, plain).fit(cov_type=cov_type, cluster="region", draws=20)
    single = panel_of(frame.assign(region="all"), region="region")
    with (
        pytest.warns(dc.IdentificationWarning),
        pytest.raises(dc.SpecificationError, match="nothing to resample"),
    ):
        dc.NFXP(MODEL, single).fit(cov_type="bootstrap", cluster="region", draws=20)


# ---------------------------------------------------------------- regions


def test_clusters_by_region_by_hand(data):
    panel, frame, (_, state, choice) = data
    fit = dc.NFXP(MODEL, panel).fit(cluster="region")
    want = oracles.cov_clustered(SPEC, fit.theta, frame["region"].to_numpy(), state, choice)
    np.testing.assert_allclose(fit.cov, want, rtol=1e-5)
    assert fit.cov_config["clusters"] == 40 and fit.cov_config["by"] == "region"
    # what every cluster adds to the estimate: its scores times H^-1
    code = np.unique(frame["region"], return_inverse=True)[1]
    g = oracles.member_scores(SPEC, fit.theta, code, state, choice, 40)
    np.testing.assert_allclose(
        fit.influence,
        g @ np.linalg.inv(oracles.information(SPEC, fit.theta, state, choice)),
        rtol=1e-4,
        atol=1e-8,
    )


@pytest.mark.parametrize("cov_type", ["clustered", "robust", "opg", "unadjusted"])
@pytest.mark.parametrize("cluster", ["member", "region"])
@pytest.mark.parametrize("horizon", [None, T])
def test_every_covariance_with_every_cluster(data, cov_type, cluster, horizon):
    model = MODEL.with_parts(horizon=horizon)
    base = dc.NFXP(model, data[0]).fit(cov_type="opg")
    for estimator in (
        dc.NFXP(model, data[0]),
        dc.CCP(model, data[0], valuation="finite-dependence"),
    ):
        fit = estimator.fit(cov_type=cov_type, cluster=cluster)
        assert (fit.std_errors / base.std_errors).between(0.7, 3).all()


def test_regions_add_bit_for_bit(data):
    panel, frame, _ = data
    for labels in (frame["region"], frame["member"] % 12):
        whole = panel_of(frame.assign(region=labels), region="region", buckets=100).counts
        parts = [
            panel_of(
                frame[frame["member"] % 3 == k].assign(region=labels[frame["member"] % 3 == k]),
                region="region",
                buckets=100,
            ).counts
            for k in range(3)
        ]
        total = sum(parts)
        assert total.digest == whole.digest
        assert total.regions.labels == whole.regions.labels
        assert (total.regions.cells == whole.regions.cells).all()
        assert (total.regions.n == whole.regions.n).all()
        a, b = total.by_region(), whole.by_region()
        assert (a.cells == b.cells).all() and (a.n == b.n).all() and a.unit == "region"
        assert (a.n_sj() == whole.n_sj()).all()


def test_regions_that_appear_in_one_part_only():
    frame, _ = rows_frame(60, 1, regions=6)
    low = frame["region"] < "r03"
    total = (
        panel_of(frame[~low], region="region").counts + panel_of(frame[low], region="region").counts
    )
    whole = panel_of(frame, region="region").counts
    assert total.regions.labels == whole.regions.labels
    assert (total.regions.cells == whole.regions.cells).all()
    a = dc.NFXP(MODEL, total).fit(cov_type="opg", cluster="region")
    assert a.theta == pytest.approx(dc.NFXP(MODEL, whole).fit(cov_type="opg").theta)


def test_reweighted_counts():
    frame, _ = rows_frame(60, 1, regions=6)
    counts = panel_of(frame, region="region", buckets=20).counts
    by_region = counts.by_region()
    factor = np.array([0.0, 1, 2, 0, 3, 1])
    again = by_region.reweighted(factor)
    labels = by_region.regions.labels
    parts = [panel_of(frame[frame["region"] == label]).counts for label in labels]
    for n_of in (lambda c: c.n_sj(), lambda c: c.n_tsj(T)):
        want = sum(times * n_of(own) for times, own in zip(factor, parts, strict=True))
        np.testing.assert_array_equal(n_of(again), want)
    times = dict(zip(by_region.regions.labels, factor, strict=True))
    assert again.nobs == frame["region"].map(times).sum()
    with pytest.raises(dc.SpecificationError, match="20 buckets need as many factors"):
        counts.reweighted(factor)


# ---------------------------------------------------------------- contrasts


def simulated(seed, members=250, spec=SPEC):
    return builders.simulated_counts(spec, members, T, seed)[1]


@pytest.mark.filterwarnings("ignore:CCP. the estimate is .* standard errors from where")
@pytest.mark.slow
def test_hausman_is_uniform_under_the_truth():
    tests = []
    for seed in range(100):
        counts = simulated(seed)
        dependent = dc.CCP(MODEL, counts, valuation="finite-dependence").fit()
        tests.append(dc.NFXP(MODEL, counts).fit().hausman_test(dependent))
    assert all(t.df == 2 for t in tests)
    p = np.array([t.pval for t in tests])
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
    assert (p < 0.05).mean() < 0.16


@pytest.mark.filterwarnings("ignore:CCP. the estimate is .* standard errors from where")
def test_hausman_rejects_a_wrong_model():
    # the truth has a third feature that the model leaves out
    spec = oracles.random_model(7, S, J, 3, 0.9, attention=False)
    spec["params"] = np.array([0.5, -0.5, 1.5])
    full, counts, _ = builders.simulated_counts(spec, 3000, T, 1)
    wrong = full.with_parts(
        utility=dc.Utility.from_array(spec["x"][:, :, :2], ["k0", "k1"], offset=spec["offset"])
    )
    nfxp = dc.NFXP(wrong, counts).fit()
    dependent = dc.CCP(wrong, counts, valuation="finite-dependence").fit()
    assert nfxp.hausman_test(dependent).pval < 1e-3
    assert dependent.hausman_test(nfxp).stat == pytest.approx(nfxp.hausman_test(dependent).stat)
    right = dc.NFXP(full, counts).fit(), dc.CCP(full, counts, valuation="finite-dependence").fit()
    assert right[0].hausman_test(right[1]).pval > 1e-3


def test_hausman_by_hand():
    counts = simulated(1)
    a = dc.NFXP(MODEL, counts).fit()
    b = dc.CCP(MODEL, counts, valuation="finite-dependence").fit()
    spread = a.influence - b.influence
    gap = a.theta - b.theta
    want = gap @ np.linalg.inv(spread.T @ spread) @ gap
    test = a.hausman_test(b)
    assert test.stat == pytest.approx(want, rel=1e-8)
    G = int((a.influence != 0).any(axis=1).sum())
    scaled = want * (G - 2) / (2 * (G - 1))
    assert test.pval == pytest.approx(scipy.stats.f.sf(scaled, 2, G - 2))


def test_estimators_with_one_influence_are_not_contrasted():
    # CCP with exact values and NFXP are the same to first order: nothing to test
    rejected = 0
    for seed in range(5):
        counts = simulated(seed, 500)
        nfxp = dc.NFXP(MODEL, counts).fit()
        assert nfxp.hausman_test(dc.NPL(MODEL, counts).fit()).pval == 1
        rejected += nfxp.hausman_test(dc.CCP(MODEL, counts).fit()).pval < 0.01
    assert rejected == 0


def test_a_first_stage_that_dominates_is_no_agreement():
    # one year of few members, a smooth first stage of the wrong shape: far from the maximum
    counts = simulated(0, 500)
    nfxp = dc.NFXP(MODEL, counts).fit()
    far = replace(nfxp, estimator="CCP", theta=nfxp.theta + 5 * nfxp.std_errors.to_numpy())
    with pytest.raises(dc.IdentificationError, match="standard errors apart"):
        nfxp.hausman_test(far)


def test_joint_and_two_step_estimates_differ_in_first_order():
    membership = builders.small_membership(members=800, periods=8, seed=3)
    panel = builders.membership_panel(membership, membership.frame)
    two = dc.NFXP(membership.unknown, panel).fit()
    joint = dc.NFXP(membership.unknown, panel, transitions="joint").fit()
    test = two.hausman_test(joint)
    spread = two.influence - joint.influence
    assert test.stat > 0 and test.df >= 1
    gap = two.theta - joint.theta
    assert np.abs(gap / np.sqrt(np.diag(spread.T @ spread))).max() < 4


def test_the_contrast_with_simulated_values_allows_for_the_simulation():
    # or refuses: what it may not do is to take simulation noise for a rejection
    rejected = 0
    for seed in range(5):
        counts = simulated(seed)
        rough = dc.CCP(MODEL, counts, valuation="simulation", paths=100).fit(seed=seed)
        try:
            rejected += dc.NFXP(MODEL, counts).fit().hausman_test(rough).pval < 0.01
        except dc.SpecificationError:
            continue
    assert rejected <= 1


def test_hausman_errors(data):
    counts = simulated(1)
    fit = dc.NFXP(MODEL, counts).fit()
    with pytest.raises(dc.SpecificationError, match="takes a fit"):
        fit.hausman_test(3)
    with pytest.raises(dc.SpecificationError, match="same data"):
        fit.hausman_test(dc.NFXP(MODEL, simulated(2)).fit())
    with pytest.raises(dc.SpecificationError, match="keeps no influence by cluster"):
        fit.hausman_test(dc.NFXP(MODEL, counts).fit(cov_type="opg"))
    by = [dc.NFXP(MODEL, data[0]).fit(cluster=c) for c in ("member", "region")]
    with pytest.raises(dc.SpecificationError, match="same clusters in both fits"):
        by[0].hausman_test(by[1])


# ---------------------------------------------------------------- score bootstrap


def test_score_bootstrap_is_close_to_wald_with_many_clusters(data):
    fit = dc.NFXP(MODEL, data[0]).fit()
    for shift in (0.3, 1.2, 1.9):
        value = fit.theta[0] + shift * fit.std_errors.iloc[0]
        wild = fit.score_bootstrap(formula=f"k0 = {value}", draws=1999)
        wald = fit.wald_test(formula=f"k0 = {value}")
        assert wild.pval == pytest.approx(wald.pval, abs=0.07)
        assert wild.df == 1 and len(wild.distribution) == 1999
    both = fit.score_bootstrap(np.eye(2), fit.theta + 0.5 * fit.std_errors.to_numpy(), draws=999)
    assert both.df == 2 and 0.2 < both.pval <= 1
    far = fit.score_bootstrap(formula=f"k0 = {fit.theta[0] + 1}", draws=199)
    assert far.pval == 1 / 200 and "H0: k0 =" in str(far)
    assert fit.score_bootstrap(formula="k1 = 0", seed=4).pval == (
        fit.score_bootstrap(formula="k1 = 0", seed=4).pval
    )


def test_score_bootstrap_size_with_few_clusters():
    # twelve regions: the share of rejections at 10% stays near 10%
    p = []
    for seed in range(60):
        counts = simulated_by_region(seed)
        fit = dc.NFXP(MODEL, counts).fit(cluster="region")
        null = SPEC["params"][0]
        p.append(fit.score_bootstrap(formula=f"k0 = {null}", draws=199).pval)
    assert 0.01 <= (np.array(p) < 0.1).mean() <= 0.22


def simulated_by_region(seed):
    member, period, state, choice, _ = oracles.simulate(SPEC, SPEC["params"], 120, 3, seed)
    counts = builders.counts_from(MODEL, member, period, state, choice)
    zero = np.zeros_like(state)
    keys = np.stack([zero, member % 12, period, state, choice, zero - 1, zero + 1], axis=1)
    cells, n = group_sum(keys, np.ones(len(state)))
    return replace(counts, regions=RegionCells(tuple(map(str, range(12))), cells, n), _cache={})


def test_score_bootstrap_errors(data):
    fit = dc.NFXP(MODEL, data[0]).fit()
    with pytest.raises(dc.SpecificationError, match="draws=18"):
        fit.score_bootstrap(formula="k0 = 0", draws=18)
    with pytest.raises(dc.SpecificationError, match="k9"):
        fit.score_bootstrap(formula="k9 = 0")
    plain = dc.NFXP(MODEL, data[0]).fit(cov_type="robust")
    with pytest.raises(dc.SpecificationError, match="fit with cov_type='clustered'"):
        plain.score_bootstrap(formula="k0 = 0")
