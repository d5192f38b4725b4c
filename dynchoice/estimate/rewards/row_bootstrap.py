"""Bootstrap of members for estimators on rows: every step redone on resampled members."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DynChoiceError,
    DynChoiceWarning,
    SpecificationError,
)
from dynchoice.estimate.workers import processes
from dynchoice.inference.covariance import check_cov_type
from dynchoice.inference.reward_results import RewardResults
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import FloatArray, Progress

KEPT = 1_000_000
"""Numbers up to which the influence of every cluster is kept with a fit."""
FAILED_SHARE = 0.05
"""Share of failed draws from which on the fit warns (or, strict, fails)."""


def one_draw(estimator: Any, times: FloatArray, options: dict[str, Any]) -> Any:
    """Return the estimates on resampled members, or why there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynChoiceWarning)
        try:
            fit = estimator.on(estimator.rows.reweighted(times)).fit(**options)
        except DynChoiceError as error:
            return str(error)
    return fit.vector if fit.converged else fit.message


def bootstrapped(
    estimator: Any, options: dict[str, Any], *, draws: int, jobs: int, seed: int | None,
    progress: Progress | None, strict: bool,
) -> RewardResults:  # fmt: skip
    """Return the fit with the covariance of its estimates over resampled members.

    Parameters
    ----------
    estimator : RowsReward or TDCCP
        With ``rows``, ``fit`` and ``on(rows)``: the same estimator on other rows.
    options : dict
        Of ``fit``, without those of the covariance.
    draws, jobs, seed, progress, strict
        See :meth:`dynchoice.DeepPQR.fit`.

    Raises
    ------
    SpecificationError
        Fewer than 20 draws; jobs below one.
    ConvergenceError
        ``strict`` and too many draws failed.
    """
    if not isinstance(draws, int | np.integer) or draws < 20:
        raise SpecificationError(f"draws={draws!r}: a bootstrap covariance needs 20 at least")
    if not isinstance(jobs, int) or jobs < 1:
        raise SpecificationError(f"jobs={jobs!r}: at least one process is needed")
    point = estimator.fit(**options, strict=strict, seed=seed)
    rows = estimator.rows
    unit = np.arange(rows.nmembers) if options["cluster"] == "member" else rows.region
    N, size = int(unit.max()) + 1, np.ones(len(unit))
    if options["cluster"] == "member":
        size[rows.member] = rows.weight  # a weight says how many members a history stands for
    chance = size / size.sum() if options["cluster"] == "member" else np.full(N, 1 / N)
    total = max(round(size.sum()), 1) if options["cluster"] == "member" else N
    drawn = np.random.default_rng(seed).multinomial(total, chance, size=draws)
    times = (drawn / size if options["cluster"] == "member" else drawn[:, unit]).astype(np.float64)
    found: list[Any] = []
    for first in range(0, draws, 8 * jobs):
        batch = times[first : first + 8 * jobs]
        if jobs == 1:
            found += [one_draw(estimator, t, options) for t in batch]
        else:
            from joblib import delayed

            found += processes(jobs)(delayed(one_draw)(estimator, t, options) for t in batch)
        if progress is not None:
            progress(len(found), draws, "bootstrap")
    good = np.array([f for f in found if not isinstance(f, str)])
    failed = [f for f in found if isinstance(f, str)]
    notes = point.notes
    if failed:
        text = f"{len(failed)} of {draws} bootstrap fits failed and are left out: {failed[0]}"
        notes = (*notes, text)
        if len(failed) > FAILED_SHARE * draws:
            if strict:
                raise ConvergenceError(text)
            warnings.warn(f"{estimator.name}: {text}", ConvergenceWarning, stacklevel=4)
    K = len(point.vector)
    cov = np.atleast_2d(np.cov(good, rowvar=False)) if len(good) > 1 else np.full((K, K), np.nan)
    config = {
        **point.cov_config, "draws": len(good), "failed": len(failed),
        "first_stage_label": "redone in every draw",
    }  # fmt: skip
    return replace(
        point, cov_matrix=cov, cov_type="bootstrap", cov_config=config,
        bootstrap=good if len(good) > 1 else None, notes=notes, seed=seed,
    )  # fmt: skip


def check_cov(cov_type: str, cluster: str, rows: Trajectories) -> bool:
    """Return whether the errors are to be bootstrapped.

    Raises
    ------
    SpecificationError
        Errors that estimators on rows do not have.
    """
    kind = check_cov_type(cov_type)
    if kind not in ("clustered", "robust", "bootstrap") or cluster not in ("member", "region"):
        raise SpecificationError(
            f"cov_type={cov_type!r}, cluster={cluster!r}: rewards over numbers have errors"
            " clustered by member (or region), or bootstrapped over them, only"
        )
    if cluster == "region" and rows.region is None:
        raise SpecificationError("cluster='region': Trajectories(..., region=) names no column")
    return kind == "bootstrap"


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
        own = np.zeros((int(rows.region.max()) + 1, sums.shape[1]))
        np.add.at(own, rows.region, sums * weight[:, None])
    else:
        own = sums * np.sqrt(weight)[:, None]
    config = {"clusters": len(own), "by": cluster, "first_stage_label": "included"}
    return Clustered(own.T @ own, own if own.size <= KEPT else None, config)
