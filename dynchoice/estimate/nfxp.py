"""NFXP: the nested fixed point maximum likelihood estimator of Rust (1987)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.estimate.ccp import with_periods
from dynchoice.estimate.estimator import CountsEstimator, FitOptions
from dynchoice.estimate.first_stage import counts_of, first_stage
from dynchoice.estimate.joint import joint_estimate
from dynchoice.estimate.likelihood import Evaluation, FiniteLikelihood, Likelihood
from dynchoice.estimate.make_results import Estimate, make_results, score_parts
from dynchoice.estimate.optimise import Optimization, maximise
from dynchoice.estimate.refuse_unidentified import refuse_unidentified
from dynchoice.estimate.start import default_start, probabilities_near
from dynchoice.estimate.workers import processes
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel

TREATMENTS = ("two-step", "joint")


class NFXP(CountsEstimator[Results]):
    """Nested fixed point: at every trial of the parameters the model is solved to tolerance.

    Parameters
    ----------
    model : DDC
        Laws without probabilities are estimated from the panel.
    data : Panel or Counts
        All segments are pooled; use ``panel.counts.segment(label)`` for one of them.
    transitions : {"two-step", "joint"}
        How estimated laws are treated: by frequencies first, with their sampling error carried
        into the standard errors; or jointly with the utility parameters, by full maximum
        likelihood.

    Raises
    ------
    DataError
        Choices that the state does not offer, or moves that no law allows.
    SpecificationError
        Model and panel do not fit each other.
    MemoryLimitError
        The fit would take more memory than there is (:mod:`dynchoice.solvers.memory_needed`).

    Notes
    -----
    The inner loop is contraction then Newton-Kantorovich; the score comes from the implicit
    function theorem; the outer loop is a trust region with the exact Hessian (the outer product
    of scores, BHHH, where that is not negative definite). The data enter as counts.

    References
    ----------
    Rust (1987), Econometrica 55. Iskhakov, Lee, Rust, Schjerning and Seo (2016), Econometrica 84.

    Examples
    --------
    >>> import pandas as pd, dynchoice as dc
    >>> states = dc.StateSpace(on=range(1))
    >>> x = np.array([[[0.0], [1.0]]])
    >>> model = dc.DDC(states=states, choices=["out", "in"], beta=0.9,
    ...                utility=dc.Utility.from_array(x, ["taste"]),
    ...                transitions=dc.Transitions.dense(np.ones((1, 2, 1))))
    >>> df = pd.DataFrame({"id": range(4), "t": 0, "on": 0, "c": ["in", "in", "in", "out"]})
    >>> panel = dc.Panel(df, member="id", time="t", choice="c", states=states,
    ...                  choices=["out", "in"])
    >>> float(NFXP(model, panel).fit().params["taste"].round(6)) == float(np.log(3).round(6))
    True
    """

    name = "NFXP"
    several_starts = True

    def __init__(self, model: DDC, data: Panel | Counts, *, transitions: str = "two-step") -> None:
        checks.one_of(transitions, "transitions", TREATMENTS)
        self.model = model
        self.counts, self.panel = counts_of(data)
        self.options = {"transitions": transitions}
        self._first = first_stage(model, self.counts, self.panel, naive=True)
        self.joint = transitions == "joint"
        if self.joint and not self._first.estimates:
            raise SpecificationError("joint estimation: every transition law is given already")
        if self.joint and not model.sophisticated:
            raise SpecificationError("joint estimation is for members who foresee inattention")
        if self.joint and model.horizon is not None:
            raise SpecificationError("joint estimation is for infinite horizons")

    def likelihood(self) -> Likelihood:
        """Return the likelihood of the choices given the first stage's transitions."""
        model = self._first.model
        if model.horizon is not None:
            return FiniteLikelihood(model, self.counts.n_tsj(model.horizon))
        return Likelihood(model, self.counts.n_sj())

    def estimate(self, options: FitOptions) -> Results:
        """Return the maximum of the likelihood."""
        model = self._first.model
        likelihood = self.likelihood()
        theta = self._opening(likelihood, options)
        best, optimization = self._maximise(likelihood, theta, options)
        if self.joint:
            return make_results(joint_estimate(self._first, self.counts, best, options), options)
        parts = score_parts(likelihood, best, self._first)
        counts = self.counts
        if model.horizon is not None and options.cov_type in ("robust", "clustered"):
            # scores differ by period there, so each member's cells must carry it
            counts = with_periods(counts, self.panel, options.cov_type, options.cluster)
        estimate = Estimate(
            name=self.name,
            first=self._first,
            counts=counts,
            evaluation=best,
            parts=parts,
            optimization=optimization,
        )
        return make_results(estimate, options)

    def _opening(self, likelihood: Likelihood, options: FitOptions) -> FloatArray:
        """Return the parameters to start from; refuse a model that nothing identifies."""
        model, start = self._first.model, options.start
        theta, sound = None, False
        if isinstance(start, Results) and model.horizon is not None:
            theta, sound = model.vector(start.params), start.converged
        elif start is None or isinstance(start, Results):
            near = None if start is None else probabilities_near(start, model)
            n = self.counts.n_sj()
            theta, sound = default_start(model, n, likelihood, options.progress, near)
        # what nothing identifies shows at any parameters but runaway ones, so neither a user's
        # start nor one that did not converge is where to look
        probe = theta if theta is not None and sound else np.zeros(len(model.names))
        try:
            refuse_unidentified(model, likelihood, likelihood.evaluate(probe))
        except IdentificationError:
            # a saturated start looks flat too: only what is flat at zero as well is refused
            at_zero = likelihood.evaluate(np.zeros(len(model.names)))
            refuse_unidentified(model, likelihood, at_zero)
        return model.vector(start) if theta is None else theta

    def _maximise(
        self, likelihood: Likelihood, theta: FloatArray, options: FitOptions
    ) -> tuple[Evaluation, Optimization]:
        """Return the best maximum from one or several starting points."""
        if options.starts == 1:
            return climb(likelihood, theta, options)
        # spread by what one observation in a thousand could tell, and by the size of theta
        outer = likelihood.evaluate(theta).outer
        spread = np.sqrt(1000 / np.maximum(np.diag(outer), 1e-12))
        spread = np.minimum(spread, 0.5 * np.abs(theta) + 0.5)
        rng = np.random.default_rng(options.seed)
        noise = rng.standard_normal((options.starts - 1, len(theta)))
        # each by itself: the same for any number of processes
        runs = climb_side_by_side(self, [theta, *(theta + noise * spread)], options)
        best, optimization = max(runs, key=lambda run: (run[1].converged, run[0].loglik))
        trace = tuple(
            {"start": o.start, "loglik": e.loglik, "converged": o.converged, "params": e.params}
            for e, o in runs
        )
        return best, replace(optimization, starts=trace)


def climb(
    likelihood: Likelihood, start: FloatArray, options: FitOptions
) -> tuple[Evaluation, Optimization]:
    """Maximise a likelihood from a starting point."""
    return maximise(
        likelihood.evaluate,
        likelihood.hessian,
        start,
        likelihood.total,
        tol=options.tol,
        maxiter=options.maxiter,
        progress=options.progress,
    )


def climb_alone(
    estimator: NFXP, start: FloatArray, options: FitOptions
) -> tuple[Evaluation, Optimization]:
    """Maximise a likelihood of its own from a starting point, in whatever process."""
    with one_blas_thread():
        return climb(estimator.likelihood(), start, options)


def climb_side_by_side(
    estimator: NFXP, points: list[FloatArray], options: FitOptions
) -> list[tuple[Evaluation, Optimization]]:
    """Maximise from several points, in ``jobs`` processes (or where joblib is configured to)."""
    from joblib import delayed

    bare = estimator.again(estimator.counts)  # a panel's connection stays here
    silent = replace(options, progress=None, start=None)
    running = processes(options.jobs, return_as="generator")(
        delayed(climb_alone)(bare, point, silent) for point in points
    )
    runs = []
    for run in running:
        runs.append(run)
        if options.progress is not None:
            options.progress(len(runs), len(points), f"start {len(runs)}: {run[1].message}")
    return runs
