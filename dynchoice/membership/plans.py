"""What a membership programme sells: plans and benefits, in words and money."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.typing import FloatArray

REFUNDS = ("none", "unused", "prorated")
CANCELS = ("any time", "at renewal")
RENEWALS = ("auto", "expire")


def assign(part: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass while it is being made."""
    object.__setattr__(part, name, value)


def check_name(name: object, what: str) -> str:
    """Return a name that can label an axis, a choice or a parameter."""
    if not isinstance(name, str) or not name.strip():
        raise SpecificationError(f"{what} needs a name, got {name!r}")
    return name


def check_number(value: object, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number within bounds: :func:`dynchoice.checks.number`."""
    return checks.number(value, what, low, high)


def check_attention(value: object, what: str) -> float:
    """Return an attention probability, in (0, 1]."""
    number = checks.share(value, what)
    if number == 0:
        raise SpecificationError(f"{what}=0: nobody would ever choose; it must be above 0")
    return number


MOST_PERIODS, MOST_LEVELS = 1_200, 1_000
"""Longest contracts, trials and tenures, in periods; most levels of use of a benefit."""


@dataclass(frozen=True)
class Plan:
    """One plan on offer.

    Parameters
    ----------
    name : str
        The choice label.
    price : float
        Money per contract (a month of a monthly plan, a year of an annual one).
    periods : int
        Contract length in periods.
    trial : int
        Free periods for members who have not had a trial (or not for long).
    refund : {"none", "unused", "prorated"}
        What a member who quits during a contract gets back: nothing, the share of the list price
        in force not yet used up if no benefit is in use (SOURCES.md 7.3), or that share in any
        case. Where a price changes, running contracts are refunded by the new one unless the
        change is grandfathered.
    cancel : {"any time", "at renewal"}
        Whether a running contract can be quit.
    renewal : {"auto", "expire"}
        What happens to an inattentive member when the contract ends.
    attention, renewal_attention : float
        Probability of an active choice in a period of the contract, and when it ends (default:
        the same).
    benefits : mapping, optional
        Benefit name -> share of its value that the plan includes. Default: every benefit in full.
    engages : tuple of str, optional
        Benefits whose members' chain of use holds under the plan. Default: those it includes.
    features : mapping, optional
        Further features, each a parameter in utils per period of membership under the plan.
    for_sale : bool
        Whether it can be bought; running contracts go on in any case.
    segments : tuple of str, optional
        Segments that may buy it (a student plan). Default: all.
    like : str, optional
        For a plan never seen: the plan whose members' engagement its members will show.
    running, trial_running : int, optional
        Longest contract and trial still running from before, where they have been shortened.

    Examples
    --------
    >>> Plan("annual", price=139, periods=12, refund="unused").periods
    12
    """

    name: str
    price: float
    periods: int = 1
    trial: int = 0
    refund: str = "none"
    cancel: str = "any time"
    renewal: str = "auto"
    attention: float = 1.0
    renewal_attention: float | None = None
    benefits: Mapping[str, float] | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    for_sale: bool = True
    segments: tuple[str, ...] | None = None
    like: str | None = None
    running: int | None = None
    trial_running: int | None = None
    engages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        plan = f"plan {check_name(self.name, 'a plan')!r}"
        assign(self, "price", checks.number(self.price, f"{plan}: price", 0))
        assign(self, "periods", checks.whole(self.periods, f"{plan}: periods", 1, MOST_PERIODS))
        assign(self, "trial", checks.whole(self.trial, f"{plan}: trial", 0, MOST_PERIODS))
        for what, words in (("refund", REFUNDS), ("cancel", CANCELS), ("renewal", RENEWALS)):
            checks.one_of(getattr(self, what), f"{plan}: {what}", words)
        assign(self, "attention", check_attention(self.attention, f"{plan}: attention"))
        if self.renewal_attention is not None:
            renewal = check_attention(self.renewal_attention, f"{plan}: renewal_attention")
            assign(self, "renewal_attention", renewal)
        for what in ("benefits", "features"):
            if getattr(self, what) is not None:
                values = checks.mapping(getattr(self, what), f"{plan}: {what}")
                numbers = {k: checks.number(v, f"{plan}: {what}: {k}") for k, v in values.items()}
                assign(self, what, numbers)
        for what in ("segments", "engages"):
            if getattr(self, what) is not None:
                assign(self, what, checks.names(getattr(self, what), f"{plan}: {what}"))
        for what, least in (("running", 1), ("trial_running", 0)):
            periods = getattr(self, what)
            if periods is not None:
                assign(self, what, checks.whole(periods, f"{plan}: {what}", least, MOST_PERIODS))

    @property
    def clock(self) -> int:
        """Levels of the contract clock: periods of the longest contract that may be running."""
        return max(self.periods, self.running or 0)

    @property
    def trial_clock(self) -> int:
        """Periods of the longest trial that may be running."""
        return max(self.trial, self.trial_running or 0)

    def attention_at(self, left: int) -> float:
        """Return the probability of an active choice with ``left`` periods to go."""
        if self.renewal_attention is not None and self.clock > 1 and left == 0:
            return self.renewal_attention
        return self.attention

    def engaged(self, benefit: str) -> bool:
        """Whether members under the plan come to use a benefit as members do."""
        return self.includes(benefit) > 0 if self.engages is None else benefit in self.engages

    def includes(self, benefit: str) -> float:
        """Return the share of a benefit's value that the plan gives."""
        return 1.0 if self.benefits is None else float(self.benefits.get(benefit, 0.0))


@dataclass(frozen=True)
class Benefit:
    """One benefit: how members come to use it, and what it costs.

    Use is a level 0, 1, ... (usually not in use / in use) that moves by a Markov chain of its
    own, another one within the membership than outside. Its value is the parameter of its name:
    utils per level and period of membership.

    Parameters
    ----------
    name : str
    gain, stay : float, optional
        Probability of being in use next period from not / from being in use, under a plan that
        includes it. Without them the chain is estimated from the panel, plan by plan.
    gain_outside, stay_outside : float, optional
        The same outside the membership. Default: like a member.
    levels : int
        Levels of use. With more than two the chain is estimated or given by ``law``.
    law : array (2, levels, levels), optional
        Chains outside and inside the membership, instead of the four numbers.
    given : tuple of str
        Benefits whose level moves this one (groceries come with the parcels). Estimated laws
        only.
    by_bundle : bool
        Whether the chain depends on the bundle in force (a roll-out brings usage).
    cost : float
        Money per level in use and member-period.
    lift : mapping, optional
        ``{"gain": factor, "stay": factor}`` on members' probabilities: better callouts.

    Examples
    --------
    >>> Benefit("video", gain=0.12, stay=0.93).table().shape
    (2, 2, 2)
    """

    name: str
    gain: float | None = None
    stay: float | None = None
    gain_outside: float | None = None
    stay_outside: float | None = None
    levels: int = 2
    law: Any = None
    given: tuple[str, ...] = ()
    by_bundle: bool = False
    cost: float = 0.0
    lift: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        benefit = f"benefit {check_name(self.name, 'a benefit')!r}"
        assign(self, "levels", checks.whole(self.levels, f"{benefit}: levels", 2, MOST_LEVELS))
        assign(self, "given", checks.names(self.given, f"{benefit}: given"))
        assign(self, "cost", checks.number(self.cost, f"{benefit}: cost"))
        self._check_chain(benefit)
        if self.law is not None:
            assign(self, "law", self._checked_law(benefit))
        if self.lift is not None:
            assign(self, "lift", self._checked_lift(benefit, self.lift))

    def _check_chain(self, benefit: str) -> None:
        """Check that the four probabilities, ``law`` and ``given`` go together."""
        for what in ("gain", "stay", "gain_outside", "stay_outside"):
            value = getattr(self, what)
            if value is not None:
                assign(self, what, checks.share(value, f"{benefit}: {what}"))
        if (self.gain is None) != (self.stay is None):
            raise SpecificationError(f"{benefit}: give both gain and stay, or neither")
        if self.gain is None and (self.gain_outside is not None or self.stay_outside is not None):
            raise SpecificationError(
                f"{benefit} has a chain outside the membership and none inside: give gain and stay"
                " too"
            )
        if self.gain is not None and (self.levels != 2 or self.law is not None):
            raise SpecificationError(
                f"{benefit}: gain and stay are for two levels of use and no law="
            )
        if self.known and self.given:
            raise SpecificationError(f"{benefit}: given= is for chains that are estimated")

    def _checked_law(self, benefit: str) -> list[list[list[float]]]:
        """Return ``law`` as nested lists, which compare and are saved as plain values."""
        shape = (2, self.levels, self.levels)
        try:
            law = np.asarray(self.law, dtype=np.float64)
        except (TypeError, ValueError):
            raise SpecificationError(
                f"{benefit}: law must be numbers of shape {shape}, got {self.law!r}"
            ) from None
        if law.shape != shape or (law < 0).any() or np.abs(law.sum(axis=2) - 1).max() > 1e-8:
            raise SpecificationError(
                f"{benefit}: law must hold two chains with rows that sum to one, shape {shape}; got"
                f" {law.shape}"
            )
        chains: list[list[list[float]]] = law.tolist()
        return chains

    def _checked_lift(self, benefit: str, lift: object) -> dict[str, float]:
        """Return ``lift`` with factors from 0, of ``gain`` and ``stay`` alone."""
        factors = checks.mapping(lift, f"{benefit}: lift")
        checks.known(factors, ("gain", "stay"), f"{benefit}: lift:")
        if self.levels != 2:
            raise SpecificationError(
                f"{benefit}: lift is for two levels of use, this one has {self.levels}"
            )
        return {k: checks.number(v, f"{benefit}: lift: {k}", 0) for k, v in factors.items()}

    @property
    def known(self) -> bool:
        """Whether the chain is given; otherwise it is estimated."""
        return self.gain is not None or self.law is not None

    def table(self) -> FloatArray:
        """Return the chains (2, levels, levels) outside and inside, ``lift`` not applied."""
        if self.law is not None:
            return np.asarray(self.law, dtype=np.float64)
        assert self.gain is not None and self.stay is not None
        gain = self.gain if self.gain_outside is None else self.gain_outside
        stay = self.stay if self.stay_outside is None else self.stay_outside
        rows = [[gain, stay], [self.gain, self.stay]]
        return np.array([[[1 - p, p] for p in pair] for pair in rows])

    def lifted(self, rows: FloatArray) -> FloatArray:
        """Return members' chains (..., 2, 2) with ``lift`` applied, probabilities at most 1."""
        if self.lift is None:
            return rows
        out = rows.copy()
        for level, what in enumerate(("gain", "stay")):
            p = np.minimum(out[..., level, 1] * self.lift.get(what, 1.0), 1.0)
            out[..., level, 0], out[..., level, 1] = 1 - p, p
        return out


@dataclass(frozen=True)
class MemberType:
    """An unobserved type of customers: its share and what it values otherwise.

    Parameters
    ----------
    share : float
    scale : float
        Multiplies the values of all benefits.
    params : mapping
        Parameters in which it differs.
    """

    share: float
    scale: float = 1.0
    params: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assign(self, "share", checks.share(self.share, "share of a type"))
        assign(self, "scale", checks.number(self.scale, "scale of a type"))
        params = checks.mapping(self.params, "params of a type")
        assign(self, "params", {k: checks.number(v, f"type: {k}") for k, v in params.items()})
