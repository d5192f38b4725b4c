"""Structure against quasi-experiment: do they agree when they should, and disagree when not?"""

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
NAMES = ["member", "shipping", "grocery", "join"]
THETA = np.array([-0.55, 0.5, 0.6, 1.2])
REGIONS, MEMBERS, PERIODS, BURN = 16, 3200, 24, 24
ALWAYS = 6
ROLL_OUTS = (6, 6, 8, 8, 10, 12, 12, 14, 16, 18)
AHEAD = 4
FIRST_SEED = 70_000


def model(known: bool) -> dc.DDC:
    """Plan held, bundle in force, use of shipping and of groceries (with the parcels)."""
    states = dc.StateSpace(held=PLANS, bundle=["old", "new"], shipping=[0, 1], grocery=[0, 1])
    frame = states.frame()
    x = np.zeros((states.size, 2, len(NAMES)))
    x[:, 1, 0] = 1.0
    x[:, 1, 1] = frame["shipping"]
    x[:, 1, 2] = frame["grocery"] * (frame["bundle"] == "new")
    x[:, 1, 3] = -1.0 * (frame["held"] == "none")
    ship = [[[0.85, 0.15], [0.3, 0.7]], [[0.6, 0.4], [0.1, 0.9]]]
    off, few, many = (
        [[0.99, 0.01], [0.9, 0.1]],
        [[0.95, 0.05], [0.7, 0.3]],
        [[0.3, 0.7], [0.1, 0.9]],
    )
    some = [[0.8, 0.2], [0.4, 0.6]]
    grocery = [[[off, off], [few, some]], [[off, off], [few, many]]]
    laws = {
        "held": dc.Deterministic(lambda level, choice: choice),
        "bundle": dc.Fixed(),
        "shipping": dc.Markov(("choice",), ship if known else None),
        "grocery": dc.Markov(("choice", "bundle", "shipping"), grocery if known else None),
    }
    return dc.DDC(
        states=states,
        choices=PLANS,
        utility=dc.Utility.from_array(x, NAMES),
        transitions=dc.Transitions.factored(states, PLANS, laws),
        beta=0.95,
    )


def draw(seed: int, anticipated: bool) -> pd.DataFrame:
    """Regions that always had the new bundle, and regions that get it one after the other.

    With anticipation members choose, months ahead of the roll-out, as if it had come.
    """
    true = model(True)
    rng = np.random.default_rng(seed)
    P = dc.solve(true, THETA).ccp
    region = rng.integers(0, REGIONS, MEMBERS)
    starts = np.r_[np.full(ALWAYS, -BURN), np.array(ROLL_OUTS)][region]
    axes = true.states
    held, ship = np.zeros(MEMBERS, int), rng.integers(0, 2, MEMBERS)
    grocery = np.zeros(MEMBERS, int)
    laws = {law.name: law for law in true.transitions.bound}
    rows = []
    for t in range(-BURN, PERIODS):
        bundle = (t >= starts).astype(int)
        state = np.ravel_multi_index((held, bundle, ship, grocery), axes.shape)
        seen = state
        if anticipated:
            early = (t >= starts - AHEAD).astype(int)
            seen = np.ravel_multi_index((held, early, ship, grocery), axes.shape)
            # what they expect to use counts as if it were used already
            hope = (early > bundle) & (ship == 1)
            seen = np.where(hope, np.ravel_multi_index((held, early, ship, 1), axes.shape), seen)
        choice = (rng.random(MEMBERS) < P[seen, 1]).astype(int)
        if t >= 0:
            rows.append(
                pd.DataFrame(
                    {
                        "member": np.arange(MEMBERS),
                        "t": t,
                        "region": region,
                        "held": np.array(PLANS)[held],
                        "bundle": np.array(["old", "new"])[bundle],
                        "shipping": ship,
                        "grocery": grocery,
                        "plan": np.array(PLANS)[choice],
                    }
                )
            )
        parents = bundle * 2 + ship
        p_ship = laws["shipping"].table[choice, 0, ship, 1]
        p_grocery = laws["grocery"].table[choice, parents, grocery, 1]
        ship, grocery = (
            (rng.random(MEMBERS) < p_ship).astype(int),
            (rng.random(MEMBERS) < p_grocery).astype(int),
        )
        held = choice
    return pd.concat(rows, ignore_index=True)


def one(seed: int, anticipated: bool) -> dict:
    """Fit, check and report on one panel."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    own = model(False)
    panel = dc.Panel(
        draw(FIRST_SEED + seed, anticipated),
        member="member",
        time="t",
        choice="plan",
        region="region",
        states=own.states,
        choices=PLANS,
    )
    fit = dc.NFXP(own, panel).fit()
    check = dc.causal_check(fit, panel).checks[0]
    report = fit.identification(panel)
    return {
        "anticipated": anticipated,
        "effect": check.effect,
        "structural": check.structural,
        "difference": check.difference,
        "difference_se": check.difference_se,
        "pval": check.pval,
        "pretrend": check.pretrend_pval,
        "pair": "+".join(report.hardest(["shipping", "grocery"])),
        "truth_pval": float(fit.wald_test(np.eye(4), THETA).pval if not anticipated else np.nan),
    }


def run(quick: bool) -> Study:
    """200 panels that follow the model and 60 with anticipation (6 and 4 when quick)."""
    from joblib import Parallel, delayed

    study = Study("causal")
    right, wrong = (6, 4) if quick else (200, 60)
    tasks = [(i, False) for i in range(right)] + [(i, True) for i in range(wrong)]
    jobs = Parallel(n_jobs=1 if quick else 2)(delayed(one)(*task) for task in tasks)
    table = pd.DataFrame(jobs)
    shown = table.groupby("anticipated").agg(
        panels=("pval", "size"),
        effect=("effect", "mean"),
        structural=("structural", "mean"),
        difference=("difference", "mean"),
        sd=("difference", "std"),
        mean_se=("difference_se", "mean"),
        rejected=("pval", lambda p: float((p < 0.05).mean())),
        pretrend_rejected=("pretrend", lambda p: float((p < 0.05).mean())),
    )
    study.say(shown.round(4).T.to_string())
    own = table[~table["anticipated"]]
    rate = float((own["pval"] < 0.05).mean())
    bound = 3 * np.sqrt(0.05 * 0.95 / right)
    study.within("rejects a right model at 5%", rate, 0, 0.05 + bound, "nominal rate, 3 s.e.")
    if not quick:
        study.within(
            "rejects a right model at 5%, not too rarely", rate, 0.05 - bound, 1, "nominal"
        )
        truth = float((own["truth_pval"] < 0.05).mean())
        study.within("Wald test of the truth at 5%", truth, 0.05 - bound, 0.05 + bound, "nominal")
    other = table[table["anticipated"]]
    power = float((other["pval"] < 0.05).mean())
    study.within("rejects a model that knows no anticipation", power, 0.5, 1, "own design")
    early = float((other["pretrend"] < 0.05).mean())
    study.within("pre-trends show the anticipation", early, 0.5, 1, "own design")
    return study


if __name__ == "__main__":
    main(run)
