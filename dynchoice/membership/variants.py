"""A programme as one segment or one type of customers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from dynchoice.errors import SpecificationError, suggest
from dynchoice.membership.programme import Programme

Club = TypeVar("Club", bound=Programme)


def segment(club: Club, label: str) -> Club:
    """Return the programme of one segment: its prices, parameters and plans.

    Raises
    ------
    SpecificationError
        No such segment.
    """
    known = list(club.segments) or [s for p in club.plans for s in p.segments or ()]
    if label not in known:
        raise SpecificationError(
            f"no segment {label!r}.{suggest(label, known)} Segments: {', '.join(known)}"
        )
    change = club.segments.get(label, {})
    prices, own = change.get("prices", {}), change.get("params", {})
    plans = tuple(
        replace(
            p,
            price=prices.get(p.name, p.price),
            for_sale=p.for_sale and (p.segments is None or label in p.segments),
        )
        for p in club.plans
    )
    return replace(
        club,
        plans=plans,
        menus=change.get("menus", club.menus),
        types=change.get("types", club.types),
        params={**club.params, **{k: v for k, v in own.items() if k not in club.fixed}},
        fixed={k: own.get(k, v) for k, v in club.fixed.items()},
        segments={},
    )


def of_type(club: Club, kind: str) -> Club:
    """Return the programme as one type of customers values it.

    Raises
    ------
    SpecificationError
        No such type.
    """
    if kind not in club.types:
        raise SpecificationError(
            f"no type {kind!r}.{suggest(kind, club.types)} Types: {', '.join(club.types)}"
        )
    own, names = club.types[kind], {b.name for b in club.benefits}

    def valued(known: Mapping[str, float]) -> dict[str, float]:
        scaled = {k: own.scale * v if k in names else v for k, v in known.items()}
        return {k: own.params.get(k, v) for k, v in scaled.items()}

    free = {k: v for k, v in own.params.items() if k not in club.fixed}
    return replace(club, params={**valued(club.params), **free}, fixed=valued(club.fixed), types={})
