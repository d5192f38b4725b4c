"""Models as blocks of states: the layout for any model, and the form of a solution.

Forecasts and counterfactuals see every model as ``B`` blocks of ``n`` states that never reach each
other. Here all states are one block; :mod:`dynchoice.solvers.layout_levels` has many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dynchoice.errors import ConvergenceError
from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.solvers.solver import Solver
from dynchoice.typing import BoolArray, FloatArray, IntArray

TOL = 1e-12
"""Bound on the residual of a solution, as of :func:`dynchoice.solvers.infinite.fixed_point`."""


@dataclass(frozen=True)
class BlockSolution:
    """The solution of all blocks.

    Attributes
    ----------
    h, V : FloatArray, shape (B, n)
        Relative value, and ex-ante value in utils.
    pi, policy, P : FloatArray, shape (B, n, J)
        Attentive choice probabilities, what members expect of themselves, what is observed.
    residual, converged, sweeps
        Status.
    """

    h: FloatArray
    V: FloatArray
    pi: FloatArray
    policy: FloatArray
    P: FloatArray
    residual: float
    converged: bool
    sweeps: int

    @property
    def message(self) -> str:
        """Status in words."""
        state = "converged" if self.converged else "not converged"
        return f"{state}: residual {self.residual:.1e} after {self.sweeps} sweeps"


class PlainBlocks:
    """One block of all states, solved and pushed by the library's general solvers.

    Attributes
    ----------
    B, n, J, E : int
        Blocks, states of each, choices, and states that share a level (here: all).
    order : IntArray, shape (B, n)
        State code of each block's states.
    place : IntArray, shape (S,)
        The inverse: where each state stands among the blocks' states.
    by_choice : bool
        Whether arrays (B, n, J) are best stored choice by choice: any order in memory will do,
        but this one costs no copies.
    """

    by_choice = False

    def __init__(self, model: DDC, order: IntArray | None = None) -> None:
        self.model, self.beta = model, model.beta
        S, self.J, _ = model.shape
        self.order = np.arange(S)[None, :] if order is None else order
        self._as_is = order is None  # then nothing is gathered or copied
        self.B, self.n = self.order.shape
        self.E = self.n
        self.place = np.empty(S, dtype=np.int64)
        self.place[self.order.reshape(-1)] = np.arange(S)
        self.attention = np.ascontiguousarray(model.perceived[self.order])
        self.default = np.ascontiguousarray(model.default[self.order])
        self._solver: Solver | None = None

    def blocked(self, by_state: FloatArray) -> FloatArray:
        """Rearrange an array by state (S, ...) into one by block (B, n, ...)."""
        return np.ascontiguousarray(by_state[None] if self._as_is else by_state[self.order])

    def by_state(self, blocked: FloatArray) -> FloatArray:
        """Rearrange an array by block (B, n, ...) into one by state (S, ...)."""
        flat = blocked.reshape(self.B * self.n, *blocked.shape[2:])
        return flat if self._as_is else flat[self.place]

    def view(self, flat: FloatArray) -> FloatArray:
        """Return ``flat`` (..., B n J), in the order that suits the blocks, as (..., B, n, J)."""
        lead = flat.shape[:-1]
        if self.by_choice:
            return np.asarray(flat.reshape(*lead, self.B, self.J, self.n).swapaxes(-1, -2))
        return flat.reshape(*lead, self.B, self.n, self.J)

    def flat(self, x: FloatArray) -> FloatArray:
        """Return ``x`` (..., B, n, J) as (..., B n J): the reverse of :meth:`view`."""
        stored = x.swapaxes(-1, -2) if self.by_choice else x
        return np.ascontiguousarray(stored).reshape(*x.shape[:-3], -1)

    def observed(self, pi: FloatArray, policy: FloatArray) -> FloatArray:
        """Return observed probabilities (B, n, J): of the naive, not what they expect."""
        if self.model.sophisticated:
            return policy
        attention = self.blocked(self.model.attention)
        P = attention[..., None] * pi
        b, s = np.ogrid[: self.B, : self.n]
        P[b, s, self.default] += 1 - attention
        return P

    def key(self, b: int) -> bytes:
        """Return a key that is the same for blocks with the same law of motion."""
        return bytes([b])

    def closed(self, b: int) -> list[IntArray]:
        """Return the groups of a block's states that never reach each other."""
        groups = self.model.transitions.blocks[self.order[b]]
        return [np.flatnonzero(groups == g) for g in np.unique(groups)]

    def set_tables(self, tables: dict[str, FloatArray]) -> None:
        """Replace the probabilities of some laws (J or 1, G, n, n); all is laid out again."""
        F = self.model.transitions
        assert isinstance(F, Factored)
        bound = tuple(
            replace(law, table=tables[law.name]) if law.name in tables else law for law in F.bound
        )
        fresh = type(self)(self.model.unchecked(transitions=F.with_bound(bound)))
        self.__dict__.update(
            fresh.__dict__
        )  # in place: whoever holds these blocks gets the new laws

    @property
    def solver(self) -> Solver:
        """The solver of the whole model, made on first use."""
        if self._solver is None:
            self._solver = Solver(self.model)
        return self._solver

    def solve(
        self,
        u: FloatArray,
        start: FloatArray | None = None,
        tol: float = TOL,
        active: BoolArray | None = None,
    ) -> BlockSolution:
        """Solve every block at flow utilities ``u`` (B, n, J), from ``start`` (B, n) if given.

        Parameters
        ----------
        active : array (B,) of bool, optional
            Blocks that matter; others may be left at zero.
        """
        solver = self.solver
        guess = None if start is None else self.by_state(start)
        point = solver.solve(self.by_state(u), guess, tol)
        # copies: the solver's arrays are overwritten by its next solution
        pi, policy = self.blocked(solver.bellman.pi.copy()), self.blocked(solver.policy())
        return BlockSolution(
            h=self.blocked(point.h),
            V=self.blocked(solver.value(point)),
            pi=pi,
            policy=policy,
            P=self.observed(pi, policy),
            residual=point.residual,
            converged=point.converged,
            sweeps=solver.system.products,
        )

    def solve_linear(self, P: FloatArray, right: FloatArray, rtol: float = 1e-12) -> FloatArray:
        """Return ``(I - beta F^P)^{-1} right`` (B, n, K), zero at each block's first state.

        Raises
        ------
        ConvergenceError
            No method got there.
        """
        solver = self.solver
        solver.hold(self.by_state(P))
        values = self.blocked(solver.invert(self.by_state(right)))
        if solver.system.failures:
            raise ConvergenceError(f"a linear solve failed: {solver.system.failures[-1]}")
        return values - values[:, :1]  # derivatives of choices need no level of the values

    def policy_expect(self, b: int, x: FloatArray, P: FloatArray) -> FloatArray:
        """Return ``sum_j P_j E[x(s') | s, j]`` (n,) of one block."""
        return np.asarray((P * self.model.transitions.expect(x)).sum(axis=1))

    def backward(
        self, u: FloatArray, ahead: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return ``V`` (B, n), observed ``P`` and ``pi`` (B, n, J), given ``V`` a period later."""
        V, pi, policy, v = np.empty(ahead.shape), *(np.empty(u.shape) for _ in range(3))
        for b in range(self.B):
            ev = self.expect(b, ahead[b])
            kernels.soft_bellman(
                u[b],
                ev,
                self.beta,
                self.attention[b],
                self.default[b],
                v[b],
                V[b],
                pi[b],
                policy[b],
            )
        return V, self.observed(pi, policy), pi

    def expect(self, b: int, x: FloatArray) -> FloatArray:
        """Return ``E[x(s') | s, j]`` (n, J) of one block; the array may be overwritten later."""
        return self.model.transitions.expect(np.ascontiguousarray(x))

    def push_once(self, b: int, mu: FloatArray, P: FloatArray) -> FloatArray:
        """Return one block's distribution (n,) a period later."""
        return self.mover(b, P)(mu)

    def mover(self, b: int, P: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return the map of one block's distribution to the next period's, for many periods."""
        return self.solver.mover(P)

    def push(
        self,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        groups: int,
    ) -> tuple[FloatArray, FloatArray]:
        """Push ``mu`` (B, n), overwritten, for some periods, and add up who chooses what.

        Returns
        -------
        cells : FloatArray, shape (periods, B, groups, J)
            Mass by group of states and choice.
        values : FloatArray, shape (B, periods + 1, M)
            ``mu_t . worth[b, m]`` of each of the ``worth`` (B, M, n).
        """
        cells = np.zeros((periods, self.B, groups, self.J))
        values = np.zeros((self.B, periods + 1, worth.shape[1]))
        self._paths(mu, P, periods, worth, group, cells, values)
        return cells, values

    def _paths(
        self,
        mu: FloatArray,
        P: FloatArray,
        periods: int,
        worth: FloatArray,
        group: IntArray,
        cells: FloatArray,
        values: FloatArray,
    ) -> None:
        for b in range(self.B):
            if mu[b].any():  # a block that nobody is in stays empty
                move = self.mover(b, P[b])
                for t in range(periods):
                    values[b, t] += worth[b] @ mu[b]
                    np.add.at(cells[t, b], group, mu[b][:, None] * P[b])
                    mu[b] = move(mu[b])
                values[b, periods] += worth[b] @ mu[b]
