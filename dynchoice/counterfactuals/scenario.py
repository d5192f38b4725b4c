"""Scenario: what is changed, from when, known since when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice.counterfactuals.applied import AppliedScenario, apply_scenario
from dynchoice.errors import SpecificationError
from dynchoice.membership.names import MENU
from dynchoice.membership.plans import Benefit, Plan
from dynchoice.model.ddc import DDC
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
            if getattr(self, what) is not None:
                checks.mapping(getattr(self, what), f"scenario {self.name!r}: {what}")
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
        """Raise for dates that are no periods, or in an impossible order."""
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
            checks.whole(first, f"scenario {self.name!r}: ramp of region {region!r}", 1)
        for segment, factor in (self.mix or {}).items():
            checks.number(factor, f"scenario {self.name!r}: mix of {segment!r}", 0)

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
        parts = ("prices", "bundle", "terms", "engagement", "attention", "new_values")
        return self.changes_states or any(getattr(self, part) is not None for part in parts)

    def theta(self, model: DDC, theta: FloatArray) -> FloatArray:
        """Return the parameters (K,) under the scenario."""
        if not self.params:
            return theta
        out = theta.copy()
        for name, change in self.params.items():
            checks.known([name], model.names, f"scenario {self.name!r}: parameter")
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

    def applied(self, model: DDC) -> AppliedScenario:
        """Return the scenario applied to a model: what holds then, and where members stand.

        Everything else about a scenario and a model is asked of what this returns, so that a
        programme is changed once, however many ask.
        """
        return apply_scenario(self, model)

    def changed(self, model: DDC) -> DDC:
        """Return the model under the scenario (the same object where nothing changes)."""
        return self.applied(model).model

    def state_map(self, model: DDC) -> IntArray | None:
        """Return where each state stands once it is in force (S,), or None: where it is."""
        return self.applied(model).place
