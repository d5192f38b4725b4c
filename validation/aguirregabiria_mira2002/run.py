"""Aguirregabiria and Mira (2002): what one, two and three NPL stages cost against MLE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main

import dynchoice as dc
from dynchoice.estimate.choice_probabilities import smoothed
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.optimise import maximise
from dynchoice.estimate.policy_inversion import pseudo_likelihood
from dynchoice.solvers.linear import PolicySystem, one_blas_thread

HERE = Path(__file__).resolve().parent
CHOICES = ["keep", "replace"]
PARAMS = ("RC", "theta1")
BINS, MAX_STEP, STAGES = 175, 4, 3
CLIP = 1e-6
STARTS = ("kernel", "package")
PANELS = 3
"""Replications that go through the public classes, to see that the stages here are theirs."""


def bus_model(table: dict[str, Any]) -> dc.DDC:
    """Known transitions: the estimators differ in how they treat the choices only."""
    states = dc.StateSpace(mileage=range(BINS))
    attributes = pd.DataFrame(
        {"choice": CHOICES, "RC": [0.0, -1.0], "kept": [-table["cost_scale"], 0.0]}
    )
    utility = dc.Utility.from_formula("0 + RC + kept:mileage", states, CHOICES, attributes)
    steps = np.array(table["steps"])
    law = {"mileage": dc.Increment(MAX_STEP, reset_on="replace", probabilities=steps)}
    transitions = dc.Transitions.factored(states, CHOICES, law)
    return dc.DDC(
        states=states,
        choices=CHOICES,
        utility=utility,
        transitions=transitions,
        beta=table["beta"],
    )


def stationary(model: dc.DDC, params: np.ndarray) -> np.ndarray:
    """The long-run distribution of buses over bins (BINS,)."""
    ccp = dc.solve(model, params, strict=True).ccp
    move = np.einsum("sj,sjt->st", ccp, model.transitions.expect(np.eye(BINS)))
    square = np.vstack([(np.eye(BINS) - move).T, np.ones(BINS)])
    mu = np.linalg.lstsq(square, np.append(np.zeros(BINS), 1.0), rcond=None)[0]
    return np.maximum(mu, 0) / np.maximum(mu, 0).sum()


def kernel_smoothed(n: np.ndarray) -> np.ndarray:
    """First stage over mileage alone: Gaussian kernel, Silverman's bandwidth, clipped (S, J)."""
    bins = np.arange(BINS)
    seen = np.repeat(bins, n.sum(axis=1).astype(int))
    quartiles = np.subtract(*np.percentile(seen, [75, 25])) / 1.34
    width = 0.9 * min(float(seen.std()), float(quartiles)) * len(seen) ** -0.2
    smooth = np.exp(-0.5 * ((bins[:, None] - bins[None, :]) / width) ** 2) @ n
    P = np.clip(smooth / smooth.sum(axis=1, keepdims=True), CLIP, 1 - CLIP)
    return P / P.sum(axis=1, keepdims=True)


def solved(likelihood: Likelihood, start: np.ndarray) -> tuple[Any, np.ndarray]:
    """The maximum, and a row: estimates, naive standard errors, converged."""
    best, status = maximise(likelihood.evaluate, likelihood.hessian, start, likelihood.total)
    se = np.sqrt(np.diag(np.linalg.inv(-likelihood.hessian(best))))
    return best, np.r_[best.params, se, status.converged]


def stages(model: dc.DDC, system: PolicySystem, n: np.ndarray, P: np.ndarray) -> list[np.ndarray]:
    """One row a stage of nested pseudo-likelihood from first-stage probabilities ``P``."""
    start = np.zeros(len(PARAMS))
    rows = []
    for _ in range(STAGES):
        likelihood, *_ = pseudo_likelihood(model, system, n, P)
        best, row = solved(likelihood, start)
        P, start = best.P, best.params
        rows.append(row)
    return rows


def panel_of(paths: Any, model: dc.DDC) -> dc.Panel:
    """The replication as a user would hold it."""
    return dc.Panel(
        paths.frame(),
        member="member",
        time="period",
        choice="choice",
        states=model.states,
        choices=CHOICES,
    )


def run(quick: bool) -> Study:
    """1,000 replications (60 if quick), each an independent cross-section of buses."""
    study = Study("aguirregabiria_mira2002")
    table = expected(HERE)
    count = 60 if quick else 1000
    model, truth = bus_model(table), np.array(table["truth"])
    mu = stationary(model, truth)
    system = PolicySystem(model.transitions, model.beta)
    rows: dict[tuple[str, int], list[np.ndarray]] = {}
    stage_gap = limit_gap = 0.0
    for r in range(count):
        paths = dc.simulate(
            model,
            params=truth,
            members=table["observations"],
            periods=1,
            seed=table["seed"] + r,
            start=mu,
        )
        n = np.zeros((BINS, len(CHOICES)))
        np.add.at(n, (paths.states[:, 0], paths.choices[:, 0]), 1)
        with one_blas_thread():
            rows.setdefault(("MLE", 0), []).append(solved(Likelihood(model, n), truth)[1])
            for start, P in zip(STARTS, (kernel_smoothed(n), smoothed(model, n).P), strict=True):
                for k, row in enumerate(stages(model, system, n, P)):
                    rows.setdefault((start, k + 1), []).append(row)
        if r < PANELS:
            panel = panel_of(paths, model)
            for k in range(STAGES):
                fit = dc.NPL(model, panel, steps=k + 1).fit()
                gap = np.abs(fit.params.to_numpy() / rows["package", k + 1][-1][:2] - 1).max()
                stage_gap = max(stage_gap, float(gap))
            fit = dc.NPL(model, panel).fit()
            gap = np.abs(fit.params.to_numpy() / rows["MLE", 0][-1][:2] - 1).max()
            limit_gap = max(limit_gap, float(gap))
    bound = table["package"]["fixed_point"]
    study.check("dc.NPL(steps=K) over the stages here", stage_gap, 0, bound, "own oracle")
    study.check("dc.NPL to convergence over MLE", limit_gap, 0, bound, "theory (section 3)")
    summarise(study, table, rows, truth, 3 / np.sqrt(2 * count) if quick else 0.0)
    return study


def summarise(
    study: Study,
    table: dict[str, Any],
    rows: dict[tuple[str, int], list[np.ndarray]],
    truth: np.ndarray,
    slack: float,
) -> None:
    """Print the two tables of the paper in one, and check what they ought to show."""
    size = len(PARAMS)
    lines = [
        f"beta {table['beta']}, {table['observations']:,} observations, {len(rows['MLE', 0]):,}"
        " replications; percent over MLE (MLE itself: levels)",
        f"{'first stage':>11} {'stages':>6} {'':>6} {'mean':>7} {'MAE':>7} {'MedAE':>7} {'SD':>7}"
        f" {'SE/SD':>6} {'covers':>6}",
    ]
    base: np.ndarray | None = None
    for (start, k), fits in rows.items():
        a = np.array(fits)
        error = np.abs(a[:, :size] - truth)
        mean, sd = a[:, :size].mean(axis=0), a[:, :size].std(axis=0, ddof=1)
        level = np.array([error.mean(axis=0), np.median(error, axis=0), sd])
        ratio = a[:, size : 2 * size].mean(axis=0) / sd
        covers = (error <= 1.959964 * a[:, size : 2 * size]).mean(axis=0)
        if (start, k) == ("kernel", 1):
            # what a user of one stage would be told: intervals that miss the truth too often
            study.within("kernel, 1 stage: worst naive coverage", covers.min(), 0, 0.9, "signature")
        base = level if base is None else base
        excess = 100 * (level / base - 1)
        label = f"{start}, {k} stage{'s' * (k > 1)}" if k else start
        study.check(f"{label}: share converged", a[:, -1].mean(), 1, 0, "all runs")
        for p, name in enumerate(PARAMS):
            shown = level[:, p] if start == "MLE" else excess[:, p]
            lines.append(
                f"{start:>11} {k or '':>6} {name:>6} {mean[p]:>7.3f}"
                + "".join(f" {x:>7.{3 if start == 'MLE' else 1}f}" for x in shown)
                + f" {ratio[p]:>6.3f} {covers[p]:>6.3f}"
            )
            efficiency(study, table, (start, k), f"{label}: {name}", excess[:, p], slack)
            signature(study, table, (start, k), f"{label}: {name}", ratio[p], slack)
    study.say("\n".join(lines))


def efficiency(
    study: Study,
    table: dict[str, Any],
    which: tuple[str, int],
    label: str,
    excess: np.ndarray,
    slack: float,
) -> None:
    """Check errors against those of MLE; ``slack`` is the relative error allowed in an SD."""
    start, k = which
    bounds = table["excess"]
    if which == ("kernel", 1):
        least = bounds["one_stage_mae_above"] - 100 * slack
        study.within(f"{label}: MAE over MLE, %", excess[0], least, 200, "own design (order)")
    elif k:
        most = bounds["package_one_stage"] if k == 1 else bounds["stages"][k - 2]
        kind = "own design" if k == 1 else "own design, as Table I"
        study.check(f"{label}: MAE over MLE, %", excess[0], 0, most, kind)
        study.check(f"{label}: SD over MLE, %", excess[2], 0, most, kind)


def signature(
    study: Study,
    table: dict[str, Any],
    which: tuple[str, int],
    label: str,
    ratio: float,
    slack: float,
) -> None:
    """Check a ratio of standard error to SD."""
    bounds = table["se_ratio"]
    if which == ("kernel", 1):
        low, high = 0.0, bounds["one_stage_below"]
    elif which == ("package", 1):
        low, high = bounds["package_one_stage"]
    else:
        low, high = bounds["more_stages"]
    study.within(
        f"{label}: SE/SD", ratio, low * (1 - slack), high * (1 + slack), "Table II, signature"
    )


if __name__ == "__main__":
    main(run)
