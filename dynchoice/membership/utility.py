"""A programme laid out as features of utility by state and choice."""

from __future__ import annotations

import numpy as np

from dynchoice.membership.contracts import LAPSED, NEW, PAID, TRIAL
from dynchoice.membership.names import (
    CANCEL,
    JOIN,
    MEMBER,
    PRICE,
    SWITCH,
    TENURE,
    UPFRONT,
)
from dynchoice.membership.programme import Programme
from dynchoice.typing import FloatArray


def feature_table(club: Programme) -> FloatArray:
    """Return features of all parameters (S, J, all names), in the order of ``all_names``.

    Choice 0 is to stay out or leave: it earns nothing, so that its features are costs and refunds.
    """
    contracts, S, J = club.contracts, club.states.size, len(club.choices)
    kind, held = club.by_contract(contracts.kind), club.by_contract(contracts.held)
    parts: dict[str, FloatArray] = {}
    inside = np.zeros((S, J))
    inside[:, 1:] = 1.0
    parts[MEMBER] = inside
    for b in club.benefits:
        use = np.zeros((S, J))
        use[:, 1:] = club.included(b) * club.states.axis_codes(b.name)[:, None]
        parts[b.name] = use
    parts[TENURE] = inside * club.by_contract(contracts.years)[:, None]
    for name in dict.fromkeys(f for p in club.plans for f in p.features):
        parts[name] = inside * np.array([0.0, *(p.features.get(name, 0.0) for p in club.plans)])
    money = club.payments()
    money[:, 0] -= club.refunds()
    parts[PRICE] = -money
    joins = (kind == NEW) | (kind == LAPSED)
    parts[JOIN] = -inside * joins[:, None]
    quits = np.where(kind == TRIAL, club.trial_cancel, (kind == PAID) * 1.0)
    parts[CANCEL] = np.zeros((S, J))
    parts[CANCEL][:, 0] = -quits
    other_plan = (np.arange(J)[None, :] != held[:, None]) & (kind == PAID)[:, None]
    parts[SWITCH] = -inside * other_plan
    long = np.array([0.0, *(p.periods > 1 for p in club.plans)], dtype=np.float64)
    parts[UPFRONT] = -1.0 * club.by_contract(contracts.pays) * long
    x = np.stack([parts[name] for name in club.all_names], axis=2)
    # choices that the contract rules out: DDC masks them, and zeros keep their features finite
    x[~club.by_contract(contracts.possible)] = 0.0
    return np.ascontiguousarray(x)
