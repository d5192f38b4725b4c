"""Numba code of models solved level by level: see :mod:`dynchoice.solvers.layout_levels`.

States are ``s = c E + e``: level ``c`` (of a contract) moves along a graph, the rest ``e`` (of
engagement) by a chain. What the arguments are:

    chains   Q (L, E, E), the distinct chains; QT, their transposes; chain (J,), which of them each
             choice moves by; need (L, C), the levels that choices of a chain lead to; count (L,),
             their number
    graph    indptr (C J + 1,) over rows ``c J + j``; to, the next levels, and weight, their
             probabilities; order (C,) of a sweep, rank (C,) of each level in it; loops (C,),
             whether a level returns to itself
    z        (L, C, E), room for ``Q_l x(c)``

Three things make the loops fast. Arrays of states and choices are (J, n), choice by choice, and the
innermost loop runs over the ``E`` states of a level or over all ``n``, so it reads and writes along
memory and becomes vector instructions. A level's ``E`` numbers (at most 160) stay in the first
cache while all moves out of it are added. And a chain is applied to a level once (``z``), however
many choices and levels lead there: moves between levels then cost no products of matrices.

A file of its own beside :mod:`dynchoice.kernels.core`: numba's cache on disk does not see an edit
of a callee in another file, so kernels here call none from there (a test holds that); only the
decorators are shared.
"""

from __future__ import annotations

from math import inf, log

import numpy as np

from dynchoice.kernels.core import compiled, finite_vectors, fused, vectors

TINY = 1e-300
"""Least probability of an offered choice, as in :func:`dynchoice.kernels.core.soft_bellman`."""
_LOW = log(TINY) - 1.0
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93145751953125e-1, 1.42860682030941723212e-6
_ROUND = 1.5 * 2.0**52
"""Adding it leaves a number's integer part in the last bits."""
_SQRT_HALF = 0x3FE6A09E667F3BCD
"""Bits of the root of a half."""


@fused
def exponentials(x, scratch):
    """Overwrite ``x`` (m,), numbers up to 0, by ``exp(x)``, ``TINY`` at least.

    ``exp(k log 2 + r) = 2^k exp(r)`` with a Taylor polynomial in ``|r| <= log(2) / 2`` (next term
    4e-18) and ``2^k`` written as bits: four at a time, where the library's takes one. ``scratch``
    (m,). The last bit may differ from the library's.
    """
    # one loop a kind of arithmetic (floats, whole numbers, floats): each becomes vectors by itself.
    # ``scratch`` and ``bits`` are the same memory, so within one loop they would stand in the way
    bits = scratch.view(np.int64)
    for i in range(x.size):
        y = _LOW if x[i] < _LOW else x[i]  # keeps 2^k a normal number; TINY decides at the end
        shifted = y * _LOG2E + _ROUND
        scratch[i] = shifted
        k = shifted - _ROUND
        # log 2 in two parts: the first has so few digits that its product with k is exact
        x[i] = (y - k * _LN2_HIGH) - k * _LN2_LOW
    for i in range(x.size):
        bits[i] = (bits[i] << 52) + (1023 << 52)  # k, in the last bits, becomes the exponent
    for i in range(x.size):
        r = x[i]
        p = r * (1 / 6227020800) + 1 / 479001600
        p = p * r + 1 / 39916800
        p = p * r + 1 / 3628800
        p = p * r + 1 / 362880
        p = p * r + 1 / 40320
        p = p * r + 1 / 5040
        p = p * r + 1 / 720
        p = p * r + 1 / 120
        p = p * r + 1 / 24
        p = p * r + 1 / 6
        p = p * r + 1 / 2
        x[i] = max(((p * r) * r + r + 1.0) * scratch[i], TINY)


@fused
def logarithms(x, mantissa, exponent):
    """Overwrite ``x`` (m,), finite numbers from 1, by ``log(x)``; the others are scratch (m,).

    ``log(2^k m) = k log 2 + 2 artanh(s)``, ``s = (m - 1) / (m + 1)``, with ``m`` between the roots
    of a half and of two, where ten terms of the series are exact to 3e-17.
    """
    bits, own, k = x.view(np.int64), mantissa.view(np.int64), exponent.view(np.int64)
    # less the bits of the root of a half, the exponent's bits count from there
    for i in range(x.size):
        k[i] = (bits[i] - _SQRT_HALF) >> 52
    for i in range(x.size):
        own[i] = bits[i] - (k[i] << 52)
    for i in range(x.size):
        # the bits of 2^52 + k: a float without a conversion, for which many processors have no
        # vector instruction
        k[i] = k[i] + 0x4330000000000000
    for i in range(x.size):
        f = mantissa[i] - 1.0
        s = f / (2.0 + f)
        w = s * s
        p = w * (2 / 21) + 2 / 19
        p = p * w + 2 / 17
        p = p * w + 2 / 15
        p = p * w + 2 / 13
        p = p * w + 2 / 11
        p = p * w + 2 / 9
        p = p * w + 2 / 7
        p = p * w + 2 / 5
        p = p * w + 2 / 3
        power = exponent[i] - 4503599627370496.0  # less 2^52
        x[i] = power * _LN2_HIGH + (power * _LN2_LOW + s * (p * w) + 2.0 * s)


@vectors
def dot(a, b):
    """Return ``sum a b``."""
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@finite_vectors
def largest(x):
    """Return ``max |x|`` of finite numbers."""
    top = 0.0
    for i in range(x.size):
        size = abs(x[i])
        top = size if size > top else top
    return top


@vectors
def combine_rows(weights, rows, out):
    """Add ``sum_k weights[k] rows[k]`` into ``out`` (E,), eight rows at a time along memory.

    So each element of ``out`` is loaded and stored once for eight rows, and the partial sums do not
    wait for each other.
    """
    K = weights.size
    whole = K - K % 8
    for k in range(0, whole, 8):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        for e in range(out.size):
            first = w0 * rows[k, e] + w1 * rows[k + 1, e] + w2 * rows[k + 2, e]
            then = w3 * rows[k + 3, e] + w4 * rows[k + 4, e] + w5 * rows[k + 5, e]
            out[e] += first + then + (w6 * rows[k + 6, e] + w7 * rows[k + 7, e])
    for k in range(whole, K):
        w = weights[k]
        for e in range(out.size):
            out[e] += w * rows[k, e]


@vectors
def level_expect(x, ev, z, chains, graph):
    """Write ``ev[j, s] = E[x(s') | s, j]`` (J, n); ``z`` receives ``Q_l x(c)``."""
    Q, QT, chain, need, count = chains
    indptr, to, weight, order, rank, loops = graph
    L, C, E = z.shape
    J = ev.shape[0]
    for k in range(L):
        if 4 * count[k] > C:  # one product of matrices is faster where many levels are wanted
            np.dot(x.reshape(C, E), QT[k], z[k])
        else:
            for c in range(C):
                if need[k, c]:
                    z[k, c] = 0.0
                    combine_rows(x[c * E : c * E + E], QT[k], z[k, c])
    # the rest is independent of the level given the choice: E[x] = sum_c' R_j(c, c') Q_j x(c')
    for j in range(J):
        for c in range(C):
            values = ev[j, c * E : c * E + E]
            values[:] = 0.0
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, ahead = weight[q], z[chain[j], to[q]]
                for e in range(E):
                    values[e] += w * ahead[e]


@fused
def level_choice(v, V, pi, room):
    """Write logit probabilities ``pi`` of values ``v`` (J, n), and ``V = log sum_j exp v`` (n,).

    ``room`` is as large as ``pi``.
    """
    J, n = v.shape
    # V holds the largest value until the sum of exponentials of what is below it is known
    V[:] = v[0]
    for j in range(1, J):
        for s in range(n):
            V[s] = v[j, s] if v[j, s] > V[s] else V[s]
    for j in range(J):
        for s in range(n):
            pi[j, s] = v[j, s] - V[s]
        exponentials(pi[j], room[j])
    total = room[0]  # the exponentials are done with it
    total[:] = 0.0
    for j in range(J):
        for s in range(n):
            e = pi[j, s] if v[j, s] > -inf else 0.0  # TINY is for what is offered only
            pi[j, s] = e
            total[s] += e
    for j in range(J):
        for s in range(n):
            pi[j, s] /= total[s]
    # logarithms need two more rows of room, which two choices do not have
    if J > 2:
        logarithms(total, room[1], room[2])
    else:
        for s in range(n):
            total[s] = np.log(total[s])
    for s in range(n):
        V[s] += total[s]


@fused
def level_bellman(u, ev, beta, attention, default, v, V, pi, P):
    """:func:`dynchoice.kernels.core.soft_bellman` on arrays (J, n), by vectors of the processor.

    ``v = u + beta ev``, attentive ``pi``, policy ``P`` (J, n) and the operator ``V`` (n,).
    """
    J, n = u.shape
    for j in range(J):
        for s in range(n):
            v[j, s] = u[j, s] + beta * ev[j, s]
    level_choice(v, V, pi, P)  # P is room until it is written below
    for j in range(J):
        for s in range(n):
            P[j, s] = attention[s] * pi[j, s]
    for s in range(n):
        a = attention[s]
        if a < 1.0:
            P[default[s], s] += 1.0 - a
            V[s] = a * V[s] + (1.0 - a) * v[default[s], s]


@vectors
def level_factor(P, beta, W, lu, chains, graph):
    """Prepare sweeps at a policy ``P`` (J, n): ``W[j, c] = beta P_j`` (J, C, E) and, for levels
    that return to themselves, LU factors ``lu`` (C, E, E) of ``I - beta sum_j P_j R_j(c, c) Q_j``.

    Kept by column, ``lu[c, k]``, with the inverse of the pivot on the diagonal: every loop runs
    along memory. The matrices are diagonally dominant, so no pivoting is needed.
    """
    Q, QT, chain, need, count = chains
    indptr, to, weight, order, rank, loops = graph
    J, C, E = W.shape
    for c in range(C):
        for j in range(J):
            for e in range(E):
                W[j, c, e] = beta * P[j, c * E + e]
        if not loops[c]:
            continue
        # A[k] is column k of the matrix, so A[k, e] is its element (e, k)
        A = lu[c]
        A[:] = 0.0
        for k in range(E):
            A[k, k] = 1.0
        for j in range(J):
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if to[q] == c:
                    own, w = W[j, c], weight[q]
                    for k in range(E):
                        column, moves = A[k], QT[chain[j], k]
                        for e in range(E):
                            column[e] -= w * own[e] * moves[e]
        # elimination column by column: each later column loses its multiple of this one
        for k in range(E):
            A[k, k] = 1.0 / A[k, k]
            lower = A[k, k + 1 :]
            for i in range(lower.size):
                lower[i] *= A[k, k]
            for m in range(k + 1, E):
                factor, rest = A[m, k], A[m, k + 1 :]
                for i in range(rest.size):
                    rest[i] -= factor * lower[i]


@vectors
def level_sweep(v, y, out, z, W, lu, chains, graph):
    """Solve the part of ``I - beta F^P`` that a sweep over levels can, and apply the rest.

    ``y = M^{-1} v`` with ``M`` the moves to levels earlier in the sweep or to the level itself
    (block Gauss-Seidel), and ``out = (I - beta F^P) y = v - U y`` with ``U`` the other moves.
    An annual contract is a chain of twelve levels: a sweep runs through it at once.
    """
    Q, QT, chain, need, count = chains
    indptr, to, weight, order, rank, loops = graph
    J, C, E = W.shape
    # the right side of every level; moves to levels solved before are added to it in turn
    y[:] = v
    for i in range(C):
        c = order[i]
        own = y[c * E : c * E + E]
        for j in range(J):
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] < i:
                    w, policy, ahead = weight[q], W[j, c], z[chain[j], to[q]]
                    for e in range(E):
                        own[e] += w * policy[e] * ahead[e]
        # moves to the level itself: its factors forth and back, column by column along memory
        if loops[c]:
            for k in range(E):
                lower, rest, x = lu[c, k, k + 1 :], own[k + 1 :], own[k]
                for e in range(rest.size):
                    rest[e] -= x * lower[e]
            for back in range(E):
                k = E - 1 - back
                own[k] *= lu[c, k, k]
                upper, rest, x = lu[c, k, :k], own[:k], own[k]
                for e in range(rest.size):
                    rest[e] -= x * upper[e]
        # while the level's values are in the cache: its chains, for all levels that lead to it
        for k in range(z.shape[0]):
            if need[k, c]:
                z[k, c] = 0.0
                combine_rows(own, QT[k], z[k, c])
    # z is complete now, so what the sweep did not solve costs no products of matrices
    out[:] = v
    for c in range(C):
        own = out[c * E : c * E + E]
        for j in range(J):
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] > rank[c]:
                    w, policy, ahead = weight[q], W[j, c], z[chain[j], to[q]]
                    for e in range(E):
                        own[e] -= w * policy[e] * ahead[e]


@vectors
def level_gmres(b, goal, step, basis, swept, H, z, W, lu, chains, graph):
    """Solve ``(I - beta F^P) step = b`` up to a constant; return (residual, sweeps).

    GMRES (Saad and Schultz 1986) preconditioned from the right by :func:`level_sweep`, on vectors
    less their value at state 0: the constant, whose eigenvalue ``1 - beta`` would slow it, is
    projected out. ``basis`` (m + 1, n) and, preconditioned, ``swept`` (m, n); ``H`` (m + 2, m + 3):
    Hessenberg matrix, rotations and right side. ``W`` and ``lu`` come from :func:`level_factor`.
    After ``m`` sweeps it stops.
    """
    n, m = b.size, basis.shape[0] - 1
    step[:] = 0.0
    size = dot(b, b) ** 0.5
    used = 0
    if size <= goal:
        return size, used
    for s in range(n):
        basis[0, s] = b[s] / size
    H[0, m + 2] = size
    for k in range(m):
        w = basis[k + 1]
        level_sweep(basis[k], swept[k], w, z, W, lu, chains, graph)
        # orthogonal to the vectors before it (modified Gram-Schmidt), where it stays in the basis
        base = w[0]
        for s in range(n):
            w[s] -= base
        for i in range(k + 1):
            q = basis[i]
            h = dot(w, q)
            H[i, k] = h
            for s in range(n):
                w[s] -= h * q[s]
        h = dot(w, w) ** 0.5
        # Givens rotations keep H triangular: its right side then tells the residual of every step
        # without a solution (rotations in columns m and m + 1, the right side in column m + 2)
        for i in range(k):
            top, low = H[i, k], H[i + 1, k]
            H[i, k] = H[i, m] * top + H[i, m + 1] * low
            H[i + 1, k] = H[i, m] * low - H[i, m + 1] * top
        length = (H[k, k] ** 2 + h * h) ** 0.5
        if length == 0.0:
            break
        H[k, m], H[k, m + 1] = H[k, k] / length, h / length
        H[k, k] = length
        H[k + 1, m + 2] = -H[k, m + 1] * H[k, m + 2]
        H[k, m + 2] *= H[k, m]
        used = k + 1
        size = abs(H[used, m + 2])
        if size <= goal or h == 0.0:
            break
        for s in range(n):
            w[s] /= h
    # the coefficients, from the triangle; with the swept vectors kept, no sweep for the solution
    for back in range(used):
        k = used - 1 - back
        total = H[k, m + 2]
        for i in range(k + 1, used):
            total -= H[k, i] * H[i, m + 2]
        H[k, m + 2] = total / H[k, k]
    for k in range(used):
        q = swept[k]
        for s in range(n):
            step[s] += H[k, m + 2] * q[s]
    base = step[0]
    for s in range(n):
        step[s] -= base
    return size, used


@compiled
def level_solve(u, h, beta, attention, default, warm, tol, maxiter, pi, P, r, work, law):
    """Find the relative value ``h`` (n,); return (residual, gain, Newton steps, sweeps).

    Contraction steps while they halve the residual (unless ``warm``), then Newton steps by
    :func:`level_gmres`, solved as exactly as quadratic convergence needs: the algorithm of
    :func:`dynchoice.solvers.fixed_point.fixed_point` on a block that fits the cache. ``pi`` and
    ``P`` (J, n) receive the probabilities at the returned ``h``, ``P`` at the attention given.
    """
    ev, v, T, basis, swept, H, step, z, W, lu = work
    chains, graph = law
    n = h.size
    sweeps, steps, stalled = 0, 0, 0
    best, before = inf, inf
    contracting = not warm
    for trial in range(maxiter + 21):
        level_expect(h, ev, z, chains, graph)
        level_bellman(u, ev, beta, attention, default, v, T, pi, P)
        gain = T[0] - h[0]
        for s in range(n):
            r[s] = T[s] - h[s] - gain
        residual = largest(r) if dot(r, r) < inf else inf  # largest() would pass over a NaN
        top = largest(h)
        bound = tol * (1.0 + top)
        if residual <= bound or not residual < inf:
            break
        if contracting and trial < 20 and (trial == 0 or residual <= 0.5 * before):
            before = residual
            for s in range(n):
                h[s] = T[s] - T[0]
            continue
        contracting = False
        stalled = 0 if residual < best or steps < 8 else stalled + 1
        best = min(best, residual)
        # near the end two rises are rounding; far from it policies may still be on their way
        if steps >= maxiter or stalled >= (2 if residual < 1e-8 * (1.0 + top) else 10):
            break
        # an error of the linear solve as large as Newton's own does no harm
        goal = max(0.3 * bound, min(0.1, residual) * residual)
        level_factor(P, beta, W, lu, chains, graph)
        size, used = level_gmres(r, goal, step, basis, swept, H, z, W, lu, chains, graph)
        sweeps += used
        steps += 1
        base = h[0] + step[0]
        for s in range(n):
            h[s] += step[s] - base
    return residual / (1.0 + top), gain, steps, sweeps


@compiled
def level_solve_blocks(
    u,
    h,
    beta,
    attention,
    default,
    warm,
    tol,
    maxiter,
    active,
    pi,
    P,
    status,
    r,
    work,
    which,
    chains,
    graph,
):
    """:func:`level_solve` of every active block in one call.

    ``u``, ``pi``, ``P`` (B, J, n), ``h`` (B, n); ``status`` (B, 4) receives what each returns.
    ``which`` (B,) is each block's place in ``chains``, which here have one axis more, in front.
    """
    Q, QT, chain, need, count = chains
    for b in range(u.shape[0]):
        if active[b]:
            d = which[b]
            law = ((Q[d], QT[d], chain[d], need[d], count[d]), graph)
            found = level_solve(
                u[b],
                h[b],
                beta,
                attention[b],
                default[b],
                warm,
                tol,
                maxiter,
                pi[b],
                P[b],
                r,
                work,
                law,
            )
            status[b, 0], status[b, 1], status[b, 2], status[b, 3] = found


@vectors
def level_push(mu, P, out, z, main, cells, chains, graph):
    """Write ``out(s') = sum_{s,j} mu(s) P(s, j) F(s' | s, j)`` (n,), with ``P`` (J, n).

    Adds the mass that chooses ``j`` at level ``c`` in states where ``main`` (n,) is 1 into
    ``cells[group(c), j]``; ``main`` = (mask (n,), group of each level (C,)).
    """
    Q, QT, chain, need, count = chains
    indptr, to, weight, order, rank, loops = graph
    mask, group = main
    L, C, E = z.shape
    J = P.shape[0]
    # z collects, by chain and next level, the mass before its chain moves it: a product a level and
    # chain in the end, instead of one a move. The chain with most levels is the first
    z[:] = 0.0
    first = 0
    for k in range(1, L):
        first = k if count[k] > count[first] else first
    for c in range(C):
        mass, counted = mu[c * E : c * E + E], mask[c * E : c * E + E]
        for j in range(J):
            start, stop = indptr[c * J + j], indptr[c * J + j + 1]
            if start == stop:  # not offered
                continue
            policy = P[j, c * E : c * E + E]
            # the first next level apart: who chooses j is counted once, not for every next level
            w, there, total = weight[start], z[chain[j], to[start]], 0.0
            for e in range(E):
                m = mass[e] * policy[e]
                there[e] += w * m
                total += counted[e] * m
            cells[group[c], j] += total
            for q in range(start + 1, stop):
                w, there = weight[q], z[chain[j], to[q]]
                for e in range(E):
                    there[e] += w * (mass[e] * policy[e])
    # the first chain as one product of matrices, which overwrites out; the others are added to it
    # where they are wanted
    np.dot(z[first], Q[first], out.reshape(C, E))
    for k in range(L):
        if k != first:
            for c in range(C):
                if need[k, c]:
                    combine_rows(z[k, c], Q[k], out[c * E : c * E + E])


@vectors
def level_path(mu, P, periods, worth, group, main, others, cells, values, z, out, chains, graph):
    """Push a distribution ``mu`` (n,) for some periods, adding up who chooses what.

    Adds ``mu P`` into ``cells[t, group(s), j]`` (``others`` are the states that ``main`` of
    :func:`level_push` leaves out) and ``mu_t . worth[m]`` into ``values[t, m]`` for ``t = 0 ..
    periods``; ``mu`` is moved on by all of them. ``P`` is (J, n).
    """
    J = P.shape[0]
    for t in range(periods):
        for m in range(worth.shape[0]):
            values[t, m] += dot(mu, worth[m])
        for s in others:
            for j in range(J):
                cells[t, group[s], j] += mu[s] * P[j, s]
        level_push(mu, P, out, z, main, cells[t], chains, graph)
        mu[:] = out
    for m in range(worth.shape[0]):
        values[periods, m] += dot(mu, worth[m])


@compiled
def level_path_blocks(
    mu, P, periods, worth, group, main, others, cells, values, z, out, which, chains, graph
):
    """:func:`level_path` of every block where somebody stands, in one call.

    ``mu`` (B, n), ``P`` (B, J, n), ``worth`` (B, M, n); ``cells`` (periods, B, groups, J), so that
    a period's are together, and ``values`` (B, periods + 1, M).
    """
    Q, QT, chain, need, count = chains
    for b in range(mu.shape[0]):
        if mu[b].max() > 0.0:
            d = which[b]
            level_path(
                mu[b],
                P[b],
                periods,
                worth[b],
                group,
                main,
                others,
                cells[:, b],
                values[b],
                z,
                out,
                (Q[d], QT[d], chain[d], need[d], count[d]),
                graph,
            )
