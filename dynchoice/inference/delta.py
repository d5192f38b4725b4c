"""The delta method: standard errors of functions of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

STEP = 1e-3
"""Steps of the numerical gradient, in standard errors."""


def delta_method(
    f: Callable[[pd.Series], ArrayLike],
    params: pd.Series,
    cov: FloatArray,
    level: float = 0.95,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return ``f(params)`` with standard errors ``sqrt(g' cov g)``, ``g`` its gradient.

    Parameters
    ----------
    f : callable
        Takes the parameters as a labelled Series and returns a number or a vector.
    params : Series, length K
    cov : FloatArray, shape (K, K)
        Covariance of the parameters.
    level : float
        Of the confidence interval, from the normal distribution.
    names : sequence of str, optional
        Of the values; by default the labels of what ``f`` returns, or numbers from 0.

    Returns
    -------
    pandas.DataFrame
        Columns ``estimate``, ``std_error``, ``lower``, ``upper``.

    Raises
    ------
    SpecificationError
        The covariance has parameters without a variance; not one name a value.
    """
    level = checks.share(level, "level", open_interval=True)
    errors = np.sqrt(np.diag(cov))
    if not np.isfinite(errors).all():
        flat = [n for n, error in zip(params.index, errors, strict=True) if not np.isfinite(error)]
        raise SpecificationError(
            "the covariance has parameters without a variance (flat directions): " + ", ".join(flat)
        )
    values = f(params)
    center = np.atleast_1d(np.asarray(values, dtype=np.float64))
    labels = _label_values(values, len(center), names)
    gradient = _differentiate(f, params, STEP * errors, len(center))
    spread = np.sqrt(np.einsum("ik,kl,il->i", gradient, cov, gradient))
    half = ndtri(0.5 + level / 2) * spread
    return pd.DataFrame(
        {
            "estimate": center,
            "std_error": spread,
            "lower": center - half,
            "upper": center + half,
        },
        index=labels,
    )


def _differentiate(
    f: Callable[[pd.Series], ArrayLike], params: pd.Series, steps: FloatArray, size: int
) -> FloatArray:
    """Return the gradient (size, K) of ``f`` by central differences with steps (K,)."""
    gradient = np.empty((size, len(steps)))
    for k, step in enumerate(steps):
        # f may keep or change what it is given, so each call has a Series of its own
        up, down = params.copy(), params.copy()
        up.iloc[k] += step
        down.iloc[k] -= step
        gradient[:, k] = (np.atleast_1d(f(up)) - np.atleast_1d(f(down))) / (2 * step)
    return gradient


def _label_values(
    values: ArrayLike, size: int, names: Sequence[str] | None
) -> list[str] | list[int]:
    """Return the names given, else those that the values carry, else numbers from 0."""
    if names is None:
        index = getattr(values, "index", None)  # a Series has labels; a list's is a method
        if index is None or callable(index) or len(index) != size:
            return list(range(size))
        return list(index)
    if len(list(names)) != size:
        raise SpecificationError(f"{size} values need as many names, got {names!r}")
    return list(names)
