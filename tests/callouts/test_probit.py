"""Probit: posteriors against quadrature, grids and Gibbs sampling; batches, forgetting, replay."""

import numpy as np
import oracles
import pytest
from scipy.stats import norm

import dynchoice as dc
from dynchoice.callouts.impression_cells import Cells
from dynchoice.callouts.probit import METHODS, NODES, WEIGHTS
from dynchoice.kernels import callouts as kernels

GROUPS = ["1", *["item"] * 4, *["plan"] * 3, *["pair"] * 12]


def rows(n, seed, base=-1.2, spread=0.4):
    """Impressions of items and plans with their pairs, and clicks from known weights."""
    rng = np.random.default_rng(seed)
    w = np.r_[base, spread * rng.standard_normal(19)]
    item, plan = rng.integers(0, 4, n), rng.integers(0, 3, n)
    index = np.stack([np.zeros(n, int), 1 + item, 5 + plan, 8 + 3 * item + plan], axis=1)
    return index, (rng.random(n) < norm.cdf(w[index].sum(axis=1))).astype(float), w


@pytest.mark.parametrize(
    "clicks,fails,waiting,due,mean,var",
    [
        (1, 0, 0, 1.0, 0.3, 1.5),
        (0, 1, 0, 1.0, -1.0, 2.0),
        (0, 0, 1, 0.4, -0.5, 1.0),
        (30, 400, 0, 1.0, 0.0, 1.0),
        (3, 40, 100, 0.5, 0.0, 4.0),
        (0, 1000, 0, 1.0, 0.0, 1.0),
        (40, 0, 0, 1.0, -8.0, 0.5),
        (0.3, 2.2, 0, 1.0, -0.3, 0.5),
        (50_000, 1_000_000, 0, 1.0, 0.0, 1.0),
        (0, 0, 5000, 0.02, 0.0, 1.0),
    ],
)
def test_moments_of_a_cell_are_those_of_a_fine_grid(clicks, fails, waiting, due, mean, var):
    got = kernels.cell_moments(
        float(clicks), float(fails), float(waiting), due, mean, var, NODES, WEIGHTS
    )
    want = oracles.tilted_moments(clicks, fails, waiting, due, mean, var)
    assert got[0] == pytest.approx(want[0], abs=3e-6 * (1 + abs(want[0])))
    assert abs(got[1] - want[1]) < 3e-5 * np.sqrt(want[2])
    assert got[2] == pytest.approx(want[2], rel=2e-4)


def test_the_normal_tail_keeps_its_digits():
    for t in (-40.0, -26.0, -24.9, -5.0, 0.0, 3.0):
        assert kernels.log_normal_cdf(t) == pytest.approx(norm.logcdf(t), rel=1e-9)
        want = np.exp(norm.logpdf(t) - norm.logcdf(t))
        assert kernels.mills(t) == pytest.approx(want, rel=1e-7)


def test_one_row_is_the_update_of_graepel():
    m, v = np.array([0.2, -0.1]), np.array([1.0, 0.5])
    model = dc.Probit(["a", "b"], {"a": (0.2, 1.0), "b": (-0.1, 0.5)})
    model.update([[0, 1]], [1])
    s = np.sqrt(1 + v.sum())
    t = m.sum() / s
    nu = norm.pdf(t) / norm.cdf(t)
    np.testing.assert_allclose(model.posterior.mean, m + v / s * nu, rtol=1e-12)
    shrink = 1 - v / s**2 * nu * (nu + t)
    np.testing.assert_allclose(model.posterior.variance, v * shrink, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_one_feature_is_exact(method):
    model = dc.Probit(["a"], {"a": (0.1, 2.0)}, method=method)
    model.update([[0]], [7], [50])
    _, mean, var = oracles.tilted_moments(7, 43, 0, 1.0, 0.1, 2.0)
    tolerance = 0.12 if method == "adf" else 1e-6  # 50 steps of a stream are each a projection
    assert abs(model.posterior.mean[0] - mean) < tolerance * np.sqrt(var)
    assert model.posterior.variance[0] == pytest.approx(var, rel=max(tolerance, 1e-5))


def test_joint_is_the_posterior_of_a_gibbs_sampler():
    index, y, _ = rows(1200, 3, base=-0.5, spread=0.3)
    model = dc.Probit(GROUPS, {"pair": 0.2}, method="joint").update(index, y)
    x = np.zeros((len(y), 20))
    x[np.arange(len(y))[:, None], index] = 1
    m0, v0 = model.prior_moments()
    draws = oracles.probit_gibbs(x, y, m0, v0, 25_000, seed=5)[1000:]
    sd = draws.std(axis=0)
    own = model.posterior
    assert own.converged
    assert np.abs((own.mean - draws.mean(axis=0)) / sd).max() < 0.12
    np.testing.assert_allclose(np.sqrt(own.variance), sd, rtol=0.12)
    some = np.unique(index, axis=0)
    z = draws @ np.eye(20)[some].sum(axis=1).T
    mean, var = own.moments(some, np.ones(some.shape))
    assert np.abs((mean - z.mean(axis=0)) / z.std(axis=0)).max() < 0.1
    np.testing.assert_allclose(np.sqrt(var), z.std(axis=0), rtol=0.1)
    factored = dc.Probit(GROUPS, {"pair": 0.2}, method="ep").update(index, y).posterior
    assert factored.converged
    assert np.abs((factored.mean - draws.mean(axis=0)) / sd).max() < 0.5


def test_joint_evidence_is_a_grid_integral():
    index, y = np.array([[0, 1], [0, -1], [1, -1]]), np.array([3.0, 1.0, 4.0])
    shown = np.array([10.0, 9.0, 6.0])
    value = np.array([[1.0, 0.5], [2.0, 0.0], [1.0, 0.0]])
    model = dc.Probit(["a", "b"], {"a": (-0.3, 0.8), "b": (0.2, 1.5)}, method="joint")
    model.update(index, y, shown, value)
    a, b = np.meshgrid(np.linspace(-5, 5, 801), np.linspace(-6, 6, 801), indexing="ij")
    log = norm.logpdf(a, -0.3, np.sqrt(0.8)) + norm.logpdf(b, 0.2, np.sqrt(1.5))
    for z, k, n in ((a + 0.5 * b, 3, 10), (2 * a, 1, 9), (b, 4, 6)):
        log = log + k * norm.logcdf(z) + (n - k) * norm.logcdf(-z)
    area = (10 / 800) * (12 / 800)
    assert model.posterior.log_evidence == pytest.approx(
        np.log(np.exp(log).sum() * area), abs=0.005
    )
    p = np.exp(log) / np.exp(log).sum()
    assert model.posterior.mean[0] == pytest.approx((p * a).sum(), abs=0.005)
    assert model.posterior.mean[1] == pytest.approx((p * b).sum(), abs=0.005)
    cov = (p * a * b).sum() - (p * a).sum() * (p * b).sum()
    assert model.posterior.covariance[0, 1] == pytest.approx(cov, abs=0.01)


@pytest.mark.parametrize("method", ["ep", "joint"])
def test_rows_counts_and_batches_are_one(method):
    index, y, _ = rows(900, 1)
    whole = dc.Probit(GROUPS, method=method).update(index, y)
    split = dc.Probit(GROUPS, method=method).update(index[:300], y[:300])
    split.update(index[300:], y[300:])
    cells, place = np.unique(index, axis=0, return_inverse=True)
    place = place.reshape(-1)
    counted = dc.Probit(GROUPS, method=method)
    counted.update(cells, np.bincount(place, y), np.bincount(place))
    sd = np.sqrt(whole.posterior.variance)
    for other in (split, counted):
        assert np.abs((other.posterior.mean - whole.posterior.mean) / sd).max() < 2e-3
    assert whole.impressions == split.impressions == counted.impressions == 900
    assert split.cells.size == counted.cells.size == len(cells)


def test_a_stream_depends_on_its_seed_and_on_nothing_else():
    index, y, _ = rows(500, 2)
    one, two, other = (dc.Probit(GROUPS).update(index, y, seed=s).posterior.mean for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-6


def test_the_mean_field_stream_is_overconfident_where_features_come_together():
    """Why priors are learned from joint models: see MetaPrior."""
    index, y, _ = rows(4000, 4)
    stream = dc.Probit(GROUPS).update(index, y).posterior
    joint = dc.Probit(GROUPS, method="joint").update(index, y).posterior
    assert stream.variance[0] < 0.05 * joint.variance[0]


@pytest.mark.parametrize("method", METHODS)
def test_open_impressions_count_by_the_share_that_is_due(method):
    model = dc.Probit(["a"], {"a": (-1.0, 1.0)}, method=method)
    index, due = np.zeros((2, 1), np.int64), np.array([0.3, 0.8])
    waiting = Cells(index, np.ones((2, 1)), np.array([[0, 0, 1.0], [0, 0, 1.0]]), due)
    got = model.with_open(waiting)
    z = np.linspace(-9, 7, 40001)
    p = norm.pdf(z, -1, 1) * (1 - 0.3 * norm.cdf(z)) * (1 - 0.8 * norm.cdf(z))
    p /= p.sum()
    assert got.mean[0] == pytest.approx((p * z).sum(), abs=0.01)
    assert model.posterior.mean[0] == -1.0, "nothing of it is kept"
    none = model.with_open(Cells(index, np.ones((2, 1)), waiting.outcomes, np.zeros(2)))
    assert none.mean[0] == pytest.approx(-1.0, abs=1e-6)
    assert none.variance[0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("method", ["ep", "joint"])
def test_forgetting_is_a_power_prior(method):
    model = dc.Probit(["a"], method=method, forget=0.9)
    model.update([[0]], [5], [20]).update([[0]], [1], [10])
    want = oracles.tilted_moments(0.9 * 5 + 1, 0.9 * 15 + 9, 0, 1.0, 0.0, 1.0)
    assert model.posterior.mean[0] == pytest.approx(want[1], abs=1e-5)
    assert model.posterior.variance[0] == pytest.approx(want[2], rel=1e-4)


def test_a_stream_forgets_towards_the_prior():
    model = dc.Probit(["a"], {"a": (-1.5, 0.2)}, forget=0.5)
    model.update([[0]], [30], [60])
    before = model.likelihood()
    model.update(np.empty((0, 1), int), [])
    after = model.likelihood()
    np.testing.assert_allclose(after.precision, 0.5 * before.precision)
    for _ in range(60):
        model.update(np.empty((0, 1), int), [])
    assert model.posterior.mean[0] == pytest.approx(-1.5, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_another_prior_is_a_replay(method):
    index, y, _ = rows(1500, 6)
    prior = {"1": (-1.2, 0.5), "item": 0.1, "plan": 0.05, "pair": 0.02}
    moved = dc.Probit(GROUPS, method=method).update(index, y).set_prior(prior)
    direct = dc.Probit(GROUPS, prior, method=method).update(index, y)
    gap = (moved.posterior.mean - direct.posterior.mean) / np.sqrt(direct.posterior.variance)
    # a stream keeps only what its updates amounted to
    assert np.abs(gap).max() < (20 if method == "adf" else 2e-3)
    if method != "adf":
        back = moved.set_prior(None).posterior.mean
        same = dc.Probit(GROUPS, method=method).update(index, y).posterior
        assert np.abs((back - same.mean) / np.sqrt(same.variance)).max() < 5e-3


def test_items_never_shown_are_calibrated():
    """Mean predicted probability of unseen items is their mean true one, over many worlds."""
    gaps = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        w = 0.5 * rng.standard_normal(60)
        item = rng.integers(0, 30, 3000)  # the last 30 are new
        y = rng.random(3000) < norm.cdf(-1.0 + w[item])
        model = dc.Probit(["1", *["item"] * 60], {"1": 4.0, "item": 0.25}, method="joint")
        model.update(np.stack([np.zeros(3000, int), 1 + item], 1), y.astype(float))
        new = np.stack([np.zeros(30, int), np.arange(31, 61)], 1)
        gaps.append(model.predict(new).mean() - norm.cdf(-1.0 + w[30:]).mean())
        plug_in = norm.cdf(model.posterior.mean[0])
    gaps = np.array(gaps)
    assert abs(gaps.mean()) < 3 * gaps.std(ddof=1) / np.sqrt(len(gaps))
    assert plug_in < model.predict(new).mean(), (
        "ignorance of the weights raises a small probability"
    )


@pytest.mark.parametrize("method", METHODS)
def test_save_and_grow(method):
    index, y, _ = rows(400, 8)
    model = dc.Probit(GROUPS, method=method, forget=0.95).update(index, y)
    again = dc.Probit.from_tree(model.to_tree())
    np.testing.assert_allclose(again.predict(index), model.predict(index), atol=2e-5)
    again.update(index, y, seed=3)
    model.update(index, y, seed=3)
    np.testing.assert_allclose(again.predict(index), model.predict(index), atol=2e-4)
    before = model.predict(index)
    place = np.arange(20) + np.where(np.arange(20) >= 5, 1, 0)
    model.remap(place, [*GROUPS[:5], "item", *GROUPS[5:]])
    np.testing.assert_allclose(model.predict(place[index]), before, atol=2e-4)
    assert model.posterior.variance[5] == pytest.approx(1.0, abs=1e-3), "new: as its group"


@pytest.mark.parametrize(
    "call,error,text",
    [
        (lambda m: m.update([[9]], [1]), dc.SpecificationError, "features that the model does not"),
        (lambda m: m.update([[0.5]], [1]), dc.SpecificationError, "whole numbers"),
        (lambda m: m.update([[0], [1]], [1]), dc.SpecificationError, "one each"),
        (lambda m: m.update([[0]], [2], [1]), dc.DataError, "2 of 1"),
        (lambda m: m.update([[0]], [np.nan]), dc.DataError, "1 rows"),
        (lambda m: m.update([[0]], [1], value=[[np.inf]]), dc.DataError, "no numbers"),
        (lambda m: m.set_prior({"itm": 1}), dc.SpecificationError, "Did you mean 'item'"),
        (lambda m: m.set_prior({"item": -1}), dc.SpecificationError, "positive variance"),
        (lambda m: m.set_prior({"item": "a"}), dc.SpecificationError, "give a variance"),
        (lambda m: dc.Probit(["a"], method="EP"), dc.SpecificationError, "Did you mean 'ep'"),
        (lambda m: dc.Probit([]), dc.SpecificationError, "empty"),
        (lambda m: dc.Probit(["a"], forget=0), dc.SpecificationError, "forget"),
        (lambda m: dc.Probit(["a"] * 6000, method="joint"), dc.SpecificationError, "up to 5,000"),
    ],
)
def test_mistakes(call, error, text):
    with pytest.raises(error, match=text):
        call(dc.Probit(["1", "item"]))


def test_a_cell_that_cannot_be_updated_has_not_settled():
    """A site larger than the posterior leaves no cavity: the pass says so."""
    index, value = np.zeros((1, 1), np.int64), np.ones((1, 1))
    m, v = np.zeros(1), np.ones(1)
    change = kernels.factored_pass(
        index, value, np.array([[1.0, 0, 0]]), np.ones(1), np.arange(1), m, v,
        np.full((1, 1), 2.0), np.zeros((1, 1)), True, NODES, WEIGHTS,
    )  # fmt: skip
    assert change >= 1.0
    change = kernels.joint_sites(
        np.zeros(1), np.ones(1), np.array([[1.0, 0, 0]]), np.ones(1), np.full(1, 2.0), np.zeros(1),
        1.0, NODES, WEIGHTS,
    )  # fmt: skip
    assert change >= 1.0
