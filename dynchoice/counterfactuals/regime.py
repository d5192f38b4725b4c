"""Regime: a model and policy in force, and how mass moves under them."""

from __future__ import annotations

import numpy as np

from dynchoice.model.ddc import DDC
from dynchoice.solvers.push_forward import mover
from dynchoice.typing import FloatArray, IntArray


class Regime:
    """A model and policy in force: how mass moves, prepared once and applied every period."""

    def __init__(self, model: DDC, P: FloatArray) -> None:
        self.transitions, self.P = model.transitions, P
        self._move = mover(model.transitions, P)

    def push(self, mu: FloatArray) -> FloatArray:
        """Return next period's distribution (S,)."""
        return self._move(mu)

    def flows(self, ahead: FloatArray) -> FloatArray:
        """Return ``P(j|s) E[ahead(s', k) | s, j]`` as (S, J * J)."""
        following = self.transitions.expect(np.ascontiguousarray(ahead))
        return np.asarray((self.P[:, :, None] * following).reshape(len(self.P), -1))


def push_path(
    before: Regime,
    after: Regime,
    mu: FloatArray,
    periods: int,
    starts: int,
    state_map: IntArray | None,
) -> tuple[FloatArray, FloatArray]:
    """Return shares (T, J) and flows (T - 1, J, J) of a path with one change of regime.

    ``before`` holds until period ``starts``, ``after`` from then on; ``state_map`` moves members
    when the change comes. ``mu`` (S,) sums to one.
    """
    J = before.P.shape[1]
    shares, flows = np.empty((periods, J)), np.empty((periods - 1, J, J))
    tables: dict[tuple[bool, bool], FloatArray] = {}
    for t in range(1, periods + 1):
        regime = after if t >= starts else before
        if t == starts and state_map is not None:
            moved_mass = np.bincount(state_map, weights=mu, minlength=len(mu))
            mu = np.asarray(moved_mass, dtype=np.float64)
        shares[t - 1] = mu @ regime.P
        if t == periods:
            break
        changes = t + 1 == starts
        key = (t >= starts, changes)
        if key not in tables:
            ahead = after.P if t + 1 >= starts else before.P
            moved = changes and state_map is not None
            tables[key] = regime.flows(ahead[state_map] if moved else ahead)
        flows[t - 1] = (mu @ tables[key]).reshape(J, J)
        mu = regime.push(mu)
    return shares, flows
