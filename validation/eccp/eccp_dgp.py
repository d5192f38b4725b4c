"""A design for linear instrumental-variable estimation from Euler equations in CCPs (ECCP).

After Kalouptsidi, Scott and Souza-Rodrigues (2021, Journal of Econometrics), whose estimator needs
no law of the market state and no solution of the model. The design is our own; their Monte Carlo
(durable demand) is not reproduced. Agents hold a state ``k`` = 0 to 7; action 1 pays
``1 - .25 k + .6 w`` and moves ``k`` up by one with probability ``UP`` (7 is the last), action 0
pays nothing and renews, ``k`` becoming 0. The market state ``w`` is an AR(1) (.8, innovations of
SD .5) on 15 points, common to all agents; the econometrician may see it with classical error.

Shocks are Gumbel with mean zero and the discount factor is .95, so that with ``p`` the CCPs

    log p_t(1|k) / p_t(0|k) + beta * sum_k' [F(k'|k,1) - F(k'|k,0)] log p_{t+1}(0|k')
        = 1 - .25 k + .6 w_t + error unpredictable in t.

Plain numpy; nothing here depends on the package that is validated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STATES = 8
POINTS = 15
THETA = (1.0, -0.25, 0.6)
BETA = 0.95
PERSISTENCE = 0.8
INNOVATION = 0.5
NOISE = 0.6
UP = 0.75


class Sample(NamedTuple):
    """One data set; ``T`` periods, 8 agent states, actions 0 (renew) and 1.

    Attributes
    ----------
    probabilities
        Exact CCPs ``[t, k, action]``, shape (T, 8, 2).
    counts
        Choices sampled in each cell ``[t, k, action]``, shape (T, 8, 2), or None.
    market
        The market state ``w`` of shape (T,).
    measured
        The market state plus independent normal errors, shape (T,).
    law
        Law of the agent state ``[k, action, next]``, shape (8, 2, 8).
    """

    probabilities: np.ndarray
    counts: np.ndarray | None
    market: np.ndarray
    measured: np.ndarray
    law: np.ndarray


def agent_law(up: float = UP) -> np.ndarray:
    """Law of the agent state.

    Parameters
    ----------
    up
        Probability that action 1 moves the state up by one (it stays otherwise).

    Returns
    -------
    numpy.ndarray
        Probabilities ``[k, action, next]`` of shape (8, 2, 8).
    """
    law = np.zeros((STATES, 2, STATES))
    law[:, 0, 0] = 1
    for k in range(STATES):
        law[k, 1, k] += 1 - up
        law[k, 1, min(k + 1, STATES - 1)] += up
    return law


def market_law() -> tuple[np.ndarray, np.ndarray]:
    """The AR(1) on 15 points by the method of Rouwenhorst, exact in variance and persistence.

    Returns
    -------
    points : numpy.ndarray
        Values of ``w``, shape (15,).
    law : numpy.ndarray
        Probabilities ``[now, next]`` of shape (15, 15).
    """
    stay = (1 + PERSISTENCE) / 2
    law = np.array([[stay, 1 - stay], [1 - stay, stay]])
    for size in range(3, POINTS + 1):
        wide = np.zeros((size, size))
        wide[:-1, :-1] += stay * law
        wide[:-1, 1:] += (1 - stay) * law
        wide[1:, :-1] += (1 - stay) * law
        wide[1:, 1:] += stay * law
        wide[1:-1] /= 2
        law = wide
    bound = INNOVATION / np.sqrt(1 - PERSISTENCE**2) * np.sqrt(POINTS - 1)
    return np.linspace(-bound, bound, POINTS), law / law.sum(axis=1, keepdims=True)


def solve(
    theta: Sequence[float] = THETA, beta: float = BETA, up: float = UP, tolerance: float = 1e-13
) -> np.ndarray:
    """Exact CCPs of the stationary model by value iteration.

    Parameters
    ----------
    theta
        Payoff of action 1: intercept, slope in ``k``, slope in ``w``.
    beta
        Discount factor.
    up
        As in `agent_law`.
    tolerance
        Largest change of a value at which the iteration stops.

    Returns
    -------
    numpy.ndarray
        CCPs ``[w, k, action]`` of shape (15, 8, 2).
    """
    points, moves = market_law()
    law = agent_law(up)
    flow = theta[0] + theta[1] * np.arange(STATES) + theta[2] * points[:, None]
    value = np.zeros((POINTS, STATES))
    while True:
        future = beta * np.einsum("kan,wn->wka", law, moves @ value)
        future[:, :, 1] += flow
        new = np.logaddexp(future[:, :, 0], future[:, :, 1])
        done = np.abs(new - value).max() < tolerance
        value = new
        if done:
            return np.exp(future - value[:, :, None])


def simulate(
    periods: int = 4000,
    members: int | None = None,
    seed: int = 0,
    *,
    theta: Sequence[float] = THETA,
    beta: float = BETA,
    up: float = UP,
    noise: float = NOISE,
) -> Sample:
    """One data set of the ECCP design.

    Parameters
    ----------
    periods
        Number of periods ``T``; the market starts from its stationary law.
    members
        Agents observed in each agent state and period; None for exact CCPs only. The market and
        its measurement do not depend on it.
    seed
        Seed of the generator.
    theta, beta, up
        As in `solve`.
    noise
        SD of the error in the measured market state.

    Returns
    -------
    Sample
        CCPs, counts, market state, its measurement, and the law of the agent state.
    """
    points, moves = market_law()
    rng = np.random.default_rng(seed)
    ladder = moves.cumsum(axis=1)
    draws = rng.random(periods)
    stationary = np.linalg.matrix_power(moves, 1 << 12)[0]
    path = np.empty(periods, dtype=np.int64)
    odds = stationary.cumsum()
    for t in range(periods):
        path[t] = min(int(np.searchsorted(odds, draws[t], side="right")), POINTS - 1)
        odds = ladder[path[t]]
    measured = points[path] + noise * rng.standard_normal(periods)
    probabilities = solve(theta, beta, up)[path]
    counts = None
    if members is not None:
        ones = rng.binomial(members, probabilities[:, :, 1])
        counts = np.stack([members - ones, ones], axis=2)
    return Sample(probabilities, counts, points[path], measured, agent_law(up))
