"""Too few clusters, or a singular covariance, carry no test and no standard error."""

import numpy as np
import pytest
from plain_choices import CHOICES, panel_of, simple
from renewals import panel, renewal

import dynchoice as dc


def test_too_few_clusters_give_no_standard_errors():
    model = simple()
    frame, _ = panel_of(np.random.default_rng(0).choice(CHOICES, 80), model.states)
    one = frame.assign(id=0, t=np.arange(80))
    panel = dc.Panel(one, member="id", time="t", choice="choice", states=model.states,
                     choices=CHOICES)  # fmt: skip
    with pytest.warns(dc.IdentificationWarning, match=r"1 cluster\(s\) cannot carry"):
        fit = dc.NFXP(simple(), panel).fit()
    assert fit.std_errors.isna().all()
    assert dc.NFXP(simple(), panel).fit(cov_type="robust").std_errors.notna().all()


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
