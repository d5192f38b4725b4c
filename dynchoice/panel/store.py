"""Counts on disk that are kept up to date: a new month is added without reading the others.

A member's last row informs choices and no transition, until the next month says where it led. So a
store keeps, beside the counts, the *seam*: each member's last row. New rows are counted by
themselves; where they go on from a seam, the row there moves from "no next state" to the state that
followed. The counts are those of a recount of all months, bit for bit: numbers of rows are kept as
integers, weight by weight, and become member-months at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import DataError, LockError, SpecificationError, StorageError, first_few
from dynchoice.panel.cells import (
    Keyed,
    RegionCells,
    distinct_rows,
    sum_member_months,
    sum_weights_by_segment,
)
from dynchoice.panel.checks import OFFENDERS
from dynchoice.panel.counts import Counts, period_label
from dynchoice.panel.panel import KEYS, Panel
from dynchoice.panel.states import StateSpace
from dynchoice.storage import load_tree, save_tree, write_atomically
from dynchoice.typing import FilePath, Level, TableLike

if TYPE_CHECKING:
    import ibis.expr.types as ir
    from ibis.backends.duckdb import Backend

POINTER, LOCK = "current.json", ".lock"
KEPT = 2
"""Versions that stay on the disk: the current one, and the one that a reader may still read."""


class CountStore:
    """A folder of counts that grows month by month.

    Parameters
    ----------
    path : path
        Folder made by :meth:`create`.

    Raises
    ------
    StorageError
        No store there, or one that is damaged.

    Notes
    -----
    Updates are written beside the current version and then take its place: a reader sees the one or
    the other, and an update that is killed leaves the old one. One update runs at a time. No cells
    by member are kept, so standard errors are clustered by bucket of members.

    Examples
    --------
    >>> import pandas as pd, tempfile, dynchoice as dc
    >>> def month(t):
    ...     return pd.DataFrame({"id": [1, 2], "t": t, "x": [t % 2, 1], "c": ["in", "out"]})
    >>> spec = dict(member="id", time="t", choice="c", states=dc.StateSpace(x=range(2)),
    ...             choices=["out", "in"])
    >>> folder = tempfile.mkdtemp() + "/counts"
    >>> store = dc.CountStore.create(folder, dc.Panel(pd.concat([month(0), month(1)]), **spec))
    >>> store.update(month(2))["rows"]
    2
    >>> store.counts.nobs
    6.0
    """

    def __init__(self, path: FilePath) -> None:
        self.path = Path(path)
        self._read()

    @classmethod
    def create(cls, path: FilePath, panel: Panel) -> CountStore:
        """Make a store of a panel's counts in a new or empty folder.

        Raises
        ------
        StorageError
            The folder holds something already.
        SpecificationError
            The panel's rows are in somebody else's engine: count there, each time.
        """
        target = Path(path)
        if target.exists() and any(target.iterdir()):
            raise StorageError(
                f"{target} is not empty: name a new folder, or open it by CountStore"
            )
        if panel.engine is None:
            raise SpecificationError(
                "a store is made of files or frames; a warehouse table is counted where it is"
            )
        target.mkdir(parents=True, exist_ok=True)
        cells = {kind: panel.cells(kind) for kind in KEYS if kind != "regions" or panel.regions}
        tree = {
            "spec": panel.spec,
            "axes": [[name, list(levels)] for name, levels in panel.states.axes.items()],
            "choices": list(panel.choices),
            "segments": list(panel.segments),
            "regions": list(panel.regions),
            "kind": panel.kind,
            "span": list(panel.span),
            "rows": panel.report["rows"],
        }
        with _locked(target):
            _write(
                target,
                version=1,
                tree=tree,
                cells=cells,
                con=panel.engine,
                seam=_find_ends(panel, "last"),
                places=panel.kept.select("member", "segment").distinct(),
            )
        return cls(target)

    def _read(self) -> None:
        """Read the current version."""
        try:
            self.version = int(json.loads((self.path / POINTER).read_text())["version"])
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(f"{self.path} holds no counts: {error}") from None
        tree = load_tree(self.path / f"counts-{self.version:06d}.npz", "CountStore")
        self._cells: dict[str, Keyed] = {k: tuple(v) for k, v in tree.pop("cells").items()}
        self._members = tree.pop("members")
        self._tree = tree
        self.states = StateSpace.from_axes(dict(tree["axes"]))
        self.__dict__.pop("counts", None)

    @property
    def rows(self) -> int:
        """Member-months counted."""
        return int(self._tree["rows"])

    @property
    def span(self) -> tuple[str, str]:
        """First and last period, as they read in the data."""
        first, last = (period_label(p, self._tree["kind"]) for p in self._tree["span"])
        return first, last

    @cached_property
    def counts(self) -> Counts:
        """All months as :class:`Counts`."""
        tree = self._tree
        cells, n = sum_member_months(*self._cells["cells"])
        period_cells, period_n = sum_member_months(*self._cells["periods"])
        regions = None
        if tree["regions"]:
            regions = RegionCells(
                tuple(tree["regions"]), *sum_member_months(*self._cells["regions"])
            )
        return Counts(
            states=self.states,
            choices=tuple(tree["choices"]),
            segments=tuple(tree["segments"]),
            buckets=tree["spec"]["buckets"],
            cells=cells,
            n=n,
            period_cells=period_cells,
            period_n=period_n,
            segment_members=np.asarray(self._members),
            origin=tree["span"][0],
            regions=regions,
            period_kind=tree["kind"],
        )

    def update(self, data: TableLike, memory: str | int | None = None) -> dict[str, int]:
        """Add new rows: the months that came since.

        Parameters
        ----------
        data : as :class:`dynchoice.Panel` takes it
            Rows of later periods than each member's last one here, columns as before.
        memory : str or int, optional
            As :class:`dynchoice.Panel` takes it.

        Returns
        -------
        dict
            ``rows`` added, ``members`` seen in them, ``new`` ones among these, ``continued`` (their
            last row here now has a next state) and ``gaps`` (it was some periods before).

        Raises
        ------
        DataError
            Rows of periods that a member has here already (nothing is double counted); weights
            other than before; and all that :class:`dynchoice.Panel` refuses.
        LockError
            Another update is running.
        """
        with _locked(self.path):
            self._read()
            tree = self._tree
            panel = Panel(
                data,
                states=self.states,
                choices=tree["choices"],
                **tree["spec"],
                member_limit=0,
                memory=memory,
            )
            con = panel.engine
            if con is None:
                raise SpecificationError("update() takes files or frames")
            if panel.kind != tree["kind"]:
                raise DataError(f"periods are {panel.kind}s here and {tree['kind']}s in the store")
            seam = con.read_parquet(self.path / f"seam-{self.version:06d}.parquet")
            places = con.read_parquet(self.path / f"places-{self.version:06d}.parquet")
            if seam.member.type().is_string() != panel.kept.member.type().is_string():
                raise DataError(
                    f"members are {panel.kept.member.type()} here and {seam.member.type()} in the"
                    " store: convert them"
                )
            first = con.create_table("begun", _find_ends(panel, "first"), temp=True, overwrite=True)
            joined = seam.inner_join(first, "member", rname="{name}_new")
            self._refuse_overlap(joined)
            follows = joined.filter(joined.period_new == joined.period + 1)
            labels = {
                "segment": sorted({*tree["segments"], *panel.segments}, key=str),
                "region": sorted({*tree["regions"], *panel.regions}, key=str),
            }
            cells = self._merge_cells(panel, follows, labels)
            last = con.create_table("ended", _find_ends(panel, "last"), temp=True, overwrite=True)
            # who has no new row keeps the old last one
            new_seam = seam.anti_join(last, "member").union(
                last.select(*seam.columns).cast(seam.schema())
            )
            new_places = panel.kept.select("member", "segment").cast(places.schema())
            here_before = int(joined.count().execute())
            continued = int(follows.count().execute())
            summary = {
                "rows": panel.report["rows"],
                "members": panel.report["members"],
                "new": panel.report["members"] - here_before,
                "continued": continued,
                "gaps": here_before - continued,
            }
            tree = {
                **tree,
                "segments": labels["segment"],
                "regions": labels["region"],
                "span": [
                    min(tree["span"][0], panel.span[0]),
                    max(tree["span"][1], panel.span[1]),
                ],
                "rows": tree["rows"] + panel.report["rows"],
            }
            _write(
                self.path,
                version=self.version + 1,
                tree=tree,
                cells=cells,
                con=con,
                seam=new_seam,
                places=places.union(new_places, distinct=True),
            )
            self._read()
        return summary

    def _merge_cells(
        self, panel: Panel, follows: ir.Table, labels: dict[str, list[Level]]
    ) -> dict[str, Keyed]:
        """Return the store's cells with those of new rows added, by kind.

        ``follows`` are last rows here whose next period is the first new one: their cells get a
        next state.
        """
        before = {name: self._tree[name] for name in ("segments", "regions")}
        added = {"segments": list(panel.segments), "regions": list(panel.regions)}
        merged = {}
        for kind, keys in KEYS.items():
            if kind not in self._cells:
                continue
            parts = [
                _relabel(self._cells[kind], keys, before, labels),
                _relabel(panel.cells(kind), keys, added, labels),
            ]
            if kind != "periods":  # these have no next state
                parts += _move_seams(follows, keys, labels)
            merged[kind] = _join_cells(parts)
        return merged

    def _refuse_overlap(self, joined: ir.Table) -> None:
        """Raise where new rows are not later than a member's last one, or weights differ."""
        kind = self._tree["kind"]
        late = joined.filter(joined.period_new <= joined.period)
        count = int(late.count().execute())
        if count:
            few = late.order_by("member").limit(OFFENDERS).execute()
            offenders = [
                f"member {r.member} at {period_label(int(r.period_new), kind)} (counted to"
                f" {period_label(int(r.period), kind)})"
                for r in few.itertuples()
            ]
            raise DataError(
                f"{count:,} member(s) have rows of periods that are counted already, first:"
                f" {first_few(offenders)}. Pass later periods only; to change the past, recount it"
            )
        uneven = joined.filter(joined.weight_new != joined.weight)
        count = int(uneven.count().execute())
        if count:
            few = uneven.order_by("member").limit(OFFENDERS).execute()
            raise DataError(
                f"the weight of {count:,} member(s) is another than before, first:"
                f" {first_few([f'member {m}' for m in few.member])}"
            )

    def __repr__(self) -> str:
        first, last = self.span
        return f"CountStore({str(self.path)!r}: {self.rows:,} rows, {first} to {last})"


def _find_ends(panel: Panel, which: str) -> ir.Table:
    """Return each member's ``"first"`` or ``"last"`` row, as a table."""
    rows = panel.kept
    columns = {
        name: (rows[name].argmin if which == "first" else rows[name].argmax)(rows.period)
        for name in ("state", "choice", "segment", "region", "decides", "weight", "bucket")
    }
    period = rows.period.min() if which == "first" else rows.period.max()
    return rows.group_by("member").agg(period=period, **columns)


def _relabel(
    cells: Keyed,
    names: list[str],
    before: dict[str, list[Level]],
    after: dict[str, list[Level]],
) -> Keyed:
    """Return cells with codes of segments and regions by other lists of labels.

    ``names`` are those of the keys' columns; ``before`` has the lists of labels as ``"segments"``
    and ``"regions"``, ``after`` as ``"segment"`` and ``"region"``.
    """
    keys, weight, rows = cells
    keys = keys.copy()
    for name in ("segment", "region"):
        if name in names:
            new = np.array([after[name].index(x) for x in before[f"{name}s"]], dtype=np.int64)
            column = names.index(name)
            keys[:, column] = new[keys[:, column]]
    return keys, weight, rows


def _join_cells(parts: list[Keyed]) -> Keyed:
    """Return the cells of several parts with their numbers of rows added; empty cells go."""
    keys = np.concatenate([p[0] for p in parts])
    weight = np.concatenate([p[1] for p in parts])
    rows = np.concatenate([p[2] for p in parts])
    # weights are told apart by code, so that rows stay integers: sums of these are exact
    levels, code = np.unique(weight, return_inverse=True)
    distinct, cell = distinct_rows(np.column_stack([keys, code.reshape(-1)]))
    total = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(total, cell, rows)
    kept = total != 0
    return distinct[kept, :-1], levels[distinct[kept, -1]], total[kept]


def _move_seams(follows: ir.Table, keys: list[str], labels: dict[str, list[Level]]) -> list[Keyed]:
    """Return the rows that leave cells without a next state, and those that join others.

    The first part has negative numbers of rows: joined to the cells, it takes rows off them.
    """
    named = [k for k in keys if k != "next_state"]
    counted = (
        follows.group_by([*named, "state_new", "weight"]).agg(rows=lambda t: t.count()).execute()
    )
    columns = {
        k: counted[k].map({x: i for i, x in enumerate(labels[k])}) if k in labels else counted[k]
        for k in named
    }
    weight, rows = counted["weight"].to_numpy(float), counted["rows"].to_numpy(np.int64)
    out = []
    for following, sign in ((np.full(len(counted), -1), -1), (counted["state_new"], 1)):
        parts = [following if k == "next_state" else columns[k] for k in keys]
        stacked = np.stack([np.asarray(p, dtype=np.int64) for p in parts], axis=1)
        out.append((stacked, weight, sign * rows))
    return out


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a store's folder; raise at once where another update has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockError(f"another update of {path} is running: try later") from None
    try:
        yield
    finally:
        lock.release()


def _write(
    path: Path,
    *,
    version: int,
    tree: dict[str, Any],
    cells: dict[str, Keyed],
    con: Backend,
    seam: ir.Table,
    places: ir.Table,
) -> None:
    """Write a version beside the others, then point to it.

    ``seam`` is each member's last row, ``places`` the distinct pairs of member and segment.
    """
    import ibis

    for name, table in (("seam", seam), ("places", places)):
        target = path / f"{name}-{version:06d}.parquet"
        sql = ibis.to_sql(table, dialect="duckdb")
        con.raw_sql(f"COPY ({sql}) TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd)")
    # from the files: the tables may be long queries, which would run a second time
    weights = con.read_parquet(path / f"seam-{version:06d}.parquet").select("member", "weight")
    pairs = con.read_parquet(path / f"places-{version:06d}.parquet")
    each = pairs.inner_join(weights, "member").group_by(["segment", "weight"])
    counted = each.agg(n=lambda t: t.count()).execute()
    members = sum_weights_by_segment(
        tree["segments"], counted["segment"], counted["weight"], counted["n"]
    )
    saved_cells = {kind: list(arrays) for kind, arrays in cells.items()}
    save_tree(
        path / f"counts-{version:06d}.npz",
        "CountStore",
        {**tree, "cells": saved_cells, "members": members},
    )
    text = json.dumps({"version": version}).encode()
    write_atomically(path / POINTER, lambda handle: handle.write(text))
    for name in ("seam", "places", "counts"):
        for old in sorted(path.glob(f"{name}-*")):
            if int(old.stem.split("-")[1]) <= version - KEPT:
                old.unlink()


def _quoted(path: Path) -> str:
    """Return a path for a text of SQL."""
    return str(path).replace("'", "''")
