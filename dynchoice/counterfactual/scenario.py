"""Scenario: what is changed; ``counterfactual``: what choices and values become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.inference.results import Results
from dynchoice.model.choicesets import check_available
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored, parents_first
from dynchoice.model.laws import Fixed, bind
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.solve.linear import one_blas_thread
from dynchoice.solve.warm import WarmSolver
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

IDENTIFIED_STATES = 1500
"""States up to which the criterion of Kalouptsidi et al. (2021) is computed in full."""


@dataclass(frozen=True)
class Scenario:
    """A change of the model; several at once are fine, and none is the baseline.

    Parameters
    ----------
    name : str
    params : mapping, optional
        Parameter name -> new value, or -> function of the estimate (so that parameter
        uncertainty carries over), e.g. ``{"price": lambda p: 1.1 * p}``.
    utility : Utility, pandas.DataFrame or array (S, J), optional
        Other features; other attributes for the model's own formula; or utils to add.
    transitions : Transitions or mapping, optional
        Another law of motion, or ``{axis: law}`` to replace some laws of a factored one.
    available : array (S, J), optional
    offer : mapping, optional
        ``{axis: level}`` moves every member to that level of a Fixed axis when the scenario
        starts; ``{axis: {old level: new level, ...}}`` moves some.
    model : DDC, optional
        Another model over the same states and choices, instead of the pieces above.
    starts : int
        First period of the forecast in which it holds (1 = the first); until then members do
        not expect it.

    Examples
    --------
    >>> Scenario("dearer", params={"price": lambda p: 1.1 * p}, starts=6).starts
    6
    """

    name: str
    params: Mapping[str, Any] | None = None
    utility: Any = None
    transitions: Any = None
    available: Any = None
    offer: Mapping[str, Any] | None = None
    model: DDC | None = None
    starts: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecificationError(f"a scenario needs a name, got {self.name!r}")
        if isinstance(self.starts, np.integer):
            object.__setattr__(self, "starts", int(self.starts))
        to_dict = getattr(self.params, "to_dict", None)
        if to_dict is not None:
            object.__setattr__(self, "params", to_dict())
        for what in ("params", "offer"):
            value = getattr(self, what)
            if value is not None and not isinstance(value, Mapping):
                raise SpecificationError(
                    f"scenario {self.name!r}: {what} must be a mapping, got {value!r}"
                )
        if not isinstance(self.starts, int) or self.starts < 1:
            raise SpecificationError(
                f"scenario {self.name!r}: starts={self.starts!r}; the first period is 1"
            )
        if self.model is not None and any(
            x is not None for x in (self.utility, self.transitions, self.available)
        ):
            raise SpecificationError(
                f"scenario {self.name!r}: give either model= or its pieces, not both"
            )

    def theta(self, model: DDC, theta: FloatArray) -> FloatArray:
        """Return the parameters under the scenario."""
        if not self.params:
            return theta
        out = theta.copy()
        for name, change in self.params.items():
            if name not in model.names:
                raise SpecificationError(
                    f"scenario {self.name!r} changes the parameter {name!r}, which the model does"
                    f" not have.{suggest(name, model.names)} Parameters: {', '.join(model.names)}"
                )
            k = model.names.index(name)
            try:
                out[k] = float(change(theta[k]) if callable(change) else change)
            except (TypeError, ValueError):
                raise SpecificationError(
                    f"scenario {self.name!r}: parameter {name!r} becomes {change!r}, no number"
                ) from None
        return out

    def changed(self, model: DDC) -> DDC:
        """Return the model under the scenario (the same object where nothing changes)."""
        if self.model is not None:
            if self.model.states != model.states or self.model.choices != model.choices:
                raise SpecificationError(
                    f"scenario {self.name!r}: its model has other states or choices"
                )
            if self.model.names != model.names:
                raise SpecificationError(
                    f"scenario {self.name!r}: its model has other parameters"
                    f" ({', '.join(self.model.names)})"
                )
            return self.model
        parts: dict[str, Any] = {}
        if self.utility is not None:
            parts["utility"] = self._utility(model)
        if self.transitions is not None:
            parts["transitions"] = self._transitions(model)
        if self.available is not None:
            parts["available"] = check_available(self.available, model.states, model.choices)
        return model.with_parts(**parts) if parts else model

    def _utility(self, model: DDC) -> Utility:
        import pandas as pd

        if isinstance(self.utility, Utility):
            if self.utility.names != model.names:
                raise SpecificationError(
                    f"scenario {self.name!r}: its utility has the parameters"
                    f" {', '.join(self.utility.names)}, the model {', '.join(model.names)}"
                )
            return self.utility
        if isinstance(self.utility, pd.DataFrame):
            if model.utility.formula is None:
                raise SpecificationError(
                    f"scenario {self.name!r} gives attributes, but the model's utility was not"
                    " built from a formula"
                )
            new = Utility.from_formula(
                model.utility.formula, model.states, model.choices, self.utility
            )
            if new.names != model.names:
                raise SpecificationError(
                    f"scenario {self.name!r}: with its attributes the formula has the parameters"
                    f" {', '.join(new.names)}, the model has {', '.join(model.names)}. A level that"
                    " the model never had needs a parameter of its own"
                )
            return new.with_offset(model.utility.offset)
        extra = np.asarray(self.utility, dtype=np.float64)
        if extra.shape != model.shape[:2] or not np.isfinite(extra).all():
            raise SpecificationError(
                f"scenario {self.name!r}: utils to add must be finite with shape"
                f" {model.shape[:2]}, got {extra.shape}"
            )
        return model.utility.with_offset(extra)

    def _transitions(self, model: DDC) -> Transitions:
        if isinstance(self.transitions, Transitions):
            return self.transitions
        if not isinstance(model.transitions, Factored) or not isinstance(self.transitions, Mapping):
            raise SpecificationError(
                f"scenario {self.name!r}: transitions must be Transitions, or {{axis: law}} for a"
                " factored model"
            )
        own = model.transitions
        unknown = [k for k in self.transitions if k not in own.laws]
        if unknown:
            raise SpecificationError(
                f"scenario {self.name!r} changes the law of {unknown[0]!r}, which the model does"
                f" not have.{suggest(unknown[0], own.laws)}"
            )
        fresh = [bind(own.states, own.choices, k, law) for k, law in self.transitions.items()]
        changed = {law.name for law in fresh}
        kept = [law for law in own.bound if law.name not in changed]
        bound = parents_first((*kept, *fresh), own.states)
        return Factored(own.states, own.choices, {**own.laws, **self.transitions}, bound)

    def state_map(self, model: DDC) -> IntArray | None:
        """Return where each state stands once the offer is in force (S,), or None."""
        if not self.offer:
            return None
        states = model.states
        index = list(np.unravel_index(np.arange(states.size), states.shape))
        for axis, change in self.offer.items():
            at = states.axis(axis)
            if isinstance(model.transitions, Factored):
                law = next(b for b in model.transitions.bound if at in b.axes)
                if not isinstance(law.family, Fixed):
                    raise SpecificationError(
                        f"scenario {self.name!r}: axis {axis!r} moves by itself"
                        f" ({type(law.family).__name__}); an offer is an axis with law Fixed()"
                    )
            moves = np.arange(states.shape[at])
            if isinstance(change, Mapping):
                for old, new in change.items():
                    moves[states.level_code(axis, old)] = states.level_code(axis, new)
            else:
                moves[:] = states.level_code(axis, change)
            index[at] = moves[index[at]]
        return np.ravel_multi_index(tuple(index), states.shape).astype(np.int64)


@dataclass(frozen=True)
class Counterfactual:
    """Choices and values under a scenario beside the baseline, state by state.

    Attributes
    ----------
    ccp, V : FloatArray, shapes (S, J) and (S,)
        Under the scenario, for a member who stands in each baseline state.
    shares : pandas.DataFrame
        Mean choice probabilities over the weights: baseline, scenario, change.
    welfare : float
        Mean change of the ex-ante value over the weights, in utils.
    identified : bool
        Whether the data identify the scenario's probabilities without the normalisation of
        the outside choice (Kalouptsidi, Scott and Souza-Rodrigues 2021); ``reasons`` say why.
    """

    scenario: Scenario
    ccp: FloatArray
    V: FloatArray
    baseline_ccp: FloatArray
    baseline_V: FloatArray
    weights: FloatArray
    choices: tuple[Any, ...]
    identified: bool
    reasons: tuple[str, ...]
    converged: bool
    message: str
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shares(self) -> pd.DataFrame:
        """Mean choice probabilities: baseline, scenario and change."""
        import pandas as pd

        table = pd.DataFrame(
            {"baseline": self.weights @ self.baseline_ccp, "scenario": self.weights @ self.ccp},
            index=pd.Index(list(self.choices), name="choice"),
        )
        table["change"] = table["scenario"] - table["baseline"]
        return table

    @property
    def welfare(self) -> float:
        """Mean change of the ex-ante value, in utils."""
        return float(self.weights @ (self.V - self.baseline_V))

    def __str__(self) -> str:
        badge = "identified" if self.identified else "DEPENDS ON THE NORMALISATION"
        lines = [
            f"Scenario {self.scenario.name!r}: welfare {self.welfare:+.6g} utils a member; {badge}",
            self.shares.to_string(float_format="{:.4f}".format),
            *[f"- {r}" for r in self.reasons],
        ]
        if not self.converged:
            lines.append(f"NOT CONVERGED: {self.message}")
        return "\n".join(lines)

    __repr__ = __str__


def counterfactual(results: Results, scenario: Scenario, *, weights: Any = None) -> Counterfactual:
    """Re-solve the model under a scenario, to the same tolerance as the fit.

    Parameters
    ----------
    results : Results
    scenario : Scenario
    weights : array (S,), optional
        Over states, for the means. Default: the states that the panel showed.

    Returns
    -------
    Counterfactual

    Raises
    ------
    SpecificationError
        The scenario does not fit the model.
    """
    if not isinstance(results, Results):
        raise SpecificationError(
            f"counterfactual() takes one Results, got {type(results).__name__}"
            + (" (for one type: results.type(q))" if hasattr(results, "type") else "")
        )
    results.require_model("a counterfactual")
    if not isinstance(scenario, Scenario):
        raise SpecificationError(
            f"counterfactual() takes one Scenario, got {type(scenario).__name__}; forecast() takes"
            " several"
        )
    base = results.model
    if base.horizon is not None:
        raise SpecificationError("counterfactual() is for infinite horizons")
    w = results.counts.sum(axis=1) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (base.states.size,) or not (w >= 0).all() or not w.sum() > 0:
        raise SpecificationError(
            f"weights must be non-negative with shape (S,) = ({base.states.size},)"
        )
    start = results.value if results.value.size else None
    with one_blas_thread():
        before = WarmSolver(base, results.theta, start).base
        model = scenario.changed(base)
        after = WarmSolver(model, scenario.theta(base, results.theta), start).base
    at = scenario.state_map(base)
    V, P = (after.V, after.P) if at is None else (after.V[at], after.P[at])
    identified, reasons = identification(results, scenario, base, model, at)
    return Counterfactual(
        scenario,
        P,
        V,
        before.P,
        before.V,
        w / w.sum(),
        base.choices,
        identified,
        reasons,
        before.point.converged and after.point.converged,
        after.point.message,
    )


def identification(
    results: Results, scenario: Scenario, base: DDC, model: DDC, at: IntArray | None
) -> tuple[bool, tuple[str, ...]]:
    """Return whether the answer is free of the normalisation, and why (papers.md 6.2).

    Additive changes of utility and dropped choices are identified; changed transitions are
    exactly when ``A_j = A~_j`` for every choice, ``A_j = (I - beta F_j)(I - beta F_0)^{-1}``;
    choices made newly available and offers never seen rest on the functional form.
    """
    reasons: list[str] = []
    ok = True
    if model.transitions is not base.transitions:
        if (base.attention < 1).any() or (model.attention < 1).any():
            ok = False
            reasons.append("transitions change under inattention: no criterion, so not claimed")
        elif base.states.size > IDENTIFIED_STATES:
            ok = False
            reasons.append("transitions change; too many states to compute the criterion")
        else:
            gap = transition_gap(base, model)
            if gap > 1e-8:
                ok = False
                reasons.append(f"transitions change: max |A_j - A~_j| = {gap:.2g}")
            else:
                reasons.append("transitions change, and the criterion still holds")
    if model.beta != base.beta:
        ok = False
        reasons.append(f"the discount factor changes from {base.beta:g} to {model.beta:g}")
    if (model.attention != base.attention).any() or (model.default != base.default).any():
        ok = False
        reasons.append("attention or defaults change")
    added = model.available & ~base.available
    if added.any():
        ok = False
        reasons.append(f"{int(added.sum()):,} state-choice pairs become available")
    if (base.available & ~model.available).any():
        reasons.append("choices are dropped: identified")
    if scenario.params or scenario.utility is not None:
        reasons.append("utility changes by a known amount, given the parameters: identified")
    if at is not None:
        seen = results.counts.sum(axis=1) > 0
        lost = seen & ~seen[at]
        if lost.any():
            ok = False
            reasons.append(
                f"{int(lost.sum()):,} seen states move to offers never seen: utility there rests"
                " on the functional form"
            )
        else:
            reasons.append("the offer was seen in the panel: identified")
    return ok, tuple(reasons)


def transition_gap(base: DDC, model: DDC) -> float:
    """Return ``max_j |A_j - A~_j|``, the criterion with utility unchanged in kind."""
    eye = np.eye(base.states.size)
    F, G = base.transitions.dense_array(), model.transitions.dense_array()
    anchor = np.linalg.inv(eye - base.beta * F[:, 0])
    anchor_new = np.linalg.inv(eye - model.beta * G[:, 0])
    gaps = [
        np.abs(
            (eye - base.beta * F[:, j]) @ anchor - (eye - model.beta * G[:, j]) @ anchor_new
        ).max()
        for j in range(1, F.shape[1])
    ]
    return float(max(gaps))
