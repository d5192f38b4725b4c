"""Rust (1987), Tables IX and X: optimal replacement of bus engines, all groups, two betas."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main, shared_data

import dynchoice as dc

HERE = Path(__file__).resolve().parent
CHOICES = ["keep", "replace"]
GROUPS = {"1-3": (1, 2, 3), "4": (4,), "1-4": (1, 2, 3, 4)}
MAX_STEP = {
    (90, "1-3"): 2,
    (90, "4"): 2,
    (90, "1-4"): 2,
    (175, "1-3"): 4,
    (175, "4"): 5,
    (175, "1-4"): 5,
}


def bus_panel(groups: tuple[int, ...], bins: int) -> dc.Panel:
    """The panel as Rust used it: the first month of a bus informs transitions, not choices."""
    rows = pd.read_csv(shared_data() / "rust_bus.csv.gz")
    rows = rows[rows["group"].isin(groups)].copy()
    rows["bus"] = 100_000 * rows["group"] + rows["bus_id"]
    rows["decides"] = (rows["period"] > 0).astype(int)
    rows["choice"] = np.where(rows["replaced"] == 1, "replace", "keep")
    return dc.Panel(
        rows,
        member="bus",
        time="period",
        choice="choice",
        states=dc.StateSpace(mileage=range(bins)),
        choices=CHOICES,
        columns={"mileage": f"state_{bins}"},
        decision="decides",
    )


def bus_model(bins: int, beta: float, max_step: int) -> dc.DDC:
    """Linear cost 0.001 theta11 x, replacement cost RC; increments estimated (section IV)."""
    states = dc.StateSpace(mileage=range(bins))
    attributes = pd.DataFrame({"choice": CHOICES, "kept": [-0.001, 0.0], "RC": [0.0, -1.0]})
    utility = dc.Utility.from_formula("0 + RC + kept:mileage", states, CHOICES, attributes)
    # after a replacement Rust counts bins from one: see Increment
    law = {"mileage": dc.Increment(max_step, reset_on="replace", after_reset=1)}
    transitions = dc.Transitions.factored(states, CHOICES, law)
    return dc.DDC(
        states=states, choices=CHOICES, utility=utility, transitions=transitions, beta=beta
    )


def run(quick: bool) -> Study:
    """Estimate every column of the two tables, jointly (as Rust did) and in two steps."""
    study = Study("rust1987")
    table = expected(HERE)
    lines = [
        f"{'bins':>4} {'groups':>6} {'beta':>6} {'RC':>9} {'se':>8} {'theta11':>9} {'se':>8}"
        f" {'full logL':>12} {'choice logL':>12}"
    ]
    for row in table["table"]:
        bins, name, beta = row["bins"], row["groups"], row["beta"]
        if quick and name != "4":
            continue
        panel = bus_panel(GROUPS[name], bins)
        model = bus_model(bins, beta, MAX_STEP[bins, name])
        two_step = dc.NFXP(model, panel).fit(cov_type="opg", strict=True)
        joint = dc.NFXP(model, panel, transitions="joint").fit(cov_type="opg", strict=True)
        label = f"{bins} bins, groups {name}, beta {beta:g}"
        for what, index in (("RC", 0), ("theta11", 1)):
            slip = f"{what}_print" in row
            kind = "published (slip in print corrected)" if slip else "published"
            study.check(f"{label}: {what}", joint.params.iloc[index], row[what], 2e-3, kind)
            if f"se_{what}" in row:
                study.check(
                    f"{label}: se {what}",
                    joint.std_errors.iloc[index],
                    row[f"se_{what}"],
                    2e-3,
                    row["se_kind"],
                )
            if f"own_se_{what}" in row:
                own = row[f"own_se_{what}"]
                study.check(
                    f"{label}: se {what}",
                    joint.std_errors.iloc[index],
                    own,
                    3e-3 * own,
                    "other software",
                )
        full = joint.loglik + joint.loglik_transitions
        study.check(
            f"{label}: full logL", full, row["loglik"], 2e-3, row.get("loglik_kind", "published")
        )
        if "choice_loglik" in row:
            study.check(
                f"{label}: choice logL (two-step)",
                two_step.loglik,
                row["choice_loglik"],
                1e-5,
                "other software",
            )
        lines.append(
            f"{bins:>4} {name:>6} {beta:>6} {joint.params.iloc[0]:>9.4f}"
            f" {joint.std_errors.iloc[0]:>8.4f} {joint.params.iloc[1]:>9.4f}"
            f" {joint.std_errors.iloc[1]:>8.4f} {full:>12.4f} {two_step.loglik:>12.6f}"
        )
        for k, want in enumerate(row.get("theta3", [])):
            got = joint.first_stage[0]["probabilities"][0][k]
            study.check(f"{label}: theta3{k}", got, want, 2e-4, "published")
    study.say("\n".join(lines))
    return study


if __name__ == "__main__":
    main(run)
