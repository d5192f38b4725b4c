"""State aggregation by values against binning of states: Geng, Nassif and Manzanares (2023)."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main
from scipy.cluster.vq import kmeans2, vq

import dynchoice as dc

BETA, B, STEP, TOP = 0.9, 5.0, 0.01, 40.0
THETA = np.array([1.0, 0.0, 0.0])
CHOICES = ["replace", "run"]
NAMES = ["s0", "s1", "s2"]


def solved() -> tuple[np.ndarray, np.ndarray]:
    """Return the grid of mileage and the probability to run: running pays 5 - s, and s + U(1, 2).

    The paper's data come from a neural approximation; the model is solved exactly here.
    """
    grid = np.arange(0, TOP + STEP, STEP)
    ahead = np.minimum(grid[:, None] + np.linspace(1, 2, 201), TOP)
    weight = np.full(201, 1.0)
    weight[[0, -1]] = 0.5
    weight /= weight.sum()
    V = np.zeros(len(grid))
    for _ in range(400):
        expected_ahead = np.interp(ahead, grid, V) @ weight
        run, replace = B - grid + BETA * expected_ahead, BETA * V[0]
        V = np.logaddexp(run, replace)
    return grid, 1 / (1 + np.exp(replace - run))


def path(truth: tuple[np.ndarray, np.ndarray], rows: int, seed: int) -> pd.DataFrame:
    """Return one long path: mileage and two dummies redrawn each period."""
    grid, chance = truth
    rng = np.random.default_rng(seed)
    s, out = 0.0, np.empty((rows, 2))
    noise, draws = rng.random(rows), rng.uniform(1, 2, rows)
    for t in range(rows):
        run = noise[t] < np.interp(s, grid, chance)
        out[t] = s, run
        s = s + draws[t] if run else 0.0
    frame = pd.DataFrame(rng.uniform(-5, 5, (rows, 3)), columns=NAMES)
    frame["s0"] = out[:, 0]
    frame["plan"] = np.where(out[:, 1] == 1, "run", "replace")
    return frame.assign(bus=0, t=np.arange(rows))


def model() -> dc.RewardModel:
    """Return the model: running pays a known 5 and costs theta's."""
    attributes = pd.DataFrame({"choice": CHOICES, "run": [0.0, 1.0]})
    return dc.RewardModel(
        CHOICES, beta=BETA, anchor="replace", attributes=attributes,
        features="0 + I(-run * s0) + I(-run * s1) + I(-run * s2)", offset="0 + I(5 * run)",
    )  # fmt: skip


class Binned(dc.SAmQ):
    """The baseline: clusters of like states, not of like values; as in the paper, unscaled."""

    def _clusters(self, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        z = np.asarray(self.rows.x)
        centres, _ = kmeans2(z, clusters, minit="++", rng=np.random.default_rng(seed))
        used, labels = np.unique(vq(z, centres)[0], return_inverse=True)
        return labels, np.ones((len(used), 2))


def study_of(
    study: Study, truth: tuple[np.ndarray, np.ndarray], want: dict[str, object], draws: int,
    sizes: tuple[int, ...],
) -> None:  # fmt: skip
    """Mean squared error of theta by number of clusters, aggregated by values and by states."""
    errors: dict[tuple[str, int], list[float]] = {}
    for seed in range(draws):
        rows = dc.Trajectories(
            path(truth, 5000, seed), member="bus", time="t", choice="plan", features=NAMES,
            choices=CHOICES,
        )  # fmt: skip
        first = dc.DeepPQR(model(), rows, degree=3, pairs=False).fit()
        errors.setdefault(("PQR", 0), []).append(float(((first.vector - THETA) ** 2).mean()))
        for size in sizes:
            for name, kind in (("SAmQ", dc.SAmQ), ("states binned", Binned)):
                fit = kind(model(), rows, clusters=size, first=first).fit(cov_type="unadjusted")
                error = float(((fit.vector - THETA) ** 2).mean())
                errors.setdefault((name, size), []).append(error)
    table = pd.Series({k: np.mean(v) for k, v in errors.items()})
    spread = pd.Series({k: np.std(v, ddof=1) / np.sqrt(draws) for k, v in errors.items()})
    shown = pd.DataFrame({"MSE of theta": table, "s.e.": spread}).round(5)
    study.say(f"{draws} paths of 5,000 rows\n{shown.to_string()}")
    ten = table["SAmQ", 10]
    study.within("SAmQ at 10 clusters: MSE", ten, 0, float(want["samq_10"]), "published (order)")
    study.within("states binned over SAmQ at 10 clusters", table["states binned", 10] / ten,
                 float(want["times"]), 1e6, "published (order)")  # fmt: skip
    better = float(all(table["SAmQ", s] < table["states binned", s] for s in sizes))
    study.check("SAmQ is better at every number of clusters", better, 1, 0, "published (order)")
    falls = float(all(np.diff([table["SAmQ", s] for s in sizes if s <= 50]) < 0))
    study.check("its error falls with clusters up to 50", falls, 1, 0, "published (order)")


def run(quick: bool) -> Study:
    """Run the study."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    study, want = Study("samq2023"), expected(HERE)
    truth = solved()
    study_of(study, truth, want, 2 if quick else 30, (5, 10, 50) if quick else (5, 10, 50, 100))
    return study


if __name__ == "__main__":
    main(run)
