"""The manifest of a run: what went in, what came out, and whether it can be trusted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 2
PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "pandas",
    "pyarrow",
    "ibis-framework",
    "duckdb",
    "formulaic",
    "statsmodels",
    "matplotlib",
    "jinja2",
    "markupsafe",
    "joblib",
)


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def describe_files(paths: Iterable[Path], relative_to: Path) -> list[dict[str, Any]]:
    """Return name, size and digest of files."""
    out = []
    for p in paths:
        name = os.path.relpath(p, relative_to)
        out.append({"name": name, "bytes": p.stat().st_size, "sha256": digest(p)})
    return out


def same(path: Path, described: Mapping[str, Any]) -> bool:
    """Return whether a file is what it was when it was described."""
    return path.stat().st_size == described["bytes"] and digest(path) == described["sha256"]


@cache
def versions() -> Mapping[str, str]:
    """Return the versions that a result depends on."""
    from dynchoice import __version__

    found = {"dynchoice": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as JSON, whole or not at all."""
    from dynchoice.storage import write_atomically

    text = json.dumps(finite({"schema": SCHEMA, **manifest}), indent=2, default=str) + "\n"
    write_atomically(path, lambda handle: handle.write(text.encode()))


def finite(value: object) -> Any:
    """Return nested values with null for numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
