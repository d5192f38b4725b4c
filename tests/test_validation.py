"""The validation studies' quick form, where the real data are at hand."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "validation"


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "rust1987",
        pytest.param("houston", marks=pytest.mark.slow),
        "museum",
        pytest.param("airline_entry", marks=pytest.mark.slow),
        pytest.param("hillstrom", marks=pytest.mark.slow),
        pytest.param("open_bandit", marks=pytest.mark.slow),
    ],
)
def test_quick_study(name, shared_data, monkeypatch):
    monkeypatch.setenv("DYNCHOICE_DATA", os.fspath(shared_data))
    run_study(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "aguirregabiria_mira2002",
        "su_judd2012",
        "iskhakov2016",
        "eccp",
        "pqr",
        "samq2023",
        "tdccp2025",
        "gladius2025",
        "genpqr2025",
        "prime_rewards",
        "inference_coverage",
        "primelike",
        "meta_prior",
        "mvt2017",
        "callouts",
    ],
)
def test_quick_simulation(name, monkeypatch):
    run_study(name, monkeypatch)


def run_study(name, monkeypatch):
    """Run a study's quick form; every claim holds."""
    monkeypatch.syspath_prepend(os.fspath(HERE))
    sys.modules.pop("common", None)
    spec = importlib.util.spec_from_file_location(f"validation_{name}", HERE / name / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    study = module.run(True)
    assert study.claims
    assert not study.failed, study.failed


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
