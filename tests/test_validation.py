"""The validation studies' quick form, where the real data are at hand."""

import os

import pytest
from studies import HERE, run_study


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "rust1987",
        pytest.param("houston", marks=pytest.mark.slow),
        "museum",
        pytest.param("airline_entry", marks=pytest.mark.slow),
    ],
)
def test_quick_study(name, shared_data, monkeypatch):
    monkeypatch.setenv("DYNCHOICE_DATA", os.fspath(shared_data))
    run_study(name, monkeypatch)


@pytest.mark.filterwarnings("ignore:.*are refunded by the new")
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "aguirregabiria_mira2002",
        "su_judd2012",
        "iskhakov2016",
        "eccp",
        "inference_coverage",
        "primelike",
    ],
)
def test_quick_simulation(name, monkeypatch):
    run_study(name, monkeypatch)


def test_no_row_of_the_real_data_is_in_the_project():
    root = HERE.parent
    names = {p.name for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}
    for forbidden in (
        "rust_bus.csv.gz",
        "member_month.csv.gz",
        "kw_97_data.csv.gz",
        "hillstrom_odd_rows.csv.gz",
        "random_men.csv.gz",
    ):
        assert forbidden not in names
