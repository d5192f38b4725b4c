"""Forecasts of a mixture: one path a type, from where the members of each type probably stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynchoice.errors import DataError, SpecificationError
from dynchoice.inference.mixture import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.panel.panel import Panel
from dynchoice.typing import FloatArray


def by_type(
    results: MixtureResults, start: Any
) -> tuple[dict[str, Results], dict[str, FloatArray]]:
    """Return the types' fits and numbers of members by state in the first period, by label.

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
    rows = start.rows
    last = rows.filter(rows.period == rows.period.max())
    here = last.select("member", "state", "choice", "weight").execute()
    at = np.searchsorted(everyone, here["member"].to_numpy())
    weight = here["weight"].to_numpy(dtype=np.float64)
    fits, starts = {}, {}
    for q, fit in enumerate(results.by_type):
        mass = np.zeros(fit.model.shape[:2])
        cell = here["state"].to_numpy(), here["choice"].to_numpy()
        np.add.at(mass, cell, weight * results.posteriors[at, q])
        fits[f"type {q}"] = fit
        starts[f"type {q}"] = fit.model.transitions.push(mass)
    return fits, starts
