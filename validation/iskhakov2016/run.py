"""Iskhakov et al. (2016), Table I: NFXP converges from every start, as fast at any beta."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main

import dynchoice as dc

HERE = Path(__file__).resolve().parent


def design() -> ModuleType:
    """The simulation design of Su and Judd, which the paper takes over."""
    spec = importlib.util.spec_from_file_location("su_judd", HERE.parent / "su_judd2012" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(quick: bool) -> Study:
    """250 data sets (2 if quick) x 5 starts at each beta; fits at all betas take turns."""
    study = Study("iskhakov2016")
    table = expected(HERE)
    bus = design()
    count = 2 if quick else 250
    betas, starts = table["betas"], table["starts"]
    models = [bus.bus_model(beta) for beta in betas]
    counts = [
        list(bus.data_sets(*bus.simulated(beta, count, table["seed"] + k)))
        for k, beta in enumerate(betas)
    ]
    shape = (len(betas), count, len(starts))
    seconds, iterations, evaluations = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    converged, estimates = np.zeros(shape, dtype=bool), np.zeros((*shape, 2))
    logliks, newton = np.zeros(shape), np.zeros(shape[:2])
    dc.NFXP(models[0], counts[0][0]).fit(start=starts[0])  # compiles the kernels
    for i in range(count):
        for j, start in enumerate(starts):
            for k, model in enumerate(models):
                begun = time.perf_counter()
                fit = dc.NFXP(model, counts[k][i]).fit(start=start, cov_type="opg")
                at = (k, i, j)
                seconds[at] = time.perf_counter() - begun
                converged[at], estimates[at] = fit.converged, fit.params
                logliks[at] = fit.loglik
                iterations[at] = fit.optimization["iterations"]
                evaluations[at] = fit.optimization["evaluations"]
                if j == 0:
                    newton[k, i] = dc.solve(fit.model, fit.params).stats["newton"]
    runs = count * len(starts)
    median = 1e3 * np.median(seconds, axis=(1, 2))
    lines = [
        f"{runs:,} runs a beta ({count} data sets x {len(starts)} starts); times of whole fits",
        f"{'beta':>6} {'converged':>13} {'median ms':>9} {'iterations':>10} {'evaluations':>11}"
        f" {'Newton steps a solve: mean':>26} {'most':>4}",
    ]
    for k, beta in enumerate(betas):
        done = int(converged[k].sum())
        lines.append(
            f"{beta:>6} {done:>5,} of {runs:>5,} {median[k]:>8.1f} {iterations[k].mean():>10.1f}"
            f" {evaluations[k].mean():>11.1f} {newton[k].mean():>26.1f} {newton[k].max():>4.0f}"
        )
        study.check(f"beta {beta}: share converged", converged[k].mean(), 1, 0, "published")
        study.within(
            f"beta {beta}: most Newton steps of a cold solve",
            newton[k].max(),
            1,
            table["most_newton_steps"],
            "published (order)",
        )
        spread = np.ptp(logliks[k], axis=1).max()
        kind = "same maximum from every start"
        study.check(f"beta {beta}: spread of logL over starts", spread, 0, 1e-6, kind)
        spread = (np.ptp(estimates[k], axis=1) / np.abs(estimates[k].mean(axis=1))).max()
        study.check(f"beta {beta}: spread of estimates over starts", spread, 0, 1e-5, kind)
    first, last = betas.index(table["flat"]["low"]), betas.index(table["flat"]["high"])
    ratio = median[last] / median[first]
    study.within(
        f"median time at beta {betas[last]} over that at {betas[first]}",
        ratio,
        0,
        table["flat"]["bound"],
        "published (order)",
    )
    study.say("\n".join(lines))
    return study


if __name__ == "__main__":
    main(run)
