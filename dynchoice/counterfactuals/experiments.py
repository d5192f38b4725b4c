"""Which experiment next: how much a roll-out would tell about a chosen counterfactual.

At the estimates, a state's choices carry the information ``I(s) = sum_j P_j dlogP_j dlogP_j'``. A
roll-out moves customers of some regions to other offers for some months; the design's information
is the sum of ``I`` over the member-months that the model expects where. With what the data hold
already, ``H``, the variance of a counterfactual with gradient ``g`` falls from ``g'H^{-1}g`` to
``g'(H + I_design)^{-1}g`` (Chaloner and Verdinelli 1995: Bayesian c-optimal design).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.engine import Engine
from dynchoice.counterfactuals.population import choices_by_region
from dynchoice.counterfactuals.roll_forward import move_between
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import SpecificationError, suggest
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.solvers.solver import ccp_derivative, state_information
from dynchoice.typing import FloatArray, Level

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
    regions: tuple[Level, ...] | None = None
    share: float = 0.5
    months: int = 12

    def __post_init__(self) -> None:
        checks.instance(self.scenario, f"roll-out {self.name!r}: scenario", Scenario)
        checks.whole(self.months, f"roll-out {self.name!r}: months", 1)
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise SpecificationError(
                f"roll-out {self.name!r}: share={self.share!r} must lie above 0 and at most at 1"
                " (0.5 for half of the customers)"
            )
        if self.regions is not None:
            object.__setattr__(self, "regions", tuple(checks.items(self.regions, "regions")))


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
    start: Panel | Counts,
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
    if not isinstance(results, Results):
        raise SpecificationError(
            f"rank_experiments() takes one Results, got {type(results).__name__}: one segment (or"
            " type) at a time"
        )
    results.require_model("the design of an experiment")
    checks.function(
        target,
        "target",
        "lambda fit: dc.forecast(fit, s, start=panel, draws=0).take_up['share'].iloc[-1]",
    )
    candidates = checks.items(candidates, "candidates")
    for candidate in candidates:
        checks.instance(candidate, "each of candidates", RollOut)
    K = len(results.theta)
    cov = np.asarray(results.cov_matrix)[:K, :K]
    if not np.isfinite(cov).all():
        results.draws(1)  # says which direction is flat
    value = checks.number(target(results), "target(results)")
    gradient = _gradient(results, target, np.sqrt(np.diag(cov)))
    today = float(np.sqrt(gradient @ cov @ gradient))
    if not today > 0:
        raise SpecificationError(
            "the target does not move with any parameter: no experiment can sharpen it"
        )
    prior = np.linalg.inv(cov)

    def std_error(information: FloatArray) -> float:
        """Return the target's standard error with more information (K, K)."""
        return float(np.sqrt(gradient @ np.linalg.solve(prior + information, gradient)))

    by_region = _start_by_region(start, results.model)
    waiting: dict[int, FloatArray] = {}
    rows = []
    with one_blas_thread():
        base = _Design(results, None)
        for candidate in candidates:
            months = candidate.months
            treated = _treated(candidate, by_region)
            untreated = [mu - treated.get(r, 0.0) for r, mu in by_region.items()]
            if months not in waiting:
                waiting[months] = base.total_information(by_region.values(), months)
            design = base.total_information(untreated, months) + _Design(
                results, candidate.scenario
            ).total_information(treated.values(), months)
            after, idle = std_error(design), std_error(waiting[months])
            rows.append(
                {
                    "roll_out": candidate.name,
                    "months": months,
                    "treated": float(sum(mu.sum() for mu in treated.values())),
                    "std_error": after,
                    "waiting": idle,
                    "shrinks": 1 - (after / today) ** 2,
                    "gain": 1 - (after / idle) ** 2,
                }
            )
    table = pd.DataFrame(rows).sort_values("std_error", kind="stable").reset_index(drop=True)
    return Ranking(table, value, today)


def _gradient(
    results: Results, target: Callable[[Results], float], std_errors: FloatArray
) -> FloatArray:
    """Return the target's derivative (K,) by the parameters, by central differences."""
    gradient = np.empty(len(std_errors))
    for k, std_error in enumerate(std_errors):
        ends = []
        for sign in (1, -1):
            theta = results.theta.copy()
            theta[k] += sign * STEP * std_error
            ends.append(checks.number(target(replace(results, theta=theta)), "target(results)"))
        gradient[k] = (ends[0] - ends[1]) / (2 * STEP * std_error)
    return gradient


class _Design:
    """The information that customers give under one scenario: solved once, for any start."""

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
        standing = self.base.blocks.blocked(mu)
        if engine is not self.base or self.place is not None:
            standing = move_between(self.base, engine, self.place, standing)
        total = np.zeros_like(standing)
        for _ in range(months):
            total += standing
            standing = np.stack([b.push_once(i, standing[i], engine.base.P[i]) for i in range(b.B)])
        return np.asarray(np.einsum("s,skl->kl", b.by_state(total), self.info))

    def total_information(self, regions: Iterable[FloatArray], months: int) -> FloatArray:
        """Return the information (K, K) of the customers (S,) of all regions together."""
        total = np.zeros(self.info.shape[1:])
        return sum((self.information(mu, months) for mu in regions), total)


def _start_by_region(start: Panel | Counts, model: DDC) -> dict[Level, FloatArray]:
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
    out: dict[Level, FloatArray] = {}
    for parts in choices_by_region(counts).values():
        for region, n in parts:
            out[region] = out.get(region, 0.0) + push(np.ascontiguousarray(n))
    return out


def _treated(candidate: RollOut, by_region: dict[Level, FloatArray]) -> dict[Level, FloatArray]:
    """Return treated customers (S,) by region."""
    if candidate.regions is None:
        return {r: candidate.share * mu for r, mu in by_region.items()}
    names = {str(r): r for r in by_region}
    empty = [r for r in candidate.regions if str(r) not in names]
    if empty:
        raise SpecificationError(
            f"roll-out {candidate.name!r}: nobody lives in region {empty[0]!r}."
            f"{suggest(empty[0], names)}"
        )
    return {names[str(r)]: by_region[names[str(r)]] for r in candidate.regions}
