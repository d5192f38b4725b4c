"""From a mixture's optimum to its results: covariance by member or region, status, types."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import ConvergenceError, ConvergenceWarning, IdentificationWarning
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.first_stage import influence
from dynchoice.estimate.make_results import STACK, Status, without_curvature
from dynchoice.estimate.optimise import Optimization
from dynchoice.estimate.types.mixture import TypeLayout
from dynchoice.inference.covariance import bucket_sums, check_cluster, cluster_notes, inverse
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.typing import BoolArray, FloatArray

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


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Parameters that the data do not determine, by reason.

    Attributes
    ----------
    dead : BoolArray, shape (P,)
        Utility parameters along which the likelihood keeps rising.
    shares : BoolArray, shape ((Q - 1) G,)
        Share logits that separate: some first state is of one type for certain.
    twins : list of (int, int)
        Types with the same parameters.
    """

    dead: BoolArray
    shares: BoolArray
    twins: list[tuple[int, int]]

    @classmethod
    def find(cls, estimator: CCPEM, estimate: MixtureEstimate) -> Suspects:
        """Look for them."""
        layout, theta = estimator.layout, estimate.theta
        dead = np.zeros(len(theta), dtype=bool)
        # a pseudo-likelihood's curvature says nothing about the likelihood's
        for q in range(layout.types if estimate.pseudo is None else 0):
            places = layout.places(q)
            n = flat_counts(estimator, estimate.post[:, q])
            hessian = estimate.hessian[np.ix_(places, places)]
            runaway, _ = without_curvature(estimator.first.model, n, hessian)
            dead[places] |= runaway
        shares = np.abs(theta[share_places(layout)]) > RUNAWAY
        return cls(dead=dead, shares=shares, twins=coinciding(layout, theta))

    def without_variance(self, layout: TypeLayout) -> BoolArray:
        """Return the parameters (P,) that no variance is made up for."""
        G, out = len(layout.share_names), self.dead.copy()
        # the shares of types that are one cannot be told apart
        twins = {q for pair in self.twins for q in pair}
        for q in twins - {0}:
            out[layout.utility + (q - 1) * G : layout.utility + q * G] = True
        for q in twins:
            out[[layout.places(q)[layout.model_names.index(v)] for v in layout.varying]] = True
        out[share_places(layout)] |= self.shares
        return out


def share_places(layout: TypeLayout) -> slice:
    """Return where the share logits stand among the parameters."""
    return slice(layout.utility, layout.utility + (layout.types - 1) * len(layout.share_names))


def flat_counts(estimator: CCPEM, posteriors: FloatArray) -> FloatArray:
    """Return one type's counts (S, J), periods of a finite horizon added up."""
    n = estimator.data.counts(posteriors, estimator.shape)
    return n if n.ndim == 2 else n.sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class MixtureCovariance:
    """A mixture's covariance (P, P) and how it was made.

    Attributes
    ----------
    influence : FloatArray, shape (buckets, P), optional
        Of members' buckets or regions on the estimates, where it is clustered by them.
    flat : bool
        Whether the likelihood is flat along some direction.
    """

    matrix: FloatArray
    kind: str
    config: dict[str, Any]
    influence: FloatArray | None
    flat: bool


def mixture_covariance(
    estimator: CCPEM, estimate: MixtureEstimate, options: FitOptions, suspects: Suspects
) -> MixtureCovariance:
    """Return the covariance asked for, by member or region, NaN where there is none."""
    members = estimator.members
    assert members is not None
    hessian, outer, P = estimate.hessian, estimate.outer, len(estimate.theta)
    # a fixed point of re-estimated probabilities offers BHHH's only
    kind = options.cov_type if estimate.pseudo is None else "opg"
    counts = check_cluster(options.cluster, estimator.counts)
    by_member = estimate.by_history[estimator.data.member]
    first_stage = np.zeros((P, P))
    if estimate.cross:
        laws = estimator.first
        by_cell, first_stage = influence(laws.model, laws.estimates, estimate.cross)
        by_member = by_member + members.matrix() @ by_cell(members.cells[:, 1:])
    bread, flat = inverse(
        outer if kind == "opg" else -hessian, suspects.without_variance(estimator.layout)
    )
    config: dict[str, Any] = {
        "first_stage_label": estimate.label,
        "first_stage": bool(first_stage.any()),
    }
    weighted, by_unit = by_member * members.weights[:, None], None
    if kind == "opg":
        meat = outer + first_stage
    elif kind == "unadjusted":
        meat = -hessian + first_stage
    elif kind == "robust" or options.cluster == "member":
        meat = weighted.T @ by_member
        config.update(clusters=members.size, by="member")
    else:
        by_unit = bucket_sums(members.region, weighted, counts.buckets)
        meat = by_unit.T @ by_unit
        config.update(clusters=int(np.unique(members.region).size), by="region")
    if kind == "clustered":
        if by_unit is None:
            by_unit = bucket_sums(members.bucket, weighted, counts.buckets)
        config["unit"] = counts.unit
    estimated = np.isfinite(np.diag(bread))
    if "clusters" in config:
        estimated &= config["clusters"] > P
    cell = np.ix_(estimated, estimated)
    matrix = np.full_like(bread, np.nan)
    matrix[cell] = bread[cell] @ meat[cell] @ bread[cell]
    pull = None
    if by_unit is not None:
        pull = np.full_like(by_unit, np.nan)
        pull[:, estimated] = by_unit[:, estimated] @ bread[cell]
    return MixtureCovariance(
        matrix=matrix, kind=kind, config=config, influence=pull, flat=bool(flat.shape[1])
    )


def judge(estimator: CCPEM, estimate: MixtureEstimate, suspects: Suspects, flat: bool) -> Status:
    """Return whether the mixture converged to a maximum that the data determine."""
    layout, optimization = estimator.layout, estimate.optimization
    status = Status(optimization.converged, optimization.message)
    if estimate.pseudo is None and status.converged:
        values = np.linalg.eigvalsh(-estimate.hessian)
        if values[0] < -1e-8 * abs(values[-1]):
            status.fail("stationary but not at a maximum; try more starts")
    if flat:
        status.fail(
            "the likelihood is flat along some direction: types may be too many or parameters that"
            " vary may not be told apart (see identification())"
        )
    # of what is wrong, the reason behind the others is said
    if suspects.twins:
        a, b = suspects.twins[0]
        status.fail(f"types {a} and {b} have the same parameters: types may be too many")
    elif suspects.shares.any():
        lost = ", ".join(np.array(layout.names)[share_places(layout)][suspects.shares])
        status.fail(
            f"{lost} grow(s) without bound: some first states belong to one type for certain. Use"
            " fewer features in shares="
        )
    elif suspects.dead.any():
        lost = ", ".join(repr(n) for n, d in zip(layout.names, suspects.dead, strict=True) if d)
        status.fail(
            f"the likelihood keeps rising as {lost} grow(s) without bound: a type that never (or"
            " always) takes a choice. Use fewer types, or share the parameter"
        )
    return status


def mixture_results(
    estimator: CCPEM, estimate: MixtureEstimate, options: FitOptions
) -> MixtureResults:
    """Build the results of a mixture's fit; warn where they are not to be trusted."""
    from dynchoice import __version__

    theta, post, layout, data = estimate.theta, estimate.post, estimator.layout, estimator.data
    suspects = Suspects.find(estimator, estimate)
    cov = mixture_covariance(estimator, estimate, options, suspects)
    status = judge(estimator, estimate, suspects, cov.flat)
    notes = list(estimator.first.notes)
    if "clusters" in cov.config:
        notes += cluster_notes(cov.config["clusters"], len(theta))
    if estimate.pseudo is not None:
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
    if not status.converged:
        if options.strict:
            raise ConvergenceError(status.message)
        warnings.warn(f"{estimator.name}: {status.message}", ConvergenceWarning, stacklevel=STACK)
    inner = estimator.inner if estimator.valuation == "exact" else "CCP, finite dependence"
    return MixtureResults(
        estimator=f"{estimator.name} ({layout.types} types, {inner})",
        labels=layout.names,
        theta=theta,
        cov_matrix=(cov.matrix + cov.matrix.T) / 2,
        cov_type=cov.kind,
        cov_config=cov.config,
        loglik=estimate.loglik,
        nobs=estimator.counts.nobs,
        nmembers=estimator.counts.nmembers,
        converged=status.converged,
        message=status.message,
        optimization={
            **asdict(estimate.optimization),
            "starts": [dict(t) for t in estimate.trace],
            "em": estimate.iterations,
        },
        hessian=estimate.hessian,
        type_shares=type_shares,
        posteriors=post[data.member],
        by_type=results_by_type(estimator, estimate, cov, status),
        places=np.stack([layout.places(q) for q in range(layout.types)]),
        data_digest=estimator.counts.digest,
        package_version=__version__,
        seed=options.seed,
        pseudo_loglik=estimate.pseudo,
        loglik_transitions=estimator.first.loglik,
        notes=tuple(notes),
        influence=cov.influence,
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
    estimator: CCPEM, estimate: MixtureEstimate, cov: MixtureCovariance, status: Status
) -> tuple[Results, ...]:
    """Return one ordinary fit a type, its counts weighted by the posteriors."""
    from dynchoice import __version__

    theta, layout, model = estimate.theta, estimator.layout, estimator.first.model
    if layout.extra and 0 <= theta[-1] < 1:
        model = model.with_parts(beta=float(theta[-1]))
    offered = np.log(model.available.sum(axis=1))
    out = []
    for q in range(layout.types):
        places = layout.places(q)
        n = flat_counts(estimator, estimate.post[:, q])
        cov_matrix = cov.matrix[np.ix_(places, places)]
        out.append(
            Results(
                estimator=f"{estimator.name}, type {q}",
                model=model,
                theta=theta[places].copy(),
                cov_matrix=cov_matrix,
                cov_type=cov.kind,
                cov_config=dict(cov.config),
                loglik=float("nan"),
                loglik_null=-float(n.sum(axis=1) @ offered),
                nobs=float(n.sum()),
                nmembers=round(float(estimator.data.weight @ estimate.post[:, q])),
                converged=status.converged,
                message=status.message,
                optimization={},
                counts=n,
                hessian=-np.linalg.pinv(np.nan_to_num(cov_matrix)),
                value=np.zeros(model.states.size),
                data_digest=estimator.counts.digest,
                package_version=__version__,
                first_stage=estimator.first.records(),
                uses={"type": q},
            )
        )
    return tuple(out)
