"""Bounds on counterfactuals: closed forms, brute force, exact gradients, and the truth inside."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import dynchoice as dc
from dynchoice.counterfactuals.bounds import (
    Restriction,
    axis_directions,
    bounds,
    counterfactual_bounds,
    mean_value,
    share_of,
)
from dynchoice.counterfactuals.identified import Dynamics, equivalent_payoffs, payoffs_of
from dynchoice.counterfactuals.payoff_map import payoff_blocks
from dynchoice.counterfactuals.restrictions import select
from dynchoice.counterfactuals.sensitivity import Sensitivity

BETA = 0.95


def ddc(u, F, **options):
    S, J = u.shape
    mask = np.isfinite(u)
    return dc.DDC(
        states=dc.StateSpace(s=range(S)),
        choices=[f"c{j}" for j in range(J)],
        utility=dc.Utility.from_array(np.zeros((S, J, 1)), ["k"], np.where(mask, u, 0.0)),
        transitions=dc.Transitions.dense(F),
        available=mask,
        **{"beta": BETA, **options},
    )


def world(seed, S, J=3, gaps=False, **options):
    """A baseline normalised to u_0 = 0, and the same with other moves under choice 1."""
    rng = np.random.default_rng(seed)
    F, G = rng.dirichlet(np.full(S, 0.5), size=(2, S, J))
    G = np.where(np.arange(J)[:, None] == 1, G, F)
    u = rng.normal(size=(S, J))
    u[:, 0] = 0.0
    if gaps:
        u[1, 2] = u[2, 0] = -np.inf
    return ddc(u, F, **options), ddc(u, G, **options), u


def sensitivity(base, new, u, outcome, B=None, factors=None, **options):
    S, J = u.shape
    blocks = payoff_blocks(np.eye(J) if factors is None else factors, np.arange(S), S)
    B = np.eye(S) if B is None else B
    return Sensitivity(Dynamics.of_model(base), new, u, blocks, outcome, B, **options)


def curved(V, P):
    """An outcome of values and probabilities with several local optima."""
    aim = np.linspace(0.1, 0.5, len(P))
    gap = P[:, 1] - aim
    slope = np.zeros_like(P)
    slope[:, 1] = 2 * gap
    return float(gap @ gap + 1e-3 * V.sum()), np.full(len(V), 1e-3), slope


@pytest.mark.parametrize("kind", ["plain", "gaps", "inattentive", "naive"])
@pytest.mark.parametrize("outcome", ["share", "welfare", "function"])
def test_gradients_against_finite_differences(kind, outcome):
    S = 8
    options = {}
    if kind in ("inattentive", "naive"):
        options = {"attention": np.linspace(0.4, 1.0, S), "default": 1}
    if kind == "naive":
        options["perceived"] = 1.0
    base, new, u = world(3, S, gaps=kind == "gaps", **options)
    new = new.with_parts(beta=0.9)
    rng = np.random.default_rng(0)
    w, B = rng.dirichlet(np.ones(S)), rng.normal(size=(S, 5))
    V = dc.solve(base, [0.0]).V
    function, extra = {
        "share": (share_of(w, [1, 2]), {"shares_only": True}),
        "welfare": (mean_value(w), {"welfare": (w, V)}),
        "function": (curved, {}),
    }[outcome]
    given = sensitivity(base, new, u, function, B, **extra)
    z = rng.normal(size=5)
    value, gradient = given(z)
    numeric = [(given(z + h)[0] - given(z - h)[0]) / 2e-4 for h in 1e-4 * np.eye(5)]
    np.testing.assert_allclose(gradient, numeric, atol=2e-6 * np.abs(gradient).max())
    # the value itself, from a model solved anew at the payoffs that the data cannot tell apart
    other = equivalent_payoffs(Dynamics.of_model(base), u, B @ z)
    after = dc.solve(ddc(other, new.transitions.dense(), **{**options, "beta": 0.9}), [0.0])
    again = dc.solve(ddc(other, base.transitions.dense(), **options), [0.0])
    want = function(after.V, after.ccp)[0] - (w @ again.V if outcome == "welfare" else 0.0)
    assert value == pytest.approx(want, abs=1e-10)
    assert given.failures == 0


def test_one_state_in_closed_form():
    """u~_0 = k u_0 in one state: P~_1 = 1 / (1 + exp(-(log odds + (1 - k) u_0)))."""
    u, k = np.array([[0.3, 0.7]]), 1.8
    base, new = (ddc(x, np.ones((1, 2, 1))) for x in (u, u * [k, 1.0]))
    given = sensitivity(
        base, new, u * [k, 1.0], share_of(np.ones(1), [1]), factors=np.diag([k, 1.0]),
        shares_only=True,
    )  # fmt: skip

    def share(u_0):
        return 1 / (1 + np.exp(-(0.4 + (1 - k) * u_0)))

    found = bounds(given, [Restriction.between(base.states, -0.5, 0.7)], u[:, 0])
    assert (found.lower, found.upper) == pytest.approx((share(0.7), share(-0.5)), abs=1e-10)
    assert found.maintained == pytest.approx(share(0.3))
    assert found.lower_at[0] == pytest.approx(0.7) and found.upper_at[0] == pytest.approx(-0.5)
    assert found.converged and found.agree == (20, 20) and (found.free, found.rank) == (1, 1)
    around = bounds(given, [Restriction.within(base.states, -0.5, 0.7)], u[:, 0])
    assert (around.lower, around.upper) == pytest.approx((share(1.0), share(-0.2)), abs=1e-10)


@pytest.mark.parametrize("outcome", ["share", "welfare", "function"])
def test_two_states_against_a_grid(outcome):
    base, new, u = world(4, 2)
    w = np.array([0.3, 0.7])
    V = dc.solve(base, [0.0]).V
    function, extra = {
        "share": (share_of(w, [1]), {"shares_only": True}),
        "welfare": (mean_value(w), {"welfare": (w, V)}),
        "function": (curved, {}),
    }[outcome]
    given = sensitivity(base, new, u, function, **extra)
    limits = [
        Restriction.within(base.states, [-2.0, -1.0], [1.0, 2.0], name="range"),
        Restriction("sum", np.ones((1, 2)), np.array([-0.5]), np.array([1.5])),
    ]
    found = bounds(given, limits, u[:, 0])
    a, b = np.meshgrid(np.linspace(-2, 1, 61), np.linspace(-1, 2, 61), indexing="ij")
    inside = (a + b >= -0.5 - 1e-9) & (a + b <= 1.5 + 1e-9)
    values = np.array([given(z)[0] for z in np.c_[a[inside], b[inside]]])
    width = values.max() - values.min()
    assert width > 0.01 and found.converged
    assert values.min() - 1e-3 * width <= found.lower <= values.min() + 1e-9
    assert values.max() - 1e-9 <= found.upper <= values.max() + 1e-3 * width


def test_all_starts_are_needed_where_there_are_local_optima():
    """A convex outcome has a local maximum at many corners: the best is found all the same."""
    base, new, u = world(0, 6)
    given = sensitivity(base, new, u, curved)
    found = bounds(given, [Restriction.within(base.states, -1.5, 1.5)], u[:, 0], starts=40)
    corners = np.array(np.meshgrid(*[[-1.5, 1.5]] * 6)).reshape(6, -1).T
    best = max(given(z)[0] for z in corners)
    assert found.upper >= best - 1e-8
    assert given.solutions < 1500  # the scaling keeps searches short
    assert found.agree[1] < 40 and found.lower < found.maintained


def test_restrictions_tighten_and_shares_are_of_the_interval_without():
    base, new, u = world(6, 10)
    given = sensitivity(base, new, u, share_of(np.full(10, 0.1), [1]), shares_only=True)
    states = base.states
    limits = [
        Restriction.within(states, -1.0, 1.0, name="range"),
        Restriction.monotone(states, "s", name="rises"),
        Restriction.between(states, high=0.2, where=[7, 8, 9], name="low at the end"),
        Restriction.known(states, 0.0, where={"s": [0, 1]}, name="known"),
    ]
    nested = [bounds(given, limits[: n + 1], u[:, 0], starts=12) for n in range(4)]
    for wide, tight in itertools.pairwise(nested):
        assert wide.lower - 1e-9 <= tight.lower <= tight.upper <= wide.upper + 1e-9
    widths = [b.width for b in nested]
    assert widths[0] > widths[1] > widths[3] > 0
    last = nested[3]
    assert (last.free, last.rank) == (8, 9)
    assert last.removed["known"] == pytest.approx(1 - last.width / nested[2].width, abs=1e-6)
    assert all(-1e-9 <= last.removed[r.name] <= 1 for r in limits[1:])
    assert "- known: removes" in str(last)
    # known at the start, rising, and low at the end: the range adds nothing
    assert last.removed["range"] == pytest.approx(0, abs=1e-9)
    only = nested[0]
    assert np.isnan(only.removed["range"]) and "range: needed to bound" in str(only)
    for b in nested:
        for at in (b.lower_at, b.upper_at):
            assert (np.abs(at) <= 1 + 1e-7).all()
    assert (np.diff(last.lower_at) >= -1e-7).all() and np.abs(last.upper_at[:2]).max() < 1e-12
    value = given(last.upper_at - u[:, 0])[0]
    assert value == pytest.approx(last.upper, abs=1e-12)


def test_identified_counterfactuals_have_no_width():
    base, _, u = world(7, 12)
    dropped = base.with_parts(available=np.arange(3) != np.ones((12, 1)))
    own = np.where(dropped.available, u, -np.inf)
    shares = share_of(np.full(12, 1 / 12), [2])
    given = sensitivity(base, dropped, own, shares, shares_only=True)
    for limits in ([], [Restriction.within(base.states, -3, 3)]):
        found = bounds(given, limits, u[:, 0], starts=4)
        assert found.rank == 0 and abs(found.width) < 1e-10 and found.converged
        assert found.lower == pytest.approx(found.maintained, abs=1e-10)
    w, V = np.full(12, 1 / 12), dc.solve(base, [0.0]).V
    welfare = sensitivity(base, dropped, own, mean_value(w), welfare=(w, V))
    found = bounds(welfare, [Restriction.within(base.states, -3, 3)], u[:, 0], starts=4)
    assert found.rank == 0 and abs(found.width) < 1e-8 and found.lower < 0
    # all payoffs scaled: probabilities are identified, welfare is not
    scaled = ddc(2 * u, base.transitions.dense())
    given = sensitivity(base, scaled, 2 * u, shares, factors=2 * np.eye(3), shares_only=True)
    assert bounds(given, [], u[:, 0], starts=2).rank == 0
    given = sensitivity(base, scaled, 2 * u, mean_value(w), factors=2 * np.eye(3), welfare=(w, V))
    found = bounds(given, [Restriction.within(base.states, -1, 1)], u[:, 0], starts=4)
    # dV~ - dV = W du: one util in every period, up or down; so nothing bounds it without limits
    for unbounded in (given, sensitivity(base, scaled, 2 * u, curved, factors=2 * np.eye(3))):
        with pytest.raises(dc.SpecificationError, match="do not bound all"):
            bounds(unbounded, [], u[:, 0], starts=1)
    assert found.rank == 1 and found.width == pytest.approx(2 / (1 - BETA), rel=1e-8)


def test_the_truth_is_inside_and_the_normalisation_need_not_be():
    """Payoffs from probabilities under the wrong normalisation, restrictions that hold."""
    inside, missed = 0, 0
    for seed in range(6):
        base, new, u = world(20 + seed, 9)
        rng = np.random.default_rng(seed)
        true = rng.uniform(0.5, 0.6) + np.cumsum(rng.uniform(0.3, 0.5, 9))
        dynamics = Dynamics.of_model(base)
        u_true = equivalent_payoffs(dynamics, u, true)
        u_true[:, 1:] = u[:, 1:]
        truth = ddc(u_true, base.transitions.dense())
        pi = dc.solve(truth, [0.0]).ccp
        wrong = payoffs_of(dynamics, pi, np.zeros(9))
        target = dc.solve(ddc(u_true, new.transitions.dense()), [0.0]).ccp[:, 1].mean()
        given = sensitivity(base, new, wrong, share_of(np.full(9, 1 / 9), [1]), shares_only=True)
        rises = Restriction.monotone(base.states, "s")
        limits = [
            Restriction.between(base.states, 0.5, 5.5, name="between"),
            replace(rises, low=rises.low + 0.3, high=rises.low + 0.5),
        ]
        found = bounds(given, limits, np.zeros(9), starts=5)
        inside += found.lower - 1e-9 <= target <= found.upper + 1e-9
        assert found.violated == ("between", "rises in s")
        # exact: the outcome at the true anchor payoff is the truth itself
        assert given(true)[0] == pytest.approx(target, abs=1e-11)
        missed += not found.lower <= found.maintained <= found.upper
        assert abs(found.maintained - target) > 1e-6
    assert inside == 6 and missed >= 1


def test_equalities_are_solved_away():
    base, new, u = world(8, 5)
    given = sensitivity(base, new, u, share_of(np.full(5, 0.2), [1]), shares_only=True)
    states = base.states
    total = Restriction("mean", np.full((2, 5), 0.2), np.full(2, 0.3), np.full(2, 0.3))
    box = Restriction.within(states, -1, 1)
    found = bounds(given, [box, total, Restriction.known(states, 0.5, where=[2])], u[:, 0])
    assert found.free == 3
    for at in (found.lower_at, found.upper_at):
        assert at.mean() == pytest.approx(0.3, abs=1e-9) and at[2] == 0.5
        assert np.abs(at).max() <= 1 + 1e-7
    point = bounds(given, [Restriction.known(states, np.arange(5) / 10)], u[:, 0])
    assert point.free == 0 and point.width == 0
    assert point.lower == pytest.approx(given(np.arange(5) / 10)[0], abs=1e-13)


def test_helpers_and_directions():
    states = dc.StateSpace(plan=["none", "monthly"], use=range(3))
    assert select(states, {"plan": "monthly", "use": [0, 2]}).tolist() == [3, 5]
    assert select(states, states.axis_codes("use") == 1).tolist() == [1, 4]
    falls = Restriction.monotone(states, "use", increasing=False, where={"plan": "none"})
    assert falls.matrix.toarray().tolist() == [[1, -1, 0, 0, 0, 0], [0, 1, -1, 0, 0, 0]]
    across = Restriction.monotone(states, "plan").matrix.toarray()
    assert across.tolist() == np.c_[-np.eye(3), np.eye(3)].tolist()
    assert np.array_equal(axis_directions(states), np.eye(6))
    wide = dc.StateSpace(a=range(10), b=range(7), c=range(3))
    B = axis_directions(wide)
    assert B.shape == (210, 10 + 6 + 2) and np.linalg.matrix_rank(B) == 18
    for bad, match in [
        (lambda: Restriction.between(states, 1, 0), "low <= high"),
        (lambda: Restriction.between(states, [1, 2], 3), "one for each"),
        (lambda: Restriction.known(states, where={"use": []}), "on 0 states"),
        (lambda: Restriction.monotone(states, "use", where=[0, 3]), "neighbours"),
        (lambda: select(states, [6]), "codes of states"),
        (lambda: select(states, {"plan": "weekly"}), "no level 'weekly'"),
    ]:
        with pytest.raises(dc.SpecificationError, match=match):
            bad()


@pytest.fixture(scope="module")
def scenario(fitted):
    """The fit, and its model where half of those who pay monthly move as if they had not."""
    fit, _ = fitted
    F = fit.model.transitions.dense().copy()
    at = fit.model.states.axis_codes("contract") < 3
    F[at, 1] = 0.5 * F[at, 1] + 0.5 * F[at, 0]
    return fit, fit.model.with_transitions(dc.Transitions.dense(F))


def test_the_public_face(scenario):
    fit, new = scenario
    states = fit.model.states
    limits = [
        Restriction.within(states, -0.3, 0.3, name="within 0.3"),
        Restriction.monotone(
            states, "video", False, where=fit.model.available[:, 0], name="falls in video"
        ),
        Restriction.known(states, 0.0, where={"contract": "none"}, name="never members"),
    ]
    found = counterfactual_bounds(fit, new, limits, starts=4, seed=1)
    plain = dc.counterfactual(fit, dc.Scenario("moves", model=new))
    assert found.maintained == pytest.approx(1 - plain.shares.loc["none", "scenario"], abs=1e-9)
    assert found.lower <= found.maintained <= found.upper and found.width > 1e-4
    assert found.converged and found.violated == () and found.starts == 4
    assert set(found.without) == {r.name for r in limits}
    locked = ~fit.model.available[:, 0]
    assert locked.any()  # the annual contract: another choice is the anchor there
    u = fit.model.flow_utility(fit.theta)
    np.testing.assert_allclose(found.lower_at[states.axis_codes("contract") == 0], 0, atol=1e-9)
    assert np.abs(found.upper_at - np.where(locked, u[:, 2], 0)).max() <= 0.3 + 1e-7
    again = counterfactual_bounds(fit, new, limits, starts=4, seed=1)
    assert (again.lower, again.upper) == (found.lower, found.upper)
    monthly = counterfactual_bounds(fit, new, limits, choice="monthly", starts=2)
    want = plain.shares.loc["monthly", "scenario"]
    assert monthly.maintained == pytest.approx(want, abs=1e-9) and "monthly" in str(monthly)
    welfare = counterfactual_bounds(fit, new, limits, outcome="welfare", starts=2)
    assert welfare.maintained == pytest.approx(plain.welfare, abs=1e-7)
    few = counterfactual_bounds(
        fit, new, limits, directions=np.ones((states.size, 1)) * ~locked[:, None], starts=2
    )
    assert few.free == 0 and few.lower == few.upper == pytest.approx(found.maintained, abs=1e-9)


def test_scenarios_of_parameters_and_functions(scenario):
    fit, new = scenario
    box = [Restriction.within(fit.model.states, -0.2, 0.2)]
    dear = fit.theta * np.where(np.array(fit.model.names) == "pay", 1.2, 1.0)
    priced = counterfactual_bounds(fit, fit.model, box, params=dear, starts=2)
    want = dc.counterfactual(fit, dc.Scenario("dear", params={"pay": lambda p: 1.2 * p}))
    # a known transfer: identified, so the interval is a point
    assert priced.rank == 0 and priced.width < 1e-9
    assert priced.lower == pytest.approx(1 - want.shares.loc["none", "scenario"], abs=1e-9)

    def log_odds(V, P):
        w = np.full(len(P), 1 / len(P))
        mean = P.T @ w
        slope = np.zeros_like(P)
        slope[:, 1] = w / mean[1]
        return float(np.log(mean[1])), np.zeros_like(V), slope

    own = counterfactual_bounds(fit, new, box, outcome=log_odds, starts=2)
    assert own.outcome == "log_odds" and own.lower < own.maintained < own.upper < 0


def test_refusals(scenario):
    fit, new = scenario
    states = fit.model.states
    box = Restriction.within(states, -1, 1)
    for limits, options, match in [
        ([], {}, r"add Restriction.within"),
        ([Restriction.monotone(states, "ship")], {}, r"add Restriction.within"),
        (
            [box, Restriction.known(states, 5.0, where=[0], name="five")],
            {},
            "satisfies the restrictions; without 'within -1 .. 1', 'five' there is one",
        ),
        (
            [
                box,
                Restriction.known(states, 0.0, [0], "a"),
                Restriction.known(states, 1.0, [0], "b"),
            ],
            {},
            "without 'a', 'b' there is one",
        ),
        ([box, box], {}, "distinct names"),
        ([box], {"outcome": "profit"}, "'profit' is unknown"),
        ([box], {"choice": "weekly"}, "choice 'weekly' is unknown"),
        ([box], {"weights": np.ones(3)}, "weights"),
        ([box], {"directions": np.ones((3, 2))}, "directions"),
        (["positive"], {}, "'positive' is none"),
    ]:
        with pytest.raises(dc.SpecificationError, match=match):
            counterfactual_bounds(fit, new, limits, starts=2, **options)
    with pytest.raises(dc.SpecificationError, match="must be a Results, got dict"):
        counterfactual_bounds({"a": fit}, new, [box])
    x = fit.model.utility.x[:, :, :2]
    other = fit.model.with_parts(utility=dc.Utility.from_array(x, ["member", "ship"]))
    with pytest.raises(dc.SpecificationError, match="other parameters"):
        counterfactual_bounds(fit, other, [box])
