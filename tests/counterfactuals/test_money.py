"""Revenue, refunds, costs and elasticities: each with a number from outside."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from term_club import CLUB
from video_club import club, fitted, measure

import dynchoice as dc
from dynchoice.counterfactuals.steady_state import Stationary


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


def test_money_rests_on_the_price_parameter_whatever_the_scenario():
    fit, panel = fitted()
    f = dc.forecast(fit, dc.Scenario("x", bundle={"video": 0}), start=panel, periods=2, draws=0)
    assert set(f.badges["money"]) == {"identified"}
    fixed = replace(fit.model.membership, fixed={"price": 0.1, "video": 0.5})
    from dynchoice.counterfactuals.badges import badge

    model = fixed.model(estimated=(fit.model.membership, fit.model.transitions))
    s = dc.Scenario("x", bundle={"music": 0})
    found = badge(s.applied(model), fit.counts)
    assert found.label == "identified" and found.money == "rests on assumed values"
    s = dc.Scenario("x", bundle={"video": 2})
    assert badge(s.applied(model), fit.counts).label == "rests on assumed values"
    equal = replace(fit.model.membership, menus={"now": {}, "cheap": {}})
    model = equal.model(estimated=(fit.model.membership, fit.model.transitions))
    s = dc.Scenario("x", prices={"monthly": 12})
    assert badge(s.applied(model), fit.counts).label == "rests on functional form"


def test_benefits_cost_what_is_used_whatever_axis_is_swept():
    """A monthly plan and one benefit: the benefit's axis is as long as the contract's."""
    for levels in (2, 8):
        law = np.full((2, levels, levels), 1.0 / levels)
        own = dc.Membership(
            [dc.Plan("monthly", 10.0)],
            [dc.Benefit("ship", levels=levels, law=law, cost=2.0)],
            beta=0.95,
            params={"member": 0.1, "ship": 0.3, "price": 0.06, "joining cost": 0.5},
        )
        at = Stationary(own.model(), own.theta())
        mu = at.engine.blocks.by_state(at.mu)
        P = at.engine.blocks.by_state(at.policy.P)
        use = own.states.axis_codes("ship")
        want = 2.0 * float((mu * use * P[:, 1]).sum())
        assert want > 0.1
        assert at.measures["benefit cost"] == pytest.approx(want, rel=1e-12)


def test_refunds_by_other_terms_are_named():
    def own(cancel):
        return dc.Membership(
            [dc.Plan("annual", 90.0, periods=12, refund="prorated", cancel=cancel)],
            beta=0.97, params={"member": 0.5, "price": 0.03, "joining cost": 0.5,
                               "paying upfront": 0.1},
        )  # fmt: skip

    shorter = dc.Scenario("x", terms={"annual": {"periods": 6}})
    dearer = dc.Scenario("x", prices={"annual": 99.0})
    with pytest.warns(dc.errors.DynChoiceWarning, match="length and rule"):
        shorter.changed(own("any time").model())
    with pytest.warns(dc.errors.DynChoiceWarning) as said:
        replace(dearer, starts=2, ends=3).changed(own("any time").model())
    assert "grandfathered" not in str(said[0].message)  # it does not go with an end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dearer.changed(own("at renewal").model())  # nobody can quit early: no refund


@pytest.mark.filterwarnings("error")
def test_a_plan_that_a_segment_is_not_sold_has_no_elasticity_there():
    plans = [dc.Plan("monthly", 10), dc.Plan("student", 6, segments=("students",))]
    own = replace(CLUB, plans=plans, menus={}, segments={"students": {}, "others": {}})
    found = dc.elasticities(own)
    t, d = found.table, found.diversion
    empty = (t["segment"] == "others") & (t["share"] == "student")
    assert empty.sum() == 2 and t.loc[empty, ["short", "long"]].isna().all(axis=None)
    assert t.loc[~empty, ["short", "long"]].notna().all(axis=None)
    nowhere = (d["segment"] == "others") & (d["price"] == "student")
    assert (d["long"].isna() == nowhere).all()
