import numpy as np
import pandas as pd
import pytest

import dynchoice as dc


def test_last_axis_is_fastest_and_codes_invert_labels():
    states = dc.StateSpace(plan=["none", "monthly"], usage=range(3), flag=[False, True])
    assert states.size == 12 and states.shape == (2, 3, 2)
    assert (states.codes(states.frame()) == np.arange(12)).all()
    assert states.describe(7) == "plan=monthly, usage=0, flag=True"
    assert (states.axis_codes("usage") == np.tile(np.repeat([0, 1, 2], 2), 2)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dc.StateSpace(), "at least one axis"),
        (lambda: dc.StateSpace(x=[]), "axis 'x': no label"),
        (lambda: dc.StateSpace(x=[1, 2, 1]), "labels repeat: 1"),
        (lambda: dc.StateSpace(x="abc"), "pass a list of labels"),
        (lambda: dc.StateSpace(x=[(1, 2)]), "levels are int, float, bool or str"),
    ],
)
def test_bad_axes(build, message):
    with pytest.raises(dc.SpecificationError, match=message):
        build()


def test_unknown_levels_and_columns_are_named():
    states = dc.StateSpace(plan=["none", "monthly"])
    with pytest.raises(dc.DataError, match=r"1 value\(s\).*montly.*Did you mean 'monthly'"):
        states.codes(pd.DataFrame({"plan": ["none", "montly"]}))
    with pytest.raises(dc.ColumnError, match=r"'plan'.*missing.*Did you mean 'plans'"):
        states.codes(pd.DataFrame({"plans": ["none"]}))
    with pytest.raises(dc.SpecificationError, match=r"no axis is named 'plam'.*'plan'"):
        states.axis("plam")
    with pytest.raises(dc.SpecificationError, match=r"no level 'nome'.*'none'"):
        states.level_code("plan", "nome")
