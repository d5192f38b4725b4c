"""The Bellman operator by levels is the plain one."""

import numpy as np
import pytest
from solver_models import CASES, KINDS, model_of, unexpanded

from dynchoice.solvers.bellman import Bellman, LevelBellman


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_by_level_is_the_operator(rng, kind):
    for seed in CASES:
        model, spec = model_of(seed, 0.97, kind)
        plain = Bellman(model)
        with unexpanded():
            other, _ = model_of(seed, 0.97, kind)
            level = LevelBellman(other, other.transitions.product)
        for size in (1.0, 1e3):
            h, u = size * rng.normal(size=len(plain.T)), model.flow_utility(spec["params"])
            with unexpanded():
                got = level.apply(level.laid(u), h)
            # roots differ where blocks of the expanded law are finer than its offers
            plain.root = level.root
            assert got == pytest.approx(plain.apply(u, h), rel=1e-11)
            on = model.available
            for name in ("pi", "P", "T", "gain", "r"):
                a, b = getattr(level, name), getattr(plain, name)
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * size, err_msg=name)
            np.testing.assert_allclose(level.v[on], plain.v[on], atol=1e-12 * size)
            assert np.isneginf(level.v[~on]).all() and (level.P[~on] == 0).all()
            np.testing.assert_allclose(level.observed(), plain.observed(), rtol=1e-9, atol=1e-13)


def test_solutions_of_millions_may_be_asked_for_twice(rng):
    """Arrays that a step overwrites are not those that were handed out."""
    model, _ = model_of(100, 0.95)
    with unexpanded():
        bellman = LevelBellman(model, model.transitions.product)
    u = bellman.laid(model.flow_utility(rng.normal(size=2)))
    bellman.apply(u, np.zeros(model.states.size))
    before = [bellman.v, bellman.pi, bellman.P]
    kept = [x.copy() for x in before]
    bellman.apply(u, rng.normal(size=model.states.size))
    for a, b, now in zip(before, kept, (bellman.v, bellman.pi, bellman.P), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.nan_to_num(now, neginf=0.0) != np.nan_to_num(a, neginf=0.0)).any()
