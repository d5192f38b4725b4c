"""Which experiment next: how much a roll-out would tell about a chosen counterfactual.

At the estimates, a state's choices carry the information ``I(s) = sum_j P_j dlogP_j dlogP_j'``. A
roll-out moves customers of some regions to other offers for some months; the design's information
is the sum of ``I`` over the member-months that the model expects where. With what the data hold
already, ``H``, the variance of a counterfactual with gradient ``g`` falls from ``g'H^{-1}g`` to
``g'(H + I_design)^{-1}g`` (Chaloner and Verdinelli 1995: Bayesian c-optimal design).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.arguments import listed, number
from dynchoice.counterfactuals.engine import Engine
from dynchoice.counterfactuals.path import moved
from dynchoice.counterfactuals.population import choices_by_region
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import SpecificationError, suggest
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.panel.panel import Panel
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.solvers.solver import ccp_derivative, state_information
from dynchoice.typing import FloatArray

STEP = 0.05
"""Standard errors between the points of the target's gradient."""


@dataclass(frozen=True)
class RollOut:
    """A candidate experiment: a scenario for some regions (or a share of customers), some months.

    Parameters
    ----------
    name : str
    scenario : Scenario
        What the treated get: a bundle, prices, an offer; its dates are not used.
    regions : sequence, optional
        Regions treated; others of the same fit stay as they are and are observed too.
    share : float, optional
        Share of customers treated, where there are no regions.
    months : int
        How long it is watched.
    """

    name: str
    scenario: Scenario
    regions: tuple[Any, ...] | None = None
    share: float = 0.5
    months: int = 12

    def __post_init__(self) -> None:
        if not isinstance(self.scenario, Scenario):
            raise SpecificationError(
                f"roll-out {self.name!r}: scenario must be a Scenario, got {self.scenario!r}"
            )
        whole = isinstance(self.months, int | np.integer) and not isinstance(self.months, bool)
        if not whole or self.months < 1:
            raise SpecificationError(
                f"roll-out {self.name!r}: months={self.months!r} must be a whole number, at least 1"
            )
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise SpecificationError(
                f"roll-out {self.name!r}: share={self.share!r} must lie above 0 and at most at 1"
                " (0.5 for half of the customers)"
            )
        if self.regions is not None:
            object.__setattr__(self, "regions", tuple(listed(self.regions, "regions")))


@dataclass(frozen=True)
class Ranking:
    """Candidate experiments, the most telling first.

    Attributes
    ----------
    table : pandas.DataFrame
        roll_out, months, treated (customers), std_error (of the target, after), waiting (the same
        months without the roll-out), shrinks (share of today's variance removed), gain (beyond
        waiting).
    target : float
        Today's estimate of the counterfactual, ``std_error`` with it.
    """

    table: pd.DataFrame
    target: float
    std_error: float

    def __str__(self) -> str:
        return (
            f"Target today: {self.target:.6g} (std. error {self.std_error:.3g})\n"
            f"{self.table.to_string(index=False)}"
        )

    __repr__ = __str__


def rank_experiments(
    results: Results,
    target: Callable[[Results], float],
    candidates: Sequence[RollOut],
    *,
    start: Any,
) -> Ranking:
    """Rank candidate roll-outs by how much each shrinks the variance of a counterfactual.

    Parameters
    ----------
    results : Results
        The fit of the customers concerned.
    target : callable
        Takes a fit and returns the number wanted, e.g. ``lambda fit: dc.forecast(fit, s,
        start=panel, draws=0).take_up.query("...")["share"].item()``; it is called at parameters
        near the estimate.
    candidates : sequence of RollOut
    start : Panel or Counts
        Who stands where now, by region.

    Returns
    -------
    Ranking

    Raises
    ------
    SpecificationError
        A flat direction; unknown regions; scenarios that change states.
    """
    from dataclasses import replace

    if not isinstance(results, Results):
        raise SpecificationError(
            f"rank_experiments() takes one Results, got {type(results).__name__}: one segment (or"
            " type) at a time"
        )
    results.require_model("the design of an experiment")
    if not callable(target):
        raise SpecificationError(
            f"target={target!r} must be a function of a fit that returns a number, e.g. lambda fit:"
            " dc.forecast(fit, s, start=panel, draws=0).take_up['share'].iloc[-1]"
        )
    found = listed(candidates, "candidates")
    wrong = [c for c in found if not isinstance(c, RollOut)]
    if wrong:
        raise SpecificationError(f"candidates must be RollOut objects, got {wrong!r}")
    K = len(results.theta)
    cov = np.asarray(results.cov_matrix)[:K, :K]
    if not np.isfinite(cov).all():
        results.draws(1)
    se = np.sqrt(np.diag(cov))
    value = number(target(results), "what target returns")
    gradient = np.empty(K)
    for k in range(K):
        ends = []
        for sign in (1, -1):
            theta = results.theta.copy()
            theta[k] += sign * STEP * se[k]
            ends.append(number(target(replace(results, theta=theta)), "what target returns"))
        gradient[k] = (ends[0] - ends[1]) / (2 * STEP * se[k])
    today = float(np.sqrt(gradient @ cov @ gradient))
    if not today > 0:
        raise SpecificationError(
            "the target does not move with any parameter: no experiment can sharpen it"
        )
    prior = np.linalg.inv(cov)
    by_region = _start_by_region(start, results.model)
    waiting: dict[int, FloatArray] = {}
    rows = []
    with one_blas_thread():
        base = _Design(results, None)
        for c in found:
            treated = _treated(c, by_region)
            rest = {r: mu - treated.get(r, 0.0) for r, mu in by_region.items()}
            if c.months not in waiting:
                waiting[c.months] = sum(
                    (base.information(mu, c.months) for mu in by_region.values()),
                    np.zeros((K, K)),
                )
            new = _Design(results, c.scenario)
            told = sum(
                (base.information(mu, c.months) for mu in rest.values()), np.zeros((K, K))
            ) + sum((new.information(mu, c.months) for mu in treated.values()), np.zeros((K, K)))
            after = float(np.sqrt(gradient @ np.linalg.solve(prior + told, gradient)))
            same = prior + waiting[c.months]
            idle = float(np.sqrt(gradient @ np.linalg.solve(same, gradient)))
            rows.append(
                {
                    "roll_out": c.name,
                    "months": c.months,
                    "treated": float(sum(mu.sum() for mu in treated.values())),
                    "std_error": after,
                    "waiting": idle,
                    "shrinks": 1 - (after / today) ** 2,
                    "gain": 1 - (after / idle) ** 2,
                }
            )
    table = pd.DataFrame(rows).sort_values("std_error", kind="stable").reset_index(drop=True)
    return Ranking(table, value, today)


class _Design:
    """Information of customers under one scenario: solved once, pushed for any start."""

    def __init__(self, results: Results, scenario: Scenario | None) -> None:
        base, theta = results.model, results.theta
        self.place = None
        model = base
        if scenario is not None:
            applied = scenario.applied(base)
            model, self.place, theta = applied.model, applied.place, applied.theta(theta)
            if scenario.params:
                raise SpecificationError(
                    f"scenario {scenario.name!r} sets parameters: an experiment changes offers,"
                    " prices or bundles, and tells what parameters are"
                )
        self.base = Engine(base, results.theta)
        self.engine = self.base if model is base else Engine(model, theta)
        P, dlogp = ccp_derivative(model, theta)
        names = [model.names.index(n) for n in base.names]
        self.info = state_information(P, dlogp)[:, names][:, :, names]

    def information(self, mu: FloatArray, months: int) -> FloatArray:
        """Return the information (K, K) of customers ``mu`` (S,) over some months."""
        engine = self.engine
        b = engine.blocks
        at = self.base.blocks.blocked(mu)
        if engine is not self.base or self.place is not None:
            at = moved(self.base, engine, self.place, at)
        total = np.zeros_like(at)
        for _ in range(months):
            total += at
            at = np.stack([b.push_once(i, at[i], engine.base.P[i]) for i in range(b.B)])
        return np.asarray(np.einsum("s,skl->kl", b.by_state(total), self.info))


def _start_by_region(start: Any, model: DDC) -> dict[Any, FloatArray]:
    """Return customers (S,) in the next period by region (one region where there are none)."""
    counts = start.counts if isinstance(start, Panel) else start
    if not hasattr(counts, "at_period"):
        raise SpecificationError("start= must be the Panel or its Counts")
    if len(counts.segments) > 1:
        raise SpecificationError(
            f"start holds {len(counts.segments)} segments, the fit is of one: pass"
            " panel.counts.segment(label)"
        )
    push = model.transitions.push
    if counts.regions is None:
        return {ALL: push(np.ascontiguousarray(counts.at_period().sum(axis=0)))}
    out: dict[Any, FloatArray] = {}
    for parts in choices_by_region(counts).values():
        for region, n in parts:
            out[region] = out.get(region, 0.0) + push(np.ascontiguousarray(n))
    return out


def _treated(c: RollOut, by_region: dict[Any, FloatArray]) -> dict[Any, FloatArray]:
    """Return treated customers (S,) by region."""
    if c.regions is None:
        return {r: c.share * mu for r, mu in by_region.items()}
    names = {str(r): r for r in by_region}
    strange = [r for r in c.regions if str(r) not in names]
    if strange:
        raise SpecificationError(
            f"roll-out {c.name!r}: nobody lives in region {strange[0]!r}."
            f"{suggest(strange[0], names)}"
        )
    return {names[str(r)]: by_region[names[str(r)]] for r in c.regions}
