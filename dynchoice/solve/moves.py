"""How mass moves under one policy: prepared once, applied every period."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynchoice.model.transitions import Transitions
from dynchoice.typing import FloatArray


def mover(transitions: Transitions, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Return the map of a distribution (S,) to the next period's under a policy ``P`` (S, J).

    Rows that can be expanded are merged over choices into one matrix; larger products of laws are
    applied law by law.
    """
    rows = transitions.stacked()
    if rows is None:
        return lambda mu: transitions.push(mu[:, None] * P)
    from scipy.sparse import csr_array

    indptr, indices, data = rows
    S, J = P.shape
    # J stacked rows of a state, one after the other, are its row of sum_j diag(P_j) F_j
    weights = data * np.repeat(P.reshape(-1), np.diff(indptr))
    # gathered by next state with short indices: half the memory traffic a period
    small = np.int32 if len(indices) < 2**31 else np.int64
    merged = csr_array((weights, indices.astype(small), indptr[::J].astype(small)), shape=(S, S))
    moves = merged.T.tocsr()
    return lambda mu: np.asarray(moves @ mu)
