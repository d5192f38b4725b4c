"""A science centre's members: tiers, renewals and rejoining, with and without unobserved types."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main, shared_data

import dynchoice as dc

TIERS = ["none", "Family", "Enhanced"]
CLOCK = 3
BETA = 0.95


def decisions() -> pd.DataFrame:
    """Yearly decisions with the clock that the model's states need."""
    df = pd.read_csv(shared_data() / "museum" / "decisions_2014-01_2017-09.csv.gz")
    df = df[df["choice"] != "Elemental"].sort_values(["id", "t"])
    clock, last = [], (None, None, 0, "")
    for row in df.itertuples():
        follows = last[0] == row.id and last[1] == row.t - 1
        if row.tier_prev == "none":
            years = row.lapsed_years
        elif follows and last[3] == "member":
            years = last[2] + 1
        elif follows:
            years = 1
        else:
            years = row.spell_no
        clock.append(min(max(int(years), 1), CLOCK))
        last = (row.id, row.t, clock[-1], "none" if row.tier_prev == "none" else "member")
    return df.assign(clock=clock, exhibit=df["exhibit_hotwheels"])


def museum_model() -> dc.DDC:
    """Tier held, years in it (or out), and whether a travelling exhibit is on."""
    states = dc.StateSpace(tier=TIERS, clock=range(1, CLOCK + 1), exhibit=[0, 1])

    def following(tier: str, clock: int, choice: str) -> tuple[str, int]:
        same = (tier == "none") == (choice == "none")
        return choice, min(clock + 1, CLOCK) if same else 1

    laws = {
        ("tier", "clock"): dc.Deterministic(
            lambda level, choice: following(level[0], level[1], choice)
        ),
        "exhibit": dc.Markov(given=()),
    }
    rows = [
        {
            "tier": held,
            "clock": years,
            "choice": choice,
            "family": int(choice == "Family"),
            "enhanced": int(choice == "Enhanced"),
            "member": int(choice != "none"),
            "tenure": (years - 1) * int(held != "none" and choice != "none"),
            "away": -(years - 1) * int(held == "none" and choice != "none"),
            "rejoin": -int(held == "none" and choice != "none"),
            "switch": -int(held != "none" and choice not in ("none", held)),
        }
        for held in TIERS
        for years in range(1, CLOCK + 1)
        for choice in TIERS
    ]
    utility = dc.Utility.from_formula(
        "0 + family + enhanced + tenure + away + rejoin + switch + member:exhibit",
        states,
        TIERS,
        pd.DataFrame(rows),
    )
    return dc.DDC(
        states=states,
        choices=TIERS,
        utility=utility,
        transitions=dc.Transitions.factored(states, TIERS, laws),
        beta=BETA,
    )


def run(quick: bool) -> Study:
    """NFXP, NPL and CCPEM in one table; the same data in both forms."""
    study, want = Study("museum"), expected(HERE)
    model = museum_model()
    panel = dc.Panel(
        decisions(),
        member="id",
        time="t",
        choice="choice",
        columns={"tier": "tier_prev"},
        states=model.states,
        choices=TIERS,
    )
    study.say(str(panel.report))
    fits = {"NFXP": dc.NFXP(model, panel).fit(), "NPL": dc.NPL(model, panel).fit()}
    varying = ["family", "enhanced"]
    for types in (2,) if quick else (2, 3):
        # every history starts with the first membership, whose tier tells of the type
        estimator = dc.CCPEM(
            model,
            panel,
            types=types,
            varying=varying,
            shares="1 + I(1.0 * (tier == 'Enhanced'))",
        )
        fits[f"CCPEM {types}"] = estimator.fit(starts=5)
    study.say(str(dc.compare(fits)))
    two = fits["CCPEM 2"]
    study.say(f"type shares {two.type_shares.round(3)}, entropy of posteriors {two.entropy:.3f}")
    study.say(str(fits["NFXP"].identification()))
    gap = np.abs(fits["NPL"].theta - fits["NFXP"].theta) / fits["NFXP"].std_errors.to_numpy()
    study.check("NPL is NFXP, largest gap in s.e.", gap.max(), 0, 1e-6, "own oracle")
    study.check("member-years", panel.counts.nobs, want["rows"], 0, "own count")
    for name, bounds in want["bounds"].items():
        label, parameter = name.split(".")
        study.within(name, fits[label].params[parameter], *bounds, "own bounds")
    study.within(
        "types raise the log-likelihood by", two.loglik - fits["NFXP"].loglik, *want["gain"], "own"
    )
    sound = all(fits[k].converged for k in ("NFXP", "NPL", "CCPEM 2"))
    study.check("NFXP, NPL and two types converged", sound, 1, 0, "own oracle")
    return study


if __name__ == "__main__":
    main(run)
