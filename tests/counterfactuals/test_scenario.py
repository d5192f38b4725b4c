"""What a scenario may bring, and what a loaded fit takes."""

import numpy as np
import pandas as pd
import pytest
from plain_choices import CHOICES, panel_of, simple

import dynchoice as dc


def test_a_scenario_may_not_bring_other_levels():
    table = pd.DataFrame({"choice": CHOICES, "tier": ["gold", "gold", "silver"], "on": [0, 1, 1]})
    model = simple(table, "0 + on:tier")
    _, panel = panel_of(np.random.default_rng(0).choice(CHOICES, 800), model.states)
    fit = dc.NFXP(model, panel).fit()
    other = table.assign(tier=["gold", "zinc", "gold"])
    with pytest.raises(dc.SpecificationError, match="a parameter of its own"):
        dc.counterfactual(fit, dc.Scenario("x", utility=other))


def test_the_baseline_keeps_its_name(fitted):
    fit, panel = fitted
    with pytest.raises(dc.SpecificationError, match="kept for the forecast without changes"):
        dc.forecast(fit, dc.Scenario("baseline", params={"pay": 5.0}), start=panel, draws=0)
    with pytest.raises(dc.SpecificationError, match="after the last one"):
        dc.forecast(fit, dc.Scenario("x", starts=40), start=panel, periods=8, draws=0)


def test_simulate_takes_parameters_over_estimates(fitted):
    fit, _ = fitted
    cheap = fit.params * 0
    a = dc.simulate(fit, params=cheap, members=50, seed=1).choices
    assert (a != dc.simulate(fit, members=50, seed=1).choices).any()
    with pytest.raises(dc.SpecificationError, match="parameters are needed"):
        dc.simulate(fit, params=[1.0])


@pytest.mark.parametrize("law", [dc.Markov((), [[0.5, 0.5], [0.2, 0.8]]), dc.Fixed()])
def test_loaded_results_take_scenarios_of_single_laws(fitted, tmp_path, law):
    fit, _ = fitted
    back = dc.load(fit.save(tmp_path / "fit.npz"))
    scenario = dc.Scenario("s", transitions={"ship": law})
    assert dc.counterfactual(back, scenario).welfare == dc.counterfactual(fit, scenario).welfare
