"""What the estimators on rows share: a sieve, the policy on it, and checks of what is offered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dynchoice.errors import DataError, IdentificationError, SpecificationError
from dynchoice.estimate.choice_logit import FIRST_ROWS, ChoiceLogit, Choices, fit_logit
from dynchoice.model.reward import RewardModel
from dynchoice.model.sieve import Sieve
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import FloatArray, IntArray

WORST = 1e13
"""Condition number from which on a system of value coefficients is not solved."""


class SievedRows:
    """Rows as a model and a sieve see them.

    Parameters
    ----------
    model : RewardModel
    rows : Trajectories
    degree, pairs
        Of the sieve; see :meth:`Sieve.of`.

    Raises
    ------
    SpecificationError
        Other choices; a degree below one.
    DataError
        Rows that take a choice which is not offered.
    """

    def __init__(
        self, model: RewardModel, rows: Trajectories, degree: int, pairs: bool | None
    ) -> None:
        if model.choices != rows.choices:
            raise SpecificationError(
                f"the rows' choices {list(rows.choices)} are not the model's"
                f" {list(model.choices)} (the order counts)"
            )
        self.model, self.rows, self.J = model, rows, len(model.choices)
        N = len(rows.x)
        rng = np.random.default_rng(0)
        some = np.sort(rng.choice(N, min(N, FIRST_ROWS), replace=False))
        self.some: IntArray | None = some if N > 2 * FIRST_ROWS else None
        self.sieve = Sieve.of(np.asarray(rows.x[some]), degree, pairs)
        self.anchored, self.share = self._anchored()

    def _anchored(self) -> tuple[int, float]:
        """Return how many rows take the anchor where there is a choice, and their share."""
        bad, anchored, total = 0, 0, 0
        for b in self.rows.blocks():
            table = self.table(b.x)
            offered = self.model.offered(table)
            o = self.model.reference(offered, len(table))
            free = np.ones(len(table), dtype=bool)
            if offered is not None:
                bad += int((~offered[np.arange(len(table)), b.choice]).sum())
                free = offered.sum(axis=1) > 1
            anchored += int(((b.choice == o) & free).sum())
            total += int(free.sum())
        if bad:
            raise DataError(f"{bad:,} rows take a choice that available= says is not offered there")
        return anchored, anchored / max(total, 1)

    def table(self, x: FloatArray) -> Any:
        """Return states as a table with the features' names."""
        import pandas as pd

        return pd.DataFrame(x, columns=list(self.rows.features))

    def features(self) -> tuple[int, tuple[str, ...]]:
        """Return the number and names of the model's features."""
        _, names = self.model.design(self.table(np.asarray(self.rows.x[:2])))
        return len(names), names

    def _choices(self, rows: IntArray | None) -> Iterator[Choices]:
        for b in self.rows.blocks(rows):
            offered = self.model.offered(self.table(b.x)) if self.model.available else None
            yield Choices(self.sieve(b.x), b.choice, b.weight, offered)

    def policy(self, tol: float, maxiter: int) -> ChoiceLogit:
        """Return the choice probabilities; long tables start from a sample of their rows."""
        start = None
        if self.some is not None:
            start = fit_logit(lambda: self._choices(self.some), self.J, self.sieve.size)
        return fit_logit(
            lambda: self._choices(None), self.J, self.sieve.size, tol=tol, maxiter=maxiter,
            start=None if start is None else start.coefficients,
        )  # fmt: skip


def well_conditioned(A: FloatArray, what: str) -> float:
    """Return the condition number of a system, its diagonal scaled to one.

    Raises
    ------
    IdentificationError
        The system does not determine its solution.
    """
    size = np.sqrt(np.maximum(np.abs(np.diag(A)), 1e-300))
    condition = float(np.linalg.cond(A / np.outer(size, size)))
    if not condition < WORST:
        raise IdentificationError(
            f"the {what} are not determined by the rows (condition {condition:.0e}): fewer columns"
            " (degree=), or more rows with the anchor"
        )
    return condition


def solved(A: FloatArray, b: FloatArray) -> FloatArray:
    """Return ``A^{-1} b``."""
    return np.asarray(np.linalg.solve(A, b), dtype=np.float64)
