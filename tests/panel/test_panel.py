import datetime as dt

import builders
import numpy as np
import oracles
import pandas as pd
import pyarrow as pa
import pytest
from plain_choices import CHOICES

import dynchoice as dc

STATES = dc.StateSpace(x=range(2))


def build(data, **options):
    settings = {"member": "id", "time": "t", "choice": "plan", "states": STATES}
    return dc.Panel(data, **{**settings, "choices": ["out", "in"], **options})


def test_report_of_entry_exit_gaps_and_censoring(people):
    panel = build(people)
    report = panel.report
    assert report["rows"] == 9 and report["members"] == 3 and report["periods"] == 4
    assert report["entry after the first period"] == 1  # eve
    assert report["exit before the last period"] == 1  # eve
    assert report["right-censored"] == 2
    assert report["gaps"] == 1
    assert "breaks in 1 members' spells, not bridged" in str(report)
    assert "9 rows, 3 members, 0 to 3" in repr(panel)
    assert "<table" in report._repr_html_()
    with pytest.raises(KeyError, match="gaps"):
        report["gap"]


def test_counts_by_hand(people):
    counts = build(people).counts
    n = counts.n_sj()
    assert n.tolist() == [[3.0, 2.0], [1.0, 3.0]]
    moves, number = counts.moves()
    seen = {tuple(m): k for m, k in zip(moves.tolist(), number.tolist(), strict=True)}
    assert seen == {(0, 0, 0): 2, (0, 1, 1): 2, (1, 1, 1): 1}
    # last period: ann chose out in 1, bob chose in in 1
    assert counts.at_period()[0].tolist() == [[0, 0], [1, 1]]
    assert counts.members.size == 3


@pytest.mark.parametrize("kind", ["frame", "arrow", "parquet", "csv", "glob", "list", "ibis"])
def test_every_kind_of_input_counts_the_same(people, tmp_path, kind):
    want = build(people).counts.digest
    half = [people.iloc[:4], people.iloc[4:]]
    for i, part in enumerate(half):
        part.to_parquet(tmp_path / f"part-{i}.parquet")
    people.to_csv(tmp_path / "all.csv", index=False)
    if kind == "ibis":
        import ibis

        data = ibis.memtable(people)
    else:
        data = {
            "frame": people,
            "arrow": pa.Table.from_pandas(people),
            "parquet": tmp_path,
            "csv": tmp_path / "all.csv",
            "glob": str(tmp_path / "part-*.parquet"),
            "list": [tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"],
        }[kind]
    assert build(data).counts.digest == want


@pytest.mark.parametrize(
    ("times", "freq", "first"),
    [
        (["2020-11", "2020-12", "2021-01", "2021-02"], None, "2020-11"),
        ([202011, 202012, 202101, 202102], "month", "2020-11"),
        ([dt.date(2020, 11, 5), dt.date(2020, 12, 1), dt.date(2021, 1, 31), dt.date(2021, 2, 1)],
         None, "2020-11"),
        (list(pd.date_range("2020-11-01", periods=4, freq="MS")), None, "2020-11"),
        (list(pd.period_range("2020-11", periods=4, freq="M")), None, "2020-11"),
        ([dt.date(2020, 2, 1), dt.date(2020, 5, 1), dt.date(2020, 8, 1), dt.date(2020, 11, 1)],
         "quarter", "2020-Q1"),
        (["2018-01", "2019-06", "2020-01", "2021-12"], "year", "2018"),
        ([3.0, 4.0, 5.0, 6.0], None, "3"),
    ],
)  # fmt: skip
def test_kinds_of_time(times, freq, first):
    frame = pd.DataFrame({"id": 1, "t": times, "x": [0, 1, 0, 1], "plan": "in"})
    panel = build(frame, freq=freq)
    assert panel.report["gaps"] == 0 and panel.report["periods"] == 4
    assert panel.counts.period_label(panel.counts.first_period) == first


def test_integers_that_look_like_yyyymm_need_a_word():
    frame = pd.DataFrame({"id": 1, "t": [202012, 202101], "x": [0, 1], "plan": "in"})
    with pytest.raises(dc.DataError, match=r"looks like YYYYMM.*freq='month'"):
        build(frame)
    with pytest.warns(dc.DataWarning, match="two consecutive periods"):
        assert build(frame, freq="integer").report["gaps"] == 1


def test_string_members_spread_over_buckets_and_codes_are_kept():
    ids = [f"m-{i:05d}" for i in range(2000)]
    frame = pd.DataFrame({"id": ids, "t": 0, "x": 0, "plan": "in"})
    counts = build(frame, buckets=50).counts
    sizes = np.bincount(counts.cells[:, 1], weights=counts.n, minlength=50)
    assert sizes.min() > 10 and sizes.max() < 100


def test_levels_may_be_texts_floats_booleans_and_steps(tmp_path):
    frame = pd.DataFrame(
        {
            "id": [1, 1, 2],
            "t": [0, 1, 0],
            "a": ["lo", "hi", "lo"],
            "b": [0.5, 1.5, 0.5],
            "c": [True, False, True],
            "d": [10, 30, 20],
            "plan": ["in", "out", "in"],
        }
    )
    frame["a"] = frame["a"].astype("category")
    states = dc.StateSpace(a=["lo", "hi"], b=[0.5, 1.5], c=[False, True], d=[10, 20, 30])
    counts = build(frame, states=states).counts
    codes = states.codes(frame)
    assert sorted(counts.cells[:, 2].tolist()) == sorted(codes.tolist())


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"member": "idd"}, dc.ColumnError, r"column 'idd' is missing.*Did you mean 'id'"),
        ({}, {"columns": {"x": "xx"}}, dc.ColumnError, "column 'xx' is missing"),
        ({}, {"columns": {"y": "x"}}, dc.SpecificationError, "axis 'y' is unknown"),
        ({"plan": "inn"}, {}, dc.DataError,
         r"unknown choice in 'plan': 1 row.*member ann at 1 \('inn'\).*Did you mean 'in'"),
        ({"x": 7}, {}, dc.DataError, r"unknown level in 'x' \(state axis x\): 1 row"),
        ({"x": None}, {}, dc.DataError, r"missing 'x' \(state axis x\): 1 row"),
        ({"plan": None}, {}, dc.DataError, r"missing 'plan' \(choice\): 1 row"),
        ({"id": None}, {}, dc.DataError, r"missing 'id' \(member\): 1 row"),
        ({"t": None}, {}, dc.DataError, r"missing or unreadable 't' \(time\): 1 row"),
        ({}, {"freq": "weekly"}, dc.SpecificationError, "freq='weekly' is unknown"),
        ({}, {"invalid": "ignore"}, dc.SpecificationError, "Use 'raise' or 'drop'"),
        ({}, {"buckets": 1}, dc.SpecificationError, "at least 2"),
        ({}, {"choices": ["in", "in"]}, dc.SpecificationError, "choices: labels repeat"),
    ],
)  # fmt: skip
def test_bad_rows_and_options(people, change, options, error, message):
    frame = people.copy()
    row = frame[(frame["id"] == "ann") & (frame["t"] == 1)].index[0]
    for column, value in change.items():
        if value is None and column in ("t", "x"):
            frame[column] = frame[column].astype("float64")
        frame.loc[row, column] = value
    with pytest.raises(error, match=message):
        build(frame, **options)


def test_every_rule_is_counted_at_once_and_drop_reports_and_breaks_spells(people):
    frame = people.sort_values(["id", "t"]).reset_index(drop=True)
    frame["x"] = frame["x"].astype("float64")
    frame.loc[1, "plan"] = "inn"
    frame.loc[5, "x"] = np.nan
    with pytest.raises(dc.DataError, match=r"(?s)2 value\(s\) in 9 rows.*unknown choice.*missing"):
        build(frame)
    panel = build(frame, invalid="drop")
    assert panel.report["rows"] == 7
    assert panel.report["rows refused"] == 2
    assert panel.report["gaps"] == 2  # ann 0 -> 2 and bob 0 -> 3
    assert panel.report["refused: unknown choice in 'plan'"] == 1
    assert panel.counts.moves()[1].sum() == 2


def test_weights_must_be_positive_and_constant(people):
    frame = people.assign(w=1.0)
    assert build(frame.assign(w=2.0), weights="w").counts.nobs == 18
    frame.loc[0, "w"] = -1
    with pytest.raises(dc.DataError, match="weight not positive in 'w': 1 row"):
        build(frame, weights="w")
    frame.loc[0, "w"] = 3
    with pytest.raises(dc.DataError, match=r"weight of 1 member\(s\) changes over time"):
        build(frame, weights="w")
    frame.loc[0, "w"] = np.nan
    with pytest.raises(dc.DataError, match="weight not positive"):
        build(frame, weights="w")


def test_decision_rows_inform_transitions_only(people):
    counts = build(people.assign(d=(people["t"] > 0).astype(int)), decision="d").counts
    assert counts.nobs == 7
    assert counts.moves()[1].sum() == 5
    with pytest.raises(dc.DataError, match=r"not 0 or 1 in 'd' \(decision\)"):
        build(people.assign(d=2), decision="d")


def test_segments_split_the_counts(people):
    frame = people.assign(seg=np.where(people["id"] == "eve", "b", "a"))
    panel = build(frame, segment="seg")
    assert panel.segments == ("a", "b")
    one, two = (panel.counts.segment(s) for s in panel.segments)
    assert (one.nobs, two.nobs) == (7, 2) and (one.nmembers, two.nmembers) == (2, 1)
    assert one.members.size == 2
    assert (one + two).digest == panel.counts.digest
    with pytest.raises(dc.SpecificationError, match="segment 'c' is unknown"):
        panel.counts.segment("c")


@pytest.mark.parametrize("data", [3, {"id": [1]}, None])
def test_other_data_is_refused(data):
    with pytest.raises(dc.DataError, match="pass a pandas frame"):
        build(data)


def test_missing_files_empty_and_mixed_tables(tmp_path, people):
    with pytest.raises(dc.DataError, match=r"no such file.*nothing\.parquet"):
        build(tmp_path / "nothing.parquet")
    with pytest.raises(dc.DataError, match="no rows"):
        build(people.iloc[:0])
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(dc.DataError, match="cannot read"):
        build(tmp_path / "broken.parquet")
    mixed = people.assign(x=people["x"].astype(object))
    mixed.loc[0, "x"] = "one"
    with pytest.raises(dc.DataError, match="mixes types"):
        build(mixed)
    with pytest.raises(dc.SpecificationError, match="make both text or both numbers"):
        build(people.assign(x=people["x"].astype(str)))


@pytest.mark.parametrize(
    "dialect", ["duckdb", "bigquery", "snowflake", "trino", "athena", "postgres", "databricks"]
)
def test_the_counting_query_compiles_for_other_engines(people, dialect):
    sql = build(people).sql(dialect)
    assert "LEAD" in sql.upper() and "GROUP BY" in sql.upper()


def test_above_the_member_limit_clusters_are_buckets(membership):
    import builders

    small = builders.membership_panel(membership, membership.frame)
    large = builders.membership_panel(membership, membership.frame, member_limit=10)
    assert large.counts.members is None
    a, b = (dc.NFXP(membership.unknown, p).fit() for p in (small, large))
    assert (a.params == b.params).all()
    assert b.cov_config["by"] == "bucket of members" and b.cov_config["clusters"] == 200
    ratio = b.std_errors / a.std_errors
    assert ratio.between(0.8, 1.25).all()


def test_previous_does_not_bridge_gaps():
    df = pd.DataFrame(
        {
            "id": [2, 1, 1, 1, 2],
            "t": ["2023-01", "2023-04", "2022-12", "2023-01", "2023-02"],
            "plan": ["a", "b", "c", "d", "e"],
        },
        index=[9, 8, 7, 6, 5],
    )
    got = dc.previous(df, member="id", time="t", column="plan")
    assert list(got.index) == [9, 8, 7, 6, 5]
    assert got.fillna("-").tolist() == ["-", "-", "-", "c", "a"]
    numbers = df.assign(t=[1, 4, 1, 2, 2])
    assert dc.previous(numbers, member="id", time="t", column="plan").fillna("-").tolist() == [
        "-", "-", "-", "c", "a",
    ]  # fmt: skip
    with pytest.raises(dc.ColumnError, match="column 'plam' is missing"):
        dc.previous(df, member="id", time="t", column="plam")
    with pytest.raises(dc.DataError, match=r"1 value\(s\) of 't' are no dates: soon"):
        dc.previous(df.assign(t=["soon", *df["t"][1:]]), member="id", time="t", column="plan")
    with pytest.raises(dc.DataError, match=r"1 row\(s\) repeat a member and period.*member 1"):
        dc.previous(
            df.assign(t="2023-01", id=[1, 1, 2, 3, 4]), member="id", time="t", column="plan"
        )


def test_members_read_in_rounds_are_the_same_members(monkeypatch):
    membership = builders.small_membership(members=300, periods=6, seed=9)
    frame = membership.frame.assign(place=membership.frame["member"] % 3)
    whole = builders.membership_panel(membership, frame, region="place").counts.members
    monkeypatch.setattr("dynchoice.panel.panel.CHUNK_ROWS", 250)
    parts = builders.membership_panel(membership, frame, region="place").counts.members
    assert (parts.matrix() != whole.matrix()).nnz == 0 or (
        np.sort(parts.cells, axis=0) == np.sort(whole.cells, axis=0)
    ).all()
    for name in ("indptr", "weights", "first", "bucket", "region", "firsts"):
        assert (getattr(parts, name) == getattr(whole, name)).all(), name
    a = parts.matrix() @ parts.cells
    b = whole.matrix() @ whole.cells
    np.testing.assert_allclose(a, b)


def test_segments_that_enter_late_keep_the_panels_first_period():
    spec = oracles.random_model(8, 12, 3, 2, 0.9, attention=False)
    model = builders.from_oracle(spec).with_parts(horizon=8)
    paths = dc.simulate(model, params=spec["params"], members=4000, periods=8, seed=1)
    frame = paths.frame()
    late = frame["member"] % 2 == 1
    frame["seg"] = np.where(late, "late", "early")
    frame = frame[~late | (frame["period"] >= 4)]
    panel = dc.Panel(frame, member="member", time="period", choice="choice", states=model.states,
                     choices=model.choices, segment="seg")  # fmt: skip
    own = panel.counts.segment("late").n_tsj(8)
    assert own[:4].sum() == 0 and own[4:].sum() == late.sum() / 2
    fit = dc.NFXP(model, panel.counts.segment("late")).fit(cov_type="opg")
    assert np.abs((fit.params - spec["params"]) / fit.std_errors).max() < 4


def test_weighted_parts_add_their_members():
    frame = pd.DataFrame({"id": [1, 2], "t": [0, 3], "s": 0, "choice": "a", "w": [2.25, 2.25]})
    options = {"member": "id", "time": "t", "choice": "choice", "weights": "w",
               "states": dc.StateSpace(s=range(2)), "choices": CHOICES}  # fmt: skip
    parts = [dc.Panel(frame[frame["id"] == i], **options).counts for i in (1, 2)]
    whole = parts[0] + parts[1]
    assert whole.segment_members.tolist() == [4.5] and whole.origin == 0


def test_buckets_do_not_deal_consecutive_ids_out_evenly():
    """Shares of a group that fills the first half of the ids vary over buckets as by chance."""
    for ids in (
        np.arange(6000),
        10 * np.arange(6000),
        np.array([f"m{i:05d}" for i in range(6000)]),
    ):
        frame = pd.DataFrame({"id": ids, "t": 0, "s": 0, "c": ["a", "b"] * 3000})
        data = dc.Panel(frame, member="id", time="t", choice="c", states=dc.StateSpace(s=[0]),
                        choices=["a", "b"])  # fmt: skip
        members = data.counts.members
        size = np.bincount(members.bucket, minlength=200)
        first = np.bincount(members.bucket[:3000], minlength=200)
        # a hypergeometric share: variance of first given size is about size / 4
        chance = ((first - size / 2) ** 2).sum() / (size / 4).sum()
        assert 0.7 < chance < 1.4, chance
        assert 0.6 < size.var() / size.mean() < 1.6
