"""The loop between callouts and the structural model, on data/prime, segment by segment.

    python data/prime/callouts.py [SEGMENT]        # default: India rural; 10 s

1. Estimate what members value, and what it is worth to each that they discover a benefit.
2. Let a callout policy learn, in a simulated page, which callouts to show for that worth.
3. Turn what it brings over a page at random into a lift in engagement.
4. Forecast take-up with and without it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import dynchoice as dc
from dynchoice.run.config import load_run

HERE = Path(__file__).parent
BENEFITS = ["shipping", "video", "music"]
CONTEXT = {"plan": ["none", "monthly", "annual"]}
TERMS = ["1", "item", "benefit:plan"]
DELAYS = [0.7, 0, 0, 0, 0, 0, 0.1, 0.1, 0.1]  # of clicks, by day: three in ten after six days
STARTS = {"shipping": 0.3, "video": 0.2, "music": 0.2}  # clicks that become use, assumed
VISITS = 8  # of a customer, a month


def fitted(segment: str) -> tuple[dc.Results, dc.Panel]:
    """Estimate the sample's own model on one segment."""
    run = load_run(HERE / "run.toml")
    rows = pd.read_parquet(HERE / "prime.parquet").query("segment == @segment")
    names = {n: getattr(run.spec.data, n) for n in ("member", "time", "choice", "region")}
    panel = dc.Panel(rows, **names, states=run.states, choices=run.spec.model.choices)
    return dc.NFXP(run.model(segment), panel).fit(), panel


def picture(worth: pd.DataFrame, life: object, forecast: dc.Forecast, path: Path) -> None:
    """Draw the loop: worth by plan, regret by day, members with and without callouts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    table = worth.pivot(index="benefit", columns="plan", values="value")
    error = worth.pivot(index="benefit", columns="plan", values="std_error")
    table.loc[BENEFITS, CONTEXT["plan"]].plot.bar(
        ax=left, yerr=error.loc[BENEFITS, CONTEXT["plan"]], rot=0, xlabel="", capsize=2
    )
    left.set(title="1. worth of a discovery, USD")
    left.legend(title="plan", frameon=False, fontsize=8)
    life.days["regret"].rolling(3, min_periods=1).mean().plot(ax=middle, color="black")
    middle.set(title="2. the policy learns: regret, USD", xlabel="day", ylim=(0, None))
    shares = forecast.take_up.query("choice == 'none'")
    for name, part in shares.groupby("scenario", sort=False):
        line = right.plot(part["period"], 1 - part["share"], label=name)[0]
        right.fill_between(
            part["period"], 1 - part["upper"], 1 - part["lower"], alpha=0.2, color=line.get_color()
        )
    right.set(title="3. share with a membership", xlabel="month")
    right.set_ylim(0, 1.25 * float(1 - shares["lower"].min()))
    right.legend(frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"\npicture: {path}")


def main(segment: str = "India rural") -> dict[str, object]:
    """Go round once; return what every step found."""
    fit, panel = fitted(segment)
    by_plan = {"plan": lambda states: states["contract"].str.split("_").str[0]}
    worth = dc.discovery_values(fit, BENEFITS, by=by_plan, start=panel, outcome="money", draws=50)
    months = dc.discovery_values(fit, BENEFITS, by=by_plan, start=panel, outcome="months")
    shown = worth.assign(months=months["value"])
    print("1. worth of a discovery: USD, and months of membership in two years")
    print(shown.round(3).to_string(index=False))

    items = pd.DataFrame(
        [(f"{b} {k}", b) for b in BENEFITS for k in "abcd"], columns=["item", "benefit"]
    )
    values = worth[["plan", "benefit", "value"]]
    policy = dc.Callouts(
        items, CONTEXT, TERMS, values=values, slots=2, category="benefit", diversity=0.5, window=9
    )
    share = worth.drop_duplicates("plan").set_index("plan")["members"]
    population = share[CONTEXT["plan"]] / share.sum()
    world = dc.CalloutWorld(
        items, CONTEXT, TERMS, base=-1.8, population=population.to_numpy(), delays=DELAYS, seed=1
    )
    life = dc.live(policy, world, days=60, per_day=1000, prior="moments", prior_days=(20, 40))
    print("\n2. the policy learns: regret a member (USD), by ten days")
    print(life.days["regret"].groupby(life.days.index // 10).mean().round(4).to_string())

    members = world.members(20_000, np.random.default_rng(0))
    clicks = policy.expected_clicks(members, "benefit")
    chance = policy.expected_clicks(members, "benefit", page="random")
    lift = dc.callout_lift(clicks, chance, starts=STARTS, visits=VISITS, by={"plan": "choice"})
    table = pd.concat({b: t.set_index("choice")["start"] for b, t in lift.items()}, axis=1)
    print("\n3. added probability that a customer starts to use a benefit in a month")
    print(table.round(4).to_string())

    forecast = dc.forecast(fit, dc.Scenario("callouts", lift=lift), start=panel, periods=24)
    last = forecast.take_up.query("period == 24")
    print("\n4. take-up after two years")
    columns = ["scenario", "choice", "share", "lower", "upper", "badge"]
    print(last[columns].round(4).to_string(index=False))
    picture(worth, life, forecast, HERE / "out" / "callouts.png")
    return {"fit": fit, "worth": worth, "life": life, "lift": lift, "forecast": forecast}


if __name__ == "__main__":
    main(*sys.argv[1:])
