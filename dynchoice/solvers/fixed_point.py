"""Infinite horizon: contraction steps, then Newton-Kantorovich on relative values.

The polyalgorithm of Iskhakov, Lee, Rust, Schjerning and Seo (2016, Econometrica 84): contraction
steps while they still shrink the residual fast, then ``V <- V + (I - beta P)^{-1} (T(V) - V)``.
The operator is convex and monotone, so Newton's iterates are policy iterations: they converge
from any start, quadratically, in a number of steps that does not depend on beta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynchoice.solvers.bellman import Bellman
from dynchoice.solvers.linear import PolicySystem
from dynchoice.typing import FloatArray

CONTRACTIONS = 20
"""Contraction steps at most."""
PATIENCE = 10
"""Newton steps in a row that may fail to improve while the residual is large."""
ROUGH, FINE = 0.1, 1e-3
"""Relative accuracy of a Newton step far from the solution, and once the residual has risen."""
APART = 1e3
"""The bound on the residual grows with the values up to this multiple of flow utility, no further:
values of states that hardly reach each other lie up to ``1 / (1 - beta)`` apart, whatever the flow.
"""
FAST = 0.5
"""Contraction goes on while it at least halves the residual."""


@dataclass(frozen=True)
class FixedPoint:
    """The last iterate: relative value ``h`` (S,), level ``gain / (1 - beta)`` (S,), and status."""

    h: FloatArray
    gain: FloatArray
    residual: float
    converged: bool
    message: str
    contractions: int
    newton: int


def fixed_point(
    bellman: Bellman,
    system: PolicySystem,
    u: FloatArray,
    start: FloatArray | None = None,
    tol: float = 1e-12,
    maxiter: int = 50,
) -> FixedPoint:
    """Find the relative value ``h`` with ``T(h) - h`` constant within each block.

    Parameters
    ----------
    u : FloatArray, shape (S, J)
        Flow utility in utils, minus infinity where not offered.
    start : FloatArray, shape (S,), optional
        First guess of ``V`` or ``h``; skips the contraction phase.
    tol : float
        Bound on the residual divided by ``1 + max|h|``, or by a thousand times ``1 + max|gain|``
        where that is less.
    maxiter : int
        Newton steps at most.

    Returns
    -------
    FixedPoint
        Not converged is a status, never an exception. ``bellman``'s arrays hold the operator at
        the returned ``h``.
    """

    def bound() -> float:
        """Return the residual allowed at the present ``h``; rounding errors are in proportion."""
        flow = 1 + float(np.abs(bellman.gain).max())
        return tol * min(1 + float(np.abs(h).max()), APART * flow)

    system.failures.clear()
    S = u.shape[0]
    h = np.zeros(S) if start is None else bellman.relative(start)
    u = bellman.laid(u)
    residual = bellman.apply(u, h)
    contractions, newton = 0, 0
    if start is None and bellman.beta > 0:
        while contractions < CONTRACTIONS and residual > bound():
            h = bellman.relative(bellman.T)  # without the level, whose error shrinks by beta a step
            before, residual = residual, bellman.apply(u, h)
            contractions += 1
            if not residual <= FAST * before:
                break
    # far from the solution Newton's own error is large, and an exact linear solve would be wasted
    best = np.inf
    stalled, rises, rough = 0, 0, ROUGH
    while residual > bound() and newton < maxiter:
        # near the end two rises are rounding; far from it policies may still be on their way
        patience = 2 if residual < 1e-8 * (1 + np.abs(h).max()) else PATIENCE
        if stalled >= patience or not np.isfinite(residual):
            break
        bellman.hand_policy(system)
        # an error of the linear solve as large as Newton's own does no harm
        step = system.solve(bellman.r, rtol=max(0.1 * bound() / residual, min(rough, residual)))
        h = bellman.relative(h + step)
        before, residual = residual, bellman.apply(u, h)
        rises += residual > before
        if rises:  # slow modes may amplify what a rough step leaves
            rough = FINE
        newton += 1
        # the residual may rise before quadratic convergence sets in, but not for long
        stalled = 0 if residual < best or newton < 8 else stalled + 1
        best = min(best, residual)
    converged = bool(np.isfinite(residual) and residual <= bound())
    if not converged and np.isfinite(residual):
        # rounding of T(h) - h itself: a residual at that floor is all float64 can give
        floor = 64 * np.finfo(float).eps * (1 + np.abs(h).max() + np.abs(bellman.gain).max())
        converged = bool(residual <= max(floor, bound()))
    message = (
        f"converged: {contractions} contraction and {newton} Newton steps, residual {residual:.1e}"
        if converged
        else f"not converged: residual {residual:.1e} after {contractions} contraction and"
        f" {newton} Newton steps (bound {bound():.1e})"
    )
    if system.failures and not converged:
        message += "; " + system.failures[-1]
    return FixedPoint(
        h=h,
        gain=bellman.gain.copy(),
        residual=residual,
        converged=converged,
        message=message,
        contractions=contractions,
        newton=newton,
    )
