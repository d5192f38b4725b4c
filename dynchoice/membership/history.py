"""Plan histories read into panels: contract clock, tenure and trial eligibility are derived.

A history says who held which plan in which month. Where a member stands at the start of a month
follows from the months before: the contract levels of :mod:`dynchoice.membership.contracts` are run
forward, month by month, for all members at once. What the model leaves to chance is known here:
tenure comes from the months counted, and so does the return to trial eligibility.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import (
    DataError,
    DataWarning,
    first_few,
    suggest,
)
from dynchoice.membership.contracts import LAPSED, PAID, Contracts
from dynchoice.membership.names import CONTRACT
from dynchoice.membership.offers import in_force
from dynchoice.membership.programme import Programme
from dynchoice.panel.history import period_numbers, previous
from dynchoice.typing import AnyArray, BoolArray, IntArray

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

ENTRIES = ("new", "outside", "unknown")
BROKEN = ("raise", "drop")
UNKNOWN = -1


@dataclass
class Findings:
    """What the reader of a history is warned of, gathered to be said once.

    ``former`` rows of ``former_members`` may have a trial again that the history does not show;
    ``lost`` rows hold no contract level; ``strange`` counts segments that the programme lacks.
    """

    rows: int = 0
    lost: int = 0
    former: int = 0
    former_members: int = 0
    strange: Counter[str] = field(default_factory=Counter)

    def add(self, other: Findings) -> None:
        """Add the findings among other members."""
        self.rows += other.rows
        self.lost += other.lost
        self.former += other.former
        self.former_members += other.former_members
        self.strange += other.strange

    def warn(self, club: Programme, stacklevel: int) -> None:
        """Warn once of each kind of finding."""
        messages = []
        if self.former:
            messages.append(
                f"{self.former:,} row(s) of {self.former_members:,} former member(s):"
                f" {TRIALS_HIDDEN}"
            )
        if self.strange:  # a programme may name only the segments that differ from the rest
            first = next(iter(self.strange))
            messages.append(
                f"{sum(self.strange.values()):,} row(s) are of segment {first!r}, of which"
                f" the programme says nothing.{suggest(first, list(club.segments))} Its segments:"
                f" {', '.join(map(str, club.segments))}"
            )
        if self.lost:
            messages.append(
                f"{self.lost:,} of {self.rows:,} row(s) are left out: where their members stand"
                " at the start of the month is not known (entry, gaps, broken contracts). What is"
                " left may be selected: members with long contracts come back last"
            )
        for message in messages:
            warnings.warn(message, DataWarning, stacklevel=stacklevel + 1)


def describe_first(df: pd.DataFrame, mask: ArrayLike, member: str, time: str) -> str:
    """Return the member and period of the first row of a mask, in words."""
    row = df[np.asarray(mask)].iloc[0]
    return f"member {row[member]} in {row[time]}"


def contract_levels(
    club: Programme,
    df: pd.DataFrame,
    *,
    member: str,
    time: str,
    plan: str,
    entry: str = "new",
    contract: str | None = None,
    none: object = "none",
    broken: str = "raise",
    months: bool | None = None,
    findings: Findings | None = None,
) -> pd.Series:
    """Return each row's contract level at the start of the month, missing where it is not known.

    Parameters
    ----------
    df : pandas.DataFrame
        One row per member and month.
    member, time, plan : str
        Columns; ``plan`` holds the plan held during the month (the choice).
    entry : {"new", "outside", "unknown"}
        Where a member stands in its first month: a new customer, a former one, or not known until
        a month without a plan has been seen (as after a gap).
    contract : str, optional
        Column of contract levels; where it is filled, it counts.
    none : label
        What ``plan`` says of a month outside.
    broken : {"raise", "drop"}
        What to do with a choice that the contract does not allow: say so, or call the level
        unknown from there until the history (or ``contract``) tells it again.
    months : bool, optional
        Whether numbers of ``time`` read as ``YYYYMM``. Default: where all of them look like it.
    findings : Findings, optional
        To add to what a reader is warned of; default: they are warned at once.

    Raises
    ------
    ColumnError, DataError
        A column is missing; an unknown plan or contract level; choices that the contract does not
        allow (with the first members).
    """
    import pandas as pd

    optional = [contract] if contract else []
    checks.columns(df, [member, time, plan, *optional], "plan history")
    checks.one_of(entry, "entry", ENTRIES)
    checks.one_of(broken, "broken", BROKEN)
    c = club.contracts
    choice = _choice_codes(club, df, member, time, plan, none)
    pinned = _pinned_levels(c, df, contract)
    work = pd.DataFrame(
        {"member": df[member].to_numpy(), "period": period_numbers(df[time], time, months)}
    )
    order = work.sort_values(["member", "period"], kind="stable").index.to_numpy()
    ids = work["member"].to_numpy()[order]
    first = np.r_[True, ids[1:] != ids[:-1]]
    step = np.diff(work["period"].to_numpy()[order], prepend=0)
    repeated = ~first & (step == 0)
    if repeated.any():
        raise DataError(
            f"{int(repeated.sum()):,} row(s) repeat a member and period, first:"
            f" {describe_first(df.iloc[order], repeated, member, time)}. Keep one row a member and"
            " period (dates count by month; for weeks or days give whole numbers)"
        )
    levels, refused = run_forward(
        c,
        choice[order],
        first=first,
        apart=first | (step != 1),
        pinned=pinned[order],
        entry=entry,
        drop=broken == "drop",
    )
    if refused.any() and broken == "raise":
        bad_rows = np.flatnonzero(refused)
        _, first_of_member = np.unique(ids[bad_rows], return_index=True)
        periods = df[time].to_numpy()[order]
        shown = [
            f"member {ids[row]} chooses {club.choices[choice[order[row]]]!r} at"
            f" {c.labels[levels[row]]!r} in {periods[row]}"
            for row in bad_rows[np.sort(first_of_member)][:3]
        ]
        raise DataError(
            f"{int(refused.sum()):,} row(s) hold a choice that the contract does not allow:"
            f" {'; '.join(shown)}. Mend the history, or the plan's periods, trial or cancel rule;"
            " broken='drop' leaves such months out"
            + (f". Mind that {TRIALS_HIDDEN}" if has_hidden_trials(c, contract) else "")
        )
    if has_hidden_trials(c, contract):
        former = (levels >= 0) & (c.kind[np.maximum(levels, 0)] == LAPSED)
        new = Findings(former=int(former.sum()), former_members=len(np.unique(ids[former])))
        if findings is None:
            new.warn(club, 3)
        else:
            findings.add(new)
    by_row = np.empty(len(df), dtype=np.int64)
    by_row[order] = levels
    labels = np.array([*c.labels, None], dtype=object)  # UNKNOWN, -1, reaches the last one
    return pd.Series(labels[by_row], index=df.index, name=CONTRACT)


def _choice_codes(
    club: Programme, df: pd.DataFrame, member: str, time: str, plan: str, none: object
) -> IntArray:
    """Return the choice code of each row's plan.

    Raises
    ------
    DataError
        Plans that the programme does not have.
    """
    codes: dict[object, int] = {none: 0, **{p.name: i + 1 for i, p in enumerate(club.plans)}}
    choice = df[plan].map(codes)
    unknown = choice.isna()
    if unknown.any():
        plans = df.loc[unknown, plan]
        missing = bool(plans.isna().any())
        shown = plans.astype(object).where(plans.notna(), "missing").astype(str).unique().tolist()
        raise DataError(
            f"{int(unknown.sum()):,} row(s) of {plan!r} hold no plan of the programme:"
            f" {first_few(shown)} (first: {describe_first(df, unknown, member, time)})."
            + ("" if missing else suggest(shown[0], codes))
            + f" Plans: {', '.join(map(str, codes))}"
        )
    return np.asarray(choice.to_numpy(dtype=np.int64))


def _pinned_levels(c: Contracts, df: pd.DataFrame, contract: str | None) -> IntArray:
    """Return the contract level that the column ``contract`` states in each row, or UNKNOWN.

    Raises
    ------
    DataError
        Labels that are no contract level.
    """
    if contract is None:
        return np.full(len(df), UNKNOWN, dtype=np.int64)
    codes = {label: i for i, label in enumerate(c.labels)}
    levels = df[contract].astype(object).map(codes)
    strange = df[contract].notna() & levels.isna()
    if strange.any():
        shown = df.loc[strange, contract].astype(str).unique().tolist()
        raise DataError(
            f"{int(strange.sum()):,} row(s) of {contract!r} hold no contract level:"
            f" {first_few(shown)}.{suggest(shown[0], codes)} Levels: {', '.join(c.labels)}"
        )
    return np.asarray(levels.fillna(UNKNOWN).to_numpy(dtype=np.int64))


TRIALS_HIDDEN = (
    "a history of plans does not show when a former member may have a trial again. It is read as a"
    " rule (after trial_again periods outside); the model has it happen at random, with that mean."
    " If your rule is another one, estimates are biased: name a column of contract levels"
    " (contract=), or set trial_again=None where trials are given once"
)


def has_hidden_trials(c: Contracts, contract: str | None) -> bool:
    """Return whether eligibility for another trial has to be guessed from the history."""
    return contract is None and c.trials and c.trial_again is not None


def run_forward(
    c: Contracts,
    choice: IntArray,
    *,
    first: BoolArray,
    apart: BoolArray,
    pinned: IntArray,
    entry: str,
    drop: bool = False,
) -> tuple[IntArray, BoolArray]:
    """Return the contract level (rows,) before each choice, and which choices it does not allow.

    Rows are sorted by member and time; ``first`` marks a member's first row and ``apart`` rows
    whose month before is not there. After a choice that its level does not allow, the level is
    unknown; with ``drop`` it is unknown in that period too.
    """
    starts = np.flatnonzero(first)
    lengths = np.diff(np.r_[starts, len(choice)])
    entry_level = {"new": 0, "outside": c.outside, "unknown": UNKNOWN}[entry]
    again = np.inf if c.trial_again is None else c.trial_again
    usual, other = next_tables(c)
    level = np.full(len(starts), entry_level, dtype=np.int64)
    months = np.zeros(len(starts))  # of membership in the spell, or outside since it
    out = np.empty(len(choice), dtype=np.int64)
    refused = np.zeros(len(choice), dtype=bool)
    # all members at once, their k-th rows together: as many passes as the longest history has rows
    for k in range(int(lengths.max(initial=0))):
        live = np.flatnonzero(lengths > k)
        row = starts[live] + k
        now = np.where(apart[row] & (k > 0), UNKNOWN, level[live])
        if k == 0:
            now = np.full(len(live), entry_level)
        stated = pinned[row] != UNKNOWN
        now = np.where(stated, pinned[row], now)
        spell = np.where(apart[row], 0.0, months[live])
        # the tenure of a level that is stated says how long the spell has lasted at least
        served = np.where(stated, c.years[np.maximum(now, 0)], 0)
        spell = np.maximum(spell, served * c.per_year)
        a = choice[row]
        sure = now != UNKNOWN
        bad = np.zeros(len(live), dtype=bool)
        bad[sure] = ~c.possible[now[sure], a[sure]]
        refused[row] = bad
        out[row] = np.where(bad, UNKNOWN, now) if drop else now
        sure &= ~bad  # a break is counted once, not every month after it
        following = np.full(len(live), UNKNOWN)
        following[sure] = usual[a[sure], now[sure]]
        alternative = np.full(len(live), UNKNOWN)
        alternative[sure] = other[a[sure], now[sure]]
        # a month outside tells where somebody unknown stands: outside, trial already used
        following = np.where(~sure & (a == 0), c.outside, following)
        # np.maximum(..., 0) keeps an index valid where the level is UNKNOWN; ``sure`` masks it
        kind_now = np.where(sure, c.kind[np.maximum(now, 0)], UNKNOWN)
        kind_next = c.kind[np.maximum(following, 0)]
        paying = sure & (a > 0) & (kind_next == PAID)
        continuing = np.where(a > 0, kind_now == PAID, kind_now == LAPSED)
        spell = np.where(continuing, spell + 1, 1.0)
        # what the model draws, tenure and the return to eligibility, is decided by the months here
        years = np.minimum(spell // c.per_year, c.tenure - 1)
        has_other = alternative != UNKNOWN
        grown = has_other & paying & (c.years[np.maximum(alternative, 0)] <= years)
        eligible = has_other & (a == 0) & (spell >= again)
        following = np.where(grown | eligible, alternative, following)
        level[live], months[live] = following, spell
    return out, refused


def next_tables(c: Contracts) -> tuple[IntArray, IntArray]:
    """Return the usual next level and the one that months decide (-1: none), (choices, C)."""
    C, J = c.possible.shape
    usual = np.empty((J, C), dtype=np.int64)
    other = np.full((J, C), UNKNOWN, dtype=np.int64)
    for j in range(J):
        for i in range(C):
            next_levels = [k for k, _ in c.follow(i, j)]
            usual[j, i] = next_levels[0]
            if len(next_levels) > 1:
                other[j, i] = next_levels[1]
    return usual, other


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the columns of a plan history are read: the options of :meth:`Membership.panel`.

    ``use`` is the column of each benefit's use, ``by_schedule`` the axes of offers that a
    schedule says, ``columns`` those of the others; ``kept`` are columns passed on as they are;
    ``months`` says whether numbers of ``time`` read as ``YYYYMM`` (None: by how they look).
    """

    club: Programme
    member: str
    time: str
    plan: str
    use: Mapping[str, str]
    lag: bool
    offers: pd.DataFrame | None
    by_schedule: tuple[str, ...]
    columns: Mapping[str, str]
    entry: str
    contract: str | None
    none: object
    broken: str
    region: str | None
    segment: str | None
    kept: tuple[str, ...]
    drop: bool
    months: bool | None = None

    @property
    def used(self) -> list[str]:
        """Columns that are read."""
        optional = [self.contract] if self.contract is not None else []
        needed = [self.member, self.time, self.plan, *self.use.values(), *self.columns.values()]
        return list(dict.fromkeys([*needed, *optional, *self.kept]))

    def derive(self, df: pd.DataFrame, findings: Findings) -> pd.DataFrame:
        """Return the rows of some members as a panel wants them; ``findings`` is added to.

        Rows whose contract level is not known are left out.
        """
        import pandas as pd

        club, member, time = self.club, self.member, self.time
        df, none = df.reset_index(drop=True), self.none
        if pd.isna(none):  # a month outside has no plan
            plans = df[self.plan].astype(object)
            df, none = df.assign(**{self.plan: plans.where(plans.notna(), "none")}), "none"
        findings.rows += len(df)
        made: dict[str, pd.Series | AnyArray] = {member: df[member], time: df[time]}
        plans = df[self.plan]
        made[self.plan] = plans.where(plans != none, "none") if none != "none" else plans
        made[CONTRACT] = contract_levels(
            club,
            df,
            member=member,
            time=time,
            plan=self.plan,
            entry=self.entry,
            contract=self.contract,
            none=none,
            broken=self.broken,
            months=self.months,
            findings=findings,
        )
        for benefit, column in self.use.items():
            made[benefit] = (
                previous(df, member=member, time=time, column=column, months=self.months)
                if self.lag
                else df[column]
            )
        for axis in self.by_schedule:
            assert self.offers is not None
            made[axis] = in_force(df, self.offers, axis, time, self.region, self.months)
        for axis, column in self.columns.items():
            made[axis] = df[column]
        for name in self.kept:
            made[name] = df[name]
        if club.segments and self.segment is not None:
            label = df[self.segment].dropna().astype(str)
            findings.strange += Counter(label[~label.isin([str(x) for x in club.segments])])
        table = pd.DataFrame(made)
        # with lag, a first row has no period before that could say what was used
        needed = [CONTRACT, *self.use] if self.lag else [CONTRACT]
        lost = table[needed].isna().any(axis=1)
        findings.lost += int(lost.sum())
        table = table[~lost] if lost.any() else table
        for benefit, column in self.use.items():
            table = table.assign(
                **{benefit: whole_numbers(table[benefit], column, table, member, time, self.drop)}
            )
        return table


NOTHING_LEFT = "no row is left: no month tells where its member stands at its start"


def whole_numbers(
    x: pd.Series, column: str, table: pd.DataFrame, member: str, time: str, drop: bool = False
) -> pd.Series:
    """Return levels of engagement as whole numbers, with ``drop`` missing where they are none.

    Raises
    ------
    DataError
        Texts or fractions (a member in between two levels stands in neither).
    """
    import pandas as pd

    numbers = pd.to_numeric(x.astype(object), errors="coerce")
    bad = numbers.isna() | (numbers % 1 != 0)
    if bad.any() and drop:
        return numbers.where(~bad)
    if bad.any():
        raise DataError(
            f"{int(bad.sum()):,} row(s) of {x.name!r} (column {column!r}) hold no level of use,"
            " whole numbers from 0:"
            f" {first_few(x[bad].astype(str).unique().tolist())}"
            f" (first: {describe_first(table, bad, member, time)}). Sort use into levels first"
        )
    return numbers.astype("int64")
