"""Test statistics as objects with ``.stat .df .pval .null`` (linearmodels' names)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray


@dataclass(frozen=True)
class ChiSquaredTest:
    """A statistic that is chi-squared with ``df`` degrees of freedom under the null."""

    name: str
    null: str
    stat: float
    df: int

    @property
    def pval(self) -> float:
        """Probability of a larger statistic under the null."""
        from scipy.stats import chi2

        return float(chi2.sf(self.stat, self.df))

    def __str__(self) -> str:
        return (
            f"{self.name}\nH0: {self.null}\nStatistic: {self.stat:.4f}\nP-value: {self.pval:.4f}\n"
            f"Distributed: chi2({self.df})"
        )

    __repr__ = __str__


def wald(
    names: Sequence[str],
    params: FloatArray,
    cov: FloatArray,
    restriction: Any = None,
    value: Any = None,
    formula: Any = None,
) -> ChiSquaredTest:
    """Test ``R params = value``: ``(R b - q)' (R cov R')^-1 (R b - q)``.

    Parameters
    ----------
    restriction : array, shape (r, K), optional
    value : array, shape (r,), optional
        Zeros by default.
    formula : str or list of str, optional
        Instead of the two, e.g. ``"shipping = video, price = 0"``.

    Raises
    ------
    SpecificationError
        Neither or both forms; wrong shapes; restrictions that repeat each other; unknown names.
    IdentificationError
        A restricted parameter has no variance because the data leave it flat.
    """
    K = len(names)
    if (restriction is None) == (formula is None):
        raise SpecificationError("give either restriction (and value) or formula")
    if formula is not None:
        from formulaic.utils.constraints import LinearConstraints

        # names such as member:video would parse as operators: stand-ins go to the parser
        pattern = re.compile(
            r"(?<![\w:])("
            + "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True))
            + r")(?![\w:])"
        )
        stand_in = [f"theta_{k}" for k in range(K)]

        def plain(text: str) -> str:
            return pattern.sub(lambda m: stand_in[list(names).index(m.group(1))], text)

        spec = plain(formula) if isinstance(formula, str) else [plain(str(f)) for f in formula]
        try:
            parsed = LinearConstraints.from_spec(spec, variable_names=stand_in)
        except Exception as error:
            raise SpecificationError(
                f"restriction {formula!r}: {error}. Parameters: {', '.join(names)}"
            ) from error
        R = np.asarray(parsed.constraint_matrix, dtype=np.float64)
        q = np.asarray(parsed.constraint_values, dtype=np.float64)
        null = formula if isinstance(formula, str) else ", ".join(map(str, formula))
    else:
        if isinstance(restriction, str):
            raise SpecificationError(f"pass formula={restriction!r} for a restriction in words")
        R = np.atleast_2d(as_floats(restriction, "restriction"))
        q = np.zeros(len(R)) if value is None else np.atleast_1d(as_floats(value, "value"))
        null = "restriction @ params = value"
    if R.shape[1] != K or q.shape != (len(R),):
        raise SpecificationError(
            f"restriction has shape {R.shape} and value {q.shape}; {K} parameters need"
            f" ({len(R)}, {K}) and ({len(R)},)"
        )
    if not (np.isfinite(R).all() and np.isfinite(q).all()):
        raise SpecificationError("restriction and value must be finite")
    if np.linalg.matrix_rank(R) < len(R):
        raise SpecificationError("the restrictions repeat each other (rank below their number)")
    used = (R != 0).any(axis=0)
    if not np.isfinite(np.diag(cov)[used]).all():
        lost = [n for n, u, v in zip(names, used, np.diag(cov), strict=True) if u and v != v]
        raise IdentificationError(f"no variance for {', '.join(lost)}: the data leave it flat")
    gap = R @ params - q
    spread = R[:, used] @ cov[np.ix_(used, used)] @ R[:, used].T
    return ChiSquaredTest("Wald test", null, float(gap @ np.linalg.solve(spread, gap)), len(R))
