"""Feedback: impressions that wait for their click, and batches that are learned once.

SOURCES.md 8A.6. An impression waits until its attribution window ends; then its outcome is learned.
Meanwhile a click counts as one, and an impression without one by the share of clicks that is due.
Both wait: clicks learned before the failures that belong to them would lead a stream astray.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynchoice import checks
from dynchoice.callouts.catalogue import Catalogue, as_texts, as_times
from dynchoice.callouts.delay import Delays
from dynchoice.callouts.feature_terms import SLOT, Terms
from dynchoice.callouts.impression_cells import Cells
from dynchoice.errors import DataError, SpecificationError, first_few
from dynchoice.panel.states import StateSpace, code_labels
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

CLICKED_AT = "clicked_at"
SKEW = 5 / 1440
"""Days that clocks may disagree: a click that comes before its impression by less is its own."""

PENDING = ("due", "wait", "failure")
COLUMNS = ("item", "time", "context", "slot", "clicked")
"""Of :class:`Impressions`, beside the key, as saved files name them."""


@dataclass(frozen=True)
class Learned:
    """The report of a batch: what was learned of it, and what was not.

    Attributes
    ----------
    batch : str
    repeated : bool
        It was learned before: nothing was done.
    impressions, clicks : int
        New impressions; clicks that were credited.
    late, unmatched, again : int
        Clicks after the window; on impressions that are not (or no longer) waiting; on impressions
        clicked already.
    settled, open : int
        Impressions whose outcome was learned now; those that wait and have no click.
    stale : int
        Impressions whose window had ended before the last batch already: were they learned before,
        under another batch's name, they count twice now.
    """

    batch: str
    repeated: bool = False
    impressions: int = 0
    clicks: int = 0
    late: int = 0
    unmatched: int = 0
    again: int = 0
    settled: int = 0
    open: int = 0
    stale: int = 0

    def __str__(self) -> str:
        if self.repeated:
            return f"batch {self.batch!r} was learned before: nothing changed"
        reasons = {
            "late": self.late,
            "unmatched": self.unmatched,
            "again": self.again,
            "impressions older than the last batch's window": self.stale,
        }
        lost = "".join(f", {n:,} {reason}" for reason, n in reasons.items() if n)
        return (
            f"batch {self.batch!r}: {self.impressions:,} impressions, {self.clicks:,} clicks{lost};"
            f" {self.settled:,} settled, {self.open:,} wait"
        )


@dataclass(frozen=True, eq=False)
class Impressions:
    """Impressions as codes, a row each (n,).

    Attributes
    ----------
    key : array of texts
    item, context, slot : integer array
        Codes; slots count from 0.
    time, clicked : array
        In days; NaN where there was no click.
    """

    key: AnyArray
    item: IntArray
    time: FloatArray
    context: IntArray
    slot: IntArray
    clicked: FloatArray

    def __len__(self) -> int:
        return len(self.key)

    def part(self, rows: BoolArray) -> Impressions:
        """Return some of the rows."""
        return Impressions(self.key[rows], **{c: getattr(self, c)[rows] for c in COLUMNS})

    def join(self, other: Impressions) -> Impressions:
        """Return the rows of both, one after the other."""
        pairs = {c: [getattr(self, c), getattr(other, c)] for c in COLUMNS}
        keys = np.concatenate([self.key, np.asarray(other.key, object)])
        return Impressions(keys, **{c: np.concatenate(pair) for c, pair in pairs.items()})


def no_impressions() -> Impressions:
    """Return a table without rows."""
    return Impressions(
        key=np.array([], object),
        item=np.zeros(0, np.int64),
        time=np.zeros(0),
        context=np.zeros(0, np.int64),
        slot=np.zeros(0, np.int64),
        clicked=np.zeros(0),
    )


class Answered(NamedTuple):
    """Impressions with outcomes (n, 3) and shares of clicks due (n,): see :class:`Cells`."""

    rows: Impressions
    outcomes: FloatArray
    due: FloatArray

    def cells(self, terms: Terms, catalogue: Catalogue) -> Cells:
        """Return the features of each row with its outcome, as a model learns them."""
        ccode = terms.context_codes(self.rows.context, self.rows.slot)
        icode = terms.item_codes(catalogue.codes)
        index = terms.index(icode[self.rows.item], ccode)
        return Cells(index, np.ones(index.shape), self.outcomes, self.due)


class Clicks(NamedTuple):
    """Clicks: the key of each one's impression, and when it came, in days."""

    key: AnyArray
    time: FloatArray


class Matched(NamedTuple):
    """Each impression's first click (NaN without), and how many clicks were of no use, and why."""

    clicked: FloatArray
    late: int
    unmatched: int
    again: int


@dataclass(frozen=True, eq=False)
class Feedback:
    """Impressions that wait, the delays of clicks, and the batches learned.

    A value: learning a batch makes another one (:meth:`examine`).

    Parameters
    ----------
    delays : Delays
    pending : str
        ``"due"``, ``"wait"`` or ``"failure"``: see :class:`dynchoice.Callouts`.
    now : float
        Until when clicks are known, in days.
    learned : dict
        Batch -> digest of its content.
    contents : dict
        Digest of a batch's impressions -> the batch.
    rows : Impressions
        Those within their window.
    credited : array of bool, shape (rows,)
        Whether a click of theirs is counted in ``delays``.
    """

    delays: Delays
    pending: str = "due"
    now: float = -np.inf
    learned: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    rows: Impressions = field(default_factory=no_impressions)
    credited: BoolArray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        checks.one_of(self.pending, "pending", PENDING)

    @property
    def waiting(self) -> int:
        """Impressions within the window, clicked or not."""
        return len(self.rows)

    def examine(
        self,
        batch: str,
        new: Impressions | None,
        clicks: pd.DataFrame | None,
        now: float | None,
        forget: float,
        groups: IntArray,
    ) -> tuple[Learned, Feedback, Answered | None]:
        """Return what became of a batch, the feedback after it, and rows whose outcome it settles.

        This object stays as it is: who learns the rows replaces it afterwards. Of a batch that was
        learned before it is returned itself, and no rows.

        Parameters
        ----------
        batch : str
        new : Impressions, optional
        clicks : pandas.DataFrame, optional
        now : float, optional
        forget : float
        groups : integer array (I,)
            Group of delays of each item.

        Raises
        ------
        SpecificationError, DataError, ColumnError
            What is wrong with the batch.
        """
        check_batch_name(batch)
        came = None if clicks is None else read_clicks(clicks)
        digest = digest_batch(new, came, now)
        if self.is_learned(batch, digest):
            return Learned(batch, repeated=True), self, None
        contents = self._contents_with(batch, new)
        rows = self._rows_with(new)
        match = match_clicks(rows, came, self.delays.window)
        rows = replace(rows, clicked=forgive_skew(match.clicked, rows.time))
        then = self._time(new, rows.clicked, now)
        check_order(rows, then)

        hit = rows.clicked - rows.time <= self.delays.window
        is_new = np.arange(len(rows)) >= self.waiting
        credited = np.concatenate([self.credited, np.zeros(len(rows) - self.waiting, bool)])
        fresh = hit & ~credited
        delays = self._delays_with(rows.part(fresh), then, forget, groups)
        past = then - rows.time >= self.delays.window
        # "failure" learns at once what has not been clicked; the others when the window has ended
        settle = is_new if self.pending == "failure" else past
        after = replace(
            self,
            delays=delays,
            now=then,
            learned={**self.learned, batch: digest},
            contents=contents,
            rows=rows.part(~past),
            credited=(credited | fresh)[~past],
        )
        report = Learned(
            batch=batch,
            impressions=0 if new is None else len(new),
            clicks=int(fresh.sum()),
            late=match.late,
            unmatched=match.unmatched,
            again=match.again,
            settled=int(settle.sum()),
            open=int((~after.credited).sum()),
            stale=int((is_new & (self.now - rows.time >= self.delays.window)).sum()),
        )
        return report, after, with_known_outcomes(rows.part(settle), hit[settle])

    def open(self, groups: IntArray) -> Answered | None:
        """Return rows that wait, with clicks so far and the share that is due; None where none."""
        if self.pending != "due" or not self.waiting:
            return None
        outcomes = np.zeros((self.waiting, 3))
        outcomes[:, 0] = self.credited
        outcomes[:, 2] = ~self.credited
        due = self.delays.due(self.now - self.rows.time, groups[self.rows.item], self.now)
        # in hundredths: a million open impressions are then a few cells
        return Answered(self.rows, outcomes, np.where(self.credited, 1.0, np.round(due, 2)))

    def is_learned(self, batch: str, digest: str) -> bool:
        """Return whether a batch was learned before.

        Raises
        ------
        DataError
            It was, with other content.
        """
        if batch in self.learned and self.learned[batch] != digest:
            raise DataError(
                f"batch {batch!r} was learned with other content: give the new one another name"
            )
        return batch in self.learned

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays."""
        return {
            "pending": self.pending,
            "now": self.now if np.isfinite(self.now) else None,
            "learned": self.learned,
            "contents": self.contents,
            "keys": np.array(self.rows.key.tolist(), str),
            "rows": {c: getattr(self.rows, c) for c in COLUMNS},
            "credited": self.credited,
            "delays": self.delays.to_tree(),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Feedback:
        """Return what :meth:`to_tree` took apart."""
        return cls(
            delays=Delays.from_tree(tree["delays"]),
            pending=tree["pending"],
            now=-np.inf if tree["now"] is None else float(tree["now"]),
            learned=dict(tree["learned"]),
            contents=dict(tree["contents"]),
            rows=Impressions(as_objects(tree["keys"]), **tree["rows"]),
            credited=tree["credited"],
        )

    def _contents_with(self, batch: str, new: Impressions | None) -> dict[str, str]:
        """Return the contents learned, a batch's among them; refuse those learned before."""
        if new is None or not len(new):
            return self.contents
        digest = digest_batch(new, None, None)
        if digest in self.contents:
            raise DataError(
                f"the impressions of batch {batch!r} were learned before, as batch"
                f" {self.contents[digest]!r}"
            )
        return {**self.contents, digest: batch}

    def _rows_with(self, new: Impressions | None) -> Impressions:
        """Return rows that wait, the new ones after the old."""
        if new is None:
            return self.rows
        import pandas as pd

        bad = ~np.isfinite(new.time)
        if bad.any():
            raise DataError(f"{int(bad.sum()):,} impressions have no time")
        rows = self.rows.join(new)
        twice = pd.Index(rows.key).duplicated()
        if twice.any():
            raise DataError(
                f"{int(twice.sum()):,} impressions repeat, in the batch or with earlier ones"
                f" ({first_few([str(k) for k in rows.key[twice]])}): each has a key of its own"
            )
        return rows

    def _time(self, new: Impressions | None, clicked: FloatArray, now: float | None) -> float:
        """Return until when clicks are known, of what was shown and clicked, or as ``now`` says.

        Clicks of no impression do not count: one with a wrong time would end every window.
        """
        times = [self.now]
        if new is not None and len(new):
            times.append(float(new.time.max()))
        if np.isfinite(clicked).any():
            times.append(float(np.nanmax(clicked)))
        latest = max(times)
        if now is None:
            if not np.isfinite(latest):
                raise DataError("the batch is empty: say now=, the time until which it holds")
            return latest
        if now < latest:
            raise DataError(
                f"now={now:g} is before times in the batch, or before the last batch ({latest:g})"
            )
        return now

    def _delays_with(
        self, clicked: Impressions, now: float, forget: float, groups: IntArray
    ) -> Delays:
        """Return the delays with the clicks of some impressions counted."""
        delays = copy.deepcopy(self.delays)
        delays.advance(now, forget)
        delays.add(clicked.time, clicked.clicked - clicked.time, groups[clicked.item])
        return delays


def check_batch_name(batch: object) -> None:
    """Raise unless a batch has a name.

    Raises
    ------
    SpecificationError
        It is no text, or empty.
    """
    if not isinstance(batch, str) or not batch:
        raise SpecificationError(f"batch={batch!r}: a text that names the batch is needed")


def forgive_skew(clicked: FloatArray, shown: FloatArray) -> FloatArray:
    """Return times of clicks; those a little before their impression came with it (``SKEW``)."""
    early = shown - clicked
    return np.where((early > 0) & (early <= SKEW), shown, clicked)


def check_order(rows: Impressions, now: float) -> None:
    """Raise where a click comes before its impression, or an impression after the present.

    Raises
    ------
    DataError
        Their number and the first.
    """
    wrong = rows.clicked < rows.time
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum()):,} clicks come before their impression (first:"
            f" {first_few([str(k) for k in rows.key[wrong]])})"
        )
    future = rows.time > now
    if future.any():
        raise DataError(f"{int(future.sum()):,} impressions are of the future: now={now:g}")


def with_known_outcomes(rows: Impressions, hit: BoolArray) -> Answered:
    """Return impressions that were clicked or have failed."""
    outcomes = np.zeros((len(rows), 3))
    outcomes[:, 0] = hit
    outcomes[:, 1] = ~hit
    return Answered(rows, outcomes, np.ones(len(rows)))


def read_impressions(
    df: pd.DataFrame, catalogue: Catalogue, context: StateSpace | None, slots: int
) -> Impressions:
    """Return impressions as codes.

    Raises
    ------
    SpecificationError
        It is no table.
    ColumnError
        A column is missing.
    DataError
        Labels that catalogue or context do not know.
    """
    needed = ["impression", "item", "time", *([SLOT] if slots > 1 else [])]
    checks.columns(df, needed, "impressions")
    slot = np.zeros(len(df), np.int64)
    if slots > 1:
        slot = code_labels(df[SLOT].to_numpy(), range(1, slots + 1), "column 'slot'")
    clicked = np.full(len(df), np.nan)
    if CLICKED_AT in df:
        clicked = as_times(df[CLICKED_AT], CLICKED_AT)
    return Impressions(
        key=read_keys(df["impression"]),
        item=catalogue.item_codes(df["item"].to_numpy()),
        time=as_times(df["time"], "time"),
        context=np.zeros(len(df), np.int64) if context is None else context.codes(df),
        slot=slot,
        clicked=clicked,
    )


def read_keys(column: pd.Series) -> AnyArray:
    """Return keys of impressions as texts, none missing: 7 and "7" are one key.

    Raises
    ------
    DataError
        Keys are missing, or of another kind, which could not be saved or compared.
    """
    gaps = column.isna().to_numpy()
    if gaps.any():
        raise DataError(f"{int(gaps.sum()):,} impressions have no key (column 'impression')")
    strange = [k for k in column if not isinstance(k, int | str | np.integer)]
    if strange:
        raise DataError(
            f"{len(strange):,} keys of impressions are neither texts nor whole numbers (first:"
            f" {strange[0]!r}): make them texts"
        )
    return as_texts(column)


def as_objects(keys: AnyArray | Sequence[str]) -> AnyArray:
    """Return saved keys as Python's own objects."""
    values = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
    out = np.empty(len(values), object)
    out[:] = values
    return out


def read_clicks(clicks: pd.DataFrame) -> Clicks:
    """Return keys and times of clicks.

    Raises
    ------
    SpecificationError, ColumnError, DataError
        No table; a column is missing; a click without key or time.
    """
    checks.columns(clicks, ("impression", "time"), "clicks")
    times = as_times(clicks["time"], "time of clicks")
    if not np.isfinite(times).all():
        raise DataError(f"{int((~np.isfinite(times)).sum()):,} clicks have no time")
    return Clicks(read_keys(clicks["impression"]), times)


def match_clicks(rows: Impressions, clicks: Clicks | None, window: float) -> Matched:
    """Return each impression's first click, and how many clicks are late, unmatched and again."""
    import pandas as pd

    clicked = rows.clicked.copy()
    late = int((clicked - rows.time > window).sum())
    unmatched, again = 0, 0
    if clicks is not None and len(clicks.key):
        # in order of time (stable), so that the first of a row's clicks is its earliest
        order = np.argsort(clicks.time, kind="stable")
        row = pd.Index(rows.key).get_indexer(pd.Index(np.asarray(clicks.key, object)[order]))
        times = clicks.time[order]
        unmatched = int((row < 0).sum())
        row, times = row[row >= 0], times[row >= 0]
        _, first = np.unique(row, return_index=True)
        again += len(row) - len(first)
        row, times = row[first], times[first]
        has_one = np.isfinite(clicked[row])
        again += int(has_one.sum())
        late += int((times[~has_one] - rows.time[row[~has_one]] > window).sum())
        clicked[row[~has_one]] = times[~has_one]
    return Matched(clicked, late, unmatched, again)


def digest_batch(rows: Impressions | None, clicks: Clicks | None, now: float | None) -> str:
    """Return a digest of a batch's content: what is saved of it tells it from another's."""
    import pandas as pd

    digest = hashlib.sha256(repr(now).encode())
    if rows is not None:
        for name in ("impression", *COLUMNS):  # part of saved files: neither names nor order change
            values = rows.key if name == "impression" else getattr(rows, name)
            digest.update(name.encode())
            digest.update(pd.util.hash_array(np.asarray(values), categorize=False).tobytes())
    if clicks is not None:
        digest.update(pd.util.hash_array(np.asarray(clicks.key), categorize=False).tobytes())
        digest.update(np.asarray(clicks.time).tobytes())
    return digest.hexdigest()
