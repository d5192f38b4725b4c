"""Histories that say less than the model needs are read with a warning, or refused in words."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from term_club import FILMS

import dynchoice as dc

TRIALS = dc.Membership([dc.Plan("monthly", 10, trial=1)], trial_again=6)
YEAR = dc.Membership([dc.Plan("annual", 120, periods=12, cancel="at renewal")])


def history(*lives: list[str], **columns: object) -> pd.DataFrame:
    rows = [(f"m{i}", f"2024-{t + 1:02d}", p) for i, x in enumerate(lives) for t, p in enumerate(x)]
    return pd.DataFrame(rows, columns=["who", "when", "plan"]).assign(**columns)


def read(own: dc.Membership, data: pd.DataFrame, **options: object) -> dc.Panel:
    return own.panel(data, member="who", time="when", plan="plan", **options)


BROKEN = history(["annual"] * 4 + ["none"] * 8)
BROKEN_TWICE = history(["annual", "annual", "none", "none", "annual", "none", "none"])
HOME = dc.Membership([dc.Plan("monthly", 10)], [FILMS])
LIVES = ["none", "monthly", "monthly"], ["none"] * 3
OFFERS = pd.DataFrame({"from": ["2024-01"] * 2, "prices": ["old", "new"]})
MENUS = replace(YEAR, menus={"old": {}, "new": {"annual": 99}})
SEGMENTS = replace(YEAR, segments={"students": {}, "others": {}})
KINDS = history(["none"] * 3, kind=["students", "student", "student"])


@pytest.mark.filterwarnings("error::dynchoice.DataWarning")
def test_a_history_that_hides_trials_is_read_with_a_warning():
    # months that start as a former member: the last two of m0, the last of m1; m2 never left
    life = ["monthly", "monthly", "none", "none", "none"]
    frame = history(life, life[:4], ["none", "monthly", "monthly"])
    with pytest.warns(dc.DataWarning, match=r"^3 row\(s\) of 2 former member\(s\).*trial_again"):
        assert read(TRIALS, frame).counts.nobs == 12
    read(replace(TRIALS, trial_again=None), frame)
    known = ["new", "trial monthly", "monthly", "lapsed", "lapsed"]
    read(TRIALS, frame.assign(at=known + known[:4] + known[:1] + known[:2]), contract="at")


def test_a_broken_contract_leaves_one_month_out():
    with pytest.warns(dc.DataWarning, match="^1 of 12 row"):
        assert read(YEAR, BROKEN, broken="drop").counts.nobs == 11


def test_a_segment_of_which_the_programme_says_nothing_is_named():
    # no error: a programme may name only the segments that differ from the rest
    said = r"^2 row\(s\) are of segment 'student'.*Did you mean 'students'"
    with pytest.warns(dc.DataWarning, match=said):
        read(SEGMENTS, KINDS, segment="kind")


UNREAD = [
    (dc.DataError, lambda: read(YEAR, BROKEN), r"^1 row\(s\).*'none' at 'annual_8' in 2024-05"),
    (dc.DataError, lambda: read(YEAR, BROKEN_TWICE), r"^2 row\(s\)"),
    (dc.DataError,
     lambda: read(HOME, history(*LIVES, at=[0, 1, 0.5, 0, 0.5, 0]), engagement={"films": "at"}),
     r"^2 row\(s\) of 'films' \(column 'at'\).*: 0\.5 \(first: member m0 in 2024-03\)"),
    (dc.DataError, lambda: read(HOME, history(*LIVES, films=[0, 1, "some", 0, 1, "much"])),
     r"^2 row\(s\) of 'films' \(column 'films'\).*: some, much \(first: member m0 in 2024-03\)"),
    (dc.DataError, lambda: read(YEAR, pd.concat([history(["none"] * 3)] * 2).iloc[:5]),
     r"^2 row\(s\).*member m0 in 2024-01.*dates count by month"),
    (dc.DataError, lambda: read(YEAR, history(["none", "anual", "none"])),
     r"^1 row\(s\).*anual \(first: member m0 in 2024-02\).*Did you mean 'annual'"),
    (dc.DataError, lambda: read(YEAR, history(["none", None, "none"])),  # nothing is guessed
     r"^1 row\(s\)((?!Did you mean).)*member m0 in 2024-02((?!Did you mean).)*$"),
    (dc.DataError, lambda: read(MENUS, history(["none"]), offers=OFFERS),
     "both 'old' and 'new' as prices"),
    (dc.DataError, lambda: read(YEAR, history(["none"]).iloc[:0]), "no rows"),
    (dc.SpecificationError, lambda: read(MENUS, history(["none"]), offers={"from": 1}),
     "offers must be a table.*dict"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "call", "message"), UNREAD, ids=[m for _, _, m in UNREAD])
def test_a_history_is_refused_in_words(kind, call, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()
