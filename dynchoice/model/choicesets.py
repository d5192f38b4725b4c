"""What a member may choose in each state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, first_few
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, Level


def check_available(available: Any, states: StateSpace, choices: Sequence[Level]) -> BoolArray:
    """Return the availability mask (S, J); every state must offer a choice.

    Raises
    ------
    SpecificationError
        Another shape; values other than True and False; states without a choice.
    """
    S, J = states.size, len(choices)
    if available is None:
        return np.ones((S, J), dtype=bool)
    mask = np.asarray(available)
    checks.shape(mask, "available", (S, J), "(S, J)")
    if mask.dtype != np.bool_ and not np.isin(mask, (0, 1)).all():
        raise SpecificationError("available must hold True and False only")
    mask = np.ascontiguousarray(mask.astype(bool))
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        shown = [f"({states.describe(s)})" for s in empty[:3]]
        raise SpecificationError(
            f"available: {len(empty):,} of {S:,} states offer no choice: {first_few(shown)}"
        )
    return mask
