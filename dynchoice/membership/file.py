"""Programmes as plain nested values and TOML files, read strictly: unknown keys are named."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.membership.plans import Benefit, MemberType, Plan
from dynchoice.membership.programme import Programme
from dynchoice.storage import write_atomically

Club = TypeVar("Club", bound=Programme)
Part = TypeVar("Part")
PARTS: dict[str, type[Plan] | type[Benefit]] = {"plans": Plan, "benefits": Benefit}


def plain(value: object) -> Any:
    """Return a value made of dicts, lists, texts and numbers."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, MemberType):
        return record(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def record(part: Plan | Benefit | MemberType | Programme) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    out = {}
    for f in fields(part):
        value = getattr(part, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value is not None and (default is MISSING or value != default):
            out[f.name] = plain(value)
    return out


def as_plain(club: Programme) -> dict[str, Any]:
    """Return a programme as nested plain values."""
    tree = record(club)
    for what in PARTS:
        tree[what] = [record(part) for part in getattr(club, what)]
    # nothing has no spelling in TOML: "never" stands for it where the default is something
    if club.trial_again is None:
        tree["trial_again"] = "never"
    # an empty list of costs, or of kept prices, says something that their default does not
    if club.costs is not None:
        tree["costs"] = list(club.costs)
    if club.kept is not None:
        tree["kept"] = plain(club.kept)
    return tree


def build(kind: type[Part], tree: object, what: str) -> Part:
    """Build a dataclass from a mapping of its fields.

    Raises
    ------
    SpecificationError
        No mapping; fields that are unknown, missing or wrong, with ``what`` in front.
    """
    if not isinstance(tree, Mapping):
        raise SpecificationError(f"{what}: a table of settings is needed, got {tree!r}")
    settings = fields(kind)  # type: ignore[arg-type]
    checks.known(tree, [f.name for f in settings], f"{what}: setting")
    values = dict(tree)
    for name in ("given", "segments", "costs", "engages"):  # TOML has lists only
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    needed = [f.name for f in settings if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        owner = f" of {values['name']!r}" if values.get("name") else ""
        raise SpecificationError(f"{what}: {missing[0]!r}{owner} is missing")
    try:
        return kind(**values)
    except TypeError as error:
        raise SpecificationError(f"{what}: {error}") from None


def from_plain(kind: type[Club], tree: Mapping[str, Any]) -> Club:
    """Build a programme from nested plain values.

    Raises
    ------
    SpecificationError
        Whatever does not fit, with the place in the tree.
    """
    values = dict(tree)
    for what, part in PARTS.items():
        rows = values.get(what, [])
        if not isinstance(rows, list | tuple):
            raise SpecificationError(f"{what}: a list of tables is needed ([[{what}]] in TOML)")
        values[what] = tuple(build(part, row, f"{what}[{i}]") for i, row in enumerate(rows))
    values["types"] = _types(values.get("types", {}), "types")
    segments = {}
    for label, row in checks.mapping(values.get("segments", {}), "segments").items():
        change = checks.mapping(row, f"segments.{label}")
        if "types" in change:
            change["types"] = _types(change["types"], f"segments.{label}.types")
        segments[label] = change
    values["segments"] = segments
    if values.get("trial_again") == "never":
        values["trial_again"] = None
    return build(kind, values, "membership")


def _types(tree: object, what: str) -> dict[str, MemberType]:
    """Build the unobserved types of a programme or of a segment."""
    rows = checks.mapping(tree, what)
    return {label: build(MemberType, row, f"{what}.{label}") for label, row in rows.items()}


def read_toml(kind: type[Club], path: Path) -> Club:
    """Read a programme from a TOML file.

    Raises
    ------
    SpecificationError
        No such file; no TOML; whatever does not fit, with the file's name.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecificationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecificationError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SpecificationError(f"{path}: {error}") from error
    try:
        return from_plain(kind, tree)
    except SpecificationError as error:
        raise SpecificationError(f"{path}: {error}") from error


def write_toml(club: Programme, path: Path) -> Path:
    """Write a programme to a TOML file, whole or not at all."""
    import tomli_w

    text = tomli_w.dumps(as_plain(club))
    return write_atomically(path, lambda handle: handle.write(text.encode()))
