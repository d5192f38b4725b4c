"""What a member may choose in each state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError, first_few
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, Level


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
