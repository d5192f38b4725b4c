"""Where the maximisation of a likelihood starts: conditional choice probability estimates."""

from __future__ import annotations

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.estimate.ccp import hotz_miller
from dynchoice.estimate.choice_probabilities import pooled, smoothed, static
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.npl import npl
from dynchoice.estimate.optimise import maximise
from dynchoice.estimate.policy_inversion import policy_flows
from dynchoice.inference.results import Results
from dynchoice.model.attention import unmix
from dynchoice.model.ddc import DDC
from dynchoice.typing import FloatArray, Progress

START_TOL, START_STAGES = 1e-5, 12
"""The default starting point: NPL to this scaled gradient, within these stages."""
START_STEPS = 2
"""Pseudo-likelihood stages of the starting point where NPL does not settle."""
LEAST = 1e-12
"""Least probability of an offered choice that a start takes from results."""
LARGE_STAGES, LARGE_RTOL, LARGE_TOL = 3, 1e-4, 1e-4
"""Of models whose values take sweeps: stages, accuracy of values and of each stage's maximum."""


def default_start(
    model: DDC,
    n: FloatArray,
    likelihood: Likelihood,
    progress: Progress | None = None,
    near: FloatArray | None = None,
) -> tuple[FloatArray, bool]:
    """Return the starting point (K,) and whether its own maximisation converged.

    ``likelihood`` receives the value there: where its first solution starts. ``near`` (S, J) are
    choice probabilities of members like these (of all segments, say), to begin from.
    """
    if not model.sophisticated:  # a start only: the values that NPL inverts assume foresight
        model = model.unchecked(perceived=model.attention)
    if model.horizon is not None:
        return smoothed(model.with_parts(horizon=None, beta=0.0), n).params, True
    if likelihood.solver.system.sweeps is not None:
        theta, value = large_start(model, n, likelihood, progress, near)
        likelihood.value = value
        return theta, True
    if model.beta > 0:
        # an NPL stage costs one linear solve, an evaluation of the likelihood several
        P = pooled(n, model.available) if near is None else near
        theta, value, stages = npl(model, n, P, tol=START_TOL, maxiter=START_STAGES)
        if stages < START_STAGES and np.isfinite(theta).all():
            likelihood.value = value
            return theta, True
    best, status, value = hotz_miller(model, n, steps=START_STEPS, tol=1e-4, maxiter=50)
    if status.converged:
        likelihood.value = value
    return np.asarray(best.params), status.converged


def large_start(
    model: DDC,
    n: FloatArray,
    likelihood: Likelihood,
    progress: Progress | None = None,
    near: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return parameters (K,) and value (S,) after some stages of the pseudo-likelihood.

    The first takes frequencies shrunk to those of the level (of a contract, say), which is what
    choices hang on most; only states where somebody was seen enter a stage's likelihood.
    """
    bellman, system = likelihood.solver.bellman, likelihood.solver.system
    assert system.sweeps is not None
    likelihood.release()
    rows = np.flatnonzero(n.any(axis=1))
    seen = np.ascontiguousarray(n[rows])
    attentive = bool((model.attention == 1).all())
    P = pooled(n, model.available, system.sweeps.law.level) if near is None else near
    theta = np.zeros(len(model.names))
    W: FloatArray | None = None
    for stage in range(LARGE_STAGES):
        system.factor(P)
        flows = policy_flows(model, P, P if attentive else unmix(model, P))
        W = system.solve(flows, rtol=LARGE_RTOL, guess=W)
        ahead = model.transitions.expect(W)[rows]
        ahead *= model.beta
        ahead[:, :, :-1] += model.utility.x[rows]
        offset = model.utility.offset[rows] + ahead[:, :, -1]
        index = np.ascontiguousarray(ahead[:, :, :-1])
        pseudo = Likelihood(static(model, index, offset, rows), seen)
        best, _ = maximise(
            pseudo.evaluate, pseudo.hessian, theta, pseudo.total, tol=LARGE_TOL, maxiter=50
        )
        theta = best.params
        value = W[:, :-1] @ theta + W[:, -1]
        if progress is not None:
            progress(stage + 1, LARGE_STAGES, "starting point")
        if stage + 1 < LARGE_STAGES:
            bellman.apply(bellman.laid(model.flow_utility(theta)), bellman.relative(value))
            P = bellman.observed()
    return theta, value


def probabilities_near(results: Results, model: DDC) -> FloatArray:
    """Return fitted choice probabilities (S, J), positive where the model offers a choice.

    Raises
    ------
    SpecificationError
        Results of another model: other states, choices or horizon.
    """
    P = results.ccp
    if P.shape != model.available.shape or results.model.states != model.states:
        raise SpecificationError(
            f"start= are results of another model ({results.model!r}); give parameters instead"
        )
    P = np.where(model.available, np.maximum(P, LEAST), 0.0)
    return np.asarray(P / P.sum(axis=1, keepdims=True))
