"""What an answer rests on: the data, the anchor, the functional form, or an assumption.

Choice data identify payoffs up to those of one choice (SOURCES.md 6.1). A counterfactual that only
adds known amounts to payoffs, drops choices, or changes who pays attention does not need the rest;
one that changes how states move does, unless the criterion of Kalouptsidi, Scott and
Souza-Rodrigues (2021) holds. Amounts in money need a price parameter, which prices that vary
identify; a plan or offer never seen is priced by its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dynchoice.counterfactuals.applied import AppliedScenario, laws_differ, offer_map
from dynchoice.counterfactuals.identified import check_identified
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import PRICE
from dynchoice.model.ddc import DDC
from dynchoice.typing import BoolArray, FloatArray, IntArray

IDENTIFIED = "identified"
FORM = "rests on functional form"
ANCHOR = "rests on the anchor"
ASSUMED = "rests on assumed values"
ORDER = (IDENTIFIED, FORM, ANCHOR, ASSUMED)
Reason: TypeAlias = tuple[str, str]
"""What a number rests on (one of :data:`ORDER`), and why."""
CRITERION_STATES = 700
"""States up to which the criterion is computed by default; beyond, changed laws are not claimed."""


@dataclass(frozen=True)
class Badge:
    """The weakest thing that a scenario's numbers rest on, and why."""

    label: str
    reasons: tuple[str, ...]
    money: str = IDENTIFIED
    """The same for amounts in money, which need the price parameter in any case."""

    @property
    def identified(self) -> bool:
        """Whether the answer needs neither the anchor nor more than the features that varied."""
        return self.label == IDENTIFIED

    def __str__(self) -> str:
        return f"{self.label}: {'; '.join(self.reasons)}" if self.reasons else self.label


def badge(applied: AppliedScenario, counts: FloatArray | None) -> Badge:
    """Return what a scenario's numbers rest on.

    Parameters
    ----------
    applied : AppliedScenario
    counts : FloatArray, shape (S, J), optional
        The data's choices; None (or none at all) for a calibrated model.
    """
    scenario, base, model, place = applied.scenario, applied.base, applied.model, applied.place
    if counts is not None and not counts.any():
        counts = None
    because = _dynamics(scenario, base, model, place)
    because += _features(scenario, base, model, place, counts)
    if counts is None:
        because.append((ASSUMED, "the parameters are calibrated or assumed, not estimated"))
    label = max((label for label, _ in because), key=ORDER.index, default=IDENTIFIED)
    price = _price(base, counts)
    money = label if price is None else max(label, price[0], key=ORDER.index)
    return Badge(label, tuple(dict.fromkeys(reason for _, reason in because)), money)


def _price(base: DDC, counts: FloatArray | None) -> Reason | None:
    """Return what the price parameter rests on, for a membership."""
    club = base.membership
    if club is None:
        return None
    if PRICE in club.fixed:
        return ASSUMED, f"the price parameter is fixed at {club.fixed[PRICE]:g}"
    if counts is not None:
        observed = counts.sum(axis=1) > 0
        if not (np.ptp(club.prices()[observed], axis=0) > 0).any():
            return FORM, (
                "prices never varied in the data: the price parameter comes from plans' prices"
                " alone; give a range of it (params={'price': ...})"
            )
    return IDENTIFIED, "prices change by a known amount, given the price parameter"


def _dynamics(scenario: Scenario, base: DDC, model: DDC, place: IntArray | None) -> list[Reason]:
    """Return what follows from how choices and laws of motion change."""
    if model is base:
        return []
    out: list[Reason] = []
    same_space = model.states == base.states and model.choices == base.choices
    moved = not same_space or laws_differ(base, model)
    if moved or model.beta != base.beta:
        what = "laws of motion change" if moved else "the discount factor changes"
        if max(base.states.size, model.states.size) <= CRITERION_STATES and not (
            set(model.choices) - set(base.choices)
        ):
            check = check_identified(base, model, state_map=_back(base, model, place))
            gap = max(check.norms.values(), default=0.0)
            if check.identified:
                out.append((IDENTIFIED, f"{what}, and the criterion still holds (gap {gap:.1g})"))
            else:
                out.append((ANCHOR, f"{what}: max |A_j - A~_j| = {gap:.2g}, rank {check.rank}"))
        elif scenario.plans:
            out.append((ANCHOR, "a plan is added: its payoffs and moves come from its features"))
        else:
            out.append((ANCHOR, f"{what}; too many states for the criterion, so not claimed"))
    elif (model.available & ~base.available).any():
        n = int((model.available & ~base.available).sum())
        out.append((FORM, f"{n:,} state-choice pairs become available"))
    if same_space and (base.available & ~model.available).any():
        out.append((IDENTIFIED, "choices are dropped: identified"))
    # the levels of attention, since the states may be others
    if not np.array_equal(np.unique(base.attention), np.unique(model.attention)):
        out.append((IDENTIFIED, "attention changes: payoffs and laws stay, identified"))
    return out


def _back(base: DDC, model: DDC, place: IntArray | None) -> IntArray | None:
    """Return for each state of the new model the baseline state whose payoffs it has, if one."""
    if place is None or model.states == base.states:
        return None
    old, new = base.states, model.states
    index = []
    for axis in old.axes:
        if axis in new.axes:
            code = {level: i for i, level in enumerate(old.axes[axis])}
            codes = np.array([code.get(level, 0) for level in new.axes[axis]])
            index.append(codes[new.axis_codes(axis)])
        else:
            index.append(np.zeros(new.size, dtype=np.int64))
    return np.asarray(np.ravel_multi_index(tuple(index), old.shape), dtype=np.int64)


def _beyond(
    club: Membership, new: Membership, plans: list[str], observed: BoolArray, states: IntArray
) -> list[Reason]:
    """Return a reason where the price of a plan goes where none was observed.

    ``observed`` (S,) marks states of the baseline with choices, ``states`` are where they go.
    """
    out = []
    for name in plans:
        if name not in club.choices:
            continue
        before = club.prices()[observed, club.choices.index(name) - 1]
        low, high = float(before.min()), float(before.max())
        after = new.prices()[states, new.choices.index(name) - 1]
        after = after[(after < low) | (after > high)]
        if len(after):
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            price = f"{after.min():g}" if np.ptp(after) == 0 else f"{after.min():g}-{after.max():g}"
            reason = (
                f"the price of {name!r} goes to {price}, seen were {span}: beyond them everything"
                " rests on utility being linear in price"
            )
            out.append((IDENTIFIED, reason))
    return out


def _features(
    scenario: Scenario,
    base: DDC,
    model: DDC,
    place: IntArray | None,
    counts: FloatArray | None,
) -> list[Reason]:
    """Return what follows from the features that the scenario changes or needs."""
    out: list[Reason] = []
    if scenario.params or scenario.utility is not None:
        out.append((IDENTIFIED, "utility changes by a known amount, given the parameters"))
    club = base.membership
    if scenario.bundle and club is not None:
        fixed = [name for name in scenario.bundle if name in club.fixed]
        if fixed:
            out.append((ASSUMED, f"the value of {fixed[0]!r} is fixed, not estimated"))
        else:
            out.append((IDENTIFIED, "the value of benefits changes by known shares of estimates"))
    new = scenario.benefits or ()
    for benefit in new if isinstance(new, tuple | list) else (new,):
        out.append((ASSUMED, f"{benefit.name!r} was never offered: its value is the one supplied"))
    observed = None if counts is None else counts.sum(axis=1) > 0
    price = _price(base, counts)
    if (scenario.prices or scenario.terms or scenario.plans) and price is not None:
        out.append(price)
    programme = model.membership
    if scenario.prices and observed is not None and club is not None and programme is not None:
        states = np.flatnonzero(observed) if place is None else place[observed]
        out += _beyond(club, programme, list(scenario.prices), observed, states)
    if place is not None and observed is not None and scenario.offer:
        moved = offer_map(scenario, base)
        if moved is not None:
            strange = int((observed & ~observed[moved]).sum())
            if strange:
                reason = (
                    f"{strange:,} seen states move to offers never seen: utility there rests on the"
                    " functional form"
                )
                out.append((FORM, reason))
            else:
                out.append((IDENTIFIED, "the offer was seen in the panel"))
    return out
