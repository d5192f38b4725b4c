"""Arguments of a wrong kind are answered by the package's own errors."""

import numpy as np
import pandas as pd
import pytest
from plain_choices import CHOICES, simple

import dynchoice as dc


@pytest.mark.parametrize(
    "build",
    [
        lambda: dc.StateSpace(x={"b", "a"}),
        lambda: dc.StateSpace(x=3),
        lambda: dc.StateSpace(x=[1.0, float("nan")]),
        lambda: dc.Utility.from_array([["a"]], ["k"]),
        lambda: dc.Transitions.dense("F"),
        lambda: dc.Transitions.dense([[1], [1, 2]]),
        lambda: simple(attention="high"),
        lambda: simple(available="all"),
        lambda: simple(horizon=True),
        lambda: simple().with_parts(utility=np.zeros((2, 3, 1))),
        lambda: simple().with_parts(transitions=np.zeros((2, 3, 2))),
        lambda: dc.solve(simple(), "params"),
        lambda: dc.solve(simple(), [1.0, 2.0], start="V"),
        lambda: dc.Transitions.factored(
            dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Markov(("choice", "choice"))}
        ),
        lambda: dc.Transitions.factored(dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Markov(None)}),
        lambda: dc.Transitions.factored(
            dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Increment(1.0)}
        ),
        lambda: dc.Transitions.factored(
            dc.StateSpace(s=range(2)), CHOICES, {"s": dc.Deterministic(lambda x: x)}
        ),
        lambda: dc.Scenario("x", params=[1]),
        lambda: dc.Scenario("x", offer="new"),
        lambda: dc.Panel(pd.DataFrame(), member="a", time="b", choice="c", states={}, choices=[1]),
        lambda: dc.compare(3),
    ],
)
def test_careless_input_gets_our_errors(build):
    with pytest.raises(dc.DynChoiceError):
        build()


def test_careless_calls_on_results_get_our_errors(fitted):
    fit, panel = fitted
    for call in (
        lambda: dc.counterfactual(fit, [dc.Scenario("x")]),
        lambda: dc.counterfactual({"a": fit}, dc.Scenario("x")),
        lambda: dc.counterfactual(fit, dc.Scenario("x", params={"pay": None})),
        lambda: dc.forecast(fit, "new", start=panel),
        lambda: dc.forecast(fit.model, start=panel),
        lambda: dc.forecast(fit, start=pd.DataFrame()),
        lambda: dc.forecast(fit, start=panel, n_jobs=0),
        lambda: dc.forecast(fit, start=panel, periods=2.5),
        lambda: dc.forecast(fit, start=panel, seed=-1),
        lambda: fit.lr_test(None),
        lambda: fit.wald_test("pay = 0"),
        lambda: fit.wald_test([[np.nan, 0, 0, 0, 0]]),
        lambda: fit.delta_method(lambda p: p, level=95),
        lambda: fit.delta_method(lambda p: p, names=["one"]),
        lambda: panel.counts + 3,
        lambda: dc.NFXP(fit.model, panel).fit(tol=1.0),
        lambda: dc.NFXP(fit.model, panel).fit(maxiter=0),
        lambda: dc.NFXP(fit.model, panel).fit(cov_type=["robust"]),
    ):
        with pytest.raises(dc.DynChoiceError):
            call()
    assert sum([panel.counts]).digest == panel.counts.digest
    assert dc.forecast(fit, start=panel, periods=700, draws=0).take_up["period"].max() == 700
