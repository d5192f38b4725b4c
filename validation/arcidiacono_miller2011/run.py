"""Arcidiacono and Miller (2011), Table 1: bus engines with a type that is seen, or is not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))
import bus_dgp as dgp
from common import Study, expected, main

import dynchoice as dc

CHOICES = ["replace", "keep"]
PERIODS = dgp.HORIZON - dgp.FIRST_SEEN + 1
TERMS = "(mileage + I(mileage**2) + route + I(route**2) + mileage:route) * (period + I(period**2))"
NAMES = ("theta0", "theta1", "theta2", "beta")


def bus_model(seen: bool) -> dc.DDC:
    """The model of the periods observed; the type is a state axis where it is seen."""
    from scipy.sparse import block_diag, csr_array

    law = dgp.mileage_law()
    keep = block_diag([csr_array(F) for F in law], format="csr")
    replace = block_diag([csr_array(np.tile(F[0], (len(F), 1))) for F in law], format="csr")
    axes = {"route": range(len(law)), "mileage": range(law.shape[1])}
    copies = 2 if seen else 1
    matrices = [block_diag([m] * copies, format="csr") for m in (replace, keep)]
    states = dc.StateSpace(**({"s": [0, 1]} if seen else {}), **axes)
    S = states.size
    frame = states.frame()
    x = np.zeros((S, 2, 3 if seen else 2))
    x[:, 1, 0] = 1.0
    x[:, 1, 1] = dgp.MILEAGE[frame["mileage"]]
    names = ["theta0", "theta1"]
    if seen:
        x[:, 1, 2] = frame["s"]
        names.append("theta2")
    return dc.DDC(
        states=states,
        choices=CHOICES,
        utility=dc.Utility.from_array(x, names),
        transitions=dc.Transitions.sparse(matrices),
        beta=dgp.BETA,
        horizon=PERIODS,
    )


def bus_panel(model: dc.DDC, seed: int, solved: np.ndarray) -> dc.Panel:
    """One simulated data set of 1,000 buses."""
    frame = dgp.simulate(seed=seed, probabilities=solved)
    return dc.Panel(
        frame, member="bus", time="t", choice="choice", states=model.states, choices=CHOICES
    )


def seen_fit(model: dc.DDC, panel: dc.Panel) -> np.ndarray:
    """CCP with the type observed: theta0, theta1, theta2, beta."""
    fit = dc.CCP(
        model,
        panel,
        first_stage=f"({TERMS}) * s",
        valuation="finite-dependence",
        dependence=1,
        beta="estimate",
    ).fit(cov_type="opg", strict=True)
    return fit.vector


def unseen_fit(model: dc.DDC, panel: dc.Panel) -> np.ndarray:
    """CCP-EM with the type unobserved, in the order of NAMES."""
    estimator = dc.CCPEM(
        model,
        panel,
        types=2,
        varying=["theta0"],
        inner="CCP",
        valuation="finite-dependence",
        dependence=1,
        beta="estimate",
        first_stage=TERMS,
        shares="1 + mileage + route",
    )
    fit = estimator.fit(starts=1, cov_type="opg", strict=True)
    p = fit.params
    return np.array([p["theta0[0]"], p["theta1"], p["theta0[1]"] - p["theta0[0]"], p["beta"]])


def one(seed: int, models: dict[str, dc.DDC], solved: np.ndarray) -> list[dict]:
    """Estimate one data set both ways."""
    rows = []
    for label, fit in (("seen", seen_fit), ("unseen", unseen_fit)):
        panel = bus_panel(models[label], seed, solved)
        start = time.process_time()
        estimate = fit(models[label], panel)
        seconds = time.process_time() - start
        rows.append({"type": label, "seconds": seconds, **dict(zip(NAMES, estimate, strict=True))})
    return rows


def run(quick: bool) -> Study:
    """50 data sets (2 when quick), as in the paper."""
    from joblib import Parallel, delayed

    study, want = Study("arcidiacono_miller2011"), expected(HERE)
    sets = 2 if quick else 50
    models = {"seen": bus_model(True), "unseen": bus_model(False)}
    solved = dgp.solve()
    jobs = Parallel(n_jobs=1 if quick else 2)(delayed(one)(i, models, solved) for i in range(sets))
    table = pd.DataFrame([r for rows in jobs for r in rows])
    for label, own in table.groupby("type"):
        column = want[label]
        names = list(NAMES)
        shown = pd.DataFrame(
            {
                "mean": own[names].mean(),
                "sd": own[names].std(),
                "published mean": column["mean"],
                "published sd": column["sd"],
            }
        )
        study.say(
            f"type {label}: {len(own)} data sets, median {own['seconds'].median():.1f} CPU s each"
            f" (published: {column['seconds']:.0f} s)\n{shown.round(4).to_string()}"
        )
        for k, name in enumerate(names):
            published, sd = column["mean"][k], column["sd"][k]
            # two means of simulations differ by chance: ours of `sets`, theirs of 50
            error = 3 * sd * np.sqrt(1 / sets + 1 / column["sets"])
            target = column.get("replicated", {}).get(name, published)
            kind = "published" if target == published else "other software (papers.md 5.5)"
            study.check(f"type {label}: mean {name}", own[name].mean(), target, error, kind)
            if target != published:
                gap = own[name].mean() - published
                study.say(f"{name} with the type {label}: {gap:+.4f} from the printed {published}")
            if not quick:
                low, high = (1 - column["sd_band"]) * sd, (1 + column["sd_band"]) * sd
                study.within(f"type {label}: sd {name}", own[name].std(), low, high, "published")
        study.within(
            f"type {label}: median seconds", own["seconds"].median(), 0, column["limit"], "speed"
        )
    return study


if __name__ == "__main__":
    main(run)
