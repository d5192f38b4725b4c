"""Wald tests, and test statistics as objects with ``.stat .df .pval .null``.

The names of the attributes are linearmodels'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

Formula = str | Sequence[str] | Mapping[str, float]
"""Restrictions in words, several of them, or values by name of the parameter."""
_ARRAYS = "restriction @ params = value"
"""The null in words where numbers were given."""


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
    names: Sequence[str],
    restriction: ArrayLike | None = None,
    value: ArrayLike | None = None,
    formula: Formula | None = None,
) -> tuple[FloatArray, FloatArray, str]:
    """Return ``R`` (r, K), ``q`` (r,) and the null in words; the arguments are :func:`wald`'s."""
    if formula is not None and (value is not None or restriction is not None):
        raise SpecificationError("give either formula, or restriction and value, not both")
    if restriction is None and formula is None:
        raise SpecificationError("give either restriction (and value) or formula")
    if formula is None:
        R, q = _read_arrays(restriction, value, names)
        null = _ARRAYS
    elif not formula:
        raise SpecificationError("the restriction is empty")
    elif isinstance(formula, Mapping):
        checks.known(formula, names, "restriction: parameter")
        rows = [[float(other == name) for other in names] for name in formula]
        R, q = _read_arrays(rows, list(formula.values()), names)
        null = _ARRAYS
    else:
        R, q = _read_formula(formula, names)
        null = formula if isinstance(formula, str) else ", ".join(map(str, formula))
    _check_restrictions(R, q, len(names))
    return R, q, null


def _read_arrays(
    restriction: ArrayLike | None, value: ArrayLike | None, names: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Return ``R`` and ``q`` (zeros by default) given as numbers; labels are aligned."""
    if isinstance(restriction, str):
        raise SpecificationError(f"pass formula={restriction!r} for a restriction in words")
    if hasattr(restriction, "reindex"):
        restriction = _align(restriction, names)
    R = np.atleast_2d(as_floats(restriction, "restriction"))
    q = np.zeros(len(R)) if value is None else np.atleast_1d(as_floats(value, "value"))
    return R, q


def _align(restriction: pd.DataFrame | pd.Series, names: Sequence[str]) -> FloatArray:
    """Return a labelled restriction in the order of the parameters; absent labels are zeros."""
    frame = restriction.to_frame().T if restriction.ndim == 1 else restriction
    labels = list(frame.columns)
    if all(isinstance(label, int) for label in labels):  # made of an array: by position
        return as_floats(frame, "restriction")
    checks.known(labels, names, "restriction: parameter")
    return as_floats(frame.reindex(columns=list(names), fill_value=0.0), "restriction")


def _read_formula(
    formula: str | Sequence[str], names: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Return ``R`` and ``q`` of restrictions in words, read by formulaic."""
    from formulaic.utils.constraints import LinearConstraints

    stand_ins = [f"theta_{k}" for k in range(len(names))]
    if isinstance(formula, str):
        parts: str | list[str] = _rewrite(formula, formula, names, stand_ins)
    else:
        parts = [_rewrite(str(part), formula, names, stand_ins) for part in formula]
    try:
        parsed = LinearConstraints.from_spec(parts, variable_names=stand_ins)
    except Exception as error:  # the parser's own kinds of errors are not its public face
        # its messages mark the place in colour, between two special brackets
        reason = re.sub(r"\x1b\[[\d;]*m|[\u29da\u29db]", "", str(error)).splitlines()[0]
        raise SpecificationError(
            f"restriction {formula!r} cannot be read: {reason}. Parameters: {', '.join(names)}"
        ) from error
    R = np.asarray(parsed.constraint_matrix, dtype=np.float64)
    q = np.asarray(parsed.constraint_values, dtype=np.float64)
    return R, q


def _rewrite(
    text: str, formula: str | Sequence[str], names: Sequence[str], stand_ins: Sequence[str]
) -> str:
    """Return one restriction as formulaic can read it, with stand-ins for the parameters.

    Names such as ``member:video`` would be read as operators on other names, so each parameter
    goes to the parser under a plain name. ``formula`` is the whole, for the messages.
    """
    # the longest first: "pay" must not be found within "pay:late"
    by_length = sorted(names, key=len, reverse=True)
    pattern = r"(?<![\w:])(" + "|".join(map(re.escape, by_length)) + r")(?![\w:])"
    text = re.sub(pattern, lambda match: stand_ins[list(names).index(match.group(1))], text)
    words = re.findall(r"(?<![\w.])[A-Za-z_][\w:.\[\]]*", text)
    unknown = [word for word in words if word not in stand_ins]
    checks.known(unknown, names, f"restriction {formula!r}: parameter")
    if any(part.count("=") != 1 for part in text.split(",")):
        raise SpecificationError(
            f"restriction {formula!r}: write one '=' each, separated by commas"
        )
    # formulaic knows no exponents ...
    text = re.sub(
        r"(?<![\w.])\d*\.?\d+[eE][+-]?\d+",
        lambda match: np.format_float_positional(float(match.group(0))),
        text,
    )
    # ... and reads '= -8' as one operator
    return re.sub(r"=\s*([-+])\s*", r"= 0 \1 ", text)


def _check_restrictions(R: FloatArray, q: FloatArray, K: int) -> None:
    """Raise unless restrictions fit ``K`` parameters, are finite and do not repeat each other."""
    if R.shape[1] != K or q.shape != (len(R),):
        raise SpecificationError(
            f"restriction has shape {R.shape} and value {q.shape}; {K} parameters need"
            f" ({len(R)}, {K}) and ({len(R)},)"
        )
    if not (np.isfinite(R).all() and np.isfinite(q).all()):
        raise SpecificationError("restriction and value must be finite")
    if np.linalg.matrix_rank(R) < len(R):
        raise SpecificationError("the restrictions repeat each other (rank below their number)")


def wald(
    names: Sequence[str],
    params: FloatArray,
    cov: FloatArray,
    restriction: ArrayLike | None = None,
    value: ArrayLike | None = None,
    formula: Formula | None = None,
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
    # only what is restricted needs a variance: others may lie on a flat direction (NaN)
    used = (R != 0).any(axis=0)
    variances = np.diag(cov)
    if not np.isfinite(variances[used]).all():
        flat = [
            n for n, is_used, v in zip(names, used, variances, strict=True) if is_used and v != v
        ]
        raise IdentificationError(f"no variance for {', '.join(flat)}: the data leave it flat")
    gap = R @ params - q
    spread = R[:, used] @ cov[np.ix_(used, used)] @ R[:, used].T
    # on the scale of correlations, so that the units of parameters do not decide
    size = np.sqrt(np.maximum(np.diag(spread), 0.0))
    scaled = spread / np.maximum(np.outer(size, size), 1e-300)
    if size.min() <= 0 or np.linalg.eigvalsh(scaled)[0] < 1e-10:
        raise IdentificationError(
            "the covariance of the restrictions is singular: too few clusters for so many of them,"
            " or parameters that move together"
        )
    return ChiSquaredTest("Wald test", null, float(gap @ np.linalg.solve(spread, gap)), len(R))
