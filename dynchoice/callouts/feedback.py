"""Feedback: impressions that wait for their click, and batches that are learned once.

SOURCES.md 8A.6. An impression waits until its attribution window ends; then its outcome is learned.
Meanwhile a click counts as one, and an impression without one by the share of clicks that is due.
Both wait: clicks learned before the failures that belong to them would lead a stream astray.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.callouts.catalogue import as_times
from dynchoice.callouts.delay import Delays
from dynchoice.callouts.feature_terms import SLOT
from dynchoice.callouts.member_rules import as_texts
from dynchoice.errors import ColumnError, DataError, SpecificationError, first_few, suggest
from dynchoice.panel.states import code_labels
from dynchoice.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.callouts.bandit import Callouts

CLICKED_AT = "clicked_at"
SKEW = 5 / 1440
"""Days that clocks may disagree: a click that comes before its impression by less is its own."""

PENDING = ("due", "wait", "failure")
COLUMNS = ("item", "time", "context", "slot", "clicked")


@dataclass(frozen=True)
class Learned:
    """What became of a batch.

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
        lost = [(self.late, "late"), (self.unmatched, "unmatched"), (self.again, "again"),
                (self.stale, "impressions older than the last batch's window")]  # fmt: skip
        told = "".join(f", {n:,} {what}" for n, what in lost if n)
        return (
            f"batch {self.batch!r}: {self.impressions:,} impressions, {self.clicks:,} clicks{told};"
            f" {self.settled:,} settled, {self.open:,} wait"
        )


class Feedback:
    """Impressions that wait, the delays of clicks, and the batches learned.

    Parameters
    ----------
    delays : Delays
    pending : str
        ``"due"``, ``"wait"`` or ``"failure"``: see :class:`dynchoice.Callouts`.
    """

    def __init__(self, delays: Delays, pending: str = "due") -> None:
        if pending not in PENDING:
            raise SpecificationError(
                f"pending={pending!r}.{suggest(pending, PENDING)} There are {', '.join(PENDING)}"
            )
        self.delays, self.pending = delays, pending
        self.now = -np.inf
        self.learned: dict[str, str] = {}
        self.contents: dict[str, str] = {}
        self._keys: AnyArray = np.array([], object)
        self._rows: dict[str, AnyArray] = {
            "item": np.zeros(0, np.int64), "time": np.zeros(0), "context": np.zeros(0, np.int64),
            "slot": np.zeros(0, np.int64), "clicked": np.zeros(0),
        }  # fmt: skip
        self._credited = np.zeros(0, bool)

    @property
    def waiting(self) -> int:
        """Impressions within the window, clicked or not."""
        return len(self._keys)

    def examine(
        self,
        batch: str,
        rows: dict[str, AnyArray] | None,
        clicks: pd.DataFrame | None,
        now: float | None,
        forget: float,
        groups: IntArray,
    ) -> tuple[Learned, Feedback, dict[str, AnyArray]]:
        """Return what became of a batch, the feedback after it, and rows whose outcome it settles.

        This object stays as it is: who learns the rows replaces it afterwards.

        Parameters
        ----------
        batch : str
        rows : dict, optional
            Coded impressions.
        clicks : pandas.DataFrame, optional
        now : float, optional
        forget : float
        groups : integer array (I,)
            Group of delays of each item.
        """
        if not isinstance(batch, str) or not batch:
            raise SpecificationError(f"batch={batch!r}: a text that names the batch is needed")
        coded = None if clicks is None else click_arrays(clicks)
        digest = digest_of(rows, coded, now)
        if batch in self.learned:
            if self.learned[batch] != digest:
                raise DataError(
                    f"batch {batch!r} was learned with other content: give the new one another name"
                )
            return Learned(batch, repeated=True), self, {}
        content = None
        if rows is not None and len(rows["item"]):
            content = digest_of(rows, None, None)
            if content in self.contents:
                raise DataError(
                    f"the impressions of batch {batch!r} were learned before, as batch"
                    f" {self.contents[content]!r}"
                )
        keys, new = self._joined(rows)
        before = len(self._keys)
        credited = np.concatenate([self._credited, np.zeros(len(keys) - before, bool)])
        clicked, late, unmatched, again = matched(keys, new, coded, self.delays.window)
        early = new["time"] - clicked
        clicked = np.where((early > 0) & (early <= SKEW), new["time"], clicked)
        then = self._time(rows, clicked, now)
        wrong = clicked < new["time"]
        if wrong.any():
            raise DataError(
                f"{int(wrong.sum()):,} clicks come before their impression (first:"
                f" {first_few([str(k) for k in keys[wrong]])})"
            )
        age = then - new["time"]
        if (age < 0).any():
            raise DataError(f"{int((age < 0).sum()):,} impressions are of the future: now={then:g}")
        new["clicked"] = clicked
        hit = clicked - new["time"] <= self.delays.window
        fresh = hit & ~credited
        delays = copy.deepcopy(self.delays)
        delays.advance(then, forget)
        delays.add(
            new["time"][fresh], clicked[fresh] - new["time"][fresh], groups[new["item"][fresh]]
        )
        past = age >= self.delays.window
        first_seen = np.arange(len(keys)) >= before
        stale = first_seen & (self.now - new["time"] >= self.delays.window)
        learn = first_seen if self.pending == "failure" else past
        outcomes = np.zeros((int(learn.sum()), 3))
        outcomes[:, 0] = hit[learn]
        outcomes[:, 1] = ~hit[learn]
        settled = {k: v[learn] for k, v in new.items()}
        settled["outcomes"] = outcomes
        settled["due"] = np.ones(len(outcomes))
        after = Feedback(delays, self.pending)
        after._keys = keys[~past]
        after._rows = {k: v[~past] for k, v in new.items()}
        after._credited = (credited | fresh)[~past]
        after.now = then
        after.learned = {**self.learned, batch: digest}
        after.contents = self.contents if content is None else {**self.contents, content: batch}
        told = Learned(
            batch, False, 0 if rows is None else len(rows["item"]), int(fresh.sum()), late,
            unmatched, again, int(learn.sum()), int((~after._credited).sum()), int(stale.sum()),
        )  # fmt: skip
        return told, after, settled

    def open(self, groups: IntArray) -> dict[str, AnyArray] | None:
        """Return rows that wait, with clicks so far and the share that is due; None where none."""
        if self.pending != "due" or not len(self._keys):
            return None
        rows = dict(self._rows)
        outcomes = np.zeros((len(self._keys), 3))
        outcomes[:, 0] = self._credited
        outcomes[:, 2] = ~self._credited
        rows["outcomes"] = outcomes
        due = self.delays.due(self.now - rows["time"], groups[rows["item"]], self.now)
        # in hundredths: a million open impressions are then a few cells
        rows["due"] = np.where(self._credited, 1.0, np.round(due, 2))
        return rows

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays."""
        return {
            "pending": self.pending,
            "now": self.now if np.isfinite(self.now) else None,
            "learned": self.learned,
            "contents": self.contents,
            "keys": np.array(self._keys.tolist(), str),
            "rows": dict(self._rows),
            "credited": self._credited,
            "delays": self.delays.to_tree(),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Feedback:
        """Return what :meth:`to_tree` took apart."""
        own = cls(Delays.from_tree(tree["delays"]), tree["pending"])
        own.now = -np.inf if tree["now"] is None else float(tree["now"])
        own.learned, own.contents = dict(tree["learned"]), dict(tree["contents"])
        own._keys = as_objects(tree["keys"])
        own._rows = dict(tree["rows"])
        own._credited = tree["credited"]
        return own

    def _joined(self, rows: dict[str, AnyArray] | None) -> tuple[AnyArray, dict[str, AnyArray]]:
        """Return keys and rows that wait, the new ones after the old."""
        if rows is None:
            return self._keys, {k: v.copy() for k, v in self._rows.items()}
        import pandas as pd

        bad = ~np.isfinite(rows["time"])
        if bad.any():
            raise DataError(f"{int(bad.sum()):,} impressions have no time")
        keys = np.concatenate([self._keys, np.asarray(rows["impression"], object)])
        twice = pd.Index(keys).duplicated()
        if twice.any():
            raise DataError(
                f"{int(twice.sum()):,} impressions repeat, in the batch or with earlier ones"
                f" ({first_few([str(k) for k in keys[twice]])}): each has a key of its own"
            )
        return keys, {k: np.concatenate([self._rows[k], rows[k]]) for k in COLUMNS}

    def _time(self, rows: Any, clicked: FloatArray, now: float | None) -> float:
        """Return until when clicks are known: clicks of no impression do not tell."""
        times = [self.now]
        if rows is not None and len(rows["time"]):
            times.append(float(rows["time"].max()))
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


def coded_rows(policy: Callouts, df: pd.DataFrame) -> dict[str, AnyArray]:
    """Return impressions as arrays of codes.

    Raises
    ------
    ColumnError
        A column is missing.
    DataError
        Labels that catalogue or context do not know.
    """
    needed = ["impression", "item", "time", *([SLOT] if policy.slots > 1 else [])]
    for c in needed:
        if c not in df.columns:
            raise ColumnError(f"impressions lack the column {c!r}.{suggest(c, df.columns)}")
    slot = np.zeros(len(df), np.int64)
    if policy.slots > 1:
        slot = code_labels(df[SLOT].to_numpy(), range(1, policy.slots + 1), "column 'slot'")
    clicked = np.full(len(df), np.nan)
    if CLICKED_AT in df:
        clicked = as_times(df[CLICKED_AT], CLICKED_AT)
    return {
        "impression": checked_keys(df["impression"]),
        "item": policy.catalogue.item_codes(df["item"].to_numpy()),
        "time": as_times(df["time"], "time"),
        "context": policy.context_codes(df),
        "slot": slot,
        "clicked": clicked,
    }


def checked_keys(column: pd.Series) -> AnyArray:
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


def as_objects(keys: Any) -> AnyArray:
    """Return saved keys as Python's own objects."""
    values = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
    out = np.empty(len(values), object)
    out[:] = values
    return out


def click_arrays(clicks: pd.DataFrame) -> tuple[AnyArray, FloatArray]:
    """Return keys and times of clicks."""
    missing = [c for c in ("impression", "time") if c not in clicks.columns]
    if missing:
        raise ColumnError(f"clicks lack the column {missing[0]!r}.{suggest(missing[0], clicks)}")
    times = as_times(clicks["time"], "time of clicks")
    if not np.isfinite(times).all():
        raise DataError(f"{int((~np.isfinite(times)).sum()):,} clicks have no time")
    return checked_keys(clicks["impression"]), times


def matched(
    keys: AnyArray,
    rows: dict[str, AnyArray],
    clicks: tuple[AnyArray, FloatArray] | None,
    window: float,
) -> tuple[FloatArray, int, int, int]:
    """Return each impression's first click (NaN without), and clicks late, unmatched and again."""
    import pandas as pd

    clicked = rows["clicked"].copy()
    late = int((clicked - rows["time"] > window).sum())
    unmatched, again = 0, 0
    if clicks is not None and len(clicks[0]):
        order = np.argsort(clicks[1], kind="stable")
        at = pd.Index(keys).get_indexer(pd.Index(np.asarray(clicks[0], object)[order]))
        times = clicks[1][order]
        unmatched = int((at < 0).sum())
        at, times = at[at >= 0], times[at >= 0]
        _, first = np.unique(at, return_index=True)
        again += len(at) - len(first)
        at, times = at[first], times[first]
        old = np.isfinite(clicked[at])
        again += int(old.sum())
        late += int((times[~old] - rows["time"][at[~old]] > window).sum())
        clicked[at[~old]] = times[~old]
    return clicked, late, unmatched, again


def digest_of(rows: Any, clicks: Any, now: float | None) -> str:
    """Return what tells one batch's content from another's."""
    import pandas as pd

    own = hashlib.sha256(repr(now).encode())
    if rows is not None:
        for name in ("impression", *COLUMNS):
            own.update(name.encode())
            own.update(pd.util.hash_array(np.asarray(rows[name]), categorize=False).tobytes())
    if clicks is not None:
        own.update(pd.util.hash_array(np.asarray(clicks[0]), categorize=False).tobytes())
        own.update(np.asarray(clicks[1]).tobytes())
    return own.hexdigest()
