"""Sections of the run file whose keys are declared in Python, and said nowhere else.

A scenario of a run file has the fields of :class:`dynchoice.Scenario`, ``[data]`` the options of
:class:`dynchoice.Panel`: a new one there is a new key here, of the type that its annotation has in
TOML. What TOML has no words for (a model, an array, a function) is no key.

Declarations are read from the text of the source: to import it would load what models are made of,
which takes longer than all else that a run with nothing to do does.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_origin

from pydantic import BaseModel, Field, FiniteFloat, create_model

Label = bool | int | FiniteFloat | str
Name = Annotated[str, Field(min_length=1)]
Dated = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2]|Q[1-4])$")]
When = Annotated[int, Field(ge=1)] | Dated
"""A period of the forecast: its number (1 is the first), or its label (``"2026-07"``)."""
Settings = dict[str, Any]
"""A plan or a benefit: checked by its dataclass where it is built (membership/file.py)."""

TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": FiniteFloat,
    "str": Name,
    "Level": Label,
    "Period": When,
    "Plan": Settings,
    "Benefit": Settings,
}
"""What a name in an annotation is in TOML; other names are nothing that TOML can say."""

ROOT = Path(__file__).parents[1]
Table = TypeVar("Table", bound=BaseModel)
Key: TypeAlias = tuple[ast.expr, ast.expr | None]


def with_keys_of(
    file: str, name: str, first: Sequence[str], leave: Sequence[str] = ()
) -> Callable[[type[Table]], type[Table]]:
    """Add the fields of a dataclass, or the options of a function, to a section.

    A key that the section declares itself keeps that declaration.

    Parameters
    ----------
    file, name : str
        Where the dataclass, class or function is: a file of the package, and its name there.
    first : sequence of str
        Keys that come before the others in what is written of a run, in this order.
    leave : sequence of str
        Fields or options that a run file does not have.
    """
    added = {k: v for k, v in declared(file, name).items() if k not in leave}

    def decorate(section: type[Table]) -> type[Table]:
        keys = {k: in_toml(annotation, default) for k, (annotation, default) in added.items()}
        keys |= {k: (f.annotation, f) for k, f in section.model_fields.items()}
        fields: Any = {k: keys[k] for k in dict.fromkeys([*first, *keys]) if keys[k] is not None}
        options: Any = {"__module__": section.__module__, "__doc__": section.__doc__}
        made: Any = create_model(section.__name__, __base__=section.__base__, **options, **fields)
        return made

    return decorate


@cache
def declared(file: str, name: str) -> dict[str, Key]:
    """Return annotation and default of each field of a dataclass, or option of a function.

    Options are what can only be given by name; of a class that has them, its ``__init__``'s.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    node = find_node(tree, name)
    call = find_node(node, "__init__") if isinstance(node, ast.ClassDef) else node
    if isinstance(call, ast.FunctionDef):
        options = zip(call.args.kwonlyargs, call.args.kw_defaults, strict=True)
        return {a.arg: (a.annotation, default) for a, default in options if a.annotation}
    assert isinstance(node, ast.ClassDef), f"{file} declares no {name}"
    return {
        line.target.id: (line.annotation, line.value)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def find_node(tree: ast.Module | ast.ClassDef, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """Return the class or function of a name that stands at the top of a tree, if there is one."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return next((n for n in tree.body if isinstance(n, kinds) and n.name == name), None)


def in_toml(annotation: ast.expr, default: ast.expr | None) -> tuple[Any, Any] | None:
    """Return type and default of a key of a run file, or None where TOML cannot say it.

    Mappings and sequences that may be left out are empty where they are.
    """
    kind = toml_type(annotation)
    if kind is None or default is None:
        return None if kind is None else (kind, ...)
    for container in (dict, list):
        if get_origin(kind) is container:
            return kind, container()
    value = ast.literal_eval(default)
    return (kind | None if value is None else kind), value


def toml_type(annotation: ast.expr) -> Any:
    """Return the type that a value of an annotation has in TOML, None where it has none.

    Of ``X | Sequence[X]`` it is the list.
    """
    if isinstance(annotation, ast.BinOp):
        kinds = [toml_type(side) for side in (annotation.left, annotation.right)]
        kinds = [kind for kind in kinds if kind is not None]
        lists = [kind for kind in kinds if get_origin(kind) is list]
        return Union[tuple(lists or kinds)] if kinds else None  # noqa: UP007  of a list of types
    if isinstance(annotation, ast.Name):
        return TYPES.get(annotation.id)
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.value, ast.Name):
        return None
    inside = annotation.slice
    match annotation.value.id:
        case "Literal":
            return Literal.__getitem__(ast.literal_eval(inside))
        case "Sequence":
            return list.__class_getitem__(toml_type(inside))
        case "Mapping" if isinstance(inside, ast.Tuple):
            values = inside.elts[1]
            kind = Any if ast.unparse(values) == "Any" else toml_type(values)
            return None if kind is None else dict.__class_getitem__((str, kind))
    return None
