"""Labels, ids and times are read as they are written, or refused."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from plain_choices import CHOICES

import dynchoice as dc


def test_integer_labels_are_labels_before_codes():
    states = dc.StateSpace(s=range(2))
    parts = {
        "states": states, "beta": 0.5, "attention": 0.5,
        "utility": dc.Utility.from_array(np.zeros((2, 2, 1)), ["k"]),
        "transitions": dc.Transitions.dense(np.full((2, 2, 2), 0.5)),
    }  # fmt: skip
    assert (dc.DDC(choices=[1, 2], default=1, **parts).default == 0).all()
    assert (dc.DDC(choices=[10, 20], default=20, **parts).default == 1).all()
    assert (dc.DDC(choices=["x", "y"], default=1, **parts).default == 1).all()


def test_missing_ids_and_segments_in_arrow_are_missing():
    table = pa.table({"id": [1.0, float("nan"), 2.0], "t": [0, 0, 0], "s": [0, 1, 0],
                      "choice": ["a", "b", "a"]})  # fmt: skip
    options = {"member": "id", "time": "t", "choice": "choice", "states": dc.StateSpace(s=range(2)),
               "choices": CHOICES}  # fmt: skip
    with pytest.raises(dc.DataError, match=r"missing 'id' \(member\): 1 row"):
        dc.Panel(table, **options)


def test_time_zones_and_skipped_periods_are_not_guessed():
    states = dc.StateSpace(s=range(2))
    stamps = pd.date_range("2019-09-01", periods=4, freq="MS", tz="Asia/Tokyo")
    frame = pd.DataFrame({"id": 1, "t": stamps, "s": 0, "choice": "a"})
    options = {"member": "id", "time": "t", "choice": "choice", "states": states,
               "choices": CHOICES}  # fmt: skip
    with pytest.raises(dc.SpecificationError, match="time zone"):
        dc.Panel(frame, **options)
    quarters = frame.assign(t=pd.date_range("2019-01-01", periods=4, freq="QS"))
    with pytest.warns(dc.DataWarning, match="freq='quarter'"):
        dc.Panel(quarters, **options)
    assert dc.Panel(quarters, freq="quarter", **options).report["gaps"] == 0


@pytest.mark.parametrize(
    "times",
    [
        [202311, 202312, 202401],
        [1.0, 2.0, 3.0],
        list(pd.period_range("2023-11", periods=3, freq="M")),
        list(pd.date_range("2023-11-01", periods=3, freq="MS").date),
        list(pd.date_range("2023-11-30", periods=3, freq="ME")),
    ],
)
def test_previous_reads_every_kind_of_time(times):
    frame = pd.DataFrame({"id": 1, "t": times, "plan": ["a", "b", "c"]})
    got = dc.previous(frame, member="id", time="t", column="plan")
    assert got.fillna("-").tolist() == ["-", "a", "b"]


def test_previous_refuses_missing_times():
    frame = pd.DataFrame({"id": 1, "t": pd.array([1, None, 3], dtype="Int64"), "plan": "a"})
    with pytest.raises(dc.DataError, match=r"1 value\(s\) of 't' are missing"):
        dc.previous(frame, member="id", time="t", column="plan")


def test_an_axis_may_be_called_self():
    assert dc.StateSpace.from_axes({"self": [0, 1]}).size == 2
