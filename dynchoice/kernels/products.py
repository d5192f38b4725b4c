"""Numba code of large factored models: levels that move along a graph, times two dense halves.

States are ``s = (c, d, e)``: level ``c`` (of a contract, of the season) moves along a graph, and
what is left moves by ``A (x) B``, two chains of at most a few hundred states each, so that an
expectation is two products of matrices. Arrays of states are (C, n) with ``n = D E``, those of
states and choices (C, J, n): what is known of a level stands together. ``halves`` = (A (L, D, D), B
transposed (L, E, E), chain of each choice (J,), the levels it leads to, need (L, C)); ``graph`` as
in :mod:`dynchoice.kernels.levels`; ``z`` (L, C, n) is room for ``Q_l x(c)`` and ``half`` (D, E) for
one product.

A file of its own: see :mod:`dynchoice.kernels.levels`.
"""

from __future__ import annotations

import numpy as np

from dynchoice.kernels.core import vectors


@vectors
def product_ahead(x, z, half, halves):
    """Write ``z[l, c] = Q_l x(c)`` for each level that a choice of chain ``l`` leads to."""
    A, BT, chain, need = halves
    L, C, n = z.shape
    D, E = half.shape
    for k in range(L):
        for c in range(C):
            if need[k, c]:
                # (A (x) B) x is A X B' with x as a matrix X (D, E)
                np.dot(x[c].reshape(D, E), BT[k], half)
                np.dot(A[k], half, z[k, c].reshape(D, E))


@vectors
def product_expect(x, ev, z, half, halves, graph):
    """Write ``ev[c, j, e] = E[x(s') | s, j]`` (C, J, n); ``z`` receives ``Q_l x(c)``."""
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, n = z.shape
    J = ev.shape[1]
    product_ahead(x, z, half, halves)
    for c in range(C):
        for j in range(J):
            values = ev[c, j]
            values[:] = 0.0
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, ahead = weight[q], z[chain[j], to[q]]
                for e in range(n):
                    values[e] += w * ahead[e]


@vectors
def product_push(m, out, sums, half, halves, graph):
    """Write ``out(s') = sum_{s,j} m(s, j) F(s' | s, j)`` (C, n), the adjoint of expectations.

    ``m`` is (C, J, n); ``sums`` (L, C, n) is room for the mass that arrives at each level by each
    chain.
    """
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, n = sums.shape
    D, E = half.shape
    J = m.shape[1]
    sums[:] = 0.0
    for c in range(C):
        for j in range(J):
            mass = m[c, j]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, there = weight[q], sums[chain[j], to[q]]
                for e in range(n):
                    there[e] += w * mass[e]
    arrived = np.empty((D, E))  # of one level: small, beside what the products cost
    out[:] = 0.0
    for k in range(L):
        forth, back = np.ascontiguousarray(A[k].T), np.ascontiguousarray(BT[k].T)
        for c in range(C):
            if need[k, c]:
                # Q' m = A' M B with B' kept: M B = (B' M')'
                np.dot(sums[k, c].reshape(D, E), back, half)
                np.dot(forth, half, arrived)
                own, flat = out[c], arrived.reshape(n)
                for e in range(n):
                    own[e] += flat[e]


@vectors
def product_sweep(v, shift, y, out, coarse, z, half, W, inner, halves, graph):
    """Write ``y``, nearly ``(I - beta F^P)^{-1} (v - shift)``, and ``out = (I - beta F^P) y``.

    First ``coarse`` (C,), the same for all states of a level, then a sweep over the levels, each
    after those it leads to (block Gauss-Seidel), for what that leaves of ``v``; levels that return
    to themselves take ``inner`` steps of their own. ``W`` (C, J, n) is the policy, and
    discounting is in it or in the graph's weights.
    """
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, n = z.shape
    D, E = half.shape
    J = W.shape[1]
    for i in range(C):
        c = order[i]
        # out[c] holds the level's right side until the second pass writes the result there
        own, given = y[c], out[c]
        for e in range(n):
            given[e] = v[c, e] - shift - coarse[c]
        for j in range(J):
            # halves keep constants: what the coarse part promises needs no product of matrices
            policy, promised = W[c, j], 0.0
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                promised += weight[q] * coarse[to[q]]
            for e in range(n):
                given[e] += promised * policy[e]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] < i:
                    w, ahead = weight[q], z[chain[j], to[q]]
                    for e in range(n):
                        given[e] += w * policy[e] * ahead[e]
        # a level that returns to itself: x <- given + (moves to itself) x. The pass after the last
        # step only applies the chains, for the levels that lead here
        own[:] = given
        for step in range(inner + 1 if loops[c] else 1):
            for k in range(L):
                if need[k, c]:
                    np.dot(own.reshape(D, E), BT[k], half)
                    np.dot(A[k], half, z[k, c].reshape(D, E))
            if step < inner and loops[c]:
                own[:] = given
                for j in range(J):
                    policy = W[c, j]
                    for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                        if to[q] == c:
                            w, ahead = weight[q], z[chain[j], c]
                            for e in range(n):
                                own[e] += w * policy[e] * ahead[e]
        for e in range(n):
            own[e] += coarse[c]
    # what the sweep did not solve: moves to levels later in it, and of levels to themselves
    for c in range(C):
        own = out[c]
        for e in range(n):
            own[e] = y[c, e] if loops[c] else v[c, e] - shift
        for j in range(J):
            policy, promised = W[c, j], 0.0
            if loops[c]:
                for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                    promised += weight[q] * coarse[to[q]]
                for e in range(n):
                    own[e] -= promised * policy[e]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if loops[c] or rank[to[q]] > rank[c]:
                    w, ahead = weight[q], z[chain[j], to[q]]
                    for e in range(n):
                        own[e] -= w * policy[e] * ahead[e]


@vectors
def product_sweep_back(v, y, out, sums, half, W, inner, transposes, halves, graph):
    """Write ``y``, nearly ``(I - beta F^P)'^{-1} v``, and ``out = (I - beta F^P)' y``.

    The sweep of :func:`product_sweep` backwards: a level hands its mass on to those that it leads
    to, before they are solved. ``sums`` (L, C, n) collects what arrives; ``transposes`` = (A', B).
    """
    A, BT, chain, need = halves
    forth, back = transposes
    indptr, to, weight, order, rank, loops = graph
    L, C, n = sums.shape
    D, E = half.shape
    J = W.shape[1]
    sums[:] = 0.0
    moved, stays = np.empty((D, E)), np.empty((L, n))
    for reverse in range(C):
        i = C - 1 - reverse
        c = order[i]
        own, given = y[c], out[c]
        given[:] = v[c]
        for k in range(L):
            if need[k, c]:
                np.dot(sums[k, c].reshape(D, E), back[k], half)
                np.dot(forth[k], half, moved)
                flat = moved.reshape(n)
                for e in range(n):
                    given[e] += flat[e]
        own[:] = given
        # steps of a level that returns to itself: mass is gathered by chain, then moved by it
        for _ in range(inner if loops[c] else 0):
            stays[:] = 0.0
            for j in range(J):
                policy = W[c, j]
                for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                    if to[q] == c:
                        w, there = weight[q], stays[chain[j]]
                        for e in range(n):
                            there[e] += w * policy[e] * own[e]
            own[:] = given
            for k in range(L):
                if need[k, c]:
                    np.dot(stays[k].reshape(D, E), back[k], half)
                    np.dot(forth[k], half, moved)
                    flat = moved.reshape(n)
                    for e in range(n):
                        own[e] += flat[e]
        for j in range(J):
            policy = W[c, j]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] < i:
                    w, there = weight[q], sums[chain[j], to[q]]
                    for e in range(n):
                        there[e] += w * policy[e] * own[e]
    # what the sweep did not solve: mass that arrives from levels earlier in the order, and stays
    sums[:] = 0.0
    reached = np.zeros((L, C), dtype=np.bool_)
    for c in range(C):
        own = y[c]
        for j in range(J):
            policy = W[c, j]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] >= rank[c]:
                    reached[chain[j], to[q]] = True
                    w, there = weight[q], sums[chain[j], to[q]]
                    for e in range(n):
                        there[e] += w * policy[e] * own[e]
    for c in range(C):
        # y less what arrived before it was solved is v, but for the steps of levels that return
        own, left = y[c], out[c]
        for e in range(n):
            left[e] = v[c, e] + (own[e] - left[e])
        for k in range(L):
            if reached[k, c]:
                np.dot(sums[k, c].reshape(D, E), back[k], half)
                np.dot(forth[k], half, moved)
                flat = moved.reshape(n)
                for e in range(n):
                    left[e] -= flat[e]


@vectors
def product_defect(b, x, out, z, half, W, halves, graph):
    """Write ``out = b - (I - beta F^P) x`` (C, n)."""
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, n = z.shape
    J = W.shape[1]
    product_ahead(x, z, half, halves)
    for c in range(C):
        left = out[c]
        for e in range(n):
            left[e] = b[c, e] - x[c, e]
        for j in range(J):
            policy = W[c, j]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, ahead = weight[q], z[chain[j], to[q]]
                for e in range(n):
                    left[e] += w * policy[e] * ahead[e]


@vectors
def krylov_step(basis, k, H):
    """Make ``basis[k + 1]`` orthogonal to those before it; coefficients go to ``H[: k + 1, k]``.

    Modified Gram-Schmidt (Saad and Schultz 1986); returns the length of what is left. ``basis`` is
    (m + 1, n).
    """
    w = basis[k + 1]
    for i in range(k + 1):
        q, h = basis[i], 0.0
        for s in range(w.size):
            h += w[s] * q[s]
        H[i, k] = h
        for s in range(w.size):
            w[s] -= h * q[s]
    size = 0.0
    for s in range(w.size):
        size += w[s] * w[s]
    return size**0.5


@vectors
def add_rows(weights, rows, out):
    """Add ``sum_k weights[k] rows[k]`` into ``out`` (n,)."""
    for k in range(weights.size):
        w, row = weights[k], rows[k]
        for s in range(out.size):
            out[s] += w * row[s]
