"""Eight levels of wear that quitting renews, and panels by region."""

import numpy as np
import pandas as pd

import dynchoice as dc


def renewal(attention=1.0):
    """Eight levels of wear, quitting renews, a market feature on a Fixed axis."""
    states = dc.StateSpace(k=range(4), w=[0, 1])
    frame = states.frame()
    x = np.zeros((8, 2, 3))
    x[:, 1, 0] = 1.0
    x[:, 1, 1] = frame["k"]
    x[:, 1, 2] = frame["w"]
    up = np.minimum(np.arange(4) + 1, 3)
    table = np.zeros((2, 4, 4))
    table[0, :, 0] = 1.0
    table[1, np.arange(4), up] += 0.7
    table[1, np.arange(4), np.arange(4)] += 0.3
    laws = {"k": dc.Markov(("choice",), table), "w": dc.Fixed()}
    return dc.DDC(
        states=states,
        choices=["quit", "stay"],
        utility=dc.Utility.from_array(x, ["const", "wear", "w"]),
        transitions=dc.Transitions.factored(states, ["quit", "stay"], laws),
        beta=0.9,
        attention=attention,
        default="stay" if attention < 1 else None,
    )


THETA = np.array([1.0, -0.4, 0.5])


def panel(model, regions=30, members=200, periods=6, seed=1):
    """Members of every region, half of the regions at each level of w."""
    rng = np.random.default_rng(seed)
    start = model.states.codes(
        pd.DataFrame({"k": rng.integers(0, 4, regions * members),
                      "w": np.repeat(np.arange(regions) % 2, members)})
    )  # fmt: skip
    paths = dc.simulate(
        model, params=THETA, members=len(start), periods=periods, seed=seed, start=start
    ).frame()
    paths["region"] = paths["member"] // members
    return dc.Panel(
        paths, member="member", time="period", choice="choice", region="region",
        states=model.states, choices=model.choices,
    )  # fmt: skip
