"""Rows whose states are numbers: order, what follows what, files, refusals."""

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.panel.trajectories import BLOCK


def rows_of(seed=0, members=40, periods=9):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(members), periods) * 7 - 100,
            "month": np.tile(np.arange(periods), members),
            "spend": rng.normal(size=members * periods),
            "video": rng.integers(0, 2, members * periods).astype(bool),
            "plan": rng.choice(["none", "monthly"], members * periods),
        }
    )
    return frame.sample(frac=0.9, random_state=seed)  # gaps, and no order


def loaded(data, **options):
    own = {"member": "id", "time": "month", "choice": "plan", "features": ["spend", "video"],
           "choices": ["none", "monthly"]}  # fmt: skip
    return dc.Trajectories(data, **{**own, **options})


def test_rows_are_those_of_the_frame_in_order_and_gaps_break():
    frame = rows_of()
    rows = loaded(frame)
    ordered = frame.sort_values(["id", "month"]).reset_index(drop=True)
    assert (rows.x == ordered[["spend", "video"]].to_numpy(float)).all()
    assert (rows.choice == (ordered["plan"] == "monthly")).all()
    for i in range(len(ordered)):
        here = ordered.iloc[i]
        after = ordered[(ordered["id"] == here["id"]) & (ordered["month"] == here["month"] + 1)]
        assert rows.next[i] == (after.index[0] if len(after) else -1)
    assert rows.nmembers == frame["id"].nunique() and rows.nobs == len(frame)


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow", "ibis"])
def test_any_source_gives_the_same_rows(kind, tmp_path):
    frame = rows_of(1)
    source = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        frame.to_parquet(source, index=False)
    elif kind == "csv":
        frame.to_csv(source, index=False)
    elif kind == "arrow":
        import pyarrow as pa

        source = pa.Table.from_pandas(frame, preserve_index=False)
    else:
        import ibis

        con = ibis.sqlite.connect(tmp_path / "rows.db")
        source = con.create_table("rows", frame.reset_index(drop=True))
    assert loaded(source).digest == loaded(frame).digest


def test_a_long_table_is_kept_in_a_file_that_goes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    frame = rows_of(2, members=300)
    rows = loaded(frame, memory=1000)
    kept = list(tmp_path.glob("dynchoice-trajectories-*"))
    assert isinstance(rows.x, np.memmap) and len(kept) == 1
    assert rows.digest == loaded(frame).digest
    del rows
    assert not list(tmp_path.glob("dynchoice-trajectories-*"))


def test_blocks_put_together_are_the_rows():
    rows = loaded(rows_of(3, members=200))
    x = np.concatenate([b.x for b in rows.blocks(size=101)])
    assert (x == rows.x).all() and BLOCK > 101
    for b in rows.blocks(size=101):
        following = rows.next[b.rows][b.moved]
        assert (following >= 0).all() and (b.x_next == rows.x[following]).all()
    some = np.array([3, 5, 900])
    own = next(iter(rows.blocks(some)))
    assert (own.x == rows.x[some]).all() and (own.choice == rows.choice[some]).all()


def test_a_terminal_row_has_no_next():
    frame = pd.DataFrame({"id": [1, 1, 2], "month": [0, 1, 0], "spend": [1.0, 2, 3],
                          "plan": ["none", "monthly", "none"], "end": [1, 0, 0]})  # fmt: skip
    rows = loaded(frame, features=["spend"], terminal="end")
    assert rows.next.tolist() == [-1, -1, -1] and rows.ended.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"features": ["spnd"]}, "spnd"),
        ({}, {"features": "spend"}, "list of columns"),
        ({}, {"features": []}, "distinct columns"),
        ({}, {"features": ["plan"]}, "make it a number"),
        ({}, {"choices": ["none"]}, "two choices"),
        ({}, {"choices": ["none", "monthly", "annual"]}, "nobody ever chooses 'annual'"),
        ({}, {"choices": ["none", "monthli"]}, "missing or unknown"),
        ({"spend": np.nan}, {}, "missing or infinite in 324 of 324"),
        ({"spend": np.inf}, {}, "infinite"),
        ({"month": 3}, {}, "repeat a member and period"),
        ({"month": None}, {}, "month|time"),
        ({"w": -1.0}, {"weights": "w"}, "not\\s+positive"),
        ({"w": 2}, {"terminal": "w"}, "terminal|missing or unknown"),
    ],
)
def test_bad_rows_are_refused_by_name(change, options, message):
    frame = rows_of().assign(**change)
    with pytest.raises(dc.DynChoiceError, match=message):
        loaded(frame, **options)
