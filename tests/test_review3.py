"""What the review of the CCP family found: each defect stays mended."""

import importlib.util
import sys
from pathlib import Path

import builders
import numpy as np
import oracles
import pandas as pd
import pytest

import dynchoice as dc

HERE = Path(__file__).resolve().parent


def renewal(attention=1.0):
    """Eight levels of wear, quitting renews, a market feature on a Fixed axis."""
    states = dc.StateSpace(k=range(4), w=[0, 1])
    frame = states.frame()
    x = np.zeros((8, 2, 3))
    x[:, 1, 0] = 1.0
    x[:, 1, 1] = frame["k"]
    x[:, 1, 2] = frame["w"]
    up = np.minimum(np.arange(4) + 1, 3)
    table = np.zeros((2, 4, 4))
    table[0, :, 0] = 1.0
    table[1, np.arange(4), up] += 0.7
    table[1, np.arange(4), np.arange(4)] += 0.3
    laws = {"k": dc.Markov(("choice",), table), "w": dc.Fixed()}
    return dc.DDC(
        states=states,
        choices=["quit", "stay"],
        utility=dc.Utility.from_array(x, ["const", "wear", "w"]),
        transitions=dc.Transitions.factored(states, ["quit", "stay"], laws),
        beta=0.9,
        attention=attention,
        default="stay" if attention < 1 else None,
    )


THETA = np.array([1.0, -0.4, 0.5])


def panel(model, regions=30, members=200, periods=6, seed=1):
    """Members of every region, half of the regions at each level of w."""
    rng = np.random.default_rng(seed)
    start = model.states.codes(
        pd.DataFrame({"k": rng.integers(0, 4, regions * members),
                      "w": np.repeat(np.arange(regions) % 2, members)})
    )  # fmt: skip
    paths = dc.simulate(
        model, params=THETA, members=len(start), periods=periods, seed=seed, start=start
    ).frame()
    paths["region"] = paths["member"] // members
    return dc.Panel(
        paths, member="member", time="period", choice="choice", region="region",
        states=model.states, choices=model.choices,
    )  # fmt: skip


def test_eccp_with_inattention_leaves_out_cells_it_cannot_unmix():
    model = renewal(0.5)
    data = panel(model, regions=20, members=2500)
    estimator = dc.ECCP(model, data, minimum=20)
    fit = estimator.fit()
    assert np.abs((fit.theta - THETA) / fit.std_errors).max() < 4
    assert np.abs(estimator.regression().dependent).max() < 10
    # with small cells nothing is left, which is better than log-odds of 23
    small = panel(model, regions=20, members=120)
    with pytest.raises((dc.DataError, dc.IdentificationError)):
        dc.ECCP(model, small, minimum=20).fit()


def test_buckets_do_not_deal_consecutive_ids_out_evenly():
    """Shares of a group that fills the first half of the ids vary over buckets as by chance."""
    for ids in (
        np.arange(6000),
        10 * np.arange(6000),
        np.array([f"m{i:05d}" for i in range(6000)]),
    ):
        frame = pd.DataFrame({"id": ids, "t": 0, "s": 0, "c": ["a", "b"] * 3000})
        data = dc.Panel(frame, member="id", time="t", choice="c", states=dc.StateSpace(s=[0]),
                        choices=["a", "b"])  # fmt: skip
        members = data.counts.members
        size = np.bincount(members.bucket, minlength=200)
        first = np.bincount(members.bucket[:3000], minlength=200)
        # a hypergeometric share: variance of first given size is about size / 4
        chance = ((first - size / 2) ** 2).sum() / (size / 4).sum()
        assert 0.7 < chance < 1.4, chance
        assert 0.6 < size.var() / size.mean() < 1.6


@pytest.mark.slow
def test_eccp_bootstrap_keeps_the_cells():
    model = renewal()
    data = panel(model, regions=30, members=150)
    for weights in ("precision", "none"):
        estimator = dc.ECCP(model, data, minimum=10, weights=weights)
        plain = estimator.fit()
        again = estimator.fit(cov_type="bootstrap", draws=120, seed=2)
        ratio = again.std_errors / plain.std_errors
        assert ratio.between(0.75, 1.3).all(), ratio
        double = estimator.again(data.counts.by_region().reweighted(np.full(30, 2.0)))
        assert len(double.regression().dependent) == len(estimator.regression().dependent)
        np.testing.assert_allclose(double.fit().theta, plain.theta, atol=1e-10)


def test_few_clusters_carry_no_errors_anywhere():
    model = renewal()
    data = panel(model, regions=2, members=400)
    with pytest.warns(dc.IdentificationWarning, match="cannot carry"):
        fit = dc.ECCP(model, data).fit()
    assert fit.std_errors.isna().all() and "cannot carry" in str(fit.summary())
    with pytest.warns(dc.IdentificationWarning, match="cannot carry"):
        mixture = dc.CCPEM(model, data, types=1).fit(cluster="region")
    assert mixture.std_errors.isna().all()
    with pytest.warns(dc.IdentificationWarning, match="cannot carry"):
        nfxp = dc.NFXP(model, data).fit(cluster="region")
    with pytest.raises(dc.IdentificationError, match="carry no variance"):
        nfxp.score_bootstrap(formula="wear = 0")


def test_a_singular_covariance_is_not_tested_with():
    fit = dc.NFXP(renewal(), panel(renewal(), regions=6)).fit(cluster="region")
    R = np.vstack([np.eye(3), [1.0, 1.0, 0.0]])
    with pytest.raises(dc.SpecificationError, match="repeat"):
        fit.wald_test(R)
    flat = fit.cov_matrix.copy()
    flat[:] = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    from dynchoice.inference.hypotheses import wald

    with pytest.raises(dc.IdentificationError, match="singular"):
        wald(fit.names, fit.theta, flat, np.eye(3))


def test_market_multipliers_leave_no_model_to_solve(tmp_path):
    model = renewal()
    data = panel(model)
    market = pd.DataFrame([(r, t, 1.0 + (r + t) % 3) for r in range(30) for t in range(6)],
                          columns=["region", "period", "w"])  # fmt: skip
    fit = dc.ECCP(model, data, market=market).fit()
    assert fit.market == ("w",) and np.isnan(fit.loglik)
    for use in (
        lambda: fit.ccp,
        lambda: dc.forecast(fit, start=data),
        lambda: dc.counterfactual(fit, dc.Scenario("same")),
        lambda: dc.simulate(fit, members=5),
        lambda: dc.causal_check(fit, data),
        lambda: dc.audit(fit, data),
    ):
        with pytest.raises(dc.SpecificationError, match="w by market variables"):
            use()
    assert dc.load(fit.save(tmp_path / "fit.npz")).market == ("w",)


def test_likelihood_tests_want_likelihood_fits():
    model = renewal()
    data = panel(model)
    small = model.with_parts(
        utility=dc.Utility.from_array(model.utility.x[:, :, :2], ["const", "wear"])
    )
    a, b = dc.ECCP(model, data).fit(), dc.ECCP(small, data).fit()
    with pytest.raises(dc.SpecificationError, match="maximum likelihood"):
        a.lr_test(b)
    with pytest.raises(dc.SpecificationError, match="maximum likelihood"):
        dc.score_test(b, model, data)
    fit = dc.NFXP(small, data).fit()
    with pytest.raises(dc.SpecificationError, match="not nested"):
        dc.score_test(fit, model.with_parts(beta=0.5), data)
    x = np.concatenate([model.utility.x[:, :, :2], model.utility.x[:, :, 1:2]], axis=2)
    twice = model.with_parts(utility=dc.Utility.from_array(x, ["const", "wear", "again"]))
    with pytest.raises(dc.IdentificationError, match="add nothing"):
        dc.score_test(fit, twice, data)


def test_gmm_influence_gives_the_gmm_covariance():
    model = renewal()
    data = panel(model)
    market = pd.DataFrame([(r, t, 1.0 + np.sin(7 * r + t), 1.0 + np.cos(5 * r * t))
                           for r in range(30) for t in range(6)],
                          columns=["region", "period", "w", "other"])  # fmt: skip
    market["w"] += 0.3 * market["other"]
    for method in ("2sls", "gmm"):
        fit = dc.ECCP(model, data, market=market, method=method,
                      instruments={"w": ["lag", "other"]}).fit()  # fmt: skip
        spread = np.sqrt(np.diag(fit.influence.T @ fit.influence))
        np.testing.assert_allclose(spread, fit.std_errors, rtol=0.02)


def test_a_one_step_estimate_far_from_the_maximum_is_said_to_be():
    spec = importlib.util.spec_from_file_location(
        "bench_models", HERE.parent / "validation" / "benchmarks" / "models.py"
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


def test_moments_of_a_type_grid_refuse_roll_outs():
    spec = importlib.util.spec_from_file_location(
        "causal_run3", HERE.parent / "validation" / "causal" / "run.py"
    )
    sys.path.insert(0, str(HERE.parent / "validation"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.model(False)
    frame = module.draw(3, False)
    data = dc.Panel(frame, member="member", time="t", choice="plan", region="region",
                    states=model.states, choices=module.PLANS)  # fmt: skip
    grid = [module.THETA, module.THETA + 0.5]
    with pytest.raises(dc.SpecificationError, match="method='likelihood'"):
        dc.TypeGrid(model, data, grid).fit()
    likelihood = dc.TypeGrid(model, data, grid, method="likelihood").fit()
    assert likelihood.converged and likelihood.weights[0] > 0.9
    # one region never treated and one common date: the jackknife has nothing to compare
    few = frame[frame["region"].isin([0, 6, 7])].assign(
        region=lambda d: d["member"] % 7,
        bundle=lambda d: np.where((d["member"] % 7 > 0) & (d["t"] >= 9), "new", "old"),
    )
    own = dc.Panel(few, member="member", time="t", choice="plan", region="region",
                   states=model.states, choices=module.PLANS)  # fmt: skip
    report = dc.causal_check(dc.NFXP(model, own).fit(), own)
    assert "no month has regions with and without it without region '0'" in str(report)
    for bad in ({"window": (0, 0)}, {"window": 5}, {"outcome": []}):
        with pytest.raises(dc.SpecificationError):
            dc.causal_check(dc.NFXP(model, data).fit(), data, **bad)


def test_finitely_dependent_mixtures_say_what_their_errors_are():
    model = builders.rust()
    spec = builders.as_spec(model, [0.3, 1.0])
    rows = builders.typed_rows(spec, [[0.3, 1.0], [0.3, 2.5]], [150, 150], 12, 3)
    counts = builders.typed_counts(model, rows)
    estimator = dc.CCPEM(model, counts, varying=["RC"], inner="CCP", valuation="finite-dependence")
    with pytest.warns(dc.IdentificationWarning, match="BHHH"):
        fit = estimator.fit(starts=2)
    assert fit.cov_type == "opg" and fit.influence is None
    assert "bootstrap" in str(fit.summary())
    assert oracles is not None
