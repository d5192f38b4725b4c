"""Restrictions on the payoffs of the normalised choice, and what they leave of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.panel.states import StateSpace, as_floats
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FEASIBLE = 1e-7
"""Utils by which a restriction may be missed."""
Where: TypeAlias = (
    "Mapping[str, Level | Sequence[Level]] | BoolArray | IntArray | Sequence[int] | None"
)
"""States: ``{axis: level or levels}``, a mask (S,), codes, or None for all."""
Utils: TypeAlias = "float | Sequence[float] | FloatArray"
"""One number, or one for each state selected."""


@dataclass(frozen=True, eq=False)
class Restriction:
    """``low <= matrix @ u_J <= high`` (m,); of ``u_J`` less its maintained value if ``relative``.

    ``matrix`` (m, S) may be sparse. Build with the class methods below, or directly. Everywhere
    ``where`` selects states: ``{axis: level or levels}``, a mask (S,), codes, or None for all.

    Examples
    --------
    >>> states = StateSpace(plan=["none", "monthly"], use=range(3))
    >>> Restriction.between(states, high=0, where={"plan": "monthly"}).matrix.shape
    (3, 6)
    """

    name: str
    matrix: FloatArray | csr_array
    low: FloatArray
    high: FloatArray
    relative: bool = False

    def holds(self, u: FloatArray) -> bool:
        """Return whether the maintained payoffs (S,) satisfy it."""
        x = self.matrix @ (0 * u if self.relative else u)
        return bool(((x >= self.low - FEASIBLE) & (x <= self.high + FEASIBLE)).all())

    @classmethod
    def between(
        cls,
        states: StateSpace,
        low: Utils = -np.inf,
        high: Utils = np.inf,
        where: Where = None,
        name: str = "",
    ) -> Restriction:
        """Limit payoffs of the anchor, in utils (a sign: ``high=0``); numbers or one a state."""
        codes = select(states, where)
        name = name or f"between {low} and {high}"
        least, most = as_floats(low, name).reshape(-1), as_floats(high, name).reshape(-1)
        fits = not {least.size, most.size} - {1, len(codes)}
        if not len(codes) or not fits or not (least <= most).all():
            raise SpecificationError(
                f"restriction {name!r} on {len(codes):,} states: select some, and give low <= high"
                " as numbers or one for each"
            )
        each = np.zeros(len(codes))
        return cls(name, _pick(codes, states.size), least + each, most + each)

    @classmethod
    def known(
        cls, states: StateSpace, value: Utils = 0.0, where: Where = None, name: str = ""
    ) -> Restriction:
        """Fix payoffs of the anchor: the normalisation is asserted in the states selected."""
        return cls.between(states, value, value, where, name or f"known to be {value}")

    @classmethod
    def within(
        cls, states: StateSpace, low: Utils, high: Utils, where: Where = None, name: str = ""
    ) -> Restriction:
        """Keep payoffs of the anchor within ``low .. high`` utils of their maintained values."""
        limits = cls.between(states, low, high, where, name or f"within {low} .. {high}")
        return replace(limits, relative=True)

    @classmethod
    def monotone(
        cls,
        states: StateSpace,
        axis: str,
        increasing: bool = True,
        where: Where = None,
        name: str = "",
    ) -> Restriction:
        """Let payoffs of the anchor rise (or fall) along an axis, the other levels given."""
        keep = np.zeros(states.size, dtype=bool)
        keep[select(states, where)] = True
        step = int(np.prod(states.shape[states.axis(axis) + 1 :]))
        lower = np.flatnonzero(keep & (states.axis_codes(axis) < len(states.axes[axis]) - 1))
        lower = lower[keep[lower + step]]
        name = name or f"{'rises' if increasing else 'falls'} in {axis}"
        m = len(lower)
        if not m:
            raise SpecificationError(f"restriction {name!r}: no two states selected are neighbours")
        rise = _pick(lower + step, states.size) - _pick(lower, states.size)
        return cls(name, rise if increasing else -rise, np.zeros(m), np.full(m, np.inf))


def _pick(codes: IntArray, S: int) -> csr_array:
    """Return the matrix (m, S) that picks states from a vector over all."""
    from scipy.sparse import csr_array

    m = len(codes)
    return csr_array((np.ones(m), (np.arange(m), codes)), shape=(m, S))


def select(states: StateSpace, where: Where = None) -> IntArray:
    """Return state codes: all, ``{axis: level or levels}``, a mask (S,), or codes."""
    if isinstance(where, Mapping):
        keep = np.ones(states.size, dtype=bool)
        for axis, levels in where.items():
            listed = levels if isinstance(levels, (list, tuple, set, range)) else [levels]
            keep &= np.isin(states.axis_codes(axis), [states.level_code(axis, x) for x in listed])
        return np.flatnonzero(keep)
    codes = np.arange(states.size) if where is None else np.asarray(where)
    if codes.dtype == np.bool_ and codes.shape == (states.size,):
        return np.flatnonzero(codes)
    whole = codes.ndim == 1 and codes.dtype.kind in "iu"
    if not whole or ((codes < 0) | (codes >= states.size)).any():
        raise SpecificationError(f"where={where!r}: pass levels, a mask or codes of states")
    return codes.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Polytope:
    """The coefficients ``z = origin + basis @ y`` that restrictions leave.

    ``y`` (Y,) is limited by ``box`` (Y, 2) and by ``low <= rows @ y <= high``.
    """

    origin: FloatArray
    basis: FloatArray
    box: FloatArray
    rows: FloatArray
    low: FloatArray
    high: FloatArray

    def miss(self, y: FloatArray) -> float:
        """Return by how much ``y`` misses the restrictions."""
        values = self.rows @ y
        gaps = np.r_[self.box[:, 0] - y, y - self.box[:, 1], self.low - values, values - self.high]
        return float(gaps.max(initial=0.0))

    def vertex(self, c: FloatArray) -> FloatArray | None:
        """Return a point that minimises ``c @ y``, or None where there is none."""
        from scipy.optimize import linprog

        if not len(c):
            return c
        up, down = np.isfinite(self.high), np.isfinite(self.low)
        A = np.r_[self.rows[up], -self.rows[down]]
        b = np.r_[self.high[up], -self.low[down]]
        end = linprog(c, A_ub=A if len(A) else None, b_ub=b if len(A) else None, bounds=self.box)
        return np.asarray(end.x) if end.status == 0 else None


def polytope(
    restrictions: Sequence[Restriction], B: FloatArray, maintained: FloatArray
) -> Polytope | None:
    """Return what restrictions leave of ``u_J = maintained + B z``, or None where they conflict.

    Equalities are solved away; rows of one coefficient become limits of it.
    """
    from scipy.linalg import null_space

    D = B.shape[1]
    parts = [(np.zeros((0, D)), np.zeros(0), np.zeros(0))]
    for r in restrictions:
        shift = 0.0 if r.relative else r.matrix @ maintained
        parts.append((np.asarray(r.matrix @ B), r.low - shift, r.high - shift))
    R, low, high = (np.concatenate([p[i] for p in parts]) for i in range(3))
    equal = low == high
    origin, basis = np.zeros(D), np.eye(D)
    if equal.any():
        # fixed coefficients first: what is known of one is exact, and the rest stays small
        single = equal & ((R != 0).sum(axis=1) == 1)
        fixed = np.argmax(R[single] != 0, axis=1)
        origin[fixed] = low[single] / R[single, fixed]
        basis = basis[:, np.setdiff1d(np.arange(D), fixed)]
        rest = R[equal] @ basis
        if np.abs(rest).max(initial=0.0) > 0:
            move = np.linalg.lstsq(rest, low[equal] - R[equal] @ origin, rcond=None)[0]
            origin, basis = origin + basis @ move, basis @ null_space(rest, rcond=1e-10)
        if np.abs(R[equal] @ origin - low[equal]).max() > FEASIBLE:
            return None
    rows = R[~equal] @ basis
    low, high = low[~equal] - R[~equal] @ origin, high[~equal] - R[~equal] @ origin
    filled = np.abs(rows) > 1e-12  # less is rounding of the equalities
    empty = ~filled.any(axis=1)
    if (low[empty] > FEASIBLE).any() or (high[empty] < -FEASIBLE).any():
        return None
    box = np.tile([-np.inf, np.inf], (basis.shape[1], 1))
    for i in np.flatnonzero(filled.sum(axis=1) == 1):
        k = int(filled[i].argmax())
        ends = np.sort([low[i] / rows[i, k], high[i] / rows[i, k]])
        box[k] = max(box[k, 0], ends[0]), min(box[k, 1], ends[1])
    if (box[:, 0] > box[:, 1] + FEASIBLE).any():
        return None
    box[:, 1] = np.maximum(box[:, 0], box[:, 1])
    many = np.unique(np.c_[rows, low, high][filled.sum(axis=1) > 1], axis=0)
    left = Polytope(origin, basis, box, many[:, :-2], many[:, -2], many[:, -1])
    return left if left.vertex(np.zeros(basis.shape[1])) is not None else None
