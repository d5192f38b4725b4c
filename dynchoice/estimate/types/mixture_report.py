"""From a mixture's optimum to its results: covariance by member or region, status, types."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import ConvergenceError, ConvergenceWarning, IdentificationWarning
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.first_stage import influence
from dynchoice.estimate.make_results import STACK, without_curvature
from dynchoice.estimate.optimise import Optimization
from dynchoice.estimate.types.mixture import TypeLayout
from dynchoice.inference.covariance import bucket_sums, check_cluster, cluster_notes, inverse
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from dynchoice.estimate.ccpem import CCPEM

RUNAWAY = 20.0
"""Log-odds of a type share beyond which it is certain."""
COINCIDE = 1e-3
"""Relative difference of parameters below which two types are one."""


@dataclass(frozen=True, kw_only=True)
class MixtureEstimate:
    """Where a mixture's maximisation stopped, before covariance and results are made of it.

    Attributes
    ----------
    theta : FloatArray, shape (P,)
    post : FloatArray, shape (N, Q)
        Posteriors by distinct history.
    hessian, outer : FloatArray, shape (P, P)
    by_history : FloatArray, shape (N, P)
        Scores of histories.
    cross : dict, optional
        Derivative of the score by the laws of motion, to carry their error.
    label : str
        What the standard errors say of the first stage.
    trace : tuple of dict
        Every starting point; ``iterations`` are EM's steps from the best.
    each : FloatArray, shape (N,), optional
        Log-likelihood of each history.
    pseudo : float, optional
        Pseudo-log-likelihood where that was maximised.
    """

    theta: FloatArray
    loglik: float
    post: FloatArray
    hessian: FloatArray
    outer: FloatArray
    by_history: FloatArray
    label: str
    optimization: Optimization
    trace: tuple[dict[str, Any], ...]
    iterations: int
    cross: dict[str, FloatArray] | None = None
    pseudo: float | None = None
    each: FloatArray | None = None


def mixture_results(
    estimator: CCPEM, estimate: MixtureEstimate, options: FitOptions
) -> MixtureResults:
    """Build the results of a mixture's fit; warn where they are not to be trusted."""
    from dynchoice import __version__

    theta, post, hessian, outer = estimate.theta, estimate.post, estimate.hessian, estimate.outer
    pseudo, optimization = estimate.pseudo, estimate.optimization
    kind, cluster = options.cov_type, options.cluster
    L, data, members = estimator.layout, estimator.data, estimator.members
    assert members is not None
    counts = check_cluster(cluster, estimator.counts)
    own = estimate.by_history[data.member]
    V1 = np.zeros((len(theta),) * 2)
    if estimate.cross:
        laws = estimator.first
        by_cell, V1 = influence(laws.model, laws.estimates, estimate.cross)
        own = own + members.matrix() @ by_cell(members.cells[:, 1:])
    notes = list(estimator.first.notes)
    if pseudo is not None:
        kind = "opg"  # the only one that a fixed point of re-estimated probabilities offers
    config: dict[str, Any] = {"first_stage_label": estimate.label, "first_stage": bool(V1.any())}
    model = estimator.first.model
    dead = np.zeros(len(theta), dtype=bool)
    for q in range(L.types if pseudo is None else 0):
        where = L.places(q)
        n = data.counts(post[:, q], estimator.shape)
        own_n = n if n.ndim == 2 else n.sum(axis=0)
        off, _ = without_curvature(model, own_n, hessian[np.ix_(where, where)])
        dead[where] |= off
    # the shares of types that are one cannot be told apart: no variance is made up for them
    twins = coinciding(L, theta)
    G = len(L.share_names)
    alone = dead.copy()
    for q in {q for pair in twins for q in pair} - {0}:
        alone[L.utility + (q - 1) * G : L.utility + q * G] = True
    for q in {q for pair in twins for q in pair}:
        alone[[L.places(q)[L.model_names.index(v)] for v in L.varying]] = True
    # a share logit that separates: some first state is of one type for certain
    first = slice(L.utility, L.utility + (L.types - 1) * G)
    runaway = np.abs(theta[first]) > RUNAWAY
    alone[first] |= runaway
    bread, flat = inverse(outer if kind == "opg" else -hessian, alone)
    weighted = own * members.weights[:, None]
    by_unit = None
    if kind == "opg":
        meat = outer + V1
    elif kind == "unadjusted":
        meat = -hessian + V1
    elif kind == "robust" or cluster == "member":
        meat = weighted.T @ own
        config.update(clusters=members.size, by="member")
    else:
        by_unit = bucket_sums(members.region, weighted, counts.buckets)
        meat = by_unit.T @ by_unit
        config.update(clusters=int(np.unique(members.region).size), by="region")
    if kind == "clustered":
        if by_unit is None:
            by_unit = bucket_sums(members.bucket, weighted, counts.buckets)
        config["unit"] = counts.unit
    known = np.isfinite(np.diag(bread))
    if "clusters" in config:
        notes += cluster_notes(config["clusters"], len(theta))
        known &= config["clusters"] > len(theta)
    at = np.ix_(known, known)
    cov = np.full_like(bread, np.nan)
    cov[at] = bread[at] @ meat[at] @ bread[at]
    pull = None
    if by_unit is not None:
        pull = np.full_like(by_unit, np.nan)
        pull[:, known] = by_unit[:, known] @ bread[at]
    values = np.linalg.eigvalsh(-hessian) if pseudo is None else np.ones(1)
    converged, message = optimization.converged, optimization.message
    if converged and values[0] < -1e-8 * abs(values[-1]):
        converged = False
        message = "not converged: stationary but not at a maximum; try more starts"
    if flat.shape[1]:
        converged = False
        message = (
            "not converged: the likelihood is flat along some direction: types may be too many"
            " or parameters that vary may not be told apart (see identification())"
        )
    if twins:
        converged = False
        a, b = twins[0]
        message = (
            f"not converged: types {a} and {b} have the same parameters: types may be too many"
        )
    elif runaway.any():
        lost = ", ".join(np.array(L.names)[first][runaway])
        converged = False
        message = (
            f"not converged: {lost} grow(s) without bound: some first states belong to one type for"
            " certain. Use fewer features in shares="
        )
    elif dead.any():
        lost = ", ".join(repr(n) for n, d in zip(L.names, dead, strict=True) if d)
        converged = False
        message = (
            f"not converged: the likelihood keeps rising as {lost} grow(s) without bound: a type"
            " that never (or always) takes a choice. Use fewer types, or share the parameter"
        )
    if pseudo is not None:
        text = (
            "standard errors are BHHH's and take the first-stage choice probabilities as known,"
            " which can be wrong by a factor of two either way: use cov_type='bootstrap'"
        )
        notes.append(text[0].upper() + text[1:])
        warnings.warn(f"{estimator.name}: {text}", IdentificationWarning, stacklevel=STACK)
    weights = data.weight[:, None] * post
    type_shares = weights.sum(axis=0) / weights.sum()
    if type_shares.min() < 0.01:
        notes.append(
            f"The smallest type has {type_shares.min():.2%} of the members: intervals are not"
            " normal there, and fewer types may do"
        )
    if not converged:
        if options.strict:
            raise ConvergenceError(message)
        warnings.warn(f"{estimator.name}: {message}", ConvergenceWarning, stacklevel=STACK)
    inner = estimator.inner if estimator.valuation == "exact" else "CCP, finite dependence"
    status = {**asdict(optimization), "starts": [dict(t) for t in estimate.trace]}
    status["em"] = estimate.iterations
    return MixtureResults(
        estimator=f"{estimator.name} ({L.types} types, {inner})",
        labels=L.names,
        theta=theta,
        cov_matrix=(cov + cov.T) / 2,
        cov_type=kind,
        cov_config=config,
        loglik=estimate.loglik,
        nobs=estimator.counts.nobs,
        nmembers=estimator.counts.nmembers,
        converged=converged,
        message=message,
        optimization=status,
        hessian=hessian,
        type_shares=type_shares,
        posteriors=post[data.member],
        by_type=results_by_type(
            estimator,
            theta,
            cov,
            post,
            kind=kind,
            config=config,
            converged=converged,
            message=message,
        ),
        places=np.stack([L.places(q) for q in range(L.types)]),
        data_digest=estimator.counts.digest,
        package_version=__version__,
        seed=options.seed,
        pseudo_loglik=pseudo,
        loglik_transitions=estimator.first.loglik,
        notes=tuple(notes),
        influence=pull,
        member_loglik=None if estimate.each is None else estimate.each[data.member],
    )


def coinciding(layout: TypeLayout, theta: FloatArray) -> list[tuple[int, int]]:
    """Return pairs of types whose parameters are the same for all that matters."""
    out = []
    for q in range(1, layout.types):
        for other in range(q):
            a, b = theta[layout.places(q)], theta[layout.places(other)]
            if np.abs(a - b).max() <= COINCIDE * (1 + np.abs(a).max()):
                out.append((other, q))
    return out


def results_by_type(
    estimator: CCPEM,
    theta: FloatArray,
    cov: FloatArray,
    post: FloatArray,
    *,
    kind: str,
    config: dict[str, Any],
    converged: bool,
    message: str,
) -> tuple[Results, ...]:
    """Return one ordinary fit a type, its counts weighted by the posteriors."""
    from dynchoice import __version__

    L, model = estimator.layout, estimator.first.model
    if L.extra and 0 <= theta[-1] < 1:
        model = model.with_parts(beta=float(theta[-1]))
    out = []
    for q in range(L.types):
        where = L.places(q)
        n = estimator.data.counts(post[:, q], estimator.shape)
        flat = n if n.ndim == 2 else n.sum(axis=0)
        offered = np.log(model.available.sum(axis=1))
        out.append(
            Results(
                estimator=f"{estimator.name}, type {q}",
                model=model,
                theta=theta[where].copy(),
                cov_matrix=cov[np.ix_(where, where)],
                cov_type=kind,
                cov_config=dict(config),
                loglik=float("nan"),
                loglik_null=-float(flat.sum(axis=1) @ offered),
                nobs=float(flat.sum()),
                nmembers=round(float(estimator.data.weight @ post[:, q])),
                converged=converged,
                message=message,
                optimization={},
                counts=flat,
                hessian=-np.linalg.pinv(np.nan_to_num(cov[np.ix_(where, where)])),
                value=np.zeros(model.states.size),
                data_digest=estimator.counts.digest,
                package_version=__version__,
                first_stage=estimator.first.records(),
                uses={"type": q},
            )
        )
    return tuple(out)
