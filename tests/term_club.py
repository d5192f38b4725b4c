"""Programmes of contracts with a term: prices kept, three regions, two kinds of customers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

import dynchoice as dc

BETA, TASTE, ALPHA, JOINING, OLD, NEW = 0.9, 0.1, 0.1, 0.8, 12.0, 18.0
TERM = dc.Membership(
    [dc.Plan("term", OLD, periods=3, refund="prorated")], beta=BETA, costs=("joining cost",),
    params={"member": TASTE, "price": ALPHA, "joining cost": JOINING},
)  # fmt: skip
dear = {"prices": {"term": NEW}}
FILMS = dc.Benefit("films", 0.2, 0.9, 0.1, 0.7, cost=0.4)


def path(found: dc.Forecast, scenario: str, name: str) -> np.ndarray:
    t = found.outcomes
    return t[(t.scenario == scenario) & (t.measure == name)]["value"].to_numpy()


def taken(found: dc.Forecast, scenario: str, choice: str, **where: str) -> pd.Series:
    t = found.take_up
    for column, value in {"scenario": scenario, "choice": choice, **where}.items():
        t = t[t[column] == value]
    return t.set_index("period")["share"]


CLUB = dc.Membership(
    [dc.Plan("monthly", 10), dc.Plan("term", 24, periods=3)], beta=0.95, costs=("joining cost",),
    menus={"now": {}, "cheap": {"monthly": 8}},
    params={"member": 0.3, "price": 0.1, "joining cost": 1.2},
)  # fmt: skip


@cache
def panel(region: str | None = "region") -> dc.Panel:
    """Two kinds of customers, 150 each, ten months of 2024, three regions (one has it cheap)."""
    frames, place = [], np.arange(150) % 3
    offers = pd.DataFrame({"prices": ["now", "cheap"], "contract": "none"})
    first = CLUB.states.codes(offers)[(place == 0).astype(int)]
    for kind, taste in enumerate((0.3, 1.8)):
        options = {"members": 150, "periods": 10, "seed": 5 + kind, "start": first}
        theta = {**CLUB.params, "member": taste}
        frame = dc.simulate(CLUB.model(), params=theta, **options).frame()
        frame["region"] = np.array(["a", "b", "c"])[place[frame["member"]]]
        frame["month"] = pd.PeriodIndex(pd.Period("2024-01", "M") + frame["period"])
        frames.append(frame.assign(member=frame["member"] + 150 * kind))
    names = {"member": "member", "time": "month", "plan": "choice", "contract": "contract"}
    return replace(CLUB, params={}).panel(pd.concat(frames), **names, region=region)


@cache
def fitted() -> dc.Results:
    return dc.NFXP(replace(CLUB, params={}).model(), panel()).fit()


@cache
def mixed() -> dc.MixtureResults:
    return dc.CCPEM(fitted().model, panel(), varying=["member"]).fit(starts=1)


GOODS = replace(CLUB, benefits=[FILMS], params={**CLUB.params, "films": 0.5})
