"""Prices kept with a contract, against a machine that walks one contract by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from term_club import ALPHA, BETA, FILMS, JOINING, NEW, OLD, TASTE, TERM, dear, path, taken
from video_club import measure

import dynchoice as dc
from dynchoice.counterfactuals.steady_state import Stationary

START = np.array([0.4, 0.3, 0.2, 0.1])  # none, term_0, term_1, term_2
KEEP = dear | {"grandfathered": "contract"}


def machine(price: float, kept: float) -> tuple[np.ndarray, ...]:
    """Payments, refunds, utility and next states (8, 2) by 4 * vintage + level.

    Levels: 0 outside, 1 + k inside, k months of the contract left. Vintage 1 is refunded ``kept``.
    """
    pays, back, following = np.zeros((8, 2)), np.zeros((8, 2)), np.zeros((8, 2), dtype=int)
    for s in range(8):
        left = s % 4 - 1
        if left > 0:
            back[s, 0], following[s, 1] = left / 3 * (kept if s > 3 else price), s - 1
        else:  # outside, or a contract is over: whoever buys gets three months at the list price
            pays[s, 1], following[s, 1] = price, 3
    u = ALPHA * (back - pays) + [0, TASTE]
    u[[0, 4], 1] -= JOINING
    return pays, back, u, following


def backward(parts: tuple[np.ndarray, ...], V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    v = parts[2] + BETA * V[parts[3]]
    new = np.logaddexp(v[:, 0], v[:, 1])
    return new, np.exp(v - new[:, None])


def solved(parts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    V = np.zeros(8)
    for _ in range(500):
        V, P = backward(parts, V)
    return V, P


def by_hand(keeps: bool, starts: int, known: int, periods: int) -> tuple[pd.DataFrame, float]:
    """Months of customers and money, and the change of value when the rise becomes known."""
    before, after = machine(OLD, OLD), machine(NEW, OLD)
    place = np.array([0, 5, 6, 7, 0, 5, 6, 7]) if keeps else np.tile(np.arange(4), 2)
    base, usual = solved(before)
    high, then = solved(after)
    ahead, waiting = high[place], []
    for _ in range(starts - known):
        ahead, P = backward(before, ahead)
        waiting.insert(0, P)
    mu, rows, change = np.r_[START, np.zeros(4)], [], 0.0
    for t in range(1, periods + 1):
        if t == known:
            change = mu @ (ahead - base)
        if t == starts:
            mu = np.bincount(place, weights=mu, minlength=8)
        parts = after if t >= starts else before
        P = then if t >= starts else waiting[t - known] if t >= known else usual
        m = mu[:, None] * P
        rows.append([m[:, 0].sum(), (m * parts[0]).sum(), (m * parts[1]).sum()])
        mu = np.bincount(parts[3].ravel(), weights=m.ravel(), minlength=8)
    return pd.DataFrame(rows, columns=["none", "payments", "refunds"]), change


@pytest.mark.parametrize(("starts", "known"), [(1, 1), (3, 3), (5, 2)])
def test_a_price_kept_with_the_contract_is_that_of_the_machine(starts, known):
    s = dc.Scenario("x", **KEEP, starts=starts, announced=known)
    found = dc.forecast(TERM, s, start=START, periods=9)
    hand, change = by_hand(True, starts, known, 300)
    for name in ("payments", "refunds"):
        np.testing.assert_allclose(path(found, "x", name), hand[name][:9], atol=1e-10)
    np.testing.assert_allclose(taken(found, "x", "none"), hand["none"][:9], atol=1e-10)
    assert found.welfare["change"].iloc[1] == pytest.approx(change, abs=1e-9)
    worth = BETA ** np.arange(300) @ (hand["payments"] - hand["refunds"])
    assert measure(found, "x", "lifetime revenue") == pytest.approx(worth, abs=1e-8)


def test_without_grandfathering_the_refund_follows_the_new_price_and_a_warning_says_so():
    with pytest.warns(dc.DynChoiceWarning, match=r"'term' are refunded.*grandfathered='contract'"):
        found = dc.forecast(TERM, dc.Scenario("x", **dear, starts=3), start=START, periods=6)
    hand, _ = by_hand(False, 3, 3, 6)
    np.testing.assert_allclose(path(found, "x", "refunds"), hand["refunds"], atol=1e-10)
    assert abs(hand["refunds"][2] - by_hand(True, 3, 3, 6)[0]["refunds"][2]) > 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("grandfathered", [False, True, "contract"])
def test_no_warning_of_refunds_where_nobody_is_refunded_otherwise(grandfathered):
    plans = [dc.Plan("term", OLD, refund="prorated"), dc.Plan("term", OLD, periods=3)]
    for plan in plans + list(TERM.plans) * bool(grandfathered):
        model = replace(TERM, plans=[plan]).model()
        dc.Scenario("x", **dear, grandfathered=grandfathered).changed(model)
    dc.Scenario("x", prices={"term": OLD}).changed(TERM.model())


@pytest.mark.filterwarnings("ignore:.*are refunded by the new price")
def test_in_the_long_run_a_price_kept_with_the_contract_is_a_plain_price_change():
    both = [dc.Scenario("kept", **KEEP), dc.Scenario("plain", **dear)]
    found = dc.forecast(TERM, both, start=START, periods=150)
    model, theta = TERM.model(), TERM.theta()
    kept, plain = (Stationary(s.changed(model), theta).measures for s in both)
    assert kept == pytest.approx(plain, abs=1e-10)
    for name in ("penetration", "payments", "refunds", "surplus", "renewal rate"):
        far = path(found, "plain", name)[-1]
        assert path(found, "kept", name)[-1] == pytest.approx(far, abs=1e-9)
        assert measure(found, "kept", name) == pytest.approx(far, abs=1e-9)
    assert abs(path(found, "kept", "refunds")[0] - path(found, "plain", "refunds")[0]) > 0.1


def test_nobody_is_lost_where_prices_are_kept_with_the_contract():
    found = dc.forecast(TERM, dc.Scenario("x", **KEEP, starts=3), start=100 * START, periods=6)
    t = found.take_up[found.take_up.scenario == "x"]
    np.testing.assert_allclose(t.groupby("period")["members"].sum(), 100)
    # flows lead from the plan held (that of the month before) to the plan of the month
    flows = found.flows[found.flows.scenario == "x"]
    assert (flows["share"] >= 0).all()
    for choice in ("none", "term"):
        share = taken(found, "x", choice)
        for side, months in (("source", share[:5]), ("choice", share[1:])):
            sums = flows[flows[side] == choice].groupby("period")["share"].sum()
            np.testing.assert_allclose(sums.loc[2:], months, atol=1e-12)


def test_a_benefit_worth_nothing_changes_nothing_in_prices_kept_with_the_contract():
    own = replace(TERM, benefits=[FILMS], params={**TERM.params, "films": 0.0})
    start = np.concatenate([START, START]) / 2  # half of everybody uses it
    found = dc.forecast(own, dc.Scenario("x", **KEEP, starts=3), start=start, periods=6)
    hand, _ = by_hand(True, 3, 3, 6)
    for name in ("payments", "refunds"):
        np.testing.assert_allclose(path(found, "x", name), hand[name], atol=1e-10)


def test_kept_prices_go_to_a_file_and_come_back(tmp_path):
    own = replace(TERM, kept={"": {"term": 9.0}}, kept_until="renewal")
    again = dc.Membership.from_toml(own.to_toml(tmp_path / "club.toml"))
    assert again == own and again.kept_until == "renewal" and again.kept == {"": {"term": 9.0}}
    at = again.states.frame().set_index(["vintage", "contract"]).index
    back = pd.Series(again.refunds(), at)
    np.testing.assert_allclose(back["kept"][["none", "term_0", "term_1", "term_2"]], [0, 0, 3, 6])
    np.testing.assert_allclose(back["current"][["term_0", "term_1", "term_2"]], [0, 4, 8])
    pays = pd.Series(again.payments()[:, 1], at)
    assert set(pays[:, "term_0"]) == {OLD} and set(pays[:, "term_1"]) == {0.0}


def test_prices_are_kept_or_members_moved_not_both():
    with pytest.raises(dc.SpecificationError, match="another price list"):
        dc.Scenario("x", prices={"a": 1}, offer={"prices": {"old": "new"}}, grandfathered=True)
