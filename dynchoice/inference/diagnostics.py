"""What the data identify: flat directions of the likelihood, and states and choices observed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice._lazy import pd
from dynchoice.inference.covariance import FLAT, flat_directions
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, FloatArray, Level

WEAK = 1e-6
"""Relative eigenvalue of the scaled information below which a direction is called weak."""


def direction_in_words(vector: FloatArray, scale: FloatArray, names: Sequence[str]) -> str:
    """Return a direction in the parameters as text, largest first: ``+1 RC +0.5 theta11``."""
    raw = vector / scale
    raw = raw / np.abs(raw).max()
    order = np.argsort(-np.abs(vector))
    # what is small in standard units may be needed in the parameters' own, and the reverse
    shown = [k for k in order if abs(vector[k]) > 0.05 or abs(raw[k]) > 0.05]
    parts = [f"{raw[k]:+.3g} {names[k]}" for k in shown[:6]]
    return " ".join(parts)


@dataclass(frozen=True)
class Identification:
    """Eigenvalues of the information in scaled parameters, smallest first.

    A small eigenvalue belongs to a direction in which parameters can move together with almost no
    change of the likelihood. The data do not identify the ``flat`` directions at all.
    """

    names: tuple[str, ...]
    eigenvalues: FloatArray
    vectors: FloatArray
    scale: FloatArray

    @classmethod
    def of(cls, names: Sequence[str], information: FloatArray) -> Identification:
        """Analyse an information matrix (K, K)."""
        values, vectors, scale = flat_directions(information)
        return cls(tuple(names), values, vectors, scale)

    @property
    def condition(self) -> float:
        """Ratio of the largest to the smallest eigenvalue."""
        return float(1 / max(self.eigenvalues[0], 1e-300))

    @property
    def flat(self) -> list[str]:
        """Directions that nothing identifies, in words."""
        return [self.direction(int(i)) for i in np.flatnonzero(self.eigenvalues < FLAT)]

    def direction(self, i: int) -> str:
        """Return the direction of the ``i``-th smallest eigenvalue in words."""
        return direction_in_words(self.vectors[:, i], self.scale, self.names)

    def frame(self) -> pd.DataFrame:
        """Return one row a direction: relative eigenvalue, verdict, direction."""
        verdicts = [
            "flat" if value < FLAT else "weak" if value < WEAK else "identified"
            for value in self.eigenvalues
        ]
        return pd.DataFrame(
            {
                "eigenvalue": self.eigenvalues,
                "verdict": verdicts,
                "direction": [self.direction(i) for i in range(len(self.names))],
            }
        )

    def __str__(self) -> str:
        head = f"Identification: condition number {self.condition:.3g} of the scaled information"
        return head + "\n" + self.frame().to_string(index=False, float_format="{:.3g}".format)

    __repr__ = __str__


THIN = 5.0
"""Choices below which a cell is called thin."""


@dataclass(frozen=True)
class Support:
    """Where the panel has choices: counts by state and choice."""

    states: StateSpace
    choices: tuple[Level, ...]
    n: FloatArray
    available: BoolArray

    @property
    def seen(self) -> int:
        """States with at least one choice observed."""
        return int((self.n.sum(axis=1) > 0).sum())

    @property
    def empty_cells(self) -> int:
        """Available choices never taken in states that were seen."""
        visited = self.n.sum(axis=1) > 0
        return int((self.available & (self.n == 0))[visited].sum())

    @property
    def thin_cells(self) -> int:
        """Available choices taken fewer than five times, but taken."""
        return int((self.available & (self.n > 0) & (self.n < THIN)).sum())

    @property
    def overlap(self) -> float:
        """Share of the member-months with a choice that stand where two choices were taken."""
        free = self.available.sum(axis=1) > 1
        total = float(self.n[free].sum())
        compared = (self.n > 0).sum(axis=1) > 1
        return float(self.n[free & compared].sum() / total) if total else 0.0

    def frame(self) -> pd.DataFrame:
        """Return one row a choice: where it is available, seen, taken, and the smallest cell."""
        visited = self.n.sum(axis=1) > 0
        rows = []
        for j, label in enumerate(self.choices):
            offered = self.available[:, j] & visited
            taken = self.n[offered, j]
            rows.append(
                {
                    "choice": label,
                    "taken": float(self.n[:, j].sum()),
                    "states offering it": int(self.available[:, j].sum()),
                    "of them seen": int(offered.sum()),
                    "never taken there": int((taken == 0).sum()),
                    "thin cells": int(((taken > 0) & (taken < THIN)).sum()),
                    "smallest positive cell": float(taken[taken > 0].min(initial=np.inf)),
                }
            )
        return pd.DataFrame(rows).set_index("choice")

    def thin(self, limit: int = 20) -> pd.DataFrame:
        """Return the busiest states' cells with fewer than five choices, empty ones included."""
        size = self.n.sum(axis=1)
        s, j = np.nonzero(self.available & (self.n < THIN) & (size > 0)[:, None])
        busiest = np.argsort(-size[s], kind="stable")[:limit]
        s, j = s[busiest], j[busiest]
        return pd.DataFrame(
            {
                "state": [self.states.describe(int(code)) for code in s],
                "choice": [self.choices[int(code)] for code in j],
                "taken": self.n[s, j],
                "choices in the state": size[s],
            }
        )

    def __str__(self) -> str:
        S = self.states.size
        head = (
            f"Support: {self.seen:,} of {S:,} states are seen, {S - self.seen:,} never seen (there"
            f" the model speaks, not the data); {self.empty_cells:,} empty and"
            f" {self.thin_cells:,} thin cells (below {THIN:g}) in seen states;"
            f" {self.overlap:.1%} of the free choices were made where another was made as well"
        )
        return (
            textwrap.fill(head, 100, subsequent_indent="    ", break_on_hyphens=False)
            + "\n"
            + self.frame().to_string()
        )

    __repr__ = __str__
