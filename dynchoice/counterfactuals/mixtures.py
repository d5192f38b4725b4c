"""Forecasts of a mixture: one path a type, from where the members of each type probably stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynchoice.errors import DataError, SpecificationError
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.names import ALL
from dynchoice.panel.panel import Panel
from dynchoice.typing import FloatArray


def by_type(
    results: MixtureResults, start: Any, regional: bool = False
) -> tuple[dict[str, Results], dict[str, list[tuple[Any, FloatArray]]], tuple[int, str]]:
    """Return the types' fits, numbers of members by state in the first period (by region), both
    by label, and that period's number and kind.

    Members of the panel's last period count towards each type with their posterior probability and
    move on by that type's law of motion.

    Raises
    ------
    SpecificationError
        No Panel: its Counts do not say which member stands where.
    DataError
        A panel with other members than the fit's.
    """
    if not isinstance(start, Panel):
        raise SpecificationError(
            "a mixture's forecast starts from the Panel of the fit (who stands where depends on the"
            " type), or forecast one type: results.type(q)"
        )
    everyone = np.sort(start.rows.select("member").distinct().execute()["member"].to_numpy())
    if len(everyone) != len(results.posteriors):
        raise DataError(
            f"the panel has {len(everyone):,} members, the fit {len(results.posteriors):,}: pass"
            " the panel of the fit"
        )
    if regional and not start.regions:
        raise SpecificationError("the panel has no regions: name their column (region=)")
    rows = start.rows
    last = rows.filter(rows.period == rows.period.max())
    kept = ["member", "state", "choice", "weight"]
    here = last.select(*kept, *(["region"] if regional else [])).execute()
    here = here.sort_values("member")  # a query's rows come in any order, and sums follow it
    at = np.searchsorted(everyone, here["member"].to_numpy())
    weight = here["weight"].to_numpy(dtype=np.float64)
    fits: dict[str, Results] = {}
    starts: dict[str, list[tuple[Any, FloatArray]]] = {}
    for q, fit in enumerate(results.by_type):
        fits[f"type {q}"] = fit
        starts[f"type {q}"] = []
        for region in start.regions if regional else (ALL,):
            own = (here["region"] == region).to_numpy() if regional else np.ones(len(at), bool)
            mass = np.zeros(fit.model.shape[:2])
            cell = here["state"].to_numpy()[own], here["choice"].to_numpy()[own]
            np.add.at(mass, cell, weight[own] * results.posteriors[at[own], q])
            if not regional or own.any():
                starts[f"type {q}"].append((region, mass))
    counts = start.counts
    return fits, starts, (counts.last_period + 1, counts.period_kind)
