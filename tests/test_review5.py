"""Prices kept with a contract, slips refused in words, mixtures by region, pictures with dates."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.counterfactuals.badges import badge
from dynchoice.counterfactuals.steady_state import Stationary

sys.path.insert(0, str(Path(__file__).resolve().parent / "counterfactual"))
from test_bundles import measure

BETA, TASTE, ALPHA, JOINING, OLD, NEW = 0.9, 0.1, 0.1, 0.8, 12.0, 18.0
TERM = dc.Membership(
    [dc.Plan("term", OLD, periods=3, refund="prorated")], beta=BETA, costs=("joining cost",),
    params={"member": TASTE, "price": ALPHA, "joining cost": JOINING},
)  # fmt: skip
START = np.array([0.4, 0.3, 0.2, 0.1])  # none, term_0, term_1, term_2
dear = {"prices": {"term": NEW}}
FILMS = dc.Benefit("films", 0.2, 0.9, 0.1, 0.7, cost=0.4)
KEEP = dear | {"grandfathered": "contract"}


# prices kept with the contract, by hand -------------------------------------------------------


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


def path(found: dc.Forecast, scenario: str, name: str) -> np.ndarray:
    t = found.outcomes
    return t[(t.scenario == scenario) & (t.measure == name)]["value"].to_numpy()


def taken(found: dc.Forecast, scenario: str, choice: str, **where: str) -> pd.Series:
    t = found.take_up
    for column, value in {"scenario": scenario, "choice": choice, **where}.items():
        t = t[t[column] == value]
    return t.set_index("period")["share"]


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


TRIALS = dc.Membership([dc.Plan("monthly", 10, trial=1)], trial_again=6)
YEAR = dc.Membership([dc.Plan("annual", 120, periods=12, cancel="at renewal")])


def history(*lives: list[str], **columns: object) -> pd.DataFrame:
    rows = [(f"m{i}", f"2024-{t + 1:02d}", p) for i, x in enumerate(lives) for t, p in enumerate(x)]
    return pd.DataFrame(rows, columns=["who", "when", "plan"]).assign(**columns)


def read(own: dc.Membership, data: pd.DataFrame, **options: object) -> dc.Panel:
    return own.panel(data, member="who", time="when", plan="plan", **options)


@pytest.mark.filterwarnings("error::dynchoice.DataWarning")
def test_a_history_that_hides_trials_is_read_with_a_warning():
    # months that start as a former member: the last two of m0, the last of m1; m2 never left
    life = ["monthly", "monthly", "none", "none", "none"]
    frame = history(life, life[:4], ["none", "monthly", "monthly"])
    with pytest.warns(dc.DataWarning, match=r"^3 row\(s\) of 2 former member\(s\).*trial_again"):
        assert read(TRIALS, frame).counts.nobs == 12
    read(replace(TRIALS, trial_again=None), frame)
    known = ["new", "trial monthly", "monthly", "lapsed", "lapsed"]
    read(TRIALS, frame.assign(at=known + known[:4] + known[:1] + known[:2]), contract="at")


def test_a_broken_contract_leaves_one_month_out():
    with pytest.warns(dc.DataWarning, match="^1 of 12 row"):
        assert read(YEAR, BROKEN, broken="drop").counts.nobs == 11


def test_a_segment_of_which_the_programme_says_nothing_is_named():
    # no error: a programme may name only the segments that differ from the rest
    said = r"^2 row\(s\) are of segment 'student'.*Did you mean 'students'"
    with pytest.warns(dc.DataWarning, match=said):
        read(SEGMENTS, KINDS, segment="kind")


BROKEN = history(["annual"] * 4 + ["none"] * 8)
BROKEN_TWICE = history(["annual", "annual", "none", "none", "annual", "none", "none"])
HOME = dc.Membership([dc.Plan("monthly", 10)], [FILMS])
LIVES = ["none", "monthly", "monthly"], ["none"] * 3
OFFERS = pd.DataFrame({"from": ["2024-01"] * 2, "prices": ["old", "new"]})
MENUS = replace(YEAR, menus={"old": {}, "new": {"annual": 99}})
SEGMENTS = replace(YEAR, segments={"students": {}, "others": {}})
KINDS = history(["none"] * 3, kind=["students", "student", "student"])
UNREAD = [
    (lambda: read(YEAR, BROKEN), r"^1 row\(s\).*'none' at 'annual_8' in 2024-05"),
    (lambda: read(YEAR, BROKEN_TWICE), r"^2 row\(s\)"),
    (lambda: read(HOME, history(*LIVES, at=[0, 1, 0.5, 0, 0.5, 0]), engagement={"films": "at"}),
     r"^2 row\(s\) of 'films' \(column 'at'\).*: 0\.5 \(first: member m0 in 2024-03\)"),
    (lambda: read(HOME, history(*LIVES, films=[0, 1, "some", 0, 1, "much"])),
     r"^2 row\(s\) of 'films' \(column 'films'\).*: some, much \(first: member m0 in 2024-03\)"),
    (lambda: read(YEAR, pd.concat([history(["none"] * 3)] * 2).iloc[:5]),
     r"^2 row\(s\).*member m0 in 2024-01.*dates count by month"),
    (lambda: read(YEAR, history(["none", "anual", "none"])),
     r"^1 row\(s\).*anual \(first: member m0 in 2024-02\).*Did you mean 'annual'"),
    (lambda: read(YEAR, history(["none", None, "none"])),  # nothing is guessed
     r"^1 row\(s\)((?!Did you mean).)*member m0 in 2024-02((?!Did you mean).)*$"),
    (lambda: read(MENUS, history(["none"]), offers=OFFERS), "both 'old' and 'new' as prices"),
    (lambda: read(YEAR, history(["none"]).iloc[:0]), "no rows"),
]  # fmt: skip


CLUB = dc.Membership(
    [dc.Plan("monthly", 10), dc.Plan("term", 24, periods=3)], beta=0.95, costs=("joining cost",),
    menus={"now": {}, "cheap": {"monthly": 8}},
    params={"member": 0.3, "price": 0.1, "joining cost": 1.2},
)  # fmt: skip


@cache
def panel(region: str | None = "region") -> dc.Panel:
    """Two kinds of customers, 150 each, ten months of 2024, three regions (one has it cheap)."""
    frames, place = [], np.arange(150) % 3
    offers = pd.DataFrame({"prices": ["now", "cheap"], "contract": "none"})
    first = CLUB.states.codes(offers)[(place == 0).astype(int)]
    for kind, taste in enumerate((0.3, 1.8)):
        options = {"members": 150, "periods": 10, "seed": 5 + kind, "start": first}
        theta = {**CLUB.params, "member": taste}
        frame = dc.simulate(CLUB.model(), params=theta, **options).frame()
        frame["region"] = np.array(["a", "b", "c"])[place[frame["member"]]]
        frame["month"] = pd.PeriodIndex(pd.Period("2024-01", "M") + frame["period"])
        frames.append(frame.assign(member=frame["member"] + 150 * kind))
    names = {"member": "member", "time": "month", "plan": "choice", "contract": "contract"}
    return replace(CLUB, params={}).panel(pd.concat(frames), **names, region=region)


@cache
def fitted() -> dc.Results:
    return dc.NFXP(replace(CLUB, params={}).model(), panel()).fit()


@cache
def mixed() -> dc.MixtureResults:
    return dc.CCPEM(fitted().model, panel(), varying=["member"]).fit(starts=1)


def test_the_regions_of_a_mixture_add_up_to_the_whole():
    ramps = {"plain": None, "everywhere": dict.fromkeys("abc", 1), "ramp": {"a": 1, "b": 3}}
    scenarios = [dc.Scenario(k, prices={"monthly": 15}, ramp=r) for k, r in ramps.items()]
    options = {"start": panel(), "periods": 4, "draws": 0, "long_run": "none"}
    found = dc.forecast(mixed(), scenarios, by="region", **options)
    whole = dc.forecast(mixed(), scenarios, **options)
    assert list(found.take_up["label"].unique()) == ["2024-11", "2024-12", "2025-01", "2025-02"]
    assert set(found.take_up["region"]) == {"a", "b", "c", "all"}
    near = partial(np.testing.assert_allclose, atol=1e-12)
    for choice in CLUB.choices:
        at = {
            s: {r: taken(found, s, choice, region=r, segment="all") for r in ("a", "b", "c", "all")}
            for s in ("baseline", *ramps)
        }
        for s, own in at.items():  # a hundred customers live in each region
            near((own["a"] + own["b"] + own["c"]) / 3, own["all"])
            near(own["all"], taken(whole, s, choice, segment="all"))
        for r in ("a", "b", "c", "all"):
            near(at["everywhere"][r], at["plain"][r])
        near(at["ramp"]["a"], at["plain"]["a"])
        near(at["ramp"]["c"], at["baseline"]["c"])
        moved = (at["ramp"]["b"] - at["baseline"]["b"]).abs()
        assert moved[:2].max() < 1e-12 and moved[2:].min() > 1e-4


# slips in words -------------------------------------------------------------------------------

GOODS = replace(CLUB, benefits=[FILMS], params={**CLUB.params, "films": 0.5})
CHAINLESS = replace(GOODS, benefits=[dc.Benefit("films")])
RAMP = dc.Scenario("x", prices={"monthly": 15}, ramp={"a": 1})
CHEAP = dc.RollOut("x", dc.Scenario("x", offer={"prices": "cheap"}), ["b"])


def ranked(target: object = float, candidates: object = (CHEAP,), fits: object = None) -> None:
    dc.rank_experiments(fitted() if fits is None else fits, target, candidates, start=panel())


def fit_to(moments: object, own: dc.Membership = GOODS, **options: object) -> None:
    dc.calibrate(own, moments, ["price"], **options)


def from_text(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "club.toml"
        file.write_bytes(text)
        dc.Membership.from_toml(file)


REFUSED = [
    (lambda: dc.Scenario("x", **dear, grandfathered="yes").changed(TERM.model()),
     "'yes'.*True.*'contract'"),
    (lambda: replace(TERM, kept={}, kept_until="x"), "kept_until='x'.*'leaving'.*'renewal'"),
    (lambda: dc.forecast({}, []), "the mapping is empty"),
    (lambda: dc.forecast(CLUB, periods="12"), "periods='12' must be a whole number"),
    (lambda: dc.forecast(CLUB, level=90), r"level=90 .*0\.95 for 95%"),
    (lambda: dc.forecast(CLUB, dc.Scenario("x", ramp={})), "'x'.*ramp={} starts nowhere"),
    (lambda: dc.Scenario("x", starts="2025-01"), "starts='2025-01'.*whole numbers of periods"),
    (lambda: dc.Scenario("x", starts=1.5), r"starts=1\.5.*whole numbers of periods"),
    (lambda: dc.forecast(mixed(), start=panel(None), by="region"), "no regions.*region="),
    (lambda: dc.forecast(mixed(), RAMP, start=panel(None)), "no regions.*region="),
    (lambda: read(MENUS, history(["none"]), offers={"from": 1}), "offers must be a table.*dict"),
    (lambda: dc.shapley(GOODS, []), "benefits is empty"),
    (lambda: dc.shapley(GOODS, "films"), r"benefits=\['films'\]"),
    (lambda: dc.shapley(GOODS, outcomes="revenue"), r"outcomes=\['revenue'\]"),
    (lambda: fit_to({"penetration": 0.4}, CHAINLESS), "'films' has no chain.*gain= and stay="),
    (lambda: fit_to({"penetration": np.nan}), "'penetration'.*finite number, got nan"),
    (lambda: fit_to({"penetration": "40%"}), "'penetration'.*finite number, got '40%'"),
    (lambda: fit_to({"penetration": 40}), r"'penetration' is 40.*0\.4 for 40 %"),
    (lambda: fit_to({"penetration": 0.4}, bounds={"prise": (0, 1)}), "'prise'.*Did.*'price'"),
    (lambda: fit_to({"penetration": 0.4}, bounds={"price": (3, 1)}), r"\(3, 1\) must rise"),
    (lambda: dc.welfare(GOODS, [dc.Scenario("x")]), "one Scenario.*one at a time.*got list"),
    (lambda: dc.welfare(GOODS, "x"), "one Scenario, got str"),
    (lambda: dc.welfare(GOODS, RAMP), r"forecast\(\.\.\.\)\.welfare"),
    (lambda: dc.check_identified(CLUB.model(), dc.Scenario("x")), r"scenario\.changed\("),
    (lambda: dc.check_identified(CLUB.model(), fitted()), r"got Results: pass results\.model"),
    (lambda: dc.check_identified(CLUB.model(), CLUB), r"got Membership: pass club\.model\(\)"),
    (lambda: dc.bundles(GOODS, prices={"monthly": 79}), r"\{'monthly': \[79\]\}"),
    (lambda: dc.bundles(GOODS, prices={"monthly": "79"}), "'monthly': a list of prices"),
    (lambda: dc.bundles(GOODS, prices={"monthly": []}), "prices of 'monthly'"),
    (lambda: dc.bundles(GOODS, prices={"monthly": ["a"]}), "'monthly'.*finite number, got 'a'"),
    (lambda: dc.bundles(GOODS, prices=[79]), "prices must be {plan: .*got list"),
    (lambda: dc.bundles(GOODS, prices={"montly": [79]}), "'montly'.*Did you mean 'monthly'"),
    (lambda: dc.bundles(GOODS, objective="profitt"), "'profitt'.*Did you mean 'profit'"),
    (lambda: dc.bundles(GOODS, starts=0), "starts=0"),
    (lambda: ranked("penetration"), "target='penetration' must be a function of a fit"),
    (lambda: ranked(lambda fit: 1.0), "does not move with any parameter"),
    (lambda: ranked(lambda fit: float("nan")), "target returns.*finite number, got nan"),
    (lambda: ranked(lambda fit: fit.theta[0], CHEAP), "candidates=.*give a list"),
    (lambda: ranked(fits={"all": fitted()}), "takes one Results, got dict"),
    (lambda: replace(CHEAP, share=50), r"share=50 .*0\.5 for half"),
    (lambda: replace(CHEAP, months=0), "months=0 must be a whole number"),
    (lambda: replace(CHEAP, regions="north"), r"regions=\['north'\]"),
    (lambda: from_text(b"# \xe9"), r"club\.toml is not UTF-8"),
    (lambda: from_text(b"[[plans]]\nname = 'monthly'"), "'price' of 'monthly' is missing"),
    (lambda: dc.simulate(CLUB), r"club\.model\(\), params=club\.theta\(\), start=club\.newcomers"),
    (lambda: dc.Scenario("x", bundle={"films": -0.5}).changed(GOODS.model()), r"films.*-0\.5"),
]  # fmt: skip


CASES = [(dc.DataError, *x) for x in UNREAD] + [(dc.SpecificationError, *x) for x in REFUSED]


@pytest.mark.parametrize(("kind", "call", "message"), CASES, ids=[m for _, _, m in CASES])
def test_it_is_refused_in_words(kind, call, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


@pytest.mark.filterwarnings("error")
def test_numbers_ten_times_off_are_said_to_be_slips():
    model = replace(GOODS, plans=[dc.Plan("annual", 120, periods=12)], menus={}).model()
    slips = {"prices": {"annual": 1.2}}, {"bundle": {"films": 50}}
    for change, what in zip(slips, ("'annual' goes from 120 to 1.2", "films"), strict=True):
        with pytest.warns(dc.DynChoiceWarning, match=what):
            dc.Scenario("x", **change).changed(model)
    dc.Scenario("x", prices={"annual": lambda p: 1.2 * p}, bundle={"films": 0}).changed(model)


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


def test_the_price_of_today_is_given_where_everybody_pays_the_same():
    outside = (GOODS.states.frame()["contract"] == "none").to_numpy(dtype=float)
    cheap = (GOODS.states.frame()["prices"] == "cheap").to_numpy()
    grid = {"monthly": [9], "term": [24]}
    for start, monthly in ((outside, np.nan), (outside * cheap, 8.0), (outside * ~cheap, 10.0)):
        row = dc.bundles(GOODS, prices=grid, start=start).table.iloc[0]
        assert row["bundle"] == "as today" and row["price term"] == 24
        assert row["price monthly"] == pytest.approx(monthly, nan_ok=True)


def test_prices_beyond_those_seen_are_named_with_their_range():
    scenarios = [dc.Scenario(f"{p}", prices={"monthly": p}) for p in (7, 9, 15)]
    found = dc.forecast(fitted(), scenarios, start=panel(), periods=1, draws=0).badges
    reasons = found.set_index("scenario")["reasons"]
    for p in ("7", "15"):
        assert f"'monthly' goes to {p}, seen were 8 to 10" in reasons[p]
    assert "seen were" not in reasons["9"]


def test_an_identification_report_without_regions_says_that_none_were_looked_at():
    model, sentence = fitted().model, "no roll-out or price change was looked for"
    assert sentence in " ".join(str(dc.identification(model, panel(None))).split())
    assert sentence not in " ".join(str(dc.identification(model, panel())).split())


def test_without_any_choice_seen_numbers_rest_on_assumed_values():
    s, fit = dc.Scenario("x", prices={"monthly": 15}), fitted()
    empty, model = np.zeros_like(fit.counts), s.changed(fit.model)
    found = badge(s, fit.model, model, s.state_map(fit.model), empty)
    assert found.label == found.money == "rests on assumed values"
    f = dc.forecast(replace(fit, counts=empty), s, start=panel(), periods=1, draws=0)
    assert set(f.badges["badge"]) == {"rests on assumed values"}


def test_pictures_keep_their_dates_and_tell_many_scenarios_apart():
    added = dc.Scenario("added", plans=dc.Plan("half", 45, periods=6, like="term"))
    more = [dc.Scenario(f"{p}", prices={"monthly": p}) for p in range(11, 24)]
    options = {"start": panel(), "draws": 0, "long_run": "none"}
    found = dc.forecast(fitted(), [added, *more], periods=7, **options)
    for figure in (found.plot(), found.plot_outcomes()):
        shown = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
        assert shown == ["2024-11", "2025-01", "2025-03", "2025-05"]
        assert list(figure.axes[-1].get_xticks()) == [0, 2, 4, 6]
        styles = {(x.get_color(), x.get_linestyle()) for x in figure.axes[0].lines}
        assert len(styles) == len(figure.axes[0].lines) == 15
