"""Every kernel against a plain NumPy twin, and the blocks that lay models out for them."""

import itertools
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from scipy.sparse import csr_array
from scipy.special import logsumexp

import dynchoice as dc
from dynchoice.kernels import core as kernels
from dynchoice.kernels import levels as level_kernels
from dynchoice.kernels import products as product_kernels
from dynchoice.solvers.layout_levels import LevelBlocks, blocks_of, level_law


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


def test_soft_bellman_where_choices_tie_miss_or_are_hopeless(rng):
    S, J = 40, 4
    u = rng.normal(size=(S, J))
    u[:8] = rng.choice([0.0, 1.0], size=(8, J))  # exact ties
    u[8:16] *= 400.0  # exp underflows: the floor
    u[16:20] = [0.0, -690.0, -691.0, -1e308]  # exp(-690.78) is the floor itself
    u[20:22] = 1e15 + np.array([0.0, 0.25, 0.5, -1.0])
    u[22:24] = 1.0 + 1e-10 * np.arange(J)  # nearly ties
    gone = rng.random((S, J)) < 0.3
    gone[:, 0] = False
    u[gone] = -np.inf
    u[24:28, 1:] = -np.inf  # one choice only
    ev = 3.0 * rng.normal(size=(S, J))
    ev[:24] = 0.0
    a = np.where(np.arange(S) % 2 == 0, 1.0, rng.uniform(0.3, 1.0, S))
    d = np.zeros(S, dtype=np.int64)
    d[::2] = J - 1  # of no account, even where it is not offered: attention is one
    v, pi, P, V = nan(S, J), nan(S, J), nan(S, J), nan(S)
    kernels.soft_bellman(u, ev, 0.9, a, d, v, V, pi, P)
    want = oracles.saturated_bellman(u, ev, 0.9, a, d, 1e-300)
    for got, twin in zip((v, V, pi, P), want, strict=True):
        np.testing.assert_allclose(got, twin, rtol=1e-14)
    assert (pi[~gone & np.isfinite(u)] > 0).all() and (pi[np.isinf(u)] == 0).all()
    assert (P[::2] == pi[::2]).all() and np.abs(P.sum(axis=1) - 1).max() < 1e-15


def test_exponentials_and_logarithms(rng):
    x = -np.concatenate([rng.exponential(size, 3_000) for size in (1e-9, 1e-3, 1.0, 50.0)])
    x = np.concatenate(
        [x, [0.0, -0.0, -690.7, -700.0, -1e308, -np.inf], -np.log(2) * np.arange(99)]
    )
    got = x.copy()
    level_kernels.exponentials(got, nan(x.size))
    want = np.maximum(np.exp(x.astype(np.longdouble)), np.longdouble(1e-300))
    assert np.abs(got / want - 1).max() < 4e-16
    assert got[x == 0].tolist() == [1.0, 1.0, 1.0] and (got[x < -690.8] == 1e-300).all()
    assert np.isnan(oracles.applied(level_kernels.exponentials, [np.nan, -1.0])[0])

    y = np.concatenate([1 + rng.exponential(size, 3_000) for size in (1e-12, 1e-6, 1.0, 1e3)])
    y = np.concatenate([y, np.sqrt(2.0) + np.arange(-4, 5) * 2.3e-16, 2.0 ** np.arange(30)])
    got = y.copy()
    level_kernels.logarithms(got, nan(y.size), nan(y.size))
    want = np.log(y.astype(np.longdouble))
    some = want > 0
    assert np.abs(got[some] / want[some] - 1).max() < 4e-16 and (got[~some] == 0).all()


def level_bellman(u, ev, beta, a, d):
    """The kernel on arrays (S, J), as :func:`soft_bellman` has them."""
    turned = [np.ascontiguousarray(x.T) for x in (u, ev)]
    v, pi, P, V = nan(*u.T.shape), nan(*u.T.shape), nan(*u.T.shape), nan(len(u))
    level_kernels.level_bellman(*turned, beta, a, d, v, V, pi, P)
    return v.T, V, pi.T, P.T


@pytest.mark.parametrize("J", [1, 2, 3, 5])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_level_bellman(rng, J, beta):
    S = 61
    u, ev = 3 * rng.normal(size=(S, J)), 3 * rng.normal(size=(S, J))
    u[:9] = rng.choice([0.0, 1.0], size=(9, J))  # exact ties
    u[9:16] *= 400.0  # exp underflows: the floor
    u[16:18] = 1e15
    ev[:18] = 0.0
    gone = rng.random((S, J)) < 0.3
    gone[np.arange(S), rng.integers(0, J, S)] = False
    u[gone] = -np.inf
    a = np.where(np.arange(S) % 2 == 0, 1.0, rng.uniform(0.3, 1.0, S))
    d = gone.argmin(axis=1)
    d[::2] = J - 1  # of no account, even where it is not offered: attention is one
    want = oracles.saturated_bellman(u, ev, beta, a, d, 1e-300)
    got = level_bellman(u, ev, beta, a, d)
    for one, twin in zip(got, want, strict=True):
        np.testing.assert_allclose(one, twin, rtol=1e-14, atol=1e-15)
    assert (got[2][~gone] > 0).all() and (got[2][gone] == 0).all()
    assert np.abs(got[3].sum(axis=1) - 1).max() < 1e-15
    # the attentive part alone, from values: as scipy has it where nothing saturates
    values, pi, V = np.ascontiguousarray(got[0].T), nan(J, S), nan(S)
    level_kernels.level_choice(values, V, pi, nan(J, S))
    np.testing.assert_array_equal(pi, got[2].T)
    np.testing.assert_allclose(V, logsumexp(got[0], axis=1), rtol=1e-14, atol=1e-14)
    u[5, 0] = np.nan
    assert np.isnan(level_bellman(u, ev, beta, a, d)[2][5]).any()


def test_largest(rng):
    for n in (1, 2, 7, 100):
        x = rng.normal(size=n)
        assert level_kernels.largest(x) == np.abs(x).max()
    assert level_kernels.largest(np.array([-3.0, 2.0])) == 3.0


def test_level_solve_does_not_call_nonsense_converged():
    m = levels(2, 4, 3, 3, 0.95)
    for wrong in (np.nan, np.inf, -np.inf):
        start = np.zeros(m.n)
        start[4] = wrong
        assert not level_solve(m, start, True).residual < 1e300


def test_dot_and_combined_rows(rng):
    for n in range(20):
        a, b = rng.normal(size=n), rng.normal(size=n)
        assert level_kernels.dot(a, b) == pytest.approx(sum(a * b), abs=1e-14)
        rows, out = rng.normal(size=(n, 5)), np.ones(5)
        level_kernels.combine_rows(a, rows, out)
        np.testing.assert_allclose(out, 1 + oracles.combine_rows(a, rows), atol=1e-14)


def nan(*shape):
    """An array that gives away whoever reads it before writing it."""
    return np.full(shape, np.nan)


LEVELS = [(0, 1, 5, 3), (1, 5, 1, 2), (2, 6, 3, 4), (3, 8, 4, 3), (4, 4, 7, 2), (5, 7, 2, 4)]
"""Seed, levels, states of the rest, choices."""


def levels(seed, C, E, J, beta=0.9, wider=0):
    """An oracle's model of levels, its arrays for the kernels, in any order of sweeping."""
    model, R, Q, chain = oracles.random_levels(seed, C, E, J, beta)
    to = [np.flatnonzero(R[j, c]) for c in range(C) for j in range(J)]
    indptr = np.r_[0, np.cumsum([len(t) for t in to])].astype(np.int64)
    weight = np.concatenate([R[i % J, i // J, t] for i, t in enumerate(to)])
    order = np.random.default_rng(seed + 100).permutation(C)
    loops = np.array([(R[:, c, c] > 0).any() for c in range(C)])
    L = len(Q)
    need = np.zeros((L + wider, C), dtype=bool)
    for j, _, t in np.argwhere(R > 0):
        need[chain[j], t] = True
    Q = np.concatenate([Q, np.zeros((wider, E, E))])
    chains = Q, np.ascontiguousarray(Q.transpose(0, 2, 1)), chain, need, need.sum(axis=1)
    graph = indptr, np.concatenate(to), weight, order, np.argsort(order), loops
    return SimpleNamespace(
        spec=model, R=R, F=model["F"], n=C * E, L=L + wider, shape=(C, E, J), chains=chains,
        graph=graph, law=(chains, graph), P=oracles.random_policy(seed, model),
    )  # fmt: skip


@pytest.mark.parametrize("wider", [0, 1])
@pytest.mark.parametrize("case", LEVELS)
def test_levels_expect_and_push(rng, case, wider):
    m = levels(*case, wider=wider)
    C, E, J = m.shape
    x, mu = rng.normal(size=m.n), rng.random(m.n)
    ev, z = nan(J, m.n), nan(m.L, C, E)
    level_kernels.level_expect(x, ev, z, *m.law)
    ev = ev.T
    np.testing.assert_allclose(ev, m.F @ x, atol=1e-13)
    pushed, PT = nan(m.n), np.ascontiguousarray(m.P.T)
    mask, group, cells = (
        rng.integers(0, 2, m.n).astype(float),
        rng.integers(0, 3, C),
        np.ones((3, J)),
    )
    main = mask, group
    level_kernels.level_push(mu, PT, pushed, nan(m.L, C, E), main, cells, *m.law)
    for g in range(3):
        counted = mask * (np.repeat(group, E) == g) * mu
        np.testing.assert_allclose(cells[g], 1 + counted @ m.P, atol=1e-13)
    np.testing.assert_allclose(pushed, oracles.pushed(m.F, m.P, mu), atol=1e-13)
    assert pushed.sum() == pytest.approx(mu.sum(), rel=1e-14)
    assert pushed @ x == pytest.approx(((mu[:, None] * m.P) * ev).sum(), abs=1e-13)
    np.testing.assert_allclose(
        (m.P * ev).sum(axis=1), oracles.policy_expectation(m.F, m.P, x), atol=1e-13
    )


@pytest.mark.parametrize("case", LEVELS)
def test_level_factors_and_sweeps(rng, case):
    m = levels(*case)
    (C, E, J), beta = m.shape, 0.9
    W, lu, z = nan(J, C, E), nan(C, E, E), nan(m.L, C, E)
    level_kernels.level_factor(np.ascontiguousarray(m.P.T), beta, W, lu, *m.law)
    np.testing.assert_array_equal(W, beta * m.P.T.reshape(J, C, E))
    rank, loops = m.graph[-2:]
    M, U = oracles.sweep_split(m.F, m.P, beta, E, rank)
    for c in range(C):
        A, own = lu[c].T, np.arange(c * E, c * E + E)
        if loops[c]:
            lower = np.tril(A, -1) + np.eye(E)
            upper = np.triu(A, 1) + np.diag(1 / np.diag(A))
            np.testing.assert_allclose(lower @ upper, M[np.ix_(own, own)], atol=1e-14)
        else:
            assert np.isnan(A).all()
    v, y, out = rng.normal(size=m.n), nan(m.n), nan(m.n)
    level_kernels.level_sweep(v, y, out, z, W, lu, *m.law)
    np.testing.assert_allclose(y, np.linalg.solve(M, v), atol=1e-12)
    np.testing.assert_allclose(out, v - U @ y, atol=1e-12)
    np.testing.assert_allclose(out, (M - U) @ y, atol=1e-12)


def gmres(m, beta, b, basis, goal):
    """Solve one system of a level model; return the step, the residual and the sweeps."""
    C, E, J = m.shape
    W, lu, z, step = nan(J, C, E), nan(C, E, E), nan(m.L, C, E), nan(m.n)
    level_kernels.level_factor(np.ascontiguousarray(m.P.T), beta, W, lu, *m.law)
    work = nan(basis + 1, m.n), nan(basis, m.n), nan(basis + 2, basis + 3), z
    size, sweeps = level_kernels.level_gmres(b, goal, step, *work, W, lu, *m.law)
    return step, size, sweeps


@pytest.mark.parametrize("beta", [0.9, 0.99999])
@pytest.mark.parametrize("case", LEVELS)
def test_level_gmres(rng, case, beta):
    m = levels(*case)
    b = rng.normal(size=m.n)
    b -= b[0]
    norm = np.sqrt(b @ b)
    want = oracles.relative_solve(m.F, m.P, beta, b)
    A = oracles.relative_matrix(m.F, m.P, beta)
    spent = []
    for goal in (1e-12, 1e-3):
        step, size, sweeps = gmres(m, beta, b, m.n, goal * norm)
        spent.append(sweeps)
        assert step[0] == 0.0 and size <= goal * norm and sweeps <= m.n
        rounding = 2.2e-16 / (1 - beta)  # a sweep's constant is that much larger than its rest
        assert np.abs(step - want).max() <= (10 * goal + rounding) * np.abs(want).max()
        assert np.abs(b - A @ step).max() <= (1.01 * goal + rounding) * norm
    assert spent[1] < spent[0] or spent[0] <= 4
    assert gmres(m, beta, 0 * b, 3, 0.0)[1:] == (0.0, 0)


@pytest.mark.parametrize("beta", [0.9, 0.99999])
@pytest.mark.parametrize("case", [(10, 12, 3, 3), (12, 9, 5, 4), (13, 20, 2, 3)])
def test_level_gmres_at_its_cap_says_how_far_it_is(rng, case, beta):
    m = levels(*case)
    b = rng.normal(size=m.n)
    b -= b[0]
    norm, A = np.sqrt(b @ b), oracles.relative_matrix(m.F, m.P, beta)
    sizes, done = [norm], np.zeros(m.n)
    for basis in range(1, 9):
        step, size, sweeps = gmres(m, beta, b, basis, 0.0)
        miss = b - A @ step
        assert sweeps == basis and step[0] == 0.0
        assert size == pytest.approx(np.sqrt(miss @ miss), rel=1e-6)
        sizes.append(size)
    assert (np.diff(sizes) <= 0).all() and sizes[-1] > 1e-10 * norm
    # started again on what is left until nothing is: four sweeps at a time
    for _ in range(100):
        done += gmres(m, beta, b - A @ done, 4, 1e-13 * norm)[0]
    want = oracles.relative_solve(m.F, m.P, beta, b)
    if case[0] != 12 or beta < 0.99:  # there four are too few: level 0 leads to no later one
        assert np.abs(done - want).max() <= 1e-10 * np.abs(want).max()


def level_solve(m, h, warm, tol=1e-12, maxiter=40, basis=30):
    """Run the solver from ``h``; return what it returns and the arrays it writes."""
    (C, E, J), spec = m.shape, m.spec
    k = min(basis, m.n)
    ev, v, pi, P = (nan(J, m.n) for _ in range(4))
    T, r, h = nan(m.n), nan(m.n), np.array(h)
    work = (
        ev, v, T, nan(k + 1, m.n), nan(k, m.n), nan(k + 2, k + 3), nan(m.n), nan(m.L, C, E),
        nan(J, C, E), nan(C, E, E),
    )  # fmt: skip
    u = np.ascontiguousarray(oracles.flow_utility(spec, spec["params"]).T)
    residual, gain, steps, sweeps = level_kernels.level_solve(
        u, h, spec["beta"], spec["attention"], spec["default"], warm, tol, maxiter, pi, P, r,
        work, m.law,
    )  # fmt: skip
    return SimpleNamespace(
        h=h, gain=gain, residual=residual, steps=steps, sweeps=sweeps, v=v.T, T=T, pi=pi.T, P=P.T
    )


def check_solution(m, got, V, v, pi, P, atol):
    """Compare with the levels and probabilities of an oracle's solution."""
    level = m.spec["beta"] * V[0]
    scale = 1 + np.abs(V - V[0]).max()
    assert got.h[0] == 0.0 and got.residual <= 1e-12
    assert got.gain == pytest.approx((1 - m.spec["beta"]) * V[0], abs=atol)
    np.testing.assert_allclose(got.h, V - V[0], atol=atol * scale)
    np.testing.assert_allclose(got.T, got.h + got.gain, atol=1e-12 * scale)
    on = m.spec["available"]
    assert (got.v[~on] == -np.inf).all()
    np.testing.assert_allclose(got.v[on], v[on] - level, atol=atol * scale)
    np.testing.assert_allclose(got.pi, pi, atol=atol)
    np.testing.assert_allclose(got.P, P, atol=atol)


def test_level_solve_finds_what_fifty_thousand_contractions_find():
    m = levels(2, 4, 3, 3, 0.95)
    want = oracles.solve_contraction(m.spec, m.spec["params"], steps=50_000, tol=-1.0)
    for warm in (False, True):
        got = level_solve(m, np.zeros(m.n), warm)
        assert got.steps > 0 and got.sweeps >= got.steps
        check_solution(m, got, *want, atol=1e-11)


@pytest.mark.parametrize("case", LEVELS)
def test_level_solve_from_anywhere(rng, case):
    m = levels(*case, 0.9999)
    V, v, pi, P = want = oracles.solve_newton(m.spec, m.spec["params"])
    cold = level_solve(m, np.zeros(m.n), False)
    check_solution(m, cold, V, v, pi, P, atol=1e-10)
    start = V - V[0] + 1e-3 * rng.normal(size=m.n)
    warm = level_solve(m, start - start[0], True)
    check_solution(m, warm, *want, atol=1e-10)
    assert warm.steps <= 3
    again = level_solve(m, cold.h, True)
    assert (again.steps, again.sweeps) == (0, 0) and (again.h == cold.h).all()
    check_solution(m, level_solve(m, np.zeros(m.n), False, basis=8), *want, atol=1e-10)


def test_level_solve_says_what_it_did():
    m = levels(3, 8, 4, 3, 0.2)
    easy = level_solve(m, np.zeros(m.n), False)
    assert (easy.steps, easy.sweeps) == (0, 0) and easy.residual <= 1e-12
    assert level_solve(m, np.zeros(m.n), True).steps > 0
    m = levels(3, 8, 4, 3, 0.9999)
    residuals = []
    for maxiter in range(4):
        got = level_solve(m, np.zeros(m.n), True, maxiter=maxiter)
        T = oracles.bellman(m.spec, m.spec["params"], got.h)[0]
        r = T - got.h - (T - got.h)[0]
        want = np.abs(r).max() / (1 + np.abs(got.h).max())
        assert got.steps == maxiter and got.residual == pytest.approx(want, rel=1e-6, abs=1e-15)
        residuals.append(got.residual)
    assert residuals[0] > 1e-2 > 1e-12 > level_solve(m, np.zeros(m.n), True).residual
    loose = level_solve(m, np.zeros(m.n), True, tol=1e-4)
    assert 1e-9 < loose.residual <= 1e-4
    # the bound is relative to the values: it stops at the step that reaches it
    for k in (1, 2):
        assert level_solve(m, np.zeros(m.n), True, tol=1.01 * residuals[k]).steps == k


@pytest.mark.parametrize("beta", [0.4, 0.6, 0.9])
def test_level_solve_contracts_while_that_halves_the_residual(beta):
    for case in LEVELS:
        m = levels(*case, beta)
        got = level_solve(m, np.zeros(m.n), False, maxiter=0)
        want = oracles.contract_while_halving(m.spec, m.spec["params"], 20)
        np.testing.assert_allclose(got.h, want, atol=1e-12)


@pytest.mark.parametrize("case", LEVELS)
def test_level_path(rng, case):
    m = levels(*case)
    C, E, J = m.shape
    worth = rng.normal(size=(2, m.n))
    by_level = np.repeat(rng.integers(0, 3, C), E)
    by_state = rng.integers(0, 4, m.n)
    for periods, group in itertools.product((0, 1, 6), (by_level, by_state)):
        mu = rng.random(m.n) * (rng.random(m.n) < 0.7)
        cells, values, after = oracles.push_cells(m.F, m.P, mu, periods, worth, group, 4)
        got = np.ones((periods, 4, J)), np.ones((periods + 1, 2))
        lead = group.reshape(C, E)[:, 0]
        mask = group == np.repeat(lead, E)
        level_kernels.level_path(
            mu, np.ascontiguousarray(m.P.T), periods, worth, group,
            (mask.astype(float), lead.copy()), np.flatnonzero(~mask), *got, nan(m.L, C, E),
            nan(m.n), *m.law,
        )  # fmt: skip
        np.testing.assert_allclose(got[0], 1 + cells, atol=1e-13)
        np.testing.assert_allclose(got[1], 1 + values, atol=1e-13)
        np.testing.assert_allclose(mu, after, atol=1e-13)


def test_blocks_in_one_call_are_those_one_by_one(rng):
    """Three blocks of two kinds of chains; one is left out, and in one nobody stands."""
    pair = [levels(2, 6, 3, 4), levels(2, 6, 3, 4)]
    C, E, J = pair[0].shape
    Q = rng.dirichlet(np.ones(E), size=(len(pair[0].chains[0]), E))
    other = (Q, np.ascontiguousarray(Q.transpose(0, 2, 1)), *pair[0].chains[2:])
    stacked = tuple(np.stack([x, y]) for x, y in zip(pair[0].chains, other, strict=True))
    graph, which, n = pair[0].graph, np.array([1, 0, 1]), pair[0].n
    F = [pair[0].F, oracles.level_product(pair[0].R, Q, pair[0].chains[2])]
    spec = pair[0].spec
    u = np.stack([oracles.flow_utility(spec, spec["params"]).T * x for x in (1.0, 0.5, 1.5)])
    u = np.ascontiguousarray(np.where(np.isfinite(u), u, -np.inf))
    a, d = (np.ascontiguousarray(np.tile(spec[k], (3, 1))) for k in ("attention", "default"))
    work = (
        nan(J, n), nan(J, n), nan(n), nan(n + 1, n), nan(n, n), nan(n + 2, n + 3), nan(n),
        nan(len(Q), C, E), nan(J, C, E), nan(C, E, E),
    )  # fmt: skip
    h, status = np.zeros((3, n)), np.zeros((3, 4))
    pi, P = np.zeros((3, J, n)), np.zeros((3, J, n))
    level_kernels.level_solve_blocks(
        u, h, 0.95, a, d, False, 1e-12, 40, np.array([True, False, True]), pi, P, status, nan(n),
        work, which, stacked, graph,
    )  # fmt: skip
    assert (h[1] == 0).all() and (P[1] == 0).all() and (status[1] == 0).all()
    for b in (0, 2):
        own = {**spec, "F": F[which[b]], "beta": 0.95}
        T = oracles.saturated_bellman(
            u[b].T, own["F"] @ h[b], 0.95, spec["attention"], spec["default"], 1e-300
        )
        r = T[1] - h[b]
        assert np.abs(r - r[0]).max() <= 1e-11 * (1 + np.abs(h[b]).max()) and h[b][0] == 0.0
        np.testing.assert_allclose(P[b].T, T[3], atol=1e-12)
        assert status[b, 1] == pytest.approx(r[0], abs=1e-12)

    mu, group = rng.random((3, n)), np.repeat(rng.integers(0, 3, C), E)
    mu[1] = 0.0
    policy = np.stack([pair[0].P.T] * 3)
    worth, cells, values = rng.normal(size=(3, 2, n)), np.zeros((4, 3, 3, J)), np.zeros((3, 5, 2))
    start, lead = mu.copy(), group.reshape(C, E)[:, 0].copy()
    level_kernels.level_path_blocks(
        mu, np.ascontiguousarray(policy), 4, worth, group, (np.ones(n), lead),
        np.zeros(0, dtype=np.int64), cells, values, nan(len(Q), C, E), nan(n), which, stacked,
        graph,
    )  # fmt: skip
    assert (mu[1] == 0).all() and (cells[:, 1] == 0).all()
    for b in (0, 2):
        want = oracles.push_cells(F[which[b]], pair[0].P, start[b], 4, worth[b], group, 3)
        for got, twin in zip((cells[:, b], values[b], mu[b]), want, strict=True):
            np.testing.assert_allclose(got, twin, atol=1e-13)


# blocks: what compiles models into the arrays above --------------------------------------------


def laws_of(shape, laws):
    """The package's laws of an oracle's."""
    out = {}
    for law in laws:
        names = tuple(f"a{a}" for a in law["axes"])
        given = tuple(g if g == "choice" else f"a{g}" for g in law["given"])
        table = law["table"]
        if law["kind"] == "deterministic" and len(names) > 1:
            sizes, flat = [shape[a] for a in law["axes"]], table.copy()
            for at in np.ndindex(table.shape):
                if table[at] is not None:
                    flat[at] = tuple(map(int, np.unravel_index(table[at], sizes)))
            table = flat
        kinds = {"fixed": lambda *_: dc.Fixed(), "markov": dc.Markov}
        made = kinds.get(law["kind"], lambda g, t: dc.Deterministic(t, g))(given, table)
        out[names if len(names) > 1 else names[0]] = made
    return out


def model_of(spec, states, transitions, perceived=None):
    return dc.DDC(
        states=states,
        choices=[f"c{j}" for j in range(spec["x"].shape[1])],
        utility=dc.Utility.from_array(spec["x"], ["k0"], offset=spec["offset"]),
        transitions=transitions,
        perceived=perceived,
        **{k: spec[k] for k in ("beta", "available", "attention", "default")},
    )


@lru_cache
def factored(seed, beta=0.95, J=None, naive=False):
    """A random factored model of the oracle and the package's blocks of it."""
    rng = np.random.default_rng([seed, 1])
    J = J or int(rng.integers(2, 5))
    shape, laws = oracles.random_factored(seed, J, free=seed % 3 != 0)
    S = int(np.prod(shape))
    available = (rng.random((S, J)) < 0.8) & ~oracles.law_forbids(shape, laws, J)
    available[:, 0] = True  # choice 0 can always be made
    spec = {
        "x": rng.normal(size=(S, J, 1)),
        "offset": rng.normal(size=(S, J)),
        "F": oracles.law_product(shape, laws, J),
        "beta": beta,
        "available": available,
        "attention": np.where(rng.random(S) < 0.5, 1.0, rng.uniform(0.3, 1, S)),
        "default": np.array([rng.choice(np.flatnonzero(row)) for row in available]),
        "params": np.ones(1),
    }
    states = dc.StateSpace(**{f"a{i}": range(n) for i, n in enumerate(shape)})
    choices = [f"c{j}" for j in range(J)]
    F = dc.Transitions.factored(states, choices, laws_of(shape, laws))
    model = model_of(spec, states, F, np.ones(S) if naive else None)
    return SimpleNamespace(shape=shape, laws=laws, spec=spec, model=model, blocks=blocks_of(model))


def own_spec(spec, own):
    """The oracle's model of the states of one block."""
    parts = {k: spec[k][own] for k in ("x", "offset", "available", "attention", "default")}
    F = spec["F"][np.ix_(own, range(spec["F"].shape[1]), own)]
    return {**spec, **parts, "F": F}


def check_blocks(spec, blocks, rng):
    """Everything that blocks compute, against dense arrays of each block."""
    B, n = blocks.order.shape
    u = blocks.blocked(oracles.flow_utility(spec, spec["params"]))
    solution = blocks.solve(u)
    assert solution.converged and solution.message.startswith("converged")
    assert solution.residual <= 1e-12
    warm = blocks.solve(u, solution.h + 1e-2 * rng.normal(size=(B, n)))
    lost = blocks.solve(u, 1e3 * rng.normal(size=(B, n)))
    again = blocks.solve(u, solution.V)
    P = blocks.blocked(oracles.random_policy(1, spec))
    ahead, right = rng.normal(size=(B, n)), rng.normal(size=(B, n, 2))
    V_before, P_before, pi_before = blocks.backward(u, ahead)
    steps = blocks.solve_linear(P, right)
    group, mu = rng.integers(0, 3, n), rng.random((B, n))
    mu[1:2] = 0.0  # an offer in which nobody is
    mu[0, rng.random(n) < 0.3] = 0.0
    worth, moved = rng.normal(size=(B, 2, n)), mu.copy()
    cells, values = blocks.push(moved, P, 5, worth, group, 3)
    for b in range(B):
        own = own_spec(spec, blocks.order[b])
        np.testing.assert_allclose(own["F"].sum(axis=2)[own["available"]], 1.0, atol=1e-13)
        V, v, pi, policy = oracles.solve_newton(own, spec["params"])
        for got in (solution, warm, lost, again):
            np.testing.assert_allclose(got.V[b], V, rtol=2e-10, atol=2e-10)
            np.testing.assert_allclose(got.h[b], V - V[0], rtol=2e-10, atol=2e-10)
            np.testing.assert_allclose(got.pi[b], pi, atol=2e-11)
            np.testing.assert_allclose(got.policy[b], policy, atol=2e-11)
            np.testing.assert_allclose(got.P[b], policy, atol=2e-11)
        x, on = ahead[b], own["available"]
        np.testing.assert_allclose(blocks.expect(b, x)[on], (own["F"] @ x)[on], atol=1e-13)
        want = oracles.policy_expectation(own["F"], P[b], x)
        np.testing.assert_allclose(blocks.policy_expect(b, x, P[b]), want, atol=1e-13)
        want = oracles.bellman(own, spec["params"], x)
        got = V_before[b], pi_before[b], P_before[b]
        for a, twin in zip(got, (want[0], *want[2:]), strict=True):
            np.testing.assert_allclose(a, twin, atol=1e-13)
        for k in range(2):
            want = oracles.relative_solve(own["F"], P[b], spec["beta"], right[b, :, k])
            step = steps[b, :, k] - steps[b, 0, k]
            np.testing.assert_allclose(step, want, rtol=1e-10, atol=1e-10)
        want = oracles.pushed(own["F"], P[b], mu[b])
        np.testing.assert_allclose(blocks.push_once(b, mu[b], P[b]), want, atol=1e-13)
        want = oracles.push_cells(own["F"], P[b], mu[b], 5, worth[b], group, 3)
        got = cells[:, b], values[b], moved[b]
        for a, twin in zip(got, want, strict=True):
            np.testing.assert_allclose(a, twin, atol=1e-13)


FACTORED = range(40)


@pytest.mark.parametrize("seed", FACTORED)
def test_blocks_of_factored_models(rng, seed):
    m = factored(seed)
    order = oracles.law_blocks(m.shape, m.laws)
    if isinstance(m.blocks, LevelBlocks):
        np.testing.assert_array_equal(np.sort(m.blocks.order, axis=1), order)
    else:
        np.testing.assert_array_equal(m.blocks.order, np.arange(order.size)[None])
    by_state = rng.normal(size=(order.size, 3))
    blocked = m.blocks.blocked(by_state)
    for b, s in np.ndindex(m.blocks.order.shape):
        assert (blocked[b, s] == by_state[m.blocks.order[b, s]]).all()
    np.testing.assert_array_equal(m.blocks.by_state(blocked), by_state)
    again = rng.normal(size=m.blocks.order.shape)
    np.testing.assert_array_equal(m.blocks.blocked(m.blocks.by_state(again)), again)
    if isinstance(m.blocks, LevelBlocks):
        check_blocks(m.spec, m.blocks, rng)
        # a choice that a level never offers leads nowhere
        C, J = m.blocks.C, m.blocks.J
        offered = m.blocks.blocked(m.spec["available"]).reshape(m.blocks.B, C, -1, J)
        rows = np.diff(m.blocks.graph[0]).reshape(C, J)
        np.testing.assert_array_equal(rows > 0, offered.any(axis=(0, 2)))


def test_random_factored_models_are_of_every_kind():
    seen = set()
    for seed in FACTORED:
        m = factored(seed)
        fixed = {a for law in m.laws if law["kind"] == "fixed" for a in law["axes"]}
        level = isinstance(m.blocks, LevelBlocks)
        seen |= {("level", level), ("axes", len(m.shape)), ("choices", m.blocks.J)}
        seen |= {("undefined", bool(m.model.transitions.undefined.any()))}
        for law in m.laws:
            parents = {g for g in law["given"] if g != "choice"}
            seen |= {("joint", len(law["axes"])), (law["kind"], "choice" in law["given"])}
            seen |= {("before", p < law["axes"][0]) for p in parents}
            if level:
                seen |= {("offer", law["kind"]) for p in parents & fixed}
                seen |= {("parents", len(parents))}
        if level:
            chains = {len(np.unique(c[2])) for c in m.blocks.chains}
            seen |= {("blocks", m.blocks.B > 1), ("chains differ", len(chains) > 1)}
            seen |= {("alike", min(chains) < m.blocks.J), ("loops", bool(m.blocks.graph[-1].all()))}
            seen |= {("fixed later", min(fixed, default=0) > 0)}
    both = (True, False)
    want = {(k, x) for k in ("level", "undefined", "before", "blocks", "alike") for x in both}
    want |= {(k, x) for k in ("markov", "deterministic", "loops") for x in both}
    want |= {("axes", k) for k in (2, 3, 4)} | {("choices", k) for k in (2, 3, 4)}
    want |= {("joint", 1), ("joint", 2), ("offer", "markov"), ("offer", "deterministic")}
    want |= {("fixed later", True), ("chains differ", True), ("parents", 1), ("parents", 2)}
    assert not want - seen, want - seen


def test_naive_members_are_observed_with_their_true_attention():
    m = factored(4, naive=True)
    spec, b = m.spec, m.blocks
    believed = {**spec, "attention": np.ones(len(spec["attention"]))}
    solution = b.solve(b.blocked(oracles.flow_utility(spec, spec["params"])))
    for i in range(b.B):
        own = b.order[i]
        V, v, pi, policy = oracles.solve_newton(own_spec(believed, own), spec["params"])
        np.testing.assert_allclose(solution.V[i], V, atol=1e-11)
        np.testing.assert_allclose(solution.policy[i], policy, atol=1e-12)
        P = spec["attention"][own][:, None] * pi
        P[np.arange(b.n), spec["default"][own]] += 1 - spec["attention"][own]
        np.testing.assert_allclose(solution.P[i], P, atol=1e-12)
        assert np.abs(P - policy).max() > 0.1


@pytest.mark.parametrize("seed", range(8))
def test_blocks_whose_sweeps_are_slow(seed):
    rng, (C, J, E) = np.random.default_rng(seed), (40, 2, 2)
    R, at = np.zeros((J, C, C)), rng.permutation(C)
    for c, (j, up) in itertools.product(range(C), ((0, 0.9), (1, 0.1))):  # up or down a line
        np.add.at(R, (j, at[c], at[[min(c + 1, C - 1), max(c - 1, 0)]]), [up, 1 - up])
    Q = rng.dirichlet(np.ones(E), size=(J, E))
    states = dc.StateSpace(rest=range(E), level=range(C))
    laws = {"level": dc.Markov(("choice",), R), "rest": dc.Markov(("choice",), Q)}
    spec = oracles.random_model(seed, C * E, J, 1, 0.9999, masks=False, attention=False)
    swapped = np.arange(C * E).reshape(C, E).T.reshape(-1)
    by_level = oracles.level_product(R, Q, np.arange(J))
    spec["F"] = by_level[np.ix_(swapped, range(J), swapped)]
    F = dc.Transitions.factored(states, ["c0", "c1"], laws)
    blocks = blocks_of(model_of(spec, states, F))
    assert isinstance(blocks, LevelBlocks)
    V, _, pi, P = oracles.solve_newton(spec, spec["params"])
    u = blocks.blocked(oracles.flow_utility(spec, spec["params"]))
    got = blocks.solve(u)
    assert got.converged
    np.testing.assert_allclose(blocks.by_state(got.V[..., None])[:, 0], V, rtol=1e-9)
    np.testing.assert_allclose(blocks.by_state(got.P), P, atol=1e-8)


def test_blocks_left_out_stay_at_zero():
    m = next(m for m in map(factored, FACTORED) if m.blocks.B > 2)
    u = m.blocks.blocked(oracles.flow_utility(m.spec, m.spec["params"]))
    active = np.arange(m.blocks.B) == 1
    some, full = m.blocks.solve(u, active=active), m.blocks.solve(u)
    for name in ("h", "V", "pi", "policy", "P"):
        a, b = getattr(some, name), getattr(full, name)
        assert (a[~active] == 0).all() and (a[1] == b[1]).all()


def test_blocks_take_other_tables(rng):
    tried = 0
    for seed in FACTORED:
        m = factored(seed)
        if not isinstance(m.blocks, LevelBlocks):
            continue
        level = level_law(m.model.transitions)
        blocks = blocks_of(m.model)
        laws, tables = [dict(law) for law in m.laws], {}
        for law in laws:
            name = "*".join(f"a{a}" for a in law["axes"])
            if law["kind"] != "markov" or name == level.name:
                continue
            # the same tilt whatever the choice: choices that moved alike still do
            tilt = rng.uniform(0.5, 2.0, size=law["table"].shape[-2:])
            law["table"] = law["table"] * tilt
            law["table"] = law["table"] / law["table"].sum(axis=-1, keepdims=True)
            at = [law["given"].index("choice")] if "choice" in law["given"] else []
            rest = [i for i, g in enumerate(law["given"]) if g != "choice"]
            n = law["table"].shape[-1]
            table = law["table"].transpose(*at, *rest, -2, -1)
            tables[name] = table.reshape(blocks.J if at else 1, -1, n, n)
            tried += 1
        blocks.set_tables({k: np.ascontiguousarray(v) for k, v in tables.items()})
        F = oracles.law_product(m.shape, laws, blocks.J)
        for b in range(blocks.B):
            own, x = blocks.order[b], rng.normal(size=blocks.n)
            want = F[np.ix_(own, range(blocks.J), own)] @ x
            on = m.spec["available"][own]
            np.testing.assert_allclose(blocks.expect(b, x)[on], want[on], atol=1e-13)
    assert tried >= 5


@pytest.mark.parametrize("kind", ["dense", "sparse", "factored"])
def test_plain_blocks(rng, kind):
    if kind == "factored":
        seeds = [s for s in FACTORED if not isinstance(factored(s).blocks, LevelBlocks)]
        m = next(m for m in map(factored, seeds) if all(x["kind"] != "fixed" for x in m.laws))
        check_blocks(m.spec, m.blocks, rng)
        return
    spec = oracles.random_model(5, 30, 3, 1, 0.95, sparse=kind == "sparse")
    states = dc.StateSpace(s=range(30))
    matrices = [csr_array(spec["F"][:, j]) for j in range(3)]
    build = {"dense": lambda: dc.Transitions.dense(spec["F"])}
    F = build.get(kind, lambda: dc.Transitions.sparse(matrices))()
    blocks = blocks_of(model_of(spec, states, F))
    assert not isinstance(blocks, LevelBlocks) and (blocks.order == np.arange(30)).all()
    check_blocks(spec, blocks, rng)


def test_plain_blocks_of_several_offers():
    seen = 0
    for m in map(factored, FACTORED):
        order = oracles.law_blocks(m.shape, m.laws)
        if isinstance(m.blocks, LevelBlocks) or len(order) == 1:
            continue
        seen += 1
        u = m.blocks.blocked(oracles.flow_utility(m.spec, m.spec["params"]))
        got = m.blocks.solve(u)
        assert got.converged
        for own in order:
            V, _, pi, policy = oracles.solve_newton(own_spec(m.spec, own), m.spec["params"])
            np.testing.assert_allclose(got.V[0, own], V, rtol=1e-11, atol=1e-11)
            np.testing.assert_allclose(got.pi[0, own], pi, atol=1e-11)
            np.testing.assert_allclose(got.P[0, own], policy, atol=1e-11)
    assert seen


def test_a_law_of_fixed_axes_only_is_plain():
    states, x = dc.StateSpace(offer=range(3)), np.arange(6.0).reshape(3, 2, 1)
    F = dc.Transitions.factored(states, ["c0", "c1"], {"offer": dc.Fixed()})
    for beta in (0.0, 0.9):
        model = dc.DDC(
            states=states, choices=["c0", "c1"], utility=dc.Utility.from_array(x, ["k"]),
            transitions=F, beta=beta,
        )  # fmt: skip
        got = blocks_of(model).solve(x[None, :, :, 0])
        np.testing.assert_allclose(got.V[0], logsumexp(x[:, :, 0], axis=1) / (1 - beta))


def test_policy_average(rng):
    P, x, out = rng.random((9, 3)), rng.normal(size=(9, 3, 4)), np.full((9, 4), np.nan)
    kernels.policy_average(P, x, out)
    np.testing.assert_allclose(out, np.einsum("sj,sjk->sk", P, x), atol=1e-14)


def test_every_kernel_is_tested():
    from pathlib import Path

    here = Path(__file__).read_text(encoding="utf-8")
    products = (Path(__file__).parent / "test_product.py").read_text(encoding="utf-8")
    read = {
        "kernels": (kernels, here),
        "level_kernels": (level_kernels, here),
        "product_kernels": (product_kernels, products),
    }
    for own, (module, text) in read.items():
        names = [k for k, f in vars(module).items() if hasattr(f, "py_func")]
        lost = [name for name in names if f"{own}.{name}(" not in text.replace(",", "(")]
        assert names and not lost, lost
    assert logsumexp([0.0]) == 0.0
