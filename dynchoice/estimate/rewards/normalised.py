"""Rewards that probabilities and laws of motion imply, once one combination of them is known.

Choice probabilities and transitions leave one number a state of the rewards free (Kalouptsidi,
Scott and Souza-Rodrigues 2021; reference, 6.1). A reference policy ``mu(a|s)`` whose expected
reward ``g(s) = sum_a mu(a|s) r(s,a)`` is known pins it down. An anchor choice is the special case
of all of ``mu`` on one choice. With mean-zero shocks and

    psi(s,a) = V(s) - v(s,a) = -log pi(a|s) + (1 - attention) log pi(default|s),

    V = (I - beta F_mu)^{-1} (g + sum_a mu_a psi_a),
    r(s,a) = V(s) - psi(s,a) - beta E[V(s') | s, a].

With full attention these are equations (i)-(iii) of Deep PQR (Geng, Nassif, Manzanares, Reppen and
Sircar 2020; ``W = V - psi_anchor``) and the theorem of GenPQR (van der Laan, Kallus and Bibaut
2025; ``V = -sum_a mu_a Q_a``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynchoice.errors import ConvergenceError
from dynchoice.model.attention import psi
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import PolicySystem, one_blas_thread
from dynchoice.typing import FloatArray


@dataclass(frozen=True)
class Normalised:
    """Rewards ``r`` (S, J) and value ``V`` (S,) under a normalisation, and how they move.

    Attributes
    ----------
    model : DDC
        Its laws of motion, discount factor and choice sets; not its utility.
    P : FloatArray, shape (S, J)
    mu : FloatArray, shape (S, J)
        Reference policy.
    psi, V, r : FloatArray
        See the module's docstring.
    system : PolicySystem
        Of ``I - beta F_mu``.
    """

    model: DDC
    P: FloatArray
    mu: FloatArray
    psi: FloatArray
    V: FloatArray
    r: FloatArray
    system: PolicySystem

    @property
    def Q(self) -> FloatArray:
        """Choice-specific values (S, J)."""
        return np.asarray(self.V[:, None] - self.psi)

    def features(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return features (S, J, K) normalised as the reward is, and their values (S, K).

        A reward ``x theta`` whose reference policy earns ``G theta = sum_a mu_a x_a theta`` looks,
        normalised to zero, like ``(x - B G) theta`` with ``B g = h - beta F h`` and
        ``h = (I - beta F_mu)^{-1} g``: the columns of ``A_a`` of Kalouptsidi, Scott and
        Souza-Rodrigues (2021). Where the reference's features are zero they are ``x`` itself.
        """
        G = np.ascontiguousarray((self.mu[:, :, None] * x).sum(axis=1))
        if not G.any():
            return x, G
        h = self.solved(G)
        moved = h[:, None, :] - self.model.beta * self.model.transitions.expect(h)
        return np.where(self.model.available[:, :, None], x - moved, 0.0), h

    def solved(self, b: FloatArray, transposed: bool = False) -> FloatArray:
        """Return ``(I - beta F_mu)^{-1} b``.

        Raises
        ------
        ConvergenceError
            The linear system was not solved.
        """
        with one_blas_thread():
            out = self.system.solve(np.ascontiguousarray(b), transposed=transposed)
        if self.system.failures:
            raise ConvergenceError(f"value of the reference policy: {self.system.failures[-1]}")
        return out

    def adjoint(self, b: FloatArray) -> FloatArray:
        """Return ``d`` (S, J) such that ``d(sum b r) = sum d (-dpsi - beta dF V)``.

        For a functional of the rewards with weights ``b`` (S, J), ``d = b - mu lambda`` with
        ``lambda = (I - beta F_mu)^{-T} (sum_a b_a - beta F'b)``. Per member-month, ``d`` is the
        weight of the efficient influence function of van der Laan, Bibaut and Kallus.
        """
        offered_weights = np.ascontiguousarray(np.where(self.model.available, b, 0.0))
        c = offered_weights.sum(axis=1) - self.model.beta * self.model.transitions.push(
            offered_weights
        )
        return np.asarray(offered_weights - self.mu * self.solved(c, transposed=True)[:, None])


def normalised(model: DDC, P: FloatArray, mu: FloatArray, g: FloatArray) -> Normalised:
    """Return the rewards that ``P`` and the model's laws imply where ``sum_a mu_a r_a = g``.

    Parameters
    ----------
    model : DDC
        Infinite horizon, transitions known; its utility is not used.
    P : FloatArray, shape (S, J)
        Observed choice probabilities, positive where a choice is offered.
    mu : FloatArray, shape (S, J)
        Reference policy, on choices that are offered.
    g : FloatArray, shape (S,)
        Its expected reward.

    Raises
    ------
    ConvergenceError
        The linear system was not solved.
    """
    system = PolicySystem(model.transitions, model.beta)
    gap = psi(model, P)
    with one_blas_thread():
        system.factor(np.ascontiguousarray(mu))
        V = system.solve(np.ascontiguousarray(g + (mu * gap).sum(axis=1)))
    if system.failures:
        raise ConvergenceError(f"value of the reference policy: {system.failures[-1]}")
    ahead = model.beta * model.transitions.expect(V)
    r = np.where(model.available, V[:, None] - gap - ahead, 0.0)
    return Normalised(model, P, mu, gap, V, r, system)
