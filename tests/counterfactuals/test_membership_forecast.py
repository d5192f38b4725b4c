"""Forecasts of memberships against dense matrices, brute-force induction and simulated members.

Every scenario is built twice: by :class:`dynchoice.Scenario`, and by hand as the programme that
it leads to. The second is solved by value iteration on dense arrays, with members moved by what
their contract levels mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc

pytestmark = pytest.mark.filterwarnings("ignore:.*are refunded by the new")

TABLES = ("take_up", "flows", "outcomes", "welfare", "long_run")
BETA = 0.94
TRUTH = {
    "member": -0.1, "video": 0.5, "ship": 0.6, "tenure": 0.1, "price": 0.08, "joining cost": 0.7,
    "cancelling cost": 0.5, "switching cost": 0.3, "paying upfront": 0.4,
}  # fmt: skip
MONTHLY = dc.Plan("monthly", 10, trial=1, attention=0.5)
ANNUAL = dc.Plan(
    "annual", 34, periods=4, trial=1, refund="unused", attention=0.3, renewal_attention=0.8
)
QUARTER = dc.Plan("quarter", 17, periods=2, like="annual", refund="prorated", attention=0.6)
VIDEO = dc.Benefit("video", 0.3, 0.85, 0.1, 0.6, cost=0.4)
SHIP = dc.Benefit("ship", 0.25, 0.8, 0.2, 0.7, cost=0.7)
NEWS = dc.Benefit("news", 0.1, 0.9, cost=0.2)
CLUB = dc.Membership(
    [MONTHLY, ANNUAL],
    [VIDEO, SHIP],
    beta=BETA,
    tenure=2,
    per_year=6,
    trial_again=8,
    attention_outside=0.7,
    attention_trial=0.9,
    menus={"old": {"monthly": 8, "annual": 28}, "new": {}},
    params=TRUTH,
)


# by hand --------------------------------------------------------------------------------------


def meaning(club: dc.Membership) -> dict[str, tuple]:
    """Contract label -> (kind, plan name, periods left, years), spelt from the plans."""
    trial = {p.name: max(p.trial, p.trial_running or 0) for p in club.plans}
    paid = {p.name: max(p.periods, p.running or 0) for p in club.plans}
    out: dict[str, tuple] = {}
    if any(trial.values()):
        out = {"new": ("new", "", 0, 0), "lapsed": ("lapsed", "", 0, 0)}
    else:
        out["none"] = ("lapsed", "", 0, 0)
    for name in paid:
        for m in range(trial[name]):
            tail = f"_{m}" if trial[name] > 1 else ""
            out[f"trial {name}{tail}"] = ("trial", name, m, 0)
        for m in range(paid[name]):
            for y in range(club.tenure):
                tail = (f"_{m}" if paid[name] > 1 else "") + (f" y{y}" if club.tenure > 1 else "")
                out[name + tail] = ("paid", name, m, y)
    return out


def placed(old: dc.Membership, new: dc.Membership) -> np.ndarray:
    """Where each state of one programme stands in another, by what it means."""
    was, now = meaning(old), {v: k for k, v in meaning(new).items()}
    rows = old.states.frame().to_dict("records")
    names = list(new.states.axes)
    code = {tuple(r.values()): i for i, r in enumerate(new.states.frame().to_dict("records"))}
    out = []
    for row in rows:
        level = was[row["contract"]]
        if row["contract"] == "none" and ("new", "", 0, 0) in now:
            level = ("new", "", 0, 0)  # nobody has had a trial
        vintage = "kept" if level[0] == "paid" else "current"
        other = {"contract": now[level], "vintage": vintage}
        out.append(code[tuple(other.get(a, row.get(a, 0)) for a in names)])
    return np.array(out)


class Brute:
    """A programme as dense arrays, solved by value iteration."""

    def __init__(self, club: dc.Membership, theta: Any = None) -> None:
        self.club, model = club, club.model()
        values = dict(club.params) if theta is None else dict(theta)
        self.theta = np.array([values[n] for n in model.names])
        self.u = model.flow_utility(self.theta)
        self.F = model.transitions.dense_array()
        self.lam, self.hope, self.default = model.attention, model.perceived, model.default
        price = model.utility.x[:, :, model.names.index("price")]
        self.net = -price  # payments less refunds
        self.alpha = self.theta[model.names.index("price")]
        self.beta, (self.S, self.J) = model.beta, self.u.shape
        frame = model.states.frame()
        level = [meaning(club)[x] for x in frame["contract"]]
        self.kind = np.array([x[0] for x in level])
        self.plan = np.array([x[1] for x in level])
        self.left = np.array([x[2] for x in level])
        self.years = np.array([x[3] for x in level])
        held = np.array([list(club.choices).index(p) if p else 0 for p in self.plan])
        self.held = held
        self.frame = frame
        self.cost = np.zeros((self.S, self.J))
        for b in club.benefits:
            for j, p in enumerate(club.plans):
                self.cost[:, j + 1] += b.cost * frame[b.name] * (p.includes(b.name) > 0)

    def step(self, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value, observed probabilities and flow of experience, given the next value."""
        v = self.u + self.beta * (self.F @ ahead)
        top = v.max(axis=1, keepdims=True)
        e = np.exp(v - top)
        logsum = top[:, 0] + np.log(e.sum(axis=1))
        pi = e / e.sum(axis=1, keepdims=True)
        s = np.arange(self.S)
        at = np.where(self.lam < 1, v[s, self.default], 0.0)
        V = self.hope * logsum + (1 - self.hope) * np.where(self.hope < 1, at, 0.0)
        P = self.lam[:, None] * pi
        P[s, self.default] += 1 - self.lam
        safe = np.where(pi > 0, pi, 1.0)
        gain = (pi * (np.where(pi > 0, self.u, 0.0) - np.log(safe))).sum(axis=1)
        own = np.where(self.lam < 1, self.u[s, self.default], 0.0)
        return V, P, self.lam * gain + (1 - self.lam) * own

    def backward(self, ahead: np.ndarray, months: int) -> np.ndarray:
        for _ in range(months):
            ahead = self.step(ahead)[0]
        return ahead

    @property
    def rest(self) -> np.ndarray:
        """The stationary value: 520 months of induction from nothing (0.94^520 = 1e-14)."""
        if not hasattr(self, "_rest"):
            self._rest = self.backward(np.zeros(self.S), 520)
        return self._rest

    def push(self, mu: np.ndarray, P: np.ndarray) -> np.ndarray:
        return np.einsum("sj,sjt->t", mu[:, None] * P, self.F)

    def entries(self, mu: np.ndarray, P: np.ndarray, worth: np.ndarray) -> dict[str, float]:
        """What the tables call outcomes, from one month's distribution and choices."""
        m = mu[:, None] * P
        chosen = np.arange(self.J)[None, :] * np.ones((self.S, 1))
        inside = np.isin(self.kind, ("trial", "paid"))
        plans = {p.name: p for p in self.club.plans}
        long = np.array([bool(p) and max(plans[p].periods, plans[p].running or 0) > 1
                         for p in self.plan])  # fmt: skip
        due = (self.kind == "paid") & long & (self.left == 0)
        ends = (self.kind == "trial") & (self.left == 0)
        out = {
            "outside": m[~inside].sum(),
            "penetration": m[self.kind == "paid"].sum(),
            "joins": m[~inside][:, 1:].sum(),
            "quits": m[inside][:, 0].sum(),
            "switches": (m * ((chosen > 0) & (chosen != self.held[:, None])))[inside].sum(),
            "trial ended": m[ends].sum(),
            "trial converted": m[ends][:, 1:].sum(),
            "due": m[due].sum(),
            "renewed": m[due][:, 1:].sum(),
            "revenue": (m * self.net).sum(),
            "benefit cost": (m * self.cost).sum(),
            "surplus": (mu * worth).sum() / self.alpha,
        }
        out["profit"] = out["revenue"] - out["benefit cost"]
        for j, p in enumerate(self.club.plans, start=1):
            out[f"paid: {p.name}"] = m[(self.kind == "paid") & (self.held == j)].sum()
            if max(p.trial, p.trial_running or 0):
                out[f"in trial: {p.name}"] = m[(self.kind == "trial") & (self.held == j)].sum()
        starts = [j for j, p in enumerate(self.club.plans, start=1) if p.trial]
        out["trial starts"] = m[self.kind == "new"][:, starts].sum()
        for y in range(self.club.tenure):
            at = due & (self.years == y)
            out[f"due y{y}"], out[f"renewed y{y}"] = m[at].sum(), m[at][:, 1:].sum()
        for rate, top, bottom in (
            ("trial conversion", "trial converted", "trial ended"),
            ("renewal rate", "renewed", "due"),
        ):
            out[rate] = out[top] / out[bottom] if out[bottom] > 0 else np.nan
        return out


@dataclass
class Path:
    """A brute-force path: shares (T, J), flows, entries by month, and the welfare change."""

    shares: list[np.ndarray]
    flows: list[np.ndarray]
    entries: list[dict[str, float]]
    welfare: float
    final: tuple[Brute, np.ndarray]


def walk(base, new, mu, months, starts=1, known=None, ends=None, place=None, new_value=None):
    """Push ``mu`` through a scenario, values solved backwards by hand.

    ``new_value`` is the value in the changed programme from its start on; default: at rest.
    """
    known = starts if known is None else known
    place = np.arange(base.S) if place is None else place
    value: dict[int, np.ndarray] = {}  # what standing at the start of a month is worth
    if ends is not None:
        value[ends] = base.rest
        for t in range(ends - 1, starts - 1, -1):
            value[t] = new.step(value[t + 1])[0]
    else:
        value[starts] = new.rest if new_value is None else new_value
    ahead = value[starts][place]
    for t in range(starts - 1, known - 1, -1):
        ahead = value[t] = base.step(ahead)[0]
    mu, at, welfare = mu.copy(), base, 0.0
    shares, flows, entries = [], [], []
    for t in range(1, months + 1):
        if t == known:
            now = value[t] if t < starts else value[starts][place]
            welfare = float((mu * (now - base.rest)).sum())
        if t == starts:
            mu, at = np.bincount(place, weights=mu, minlength=new.S), new
        if t == ends:
            at = base
        if t < known or (ends is not None and t >= ends):
            following = base.rest
        elif t < starts:
            following = value[t + 1] if t + 1 < starts else value[starts][place]
        elif ends is not None:
            following = value[t + 1]
        else:
            following = value[starts]
        _, P, worth = at.step(following)
        shares.append(mu @ P)
        table = np.zeros((at.J, at.J))
        np.add.at(table, at.held, mu[:, None] * P)
        flows.append(table)
        entries.append(at.entries(mu, P, worth))
        mu = at.push(mu, P)
    return Path(shares, flows, entries, welfare, (at, mu))


# scenarios, and the programmes they lead to ----------------------------------------------------


def with_plan(club: dc.Membership, name: str, **change: Any) -> dc.Membership:
    plans = [replace(p, **change) if p.name == name else p for p in club.plans]
    return replace(club, plans=tuple(plans))


def lifted_club(club):
    return replace(club, benefits=(replace(VIDEO, lift={"gain": 1.4, "stay": 1.1}), SHIP))


def video_off(club):
    plans = [
        replace(p, benefits={"video": 0.0, "ship": 1.0}, engages=("video", "ship"))
        for p in club.plans
    ]
    return replace(club, plans=tuple(plans))


DEAR = {"old": {"monthly": 8, "annual": 40}, "new": {"monthly": 10, "annual": 40}}
DEAR_TOO = {k: {**v, "quarter": 17} for k, v in DEAR.items()}
OLD = {"old": {"monthly": 8, "annual": 28}, "new": {"monthly": 10, "annual": 34}}


def everything(club):
    plans = (
        replace(MONTHLY, attention=0.6, trial=0, trial_running=1, benefits=None),
        replace(ANNUAL, for_sale=False, attention=0.6, renewal_attention=None),
        replace(QUARTER, attention=0.6),
    )
    menus = {"old": {"monthly": 9, "annual": 28}, "new": {"monthly": 9, "annual": 34}}
    return replace(
        club,
        plans=plans,
        benefits=(VIDEO, replace(SHIP, lift={"stay": 1.1}), NEWS),
        fixed={"news": 0.3},
        menus=menus,
        kept=OLD,
        attention_outside=0.6,
        attention_trial=0.6,
    )


KINDS: dict[str, tuple[dict[str, Any], Callable[[dc.Membership], dc.Membership]]] = {
    "price": ({"prices": {"annual": 40}}, lambda c: replace(c, menus=DEAR)),
    "price by function": (
        {"prices": {"annual": lambda p: p + 5}},
        lambda c: replace(
            c, menus={"old": {"monthly": 8, "annual": 33}, "new": {"monthly": 10, "annual": 39}}
        ),
    ),
    "grandfathered": (
        {"prices": {"annual": 40}, "grandfathered": True},
        lambda c: replace(c, menus=DEAR, kept=OLD),
    ),
    "plan added": (
        {"plans": QUARTER},
        lambda c: replace(c, plans=(*c.plans, QUARTER)),
    ),
    "plan dropped": ({"drop": "annual"}, lambda c: with_plan(c, "annual", for_sale=False)),
    "contract shorter": (
        {"terms": {"annual": {"periods": 2}}},
        lambda c: with_plan(c, "annual", periods=2, running=4),
    ),
    "contract longer": (
        {"terms": {"annual": {"periods": 6}, "monthly": {"periods": 2}}},
        lambda c: with_plan(with_plan(c, "annual", periods=6), "monthly", periods=2),
    ),
    "trial removed": (
        {"terms": {"annual": {"trial": 0}, "monthly": {"trial": 0}}},
        lambda c: with_plan(
            with_plan(c, "annual", trial=0, trial_running=1), "monthly", trial=0, trial_running=1
        ),
    ),
    "trial longer": (
        {"terms": {"annual": {"trial": 2}}},
        lambda c: with_plan(c, "annual", trial=2),
    ),
    "refund rule": (
        {"terms": {"annual": {"refund": "prorated"}}},
        lambda c: with_plan(c, "annual", refund="prorated"),
    ),
    "no refund, no quitting": (
        {"terms": {"annual": {"refund": "none", "cancel": "at renewal"}}},
        lambda c: with_plan(c, "annual", refund="none", cancel="at renewal"),
    ),
    "no auto-renewal": (
        {"terms": {"annual": {"renewal": "expire"}}},
        lambda c: with_plan(c, "annual", renewal="expire"),
    ),
    "attention everywhere": (
        {"attention": 1.0},
        lambda c: replace(
            with_plan(with_plan(c, "monthly", attention=1.0), "annual", attention=1.0,
                      renewal_attention=None),
            attention_outside=1.0,
            attention_trial=1.0,
        ),
    ),
    "attention by plan": (
        {"attention": {"annual": 0.6, "annual renewal": 0.9, "outside": 0.4, "trial": 0.5}},
        lambda c: replace(
            with_plan(c, "annual", attention=0.6, renewal_attention=0.9),
            attention_outside=0.4,
            attention_trial=0.5,
        ),
    ),
    "engagement lift": ({"engagement": {"video": {"gain": 1.4, "stay": 1.1}}}, lifted_club),
    "new benefit": (
        {"benefits": NEWS, "new_values": {"news": 0.3}},
        lambda c: replace(c, benefits=(*c.benefits, NEWS), fixed={"news": 0.3}),
    ),
    "benefit removed": ({"bundle": {"video": 0}}, video_off),
    "benefit doubled for one plan": (
        {"bundle": {"ship": {"annual": 2}}},
        lambda c: with_plan(c, "annual", benefits={"video": 1.0, "ship": 2.0}),
    ),
    "offer": (
        {"offer": {"prices": "new"}},
        lambda c: c,
    ),
    "offer and plan": (
        {"offer": {"prices": "new"}, "plans": QUARTER, "prices": {"annual": 40}},
        lambda c: replace(c, plans=(*c.plans, QUARTER), menus=DEAR_TOO),
    ),
    "all at once": (
        {
            "plans": QUARTER, "drop": "annual", "prices": {"monthly": 9}, "grandfathered": True,
            "terms": {"monthly": {"trial": 0}}, "engagement": {"ship": {"stay": 1.1}},
            "attention": 0.6, "benefits": NEWS, "new_values": {"news": 0.3},
        },
        everything,
    ),
}  # fmt: skip
LASTING = ("price", "benefit removed", "engagement lift", "attention by plan")


@cache
def start(seed: int = 3) -> np.ndarray:
    """A distribution with mass everywhere, 100 customers in all."""
    return 100 * np.random.default_rng(seed).dirichlet(np.ones(CLUB.states.size))


@cache
def brute(name: str = "") -> Brute:
    return Brute(KINDS[name][1](CLUB)) if name else Brute(CLUB)


@cache
def place_of(name: str) -> np.ndarray:
    place = placed(CLUB, brute(name).club)
    if "offer" in KINDS[name][0]:
        place = place[CLUB.states.codes(CLUB.states.frame().assign(prices="new"))]
    return place


@cache
def forecasts(name: str) -> dc.Forecast:
    """One scenario as a surprise, announced, announced on the day, and for a while."""
    change = KINDS[name][0]
    listed = [
        dc.Scenario("surprise", **change, starts=3),
        dc.Scenario("announced", **change, starts=5, announced=2),
        dc.Scenario("on the day", **change, starts=3, announced=3),
        dc.Scenario("at once", **change),
    ]
    if name in LASTING:
        listed.append(dc.Scenario("promotion", **change, starts=3, ends=6, announced=2))
    found = dc.forecast(CLUB, listed, start=start(), periods=8)
    assert found.converged, found.message
    return found


DATES = {"surprise": (3, 3), "announced": (5, 2), "at once": (1, 1)}


def rows(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def cube(table: pd.DataFrame, J: int, scenario: str, axes: int = 1) -> np.ndarray:
    share = rows(table, scenario=scenario)["share"].to_numpy()
    return share.reshape(-1, *[J] * axes)


def check_path(found: dc.Forecast, scenario: str, path: Path, tol: float = 1e-8) -> None:
    """Every table of a forecast against a path walked by hand."""
    size = path.shares[0].sum()
    J = max(len(x) for x in path.shares)
    shares = cube(found.take_up, J, scenario)
    flows = cube(found.flows, J, scenario, 2)
    for t, (share, flow) in enumerate(zip(path.shares, path.flows, strict=True)):
        pad = J - len(share)
        np.testing.assert_allclose(shares[t], np.pad(share / size, (0, pad)), rtol=0, atol=tol)
        np.testing.assert_allclose(flows[t], np.pad(flow / size, (0, pad)), rtol=0, atol=tol)
    outcomes = rows(found.outcomes, scenario=scenario).pivot(
        index="period", columns="measure", values="value"
    )
    rates = ("trial conversion", "renewal rate")
    for t, entry in enumerate(path.entries, start=1):
        for name, value in entry.items():
            if name not in outcomes:
                continue
            want = value if name in rates else value / size
            got = outcomes.loc[t, name]
            assert got == pytest.approx(want, rel=1e-8, abs=tol, nan_ok=True), (t, name)
    got = rows(found.welfare, scenario=scenario)["change"].iloc[0]
    assert got == pytest.approx(path.welfare / size, rel=1e-8, abs=tol)


@pytest.mark.parametrize("name", KINDS)
def test_paths_of_every_scenario_are_those_walked_by_hand(name):
    found, base, new = forecasts(name), brute(), brute(name)
    for label, (starts, known) in DATES.items():
        path = walk(base, new, start(), 8, starts, known, place=place_of(name))
        check_path(found, label, path)


def test_the_baseline_is_the_one_walked_by_hand():
    check_path(forecasts("price"), "baseline", walk(brute(), brute(), start(), 8))


@pytest.mark.parametrize("name", ["price", "plan added", "contract shorter", "grandfathered"])
def test_an_announced_change_is_backward_induction_over_400_months(name):
    """The new programme from its start to the end of the world in 400 months, then as announced."""
    found, new = forecasts(name), brute(name)
    value = new.backward(np.zeros(new.S), 400)
    path = walk(brute(), new, start(), 8, 5, 2, place=place_of(name), new_value=value)
    check_path(found, "announced", path)
    early = cube(found.take_up, 4 if name == "plan added" else 3, "announced")[1:4]
    assert np.abs(early[:, :3] - cube(found.take_up, 3, "baseline")[1:4]).max() > 1e-5


@pytest.mark.parametrize("name", LASTING)
def test_a_promotion_ends_as_members_expect_and_the_old_policy_returns(name):
    found = forecasts(name)
    path = walk(brute(), brute(name), start(), 8, 3, 2, ends=6)
    check_path(found, "promotion", path)
    # after it, conditional choices are the baseline's: push its distribution by hand
    mu = start().copy()
    _, P, _ = brute().step(brute().rest)
    before = walk(brute(), brute(name), start(), 5, 3, 2, ends=6)
    mu = before.final[1]
    for t in (6, 7, 8):
        share = cube(found.take_up, 3, "promotion")[t - 1]
        np.testing.assert_allclose(share, mu @ P / 100, atol=1e-12)
        mu = brute().push(mu, P)


def check_flows(found: dc.Forecast, **where: Any) -> None:
    """Rows of the flows are last month's take-up, columns this month's."""
    take, table = rows(found.take_up, **where), rows(found.flows, **where)
    J = take["choice"].nunique()
    shares = take["share"].to_numpy().reshape(-1, J)
    flows = table["share"].to_numpy().reshape(-1, J, J)
    np.testing.assert_allclose(flows.sum(axis=1), shares, rtol=0, atol=1e-12)
    np.testing.assert_allclose(flows.sum(axis=2)[1:], shares[:-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_flows_add_up_and_stocks_change_by_joins_less_quits(name):
    found = forecasts(name)
    for scenario in found.take_up["scenario"].unique():
        check_flows(found, scenario=scenario)
        take = rows(found.take_up, scenario=scenario)
        table = rows(found.outcomes, scenario=scenario)
        o = table.pivot(index="period", columns="measure", values="value")
        inside = o["penetration"] + o[[c for c in o if c.startswith("in trial: ")]].sum(axis=1)
        moved = (o["joins"] - o["quits"]).to_numpy()[:-1]
        np.testing.assert_allclose(np.diff(inside), moved, rtol=0, atol=1e-12)
        np.testing.assert_allclose(inside + o["outside"], 1, rtol=0, atol=1e-12)
        paid = o[[c for c in o if c.startswith("paid: ")]].sum(axis=1)
        np.testing.assert_allclose(paid, o["penetration"], rtol=0, atol=1e-12)
        assert (o["revenue"] == o["payments"] - o["refunds"]).all()
        # by plan: next month's stock is this month's take-up
        for p in take["choice"].unique()[1:]:
            stock = o.get(f"paid: {p}", 0.0) + o.get(f"in trial: {p}", 0.0)
            if np.ndim(stock):
                share = take[take["choice"] == p]["share"].to_numpy()
                np.testing.assert_allclose(stock[1:], share[:-1], rtol=0, atol=1e-12)


def numbers(table: pd.DataFrame, scenario: str) -> np.ndarray:
    own = rows(table, scenario=scenario).select_dtypes("number")
    return own.to_numpy()


@pytest.mark.parametrize("name", KINDS)
def test_announced_on_the_day_it_starts_is_a_surprise_bit_for_bit(name):
    found = forecasts(name)
    for table in TABLES:
        a, b = (numbers(getattr(found, table), s) for s in ("surprise", "on the day"))
        assert np.array_equal(a, b, equal_nan=True), table


NULLS = {
    "nothing": {},
    "nothing later": {"starts": 4},
    "nothing announced": {"starts": 5, "announced": 2},
    "same params": {"params": {"price": lambda p: p}},
    "same customers": {"mix": {"all": 1.0}},
    "same offer": {"offer": {"prices": {"old": "old"}}},
    "same prices": {"prices": {"annual": lambda p: p}},
    "same bundle": {"bundle": {"video": 1}},
    "same terms": {"terms": {"annual": {"refund": "unused"}}},
    "same attention": {"attention": {"annual": 0.3}},
    "same engagement": {"engagement": {"video": {"gain": 1.0}}},
}


@pytest.mark.parametrize("name", NULLS)
def test_a_scenario_that_changes_nothing_changes_no_bit(name):
    found = dc.forecast(CLUB, dc.Scenario("null", **NULLS[name]), start=start(), periods=8)
    for table in TABLES:
        a, b = (numbers(getattr(found, table), s) for s in ("baseline", "null"))
        if table == "welfare":
            assert (rows(found.welfare, scenario="null")["change"] == 0).all()
        assert a.shape == b.shape
        assert np.array_equal(a, b, equal_nan=True), (table, np.nanmax(np.abs(a - b)))


# the long run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_long_run_is_what_5000_months_lead_to(name):
    new = brute(name)
    mu = np.bincount(place_of(name), weights=start(), minlength=new.S)
    _, P, worth = new.step(new.rest)
    M = np.einsum("sj,sjt->st", P, new.F)
    for _ in range(5000):
        mu = mu @ M
    want = new.entries(mu, P, worth)
    long_run = rows(forecasts(name).long_run, scenario="at once").set_index("measure")["value"]
    for measure, value in want.items():
        if measure not in long_run:
            continue
        size = 1 if "rate" in measure or "conversion" in measure else 100
        assert long_run[measure] == pytest.approx(value / size, rel=1e-8, abs=1e-9, nan_ok=True), (
            measure
        )


@pytest.mark.parametrize("name", ["price", "grandfathered", "plan added", "contract shorter"])
def test_lifetime_revenue_is_the_discounted_sum_of_months(name):
    change = KINDS[name][0]
    listed = [dc.Scenario("announced", **change, starts=5, announced=2)]
    far = dc.forecast(CLUB, listed, start=start(), periods=600)
    beta = BETA ** np.arange(600)
    for scenario in ("baseline", "announced"):
        o = rows(far.outcomes, scenario=scenario)
        by_month = {m: rows(o, measure=m)["value"].to_numpy() for m in ("revenue", "profit")}
        for found in (far, forecasts(name)):
            value = rows(found.long_run, scenario=scenario).set_index("measure")["value"]
            # what is left after 600 months: 0.94^600 of it, 8e-17
            assert value["lifetime revenue"] == pytest.approx(beta @ by_month["revenue"], rel=1e-9)
            assert value["lifetime profit"] == pytest.approx(beta @ by_month["profit"], rel=1e-9)


@pytest.mark.parametrize("name", ["price", "attention by plan", "plan added", "trial removed"])
def test_surplus_of_the_sophisticated_adds_up_to_their_value(name):
    """The discounted sum of monthly surplus is what the first month's value says."""
    change = KINDS[name][0]
    listed = [
        dc.Scenario("at once", **change),
        dc.Scenario("announced", **change, starts=4, announced=1),
    ]
    far = dc.forecast(CLUB, listed, start=start(), periods=600, long_run="none")
    beta, base = BETA ** np.arange(600), float(start() @ brute().rest) / 100
    change_of = far.welfare.set_index("scenario")["change"]
    for scenario in ("baseline", "at once", "announced"):
        flow = rows(far.outcomes, scenario=scenario, measure="surplus")["value"].to_numpy()
        pv = TRUTH["price"] * float(beta @ flow)
        assert pv == pytest.approx(base + change_of[scenario], rel=1e-9)
    money = far.welfare.set_index("scenario")["money"]
    np.testing.assert_allclose(money, change_of / TRUTH["price"], rtol=1e-12)


def test_naive_members_surplus_is_what_they_experience():
    club = replace(CLUB, naive=1.0)
    naive = Brute(club)
    found = dc.forecast(
        club, dc.Scenario("dear", prices={"annual": 40}, starts=3), start=start(), periods=8
    )
    check_path(found, "baseline", walk(naive, naive, start(), 8))
    dear = Brute(replace(club, menus=DEAR))
    check_path(found, "dear", walk(naive, dear, start(), 8, 3))


# money, by hand -------------------------------------------------------------------------------


def test_grandfathered_members_pay_the_old_price_until_they_leave():
    """Two states and a scalar recursion: out, in; in at the old price; 10, later 14."""
    beta, alpha, taste, joining, rise = 0.9, 0.1, 0.8, 0.5, 3
    club = dc.Membership(
        [dc.Plan("monthly", 10)],
        beta=beta,
        params={"member": taste, "price": alpha, "joining cost": joining},
    )
    names = club.states.axes["contract"]
    assert tuple(names) == ("none", "monthly")
    listed = dc.Scenario("kept", prices={"monthly": 14}, grandfathered=True, starts=rise)
    found = dc.forecast(club, listed, start=np.array([70.0, 30.0]), periods=7)

    def values(price_new, price_kept):
        out = now = kept = 0.0
        for _ in range(600):
            leave = beta * out
            join = taste - alpha * price_new - joining + beta * now
            stay = taste - alpha * price_new + beta * now
            stay_kept = taste - alpha * price_kept + beta * kept
            out, now, kept = (np.logaddexp(leave, x) for x in (join, stay, stay_kept))
        p = [1 / (1 + np.exp(beta * out - x)) for x in (join, stay, stay_kept)]
        return p

    join, stay, _ = values(10, 10)
    outside, new, kept = 70.0, 0.0, 30.0  # before the rise everybody inside will be kept
    for t in range(1, 8):
        if t == rise:
            join, stay, stay_kept = values(14, 10)
            new = 0.0
        if t < rise:
            joined, staying = outside * join, kept * stay
            revenue = 10 * (joined + staying)
            outside, kept = outside - joined + kept - staying, joined + staying
        else:
            joined, going_on, keeping = outside * join, new * stay, kept * stay_kept
            revenue = 14 * (joined + going_on) + 10 * keeping
            outside = outside - joined + new - going_on + kept - keeping
            new, kept = joined + going_on, keeping
        o = rows(found.outcomes, scenario="kept", period=t).set_index("measure")["value"]
        assert o["revenue"] == pytest.approx(revenue / 100, rel=1e-10), t
        share = rows(found.take_up, scenario="kept", period=t)["share"].to_numpy()
        assert share[1] == pytest.approx((new + kept) / 100, rel=1e-10)


def test_a_refund_is_paid_for_the_months_left():
    """One member quits surely: a year of four, three periods left, nothing in use."""
    club = dc.Membership(
        [dc.Plan("annual", 40, periods=4, refund="unused", attention=1.0)],
        [dc.Benefit("video", 0.2, 0.8)],
        beta=0.9,
        params={
            "member": -1000.0, "video": 0.0, "price": 0.1, "joining cost": 0.0,
            "paying upfront": 0.0,
        },
    )  # fmt: skip
    frame = club.states.frame()
    for video, left in ((0, 3), (0, 1), (1, 2)):
        at = (frame["contract"] == f"annual_{left}") & (frame["video"] == video)
        found = dc.forecast(club, start=at.to_numpy(dtype=float), periods=2)
        o = rows(found.outcomes, period=1).set_index("measure")["value"]
        assert o["refunds"] == pytest.approx(0 if video else 40 * left / 4)
        assert o["quits"] == pytest.approx(1) and o["payments"] == pytest.approx(0, abs=1e-12)


SIZES = {
    # how many benefits, beta: large products and impatient members take the general solver
    "by level": (2, 0.9),
    "general, large": (8, 0.9),
    "general, no future": (1, 0.0),
}


@pytest.mark.parametrize("name", SIZES)
def test_each_price_list_is_charged_its_own_price(name):
    """Money of customers under the second list, and the steady state under the first."""
    many, beta = SIZES[name]
    uses = [dc.Benefit(f"b{i}", 0.3, 0.85, 0.1, 0.6) for i in range(many)]
    club = dc.Membership(
        [dc.Plan("monthly", 10)],
        uses,
        beta=beta,
        menus={"old": {"monthly": 5}, "new": {"monthly": 20}},
        params={
            "member": 0.2, "price": 0.08, "joining cost": 0.7, **{b.name: 0.2 for b in uses}
        },
    )  # fmt: skip
    model, frame = club.model(), club.states.frame()
    P = dc.solve(model, club.theta()).ccp
    for menu, price in (("old", 5), ("new", 20)):
        here = (frame["prices"] == menu).to_numpy()
        mu = here / here.sum()
        found = dc.forecast(club, start=mu, periods=2, long_run="none")
        o = rows(found.outcomes, period=1).set_index("measure")["value"]
        assert o["revenue"] == pytest.approx(price * (mu @ P)[1], rel=1e-9)
    found = dc.forecast(club, periods=1)
    mu = (frame["prices"] == "old").to_numpy() / (frame["prices"] == "old").sum()
    for _ in range(1500):
        mu = model.transitions.push(mu[:, None] * P)
    o = rows(found.outcomes, period=1).set_index("measure")["value"]
    assert o["revenue"] == pytest.approx(5 * (mu @ P)[1], rel=1e-8)
    far = found.long_run.set_index("measure")["value"]
    assert far["revenue"] == pytest.approx(5 * (mu @ P)[1], rel=1e-8)


def test_segments_and_mix_weigh_customers():
    club = replace(
        CLUB,
        segments={"a": {}, "b": {"params": {"price": 0.12}, "menus": {"old": {"annual": 20}}}},
    )
    club = replace(club, menus={"old": {"monthly": 8, "annual": 28}})
    mu = np.random.default_rng(0).dirichlet(np.ones(club.states.size))
    starts = {"a": 3 * mu, "b": 7 * mu}
    listed = dc.Scenario("more of a", mix={"a": 2.0}, prices={"monthly": 9})
    found = dc.forecast(club, listed, start=starts, periods=5)
    alone = {
        s: dc.forecast(club.segment(s), replace(listed, mix=None), start=starts[s], periods=5)
        for s in "ab"
    }
    for table, measure in (("take_up", "share"), ("outcomes", "value")):
        for scenario, weight in (("baseline", (3, 7)), ("more of a", (6, 7))):
            parts = []
            for s, w in zip("ab", weight, strict=True):
                own = rows(getattr(found, table), scenario=scenario, segment=s)
                single = rows(getattr(alone[s], table), scenario=scenario)
                np.testing.assert_allclose(own[measure], single[measure], rtol=1e-12, atol=1e-15)
                parts.append(w * own[measure].to_numpy())
            pooled = rows(getattr(found, table), scenario=scenario, segment="all")
            want = sum(parts) / sum(weight)
            if table == "outcomes":
                keep = ~pooled["measure"].str.contains("rate|conversion|share of")
                np.testing.assert_allclose(
                    pooled[measure][keep.to_numpy()], want[keep.to_numpy()], rtol=1e-10
                )
            else:
                np.testing.assert_allclose(pooled[measure], want, rtol=1e-12, atol=1e-15)
                np.testing.assert_allclose(
                    pooled.groupby("period")["members"].sum(), sum(weight), rtol=1e-12
                )
    for segment in ("a", "b", "all"):
        for scenario in ("baseline", "more of a"):
            check_flows(found, scenario=scenario, segment=segment)
    # a rate of all is a ratio of sums and no mean of rates
    o = rows(found.outcomes, scenario="more of a", segment="all").pivot(
        index="period", columns="measure", values="value"
    )
    np.testing.assert_allclose(o["renewal rate"], o["renewed"] / o["due"], rtol=1e-12)


# simulated members ----------------------------------------------------------------------------


def test_the_path_is_that_of_a_hundred_thousand_simulated_members():
    N, T = 100_000, 8
    scenario = dc.Scenario("terms", prices={"annual": 24}, bundle={"video": 0.5})
    found = dc.forecast(CLUB, scenario, start=start() / 100, periods=T)
    model = CLUB.model()
    paths = dc.simulate(
        model, params=CLUB.theta(), scenario=scenario, members=N, periods=T, seed=8,
        start=start() / 100,
    )  # fmt: skip
    b = brute()
    inside = np.isin(b.kind, ("trial", "paid"))[paths.states]
    chosen, held = paths.choices, b.held[paths.states]
    kind, left = b.kind[paths.states], b.left[paths.states]
    seen = {
        "outside": ~inside,
        "penetration": kind == "paid",
        "paid: annual": (kind == "paid") & (held == 2),
        "in trial: monthly": (kind == "trial") & (held == 1),
        "joins": ~inside & (chosen > 0),
        "quits": inside & (chosen == 0),
        "switches": inside & (chosen > 0) & (chosen != held),
        "trial starts": (kind == "new") & (chosen > 0),
        "trial converted": (kind == "trial") & (left == 0) & (chosen > 0),
        "due": (kind == "paid") & (held == 2) & (left == 0),
        "renewed": (kind == "paid") & (held == 2) & (left == 0) & (chosen > 0),
    }
    o = rows(found.outcomes, scenario="terms").pivot(
        index="period", columns="measure", values="value"
    )
    for name, flag in seen.items():
        exact = o[name].to_numpy()
        error = np.sqrt(exact * (1 - exact) / N)
        assert (np.abs(flag.mean(axis=0) - exact) < 4.5 * error + 1e-12).all(), name
    x = scenario.changed(model).utility.x[:, :, model.names.index("price")]
    money = -x[paths.states, chosen]
    error = money.std(axis=0) / np.sqrt(N)
    assert (np.abs(money.mean(axis=0) - o["revenue"].to_numpy()) < 4.5 * error).all()


# estimates: regions, bands, badges ------------------------------------------------------------


@cache
def frame_of() -> pd.DataFrame:
    """1,500 simulated members over 20 months, half under each price list, in three regions."""
    model, N = CLUB.model(), 1500
    at = pd.DataFrame({"prices": np.where(np.arange(N) % 2, "old", "new"), "video": 0, "ship": 0})
    codes = model.states.codes(at.assign(contract="new"))
    frame = dc.simulate(
        model, params=CLUB.theta(), members=N, periods=20, seed=5, start=codes
    ).frame()
    frame["place"] = np.array(["north", "south", "west"])[frame["member"] % 3]
    frame["group"] = np.where(frame["member"] % 5 == 0, "b", "a")
    return frame


def panel_of(club, frame=None, **options):
    frame = frame_of() if frame is None else frame
    return club.panel(
        frame, member="member", time="period", plan="choice", contract="contract", **options
    )


@cache
def fitted(known: bool = True) -> tuple[Any, Any]:
    bare = replace(CLUB, params={})
    if not known:
        bare = replace(bare, benefits=(dc.Benefit("video"), dc.Benefit("ship")))
    panel = panel_of(bare, region="place")
    return dc.NFXP(bare.model(), panel).fit(), panel


def test_the_first_month_comes_from_the_last_choices_seen():
    fit, panel = fitted()
    found = dc.forecast(fit, start=panel, periods=2, draws=0)
    last = panel.counts.at_period()[0]
    club = replace(CLUB, params=dict(fit.params))
    b = Brute(club)
    path = walk(b, b, np.einsum("sj,sjt->t", last, b.F), 2)
    np.testing.assert_allclose(cube(found.take_up, 3, "baseline"), np.array(path.shares) / 1500)
    first = cube(found.flows, 3, "baseline", 2)[0]
    np.testing.assert_allclose(first.sum(axis=1), last.sum(axis=0) / 1500, atol=1e-12)
    assert rows(found.take_up, period=1)["label"].unique().tolist() == ["20"]


RAMPS = {
    "price": {"prices": {"annual": 44}},
    "price with lead": {"prices": {"annual": 44}, "starts": 4, "announced": 2},
    "grandfathered": {"prices": {"annual": 44}, "grandfathered": True},
    "engagement": {"engagement": {"video": {"gain": 1.5}}},
    "new benefit": {"benefits": NEWS, "new_values": {"news": 0.3}},
    "contract shorter": {"terms": {"annual": {"periods": 2}}},
    "plan added": {"plans": QUARTER},
}


@cache
def panel_of_region(region: str) -> Any:
    own = frame_of().query("place == @region")
    return panel_of(fitted()[0].model.membership, own, region="place")


@pytest.mark.parametrize("name", RAMPS)
def test_a_ramp_changes_the_regions_it_names_when_it_reaches_them(name):
    fit, panel = fitted()
    change = RAMPS[name]
    ramp = dc.Scenario("ramp", **change, ramp={"north": 3, "south": 5})
    found = dc.forecast(fit, ramp, start=panel, periods=7, draws=0, by="region")
    J = 4 if name == "plan added" else 3
    lead = ramp.lead
    plain = {k: v for k, v in change.items() if k not in ("starts", "announced")}
    for table in ("take_up", "outcomes"):
        never = rows(getattr(found, table), region="west")
        a, b = rows(never, scenario="ramp"), rows(never, scenario="baseline")
        column = "share" if table == "take_up" else "value"
        key = ["period", "choice" if table == "take_up" else "measure"]
        both = a.merge(b, on=key, suffixes=("", "_base"))
        assert len(both) == len(b)
        assert np.array_equal(both[column], both[f"{column}_base"], equal_nan=True)
    for region in ("north", "south", "west", "all"):
        check_flows(found, scenario="ramp", region=region)
    last = panel.counts.at_period()[0]
    for region, first in (("north", 3), ("south", 5)):
        own = dc.Scenario("own", **plain, starts=first, announced=max(first - lead, 1))
        single = dc.forecast(fit, own, start=panel_of_region(region), periods=7, draws=0)
        for table, column in (("take_up", "share"), ("flows", "share"), ("outcomes", "value")):
            a = rows(getattr(found, table), scenario="ramp", region=region)[column]
            b = rows(getattr(single, table), scenario="own")[column]
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    whole = cube(rows(found.take_up, region="all"), J, "ramp")
    parts = [cube(rows(found.take_up, region=r), J, "ramp") for r in ("north", "south", "west")]
    size = [last_of(panel, r) for r in ("north", "south", "west")]
    want = sum(n * x for n, x in zip(size, parts, strict=True)) / last.sum()
    np.testing.assert_allclose(whole, want, atol=1e-12)


def last_of(panel, region) -> float:
    own = panel.counts.regions
    at = (own.cells[:, 1] == own.labels.index(region)) & (
        own.cells[:, 2] == panel.counts.last_period
    )
    return float(own.n[at].sum())


def test_fits_by_segment_add_up_with_their_own_numbers_of_members():
    bare = replace(CLUB, params={})
    panel = panel_of(bare, segment="group")
    model = bare.model()
    fits = {g: dc.NFXP(model, panel.counts.segment(g)).fit() for g in ("a", "b")}
    listed = dc.Scenario("more of b", plans=QUARTER, mix={"b": 3.0}, starts=2)
    found = dc.forecast(fits, listed, start=panel, periods=4, draws=0)
    for scenario, weight in (("baseline", (1200, 300)), ("more of b", (1200, 900))):
        J = 3 if scenario == "baseline" else 4
        parts = [cube(rows(found.take_up, segment=g), J, scenario) for g in ("a", "b")]
        whole = cube(rows(found.take_up, segment="all"), J, scenario)
        want = (weight[0] * parts[0] + weight[1] * parts[1]) / sum(weight)
        np.testing.assert_allclose(whole, want, atol=1e-13)
        for segment in ("a", "b", "all"):
            check_flows(found, scenario=scenario, segment=segment)
    for g in ("a", "b"):
        own = panel_of(bare, frame_of().query("group == @g"))
        alone = dc.forecast(fits[g], replace(listed, mix=None), start=own, periods=4, draws=0)
        a = rows(found.outcomes, scenario="more of b", segment=g)["value"]
        b = rows(alone.outcomes, scenario="more of b")["value"]
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_a_plan_added_takes_the_estimated_chain_of_the_one_it_is_like():
    fit, panel = fitted(known=False)
    added = dc.Scenario("quarter", plans=QUARTER).changed(fit.model)
    for name in ("video", "ship"):
        law = next(x for x in added.transitions.bound if x.name == name).table
        old = next(x for x in fit.transitions.bound if x.name == name).table
        np.testing.assert_array_equal(law[:3], old)
        np.testing.assert_array_equal(law[3], old[2])
    strange = dc.Scenario("x", plans=dc.Plan("quarter", 17, periods=2))
    with pytest.raises(dc.SpecificationError, match=r"'quarter'.*like="):
        dc.forecast(fit, strange, start=panel, draws=0)


@cache
def banded(bands: str, n_jobs: int = 1, draws: int = 300, level: float = 0.9) -> dc.Forecast:
    fit, panel = fitted()
    listed = [
        dc.Scenario("dear", prices={"annual": 40}, starts=2),
        dc.Scenario("quarter", plans=QUARTER),
    ]
    return dc.forecast(
        fit, listed, start=panel, periods=6, draws=draws, bands=bands, n_jobs=n_jobs, seed=3,
        level=level, long_run="bands" if draws < 100 else "point",
    )  # fmt: skip


@pytest.mark.parametrize("bands", ["draws", "delta"])
def test_bands_do_not_depend_on_the_number_of_threads(bands):
    one, two = banded(bands, 1, 34), banded(bands, 2, 34)  # 17 draws or 9 differences a thread
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(one, table), getattr(two, table), check_exact=True)


def test_delta_and_drawn_bands_are_about_as_wide():
    drawn, delta = banded("draws"), banded("delta")
    np.testing.assert_array_equal(drawn.take_up["share"], delta.take_up["share"])
    for table in ("take_up", "flows", "outcomes"):
        a, b = getattr(drawn, table), getattr(delta, table)
        wide = (a["upper"] - a["lower"]) > 1e-6
        ratio = (a["upper"] - a["lower"])[wide] / (b["upper"] - b["lower"])[wide]
        assert 0.95 < ratio.median() < 1.08
        assert ratio.quantile(0.05) > 0.75 and ratio.quantile(0.95) < 1.35
    fit, _ = fitted()
    b = Brute(replace(CLUB, params={}), dict(fit.params))
    last = fitted()[1].counts.at_period()[0]
    mu = np.einsum("sj,sjt->t", last, b.F) / 1500
    at = fit.delta_method(lambda p: mu @ dc.solve(fit.model, p).ccp, level=0.9)
    first = rows(delta.take_up, scenario="baseline", period=1)
    width = (first["upper"] - first["lower"]).to_numpy()
    np.testing.assert_allclose(width, at["upper"] - at["lower"], rtol=1e-3)


def test_uniform_bands_hold_the_pointwise_ones_of_the_same_level():
    for kind in ("delta", "draws"):
        for table in ("take_up", "outcomes"):
            t = getattr(banded(kind), table).dropna(subset=["lower"])
            t = t[(t["upper"] - t["lower"]) > 1e-9]
            # quantiles of 300 draws stick out of a symmetric band by a little
            slack = 1e-12 if kind == "delta" else 0.1 * (t["upper"] - t["lower"])
            assert (t["lower_uniform"] <= t["lower"] + slack).all()
            assert (t["upper"] <= t["upper_uniform"] + slack).all()
    narrow, wide = banded("delta", level=0.5).take_up, banded("delta").take_up
    assert ((wide["upper"] - wide["lower"]) >= (narrow["upper"] - narrow["lower"])).all()


def test_what_is_known_for_sure_does_not_widen_a_uniform_band():
    """Today's stock has no error: the band over it and next month's is next month's alone."""
    fit, panel = fitted()
    found = dc.forecast(fit, start=panel, periods=2, draws=1, bands="delta", long_run="none")
    for measure in ("outside", "penetration", "paid: annual"):
        now, later = (rows(found.outcomes, measure=measure, period=t).iloc[0] for t in (1, 2))
        assert now["upper"] - now["lower"] < 1e-12 < later["upper"] - later["lower"]
        ratio = (later["upper_uniform"] - later["value"]) / (later["upper"] - later["value"])
        assert 0.93 < ratio < 1.07, measure  # 2,000 samples


BADGES = {
    # papers.md 6.2: known transfers, dropped choices and attention do not need the anchor; changed
    # laws do; values never seen are assumed
    "price": ({"prices": {"annual": 40}}, "identified"),
    "grandfathered": ({"prices": {"annual": 40}, "grandfathered": True}, "identified"),
    "benefit removed": ({"bundle": {"video": 0}}, "identified"),
    "parameter": ({"params": {"joining cost": 0.0}}, "identified"),
    "offer seen": ({"offer": {"prices": "new"}}, "identified"),
    "plan dropped": ({"drop": "annual"}, "identified"),
    "cannot quit": ({"terms": {"annual": {"cancel": "at renewal"}}}, "identified"),
    "refund rule": ({"terms": {"annual": {"refund": "prorated"}}}, "identified"),
    "attention": ({"attention": 1.0}, "identified"),
    "nothing": ({}, "identified"),
    "contract shorter": ({"terms": {"annual": {"periods": 2}}}, "rests on the anchor"),
    "trial removed": ({"terms": {"annual": {"trial": 0}}}, "rests on the anchor"),
    "engagement": ({"engagement": {"video": {"gain": 1.5}}}, "rests on the anchor"),
    "plan added": ({"plans": QUARTER}, "rests on the anchor"),
    "new benefit": (
        {"benefits": NEWS, "new_values": {"news": 0.3}},
        "rests on assumed values",
    ),
    "new benefit and longer": (
        {"benefits": NEWS, "new_values": {"news": 0.3}, "terms": {"annual": {"periods": 6}}},
        "rests on assumed values",
    ),
}


@pytest.mark.parametrize("name", BADGES)
def test_badges_say_what_a_scenario_rests_on(name):
    fit, panel = fitted()
    change, want = BADGES[name]
    found = dc.forecast(fit, dc.Scenario("x", **change), start=panel, periods=2, draws=0)
    badge = found.badges.set_index("scenario")["badge"]
    assert badge["x"] == want, found.badges.set_index("scenario")["reasons"]["x"]
    assert badge["baseline"] == "identified"
    assert set(rows(found.take_up, scenario="x")["badge"]) == {want}


@pytest.mark.parametrize("change", ["prices", "refund"])
def test_money_rests_on_a_price_parameter_that_prices_identify(change):
    """papers.md 6.2: transfers in dollars need it; without variation it is form, or assumed."""
    changes = {
        "prices": {"prices": {"annual": 40}},
        "refund": {"terms": {"annual": {"refund": "prorated"}}},
    }[change]
    scenario = dc.Scenario("x", **changes)

    def label(fit, panel):
        found = dc.forecast(fit, scenario, start=panel, periods=1, draws=0)
        return found.badges.set_index("scenario")["badge"]["x"]

    one = frame_of().query("prices == 'new'")
    flat = replace(CLUB, params={}, menus={})
    panel = panel_of(flat, one)
    assert label(dc.NFXP(flat.model(), panel).fit(), panel) == "rests on functional form"
    fixed = replace(CLUB, params={}, fixed={"price": 0.08})
    panel = panel_of(fixed)
    assert label(dc.NFXP(fixed.model(), panel).fit(), panel) == "rests on assumed values"


def test_a_calibrated_programme_rests_on_assumed_values():
    found = forecasts("price")
    assert set(found.badges["badge"]) == {"rests on assumed values"}
    assert found.badges["reasons"].str.contains("calibrated or assumed").all()


# mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "plan misspelt in prices": ({"prices": {"anual": 40}}, "'x'.*'anual'.*Did you mean 'annual'"),
    "benefit misspelt in bundle": ({"bundle": {"vdeo": 0}}, "'vdeo'.*Did you mean 'video'"),
    "plan misspelt in bundle": ({"bundle": {"video": {"anual": 0}}}, "'anual'.*'annual'"),
    "plan misspelt in drop": ({"drop": "anual"}, "'anual'.*'annual'"),
    "every plan dropped": ({"drop": ["monthly", "annual"]}, "no plan would be left"),
    "plan misspelt in terms": ({"terms": {"anual": {"periods": 2}}}, "'anual'.*'annual'"),
    "term misspelt": ({"terms": {"annual": {"perods": 2}}}, "'annual'.*'perods'.*'periods'"),
    "terms as number": ({"terms": {"annual": 3}}, "'annual'"),
    "refund misspelt": ({"terms": {"annual": {"refund": "unusd"}}}, "'unusd'.*'unused'"),
    "attention of nobody": ({"attention": {"anual": 0.5}}, "'anual'.*'annual'"),
    "attention 0": ({"attention": 0}, "attention=0.*above 0"),
    "attention in words": ({"attention": "high"}, "attention='high'"),
    "engagement of nothing": ({"engagement": {"vdeo": {"gain": 2}}}, "'vdeo'.*'video'"),
    "engagement misspelt": ({"engagement": {"video": {"gian": 2}}}, "'video'.*gian"),
    "engagement as number": ({"engagement": {"video": 2}}, "'video'.*gain.*2"),
    "negative price": ({"prices": {"annual": -4}}, "'annual'.*-4"),
    "price below zero by function": ({"prices": {"annual": lambda p: p - 100}}, "'annual'"),
    "price in words": ({"prices": {"annual": "dear"}}, "'annual'.*'dear'"),
    "prices as number": ({"prices": 40}, "prices.*40"),
    "grandfathered alone": ({"grandfathered": True}, "grandfathered"),
    "plan there already": ({"plans": dc.Plan("annual", 3)}, "'annual' is there already"),
    "plan as text": ({"plans": "quarter"}, "Plan objects"),
    "plan with an unseen feature": (
        {"plans": replace(QUARTER, features={"gold": 1.0})},
        "'gold'.*new_values",
    ),
    "benefit without chain": (
        {"benefits": dc.Benefit("news"), "new_values": {"news": 1}},
        "'news'.*gain=",
    ),
    "benefit without value": ({"benefits": NEWS}, "'news'.*new_values"),
    "benefit there already": ({"benefits": VIDEO, "new_values": {"video": 1}}, "'video'"),
    "benefit as text": ({"benefits": "news"}, "Benefit objects"),
    "value of nothing": (
        {"benefits": NEWS, "new_values": {"news": 1, "nws": 2}},
        "new_values.*'nws'.*'news'",
    ),
    "value of a benefit that was estimated": (
        {"prices": {"annual": 40}, "new_values": {"video": 1.0}},
        "new_values.*'video'",
    ),
    "value without benefit": ({"new_values": {"news": 1}}, "new_values.*'news'"),
    "region misspelt": ({"prices": {"annual": 40}, "ramp": {"nrth": 2}}, "'nrth'.*'north'"),
    "segment misspelt in mix": ({"mix": {"al": 2}}, "'al'.*'all'"),
    "nobody left by mix": ({"mix": {"all": 0}}, "mix|nobody|customer"),
    "parameter misspelt": ({"params": {"prise": 1}}, "'prise'.*'price'"),
    "parameter that is no number": ({"params": {"price": float("nan")}}, "'price'.*nan"),
    "drop as number": ({"drop": 3}, "drop"),
    "starts too late": ({"prices": {"annual": 40}, "starts": 99}, "period 99.*last one"),
    "announced too late": ({"starts": 2, "announced": 3}, "announced in period 3"),
    "ends before it starts": ({"starts": 3, "ends": 3}, "ends in period 3"),
    "a plan for a while": ({"plans": QUARTER, "ends": 3}, "ends="),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_scenario_is_named(name):
    fit, panel = fitted()
    change, message = MISTAKES[name]
    with pytest.raises(dc.SpecificationError, match=message):
        dc.forecast(fit, dc.Scenario("x", **change), start=panel, periods=4, draws=0)


def test_the_only_long_plan_may_become_a_monthly_one():
    """Nobody pays upfront then; the parameter stays and moves nothing."""
    found = dc.forecast(
        CLUB, dc.Scenario("x", terms={"annual": {"periods": 1}}, starts=2), start=start(), periods=4
    )
    club = replace(with_plan(CLUB, "annual", periods=1, running=4), params={})
    costs = ("joining cost", "cancelling cost", "switching cost", "paying upfront")
    new = Brute(replace(club, costs=costs), TRUTH)
    check_path(found, "x", walk(brute(), new, start(), 4, 2, place=placed(CLUB, new.club)))


def test_a_trial_may_be_brought_to_a_programme_without_any():
    """Nobody has had one: everybody outside is new; the cancelling cost comes as a value."""
    plans = [replace(p, trial=0) for p in CLUB.plans]
    params = {k: v for k, v in TRUTH.items() if k != "cancelling cost"}
    bare = replace(CLUB, plans=tuple(plans), params=params)
    mu = np.random.default_rng(1).dirichlet(np.ones(bare.states.size))
    change = {"terms": {"monthly": {"trial": 1}}}
    with pytest.raises(dc.SpecificationError, match=r"'cancelling cost'.*new_values"):
        dc.forecast(bare, dc.Scenario("x", **change), start=mu, periods=4)
    found = dc.forecast(
        bare,
        dc.Scenario("x", **change, new_values={"cancelling cost": 0.5}, starts=2),
        start=mu,
        periods=4,
    )
    base = Brute(bare)
    new = Brute(replace(with_plan(bare, "monthly", trial=1), params=TRUTH))
    check_path(found, "x", walk(base, new, mu, 4, 2, place=placed(bare, new.club)))
