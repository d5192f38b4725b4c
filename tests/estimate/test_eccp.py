"""ECCP against exact choice probabilities, hand-made rows, linearmodels and NFXP."""

from dataclasses import replace

import builders
import numpy as np
import oracles
import pandas as pd
import pytest
from linearmodels.iv import IV2SLS

import dynchoice as dc

K, W = 5, 3
STATES, CHOICES = dc.StateSpace(k=range(K), w=range(W)), ["renew", "go"]
THETA = np.array([1.0, -0.4, 0.5, 0.6])
NAMES = ["const", "slope", "w", "scrap"]
BETA = 0.9
PATHS = np.array([[0, 0, 1, 1, 2, 2, 0, 0], [2, 2, 2, 0, 0, 1, 1, 1]])
"""Level of w by region and period."""


def renewal(attentive=1.0):
    """Go on and pay for the state, or renew for a scrap value; w is the market's."""
    k, w = np.divmod(np.arange(K * W), W)
    x = np.zeros((K * W, 2, 4))
    x[:, 1, 0], x[:, 1, 1], x[:, 1, 2] = 1.0, k, w
    x[:, 0, 3] = k**2 / 8
    laws = {"k": dc.Increment(1, "renew", probabilities=(0.3, 0.7)), "w": dc.Fixed()}
    inattention = {"attention": np.full(K * W, attentive), "default": np.zeros(K * W, np.int64)}
    return dc.DDC(
        states=STATES,
        choices=CHOICES,
        utility=dc.Utility.from_array(x, NAMES),
        transitions=dc.Transitions.factored(STATES, CHOICES, laws),
        beta=BETA,
        **(inattention if attentive < 1 else {}),
    )


def as_spec(model):
    return {
        "x": model.utility.x,
        "offset": model.utility.offset,
        "F": model.transitions.dense_array(),
        "beta": model.beta,
        "available": model.available,
        "attention": model.attention,
        "default": np.asarray(model.default),
        "params": THETA,
    }


def expected_counts(model, paths, linked, size=1e10, labels=("a", "b")):
    """Expected counts of ``size`` members in every state that a region's market allows.

    ``linked``: whether members are followed over a change of the market; else they are lost there
    and others come."""
    spec = as_spec(model)
    P = oracles.solve_newton(spec, THETA)[3]
    rows = []
    for r, path in enumerate(paths):
        for t, w in enumerate(path):
            for k in range(K):
                s = k * W + w
                for j in range(2):
                    n = size * P[s, j]
                    if t + 1 == len(path) or (path[t + 1] != w and not linked):
                        rows.append((r, t, s, j, -1, n))
                        continue
                    for s2 in np.flatnonzero(spec["F"][s, j]):
                        following = s2 // W * W + path[t + 1]
                        rows.append((r, t, s, j, following, n * spec["F"][s, j, s2]))
    table = dict(
        zip(
            ["r", "t", "s", "j", "following", "n"],
            map(np.array, zip(*rows, strict=True)),
            strict=True,
        )
    )
    return builders.region_counts(model, table, labels), P


# ---------------------------------------------------------------- exact probabilities


@pytest.mark.parametrize("attentive", [1.0, 0.7])
@pytest.mark.parametrize("options", [{}, {"correction": "none"}, {"weights": "none"}])
def test_exact_probabilities_give_the_truth(attentive, options):
    model = renewal(attentive)
    counts, _ = expected_counts(model, PATHS, linked=False)
    estimator = dc.ECCP(model, counts, **options)
    fit = estimator.fit(cov_type="robust")
    np.testing.assert_allclose(fit.params, THETA, atol=1e-7)
    assert fit.converged and list(fit.params.index) == NAMES
    changes = (np.diff(PATHS, axis=1) != 0).sum()
    # where the market changes no member is seen next month; at k = 0 no next month is needed
    rows = 2 * 7 * K - changes * (K - 1)
    assert fit.tests["nobs"] == rows == len(estimator.regression().cells)
    assert estimator.regression().dropped["small cell next period"] == changes * (K - 1)
    P = oracles.solve_newton(as_spec(model), fit.theta)[3]
    loglik = oracles.weighted_log(counts.n_sj(), P)
    assert fit.loglik == pytest.approx(loglik, rel=1e-9)


@pytest.mark.parametrize("attentive", [1.0, 0.7])
def test_where_the_market_changes_the_error_is_the_surprise(attentive):
    model = renewal(attentive)
    counts, _ = expected_counts(model, PATHS, linked=True)
    found = dc.ECCP(model, counts, surprises="keep").regression()
    spec = as_spec(model)
    V, _, pi, P = oracles.solve_newton(spec, THETA)
    cells = found.cells
    assert len(cells) == 2 * 7 * K and sum(found.dropped.values()) == 0
    # v_0 - V: what a period's probabilities say about values, up to the renewal's own
    a = model.attention
    psi = -np.log(pi[:, 0]) + (1 - a) * np.log(pi[:, 0])
    u0 = model.utility.x[:, 0] @ THETA
    error = found.dependent - found.exog @ THETA
    for i, row in cells.iterrows():
        r, t, s = ["a", "b"].index(row["region"]), row["period"], row["state"]
        assert (row["choice"], row["reference"]) == (1, 0)
        w, after = PATHS[r, t], PATHS[r, t + 1]
        d = spec["F"][s, 1] - spec["F"][s, 0]
        d = d.reshape(K, W)[:, w]
        gap = (u0 + psi).reshape(K, W)[:, w] - (u0 + psi).reshape(K, W)[:, after]
        assert error[i] == pytest.approx(BETA * d @ gap, abs=1e-7)
        assert V.reshape(K, W)[:, w] @ d == pytest.approx((u0 + psi).reshape(K, W)[:, w] @ d)
    still = np.abs(error) < 1e-7
    assert (~still).sum() == (K - 1) * (np.diff(PATHS, axis=1) != 0).sum()
    right = dc.ECCP(model, counts).fit(cov_type="robust")
    np.testing.assert_allclose(right.theta, THETA, atol=1e-7)  # surprises are left out
    fit = dc.ECCP(model, counts, surprises="keep").fit(cov_type="robust")
    assert 0.003 < np.abs(fit.theta - THETA).max() < 0.15  # members were surprised in 5 of 14


def sampled(seed, regions=12, members=400, periods=8, followed=True):
    """A panel of regions whose market moves once; others come then unless ``followed``."""
    model = renewal()
    spec = as_spec(model)
    P = oracles.solve_newton(spec, THETA)[3]
    rng = np.random.default_rng(seed)
    frames = []
    for r in range(regions):
        before = r % W
        after = (before + (1 if r % 2 else 2)) % W
        k = rng.integers(K, size=members)
        for t in range(periods):
            moved = t >= 3 + r % 3
            w = after if moved else before
            s = k * W + w
            choice = (rng.random(members) < P[s, 1]).astype(int)
            who = np.arange(members) + (r + regions * (moved and not followed)) * members
            own = {"id": who, "t": t, "k": k, "w": w, "r": f"r{r:02d}"}
            frames.append(pd.DataFrame({**own, "choice": np.array(CHOICES)[choice]}))
            k = oracles.draw_rows(rng, spec["F"][s, choice]) // W
    return model, pd.concat(frames, ignore_index=True)


def as_counts(frame):
    """The counts of such a panel, without a query."""
    frame = frame.sort_values(["id", "t"])
    state = frame["k"] * W + frame["w"]
    follows = (frame["id"].shift(-1) == frame["id"]) & (frame["t"].shift(-1) == frame["t"] + 1)
    region, labels = pd.factorize(frame["r"], sort=True)
    rows = {"r": region, "t": frame["t"], "s": state, "j": frame["choice"] == "go"}
    rows |= {"following": state.shift(-1).where(follows, -1), "n": np.ones(len(frame))}
    return builders.region_counts(renewal(), rows, labels)


def as_panel(frame, **options):
    return dc.Panel(
        frame,
        member="id",
        time="t",
        choice="choice",
        states=STATES,
        choices=CHOICES,
        **{"region": "r", **options},
    )


@pytest.fixture(scope="module")
def panel():
    model, frame = sampled(0)
    return model, as_panel(frame), frame


@pytest.fixture(scope="module")
def fit(panel):
    return dc.ECCP(panel[0], panel[1]).fit()


def test_one_row_by_hand(panel):
    model, own, frame = panel
    found = dc.ECCP(model, own, weights="members").regression()
    i = int(np.flatnonzero((found.cells["region"] == "r03") & (found.cells["period"] == 4))[0])
    cell = found.cells.loc[i]
    k, w = divmod(int(cell["state"]), W)

    def seen(t, k, w):
        here = frame.query("r == 'r03' and t == @t and k == @k and w == @w")
        n = here["choice"].value_counts().reindex(CHOICES, fill_value=0)
        return n.to_numpy()

    n = seen(4, k, w)
    assert cell["members"] == n.sum()
    after = int(frame.query("r == 'r03' and t == 5")["w"].iloc[0])
    y = np.log((n[1] + 0.5) / (n[0] + 0.5))
    x = np.array([1.0, k, w, -(k**2) / 8])
    up = min(k + 1, K - 1)
    d = np.zeros(K)
    for level, p in ((k, 0.3), (up, 0.7), (0, -0.3), (1, -0.7)):
        d[level] += p
    for level in np.flatnonzero(np.abs(d) > 1e-12):
        m = seen(5, level, after)
        y += BETA * d[level] * np.log((m[0] + 0.5) / (m.sum() + 1))
        x[3] += BETA * d[level] * level**2 / 8
    assert found.dependent[i] == pytest.approx(y, abs=1e-12)
    np.testing.assert_allclose(found.exog.loc[i], x, atol=1e-12)
    np.testing.assert_allclose(found.instruments.loc[i], x, atol=1e-12)  # nothing dated t + 1
    assert found.weights[i] == n.sum()


def test_agrees_with_nfxp_on_one_panel():
    model, frame = sampled(0, 12, 1500, 7, followed=False)
    own = as_panel(frame)
    fit = dc.ECCP(model, own).fit()
    nfxp = dc.NFXP(model, own).fit(cluster="region")
    assert fit.cov_config["clusters"] == nfxp.cov_config["clusters"] == 12
    assert (np.abs(nfxp.params - THETA) / nfxp.std_errors).max() < 5
    assert (np.abs(fit.params - THETA) / fit.std_errors).max() < 5
    assert (np.abs(fit.params - nfxp.params) / fit.std_errors).max() < 4
    test = fit.hausman_test(nfxp)  # twelve clusters: chi-squared is a rough guide
    assert test.df == 4 and 0 < test.pval <= 1
    shown = str(dc.compare({"NFXP": nfxp, "ECCP": fit}))
    assert "scrap" in shown and "ECCP" in shown
    assert nfxp.loglik >= fit.loglik > nfxp.loglik - 30
    with pytest.raises(dc.SpecificationError, match="same"):
        fit.hausman_test(dc.NFXP(model, own).fit())
    assert "Laws of motion are taken as known" in str(fit.summary())


def test_counts_without_a_query_are_those_of_the_panel(panel):
    own, want = as_counts(panel[2]).regions, panel[1].counts.regions
    assert own.labels == want.labels and (own.cells == want.cells).all() and (own.n == want.n).all()


def test_influence_is_the_covariance(fit):
    meat = fit.influence.T @ fit.influence
    ratio = np.diag(meat) / np.diag(fit.cov)
    assert fit.influence.shape == (12, 4)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)  # but for linearmodels' n/(n-k)
    assert 0.9 < ratio[0] < 1.1


def test_the_sampling_error_in_cells_is_in_the_standard_errors():
    fits = [
        dc.ECCP(m, as_counts(f)).fit() for m, f in (sampled(s, 12, 200, 6, False) for s in range(8))
    ]
    theta = np.array([f.theta for f in fits])
    error = np.mean([f.std_errors for f in fits], axis=0)
    ratio = error / theta.std(axis=0, ddof=1)
    assert (ratio > 0.45).all() and (ratio < 2.2).all(), ratio


def drawn_cells(seed, size, regions=9):
    """Counts of ``size`` members in every cell of regions whose markets stay."""
    model = renewal()
    P = oracles.solve_newton(as_spec(model), THETA)[3]
    rng = np.random.default_rng(seed)
    rows = []
    for r, t, k in np.ndindex(regions, 6, K):
        s = k * W + r % W
        ones = rng.binomial(size, P[s, 1])
        rows += [(r, t, s, 0, -1, size - ones), (r, t, s, 1, -1, ones)]
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    table = dict(zip(["r", "t", "s", "j", "following", "n"], columns, strict=True))
    return model, builders.region_counts(model, table, [f"r{r:02d}" for r in range(regions)])


def test_hausman_contrast_with_nfxp():
    pvals = []
    for seed in range(5):
        model, counts = drawn_cells(seed, 2000, 40)
        nfxp = dc.NFXP(model, counts).fit(cluster="region")
        fit = dc.ECCP(model, counts, weights="members").fit()
        pvals.append(fit.hausman_test(nfxp).pval)
        assert np.abs((fit.params - nfxp.params) / fit.std_errors).max() < 4
    assert min(pvals) > 1e-3 and max(pvals) > 0.2, pvals
    wrong = model.with_parts(beta=0.6)  # both are wrong then, and differently
    nfxp = dc.NFXP(wrong, counts).fit(cluster="region")
    assert dc.ECCP(wrong, counts).fit().hausman_test(nfxp).pval < 1e-3


def test_precision_weights_do_not_bring_the_bias_back():
    gaps = []
    for seed in range(24):
        model, counts = drawn_cells(seed, 60)
        gaps.append(dc.ECCP(model, counts).fit(cov_type="robust").theta - THETA)
    z = np.mean(gaps, axis=0) / (np.std(gaps, axis=0) / np.sqrt(24))
    assert np.abs(z).max() < 4.5, z


def test_corrections_of_small_cells():
    gaps, draws = {"none": [], "half": [], "jackknife": []}, 14
    for seed in range(draws):
        model, counts = drawn_cells(seed, 60)
        for c, own in gaps.items():
            fit = dc.ECCP(model, counts, correction=c, weights="none").fit(
                cov_type="robust", seed=seed
            )
            own.append(fit.theta - THETA)
    size = {c: np.mean(g, axis=0) / (np.std(g, axis=0) / np.sqrt(draws)) for c, g in gaps.items()}
    assert np.abs(size["half"]).max() < 4 and np.abs(size["jackknife"]).max() < 4, size
    assert np.abs(size["none"]).max() > np.abs(size["half"]).max(), size
    assert any("jackknife" in note for note in fit.notes)
    again = [dc.ECCP(model, counts, correction="jackknife").fit(seed=s).theta for s in (1, 1, 2)]
    np.testing.assert_array_equal(again[0], again[1])
    assert np.abs(again[0] - again[2]).max() > 0


def test_the_jackknife_keeps_its_cells():
    model, counts = drawn_cells(0, 60)
    halves = dc.ECCP(model, counts, correction="jackknife", minimum=40)._halves(1)
    whole = dc.ECCP(model, counts, minimum=40).regression()
    assert all(len(h.cells) == len(whole.cells) for h in halves)


def test_bootstrap_by_region(panel, fit):
    own = dc.ECCP(panel[0], panel[1]).fit(cov_type="bootstrap", draws=40, seed=2)
    assert own.cov_config["failed"] == 0 and own.cov_config["by"] == "region"
    assert (own.std_errors / fit.std_errors).between(0.4, 2.5).all()


# ---------------------------------------------------------------- effects, instruments, GMM


@pytest.mark.parametrize("effects", [("region",), ("region", "period"), ("state", "period")])
@pytest.mark.parametrize("cov_type", ["unadjusted", "clustered"])
def test_fixed_effects_are_dummies(panel, effects, cov_type):
    model, own, _ = panel
    estimator = dc.ECCP(model, own, effects=effects)
    found = estimator.regression()
    names = [n for n in NAMES if n != "const"]
    if effects[0] == "state":
        names = []  # the state holds w as well
    if not names:
        with pytest.raises(dc.IdentificationError, match="do not vary"):
            estimator.fit()
        return
    smaller = model.with_parts(
        utility=dc.Utility.from_array(model.utility.x[:, :, [NAMES.index(n) for n in names]], names)
    )
    fit = dc.ECCP(smaller, own, effects=effects).fit(cov_type=cov_type)
    keys = [found.cells[e.split(":")].astype(str).agg("|".join, axis=1) for e in effects]
    dummies = [pd.get_dummies(k, drop_first=i > 0, dtype=float) for i, k in enumerate(keys)]
    dummies = pd.concat([d.add_prefix(f"d{i}") for i, d in enumerate(dummies)], axis=1)
    exog = pd.concat([found.exog[names], dummies], axis=1)
    config = {"cov_type": cov_type}
    if cov_type == "clustered":
        config["clusters"] = pd.factorize(found.cells["region"])[0]
    want = IV2SLS(found.dependent, exog, None, None, weights=found.weights).fit(**config)
    np.testing.assert_allclose(fit.params, want.params[names], atol=1e-8)
    np.testing.assert_allclose(
        fit.std_errors, want.std_errors[names], rtol=1e-6 if cov_type == "clustered" else 0.02
    )
    with pytest.raises(dc.IdentificationError, match=r"const.* do not vary|collinear"):
        estimator.fit()


def test_effects_of_region_and_own_state_leave_the_market(panel):
    model = panel[0].with_parts(utility=dc.Utility.from_array(panel[0].utility.x[:, :, [2]], ["w"]))
    fit = dc.ECCP(model, panel[1], effects=("region:state:choice",)).fit()
    assert abs(fit.params["w"] - 0.5) < 5 * fit.std_errors["w"]


POINTS = 5


def durable(periods, seed, noise):
    """A state of eight levels with renewal and an AR(1) market that members foresee.

    Returns the model that leaves the market out of the states, exact counts, the market table."""
    up = np.array([[0.9, 0.1], [0.1, 0.9]])
    law = up
    for size in range(3, POINTS + 1):
        wide = np.zeros((size, size))
        wide[:-1, :-1] += 0.9 * law
        wide[:-1, 1:] += 0.1 * law
        wide[1:, :-1] += 0.1 * law
        wide[1:, 1:] += 0.9 * law
        wide[1:-1] /= 2
        law = wide / wide.sum(axis=1, keepdims=True)
    points = np.linspace(-1.5, 1.5, POINTS)
    states = dc.StateSpace(k=range(8))
    x = np.zeros((8, 2, 3))
    x[:, 1, 0], x[:, 1, 1], x[:, 1, 2] = 1.0, np.arange(8), 1.0
    move = dc.Transitions.factored(
        states, CHOICES, {"k": dc.Increment(1, "renew", probabilities=(0.25, 0.75))}
    )
    utility = dc.Utility.from_array(x, ["const", "slope", "w"])
    model = dc.DDC(states=states, choices=CHOICES, utility=utility, transitions=move, beta=0.95)
    F = move.dense_array()
    big = np.repeat(x[None], POINTS, axis=0)
    big[:, :, 1, 2] = points[:, None]
    joint = np.einsum("wv,sjt->wsjvt", law, F).reshape(POINTS * 8, 2, POINTS * 8)
    S = POINTS * 8
    spec = {
        "x": big.reshape(S, 2, 3),
        "offset": np.zeros((S, 2)),
        "F": joint,
        "beta": 0.95,
        "available": np.ones((S, 2), bool),
        "attention": np.ones(S),
        "default": np.zeros(S, int),
    }
    P = oracles.solve_newton(spec, np.array([1.0, -0.25, 0.6]))[3].reshape(POINTS, 8, 2)
    rng = np.random.default_rng(seed)
    path = np.empty(periods, dtype=int)
    w = 2
    for t in range(periods):
        path[t] = w
        w = rng.choice(POINTS, p=law[w])
    t, s, j = (x.ravel() for x in np.indices((periods, 8, 2)))
    n = 1e9 * P[path].ravel()
    rows = {"r": 0 * t, "t": t, "s": s, "j": j, "following": 0 * t - 1, "n": n}
    market = pd.DataFrame({"region": "one", "period": np.arange(periods), "w": points[path]})
    market["noisy"] = market["w"] + noise * rng.standard_normal(periods)
    market["second"] = market["w"] + noise * rng.standard_normal(periods)
    return model, builders.region_counts(model, rows, ["one"]), market


def test_measurement_error_attenuates_and_instruments_mend_it():
    model, counts, market = durable(1500, 0, 0.6)

    def slope(column, instruments=None, **options):
        table = market.drop(columns="w").assign(w=market[column])
        estimator = dc.ECCP(model, counts, market=table, instruments=instruments, **options)
        return estimator.fit(cluster="period")

    ols = slope("w")
    np.testing.assert_allclose(ols.params, [1.0, -0.25, 0.6], atol=0.04)
    assert np.isnan(ols.loglik) and "first_stage" not in ols.tests
    attenuated = slope("noisy")
    assert attenuated.params["w"] < 0.5
    for instrument in ("lag", "second", ["lag", "second"]):
        iv = slope("noisy", {"w": instrument})
        gap = (iv.params - [1.0, -0.25, 0.6]) / iv.std_errors
        assert np.abs(gap).max() < 4 and 0.5 < iv.params["w"] < 0.7, instrument
        assert iv.tests["weakest F"] > 10 and "w" in iv.tests["first_stage"]
    lagged = slope("noisy", {"w": "lag"})
    assert lagged.tests["nobs"] == ols.tests["nobs"] - 8
    assert any("instrument not observed yet" in note for note in lagged.notes)
    gmm = slope("noisy", {"w": ["lag", "second"]}, method="gmm")
    assert gmm.tests["j_stat"]["df"] == 1 and 1e-4 < gmm.tests["j_stat"]["pval"] <= 1
    assert np.abs((gmm.params["w"] - 0.6) / gmm.std_errors["w"]) < 4
    bad = market.assign(shifted=market["w"] + 2 * market["noisy"])  # holds the error itself
    table = bad.drop(columns="w").assign(w=bad["noisy"])
    wrong = dc.ECCP(
        model, counts, market=table, instruments={"w": ["second", "shifted"]}, method="gmm"
    ).fit(cluster="period")
    assert wrong.tests["j_stat"]["pval"] < 1e-3


def test_the_iv_fit_is_linearmodels():
    model, counts, market = durable(300, 1, 0.6)
    table = market.drop(columns="w").rename(columns={"noisy": "w"})
    estimator = dc.ECCP(model, counts, market=table, instruments={"w": "second"})
    fit, found = estimator.fit(cluster="period"), estimator.regression()
    lookup = table.set_index("period")
    at = found.cells["period"]
    np.testing.assert_allclose(found.exog["w"], lookup.loc[at, "w"])
    np.testing.assert_allclose(found.instruments["z2: w"], lookup.loc[at, "second"])
    want = IV2SLS(
        found.dependent,
        found.exog[["const", "slope"]],
        found.exog[["w"]],
        found.instruments[["z2: w"]],
        weights=found.weights,
    ).fit(cov_type="clustered", clusters=at.to_numpy())
    np.testing.assert_allclose(fit.params, want.params[fit.params.index], rtol=1e-9)
    np.testing.assert_allclose(fit.std_errors, want.std_errors[fit.params.index], rtol=1e-8)
    f = want.first_stage.diagnostics["f.stat"].iloc[0]
    assert fit.tests["first_stage"]["w"]["f.stat"] == pytest.approx(f)
    assert fit.influence.shape[0] == fit.cov_config["clusters"] == 299


# ---------------------------------------------------------------- refusals


def test_no_regions_and_no_dependence(panel):
    model, own, frame = panel
    with pytest.raises(dc.SpecificationError, match="region="):
        dc.ECCP(model, as_panel(frame, region=None))
    spec = oracles.random_model(2, 15, 2, 2, 0.9, sparse=True, masks=False, attention=False)
    other = dc.DDC(
        states=STATES,
        choices=CHOICES,
        utility=dc.Utility.from_array(spec["x"], ["a", "b"]),
        transitions=dc.Transitions.dense(np.full((15, 2, 15), 1 / 15) * 0.5 + 0.5 * spec["F"]),
        beta=0.9,
    )
    found = dc.finite_dependence(other, 1)
    if not (found.periods >= 0).any():
        with pytest.raises(dc.SpecificationError, match="no pair of choices"):
            dc.ECCP(other, own)
    with pytest.raises(dc.SpecificationError, match="infinite horizons"):
        dc.ECCP(model.with_parts(horizon=8), own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "haf"}, "Did you mean 'half'"),
        ({"weights": "member"}, "Did you mean 'members'"),
        ({"method": "iv"}, "method='iv'"),
        ({"effects": ("regoin",)}, "Did you mean 'region'"),
        ({"instruments": {"ww": "lag"}}, "parameter 'ww' is unknown"),
        ({"instruments": {"w": "lga"}}, "no market variable 'lga'"),
        ({"instruments": {"w": "lag"}}, "'lag' is the past of a market variable"),
        ({"market": pd.DataFrame({"region": ["r00"], "w": [1.0]})}, "no column 'period'"),
    ],
)
def test_refusals(panel, options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.ECCP(panel[0], panel[1], **options)


def full_market(value=1.0):
    regions = [f"r{i:02d}" for i in range(12)]
    table = pd.MultiIndex.from_product([regions, range(8)], names=["region", "period"])
    return table.to_frame(index=False).assign(w=value)


@pytest.mark.parametrize("lag", ["lag9"])
def test_lags_longer_than_the_panel_are_refused(panel, lag):
    estimator = dc.ECCP(panel[0], panel[1], market=full_market(), instruments={"w": lag})
    with pytest.raises(dc.DataError, match="no row has all its instruments"):
        estimator.regression()


@pytest.mark.parametrize("lag", ["lagged", "lag0", "lag-1"])
def test_lags_that_are_none_are_refused(panel, lag):
    with pytest.raises(dc.SpecificationError, match="lag"):
        dc.ECCP(panel[0], panel[1], market=full_market(), instruments={"w": lag})


def test_missing_market_rows(panel):
    table = full_market()
    with pytest.raises(dc.DataError, match=r"'w' is missing for 2 region-periods .* 'r01' at 3"):
        dc.ECCP(panel[0], panel[1], market=table.drop(index=[11, 12]))


def test_doubled_market_rows(panel):
    table = full_market()
    doubled = pd.concat([table, table.iloc[[5]].assign(w=9.0)])
    with pytest.raises(dc.DataError, match="more than once"):
        dc.ECCP(panel[0], panel[1], market=doubled)


def test_a_misspelt_market_variable_is_refused(panel):
    with pytest.raises(dc.SpecificationError, match="'ww'"):
        dc.ECCP(panel[0], panel[1], market=full_market().rename(columns={"w": "ww"}))


def test_periods_as_whole_floats(panel):
    table = full_market().assign(w=lambda d: d["period"] % 3 + 1.0)
    base = dc.ECCP(panel[0], panel[1], market=table).fit()
    floats = dc.ECCP(panel[0], panel[1], market=table.astype({"period": float})).fit()
    np.testing.assert_array_equal(base.params, floats.params)


def test_a_bootstrap_by_period_is_refused_or_done(panel):
    with pytest.raises(dc.SpecificationError, match="period"):
        dc.ECCP(panel[0], panel[1]).fit(cov_type="bootstrap", cluster="period", draws=20)


@pytest.mark.parametrize(
    "text",
    [
        True,
        pytest.param(False),
    ],
)
def test_periods_as_months(panel, text):
    model, _, frame = panel
    dated = frame.assign(t=202311 + frame["t"] + 88 * (frame["t"] > 1))
    own = as_panel(dated, freq="month")
    months = dict(enumerate(sorted(dated["t"].unique())))
    rng = np.random.default_rng(0)
    table = full_market().assign(w=lambda d: rng.normal(size=len(d)))
    base = dc.ECCP(model, panel[1], market=table).fit()
    named = table.assign(period=table["period"].map(months))
    if text:
        label = named["period"].astype(str)
        named["period"] = label.str[:4] + "-" + label.str[4:]
    fit = dc.ECCP(model, own, market=named).fit()
    np.testing.assert_allclose(fit.params, base.params, rtol=1e-10)


def test_one_region_is_clustered_by_period(panel):
    model, _, frame = panel
    own = as_panel(frame.assign(r="all"))
    estimator = dc.ECCP(model, own)
    assert estimator.regression().dropped["mixed market"] > 0
    with pytest.raises(dc.SpecificationError, match="cluster='period'"):
        estimator.fit()
    fit = estimator.fit(cluster="period")
    assert fit.cov_config["by"] == "period" and (fit.std_errors > 0).all()


def test_refusals_of_fit(panel):
    estimator = dc.ECCP(*panel[:2])
    for options, message in (
        ({"cov_type": "opg"}, "no 'opg'"),
        ({"cluster": "member"}, "'region' or 'period'"),
        ({"cov_type": "robst"}, "Did you mean"),
    ):
        with pytest.raises(dc.SpecificationError, match=message):
            estimator.fit(**options)
    with pytest.raises(dc.DataError, match="lower minimum="):
        dc.ECCP(*panel[:2], minimum=1e6).fit()
    x = panel[0].utility.x
    for extra, message in ((x[:, :, [1]] * 2, "collinear"), (0 * x[:, :, [1]], "do not vary")):
        utility = dc.Utility.from_array(np.concatenate([x, extra], axis=2), [*NAMES, "again"])
        with pytest.raises(dc.IdentificationError, match=message):
            dc.ECCP(panel[0].with_parts(utility=utility), panel[1]).fit()
    pooled = replace(panel[1].counts, regions=None)
    with pytest.raises(dc.SpecificationError, match="region"):
        dc.ECCP(panel[0], pooled)
