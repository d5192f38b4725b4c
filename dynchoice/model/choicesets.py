"""What a member may choose (availability) and what happens to one who does not look (default).

Inattention (SOURCES.md 7.3): with probability ``1 - attention(s)`` the default is executed, so
``P(a|s) = attention pi(a|s) + (1 - attention) 1{a = default}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError, first_few, suggest
from dynchoice.panel.states import StateSpace, as_floats
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level


def check_available(available: Any, states: StateSpace, choices: Sequence[Level]) -> BoolArray:
    """Return the availability mask (S, J); every state must offer a choice."""
    S, J = states.size, len(choices)
    if available is None:
        return np.ones((S, J), dtype=bool)
    mask = np.asarray(available)
    if mask.shape != (S, J):
        raise SpecificationError(f"available has shape {mask.shape}, expected (S, J) = ({S}, {J})")
    if mask.dtype != np.bool_ and not np.isin(mask, (0, 1)).all():
        raise SpecificationError("available must hold True and False only")
    mask = np.ascontiguousarray(mask.astype(bool))
    none = np.flatnonzero(~mask.any(axis=1))
    if len(none):
        shown = [f"({states.describe(s)})" for s in none[:3]]
        raise SpecificationError(
            f"available: {len(none):,} of {S:,} states offer no choice: {first_few(shown)}"
        )
    return mask


def check_attention(attention: Any, S: int) -> FloatArray:
    """Return attention (S,), each in (0, 1]; a number serves every state."""
    if attention is None:
        return np.ones(S)
    a = as_floats(attention, "attention")
    a = a.reshape(()) if a.size == 1 and np.ndim(attention) == 0 else a
    if a.ndim == 0:
        a = np.full(S, float(a))
    if a.shape != (S,):
        raise SpecificationError(f"attention has shape {a.shape}, expected (S,) = ({S},)")
    bad = np.flatnonzero(~((a > 0) & (a <= 1)))
    if len(bad):
        raise SpecificationError(
            f"attention must lie in (0, 1]; {len(bad)} of {S} states do not, first: state"
            f" {bad[0]} with {a[bad[0]]:.6g}"
        )
    return np.ascontiguousarray(a)


def check_perceived(perceived: Any, attention: FloatArray, S: int) -> FloatArray:
    """Return the attention that members count on (S,), nowhere below the true one."""
    a = check_attention(perceived, S)
    low = np.flatnonzero(a < attention)
    if len(low):
        s = int(low[0])
        raise SpecificationError(
            f"perceived attention is below attention in {len(low)} of {S} states, first: state {s}"
            f" with {a[s]:.6g} < {attention[s]:.6g}; naive members overrate their attention"
        )
    return a


def check_default(
    default: Any,
    attention: FloatArray,
    available: BoolArray,
    states: StateSpace,
    choices: Sequence[Level],
) -> IntArray:
    """Return the default choice's code (S,); it must be available where attention is below 1."""
    S, J = available.shape
    needed = attention < 1
    if default is None:
        if needed.any():
            raise SpecificationError(
                f"attention is below 1 in {int(needed.sum()):,} states: say with default= what"
                " happens to a member who does not look"
            )
        return np.zeros(S, dtype=np.int64)
    d = np.asarray(default)
    distinct = np.unique(d) if d.dtype.kind in "iuU" else d.reshape(-1)
    given = [x.item() if isinstance(x, np.generic) else x for x in distinct]
    if all(x in choices for x in given):
        # labels come first: integer labels would otherwise be read as codes
        code = {x: list(choices).index(x) for x in given}
        d = np.array([code[x] for x in d.reshape(-1).tolist()]).reshape(d.shape)
    elif d.dtype.kind in "OUS":
        unknown = [x for x in given if x not in choices]
        raise SpecificationError(
            f"default {unknown[0]!r} is no choice.{suggest(unknown[0], choices)}"
        )
    if d.ndim == 0 and d.dtype.kind in "iu":
        d = np.full(S, int(d))
    if d.shape != (S,) or d.dtype.kind not in "iu":
        raise SpecificationError(
            f"default must hold one choice code a state, shape (S,) = ({S},); got {d.dtype}"
            f" {d.shape}"
        )
    d = d.astype(np.int64)
    outside = np.flatnonzero((d < 0) | (d >= J))
    if len(outside):
        raise SpecificationError(f"default {d[outside[0]]} is no choice code 0 .. {J - 1}")
    missing = np.flatnonzero(needed & ~available[np.arange(S), d])
    if len(missing):
        s = int(missing[0])
        raise SpecificationError(
            f"the default choice is not available in {len(missing):,} states where attention is"
            f" below 1, first: {choices[d[s]]!r} in ({states.describe(s)})"
        )
    return d
