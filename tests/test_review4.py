"""What the review of the fourth issue found wrong, each in its smallest form."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

import dynchoice as dc

sys.path.insert(0, str(Path(__file__).resolve().parent / "counterfactual"))
from test_bundles import club, fitted, measure


def test_lifetime_values_do_not_depend_on_how_far_one_looks():
    for change in (
        {"prices": {"monthly": 12}, "starts": 3, "ends": 20},
        {"bundle": {"video": 0}, "starts": 2, "announced": 1},
    ):
        s = dc.Scenario("x", **change)
        short, far = (dc.forecast(club(), s, periods=T, start="newcomers") for T in (5, 60))
        for name in ("lifetime revenue", "lifetime profit"):
            assert measure(short, "x", name) == pytest.approx(measure(far, "x", name), rel=1e-9)
    fit, panel = fitted()
    ramp = dc.Scenario("x", bundle={"video": 0}, ramp=dict.fromkeys("abcd", 15))
    short, far = (dc.forecast(fit, ramp, start=panel, periods=T, draws=0) for T in (5, 60))
    a, b = (measure(f, "x", "lifetime revenue") for f in (short, far))
    assert a == pytest.approx(b, rel=1e-9) and a < measure(short, "baseline", "lifetime revenue")


def test_a_bundle_in_force_holds_for_plans_that_a_scenario_does_not_name():
    own = replace(club(), bundles={"b": {"video": {"monthly": 0}}})
    base = dc.forecast(own, periods=1)
    for bundle in ({"video": {"quarterly": 1}}, {"video": lambda share: share}):
        f = dc.forecast(own, dc.Scenario("x", bundle=bundle), periods=1)
        assert measure(f, "x", "penetration") == measure(base, "baseline", "penetration")
    f = dc.forecast(own, dc.Scenario("x", bundle={"video": "offered"}), periods=1)
    g = dc.forecast(replace(own, bundles={"b": {}}), periods=1)
    assert measure(f, "x", "penetration") == pytest.approx(
        measure(g, "baseline", "penetration"), abs=1e-12
    )


def test_elasticities_take_each_menu_at_its_own_price():
    own = replace(club(), types={}, menus={"now": {}, "cheap": {"monthly": 3}})
    menus = own.states.frame()["prices"]
    outside = own.states.frame()["contract"] == "none"
    start = outside.to_numpy(dtype=float)  # half under each menu
    found = dc.elasticities(own, start=start).table.set_index(["price", "share"])
    model, theta = own.model(), own.theta()
    h = 1e-5

    def share(factor: float) -> float:
        s = dc.Scenario("x", prices={"monthly": lambda p: factor * p})
        mu = start / start.sum()
        return float(mu @ dc.solve(s.changed(model), theta).ccp[:, 1])

    slope = (share(1 + h) - share(1 - h)) / (2 * h) / share(1.0)
    assert menus.nunique() == 2
    assert found.loc[("monthly", "monthly"), "short"] == pytest.approx(slope, rel=1e-6)


def test_who_keeps_an_old_price_does_not_feel_a_new_one():
    own = replace(club(), types={}, kept={"now": {"monthly": 7.0, "quarterly": 20.0}, "cheap": {}})
    frame = own.states.frame()
    kept = ((frame["vintage"] == "kept") & (frame["contract"] == "monthly")).to_numpy(float)
    found = dc.elasticities(own, start=kept).derivatives.set_index(["price", "share"])
    model, theta = own.model(), own.theta()
    h = 1e-4

    def share(step: float) -> float:
        s = dc.Scenario("x", prices={"monthly": lambda p: p + step})
        return float(kept / kept.sum() @ dc.solve(s.changed(model), theta).ccp[:, 1])

    slope = (share(h) - share(-h)) / (2 * h)
    assert found.loc[("monthly", "monthly"), "short"] == pytest.approx(slope, abs=1e-7)
    with pytest.raises(dc.SpecificationError, match="second vintage"):
        again = dc.Scenario("x", prices={"monthly": 30}, grandfathered=True)
        dc.forecast(own, again, periods=1)


def test_a_calibration_says_what_it_cannot_do():
    with pytest.raises(dc.SpecificationError, match="'price' is fixed at"):
        own = replace(club(), fixed={"price": 0.08})
        dc.calibrate(own, {"penetration": 0.4}, ["price"])
    found = dc.calibrate(
        club(), {"penetration": 0.9999}, ["member"], bounds={"member": (-1.0, 0.2)}
    )
    assert not found.converged and "the moments are not met" in found.message


def test_an_experiment_counts_the_customers_of_its_own_fit():
    fit, panel = fitted()
    others = replace(panel.counts, segments=("others",))
    roll_out = dc.RollOut("x", dc.Scenario("x", offer={"prices": "cheap"}), ["b"])
    found = dc.rank_experiments(fit, lambda f: float(f.params["price"]), [roll_out], start=panel)
    assert found.table["treated"].iloc[0] == pytest.approx(200)
    assert found.std_error == pytest.approx(fit.std_errors["price"], rel=1e-6)
    with pytest.raises(dc.SpecificationError, match="start holds 2 segments"):
        dc.rank_experiments(
            fit, lambda f: float(f.params["price"]), [roll_out], start=panel.counts + others
        )


def test_money_rests_on_the_price_parameter_whatever_the_scenario():
    fit, panel = fitted()
    f = dc.forecast(fit, dc.Scenario("x", bundle={"video": 0}), start=panel, periods=2, draws=0)
    assert set(f.badges["money"]) == {"identified"}
    fixed = replace(fit.model.membership, fixed={"price": 0.1, "video": 0.5})
    from dynchoice.counterfactuals.badges import badge

    model = fixed.model(estimated=(fit.model.membership, fit.model.transitions))
    s = dc.Scenario("x", bundle={"music": 0})
    found = badge(s, model, s.changed(model), None, fit.counts)
    assert found.label == "identified" and found.money == "rests on assumed values"
    s = dc.Scenario("x", bundle={"video": 2})
    assert badge(s, model, s.changed(model), None, fit.counts).label == "rests on assumed values"
    equal = replace(fit.model.membership, menus={"now": {}, "cheap": {}})
    model = equal.model(estimated=(fit.model.membership, fit.model.transitions))
    s = dc.Scenario("x", prices={"monthly": 12})
    assert badge(s, model, s.changed(model), None, fit.counts).label == "rests on functional form"
