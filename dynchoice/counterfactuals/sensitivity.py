"""How a counterfactual outcome moves with the payoffs of the normalised choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dynchoice.counterfactuals.identified import Dynamics, map_payoffs, value_changes
from dynchoice.counterfactuals.payoff_map import Payoff
from dynchoice.model.ddc import DDC
from dynchoice.solvers.solver import Solver
from dynchoice.typing import FloatArray

Outcome: TypeAlias = Callable[[FloatArray, FloatArray], tuple[float, FloatArray, FloatArray]]
"""``(V~ (S~,), P~ (S~, J~)) -> (value, d/dV~ (S~,), d/dP~ (S~, J~))``."""


class Sensitivity:
    """An outcome as a function of the anchor's payoffs ``maintained + B z``, with its gradient.

    ``u~(z) = u~ + H A B z``. Each solution starts from the one before.

    Parameters
    ----------
    base : Dynamics
        Whose anchor's payoffs are free along ``B`` (S, D).
    new : DDC
        The counterfactual; its utility is not used.
    u : FloatArray, shape (S~, J~)
        Its payoffs at the maintained normalisation, minus infinity where not offered.
    payoff : Payoff
    outcome : Outcome
    welfare : (FloatArray, FloatArray), shapes (S,), optional
        Weights and baseline values, whose mean (at every ``z``) is taken off.
    shares_only : bool
        The outcome depends on probabilities alone.

    Attributes
    ----------
    matters : FloatArray, shape (r, D)
        Orthonormal directions that the outcome can depend on.
    solutions, failures : int
        How many models were solved; how many of them did not converge.
    """

    def __init__(
        self,
        base: Dynamics,
        new: DDC,
        u: FloatArray,
        payoff: Payoff,
        outcome: Outcome,
        B: FloatArray,
        welfare: tuple[FloatArray, FloatArray] | None = None,
        shares_only: bool = False,
    ) -> None:
        X, dynamics = base.values(B), Dynamics.of_model(new)
        self.model, self.u, self.outcome, self.B = new, u, outcome, B
        self.moves, _ = map_payoffs(payoff, base.flows(X), base, dynamics)
        rows, X_new = value_changes(dynamics, self.moves)
        w, V = (np.zeros(len(B)), np.zeros(len(B))) if welfare is None else welfare
        self._taken, self._level = w @ X, float(w @ V)
        # the outcome can depend on z through probabilities, and through the value's level
        matrix = [rows.reshape(-1, B.shape[1])]
        if welfare is not None:
            slope = outcome(np.zeros(len(X_new)), np.zeros(u.shape))[1]
            matrix.append((slope @ X_new - self._taken)[None])
        elif not shares_only:
            matrix.append(X_new)
        _, size, directions = np.linalg.svd(np.concatenate(matrix), full_matrices=False)
        self.matters = directions[size > 1e-9 * max(1.0, float(np.abs(B).max(initial=0.0)))]
        self._solver = Solver(new)
        self._h: FloatArray | None = None
        self.solutions, self.failures = 0, 0

    def __call__(self, z: FloatArray) -> tuple[float, FloatArray]:
        """Return the value and its gradient (D,) at ``z`` (D,).

        By the implicit function theorem ``dV~ = (I - beta F^P)^{-1} sum_a P_a du_a``. With
        ``q = d outcome / d v`` through the probabilities, the gradient with respect to payoffs is
        ``q + P y``, ``(I - beta F^P)' y = d outcome / dV + beta F' q``: one transposed solve.
        """
        solver = self._solver
        point = solver.solve(self.u + self.moves @ z, self._h)  # from the solution before
        self.solutions += 1
        self.failures += not point.converged
        self._h = point.h if point.converged else None
        value, slope_V, slope_P = self.outcome(solver.value(point), solver.bellman.observed())
        pi, policy = solver.bellman.pi, solver.policy()
        q = slope_P - (pi * slope_P).sum(axis=1, keepdims=True)
        q *= self.model.attention[:, None] * pi
        solver.hold(policy)
        y = solver.adjoint(q, slope_V)
        gradient = np.tensordot(q + policy * y[:, None], self.moves, axes=2) - self._taken
        return value - self._level - float(self._taken @ z), gradient
