"""CCP: the estimator that replaces the fixed point by first-stage choice probabilities.

Hotz and Miller's (1993) pseudo-likelihood, with the values of
:mod:`dynchoice.estimate.policy_inversion` (policy inversion, simulated paths) or of
:mod:`dynchoice.estimate.finite_dependence`. It is also where NFXP starts.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynchoice.errors import (
    IdentificationError,
    IdentificationWarning,
    SpecificationError,
)
from dynchoice.estimate.choice_probabilities import (
    ChoiceProbabilities,
    smoothed,
    static,
)
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.finite_dependence import DependentEvaluation, DependentLikelihood
from dynchoice.estimate.first_stage import FirstStage, influence
from dynchoice.estimate.likelihood import (
    Evaluation,
    FiniteLikelihood,
    Likelihood,
)
from dynchoice.estimate.make_results import Estimate, ScoreParts, make_results, score_parts
from dynchoice.estimate.optimise import (
    Optimization,
    maximise,
    newton_decrement,
)
from dynchoice.estimate.policy_inversion import (
    SimulatedValues,
    pseudo_likelihood,
    valuation,
)
from dynchoice.estimate.refuse_unidentified import refuse_unidentified
from dynchoice.estimate.two_step import TwoStepEstimator, check_valuation
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.results import Results
from dynchoice.model.attention import unmix
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts
from dynchoice.solvers.linear import PolicySystem
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.model.utility import Utility
    from dynchoice.panel.panel import Panel

FAR_END = 1e-2
"""Discounted weight beyond the end of simulated paths above which values are called poor."""
HINGES = 0.5
"""Standard errors that an estimate may move when the probabilities of empty cells double."""


def hotz_miller(
    model: DDC,
    n: FloatArray,
    steps: int = 1,
    tol: float = 1e-8,
    maxiter: int = 100,
    P: FloatArray | None = None,
) -> tuple[Evaluation, Optimization, FloatArray]:
    """Return the pseudo-likelihood's evaluation, its optimisation and the value ``V`` (S,).

    ``P`` (S, J) are first-stage probabilities, by default smoothed frequencies; each of the
    ``steps`` stages starts from the probabilities of the last one.
    """

    def fit(likelihood: Likelihood, start: FloatArray) -> tuple[Evaluation, Optimization]:
        evaluate, hessian = likelihood.evaluate, likelihood.hessian
        return maximise(evaluate, hessian, start, likelihood.total, tol=tol, maxiter=maxiter)

    # the static logit's parameters lie far from the dynamic ones; at zero the logit is flat
    start = np.zeros(len(model.names))
    if model.beta == 0:
        logit = Likelihood(static(model, model.utility.x, model.utility.offset), n)
        return *fit(logit, start), np.zeros(len(n))
    if P is None:
        P = smoothed(model, n).P
    system = PolicySystem(model.transitions, model.beta)
    for _ in range(steps):
        likelihood, Wz, We = pseudo_likelihood(model, system, n, P)
        best, optimization = fit(likelihood, start)
        P, start = best.P, best.params
    return best, optimization, Wz @ best.params + We


class CCP(TwoStepEstimator[Results]):
    """Conditional choice probability estimator of Hotz and Miller (1993).

    Parameters
    ----------
    model : DDC
        Infinite horizon; a finite one with ``valuation="finite-dependence"``.
    data : Panel or Counts
    first_stage : str or Utility
        Choice probabilities: ``"frequencies"`` (floored at 1e-6), ``"smoothed"`` (shrunk to a
        static logit with the weight of ten observations a state), ``"logit"`` (flexible, in
        every axis and their products), a formula over the axes (and ``period``, from 0, at a
        finite horizon) for a flexible logit of your own, or a Utility with its features.
    valuation : {"exact", "simulation", "finite-dependence"}
        Policy inversion; simulated paths (Hotz, Miller, Sanders and Smith 1994); or weights over
        one or two periods (Arcidiacono and Miller 2011), where they exist.
    beta : None or "estimate"
        ``"estimate"``: the discount factor as a further parameter ``beta`` (finite dependence).
    dependence : {1, 2}
        Longest finite dependence to use.
    paths : int
        Simulated paths from every state that can follow a seen one.

    Raises
    ------
    SpecificationError
        An option that is not known or does not fit; no finite dependence anywhere.

    Notes
    -----
    With exact values the estimator is asymptotically equivalent to NFXP given the transitions
    (Aguirregabiria and Mira 2002, Proposition 4) and reports its covariance; in finite samples it
    leans on its first stage, and :class:`NPL` or the bootstrap is the remedy. With finite
    dependence the first stage's influence is in the standard errors. ``loglik`` is the likelihood
    at the estimates, the maximised pseudo-likelihood stands in ``pseudo_loglik``.

    References
    ----------
    Hotz and Miller (1993), Review of Economic Studies 60. Aguirregabiria and Mira (2002),
    Econometrica 70. Arcidiacono and Miller (2011), Econometrica 79.
    """

    name = "CCP"

    def __init__(
        self,
        model: DDC,
        data: Panel | Counts,
        *,
        first_stage: str | Utility = "smoothed",
        valuation: str = "exact",
        beta: str | None = None,
        dependence: int = 2,
        paths: int = 1000,
    ) -> None:
        check_valuation(self.name, model, valuation, beta)
        self.options = {
            "first_stage": first_stage,
            "valuation": valuation,
            "beta": beta,
            "dependence": dependence,
            "paths": paths,
        }
        self.valuation, self.free_beta = valuation, beta is not None
        self.dependence, self.paths = dependence, paths
        self._read(model, data, first_stage)

    def estimate(self, options: FitOptions) -> Results:
        """Return the maximum of the pseudo-likelihood, which is concave given ``beta``."""
        dependent = self.valuation == "finite-dependence"
        estimate = self._by_dependence(options) if dependent else self._by_values(options)
        return make_results(estimate, options)

    # exact and simulated values ---------------------------------------------------------------

    def _by_values(self, options: FitOptions) -> Estimate:
        model, n = self._first.model, self.counts.n_sj()
        tol, maxiter = options.tol, options.maxiter
        probe = Likelihood(model, n)
        refuse_unidentified(model, probe, probe.evaluate(np.zeros(len(model.names))))
        first = self._stage.estimate(model, n)
        notes: list[str] = []
        noise: FloatArray | None = None
        if self.valuation == "exact" or model.beta == 0:
            best, optimization, value = hotz_miller(model, n, 1, tol, maxiter, first.P)
        else:
            best, optimization, value, noise = self._maximise_simulated(first, options, notes)
        likelihood = Likelihood(model, n, value)
        evaluation = likelihood.evaluate(best.params)
        parts = score_parts(likelihood, evaluation, self._first)
        if noise is not None:
            parts = replace(parts, noise=noise)
        notes += self._distance(newton_decrement(evaluation.score, -parts.hessian))
        if first.empty:
            notes.append(self._empties(first, best.params, parts.hessian, tol, maxiter))
        return Estimate(
            name=self.name,
            first=self._first,
            counts=self.counts,
            evaluation=evaluation,
            parts=parts,
            optimization=optimization,
            pseudo_loglik=best.loglik,
            notes=tuple(notes),
        )

    def _maximise_simulated(
        self, first: ChoiceProbabilities, options: FitOptions, notes: list[str]
    ) -> tuple[Evaluation, Optimization, FloatArray, FloatArray]:
        """Maximise the pseudo-likelihood of simulated values; and the simulation's variance."""
        model, n = self._first.model, self.counts.n_sj()
        rows = np.flatnonzero(n.sum(axis=1) > 0)
        values = SimulatedValues(model, rows, first.P, self.paths, options.seed)
        x, offset = values.index()
        likelihood = Likelihood(static(model, x, offset, rows), n[rows])
        best, optimization = maximise(
            likelihood.evaluate,
            likelihood.hessian,
            np.zeros(len(model.names)),
            likelihood.total,
            tol=options.tol,
            maxiter=options.maxiter,
        )
        pulls = np.stack([likelihood.pull(best, k) for k in range(len(model.names))])
        noise = values.score_variance(pulls, best.params)
        share = np.diag(noise) / np.maximum(np.diag(best.outer), 1e-300)
        notes.append(
            f"{values.paths:,} simulated paths of {values.periods:,} periods (what lies beyond"
            f" weighs {values.truncation:.1e}); simulation adds up to {share.max():.1%} to the"
            " variance of the scores"
        )
        if values.truncation > FAR_END or share.max() > 1:
            warnings.warn(
                f"{self.name}: simulated values are poor here ({notes[-1]}): use more paths=, or"
                " valuation='exact'",
                IdentificationWarning,
                stacklevel=5,
            )
        system = PolicySystem(model.transitions, model.beta)
        Wz, We = valuation(model, system, first.P, unmix(model, first.P))
        return best, optimization, Wz @ best.params + We, noise

    def _distance(self, away: float) -> list[str]:
        """Say how far the estimate is from the maximum of the likelihood; warn above one s.e."""
        if away <= 1:
            return []
        size = f"{away:.1f} standard errors" if np.isfinite(away) else "far"
        text = (
            f"the estimate is {size} from where the likelihood has its maximum: the first stage"
            " dominates it. Use NPL or NFXP"
        )
        warnings.warn(f"{self.name}: {text}", IdentificationWarning, stacklevel=5)
        return [text[0].upper() + text[1:]]

    def _empties(
        self,
        first: ChoiceProbabilities,
        params: FloatArray,
        hessian: FloatArray,
        tol: float,
        maxiter: int,
    ) -> str:
        """Say how far the estimate moves when the probabilities of empty cells double."""
        model, n = self._first.model, self.counts.n_sj()
        text = f"{first.empty:,} available choices were never taken in seen states"
        if self.valuation != "exact" or model.beta == 0:
            return text
        hollow = model.available & (n == 0) & (n.sum(axis=1, keepdims=True) > 0)
        P = np.where(hollow, 2 * first.P, first.P)
        moved, _, _ = hotz_miller(
            model, n, 1, max(tol, 1e-6), maxiter, P / P.sum(axis=1, keepdims=True)
        )
        se = np.sqrt(np.abs(np.diag(np.linalg.pinv(-hessian, hermitian=True))))
        shift = np.abs(moved.params - params) / np.where(se > 0, se, np.inf)
        worst = int(shift.argmax())
        name = model.names[worst]
        if shift[worst] > HINGES:
            warnings.warn(
                f"{self.name}: the one-step estimate hinges on {first.empty:,} empty cells of the"
                f" first stage: doubling their probabilities moves {name!r} by"
                f" {shift[worst]:.1f} standard errors. Use NPL or NFXP",
                IdentificationWarning,
                stacklevel=5,
            )
        return (
            f"{text}: the first stage is {first.kind} there, and doubling those probabilities moves"
            f" {name!r} by {shift[worst]:.2g} standard errors"
            + (": the one-step estimate hinges on them" if shift[worst] > HINGES else "")
        )

    # finite dependence ------------------------------------------------------------------------

    def _by_dependence(self, options: FitOptions) -> Estimate:
        model = self._first.model
        horizon = model.horizon
        n = self.counts.n_sj() if horizon is None else self.counts.n_tsj(horizon)
        likelihood = DependentLikelihood(model, n, self.dependence, self.free_beta)
        first = self._stage.estimate(model, n.reshape(-1, n.shape[-1]))
        likelihood.set_probabilities(first.P)
        K = len(model.names)
        start = np.zeros(K + self.free_beta)
        start[K:] = model.beta
        at_zero = likelihood.evaluate(start)
        extra = ("beta",) if self.free_beta else ()
        _refuse_flat((*model.names, *extra), likelihood, at_zero)
        best, optimization = maximise(
            likelihood.evaluate,
            likelihood.hessian,
            start,
            likelihood.total,
            tol=options.tol,
            maxiter=options.maxiter,
        )
        notes = _notes_on_dependence(likelihood, first)
        reported = model
        if self.free_beta:
            beta = float(best.params[K])
            if 0 <= beta < 1 or (horizon is not None and beta == 1):
                reported = model.with_parts(beta=beta)
            else:
                notes.append(
                    f"The estimated discount factor {beta:.4f} is outside [0, 1): the model below"
                    f" keeps {model.beta:g}"
                )
        full = Likelihood(reported, n) if horizon is None else FiniteLikelihood(reported, n)
        evaluation = full.evaluate(best.params[:K])
        if likelihood.dropped == 0:
            notes += self._distance(newton_decrement(evaluation.score, -full.hessian(evaluation)))
        parts = _dependent_parts(likelihood, best, first, self._first, evaluation)
        shown = replace(evaluation, params=best.params)
        counts = self.counts
        if horizon is not None and options.cov_type in ("clustered", "robust"):
            counts = with_periods(counts, self.panel, options.cov_type, options.cluster)
        return Estimate(
            name=f"{self.name} (finite dependence)",
            first=self._first,
            counts=counts,
            evaluation=shown,
            parts=parts,
            optimization=optimization,
            pseudo_loglik=best.loglik,
            notes=tuple(notes),
            extra_names=extra,
            model=reported,
            uses={
                "share": likelihood.total / self.counts.nobs,
                "states": int(np.unique(likelihood.s).size),
            },
        )


def _notes_on_dependence(likelihood: DependentLikelihood, first: ChoiceProbabilities) -> list[str]:
    """Return what a summary must say of the choices compared and of the first stage."""
    dependence = likelihood.found
    notes = []
    if not dependence.complete:
        notes.append(
            f"Finite dependence fails for {int((dependence.periods == -1).sum()):,} of the choices"
            f" in seen states: {likelihood.dropped:,.0f} member-months are left out of the"
            " pseudo-likelihood (a logit within the other choices)"
        )
    notes.append(
        f"Finite dependence within {int(dependence.periods.max())} period(s), weights up to"
        f" {dependence.largest.max():.3g} times the difference that they undo"
    )
    if first.empty:
        notes.append(
            f"{first.empty:,} available choices were never taken in seen states: the first"
            f" stage is {first.kind} there"
        )
    if likelihood.clamped:
        notes.append(
            f"{likelihood.clamped:,} first-stage probabilities of the default lie below what"
            " inattention alone gives: the attention assumed is doubtful there"
        )
    return notes


def _dependent_parts(
    likelihood: DependentLikelihood,
    best: DependentEvaluation,
    first: ChoiceProbabilities,
    laws: FirstStage,
    evaluation: Evaluation,
) -> ScoreParts:
    """Return scores by cell with the influence of choice probabilities and of laws of motion."""
    model = likelihood.model
    S, J, _ = model.shape
    K = len(best.params)
    by_choice = likelihood.by_state(best.dlogp)
    from_P = first.influence(likelihood.probability_derivative(best)).reshape(-1, S, J, K)
    table = by_choice + from_P
    by_cell, V1 = None, np.zeros((K, K))
    label = "choice probabilities included"
    if laws.estimates:
        V = evaluation.point.h if evaluation.point is not None else evaluation.V
        assert V is not None
        cross = likelihood.transition_derivative(best, V)
        by_cell, V1 = influence(laws.model, laws.estimates, cross)
        label = "included"
    hessian = likelihood.hessian(best)
    # rows that the pseudo-likelihood leaves out still inform the first stage, so all are summed
    meat = np.einsum("tsj,tsjk,tsjl->kl", likelihood.everything, table, table)

    def psi(cells: IntArray) -> FloatArray:
        period = cells[:, 4] if len(table) > 1 else 0
        out = table[period, cells[:, 0], cells[:, 1]] * cells[:, 3, None]
        return out if by_cell is None else out + by_cell(cells)

    return ScoreParts(hessian, best.outer, psi, V1, label, choice_meat=meat)


def _refuse_flat(
    names: tuple[str, ...], likelihood: DependentLikelihood, at: DependentEvaluation
) -> None:
    """Raise where the pseudo-likelihood does not move along some direction, whatever the data."""
    weight = likelihood.n.sum(axis=1, keepdims=True) * at.P
    flatter = at.dlogp.reshape(-1, len(names))
    information = (flatter * weight.reshape(-1, 1)).T @ flatter
    flat = Identification.of(names, information).flat
    dead = [n for n, d in zip(names, np.diag(information), strict=True) if d <= 1e-18]
    if dead or flat:
        what = ", ".join(map(repr, dead)) if dead else "; ".join(flat)
        raise IdentificationError(
            f"the choices that finite dependence can compare do not identify {what}. Use"
            " valuation='exact', NPL or NFXP, or drop the parameter"
        )


def with_periods(counts: Counts, panel: Panel | None, cov_type: str, cluster: str) -> Counts:
    """Return counts whose members' cells carry the period, as scores at a finite horizon need."""
    if cluster == "region" and cov_type != "robust":
        return counts
    if panel is None:
        raise SpecificationError(
            f"cov_type={cov_type!r} at a finite horizon needs the Panel, not its Counts;"
            " or use 'opg' or 'unadjusted'"
        )
    return replace(counts, members=panel.member_cells(by_period=True), _cache={})
