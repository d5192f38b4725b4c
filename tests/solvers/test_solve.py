import numpy as np
import pytest
from solver_models import clock_model

import dynchoice as dc


def test_status_is_honest_when_steps_run_out():
    model, theta = clock_model(0.9999), np.array([0.5, -0.3, 0.2, 1.0])
    short = dc.solve(model, theta, maxiter=0)
    assert not short.converged and "not converged" in short.message
    with pytest.raises(dc.ConvergenceError, match="not converged"):
        dc.solve(model, theta, maxiter=0, strict=True)
    with pytest.raises(dc.SpecificationError, match="start has shape"):
        dc.solve(model, theta, start=np.zeros(3))


def test_what_cannot_fit_is_refused_before_it_is_allocated(monkeypatch):
    states = dc.StateSpace(x=range(30_000))
    F = dc.Transitions.factored(states, ["a", "b"], {"x": dc.Cycle()})
    utility = dc.Utility.from_array(np.ones((30_000, 2, 1)), ["k"])
    model = dc.DDC(states=states, choices=["a", "b"], utility=utility, transitions=F, beta=0.9)
    monkeypatch.setenv("DYNCHOICE_MEMORY", "20MB")
    told = r"a solution of 30,000 states takes about 0\.\d GB, DYNCHOICE_MEMORY allows 0\.0 GB: use"
    with pytest.raises(dc.DynChoiceError, match=told):
        dc.solve(model, [1.0])
    from dynchoice.estimate.likelihood import Likelihood

    with pytest.raises(MemoryError, match="a likelihood of 30,000 states and 1 parameters"):
        Likelihood(model, np.ones((30_000, 2)))
    monkeypatch.delenv("DYNCHOICE_MEMORY")
    assert dc.solve(model, [1.0]).converged
