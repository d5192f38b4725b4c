"""One list of promises that every estimator keeps."""

import builders
import numpy as np
import pytest

import dynchoice as dc

ESTIMATORS = [
    pytest.param(lambda m, p: dc.NFXP(m, p), id="NFXP"),
    pytest.param(lambda m, p: dc.NFXP(m, p, transitions="joint"), id="NFXP joint"),
    pytest.param(lambda m, p: dc.CCP(m, p), id="CCP"),
    pytest.param(lambda m, p: dc.CCP(m, p, first_stage="logit"), id="CCP, logit"),
    pytest.param(lambda m, p: dc.NPL(m, p), id="NPL"),
    pytest.param(lambda m, p: dc.NPL(m, p, steps=2), id="NPL, 2 steps"),
    pytest.param(lambda m, p: dc.DeepPQR(m, p), id="DeepPQR"),
    pytest.param(lambda m, p: dc.GenPQR(m, p, reference="uniform"), id="GenPQR"),
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
