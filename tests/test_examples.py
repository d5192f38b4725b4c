"""What the README shows works as it stands there."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script() -> str:
    return re.search(r"```python\n(.*?)```", README, re.S).group(1)


def test_the_script_is_short():
    lines = [x for x in script().splitlines() if x.strip()]
    assert len(lines) < 25


def test_the_script_runs_and_finds_the_truth(monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(script(), "README.md", "exec"), names)
    results, forecast = names["results"], names["forecast"]
    truth = {"basic": -1.2, "premium": -2.0, "paid:visits": 0.55, "premium:classes": 0.9,
             "join": 1.5}  # fmt: skip
    text = (ROOT / "data" / "club" / "make.py").read_text(encoding="utf-8")
    assert all(f'"{k}": {v}' in text for k, v in truth.items())
    z = (results.params - np.array([truth[k] for k in results.params.index])) / results.std_errors
    assert results.converged and np.abs(z).max() < 4
    assert forecast.converged and len(forecast.take_up) == 2 * 12 * 3
    assert "right-censored" in printed.getvalue() and "half the joining cost" in printed.getvalue()


def test_the_two_commands_are_in_the_readme_and_ci_runs_one_of_them():
    commands = re.findall(r"```sh\n(.*?)\n```", README)
    assert len(commands) == 2
    assert "dynchoice forecast data/prime/run.toml" in commands[0]
    test_command = commands[1].split(" && ")[1]
    assert test_command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "target", re.findall(r"\]\(([^)]+)\)|`((?:data|validation|tests)/[^`]*)`", README)
)
def test_paths_of_the_readme_exist(target):
    path = (target[0] or target[1]).split(" ")[0].rstrip("/")
    assert (ROOT / path).exists() or "/out" in path


def test_docstring_examples():
    import doctest
    import importlib

    failures = 0
    for name in ("panel.states", "panel.panel", "model.ddc", "solve.solution", "estimate.nfxp",
                 "counterfactual.scenario"):  # fmt: skip
        failures += doctest.testmod(importlib.import_module(f"dynchoice.{name}")).failed
    assert failures == 0
