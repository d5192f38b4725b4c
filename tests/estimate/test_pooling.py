"""Partial pooling across segments: closed forms, brute force, simulated truth, fitted models."""

from dataclasses import replace

import builders
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

import dynchoice as dc
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.pooling import move_with_pooled, pool
from dynchoice.estimate.shrinkage import (
    Evidence,
    half_width,
    maximise_reml,
    moments,
    posterior,
    restricted,
    shrink,
    slope,
)


def simulated(M, P, tau, seed, rho=0.0, spread=0.5, noise=1.0):
    """True parameters (M, P) of segments, and evidence with unequal, correlated errors.

    ``tau`` is a standard deviation between segments, or their covariance (P, P).
    """
    rng = np.random.default_rng(seed)
    T = np.asarray(tau) if np.ndim(tau) == 2 else np.eye(P) * tau**2
    truth = 1.0 + rng.multivariate_normal(np.zeros(P), T, size=M)
    sd = noise * np.exp(spread * rng.standard_normal((M, P)))
    S = (rho + (1 - rho) * np.eye(P)) * sd[:, :, None] * sd[:, None, :]
    error = (np.linalg.cholesky(S) @ rng.standard_normal((M, P, 1)))[..., 0]
    return truth, Evidence.of(truth + error, S)


# arrays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reml", "moments"])
def test_closed_form_with_equal_variances(method):
    y = np.array([0.3, -1.2, 2.4, 0.9, 3.1, -0.5, 1.7, 0.2, -2.2])
    M, s2 = len(y), 0.7
    e = Evidence.of(y[:, None], np.full((M, 1, 1), s2))
    found = shrink(e, method, False, 0.95)
    total = y.var(ddof=1)  # Morris (1983): the estimate of tau^2 + s^2
    weight = 1 - s2 / total
    assert found.T[0, 0] == pytest.approx(total - s2, rel=1e-6)
    assert found.share[:-1] == pytest.approx(weight, rel=1e-6) and found.share[-1] == 0
    assert found.mean[:-1, 0] == pytest.approx(y.mean() + weight * (y - y.mean()), rel=1e-6)
    assert found.mean[-1, 0] == pytest.approx(y.mean())
    # more than with T known, which is weight * s2 + (1 - weight) s2 / M
    known = weight * s2 + (1 - weight) * s2 / M
    assert (found.cov[:-1, 0, 0] > known).all() and (found.cov[:-1, 0, 0] < 1.5 * s2).all()
    # Morris's term for what is unknown of T grows with the distance from the mean
    far = np.abs(y - y.mean())
    assert found.cov[far.argmax(), 0, 0] > found.cov[far.argmin(), 0, 0]


@pytest.mark.parametrize(("M", "seed"), [(4, 1), (8, 2), (20, 3)])
def test_standard_errors_by_numerical_integration_over_the_spread(M, seed):
    _, e = simulated(M, 1, 0.7, seed)
    found = shrink(e, "reml", False, 0.95)
    y, s2 = e.y[:, 0], e.S[:, 0, 0]
    taus = np.tan(np.linspace(0, np.pi / 2, 6_001)[:-1])  # to infinity, with density 1 + tau^2
    w = 1 / (taus[:, None] ** 2 + s2)
    A = w.sum(axis=1)
    mu = (w @ y) / A
    log = 0.5 * np.log(w).sum(axis=1) - 0.5 * np.log(A) - 0.5 * (w * (y - mu[:, None]) ** 2).sum(1)
    weight = np.exp(log - log.max()) * (1 + taus**2)
    weight /= weight.sum()
    own = np.column_stack([taus[:, None] ** 2 * w, 0 * taus])
    means = mu[:, None] + own * (np.r_[y, 0.0] - mu[:, None])
    tau2 = (taus**2)[:, None]
    variances = tau2 - own * tau2 + (1 - own) ** 2 / A[:, None]
    for row in range(M + 1):
        gap, sd = means[:, row] - found.mean[row, 0], np.sqrt(variances[:, row])

        def excess(h, gap=gap, sd=sd):
            return weight @ (norm.cdf((h - gap) / sd) - norm.cdf((-h - gap) / sd)) - 0.95

        exact = brentq(excess, 1e-3, 1e3) / norm.ppf(0.975)
        assert np.sqrt(found.cov[row, 0, 0]) == pytest.approx(exact, rel=0.03)


def test_correlations_by_a_grid_over_the_spread_of_a_full_prior():
    T = np.array([[1.0, 0.8], [0.8, 1.0]])
    _, e = simulated(14, 2, T, 10, rho=-0.5)
    found = shrink(e, "reml", True, 0.95)
    size = np.sqrt(np.diag(found.T))
    R = found.T / np.outer(size, size)
    s, c = (np.arange(30) + 0.5) * 4 / 30, (np.arange(10) + 0.5) / 10
    a, b, k = (g.reshape(-1) for g in np.meshgrid(s, s, c))
    cross = k * a * b * R[0, 1]
    grid = np.stack([np.stack([a**2, cross], 1), np.stack([cross, b**2], 1)], 1)
    at = restricted(grid, e)
    weight = np.exp(at.loglik - at.loglik.max())
    means, V = posterior(at, grid)
    gap = means - found.mean[:-1]
    weight /= weight.sum()
    wide = half_width(gap, np.sqrt(np.diagonal(V, axis1=2, axis2=3)), weight, 0.95)
    ours = np.sqrt(np.diagonal(found.cov[:-1], axis1=1, axis2=2)) * norm.ppf(0.975)
    assert ours == pytest.approx(wide, rel=0.03)
    exact = np.tensordot(weight, V + gap[..., None] * gap[..., None, :], 1)
    sd = np.sqrt(np.diagonal(exact, axis1=1, axis2=2))
    ours = found.cov[:-1, 0, 1] / np.sqrt(found.cov[:-1, 0, 0] * found.cov[:-1, 1, 1])
    assert ours == pytest.approx(exact[:, 0, 1] / sd.prod(axis=1), abs=0.02)


def test_reml_is_the_maximum_of_a_brute_force_grid():
    _, e = simulated(7, 2, 0.8, 5, rho=0.6)
    M, X = 7, np.tile(np.eye(2), (7, 1))

    def brute(a, b):
        V = np.zeros((2 * M, 2 * M))
        for m in range(M):
            V[2 * m : 2 * m + 2, 2 * m : 2 * m + 2] = e.S[m] + np.diag([a, b])
        Vi = np.linalg.inv(V)
        A = X.T @ Vi @ X
        proj = Vi - Vi @ X @ np.linalg.inv(A) @ X.T @ Vi
        y = e.y.reshape(-1)
        return -0.5 * (np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1] + y @ proj @ y)

    grid = np.linspace(0, 3, 61)
    values = np.array([[brute(a, b) for b in grid] for a in grid])
    T = maximise_reml(e, False)
    i, j = np.unravel_index(values.argmax(), values.shape)
    assert np.abs(np.diag(T) - grid[[i, j]]).max() < 0.05 and T[0, 1] == 0
    assert restricted(T, e).loglik >= values.max() - 1e-9
    at = (grid[i], grid[j])
    assert restricted(np.diag(at), e).loglik == pytest.approx(values.max(), abs=1e-9)
    free = maximise_reml(e, True)
    assert restricted(free, e).loglik >= restricted(T, e).loglik
    gradient = slope(free, e)[1]
    assert np.abs(gradient @ free).max() < 1e-5
    step = np.array([[0.0, 1e-5], [1e-5, 0.0]])
    up, down = (restricted(np.eye(2) + s, e).loglik for s in (step, -step))
    assert 2 * slope(np.eye(2), e)[1][0, 1] == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_moments_are_unbiased_with_and_without_missing_entries():
    T = np.array([[0.3, 0.2], [0.2, 0.6]])
    found = []
    rng = np.random.default_rng(0)
    for seed in range(2500):
        _, e = simulated(8, 2, T, seed, rho=0.4)
        seen = np.ones((8, 2), dtype=bool)
        seen[0, 0] = seen[rng.integers(1, 8), 1] = False
        found.append(np.stack([moments(e), moments(Evidence.of(e.y, e.S, seen))]))
    found = np.array(found)
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - T) < 3.5 * error).all()
    assert (error < 0.03).all() and (found[:, 0, 0, 0] < 0).mean() > 0.1


def test_coverage_and_mean_squared_error():
    inside, new, errors = [], [], []
    rng = np.random.default_rng(1)
    for seed in range(40):
        truth, e = simulated(10, 2, 1.0, seed, rho=0.3)
        s = shrink(e, "reml", False, 0.95)
        sd = np.sqrt(np.diagonal(s.cov, axis1=1, axis2=2))
        inside.append(np.abs(truth - s.mean[:-1]) < 1.96 * sd[:-1])
        new.append(np.abs(rng.normal(1.0, 1.0, 2) - s.mean[-1]) < 1.96 * sd[-1])
        complete = restricted(np.zeros((2, 2)), e).mu
        errors.append([((x - truth) ** 2).mean() for x in (s.mean[:-1], e.y, complete)])
    assert 0.93 < np.mean(inside) < 0.97
    assert 0.92 < np.mean(new) < 0.99
    pooled, own, complete = np.mean(errors, axis=0)
    assert pooled < 0.6 * own and pooled < 0.8 * complete


@pytest.mark.parametrize("full", [False, True])
def test_units_do_not_matter(full):
    _, e = simulated(9, 3, 0.8, 4, rho=0.3)
    unit = np.array([1e-3, 1.0, 250.0])
    one, other = shrink(e, "reml", full, 0.9), shrink(e.scaled(unit), "reml", full, 0.9)
    assert other.mean == pytest.approx(one.mean * unit, rel=1e-4, abs=1e-7)
    assert other.cov == pytest.approx(one.cov * np.outer(unit, unit), rel=1e-3, abs=1e-9)
    assert other.share == pytest.approx(one.share, abs=1e-4)


def test_no_spread_pools_completely_and_a_large_one_not_at_all():
    y = 2.0 + 0.1 * np.arange(6.0)  # closer together than their errors allow
    s2 = np.array([1.0, 2.0, 1.5, 0.5, 1.0, 3.0])
    near = shrink(Evidence.of(y[:, None], s2[:, None, None]), "reml", False, 0.95)
    common = (y / s2).sum() / (1 / s2).sum()
    assert near.T[0, 0] == 0 and (near.share == 0).all()
    assert near.mean == pytest.approx(common, abs=1e-9)
    assert (near.cov > 1 / (1 / s2).sum()).all()  # T = 0 is an estimate, not known
    assert (near.cov[:-1, 0, 0] < s2).all()
    y = 1000.0 * np.array([1.0, -3.0, 2.0, 0.0, 5.0, -1.0])
    far = shrink(Evidence.of(y[:, None], s2[:, None, None]), "reml", False, 0.95)
    assert far.mean[:-1, 0] == pytest.approx(y, abs=0.01)
    assert far.cov[:-1, 0, 0] == pytest.approx(s2, rel=1e-3)
    assert far.share[:-1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["reml", "moments"])
def test_a_full_prior_finds_correlations(method):
    T = np.array([[1.0, -0.7, 0.0], [-0.7, 1.0, 0.2], [0.0, 0.2, 0.5]])
    truth, e = simulated(200, 3, T, 8, rho=0.5, noise=0.7)
    s = shrink(e, method, True, 0.95)
    assert np.abs(s.T - T).max() < 0.25
    sd = np.sqrt(np.diag(s.T))
    assert (s.T / np.outer(sd, sd))[0, 1] == pytest.approx(-0.7, abs=0.12)
    coverage = (
        np.abs(truth - s.mean[:-1]) < 1.96 * np.sqrt(s.cov[:-1, [0, 1, 2], [0, 1, 2]])
    ).mean()
    assert 0.92 < coverage < 0.98
    if method == "moments":
        return
    # a parameter that a segment does not have follows those that it has
    hidden = e.seen.copy()
    hidden[:100, 0] = False
    part = shrink(Evidence.of(e.y, e.S, hidden), method, True, 0.95)
    plain = shrink(Evidence.of(e.y, e.S, hidden), method, False, 0.95)
    gap = [((s.mean[:100, 0] - truth[:100, 0]) ** 2).mean() for s in (part, plain)]
    assert gap[0] < 0.85 * gap[1] and (plain.share[:100, 0] == 0).all()
    assert plain.mean[:100, 0] == pytest.approx(plain.mean[-1, 0])


# results -----------------------------------------------------------------------------------------

MEMBERS = {"US": 400, "UK": 300, "JP": 300, "DE": 250, "BR": 25}


@pytest.fixture(scope="module")
def markets():
    """Fits of five marketplaces with the same truth, one of them with few members."""
    fits, first = {}, None
    for seed, (label, members) in enumerate(MEMBERS.items()):
        first = builders.small_membership(members, 10, 20 + seed)
        panel = builders.membership_panel(first, first.frame)
        fits[label] = dc.NFXP(first.known, panel).fit()
    return fits, first.theta, first.known


@pytest.fixture(scope="module")
def pooled(markets):
    return pool(markets[0])


def test_a_small_segment_borrows_strength(markets, pooled):
    fits, theta, _ = markets
    own, new = fits["BR"], pooled.fits["BR"]
    size = np.sqrt(np.diag(own.cov_matrix))
    before, after = (np.linalg.norm((f.theta - theta) / size) for f in (own, new))
    assert after < 0.5 * before
    assert (new.std_errors < 0.8 * own.std_errors).all()
    assert (np.abs(new.theta - theta) < 3 * new.std_errors).all()
    moved = np.abs(pooled.fits["US"].theta - fits["US"].theta) / fits["US"].std_errors
    assert (pooled.shrinkage.loc["US"] >= pooled.shrinkage.loc["BR"]).all() and moved.max() < 2


def test_pooled_fits_are_honest_results(markets, pooled, tmp_path):
    fits, _, _ = markets
    for label, f in pooled.fits.items():
        own = fits[label]
        assert f.estimator == "NFXP (pooled)" and f.converged and f.cov_type == "pooled"
        at = Likelihood(own.model, own.counts).evaluate(f.theta)
        assert f.loglik == pytest.approx(at.loglik, abs=1e-6) and f.loglik < own.loglik
        assert "Pooled over 5 segments" in f.notes[-1] and "diagonal prior" in f.notes[-1]
        assert f.solution.converged and np.isnan(f.bic) and not f.maximum_likelihood
        assert str(own.nmembers) in str(f.summary)
    with pytest.raises(dc.SpecificationError, match="maximum likelihood"):
        pooled.fits["US"].lr_test(pooled.fits["US"])
    pooled.fits["BR"].save(tmp_path / "br.npz")
    again = dc.load(tmp_path / "br.npz")
    assert (again.theta == pooled.fits["BR"].theta).all() and not again.maximum_likelihood
    text = str(pooled)
    assert "Partial pooling" in text and "member:video" in text and "Segments:" in text
    assert list(pooled.prior.columns) == ["mean", "std_error", "sd", "lower", "upper"]
    assert list(dc.compare(pooled.fits).params.columns) == list(MEMBERS)


def test_a_marketplace_without_data(markets, pooled):
    _, theta, model = markets
    new = pooled.new(model, "FR")
    prior = pooled.prior
    assert new.theta == pytest.approx(prior["mean"].to_numpy())
    half = norm.ppf(0.975) * new.std_errors
    assert (new.theta + half).to_numpy() == pytest.approx(prior["upper"].to_numpy())
    T, C = pooled.estimate.T, restricted(pooled.estimate.T, pooled.evidence).C
    assert (np.diag(new.cov_matrix) > np.diag(T + C)).all()  # T is not known
    assert new.nobs == 0 and new.loglik == 0 and new.nmembers == 0 and new.counts.sum() == 0
    assert "no data" in str(new.summary) and "NaN" not in str(new.summary)
    assert (np.abs(new.theta - theta) < 3 * new.std_errors).all()
    start = np.zeros(model.states.size)
    start[0] = 1000.0
    fits = {**pooled.fits, "FR": new}
    path = dc.forecast(fits, start=dict.fromkeys(fits, start), periods=3, draws=20)
    assert path.converged
    bands = path.take_up.query("segment in ['US', 'FR'] and choice == 'monthly' and period == 1")
    width = (bands.set_index("segment").upper - bands.set_index("segment").lower).to_dict()
    assert width["FR"] > width["US"] > 0
    less = model.with_parts(utility=dc.Utility.from_array(model.utility.x[:, :, :1], ["cold"]))
    with pytest.raises(
        dc.SpecificationError, match="1 parameter\\(s\\) of 'FR' have no prior: cold"
    ):
        pooled.new(less, "FR")


def test_many_segments_give_the_new_one_the_prior():
    truth, e = simulated(400, 1, 1.0, 3)
    s = shrink(e, "reml", False, 0.95)
    C = restricted(s.T, e).C
    assert s.cov[-1] == pytest.approx(s.T + C, rel=0.03)


def test_leave_one_out_shows_what_the_others_say(markets, pooled):
    table = pooled.leave_one_out()
    assert len(table) == 25 and set(table.segment) == set(MEMBERS)
    br = table[table.segment == "BR"].set_index("parameter")
    own = markets[0]["BR"]
    assert br.estimate.to_numpy() == pytest.approx(own.theta)
    rest = restricted(np.zeros((5, 5)), pooled.evidence.without(4))
    sd = np.sqrt(np.diag(rest.C) + np.diag(own.cov_matrix))
    assert br.log_complete.to_numpy() == pytest.approx(norm.logpdf(own.theta, rest.mu, sd))
    others = [markets[0][m] for m in ("US", "UK", "JP", "DE")]
    each = [
        norm.pdf(own.theta[3], f.theta[3], np.hypot(f.std_errors["pay"], own.std_errors["pay"]))
        for f in others
    ]
    assert br.log_none["pay"] == pytest.approx(np.log(np.mean(each)))
    assert (br.predicted_sd > pooled.fits["BR"].std_errors).all()
    assert (table.z.abs() < 4).all() and (table.z.abs() < 1.96).mean() > 0.8
    one = pool({m: f for m, f in markets[0].items() if m != "BR"})
    assert br.predicted.to_numpy() == pytest.approx(one.estimate.mean[-1], abs=1e-5)


def test_leave_one_out_prefers_the_prior_that_is_right():
    gaps = []
    for tau in (0.0, 1.5):
        fits = made(simulated(14, 2, tau, 3)[1])
        table = pool(fits).leave_one_out()
        gaps.append(table[["log_pooled", "log_complete", "log_none"]].sum())
        assert table.z.std() == pytest.approx(1, abs=0.35)
    assert abs(gaps[0].log_complete - gaps[0].log_pooled) < 2  # T = 0 is found
    assert gaps[0].log_pooled > gaps[0].log_none + 1
    assert gaps[1].log_pooled > gaps[1].log_complete + 5
    both = gaps[0] + gaps[1]  # not knowing which world it is
    assert both.log_pooled > max(both.log_complete, both.log_none) + 2


TEMPLATE = []


def made(e, names=None):
    """Results with the estimates of an evidence, on a small model of as many parameters."""
    K = e.y.shape[1]
    names = [f"k{k}" for k in range(K)] if names is None else names
    states = dc.StateSpace(s=range(2))
    x = np.random.default_rng(0).standard_normal((2, 2, K))
    x[:, 0] = 0
    model = dc.DDC(
        states=states,
        choices=["out", "in"],
        utility=dc.Utility.from_array(x, names),
        transitions=dc.Transitions.dense(np.full((2, 2, 2), 0.5)),
        beta=0.0,
    )
    n = np.array([[30.0, 70.0], [60.0, 40.0]])
    if not TEMPLATE:
        small = dc.DDC(
            states=states,
            choices=["out", "in"],
            utility=dc.Utility.from_array(x[:, :, :1], ["k0"]),
            transitions=model.transitions,
            beta=0.0,
        )
        TEMPLATE.append(dc.NFXP(small, builders.choice_counts(small, n)).fit(cov_type="unadjusted"))
    base = replace(TEMPLATE[0], model=model, hessian=-np.eye(K), influence=None)
    return {
        f"m{m}": replace(base, theta=e.y[m].copy(), cov_matrix=e.S[m].copy())
        for m in range(len(e.y))
    }


def test_prices_on_other_scales_are_pooled_in_common_units():
    _, e = simulated(6, 2, 0.5, 9, rho=0.3)
    fits = made(e, ["taste", "pay"])
    rates = dict(zip([*fits, "new"], [1.0, 150.0, 0.8, 5.0, 20.0, 1.0, 7.0], strict=True))
    local = {
        m: replace(
            f,
            theta=f.theta / [1, rates[m]],
            cov_matrix=f.cov_matrix / np.outer([1, rates[m]], [1, rates[m]]),
        )
        for m, f in fits.items()
    }
    one, other = pool(fits), pool(local, scale={"pay": rates})
    assert other.prior.to_numpy() == pytest.approx(one.prior.to_numpy(), rel=1e-6)
    assert other.shrinkage.to_numpy() == pytest.approx(one.shrinkage.to_numpy(), abs=1e-6)
    for m, f in one.fits.items():
        assert other.fits[m].theta == pytest.approx(f.theta / [1, rates[m]], rel=1e-6)
    model = fits["m0"].model
    new = other.new(model, "new")
    assert new.theta == pytest.approx(one.new(model, "new").theta / [1, 7.0], rel=1e-6)
    with pytest.raises(dc.SpecificationError, match="no positive factor of unheard of"):
        other.new(model, "unheard of")
    with pytest.raises(dc.SpecificationError, match="no positive factor of m0, m2"):
        pool(local, scale={"pay": {"m1": 1, "m2": -1, "m3": 1, "m4": 1, "m5": 1}})
    with pytest.raises(dc.SpecificationError, match="Did you mean 'pay'"):
        pool(local, scale={"payy": rates})


def test_parameters_that_are_not_pooled_move_by_their_covariance():
    _, e = simulated(8, 3, 0.5, 2, rho=0.7)
    fits = made(e)
    some = pool(fits, names=["k1"])
    assert list(some.prior.index) == ["k1"]
    # by Bayes's rule with a flat prior on the others, for whatever prior of k1
    fit, mu, tau2 = fits["m0"], 0.4, 0.2
    S = np.linalg.inv(fit.cov_matrix)
    exact = np.linalg.inv(S + np.diag([0, 1 / tau2, 0]))
    mean = exact @ (S @ fit.theta + [0, mu / tau2, 0])
    labels, theta, cov = move_with_pooled(fit, ["k1"], mean[[1]], exact[1:2, 1:2])
    assert labels == ["k0", "k1", "k2"]
    assert theta == pytest.approx(mean) and cov == pytest.approx(exact)
    got = some.fits["m0"]
    shift = fit.cov_matrix[[0, 2], 1] / fit.cov_matrix[1, 1] * (got.theta - fit.theta)[1]
    assert (got.theta - fit.theta)[[0, 2]] == pytest.approx(shift)
    assert np.linalg.eigvalsh(got.cov_matrix)[0] > 0
    with_market = {**fits, "m0": replace(fits["m0"], market=("k0",))}
    assert np.isnan(pool(with_market).fits["m0"].loglik)  # counts by state do not determine it


def test_missing_parameters_are_refused_or_borrowed():
    _, e = simulated(6, 2, 0.5, 6, rho=0.3)
    fits = made(e)
    flat = fits["m1"].cov_matrix.copy()
    flat[1], flat[:, 1] = np.nan, np.nan
    fits["m1"] = replace(fits["m1"], cov_matrix=flat, theta=np.array([e.y[1, 0], 77.0]))
    with pytest.raises(dc.IdentificationError, match=r"'m1' has no variance of k1.*'borrow'"):
        pool(fits)
    lone = made(Evidence.of(e.y[:, :1], e.S[:, :1, :1]))["m2"]
    whole, fits["m2"] = fits["m2"].model, lone
    with pytest.raises(dc.SpecificationError, match="'m2' has no parameter k1"):
        pool({m: f for m, f in fits.items() if m != "m1"})
    got = pool(fits, missing="borrow")
    flat = got.fits["m1"]
    prior = got.prior.loc["k1"]
    assert flat.theta[1] == pytest.approx(prior["mean"]) and flat.theta[1] != 77
    half = norm.ppf(0.975) * flat.std_errors["k1"]
    assert prior["mean"] + half == pytest.approx(prior["upper"])
    assert np.isfinite(flat.draws(5)).all() and (got.shrinkage.k1[["m1", "m2"]] == 0).all()
    assert got.fits["m2"].names == ("k0",)
    both = got.new(whole, "m2")  # its own k0, and k1 of the prior
    assert both.theta == pytest.approx([got.fits["m2"].theta[0], prior["mean"]])
    table = got.leave_one_out()
    assert len(table) == 10 and table[table.segment == "m1"].parameter.tolist() == ["k0"]


def test_refusals():
    _, e = simulated(4, 2, 0.5, 6)
    fits = made(e)
    two = dict(list(fits.items())[:2])
    with pytest.raises(dc.SpecificationError, match=r"3 segments at least.*fewer of 2.*two cannot"):
        pool(two)
    three = dict(list(fits.items())[:3])
    with pytest.raises(dc.SpecificationError, match=r"4 segments at least.*one is left out"):
        pool(three).leave_one_out()
    with pytest.raises(dc.SpecificationError, match=r"6 segments at least.*'full'"):
        pool(fits, structure="full")
    with pytest.raises(dc.SpecificationError, match=r"1 fit\(s\).*'m1' did not converge"):
        pool({**fits, "m1": replace(fits["m1"], converged=False)})
    beta = replace(fits["m3"], extra_names=("beta",), extra=np.array([0.9]))
    with pytest.raises(dc.SpecificationError, match="more than utilities"):
        pool({**fits, "m3": beta})
    singular = replace(fits["m0"], cov_matrix=np.ones((2, 2)))
    with pytest.raises(dc.IdentificationError, match=r"'m0'.*singular"):
        pool({**fits, "m0": singular})
    with pytest.raises(dc.SpecificationError, match="Did you mean 'k1'"):
        pool(fits, names=["K1"])
    for wrong in ({"method": "ml"}, {"structure": "round"}, {"missing": "drop"}, {"level": 1.2}):
        with pytest.raises(dc.SpecificationError, match=next(iter(wrong))):
            pool(fits, **wrong)
    for wrong in ([*fits.values()], {}, {"a": 1}):
        with pytest.raises(dc.SpecificationError, match="mapping of segment to Results"):
            pool(wrong)
