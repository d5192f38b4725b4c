"""Rows of sparse features with their outcomes, equal ones added up: what a model learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError, SpecificationError, first_few
from dynchoice.panel.states import as_floats
from dynchoice.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MOST_PARTS = 64
"""Parts into which a cell of many impressions is cut, at most."""
SPENT = 1e-6
"""Cells that forgetting has worn down to fewer impressions than this are dropped."""


@dataclass(frozen=True)
class Cells:
    """Distinct rows of features with their outcomes.

    Attributes
    ----------
    index : integer array, shape (n, A)
        Positions of active features, -1 where a row has fewer.
    value : array, shape (n, A)
    outcomes : array, shape (n, 3)
        Clicks; impressions known to have failed; impressions still open.
    due : array, shape (n,)
        Share of the clicks to come that would have come by now, for the open ones.
    """

    index: IntArray
    value: FloatArray
    outcomes: FloatArray
    due: FloatArray

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.index)

    @property
    def shown(self) -> float:
        """Number of impressions."""
        return float(self.outcomes.sum())

    def join(self, other: Cells) -> Cells:
        """Return the cells of both, one after the other."""
        width = max(self.index.shape[1], other.index.shape[1])
        a, b = self.widen(width), other.widen(width)
        return Cells(
            np.concatenate([a.index, b.index]),
            np.concatenate([a.value, b.value]),
            np.concatenate([a.outcomes, b.outcomes]),
            np.concatenate([a.due, b.due]),
        )

    def widen(self, width: int) -> Cells:
        """Return the cells with room for ``width`` active features a row."""
        more = width - self.index.shape[1]
        if more <= 0:
            return self
        pad = ((0, 0), (0, more))
        index = np.pad(self.index, pad, constant_values=-1)
        return Cells(index, np.pad(self.value, pad), self.outcomes, self.due)

    def fade(self, share: float) -> Cells:
        """Return the cells with outcomes worn down to ``share``, spent ones left out."""
        outcomes = self.outcomes * share
        kept = outcomes.sum(axis=1) > SPENT
        return Cells(self.index[kept], self.value[kept], outcomes[kept], self.due[kept])

    def add_up(self) -> tuple[Cells, IntArray]:
        """Return distinct rows with summed outcomes, and the place of each old row among them."""
        # floats by their bits: rows are one where every number is the same to the last digit
        key = np.concatenate(
            [self.index, self.value.view(np.int64), self.due.view(np.int64)[:, None]], axis=1
        )
        first, place = distinct_rows(key)
        outcomes = np.zeros((len(first), 3))
        for k in range(3):
            outcomes[:, k] = np.bincount(place, self.outcomes[:, k], len(first))
        return Cells(self.index[first], self.value[first], outcomes, self.due[first]), place


def no_cells(width: int = 1) -> Cells:
    """Return a table without cells."""
    return Cells(
        np.empty((0, width), np.int64), np.empty((0, width)), np.empty((0, 3)), np.empty(0)
    )


def distinct_rows(key: AnyArray) -> tuple[IntArray, IntArray]:
    """Return where each distinct row of integers stands first, and every row's place among them.

    Rows are told apart by a random sum of 64 bits (rows of a million take a tenth of the time of
    comparing them), and compared afterwards.
    """
    if len(key) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    odd = np.random.default_rng(len(key)).integers(1, 2**62, key.shape[1]) * 2 + 1
    with np.errstate(over="ignore"):
        mixed = key ^ (key >> 29)
        sums = (mixed * odd).sum(axis=1)
        sums ^= sums >> 31
    _, first, place = np.unique(sums, return_index=True, return_inverse=True)
    if not np.array_equal(key[first][place], key):
        _, first, place = np.unique(key, axis=0, return_index=True, return_inverse=True)
    return first.astype(np.int64), np.asarray(place, np.int64).reshape(-1)


def make_cells(
    index: ArrayLike,
    clicks: ArrayLike,
    shown: ArrayLike | None = None,
    value: ArrayLike | None = None,
    *,
    features: int,
) -> Cells:
    """Return checked cells of rows whose outcomes are known.

    Parameters
    ----------
    index : integer array, shape (n, A) or (n,)
    clicks : array, shape (n,)
        How many of the impressions were clicked.
    shown : array, shape (n,), optional
        Impressions of each row. Default: one.
    value : array, shape (n, A), optional
        Values of the features. Default: ones.
    features : int
        Number of features.

    Raises
    ------
    SpecificationError
        Shapes disagree, or an index is out of range.
    DataError
        More clicks than impressions, negative counts, or numbers that are not finite.
    """
    rows, weights = check_rows(index, value, features)
    clicked = as_floats(clicks, "clicks").reshape(-1)
    trials = np.ones(len(rows)) if shown is None else as_floats(shown, "shown").reshape(-1)
    if len(clicked) != len(rows) or len(trials) != len(rows):
        raise SpecificationError(
            f"{len(rows):,} rows of features, {len(clicked):,} clicks and {len(trials):,} numbers"
            " of impressions: one each is needed"
        )
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(
            ~(np.isfinite(clicked) & np.isfinite(trials) & (clicked >= 0) & (trials >= clicked))
        )
    if len(wrong):
        shown_rows = [f"row {i}: {clicked[i]:g} of {trials[i]:g}" for i in wrong]
        raise DataError(
            f"{len(wrong):,} rows do not have between 0 and all of their impressions clicked"
            f" ({first_few(shown_rows)})"
        )
    outcomes = np.stack([clicked, trials - clicked, np.zeros(len(rows))], axis=1)
    return Cells(rows, weights, outcomes, np.ones(len(rows)))


def check_rows(
    index: ArrayLike, value: ArrayLike | None, features: int
) -> tuple[IntArray, FloatArray]:
    """Return the positions (n, A) and the values (n, A) of each row's features, checked."""
    try:
        rows = np.asarray(index)
    except ValueError:
        raise SpecificationError(
            "rows of features have different lengths: fill up with -1"
        ) from None
    if rows.size == 0 and rows.ndim == 2:
        rows = rows.astype(np.int64)
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise SpecificationError(
            f"features are whole numbers, a row an impression (n, A); got {rows.dtype} of shape"
            f" {rows.shape}"
        )
    rows = np.ascontiguousarray(rows, np.int64)
    if rows.size and (rows.min() < -1 or rows.max() >= features):
        bad = np.flatnonzero(((rows < -1) | (rows >= features)).any(axis=1))
        raise SpecificationError(
            f"{len(bad):,} rows name features that the model does not have: it has {features:,},"
            f" from 0 (first row: {bad[0]}, {rows[bad[0]].tolist()})"
        )
    ordered = np.sort(rows, axis=1)
    double = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if double.any():
        raise SpecificationError(
            f"{int(double.sum()):,} rows name a feature twice (first: row"
            f" {np.flatnonzero(double)[0]}): give it a value of 2 instead"
        )
    if value is None:
        return rows, np.ascontiguousarray((rows >= 0).astype(float))
    weights = as_floats(value, "values of features").copy()
    weights = weights[:, None] if weights.ndim == 1 else weights
    checks.shape(weights, "values of features", rows.shape, "(rows, features of a row)")
    if not np.isfinite(weights).all():
        bad = np.flatnonzero(~np.isfinite(weights).all(axis=1))
        raise DataError(f"{len(bad):,} rows have values that are no numbers (first: row {bad[0]})")
    weights[rows < 0] = 0.0
    return rows, np.ascontiguousarray(weights + 0.0)


def split_cells(outcomes: FloatArray) -> tuple[FloatArray, IntArray]:
    """Split cells into single impressions: return outcomes (parts, 3) and each part's cell.

    A stream that took a cell at once would explain all of it by the cell's weights as they stand,
    before other cells can take their share: each impression is a part (in a large cell, a 64th).
    """
    shown = outcomes.sum(axis=1)
    whole = (shown <= MOST_PARTS) & (outcomes == np.rint(outcomes)).all(axis=1)
    parts, cells = [], []
    for k in range(3):
        times = np.where(whole, outcomes[:, k], 0).astype(np.int64)
        cell = np.repeat(np.arange(len(outcomes)), times)
        one = np.zeros((len(cell), 3))
        one[:, k] = 1.0
        parts.append(one)
        cells.append(cell)
    large = np.flatnonzero(~whole)
    number = np.ceil(np.minimum(shown[large], MOST_PARTS)).astype(np.int64)
    parts.append(np.repeat(outcomes[large] / np.maximum(number, 1)[:, None], number, axis=0))
    cells.append(np.repeat(large, number))
    return np.concatenate(parts), np.concatenate(cells)
