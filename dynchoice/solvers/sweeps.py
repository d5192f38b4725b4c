"""Linear systems of factored models too large to expand, by sweeps over their levels.

``(I - beta F^P) x = b`` with ``F`` levels times two dense halves
(:mod:`dynchoice.model.level_product`): a sweep over the levels, each after those it leads to,
nearly solves it, and flexible GMRES does the rest in 4 to 12 sweeps where the plain product needs
hundreds. The slow mode of size ``1 / (1 - beta)`` is taken out of both systems, so that the number
of steps depends on how members mix, not on beta. The forward system is solved on relative values.
Of the transposed one the sum is known, ``sum(x) = sum(b) / (1 - beta)``, and the rest is solved
among vectors that sum to zero.

Several right sides are solved by one thread each. One level of parallelism at a time: in a worker
of joblib or dask they come one after the other; the figures are the same to the bit.
"""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import numpy as np

from dynchoice.model.level_product import Product
from dynchoice.solvers.krylov import Room, Rooms, flexible_gmres
from dynchoice.typing import FloatArray

KRYLOV_VECTORS, KRYLOV_CYCLES = 40, 50
"""Krylov vectors before a restart, and restarts at most."""
KRYLOV_NUMBERS = 60_000_000
"""Numbers that Krylov vectors of sweeps may take (480 MB)."""

COARSE_MOVES = 200_000
"""Moves between levels up to which the system between them is factored at every policy."""

ROOMS = Rooms(KRYLOV_NUMBERS)
"""Krylov vectors of all systems of this process."""


def free_threads() -> int:
    """Return how many threads one large task may use: one inside any kind of worker."""
    is_worker = multiprocessing.parent_process() is not None
    if is_worker or threading.current_thread() is not threading.main_thread():
        return 1
    from joblib import cpu_count

    return int(cpu_count())


class Sweeps:
    """The systems of one policy at a time.

    Attributes
    ----------
    whole, law : Product
        The law, and that without moves of choices that the policy never takes, discounted.
    sweeps : int
        Sweeps so far.
    failures : list of str
        Solves that missed their accuracy.
    """

    def __init__(self, product: Product, beta: float) -> None:
        self.whole = self.law = product
        self.beta = beta
        self.sweeps = 0
        self.failures: list[str] = []
        self._P: FloatArray = np.empty(0)
        # of the policy at hand, each made when it is first needed
        self._spread: list[tuple[FloatArray, FloatArray]] | None = None
        self._coarse: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without SuperLU's factors, which can be made again."""
        return {**self.__dict__, "_coarse": None}

    def factor(self, P: FloatArray) -> None:
        """Take a policy by level (B, C, J, n), which must stay as it is until the next."""
        self._P = P
        self.law = self.whole.trimmed(P).discounted(self.beta)
        self._spread = self._coarse = None

    def _room(self) -> Room:
        """Take Krylov vectors that nobody uses: fewer where the states are many."""
        n = self.law.C * self.law.n
        most = int(np.clip(KRYLOV_NUMBERS // (2 * n), 8, KRYLOV_VECTORS))
        return ROOMS.take(most, n)

    def solve(
        self,
        b: FloatArray,
        rtol: float,
        transposed: bool = False,
        guess: FloatArray | None = None,
    ) -> FloatArray:
        """Return the solution (S,) or (S, K) for right sides of that shape.

        ``guess``, a solution at parameters nearby, saves sweeps (not of the transposed system).
        """
        if b.size == 0:
            return np.zeros(b.shape)
        # what the columns share is made before the threads start
        if transposed:
            self._occupation()
        else:
            self._factor_levels()
        if b.ndim == 1:
            x, used = self._solve_column(b, rtol, transposed, guess)
            self.sweeps += used
            return x
        K = b.shape[1]
        columns = np.ascontiguousarray(b.T)
        guesses = [None] * K if guess is None else list(np.ascontiguousarray(guess.T))
        threads = min(free_threads(), K)
        tasks = zip(columns, guesses, strict=True)
        if threads == 1:
            solved = [self._solve_column(c, rtol, transposed, g) for c, g in tasks]
        else:
            from joblib import Parallel, delayed

            solved = Parallel(n_jobs=threads, backend="threading")(
                delayed(self._solve_column)(c, rtol, transposed, g) for c, g in tasks
            )
        self.sweeps += sum(used for _, used in solved)
        return np.ascontiguousarray(np.stack([x for x, _ in solved]).T)

    def _solve_column(
        self, b: FloatArray, rtol: float, transposed: bool, guess: FloatArray | None
    ) -> tuple[FloatArray, int]:
        """Solve one right side (S,); return the solution and the sweeps that it took."""
        law, right = self.law, self.law.laid(b)
        x, used = np.empty_like(right), 0
        start = None if guess is None else law.laid(guess)
        room = self._room()
        for i in range(law.B):
            if transposed:
                x[i], miss, sweeps = self._solve_transposed(i, right[i], rtol, room)
            else:
                near = None if start is None else start[i]
                x[i], miss, sweeps = self._solve_block(i, right[i], rtol, room, near)
            used += sweeps
            if not miss <= max(1e-8, 10 * rtol):
                self.failures.append(f"sweeps stopped at a relative residual of {miss:.1e}")
        ROOMS.give(room, self.whole)
        return law.by_state(x), used

    def _solve_block(
        self, i: int, b: FloatArray, rtol: float, room: Room, guess: FloatArray | None
    ) -> tuple[FloatArray, float, int]:
        """Solve one block: relative values, then its level."""
        law, P, used = self.law, self._P[i], 0
        size_of_b, levels = float(np.linalg.norm(b - b[0, 0])), self._factor_levels()[i]
        # a guess is corrected: the equation is solved for what it misses, to the accuracy of b
        r = b
        if guess is not None:
            r = np.empty_like(b)
            law.defect(i, b, P, guess, r)
            # worse than none, or no number
            if not float(np.linalg.norm(r - r[0, 0])) <= size_of_b:
                r, guess = b, None

        def sweep(v: FloatArray, y: FloatArray, out: FloatArray) -> None:
            nonlocal used
            used += 1
            v, y, out = v.reshape(b.shape), y.reshape(b.shape), out.reshape(b.shape)
            if levels is None:
                law.sweep(i, v, P, y, out)
                return
            coarse = levels.solve(v.mean(axis=1))
            # constants, of size 1 / (1 - beta), would eat the digits of what tells states apart
            level = coarse[0]
            law.sweep(i, v, P, y, out, coarse - level, (1 - self.beta) * level)

        flat = r.reshape(-1)
        x, at_root, size = flexible_gmres(sweep, flat, rtol * size_of_b, room, KRYLOV_CYCLES)
        # (I - beta F^P)(x + c) = b at the first state, and a constant c loses beta c
        x += (flat[0] - at_root) / (1 - self.beta)
        out = x.reshape(b.shape)
        miss = size / size_of_b if size_of_b else 0.0
        return out if guess is None else guess + out, miss, used

    def _solve_transposed(
        self, i: int, b: FloatArray, rtol: float, room: Room
    ) -> tuple[FloatArray, float, int]:
        """Solve one block of the transposed system: the known sum, then what sums to zero."""
        law, P, (spread, applied) = self.law, self._P[i], self._occupation()[i]
        size_of_b, mass, used = float(np.linalg.norm(b)), float(b.sum()) / (1 - self.beta), 0
        # a known solution with the right sum is taken off; what is left sums to zero
        r = (b - applied * mass).reshape(-1)

        def sweep(v: FloatArray, y: FloatArray, out: FloatArray) -> None:
            nonlocal used
            used += 1
            law.sweep_back(i, v.reshape(b.shape), P, y.reshape(b.shape), out.reshape(b.shape))
            # back among vectors that sum to zero, with the image of the same correction
            total = float(y.sum())
            y -= total * spread.reshape(-1)
            out -= total * applied.reshape(-1)

        x, _, size = flexible_gmres(sweep, r, rtol * size_of_b, room, KRYLOV_CYCLES, False)
        out = x.reshape(b.shape) + spread * mass
        return out, size / size_of_b if size_of_b else 0.0, used

    def _factor_levels(self) -> list[Any]:
        """Return, by block, the factors of the system between levels, for a coarse correction.

        None where there are so many moves that factoring would cost more than it saves, and where
        the policy is not a number: what is wrong shows in the residual.
        """
        if self._coarse is None:
            from scipy.sparse.linalg import splu

            few = len(self.law.graph[1]) <= COARSE_MOVES
            between = [self.law.between_levels(P).tocsc() if few else None for P in self._P]
            self._coarse = [
                splu(A) if A is not None and np.isfinite(A.data).all() else None for A in between
            ]
        return self._coarse

    def _occupation(self) -> list[tuple[FloatArray, FloatArray]]:
        """Return, by block, a mass that sums to one, about where members end up, and its image."""
        if self._spread is None:
            law, pairs = self.law, []
            for i in range(law.B):
                even = np.ones((law.C, law.n))
                y, out = np.empty_like(even), np.empty_like(even)
                law.sweep_back(i, even, self._P[i], y, out)
                self.sweeps += 1
                pairs.append((y / y.sum(), out / y.sum()))
            self._spread = pairs
        return self._spread
