"""From an optimum to a Results object: scores by cell, covariance, status."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np

from dynchoice.errors import ConvergenceError, ConvergenceWarning, IdentificationWarning
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.first_stage import FirstStage, influence
from dynchoice.estimate.likelihood import Evaluation, Likelihood
from dynchoice.estimate.optimise import Optimization
from dynchoice.inference.covariance import CellScore, check_cluster, cluster_notes, covariance
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.results import Results
from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts
from dynchoice.typing import BoolArray, FloatArray, IntArray

STACK = 6
"""Calls between a user's ``fit`` and a warning raised here: the warning names the user's line."""


@dataclass(frozen=True)
class ScoreParts:
    """What a covariance needs: Hessian and outer product (K, K), scores by cell, ``V1``."""

    hessian: FloatArray
    outer: FloatArray
    psi: CellScore
    first_stage: FloatArray
    label: str
    choice_meat: FloatArray | None = None
    noise: FloatArray | None = None
    """Variance of the scores from simulated values, on top of the data's."""
    cross: dict[str, FloatArray] | None = None
    """Derivative of the score by each estimated law's rows (K, R, m): forecasts draw both."""


def score_parts(likelihood: Likelihood, evaluation: Evaluation, first: FirstStage) -> ScoreParts:
    """Return scores by cell with the influence of an estimated first stage."""
    K = len(evaluation.params)
    dlogp = evaluation.dlogp
    by_cell, V1, cross = None, np.zeros((K, K)), None
    label = "none: transitions given"
    if first.estimates and likelihood.model.beta > 0:
        cross = likelihood.cross_derivative(evaluation)
        by_cell, V1 = influence(first.model, first.estimates, cross)
        label = "included"
    elif first.estimates:
        label = "none: beta is zero"

    def psi(cells: IntArray) -> FloatArray:
        s, j = cells[:, 0], cells[:, 1]
        by_choice = dlogp[s, j] if dlogp.ndim == 3 else dlogp[cells[:, 4], s, j]
        out = by_choice * cells[:, 3, None]
        return out if by_cell is None else out + by_cell(cells)

    hessian = likelihood.hessian(evaluation)
    if likelihood.solver.system.failures:
        label = f"NOT reliable: {likelihood.solver.system.failures[-1]}"
        warnings.warn(
            f"a linear solve behind the standard errors failed:"
            f" {likelihood.solver.system.failures[-1]}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return ScoreParts(hessian, evaluation.outer, psi, V1, label, cross=cross)


def without_curvature(model: DDC, n: FloatArray, hessian: FloatArray) -> tuple[BoolArray, bool]:
    """Return parameters that ran off to infinity (K,), and whether the point is no maximum.

    Information left at the estimate is compared, direction by direction, with what the same
    member-months would give in a static logit with equal probabilities. A direction that keeps
    less than a millionth of it, and less than a thousandth of one observation, is one along which
    the likelihood rises without bound (separation). Rare choices keep their few events.
    """
    K = len(model.names)
    equal = model.available / model.available.sum(axis=1, keepdims=True)
    possible = np.zeros((K, K))
    seen = np.ascontiguousarray(n.sum(axis=1))
    kernels.weighted_choice_covariance(seen, equal, model.utility.x, possible)
    left = -hessian[:K, :K]
    size = np.sqrt(np.maximum(np.diag(possible), 0.0))
    acts = np.sqrt(np.maximum(np.diag(left), 0.0))
    scale = np.where(size > 0, size, np.where(acts > 0, acts, 1.0))
    values, vectors = np.linalg.eigh(left / np.outer(scale, scale))
    static = np.einsum("ki,kl,li->i", vectors, possible / np.outer(scale, scale), vectors)
    ratio = values / np.maximum(static, 1e-300)
    gone = (np.abs(ratio) < 1e-6) & (np.abs(ratio) * seen.sum() < 1e-3) & (static > 1e-12)
    dead = (np.abs(vectors[:, gone]) > 1e-3).any(axis=1)
    falls = bool((values[~gone] < -1e-8 * np.abs(values).max()).any())
    return dead, falls


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Where an estimator stopped, before covariance and results are made of it.

    Attributes
    ----------
    name : str
        The estimator, with what of its options a reader must know.
    first : FirstStage
    counts : Counts
    evaluation : Evaluation
        The likelihood at the estimate.
    parts : ScoreParts
        May speak of more parameters than the results report (probabilities estimated jointly).
    optimization : Optimization
    pseudo_loglik : float, optional
        What was maximised, where it was no likelihood.
    extra_names : tuple of str
        Parameters reported after the model's.
    extra_params : int
        Parameters beside those reported; default: the first stage's.
    model : DDC, optional
        The model to report where it is not the first stage's (an estimated discount factor).
    uses : dict, optional
        What of the data the estimate rests on.
    """

    name: str
    first: FirstStage
    counts: Counts
    evaluation: Evaluation
    parts: ScoreParts
    optimization: Optimization
    pseudo_loglik: float | None = None
    notes: tuple[str, ...] = ()
    extra_names: tuple[str, ...] = ()
    extra_params: int = 0
    loglik_transitions: float | None = None
    model: DDC | None = None
    uses: dict[str, float] | None = None


@dataclass
class Status:
    """Whether an estimate is to be trusted, in words; the last thing found wrong is said."""

    converged: bool
    message: str

    def fail(self, reason: str) -> None:
        """Say that the estimate is none, and why."""
        self.converged, self.message = False, f"not converged: {reason}"


def _named(model: DDC, dead: BoolArray) -> str:
    """Return the parameters that ran off, for a message."""
    return ", ".join(repr(name) for name, d in zip(model.names, dead, strict=False) if d)


def _judge(estimate: Estimate, model: DDC, dead: BoolArray, no_maximum: bool) -> Status:
    """Return whether the estimate converged to a maximum, inner solution included."""
    status = Status(estimate.optimization.converged, estimate.optimization.message)
    if not estimate.evaluation.converged:
        status.fail(estimate.evaluation.message)
    if no_maximum:
        status.fail(
            "the likelihood is stationary but not at a maximum (its curvature has the wrong sign"
            " along some direction): try start= or starts="
        )
    if dead.any():
        status.fail(
            f"the likelihood keeps rising as {_named(model, dead)} grow(s) without bound, as when a"
            " choice with a parameter of its own is never (or always) taken. Drop the parameter or"
            " make the choice unavailable"
        )
    return status


def _describe_flat(labels: tuple[str, ...], hessian: FloatArray) -> str:
    """Return in words along what the likelihood is flat."""
    flat = Identification.of(labels, -hessian).flat if labels else []
    flat = flat or ["a direction that involves the transition probabilities"]
    return f"the likelihood is flat along: {'; '.join(flat)}"


def make_results(estimate: Estimate, options: FitOptions) -> Results:
    """Build the results; warn (or raise, if strict) where the estimate is not to be trusted."""
    from dynchoice import __version__

    first, counts, parts = estimate.first, estimate.counts, estimate.parts
    evaluation = estimate.evaluation
    model = first.model if estimate.model is None else estimate.model
    K = len(model.names)
    total = K + len(estimate.extra_names)
    n = counts.n_sj()
    runaway, no_maximum = without_curvature(model, n, parts.hessian)
    dead = np.zeros(len(parts.hessian), dtype=bool)
    dead[:K] = runaway
    cov = covariance(
        options.cov_type,
        parts.hessian,
        parts.outer,
        parts.psi,
        parts.first_stage,
        counts=check_cluster(options.cluster, counts),
        dead=dead,
        choice_meat=parts.choice_meat,
        noise=parts.noise,
    )
    notes = [*first.notes, *estimate.notes]
    status = _judge(estimate, model, dead, no_maximum)
    if dead.any():
        notes.append(f"No estimate of {_named(model, dead)}: {status.message}")
    if "clusters" in cov.config:
        notes += cluster_notes(cov.config["clusters"], total)
    if cov.flat.shape[1]:
        labels = (*model.names, *estimate.extra_names)
        text = _describe_flat(labels, parts.hessian[:total, :total])
        notes.append(text[0].upper() + text[1:])
        warnings.warn(text, IdentificationWarning, stacklevel=STACK)
    if not status.converged:
        if options.strict:
            raise ConvergenceError(status.message)
        warnings.warn(f"{estimate.name}: {status.message}", ConvergenceWarning, stacklevel=STACK)
    # simulated values add noise that no cluster's influence holds
    by_cluster = None if parts.noise is not None else cov.influence
    loglik_laws = estimate.loglik_transitions
    return Results(
        estimator=estimate.name,
        model=model,
        theta=evaluation.params[:K].copy(),
        cov_matrix=cov.matrix[:total, :total],
        cov_type=cov.cov_type,
        cov_config={**cov.config, "first_stage_label": parts.label},
        loglik=evaluation.loglik,
        loglik_null=-float(n.sum(axis=1) @ np.log(model.available.sum(axis=1))),
        nobs=counts.nobs,
        nmembers=counts.nmembers,
        converged=status.converged,
        message=status.message,
        optimization={**asdict(estimate.optimization), "inner": evaluation.message},
        counts=n,
        hessian=parts.hessian[:total, :total],
        uses=estimate.uses or {"share": 1.0, "states": int((n.sum(axis=1) > 0).sum())},
        extra=evaluation.params[K:total].copy(),
        extra_names=estimate.extra_names,
        influence=None if by_cluster is None else by_cluster[:, :total],
        value=np.zeros(0) if evaluation.point is None else evaluation.point.h,
        data_digest=counts.digest,
        package_version=__version__,
        seed=options.seed,
        loglik_transitions=first.loglik if loglik_laws is None else loglik_laws,
        pseudo_loglik=estimate.pseudo_loglik,
        extra_params=estimate.extra_params or first.nparams,
        notes=tuple(notes),
        first_stage=first.records(parts.cross),
    )
