"""The contract: who is outside, in a trial or under a plan, for how long, and what comes next.

A level of the contract axis is one of

    new                 outside, may have a trial      (``none`` where no plan has a trial)
    lapsed              outside, had a trial; becomes new again at random
    trial PLAN[_m]      a free period is over, m more to come
    PLAN[_m][ yK]       under the plan, m periods of the contract left, K years of tenure

With a monthly and an annual plan, one trial month and three classes of tenure these are the 43
contract states of SOURCES.md 7.3. Everything here is deterministic but two things, both drawn from
their means: how tenure grows within a short contract, and when a lapsed customer may have a
trial again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynchoice.membership.plans import Plan
from dynchoice.typing import BoolArray, FloatArray, IntArray

NONE = "none"
NEW, LAPSED, TRIAL, PAID = range(4)
"""Kinds of contract levels; without trials ``none`` is of kind LAPSED."""


@dataclass(frozen=True)
class Level:
    """One level of the contract axis."""

    label: str
    kind: int
    plan: int = -1
    left: int = 0
    tenure: int = 0


@dataclass(frozen=True)
class Contracts:
    """Levels and moves of the contract axis for a list of plans.

    Attributes
    ----------
    plans : tuple of Plan
    tenure : int
        Classes of tenure (1: not tracked).
    per_year : float
        Periods a year: tenure counts years.
    trial_again : float or None
        Mean number of periods until a lapsed customer may have a trial again; None: never.
    """

    plans: tuple[Plan, ...]
    tenure: int = 1
    per_year: float = 12.0
    trial_again: float | None = 12.0

    @property
    def trials(self) -> bool:
        """Whether some plan has a trial."""
        return any(p.trial_clock for p in self.plans)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """All levels, outside first."""
        out = [Level("new", NEW), Level("lapsed", LAPSED)] if self.trials else [Level(NONE, LAPSED)]
        for i, p in enumerate(self.plans):
            for left in range(p.trial_clock):
                tail = f"_{left}" if p.trial_clock > 1 else ""
                out.append(Level(f"trial {p.name}{tail}", TRIAL, i, left))
        for i, p in enumerate(self.plans):
            for years in range(self.tenure):
                for left in range(p.clock):
                    tail = f"_{left}" if p.clock > 1 else ""
                    tail += f" y{years}" if self.tenure > 1 else ""
                    out.append(Level(f"{p.name}{tail}", PAID, i, left, years))
        return tuple(out)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the contract axis."""
        return tuple(level.label for level in self.levels)

    @cached_property
    def _position(self) -> dict[tuple[int, int, int, int], int]:
        """Position of the level of each (kind, plan, periods left, class of tenure)."""
        return {(x.kind, x.plan, x.left, x.tenure): i for i, x in enumerate(self.levels)}

    @cached_property
    def kind(self) -> IntArray:
        """Kind of each level (C,)."""
        return np.array([x.kind for x in self.levels], dtype=np.int64)

    @cached_property
    def held(self) -> IntArray:
        """Choice code of the plan held (C,): 0 outside, 1 + plan within."""
        return np.array([x.plan + 1 for x in self.levels], dtype=np.int64)

    @cached_property
    def left(self) -> IntArray:
        """Periods of the contract (or trial) left, (C,)."""
        return np.array([x.left for x in self.levels], dtype=np.int64)

    @cached_property
    def years(self) -> IntArray:
        """Class of tenure (C,)."""
        return np.array([x.tenure for x in self.levels], dtype=np.int64)

    @property
    def outside(self) -> int:
        """Level of a customer who leaves."""
        return 1 if self.trials else 0

    def start_level(self, plan: int, years: int) -> int:
        """Return the level after the first period of a paid contract."""
        return self._position[PAID, plan, self.plans[plan].periods - 1, years]

    def next_tenures(self, years: int, periods: int) -> list[tuple[int, float]]:
        """Return (class of tenure, probability) after ``periods`` more under a plan.

        The level does not hold how far into its year a member is: the class grows with the
        probability that makes a year take ``per_year`` periods on average.
        """
        whole, rest = divmod(periods / self.per_year, 1.0)
        top = self.tenure - 1
        low, high = min(years + int(whole), top), min(years + int(whole) + 1, top)
        if rest < 1e-12 or low == high:
            return [(low, 1.0)]
        return [(low, 1 - rest), (high, rest)]

    def follow(self, level: int, choice: int) -> list[tuple[int, float]]:
        """Return (next level, probability) after a choice: 0 for none, 1 + i for plan i.

        A choice that cannot be made there returns the level itself (see :attr:`possible`).
        """
        now = self.levels[level]
        if not self.possible[level, choice]:
            return [(level, 1.0)]
        if choice == 0:
            return self._follow_outside(level)
        plan = choice - 1
        p = self.plans[plan]
        if now.kind == NEW and p.trial:
            return [(self._position[TRIAL, plan, p.trial - 1, 0], 1.0)]
        if now.left > 0:  # a contract or a trial that runs: ``possible`` leaves its own plan only
            return [(self._position[now.kind, plan, now.left - 1, now.tenure], 1.0)]
        if now.kind != PAID:
            return [(self.start_level(plan, 0), 1.0)]
        held = self.plans[now.plan]
        if held.periods == 1 and plan != now.plan:
            # the month of the switch counts under the new plan
            return [(self.start_level(plan, now.tenure), 1.0)]
        tenures = self.next_tenures(now.tenure, held.periods)
        return [(self.start_level(plan, years), share) for years, share in tenures]

    def _follow_outside(self, level: int) -> list[tuple[int, float]]:
        """Return (next level, probability) of who chooses none."""
        kind = self.levels[level].kind
        if kind == NEW or not self.trials:
            return [(level if kind == NEW else 0, 1.0)]
        if kind == LAPSED and self.trial_again is not None:
            back = 1 / self.trial_again
            return [(level, 1 - back), (0, back)] if back < 1 else [(0, 1.0)]
        return [(self.outside, 1.0)]

    @cached_property
    def possible(self) -> BoolArray:
        """Choices that each level allows by contract, whatever is for sale (C, 1 + plans)."""
        out = np.ones((len(self.levels), 1 + len(self.plans)), dtype=bool)
        for i, now in enumerate(self.levels):
            if now.left > 0:  # within a contract or a trial: go on, or quit where one may
                out[i] = False
                out[i, 1 + now.plan] = True
                out[i, 0] = now.kind == TRIAL or self.plans[now.plan].cancel == "any time"
        return out

    @cached_property
    def offered(self) -> BoolArray:
        """Choices that can be made (C, 1 + plans): possible, and for sale if it is a purchase."""
        out = self.possible.copy()
        for i, now in enumerate(self.levels):
            for j, p in enumerate(self.plans):
                running = now.plan == j and now.left > 0
                if not p.for_sale and not running:
                    out[i, 1 + j] = False
        return out

    @cached_property
    def default(self) -> IntArray:
        """Choice that an inattentive member makes (C,): stay outside, go on, or convert."""
        out = np.zeros(len(self.levels), dtype=np.int64)
        for i, now in enumerate(self.levels):
            # a plan that is no longer sold cannot be renewed: the member is out
            if now.plan >= 0 and self.offered[i, 1 + now.plan]:
                ends = now.left == 0 and self.plans[now.plan].renewal == "expire"
                out[i] = 0 if ends else 1 + now.plan
        return out

    @cached_property
    def table(self) -> FloatArray:
        """Probabilities of moves from level to level by choice, (1 + plans, C, C)."""
        C = len(self.levels)
        out = np.zeros((1 + len(self.plans), C, C))
        for j in range(out.shape[0]):
            for i in range(C):
                for k, p in self.follow(i, j):
                    out[j, i, k] += p
        return out

    @cached_property
    def pays(self) -> BoolArray:
        """Whether a choice is charged its plan's price (C, 1 + plans)."""
        out = np.zeros((len(self.levels), 1 + len(self.plans)), dtype=bool)
        for i, now in enumerate(self.levels):
            for j, p in enumerate(self.plans):
                free = now.left > 0 or (now.kind == NEW and p.trial > 0)
                out[i, 1 + j] = self.possible[i, 1 + j] and not free
        return out

    def refund_share(self) -> FloatArray:
        """Return the share of the price of the plan held that is not used up yet (C,)."""
        out = np.zeros(len(self.levels))
        for i, now in enumerate(self.levels):
            if now.kind == PAID and now.left > 0:
                p = self.plans[now.plan]
                # more left than the plan is long: a contract of the length it had before
                length = p.periods if now.left <= p.periods - 1 else max(p.clock, now.left + 1)
                out[i] = now.left / length
        return out
