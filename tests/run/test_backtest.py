"""Backtests: baselines against published numbers, the model's paths against brute force."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import beta as beta_function

import dynchoice as dc
from dynchoice.counterfactuals import backtest_rivals as baselines
from dynchoice.counterfactuals import backtest_scores as evaluate
from dynchoice.counterfactuals.backtest_scores import by_segment, cells_in_words, summary_of
from dynchoice.panel import cohorts
from dynchoice.panel.saved import full_digest, load_counts, save_counts
from dynchoice.run import cli
from dynchoice.run.init import write_sample

# Fader and Hardie (2007), "How to project customer retention", table 1 and the estimates of
# section 4, from the first seven years
REGULAR = [1000, 631, 468, 382, 326, 289, 262, 241]
HIGH_END = [1000, 869, 743, 653, 593, 551, 517, 491]


@pytest.mark.parametrize(
    ("alive", "alpha", "beta"), [(REGULAR, 0.704, 1.182), (HIGH_END, 0.668, 3.806)]
)
def test_the_retention_curve_is_the_published_one(alive, alpha, beta):
    left = -np.diff(alive).astype(float)
    stayed = np.array(alive[1:], dtype=float)
    got = baselines.fit_retention(np.arange(1, 8), stayed, left)
    assert got == pytest.approx((alpha, beta), abs=1e-3)
    curve = baselines.retention(np.array([1]), np.array([1000.0]), *got, 7)
    a, b = got
    closed = [beta_function(a, b + t) / beta_function(a, b) for t in range(1, 8)]  # equation 6
    assert curve == pytest.approx(closed, rel=1e-12)


def rows_of(seed=0, members=60, periods=9):
    """A panel with gaps, late entry and early exit."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(members):
        x, c = 0, "out"
        first, last = rng.integers(0, 3), rng.integers(6, periods)
        for t in range(first, last + 1):
            if rng.random() < 0.05:
                continue
            x = int(rng.integers(0, 2))
            c = str(rng.choice(["out", "in", "gold"], p=[0.3, 0.5, 0.2]))
            rows.append((i, t, x, c, "ab"[i % 2], 1 + i % 3))
    return pd.DataFrame(rows, columns=["id", "t", "x", "c", "seg", "w"])


SPEC = {
    "member": "id", "time": "t", "choice": "c", "segment": "seg", "weights": "w",
    "choices": ["out", "in", "gold"],
}  # fmt: skip


def panel_of(df, **options):
    return dc.Panel(df, states=dc.StateSpace(x=range(2)), **SPEC, **options)


@pytest.mark.parametrize("options", [{}, {"member_limit": 10}])
def test_the_panel_until_a_month_is_the_panel_of_its_rows(options):
    df = rows_of()
    panel = panel_of(df, **options)
    for t in (3, 5):
        then, own = panel.until(t), panel_of(df[df["t"] <= t], **options)
        assert then.counts.digest == own.counts.digest
        assert full_digest(then.counts) == full_digest(own.counts)
        pd.testing.assert_frame_equal(then.report.table, own.report.table)
    assert panel.counts.last_period == df["t"].max()  # the panel itself is as it was
    with pytest.raises(dc.SpecificationError, match="'2017-01' is no period of the panel"):
        panel.until("2017-01")


def test_counts_are_saved_bit_for_bit(tmp_path):
    counts = panel_of(rows_of()).counts
    again = load_counts(save_counts(counts, tmp_path / "c.npz"))
    assert full_digest(again) == full_digest(counts) and again.digest == counts.digest
    (tmp_path / "d.npz").write_bytes(b"x")
    with pytest.raises(dc.StorageError):
        load_counts(tmp_path / "d.npz")


def test_followed_and_pairs_are_what_a_join_by_hand_gives():
    df, panel = rows_of(), panel_of(rows_of())
    codes = {"out": 0, "in": 1, "gold": 2}
    at = df[df["t"] == 4]
    later = df[(df["t"] > 4) & (df["t"] <= 7)]
    both = at.merge(later, on="id", suffixes=("", "_later"))
    want = {}
    for r in both.itertuples():
        key = (r.seg, r.x, codes[r.c], r.t_later - 4, codes[r.c_later])
        want[key] = want.get(key, 0) + r.w
    got = cohorts.followed(panel, 4, 3)
    found = {tuple(r[:5]): r[5] for r in got.itertuples(index=False)}
    assert found == want
    want = {}
    held = {(r.id, r.t): r for r in df.itertuples()}
    for (i, t), r in held.items():
        if (i, t + 1) in held:
            key = (r.seg, codes[r.c], codes[held[i, t + 1].c])
            want[key] = want.get(key, 0) + r.w
    found = {tuple(r[:3]): r[3] for r in cohorts.pairs(panel).itertuples(index=False)}
    assert found == want


def test_spells_are_what_a_walk_through_the_rows_gives():
    df, panel = rows_of(3), panel_of(rows_of(3))
    end, want = df["t"].max(), {}
    for _, own in df.groupby("id"):
        rows = list(own.sort_values("t").itertuples())
        age, seen = 0, 0
        for k, r in enumerate(rows):
            before = rows[k - 1] if k and rows[k - 1].t == r.t - 1 else None
            after = rows[k + 1] if k + 1 < len(rows) and rows[k + 1].t == r.t + 1 else None
            if r.c == "out":
                age = 0
                continue
            if before is not None and before.c != "out":
                age += 1
            else:
                age, seen = 1, int(before is not None)
            lapsed = -1 if after is None else int(after.c == "out")
            key = (r.seg, age, seen, int(r.t == end), lapsed)
            want[key] = want.get(key, 0) + r.w
    found = {tuple(r[:5]): r[5] for r in cohorts.spells(panel, 0).itertuples(index=False)}
    assert found == want


def test_paths_of_the_model_are_those_of_every_history():
    df, states = rows_of(1, members=300), dc.StateSpace(x=range(2))
    x = np.zeros((2, 3, 2))
    x[1, 1, 0] = x[:, 2, 1] = 1.0
    model = dc.DDC(
        states=states, choices=["out", "in", "gold"],
        utility=dc.Utility.from_array(x, names=["a", "b"]),
        transitions=dc.Transitions.factored(states, ["out", "in", "gold"], {"x": dc.Markov()}),
        beta=0.9,
    )  # fmt: skip
    fit = dc.NFXP(model, panel_of(df)).fit()
    got, P, F = evaluate.paths_of(fit, 3), fit.ccp, fit.transitions.dense()
    want = np.zeros((3, 2, 3, 3))
    for s, c in itertools.product(range(2), range(3)):
        for h in range(1, 4):
            for path in itertools.product(range(2), range(3), repeat=h):
                p, at, choice = 1.0, s, c
                for k in range(h):
                    nxt, then = path[2 * k], path[2 * k + 1]
                    p *= F[at, choice, nxt] * P[nxt, then]
                    at, choice = nxt, then
                want[h - 1, s, c, choice] += p
    assert np.abs(got - want).max() < 1e-13


def test_tables_of_transitions():
    pairs = pd.DataFrame({"choice": [0, 0, 1], "later": [0, 1, 1], "n": [8.0, 2.0, 5.0]})
    table = baselines.markov_table(pairs, 2, 2)
    assert table[0] == pytest.approx(np.array([[8.5 / 11, 2.5 / 11], [0.5 / 6, 5.5 / 6]]))
    assert table[1] == pytest.approx(table[0] @ table[0])
    last = baselines.last_month(pairs, 2, 3)
    assert last[0, 0, 1] == pytest.approx(2.5 / 16) and last.sum(axis=2) == pytest.approx(1)
    assert last[2, 0, 1] == pytest.approx(1 - (1 - 2.5 / 16) ** 3)


def test_the_seasonal_series_finds_a_season():
    t = np.arange(60)
    p = 0.4 + 0.15 * np.sin(2 * np.pi * t / 12)
    ahead = baselines.seasonal_series(np.stack([1 - p, p], axis=1)[:48], 12, 12)
    assert np.abs(ahead[:, 1] - p[48:]).max() < 0.02
    assert np.isnan(baselines.seasonal_series(np.ones((3, 2)) / 2, 2, 12)).all()
    assert baselines.seasonal_series(np.ones((5, 2)) / 2, 2, 12) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "s"
    write_sample(folder)
    return folder


FAST = ["--set", "backtest.draws=20", "--set", "backtest.origins=2"]


def test_a_backtest_is_written_and_found_again(sample, capsys):
    run = str(sample / "run.toml")
    assert cli.main(["backtest", run, *FAST]) == 0
    said = capsys.readouterr()
    assert "estimating as of 2025-09" in said.err and "retention curve" in said.out
    folder = (sample / "out" / "backtest").resolve()
    assert said.out.strip().endswith(str(folder))
    record = json.loads((folder / "manifest.json").read_text())
    assert record["origins"] == ["2025-08", "2025-09"] and record["failed"] == []
    summary = pd.read_parquet(folder / "summary.parquet")
    assert set(summary["method"]) == {"model", "static logit", "Markov table", "last month",
                                      "seasonal series", "retention curve"}  # fmt: skip
    errors = pd.read_parquet(folder / "errors.parquet")
    total = errors.groupby(["origin", "segment", "horizon", "method"])[["forecast", "observed"]]
    assert total.sum().to_numpy() == pytest.approx(1.0)
    # shares that were observed are those of the members of the origin, by hand
    rows = pd.read_parquet(sample / "members.parquet")
    there = rows[(rows["month"] == "2025-08") & (rows["segment"] == "families")]["member"]
    later = rows[(rows["month"] == "2025-10") & rows["member"].isin(there)]["plan"]
    own = errors[(errors["origin"] == "2025-08") & (errors["segment"] == "families")
                 & (errors["horizon"] == 2) & (errors["method"] == "model")]  # fmt: skip
    assert dict(zip(own["choice"], own["observed"], strict=True)) == pytest.approx(
        later.value_counts(normalize=True).to_dict()
    )
    scores = pd.read_parquet(folder / "scores.parquet")
    assert (scores[scores["method"] == "Markov table"]["model_gains"] > 0).all()
    page = (folder / "backtest.html").read_text()
    assert "<svg" in page and "static logit" in page
    assert (folder / "backtest.png").stat().st_size > 10_000
    assert cli.main(["backtest", run, *FAST, "--quiet"]) == 0
    assert (sample / "out" / "backtest").resolve() == folder  # nothing to do, nothing written
    assert not list((sample / "out").glob(".writing-*"))


@pytest.mark.slow
def test_an_origin_is_estimated_once_for_forecast_and_backtest(sample, tmp_path):
    rows = pd.read_parquet(sample / "members.parquet")
    for name in ("run.toml",):
        (tmp_path / name).write_text((sample / name).read_text())
    rows[rows["month"] <= "2025-09"].to_parquet(tmp_path / "members.parquet")
    quick = ["--set", "forecast.draws=0", "--set", "output.report=false", "--quiet",
             "--set", "output.picture=false"]  # fmt: skip
    run = str(tmp_path / "run.toml")
    assert cli.main(["forecast", run, *quick]) == 0
    stages = {p.name for p in (tmp_path / "out" / ".stages").glob("estimate-*")}
    rows.to_parquet(tmp_path / "members.parquet")
    assert cli.main(["backtest", run, *quick, "--set", "backtest.origins=1"]) == 0
    assert {p.name for p in (tmp_path / "out" / ".stages").glob("estimate-*")} == stages


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ('backtest.origins=["2025-13"]', "'2025-13' is no month to forecast from"),
        ("backtest.horizon=40", "too short for a horizon of 40"),
        ("backtest.outside=nobody", "choice 'nobody' is unknown"),
        ('backtest.against=["prophet"]', "backtest.against[0]"),
        ("backtest.horizn=2", "Did you mean 'horizon'"),
    ],
)
def test_what_a_backtest_refuses(sample, capsys, setting, text):
    assert cli.main(["backtest", str(sample / "run.toml"), "--set", setting]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_an_origin_that_does_not_converge_is_named_and_left_out(sample, tmp_path, capsys):
    (tmp_path / "run.toml").write_text((sample / "run.toml").read_text())
    rows = pd.read_parquet(sample / "members.parquet")
    # until 2025-08 no student takes an annual plan: its parameters have no estimate then
    early = (rows["month"] <= "2025-08") & (rows["segment"] == "students")
    gone = rows[early & ((rows["plan"] == "annual") | rows["contract"].str.startswith("annual"))]
    rows[~rows["member"].isin(gone["member"])].to_parquet(tmp_path / "members.parquet")
    run = str(tmp_path / "run.toml")
    code = cli.main(["backtest", run, "--quiet", "--set", "backtest.origins=['2025-08','2025-11']"])
    error = capsys.readouterr().err
    assert code == 3 and "students as of 2025-08" in error, error
    record = json.loads((tmp_path / "out" / "backtest" / "manifest.json").read_text())
    assert any("students as of 2025-08" in f for f in record["failed"])
    errors = pd.read_parquet(tmp_path / "out" / "backtest" / "errors.parquet")
    kept = set(zip(errors["origin"], errors["segment"], strict=True))
    assert ("2025-08", "families") in kept and ("2025-08", "students") not in kept


def test_the_retention_curve_does_not_take_the_first_month_for_the_first_age():
    rng = np.random.default_rng(0)
    leave = rng.beta(1, 4, 200_000)
    begun = -rng.integers(0, 120, len(leave))  # a steady inflow before the panel and in it
    ends = begun + rng.geometric(leave)
    rows = []
    for age_seen in range(12):  # twelve months observed, 0 .. 11
        here = (begun <= age_seen) & (ends > age_seen)
        age = np.where(begun > 0, age_seen - begun + 1, age_seen + 1)
        for a, seen, n in zip(
            *np.unique(np.stack([age[here], begun[here] > 0]), axis=1, return_counts=True)[0],
            np.unique(np.stack([age[here], begun[here] > 0]), axis=1, return_counts=True)[1],
            strict=True,
        ):
            gone = here & (age == a) & ((begun > 0) == seen) & (ends == age_seen + 1)
            last = int(age_seen == 11)
            for lapsed, size in ((1, gone.sum()), (0, n - gone.sum())):
                rows.append((int(a), int(seen), last, -1 if last else lapsed, float(size)))
    # those who come during the months observed have known ages
    later = rng.beta(1, 4, 20_000)
    stay = rng.geometric(later)
    for a in range(1, 11):
        for lapsed, size in ((1, (stay == a).sum()), (0, (stay > a).sum())):
            rows.append((a, 1, 0, lapsed, float(size)))
    spells = pd.DataFrame(rows, columns=["age", "seen", "last", "lapsed", "n"])
    here = ends > 11
    true = [float((ends[here] > 11 + h).mean()) for h in (1, 2, 3)]
    shares = np.tile([0.0, 1.0], (3, 1))
    got = baselines.retention_curve(spells, shares, 0, 3)[:, 1]
    assert np.abs(got - true).max() < 0.01


@pytest.mark.slow
def test_a_backtest_of_numbered_choices_and_of_a_late_segment(tmp_path, capsys):
    rows = rows_of(5, members=400, periods=12)
    rows["c"] = rows["c"].map({"out": 0, "in": 1, "gold": 1})
    rows = rows.drop(columns="w")
    late = rows[rows["seg"] == "a"].assign(seg="late", id=lambda r: r["id"] + 10_000)
    pd.concat([rows, late[late["t"] > 6]]).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "f.csv").write_text("choice,buy\n0,0\n1,1\n")
    (tmp_path / "run.toml").write_text(
        """
[data]
path = "rows.parquet"
member = "id"
time = "t"
choice = "c"
segment = "seg"
[axes.x]
levels = [0, 1]
law = "markov"
[model]
choices = [0, 1]
beta = 0.9
[utility]
formula = "0 + buy + buy:x"
attributes = "f.csv"
[backtest]
origins = ["5", "8"]
horizon = 2
draws = 5
[output]
report = false
picture = false
"""
    )
    run = str(tmp_path / "run.toml")
    assert cli.main(["backtest", run, "--quiet"]) == 0  # as of 5 the late segment is not there
    errors = pd.read_parquet(tmp_path / "out" / "backtest" / "errors.parquet")
    found = set(zip(errors["origin"], errors["segment"], strict=True))
    assert ("8", "late") in found and ("5", "late") not in found
    assert set(errors["choice"]) == {"0", "1"} and (errors["seen"] <= 1).all()
    for _ in range(2):  # the second time nothing is to do, and it is still said
        assert cli.main(["backtest", run, "--quiet", "--set", "backtest.origins=['7','8']"]) == 3
        assert "late as of 7" in capsys.readouterr().err
    errors = pd.read_parquet(tmp_path / "out" / "backtest" / "errors.parquet")
    assert {("7", "a"), ("8", "late")} <= set(zip(errors["origin"], errors["segment"], strict=True))


def errors_with_a_hole():
    """Two methods, three origins; the second has no forecast at the first origin."""
    rows = []
    for o, gap in enumerate((0.10, 0.02, 0.02)):
        for method, own in (("model", gap), ("series", np.nan if o == 0 else 0.05)):
            rows.append((f"o{o}", "s", 1, "in", method, 0.5 + own, 0.5))
    head = ["origin", "segment", "horizon", "choice", "method", "forecast", "observed"]
    out = pd.DataFrame(rows, columns=head)
    return out.assign(lower=0.4, upper=0.6, wide_lower=0.3, wide_upper=0.7)


def test_both_tables_of_a_backtest_are_over_the_same_cells():
    errors = errors_with_a_hole()
    none = pd.DataFrame(columns=["method", "horizon", "n", "score", "model_gains", "std_error"])
    first = summary_of(errors, none).set_index("method")
    second = by_segment(errors).set_index("method")
    assert first["error"].round(9).to_dict() == second["error"].round(9).to_dict()
    assert first.loc["model", "error"] == pytest.approx(2.0)
    said = cells_in_words(errors)
    assert "2 of 3 cells" in said and "4.67 at 1" in said
    assert cells_in_words(errors[errors["origin"] != "o0"]) == ""
