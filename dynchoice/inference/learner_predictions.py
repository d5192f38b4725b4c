"""Predictions of fitted learners: probabilities, values and rewards at any state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dynchoice.errors import DataError
from dynchoice.model.sieve import Sieve, by_choice, logit_logs
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

CLIP = 1e-3
"""Least probability that a classifier may give to a choice that is offered."""


class Predictor(Protocol):
    """The fitted learners of a reward, evaluated at any state."""

    def at(
        self,
        x: FloatArray,
        offered: BoolArray | None,
        o: IntArray,
        paid: FloatArray,
        beta: float,
        /,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return log probabilities, values and rewards (n, J) at states ``x`` (n, p).

        ``o`` (n,) is the reference choice of each state, and ``paid`` (n,) what it earns.
        """
        ...


class Regressor(Protocol):
    """A fitted learner of numbers, as scikit-learn's are."""

    def predict(self, X: FloatArray, /) -> ArrayLike:
        """Return a number (n,) for each row of ``X`` (n, p)."""
        ...


def predicted(learner: Regressor, X: FloatArray) -> FloatArray:
    """Return a regressor's predictions (n,).

    Raises
    ------
    DataError
        They are not finite numbers, one a row.
    """
    out = np.asarray(learner.predict(X), dtype=np.float64)
    if out.size != len(X) or not np.isfinite(out).all():
        raise DataError(
            f"{type(learner).__name__}.predict returned shape {out.shape} with"
            f" {int((~np.isfinite(out)).sum()):,} values that are not finite; one number a row is"
            f" needed, ({len(X):,},)"
        )
    return out.reshape(len(X))


def with_choice(x: FloatArray, choice: IntArray, J: int) -> FloatArray:
    """Return states with indicators of a choice beside them (n, p + J)."""
    return np.column_stack([x, np.eye(J)[choice]])


def choice_values(learner: Regressor, x: FloatArray, J: int) -> FloatArray:
    """Return a learner's values of all choices (n, J), from states with a choice beside them."""
    each = (with_choice(x, np.full(len(x), j, dtype=np.int64), J) for j in range(J))
    return np.stack([predicted(learner, X) for X in each], axis=1)


@dataclass(frozen=True)
class SievePolicy:
    """A multinomial logit on a sieve."""

    sieve: Sieve
    coefficients: FloatArray

    def logs(self, x: FloatArray, offered: BoolArray | None) -> tuple[FloatArray, int]:
        """Return log probabilities (n, J), 0 where not offered; and that no row was clipped."""
        return logit_logs(self.coefficients, self.sieve(x), offered), 0


@dataclass(frozen=True)
class ClassifierPolicy:
    """A fitted classifier's probabilities of ``J`` choices."""

    learner: Any
    J: int

    def logs(self, x: FloatArray, offered: BoolArray | None) -> tuple[FloatArray, int]:
        """Return clipped log probabilities (n, J), and how many rows were clipped.

        Raises
        ------
        DataError
            It predicts no probabilities.
        """
        predicted_p = np.asarray(self.learner.predict_proba(x), dtype=np.float64)
        # a classifier has no column for a choice that nobody took where it was fitted
        p = np.zeros((len(x), self.J))
        classes = getattr(self.learner, "classes_", np.arange(self.J))
        p[:, np.asarray(classes, dtype=np.int64)] = predicted_p
        if not np.isfinite(p).all() or (p < 0).any():
            name = type(self.learner).__name__
            raise DataError(f"{name}.predict_proba returned numbers that are no probabilities")
        possible = np.ones(p.shape, dtype=bool) if offered is None else offered
        low = possible & (p < CLIP) & (possible.sum(axis=1, keepdims=True) > 1)
        p = np.where(possible, np.maximum(p, CLIP), 0.0)
        p /= p.sum(axis=1, keepdims=True)
        logs = np.where(possible, np.log(np.where(possible, p, 1.0)), 0.0)
        return logs, int(low.any(axis=1).sum())


@dataclass(frozen=True)
class SieveValue:
    """A sieve's ``W(s)``, or (``J`` choices) ``h(s, a)`` of states with a choice beside them."""

    sieve: Sieve
    c: FloatArray
    J: int

    def predict(self, X: FloatArray) -> FloatArray:
        """Return values (n,)."""
        if not self.J:
            return np.asarray(self.sieve(X) @ self.c)
        phi, choice = self.sieve(X[:, : -self.J]), X[:, -self.J :].argmax(axis=1)
        return np.asarray(by_choice(phi, choice, self.J) @ self.c)


@dataclass(frozen=True)
class Corrected:
    """A sieve's values plus what a learner adds to them, plus a constant."""

    base: SieveValue
    learner: Any
    shift: float

    def predict(self, X: FloatArray) -> FloatArray:
        """Return values (n,)."""
        return self.base.predict(X) + predicted(self.learner, X) + self.shift


@dataclass(frozen=True)
class LearnedReward:
    """Deep PQR or GenPQR with learners, averaged over folds.

    Attributes
    ----------
    policies : tuple of SievePolicy or ClassifierPolicy
    values : tuple of Corrected
        Of ``W(s)``, or of ``E[q(s', o') | s, a]`` on states with a choice beside them
        (``general``).
    ahead : tuple of regressors
        Deep PQR: ``E[V(s') | s, a]`` for each choice.
    """

    policies: tuple[SievePolicy | ClassifierPolicy, ...]
    values: tuple[Regressor, ...]
    ahead: tuple[Regressor, ...]
    general: bool

    def at(
        self, x: FloatArray, offered: BoolArray | None, o: IntArray, paid: FloatArray, beta: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """See :class:`Predictor`."""
        rows = np.arange(len(x))
        p = np.mean([np.exp(policy.logs(x, offered)[0]) for policy in self.policies], axis=0)
        logs = np.log(p)
        if self.general:
            J = p.shape[1]
            h = np.mean([choice_values(value, x, J) for value in self.values], axis=0)
            q = logs - paid[:, None] + beta * h
            at_reference = q[rows, o][:, None]
            return logs, logs - at_reference, q - at_reference + paid[:, None]
        W = np.mean([predicted(value, x) for value in self.values], axis=0)
        values = logs - logs[rows, o][:, None] + W[:, None]
        h = np.stack([predicted(learner, x) for learner in self.ahead], axis=1)
        return logs, values, values - beta * h
