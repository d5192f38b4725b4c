"""Scenario: what is changed, from when, known since when."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from dynchoice.errors import DynChoiceWarning, SpecificationError, suggest
from dynchoice.membership import changes
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import COSTS, MENU
from dynchoice.membership.plans import Benefit, Plan, check_number
from dynchoice.model.choicesets import check_available
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored, parents_first
from dynchoice.model.laws import Fixed, bind
from dynchoice.model.lifts import lifted
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.typing import FloatArray, IntArray, Level

Period: TypeAlias = int
"""A period of the forecast, 1 the first: in a run file it may be a date (run/derived.py)."""
MAPPINGS = (
    "params",
    "offer",
    "prices",
    "bundle",
    "terms",
    "engagement",
    "lift",
    "new_values",
    "ramp",
    "mix",
)


@dataclass(frozen=True)
class Scenario:
    """A change of the model; several at once are fine, and none is the baseline.

    Parameters
    ----------
    name : str
    params : mapping, optional
        Parameter name -> new value, or -> function of the estimate (so that parameter
        uncertainty carries over), e.g. ``{"price": lambda p: 1.1 * p}``.
    utility : Utility, pandas.DataFrame or array (S, J), optional
        Other features; other attributes for the model's own formula; or utils to add.
    transitions : Transitions or mapping, optional
        Another law of motion, or ``{axis: law}`` to replace some laws of a factored one.
    available : array (S, J), optional
    offer : mapping, optional
        ``{axis: level}`` moves every member to that level of a Fixed axis when the scenario
        starts; ``{axis: {old level: new level, ...}}`` moves some.
    model : DDC, optional
        Another model over the same states and choices, instead of the pieces above.
    prices : mapping, optional
        For models built by :class:`dynchoice.Membership`, as are the next ones. Plan -> new list
        price, or function of the old one.
    grandfathered : bool or "contract"
        Members with a running plan keep their prices until they leave; with ``"contract"``, until
        the contract that runs ends. Otherwise a running contract is refunded by the new price.
    bundle : mapping, optional
        Benefit -> share of its value on offer (0 removed, 1 in full, 2 doubled), or
        ``{plan: share}``.
    plans : Plan or sequence of them, optional
        Plans to add, described by price, length, benefits and features; ``like=`` names the plan
        whose members' engagement theirs will resemble.
    drop : str or sequence of str
        Plans no longer sold; contracts that run go on to their end.
    terms : mapping, optional
        ``{plan: {"periods": ..., "trial": ..., "refund": ..., "cancel": ..., "renewal": ...}}``.
    engagement : mapping, optional
        ``{benefit: {"gain": factor, "stay": factor}}``: better (or worse) callouts.
    lift : mapping, optional
        ``{benefit: share}`` of members who would stay without a benefit for a period and start to
        use it instead, for any factored model (an axis with a Markov law): what a callout policy
        brings. The probability to start becomes ``p + (1 - p) lift``; below 0 it falls by as much.
        A number, ``{choice: number}``, or a table by the law's parents with a column ``start``.
    attention : float or mapping, optional
        An attention reform: one number everywhere, or by ``outside``, ``trial``, plan and
        ``PLAN renewal``.
    benefits, new_values : Benefit(s) and mapping, optional
        Benefits never offered before and the value (utils) assumed of each: vary it over a range.
    starts : int
        First period of the forecast in which it holds (1 = the first).
    announced : int, optional
        Period in which members learn of it; until then they do not expect it. Default: when it
        starts (a surprise).
    ends : int, optional
        First period in which it holds no longer, known from the announcement on: a promotion.
    ramp : mapping, optional
        Region -> first period, for a roll-out by region; regions not named never get it. Needs a
        start with regions; ``starts`` is not used then.
    mix : mapping, optional
        Segment -> factor on its number of members, from the first period on.

    Examples
    --------
    >>> Scenario("dearer", params={"price": lambda p: 1.1 * p}, starts=6).starts
    6
    >>> Scenario("annual 159", prices={"annual": 159}, starts=6, announced=3).lead
    3
    """

    name: str
    params: Mapping[str, float | Callable[[float], float]] | None = None
    utility: Any = None
    transitions: Any = None
    available: Any = None
    offer: Mapping[str, Level | Mapping[Any, Level]] | None = None
    model: DDC | None = None
    prices: Mapping[str, float | Callable[[float], float]] | None = None
    grandfathered: bool | Literal["contract"] = False
    bundle: Mapping[str, Any] | None = None
    plans: Plan | Sequence[Plan] = ()
    drop: str | Sequence[str] = ()
    terms: Mapping[str, Mapping[str, Any]] | None = None
    engagement: Mapping[str, Mapping[str, float]] | None = None
    lift: Mapping[str, float | Mapping[Any, float] | Any] | None = None
    attention: float | Mapping[str, float] | None = None
    benefits: Benefit | Sequence[Benefit] = ()
    new_values: Mapping[str, float] | None = None
    starts: Period = 1
    announced: Period | None = None
    ends: Period | None = None
    ramp: Mapping[Any, Period] | None = None
    mix: Mapping[Any, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecificationError(f"a scenario needs a name, got {self.name!r}")
        for what in ("starts", "announced", "ends"):
            if isinstance(getattr(self, what), np.integer):
                object.__setattr__(self, what, int(getattr(self, what)))
        to_dict = getattr(self.params, "to_dict", None)
        if to_dict is not None:
            object.__setattr__(self, "params", to_dict())
        for what in MAPPINGS:
            value = getattr(self, what)
            if value is not None and not isinstance(value, Mapping):
                raise SpecificationError(
                    f"scenario {self.name!r}: {what} must be a mapping, got {value!r}"
                )
        if not isinstance(self.starts, int) or self.starts < 1:
            raise SpecificationError(
                f"scenario {self.name!r}: starts={self.starts!r}; the first period is 1, and dates"
                " are whole numbers of periods from there"
            )
        if self.grandfathered is not False and MENU in (self.offer or {}):
            raise SpecificationError(
                f"scenario {self.name!r}: members moved to another price list by offer= cannot keep"
                " prices too (grandfathered=): say the new prices in prices="
            )
        self._check_dates()
        if self.model is not None and any(
            x is not None for x in (self.utility, self.transitions, self.available, self.lift)
        ):
            raise SpecificationError(
                f"scenario {self.name!r}: give either model= or its pieces, not both"
            )

    def _check_dates(self) -> None:
        """Refuse dates in an impossible order."""
        for what in ("announced", "ends"):
            value = getattr(self, what)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SpecificationError(
                    f"scenario {self.name!r}: {what}={value!r}; 1 is first, and dates are whole"
                    " numbers of periods from there"
                )
        if self.announced is not None and self.announced > self.starts:
            raise SpecificationError(
                f"scenario {self.name!r} is announced in period {self.announced}, after it starts"
                f" ({self.starts})"
            )
        if self.ends is not None and self.ends <= self.starts:
            raise SpecificationError(
                f"scenario {self.name!r} ends in period {self.ends}, before it starts"
            )
        if self.ends is not None and (self.ramp or self.offer or self.changes_states):
            raise SpecificationError(
                f"scenario {self.name!r}: ends= is for changes that leave members where they are"
                " (prices, bundle, params, attention), without ramp, offer, plans, terms or"
                " grandfathering"
            )
        for region, first in (self.ramp or {}).items():
            if not isinstance(first, int | np.integer) or first < 1:
                raise SpecificationError(
                    f"scenario {self.name!r}: ramp of region {region!r} is {first!r}; 1 is first"
                )
        for segment, factor in (self.mix or {}).items():
            if not isinstance(factor, int | float) or not 0 <= factor < np.inf:
                raise SpecificationError(
                    f"scenario {self.name!r}: mix of {segment!r} is {factor!r}; a factor of at"
                    " least 0 is needed"
                )

    @property
    def lead(self) -> int:
        """Periods between announcement and start."""
        return 0 if self.announced is None else self.starts - self.announced

    @property
    def changes_states(self) -> bool:
        """Whether members stand in other states once it holds."""
        return bool(self.plans or self.drop or self.terms or self.grandfathered or self.benefits)

    @property
    def of_programme(self) -> bool:
        """Whether it speaks of plans, prices or benefits of a membership."""
        said = (
            self.prices, self.bundle, self.terms, self.engagement, self.attention, self.new_values,
        )  # fmt: skip
        return self.changes_states or any(x is not None for x in said)

    def theta(self, model: DDC, theta: FloatArray) -> FloatArray:
        """Return the parameters under the scenario."""
        if not self.params:
            return theta
        out = theta.copy()
        for name, change in self.params.items():
            if name not in model.names:
                raise SpecificationError(
                    f"scenario {self.name!r} changes the parameter {name!r}, which the model does"
                    f" not have.{suggest(name, model.names)} Parameters: {', '.join(model.names)}"
                )
            k = model.names.index(name)
            try:
                out[k] = float(change(theta[k]) if callable(change) else change)
                if not np.isfinite(out[k]):
                    raise ValueError
            except (TypeError, ValueError):
                raise SpecificationError(
                    f"scenario {self.name!r}: parameter {name!r} becomes {change!r}, no number"
                ) from None
        return out

    def changed(self, model: DDC) -> DDC:
        """Return the model under the scenario (the same object where nothing changes)."""
        if self.model is not None:
            if self.model.states != model.states or self.model.choices != model.choices:
                raise SpecificationError(
                    f"scenario {self.name!r}: its model has other states or choices"
                )
            if self.model.names != model.names:
                raise SpecificationError(
                    f"scenario {self.name!r}: its model has other parameters"
                    f" ({', '.join(self.model.names)})"
                )
            return self.model
        if self.of_programme:
            model = self.programme(model)
        parts: dict[str, Any] = {}
        if self.utility is not None:
            parts["utility"] = self._utility(model)
        if self.transitions is not None:
            parts["transitions"] = self._transitions(model)
        if self.available is not None:
            parts["available"] = check_available(self.available, model.states, model.choices)
        if self.lift:
            F = parts.get("transitions", model.transitions)
            if not isinstance(F, Factored):
                raise SpecificationError(
                    f"scenario {self.name!r}: lift= needs a factored model, with an axis for each"
                    " benefit"
                )
            try:
                parts["transitions"] = lifted(F, self.lift)
            except SpecificationError as error:
                raise SpecificationError(f"scenario {self.name!r}: {error}") from None
        return model.with_parts(**parts) if parts else model

    def programme(self, model: DDC) -> DDC:
        """Return the model of the changed membership, chains of use as estimated."""
        club = model.membership
        if club is None:
            raise SpecificationError(
                f"scenario {self.name!r} changes plans, prices or benefits, but the model was not"
                " built by Membership: describe the change by utility=, params=, transitions="
            )
        if not isinstance(model.transitions, Factored):
            raise SpecificationError("a membership's transitions are factored")
        try:
            new = changed_programme(club, self)
        except SpecificationError as error:
            raise SpecificationError(f"scenario {self.name!r}: {error}") from None
        self._warn_of_refunds(club, new)
        try:
            new = self._valued(club, new, model)
        except SpecificationError as error:
            raise SpecificationError(f"scenario {self.name!r}: {error}") from None
        lost = [n for n in model.names if n not in new.all_names]
        if lost:
            raise SpecificationError(f"scenario {self.name!r} removes the parameter {lost[0]!r}")
        unseen = [n for n in new.names if n not in model.names]
        if unseen:
            raise SpecificationError(
                f"scenario {self.name!r} needs {unseen[0]!r}, which never varied in the data: give"
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

    def _warn_of_refunds(self, club: Membership, new: Membership) -> None:
        """Say where who bought on some terms is refunded by others."""
        before, after = price_lists(club), price_lists(new)
        moved = [
            p.name
            for p in new.plans
            if not self.grandfathered
            and refundable(p)
            and before.get(p.name) not in (None, after[p.name])
        ]
        told = self.terms or {}
        changed = [
            p.name
            for p in club.plans
            if refundable(p) and {"periods", "refund"} & set(told.get(p.name, {}))
        ]
        if not moved and not changed:
            return
        name, what = (moved[0], "price") if moved else (changed[0], "length and rule")
        way = " grandfathered='contract' refunds what was paid"
        warnings.warn(
            f"scenario {self.name!r}: running contracts of {name!r} are refunded by the new {what},"
            " whatever was agreed: a change can make quitting (or a cheap start) pay."
            + (way if moved and self.ends is None else ""),
            DynChoiceWarning,
            stacklevel=2,
        )

    def _valued(self, club: Membership, new: Membership, model: DDC) -> Membership:
        """Return a changed programme with the costs it had, and values of what is new in it."""
        if club.costs is None:
            needed = new.usual_costs
            costs = tuple(c for c in COSTS if c in club.used_costs or c in needed)
            new = replace(new, costs=costs)
        given = dict(self.new_values or {})
        fresh = {b.name for b in new.benefits} - {b.name for b in club.benefits}
        unseen = [n for n in new.names if n not in model.names]
        strange = [k for k in given if k not in unseen and k not in fresh]
        if strange:
            raise SpecificationError(
                f"new_values: {strange[0]!r} is not new to the programme."
                f"{suggest(strange[0], [*unseen, *fresh])} Estimates are changed by params="
            )
        values = {k: check_number(given[k], f"new_values: {k}") for k in unseen if k in given}
        return replace(new, fixed={**new.fixed, **values}) if values else new

    def _utility(self, model: DDC) -> Utility:
        import pandas as pd

        if isinstance(self.utility, Utility):
            if self.utility.names != model.names:
                raise SpecificationError(
                    f"scenario {self.name!r}: its utility has the parameters"
                    f" {', '.join(self.utility.names)}, the model {', '.join(model.names)}"
                )
            return self.utility
        if isinstance(self.utility, pd.DataFrame):
            if model.utility.formula is None:
                raise SpecificationError(
                    f"scenario {self.name!r} gives attributes, but the model's utility was not"
                    " built from a formula"
                )
            new = Utility.from_formula(
                model.utility.formula, model.states, model.choices, self.utility
            )
            if new.names != model.names:
                raise SpecificationError(
                    f"scenario {self.name!r}: with its attributes the formula has the parameters"
                    f" {', '.join(new.names)}, the model has {', '.join(model.names)}. A level that"
                    " the model never had needs a parameter of its own"
                )
            return new.with_offset(model.utility.offset)
        extra = np.asarray(self.utility, dtype=np.float64)
        if extra.shape != model.shape[:2] or not np.isfinite(extra).all():
            raise SpecificationError(
                f"scenario {self.name!r}: utils to add must be finite with shape"
                f" {model.shape[:2]}, got {extra.shape}"
            )
        return model.utility.with_offset(extra)

    def _transitions(self, model: DDC) -> Transitions:
        if isinstance(self.transitions, Transitions):
            return self.transitions
        if not isinstance(model.transitions, Factored) or not isinstance(self.transitions, Mapping):
            raise SpecificationError(
                f"scenario {self.name!r}: transitions must be Transitions, or {{axis: law}} for a"
                " factored model"
            )
        own = model.transitions
        unknown = [k for k in self.transitions if k not in own.laws]
        if unknown:
            raise SpecificationError(
                f"scenario {self.name!r} changes the law of {unknown[0]!r}, which the model does"
                f" not have.{suggest(unknown[0], own.laws)}"
            )
        fresh = [bind(own.states, own.choices, k, law) for k, law in self.transitions.items()]
        changed = {law.name for law in fresh}
        kept = [law for law in own.bound if law.name not in changed]
        bound = parents_first((*kept, *fresh), own.states)
        return Factored(own.states, own.choices, {**own.laws, **self.transitions}, bound)

    def state_map(self, model: DDC) -> IntArray | None:
        """Return where each state stands once it is in force (S,), or None: where it is."""
        moved = self.offer_map(model)
        if not self.changes_states:
            return moved
        new = self.programme(model).membership
        place = model.membership.state_map(new)
        if moved is not None:
            place = place[moved]
        return None if np.array_equal(place, np.arange(new.states.size)) else np.asarray(place)

    def offer_map(self, model: DDC) -> IntArray | None:
        """Return where each state (S,) stands under the offers alone, or None."""
        if not self.offer:
            return None
        states = model.states
        index = list(np.unravel_index(np.arange(states.size), states.shape))
        for axis, change in self.offer.items():
            at = states.axis(axis)
            if isinstance(model.transitions, Factored):
                law = next(b for b in model.transitions.bound if at in b.axes)
                if not isinstance(law.family, Fixed):
                    raise SpecificationError(
                        f"scenario {self.name!r}: axis {axis!r} moves by itself"
                        f" ({type(law.family).__name__}); an offer is an axis with law Fixed()"
                    )
            moves = np.arange(states.shape[at])
            if isinstance(change, Mapping):
                for old, new in change.items():
                    moves[states.level_code(axis, old)] = states.level_code(axis, new)
            else:
                moves[:] = states.level_code(axis, change)
            index[at] = moves[index[at]]
        place = np.ravel_multi_index(tuple(index), states.shape).astype(np.int64)
        return None if np.array_equal(place, np.arange(states.size)) else place


def refundable(p: Plan) -> bool:
    """Return whether who quits a running contract gets money back."""
    return p.clock > 1 and p.refund != "none" and p.cancel == "any time"


def price_lists(club: Membership) -> dict[str, list[float]]:
    """Return each plan's price under every menu."""
    menus = list(club.menus.values()) or [{}]
    return {p.name: [m.get(p.name, p.price) for m in menus] for p in club.plans}


def changed_programme(club: Membership, scenario: Scenario) -> Membership:
    """Return a membership as a scenario has it."""
    club = replace(club, costs=club.used_costs)
    benefits: Any = scenario.benefits or ()
    values = dict(scenario.new_values or {})
    if benefits:
        club = changes.with_benefits(club, benefits, values)
    plans: Any = scenario.plans or ()
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
