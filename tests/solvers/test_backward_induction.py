"""Backward induction."""

import builders
import numpy as np
import oracles
import pytest

import dynchoice as dc


@pytest.mark.parametrize("attention", [False, True])
def test_backward_induction(attention):
    spec = oracles.random_model(6, 15, 3, 2, 0.95, attention=attention)
    model = builders.from_oracle(spec).with_parts(horizon=6)
    V, v, P = oracles.solve_finite(spec, spec["params"], 6)
    solution = dc.solve(model, spec["params"])
    np.testing.assert_allclose(solution.V, V[:6], atol=1e-12)
    np.testing.assert_allclose(solution.ccp, P, atol=1e-13)
    assert np.abs(solution.ccp[0] - solution.ccp[-1]).max() > 1e-3


def test_a_long_horizon_approaches_the_infinite_one():
    spec = oracles.random_model(6, 15, 3, 2, 0.9)
    model = builders.from_oracle(spec)
    long = dc.solve(model.with_parts(horizon=400), spec["params"])
    np.testing.assert_allclose(long.ccp[0], dc.solve(model, spec["params"]).ccp, atol=1e-12)
