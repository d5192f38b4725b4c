"""Properties that hold for every model (hypothesis)."""

import builders
import numpy as np
import oracles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dynchoice as dc

MODELS = st.builds(
    lambda seed, S, J, beta, attention: oracles.random_model(
        seed, S, J, 2, beta, attention=attention
    ),
    seed=st.integers(0, 10_000),
    S=st.integers(1, 25),
    J=st.integers(2, 5),
    beta=st.sampled_from([0.0, 0.5, 0.95, 0.999, 0.99999]),
    attention=st.booleans(),
)
RULES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(MODELS)
@RULES
def test_probabilities_sum_to_one_and_the_residual_is_small(spec):
    solution = dc.solve(builders.from_oracle(spec), spec["params"])
    assert solution.converged and solution.residual < 1e-10
    np.testing.assert_allclose(solution.ccp.sum(axis=1), 1, atol=1e-12)
    assert (solution.ccp[~spec["available"]] == 0).all()


@given(MODELS, st.integers(0, 100))
@RULES
def test_value_rises_with_utility_and_shifts_with_a_constant(spec, seed):
    model = builders.from_oracle(spec)
    extra = np.random.default_rng(seed).random(model.shape[:2])
    V = dc.solve(model, spec["params"]).V
    higher = dc.solve(model.with_parts(utility=model.utility.with_offset(extra)), spec["params"]).V
    assert (higher - V > -1e-9 * (1 + np.abs(V))).all()
    shifted = dc.solve(
        model.with_parts(utility=model.utility.with_offset(np.ones(model.shape[:2]))),
        spec["params"],
    )
    gain = 1 / (1 - spec["beta"])
    np.testing.assert_allclose(shifted.V - V, gain, rtol=1e-6, atol=1e-6)


@given(MODELS, st.integers(0, 100))
@RULES
def test_pushing_mass_is_the_adjoint_of_expecting(spec, seed):
    F = builders.from_oracle(spec).transitions
    rng = np.random.default_rng(seed)
    m, V = rng.random((F.S, F.J)), rng.normal(size=F.S)
    np.testing.assert_allclose((m * F.expect(V)).sum(), F.push(m) @ V, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(F.push(m).sum(), m.sum(), rtol=1e-12)


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=15, deadline=None)
def test_counts_add_over_any_split_of_the_members(seed, parts):
    spec = oracles.random_model(1, 6, 3, 2, 0.5)
    model = builders.from_oracle(spec)
    member, period, state, choice, following = oracles.simulate(spec, spec["params"], 30, 4, seed)
    whole = builders.counts_from(model, member, period, state, choice, following)
    group = np.random.default_rng(seed).integers(0, parts, 30)[member]
    pieces = []
    for g in range(parts):
        own = group == g
        if own.any():
            pieces.append(
                builders.counts_from(
                    model, member[own], period[own], state[own], choice[own], following[own]
                )
            )
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    assert (total.cells == whole.cells).all() and (total.n == whole.n).all()
    assert (total.n_sj() == whole.n_sj()).all()
