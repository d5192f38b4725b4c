"""The bridge: worth of a discovery against dense enumeration, lifts, and the way to a forecast."""

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.model.lifts import lifted

CHOICES = ["none", "member"]
STATES = dc.StateSpace(held=CHOICES, video=[0, 1], music=[0, 1, 2])
VIDEO = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.7, 0.3], [0.1, 0.9]]])  # by choice
MUSIC = np.array(
    [
        [[0.95, 0.04, 0.01], [0.4, 0.5, 0.1], [0.1, 0.4, 0.5]],
        [[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.15, 0.8]],
    ]
)  # by video
BETA = 0.95


def model(attention=0.8):
    laws = {
        "held": dc.Deterministic(lambda level, choice: choice),
        "video": dc.Markov(("choice",), VIDEO),
        "music": dc.Markov(("video",), MUSIC),
    }
    F = dc.Transitions.factored(STATES, CHOICES, laws)
    frame = STATES.frame()
    x = np.zeros((STATES.size, 2, 4))
    x[:, 1, 0] = 1
    x[:, 1, 1] = frame["video"]
    x[:, 1, 2] = frame["music"]
    x[:, 1, 3] = -(frame["held"] == "none").to_numpy(float)
    utility = dc.Utility.from_array(x, ["member", "video", "music", "join"])
    default = np.where(frame["held"] == "member", 1, 0)
    return dc.DDC(states=STATES, choices=CHOICES, utility=utility, transitions=F, beta=BETA,
                  attention=attention, default=default)  # fmt: skip


THETA = np.array([-0.9, 0.6, 0.3, 1.0])


def dense(m=None):
    """Values, observed choices and the law (S, J, S) by plain loops."""
    m = model() if m is None else m
    frame = STATES.frame()
    S = STATES.size
    F = np.zeros((S, 2, S))
    for s in range(S):
        v, u = frame["video"][s], frame["music"][s]
        for j in range(2):
            for t in range(S):
                if frame["held"][t] == CHOICES[j]:
                    F[s, j, t] = VIDEO[j, v, frame["video"][t]] * MUSIC[v, u, frame["music"][t]]
    flow = m.utility.x @ THETA
    V = np.zeros(S)
    lam = 0.8
    default = np.where(frame["held"] == "member", 1, 0)
    for _ in range(3000):
        value = flow + BETA * F @ V
        V = lam * np.logaddexp(value[:, 0], value[:, 1]) + (1 - lam) * value[range(S), default]
    P = lam / (1 + np.exp(value[:, ::-1] - value))
    P[range(S), default] += 1 - lam
    return V, P, F, frame


@pytest.fixture(scope="module")
def fitted():
    paths = dc.simulate(model(), params=THETA, members=4000, periods=16, seed=3)
    panel = dc.Panel(paths.frame(), member="member", time="period", choice="choice",
                     states=STATES, choices=CHOICES)  # fmt: skip
    unknown = model().with_parts(
        transitions=dc.Transitions.factored(
            STATES, CHOICES,
            {"held": dc.Deterministic(lambda level, choice: choice),
             "video": dc.Markov(("choice",)), "music": dc.Markov(("video",))},
        )
    )  # fmt: skip
    return dc.NFXP(unknown, panel).fit(), panel


def by_hand(benefit, ahead):
    """The formula of the module, summed over states by loops."""
    _, P, F, frame = dense()
    out = np.zeros(STATES.size)
    level = {"video": ("video", 2), "music": ("music", 3)}[benefit][0]
    for s in range(STATES.size):
        for j in range(2):
            law = VIDEO[j, frame["video"][s]] if benefit == "video" else (
                MUSIC[frame["video"][s], frame["music"][s]])  # fmt: skip
            gain = 0.0
            for t in range(STATES.size):
                if F[s, j, t] == 0:
                    continue
                to = {}
                for k in (0, 1):
                    row = frame.iloc[t].to_dict() | {level: k}
                    to[k] = int(STATES.codes(pd.DataFrame([row]))[0])
                gain += F[s, j, t] * (ahead[to[1]] - ahead[to[0]])
            out[s] += P[s, j] * law[0] * gain
    return out


@pytest.mark.parametrize("benefit", ["video", "music"])
def test_the_worth_of_a_discovery_is_that_of_enumeration(benefit):
    from dynchoice.counterfactuals.discovery import Goal, discoveries

    V, P, F, _ = dense()
    got = discoveries(model(), THETA, [benefit], Goal("value", 24, None))[:, 0]
    np.testing.assert_allclose(got, by_hand(benefit, BETA * V), atol=1e-9)
    months = np.zeros(STATES.size)
    for _ in range(5):
        months = P[:, 1] + np.einsum("sj,sjt,t->s", P, F, months)
    got = discoveries(model(), THETA, [benefit], Goal("months", 5, None))[:, 0]
    np.testing.assert_allclose(got, by_hand(benefit, months), atol=1e-10)


def test_it_is_the_derivative_of_value_by_a_lift_of_one_period():
    """A lift that lasts one period and is expected: today's V rises by its worth times the lift."""
    from dynchoice.counterfactuals.discovery import Goal, discoveries

    m = model(attention=1.0)
    V = dc.solve(m, THETA).V
    worth = discoveries(m, THETA, ["video"], Goal("value", 24, None))[:, 0]
    step = 1e-5
    moved = lifted(m.transitions, {"video": step})
    value = m.utility.x @ THETA + BETA * moved.expect(V)
    now = np.logaddexp(value[:, 0], value[:, 1])
    unused = STATES.frame()["video"].to_numpy() == 0
    np.testing.assert_allclose((now - V)[unused] / step, worth[unused], rtol=1e-3, atol=1e-6)


def test_tables_by_contexts(fitted):
    fit, panel = fitted
    table = dc.discovery_values(fit, by={"plan": "held"}, start=panel, draws=30)
    assert list(table.columns) == ["plan", "benefit", "value", "members", "std_error"]
    assert set(table["benefit"]) == {"video", "music"} and (table["value"] > 0).all()
    assert table["members"].sum() == pytest.approx(2 * 4000)
    V, _, _, _ = dense()
    truth = by_hand("video", BETA * V)
    states = STATES.frame()
    for plan in CHOICES:
        row = table[(table["plan"] == plan) & (table["benefit"] == "video")].iloc[0]
        mine = truth[(states["held"] == plan).to_numpy()]
        assert mine.min() - 4 * row["std_error"] < row["value"] < mine.max() + 4 * row["std_error"]
    names = dc.discovery_values(fit, ["video"], by=["held", "video"], start=panel)
    assert len(names) == 4
    half = dc.discovery_values(
        fit, ["video"], by={"any": lambda f: np.where(f["music"] > 0, "some", "no")}, start=panel
    )
    assert set(half["any"]) == {"some", "no"}
    one = dc.discovery_values(fit, "video", start=panel, outcome="months", horizon=1)
    assert len(one) == 1 and one["value"].iloc[0] < 1


def test_members_already_using_gain_less(fitted):
    fit, panel = fitted
    table = dc.discovery_values(fit, ["video"], by=["video"], start=panel).set_index("video")
    assert table.loc[1, "value"] < table.loc[0, "value"]


def test_lifts_move_the_lowest_level_only():
    F = model().transitions
    up = lifted(F, {"video": {"member": 0.2}, "music": 0.1})
    laws = {law.name: law.table for law in up.bound}
    np.testing.assert_allclose(laws["video"][0, 0], VIDEO[0])
    np.testing.assert_allclose(laws["video"][1, 0], [[0.56, 0.44], [0.1, 0.9]])
    np.testing.assert_allclose(laws["music"][0, 0, 0], [0.855, 0.116, 0.029])
    np.testing.assert_allclose(laws["music"][0, 1, 1:], MUSIC[1, 1:])
    table = pd.DataFrame({"video": [1], "start": [0.5]})
    some = {law.name: law.table for law in lifted(F, {"music": table}).bound}["music"]
    np.testing.assert_allclose(some[0, 0], MUSIC[0])
    np.testing.assert_allclose(some[0, 1, 0, 0], 0.4)
    down = {law.name: law.table for law in lifted(F, {"video": -0.05}).bound}["video"]
    np.testing.assert_allclose(down[0, 0, 0], [0.945, 0.055])
    twice = {law.name: law.table for law in lifted(up, {"video": 0.5}).bound}["video"]
    np.testing.assert_allclose(twice[1, 0, 0], [0.28, 0.72])


@pytest.mark.parametrize(
    "lift,text",
    [
        ({"vido": 0.1}, "Did you mean 'video'"),
        ({"held": 0.1}, "no Markov law"),
        ({"video": 2.0}, "between -1 and 1"),
        ({"video": "a"}, "a number"),
        ({"music": {"member": 0.1}}, "depends on 'choice'"),
        ({"video": {"membr": 0.1}}, "Did you mean 'member'"),
        ({"video": pd.DataFrame({"choice": ["none"]})}, "column 'start'"),
    ],
)
def test_mistakes_in_lifts(fitted, lift, text):
    fit, panel = fitted
    with pytest.raises(dc.DynChoiceError, match=text):
        dc.forecast(fit, dc.Scenario("x", lift=lift), start=panel, periods=2, draws=0)


def test_a_forecast_under_a_lift_is_dense_pushing(fitted):
    fit, panel = fitted
    lift = {"video": {"member": 0.3}}
    m = fit.model
    moved = m.with_parts(transitions=lifted(m.transitions, lift))
    solution = dc.solve(moved, fit.theta)
    P, F = solution.ccp, moved.transitions.dense()
    nothing = dc.Scenario("nothing", lift={"video": 0.0})
    got = dc.forecast(fit, [dc.Scenario("callouts", lift=lift), nothing], start=panel, periods=6,
                      draws=40)  # fmt: skip
    table = got.take_up
    same = table[table["scenario"] == "nothing"]
    base = table[table["scenario"] == "baseline"]
    for column in ("share", "lower", "upper"):  # laws drawn with the estimates are lifted too
        np.testing.assert_allclose(same[column].to_numpy(), base[column].to_numpy(), atol=1e-9)
    start = fit.model.transitions.push(np.ascontiguousarray(panel.counts.at_period()[0]))
    want = []
    for _ in range(6):
        flow = start[:, None] * P
        want.append(flow[:, 1].sum() / start.sum())
        start = np.einsum("sj,sjt->t", flow, F)
    mine = table[(table["scenario"] == "callouts") & (table["choice"] == "member")]
    np.testing.assert_allclose(mine["share"].to_numpy(), want, atol=1e-8)
    raised = mine["share"].to_numpy() - base[base["choice"] == "member"]["share"].to_numpy()
    assert (raised > 0).all() and raised[-1] > raised[0]


def test_the_lift_of_a_policy():
    clicks = pd.DataFrame(
        {
            "plan": ["none", "none", "member", "member"],
            "benefit": ["video", "music"] * 2,
            "clicks": [0.02, 0.01, 0.05, 0.03],
            "members": [100, 100, 300, 300],
        }
    )
    whole = dc.callout_lift(clicks, starts=0.5, visits=4)
    by_hand = (100 * (1 - 0.99**4) + 300 * (1 - 0.975**4)) / 400
    assert whole["video"] == pytest.approx(by_hand)
    page = clicks.assign(clicks=[0.2, 0.0, 0.2, 0.0])
    more = dc.callout_lift(page.assign(clicks=[0.3, 0, 0.3, 0]), page, visits=4)
    assert more["video"] == pytest.approx((1 - 0.7**4) - (1 - 0.8**4))
    by = dc.callout_lift(clicks, starts={"video": 0.5, "music": 1.0}, by={"plan": "choice"})
    table = by["video"].set_index("choice")["start"]
    assert table["none"] == pytest.approx(0.01) and table["member"] == pytest.approx(0.025)
    than = clicks.assign(clicks=[0.03, 0.01, 0.05, 0.0])
    less = dc.callout_lift(clicks, than, by={"plan": "choice"})
    assert less["video"].set_index("choice")["start"]["none"] == pytest.approx(-0.01)
    moved = lifted(model().transitions, by | {"music": 0.0})
    assert moved is not None
    for call, text in (
        (lambda: dc.callout_lift(clicks, than.iloc[:2]), "different contexts"),
        (lambda: dc.callout_lift(clicks, starts={"video": 0.5}), "no share of 'music'"),
        (lambda: dc.callout_lift(clicks.drop(columns="members")), "'members'"),
    ):
        with pytest.raises(dc.SpecificationError, match=text):
            call()


def test_mistakes(fitted):
    fit, panel = fitted
    for call, text in (
        (lambda: dc.discovery_values(fit, start=panel, outcome="moneys"), "Did you mean 'money'"),
        (lambda: dc.discovery_values(fit, ["vido"], start=panel), "Did you mean 'video'"),
        (lambda: dc.discovery_values(fit, by=["vido"], start=panel), "Did you mean 'video'"),
        (lambda: dc.discovery_values(fit, start=panel, outcome="months", horizon=0), "horizon=0"),
        (lambda: dc.discovery_values(fit, start=panel, outcome="months", outside="no"), "choice"),
    ):
        with pytest.raises(dc.SpecificationError, match=text):
            call()


def test_segments_with_axes_in_another_order_are_matched_by_name(fitted):
    """What is told apart, and what is averaged, goes by labels, not by places."""
    fit, panel = fitted
    other = dc.StateSpace(music=[0, 1, 2], held=CHOICES, video=[0, 1])
    x = np.zeros((other.size, 2, 4))
    frame = other.frame()
    x[:, 1, 0], x[:, 1, 1], x[:, 1, 2] = 1, frame["video"], frame["music"]
    x[:, 1, 3] = -(frame["held"] == "none").to_numpy(float)
    laws = {"held": dc.Deterministic(lambda level, choice: choice),
            "video": dc.Markov(("choice",)), "music": dc.Markov(("video",))}  # fmt: skip
    swapped = dc.DDC(
        states=other, choices=CHOICES, beta=BETA, attention=0.8,
        default=np.where(frame["held"] == "member", 1, 0),
        utility=dc.Utility.from_array(x, ["member", "video", "music", "join"]),
        transitions=dc.Transitions.factored(other, CHOICES, laws),
    )  # fmt: skip
    paths = dc.simulate(model(), params=THETA, members=4000, periods=16, seed=3).frame()
    same = dc.Panel(paths, member="member", time="period", choice="choice", states=other,
                    choices=CHOICES)  # fmt: skip
    second = dc.NFXP(swapped, same).fit()
    starts = {
        "a": np.bincount(STATES.codes(paths.query("period == 15")), minlength=STATES.size) * 1.0,
        "b": np.bincount(other.codes(paths.query("period == 15")), minlength=other.size) * 1.0,
    }
    alone = dc.discovery_values(fit, by=["video"], start=starts["a"])
    both = dc.discovery_values({"a": fit, "b": second}, by=["video"], start=starts, draws=3)
    merged = alone.merge(both, on=["video", "benefit"])
    np.testing.assert_allclose(merged["value_x"], merged["value_y"], rtol=1e-4)
    np.testing.assert_allclose(2 * merged["members_x"], merged["members_y"])
