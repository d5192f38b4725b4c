"""Deep PQR, GenPQR and GLADIUS on rows as estimators: options, covariance, results."""

from __future__ import annotations

import warnings
from typing import Any, Protocol, Self

import numpy as np

from dynchoice.errors import ConvergenceError, ConvergenceWarning, SpecificationError
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.rewards.learners import Learned
from dynchoice.estimate.rewards.pqr_rows import RowsFit, RowsPQR
from dynchoice.estimate.rewards.row_bootstrap import RowsEstimator, clustered
from dynchoice.inference.reward_results import RewardResults
from dynchoice.model.reward import RewardModel
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import FloatArray, Progress

MISSED = 5.0
"""Standard errors that a correction for learners' errors may move parameters by."""
FEW = 10
"""Anchor rows a column below which the summary warns of its intervals."""


class Learner(Protocol):
    """What estimates the first two steps in place of the sieve."""

    @property
    def trains(self) -> bool:
        """Whether it trains learners that a bootstrap must not refit."""
        ...

    def __call__(self, steps: RowsPQR, seed: int | None, progress: Progress | None) -> Learned:
        """Return the stages of all rows."""
        ...


class RowsReward(RowsEstimator):
    """A reward on rows.

    Parameters
    ----------
    name : str
    model : RewardModel
    rows : Trajectories
    learner : Learner, optional
        Of probabilities and values; default the sieve's solves.
    **options
        Of :class:`RowsPQR`.
    """

    def __init__(
        self,
        name: str,
        model: RewardModel,
        rows: Trajectories,
        learner: Learner | None = None,
        **options: Any,
    ) -> None:
        self.name, self.model, self.rows, self.learner = name, model, rows, learner
        self.options = options
        self.steps = RowsPQR(model, rows, **options)

    def on(self, rows: Trajectories) -> Self:
        """Return the same estimator on other rows."""
        return type(self)(self.name, self.model, rows, self.learner, **self.options)

    def resample(self, options: FitOptions) -> RewardResults:
        """Return the fit bootstrapped over members; learners are not refitted."""
        if self.learner is not None and self.learner.trains:
            raise SpecificationError(
                "cov_type='bootstrap': learners are not refitted to resampled members (a"
                " bootstrap of learners is not valid in general); their errors come from"
                " cross-fitting and influence functions, cov_type='clustered'"
            )
        return super().resample(options)

    def estimate_rows(self, options: FitOptions) -> RewardResults:
        """Return the projection of the reward, corrected for what the first steps miss."""
        from dynchoice import __version__

        tol, maxiter, progress = options.tol, options.maxiter, options.progress
        seed, cluster = options.seed, options.cluster
        learned = None if self.learner is None else self.learner(self.steps, seed, progress)
        stages = None if learned is None else learned.stages
        if stages is not None and not (
            np.isfinite(stages.log_pi).all() and np.isfinite(stages.value).all()
        ):
            raise ConvergenceError(
                f"{self.name}: the learners' values are no numbers; nothing can be estimated from"
                " them (a smaller rate=, for a Network)"
            )
        fit = self.steps.fit(tol, maxiter, progress, stages)
        joint = None if learned is None else learned.coefficients
        if learned is not None:
            if fit.shift.any() and self.learner is not None and self.learner.trains:
                raise SpecificationError(
                    f"{self.name}: learners need a reference without features (the anchor, and the"
                    " only choice inside a contract): say what it is paid by reward= or offset="
                )
            if joint is not None:
                joint = joint + np.r_[fit.shift, np.zeros(len(joint) - len(fit.shift))]
        errors = clustered(self.rows, fit.sums, fit.member_weight, cluster)
        policy = fit.policy
        converged, message = _status(fit, learned)
        if not converged:
            if options.strict:
                raise ConvergenceError(message)
            warnings.warn(f"{self.name}: {message}", ConvergenceWarning, stacklevel=4)
        N, by_sieve = self.rows.nmembers, learned is None
        return RewardResults(
            estimator=self.name,
            model=self.model,
            features=self.rows.features,
            names_=fit.names,
            theta=fit.theta,
            cov_matrix=errors.cov,
            cov_type="clustered",
            cov_config=errors.config,
            influence=errors.influence,
            loglik=policy.loglik if by_sieve else fit.loglik,
            loglik_null=policy.loglik_null,
            nobs=self.rows.nobs,
            nmembers=N,
            converged=converged,
            message=message,
            optimization={
                "iterations": policy.steps,
                "gradient": policy.gradient,
                "condition": fit.system.condition,
                "contraction": self.model.beta * fit.system.radius,
            },
            sieve=self.steps.sieve,
            policy_coefficients=policy.coefficients,
            value_coefficients=fit.c if joint is None else joint,
            ahead_coefficients=fit.h,
            form="joint" if joint is not None else self.steps.form.name,
            data_digest=self.rows.digest,
            package_version=__version__,
            seed=seed,
            notes=self._notes(fit, learned, errors.cov),
            uses=fit.uses,
            predictor=None if learned is None else learned.predictor,
        )

    def _notes(self, fit: RowsFit, learned: Learned | None, cov: FloatArray) -> tuple[str, ...]:
        few = self.steps.anchored < FEW * len(fit.c)
        notes = [
            "The parameters are a projection of the estimated reward on the features; the sieve is"
            " taken as flexible enough (compare degree=)",
        ]
        if learned is not None:
            size = np.sqrt(np.diag(cov))
            moved = float(np.abs(fit.correction / np.where(size > 0, size, np.inf)).max())
            notes = [
                "The parameters are a projection of the learned reward on the features, corrected"
                f" for the learners' errors through a sieve of {self.steps.sieve.size} columns (by"
                f" up to {moved:.1f} standard errors)",
                *learned.notes,
            ]
        if fit.shift.any():
            notes.append(
                "The anchor, or a contract's only choice, has features: their normalisation is"
                " taken as known in the standard errors, which is exact for rewards that are linear"
                " in the features"
            )
        left = fit.system.size - len(fit.system.kept)
        if left:
            notes.append(
                f"{left} of {fit.system.size} columns of the values add nothing where the rows of"
                " the Q step are and are left out of them"
            )
        if self.model.beta * fit.system.radius > 1 - (1 - self.model.beta) / FEW:
            notes.append(
                f"The regression of values hardly contracts (by {self.model.beta:g} x"
                f" {fit.system.radius:.3f} a round): values and their errors lean on the sieve;"
                " compare degree="
            )
        if few:
            notes.append(
                f"Only {self.steps.anchored:,} rows take the anchor, for {len(fit.c)} columns of"
                " its value: expect intervals that are too narrow"
            )
        return tuple(notes)


def _status(fit: RowsFit, learned: Learned | None) -> tuple[bool, str]:
    """Return whether everything converged, and in words."""
    policy = fit.policy
    if not policy.converged:
        text = f"the policy's gradient is {policy.gradient:.1e} after {policy.steps} steps"
        return False, f"not converged: {text}"
    if learned is None:
        return True, f"converged: policy in {policy.steps} steps, then closed forms"
    if not learned.settled:
        return False, f"not converged: {learned.message}"
    if learned.coefficients is None:
        size = np.sqrt(np.diag((fit.sums * fit.member_weight[:, None]).T @ fit.sums))
        moved = float(np.abs(fit.correction / np.where(size > 0, size, np.inf)).max())
        if moved > MISSED:
            return False, (
                f"not converged: what the learners miss moves the parameters by {moved:.1f}"
                f" standard errors ({learned.message})"
            )
    return True, f"converged: {learned.message}"
