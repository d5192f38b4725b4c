"""``counterfactual``: what choices and values become, state by state, under one scenario."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.badges import badge
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import SpecificationError
from dynchoice.inference.results import Results
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.solvers.solve import solve
from dynchoice.typing import FloatArray, Level

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
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
    choices: tuple[Level, ...]
    identified: bool
    reasons: tuple[str, ...]
    converged: bool
    message: str

    @property
    def shares(self) -> pd.DataFrame:
        """Mean choice probabilities: baseline, scenario and change."""
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


def counterfactual(
    results: Results, scenario: Scenario, *, weights: ArrayLike | None = None
) -> Counterfactual:
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
    applied = scenario.applied(base)
    model = applied.model
    if model.choices != base.choices or model.states != base.states:
        raise SpecificationError(
            f"scenario {scenario.name!r} changes states or choices: counterfactual() compares state"
            " by state; use forecast(), which moves members to the new ones"
        )
    with one_blas_thread():
        before = solve(base, results.theta, start=start)
        after = solve(model, applied.theta(results.theta), start=start)
    place = applied.place
    V, P = (after.V, after.ccp) if place is None else (after.V[place], after.ccp[place])
    rests_on = badge(applied, results.counts)
    return Counterfactual(
        scenario=scenario,
        ccp=P,
        V=V,
        baseline_ccp=before.ccp,
        baseline_V=before.V,
        weights=w / w.sum(),
        choices=base.choices,
        identified=rests_on.identified,
        reasons=rests_on.reasons,
        converged=before.converged and after.converged,
        message=after.message,
    )
