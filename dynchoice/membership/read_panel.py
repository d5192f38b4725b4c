"""Plan histories read into panels: the options of :meth:`dynchoice.Membership.panel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynchoice.errors import DataError, SpecificationError, suggest
from dynchoice.membership.history import NOTHING_LEFT, Findings, Reading
from dynchoice.membership.history_chunks import by_parts, source_of
from dynchoice.membership.names import BUNDLE, MENU, VINTAGE
from dynchoice.membership.offers import need
from dynchoice.membership.programme import Programme
from dynchoice.panel import checks
from dynchoice.panel.panel import MEMBER_LIMIT, Panel

PANEL_OPTIONS = (
    "segment", "weights", "decision", "freq", "invalid", "buckets", "member_limit", "memory",
    "progress",
)  # fmt: skip


def read_panel(
    club: Programme,
    data: Any,
    *,
    member: str,
    time: str,
    plan: str,
    engagement: Mapping[str, str] | None = None,
    lag: bool = False,
    offers: Any = None,
    entry: str = "new",
    contract: str | None = None,
    none: Any = "none",
    broken: str = "raise",
    region: str | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> Panel:
    """Return the panel of a plan history: see :meth:`Membership.panel`."""
    import pandas as pd

    unknown = [k for k in options if k not in PANEL_OPTIONS]
    if unknown:
        known = [*(read_panel.__kwdefaults__ or {}), "member", "time", "plan", *PANEL_OPTIONS]
        raise SpecificationError(
            f"panel() has no option {unknown[0]!r}.{suggest(unknown[0], known)} Options:"
            f" {', '.join(known)}"
        )
    strange = [k for k in engagement or {} if k not in [b.name for b in club.benefits]]
    if strange:
        known = [b.name for b in club.benefits]
        raise SpecificationError(
            f"engagement: no benefit {strange[0]!r}.{suggest(strange[0], known)}"
        )
    if offers is not None and not isinstance(offers, pd.DataFrame):
        raise SpecificationError(
            f"offers must be a table (pandas.DataFrame) with columns 'from', and {MENU!r} and/or"
            f" {BUNDLE!r}; got {type(offers).__name__}"
        )
    offered = [a for a in (MENU, BUNDLE, VINTAGE) if a in club.states.axes]
    by_schedule = tuple(a for a in offered if offers is not None and a in offers.columns)
    kept = [region, *(options.get(k) for k in ("segment", "weights", "decision"))]
    reading = Reading(
        club, member, time, plan,
        named={b.name: b.name for b in club.benefits} | dict(engagement or {}),
        lag=lag, offers=offers, by_schedule=by_schedule,
        columns={a: (columns or {}).get(a, a) for a in offered if a not in by_schedule},
        entry=entry, contract=contract, none=none, broken=broken, region=region,
        segment=options.get("segment"), kept=tuple(x for x in kept if x is not None),
        drop=options.get("invalid") == "drop",
        months={"month": True, "integer": False}.get(str(options.get("freq"))),
    )  # fmt: skip
    told = {
        "member": member, "time": time, "choice": plan, "states": club.states,
        "choices": club.choices, "region": region, **options,
    }  # fmt: skip
    checks.options(options.get("invalid", "raise"), options.get("buckets", 200))
    if not isinstance(data, pd.DataFrame):
        table, rows = source_of(data, reading.used, options.get("memory"))
        if rows > options.get("member_limit", MEMBER_LIMIT):
            return by_parts(reading, table, rows, told)
        data = table.execute()
    need(data, *reading.used)
    if not len(data):
        raise DataError("the table has no rows")
    found = Findings()
    try:
        frame = reading.derive(data, found)
    finally:
        found.tell(club, 3)
    if not len(frame):
        raise DataError(NOTHING_LEFT)
    return Panel(frame, **told)
