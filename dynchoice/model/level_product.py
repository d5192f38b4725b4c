"""Large factored models in a form that the processor likes: levels times two dense halves.

Axes that never move (offers) make blocks. The sparsest law that nobody looks at (the contract) and
every deterministic law of that kind (a season) are the *levels*: they move along a sparse graph.
What is left splits into two groups of axes that do not look at each other, each a dense chain of a
few hundred states: ``F_j = R_j (x) A_j (x) B_j``. An expectation is then two products of matrices a
level, and a sweep over the levels, each after those it leads to, nearly solves ``I - beta F^P``
(block Gauss-Seidel): an annual contract, or a year of seasons, is run through at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import combinations
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.kernels import products as kernels
from dynchoice.model.laws import BoundLaw, Fixed
from dynchoice.model.level_graph import (
    distinct_chains,
    joint_table,
    law_table,
    level_graph,
    needed_levels,
)
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.model.factored import Factored

LARGEST_HALF = 256
"""States of a half at most: its chain is a dense matrix."""
MANY_LEVELS = 4096
INNER = 6
"""Steps that a level which returns to itself takes within a sweep."""

Halves = tuple[FloatArray, FloatArray, IntArray, BoolArray]
"""Distinct chains of the two halves (the second transposed), each choice's, levels each needs."""


class Product:
    """A factored law laid out in blocks (offers), levels and two halves.

    Attributes
    ----------
    B, C, D, E : int
        Blocks, levels, states of the halves; ``n = D E`` states a level.
    """

    def __init__(
        self,
        F: Factored,
        fixed: Sequence[int],
        levels: Sequence[BoundLaw],
        halves: tuple[Sequence[BoundLaw], Sequence[BoundLaw]],
    ) -> None:
        shape = F.states.shape
        levels = sorted(levels, key=lambda law: law.axes[0])
        level_axes = [a for law in levels for a in law.axes]
        first_axes, second_axes = (sorted(a for law in half for a in law.axes) for half in halves)
        self._axes = [*fixed, *level_axes, *first_axes, *second_axes]
        self._shape = tuple(shape[a] for a in self._axes)
        self._source = shape
        self._back = tuple(int(i) for i in np.argsort(self._axes))
        self.S, self.J = F.S, F.J

        def size(axes: Sequence[int]) -> int:
            return int(np.prod([shape[a] for a in axes]))

        self.B, self.C = size(fixed), size(level_axes)
        self.D, self.E = size(first_axes), size(second_axes)
        self.n = self.D * self.E
        self._table = joint_table(levels, self.J)
        self.graph = level_graph(self._table)
        offers = [shape[a] for a in fixed]
        self._halves: list[Halves] = []
        distinct: dict[bytes, Halves] = {}  # most offers leave the chains as they are
        for b in range(self.B):
            offer = np.unravel_index(b, offers) if offers else ()
            fixed_levels = {a: int(x) for a, x in zip(fixed, offer, strict=True)}
            A, of_a = distinct_chains(halves[0], first_axes, shape, fixed_levels, self.J)
            other, of_b = distinct_chains(halves[1], second_axes, shape, fixed_levels, self.J)
            pairs = [(int(x), int(y)) for x, y in zip(of_a, of_b, strict=True)]
            kinds = list(dict.fromkeys(pairs))
            chain = np.array([kinds.index(p) for p in pairs], dtype=np.int64)
            first = np.ascontiguousarray(np.stack([A[x] for x, _ in kinds]))
            second = np.ascontiguousarray(np.stack([other[y].T for _, y in kinds]))
            need = needed_levels(self.graph, chain, len(kinds), self.C)
            key = first.tobytes() + second.tobytes() + chain.tobytes()
            self._halves.append(distinct.setdefault(key, (first, second, chain, need)))
        transposed: dict[int, tuple[FloatArray, ...]] = {}
        for half in self._halves:  # equal blocks share theirs
            if id(half) not in transposed:
                transposed[id(half)] = tuple(
                    np.ascontiguousarray(Q.transpose(0, 2, 1)) for Q in half[:2]
                )
        self._turned = [transposed[id(half)] for half in self._halves]
        self._trimmed: dict[bytes, Product] = {}
        self._rooms = local()

    def trimmed(self, offered: AnyArray) -> Product:
        """Return the law without the moves of choices that a level never offers.

        ``offered`` (B, C, J, n) is zero (or false) where a choice is not offered.

        An annual contract that has months to run offers no monthly plan: what such a choice would
        lead to, itself perhaps, need not be swept.
        """
        ever = np.ascontiguousarray((offered != 0).any(axis=(0, 3)))
        if ever.all():
            return self
        key = ever.tobytes()
        if key not in self._trimmed:
            new = self._twin()
            new.graph = level_graph(self._table, ever)
            new._halves = [
                (A, BT, chain, needed_levels(new.graph, chain, len(A), self.C))
                for A, BT, chain, _ in self._halves
            ]
            self._trimmed[key] = new
        return self._trimmed[key]

    def discounted(self, beta: float) -> Product:
        """Return the law with moves between levels weighted by a discount factor.

        What a sweep solves is then ``I - beta F^P`` with ``W = P``, which is there already.
        """
        new = self._twin()
        indptr, to, weight, order, rank, loops = self.graph
        new.graph = (indptr, to, beta * weight, order, rank, loops)
        return new

    def _twin(self) -> Product:
        """Return a copy that shares the work arrays."""
        new = copy(self)
        new._rooms = self._rooms
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Leave the work arrays behind, and what can be made again."""
        kept = {k: v for k, v in self.__dict__.items() if k != "_rooms"}
        return {**kept, "_trimmed": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was kept; work arrays are made when they are needed."""
        self.__dict__.update(state)
        self._rooms = local()

    def _room(self, b: int) -> tuple[FloatArray, FloatArray]:
        """Return work arrays (L, C, n) and (D, E) of the calling thread."""
        if not hasattr(self._rooms, "arrays"):  # a thread's arrays go with it
            L = max(len(h[0]) for h in self._halves)
            self._rooms.arrays = np.empty(L * self.C * self.n), np.empty((self.D, self.E))
        z, half = self._rooms.arrays
        L = len(self._halves[b][0])
        return z[: L * self.C * self.n].reshape(L, self.C, self.n), half

    def laid(self, x: AnyArray) -> AnyArray:
        """Return something known by state (S,) or (S, J) by level: (B, C, n) or (B, C, J, n)."""
        if x.ndim == 1:
            turned = x.reshape(self._source).transpose(self._axes)
            return np.ascontiguousarray(turned).reshape(self.B, self.C, self.n)
        J = x.shape[1]
        turned = x.reshape(*self._source, J).transpose(*self._axes, len(self._axes))
        by_level = turned.reshape(self.B, self.C, self.n, J)
        return np.ascontiguousarray(by_level.transpose(0, 1, 3, 2))

    def lay(self, x: FloatArray, out: FloatArray) -> None:
        """Write what is known by state (S,) by level, ``out`` (B, C, n)."""
        out.reshape(self._shape)[...] = x.reshape(self._source).transpose(self._axes)

    def take(self, x: FloatArray, out: FloatArray) -> None:
        """Write what is known by level (B, C, n) by state, ``out`` (S,)."""
        out.reshape(self._source)[...] = x.reshape(self._shape).transpose(self._back)

    def by_state(self, x: AnyArray) -> AnyArray:
        """Return something known by level, (B, C, n) or (B, C, J, n), by state."""
        if x.ndim == 3:
            return np.ascontiguousarray(x.reshape(self._shape).transpose(self._back)).reshape(-1)
        J = x.shape[2]
        by_level = x.transpose(0, 1, 3, 2).reshape(*self._shape, J)
        turned = by_level.transpose(*self._back, len(self._back))
        return np.ascontiguousarray(turned).reshape(-1, J)

    @property
    def level(self) -> IntArray:
        """Number (S,) of each state's block and level."""
        code = np.arange(self.B * self.C).reshape(self.B, self.C, 1)
        return self.by_state(np.repeat(code, self.n, axis=2))

    def expect(self, V: FloatArray) -> FloatArray:
        """Return ``E[V(s') | s, j]`` (S, J) of ``V`` (S,)."""
        x, ev = self.laid(V), np.empty((self.B, self.C, self.J, self.n))
        self.expect_laid(x, ev)
        return self.by_state(ev)

    def expect_laid(self, x: FloatArray, ev: FloatArray) -> None:
        """Write the expectations (B, C, J, n) of ``x`` (B, C, n)."""
        for b in range(self.B):
            kernels.product_expect(x[b], ev[b], *self._room(b), self._halves[b], self.graph)

    def push(self, m: FloatArray) -> FloatArray:
        """Return ``sum_{s,j} m[s, j] F[s, j, s']`` (S,)."""
        mass, out = self.laid(m), np.empty((self.B, self.C, self.n))
        for b in range(self.B):
            self.push_block(b, mass[b], out[b])
        return self.by_state(out)

    def push_block(self, b: int, mass: FloatArray, out: FloatArray) -> None:
        """Write where a mass (C, J, n) of one block moves, (C, n)."""
        kernels.product_push(mass, out, *self._room(b), self._halves[b], self.graph)

    def sweep(
        self,
        b: int,
        v: FloatArray,
        W: FloatArray,
        y: FloatArray,
        out: FloatArray,
        coarse: FloatArray | None = None,
        shift: float = 0.0,
    ) -> None:
        """Write ``y``, nearly ``(I - beta F^P)^{-1} (v - shift)``, and ``(I - beta F^P) y``.

        ``W`` (C, J, n) is ``beta P``, or ``P`` of a law that is :meth:`discounted`; ``coarse`` (C,)
        is a first guess of ``y``, level by level.
        """
        law = self._halves[b], self.graph
        first = np.zeros(self.C) if coarse is None else coarse
        kernels.product_sweep(v, shift, y, out, first, *self._room(b), W, INNER, *law)

    def between_levels(self, W: FloatArray) -> Any:
        """Return ``I - beta F^P`` (C, C) of a block as seen between levels, as a sparse matrix.

        Each level's ``W`` (of :meth:`sweep`) is averaged over its states.
        """
        from scipy.sparse import coo_array, eye_array

        indptr, to, weight, *_ = self.graph
        steps = np.diff(indptr)
        moved = weight * np.repeat(W.mean(axis=2).reshape(-1), steps)
        origin = np.repeat(np.arange(self.C), steps.reshape(self.C, self.J).sum(axis=1))
        return eye_array(self.C) - coo_array((moved, (origin, to)), shape=(self.C, self.C))

    def sweep_back(
        self, b: int, v: FloatArray, W: FloatArray, y: FloatArray, out: FloatArray
    ) -> None:
        """Do the same with the transpose of ``I - beta F^P``."""
        law = self._turned[b], self._halves[b], self.graph
        kernels.product_sweep_back(v, y, out, *self._room(b), W, INNER, *law)

    def defect(self, b: int, v: FloatArray, W: FloatArray, x: FloatArray, out: FloatArray) -> None:
        """Write ``out = v - (I - beta F^P) x`` (C, n)."""
        kernels.product_defect(v, x, out, *self._room(b), W, self._halves[b], self.graph)


def product_of(F: Factored) -> Product | None:
    """Return the layout of a factored law, or None where it has no such form."""
    moving = [law for law in F.bound if not isinstance(law.family, Fixed)]
    fixed = sorted(a for law in F.bound if isinstance(law.family, Fixed) for a in law.axes)
    looked_at = {p for law in moving for p in law.parents}
    free = [law for law in moving if not law.parents and not looked_at & set(law.axes)]
    if not free:
        return None
    sure = [law for law in free if law.following is not None and law.n > 1]
    chancy = [law for law in free if law.following is None]
    best = [max(chancy, key=lambda law: (sparsity(law), law.n))] if chancy else []
    levels = [*sure, *best]
    while levels and int(np.prod([law.n for law in levels])) > MANY_LEVELS:
        levels.remove(max(levels, key=lambda law: law.n))
    if not levels:
        return None
    rest = [law for law in moving if all(law is not other for other in levels)]
    halves = split(rest, set(fixed), F.states.shape)
    return None if halves is None else Product(F, fixed, levels, halves)


def sparsity(law: BoundLaw) -> float:
    """Return how many levels a law has for each that it can move to."""
    table = law_table(law)
    return law.n / float(np.maximum((table > 0).sum(axis=-1), 1).mean())


def split(
    laws: Sequence[BoundLaw], fixed: set[int], shape: Sequence[int]
) -> tuple[list[BoundLaw], list[BoundLaw]] | None:
    """Split laws into two groups that do not look at each other, as even in size as can be."""
    groups: list[tuple[set[int], list[BoundLaw]]] = []
    for law in laws:
        axes, members = (set(law.axes) | set(law.parents)) - fixed, [law]
        for other in [g for g in groups if g[0] & axes]:
            groups.remove(other)
            axes, members = axes | other[0], other[1] + members
        groups.append((axes, members))
    sizes = [int(np.prod([shape[a] for a in axes])) for axes, _ in groups]
    total = int(np.prod(sizes)) if sizes else 1
    best: tuple[int, tuple[int, ...]] | None = None
    for k in range(min(len(groups), 12) // 2 + 1):
        for chosen in combinations(range(len(groups)), k):
            one = int(np.prod([sizes[i] for i in chosen])) if chosen else 1
            worse = max(one, total // one)
            if best is None or worse < best[0]:
                best = worse, chosen
    if best is None or best[0] > LARGEST_HALF:
        return None
    first = [law for i in best[1] for law in groups[i][1]]
    second = [law for i, g in enumerate(groups) if i not in best[1] for law in g[1]]
    return first, second
