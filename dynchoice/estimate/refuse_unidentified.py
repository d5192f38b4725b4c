"""What nothing identifies, told before an estimate is attempted."""

from __future__ import annotations

import numpy as np

from dynchoice.errors import IdentificationError
from dynchoice.estimate.likelihood import Evaluation, Likelihood
from dynchoice.inference.diagnostics import Identification
from dynchoice.model.ddc import DDC


def refuse_unidentified(model: DDC, likelihood: Likelihood, at: Evaluation) -> None:
    """Raise if some direction of the parameters moves no choice in any state that was seen.

    The expected information at the start, ``sum_s n_s sum_j P_j dlogP_j dlogP_j'``, is zero
    along such a direction whatever the choices made.
    """
    n = getattr(likelihood, "n_t", likelihood.n)
    weight = n.sum(axis=-1, keepdims=True) * at.P
    flatter = at.dlogp.reshape(-1, at.dlogp.shape[-1])
    information = (flatter * weight.reshape(-1, 1)).T @ flatter
    size = np.sqrt(np.maximum(np.diag(information), 0) / likelihood.total)
    # rounding of dlogP where it ought to be zero: dV carries errors of eps / (1 - beta)
    reach = np.abs(at.dV).reshape(-1, at.dV.shape[-1]).max(axis=0)
    rounding = 1e-13 * reach / max(1 - likelihood.model.beta, 1e-6)
    extent = np.abs(model.utility.x).reshape(-1, len(model.names)).max(axis=0)
    dead = size <= np.maximum(rounding, 1e-9 * extent)
    if dead.any():
        names = ", ".join(repr(n) for n, d in zip(model.names, dead, strict=True) if d)
        raise IdentificationError(
            f"parameter(s) {names} move no choice in any state that was seen: their features do"
            " not differ across the choices offered there (nor change where choices lead). Drop"
            " them, or interact them with the choice"
        )
    flat = Identification.of(model.names, information).flat
    if flat:
        raise IdentificationError(
            "the data cannot tell these parameters apart, whatever their values; the likelihood"
            f" does not change along: {'; '.join(flat)}. Drop one of them or combine them"
        )
