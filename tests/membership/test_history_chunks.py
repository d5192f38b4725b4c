"""Plan histories longer than memory, against the same read at once."""

import copy
import gc
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from histories import CLUBS, COLUMNS, cells, histories, used, with_use

import dynchoice as dc
from dynchoice.membership import history_chunks as history_parts

SMALL = {"member_limit": 10, "memory": "200KB"}
"""Some 160 rows a part."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(history_parts, "LEAST_ROWS", 1)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where temporary folders go in this test."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return lambda: list(place.glob("dynchoice-history-*"))


@pytest.fixture
def long():
    """A club with prices and bundles, and a history of it with everything at once."""
    club = replace(
        with_use(CLUBS["months and years"]),
        menus={"old": {}, "new": {"annual": 139}},
        bundles={"all": {}, "less": {"video": 0.5}},
    )
    frame = used(histories(club, "new", seed=5, members=60, kind="text"), 3)
    number = frame["who"].str[1:].astype(int)
    frame["place"] = np.where(number % 2 == 0, "east", "west")
    frame["group"] = np.where(number % 3 == 0, "heavy", "light")
    frame["worth"] = 1.0 + number % 4
    frame["counts"] = (number % 5 > 0).astype(int)
    frame["bundle"] = np.where(frame["when"] < "2021", "all", "less")
    return club, frame.drop(columns=["level", "t"])


def options(lag):
    offers = pd.DataFrame({"from": ["2020-01", "2021-03"], "prices": ["old", "new"]})
    return {
        **COLUMNS, "lag": lag, "offers": offers, "region": "place", "segment": "group",
        "weights": "worth", "decision": "counts",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("how", ["parquet", "csv", "arrow", "files"])
def test_parts_are_counted_as_the_whole_is(long, how, lag, tmp_path, folders):
    club, frame = long
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        whole = club.panel(frame, **options(lag))
    data = tmp_path / f"history.{how}"
    if how == "csv":
        frame.to_csv(data, index=False)
    elif how == "parquet":
        frame.to_parquet(data, index=False)
    elif how == "files":
        data.mkdir()
        for i in range(3):
            frame[i::3].to_parquet(data / f"{i}.parquet", index=False)
    else:
        import pyarrow as pa

        data = pa.Table.from_pandas(frame, preserve_index=False)
    done = []
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        panel = club.panel(data, **options(lag), **SMALL, progress=lambda *a: done.append(a))
    parts = [m for *_, m in done if m.startswith("plan histories, part")]
    assert len(parts) > 3 and len(folders()) == 1
    assert panel.report.table.equals(whole.report.table)
    for name in ("n", "cells", "period_n", "period_cells", "segment_members"):
        np.testing.assert_array_equal(getattr(panel.counts, name), getattr(whole.counts, name))
    np.testing.assert_array_equal(panel.counts.regions.cells, whole.counts.regions.cells)
    kept = [str(w.message) for w in said if w.category is dc.DataWarning]
    assert sorted(kept) == sorted(str(w.message) for w in again if w.category is dc.DataWarning)
    rows = [(a, b) for a, b, m in done if m.startswith("plan histories")]
    assert rows[-1] == (len(frame), len(frame)) and rows == sorted(rows)
    # the files go when the panel goes, and not before
    state, choice = np.argwhere(panel.counts.n_sj() > 0)[0]
    assert panel.first_rows(state, choice)
    del panel
    gc.collect()
    assert not folders()


@pytest.mark.filterwarnings("ignore:.*a history of plans does not show")
def test_warnings_tell_of_all_parts_at_once(folders):
    club = with_use(CLUBS["months and years"])
    frame = used(histories(club, "new", seed=3, members=40, months=24), 1)
    missing = int(frame["level"].isna().sum())
    assert missing
    data = frame.drop(columns=["level", "t"])
    import pyarrow as pa

    with pytest.warns(dc.DataWarning, match=f"{missing:,} of {len(frame):,}") as said:
        panel = club.panel(pa.Table.from_pandas(data, preserve_index=False), **COLUMNS, **SMALL)
    assert sum("left out" in str(w.message) for w in said) == 1
    assert cells(panel) == cells(dc_quiet(club, data))


def dc_quiet(club, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        return club.panel(data, **COLUMNS)


def test_a_part_without_any_value_has_the_types_of_the_others(folders, tmp_path):
    """Levels missing in a whole part, with rows dropped: nulls have no type of their own."""
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=40, months=24), 1).drop(
        columns=["level", "t"]
    )
    frame["video"] = frame["video"].astype(float)
    frame.loc[frame["who"] < "m020", "video"] = np.nan
    path = tmp_path / "history.parquet"
    frame.to_parquet(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        whole = club.panel(path, **COLUMNS, invalid="drop")
        parts = club.panel(path, **COLUMNS, invalid="drop", **SMALL)
    assert cells(parts) == cells(whole)
    assert parts.report.table.equals(whole.report.table)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.assign(plan=f["plan"].where(f.index != 77, "yearly")), dc.DataError,
         r"1 row\(s\) of 'plan' hold no plan.*'?yearly.*\(in part \d+ of \d+ of the members"),
        (lambda f: f.assign(who=f["who"].where(f.index != 77)), dc.DataError, "who|member"),
        (lambda f: f.drop(columns="video"), dc.ColumnError, "no column 'video'"),
        (lambda f: pd.concat([f, f[77:78]]), dc.DataError, "repeat a member and period"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_part_is_named_and_nothing_is_left_behind(
    change, error, message, folders, tmp_path
):
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=40, months=24), 1).drop(
        columns=["level", "t"]
    )
    path = tmp_path / "history.parquet"
    change(frame.reset_index(drop=True)).to_parquet(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        with pytest.raises(error, match=message):
            club.panel(path, **COLUMNS, **SMALL)
    assert not folders()


def test_nobody_known(folders, tmp_path):
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=40, months=24), 1).drop(
        columns=["level", "t"]
    )
    path = tmp_path / "history.parquet"
    frame.assign(plan=frame["plan"].max()).to_parquet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        with pytest.raises(dc.DataError, match="no row is left"):
            club.panel(path, **COLUMNS, entry="unknown", **SMALL)
    assert not folders()


def test_parts_are_as_large_as_memory_allows(monkeypatch, tmp_path):
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=40, months=24), 1).drop(
        columns=["level", "t"]
    )
    path = tmp_path / "history.parquet"
    frame.to_parquet(path, index=False)

    def parts(memory):
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dc.DataWarning)
            club.panel(path, **COLUMNS, member_limit=10, memory=memory,
                       progress=lambda *a: seen.append(a[2]))  # fmt: skip
        return sum(m.startswith("plan histories, part") for m in seen)

    few = -(-len(frame) * 2 * history_parts.ROW_BYTES // 10**6)
    assert parts("1MB") == few < parts("100KB") and parts("2GB") == 1
    monkeypatch.setattr(history_parts, "MOST_ROWS", 100)
    assert parts("2GB") == -(-len(frame) // 100)


def test_columns_of_other_names(folders, tmp_path):
    """Use under another name, integers by segment, a warehouse table of ibis."""
    import ibis

    club = with_use(CLUBS["months and years"])
    frame = used(histories(club, "new", seed=8, members=30, months=24), 4).drop(
        columns=["level", "t"]
    )
    renamed = frame.rename(columns={"video": "hours"}).assign(kind=1)
    con = ibis.duckdb.connect()
    table = con.create_table("history", renamed.reset_index(drop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        panel = club.panel(table, **COLUMNS, engagement={"video": "hours"}, segment="kind", **SMALL)
        whole = club.panel(frame, **COLUMNS)
    assert cells(panel) == cells(whole) and panel.segments == ("1",)
    assert Path(folders()[0]).exists()


@pytest.fixture
def club():
    return with_use(CLUBS["months and years"])


@pytest.fixture
def plain(club):
    return used(histories(club, "new", seed=3, members=24, months=24), 1).drop(
        columns=["level", "t"]
    )


def both(club, frame, tmp_path, **options):
    """The panel read at once and the one read in parts."""
    path = tmp_path / "both.parquet"
    frame.to_parquet(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        return club.panel(frame, **COLUMNS, **options), club.panel(
            path, **COLUMNS, **options, **SMALL
        )


def alike(whole, parts):
    assert parts.report.table.equals(whole.report.table)
    assert cells(parts) == cells(whole) and parts.segments == whole.segments


@pytest.mark.slow
@pytest.mark.parametrize("lag", [False, True])
def test_numbers_are_months_or_not_for_all_members_alike(club, lag, tmp_path):
    """Weeks as YYYYWW: only one member has weeks that are no months."""
    year = [202000 + w for w in range(1, 53)]
    some = [202009, 202010, 202011, 202012, 202101, 202102]
    rows = [("all", w) for w in year] + [(f"m{i}", w) for i in range(40) for w in some]
    frame = pd.DataFrame(rows, columns=["who", "when"]).assign(plan="none", video=0, food=1)
    whole, parts = both(club, frame, tmp_path, lag=lag, freq="integer")
    alike(whole, parts)
    assert whole.report["gaps"] == 40  # 202101 is no neighbour of 202012
    months = frame[frame["who"] != "all"]
    alike(*both(club, months, tmp_path, lag=lag, freq="month"))
    with pytest.raises(dc.DataError, match="looks like YYYYMM"):
        both(club, months, tmp_path)
    offers = pd.DataFrame({"from": [202000, 202100], "prices": ["old", "new"]})
    menus = replace(club, menus={"old": {}, "new": {"annual": 139}})
    alike(*both(menus, frame, tmp_path, lag=lag, freq="integer", offers=offers))


def test_files_live_as_long_as_anything_reads_them(club, plain, folders, tmp_path):
    _, parts = both(club, plain, tmp_path)
    other, rows = copy.copy(parts), parts.rows
    state, choice = np.argwhere(parts.counts.n_sj() > 0)[0]
    want = parts.first_rows(state, choice)
    del parts
    gc.collect()
    assert other.first_rows(state, choice) == want
    del other
    gc.collect()
    assert rows.count().execute() > 0 and folders()
    del rows
    gc.collect()
    assert not folders()


def test_a_forked_process_that_ends_leaves_the_files(tmp_path):
    code = (
        "import os, sys, warnings; warnings.simplefilter('ignore');"
        "import pandas as pd, dynchoice as dc;"
        "from dynchoice.membership import history_chunks as h;"
        "h.LEAST_ROWS = 1; club = dc.Membership([dc.Plan('monthly', 15)]);"
        "f = pd.DataFrame({'who': [i // 5 for i in range(500)], 'plan': 'none',"
        " 'when': [i % 5 for i in range(500)]});"
        "path = sys.argv[1] + '/f.parquet'; f.to_parquet(path);"
        "p = club.panel(path, member='who', time='when', plan='plan', member_limit=9,"
        " memory='60KB'); child = os.fork()\n"
        "if not child: sys.exit(0)\n"
        "os.waitpid(child, 0); print(p.first_rows(0, 0))"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "member 0 at 0" in done.stdout, done.stderr
    assert not list(tmp_path.glob("dynchoice-history-*"))


def test_ids_that_end_alike_are_spread(club, plain, tmp_path):
    frame = plain.assign(who=plain["who"] + "@example.com")
    path = tmp_path / "alike.parquet"
    frame.to_parquet(path, index=False)
    import ibis

    table = ibis.duckdb.connect().read_parquet(path)
    part = history_parts.member_parts(table, "who", 5)
    sizes = table.mutate(part=part).group_by("part").agg(n=lambda t: t.who.nunique()).execute()
    assert sizes["part"].between(0, 4).all() and len(sizes) == 5 and sizes["n"].max() < 20
    alike(*both(club, frame, tmp_path))


def test_a_column_of_two_uses(club, plain, tmp_path):
    text = plain.assign(video=plain["video"].astype(str))
    alike(*both(club, text, tmp_path, segment="video"))
    alike(*both(club, plain.assign(video=plain["video"] * 1.0), tmp_path, segment="video"))
    alike(*both(club, plain, tmp_path, engagement={"food": "video"}))


def test_ids_of_128_bits(club, plain, tmp_path):
    import ibis

    con = ibis.duckdb.connect()
    con.create_table("plain", plain.reset_index(drop=True))
    con.raw_sql("CREATE TABLE ids AS SELECT * REPLACE (md5(who)::UUID AS who) FROM plain")
    table = con.table("ids")
    assert table.who.type().is_uuid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        parts = club.panel(table, **COLUMNS, **SMALL)
        short = club.panel(table, **COLUMNS)
        whole = club.panel(plain, **COLUMNS)
    assert cells(parts) == cells(short) == cells(whole)


def test_labels_of_several_types_in_a_schedule(club, plain, tmp_path):
    menus = replace(club, menus={"1": {}, "2": {"annual": 139}})
    offers = pd.DataFrame({"from": [0, 9], "prices": [1, "2"]})
    path = tmp_path / "plain.parquet"
    plain.to_parquet(path, index=False)
    with pytest.raises(dc.DataError, match="mixes types"):
        menus.panel(path, **COLUMNS, offers=offers, **SMALL)


def test_no_room_for_the_files(club, plain, folders, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    path = tmp_path / "plain.parquet"
    plain.to_parquet(path, index=False)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m, warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        m.setattr(pq, "write_table", full)
        with pytest.raises(dc.DataError, match=r"No space left.*rows needs room.*TMPDIR"):
            club.panel(path, **COLUMNS, **SMALL)
    assert not folders()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(dc.DataError, match="TMPDIR"):
        club.panel(path, **COLUMNS, **SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"invalid": "dorp"}, "invalid='dorp'"), ({"buckets": 1}, "buckets=1"),
     ({"freq": "mnth"}, "freq='mnth'"), ({"memory": "lots"}, "memory='lots'")],
)  # fmt: skip
def test_options_are_checked_before_anything_is_read(club, plain, tmp_path, wrong, message):
    path = tmp_path / "plain.parquet"
    plain.to_parquet(path, index=False)
    seen = []
    with pytest.raises(dc.SpecificationError, match=message):
        club.panel(path, **COLUMNS, **{**SMALL, **wrong}, progress=lambda *a: seen.append(a))
    assert not seen


def test_parts_are_not_made_too_small(club, plain, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert history_parts.LEAST_ROWS >= 10_000
    path = tmp_path / "plain.parquet"
    plain.to_parquet(path, index=False)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        club.panel(
            path, **COLUMNS, member_limit=10, memory="100KB", progress=lambda *a: seen.append(a)
        )
    assert sum("part" in m for *_, m in seen) == 1


@pytest.mark.parametrize("null", [None, float("nan"), pd.NA])
def test_a_month_outside_may_have_no_plan(club, plain, tmp_path, null):
    empty = plain.assign(plan=plain["plan"].where(plain["plan"] != "none", None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        want = club.panel(plain, **COLUMNS)
    for panel in both(club, empty, tmp_path, none=null):
        alike(want, panel)


def test_contract_levels_may_be_categories(tmp_path):
    club = with_use(CLUBS["months and years"])
    frame = used(histories(club, "new", seed=3, members=40, months=24), 1).drop(columns=["t"])
    frame["level"] = frame["level"].astype("category")
    alike(*both(club, frame, tmp_path, contract="level", entry="unknown"))


@pytest.mark.filterwarnings("ignore:.*row.s. are left out")
def test_what_was_found_before_an_error_is_told(club, plain, tmp_path):
    wrong = plain.assign(video=plain["video"] + 0.5)
    path = tmp_path / "wrong.parquet"
    wrong.to_parquet(path, index=False)
    for data, options in ((wrong, {}), (path, SMALL)):
        with (
            pytest.warns(dc.DataWarning, match="former member"),
            pytest.raises(dc.DataError, match="no level of use"),
        ):
            club.panel(data, **COLUMNS, **options)
