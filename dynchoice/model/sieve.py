"""Linear sieves: columns of known functions of the state, for regressions that are one solve.

A regression on them is a method of moments with as many equations as coefficients, so standard
errors that treat the sieve as the truth are those of the semiparametric estimator (Ackerberg, Chen
and Hahn 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.typing import BoolArray, FloatArray, IntArray

PAIRS_UP_TO = 8
"""Number of features up to which every product of two is in the default sieve."""
COLLINEAR = 1e-7
"""Share of a column that the columns before it must leave, for the column to stay."""


@dataclass(frozen=True)
class Sieve:
    """Powers and products of standardised features, with a constant: ``G`` columns.

    A column that those before it add up to (a dummy too many) is left out.

    Attributes
    ----------
    centre, spread : FloatArray, shape (p,)
    powers : IntArray, shape (G, p)
        Exponent of every feature in every column; the first row is zero.
    """

    centre: FloatArray
    spread: FloatArray
    powers: IntArray

    @property
    def size(self) -> int:
        """Number of columns ``G``."""
        return len(self.powers)

    @classmethod
    def of(
        cls,
        x: FloatArray,
        degree: int = 2,
        pairs: bool | None = None,
        used: BoolArray | None = None,
    ) -> Sieve:
        """Choose the columns for a sample of states.

        Parameters
        ----------
        x : FloatArray, shape (n, p)
        degree : int
            Highest power of a feature (one, for features with two values), and of a product.
        pairs : bool, optional
            Whether products of two features are in. Default: up to ``PAIRS_UP_TO`` features.
        used : BoolArray, shape (p,), optional
            Which features the columns are of. Default: all.

        Raises
        ------
        SpecificationError
            A degree below one.
        """
        checks.whole(degree, "degree", 1)
        if pairs is not None and not isinstance(pairs, bool):
            raise SpecificationError(f"pairs={pairs!r}: True, False or None")
        p = x.shape[1]
        spread = x.std(axis=0)
        moving = spread > 1e-12 * np.maximum(np.abs(x).max(axis=0), 1e-300)
        if used is not None:
            moving &= used
        # a power of a feature with two values is the feature again
        two = np.array([len(np.unique(c[:50_000])) <= 2 for c in x.T])
        rows: list[IntArray] = [np.zeros(p, dtype=np.int64)]
        alone = np.eye(p, dtype=np.int64)
        for d in range(1, degree + 1):
            rows += [d * alone[k] for k in range(p) if moving[k] and (d == 1 or not two[k])]
        if degree > 1 and (moving.sum() <= PAIRS_UP_TO if pairs is None else pairs):
            for i in range(p):
                for k in range(i):
                    for a in range(1, degree):
                        for b in range(1, degree + 1 - a):
                            flat = (a > 1 and two[i]) or (b > 1 and two[k])
                            if moving[i] and moving[k] and not flat:
                                rows.append(a * alone[i] + b * alone[k])
        whole = cls(x.mean(axis=0), np.where(moving, spread, 1.0), np.array(rows))
        phi = whole(x)
        size = np.linalg.norm(phi, axis=0)
        # |R| on the diagonal of a QR: what of each column those before it leave
        left = np.abs(np.diag(np.linalg.qr(phi / np.where(size > 0, size, 1.0), mode="r")))
        return cls(whole.centre, whole.spread, whole.powers[: len(left)][left > COLLINEAR])

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return the columns (n, G) of states (n, p)."""
        z = (x - self.centre) / self.spread
        out = np.empty((len(z), self.size), order="F")
        for g, row in enumerate(self.powers):
            used = np.flatnonzero(row)
            column = np.ones(len(z))
            for k in used:
                column = column * (z[:, k] if row[k] == 1 else z[:, k] ** row[k])
            out[:, g] = column
        return out


def log_softmax(index: FloatArray, offered: BoolArray | None) -> FloatArray:
    """Return log probabilities (n, J) of an index; 0 where a choice is not offered."""
    if offered is not None:
        index = np.where(offered, index, -np.inf)
    top = index.max(axis=1, keepdims=True)
    total = np.log(np.exp(index - top).sum(axis=1, keepdims=True))
    out = index - top - total
    return np.asarray(out if offered is None else np.where(offered, out, 0.0))


def logit_logs(coefficients: FloatArray, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
    """Return log probabilities (n, J) of a logit with coefficients (J - 1, G) on columns (n, G)."""
    index = np.zeros((len(phi), len(coefficients) + 1))
    index[:, 1:] = phi @ coefficients.T
    return log_softmax(index, offered)


def by_choice(phi: FloatArray, choice: IntArray, J: int) -> FloatArray:
    """Return columns of state and choice (n, (1 + J) G): shared ones, then the choice's own."""
    n, G = phi.shape
    out = np.zeros((n, J + 1, G))
    out[:, 0] = phi
    out[np.arange(n), choice + 1] = phi
    return out.reshape(n, -1)
