"""GMRES for a preconditioner that gives its product with the matrix for nothing.

A sweep over levels returns both ``y = M^{-1} v`` and ``A y``. scipy's GMRES would compute ``A y``
again, and one more sweep for the solution. The flexible form (Saad 1993) keeps every ``y``, so it
needs no sweep beyond those of its steps.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np

from dynchoice.kernels.products import add_rows, krylov_step
from dynchoice.typing import FloatArray

Sweep = Callable[[FloatArray, FloatArray, FloatArray], None]
"""Takes ``v`` and writes ``y`` and ``A y``, arrays (n,)."""
Room = tuple[FloatArray, FloatArray]
"""Vectors kept before a restart: those of the basis (m + 1, n), and what a sweep made of them."""


class Rooms:
    """Krylov vectors kept for the next solve: a bounded amount, none for laws that are gone.

    Reason: touching fresh memory took a fifth of a solution of 3.4 million states.

    Parameters
    ----------
    most : int
        Numbers (of 8 bytes) that are kept at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: list[tuple[weakref.ref[object], Room]] = []
        # reentrant: the garbage collector may call _forget while this thread holds the lock
        self._lock = threading.RLock()

    def take(self, vectors: int, n: int) -> Room:
        """Return room for some vectors (n,), which is the caller's until it is given back."""
        with self._lock:
            for entry in self._kept:
                if entry[1][1].shape == (vectors, n):
                    self._kept = [other for other in self._kept if other is not entry]
                    return entry[1]
        return np.empty((vectors + 1, n)), np.empty((vectors, n))

    def give(self, room: Room, law: object) -> None:
        """Keep a room for the next solve while a law lives; older ones make way for it."""
        with self._lock:
            kept, total = [(weakref.ref(law, self._forget), room)], room[0].size + room[1].size
            for entry in self._kept:
                total += entry[1][0].size + entry[1][1].size
                if total <= self.most:
                    kept.append(entry)
            self._kept = kept if room[0].size + room[1].size <= self.most else self._kept

    def _forget(self, gone: weakref.ref[object]) -> None:
        """Drop the vectors of a law that no longer exists."""
        with self._lock:
            self._kept = [entry for entry in self._kept if entry[0] is not gone]


def flexible_gmres(
    sweep: Sweep,
    b: FloatArray,
    goal: float,
    room: Room,
    cycles: int,
    relative: bool = True,
) -> tuple[FloatArray, float, float]:
    """Solve ``A x = b``; return ``x``, ``(A x)[0]`` and the norm of the residual.

    With ``relative`` the equation is solved up to a constant: the first element is subtracted from
    every Krylov vector. ``I - beta F^P`` maps constants to constants with eigenvalue ``1 - beta``,
    which would slow the steps; this takes them out.

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
    # H: Hessenberg matrix, made triangular step by step; root: first elements of A y, taken out
    H, root = np.zeros((most + 1, most)), np.zeros(most)
    for _ in range(cycles):
        if size <= goal or size == 0.0:
            break
        np.divide(r, size, out=V[0])
        rotations = np.zeros((most, 2))
        g = np.zeros(most + 1)
        g[0], used = size, 0
        for k in range(most):
            w = V[k + 1]  # a view: the new vector is written and normalised where it stays
            sweep(V[k], Z[k], w)
            root[k] = w[0]
            if relative:
                w -= w[0]
            length = float(krylov_step(V, k, H))
            # Givens rotations of the earlier steps, then one that removes the subdiagonal element;
            # the last element of g is then the norm of the residual, known without the solution
            for i in range(k):
                top, low = H[i, k], H[i + 1, k]
                c, s = rotations[i]
                H[i, k], H[i + 1, k] = c * top + s * low, c * low - s * top
            whole = float(np.hypot(H[k, k], length))
            if whole == 0.0:  # nothing new
                break
            rotations[k] = H[k, k] / whole, length / whole
            H[k, k], used = whole, k + 1
            g[k + 1], g[k] = -rotations[k, 1] * g[k], rotations[k, 0] * g[k]
            if abs(g[k + 1]) <= goal or length == 0.0:  # length 0: the basis holds the solution
                break
            w /= length
        if not used:
            break
        weights = np.linalg.solve(np.triu(H[:used, :used]), g[:used])
        add_rows(weights, Z, x)
        at_root += float(weights @ root[:used])
        size = abs(float(g[used]))
        if size > goal:
            # a restart begins from the residual: the rotations backwards give it in the basis,
            # exact but for rounding, without a sweep
            left = np.zeros(used + 1)
            left[used] = g[used]
            for i in range(used - 1, -1, -1):
                c, s = rotations[i]
                left[i], left[i + 1] = -s * left[i + 1], c * left[i + 1]
            r = left @ V[: used + 1]
    return x, at_root, size
