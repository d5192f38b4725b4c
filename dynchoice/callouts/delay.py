"""How long clicks take to come: the share that is due by an impression's age.

Of impressions that are still young only early clicks can have come, so that the delays observed
are too short. The distribution is estimated backwards, as for right-truncated data (Lagakos, Barraj
and De Gruttola 1988): among clicks of impressions at least ``d`` old, the share with delay ``d`` of
those with delay up to ``d``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray, IntArray

PRIOR_CLICKS = 1.0
"""Weight of the delays assumed before any was seen."""


@dataclass
class Delays:
    """Counts of clicks by their delay and their impressions' age, for each group of items.

    Parameters
    ----------
    window : float
        Clicks later than this after an impression are not its own: the attribution window, in days.
    groups : int
    assumed : array, shape (days,), optional
        Share of clicks in each day of delay, before any was seen. Default: alike.
    """

    window: float
    groups: int = 1
    assumed: FloatArray | None = None
    settled: FloatArray = field(init=False)
    """Clicks (groups, days) of impressions past the window."""
    young: dict[int, FloatArray] = field(init=False)
    """Day of the impression -> its clicks (groups, days) so far."""

    def __post_init__(self) -> None:
        self.window = checks.positive(self.window, "window")
        if self.assumed is None:
            self.assumed = np.full(self.days, 1 / self.days)
        share = as_floats(self.assumed, "delays")
        if share.shape != (self.days,) or not np.isclose(share.sum(), 1) or (share < 0).any():
            raise SpecificationError(
                f"delays assumed must be {self.days} shares that sum to 1 (one for each day of the"
                " window)"
            )
        self.assumed = share
        self.settled = np.zeros((self.groups, self.days))
        self.young = {}

    @property
    def days(self) -> int:
        """Days in the window, begun ones too: it is cut into so many equal parts."""
        return int(np.ceil(self.window))

    @property
    def width(self) -> float:
        """Length of a part in days."""
        return self.window / self.days

    def grow(self, groups: int) -> None:
        """Make room for more groups."""
        more = ((0, groups - self.groups), (0, 0))
        self.settled = np.pad(self.settled, more)
        self.young = {d: np.pad(n, more) for d, n in self.young.items()}
        self.groups = groups

    def add(self, shown: FloatArray, delay: FloatArray, group: IntArray) -> None:
        """Count clicks: when their impressions were shown, and how long after they came."""
        day = np.floor(shown / self.width).astype(np.int64)
        late = np.minimum(np.floor(delay / self.width).astype(np.int64), self.days - 1)
        for d in np.unique(day):
            of_day = day == d
            table = self.young.setdefault(int(d), np.zeros((self.groups, self.days)))
            np.add.at(table, (group[of_day], late[of_day]), 1.0)

    def advance(self, now: float, forget: float = 1.0) -> None:
        """Move clicks of impressions past the window to those that are settled."""
        self.settled *= forget
        for d in [d for d in self.young if now / self.width - d >= self.days + 1]:
            self.settled += self.young.pop(d)

    def shares(self, now: float) -> FloatArray:
        """Return the estimated share (groups, days + 1) of clicks that come before each age."""
        assert self.assumed is not None
        counts = self.settled + PRIOR_CLICKS * self.assumed
        at_risk = np.zeros_like(counts)  # clicks with delay <= d whose impressions are older than d
        hits = counts.copy()
        at_risk += np.cumsum(counts, axis=1)
        for d, table in self.young.items():
            # an impression of day d may have been shown at its end: days seen in full
            full = int(np.floor(now / self.width - d - 1 + 1e-9))
            k = min(max(full, 0), self.days)
            hits[:, :k] += table[:, :k]
            at_risk[:, :k] += np.cumsum(table, axis=1)[:, :k]
        with np.errstate(invalid="ignore", divide="ignore"):
            hazard = np.where(at_risk > 0, hits / at_risk, 0.0)
        # backwards: of clicks within k + 1 days, the share within k days is 1 less the hazard of k
        out = np.ones((self.groups, self.days + 1))
        for k in range(self.days - 1, -1, -1):
            out[:, k] = out[:, k + 1] * (1 - hazard[:, k])
        out[:, 0] = 0.0
        return out

    def due(self, age: FloatArray, group: IntArray, now: float) -> FloatArray:
        """Return the share of clicks due by each impression's age (n,)."""
        table = self.shares(now)
        return np.array(
            np.where(
                age >= self.window,
                1.0,
                interpolate(table, group, np.clip(age / self.width, 0, self.days)),
            )
        )

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays."""
        return {
            "window": self.window,
            "groups": self.groups,
            "assumed": self.assumed,
            "settled": self.settled,
            "days": np.array(sorted(self.young), np.int64),
            "young": np.array([self.young[d] for d in sorted(self.young)]),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Delays:
        """Return what :meth:`to_tree` took apart."""
        delays = cls(float(tree["window"]), int(tree["groups"]), tree["assumed"])
        delays.settled = tree["settled"]
        delays.young = {int(d): n for d, n in zip(tree["days"], tree["young"], strict=True)}
        return delays


def interpolate(table: FloatArray, group: IntArray, age: FloatArray) -> FloatArray:
    """Return shares (n,) at any age in days, on the straight line between whole days."""
    low = np.minimum(np.floor(age).astype(np.int64), table.shape[1] - 2)
    part = age - low
    return np.asarray((1 - part) * table[group, low] + part * table[group, low + 1])
