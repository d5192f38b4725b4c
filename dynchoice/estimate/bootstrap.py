"""Bootstrap by member bucket or region that redoes every stage of an estimator.

A resampled panel is the counts with each bucket standing for 0, 1, 2 ... copies of itself: no row
is read again. Laws of motion, choice probabilities, types and utility are estimated anew on each,
so whatever error the first stages have is in the spread (Horowitz 2001, Handbook of Econometrics 5;
SOURCES.md 8.3).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DynChoiceError,
    DynChoiceWarning,
    SpecificationError,
)
from dynchoice.estimate.workers import processes
from dynchoice.inference.covariance import FEW_CLUSTERS, check_cluster
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts
from dynchoice.typing import FloatArray, Progress

if TYPE_CHECKING:
    from dynchoice.panel.panel import Panel

REMEDY = "cov_type='bootstrap'"
"""What notes on incomplete standard errors advise."""
FAILED_SHARE = 0.1
"""Share of resampled fits that may fail before the covariance is called unreliable."""
BATCH = 8
"""Resampled fits between two reports of progress."""


class Estimator:
    """What the bootstrap needs of an estimator: its counts, and itself on other counts.

    ``options`` are the keywords that made it, beside model and data.
    """

    model: DDC
    counts: Counts
    panel: Panel | None
    options: dict[str, Any]

    def again(self, counts: Counts) -> Self:
        """Return the same estimator on other counts."""
        kind: Any = type(self)
        made: Self = kind(self.model, counts, **self.options)
        return made


def resampling_counts(counts: Counts, cluster: str, panel: Panel | None, horizon: Any) -> Counts:
    """Return counts whose buckets are the units to resample, with periods where they matter."""
    if horizon is None or cluster == "region":
        return check_cluster(cluster, counts)
    check_cluster(cluster, counts)
    if panel is None:
        raise SpecificationError(
            "cov_type='bootstrap' at a finite horizon needs the Panel (its Counts do not keep"
            " periods by member bucket), or cluster='region'"
        )
    members = counts.members
    if members is not None:
        # the unit to resample is called region there, whatever it is
        members = replace(members, region=members.bucket)
    return replace(counts, regions=panel.bucket_cells(), members=members).by_region()


def weights_of(counts: Counts, draws: int, seed: int | None) -> FloatArray:
    """Return how often each bucket is drawn, (draws, B): multinomial over buckets with members."""
    filled = np.flatnonzero(np.bincount(counts.cells[:, 1], minlength=counts.buckets))
    rng = np.random.default_rng(seed)
    out = np.zeros((draws, counts.buckets))
    share = np.full(len(filled), 1 / len(filled))
    out[:, filled] = rng.multinomial(len(filled), share, size=draws)
    return out


def one_draw(estimator: Any, counts: Counts, weight: FloatArray, options: dict[str, Any]) -> Any:
    """Refit on one resampled panel: the estimates and laws, or why there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynChoiceWarning)
        try:
            fit = estimator.again(counts.reweighted(weight)).fit(**options)
        except DynChoiceError as error:
            return str(error)
    if not fit.converged:
        return fit.message
    model = getattr(fit, "model", None)
    bound = getattr(getattr(model, "transitions", None), "bound", ())
    laws = {law.name: law.table for law in bound if law.estimated}
    return fit.vector, laws


def resampled(
    estimator: Any,
    options: dict[str, Any],
    cluster: str,
    draws: int,
    jobs: int,
    seed: int | None,
    progress: Progress | None,
    strict: bool,
) -> Any:
    """Return the fit of an estimator with the covariance of its bootstrap distribution.

    Parameters
    ----------
    estimator : Estimator
    options : dict
        Of ``fit``, without those of the covariance.
    cluster : {"member", "region"}
        Unit: buckets of members, or regions.
    draws, jobs : int
        Resampled panels, and processes (joblib).

    Raises
    ------
    SpecificationError
        Fewer than 20 draws; jobs below one; fewer than two units.
    """
    if not isinstance(draws, int | np.integer) or draws < 20:
        raise SpecificationError(f"draws={draws!r}: a bootstrap covariance needs 20 at least")
    if jobs < 1:
        raise SpecificationError(f"jobs={jobs}: at least one process is needed")
    horizon = estimator.model.horizon
    # influence by cluster needs the panel at a finite horizon; the point estimate does not
    own = "clustered" if horizon is None else "opg"
    with warnings.catch_warnings():
        # that its own errors leave something out is no news here
        warnings.filterwarnings("ignore", message=f".*{REMEDY}.*")
        point = estimator.fit(**options, cov_type=own, cluster=cluster, seed=seed, strict=strict)
    counts = resampling_counts(estimator.counts, cluster, estimator.panel, horizon)
    filled = int((np.bincount(counts.cells[:, 1], minlength=counts.buckets) > 0).sum())
    if filled < 2:
        raise SpecificationError(f"{filled} {cluster} unit(s): nothing to resample")
    weights = weights_of(counts, draws, seed)
    inner = {**options, "cov_type": "unadjusted", **point.restart()}
    if getattr(estimator, "steps", None) is not None:
        inner.pop("start", None)  # K stages count from the first stage, redone in every draw
    # a seed of its own for every draw: simulated values carry their noise into the spread
    tasks = [
        (w, {**inner, "seed": int(x)})
        for w, x in zip(weights, np.random.SeedSequence(seed).generate_state(draws), strict=True)
    ]
    found: list[Any] = []
    for first in range(0, draws, BATCH * jobs):
        batch = tasks[first : first + BATCH * jobs]
        if jobs == 1:
            found += [one_draw(estimator, counts, w, o) for w, o in batch]
        else:
            from joblib import delayed

            bare = estimator.again(estimator.counts)
            found += processes(jobs)(delayed(one_draw)(bare, counts, w, o) for w, o in batch)
        if progress is not None:
            progress(len(found), draws, "bootstrap")
    good = [f for f in found if not isinstance(f, str)]
    failed = [f for f in found if isinstance(f, str)]
    # what the point estimate's own errors leave out, the resampled ones carry
    notes = [n for n in point.notes if REMEDY not in n]
    if failed:
        text = f"{len(failed)} of {draws} bootstrap fits failed and are left out: {failed[0]}"
        notes.append(text)
        if len(failed) > FAILED_SHARE * draws:
            if strict:
                raise ConvergenceError(text)
            warnings.warn(text, ConvergenceWarning, stacklevel=3)
    if filled < FEW_CLUSTERS:
        notes.append(
            f"Only {filled} units to resample: bootstrap errors are rough, likely too small"
        )
    K = len(point.vector)
    sample = np.array([x for x, _ in good]) if len(good) > 1 else np.full((2, K), np.nan)
    cov = np.atleast_2d(np.cov(sample, rowvar=False))
    config = {
        **point.cov_config,
        "clusters": filled,
        "by": counts.unit if cluster == "region" else "bucket of members",
        "draws": len(good),
        "failed": len(failed),
        "first_stage_label": "redone in every draw",
    }
    new = replace(
        point,
        cov_matrix=cov,
        cov_type="bootstrap",
        cov_config=config,
        bootstrap=sample,
        notes=tuple(notes),
        seed=seed,
    )
    if hasattr(new, "bootstrap_laws"):
        new = replace(new, bootstrap_laws=tuple(laws for _, laws in good))
    return new.refreshed()
