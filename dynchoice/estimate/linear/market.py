"""Market variables by region and period: multipliers of features, and instruments for them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, SpecificationError, first_few, suggest
from dynchoice.model.regions import RegionGrid
from dynchoice.panel.counts import period_label
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray

StandIns = dict[str, list[FloatArray | None]]
"""Parameter -> market tables (R, T) that instrument its own; None for the feature alone."""


def read_market(
    names: Sequence[str],
    grid: RegionGrid,
    market: pd.DataFrame | None,
    instruments: Mapping[str, str | Sequence[str]] | None,
) -> tuple[dict[str, FloatArray], StandIns, list[str]]:
    """Return each multiplier (R, T) by parameter, stand-ins for instruments, unused columns.

    Raises
    ------
    SpecificationError
        Columns that look like a misspelt parameter; names that are not known; lags of variables
        that are not there.
    DataError
        Region-periods twice, or missing where there are members; values that are no numbers.
    """
    tables = _tables(grid, market) if market is not None else {}
    multipliers = {n: tables[n] for n in names if n in tables}
    for name, table in multipliers.items():
        missing = np.isnan(table) & grid.alive
        if missing.any():
            i, j = np.argwhere(missing)[0]
            raise DataError(
                f"market variable {name!r} is missing for {int(missing.sum()):,} region-periods"
                f" with members, first: region {grid.labels[i]!r} at"
                f" {period_label(grid.first + int(j), grid.kind)}"
            )
    stand_ins: StandIns = {n: [multipliers.get(n)] for n in names}
    used = set(multipliers)
    checks.known(instruments or {}, names, "instruments: parameter")
    for name, variables in (instruments or {}).items():
        items = [variables] if isinstance(variables, str) else variables
        if not isinstance(items, list | tuple) or not items:
            raise SpecificationError(
                f"instruments for {name!r}: {variables!r} must name market variables, or 'lag'"
            )
        stand_ins[name] = [_stand_in(name, item, multipliers, tables) for item in items]
        used |= {item for item in items if isinstance(item, str)}
    unused = [c for c in tables if c not in used]
    for column in unused:
        near = difflib.get_close_matches(column, [n for n in names if n not in multipliers], 1, 0.6)
        if near:
            raise SpecificationError(
                f"market column {column!r} is no parameter of the model and no instrument. Did you"
                f" mean {near[0]!r}?"
            )
    return multipliers, stand_ins, unused


def _tables(grid: RegionGrid, market: pd.DataFrame) -> dict[str, FloatArray]:
    """Return every market variable as a table (R, T), NaN where it is not given."""
    for column in ("region", "period"):
        if column not in market:
            raise SpecificationError(f"market has no column {column!r}")
    region = {str(x): i for i, x in enumerate(grid.labels)}
    r = market["region"].astype(str).map(region)
    t = grid.period_codes(market["period"])
    inside = r.notna().to_numpy() & (t >= 0) & (t < grid.T)
    cell = r[inside].to_numpy().astype(np.int64) * grid.T + t[inside]
    codes, copies = np.unique(cell, return_counts=True)
    if (copies > 1).any():
        shown = [
            f"region {grid.labels[c // grid.T]!r} at"
            f" {period_label(grid.first + int(c % grid.T), grid.kind)}"
            for c in codes[copies > 1][:3]
        ]
        raise DataError(
            f"market has {int((copies > 1).sum()):,} region-periods more than once:"
            f" {first_few(shown)}"
        )
    out = {}
    for column in market.columns.drop(["region", "period"]):
        table = np.full(len(grid.labels) * grid.T, np.nan)
        table[cell] = as_floats(market[column], f"market variable {column!r}")[inside]
        out[str(column)] = table.reshape(len(grid.labels), grid.T)
    return out


def _stand_in(
    name: str, item: str, multipliers: dict[str, FloatArray], tables: dict[str, FloatArray]
) -> FloatArray:
    if isinstance(item, str) and item in tables:
        return tables[item]
    depth = str(item)[3:] or "1"
    if isinstance(item, str) and item.startswith("lag") and depth.isdigit() and int(depth) > 0:
        if name not in multipliers:
            raise SpecificationError(
                f"instruments for {name!r}: {item!r} is the past of a market variable named"
                f" {name!r}, and market has none"
            )
        lagged = np.full_like(multipliers[name], np.nan)
        lagged[:, int(depth) :] = multipliers[name][:, : -int(depth)]
        return lagged
    raise SpecificationError(
        f"instruments for {name!r}: no market variable {item!r}.{suggest(item, tables)} Market"
        f" variables: {', '.join(tables) or 'none'}; 'lag', 'lag2' ... are the past of the"
        " parameter's own"
    )
