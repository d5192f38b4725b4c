"""Make club.csv: a simulated fitness club with three plans, for the README's example.

    python data/club/make.py

Columns: member, month (YYYY-MM), plan, visits (0 none .. 3 often), classes (0/1). The true
parameters stand below; nothing else is random but the seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import dynchoice as dc

HERE = Path(__file__).parent
PLANS = ["none", "basic", "premium"]
TRUTH = {"basic": -1.2, "premium": -2.0, "paid:visits": 0.55, "premium:classes": 0.9, "join": 1.5}
MEMBERS, MONTHS, SEED = 1500, 18, 7
FORMULA = "0 + basic + premium + paid:visits + premium:classes + join"


def features() -> pd.DataFrame:
    """What each plan is, and whether taking it means joining."""
    rows = [
        {
            "held": held,
            "choice": plan,
            "basic": int(plan == "basic"),
            "premium": int(plan == "premium"),
            "paid": int(plan != "none"),
            "join": -int(held == "none" and plan != "none"),
        }
        for held in PLANS
        for plan in PLANS
    ]
    return pd.DataFrame(rows)


def true_model() -> dc.DDC:
    """The model with its true laws of motion."""
    states = dc.StateSpace(held=PLANS, visits=range(4), classes=[0, 1])
    drift = {"none": (0.45, 0.10), "basic": (0.20, 0.30), "premium": (0.15, 0.35)}
    visits = np.zeros((3, 4, 4))
    for j, (down, up) in enumerate(drift.values()):
        for i in range(4):
            visits[j, i, max(i - 1, 0)] += down
            visits[j, i, min(i + 1, 3)] += up
            visits[j, i, i] += 1 - down - up
    classes = [[[0.95, 0.05], [0.5, 0.5]], [[0.9, 0.1], [0.3, 0.7]], [[0.75, 0.25], [0.1, 0.9]]]
    laws = {
        "held": dc.Deterministic(lambda level, choice: choice),
        "visits": dc.Markov(("choice",), visits),
        "classes": dc.Markov(("choice",), classes),
    }
    return dc.DDC(
        states=states,
        choices=PLANS,
        utility=dc.Utility.from_formula(FORMULA, states, PLANS, features()),
        transitions=dc.Transitions.factored(states, PLANS, laws),
        beta=0.99,
    )


def make(seed: int = SEED, members: int = MEMBERS) -> pd.DataFrame:
    """The club's records: 12 months of history before the first month shown."""
    model = true_model()
    paths = dc.simulate(model, params=TRUTH, members=members, periods=MONTHS + 12, seed=seed)
    table = paths.frame()
    table = table[table["period"] >= 12]
    month = pd.period_range("2023-01", periods=MONTHS, freq="M").astype(str)
    table["month"] = month[table["period"] - 12]
    table = table.rename(columns={"choice": "plan"})
    return table[["member", "month", "plan", "visits", "classes"]]


def main() -> int:
    table = make()
    table.to_csv(HERE / "club.csv", index=False)
    print(f"{HERE / 'club.csv'}: {len(table):,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
