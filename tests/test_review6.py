"""What the second review of the membership simulators found, each with a number from outside."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.counterfactuals.engine import Engine
from dynchoice.counterfactuals.steady_state import Stationary

CLUB = dc.Membership(
    [dc.Plan("monthly", 10.0)], beta=0.95,
    params={"member": 0.1, "price": 0.06, "joining cost": 0.5},
)  # fmt: skip


def test_benefits_cost_what_is_used_whatever_axis_is_swept():
    """A monthly plan and one benefit: the benefit's axis is as long as the contract's."""
    for levels in (2, 8):
        law = np.full((2, levels, levels), 1.0 / levels)
        own = dc.Membership(
            [dc.Plan("monthly", 10.0)],
            [dc.Benefit("ship", levels=levels, law=law, cost=2.0)],
            beta=0.95,
            params={"member": 0.1, "ship": 0.3, "price": 0.06, "joining cost": 0.5},
        )
        at = Stationary(own.model(), own.theta())
        mu = at.engine.blocks.by_state(at.mu)
        P = at.engine.blocks.by_state(at.policy.P)
        use = own.states.axis_codes("ship")
        want = 2.0 * float((mu * use * P[:, 1]).sum())
        assert want > 0.1
        assert at.measures["benefit cost"] == pytest.approx(want, rel=1e-12)


def test_solutions_do_not_share_the_arrays_of_their_solver():
    rng = np.random.default_rng(3)
    F = rng.dirichlet(np.ones(6), size=(6, 2))
    model = dc.DDC(
        states=dc.StateSpace(s=range(6)), choices=["a", "b"], beta=0.9,
        utility=dc.Utility.from_array(rng.normal(size=(6, 2, 1)), ["k"]),
        transitions=dc.Transitions.dense(F),
    )  # fmt: skip
    engine = Engine(model, np.array([0.3]))
    before = engine.base.P.copy()
    engine.at(np.array([1.7]))
    assert (before == engine.base.P).all()


def test_bundles_try_prices_where_there_are_no_benefits():
    own = dc.Membership(
        [dc.Plan("monthly", 10.0), dc.Plan("annual", 90.0, periods=12)],
        beta=0.97,
        params={
            "member": 0.1, "price": 0.03, "joining cost": 0.5, "switching cost": 0.2,
            "paying upfront": 0.1,
        },
    )  # fmt: skip
    table = dc.bundles(own, prices={"annual": [60, 120]}).table.set_index("price annual")
    for price in (60.0, 120.0):
        s = dc.Scenario("x", prices={"annual": price})
        at = Stationary(s.changed(own.model()), own.theta())
        assert table.loc[price, "revenue"] == pytest.approx(at.measures["revenue"], rel=1e-9)


def test_prices_are_kept_or_members_moved_not_both():
    with pytest.raises(dc.SpecificationError, match="another price list"):
        dc.Scenario("x", prices={"a": 1}, offer={"prices": {"old": "new"}}, grandfathered=True)


def test_refunds_by_other_terms_are_named():
    def own(cancel):
        return dc.Membership(
            [dc.Plan("annual", 90.0, periods=12, refund="prorated", cancel=cancel)],
            beta=0.97, params={"member": 0.5, "price": 0.03, "joining cost": 0.5,
                               "paying upfront": 0.1},
        )  # fmt: skip

    shorter = dc.Scenario("x", terms={"annual": {"periods": 6}})
    dearer = dc.Scenario("x", prices={"annual": 99.0})
    with pytest.warns(dc.errors.DynChoiceWarning, match="length and rule"):
        shorter.changed(own("any time").model())
    with pytest.warns(dc.errors.DynChoiceWarning) as said:
        replace(dearer, starts=2, ends=3).changed(own("any time").model())
    assert "grandfathered" not in str(said[0].message)  # it does not go with an end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dearer.changed(own("at renewal").model())  # nobody can quit early: no refund


def test_use_from_arrow_is_read():
    own = dc.Membership(
        [dc.Plan("monthly", 10.0)], [dc.Benefit("ship", gain=0.2, stay=0.9)], beta=0.95,
        params={"member": 0.1, "ship": 0.3, "price": 0.06, "joining cost": 0.5},
    )  # fmt: skip
    frame = pd.DataFrame({"id": 1, "t": range(4), "plan": ["none", "monthly", "monthly", "none"]})
    plain = own.panel(frame.assign(ship=[0, 1, 1, 0]), member="id", time="t", plan="plan")
    arrow = frame.assign(ship=pd.array([0, 1, 1, 0], dtype="int64[pyarrow]"))
    panel = own.panel(arrow, member="id", time="t", plan="plan")
    assert (panel.counts.n_sj() == plain.counts.n_sj()).all()


def test_progress_is_told_with_several_workers():
    own = replace(CLUB, types={})
    for jobs in (1, 2):
        said = []
        dc.forecast(own, periods=2, start="steady state", n_jobs=jobs,
                    progress=lambda *a, said=said: said.append(a))  # fmt: skip
        assert said and said[-1][0] == said[-1][1]
