"""Compile every kernel before it is needed: ``dynchoice warm-up``.

A first use compiles what it needs, and numba keeps it on disk: some seconds for a fit, half a
minute for everything. A container image, or a machine before its first scheduled run, does it once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.kernels import callouts as callout_kernels
from dynchoice.kernels import core as kernels
from dynchoice.kernels import counts as count_kernels
from dynchoice.kernels import levels as level_kernels
from dynchoice.kernels import products as product_kernels
from dynchoice.panel.grid import FIRST_TABLE, Table
from dynchoice.typing import Progress

MODULES = (kernels, level_kernels, product_kernels, count_kernels, callout_kernels)


def warm_up(progress: Progress | None = None) -> dict[str, int]:
    """Run a small job of every kind, so that its kernels are compiled and kept.

    Parameters
    ----------
    progress : callable, optional
        ``progress(done, total, message)``.

    Returns
    -------
    dict
        Module of kernels -> how many of its kernels are ready.

    Raises
    ------
    SpecificationError
        numba is switched off, so that there is nothing to compile.
    """
    if kernels.INTERPRETED:
        raise SpecificationError(
            "NUMBA_DISABLE_JIT is set: kernels run as plain Python, and nothing is compiled; unset"
            " it to warm up"
        )
    jobs: list[tuple[str, Callable[[], object]]] = [
        ("estimates", _estimates),
        ("large models", _large),
        ("forecasts", _forecasts),
        ("counting", _counting),
        ("callouts", _callouts),
    ]
    for i, (name, job) in enumerate(jobs):
        if progress is not None:
            progress(i, len(jobs), name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tiny panels have thin spots: not the user's concern
            job()
    if progress is not None:
        progress(len(jobs), len(jobs), "done")
    return {module.__name__: len(ready(module)) for module in MODULES}


def ready(module: object) -> list[str]:
    """Return the names of a module's kernels that are compiled in this process."""
    names = []
    for name, kernel in vars(module).items():
        compiled_here = getattr(kernel, "__module__", "") == getattr(module, "__name__", None)
        if compiled_here and getattr(kernel, "signatures", None):
            names.append(name)
    return names


def _estimates() -> None:
    """Fit a small club: one law is estimated, another given; then a long thin model."""
    import dynchoice as dc

    clock = dc.Deterministic(lambda level, choice: min(level + 1, 2) if choice == "in" else 0)
    states = dc.StateSpace(clock=range(3), use=range(3), heat=range(2))
    choices = ["out", "in"]
    x = np.random.default_rng(0).normal(size=(states.size, 2, 2))
    utility = dc.Utility.from_array(x, ["taste", "cost"])
    use = np.array([[0.6, 0.4, 0.0], [0.3, 0.4, 0.3], [0.0, 0.4, 0.6]])
    heat = dc.Markov((), np.full((2, 2), 0.5))

    def model(law: object, default: int = 0) -> dc.DDC:
        F = dc.Transitions.factored(states, choices, {"clock": clock, "use": law, "heat": heat})
        attention = np.where(np.arange(states.size) % 2 == default, 0.9, 1.0)
        return dc.DDC(
            states=states,
            choices=choices,
            utility=utility,
            transitions=F,
            beta=0.95,
            attention=attention,
            default=np.zeros(states.size, dtype=np.int64),
        )

    paths = dc.simulate(model(dc.Markov((), use)), params=[0.5, -0.3], members=150, periods=8)
    panel = dc.Panel(
        paths.frame(),
        member="member",
        time="period",
        choice="choice",
        states=states,
        choices=choices,
    )
    unknown = model(dc.Markov())
    dc.NFXP(unknown, panel).fit()
    dc.NPL(unknown, panel).fit()
    dc.CCP(unknown, panel, valuation="simulation", paths=40).fit(seed=0)
    long = dc.StateSpace(mileage=range(800))
    cost = np.zeros((800, 2, 1))
    cost[:, 0, 0] = -np.arange(800) / 400
    wear = dc.Increment(1, "replace", probabilities=[0.5, 0.5])
    F = dc.Transitions.factored(long, ["keep", "replace"], {"mileage": wear})
    dc.solve(
        dc.DDC(
            states=long,
            choices=["keep", "replace"],
            transitions=F,
            beta=0.99,
            utility=dc.Utility.from_array(cost, ["wear"]),
        ),
        [1.0],
    )


def _large() -> None:
    """Solve and differentiate a model too large to expand, both with levels and without."""
    import dynchoice as dc
    from dynchoice.estimate.likelihood import Likelihood

    chain = np.array([[0.7, 0.3, 0.0], [0.2, 0.6, 0.2], [0.0, 0.3, 0.7]])
    for parent in (False, True):
        uses = {f"use{k}": range(3) for k in range(7)}
        states = dc.StateSpace(contract=range(4), **uses)
        choices = ["out", "in"]
        laws: dict[str, Any] = {
            "contract": dc.Deterministic(lambda level, choice: 3 if choice == "in" else 0)
        }
        laws |= {name: dc.Markov((), chain) for name in uses}
        if parent:  # every axis looks at the contract: no levels apart from the rest
            laws |= {name: dc.Markov(("contract",), np.stack([chain] * 4)) for name in uses}
        F = dc.Transitions.factored(states, choices, laws)
        S = states.size
        x = np.zeros((S, 2, 2))
        x[:, 1, 0], x[:, 1, 1] = 1.0, np.arange(S) % 3
        model = dc.DDC(
            states=states,
            choices=choices,
            transitions=F,
            beta=0.9,
            utility=dc.Utility.from_array(x, ["in", "use"]),
        )
        likelihood = Likelihood(model, np.ones((S, 2)))
        for theta in ([-0.5, 0.2], [-0.4, 0.2]):
            likelihood.hessian(likelihood.evaluate(np.array(theta)))


def _forecasts() -> None:
    """Forecast a small programme, with bands."""
    import dynchoice as dc

    club = dc.Membership(
        plans=[
            dc.Plan("monthly", 5.0),
            dc.Plan("annual", 40.0, periods=4, cancel="at renewal", features={"annual": 1}),
        ],
        benefits=[
            dc.Benefit("video", law=np.full((2, 2, 2), 0.5)),
            dc.Benefit("music", law=np.full((2, 2, 2), 0.5)),
        ],
        costs=("joining cost",),
        params={"member": 0.1, "video": 0.4, "music": 0.3, "joining cost": 0.5},
        fixed={"price": 0.1, "annual": 0.1},
    )
    model = club.model()
    paths = dc.simulate(model, params=club.theta(), members=200, periods=10, start=club.newcomers())
    frame = paths.frame()
    columns = {name: name for name in model.states.axes}
    panel = dc.Panel(
        frame,
        member="member",
        time="period",
        choice="choice",
        states=model.states,
        choices=model.choices,
        columns=columns,
    )
    fit = dc.NFXP(model, panel).fit(maxiter=3)
    dearer = dc.Scenario("dearer", prices={"monthly": 6.0}, starts=2)
    dc.forecast(fit, dearer, start=panel, periods=4, draws=2)


def _counting() -> None:
    """Count a panel by grid."""
    import pandas as pd

    import dynchoice as dc

    frame = pd.DataFrame({"m": [0, 0, 1, 1], "t": [0, 1, 0, 1], "x": [0, 1, 1, 0], "w": 1.5})
    spec: dict[str, Any] = {"member": "m", "time": "t", "choice": "c", "choices": ["a", "b"]}
    for levels in (2, 40_000):  # codes of two bytes, and of four
        states = dc.StateSpace(x=range(levels))
        rows = frame.assign(c="a")
        dc.Panel(rows, states=states, weights="w", member_limit=0, **spec).counts  # noqa: B018
    Table().add(np.arange(2 * FIRST_TABLE))  # grows


def _callouts() -> None:
    """Let small policies of every kind decide and learn."""
    import pandas as pd

    import dynchoice as dc

    items = pd.DataFrame({"item": ["a", "b", "c"], "kind": ["x", "x", "y"]})
    context = {"plan": ["none", "monthly"]}
    members = pd.DataFrame({"member": range(4), "plan": ["none", "monthly"] * 2})
    taken = pd.DataFrame({"member": [0], "item": ["a"]})
    for method in ("adf", "joint"):
        policy = dc.Callouts(
            items,
            context,
            ["1", "item", "kind:plan"],
            method=method,
            category="kind",
            diversity=1.0,
            draws=8,
            slots=2,
        )
        shown = policy.decide(members, blocked=taken)
        rows = shown.merge(members).assign(impression=range(len(shown)), time=0.0)
        policy.learn(rows, pd.DataFrame({"impression": [0], "time": [0.5]}), batch="1", now=3.0)
        policy.decide(members, weights=np.array([[1.0, 2.0]] * 4))
        policy.best(0, 0)
        policy.learn(None, batch="2", now=9.0)
        policy.decide(members)
        policy.model.predict([[0, 1]])
    page = dc.LayoutBandit({"a": [1, 2], "b": [1, 2]}, draws=4, search="climb")
    page.learn(page.decide(4).assign(clicks=[0, 1, 0, 1]), batch="1")
    page.decide(4)
