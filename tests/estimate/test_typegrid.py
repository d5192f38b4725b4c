"""A grid of types beside a roll-out."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import dynchoice as dc

VALIDATION = Path(__file__).resolve().parents[2] / "validation"


def test_moments_of_a_type_grid_refuse_roll_outs():
    spec = importlib.util.spec_from_file_location("causal_run3", VALIDATION / "causal" / "run.py")
    sys.path.insert(0, str(VALIDATION))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.model(False)
    frame = module.draw(3, False)
    data = dc.Panel(frame, member="member", time="t", choice="plan", region="region",
                    states=model.states, choices=module.PLANS)  # fmt: skip
    grid = [module.THETA, module.THETA + 0.5]
    with pytest.raises(dc.SpecificationError, match="method='likelihood'"):
        dc.TypeGrid(model, data, grid).fit()
    likelihood = dc.TypeGrid(model, data, grid, method="likelihood").fit()
    assert likelihood.converged and likelihood.weights[0] > 0.9
    # one region never treated and one common date: the jackknife has nothing to compare
    few = frame[frame["region"].isin([0, 6, 7])].assign(
        region=lambda d: d["member"] % 7,
        bundle=lambda d: np.where((d["member"] % 7 > 0) & (d["t"] >= 9), "new", "old"),
    )
    own = dc.Panel(few, member="member", time="t", choice="plan", region="region",
                   states=model.states, choices=module.PLANS)  # fmt: skip
    report = dc.causal_check(dc.NFXP(model, own).fit(), own)
    assert "no month has regions with and without it without region '0'" in str(report)
    for bad in ({"window": (0, 0)}, {"window": 5}, {"outcome": []}):
        with pytest.raises(dc.SpecificationError):
            dc.causal_check(dc.NFXP(model, data).fit(), data, **bad)
