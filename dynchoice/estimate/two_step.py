"""What estimators with choice probabilities in a first stage have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.estimate import first_stage as laws_of_motion
from dynchoice.estimate.choice_probabilities import FirstStageChoice
from dynchoice.estimate.estimator import CountsEstimator, Fit
from dynchoice.estimate.first_stage import FirstStage, counts_of
from dynchoice.model.ddc import DDC

if TYPE_CHECKING:
    from dynchoice.model.utility import Utility
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel

VALUATIONS = ("exact", "simulation", "finite-dependence")


class TwoStepEstimator(CountsEstimator[Fit]):
    """An estimator on counts that starts from choice probabilities."""

    _stage: FirstStageChoice
    _first: FirstStage

    def _read(self, model: DDC, data: Panel | Counts, first_stage: str | Utility) -> None:
        """Take model and data, and estimate the laws of motion that need it.

        Raises
        ------
        SpecificationError, DataError
            Data that cannot come from the model; a first stage that is not known.
        """
        self.model = model
        self.counts, self.panel = counts_of(data)
        self._stage = FirstStageChoice.of(model, first_stage)
        self._first = laws_of_motion.first_stage(model, self.counts, self.panel)


def check_valuation(name: str, model: DDC, valuation: str, beta: str | None) -> None:
    """Validate how choice probabilities give values, and whether beta is estimated.

    Raises
    ------
    SpecificationError
        An option that is not known, or does not fit the others or the model's horizon.
    """
    checks.one_of(valuation, "valuation", VALUATIONS)
    if beta not in (None, "estimate"):
        raise SpecificationError(
            f"beta={beta!r}: the model holds the discount factor; 'estimate' frees it"
        )
    if valuation == "finite-dependence":
        return
    if beta is not None:
        raise SpecificationError("beta='estimate' needs valuation='finite-dependence'")
    if model.horizon is not None:
        raise SpecificationError(
            f"{name} with {valuation} values is for infinite horizons; NFXP takes a finite one, and"
            " so does valuation='finite-dependence'"
        )
