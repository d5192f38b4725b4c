"""Maximise a likelihood: Newton steps where they climb, scipy's trust region where not.

The exact Hessian is nearly free (one transposed solve), so near the maximum plain Newton steps
need the fewest solutions of the model. As soon as the Hessian is not negative definite or a step
does not climb, ``trust-exact`` takes over, with the outer product of scores (BHHH) in place of an
indefinite Hessian. Parameters are scaled by the outer product, so that tolerance and trust radius
are free of units. Success means that the scaled gradient of the mean log-likelihood is within the
tolerance; nothing else counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

from dynchoice.typing import FloatArray, Progress

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult


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


Point = TypeVar("Point", bound=Evaluated)


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


def scaled_gradient(evaluation: Evaluated, total: float) -> float:
    """Return ``max_k |g_k| / sqrt(B_kk / N) / N``: the gradient of the mean, free of units."""
    diagonal = evaluation.outer.diagonal()
    floor = max(1e-24 * float(diagonal.max()), 1e-300)
    scale = np.sqrt(np.maximum(diagonal, floor) * total)
    return float(np.abs(evaluation.score / scale).max())


def newton_decrement(score: FloatArray, information: FloatArray) -> float:
    """Return ``sqrt(g' H^-1 g)``, in standard errors; infinite where H is not positive along g."""
    try:
        value = float(score @ np.linalg.solve(information, score))
    except np.linalg.LinAlgError:
        return float("inf")
    return float(np.sqrt(value)) if value >= 0 else float("inf")


def climb(
    evaluate: Callable[[FloatArray], Point],
    hessian: Callable[[Point], FloatArray],
    best: Point,
    total: float,
    tol: float,
    maxiter: int,
    report: Callable[[int, Point], None],
) -> tuple[Point, int, int]:
    """Take Newton steps from an evaluation while they climb.

    Returns the last evaluation, the number of steps, and of evaluations.
    """
    from scipy.linalg.lapack import dposv

    count = 0
    size = scaled_gradient(best, total)
    for iteration in range(maxiter):
        if size <= tol:
            return best, iteration, count
        _, step, indefinite = dposv(-hessian(best), best.score)
        if indefinite:
            return best, iteration, count
        slack = 1e-12 * abs(best.loglik)
        trial = best
        for halving in range(4):
            trial = evaluate(best.params + step / 2**halving)
            count += 1
            if trial.converged and trial.loglik > best.loglik - slack:
                break
        else:
            return best, iteration, count
        before, best = best, trial
        report(iteration + 1, best)
        last, size = size, scaled_gradient(best, total)
        if best.loglik <= before.loglik + slack and size >= last:
            return before, iteration + 1, count
        del before  # an evaluation of a large model holds hundreds of megabytes
    return best, maxiter, count


def maximise(
    evaluate: Callable[[FloatArray], Point],
    hessian: Callable[[Point], FloatArray] | None,
    start: FloatArray,
    total: float,
    *,
    tol: float = 1e-8,
    maxiter: int = 100,
    progress: Progress | None = None,
) -> tuple[Point, Optimization]:
    """Maximise a log-likelihood.

    Parameters
    ----------
    evaluate : callable
        Parameters (K,) -> evaluation with ``loglik``, ``score``, ``outer``.
    hessian : callable, optional
        Evaluation -> second derivative (K, K). Without it the outer product serves (BHHH).
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

    def report(iteration: int, evaluation: Point) -> None:
        if progress is not None:
            progress(iteration, maxiter, f"log-likelihood {evaluation.loglik:.6f}")

    steps, count, note = 0, 1, ""
    if hessian is None:
        best = evaluate(start)
    else:
        # nobody else holds the first evaluation, so that its memory can go
        best, steps, more = climb(evaluate, hessian, evaluate(start), total, tol, maxiter, report)
        count += more
    if scaled_gradient(best, total) > tol and steps < maxiter:
        best, more_steps, more, note = trust_region(
            evaluate, hessian, best, total, tol, maxiter - steps, lambda i, e: report(steps + i, e)
        )
        steps, count = steps + more_steps, count + more
        if scaled_gradient(best, total) > tol:
            # a trust region that cannot resolve changes of the likelihood any more stops short
            # of its gradient criterion; Newton steps finish the digits
            finish = hessian if hessian is not None else (lambda e: -e.outer)
            best, more_steps, more = climb(evaluate, finish, best, total, tol, 10, report)
            steps, count = steps + more_steps, count + more
    size = scaled_gradient(best, total)
    information = curvature(best.outer, hessian(best) if hessian is not None else None)
    converged = bool(size <= tol and best.converged)
    if converged:
        message = f"converged: scaled gradient {size:.1e} <= {tol:.0e}"
    elif not best.converged:
        message = "not converged: the inner fixed point did not converge at the estimate"
    else:
        message = f"not converged: scaled gradient {size:.1e} > {tol:.0e} after {steps} iterations"
        message += f" ({note})" if note else ""
    decrement = newton_decrement(best.score, information)
    return best, Optimization(
        converged=converged,
        message=message,
        iterations=steps,
        evaluations=count,
        gradient=size,
        decrement=decrement,
        start=np.array(start),
    )


def trust_region(
    evaluate: Callable[[FloatArray], Point],
    hessian: Callable[[Point], FloatArray] | None,
    first: Point,
    total: float,
    tol: float,
    maxiter: int,
    report: Callable[[int, Point], None],
) -> tuple[Point, int, int, str]:
    """Run scipy's ``trust-exact`` from an evaluation in scaled parameters.

    Returns the best evaluation, iterations, evaluations and scipy's message.
    """
    from scipy.optimize import minimize

    scale = np.sqrt(np.maximum(np.diag(first.outer) / total, 1e-300))
    scale = np.maximum(scale, 1e-12 * scale.max())
    state: dict[str, Any] = {"z": first.params * scale, "point": first, "count": 0, "iterations": 0}

    def evaluate_at(z: FloatArray) -> Point:
        if not np.array_equal(state["z"], z):
            state["z"], state["point"] = z.copy(), evaluate(z / scale)
            state["count"] += 1
        return cast("Point", state["point"])

    def value(z: FloatArray) -> float:
        e = evaluate_at(z)
        return -e.loglik / total if e.converged and np.isfinite(e.loglik) else np.inf

    def second(z: FloatArray) -> FloatArray:
        e = evaluate_at(z)
        h = curvature(e.outer, hessian(e) if hessian is not None else None)
        return np.asarray(h / np.outer(scale, scale) / total)

    def after(intermediate_result: OptimizeResult) -> None:
        state["iterations"] += 1
        report(state["iterations"], evaluate_at(np.asarray(intermediate_result.x)))

    result = minimize(
        value,
        first.params * scale,
        jac=lambda z: -evaluate_at(z).score / scale / total,
        hess=second,
        method="trust-exact",
        callback=after,
        options={
            "gtol": tol,
            "maxiter": maxiter,
            "initial_trust_radius": 1.0,
            "max_trust_radius": 1000.0,
        },
    )
    best = evaluate_at(np.asarray(result.x))
    return best, int(result.nit), int(state["count"]), str(result.message)
