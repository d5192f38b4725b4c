"""P step on rows: a multinomial logit on a sieve, by Newton's method over blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dynchoice.model.sieve import logit_logs
from dynchoice.typing import BoolArray, FloatArray, IntArray

STEPS = 50
FIRST_ROWS = 100_000
"""Rows of the sample that a long fit starts from."""


@dataclass(frozen=True)
class Choices:
    """Some rows as the logit sees them: sieve (n, G), choices, weights, what is offered."""

    phi: FloatArray
    choice: IntArray
    weight: FloatArray
    offered: BoolArray | None


@dataclass(frozen=True)
class ChoiceLogit:
    """Choice probabilities ``pi(a|s)``, a logit with coefficients (J - 1, G).

    Attributes
    ----------
    coefficients : FloatArray, shape (J - 1, G)
        Relative to choice 0.
    information : FloatArray, shape ((J - 1) G, (J - 1) G)
        Minus the second derivative of the log-likelihood.
    loglik, loglik_null : float
    converged : bool
    gradient : float
        Largest gradient in standard deviations of the score.
    steps : int
    """

    coefficients: FloatArray
    information: FloatArray
    loglik: float
    loglik_null: float
    converged: bool
    gradient: float
    steps: int

    def log_probabilities(self, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
        """Return ``log pi`` (n, J) on a sieve (n, G); 0 where a choice is not offered."""
        return logit_logs(self.coefficients, phi, offered)


def taken(choice: IntArray, J: int) -> FloatArray:
    """Return indicators (n, J - 1) of the choices after the first."""
    out = np.zeros((len(choice), J))
    out[np.arange(len(choice)), choice] = 1.0
    return out[:, 1:]


def one_pass(
    coefficients: FloatArray, blocks: Iterator[Choices], ridge: float, second: bool = True
) -> tuple[float, FloatArray, FloatArray, float]:
    """Return log-likelihood, score, information and null log-likelihood over the blocks."""
    J, G = len(coefficients) + 1, coefficients.shape[1]
    K = (J - 1) * G
    score, information = np.zeros(K), np.zeros((J - 1, G, J - 1, G))
    loglik, null = 0.0, 0.0
    for b in blocks:
        logs = logit_logs(coefficients, b.phi, b.offered)
        loglik += float(b.weight @ logs[np.arange(len(logs)), b.choice])
        count = J if b.offered is None else b.offered.sum(axis=1)
        null -= float((b.weight * np.log(count)).sum())
        pi = np.exp(logs) if b.offered is None else np.exp(logs) * b.offered
        miss = (taken(b.choice, J) - pi[:, 1:]) * b.weight[:, None]
        score += (miss.T @ b.phi).reshape(-1)
        if not second:
            continue
        for a in range(J - 1):
            for c in range(a + 1):
                w = b.weight * pi[:, a + 1] * ((a == c) - pi[:, c + 1])
                block = (b.phi * w[:, None]).T @ b.phi
                information[a, :, c] += block
                if c < a:
                    information[c, :, a] += block.T
    score -= ridge * coefficients.reshape(-1)
    loglik -= ridge / 2 * float((coefficients**2).sum())
    return loglik, score, information.reshape(K, K) + ridge * np.eye(K), null


def fit_logit(
    blocks: Callable[[], Iterator[Choices]],
    J: int,
    G: int,
    *,
    start: FloatArray | None = None,
    ridge: float = 1e-6,
    tol: float = 1e-8,
    maxiter: int = STEPS,
) -> ChoiceLogit:
    """Maximise the likelihood of choices.

    Parameters
    ----------
    blocks : callable
        Returns an iterator over :class:`Choices`; called once a step.
    J, G : int
    start : FloatArray, shape (J - 1, G), optional
    ridge : float
        Penalty, in observations: keeps separated directions finite.
    tol : float
        On the Newton decrement: twice the log-likelihood still to gain.
    maxiter : int
    """
    coefficients = np.zeros((J - 1, G)) if start is None else start.copy()
    loglik, score, information, null = one_pass(coefficients, blocks(), ridge)
    step = 0
    for step in range(1, maxiter + 1):  # noqa: B007
        move = np.linalg.solve(information, score)
        decrement = float(score @ move)
        if decrement <= tol:
            break
        for halving in range(20):
            trial = coefficients + move.reshape(coefficients.shape) / 2**halving
            tried = one_pass(trial, blocks(), ridge)
            if tried[0] >= loglik - 1e-12 * abs(loglik):
                break
        coefficients, (loglik, score, information, null) = trial, tried
    size = np.sqrt(np.maximum(np.diag(information), 1e-300))
    gradient = float(np.abs(score / size).max())
    plain = loglik + ridge / 2 * float((coefficients**2).sum())
    converged = float(score @ np.linalg.solve(information, score)) <= tol
    return ChoiceLogit(coefficients, information, plain, null, bool(converged), gradient, step)
