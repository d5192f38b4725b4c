"""GMRES for preconditioners that return their product with the matrix as well.

scipy's asks for the product of a preconditioned vector, and once more for the solution; a sweep
over levels gives ``y = M^{-1} v`` and ``A y`` at once, so the flexible form (Saad 1993), which
keeps every ``y``, needs no sweep beyond those of its steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynchoice.product_kernels import add_rows, krylov_step
from dynchoice.typing import FloatArray

Sweep = Callable[[FloatArray, FloatArray, FloatArray], None]
"""Takes ``v`` and writes ``y`` and ``A y``, arrays (n,)."""


def flexible_gmres(
    sweep: Sweep,
    b: FloatArray,
    goal: float,
    room: tuple[FloatArray, FloatArray],
    cycles: int,
    relative: bool = True,
) -> tuple[FloatArray, float, float]:
    """Solve ``A x = b``; return ``x``, ``(A x)[0]`` and the norm of the residual.

    With ``relative``, up to a constant: Krylov vectors are taken less their first element. Where
    ``A`` maps constants to constants (``I - beta F^P``), that projects them out, whose eigenvalue
    ``1 - beta`` would slow the steps.

    Parameters
    ----------
    b : FloatArray, shape (n,)
    goal : float
        Norm of the residual (less its first element, if relative) at which it stops.
    room : two FloatArray, shapes (m + 1, n) and (m, n)
        Work arrays for the vectors kept before a restart.
    cycles : int
        Restarts at most.
    """
    V, Z = room
    most = len(Z)
    x, at_root = np.zeros(len(b)), 0.0
    r = b - b[0] if relative else b.copy()
    size = float(np.linalg.norm(r))
    if not np.isfinite(size):
        return x, at_root, size
    # below the rounding of what it starts from, new vectors are noise
    goal = max(goal, 4 * np.finfo(float).eps * size)
    H, root = np.zeros((most + 1, most)), np.zeros(most)
    for _ in range(cycles):
        if size <= goal or size == 0.0:
            break
        np.divide(r, size, out=V[0])
        rotations = np.zeros((most, 2))
        g = np.zeros(most + 1)
        g[0], used = size, 0
        for k in range(most):
            w = V[k + 1]
            sweep(V[k], Z[k], w)
            root[k] = w[0]
            if relative:
                w -= w[0]
            length = float(krylov_step(V, k, H))
            for i in range(k):
                top, low = H[i, k], H[i + 1, k]
                c, s = rotations[i]
                H[i, k], H[i + 1, k] = c * top + s * low, c * low - s * top
            whole = float(np.hypot(H[k, k], length))
            if whole == 0.0:
                break
            rotations[k] = H[k, k] / whole, length / whole
            H[k, k], used = whole, k + 1
            g[k + 1], g[k] = -rotations[k, 1] * g[k], rotations[k, 0] * g[k]
            if abs(g[k + 1]) <= goal or length == 0.0:
                break
            w /= length
        if not used:
            break
        weights = np.linalg.solve(np.triu(H[:used, :used]), g[:used])
        add_rows(weights, Z, x)
        at_root += float(weights @ root[:used])
        size = abs(float(g[used]))
        if size > goal:
            # the residual in the basis: exact but for rounding, and no sweep
            left = np.zeros(used + 1)
            left[used] = g[used]
            for i in range(used - 1, -1, -1):
                c, s = rotations[i]
                left[i], left[i + 1] = -s * left[i + 1], c * left[i + 1]
            r = left @ V[: used + 1]
    return x, at_root, size
