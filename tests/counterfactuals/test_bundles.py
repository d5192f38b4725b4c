"""Welfare, bundles, elasticities, calibration, experiments: a programme small enough to check."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from term_club import GOODS
from video_club import club, fitted, measure

import dynchoice as dc
from dynchoice.counterfactuals.steady_state import Stationary


def steady(own: dc.Membership, name: str) -> float:
    return measure(dc.forecast(own, periods=1), "baseline", name)


def test_shapley_is_the_mean_over_orders_and_adds_up():
    names = ["video", "music"]
    found = dc.shapley(club(), outcomes=("penetration", "surplus"))

    def worth(subset: tuple[str, ...]) -> dict[str, float]:
        gone = dc.Scenario("x", bundle={n: 0 for n in names if n not in subset})
        f = dc.forecast(club(), gone, periods=1)
        money = f.welfare.set_index("scenario")["money"]["x"]
        return {"penetration": measure(f, "x", "penetration"), "surplus": money}

    table = found.table.set_index(["benefit", "outcome"])["shapley"]
    for outcome in ("penetration", "surplus"):
        for name in names:
            added = []
            for order in permutations(names):
                before = order[: order.index(name)]
                gain = worth((*before, name))[outcome] - worth(tuple(before))[outcome]
                added.append(gain)
            assert table[name, outcome] == pytest.approx(np.mean(added), abs=1e-8)
        ends = found.totals.set_index("outcome").loc[outcome]
        assert table[:, outcome].sum() == pytest.approx(ends["all"] - ends["none"], abs=1e-10)


def test_elasticities_are_derivatives_of_the_steady_state():
    found = dc.elasticities(club())
    slope = found.derivatives.set_index(["price", "share"])
    h = 1e-4
    for plan in ("monthly", "quarterly"):
        ends = []
        for sign in (1, -1):
            plans = [replace(p, price=p.price + sign * h) if p.name == plan else p
                     for p in club().plans]  # fmt: skip
            ends.append(replace(club(), plans=tuple(plans)))
        for choice in ("none", "monthly", "quarterly"):
            up, down = (steady_share(own, choice) for own in ends)
            assert slope.loc[(plan, choice), "long"] == pytest.approx(
                (up - down) / (2 * h), abs=2e-8
            )
    start = {k: Stationary(club().model(), club().theta(k)) for k in club().types}
    for plan in ("monthly", "quarterly"):  # at once: today's customers, new probabilities
        quick = dict.fromkeys(("none", "monthly", "quarterly"), 0.0)
        for kind, spec in club().types.items():
            s = start[kind]
            change = s.change(s.price_direction(plan))
            mu, names = s.mu, s.club.choices
            for j, name in enumerate(names):
                quick[name] += spec.share * float((mu * change.dP[..., j]).sum())
        for name, value in quick.items():
            assert slope.loc[(plan, name), "short"] == pytest.approx(value, abs=1e-10)
    sums = found.diversion.groupby("price")[["short", "long"]].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-9)
    own = found.table.query("price == share")
    assert (own[["short", "long"]] < 0).all(axis=None)


def steady_share(own: dc.Membership, choice: str) -> float:
    f = dc.forecast(own, periods=1)
    t = f.take_up
    return float(t[t.choice == choice]["share"].iloc[0])


def test_welfare_of_nothing_is_nothing_and_of_more_is_more():
    nothing = dc.welfare(club(), dc.Scenario("same", bundle={"video": 1})).table.iloc[0]
    assert nothing["decision"] == nothing["experience"] == 0
    assert nothing["winners"] == nothing["losers"] == 0
    better = dc.welfare(club(), dc.Scenario("better", bundle={"video": 2})).table.iloc[0]
    assert better["decision"] == pytest.approx(better["experience"], abs=1e-9)
    assert better["money"] > 0 and better["winners"] == pytest.approx(1)
    assert better["per period"] == pytest.approx(0.05 * better["money"])
    f = dc.forecast(club(), dc.Scenario("better", bundle={"video": 2}), periods=1)
    assert better["money"] == pytest.approx(f.welfare["money"].iloc[1], rel=1e-9)


def test_the_naive_may_gain_what_they_did_not_expect():
    naive = dc.welfare(club(1.0), dc.Scenario("awake", attention=1.0)).table.iloc[0]
    assert abs(naive["decision"] - naive["experience"]) > 0.1
    assert naive["experienced money"] > naive["money"]


def test_bundles_hold_every_combination_and_today():
    found = dc.bundles(club(), prices={"monthly": [9, 10]})
    assert len(found.table) == 1 + 4 * 2 and not found.searched
    today = found.table.iloc[0]
    assert today["bundle"] == "as today" and today["welfare"] == 0
    whole = found.table[(found.table["bundle"] == "video + music")].set_index("price monthly")
    for name in ("penetration", "revenue", "profit", "surplus"):
        assert whole.loc[10, name] == pytest.approx(steady(club(), name), abs=1e-10)
    edge = found.frontier()
    for _, row in edge.iterrows():
        beaten = (found.table["surplus"] > row["surplus"] + 1e-9) & (
            found.table["profit"] > row["profit"] + 1e-9
        )
        assert not beaten.any()
    best = found.best("penetration").iloc[0]
    assert best["penetration"] == found.table["penetration"].max()
    with pytest.raises(dc.SpecificationError, match=r"outcome 'proft' is unknown.*'profit'"):
        found.best("proft")
    with pytest.raises(dc.SpecificationError, match=r"benefit 'vdeo' is unknown.*'video'"):
        dc.bundles(club(), ["vdeo"])


def test_a_search_finds_what_all_combinations_would(monkeypatch):
    from dynchoice.counterfactuals import bundles

    every = dc.bundles(club(), prices={"monthly": [9, 10, 12]}).best("profit")
    monkeypatch.setattr(bundles, "LIMIT", 1)
    found = dc.bundles(club(), prices={"monthly": [9, 10, 12]}, objective="profit")
    assert found.searched
    assert found.best("profit")["profit"].iloc[0] == pytest.approx(every["profit"].iloc[0])


@pytest.mark.slow
def test_calibration_finds_the_parameters_behind_the_moments():
    wanted = {"penetration": steady(club(), "penetration"), "revenue": steady(club(), "revenue")}
    start = replace(club(), params={**club().params, "member": 0.3, "price": 0.12})
    found = dc.calibrate(start, wanted, ["member", "price"])
    assert found.converged
    assert found.params["member"] == pytest.approx(0.05, abs=1e-5)
    assert found.params["price"] == pytest.approx(0.1, abs=1e-5)
    moved = dc.calibrate(
        start, {**wanted, "penetration": wanted["penetration"] + 1e-4}, ["member", "price"]
    )
    change = (moved.params - found.params) / 1e-4
    # Andrews, Gentzkow and Shapiro (2017): minus the sensitivity, for a moment of the target
    np.testing.assert_allclose(change, -found.sensitivity["penetration"], rtol=2e-2)
    few = dc.calibrate(start, {"penetration": wanted["penetration"]}, ["member", "price"])
    assert not few.converged and "tell only 1 of 2 parameters apart" in few.message
    with pytest.raises(
        dc.SpecificationError, match=r"moment 'penetraton' is unknown.*'penetration'"
    ):
        dc.calibrate(start, {"penetraton": 0.5}, ["member"])
    with pytest.raises(dc.SpecificationError, match=r"parameter 'membr' is unknown.*'member'"):
        dc.calibrate(start, {"penetration": 0.5}, ["membr"])
    one = dc.calibrate(start, {"penetration": 0.5}, ["keen: scale"])
    assert one.club.types["keen"].scale == one.params["keen: scale"] != 1.5


def test_experiments_are_ranked_by_what_they_tell():
    fit, panel = fitted()

    def target(at: dc.Results) -> float:
        f = dc.forecast(at, dc.Scenario("x", offer={"prices": "cheap"}), start=panel, periods=4,
                        draws=0, long_run="none")  # fmt: skip
        t = f.take_up
        return float(t[(t.scenario == "x") & (t.period == 4) & (t.choice == "none")].share.iloc[0])

    cheap = dc.Scenario("cheap", offer={"prices": "cheap"})
    same = dc.Scenario("same", bundle={"video": 1})
    found = dc.rank_experiments(
        fit,
        target,
        [
            dc.RollOut("nothing", same, ["b"], months=6),
            dc.RollOut("one region", cheap, ["b"], months=6),
            dc.RollOut("one region, longer", cheap, ["b"], months=24),
            dc.RollOut("half of everybody", cheap, months=6),
        ],
        start=panel,
    )
    table = found.table.set_index("roll_out")
    assert table.loc["nothing", "gain"] == pytest.approx(0, abs=1e-9)
    assert table.loc["one region, longer", "std_error"] < table.loc["one region", "std_error"]
    assert (table["std_error"] < found.std_error).all()
    assert found.table["std_error"].is_monotonic_increasing
    # the gradient is that of the delta method, the information that of the fit
    at = fit.delta_method(lambda p: target(replace(fit, theta=p.to_numpy())))
    assert found.std_error == pytest.approx(at["std_error"].iloc[0], rel=1e-3)
    with pytest.raises(dc.SpecificationError, match="nobody lives in region 'e'"):
        dc.rank_experiments(fit, target, [dc.RollOut("x", cheap, ["e"])], start=panel)


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path):
    fit, panel = fitted()
    f = dc.forecast(fit, dc.Scenario("dear", prices={"monthly": 12}), start=panel, periods=3,
                    draws=20, by="region")  # fmt: skip
    single = dc.forecast(fit, dc.Scenario("dear", prices={"monthly": 12}), start=panel, periods=3,
                         draws=20)  # fmt: skip
    assert set(f.take_up["region"]) == {"a", "b", "c", "d", "all"}
    for name, draw in {
        "outcomes": lambda p: single.plot_outcomes(["penetration", "revenue"], path=p),
        "flows": lambda p: single.plot_flows("dear", path=p),
        "frontier": lambda p: dc.bundles(club()).plot(path=p),
        "elasticities": lambda p: dc.elasticities(club()).plot("short", path=p),
    }.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    with pytest.raises(dc.SpecificationError, match=r"no measure 'penetraton'.*'penetration'"):
        single.plot_outcomes(["penetraton"])
    with pytest.raises(dc.SpecificationError, match=r"no scenario 'deer'.*'dear'"):
        single.plot_flows("deer")


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


def test_bundles_try_prices_where_there_are_no_benefits():
    own = dc.Membership(
        [dc.Plan("monthly", 10.0), dc.Plan("annual", 90.0, periods=12)],
        beta=0.97,
        params={
            "member": 0.1, "price": 0.03, "joining cost": 0.5, "switching cost": 0.2,
            "paying upfront": 0.1,
        },
    )  # fmt: skip
    table = dc.bundles(own, prices={"annual": [60, 120]}).table.set_index("price annual")
    for price in (60.0, 120.0):
        s = dc.Scenario("x", prices={"annual": price})
        at = Stationary(s.changed(own.model()), own.theta())
        assert table.loc[price, "revenue"] == pytest.approx(at.measures["revenue"], rel=1e-9)


def test_the_price_of_today_is_given_where_everybody_pays_the_same():
    outside = (GOODS.states.frame()["contract"] == "none").to_numpy(dtype=float)
    cheap = (GOODS.states.frame()["prices"] == "cheap").to_numpy()
    grid = {"monthly": [9], "term": [24]}
    for start, monthly in ((outside, np.nan), (outside * cheap, 8.0), (outside * ~cheap, 10.0)):
        row = dc.bundles(GOODS, prices=grid, start=start).table.iloc[0]
        assert row["bundle"] == "as today" and row["price term"] == 24
        assert row["price monthly"] == pytest.approx(monthly, nan_ok=True)
