"""The causal check on panels that follow the model, and on ones that do not."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.counterfactuals.causal_check import predicted_take_up, two_way
from dynchoice.model.regions import RegionGrid, market_events

HERE = Path(__file__).resolve().parents[2] / "validation"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(HERE))
    spec = importlib.util.spec_from_file_location("causal_run", HERE / "causal" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def fitted(study):
    model = study.model(False)
    frame = study.draw(5, False)
    panel = dc.Panel(
        frame, member="member", time="t", choice="plan", region="region",
        states=model.states, choices=study.PLANS,
    )  # fmt: skip
    return frame, panel, dc.NFXP(model, panel).fit()


def test_events_are_found_with_their_dates(study, fitted):
    _, panel, fit = fitted
    (event,) = market_events(fit.model, panel.counts)
    assert (event.axis, event.before, event.after) == ("bundle", "old", "new")
    want = {str(study.ALWAYS + i): t for i, t in enumerate(study.ROLL_OUTS)}
    assert event.starts == want and event.regions == study.REGIONS
    assert not event.everywhere and "10 of 16 regions (6 to 18)" in event.label


@pytest.mark.slow
def test_the_check_agrees_and_its_parts_are_right(study, fitted):
    frame, panel, fit = fitted
    report = dc.causal_check(fit, panel)
    (check,) = report.checks
    assert check.pval > 0.05 and "they agree" in str(report)
    assert check.effect == pytest.approx(check.structural, abs=4 * check.difference_se)
    # by hand: dummies for regions and months, weighted least squares
    share = (
        frame.assign(y=frame["plan"] != "none").groupby(["region", "t"])["y"].agg(["mean", "size"])
    )
    share = share.reset_index()
    starts = dict(enumerate([-1] * study.ALWAYS + list(study.ROLL_OUTS)))
    first = share["region"].map(starts)
    share["treated"] = ((first >= 0) & (share["t"] >= first)).astype(float)
    X = pd.get_dummies(share[["region", "t"]].astype(str), drop_first=True).to_numpy(float)
    X = np.column_stack([share["treated"], np.ones(len(share)), X])
    w = np.sqrt(share["size"].to_numpy(float))[:, None]
    b = np.linalg.lstsq(X * w, share["mean"].to_numpy()[:, None] * w, rcond=None)[0]
    assert check.effect == pytest.approx(float(b[0, 0]), abs=1e-10)
    # the average effect by simulation of the same members with and without the roll-out
    paths = check.paths
    assert set(paths.columns) == {"month", "effect", "std_error", "structural"}
    assert (paths["month"] != -1).all() and np.isfinite(check.pretrend_pval)
    later = paths[paths["month"] >= 3]
    gap = (later["effect"] - later["structural"]) / later["std_error"]
    assert gap.abs().max() < 4
    assert report.frame().loc[0, "difference"] == pytest.approx(check.difference)


def test_predictions_follow_the_law_of_motion(study, fitted):
    """The first month's prediction is the model's, and large simulated regions follow the path."""
    _, panel, fit = fitted
    grid = RegionGrid(fit.model, panel.counts)
    take = np.array([False, True])
    path = predicted_take_up(fit, grid, take)
    mu = grid.n[0, 0].sum(axis=1)
    assert path[0, 0] == pytest.approx(float(mu / mu.sum() @ fit.ccp[:, 1]))
    paths = dc.simulate(
        fit, members=200_000, periods=6, seed=1,
        start=np.random.default_rng(0).choice(len(mu), 200_000, p=mu / mu.sum()),
    )  # fmt: skip
    want = (paths.choices == 1).mean(axis=0)
    np.testing.assert_allclose(path[0, :6], want, atol=0.005)  # region 0 always had the bundle


@pytest.mark.slow
def test_anticipation_shows(study):
    out = study.one(1, True)
    assert out["pval"] < 0.05 and out["pretrend"] < 0.05


def test_no_comparison_is_said(study, fitted):
    frame, _, fit = fitted
    at_once = frame.assign(bundle=np.where(frame["t"] >= 9, "new", "old"))
    panel = dc.Panel(
        at_once, member="member", time="t", choice="plan", region="region",
        states=fit.model.states, choices=study.PLANS,
    )  # fmt: skip
    model = study.model(False)
    own = dc.NFXP(model, panel).fit()
    report = dc.causal_check(own, panel)
    assert "everywhere in the same month: no comparison" in str(report)
    assert np.isnan(report.checks[0].effect)


def test_refusals(study, fitted):
    frame, panel, fit = fitted
    with pytest.raises(dc.SpecificationError, match="choice 'weekly' is unknown"):
        dc.causal_check(fit, panel, outcome="weekly")
    with pytest.raises(dc.SpecificationError, match="pass a Panel"):
        dc.causal_check(fit, frame)
    bare = dc.Panel(
        frame, member="member", time="t", choice="plan", states=fit.model.states,
        choices=study.PLANS,
    )  # fmt: skip
    with pytest.raises(dc.SpecificationError, match="region="):
        dc.causal_check(fit, bare)


def test_two_way_weights_by_members():
    rng = np.random.default_rng(2)
    y, size = rng.normal(size=(8, 5)), rng.integers(1, 50, (8, 5)).astype(float)
    treated = np.zeros((8, 5), bool)
    treated[:3, 2:] = True
    effect, se = two_way((y, size), treated, np.ones(8, bool))
    r, t = np.divmod(np.arange(40), 5)
    X = np.column_stack([treated.reshape(-1), np.eye(8)[r], np.eye(5)[t][:, 1:]]).astype(float)
    w = np.sqrt(size.reshape(-1))[:, None]
    b = np.linalg.lstsq(X * w, y.reshape(-1, 1) * w, rcond=None)[0]
    assert effect == pytest.approx(float(b[0, 0])) and se > 0
