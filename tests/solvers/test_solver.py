"""Solutions and derivatives nearby, through levels and without."""

import numpy as np
import oracles
import pytest
from solver_models import KINDS, model_of, pieces, unexpanded
from test_kernels import laws_of

import dynchoice as dc
from dynchoice.solvers.layout import PlainBlocks
from dynchoice.solvers.solver import Solver, ccp_derivative


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_choice_probabilities(rng, kind):
    for seed in (1, 6, 100):
        model, spec = model_of(seed, 0.95, kind)
        P, dlogp = ccp_derivative(model, spec["params"])
        with unexpanded():
            other, _ = model_of(seed, 0.95, kind)
            found = ccp_derivative(other, spec["params"])
        np.testing.assert_allclose(found[0], P, atol=1e-10)
        np.testing.assert_allclose(found[1], dlogp, atol=1e-8 * (1 + np.abs(dlogp).max()))
        if kind != "naive":
            want = oracles.scores_cs(spec, spec["params"])
            on = model.available
            np.testing.assert_allclose(found[1][on], want[on], atol=1e-7 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_solutions_nearby(rng, kind):
    for seed in (3, 6, 101):
        model, spec = model_of(seed, 0.99, kind)
        small = Solver(model)
        small.expand(spec["params"])
        with unexpanded():
            other, _ = model_of(seed, 0.99, kind)
            large = Solver(other)
            large.expand(spec["params"])
            for p in (spec["params"], spec["params"] + 0.1, spec["params"] - 2.0):
                a, b = small.solve_near(p), large.solve_near(p)
                assert a.converged and b.converged
                V = small.value(a)
                np.testing.assert_allclose(large.value(b), V, atol=1e-9 * (1 + np.abs(V).max()))
                np.testing.assert_allclose(large.observed(), small.observed(), atol=1e-9)
                np.testing.assert_allclose(large.policy(), small.policy(), atol=1e-9)


def test_a_model_without_parameters_is_solved_from_nearby(rng):
    shape, laws, spec, _ = pieces(1)
    states = dc.StateSpace(**{f"a{i}": range(n) for i, n in enumerate(shape)})
    choices = [f"c{j}" for j in range(spec["x"].shape[1])]

    def make():
        return dc.DDC(
            states=states,
            choices=choices,
            utility=dc.Utility.from_array(spec["x"][:, :, :0], [], offset=spec["offset"]),
            transitions=dc.Transitions.factored(states, choices, laws_of(shape, laws)),
            beta=0.95,
            available=spec["available"],
        )

    small = Solver(make())
    V = small.value(small.expand(np.zeros(0)))
    with unexpanded():
        large = Solver(make())
        np.testing.assert_allclose(large.value(large.expand(np.zeros(0))), V, atol=1e-9)


def test_plain_blocks_solve_through_the_large_path(rng):
    for seed in (1, 3, 6):
        model, spec = model_of(seed, 0.95)
        with unexpanded():
            blocks = PlainBlocks(model)
            u = blocks.blocked(model.flow_utility(spec["params"]))
            one = blocks.solve(u)
            kept = one.P.copy(), one.pi.copy()
            two = blocks.solve(u + blocks.blocked(rng.normal(size=model.available.shape)), one.h)
            P = blocks.by_state(one.policy)
            right = rng.normal(size=(1, model.shape[0], 2))
            slope = blocks.solve_linear(one.policy, right)
            if model.transitions.product.B > 1:
                continue
        assert one.converged and two.converged
        assert (kept[0] == one.P).all() and (kept[1] == one.pi).all()
        want = oracles.solve_newton(spec, spec["params"])
        np.testing.assert_allclose(one.V[0], want[0], atol=1e-8)
        np.testing.assert_allclose(P, want[3], atol=1e-9)
        for k in range(2):
            exact = oracles.relative_solve(spec["F"], P, 0.95, right[0, :, k])
            np.testing.assert_allclose(slope[0, :, k], exact, atol=1e-9 * (1 + np.abs(exact).max()))
