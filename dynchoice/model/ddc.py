"""DDC: the primitives of a dynamic discrete choice model, with nothing estimated in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, first_few, suggest
from dynchoice.model.attention import check_attention, check_default, check_perceived, mix
from dynchoice.model.choicesets import check_available
from dynchoice.model.factored import Factored
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.panel.states import StateSpace, as_floats, check_labels
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level


class MembershipLike(Protocol):
    """What a model asks of the membership programme that it was built from.

    :class:`dynchoice.Membership` has it, and more: it stands above this folder, as do the
    scenarios and forecasts that use its plans and prices.
    """

    @property
    def fixed(self) -> Mapping[str, float]:
        """Parameters held at a value and not estimated."""

    def to_dict(self) -> dict[str, Any]:
        """Return the programme as plain nested values, for files."""


@dataclass(frozen=True, init=False)
class DDC:
    """A dynamic discrete choice model.

    Members in state ``s`` choose ``j`` to maximise
    ``u(s, j) + eps_j + beta E[V(s') | s, j]`` with type-1 extreme value shocks of **mean zero**
    and scale 1, so that ``V = logsum(v)``. With attention below one, ``V = attention logsum(v)
    + (1 - attention) v_default``.

    Parameters
    ----------
    states : StateSpace
        ``S`` states.
    choices : sequence of labels
        ``J`` choices.
    utility : Utility
        Features (S, J, K).
    transitions : Transitions
        ``F[s, j, s_next]``; laws without probabilities are estimated in the first stage.
    beta : float
        Discount factor per period, in [0, 1). With a ``horizon``, 1 is allowed.
    available : array (S, J) of bool, optional
        Default: every choice in every state.
    attention : float or array (S,), optional
        Probability of an active choice, in (0, 1]. Default 1.
    default : label, code or array (S,), optional
        What happens to an inattentive member.
    horizon : int, optional
        Number of periods ``T``; after the last one the value is zero. Default: infinite.
    perceived : float or array (S,), optional
        Attention that members count on in the future: below ``perceived`` attention is naive.
        ``V`` uses it, the observed probabilities use ``attention``. Default: ``attention``
        (sophisticated members).
    membership : Membership, optional
        The membership programme that the model was built from: what scenarios and forecasts in
        plans, prices and benefits need.

    Raises
    ------
    SpecificationError
        Anything that does not fit; the message names it.

    Examples
    --------
    >>> import dynchoice as dc
    >>> states = dc.StateSpace(mileage=range(3))
    >>> x = np.zeros((3, 2, 1)); x[:, 0, 0] = -np.arange(3.0)
    >>> model = dc.DDC(states=states, choices=["keep", "replace"],
    ...                utility=dc.Utility.from_array(x, ["cost"]),
    ...                transitions=dc.Transitions.factored(states, ["keep", "replace"],
    ...                    {"mileage": dc.Increment(1, "replace", probabilities=[0.5, 0.5])}),
    ...                beta=0.9)
    >>> model.shape
    (3, 2, 1)
    """

    states: StateSpace
    choices: tuple[Level, ...]
    utility: Utility
    transitions: Transitions
    beta: float
    available: BoolArray
    attention: FloatArray
    default: IntArray
    horizon: int | None
    perceived: FloatArray
    membership: Any  # MembershipLike here; who reads plans of it knows that it is a Membership

    def __init__(
        self,
        *,
        states: StateSpace,
        choices: Iterable[Level],
        utility: Utility,
        transitions: Transitions,
        beta: float,
        available: Any = None,
        attention: Any = None,
        default: Any = None,
        horizon: int | None = None,
        perceived: Any = None,
        membership: MembershipLike | None = None,
    ) -> None:
        checks.instance(states, "states", StateSpace)
        checks.instance(utility, "utility", Utility)
        if not isinstance(transitions, Transitions):
            raise SpecificationError(
                f"transitions must be a Transitions, got a {type(transitions).__name__}"
            )
        labels = check_labels(choices, "choices")
        if len(labels) < 2:
            raise SpecificationError(f"a model needs two choices at least, got {list(labels)}")
        S, J = states.size, len(labels)
        if utility.shape[:2] != (S, J):
            raise SpecificationError(
                f"utility is for {utility.shape[0]} states and {utility.shape[1]} choices, the"
                f" model has {S} and {J}"
            )
        transitions.check_fits(S, J)
        if isinstance(transitions, Factored) and (
            transitions.states != states or transitions.choices != labels
        ):
            raise SpecificationError(
                "transitions were built on other states or choices than the model's"
            )
        mask = check_available(available, states, labels)
        active = check_attention(attention, S)
        values = {
            "states": states,
            "choices": labels,
            "utility": utility,
            "transitions": transitions,
            "beta": check_beta(beta, horizon),
            "available": mask,
            "attention": active,
            "default": check_default(default, active, mask, states, labels),
            "horizon": None if horizon is None else int(horizon),
            "perceived": active if perceived is None else check_perceived(perceived, active, S),
            "membership": membership,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if isinstance(transitions, Factored):
            _check_next_levels(transitions, mask, states, labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(S, J, K)``."""
        return self.utility.shape

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names (K,)."""
        return self.utility.names

    def flow_utility(self, params: Any) -> FloatArray:
        """Return ``u`` (S, J) in utils, minus infinity where a choice is not offered."""
        u = self.utility.flow(self.vector(params))
        u[~self.available] = -np.inf
        return u

    def vector(self, params: Any) -> FloatArray:
        """Return parameters (K,) in the model's order, from a vector, mapping or Series.

        Raises
        ------
        SpecificationError
            Wrong length; a missing, unknown or not finite parameter.
        """
        if hasattr(params, "to_dict"):
            params = params.to_dict()
        if isinstance(params, Mapping):
            unknown = [k for k in params if k not in self.names]
            if unknown:
                raise SpecificationError(
                    f"no parameter {unknown[0]!r}.{suggest(unknown[0], self.names)}"
                    f" Parameters: {', '.join(self.names)}"
                )
            missing = [n for n in self.names if n not in params]
            if missing:
                raise SpecificationError(f"parameter {missing[0]!r} has no value")
            params = [params[n] for n in self.names]
        theta = as_floats(params, "parameters")
        if theta.shape != (len(self.names),):
            raise SpecificationError(
                f"{len(self.names)} parameters are needed ({', '.join(self.names)}), got shape"
                f" {theta.shape}"
            )
        if not np.isfinite(theta).all():
            bad = [n for n, v in zip(self.names, theta, strict=True) if not np.isfinite(v)]
            raise SpecificationError(f"parameter(s) {', '.join(bad)} are not finite")
        return theta

    def with_transitions(self, transitions: Transitions) -> DDC:
        """Return the model with other transitions (for instance, as estimated)."""
        return self.with_parts(transitions=transitions)

    def with_parts(self, **parts: Any) -> DDC:
        """Return the model with some parts replaced; everything is checked again."""
        same = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.sophisticated:  # they go on to count on the attention they have, if that changes
            del same["perceived"]
        return DDC(**{**same, **parts})

    @property
    def sophisticated(self) -> bool:
        """Whether members foresee their own inattention."""
        return self.perceived is self.attention or bool((self.perceived == self.attention).all())

    def observed(self, pi: FloatArray) -> FloatArray:
        """Return observed probabilities (S, J): attentive ones with the default mixed in."""
        return mix(pi, self.attention, self.default)

    def unchecked(self, **parts: Any) -> DDC:
        """Return the model with parts replaced and nothing checked: for inner loops only."""
        new = object.__new__(DDC)
        if "attention" in parts and self.sophisticated:
            parts.setdefault("perceived", parts["attention"])
        for name in self.__dataclass_fields__:  # quicker than fields() by a microsecond each time
            object.__setattr__(new, name, parts.get(name, getattr(self, name)))
        return new

    def __repr__(self) -> str:
        S, J, K = self.shape
        span = "infinite horizon" if self.horizon is None else f"{self.horizon} periods"
        return (
            f"DDC({S:,} states x {J} choices, {K} parameters: {', '.join(self.names)};"
            f" {self.transitions.kind} transitions, beta {self.beta:g}, {span})"
        )


def _check_next_levels(
    transitions: Factored, available: BoolArray, states: StateSpace, choices: Sequence[Level]
) -> None:
    """Raise where a choice is on offer whose next level a deterministic law does not say."""
    lost = np.argwhere(transitions.undefined & available)
    if len(lost):
        shown = [f"{choices[j]!r} in ({states.describe(s)})" for s, j in lost[:3]]
        raise SpecificationError(
            f"{len(lost):,} available choices have no next level in a deterministic law:"
            f" {first_few(shown)}. Complete the law, or make them unavailable"
        )


def check_beta(beta: float, horizon: int | None) -> float:
    """Return the discount factor: below 1, or at most 1 where the horizon is finite.

    Raises
    ------
    SpecificationError
        It is outside, or no number; the horizon is no positive whole number.
    """
    if horizon is not None:
        checks.whole(horizon, "horizon", 1)
        return checks.number(beta, "beta", 0, 1)
    value = checks.number(beta, "beta")
    if not 0 <= value < 1:
        raise SpecificationError(
            f"beta={value:g} is outside [0, 1): the discount factor per period must be below one"
            " without a horizon"
        )
    return value
