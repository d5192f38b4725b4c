"""``dynchoice check``: run file, model and data looked at in seconds, without estimating."""

from __future__ import annotations

from dynchoice.errors import DataError
from dynchoice.panel import query
from dynchoice.run import build, publish, source
from dynchoice.run.inputs import Inputs, check_places, choose_segments
from dynchoice.run.job import check_start
from dynchoice.run.source import Rows
from dynchoice.typing import Progress

ROWS, PARTS = 500_000, 10_000
"""Rows up to which all are checked; of more, so many, by parts of the members."""


def check_run(run: Inputs, *, warm: bool = False, progress: Progress | None = None) -> str:
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

    check_start(run, jobs=1)
    tell(0, "model and scenarios")
    model = build.check_model(run)
    lines = [
        f"{run.source}: fine",
        f"model: {model.states.size:,} states, choices {', '.join(map(str, model.choices))};"
        f" parameters {', '.join(model.names)}",
    ]
    tell(1, "data")
    with source.opened(run) as data:
        rows, whole = some_rows(run, data)
        panel = build.read(run, rows)
        lines.append(
            f"data: {panel.report['rows']:,} rows of {panel.report['members']:,} members,"
            f" {panel.report['rows refused']:,} refused"
            + ("" if whole else " (some members, with all their rows; a forecast reads all)")
        )
        segments, regions = list(map(str, panel.segments)), list(map(str, panel.regions))
        last, kind = panel.span[1], panel.kind
    if whole:
        wanted = run.spec.data.segments
        segments = choose_segments(segments, wanted, "data.segments", DataError)
        check_places(run, segments, regions)
    built = {build.label_of_model(run, build.any_segment(run))}
    for segment in segments:
        label = build.label_of_model(run, segment)
        if label not in built:
            build.model(run, segment)
            built.add(label)
    lines.append(f"segments: {', '.join(segments)}")
    listed, past = build.scenarios(run, last + 1 if whole else None, kind)
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


def some_rows(run: Inputs, data: Rows) -> tuple[Rows, bool]:
    """Return rows to look at, all of some members, and whether they are all there are."""
    table = source.as_table(data)
    many = int(table.count().execute())
    if many == 0:
        raise DataError("the table has no rows")
    if many <= ROWS:
        return data, True
    member = query.without_nan(query.column(table, run.spec.data.member, "member"))
    kept = max(1, PARTS * ROWS // many)
    return table.filter(query.bucket_of(member, PARTS) < kept), False
