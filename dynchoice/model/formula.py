"""What a formula may say: names, numbers, arithmetic and a few functions; nothing else is run.

formulaic evaluates what stands between braces, and the arguments of functions, as Python. A formula
comes from a run file, so its expressions are read first, and refused unless they are arithmetic.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

from dynchoice.errors import SpecificationError, suggest

NUMPY = (
    "log",
    "log1p",
    "log2",
    "log10",
    "exp",
    "expm1",
    "sqrt",
    "square",
    "abs",
    "minimum",
    "maximum",
    "where",
    "clip",
    "floor",
    "ceil",
    "sign",
    "power",
)
"""Functions that may be called as ``np.NAME``."""
PLAIN = (
    "I",
    "C",
    "Q",
    "abs",
    "log",
    "log1p",
    "log10",
    "exp",
    "sqrt",
    "scale",
    "center",
    "standardize",
    "poly",
    "bs",
    "cs",
    "cc",
    "cr",
)
"""formulaic's transforms (those that depend on the rows are refused later, by name)."""
ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Name,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
"""What an expression may be made of, beside calls of the functions above and constants."""
LONGEST = 20_000
LARGEST_POWER = 10
COLOURS = re.compile(r"\x1b\[[0-9;]*m|[⧛⧚]")
"""Marks that formulaic sets around what it cannot read."""


def plain_message(error: object) -> str:
    """Return the text of an error of formulaic on one line, without its marks."""
    return " ".join(COLOURS.sub("", str(error)).split())


def parse(formula: str) -> Any:
    """Return a formula as formulaic reads it, its expressions checked; terms keep their order.

    Raises
    ------
    SpecificationError
        It cannot be read, or holds more than arithmetic.
    """
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    if len(formula) > LONGEST:
        raise SpecificationError(f"the formula has more than {LONGEST:,} letters")
    # formulaic multiplies a power out: (a + b)**100 would take all memory before it fails
    large = [int(n) for n in re.findall(r"(?:\*\*|\^)\s*\+?(\d+)", formula) if len(n) > 2]
    if large:
        raise SpecificationError(f"formula {quote(formula)}: a power of {large[0]} is too large")
    try:
        # formulaic sorts terms by degree; coefficients here stand in the order of the formula
        parsed = Formula(formula, _ordering="none")
    except (FormulaicError, SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise SpecificationError(f"formula {quote(formula)}: {plain_message(error)}") from error
    for term in iterate_terms(parsed):
        for factor in term.factors:
            if getattr(factor.eval_method, "value", "") == "python":
                check_expression(str(factor.expr), formula)
    return parsed


def iterate_terms(parsed: Any) -> Iterator[Any]:
    """Yield the terms of a formula, of all its parts where it has several."""
    for part in parsed:
        if hasattr(part, "factors"):
            yield part
        else:
            yield from iterate_terms(part)


def quote(formula: str) -> str:
    """Return a formula as it is quoted in a message."""
    return repr(formula if len(formula) <= 200 else f"{formula[:197]}...")


def check_expression(text: str, formula: str) -> None:
    """Raise unless an expression is arithmetic on names and numbers.

    What is allowed is listed, not what is forbidden: an attribute alone (``x.__class__``) is a way
    out to everything that Python can do.

    Raises
    ------
    SpecificationError
        It holds anything else, or cannot be read.
    """

    def refuse(what: str, hint: str = "") -> None:
        raise SpecificationError(
            f"formula {quote(formula)}: {what} in {text!r} is not allowed: names, numbers,"
            f" arithmetic and functions ({', '.join(f'np.{n}' for n in NUMPY[:8])} ...) are.{hint}"
        )

    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecificationError(
            f"formula {quote(formula)}: cannot read {text!r}: {error}"
        ) from error
    functions = set()
    allowed = [*PLAIN, *(f"np.{n}" for n in NUMPY)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            functions |= {id(node.func)}
            name = ast.unparse(node.func)
            if name not in allowed:
                refuse(f"the function {name!r}", suggest(name, allowed))
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            check_operation(node, refuse)
        if isinstance(node, ast.Attribute):
            if id(node) not in functions:
                refuse(f"the attribute {node.attr!r}")
        elif isinstance(node, ast.Constant):
            if not isinstance(node.value, (int, float, str)):
                refuse(f"{node.value!r}")
        elif isinstance(node, ast.Name) and node.id.startswith("__"):
            refuse(f"the name {node.id!r}")
        elif not isinstance(node, (*ARITHMETIC, ast.Call)):
            refuse(f"{type(node).__name__.lower()}")


def check_operation(node: ast.BinOp, refuse: Callable[[str], None]) -> None:
    """Refuse an operation whose result could be of any size: towers of powers, repeated texts."""
    if isinstance(node.op, (ast.LShift, ast.RShift)):
        refuse("a shift of bits")
    if any(
        isinstance(x, ast.Constant) and isinstance(x.value, str) for x in (node.left, node.right)
    ):
        refuse("arithmetic on a text")
    if isinstance(node.op, ast.Pow):
        power = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
        value = power.value if isinstance(power, ast.Constant) else None
        if not isinstance(value, (int, float)) or abs(value) > LARGEST_POWER:
            refuse(f"a power other than a number up to {LARGEST_POWER}")
