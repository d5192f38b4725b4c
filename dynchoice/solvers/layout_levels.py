"""Models solved and pushed forward block by block, each small enough for the processor's cache.

Levels of Fixed axes (offers in force) never mix: each is a block with states of its own. Within a
block one axis, the contract, moves along a sparse graph of levels, and the rest (engagement)
moves independently of it given the choice: ``F_j = R_j (x) Q_j``. A sweep over the levels, each
after those it leads to, solves most of Newton's linear system at once (an annual contract is a
chain of twelve levels), so GMRES needs about seven sweeps where it took seventy products.
Work arrays are kept from one solution to the next, since a forecast solves thousands of draws.

Models of another form take :class:`~dynchoice.solvers.layout.PlainBlocks`: one block, the
library's general solvers.
"""

from __future__ import annotations

from collections.abc import Callable

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
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray

BASIS = 60
"""Sweeps of a linear solve at most; a dozen do."""
NEWTON = 40
"""Newton steps of a solution at most."""
LARGEST_REST, ALWAYS_DENSE, SPARSE = 160, 48, 0.3
"""States beside the level axis whose chain is kept as a dense matrix: up to the first number, and
beyond the second only if the share of non-zeros is above the third."""


class LevelBlocks(PlainBlocks):
    """Blocks of a factored model whose level axis moves independently of the rest.

    A block's states are ``s = c E + e``: level ``c`` of ``C``, the rest ``e`` of ``E``.

    Attributes
    ----------
    graph : Graph
        How levels move (:mod:`dynchoice.model.level_graph`), the same in every block.
    chains : list of tuples of arrays
        How the rest moves in each block, as the kernels take it
        (:mod:`dynchoice.kernels.levels`). Offers that change nothing share one tuple.
    """

    by_choice = True

    def __init__(self, model: DDC) -> None:
        F = model.transitions
        assert isinstance(F, Factored)
        level = level_law(F)
        assert level is not None
        shape = model.states.shape
        fixed = sorted(a for law in F.bound if isinstance(law.family, Fixed) for a in law.axes)
        rest = [a for a in range(len(shape)) if a not in fixed and a not in level.axes]
        codes = np.arange(model.states.size).reshape(shape).transpose(*fixed, *level.axes, *rest)
        B = int(np.prod([shape[a] for a in fixed]))
        super().__init__(model, np.ascontiguousarray(codes.reshape(B, -1)))
        self.C, self.E = level.n, self.n // level.n
        offered = model.available[self.order].reshape(B, self.C, self.E, self.J).any(axis=(0, 2))
        self.graph = level_graph(joint_table([level], self.J), np.asarray(offered))
        others = [law for law in F.bound if law is not level and not isinstance(law.family, Fixed)]
        self.chains = self._lay_chains(others, fixed, rest)
        # kernels take the distinct chains stacked, and which of them each block has
        distinct = list({id(chains): chains for chains in self.chains}.values())
        position = {id(chains): i for i, chains in enumerate(distinct)}
        self._which = np.array([position[id(chains)] for chains in self.chains], dtype=np.int64)
        self._laws = tuple(np.stack(parts) for parts in zip(*distinct, strict=True))
        self._allocate(self.chains[0][0].shape[0])
        self._counted = self._group_states(np.zeros(self.n, dtype=np.int64))

    def _allocate(self, L: int) -> None:
        """Make the work arrays for blocks with ``L`` chains each."""
        n, J, m = self.n, self.J, min(BASIS, self.n)
        self._z, self._out, self._r = np.empty((L, self.C, self.E)), np.empty(n), np.empty(n)
        # in the order in which level_solve unpacks them
        self._work = (
            np.empty((J, n)),  # ev: expected values
            np.empty((J, n)),  # v: choice-specific values
            np.empty(n),  # T: the operator's value
            np.empty((m + 1, n)),  # basis of Krylov vectors
            np.empty((m, n)),  # swept: these vectors after a sweep
            np.zeros((m + 2, m + 3)),  # H: Hessenberg matrix, rotations, right side
            np.empty(n),  # step
            self._z,  # chains applied to values of each level
            np.empty((J, self.C, self.E)),  # W: discounted policy
            np.empty((self.C, self.E, self.E)),  # lu: factors of levels that return to themselves
        )

    def _lay_chains(
        self, laws: list[BoundLaw], fixed: list[int], axes: list[int]
    ) -> list[tuple[AnyArray, ...]]:
        """Return each block's chains of the rest: see :mod:`dynchoice.kernels.levels`.

        Parameters
        ----------
        laws : list of BoundLaw
            Of the rest.
        fixed, axes : list of int
            Axes of the offers, and of the rest.
        """
        shape = self.model.states.shape
        offers = [shape[a] for a in fixed]
        by_block = []
        distinct: dict[tuple[bytes, bytes], tuple[AnyArray, ...]] = {}
        for b in range(self.B):
            offer = np.unravel_index(b, offers) if offers else ()
            fixed_levels = {a: int(x) for a, x in zip(fixed, offer, strict=True)}
            stacked, chain = distinct_chains(laws, axes, shape, fixed_levels, self.J)
            key = (stacked.tobytes(), chain.tobytes())
            if key not in distinct:
                transposed = np.ascontiguousarray(stacked.transpose(0, 2, 1))
                need = needed_levels(self.graph, chain, len(stacked), self.C)
                distinct[key] = stacked, transposed, chain, need, need.sum(axis=1)
            by_block.append(distinct[key])
        L = max(chains[0].shape[0] for chains in by_block)
        padded = {id(chains): _pad_chains(chains, L) for chains in distinct.values()}
        return [padded[id(chains)] for chains in by_block]

    def key(self, b: int) -> bytes:
        """Return a key that is the same for blocks with the same chains."""
        return self.chains[b][0].tobytes() + self.chains[b][2].tobytes()

    def closed(self, b: int) -> list[IntArray]:
        """Return all states of the block as one group, since an offer is a block of its own."""
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
        u_by_choice = np.ascontiguousarray(u.swapaxes(1, 2))
        h = np.zeros((B, n)) if start is None else start - start[:, :1]
        pi_by_choice, policy_by_choice = np.zeros((B, J, n)), np.zeros((B, J, n))
        status = np.zeros((B, 4))  # of each block: residual, gain, Newton steps, sweeps
        todo = np.ones(B, dtype=bool) if active is None else active

        def run(blocks: BoolArray, warm: bool) -> None:
            level_kernels.level_solve_blocks(
                u_by_choice,
                h,
                self.beta,
                self.attention,
                self.default,
                warm,
                tol,
                NEWTON,
                blocks,
                pi_by_choice,
                policy_by_choice,
                status,
                self._r,
                self._work,
                self._which,
                self._laws,
                self.graph,
            )

        run(todo, start is not None)
        sweeps = int(status[:, 3].sum())
        failed = ~(status[:, 0] <= tol)  # so that NaN counts as failed
        if start is not None and failed.any():
            # a guess may be too far off for Newton's steps: once more from nothing
            h[failed] = 0.0
            run(failed, False)
            sweeps += int(status[failed, 3].sum())
        residual, gain = status[:, 0], status[:, 1]
        if not (residual <= tol).all():
            # rounding of T(h) - h itself: a residual at that floor is all float64 can give
            top = np.abs(h).max(axis=1)
            floor = 64 * np.finfo(float).eps * (1 + top + np.abs(gain)) / (1 + top)
            if not (residual <= np.maximum(tol, floor)).all():
                # sweeps do not get there, the library's direct solvers may
                return super().solve(u, start, tol, active)
        V = h + (gain / (1 - self.beta))[:, None]
        V[~todo] = 0.0
        pi, policy = pi_by_choice.swapaxes(1, 2), policy_by_choice.swapaxes(1, 2)
        return BlockSolution(
            h=h,
            V=V,
            pi=pi,
            policy=policy,
            P=self.observed(pi, policy),
            residual=float(residual.max()),
            converged=True,
            sweeps=sweeps,
        )

    def solve_linear(self, P: FloatArray, right: FloatArray, rtol: float = 1e-12) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (B, n, K), zero at each block's first state."""
        out = np.zeros_like(right)
        step, relative = np.empty(self.n), np.empty(self.n)
        _, _, _, basis, swept, H, _, z, W, lu = self._work
        for b in range(self.B):
            if not P[b].any():  # a block that was not solved
                continue
            law = self.chains[b], self.graph
            level_kernels.level_factor(np.ascontiguousarray(P[b].T), self.beta, W, lu, *law)
            for k in range(right.shape[2]):
                relative[:] = right[b, :, k] - right[b, 0, k]
                goal = rtol * float(np.sqrt(relative @ relative))
                if goal > 0:
                    left, _ = level_kernels.level_gmres(
                        relative, goal, step, basis, swept, H, z, W, lu, *law
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
        """Return ``V`` (B, n), observed ``P`` and ``pi`` (B, n, J), given ``V`` a period later."""
        u_by_choice = np.ascontiguousarray(u.swapaxes(1, 2))
        V, pi, policy = np.empty(ahead.shape), *(np.empty(u_by_choice.shape) for _ in range(2))
        ev, v, *_ = self._work
        for b in range(self.B):
            self.expect(b, ahead[b])  # writes ev
            level_kernels.level_bellman(
                u_by_choice[b],
                ev,
                self.beta,
                self.attention[b],
                self.default[b],
                v,
                V[b],
                pi[b],
                policy[b],
            )
        pi = pi.swapaxes(1, 2)
        return V, self.observed(pi, policy.swapaxes(1, 2)), pi

    def mover(self, b: int, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return the map of one block's distribution to the next period's."""
        by_choice = np.ascontiguousarray(P.T)
        # the kernel also counts who chooses what: here nobody is counted
        cells = np.zeros((1, self.J))
        main = np.zeros(self.n), np.zeros(self.C, dtype=np.int64)

        def move(mu: FloatArray) -> FloatArray:
            out = np.empty(self.n)
            level_kernels.level_push(
                mu, by_choice, out, self._z, main, cells, self.chains[b], self.graph
            )
            return out

        return move

    def _group_states(
        self, group: IntArray
    ) -> tuple[IntArray, tuple[FloatArray, IntArray], IntArray]:
        """Lay out groups of states (n,) as :func:`level_path` counts by them.

        Most levels have one group, which the kernel counts within its product over the level's
        states. So: the groups, a mask of the states in their level's group with that group (C,),
        and the states that are in another.
        """
        by_level = group.reshape(self.C, self.E)
        main = by_level[:, -1].copy()
        in_main = (by_level == main[:, None]).reshape(-1)
        return group, (in_main.astype(np.float64), main), np.flatnonzero(~in_main)

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
        if self._counted[0] is not group:  # callers pass the same array again and again
            self._counted = self._group_states(group)
        level_kernels.level_path_blocks(
            mu,
            np.ascontiguousarray(P.swapaxes(1, 2)),
            periods,
            worth,
            *self._counted,
            cells,
            values,
            self._z,
            self._out,
            self._which,
            self._laws,
            self.graph,
        )


def blocks_of(model: DDC) -> PlainBlocks:
    """Return the blocks of a model: by level where its law allows it, else one plain block."""
    F = model.transitions
    if model.beta > 0 and isinstance(F, Factored) and level_law(F) is not None:
        return LevelBlocks(model)
    return PlainBlocks(model)


def level_law(F: Factored) -> BoundLaw | None:
    """Return the law of the axis to sweep over, or None where no axis is fit for it.

    It depends on the choice and its own level only, no other law depends on it, and the axes
    beside it are small enough for dense chains; of several such laws, the one with most levels.
    """
    moving = [law for law in F.bound if not isinstance(law.family, Fixed)]
    if not moving:
        return None
    fixed = {a for law in F.bound if isinstance(law.family, Fixed) for a in law.axes}
    parents = {parent for law in moving for parent in law.parents}
    independent = [law for law in moving if not law.parents and not parents & set(law.axes)]
    if not independent:
        return None
    best = max(independent, key=lambda law: law.n)
    sizes = [n for a, n in enumerate(F.states.shape) if a not in fixed and a not in best.axes]
    rest = int(np.prod(sizes))
    others = [law for law in moving if law is not best]
    # of independent laws the share of non-zeros is the product of theirs
    density = np.prod([(law_table(law) > 0).mean() for law in others]) if others else 1.0
    dense = rest <= ALWAYS_DENSE or density > SPARSE
    return best if rest <= LARGEST_REST and dense else None


def _pad_chains(chains: tuple[AnyArray, ...], L: int) -> tuple[AnyArray, ...]:
    """Return chains padded to ``L`` matrices, so that all blocks share one workspace."""
    Q, QT, chain, need, count = chains
    more = L - len(Q)
    if more == 0:
        return chains
    return (
        np.concatenate([Q, np.zeros((more, *Q.shape[1:]))]),
        np.concatenate([QT, np.zeros((more, *QT.shape[1:]))]),
        chain,
        np.concatenate([need, np.zeros((more, need.shape[1]), dtype=bool)]),
        np.concatenate([count, np.zeros(more, dtype=np.int64)]),
    )
