"""``dynchoice check``: run file, model and data looked at in seconds, without estimating."""

from __future__ import annotations

from typing import Any

from dynchoice.errors import DataError
from dynchoice.panel import query
from dynchoice.run import publish, source
from dynchoice.run.build import check_model, check_places, check_segments, read, scenarios
from dynchoice.run.config import Run
from dynchoice.run.job import check_extras
from dynchoice.typing import Progress

ROWS, PARTS = 500_000, 10_000
"""Rows up to which all are checked; of more, so many, by parts of the members."""


def check_run(run: Run, *, warm: bool = False, progress: Progress | None = None) -> str:
    """Check what a forecast would need and return what was found, in words.

    Parameters
    ----------
    run : Run
    warm : bool
        Compile the kernels too.
    progress : callable, optional

    Raises
    ------
    DynChoiceError
        The first thing that a forecast would refuse.
    """

    def tell(done: int, message: str) -> None:
        if progress is not None:
            progress(done, 3, message)

    publish.check_folder(run.out)
    check_extras(run)
    tell(0, "model and scenarios")
    model = check_model(run)
    lines = [
        f"{run.source}: fine",
        f"model: {model.states.size:,} states, choices {', '.join(map(str, model.choices))};"
        f" parameters {', '.join(model.names)}",
    ]
    tell(1, "data")
    with source.opened(run) as data:
        rows, whole = some_rows(run, data)
        panel = read(run, rows)
        lines.append(
            f"data: {panel.report['rows']:,} rows of {panel.report['members']:,} members,"
            f" {panel.report['rows refused']:,} refused"
            + ("" if whole else " (some members, with all their rows; a forecast reads all)")
        )
        found, regions = panel.segments, panel.regions
        last, kind = panel.span[1], panel.kind
    if whole:
        found = tuple(check_segments(run, found))
        check_places(run, map(str, found), map(str, regions))
    for segment in found:
        run.model(segment)
    lines.append(f"segments: {', '.join(map(str, found))}")
    listed, past = scenarios(run, last + 1 if whole else None, kind)
    lines.append(f"scenarios: {', '.join(s.name for s in listed) or 'the baseline only'}")
    lines += [f"note: {p}" for p in past]
    before = publish.current_run(run.out)
    lines.append(
        "published: nothing yet"
        if before is None
        else f"published: {before.folder.name}, data to"
        f" {before.manifest.get('panel', {}).get('last_label', 'a month not noted')}"
    )
    if warm:
        from dynchoice.run.warm_up import warm_up

        tell(2, "compiling")
        lines.append(f"kernels: {sum(warm_up().values())} ready")
    tell(3, "checked")
    return "\n".join(lines)


def some_rows(run: Run, data: Any) -> tuple[Any, bool]:
    """Return rows to look at, all of some members, and whether they are all there are."""
    if isinstance(data, list):
        from dynchoice.panel.source import read_files

        table, _ = read_files(data)
    else:
        table = data
    many = int(table.count().execute())
    if many == 0:
        raise DataError("the table has no rows")
    if many <= ROWS:
        return data, True
    who = query.column(table, run.spec.data.member, "member")
    kept = max(1, PARTS * ROWS // many)
    return table.filter(query.bucket_of(query.without_nan(who), PARTS) < kept), False
