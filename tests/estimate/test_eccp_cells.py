"""ECCP: which cells are used, what market variables rule out, errors of GMM."""

import numpy as np
import pandas as pd
import pytest
from renewals import THETA, panel, renewal

import dynchoice as dc


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
