"""A programme of two plans and two benefits, its steady numbers and a fit by region."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

import dynchoice as dc


@cache
def club(naive: float = 0.0) -> dc.Membership:
    return dc.Membership(
        plans=[
            dc.Plan("monthly", 10, attention=0.5),
            dc.Plan("quarterly", 26, periods=3, attention=0.2, renewal_attention=0.6,
                    refund="prorated"),
        ],
        benefits=[
            dc.Benefit("video", 0.2, 0.9, 0.1, 0.7, cost=0.4),
            dc.Benefit("music", 0.1, 0.8, 0.05, 0.6, cost=0.2),
        ],
        beta=0.95,
        attention_outside=0.7,
        naive=naive,
        menus={"now": {}, "cheap": {"monthly": 8}},
        params={
            "member": 0.05, "video": 0.5, "music": 0.4, "price": 0.1, "joining cost": 1.2,
            "switching cost": 0.4, "paying upfront": 0.3,
        },
        types={"keen": dc.MemberType(0.4, 1.5), "cool": dc.MemberType(0.6, 0.8)},
    )  # fmt: skip


def measure(found: dc.Forecast, scenario: str, name: str) -> float:
    t = found.long_run
    return float(t[(t.scenario == scenario) & (t.measure == name)]["value"].iloc[0])


@cache
def fitted() -> tuple[dc.Results, dc.Panel]:
    own = replace(club(), types={})
    model, theta = own.model(), own.theta()
    rng = np.random.default_rng(5)
    N = 800
    first = model.states.codes(
        pd.DataFrame({"prices": ["now", "cheap"], "video": 0, "music": 0, "contract": "none"})
    )
    region = np.arange(N) % 4
    paths = dc.simulate(
        model, params=theta, members=N, periods=20, seed=rng, start=first[(region == 0).astype(int)]
    )
    frame = paths.frame()
    frame["region"] = np.array(["a", "b", "c", "d"])[region[frame["member"]]]
    panel = replace(own, params={}).panel(
        frame, member="member", time="period", plan="choice", contract="contract", region="region"
    )
    return dc.NFXP(replace(own, params={}).model(), panel).fit(), panel
