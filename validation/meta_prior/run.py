"""Meta-priors: unbiased variances, and how much of the regret of vague priors they save."""

from __future__ import annotations

import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "mvt2017")]
from common import Study, expected, main
from design import bandit, oracle, regret, scales
from scipy.stats import norm
from threadpoolctl import threadpool_limits

import dynchoice as dc
from dynchoice.callouts.prior import moment_variance

OPTIONS = {
    "vague": ("joint", "vague", None),
    "oracle": ("joint", "oracle", None),
    "moments": ("joint", "vague", "moments"),
    "em": ("joint", "vague", "em"),
    "james-stein": ("joint", "vague", "james-stein"),
    "vague, stream": ("adf", "vague", None),
    "oracle, stream": ("adf", "oracle", None),
    "moments, stream": ("adf", "vague", "moments"),
}
EPOCHS = (*range(10), *range(10, 40, 5))
"""Batches after which the prior is learned again: early ones matter."""


def unbiased(study: Study, want: dict, reps: int) -> None:
    """The estimator with known sampling variances: papers.md 2's design, then unequal ones."""
    rows = []
    rng = np.random.default_rng(0)
    for equal in (True, False):
        for n in (10, 50, 200):
            for tau2 in (0.05, 0.30):
                found = np.empty(reps)
                for i in range(reps):
                    s2 = np.full(n, want["s2"]) if equal else rng.uniform(0.02, 1.0, n)
                    theta = -0.2 + np.sqrt(tau2) * rng.standard_normal(n)
                    estimate = theta + np.sqrt(s2) * rng.standard_normal(n)
                    found[i] = moment_variance(estimate, s2, True, 0.1)[1]
                error = found.std(ddof=1) / np.sqrt(reps)
                rows.append((equal, n, tau2, found.mean(), error, np.maximum(found, 0).mean(),
                             (found < 0).mean()))  # fmt: skip
                study.within(
                    f"tau2={tau2}, {n} weights, {'equal' if equal else 'unequal'} errors: bias"
                    " (MC errors)", (found.mean() - tau2) / error, -3, 3, "known truth",
                )  # fmt: skip
    names = ["equal s2", "n", "tau2", "mean", "MC error", "mean if cut at 0", "P(negative)"]
    table = pd.DataFrame(rows, columns=names)
    study.say(f"tau2 by moments, {reps:,} samples\n{table.round(4).to_string(index=False)}")


def deployed(study: Study, seeds: int) -> None:
    """The estimator on models that saw clicks, rows at random and rows chosen by the bandit."""
    rows = []
    for how in ("random page", "its own choices"):
        for method in ("moments", "em", "james-stein"):
            found = []
            for seed in range(seeds):
                rng = np.random.default_rng([seed, 5])
                w = 0.3 * rng.standard_normal(40)
                model = dc.Probit(["1", *["item"] * 40], {"1": (-1.2, 1.0)}, method="joint")
                for b in range(8):
                    item = rng.integers(0, 40, 1000)
                    if how != "random page":
                        drawn = model.posterior.draw(1000, rng)
                        item = drawn[:, 1:].argmax(axis=1)
                    y = rng.random(1000) < norm.cdf(-1.2 + w[item])
                    model.update(np.stack([0 * item, 1 + item], 1), y.astype(float))
                    del b
                found.append(dc.MetaPrior.learn(model, method).raw["item"])
            error = np.std(found, ddof=1) / np.sqrt(seeds)
            rows.append((how, method, np.mean(found), error))
            if method == "moments":
                study.within(f"{how}: tau2 of a deployed model (MC errors)",
                             (np.mean(found) - 0.09) / error, -3, 3, "known truth")  # fmt: skip
    table = pd.DataFrame(rows, columns=["rows", "method", "mean tau2", "MC error"])
    study.say(f"true tau2 .09, {seeds} models\n{table.round(4).to_string(index=False)}")


def one(name: str, seed: int, batches: int) -> tuple:
    """Return a run's regret and the prior that it learned."""
    method, start, learner = OPTIONS[name]
    page = bandit("MVT2", seed, 1.0, 1.0, method, start)

    def after(page: dc.LayoutBandit, b: int) -> None:
        if learner is not None and b in EPOCHS and b < batches - 1:
            page.learn_prior(learner)

    with threadpool_limits(1):
        r = regret(page, seed, 1.0, 1.0, batches, after)
    told = page.models[0].prior
    return name, seed, r.sum(), r[-5:].mean(), told["content"][1], told["pair"][1]


def saved(study: Study, want: dict, quick: bool) -> None:
    """Share of the gap between vague and oracle priors that learning them closes."""
    seeds, batches = (2, 10) if quick else (20, 40)
    names = [n for n in OPTIONS if not quick or n in ("vague", "oracle", "moments")]
    jobs = [(n, s, batches) for n in names for s in range(seeds)]
    found = joblib.Parallel(n_jobs=1 if quick else 2)(joblib.delayed(one)(*j) for j in jobs)
    columns = ["prior", "seed", "sum", "last", "content", "pair"]
    frame = pd.DataFrame(found, columns=columns)
    group = frame.groupby("prior", sort=False)
    table = group[columns[2:]].mean()
    table.insert(1, "s.e.", group["sum"].std(ddof=1) / np.sqrt(seeds))
    a, b = scales(1.0, 1.0)
    study.say(
        f"MVT2, {seeds} seeds, {batches} batches; true variances {a * a:.4f} and {b * b:.4f}"
        f" ({oracle(1, 1, 2)})\n{table.round(4).to_string()}"
    )
    wide = frame.pivot(index="seed", columns="prior", values="sum")
    rng = np.random.default_rng(0)
    rows = []
    for name, bad, good in (
        ("moments", "vague", "oracle"), ("em", "vague", "oracle"),
        ("james-stein", "vague", "oracle"), ("moments, stream", "vague, stream", "oracle, stream"),
        ("moments", "vague, stream", "oracle, stream"),
    ):  # fmt: skip
        if not {name, bad, good} <= set(wide.columns):
            continue
        part = wide[[name, bad, good]].to_numpy()
        means = np.array([part[rng.integers(0, seeds, seeds)].mean(axis=0) for _ in range(4000)])
        closed = (means[:, 1] - means[:, 0]) / (means[:, 1] - means[:, 2])
        m = part.mean(axis=0)
        share = (m[1] - m[0]) / (m[1] - m[2])
        rows.append((name, f"{bad} to {good}", share, *np.quantile(closed, [0.025, 0.975])))
    told = pd.DataFrame(rows, columns=["prior", "gap", "closed", "lower", "upper"])
    study.say(f"share of the gap closed, 95 % over seeds\n{told.round(3).to_string(index=False)}")
    main_row = told.iloc[0]
    least = want["closed_quick"] if quick else want["closed"]
    study.within("share of the gap closed by moments", main_row["closed"], least, 10, "papers.md 2")
    if not quick:
        study.within("its lower bound over seeds", main_row["lower"], want["closed"], 10, "own")
        best = float(table.loc["moments", "sum"])
        study.within("summed regret of EB-MVT2 (published: 2.67 vague, 1.23 oracle)", best, 0.0,
                     2.67 - 0.7 * (2.67 - 1.23), "papers.md 2")  # fmt: skip


def run(quick: bool) -> Study:
    """Run the study."""
    study, want = Study("meta_prior"), expected(HERE)
    unbiased(study, want, 600 if quick else 20_000)
    deployed(study, 6 if quick else 60)
    saved(study, want, quick)
    return study


if __name__ == "__main__":
    main(run)
