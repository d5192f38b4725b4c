"""Bands of a forecast: from draws (:mod:`dynchoice.counterfactuals.draws`) to their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice.counterfactuals.draws import DELTA_STEP
from dynchoice.typing import FloatArray

UNIFORM_SAMPLES = 2000
"""Normal draws behind the uniform band of the delta method."""


@dataclass(frozen=True)
class Bands:
    """Lower and upper ends, pointwise and uniform over the first axis of what they are around."""

    lower: FloatArray
    upper: FloatArray
    lower_uniform: FloatArray
    upper_uniform: FloatArray


def bands_of(
    point: FloatArray,
    drawn: Sequence[FloatArray] | FloatArray,
    level: float,
    kind: str,
    parts: Sequence[int],
) -> Bands:
    """Return bands of a path ``point`` (T, ...) from its draws.

    Pointwise: quantiles of the draws. Uniform (sup-t, SOURCES.md 8.3): ``point +- q se`` with ``q``
    the ``level`` quantile over draws of ``max_t |draw - point| / se``. With ``kind="delta"`` the
    draws are central differences, ``parts`` of them for each independent fit.
    """
    if not len(drawn):
        unknown = np.full(point.shape, np.nan)
        return Bands(unknown, unknown, unknown, unknown)
    sample = drawn if isinstance(drawn, np.ndarray) else np.stack(drawn)
    if kind == "delta":
        from scipy.stats import norm

        # draws come in pairs on both sides of the estimate
        slopes = (sample[0::2] - sample[1::2]) / (2 * DELTA_STEP)
        se = np.sqrt((slopes**2).sum(axis=0))
        half = norm.ppf(0.5 + level / 2) * se
        z = np.random.default_rng(0).standard_normal((UNIFORM_SAMPLES, len(slopes)))
        away = np.tensordot(z, slopes, axes=1)
        q = sup_t(away, se, level)
        return Bands(point - half, point + half, point - q * se, point + q * se)
    none = np.isnan(sample).all(axis=0)  # a rate with nobody due, money without a price
    sample = np.where(none, 0.0, sample)
    quantile = np.nanquantile if np.isnan(sample).any() else np.quantile  # the first is slow
    low, high = quantile(sample, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    # where one draw alone has a number there is no spread to speak of
    few = (~np.isnan(sample)).sum(axis=0) < 2
    se = np.zeros(point.shape)
    if not few.all():
        se = np.where(few, 0.0, np.nanstd(np.where(few, 0.0, sample), axis=0, ddof=1))
    q = sup_t(sample - point, se, level)
    ends = (low, high, point - q * se, point + q * se)
    return Bands(*(np.where(none, np.nan, end) for end in ends))


def sup_t(away: FloatArray, se: FloatArray, level: float) -> FloatArray:
    """Return the quantile of the largest deviation over the path, in standard errors."""
    some = se > 1e-9 * se.max(axis=0, initial=0.0)  # what is known for sure has rounding only
    scale = np.where(some, se, 1.0)
    size = np.where(some, np.abs(away) / scale, 0.0).max(axis=1)
    return np.asarray(np.quantile(size, level, axis=0))
