"""Welfare: what a change is worth to members, decided and experienced, by benefit and by segment.

Decision utility is the value that members act on, ``V``. Experience utility is what they get,

    W = (I - beta F^P)^{-1} r^P,
    r^P = lambda sum_a pi_a (u_a - log pi_a) + (1 - lambda) u_default,

with ``P`` and ``lambda`` as they are (SOURCES.md 7.5). Members who foresee their inattention have
``V = W``; for the naive the two differ, and a policy can raise one and lower the other. Money is
utils over the price parameter: the compensating variation of a change that starts today, as a
sum paid once (``pv``) or per period for good (``per period``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any, NamedTuple

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.engine import Engine
from dynchoice.counterfactuals.lifetime_value import present_values
from dynchoice.counterfactuals.population import Fits, Group, Start, population
from dynchoice.counterfactuals.roll_forward import values_seen_from
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.counterfactuals.steady_state import Stationary
from dynchoice.errors import ConvergenceError, SpecificationError
from dynchoice.membership.changes import OFFERED
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray

MANY = 10
"""Benefits up to which every subset is solved for a decomposition."""
SAME = 1e-9
"""Utils up to which a customer neither wins nor loses."""


def experience(engine: Engine, theta: FloatArray) -> FloatArray:
    """Return experience values ``W`` (B, n) at the engine's base policy."""
    flow = engine.flow_value(theta, engine.base)
    return present_values(engine, engine.base, [flow])[0]


@dataclass(frozen=True)
class Welfare:
    """Welfare under a scenario against the baseline.

    Attributes
    ----------
    table : pandas.DataFrame
        segment, decision, experience (utils, present value per customer), ``money`` (compensating
        variation from decision utility, present value), ``experienced money``, ``per period``,
        winners, losers (shares of customers whose decision utility rises, falls), ``lowest 5 %``
        and ``highest 5 %`` (money: quantiles over customers).
    by_state : dict
        Segment -> change of decision utility in money by state (S,).
    """

    scenario: Scenario
    table: pd.DataFrame
    by_state: dict[str, FloatArray]

    def __str__(self) -> str:
        return f"Welfare under {self.scenario.name!r}\n{self.table.to_string(index=False)}"

    __repr__ = __str__


def welfare(results: Fits, scenario: Scenario, *, start: Start = None) -> Welfare:
    """Return what a scenario that starts today is worth to today's customers.

    Parameters
    ----------
    results : Results, MixtureResults, Membership, or mapping of segment -> Results
    scenario : Scenario
        In force at once and for good; its dates are not used, a ``ramp`` is refused.
    start : as for :func:`dynchoice.forecast`

    Returns
    -------
    Welfare

    Raises
    ------
    SpecificationError, ConvergenceError
        A scenario that does not fit; no price parameter; no solution.
    """
    checks.instance(scenario, "scenario", Scenario, "one at a time")
    if scenario.ramp is not None:
        raise SpecificationError(
            f"scenario {scenario.name!r}: welfare() values a change for everybody from today;"
            " forecast(...).welfare knows ramp="
        )
    by_segment: dict[str, list[_Gain]] = {}
    with one_blas_thread():
        for group in population(results, start).groups:
            by_segment.setdefault(str(group.segment), []).append(_gain(group, scenario))
    if len(by_segment) > 1:
        by_segment[ALL] = [gain for gains in by_segment.values() for gain in gains]
    rows = [{"segment": segment, **_summary(gains)} for segment, gains in by_segment.items()]
    by_state = {
        segment: gains[0].decision / gains[0].group.alpha
        for segment, gains in by_segment.items()
        if len(gains) == 1
    }
    return Welfare(scenario, pd.DataFrame(rows), by_state)


class _Gain(NamedTuple):
    """What a scenario changes for a group: decision and experience utility by state (S,)."""

    group: Group
    decision: FloatArray
    experience: FloatArray


def _gain(group: Group, scenario: Scenario) -> _Gain:
    """Solve a group's model without and with a scenario."""
    applied = scenario.applied(group.model)
    before = Engine(group.model, group.theta)
    after = before
    if applied.model is not group.model or scenario.params:
        after = Engine(applied.model, applied.theta(group.theta))
    for engine in (before, after):
        if not engine.base.converged:
            raise ConvergenceError(f"{group.segment}: {engine.base.message}")
    V = values_seen_from(before, after, applied.place, after.base.V) - before.base.V
    W = values_seen_from(before, after, applied.place, experience(after, after.theta))
    W = W - experience(before, before.theta)
    return _Gain(group, before.blocks.by_state(V), before.blocks.by_state(W))


def _summary(gains: Sequence[_Gain]) -> dict[str, float]:
    """Return means, winners, losers and quantiles over the customers of some groups."""
    groups = [gain.group for gain in gains]
    weight = np.concatenate([g.mu for g in groups]) / sum(g.customers for g in groups)
    decision = np.concatenate([gain.decision for gain in gains])
    lived = np.concatenate([gain.experience for gain in gains])
    alpha = np.concatenate([np.full(len(g.mu), g.alpha) for g in groups])
    beta = np.concatenate([np.full(len(g.mu), g.model.beta) for g in groups])
    money = decision / alpha
    order = np.argsort(money)
    cumulated, last = np.cumsum(weight[order]), len(order) - 1
    return {
        "decision": weight @ decision,
        "experience": weight @ lived,
        "money": weight @ money,
        "experienced money": weight @ (lived / alpha),
        "per period": weight @ ((1 - beta) * money),
        "winners": weight[decision > SAME].sum(),
        "losers": weight[decision < -SAME].sum(),
        "lowest 5 %": money[order[int(np.searchsorted(cumulated, 0.05))]],
        # rounding may leave the last sum of weights below 95 %
        "highest 5 %": money[order[min(int(np.searchsorted(cumulated, 0.95)), last)]],
    }


@dataclass(frozen=True)
class Decomposition:
    """What each benefit adds, averaged over all orders of adding them (Shapley 1953).

    Attributes
    ----------
    table : pandas.DataFrame
        segment, benefit, outcome, shapley, alone (added to none), last (added to all others).
    totals : pandas.DataFrame
        segment, outcome, none, all: the shares of a segment add up to ``all - none``.
    """

    table: pd.DataFrame
    totals: pd.DataFrame

    def __str__(self) -> str:
        wide = self.table.pivot_table(
            index=["segment", "benefit"], columns="outcome", values="shapley", sort=False
        )
        return f"Shapley values\n{wide.to_string()}"

    __repr__ = __str__


def shapley(
    results: Fits,
    benefits: Sequence[str] | None = None,
    *,
    start: Start = None,
    outcomes: Sequence[str] = ("surplus", "penetration", "revenue"),
) -> Decomposition:
    """Decompose surplus, penetration or revenue by benefit, over all bundles of them.

    ``all`` is every benefit on offer to everybody: more than today, where a roll-out is under way.

    Parameters
    ----------
    benefits : sequence of str, optional
        Default: all of the membership's. Others stay in.
    outcomes : sequence of str
        ``"surplus"`` is the present value of decision utility in money to today's customers; any
        measure of the steady state (``penetration``, ``revenue``, ``profit`` ...) is one too.

    Raises
    ------
    SpecificationError
        More than 10 benefits; a model without membership; unknown names.
    """
    rows, totals = [], []
    outcomes = checks.items(outcomes, "outcomes")
    if benefits is not None:
        benefits = checks.items(benefits, "benefits")
    for segment, groups in population(results, start).by_segment().items():
        names = named_benefits(groups[0].model, benefits)
        worth = {
            subset: _worth(groups, names, subset, outcomes)
            for k in range(len(names) + 1)
            for subset in combinations(names, k)
        }
        everything = worth[tuple(names)]
        for name in names:
            others = worth[tuple(n for n in names if n != name)]
            for outcome in outcomes:
                rows.append(
                    {
                        "segment": segment,
                        "benefit": name,
                        "outcome": outcome,
                        "shapley": _shapley_value(worth, names, name, outcome),
                        "alone": worth[(name,)][outcome] - worth[()][outcome],
                        "last": everything[outcome] - others[outcome],
                    }
                )
        for outcome in outcomes:
            totals.append(
                {
                    "segment": segment,
                    "outcome": outcome,
                    "none": worth[()][outcome],
                    "all": everything[outcome],
                }
            )
    return Decomposition(pd.DataFrame(rows), pd.DataFrame(totals))


def _shapley_value(
    worth: dict[tuple[str, ...], dict[str, float]],
    names: Sequence[str],
    name: str,
    outcome: str,
) -> float:
    """Return what a benefit adds on average over all orders, given the worth of every subset."""
    others = [n for n in names if n != name]
    value = 0.0
    for k in range(len(names)):
        # the share of orders in which just these k come before
        weight = factorial(k) * factorial(len(names) - k - 1) / factorial(len(names))
        for subset in combinations(others, k):
            joined = tuple(n for n in names if n in subset or n == name)
            value += weight * (worth[joined][outcome] - worth[subset][outcome])
    return value


def named_benefits(model: DDC, wanted: Sequence[str] | None) -> list[str]:
    """Return the benefits to decompose by: those wanted, or all of the membership's."""
    if model.membership is None:
        raise SpecificationError("a decomposition by benefit needs a model built by Membership")
    benefits = [b.name for b in model.membership.benefits]
    names = benefits if wanted is None else list(wanted)
    checks.known(names, benefits, "benefit")
    if len(names) > MANY:
        raise SpecificationError(
            f"{len(names)} benefits have {2 ** len(names):,} bundles: name {MANY} at most"
        )
    return names


def offer_only(names: Sequence[str], subset: Sequence[str]) -> dict[str, Any]:
    """Return a bundle: the subset on offer to everybody in the plans' shares, the others gone."""
    return {n: OFFERED if n in subset else 0 for n in names}


def _worth(
    groups: Sequence[Group], names: Sequence[str], subset: tuple[str, ...], outcomes: Sequence[str]
) -> dict[str, float]:
    """Return outcomes per customer with only ``subset`` of the named benefits on offer."""
    scenario = Scenario("bundle", bundle=offer_only(names, subset))
    total = dict.fromkeys(outcomes, 0.0)
    mass = sum(group.customers for group in groups)
    for group in groups:
        steady = Stationary(scenario.applied(group.model).model, group.theta, group.mu)
        for outcome in outcomes:
            if outcome == "surplus":
                V = steady.engine.blocks.by_state(steady.policy.V)
                occupied = group.mu > 0
                value = float(group.mu[occupied] @ V[occupied]) / group.alpha / group.customers
            else:
                checks.known([outcome], ["surplus", *steady.measures], "outcome")
                value = steady.measures[outcome]
            total[outcome] += group.customers / mass * value
    return total
