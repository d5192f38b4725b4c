"""One list of promises that every estimator keeps."""

import builders
import numpy as np
import pytest
from estimate.test_pqr_rows import THETA, line, loaded, members_on, spec

import dynchoice as dc

__all__ = ["line"]

ESTIMATORS = [
    pytest.param(lambda m, p: dc.NFXP(m, p), id="NFXP"),
    pytest.param(lambda m, p: dc.NFXP(m, p, transitions="joint"), id="NFXP joint"),
    pytest.param(lambda m, p: dc.CCP(m, p), id="CCP"),
    pytest.param(lambda m, p: dc.CCP(m, p, first_stage="logit"), id="CCP, logit"),
    pytest.param(lambda m, p: dc.NPL(m, p), id="NPL"),
    pytest.param(lambda m, p: dc.NPL(m, p, steps=2), id="NPL, 2 steps"),
    pytest.param(lambda m, p: dc.DeepPQR(m, p), id="DeepPQR"),
    pytest.param(lambda m, p: dc.GenPQR(m, p, reference="uniform"), id="GenPQR"),
    pytest.param(lambda m, p: dc.MCEIRL(m, p), id="MCEIRL"),
]


@pytest.fixture(scope="module")
def small():
    membership = builders.small_membership(members=600, periods=8, seed=3)
    return membership, builders.membership_panel(membership, membership.frame)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_promises(small, estimator, tmp_path):
    membership, panel = small
    fit = estimator(membership.unknown, panel).fit(seed=4)
    assert isinstance(fit, dc.Results) and fit.converged
    K = len(membership.theta)
    assert fit.params.shape == fit.std_errors.shape == (K,) and fit.cov.shape == (K, K)
    assert fit.cov_type == "clustered" and fit.seed == 4
    assert np.isfinite(fit.cov.to_numpy()).all()
    assert (np.linalg.eigvalsh(fit.cov) > 0).all()
    assert fit.nobs == len(membership.frame) and fit.nmembers == 600
    assert fit.data_digest == panel.counts.digest
    # no state between fits, and Counts serve as well as the Panel
    again = estimator(membership.unknown, panel.counts).fit()
    assert (again.params == fit.params).all() and (again.cov == fit.cov).all(axis=None)
    assert membership.unknown.transitions.estimated and not membership.unknown.transitions.known
    assert fit.transitions.known
    back = dc.load(fit.save(tmp_path / "fit.npz"))
    assert (back.params == fit.params).all()
    assert np.abs((fit.params - membership.theta) / fit.std_errors).max() < 4
    for cov_type in ("unadjusted", "opg", "robust"):
        other = estimator(membership.unknown, panel).fit(cov_type=cov_type)
        assert (other.params == fit.params).all() and other.cov_type == cov_type
        assert (other.std_errors / fit.std_errors).between(0.7, 1.4).all()


ON_ROWS = [
    pytest.param(lambda m, r: dc.DeepPQR(m, r, degree=2), id="DeepPQR"),
    pytest.param(lambda m, r: dc.GenPQR(m, r, degree=2), id="GenPQR"),
    pytest.param(lambda m, r: dc.TDCCP(m, r, degree=2), id="TDCCP"),
    pytest.param(lambda m, r: dc.GLADIUS(m, r, degree=2), id="GLADIUS"),
]


@pytest.mark.parametrize("estimator", ON_ROWS)
def test_promises_on_rows(line, estimator, tmp_path):
    rows, model = loaded(members_on(line, 1500, 8, 7), ["hours"]), spec()
    fit = estimator(model, rows).fit(seed=4)
    assert isinstance(fit, dc.RewardResults) and fit.converged
    assert fit.params.shape == fit.std_errors.shape == (3,) and fit.cov.shape == (3, 3)
    assert fit.cov_type == "clustered" and fit.seed == 4 and fit.nmembers == 1500
    assert (np.linalg.eigvalsh(fit.cov) > 0).all() and fit.nobs == 12_000
    again = estimator(model, rows).fit()
    assert (again.params == fit.params).all() and (again.cov == fit.cov).all(axis=None)
    back = dc.load(fit.save(tmp_path / "fit.npz"))
    assert (back.params == fit.params).all() and str(back.summary) == str(fit.summary)
    assert np.abs((fit.params - THETA) / fit.std_errors).max() < 4
    assert fit.conf_int().shape == (3, 2) and (fit.bse == fit.std_errors).all()
    table = rows.frame().head(50)
    assert np.allclose(fit.predict(table).sum(axis=1), 1) and (fit.reward(table)["out"] == 0).all()
    assert fit.wald_test(formula="member = 0").pval < 0.05
    changed = dc.reward_counterfactual(fit, rows, reward="0 + I(0.2 * member)")
    assert changed.identified and changed.shares.loc["out", "change"] < 0
