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
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.counterfactuals.arguments import check_scenario, listed
from dynchoice.counterfactuals.engine import Engine
from dynchoice.counterfactuals.forecast import match_groups
from dynchoice.counterfactuals.group_paths import present_values, price_of_utility
from dynchoice.counterfactuals.path import valued
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.counterfactuals.steady_state import Stationary
from dynchoice.errors import ConvergenceError, SpecificationError, suggest
from dynchoice.membership.changes import OFFERED
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd

MANY = 10
"""Benefits up to which every subset is solved for a decomposition."""


@dataclass(frozen=True)
class Someone:
    """A homogeneous group of customers: model, parameters and where they stand (S,)."""

    segment: str
    kind: str
    model: DDC
    theta: FloatArray
    mu: FloatArray

    @property
    def mass(self) -> float:
        """How many they are."""
        return float(self.mu.sum())

    @property
    def alpha(self) -> float:
        """Utils per unit of money."""
        return price_of_utility(self.model, self.theta)


def everyone(results: Any, start: Any) -> list[Someone]:
    """Return the groups of customers that a forecast would start from."""
    fits, groups, _ = match_groups(results, start, None, ())
    return [
        Someone(str(g.segment), str(g.kind), fits[g.fit].model, fits[g.fit].theta, g.mu)
        for g in groups
    ]


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


def welfare(results: Any, scenario: Scenario, *, start: Any = None) -> Welfare:
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
    import pandas as pd

    parts: dict[str, list[tuple[Someone, FloatArray, FloatArray]]] = {}
    check_scenario(scenario, "welfare()")
    if scenario.ramp is not None:
        raise SpecificationError(
            f"scenario {scenario.name!r}: welfare() values a change for everybody from today;"
            " forecast(...).welfare knows ramp="
        )
    with one_blas_thread():
        for who in everyone(results, start):
            new_model = scenario.changed(who.model)
            place = scenario.state_map(who.model)
            before = Engine(who.model, who.theta)
            after = before
            if new_model is not who.model or scenario.params:
                after = Engine(new_model, scenario.theta(who.model, who.theta))
            for engine in (before, after):
                if not engine.base.converged:
                    raise ConvergenceError(f"{who.segment}: {engine.base.message}")
            b = before.blocks
            V = valued(before, after, place, after.base.V) - before.base.V
            W = valued(before, after, place, experience(after, after.theta))
            W = W - experience(before, before.theta)
            parts.setdefault(who.segment, []).append((who, b.by_state(V), b.by_state(W)))
    rows = []
    if len(parts) > 1:
        parts[ALL] = [x for part in list(parts.values()) for x in part]
    for segment, group in parts.items():
        mass = sum(who.mass for who, _, _ in group)
        weight = np.concatenate([who.mu for who, _, _ in group]) / mass
        decided = np.concatenate([V for _, V, _ in group])
        lived = np.concatenate([W for _, _, W in group])
        alpha = np.concatenate([np.full(len(who.mu), who.alpha) for who, _, _ in group])
        beta = np.concatenate([np.full(len(who.mu), who.model.beta) for who, _, _ in group])
        money = decided / alpha
        order = np.argsort(money)
        cumulated, last = np.cumsum(weight[order]), len(order) - 1
        rows.append(
            {
                "segment": segment,
                "decision": weight @ decided,
                "experience": weight @ lived,
                "money": weight @ money,
                "experienced money": weight @ (lived / alpha),
                "per period": weight @ ((1 - beta) * money),
                "winners": weight[decided > 1e-9].sum(),
                "losers": weight[decided < -1e-9].sum(),
                "lowest 5 %": money[order[int(np.searchsorted(cumulated, 0.05))]],
                "highest 5 %": money[order[min(int(np.searchsorted(cumulated, 0.95)), last)]],
            }
        )
    by_state = {
        segment: group[0][1] / group[0][0].alpha
        for segment, group in parts.items()
        if len(group) == 1
    }
    return Welfare(scenario, pd.DataFrame(rows), by_state)


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
    results: Any,
    benefits: Sequence[str] | None = None,
    *,
    start: Any = None,
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
    import pandas as pd

    rows, totals = [], []
    outcomes = listed(outcomes, "outcomes")
    if benefits is not None:
        benefits = listed(benefits, "benefits")
    groups = everyone(results, start)
    for segment in dict.fromkeys(g.segment for g in groups):
        own = [g for g in groups if g.segment == segment]
        names = _benefits(own[0].model, benefits)
        worth = {
            subset: _worth(own, names, subset, outcomes)
            for k in range(len(names) + 1)
            for subset in combinations(names, k)
        }
        everything = tuple(names)
        for name in names:
            others = [n for n in names if n != name]
            for o in outcomes:
                value = 0.0
                for k in range(len(names)):
                    weight = factorial(k) * factorial(len(names) - k - 1) / factorial(len(names))
                    for subset in combinations(others, k):
                        whole = tuple(n for n in names if n in subset or n == name)
                        value += weight * (worth[whole][o] - worth[subset][o])
                rest = tuple(others)
                rows.append(
                    {
                        "segment": segment,
                        "benefit": name,
                        "outcome": o,
                        "shapley": value,
                        "alone": worth[(name,)][o] - worth[()][o],
                        "last": worth[everything][o] - worth[rest][o],
                    }
                )
        for o in outcomes:
            totals.append(
                {
                    "segment": segment,
                    "outcome": o,
                    "none": worth[()][o],
                    "all": worth[everything][o],
                }
            )
    return Decomposition(pd.DataFrame(rows), pd.DataFrame(totals))


def _benefits(model: DDC, wanted: Sequence[str] | None) -> list[str]:
    if model.membership is None:
        raise SpecificationError("a decomposition by benefit needs a model built by Membership")
    known = [b.name for b in model.membership.benefits]
    names = known if wanted is None else list(wanted)
    strange = [n for n in names if n not in known]
    if strange:
        raise SpecificationError(
            f"no benefit {strange[0]!r}.{suggest(strange[0], known)} Benefits: {', '.join(known)}"
        )
    if len(names) > MANY:
        raise SpecificationError(
            f"{len(names)} benefits have {2 ** len(names):,} bundles: name {MANY} at most"
        )
    return names


def offered(names: Sequence[str], subset: Sequence[str]) -> dict[str, Any]:
    """Return a bundle: the subset on offer to everybody in the plans' shares, the others gone."""
    return {n: OFFERED if n in subset else 0 for n in names}


def _worth(
    own: Sequence[Someone], names: Sequence[str], subset: tuple[str, ...], outcomes: Sequence[str]
) -> dict[str, float]:
    """Return outcomes per customer with only ``subset`` of the named benefits on offer."""
    offer = offered(names, subset)
    total = dict.fromkeys(outcomes, 0.0)
    mass = sum(who.mass for who in own)
    for who in own:
        model = Scenario("bundle", bundle=offer).changed(who.model)
        at = Stationary(model, who.theta, who.mu)
        for o in outcomes:
            if o == "surplus":
                V = at.engine.blocks.by_state(at.policy.V)
                here = who.mu > 0
                value = float(who.mu[here] @ V[here]) / who.alpha / who.mass
            elif o in at.measures:
                value = at.measures[o]
            else:
                raise SpecificationError(
                    f"no outcome {o!r}.{suggest(o, at.measures)} Outcomes: surplus,"
                    f" {', '.join(at.measures)}"
                )
            total[o] += who.mass / mass * value
    return total
