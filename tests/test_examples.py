"""What the README shows works as it stands there."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.S)


def script() -> str:
    return SCRIPTS[0]


def run_script(i: int, after: tuple[dict, str] | None = None) -> tuple[dict, str]:
    """Run a script of the README, after another one; return the names and what was printed."""
    names, before = after or ({}, "")
    names = dict(names)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(SCRIPTS[i], "README.md", "exec"), names)
    return names, before + printed.getvalue()


@pytest.fixture(scope="module")
def first() -> tuple[dict, str]:
    """The first script, which others go on from."""
    with contextlib.chdir(ROOT):
        return run_script(0)


def test_the_script_is_short():
    lines = [x for x in script().splitlines() if x.strip()]
    assert len(lines) < 25


def test_the_script_runs_and_finds_the_truth(first):
    names, printed = first
    results, forecast = names["results"], names["forecast"]
    truth = {"basic": -1.2, "premium": -2.0, "paid:visits": 0.55, "premium:classes": 0.9,
             "join": 1.5}  # fmt: skip
    text = (ROOT / "data" / "club" / "make.py").read_text(encoding="utf-8")
    assert all(f'"{k}": {v}' in text for k, v in truth.items())
    z = (results.params - np.array([truth[k] for k in results.params.index])) / results.std_errors
    assert results.converged and np.abs(z).max() < 4
    assert forecast.converged and len(forecast.take_up) == 2 * 12 * 3
    assert "right-censored" in printed and "half the joining cost" in printed


def test_the_other_estimators_agree_in_one_table(monkeypatch, first):
    monkeypatch.chdir(ROOT)
    names, printed = run_script(1, first)
    fits = names["fits"]
    assert len(SCRIPTS) == 7 and all(f.converged for k, f in fits.items() if k != "two types")
    gap = np.abs(fits["NPL"].params - fits["NFXP"].params) / fits["NFXP"].std_errors
    assert gap.max() < 1e-6
    assert "Model comparison" in printed and "baseline" in printed
    assert "Finite dependence in 24 states" in printed


def test_rewards_are_learned_without_levels(monkeypatch, first):
    monkeypatch.chdir(ROOT)
    names, printed = run_script(2, first)
    fits = names["fits"]
    assert all(f.converged for f in fits.values()) and "Model comparison" in printed
    nested, others = fits["NFXP"].params, ("levels", "rows", "TD-CCP")
    for name in others:
        fit = fits[name]
        own = fit.params.rename({"paid:held_none": "join"})
        own["join"] = abs(own["join"])  # a cost there, a reward here
        gap = (own - nested) / fit.std_errors.rename({"paid:held_none": "join"})
        assert gap.abs().max() < 3, (name, gap)


def test_the_programme_is_described_estimated_and_forecast(monkeypatch):
    monkeypatch.chdir(ROOT)
    names, printed = run_script(3)
    fit, forecast = names["fit"], names["forecast"]
    truth = tomllib.loads((ROOT / "data" / "prime" / "truth.toml").read_text(encoding="utf-8"))
    known = dict(truth["segments"]["India rural"]["params"])
    known |= {"joining cost": known.pop("join"), "switching cost": known.pop("switch")}
    z = [(fit.params[k] - v) / fit.std_errors[k] for k, v in known.items()]
    assert set(known) == set(fit.params.index) and np.abs(z).max() < 4
    assert forecast.converged and set(forecast.badges["badge"]) <= {
        "identified",
        "rests on functional form",
        "rests on the anchor",
    }
    assert "penetration" in printed and "Elasticities of shares by prices" in printed


@pytest.mark.slow
def test_months_are_added_and_segments_fitted(monkeypatch):
    monkeypatch.chdir(ROOT)
    names, printed = run_script(4)
    fits, store, rows = names["fits"], names["store"], names["rows"]
    assert fits.converged and len(fits) == 4
    assert store.rows == len(rows) and f"'rows': {int(names['last'].sum())}" in printed
    whole = names["dc"].Panel(
        rows, **names["columns"], states=names["run"].states, choices=names["plans"], member_limit=0
    )
    assert whole.counts.digest == store.counts.digest


@pytest.mark.slow
def test_the_identification_example_prints_what_the_readme_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, printed = run_script(5)
    printed = " ".join(printed.split())
    flat = " ".join(README.split())
    said = flat[flat.index("It prints, of the simulated sample:") :]
    for figure in ("0.23 correlated", "0.846 correlated", "5.0 times as large"):
        assert figure in printed and figure in said
    assert "in 12 of 20 regions" in printed and "they agree" in printed
    effect, model = re.search(
        r"difference-in-differences \+([\d.]+) .*?structural model \+([\d.]+)", printed
    ).groups()
    assert f"({float(effect):.1f} points by difference-in-differences" in said
    assert f"{float(model):.1f} from the model" in said


def test_the_page_decides_learns_and_is_saved(monkeypatch, tmp_path):
    (tmp_path / "data" / "prime" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names, printed = run_script(6)
    page, shown = names["page"], names["shown"]
    assert len(shown) == 6 and "6 impressions, 1 clicks" in printed
    assert "same day" not in set(shown[shown["member"] == 1]["item"])
    assert (tmp_path / "data" / "prime" / "out" / "page.npz").exists()
    assert page.feedback.learned and "IPS" in printed


def test_the_loop_from_structural_values_to_take_up(monkeypatch, tmp_path):
    import importlib.util
    import shutil

    for name in ("callouts.py", "run.toml", "contract.csv", "attributes.csv", "prime.parquet"):
        shutil.copy(ROOT / "data" / "prime" / name, tmp_path)
    spec = importlib.util.spec_from_file_location("prime_callouts", tmp_path / "callouts.py")
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = loop.main()
    worth = found["worth"].set_index(["plan", "benefit"])["value"]
    assert (worth > 0).all()
    regret = found["life"].days["regret"]
    assert regret.iloc[-10:].mean() < 0.3 * regret.iloc[:5].mean()
    last = (
        found["forecast"].take_up.query("period == 24 and choice == 'none'").set_index("scenario")
    )
    assert last.loc["callouts", "share"] < last.loc["baseline", "share"] - 0.005
    assert "4. take-up after two years" in printed.getvalue()
    assert (tmp_path / "out" / "callouts.png").stat().st_size > 10_000


def test_the_two_commands_are_in_the_readme_and_ci_runs_one_of_them():
    commands = re.findall(r"```sh\n(.*?)\n```", README)
    assert len(commands) == 2
    assert "dynchoice forecast data/prime/run.toml" in commands[0]
    test_command = commands[1].split(" && ")[1]
    assert test_command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "target", re.findall(r"\]\(([^)]+)\)|`((?:data|validation|tests)/[^`]*)`", README)
)
def test_paths_of_the_readme_exist(target):
    path = (target[0] or target[1]).split(" ")[0].rstrip("/")
    assert (ROOT / path).exists() or "/out" in path


def test_docstring_examples():
    import doctest
    import importlib

    import dynchoice

    package = Path(dynchoice.__file__).parent
    failed, found = set(), []
    for path in sorted(package.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            if doctest.testmod(importlib.import_module(name)).failed:
                failed.add(name)
            found.append(name)
    assert len(found) >= 9, found
    assert not failed, failed


@pytest.mark.slow
def test_the_sample_forecast_holds_what_the_truth_would_do(tmp_path):
    """The published bands against the path of the true model from the same starting point."""
    import importlib.util
    import shutil

    import pandas as pd

    import dynchoice as dc
    from dynchoice.run.config import load_run
    from dynchoice.run.job import run_forecast

    prime = ROOT / "data" / "prime"
    for name in ("run.toml", "contract.csv", "attributes.csv", "prime.parquet"):
        shutil.copy(prime / name, tmp_path)
    spec = importlib.util.spec_from_file_location("prime_make", prime / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    run = load_run(
        tmp_path / "run.toml",
        {"forecast.draws": 60, "forecast.level": 0.99, "output.picture": False},
    )
    take_up = pd.read_parquet(run_forecast(run) / "take_up.parquet")
    panel = run.panel()
    inside = []
    for m, segment in enumerate(panel.segments):
        model, theta = make.true_model(segment, make.truth())
        last = panel.counts.at_period()[m]
        mu = model.transitions.push(last) / last.sum()
        scenario = next(s for s in run.scenarios() if s.name == "annual 20% off")
        P = dc.solve(model, theta).ccp
        place = scenario.state_map(model)
        shares = np.empty((24, P.shape[1]))
        for t in range(24):
            if t + 1 == scenario.starts:
                mu = np.bincount(place, weights=mu, minlength=len(mu))
            shares[t] = mu @ P
            mu = model.transitions.push(mu[:, None] * P)
        rows = take_up[(take_up["segment"] == segment) & (take_up["scenario"] == scenario.name)]
        true = shares.reshape(-1)
        # laws of motion are held at their estimates, so allow them half a point
        low, high = rows["lower"].to_numpy() - 0.005, rows["upper"].to_numpy() + 0.005
        inside.append(((low <= true) & (true <= high)).mean())
        assert np.abs(rows["share"].to_numpy() - true).max() < 0.05
    assert np.mean(inside) > 0.9
