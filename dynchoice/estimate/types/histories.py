"""Members' histories as flat runs: what a mixture needs of a million members.

The likelihood of a history given a type is a sum over the distinct (state, choice) cells that the
member visited. Members with the same cells and the same first state are one row with a weight, so
short panels of many members stay small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.panel.cells import distinct_rows
from dynchoice.panel.counts import MemberCells
from dynchoice.typing import FloatArray, IntArray


@dataclass(frozen=True)
class Histories:
    """Distinct histories: a sparse matrix of counts by cell, weights, first states.

    Attributes
    ----------
    H : csr_array, shape (N, C)
        Months of each cell in each distinct history.
    at : tuple of IntArray, each (C,)
        Indices of the cells in an array by (state, choice) or (period, state, choice).
    weight : FloatArray, shape (N,)
        Members that each history stands for.
    first : IntArray, shape (N,)
        State of the first row.
    member : IntArray, shape (members,)
        Distinct history of each member of the panel, in order of the member's id.
    """

    H: Any
    at: tuple[IntArray, ...]
    weight: FloatArray
    first: IntArray
    member: IntArray

    @property
    def total(self) -> float:
        """Members (sum of weights)."""
        return float(self.weight.sum())

    def counts(self, share: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """Return the cells' counts, each history weighted by ``share`` (N,), in full shape."""
        out = np.zeros(shape)
        out[self.at] = self.H.T @ (self.weight * share)
        return out

    def sums(self, table: FloatArray) -> FloatArray:
        """Return ``sum of n table`` over each history, (N,) or (N, K), from a table by cell."""
        return np.asarray(self.H @ np.ascontiguousarray(table[self.at]))


def histories(members: MemberCells | None, by_period: bool) -> Histories:
    """Collect the members' histories of a panel.

    Parameters
    ----------
    members : MemberCells
        With the period as last column where ``by_period``.

    Raises
    ------
    SpecificationError
        The counts keep no cells by member.
    """
    from scipy.sparse import csr_array

    if members is None:
        raise SpecificationError(
            "unobserved types need each member's history, and these counts keep none: build the"
            " Panel with a larger member_limit= (it counts rows)"
        )
    decides = members.cells[:, 4] == 1
    columns = [5, 1, 2] if by_period else [1, 2]
    cells, code = distinct_rows(np.ascontiguousarray(members.cells[:, columns]))
    keep = np.repeat(np.arange(members.size), np.diff(members.indptr)), members.index
    used = decides[keep[1]]
    H = csr_array(
        (members.n[used], (keep[0][used], code[keep[1][used]])),
        shape=(members.size, len(cells)),
    )
    H.sum_duplicates()
    # two random projections tell histories apart: equal sums of both mean equal histories
    rng = np.random.default_rng(20110)
    marks = H @ rng.standard_normal((len(cells), 2))
    key = np.column_stack([np.round(marks, 7).view(np.int64), members.first])
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    inverse = np.asarray(inverse.reshape(-1), dtype=np.int64)
    weight = np.bincount(inverse, weights=members.weights, minlength=len(first))
    return Histories(
        H[first],
        tuple(np.ascontiguousarray(c) for c in cells.T),
        np.asarray(weight, dtype=np.float64),
        members.first[first],
        inverse,
    )
