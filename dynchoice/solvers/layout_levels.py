"""Models solved and pushed forward block by block, in the cache.

Levels of Fixed axes (offers in force) never mix: each is a block with states of its own. Within a
block one axis, the contract, moves along a sparse graph of levels, and the rest (engagement)
moves independently of it given the choice: ``F_j = R_j (x) Q_j``. A sweep over the levels, each
after those it leads to, solves most of Newton's linear system at once (an annual contract is a
chain of twelve levels), so GMRES needs about seven sweeps where it took seventy products.
Nothing is allocated between solutions: thousands of draws cost their arithmetic.

Models of another form take :class:`~dynchoice.solvers.layout.PlainBlocks`: one block, the
library's general solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynchoice.kernels import levels as level_kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, Fixed
from dynchoice.model.level_graph import (
    distinct_chains,
    joint_table,
    law_table,
    level_graph,
    needed_levels,
)
from dynchoice.solvers.layout import TOL, BlockSolution, PlainBlocks
from dynchoice.typing import BoolArray, FloatArray, IntArray

BASIS = 60
"""Sweeps of a linear solve at most; a dozen do."""
NEWTON = 40
LARGEST_REST, ALWAYS_DENSE, SPARSE = 160, 48, 0.3
"""States beside the level axis whose chain is kept as a dense matrix: up to the first number, and
beyond the second only if the share of non-zeros is above the third."""


class LevelBlocks(PlainBlocks):
    """Blocks of a factored model whose level axis moves independently of the rest."""

    by_choice = True

    def __init__(self, model: DDC) -> None:
        F = model.transitions
        assert isinstance(F, Factored)
        level = level_law(F)
        assert level is not None
        shape = model.states.shape
        fixed = sorted(a for law in F.bound if isinstance(law.family, Fixed) for a in law.axes)
        own = level.axes
        rest = [a for a in range(len(shape)) if a not in fixed and a not in own]
        codes = np.arange(model.states.size).reshape(shape).transpose(*fixed, *own, *rest)
        B = int(np.prod([shape[a] for a in fixed]))
        super().__init__(model, np.ascontiguousarray(codes.reshape(B, -1)))
        self.C, self.E = level.n, self.n // level.n
        offered = model.available[self.order].reshape(B, self.C, self.E, self.J).any(axis=(0, 2))
        self.graph = level_graph(joint_table([level], self.J), np.asarray(offered))
        others = [law for law in F.bound if law is not level and not isinstance(law.family, Fixed)]
        self._others, self._axes, self._fixed = others, rest, fixed
        self.chains = self._chains(others)
        kinds = list({id(c): c for c in self.chains}.values())
        places = {id(c): i for i, c in enumerate(kinds)}
        self._which = np.array([places[id(c)] for c in self.chains], dtype=np.int64)
        self._laws = tuple(np.stack(parts) for parts in zip(*kinds, strict=True))
        L = self.chains[0][0].shape[0]
        n, J, m = self.n, self.J, min(BASIS, self.n)
        self._z, self._out, self._r = np.empty((L, self.C, self.E)), np.empty(n), np.empty(n)
        self._work = (
            np.empty((J, n)),
            np.empty((J, n)),
            np.empty(n),
            np.empty((m + 1, n)),
            np.empty((m, n)),
            np.zeros((m + 2, m + 3)),
            np.empty(n),
            self._z,
            np.empty((J, self.C, self.E)),
            np.empty((self.C, self.E, self.E)),
        )
        self._counted = self._groups(np.zeros(n, dtype=np.int64))

    def _chains(self, laws: list[BoundLaw]) -> list[Any]:
        """Return each block's chains of the rest: matrices, their transposes, who follows which."""
        shape = self.model.states.shape
        offers = [shape[a] for a in self._fixed]
        out, seen = [], {}
        for b in range(self.B):
            at = np.unravel_index(b, offers) if offers else ()
            here = {a: int(x) for a, x in zip(self._fixed, at, strict=True)}
            stacked, chain = distinct_chains(laws, self._axes, shape, here, self.J)
            key = (stacked.tobytes(), chain.tobytes())
            if key not in seen:
                transposed = np.ascontiguousarray(stacked.transpose(0, 2, 1))
                need = needed_levels(self.graph, chain, len(stacked), self.C)
                seen[key] = stacked, transposed, chain, need, need.sum(axis=1)
            out.append(seen[key])
        widest = max(c[0].shape[0] for c in out)
        wide = {id(c): c if c[0].shape[0] == widest else _widened(c, widest) for c in seen.values()}
        return [wide[id(c)] for c in out]

    def key(self, b: int) -> bytes:
        """Return what tells a block's chains from others'."""
        return self.chains[b][0].tobytes() + self.chains[b][2].tobytes()

    def closed(self, b: int) -> list[IntArray]:
        """Return all states: an offer is a block of its own."""
        return [np.arange(self.n)]

    def solve(
        self,
        u: FloatArray,
        start: FloatArray | None = None,
        tol: float = TOL,
        active: BoolArray | None = None,
    ) -> BlockSolution:
        """Solve every block: see :meth:`PlainBlocks.solve`."""
        B, n, J = u.shape
        own = np.ascontiguousarray(u.swapaxes(1, 2))
        h = np.zeros((B, n)) if start is None else start - start[:, :1]
        chosen, made = np.zeros((B, J, n)), np.zeros((B, J, n))
        status = np.zeros((B, 4))
        todo = np.ones(B, dtype=bool) if active is None else active
        self._run(own, h, start is not None, tol, todo, chosen, made, status)
        sweeps = int(status[:, 3].sum())
        lost = ~(status[:, 0] <= tol)
        if start is not None and lost.any():
            h[lost] = 0.0
            self._run(own, h, False, tol, lost, chosen, made, status)
            sweeps += int(status[lost, 3].sum())
        residual, gain = status[:, 0], status[:, 1]
        if not (residual <= tol).all():
            top = np.abs(h).max(axis=1)
            floor = 64 * np.finfo(float).eps * (1 + top + np.abs(gain)) / (1 + top)
            if not (residual <= np.maximum(tol, floor)).all():
                # another method may: the library's direct solvers
                return super().solve(u, start, tol, active)
        V = h + (gain / (1 - self.beta))[:, None]
        V[~todo] = 0.0
        pi, policy = chosen.swapaxes(1, 2), made.swapaxes(1, 2)
        P = self.observed(pi, policy)
        return BlockSolution(h, V, pi, policy, P, float(residual.max()), True, sweeps)

    def _run(
        self,
        u: FloatArray,
        h: FloatArray,
        warm: bool,
        tol: float,
        todo: BoolArray,
        pi: FloatArray,
        policy: FloatArray,
        status: FloatArray,
    ) -> None:
        level_kernels.level_solve_blocks(
            u, h, self.beta, self.attention, self.default, warm, tol, NEWTON, todo,
            pi, policy, status, self._r, self._work, self._which, self._laws, self.graph,
        )  # fmt: skip

    def solve_linear(self, P: FloatArray, right: FloatArray, rtol: float = 1e-12) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (B, n, K), zero at each block's first state."""
        out = np.zeros_like(right)
        step, b0 = np.empty(self.n), np.empty(self.n)
        _, _, _, basis, swept, H, _, z, W, lu = self._work
        for b in range(self.B):
            if not P[b].any():
                continue
            law = self.chains[b], self.graph
            level_kernels.level_factor(np.ascontiguousarray(P[b].T), self.beta, W, lu, *law)
            for k in range(right.shape[2]):
                b0[:] = right[b, :, k] - right[b, 0, k]
                goal = rtol * float(np.sqrt(b0 @ b0))
                if goal > 0:
                    left, _ = level_kernels.level_gmres(
                        b0, goal, step, basis, swept, H, z, W, lu, *law
                    )
                    if not left <= 10 * goal:  # sweeps do not get there: another method may
                        return super().solve_linear(P, right)
                    out[b, :, k] = step - step[0]
        return out

    def policy_expect(self, b: int, x: FloatArray, P: FloatArray) -> FloatArray:
        """Return ``sum_j P_j E[x(s') | s, j]`` (n,) of one block."""
        return np.asarray((P * self.expect(b, x)).sum(axis=1))

    def expect(self, b: int, x: FloatArray) -> FloatArray:
        """Return ``E[x(s') | s, j]`` (n, J) of one block, in an array that is used again."""
        ev = self._work[0]
        law = self.chains[b], self.graph
        level_kernels.level_expect(np.ascontiguousarray(x), ev, self._z, *law)
        return np.asarray(ev.T)

    def backward(
        self, u: FloatArray, ahead: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return ``V`` (B, n), observed ``P`` and ``pi`` (B, n, J) given the next ``V``."""
        own = np.ascontiguousarray(u.swapaxes(1, 2))
        V, chosen, made = np.empty(ahead.shape), np.empty(own.shape), np.empty(own.shape)
        ev, v, *_ = self._work
        for b in range(self.B):
            self.expect(b, ahead[b])
            level_kernels.level_bellman(
                own[b], ev, self.beta, self.attention[b], self.default[b], v, V[b], chosen[b],
                made[b],
            )  # fmt: skip
        pi = chosen.swapaxes(1, 2)
        return V, self.observed(pi, made.swapaxes(1, 2)), pi

    def mover(self, b: int, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return the map of one block's distribution to the next period's."""
        own = np.ascontiguousarray(P.T)
        anything = np.zeros((1, self.J))
        main = np.zeros(self.n), np.zeros(self.C, dtype=np.int64)

        def move(mu: FloatArray) -> FloatArray:
            out = np.empty(self.n)
            level_kernels.level_push(
                mu, own, out, self._z, main, anything, self.chains[b], self.graph
            )
            return out

        return move

    def _groups(self, group: IntArray) -> tuple[Any, ...]:
        """Return what :func:`level_path` counts by: groups of states, of levels, and exceptions."""
        by_level = group.reshape(self.C, self.E)
        lead = by_level[:, -1].copy()
        mask = (by_level == lead[:, None]).reshape(-1)
        return group, (mask.astype(np.float64), lead), np.flatnonzero(~mask)

    def _paths(
        self,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        cells: FloatArray,
        values: FloatArray,
    ) -> None:
        if self._counted[0] is not group:
            self._counted = self._groups(group)
        level_kernels.level_path_blocks(
            mu, np.ascontiguousarray(P.swapaxes(1, 2)), periods, worth, *self._counted, cells,
            values, self._z, self._out, self._which, self._laws, self.graph,
        )  # fmt: skip


def blocks_of(model: DDC) -> PlainBlocks:
    """Return the blocks of a model: by level where its law allows it, else one plain block."""
    F = model.transitions
    if model.beta > 0 and isinstance(F, Factored) and level_law(F) is not None:
        return LevelBlocks(model)
    return PlainBlocks(model)


def level_law(F: Factored) -> BoundLaw | None:
    """Return the law of the axis to sweep over, or None where no axis moves on its own.

    It moves by itself given the choice, no other law looks at it, and what is left beside it is
    small enough for dense chains; of several, the longest.
    """
    moving = [law for law in F.bound if not isinstance(law.family, Fixed)]
    if not moving:
        return None
    fixed = {a for law in F.bound if isinstance(law.family, Fixed) for a in law.axes}
    looked_at = {p for law in moving for p in law.parents}
    free = [law for law in moving if not law.parents and not looked_at & set(law.axes)]
    if not free:
        return None
    best = max(free, key=lambda law: law.n)
    sizes = [n for a, n in enumerate(F.states.shape) if a not in fixed and a not in best.axes]
    rest = int(np.prod(sizes))
    others = [law for law in moving if law is not best]
    density = np.prod([(law_table(law) > 0).mean() for law in others]) if others else 1.0
    dense = rest <= ALWAYS_DENSE or density > SPARSE
    return best if rest <= LARGEST_REST and dense else None


def _widened(chains: tuple[Any, ...], L: int) -> tuple[Any, ...]:
    """Return chains padded to ``L`` matrices, so that all blocks share one workspace."""
    Q, QT, chain, need, count = chains
    more = L - len(Q)
    return (
        np.concatenate([Q, np.zeros((more, *Q.shape[1:]))]),
        np.concatenate([QT, np.zeros((more, *QT.shape[1:]))]),
        chain,
        np.concatenate([need, np.zeros((more, need.shape[1]), dtype=bool)]),
        np.concatenate([count, np.zeros(more, dtype=np.int64)]),
    )
