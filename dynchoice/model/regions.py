"""Counts by region and period, and the path of prices and bundles in each region."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from dynchoice.errors import DataError, SpecificationError
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import Fixed
from dynchoice.panel.counts import Counts
from dynchoice.typing import IntArray, Level

if TYPE_CHECKING:
    import pandas as pd

UNANIMOUS = 0.98
"""Share of a region's members that must see the same new prices and bundle."""


class RegionGrid:
    """Counts by region and period, and where each region's market moves.

    Attributes
    ----------
    labels : tuple
        ``R`` regions.
    n : FloatArray, shape (R, T, S, J)
        Choices that enter the likelihood.
    to : IntArray, shape (R, T-1, F)
        Which Fixed levels (prices, bundle) members at level ``f`` face in the next period.
    clear : BoolArray, shape (R, T-1, F)
        Whether nearly all of them do.
    """

    def __init__(self, model: DDC, counts: Counts) -> None:
        regions = counts.regions
        if regions is None:
            raise SpecificationError(
                "this goes by region and period: build the Panel with region= (a constant column"
                " for a single one)"
            )
        S, J = counts.shape
        self.labels = regions.labels
        self.first, self.kind = counts.first_period, counts.period_kind
        R, self.T = len(regions.labels), counts.last_period - counts.first_period + 1
        if self.T < 2:
            raise DataError("two consecutive periods are needed at least")
        _, r, t, s, j, following, decides = regions.cells.T
        t = t - self.first
        used = decides == 1
        code = ((r * self.T + t) * S + s) * J + j
        flat = np.bincount(code[used], weights=regions.n[used], minlength=R * self.T * S * J)
        self.n = np.asarray(flat, dtype=np.float64).reshape(R, self.T, S, J)
        self.alive = self.n.sum(axis=(2, 3)) > 0
        self.fixed, self.base, self.offset = market_axes(model)
        F = len(self.offset)
        moves = np.zeros((R, self.T - 1, F, F))
        moved = (following >= 0) & (t < self.T - 1)
        levels = self.fixed[s[moved]], self.fixed[following[moved]]
        np.add.at(moves, (r[moved], t[moved], *levels), regions.n[moved])
        total = moves.sum(axis=3)
        self.to = np.where(total > 0, moves.argmax(axis=3), np.arange(F))
        share = np.divide(moves.max(axis=3), total, out=np.ones_like(total), where=total > 0)
        self.clear = share >= UNANIMOUS

    def ahead(self, s: int, to: IntArray) -> IntArray:
        """Return states ``to`` as they read next period in every region, (R, T-1, m)."""
        after = self.offset[self.to[:, :, self.fixed[s]]]
        return np.asarray(self.base[to][None, None, :] + after[:, :, None], dtype=np.int64)

    def period_codes(self, column: pd.Series) -> IntArray:
        """Return periods of a market table as numbers from the first period.

        Integers count as in the panel (``YYYYMM`` where it counts months); texts read
        ``YYYY-MM``.
        """
        import pandas as pd

        if pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype=np.float64)
            if not (values == np.floor(values)).all():
                raise SpecificationError("market: periods must be whole numbers or 'YYYY-MM'")
            periods = values.astype(np.int64)
            if self.kind == "month" and len(periods) and periods.min() >= 190001:
                periods = periods // 100 * 12 + periods % 100 - 1
            return np.asarray(periods - self.first, dtype=np.int64)
        text = column.astype(str)
        if self.kind == "quarter":
            parts = text.str.extract(r"^(\d{4})-?Q([1-4])$")
            if parts.notna().all(axis=None):
                quarters = parts[0].astype(int) * 4 + parts[1].astype(int) - 1
                return np.asarray(quarters.to_numpy() - self.first, dtype=np.int64)
        if not text.str.match(r"^\d{4}(-\d{2})?").all() or text.str.contains("Q").any():
            raise SpecificationError(
                f"market: period {text.iloc[0]!r} reads neither as a number nor as 'YYYY-MM'"
            )
        try:
            year, month = text.str[:4].astype(int), text.str[5:7].astype(int)
        except ValueError:
            raise SpecificationError(
                f"market: period {text.iloc[0]!r} reads neither as a number nor as 'YYYY-MM'"
            ) from None
        months = year * 12 + month - 1
        if self.kind == "quarter":
            months = year * 4 + (month - 1) // 3
        elif self.kind == "year":
            months = year
        return np.asarray(months.to_numpy() - self.first, dtype=np.int64)


def market_axes(model: DDC) -> tuple[IntArray, IntArray, IntArray]:
    """Return the Fixed part of each state (S,), its code without it (S,), and offsets (F,)."""
    S = model.states.size
    F = model.transitions
    zero = np.zeros(S, dtype=np.int64)
    if not isinstance(F, Factored):
        return zero, np.arange(S), np.zeros(1, dtype=np.int64)
    axes = [a for law in F.bound if isinstance(law.family, Fixed) for a in law.axes]
    shape = model.states.shape
    levels = np.unravel_index(np.arange(S), shape)
    strides = np.r_[np.cumprod(shape[:0:-1])[::-1], 1].astype(np.int64)
    code, offsets = zero.copy(), np.zeros(1, dtype=np.int64)
    base = np.arange(S)
    for a in sorted(axes):
        code = code * shape[a] + levels[a]
        base = base - levels[a] * strides[a]
        offsets = (offsets[:, None] + np.arange(shape[a]) * strides[a]).reshape(-1)
    return np.asarray(code, dtype=np.int64), base, offsets


@dataclass(frozen=True)
class MarketEvent:
    """A roll-out, a price change: one axis moves from one level to another, region by region.

    Attributes
    ----------
    axis, before, after
        Axis of the states, and its levels.
    starts : dict
        Region label -> number of the first period under the new level.
    regions : int
        Regions in all.
    label : str
        In words, with the dates.
    """

    axis: str
    before: Level
    after: Level
    starts: dict[Level, int]
    regions: int
    label: str

    @property
    def everywhere(self) -> bool:
        """Whether every region is affected."""
        return len(self.starts) == self.regions

    @property
    def at_once(self) -> bool:
        """Whether every region is affected in the same period: there is no comparison."""
        return self.everywhere and len(set(self.starts.values())) == 1


def market_events(model: DDC, counts: Counts, grid: RegionGrid | None = None) -> list[MarketEvent]:
    """Find when the levels of ``Fixed`` axes (prices, bundle) change, region by region.

    A change counts where more than half of a region's members move between the same two levels of
    one axis from one period to the next. Axes that describe members (a segment) never do.
    """
    if not isinstance(model.transitions, Factored) or counts.regions is None:
        return []
    grid = RegionGrid(model, counts) if grid is None else grid
    cells, n = counts.regions.cells, counts.regions.n
    moved = (cells[:, 5] >= 0) & (cells[:, 2] < counts.last_period)
    _, r, t, s, _, following, _ = cells[moved].T
    n, t = n[moved], t - grid.first
    R, alive = len(grid.labels), int(grid.alive.any(axis=1).sum())
    total = np.bincount(r * grid.T + t, weights=n, minlength=R * grid.T)
    events: list[MarketEvent] = []
    axes = [a for law in model.transitions.bound if isinstance(law.family, Fixed) for a in law.axes]
    for a in sorted(axes):
        name, levels = model.states.names[a], list(model.states.axes[model.states.names[a]])
        code = model.states.axis_codes(name)
        for before, after in permutations(range(len(levels)), 2):
            hit = (code[s] == before) & (code[following] == after)
            hits = np.bincount((r * grid.T + t)[hit], weights=n[hit], minlength=R * grid.T)
            share = np.divide(hits, total, out=np.zeros(len(total)), where=total > 0)
            changes = np.argwhere(share.reshape(R, grid.T) > 0.5)
            if not len(changes):
                continue
            # from the last to the first: the first change of a region is the one that stays
            starts = {grid.labels[i]: int(grid.first + j + 1) for i, j in changes[::-1]}
            low, high = min(starts.values()), max(starts.values())
            span = counts.period_label(low)
            if high > low:
                span += f" to {counts.period_label(high)}"
            label = (
                f"{name} {levels[before]} -> {levels[after]} in {len(starts)} of {alive} regions"
                f" ({span})"
            )
            events.append(
                MarketEvent(
                    axis=name,
                    before=levels[before],
                    after=levels[after],
                    starts=starts,
                    regions=alive,
                    label=label,
                )
            )
    return events
