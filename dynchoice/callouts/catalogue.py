"""Catalogue: the callouts of a page, who may see each of them, when, and how often."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice.errors import ColumnError, DataError, SpecificationError, first_few, suggest
from dynchoice.panel.states import StateSpace, code_labels, plain
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

Moment: TypeAlias = float | str | datetime.date | np.datetime64
"""A time: a number of days, or a date, also as text (2026-11-27)."""

ITEM, STARTS, ENDS, CAP, FOR = "item", "starts", "ends", "cap", "for_"
RESERVED = (STARTS, ENDS, CAP)
MOST_DAYS = 1e6
GONE = -MOST_DAYS
"""End of items that have left the catalogue."""


class Catalogue:
    """A table of callouts, checked, with its rules as arrays.

    Parameters
    ----------
    items : pandas.DataFrame
        A column ``item`` (distinct labels) and attributes, whose distinct values become levels.
        Optional columns: ``starts`` and ``ends`` (available from, and before); ``cap`` (most
        impressions a member may have within the policy's cap window); ``for_COLUMN``: levels of a
        context column that may see it, ``"monthly|annual"`` or a list, empty for all.
    context : StateSpace, optional

    Raises
    ------
    ColumnError, DataError
        No column ``item``; repeated or missing labels; a rule that names an unknown column or
        level.
    """

    def __init__(self, items: pd.DataFrame, context: StateSpace | None) -> None:
        checks.columns(items, [ITEM], "the catalogue")
        if not len(items):
            raise DataError("the catalogue has no items")
        self.frame = items.reset_index(drop=True)
        self.frame.columns = [str(c) for c in self.frame.columns]
        self.context = context
        labels = [plain(x) for x in _present(self.frame[ITEM], ITEM)]
        twice = sorted(str(x) for x, n in Counter(labels).items() if n > 1)
        if twice:
            raise DataError(f"{len(twice):,} items are in the catalogue twice: {first_few(twice)}")
        self.items = tuple(labels)
        attributes = [
            c for c in self.frame.columns if c not in RESERVED and not str(c).startswith(FOR)
        ]
        self.levels: dict[str, tuple[Level, ...]] = {}
        self.codes: dict[str, IntArray] = {}
        for c in attributes:
            values = [plain(x) for x in _present(self.frame[c], c)]
            self.levels[c] = tuple(dict.fromkeys(values))
            self.codes[c] = code_labels(np.array(values, object), self.levels[c], f"column {c!r}")
        self.starts = as_times(self.frame[STARTS], STARTS) if STARTS in self.frame else None
        self.ends = as_times(self.frame[ENDS], ENDS) if ENDS in self.frame else None
        self.caps = self._caps()
        self.rules = {
            str(c)[len(FOR) :]: self._rule(str(c)) for c in self.frame if str(c).startswith(FOR)
        }

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.items)

    def _caps(self) -> FloatArray:
        """Return each item's cap (inf where it has none)."""
        if CAP not in self.frame:
            return np.full(self.size, np.inf)
        try:
            caps = self.frame[CAP].to_numpy(float, na_value=np.nan)
        except (TypeError, ValueError):
            raise DataError("column 'cap' must hold numbers of impressions") from None
        caps = np.where(np.isnan(caps), np.inf, caps)
        bad = np.flatnonzero(caps < 1)
        if len(bad):
            raise DataError(
                f"{len(bad):,} items have a cap below 1"
                f" ({first_few([str(self.items[i]) for i in bad])}): take them out, or end them"
            )
        return caps

    def _rule(self, column: str) -> BoolArray:
        """Return which levels of a context column may see each item, shape (I, levels)."""
        import pandas as pd

        name = column[len(FOR) :]
        axes = () if self.context is None else self.context.names
        if self.context is None or name not in axes:
            raise ColumnError(
                f"the catalogue's column {column!r} needs {name!r} in the context."
                f"{suggest(name, axes)}"
            )
        levels = self.context.axes[name]
        texts = {str(x): i for i, x in enumerate(levels)}
        out = np.zeros((self.size, len(levels)), bool)
        for i, entry in enumerate(self.frame[column]):
            if isinstance(entry, list | tuple | np.ndarray):
                wanted = [str(x) for x in entry]
            else:
                empty = entry is None or entry is pd.NA or entry != entry  # NaN is not itself
                wanted = [] if empty else [x.strip() for x in str(entry).split("|") if x.strip()]
            if not wanted:
                out[i] = True
                continue
            unknown = [x for x in wanted if x not in texts]
            if unknown:
                raise DataError(
                    f"item {self.items[i]!r}: {column} names {unknown[0]!r}, no level of {name!r}."
                    f"{suggest(unknown[0], texts)} Levels: {first_few(list(texts), 8)}"
                )
            out[i, [texts[x] for x in wanted]] = True
        return out

    def item_codes(self, labels: ArrayLike, what: str = "column 'item'") -> IntArray:
        """Return the place of each item label."""
        return code_labels(np.asarray(labels, object), self.items, what)

    def open_at(self, now: float | None) -> BoolArray:
        """Return which items are available at a time (all, where no time is given)."""
        out = np.ones(self.size, bool)
        if now is None:
            if self.starts is not None or (self.ends is not None and (self.ends > GONE).any()):
                raise SpecificationError("items have dates (starts, ends): say now=")
            return out & ~self.gone
        if self.starts is not None:
            out &= ~(self.starts > now)
        if self.ends is not None:
            out &= ~(self.ends <= now)
        return out

    def eligible(self, code: int) -> BoolArray:
        """Return which items a member in a context may see."""
        out = np.ones(self.size, bool)
        if self.context is not None and self.rules:
            levels = np.unravel_index(code, self.context.shape)
            level_of = dict(zip(self.context.names, levels, strict=True))
            for name, table in self.rules.items():
                out &= table[:, int(level_of[name])]
        return out

    @property
    def gone(self) -> BoolArray:
        """Items that have left the catalogue; only what was learned of them is kept."""
        return np.zeros(self.size, bool) if self.ends is None else self.ends <= GONE

    def in_days(self) -> pd.DataFrame:
        """Return the table with dates as days, so that tables of any kind of dates fit."""
        frame = self.frame.copy()
        for name, times in ((STARTS, self.starts), (ENDS, self.ends)):
            if times is not None:
                frame[name] = times
        return frame

    def extend(self, items: pd.DataFrame) -> Catalogue:
        """Return the catalogue with more items after the old ones.

        Raises
        ------
        DataError
            An item is there already, or a column is missing or new.
        """
        import pandas as pd

        new = Catalogue(items, self.context)
        old_items = set(self.items)
        repeated = [str(x) for x in new.items if x in old_items]
        if repeated:
            raise DataError(f"{len(repeated):,} items are in the catalogue: {first_few(repeated)}")
        for c in (*self.levels, *new.levels):
            if c not in new.levels:
                raise ColumnError(f"new items lack the column {c!r}")
            if c not in self.levels:
                raise ColumnError(
                    f"new items have a column {c!r} that old ones lack.{suggest(c, self.levels)}"
                )
        frames = [self.in_days(), new.in_days()]
        columns = list(dict.fromkeys([*frames[0].columns, *frames[1].columns]))
        frames = [f.reindex(columns=columns).astype(object) for f in frames]
        return Catalogue(pd.concat(frames, ignore_index=True).infer_objects(), self.context)

    def end(self, labels: ArrayLike, when: float) -> Catalogue:
        """Return the catalogue in which some items are available only before ``when``."""
        item = self.item_codes(labels, "items to end")
        frame = self.in_days()
        ends = np.full(self.size, np.nan) if self.ends is None else self.ends.copy()
        ends[item] = np.fmin(ends[item], when)  # fmin: an item without an end (NaN) gets this one
        frame[ENDS] = ends
        return Catalogue(frame, self.context)


def _present(column: pd.Series, name: str) -> list[Any]:
    """Return a column's values; none may be missing."""
    gaps = np.flatnonzero(column.isna().to_numpy())
    if len(gaps):
        raise DataError(
            f"the catalogue's column {name!r} is empty in {len(gaps):,} rows (first: row {gaps[0]})"
        )
    return list(column)


def as_texts(labels: Iterable[object]) -> AnyArray:
    """Return labels as texts, so that 7 and "7" are one."""
    return np.array([str(x) for x in labels], object)


def as_times(values: ArrayLike | pd.Series, what: str) -> FloatArray:
    """Return times as days: numbers as they are, dates as days since 1970; missing ones NaN.

    Raises
    ------
    DataError
        Neither numbers nor dates, or numbers that can be no days (seconds since 1970, say).
    """
    import pandas as pd

    column = pd.Series(values).reset_index(drop=True)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    wrong = f"{what!r} must hold times: numbers of days, or dates (as 2026-11-27)"
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise DataError(wrong)
    out = np.full(len(column), np.nan)
    present = column.notna().to_numpy()
    numeric = np.full(len(column), pd.api.types.is_numeric_dtype(column))
    if column.dtype == object:
        numeric = np.array([isinstance(x, int | float | np.number) for x in column], bool)
    numbers, dates = present & numeric, present & ~numeric
    if numbers.any():
        out[numbers] = column[numbers].astype(float).to_numpy()
    if dates.any():
        part = column[dates]
        text = not pd.api.types.is_datetime64_any_dtype(part)
        try:
            stamps = pd.to_datetime(part, utc=True, format="ISO8601" if text else None)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{wrong}: {reason}") from None
        days = (stamps - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
        out[dates] = days.to_numpy(float)
    far = np.isfinite(out) & (np.abs(out) > MOST_DAYS)
    if far.any():
        raise DataError(
            f"{what!r}: {int(far.sum()):,} times lie more than {MOST_DAYS:,.0f} days off (first:"
            f" {out[far][0]:g}): are they seconds? Days or dates are needed"
        )
    return out


def as_time(value: Moment, what: str = "now") -> float:
    """Return one time in days; see :func:`as_times`."""
    time = float(as_times([value], what)[0])
    if not np.isfinite(time):
        raise DataError(f"{what} is {value!r}: a number of days or a date is needed")
    return time


def when_of(now: Moment | None) -> float | None:
    """Return a time in days, or None where none is given."""
    return None if now is None else as_time(now)
