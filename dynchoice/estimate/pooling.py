"""Partial pooling of parameters across segments, with a prior that the segments teach.

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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from dynchoice.errors import IdentificationError, SpecificationError, first_few, suggest
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.inference.results import Results
from dynchoice.inference.summary import Summary, number
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import as_floats
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import BoolArray, FloatArray

if TYPE_CHECKING:
    import pandas as pd

LEAST, NUMBERS = 3, 2_000_000
"""Segments that must have a parameter; numbers held at once, which set the draws of T."""
Scale: TypeAlias = Mapping[str, Mapping[Any, float]]
Law: TypeAlias = tuple[list[str], FloatArray, FloatArray]  # labels, means (L,), covariance (L, L)


class Evidence(NamedTuple):
    """Own estimates ``y`` (M, P), covariances ``S`` (M, P, P), and which of them are ``seen``
    (M, P): what is absent stands as zero with unit variance and enters nothing."""

    y: FloatArray
    S: FloatArray
    seen: BoolArray

    @classmethod
    def of(cls, y: FloatArray, S: FloatArray, seen: BoolArray | None = None) -> Evidence:
        """Return the evidence with absent entries (NaN, or as told) in their standard form."""
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
    V = np.where(both, T[..., None, :, :] + e.S, np.eye(e.y.shape[1]))
    W = np.where(both, np.linalg.inv(V), 0.0)
    A = W.sum(axis=-3)
    C = np.linalg.inv(A)
    mu = (C @ (W @ e.y[:, :, None]).sum(axis=-3))[..., 0]
    r = np.where(e.seen, e.y - mu[..., None, :], 0.0)
    spread = (r * (W @ r[..., None])[..., 0]).sum(axis=(-1, -2))
    logdet = np.linalg.slogdet(V)[1].sum(axis=-1) + np.linalg.slogdet(A)[1]
    return Restricted(-0.5 * (logdet + spread), mu, C, W, r)


def posterior(at: Restricted, T: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return means (..., M, P) and covariances (..., M, P, P) given T (..., P, P)."""
    T = T[..., None, :, :]
    K = T @ at.W
    rest = np.eye(T.shape[-1]) - K
    V = T - K @ T + rest @ at.C[..., None, :, :] @ np.swapaxes(rest, -1, -2)
    return at.mu[..., None, :] + (K @ at.r[..., None])[..., 0], V


def slope(T: FloatArray, e: Evidence) -> tuple[float, FloatArray]:
    """Return the restricted log-likelihood at T and its derivative (P, P)."""
    at = restricted(T, e)
    q = (at.W @ at.r[:, :, None])[:, :, 0]
    return float(at.loglik), 0.5 * (q.T @ q + (at.W @ at.C @ at.W - at.W).sum(axis=0))


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


def climb(e: Evidence, full: bool) -> FloatArray:
    """Return the REML estimate of T (P, P), by quasi-Newton in its Cholesky factor."""
    from scipy.optimize import minimize

    P = e.y.shape[1]
    free = np.tril(np.ones((P, P))) if full else np.eye(P)

    def minus(z: FloatArray) -> tuple[float, FloatArray]:
        L = z.reshape(P, P) * free
        value, by_T = slope(L @ L.T, e)
        return -value, -2 * (by_T @ L * free).reshape(-1)

    size = np.diag(np.sqrt(np.clip(np.diag(moments(e)), 0.05, None)))
    starts = [L.reshape(-1) for L in (size, 0.1 * np.eye(P), np.eye(P))]
    runs = [minimize(minus, z, jac=True, tol=1e-9) for z in starts]
    L = min(runs, key=lambda r: float(r.fun)).x.reshape(P, P) * free
    return np.asarray(L @ L.T)


def draws(T: FloatArray, e: Evidence) -> tuple[FloatArray, FloatArray]:
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


def shrink(e: Evidence, method: str, full: bool, level: float, rows: Any = None) -> Shrunk:
    """Learn the prior and shrink ``rows`` (all): normal intervals at ``level`` are calibrated.

    Standard errors are half-widths of the interval about the mean that holds ``level`` of the
    averaged law, over the normal's quantile: with few segments that law has no variance.
    """
    M, P = e.y.shape
    own = np.where(e.seen, np.diagonal(e.S, axis1=1, axis2=2), np.nan)
    unit = np.sqrt(np.nanmedian(own, axis=0) + np.maximum(np.diag(moments(e)), 0.0))
    e = e.scaled(1 / unit)
    keep = [*(range(M) if rows is None else rows), M]
    e = Evidence(*(np.concatenate([a, a[:1]]) for a in e)).without(M)
    T = moments(e) * (full or np.eye(P)) if method == "moments" else climb(e, full)
    values, vectors = np.linalg.eigh(T)
    T = (vectors * np.where(values > 1e-9, values, 0.0)) @ vectors.T
    at = restricted(T, e)
    mean = posterior(at, T)[0][keep]
    Ts, log_q = draws(T, e)
    here = restricted(Ts, e)
    weights = np.exp(here.loglik - log_q - (here.loglik - log_q).max())
    weights /= weights.sum()
    means, V = (a[:, keep] for a in posterior(here, Ts))
    gap, variances = means - mean, np.diagonal(V, axis1=2, axis2=3)
    second = np.tensordot(weights, V + gap[..., None] * gap[..., None, :], 1)
    quantile = float(ndtri(0.5 + level / 2))
    wide = half_width(gap, np.sqrt(variances), weights, level) / quantile
    ratio = wide / np.sqrt(np.diagonal(second, axis1=1, axis2=2))
    errors = np.sqrt(np.diagonal(here.C, axis1=1, axis2=2))
    mu_sd = half_width(here.mu - at.mu, errors, weights, level) / quantile
    used, variance = np.diagonal(T @ at.W[keep] @ T, axis1=1, axis2=2), np.diag(T)
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


class PooledResults(Results):
    """A segment's fit after pooling: it maximises no likelihood, so AIC and BIC are NaN."""

    aic = bic = property(lambda self: float("nan"))


def as_results(given: dict[str, Any]) -> Results:
    """Return results with likelihood, curvature and value taken at their parameters; NaN where
    counts by state do not determine a likelihood (finite horizons, market variables)."""
    # a pseudo-likelihood that is not None: no test may take this for a maximum
    fixed = {"cov_type": "pooled", "pseudo_loglik": np.nan, "bootstrap": None, "influence": None}
    found: dict[str, Any] = {**given, **fixed, "loglik": np.nan}
    if given["market"] or given["model"].horizon is not None:
        return PooledResults(**found)
    with one_blas_thread():
        start = given["value"] if given["value"].size else None
        likelihood = Likelihood(given["model"], given["counts"], start)
        at = likelihood.evaluate(given["theta"])
        found |= {"loglik": at.loglik, "hessian": likelihood.hessian(at)}
    assert at.point is not None
    found["value"] = at.point.h
    if not at.converged:
        found |= {"converged": False, "message": f"not converged: {at.message}"}
    return PooledResults(**found)


def joint(fit: Results, names: Sequence[str], mean: FloatArray, cov: FloatArray) -> Law:
    """Return the law of a fit's parameters with ``names`` pooled to mean (P,) and cov (P, P).

    What is not pooled has a flat prior: with ``B = S_qp S_pp^-1`` of the own covariance it moves
    to ``q + B (mean - p)``, with covariance ``S_qq - B S_pq + B cov B'``. Pooled names that the
    model does not have stand last; what has no variance keeps its own estimate.
    """
    labels = [*fit.names, *(n for n in names if n not in fit.names)]
    K, L = len(fit.names), len(labels)
    theta, S = np.full(L, np.nan), np.full((L, L), np.nan)
    theta[:K], S[:K, :K] = fit.vector, fit.cov_matrix
    p, there = np.array([labels.index(n) for n in names]), np.isfinite(np.diag(S))
    q, seen = np.setdiff1d(np.flatnonzero(there), p), there[p]
    own, B = p[seen], np.zeros((len(q), len(p)))
    B[:, seen] = np.linalg.solve(S[np.ix_(own, own)], S[np.ix_(own, q)]).T
    theta[q] += B[:, seen] @ (mean[seen] - theta[own])
    S[np.ix_(q, q)] += B @ cov @ B.T - B[:, seen] @ S[np.ix_(own, q)]
    S[np.ix_(q, p)], S[np.ix_(p, q)] = B @ cov, cov @ B.T
    theta[p], S[np.ix_(p, p)] = mean, cov
    return labels, theta, S


@dataclass(frozen=True, repr=False)
class Pooled:
    """Segments' parameters shrunk towards a prior that they taught; made by :func:`pool`.

    ``own`` has the segments' own fits, ``names`` the pooled parameters (P); ``evidence`` and
    ``estimate`` are their own estimates, and prior and posterior, as arrays. Tables are in the
    common units of ``scale``, results in each segment's own.
    """

    own: dict[Any, Results]
    names: tuple[str, ...]
    method: str
    structure: str
    level: float
    scale: Scale
    evidence: Evidence
    estimate: Shrunk

    @property
    def prior(self) -> pd.DataFrame:
        """A row a parameter: ``mean`` and its ``std_error``, ``sd`` between segments, ``lower`` and
        ``upper`` between which a new segment's would lie."""
        import pandas as pd

        e, mu = self.estimate, self.estimate.mean[-1]
        half = ndtri(0.5 + self.level / 2) * np.sqrt(np.diag(e.cov[-1]))
        columns = {"mean": mu, "std_error": e.mu_sd, "sd": np.sqrt(np.diag(e.T))}
        columns |= {"lower": mu - half, "upper": mu + half}
        return pd.DataFrame(columns, index=list(self.names))

    @property
    def shrinkage(self) -> pd.DataFrame:
        """Weight on own data, a row a segment: the share of the prior's variance that they take
        away, ``(T W T)_kk / T_kk``, or ``tau^2 / (tau^2 + s^2)`` where a parameter is alone."""
        import pandas as pd

        return pd.DataFrame(self.estimate.share[:-1], list(self.own), list(self.names))

    def _law(self, label: Any) -> Law:
        """Return the law of a segment's parameters, or of a new one's, in its own units."""
        e, m = self.estimate, [*self.own, label].index(label)
        f = read_factors(self.scale, self.names, [label])[0]
        mean, cov = e.mean[m] / f, e.cov[m] / np.outer(f, f)
        own = self.own.get(label)
        return ([*self.names], mean, cov) if own is None else joint(own, self.names, mean, cov)

    @property
    def _note(self) -> str:
        return (
            f"Pooled over {len(self.own)} segments ({self.method}, {self.structure} prior):"
            f" {', '.join(self.names)}. Standard errors include the prior's uncertainty"
        )

    @cached_property
    def fits(self) -> dict[Any, Results]:
        """Each segment's fit with pooled parameters and covariance, for ``dc.forecast`` (which
        draws the prior's error, that segments share, for each of them alone)."""
        out: dict[Any, Results] = {}
        for label, fit in self.own.items():
            K, (_, theta, cov) = len(fit.names), self._law(label)
            given = {f.name: getattr(fit, f.name) for f in fields(fit)}
            given |= {"estimator": f"{fit.estimator} (pooled)", "theta": theta[:K]}
            config = {k: v for k, v in fit.cov_config.items() if k == "first_stage_label"}
            given |= {"cov_matrix": cov[:K, :K], "cov_config": config}
            note = f"{self._note}. Log-likelihood at the own estimates: {number(fit.loglik)}"
            out[label] = as_results({**given, "notes": (*fit.notes, note)})
        return out

    def new(self, model: DDC, name: Any) -> Results:
        """Return the prior as results of a marketplace without data: no choice, likelihood one.

        ``model`` has its transitions and no parameter but pooled ones; ``scale`` must have
        ``name``; else SpecificationError. A segment's name gives its posterior, for a model with
        parameters that its own did not have.
        """
        from dynchoice import __version__

        labels, theta, cov = self._law(name)
        lost = [n for n in model.names if n not in labels]
        if lost:
            raise SpecificationError(
                f"{len(lost)} parameter(s) of {name!r} have no prior: {first_few(lost)}."
                f"{suggest(lost[0], labels)} Pool them too (names=), or leave them out of the model"
            )
        k, kind = (
            [labels.index(n) for n in model.names],
            "Posterior" if name in self.own else "Prior",
        )
        given = {"model": model, "theta": theta[k], "cov_matrix": cov[np.ix_(k, k)], "nobs": 0.0}
        given |= {"estimator": f"{kind} (pooled)", "cov_config": {}, "optimization": {}}
        given |= {"counts": np.zeros(model.shape[:2]), "value": np.zeros(0), "nmembers": 0}
        given |= {"hessian": np.zeros((0, 0)), "loglik_null": 0.0, "data_digest": "", "market": ()}
        given |= {"converged": True, "message": "no data", "package_version": __version__}
        given |= {"notes": (f"{name}: {kind.lower()}, no data here. {self._note}",)}
        return as_results(given)

    def leave_one_out(self) -> pd.DataFrame:
        """Return how well the other segments predict each one's own estimate, in common units.

        Columns ``segment parameter estimate std_error``; ``predicted`` and ``predicted_sd`` of the
        true parameter; ``z`` of the estimate; and its log-density under pooling
        (``log_pooled``), complete pooling (T = 0: ``log_complete``) and none (``log_none``: the
        truth is what another segment, at random, estimates). One segment more than for pooling is
        needed, or SpecificationError."""
        import pandas as pd

        parts, full, e = [], self.structure == "full", self.evidence
        enough(e.seen, self.names, full, 1)
        nowhere = np.zeros(2 * (len(self.names),))
        for m, label in enumerate(self.own):
            rest, k = e.without(m), np.flatnonzero(e.seen[m])
            s, none = shrink(rest, self.method, full, self.level, [m]), restricted(nowhere, rest)
            y, noise, mean, variance = e.y[m, k], e.S[m, k, k], s.mean[0, k], s.cov[0, k, k]
            part = pd.DataFrame({"segment": [label] * len(k), "parameter": np.array(self.names)[k]})
            part["estimate"], part["std_error"] = y, np.sqrt(noise)
            part["predicted"], part["predicted_sd"] = mean, np.sqrt(variance)
            part["z"] = (y - mean) / np.sqrt(variance + noise)
            gaps, spreads = y - s.means[:, 0, k], s.variances[:, 0, k] + noise
            part["log_pooled"] = log_density(gaps, spreads, s.weights[:, None])
            gaps, spreads = (y - none.mu[k])[None], (none.C[k, k] + noise)[None]
            part["log_complete"] = log_density(gaps, spreads, np.ones((1, 1)))
            gaps, spreads = y - rest.y[:, k], rest.S[:, k, k] + noise
            part["log_none"] = log_density(gaps, spreads, np.where(rest.seen[:, k], 1.0, 0.0))
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    @property
    def summary(self) -> Summary:
        """The prior as a table (also callable)."""
        e = self.estimate
        notes = ["Sd: between segments. New: where one more would lie. Weight: of own data"]
        same = [n for n, v in zip(self.names, np.diag(e.T), strict=True) if v == 0]
        if same:
            notes.append(f"Pooled completely, no difference beyond sampling error: {same}")
        if (worth := 1 / (e.weights**2).sum()) < 100:
            notes.append(f"Standard errors are rough: {worth:.0f} effective draws of the prior")
        table = self.prior.assign(least=e.share[:-1].min(axis=0), most=e.share[:-1].max(axis=0))
        rows = tuple((str(n), *map(number, r)) for n, r in table.iterrows())
        facts = (("Segments:", f"{len(self.own)}"), ("Prior:", f"{self.structure}, {self.method}"))
        head = ("Parameter", "Mean", "Std. Err.", "Sd", "New lower", "New upper", "Weight", "to")
        return Summary("Partial pooling", facts, head, rows, tuple(notes))

    def __repr__(self) -> str:
        return self.summary.as_text()


def log_density(gap: FloatArray, variance: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the log-density (n,) of mixtures over the first axis of N(0, variance) at gap."""
    logs = -0.5 * (np.log(2 * np.pi * variance) + gap**2 / variance)
    top = logs.max(axis=0)
    mixed = (weights * np.exp(logs - top)).sum(axis=0) / weights.sum(axis=0)
    return np.asarray(top + np.log(np.maximum(mixed, 1e-300)))


def enough(seen: BoolArray, names: Sequence[str], full: bool, spare: int = 0) -> None:
    """Raise where segments (M, P), ``spare`` of them left out, cannot teach the prior."""
    least, both = spare + (LEAST * len(names) if full else LEAST), seen.T.astype(int) @ seen
    few = [n for k, n in enumerate(names) if (both[k] if full else both[k, k]).min() < least]
    if few:
        why = "'full' takes three a parameter" if full else "two cannot tell how much they differ"
        raise SpecificationError(
            f"{least} segments at least must have {first_few(few)}, which fewer of {len(seen)} do"
            f" ({why}{', and one is left out' * spare}): pool others (names=)"
        )


def read_factors(scale: Scale, names: Sequence[str], segments: Sequence[Any]) -> FloatArray:
    """Return the factor of every segment and pooled parameter (M, P), one where none is given."""
    out = np.ones((len(segments), len(names)))
    for name, given in scale.items():
        if name not in names:
            raise SpecificationError(f"scale: {name!r} is not pooled.{suggest(name, names)}")
        own = as_floats([given.get(m, np.nan) for m in segments], f"scale[{name!r}]")
        lost = [m for m, f in zip(segments, own, strict=True) if not 0 < f < np.inf]
        if lost:
            raise SpecificationError(f"scale[{name!r}]: no positive factor of {first_few(lost)}")
        out[:, names.index(name)] = own
    return out


def read_evidence(fits: Mapping[Any, Results], names: Sequence[str], borrow: bool) -> Evidence:
    """Return own estimates of the pooled parameters, in the segments' own units."""
    y = np.full((len(fits), len(names)), np.nan)
    S = np.full((*y.shape, len(names)), np.nan)
    for m, (label, fit) in enumerate(fits.items()):
        k = [i for i, n in enumerate(names) if n in fit.names]
        own = [fit.names.index(names[i]) for i in k]
        S[np.ix_([m], k, k)] = fit.cov_matrix[np.ix_(own, own)]
        y[m, k] = np.where(np.isfinite(S[m, k, k]), fit.vector[own], np.nan)
        lost = [n for i, n in enumerate(names) if np.isnan(y[m, i])]
        if lost and not borrow:
            inside = lost[0] in fit.names
            raise (IdentificationError if inside else SpecificationError)(
                f"segment {label!r} has no {'variance of' if inside else 'parameter'}"
                f" {first_few(lost)}: pool others (names=), or let it borrow (missing='borrow')"
            )
        C = S[m][np.ix_(np.isfinite(y[m]), np.isfinite(y[m]))]
        size = np.sqrt(np.maximum(np.diag(C), 1e-300))
        if len(C) and not np.linalg.eigvalsh(C / np.outer(size, size))[0] > 1e-10:
            raise IdentificationError(
                f"segment {label!r}: the covariance of {len(C)} pooled parameters is singular, as"
                " with few clusters. Fit with cov_type='unadjusted', or pool fewer (names=)"
            )
    return Evidence.of(y, S)


def pool(
    fits: Mapping[Any, Results],
    *,
    method: str = "reml",
    structure: str = "diagonal",
    names: Sequence[str] | None = None,
    level: float = 0.95,
    scale: Scale | None = None,
    missing: str = "refuse",
) -> Pooled:
    """Shrink segments' parameters towards a prior learnt from the segments themselves.

    Parameters
    ----------
    fits : mapping of segment -> Results
        Three at least, converged; no member in two segments.
    method : {"reml", "moments"}
        How the spread between segments is estimated.
    structure : {"diagonal", "full"}
        Whether true parameters correlate; ``"full"`` takes three segments a parameter at least.
    names : sequence of str, optional
        Parameters to pool, all by default. Others move by their covariance with these only.
    level : float
        Coverage for which standard errors are calibrated, and of the intervals in tables.
    scale : mapping of parameter -> mapping of segment -> factor, optional
        What own estimates are multiplied by to be comparable: with prices in local currency, the
        units of it that buy what ten dollars do, ``{"pay": {"US": 10, "JP": 950}}``. Marketplaces
        for :meth:`Pooled.new` may be there too.
    missing : {"refuse", "borrow"}
        A segment without a parameter, or its variance, is an error or takes it from the prior.

    Raises
    ------
    SpecificationError
        Too few segments; fits that did not converge; other parameters; unknown options.
    IdentificationError
        A parameter without variance (unless borrowed); a singular covariance.
    """
    options = (("method", method, ("reml", "moments")), ("missing", missing, ("refuse", "borrow")))
    for what, choice, known in (*options, ("structure", structure, ("diagonal", "full"))):
        if choice not in known:
            raise SpecificationError(f"{what}={choice!r}: use {' or '.join(map(repr, known))}")
    if not 0 < level < 1:
        raise SpecificationError(f"level={level:g} must lie between 0 and 1 (0.95 for 95%)")
    given = list(fits.values()) if isinstance(fits, Mapping) else []
    if not given or not all(isinstance(f, Results) for f in given):
        raise SpecificationError("pool() takes a mapping of segment to Results, three at least")
    bad = [m for m, f in fits.items() if not f.converged or f.extra_names]
    if bad:
        why = "estimates more than utilities" if fits[bad[0]].converged else "did not converge"
        raise SpecificationError(f"{len(bad)} fit(s) to make again: {bad[0]!r} {why}")
    union = list(dict.fromkeys(n for f in fits.values() for n in f.names))
    chosen = union if names is None else list(dict.fromkeys(names))
    unknown = [n for n in chosen if n not in union]
    if unknown or not chosen or isinstance(names, str):
        hint = suggest(unknown[0], union) if unknown else ""
        raise SpecificationError(f"names={names!r}: unknown.{hint} Known: {', '.join(union)}")
    units = read_factors(scale or {}, chosen, list(fits))
    e, full = read_evidence(fits, chosen, missing == "borrow").scaled(units), structure == "full"
    enough(e.seen, chosen, full)
    own, names, estimate = dict(fits), tuple(chosen), shrink(e, method, full, level)
    return Pooled(own, names, method, structure, level, scale or {}, e, estimate)
