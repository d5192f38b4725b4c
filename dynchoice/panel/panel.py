"""Panel: a table of member-months, checked, reported and counted.

Every check and count is a query on one lazy expression (:mod:`dynchoice.panel.query`), so a
pandas frame, a folder of Parquet files and a warehouse table take the same path, and only counts
come back. Time alone orders the rows. Gaps break a spell and are reported, never bridged; a
member's last row informs choices and never transitions.
"""

from __future__ import annotations

import functools
import logging
import operator
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, DataWarning
from dynchoice.memory import in_bytes, limit
from dynchoice.panel import checks as row_checks
from dynchoice.panel import query
from dynchoice.panel.cells import Keyed, RegionCells, sum_member_months, sum_weights_by_segment
from dynchoice.panel.checks import OFFENDERS
from dynchoice.panel.counts import Counts, MemberCells, period_label
from dynchoice.panel.grid import Spec, Tally, tally
from dynchoice.panel.history import FIRST_MONTH, LAST_MONTH
from dynchoice.panel.report import Report
from dynchoice.panel.source import as_table
from dynchoice.panel.states import StateSpace, check_labels
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level, Progress, TableLike

if TYPE_CHECKING:
    import ibis.expr.types as ir

logger = logging.getLogger("dynchoice.panel")

KEYS = {
    "cells": ["segment", "bucket", "state", "choice", "next_state", "decides"],
    "periods": ["segment", "period", "state", "choice", "decides"],
    "regions": ["segment", "region", "period", "state", "choice", "next_state", "decides"],
}
MEMBER_LIMIT = 5_000_000
"""Rows up to which a panel keeps cells by member."""
CHUNK_ROWS = 4_000_000
"""Rows of members that are counted at a time."""


class Panel:
    """Member-months: who, when, in which state, and what they chose.

    Parameters
    ----------
    data : pandas.DataFrame, pyarrow.Table, path(s) of Parquet or CSV, or ibis table
        One row per member and period. Paths may hold ``*``.
    member, time, choice : str
        Column names. ``time`` holds integers (consecutive periods differ by one), dates, or
        texts ``YYYY-MM``; it alone orders the rows.
    states : StateSpace
    choices : sequence of labels
        ``J`` choices, in the order of the model.
    columns : mapping, optional
        Axis name -> column name, where they differ.
    segment : str, optional
        Column of the member's segment.
    region : str, optional
        Column of the region (or any group that roll-outs and prices differ by): what ECCP's cells,
        event studies and standard errors clustered by region go by.
    weights : str, optional
        Column of positive weights, constant within a member: how many members a history
        stands for.
    decision : str, optional
        Column of 0/1: rows with 0 inform transitions and not the choice likelihood.
    freq : {"integer", "month", "quarter", "year"}, optional
        How ``time`` counts. Default: integers one by one, dates and texts by month. With
        ``"month"``, integers read as ``YYYYMM``.
    invalid : {"raise", "drop"}
        What to do with rows that miss a value or hold an unknown level. ``"drop"`` counts them
        in the report and lets each break its member's spell.
    buckets : int
        ``B``: members are spread over this many buckets (bootstrap units).
    member_limit : int
        Panels with more rows keep no cells by member; clusters are then the buckets. Files and
        frames that long are counted by grid (:mod:`dynchoice.panel.grid`): the same counts.
    memory : str or int, optional
        Bytes that counting may take, as in ``"800MB"``, of which half is the engine's (it uses the
        disk beyond) and half the grid's (it takes several passes). Default: half of what is free,
        or of the setting ``DYNCHOICE_MEMORY``.
    progress : callable, optional
        ``progress(done, total, message)`` as the rows of a long panel are read.

    Raises
    ------
    ColumnError
        A column is missing.
    DataError
        Duplicate (member, time) rows; missing values; unknown levels; weights that are not
        positive or vary within a member. The message counts them and shows the first three.

    Notes
    -----
    Choices that a state does not offer and impossible contract moves depend on the model: every
    estimator refuses them through :meth:`first_rows` when it meets panel and model.

    Examples
    --------
    >>> import pandas as pd
    >>> df = pd.DataFrame({"id": [1, 1, 1, 2], "t": [0, 1, 3, 0], "x": [0, 1, 1, 0],
    ...                    "plan": ["in", "in", "out", "out"]})
    >>> panel = Panel(df, member="id", time="t", choice="plan",
    ...               states=StateSpace(x=range(2)), choices=["out", "in"])
    >>> panel.report["gaps"], panel.counts.nobs
    (1, 4.0)
    """

    def __init__(
        self,
        data: TableLike,
        *,
        member: str,
        time: str,
        choice: str,
        states: StateSpace,
        choices: Iterable[Level],
        columns: Mapping[str, str] | None = None,
        segment: str | None = None,
        region: str | None = None,
        weights: str | None = None,
        decision: str | None = None,
        freq: str | None = None,
        invalid: str = "raise",
        buckets: int = 200,
        member_limit: int = MEMBER_LIMIT,
        memory: str | int | None = None,
        progress: Progress | None = None,
    ) -> None:
        row_checks.options(invalid, buckets)
        self.states = checks.instance(states, "states", StateSpace, "e.g. StateSpace(x=range(3))")
        self.choices = check_labels(choices, "choices")
        sources = dict(columns or {})
        checks.known(sources, states.axes, "columns: axis")
        self._sources = {name: sources.get(name, name) for name in states.axes}
        self._names = row_checks.Names(
            member=member,
            time=time,
            choice=choice,
            axes=self._sources,
            segment=segment,
            region=region,
            weights=weights,
            decision=decision,
            states=states,
            choices=self.choices,
        )
        self._bytes = limit() // 2 if memory is None else in_bytes(memory)
        used = [member, time, choice, *self._sources.values()]
        used += [c for c in (segment, region, weights, decision) if c]
        self.spec = {
            "member": member,
            "time": time,
            "choice": choice,
            "columns": self._sources,
            "segment": segment,
            "region": region,
            "weights": weights,
            "decision": decision,
            "freq": freq,
            "invalid": invalid,
            "buckets": buckets,
        }
        table, self.engine = as_table(data, used, self._bytes // 2)
        self._lazy, self.kind = query.coded_rows(
            table,
            member=member,
            time=time,
            choice=choice,
            axes={n: (self._sources[n], levels) for n, levels in states.axes.items()},
            choices=self.choices,
            segment=segment,
            region=region,
            weights=weights,
            decision=decision,
            freq=freq,
            buckets=buckets,
        )
        self.buckets, self._member_limit, self._freq = buckets, member_limit, freq
        self._weighted, self._invalid = weights is not None, invalid
        self._tally: Tally | None = None
        # too long to sort: counted by grid, where the engine is our own
        long = self.engine is not None and int(table.count().execute()) > member_limit
        self._totals = self._count_long(progress) if long else self._count_short()
        self.report = self._make_report()
        logger.info("panel: %s rows, %s members", self.report["rows"], self.report["members"])

    def _store(self, rows: ir.Table, name: str) -> ir.Table:
        """Compute rows once into a temporary table, where the engine is our own DuckDB."""
        return rows if self.engine is None else self.engine.create_table(name, rows, temp=True)

    # checks --------------------------------------------------------------------------------

    def _check_rows(self, rows: ir.Table) -> ir.Table:
        """Refuse or leave out rows that break a rule; ``_refused`` counts them."""
        rules = row_checks.rules(self._names, rows)
        totals = rows.agg(
            total=rows.count(),
            **{
                f"rule_{i}": rule.broken.fill_null(False).sum()
                for i, rule in enumerate(rules.values())
            },
        ).execute()
        self._total = int(totals["total"].iloc[0])
        if self._total == 0:
            raise DataError("the table has no rows")
        counts = [int(x) if pd.notna(x) else 0 for x in totals.iloc[0, 1:]]
        bad = [(name, count) for name, count in zip(rules, counts, strict=True) if count]
        self._refused = pd.DataFrame(bad, columns=["rule", "rows"])
        if not bad:
            return rows
        if self._invalid == "raise":
            raise DataError(row_checks.describe_bad_rows(self._names, rows, bad, self._total))
        flags = [rules[name].broken.fill_null(False) for name, _ in bad]
        good = rows.filter(~functools.reduce(operator.or_, flags))
        if int(good.count().execute()) == 0:
            bad_rows = row_checks.describe_bad_rows(self._names, good, bad, self._total, False)
            raise DataError("every row is refused:\n" + bad_rows)
        return good

    def _set_span(self, rows: ir.Table) -> bool:
        """Set ``span``, the first and last period; return whether integers look like YYYYMM.

        Where no period can be read it is unset, and the answer yes: the rows need a closer look.
        """
        ends = rows.agg(
            first=rows.period.min(),
            last=rows.period.max(),
            odd_months=((rows.period % 100 < 1) | (rows.period % 100 > 12)).sum(),
        ).execute()
        if ends["first"].isna().iloc[0]:
            return True
        first, last = int(ends["first"].iloc[0]), int(ends["last"].iloc[0])
        self.span = (first, last)
        integers = self.kind == "integer" and self._freq is None
        whole = not int(ends["odd_months"].iloc[0])
        return integers and first >= FIRST_MONTH and last <= LAST_MONTH and whole

    def _refuse(self, rows: ir.Table) -> ir.Table:
        """Check rows, the look of their times, and doubles; return the rows that stay."""
        rows = self._check_rows(rows)
        if self._set_span(rows):
            raise DataError(row_checks.like_months(self._names.time))
        row_checks.refuse_doubles(self._names, rows)
        return rows

    def _count_long(self, progress: Progress | None) -> dict[str, int]:
        """Count by grid: rows are read once, and looked at closely only where some are refused."""
        self.kept = self._lazy
        self._total = int(self._lazy.count().execute())
        self._refused = pd.DataFrame([], columns=["rule", "rows"])
        suspect = self._set_span(self._lazy)
        counted = Tally(refused=1) if suspect else self._count_by_grid(self._lazy, progress)
        if counted.refused or counted.doubled or counted.uneven:
            self._forget_labels()
            self.kept = rows = self._refuse(self._lazy)
            if counted.uneven or self._weighted:
                weight = rows.weight
                ends = rows.group_by("member").agg(least=weight.min(), most=weight.max())
                row_checks.refuse_uneven(ends)
            counted = self._count_by_grid(rows, progress)
        if counted.thin:
            logger.info("panel: periods lie too far apart for a grid; rows are sorted")
            self._forget_labels()
            return self._count_short()
        self.rows = query.add_next_states(self.kept)
        self._tally = counted
        self._moved = int((counted.cells[0][:, 4] >= 0).sum())
        return counted.members

    def _forget_labels(self) -> None:
        """Drop the cached labels of segments and regions: other rows are kept from here on."""
        for name in ("segments", "regions"):
            self.__dict__.pop(name, None)

    def _count_by_grid(self, rows: ir.Table, progress: Progress | None) -> Tally:
        """Count coded rows by grid.

        Where no row names a segment or region, the tally says that a row is refused.
        """
        if not self.segments or (self._names.region and not self.regions):
            return Tally(refused=1)
        spec = Spec(
            states=self.states.size,
            choices=len(self.choices),
            segments=self.segments,
            regions=self.regions,
            first=self.span[0],
            last=self.span[1],
            buckets=self.buckets,
            weighted=self._weighted,
        )
        return tally(self.engine, rows, spec, self._bytes // 2, self._total, progress)

    def _count_short(self) -> dict[str, int]:
        """Store the coded rows, check them, add next states, and return the summary of members."""
        stored = self._store(self._lazy, "coded")
        rows = self._refuse(stored)
        if rows is not stored:
            rows = self._store(rows, "kept")
        self.rows = self.kept = self._store(query.add_next_states(rows), "rows")
        return self._summarise()

    def _summarise(self) -> dict[str, int]:
        """Return numbers of rows and members of all kinds, from the rows with next states."""
        r = self.rows
        skipped = (r.next_period > r.period + 1).fill_null(False)
        by_member = r.group_by("member").agg(
            first=r.period.min(),
            last=r.period.max(),
            months=r.count(),
            gaps=skipped.sum(),
            least=r.weight.min(),
            most=r.weight.max(),
            one_segment=r.segment.min(),
            other_segment=r.segment.max(),
        )
        if self._weighted:
            row_checks.refuse_uneven(by_member)
        first, last = self.span
        self._moved = int(r.filter(r.next_state >= 0).count().execute())
        totals = by_member.agg(
            members=by_member.count(),
            rows=by_member.months.sum(),
            gaps=by_member.gaps.sum(),
            gap_members=(by_member.gaps > 0).sum(),
            entered=(by_member["first"] > first).sum(),
            exited=(by_member["last"] < last).sum(),
            censored=(by_member["last"] == last).sum(),
            single=(by_member.months == 1).sum(),
            movers=(by_member.one_segment < by_member.other_segment).sum(),
        ).execute()
        return {k: int(v) if pd.notna(v) else 0 for k, v in totals.iloc[0].items()}

    def _make_report(self) -> Report:
        """Return what is said of the panel, and warn where nobody is seen twice in a row."""
        m = self._totals
        first, last = (period_label(p, self.kind) for p in self.span)
        lines: list[tuple[str, int, str]] = [
            ("rows", m["rows"], "member-months kept"),
            ("members", m["members"], ""),
            ("periods", self.span[1] - self.span[0] + 1, f"{first} to {last}"),
            (
                "entry after the first period",
                m["entered"],
                "members; what they did before is unknown",
            ),
            ("exit before the last period", m["exited"], "members; not in a forecast's start"),
            ("right-censored", m["censored"], "members still seen in the last period"),
            ("gaps", m["gaps"], f"breaks in {m['gap_members']:,} members' spells, not bridged"),
            ("members with one row", m["single"], "inform choices only"),
            ("members that change segment", m["movers"], "each row counts where it stands"),
            ("rows refused", self._total - m["rows"], ""),
        ]
        lines += [(f"refused: {r.rule}", int(r.rows), "") for r in self._refused.itertuples()]
        table = pd.DataFrame(lines, columns=["subject", "count", "note"]).set_index("subject")
        if m["rows"] > m["members"] and not self._moved:
            warnings.warn(
                "no member is seen in two consecutive periods, so nothing is learnt about"
                " transitions; if periods are quarters or years, pass freq='quarter' or 'year'",
                DataWarning,
                stacklevel=3,
            )
        return Report(table)

    # counts --------------------------------------------------------------------------------

    @property
    def nmembers(self) -> int:
        """Number of members ``N``."""
        return self.report["members"]

    @cached_property
    def segments(self) -> tuple[Level, ...]:
        """Segment labels, sorted; ``("all",)`` without a segment column."""
        labels = self.kept.select("segment").distinct().execute()["segment"]
        return tuple(sorted(str(s) for s in labels.dropna()))

    @cached_property
    def regions(self) -> tuple[Level, ...]:
        """Region labels, sorted; empty without a region column."""
        if self._names.region is None:
            return ()
        labels = self.kept.select("region").distinct().execute()["region"]
        return tuple(sorted(str(r) for r in labels.dropna()))

    def _fetch(self, keys: list[str]) -> Keyed:
        """Return cells by keys and weight: keys (n, k), weights and numbers of rows (n,)."""
        cells = query.count_cells(self.rows, keys).execute()
        weight = cells["weight"].to_numpy(dtype=np.float64)
        return self._as_codes(cells, keys), weight, cells["rows"].to_numpy(dtype=np.int64)

    def cells(self, kind: str) -> Keyed:
        """Return numbers of rows by cell and weight: ``"cells"``, ``"periods"`` or ``"regions"``.

        Keys (n, k), columns as ``KEYS[kind]`` names them, weights and numbers of rows (n,).
        """
        if self._tally is not None:
            counted = getattr(self._tally, kind)
            assert counted is not None
            return counted
        return self._fetch(KEYS[kind])

    def _as_codes(self, df: pd.DataFrame, keys: list[str]) -> IntArray:
        """Return columns as one integer array (rows, keys), segments and regions by code."""
        codes = {
            name: {label: i for i, label in enumerate(labels)}
            for name, labels in (("segment", self.segments), ("region", self.regions))
        }
        parts = [df[k].map(codes[k]) if k in codes else df[k] for k in keys]
        return np.ascontiguousarray(np.stack([p.to_numpy() for p in parts], axis=1), np.int64)

    def member_cells(self, by_period: bool = False) -> MemberCells:
        """Return each member's own cells, with the period since the first one on request.

        Long panels are read a few buckets of members at a time, so that the rows of a million
        members never stand in memory together.
        """
        rounds = min(-(-self.report["rows"] // CHUNK_ROWS), self.buckets)
        edges = np.linspace(0, self.buckets, rounds + 1).astype(int)
        parts = [self._fetch_members(int(a), int(b), by_period) for a, b in pairwise(edges)]
        return MemberCells.merged([p for p in parts if len(p[0])])

    def _fetch_members(self, low: int, high: int, by_period: bool) -> tuple[AnyArray, MemberCells]:
        """Return ids and cells of the members in buckets ``low`` to ``high - 1``."""
        keys = ["segment", "state", "choice", "next_state", "decides"]
        keys += ["period"] if by_period else []
        rows = self.rows.filter((self.rows.bucket >= low) & (self.rows.bucket < high))
        counted = query.count_cells(rows, ["member", *keys]).execute()
        ids, codes = np.unique(counted["member"].to_numpy(), return_inverse=True)
        weights = np.ones(len(ids))
        weights[codes] = counted["weight"].to_numpy(dtype=np.float64)
        cells = self._as_codes(counted, keys)
        if by_period:
            cells[:, -1] -= self.span[0]
        n = counted["rows"].to_numpy(dtype=np.float64)
        del counted  # the largest table here: let it go before the next is read
        bucket, region = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        starts = self._fetch_first_rows(rows)
        member = np.searchsorted(ids, starts["member"].to_numpy())
        by_time = np.lexsort((starts["period"].to_numpy(), member))
        starts, member = starts.iloc[by_time], member[by_time]
        # a member who changes segment has several starts: the earliest names bucket and region
        opening = np.unique(member, return_index=True)[1]
        bucket[member[opening]] = starts["bucket"].to_numpy()[opening]
        if self.regions:
            region[member[opening]] = self._as_codes(starts, ["region"])[opening, 0]
        segment = self._as_codes(starts, ["segment"])[:, 0]
        firsts = np.stack([member, segment, starts["state"].to_numpy()], axis=1).astype(np.int64)
        entries = codes.reshape(-1).astype(np.int64)
        return ids, MemberCells.from_rows(
            member=entries,
            cells=cells,
            n=n,
            weights=weights,
            firsts=firsts,
            bucket=bucket,
            region=region,
        )

    def _fetch_first_rows(self, rows: ir.Table) -> pd.DataFrame:
        """Return each member's first row in each segment: bucket, region, period and state."""
        import ibis

        window = ibis.window(group_by=[rows.member, rows.segment])
        columns = ["member", "segment", "bucket", "region", "state", "period"]
        marked = rows.select(*columns, opening=rows.period.min().over(window))
        return marked.filter(marked.period == marked.opening).execute()

    def bucket_cells(self) -> RegionCells:
        """Return the cells by member bucket and period, in the form of those by region."""
        keys = ["segment", "bucket", "period", "state", "choice", "next_state", "decides"]
        return RegionCells(tuple(range(self.buckets)), *sum_member_months(*self._fetch(keys)))

    def _count_segment_members(self) -> FloatArray:
        """Return members seen in each segment (M,), by weight."""
        if self._tally is not None:
            return self._tally.segment_members
        once = self.rows.group_by(["segment", "member"]).agg(w=self.rows.weight.min())
        members = once.group_by(["segment", "w"]).agg(n=once.count()).execute()
        return sum_weights_by_segment(self.segments, members["segment"], members["w"], members["n"])

    @cached_property
    def counts(self) -> Counts:
        """The panel as :class:`Counts`, computed once."""
        short = self._tally is None and self.report["rows"] <= self._member_limit
        members = self.member_cells() if short else None
        cells, n = sum_member_months(*self.cells("cells"))
        period_cells, period_n = sum_member_months(*self.cells("periods"))
        regions = None
        if self.regions:
            regions = RegionCells(self.regions, *sum_member_months(*self.cells("regions")))
        return Counts(
            states=self.states,
            choices=self.choices,
            segments=self.segments,
            buckets=self.buckets,
            cells=cells,
            n=n,
            period_cells=period_cells,
            period_n=period_n,
            segment_members=self._count_segment_members(),
            origin=self.span[0],
            members=members,
            regions=regions,
            period_kind=self.kind,
        )

    def until(self, period: Level) -> Panel:
        """Return the panel as it was after a period: :func:`dynchoice.panel.cohorts.until`."""
        from dynchoice.panel.cohorts import until

        return until(self, period)

    def first_rows(
        self, state: int, choice: int, next_state: int | None = None, limit: int = OFFENDERS
    ) -> list[str]:
        """Return the first members and times of one cell, for error messages."""
        r = self.rows
        in_cell = (r.state == int(state)) & (r.choice == int(choice))
        if next_state is not None:
            in_cell &= r.next_state == int(next_state)
        few = r.filter(in_cell).order_by(["member", "period"]).limit(limit).execute()
        return [f"member {x.member} at {x.raw_time}" for x in few.itertuples()]

    def sql(self, dialect: str = "duckdb") -> str:
        """Return the counting query as SQL of another engine, for an auditor.

        Raises
        ------
        SpecificationError
            A dialect that is not known.
        """
        import ibis

        checks.one_of(dialect, "dialect", query.DIALECTS)
        expr = query.count_cells(query.add_next_states(self._lazy), KEYS["cells"])
        return str(ibis.to_sql(expr, dialect=dialect))

    def __repr__(self) -> str:
        first, last = (period_label(p, self.kind) for p in self.span)
        return (
            f"Panel({self.report['rows']:,} rows, {self.nmembers:,} members, {first} to {last},"
            f" {self.states.size:,} states, {len(self.choices)} choices)"
        )
