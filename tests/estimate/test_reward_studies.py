"""Quick forms of the studies of rewards: a module of their own, so that two workers share them."""

import pytest
from studies import run_study


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pqr", "samq2023", "tdccp2025", "gladius2025", "genpqr2025", "prime_rewards"]
)
def test_quick_simulation(name, monkeypatch):
    run_study(name, monkeypatch)
