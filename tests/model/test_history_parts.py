"""Plan histories longer than memory, against the same read at once."""

import gc
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from histories import CLUBS, COLUMNS, cells, histories, used, with_use

import dynchoice as dc
from dynchoice.model import history_parts

SMALL = {"member_limit": 10, "memory": "60KB"}
"""Some fifty rows a part."""


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
    assert len(parts) > 10 and len(folders()) == 1
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


def test_warnings_tell_of_all_parts_at_once(folders):
    club = with_use(CLUBS["months and years"])
    frame = used(histories(club, "new", seed=3, members=40), 1)
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
    frame = used(histories(club, "new", seed=3, members=40), 1).drop(columns=["level", "t"])
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
    frame = used(histories(club, "new", seed=3, members=40), 1).drop(columns=["level", "t"])
    path = tmp_path / "history.parquet"
    change(frame.reset_index(drop=True)).to_parquet(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        with pytest.raises(error, match=message):
            club.panel(path, **COLUMNS, **SMALL)
    assert not folders()


def test_nobody_known(folders, tmp_path):
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=40), 1).drop(columns=["level", "t"])
    path = tmp_path / "history.parquet"
    frame.assign(plan=frame["plan"].max()).to_parquet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        with pytest.raises(dc.DataError, match="no row is left"):
            club.panel(path, **COLUMNS, entry="unknown", **SMALL)
    assert not folders()


def test_parts_are_as_large_as_memory_allows(monkeypatch, tmp_path):
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=40), 1).drop(columns=["level", "t"])
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
    monkeypatch.setattr(history_parts, "PART_ROWS", 100)
    assert parts("2GB") == -(-len(frame) // 100)


def test_columns_of_other_names(folders, tmp_path):
    """Use under another name, integers by segment, a warehouse table of ibis."""
    import ibis

    club = with_use(CLUBS["months and years"])
    frame = used(histories(club, "new", seed=8, members=30), 4).drop(columns=["level", "t"])
    renamed = frame.rename(columns={"video": "hours"}).assign(kind=1)
    con = ibis.duckdb.connect()
    table = con.create_table("history", renamed.reset_index(drop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        panel = club.panel(table, **COLUMNS, engagement={"video": "hours"}, segment="kind", **SMALL)
        whole = club.panel(frame, **COLUMNS)
    assert cells(panel) == cells(whole) and panel.segments == ("1",)
    assert Path(folders()[0]).exists()
