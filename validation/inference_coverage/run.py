"""Coverage of 95% intervals over simulated panels: NFXP, NPL, CCP by finite dependence, CCPEM."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, main

import dynchoice as dc

PLANS = ["none", "monthly"]
NAMES = ["member", "use", "price", "join"]
THETA = np.array([-0.6, 0.9, 0.5, 0.8])
APART = 1.6
SHARE = 0.4
MEMBERS, PERIODS = 500, 12
FIRST_SEED = 40_000


def club(known: bool) -> dc.DDC:
    """Plan held, use (three levels, more of it as a member), a price that differs between members.

    Use depends on membership, so no choice renews; two-period finite dependence holds, with
    negative weights.
    """
    states = dc.StateSpace(held=PLANS, price=[1, 2], use=[0, 1, 2])
    frame = states.frame()
    x = np.zeros((states.size, 2, len(NAMES)))
    x[:, 1, 0] = 1.0
    x[:, 1, 1] = frame["use"]
    x[:, 1, 2] = -frame["price"]
    x[:, 1, 3] = -1.0 * (frame["held"] == "none")
    use = [
        [[0.85, 0.12, 0.03], [0.4, 0.5, 0.1], [0.15, 0.45, 0.4]],
        [[0.6, 0.3, 0.1], [0.15, 0.6, 0.25], [0.05, 0.2, 0.75]],
    ]
    laws = {
        "held": dc.Deterministic(lambda level, choice: choice),
        "price": dc.Fixed(),
        "use": dc.Markov(("choice",), probabilities=use if known else None),
    }
    return dc.DDC(
        states=states,
        choices=PLANS,
        utility=dc.Utility.from_array(x, NAMES),
        transitions=dc.Transitions.factored(states, PLANS, laws),
        beta=0.95,
    )


def draw(seed: int, mixed: bool) -> pd.DataFrame:
    """One panel; with types, a share of the members likes membership more."""
    model = club(True)
    rng = np.random.default_rng(seed)
    second = rng.binomial(MEMBERS, SHARE) if mixed else 0
    sizes = [MEMBERS - second, second]
    frames, first = [], 0
    outside = np.flatnonzero(model.states.axis_codes("held") == 0)
    for q, size in enumerate(sizes):
        if not size:
            continue
        theta = THETA + np.array([APART * q, 0, 0, 0])
        start = rng.choice(outside, size)
        part = dc.simulate(
            model, params=theta, members=size, periods=PERIODS, seed=rng, start=start
        ).frame()
        part["member"] += first
        first += size
        frames.append(part)
    return pd.concat(frames, ignore_index=True)


def as_panel(frame: pd.DataFrame, model: dc.DDC) -> dc.Panel:
    """The simulated rows as a panel."""
    return dc.Panel(
        frame, member="member", time="period", choice="choice", states=model.states, choices=PLANS
    )


def one(seed: int) -> list[dict]:
    """Estimate one panel without types three ways, and one with types by CCPEM."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    model = club(False)
    panel = as_panel(draw(FIRST_SEED + seed, False), model)
    dependent = dc.CCP(
        model, panel, valuation="finite-dependence", dependence=2, first_stage="frequencies"
    )
    fits = {
        "NFXP": dc.NFXP(model, panel).fit(),
        "NPL": dc.NPL(model, panel).fit(),
        "CCP, finite dependence": dependent.fit(),
    }
    truth = dict(zip(NAMES, THETA, strict=True))
    rows = []

    def add(label: str, names, estimates, errors, truths, converged: bool) -> None:
        for name, b, se, true in zip(names, estimates, errors, truths, strict=True):
            inside = abs(b - true) <= 1.959964 * se
            rows.append(
                {
                    "estimator": label,
                    "parameter": name,
                    "inside": inside,
                    "error": b - true,
                    "se": se,
                    "converged": converged,
                }
            )

    for label, fit in fits.items():
        add(label, NAMES, fit.theta, fit.std_errors, truth.values(), fit.converged)
    naive = np.sqrt(np.diag(np.linalg.inv(-fits["CCP, finite dependence"].hessian)))
    label = "CCP, finite dependence, naive errors"
    add(label, NAMES, fits["CCP, finite dependence"].theta, naive, truth.values(), True)
    panel = as_panel(draw(FIRST_SEED + seed, True), model)
    mixture = dc.CCPEM(model, panel, types=2, varying=["member"]).fit(starts=2)
    truths = {
        "member[0]": THETA[0],
        "member[1]": THETA[0] + APART,
        "use": THETA[1],
        "price": THETA[2],
        "join": THETA[3],
        "share[1]": float(np.log(SHARE / (1 - SHARE))),
    }
    p = mixture.params
    add(
        "CCPEM",
        list(p.index),
        p,
        mixture.std_errors,
        [truths[n] for n in p.index],
        mixture.converged,
    )
    return rows


def run(quick: bool) -> Study:
    """500 panels (5 when quick)."""
    from joblib import Parallel, delayed

    study = Study("inference_coverage")
    panels = 5 if quick else 500
    jobs = Parallel(n_jobs=1 if quick else 2)(delayed(one)(i) for i in range(panels))
    table = pd.DataFrame([r for rows in jobs for r in rows])
    own = table.groupby(["estimator", "parameter"], sort=False)
    shown = own.agg(
        coverage=("inside", "mean"),
        bias=("error", "mean"),
        sd=("error", "std"),
        mean_se=("se", "mean"),
        converged=("converged", "mean"),
    )
    shown["se / sd"] = shown["mean_se"] / shown["sd"]
    study.say(f"{panels} panels of {MEMBERS} members x {PERIODS}\n{shown.round(4).to_string()}")
    rates = table.groupby("estimator", sort=False)["inside"].mean()
    study.say(f"coverage over all parameters\n{rates.round(4).to_string()}")
    naive = "CCP, finite dependence, naive errors"
    slack = 4 * np.sqrt(0.95 * 0.05 / panels)
    for label, rate in rates.items():
        if label == naive:
            continue
        low, high = (0.93, 0.97) if not quick else (0.95 - slack, 1.0)
        study.within(f"coverage, {label}", rate, low, high, "nominal rate")
        for name, r in (
            table[table["estimator"] == label].groupby("parameter")["inside"].mean().items()
        ):
            bound = slack * (0.75 if not quick else 1.0)  # 3 standard errors of the simulation
            study.within(
                f"coverage, {label}, {name}",
                r,
                0.95 - bound,
                1.0 if quick else 0.95 + bound,
                "nominal rate, 3 standard errors",
            )
        sound = table[table["estimator"] == label]["converged"].mean()
        study.within(
            f"share converged, {label}", sound, 0.99 if not quick else 0.8, 1, "own oracle"
        )
    # errors that treat the first stage as known are wrong, here too large by far (estimated
    # probabilities offset each other's errors); aguirregabiria_mira2002 shows them too small
    ratio = shown.loc[naive, "se / sd"].max()
    study.within("naive errors over the simulated spread, worst", ratio, 1.2, 20, "own oracle")
    return study


if __name__ == "__main__":
    main(run)
