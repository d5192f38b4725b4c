import builders
import numpy as np
import oracles
import pandas as pd
import pytest
from scipy.stats import norm

import dynchoice as dc


def test_numbers_hang_together(fitted):
    fit, _ = fitted
    assert list(fit.params.index) == list(fit.model.names)
    np.testing.assert_allclose(fit.std_errors**2, np.diag(fit.cov))
    np.testing.assert_allclose(fit.tstats, fit.params / fit.std_errors)
    np.testing.assert_allclose(fit.pvalues, 2 * norm.cdf(-fit.tstats.abs()))
    interval = fit.conf_int(0.9)
    np.testing.assert_allclose(interval["upper"] - fit.params, norm.ppf(0.95) * fit.std_errors)
    assert fit.aic == pytest.approx(2 * 5 - 2 * fit.loglik)
    assert fit.bic == pytest.approx(5 * np.log(fit.nobs) - 2 * fit.loglik)
    assert 0 < fit.rsquared_mcfadden < 1
    assert fit.bse is fit.std_errors and fit.tvalues is fit.tstats and fit.llf == fit.loglik
    assert fit.cov_params() is fit.cov
    with pytest.raises(dc.SpecificationError, match="between 0 and 1"):
        fit.conf_int(95)


def test_wald_test_by_restriction_and_formula(fitted):
    fit, _ = fitted
    R = np.eye(5)[[1, 2]]
    by_matrix = fit.wald_test(R)
    by_formula = fit.wald_test(formula="member:ship = 0, member:video = 0")
    b, V = fit.params.to_numpy()[[1, 2]], fit.cov.to_numpy()[np.ix_([1, 2], [1, 2])]
    assert by_matrix.stat == pytest.approx(b @ np.linalg.solve(V, b))
    assert by_formula.stat == pytest.approx(by_matrix.stat)
    assert by_formula.df == 2 and 0 <= by_formula.pval <= 1
    for form in ("pay = -2, join = 1", {"pay": -2, "join": 1.0}):
        exact = fit.wald_test(np.eye(5)[[3, 4]], [-2.0, 1.0])
        assert fit.wald_test(formula=form).stat == pytest.approx(exact.stat)
    labelled = pd.DataFrame([[1.0, -1.0]], columns=["member:video", "member:ship"])
    twin = fit.wald_test(formula="member:video - member:ship = 0")
    assert fit.wald_test(labelled).stat == pytest.approx(twin.stat)
    with pytest.raises(dc.SpecificationError, match=r"'pya' is unknown\. Did you mean 'pay'"):
        fit.wald_test(formula="pya = 0")
    single = fit.wald_test(np.eye(5)[0], [0.0])
    assert single.stat == pytest.approx(fit.tstats.iloc[0] ** 2)
    for bad, message in [
        ({}, "either restriction"),
        ({"formula": "member:shop = 0"}, "parameter 'member:shop' is unknown"),
        ({"restriction": np.ones((1, 2))}, "5 parameters need"),
        ({"restriction": np.ones((2, 5))}, "repeat each other"),
    ]:
        with pytest.raises(dc.SpecificationError, match=message):
            fit.wald_test(**bad)


def test_likelihood_ratio_of_nested_fits():
    spec = oracles.random_model(12, 30, 3, 3, 0.9)
    spec["params"][2] = 0.0
    model, counts, _ = builders.simulated_counts(spec, 1500, 5, 8)
    small_model = model.with_parts(
        utility=dc.Utility.from_array(spec["x"][:, :, :2], ["k0", "k1"], offset=spec["offset"])
    )
    large, small = dc.NFXP(model, counts).fit(), dc.NFXP(small_model, counts).fit()
    test = large.lr_test(small)
    assert test.stat == pytest.approx(2 * (large.loglik - small.loglik)) and test.df == 1
    assert test.pval > 1e-4 and small.lr_test(large).stat == test.stat
    assert test.stat == pytest.approx((large.params["k2"] / large.std_errors["k2"]) ** 2, rel=0.3)
    with pytest.raises(dc.SpecificationError, match="same number of parameters"):
        large.lr_test(large)
    other = dc.NFXP(small_model, builders.simulated_counts(spec, 100, 5, 9)[1]).fit()
    with pytest.raises(dc.SpecificationError, match="same data"):
        large.lr_test(other)


def test_delta_method(fitted):
    fit, _ = fitted
    ratio = fit.delta_method(lambda p: p["member:ship"] / p["pay"], names=["ship in USD"])
    a, b = fit.params["member:ship"], fit.params["pay"]
    g = np.array([0, 1 / b, 0, -a / b**2, 0])
    assert ratio.loc["ship in USD", "estimate"] == pytest.approx(a / b)
    assert ratio["std_error"].iloc[0] == pytest.approx(np.sqrt(g @ fit.cov @ g), rel=1e-6)
    identity = fit.delta_method(lambda p: p)
    np.testing.assert_allclose(identity["std_error"], fit.std_errors, rtol=1e-9)


def test_predict(fitted):
    fit, _ = fitted
    everywhere = fit.predict()
    np.testing.assert_allclose(everywhere, fit.ccp)
    some = pd.DataFrame(
        {"contract": ["none", "annual_2"], "offer": "old", "ship": 1, "video": [0, 1]}, index=[7, 9]
    )
    predicted = fit.predict(some)
    assert list(predicted.index) == [7, 9] and list(predicted.columns) == builders.CHOICES
    np.testing.assert_allclose(predicted.sum(axis=1), 1)
    assert predicted.loc[9, "annual"] == 1.0
    with pytest.raises(dc.ColumnError, match="'video'"):
        fit.predict(some.drop(columns="video"))
    with pytest.raises(dc.DataError, match="column 'ship'"):
        fit.predict(some.assign(ship=2))


def test_summary_in_every_form(fitted):
    fit, _ = fitted
    summary = fit.summary
    assert str(fit.summary()) == str(summary)
    for text in (str(summary), summary.as_html(), summary.as_latex(), summary.as_csv()):
        assert "member:ship" in text.replace(r"\_", "_")
        assert f"{fit.params['member:ship']:.4f}" in text
    assert "clustered (3,000 by member)" in str(summary)
    assert "included" in str(summary)
    assert r"\begin{tabular}" in summary.as_latex() and r"\_" not in summary.as_csv()
    assert summary.as_csv().splitlines()[0].startswith("Parameter,Estimate")
    assert fit._repr_html_() == summary.as_html()
    assert "3,000" in repr(fit) or "converged" in repr(fit)


def test_compare(fitted, membership):
    fit, panel = fitted
    ccp = dc.CCP(membership.unknown, panel).fit()
    table = dc.compare({"NFXP": fit, "CCP": ccp})
    assert list(table.params.columns) == ["NFXP", "CCP"]
    np.testing.assert_allclose(table.std_errors["CCP"], ccp.std_errors)
    text = str(table)
    assert "Log-likelihood" in text and f"({fit.std_errors.iloc[0]:.4f})" in text
    assert "(1)" in str(dc.compare([fit, ccp], precision="tstats"))
    assert "tabular" in table.summary().as_latex()
    with pytest.raises(dc.SpecificationError, match="is a str, not Results"):
        dc.compare({"a": "b"})
    with pytest.raises(dc.SpecificationError, match="at least"):
        dc.compare({})
    with pytest.raises(dc.SpecificationError, match="precision='se'"):
        dc.compare([fit], precision="se")


@pytest.mark.parametrize("kind", ["membership", "dense", "sparse", "finite", "inattentive"])
def test_save_and_load(fitted, tmp_path, kind):
    if kind == "membership":
        fit = fitted[0]
    else:
        spec = oracles.random_model(4, 20, 3, 2, 0.9, attention=kind == "inattentive")
        model, counts, _ = builders.simulated_counts(spec, 500, 4, 1)
        if kind == "sparse":
            from scipy.sparse import csr_array

            parts = [csr_array(spec["F"][:, j]) for j in range(3)]
            model = model.with_transitions(dc.Transitions.sparse(parts))
        if kind == "finite":
            model = model.with_parts(horizon=4)
        fit = dc.NFXP(model, counts).fit(cov_type="opg")
    path = fit.save(tmp_path / "deep" / "fit.npz")
    back = dc.load(path)
    assert (back.params == fit.params).all() and (back.cov == fit.cov).all(axis=None)
    assert str(back.summary()) == str(fit.summary())
    assert (back.ccp == fit.ccp).all()
    assert back.optimization["iterations"] == fit.optimization["iterations"]
    assert back.data_digest == fit.data_digest and back.package_version == dc.__version__
    if kind == "membership":
        cf = dc.counterfactual(back, dc.Scenario("x", params={"pay": 1.2}))
        assert cf.welfare == dc.counterfactual(fit, dc.Scenario("x", params={"pay": 1.2})).welfare
        assert not back.transitions.estimated or back.transitions.known


def test_bad_files(tmp_path, fitted):
    with pytest.raises(dc.StorageError, match="no such file"):
        dc.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(dc.StorageError, match="no saved dynchoice object"):
        dc.load(tmp_path / "text.npz")
    whole = fitted[0].save(tmp_path / "fit.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(dc.StorageError, match="damaged"):
        dc.load(tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(dc.StorageError, match="no saved dynchoice object"):
        dc.load(tmp_path / "other.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(dc.StorageError, match="cannot write"):
        fitted[0].save(tmp_path / "file" / "fit.npz")


def test_identification_names_weak_directions():
    from dynchoice.inference.covariance import inverse
    from dynchoice.inference.diagnostics import Identification

    information = np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    found = Identification.of(["a", "b", "c"], information)
    assert len(found.flat) == 1 and "a" in found.flat[0] and "b" in found.flat[0]
    assert "c" not in found.flat[0]
    assert next(iter(found.frame()["verdict"])) == "flat"
    V, flat = inverse(information)
    assert flat.shape == (3, 1)
    assert np.isnan(V[:2]).all() and V[2, 2] == pytest.approx(1 / 9)


def test_draws_have_the_covariance(fitted):
    fit, _ = fitted
    draws = fit.draws(20_000, seed=1)
    np.testing.assert_allclose(np.cov(draws.T), fit.cov, rtol=0.1, atol=3e-5)
    assert (fit.draws(3, seed=1) == fit.draws(3, seed=1)).all()


@pytest.mark.parametrize("cov_type", ["unadjusted", "opg", "robust", "clustered"])
def test_intervals_cover_the_truth_at_the_nominal_rate(cov_type):
    spec = oracles.random_model(3, 12, 3, 2, 0.9, attention=False)
    hits, runs = 0, 60
    for seed in range(runs):
        model, counts, _ = builders.simulated_counts(spec, 150, 4, 1000 + seed)
        interval = dc.NFXP(model, counts).fit(cov_type=cov_type).conf_int(0.95)
        hits += int(
            ((interval["lower"] < spec["params"]) & (spec["params"] < interval["upper"])).sum()
        )
    rate = hits / (2 * runs)
    # two correlated parameters a sample: three standard errors of a rate over so many samples
    assert abs(rate - 0.95) < 3 * np.sqrt(0.95 * 0.05 / runs)
