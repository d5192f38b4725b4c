"""NPL: the nested pseudo-likelihood of Aguirregabiria and Mira (2002).

CCP stages, each with the choice probabilities that the last estimate implies. Its fixed point is
the maximum of the likelihood, reached without ever solving a fixed point in values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.estimate.ccp import hotz_miller
from dynchoice.estimate.choice_probabilities import pooled
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.likelihood import Evaluation, Likelihood, choice_gradient, second_order
from dynchoice.estimate.make_results import Estimate, make_results, score_parts
from dynchoice.estimate.optimise import (
    Optimization,
    newton_decrement,
    scaled_gradient,
)
from dynchoice.estimate.policy_inversion import policy_flows
from dynchoice.estimate.refuse_unidentified import refuse_unidentified
from dynchoice.estimate.two_step import TwoStepEstimator
from dynchoice.inference.results import Results
from dynchoice.kernels import core as kernels
from dynchoice.model.attention import unmix
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import PolicySystem
from dynchoice.typing import FloatArray, Progress

if TYPE_CHECKING:
    from dynchoice.model.utility import Utility
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel


class Stages:
    """Stages of the nested pseudo-likelihood on preallocated arrays: one Newton step at a time."""

    def __init__(self, model: DDC, n: FloatArray) -> None:
        S, J, K = model.shape
        self.model, self.n = model, np.ascontiguousarray(n)
        self.total = float(n.sum())
        self.seen = np.ascontiguousarray(n.sum(axis=1))
        self.attentive = bool((model.attention == 1).all())
        self.system = PolicySystem(model.transitions, model.beta)
        self.masked = np.where(model.available, 0.0, -np.inf)
        self.nothing = np.zeros((S, J))
        self.v, self.pi, self.P = np.empty((S, J)), np.empty((S, J)), np.empty((S, J))
        self.V, self.dlogp = np.empty(S), np.empty((S, J, K))
        self.W = np.zeros((S, K + 1))

    def values(self, P: FloatArray) -> None:
        """Take first-stage probabilities: features and known part of the pseudo-likelihood."""
        model = self.model
        flows = policy_flows(model, P, P if self.attentive else unmix(model, P))
        self.system.factor(P)
        self.W = self.system.solve(flows)
        ahead = model.beta * model.transitions.expect(self.W)
        self.x = np.ascontiguousarray(model.utility.x + ahead[:, :, :-1])
        self.offset = model.utility.offset + ahead[:, :, -1] + self.masked

    def at(self, theta: FloatArray) -> float:
        """Return the pseudo-log-likelihood; ``P`` holds the probabilities of ``theta``."""
        model = self.model
        u = self.offset + self.x @ theta
        kernels.soft_bellman(
            u, self.nothing, 0.0, model.attention, model.default, self.v, self.V, self.pi, self.P
        )
        return float(kernels.log_likelihood(self.n, self.P, self.v, model.attention))

    def derivatives(self) -> tuple[FloatArray, FloatArray]:
        """Return score (K,) and information (K, K) where :meth:`at` was called last."""
        model, K = self.model, self.x.shape[2]
        score, outer = np.zeros(K), np.zeros((K, K))
        kernels.log_ccp_derivative(
            self.pi, self.P, model.attention, model.default, self.x, self.dlogp
        )
        kernels.score_and_outer(self.n, self.dlogp, score, outer)
        if self.attentive:
            information = np.zeros((K, K))
            kernels.weighted_choice_covariance(self.seen, self.pi, self.x, information)
        else:
            _, seen, extra = choice_gradient(model, self.n, self.pi, self.P, False)
            information = -second_order(model, -seen, extra, self.pi, self.x)
        return score, information


def npl(
    model: DDC,
    n: FloatArray,
    P: FloatArray,
    tol: float,
    maxiter: int,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray, int]:
    """Iterate to the NPL fixed point: parameters (K,), value (S,) and stages taken.

    Each stage takes one Newton step of its pseudo-likelihood (the first one several): with the
    zero Jacobian the probabilities then follow at the same quadratic pace. It stops when the
    scaled gradient of the pseudo-likelihood and the change of the probabilities are within
    ``tol``; whether that is the maximum of the likelihood, the caller checks.
    """
    stages = Stages(model, n)
    theta = np.zeros(len(model.names))
    for stage in range(maxiter):
        stages.values(P)
        loglik = stages.at(theta)
        for _ in range(20 if stage == 0 else 1):
            score, information = stages.derivatives()
            scale = np.sqrt(np.maximum(np.diag(information), 1e-300) * stages.total)
            size = float(np.abs(score / scale).max())
            if stage == 0 and size < 1e-2:
                break
            step = np.linalg.lstsq(information, score, rcond=None)[0]
            if stage > 0 and size <= tol and float(np.abs(stages.P - P).max()) <= tol:
                # the step at hand costs nothing more and squares the distance that is left
                theta = theta + step
                return theta, stages.W[:, :-1] @ theta + stages.W[:, -1], stage + 1
            slack = 1e-12 * abs(loglik)
            for halving in range(12):
                trial = theta + step / 2**halving
                after = stages.at(trial)
                if after >= loglik - slack:
                    theta, loglik = trial, after
                    break
            else:
                stages.at(theta)
        P = stages.P.copy()
        if progress is not None:
            progress(stage + 1, maxiter, f"NPL stage, scaled gradient {size:.1e}")
    return theta, stages.W[:, :-1] @ theta + stages.W[:, -1], maxiter


class NPL(TwoStepEstimator[Results]):
    """Nested pseudo-likelihood: CCP stages repeated (Aguirregabiria and Mira 2002).

    Parameters
    ----------
    model : DDC
        Infinite horizon.
    data : Panel or Counts
    steps : int, optional
        Number of stages ``K``; one is CCP. Default: to the fixed point, which is the maximum
        likelihood estimate, and reported as converged only where the gradient of the likelihood
        itself says so.
    first_stage : str or Utility
        Where the probabilities start; see :class:`dynchoice.CCP`.

    Notes
    -----
    The covariance is that of NFXP at the estimate: the Jacobian by the probabilities is zero.
    """

    name = "NPL"

    def __init__(
        self,
        model: DDC,
        data: Panel | Counts,
        *,
        steps: int | None = None,
        first_stage: str | Utility = "smoothed",
    ) -> None:
        if model.horizon is not None:
            raise SpecificationError("NPL is for infinite horizons; NFXP takes a finite one")
        if steps is not None:
            checks.whole(steps, "steps", 1)
        self.steps = steps
        self.options = {"steps": steps, "first_stage": first_stage}
        self._read(model, data, first_stage)

    def restart(self, fit: Results) -> FloatArray | None:
        """Return where the bootstrap refits from: K stages count from the first one, redone."""
        return None if self.steps is not None else fit.restart()

    def estimate(self, options: FitOptions) -> Results:
        """Return the fixed point of the stages, or where the last of ``steps`` stages arrived."""
        model, n = self._first.model, self.counts.n_sj()
        probe = Likelihood(model, n)
        if options.start is None:
            refuse_unidentified(model, probe, probe.evaluate(np.zeros(len(model.names))))
            stage = self._stage
            # a fixed point does not remember where it started: the cheapest start will do
            cheap = self.steps is None and stage.kind == "smoothed"
            P = pooled(n, model.available) if cheap else stage.estimate(model, n).P
        else:
            P = probe.evaluate(model.vector(options.start)).P
        tol, maxiter, pseudo = options.tol, options.maxiter, None
        if self.steps is None:
            theta, value, stages = npl(model, n, P, tol, maxiter, options.progress)
        else:
            best, optimization, value = hotz_miller(model, n, self.steps, tol, maxiter, P)
            theta, stages, pseudo = best.params, self.steps, best.loglik
        likelihood = Likelihood(model, n, value)
        evaluation = likelihood.evaluate(theta)
        parts = score_parts(likelihood, evaluation, self._first)
        if self.steps is None:
            optimization = _fixed_point_status(
                evaluation, parts.hessian, likelihood.total, tol, stages
            )
        estimate = Estimate(
            name=self.name if self.steps is None else f"NPL ({self.steps} steps)",
            first=self._first,
            counts=self.counts,
            evaluation=evaluation,
            parts=parts,
            optimization=optimization,
            pseudo_loglik=pseudo,
        )
        return make_results(estimate, options)


def _fixed_point_status(
    evaluation: Evaluation, hessian: FloatArray, total: float, tol: float, stages: int
) -> Optimization:
    """Say whether the NPL fixed point is the maximum of the likelihood."""
    size = scaled_gradient(evaluation, total)
    # the last stage is exact to tol in its own terms; the likelihood's gradient adds rounding
    converged = bool(size <= 10 * tol and evaluation.converged)
    message = (
        f"converged: {stages} stages, scaled gradient of the likelihood {size:.1e}"
        if converged
        else f"not converged: scaled gradient of the likelihood {size:.1e} > {10 * tol:.0e} after"
        f" {stages} stages"
    )
    decrement = newton_decrement(evaluation.score, -hessian)
    return Optimization(converged, message, stages, stages, size, decrement, np.zeros(0))
