"""Factored models solved and pushed forward block by block, in the cache.

Levels of Fixed axes (offers in force) never mix: each is a block with states of its own. Within a
block the product of laws is applied law by law (papers.md, ecosystem.md 3.2: 0.013 ms where rows
take 0.051 ms at 1,376 states), choices that move alike up to the last law share that work, and
Newton's linear systems are solved by GMRES on relative values. Nothing is allocated between
solutions, so thousands of draws cost no more than their arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice import kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, Fixed, Markov
from dynchoice.model.transitions import Transitions
from dynchoice.typing import FloatArray, IntArray

BASIS = 30
"""Krylov vectors kept between restarts."""
LONG_BASIS = 150
NEWTON = 40
TOL = 1e-12


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
    products: int

    @property
    def message(self) -> str:
        """Status in words."""
        state = "converged" if self.converged else "not converged"
        return f"{state}: residual {self.residual:.1e} after {self.products} products"


class Blocks:
    """The blocks of a factored model and the work arrays of their solver.

    Attributes
    ----------
    order : IntArray, shape (B, n)
        State code of each block's states.
    """

    def __init__(self, model: DDC) -> None:
        F = model.transitions
        self.model, self.beta = model, model.beta
        S, J, _ = model.shape
        bound, shape = (F.bound, model.states.shape) if isinstance(F, Factored) else ((), (S,))
        fixed = [law for law in bound if isinstance(law.family, Fixed)]
        still = {a for law in fixed for a in law.axes}
        moving = [law for law in bound if not isinstance(law.family, Fixed)]
        self.axes = [a for a in range(len(shape)) if a not in still]
        codes = np.arange(S).reshape(shape)
        front = sorted(still)
        self.order = np.ascontiguousarray(
            codes.transpose(*front, *self.axes).reshape(int(np.prod([shape[a] for a in front])), -1)
        )
        self.B, self.n = self.order.shape
        self.J = J
        self.place = np.empty(S, dtype=np.int64)
        self.place[self.order.reshape(-1)] = np.arange(S)
        self._laws = _last_law(moving) or [_one_law(S, J)]
        rows = {law.name: rows_of(F, law) for law in self._laws}
        self.law = self._compile(self._laws, rows, shape, front)
        n = self.n
        self.attention = np.ascontiguousarray(model.perceived[self.order])
        self.default = np.ascontiguousarray(model.default[self.order])
        self._workspace(n, J)

    def _workspace(self, n: int, J: int) -> None:
        R = len(self.law[0][0])
        # rows that are not factored may mix slowly: a longer basis, which small models can hold
        m = min(BASIS if isinstance(self.model.transitions, Factored) else LONG_BASIS, n)
        self._X, self._tmp, self._out = np.empty((R, n)), np.empty(n), np.empty(n)
        self._work = (
            np.empty((n, J)),
            np.empty((m + 1, n)),
            np.zeros((m + 2, m + 3)),
            np.empty(n),
            np.empty(n),
            self._X,
            self._tmp,
            np.empty((J, n)),
        )
        self._v, self._T, self._r = np.empty((n, J)), np.empty(n), np.empty(n)

    def _compile(
        self,
        laws: list[BoundLaw],
        law_rows: dict[str, Any],
        shape: tuple[int, ...],
        front: list[int],
    ) -> list[Any]:
        """Lay the laws out as flat arrays: what the kernels take, for each block."""
        sizes = [shape[a] for a in self.axes]
        L = len(laws)
        dims = np.ones((L, 3), dtype=np.int64)
        pre_max = post_max = 1
        for i, law in enumerate(laws):
            first = self.axes.index(law.axes[0])
            last = first + len(law.axes)
            dims[i] = int(np.prod(sizes[:first])), law.n, int(np.prod(sizes[last:]))
            pre_max, post_max = max(pre_max, dims[i, 0]), max(post_max, dims[i, 2])
        by_choice = np.array([law.by_choice for law in laws], dtype=np.int64)
        groups = np.array([law.groups for law in laws], dtype=np.int64)
        gpre = np.zeros((L, pre_max), dtype=np.int64)
        gpost = np.zeros((L, post_max), dtype=np.int64)
        goff = np.zeros((self.B, L), dtype=np.int64)
        at_block = np.unravel_index(np.arange(self.B), [shape[a] for a in front]) if front else ()
        for i, law in enumerate(laws):
            first = self.axes.index(law.axes[0])
            last = first + len(law.axes)
            stride = 1
            for p in reversed(law.parents):
                if p in front:
                    goff[:, i] += stride * at_block[front.index(p)]
                else:
                    where = self.axes.index(p)
                    target, part, at = (
                        (gpre, sizes[:first], where)
                        if where < first
                        else (gpost, sizes[last:], where - last)
                    )
                    level = np.unravel_index(np.arange(int(np.prod(part))), part)[at]
                    target[i, : len(level)] += stride * level
                stride *= shape[p]
        same = np.array([not gpost[i].any() for i in range(L)])
        indptr, following, weight, row0 = [np.zeros(1, dtype=np.int64)], [], [], []
        rows = 0
        for law in laws:
            row0.append(rows)
            k, start, count, p = law_rows[law.name]
            entries = np.repeat(start, count) + np.concatenate([np.arange(c) for c in count])
            indptr.append(indptr[-1][-1] + np.cumsum(count))
            following.append(k[entries])
            weight.append(p[entries])
            rows += len(count)
        pack = (
            np.concatenate(indptr).astype(np.int64),
            np.concatenate(following).astype(np.int64),
            np.concatenate(weight).astype(np.float64),
        )
        rep, leaders = _leaders(laws, self.J)
        return [
            (
                leaders,
                self._hops(b, rep, dims, by_choice, row0, groups, goff, gpre, gpost, pack),
                (
                    dims,
                    by_choice,
                    np.array(row0, dtype=np.int64),
                    groups,
                    np.ascontiguousarray(goff[b]),
                    gpre,
                    gpost,
                    same,
                    pack,
                ),
            )
            for b in range(self.B)
        ]

    def _hops(
        self, b: int, rep: IntArray, dims: IntArray, by_choice: IntArray, row0: list[int],
        groups: IntArray, goff: IntArray, gpre: IntArray, gpost: IntArray, pack: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Return the last law of a block state by state: see :func:`kernels.block_expect`."""
        indptr, following, weight = pack
        pre, levels, post = dims[-1]
        p, i, q = (x.reshape(-1) for x in np.indices((pre, levels, post)))
        g = goff[b, -1] + gpre[-1, p] + gpost[-1, q]
        first = np.empty((self.J, self.n), dtype=np.uint64)
        chance = np.empty((self.J, self.n))
        rest: list[FloatArray] = []
        for j in range(self.J):
            row = row0[-1] + (by_choice[-1] * j * groups[-1] + g) * levels + i
            start, count = indptr[row], indptr[row + 1] - indptr[row]
            first[j] = rep[j] * self.n + (p * levels + following[start]) * post + q
            chance[j] = weight[start]
            more = np.repeat(np.arange(self.n), count - 1)
            entry = start[more] + 1 + np.concatenate([np.arange(c) for c in count - 1])
            entry = entry.astype(np.int64)
            to = rep[j] * self.n + (p[more] * levels + following[entry]) * post + q[more]
            rest.append(np.stack([more, np.full(len(more), j), to, weight[entry]], axis=1))
        s, j, to, w = np.concatenate(rest).T
        codes = (x.astype(np.uint64) for x in (s, j, to))
        return (first, chance, *codes, np.ascontiguousarray(w))

    def set_tables(self, tables: dict[str, FloatArray]) -> None:
        """Take other probabilities of some laws, zero where they were zero.

        Parameters
        ----------
        tables : dict of FloatArray, shape (J or 1, G, n, n)
        """
        F = self.model.transitions
        assert isinstance(F, Factored)
        bound = tuple(
            replace(law, table=tables[law.name]) if law.name in tables else law for law in F.bound
        )
        self.model = self.model.unchecked(transitions=F.with_bound(bound))
        fresh = Blocks(self.model)
        self.law, self._laws = fresh.law, fresh._laws

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

    def solve(
        self,
        u: FloatArray,
        start: FloatArray | None = None,
        tol: float = TOL,
        active: Any = None,
    ) -> BlockSolution:
        """Solve every block at flow utilities ``u`` (B, n, J), from ``start`` (B, n) if given.

        Parameters
        ----------
        active : array (B,) of bool, optional
            Blocks to solve; the others are left at zero.
        """
        B, n, J = u.shape
        h = np.zeros((B, n)) if start is None else start - start[:, :1]
        V, pi, policy = np.zeros((B, n)), np.zeros((B, n, J)), np.zeros((B, n, J))
        worst, products, good = 0.0, 0, True
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
            worst, products = max(worst, residual), products + used
            V[b] = h[b] + gain / (1 - self.beta)
        P = self.observed(pi, policy)
        return BlockSolution(h, V, pi, policy, P, float(worst), good, products)

    def _run(
        self, b: int, u: FloatArray, h: FloatArray, warm: bool, tol: float, pi: Any, policy: Any
    ) -> tuple[float, float, int, int]:
        return kernels.solve_block(
            u, h, self.beta, self.attention[b], self.default[b], warm, tol, NEWTON,
            self._v, self._T, pi[b], policy[b], self._r, self._work, self.law[b],
        )  # fmt: skip

    def slope(self, solution: BlockSolution, right: FloatArray) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` up to a constant a block, (B, n, K).

        With ``right = sum_j P_j x_j`` this is the derivative of the relative value by the
        parameters (implicit function theorem).
        """
        return self.solve_linear(solution.policy, right)

    def solve_linear(self, P: FloatArray, right: FloatArray) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (B, n, K), zero at each block's first state."""
        out = np.zeros_like(right)
        step, b0 = np.empty(self.n), np.empty(self.n)
        _, Q, H, y, _, X, tmp, W = self._work
        for b in range(self.B):
            for k in range(right.shape[2]):
                b0[:] = right[b, :, k] - right[b, 0, k]
                size = float(np.sqrt(b0 @ b0))
                if size > 0 and P[b].any():
                    kernels.block_gmres(
                        b0, P[b], W, self.beta, 1e-12 * size, step, Q, H, y, X, tmp, *self.law[b]
                    )
                    out[b, :, k] = step - step[0]
        return out

    def policy_expect(self, b: int, x: FloatArray, P: FloatArray) -> FloatArray:
        """Return ``sum_j P_j E[x(s') | s, j]`` (n,) of one block."""
        y, W = np.empty(self.n), self._work[-1]
        leaders, hops, laws = self.law[b]
        kernels.block_weights(P, hops, W)
        x = np.ascontiguousarray(x)
        kernels.block_policy(x, P, W, y, self._X, self._tmp, leaders, hops, laws)
        return y

    def backward(
        self, u: FloatArray, ahead: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return ``V`` (B, n), observed ``P`` and ``pi`` (B, n, J) given the next ``V``."""
        B, n, J = u.shape
        V, pi, policy = np.empty((B, n)), np.empty((B, n, J)), np.empty((B, n, J))
        ev, *_ = self._work
        for b in range(B):
            kernels.block_expect(
                np.ascontiguousarray(ahead[b]), ev, self._X, self._tmp, *self.law[b]
            )
            kernels.soft_bellman(
                u[b], ev, self.beta, self.attention[b], self.default[b], self._v, V[b], pi[b],
                policy[b],
            )  # fmt: skip
        return V, self.observed(pi, policy), pi

    def push_once(self, b: int, mu: FloatArray, P: FloatArray) -> FloatArray:
        """Return one block's distribution (n,) a period later."""
        out, W = np.empty(self.n), self._work[-1]
        leaders, hops, laws = self.law[b]
        kernels.block_weights(P, hops, W)
        kernels.block_push(mu, P, W, out, self._X, self._tmp, leaders, hops, laws)
        return out

    def push(
        self,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        use: IntArray,
        groups: int,
        uses: int,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Push ``mu`` (B, n), overwritten, for some periods; return what is added up.

        Returns
        -------
        cells : FloatArray, shape (periods, B, groups, J)
            Mass by group of states and choice.
        users : FloatArray, shape (periods, B, uses, J)
            Mass by engagement and choice.
        values : FloatArray, shape (periods + 1, B)
            ``mu_t . worth``.
        """
        cells = np.zeros((self.B, periods, groups, self.J))
        users = np.zeros((self.B, periods, uses, self.J))
        values = np.zeros((self.B, periods + 1))
        for b in range(self.B):
            if mu[b].any():
                kernels.push_block(
                    mu[b], P[b], periods, worth[b], group, use, cells[b], users[b], values[b],
                    self._X, self._tmp, self._out, self._work[-1], self.law[b],
                )  # fmt: skip
        return cells.transpose(1, 0, 2, 3), users.transpose(1, 0, 2, 3), values.T


def _one_law(S: int, J: int) -> BoundLaw:
    """Return the frame of a law that is not factored: one axis of all states."""
    return BoundLaw("states", Markov(), (0,), S, (), 1, True, J)


def rows_of(F: Transitions, law: BoundLaw) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Return a law's non-zeros: next levels, first entry and number by row, probabilities."""
    if isinstance(F, Factored):
        return F.rows_of(law)
    indptr, indices, data = F.stacked()
    rows = np.arange(law.n)[None, :] * law.choices + np.arange(law.choices)[:, None]
    rows = rows.reshape(-1)  # choice by choice, as a law's rows are
    return indices, indptr[rows], indptr[rows + 1] - indptr[rows], data


def _last_law(laws: list[BoundLaw]) -> list[BoundLaw]:
    """Return the laws with the longest one that no other looks at moved to the end.

    Choices that differ in it alone then share all the work before.
    """
    if not laws:
        return laws
    parents = {p for law in laws for p in law.parents}
    free = [law for law in laws if not parents & set(law.axes)]
    if not free:
        return laws
    last = max(free, key=lambda law: (law.by_choice, law.n))
    return [law for law in laws if law is not last] + [last]


def _leaders(laws: list[BoundLaw], J: int) -> tuple[IntArray, IntArray]:
    """Return which leader each choice follows, and the leaders' choices."""

    def alike(a: int, b: int) -> bool:
        for law in laws[:-1]:
            if law.by_choice:
                table: Any = law.following if law.following is not None else law.table
                if not np.array_equal(table[a], table[b]):
                    return False
        return True

    leaders: list[int] = []
    rep = np.zeros(J, dtype=np.int64)
    for j in range(J):
        for i, leader in enumerate(leaders):
            if alike(j, leader):
                rep[j] = i
                break
        else:
            rep[j] = len(leaders)
            leaders.append(j)
    return rep, np.array(leaders, dtype=np.int64)
