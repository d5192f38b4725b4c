"""Panel: a table of member-months, checked, reported and counted.

Every check and count is a query on one lazy expression (:mod:`dynchoice.panel.query`), so a
pandas frame, a folder of Parquet files and a warehouse table take the same path, and only counts
come back. Time alone orders the rows. Gaps break a spell and are reported, never bridged; a
member's last row informs choices and never transitions.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import (
    DataError,
    DataWarning,
    SpecificationError,
    first_few,
    suggest,
)
from dynchoice.panel import query
from dynchoice.panel.cells import RegionCells, group_sum
from dynchoice.panel.counts import Counts, MemberCells, period_label
from dynchoice.panel.report import Report
from dynchoice.panel.source import as_table
from dynchoice.panel.states import StateSpace, check_labels
from dynchoice.typing import IntArray, Level

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

logger = logging.getLogger("dynchoice.panel")

OFFENDERS = 3
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
        Panels with more rows keep no cells by member; clusters are then the buckets.

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
        data: Any,
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
        member_limit: int = 5_000_000,
    ) -> None:
        if invalid not in ("raise", "drop"):
            raise SpecificationError(f"invalid={invalid!r}: use 'raise' or 'drop'")
        if buckets < 2:
            raise SpecificationError(f"buckets={buckets}: at least 2 are needed")
        if not isinstance(states, StateSpace):
            raise SpecificationError(f"states is a {type(states).__name__}; build a StateSpace")
        self.states = states
        self.choices = check_labels(choices, "choices")
        self._member_name, self._time_name, self._choice_name = member, time, choice
        sources = dict(columns or {})
        unknown = [name for name in sources if name not in states.axes]
        if unknown:
            raise SpecificationError(
                f"columns names the axis {unknown[0]!r}, which the states do not have."
                f"{suggest(unknown[0], states.axes)} Axes: {', '.join(states.axes)}"
            )
        self._sources = {name: sources.get(name, name) for name in states.axes}
        used = [member, time, choice, *self._sources.values()]
        used += [c for c in (segment, region, weights, decision) if c]
        table, self._con = as_table(data, used)
        rows, self._kind = query.coded_rows(
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
        self.buckets, self._member_limit = buckets, member_limit
        self._weighted, self._invalid = weights is not None, invalid
        self._labels = {
            "segment": segment,
            "region": region,
            "weights": weights,
            "decision": decision,
        }
        self._lazy = rows
        self._refused = self._check_rows(self._store(rows, "coded"), freq)
        self._members = self._check_members()
        self.report = self._report()
        logger.info("panel: %s rows, %s members", self.report["rows"], self.report["members"])

    def _store(self, rows: ir.Table, name: str) -> ir.Table:
        """Compute rows once into a temporary table, where the engine is our own DuckDB."""
        return rows if self._con is None else self._con.create_table(name, rows, temp=True)

    # checks --------------------------------------------------------------------------------

    def _rules(self, rows: ir.Table) -> dict[str, tuple[Any, str]]:
        """Return rule name -> (predicate of bad rows, column of the offending value)."""
        rules: dict[str, tuple[Any, str]] = {
            f"missing {self._member_name!r} (member)": (rows.member.isnull(), "raw_time"),
            f"missing or unreadable {self._time_name!r} (time)": (
                rows.period.isnull(),
                "raw_time",
            ),
            f"missing {self._choice_name!r} (choice)": (rows.raw_choice.isnull(), "raw_choice"),
            f"unknown choice in {self._choice_name!r}": (
                rows.choice.isnull() & rows.raw_choice.notnull(),
                "raw_choice",
            ),
        }
        for k, name in enumerate(self.states.axes):
            raw, code = rows[f"raw_axis_{k}"], rows[f"axis_{k}"]
            label = f"{self._sources[name]!r} (state axis {name})"
            rules[f"missing {label}"] = (raw.isnull(), f"raw_axis_{k}")
            rules[f"unknown level in {label}"] = (
                code.isnull() & raw.notnull(),
                f"raw_axis_{k}",
            )
        for group in ("segment", "region"):
            if self._labels[group]:
                rules[f"missing {self._labels[group]!r} ({group})"] = (rows[group].isnull(), group)
        if self._labels["decision"]:
            rules[f"not 0 or 1 in {self._labels['decision']!r} (decision)"] = (
                rows.decides.isnull(),
                "decides",
            )
        if self._weighted:
            bad = rows.weight.isnull() | ~((rows.weight > 0) & (rows.weight < 1e300))
            rules[f"weight not positive in {self._labels['weights']!r}"] = (bad, "weight")
        return rules

    def _check_rows(self, rows: ir.Table, freq: str | None) -> pd.DataFrame:
        import pandas as pd

        rules = self._rules(rows)
        names = list(rules)
        found = rows.agg(
            total=rows.count(),
            lowest=rows.period.min(),
            highest=rows.period.max(),
            odd_months=((rows.period % 100 < 1) | (rows.period % 100 > 12)).sum(),
            **{f"rule_{i}": rules[n][0].fill_null(False).sum() for i, n in enumerate(names)},
        ).execute()
        self._total = int(found["total"].iloc[0])
        if self._total == 0:
            raise DataError("the table has no rows")
        counts = [int(x) if pd.notna(x) else 0 for x in found.iloc[0, 4:]]
        bad = [(n, c) for n, c in zip(names, counts, strict=True) if c]
        if bad and self._invalid == "raise":
            raise DataError(self._refusal(rows, rules, bad))
        looks_like_months = (
            self._kind == "integer"
            and freq is None
            and int(found["lowest"].iloc[0]) >= 190001
            and int(found["highest"].iloc[0]) <= 299912
            and not int(found["odd_months"].iloc[0] or 0)
        )
        if looks_like_months:
            raise DataError(
                f"column {self._time_name!r} looks like YYYYMM, where December and January are"
                " not consecutive integers: pass freq='month' (or freq='integer' to count as is)"
            )
        if bad:
            any_bad: Any = None
            for name, _ in bad:
                flag = rules[name][0].fill_null(False)
                any_bad = flag if any_bad is None else any_bad | flag
            rows = self._store(rows.filter(~any_bad), "kept")
            if int(rows.count().execute()) == 0:
                raise DataError(
                    "every row is refused:\n" + self._refusal(rows, rules, bad, offenders=False)
                )
        self._rows = rows
        return pd.DataFrame(bad, columns=["rule", "rows"])

    def _refusal(
        self,
        rows: ir.Table,
        rules: dict[str, tuple[Any, str]],
        bad: list[tuple[str, int]],
        offenders: bool = True,
    ) -> str:
        lines = [f"{sum(c for _, c in bad):,} value(s) in {self._total:,} rows are refused:"]
        for name, count in bad:
            line = f"- {name}: {count:,} row(s)"
            if offenders:
                flag, value = rules[name]
                few = (
                    rows.filter(flag.fill_null(False))
                    .order_by(["member", "period"])
                    .select("member", "raw_time", shown=rows[value].cast("string"))
                    .limit(OFFENDERS)
                    .execute()
                )
                seen = [
                    f"member {r.member} at {r.raw_time}"
                    + (f" ({r.shown!r})" if "unknown" in name or "weight" in name else "")
                    for r in few.itertuples()
                ]
                line += f", first: {first_few(seen)}"
                if "unknown choice" in name:
                    line += f".{suggest(few.shown.iloc[0], self.choices)}"
                    line += f" Choices: {', '.join(map(str, self.choices))}"
                elif "unknown level" in name:
                    axis = name.split("state axis ")[1].rstrip(")")
                    line += f".{suggest(few.shown.iloc[0], self.states.axes[axis])}"
                    line += f" Levels: {first_few(list(self.states.axes[axis]), 8)}"
            lines.append(line)
        if offenders:
            pairs = rows.group_by(["member", "period"]).agg(copies=rows.count())
            doubled = int(pairs.filter(pairs.copies > 1).count().execute())
            if doubled:
                lines.append(f"- and {doubled:,} (member, time) pairs appear more than once")
        lines.append("Mend the table, or pass invalid='drop' to leave these rows out (reported).")
        return "\n".join(lines)

    def _check_members(self) -> pd.DataFrame:
        """Refuse duplicates, add next states, and return the summary over members."""
        rows = self._rows
        doubles = (
            rows.group_by(["member", "period"])
            .agg(copies=lambda t: t.count(), at=lambda t: t.raw_time.min())
            .filter(lambda t: t.copies > 1)
        )
        total = doubles.agg(pairs=doubles.count(), copies=doubles.copies.sum()).execute()
        if int(total["pairs"].iloc[0]):
            few = doubles.order_by(["member", "period"]).limit(OFFENDERS).execute()
            seen = [f"member {r.member} at {r.at} ({r.copies} rows)" for r in few.itertuples()]
            raise DataError(
                f"{int(total['pairs'].iloc[0]):,} (member, time) pairs appear more than once"
                f" ({int(total['copies'].iloc[0]):,} rows), first: {first_few(seen)}."
                f" Keep one row per {self._member_name!r} and {self._time_name!r}."
            )
        self.rows = self._store(query.with_next(rows), "rows")
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
            uneven = by_member.filter(by_member.least < by_member.most)
            if int(uneven.count().execute()):
                few = uneven.order_by("member").limit(OFFENDERS).execute()
                raise DataError(
                    f"the weight of {int(uneven.count().execute()):,} member(s) changes over time,"
                    f" first: {first_few([f'member {m}' for m in few.member])}. A weight says how"
                    " many members a history stands for: make it constant within a member."
                )
        ends = r.agg(first=r.period.min(), last=r.period.max()).execute()
        first, last = int(ends["first"].iloc[0]), int(ends["last"].iloc[0])
        self._span = (first, last)
        self._moved = int(r.filter(r.next_state >= 0).count().execute())
        return by_member.agg(
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

    def _report(self) -> Report:
        import pandas as pd

        m = {k: int(v) if pd.notna(v) else 0 for k, v in self._members.iloc[0].items()}
        first, last = (period_label(p, self._kind) for p in self._span)
        lines: list[tuple[str, int, str]] = [
            ("rows", m["rows"], "member-months kept"),
            ("members", m["members"], ""),
            ("periods", self._span[1] - self._span[0] + 1, f"{first} to {last}"),
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
        found = self.rows.select("segment").distinct().execute()["segment"]
        return tuple(sorted(str(s) for s in found))

    @cached_property
    def regions(self) -> tuple[Level, ...]:
        """Region labels, sorted; empty without a region column."""
        if self._labels["region"] is None:
            return ()
        found = self.rows.select("region").distinct().execute()["region"]
        return tuple(sorted(str(r) for r in found))

    def _fetch(self, keys: list[str]) -> pd.DataFrame:
        return query.cell_counts(self.rows, keys).execute()

    def _keyed(self, df: pd.DataFrame, keys: list[str]) -> IntArray:
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
        parts = [self._members_of(int(a), int(b), by_period) for a, b in itertools.pairwise(edges)]
        return MemberCells.merged([p for p in parts if len(p[0])])

    def _members_of(self, low: int, high: int, by_period: bool) -> tuple[Any, MemberCells]:
        """Return ids and cells of the members in buckets ``low`` to ``high - 1``."""
        keys = ["segment", "state", "choice", "next_state", "decides"]
        keys += ["period"] if by_period else []
        r = self.rows
        here = r.filter((r.bucket >= low) & (r.bucket < high))
        own = query.cell_counts(here, ["member", *keys]).execute()
        who, codes = np.unique(own["member"].to_numpy(), return_inverse=True)
        weights = np.ones(len(who))
        weights[codes] = own["weight"].to_numpy(dtype=np.float64)
        cells = self._keyed(own, keys)
        if by_period:
            cells[:, -1] -= self._span[0]
        n = own["rows"].to_numpy(dtype=np.float64)
        del own
        bucket, region = np.zeros(len(who), np.int64), np.zeros(len(who), np.int64)
        starts = self._first_months(here)
        at = np.searchsorted(who, starts["member"].to_numpy())
        earliest = np.lexsort((starts["period"].to_numpy(), at))
        starts, at = starts.iloc[earliest], at[earliest]
        opening = np.unique(at, return_index=True)[1]
        bucket[at[opening]] = starts["bucket"].to_numpy()[opening]
        if self.regions:
            region[at[opening]] = self._keyed(starts, ["region"])[opening, 0]
        segment = self._keyed(starts, ["segment"])[:, 0]
        firsts = np.stack([at, segment, starts["state"].to_numpy()], axis=1).astype(np.int64)
        entries = codes.reshape(-1).astype(np.int64)
        return who, MemberCells.from_rows(entries, cells, n, weights, firsts, bucket, region)

    def _first_months(self, rows: ir.Table) -> pd.DataFrame:
        """Return each member's first row in each segment: bucket, region, period and state."""
        import ibis

        r = rows
        opening = r.period.min().over(ibis.window(group_by=[r.member, r.segment]))
        kept = ["member", "segment", "bucket", "region", "state", "period"]
        marked = r.select(*kept, opening=opening)
        return marked.filter(marked.period == marked.opening).execute()

    def _region_cells(self) -> RegionCells | None:
        if not self.regions:
            return None
        keys = ["segment", "region", "period", "state", "choice", "next_state", "decides"]
        found = self._fetch(keys)
        n = (found["rows"] * found["weight"]).to_numpy(dtype=np.float64)
        return RegionCells(self.regions, *group_sum(self._keyed(found, keys), n))

    def bucket_cells(self) -> RegionCells:
        """Return the cells by member bucket and period, in the form of those by region."""
        keys = ["segment", "bucket", "period", "state", "choice", "next_state", "decides"]
        found = self._fetch(keys)
        n = (found["rows"] * found["weight"]).to_numpy(dtype=np.float64)
        labels = tuple(range(self.buckets))
        return RegionCells(labels, *group_sum(self._keyed(found, keys), n))

    @cached_property
    def counts(self) -> Counts:
        """The panel as :class:`Counts`, computed once."""
        keys = ["segment", "bucket", "state", "choice", "next_state", "decides"]
        period_keys = ["segment", "period", "state", "choice", "decides"]
        cells, by_period = self._fetch(keys), self._fetch(period_keys)
        n = (cells["rows"] * cells["weight"]).to_numpy(dtype=np.float64)
        period_n = (by_period["rows"] * by_period["weight"]).to_numpy(dtype=np.float64)
        members = None
        if self.report["rows"] <= self._member_limit:
            members = self.member_cells()
        once = self.rows.group_by(["segment", "member"]).agg(w=self.rows.weight.min())
        seen = once.group_by("segment").agg(n=once.w.sum()).execute()
        by_segment = dict(zip(seen["segment"].astype(str), seen["n"], strict=True))
        sorted_cells, sorted_n = group_sum(self._keyed(cells, keys), n)
        sorted_periods, sorted_period_n = group_sum(self._keyed(by_period, period_keys), period_n)
        return Counts(
            states=self.states,
            choices=self.choices,
            segments=self.segments,
            buckets=self.buckets,
            cells=sorted_cells,
            n=sorted_n,
            period_cells=sorted_periods,
            period_n=sorted_period_n,
            segment_members=np.array([float(by_segment[str(s)]) for s in self.segments]),
            origin=self._span[0],
            members=members,
            regions=self._region_cells(),
            period_kind=self._kind,
        )

    def first_rows(
        self, state: int, choice: int, next_state: int | None = None, limit: int = OFFENDERS
    ) -> list[str]:
        """Return the first members and times of one cell, for error messages."""
        r = self.rows
        hit = (r.state == int(state)) & (r.choice == int(choice))
        if next_state is not None:
            hit &= r.next_state == int(next_state)
        few = r.filter(hit).order_by(["member", "period"]).limit(limit).execute()
        return [f"member {x.member} at {x.raw_time}" for x in few.itertuples()]

    def sql(self, dialect: str = "duckdb") -> str:
        """Return the counting query as SQL of any engine that ibis compiles, for an auditor."""
        import ibis

        keys = ["segment", "bucket", "state", "choice", "next_state", "decides"]
        expr = query.cell_counts(query.with_next(self._lazy), keys)
        return str(ibis.to_sql(expr, dialect=dialect))

    def __repr__(self) -> str:
        first, last = (period_label(p, self._kind) for p in self._span)
        return (
            f"Panel({self.report['rows']:,} rows, {self.nmembers:,} members, {first} to {last},"
            f" {self.states.size:,} states, {len(self.choices)} choices)"
        )
