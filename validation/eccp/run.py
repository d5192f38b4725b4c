"""ECCP on a simulated industry: measurement error, instruments, small cells (papers.md 6.4)."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))
import eccp_dgp as dgp
from common import Study, expected, main

import dynchoice as dc

CHOICES = ["renew", "stay"]
NAMES = ["const", "k", "w"]
HUGE = 1e9


def model(law: np.ndarray) -> dc.DDC:
    """Agent states only: the market state enters through the regression."""
    x = np.zeros((dgp.STATES, 2, 3))
    x[:, 1, 0] = x[:, 1, 2] = 1.0
    x[:, 1, 1] = np.arange(dgp.STATES)
    return dc.DDC(
        states=dc.StateSpace(k=range(dgp.STATES)),
        choices=CHOICES,
        utility=dc.Utility.from_array(x, NAMES),
        transitions=dc.Transitions.dense(law),
        beta=dgp.BETA,
    )


def panel(own: dc.DDC, counts: np.ndarray) -> dc.Panel:
    """Counts by period as a weighted table of one region."""
    t, k, j = np.nonzero(counts)
    frame = pd.DataFrame(
        {
            "member": np.arange(len(t)),
            "t": t,
            "k": k,
            "choice": np.array(CHOICES)[j],
            "n": counts[t, k, j].astype(float),
            "region": "one",
        }
    )
    return dc.Panel(
        frame,
        member="member",
        time="t",
        choice="choice",
        states=own.states,
        choices=CHOICES,
        region="region",
        weights="n",
    )


def estimates(seed: int, periods: int, sizes: list[int]) -> dict[str, np.ndarray]:
    """One data set: exact CCPs with true and noisy market state, and sampled cells."""
    sample = dgp.simulate(periods, None, seed)
    own = model(sample.law)
    market = pd.DataFrame({"region": "one", "period": np.arange(periods), "w": sample.market})
    noisy = market.assign(w=sample.measured)
    exact = panel(own, sample.probabilities * HUGE)

    def fit(data: dc.Panel, table: pd.DataFrame, **options) -> np.ndarray:
        options = {"weights": "none", "minimum": 1, **options}
        return dc.ECCP(own, data, market=table, **options).fit(cov_type="robust").theta

    out = {
        "OLS, true w": fit(exact, market),
        "OLS, noisy w": fit(exact, noisy),
        "IV, lagged noisy w": fit(exact, noisy, instruments={"w": "lag"}),
    }
    for members in sizes:
        cells = panel(own, dgp.simulate(periods, members, seed).counts)
        out[f"raw frequencies, N={members}"] = fit(cells, market, correction="none")
        out[f"(n + 1/2) / (N + 1), N={members}"] = fit(cells, market)
        if members >= 200:
            out[f"jackknife, N={members}"] = fit(cells, market, correction="jackknife")
    return out


def run(quick: bool) -> Study:
    """20 data sets of 4,000 periods (2 of 2,000 when quick)."""
    from joblib import Parallel, delayed

    study, want = Study("eccp"), expected(HERE)
    sets, periods = (2, 2000) if quick else (20, 4000)
    sizes = [50, 200, 1000] if quick else [50, 200, 1000, 5000]
    jobs = Parallel(n_jobs=1 if quick else 2)(
        delayed(estimates)(seed, periods, sizes) for seed in range(sets)
    )
    rows = {
        name: np.concatenate(
            [
                np.mean([j[name] for j in jobs], axis=0),
                np.std([j[name] for j in jobs], axis=0, ddof=1)[2:],
            ]
        )
        for name in jobs[0]
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*NAMES, "sd of w"])
    study.say(f"{sets} data sets of {periods:,} periods\n{table.round(4).to_string()}")
    w = table["w"]
    scale = 2.0 if quick else 1.0
    for name, (value, tolerance) in want["slope"].items():
        study.check(f"{name}: slope of w", w[name], value, scale * tolerance, "papers.md 6.4")
    base = w["OLS, true w"]
    # paired within data sets: the bias of logs of frequencies falls with cell size as about 1/N
    bias = {n: float(w[f"raw frequencies, N={n}"] - base) for n in sizes}
    for n, (value, tolerance) in want["bias"].items():
        if int(n) in bias:
            what = f"raw frequencies, N={n}: bias of the slope"
            study.check(what, bias[int(n)], value, scale * tolerance, "papers.md 6.4")
    for n in sizes:
        mended = float(w[f"(n + 1/2) / (N + 1), N={n}"] - base)
        study.check(f"corrected, N={n}: bias of the slope", mended, 0, 0.005, "own oracle")
    falls = all(abs(bias[a]) > abs(bias[b]) for a, b in itertools.pairwise(sizes))
    study.check("the bias falls with cell size", falls, 1, 0, "papers.md 6.4")
    return study


if __name__ == "__main__":
    main(run)
