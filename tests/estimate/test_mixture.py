"""Mixtures of unobserved types against brute force, and against fits without types."""

import warnings
from dataclasses import replace

import builders
import numpy as np
import oracles
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.estimate.ccpem import share_features
from dynchoice.estimate.first_stage import first_stage
from dynchoice.estimate.types.histories import histories
from dynchoice.estimate.types.mixture import MixtureLikelihood, TypeLayout

QUIET = dc.ConvergenceWarning


# ---------------------------------------------------------------- likelihood by brute force


def by_name(names, theta, model_names, types):
    """Parameters of each type (Q, K), read off the labels."""
    value = dict(zip(names, theta, strict=True))
    return [
        np.array([value[f"{k}[{q}]"] if f"{k}[{q}]" in value else value[k] for k in model_names])
        for q in range(types)
    ]


def share_coefficients(names, theta, share_names, types):
    value = dict(zip(names, theta, strict=True))
    return np.array(
        [
            [value[f"share[{q}]" if g == "1" else f"share[{q}]:{g}"] for g in share_names]
            for q in range(1, types)
        ]
    ).reshape(types - 1, len(share_names))


class Case:
    """A random model, a random panel, a random vector, and the oracle at it."""

    def __init__(self, seed, types, varying, shares, horizon=None, weighted=True):
        spec = oracles.random_model(seed, 6, 3, 3, 0.85)
        rng = np.random.default_rng(seed)
        near = [spec["params"] + 0.4 * rng.normal(size=3) for _ in range(types)]
        rows = builders.typed_rows(spec, near, [15] * types, horizon or 5, seed)
        if horizon is None:  # members of unequal length, to have gaps and late entries
            keep = rng.random(len(rows.member)) < 0.8
            keep |= np.r_[True, rows.member[1:] != rows.member[:-1]]
            fields = ("member", "period", "state", "choice", "following")
            rows = replace(rows, **{f: getattr(rows, f)[keep] for f in fields})
        self.model = builders.from_oracle(spec).with_parts(horizon=horizon)
        counts = builders.typed_counts(self.model, rows, horizon is not None)
        self.weights = rng.integers(1, 5, 15 * types).astype(float) * (1 if weighted else 0)
        self.weights += not weighted
        members = replace(counts.members, weights=self.weights)
        self.data = histories(members, horizon is not None)
        self.phi, share_names = share_features(self.model, shares, self.data)
        self.layout = TypeLayout.of(self.model.names, varying, types, share_names)
        self.likelihood = MixtureLikelihood(self.model, self.data, self.layout, self.phi)
        self.theta = 0.4 * rng.normal(size=len(self.layout.names))
        start = rows.state[np.r_[True, rows.member[1:] != rows.member[:-1]]]
        features = {"constant": start[:, None] ** 0.0, "s": np.c_[start**0.0, start]}[shares]
        where = (rows.state, rows.choice)
        where = where if horizon is None else (rows.period, *where)

        def oracle(theta):
            L = self.layout
            each = by_name(L.names, theta, self.model.names, types)
            logs = oracles.history_logs(
                oracles.type_tables(spec, each, horizon), rows.member, where
            )
            gamma = share_coefficients(L.names, theta, share_names, types)
            return oracles.mixture(logs, oracles.share_logit(features, gamma))

        self.oracle = oracle
        self.total = lambda theta: self.weights @ oracle(theta)[0]


CASES = {
    "two types": lambda: Case(0, 2, None, "constant"),
    "two types, two shared": lambda: Case(1, 2, ["k1"], "s"),
    "three types": lambda: Case(2, 3, ["k2", "k0"], "constant"),
    "three types, shares": lambda: Case(3, 3, None, "s"),
    "one type": lambda: Case(4, 1, None, "constant"),
    "finite horizon": lambda: Case(5, 2, ["k0"], "s", horizon=4),
}


@pytest.mark.parametrize("case", CASES)
def test_likelihood_score_hessian_and_posteriors(case):
    c = CASES[case]()
    at = c.likelihood.evaluate(c.theta)
    each, post = c.oracle(c.theta)
    assert at.loglik == pytest.approx(c.total(c.theta), rel=1e-12)
    np.testing.assert_allclose(at.post[c.data.member], post, atol=1e-10)
    assert c.data.total == c.weights.sum()
    want = oracles.complex_gradient(c.total, c.theta)
    np.testing.assert_allclose(at.score, want, rtol=1e-8, atol=1e-8)
    one = oracles.complex_gradient(lambda p: c.oracle(p)[0][3], c.theta)
    np.testing.assert_allclose(at.by_history[c.data.member][3], one, rtol=1e-8, atol=1e-9)
    hessian = oracles.complex_hessian(c.total, c.theta)
    np.testing.assert_allclose(c.likelihood.hessian(at), hessian, rtol=1e-6, atol=1e-6)


def test_names_and_places():
    layout = TypeLayout.of(["a", "b", "c"], ["c", "a"], 2, ["1", "s"], ("beta",))
    want = ["a[0]", "a[1]", "b", "c[0]", "c[1]", "share[1]", "share[1]:s", "beta"]
    assert list(layout.names) == want and layout.varying == ("a", "c")
    theta = np.arange(8.0)
    np.testing.assert_array_equal(theta[layout.places(1)], [1, 2, 4])
    turned = layout.relabelled(theta, np.array([1, 0]))
    np.testing.assert_array_equal(turned, [1, 0, 2, 4, 3, -5, -6, 7])
    np.testing.assert_array_equal(layout.relabelled(turned, np.array([1, 0])), theta)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_relabelling_three_types_leaves_the_likelihood(order):
    c = CASES["three types, shares"]()
    at = c.likelihood.evaluate(c.theta)
    turned = c.likelihood.evaluate(c.layout.relabelled(c.theta, np.array(order)))
    assert turned.loglik == pytest.approx(at.loglik, rel=1e-13)
    np.testing.assert_allclose(turned.post, at.post[:, order], atol=1e-12)


def test_derivative_by_the_laws_of_motion(membership):
    frame = membership.frame[membership.frame["member"] < 150]
    panel = builders.membership_panel(membership, frame)
    first = first_stage(membership.unknown, panel.counts, panel)
    data = histories(panel.counts.members, False)
    layout = TypeLayout.of(first.model.names, ["member"], 2, ("1",))
    theta = np.array([-0.8, 0.1, 0.5, 0.4, 0.35, 1.1, 0.3])
    phi = np.ones((len(data.weight), 1))

    def likelihood(model):
        return MixtureLikelihood(model, data, layout, phi)

    here = likelihood(first.model)
    C = here.transition_derivative(here.evaluate(theta))
    assert set(C) == {e.name for e in first.estimates} and len(C) == 2
    rng = np.random.default_rng(2)
    for e in first.estimates:
        change = rng.normal(size=e.probabilities.shape) * 0.1 * e.probabilities
        change -= e.probabilities * change.sum(axis=1, keepdims=True)

        def score(h, e=e, change=change):
            bound = tuple(
                replace(law, table=law.fill(e.probabilities + h * change))
                if law.name == e.name
                else law
                for law in first.model.transitions.bound
            )
            transitions = first.model.transitions.with_bound(bound)
            return likelihood(first.model.with_transitions(transitions)).evaluate(theta).score

        slope = (score(1e-3) - score(-1e-3)) / 2e-3
        got = np.einsum("krm,rm->k", C[e.name], change)
        np.testing.assert_allclose(got, slope, rtol=1e-4, atol=2e-4)


# ---------------------------------------------------------------- histories


def test_identical_histories_are_one_row():
    spec = oracles.random_model(3, 3, 2, 1, 0.9, masks=False, attention=False)
    rows = builders.typed_rows(spec, [[-1.0], [1.0]], [200, 200], 3, 1)
    model = builders.from_oracle(spec)
    data = histories(builders.typed_counts(model, rows).members, False)
    key = pd.DataFrame({"m": rows.member, "c": rows.state * 2 + rows.choice})
    cells = key.groupby("m")["c"].apply(lambda c: (*sorted(c), c.iloc[0] // 2))
    assert len(data.weight) == cells.nunique() < 200 and data.total == 400
    codes = pd.factorize(cells)[0]
    assert len(set(zip(codes, data.member, strict=True))) == cells.nunique()
    start = rows.state[rows.period == 0]
    np.testing.assert_array_equal(data.first[data.member], start)
    n = data.counts(np.ones(len(data.weight)), (3, 2))
    np.testing.assert_array_equal(n, oracles.counts(rows.state, rows.choice, 3, 2))
    # keeping every history apart changes nothing
    apart = replace(
        data,
        H=data.H[data.member],
        weight=np.ones(400),
        first=data.first[data.member],
        member=np.arange(400),
    )
    layout, theta = TypeLayout.of(model.names, None, 2, ("1",)), np.array([-0.9, 1.2, 0.3])
    results = []
    for d in (data, apart):
        part = MixtureLikelihood(model, d, layout, np.ones((len(d.weight), 1)))
        at = part.evaluate(theta)
        results.append((at.loglik, at.score, at.outer, part.hessian(at), at.post[d.member]))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-9)


def gappy(seed=0, members=60):
    """A two-type panel as a table with gaps, late entry, weights, regions and no order."""
    spec = oracles.random_model(seed, 5, 3, 2, 0.8)
    rows = builders.typed_rows(spec, [[-1.0, 0.5], [1.0, 0.5]], [members // 2] * 2, 9, seed)
    rng = np.random.default_rng(seed)
    frame = rows.frame()
    frame = frame[rng.random(len(frame)) < 0.7]
    frame["w"] = 1.0 + frame["id"] % 3
    frame["place"] = np.where(frame["id"] % 4 == 0, "north", "south")
    return spec, frame.sample(frac=1, random_state=1).reset_index(drop=True)


def gappy_panel(spec, frame, **options):
    model = builders.from_oracle(spec)
    return dc.Panel(
        frame,
        member="id",
        time="t",
        choice="choice",
        states=model.states,
        choices=model.choices,
        **options,
    )


def test_first_states_and_buckets_of_members_who_come_late_and_leave_gaps():
    spec, frame = gappy()
    panel = gappy_panel(spec, frame, weights="w", region="place", buckets=7)
    members = panel.counts.members
    opening = frame.sort_values(["id", "t"]).groupby("id").first()
    assert (frame.groupby("id")["t"].min() > 0).any() and panel.report["gaps"] > 5
    np.testing.assert_array_equal(members.first, opening["s"])
    np.testing.assert_array_equal(members.bucket, oracles.bucket_of(opening.index, 7))
    np.testing.assert_array_equal(members.weights, opening["w"])
    np.testing.assert_array_equal(members.region, (opening["place"] == "south").astype(int))
    by_period = panel.member_cells(by_period=True)
    np.testing.assert_array_equal(by_period.first, members.first)
    n = histories(by_period, True).counts(
        np.ones(len(histories(by_period, True).weight)), (9, 5, 3)
    )
    want = frame.groupby(["t", "s", "choice"])["w"].sum()
    np.testing.assert_allclose(n[n > 0], want.to_numpy())


def test_the_first_state_of_a_segment_is_the_first_seen_in_it():
    frame = pd.DataFrame(
        [(1, 0, 4, "a"), (1, 1, 2, "b"), (1, 2, 3, "b"), (2, 0, 1, "a"), (2, 1, 0, "a")],
        columns=["id", "t", "s", "seg"],
    ).assign(choice="c0")
    spec = oracles.random_model(0, 5, 3, 2, 0.8, masks=False)
    counts = gappy_panel(spec, frame, segment="seg").counts
    np.testing.assert_array_equal(counts.segment("a").members.first, [4, 1])
    np.testing.assert_array_equal(counts.segment("b").members.first, [2])


def test_weights_are_copies_and_order_does_not_matter():
    spec, frame = gappy(1, 80)
    model = builders.from_oracle(spec)
    copies = []
    for _, own in frame.groupby("id"):
        copies += [own.assign(id=own["id"] * 10 + i) for i in range(int(own["w"].iloc[0]))]
    shuffled = frame.sample(frac=1, random_state=9).assign(id=lambda d: 1000 - d["id"])
    options = {"types": 2, "varying": ["k0"], "shares": "s"}
    fits = [
        dc.CCPEM(model, gappy_panel(spec, f, **o), **options).fit(starts=1, cov_type=c)
        for f, o, c in (
            (frame, {"weights": "w"}, "unadjusted"),
            (pd.concat(copies), {}, "unadjusted"),
            (shuffled, {"weights": "w"}, "unadjusted"),
        )
    ]
    assert all(f.converged for f in fits)
    assert fits[0].nmembers == fits[1].nmembers == frame.groupby("id")["w"].first().sum()
    for other in fits[1:]:
        np.testing.assert_allclose(other.params, fits[0].params, atol=1e-6)
        np.testing.assert_allclose(other.cov, fits[0].cov, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(other.type_shares, fits[0].type_shares, atol=1e-7)
    np.testing.assert_allclose(fits[2].posteriors[::-1], fits[0].posteriors, atol=1e-6)


# ---------------------------------------------------------------- fits


SPEC = oracles.random_model(7, 8, 3, 2, 0.9)
THETA = np.array([[-1.2, 0.6], [1.0, 0.6]])


@pytest.fixture(scope="module")
def two():
    """A panel of two types that differ in k0: model, counts, rows."""
    rows = builders.typed_rows(SPEC, THETA, [250, 150], 8, 3)
    model = builders.from_oracle(SPEC)
    return model, builders.typed_counts(model, rows), rows


@pytest.fixture(scope="module")
def full(two):
    return dc.CCPEM(two[0], two[1], types=2, varying=["k0"]).fit()


def test_the_fit_is_the_maximum_of_the_brute_force_likelihood(two, full):
    rows = two[2]

    def loglik(theta):
        each = [theta[[0, 2]], theta[[1, 2]]]
        logs = oracles.history_logs(
            oracles.type_tables(SPEC, each), rows.member, (rows.state, rows.choice)
        )
        shares = oracles.share_logit(np.ones((400, 1)), theta[3:, None])
        return oracles.mixture(logs, shares)

    theta = full.params.to_numpy()
    assert full.converged and full.names == ("k0[0]", "k0[1]", "k1", "share[1]")
    assert full.loglik == pytest.approx(loglik(theta)[0].sum(), rel=1e-12)
    gradient = oracles.complex_gradient(lambda p: loglik(p)[0].sum(), theta)
    step = np.abs(np.linalg.solve(full.hessian, gradient)) / full.std_errors
    assert step.max() < 1e-5
    np.testing.assert_allclose(full.posteriors, loglik(theta)[1], atol=1e-9)
    np.testing.assert_allclose(full.type_shares, full.posteriors.mean(axis=0))
    # the logit of the shares is the mean posterior
    odds = np.log(full.type_shares[1] / full.type_shares[0])
    assert odds == pytest.approx(full.params["share[1]"], abs=1e-4)
    assert np.abs((theta[:3] - [-1.2, 1.0, 0.6]) / full.std_errors.to_numpy()[:3]).max() < 4
    guess = full.posteriors.argmax(axis=1)
    assert (guess == rows.kind).mean() > 0.9 and 0.6 < full.entropy < 1
    # clustered by member: the sandwich of the members' own scores
    H = oracles.complex_hessian(lambda p: loglik(p)[0].sum(), theta)
    steps = 1j * oracles.CS * np.eye(4)
    own = np.stack([loglik(theta + h)[0].imag / oracles.CS for h in steps], axis=1)
    bread = np.linalg.inv(-H)
    np.testing.assert_allclose(full.cov, bread @ own.T @ own @ bread, rtol=1e-5)
    opg = dc.CCPEM(two[0], two[1], types=2, varying=["k0"]).fit(cov_type="opg", start=theta)
    np.testing.assert_allclose(opg.cov, np.linalg.inv(own.T @ own), rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"varying": ["k0"]}, {"varying": None, "shares": "s"}, {"varying": ["k0", "k1"]}]
)
def test_ccps_inside_reach_the_maximum_too(two, options):
    fits = [dc.CCPEM(two[0], two[1], inner=i, **options).fit(starts=2) for i in ("NFXP", "CCP")]
    assert all(f.converged for f in fits)
    gap = np.abs(fits[0].params - fits[1].params) / fits[0].std_errors
    assert gap.max() < (1e-4 if options["varying"] else 1e-3)
    assert fits[1].loglik == pytest.approx(fits[0].loglik, rel=1e-9)
    np.testing.assert_allclose(fits[1].cov, fits[0].cov, rtol=1e-3, atol=1e-7)


@pytest.mark.filterwarnings("ignore:CCPEM. standard errors are BHHH's")
def test_finite_dependence_inside_is_near(two, full):
    spec = oracles.random_model(5, 4, 3, 2, 0.9, attention=False)
    rows = builders.typed_rows(spec, [[-1.5, 0.5], [1.5, 0.5]], [600, 600], 10, 4)
    model = builders.from_oracle(spec)
    counts = builders.typed_counts(model, rows)
    exact = dc.CCPEM(model, counts, varying=["k0"]).fit(starts=1)
    dependent = dc.CCPEM(
        model, counts, varying=["k0"], inner="CCP", valuation="finite-dependence"
    ).fit(starts=1)
    assert dependent.converged and np.isnan(dependent.loglik)
    assert dependent.pseudo_loglik <= exact.loglik + 30
    assert (np.abs(dependent.params - exact.params) / exact.std_errors).max() < 4
    assert any("bootstrap" in note for note in dependent.notes)
    assert "NOT included" in str(dependent.summary())
    again = dc.CCPEM(model, counts, varying=["k0"], inner="CCP", valuation="finite-dependence").fit(
        start=dependent.restart()
    )
    np.testing.assert_allclose(again.params, dependent.params, atol=1e-3)


@pytest.mark.parametrize("cov_type", ["clustered", "unadjusted", "opg"])
def test_one_type_is_nfxp(membership, fitted, cov_type):
    frame = membership.frame[membership.frame["member"] < 500].copy()
    frame["w"] = 1.0 + frame["member"] % 3
    panel = builders.membership_panel(membership, frame, weights="w")
    nfxp = dc.NFXP(membership.unknown, panel).fit(cov_type=cov_type)
    one = dc.CCPEM(membership.unknown, panel, types=1).fit(cov_type=cov_type)
    assert one.converged and one.names == nfxp.names and one.entropy == 1
    np.testing.assert_allclose(one.params, nfxp.params, atol=1e-6)
    assert one.loglik == pytest.approx(nfxp.loglik, rel=1e-11)
    assert one.nobs == nfxp.nobs and one.nmembers == nfxp.nmembers
    if cov_type == "opg":  # members' scores there, rows' here
        assert (one.std_errors / nfxp.std_errors).between(0.8, 1.25).all()
        return
    np.testing.assert_allclose(one.cov, nfxp.cov, rtol=1e-5, atol=1e-10)
    if cov_type == "clustered":
        assert one.cov_config["clusters"] == nfxp.cov_config["clusters"]
        np.testing.assert_allclose(one.influence, nfxp.influence, rtol=1e-4, atol=1e-9)
    ccp = dc.CCPEM(membership.unknown, panel, types=1, inner="CCP").fit(cov_type=cov_type)
    np.testing.assert_allclose(ccp.params, nfxp.params, atol=1e-5)


def test_types_with_laws_of_motion_estimated(membership):
    kinds = [membership.theta, membership.theta + [1.5, 0, 0, 0, 0]]
    start = np.flatnonzero(membership.known.states.axis_codes("contract") == 0)
    frames = []
    for q, theta in enumerate(kinds):
        rng = np.random.default_rng(q)
        paths = dc.simulate(
            membership.known,
            params=theta,
            members=400,
            periods=14,
            seed=rng,
            start=rng.choice(start, 400),
        ).frame()
        frames.append(paths.assign(member=paths["member"] + 400 * q))
    panel = builders.membership_panel(membership, pd.concat(frames))
    fit = dc.CCPEM(membership.unknown, panel, varying=["member"]).fit(starts=2)
    truth = np.r_[kinds[0][0], kinds[1][0], membership.theta[1:], 0.0]
    assert fit.converged and (np.abs(fit.params - truth) / fit.std_errors < 4).all()
    assert fit.cov_config["first_stage_label"] == "included"
    known = dc.CCPEM(membership.known, panel, varying=["member"]).fit(start=fit.params)
    assert known.cov_config["first_stage_label"].startswith("none")
    one = dc.NFXP(membership.unknown, panel).fit()
    assert fit.loglik > one.loglik + 20 and fit.bic < one.bic
    forecast = dc.forecast(fit.type(1), [], start=panel, periods=3)
    assert len(forecast.take_up) and np.isfinite(forecast.take_up["share"]).all()
    shown = str(dc.compare({"one": one, "two": fit}))
    assert "member[1]" in shown and "share[1]" in shown
    text = str(fit.summary())
    assert "Types:" in text and "Shares:" in text and "member[0]" in text


def finite_panel():
    T = 5
    spec = oracles.random_model(9, 5, 3, 2, 0.9, attention=False)
    model = builders.from_oracle(spec).with_parts(horizon=T)
    thetas, members, rng = [[-1.2, 0.3], [1.2, 0.3]], 300, np.random.default_rng(0)
    frames = []
    for q, theta in enumerate(thetas):
        P = oracles.solve_finite(spec, np.array(theta), T)[2]
        s = rng.integers(5, size=members)
        for t in range(T):
            c = oracles.draw_rows(rng, P[t][s])
            own = {"id": np.arange(members) + q * members, "t": t + 100, "s": s}
            frames.append(pd.DataFrame({**own, "choice": np.array(["c0", "c1", "c2"])[c]}))
            s = oracles.draw_rows(rng, spec["F"][s, c])
    return model, gappy_panel(spec, pd.concat(frames))


def test_a_finite_horizon():
    model, panel = finite_panel()
    fit = dc.CCPEM(model, panel, varying=["k0"]).fit(starts=2)
    assert fit.converged
    truth = np.array([-1.2, 1.2, 0.3, 0.0])
    assert (np.abs(fit.params - truth) / fit.std_errors < 4).all()
    one = dc.CCPEM(model, panel, types=1).fit()
    nfxp = dc.NFXP(model, panel).fit()
    np.testing.assert_allclose(one.params, nfxp.params, atol=1e-6)
    np.testing.assert_allclose(one.cov, nfxp.cov, rtol=1e-5)
    with pytest.raises(dc.SpecificationError, match="need the Panel"):
        dc.CCPEM(model, panel.counts)
    with pytest.raises(dc.SpecificationError, match="infinite horizons"):
        dc.CCPEM(model, panel, inner="CCP")


@pytest.mark.filterwarnings("ignore::dynchoice.ConvergenceWarning")
def test_bootstrap_at_a_finite_horizon():
    model, panel = finite_panel()
    fit = dc.CCPEM(model, panel, varying=["k0"]).fit(starts=1)
    boot = dc.CCPEM(model, panel, varying=["k0"]).fit(
        starts=1, cov_type="bootstrap", draws=20, seed=1
    )
    assert boot.cov_config["failed"] == 0 and boot.cov_config["draws"] == 20
    assert (boot.std_errors / fit.std_errors).between(0.5, 2).all()


def test_converged_means_a_zero_gradient(two, monkeypatch):
    monkeypatch.setattr("dynchoice.estimate.ccpem.BURN_IN", 2)
    estimator = dc.CCPEM(two[0], two[1], varying=["k0"])
    with pytest.warns(QUIET, match="not converged"):
        fit = estimator.fit(maxiter=1, starts=1, tol=1e-12)
    assert not fit.converged and "NOT CONVERGED" in repr(fit)
    assert "not converged" in str(fit.summary()).lower()
    with pytest.raises(dc.ConvergenceError):
        estimator.fit(maxiter=1, starts=1, tol=1e-12, strict=True)


def test_labels_are_in_order_whatever_the_start(two, full):
    swapped = full.params.copy()
    swapped[["k0[0]", "k0[1]"]] = full.params[["k0[1]", "k0[0]"]].to_numpy()
    swapped["share[1]"] *= -1
    estimator = dc.CCPEM(two[0], two[1], varying=["k0"])
    for start in (swapped, swapped.to_dict(), swapped.to_numpy(), full.posteriors[:, ::-1]):
        fit = estimator.fit(start=start)
        np.testing.assert_allclose(fit.params, full.params, atol=1e-5)
        np.testing.assert_allclose(fit.posteriors, full.posteriors, atol=1e-5)
    assert full.params["k0[0]"] < full.params["k0[1]"]
    for seed in (1, 2):
        fit = estimator.fit(seed=seed)
        np.testing.assert_allclose(fit.params, full.params, atol=1e-5)


@pytest.mark.parametrize("inner", ["NFXP", "CCP"])
def test_too_many_types_are_reported(inner):
    spec = oracles.random_model(7, 6, 2, 1, 0.9, masks=False, attention=False)
    model = builders.from_oracle(spec)
    rows = builders.typed_rows(spec, [[0.5]], [150], 6, 3)
    counts = builders.typed_counts(model, rows)
    one = dc.CCPEM(model, counts, types=1).fit()
    for types in (2, 3) if inner == "NFXP" else (2,):
        estimator = dc.CCPEM(model, counts, types=types, inner=inner)
        with pytest.warns(QUIET, match="types may be too many"):
            fit = estimator.fit(starts=3)
        assert not fit.converged and fit.std_errors.isna().any()
        assert fit.loglik == pytest.approx(one.loglik, abs=1e-3) and fit.bic > one.bic
        with pytest.raises(dc.ConvergenceError, match="too many"):
            estimator.fit(starts=1, strict=True)
    # here chance makes a second type, which the criterion refuses, and no third
    rows = builders.typed_rows(spec, [[0.5]], [150], 6, 4)
    counts = builders.typed_counts(model, rows)
    lucky = dc.CCPEM(model, counts, types=2, inner=inner).fit(starts=3)
    one = dc.CCPEM(model, counts, types=1).fit()
    assert lucky.converged and lucky.bic > one.bic
    with pytest.warns(QUIET, match="types may be too many"):
        assert not dc.CCPEM(model, counts, types=3, inner=inner).fit(starts=3).converged


def test_more_starts_find_a_better_optimum():
    # three groups, two types: the split is not unique
    spec = oracles.random_model(11, 5, 3, 2, 0.8, masks=False, attention=False)
    thetas = [[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]]
    rows = builders.typed_rows(spec, thetas, [120, 120, 120], 8, 2)
    model = builders.from_oracle(spec)
    counts = builders.typed_counts(model, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QUIET)
        fits = [dc.CCPEM(model, counts).fit(starts=1, seed=s) for s in (0,)]
        many = dc.CCPEM(model, counts).fit(starts=8, seed=0)
    trace = many.optimization["starts"]
    logliks = [t["loglik"] for t in trace]
    assert len(trace) == 8 and np.ptp(logliks) > 1
    assert many.loglik >= max(logliks) - 1e-6 and many.loglik >= fits[0].loglik - 1e-6


def test_a_bootstrapped_fit_does_not_ask_for_a_bootstrap(two):
    spec = oracles.random_model(5, 4, 3, 2, 0.9, attention=False)
    rows = builders.typed_rows(spec, [[-1.5, 0.5], [1.5, 0.5]], [150, 150], 8, 4)
    model = builders.from_oracle(spec)
    options = {"varying": ["k0"], "inner": "CCP", "valuation": "finite-dependence"}
    fit = dc.CCPEM(model, builders.typed_counts(model, rows), **options).fit(
        cov_type="bootstrap", draws=20, starts=1
    )
    assert fit.cov_config["failed"] == 0 and (fit.std_errors > 0).all()
    assert not any("bootstrap" in note for note in fit.notes)


def test_bootstrap(two, full):
    options = {"cov_type": "bootstrap", "draws": 40, "starts": 1, "seed": 3}
    fit = dc.CCPEM(two[0], two[1], varying=["k0"]).fit(**options)
    assert fit.cov_config["failed"] == 0 and fit.bootstrap.shape == (40, 4)
    assert (fit.std_errors / full.std_errors).between(0.6, 1.6).all()
    np.testing.assert_allclose(fit.params, full.params, atol=1e-5)
    again = dc.CCPEM(two[0], two[1], varying=["k0"]).fit(**options)
    np.testing.assert_array_equal(fit.bootstrap, again.bootstrap)


def test_a_type_of_a_bootstrapped_fit_has_its_covariance(two):
    fit = dc.CCPEM(two[0], two[1], varying=["k0"]).fit(
        cov_type="bootstrap", draws=20, starts=1, seed=3
    )
    assert fit.type(0).cov_type == "bootstrap"
    where = ["k0[0]", "k1"]
    np.testing.assert_allclose(fit.type(0).cov, fit.cov.loc[where, where].to_numpy())


def test_converged_ccps_have_a_zero_gradient_where_em_is_slow():
    rows = builders.typed_rows(SPEC, [[-0.45, 0.6], [0.45, 0.6]], [400, 400], 4, 3)
    model = builders.from_oracle(SPEC)
    counts = builders.typed_counts(model, rows)
    fits = [dc.CCPEM(model, counts, inner=i, varying=["k0"]).fit(starts=2) for i in ("NFXP", "CCP")]
    assert all(f.converged for f in fits)
    assert (np.abs(fits[0].params - fits[1].params) / fits[0].std_errors).max() < 1e-4


def test_one_type_of_the_fit(two, full, tmp_path):
    model, counts, rows = two
    own = full.type(1)
    np.testing.assert_allclose(own.params, full.params[["k0[1]", "k1"]].to_numpy())
    np.testing.assert_allclose(own.cov, full.cov.loc[["k0[1]", "k1"], ["k0[1]", "k1"]].to_numpy())
    P = oracles.solve_newton(SPEC, own.theta)[3]
    np.testing.assert_allclose(own.ccp, P, atol=1e-9)
    total = sum(full.type(q).counts for q in range(2))
    np.testing.assert_allclose(total, oracles.counts(rows.state, rows.choice, 8, 3), atol=1e-8)
    weight = full.posteriors[rows.member, 1]
    want = np.zeros((8, 3))
    np.add.at(want, (rows.state, rows.choice), weight)
    np.testing.assert_allclose(own.counts, want, atol=1e-8)
    for wrong in (2, -1, True, 0.5):
        with pytest.raises(dc.SpecificationError, match="types are 0 to 1"):
            full.type(wrong)
    loaded = dc.load(full.save(tmp_path / "fit"))
    assert repr(loaded) == repr(full) and str(loaded.summary()) == str(full.summary())
    np.testing.assert_array_equal(loaded.posteriors, full.posteriors)
    np.testing.assert_array_equal(loaded.type(1).counts, own.counts)
    np.testing.assert_array_equal(loaded.influence, full.influence)
    assert loaded.optimization["starts"][1]["loglik"] == full.optimization["starts"][1]["loglik"]
    forecast = dc.forecast(loaded.type(0), [], start=np.full(8, 1 / 8), periods=2)
    mu, shares = oracles.push_forward(
        SPEC, oracles.solve_newton(SPEC, full.type(0).theta)[3], None, np.full(8, 1 / 8), 2
    )
    got = forecast.take_up.set_index(["period", "choice"])["share"].unstack()
    np.testing.assert_allclose(got[["c0", "c1", "c2"]], shares, atol=1e-8)


# ---------------------------------------------------------------- Monte Carlo


def test_standard_errors_match_the_spread_of_estimates():
    spec = oracles.random_model(21, 4, 2, 2, 0.9, masks=False, attention=False)
    thetas = np.array([[-1.0, 0.6], [1.3, 0.6]])
    model = builders.from_oracle(spec)
    truth = np.array([-1.0, 1.3, 0.6, 0.0])
    estimates, errors, inside = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        members = rng.multinomial(300, [0.5, 0.5])
        rows = builders.typed_rows(spec, thetas, members, 10, seed)
        fit = dc.CCPEM(model, builders.typed_counts(model, rows), varying=["k0"]).fit(starts=1)
        assert fit.converged, fit.message
        estimates.append(fit.params.to_numpy())
        errors.append(fit.std_errors.to_numpy())
        interval = fit.conf_int()
        inside.append((interval["lower"] < truth) & (truth < interval["upper"]))
    spread = np.std(estimates, axis=0, ddof=1)
    ratio = np.mean(errors, axis=0) / spread
    assert (ratio > 0.8).all() and (ratio < 1.2).all(), ratio
    coverage = np.mean(inside, axis=0)
    assert (coverage > 0.87).all(), coverage
    z = (np.mean(estimates, axis=0) - truth) / (spread / np.sqrt(60))
    assert np.abs(z).max() < 4.5, z


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": 0}, "types=0"),
        ({"types": 1.5}, "types=1.5"),
        ({"types": True}, "types=True"),
        ({"varying": ["k9"]}, "parameter 'k9' is unknown"),
        ({"varying": "k0"}, "pass a list"),
        pytest.param({"varying": 3}, "pass a list"),
        ({"varying": []}, "varying is empty"),
        ({"inner": "NXFP"}, "Did you mean 'NFXP'"),
        ({"valuation": "finite-dependence"}, "needs inner='CCP'"),
        ({"valuation": "simulation", "inner": "CCP"}, "'exact' or 'finite-dependence'"),
        ({"beta": "estimate"}, "only 'estimate', with inner='CCP'"),
        ({"shares": "tenure"}, r"'constant' or a formula over the axes \(s\)"),
        ({"shares": "s + I(2*s)"}, "collinear"),
        ({"shares": None}, "shares=None"),
    ],
)
def test_refusals(two, options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.CCPEM(two[0], two[1], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": np.zeros(3)}, r"4 finite parameters are needed .* got shape \(3,\)"),
        ({"start": {"k0[0]": 1.0}}, r"parameter 'k0\[1\]' has no value"),
        pytest.param({"start": {"k0[0]": 0, "k0[1]": 1, "k1": 0, "share[1]": 0, "k7": 1}}, "k7"),
        ({"start": np.ones((3, 2))}, r"got shape \(3, 2\)"),
        ({"start": np.ones((400, 2))}, "sum to one"),
        ({"start": np.full(4, np.nan)}, "finite"),
        ({"starts": 0}, "starts=0"),
        ({"cov_type": "clusterd"}, "Did you mean 'clustered'"),
        ({"cluster": "region"}, "no regions"),
        ({"cov_type": "bootstrap", "draws": 2}, "20 at least"),
    ],
)
def test_refusals_of_fit(two, options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.CCPEM(two[0], two[1], varying=["k0"]).fit(**options)


def test_counts_without_members_are_refused(two):
    with pytest.raises(dc.SpecificationError, match="member_limit="):
        dc.CCPEM(two[0], replace(two[1], members=None))


def test_an_integer_of_numpy_is_a_number_of_types(two):
    assert dc.CCPEM(two[0], two[1], types=np.int64(2)).types == 2


def test_finitely_dependent_mixtures_say_what_their_errors_are():
    model = builders.rust()
    spec = builders.as_spec(model, [0.3, 1.0])
    rows = builders.typed_rows(spec, [[0.3, 1.0], [0.3, 2.5]], [150, 150], 12, 3)
    counts = builders.typed_counts(model, rows)
    estimator = dc.CCPEM(model, counts, varying=["RC"], inner="CCP", valuation="finite-dependence")
    with pytest.warns(dc.IdentificationWarning, match="BHHH"):
        fit = estimator.fit(starts=2)
    assert fit.cov_type == "opg" and fit.influence is None
    assert "bootstrap" in str(fit.summary())
    assert oracles is not None
