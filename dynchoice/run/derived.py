"""Sections of the run file whose keys are declared in Python, and said nowhere else.

A scenario of a run file has the fields of :class:`dynchoice.Scenario`, ``[data]`` the options of
:class:`dynchoice.Panel`: a new one there is a new key here, of the type that its annotation has in
TOML. What TOML has no words for (a model, an array, a function) is no key.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, FiniteFloat, create_model

from dynchoice.counterfactuals.scenario import Period
from dynchoice.membership.file import PARTS

Label = bool | int | FiniteFloat | str
Name = Annotated[str, Field(min_length=1)]
Dated = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2]|Q[1-4])$")]
When = Annotated[int, Field(ge=1)] | Dated
"""A period of the forecast: its number (1 is the first), or its label (``"2026-07"``)."""


Table = TypeVar("Table", bound=BaseModel)
Source = type | Callable[..., Any]


def with_keys_of(
    source: Source, first: Sequence[str] | None = None, leave: Sequence[str] = ()
) -> Callable[[type[Table]], type[Table]]:
    """Add the fields of a dataclass, or the options of a function, to a section.

    A key that the section declares itself keeps that declaration.

    Parameters
    ----------
    source : dataclass or callable
    first : sequence of str, optional
        The section's own keys that come before those added. Default: all but those of ``source``.
    leave : sequence of str
        Fields or options that a run file does not have.
    """
    added = {k: v for k, v in declared(source).items() if k not in leave}

    def decorate(section: type[Table]) -> type[Table]:
        declared_here = {k: (f.annotation, f) for k, f in section.model_fields.items()}
        before = [k for k in declared_here if k not in added] if first is None else first
        keys = {
            k: declared_here.get(k) or in_toml(*added[k]) for k in [*before, *added, *declared_here]
        }
        return create_model(  # type: ignore[call-overload]
            section.__name__,
            __base__=section.__base__,
            __module__=section.__module__,
            __doc__=section.__doc__,
            **{k: key for k, key in keys.items() if key is not None},
        )

    return decorate


def declared(source: Source) -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """Return the annotation (a text), default and namespace of each field or option of a source."""
    if is_dataclass(source):
        names = vars(inspect.getmodule(source))
        return {
            f.name: (str(f.type), ... if f.default is MISSING else f.default, names)
            for f in fields(source)
        }
    call: Any = vars(source)["__init__"] if isinstance(source, type) else source
    return {
        name: (str(p.annotation), ... if p.default is p.empty else p.default, call.__globals__)
        for name, p in inspect.signature(call).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }


def in_toml(annotation: str, default: Any, names: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return type and default of a key of a run file, or None where TOML cannot say it.

    Mappings and sequences that may be left out are empty where they are.
    """
    # one at a time: others may name what is imported for type checkers only
    kind = toml_type(eval(annotation, names))
    if kind is None:
        return None
    for container in (dict, list):
        if get_origin(kind) is container:
            return kind, container()
    if default is None:
        kind = kind | None
    return kind, default


SCALARS: dict[Any, Any] = {float: FiniteFloat, str: Name, Period: When, Hashable: Label}


def toml_type(annotation: Any) -> Any:
    """Return the type that a value of an annotation has in TOML, None where it has none.

    Of several the first come first; ``X | Sequence[X]`` is a list.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (bool, int) or origin is Literal:
        return annotation
    if annotation in SCALARS:
        return SCALARS[annotation]
    if annotation in PARTS.values():  # its settings are checked where it is built, by the dataclass
        return dict[str, Any]
    if origin is Mapping:
        values: Any = Any if args[1] is Any else toml_type(args[1])
        return None if values is None else dict.__class_getitem__((str, values))
    if origin is Sequence:
        return list.__class_getitem__(toml_type(args[0]))
    if origin in (Union, UnionType):
        found = [toml_type(a) for a in args if a is not type(None)]
        lists = [a for a in found if get_origin(a) is list]
        found = lists or [a for a in found if a is not None]
        return Union[tuple(found)] if found else None  # noqa: UP007  of a list of types
    return None
