"""What the estimators on rows share: a sieve, the policy on it, and checks of what is offered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, IdentificationError, SpecificationError
from dynchoice.estimate.choice_logit import FIRST_ROWS, ChoiceLogit, Choices, fit_logit
from dynchoice.model.reward import RewardModel
from dynchoice.model.sieve import Sieve
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import FloatArray, IntArray

WORST = 1e13
"""Condition number from which on a system of value coefficients is not solved."""
LEFT = 1e-10
"""Share of a column's square that others must leave, for the column to stay in a Q step."""


def check_row_data(name: str, model: object, data: object) -> None:
    """Raise unless an estimator on rows gets a RewardModel and Trajectories.

    Raises
    ------
    SpecificationError
        It gets something else.
    """
    if not isinstance(model, RewardModel) or not isinstance(data, Trajectories):
        raise SpecificationError(
            f"{name} takes a RewardModel and Trajectories, not a {type(model).__name__} and a"
            f" {type(data).__name__}"
        )


class SievedRows:
    """Rows as a model and a sieve see them.

    Parameters
    ----------
    model : RewardModel
    rows : Trajectories
    degree, pairs
        Of the sieve; see :meth:`Sieve.of`.
    columns : sequence of str, optional
        Features that the sieve is of. Default: all.

    Raises
    ------
    SpecificationError
        Other choices; a degree below one; columns that are no features.
    DataError
        Rows that take a choice which is not offered.
    """

    def __init__(
        self,
        model: RewardModel,
        rows: Trajectories,
        degree: int,
        pairs: bool | None,
        columns: Sequence[str] | None = None,
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
        used = None
        if columns is not None:
            chosen = checks.items(columns, "ahead")
            checks.known(chosen, rows.features, "ahead: feature")
            used = np.array([name in chosen for name in rows.features])
        self.sieve = Sieve.of(np.asarray(rows.x[some]), degree, pairs, used)
        self.anchored, self.share, self.followed = self._count_anchored()
        if not self.followed:
            raise DataError(
                f"none of {N:,} rows has a next row (a member's next period, or terminal=): nothing"
                " says what choices lead to"
            )

    def _count_anchored(self) -> tuple[int, float, float]:
        """Return how many rows take the anchor where there is a choice and have a next row, the
        anchor's share of rows with a choice, and the weighted share of rows with a next row."""
        bad, usable, anchored, total, followed = 0, 0, 0, 0, 0.0
        for block in self.rows.blocks():
            table = self.table(block.x)
            offered = self.model.offered(table)
            reference = self.model.reference(offered, len(table))
            free = np.ones(len(table), dtype=bool)
            if offered is not None:
                bad += int((~offered[np.arange(len(table)), block.choice]).sum())
                free = offered.sum(axis=1) > 1
            has_next = block.ended.copy()
            has_next[block.moved] = True
            anchored += int(((block.choice == reference) & free).sum())
            usable += int(((block.choice == reference) & free & has_next).sum())
            total += int(free.sum())
            followed += float(block.weight[has_next].sum())
        if bad:
            raise DataError(f"{bad:,} rows take a choice that available= says is not offered there")
        return usable, anchored / max(total, 1), followed / self.rows.nobs

    def table(self, x: FloatArray) -> pd.DataFrame:
        """Return states as a table with the features' names."""
        return pd.DataFrame(x, columns=list(self.rows.features))

    def features(self) -> tuple[int, tuple[str, ...]]:
        """Return the number and names of the model's features."""
        _, names = self.model.design(self.table(np.asarray(self.rows.x[:2])))
        return len(names), names

    def choices(self, rows: IntArray | None) -> Iterator[Choices]:
        """Yield rows as the logit sees them; with ``rows`` (sorted), only these."""
        for b in self.rows.blocks(rows):
            offered = self.model.offered(self.table(b.x)) if self.model.available else None
            yield Choices(self.sieve(b.x), b.choice, b.weight, offered)

    def policy(self, tol: float, maxiter: int) -> ChoiceLogit:
        """Return the choice probabilities; long tables start from a sample of their rows."""
        start = None
        if self.some is not None:
            start = fit_logit(lambda: self.choices(self.some), self.J, self.sieve.size)
        return fit_logit(
            lambda: self.choices(None),
            self.J,
            self.sieve.size,
            tol=tol,
            maxiter=maxiter,
            start=None if start is None else start.coefficients,
        )


@dataclass(frozen=True)
class ValueSystem:
    """A Q step's normal equations ``(M - beta N) c = b``, on columns that its rows tell apart.

    ``M = sum w f f'`` and ``N = sum w f f_next'``, so ``M^{-1} N`` is the law of motion projected
    on the columns. Where ``beta`` times its spectral radius reaches one, repeating the regression
    would diverge, and the solution of the equations is no value of anything.

    Attributes
    ----------
    A : FloatArray, shape (D, D)
        Of the columns kept.
    kept : IntArray, shape (D,)
        Positions among all ``size`` columns; the others have coefficient zero.
    condition : float
        Of ``A`` with columns of unit length.
    radius : float
        Spectral radius of ``M^{-1} N``.
    """

    A: FloatArray
    kept: IntArray
    size: int
    condition: float
    radius: float

    @classmethod
    def of(cls, M: FloatArray, N: FloatArray, beta: float, what: str) -> ValueSystem:
        """Check and build.

        Raises
        ------
        IdentificationError
            Rows that determine no value: a singular system, or one that does not contract.
        """
        kept, size_of = independent(M), len(M)
        M, N = M[np.ix_(kept, kept)], N[np.ix_(kept, kept)]
        A = M - beta * N
        size = np.sqrt(np.maximum(np.diag(M), 1e-300))
        condition = float(np.linalg.cond(A / np.outer(size, size)))
        radius = float(np.abs(np.linalg.eigvals(solved(M, N))).max()) if len(kept) else 0.0
        if not len(kept) or not condition < WORST:
            raise IdentificationError(
                f"the {what} are not determined by the rows (condition {condition:.0e}): fewer"
                " columns (degree=), or more rows with the anchor"
            )
        if beta * radius >= 1:
            raise IdentificationError(
                f"the {what} do not settle on this sieve: beta = {beta:g} times the spectral radius"
                f" of the projected law, {radius:.3f}, is not below one, so the regression repeated"
                " would diverge. Fewer columns (degree=, pairs=False), more rows, or GenPQR in"
                " place of Deep PQR"
            )
        return cls(A, kept, size_of, condition, radius)

    def solve(self, b: FloatArray, transposed: bool = False) -> FloatArray:
        """Return ``A^{-1} b`` (or ``A^{-T} b``) over all columns; zero for those left out."""
        out = np.zeros((self.size, *b.shape[1:]))
        out[self.kept] = solved(self.A.T if transposed else self.A, b[self.kept])
        return out


def independent(M: FloatArray) -> IntArray:
    """Return columns, in order, that those kept before them do not add up to (``M = F'F``)."""
    length = np.sqrt(np.diag(M))
    kept: list[int] = []
    for g in np.flatnonzero(length > 0):
        left = 1.0
        if kept:
            inner = M[np.ix_(kept, kept)] / np.outer(length[kept], length[kept])
            along = M[kept, g] / (length[kept] * length[g])
            left = 1.0 - float(along @ np.linalg.solve(inner, along))
        if left > LEFT:
            kept.append(int(g))
    return np.array(kept, dtype=np.int64)


def add_by_member(
    sums: FloatArray,
    weights: FloatArray,
    member: IntArray,
    by_row: FloatArray,
    row_weight: FloatArray,
) -> None:
    """Add rows' influence (n, K) to that of their members (N, K), and note members' weights (N,).

    Rows stand in order of member, whom a block of rows may cut: hence sums that are added to.
    """
    first = np.flatnonzero(np.r_[True, member[1:] != member[:-1]])
    sums[member[first]] += np.add.reduceat(by_row, first, axis=0)
    weights[member[first]] = row_weight[first]


def solved(A: FloatArray, b: FloatArray) -> FloatArray:
    """Return ``A^{-1} b``."""
    return np.asarray(np.linalg.solve(A, b), dtype=np.float64)
