"""A membership programme as data: its fields, checked, and the arrays by state that follow.

The bottom of this folder: utility, engagement, changes, histories and files are functions of a
:class:`Programme`; :class:`dynchoice.Membership` on top is one with methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.membership.contracts import LAPSED, NEW, NONE, PAID, TRIAL, Contracts
from dynchoice.membership.names import (
    BUNDLE,
    CANCEL,
    CONTRACT,
    COSTS,
    CURRENT,
    JOIN,
    KEPT,
    MEMBER,
    MENU,
    PRICE,
    SWITCH,
    TENURE,
    UPFRONT,
    VINTAGE,
)
from dynchoice.membership.plans import (
    Benefit,
    MemberType,
    Plan,
    assign,
    check_attention,
    check_mapping,
    check_number,
    check_whole,
)
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, FloatArray


@dataclass(frozen=True)
class Programme:
    """The fields of a membership programme, checked; :class:`Membership` says what they mean."""

    plans: tuple[Plan, ...]
    benefits: tuple[Benefit, ...] = ()
    beta: float = 0.9957
    params: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)
    costs: tuple[str, ...] | None = None
    tenure: int = 1
    per_year: float = 12.0
    trial_again: float | None = 12.0
    attention_outside: float = 1.0
    attention_trial: float = 1.0
    naive: float = 0.0
    trial_cancel: float = 0.5
    menus: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bundles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kept: Mapping[str, Mapping[str, float]] | None = None
    kept_until: str = "leaving"
    types: Mapping[str, MemberType] = field(default_factory=dict)
    segments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("params", "fixed", "menus", "bundles", "types", "segments"):
            check_mapping(getattr(self, what), what)
        for what, kind in (("plans", Plan), ("benefits", Benefit)):
            if not isinstance(getattr(self, what), list | tuple):
                raise SpecificationError(
                    f"{what} must be a list of {kind.__name__} objects, got {getattr(self, what)!r}"
                )
            given = tuple(getattr(self, what))
            wrong = [x for x in given if not isinstance(x, kind)]
            if wrong:
                raise SpecificationError(f"{what} holds {wrong[0]!r}; build a {kind.__name__}")
            names = [x.name for x in given]
            twice = [n for n in names if names.count(n) > 1]
            if twice:
                raise SpecificationError(f"{what}: {twice[0]!r} is there twice")
            assign(self, what, given)
        if not self.plans:
            raise SpecificationError("a membership needs one plan at least")
        if NONE in [p.name for p in self.plans]:
            raise SpecificationError(
                f"no plan may be called {NONE!r}: that is the choice to stay out"
            )
        assign(self, "beta", check_number(self.beta, "beta", 0, 1))
        assign(self, "tenure", check_whole(self.tenure, "tenure", 1))
        assign(self, "per_year", check_number(self.per_year, "per_year", 1e-9))
        if self.trial_again is not None:
            assign(self, "trial_again", check_number(self.trial_again, "trial_again", 1))
        for what in ("attention_outside", "attention_trial"):
            assign(self, what, check_attention(getattr(self, what), what))
        for what in ("naive", "trial_cancel"):
            assign(self, what, check_number(getattr(self, what), what, 0, 1))
        if self.costs is not None:
            if not isinstance(self.costs, list | tuple):
                raise SpecificationError(f"costs must be a list of names, got {self.costs!r}")
            strange = [c for c in self.costs if c not in COSTS]
            if strange:
                raise SpecificationError(
                    f"no cost {strange[0]!r}.{suggest(strange[0], COSTS)} Costs: {', '.join(COSTS)}"
                )
            assign(self, "costs", tuple(c for c in COSTS if c in self.costs))
        check_names(self)

    @cached_property
    def contracts(self) -> Contracts:
        """Levels and moves of the contract axis."""
        return Contracts(self.plans, self.tenure, self.per_year, self.trial_again)

    @property
    def choices(self) -> tuple[str, ...]:
        """``none`` and the plans."""
        return (NONE, *(p.name for p in self.plans))

    @property
    def usual_costs(self) -> tuple[str, ...]:
        """Costs that the programme's plans call for (see Notes)."""
        have = {
            JOIN: True,
            CANCEL: self.contracts.trials,
            SWITCH: len(self.plans) > 1,
            UPFRONT: any(p.clock > 1 for p in self.plans),
        }
        return tuple(c for c in COSTS if have[c])

    @property
    def used_costs(self) -> tuple[str, ...]:
        """Costs of the model: as given, or the usual ones."""
        return self.usual_costs if self.costs is None else self.costs

    @cached_property
    def all_names(self) -> tuple[str, ...]:
        """Every parameter of the programme, fixed ones included."""
        features = dict.fromkeys(f for p in self.plans for f in p.features)
        tenure = (TENURE,) if self.tenure > 1 else ()
        benefits = (b.name for b in self.benefits)
        return (MEMBER, *benefits, *tenure, *features, PRICE, *self.used_costs)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters to estimate."""
        return tuple(n for n in self.all_names if n not in self.fixed)

    @cached_property
    def states(self) -> StateSpace:
        """Axes: prices, bundle and vintage where there are any; one a benefit; contract (beside
        it the vintage, where kept prices end with a contract)."""
        axes: dict[str, Any] = {}
        if self.menus:
            axes[MENU] = list(self.menus)
        if self.bundles:
            axes[BUNDLE] = list(self.bundles)
        with_contract = self.kept_until == "renewal"  # then the two move together
        if self.kept is not None and not with_contract:
            axes[VINTAGE] = [CURRENT, KEPT]
        for b in self.benefits:
            axes[b.name] = range(b.levels)
        if self.kept is not None and with_contract:
            axes[VINTAGE] = [CURRENT, KEPT]
        axes[CONTRACT] = list(self.contracts.labels)
        return StateSpace.from_axes(axes)

    def by_contract(self, table: Any) -> Any:
        """Spread something known by contract level (C, ...) over the states (S, ...)."""
        return np.asarray(table)[self.states.axis_codes(CONTRACT)]

    def prices(self) -> FloatArray:
        """Return the price of each plan in each state, (S, plans)."""
        S = self.states.size
        listed = np.array([p.price for p in self.plans])
        lists = [[m.get(p.name, p.price) for p in self.plans] for m in self.menus.values()]
        at = self.states.axis_codes(MENU) if self.menus else np.zeros(S, dtype=np.int64)
        out = np.array(lists)[at] if lists else np.tile(listed, (S, 1))
        kept = self.kept_prices()
        return np.where(np.isfinite(kept), kept, out)

    def kept_prices(self) -> FloatArray:
        """Return prices that grandfathered members keep (S, plans), NaN where the list holds."""
        S, P = self.states.size, len(self.plans)
        if self.kept is None:
            return np.full((S, P), np.nan)
        labels = list(self.menus) or [""]
        old = [[self.kept.get(m, {}).get(p.name, np.nan) for p in self.plans] for m in labels]
        at = self.states.axis_codes(MENU) if self.menus else np.zeros(S, dtype=np.int64)
        inside = self.states.axis_codes(VINTAGE) == 1
        if self.kept_until == "renewal":
            inside &= self.by_contract(self.contracts.left) > 0
        return np.where(inside[:, None], np.array(old)[at], np.nan)

    def included(self, benefit: Benefit) -> FloatArray:
        """Return the share of a benefit's value that each plan gives in each state (S, plans)."""
        own = np.array([p.includes(benefit.name) for p in self.plans])
        if not self.bundles:
            return np.tile(own, (self.states.size, 1))
        rows = []
        for bundle in self.bundles.values():
            share = bundle.get(benefit.name, 1.0)
            if isinstance(share, Mapping):
                rows.append([own[i] * share.get(p.name, 1.0) for i, p in enumerate(self.plans)])
            else:
                rows.append(list(own * float(share)))
        return np.array(rows)[self.states.axis_codes(BUNDLE)]

    @cached_property
    def unused(self) -> BoolArray:
        """States in which no benefit is in use (S,)."""
        out = np.ones(self.states.size, dtype=bool)
        for b in self.benefits:
            out &= self.states.axis_codes(b.name) == 0
        return out

    def payments(self) -> FloatArray:
        """Return money paid by each choice in each state (S, J), refunds apart."""
        out = np.zeros((self.states.size, len(self.choices)))
        out[:, 1:] = self.prices()
        out[~self.by_contract(self.contracts.pays)] = 0.0
        return out

    def refunds(self) -> FloatArray:
        """Return money given back to who quits in each state (S,)."""
        share = self.by_contract(self.contracts.refund_share())
        held = self.by_contract(self.contracts.held)
        rule = np.array(["none", *(p.refund for p in self.plans)], dtype=object)[held]
        due = (rule == "prorated") | ((rule == "unused") & self.unused)
        price = np.take_along_axis(self.prices(), np.maximum(held - 1, 0)[:, None], axis=1)[:, 0]
        return np.where(due, share * price, 0.0)

    @cached_property
    def attention(self) -> FloatArray:
        """Probability of an active choice in each state (S,)."""
        by_kind = {NEW: self.attention_outside, LAPSED: self.attention_outside}
        by_kind[TRIAL] = self.attention_trial
        a = [
            self.plans[x.plan].attention_at(x.left) if x.kind == PAID else by_kind[x.kind]
            for x in self.contracts.levels
        ]
        return np.asarray(self.by_contract(np.array(a, dtype=np.float64)))

    @cached_property
    def perceived(self) -> FloatArray:
        """Attention that members count on (S,): naive about the membership, not the outside."""
        inside = self.by_contract(self.contracts.held) > 0
        hoped = self.attention + self.naive * (1 - self.attention)
        return np.where(inside, hoped, self.attention)


def check_names(club: Programme) -> None:
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
