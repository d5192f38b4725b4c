"""Coverage of forecast bands over simulated panels of a small membership.

    python validation/forecast_coverage/run.py

Each panel is simulated from known parameters and engagement chains, estimated (chains in the first
stage), and forecast with bands at 95 %. The true path is the one that the true parameters and
chains give from the same members at the panel's end: what a forecast of these members is about.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main

import dynchoice as dc

HERE = Path(__file__).resolve().parent
PERIODS, MEMBERS, MONTHS = 12, 1500, 24
SCENARIO = dc.Scenario("dearer", prices={"monthly": 12.0}, starts=4, announced=2)


def truth() -> dc.Membership:
    """A monthly and a quarterly plan, two benefits, two menus."""
    return dc.Membership(
        plans=[
            dc.Plan("monthly", 10.0),
            dc.Plan("quarterly", 26.0, periods=3, cancel="at renewal"),
        ],
        benefits=[
            dc.Benefit("video", gain=0.15, stay=0.9, gain_outside=0.06, stay_outside=0.75),
            dc.Benefit("music", gain=0.10, stay=0.85, gain_outside=0.05, stay_outside=0.7),
        ],
        beta=0.98,
        menus={"old": {"monthly": 9.0, "quarterly": 23.0}, "new": {}},
        params={
            "member": 0.1,
            "video": 0.6,
            "music": 0.4,
            "price": 0.10,
            "joining cost": 1.5,
            "switching cost": 0.6,
            "paying upfront": 0.2,
        },
    )


def simulate(club: dc.Membership, seed: np.random.SeedSequence) -> pd.DataFrame:
    """Members' months: half at the old prices, then all at the new ones."""
    rng = np.random.default_rng(seed)
    model, theta = club.model(), club.theta()
    start = pd.DataFrame({"prices": ["old"], "video": 0, "music": 0, "contract": "none"})
    codes = np.repeat(model.states.codes(start), MEMBERS)
    burn = dc.simulate(model, params=theta, members=MEMBERS, periods=12, seed=rng, start=codes)
    first = dc.simulate(
        model, params=theta, members=MEMBERS, periods=MONTHS // 2, seed=rng, start=burn.after
    )
    levels = model.states.labels(first.after)
    levels["prices"] = "new"
    second = dc.simulate(
        model, params=theta, members=MEMBERS, periods=MONTHS // 2, seed=rng,
        start=model.states.codes(levels),
    )  # fmt: skip
    later = second.frame()
    later["period"] += MONTHS // 2
    return pd.concat([first.frame(), later], ignore_index=True)


ROUNDING = 1e-12
"""Where nothing is estimated (today's stocks) a band is a point, and the last bit is no miss."""


def held(true: pd.Series, low: pd.Series, high: pd.Series) -> pd.Series:
    """Return whether bands hold true values."""
    return (low - ROUNDING <= true) & (true <= high + ROUNDING)


def one_panel(club: dc.Membership, seed: np.random.SeedSequence, draws: int) -> dict[str, float]:
    """Whether the bands hold the true path, pointwise (a share) and whole (0 or 1)."""
    frame = simulate(club, seed)
    unknown = [
        replace(b, gain=None, stay=None, gain_outside=None, stay_outside=None)
        for b in club.benefits
    ]
    own = replace(club, benefits=unknown, params={})
    panel = own.panel(frame, member="member", time="period", plan="choice", contract="contract")
    fit = dc.NFXP(own.model(), panel).fit()
    f = dc.forecast(fit, SCENARIO, start=panel, periods=PERIODS, draws=draws, level=0.95,
                    long_run="none")  # fmt: skip
    last = panel.counts.at_period().sum(axis=0)
    here = club.model().transitions.push(last)
    true = dc.forecast(club, SCENARIO, start=here, periods=PERIODS, long_run="none")
    inside, whole = [], []
    table = f.take_up.merge(true.take_up, on=["scenario", "period", "choice"], suffixes=("", "_t"))
    for _, part in table.groupby(["scenario", "choice"]):
        inside += list(held(part["share_t"], part["lower"], part["upper"]))
        whole.append(
            bool(held(part["share_t"], part["lower_uniform"], part["upper_uniform"]).all())
        )
    wanted = ["revenue", "penetration", "surplus"]
    a, b = (x.outcomes[x.outcomes["measure"].isin(wanted)] for x in (f, true))
    both = a.merge(b, on=["scenario", "period", "measure"], suffixes=("", "_t"))
    money = {}
    for name, part in both.groupby("measure"):
        money[name] = float(held(part["value_t"], part["lower"], part["upper"]).mean())
    return {
        "take-up, pointwise": float(np.mean(inside)),
        "take-up, whole paths": float(np.mean(whole)),
        **money,
        "converged": float(fit.converged and f.converged),
    }


def run(quick: bool) -> Study:
    """Coverage over 200 panels (6 in the quick form, which checks that it runs)."""
    study, want = Study("forecast_coverage"), expected(HERE)
    panels, draws = (6, 60) if quick else (200, 200)
    club = truth()
    rows = [one_panel(club, seed, draws) for seed in np.random.SeedSequence(20261123).spawn(panels)]
    table = pd.DataFrame(rows)
    study.say(table.describe().T[["mean", "std", "min"]].round(4).to_string())
    study.check("panels that converged", table["converged"].mean(), 1, 0, "own oracle")
    low, high = want["quick" if quick else "coverage"]
    names = ["take-up, pointwise", "take-up, whole paths", "revenue", "penetration", "surplus"]
    for name in names:
        study.within(f"coverage at 95 %: {name}", table[name].mean(), low, high, "issue 4")
    return study


if __name__ == "__main__":
    main(run)
