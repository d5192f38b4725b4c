"""From an optimum to a Results object: scores by cell, covariance, status."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np

from dynchoice.errors import ConvergenceError, ConvergenceWarning, IdentificationWarning
from dynchoice.estimate.first_stage import FirstStage, influence
from dynchoice.estimate.likelihood import Evaluation, Likelihood
from dynchoice.estimate.optimise import Optimization
from dynchoice.inference.covariance import FEW_CLUSTERS, CellScore, covariance
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.results import Results
from dynchoice.panel.counts import Counts
from dynchoice.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class ScoreParts:
    """What a covariance needs: Hessian and outer product (K, K), scores by cell, ``V1``."""

    hessian: FloatArray
    outer: FloatArray
    psi: CellScore
    first_stage: FloatArray
    label: str


def score_parts(likelihood: Likelihood, at: Evaluation, first: FirstStage) -> ScoreParts:
    """Return scores by cell with the influence of an estimated first stage."""
    K = len(at.params)
    dlogp = at.dlogp
    by_cell, V1 = None, np.zeros((K, K))
    label = "none: transitions given"
    if first.estimates and likelihood.model.beta > 0:
        cross = likelihood.cross_derivative(at)
        by_cell, V1 = influence(first.model, first.estimates, cross)
        label = "included"
    elif first.estimates:
        label = "none: beta is zero"

    def psi(cells: IntArray) -> FloatArray:
        s, j = cells[:, 0], cells[:, 1]
        own = dlogp[s, j] if dlogp.ndim == 3 else dlogp[cells[:, 4], s, j]
        out = own * cells[:, 3, None]
        return out if by_cell is None else out + by_cell(cells)

    return ScoreParts(likelihood.hessian(at), at.outer, psi, V1, label)


def without_curvature(first: FirstStage, hessian: FloatArray) -> BoolArray:
    """Return parameters whose information is below a thousandth of one observation.

    In units of the largest feature; such a parameter has run off to infinity (separation). The
    other rows of a joint Hessian (log-odds) are never marked.
    """
    K = len(first.model.names)
    extent = np.abs(first.model.utility.x).reshape(-1, K).max(axis=0)
    out = np.zeros(len(hessian), dtype=bool)
    out[:K] = ~(-np.diag(hessian)[:K] > 1e-3 * extent**2)
    return out


def as_results(
    estimator: str,
    first: FirstStage,
    counts: Counts,
    at: Evaluation,
    parts: ScoreParts,
    optimization: Optimization,
    cov_type: str,
    *,
    seed: int | None = None,
    strict: bool = False,
    pseudo_loglik: float | None = None,
    notes: tuple[str, ...] = (),
    extra_params: int = 0,
    loglik_transitions: float | None = None,
) -> Results:
    """Build the results; warn (or raise, if strict) where the estimate is not to be trusted."""
    from dynchoice import __version__

    model = first.model
    K = len(model.names)
    dead = without_curvature(first, parts.hessian)
    cov = covariance(
        cov_type, parts.hessian, parts.outer, parts.psi, parts.first_stage, counts, dead
    )
    config = {**cov.config, "first_stage_label": parts.label}
    found = [*first.notes, *notes]
    converged, message = optimization.converged, optimization.message
    if not at.converged:
        converged, message = False, f"not converged: {at.message}"
    if dead.any():
        names = ", ".join(repr(n) for n, d in zip(model.names, dead, strict=False) if d)
        message = (
            f"not converged: the likelihood keeps rising as {names} grow(s) without bound, as when"
            " a choice with a parameter of its own is never (or always) taken. Drop the parameter"
            " or make the choice unavailable"
        )
        converged = False
        found.append(f"No estimate of {names}: {message}")
    clusters = cov.config.get("clusters", FEW_CLUSTERS)
    if clusters <= K:
        text = f"{clusters} cluster(s) cannot carry standard errors of {K} parameters: none given"
        found.append(text[0].upper() + text[1:])
        warnings.warn(text, IdentificationWarning, stacklevel=3)
    elif clusters < FEW_CLUSTERS:
        found.append(f"Only {clusters} clusters: standard errors are rough, likely too small")
    flat = Identification.of(model.names, -parts.hessian[:K, :K]).flat if K else []
    if cov.flat.shape[1]:
        flat = flat or ["a direction that involves the transition probabilities"]
        text = f"the likelihood is flat along: {'; '.join(flat)}"
        found.append(text[0].upper() + text[1:])
        warnings.warn(text, IdentificationWarning, stacklevel=3)
    if not converged:
        if strict:
            raise ConvergenceError(message)
        warnings.warn(f"{estimator}: {message}", ConvergenceWarning, stacklevel=3)
    n = counts.n_sj()
    offered = np.log(model.available.sum(axis=1))
    return Results(
        estimator=estimator,
        model=model,
        theta=at.params[:K].copy(),
        cov_matrix=cov.matrix[:K, :K],
        cov_type=cov.cov_type,
        cov_config=config,
        loglik=at.loglik,
        loglik_null=-float(n.sum(axis=1) @ offered),
        nobs=counts.nobs,
        nmembers=counts.nmembers,
        converged=converged,
        message=message,
        optimization={**asdict(optimization), "inner": at.message},
        counts=n,
        hessian=parts.hessian[:K, :K],
        value=np.zeros(0) if at.point is None else at.point.h,
        data_digest=counts.digest,
        package_version=__version__,
        seed=seed,
        loglik_transitions=first.loglik if loglik_transitions is None else loglik_transitions,
        pseudo_loglik=pseudo_loglik,
        extra_params=extra_params or first.nparams,
        notes=tuple(found),
        first_stage=first.records(),
    )
