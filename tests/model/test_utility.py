import numpy as np
import pandas as pd
import pytest

import dynchoice as dc

STATES = dc.StateSpace(mileage=range(4), town=["a", "b"])
CHOICES = ["keep", "replace"]
ATTRIBUTES = pd.DataFrame({"choice": CHOICES, "kept": [1.0, 0.0], "replaced": [0.0, 1.0]})


def formula(text, attributes=ATTRIBUTES):
    return dc.Utility.from_formula(text, STATES, CHOICES, attributes)


def test_formula_equals_the_array_by_hand():
    utility = formula("0 + replaced + kept:mileage")
    assert utility.names == ("replaced", "kept:mileage")
    m = STATES.frame()["mileage"].to_numpy()
    x = np.zeros((8, 2, 2))
    x[:, 1, 0], x[:, 0, 1] = 1, m
    assert (utility.x == x).all()


def test_coefficients_stand_in_the_order_of_the_formula():
    assert formula("0 + kept:mileage + replaced").names == ("kept:mileage", "replaced")


def test_attributes_may_be_keyed_by_state_and_choice():
    rows = [(m, c, 10 * m + j) for m in range(4) for j, c in enumerate(CHOICES)]
    table = pd.DataFrame(rows, columns=["mileage", "choice", "cost"])
    utility = formula("0 + cost", table.sample(frac=1, random_state=0))
    m = STATES.frame()["mileage"].to_numpy()
    assert (utility.x[:, :, 0] == 10 * m[:, None] + np.arange(2)).all()


def test_categories_make_one_column_a_level():
    utility = formula("0 + replaced:town")
    assert utility.shape == (8, 2, 2)


@pytest.mark.parametrize(
    ("text", "attributes", "error", "message"),
    [
        ("0 + replaced + mileage", ATTRIBUTES, dc.SpecificationError,
         "'mileage' are constant across the choices"),
        ("replaced", ATTRIBUTES, dc.SpecificationError, "Intercept.*constant across"),
        ("0 + replacd", ATTRIBUTES, dc.SpecificationError, r"'replacd'.*Did you mean 'replaced'"),
        ("0 + (replaced", ATTRIBUTES, dc.SpecificationError, "formula"),
        ("0 + replaced", ATTRIBUTES.iloc[:1], dc.SpecificationError,
         r"1 combination\(s\) have no row, first {'choice': 'replace'}"),
        ("0 + replaced", pd.concat([ATTRIBUTES] * 2), dc.SpecificationError, "row.*repeat"),
        ("0 + replaced", ATTRIBUTES.drop(columns="choice"), dc.SpecificationError, "no key column"),
        ("0 + replaced", ATTRIBUTES.assign(replaced=[0.0, np.nan]), dc.SpecificationError,
         r"1 row\(s\) miss a value"),
        ("0 + replaced", ATTRIBUTES.assign(choice=["keep", "replce"]), dc.SpecificationError,
         r"choice 'replce' is unknown.*Did you mean 'replace'"),
        ("0 + np.log(kept)", ATTRIBUTES, dc.SpecificationError, "formula"),
    ],
)  # fmt: skip
def test_bad_formulas(text, attributes, error, message):
    with pytest.raises(error, match=message):
        formula(text, attributes)


def test_a_formula_sees_no_variable_of_the_caller():
    secret = np.ones(16)
    assert secret.sum() == 16
    with pytest.raises(dc.SpecificationError, match="'secret'"):
        formula("0 + secret:replaced")


@pytest.mark.parametrize(
    ("x", "names", "message"),
    [
        (np.zeros((8, 2)), ["a"], r"shape \(S, J, K\)"),
        (np.zeros((8, 2, 2)), ["a"], "2 features need"),
        (np.zeros((8, 2, 2)), ["a", "a"], "2 features need"),
        (np.zeros((8, 2, 1)), "a", "pass a list of names"),
        (np.full((8, 2, 1), -np.inf), ["a"], "belongs into DDC"),
    ],
)
def test_bad_arrays(x, names, message):
    with pytest.raises(dc.SpecificationError, match=message):
        dc.Utility.from_array(x, names)
