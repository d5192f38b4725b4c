"""Coverage on the data/prime model: are true parameters inside 95% intervals 95% of the time?"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, main

import dynchoice as dc
from dynchoice.run.config import load_run

PRIME = Path(__file__).resolve().parents[2] / "data" / "prime"
FIRST_SEED = 9_000


def maker():
    """The script that makes the sample panel."""
    spec = importlib.util.spec_from_file_location("prime_make", PRIME / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_panel(seed: int) -> pd.DataFrame:
    """Simulate a panel from truth.toml, estimate every segment as the run file says."""
    make = maker()
    truth = make.truth()
    frame = make.make(seed)
    run = load_run(PRIME / "run.toml")
    panel = dc.Panel(
        frame,
        member="member",
        time="month",
        choice="plan",
        segment="segment",
        states=run.states,
        choices=make.CHOICES,
    )
    rows = []
    for segment in panel.segments:
        fit = dc.NFXP(run.model(segment), panel.counts.segment(segment)).fit()
        true = [truth["segments"][segment]["params"][p] for p in make.PARAMS]
        interval = fit.conf_int(0.95)
        inside = (interval["lower"] < true) & (true < interval["upper"])
        for k, name in enumerate(make.PARAMS):
            rows.append(
                {
                    "seed": seed,
                    "segment": segment,
                    "parameter": name,
                    "inside": bool(inside.iloc[k]),
                    "z": float((fit.params.iloc[k] - true[k]) / fit.std_errors.iloc[k]),
                    "converged": fit.converged,
                }
            )
    return pd.DataFrame(rows)


def run(quick: bool) -> Study:
    """200 panels (4 when quick): rate by parameter, over four segments."""
    from joblib import Parallel, delayed

    study = Study("prime_coverage")
    panels = 4 if quick else 200
    jobs = Parallel(n_jobs=2)(delayed(one_panel)(FIRST_SEED + i) for i in range(panels))
    table = pd.concat(jobs, ignore_index=True)
    study.check("share of fits converged", table["converged"].mean(), 1, 0, "own oracle")
    rates = table.groupby("parameter", sort=False).agg(
        rate=("inside", "mean"), mean_z=("z", "mean"), sd_z=("z", "std")
    )
    study.say(
        f"{panels} panels x {table['segment'].nunique()} segments\n{rates.round(4).to_string()}"
    )
    n = panels * table["segment"].nunique()
    bound = 3 * float(np.sqrt(0.95 * 0.05 / n))
    for name, rate in rates["rate"].items():
        study.check(f"coverage of {name}", rate, 0.95, bound, "nominal rate, 3 standard errors")
    study.check("coverage, all parameters", table["inside"].mean(), 0.95, bound, "nominal rate")
    by_segment = table.groupby("segment")["inside"].mean()
    study.say(by_segment.round(4).to_string())
    return study


if __name__ == "__main__":
    main(run)
