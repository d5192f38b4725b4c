"""A programme with assumed or calibrated parameters, as forecasts take it: no sampling error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.membership.membership import Membership
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.typing import FloatArray


@dataclass(frozen=True)
class Calibrated:
    """A model at given parameters, where a forecast takes a fit."""

    model: DDC
    theta: FloatArray
    share: float = 1.0
    value: FloatArray = field(default_factory=lambda: np.zeros(0))
    first_stage: tuple[dict[str, Any], ...] = ()

    def require_model(self, what: str) -> None:
        """Do nothing: the model is there."""

    def draws(self, n: int, seed: Any = None) -> FloatArray:
        """Raise: nothing was estimated, so there is nothing to draw.

        Raises
        ------
        SpecificationError
            Always.
        """
        raise SpecificationError(
            "a calibrated programme has no sampling error to draw from: draws=0, or vary"
            " params= over scenarios"
        )


def calibrated_fits(club: Membership) -> dict[tuple[str, str], Calibrated]:
    """Return (segment, type) -> model at the programme's own parameters, types by their share."""
    out: dict[tuple[str, str], Calibrated] = {}
    for segment in club.segments or (ALL,):
        own = club.segment(segment) if club.segments else club
        model = own.model()
        if model.transitions.estimated:
            unknown = [b.name for b in own.benefits if not b.known]
            raise SpecificationError(
                f"benefit {unknown[0]!r} has no chain: give gain= and stay=, or fit the model"
            )
        for kind, spec in own.types.items():
            his = own.of_type(kind)
            alike = his.fixed == own.fixed
            out[segment, kind] = Calibrated(
                model if alike else his.model(), his.theta(), spec.share
            )
        if not own.types:
            out[segment, ALL] = Calibrated(model, own.theta())
    return out
