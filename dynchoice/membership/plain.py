"""Programmes as plain nested values and TOML files, read strictly: unknown keys are named."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.membership.plans import Benefit, MemberType, Plan, check_mapping
from dynchoice.membership.programme import Programme
from dynchoice.storage import write_atomically

Club = TypeVar("Club", bound=Programme)
PARTS: dict[str, Any] = {"plans": Plan, "benefits": Benefit}


def plain(value: Any) -> Any:
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


def record(part: Any) -> dict[str, Any]:
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
    own = record(club)
    for what in PARTS:
        own[what] = [record(x) for x in getattr(club, what)]
    # nothing has no spelling in TOML: "never" stands for it where the default is something
    if club.trial_again is None:
        own["trial_again"] = "never"
    if club.costs is not None:
        own["costs"] = list(club.costs)
    if club.kept is not None:
        own["kept"] = plain(club.kept)
    return own


def build(kind: Any, tree: Any, what: str) -> Any:
    """Build a dataclass from a mapping, naming keys that it does not have."""
    if not isinstance(tree, Mapping):
        raise SpecificationError(f"{what}: a table of settings is needed, got {tree!r}")
    known = [f.name for f in fields(kind)]
    strange = [k for k in tree if k not in known]
    if strange:
        raise SpecificationError(
            f"{what}: unknown setting {strange[0]!r}.{suggest(strange[0], known)} Known:"
            f" {', '.join(known)}"
        )
    own = dict(tree)
    for name in ("given", "segments", "costs", "engages"):
        if isinstance(own.get(name), list):
            own[name] = tuple(own[name])
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [k for k in needed if k not in own]
    if missing:
        name = f" of {own['name']!r}" if own.get("name") else ""
        raise SpecificationError(f"{what}: {missing[0]!r}{name} is missing")
    try:
        return kind(**own)
    except TypeError as error:
        raise SpecificationError(f"{what}: {error}") from None


def from_plain(kind: type[Club], tree: Mapping[str, Any]) -> Club:
    """Build a programme from nested plain values."""
    own = dict(tree)
    for what, part in PARTS.items():
        rows = own.get(what, [])
        if not isinstance(rows, list | tuple):
            raise SpecificationError(f"{what}: a list of tables is needed ([[{what}]] in TOML)")
        own[what] = tuple(build(part, r, f"{what}[{i}]") for i, r in enumerate(rows))
    types = check_mapping(own.get("types", {}), "types")
    own["types"] = {k: build(MemberType, v, f"types.{k}") for k, v in types.items()}
    segments = {}
    for label, change in check_mapping(own.get("segments", {}), "segments").items():
        change = check_mapping(change, f"segments.{label}")
        if "types" in change:
            kinds = check_mapping(change["types"], f"segments.{label}.types").items()
            change["types"] = {
                k: build(MemberType, v, f"segments.{label}.types.{k}") for k, v in kinds
            }
        segments[label] = change
    own["segments"] = segments
    if own.get("trial_again") == "never":
        own["trial_again"] = None
    club: Club = build(kind, own, "membership")
    return club


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
