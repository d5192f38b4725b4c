"""Bootstrap of members for estimators on rows: every step redone on resampled members."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DynChoiceError,
    DynChoiceWarning,
    SpecificationError,
)
from dynchoice.estimate.estimator import Estimator, FitOptions
from dynchoice.estimate.workers import processes
from dynchoice.inference.reward_results import RewardResults
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import FloatArray

KEPT = 1_000_000
"""Numbers up to which the influence of every cluster is kept with a fit."""
FAILED_SHARE = 0.05
"""Share of failed draws from which on the fit warns (or, strict, fails)."""


class RowsEstimator(Estimator[RewardResults]):
    """An estimator on rows whose states are numbers.

    Attributes
    ----------
    rows : Trajectories
    """

    rows: Trajectories

    @abstractmethod
    def on(self, rows: Trajectories) -> Self:
        """Return the same estimator on other rows."""

    @abstractmethod
    def estimate_rows(self, options: FitOptions) -> RewardResults:
        """Return one fit, its covariance by the influence of members."""

    def estimate(self, options: FitOptions) -> RewardResults:
        """Return one fit, its covariance clustered by member or region."""
        check_cov(options, self.rows)
        return self.estimate_rows(options)

    def resample(self, options: FitOptions) -> RewardResults:
        """Return the fit with the covariance of its estimates over resampled members."""
        check_cov(options, self.rows)
        return bootstrap_rows(self, options)


def one_draw(estimator: RowsEstimator, times: FloatArray, options: FitOptions) -> FloatArray | str:
    """Return the estimates on resampled members, or why there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynChoiceWarning)
        try:
            fit = estimator.on(estimator.rows.reweighted(times)).run(options)
        except DynChoiceError as error:
            return str(error)
    return fit.vector if fit.converged else fit.message


def resampled_times(rows: Trajectories, options: FitOptions) -> FloatArray:
    """Return how often each member stands in each resampled panel, (draws, members)."""
    rng = np.random.default_rng(options.seed)
    if options.cluster == "member":
        size = np.ones(rows.nmembers)
        size[rows.member] = rows.weight  # a weight says how many members a history stands for
        total = max(round(size.sum()), 1)
        drawn = rng.multinomial(total, size / size.sum(), size=options.draws)
        return np.asarray(drawn / size, dtype=np.float64)
    assert rows.region is not None
    regions = int(rows.region.max()) + 1
    drawn = rng.multinomial(regions, np.full(regions, 1 / regions), size=options.draws)
    return np.asarray(drawn[:, rows.region], dtype=np.float64)


def bootstrap_rows(estimator: RowsEstimator, options: FitOptions) -> RewardResults:
    """Return the fit with the covariance of its estimates over resampled members.

    Raises
    ------
    ConvergenceError
        ``strict`` and too many draws failed.
    """
    analytic = replace(options, cov_type="clustered", progress=None)
    point = estimator.run(analytic)
    times = resampled_times(estimator.rows, options)
    inner = replace(analytic, strict=False, seed=None)
    drawn: list[FloatArray | str] = []
    for first in range(0, options.draws, 8 * options.jobs):
        batch = times[first : first + 8 * options.jobs]
        if options.jobs == 1:
            drawn += [one_draw(estimator, t, inner) for t in batch]
        else:
            from joblib import delayed

            drawn += processes(options.jobs)(delayed(one_draw)(estimator, t, inner) for t in batch)
        if options.progress is not None:
            options.progress(len(drawn), options.draws, "bootstrap")
    good = np.array([x for x in drawn if not isinstance(x, str)])
    failed = [x for x in drawn if isinstance(x, str)]
    notes = point.notes
    if failed:
        text = (
            f"{len(failed)} of {options.draws} bootstrap fits failed and are left out: {failed[0]}"
        )
        notes = (*notes, text)
        if len(failed) > FAILED_SHARE * options.draws:
            if options.strict:
                raise ConvergenceError(text)
            warnings.warn(f"{estimator.name}: {text}", ConvergenceWarning, stacklevel=5)
    K = len(point.vector)
    cov = np.atleast_2d(np.cov(good, rowvar=False)) if len(good) > 1 else np.full((K, K), np.nan)
    config = {
        **point.cov_config,
        "draws": len(good),
        "failed": len(failed),
        "first_stage_label": "redone in every draw",
    }
    return replace(
        point,
        cov_matrix=cov,
        cov_type="bootstrap",
        cov_config=config,
        bootstrap=good if len(good) > 1 else None,
        notes=notes,
        seed=options.seed,
    )


def check_cov(options: FitOptions, rows: Trajectories) -> None:
    """Validate the covariance asked for.

    Raises
    ------
    SpecificationError
        Errors that estimators on rows do not have.
    """
    kinds = ("clustered", "robust", "bootstrap")
    if options.cov_type not in kinds or options.cluster not in ("member", "region"):
        raise SpecificationError(
            f"cov_type={options.cov_type!r}, cluster={options.cluster!r}: rewards over numbers have"
            " errors clustered by member (or region), or bootstrapped over them, only"
        )
    if options.cluster == "region" and rows.region is None:
        raise SpecificationError("cluster='region': Trajectories(..., region=) names no column")


@dataclass(frozen=True)
class Clustered:
    """A covariance clustered by member or region, and what makes it up."""

    cov: FloatArray
    influence: FloatArray | None
    config: dict[str, Any]


def clustered(rows: Trajectories, sums: FloatArray, weight: FloatArray, cluster: str) -> Clustered:
    """Return the covariance of estimates from the influence of every member.

    Parameters
    ----------
    rows : Trajectories
    sums : FloatArray, shape (members, K)
    weight : FloatArray, shape (members,)
        How many members each stands for.
    cluster : {"member", "region"}
    """
    if cluster == "region":
        assert rows.region is not None
        by_cluster = np.zeros((int(rows.region.max()) + 1, sums.shape[1]))
        np.add.at(by_cluster, rows.region, sums * weight[:, None])
    else:
        by_cluster = sums * np.sqrt(weight)[:, None]
    config = {"clusters": len(by_cluster), "by": cluster, "first_stage_label": "included"}
    return Clustered(
        by_cluster.T @ by_cluster, by_cluster if by_cluster.size <= KEPT else None, config
    )
