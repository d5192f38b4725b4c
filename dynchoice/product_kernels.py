"""Numba code of large factored models: levels that move along a graph, times two dense halves.

States are ``s = (c, d, e)``: level ``c`` (of a contract, of the season) moves along a graph, and
what is left moves by ``A (x) B``, two chains of at most a few hundred states each, so that an
expectation is two products of matrices. Arrays of states and choices are (J, n). ``halves`` =
(A (L, D, D), B transposed (L, E, E), chain of each choice (J,), the levels it leads to, need
(L, C)); ``graph`` as in :mod:`dynchoice.level_kernels`; ``z`` (L, C, D, E) is room for ``Q_l
x(c)`` and ``half`` (D, E) for one product.

A file of its own: see :mod:`dynchoice.level_kernels`.
"""

from __future__ import annotations

import numpy as np

from dynchoice.kernels import vectors


@vectors
def product_expect(x, ev, z, half, halves, graph):
    """Write ``ev[j, s] = E[x(s') | s, j]`` (J, n); ``z`` receives ``Q_l x(c)``."""
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, D, E = z.shape
    J = ev.shape[0]
    n = D * E
    for k in range(L):
        for c in range(C):
            if need[k, c]:
                np.dot(x[c * n : c * n + n].reshape(D, E), BT[k], half)
                np.dot(A[k], half, z[k, c])
    for j in range(J):
        for c in range(C):
            values = ev[j, c * n : c * n + n]
            values[:] = 0.0
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, ahead = weight[q], z[chain[j], to[q]].reshape(n)
                for e in range(n):
                    values[e] += w * ahead[e]


@vectors
def product_push(m, out, sums, half, halves, graph):
    """Write ``out(s') = sum_{s,j} m(j, s) F(s' | s, j)`` (n,), the adjoint of expectations.

    ``sums`` (L, C, n) is room for the mass that arrives at each level by each chain.
    """
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, n = sums.shape
    D, E = half.shape
    J = m.shape[0]
    sums[:] = 0.0
    for j in range(J):
        for c in range(C):
            mass = m[j, c * n : c * n + n]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, there = weight[q], sums[chain[j], to[q]]
                for e in range(n):
                    there[e] += w * mass[e]
    arrived = np.empty((D, E))
    for c in range(C):
        own = out[c * n : c * n + n]
        own[:] = 0.0
        for k in range(L):
            if need[k, c]:
                # Q' m = A' M B with B' kept: M B = (B' M')'
                np.dot(sums[k, c].reshape(D, E), np.ascontiguousarray(BT[k].T), half)
                np.dot(np.ascontiguousarray(A[k].T), half, arrived)
                flat = arrived.reshape(n)
                for e in range(n):
                    own[e] += flat[e]


@vectors
def product_sweep(v, y, out, z, half, W, inner, halves, graph):
    """Write ``y``, nearly ``(I - beta F^P)^{-1} v``, and ``out = (I - beta F^P) y``.

    A sweep over the levels, each after those it leads to (block Gauss-Seidel); levels that return
    to themselves take ``inner`` steps of their own. ``W`` (J, n) holds ``beta P``.
    """
    A, BT, chain, need = halves
    indptr, to, weight, order, rank, loops = graph
    L, C, D, E = z.shape
    J = W.shape[0]
    n = D * E
    for i in range(C):
        c = order[i]
        own, given = y[c * n : c * n + n], out[c * n : c * n + n]
        given[:] = v[c * n : c * n + n]
        for j in range(J):
            policy = W[j, c * n : c * n + n]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] < i:
                    w, ahead = weight[q], z[chain[j], to[q]].reshape(n)
                    for e in range(n):
                        given[e] += w * policy[e] * ahead[e]
        own[:] = given
        for step in range(inner + 1 if loops[c] else 1):
            for k in range(L):
                if need[k, c]:
                    np.dot(own.reshape(D, E), BT[k], half)
                    np.dot(A[k], half, z[k, c])
            if step < inner and loops[c]:
                own[:] = given
                for j in range(J):
                    policy = W[j, c * n : c * n + n]
                    for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                        if to[q] == c:
                            w, ahead = weight[q], z[chain[j], c].reshape(n)
                            for e in range(n):
                                own[e] += w * policy[e] * ahead[e]
    # what the sweep did not solve: moves to levels later in it, and of levels to themselves
    for c in range(C):
        own, solved = out[c * n : c * n + n], y[c * n : c * n + n]
        if loops[c]:
            own[:] = solved
        else:
            own[:] = v[c * n : c * n + n]
        for j in range(J):
            policy = W[j, c * n : c * n + n]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if loops[c] or rank[to[q]] > rank[c]:
                    w, ahead = weight[q], z[chain[j], to[q]].reshape(n)
                    for e in range(n):
                        own[e] -= w * policy[e] * ahead[e]
