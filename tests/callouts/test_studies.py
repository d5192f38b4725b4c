"""Quick forms of the studies of callouts."""

import os

import pytest
from studies import run_study


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta_prior", "mvt2017", "callouts"])
def test_quick_simulation(name, monkeypatch):
    run_study(name, monkeypatch)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["hillstrom", "open_bandit"])
def test_quick_study(name, shared_data, monkeypatch):
    monkeypatch.setenv("DYNCHOICE_DATA", os.fspath(shared_data))
    run_study(name, monkeypatch)
