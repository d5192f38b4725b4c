"""Lifts: a law of engagement under which more members who do not use a benefit start to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError, SpecificationError
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, Markov
from dynchoice.panel.states import as_floats, code_labels
from dynchoice.typing import FloatArray

START = "start"


@dataclass(frozen=True)
class Lifted(Markov):
    """A Markov law after lifts, ``added`` (J or 1, groups) each: whatever its table, it is lifted.

    From the lowest level, a share ``added`` of those who would have stayed moves up, to the levels
    above as those who move by themselves do; where it is negative, as many of these stay instead.
    ``base`` is the table that was lifted.
    """

    added: tuple[FloatArray, ...] = ()
    base: FloatArray | None = None

    def applied(self, table: FloatArray) -> FloatArray:
        """Return a table (J or 1, groups, n, n) lifted."""
        out = table.copy()
        for added in self.added:
            # of the lowest level alone: what it takes to start, not to go on
            stay, up = out[:, :, 0, 0].copy(), out[:, :, 0, 1:].copy()
            moving = up.sum(axis=2)
            first = np.zeros(up.shape)
            first[:, :, 0] = 1.0
            share = np.divide(up, moving[:, :, None], out=first, where=moving[:, :, None] > 0)
            gain = np.maximum(stay * added, -moving)
            out[:, :, 0, 1:] = up + gain[:, :, None] * share
            out[:, :, 0, 0] = stay - gain
        return out


def lifted(F: Factored, lifts: Mapping[str, Any]) -> Factored:
    """Return transitions with laws lifted.

    Parameters
    ----------
    F : Factored
        With probabilities known.
    lifts : mapping
        Axis -> added probability that a member on its lowest level leaves it within a period, of
        those who would not have: a number; ``{choice: number}``; or a table with a column
        ``start`` and columns of the law's parents (``choice``, axes).

    Raises
    ------
    SpecificationError
        An axis without a Markov law, parents that the law does not have, numbers outside [-1, 1].
    """
    laws = {law.name: law for law in F.bound}
    bound = list(F.bound)
    for axis, lift in lifts.items():
        checks.known([axis], laws, "lift: axis")
        law = laws[axis]
        if not isinstance(law.family, Markov) or law.table is None or law.n < 2:
            raise SpecificationError(
                f"lift: the law of {axis!r} is no Markov law with known probabilities"
            )
        family = law.family
        added = added_table(F, law, axis, lift)
        # lifts of a lifted law are kept apart, and applied in turn to the table before any of them
        before = family.added if isinstance(family, Lifted) else ()
        base = law.table
        if isinstance(family, Lifted) and family.base is not None:
            base = family.base
        new = Lifted(family.given, "in the table", added=(*before, added), base=base)
        table = np.ascontiguousarray(new.applied(base))
        bound[bound.index(law)] = replace(law, family=new, table=table)
    return F.with_bound(tuple(bound))


def added_table(F: Factored, law: BoundLaw, axis: str, lift: Any) -> FloatArray:
    """Return the added probabilities (J or 1, groups) of a lift as given."""
    import pandas as pd

    rows = len(F.choices) if law.by_choice else 1
    parents = [F.states.names[p] for p in law.parents]
    sizes = [F.states.shape[p] for p in law.parents]
    if isinstance(lift, Mapping):
        lift = pd.DataFrame({"choice": list(lift), START: list(lift.values())})
    if not isinstance(lift, pd.DataFrame):
        try:
            out = np.full((rows, law.groups), float(lift))
        except (TypeError, ValueError):
            raise SpecificationError(
                f"lift of {axis!r} is {lift!r}: a number, {{choice: number}} or a table is needed"
            ) from None
        return check_added(out, axis)
    if START not in lift.columns:
        raise SpecificationError(f"lift of {axis!r}: the table needs a column {START!r}")
    by = [c for c in lift.columns if c != START]
    given = [*(["choice"] if law.by_choice else []), *parents]
    unknown = [c for c in by if c not in given]
    if unknown:
        raise SpecificationError(
            f"lift of {axis!r} depends on {unknown[0]!r}, its law does not: average over it, or"
            f" give the law that parent. It depends on {', '.join(given) or 'nothing'}"
        )
    choices: Sequence[Any] = F.choices
    levels = {"choice": list(choices)} | {p: list(F.states.axes[p]) for p in parents}
    shape = [len(choices) if law.by_choice else 1, *sizes]
    table = np.zeros(shape)
    try:
        codes = {c: code_labels(lift[c].to_numpy(), levels[c], f"lift: column {c!r}") for c in by}
    except DataError as error:
        raise SpecificationError(str(error)) from None
    numbers = as_floats(lift[START].to_numpy(), f"lift of {axis!r}: column 'start'")
    if lift.duplicated(by).any() if by else len(lift) > 1:
        raise SpecificationError(f"lift of {axis!r}: rows of the table repeat; one each is needed")
    for i, value in enumerate(numbers):
        # a column that is not there leaves its dimension whole: the row holds for all its levels
        cell: list[Any] = [slice(None)] * len(shape)
        for c, code in codes.items():
            cell[0 if c == "choice" else 1 + parents.index(c)] = code[i]
        table[tuple(cell)] = value
    return check_added(table.reshape(rows, law.groups), axis)


def check_added(added: FloatArray, axis: str) -> FloatArray:
    """Return added probabilities, which lie between -1 and 1."""
    if not (np.isfinite(added).all() and (np.abs(added) <= 1).all()):
        raise SpecificationError(
            f"lift of {axis!r}: it adds to a probability: numbers between -1 and 1 are needed"
        )
    return added
