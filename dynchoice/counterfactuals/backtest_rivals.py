"""What a user would pick instead of a structural model: forecasts that a backtest compares with.

Each takes what was known at the origin and returns shares of choices (H, J) for the periods after
it, of the members seen at the origin; some also say what each member will choose.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("dynchoice.run")

SMOOTH = 0.5
"""Added to each count of a table of transitions (Krichevsky and Trofimov 1981)."""
BEFORE = 120
"""Periods over which members may have come whose beginning was not seen."""
LEAST = 1e-4
"""Shares are kept this far from 0 before logs of them are taken."""


def pair_counts(pairs: pd.DataFrame, J: int) -> FloatArray:
    """Return numbers of members by choice and next period's choice (J, J)."""
    n = np.zeros((J, J))
    np.add.at(n, (pairs["choice"].to_numpy(int), pairs["later"].to_numpy(int)), pairs["n"])
    return n


def markov_table(pairs: pd.DataFrame, J: int, H: int) -> FloatArray:
    """Return what follows each choice after 1 .. H periods (H, J, J): a table of transitions.

    Frequencies of consecutive choices, smoothed, and their powers.
    """
    n = pair_counts(pairs, J) + SMOOTH
    step = n / n.sum(axis=1, keepdims=True)
    out = np.empty((H, J, J))
    power = np.eye(J)
    for h in range(H):
        power = power @ step
        out[h] = power
    return out


def last_month(pairs: pd.DataFrame, J: int, H: int) -> FloatArray:
    """Return what follows each choice if every month repeats the last one (H, J, J).

    That somebody changes all the same has the frequency with which members changed before, month
    after month, spread evenly: a forecast of certainty would have a log score of minus infinity.
    """
    n = pair_counts(pairs, J)
    moves = (n.sum() - np.trace(n) + SMOOTH) / (n.sum() + 2 * SMOOTH)
    out = np.empty((H, J, J))
    for h in range(H):
        moved = 1 - (1 - moves) ** (h + 1) if J > 1 else 0.0
        out[h] = moved / max(J - 1, 1)
        np.fill_diagonal(out[h], 1 - moved)
    return out


def seasonal_series(shares: FloatArray, H: int, season: int) -> FloatArray:
    """Return shares (H, J) by exponential smoothing of the shares of each month (T, J).

    Log-ratios to the largest choice are smoothed with a damped trend (Gardner and McKenzie 1985),
    and with a season once two years are seen; statsmodels does it. NaN with fewer than four months.
    """
    T, J = shares.shape
    if T < 4:
        return np.full((H, J), np.nan)
    base = int(shares.mean(axis=0).argmax())
    safe = np.clip(shares, LEAST, None)
    ratio = np.log(safe / safe[:, [base]])
    ahead = np.zeros((H, J))
    for j in range(J):
        if j != base:
            ahead[:, j] = smoothed(ratio[:, j], H, season)
    e = np.exp(ahead - ahead.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def smoothed(series: FloatArray, H: int, season: int) -> FloatArray:
    """Return the next H values of a series by exponential smoothing."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    if np.ptp(series) < 1e-12:
        return np.full(H, series[-1])
    seasonal = len(series) >= 2 * season and season > 1
    options: dict[str, Any] = {"initialization_method": "estimated"}
    if len(series) >= 8:
        options |= {"trend": "add", "damped_trend": True}
    if seasonal:
        options |= {"seasonal": "add", "seasonal_periods": season}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = ExponentialSmoothing(series, **options).fit()
    if caught:
        logger.debug("exponential smoothing: %s", caught[0].message)
    return np.asarray(fitted.forecast(H), dtype=np.float64)


# the shifted-beta-geometric retention curve ------------------------------------------------------


def fit_retention(age: AnyArray, stayed: FloatArray, left: FloatArray) -> tuple[float, float]:
    """Return ``(alpha, beta)`` of the shifted-beta-geometric distribution, by maximum likelihood.

    Each member leaves with a probability of its own, beta distributed: who has stayed ``age - 1``
    periods leaves in the next with probability ``alpha / (alpha + beta + age - 1)``
    (Fader and Hardie 2007, equation 7).

    Parameters
    ----------
    age : array (A,)
        Periods of the spell so far, 1 in the first.
    stayed, left : array (A,)
        Members of that age who stayed, and who left.
    """
    from scipy.optimize import minimize

    def loss(x: FloatArray) -> float:
        h = hazard(age, *np.exp(x))
        return -float(left @ np.log(h) + stayed @ np.log1p(-h))

    total = max(float(left.sum() + stayed.sum()), 1e-300)
    share = min(max(float(left.sum()) / total, 1e-6), 1 - 1e-6)
    start = np.log([share * 2, (1 - share) * 2])
    optimum = minimize(
        lambda x: loss(x) / total,
        start,
        method="L-BFGS-B",
        bounds=[(-12.0, 12.0)] * 2,
        options={"ftol": 1e-14, "gtol": 1e-10},
    )
    alpha, beta = np.exp(optimum.x)
    return float(alpha), float(beta)


def hazard(age: AnyArray, alpha: float, beta: float) -> FloatArray:
    """Return the probability of leaving at each age of a spell (1 is the first)."""
    return np.asarray(alpha / (alpha + beta + np.asarray(age, dtype=np.float64) - 1))


def retention(age: AnyArray, n: FloatArray, alpha: float, beta: float, H: int) -> FloatArray:
    """Return the share of members of given ages who are still there after 1 .. H periods (H,)."""
    alive, out = np.asarray(n, dtype=np.float64).copy(), np.empty(H)
    total = alive.sum()
    for h in range(H):
        alive = alive * (1 - hazard(np.asarray(age) + h, alpha, beta))
        out[h] = alive.sum() / total
    return out


def retention_curve(spells: pd.DataFrame, shares: FloatArray, outside: int, H: int) -> FloatArray:
    """Return shares (H, J) if members leave by a retention curve and nobody comes back.

    ``spells`` as :func:`dynchoice.panel.cohorts.spells` returns them, ``shares`` (H, J) at the
    origin, of the members seen again in each period. NaN where no spell's beginning was seen.
    Members whose beginning was not seen have been there for at least the age counted; how much
    longer goes by a steady inflow over :data:`BEFORE` periods.
    """
    J = shares.shape[1]
    begun = spells[(spells["seen"] == 1) & (spells["lapsed"] >= 0)]
    holding = spells[spells["last"] == 1].groupby(["age", "seen"])["n"].sum()
    inside = np.arange(J) != outside
    if begun.empty or holding.empty:
        return np.full((H, J), np.nan)
    by_age = begun.pivot_table(
        index="age", columns="lapsed", values="n", aggfunc="sum", fill_value=0.0
    ).reindex(columns=[0, 1], fill_value=0.0)
    alpha, beta = fit_retention(
        by_age.index.to_numpy(), by_age[0].to_numpy(float), by_age[1].to_numpy(float)
    )
    age, seen = (holding.index.get_level_values(k).to_numpy() for k in ("age", "seen"))
    n = holding.to_numpy(float)
    ages, weights = [age[seen == 1]], [n[seen == 1]]
    for a, size in zip(age[seen == 0], n[seen == 0], strict=True):
        possible = a + np.arange(BEFORE)
        alive = np.exp(np.cumsum(np.log1p(-hazard(possible, alpha, beta))))
        alive = np.r_[1.0, alive[:-1]]  # who is of that age must not have left before
        ages.append(possible)
        weights.append(size * alive / alive.sum())
    left = retention(np.concatenate(ages), np.concatenate(weights), alpha, beta, H)
    out = np.where(inside, left[:, None] * shares, 0.0)
    out[:, outside] = 1 - out.sum(axis=1)
    return out
