"""Simulated members: for questions about one member's path, and for tests with known truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import SpecificationError
from dynchoice.inference.results import Results
from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.solvers.solve import solve
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, repr=False)
class Paths:
    """Paths of members: states and choices (N, T), and the state after the last period (N,)."""

    model: DDC
    states: IntArray
    choices: IntArray
    after: IntArray

    def __repr__(self) -> str:
        N, T = self.states.shape
        return f"Paths({N:,} members x {T} periods)"

    def frame(self) -> pd.DataFrame:
        """Return one row per member and period: member, period, one column an axis, choice."""
        N, T = self.states.shape
        table = self.model.states.labels(self.states.reshape(-1))
        table.insert(0, "member", np.repeat(np.arange(N), T))
        table.insert(1, "period", np.tile(np.arange(T), N))
        labels = pd.Index(list(self.model.choices))
        table["choice"] = labels.take(self.choices.reshape(-1))
        return table


def simulate(
    results: Results | DDC,
    *,
    params: Mapping[str, float] | ArrayLike | None = None,
    scenario: Scenario | None = None,
    members: int = 1000,
    periods: int = 24,
    seed: int | np.random.Generator | None = 0,
    start: ArrayLike | None = None,
) -> Paths:
    """Simulate members' choices and states.

    Parameters
    ----------
    results : Results or DDC
        A model needs ``params``; given with results, they take the estimates' place.
    scenario : Scenario, optional
        In force from the first period on (``starts`` is not used here).
    members : int
    periods : int
    seed : int or Generator
    start : array (members,) of state codes, or (S,) weights over states, optional
        Default: the states that the panel showed; for a bare model, uniform.

    Returns
    -------
    Paths

    Raises
    ------
    SpecificationError
        Starts that do not fit; a model without parameters.
    """
    if not isinstance(results, Results | DDC):
        hint = "; for one type: results.type(q)" if hasattr(results, "type") else ""
        if hasattr(results, "newcomers"):
            hint = ": pass club.model(), params=club.theta(), start=club.newcomers()"
        raise SpecificationError(
            f"simulate() takes Results or a DDC, got {type(results).__name__}{hint}"
        )
    if isinstance(results, Results):
        results.require_model("a simulation")
        model = results.model
        theta = results.theta if params is None else model.vector(params)
        weights = results.counts.sum(axis=1)
    else:
        if params is None:
            raise SpecificationError("simulate(model) needs params=")
        model, theta = results, results.vector(params)
        weights = np.ones(model.states.size)
    checks.whole(members, "members", 1)
    checks.whole(periods, "periods", 1)
    rng = np.random.default_rng(seed)
    codes = _starts(start, weights, members, rng)
    if scenario is not None:
        applied = scenario.applied(model)
        codes = codes if applied.place is None else applied.place[codes]
        model, theta = applied.model, applied.theta(theta)
    if model.horizon is not None and periods > model.horizon:
        raise SpecificationError(f"periods={periods} is beyond the horizon {model.horizon}")
    ccp = solve(model, theta, strict=True).ccp
    P = ccp if ccp.ndim == 3 else ccp[None]  # a finite horizon has one for each period
    cdf = np.cumsum(P, axis=2)
    states = np.empty((members, periods), dtype=np.int64)
    choices = np.empty_like(states)
    stacked = model.transitions.stacked()
    if stacked is None:
        assert isinstance(model.transitions, Factored)
        for t in range(periods):
            states[:, t] = codes
            table = cdf[min(t, len(cdf) - 1)][codes]
            draw = rng.random(members)
            choices[:, t] = np.minimum((draw[:, None] >= table).sum(axis=1), P.shape[2] - 1)
            codes = draw_axes(model.transitions, codes, choices[:, t], rng)
        return Paths(model, states, choices, codes)
    indptr, indices, data = stacked
    total = np.concatenate([[0.0], np.cumsum(data)])
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    cdf_next = total[1:] - total[indptr[:-1]][rows]
    draws = rng.random((members, periods, 2))
    after = np.empty(members, dtype=np.int64)
    kernels.simulate_members(
        codes, cdf, indptr, indices, cdf_next, draws, 0, states, choices, after
    )
    return Paths(model, states, choices, after)


def draw_axes(F: Factored, codes: IntArray, choice: IntArray, rng: np.random.Generator) -> IntArray:
    """Draw next states axis by axis, for products too large to expand."""
    following = np.zeros_like(codes)
    strides = np.r_[np.cumprod(F.states.shape[:0:-1])[::-1], 1].astype(np.int64)
    for law in F.bound:
        now, group = F.own(law)[codes], F.group(law)[codes]
        row = choice if law.by_choice else np.zeros_like(choice)
        if law.following is not None:
            level = law.following[row, group, now]
        else:
            assert law.table is not None
            cdf = np.cumsum(law.table[row, group, now], axis=1)
            draw = rng.random(len(codes))
            level = np.minimum((draw[:, None] >= cdf).sum(axis=1), law.n - 1)
        following += level * strides[law.axes[-1]]
    return following


def _starts(
    start: ArrayLike | None, weights: FloatArray, members: int, rng: np.random.Generator
) -> IntArray:
    """Return the state code (members,) in which each member starts."""
    S = len(weights)
    if start is None:
        return rng.choice(S, size=members, p=weights / weights.sum()).astype(np.int64)
    a = np.asarray(start)
    if a.dtype.kind in "iu" and a.shape == (members,):
        if a.min(initial=0) < 0 or a.max(initial=0) >= S:
            raise SpecificationError(f"start holds state codes outside 0 .. {S - 1}")
        return a.astype(np.int64)
    if a.dtype.kind == "f" and a.shape == (S,) and (a >= 0).all() and a.sum() > 0:
        return rng.choice(S, size=members, p=a / a.sum()).astype(np.int64)
    raise SpecificationError(
        f"start must be {members} integer state codes or {S} float weights, got {a.dtype} {a.shape}"
    )
