"""Sums over equal rows of integers, and the cells by region and period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from dynchoice._lazy import pd
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level

NO_NEXT = -1
"""Next-state code of a row without an observed next month: it informs choices only."""
Keyed: TypeAlias = tuple[IntArray, FloatArray, IntArray]
"""Cells before weights are summed: keys (n, columns), weight (n,) and number of rows (n,)."""


def group_sum(keys: IntArray, n: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the distinct rows of ``keys`` (rows, columns) in order and the sum of ``n`` of each.

    Sums run in sorted order of the rows and of ``n``, so the result does not depend on the
    order in which rows arrive.
    """
    if len(keys) == 0:
        return keys, n
    # lexsort takes its last key first: keys from the first column on, then n within equal keys
    order = np.lexsort((n, *keys.T[::-1]))
    sorted_keys, sorted_n = keys[order], n[order]
    starts = np.r_[True, (sorted_keys[1:] != sorted_keys[:-1]).any(axis=1)]
    return sorted_keys[starts], np.add.reduceat(sorted_n, np.flatnonzero(starts))


def sum_member_months(
    keys: IntArray, weight: FloatArray, rows: IntArray
) -> tuple[IntArray, FloatArray]:
    """Return the distinct keys in order, and the sum of ``rows`` times ``weight`` of each."""
    return group_sum(keys, rows * weight)


def sum_weights(weight: FloatArray, members: AnyArray) -> float:
    """Return the sum of ``weight`` times ``members``, which does not depend on their order."""
    # fsum rounds once, at the end
    return math.fsum((weight * members).tolist())


def sum_weights_by_segment(
    segments: Sequence[Level], label: pd.Series, weight: pd.Series, members: pd.Series
) -> FloatArray:
    """Return the number of members in each segment (M,), each counted by its weight.

    Rows hold a segment's label, a weight, and how many members of the segment have that weight.
    """
    text, weights, numbers = label.astype(str), weight.to_numpy(float), members.to_numpy()
    inside = [(text == str(segment)).to_numpy() for segment in segments]
    return np.array([sum_weights(weights[rows], numbers[rows]) for rows in inside])


def distinct_rows(cells: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct rows of an integer array in order, and the row number of each.

    Rows are packed into single integers where they fit: sorting those is ten times faster.
    """
    if not len(cells):
        return cells, np.zeros(0, dtype=np.int64)
    low = cells.min(axis=0)
    span = [int(x) + 1 for x in cells.max(axis=0) - low]
    if math.prod(span) >= 2**62:  # more combinations than an int64 numbers
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
        inside = self.cells[:, 0] == segment
        cells = self.cells[inside].copy()
        cells[:, 0] = 0
        return replace(self, cells=cells, n=self.n[inside])

    def relabel(self, new: IntArray) -> RegionCells:
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
            new_codes = np.array([labels.index(x) for x in part.labels], dtype=np.int64)
            cells[:, 1] = new_codes[cells[:, 1]]
            parts.append(cells)
        cells, n = group_sum(np.concatenate(parts), np.r_[self.n, other.n])
        return RegionCells(labels, cells, n)
