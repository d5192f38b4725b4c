"""The two normalisations: the reference's value from the rows that take it, or from all rows.

Deep PQR (:class:`AnchorValues`) learns ``W(s)`` from rows with ``a = o``; GenPQR
(:class:`ActionValues`) learns ``h(s, a)`` from all of them. What differs between the two stands
here and nowhere else; letters are those of :mod:`dynchoice.estimate.rewards.pqr_rows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dynchoice.estimate.choice_logit import taken
from dynchoice.estimate.rewards.row_blocks import RowBlock
from dynchoice.model.sieve import by_choice
from dynchoice.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class ValueRows:
    """The rows of a block that inform the Q step.

    Attributes
    ----------
    rows : IntArray, shape (q,)
        Positions within the block.
    chosen : BoolArray, shape (m,)
        Which of the followed rows they are.
    f, f_next : FloatArray, shape (q, D)
        Columns of the values, here and at the next row.
    """

    rows: IntArray
    chosen: BoolArray
    f: FloatArray
    f_next: FloatArray


@dataclass(frozen=True)
class ValueForm(ABC):
    """How the value of the reference enters the Q and the R step.

    Attributes
    ----------
    beta : float
    J : int
    """

    beta: float
    J: int
    name: ClassVar[str]
    needs_next_features: ClassVar[bool]
    """Whether the Q step's target has the reward of the next row's reference."""
    regresses_next: ClassVar[bool]
    """Whether the R step regresses the next row's value on ``phi``, for each choice."""

    @property
    @abstractmethod
    def log_next_factor(self) -> float:
        """What ``log pi(o'|s')`` is multiplied by in the Q step's target."""

    @abstractmethod
    def size(self, G: int) -> int:
        """Return D, the columns of values on a sieve of G."""

    @abstractmethod
    def values(self, phi: FloatArray, c: FloatArray) -> FloatArray:
        """Return ``W`` (n,) or ``h`` (n, J) of coefficients ``c`` (D,)."""

    @abstractmethod
    def value_rows(self, block: RowBlock) -> ValueRows:
        """Return the rows of the Q step with their columns."""

    @abstractmethod
    def target(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return what the Q step regresses (q,), before the next row's value."""

    @abstractmethod
    def target_by_theta(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return the target's slope by ``theta`` (q, K): what the reference's features earn."""

    @abstractmethod
    def value_taken(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return the value (q,) at the choices taken in the Q step's rows."""

    @abstractmethod
    def reward(self, block: RowBlock, odds: FloatArray) -> FloatArray:
        """Return the reward (m,) of the choices taken; ``odds`` is ``log pi_a - log pi_o``."""

    @abstractmethod
    def reward_by_values(self, block: RowBlock) -> FloatArray:
        """Return the reward's slope (m, D) by the coefficients of values."""

    @abstractmethod
    def reward_by_policy(self, block: RowBlock) -> list[tuple[float, FloatArray, FloatArray]]:
        """Return the reward's slope by the logit's coefficients, as terms of a sum.

        Each is a factor, a slope by the logit's index (m, J - 1), and columns (m, G).
        """

    @abstractmethod
    def own_features(self, block: RowBlock, features: FloatArray) -> FloatArray:
        """Return features (m, K) less what the reward itself has of the reference's."""

    @abstractmethod
    def normalised(
        self, block: RowBlock, x: FloatArray, H: FloatArray, law: FloatArray
    ) -> FloatArray:
        """Return the features normalised as the reward is (m, K), as the sieve expects them.

        ``law`` (J, G, K) is the regression of the next row's ``phi H`` on ``phi``, by choice.
        """

    @abstractmethod
    def earning(
        self, block: RowBlock, g: FloatArray, shift: FloatArray, theta: FloatArray
    ) -> RowBlock:
        """Return rows whose reference earns ``g``, which moves values by ``shift = H theta``."""


class AnchorValues(ValueForm):
    """Deep PQR: ``W(s)`` from the rows that take the reference."""

    name = "anchor"
    needs_next_features, regresses_next = False, True

    @property
    def log_next_factor(self) -> float:
        """See :class:`ValueForm`."""
        return -self.beta

    def size(self, G: int) -> int:
        """See :class:`ValueForm`."""
        return G

    def values(self, phi: FloatArray, c: FloatArray) -> FloatArray:
        """Return ``W`` (n,)."""
        return np.asarray(phi @ c)

    def value_rows(self, block: RowBlock) -> ValueRows:
        """Return the followed rows that take the reference."""
        chosen = block.choice[block.followed] == block.reference[block.followed]
        rows = block.followed[chosen]
        return ValueRows(rows=rows, chosen=chosen, f=block.phi[rows], f_next=block.phi_next[chosen])

    def target(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return ``g - beta l'_o``."""
        return np.asarray(block.g[used.rows] - self.beta * block.log_next[used.chosen])

    def target_by_theta(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return ``x_o``."""
        return block.x[used.rows, block.reference[used.rows]]

    def value_taken(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return ``W``."""
        return block.value[used.rows]

    def reward(self, block: RowBlock, odds: FloatArray) -> FloatArray:
        """Return ``l_a - l_o + W - beta V'``."""
        return np.asarray(odds + block.value[block.followed] - self.beta * next_value(block))

    def reward_by_values(self, block: RowBlock) -> FloatArray:
        """Return ``phi - beta phi'``."""
        return np.asarray(block.phi[block.followed] - self.beta * block.phi_next)

    def reward_by_policy(self, block: RowBlock) -> list[tuple[float, FloatArray, FloatArray]]:
        """Return the terms of ``l_a - l_o`` and of ``beta l'_o``."""
        return [odds_by_policy(block, self.J), (self.beta, block.gap_next, block.phi_next)]

    def own_features(self, block: RowBlock, features: FloatArray) -> FloatArray:
        """Return them as they are."""
        return features

    def normalised(
        self, block: RowBlock, x: FloatArray, H: FloatArray, law: FloatArray
    ) -> FloatArray:
        """Return ``x - phi H + beta E[phi' H | s, a]``."""
        phi = block.phi[block.followed]
        follows = np.einsum("ng,ngk->nk", phi, law[block.choice[block.followed]])
        return np.asarray(x - phi @ H + self.beta * follows)

    def earning(
        self, block: RowBlock, g: FloatArray, shift: FloatArray, theta: FloatArray
    ) -> RowBlock:
        """See :class:`ValueForm`."""
        value, value_next = (
            block.value + block.phi @ shift,
            block.value_next + block.phi_next @ shift,
        )
        return replace(block, g=g, value=value, value_next=value_next)


class ActionValues(ValueForm):
    """GenPQR: ``h(s, a) = E[q'_o | s, a]`` from all followed rows."""

    name = "general"
    needs_next_features, regresses_next = True, False

    @property
    def log_next_factor(self) -> float:
        """See :class:`ValueForm`."""
        return 1.0

    def size(self, G: int) -> int:
        """Return the columns that all choices share and those of each."""
        return (1 + self.J) * G

    def values(self, phi: FloatArray, c: FloatArray) -> FloatArray:
        """Return ``h`` (n, J)."""
        every = (self._columns_of(phi, j) @ c for j in range(self.J))
        return np.stack(list(every), axis=1)

    def _columns_of(self, phi: FloatArray, choice: int) -> FloatArray:
        """Return the columns (n, D) of rows that all take one choice."""
        return by_choice(phi, np.full(len(phi), choice, dtype=np.int64), self.J)

    def value_rows(self, block: RowBlock) -> ValueRows:
        """Return all followed rows."""
        rows = block.followed
        return ValueRows(
            rows=rows,
            chosen=np.ones(len(rows), dtype=bool),
            f=by_choice(block.phi[rows], block.choice[rows], self.J),
            f_next=by_choice(block.phi_next, block.reference_next, self.J),
        )

    def target(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return ``l'_o - g'``."""
        return np.asarray(block.log_next - block.g_next)

    def target_by_theta(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return ``-x'_o``."""
        return -block.x_next

    def value_taken(self, block: RowBlock, used: ValueRows) -> FloatArray:
        """Return ``h_a``."""
        return block.value[used.rows, block.choice[used.rows]]

    def reward(self, block: RowBlock, odds: FloatArray) -> FloatArray:
        """Return ``q_a - q_o + g``."""
        each, value = np.arange(len(block.followed)), block.value[block.followed]
        choice, reference = block.choice[block.followed], block.reference[block.followed]
        ahead = self.beta * (value[each, choice] - value[each, reference])
        return np.asarray(odds + ahead + block.g[block.followed])

    def reward_by_values(self, block: RowBlock) -> FloatArray:
        """Return ``beta (f(s, a) - f(s, o))``."""
        return np.asarray(self.beta * self._column_difference(block))

    def _column_difference(self, block: RowBlock) -> FloatArray:
        phi, rows = block.phi[block.followed], block.followed
        columns = by_choice(phi, block.choice[rows], self.J)
        return np.asarray(columns - by_choice(phi, block.reference[rows], self.J))

    def reward_by_policy(self, block: RowBlock) -> list[tuple[float, FloatArray, FloatArray]]:
        """Return the term of ``l_a - l_o``."""
        return [odds_by_policy(block, self.J)]

    def own_features(self, block: RowBlock, features: FloatArray) -> FloatArray:
        """Return them less ``x_o``, which the reward has through ``g``."""
        return np.asarray(features - block.x[block.followed, block.reference[block.followed]])

    def normalised(
        self, block: RowBlock, x: FloatArray, H: FloatArray, law: FloatArray
    ) -> FloatArray:
        """Return ``x - x_o - beta (f(s, a) - f(s, o)) H``."""
        gained = self.beta * (self._column_difference(block) @ H)
        return np.asarray(self.own_features(block, x) - gained)

    def earning(
        self, block: RowBlock, g: FloatArray, shift: FloatArray, theta: FloatArray
    ) -> RowBlock:
        """See :class:`ValueForm`."""
        columns_next = by_choice(block.phi_next, block.reference_next, self.J)
        value_next = block.value_next + columns_next @ shift
        return replace(
            block,
            g=g,
            value=block.value + self.values(block.phi, shift),
            value_next=value_next,
            g_next=block.g_next + block.x_next @ theta,
        )


def next_value(block: RowBlock) -> FloatArray:
    """Return ``V' = W' - l'_o`` (m,), as observed."""
    return np.asarray(block.value_next - block.log_next)


def odds_by_policy(block: RowBlock, J: int) -> tuple[float, FloatArray, FloatArray]:
    """Return the slope of ``log pi_a - log pi_o`` by the logit's coefficients."""
    choice, reference = block.choice[block.followed], block.reference[block.followed]
    return 1.0, taken(choice, J) - taken(reference, J), block.phi[block.followed]
