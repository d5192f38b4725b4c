"""Numba code of callouts: probit updates, sampled rankings, re-ranking, layouts.

Rows of features are ``index`` (n, A), the positions of a row's active features (-1: none there),
and ``value`` (n, A). A *cell* is a row with its outcomes: ``clicks`` and ``fails`` whose answer is
known, and ``open_`` impressions without a click so far, by now due with probability ``due``; its
likelihood at linear predictor ``z`` is ``Phi(z)^clicks Phi(-z)^fails (1 - due Phi(z))^open_``.

A file of its own: see :mod:`dynchoice.kernels.levels`.
"""

from __future__ import annotations

from math import erfc, exp, log, log1p, sqrt

import numpy as np

from dynchoice.kernels.core import compiled

ROOT2, DENSITY = sqrt(2.0), 0.3989422804014327
LOG_ROOT_2PI = 0.9189385332046727
FAR = -25.0
"""Below it the normal tail is taken from its asymptotic series: erfc would lose its digits."""
LEAST_VARIANCE = 1e-12


@compiled
def log_normal_cdf(t):
    """Return ``log Phi(t)``."""
    if t > FAR:
        return log(0.5 * erfc(-t / ROOT2))
    r = 1.0 / (t * t)
    return -0.5 * t * t - LOG_ROOT_2PI - log(-t) + log1p(-r + 3 * r * r - 15 * r * r * r)


@compiled
def mills(t):
    """Return ``phi(t) / Phi(t)``."""
    if t > FAR:
        return DENSITY * exp(-0.5 * t * t) / (0.5 * erfc(-t / ROOT2))
    r = 1.0 / (t * t)
    return -t / (1.0 - r + 3 * r * r - 15 * r * r * r)


@compiled
def cell_slopes(z, clicks, fails, open_, due):
    """Return the log-likelihood of a cell at ``z``, its slope and its curvature's lower bound."""
    value, slope, curve = 0.0, 0.0, 0.0
    if clicks > 0:
        r = mills(z)
        value += clicks * log_normal_cdf(z)
        slope += clicks * r
        curve += clicks * r * (r + z)
    if fails > 0:
        r = mills(-z)
        value += fails * log_normal_cdf(-z)
        slope -= fails * r
        curve += fails * r * (r - z)
    if open_ > 0:
        rest = 1.0 - due * 0.5 * erfc(-z / ROOT2)
        r = due * DENSITY * exp(-0.5 * z * z) / rest
        value += open_ * log(rest)
        slope -= open_ * r
        curve += open_ * max(0.0, r * (r - z))
    return value, slope, curve


@compiled
def cell_moments(clicks, fails, open_, due, mean, var, nodes, weights):
    """Return log evidence, mean and variance of ``N(z; mean, var)`` times a cell's likelihood.

    Adaptive Gauss-Hermite quadrature around the mode; one observation has a closed form (Graepel et
    al. 2010; with ``due`` the factor is ``1 - due + due Phi(-z)``).
    """
    if clicks + fails + open_ == 1.0 and (clicks == 1.0 or fails == 1.0 or open_ == 1.0):
        s = sqrt(1.0 + var)
        if clicks == 1.0:
            t = mean / s
            nu, evidence = mills(t), log_normal_cdf(t)
            omega, sign = nu * (nu + t), 1.0
        elif fails == 1.0:
            t = -mean / s
            nu, evidence = mills(t), log_normal_cdf(t)
            omega, sign = nu * (nu + t), -1.0
        else:
            t = -mean / s
            rest = 1.0 - due + due * 0.5 * erfc(-t / ROOT2)
            nu, evidence = due * DENSITY * exp(-0.5 * t * t) / rest, log(rest)
            omega, sign = nu * (nu + t), -1.0
        return evidence, mean + sign * var / s * nu, var * (1.0 - var / (s * s) * omega)
    # Newton to the mode, steps halved until the density does not fall: nodes sit where the mass is
    z = mean
    value, slope, curve = cell_slopes(z, clicks, fails, open_, due)
    height = value
    for _ in range(50):
        slope -= (z - mean) / var
        step = slope / (curve + 1.0 / var)
        best = height
        for _ in range(30):
            trial = z + step
            value, s2, c2 = cell_slopes(trial, clicks, fails, open_, due)
            best = value - 0.5 * (trial - mean) ** 2 / var
            if best >= height - 1e-12 * (1.0 + abs(height)):
                break
            step *= 0.5
        z, slope, curve, height = z + step, s2, c2, best
        if abs(step) * sqrt(curve + 1.0 / var) < 1e-3:
            break
    scale = 1.0 / sqrt(curve + 1.0 / var)
    total, first, second = 0.0, 0.0, 0.0
    for i in range(nodes.size):
        e = ROOT2 * nodes[i]
        x = z + scale * e
        value, _, _ = cell_slopes(x, clicks, fails, open_, due)
        w = weights[i] * exp(value - 0.5 * (x - mean) ** 2 / var - height + 0.5 * e * e)
        total += w
        first += w * e
        second += w * e * e
    first /= total
    spread = max(second / total - first * first, LEAST_VARIANCE)
    # the nodes' weights absorb exp(-e^2 / 2); what is left is scale / sqrt(var) in the evidence
    evidence = height + log(total * scale / sqrt(var))
    return evidence, z + scale * first, scale * scale * spread


@compiled
def factored_pass(index, value, outcomes, due, order, m, v, site_p, site_h, keep, nodes, weights):
    """Update a factored posterior N(m, diag v) by every cell once; return the largest change.

    ``outcomes`` (n, 3) are clicks, fails and open ones. With ``keep`` a cell's part, natural
    parameters ``site_p`` and ``site_h`` (n, A), is taken out before and stored after (expectation
    propagation); without, every cell is new (assumed-density filtering). Changes are in posterior
    standard deviations.
    """
    A = index.shape[1]
    precision, shift = np.empty(A), np.empty(A)  # of the cavity: the posterior without the cell
    largest = 0.0
    for o in range(order.size):
        i = order[o]
        clicks, fails, open_ = outcomes[i, 0], outcomes[i, 1], outcomes[i, 2]
        if clicks + fails + open_ <= 0.0 and not keep:
            continue
        mean, var, proper = 0.0, 0.0, True
        for a in range(A):
            k = index[i, a]
            if k < 0:
                continue
            precision[a], shift[a] = 1.0 / v[k], m[k] / v[k]
            if keep:  # what the cell said before must not count twice
                precision[a] -= site_p[i, a]
                shift[a] -= site_h[i, a]
                if precision[a] <= 1e-10:
                    proper = False
                    break
            mean += value[i, a] * shift[a] / precision[a]
            var += value[i, a] * value[i, a] / precision[a]
        if not proper:  # left for a later pass: as long as one is, nothing has settled
            largest = max(largest, 1.0)
            continue
        if var <= 0.0:
            continue
        _, new_mean, new_var = cell_moments(clicks, fails, open_, due[i], mean, var, nodes, weights)
        # each weight moves by its covariance with the predictor, as in a Kalman update
        move, shrink = (new_mean - mean) / var, (new_var - var) / (var * var)
        for a in range(A):
            k = index[i, a]
            if k < 0:
                continue
            old = 1.0 / precision[a]
            step = old * value[i, a]
            new_m = old * shift[a] + step * move
            new_v = max(old + step * step * shrink, LEAST_VARIANCE)
            if keep:
                site_p[i, a] = 1.0 / new_v - precision[a]
                site_h[i, a] = new_m / new_v - shift[a]
            change = max(abs(new_m - m[k]) / sqrt(v[k]), abs(new_v / v[k] - 1.0))
            largest = max(largest, change)
            m[k], v[k] = new_m, new_v
    return largest


@compiled
def joint_sites(zm, zv, outcomes, due, tau, nu, step, nodes, weights):
    """Move the sites of a joint posterior, on each cell's linear predictor; return the change.

    ``zm`` and ``zv`` (n,) are its posterior mean and variance; ``tau`` and ``nu`` (n,) the sites'
    precision and its product with the mean, moved by ``step`` of the way. Changes are in posterior
    standard deviations of the predictor.
    """
    largest = 0.0
    for i in range(zm.size):
        p = 1.0 / zv[i] - tau[i]
        if p <= 1e-10:  # left for a later pass: as long as one is, nothing has settled
            largest = max(largest, 1.0)
            continue
        mean, var = (zm[i] / zv[i] - nu[i]) / p, 1.0 / p
        _, new_mean, new_var = cell_moments(
            outcomes[i, 0], outcomes[i, 1], outcomes[i, 2], due[i], mean, var, nodes, weights
        )
        want_tau = 1.0 / new_var - p
        want_nu = new_mean / new_var - mean * p
        shape = abs(new_var / zv[i] - 1.0)
        if want_tau < 0.0:  # an open cell's factor is not log-concave: its mean alone is matched
            want_tau, want_nu, shape = 0.0, (new_mean - mean) * p, 0.0
        largest = max(largest, abs(new_mean - zm[i]) / sqrt(zv[i]), shape)
        tau[i] += step * (want_tau - tau[i])
        nu[i] += step * (want_nu - nu[i])
    return largest


@compiled
def joint_evidence(zm, zv, outcomes, due, tau, nu, nodes, weights):
    """Return the cells' part of the log evidence (Rasmussen and Williams 2006, equation 3.65)."""
    total = 0.0
    for i in range(zm.size):
        p = 1.0 / zv[i] - tau[i]
        if p <= 1e-10 or outcomes[i, 0] + outcomes[i, 1] + outcomes[i, 2] <= 0.0:
            continue
        mean, var = (zm[i] / zv[i] - nu[i]) / p, 1.0 / p
        evidence, _, _ = cell_moments(
            outcomes[i, 0], outcomes[i, 1], outcomes[i, 2], due[i], mean, var, nodes, weights
        )
        # the Gaussian that stands for the cell, integrated over the cavity
        h = mean * p
        whole_p, whole_h = p + tau[i], h + nu[i]
        total += evidence - 0.5 * (log(p / whole_p) + whole_h * whole_h / whole_p - h * h / p)
    return total


@compiled
def linear_moments(index, value, m, v, mean, var):
    """Write each row's mean and variance of the linear predictor under N(m, diag v)."""
    n, A = index.shape
    for i in range(n):
        a_mean, a_var = 0.0, 0.0
        for a in range(A):
            k = index[i, a]
            if k >= 0:
                x = value[i, a]
                a_mean += x * m[k]
                a_var += x * x * v[k]
        mean[i], var[i] = a_mean, a_var


@compiled
def joint_moments(index, value, m, S, mean, var):
    """Write each row's mean and variance of the linear predictor under N(m, S)."""
    n, A = index.shape
    for i in range(n):
        a_mean, a_var = 0.0, 0.0
        for a in range(A):
            k = index[i, a]
            if k < 0:
                continue
            a_mean += value[i, a] * m[k]
            for b in range(A):
                j = index[i, b]
                if j >= 0:
                    a_var += value[i, a] * value[i, b] * S[k, j]
        mean[i], var[i] = a_mean, a_var


@compiled
def pair_moments(base, width, icode, ccode, item, row, m, v, mean, var):
    """Write mean and variance (n,) of the linear predictor of pairs (context row, item).

    Where features stand: feature ``t`` of a pair is
    ``base[t] + icode[item, t] width[t] + ccode[row, t]`` (:mod:`dynchoice.callouts.feature_terms`),
    with ``base`` and ``width`` (T,), ``icode`` (I, T), ``ccode`` (contexts, T). The pairs: ``item``
    and ``row`` (n,). The posterior: ``m`` and ``v``.
    """
    T = base.size
    for i in range(item.size):
        a, b = item[i], row[i]
        a_mean, a_var = 0.0, 0.0
        for t in range(T):
            k = base[t] + icode[a, t] * width[t] + ccode[b, t]
            a_mean += m[k]
            a_var += v[k]
        mean[i], var[i] = a_mean, a_var


@compiled
def item_scores(base, width, icode, ccode, weights, values, out):
    """Write ``values * Phi(z)`` (I,) of every item in one context under one vector of weights."""
    T = base.size
    for i in range(icode.shape[0]):
        z = 0.0
        for t in range(T):
            z += weights[base[t] + icode[i, t] * width[t] + ccode[t]]
        out[i] = values[i] * 0.5 * erfc(-z / ROOT2)


@compiled
def place(score, which, scores, items, K):
    """Insert a candidate into the sorted lists of the best ``K``; ties stay in the order met."""
    if score <= scores[K - 1]:
        return
    j = K - 1
    while j > 0 and scores[j - 1] < score:
        scores[j], items[j] = scores[j - 1], items[j - 1]
        j -= 1
    scores[j], items[j] = score, which


@compiled
def shortlists(base, width, icode, ccode, draws, values, alike, category, order, scores, items):
    """Write, for each draw and category, the best items of one context and their scores.

    ``base`` to ``ccode`` say where features stand (:func:`pair_moments`; here ``ccode`` (T,) is one
    context's). ``draws`` (R, n) weights; ``order`` the items to look at (those that may be shown);
    ``category`` (I,). ``scores`` and ``items`` (R, C, K) are written, -inf and -1 where a category
    has fewer. ``alike``: all ``values`` (I,) are equal and positive, so that ranking by the
    predictor is enough and tails are worked out for the few that are listed.
    """
    R, C, K = scores.shape
    T = base.size
    for r in range(R):
        for c in range(C):
            for k in range(K):
                scores[r, c, k], items[r, c, k] = -np.inf, -1
        for o in range(order.size):
            i = order[o]
            z = 0.0
            for t in range(T):
                z += draws[r, base[t] + icode[i, t] * width[t] + ccode[t]]
            c = category[i]
            if alike:
                place(z, i, scores[r, c], items[r, c], K)
            else:
                place(values[i] * 0.5 * erfc(-z / ROOT2), i, scores[r, c], items[r, c], K)
        if alike:
            for c in range(C):
                for k in range(K):
                    i = items[r, c, k]
                    if i >= 0:
                        scores[r, c, k] = values[i] * 0.5 * erfc(-scores[r, c, k] / ROOT2)


@compiled
def diverse(scores, items, weights, strength, blocked, exhausted, out):
    """Write the greedy slate (R, slots) of each draw from its shortlists; -1 where none is left.

    Maximises ``sum_c w_c log(1 + strength S_c) / strength`` with ``S_c`` the summed scores of what
    is chosen of category ``c``, relative to the draw's best (Teo et al. 2016); ``strength`` 0 ranks
    by ``w_c score``. ``exhausted`` (C,) says whether a category's list holds all of its items;
    return whether one that does not ran out through ``blocked`` items (I,), so that the answer may
    be wrong.
    """
    R, C, K = scores.shape
    slots = out.shape[1]
    # of each category: its place in the list, scores of what is chosen, the next item's gain
    at, filled, gain = np.empty(C, np.int64), np.empty(C), np.empty(C)
    short = False
    for r in range(R):
        top = 0.0
        for c in range(C):
            at[c], filled[c] = -1, 0.0
            if scores[r, c, 0] > top:
                top = scores[r, c, 0]
        if top <= 0.0:
            top = 1.0
        last = -1
        for s in range(slots):
            for c in range(C):
                if s > 0 and c != last:  # only the category just served has another next item
                    continue
                at[c] += 1
                while at[c] < K and items[r, c, at[c]] >= 0 and blocked[items[r, c, at[c]]]:
                    at[c] += 1
                if at[c] >= K and not exhausted[c]:
                    short = True
                if at[c] >= K or items[r, c, at[c]] < 0:
                    at[c], gain[c] = K - 1, -np.inf
                    continue
                x = scores[r, c, at[c]] / top
                if strength > 0.0 and x > 0.0:
                    x = log1p(strength * x / (1.0 + strength * filled[c])) / strength
                gain[c] = weights[c] * x
            best, which = -np.inf, -1
            for c in range(C):
                if gain[c] > best:
                    best, which = gain[c], c
            last = which
            if which < 0:
                out[r, s] = -1
                continue
            out[r, s] = items[r, which, at[which]]
            filled[which] += max(scores[r, which, at[which]] / top, 0.0)
    return short


@compiled
def slate_shares(slates, slate, shares):
    """Write how often each item of ``slate`` stands in its slot; return the whole slate's share.

    ``slates`` (R, slots) of all draws; shares are fractions of the draws.
    """
    R, slots = slates.shape
    whole = 0
    for s in range(slots):
        shares[s] = 0.0
    for r in range(R):
        same = True
        for s in range(slots):
            if slates[r, s] == slate[s]:
                shares[s] += 1.0 / R
            else:
                same = False
        if same:
            whole += 1
    return whole / R


@compiled
def all_shares(slates, shares, whole):
    """Write the shares of every draw's slate: see :func:`slate_shares`."""
    for r in range(slates.shape[0]):
        whole[r] = slate_shares(slates, slates[r], shares[r])


@compiled
def decide(
    scores,
    items,
    exhausted,
    at,
    weights,
    strength,
    indptr,
    taken,
    draw,
    given,
    blocked,
    slates,
    out,
    shares,
    whole,
    short,
):
    """Write each member's slate, the shares of its items and of the whole, and doubtful members.

    Sixteen arguments in five groups:

    - shortlists: ``scores`` and ``items`` (X, R, C, K) and ``exhausted`` (X, C) of ``X`` contexts
      (:func:`diverse`), ``at`` (n,) each member's context;
    - how categories are weighed: ``weights`` (n, C), ``strength``;
    - members' rules: ``taken[indptr[i]:indptr[i + 1]]`` what member ``i`` may not see again;
      ``draw`` (n,) the draw that decides, unless a slate is ``given`` (n, slots; -2 first where
      not, -1 where a slot stays empty);
    - room: ``blocked`` (I,) all False, and left so; ``slates`` (R, slots);
    - written: ``out`` and ``shares`` (n, slots), ``whole`` (n,), ``short`` (n,): lists that ran
      out, so that the slate may be wrong.
    """
    for i in range(at.size):
        for k in range(indptr[i], indptr[i + 1]):
            blocked[taken[k]] = True
        x = at[i]
        short[i] = diverse(scores[x], items[x], weights[i], strength, blocked, exhausted[x], slates)
        for s in range(out.shape[1]):
            out[i, s] = slates[draw[i], s] if given[i, 0] == -2 else given[i, s]
        whole[i] = slate_shares(slates, out[i], shares[i])
        for k in range(indptr[i], indptr[i + 1]):
            blocked[taken[k]] = False


@compiled
def climb(main, pair, sizes, layout, passes):
    """Improve ``layout`` (D,) slot by slot until nothing changes; return (score, passes taken).

    ``main`` (D, N) and ``pair`` (D, D, N, N; both orders filled, zero on the diagonal) are the
    sampled scores of contents and of pairs of contents; ``sizes`` (D,) the contents of each slot.
    Each pass costs the contents times the slots (Hill et al. 2017, algorithm 2).
    """
    D = sizes.size
    done = 0
    for _ in range(passes):
        done += 1
        moved = False
        for d in range(D):
            best, which = -np.inf, layout[d]
            for a in range(sizes[d]):
                score = main[d, a]
                for e in range(D):
                    if e != d:
                        score += pair[d, e, a, layout[e]]
                if score > best + 1e-15 or (a == layout[d] and score >= best):
                    best, which = score, a
            if which != layout[d]:
                layout[d] = which
                moved = True
        if not moved:
            break
    total = 0.0
    for d in range(D):
        total += main[d, layout[d]]
        for e in range(d):
            total += pair[d, e, layout[d], layout[e]]
    return total, done


@compiled
def climb_from(main, pair, sizes, starts, passes, out):
    """Climb from every start (S, D); write the best layout to ``out`` and return its score."""
    best = -np.inf
    for s in range(starts.shape[0]):
        score, _ = climb(main, pair, sizes, starts[s], passes)
        if score > best:
            best = score
            for d in range(sizes.size):
                out[d] = starts[s, d]
    return best
