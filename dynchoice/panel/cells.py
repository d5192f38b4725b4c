"""Sums of rows of integers, and the cells by region and period."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dynchoice.typing import AnyArray, FloatArray, IntArray, Level

NO_NEXT = -1
"""Next-state code of a row without an observed next month: it informs choices only."""


def group_sum(keys: IntArray, n: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the distinct rows of ``keys`` (rows, columns) in order and the sum of ``n`` of each.

    Sums run in sorted order of the rows and of ``n``, so the result does not depend on the
    order in which rows arrive.
    """
    if len(keys) == 0:
        return keys, n
    order = np.lexsort((n, *keys.T[::-1]))
    sorted_keys, sorted_n = keys[order], n[order]
    new = np.r_[True, (sorted_keys[1:] != sorted_keys[:-1]).any(axis=1)]
    return sorted_keys[new], np.add.reduceat(sorted_n, np.flatnonzero(new))


def summed(keys: IntArray, weight: FloatArray, rows: IntArray) -> tuple[IntArray, FloatArray]:
    """Return distinct keys in order and their member-months, ``rows`` times ``weight`` summed."""
    return group_sum(keys, rows * weight)


def members_worth(weight: FloatArray, members: AnyArray) -> float:
    """Return the sum of weights of so many members each: the same in whatever order."""
    return math.fsum((weight * members).tolist())


def distinct_rows(cells: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct rows of an integer array in order, and the row number of each.

    Rows are packed into single integers where they fit: sorting those is ten times faster.
    """
    if not len(cells):
        return cells, np.zeros(0, dtype=np.int64)
    low = cells.min(axis=0)
    span = [int(x) + 1 for x in cells.max(axis=0) - low]
    if math.prod(span) >= 2**62:
        unique, index = np.unique(cells, axis=0, return_inverse=True)
        return unique, index.reshape(-1)
    packed = np.ravel_multi_index(tuple((cells - low).T), span)
    _, first, index = np.unique(packed, return_index=True, return_inverse=True)
    return cells[first], index.reshape(-1)


@dataclass(frozen=True)
class RegionCells:
    """Counts by region and period, for roll-outs and for clustering by region.

    ``cells`` (R, 7) holds the distinct (segment, region, period, state, choice, next state,
    decides), ``n`` (R,) the member-months of each (sum of weights).
    """

    labels: tuple[Level, ...]
    cells: IntArray
    n: FloatArray

    def select(self, segment: int) -> RegionCells:
        """Return the cells of one segment, relabelled as segment 0."""
        own = self.cells[:, 0] == segment
        cells = self.cells[own].copy()
        cells[:, 0] = 0
        return replace(self, cells=cells, n=self.n[own])

    def relabelled(self, new: IntArray) -> RegionCells:
        """Return the cells with segment ``m`` renamed ``new[m]``."""
        cells = self.cells.copy()
        cells[:, 0] = new[cells[:, 0]]
        return replace(self, cells=cells)

    def reweighted(self, factor: FloatArray) -> RegionCells:
        """Return the cells with region ``r`` standing for ``factor[r]`` copies of itself."""
        n = self.n * factor[self.cells[:, 1]]
        return replace(self, cells=self.cells[n > 0], n=n[n > 0])

    def __add__(self, other: RegionCells) -> RegionCells:
        labels = self.labels + tuple(x for x in other.labels if x not in self.labels)
        labels = tuple(sorted(labels, key=str))
        parts = []
        for part in (self, other):
            cells = part.cells.copy()
            code = np.array([labels.index(x) for x in part.labels], dtype=np.int64)
            cells[:, 1] = code[cells[:, 1]]
            parts.append(cells)
        cells, n = group_sum(np.concatenate(parts), np.r_[self.n, other.n])
        return RegionCells(labels, cells, n)
