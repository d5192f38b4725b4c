"""Counts: all that the likelihood needs of a panel, at the cost of its cells.

``n[s, j]`` and ``n[s, j, s']`` by segment and member bucket, plus the same choices by period
(for finite horizons and for the distribution that a forecast starts from), plus, for panels
small enough, each member's own cells (for standard errors clustered by member, and for types),
and, where regions are named, the cells by region and period (for roll-outs).
Counts add: parts of a panel split by member sum to the whole, bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError, SpecificationError
from dynchoice.panel.cells import NO_NEXT, RegionCells, distinct_rows, group_sum
from dynchoice.panel.states import StateSpace
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["NO_NEXT", "Counts", "MemberCells", "group_sum", "period_label"]


@dataclass(frozen=True)
class MemberCells:
    """The cells of each member, flat: member ``i`` has entries ``indptr[i]:indptr[i+1]``.

    ``cells`` (C, 5) holds the distinct (segment, state, choice, next state, decides);
    ``index`` points into it, ``n`` (entries,) counts months of one copy of the member and
    ``weights`` (N,) says how many members each history stands for. ``firsts`` (E, 3) holds
    (member, segment, state of the first row in that segment), each member's earliest first;
    ``bucket`` and ``region`` (N,) the member's bucket and the region of its first row.
    """

    indptr: IntArray
    index: IntArray
    n: FloatArray
    cells: IntArray
    weights: FloatArray
    firsts: IntArray
    bucket: IntArray
    region: IntArray

    @property
    def first(self) -> IntArray:
        """State of each member's first row (N,)."""
        return self.firsts[np.unique(self.firsts[:, 0], return_index=True)[1], 2]

    @property
    def size(self) -> int:
        """Number of members ``N`` (histories, not weighted)."""
        return len(self.indptr) - 1

    def matrix(self) -> csr_array:
        """Return the members x cells matrix of counts."""
        from scipy.sparse import csr_array

        return csr_array((self.n, self.index, self.indptr), shape=(self.size, len(self.cells)))

    @classmethod
    def from_rows(
        cls,
        member: IntArray,
        cells: IntArray,
        n: FloatArray,
        weights: FloatArray,
        firsts: IntArray,
        bucket: IntArray,
        region: IntArray,
    ) -> MemberCells:
        """Build from one row per (member code, cell), member codes 0 .. N-1."""
        unique, index = distinct_rows(cells)
        order = np.lexsort((index, member))
        indptr = np.searchsorted(member[order], np.arange(len(weights) + 1))
        return cls(
            indptr=indptr.astype(np.int64),
            index=index.reshape(-1)[order].astype(np.int64),
            n=n[order],
            cells=unique,
            weights=weights,
            firsts=firsts,
            bucket=bucket,
            region=region,
        )

    @classmethod
    def merged(cls, parts: list[tuple[AnyArray, MemberCells]]) -> MemberCells:
        """Join (ids, cells) of different members into one, in order of the ids."""
        if len(parts) == 1:
            return parts[0][1]
        ids = np.concatenate([part_ids for part_ids, _ in parts])
        # where each member of the parts, one after the other, stands in the whole
        place = np.empty(len(ids), dtype=np.int64)
        place[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        cells, code = distinct_rows(np.concatenate([m.cells for _, m in parts]))
        lengths = np.concatenate([np.diff(m.indptr) for _, m in parts])
        ordered = np.empty_like(lengths)
        ordered[place] = lengths
        indptr = np.r_[0, np.cumsum(ordered)]
        index, n = np.empty(indptr[-1], dtype=np.int64), np.empty(indptr[-1])
        # entries go where their member stands, in the order in which they are
        target = np.repeat(indptr[place], lengths)
        target += np.arange(len(target)) - np.repeat(np.r_[0, np.cumsum(lengths)[:-1]], lengths)
        offsets = np.cumsum([0] + [len(m.cells) for _, m in parts[:-1]])
        index[target] = np.concatenate(
            [code[o + m.index] for o, (_, m) in zip(offsets, parts, strict=True)]
        )
        n[target] = np.concatenate([m.n for _, m in parts])
        before = np.cumsum([0] + [m.size for _, m in parts[:-1]])
        firsts = np.concatenate(
            [m.firsts + np.array([b, 0, 0]) for b, (_, m) in zip(before, parts, strict=True)]
        )
        firsts[:, 0] = place[firsts[:, 0]]
        firsts = firsts[np.argsort(firsts[:, 0], kind="stable")]

        def sort_by_id(name: str) -> AnyArray:
            whole = np.concatenate([getattr(m, name) for _, m in parts])
            out = np.empty_like(whole)
            out[place] = whole
            return out

        return cls(
            indptr=indptr.astype(np.int64),
            index=index,
            n=n,
            cells=cells,
            weights=sort_by_id("weights"),
            firsts=firsts,
            bucket=sort_by_id("bucket"),
            region=sort_by_id("region"),
        )

    def select(self, segment: int) -> MemberCells:
        """Return the members of one segment, relabelled as segment 0."""
        keep = self.cells[self.index, 0] == segment
        member = self._member_of_entries()[keep]
        kept, codes = np.unique(member, return_inverse=True)
        cells = self.cells[self.index[keep]].copy()
        cells[:, 0] = 0
        firsts = self.firsts[self.firsts[:, 1] == segment].copy()
        firsts[:, 0] = np.searchsorted(kept, firsts[:, 0])
        firsts[:, 1] = 0
        return MemberCells.from_rows(
            member=codes,
            cells=cells,
            n=self.n[keep],
            weights=self.weights[kept],
            firsts=firsts,
            bucket=self.bucket[kept],
            region=self.region[kept],
        )

    def _member_of_entries(self) -> IntArray:
        """Return the member's number of every entry."""
        return np.repeat(np.arange(self.size), np.diff(self.indptr))

    def reweighted(self, factor: FloatArray) -> MemberCells:
        """Return each member's history standing for ``factor`` (N,) times as many members."""
        return replace(self, weights=self.weights * factor)

    def __add__(self, other: MemberCells) -> MemberCells:
        return MemberCells.from_rows(
            member=np.r_[self._member_of_entries(), other._member_of_entries() + self.size],
            cells=np.concatenate([m.cells[m.index] for m in (self, other)]),
            n=np.r_[self.n, other.n],
            weights=np.r_[self.weights, other.weights],
            firsts=np.concatenate([self.firsts, other.firsts + np.array([self.size, 0, 0])]),
            bucket=np.r_[self.bucket, other.bucket],
            region=np.r_[self.region, other.region],
        )


@dataclass(frozen=True)
class Counts:
    """Sufficient statistics of a panel: numbers of member-months by cell.

    Parameters
    ----------
    states : StateSpace
    choices : tuple of labels
    segments : tuple of labels
        ``M`` of them; one segment named ``"all"`` when the panel names none.
    buckets : int
        ``B``, the number of member buckets.
    cells : IntArray, shape (C, 6)
        Distinct (segment, bucket, state, choice, next state or -1, decides).
    n : FloatArray, shape (C,)
        Member-months in each cell (sum of weights).
    period_cells : IntArray, shape (P, 5)
        Distinct (segment, period, state, choice, decides).
    period_n : FloatArray, shape (P,)
    segment_members : FloatArray, shape (M,)
        Members seen in each segment (sum of weights).
    members : MemberCells or None
        ``None`` above the panel's ``member_limit``: then clusters are the buckets.
    period_kind : {"integer", "month", "quarter", "year"}
        How a period number reads.
    origin : int, optional
        First period of the whole panel: period 0 of a finite horizon, in every segment.
    regions : RegionCells or None
        Cells by region and period, where the panel names a region.
    unit : str
        What a bucket is: ``"bucket of members"`` or ``"region"``.
    """

    states: StateSpace
    choices: tuple[Level, ...]
    segments: tuple[Level, ...]
    buckets: int
    cells: IntArray
    n: FloatArray
    period_cells: IntArray
    period_n: FloatArray
    segment_members: FloatArray
    members: MemberCells | None = None
    period_kind: str = "integer"
    origin: int | None = None
    regions: RegionCells | None = None
    unit: str = "bucket of members"
    _cache: dict[str, AnyArray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """``(S, J)``."""
        return self.states.size, len(self.choices)

    def n_sj(self) -> FloatArray:
        """Return the choices that enter the likelihood, (S, J), over all segments."""
        if "n_sj" not in self._cache:
            S, J = self.shape
            decides = self.cells[:, 5] == 1
            code = self.cells[decides, 2] * J + self.cells[decides, 3]
            out = np.bincount(code, weights=self.n[decides], minlength=S * J).reshape(S, J)
            out.setflags(write=False)  # every caller is given the same array
            self._cache["n_sj"] = out
        return self._cache["n_sj"]

    def n_tsj(self, periods: int) -> FloatArray:
        """Return the choices by period since the first, (T, S, J), for a finite horizon.

        Raises
        ------
        DataError
            The panel spans more periods than the horizon.
        """
        S, J = self.shape
        first = self.first_period if self.origin is None else self.origin
        last = self.last_period
        if last - first + 1 > periods:
            raise DataError(
                f"the panel spans {last - first + 1} periods ({self.period_label(first)} to"
                f" {self.period_label(last)}), the model's horizon is {periods}"
            )
        decides = self.period_cells[:, 4] == 1
        _, t, s, j, _ = self.period_cells[decides].T
        code = ((t - first) * S + s) * J + j
        out = np.bincount(code, weights=self.period_n[decides], minlength=periods * S * J)
        return np.asarray(out, dtype=np.float64).reshape(periods, S, J)

    def moves(self) -> tuple[IntArray, FloatArray]:
        """Return observed transitions: (state, choice, next state) rows (C, 3) and counts (C,)."""
        has_next = self.cells[:, 4] != NO_NEXT
        return group_sum(np.ascontiguousarray(self.cells[has_next][:, 2:5]), self.n[has_next])

    def at_period(self, period: int | None = None) -> FloatArray:
        """Return choices made in one period (default the last), (M, S, J)."""
        S, J = self.shape
        inside = self.period_cells[:, 1] == (self.last_period if period is None else period)
        m, _, s, j, _ = self.period_cells[inside].T
        M = len(self.segments)
        code = (m * S + s) * J + j
        out = np.bincount(code, weights=self.period_n[inside], minlength=M * S * J)
        return np.asarray(out, dtype=np.float64).reshape(M, S, J)

    @property
    def first_period(self) -> int:
        """Number of the first period observed."""
        return int(self.period_cells[:, 1].min())

    @property
    def last_period(self) -> int:
        """Number of the last period observed."""
        return int(self.period_cells[:, 1].max())

    def period_label(self, period: int) -> str:
        """Return a period number as it reads in the data."""
        return period_label(period, self.period_kind)

    @property
    def nmembers(self) -> int:
        """Members ``N`` (sum of weights); one who changes segment is counted in each."""
        total = float(self.segment_members.sum())
        return round(total)

    @cached_property
    def nobs(self) -> float:
        """Member-months whose choice enters the likelihood (sum of weights)."""
        return float(self.n[self.cells[:, 5] == 1].sum())

    def segment(self, label: Level) -> Counts:
        """Return the counts of one segment.

        Raises
        ------
        SpecificationError
            No such segment.
        """
        checks.known([label], self.segments, "segment")
        code = self.segments.index(label)
        rows, period_rows = self._find_rows("cells", code), self._find_rows("period_cells", code)
        cells, period_cells = self.cells[rows].copy(), self.period_cells[period_rows].copy()
        cells[:, 0] = 0
        period_cells[:, 0] = 0
        members = self.members.select(code) if self.members is not None else None
        return replace(
            self,
            segments=(label,),
            cells=cells,
            n=self.n[rows],
            period_cells=period_cells,
            period_n=self.period_n[period_rows],
            members=members,
            segment_members=self.segment_members[[code]],
            regions=None if self.regions is None else self.regions.select(code),
            _cache={},
        )

    def _find_rows(self, name: str, segment: int) -> IntArray:
        """Return the rows of ``cells`` or ``period_cells`` of one segment.

        All are sorted at the first call: fits of many segments each ask for theirs.
        """
        if f"rows of {name}" not in self._cache:
            codes = getattr(self, name)[:, 0]
            self._cache[f"rows of {name}"] = np.argsort(codes, kind="stable")
            ends = np.searchsorted(np.sort(codes), np.arange(len(self.segments) + 1))
            self._cache[f"ends of {name}"] = ends
        first, last = self._cache[f"ends of {name}"][segment : segment + 2]
        return np.asarray(self._cache[f"rows of {name}"][first:last])

    def by_region(self) -> Counts:
        """Return the counts with each region as one bucket: the unit of clustering and bootstrap.

        Raises
        ------
        SpecificationError
            The panel names no region.
        """
        if self.regions is None:
            raise SpecificationError(
                "the panel has no regions: build it with region= (the column of the region)"
            )
        regions = self.regions
        without_period = np.ascontiguousarray(regions.cells[:, [0, 1, 3, 4, 5, 6]])
        cells, n = group_sum(without_period, regions.n)
        return replace(
            self, buckets=len(regions.labels), cells=cells, n=n, unit="region", _cache={}
        )

    def reweighted(self, factor: FloatArray) -> Counts:
        """Return the counts with bucket ``b`` standing for ``factor[b]`` copies of itself.

        The bootstrap's resampling step. Cells by period carry no bucket and are left out, unless
        the buckets are regions.
        """
        if len(factor) != self.buckets:
            raise SpecificationError(f"{self.buckets} buckets need as many factors")
        n = self.n * factor[self.cells[:, 1]]
        kept = n > 0
        members, regions = self.members, self.regions
        period_cells, period_n = self.period_cells[:0], self.period_n[:0]
        if members is not None:
            unit = members.region if self.unit == "region" else members.bucket
            members = members.reweighted(factor[unit])
        if self.unit == "region" and regions is not None:
            regions = regions.reweighted(factor)
            period_cells, period_n = group_sum(
                np.ascontiguousarray(regions.cells[:, [0, 2, 3, 4, 6]]), regions.n
            )
        elif regions is not None:
            regions = None
        return replace(
            self,
            cells=self.cells[kept],
            n=n[kept],
            members=members,
            regions=regions,
            period_cells=period_cells,
            period_n=period_n,
            _cache={},
        )

    def __radd__(self, other: object) -> Counts:
        """Let ``sum()`` start from 0."""
        return self if other == 0 else NotImplemented

    def __add__(self, other: Counts) -> Counts:
        """Add the counts of other members (parts of one panel, split by member)."""
        checks.instance(other, "what is added to counts", Counts)
        same = (
            self.states == other.states
            and self.choices == other.choices
            and self.buckets == other.buckets
            and self.period_kind == other.period_kind
        )
        if not same:
            raise SpecificationError(
                "counts add only over the same states, choices, buckets and kind of period"
            )
        segments = self.segments + tuple(s for s in other.segments if s not in self.segments)
        segments = tuple(sorted(segments, key=str))
        a, b = self._relabel(segments), other._relabel(segments)
        cells, n = group_sum(np.concatenate([a.cells, b.cells]), np.r_[a.n, b.n])
        period_cells, period_n = group_sum(
            np.concatenate([a.period_cells, b.period_cells]), np.r_[a.period_n, b.period_n]
        )
        regions = None if a.regions is None or b.regions is None else a.regions + b.regions
        members = None
        if a.members is not None and b.members is not None:
            members = a._recode_regions(regions) + b._recode_regions(regions)
        return replace(
            a,
            cells=cells,
            n=n,
            period_cells=period_cells,
            period_n=period_n,
            segment_members=a.segment_members + b.segment_members,
            origin=min(c.first_period if c.origin is None else c.origin for c in (a, b)),
            members=members,
            regions=regions,
            _cache={},
        )

    def _recode_regions(self, regions: RegionCells | None) -> MemberCells:
        """Return the members with region codes of a union of regions."""
        assert self.members is not None
        if regions is None or self.regions is None:
            return self.members
        code = np.array([regions.labels.index(x) for x in self.regions.labels], dtype=np.int64)
        return replace(self.members, region=code[self.members.region])

    def _relabel(self, segments: tuple[Level, ...]) -> Counts:
        """Return the counts with segments coded by a longer list of labels."""
        new = np.array([segments.index(s) for s in self.segments], dtype=np.int64)
        cells, period_cells = self.cells.copy(), self.period_cells.copy()
        cells[:, 0] = new[cells[:, 0]]
        period_cells[:, 0] = new[period_cells[:, 0]]
        members = self.members
        if members is not None:
            member_cells, firsts = members.cells.copy(), members.firsts.copy()
            member_cells[:, 0] = new[member_cells[:, 0]]
            firsts[:, 1] = new[firsts[:, 1]]
            members = replace(members, cells=member_cells, firsts=firsts)
        regions = self.regions
        if regions is not None:
            regions = regions.relabel(new)
        segment_members = np.zeros(len(segments))
        segment_members[new] = self.segment_members
        return replace(
            self,
            segments=segments,
            cells=cells,
            period_cells=period_cells,
            members=members,
            regions=regions,
            segment_members=segment_members,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the likelihood sees: levels, cells and numbers."""
        h = hashlib.sha256()
        h.update(repr((list(self.states.axes.items()), self.choices, self.segments)).encode())
        for a in (self.cells, self.n, self.period_cells, self.period_n):
            h.update(np.ascontiguousarray(a).tobytes())
        return h.hexdigest()


def period_label(period: int, kind: str) -> str:
    """Return a period number in words: ``'2017-04'``, ``'2017-Q2'`` or the number itself."""
    if kind == "month":
        return f"{period // 12:04d}-{period % 12 + 1:02d}"
    if kind == "quarter":
        return f"{period // 4:04d}-Q{period % 4 + 1}"
    return str(period)
