"""The manifest of a run: what went in, what came out, and whether it can be trusted."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1
PACKAGES = ("numpy", "scipy", "numba", "pandas", "pyarrow", "ibis-framework", "duckdb", "formulaic")


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    h = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def describe_files(paths: Iterable[Path], relative_to: Path) -> list[dict[str, Any]]:
    """Return name, size and digest of files."""
    out = []
    for p in paths:
        name = os.path.relpath(p, relative_to)
        out.append({"name": name, "bytes": p.stat().st_size, "sha256": digest(p)})
    return out


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from dynchoice import __version__

    found = {"dynchoice": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest as JSON, whole or not at all."""
    from dynchoice.storage import write_atomically

    text = json.dumps({"schema": SCHEMA, **manifest}, indent=2, default=str) + "\n"
    write_atomically(path, lambda handle: handle.write(text.encode()))
