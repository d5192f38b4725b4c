"""GMRES for preconditioners that return their product with the matrix as well.

scipy's asks for the product of a preconditioned vector, and once more for the solution; a sweep
over levels gives ``y = M^{-1} v`` and ``A y`` at once, so the flexible form (Saad 1993), which
keeps every ``y``, needs no sweep beyond those of its steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg.blas import daxpy, ddot, dnrm2

from dynchoice.typing import FloatArray

Sweep = Callable[[FloatArray, FloatArray, FloatArray], None]
"""Takes ``v`` and writes ``y`` and ``A y``, arrays (n,)."""


def relative_gmres(
    sweep: Sweep, b: FloatArray, rtol: float, room: int, cycles: int
) -> tuple[FloatArray, float, float]:
    """Solve ``A x = b`` up to a constant; return ``x``, ``(A x)[0]`` and the relative residual.

    Krylov vectors are taken less their first element: where ``A`` maps constants to constants
    (``I - beta F^P``), that projects them out, whose eigenvalue ``1 - beta`` would slow the steps.

    Parameters
    ----------
    b : FloatArray, shape (n,)
        Its first element is taken as zero.
    rtol : float
        Norm of the residual, relative to that of ``b``, at which it stops.
    room, cycles : int
        Vectors kept before a restart, and cycles at most.
    """
    n = len(b)
    x, at_root = np.zeros(n), 0.0
    r = b - b[0]
    first = size = float(dnrm2(r))
    if first == 0.0:
        return x, 0.0, 0.0
    V, Z = np.empty((room + 1, n)), np.empty((room, n))
    H, root = np.zeros((room + 1, room)), np.zeros(room)
    for _ in range(cycles):
        if size <= rtol * first:
            break
        np.divide(r, size, out=V[0])
        rotations = np.zeros((room, 2))
        g = np.zeros(room + 1)
        g[0], used = size, 0
        for k in range(room):
            w = V[k + 1]
            sweep(V[k], Z[k], w)
            root[k] = w[0]
            w -= w[0]
            for i in range(k + 1):  # modified Gram-Schmidt
                H[i, k] = ddot(V[i], w)
                daxpy(V[i], w, a=-H[i, k])
            length = float(dnrm2(w))
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
            if abs(g[k + 1]) <= rtol * first or length == 0.0:
                break
            w /= length
        if not used:
            break
        weights = np.linalg.solve(np.triu(H[:used, :used]), g[:used])
        for k in range(used):
            daxpy(Z[k], x, a=weights[k])
        at_root += float(weights @ root[:used])
        size = abs(float(g[used]))
        if size > rtol * first:
            # the residual in the basis: exact but for rounding, and no sweep
            left = np.zeros(used + 1)
            left[used] = g[used]
            for i in range(used - 1, -1, -1):
                c, s = rotations[i]
                left[i], left[i + 1] = -s * left[i + 1], c * left[i + 1]
            r = left @ V[: used + 1]
    return x, at_root, size / first
