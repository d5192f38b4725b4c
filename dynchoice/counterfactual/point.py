"""``counterfactual``: what choices and values become, state by state, under one scenario."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.counterfactual.scenario import Scenario
from dynchoice.errors import SpecificationError
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.solve.linear import one_blas_thread
from dynchoice.solve.warm import WarmSolver
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

IDENTIFIED_STATES = 1500
"""States up to which the criterion of Kalouptsidi et al. (2021) is computed in full."""


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
