"""Finite dependence: the identity it promises, and the rank condition where it says no."""

import builders
import numpy as np
import oracles
import pytest

import dynchoice as dc


def weights_of(found, r, j):
    """(S, J) weights by period of one pair."""
    J = found.periods.shape[1]
    return [W[[r * J + j]].toarray().reshape(-1, J) for W in found.weights]


def dense(seed, **options):
    return oracles.random_model(seed, 12, 3, 2, 0.95, **options)


CASES = {
    "rust": lambda: (builders.rust(), builders.as_spec(builders.rust(), [0.4, 2.0])),
    "dense": lambda: (builders.from_oracle(s := dense(3, attention=False)), s),
    "masks and inattention": lambda: (builders.from_oracle(s := dense(4)), s),
    "no masks, inattention": lambda: (builders.from_oracle(s := dense(5, masks=False)), s),
}


def check_identity(model, spec, found, least_weights=0):
    v, P = (oracles.solve_newton(spec, spec["params"])[i] for i in (1, 3))
    checked = heavy = 0
    for r, s in enumerate(found.rows):
        k = found.reference[r]
        for j in np.flatnonzero(found.periods[r] >= 0):
            d = weights_of(found, r, j)
            assert all((w[~spec["available"]] == 0).all() for w in d)
            index = oracles.dependence_index(spec, spec["params"], P, s, j, k, d)
            assert index == pytest.approx(v[s, j] - v[s, k], abs=1e-10, rel=1e-10)
            checked += 1
            heavy += any((w != 0).any() for w in d)
            # the paths do meet: what is left after the last period is nothing
            left = spec["F"][s, j] - spec["F"][s, k]
            for w in d[: max(found.periods[r, j], 0)]:
                np.testing.assert_allclose(w.sum(axis=1), left, atol=1e-9)
                left = np.einsum("sa,sat->t", w, spec["F"])
            np.testing.assert_allclose(left, 0, atol=1e-9)
    assert checked > len(found.rows) and heavy >= least_weights


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("periods", [1, 2])
def test_values_differ_by_the_index_of_the_weights(case, periods):
    model, spec = CASES[case]()
    found = dc.finite_dependence(model, periods)
    check_identity(model, spec, found, least_weights=5)


def test_the_identity_on_the_membership_model(membership):
    spec = builders.as_spec(membership.known, membership.theta)
    found = dc.finite_dependence(membership.known)
    check_identity(membership.known, spec, found)
    assert {1, 2} & set(found.periods.reshape(-1).tolist())


def test_precise_cells_are_leaned_on():
    spec = dense(5, masks=False, attention=False)
    model = builders.from_oracle(spec)
    precision = np.ones((12, 3)) * 1e-2
    precision[:, :2] = 1e4
    plain, leaning = dc.finite_dependence(model), dc.finite_dependence(model, precision=precision)
    check_identity(model, spec, leaning)
    share = [
        np.abs(f.weights[0].toarray()).reshape(-1, 12, 3).sum((0, 1)) for f in (plain, leaning)
    ]
    assert share[1][2] / share[1].sum() < 0.8 * share[0][2] / share[0].sum()


def test_a_renewal_takes_one_period_and_weights_on_it_alone():
    found = dc.finite_dependence(builders.rust())
    assert found.complete and set(found.periods.reshape(-1).tolist()) <= {0, 1}
    assert set((found.weights[0].indices % 2).tolist()) == {1}
    # state 0: replacing and keeping lead to the same mileage
    assert found.periods[0].tolist() == [0, 0]


@pytest.mark.parametrize("periods", [1, 2])
def test_where_it_fails_no_weights_exist(periods, membership):
    known = membership.known
    specs = [oracles.random_model(s, 7, 2, 1, 0.9, sparse=True) for s in range(3)]
    specs += [oracles.random_model(9, 7, 3, 1, 0.9, sparse=True, attention=False)]
    pairs = [(builders.from_oracle(s), s) for s in specs]
    pairs.append((known, builders.as_spec(known, membership.theta)))
    outcomes = []
    for model, spec in pairs:
        found = dc.finite_dependence(model, periods)
        assert found.attempted.all()
        for r, s in enumerate(found.rows):
            k = found.reference[r]
            for j in np.flatnonzero(spec["available"][s]):
                if j == k:
                    continue
                exists = oracles.dependence_exists(spec, s, j, k, periods)
                assert exists == (found.periods[r, j] >= 0), (s, j, k)
                outcomes.append(exists)
                if periods == 2 and exists:
                    shorter = oracles.dependence_exists(spec, s, j, k, 1)
                    assert (found.periods[r, j] == 2) == (not shorter)
    assert len(set(outcomes)) == 2


def test_the_reference_is_the_choice_with_the_most_company():
    for seed in range(4):
        spec = oracles.random_model(seed, 6, 4, 1, 0.9, sparse=True, masks=False)
        found = dc.finite_dependence(builders.from_oracle(spec), 1)
        for r, s in enumerate(found.rows):
            company = [
                sum(oracles.dependence_exists(spec, s, j, k, 1) for j in range(4)) for k in range(4)
            ]
            assert found.holds[r].sum() == max(company)


def test_finite_horizon_identity_with_the_end_in_sight():
    model = builders.rust(horizon=6)
    spec = builders.as_spec(model, [0.4, 2.0])
    _, v, P = oracles.solve_finite(spec, spec["params"], 6)
    found = dc.finite_dependence(model)
    for t in range(6):
        by_period = [P[t + h] if t + h < 6 else None for h in range(3)]
        for r in range(8):
            k = found.reference[r]
            for j in range(2):
                d = weights_of(found, r, j)
                index = oracles.dependence_index(spec, spec["params"], by_period, r, j, k, d)
                assert index == pytest.approx(v[t, r, j] - v[t, r, k], abs=1e-12)


def test_what_it_says(membership):
    found = dc.finite_dependence(membership.known, 1)
    frame = found.frame()
    assert frame["states"].sum() == (found.periods >= -1).sum() - len(found.rows)
    if not found.complete:
        assert "FAILS" in str(found)
    assert "holds in all, within 1 period(s)" in str(dc.finite_dependence(builders.rust()))
    some = dc.finite_dependence(membership.known, states=[3, 7])
    assert some.rows.tolist() == [3, 7] and some.periods.shape == (2, 3)


def test_wrong_arguments():
    with pytest.raises(dc.SpecificationError, match="periods=3"):
        dc.finite_dependence(builders.rust(), 3)
    with pytest.raises(dc.SpecificationError):
        dc.finite_dependence(builders.rust(None))
