"""What a formula may say: arithmetic, and nothing that runs."""

import numpy as np
import pandas as pd
import pytest
from plain_choices import simple

import dynchoice as dc
from dynchoice.model.formula import parse

STATES, CHOICES = dc.StateSpace(x=range(4)), ["a", "b"]
ATTRIBUTES = pd.DataFrame({"choice": CHOICES, "z": [0.0, 1.0]})


@pytest.mark.parametrize(
    ("formula", "feature"),
    [
        ("0 + z:x", lambda x: x),
        ("0 + {z * np.log(x + 1)}", lambda x: np.log(x + 1)),
        ("0 + I(z * x ** 2)", lambda x: x**2),
        ("0 + {z * (x > 1)}", lambda x: 1.0 * (x > 1)),
        ("0 + {z * np.minimum(x, 2) / 2}", lambda x: np.minimum(x, 2) / 2),
        ("0 + {np.where(choice == 'b', -x, 0)}", lambda x: -x),
    ],
)
def test_arithmetic_is_understood(formula, feature):
    u = dc.Utility.from_formula(formula, STATES, CHOICES, ATTRIBUTES)
    assert u.x[:, 0, 0] == pytest.approx(0)
    assert u.x[:, 1, 0] == pytest.approx(feature(np.arange(4.0)))


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch {}')",
        "np.save('{}', x)",
        "np.fromfile('{}')",
        "x.tofile('{}')",
        "().__class__.__base__.__subclasses__()",
        "[open('{}', 'w') for _ in x]",
        "(lambda: x)()",
        "np.log.__self__",
        "x.values",
        "x[0]",
        "x if z else 1",
        "getattr(x, 'sum')()",
        "eval('x')",
        "exec('x')",
        "open('{}')",
        "9 ** 9 ** 9",
        "x ** z",
        "1 << 10 ** 9",
        "'a' * 10 ** 9",
        "(y := 3)",
        "print(x)",
        "np.random.seed(1)",
        "__builtins__",
        "b'x'",
    ],
)
@pytest.mark.parametrize("form", ["0 + z + {{{}}}", "0 + z + I({})", "0 + z:np.log({})"])
def test_nothing_else_is_run(tmp_path, expression, form):
    target = tmp_path / "pwned"
    formula = form.format(expression.replace("{}", str(target)))
    with pytest.raises(dc.SpecificationError, match="formula"):
        dc.Utility.from_formula(formula, STATES, CHOICES, ATTRIBUTES)
    assert not target.exists()


@pytest.mark.parametrize("formula", ["0 + (", "0 + {x", "0 + x +", "1.5*x", "0 + " + "x:" * 20_000])
def test_what_cannot_be_read_is_said_on_one_line_without_colours(formula):
    with pytest.raises(dc.SpecificationError) as caught:
        parse(formula)
    text = str(caught.value)
    assert "\x1b" not in text and "\n" not in text and "⧛" not in text and len(text) < 600


def test_transforms_that_remember_rows_are_refused():
    with pytest.raises(dc.SpecificationError, match="depend on the rows they see"):
        simple(text="0 + scale(price)")
