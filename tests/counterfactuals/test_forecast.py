from dataclasses import replace
from functools import partial

import builders
import numpy as np
import oracles
import pandas as pd
import pytest
from term_club import CLUB, mixed, panel, taken

import dynchoice as dc
from dynchoice.counterfactuals.engine import Engine


@pytest.fixture(scope="module")
def priced(membership):
    """A fit whose panel saw both offers, and the panel."""
    frame = membership.frame.copy()
    members = frame["member"].to_numpy()
    frame["seg"] = np.where(members % 3 == 0, "b", "a")
    panel = builders.membership_panel(membership, frame, segment="seg")
    fits = {s: dc.NFXP(membership.unknown, panel.counts.segment(s)).fit() for s in panel.segments}
    return fits, panel


def test_paths_against_brute_force(fitted, membership):
    fit, panel = fitted
    S = fit.model.states.size
    mu = np.random.default_rng(0).dirichlet(np.ones(S))
    result = dc.forecast(fit, start=mu, periods=5, draws=0)
    F, P = fit.transitions.dense(), fit.ccp
    for t in range(1, 6):
        row = result.take_up[result.take_up["period"] == t]["share"].to_numpy()
        np.testing.assert_allclose(row, mu @ P, atol=1e-13)
        joint = np.einsum("s,sj,sjt,tk->jk", mu, P, F, P)
        mu = np.einsum("s,sj,sjt->t", mu, P, F)
        if t < 5:
            flows = result.flows[result.flows["period"] == t + 1]["share"].to_numpy()
            np.testing.assert_allclose(flows.reshape(3, 3), joint, atol=1e-13)


def test_the_first_month_starts_from_the_last_observed_choices(fitted):
    fit, panel = fitted
    last = panel.counts.at_period()[0]
    result = dc.forecast(fit, start=panel, periods=2, draws=0)
    F = fit.transitions.dense()
    mu = np.einsum("sj,sjt->t", last, F) / last.sum()
    first = result.take_up[result.take_up["period"] == 1]
    np.testing.assert_allclose(first["share"], mu @ fit.ccp, atol=1e-13)
    np.testing.assert_allclose(first["members"], 3000 * first["share"])
    flows = result.flows[result.flows["period"] == 1].groupby("source", sort=False)["share"].sum()
    np.testing.assert_allclose(flows, last.sum(axis=0) / last.sum(), atol=1e-12)
    assert list(first["label"]) == ["14"] * 3


def test_the_forecast_agrees_with_simulated_members(fitted, membership):
    fit, _ = fitted
    S = fit.model.states.size
    result = dc.forecast(fit, start=np.ones(S) / S, periods=6, draws=0)
    paths = dc.simulate(fit, members=60_000, periods=6, seed=4, start=np.ones(S) / S)
    simulated = np.stack([(paths.choices == j).mean(axis=0) for j in range(3)], axis=1)
    exact = result.take_up["share"].to_numpy().reshape(6, 3)
    assert np.abs(simulated - exact).max() < 4 * np.sqrt(0.25 / 60_000)


def test_scenarios_start_when_they_start(priced):
    fits, panel = priced
    scenario = dc.Scenario("dear", params={"pay": lambda p: 2 * p}, starts=4)
    result = dc.forecast(fits, scenario, start=panel, periods=6, draws=0)
    table = result.take_up.pivot_table(
        index=["segment", "period", "choice"], columns="scenario", values="share"
    )
    early = table.loc[(slice(None), slice(1, 3)), :]
    assert (early["dear"] == early["baseline"]).all()
    late = table.loc[(slice(None), slice(4, 6)), :]
    assert ((late["dear"] - late["baseline"]).abs() > 1e-4).any()
    assert set(result.take_up["segment"]) == {"a", "b", "all"}
    pooled = result.take_up.groupby(["scenario", "period", "choice"])["members"].sum()
    everyone = result.take_up[result.take_up["segment"] == "all"]
    total = everyone.set_index(["scenario", "period", "choice"])["members"]
    np.testing.assert_allclose(pooled.sort_index(), 2 * total.sort_index())
    assert (result.welfare.set_index(["scenario", "segment"]).loc["dear", "change"] < 0).all()
    assert (result.welfare.set_index(["scenario", "segment"]).loc["baseline", "change"] == 0).all()


def test_an_offer_moves_members_to_another_level(fitted, membership):
    fit, panel = fitted
    states = fit.model.states
    mu = np.random.default_rng(1).dirichlet(np.ones(states.size))
    result = dc.forecast(
        fit,
        dc.Scenario("new prices", offer={"offer": {"old": "new"}}, starts=2),
        start=mu,
        periods=3,
        draws=0,
    )
    levels = states.frame()
    levels["offer"] = "new"
    moved = states.codes(levels)
    F, P = fit.transitions.dense(), fit.ccp
    second = np.einsum("s,sj,sjt->t", mu, P, F)
    want = np.bincount(moved, weights=second, minlength=states.size) @ P
    rows = result.take_up.query("scenario == 'new prices' and period == 2")
    np.testing.assert_allclose(rows["share"], want, atol=1e-13)
    flows = result.flows.query("scenario == 'new prices' and period == 2")["share"].to_numpy()
    joint = np.einsum("s,sj,sjt,tk->jk", mu, P, F, P[moved])
    np.testing.assert_allclose(flows.reshape(3, 3), joint, atol=1e-13)


def test_bands_hold_the_delta_method_and_do_not_depend_on_jobs(priced):
    fits, panel = priced
    scenario = dc.Scenario("dear", params={"pay": lambda p: 1.5 * p})
    options = {"start": panel, "periods": 3, "level": 0.9, "seed": 3}
    few, again = (dc.forecast(fits, scenario, **options, draws=40, n_jobs=n) for n in (1, 2))
    pd.testing.assert_frame_equal(few.take_up, again.take_up)
    result = dc.forecast(fits, scenario, **options, draws=400)
    assert result.converged and result.message == "converged"
    t = result.take_up
    assert ((t["lower"] <= t["share"]) & (t["share"] <= t["upper"])).mean() > 0.95
    fit = fits["a"]
    last = panel.counts.segment("a").at_period()[0]
    mu = fit.transitions.push(last) / last.sum()

    def share(p):
        return mu @ dc.solve(fit.model, p).ccp

    delta = fit.delta_method(share, level=0.9)
    row = t.query("scenario == 'baseline' and segment == 'a' and period == 1")
    width = (row["upper"] - row["lower"]).to_numpy()
    np.testing.assert_allclose(width, delta["upper"] - delta["lower"], rtol=0.2)


def test_counterfactual_ccp_against_the_oracle():
    spec = oracles.random_model(8, 25, 3, 2, 0.95, attention=False)
    model, counts, _ = builders.simulated_counts(spec, 800, 5, 2)
    fit = dc.NFXP(model, counts).fit()
    rng = np.random.default_rng(0)
    F = rng.dirichlet(np.ones(25), size=(25, 3))
    extra = rng.normal(size=(25, 3))
    mask = spec["available"].copy()
    mask[:, 2] = False
    scenario = dc.Scenario(
        "all at once",
        params={"k0": 0.3},
        utility=extra,
        transitions=dc.Transitions.dense(F),
        available=mask,
    )
    cf = dc.counterfactual(fit, scenario)
    changed = {
        **spec,
        "F": F,
        "offset": spec["offset"] + extra,
        "available": mask,
        "default": mask.argmax(axis=1),
    }
    V, _, _, P = oracles.solve_newton(changed, np.array([0.3, fit.params["k1"]]))
    np.testing.assert_allclose(cf.ccp, P, atol=1e-11)
    np.testing.assert_allclose(cf.V, V, rtol=1e-10)
    assert not cf.identified and "max |A_j - A~_j|" in str(cf)
    np.testing.assert_allclose(cf.shares.sum(), [1, 1, 0], atol=1e-12)


def test_identification_of_counterfactuals_follows_the_truth_table():
    # papers.md 6.2: replace the anchor's utility by another and normalise it away; identified
    # counterfactuals do not move, others do
    rng = np.random.default_rng(3)
    S, J, beta = 12, 3, 0.9
    F = rng.dirichlet(np.ones(S), size=(S, J))
    G = F.copy()
    G[:, 1] = rng.dirichlet(np.ones(S), size=S)
    u = rng.normal(size=(S, J))
    eye = np.eye(S)
    shift = rng.normal(size=S)
    A = [(eye - beta * F[:, j]) @ np.linalg.inv(eye - beta * F[:, 0]) for j in range(J)]
    twin = np.stack([u[:, j] - A[j] @ shift for j in range(J)], axis=1)
    known = rng.normal(size=(S, J))

    def ccp(utility, law):
        model = dc.DDC(
            states=dc.StateSpace(s=range(S)),
            choices=list(range(J)),
            beta=beta,
            utility=dc.Utility.from_array(np.zeros((S, J, 1)), ["k"], offset=utility),
            transitions=dc.Transitions.dense(law),
        )
        return dc.solve(model, [0.0]).ccp

    np.testing.assert_allclose(ccp(u, F), ccp(twin, F), atol=1e-11)
    np.testing.assert_allclose(ccp(u + known, F), ccp(twin + known, F), atol=1e-11)
    assert np.abs(ccp(u, G) - ccp(twin, G)).max() > 1e-3


@pytest.mark.parametrize(
    ("scenario", "identified"),
    [
        (dc.Scenario("dear", params={"pay": 2.0}), True),
        (dc.Scenario("subsidy", utility=np.full((40, 3), 0.1)), True),
        (dc.Scenario("same law", transitions={"offer": dc.Fixed()}), True),
        (dc.Scenario("new", offer={"offer": "new"}), True),
        (
            dc.Scenario("season", transitions={"ship": dc.Markov((), [[0.5, 0.5], [0.1, 0.9]])}),
            False,
        ),
        (dc.Scenario("open", available=np.ones((40, 3), bool)), False),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_badges(fitted, scenario, identified):
    fit, _ = fitted
    if scenario.name == "open":
        with pytest.raises(dc.SpecificationError, match="no next level"):
            dc.counterfactual(fit, scenario)
        return
    cf = dc.counterfactual(fit, scenario)
    assert cf.converged and cf.identified is identified
    assert ("DEPENDS ON THE NORMALISATION" in str(cf)) is not identified


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (lambda: dc.Scenario(""), "needs a name"),
        (lambda: dc.Scenario("x", starts=0), "the first period is 1"),
        (lambda: dc.Scenario("x", params={"pya": 1}), r"parameter 'pya' is unknown.*'pay'"),
        (lambda: dc.Scenario("x", offer={"ofer": "new"}), r"no axis is named 'ofer'"),
        (lambda: dc.Scenario("x", offer={"offer": "newer"}), r"no level 'newer'.*'new'"),
        (lambda: dc.Scenario("x", offer={"ship": 1}), r"axis 'ship' moves by itself"),
        (lambda: dc.Scenario("x", utility=np.zeros(3)), r"utils to add must be finite"),
        (lambda: dc.Scenario("x", available=np.zeros((40, 3))), "offer no choice"),
        (lambda: dc.Scenario("x", transitions={"shop": dc.Fixed()}), "law of 'shop'"),
        (lambda: dc.Scenario("x", transitions=3), "transitions must be"),
    ],
)
def test_bad_scenarios(fitted, scenario, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.counterfactual(fitted[0], scenario())


def test_scenarios_by_attributes_and_by_model(fitted):
    fit, _ = fitted
    attributes = fit.model.utility.attributes.copy()
    attributes["pay"] *= 1.5
    by_table = dc.counterfactual(fit, dc.Scenario("a", utility=attributes))
    by_param = dc.counterfactual(fit, dc.Scenario("b", params={"pay": lambda p: 1.5 * p}))
    np.testing.assert_allclose(by_table.ccp, by_param.ccp, atol=1e-12)
    other = fit.model.with_parts(beta=0.9)
    cf = dc.counterfactual(fit, dc.Scenario("impatient", model=other))
    np.testing.assert_allclose(cf.ccp, dc.solve(other, fit.params).ccp, atol=1e-12)
    assert not cf.identified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"periods": 0}, "periods=0"),
        ({"level": 90}, "level=90"),
        ({"draws": -1}, "draws=-1"),
        ({"start": np.ones(3)}, "start of 'all' is over 3 states"),
        ({"start": np.full(40, -1.0)}, "non-negative"),
        ({"scenarios": [dc.Scenario("x"), dc.Scenario("x")]}, "distinct names"),
        ({"start": {"b": np.ones(40)}}, "no member of it"),
    ],
)
def test_bad_forecasts(priced, options, message):
    fits, panel = priced
    settings = {"start": panel, "draws": 0, **options}
    results = fits if isinstance(settings["start"], dict) else fits["a"]
    with pytest.raises(dc.SpecificationError, match=message):
        dc.forecast(results, settings.pop("scenarios", ()), **settings)


def test_save_and_plot(priced, tmp_path):
    pytest.importorskip("matplotlib")
    fits, panel = priced
    result = dc.forecast(fits, start=panel, periods=3, draws=5)
    paths = result.save(tmp_path / "out")
    back = pd.read_parquet(paths[0])
    pd.testing.assert_frame_equal(back, result.take_up)
    figure = result.plot(path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert len(figure.axes) == 9
    assert len(result.plot(["a"]).axes) == 3
    with pytest.raises(dc.SpecificationError, match="no segment 'c'"):
        result.plot(["c"])


def test_simulate_reports_what_does_not_fit(fitted, membership):
    fit, _ = fitted
    with pytest.raises(dc.SpecificationError, match="needs params"):
        dc.simulate(membership.known)
    with pytest.raises(dc.SpecificationError, match="start must be 5 integer"):
        dc.simulate(fit, members=5, start=np.zeros(3))
    with pytest.raises(dc.SpecificationError, match="outside 0"):
        dc.simulate(fit, members=5, start=np.full(5, 99))
    a, b = (dc.simulate(fit, members=20, periods=4, seed=7).frame() for _ in range(2))
    pd.testing.assert_frame_equal(a, b)
    scenario = dc.Scenario("new", offer={"offer": "new"})
    assert (dc.simulate(fit, scenario=scenario, members=9).frame()["offer"] == "new").all()


def test_simulation_axis_by_axis_has_the_same_law(fitted, monkeypatch):
    from dynchoice.counterfactuals.simulate import draw_axes

    fit, _ = fitted
    F = fit.transitions
    rng = np.random.default_rng(0)
    codes, choice = np.full(40_000, 3), np.full(40_000, 2)
    drawn = np.bincount(draw_axes(F, codes, choice, rng), minlength=40) / 40_000
    np.testing.assert_allclose(drawn, F.dense()[3, 2], atol=0.012)


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


MONTHLY = dc.Membership(
    [dc.Plan("monthly", 10.0)], beta=0.95,
    params={"member": 0.1, "price": 0.06, "joining cost": 0.5},
)  # fmt: skip


def test_solutions_do_not_share_the_arrays_of_their_solver():
    rng = np.random.default_rng(3)
    F = rng.dirichlet(np.ones(6), size=(6, 2))
    model = dc.DDC(
        states=dc.StateSpace(s=range(6)), choices=["a", "b"], beta=0.9,
        utility=dc.Utility.from_array(rng.normal(size=(6, 2, 1)), ["k"]),
        transitions=dc.Transitions.dense(F),
    )  # fmt: skip
    engine = Engine(model, np.array([0.3]))
    before = engine.base.P.copy()
    engine.at(np.array([1.7]))
    assert (before == engine.base.P).all()


def test_progress_is_told_with_several_workers():
    own = replace(MONTHLY, types={})
    for jobs in (1, 2):
        said = []
        dc.forecast(own, periods=2, start="steady state", n_jobs=jobs,
                    progress=lambda *a, said=said: said.append(a))  # fmt: skip
        assert said and said[-1][0] == said[-1][1]


def test_bands_of_draws_with_one_number_have_no_spread_and_no_warning():
    from dynchoice.counterfactuals.bands import bands_of

    point = np.array([[1.0, 2.0]])
    drawn = [np.array([[1.0, np.nan]]), np.array([[1.2, np.nan]]), np.array([[0.9, 2.1]])]
    found = bands_of(point, drawn, 0.9, "draws", [1, 1, 1])
    assert np.isfinite(np.asarray(found.lower)).all()
