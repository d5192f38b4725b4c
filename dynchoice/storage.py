"""Saved objects: one ``.npz`` file of arrays with a JSON skeleton inside. No pickle.

A write goes to a temporary file beside the target, is flushed to disk and then renamed, so a
reader never sees half a file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dynchoice.errors import StorageError
from dynchoice.typing import AnyArray, FilePath

FORMAT = 1
SKELETON = "skeleton"


def write_atomically(path: FilePath, write: Callable[[BinaryIO], object]) -> Path:
    """Write a file by ``write(handle)`` such that it appears whole or not at all.

    Raises
    ------
    StorageError
        The folder or the file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise StorageError(f"cannot write to {target.parent}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp lets its owner alone read; a mask can only be read by setting another
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # gone already where the rename came through
    return target


def save_tree(path: FilePath, kind: str, tree: dict[str, Any]) -> Path:
    """Save nested dicts and lists of arrays, numbers, texts, booleans and None.

    ``kind`` says what the tree describes; :func:`load_tree` refuses a file of another.

    Raises
    ------
    StorageError
        Something else is in the tree, or the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    skeleton = {"kind": kind, "format": FORMAT, "tree": _strip(tree, arrays)}
    arrays[SKELETON] = np.array(json.dumps(skeleton))
    return write_atomically(path, lambda handle: np.savez_compressed(handle, **arrays))


def load_tree(path: FilePath, kind: str) -> dict[str, Any]:
    """Load what :func:`save_tree` wrote.

    Raises
    ------
    StorageError
        No such file; not ours; damaged; another kind of object; a newer format.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            skeleton = json.loads(str(archive[SKELETON]))
            arrays = {name: archive[name] for name in archive.files if name != SKELETON}
    except FileNotFoundError:
        raise StorageError(f"no such file: {path}") from None
    except Exception as error:  # a damaged file raises whatever zip, JSON or numpy meet first
        raise StorageError(f"{path} is no saved dynchoice object or is damaged: {error}") from error
    if skeleton.get("kind") != kind:
        raise StorageError(f"{path} holds {skeleton.get('kind')!r}, expected {kind!r}")
    if skeleton["format"] > FORMAT:
        raise StorageError(
            f"{path} was written by a newer dynchoice (format {skeleton['format']}): update it"
        )
    return dict(_fill(skeleton["tree"], arrays))


def _strip(node: Any, arrays: dict[str, AnyArray]) -> Any:
    """Return a tree with each array moved into ``arrays`` and its name in its place."""
    if isinstance(node, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = node
        return {"__array__": name}
    if isinstance(node, dict):
        return {str(k): _strip(v, arrays) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_strip(v, arrays) for v in node]
    if isinstance(node, np.generic):
        return node.item()
    if node is None or isinstance(node, str | int | float | bool):
        return node
    raise StorageError(f"cannot save a {type(node).__name__} without pickle")


def _fill(node: Any, arrays: dict[str, AnyArray]) -> Any:
    """Return a tree with each name of an array replaced by the array."""
    if isinstance(node, dict):
        if set(node) == {"__array__"}:
            return arrays[node["__array__"]]
        return {k: _fill(v, arrays) for k, v in node.items()}
    if isinstance(node, list):
        return [_fill(v, arrays) for v in node]
    return node
