"""State spaces: named axes of levels, coded 0 .. S-1 with the last axis fastest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, SpecificationError, first_few, suggest
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level


def plain(level: object) -> Level:
    """Return a level as a plain Python value (numpy scalars become int, float, bool or str).

    Raises
    ------
    SpecificationError
        It is of another type, or NaN.
    """
    value = level.item() if isinstance(level, np.generic) else level
    if not isinstance(value, (int, float, str, bool)):
        raise SpecificationError(
            f"level {value!r} is a {type(value).__name__}; levels are int, float, bool or str"
        )
    if value != value:  # NaN alone is unlike itself
        raise SpecificationError("a level may not be NaN")
    return value


def check_labels(labels: Iterable[object], what: str) -> tuple[Level, ...]:
    """Return labels as a tuple of distinct plain values.

    Raises
    ------
    SpecificationError
        One text, no list, an empty list, a label that is no level, or labels that repeat.
    """
    if isinstance(labels, (str, bytes)):
        raise SpecificationError(f"{what}: pass a list of labels, not the text {labels!r}")
    if isinstance(labels, (set, frozenset)) or not isinstance(labels, Iterable):
        raise SpecificationError(
            f"{what}: pass a list of labels (in order), not a {type(labels).__name__}"
        )
    values = tuple(plain(x) for x in labels)
    if not values:
        raise SpecificationError(f"{what}: no label is given; at least one is needed")
    if len(set(values)) != len(values):
        repeated = sorted({str(v) for v in values if values.count(v) > 1})
        raise SpecificationError(f"{what}: labels repeat: {first_few(repeated)}")
    return values


def as_floats(values: object, what: str) -> FloatArray:
    """Return an array of float64.

    Raises
    ------
    SpecificationError
        The values cannot be read as numbers.
    """
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array):
            raise ValueError("complex numbers")
        return np.ascontiguousarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpecificationError(f"{what} cannot be read as numbers: {error}") from None


def code_labels(values: AnyArray, labels: Sequence[Level], what: str) -> IntArray:
    """Return the code (n,) of each value in ``labels``.

    Raises
    ------
    DataError
        Some values are no labels: how many, and the first of them.
    """
    codes = pd.Index(list(labels)).get_indexer(pd.Index(values))
    if (codes < 0).any():
        bad = np.asarray(values, dtype=object)[codes < 0]
        firsts = list(dict.fromkeys(str(b) for b in bad))
        raise DataError(
            f"{what}: {len(bad):,} value(s) are not among the levels: {first_few(firsts)}."
            f"{suggest(firsts[0], labels)} Known levels: {first_few(list(labels), 8)}."
        )
    return codes.astype(np.int64)


class StateSpace:
    """A product of named axes, each a list of levels.

    Parameters
    ----------
    **axes : iterable of int, float, bool or str
        One keyword per axis: its levels in order. The code of a state counts with the last
        axis fastest (C order).

    Raises
    ------
    SpecificationError
        No axis, an empty axis, or a level that repeats.

    Examples
    --------
    >>> states = StateSpace(plan=["none", "monthly"], usage=range(3))
    >>> states.size, states.shape
    (6, (2, 3))
    >>> states.describe(4)
    'plan=monthly, usage=1'
    """

    def __init__(self, **axes: Iterable[object]) -> None:
        self._set(axes)

    def _set(self, axes: Mapping[str, Iterable[object]]) -> None:
        if not axes:
            raise SpecificationError("StateSpace needs at least one axis, e.g. mileage=range(90)")
        self.axes: dict[str, tuple[Level, ...]] = {
            name: check_labels(levels, f"axis {name!r}") for name, levels in axes.items()
        }

    @classmethod
    def from_axes(cls, axes: Mapping[str, Iterable[object]]) -> StateSpace:
        """Build from a mapping, for axis names that are no Python identifiers."""
        new = cls.__new__(cls)
        new._set(axes)
        return new

    @property
    def names(self) -> tuple[str, ...]:
        """Axis names in order."""
        return tuple(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of levels of each axis."""
        return tuple(len(levels) for levels in self.axes.values())

    @property
    def size(self) -> int:
        """Number of states ``S``."""
        return math.prod(self.shape)

    def axis(self, name: str) -> int:
        """Return the position of an axis.

        Raises
        ------
        SpecificationError
            No axis of this name.
        """
        if name not in self.axes:
            raise SpecificationError(
                f"no axis is named {name!r}.{suggest(name, self.axes)} Axes: {', '.join(self.axes)}"
            )
        return self.names.index(name)

    def level_code(self, name: str, level: object) -> int:
        """Return the code of one level of one axis.

        Raises
        ------
        SpecificationError
            No such axis, or no such level.
        """
        levels = self.axes[self.names[self.axis(name)]]
        value = plain(level)
        if value not in levels:
            raise SpecificationError(
                f"axis {name!r} has no level {level!r}.{suggest(level, levels)}"
                f" Levels: {first_few(list(levels), 8)}"
            )
        return levels.index(value)

    def axis_codes(self, name: str) -> IntArray:
        """Return the level code (S,) of one axis for every state."""
        grid = np.unravel_index(np.arange(self.size), self.shape)
        return np.asarray(grid[self.axis(name)], dtype=np.int64)

    def codes(self, df: pd.DataFrame) -> IntArray:
        """Return the state code (n,) of each row of a table that has one column per axis.

        Raises
        ------
        ColumnError
            An axis has no column.
        DataError
            A value is no level of its axis.
        """
        checks.columns(df, self.axes, "state axes")
        parts = [
            code_labels(df[name].to_numpy(), levels, f"column {name!r}")
            for name, levels in self.axes.items()
        ]
        return np.ravel_multi_index(tuple(parts), self.shape).astype(np.int64)

    def labels(self, codes: Iterable[int] | IntArray) -> pd.DataFrame:
        """Return the levels of states, one row a code: the inverse of :meth:`codes`."""
        index = np.unravel_index(np.asarray(codes, dtype=np.int64), self.shape)
        return pd.DataFrame(
            {
                name: pd.Index(list(levels)).take(np.asarray(i))
                for (name, levels), i in zip(self.axes.items(), index, strict=True)
            }
        )

    def frame(self) -> pd.DataFrame:
        """Return all states, one row each in code order."""
        return self.labels(np.arange(self.size))

    def describe(self, code: int) -> str:
        """Return one state in words, e.g. ``'plan=monthly, usage=1'``."""
        index = np.unravel_index(int(code), self.shape)
        return ", ".join(
            f"{name}={levels[int(i)]}"
            for (name, levels), i in zip(self.axes.items(), index, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateSpace) and list(self.axes.items()) == list(other.axes.items())

    def __hash__(self) -> int:
        return hash(tuple(self.axes.items()))

    def __repr__(self) -> str:
        axes = ", ".join(f"{name}: {n}" for name, n in zip(self.names, self.shape, strict=True))
        return f"StateSpace({axes}; {self.size:,} states)"
