"""Test statistics as objects with ``.stat .df .pval .null`` (linearmodels' names)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import IdentificationError, SpecificationError, suggest
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


def restrictions(
    names: Sequence[str], restriction: Any = None, value: Any = None, formula: Any = None
) -> tuple[FloatArray, FloatArray, str]:
    """Return ``R`` (r, K), ``q`` (r,) and the null in words; the arguments are :func:`wald`'s."""
    K = len(names)
    if formula is not None and (value is not None or restriction is not None):
        raise SpecificationError("give either formula, or restriction and value, not both")
    if formula is not None and not formula:
        raise SpecificationError("the restriction is empty")
    if isinstance(formula, Mapping):
        lost = [n for n in formula if n not in names]
        if lost:
            raise SpecificationError(
                f"restriction: no parameter {lost[0]!r}.{suggest(lost[0], names)}"
            )
        restriction = [[float(n == name) for n in names] for name in formula]
        value, formula = list(formula.values()), None
    if hasattr(restriction, "reindex"):
        restriction = _aligned(restriction, names)
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
            text = pattern.sub(lambda m: stand_in[list(names).index(m.group(1))], text)
            unknown = [
                w for w in re.findall(r"(?<![\w.])[A-Za-z_][\w:.\[\]]*", text) if w not in stand_in
            ]
            if unknown:
                raise SpecificationError(
                    f"restriction {formula!r}: no parameter {unknown[0]!r}."
                    f"{suggest(unknown[0], names)} Parameters: {', '.join(names)}"
                )
            if any(part.count("=") != 1 for part in text.split(",")):
                raise SpecificationError(
                    f"restriction {formula!r}: write one '=' each, separated by commas"
                )
            # formulaic reads '= -8' as one operator, and knows no exponents
            text = re.sub(
                r"(?<![\w.])\d*\.?\d+[eE][+-]?\d+",
                lambda m: np.format_float_positional(float(m.group(0))),
                text,
            )
            return re.sub(r"=\s*([-+])\s*", r"= 0 \1 ", text)

        spec = plain(formula) if isinstance(formula, str) else [plain(str(f)) for f in formula]
        try:
            parsed = LinearConstraints.from_spec(spec, variable_names=stand_in)
        except Exception as error:
            reason = re.sub(r"\x1b\[[\d;]*m|[\u29da\u29db]", "", str(error)).splitlines()[0]
            raise SpecificationError(
                f"restriction {formula!r} cannot be read: {reason}. Parameters: {', '.join(names)}"
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
    return R, q, null


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
    formula : str, list of str, or mapping of name -> value, optional
        Instead of the two, e.g. ``"shipping = video, price = -1"``. A labelled ``restriction``
        (DataFrame or Series) is aligned by its labels.

    Raises
    ------
    SpecificationError
        Neither or both forms; wrong shapes; restrictions that repeat each other; unknown names.
    IdentificationError
        A restricted parameter has no variance because the data leave it flat.
    """
    R, q, null = restrictions(names, restriction, value, formula)
    used = (R != 0).any(axis=0)
    if not np.isfinite(np.diag(cov)[used]).all():
        lost = [n for n, u, v in zip(names, used, np.diag(cov), strict=True) if u and v != v]
        raise IdentificationError(f"no variance for {', '.join(lost)}: the data leave it flat")
    gap = R @ params - q
    spread = R[:, used] @ cov[np.ix_(used, used)] @ R[:, used].T
    size = np.sqrt(np.maximum(np.diag(spread), 0.0))
    scaled = spread / np.maximum(np.outer(size, size), 1e-300)
    if size.min() <= 0 or np.linalg.eigvalsh(scaled)[0] < 1e-10:
        raise IdentificationError(
            "the covariance of the restrictions is singular: too few clusters for so many of them,"
            " or parameters that move together"
        )
    return ChiSquaredTest("Wald test", null, float(gap @ np.linalg.solve(spread, gap)), len(R))


def _aligned(restriction: Any, names: Sequence[str]) -> FloatArray:
    """Return a labelled restriction in the order of the parameters; absent labels are zeros."""
    frame = restriction.to_frame().T if restriction.ndim == 1 else restriction
    labels = list(frame.columns)
    if all(isinstance(c, int) for c in labels):
        return as_floats(frame, "restriction")
    lost = [c for c in labels if c not in names]
    if lost:
        raise SpecificationError(f"restriction: no parameter {lost[0]!r}.{suggest(lost[0], names)}")
    return as_floats(frame.reindex(columns=list(names), fill_value=0.0), "restriction")
