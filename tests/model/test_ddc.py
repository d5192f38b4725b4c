import numpy as np
import pytest

import dynchoice as dc

STATES = dc.StateSpace(s=range(3))
F = np.full((3, 2, 3), 1 / 3)


def build(**options):
    parts = {
        "states": STATES,
        "choices": ["a", "b"],
        "utility": dc.Utility.from_array(np.zeros((3, 2, 2)), ["p", "q"]),
        "transitions": dc.Transitions.dense(F),
        "beta": 0.9,
    }
    return dc.DDC(**{**parts, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.0}, r"beta=1 is outside \[0, 1\)"),
        ({"beta": -0.1}, r"beta=-0.1 is outside \[0, 1\)"),
        ({"beta": 1.5, "horizon": 3}, "beta=1.5 must lie between 0 and 1"),
        ({"beta": "high"}, "is no number"),
        ({"beta": float("nan")}, "beta=nan is no number"),
        ({"horizon": 0}, "horizon=0 must be a whole number of at least 1"),
        ({"choices": ["a"]}, "needs two choices"),
        ({"choices": ["a", "b", "c"]}, "utility is for 3 states and 2 choices"),
        ({"transitions": dc.Transitions.dense(np.full((2, 2, 2), 0.5))}, "transitions are for 2"),
        ({"available": np.ones((3, 3))}, r"available has shape \(3, 3\)"),
        ({"available": np.full((3, 2), 0.5)}, "True and False only"),
        ({"available": [[1, 1], [0, 0], [1, 0]]}, r"1 of 3 states offer no choice: \(s=1\)"),
        ({"attention": 0.0}, r"attention must lie in \(0, 1\]"),
        ({"attention": 0.5}, "say with default="),
        ({"attention": 0.5, "default": "c"}, "default 'c' is unknown"),
        ({"attention": 0.5, "default": [0, 1]}, "one choice code a state"),
        ({"attention": 0.5, "default": 2}, "no choice code"),
        (
            {"attention": 0.5, "default": "b", "available": [[1, 1], [1, 0], [1, 1]]},
            r"not available in 1 states.*'b' in \(s=1\)",
        ),
    ],
)
def test_bad_models(options, message):
    with pytest.raises(dc.SpecificationError, match=message):
        build(**options)


def test_defaults_may_be_labels_codes_or_one_a_state():
    for default in ("b", 1, [1, 1, 1], ["b", "b", "b"]):
        assert (build(attention=0.5, default=default).default == 1).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([1.0], "2 parameters are needed"),
        ({"p": 1.0}, "'q' has no value"),
        ({"p": 1.0, "r": 2.0}, "no parameter 'r'"),
        ([1.0, np.nan], r"parameter\(s\) q are not finite"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.solve(build(), params)


def test_an_available_choice_needs_a_next_level():
    law = dc.Deterministic({("a", 0): 1, ("a", 1): 2, ("a", 2): 0})
    transitions = dc.Transitions.factored(STATES, ["a", "b"], {"s": law})
    with pytest.raises(dc.SpecificationError, match=r"3 available choices have no next level"):
        build(transitions=transitions)
    mask = np.array([[1, 0]] * 3)
    assert build(transitions=transitions, available=mask).shape == (3, 2, 2)


def test_parts_of_another_state_space_do_not_mix():
    other = dc.StateSpace(t=range(3))
    transitions = dc.Transitions.factored(other, ["a", "b"], {"t": dc.Fixed()})
    with pytest.raises(dc.SpecificationError, match="other states"):
        build(transitions=transitions)
