"""Counts in one file and back, bit for bit, without pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from dynchoice.errors import StorageError
from dynchoice.panel.cells import RegionCells
from dynchoice.panel.counts import Counts, MemberCells
from dynchoice.panel.states import StateSpace
from dynchoice.storage import load_tree, save_tree
from dynchoice.typing import FilePath

KIND = "Counts"
PLAIN = (
    "buckets",
    "cells",
    "n",
    "period_cells",
    "period_n",
    "segment_members",
    "period_kind",
    "origin",
    "unit",
)
"""Fields of counts that are saved as they are."""


def counts_to_tree(counts: Counts) -> dict[str, Any]:
    """Return counts as nested plain values and arrays."""
    members, regions = counts.members, counts.regions
    return {
        **{name: getattr(counts, name) for name in PLAIN},
        "axes": [[name, list(levels)] for name, levels in counts.states.axes.items()],
        "choices": list(counts.choices),
        "segments": list(counts.segments),
        "members": None
        if members is None
        else {f.name: getattr(members, f.name) for f in fields(MemberCells)},
        "regions": None
        if regions is None
        else {"labels": list(regions.labels), "cells": regions.cells, "n": regions.n},
    }


def counts_from_tree(tree: Mapping[str, Any]) -> Counts:
    """Return the counts that :func:`counts_to_tree` described."""
    members, regions = tree["members"], tree["regions"]
    return Counts(
        states=StateSpace.from_axes(dict(tree["axes"])),
        choices=tuple(tree["choices"]),
        segments=tuple(tree["segments"]),
        members=None if members is None else MemberCells(**members),
        regions=None
        if regions is None
        else RegionCells(tuple(regions["labels"]), regions["cells"], regions["n"]),
        **{name: tree[name] for name in PLAIN},
    )


def save_counts(counts: Counts, path: FilePath) -> Path:
    """Write counts to one ``.npz`` file, whole or not at all."""
    return save_tree(path, KIND, counts_to_tree(counts))


def load_counts(path: FilePath) -> Counts:
    """Read what :func:`save_counts` wrote.

    Raises
    ------
    StorageError
        No such file, damaged, or no counts.
    """
    try:
        return counts_from_tree(load_tree(path, KIND))
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path} cannot be read by this version: {error}") from error


def full_digest(counts: Counts) -> str:
    """Return the SHA-256 of all that counts hold, members and regions included.

    :attr:`Counts.digest` is of the likelihood's cells alone; standard errors see more.
    """
    h = hashlib.sha256()

    def take(value: object) -> None:
        if isinstance(value, np.ndarray):
            h.update(f"{value.dtype.str}{value.shape}".encode())
            h.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            for name in sorted(value):
                h.update(name.encode())
                take(value[name])
        else:
            h.update(repr(value).encode())

    take(counts_to_tree(counts))
    return h.hexdigest()
