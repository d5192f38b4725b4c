"""Houston bike share: annual, monthly or none each month, from 2017-04 on (the clean window)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main, shared_data
from houston.scheduled import scheduled

import dynchoice as dc

HERE = Path(__file__).resolve().parent
PLANS = ["none", "monthly", "annual"]
CLOCK = [f"annual_{m}" for m in range(14)]
CONTRACTS = ["none", "monthly", *CLOCK]
DECISION = ("annual_0", "annual_1")  # the inferred clock ends a spell at 1 or at 0
OFFERS = ["99/9", "annual 89"]
FORMULA = (
    "0 + monthly + annual + monthly:rides + annual:rides + monthly:veteran + annual:veteran"
    " + join_monthly + buy_annual + renew_annual"
)


def member_months() -> pd.DataFrame:
    """Member-months of the window with the state axes: contract, rides last month, tenure."""
    rows = pd.read_csv(shared_data() / "houston_bcycle" / "member_month.csv.gz")
    rows = rows[rows["period"] >= "2017-04"].copy()
    left = "annual_" + rows["annual_months_left"].astype(str)
    rows["contract"] = np.where(rows["plan_prev"] == "annual", left, rows["plan_prev"])
    rows["rides"] = np.digitize(rows["trips_prev"], [1, 4])  # 0, 1-3, 4 and more
    rows["tenure"] = np.digitize(rows["tenure_months"], [2, 12])  # 0-1, 2-11, 12 and more
    rows["offer"] = OFFERS[0]
    return rows[["uid", "period", "contract", "rides", "tenure", "offer", "plan"]]


def build(beta: float) -> dc.DDC:
    """The model: the clock's inferred jumps, rides and tenure are laws to estimate."""
    states = dc.StateSpace(offer=OFFERS, contract=CONTRACTS, rides=range(3), tenure=range(3))
    rows = []
    for contract in CONTRACTS:
        for plan in PLANS:
            rows.append(
                {
                    "contract": contract,
                    "choice": plan,
                    "monthly": int(plan == "monthly"),
                    "annual": int(plan == "annual"),
                    "join_monthly": -int(plan == "monthly" and contract != "monthly"),
                    "buy_annual": -int(plan == "annual" and contract in ("none", "monthly")),
                    "renew_annual": -int(plan == "annual" and contract in DECISION),
                }
            )
    veteran = pd.DataFrame({"tenure": range(3), "veteran": [0, 0, 1]})
    attributes = pd.DataFrame(rows).merge(veteran, how="cross")
    locked = np.isin(states.axis_codes("contract"), [CONTRACTS.index(c) for c in CLOCK[2:]])
    available = np.ones((states.size, 3), dtype=bool)
    available[np.ix_(locked, [0, 1])] = False
    laws = {
        "offer": dc.Fixed(),
        "contract": dc.Markov(("choice",)),
        "rides": dc.Markov(("choice",)),
        "tenure": dc.Markov(()),
    }
    return dc.DDC(
        states=states,
        choices=PLANS,
        utility=dc.Utility.from_formula(FORMULA, states, PLANS, attributes),
        transitions=dc.Transitions.factored(states, PLANS, laws),
        beta=beta,
        available=available,
    )


def switching(fit: dc.Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Observed and fitted choice shares by what the member came with."""
    n = fit.counts
    contract = fit.model.states.axis_codes("contract")
    rows = {
        "none": contract == 0,
        "monthly": contract == 1,
        "annual, at renewal": np.isin(contract, [2, 3]),
    }
    seen = {k: n[at].sum(axis=0) / n[at].sum() for k, at in rows.items()}
    model = {k: n[at].sum(axis=1) @ fit.ccp[at] / n[at].sum() for k, at in rows.items()}
    return (
        pd.DataFrame(seen, index=PLANS).T,
        pd.DataFrame(model, index=PLANS).T,
    )


def price_cut(fit: dc.Results, usd: float, alpha: float) -> np.ndarray:
    """Utils that a cheaper annual plan adds at purchase and renewal, if a dollar is ``alpha``."""
    states = fit.model.states
    offer, contract = states.axis_codes("offer"), states.axis_codes("contract")
    pays = np.isin(contract, [0, 1, 2, 3]) & (offer == 1)
    extra = np.zeros(fit.model.shape[:2])
    extra[pays, 2] = alpha * usd
    return extra


def run(quick: bool) -> Study:
    """Estimate, set the fitted switching matrix beside the observed one, forecast a price cut."""
    study = Study("houston")
    want = expected(HERE)
    panel = dc.Panel(
        member_months(),
        member="uid",
        time="period",
        choice="plan",
        states=build(0.99).states,
        choices=PLANS,
    )
    study.say(str(panel.report))
    for claim, value in want["panel"].items():
        study.check(claim, panel.report[claim], value, 0, "own oracle")
    fits = {}
    for beta in (0.99,) if quick else (0.95, 0.99, 0.995):
        fits[f"beta {beta:g}"] = dc.NFXP(build(beta), panel).fit()
    fit = fits["beta 0.99"]
    study.say(str(fit.summary()))
    study.say(str(fit.identification()))
    study.say(str(dc.compare(fits)))
    for name, f in fits.items():
        study.check(f"{name}: converged", f.converged, 1, 0, "own oracle")
    seen, model = switching(fit)
    both = pd.concat({"observed": seen, "fitted": model}, axis=1).round(4)
    study.say(both.to_string())
    gap = float(np.abs(seen - model).to_numpy().max())
    study.check("largest gap of the switching matrix", gap, 0, want["switching_gap"], "own oracle")
    shares = fit.counts.sum(axis=0) / fit.counts.sum()
    fitted = fit.counts.sum(axis=1) @ fit.ccp / fit.counts.sum()
    for j, plan in enumerate(PLANS):
        study.check(f"share of {plan}, fitted", fitted[j], shares[j], 1e-3, "own oracle")
    lines = []
    for alpha in (0.01, 0.03, 0.05):
        scenario = dc.Scenario(
            f"alpha {alpha:g}", utility=price_cut(fit, 10, alpha), offer={"offer": OFFERS[1]}
        )
        paths = dc.forecast(fit, scenario, start=panel, periods=12, draws=20 if quick else 200)
        last = paths.take_up.query("period == 12").set_index(["scenario", "choice"])
        study.check(f"{scenario.name}: converged", paths.converged, 1, 0, "own oracle")
        for plan in PLANS[1:]:
            base, new = last.loc[("baseline", plan)], last.loc[(scenario.name, plan)]
            lines.append(
                f"{scenario.name:<12}{plan:<9} {base['share']:7.2%} -> {new['share']:7.2%}"
                f"  [{new['lower']:.2%}, {new['upper']:.2%}]"
            )
        rise = (
            last.loc[(scenario.name, "annual"), "share"] - last.loc[("baseline", "annual"), "share"]
        )
        study.within(
            f"{scenario.name}: annual take-up rises (points)", 100 * rise, 0, 10, "own oracle"
        )
    scheduled(study, want["scheduled"], quick)
    study.say("Annual price 99 -> 89 USD from 2018-03, take-up in 2019-02:\n" + "\n".join(lines))
    return study


if __name__ == "__main__":
    main(run)
