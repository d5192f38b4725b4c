"""Checks of arguments, in the house's words: each returns the value, or says what is wrong.

``what`` names the argument as its user typed it (``"draws"``, ``"price of 'annual'"``), so that a
message reads ``draws=0 must be a whole number of at least 20``. What is checked here is the form of
one value; whether values go together is the caller's to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dynchoice.errors import ColumnError, DynChoiceError, SpecificationError, first_few, suggest

if TYPE_CHECKING:
    import pandas as pd

Kind = TypeVar("Kind")


def whole(value: object, what: str, least: int = 0, most: int | None = None) -> int:
    """Return a whole number from ``least`` to ``most``; numpy's integers are whole numbers too.

    Raises
    ------
    SpecificationError
        A fraction, a text, a bool, or a number outside.

    Examples
    --------
    >>> whole(3, "periods", 1)
    3
    """
    integer = getattr(value, "__index__", None)
    if integer is None or isinstance(value, bool) or hasattr(value, "__len__"):
        raise SpecificationError(f"{what}={value!r} must be a whole number{_range(least, most)}")
    number = int(integer())
    if number < least or (most is not None and number > most):
        raise SpecificationError(f"{what}={number:,} must be a whole number{_range(least, most)}")
    return number


def _range(least: int, most: int | None) -> str:
    return f" of at least {least:,}" if most is None else f" from {least:,} to {most:,}"


def number(
    value: object,
    what: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    infinite: bool = False,
) -> float:
    """Return a number from ``least`` to ``most``, both included; infinite only where allowed.

    Raises
    ------
    SpecificationError
        A text, a bool, nothing, NaN, or a number outside.

    Examples
    --------
    >>> number(2, "weight", 0)
    2.0
    """
    converted = _real(value)
    if converted is None or math.isnan(converted):
        raise SpecificationError(f"{what}={value!r} is no number")
    if math.isinf(converted) and not infinite:
        raise SpecificationError(f"{what}={value!r} must be a finite number")
    if not least <= converted <= most:
        raise SpecificationError(f"{what}={converted:g} must {_bounds(least, most)}")
    return converted


def _real(value: object) -> float | None:
    """Return a real number of any library as a float, or None for everything else."""
    if isinstance(value, str | bytes | bool) or type(value).__name__ in ("bool_", "bool"):
        return None
    if getattr(value, "shape", ()) != () or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _bounds(least: float, most: float) -> str:
    if most == math.inf:
        return f"be at least {least:g}"
    return f"be at most {most:g}" if least == -math.inf else f"lie between {least:g} and {most:g}"


def positive(value: object, what: str) -> float:
    """Return a finite number above 0.

    Raises
    ------
    SpecificationError
        It is none.
    """
    converted = number(value, what)
    if converted <= 0:
        raise SpecificationError(f"{what}={converted:g} must be a positive number")
    return converted


def share(value: object, what: str, *, open_interval: bool = False) -> float:
    """Return a number from 0 to 1; with ``open_interval`` neither 0 nor 1 (a confidence level).

    Raises
    ------
    SpecificationError
        It is none, or probably meant in per cent.
    """
    converted = number(value, what)
    inside = 0 < converted < 1 if open_interval else 0 <= converted <= 1
    if not inside:
        percent = f" (for {converted:g}% write {converted / 100:g})" if 1 < converted <= 100 else ""
        raise SpecificationError(f"{what}={converted:g} must lie between 0 and 1{percent}")
    return converted


def one_of(value: Any, what: str, allowed: Collection[Any]) -> Any:
    """Return a value that is one of a few.

    Raises
    ------
    SpecificationError
        Another one; the nearest is suggested.
    """
    plain = isinstance(value, str | int) and not isinstance(value, bool)
    if not any(value is a or (plain and not isinstance(a, bool) and value == a) for a in allowed):
        raise SpecificationError(
            f"{what}={value!r} is unknown.{suggest(value, allowed)} Use {_either(allowed)}"
        )
    return value


def _either(allowed: Collection[Any]) -> str:
    """Return values as a reader names them: ``'a', 'b' or 'c'``."""
    *first, last = map(repr, allowed)
    return f"{', '.join(first)} or {last}" if first else last


def known(
    names: Iterable[Any],
    pool: Iterable[Any],
    what: str,
    *,
    error: type[DynChoiceError] = SpecificationError,
) -> None:
    """Raise for the first of some names that is not in the pool.

    Parameters
    ----------
    what : str
        What the names are, with where they stand: ``"prices: plan"``, ``"parameter"``.

    Raises
    ------
    SpecificationError
        Or ``error``: how many are unknown, the first of them, the nearest name, the pool.
    """
    listed = list(pool)
    strange = [name for name in names if name not in listed]
    if strange:
        more = f" ({len(strange):,} unknown)" if len(strange) > 1 else ""
        raise error(
            f"{what} {strange[0]!r} is unknown{more}.{suggest(strange[0], listed)} Known:"
            f" {first_few(listed, 12) or 'none'}"
        )


def columns(frame: pd.DataFrame, names: Iterable[str], what: str) -> None:
    """Raise unless a table has all of some columns.

    Raises
    ------
    SpecificationError
        It is no table.
    ColumnError
        A column is missing; the nearest is suggested.
    """
    if not hasattr(frame, "columns"):
        raise SpecificationError(f"{what} must be a table, got a {type(frame).__name__}")
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ColumnError(
            f"{what}: column {missing[0]!r} is missing.{suggest(missing[0], frame.columns)}"
            f" Columns: {first_few(list(map(str, frame.columns)), 12)}"
        )


def instance(value: object, what: str, kind: type[Kind], hint: str = "") -> Kind:
    """Return a value that is of a class.

    Parameters
    ----------
    hint : str
        What to pass instead, put behind the message.

    Raises
    ------
    SpecificationError
        It is of another.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise SpecificationError(
            f"{what} must be {article} {kind.__name__}, got {type(value).__name__}"
            f" {_short(value)}{hint and ': ' + hint}"
        )
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def mapping(value: object, what: str) -> dict[str, Any]:
    """Return a mapping as a dict with text keys.

    Raises
    ------
    SpecificationError
        It is none.
    """
    if not isinstance(value, Mapping):
        raise SpecificationError(f"{what} must map names to values, got {_short(value)}")
    return {str(key): item for key, item in value.items()}


def names(value: object, what: str) -> tuple[str, ...]:
    """Return a tuple of names; one text is one name.

    Raises
    ------
    SpecificationError
        No list of names.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple | set | frozenset):
        raise SpecificationError(f"{what} must be a list of names, got {_short(value)}")
    return tuple(map(str, value))


def items(value: object, what: str) -> list[Any]:
    """Return a sequence as a list that is not empty.

    Raises
    ------
    SpecificationError
        One text (a sequence of letters), nothing, or no sequence.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise SpecificationError(f"{what}={value!r}: give a list, e.g. {what}=[{value!r}]")
    listed = list(value)
    if not listed:
        raise SpecificationError(f"{what} is empty: name at least one")
    return listed


def shape(array: Any, what: str, expected: tuple[int, ...], letters: str = "") -> None:
    """Raise unless an array has a shape.

    Parameters
    ----------
    letters : str
        What the axes are, for the message: ``"(S, J)"``.

    Raises
    ------
    SpecificationError
        It has another.
    """
    if array.shape != expected:
        meaning = f"{letters} = " if letters else ""
        raise SpecificationError(f"{what} has shape {array.shape}, expected {meaning}{expected}")


def function(value: object, what: str, example: str) -> Callable[..., Any]:
    """Return something that can be called.

    Raises
    ------
    SpecificationError
        It cannot; the message shows the example.
    """
    if not callable(value):
        raise SpecificationError(f"{what}={value!r}: pass a function, e.g. {example}")
    return value


def seed(value: object, what: str = "seed") -> int | None:
    """Return a seed: a whole number from 0, or None for another one each time.

    Raises
    ------
    SpecificationError
        It is none.
    """
    return None if value is None else whole(value, what)
