"""Tests that compare likelihoods take likelihood fits only."""

import numpy as np
import pytest
from renewals import panel, renewal

import dynchoice as dc


def test_likelihood_ratios_are_of_likelihoods(fitted, membership):
    fit, panel = fitted
    with pytest.raises(dc.SpecificationError, match="not CCP"):
        fit.lr_test(dc.CCP(membership.unknown, panel).fit())


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
