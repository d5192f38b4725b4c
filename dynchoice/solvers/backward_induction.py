"""Finite horizon: backward induction, with values and probabilities of each period."""

from __future__ import annotations

import numpy as np

from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.typing import FloatArray


def backward_induction(
    model: DDC, u: FloatArray, terminal: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Solve ``V_t = T(V_{t+1})`` from the last period back.

    Parameters
    ----------
    model : DDC
        With ``horizon`` T.
    u : FloatArray, shape (S, J) or (T, S, J)
        Flow utility in utils.
    terminal : FloatArray, shape (S,), optional
        Value after the last period; zero by default.

    Returns
    -------
    V, v, pi, P : FloatArray
        Shapes (T, S), (T, S, J), (T, S, J), (T, S, J): ex-ante and choice-specific values,
        attentive and observed choice probabilities of each period.
    """
    assert model.horizon is not None
    T, (S, J, _) = model.horizon, model.shape
    V, v, pi, P = (np.empty((T, S, *rest)) for rest in ((), (J,), (J,), (J,)))
    ahead = np.zeros(S) if terminal is None else terminal
    for t in range(T - 1, -1, -1):
        ev = model.transitions.expect(ahead)
        flow = u if u.ndim == 2 else u[t]
        # written into each period's part of the arrays: nothing is copied
        kernels.soft_bellman(
            flow, ev, model.beta, model.perceived, model.default, v[t], V[t], pi[t], P[t]
        )
        ahead = V[t]
    return V, v, pi, P
