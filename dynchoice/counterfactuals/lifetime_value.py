"""What comes after a forecast: steady states, and present values of today's customers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice.counterfactuals.accounts import Ledger
from dynchoice.counterfactuals.engine import Engine, Policy, Solved, steady_state
from dynchoice.counterfactuals.roll_forward import (
    Dates,
    Sums,
    enter,
    follow,
    move_between,
    phases,
    push_periods,
)
from dynchoice.typing import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """A period of the steady state, and present values of today's customers.

    Attributes
    ----------
    entries : FloatArray, shape (E,)
        Entries of a period in the steady state, in customers and money.
    surplus : float
        Experienced utility of such a period, in utils.
    revenue, profit : float
        Present values, from period 1 on.
    """

    entries: FloatArray
    surplus: float
    revenue: float
    profit: float


def compute_long_run(
    base: Solved,
    new: Solved,
    *,
    place: IntArray | None,
    ledger: Ledger,
    ledgers: dict[int, Ledger],
    dates: Dates,
    mu: FloatArray,
    sums: Sums,
    factor: float,
) -> LongRun:
    """Return the steady state of what holds for good, and today's customers' present value.

    Parameters
    ----------
    base, new : Solved
        Without and with the scenario; a scenario that ends leaves the baseline for good.
    place : IntArray, shape (S,), optional
        Where members move once the scenario is in force.
    ledger : Ledger
        The scenario's, whose entries are returned.
    ledgers : dict
        By ``id`` of an engine.
    mu : FloatArray, shape (B, n)
        Where customers stand in period 1, in the baseline's layout.
    sums : Sums
        Their path, ``factor`` times as many.
    """
    lasting = dates.starts is not None and dates.ends is None
    engine, policy, theta = new if lasting else base
    standing = mu
    if lasting and place is not None:
        standing = move_between(base.engine, engine, place, mu)
    elif engine is not base.engine:
        standing = move_between(base.engine, engine, None, mu)
    names = ledger.names
    lasting_ledger = ledger if lasting else Ledger.of(engine.model.membership, engine.blocks)
    rest, _ = steady_state(engine, policy, standing)
    money, cost = expected_cash(engine, policy, lasting_ledger)
    # push moves its argument on in place: the steady state itself is needed below
    cells, values = engine.blocks.push(
        rest.copy(), policy.P, 1, cost[:, None], lasting_ledger.group, lasting_ledger.groups
    )
    entries, _ = lasting_ledger.read(cells, values.sum(axis=0)[:1, 0])
    # the tail begins where nothing changes any more, which may be after the forecast
    T = max(len(sums.entries), dates.starts or 0, (dates.ends or 1) - 1)
    if len(sums.entries) < T:
        listed, _ = phases(base, new, place, dates, T)
        sums, _ = follow(
            base.engine,
            listed,
            mu,
            place,
            ledgers,
            last=None,
            names=names,
            choices=new.engine.blocks.J,
        )
        sums = sums.times(factor)
    column = {name: k for k, name in enumerate(names)}
    revenue = sums.entries[:, column["payments"]] - sums.entries[:, column["refunds"]]
    spent = sums.entries[:, column["benefit cost"]]
    beta = engine.model.beta
    discount = beta ** np.arange(T)
    end = final_distribution(base, new, place, dates, mu, T)
    pv_cash, pv_cost = present_values(engine, policy, [money, cost])
    tail = factor * beta**T
    revenue_pv = float(discount @ revenue + tail * (end * pv_cash).sum())
    cost_pv = float(discount @ spent + tail * (end * pv_cost).sum())
    return LongRun(
        entries=factor * lasting_ledger.named(entries[0], names),
        surplus=factor * float((rest * engine.flow_value(theta, policy)).sum()),
        revenue=revenue_pv,
        profit=revenue_pv - cost_pv,
    )


def final_distribution(
    base: Solved,
    new: Solved,
    place: IntArray | None,
    dates: Dates,
    mu: FloatArray,
    periods: int,
) -> FloatArray:
    """Return where customers stand after the last period, in the layout of what holds then."""
    listed, _ = phases(base, new, place, dates, periods)
    engine, standing = base.engine, mu
    for phase in listed:
        standing = enter(engine, phase, place, standing)
        engine = phase.engine
        standing = push_periods(engine, phase.policy, standing, phase.periods)
    lasting = dates.starts is not None and dates.ends is None
    target = new.engine if lasting else base.engine
    if engine is target:
        return standing
    return move_between(engine, target, place if lasting else None, standing)


def expected_cash(engine: Engine, policy: Policy, ledger: Ledger) -> tuple[FloatArray, FloatArray]:
    """Return expected payments less refunds, and costs of benefits, by state (B, n)."""
    net = ledger.money[0] - ledger.money[1]
    return (policy.P * net[:, ledger.group]).sum(axis=2), ledger.cost(policy.P)


def present_values(engine: Engine, policy: Policy, flows: Sequence[FloatArray]) -> list[FloatArray]:
    """Return ``(I - beta F^P)^{-1} flow`` (B, n) of each flow (SOURCES.md 7.5)."""
    b, beta = engine.blocks, engine.model.beta
    right = np.stack(flows, axis=2)
    relative = b.solve_linear(policy.P, right)
    out = []
    for k in range(right.shape[2]):
        h = relative[:, :, k]
        value = np.empty_like(h)
        for i in range(b.B):
            ahead = b.policy_expect(i, h[i], policy.P[i])
            value[i] = h[i] + (right[i, 0, k] + beta * ahead[0] - h[i, 0]) / (1 - beta)
        out.append(value)
    return out
