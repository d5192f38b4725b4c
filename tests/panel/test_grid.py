"""Counting by grid: against loops over rows, against the windows of SQL, and kernel by kernel."""

import datetime as dt
import itertools
import math
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dynchoice as dc
from dynchoice import memory
from dynchoice.errors import MemoryLimitError
from dynchoice.kernels import counts as count_kernels
from dynchoice.panel import grid, query

STATES = dc.StateSpace(a=["lo", "hi"], b=[10, 20, 30])
CHOICES = ["out", "in", "up"]
SQL, GRID = 10**9, 0
"""``member_limit`` of the two paths."""
SMALL = 300
"""``memory``: 150 bytes of grid, nine members of eight periods, so that 25 take three passes."""

IDS = {
    "compact": lambda i: 100 + i,
    "negative": lambda i: i - 9,
    "sparse": lambda i: 10**13 * i - 3,
    "text": lambda i: f"é{i % 7}'-{i}",
    "float": lambda i: 1.5 * i - 6.0,
}
TIMES = {  # first period, its value in the data, freq
    "integer": (-3, lambda p: p, None),
    "yyyymm": (2020 * 12 + 9, lambda p: p // 12 * 100 + p % 12 + 1, "month"),
    "date": (2020 * 12 + 9, lambda p: dt.date(p // 12, p % 12 + 1, 1 + p % 28), None),
    "text": (2020 * 12 + 9, lambda p: f"{p // 12}-{p % 12 + 1:02d}", None),
    "quarter": (2019 * 4 + 2, lambda p: f"{p // 4}-{p % 4 * 3 + 2:02d}", "quarter"),
}
ALL = {"segment": "seg", "region": "place", "weights": "w", "decision": "d"}


def build(data, member_limit=GRID, **options):
    settings = {"member": "id", "time": "t", "choice": "plan", "states": STATES}
    settings = {**settings, "choices": CHOICES, "member_limit": member_limit, **options}
    return dc.Panel(data, **settings)


def some_rows(seed, ids="compact", times="integer", members=25, periods=8):
    """Members who come late, leave, skip periods, move and stay: a frame, and its coded rows."""
    rng = np.random.default_rng(seed)
    first, shown, _ = TIMES[times]
    rows = []
    for i in range(members):
        start, end = sorted(rng.integers(0, periods, 2))
        if i < 3:
            start, end = 0, periods - 1
        here, weight, segment = rng.integers(0, 3), rng.random() * 3 + 0.1, rng.integers(0, 3)
        for p in range(start, end + 1):
            if start < p < end and rng.random() < 0.25:
                continue
            segment = rng.integers(0, 3) if rng.random() < 0.1 else segment
            a, b, j, d = (int(rng.integers(0, n)) for n in (2, 3, 3, 2))
            rows.append(
                {
                    "id": IDS[ids](i), "t": shown(first + p), "a": ["lo", "hi"][a],
                    "b": 10 * (b + 1), "plan": CHOICES[j], "seg": "xyz"[segment],
                    "place": f"o'{here}", "w": weight, "d": d,
                    "period": first + p, "state": 3 * a + b, "choice": j,
                }
            )  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


def bucket_by_hand(member, buckets=200):
    """The bucket of an id, in whole numbers of Python."""
    prime = 1_048_573
    if isinstance(member, int | np.integer):
        member = int(member)
        number = member % prime + int(math.fmod(math.floor(float(member) / prime), 7919))
    else:
        text = str(member)
        last = [text[-k] if k <= len(text) else text[0] for k in (1, 2, 3, 4)]
        number = sum(ord(c) * w for c, w in zip(last, (1, 131, 17_161, 2_248_091), strict=True))
    number %= prime
    mixed = number**3 + 48_271 * number**2 + 69_621 * number + 12_345
    return mixed % prime % buckets


def period_by_hand(p, times):
    if times == "integer":
        return str(p)
    return f"{p // 4}-Q{p % 4 + 1}" if times == "quarter" else f"{p // 12}-{p % 12 + 1:02d}"


def by_hand(rows, segment=None, region=None, weights=None, decision=None, buckets=200):
    """Cells as dicts and lines of the report, by one loop over coded rows (see some_rows)."""
    at = {(r.id, r.period): r for r in rows.itertuples()}
    assert len(at) == len(rows)
    segments = sorted(set(rows[segment])) if segment else ["all"]
    regions = sorted(set(rows[region])) if region else []
    seen, cells, by_period, by_region = {}, Counter(), Counter(), Counter()
    spells = {}
    for (who, p), r in at.items():
        spells.setdefault(who, []).append(p)
        g = segments.index(getattr(r, segment) if segment else "all")
        w = getattr(r, weights) if weights else 1.0
        decides = int(getattr(r, decision)) if decision else 1
        ahead = at[who, p + 1].state if (who, p + 1) in at else -1
        cells[g, bucket_by_hand(who, buckets), r.state, r.choice, ahead, decides] += w
        by_period[g, p, r.state, r.choice, decides] += w
        if region:
            place = regions.index(getattr(r, region))
            by_region[g, place, p, r.state, r.choice, ahead, decides] += w
        seen[g, who] = w
    first, last = rows["period"].min(), rows["period"].max()
    spells = {who: sorted(p) for who, p in spells.items()}
    skips = [sum(b > a + 1 for a, b in itertools.pairwise(p)) for p in spells.values()]
    places = Counter(who for _, who in seen)
    report = {
        "rows": len(rows),
        "members": len(spells),
        "periods": last - first + 1,
        "entry after the first period": sum(p[0] > first for p in spells.values()),
        "exit before the last period": sum(p[-1] < last for p in spells.values()),
        "right-censored": sum(p[-1] == last for p in spells.values()),
        "gaps": sum(skips),
        "members with one row": sum(len(p) == 1 for p in spells.values()),
        "members that change segment": sum(n > 1 for n in places.values()),
    }
    worth = [math.fsum(w for (g, _), w in seen.items() if g == m) for m in range(len(segments))]
    return SimpleNamespace(
        cells=cells, by_period=by_period, by_region=by_region, segments=segments, regions=regions,
        report=report, worth=worth, span=(first, last), broken=sum(n > 0 for n in skips),
    )  # fmt: skip


def check(panel, want, refused=0):
    """A panel says what the loop found."""
    counts = panel.counts
    pairs = [
        (counts.cells, counts.n, want.cells),
        (counts.period_cells, counts.period_n, want.by_period),
    ]
    assert (counts.regions is None) == (not want.regions)
    if counts.regions is not None:
        assert list(counts.regions.labels) == want.regions
        pairs.append((counts.regions.cells, counts.regions.n, want.by_region))
    for cells, n, found in pairs:
        assert [tuple(c) for c in cells.tolist()] == sorted(found)
        np.testing.assert_allclose(n, [found[c] for c in sorted(found)], rtol=1e-13)
    assert list(counts.segments) == want.segments and counts.origin == want.span[0]
    np.testing.assert_allclose(counts.segment_members, want.worth, rtol=1e-14)
    assert {k: panel.report[k] for k in want.report} == want.report
    assert f"breaks in {want.broken:,} members' spells" in str(panel.report)
    assert panel.report["rows refused"] == refused
    assert panel.nmembers == want.report["members"]


def same(a, b):
    """Two panels say the same to the bit, cells by member aside."""
    assert str(a.report) == str(b.report) and repr(a) == repr(b)
    x, y = a.counts, b.counts
    pairs = [
        (getattr(x, k), getattr(y, k))
        for k in ("cells", "n", "period_cells", "period_n", "segment_members")
    ]
    assert (x.regions is None) == (y.regions is None)
    if x.regions is not None:
        assert x.regions.labels == y.regions.labels
        pairs += [(x.regions.cells, y.regions.cells), (x.regions.n, y.regions.n)]
    for p, q in pairs:
        assert (p.dtype, p.shape, p.tobytes()) == (q.dtype, q.shape, q.tobytes())
    for k in ("states", "choices", "segments", "buckets", "origin", "period_kind", "digest"):
        assert getattr(x, k) == getattr(y, k), k


def refusal(data, member_limit, **options):
    """The class and the text of what a path says of data that it must refuse."""
    with pytest.raises(dc.DataError) as said:
        build(data, member_limit, **options)
    return said.type, str(said.value)


@pytest.fixture
def passes(monkeypatch):
    """Every grid that is filled: (members, bytes, type), a pass each."""
    grids, inner = [], count_kernels.describe_members

    def noted(cells, *rest):
        grids.append((len(cells), cells.nbytes, cells.dtype.name))
        return inner(cells, *rest)

    monkeypatch.setattr(count_kernels, "describe_members", noted)
    return grids


# what is counted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "times", "given", "options"),
    [
        ("compact", "integer", None, {"decision": "d", "buckets": 7}),
        ("negative", "quarter", SMALL, {"weights": "w"}),
        ("sparse", "yyyymm", SMALL, ALL),
        ("text", "text", SMALL, {"segment": "seg", "region": "place"}),
        ("float", "date", None, {"region": "place", "weights": "w", "decision": "d"}),
    ],
)
def test_both_paths_and_several_passes_count_as_a_loop_does(ids, times, given, options, passes):
    rows = some_rows(len(ids), ids, times)
    want = by_hand(rows, **options)
    assert want.broken > 2 and want.report["members with one row"]
    data = rows.drop(columns=["period", "state", "choice"])
    if times == "integer":
        data["d"] = data["d"].astype(bool)
    options = {**options, "freq": TIMES[times][2]}
    short = build(data, SQL, **options)
    assert not passes and short.counts.members.size == 25
    long = build(data, memory=given, **options)
    assert [g[0] for g in passes] == ([9, 9, 7] if given else [25])
    assert given is None or max(g[1] for g in passes) <= given // 2
    assert long.counts.members is None
    check(long, want)
    same(short, long)
    span = " to ".join(period_by_hand(p, times) for p in want.span)
    assert span in str(long.report) and span in repr(long)


def test_ids_that_leave_places_empty_do_not_make_a_grid_of_them(passes):
    """Numbers in steps of 200, each seen 60 times: listed, a grid of five members is full."""
    rows = pd.DataFrame({"id": np.repeat(np.arange(5) * 200, 60), "t": np.tile(np.arange(60), 5)})
    rows = rows.assign(a="hi", b=30, plan="up", period=rows["t"], state=5, choice=2)
    check(build(rows), by_hand(rows))
    assert [g[0] <= (1 + grid.SPARSE) * 5 for g in passes] == [True]


def test_ids_at_the_end_of_whole_numbers():
    rows = some_rows(3, members=6)
    data = rows.assign(id=rows["id"] - 105 + (2**63 - 1))
    check(build(data), by_hand(data))


def test_buckets_of_negative_ids_are_buckets():
    """The remainder of SQL has the sign of what is divided."""
    rows = some_rows(4)
    data = rows.assign(id=rows["id"] - 100 - query.PRIME)
    want = by_hand(data)
    assert min(c[1] for c in want.cells) >= 0
    long, short = build(data), build(data, SQL)
    assert long.counts.n.sum() == short.counts.n.sum() == len(rows)
    check(long, want)
    same(long, short)


@pytest.mark.parametrize(
    ("states", "choices", "kind"),
    [((32_767,), 1, "uint16"), ((2, 16_384), 1, "uint32"), ((40_000,), 70_000, "int64")],
)
def test_codes_of_every_width(states, choices, kind, passes):
    """Codes end at 65,533 and 65,535, which in two bytes marks an empty place; and beyond four."""
    axes = {f"k{i}": range(n) for i, n in enumerate(states)}
    S = math.prod(states)
    rng = np.random.default_rng(S)
    member, period = np.divmod(rng.permutation(40)[:30], 5)
    rows = pd.DataFrame({"id": member, "period": period})
    rows["state"], rows["choice"] = rng.integers(S - 3, S, 30), rng.integers(choices - 1, choices)
    rows.loc[0, ["state", "choice"]] = S - 1, choices - 1
    data = rows.rename(columns={"period": "t", "choice": "plan"})
    data = data.assign(**dict(zip(axes, np.unravel_index(data["state"], states), strict=True)))
    settings = {"states": dc.StateSpace(**axes), "choices": range(choices)}
    panel = build(data, **settings)
    assert [g[2] for g in passes] == [kind]
    check(panel, by_hand(rows))


def test_tables_that_grow_and_keys_made_a_few_at_a_time(monkeypatch):
    rows = some_rows(5)
    monkeypatch.setattr(grid, "FIRST_TABLE", 2)
    monkeypatch.setattr(grid, "KEYS", 3)
    options = {"region": "place", "buckets": 2}
    check(build(rows, memory=SMALL, **options), by_hand(rows, **options))


def test_more_cells_than_numbers_are_refused():
    rows = some_rows(6, members=3).assign(**{f"k{i}": 0 for i in range(4)})
    states = dc.StateSpace(**{f"k{i}": range(1000) for i in range(4)})
    with pytest.raises(dc.DataError, match=r"1,000,000,000,000 states x 8 periods .*too many"):
        build(rows, states=states)


def test_what_else_a_panel_says_does_not_depend_on_the_path():
    rows = some_rows(7)
    short, long = (build(rows, limit, **ALL) for limit in (SQL, GRID))
    same(short, long)
    a, b = (p.member_cells(by_period=True) for p in (short, long))
    for name in ("indptr", "index", "n", "cells", "weights", "firsts", "bucket", "region"):
        assert (getattr(a, name) == getattr(b, name)).all(), name
    assert a.bucket.tolist() == [bucket_by_hand(i) for i in sorted(set(rows["id"].tolist()))]
    want, own, n = Counter(), Counter(), long.bucket_cells()
    for r in rows.itertuples():
        want[bucket_by_hand(r.id), r.period, r.state, r.choice] += r.w
    for (_, bucket, p, s, j, _, _), w in zip(n.cells.tolist(), n.n, strict=True):
        own[bucket, p, s, j] += w
    assert own == pytest.approx(want, rel=1e-13)
    s, j = rows.loc[0, ["state", "choice"]]
    hit = rows[(rows["state"] == s) & (rows["choice"] == j)].sort_values(["id", "period"])
    told = [f"member {r.id} at {r.t}" for r in hit.itertuples()]
    assert long.first_rows(s, j, limit=99) == told and long.first_rows(s, j) == told[:3]


def test_nobody_seen_twice_in_a_row_is_warned_of():
    rows = some_rows(8, members=4)
    with pytest.warns(dc.DataWarning, match="no member is seen in two consecutive periods"):
        build(rows.assign(t=rows["t"] * 3))


@pytest.mark.parametrize("kind", ["arrow", "files", "csv"])
def test_every_kind_of_input_by_grid(tmp_path, kind, passes):
    rows = some_rows(9, times="text")
    data = rows.drop(columns=["period", "state", "choice"])
    for i, part in enumerate((data.iloc[:40], data.iloc[40:])):
        pq.write_table(pa.Table.from_pandas(part), tmp_path / f"part-{i}.parquet", row_group_size=7)
        part.to_csv(tmp_path / f"rows-{i}.csv", index=False)
    given = {
        "arrow": pa.Table.from_pandas(data),
        "files": [tmp_path / "part-1.parquet", str(tmp_path / "*-0.parquet")],
        "csv": str(tmp_path / "rows-*.csv"),
    }[kind]
    panel = build(given, **ALL)
    assert len(passes) == 1 and panel.counts.members is None
    check(panel, by_hand(rows, **ALL))


# rows that are refused -------------------------------------------------------------------

RULES = {
    "no time": ("t", None, r"missing or unreadable 't' \(time\)"),
    "odd time": ("t", "2020-13", r"missing or unreadable 't' \(time\)"),
    "no choice": ("plan", None, r"missing 'plan' \(choice\)"),
    "unknown choice": ("plan", "inn", r"unknown choice in 'plan'.*\('inn'\).*Did you mean 'in'"),
    "no text level": ("a", None, r"missing 'a' \(state axis a\)"),
    "unknown text level": ("a", "mid", r"unknown level in 'a' \(state axis a\).*\('mid'\)"),
    "no number level": ("b", np.nan, r"(missing|unknown level in) 'b' \(state axis b\)"),
    "unknown number level": ("b", 15.0, r"unknown level in 'b' .*\('15.0'\)"),
    "no segment": ("seg", None, r"missing 'seg' \(segment\)"),
    "no region": ("place", None, r"missing 'place' \(region\)"),
    "weight 0": ("w", 0.0, r"weight not positive in 'w'.*\('0.0'\)"),
    "weight below 0": ("w", -2.5, r"weight not positive in 'w'.*\('-2.5'\)"),
    "no weight": ("w", np.nan, r"weight not positive in 'w'"),
    "endless weight": ("w", np.inf, r"weight not positive in 'w'.*\('inf'\)"),
    "decision 2": ("d", 2.0, r"not 0 or 1 in 'd' \(decision\)"),
    "no decision": ("d", np.nan, r"not 0 or 1 in 'd' \(decision\)"),
}


def mendable(seed=11):
    """Rows whose ids and numbers may be missing."""
    rows = some_rows(seed, times="text")
    return rows.astype({"id": "Int64", "b": "float64", "d": "float64"})


def test_every_rule_is_told_alike_and_leaves_what_is_good(monkeypatch):
    data, inner, marked = mendable(), count_kernels.fill_grid, []

    def noted(*args):
        found = inner(*args)
        marked.append(found[1])
        return found

    for k, (column, value, _) in enumerate(RULES.values()):
        data.loc[3 * k, column] = value
    monkeypatch.setattr(count_kernels, "fill_grid", noted)
    kind, text = refusal(data, GRID, **ALL)
    assert sum(marked) == len(RULES)  # each by itself: no row breaks two rules
    assert (kind, text) == refusal(data, SQL, **ALL)
    assert text.startswith(f"{len(RULES)} value(s) in {len(data)} rows are refused:")
    for _, _, message in RULES.values():
        assert re.search(f"- {message}", text), message
    kept = data.drop(index=range(0, 3 * len(RULES), 3))
    short = build(data, SQL, invalid="drop", **ALL)
    long = build(data, invalid="drop", memory=SMALL, **ALL)
    check(long, by_hand(kept, **ALL), refused=len(RULES))
    same(short, long)
    lines = [k for k in long.report.table.index if k.startswith("refused: ")]
    assert sum(long.report[k] for k in lines) == len(RULES)
    assert long.report["refused: weight not positive in 'w'"] == 4


def all_sorts(data):
    """Refused rows hold what nobody else has: see the comments."""
    late = data["period"].max()
    data.loc[7, ["seg", "place", "plan"]] = "w", "only here", None  # labels
    data.loc[8, ["w", "plan"]] = 77.0, "zz"  # a member's second weight
    gone = data.index[data["id"] == data.loc[0, "id"]]  # all rows of a member
    data.loc[gone, "w"] = 0.0
    new = [
        data.iloc[[5]].assign(t="2020-08", period=2020 * 12 + 7, plan="zz"),  # the first period
        data.iloc[[5]].assign(t="2021-07", period=late + 2, id=10**6, a=None),  # the last one
        data.iloc[[4]].assign(d=3.0),  # a member's second row in a period
    ]
    bad = [7, 8, *gone, *range(len(data), len(data) + 3)]
    return pd.concat([data, *new], ignore_index=True), bad


def labels_kept_alone(data):
    """Two labels, of which refused rows hold one: a single label and missing ones are left."""
    data["seg"], data["place"] = "x", "o"
    data.loc[7, ["seg", "place", "plan"]] = "y", "p", None
    data.loc[[8, 9], "seg"] = None
    data.loc[[9, 10], "place"] = None
    data.loc[11, "id"] = pd.NA
    return data, [7, 8, 9, 10, 11]


@pytest.mark.parametrize("spoil", [all_sorts, labels_kept_alone])
def test_dropped_rows_leave_nothing_behind(spoil):
    data, bad = spoil(mendable(12))
    # two passes, of twelve periods at first and of eight then
    long = build(data, invalid="drop", memory=2 * 15 * 12 * 2, **ALL)
    check(long, by_hand(data.drop(index=bad), **ALL), refused=len(bad))


MEND = "Mend the table, or pass invalid='drop' to leave these rows out (reported)."


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"t": np.nan}, "missing or unreadable 't' (time)"),
        ({"seg": np.nan}, "missing 'seg' (segment)"),
        ({"place": np.nan}, "missing 'place' (region)"),
        ({"plan": "zz", "t": 202001}, "unknown choice in 'plan'"),
    ],
)
def test_where_every_row_is_refused(change, rule):
    data = some_rows(13, members=3).iloc[:7].assign(**change)
    options = {"segment": "seg"} if "seg" in change else {"region": "place"}
    _, text = refusal(data, GRID, invalid="drop", **options)
    assert text.splitlines() == [
        "every row is refused:", "7 value(s) in 7 rows are refused:", f"- {rule}: 7 row(s)", MEND,
    ]  # fmt: skip


def test_a_label_is_missing_where_there_is_one():
    data = some_rows(12, members=5).assign(seg="x", place="o")
    data.loc[8, "seg"] = data.loc[3, "place"] = None
    _, text = refusal(data, GRID, segment="seg", region="place")
    at = {k: f"1 row(s), first: member {data['id'][k]} at {data['t'][k]}" for k in (8, 3)}
    assert text.splitlines() == [
        f"2 value(s) in {len(data)} rows are refused:",
        f"- missing 'seg' (segment): {at[8]}",
        f"- missing 'place' (region): {at[3]}",
        MEND,
    ]


def uneven(data):
    data.loc[data["id"] == data["id"].min(), "w"] = 0.5 + np.arange(8.0)
    return data


def uneven_and_doubled(data):
    """The weight of the first member changes, the last one has a row twice."""
    return pd.concat([uneven(data), data[data["id"] == data["id"].max()].iloc[[0]]])


def doubled_and_refused(data):
    first = data[data["id"] == data["id"].min()].iloc[[0]]
    data.loc[data["id"] == data["id"].max(), "plan"] = "zz"
    return pd.concat([data, first, first])


def months_as_integers_and_refused(data):
    data.loc[4, "plan"] = "zz"
    return data.assign(t=202004 + data["period"])


TWICE = r"(member, time) pairs appear more than once ("
CHANGES = "the weight of 1 member(s) changes over time, first: member 100."
REFUSED = "rows are refused:\n- unknown choice in 'plan': "
YYYYMM = "column 't' looks like YYYYMM"


@pytest.mark.parametrize(
    ("spoil", "invalid", "message"),
    [
        (uneven, "raise", CHANGES),
        (uneven_and_doubled, "raise", f"1 {TWICE}2 rows)"),
        (doubled_and_refused, "raise", REFUSED),
        (doubled_and_refused, "drop", f"1 {TWICE}3 rows), first: member 100"),
        (months_as_integers_and_refused, "raise", REFUSED),
        (months_as_integers_and_refused, "drop", YYYYMM),
    ],
)
def test_what_is_wrong_with_members_is_told_alike(spoil, invalid, message):
    """Faults of the first members and of the last, which fall into different passes."""
    data = spoil(some_rows(14)).reset_index(drop=True)
    options = {"weights": "w", "invalid": invalid}
    short = refusal(data, SQL, **options)
    assert message in short[1]
    assert refusal(data, GRID, memory=SMALL, **options) == short


def test_an_empty_table():
    data = some_rows(15).iloc[:0]
    assert refusal(data, GRID) == refusal(data, SQL) == (dc.DataError, "the table has no rows")


@pytest.mark.parametrize("refused", [False, True])
def test_a_period_far_away_does_not_ask_for_petabytes(refused):
    """A mistyped time, in a row that is refused or not; memory is bounded."""
    data = some_rows(16, members=5).astype({"t": "int64"})
    data.loc[0, ["t", "period"]] = 2**50
    options = {"invalid": "drop", "memory": "1MB"}
    if refused:
        data.loc[0, ["plan", "seg", "place"]] = "zz", "nowhere", "nowhere"
        options |= {"segment": "seg", "region": "place"}
        want = by_hand(data.drop(index=0), segment="seg", region="place")
        check(build(data, **options), want, refused=1)
        return
    try:
        panel = build(data, **options)
    except dc.DynChoiceError as said:  # not NumPy's MemoryError, which names neither
        assert "period" in str(said) and "'t'" in str(said)
    else:
        check(panel, by_hand(data))


# memory and progress ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("800MB", 800_000_000), ("1.5 GB", 1_500_000_000), (" 2tb ", 2 * 10**12), ("64kB", 64_000),
        ("7", 7), ("7B", 7), (12, 12), (12.9, 12), (np.int64(5), 5), (1, 1),
    ],
)  # fmt: skip
def test_sizes_in_bytes(given, want):
    got = memory.in_bytes(given)
    assert got == want and type(got) is int


@pytest.mark.parametrize(
    "given",
    [
        "lots", "", "GB", ".", "1.2.3GB", "4GiB", "4K", "-5MB", "0", "0.5", "1e9", "nan",
        pytest.param("9" * 400, id="nines"), 0, -1, 0.5, True, float("nan"), float("inf"), 10**18,
        pytest.param(10**400, id="huge"), [4],
    ],
)  # fmt: skip
def test_what_is_no_size(given):
    with pytest.raises(dc.SpecificationError, match="is no size: give bytes, or a text such as"):
        memory.in_bytes(given)


def test_the_limit_of_memory(monkeypatch):
    files = {}
    monkeypatch.delenv("DYNCHOICE_MEMORY", raising=False)
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 1000)
    monkeypatch.setattr(memory, "_number", files.get)
    assert memory.limit() == 1000
    first, second = "/sys/fs/cgroup/memory.{}", "/sys/fs/cgroup/memory/memory.{}_in_bytes"
    files.update({second.format("limit"): 900, second.format("usage"): 100})
    assert memory.limit() == 800
    files.update({first.format("max"): 500, first.format("current"): 501})
    assert memory.limit() == 0
    monkeypatch.setenv("DYNCHOICE_MEMORY", "3KB")
    assert memory.limit() == 3000
    monkeypatch.setenv("DYNCHOICE_MEMORY", "")
    assert memory.limit() == 0


def test_what_the_machine_has_free(monkeypatch, tmp_path):
    (tmp_path / "number").write_text("123\n")
    (tmp_path / "word").write_text("max\n")
    numbers = [memory._number(str(tmp_path / n)) for n in ("number", "word", "nothing")]
    assert numbers == [123, None, None]
    said = "MemTotal: 9 kB\nMemAvailable:      1234 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: said)
    assert memory._free_of_machine() == 1234 * 1024
    monkeypatch.setattr(Path, "read_text", lambda self: "MemTotal: 9 kB\n")
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory._free_of_machine() == installed

    def absent(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    assert memory._free_of_machine() == installed


def test_what_does_not_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setenv("DYNCHOICE_MEMORY", "2GB")
    memory.require(2 * 10**9, "the table", "buy more")
    with pytest.raises(MemoryLimitError) as said:
        memory.require(3_140_000_000, "the table", "buy more")
    want = "the table takes about 3.1 GB, DYNCHOICE_MEMORY allows 2.0 GB: buy more"
    assert str(said.value) == want
    monkeypatch.delenv("DYNCHOICE_MEMORY")
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 10**9)
    with pytest.raises(MemoryLimitError, match=r"takes about 3\.1 GB, there are [01]\.\d GB"):
        memory.require(3_140_000_000, "the table", "buy more")


def test_memory_of_a_panel(monkeypatch, passes):
    rows = some_rows(17, members=5)
    for bad in ("lots", 0, True):
        with pytest.raises(dc.SpecificationError, match="is no size"):
            build(rows, memory=bad)
    monkeypatch.setenv("DYNCHOICE_MEMORY", "200")  # half is for counting, half of that for grids
    a = build(rows)
    assert [g[:2] for g in passes] == [(3, 48), (2, 32)]
    passes.clear()
    same(a, build(rows, memory="1KB"))  # an own number takes the place of the setting
    assert [g[:2] for g in passes] == [(5, 80)]
    monkeypatch.setenv("DYNCHOICE_MEMORY", "plenty")
    with pytest.raises(dc.SpecificationError, match="'plenty' is no size"):
        build(rows)


def unequal(rows):
    """Most rows are of the first members, none of some numbers, few of the last."""
    who, thin = rows["id"] - 100, rows["period"] % 5 == 0
    return rows[(who < 9) | (thin & (who > 16))]


def one_bad(rows):
    return rows.assign(plan=rows["plan"].where(rows.index != 9, "zz"))


@pytest.mark.parametrize(
    ("spoil", "options"),
    [
        (unequal, {"memory": SMALL}),
        (one_bad, {"invalid": "drop"}),
    ],
)
def test_progress_ends_at_the_number_of_rows(spoil, options):
    told, data = [], spoil(some_rows(18))
    build(data, progress=lambda *args: told.append(args), **options)
    done = [d for d, _, _ in told]
    assert all(0 <= d <= total and total == len(data) and text for d, total, text in told)
    assert done[-1] == len(data)
    if "invalid" not in options:  # rows that are refused are read again
        assert done == sorted(done)


# kernels ---------------------------------------------------------------------------------


@pytest.fixture
def rng():
    return np.random.default_rng(19)


WIDTHS = [np.uint16, np.uint32, np.int64]


def random_grid(rng, width, members=40, periods=9, codes=2 * 3 * 2 * 2 * 4):
    """A grid of codes, of which a third is empty, and what marks an empty place."""
    empty = width(np.iinfo(width).max)
    cells = rng.integers(0, codes, (members, periods)).astype(width)
    cells[rng.random(cells.shape) < 0.35] = empty
    cells[:4] = empty  # nobody, and a member with a single row
    cells[3, 5] = 1
    return cells, empty


@pytest.mark.parametrize("width", WIDTHS)
def test_fill_grid(rng, width):
    low, first, empty = -5, 30, width(np.iinfo(width).max)
    member, period = rng.integers(low - 4, low + 16, 400), rng.integers(28, 40, 400)
    code = rng.integers(-1, min(int(empty), 10**11), 400)
    code[code % 7 == 0] = -1
    cells = np.full((12, 8), empty)
    got = count_kernels.fill_grid(member, period, code, low, first, cells, empty)
    want, refused, doubled = {}, 0, 0
    for m, p, c in zip(member.tolist(), period.tolist(), code.tolist(), strict=True):
        if not low <= m < low + 12:
            continue
        if c < 0 or not first <= p < first + 8:
            refused += 1
        elif (m, p) in want:
            doubled += 1
        else:
            want[m, p] = c
    assert got == (len(want), refused, doubled) and min(got) > 10
    twin = np.full((12, 8), empty)
    for (m, p), c in want.items():
        twin[m - low, p - first] = c
    assert cells.dtype == width and (cells == twin).all()
    # what is read later finds these places taken
    again = count_kernels.fill_grid(member, period, code, low, first, cells, empty)
    assert again == (0, refused, doubled + len(want)) and (cells == twin).all()


def test_fill_weights(rng):
    member, low = rng.integers(0, 30, 200), 7
    weight = 0.5 + member
    weight[:40] = 99.0
    own = np.full(15, np.nan)
    uneven = count_kernels.fill_weights(member, weight, low, own)
    first = {}
    for m, w in zip(member.tolist(), weight.tolist(), strict=True):
        first.setdefault(m, w)
    inside = [(first[m], w) for m, w in zip(member, weight, strict=True) if 7 <= m < 22]
    assert uneven == sum(a != b for a, b in inside) > 10
    assert own.tolist() == [first[m] for m in range(7, 22)]
    assert count_kernels.fill_weights(np.arange(7, 22), own.copy(), low, own) == 0
    lone = np.full(3, np.nan)
    assert count_kernels.fill_weights(np.array([1]), np.array([2.0]), 0, lone) == 0
    assert np.isnan(lone[[0, 2]]).all() and lone[1] == 2.0


@pytest.mark.parametrize("width", WIDTHS)
def test_describe_members(rng, width):
    cells, empty = random_grid(rng, width)
    per, segments = 12, 2  # 96 codes: 4 regions x 2 segments x 12
    extra = rng.integers(0, 3, 40)
    total, seen = np.full(9, 100, dtype=np.int64), np.full((2, 3), 50, dtype=np.int64)
    count_kernels.describe_members(cells, empty, per, segments, 0, 8, total, seen, extra)
    on = cells != empty
    rows = on.sum(axis=1)
    here = np.flatnonzero(rows)
    times = [np.flatnonzero(on[m]) for m in here]
    gaps = np.array([(np.diff(t) > 1).sum() for t in times])
    places = [
        np.unique(cells[m, t].astype(np.int64) // per % 2) for m, t in zip(here, times, strict=True)
    ]
    want = [
        len(here), rows.sum(), gaps.sum(), (gaps > 0).sum(), sum(t[0] > 0 for t in times),
        sum(t[-1] < 8 for t in times), sum(t[-1] == 8 for t in times), (rows == 1).sum(),
        sum(len(g) > 1 for g in places),
    ]  # fmt: skip
    assert (total - 100).tolist() == want and min(want) > 0
    twin = np.full((2, 3), 50)
    for m, own in zip(here, places, strict=True):
        twin[own, extra[m]] += 1
    assert (seen == twin).all() and len(here) == 37


@pytest.mark.parametrize("by_region", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_member_keys(rng, width, by_region):
    G, S, J, W, regions = 2, 3, 2, 4, 4 if by_region else 1
    cells, empty = random_grid(rng, width, codes=regions * G * S * J * 2)
    extra, some = rng.integers(0, W, 40), rng.permutation(40)[:25]
    out = np.full((3, 25 * 9), -7, dtype=np.int64)
    made = count_kernels.member_keys(cells, empty, some, extra, (G, S, J, W), by_region, *out)
    want = []
    for m in some:
        for t in np.flatnonzero(cells[m] != empty):
            r, g, s, j, d = np.unravel_index(int(cells[m, t]), (regions, G, S, J, 2))
            ahead = -1
            if t + 1 < 9 and cells[m, t + 1] != empty:
                ahead = np.unravel_index(int(cells[m, t + 1]), (regions, G, S, J, 2))[2]
            w = extra[m]
            want.append(
                [
                    np.ravel_multi_index((g, s, j, d, ahead + 1, w), (G, S, J, 2, S + 1, W)),
                    np.ravel_multi_index((g, t, s, j, d, w), (G, 9, S, J, 2, W)),
                    np.ravel_multi_index(
                        (r, g, t, s, j, d, ahead + 1, w), (regions, G, 9, S, J, 2, S + 1, W)
                    ),
                ]
            )
    kept = 3 if by_region else 2
    got = out[:kept, :made].T.tolist()
    assert made == len(want) == (cells[some] != empty).sum() > 100
    assert sorted(got) == sorted([int(x) for x in row[:kept]] for row in want)
    assert (out[:, made:] == -7).all() and (out[kept:] == -7).all()


def counted(table, found):
    """What a table of counts holds; its keys are distinct."""
    own = table >= 0
    assert len(set(table[own].tolist())) == own.sum() and (found[~own] == 0).all()
    return Counter(dict(zip(table[own].tolist(), found[own].tolist(), strict=True)))


def test_count_keys(rng):
    keys = rng.choice(np.r_[0, 2**62 - 1, rng.integers(0, 2**62, 90), np.arange(64) << 32], 5000)
    table, found = np.full(512, -1, dtype=np.int64), np.zeros(512, dtype=np.int64)
    done, taken = count_kernels.count_keys(keys, 1000, table, found)
    want = Counter(keys[1000:].tolist())
    assert (done, taken) == (5000, len(want)) and counted(table, found) == want
    done, taken = count_kernels.count_keys(keys[:1000], 0, table, found)
    assert done == 1000 and counted(table, found) == Counter(keys.tolist())
    assert count_kernels.count_keys(keys[:0], 0, table, found) == (0, taken)


def test_count_keys_stops_where_half_a_table_is_taken():
    keys = np.array([3, 3, 4, 5, 3, 6, 7, 8, 3, 9])
    table, found = np.full(8, -1, dtype=np.int64), np.zeros(8, dtype=np.int64)
    done, taken = count_kernels.count_keys(keys, 0, table, found)
    # 3, 4, 5, 6 take half of 8 places and 7 more than that: 8 is left to a larger table
    assert (done, taken) == (7, 5) and counted(table, found) == Counter(keys[:7].tolist())
    assert count_kernels.count_keys(keys, done, table, found) == (7, 5)
    assert counted(table, found).total() == 7


def test_regrow(rng):
    keys = np.unique(np.r_[0, 2**62 - 1, rng.integers(0, 2**62, 60)])[:60]
    rows = rng.permutation(np.repeat(keys, rng.integers(1, 9, 60)))
    table, found = np.full(128, -1, dtype=np.int64), np.zeros(128, dtype=np.int64)
    assert count_kernels.count_keys(rows, 0, table, found) == (len(rows), 60)
    larger, counts = np.full(512, -1, dtype=np.int64), np.zeros(512, dtype=np.int64)
    count_kernels.regrow(table, found, larger, counts)
    assert counted(larger, counts) == counted(table, found) == Counter(rows.tolist())
    # the keys are where they are looked for
    assert count_kernels.count_keys(rows, 0, larger, counts) == (len(rows), 60)
    assert counted(larger, counts) == Counter([*rows.tolist()] * 2)


def test_a_table_grows_as_often_as_it_must(rng, monkeypatch):
    monkeypatch.setattr(grid, "FIRST_TABLE", 4)
    table, keys = grid.Table(), rng.integers(0, 3000, 20_000)
    for part in np.array_split(keys, 7):
        table.add(part)
    got = table.taken()
    assert len(table.keys) == 4**7
    for a, b in zip(got, np.unique(keys, return_counts=True), strict=True):
        assert (a == b).all()


def test_every_count_kernel_is_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    names = [k for k, f in vars(count_kernels).items() if hasattr(f, "py_func")]
    lost = [name for name in names if f"= count_kernels.{name}(" not in text]
    lost = [name for name in lost if f"    count_kernels.{name}(" not in text]
    assert len(names) >= 6 and not lost, lost
