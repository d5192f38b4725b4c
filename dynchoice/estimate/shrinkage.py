"""Shrinkage of segments' estimates towards a prior that they teach, on arrays.

    theta_hat_m | theta_m ~ N(theta_m, S_m),    theta_m ~ N(mu, T),    S_m known

(Efron and Morris 1975, JASA 70; Nabi, Nassif, Hong, Mamani and Imbens 2022, Management Science 68:
meta-priors). With ``W_m = (T + S_m)^-1``, ``C = (sum W_m)^-1``, ``mu_hat = C sum W_m theta_hat_m``

    theta_m | data, T ~ N(mu_hat + T W_m (theta_hat_m - mu_hat),
                          T - T W_m T + (I - T W_m) C (I - T W_m)').

``T`` maximises the restricted likelihood (REML), or is a moment estimate; means are at that T.
What is unknown of T is in every standard error: the law above is averaged over the restricted
likelihood of its standard deviations (and of how much of a full T's estimated correlations holds)
with a flat prior, by importance sampling from a fixed Sobol sequence. Morris (1983, JASA 78)
approximates this integral; unlike the delta method it holds for few segments and at T = 0.

M segments, P pooled parameters, B draws of T.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from dynchoice.typing import BoolArray, FloatArray

NUMBERS = 2_000_000
"""Numbers held at once, which set the draws of T."""


class Evidence(NamedTuple):
    """Own estimates ``y`` (M, P), covariances ``S`` (M, P, P), and which of them are ``seen``
    (M, P): what is absent stands as zero with unit variance and enters nothing."""

    y: FloatArray
    S: FloatArray
    seen: BoolArray

    @classmethod
    def of(cls, y: FloatArray, S: FloatArray, seen: BoolArray | None = None) -> Evidence:
        """Return the evidence with absent entries (NaN, or not ``seen``) in their standard form."""
        seen = np.isfinite(y) if seen is None else seen
        both = seen[:, :, None] & seen[:, None, :]
        return cls(np.where(seen, y, 0.0), np.where(both, S, np.eye(y.shape[1])), seen)

    def scaled(self, factor: FloatArray) -> Evidence:
        """Return the evidence on parameters times ``factor`` (P,) or (M, P)."""
        f = np.broadcast_to(factor, self.y.shape)
        return Evidence.of(self.y * f, self.S * f[:, :, None] * f[:, None, :], self.seen)

    def without(self, m: int) -> Evidence:
        """Return the evidence with nothing from segment ``m``."""
        return Evidence.of(self.y, self.S, self.seen & (np.arange(len(self.y)) != m)[:, None])


class Restricted(NamedTuple):
    """Log-likelihood (...), ``mu`` (..., P), ``C``, ``W`` (..., M, P, P), ``r`` (..., M, P)."""

    loglik: FloatArray
    mu: FloatArray
    C: FloatArray
    W: FloatArray
    r: FloatArray


def restricted(T: FloatArray, e: Evidence) -> Restricted:
    """Return the restricted likelihood of T (..., P, P), up to a constant (Harville 1977).

    ``-1/2 [sum log|T + S_m| + log|sum W_m| + sum r_m' W_m r_m]``, ``r_m = theta_hat_m - mu_hat``.
    """
    both = e.seen[:, :, None] & e.seen[:, None, :]
    # what is absent has unit variance in V and weight zero in W: it enters no sum
    V = np.where(both, T[..., None, :, :] + e.S, np.eye(e.y.shape[1]))
    W = np.where(both, np.linalg.inv(V), 0.0)
    A = W.sum(axis=-3)
    C = np.linalg.inv(A)
    mu = (C @ (W @ e.y[:, :, None]).sum(axis=-3))[..., 0]
    r = np.where(e.seen, e.y - mu[..., None, :], 0.0)
    spread = (r * (W @ r[..., None])[..., 0]).sum(axis=(-1, -2))
    logdet = np.linalg.slogdet(V)[1].sum(axis=-1) + np.linalg.slogdet(A)[1]
    return Restricted(-0.5 * (logdet + spread), mu, C, W, r)


def posterior(given: Restricted, T: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return means (..., M, P) and covariances (..., M, P, P) given T (..., P, P)."""
    T = T[..., None, :, :]
    kept = T @ given.W  # what own data weigh
    rest = np.eye(T.shape[-1]) - kept
    V = T - kept @ T + rest @ given.C[..., None, :, :] @ np.swapaxes(rest, -1, -2)
    return given.mu[..., None, :] + (kept @ given.r[..., None])[..., 0], V


def slope(T: FloatArray, e: Evidence) -> tuple[float, FloatArray]:
    """Return the restricted log-likelihood at T and its derivative (P, P)."""
    loglik, _, C, W, r = restricted(T, e)
    pulls = (W @ r[:, :, None])[:, :, 0]
    return float(loglik), 0.5 * (pulls.T @ pulls + (W @ C @ W - W).sum(axis=0))


def moments(e: Evidence) -> FloatArray:
    """Return the moment estimate of T (P, P): unbiased, so that it may be negative.

    ``[sum w r_k r_l - sum w S_kl + sum w^2 S_kl / sum w] / [sum w - sum w^2 / sum w]`` with ``r``
    the gaps to the weighted mean and fixed weights ``w = (S_kk S_ll)^-1/2``: DerSimonian and Laird
    (1986), and where S_m is one for all the estimator of Nabi et al. (2022).
    """
    sd = np.sqrt(np.diagonal(e.S, axis1=1, axis2=2))
    w = (e.seen / sd)[:, :, None] * (e.seen / sd)[:, None, :]
    total = np.maximum(w.sum(axis=0), 1e-300)
    gap = e.y[:, :, None] - (w * e.y[:, :, None]).sum(axis=0) / total
    squares = (w * gap * np.swapaxes(gap, 1, 2)).sum(axis=0)
    noise = (w * e.S).sum(axis=0) - (w**2 * e.S).sum(axis=0) / total
    return (squares - noise) / np.maximum(total - (w**2).sum(axis=0) / total, 1e-300)


def maximise_reml(e: Evidence, full: bool) -> FloatArray:
    """Return the REML estimate of T (P, P), by quasi-Newton in its Cholesky factor."""
    from scipy.optimize import minimize

    P = e.y.shape[1]
    free = np.tril(np.ones((P, P))) if full else np.eye(P)

    def minus(z: FloatArray) -> tuple[float, FloatArray]:
        L = z.reshape(P, P) * free
        value, by_T = slope(L @ L.T, e)
        return -value, -2 * (by_T @ L * free).reshape(-1)

    # several maxima are possible, and at T = 0 the factor has no slope: three starts
    size = np.diag(np.sqrt(np.clip(np.diag(moments(e)), 0.05, None)))
    starts = [L.reshape(-1) for L in (size, 0.1 * np.eye(P), np.eye(P))]
    runs = [minimize(minus, z, jac=True, tol=1e-9) for z in starts]
    L = min(runs, key=lambda r: float(r.fun)).x.reshape(P, P) * free
    return np.asarray(L @ L.T)


def draw_priors(T: FloatArray, e: Evidence) -> tuple[FloatArray, FloatArray]:
    """Return draws (B, P, P) of T and their log-density (B,): t variates around its standard
    deviations, truncated at 0, with the likelihood's curvature and tails; correlations shrunk."""
    from scipy.stats import qmc

    P, sd = len(T), np.sqrt(np.diag(T))
    inside = np.where(sd > 0, sd, 1.0)
    R = np.where(np.eye(P) > 0, 1.0, T / np.outer(inside, inside))

    def by_sd(s: FloatArray) -> FloatArray:
        return 2 * (slope(R * np.outer(s, s), e)[1] * R) @ s

    H = np.array([by_sd(sd - h) - by_sd(sd + h) for h in 1e-3 * np.eye(P)]) / 2e-3
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    wide = np.sqrt((vectors**2 / np.maximum(values, 0.5)).sum(axis=1))
    dof = float(np.clip(e.seen.sum(axis=0).min() - 2, 1, 5))
    most = 10 if P < 4 else 12
    size = 2 ** int(np.clip(np.rint(np.log2(NUMBERS / (len(e.y) * P * P))), 8, most))
    u = np.clip(qmc.Sobol(P + 1, rng=np.random.default_rng(0)).random(size), 1e-9, 1 - 1e-9)
    below = stdtr(dof, -sd / wide)
    t = stdtrit(dof, below + u[:, :P] * (1 - below))
    s = sd + t * wide
    R = np.eye(P) + u[:, P:, None] * (R - np.eye(P))
    return R * s[:, :, None] * s[:, None, :], -(dof + 1) / 2 * np.log1p(t**2 / dof).sum(axis=1)


def half_width(gap: FloatArray, sd: FloatArray, weights: FloatArray, level: float) -> FloatArray:
    """Return h (...) with ``sum_b w_b P(|N(gap_b, sd_b^2)| <= h) = level``, b the first axis."""
    top = np.sqrt(np.tensordot(weights, gap**2 + sd**2, 1) / (1 - level))  # Chebyshev
    low = 1e-6 * top
    for _ in range(14):
        h = np.sqrt(low * top)
        inside = np.tensordot(weights, ndtr((h - gap) / sd) - ndtr((-h - gap) / sd), 1)
        low, top = np.where(inside < level, h, low), np.where(inside < level, top, h)
    return np.asarray(top)


class Shrunk(NamedTuple):
    """The prior, and the posterior of segments (R rows), the last of which is a new one.

    ``T`` (P, P), errors ``mu_sd`` (P,) of mu; ``mean`` (R, P), ``cov`` (R, P, P), weight on own
    data ``share`` (R, P); ``means``, ``variances`` (B, R, P) at draws of T, ``weights`` (B,).
    """

    mu_sd: FloatArray
    T: FloatArray
    mean: FloatArray
    cov: FloatArray
    share: FloatArray
    means: FloatArray
    variances: FloatArray
    weights: FloatArray


def shrink(
    e: Evidence, method: str, full: bool, level: float, rows: Iterable[int] | None = None
) -> Shrunk:
    """Learn the prior and shrink ``rows`` (all): normal intervals at ``level`` are calibrated.

    Standard errors are half-widths of the interval about the mean that holds ``level`` of the
    averaged law, over the normal's quantile: with few segments that law has no variance.
    """
    M, P = e.y.shape
    variances = np.where(e.seen, np.diagonal(e.S, axis1=1, axis2=2), np.nan)
    # in units of its own spread no parameter is far from 1, where starts and draws are
    unit = np.sqrt(np.nanmedian(variances, axis=0) + np.maximum(np.diag(moments(e)), 0.0))
    e = e.scaled(1 / unit)
    # a new segment, without evidence, stands last: its posterior is the prior
    keep = [*(range(M) if rows is None else rows), M]
    e = Evidence(*(np.concatenate([a, a[:1]]) for a in e)).without(M)
    T = moments(e) * (full or np.eye(P)) if method == "moments" else maximise_reml(e, full)
    values, vectors = np.linalg.eigh(T)
    T = (vectors * np.where(values > 1e-9, values, 0.0)) @ vectors.T
    at_T = restricted(T, e)
    mean = posterior(at_T, T)[0][keep]
    Ts, log_q = draw_priors(T, e)
    at_draws = restricted(Ts, e)
    weights = np.exp(at_draws.loglik - log_q - (at_draws.loglik - log_q).max())
    weights /= weights.sum()
    means, V = (a[:, keep] for a in posterior(at_draws, Ts))
    gap, variances = means - mean, np.diagonal(V, axis1=2, axis2=3)
    second = np.tensordot(weights, V + gap[..., None] * gap[..., None, :], 1)
    quantile = float(ndtri(0.5 + level / 2))
    wide = half_width(gap, np.sqrt(variances), weights, level) / quantile
    ratio = wide / np.sqrt(np.diagonal(second, axis1=1, axis2=2))
    errors = np.sqrt(np.diagonal(at_draws.C, axis1=1, axis2=2))
    mu_sd = half_width(at_draws.mu - at_T.mu, errors, weights, level) / quantile
    used, variance = np.diagonal(T @ at_T.W[keep] @ T, axis1=1, axis2=2), np.diag(T)
    return Shrunk(
        mu_sd=mu_sd * unit,
        T=T * np.outer(unit, unit),
        mean=mean * unit,
        cov=second * ratio[:, :, None] * ratio[:, None, :] * np.outer(unit, unit),
        share=np.where(variance > 0, used / np.where(variance > 0, variance, 1.0), 0.0),
        means=means * unit,
        variances=variances * unit**2,
        weights=weights,
    )


def log_density(gap: FloatArray, variance: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the log-density (n,) of mixtures over the first axis of N(0, variance) at gap."""
    logs = -0.5 * (np.log(2 * np.pi * variance) + gap**2 / variance)
    top = logs.max(axis=0)
    mixture = (weights * np.exp(logs - top)).sum(axis=0) / weights.sum(axis=0)
    return np.asarray(top + np.log(np.maximum(mixture, 1e-300)))
