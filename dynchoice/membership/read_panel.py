"""Plan histories read into panels: the options of :meth:`dynchoice.Membership.panel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynchoice import checks
from dynchoice.errors import DataError, SpecificationError, suggest
from dynchoice.membership.history import NOTHING_LEFT, Findings, Reading
from dynchoice.membership.history_chunks import open_source, panel_by_parts
from dynchoice.membership.names import BUNDLE, MENU, VINTAGE
from dynchoice.membership.programme import Programme
from dynchoice.panel.checks import options as check_options
from dynchoice.panel.panel import MEMBER_LIMIT, Panel

if TYPE_CHECKING:
    import pandas as pd

PANEL_OPTIONS = (
    "segment",
    "weights",
    "decision",
    "freq",
    "invalid",
    "buckets",
    "member_limit",
    "memory",
    "progress",
)


def read_panel(
    club: Programme,
    data: Any,
    *,
    member: str,
    time: str,
    plan: str,
    engagement: Mapping[str, str] | None = None,
    lag: bool = False,
    offers: pd.DataFrame | None = None,
    entry: str = "new",
    contract: str | None = None,
    none: object = "none",
    broken: str = "raise",
    region: str | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> Panel:
    """Return the panel of a plan history: see :meth:`Membership.panel`."""
    import pandas as pd

    keywords = [*(read_panel.__kwdefaults__ or {}), "member", "time", "plan", *PANEL_OPTIONS]
    unknown = [k for k in options if k not in PANEL_OPTIONS]
    if unknown:
        raise SpecificationError(
            f"panel() has no option {unknown[0]!r}.{suggest(unknown[0], keywords)} Options:"
            f" {', '.join(keywords)}"
        )
    checks.known(engagement or {}, [b.name for b in club.benefits], "engagement: benefit")
    if offers is not None and not isinstance(offers, pd.DataFrame):
        raise SpecificationError(
            f"offers must be a table (pandas.DataFrame) with columns 'from', and {MENU!r} and/or"
            f" {BUNDLE!r}; got {type(offers).__name__}"
        )
    axes = [a for a in (MENU, BUNDLE, VINTAGE) if a in club.states.axes]
    by_schedule = tuple(a for a in axes if offers is not None and a in offers.columns)
    kept = [region, *(options.get(k) for k in ("segment", "weights", "decision"))]
    reading = Reading(
        club=club,
        member=member,
        time=time,
        plan=plan,
        use={b.name: b.name for b in club.benefits} | dict(engagement or {}),
        lag=lag,
        offers=offers,
        by_schedule=by_schedule,
        columns={a: (columns or {}).get(a, a) for a in axes if a not in by_schedule},
        entry=entry,
        contract=contract,
        none=none,
        broken=broken,
        region=region,
        segment=options.get("segment"),
        kept=tuple(x for x in kept if x is not None),
        drop=options.get("invalid") == "drop",
        months={"month": True, "integer": False}.get(str(options.get("freq"))),
    )
    panel_options = {
        "member": member,
        "time": time,
        "choice": plan,
        "states": club.states,
        "choices": club.choices,
        "region": region,
        **options,
    }
    check_options(options.get("invalid", "raise"), options.get("buckets", 200))
    if not isinstance(data, pd.DataFrame):
        table, rows = open_source(data, reading.used, options.get("memory"))
        if rows > options.get("member_limit", MEMBER_LIMIT):
            return panel_by_parts(reading, table, rows, panel_options)
        data = table.execute()
    checks.columns(data, reading.used, "plan history")
    if not len(data):
        raise DataError("the table has no rows")
    findings = Findings()
    try:
        frame = reading.derive(data, findings)
    finally:
        findings.warn(club, 3)
    if not len(frame):
        raise DataError(NOTHING_LEFT)
    return Panel(frame, **panel_options)
