"""NFXP: the nested fixed point maximum likelihood estimator of Rust (1987)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.estimate.bootstrap import Estimator, resampled
from dynchoice.estimate.ccp import with_periods
from dynchoice.estimate.first_stage import counts_of, first_stage
from dynchoice.estimate.joint import fit_joint
from dynchoice.estimate.likelihood import Evaluation, FiniteLikelihood, Likelihood
from dynchoice.estimate.make_results import as_results, score_parts
from dynchoice.estimate.optimise import Optimization, check_options, maximise
from dynchoice.estimate.refuse_unidentified import refuse_unidentified
from dynchoice.estimate.start import default_start, probabilities_near
from dynchoice.estimate.workers import processes
from dynchoice.inference.covariance import check_cov_type
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray, Progress

TREATMENTS = ("two-step", "joint")


class NFXP(Estimator):
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

    def __init__(self, model: DDC, data: Any, *, transitions: str = "two-step") -> None:
        if transitions not in TREATMENTS:
            raise SpecificationError(
                f"transitions={transitions!r}: use {' or '.join(map(repr, TREATMENTS))}"
            )
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

    def fit(
        self,
        *,
        start: Any = None,
        cov_type: str = "clustered",
        cluster: str = "member",
        tol: float = 1e-8,
        maxiter: int = 100,
        starts: int = 1,
        draws: int = 199,
        jobs: int = 1,
        seed: int | None = None,
        progress: Progress | None = None,
        strict: bool = False,
    ) -> Results:
        """Estimate by maximum likelihood.

        Parameters
        ----------
        start : array (K,), mapping, Series or Results, optional
            Default: the CCP estimate. With Results, of other members in the same states, that
            estimate begins from the choice probabilities fitted there.
        cov_type : {"clustered", "robust", "opg", "unadjusted", "bootstrap"}
            Rust (1987) printed ``"opg"``. ``"bootstrap"`` redoes every stage on resampled panels.
        cluster : {"member", "region"}
            Unit of ``"clustered"`` and ``"bootstrap"`` (there: buckets of members).
        tol : float
            Bound on the gradient of the mean log-likelihood in scaled parameters.
        maxiter : int
            Iterations of the optimiser at most.
        starts : int
            Starting points in all; the further ones are drawn around the first with ``seed``.
        draws : int
            Resampled panels of the bootstrap.
        jobs : int
            Processes that fit resampled panels or climb from several starting points.
        seed : int, optional
            Of the further starting points, and of the bootstrap.
        progress : callable, optional
            ``progress(done, total, message)`` after each iteration.
        strict : bool
            Raise if the estimate did not converge, instead of saying so in the results.

        Returns
        -------
        Results

        Raises
        ------
        IdentificationError
            Parameters that nothing identifies, by name.
        ConvergenceError
            Only with ``strict=True``.
        """
        check_cov_type(cov_type)
        if starts < 1:
            raise SpecificationError(f"starts={starts}: at least one is needed")
        if jobs < 1:
            raise SpecificationError(f"jobs={jobs}: at least one process is needed")
        check_options(tol, maxiter, progress)
        if check_cov_type(cov_type) == "bootstrap":
            return resampled(
                self,
                {"tol": tol, "maxiter": maxiter, "start": start},
                cluster,
                draws,
                jobs,
                seed,
                progress,
                strict,
            )
        model = self._first.model
        with one_blas_thread():
            likelihood = self.likelihood()
            theta, sound = None, False
            if isinstance(start, Results) and model.horizon is not None:
                theta, sound = model.vector(start.params), start.converged
            elif start is None or isinstance(start, Results):
                near = None if start is None else probabilities_near(start, model)
                n = self.counts.n_sj()
                theta, sound = default_start(model, n, likelihood, progress, near)
            # what nothing identifies shows at any parameters but runaway ones, so neither a
            # user's start nor one that did not converge is where to look
            probe = theta if theta is not None and sound else np.zeros(len(model.names))
            try:
                refuse_unidentified(model, likelihood, likelihood.evaluate(probe))
            except IdentificationError:
                # a saturated start looks flat too: only what is flat at zero as well is refused
                at_zero = likelihood.evaluate(np.zeros(len(model.names)))
                refuse_unidentified(model, likelihood, at_zero)
            theta = model.vector(start) if theta is None else theta
            best, optimization = self._maximise(
                likelihood, theta, tol, maxiter, starts, jobs, seed, progress
            )
            if self.joint:
                return fit_joint(
                    self._first,
                    self.counts,
                    best.params,
                    cov_type,
                    cluster=cluster,
                    tol=tol,
                    maxiter=maxiter,
                    seed=seed,
                    progress=progress,
                    strict=strict,
                )
            parts = score_parts(likelihood, best, self._first)
        counts = self.counts
        if model.horizon is not None and cov_type in ("robust", "clustered", "cluster"):
            # scores differ by period there, so each member's cells must carry it
            counts = with_periods(counts, self.panel, cov_type, cluster)
        return as_results(
            self.name,
            self._first,
            counts,
            best,
            parts,
            optimization,
            cov_type,
            cluster=cluster,
            seed=seed,
            strict=strict,
        )

    def _maximise(
        self,
        likelihood: Likelihood,
        theta: FloatArray,
        tol: float,
        maxiter: int,
        starts: int,
        jobs: int,
        seed: int | None,
        progress: Progress | None,
    ) -> tuple[Evaluation, Optimization]:
        points = [theta]
        if starts > 1:
            # spread by what one observation in a thousand could tell, and by the size of theta
            at = likelihood.evaluate(theta)
            spread = np.sqrt(1000 / np.maximum(np.diag(at.outer), 1e-12))
            spread = np.minimum(spread, 0.5 * np.abs(theta) + 0.5)
            noise = np.random.default_rng(seed).standard_normal((starts - 1, len(theta)))
            points += list(theta + noise * spread)
        options = {"tol": tol, "maxiter": maxiter}
        if starts == 1:
            runs = [climbed(likelihood, theta, {**options, "progress": progress})]
        else:  # each by itself: the same for any number of processes
            runs = side_by_side(self, points, options, jobs, progress)
        order = max(range(len(runs)), key=lambda i: (runs[i][1].converged, runs[i][0].loglik))
        best, optimization = runs[order]
        if starts > 1:
            trace = tuple(
                {
                    "start": o.start,
                    "loglik": e.loglik,
                    "converged": o.converged,
                    "params": e.params,
                }
                for e, o in runs
            )
            optimization = replace(optimization, starts=trace)
        return best, optimization


def climbed(
    likelihood: Likelihood, start: FloatArray, options: dict[str, Any]
) -> tuple[Evaluation, Optimization]:
    """Maximise a likelihood from a starting point."""
    evaluate, hessian = likelihood.evaluate, likelihood.hessian
    return maximise(evaluate, hessian, start, likelihood.total, **options)


def from_start(
    estimator: NFXP, start: FloatArray, options: dict[str, Any]
) -> tuple[Evaluation, Optimization]:
    """Maximise a likelihood of its own from a starting point."""
    with one_blas_thread():
        return climbed(estimator.likelihood(), start, options)


def side_by_side(
    estimator: NFXP,
    points: list[FloatArray],
    options: dict[str, Any],
    jobs: int,
    progress: Progress | None,
) -> list[tuple[Evaluation, Optimization]]:
    """Maximise from several points, in ``jobs`` processes (or where joblib is configured to)."""
    from joblib import delayed

    bare = estimator.again(estimator.counts)  # a panel's connection stays here
    running = processes(jobs, return_as="generator")(
        delayed(from_start)(bare, point, options) for point in points
    )
    runs = []
    for one in running:
        runs.append(one)
        if progress is not None:
            progress(len(runs), len(points), f"start {len(runs)}: {one[1].message}")
    return runs
