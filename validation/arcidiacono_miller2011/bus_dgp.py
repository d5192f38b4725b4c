"""The bus-engine design of Arcidiacono and Miller (2011, Econometrica 79, Table 1), simulated.

A bus is kept or its engine replaced in each of 30 periods, after which nothing is earned. Keeping
pays ``theta0 + theta1 * x1 + theta2 * s``, replacing pays nothing; ``x1`` is the mileage (201
points, 0 to 25), ``s`` a type the econometrician may not see, and ``x2`` the intensity of the
route, which governs how fast mileage accumulates. Buses start new in period 1 and are observed in
periods 11 to 30, so that the first mileage seen is informative on the type.

Shocks are Gumbel with mean zero: the value of a state is the log-sum of its choice values.
Plain numpy and pandas; nothing here depends on the package that is validated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

STEP = 0.125
MILEAGE = STEP * np.arange(201)
ROUTES = 0.25 + 0.01 * np.arange(101)
HORIZON = 30
FIRST_SEEN = 11
THETA = (2.0, -0.15, 1.0)
BETA = 0.9


def mileage_law() -> np.ndarray:
    """Law of next period's mileage when the engine is kept.

    Returns
    -------
    numpy.ndarray
        Probabilities ``[route, own, next]`` of shape (101, 201, 201). After a replacement the law
        is that of ``own = 0``, the row ``[:, 0, :]``.
    """
    moved = np.arange(201)[None, :] - np.arange(201)[:, None]
    beyond = np.exp(-STEP * ROUTES[:, None, None] * np.maximum(moved, 0))
    law = beyond * -np.expm1(-STEP * ROUTES)[:, None, None] * (moved >= 0)
    law[:, :, -1] = beyond[:, :, -1]
    return law


def expect(values: np.ndarray) -> np.ndarray:
    """Expectation of next period's values when the engine is kept, without the matrices of the law.

    Steps are geometric, hence ``E(x) = (1 - r) g(x) + r E(x + step)`` with ``r = exp(-step * x2)``.

    Parameters
    ----------
    values
        Values of shape (101, 201, ...): route, mileage next period, anything.

    Returns
    -------
    numpy.ndarray
        Expectations of the same shape, the second axis being the mileage now.
    """
    stay = np.exp(-STEP * ROUTES).reshape(-1, *[1] * (values.ndim - 2))
    out = np.array(values, dtype=float)
    for own in range(199, -1, -1):
        out[:, own] = (1 - stay) * out[:, own] + stay * out[:, own + 1]
    return out


def solve(theta: Sequence[float] = THETA, beta: float = BETA, horizon: int = HORIZON) -> np.ndarray:
    """Probabilities of replacement by backward induction from a terminal value of zero.

    Parameters
    ----------
    theta
        Payoff of keeping: intercept, mileage slope, effect of the type.
    beta
        Discount factor.
    horizon
        Number of periods.

    Returns
    -------
    numpy.ndarray
        Probabilities of replacement ``[period - 1, s, route, own]``, shape (horizon, 2, 101, 201).
    """
    flow = theta[0] + theta[1] * MILEAGE[:, None] + theta[2] * np.arange(2)
    value = np.zeros((101, 201, 2))
    replace = np.empty((horizon, 2, 101, 201))
    for period in range(horizon - 1, -1, -1):
        future = beta * expect(value)
        keep, renew = flow + future, future[:, :1]
        value = np.logaddexp(keep, renew)
        replace[period] = np.moveaxis(np.exp(renew - value), 2, 0)
    return replace


def simulate(
    buses: int = 1000,
    seed: int = 0,
    *,
    theta: Sequence[float] = THETA,
    beta: float = BETA,
    horizon: int = HORIZON,
    first: int = FIRST_SEEN,
    probabilities: np.ndarray | None = None,
) -> pd.DataFrame:
    """One data set of the bus design.

    Parameters
    ----------
    buses
        Number of buses, all new in period 1; type and route are uniform and independent.
    seed
        Seed of the generator.
    theta, beta, horizon
        As in `solve`.
    first
        First period seen by the econometrician (1 is the period of the new engine).
    probabilities
        Result of `solve` with the same arguments, to save the solution in a Monte Carlo.

    Returns
    -------
    pandas.DataFrame
        One row per bus and period seen, sorted, with ``bus``, ``t`` (0 is period ``first``, the
        last is the terminal period), ``mileage`` (0 to 200), ``route`` (0 to 100), ``s`` (0 or 1)
        and ``choice`` (``"replace"`` or ``"keep"``).
    """
    if probabilities is None:
        probabilities = solve(theta, beta, horizon)
    rng = np.random.default_rng(seed)
    s = rng.integers(0, 2, buses)
    route = rng.integers(0, 101, buses)
    own = np.zeros(buses, dtype=np.int64)
    mileage = np.empty((buses, horizon), dtype=np.int64)
    replaced = np.empty((buses, horizon), dtype=bool)
    for period in range(horizon):
        mileage[:, period] = own
        replaced[:, period] = rng.random(buses) < probabilities[period, s, route, own]
        steps = (rng.standard_exponential(buses) / (STEP * ROUTES[route])).astype(np.int64)
        own = np.minimum(np.where(replaced[:, period], 0, own) + steps, 200)
    seen = horizon - first + 1
    return pd.DataFrame(
        {
            "bus": np.repeat(np.arange(buses), seen),
            "t": np.tile(np.arange(seen), buses),
            "mileage": mileage[:, first - 1 :].ravel(),
            "route": np.repeat(route, seen),
            "s": np.repeat(s, seen),
            "choice": np.where(replaced[:, first - 1 :].ravel(), "replace", "keep"),
        }
    )
