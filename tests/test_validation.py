"""The validation studies' quick form, where the real data are at hand."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "validation"


@pytest.mark.data
@pytest.mark.parametrize("name", ["rust1987", "houston"])
def test_quick_study(name, shared_data, monkeypatch):
    monkeypatch.setenv("DYNCHOICE_DATA", os.fspath(shared_data))
    monkeypatch.syspath_prepend(os.fspath(HERE))
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
    for forbidden in ("rust_bus.csv.gz", "member_month.csv.gz", "kw_97_data.csv.gz"):
        assert forbidden not in names
