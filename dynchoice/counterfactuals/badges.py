"""What an answer rests on: the data, the anchor, the functional form, or an assumption.

Choice data identify payoffs up to those of one choice (SOURCES.md 6.1). A counterfactual that only
adds known amounts to payoffs, drops choices, or changes who pays attention does not need the rest;
one that changes how states move does, unless the criterion of Kalouptsidi, Scott and
Souza-Rodrigues (2021) holds. Amounts in money need a price parameter, which prices that vary
identify; a plan or offer never seen is priced by its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    found: list[tuple[str, str]] = []
    found += _dynamics(scenario, base, model, place)
    found += _features(scenario, base, model, place, counts)
    if counts is None:
        found.append((ASSUMED, "the parameters are calibrated or assumed, not estimated"))
    label = max((x for x, _ in found), key=ORDER.index, default=IDENTIFIED)
    price = _price(base, counts)
    money = label if price is None else max(label, price[0], key=ORDER.index)
    return Badge(label, tuple(dict.fromkeys(reason for _, reason in found)), money)


def _price(base: DDC, counts: FloatArray | None) -> tuple[str, str] | None:
    """Return what the price parameter rests on, for a membership."""
    club = base.membership
    if club is None:
        return None
    if PRICE in club.fixed:
        return ASSUMED, f"the price parameter is fixed at {club.fixed[PRICE]:g}"
    if counts is not None:
        seen = counts.sum(axis=1) > 0
        if not (np.ptp(club.prices()[seen], axis=0) > 0).any():
            return FORM, (
                "prices never varied in the data: the price parameter comes from plans' prices"
                " alone; give a range of it (params={'price': ...})"
            )
    return IDENTIFIED, "prices change by a known amount, given the price parameter"


def _dynamics(s: Scenario, base: DDC, model: DDC, place: IntArray | None) -> list[tuple[str, str]]:
    """Return what follows from how choices and laws of motion change."""
    if model is base:
        return []
    out: list[tuple[str, str]] = []
    same_space = model.states == base.states and model.choices == base.choices
    moved = not same_space or laws_differ(base, model)
    if moved or model.beta != base.beta:
        what = "laws of motion change" if moved else "the discount factor changes"
        labels = {p.name: p.like for p in _new_plans(s)}
        if max(base.states.size, model.states.size) <= CRITERION_STATES and not (
            set(model.choices) - set(base.choices)
        ):
            check = check_identified(base, model, state_map=_back(base, model, place))
            gap = max(check.norms.values(), default=0.0)
            if check.identified:
                out.append((IDENTIFIED, f"{what}, and the criterion still holds (gap {gap:.1g})"))
            else:
                out.append((ANCHOR, f"{what}: max |A_j - A~_j| = {gap:.2g}, rank {check.rank}"))
        elif labels:
            out.append((ANCHOR, "a plan is added: its payoffs and moves come from its features"))
        else:
            out.append((ANCHOR, f"{what}; too many states for the criterion, so not claimed"))
    elif (model.available & ~base.available).any():
        n = int((model.available & ~base.available).sum())
        out.append((FORM, f"{n:,} state-choice pairs become available"))
    if same_space and (base.available & ~model.available).any():
        out.append((IDENTIFIED, "choices are dropped: identified"))
    if not np.array_equal(_small(base.attention), _small(model.attention)):
        out.append((IDENTIFIED, "attention changes: payoffs and laws stay, identified"))
    return out


def _small(a: FloatArray) -> FloatArray:
    return np.unique(a)


def _new_plans(s: Scenario) -> tuple[Any, ...]:
    plans = s.plans or ()
    return tuple(plans) if isinstance(plans, tuple | list) else (plans,)


def _back(base: DDC, model: DDC, place: IntArray | None) -> IntArray | None:
    """Return for each state of the new model the baseline state whose payoffs it has, if one."""
    if place is None or model.states == base.states:
        return None
    back = np.zeros(model.states.size, dtype=np.int64)
    old, new = base.states, model.states
    shared = [a for a in new.axes if a in old.axes]
    index = []
    for a in old.axes:
        if a in shared:
            at = {level: i for i, level in enumerate(old.axes[a])}
            codes = np.array([at.get(level, 0) for level in new.axes[a]])
            index.append(codes[new.axis_codes(a)])
        else:
            index.append(np.zeros(new.size, dtype=np.int64))
    back[:] = np.ravel_multi_index(tuple(index), old.shape)
    return back


def _beyond(
    club: Membership, new: Membership, plans: list[str], seen: BoolArray, where: IntArray
) -> list[tuple[str, str]]:
    """Return a reason where a price of states seen goes where none was seen."""
    out = []
    for name in plans:
        if name not in club.choices:
            continue
        own = club.prices()[seen, club.choices.index(name) - 1]
        low, high = float(own.min()), float(own.max())
        after = new.prices()[where, new.choices.index(name) - 1]
        after = after[(after < low) | (after > high)]
        if len(after):
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            price = f"{after.min():g}" if np.ptp(after) == 0 else f"{after.min():g}-{after.max():g}"
            out.append(
                (IDENTIFIED, f"the price of {name!r} goes to {price}, seen were {span}: beyond them"
                 " everything rests on utility being linear in price")
            )  # fmt: skip
    return out


def _features(
    s: Scenario, base: DDC, model: DDC, place: IntArray | None, counts: FloatArray | None
) -> list[tuple[str, str]]:
    """Return what follows from the features that the scenario changes or needs."""
    out: list[tuple[str, str]] = []
    if s.params or s.utility is not None:
        out.append((IDENTIFIED, "utility changes by a known amount, given the parameters"))
    club = base.membership
    if s.bundle and club is not None:
        held = [k for k in s.bundle if k in club.fixed]
        if held:
            out.append((ASSUMED, f"the value of {held[0]!r} is fixed, not estimated"))
        else:
            out.append((IDENTIFIED, "the value of benefits changes by known shares of estimates"))
    new = s.benefits or ()
    for b in new if isinstance(new, tuple | list) else (new,):
        out.append((ASSUMED, f"{b.name!r} was never offered: its value is the one supplied"))
    seen = None if counts is None else counts.sum(axis=1) > 0
    price = _price(base, counts)
    if (s.prices or s.terms or s.plans) and price is not None:
        out.append(price)
    if s.prices and seen is not None and club is not None and model.membership is not None:
        where = np.flatnonzero(seen) if place is None else place[seen]
        out += _beyond(club, model.membership, list(s.prices), seen, where)
    if place is not None and seen is not None and s.offer:
        moved = offer_map(s, base)
        if moved is not None:
            lost = seen & ~seen[moved]
            if lost.any():
                out.append(
                    (FORM, f"{int(lost.sum()):,} seen states move to offers never seen: utility"
                     " there rests on the functional form")
                )  # fmt: skip
            else:
                out.append((IDENTIFIED, "the offer was seen in the panel"))
    return out
