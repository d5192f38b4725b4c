"""Deep PQR and GenPQR: rewards from choices, given one choice whose reward is known.

States that are levels (a :class:`dynchoice.DDC` and its Panel) take closed forms
(:mod:`dynchoice.estimate.rewards.pqr_levels`); states that are numbers (a
:class:`dynchoice.RewardModel` and :class:`dynchoice.Trajectories`) take regressions
(:mod:`dynchoice.estimate.rewards.pqr_rows`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.estimate.estimator import Estimator, FitOptions
from dynchoice.estimate.rewards.learners import Classifier, CrossFitted, Regressor, check_learner
from dynchoice.estimate.rewards.pqr_levels import TableReward
from dynchoice.estimate.rewards.rows_reward import RowsReward
from dynchoice.inference.results import Results
from dynchoice.inference.reward_results import RewardResults
from dynchoice.model.ddc import DDC
from dynchoice.model.reward import RewardModel
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import FloatArray, Level

if TYPE_CHECKING:
    from dynchoice.model.utility import Utility

SUPPORT = 30
"""Least number of member-months with a reference choice, below which no reward is estimated."""
POOL = 10.0
"""Rows that the columns which choices share are worth against those of one choice (GenPQR)."""


class RewardEstimator(Estimator[Results | RewardResults]):
    """An estimator of rewards that is made of another one for the kind of states at hand."""

    made: Estimator[Results] | Estimator[RewardResults]

    def estimate(self, options: FitOptions) -> Results | RewardResults:
        """Return the rewards and their projection on the features."""
        return self.made.estimate(options)

    def resample(self, options: FitOptions) -> Results | RewardResults:
        """Return the same with the covariance of a bootstrap."""
        return self.made.resample(options)

    def run(self, options: FitOptions) -> Results | RewardResults:
        """Estimate with options that are checked already, as the estimator for these states."""
        return self.made.run(options)


class DeepPQR(RewardEstimator):
    """Inverse reinforcement learning with an anchor choice of known reward (Deep PQR).

    Parameters
    ----------
    model : DDC or RewardModel
        States that are levels, infinite horizon: its utility says on which features the reward is
        projected, laws without probabilities are estimated. Or states that are numbers.
    data : Panel or Counts; or Trajectories
    anchor : label, optional
        With a DDC: the choice whose reward is known, offered wherever there is a choice. Default:
        the choice whose features are zero in every state ("not a member"). A RewardModel names it.
    reward : float or array (S,), optional
        With a DDC: the anchor's reward, in utils. Default: what its features and parameters say,
        zero where it has none.
    first_stage : str or Utility
        With a DDC: of the choice probabilities; see :class:`dynchoice.CCP`.
    degree : int
        With a RewardModel: highest power in the sieve of policy and values.
    pairs : bool, optional
        With a RewardModel: products of two features in the sieve. Default: up to 8 features.
    support : int
        Rows that must have taken the anchor.
    regressor, classifier : learners, optional
        With a RewardModel: what estimates values and choice probabilities in place of the sieve.
        Objects with ``fit(X, y)`` and ``predict(X)``, or ``predict_proba(X)``: scikit-learn's, or
        :class:`dynchoice.Network`. They are cross-fitted: a member's rows are predicted by copies
        that did not see the member. Without a classifier, probabilities stay a logit on the sieve.
    folds, rounds : int
        With a regressor: folds of members (5), and at most so many rounds of fitted-Q iteration
        (50).

    Raises
    ------
    SpecificationError
        Finite horizon; no default anchor; an anchor that states do not offer; options of the other
        kind of model.
    DataError
        Fewer than ``support`` rows with the anchor.
    IdentificationError
        The features are collinear where there are rows.

    Notes
    -----
    P: choice probabilities. Q: ``W = g + beta E[W' - log pi'_anchor | s, anchor]`` from the rows
    with the anchor, ``Q_a = W + log pi_a - log pi_anchor``. R: ``r_a = Q_a - beta E[V' | s, a]``
    (Geng et al. 2020, (i)-(iii)). A wrong ``reward``, off by ``c``, moves the rewards of every
    other choice by ``A_a c``, ``A_a = (I - beta F_a)(I - beta F_anchor)^{-1}``: which
    counterfactuals do not depend on it, ``counterfactual(...).identified`` says.

    The parameters are the projection of the reward on the features, ``E[x x']^{-1} E[x r]``;
    standard errors go through every step, by the influence of every choice and move.

    References
    ----------
    Geng, Nassif, Manzanares, Reppen and Sircar (2020), ICML 119.

    Examples
    --------
    >>> from dynchoice.run.config import load_run
    >>> run = load_run("data/prime/run.toml")  # doctest: +SKIP
    >>> DeepPQR(run.model, run.panel(), anchor="none").fit()  # doctest: +SKIP
    """

    name = "DeepPQR"

    def __init__(
        self,
        model: DDC | RewardModel,
        data: Panel | Counts | Trajectories,
        *,
        anchor: Level | None = None,
        reward: float | FloatArray | None = None,
        first_stage: str | Utility | None = None,
        degree: int | None = None,
        pairs: bool | None = None,
        support: int = SUPPORT,
        regressor: Regressor | None = None,
        classifier: Classifier | None = None,
        folds: int | None = None,
        rounds: int | None = None,
    ) -> None:
        if anchor is not None and not isinstance(anchor, Hashable):
            raise SpecificationError("anchor is one choice; GenPQR takes probabilities (S, J)")
        table = {"anchor": anchor, "reward": reward, "first_stage": first_stage}
        rows = {
            "degree": degree,
            "pairs": pairs,
            "regressor": regressor,
            "classifier": classifier,
            "folds": folds,
            "rounds": rounds,
        }
        self.model = model
        self.made = make_estimator(
            self.name,
            model,
            data,
            table=table,
            rows=rows,
            reference=anchor,
            support=support,
            pool=0.0,
        )


class GenPQR(RewardEstimator):
    """Inverse reinforcement learning under a general normalisation (GenPQR).

    Parameters
    ----------
    model, data, reward, first_stage, degree, pairs, support, regressor, classifier, folds, rounds
        As of :class:`DeepPQR`. A regressor learns ``q(s, a)`` from states with indicators of the
        choice beside them.
    reference : label, array (S, J) or "uniform", optional
        With a DDC: the policy whose expected reward is known: a choice, or probabilities over
        choices that are offered. Default: as the anchor of :class:`DeepPQR`.
    pool : float
        With a RewardModel: all rows inform the value of the reference, for choices share columns
        of the sieve; this many rows of prior pull what a choice does not share towards zero.

    Raises
    ------
    SpecificationError, DataError, IdentificationError
        As of :class:`DeepPQR`.

    Notes
    -----
    ``q(s, a) = log pi(a|s) - g(s) + beta E[sum_b mu(b|s') q(s', b) | s, a]``, evaluation of the
    reference policy ``mu``; then ``r(s, a) = q(s, a) - sum_b mu(b|s) q(s, b) + g(s)``.

    References
    ----------
    van der Laan, Kallus and Bibaut (2025), arXiv 2509.21172.
    """

    name = "GenPQR"

    def __init__(
        self,
        model: DDC | RewardModel,
        data: Panel | Counts | Trajectories,
        *,
        reference: Level | FloatArray | None = None,
        reward: float | FloatArray | None = None,
        first_stage: str | Utility | None = None,
        degree: int | None = None,
        pairs: bool | None = None,
        pool: float | None = None,
        support: int = SUPPORT,
        regressor: Regressor | None = None,
        classifier: Classifier | None = None,
        folds: int | None = None,
        rounds: int | None = None,
    ) -> None:
        table = {"reference": reference, "reward": reward, "first_stage": first_stage}
        rows = {
            "degree": degree,
            "pairs": pairs,
            "pool": pool,
            "regressor": regressor,
            "classifier": classifier,
            "folds": folds,
            "rounds": rounds,
        }
        self.model = model
        self.made = make_estimator(
            self.name,
            model,
            data,
            table=table,
            rows=rows,
            reference=reference,
            support=support,
            pool=checks.positive(POOL if pool is None else pool, "pool"),
        )


def make_estimator(
    name: str,
    model: DDC | RewardModel,
    data: Panel | Counts | Trajectories,
    *,
    table: dict[str, Any],
    rows: dict[str, Any],
    reference: Level | FloatArray | None,
    support: int,
    pool: float,
) -> TableReward | RowsReward:
    """Return the estimator for the kind of states, or say which options the other kind takes.

    ``table`` and ``rows`` are the options for states that are levels, and numbers.
    """
    numbers = isinstance(model, RewardModel)
    if not numbers and not isinstance(model, DDC):
        raise SpecificationError(f"model is a {type(model).__name__}; pass a DDC or a RewardModel")
    kinds: tuple[type, ...] = (Trajectories,) if numbers else (Panel, Counts)
    if not isinstance(data, kinds):
        raise SpecificationError(
            f"data is a {type(data).__name__}; a {type(model).__name__} takes"
            f" {' or '.join(t.__name__ for t in kinds)}"
        )
    for option, value in (table if numbers else rows).items():
        if value is not None:
            other = "a DDC" if numbers else "a RewardModel"
            raise SpecificationError(f"{name}: {option}= is for {other} only")
    if isinstance(data, Trajectories):
        assert isinstance(model, RewardModel)
        return RowsReward(
            name,
            model,
            data,
            make_learner(name, rows),
            general=name == "GenPQR",
            degree=2 if rows["degree"] is None else rows["degree"],
            pairs=rows["pairs"],
            pool=pool,
            support=support,
        )
    assert isinstance(model, DDC)
    return TableReward(
        model,
        data,
        name=name,
        reference=reference,
        reward=table["reward"],
        first_stage="smoothed" if table["first_stage"] is None else table["first_stage"],
        support=support,
    )


def make_learner(name: str, options: dict[str, Any]) -> CrossFitted | None:
    """Return what estimates the first two steps in place of the sieve, or None."""
    regressor = options["regressor"]
    if regressor is None:
        for option in ("classifier", "folds", "rounds"):
            if options[option] is not None:
                raise SpecificationError(f"{name}: {option}= goes with a regressor=")
        return None
    check_learner(regressor, ("fit", "predict"), "regressor")
    return CrossFitted(
        classifier=options["classifier"],
        regressor=regressor,
        folds=5 if options["folds"] is None else options["folds"],
        rounds=50 if options["rounds"] is None else options["rounds"],
    )
