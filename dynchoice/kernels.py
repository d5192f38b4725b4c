"""All numba code of the package: free functions on arrays, in one file.

One file because numba's cache on disk does not see an edit of a callee in another file.
Kernels do not validate, hold no objects and allocate nothing in their loops; what they write is
passed in as ``out`` arrays. Letters as everywhere: ``S`` states, ``J`` choices, ``K`` parameters.
``u`` may be minus infinity where a choice is not offered; every state has a finite choice.
Each kernel has a plain NumPy twin in ``tests/oracles.py``.
"""

from __future__ import annotations

from math import exp, inf, log

import numpy as np
from numba import njit

TINY = 1e-300
"""Least probability of an offered choice: a saturated logit keeps its gradient."""
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_OPTIONS)
def soft_bellman(u, ev, beta, attention, default, v, V, pi, P):
    """Write ``v = u + beta ev``, attentive ``pi``, observed ``P`` (S, J) and ``V`` (S,).

    ``V = a logsum(v) + (1 - a) v_default`` and ``P = a pi + (1 - a) 1{default}``; with
    ``a = 1`` these are the mean-zero-shock soft Bellman operator and the softmax.
    """
    S, J = u.shape
    for s in range(S):
        top = -inf
        for j in range(J):
            value = u[s, j] + beta * ev[s, j]
            v[s, j] = value
            if value > top:
                top = value
        total = 0.0
        for j in range(J):
            gap = v[s, j] - top
            e = 1.0
            if gap == -inf:
                e = 0.0
            elif gap < 0.0:
                e = max(exp(gap), TINY)
            pi[s, j] = e
            total += e
        logsum = top + log(total)
        scale = 1.0 / total
        a = attention[s]
        if a == 1.0:
            for j in range(J):
                pi[s, j] *= scale
                P[s, j] = pi[s, j]
            V[s] = logsum
        else:
            for j in range(J):
                pi[s, j] *= scale
                P[s, j] = a * pi[s, j]
            d = default[s]
            P[s, d] += 1.0 - a
            V[s] = a * logsum + (1.0 - a) * v[s, d]


@njit(**_OPTIONS)
def relative_residual(T, h, root, gain, r):
    """Write ``r = T - h - gain`` with ``gain = (T - h)[root]``, and return ``max|r|``.

    ``T`` is the operator applied to the relative value ``h`` (zero at each block's root state),
    ``root`` (S,) names the root of each state's block and ``gain`` (S,) is ``(1 - beta)`` times
    the level of the block.
    """
    worst = 0.0
    for s in range(T.size):
        gain[s] = T[root[s]] - h[root[s]]
        r[s] = T[s] - h[s] - gain[s]
        if abs(r[s]) > worst:
            worst = abs(r[s])
        elif r[s] != r[s]:  # not a number compares with nothing, and converges to nothing
            worst = inf
    return worst


@njit(**_OPTIONS)
def policy_blocks(indptr, indices, data, P, beta, order, local, start, size, A):
    """Write the dense block ``I - beta sum_j P_j F_j`` of states ``order[start:start+size]``.

    ``F`` is stacked CSR, row ``s * J + j``. ``A`` (n, n) receives the block **transposed**, so
    that its memory is the Fortran order that LAPACK wants. Column ``local[s_next]`` of the block.
    """
    J = P.shape[1]
    for i in range(size):
        for k in range(size):
            A[i, k] = 0.0
    for i in range(size):
        s = order[start + i]
        A[i, i] += 1.0
        for j in range(J):
            p = beta * P[s, j]
            if p != 0.0:
                row = s * J + j
                for q in range(indptr[row], indptr[row + 1]):
                    A[local[indices[q]], i] -= p * data[q]


@njit(**_OPTIONS)
def policy_data(indptr, data, target, P, scale, out):
    """Add ``scale * P[s, j] * F[s, j, .]`` into ``out[target]``, the data of a fixed pattern."""
    S, J = P.shape
    for s in range(S):
        for j in range(J):
            p = scale * P[s, j]
            if p != 0.0:
                row = s * J + j
                for q in range(indptr[row], indptr[row + 1]):
                    out[target[q]] += p * data[q]


@njit(**_OPTIONS)
def expect_stacked(indptr, indices, data, V, out):
    """Write ``out[row] = sum_s' F[row, s'] V(s')`` for stacked CSR rows ``s * J + j``."""
    for row in range(indptr.size - 1):
        total = 0.0
        for q in range(indptr[row], indptr[row + 1]):
            total += data[q] * V[indices[q]]
        out[row] = total


@njit(**_OPTIONS)
def expect_stacked_many(indptr, indices, data, V, out):
    """Write ``out[row, k] = sum_s' F[row, s'] V(s', k)`` for ``V`` (S, K)."""
    K = V.shape[1]
    for row in range(indptr.size - 1):
        for k in range(K):
            out[row, k] = 0.0
        for q in range(indptr[row], indptr[row + 1]):
            d = data[q]
            t = indices[q]
            for k in range(K):
                out[row, k] += d * V[t, k]


@njit(**_OPTIONS)
def push_stacked(indptr, indices, data, m, out):
    """Add ``sum_rows m[row] F[row, s']`` into ``out`` (S,): the adjoint of ``expect_stacked``."""
    for row in range(indptr.size - 1):
        w = m[row]
        if w != 0.0:
            for q in range(indptr[row], indptr[row + 1]):
                out[indices[q]] += w * data[q]


@njit(**_OPTIONS)
def contract_axis(X, table, gpre, gpost, out):
    """Write ``out[p, i, q] = sum_k table[g, i, k] X[p, k, q]``, ``g = gpre[p] + gpost[q]``.

    One law of motion of a factored transition: ``X`` (pre, n, post) holds the axis at its next
    level, ``out`` at its current one; ``g`` numbers the levels of the law's parents.
    """
    pre, n, post = X.shape
    for p in range(pre):
        for i in range(n):
            for q in range(post):
                out[p, i, q] = 0.0
            for k in range(n):
                for q in range(post):
                    out[p, i, q] += table[gpre[p] + gpost[q], i, k] * X[p, k, q]


@njit(**_OPTIONS)
def contract_axis_adjoint(Y, table, gpre, gpost, out):
    """Write ``out[p, k, q] = sum_i table[g, i, k] Y[p, i, q]``: adjoint of ``contract_axis``."""
    pre, n, post = Y.shape
    for p in range(pre):
        for k in range(n):
            for q in range(post):
                out[p, k, q] = 0.0
        for i in range(n):
            for k in range(n):
                for q in range(post):
                    out[p, k, q] += table[gpre[p] + gpost[q], i, k] * Y[p, i, q]


@njit(**_OPTIONS)
def gather_axis(X, following, gpre, gpost, out):
    """Write ``out[p, i, q] = X[p, following[g, i], q]``: a deterministic law of motion."""
    pre, n, post = X.shape
    for p in range(pre):
        for i in range(n):
            for q in range(post):
                out[p, i, q] = X[p, following[gpre[p] + gpost[q], i], q]


@njit(**_OPTIONS)
def gather_axis_adjoint(Y, following, gpre, gpost, out):
    """Write ``out[p, k, q] = sum_i Y[p, i, q] 1{following[g, i] = k}``."""
    pre, n, post = Y.shape
    for p in range(pre):
        for k in range(n):
            for q in range(post):
                out[p, k, q] = 0.0
        for i in range(n):
            for q in range(post):
                out[p, following[gpre[p] + gpost[q], i], q] += Y[p, i, q]


@njit(**_OPTIONS)
def law_gradient(Y, X, gpre, gpost, out):
    """Add ``Y[p, i, q] X[p, k, q]`` into ``out[g, i, k]``: derivative by a law's table.

    ``Y`` is the adjoint flowing into the law's output, ``X`` what the law was applied to.
    """
    pre, n, post = X.shape
    for p in range(pre):
        for i in range(n):
            for k in range(n):
                for q in range(post):
                    out[gpre[p] + gpost[q], i, k] += Y[p, i, q] * X[p, k, q]


@njit(**_OPTIONS)
def log_ccp_derivative(pi, P, attention, default, dv, out):
    """Write the derivatives of ``log P(j|s)``, (S, J, K), from those of ``v``.

    ``d log pi_j = dv_j - sum_i pi_i dv_i``; at the default choice of an inattentive state
    ``d log P_d = (a pi_d / P_d) d log pi_d`` (papers.md 7.3). Rows with ``pi = 0`` get zero.
    """
    S, J, K = dv.shape
    mean = np.empty(K)
    for s in range(S):
        for k in range(K):
            mean[k] = 0.0
        for j in range(J):
            if pi[s, j] > 0.0:
                for k in range(K):
                    mean[k] += pi[s, j] * dv[s, j, k]
        a = attention[s]
        for j in range(J):
            if pi[s, j] > 0.0:
                w = 1.0
                if a != 1.0 and j == default[s]:
                    w = a * pi[s, j] / P[s, j]
                for k in range(K):
                    out[s, j, k] = w * (dv[s, j, k] - mean[k])
            else:
                for k in range(K):
                    out[s, j, k] = 0.0


@njit(**_OPTIONS)
def log_likelihood(n, P, v, attention):
    """Return ``sum n log P`` over cells with counts.

    Where ``P`` has underflowed the logarithm comes from the values ``v`` (S, J) themselves, so
    that a saturated logit still climbs.
    """
    total = 0.0
    S, J = n.shape
    for s in range(S):
        for j in range(J):
            if n[s, j] > 0.0:
                if P[s, j] > 1e-290:
                    total += n[s, j] * log(P[s, j])
                else:
                    top = -inf
                    for i in range(J):
                        top = max(top, v[s, i])
                    mass = 0.0
                    for i in range(J):
                        mass += exp(v[s, i] - top)
                    log_pi = v[s, j] - top - log(mass)
                    total += n[s, j] * (log_pi + log(attention[s]))
    return total


@njit(**_OPTIONS)
def score_and_outer(n, dlogp, score, outer):
    """Add ``sum n dlogp`` into ``score`` (K,) and ``sum n dlogp dlogp'`` into ``outer`` (K, K)."""
    S, J, K = dlogp.shape
    for s in range(S):
        for j in range(J):
            c = n[s, j]
            if c != 0.0:
                for k in range(K):
                    w = c * dlogp[s, j, k]
                    score[k] += w
                    for m in range(k + 1):
                        outer[k, m] += w * dlogp[s, j, m]
    for k in range(K):
        for m in range(k):
            outer[m, k] = outer[k, m]


@njit(**_OPTIONS)
def weighted_choice_covariance(w, pi, dv, out):
    """Add ``sum_s w(s) Cov_pi(s)[dv]`` into ``out`` (K, K), ``dv`` (S, J, K)."""
    S, J, K = dv.shape
    mean = np.empty(K)
    for s in range(S):
        if w[s] == 0.0:
            continue
        for k in range(K):
            mean[k] = 0.0
        for j in range(J):
            if pi[s, j] > 0.0:
                for k in range(K):
                    mean[k] += pi[s, j] * dv[s, j, k]
        for j in range(J):
            if pi[s, j] > 0.0:
                c = w[s] * pi[s, j]
                for k in range(K):
                    z = c * (dv[s, j, k] - mean[k])
                    for m in range(K):
                        out[k, m] += z * (dv[s, j, m] - mean[m])


@njit(**_OPTIONS)
def simulate_members(
    start, cdf_choice, indptr, indices, cdf_next, draws, first, states, choices, after
):
    """Write the paths of members, (members, T): state, then choice, then next state.

    ``cdf_choice`` (T or 1, S, J) and ``cdf_next`` (stacked CSR data, cumulated by row) are
    cumulative; ``draws`` (members, T, 2) are uniforms; ``first`` is the first period's number;
    ``after`` (members,) receives the state after the last period.
    """
    members, T = states.shape
    J = cdf_choice.shape[2]
    last = cdf_choice.shape[0] - 1
    for i in range(members):
        s = start[i]
        for t in range(T):
            states[i, t] = s
            table = min(first + t, last)
            j = 0
            while j < J - 1 and draws[i, t, 0] >= cdf_choice[table, s, j]:
                j += 1
            choices[i, t] = j
            row = s * J + j
            q = indptr[row]
            stop = indptr[row + 1] - 1
            while q < stop and draws[i, t, 1] >= cdf_next[q]:
                q += 1
            s = indices[q]
        after[i] = s


@njit(**_OPTIONS)
def path_values(start, cdf_choice, indptr, indices, cdf_next, draws, flows, beta, out):
    """Add discounted flows of one path from every state of ``start`` into ``out`` (states, K).

    A path earns ``beta^t flows`` of the state it stands in, chooses by ``cdf_choice`` (S, J) and
    moves. ``draws`` (T, 2) are uniforms shared by all states: the choice's and the move's.
    """
    J = cdf_choice.shape[1]
    K = flows.shape[1]
    for i in range(start.size):
        s = start[i]
        weight = 1.0
        for t in range(draws.shape[0]):
            for k in range(K):
                out[i, k] += weight * flows[s, k]
            weight *= beta
            j = 0
            while j < J - 1 and draws[t, 0] >= cdf_choice[s, j]:
                j += 1
            row = s * J + j
            q = indptr[row]
            stop = indptr[row + 1] - 1
            while q < stop and draws[t, 1] >= cdf_next[q]:
                q += 1
            s = indices[q]


@njit(**_OPTIONS)
def dot(a, b):
    """Return ``sum a b`` with four running sums: the compiler may not reorder one."""
    n = a.size
    t0 = t1 = t2 = t3 = 0.0
    m = n - n % 4
    for i in range(0, m, 4):
        t0 += a[i] * b[i]
        t1 += a[i + 1] * b[i + 1]
        t2 += a[i + 2] * b[i + 2]
        t3 += a[i + 3] * b[i + 3]
    for i in range(m, n):
        t0 += a[i] * b[i]
    return (t0 + t1) + (t2 + t3)


@njit(**_OPTIONS)
def combine_rows(weights, rows, out):
    """Add ``sum_k weights[k] rows[k]`` into ``out`` (E,), four rows at a time along memory."""
    K = weights.size
    whole = K - K % 4
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        for e in range(out.size):
            out[e] += (w0 * r0[e] + w1 * r1[e]) + (w2 * r2[e] + w3 * r3[e])
    for k in range(whole, K):
        w, row = weights[k], rows[k]
        for e in range(out.size):
            out[e] += w * row[e]


@njit(**_OPTIONS)
def level_expect(x, ev, z, chains, graph):
    """Write ``ev[s, j] = E[x(s') | s, j]`` (n, J) where levels and the rest move independently.

    States are ``s = c E + e``: level ``c`` moves along a graph, the rest ``e`` by a chain.
    ``chains`` = (Q (L, E, E), its transposes, chain of each choice (J,), need (L, C)); ``graph`` =
    (indptr (C J + 1,) over rows ``c J + j``, next level, probability, order of a sweep, rank in
    it, whether a level returns to itself). ``z`` (L, C, E) receives ``Q_l x(c)``.
    """
    Q, QT, chain, need = chains
    indptr, to, weight, order, rank, loops = graph
    L, C, E = z.shape
    J = ev.shape[1]
    for k in range(L):
        if 4 * need[k].sum() > C:  # one product of matrices, where most levels are wanted
            np.dot(x.reshape(C, E), QT[k], z[k])
        else:
            for c in range(C):
                if need[k, c]:
                    z[k, c] = 0.0
                    combine_rows(x[c * E : c * E + E], QT[k], z[k, c])
    for c in range(C):
        for j in range(J):
            row = c * J + j
            values = ev[c * E : c * E + E]
            for e in range(E):
                values[e, j] = 0.0
            for q in range(indptr[row], indptr[row + 1]):
                w, ahead = weight[q], z[chain[j], to[q]]
                for e in range(E):
                    values[e, j] += w * ahead[e]


@njit(**_OPTIONS)
def level_factor(P, beta, W, lu, chains, graph):
    """Prepare sweeps at a policy: ``W[j, c] = beta P_j`` (J, C, E) and, for levels that return to
    themselves, LU factors ``lu`` (C, E, E) of ``I - beta sum_j P_j R_j(c, c) Q_j``.

    Kept by column, ``lu[c, k]``, with the inverse of the pivot on the diagonal: every loop runs
    along memory. The matrices are diagonally dominant, so no pivoting is needed.
    """
    Q, QT, chain, need = chains
    indptr, to, weight, order, rank, loops = graph
    J, C, E = W.shape
    for c in range(C):
        for j in range(J):
            own = W[j, c]
            for e in range(E):
                own[e] = beta * P[c * E + e, j]
        if not loops[c]:
            continue
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
        for k in range(E):
            A[k, k] = 1.0 / A[k, k]
            lower = A[k, k + 1 :]
            for i in range(lower.size):
                lower[i] *= A[k, k]
            for m in range(k + 1, E):
                factor, rest = A[m, k], A[m, k + 1 :]
                for i in range(rest.size):
                    rest[i] -= factor * lower[i]


@njit(**_OPTIONS)
def level_sweep(v, y, out, z, W, lu, chains, graph):
    """Solve the part of ``I - beta F^P`` that a sweep over levels can, and apply the rest.

    ``y = M^{-1} v`` with ``M`` the moves to levels earlier in the sweep or to the level itself
    (block Gauss-Seidel), and ``out = (I - beta F^P) y = v - U y`` with ``U`` the other moves.
    An annual contract is a chain of twelve levels: a sweep runs through it at once.
    """
    Q, QT, chain, need = chains
    indptr, to, weight, order, rank, loops = graph
    J, C, E = W.shape
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
        for k in range(z.shape[0]):
            if need[k, c]:
                z[k, c] = 0.0
                combine_rows(own, QT[k], z[k, c])
    out[:] = v
    for c in range(C):
        own = out[c * E : c * E + E]
        for j in range(J):
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                if rank[to[q]] > rank[c]:
                    w, policy, ahead = weight[q], W[j, c], z[chain[j], to[q]]
                    for e in range(E):
                        own[e] -= w * policy[e] * ahead[e]


@njit(**_OPTIONS)
def level_gmres(b, goal, step, basis, H, y, z, W, lu, chains, graph):
    """Solve ``(I - beta F^P) step = b`` up to a constant; return (residual, sweeps).

    GMRES (Saad and Schultz 1986) preconditioned from the right by :func:`level_sweep`, on vectors
    less their value at state 0: the constant, whose eigenvalue ``1 - beta`` would slow it, is
    projected out. ``basis`` (m + 1, n), ``H`` (m + 2, m + 3): Hessenberg matrix, rotations and
    right side. ``W`` and ``lu`` come from :func:`level_factor`. After ``m`` sweeps it stops.
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
        level_sweep(basis[k], y, w, z, W, lu, chains, graph)
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
    for back in range(used):
        k = used - 1 - back
        total = H[k, m + 2]
        for i in range(k + 1, used):
            total -= H[k, i] * H[i, m + 2]
        H[k, m + 2] = total / H[k, k]
    for k in range(used):
        q = basis[k]
        for s in range(n):
            step[s] += H[k, m + 2] * q[s]
    level_sweep(step, y, basis[0], z, W, lu, chains, graph)
    base = y[0]
    for s in range(n):
        step[s] = y[s] - base
    return size, used


@njit(**_OPTIONS)
def level_solve(u, h, beta, attention, default, warm, tol, maxiter, v, T, pi, P, r, work, law):
    """Find the relative value ``h`` (n,); return (residual, gain, Newton steps, sweeps).

    Contraction steps while they halve the residual (unless ``warm``), then Newton steps by
    :func:`level_gmres`, solved as exactly as quadratic convergence needs: the algorithm of
    :func:`dynchoice.solve.infinite.fixed_point` on a block that fits the cache. The arrays hold
    the operator at the returned ``h``; ``P`` is the policy at the attention given.
    """
    ev, basis, H, y, step, z, W, lu = work
    chains, graph = law
    n = h.size
    sweeps, steps, stalled = 0, 0, 0
    best, before = inf, inf
    contracting = not warm
    for trial in range(maxiter + 21):
        level_expect(h, ev, z, chains, graph)
        soft_bellman(u, ev, beta, attention, default, v, T, pi, P)
        gain = T[0] - h[0]
        residual = 0.0
        top = 0.0
        for s in range(n):
            r[s] = T[s] - h[s] - gain
            residual = max(residual, abs(r[s])) if r[s] == r[s] else inf
            top = max(top, abs(h[s]))
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
        goal = max(0.1 * bound, min(0.1, residual) * residual)
        level_factor(P, beta, W, lu, chains, graph)
        size, used = level_gmres(r, goal, step, basis, H, y, z, W, lu, chains, graph)
        sweeps += used
        steps += 1
        base = h[0] + step[0]
        for s in range(n):
            h[s] += step[s] - base
    return residual / (1.0 + top), gain, steps, sweeps


@njit(**_OPTIONS)
def level_push(mu, PT, out, z, chains, graph):
    """Write ``out(s') = sum_{s,j} mu(s) P(s, j) F(s' | s, j)`` (n,); ``PT`` (J, n) is ``P'``."""
    Q, QT, chain, need = chains
    indptr, to, weight, order, rank, loops = graph
    L, C, E = z.shape
    J = PT.shape[0]
    z[:] = 0.0
    first = need.sum(axis=1).argmax()
    for c in range(C):
        mass = mu[c * E : c * E + E]
        for j in range(J):
            policy = PT[j, c * E : c * E + E]
            for q in range(indptr[c * J + j], indptr[c * J + j + 1]):
                w, there = weight[q], z[chain[j], to[q]]
                for e in range(E):
                    there[e] += w * mass[e] * policy[e]
    # the first chain as one product of matrices, the others where they are wanted
    np.dot(z[first], Q[first], out.reshape(C, E))
    for k in range(L):
        if k != first:
            for c in range(C):
                if need[k, c]:
                    combine_rows(z[k, c], Q[k], out[c * E : c * E + E])


@njit(**_OPTIONS)
def level_path(mu, PT, periods, worth, group, cells, users, values, z, out, chains, graph):
    """Push a distribution ``mu`` (n,) for some periods, adding up who chooses what.

    Adds ``mu P`` into ``cells[t, group(s), j]`` and, over levels, into ``users[t, j, e]``;
    ``values[t] += mu . worth`` for ``t = 0 .. periods``; ``mu`` is moved on by all of them.
    """
    J = PT.shape[0]
    E = users.shape[2]
    chosen = out[:E]
    for t in range(periods):
        values[t] += dot(mu, worth)
        table = cells[t]
        for first in range(0, mu.size, E):
            mass, codes = mu[first : first + E], group[first : first + E]
            for j in range(J):
                policy, user = PT[j, first : first + E], users[t, j]
                for e in range(E):
                    chosen[e] = mass[e] * policy[e]
                    user[e] += chosen[e]
                own = codes[0]
                total = 0.0
                for e in range(E):
                    if codes[e] == own:
                        total += chosen[e]
                    else:
                        table[codes[e], j] += chosen[e]
                table[own, j] += total
        level_push(mu, PT, out, z, chains, graph)
        mu[:] = out
    values[periods] += dot(mu, worth)
