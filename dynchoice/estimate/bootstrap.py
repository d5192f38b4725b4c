"""Bootstrap by member bucket or region that redoes every stage of an estimator.

A resampled panel is the counts with each bucket standing for 0, 1, 2 ... copies of itself: no row
is read again. Laws of motion, choice probabilities, types and utility are estimated anew on each,
so whatever error the first stages have is in the spread (Horowitz 2001, Handbook of Econometrics 5;
SOURCES.md 8.3).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DynChoiceError,
    DynChoiceWarning,
    SpecificationError,
)
from dynchoice.estimate.estimator import CountsEstimator, Fit, FitOptions
from dynchoice.estimate.workers import processes
from dynchoice.inference.covariance import FEW_CLUSTERS, check_cluster
from dynchoice.panel.counts import Counts
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from dynchoice.panel.panel import Panel

REMEDY = "cov_type='bootstrap'"
"""What notes on incomplete standard errors advise."""
FAILED_SHARE = 0.1
"""Share of resampled fits that may fail before the covariance is called unreliable."""
BATCH = 8
"""Resampled fits between two reports of progress."""


def resampling_counts(
    counts: Counts, cluster: str, panel: Panel | None, horizon: int | None
) -> Counts:
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


Draw: TypeAlias = "tuple[FloatArray, dict[str, FloatArray]] | str"
"""Estimates and laws on one resampled panel, or why there are none."""


def one_draw(
    estimator: CountsEstimator[Fit], counts: Counts, weight: FloatArray, options: FitOptions
) -> Draw:
    """Refit on one resampled panel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynChoiceWarning)
        try:
            fit = estimator.again(counts.reweighted(weight)).run(options)
        except DynChoiceError as error:
            return str(error)
    if not fit.converged:
        return fit.message
    model = getattr(fit, "model", None)
    bound = getattr(getattr(model, "transitions", None), "bound", ())
    return fit.vector, {law.name: law.table for law in bound if law.estimated}


def bootstrap_counts(estimator: CountsEstimator[Fit], options: FitOptions) -> Fit:
    """Return the fit of an estimator with the covariance of its bootstrap distribution.

    Raises
    ------
    SpecificationError
        Fewer than two units to resample.
    ConvergenceError
        ``strict`` and too many draws failed.
    """
    horizon, cluster = estimator.model.horizon, options.cluster
    # influence by cluster needs the panel at a finite horizon; the point estimate does not
    analytic = "clustered" if horizon is None else "opg"
    with warnings.catch_warnings():
        # that its own errors leave something out is no news here
        warnings.filterwarnings("ignore", message=f".*{REMEDY}.*")
        point = estimator.run(replace(options, cov_type=analytic, progress=None))
    counts = resampling_counts(estimator.counts, cluster, estimator.panel, horizon)
    filled = int((np.bincount(counts.cells[:, 1], minlength=counts.buckets) > 0).sum())
    if filled < 2:
        raise SpecificationError(f"{filled} {cluster} unit(s): nothing to resample")
    drawn = _refit(estimator, counts, options, estimator.restart(point))
    good = [draw for draw in drawn if not isinstance(draw, str)]
    failed = [draw for draw in drawn if isinstance(draw, str)]
    # what the point estimate's own errors leave out, the resampled ones carry
    notes = [note for note in point.notes if REMEDY not in note]
    if failed:
        text = (
            f"{len(failed)} of {options.draws} bootstrap fits failed and are left out: {failed[0]}"
        )
        notes.append(text)
        if len(failed) > FAILED_SHARE * options.draws:
            if options.strict:
                raise ConvergenceError(text)
            warnings.warn(text, ConvergenceWarning, stacklevel=5)
    if filled < FEW_CLUSTERS:
        notes.append(
            f"Only {filled} units to resample: bootstrap errors are rough, likely too small"
        )
    K = len(point.vector)
    sample = np.array([x for x, _ in good]) if len(good) > 1 else np.full((2, K), np.nan)
    config = {
        **point.cov_config,
        "clusters": filled,
        "by": counts.unit if cluster == "region" else "bucket of members",
        "draws": len(good),
        "failed": len(failed),
        "first_stage_label": "redone in every draw",
    }
    changes: dict[str, Any] = {
        "cov_matrix": np.atleast_2d(np.cov(sample, rowvar=False)),
        "cov_type": "bootstrap",
        "cov_config": config,
        "bootstrap": sample,
        "notes": tuple(notes),
        "seed": options.seed,
    }
    if hasattr(point, "bootstrap_laws"):
        changes["bootstrap_laws"] = tuple(laws for _, laws in good)
    fit: Any = replace(cast("Any", point), **changes)
    return cast("Fit", fit.refreshed())


def _refit(
    estimator: CountsEstimator[Fit], counts: Counts, options: FitOptions, start: Any
) -> list[Draw]:
    """Return the refits of all resampled panels, side by side in ``jobs`` processes."""
    # a seed of its own for every draw: simulated values carry their noise into the spread
    seeds = np.random.SeedSequence(options.seed).generate_state(options.draws)
    inner = FitOptions(
        **{
            **estimator.defaults,
            "start": start,
            "cov_type": "unadjusted",
            "tol": options.tol,
            "maxiter": options.maxiter,
        }
    )
    tasks = [
        (weight, replace(inner, seed=int(seed)))
        for weight, seed in zip(weights_of(counts, options.draws, options.seed), seeds, strict=True)
    ]
    drawn: list[Draw] = []
    for first in range(0, options.draws, BATCH * options.jobs):
        batch = tasks[first : first + BATCH * options.jobs]
        if options.jobs == 1:
            drawn += [one_draw(estimator, counts, weight, inner) for weight, inner in batch]
        else:
            from joblib import delayed

            bare = estimator.again(estimator.counts)  # a panel's connection stays here
            drawn += processes(options.jobs)(
                delayed(one_draw)(bare, counts, weight, inner) for weight, inner in batch
            )
        if options.progress is not None:
            options.progress(len(drawn), options.draws, "bootstrap")
    return drawn
