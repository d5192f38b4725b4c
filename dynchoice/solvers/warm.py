"""Many solutions of one model at nearby parameters: draws, scenarios, segments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynchoice.model.ddc import DDC
from dynchoice.solvers.bellman import bellman_of, over_choices
from dynchoice.solvers.infinite import FixedPoint, fixed_point
from dynchoice.solvers.linear import PolicySystem
from dynchoice.typing import FloatArray


@dataclass(frozen=True)
class WarmSolution:
    """``V`` (S,) in utils, observed ``P`` (S, J), the fixed point's status, and the ``policy``
    (S, J) that members expect of themselves (``P`` unless they are naive)."""

    V: FloatArray
    P: FloatArray
    point: FixedPoint
    policy: FloatArray


class WarmSolver:
    """Solve at parameters near a base, from ``V + dV/dtheta (theta - base)``.

    Parameters
    ----------
    model : DDC
        Infinite horizon, transitions known.
    base : FloatArray, shape (K,)
        Parameters to expand around.
    start : FloatArray, shape (S,), optional
        Value at (or near) the base.
    """

    def __init__(self, model: DDC, base: FloatArray, start: FloatArray | None = None) -> None:
        self.model = model
        self._system = PolicySystem(model.transitions, model.beta)
        self._bellman = bellman_of(model, self._system)
        self.base_params = base
        self._h: FloatArray | None = None
        self._slope: FloatArray | None = None
        self.base = self._run(base, start)
        if self.base.point.converged and model.beta > 0:
            self._system.factor(self.base.policy)
            right = over_choices(self.base.policy, model.utility.x)
            self._h, self._slope = self.base.point.h, self._system.solve(right)

    def at(self, params: FloatArray) -> WarmSolution:
        """Solve at parameters (K,)."""
        if np.array_equal(params, self.base_params):
            return self.base
        start = None
        if self._h is not None and self._slope is not None:
            start = self._h + self._slope @ (params - self.base_params)
        solution = self._run(params, start)
        return solution if solution.point.converged else self._run(params, None)

    def _run(self, params: FloatArray, start: FloatArray | None) -> WarmSolution:
        u = self.model.flow_utility(params)
        point = fixed_point(self._bellman, self._system, u, start)
        V = point.h + point.gain / (1 - self.model.beta)
        policy = self._bellman.P.copy()
        P = policy if self.model.sophisticated else self.model.observed(self._bellman.pi)
        return WarmSolution(V, P, point, policy)
