"""Trajectories: rows of members whose states are numbers, in order, for rewards without a grid.

Where a :class:`dynchoice.Panel` keeps counts of states that are levels, here every row keeps its
own features (spend, hours watched, days since the last order). Rows are sorted once, by member and
time; a row's next state is then the row after it, and nothing is stored twice. Long tables are
sorted by DuckDB and kept in a file that the system pages in as it is read.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import DataError, SpecificationError, suggest
from dynchoice.memory import in_bytes, limit
from dynchoice.panel import query
from dynchoice.panel.source import as_table, stream
from dynchoice.panel.states import check_labels
from dynchoice.typing import (
    AnyArray,
    BoolArray,
    FloatArray,
    IntArray,
    Level,
    Progress,
    TableLike,
)

if TYPE_CHECKING:
    import ibis.expr.types as ir

BLOCK = 65_536
"""Rows that are worked on at a time."""
NO_ROW = -1
"""What stands for the row of a next period that is not observed."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some consecutive rows: states ``x``, next states ``x_next`` where ``moved``, choices."""

    rows: slice
    x: FloatArray
    choice: IntArray
    weight: FloatArray
    x_next: FloatArray
    moved: IntArray
    """Positions within the block of rows whose next state is known; ``x_next`` has these only."""
    ended: BoolArray
    """Whether nothing follows a row (a terminal state), by row."""


class Trajectories:
    """Member-months with numeric states, sorted by member and time.

    Parameters
    ----------
    data : pandas.DataFrame, pyarrow.Table, path(s) of Parquet or CSV, or ibis table
        One row per member and period.
    member, time, choice : str
        Column names; ``time`` as of :class:`dynchoice.Panel`.
    features : sequence of str
        Columns of numbers (or booleans) that make up the state, ``p`` of them.
    choices : sequence of labels
        ``J`` choices.
    weights : str, optional
        Column of positive weights: how many members a history stands for.
    terminal : str, optional
        Column of 0/1: after a row with 1 nothing follows, and its continuation is worth zero. A
        member's last row without it is censored: it informs choices, not transitions.
    region : str, optional
        Column by which errors may be clustered, ``fit(cluster="region")``; constant within a
        member.
    freq : {"integer", "month", "quarter", "year"}, optional
        As of :class:`dynchoice.Panel`.
    memory : str or int, optional
        Bytes beyond which features are kept in a temporary file instead of in memory. Default: a
        quarter of what is free.
    progress : callable, optional
        ``progress(done, total, message)`` as rows are read.

    Attributes
    ----------
    x : FloatArray, shape (N, p)
    choice, member, period : IntArray, shape (N,)
        Codes of choices and members, running numbers of periods.
    next : IntArray, shape (N,)
        Row of the member's next period, -1 where it is not observed (or after a terminal row).
    ended : array of bool, shape (N,)
    weight : FloatArray, shape (N,)
    region : IntArray, shape (members,), or None
        Code of every member's region.

    Raises
    ------
    ColumnError
        A column is missing.
    DataError
        Missing or infinite features, unknown choices, times that cannot be read, doubled rows,
        weights that are not positive: how many, and the first of them.

    Examples
    --------
    >>> import pandas as pd
    >>> df = pd.DataFrame({"id": [1, 1, 1, 2], "t": [0, 1, 3, 0], "hours": [2.5, 0.0, 4.0, 1.0],
    ...                    "plan": ["in", "out", "in", "in"]})
    >>> rows = Trajectories(df, member="id", time="t", choice="plan", features=["hours"],
    ...                     choices=["out", "in"])
    >>> rows.next.tolist()
    [1, -1, -1, -1]
    """

    def __init__(
        self,
        data: TableLike,
        *,
        member: str,
        time: str,
        choice: str,
        features: Iterable[str],
        choices: Iterable[Level],
        weights: str | None = None,
        terminal: str | None = None,
        region: str | None = None,
        freq: str | None = None,
        memory: str | int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if isinstance(features, str):
            raise SpecificationError(f"features: pass a list of columns, not the text {features!r}")
        self.features = tuple(features)
        if not self.features or len(set(self.features)) < len(self.features):
            raise SpecificationError(f"features: distinct columns, got {list(self.features)}")
        self.choices = check_labels(choices, "choices")
        if len(self.choices) < 2:
            raise SpecificationError(f"two choices at least, got {list(self.choices)}")
        self.spec = {
            "member": member,
            "time": time,
            "choice": choice,
            "weights": weights,
            "terminal": terminal,
            "region": region,
            "freq": freq,
        }
        used = [member, time, choice, *self.features]
        used += [c for c in (weights, terminal, region) if c]
        self._bytes = limit() // 4 if memory is None else in_bytes(memory)
        table, self._engine = as_table(data, used, self._bytes)
        self._read(self._code_columns(table), progress)
        self._refuse()
        self._engine = None

    # reading ---------------------------------------------------------------------------------

    def _code_columns(self, table: ir.Table) -> ir.Table:
        """Return member, period, choice code and features as numbers, lazily."""
        import ibis

        s = self.spec
        period, self.kind = query.period_number(
            query.column(table, str(s["time"]), "time"), s["freq"]
        )
        fields: dict[str, ir.Value] = {
            "member": query.without_nan(query.column(table, str(s["member"]), "member")),
            "period": period,
            "choice": query.level_code(
                query.column(table, str(s["choice"]), "choice"), self.choices
            ),
            "weight": query.column(table, s["weights"], "weights").cast("float64")
            if s["weights"]
            else ibis.literal(1.0),
            "ended": query.level_code(query.column(table, s["terminal"], "terminal"), (0, 1))
            if s["terminal"]
            else ibis.literal(0, "int64"),
        }
        if s["region"]:
            fields["region"] = query.column(table, s["region"], "region")
        for k, name in enumerate(self.features):
            col = query.column(table, name, "feature")
            if not (col.type().is_numeric() or col.type().is_boolean()):
                raise DataError(
                    f"feature {name!r} holds {col.type()}; make it a number (0/1 columns for"
                    " categories)"
                )
            fields[f"x_{k}"] = col.cast("float64")
        return table.select(**fields)

    def _read(self, rows: ir.Table, progress: Progress | None) -> None:
        """Fill the arrays in order of member and time."""
        N, p = int(rows.count().execute()), len(self.features)
        if N == 0:
            raise DataError("the table has no rows")
        self.x = self._allocate(N, p)
        self.choice = np.empty(N, dtype=np.int64)
        self.period, self.member = np.empty(N, dtype=np.int64), np.empty(N, dtype=np.int64)
        self.weight, self.ended = np.empty(N), np.empty(N, dtype=bool)
        roles = {"member": "member", "period": "time", "choice": "choice", "ended": "terminal"}
        missing = dict.fromkeys(roles, 0)
        regions: list[object] = []  # of each member, as first read
        start, members, last = 0, -1, None
        for batch in stream(self._engine, rows.order_by([rows.member, rows.period])):
            if not batch.num_rows:
                continue
            part = slice(start, start + batch.num_rows)
            for name in roles:
                missing[name] += batch.column(name).null_count
            for name in ("choice", "period", "ended"):
                column = batch.column(name).fill_null(-1)
                getattr(self, name)[part] = column.to_numpy(zero_copy_only=False)
            # a member's rows may go on in the next batch: its first id is compared with the last
            ids = batch.column("member").to_numpy(zero_copy_only=False)
            new = np.r_[last is None or ids[0] != last, ids[1:] != ids[:-1]]
            self.member[part] = members + np.cumsum(new)
            members, last = int(self.member[part][-1]), ids[-1]
            if self.spec["region"]:
                region = np.asarray(batch.column("region").to_pylist(), dtype=object)
                regions += region[new].tolist()
                firsts = np.array(regions, dtype=object)[self.member[part]]
                self._refuse_changed_regions(region, firsts, ids)
            self.weight[part] = batch.column("weight").to_numpy(zero_copy_only=False)
            for k in range(p):
                self.x[part, k] = batch.column(f"x_{k}").to_numpy(zero_copy_only=False)
            start += batch.num_rows
            if progress is not None:
                progress(start, N, "rows")
        bad = [f"{n:,} in {self.spec[roles[m]]!r} ({roles[m]})" for m, n in missing.items() if n]
        if bad:
            raise DataError(
                f"{sum(missing.values()):,} value(s) in {N:,} rows are missing or unknown:"
                f" {'; '.join(bad)}. Choices: {', '.join(map(str, self.choices))}"
            )
        self.region = None
        if regions:
            self.region = np.unique(np.array(list(map(str, regions))), return_inverse=True)[1]
        follows = (self.member[1:] == self.member[:-1]) & (self.period[1:] == self.period[:-1] + 1)
        self.next = np.full(N, NO_ROW, dtype=np.int64)
        continued = np.flatnonzero(follows & ~self.ended[:-1])
        self.next[continued] = continued + 1

    def _refuse_changed_regions(self, region: AnyArray, first: AnyArray, ids: AnyArray) -> None:
        """Raise for members whose region changes or is missing; all three are by row."""
        bad = (region != first) | (region == None)  # noqa: E711
        if bad.any():
            raise DataError(
                f"the region in {self.spec['region']!r} changes or is missing for"
                f" {len(np.unique(ids[bad])):,} member(s), first: member {ids[bad][0]}. Errors are"
                " clustered by whole members: give each one region"
            )

    def _allocate(self, N: int, p: int) -> FloatArray:
        """Return an array for the features: in memory, or in a file that goes with this object."""
        if 8 * N * p <= self._bytes:
            return np.empty((N, p))
        handle, path = tempfile.mkstemp(prefix="dynchoice-trajectories-", suffix=".bin")
        os.close(handle)
        weakref.finalize(self, Path(path).unlink, missing_ok=True)
        return np.memmap(path, dtype=np.float64, mode="w+", shape=(N, p))

    def _refuse(self) -> None:
        """Raise for bad features, doubled rows, bad weights, and choices that nobody makes."""
        for k, name in enumerate(self.features):
            bad = sum(  # a block at a time: the features may be in a file
                int((~np.isfinite(self.x[i : i + BLOCK, k])).sum())
                for i in range(0, len(self.x), BLOCK)
            )
            if bad:
                raise DataError(
                    f"feature {name!r} is missing or infinite in {bad:,} of {len(self.x):,} rows:"
                    " fill them or drop their rows"
                )
        doubled = (self.member[1:] == self.member[:-1]) & (self.period[1:] == self.period[:-1])
        if doubled.any():
            raise DataError(
                f"{int(doubled.sum()):,} rows repeat a member and period"
                f" ({self.spec['member']!r}, {self.spec['time']!r}): keep one each"
            )
        if not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise DataError(
                f"{int((~(self.weight > 0)).sum()):,} weights in {self.spec['weights']!r} are not"
                " positive numbers"
            )
        uneven = (self.member[1:] == self.member[:-1]) & (self.weight[1:] != self.weight[:-1])
        if uneven.any():
            count = len(np.unique(self.member[1:][uneven]))
            raise DataError(
                f"the weight in {self.spec['weights']!r} of {count:,} member(s) changes over time."
                " A weight says how many members a history stands for: make it constant within a"
                " member"
            )
        taken = np.bincount(self.choice, minlength=len(self.choices))
        if (taken == 0).any():
            never = [str(c) for c, n in zip(self.choices, taken, strict=True) if n == 0]
            raise DataError(
                f"nobody ever chooses {', '.join(map(repr, never))}: its probability cannot be"
                f" estimated.{suggest(never[0], [c for c in self.choices if c not in never])}"
                " Leave the choice out"
            )

    # use -------------------------------------------------------------------------------------

    @property
    def nobs(self) -> float:
        """Rows, by weight."""
        return float(self.weight.sum())

    @property
    def nmembers(self) -> int:
        """Members in the table."""
        return int(self.member[-1]) + 1

    def blocks(self, rows: IntArray | None = None, size: int = BLOCK) -> Iterator[Block]:
        """Yield the rows in order, ``size`` at a time; with ``rows`` (sorted), only these."""
        total = len(self.x) if rows is None else len(rows)
        for first in range(0, total, size):
            part = slice(first, min(first + size, total))
            taken = part if rows is None else rows[part]
            following = self.next[taken]
            moved = np.flatnonzero(following != NO_ROW)
            yield Block(
                rows=part,
                x=np.ascontiguousarray(self.x[taken]),
                choice=self.choice[taken],
                weight=self.weight[taken],
                x_next=np.ascontiguousarray(self.x[following[moved]]),
                moved=moved,
                ended=self.ended[taken],
            )

    def reweighted(self, times: FloatArray) -> Trajectories:
        """Return the same rows with each member's weight multiplied (``times``, by member).

        What a bootstrap of members resamples; zero leaves a member out of every sum.
        """
        out = copy.copy(self)
        out.weight = self.weight * times[self.member]
        out.__dict__.pop("digest", None)
        return out

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that estimates rest on."""
        h = hashlib.sha256(repr((self.features, self.choices)).encode())
        parts: tuple[AnyArray, ...] = (self.choice, self.next, self.member, self.weight, self.ended)
        for array in parts:
            h.update(np.ascontiguousarray(array).tobytes())
        for i in range(0, len(self.x), BLOCK):
            h.update(np.ascontiguousarray(self.x[i : i + BLOCK]).tobytes())
        return h.hexdigest()

    def frame(self, rows: IntArray | slice | None = None) -> pd.DataFrame:
        """Return the features of some rows (default all) as a table."""
        x = self.x if rows is None else self.x[rows]
        return pd.DataFrame(np.asarray(x), columns=list(self.features))

    def __repr__(self) -> str:
        return (
            f"Trajectories({len(self.x):,} rows, {self.nmembers:,} members,"
            f" {len(self.features)} features, {len(self.choices)} choices)"
        )
