"""What following given choice probabilities is worth: by policy inversion, or by simulation.

With ``P`` given, the value of following it is linear in the parameters (Aguirregabiria and Mira
2002, eq. 7-8; mean-zero shocks):

    V = Wz theta + We,
    Wz = (I - beta F^P)^{-1} sum_j P_j x_j,
    We = (I - beta F^P)^{-1} (sum_j P_j offset_j - a sum_j pi_j log pi_j),

so that ``v_j = (x_j + beta F_j Wz) theta + offset_j + beta F_j We``. Hotz, Miller, Sanders and
Smith (1994) replace the inversion by averages over simulated paths.
"""

from __future__ import annotations

import numpy as np

from dynchoice import checks
from dynchoice.errors import ConvergenceError, SpecificationError
from dynchoice.estimate.choice_probabilities import static
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.kernels import core as kernels
from dynchoice.model.attention import unmix
from dynchoice.model.ddc import DDC
from dynchoice.solvers.bellman import over_choices
from dynchoice.solvers.linear import PolicySystem
from dynchoice.typing import FloatArray, IntArray

TRUNCATION = 1e-3
"""Discounted weight of what lies beyond the end of a simulated path."""
MAX_PERIODS = 5000
BATCHES = 20
"""Groups of paths whose spread measures the simulation error."""


def policy_flows(model: DDC, P: FloatArray, pi: FloatArray) -> FloatArray:
    """Return expected flows of following ``P``, (S, K + 1): features, then known part."""
    logs = np.where(pi > 0, np.log(np.where(pi > 0, pi, 1.0)), 0.0)
    entropy = -model.attention * (pi * logs).sum(axis=1)
    flow = np.where(model.available, model.utility.offset, 0.0)
    return np.column_stack([over_choices(P, model.utility.x), (P * flow).sum(axis=1) + entropy])


def valuation(
    model: DDC, system: PolicySystem, P: FloatArray, pi: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return ``Wz`` (S, K) and ``We`` (S,) of the policy, exactly; see the module docstring."""
    system.factor(P)
    W = system.solve(policy_flows(model, P, pi))
    if system.failures:
        raise ConvergenceError(f"values of following the probabilities: {system.failures[-1]}")
    return np.ascontiguousarray(W[:, :-1]), np.ascontiguousarray(W[:, -1])


def pseudo_likelihood(
    model: DDC, system: PolicySystem, n: FloatArray, P: FloatArray
) -> tuple[Likelihood, FloatArray, FloatArray]:
    """Return the pseudo-likelihood given first-stage probabilities ``P``, and ``Wz``, ``We``."""
    Wz, We = valuation(model, system, P, unmix(model, P))
    ahead = model.transitions.expect(np.column_stack([Wz, We]))
    x = model.utility.x + model.beta * ahead[:, :, :-1]
    offset = model.utility.offset + model.beta * ahead[:, :, -1]
    return Likelihood(static(model, x, offset), n), Wz, We


class SimulatedValues:
    """Values of Hotz, Miller, Sanders and Smith (1994): averages over simulated paths.

    Paths start from every state that can follow a seen one and share their random numbers (common
    across states, half of them antithetic); the first move is integrated exactly. ``batches``
    (B, S, K + 1) keeps means of groups of paths, whose spread is the simulation's variance.
    """

    def __init__(
        self, model: DDC, rows: IntArray, P: FloatArray, paths: int, seed: int | None
    ) -> None:
        stacked = model.transitions.stacked()
        if stacked is None:
            raise SpecificationError("valuation='simulation' needs the transitions expanded")
        checks.whole(paths, "paths", 2 * BATCHES)
        indptr, indices, data = stacked
        S, J, K = model.shape
        self.model, self.rows = model, rows
        steps = int(np.ceil(np.log(TRUNCATION) / np.log(model.beta))) if model.beta > 0 else 1
        self.periods = min(max(steps, 1), MAX_PERIODS)
        self.truncation = model.beta**self.periods
        flows = np.ascontiguousarray(policy_flows(model, P, unmix(model, P)))
        cdf_choice = np.cumsum(P, axis=1)
        total = np.cumsum(data)
        before = np.r_[0.0, total][indptr[:-1]]
        cdf_next = np.ascontiguousarray(total - np.repeat(before, np.diff(indptr)))
        reached = np.zeros(S, dtype=bool)
        for j in range(J):
            for r in rows * J + j:
                reached[indices[indptr[r] : indptr[r + 1]]] = True
        start = np.flatnonzero(reached)
        rng = np.random.default_rng(seed)
        each = -(-paths // (2 * BATCHES))
        self.paths = each * 2 * BATCHES
        self.batches = np.zeros((BATCHES, S, K + 1))
        for b in range(BATCHES):
            out = np.zeros((len(start), K + 1))
            for _ in range(each):
                draws = rng.random((self.periods, 2))
                for u in (draws, 1 - draws):
                    kernels.path_values(
                        start, cdf_choice, indptr, indices, cdf_next, u, flows, model.beta, out
                    )
            self.batches[b, start] = out / (2 * each)

    def index(self) -> tuple[FloatArray, FloatArray]:
        """Return features (R, J, K) and known part (R, J) of the choice-specific values."""
        model = self.model
        ahead = model.beta * model.transitions.expect(self.batches.mean(axis=0))[self.rows]
        x = model.utility.x[self.rows] + ahead[:, :, :-1]
        offset = model.utility.offset[self.rows] + ahead[:, :, -1]
        return np.ascontiguousarray(x), np.ascontiguousarray(offset)

    def score_variance(self, pulls: FloatArray, theta: FloatArray) -> FloatArray:
        """Return the simulation's variance (K, K) of the scores.

        ``pulls`` (K, R, J) is what the index of a row does to each score.
        """
        model = self.model
        y = self.batches[:, :, :-1] @ theta + self.batches[:, :, -1]
        ahead = model.beta * model.transitions.expect(np.ascontiguousarray(y.T))[self.rows]
        c = np.einsum("krj,rjb->bk", pulls, ahead)
        return np.atleast_2d(np.cov(c, rowvar=False)) / BATCHES
