"""One solver for one model: its Bellman equation, derivatives by the parameters, moves of mass.

Whoever needs a model solved makes a :class:`Solver`: ``dc.solve``, likelihoods, bounds, grids of
types, draws of a forecast. It holds the operator (:mod:`dynchoice.solvers.bellman`) and the
linear system (:mod:`dynchoice.solvers.linear`) in the layout that suits the law of motion, flat or
by level, and keeps their work arrays from one parameter vector to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np

from dynchoice.errors import ConvergenceError
from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.transitions import Transitions
from dynchoice.solvers.bellman import bellman_of, over_choices
from dynchoice.solvers.fixed_point import FixedPoint, fixed_point
from dynchoice.solvers.linear import GMRES_RTOL, PolicySystem, one_blas_thread
from dynchoice.typing import FloatArray


class Solver:
    """A model of infinite horizon, solved at one point after another.

    Parameters
    ----------
    model : DDC
        Transitions known.

    Attributes
    ----------
    bellman : Bellman
        The operator at the last solution: ``v``, ``pi`` and ``P`` (S, J) are overwritten by the
        next one, so copy what must stay.
    x : FloatArray, shape (S, J, K)
        Utility features.
    system : PolicySystem
        ``(I - beta F^P)`` at the policy given to :meth:`hold`; ``failures`` says what went wrong.

    Examples
    --------
    >>> import dynchoice as dc
    >>> states = dc.StateSpace(on=range(1))
    >>> model = dc.DDC(states=states, choices=["a", "b"], beta=0.5,
    ...                utility=dc.Utility.from_array(np.zeros((1, 2, 1)), ["k"]),
    ...                transitions=dc.Transitions.dense(np.ones((1, 2, 1))))
    >>> solver = Solver(model)
    >>> solver.value(solver.solve(model.flow_utility([0.0]))).round(4).tolist()
    [1.3863]
    """

    def __init__(self, model: DDC) -> None:
        self.model = model
        self.system = PolicySystem(model.transitions, model.beta)
        self.bellman = bellman_of(model, self.system)
        self.x = np.ascontiguousarray(model.utility.x)  # as kernels take it
        self._expanded: tuple[FloatArray, FloatArray, FloatArray] | None = None

    # the fixed point ---------------------------------------------------------------------------

    def solve(
        self,
        u: FloatArray,
        start: FloatArray | None = None,
        tol: float = 1e-12,
        maxiter: int = 50,
    ) -> FixedPoint:
        """Solve at flow utility ``u`` (S, J), minus infinity where a choice is not offered.

        ``start`` (S,) is a guess of ``V`` or of relative values. A guess may be too far off for
        Newton's steps: where they do not arrive, the solution is found again from nothing.
        """
        point = fixed_point(self.bellman, self.system, u, start, tol, maxiter)
        if start is not None and not point.converged:
            point = fixed_point(self.bellman, self.system, u, None, tol, maxiter)
        return point

    def value(self, point: FixedPoint) -> FloatArray:
        """Return ``V`` (S,) in utils of a fixed point, level included."""
        return point.h + point.gain / (1 - self.model.beta)

    def policy(self) -> FloatArray:
        """Return the policy that members expect of themselves (S, J), as a copy."""
        return self.bellman.P.copy()

    def observed(self) -> FloatArray:
        """Return the choice probabilities that an observer sees (S, J), as a copy."""
        return self.bellman.observed().copy()

    # many solutions near one -------------------------------------------------------------------

    def expand(self, theta: FloatArray, start: FloatArray | None = None) -> FixedPoint:
        """Solve at parameters (K,) and keep ``dV/dtheta`` there, for :meth:`solve_near`."""
        self._expanded = None
        point = self.solve(self.model.flow_utility(theta), start)
        if point.converged and self.model.beta > 0:  # without a future h is zero everywhere
            self.hold()
            slope = self.invert(over_choices(self.bellman.P, self.x))
            self._expanded = theta, point.h, slope
        return point

    def solve_near(self, theta: FloatArray) -> FixedPoint:
        """Solve at parameters (K,) from the first-order guess of where :meth:`expand` was."""
        start = None
        if self._expanded is not None:
            base, h, slope = self._expanded
            start = h + slope @ (theta - base)
        return self.solve(self.model.flow_utility(theta), start)

    # derivatives, at one policy ----------------------------------------------------------------

    def hold(self, policy: FloatArray | None = None) -> None:
        """Factor the linear system at a policy (S, J); at the last solution's where none is given.

        Failures of earlier policies are forgotten.
        """
        self.system.failures.clear()
        if policy is None:
            self.bellman.hand_policy(self.system)
        else:
            self.system.factor(policy)

    def invert(
        self, right: FloatArray, rtol: float = GMRES_RTOL, guess: FloatArray | None = None
    ) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (S,) or (S, K) at the policy held."""
        return self.system.solve(right, rtol=rtol, guess=guess)

    def adjoint(self, m: FloatArray, direct: FloatArray | None = None) -> FloatArray:
        """Return ``(I - beta F^P)^{-T} (direct + beta F' m)`` (S,) for ``m`` (S, J).

        What a function of choice-specific values (with gradient ``m``) and of ``V`` (``direct``)
        owes to the flow utility of each state: one transposed solve instead of one a parameter.
        """
        pushed = self.model.beta * self.model.transitions.push(m)
        if direct is not None:
            pushed = direct + pushed
        return self.system.solve(pushed, transposed=True)

    def derivative(
        self, rtol: float = GMRES_RTOL, guess: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return ``dV/dtheta`` (S, K) and ``dv/dtheta`` (S, J, K) at the last solution.

        By the implicit function theorem (Rust 1988; Iskhakov et al. 2016):
        ``dV = (I - beta F^P)^{-1} sum_j P_j x_j``, ``dv_j = x_j + beta F_j dV``. The policy is held
        afterwards. Look at ``system.failures`` before the result is trusted.
        """
        self.hold()
        dV = self.invert(over_choices(self.bellman.P, self.x), rtol, guess)
        dv = self.model.transitions.expect(dV)  # a new array, so it may be changed in place
        dv *= self.model.beta
        dv += self.x
        return dV, dv

    def log_ccp_derivative(self, dv: FloatArray, observed: FloatArray) -> FloatArray:
        """Return ``d log P / d theta`` (S, J, K) of what is observed, from ``dv`` (S, J, K)."""
        out = np.empty_like(dv)
        model = self.model
        kernels.log_ccp_derivative(
            self.bellman.pi, observed, model.attention, model.default, dv, out
        )
        return out

    # mass --------------------------------------------------------------------------------------

    def mover(self, policy: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return the map of a distribution (S,) to the next period's under a policy (S, J)."""
        return mover(self.model.transitions, policy)


def mover(transitions: Transitions, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Return the map of a distribution (S,) to the next period's under a policy ``P`` (S, J).

    Rows that can be expanded become one matrix, gathered by next state; larger products of laws are
    applied law by law.
    """
    arrivals = transitions.arrivals
    if arrivals is None:
        return lambda mu: transitions.push(mu[:, None] * P)
    pattern, cell, data = arrivals
    moves = copy(pattern)  # shares its indices
    moves.data = data * P.reshape(-1)[cell]
    return lambda mu: np.asarray(moves @ mu)


def ccp_derivative(
    model: DDC, theta: FloatArray, start: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return observed probabilities ``P`` (S, J) and ``d log P / d theta`` (S, J, K).

    Raises
    ------
    ConvergenceError
        The model or its derivative cannot be solved at these parameters.
    """
    with one_blas_thread():
        solver = Solver(model)
        point = solver.solve(model.flow_utility(theta), start)
        if not point.converged:
            raise ConvergenceError(point.message)
        dv = solver.x  # without a future values are flow utility
        if model.beta > 0:
            _, dv = solver.derivative()
            if solver.system.failures:
                raise ConvergenceError(f"derivative of the values: {solver.system.failures[-1]}")
        P = solver.observed()
        return P, solver.log_ccp_derivative(dv, P)


def state_information(P: FloatArray, dlogp: FloatArray) -> FloatArray:
    """Return one choice's information by state, ``sum_j P_j dlogP_j dlogP_j'`` (S, K, K)."""
    return np.asarray(np.einsum("sj,sjk,sjl->skl", P, dlogp, dlogp))
