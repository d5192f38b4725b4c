"""Partial pooling of parameters across segments, with a prior that the segments teach.

What is shrunk, and how, is in :mod:`dynchoice.estimate.shrinkage`; here fits become arrays, and
arrays results again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy.special import ndtri

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import IdentificationError, SpecificationError, first_few, suggest
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.shrinkage import Evidence, Shrunk, log_density, restricted, shrink
from dynchoice.inference.results import Results
from dynchoice.inference.summary import Summary, number
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import as_floats
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import BoolArray, FloatArray, Level

LEAST = 3
"""Segments that must have a parameter."""
Scale: TypeAlias = Mapping[str, Mapping[Level, float]]
Law: TypeAlias = tuple[list[str], FloatArray, FloatArray]  # labels, means (L,), covariance (L, L)


class PooledResults(Results):
    """A segment's fit after pooling: it maximises no likelihood, so AIC and BIC are NaN."""

    aic = bic = property(lambda self: float("nan"))


def evaluate_pooled(fields_of_results: dict[str, Any]) -> Results:
    """Return results with likelihood, curvature and value taken at their parameters; NaN where
    counts by state do not determine a likelihood (finite horizons, market variables)."""
    # a pseudo-likelihood that is not None: no test may take this for a maximum
    fixed = {"cov_type": "pooled", "pseudo_loglik": np.nan, "bootstrap": None, "influence": None}
    pooled: dict[str, Any] = {**fields_of_results, **fixed, "loglik": np.nan}
    model = pooled["model"]
    if pooled["market"] or model.horizon is not None:
        return PooledResults(**pooled)
    with one_blas_thread():
        start = pooled["value"] if pooled["value"].size else None
        likelihood = Likelihood(model, pooled["counts"], start)
        evaluation = likelihood.evaluate(pooled["theta"])
        pooled |= {"loglik": evaluation.loglik, "hessian": likelihood.hessian(evaluation)}
    assert evaluation.point is not None
    pooled["value"] = evaluation.point.h
    if not evaluation.converged:
        pooled |= {"converged": False, "message": f"not converged: {evaluation.message}"}
    return PooledResults(**pooled)


def move_with_pooled(fit: Results, names: Sequence[str], mean: FloatArray, cov: FloatArray) -> Law:
    """Return the law of a fit's parameters with ``names`` pooled to mean (P,) and cov (P, P).

    What is not pooled has a flat prior: with ``B = S_qp S_pp^-1`` of the own covariance it moves
    to ``q + B (mean - p)``, with covariance ``S_qq - B S_pq + B cov B'``. Pooled names that the
    model does not have stand last; what has no variance keeps its own estimate.
    """
    labels = [*fit.names, *(n for n in names if n not in fit.names)]
    K, L = len(fit.names), len(labels)
    theta, S = np.full(L, np.nan), np.full((L, L), np.nan)
    theta[:K], S[:K, :K] = fit.vector, fit.cov_matrix
    pooled, estimated = np.array([labels.index(n) for n in names]), np.isfinite(np.diag(S))
    others = np.setdiff1d(np.flatnonzero(estimated), pooled)
    informed = estimated[pooled]  # the other pooled names have no own estimate to move from
    p, B = pooled[informed], np.zeros((len(others), len(pooled)))
    B[:, informed] = np.linalg.solve(S[np.ix_(p, p)], S[np.ix_(p, others)]).T
    theta[others] += B[:, informed] @ (mean[informed] - theta[p])
    S[np.ix_(others, others)] += B @ cov @ B.T - B[:, informed] @ S[np.ix_(p, others)]
    S[np.ix_(others, pooled)], S[np.ix_(pooled, others)] = B @ cov, cov @ B.T
    theta[pooled], S[np.ix_(pooled, pooled)] = mean, cov
    return labels, theta, S


@dataclass(frozen=True, repr=False)
class Pooled:
    """Segments' parameters shrunk towards a prior that they taught; made by :func:`pool`.

    ``own`` has the segments' own fits, ``names`` the pooled parameters (P); ``evidence`` and
    ``estimate`` are their own estimates, and prior and posterior, as arrays. Tables are in the
    common units of ``scale``, results in each segment's own.
    """

    own: dict[Level, Results]
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
        e, mu = self.estimate, self.estimate.mean[-1]
        half = ndtri(0.5 + self.level / 2) * np.sqrt(np.diag(e.cov[-1]))
        columns = {"mean": mu, "std_error": e.mu_sd, "sd": np.sqrt(np.diag(e.T))}
        columns |= {"lower": mu - half, "upper": mu + half}
        return pd.DataFrame(columns, index=list(self.names))

    @property
    def shrinkage(self) -> pd.DataFrame:
        """Weight on own data, a row a segment: the share of the prior's variance that they take
        away, ``(T W T)_kk / T_kk``, or ``tau^2 / (tau^2 + s^2)`` where a parameter is alone."""
        return pd.DataFrame(self.estimate.share[:-1], list(self.own), list(self.names))

    def _law(self, label: Level) -> Law:
        """Return the law of a segment's parameters, or of a new one's, in its own units."""
        e, m = self.estimate, [*self.own, label].index(label)
        factor = read_factors(self.scale, self.names, [label])[0]
        mean, cov = e.mean[m] / factor, e.cov[m] / np.outer(factor, factor)
        fit = self.own.get(label)
        if fit is None:
            return [*self.names], mean, cov
        return move_with_pooled(fit, self.names, mean, cov)

    @property
    def _note(self) -> str:
        return (
            f"Pooled over {len(self.own)} segments ({self.method}, {self.structure} prior):"
            f" {', '.join(self.names)}. Standard errors include the prior's uncertainty"
        )

    @cached_property
    def fits(self) -> dict[Level, Results]:
        """Each segment's fit with pooled parameters and covariance, for ``dc.forecast`` (which
        draws the prior's error, that segments share, for each of them alone)."""
        out: dict[Level, Results] = {}
        for label, fit in self.own.items():
            K, (_, theta, cov) = len(fit.names), self._law(label)
            note = f"{self._note}. Log-likelihood at the own estimates: {number(fit.loglik)}"
            config = {k: v for k, v in fit.cov_config.items() if k == "first_stage_label"}
            out[label] = evaluate_pooled(
                {
                    **{f.name: getattr(fit, f.name) for f in fields(fit)},
                    "estimator": f"{fit.estimator} (pooled)",
                    "theta": theta[:K],
                    "cov_matrix": cov[:K, :K],
                    "cov_config": config,
                    "notes": (*fit.notes, note),
                }
            )
        return out

    def new(self, model: DDC, name: Level) -> Results:
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
        places = [labels.index(n) for n in model.names]
        kind = "Posterior" if name in self.own else "Prior"
        return evaluate_pooled(
            {
                "estimator": f"{kind} (pooled)",
                "model": model,
                "theta": theta[places],
                "cov_matrix": cov[np.ix_(places, places)],
                "cov_config": {},
                "loglik_null": 0.0,
                "nobs": 0.0,
                "nmembers": 0,
                "converged": True,
                "message": "no data",
                "optimization": {},
                "counts": np.zeros(model.shape[:2]),
                "hessian": np.zeros((0, 0)),
                "value": np.zeros(0),
                "data_digest": "",
                "package_version": __version__,
                "market": (),
                "notes": (f"{name}: {kind.lower()}, no data here. {self._note}",),
            }
        )

    def leave_one_out(self) -> pd.DataFrame:
        """Return how well the other segments predict each one's own estimate, in common units.

        Columns ``segment parameter estimate std_error``; ``predicted`` and ``predicted_sd`` of the
        true parameter; ``z`` of the estimate; and its log-density under pooling
        (``log_pooled``), complete pooling (T = 0: ``log_complete``) and none (``log_none``: the
        truth is what another segment, at random, estimates). One segment more than for pooling is
        needed, or SpecificationError."""
        parts, full, e = [], self.structure == "full", self.evidence
        require_segments(e.seen, self.names, full, 1)
        no_spread = np.zeros(2 * (len(self.names),))
        for m, label in enumerate(self.own):
            rest, k = e.without(m), np.flatnonzero(e.seen[m])
            s = shrink(rest, self.method, full, self.level, [m])
            complete = restricted(no_spread, rest)
            y, noise, mean, variance = e.y[m, k], e.S[m, k, k], s.mean[0, k], s.cov[0, k, k]
            part = pd.DataFrame({"segment": [label] * len(k), "parameter": np.array(self.names)[k]})
            part["estimate"], part["std_error"] = y, np.sqrt(noise)
            part["predicted"], part["predicted_sd"] = mean, np.sqrt(variance)
            part["z"] = (y - mean) / np.sqrt(variance + noise)
            gaps, spreads = y - s.means[:, 0, k], s.variances[:, 0, k] + noise
            part["log_pooled"] = log_density(gaps, spreads, s.weights[:, None])
            gaps, spreads = (y - complete.mu[k])[None], (complete.C[k, k] + noise)[None]
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


def require_segments(seen: BoolArray, names: Sequence[str], full: bool, spare: int = 0) -> None:
    """Raise where segments (M, P), ``spare`` of them left out, cannot teach the prior."""
    least, both = spare + (LEAST * len(names) if full else LEAST), seen.T.astype(int) @ seen
    few = [n for k, n in enumerate(names) if (both[k] if full else both[k, k]).min() < least]
    if few:
        why = "'full' takes three a parameter" if full else "two cannot tell how much they differ"
        raise SpecificationError(
            f"{least} segments at least must have {first_few(few)}, which fewer of {len(seen)} do"
            f" ({why}{', and one is left out' * spare}): pool others (names=)"
        )


def read_factors(scale: Scale, names: Sequence[str], segments: Sequence[Level]) -> FloatArray:
    """Return the factor of every segment and pooled parameter (M, P), one where none is given."""
    checks.known(scale, names, "scale: pooled parameter")
    out = np.ones((len(segments), len(names)))
    for name, by_segment in scale.items():
        factors = as_floats([by_segment.get(m, np.nan) for m in segments], f"scale[{name!r}]")
        lost = [m for m, f in zip(segments, factors, strict=True) if not 0 < f < np.inf]
        if lost:
            raise SpecificationError(f"scale[{name!r}]: no positive factor of {first_few(lost)}")
        out[:, names.index(name)] = factors
    return out


def read_evidence(fits: Mapping[Level, Results], names: Sequence[str], borrow: bool) -> Evidence:
    """Return own estimates of the pooled parameters, in the segments' own units."""
    y = np.full((len(fits), len(names)), np.nan)
    S = np.full((*y.shape, len(names)), np.nan)
    for m, (label, fit) in enumerate(fits.items()):
        shared = [i for i, n in enumerate(names) if n in fit.names]
        places = [fit.names.index(names[i]) for i in shared]
        S[np.ix_([m], shared, shared)] = fit.cov_matrix[np.ix_(places, places)]
        variances = S[m, shared, shared]
        y[m, shared] = np.where(np.isfinite(variances), fit.vector[places], np.nan)
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
    fits: Mapping[Level, Results],
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
    checks.one_of(method, "method", ("reml", "moments"))
    checks.one_of(missing, "missing", ("refuse", "borrow"))
    checks.one_of(structure, "structure", ("diagonal", "full"))
    checks.share(level, "level", open_interval=True)
    if (
        not isinstance(fits, Mapping)
        or not fits
        or not all(isinstance(f, Results) for f in fits.values())
    ):
        raise SpecificationError("pool() takes a mapping of segment to Results, three at least")
    bad = [m for m, f in fits.items() if not f.converged or f.extra_names]
    if bad:
        why = "estimates more than utilities" if fits[bad[0]].converged else "did not converge"
        raise SpecificationError(f"{len(bad)} fit(s) to make again: {bad[0]!r} {why}")
    union = list(dict.fromkeys(n for f in fits.values() for n in f.names))
    chosen = union if names is None else list(dict.fromkeys(checks.items(names, "names")))
    checks.known(chosen, union, "names: parameter")
    factors = read_factors(scale or {}, chosen, list(fits))
    evidence = read_evidence(fits, chosen, missing == "borrow").scaled(factors)
    full = structure == "full"
    require_segments(evidence.seen, chosen, full)
    return Pooled(
        own=dict(fits),
        names=tuple(chosen),
        method=method,
        structure=structure,
        level=level,
        scale=scale or {},
        evidence=evidence,
        estimate=shrink(evidence, method, full, level),
    )
