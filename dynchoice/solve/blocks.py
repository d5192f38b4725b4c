"""Models solved and pushed forward block by block, in the cache.

Levels of Fixed axes (offers in force) never mix: each is a block with states of its own. Within a
block one axis, the contract, moves along a sparse graph of levels, and the rest (engagement)
moves independently of it given the choice: ``F_j = R_j (x) Q_j``. A sweep over the levels, each
after those it leads to, solves most of Newton's linear system at once (an annual contract is a
chain of twelve levels), so GMRES needs about seven sweeps where it took seventy products.
Nothing is allocated between solutions: thousands of draws cost their arithmetic.

Models of another form take :class:`PlainBlocks`: one block, the library's general solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice import kernels
from dynchoice.errors import ConvergenceError
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, Fixed
from dynchoice.solve.bellman import Bellman
from dynchoice.solve.infinite import fixed_point
from dynchoice.solve.linear import PolicySystem
from dynchoice.solve.moves import mover
from dynchoice.typing import BoolArray, FloatArray, IntArray

BASIS = 60
"""Sweeps of a linear solve at most; a dozen do."""
NEWTON = 40
TOL = 1e-12
LARGEST_REST, ALWAYS_DENSE, SPARSE = 160, 48, 0.3
"""States beside the level axis whose chain is kept as a dense matrix: up to the first number, and
beyond the second only if the share of non-zeros is above the third."""


@dataclass(frozen=True)
class BlockSolution:
    """Blocks solved: ``h``, ``V`` (B, n), ``pi``, ``policy``, ``P`` (B, n, J), and the status."""

    h: FloatArray
    V: FloatArray
    pi: FloatArray
    policy: FloatArray
    P: FloatArray
    residual: float
    converged: bool
    sweeps: int

    @property
    def message(self) -> str:
        """Status in words."""
        state = "converged" if self.converged else "not converged"
        return f"{state}: residual {self.residual:.1e} after {self.sweeps} sweeps"


class PlainBlocks:
    """One block of all states, solved and pushed by the library's general solvers.

    Attributes
    ----------
    order : IntArray, shape (B, n)
        State code of each block's states.
    """

    def __init__(self, model: DDC, order: IntArray | None = None) -> None:
        self.model, self.beta = model, model.beta
        S, self.J, _ = model.shape
        self.order = np.arange(S)[None, :] if order is None else order
        self.B, self.n = self.order.shape
        self.E = self.n
        self.place = np.empty(S, dtype=np.int64)
        self.place[self.order.reshape(-1)] = np.arange(S)
        self.attention = np.ascontiguousarray(model.perceived[self.order])
        self.default = np.ascontiguousarray(model.default[self.order])
        self._general: tuple[Bellman, PolicySystem] | None = None

    def blocked(self, by_state: FloatArray) -> FloatArray:
        """Return something known by state (S, ...) by block (B, n, ...)."""
        return np.ascontiguousarray(by_state[self.order])

    def by_state(self, blocked: FloatArray) -> FloatArray:
        """Return something known by block (B, n, ...) by state (S, ...)."""
        return blocked.reshape(self.B * self.n, *blocked.shape[2:])[self.place]

    def observed(self, pi: FloatArray, policy: FloatArray) -> FloatArray:
        """Return what is observed (B, n, J): the policy, or with true attention for the naive."""
        if self.model.sophisticated:
            return policy
        a = self.blocked(self.model.attention)
        P = a[..., None] * pi
        b, s = np.ogrid[: self.B, : self.n]
        P[b, s, self.default] += 1 - a
        return P

    def key(self, b: int) -> bytes:
        """Return what tells a block's law of motion from others'."""
        return bytes([b])

    def closed(self, b: int) -> list[IntArray]:
        """Return the states of each group of a block that never reaches the others."""
        groups = self.model.transitions.blocks[self.order[b]]
        return [np.flatnonzero(groups == g) for g in np.unique(groups)]

    def set_tables(self, tables: dict[str, FloatArray]) -> None:
        """Take other probabilities of some laws (J or 1, G, n, n); everything is laid out anew."""
        F = self.model.transitions
        assert isinstance(F, Factored)
        bound = tuple(
            replace(law, table=tables[law.name]) if law.name in tables else law for law in F.bound
        )
        fresh = type(self)(self.model.unchecked(transitions=F.with_bound(bound)))
        self.__dict__.update(fresh.__dict__)

    @property
    def general(self) -> tuple[Bellman, PolicySystem]:
        """The general solver of the whole model, made on first use."""
        if self._general is None:
            model = self.model
            self._general = Bellman(model), PolicySystem(model.transitions, model.beta)
        return self._general

    def solve(
        self,
        u: FloatArray,
        start: FloatArray | None = None,
        tol: float = TOL,
        active: BoolArray | None = None,
    ) -> BlockSolution:
        """Solve every block at flow utilities ``u`` (B, n, J), from ``start`` (B, n) if given.

        Parameters
        ----------
        active : array (B,) of bool, optional
            Blocks that matter; others may be left at zero.
        """
        bellman, system = self.general
        flow = self.by_state(u)
        point = fixed_point(
            bellman, system, flow, None if start is None else self.by_state(start), tol
        )
        if start is not None and not point.converged:
            point = fixed_point(bellman, system, flow, None, tol)
        h, gain = self.blocked(point.h), self.blocked(point.gain)
        pi, policy = self.blocked(bellman.pi), self.blocked(bellman.P)
        V = h + gain / (1 - self.beta)
        P = self.observed(pi, policy)
        return BlockSolution(h, V, pi, policy, P, point.residual, point.converged, system.products)

    def solve_linear(self, P: FloatArray, right: FloatArray, rtol: float = 1e-12) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (B, n, K), zero at each block's first state.

        Raises
        ------
        ConvergenceError
            No method got there.
        """
        _, system = self.general
        system.failures.clear()
        system.factor(self.by_state(P))
        found = self.blocked(system.solve(self.by_state(right)))
        if system.failures:
            raise ConvergenceError(f"a linear solve failed: {system.failures[-1]}")
        return found - found[:, :1]

    def policy_expect(self, b: int, x: FloatArray, P: FloatArray) -> FloatArray:
        """Return ``sum_j P_j E[x(s') | s, j]`` (n,) of one block."""
        return np.asarray((P * self.model.transitions.expect(x)).sum(axis=1))

    def backward(
        self, u: FloatArray, ahead: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return ``V`` (B, n), observed ``P`` and ``pi`` (B, n, J) given the next ``V``."""
        V, pi, policy, v = np.empty(ahead.shape), *(np.empty(u.shape) for _ in range(3))
        for b in range(self.B):
            ev = self.expect(b, ahead[b])
            kernels.soft_bellman(
                u[b], ev, self.beta, self.attention[b], self.default[b], v[b], V[b], pi[b],
                policy[b],
            )  # fmt: skip
        return V, self.observed(pi, policy), pi

    def expect(self, b: int, x: FloatArray) -> FloatArray:
        """Return ``E[x(s') | s, j]`` (n, J) of one block; the array may be overwritten later."""
        return self.model.transitions.expect(np.ascontiguousarray(x))

    def push_once(self, b: int, mu: FloatArray, P: FloatArray) -> FloatArray:
        """Return one block's distribution (n,) a period later."""
        return self.mover(b, P)(mu)

    def mover(self, b: int, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return the map of one block's distribution to the next period's, for many periods."""
        return mover(self.model.transitions, P)

    def push(
        self,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        groups: int,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Push ``mu`` (B, n), overwritten, for some periods; return what is added up.

        Returns
        -------
        cells : FloatArray, shape (B, periods, groups, J)
            Mass by group of states and choice.
        users : FloatArray, shape (B, periods, J, E)
            Mass by choice and by what is left of the state beside the level.
        values : FloatArray, shape (periods + 1, B)
            ``mu_t . worth``.
        """
        cells = np.zeros((self.B, periods, groups, self.J))
        users = np.zeros((self.B, periods, self.J, self.E))
        values = np.zeros((self.B, periods + 1))
        for b in range(self.B):
            if mu[b].any():
                self._path(b, mu[b], P[b], periods, worth[b], group, cells[b], users[b], values[b])
        return cells, users, values.T

    def _path(
        self,
        b: int,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        cells: FloatArray,
        users: FloatArray,
        values: FloatArray,
    ) -> None:
        move = self.mover(b, P)
        for t in range(periods):
            values[t] += mu @ worth
            m = mu[:, None] * P
            np.add.at(cells[t], group, m)
            users[t] += m.reshape(-1, self.E, self.J).sum(axis=0).T
            mu[:] = move(mu)
        values[periods] += mu @ worth


class LevelBlocks(PlainBlocks):
    """Blocks of a factored model whose level axis moves independently of the rest."""

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
        self.graph = level_graph(level, np.asarray(offered))
        others = [law for law in F.bound if law is not level and not isinstance(law.family, Fixed)]
        self._others, self._axes, self._fixed = others, rest, fixed
        self.chains = self._chains(others)
        L = self.chains[0][0].shape[0]
        n, J, m = self.n, self.J, min(BASIS, self.n)
        self._z, self._out = np.empty((L, self.C, self.E)), np.empty(n)
        self._work = (
            np.empty((n, J)),
            np.empty((m + 1, n)),
            np.zeros((m + 2, m + 3)),
            np.empty(n),
            np.empty(n),
            self._z,
            np.empty((J, self.C, self.E)),
            np.empty((self.C, self.E, self.E)),
        )
        self._v, self._T, self._r = np.empty((n, J)), np.empty(n), np.empty(n)

    def _chains(self, laws: list[BoundLaw]) -> list[Any]:
        """Return each block's chains of the rest: matrices, their transposes, who follows which."""
        shape = self.model.states.shape
        sizes = [shape[a] for a in self._axes]
        where = np.unravel_index(np.arange(self.E), sizes) if sizes else ()
        offers = [shape[a] for a in self._fixed]
        out, seen = [], {}
        for b in range(self.B):
            at_offer = np.unravel_index(b, offers) if offers else ()
            matrices = []
            for j in range(self.J):
                Q = np.ones((self.E, self.E))
                for law in laws:
                    code = np.zeros(self.E, dtype=np.int64)
                    for p in law.parents:
                        here = (
                            at_offer[self._fixed.index(p)]
                            if p in self._fixed
                            else where[self._axes.index(p)]
                        )
                        code = code * shape[p] + here
                    now = np.zeros(self.E, dtype=np.int64)
                    for a in law.axes:
                        now = now * shape[a] + where[self._axes.index(a)]
                    Q *= law_table(law)[j if law.by_choice else 0, code, now][:, now]
                matrices.append(Q)
            leaders: list[int] = []
            chain = np.zeros(self.J, dtype=np.int64)
            for j, Q in enumerate(matrices):
                same = [i for i, k in enumerate(leaders) if np.array_equal(matrices[k], Q)]
                chain[j] = same[0] if same else len(leaders)
                if not same:
                    leaders.append(j)
            stacked = np.ascontiguousarray(np.stack([matrices[k] for k in leaders]))
            key = (stacked.tobytes(), chain.tobytes())
            if key not in seen:
                transposed = np.ascontiguousarray(stacked.transpose(0, 2, 1))
                seen[key] = stacked, transposed, chain, self._needed(chain, len(leaders))
            out.append(seen[key])
        widest = max(c[0].shape[0] for c in out)
        return [c if c[0].shape[0] == widest else _widened(c, widest) for c in out]

    def _needed(self, chain: IntArray, L: int) -> BoolArray:
        """Return which levels (L, C) the choices of each chain lead to."""
        indptr, to, *_ = self.graph
        need = np.zeros((L, self.C), dtype=bool)
        for c in range(self.C):
            for j in range(self.J):
                row = c * self.J + j
                need[chain[j], to[indptr[row] : indptr[row + 1]]] = True
        return need

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
        h = np.zeros((B, n)) if start is None else start - start[:, :1]
        V, pi, policy = np.zeros((B, n)), np.zeros((B, n, J)), np.zeros((B, n, J))
        worst, sweeps, good = 0.0, 0, True
        for b in range(B):
            if active is not None and not active[b]:
                continue
            residual, gain, _, used = self._run(b, u[b], h[b], start is not None, tol, pi, policy)
            if not residual <= tol and start is not None:
                h[b] = 0.0
                residual, gain, _, more = self._run(b, u[b], h[b], False, tol, pi, policy)
                used += more
            top = np.abs(h[b]).max()
            floor = 64 * np.finfo(float).eps * (1 + top + abs(gain)) / (1 + top)
            good &= bool(residual <= max(tol, floor))
            worst, sweeps = max(worst, residual), sweeps + used
            V[b] = h[b] + gain / (1 - self.beta)
        if not good:  # another method may: the library's direct solvers
            return super().solve(u, start, tol, active)
        P = self.observed(pi, policy)
        return BlockSolution(h, V, pi, policy, P, float(worst), good, sweeps)

    def _run(
        self, b: int, u: FloatArray, h: FloatArray, warm: bool, tol: float, pi: Any, policy: Any
    ) -> tuple[float, float, int, int]:
        return kernels.level_solve(
            u, h, self.beta, self.attention[b], self.default[b], warm, tol, NEWTON,
            self._v, self._T, pi[b], policy[b], self._r, self._work, (self.chains[b], self.graph),
        )  # fmt: skip

    def solve_linear(self, P: FloatArray, right: FloatArray, rtol: float = 1e-12) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (B, n, K), zero at each block's first state."""
        out = np.zeros_like(right)
        step, b0 = np.empty(self.n), np.empty(self.n)
        _, basis, H, y, _, z, W, lu = self._work
        for b in range(self.B):
            if not P[b].any():
                continue
            law = self.chains[b], self.graph
            kernels.level_factor(P[b], self.beta, W, lu, *law)
            for k in range(right.shape[2]):
                b0[:] = right[b, :, k] - right[b, 0, k]
                goal = rtol * float(np.sqrt(b0 @ b0))
                if goal > 0:
                    left, _ = kernels.level_gmres(b0, goal, step, basis, H, y, z, W, lu, *law)
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
        kernels.level_expect(np.ascontiguousarray(x), ev, self._z, self.chains[b], self.graph)
        return ev

    def mover(self, b: int, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return the map of one block's distribution to the next period's."""
        PT = np.ascontiguousarray(P.T)

        def move(mu: FloatArray) -> FloatArray:
            out = np.empty(self.n)
            kernels.level_push(mu, PT, out, self._z, self.chains[b], self.graph)
            return out

        return move

    def _path(
        self,
        b: int,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        cells: FloatArray,
        users: FloatArray,
        values: FloatArray,
    ) -> None:
        PT = np.ascontiguousarray(P.T)
        kernels.level_path(
            mu, PT, periods, worth, group, cells, users, values, self._z, self._out,
            self.chains[b], self.graph,
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


def law_table(law: BoundLaw) -> FloatArray:
    """Return a law's probabilities (J or 1, G, n, n), deterministic ones spelt out."""
    if law.following is None:
        assert law.table is not None
        return law.table
    return np.asarray(law.following[..., None] == np.arange(law.n), dtype=np.float64)


def level_graph(law: BoundLaw, offered: BoolArray) -> tuple[Any, ...]:
    """Return the graph of a level law as arrays: see :func:`dynchoice.kernels.level_expect`.

    Choices that a level (C, J) never offers lead nowhere.
    """
    table = law_table(law)[:, 0]
    C, J = offered.shape
    rows = [table[j if law.by_choice else 0, c] * offered[c, j] for c in range(C) for j in range(J)]
    at = [np.flatnonzero(r) for r in rows]
    indptr = np.r_[0, np.cumsum([len(a) for a in at])].astype(np.int64)
    to = np.concatenate(at).astype(np.int64)
    weight = np.concatenate([r[a] for r, a in zip(rows, at, strict=True)])
    reach = [sorted({int(t) for j in range(J) for t in at[c * J + j]} - {c}) for c in range(C)]
    order = after_successors(reach)
    rank = np.empty(C, dtype=np.int64)
    rank[order] = np.arange(C)
    loops = np.array([any(c in at[c * J + j] for j in range(J)) for c in range(C)])
    return indptr, to, np.ascontiguousarray(weight), order, rank, loops


def after_successors(reach: list[list[int]]) -> IntArray:
    """Return nodes in depth-first postorder: each after those it leads to, cycles apart."""
    done: list[int] = []
    seen: set[int] = set()
    for root in range(len(reach) - 1, -1, -1):
        stack = [(root, 0)]
        if root in seen:
            continue
        seen.add(root)
        while stack:
            node, i = stack.pop()
            if i < len(reach[node]):
                stack.append((node, i + 1))
                child = reach[node][i]
                if child not in seen:
                    seen.add(child)
                    stack.append((child, 0))
            else:
                done.append(node)
    return np.array(done, dtype=np.int64)


def _widened(chains: tuple[Any, ...], L: int) -> tuple[Any, ...]:
    """Return chains padded to ``L`` matrices, so that all blocks share one workspace."""
    Q, QT, chain, need = chains
    more = L - len(Q)
    return (
        np.concatenate([Q, np.zeros((more, *Q.shape[1:]))]),
        np.concatenate([QT, np.zeros((more, *QT.shape[1:]))]),
        chain,
        np.concatenate([need, np.zeros((more, need.shape[1]), dtype=bool)]),
    )
