"""Every kernel against a plain NumPy twin."""

import numpy as np
import oracles
import pytest
from scipy.special import logsumexp

from dynchoice import kernels


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("attention", [False, True])
def test_soft_bellman(rng, attention):
    spec = oracles.random_model(1, 17, 4, 2, 0.9, attention=attention)
    V = rng.normal(size=17)
    u = oracles.flow_utility(spec, spec["params"])
    v, pi, P = (np.empty((17, 4)) for _ in range(3))
    T = np.empty(17)
    a, d = np.ascontiguousarray(spec["attention"]), spec["default"].astype(np.int64)
    kernels.soft_bellman(u, spec["F"] @ V, 0.9, a, d, v, T, pi, P)
    T0, v0, pi0, P0 = oracles.bellman(spec, spec["params"], V)
    for got, want in ((T, T0), (v, v0), (pi, pi0), (P, P0)):
        np.testing.assert_allclose(got, want, atol=1e-13)


def test_soft_bellman_survives_one_state_and_huge_values():
    u = np.array([[800.0, -900.0, -np.inf]])
    v, pi, P = (np.empty((1, 3)) for _ in range(3))
    T = np.empty(1)
    one, zero = np.ones(1), np.zeros(1, dtype=np.int64)
    kernels.soft_bellman(u, np.zeros((1, 3)), 0.5, one, zero, v, T, pi, P)
    assert T[0] == 800.0 and P[0, 0] == 1.0 and P[0, 1] <= 1e-300 and P[0, 2] == 0.0


def test_relative_residual():
    T, h = np.array([1.0, 3.0, 5.0, 9.0]), np.array([0.0, 1.0, 0.0, 5.0])
    root = np.array([0, 0, 2, 2])
    gain, r = np.empty(4), np.empty(4)
    worst = kernels.relative_residual(T, h, root, gain, r)
    assert gain.tolist() == [1, 1, 5, 5] and r.tolist() == [0, 1, 0, -1] and worst == 1


def test_expectations_and_pushes(rng):
    from scipy.sparse import random_array

    F = random_array((12, 6), density=0.4, rng=rng, format="csr")
    ptr, idx = F.indptr.astype(np.int64), F.indices.astype(np.int64)
    V, W, m = rng.normal(size=6), rng.normal(size=(6, 3)), rng.random(12)
    out, many, pushed = np.empty(12), np.empty((12, 3)), np.zeros(6)
    kernels.expect_stacked(ptr, idx, F.data, V, out)
    kernels.expect_stacked_many(ptr, idx, F.data, W, many)
    kernels.push_stacked(ptr, idx, F.data, m, pushed)
    dense = F.toarray()
    np.testing.assert_allclose(out, dense @ V, atol=1e-14)
    np.testing.assert_allclose(many, dense @ W, atol=1e-14)
    np.testing.assert_allclose(pushed, m @ dense, atol=1e-14)


def test_policy_blocks_and_data(rng):
    from scipy.sparse import csr_array

    F = rng.dirichlet(np.ones(5), size=10)
    F[:, 3:] = 0
    F[:6, :3] /= F[:6, :3].sum(axis=1, keepdims=True)
    F[6:, :3] = 0
    F[6:, 3:] = rng.dirichlet(np.ones(2), size=4)
    stacked = csr_array(F)
    ptr, idx = stacked.indptr.astype(np.int64), stacked.indices.astype(np.int64)
    P = rng.dirichlet(np.ones(2), size=5)
    full = np.eye(5) - 0.9 * np.einsum("sj,sjt->st", P, F.reshape(5, 2, 5))
    order, local = np.array([3, 4, 0, 1, 2]), np.array([0, 1, 2, 0, 1])
    for start, own in ((0, [3, 4]), (2, [0, 1, 2])):
        A = np.empty((len(own), len(own)))
        kernels.policy_blocks(ptr, idx, stacked.data, P, 0.9, order, local, start, len(own), A)
        np.testing.assert_allclose(A.T, full[np.ix_(own, own)], atol=1e-14)
    out = np.zeros(25)
    target = np.repeat(np.arange(5), np.diff(ptr[::2])) * 5 + idx
    kernels.policy_data(ptr, stacked.data, target, P, -0.9, out)
    np.testing.assert_allclose(np.eye(5) + out.reshape(5, 5), full, atol=1e-14)


def test_axis_contractions(rng):
    pre, n, post, groups = 3, 4, 5, 6
    gpre, gpost = rng.integers(0, 3, pre) * 2, rng.integers(0, 2, post)
    table = rng.dirichlet(np.ones(n), size=(groups, n))
    following = rng.integers(0, n, (groups, n))
    X, Y = rng.normal(size=(pre, n, post)), rng.normal(size=(pre, n, post))
    g = gpre[:, None] + gpost
    full = table[g]  # (pre, post, n, n)
    out = np.empty_like(X)
    kernels.contract_axis(X, table, gpre, gpost, out)
    np.testing.assert_allclose(out, np.einsum("pqik,pkq->piq", full, X), atol=1e-13)
    kernels.contract_axis_adjoint(Y, table, gpre, gpost, out)
    np.testing.assert_allclose(out, np.einsum("pqik,piq->pkq", full, Y), atol=1e-13)
    hot = np.eye(n)[following][g]
    kernels.gather_axis(X, following, gpre, gpost, out)
    np.testing.assert_allclose(out, np.einsum("pqik,pkq->piq", hot, X), atol=1e-13)
    kernels.gather_axis_adjoint(Y, following, gpre, gpost, out)
    np.testing.assert_allclose(out, np.einsum("pqik,piq->pkq", hot, Y), atol=1e-13)
    gradient = np.zeros_like(table)
    kernels.law_gradient(Y, X, gpre, gpost, gradient)
    want = np.zeros_like(table)
    np.add.at(want, g, np.einsum("piq,pkq->pqik", Y, X))
    np.testing.assert_allclose(gradient, want, atol=1e-12)


def test_scores_and_sums(rng):
    spec = oracles.random_model(3, 9, 3, 2, 0.8, attention=True)
    V, v, pi, P = oracles.solve_newton(spec, spec["params"])
    dv = rng.normal(size=(9, 3, 2))
    d, a = spec["default"].astype(np.int64), np.ascontiguousarray(spec["attention"])
    out = np.empty_like(dv)
    kernels.log_ccp_derivative(pi, P, a, d, dv, out)
    centred = dv - np.einsum("sj,sjk->sk", pi, dv)[:, None]
    w = np.ones((9, 3))
    w[np.arange(9), d] = a * pi[np.arange(9), d] / P[np.arange(9), d]
    want = np.where((pi > 0)[:, :, None], w[:, :, None] * centred, 0.0)
    np.testing.assert_allclose(out, want, atol=1e-14)
    n = rng.integers(0, 5, (9, 3)) * (pi > 0.0)
    score, outer, cov = np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))
    kernels.score_and_outer(n.astype(float), out, score, outer)
    np.testing.assert_allclose(score, np.einsum("sj,sjk->k", n, want), atol=1e-12)
    np.testing.assert_allclose(outer, np.einsum("sj,sjk,sjl->kl", n, want, want), atol=1e-12)
    weight = rng.normal(size=9)
    kernels.weighted_choice_covariance(weight, pi, dv, cov)
    np.testing.assert_allclose(
        cov, np.einsum("s,sj,sjk,sjl->kl", weight, pi, centred, centred), atol=1e-12
    )
    seen = n > 0
    want_loglik = (n[seen] * np.log(P[seen])).sum()
    v = np.where(pi > 0, np.log(np.where(pi > 0, pi, 1.0)) + 3.0, -np.inf)
    got = kernels.log_likelihood(n.astype(float), P, v, a)
    assert got == pytest.approx(want_loglik, rel=1e-13)


def test_a_saturated_logit_keeps_likelihood_and_gradient():
    v, one = np.array([[0.0, 2000.0, -np.inf]]), np.ones(1)
    pi, P, V, T = (np.empty(shape) for shape in ((1, 3), (1, 3), 1, (1, 3)))
    kernels.soft_bellman(v, np.zeros((1, 3)), 0.0, one, np.zeros(1, np.int64), T, V, pi, P)
    assert pi[0, 0] == 1e-300 and pi[0, 1] == 1.0 and pi[0, 2] == 0.0
    n = np.array([[2.0, 0.0, 0.0]])
    assert kernels.log_likelihood(n, P, v, one) == pytest.approx(-4000.0)
    assert kernels.log_likelihood(n, P, v, one / 2) == pytest.approx(-4000.0 + 2 * np.log(0.5))
    out = np.empty((1, 3, 1))
    dv = np.array([[[1.0], [0.0], [5.0]]])
    kernels.log_ccp_derivative(pi, P, one, np.zeros(1, np.int64), dv, out)
    np.testing.assert_allclose(out[0, :, 0], [1.0, 0.0, 0.0], atol=1e-12)


def test_simulated_members_follow_their_draws():
    cdf = np.array([[[0.25, 1.0], [1.0, 1.0]]])
    indptr = np.array([0, 1, 3, 4, 5])
    indices = np.array([0, 0, 1, 1, 0])
    cdf_next = np.array([1.0, 0.5, 1.0, 1.0, 1.0])
    draws = np.array([[[0.1, 0.9], [0.3, 0.4], [0.9, 0.6], [0.5, 0.5]]])
    states, choices = np.empty((1, 4), np.int64), np.empty((1, 4), np.int64)
    after = np.empty(1, np.int64)
    kernels.simulate_members(
        np.array([0]), cdf, indptr, indices, cdf_next, draws, 0, states, choices, after
    )
    assert states.tolist() == [[0, 0, 0, 1]]
    assert choices.tolist() == [[0, 1, 1, 0]]
    assert after.tolist() == [1]


def test_path_values(rng):
    spec = oracles.random_model(4, 7, 3, 2, 0.9, sparse=True)
    P = rng.dirichlet(np.ones(3), size=7) * spec["available"]
    P /= P.sum(axis=1, keepdims=True)
    flows, draws, start = rng.normal(size=(7, 2)), rng.random((40, 2)), np.array([5, 0, 3])
    rows = spec["F"].reshape(21, 7)
    indices = [np.flatnonzero(row) for row in rows]
    indptr = np.r_[0, np.cumsum([len(i) for i in indices])]
    cdf_next = np.concatenate([np.cumsum(row[i]) for row, i in zip(rows, indices, strict=True)])
    out = np.ones((3, 2))
    flat = np.concatenate(indices)
    kernels.path_values(start, np.cumsum(P, axis=1), indptr, flat, cdf_next, draws, flows, 0.9, out)
    want = 1.0 + oracles.path_values(start, P, spec["F"], draws, flows, 0.9)
    np.testing.assert_allclose(out, want, atol=1e-12)


def test_every_kernel_is_tested_here():
    from pathlib import Path

    names = [k for k, f in vars(kernels).items() if hasattr(f, "py_func")]
    text = Path(__file__).read_text(encoding="utf-8")
    assert names and all(f"kernels.{name}" in text for name in names)
    assert logsumexp([0.0]) == 0.0
