"""The first two steps at rows: log choice probabilities, and values, of a sieve or of any learner.

Deep PQR needs ``W(s)``, the value of the reference choice; GenPQR ``h(s, a) = E[q(s', o') | s, a]``
of every choice. What the later steps do with them does not depend on who estimated them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from dynchoice.estimate.choice_logit import ChoiceLogit
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.estimate.rewards.value_forms import ValueForm

Rows: TypeAlias = "slice | IntArray"
"""Positions in the trajectories."""


class FirstStages(Protocol):
    """Choice probabilities and values at rows, whoever estimated them."""

    def logs(self, rows: Rows, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
        """Return ``log pi`` (n, J); 0 where a choice is not offered."""
        ...

    def values(self, rows: Rows, phi: FloatArray) -> FloatArray:
        """Return ``W`` (n,) (Deep PQR) or ``h`` (n, J) (GenPQR)."""
        ...


@dataclass(frozen=True)
class SieveStages:
    """A logit and a linear value function on one sieve.

    Attributes
    ----------
    policy : ChoiceLogit
    c : FloatArray, shape (G,) or ((1 + J) G,)
        Coefficients of values.
    form : ValueForm
        What they are the values of.
    """

    policy: ChoiceLogit
    c: FloatArray
    form: ValueForm

    def logs(self, rows: Rows, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
        """See :class:`FirstStages`."""
        del rows
        return self.policy.log_probabilities(phi, offered)

    def values(self, rows: Rows, phi: FloatArray) -> FloatArray:
        """See :class:`FirstStages`."""
        del rows
        return self.form.values(phi, self.c)


@dataclass(frozen=True)
class LearnedStages:
    """Out-of-fold predictions of learners, kept by row.

    Attributes
    ----------
    log_pi : FloatArray, shape (N, J)
    value : FloatArray, shape (N,) or (N, J)
    """

    log_pi: FloatArray
    value: FloatArray

    def logs(self, rows: Rows, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
        """See :class:`FirstStages`."""
        del phi, offered
        return np.asarray(self.log_pi[rows])

    def values(self, rows: Rows, phi: FloatArray) -> FloatArray:
        """See :class:`FirstStages`."""
        del phi
        return np.asarray(self.value[rows])
