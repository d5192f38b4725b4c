"""Counts of panels too long to sort: each row is written at the place of its member and period.

The engine reads and codes the rows once, a batch at a time (:mod:`dynchoice.panel.query`); a row's
code is written where its member and period stand, so that the next month is the next number and
nothing is sorted or joined. A grid of 5 million members x 20 months takes 200 MB. What does not fit
the memory given is counted in passes, some members at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import DataError
from dynchoice.kernels import counts as kernels
from dynchoice.panel import query
from dynchoice.panel.cells import Keyed, sum_weights
from dynchoice.panel.checks import weight_is_good
from dynchoice.panel.source import stream
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level, Progress

if TYPE_CHECKING:
    import ibis.expr.types as ir
    from ibis.backends.duckdb import Backend

SPARSE = 4
"""Whole-number ids may leave this many places empty for each that is taken; others are listed."""
THIN = 100
"""Places of a grid for each row beyond which it is no way to count (one period is far away)."""
REPORTED = (
    "members",
    "rows",
    "gaps",
    "gap_members",
    "entered",
    "exited",
    "censored",
    "single",
    "movers",
)
"""What the kernel ``describe_members`` counts, in its order."""
KEYS = 1_000_000
"""Rows whose keys are made at a time."""
FIRST_TABLE = 1 << 14
"""Places of a new table of keys: a power of two, as the kernels' hash needs it."""


NONE: Keyed = (np.zeros((0, 6), np.int64), np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the codes of rows mean: sizes and labels, and where the panel begins and ends."""

    states: int
    choices: int
    segments: tuple[Level, ...]
    regions: tuple[Level, ...]
    first: int
    last: int
    buckets: int
    weighted: bool

    @property
    def periods(self) -> int:
        """Periods that the panel spans."""
        return self.last - self.first + 1

    @property
    def codes(self) -> int:
        """Number of codes that a row may have."""
        groups = max(len(self.regions), 1) * len(self.segments)
        return groups * self.states * self.choices * 2


@dataclass
class Table:
    """A hash table of keys (-1: empty place) and of how often each was met."""

    keys: IntArray = field(default_factory=lambda: np.full(FIRST_TABLE, -1, dtype=np.int64))
    counts: IntArray = field(default_factory=lambda: np.zeros(FIRST_TABLE, dtype=np.int64))

    def add(self, keys: IntArray) -> None:
        """Count keys (n,)."""
        done = 0
        while True:
            done, _ = kernels.count_keys(keys, done, self.keys, self.counts)
            if done == len(keys):
                return
            # half full: the kernel stopped, since searches become long from there on
            larger = np.full(4 * len(self.keys), -1, dtype=np.int64)
            counts = np.zeros(len(larger), dtype=np.int64)
            kernels.regrow(self.keys, self.counts, larger, counts)
            self.keys, self.counts = larger, counts

    def taken(self) -> tuple[IntArray, IntArray]:
        """Return keys in order and their counts."""
        places = np.flatnonzero(self.keys >= 0)
        places = places[np.argsort(self.keys[places])]
        return self.keys[places], self.counts[places]


@dataclass(frozen=True)
class Tally:
    """Counts of coded rows: what :meth:`dynchoice.Panel.counts` is made of, and the report.

    Each of ``cells``, ``periods`` and ``regions`` is (keys (n, columns), weight (n,), rows (n,)).
    Where rows are refused (for what they hold, as a member's second in a period, or for a weight
    that changes) there is nothing but their numbers.
    """

    cells: Keyed = NONE
    periods: Keyed = NONE
    regions: Keyed | None = None
    segment_members: FloatArray = field(default_factory=lambda: np.zeros(0))
    members: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    doubled: int = 0
    uneven: int = 0
    thin: bool = False
    """Nothing was counted: the grid would be all but empty."""


@dataclass(frozen=True)
class Tables:
    """The tables of keys that a count fills: cells by bucket, periods, and regions."""

    cells: list[Table]
    periods: Table
    regions: Table

    def add_grid(
        self,
        grid: AnyArray,
        empty: Any,
        extra: IntArray,
        buckets: IntArray,
        spec: Spec,
        weights: int,
    ) -> None:
        """Count the rows in a grid of members.

        ``extra`` (N,) is the code of each member's weight, of which there are ``weights``;
        ``buckets`` (N,) are the members' buckets. Members are taken bucket by bucket, since each
        bucket has a table of its own.
        """
        order = np.argsort(buckets, kind="stable")
        edges = np.searchsorted(buckets[order], np.arange(spec.buckets + 1))
        step = max(KEYS // spec.periods, 1)
        keys = np.empty((3, step * spec.periods), dtype=np.int64)
        sizes = (len(spec.segments), spec.states, spec.choices, weights)
        by_region = bool(spec.regions)
        for b in range(spec.buckets):
            for first in range(edges[b], edges[b + 1], step):
                some = order[first : min(first + step, edges[b + 1])]
                made = kernels.member_keys(grid, empty, some, extra, sizes, by_region, *keys)
                self.cells[b].add(keys[0, :made])
                self.periods.add(keys[1, :made])
                if by_region:
                    self.regions.add(keys[2, :made])

    def to_tally(self, spec: Spec, levels: FloatArray, stats: IntArray, members: IntArray) -> Tally:
        """Return what was counted, with the numbers of members by segment and weight."""
        parts = [_decode(table, spec, levels, bucket=b) for b, table in enumerate(self.cells)]
        regions = None
        if spec.regions:
            regions = _decode(self.regions, spec, levels, by_period=True, by_region=True)
        return Tally(
            cells=tuple(np.concatenate(column) for column in zip(*parts, strict=True)),  # type: ignore[arg-type]
            periods=_decode(self.periods, spec, levels, by_period=True),
            regions=regions,
            segment_members=np.array([sum_weights(levels, numbers) for numbers in members]),
            members=dict(zip(REPORTED, (int(x) for x in stats), strict=True)),
        )


def tally(
    con: Backend, rows: ir.Table, spec: Spec, memory: int, total: int, progress: Progress | None
) -> Tally:
    """Count coded rows (of :func:`dynchoice.panel.query.coded_rows`) by grid.

    Parameters
    ----------
    con : ibis DuckDB backend
        That holds the rows; it reads them once a pass.
    memory : int
        Bytes that the grid may take; more members than fit are counted in several passes.
    total : int
        Number of rows, for the progress.

    Raises
    ------
    DataError
        More cells than can be numbered.
    """
    coded, low, buckets, nameless = _number_members(con, rows, spec, total)
    if nameless:
        return Tally(refused=nameless)
    if len(buckets) * spec.periods > THIN * total:
        return Tally(thin=True)
    levels = np.ones(1)  # the distinct weights
    if spec.weighted:
        levels = np.sort(rows.select("weight").distinct().execute()["weight"].to_numpy(float))
    if spec.codes * (spec.states + 1) * spec.periods * len(levels) >= 2**62:
        raise DataError(
            f"{spec.states:,} states x {spec.periods} periods x {len(levels):,} weights are too"
            " many cells to number: use fewer states, or fewer distinct weights"
        )
    # the smallest type that holds every code and one more number, which marks an empty place
    grid_type: Any = next(t for t in (np.uint16, np.uint32, np.int64) if spec.codes < _largest(t))
    empty = grid_type(_largest(grid_type))
    share = max(memory // (spec.periods * empty.itemsize), 1)  # members that fit into memory
    passes = max(-(-len(buckets) // share), 1)
    share = -(-len(buckets) // passes)
    stats = np.zeros(9, dtype=np.int64)
    members = np.zeros((len(spec.segments), len(levels)), dtype=np.int64)
    tables = Tables([Table() for _ in range(spec.buckets)], Table(), Table())

    def report(number: int, read: int) -> None:
        """Tell that some rows of a pass are read."""
        if progress is not None:
            now = number * total // passes + min(read, total // passes)
            progress(min(now, total), total, "rows read")

    for k in range(passes):
        begin, end = k * share, min((k + 1) * share, len(buckets))
        grid = np.full((end - begin, spec.periods), empty)
        weights = np.full(end - begin, np.nan if spec.weighted else 1.0)
        part = coded
        if passes > 1:
            part = coded.filter((coded.number >= low + begin) & (coded.number < low + end))
        batches = _read_batches(con, part, spec)
        refused, doubled, uneven = _fill_grid(
            batches, spec, low + begin, grid, empty, weights, partial(report, k)
        )
        if progress is not None and (k == passes - 1 or refused or doubled or uneven):
            progress(total, total, "rows read")
        if refused or doubled or uneven:  # the caller says which rows
            return Tally(refused=refused, doubled=doubled, uneven=uneven)
        extra = np.searchsorted(levels, np.where(np.isnan(weights), levels[0], weights))
        ends = (0, spec.periods - 1)
        group = spec.states * spec.choices * 2
        kernels.describe_members(
            grid, empty, group, len(spec.segments), *ends, stats, members, extra
        )
        tables.add_grid(grid, empty, extra, buckets[begin:end], spec, len(levels))
    return tables.to_tally(spec, levels, stats, members)


def _fill_grid(
    batches: Iterator[tuple[AnyArray, ...]],
    spec: Spec,
    low: int,
    grid: AnyArray,
    empty: Any,
    weights: FloatArray,
    report: Callable[[int], None],
) -> tuple[int, int, int]:
    """Write rows into a grid whose first member is number ``low``, and their members' weights.

    Returns the numbers of rows that are refused, that are a member's second in a period, and whose
    weight is another than their member's.
    """
    refused, doubled, uneven, read = 0, 0, 0, 0
    for member, period, code, weight in batches:
        _, bad, again = kernels.fill_grid(member, period, code, low, spec.first, grid, empty)
        refused, doubled = refused + bad, doubled + again
        if spec.weighted:
            good = code >= 0
            uneven += kernels.fill_weights(member[good], weight[good], low, weights)
        read += len(member)
        report(read)
    return refused, doubled, uneven


def _largest(kind: type[np.integer[Any]]) -> int:
    """Return the largest number of a type, which marks an empty place."""
    return int(np.iinfo(kind).max)


def _decode(
    table: Table,
    spec: Spec,
    levels: AnyArray,
    bucket: int | None = None,
    by_period: bool = False,
    by_region: bool = False,
) -> Keyed:
    """Return keys, weights and rows; keys as :class:`dynchoice.panel.counts.Counts` has them.

    Undoes the kernel ``member_keys``: what it put in last comes off first.
    """
    key, rows = table.taken()
    key, extra = np.divmod(key, len(levels))
    following = None
    if by_region or not by_period:
        key, ahead = np.divmod(key, spec.states + 1)
        following = ahead - 1
    key, decides = np.divmod(key, 2)
    key, choice = np.divmod(key, spec.choices)
    key, state = np.divmod(key, spec.states)
    parts: list[AnyArray] = []
    if by_period:
        key, period = np.divmod(key, spec.periods)
        parts.append(period + spec.first)
    region, segment = np.divmod(key, len(spec.segments))
    if bucket is not None:
        parts.append(np.full(len(key), bucket))
    lead = [segment, region] if by_region else [segment]
    last = [decides] if following is None else [following, decides]
    columns = [*lead, *parts, state, choice, *last]
    return np.ascontiguousarray(np.stack(columns, axis=1), np.int64), levels[extra], rows


def _number_members(
    con: Backend, rows: ir.Table, spec: Spec, total: int
) -> tuple[ir.Table, int, IntArray, int]:
    """Return rows with a column ``number`` of members, the first number, and the members' buckets.

    The fourth result is how many rows name no member: where there are any, the rest is empty.

    Whole numbers that lie close are taken as they are; other ids are listed once and joined.
    """
    import ibis

    whole = rows.member.type().is_integer()
    number = rows.member.cast("int64") if whole else rows.period  # texts: any column of integers
    ends = rows.agg(
        low=number.min(), high=number.max(), nameless=rows.member.isnull().sum()
    ).execute()
    nameless = int(ends["nameless"].iloc[0])
    if nameless:
        return rows, 0, np.zeros(0, dtype=np.int64), nameless
    low, high = int(ends["low"].iloc[0]), int(ends["high"].iloc[0])
    span = high - low + 1
    dense = whole and span < SPARSE * total and max(-low, high) < 2**62
    if dense and span * spec.periods > 2 * total:  # else each place is nearly taken
        dense = span < SPARSE * int(rows.member.nunique().execute())
    if dense:
        con.raw_sql(
            "CREATE OR REPLACE TEMP VIEW numbers AS"
            f" SELECT range AS member FROM range({low}, {high + 1})"
        )
        listed = con.table("numbers")
        buckets = listed.select(b=query.bucket_of(listed.member, spec.buckets))
        return rows.mutate(number=number), low, _fetch_buckets(con, buckets), 0
    distinct = rows.select("member").distinct()
    numbered = distinct.mutate(number=ibis.row_number())
    ids = con.create_table("ids", numbered, temp=True, overwrite=True)
    ordered = ids.order_by("number").select(b=query.bucket_of(ids.member, spec.buckets))
    return rows.inner_join(ids, "member"), 0, _fetch_buckets(con, ordered), 0


def _fetch_buckets(con: Backend, table: ir.Table) -> IntArray:
    """Return the one column of a table as an array."""
    parts = [batch.column(0).to_numpy() for batch in stream(con, table)]
    return np.concatenate(parts).astype(np.int64)


def _read_batches(con: Backend, rows: ir.Table, spec: Spec) -> Iterator[tuple[AnyArray, ...]]:
    """Yield member numbers, periods, codes (-1: refused) and weights of some rows at a time."""
    import ibis

    group = _code_labels(rows, "segment", spec.segments)
    if spec.regions:
        group = group + len(spec.segments) * _code_labels(rows, "region", spec.regions)
    code = ((group * spec.states + rows.state) * spec.choices + rows.choice) * 2 + rows.decides
    fields: dict[str, ir.Value] = {
        "number": rows.number,
        # before the first period: refused
        "period": rows.period.coalesce(spec.first - 1),
        "code": code.coalesce(-1),
    }
    if spec.weighted:
        good = weight_is_good(rows.weight).fill_null(False)
        fields["code"] = ibis.ifelse(good, code, -1).coalesce(-1)
        fields["weight"] = rows.weight.coalesce(1.0)
    nothing = np.empty(0)
    for batch in stream(con, rows.select(**fields)):
        columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        yield (*columns, nothing)[:4]


def _code_labels(rows: ir.Table, name: str, labels: tuple[Level, ...]) -> ir.IntegerValue:
    """Return the code of a text column among its labels."""
    return query.level_code(rows[name], [str(x) for x in labels])
