"""How choice probabilities answer to the parameters, at a solution."""

from __future__ import annotations

import numpy as np

from dynchoice.errors import ConvergenceError
from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.solvers.bellman import bellman_of, over_choices
from dynchoice.solvers.infinite import fixed_point
from dynchoice.solvers.linear import PolicySystem, one_blas_thread
from dynchoice.typing import FloatArray


def ccp_derivative(
    model: DDC, theta: FloatArray, start: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return observed probabilities ``P`` (S, J) and ``d log P / d theta`` (S, J, K).

    By the implicit function theorem: ``dV = (I - beta F^P)^{-1} sum_j P_j x_j`` and
    ``dv_j = x_j + beta F_j dV`` (Rust 1988; Iskhakov et al. 2016). Infinite horizon.

    Raises
    ------
    ConvergenceError
        The model or its derivative cannot be solved at these parameters.
    """
    with one_blas_thread():
        system = PolicySystem(model.transitions, model.beta)
        bellman = bellman_of(model, system)
        u = model.utility.flow(theta)
        u[~model.available] = -np.inf
        point = fixed_point(bellman, system, u, start)
        if not point.converged:
            raise ConvergenceError(point.message)
        x = model.utility.x
        dv = np.array(x)
        if model.beta > 0:
            system.factor(bellman.P)
            dV = system.solve(over_choices(bellman.P, x))
            dv = x + model.beta * model.transitions.expect(dV)
            if system.failures:
                raise ConvergenceError(f"derivative of the values: {system.failures[-1]}")
        dlogp = np.empty_like(dv)
        P = bellman.observed().copy()
        kernels.log_ccp_derivative(bellman.pi, P, model.attention, model.default, dv, dlogp)
    return P, dlogp


def state_information(P: FloatArray, dlogp: FloatArray) -> FloatArray:
    """Return one choice's information by state, ``sum_j P_j dlogP_j dlogP_j'`` (S, K, K)."""
    return np.asarray(np.einsum("sj,sjk,sjl->skl", P, dlogp, dlogp))
