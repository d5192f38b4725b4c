"""A membership programme as data: its fields, checked, and the arrays by state that follow.

The bottom of this folder: utility, engagement, changes, histories and files are functions of a
:class:`Programme`; :class:`dynchoice.Membership` on top is one with methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.membership.contracts import LAPSED, NEW, NONE, PAID, TRIAL, Contracts
from dynchoice.membership.grandfathering import kept_price_table
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
    MOST_PERIODS,
    Benefit,
    MemberType,
    Plan,
    assign,
    check_attention,
)
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, FloatArray, IntArray

Part = TypeVar("Part", Plan, Benefit)
Scalar = TypeVar("Scalar", bound=np.generic)


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
            checks.mapping(getattr(self, what), what)
        assign(self, "plans", _parts(self.plans, "plans", Plan))
        assign(self, "benefits", _parts(self.benefits, "benefits", Benefit))
        if not self.plans:
            raise SpecificationError("a membership needs one plan at least")
        if NONE in [p.name for p in self.plans]:
            raise SpecificationError(
                f"no plan may be called {NONE!r}: that is the choice to stay out"
            )
        # 1 is allowed here, and refused where a model of infinite horizon is built
        assign(self, "beta", checks.share(self.beta, "beta"))
        assign(self, "tenure", checks.whole(self.tenure, "tenure", 1, MOST_PERIODS))
        assign(self, "per_year", checks.number(self.per_year, "per_year", 1e-9))
        if self.trial_again is not None:
            assign(self, "trial_again", checks.number(self.trial_again, "trial_again", 1))
        for what in ("attention_outside", "attention_trial"):
            assign(self, what, check_attention(getattr(self, what), what))
        for what in ("naive", "trial_cancel"):
            assign(self, what, checks.share(getattr(self, what), what))
        if self.costs is not None:
            if not isinstance(self.costs, list | tuple):
                raise SpecificationError(f"costs must be a list of names, got {self.costs!r}")
            checks.known(self.costs, COSTS, "costs: cost")
            assign(self, "costs", tuple(c for c in COSTS if c in self.costs))
        # names last: which parameters there are follows from plans, benefits and costs
        _check_plans_and_benefits(self)
        _check_offers(self)
        _check_parameters(self)
        _check_types_and_segments(self)

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
        """Costs that the programme's plans call for (see the Notes of :class:`Membership`)."""
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
        """State space with an axis for prices, bundle and vintage where there are any, for each
        benefit, and for the contract."""
        axes: dict[str, Any] = {}
        if self.menus:
            axes[MENU] = list(self.menus)
        if self.bundles:
            axes[BUNDLE] = list(self.bundles)
        # kept prices that end with a contract move with it, in one law: their axes are neighbours
        with_contract = self.kept_until == "renewal"
        if self.kept is not None and not with_contract:
            axes[VINTAGE] = [CURRENT, KEPT]
        for b in self.benefits:
            axes[b.name] = range(b.levels)
        if self.kept is not None and with_contract:
            axes[VINTAGE] = [CURRENT, KEPT]
        axes[CONTRACT] = list(self.contracts.labels)
        return StateSpace.from_axes(axes)

    def by_contract(self, table: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return what is known by contract level (C, ...) for every state (S, ...)."""
        return table[self.states.axis_codes(CONTRACT)]

    def prices(self) -> FloatArray:
        """Return the price of each plan in each state, (S, plans)."""
        menus = list(self.menus.values()) or [{}]
        lists = [[menu.get(p.name, p.price) for p in self.plans] for menu in menus]
        listed = np.array(lists)[self._menu_codes()]
        kept = self.kept_prices()
        return np.where(np.isfinite(kept), kept, listed)

    def kept_prices(self) -> FloatArray:
        """Return prices that grandfathered members keep (S, plans), NaN where the list holds."""
        if self.kept is None:
            return np.full((self.states.size, len(self.plans)), np.nan)
        keeps = self.states.axis_codes(VINTAGE) == 1
        if self.kept_until == "renewal":  # the contract after the one that runs costs the new price
            keeps &= self.by_contract(self.contracts.left) > 0
        labels = list(self.menus) or [""]
        return kept_price_table(self.kept, labels, self.plans, self._menu_codes(), keeps)

    def _menu_codes(self) -> IntArray:
        """Return the position of the menu in force in each state (S,): 0 where there are none."""
        if self.menus:
            return self.states.axis_codes(MENU)
        return np.zeros(self.states.size, dtype=np.int64)

    def included(self, benefit: Benefit) -> FloatArray:
        """Return the share of a benefit's value that each plan gives in each state (S, plans)."""
        if not self.bundles:
            shares = np.array([p.includes(benefit.name) for p in self.plans])
            return np.tile(shares, (self.states.size, 1))
        plans = range(len(self.plans))
        rows = [[self.share(benefit, plan, bundle) for plan in plans] for bundle in self.bundles]
        return np.array(rows)[self.states.axis_codes(BUNDLE)]

    def share(self, benefit: Benefit, plan: int, bundle: str | None) -> float:
        """Return the share of a benefit that a plan gives under a bundle (None: no bundles)."""
        share = self.plans[plan].includes(benefit.name)
        if bundle is None:
            return share
        offered = self.bundles[bundle].get(benefit.name, 1.0)
        if isinstance(offered, Mapping):
            offered = offered.get(self.plans[plan].name, 1.0)
        return share * float(offered)

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
        by_level = [
            self.plans[x.plan].attention_at(x.left) if x.kind == PAID else by_kind[x.kind]
            for x in self.contracts.levels
        ]
        return np.asarray(self.by_contract(np.array(by_level, dtype=np.float64)))

    @cached_property
    def perceived(self) -> FloatArray:
        """Attention that members count on (S,): naive about the membership, not the outside."""
        inside = self.by_contract(self.contracts.held) > 0
        hoped = self.attention + self.naive * (1 - self.attention)
        return np.where(inside, hoped, self.attention)


def _parts(parts: object, what: str, kind: type[Part]) -> tuple[Part, ...]:
    """Return the plans or the benefits as a tuple, each under a name of its own."""
    if not isinstance(parts, list | tuple):
        raise SpecificationError(f"{what} must be a list of {kind.__name__} objects, got {parts!r}")
    wrong = [x for x in parts if not isinstance(x, kind)]
    if wrong:
        raise SpecificationError(f"{what} holds {wrong[0]!r}; build a {kind.__name__}")
    names = [x.name for x in parts]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise SpecificationError(f"{what}: {twice[0]!r} is there twice")
    return tuple(parts)


def _check_plans_and_benefits(club: Programme) -> None:
    """Check what plans and benefits say of each other, and that their names are free."""
    plans, benefits = [p.name for p in club.plans], [b.name for b in club.benefits]
    reserved = (MEMBER, TENURE, PRICE, *COSTS)
    axes = (CONTRACT, MENU, BUNDLE, VINTAGE, "choice")
    taken = [b for b in benefits if b in (*reserved, *axes)]
    if taken:
        raise SpecificationError(f"no benefit may be called {taken[0]!r}: the name is taken")
    for p in club.plans:
        checks.known(p.benefits or (), benefits, f"plan {p.name!r}: benefit")
        checks.known(p.engages or (), benefits, f"plan {p.name!r}: engages: benefit")
        if club.segments:
            checks.known(p.segments or (), club.segments, f"plan {p.name!r}: segment")
        if p.like is not None:
            checks.known([p.like], plans, f"plan {p.name!r}: like: plan")
        clash = [f for f in p.features if f in (*benefits, *reserved)]
        if clash:
            raise SpecificationError(f"plan {p.name!r}: the feature {clash[0]!r} is taken")
    for b in club.benefits:
        others = [x for x in benefits if x != b.name]
        checks.known(b.given, others, f"benefit {b.name!r}: given: benefit")


def _check_offers(club: Programme) -> None:
    """Check menus, kept prices and bundles; prices become floats."""
    plans, benefits = [p.name for p in club.plans], [b.name for b in club.benefits]
    for label, menu in club.menus.items():
        checks.known(checks.mapping(menu, f"menu {label!r}"), plans, f"menu {label!r}: plan")
        for plan, price in menu.items():
            checks.number(price, f"menu {label!r}: price of {plan!r}", 0)
    if club.menus:
        menus = {k: {p: float(x) for p, x in m.items()} for k, m in club.menus.items()}
        assign(club, "menus", menus)
    checks.one_of(club.kept_until, "kept_until", ("leaving", "renewal"))
    if club.kept is not None:
        checks.known(checks.mapping(club.kept, "kept"), list(club.menus) or [""], "kept: menu")
        for label, menu in club.kept.items():
            checks.known(checks.mapping(menu, f"kept {label!r}"), plans, f"kept {label!r}: plan")
    for label, bundle in club.bundles.items():
        shares = checks.mapping(bundle, f"bundle {label!r}")
        checks.known(shares, benefits, f"bundle {label!r}: benefit")
        for benefit, share in bundle.items():
            by_plan = share if isinstance(share, Mapping) else {plans[0]: share}
            checks.known(by_plan, plans, f"bundle {label!r}: {benefit}: plan")
            for value in by_plan.values():
                checks.number(value, f"bundle {label!r}: {benefit}")


def _check_parameters(club: Programme) -> None:
    """Check the names and values of known and fixed parameters; values become floats."""
    for what in ("params", "fixed"):
        values = getattr(club, what)
        checks.known(values, club.all_names, f"{what}: parameter")
        assign(club, what, {str(k): checks.number(v, f"{what}: {k}") for k, v in values.items()})


def _check_types_and_segments(club: Programme) -> None:
    """Check what types and segments change, and that the shares of types sum to one."""
    plans = [p.name for p in club.plans]
    for label, kind in club.types.items():
        checks.instance(kind, f"type {label!r}", MemberType)
        checks.known(kind.params, club.all_names, f"type {label!r}: parameter")
    total = sum(t.share for t in club.types.values())
    if club.types and abs(total - 1) > 1e-9:
        raise SpecificationError(f"the shares of the types sum to {total:g}, not 1")
    for label, change in club.segments.items():
        change = checks.mapping(change, f"segment {label!r}")
        checks.known(change, ["params", "prices", "menus", "types"], f"segment {label!r}: key")
        checks.known(change.get("params", ()), club.all_names, f"segment {label!r}: parameter")
        checks.known(change.get("prices", ()), plans, f"segment {label!r}: prices: plan")
