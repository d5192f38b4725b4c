"""Transition laws ``F[s, j, s']`` as an operator: stacked sparse rows, or a product of laws.

Every kind offers ``expect(V)`` = ``sum_s' F[s, j, s'] V(s')`` (S, J), its adjoint ``push(m)``,
``dense()`` (S, J, S) and, when small enough, ``stacked()``, one CSR matrix with row
``s * J + j``. ``blocks`` numbers the groups of states that never reach each other (levels of an
offer, for instance): linear systems split along them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError, first_few
from dynchoice.kernels import core as kernels
from dynchoice.panel.states import StateSpace, as_floats, check_labels
from dynchoice.typing import FloatArray, IntArray, Level

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from dynchoice.model.laws import Law

SUM_TOLERANCE = 1e-8
DENSE_LIMIT = 2**31
"""Bytes above which ``dense()`` is refused."""


class Transitions(ABC):
    """Base of the transition laws; build with :meth:`dense`, :meth:`sparse`, :meth:`factored`."""

    S: int
    J: int
    kind: str

    # constructors ----------------------------------------------------------------------------

    @staticmethod
    def dense(array: Any) -> Transitions:
        """Build from an array (S, J, S); rows sum to one.

        Raises
        ------
        SpecificationError
            Wrong shape; entries that are negative or not finite; rows that do not sum to one
            (how many, and the first ones).
        """
        from scipy.sparse import csr_array

        F = as_floats(array, "dense transitions")
        if F.ndim != 3 or F.shape[0] != F.shape[2]:
            raise SpecificationError(
                f"dense transitions need the shape (S, J, S), got {F.shape}; the axis order is"
                " F[s, j, s_next]"
            )
        return Stacked(csr_array(F.reshape(-1, F.shape[2])), F.shape[1], "dense")

    @staticmethod
    def sparse(matrices: Sequence[Any]) -> Transitions:
        """Build from ``J`` sparse matrices (S, S), one a choice; rows sum to one."""
        from scipy.sparse import csr_array, vstack

        parts = [csr_array(m) for m in matrices]
        if not parts:
            raise SpecificationError("sparse transitions need one matrix (S, S) a choice, got none")
        S, J = parts[0].shape[0], len(parts)
        wrong = [i for i, m in enumerate(parts) if m.shape != (S, S)]
        if wrong:
            raise SpecificationError(
                f"sparse transitions: matrix {wrong[0]} has shape {parts[wrong[0]].shape},"
                f" expected ({S}, {S})"
            )
        by_choice = vstack(parts, format="csr")
        # from rows by choice, then state, to rows s * J + j
        order = (np.arange(S)[:, None] + S * np.arange(J)).reshape(-1)
        return Stacked(csr_array(by_choice[order]), J, "sparse")

    @staticmethod
    def factored(
        states: StateSpace,
        choices: Iterable[Level],
        laws: Mapping[str | tuple[str, ...], Law],
    ) -> Transitions:
        """Build as a product of laws, ``{axis or tuple of neighbouring axes: law}``.

        Given the current state and the choice, axes move independently; a law's parents are
        current levels of other axes, without cycles. See :mod:`dynchoice.model.laws`.

        Raises
        ------
        SpecificationError
            An axis without a law or with two; parents in a cycle; a law that does not fit.
        """
        from dynchoice.model.factored import Factored

        return Factored(states, check_labels(choices, "choices"), laws)

    # operations ------------------------------------------------------------------------------

    @abstractmethod
    def expect(self, V: FloatArray) -> FloatArray:
        """Return ``E[V(s') | s, j]``: (S, J) for ``V`` (S,), (S, J, K) for ``V`` (S, K)."""

    @abstractmethod
    def push(self, m: FloatArray) -> FloatArray:
        """Return ``sum_{s,j} m[s, j] F[s, j, s']`` (S,): where a mass ``m`` (S, J) moves."""

    @abstractmethod
    def stacked(self) -> Any:
        """Return F as CSR (indptr, indices, data) with rows ``s * J + j``; None if too large."""

    @cached_property
    def arrivals(self) -> tuple[Any, IntArray, FloatArray] | None:
        """F' as CSR over origins, with the cell ``s * J + j`` and the probability of each entry.

        Sorted once by the next state: a policy's moves are then these entries times its cells'
        probabilities. None where F is too large to expand.
        """
        rows = self.stacked()
        if rows is None:
            return None
        from scipy.sparse import csr_array

        indptr, indices, data = rows
        cell = np.repeat(np.arange(self.S * self.J), np.diff(indptr))
        order = np.argsort(indices, kind="stable")
        # short indices: half the memory traffic a period
        small = np.int32 if len(indices) < 2**31 else np.int64
        start = np.searchsorted(indices[order], np.arange(self.S + 1)).astype(small)
        origin = (cell[order] // self.J).astype(small)
        shape = csr_array((data[order], origin, start), shape=(self.S, self.S))
        return shape, cell[order], data[order]

    @property
    @abstractmethod
    def blocks(self) -> IntArray:
        """Number of the closed group of each state (S,)."""

    @property
    def estimated(self) -> bool:
        """Whether some law's probabilities must come from the counts."""
        return False

    def dense_array(self) -> FloatArray:
        """Return F as an array (S, J, S)."""
        if self.S * self.J * self.S * 8 > DENSE_LIMIT:
            raise SpecificationError(
                f"F as a dense array would take {self.S**2 * self.J * 8 / 1e9:.1f} GB"
                f" ({self.S:,} states, {self.J} choices): use expect() and push()"
            )
        eye = np.eye(self.S)
        return np.ascontiguousarray(self.expect(eye))

    def check_fits(self, S: int, J: int) -> None:
        """Raise unless the law has the dimensions of the model."""
        if (self.S, self.J) != (S, J):
            raise SpecificationError(
                f"transitions are for {self.S} states and {self.J} choices, the model has"
                f" {S} and {J}"
            )


class Stacked(Transitions):
    """Rows ``F[s, j, .]`` stacked in one CSR matrix: dense and sparse transitions alike."""

    def __init__(self, matrix: csr_array, J: int, kind: str) -> None:
        matrix.sum_duplicates()
        rows, S = matrix.shape
        sums = np.asarray(matrix.sum(axis=1)).reshape(-1)
        least = matrix.data.min(initial=0.0)
        # ~(<=) rather than >: a row with NaN is bad too
        bad = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
        if len(bad) or least < 0 or not np.isfinite(matrix.data).all():
            shown = [f"F[s={r // J}, j={r % J}] sums to {sums[r]:.6g}" for r in bad[:3]]
            detail = (
                f"{len(bad)} of {rows} rows do not sum to one: {first_few(shown)}"
                if len(bad)
                else f"entries are negative or not finite, the least is {least:.6g}"
            )
            raise SpecificationError(f"transitions: {detail}. The axis order is F[s, j, s_next]")
        self.S, self.J, self.kind = S, J, kind
        self._indptr = matrix.indptr.astype(np.int64)
        self._indices = matrix.indices.astype(np.int64)
        self._data = np.ascontiguousarray(matrix.data, dtype=np.float64)

    def expect(self, V: FloatArray) -> FloatArray:
        return expect_rows(self._indptr, self._indices, self._data, self.J, V)

    def push(self, m: FloatArray) -> FloatArray:
        out = np.zeros(self.S)
        flat = np.ascontiguousarray(m, dtype=np.float64).reshape(-1)
        kernels.push_stacked(self._indptr, self._indices, self._data, flat, out)
        return out

    def dense(self) -> FloatArray:  # type: ignore[override]
        """Return F as an array (S, J, S)."""
        return self.dense_array()

    def stacked(self) -> tuple[IntArray, IntArray, FloatArray]:
        return self._indptr, self._indices, self._data

    @cached_property
    def blocks(self) -> IntArray:
        return connected_blocks(self._indptr, self._indices, self.S, self.J)


def expect_rows(
    indptr: IntArray, indices: IntArray, data: FloatArray, J: int, V: FloatArray
) -> FloatArray:
    """Return ``E[V(s') | s, j]`` from stacked rows, for ``V`` (S,) or (S, K)."""
    rows = len(indptr) - 1
    V = np.ascontiguousarray(V, dtype=np.float64)
    if V.ndim == 1:
        flat = np.empty(rows)
        kernels.expect_stacked(indptr, indices, data, V, flat)
        return flat.reshape(-1, J)
    out = np.empty((rows, V.shape[1]))
    kernels.expect_stacked_many(indptr, indices, data, V, out)
    return out.reshape(-1, J, V.shape[1])


def connected_blocks(indptr: IntArray, indices: IntArray, S: int, J: int) -> IntArray:
    """Return the weakly connected block of each state under all choices together."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    # each state's J rows stand together, so that every J-th pointer bounds all its entries
    graph = csr_array(
        (np.ones(len(indices), dtype=np.int8), indices, np.ascontiguousarray(indptr[::J])),
        shape=(S, S),
    )
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
