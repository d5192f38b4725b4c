"""How policy, values and rewards follow from what each estimator of rewards keeps of values.

With ``phi`` the sieve at a state, ``pi`` the policy, ``o`` the reference choice that earns ``g``:

    anchor   W(s) = V - psi_o is kept:           r = log pi - log pi_o + W - beta E[V(s') | s, a]
    joint    Q(s, a) is kept, pooled and own:    r = Q - beta E[V(s') | s, a]
    general  h(s, a) = E[q(s', o') | s, a]:      q = log pi - g + beta h,   r = q - q_o + g
    linear   what follows a choice, theta too:   Q = x theta + phi w_a
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from dynchoice.model.sieve import by_choice, log_softmax, logit_logs
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.inference.reward_results import RewardResults


class States(NamedTuple):
    """Rows to evaluate: table, sieve (n, G), choices offered (n, J), reference choices (n,)."""

    table: pd.DataFrame
    phi: FloatArray
    offered: BoolArray | None
    reference: IntArray


Parts = tuple[FloatArray, FloatArray, FloatArray]
"""Log probabilities, choice-specific values and rewards, each (n, J)."""


class Form(ABC):
    """One way to keep values, see the module docstring.

    Attributes
    ----------
    projects : bool
        Whether parameters are a projection of the reward (TD-CCP's maximise a likelihood).
    """

    projects: ClassVar[bool] = True

    @abstractmethod
    def at(self, fit: RewardResults, states: States) -> Parts:
        """Return log probabilities, values and rewards at states."""


class AnchorForm(Form):
    """The value of the anchor (Deep PQR)."""

    def at(self, fit: RewardResults, states: States) -> Parts:
        """Compute them from ``W`` and the policy."""
        phi, rows = states.phi, np.arange(len(states.phi))
        logs = logit_logs(fit.policy_coefficients, phi, states.offered)
        anchor = logs[rows, states.reference][:, None]
        values = logs - anchor + (phi @ fit.value_coefficients)[:, None]
        return logs, values, values - fit.model.beta * (phi @ fit.ahead_coefficients.T)


class JointForm(Form):
    """Choice-specific values from one minimisation (GLADIUS)."""

    def at(self, fit: RewardResults, states: States) -> Parts:
        """Compute them from ``Q``."""
        phi = states.phi
        pooled, apart = np.split(fit.value_coefficients, [phi.shape[1]])
        by_choice_alone = phi @ apart.reshape(len(fit.model.choices), -1).T
        values = (phi @ pooled)[:, None] + by_choice_alone
        logs = log_softmax(values, states.offered)
        return logs, values, values - fit.model.beta * (phi @ fit.ahead_coefficients.T)


class GeneralForm(Form):
    """The value of a reference policy (GenPQR)."""

    def at(self, fit: RewardResults, states: States) -> Parts:
        """Compute them from ``h`` and the policy."""
        phi, rows, reference = states.phi, np.arange(len(states.phi)), states.reference
        J, model = len(fit.model.choices), fit.model
        earned = model.paid(states.table, reference)
        earned = earned + model.design(states.table)[0][rows, reference] @ fit.theta
        logs = logit_logs(fit.policy_coefficients, phi, states.offered)
        designs = (by_choice(phi, np.full(len(phi), j), J) for j in range(J))
        h = np.stack([design @ fit.value_coefficients for design in designs], axis=1)
        q = logs - earned[:, None] + model.beta * h
        at_reference = q[rows, reference][:, None]
        return logs, logs - at_reference, q - at_reference + earned[:, None]


class LinearForm(Form):
    """What follows each choice, beside linear flow utility (TD-CCP)."""

    projects = False

    def at(self, fit: RewardResults, states: States) -> Parts:
        """Compute them from the index of the pseudo-likelihood and its parts."""
        rows, model = np.arange(len(states.phi)), fit.model
        r = model.design(states.table)[0] @ fit.theta + model.base(states.table)
        r[rows, states.reference] += model.known(states.table)
        values = r + states.phi @ fit.value_coefficients.T
        return log_softmax(values, states.offered), values, r


FORMS: dict[str, Form] = {
    "anchor": AnchorForm(),
    "joint": JointForm(),
    "general": GeneralForm(),
    "linear": LinearForm(),
}
"""The forms by the name that results and their files carry."""
