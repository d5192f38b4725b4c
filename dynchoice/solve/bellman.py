"""The soft Bellman operator of a model at given flow utilities.

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

import numpy as np

from dynchoice import kernels
from dynchoice.model.ddc import DDC
from dynchoice.typing import FloatArray


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
        self.root = np.unique(blocks, return_index=True)[1][blocks].astype(np.int64)
        self.v, self.pi, self.P = np.empty((S, J)), np.empty((S, J)), np.empty((S, J))
        self.T, self.gain, self.r = np.empty(S), np.empty(S), np.empty(S)
        self._no_future = np.zeros((S, J))

    def apply(self, u: FloatArray, h: FloatArray) -> float:
        """Evaluate at relative value ``h`` (S,) and return the residual ``max|T - h - gain|``."""
        ev = self.transitions.expect(h) if self.beta > 0 else self._no_future
        kernels.soft_bellman(
            u, ev, self.beta, self.attention, self.default, self.v, self.T, self.pi, self.P
        )
        return float(kernels.relative_residual(self.T, h, self.root, self.gain, self.r))

    def observed(self) -> FloatArray:
        """Return the probabilities (S, J) that an observer sees: ``P`` itself, or for naive
        members ``attention pi + (1 - attention) 1{default}``."""
        return self.P if self._model.sophisticated else self._model.observed(self.pi)

    def relative(self, V: FloatArray) -> FloatArray:
        """Return ``V`` less its value at each block's root."""
        return V - V[self.root]
