"""Roll-outs by regressions that know nothing of the model: two-way fixed effects, event study.

Everywhere the table is take-up (R, T) by region and month, NaN where nobody was seen, with the
members behind it (R, T), by which regressions weigh; ``used`` (R,) marks the regions in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynchoice._lazy import pd
from dynchoice.model.regions import RegionGrid
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from linearmodels.panel.results import PanelEffectsResults

LEAST_TREATED = 4
"""Treated regions with months before the roll-out that a test of pre-trends needs."""
NEVER = -999
"""Months since the roll-out where it never comes."""
Table: TypeAlias = tuple[FloatArray, FloatArray]
"""Take-up (R, T), NaN where nobody was seen, and members (R, T)."""


def take_up_table(grid: RegionGrid, taken: BoolArray) -> Table:
    """Return the table of take-up; ``taken`` (J,) marks the choices that count."""
    size = grid.n.sum(axis=(2, 3))
    hits = grid.n[..., taken].sum(axis=(2, 3))
    share = np.divide(hits, size, out=np.full_like(hits, np.nan), where=size > 0)
    return share, size


def with_take_up(table: Table, take_up: FloatArray) -> Table:
    """Return the table with other take-up (R, T) where somebody was seen."""
    return np.where(np.isnan(table[0]), np.nan, take_up), table[1]


def compares(treated: BoolArray, cells: BoolArray) -> bool:
    """Return whether region and month effects leave any variation of the treatment in the cells."""
    r, t = np.nonzero(cells)
    d = treated[r, t].astype(np.float64)
    # take off means of regions and months in turn until nothing changes
    for _ in range(200):
        before = d.copy()
        for g in (r, t):
            d = d - (np.bincount(g, weights=d) / np.maximum(np.bincount(g), 1))[g]
        if np.abs(d - before).max(initial=0.0) < 1e-13:
            break
    return bool((d**2).sum() > 1e-8)


def two_way(table: Table, treated: BoolArray, used: BoolArray) -> tuple[float, float]:
    """Return the difference-in-differences and its standard error clustered by region.

    linearmodels' PanelOLS with region and month effects, weighted by members.
    """
    from linearmodels.panel import PanelOLS

    y, size = table
    r, t = np.nonzero(np.isfinite(y) & used[:, None])
    index = pd.MultiIndex.from_arrays([r, t])
    frame = pd.DataFrame(
        {"y": y[r, t], "treated": treated[r, t].astype(float), "w": size[r, t]}, index=index
    )
    fit = PanelOLS(
        frame["y"],
        frame[["treated"]],
        weights=frame["w"] / frame["w"].mean(),
        entity_effects=True,
        time_effects=True,
    ).fit(cov_type="clustered", cluster_entity=True, debiased=True)
    return float(fit.params["treated"]), float(fit.std_errors["treated"])


def event_study(
    table: Table,
    predicted: FloatArray,
    since: IntArray,
    used: BoolArray,
    window: tuple[int, int],
) -> pd.DataFrame:
    """Return effects by months since the roll-out: ``since`` (R, T), :data:`NEVER` where it never
    comes.

    The month before is the reference; months outside the window are pooled at its ends.
    """
    from linearmodels.panel import PanelOLS

    before, after = window
    y, size = table
    r, t = np.nonzero(np.isfinite(y) & used[:, None])
    k = since[r, t]
    ever = k != NEVER
    k = np.where(ever, np.clip(k, -before, after), -1)
    levels = [x for x in range(-before, after + 1) if x != -1 and (k[ever] == x).any()]
    index = pd.MultiIndex.from_arrays([r, t])
    x = pd.DataFrame(
        {f"month {m:+d}": (ever & (k == m)).astype(float) for m in levels}, index=index
    )
    weights = pd.Series(size[r, t] / size[r, t].mean(), index=index)

    def fit(values: FloatArray) -> PanelEffectsResults:
        outcome = pd.Series(values[r, t], index=index, name="y")
        return PanelOLS(
            outcome, x, weights=weights, entity_effects=True, time_effects=True, drop_absorbed=True
        ).fit(cov_type="clustered", cluster_entity=True, debiased=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that the effects absorb
        observed, model = fit(y), fit(predicted)
    names = list(observed.params.index)
    return pd.DataFrame(
        {
            "month": [int(n.split()[1]) for n in names],
            "effect": observed.params.to_numpy(),
            "std_error": observed.std_errors.to_numpy(),
            "structural": model.params.reindex(names).to_numpy(),
        }
    )


def pretrend_pvalue(table: Table, since: IntArray, used: BoolArray, before: int) -> float:
    """Return the p-value of no move in the last half of the months before the roll-out.

    One coefficient, not one a month: with few treated regions a joint test of many clustered
    coefficients rejects far too often.
    """
    last = max(before // 2, 1)
    y, size = table
    early = np.where(since >= 0, np.nan, y)
    lead = (since < 0) & (since >= -last)
    cells = np.isfinite(early) & used[:, None]
    # regions with months in the window and months before it
    earlier = (since < -last) & (since != NEVER)
    able = (lead & cells).any(axis=1) & (earlier & cells).any(axis=1)
    if int(able.sum()) < LEAST_TREATED:
        return float("nan")
    effect, _ = two_way((early, size), lead, used)
    without = [two_way((early, size), lead, keep)[0] for keep in leave_one_out(used)]
    return jackknife(effect, without)[1]


def leave_one_out(used: BoolArray) -> list[BoolArray]:
    """Return the regions used (R,) without each of them in turn."""
    return [used & (np.arange(len(used)) != r) for r in np.flatnonzero(used)]


def jackknife(estimate: float, without: Sequence[float]) -> tuple[float, float]:
    """Return a standard error, and the p-value of zero, from estimates without each region.

    Against Student's t with regions - 1 degrees of freedom.
    """
    from scipy.stats import t as student

    d, G = np.array(without), len(without)
    std_error = float(np.sqrt((G - 1) / G * ((d - d.mean()) ** 2).sum()))
    return std_error, float(2 * student.sf(abs(estimate) / std_error, G - 1))
