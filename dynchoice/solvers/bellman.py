"""The soft Bellman operator of a model at given flow utilities.

Its fixed point is found in :mod:`dynchoice.solvers.fixed_point`, the arithmetic is
:func:`dynchoice.kernels.core.soft_bellman`.

    v(s, j) = u(s, j) + beta E[V(s') | s, j]
    pi(j|s) = exp(v(s, j)) / sum_i exp(v(s, i))
    V(s)    = a(s) log sum_j exp v(s, j) + (1 - a(s)) v(s, default(s))
    P(j|s)  = a(s) pi(j|s) + (1 - a(s)) 1{j = default(s)}

``a`` is the attention that members count on (``model.perceived``), so ``P`` is the policy that
they expect of themselves; what is observed of naive members is :meth:`Bellman.observed`.

Shocks have mean zero. The operator's Frechet derivative is ``beta sum_j diag(P_j) F_j`` (Iskhakov
et al. 2016; with attention, SOURCES.md 7.3). Everything works on the *relative* value ``h``, zero
at the root state of its block: ``V = h + gain / (1 - beta)``; so the constant of size
``1 / (1 - beta)`` never eats the digits of the differences that choices depend on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice.kernels import core as kernels
from dynchoice.kernels import levels as level_kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.level_product import Product
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from dynchoice.solvers.linear import PolicySystem


def over_choices(P: FloatArray, x: FloatArray) -> FloatArray:
    """Return ``sum_j P_j x_j`` (S, K) of features or derivatives ``x`` (S, J, K)."""
    out = np.empty(x.shape[::2])
    kernels.policy_average(P, x, out)
    return out


def bellman_of(model: DDC, system: PolicySystem) -> Bellman:
    """Return the operator in the layout of the linear system that goes with it."""
    return Bellman(model) if system.sweeps is None else LevelBellman(model, system.sweeps.whole)


class Bellman:
    """The operator with its work arrays; every array below is overwritten by the next call.

    Attributes
    ----------
    v, pi, P : FloatArray, shape (S, J)
        Choice-specific relative values, attentive and observed choice probabilities.
    T, gain, r : FloatArray, shape (S,)
        Operator applied to ``h``, ``(1 - beta)`` times the level, and ``T - h - gain``.
    """

    def __init__(self, model: DDC) -> None:
        S, J, _ = model.shape
        self.transitions, self.beta = model.transitions, model.beta
        self.attention, self.default = model.perceived, model.default
        self._model = model
        blocks = model.transitions.blocks if model.beta > 0 else np.arange(S)
        # the first state of each block; without a future every state is a block of its own
        self.root = np.unique(blocks, return_index=True)[1][blocks].astype(np.int64)
        self.T, self.gain, self.r = np.empty(S), np.empty(S), np.empty(S)
        self._allocate(S, J)

    def _allocate(self, S: int, J: int) -> None:
        self.v, self.pi, self.P = np.empty((S, J)), np.empty((S, J)), np.empty((S, J))
        self._no_future = np.zeros((S, J))

    def laid(self, u: FloatArray) -> FloatArray:
        """Return flow utility (S, J) in the layout that :meth:`apply` takes."""
        return u

    def hand_policy(self, system: PolicySystem) -> None:
        """Factor a linear system at the policy of the last :meth:`apply`."""
        system.factor(self.P)

    def apply(self, u: FloatArray, h: FloatArray) -> float:
        """Evaluate at relative value ``h`` (S,) and return the residual ``max|T - h - gain|``.

        ``u`` is flow utility as :meth:`laid` returns it.
        """
        ev = self.transitions.expect(h) if self.beta > 0 else self._no_future
        kernels.soft_bellman(
            u, ev, self.beta, self.attention, self.default, self.v, self.T, self.pi, self.P
        )
        return float(kernels.relative_residual(self.T, h, self.root, self.gain, self.r))

    def observed(self) -> FloatArray:
        """Return the choice probabilities (S, J) that an observer sees.

        They are ``P`` itself, or for naive members ``attention pi + (1 - attention) 1{default}``.
        """
        return self.P if self._model.sophisticated else self._model.observed(self.pi)

    def relative(self, V: FloatArray) -> FloatArray:
        """Return ``V`` less its value at each block's root."""
        return V - V[self.root]


class LevelBellman(Bellman):
    """The operator of a law of levels times two halves, on arrays by level (B, C, J, n).

    The numbers of a level stand together, choice by choice, so that exponentials and sums run along
    memory within the cache; ``v``, ``pi`` and ``P`` (S, J) are made when they are asked for. Little
    is allocated at each step: with millions of states, touching fresh memory costs as much as the
    sums.
    """

    def __init__(self, model: DDC, product: Product) -> None:
        self.law = product.trimmed(product.laid(model.available))
        super().__init__(model)

    def _allocate(self, S: int, J: int) -> None:
        law = self.law
        shape = (law.B, law.C, J, law.n)
        self._v, self._P = np.empty(shape), np.empty(shape)
        # of one level only: pi is needed nowhere but within the step, and is made again on demand
        self._pi, self._room = np.empty((2, J, law.n))
        self._h, self._T = np.empty((2, law.B, law.C, law.n))
        self._a, self._d = law.laid(self.attention), law.laid(self.default)

    def laid(self, u: FloatArray) -> FloatArray:
        """Return flow utility (S, J) by level (B, C, J, n)."""
        return self.law.laid(u)

    def hand_policy(self, system: PolicySystem) -> None:
        """Let sweeps use the policy of the last :meth:`apply`, which the next one overwrites."""
        assert system.sweeps is not None
        system.sweeps.factor(self._P)

    def apply(self, u: FloatArray, h: FloatArray) -> float:
        """Evaluate at relative value ``h`` (S,); ``u`` is flow utility by level."""
        law, v, T = self.law, self._v, self._T
        law.lay(h, self._h)
        law.expect_laid(self._h, v)
        for level in np.ndindex(law.B, law.C):
            # v holds expected values, and receives the choice-specific ones in their place
            level_kernels.level_bellman(
                u[level],
                v[level],
                self.beta,
                self._a[level],
                self._d[level],
                v[level],
                T[level],
                self._pi,
                self._P[level],
            )
        law.take(T, self.T)
        return float(kernels.relative_residual(self.T, h, self.root, self.gain, self.r))

    @property
    def v(self) -> FloatArray:  # type: ignore[override]
        """Choice-specific relative values (S, J)."""
        return self.law.by_state(self._v)

    @property
    def pi(self) -> FloatArray:  # type: ignore[override]
        """Attentive choice probabilities (S, J)."""
        pi = np.empty_like(self._v)
        # _T is scratch here: apply has copied it into T
        for level in np.ndindex(self.law.B, self.law.C):
            level_kernels.level_choice(self._v[level], self._T[level], pi[level], self._room)
        return self.law.by_state(pi)

    @property
    def P(self) -> FloatArray:  # type: ignore[override]
        """Policy (S, J)."""
        return self.law.by_state(self._P)
