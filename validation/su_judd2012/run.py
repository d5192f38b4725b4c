"""Su and Judd (2012), section 5: Monte Carlo of NFXP on the bus model, and its fingerprints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main

import dynchoice as dc

HERE = Path(__file__).resolve().parent
CHOICES = ["keep", "replace"]
BINS, BUSES, MONTHS, MAX_STEP = 175, 50, 120, 4
TRUTH = np.array([11.7257, 2.4569])
STEPS = np.array([0.0937, 0.4475, 0.4459, 0.0127, 0.0002])
FULL = 250
ERRORS = 4.0
"""Monte Carlo standard errors allowed where a simulated mean meets the exact one."""


def bus_model(beta: float, steps: np.ndarray | None = None) -> dc.DDC:
    """Linear cost 0.001 theta11 x and replacement cost RC; without ``steps`` they are estimated."""
    states = dc.StateSpace(mileage=range(BINS))
    attributes = pd.DataFrame({"choice": CHOICES, "RC": [0.0, -1.0], "kept": [-0.001, 0.0]})
    utility = dc.Utility.from_formula("0 + RC + kept:mileage", states, CHOICES, attributes)
    law = {"mileage": dc.Increment(MAX_STEP, reset_on="replace", probabilities=steps)}
    transitions = dc.Transitions.factored(states, CHOICES, law)
    return dc.DDC(
        states=states, choices=CHOICES, utility=utility, transitions=transitions, beta=beta
    )


def simulated(beta: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States and choices (count, BUSES, MONTHS); every bus starts new."""
    paths = dc.simulate(
        bus_model(beta, STEPS),
        params=TRUTH,
        members=count * BUSES,
        periods=MONTHS,
        seed=seed,
        start=np.zeros(count * BUSES, dtype=np.int64),
    )
    shape = (count, BUSES, MONTHS)
    return paths.states.reshape(shape), paths.choices.reshape(shape)


def data_sets(states: np.ndarray, choices: np.ndarray) -> Iterator[dc.Counts]:
    """The counts of each data set: one panel, whose segments the data sets are."""
    count = len(states)
    rows = pd.DataFrame(
        {
            "data_set": np.repeat([f"{i:03d}" for i in range(count)], BUSES * MONTHS),
            "bus": np.repeat(np.arange(count * BUSES), MONTHS),
            "month": np.tile(np.arange(MONTHS), count * BUSES),
            "mileage": states.ravel(),
            "choice": np.array(CHOICES)[choices.ravel()],
        }
    )
    panel = dc.Panel(
        rows,
        member="bus",
        time="month",
        choice="choice",
        states=dc.StateSpace(mileage=range(BINS)),
        choices=CHOICES,
        segment="data_set",
    )
    for i in range(count):
        yield panel.counts.segment(f"{i:03d}")


def exact_fingerprints(beta: float) -> np.ndarray:
    """Mean state, mean state at replacement, replacement frequency: expected over 120 months."""
    model = bus_model(beta, STEPS)
    ccp = dc.solve(model, TRUTH, strict=True).ccp
    move = np.einsum("sj,sjt->st", ccp, model.transitions.expect(np.eye(BINS)))
    at, seen = np.eye(BINS)[0], np.zeros(BINS)
    for _ in range(MONTHS):
        seen += at / MONTHS
        at = at @ move
    replaced = seen * ccp[:, 1]
    bins = np.arange(BINS)
    return np.array([seen @ bins, replaced @ bins / replaced.sum(), replaced.sum()])


def fingerprints(states: np.ndarray, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same three of simulated buses, and their standard errors (delta method, by bus)."""
    x, d = states.reshape(-1, MONTHS), choices.reshape(-1, MONTHS)
    mean, at, rate = x.mean(axis=1), (x * d).mean(axis=1), d.mean(axis=1)
    ratio = at.mean() / rate.mean()
    parts = np.column_stack([mean, (at - ratio * rate) / rate.mean(), rate])
    values = np.array([mean.mean(), ratio, rate.mean()])
    return values, parts.std(axis=0, ddof=1) / np.sqrt(len(x))


def run(quick: bool) -> Study:
    """Simulate, estimate both stages and compare, at four betas; 250 data sets (8 if quick)."""
    study = Study("su_judd2012")
    table = expected(HERE)
    count = 8 if quick else FULL
    widen = float(np.sqrt(FULL / count))
    lines = [
        f"{count} data sets a beta; truth RC {TRUTH[0]}, theta11 {TRUTH[1]}",
        f"{'beta':>6} {'RC mean':>8} {'(SD)':>7} {'median':>7} {'theta11':>8} {'(SD)':>7}"
        f" {'median':>7} {'converged':>9}  {'published: RC, theta11'}",
    ]
    prints = [
        f"{'beta':>6} {'':>10} {'mean state':>10} {'at replacement':>14} {'frequency':>9}",
    ]
    for row in table["beta"]:
        beta = row["beta"]
        states, choices = simulated(beta, count, row["seed"])
        model = bus_model(beta)
        fits = [dc.NFXP(model, c).fit(cov_type="unadjusted") for c in data_sets(states, choices)]
        estimates = np.array([f.params.to_numpy() for f in fits])
        mean, sd = estimates.mean(axis=0), estimates.std(axis=0, ddof=1)
        median = np.median(estimates, axis=0)
        share = float(np.mean([f.converged for f in fits]))
        study.check(f"beta {beta}: share converged", share, 1, 0, "all runs")
        for k, what in enumerate(("RC", "theta11")):
            for name, got in (("mean", mean[k]), ("SD", sd[k])):
                low, high = table["accept"][f"{what}_{name}"]
                middle, half = (low + high) / 2, widen * (high - low) / 2
                kind = "range of three published studies and one independent run"
                study.check(f"beta {beta}: {what} {name}", got, middle, half, kind)
        got, se = fingerprints(states, choices)
        exact = exact_fingerprints(beta)
        for k, what in enumerate(("mean state", "mean state at replacement", "frequency")):
            kind = f"exact, {ERRORS:g} Monte Carlo standard errors"
            study.check(f"beta {beta}: {what}", got[k], exact[k], ERRORS * se[k], kind)
            if "fingerprints" in row:
                want, within = row["fingerprints"][k], row["fingerprints_tolerance"][k]
                claim = f"beta {beta}: {what}, expected over 120 months"
                study.check(claim, exact[k], want, within, row["fingerprints_kind"])
        published = ""
        if "published" in row:
            a, b, c, d = row["published"]
            published = f"{a} ({b}), {c} ({d})"
        lines.append(
            f"{beta:>6} {mean[0]:>8.3f} {sd[0]:>7.3f} {median[0]:>7.3f} {mean[1]:>8.3f}"
            f" {sd[1]:>7.3f} {median[1]:>7.3f} {share:>9.0%}  {published}".rstrip()
        )
        for name, (a, b, c) in (("simulated", got), ("exact", exact)):
            prints.append(f"{beta:>6} {name:>10} {a:>10.2f} {b:>14.2f} {c:>9.5f}")
    study.say("\n".join(lines))
    study.say("\n".join(prints))
    return study


if __name__ == "__main__":
    main(run)
