"""Engine: one model compiled for thousands of solutions and pushes at nearby parameters.

Every draw is re-solved. It starts from ``V + dV/dtheta (theta - base)``, so that Newton has little
left to do; blocks of states (offers) that nobody stands in are left out, and offers that are alike
in every price, benefit and law share one solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynchoice.model.ddc import DDC
from dynchoice.solvers.layout import TOL, BlockSolution, PlainBlocks
from dynchoice.solvers.layout_levels import blocks_of
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

SLOPE_RTOL = 1e-6
"""Accuracy of the slope: it only says where solutions start."""
WARM_UP = 24
"""Periods pushed before GMRES looks for a steady state: enough to leave the starting states."""


@dataclass(frozen=True)
class Policy:
    """Values ``V`` (B, n), observed probabilities ``P`` and unmixed ones ``pi`` (B, n, J)."""

    V: FloatArray
    P: FloatArray
    pi: FloatArray
    converged: bool = True
    message: str = "converged"


@dataclass(frozen=True)
class Features:
    """A model's features laid out by block, and which blocks are alike.

    ``x`` (K, B n J) with its offset (B n J,), minus infinity where not offered, in the order of
    :meth:`~dynchoice.solvers.layout.PlainBlocks.flat`; ``twin`` (B,) names for each block the
    first one that equals it in everything.
    """

    x: FloatArray
    offset: FloatArray
    twin: IntArray

    @classmethod
    def of(cls, model: DDC, b: PlainBlocks) -> Features:
        """Lay out a model."""
        u = model.utility
        x = np.stack([b.flat(column[b.order]) for column in np.moveaxis(u.x, -1, 0)])
        offset = b.flat(np.where(model.available, u.offset, -np.inf)[b.order])
        first_alike: dict[tuple[bytes, ...], int] = {}
        twin = np.arange(b.B)
        x_of_block, offset_of_block = x.reshape(len(x), b.B, -1), offset.reshape(b.B, -1)
        for i in range(b.B):
            key = (
                np.ascontiguousarray(x_of_block[:, i]).tobytes(),
                offset_of_block[i].tobytes(),
                b.attention[i].tobytes(),
                b.default[i].tobytes(),
                b.key(i),
                model.attention[b.order[i]].tobytes(),
            )
            twin[i] = first_alike.setdefault(key, i)
        return cls(x, offset, twin)


class Engine:
    """A model solved at a base point, ready to be solved at many points near it.

    Parameters
    ----------
    model : DDC
        Infinite horizon, transitions known.
    theta : FloatArray, shape (K,)
        Base parameters.
    active : array (B,) of bool, optional
        Blocks that matter; the others are not solved, and their values are zero.
    features : Features, optional
        The model's, where another engine has laid them out.
    """

    def __init__(
        self,
        model: DDC,
        theta: FloatArray,
        active: BoolArray | None = None,
        features: Features | None = None,
    ) -> None:
        self.model, self.theta = model, theta
        self.blocks = b = blocks_of(model)
        self.features = Features.of(model, b) if features is None else features
        self.twin = self.features.twin
        wanted = np.ones(b.B, dtype=bool) if active is None else active
        self._solved = np.zeros(b.B, dtype=bool)
        self._solved[self.twin[wanted]] = True
        self._h: FloatArray | None = None
        self._slope: FloatArray | None = None
        self._drawn = False
        self.last: FloatArray | None = None
        self._first = self._solve(self.flow(theta[None])[0], None)
        self.base = self._expand(self._first)

    def flow(self, thetas: FloatArray) -> FloatArray:
        """Return flow utility of parameter vectors (D, K) as (D, B, n, J)."""
        u = thetas @ self.features.x
        u += self.features.offset
        return self.blocks.view(u)

    def _solve(self, u: FloatArray, start: FloatArray | None, tol: float = TOL) -> BlockSolution:
        """Solve the blocks that matter, one of each that are alike."""
        return self.blocks.solve(u, start, tol, self._solved)

    def _expand(self, solution: BlockSolution) -> Policy:
        """Return the policy of all blocks, those that are alike taking their twin's."""
        V, P, pi = solution.V, solution.P, solution.pi
        if (self.twin != np.arange(len(self.twin))).any():
            V, P, pi = V[self.twin], P[self.twin], pi[self.twin]
        return Policy(V, P, pi, solution.converged, solution.message)

    def prepare(self) -> None:
        """Compute the value's derivative by the parameters, from which later solutions start."""
        if self._slope is not None or self.model.beta == 0:
            return
        b = self.blocks
        solution = self._first
        x = b.view(self.features.x)
        right = np.ascontiguousarray(np.einsum("bnj,kbnj->bnk", solution.policy, x))
        right[~self._solved] = 0.0
        self._h = solution.h
        self._slope = b.solve_linear(solution.policy, right, SLOPE_RTOL)

    def at(
        self,
        theta: FloatArray,
        tol: float = TOL,
        beyond: FloatArray | None = None,
        u: FloatArray | None = None,
        guess: FloatArray | None = None,
    ) -> Policy:
        """Solve at parameters (K,).

        Their flow utility ``u`` (B, n, J) and starting value ``guess`` (B, n) may be known already.
        ``beyond`` (B, n) is what the baseline's value had beyond its own first-order guess at the
        same draw: the scenario's will have nearly the same.
        """
        # with drawn laws the base point is another problem, though its parameters are the same
        if not self._drawn and np.array_equal(theta, self.theta):
            return self.base
        start = self.guesses(theta[None])[0] if guess is None else guess
        if start is not None and beyond is not None and beyond.shape == start.shape:
            start = start + beyond
        solution = self._solve(self.flow(theta[None])[0] if u is None else u, start, tol)
        self.last = solution.h
        return self._expand(solution)

    def guesses(self, thetas: FloatArray) -> list[FloatArray] | list[None]:
        """Return first-order guesses of the value (B, n) at parameters (D, K), if there are."""
        if self._slope is None or self._h is None:
            return [None] * len(thetas)
        rise = np.tensordot(thetas - self.theta, self._slope, axes=(1, 2))
        rise += self._h
        return list(rise)

    def backward(self, theta: FloatArray, ahead: FloatArray) -> Policy:
        """Return the policy of a period whose next period is worth ``ahead`` (B, n)."""
        V, P, pi = self.blocks.backward(self.flow(theta[None])[0], ahead)
        return Policy(V, P, pi)

    def flow_value(self, theta: FloatArray, policy: Policy) -> FloatArray:
        """Return the expected flow of experience (B, n) under the observed policy, in utils.

        ``r^P = attention sum_a pi_a (u_a - log pi_a) + (1 - attention) u_default`` (SOURCES.md
        7.5): what members get in a period, tastes of the chosen plans included.
        """
        b, model = self.blocks, self.model
        u = self.flow(theta[None])[0]
        pi = policy.pi
        live = pi > 0
        gain = np.where(live, pi * (np.where(live, u, 0.0) - np.log(np.where(live, pi, 1.0))), 0.0)
        a = b.blocked(model.attention)
        u_default = np.take_along_axis(u, b.default[..., None], axis=2)[..., 0]
        # the inner where keeps 0 * -inf away: the default of the attentive may not be offered
        return np.where(
            a < 1, a * gain.sum(axis=2) + (1 - a) * np.where(a < 1, u_default, 0), gain.sum(axis=2)
        )

    def with_tables(self, tables: dict[str, FloatArray]) -> None:
        """Replace the probabilities of estimated laws in place (the base point stays)."""
        if tables:
            self.blocks.set_tables(tables)
            self._drawn = True


class Solved(NamedTuple):
    """An engine's stationary policy at parameters ``theta`` (K,)."""

    engine: Engine
    policy: Policy
    theta: FloatArray


def transposed_operator(
    engine: Engine, policy: Policy, block: int, states: IntArray
) -> tuple[LinearOperator, FloatArray]:
    """Return ``x -> x - F^P' x + w 1'x`` on states of a block that nobody leaves, and ``w``,
    uniform on them."""
    from scipy.sparse.linalg import LinearOperator

    b = engine.blocks
    w = np.full(len(states), 1.0 / len(states))
    move = b.mover(block, np.ascontiguousarray(policy.P[block]))
    whole = np.zeros(b.n)  # one workspace: nobody leaves the states, so the rest stays zero

    def apply(x: FloatArray) -> FloatArray:
        x = np.asarray(x, dtype=np.float64).reshape(-1)
        whole[states] = x
        return x - move(whole)[states] + w * x.sum()

    return LinearOperator((len(states), len(states)), matvec=apply, dtype=np.float64), w


def solve_transposed(
    engine: Engine, policy: Policy, block: int, right: FloatArray, tol: float = 1e-12
) -> FloatArray:
    """Return ``x`` (n,) with ``(I - F^P') x = right`` and ``1'x = 0`` in each closed group of
    states; ``right`` sums to zero there."""
    from scipy.sparse.linalg import gmres

    out = np.zeros_like(right)
    for states in engine.blocks.closed(block):
        if np.abs(right[states]).max() > 0:
            system, w = transposed_operator(engine, policy, block, states)
            out[states], _ = gmres(
                system, right[states], rtol=tol, atol=0.0, restart=min(len(w), 200), maxiter=20
            )
    return out


def steady_state(
    engine: Engine, policy: Policy, start: FloatArray, tol: float = 1e-12
) -> tuple[FloatArray, bool]:
    """Return the stationary distribution (B, n) that ``start`` (B, n) leads to, and whether found.

    Each closed group of states (an offer) keeps its mass. Solves ``(I - F^P' + w 1') mu = w`` by
    GMRES; a pushed power would wait for annual cohorts, which cycle for decades.
    """
    from scipy.sparse.linalg import gmres

    b = engine.blocks
    mu, converged = np.zeros((b.B, b.n)), True
    for i in range(b.B):
        if not start[i].any():
            continue
        move = b.mover(i, np.ascontiguousarray(policy.P[i]))
        for states in b.closed(i):
            mass = float(start[i][states].sum())
            if mass <= 0:
                continue
            system, w = transposed_operator(engine, policy, i, states)
            guess = np.zeros(b.n)
            guess[states] = w
            for _ in range(WARM_UP):
                guess = move(guess)
            shares, info = gmres(
                system,
                w,
                x0=guess[states],
                rtol=tol,
                atol=0.0,
                restart=min(len(states), 200),
                maxiter=20,
            )
            shares = np.maximum(shares, 0.0)
            mu[i, states] = mass * shares / shares.sum()
            converged &= info == 0
    return mu, converged
