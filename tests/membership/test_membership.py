"""Membership against two independent accounts of the same thing.

The prototype of papers.md 7.4 against ``oracle_primelike`` state by state; other programmes
against scalar rules written here, one level and choice at a time.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import oracle_primelike as oracle
import pandas as pd
import pytest

import dynchoice as dc

pytestmark = pytest.mark.filterwarnings("ignore:.*are refunded by the new")

TYPES = ("engaged", "careful", "light")
SHARES = np.array([0.5, 0.25, 0.25])
CHAINS = {
    "shipping": (0.30, 0.92, 0.22, 0.88),
    "video": (0.12, 0.93, 0.05, 0.82),
    "music": (0.06, 0.93, 0.03, 0.85),
    "grocery": (0.05, 0.93, 0.02, 0.85),
    "gaming": (0.02, 0.93, 0.01, 0.85),
}
SCENARIOS = {
    "no_video": dc.Scenario("no_video", bundle={"video": 0}),
    "no_shipping": dc.Scenario("no_shipping", bundle={"shipping": 0}),
    "gaming_doubled": dc.Scenario("gaming_doubled", bundle={"gaming": 2}),
    "annual_159": dc.Scenario("annual_159", prices={"annual": 159}),
    "monthly_17.99": dc.Scenario("monthly_17.99", prices={"monthly": 17.99}),
    "attentive": dc.Scenario("attentive", attention=1.0),
}
CASES = [(name, 1) for name in SCENARIOS]
CASES += [("no_video", 2), ("annual_159", 2), ("attentive", 2), ("monthly_17.99", 0)]


# the prototype against the oracle -------------------------------------------------------------


@cache
def prototype(naive: float = 0.0) -> dc.Membership:
    return dc.Membership(
        [
            dc.Plan("monthly", 14.99, trial=1, attention=0.2),
            dc.Plan(
                "annual",
                139,
                periods=12,
                trial=1,
                refund="unused",
                attention=0.03,
                renewal_attention=0.42,
            ),
        ],
        [dc.Benefit(name, *chain) for name, chain in CHAINS.items()],
        beta=0.95 ** (1 / 12),
        tenure=3,
        attention_outside=0.15,
        attention_trial=0.6,
        naive=naive,
        params={
            **dict(zip(CHAINS, (0.4, 0.3, 0.125, 0.15, 0.075), strict=True)),
            "tenure": 0.05,
            "price": 0.05,
            "joining cost": 1.15,
            "cancelling cost": 0.6,
            "switching cost": 0.5,
        },
        types={
            "engaged": dc.MemberType(0.5, 1.06, {"member": 0.1, "paying upfront": 0.0}),
            "careful": dc.MemberType(0.25, 0.95, {"member": 0.1, "paying upfront": 4.5}),
            "light": dc.MemberType(0.25, 0.33, {"member": -0.1, "paying upfront": 2.0}),
        },
    )


def contract_index(label: str) -> int:
    """The oracle's number of a contract level by the package's label."""
    plain = {"new": "NE", "lapsed": "NL", "trial monthly": "TM", "trial annual": "TY"}
    if label in plain:
        return oracle.INDEX[plain[label]]
    name, years = label.split(" y")
    if name == "monthly":
        return oracle.INDEX["M", int(years)]
    return oracle.INDEX["Y", int(name.removeprefix("annual_")), int(years)]


@cache
def places() -> tuple[np.ndarray, np.ndarray]:
    """Contract level and engagement combination of the oracle, for each state of the package."""
    frame = prototype().model().states.frame()
    contract = np.array([contract_index(x) for x in frame["contract"]])
    combos = {tuple(c): i for i, c in enumerate(oracle.COMBOS.tolist())}
    use = np.array([combos[tuple(row)] for row in frame[list(CHAINS)].to_numpy().tolist()])
    return contract, use


def by_state(x: np.ndarray) -> np.ndarray:
    """Something of the oracle (..., 43, 32) in the package's order of states (S, ...)."""
    c, e = places()
    return np.moveaxis(np.broadcast_to(x, (*x.shape[:-2], 43, 32))[..., c, e], -1, 0)


def primitives(scenario: str = "baseline", naive: bool = False) -> dict:
    return oracle.scenarios({**oracle.primitives(), "naive": naive})[scenario]


@cache
def solved(scenario: str, kind: int, naive: bool = False) -> tuple[np.ndarray, ...]:
    """The oracle's value, logit pi and executed P.

    The baseline is solved by the oracle. Under a scenario the package's value is put into the
    oracle's Bellman step: it contracts, so a residual r bounds the distance to its one fixed point
    by r / (1 - beta), and one dense solution less is made.
    """
    p = primitives(scenario, naive)
    if scenario == "baseline" and not naive:
        return oracle.solve(p, p["types"][kind])
    club = prototype(float(naive))
    model = club.model()
    if scenario != "baseline":
        model = SCENARIOS[scenario].changed(model)
    guess = np.empty((43, 32))
    guess[places()] = dc.solve(model, club.theta(TYPES[kind])).V
    value, pi = oracle.step(p, p["types"][kind], guess)
    assert np.abs(value - guess).max() / (1 - p["beta"]) < 1e-9
    return value, pi, oracle.mixed(pi, oracle.attention(p))


@cache
def rested(scenario: str, kind: int, naive: bool = False) -> np.ndarray:
    """The oracle's distribution after 600 months."""
    return oracle.steady(primitives(scenario, naive), solved(scenario, kind, naive)[2])


@cache
def far_outcomes(naive: float = 0.0) -> pd.DataFrame:
    """Outcomes by type in month 601 of everybody having started as a newcomer."""
    names = ("annual_159",) if naive else tuple(SCENARIOS)
    found = dc.forecast(
        prototype(naive),
        [SCENARIOS[n] for n in names],
        start="newcomers",
        periods=601,
        by="type",
        long_run="none",
    )
    assert found.converged
    last = found.outcomes.query("period == 601")
    return last.set_index(["scenario", "type", "measure"])["value"].sort_index()


def test_the_prototype_has_the_43_contract_levels_of_the_paper():
    club = prototype()
    labels = club.contracts.labels
    assert len(labels) == len(set(labels)) == 43
    assert sorted(contract_index(x) for x in labels) == list(range(43))
    c, e = places()
    assert len(set(zip(c.tolist(), e.tolist(), strict=True))) == 1376 == club.states.size
    assert club.choices == ("none", "monthly", "annual")


def test_laws_availability_attention_and_default_are_the_oracles():
    model = prototype().model()
    p, (c, e) = oracle.primitives(), places()
    u = by_state(oracle.utilities(p, p["types"][0]))
    np.testing.assert_array_equal(model.available, np.isfinite(u))
    np.testing.assert_array_equal(model.attention, by_state(oracle.attention(p)))
    np.testing.assert_array_equal(model.default, by_state(oracle.defaults()).argmax(axis=1))
    F = model.transitions.dense_array()
    G, Q = oracle.contract_kernels(), oracle.engagement_kernels(p)
    for j in range(3):
        want = G[j][np.ix_(c, c)] * Q[j][np.ix_(e, e)]
        here = model.available[:, j]
        np.testing.assert_allclose(F[here, j], want[here], rtol=0, atol=1e-15)
    np.testing.assert_allclose(F.sum(axis=2), 1, atol=1e-12)


@pytest.mark.parametrize("kind", range(3), ids=TYPES)
def test_utility_values_and_choices_of_each_type_are_the_oracles(kind):
    club = prototype()
    model, theta = club.model(), club.theta(TYPES[kind])
    p = oracle.primitives()
    u = by_state(oracle.utilities(p, p["types"][kind]))
    np.testing.assert_allclose(model.flow_utility(theta), u, rtol=0, atol=1e-12)
    found = dc.solve(model, theta)
    V, pi, P = (by_state(x) for x in solved("baseline", kind))
    assert found.converged
    np.testing.assert_allclose(found.V, V, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.ccp, P, rtol=0, atol=1e-9)


def test_naive_members_choose_and_value_as_the_oracles_do():
    club = prototype(1.0)
    model = club.model()
    assert not model.sophisticated
    found = dc.solve(model, club.theta("careful"))
    V, pi, P = (by_state(x) for x in solved("baseline", 1, True))
    np.testing.assert_allclose(found.V, V, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.ccp, P, rtol=0, atol=1e-9)
    assert np.abs(found.ccp - by_state(solved("baseline", 1)[2])).max() > 0.01
    assert any("overrate" in note for note in club.notes)


PAIRS = {
    "penetration": "penetration",
    "monthly_share": "share of members: monthly",
    "conversion": "trial conversion",
    "renewal": "renewal rate",
    **{f"renewal_{t}": f"renewal rate y{t}" for t in range(3)},
}


def compare(found: pd.Series, want: dict) -> None:
    """All reported statistics of the oracle, to 1e-6 of their size."""
    got = {name: found[measure] for name, measure in PAIRS.items()}
    got["revenue"] = 12 * found["revenue"]
    for name, value in got.items():
        assert value == pytest.approx(want[name], rel=1e-6), name


@pytest.mark.parametrize(("scenario", "kind"), CASES, ids=lambda x: str(x))
def test_scenarios_move_the_prototype_as_in_the_oracle(scenario, kind):
    p = primitives(scenario)
    flows = oracle.flows(p, rested(scenario, kind), solved(scenario, kind)[2])
    compare(far_outcomes()[scenario, TYPES[kind]], oracle.ratios(flows))


@pytest.mark.parametrize("kind", range(3), ids=TYPES)
def test_the_baseline_of_each_type_is_the_oracles(kind):
    p = oracle.primitives()
    flows = oracle.flows(p, rested("baseline", kind), solved("baseline", kind)[2])
    compare(far_outcomes()["baseline", TYPES[kind]], oracle.ratios(flows))


def test_types_add_up_by_their_shares():
    p = oracle.primitives()
    flows = [oracle.flows(p, rested("baseline", k), solved("baseline", k)[2]) for k in range(3)]
    compare(far_outcomes()["baseline", "all"], oracle.ratios(SHARES @ np.array(flows)))


@pytest.mark.parametrize("scenario", [None, "annual_159"])
def test_naive_members_move_as_in_the_oracle(scenario):
    name = scenario or "baseline"
    p = primitives(name, True)
    flows = oracle.flows(p, rested(name, 1, True), solved(name, 1, True)[2])
    compare(far_outcomes(1.0)[name, "careful"], oracle.ratios(flows))


def alone(kind: int, naive: float = 0.0) -> dc.Membership:
    """The prototype with customers of one type only."""
    club = prototype(naive)
    own = dict(zip(club.names, club.theta(TYPES[kind]), strict=True))
    return replace(club, types={}, params=own)


@pytest.mark.parametrize("kind", [1, 2], ids=TYPES[1:])
def test_surplus_of_the_prototypes_scenarios_is_the_oracles(kind):
    """Dollars at the baseline's distribution, given to both as the same array."""
    names = [n for n, k in CASES if k == kind]
    club, start = alone(kind), by_state(rested("baseline", kind))
    found = dc.forecast(club, [SCENARIOS[n] for n in names], start=start, periods=1)
    money = found.welfare.set_index("scenario")["money"]
    for name in names:
        gain = solved(name, kind)[0] - solved("baseline", kind)[0]
        want = (rested("baseline", kind) * gain).sum() / 0.05
        assert money[name] == pytest.approx(want, rel=1e-6), name


def test_naive_members_flow_of_surplus_is_what_they_experience():
    """papers.md 7.5: under the true attention, W - beta F^P W, not what they expect."""
    p, kind = primitives("baseline", True), 1
    value, pi, P = solved("baseline", kind, True)
    W, mu = oracle.experience(p, p["types"][kind], pi), rested("baseline", kind, True)
    flow = (mu * W).sum() - p["beta"] * (oracle.push(p, mu, P) * W).sum()
    expected = (mu * value).sum() - p["beta"] * (oracle.push(p, mu, P) * value).sum()
    got = far_outcomes(1.0)["baseline", "careful", "surplus"]
    assert got == pytest.approx(flow / 0.05, rel=1e-6)
    assert abs(got - expected / 0.05) > 0.1


def test_decision_value_is_experience_value_for_the_sophisticated():
    p, kind = oracle.primitives(), 2
    value, pi, _ = solved("baseline", kind)
    np.testing.assert_allclose(oracle.experience(p, p["types"][kind], pi), value, atol=1e-8)


# contract moves by scalar rules ---------------------------------------------------------------


def plan(name, price=10.0, **terms):
    return dc.Plan(name, price, **terms)


PROGRAMMES = {
    "weekly": {
        "plans": [plan("week", 3), plan("year", 99, periods=52, refund="prorated")],
        "tenure": 2,
        "per_year": 52,
    },
    "quarterly": {
        "plans": [
            plan("month", 10, trial=1),
            plan("quarter", 25, periods=3, trial=3, cancel="at renewal", renewal="expire"),
        ],
        "tenure": 3,
    },
    "two years": {
        "plans": [plan("month", 10), plan("two", 150, periods=24, refund="none")],
        "tenure": 3,
    },
    "year and a half": {
        "plans": [plan("long", 90, periods=18, refund="unused", renewal_attention=0.9)],
        "tenure": 3,
        "trial_again": None,
    },
    "untracked": {
        "plans": [
            plan("month", 10, renewal="expire", trial=2),
            plan("half", 50, periods=6, refund="prorated", attention=0.1, renewal_attention=0.7),
        ],
        "tenure": 1,
        "trial_again": 1,
    },
    "no trial again": {
        "plans": [plan("month", 10, trial=1), plan("year", 80, periods=12)],
        "tenure": 1,
        "trial_again": None,
        "attention_outside": 0.3,
        "attention_trial": 0.8,
    },
    "closed": {
        "plans": [
            plan("month", 10, trial=1, for_sale=False, attention=0.5),
            plan("year", 80, periods=12, attention=0.5),
            plan("old", 60, periods=4, for_sale=False, cancel="at renewal", attention=0.4),
        ],
        "tenure": 2,
    },
    "shortened": {
        "plans": [
            plan("year", 80, periods=3, running=6, trial=0, trial_running=2, refund="prorated"),
            plan("month", 9, trial=1, trial_running=3),
        ],
        "tenure": 2,
        "per_year": 6,
    },
}


def tag(plans, kind, i=-1, left=0, years=0, tenure=1, trials=True):
    """The label of a level, spelt from its meaning."""
    if kind == "new":
        return "new"
    if kind == "lapsed":
        return "lapsed" if trials else "none"
    longest = trial_clock(plans[i]) if kind == "trial" else paid_clock(plans[i])
    label = plans[i].name + (f"_{left}" if longest > 1 else "")
    if kind == "trial":
        return f"trial {label}"
    return label + (f" y{years}" if tenure > 1 else "")


def trial_clock(p):
    return max(p.trial, p.trial_running or 0)


def paid_clock(p):
    return max(p.periods, p.running or 0)


def all_levels(plans, tenure):
    """(kind, plan, left, years) of every level."""
    trials = any(trial_clock(p) for p in plans)
    out = [("new", -1, 0, 0), ("lapsed", -1, 0, 0)] if trials else [("lapsed", -1, 0, 0)]
    for i, p in enumerate(plans):
        out += [("trial", i, m, 0) for m in range(trial_clock(p))]
        out += [("paid", i, m, y) for m in range(paid_clock(p)) for y in range(tenure)]
    return out


def rule(club, level, choice):
    """What one choice does at one level: None if it cannot be made, else a dict.

    ``next`` level -> probability, ``pays`` whether the price is charged. ``choice`` -1 is none.
    """
    plans, tenure = club.plans, club.tenure
    kind, i, left, years = level
    trials = any(trial_clock(p) for p in plans)
    if choice < 0:
        if kind == "paid" and left > 0 and plans[i].cancel == "at renewal":
            return None
        if kind == "new":
            return {"next": {("new", -1, 0, 0): 1.0}, "pays": False}
        if kind == "lapsed" and trials and club.trial_again is not None:
            q = 1 / club.trial_again
            moves = {("lapsed", -1, 0, 0): 1 - q, ("new", -1, 0, 0): q}
            return {"next": {k: v for k, v in moves.items() if v > 0}, "pays": False}
        return {"next": {("lapsed", -1, 0, 0): 1.0}, "pays": False}
    p = plans[choice]
    if left > 0:  # bound to the plan or the trial that runs
        if choice != i:
            return None
        return {"next": {(kind, i, left - 1, years): 1.0}, "pays": False}
    if not p.for_sale:
        return None
    if kind == "new" and p.trial > 0:
        return {"next": {("trial", choice, p.trial - 1, 0): 1.0}, "pays": False}
    first = p.periods - 1
    if kind != "paid":
        return {"next": {("paid", choice, first, 0): 1.0}, "pays": True}
    # a paid contract is over: its length has been served, but the month that ends a monthly
    # plan by a switch counts with the new plan
    served = 0 if plans[i].periods == 1 and choice != i else plans[i].periods
    grown, chances = served / club.per_year, defaultdict(float)
    whole = int(np.floor(grown + 1e-12))
    for extra, q in ((0, 1 - (grown - whole)), (1, grown - whole)):
        if q > 1e-12:
            chances["paid", choice, first, min(years + whole + extra, tenure - 1)] += q
    return {"next": dict(chances), "pays": True}


def lazy(club, level):
    """What happens to who does not look: -1 for none."""
    kind, i, left, _ = level
    if i < 0:
        return -1
    p = club.plans[i]
    if left == 0 and (p.renewal == "expire" or not p.for_sale):
        return -1
    return i


def looks(club, level):
    """Probability of an active choice."""
    kind, i, left, _ = level
    if kind in ("new", "lapsed"):
        return club.attention_outside
    if kind == "trial":
        return club.attention_trial
    p = club.plans[i]
    ending = paid_clock(p) > 1 and left == 0 and p.renewal_attention is not None
    return p.renewal_attention if ending else p.attention


@pytest.mark.parametrize("name", PROGRAMMES)
def test_contract_moves_follow_the_scalar_rules(name):
    club = dc.Membership(**PROGRAMMES[name])
    model = club.model()
    levels = all_levels(club.plans, club.tenure)
    trials = any(trial_clock(p) for p in club.plans)

    def label(level):
        return tag(club.plans, *level, club.tenure, trials)

    at = {x: i for i, x in enumerate(model.states.frame()["contract"])}
    assert sorted(at) == sorted(label(x) for x in levels)
    F, pays = model.transitions.dense_array(), club.payments() > 0
    np.testing.assert_allclose(F.sum(axis=2), 1, atol=1e-14)
    for level in levels:
        s = at[label(level)]
        for j in range(len(club.plans) + 1):
            found = rule(club, level, j - 1)
            assert model.available[s, j] == (found is not None), (level, j)
            if found is None:
                continue
            want = np.zeros(len(levels))
            for following, q in found["next"].items():
                want[at[label(following)]] += q
            np.testing.assert_allclose(F[s, j], want, atol=1e-12, err_msg=str((level, j)))
            assert pays[s, j] == found["pays"], (level, j)
        assert model.attention[s] == looks(club, level), level
        if model.attention[s] < 1:
            assert model.default[s] == lazy(club, level) + 1, level


def benefits():
    return [
        dc.Benefit("video", 0.12, 0.93, 0.05, 0.82, by_bundle=True),
        dc.Benefit("music", levels=3, law=LAW),
        dc.Benefit("parcels", 0.3, 0.9, lift={"gain": 1.5, "stay": 1.2}),
    ]


LAW = np.random.default_rng(5).dirichlet(np.ones(3), size=(2, 3))


def rich(refund="unused", **changes):
    """A programme with menus, bundles, kept prices, features and partial benefits."""
    settings = {
        "plans": [
            plan("basic", 8, benefits={"video": 0.5, "parcels": 1}, features={"ads": 2.0}),
            plan("full", 60, periods=6, trial=1, refund=refund, engages=("video", "music")),
        ],
        "benefits": benefits(),
        "beta": 0.97,
        "tenure": 2,
        "per_year": 6,
        "trial_cancel": 0.25,
        "menus": {"2022": {"basic": 7, "full": 50}, "2023": {"full": 55}},
        "bundles": {"all": {}, "less": {"video": 0.0, "parcels": {"full": 0.5}}},
        "kept": {"2022": {"full": 40}, "2023": {"basic": 5, "full": 45}},
    }
    return dc.Membership(**{**settings, **changes})


def utility_rule(club, w, row, level, choice, refund):
    """Utility of one choice in one state, from money, benefits and costs."""
    plans = club.plans
    kind, i, left, years = level
    found = rule(club, level, choice)

    def price(k):
        kept = (club.kept or {}).get(row["prices"], {})
        if row["vintage"] == "kept" and plans[k].name in kept:
            return kept[plans[k].name]
        return club.menus[row["prices"]].get(plans[k].name, plans[k].price)

    if choice < 0:
        back = 0.0
        if kind == "paid" and left > 0:
            unused = row["video"] == row["music"] == row["parcels"] == 0
            share = min(left / plans[i].periods, 1)
            due = plans[i].refund == "prorated" or (plans[i].refund == "unused" and unused)
            back = share * price(i) if due else 0.0
        cost = {"trial": club.trial_cancel, "paid": 1.0}.get(kind, 0.0) * w["cancelling cost"]
        return w["price"] * back - cost
    p = plans[choice]
    u = w["member"] + w["tenure"] * years
    for name in ("video", "music", "parcels"):
        share = 1.0 if p.benefits is None else p.benefits.get(name, 0.0)
        inside = club.bundles[row["bundle"]].get(name, 1.0)
        share *= inside.get(p.name, 1.0) if isinstance(inside, dict) else inside
        u += w[name] * share * row[name]
    u += w["ads"] * p.features.get("ads", 0.0)
    if found["pays"]:
        u -= w["price"] * price(choice) + w["paying upfront"] * (p.periods > 1)
    if kind in ("new", "lapsed"):
        u -= w["joining cost"]
    if kind == "paid" and i != choice:
        u -= w["switching cost"]
    return u


@pytest.mark.parametrize("refund", ["none", "unused", "prorated"])
def test_utility_follows_the_scalar_rule_in_every_state(refund):
    club = rich(refund)
    model = club.model()
    rng = np.random.default_rng(3)
    w = dict(zip(club.names, rng.normal(size=len(club.names)), strict=True))
    assert set(w) == {
        "member", "video", "music", "parcels", "tenure", "ads", "price", "joining cost",
        "cancelling cost", "switching cost", "paying upfront",
    }  # fmt: skip
    u, frame = model.flow_utility(w), model.states.frame()
    levels = {tag(club.plans, *x, club.tenure): x for x in all_levels(club.plans, club.tenure)}
    for s, row in enumerate(frame.to_dict("records")):
        level = levels[row["contract"]]
        for j in range(3):
            if rule(club, level, j - 1) is None:
                assert u[s, j] == -np.inf
            else:
                want = utility_rule(club, w, row, level, j - 1, refund)
                assert u[s, j] == pytest.approx(want, abs=1e-12), (row, j)


def chain_rule(club, row, choice):
    """One-period law of each benefit after a choice (-1 none), by name."""
    full, basic = choice == 1, choice == 0
    offered = row["bundle"] == "all"  # the bundle "less" has no video
    video = (0.12, 0.93) if (full or basic) and offered else (0.05, 0.82)
    parcels = (0.3, 0.9) if not basic else (0.45, 1.0)  # lifted, at most one; full: not engaged
    return {
        "video": [1 - video[row["video"]], video[row["video"]]],
        "music": LAW[1 if full else 0][row["music"]],
        "parcels": [1 - parcels[row["parcels"]], parcels[row["parcels"]]],
    }


def test_every_row_of_the_law_is_the_product_of_its_chains():
    club = rich()
    model = club.model()
    states, F = model.states, model.transitions.dense_array()
    np.testing.assert_allclose(F.sum(axis=2), 1, atol=1e-12)
    levels = {tag(club.plans, *x, club.tenure): x for x in all_levels(club.plans, club.tenure)}
    rows = states.frame().to_dict("records")
    code = {tuple(r.values()): i for i, r in enumerate(rows)}
    axes = list(rows[0])
    for s in np.random.default_rng(0).choice(len(rows), 150, replace=False):
        row = rows[s]
        for j in range(3):
            found = rule(club, levels[row["contract"]], j - 1)
            if found is None:
                continue
            want, chains = np.zeros(len(rows)), chain_rule(club, row, j - 1)
            for (level, q), v, m, p in itertools.product(
                found["next"].items(), range(2), range(3), range(2)
            ):
                following = row | {"video": v, "music": m, "parcels": p}
                following["contract"] = tag(club.plans, *level, club.tenure)
                following["vintage"] = row["vintage"] if j else "current"
                chance = q * chains["video"][v] * chains["music"][m] * chains["parcels"][p]
                want[code[tuple(following[a] for a in axes)]] += chance
            np.testing.assert_allclose(F[s, j], want, atol=1e-13, err_msg=str((row, j)))


# names, notes and what identifies -------------------------------------------------------------

VIDEO = dc.Benefit("video", 0.2, 0.9)


def test_names_follow_what_the_programme_has():
    month, year = plan("month"), plan("year", 90, periods=12)
    assert dc.Membership([month]).names == ("member", "price", "joining cost")
    assert dc.Membership([month, year], [VIDEO], tenure=2).names == (
        "member", "video", "tenure", "price", "joining cost", "switching cost", "paying upfront",
    )  # fmt: skip
    club = dc.Membership(
        [plan("month", trial=1, features={"gold": 1.0})], [VIDEO], fixed={"price": 0.05}
    )
    assert club.names == ("member", "video", "gold", "joining cost", "cancelling cost")
    assert club.all_names == (
        "member", "video", "gold", "price", "joining cost", "cancelling cost",
    )  # fmt: skip
    assert club.model().names == club.names
    assert dc.Membership([month, year], costs=()).names == ("member", "price")


def test_notes_say_what_is_normalised_and_what_is_assumed():
    month = plan("month")
    [zero, cancel] = dc.Membership([month]).notes
    assert "Utility outside the membership is zero" in zero
    assert "cancelling cost is normalised to 0" in cancel and "'joining cost' holds both" in cancel
    with_trial = dc.Membership([plan("month", trial=1)], trial_cancel=0.25)
    assert any("take 0.25 of the cancelling cost" in x for x in with_trial.notes)
    assert not any("normalised" in x for x in with_trial.notes)
    held = dc.Membership([plan("month", trial=1)], fixed={"cancelling cost": 0.4})
    assert any("normalised to 0.4" in x for x in held.notes)


def test_fixed_parameters_enter_utility_and_are_not_estimated():
    club = dc.Membership([plan("month", trial=1)], [VIDEO])
    values = dict(zip(club.names, (0.2, 0.5, 0.07, 1.1, 0.4), strict=True))
    held = replace(club, fixed={"price": 0.07, "cancelling cost": 0.4})
    free = [values[n] for n in held.names]
    np.testing.assert_allclose(
        held.model().flow_utility(free), club.model().flow_utility(values), atol=1e-15
    )


def panel_of(club, members, periods, seed):
    """A panel simulated from newcomers without any use, the clock's levels given."""
    model = club.model()
    first = {a: levels[0] for a, levels in model.states.axes.items()}
    code = model.states.codes(pd.DataFrame({k: [v] for k, v in first.items()}))
    paths = dc.simulate(
        model, params=club.theta(), members=members, periods=periods, seed=seed,
        start=np.repeat(code, members),
    )  # fmt: skip
    return club.panel(
        paths.frame(), member="member", time="period", plan="choice", contract="contract"
    )


def test_joining_and_cancelling_costs_are_told_apart_by_a_trial_only():
    """papers.md 7.3: without a trial NFXP refuses both, and names them."""
    params = {
        "member": 0.2,
        "video": 0.6,
        "price": 0.05,
        "joining cost": 1.0,
        "switching cost": 0.4,
    }
    params |= {"paying upfront": 0.5}
    plans = [plan("month", 8), plan("half", 40, periods=6)]
    base = dc.Membership(plans, [VIDEO], beta=0.95, params=params, fixed={"price": 0.05})
    panel = panel_of(base, 400, 12, 5)
    both = replace(
        base,
        costs=("joining cost", "cancelling cost", "switching cost", "paying upfront"),
        params={**params, "cancelling cost": 0.3},
    )
    with pytest.raises(dc.IdentificationError) as error:
        dc.NFXP(both.model(), panel).fit()
    for name in ("member", "joining cost", "cancelling cost"):
        assert name in str(error.value)
    assert "video" not in str(error.value)
    assert dc.NFXP(base.model(), panel).fit().converged
    # what cannot be told apart moves no choice: a cost of leaving k is a cost of joining k less,
    # with (1 - beta) k taken from every month of membership
    k = 0.3
    moved = {**params, "cancelling cost": k, "member": 0.2 - (1 - 0.95) * k}
    moved["joining cost"] = 1.0 - k
    names = both.names
    one = dc.solve(base.model(), [params[n] for n in base.names])
    two = dc.solve(both.model(), [moved[n] for n in names])
    np.testing.assert_allclose(one.ccp, two.ccp, atol=1e-12)
    # a trial breaks the tie
    free = [plan("month", 8, trial=1), plan("half", 40, periods=6, trial=1)]
    trial = replace(both, plans=tuple(free))
    assert dc.NFXP(trial.model(), panel_of(trial, 400, 12, 5)).fit().converged


def test_types_and_segments_change_what_they_name():
    club = replace(
        prototype(),
        params={**prototype().params, "member": 0.0, "paying upfront": 1.0},
        segments={
            "student": {"prices": {"annual": 69}, "params": {"price": 0.08}},
            "other": {},
        },
        plans=(*prototype().plans, plan("campus", 5, segments=("student",))),
    )
    student, other = club.segment("student"), club.segment("other")
    assert [p.price for p in student.plans] == [14.99, 69, 5]
    assert [p.price for p in other.plans] == [14.99, 139, 5]
    assert [p.for_sale for p in student.plans] == [True] * 3
    assert [p.for_sale for p in other.plans] == [True, True, False]
    at = club.names.index("price")
    assert student.theta()[at] == 0.08 and other.theta()[at] == 0.05
    light = other.theta("light")
    np.testing.assert_allclose(light[1:6], 0.33 * other.theta()[1:6])
    assert light[0] == -0.1 and light[club.names.index("paying upfront")] == 2.0
    campus = 3
    assert (
        not other.model().available[:, campus][other.by_contract(other.contracts.held) == 0].any()
    )
    assert student.model().available[:, campus].any()
    np.testing.assert_array_equal(club.model("student").available, student.model().available)


def test_types_scale_every_benefit_also_one_that_is_held_fixed():
    club = dc.Membership(
        [plan("month")],
        [VIDEO],
        params={"member": 0.1, "price": 0.05, "joining cost": 1.0},
        fixed={"video": 0.4},
        types={"a": dc.MemberType(0.5, 2.0), "b": dc.MemberType(0.5, 0.0)},
        beta=0.9,
    )
    free = replace(club, fixed={}, params={**club.params, "video": 0.4})
    one = dc.forecast(club, periods=2, by="type", long_run="none").take_up
    two = dc.forecast(free, periods=2, by="type", long_run="none").take_up
    np.testing.assert_allclose(one["share"], two["share"], atol=1e-12)


@pytest.mark.parametrize("where", ["types", "segments"])
def test_a_type_or_segment_has_its_own_value_of_a_parameter_held_fixed(where):
    own = {
        "types": {"a": dc.MemberType(0.5, 1.0, {"price": 0.02}), "b": dc.MemberType(0.5)},
        "segments": {"a": {"params": {"price": 0.02}}, "b": {}},
    }[where]
    params = {"member": 0.1, "video": 0.4, "joining cost": 1.0}
    held = dc.Membership(
        [plan("month")], [VIDEO], params=params, fixed={"price": 0.05}, beta=0.9, **{where: own}
    )
    free = replace(held, fixed={}, params={**params, "price": 0.05})
    options = {"periods": 2, "long_run": "none", "by": "type" if where == "types" else None}
    one, two = (dc.forecast(club, **options).take_up for club in (held, free))
    np.testing.assert_allclose(one["share"], two["share"], atol=1e-12)


# files ----------------------------------------------------------------------------------------


def clubs():
    base = dc.Membership([plan("month")], [VIDEO])
    return {
        "small": base,
        "prototype": prototype(0.5),
        "rich": rich(),
        "nothing": replace(base, trial_again=None, costs=(), kept={}, fixed={"price": 0.05}),
        "segments": replace(
            base, segments={"a": {"prices": {"month": 5}, "params": {"price": 0.1}}, "b": {}}
        ),
        "segments with types": replace(
            base, segments={"a": {"types": {"x": dc.MemberType(1.0, 2.0, {"price": 0.1})}}}
        ),
        "estimated": dc.Membership(
            [plan("month", running=3, trial_running=0), plan("year", 9, periods=12, like="month")],
            [dc.Benefit("video", by_bundle=True), dc.Benefit("food", given="video", levels=3)],
        ),
        "plan without benefits": dc.Membership([plan("month", benefits={})], [VIDEO]),
        "plan that engages in nothing": dc.Membership([plan("month", engages=())], [VIDEO]),
        "plan for nobody": dc.Membership([plan("month", segments=())], [VIDEO]),
        "numpy numbers": replace(
            base,
            menus={"old": {"month": np.int64(3)}, "new": {"month": np.float64(2.5)}},
            params={"price": np.float64(0.05)},
        ),
    }


@pytest.mark.parametrize("name", clubs())
def test_a_toml_file_gives_the_programme_back(name, tmp_path):
    club = clubs()[name]
    path = club.to_toml(tmp_path / "club.toml")
    back = dc.Membership.from_toml(path)
    assert back == club
    assert dc.Membership.from_dict(club.to_dict()) == club
    np.testing.assert_array_equal(back.features, club.features)
    assert back.names == club.names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan = 3", r"setting 'plan' is unknown. Did you mean 'plans'\?"),
        ("tenur = 3\n[[plans]]\nname='m'\nprice=1", r"setting 'tenur' is unknown.*'tenure'"),
        ("[[plans]]\nname='m'\nprice=1\nperods=3", r"plans\[0\]: .*'perods'.*'periods'"),
        ("[[plans]]\nname='m'", r"plans\[0\]: .*price"),
        ("plans = 3", r"plans: a list of tables"),
        ("plans = ['m']", r"plans\[0\]: a table of settings.*'m'"),
        (
            "[[plans]]\nname='m'\nprice=1\n[[benefits]]\nname='v'\ngian=0.1",
            r"benefits\[0\]: .*'gian'.*'gain'",
        ),
        ("[[plans]]\nname='m'\nprice=1\n[types.a]\nshre=1", r"types.a: .*'shre'.*'share'"),
        ("types = 3\n[[plans]]\nname='m'\nprice=1", r"types"),
        ("segments = 3\n[[plans]]\nname='m'\nprice=1", r"segments"),
        ("[[plans]]\nname='m'\nprice=1\n[segments]\na=3", r"'a'|segments.a"),
        ("[[plans]]\nname='m'\nprice=1\n[segments.a]\nprice=3", r"'price'.*'prices'"),
        ("[[plans]]\nname='m'\nprice=1\n[segments.a]\ntypes=3", r"types"),
        ("menus = 3\n[[plans]]\nname='m'\nprice=1", r"menus"),
        ("[[plans]]\nname='m'\nprice=1\n[menus]\nold=3", r"'old'"),
        ("trial_again = 'nevr'\n[[plans]]\nname='m'\nprice=1", r"trial_again='nevr'"),
        ("[[plans]\n", r"club.toml"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, message):
    path = tmp_path / "club.toml"
    path.write_text(text)
    with pytest.raises(dc.SpecificationError, match=message) as error:
        dc.Membership.from_toml(path)
    assert "club.toml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(dc.SpecificationError, match=r"nowhere\.toml"):
        dc.Membership.from_toml(tmp_path / "nowhere.toml")


def test_the_plain_form_is_plain(tmp_path):
    text = json.dumps(prototype().to_dict())
    assert dc.Membership.from_dict(json.loads(text)) == prototype()


# mistakes -------------------------------------------------------------------------------------

MONTHLY = dc.Plan("monthly", 10)
MISTAKES = {
    # what a user writes, and what the message must hold
    "plan without list": (lambda: dc.Membership(MONTHLY), "plans"),
    "benefit without list": (lambda: dc.Membership([MONTHLY], VIDEO), "benefits"),
    "plans are text": (lambda: dc.Membership(["monthly"]), "'monthly'.*Plan"),
    "no plan": (lambda: dc.Membership([]), "one plan at least"),
    "two plans of one name": (lambda: dc.Membership([MONTHLY, MONTHLY]), "'monthly'.*twice"),
    "two benefits of one name": (lambda: dc.Membership([MONTHLY], [VIDEO, VIDEO]), "'video'"),
    "a plan named none": (lambda: dc.Membership([plan("none")]), "'none'"),
    "a plan without name": (lambda: plan(""), "needs a name"),
    "negative price": (lambda: plan("m", -1), "'m': price=-1"),
    "price in words": (lambda: plan("m", "ten"), "'m': price='ten'"),
    "price is not a number": (lambda: plan("m", float("nan")), "price=nan"),
    "no period": (lambda: plan("m", periods=0), "'m': periods=0"),
    "one and a half periods": (lambda: plan("m", periods=1.5), "periods=1.5"),
    "negative trial": (lambda: plan("m", trial=-1), "trial=-1"),
    "attention 0": (lambda: plan("m", attention=0), "'m': attention=0.*above 0"),
    "attention above 1": (lambda: plan("m", attention=1.2), "attention=1.2"),
    "renewal attention 0": (lambda: plan("m", renewal_attention=0), "renewal_attention=0"),
    "attention outside 0": (
        lambda: dc.Membership([MONTHLY], attention_outside=0),
        "attention_outside=0",
    ),
    "refund misspelt": (lambda: plan("m", refund="unusd"), "'unusd'.*Did you mean 'unused'"),
    "cancel misspelt": (lambda: plan("m", cancel="anytime"), "'anytime'.*'any time'"),
    "renewal misspelt": (lambda: plan("m", renewal="expires"), "'expires'.*'expire'"),
    "benefits of a plan as list": (lambda: plan("m", benefits=["video"]), "'m': benefits"),
    "benefit of a plan misspelt": (
        lambda: dc.Membership([plan("m", benefits={"vdeo": 1})], [VIDEO]),
        "'vdeo'.*Did you mean 'video'",
    ),
    "benefit that engages misspelt": (
        lambda: dc.Membership([plan("m", engages=("vdeo",))], [VIDEO]),
        "'vdeo'.*Did you mean 'video'",
    ),
    "segment of a plan misspelt": (
        lambda: dc.Membership([plan("m", segments=("studnt",))], segments={"student": {}}),
        "'studnt'.*Did you mean 'student'",
    ),
    "segments of a plan as number": (lambda: plan("m", segments=5), "segments"),
    "like misspelt": (
        lambda: dc.Membership([MONTHLY, plan("new", like="montly")]),
        "'montly'.*'monthly'",
    ),
    "feature named as a parameter": (
        lambda: dc.Membership([plan("m", features={"price": 1})]),
        "'m'.*'price'",
    ),
    "feature in words": (lambda: plan("m", features={"gold": "yes"}), "gold='yes'"),
    "benefit named as a parameter": (
        lambda: dc.Membership([MONTHLY], [dc.Benefit("price")]),
        "'price'",
    ),
    "benefit named as an axis": (
        lambda: dc.Membership([MONTHLY], [dc.Benefit("contract")]),
        "'contract'",
    ),
    "gain above 1": (lambda: dc.Benefit("v", 1.1, 0.9), "'v': gain=1.1"),
    "gain without stay": (lambda: dc.Benefit("v", gain=0.1), "'v'.*gain and stay"),
    "outside chain alone": (lambda: dc.Benefit("v", gain_outside=0.1), "'v'.*gain and stay"),
    "one level": (lambda: dc.Benefit("v", levels=1), "levels=1"),
    "gain with three levels": (lambda: dc.Benefit("v", 0.1, 0.9, levels=3), "two levels"),
    "law of the wrong shape": (lambda: dc.Benefit("v", law=np.eye(2)), r"law.*\(2, 2\)"),
    "law that does not sum to one": (lambda: dc.Benefit("v", law=np.ones((2, 2, 2))), "law"),
    "law in words": (lambda: dc.Benefit("v", law="x"), "'v'.*law"),
    "ragged law": (lambda: dc.Benefit("v", law=[[[1, 0]], [[1, 0], [0, 1]]]), "'v'.*law"),
    "given misspelt": (
        lambda: dc.Membership([MONTHLY], [dc.Benefit("f", given="vdeo"), VIDEO]),
        "'f'.*'vdeo'.*'video'",
    ),
    "given as number": (lambda: dc.Benefit("v", given=5), "'v'.*given"),
    "lift as number": (lambda: dc.Benefit("v", 0.1, 0.9, lift=3), "'v'.*lift"),
    "lift misspelt": (lambda: dc.Benefit("v", 0.1, 0.9, lift={"gian": 2}), "'v'.*gian"),
    "lift in words": (
        lambda: dc.Membership([MONTHLY], [dc.Benefit("v", 0.1, 0.9, lift={"gain": "x"})]).model(),
        "'v'.*'x'",
    ),
    "negative lift": (
        lambda: dc.Membership([MONTHLY], [dc.Benefit("v", 0.1, 0.9, lift={"gain": -1})]).model(),
        "'v'",
    ),
    "beta of two": (lambda: dc.Membership([MONTHLY], beta=2), "beta=2"),
    "beta of one": (lambda: dc.Membership([MONTHLY], beta=1).model(), "beta=1"),
    "naive above one": (lambda: dc.Membership([MONTHLY], naive=2), "naive=2"),
    "tenure of none": (lambda: dc.Membership([MONTHLY], tenure=0), "tenure=0"),
    "no period a year": (lambda: dc.Membership([MONTHLY], per_year=0), "per_year=0"),
    "trial again at once": (lambda: dc.Membership([MONTHLY], trial_again=0.5), "trial_again=0.5"),
    "parameter misspelt": (
        lambda: dc.Membership([MONTHLY], params={"prise": 1}),
        "params.*'prise'.*Did you mean 'price'",
    ),
    "parameter in words": (lambda: dc.Membership([MONTHLY], params={"price": "x"}), "price='x'"),
    "parameters as list": (lambda: dc.Membership([MONTHLY], params=[1, 2]), "params"),
    "parameters as None": (lambda: dc.Membership([MONTHLY], params=None), "params"),
    "fixed parameter the model lacks": (
        lambda: dc.Membership([MONTHLY], fixed={"cancelling cost": 0}),
        "fixed.*'cancelling cost'",
    ),
    "cost misspelt": (lambda: dc.Membership([MONTHLY], costs=("joining",)), "'joining'.*'joining"),
    "menu with a plan misspelt": (
        lambda: dc.Membership([MONTHLY], menus={"old": {"montly": 3}}),
        "'old'.*'montly'.*'monthly'",
    ),
    "menu with a negative price": (
        lambda: dc.Membership([MONTHLY], menus={"old": {"monthly": -3}}),
        "'old'.*'monthly'=-3",
    ),
    "menu as number": (lambda: dc.Membership([MONTHLY], menus={"old": 3}), "'old'"),
    "menus as list": (lambda: dc.Membership([MONTHLY], menus=[{"monthly": 3}]), "menus"),
    "bundle with a benefit misspelt": (
        lambda: dc.Membership([MONTHLY], [VIDEO], bundles={"less": {"vdeo": 0}}),
        "'less'.*'vdeo'.*'video'",
    ),
    "bundle with a plan misspelt": (
        lambda: dc.Membership([MONTHLY], [VIDEO], bundles={"less": {"video": {"montly": 0}}}),
        "'montly'.*'monthly'",
    ),
    "bundle as number": (lambda: dc.Membership([MONTHLY], [VIDEO], bundles={"less": 0}), "'less'"),
    "kept price of no plan": (
        lambda: dc.Membership([MONTHLY], kept={"": {"montly": 3}}),
        "'montly'.*'monthly'",
    ),
    "kept price of no menu": (
        lambda: dc.Membership([MONTHLY], menus={"old": {}}, kept={"odl": {"monthly": 3}}),
        "'odl'.*'old'",
    ),
    "types that do not sum to 1": (
        lambda: dc.Membership([MONTHLY], types={"a": dc.MemberType(0.5)}),
        "sum to 0.5",
    ),
    "type as number": (lambda: dc.Membership([MONTHLY], types={"a": 0.5}), "'a'.*MemberType"),
    "types as list": (lambda: dc.Membership([MONTHLY], types=[dc.MemberType(1)]), "types"),
    "type with a parameter misspelt": (
        lambda: dc.Membership([MONTHLY], types={"a": dc.MemberType(1, params={"prise": 1})}),
        "'a'.*'prise'.*'price'",
    ),
    "share above 1": (lambda: dc.MemberType(1.5), "share.*1.5"),
    "parameters of a type as list": (lambda: dc.MemberType(1, params=["price"]), "price|params"),
    "type that is not there": (
        lambda: dc.Membership(
            [MONTHLY], types={"heavy": dc.MemberType(1)}, params={"price": 1}
        ).theta("hevy"),
        "'hevy'.*'heavy'",
    ),
    "parameter without value": (
        lambda: dc.Membership([MONTHLY], params={"price": 1}).theta(),
        "'member'",
    ),
    "segment misspelt": (
        lambda: dc.Membership([MONTHLY], segments={"student": {}}).model("studnt"),
        "'studnt'.*'student'",
    ),
    "segment with an unknown key": (
        lambda: dc.Membership([MONTHLY], segments={"a": {"price": {}}}),
        "'a'.*'price'.*'prices'",
    ),
    "segment with a plan misspelt": (
        lambda: dc.Membership([MONTHLY], segments={"a": {"prices": {"montly": 3}}}),
        "'a'.*'montly'.*'monthly'",
    ),
    "segment with a negative price": (
        lambda: dc.Membership([MONTHLY], segments={"a": {"prices": {"monthly": -3}}}).model("a"),
        "'monthly'.*-3",
    ),
    "segment as None": (lambda: dc.Membership([MONTHLY], segments={"a": None}), "'a'"),
    "segments as list": (lambda: dc.Membership([MONTHLY], segments=["a"]), "segments"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_what_was_meant(name):
    attempt, message = MISTAKES[name]
    with pytest.raises(dc.SpecificationError, match=message):
        attempt()


def test_a_segment_or_benefit_given_as_text_is_one_name():
    """As ``Benefit.given`` takes it, and not a tuple of letters."""
    assert plan("m", segments="student").segments == ("student",)
    assert plan("m", engages="video").engages == ("video",)


def test_a_benefit_without_a_chain_asks_for_it_in_a_forecast():
    club = dc.Membership(
        [MONTHLY],
        [dc.Benefit("video")],
        params={"member": 0.0, "video": 0.1, "price": 0.1, "joining cost": 1.0},
    )
    with pytest.raises(dc.SpecificationError, match=r"'video'.*gain="):
        dc.forecast(club, periods=2)
