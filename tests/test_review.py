"""Defects that an independent review found once, kept from coming back."""

import builders
import numpy as np
import oracles
import pandas as pd
import pyarrow as pa
import pytest

import dynchoice as dc

CHOICES = ["a", "b", "c"]


def simple(attributes=None, text="0 + b + c", **options):
    states = dc.StateSpace(s=range(2))
    table = (
        attributes
        if attributes is not None
        else pd.DataFrame(
            {"choice": CHOICES, "b": [0, 1, 0], "c": [0, 0, 1], "price": [1.0, 3.0, 5.0]}
        )
    )
    return dc.DDC(
        states=states, choices=CHOICES,
        utility=dc.Utility.from_formula(text, states, CHOICES, table),
        transitions=dc.Transitions.factored(states, CHOICES, {"s": dc.Markov(("choice",),
            np.full((3, 2, 2), 0.5))}), **{"beta": 0.9, **options},
    )  # fmt: skip


def panel_of(choice, states, **columns):
    n = len(choice)
    frame = pd.DataFrame({"id": np.arange(n) // 4, "t": np.arange(n) % 4, "choice": choice,
                          "s": np.arange(n) % 2, **columns})  # fmt: skip
    return frame, dc.Panel(
        frame, member="id", time="t", choice="choice", states=states, choices=CHOICES
    )


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


def test_transforms_that_remember_rows_are_refused():
    with pytest.raises(dc.SpecificationError, match="depend on the rows they see"):
        simple(text="0 + scale(price)")


def test_a_scenario_may_not_bring_other_levels():
    table = pd.DataFrame({"choice": CHOICES, "tier": ["gold", "gold", "silver"], "on": [0, 1, 1]})
    model = simple(table, "0 + on:tier")
    _, panel = panel_of(np.random.default_rng(0).choice(CHOICES, 800), model.states)
    fit = dc.NFXP(model, panel).fit()
    other = table.assign(tier=["gold", "zinc", "gold"])
    with pytest.raises(dc.SpecificationError, match="a parameter of its own"):
        dc.counterfactual(fit, dc.Scenario("x", utility=other))


def test_segments_that_enter_late_keep_the_panels_first_period():
    spec = oracles.random_model(8, 12, 3, 2, 0.9, attention=False)
    model = builders.from_oracle(spec).with_parts(horizon=8)
    paths = dc.simulate(model, params=spec["params"], members=4000, periods=8, seed=1)
    frame = paths.frame()
    late = frame["member"] % 2 == 1
    frame["seg"] = np.where(late, "late", "early")
    frame = frame[~late | (frame["period"] >= 4)]
    panel = dc.Panel(frame, member="member", time="period", choice="choice", states=model.states,
                     choices=model.choices, segment="seg")  # fmt: skip
    own = panel.counts.segment("late").n_tsj(8)
    assert own[:4].sum() == 0 and own[4:].sum() == late.sum() / 2
    fit = dc.NFXP(model, panel.counts.segment("late")).fit(cov_type="opg")
    assert np.abs((fit.params - spec["params"]) / fit.std_errors).max() < 4


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


def test_integer_labels_are_labels_before_codes():
    states = dc.StateSpace(s=range(2))
    parts = {
        "states": states, "beta": 0.5, "attention": 0.5,
        "utility": dc.Utility.from_array(np.zeros((2, 2, 1)), ["k"]),
        "transitions": dc.Transitions.dense(np.full((2, 2, 2), 0.5)),
    }  # fmt: skip
    assert (dc.DDC(choices=[1, 2], default=1, **parts).default == 0).all()
    assert (dc.DDC(choices=[10, 20], default=20, **parts).default == 1).all()
    assert (dc.DDC(choices=["x", "y"], default=1, **parts).default == 1).all()


def test_missing_ids_and_segments_in_arrow_are_missing():
    table = pa.table({"id": [1.0, float("nan"), 2.0], "t": [0, 0, 0], "s": [0, 1, 0],
                      "choice": ["a", "b", "a"]})  # fmt: skip
    options = {"member": "id", "time": "t", "choice": "choice", "states": dc.StateSpace(s=range(2)),
               "choices": CHOICES}  # fmt: skip
    with pytest.raises(dc.DataError, match=r"missing 'id' \(member\): 1 row"):
        dc.Panel(table, **options)


def test_time_zones_and_skipped_periods_are_not_guessed():
    states = dc.StateSpace(s=range(2))
    stamps = pd.date_range("2019-09-01", periods=4, freq="MS", tz="Asia/Tokyo")
    frame = pd.DataFrame({"id": 1, "t": stamps, "s": 0, "choice": "a"})
    options = {"member": "id", "time": "t", "choice": "choice", "states": states,
               "choices": CHOICES}  # fmt: skip
    with pytest.raises(dc.SpecificationError, match="time zone"):
        dc.Panel(frame, **options)
    quarters = frame.assign(t=pd.date_range("2019-01-01", periods=4, freq="QS"))
    with pytest.warns(dc.DataWarning, match="freq='quarter'"):
        dc.Panel(quarters, **options)
    assert dc.Panel(quarters, freq="quarter", **options).report["gaps"] == 0


def test_too_few_clusters_give_no_standard_errors():
    model = simple()
    frame, _ = panel_of(np.random.default_rng(0).choice(CHOICES, 80), model.states)
    one = frame.assign(id=0, t=np.arange(80))
    panel = dc.Panel(one, member="id", time="t", choice="choice", states=model.states,
                     choices=CHOICES)  # fmt: skip
    with pytest.warns(dc.IdentificationWarning, match=r"1 cluster\(s\) cannot carry"):
        fit = dc.NFXP(simple(), panel).fit()
    assert fit.std_errors.isna().all()
    assert dc.NFXP(simple(), panel).fit(cov_type="robust").std_errors.notna().all()


def test_likelihood_ratios_are_of_likelihoods(fitted, membership):
    fit, panel = fitted
    with pytest.raises(dc.SpecificationError, match="not CCP"):
        fit.lr_test(dc.CCP(membership.unknown, panel).fit())


@pytest.mark.parametrize("law", [dc.Markov((), [[0.5, 0.5], [0.2, 0.8]]), dc.Fixed()])
def test_loaded_results_take_scenarios_of_single_laws(fitted, tmp_path, law):
    fit, _ = fitted
    back = dc.load(fit.save(tmp_path / "fit.npz"))
    scenario = dc.Scenario("s", transitions={"ship": law})
    assert dc.counterfactual(back, scenario).welfare == dc.counterfactual(fit, scenario).welfare


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


@pytest.mark.parametrize(
    "build",
    [
        lambda: dc.StateSpace(x={"b", "a"}),
        lambda: dc.StateSpace(x=3),
        lambda: dc.StateSpace(x=[1.0, float("nan")]),
        lambda: dc.Utility.from_array([["a"]], ["k"]),
        lambda: dc.Transitions.dense("F"),
        lambda: dc.Transitions.dense([[1], [1, 2]]),
        lambda: simple(attention="high"),
        lambda: simple(available="all"),
        lambda: simple(horizon=True),
        lambda: simple().with_parts(utility=np.zeros((2, 3, 1))),
        lambda: simple().with_parts(transitions=np.zeros((2, 3, 2))),
        lambda: dc.solve(simple(), "params"),
        lambda: dc.solve(simple(), [1.0, 2.0], start="V"),
        lambda: dc.Transitions.factored(
            dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Markov(("choice", "choice"))}
        ),
        lambda: dc.Transitions.factored(dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Markov(None)}),
        lambda: dc.Transitions.factored(
            dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Increment(1.0)}
        ),
        lambda: dc.Transitions.factored(
            dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Deterministic(lambda x: x)}
        ),
        lambda: dc.Scenario("x", params=[1]),
        lambda: dc.Scenario("x", offer="new"),
        lambda: dc.Panel(pd.DataFrame(), member="a", time="b", choice="c", states={}, choices=[1]),
        lambda: dc.compare(3),
    ],
)
def test_careless_input_gets_our_errors(build):
    with pytest.raises(dc.DynChoiceError):
        build()


def test_careless_calls_on_results_get_our_errors(fitted):
    fit, panel = fitted
    for call in (
        lambda: dc.counterfactual(fit, [dc.Scenario("x")]),
        lambda: dc.counterfactual({"a": fit}, dc.Scenario("x")),
        lambda: dc.counterfactual(fit, dc.Scenario("x", params={"pay": None})),
        lambda: dc.forecast(fit, "new", start=panel),
        lambda: dc.forecast(fit.model, start=panel),
        lambda: dc.forecast(fit, start=pd.DataFrame()),
        lambda: dc.forecast(fit, start=panel, n_jobs=0),
        lambda: dc.forecast(fit, start=panel, periods=2.5),
        lambda: dc.forecast(fit, start=panel, seed=-1),
        lambda: fit.lr_test(None),
        lambda: fit.wald_test("pay = 0"),
        lambda: fit.wald_test([[np.nan, 0, 0, 0, 0]]),
        lambda: fit.delta_method(lambda p: p, level=95),
        lambda: fit.delta_method(lambda p: p, names=["one"]),
        lambda: panel.counts + 3,
        lambda: dc.NFXP(fit.model, panel).fit(tol=1.0),
        lambda: dc.NFXP(fit.model, panel).fit(maxiter=0),
        lambda: dc.NFXP(fit.model, panel).fit(cov_type=["robust"]),
    ):
        with pytest.raises(dc.DynChoiceError):
            call()
    assert sum([panel.counts]).digest == panel.counts.digest
    assert dc.forecast(fit, start=panel, periods=700, draws=0).take_up["period"].max() == 700


@pytest.mark.parametrize("estimator", [dc.NFXP, dc.CCP], ids=["NFXP", "CCP"])
def test_a_price_that_is_a_plan_constant_is_named_and_no_traceback(membership, estimator):
    # a newcomer's first model: one price a plan, paid up front for the annual one
    base = membership.unknown
    states, contract = base.states, base.states.axis_codes("contract")
    x = np.zeros((states.size, 3, 4))
    x[:, 1, 0] = x[:, 2, 1] = 1
    x[contract == 0, 1:, 2] = -1
    x[:, 1, 3], x[contract <= 2, 2, 3] = -2.0, -5.0
    utility = dc.Utility.from_array(x, ["monthly", "annual", "join", "price"])
    panel = builders.membership_panel(membership, membership.frame)
    with pytest.raises(dc.IdentificationError, match=r"does not change along.*price"):
        estimator(base.with_parts(utility=utility), panel).fit()


def test_solve_and_counterfactual_are_the_functions_whatever_was_imported():
    import inspect

    import dynchoice.counterfactuals.scenario
    import dynchoice.solvers.linear

    assert "params" in inspect.signature(dc.solve).parameters
    assert "weights" in inspect.signature(dc.counterfactual).parameters
    assert "Solve a dynamic choice model" in dc.solve.__doc__
    assert dynchoice.solve is dc.solve and dynchoice.solve.__name__ == "solve"


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


def test_functions_that_use_the_package_travel_to_workers():
    from joblib import Parallel, delayed

    def size(i):
        return dc.StateSpace(s=range(i + 1)).size

    assert Parallel(n_jobs=2)(delayed(size)(i) for i in range(3)) == [1, 2, 3]


def test_every_way_of_importing_works():
    import dynchoice.solvers.linear as by_name
    from dynchoice.solvers import linear

    assert by_name is linear and dynchoice_attribute() is linear


def dynchoice_attribute():
    import dynchoice.solvers.linear

    return dynchoice.solvers.linear


def test_weighted_parts_add_their_members():
    frame = pd.DataFrame({"id": [1, 2], "t": [0, 3], "s": 0, "choice": "a", "w": [2.25, 2.25]})
    options = {"member": "id", "time": "t", "choice": "choice", "weights": "w",
               "states": dc.StateSpace(s=range(2)), "choices": CHOICES}  # fmt: skip
    parts = [dc.Panel(frame[frame["id"] == i], **options).counts for i in (1, 2)]
    whole = parts[0] + parts[1]
    assert whole.segment_members.tolist() == [4.5] and whole.origin == 0


@pytest.mark.parametrize(
    ("formula", "equal"),
    [
        ("pay = -8.5e-1", ([0, 0, 0, 1, 0], -0.85)),
        ("pay = +2", ([0, 0, 0, 1, 0], 2.0)),
        ("pay = -join", ([0, 0, 0, 1, 1], 0.0)),
        ("pay = 1e-3", ([0, 0, 0, 1, 0], 1e-3)),
        (["pay = 2"], ([0, 0, 0, 1, 0], 2.0)),
    ],
)
def test_wald_formulas_as_people_write_them(fitted, formula, equal):
    fit, _ = fitted
    want = fit.wald_test([equal[0]], [equal[1]])
    assert fit.wald_test(formula=formula).stat == pytest.approx(want.stat, rel=1e-9)


def test_wald_formulas_that_are_refused(fitted):
    fit, _ = fitted
    for options in ({"formula": "pay = join = 0"}, {"formula": ""}, {"formula": []},
                    {"formula": "pay = 0", "value": [3]}):  # fmt: skip
        with pytest.raises(dc.SpecificationError):
            fit.wald_test(**options)


@pytest.mark.parametrize(
    "times",
    [
        [202311, 202312, 202401],
        [1.0, 2.0, 3.0],
        list(pd.period_range("2023-11", periods=3, freq="M")),
        list(pd.date_range("2023-11-01", periods=3, freq="MS").date),
        list(pd.date_range("2023-11-30", periods=3, freq="ME")),
    ],
)
def test_previous_reads_every_kind_of_time(times):
    frame = pd.DataFrame({"id": 1, "t": times, "plan": ["a", "b", "c"]})
    got = dc.previous(frame, member="id", time="t", column="plan")
    assert got.fillna("-").tolist() == ["-", "a", "b"]


def test_previous_refuses_missing_times():
    frame = pd.DataFrame({"id": 1, "t": pd.array([1, None, 3], dtype="Int64"), "plan": "a"})
    with pytest.raises(dc.DataError, match=r"1 value\(s\) of 't' are missing"):
        dc.previous(frame, member="id", time="t", column="plan")


def test_an_axis_may_be_called_self():
    assert dc.StateSpace.from_axes({"self": [0, 1]}).size == 2
