"""A programme checked, and laid out as features of utility by state and choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.membership.contracts import LAPSED, NEW, PAID, TRIAL
from dynchoice.membership.names import (
    BUNDLE,
    CANCEL,
    CONTRACT,
    COSTS,
    JOIN,
    MEMBER,
    MENU,
    PRICE,
    SWITCH,
    TENURE,
    UPFRONT,
    VINTAGE,
)
from dynchoice.membership.plans import MemberType, assign, check_mapping, check_number
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from dynchoice.membership.membership import Membership


def check_names(club: Membership) -> None:
    """Refuse names that clash or are unknown."""
    plans, benefits = [p.name for p in club.plans], [b.name for b in club.benefits]
    axes = (CONTRACT, MENU, BUNDLE, VINTAGE, "choice")
    taken = [b for b in benefits if b in (MEMBER, TENURE, PRICE, *COSTS, *axes)]
    if taken:
        raise SpecificationError(f"no benefit may be called {taken[0]!r}: the name is taken")

    def known(names: Any, pool: list[str], what: str) -> None:
        strange = [n for n in names if n not in pool]
        if strange:
            raise SpecificationError(
                f"{what} names {strange[0]!r}.{suggest(strange[0], pool)} Known: {', '.join(pool)}"
            )

    for p in club.plans:
        known(p.benefits or (), benefits, f"plan {p.name!r}: benefits")
        known(p.engages or (), benefits, f"plan {p.name!r}: engages")
        if club.segments:
            known(p.segments or (), list(club.segments), f"plan {p.name!r}: segments")
        if p.like is not None:
            known([p.like], plans, f"plan {p.name!r}: like")
        clash = [f for f in p.features if f in (*benefits, MEMBER, TENURE, PRICE, *COSTS)]
        if clash:
            raise SpecificationError(f"plan {p.name!r}: the feature {clash[0]!r} is taken")
    for b in club.benefits:
        known(b.given, [x for x in benefits if x != b.name], f"benefit {b.name!r}: given")
    for label, menu in club.menus.items():
        known(check_mapping(menu, f"menu {label!r}"), plans, f"menu {label!r}")
        for plan, price in menu.items():
            check_number(price, f"menu {label!r}: price of {plan!r}", 0)
    if club.menus:
        menus = {k: {p: float(x) for p, x in m.items()} for k, m in club.menus.items()}
        assign(club, "menus", menus)
    if club.kept_until not in ("leaving", "renewal"):
        raise SpecificationError(f"kept_until={club.kept_until!r}: use 'leaving' or 'renewal'")
    if club.kept is not None:
        known(check_mapping(club.kept, "kept"), list(club.menus) or [""], "kept: menu")
        for label, menu in club.kept.items():
            known(check_mapping(menu, f"kept {label!r}"), plans, f"kept {label!r}")
    for label, bundle in club.bundles.items():
        known(check_mapping(bundle, f"bundle {label!r}"), benefits, f"bundle {label!r}")
        for benefit, share in bundle.items():
            by_plan = share if isinstance(share, Mapping) else {plans[0]: share}
            known(by_plan, plans, f"bundle {label!r}: {benefit}")
            for x in by_plan.values():
                check_number(x, f"bundle {label!r}: {benefit}")
    for what in ("params", "fixed"):
        given = getattr(club, what)
        known(given, list(club.all_names), what)
        values = {str(k): check_number(v, f"{what}: {k}") for k, v in given.items()}
        object.__setattr__(club, what, values)
    for label, kind in club.types.items():
        if not isinstance(kind, MemberType):
            raise SpecificationError(f"type {label!r} is no MemberType")
        known(kind.params, list(club.all_names), f"type {label!r}")
    if club.types and abs(sum(t.share for t in club.types.values()) - 1) > 1e-9:
        total = sum(t.share for t in club.types.values())
        raise SpecificationError(f"the shares of the types sum to {total:g}, not 1")
    for label, change in club.segments.items():
        change = check_mapping(change, f"segment {label!r}")
        known(change, ["params", "prices", "menus", "types"], f"segment {label!r}")
        known(change.get("params", ()), list(club.all_names), f"segment {label!r}: params")
        known(change.get("prices", ()), plans, f"segment {label!r}: prices")


def feature_table(club: Membership) -> FloatArray:
    """Features of all parameters (S, J, all names), in the order of :attr:`all_names`."""
    c, S, J = club.contracts, club.states.size, len(club.choices)
    kind, held = club.by_contract(c.kind), club.by_contract(c.held)
    parts: dict[str, FloatArray] = {}
    inside = np.zeros((S, J))
    inside[:, 1:] = 1.0
    parts[MEMBER] = inside
    for b in club.benefits:
        x = np.zeros((S, J))
        x[:, 1:] = club.included(b) * club.states.axis_codes(b.name)[:, None]
        parts[b.name] = x
    parts[TENURE] = inside * club.by_contract(c.years)[:, None]
    for f in dict.fromkeys(f for p in club.plans for f in p.features):
        parts[f] = inside * np.array([0.0, *(p.features.get(f, 0.0) for p in club.plans)])
    money = club.payments()
    money[:, 0] -= club.refunds()
    parts[PRICE] = -money
    joins = (kind == NEW) | (kind == LAPSED)
    parts[JOIN] = -inside * joins[:, None]
    quits = np.where(kind == TRIAL, club.trial_cancel, (kind == PAID) * 1.0)
    parts[CANCEL] = np.zeros((S, J))
    parts[CANCEL][:, 0] = -quits
    other = (np.arange(J)[None, :] != held[:, None]) & (kind == PAID)[:, None]
    parts[SWITCH] = -inside * other
    long = np.array([0.0, *(p.periods > 1 for p in club.plans)], dtype=np.float64)
    parts[UPFRONT] = -1.0 * club.by_contract(c.pays) * long
    possible = club.by_contract(c.possible)
    x = np.stack([parts[n] for n in club.all_names], axis=2)
    x[~possible] = 0.0
    return np.ascontiguousarray(x)
