"""Push a distribution forward under one policy: prepared once, applied every period."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np

from dynchoice.model.transitions import Transitions
from dynchoice.typing import FloatArray


def mover(transitions: Transitions, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Return the map of a distribution (S,) to the next period's under a policy ``P`` (S, J).

    A law that can be expanded becomes one matrix, whose rows gather what arrives at each next
    state; larger products of laws are applied law by law.
    """
    arrivals = transitions.arrivals
    if arrivals is None:
        return lambda mu: transitions.push(mu[:, None] * P)
    pattern, cell, data = arrivals
    moves = copy(pattern)  # shares its indices: only the numbers are made anew
    moves.data = data * P.reshape(-1)[cell]
    return lambda mu: np.asarray(moves @ mu)
