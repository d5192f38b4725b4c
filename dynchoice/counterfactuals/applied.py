"""A scenario applied to a model, once: the model that holds then and where members stand in it.

Prices, bundles, plans and terms change the programme (:mod:`dynchoice.membership.changes`), from
which the model is built anew with the chains of use as estimated; utility, laws, availability and
lifts change parts of the model itself. A change to what already is leaves the baseline's own model,
so that a scenario which changes nothing changes nothing, to the bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DynChoiceWarning, SpecificationError, suggest
from dynchoice.membership import changes
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import COSTS
from dynchoice.membership.plans import Benefit, Plan
from dynchoice.model.choicesets import check_available
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored, parents_first
from dynchoice.model.laws import Fixed, bind
from dynchoice.model.lifts import lifted
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.counterfactuals.scenario import Scenario


@dataclass(frozen=True)
class AppliedScenario:
    """What a scenario makes of a model.

    Attributes
    ----------
    scenario : Scenario
    base, model : DDC
        Without and with it: the same object where nothing changes.
    place : IntArray, shape (S,), or None
        Where each state of ``base`` stands in ``model`` once the scenario is in force; None where
        everybody stays.
    """

    scenario: Scenario
    base: DDC
    model: DDC
    place: IntArray | None

    def theta(self, theta: FloatArray) -> FloatArray:
        """Return the parameters (K,) under the scenario, given the baseline's."""
        return self.scenario.theta(self.base, theta)


def apply_scenario(scenario: Scenario, base: DDC) -> AppliedScenario:
    """Apply a scenario to a model.

    Raises
    ------
    SpecificationError
        It does not fit the model; the message names the scenario.
    """
    model, place = base, offer_map(scenario, base)
    if scenario.model is not None:
        model = _replacement(scenario, base)
    elif scenario.of_programme:
        model = change_model(scenario, base)
        if scenario.changes_states:
            new_place = base.membership.state_map(model.membership)
            new_place = new_place if place is None else new_place[place]
            moves = not np.array_equal(new_place, np.arange(model.states.size))
            place = np.asarray(new_place) if moves else None
    model = _with_parts(scenario, model)
    # to what already is: the baseline's own object, so that nothing is solved again
    return AppliedScenario(scenario, base, base if is_same_model(model, base) else model, place)


def _replacement(scenario: Scenario, base: DDC) -> DDC:
    """Return the scenario's own model, which must be over the same states and parameters."""
    model = scenario.model
    assert model is not None
    if model.states != base.states or model.choices != base.choices:
        raise SpecificationError(
            f"scenario {scenario.name!r}: its model has other states or choices"
        )
    if model.names != base.names:
        raise SpecificationError(
            f"scenario {scenario.name!r}: its model has other parameters ({', '.join(model.names)})"
        )
    return model


def _with_parts(scenario: Scenario, model: DDC) -> DDC:
    """Return the model with the scenario's utility, laws, availability and lifts."""
    parts: dict[str, Any] = {}
    if scenario.utility is not None:
        parts["utility"] = _utility(scenario, model)
    if scenario.transitions is not None:
        parts["transitions"] = _transitions(scenario, model)
    if scenario.available is not None:
        parts["available"] = check_available(scenario.available, model.states, model.choices)
    if scenario.lift:
        F = parts.get("transitions", model.transitions)
        if not isinstance(F, Factored):
            raise SpecificationError(
                f"scenario {scenario.name!r}: lift= needs a factored model, with an axis for each"
                " benefit"
            )
        try:
            parts["transitions"] = lifted(F, scenario.lift)
        except SpecificationError as error:
            raise SpecificationError(f"scenario {scenario.name!r}: {error}") from None
    return model.with_parts(**parts) if parts else model


def change_model(scenario: Scenario, model: DDC) -> DDC:
    """Return the model of the changed membership, chains of use as estimated."""
    club = model.membership
    if club is None:
        raise SpecificationError(
            f"scenario {scenario.name!r} changes plans, prices or benefits, but the model was not"
            " built by Membership: describe the change by utility=, params=, transitions="
        )
    if not isinstance(model.transitions, Factored):
        raise SpecificationError("a membership's transitions are factored")
    try:
        new = change_programme(club, scenario)
    except SpecificationError as error:
        raise SpecificationError(f"scenario {scenario.name!r}: {error}") from None
    _warn_of_refunds(scenario, club, new)
    try:
        new = _add_values(scenario, club, new, model)
    except SpecificationError as error:
        raise SpecificationError(f"scenario {scenario.name!r}: {error}") from None
    lost = [n for n in model.names if n not in new.all_names]
    if lost:
        raise SpecificationError(f"scenario {scenario.name!r} removes the parameter {lost[0]!r}")
    unseen = [n for n in new.names if n not in model.names]
    if unseen:
        raise SpecificationError(
            f"scenario {scenario.name!r} needs {unseen[0]!r}, which never varied in the data: give"
            f" its value in utils (new_values={{{unseen[0]!r}: ...}}) and vary it over a range"
        )
    fresh = new.model(estimated=(club, model.transitions))
    order = [fresh.names.index(n) for n in model.names]
    if order != list(range(len(order))):
        u = fresh.utility
        fresh = fresh.with_parts(
            utility=Utility.from_array(u.x[:, :, order], model.names, u.offset)
        )
    return fresh


def _warn_of_refunds(scenario: Scenario, club: Membership, new: Membership) -> None:
    """Warn where members who bought on some terms would be refunded by others."""
    before, after = price_lists(club), price_lists(new)
    moved = [
        p.name
        for p in new.plans
        if not scenario.grandfathered
        and refundable(p)
        and before.get(p.name) not in (None, after[p.name])
    ]
    terms = scenario.terms or {}
    changed = [
        p.name
        for p in club.plans
        if refundable(p) and {"periods", "refund"} & set(terms.get(p.name, {}))
    ]
    if not moved and not changed:
        return
    name, what = (moved[0], "price") if moved else (changed[0], "length and rule")
    way = " grandfathered='contract' refunds what was paid"
    warnings.warn(
        f"scenario {scenario.name!r}: running contracts of {name!r} are refunded by the new {what},"
        " whatever was agreed: a change can make quitting (or a cheap start) pay."
        + (way if moved and scenario.ends is None else ""),
        DynChoiceWarning,
        stacklevel=2,
    )


def _add_values(scenario: Scenario, club: Membership, new: Membership, model: DDC) -> Membership:
    """Return a changed programme with the costs it had, and values of what is new in it."""
    if club.costs is None:
        needed = new.usual_costs
        costs = tuple(c for c in COSTS if c in club.used_costs or c in needed)
        new = replace(new, costs=costs)
    supplied = dict(scenario.new_values or {})
    new_benefits = {b.name for b in new.benefits} - {b.name for b in club.benefits}
    unseen = [n for n in new.names if n not in model.names]
    old = [k for k in supplied if k not in unseen and k not in new_benefits]
    if old:
        raise SpecificationError(
            f"new_values: {old[0]!r} is not new to the programme."
            f"{suggest(old[0], [*unseen, *new_benefits])} Estimates are changed by params="
        )
    values = {k: checks.number(supplied[k], f"new_values: {k}") for k in unseen if k in supplied}
    return replace(new, fixed={**new.fixed, **values}) if values else new


def _utility(scenario: Scenario, model: DDC) -> Utility:
    """Return the scenario's utility: its own, the formula on other attributes, or utils added."""
    if isinstance(scenario.utility, Utility):
        if scenario.utility.names != model.names:
            raise SpecificationError(
                f"scenario {scenario.name!r}: its utility has the parameters"
                f" {', '.join(scenario.utility.names)}, the model {', '.join(model.names)}"
            )
        return scenario.utility
    if isinstance(scenario.utility, pd.DataFrame):
        if model.utility.formula is None:
            raise SpecificationError(
                f"scenario {scenario.name!r} gives attributes, but the model's utility was not"
                " built from a formula"
            )
        new = Utility.from_formula(
            model.utility.formula, model.states, model.choices, scenario.utility
        )
        if new.names != model.names:
            raise SpecificationError(
                f"scenario {scenario.name!r}: with its attributes the formula has the parameters"
                f" {', '.join(new.names)}, the model has {', '.join(model.names)}. A level that"
                " the model never had needs a parameter of its own"
            )
        return new.with_offset(model.utility.offset)
    extra = np.asarray(scenario.utility, dtype=np.float64)
    if extra.shape != model.shape[:2] or not np.isfinite(extra).all():
        raise SpecificationError(
            f"scenario {scenario.name!r}: utils to add must be finite with shape"
            f" {model.shape[:2]}, got {extra.shape}"
        )
    return model.utility.with_offset(extra)


def _transitions(scenario: Scenario, model: DDC) -> Transitions:
    """Return the scenario's laws of motion: its own, or some of a factored model replaced."""
    if isinstance(scenario.transitions, Transitions):
        return scenario.transitions
    if not isinstance(model.transitions, Factored) or not isinstance(scenario.transitions, Mapping):
        raise SpecificationError(
            f"scenario {scenario.name!r}: transitions must be Transitions, or {{axis: law}} for a"
            " factored model"
        )
    F = model.transitions
    checks.known(scenario.transitions, F.laws, f"scenario {scenario.name!r}: law of")
    fresh = [bind(F.states, F.choices, k, law) for k, law in scenario.transitions.items()]
    changed = {law.name for law in fresh}
    kept = [law for law in F.bound if law.name not in changed]
    bound = parents_first((*kept, *fresh), F.states)
    return Factored(F.states, F.choices, {**F.laws, **scenario.transitions}, bound)


def offer_map(scenario: Scenario, model: DDC) -> IntArray | None:
    """Return where each state (S,) stands under the offers alone, or None."""
    if not scenario.offer:
        return None
    states = model.states
    index = list(np.unravel_index(np.arange(states.size), states.shape))
    for axis, change in scenario.offer.items():
        number = states.axis(axis)
        if isinstance(model.transitions, Factored):
            law = next(b for b in model.transitions.bound if number in b.axes)
            if not isinstance(law.family, Fixed):
                raise SpecificationError(
                    f"scenario {scenario.name!r}: axis {axis!r} moves by itself"
                    f" ({type(law.family).__name__}); an offer is an axis with law Fixed()"
                )
        moves = np.arange(states.shape[number])
        if isinstance(change, Mapping):
            for old, new in change.items():
                moves[states.level_code(axis, old)] = states.level_code(axis, new)
        else:
            moves[:] = states.level_code(axis, change)
        index[number] = moves[index[number]]
    place = np.ravel_multi_index(tuple(index), states.shape).astype(np.int64)
    return None if np.array_equal(place, np.arange(states.size)) else place


def refundable(p: Plan) -> bool:
    """Return whether who quits a running contract gets money back."""
    return p.clock > 1 and p.refund != "none" and p.cancel == "any time"


def price_lists(club: Membership) -> dict[str, list[float]]:
    """Return each plan's price under every menu."""
    menus = list(club.menus.values()) or [{}]
    return {p.name: [m.get(p.name, p.price) for m in menus] for p in club.plans}


def change_programme(club: Membership, scenario: Scenario) -> Membership:
    """Return a membership as a scenario has it."""
    club = replace(club, costs=club.used_costs)
    benefits = [scenario.benefits] if isinstance(scenario.benefits, Benefit) else scenario.benefits
    values = dict(scenario.new_values or {})
    if benefits:
        club = changes.with_benefits(club, benefits, values)
    plans = [scenario.plans] if isinstance(scenario.plans, Plan) else scenario.plans
    if plans or scenario.drop:
        club = changes.with_plans(club, plans, scenario.drop or ())
    if scenario.prices is not None:
        club = changes.with_prices(club, scenario.prices, scenario.grandfathered)
    elif scenario.grandfathered:
        raise SpecificationError("grandfathered= is for a change of prices")
    for what in ("bundle", "terms", "engagement"):
        change = getattr(scenario, what)
        if change is not None:
            club = changes.STEPS[what](club, change)
    if scenario.attention is not None:
        club = changes.with_attention(club, scenario.attention)
    return club


def is_same_model(a: DDC, b: DDC) -> bool:
    """Return whether two models are equal in everything that a forecast reads."""
    if a is b:
        return True
    if a.states != b.states or a.choices != b.choices or a.beta != b.beta or a.names != b.names:
        return False
    pairs = [(a.utility.x, b.utility.x), (a.utility.offset, b.utility.offset)]
    for what in ("available", "attention", "default", "perceived"):
        pairs.append((getattr(a, what), getattr(b, what)))
    if not all(np.array_equal(x, y) for x, y in pairs) or laws_differ(b, a):
        return False
    one, other = a.membership, b.membership
    if one is None or other is None:
        return one is other
    money = ((one.payments(), other.payments()), (one.refunds(), other.refunds()))
    return one.plans == other.plans or all(np.array_equal(x, y) for x, y in money)


def laws_differ(base: DDC, model: DDC) -> bool:
    """Return whether some law of motion changes (offers that members are moved between do not)."""
    F, G = base.transitions, model.transitions
    if F is G:
        return False
    if not isinstance(F, Factored) or not isinstance(G, Factored):
        a, b = F.stacked(), G.stacked()
        return (
            a is None
            or b is None
            or any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        )
    baseline = {law.name: law for law in F.bound}
    for law in G.bound:
        old = baseline.get(law.name)
        if old is None or (law.n, law.groups, law.by_choice) != (old.n, old.groups, old.by_choice):
            return True
        pairs: tuple[tuple[Any, Any], ...] = (
            (law.table, old.table),
            (law.following, old.following),
        )
        for x, y in pairs:
            if (x is None) != (y is None) or (x is not None and not np.array_equal(x, y)):
                return True
    return len(baseline) != len(G.bound)
