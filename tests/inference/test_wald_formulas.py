"""Restrictions as people write them."""

import pytest

import dynchoice as dc


@pytest.mark.parametrize(
    ("formula", "equal"),
    [
        ("pay = -8.5e-1", ([0, 0, 0, 1, 0], -0.85)),
        ("pay = +2", ([0, 0, 0, 1, 0], 2.0)),
        ("pay = -join", ([0, 0, 0, 1, 1], 0.0)),
        ("pay = 1e-3", ([0, 0, 0, 1, 0], 1e-3)),
        (["pay = 2"], ([0, 0, 0, 1, 0], 2.0)),
    ],
)
def test_wald_formulas_as_people_write_them(fitted, formula, equal):
    fit, _ = fitted
    want = fit.wald_test([equal[0]], [equal[1]])
    assert fit.wald_test(formula=formula).stat == pytest.approx(want.stat, rel=1e-9)


def test_wald_formulas_that_are_refused(fitted):
    fit, _ = fitted
    for options in ({"formula": "pay = join = 0"}, {"formula": ""}, {"formula": []},
                    {"formula": "pay = 0", "value": [3]}):  # fmt: skip
        with pytest.raises(dc.SpecificationError):
            fit.wald_test(**options)
