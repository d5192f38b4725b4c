"""Laws of motion as arrays: levels that move along a sparse graph, dense chains of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynchoice.model.laws import BoundLaw
from dynchoice.typing import BoolArray, FloatArray, IntArray

Graph = tuple[IntArray, IntArray, FloatArray, IntArray, IntArray, BoolArray]
"""``indptr, to, weight`` by row ``c * J + j``; ``order, rank, loops`` by level: how to sweep."""


def law_table(law: BoundLaw) -> FloatArray:
    """Return a law's probabilities (J or 1, G, n, n), deterministic ones spelt out."""
    if law.following is None:
        assert law.table is not None
        return law.table
    return np.asarray(law.following[..., None] == np.arange(law.n), dtype=np.float64)


def joint_table(laws: Sequence[BoundLaw], J: int) -> FloatArray:
    """Return the probabilities (J, C, C) of laws without parents, in the order of their axes."""
    out = np.ones((J, 1, 1))
    for law in laws:
        table = law_table(law)[:, 0]
        out = np.stack([np.kron(out[j], table[j if law.by_choice else 0]) for j in range(J)])
    return out


def level_graph(table: FloatArray, offered: BoolArray | None = None) -> Graph:
    """Return the graph of a law (J, C, C) as arrays: see :mod:`dynchoice.kernels.levels`.

    Choices that a level (C, J) never offers lead nowhere.
    """
    J, C, _ = table.shape
    if offered is None:
        offered = np.ones((C, J), dtype=bool)
    targets = [
        np.flatnonzero(table[j, c]) if offered[c, j] else np.zeros(0, dtype=np.int64)
        for c in range(C)
        for j in range(J)
    ]
    indptr = np.r_[0, np.cumsum([len(x) for x in targets])].astype(np.int64)
    to = np.concatenate(targets).astype(np.int64)
    weight = np.concatenate([table[i % J, i // J, x] for i, x in enumerate(targets)])
    reach = [sorted({int(t) for j in range(J) for t in targets[c * J + j]} - {c}) for c in range(C)]
    order = sweep_order(reach)
    rank = np.empty(C, dtype=np.int64)
    rank[order] = np.arange(C)
    loops = np.array([any(c in targets[c * J + j] for j in range(J)) for c in range(C)])
    return indptr, to, np.ascontiguousarray(weight), order, rank, loops


def sweep_order(reach: list[list[int]]) -> IntArray:
    """Return nodes so that nearly each comes after those it leads to.

    Depth-first postorder does that but for ways back. Among nodes that reach each other the period
    of these decides: in a year of seasons every way back takes a multiple of twelve steps, so the
    year is cut once, and a sweep runs through all of it.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n, order = len(reach), after_successors(reach)
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    steps = np.array([len(out) for out in reach])
    to = np.array([child for out in reach for child in out], dtype=np.int64)
    edges = csr_array((np.ones(len(to)), to, np.r_[0, np.cumsum(steps)]), shape=(n, n))
    _, group = connected_components(edges, directed=True, connection="strong")
    # what a group leads to is left earlier than its last node is
    last = np.zeros(group.max(initial=0) + 1, dtype=np.int64)
    np.maximum.at(last, group, rank)
    return np.lexsort((rank, -phases(reach, group), last[group]))


def phases(reach: list[list[int]], group: IntArray) -> IntArray:
    """Return where each node stands in the period of its strongly connected group (n,).

    Edges within a group lead from each phase to the next, and from the last to the first (Denardo
    1977, Algorithm 1); zero where the ways back have no common divisor.
    """
    n = len(reach)
    step = np.full(n, -1, dtype=np.int64)
    period = np.zeros(n, dtype=np.int64)
    for root in range(n):
        if step[root] >= 0:
            continue
        step[root], queue = 0, [root]
        for node in queue:
            for child in reach[node]:
                if group[child] == group[root] and step[child] < 0:
                    step[child] = step[node] + 1
                    queue.append(child)
        inside = [
            step[node] + 1 - step[child]
            for node in queue
            for child in reach[node]
            if group[child] == group[root]
        ]
        period[queue] = np.gcd.reduce(inside) if inside else 1
    return step % np.maximum(period, 1)


def after_successors(reach: list[list[int]]) -> IntArray:
    """Return nodes in depth-first postorder: each after those it leads to, cycles apart.

    With a stack of its own: an axis has more levels than Python has frames.
    """
    done: list[int] = []
    visited: set[int] = set()
    for root in range(len(reach) - 1, -1, -1):
        stack = [(root, 0)]
        if root in visited:
            continue
        visited.add(root)
        while stack:
            node, i = stack.pop()
            if i < len(reach[node]):
                stack.append((node, i + 1))
                child = reach[node][i]
                if child not in visited:
                    visited.add(child)
                    stack.append((child, 0))
            else:
                done.append(node)
    return np.array(done, dtype=np.int64)


def needed_levels(graph: Graph, chain: IntArray, L: int, C: int) -> BoolArray:
    """Return which levels (L, C) the choices of each chain lead to."""
    indptr, to, *_ = graph
    J = len(chain)
    need = np.zeros((L, C), dtype=bool)
    for c in range(C):
        for j in range(J):
            row = c * J + j
            need[chain[j], to[indptr[row] : indptr[row + 1]]] = True
    return need


def chain_matrix(
    laws: Sequence[BoundLaw],
    axes: Sequence[int],
    shape: Sequence[int],
    fixed: Mapping[int, int],
    j: int,
) -> FloatArray:
    """Return how some axes move together given choice ``j``, as a dense matrix (n, n).

    ``fixed`` says where parents that never move stand; other parents are among the axes.
    """
    sizes = [shape[a] for a in axes]
    n = int(np.prod(sizes))
    level = dict(zip(axes, np.unravel_index(np.arange(n), sizes), strict=True)) if sizes else {}
    Q = np.ones((n, n))
    for law in laws:
        code = np.zeros(n, dtype=np.int64)
        for p in law.parents:
            code = code * shape[p] + (fixed[p] if p in fixed else level[p])
        now = np.zeros(n, dtype=np.int64)
        for a in law.axes:
            now = now * shape[a] + level[a]
        Q *= law_table(law)[j if law.by_choice else 0, code, now][:, now]
    return Q


def distinct_chains(
    laws: Sequence[BoundLaw],
    axes: Sequence[int],
    shape: Sequence[int],
    fixed: Mapping[int, int],
    J: int,
) -> tuple[FloatArray, IntArray]:
    """Return the distinct matrices (L, n, n) of :func:`chain_matrix` and each choice's (J,)."""
    matrices = [chain_matrix(laws, axes, shape, fixed, j) for j in range(J)]
    leaders: list[int] = []
    chain = np.zeros(J, dtype=np.int64)
    for j, Q in enumerate(matrices):
        same = [i for i, k in enumerate(leaders) if np.array_equal(matrices[k], Q)]
        chain[j] = same[0] if same else len(leaders)
        if not same:
            leaders.append(j)
    return np.ascontiguousarray(np.stack([matrices[k] for k in leaders])), chain
