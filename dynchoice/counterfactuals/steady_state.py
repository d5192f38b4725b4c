"""Steady states of memberships and their derivatives by prices and benefits.

(I - F^P') mu = 0, 1'mu = 1;        (I - F^P') dmu = sum_j F_j' (mu dP_j), 1'dmu = 0,
dV = (I - beta F^P)^{-1} sum_j P_j du_j,   dv_j = du_j + beta F_j dV,
dP_j = attention pi_j (dv_j - sum_i pi_i dv_i)                     (SOURCES.md 7.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynchoice import checks
from dynchoice.counterfactuals.accounts import Ledger, measures
from dynchoice.counterfactuals.engine import Engine, Policy, solve_transposed, steady_state
from dynchoice.counterfactuals.population import price_of_utility
from dynchoice.errors import ConvergenceError, SpecificationError
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray


@dataclass(frozen=True)
class Change:
    """How something moves when flow utility does: values, probabilities, stationary mass.

    ``dV``, ``dmu`` (B, n); ``dP`` (B, n, J).
    """

    dV: FloatArray
    dP: FloatArray
    dmu: FloatArray


class Stationary:
    """A membership's model solved at parameters, with its steady state in one offer.

    Parameters
    ----------
    model : DDC
        Built by Membership.
    theta : FloatArray, shape (K,)
    mass : FloatArray, shape (S,), optional
        Where customers stand today; only how they spread over offers matters. Default: all in the
        first offer.

    Raises
    ------
    SpecificationError, ConvergenceError
        No membership; no solution.
    """

    def __init__(self, model: DDC, theta: FloatArray, mass: FloatArray | None = None) -> None:
        if model.membership is None:
            raise SpecificationError("this needs a model built by Membership")
        self.model, self.theta = model, np.asarray(theta, dtype=np.float64)
        self.club = model.membership
        with one_blas_thread():
            self.engine = Engine(model, self.theta)
            b = self.engine.blocks
            start = self.club.newcomers() if mass is None else mass / mass.sum()
            if not self.policy.converged:
                raise ConvergenceError(self.policy.message)
            self.mu, converged = steady_state(self.engine, self.policy, b.blocked(start))
        if not converged:
            raise ConvergenceError("the steady state was not found to tolerance")

    @property
    def policy(self) -> Policy:
        """Values and probabilities."""
        return self.engine.base

    @cached_property
    def ledger(self) -> Ledger:
        """What a period amounts to."""
        return Ledger.of(self.club, self.engine.blocks)

    @property
    def alpha(self) -> float:
        """Utils per unit of money."""
        return price_of_utility(self.model, self.theta)

    @cached_property
    def measures(self) -> dict[str, float]:
        """Every measure of a period in the steady state, per customer."""
        b, ledger = self.engine.blocks, self.ledger
        cost = ledger.cost(self.policy.P)
        # push moves its argument on in place: the steady state itself is kept
        cells, values = b.push(
            self.mu.copy(), self.policy.P, 1, cost[:, None], ledger.group, ledger.groups
        )
        flow = self.engine.flow_value(self.theta, self.policy)
        surplus = float((self.mu * flow).sum()) / self.alpha
        entries, _ = ledger.read(cells, values.sum(axis=0)[:1, 0])
        named = {k: float(v) for k, v in measures(entries[0], ledger.names, surplus, 1.0).items()}
        chosen = {
            f"choosing {label}": float(cells[..., j].sum())
            for j, label in enumerate(self.club.choices)
        }
        return named | chosen

    def change(self, du: FloatArray) -> Change:
        """Return derivatives along a change of flow utility ``du`` (S, J), in utils."""
        engine, policy = self.engine, self.policy
        b, model = engine.blocks, self.model
        x = b.blocked(du)
        live = policy.pi > 0
        perceived = b.blocked(model.perceived)
        # V moves by what members expect of themselves, probabilities by what they do
        P = perceived[..., None] * policy.pi
        rows, cols = np.ogrid[: b.B, : b.n]
        P[rows, cols, b.default] += 1 - perceived
        with one_blas_thread():
            right = (P * np.where(live | (P > 0), x, 0.0)).sum(axis=2)
            relative = b.solve_linear(P, right[..., None])[..., 0]
            dV = np.empty_like(relative)
            dv = np.empty_like(x)
            for i in range(b.B):
                h = relative[i]
                ahead = b.policy_expect(i, h, P[i])
                level = (right[i, 0] + model.beta * ahead[0] - h[0]) / (1 - model.beta)
                dV[i] = h + level
                dv[i] = x[i] + model.beta * b.expect(i, dV[i])
            dv = np.where(live, dv, 0.0)
            mean = (policy.pi * dv).sum(axis=2, keepdims=True)
            dP = b.blocked(model.attention)[..., None] * policy.pi * (dv - mean)
            dmu = np.zeros_like(self.mu)
            for i in range(b.B):
                if self.mu[i].any():
                    inflow = b.push_once(i, np.ones(b.n), self.mu[i][:, None] * dP[i])
                    dmu[i] = solve_transposed(engine, policy, i, inflow)
        return Change(dV, dP, dmu)

    def price_direction(self, plan: str) -> FloatArray:
        """Return how utils (S, J) change per unit of money on a plan's price, refunds included."""
        return -self.alpha * self.money_direction(plan)

    def money_direction(self, plan: str) -> FloatArray:
        """Return how payments less refunds (S, J) change per unit of a plan's price."""
        club, contracts = self.club, self.club.contracts
        checks.known([plan], club.choices[1:], "plan")
        j = club.choices.index(plan)
        out = np.zeros((club.states.size, len(club.choices)))
        out[:, j] = club.by_contract(contracts.pays)[:, j]
        holds = club.by_contract(contracts.held) == j
        rule = club.plans[j - 1].refund
        due = holds & (np.ones_like(holds) if rule == "prorated" else club.unused)
        if rule != "none":
            out[due, 0] -= club.by_contract(contracts.refund_share())[due]
        out[np.isfinite(club.kept_prices()[:, j - 1])] = 0.0  # who keeps an old price
        return out
