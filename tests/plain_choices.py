"""Three choices and two states: the smallest model that has a panel."""

import numpy as np
import pandas as pd

import dynchoice as dc

CHOICES = ["a", "b", "c"]


def simple(attributes=None, text="0 + b + c", **options):
    states = dc.StateSpace(s=range(2))
    table = (
        attributes
        if attributes is not None
        else pd.DataFrame(
            {"choice": CHOICES, "b": [0, 1, 0], "c": [0, 0, 1], "price": [1.0, 3.0, 5.0]}
        )
    )
    return dc.DDC(
        states=states, choices=CHOICES,
        utility=dc.Utility.from_formula(text, states, CHOICES, table),
        transitions=dc.Transitions.factored(states, CHOICES, {"s": dc.Markov(("choice",),
            np.full((3, 2, 2), 0.5))}), **{"beta": 0.9, **options},
    )  # fmt: skip


def panel_of(choice, states, **columns):
    n = len(choice)
    frame = pd.DataFrame({"id": np.arange(n) // 4, "t": np.arange(n) % 4, "choice": choice,
                          "s": np.arange(n) % 2, **columns})  # fmt: skip
    return frame, dc.Panel(
        frame, member="id", time="t", choice="choice", states=states, choices=CHOICES
    )
