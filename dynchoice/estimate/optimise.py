"""Maximise a likelihood: scipy's trust region with the likelihood's own curvature.

Parameters are scaled by the outer product at the start, so that tolerance and trust radius are
free of units. Success means that the scaled gradient of the mean log-likelihood is within the
tolerance; nothing else counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dynchoice.typing import FloatArray, Progress


class Evaluated(Protocol):
    """What the optimiser reads of an evaluation."""

    params: FloatArray
    loglik: float
    score: FloatArray
    outer: FloatArray

    @property
    def converged(self) -> bool:
        """Whether the inner solution converged."""
        ...


@dataclass(frozen=True)
class Optimization:
    """How the maximisation went.

    Attributes
    ----------
    gradient : float
        Largest scaled element of the gradient of the mean log-likelihood at the end.
    decrement : float
        Newton decrement ``sqrt(g' H^-1 g)``: distance from the maximum in standard errors.
    """

    converged: bool
    message: str
    iterations: int
    evaluations: int
    gradient: float
    decrement: float
    start: FloatArray
    starts: tuple[dict[str, Any], ...] = field(default=())


def curvature(outer: FloatArray, hessian: FloatArray | None) -> FloatArray:
    """Return the curvature of minus the log-likelihood: exact where positive, else BHHH."""
    if hessian is None:
        return outer
    information = -hessian
    try:
        np.linalg.cholesky(information)
    except np.linalg.LinAlgError:
        return outer
    return information


def maximise(
    evaluate: Callable[[FloatArray], Any],
    hessian: Callable[[Any], FloatArray] | None,
    start: FloatArray,
    total: float,
    *,
    tol: float = 1e-8,
    maxiter: int = 100,
    progress: Progress | None = None,
) -> tuple[Any, Optimization]:
    """Maximise a log-likelihood by ``trust-exact``.

    Parameters
    ----------
    evaluate : callable
        Parameters (K,) -> evaluation with ``loglik``, ``score``, ``outer``.
    hessian : callable, optional
        Evaluation -> second derivative (K, K). Used where it is negative definite; the outer
        product (BHHH) elsewhere.
    total : float
        Number of observations: the criterion is the mean log-likelihood.
    tol : float
        Bound on the scaled gradient of the mean log-likelihood.
    maxiter : int
        Iterations at most.

    Returns
    -------
    evaluation, Optimization
        At the best point found.
    """
    from scipy.optimize import minimize

    first = evaluate(start)
    scale = np.sqrt(np.maximum(np.diag(first.outer) / total, 1e-300))
    scale[~(scale > 1e-12 * scale.max())] = 1.0
    seen: dict[bytes, Any] = {}
    count = 0

    def at(z: FloatArray) -> Any:
        nonlocal count
        key = z.tobytes()
        if key not in seen:
            count += 1
            evaluation = first if count == 1 else evaluate(z / scale)
            seen.clear()
            seen[key] = evaluation
        return seen[key]

    def value(z: FloatArray) -> float:
        e = at(z)
        return -e.loglik / total if e.converged and np.isfinite(e.loglik) else np.inf

    def gradient(z: FloatArray) -> FloatArray:
        return np.asarray(-at(z).score / scale / total)

    def second(z: FloatArray) -> FloatArray:
        e = at(z)
        h = curvature(e.outer, hessian(e) if hessian is not None else None)
        return np.asarray(h / np.outer(scale, scale) / total)

    state = {"iterations": 0}

    def report(intermediate_result: Any) -> None:
        state["iterations"] += 1
        if progress is not None:
            loglik = -float(intermediate_result.fun) * total
            progress(state["iterations"], maxiter, f"log-likelihood {loglik:.6f}")

    result = minimize(
        value,
        start * scale,
        jac=gradient,
        hess=second,
        method="trust-exact",
        callback=report,
        options={
            "gtol": tol,
            "maxiter": maxiter,
            "initial_trust_radius": 1.0,
            "max_trust_radius": 1000.0,
        },
    )
    best = evaluate(np.asarray(result.x) / scale)
    g = best.score / scale / total
    size = float(np.abs(g).max())
    information = curvature(best.outer, hessian(best) if hessian is not None else None)
    decrement = newton_decrement(best.score, information)
    # a trust region that can no longer resolve changes of the likelihood stops short of its
    # gradient criterion; Newton steps on the gradient alone finish the digits
    polish = 0
    while not size <= tol and polish < 5 and np.isfinite(decrement) and decrement < 1e-2:
        step = np.linalg.lstsq(information, best.score, rcond=1e-14)[0]
        trial = evaluate(best.params + step)
        trial_size = float(np.abs(trial.score / scale / total).max())
        polish += 1
        if not trial.converged or not trial_size < size:
            break
        best, size = trial, trial_size
        information = curvature(best.outer, hessian(best) if hessian is not None else None)
        decrement = newton_decrement(best.score, information)
    iterations = int(result.nit) + polish
    converged = bool(size <= tol and best.converged)
    if converged:
        message = f"converged: scaled gradient {size:.1e} <= {tol:.0e}"
    elif not best.converged:
        message = "not converged: the inner fixed point did not converge at the estimate"
    else:
        message = (
            f"not converged: scaled gradient {size:.1e} > {tol:.0e} after {iterations} iterations"
            f" ({result.message})"
        )
    return best, Optimization(
        converged, message, iterations, count + polish, size, decrement, np.array(start)
    )


def newton_decrement(score: FloatArray, information: FloatArray) -> float:
    """Return ``sqrt(g' H^-1 g)``; infinite where the information is singular along g."""
    try:
        value = float(score @ np.linalg.solve(information, score))
    except np.linalg.LinAlgError:
        return float("inf")
    return float(np.sqrt(value)) if value >= 0 else float("inf")
