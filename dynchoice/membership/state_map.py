"""Where members stand when a programme changes under them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.membership.contracts import NEW, NONE, PAID, TRIAL, Contracts
from dynchoice.membership.names import CONTRACT, VINTAGE
from dynchoice.membership.programme import Programme
from dynchoice.typing import IntArray


def state_map(old: Programme, new: Programme) -> IntArray:
    """Return where each state (S,) of this programme stands in a changed one.

    Contract levels, menus, bundles and engagement keep their labels; a benefit that is new
    starts unused; under ``kept`` prices, members with a running plan keep theirs.
    """
    index = []
    for axis, levels in new.states.axes.items():
        if axis == VINTAGE and axis not in old.states.axes:
            paid = old.by_contract(old.contracts.kind) == PAID
            index.append(paid.astype(np.int64))
            continue
        if axis not in old.states.axes:
            index.append(np.zeros(old.states.size, dtype=np.int64))
            continue
        at: dict[Any, int] = {level: i for i, level in enumerate(levels)}
        levels_now = old.states.axes[axis]
        lost = [level for level in levels_now if level not in at]
        if axis == CONTRACT and lost:
            at |= _renamed(old.contracts, new.contracts)
            lost = [level for level in levels_now if level not in at]
        if lost:
            raise SpecificationError(
                f"level {lost[0]!r} of {axis!r} has no place in the changed programme"
            )
        index.append(np.array([at[level] for level in levels_now])[old.states.axis_codes(axis)])
    return np.ravel_multi_index(tuple(index), new.states.shape).astype(np.int64)


def _renamed(old: Contracts, new: Contracts) -> dict[str, int]:
    """Return places of old contract labels whose spelling changed with trials or clocks."""
    out: dict[str, int] = {}
    for level in old.levels:
        for i, other in enumerate(new.levels):
            if level.label == NONE and other.kind == NEW:  # trials are new: nobody has had one
                out.setdefault(level.label, i)
            same = level.kind == other.kind and level.kind in (TRIAL, PAID)
            same &= (level.left, level.tenure) == (other.left, other.tenure)
            if same and old.plans[level.plan].name == new.plans[other.plan].name:
                out[level.label] = i
    return out
