"""Checks that the counterfactual functions share: what was passed, and what it should have been."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.model.ddc import DDC


def listed(value: Any, what: str) -> list[Any]:
    """Return a sequence of names as a list.

    Raises
    ------
    SpecificationError
        One text (a sequence of letters), nothing, or no sequence.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise SpecificationError(f"{what}={value!r}: give a list, e.g. {what}=[{value!r}]")
    out = list(value)
    if not out:
        raise SpecificationError(f"{what} is empty: name at least one")
    return out


def check_scenario(value: Any, where: str) -> None:
    """Refuse what is no single Scenario."""
    if hasattr(value, "state_map") and hasattr(value, "changed"):
        return
    several = " (one at a time)" if isinstance(value, list | tuple) else ""
    raise SpecificationError(
        f"{where} takes one Scenario{several}, got {type(value).__name__}: {value!r}"[:300]
    )


def check_models(where: str, **models: Any) -> None:
    """Refuse what is no model, and say how to get one."""
    ways = {
        "Scenario": "scenario.changed(results.model)",
        "Results": "results.model",
        "Membership": "club.model()",
    }
    for name, model in models.items():
        if not isinstance(model, DDC):
            kind = type(model).__name__
            hint = f": pass {ways[kind]}" if kind in ways else ""
            raise SpecificationError(f"{where}: {name} must be a DDC, got {kind}{hint}")


def price_grid(prices: Any) -> dict[str, list[float]]:
    """Return ``{plan: prices to try}`` as numbers.

    Raises
    ------
    SpecificationError
        No mapping; a plan without a list of prices; prices that are not numbers of at least 0.
    """
    if prices is None:
        return {}
    if not isinstance(prices, Mapping):
        raise SpecificationError(f"prices must be {{plan: [prices]}}, got {type(prices).__name__}")
    out = {}
    for plan, values in prices.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise SpecificationError(
                f"prices of {plan!r}: a list of prices is needed, got {values!r}; for one price"
                f" {{{plan!r}: [{values!r}]}}"
            )
        out[plan] = [number(v, f"price of {plan!r}") for v in values]
        if not out[plan] or min(out[plan]) < 0:
            raise SpecificationError(f"prices of {plan!r}: numbers of at least 0, got {out[plan]}")
    return out


def limit(value: Any, what: str) -> float:
    """Return a number that may be infinite.

    Raises
    ------
    SpecificationError
        A text, nothing, NaN.
    """
    return float(value) if value in (np.inf, -np.inf) else number(value, what)


def number(value: Any, what: str) -> float:
    """Return a finite number.

    Raises
    ------
    SpecificationError
        A text, nothing, NaN.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    real = isinstance(value, int | float | np.integer | np.floating)
    if not real or isinstance(value, bool) or not np.isfinite(value):
        raise SpecificationError(f"{what} must be a finite number, got {value!r}")
    return float(value)
