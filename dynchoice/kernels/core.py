"""The numba code of the package: free functions on arrays, and the decorators of all kernels.

Numba's cache on disk does not see an edit of a callee in another file, so no kernel calls one of
another file (a test holds that); models solved by level or product have files of their own.
Kernels do not validate, hold no objects and allocate nothing in their loops; what they write is
passed in as ``out`` arrays. Letters as everywhere: ``S`` states, ``J`` choices, ``K`` parameters.
``u`` may be minus infinity where a choice is not offered; every state has a finite choice.
Each kernel has a plain NumPy twin in ``tests/oracles.py``.
"""

from __future__ import annotations

from math import exp, inf, log
from pathlib import Path

import numba
import numpy as np
from numba import njit

from dynchoice.kernels.cache import folder

INTERPRETED = bool(numba.config.DISABLE_JIT)
"""With ``NUMBA_DISABLE_JIT=1`` kernels are plain Python over NumPy arrays: a first fit of a hundred
states takes 0.1 s that way, where compiling would take seconds."""
TINY = 1e-300
"""Least probability of an offered choice: a saturated logit keeps its gradient."""
_FOLDER = folder(Path(__file__).parent)
if _FOLDER is not None:
    numba.config.CACHE_DIR = _FOLDER
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
compiled = njit(**_OPTIONS)
"""Decorators of all kernels: numba is imported here alone."""
fused = njit(**_OPTIONS, fastmath={"contract"})
"""Products may be fused with sums: they are rounded once instead of twice."""
vectors = njit(**_OPTIONS, fastmath={"contract", "reassoc"})
"""Sums may be taken in the order that vectors of the processor want; NaN stays NaN."""
finite_vectors = njit(**_OPTIONS, fastmath={"nnan", "nsz", "reassoc"})
"""For numbers that the caller knows to be finite."""


@compiled
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
        # less the largest value, so that no exponential overflows; the largest itself needs none
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


@compiled
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


@compiled
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
            if p != 0.0:  # of choices that are not offered, rows are long and change nothing
                row = s * J + j
                for q in range(indptr[row], indptr[row + 1]):
                    A[local[indices[q]], i] -= p * data[q]


@compiled
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


@compiled
def expect_stacked(indptr, indices, data, V, out):
    """Write ``out[row] = sum_s' F[row, s'] V(s')`` for stacked CSR rows ``s * J + j``."""
    for row in range(indptr.size - 1):
        total = 0.0
        for q in range(indptr[row], indptr[row + 1]):
            total += data[q] * V[indices[q]]
        out[row] = total


@compiled
def expect_stacked_many(indptr, indices, data, V, out):
    """Write ``out[row, k] = sum_s' F[row, s'] V(s', k)`` for ``V`` (S, K)."""
    K = V.shape[1]
    for row in range(indptr.size - 1):
        for k in range(K):
            out[row, k] = 0.0
        # next states outside, columns inside: the K values of a state stand together
        for q in range(indptr[row], indptr[row + 1]):
            d = data[q]
            t = indices[q]
            for k in range(K):
                out[row, k] += d * V[t, k]


@compiled
def push_stacked(indptr, indices, data, m, out):
    """Add ``sum_rows m[row] F[row, s']`` into ``out`` (S,): the adjoint of ``expect_stacked``."""
    for row in range(indptr.size - 1):
        w = m[row]
        if w != 0.0:
            for q in range(indptr[row], indptr[row + 1]):
                out[indices[q]] += w * data[q]


@compiled
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


@compiled
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


@compiled
def gather_axis(X, following, gpre, gpost, out):
    """Write ``out[p, i, q] = X[p, following[g, i], q]``: a deterministic law of motion."""
    pre, n, post = X.shape
    for p in range(pre):
        for i in range(n):
            for q in range(post):
                out[p, i, q] = X[p, following[gpre[p] + gpost[q], i], q]


@compiled
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


@compiled
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


@compiled
def log_ccp_derivative(pi, P, attention, default, dv, out):
    """Write the derivatives of ``log P(j|s)``, (S, J, K), from those of ``v``.

    ``d log pi_j = dv_j - sum_i pi_i dv_i``; at the default choice of an inattentive state
    ``d log P_d = (a pi_d / P_d) d log pi_d`` (SOURCES.md 7.3). Rows with ``pi = 0`` get zero.
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


@compiled
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


@compiled
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
                    for m in range(k + 1):  # the other half is the same: copied at the end
                        outer[k, m] += w * dlogp[s, j, m]
    for k in range(K):
        for m in range(k):
            outer[m, k] = outer[k, m]


@compiled
def weighted_choice_covariance(w, pi, dv, out):
    """Add ``sum_s w(s) Cov_pi(s)[dv]`` into ``out`` (K, K), ``dv`` (S, J, K)."""
    S, J, K = dv.shape
    mean, gap = np.empty(K), np.empty(K)
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
                    gap[k] = dv[s, j, k] - mean[k]
                for k in range(K):
                    z = c * gap[k]
                    for m in range(k + 1):
                        out[k, m] += z * gap[m]
    for k in range(K):
        for m in range(k):
            out[m, k] = out[k, m]


@compiled
def policy_average(P, x, out):
    """Write ``sum_j P_j x_j`` (S, K) of features or derivatives ``x`` (S, J, K)."""
    S, J, K = x.shape
    for s in range(S):
        for k in range(K):
            out[s, k] = P[s, 0] * x[s, 0, k]
        for j in range(1, J):
            p = P[s, j]
            for k in range(K):
                out[s, k] += p * x[s, j, k]


@compiled
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
    last = cdf_choice.shape[0] - 1  # one table serves all periods, or the last one goes on
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


@compiled
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
