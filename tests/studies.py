"""Runs the quick form of a validation study: for modules of tests, which workers share out."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "validation"


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
