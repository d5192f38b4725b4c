"""What can be changed in a membership programme, one pure function a kind of change.

Also the programme as one segment or one type of customers has it, and where members of the old
programme stand in the new one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from dynchoice import checks
from dynchoice.errors import DynChoiceWarning, SpecificationError
from dynchoice.membership.contracts import NEW, NONE, PAID, TRIAL, Contracts
from dynchoice.membership.grandfathering import check_grandfathered, kept_until, old_lists
from dynchoice.membership.names import CONTRACT, VINTAGE
from dynchoice.membership.plans import Benefit, Plan, check_attention
from dynchoice.membership.programme import Programme
from dynchoice.typing import IntArray, Level

Club = TypeVar("Club", bound=Programme)
Value = float | Callable[[float], float]
"""A new number, or a function of the old one."""
Share = float | Mapping[str, float]
"""A share of a benefit, of all plans or by plan."""

TERMS = (
    "periods",
    "trial",
    "refund",
    "cancel",
    "renewal",
    "attention",
    "renewal_attention",
    "features",
    "benefits",
)


OFFERED = "offered"
"""In a bundle: the benefit is there for everybody, in the share that each plan gives."""


def plan_names(club: Programme) -> list[str]:
    """Return the names of the plans."""
    return [p.name for p in club.plans]


STRANGE = 10.0
"""A number that changes by more than this factor was probably meant as a percentage or factor."""


def new_value(change: Value | str, old: float, what: str) -> float:
    """Return a new number: given, or a function of the old one; warn where it looks like a slip."""
    new = checks.number(change(old) if callable(change) else change, what, 0)
    small = new < old / STRANGE and "share" not in what and "bundle" not in what
    if old > 0 and new > 0 and (small or new > STRANGE * old):
        warnings.warn(
            f"{what} goes from {old:g} to {new:g}: prices are in money and shares in fractions; for"
            " a factor pass a function (lambda x: 1.2 * x)",
            DynChoiceWarning,
            stacklevel=3,
        )
    return new


def with_prices(club: Club, prices: Mapping[str, Value], grandfathered: bool | str = False) -> Club:
    """Return the programme with other list prices, in every menu.

    Parameters
    ----------
    prices : mapping
        Plan -> new price, or function of the old one.
    grandfathered : bool or "contract"
        Members with a running plan keep their old prices until they leave, or until the contract
        that runs ends.
    """
    checks.known(prices, plan_names(club), "prices: plan")
    check_grandfathered(grandfathered, club.kept is not None)
    old = old_lists(club.plans, club.menus)

    def change_prices(menu: Mapping[str, float]) -> dict[str, float]:
        return {
            name: new_value(prices[name], price, f"price of {name!r}") if name in prices else price
            for name, price in menu.items()
        }

    plans = tuple(
        replace(p, price=change_prices({p.name: p.price})[p.name]) if p.name in prices else p
        for p in club.plans
    )
    menus = {label: change_prices(menu) for label, menu in old.items()} if club.menus else {}
    club = replace(club, plans=plans, menus=menus)
    if not grandfathered:
        return club
    return replace(club, kept=old, kept_until=kept_until(grandfathered))


def with_bundle(club: Club, bundle: Mapping[str, Value | str | Mapping[str, Value | str]]) -> Club:
    """Return the programme with benefits removed (0), restored (1) or improved (2 = doubled).

    ``{benefit: share}`` or ``{benefit: {plan: share}}``: the plans (all, or those named) give that
    share whatever bundle is in force. A function changes the share that each plan has, under the
    bundles in force; ``"offered"`` lifts what they hold back. Chains of use stay what they are,
    but for benefits whose chain depends on the bundle (``by_bundle``).
    """
    checks.known(bundle, [b.name for b in club.benefits], "bundle: benefit")
    plans = []
    released: dict[str, list[str]] = {}
    for p in club.plans:
        shares = {b.name: p.includes(b.name) for b in club.benefits}
        for benefit, share in bundle.items():
            if isinstance(share, Mapping):
                checks.known(share, plan_names(club), f"bundle: {benefit}: plan")
                if p.name not in share:
                    continue
                share = share[p.name]
            if not callable(share):
                released.setdefault(benefit, []).append(p.name)
            if share != OFFERED:
                shares[benefit] = new_value(share, shares[benefit], f"bundle: {benefit}")
        chains = tuple(b.name for b in club.benefits if p.engaged(b.name))
        # members go on to use what they are used to: a benefit's chain outlives its value
        plans.append(replace(p, benefits=shares, engages=chains))

    def release(benefit: str, share: Share) -> Share:
        """Give a benefit in full to the plans whose share now holds whatever the bundle."""
        names = released.get(benefit, [])
        if not names:
            return share
        by_plan = share if isinstance(share, Mapping) else dict.fromkeys(plan_names(club), share)
        return {**by_plan, **dict.fromkeys(names, 1.0)}

    bundles = {
        label: {benefit: release(benefit, share) for benefit, share in in_force.items()}
        for label, in_force in club.bundles.items()
    }
    return replace(club, plans=tuple(plans), bundles=bundles)


def with_plans(club: Club, add: Sequence[Plan] = (), drop: Sequence[str] = ()) -> Club:
    """Return the programme with plans added, or no longer sold (running contracts go on).

    Raises
    ------
    SpecificationError
        Unknown plans to drop; plans to add that are there already; no plan left for sale.
    """
    add = list(add) if isinstance(add, list | tuple) else [add]  # type: ignore[list-item]
    drop = checks.names(drop, "drop")
    checks.known(drop, plan_names(club), "drop: plan")
    wrong = [p for p in add if not isinstance(p, Plan)]
    if wrong:
        raise SpecificationError(f"plans to add must be Plan objects, got {wrong[0]!r}")
    twice = [p.name for p in add if p.name in plan_names(club)]
    if twice:
        raise SpecificationError(f"plan {twice[0]!r} is there already: change its prices or terms")
    kept = tuple(replace(p, for_sale=p.for_sale and p.name not in drop) for p in club.plans)
    if not any(p.for_sale for p in (*kept, *add)):
        raise SpecificationError("no plan would be left for sale")
    return replace(club, plans=(*kept, *add))


def with_terms(club: Club, terms: Mapping[str, Mapping[str, Any]]) -> Club:
    """Return the programme with other terms of some plans.

    ``{plan: {"periods": 6, "trial": 0, "refund": "none", "cancel": "at renewal", ...}}``. Contracts
    and trials that run on the day of the change run to their end, refunded by the new terms.
    """
    checks.known(terms, plan_names(club), "terms: plan")
    plans = []
    for p in club.plans:
        change = checks.mapping(terms.get(p.name, {}), f"terms of {p.name!r}")
        checks.known(change, TERMS, f"terms of {p.name!r}: term")
        if "periods" in change:
            change["running"] = p.clock
        if "trial" in change:
            change["trial_running"] = p.trial_clock
        plans.append(replace(p, **change))
    return replace(club, plans=tuple(plans))


def with_attention(club: Club, attention: float | Mapping[str, float]) -> Club:
    """Return the programme under an attention reform.

    A number holds everywhere within the membership (1: everybody decides actively); a mapping
    takes ``outside``, ``trial``, plan names, and ``PLAN renewal``.
    """
    if not isinstance(attention, Mapping):
        value = check_attention(attention, "attention")
        plans = tuple(replace(p, attention=value, renewal_attention=None) for p in club.plans)
        return replace(club, plans=plans, attention_trial=value, attention_outside=value)
    names = plan_names(club)
    places = ["outside", "trial", *names, *(f"{n} renewal" for n in names)]
    checks.known(attention, places, "attention:")
    values = {k: check_attention(v, f"attention: {k}") for k, v in attention.items()}
    plans = tuple(
        replace(
            p,
            attention=values.get(p.name, p.attention),
            renewal_attention=values.get(f"{p.name} renewal", p.renewal_attention),
        )
        for p in club.plans
    )
    return replace(
        club,
        plans=plans,
        attention_outside=values.get("outside", club.attention_outside),
        attention_trial=values.get("trial", club.attention_trial),
    )


def with_engagement(club: Club, engagement: Mapping[str, Mapping[str, float]]) -> Club:
    """Return the programme with members' chains of use lifted: better callouts.

    ``{benefit: {"gain": factor, "stay": factor}}``.
    """
    checks.known(engagement, [b.name for b in club.benefits], "engagement: benefit")
    benefits: list[Benefit] = []
    for b in club.benefits:
        lift = engagement.get(b.name)
        if lift is not None:
            if not isinstance(lift, Mapping):
                raise SpecificationError(
                    f"engagement: {b.name!r} takes {{'gain': factor, 'stay': factor}}, got {lift!r}"
                )
            factors = {k: checks.number(v, f"engagement: {b.name} {k}", 0) for k, v in lift.items()}
            b = replace(b, lift={**(b.lift or {}), **factors})
        benefits.append(b)
    return replace(club, benefits=tuple(benefits))


def with_benefits(club: Club, add: Sequence[Benefit], values: Mapping[str, float]) -> Club:
    """Return the programme with new benefits, whose chains and values must be given.

    A benefit that nobody has had has no estimate: its value is an assumption, to be varied over
    a range.
    """
    add = list(add) if isinstance(add, list | tuple) else [add]  # type: ignore[list-item]
    wrong = [b for b in add if not isinstance(b, Benefit)]
    if wrong:
        raise SpecificationError(f"benefits to add must be Benefit objects, got {wrong[0]!r}")
    for b in add:
        if not b.known:
            raise SpecificationError(
                f"benefit {b.name!r} was never offered: give its chain (gain=, stay=)"
            )
        if b.name not in values:
            raise SpecificationError(
                f"benefit {b.name!r} was never offered, so the data hold no value of it: give"
                f" new_values={{{b.name!r}: utils}} and vary it over a range (a proxy benefit's"
                " estimate, a conjoint study)"
            )
    plans = tuple(
        p
        if p.benefits is None
        else replace(p, benefits={**p.benefits, **{b.name: 1.0 for b in add}})
        for p in club.plans
    )
    fixed = {**club.fixed, **{b.name: checks.number(values[b.name], b.name) for b in add}}
    grown = replace(club, plans=plans, benefits=(*club.benefits, *add))
    return replace(grown, fixed=fixed)


class Change(Protocol):
    """A change of a programme: the same kind of programme comes back."""

    def __call__(self, club: Club, change: Any, /) -> Club: ...


STEPS: dict[str, Change] = {
    "prices": with_prices,
    "bundle": with_bundle,
    "terms": with_terms,
    "attention": with_attention,
    "engagement": with_engagement,
}


def segment(club: Club, label: str) -> Club:
    """Return the programme of one segment: its prices, parameters and plans.

    Raises
    ------
    SpecificationError
        No such segment.
    """
    # a programme without segments= may still sell plans to some segments only
    labels = list(club.segments) or [s for p in club.plans for s in p.segments or ()]
    checks.known([label], labels, "segment")
    change = club.segments.get(label, {})
    prices, params = change.get("prices", {}), change.get("params", {})
    plans = tuple(
        replace(
            p,
            price=prices.get(p.name, p.price),
            for_sale=p.for_sale and (p.segments is None or label in p.segments),
        )
        for p in club.plans
    )
    return replace(
        club,
        plans=plans,
        menus=change.get("menus", club.menus),
        types=change.get("types", club.types),
        params={**club.params, **{k: v for k, v in params.items() if k not in club.fixed}},
        fixed={k: params.get(k, v) for k, v in club.fixed.items()},
        segments={},
    )


def of_type(club: Club, kind: str) -> Club:
    """Return the programme as one type of customers values it.

    Raises
    ------
    SpecificationError
        No such type.
    """
    checks.known([kind], club.types, "type")
    member, benefits = club.types[kind], {b.name for b in club.benefits}

    def revalue(params: Mapping[str, float]) -> dict[str, float]:
        """Scale the values of benefits, then take what the type names itself."""
        scaled = {k: member.scale * v if k in benefits else v for k, v in params.items()}
        return {k: member.params.get(k, v) for k, v in scaled.items()}

    free = {k: v for k, v in member.params.items() if k not in club.fixed}
    params = {**revalue(club.params), **free}
    return replace(club, params=params, fixed=revalue(club.fixed), types={})


def state_map(old: Programme, new: Programme) -> IntArray:
    """Return where each state (S,) of this programme stands in a changed one.

    Contract levels, menus, bundles and engagement keep their labels; a benefit that is new
    starts unused; under ``kept`` prices, members with a running plan keep theirs.
    """
    index = []
    for axis, levels in new.states.axes.items():
        if axis == VINTAGE and axis not in old.states.axes:  # prices are kept from now on
            paid = old.by_contract(old.contracts.kind) == PAID
            index.append(paid.astype(np.int64))
            continue
        if axis not in old.states.axes:
            index.append(np.zeros(old.states.size, dtype=np.int64))
            continue
        places: dict[Level, int] = {level: i for i, level in enumerate(levels)}
        old_levels = old.states.axes[axis]
        lost = [level for level in old_levels if level not in places]
        if axis == CONTRACT and lost:
            places |= _match_contract_levels(old.contracts, new.contracts)
            lost = [level for level in old_levels if level not in places]
        if lost:
            raise SpecificationError(
                f"level {lost[0]!r} of {axis!r} has no place in the changed programme"
            )
        position = np.array([places[level] for level in old_levels])
        index.append(position[old.states.axis_codes(axis)])
    return np.ravel_multi_index(tuple(index), new.states.shape).astype(np.int64)


def _match_contract_levels(old: Contracts, new: Contracts) -> dict[Level, int]:
    """Return places of old contract labels whose spelling changed with trials or clocks.

    ``monthly`` becomes ``monthly_0`` when the plan's contract gets longer: kind, plan, periods left
    and tenure say that it is the same level.
    """
    out: dict[Level, int] = {}
    for level in old.levels:
        for i, other in enumerate(new.levels):
            if level.label == NONE and other.kind == NEW:  # trials are new: nobody has had one
                out.setdefault(level.label, i)
            same = level.kind == other.kind and level.kind in (TRIAL, PAID)
            same &= (level.left, level.tenure) == (other.left, other.tenure)
            if same and old.plans[level.plan].name == new.plans[other.plan].name:
                out[level.label] = i
    return out
