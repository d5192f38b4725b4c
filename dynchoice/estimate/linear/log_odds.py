"""Log-odds of cells by region and period, and how sure one can be of them."""

from __future__ import annotations

import numpy as np

from dynchoice.model.attention import unmix
from dynchoice.model.ddc import DDC
from dynchoice.typing import FloatArray


def sampling(model: DDC, pooled: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return members that a cell needs (S,) and variances of one member's log pi (S, J).

    With attention ``a`` below one ``pi = (P - (1 - a) 1{default}) / a``: the default's
    probability must lie four standard errors above ``1 - a`` for its logarithm to mean
    anything. Judged by pooled probabilities, so that no cell is chosen by its own outcome.
    """
    rows = np.arange(len(pooled))
    P = pooled[rows, model.default]
    margin = P - (1 - model.attention)
    with np.errstate(divide="ignore"):
        certain = np.where(
            model.attention < 1, 16 * P * (1 - P) / np.maximum(margin, 1e-12) ** 2, 0.0
        )
        certain[(model.attention < 1) & (margin <= 0)] = np.inf
    var_log = 1 / np.maximum(pooled, 1e-12)
    mixed = model.attention < 1
    slope = P * (1 - P) / np.maximum(margin, 1e-6) ** 2
    var_log[rows[mixed], model.default[mixed]] = slope[mixed]
    return certain, var_log


def log_odds(model: DDC, n: FloatArray, correction: str) -> tuple[FloatArray, FloatArray]:
    """Return logs of attentive probabilities, and psi, each (R, T, S, J)."""
    offered = model.available
    N = n.sum(axis=3, keepdims=True)
    if correction == "none":
        P = np.where(N > 0, n / np.maximum(N, 1e-300), 1 / offered.sum(axis=1, keepdims=True))
        P = np.where(offered, np.maximum(P, 1e-6), 0.0)
        P /= P.sum(axis=3, keepdims=True)
    else:
        P = np.where(offered, (n + 0.5) / (N + offered.sum(axis=1, keepdims=True) / 2), 0.0)
    pi = P
    if (model.attention < 1).any():
        R, T = n.shape[:2]
        pi = np.stack([[unmix(model, P[r, t]) for t in range(T)] for r in range(R)])
    logs = np.log(np.where(pi > 0, pi, 1.0))
    default = logs[:, :, np.arange(len(offered)), model.default]
    psi = -logs + ((1 - model.attention) * default)[..., None]
    return logs, np.where(offered, psi, 0.0)
