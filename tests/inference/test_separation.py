"""Choices that nobody takes, and points that are no maximum, are no estimates."""

import numpy as np
import pandas as pd
import pytest
from plain_choices import CHOICES, panel_of, simple

import dynchoice as dc


def test_a_choice_that_nobody_takes_is_no_estimate():
    model = simple()
    rng = np.random.default_rng(0)
    _, panel = panel_of(rng.choice(["a", "b"], 800), model.states)
    with pytest.warns(dc.ConvergenceWarning, match="'c' grow"):
        fit = dc.NFXP(model, panel).fit()
    assert not fit.converged and "never (or always) taken" in fit.message
    assert np.isnan(fit.std_errors["c"]) and np.isfinite(fit.std_errors["b"])
    with pytest.raises(dc.ConvergenceError, match="without bound"):
        dc.NFXP(model, panel).fit(strict=True)


def test_a_far_start_is_no_identification_problem():
    model = simple()
    _, panel = panel_of(np.random.default_rng(0).choice(CHOICES, 800), model.states)
    fit = dc.NFXP(model, panel).fit()
    far = dc.NFXP(model, panel)
    try:
        other = far.fit(start=[60.0, -60.0])
    except dc.IdentificationError:
        pytest.fail("a saturated start was taken for an unidentified model")
    assert not other.converged or np.allclose(other.params, fit.params, atol=1e-5)


def test_separation_along_a_combination_is_no_estimate():
    rows = [
        {
            "s": s,
            "choice": k,
            "b": int(k == "b"),
            "c": int(k == "c"),
            "c0": int(k == "c" and s == 0),
        }
        for s in range(2)
        for k in CHOICES
    ]
    model = simple(pd.DataFrame(rows), "0 + b + c + c0")
    choice = np.random.default_rng(0).choice(CHOICES, 800)
    choice[(np.arange(800) % 2 == 1) & (choice == "c")] = "a"
    _, panel = panel_of(choice, model.states)
    for cov_type in ("clustered", "unadjusted", "opg"):
        with pytest.warns(dc.ConvergenceWarning, match="'c', 'c0' grow"):
            fit = dc.NFXP(model, panel).fit(cov_type=cov_type)
        assert not fit.converged
        assert fit.std_errors.isna().tolist() == [False, True, True]


def test_levels_units_weights_and_rare_choices_are_no_separation():
    rng = np.random.default_rng(1)
    choice = rng.choice(CHOICES, 4000, p=[0.6, 0.4, 0.0])
    choice[[5, 900, 1700]] = "c"
    model = simple()
    _, panel = panel_of(choice, model.states)
    rare = dc.NFXP(model, panel).fit()
    assert rare.converged and rare.std_errors["c"] == pytest.approx(1 / np.sqrt(3), rel=0.1)
    table = pd.DataFrame({"choice": CHOICES, "price": [1000.0, 1001.0, 1002.0]})
    priced = dc.NFXP(simple(table, "0 + price"), panel).fit()
    assert priced.converged and priced.std_errors.notna().all()
    frame, _ = panel_of(choice, model.states)
    light = dc.Panel(frame.assign(w=1e-6), member="id", time="t", choice="choice", weights="w",
                     states=model.states, choices=CHOICES)  # fmt: skip
    weighted = dc.NFXP(model, light).fit()
    assert weighted.converged
    np.testing.assert_allclose(weighted.params, rare.params, rtol=1e-6)


def test_a_stationary_point_that_is_no_maximum_is_not_converged():
    # mirror-image counts under inattention: k = 0 is a minimum between two maxima
    states = dc.StateSpace(s=range(2))
    x = np.zeros((2, 2, 1))
    x[0, 0, 0], x[1, 1, 0] = 1.0, 1.0
    model = dc.DDC(
        states=states, choices=["a", "b"], beta=0.0, attention=0.95, default=[1, 0],
        utility=dc.Utility.from_array(x, ["k"]),
        transitions=dc.Transitions.dense(np.full((2, 2, 2), 0.5)),
    )  # fmt: skip
    from dynchoice.estimate.make_results import without_curvature

    n = np.array([[10.0, 10.0], [10.0, 10.0]])
    dead, falls = without_curvature(model, n, np.array([[5.0]]))
    assert falls and not dead.any()
    dead, falls = without_curvature(model, n, np.array([[-5.0]]))
    assert not falls and not dead.any()
