"""Covariances of estimates from scores: one table of names, formulas beside the code.

With ``H`` minus the second derivative of the log-likelihood (sum), ``psi`` the score of a cell
(plus its influence through the first stage, where transitions are estimated before) and
``V1 = sum_r n_r c_r c_r'`` the first stage's own contribution (SOURCES.md 8.1):

    unadjusted  H^-1 (H + V1) H^-1
    opg         B^-1 (B + V1) B^-1,   B = sum of outer products of the scores of choices
    robust      H^-1 (sum over member-months of psi psi') H^-1
    clustered   H^-1 (sum over members, or regions, of (sum psi)(sum psi)') H^-1
    bootstrap   of the estimates over panels resampled by member bucket (or region), with every
                stage redone: :mod:`dynchoice.estimate.bootstrap`

Where the choice probabilities of a first stage have no zero Jacobian, their influence is in psi,
and ``choice_meat`` takes the place of H and B in the middle. No small-sample factor is applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import IdentificationWarning
from dynchoice.panel.counts import Counts
from dynchoice.typing import BoolArray, FloatArray, IntArray

COV_TYPES = ("unadjusted", "opg", "robust", "clustered", "bootstrap")
CLUSTERS = ("member", "region")
# statsmodels' names
ALIASES = {"cluster": "clustered", "hessian": "unadjusted", "nonrobust": "unadjusted"}
FEW_CLUSTERS = 30
"""Clusters below which a summary says that standard errors are rough."""
FLAT = 1e-11
"""Eigenvalue of the scaled information, relative to the largest, below which it is flat."""

CellScore = Callable[[IntArray], FloatArray]
"""Cells (C, 4+) of (state, choice, next state, decides[, period]) -> psi (C, K)."""


@dataclass(frozen=True)
class Covariance:
    """A covariance matrix (K, K), what it is, and directions that the data leave flat."""

    matrix: FloatArray
    cov_type: str
    config: dict[str, Any]
    flat: FloatArray
    """Flat directions (K, F), unit vectors in scaled parameters; usually F = 0."""
    influence: FloatArray | None = None
    """Influence by bucket or region (G, K); only for clustered covariances."""


def check_cov_type(cov_type: str) -> str:
    """Return the canonical name of a covariance type.

    Raises
    ------
    SpecificationError
        Neither a name of ``COV_TYPES`` nor one of ``ALIASES``.
    """
    name = ALIASES.get(cov_type, cov_type) if isinstance(cov_type, str) else cov_type
    checked: str = checks.one_of(name, "cov_type", COV_TYPES)
    return checked


def check_cluster(cluster: str, counts: Counts) -> Counts:
    """Return the counts with the asked unit of clustering as their buckets.

    Raises
    ------
    SpecificationError
        Neither ``"member"`` nor ``"region"``; a panel without regions.
    """
    checks.one_of(cluster, "cluster", CLUSTERS)
    return counts.by_region() if cluster == "region" else counts


def cluster_notes(clusters: int, params: int) -> list[str]:
    """Return notes for the summary where clusters are few; warn where there are too few."""
    if clusters <= params:
        text = f"{clusters} cluster(s) cannot carry standard errors of {params} parameters"
        warnings.warn(f"{text}: none given", IdentificationWarning, stacklevel=4)
        return [f"{text}: none given"]
    if clusters < FEW_CLUSTERS:
        return [f"Only {clusters} clusters: standard errors are rough, likely too small"]
    return []


def flat_directions(information: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return eigenvalues (ascending, relative), eigenvectors (K, K) and scales (K,).

    The information is scaled to unit diagonal first, so that units do not matter.
    """
    scale = np.sqrt(np.maximum(np.diag(information), 0.0))
    safe = np.where(scale > 0, scale, 1.0)  # a parameter without information is flat by itself
    values, vectors = np.linalg.eigh(information / np.outer(safe, safe))
    top = max(float(values[-1]), 1e-300)
    return values / top, vectors, safe


def inverse(
    information: FloatArray, dead: BoolArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the inverse and the flat directions (K, F); flat ones are left out, not inverted.

    Parameters that load on a flat direction, and dead ones, get NaN, so that no number is made up.
    """
    if dead is not None and dead.any():
        return _inverse_of_alive(information, np.flatnonzero(~dead))
    values, vectors, scale = flat_directions(information)
    is_flat = values < FLAT
    kept = vectors[:, ~is_flat]
    # the eigenvalues are relative to the largest, which gives them their size back
    top = np.linalg.eigvalsh(information / np.outer(scale, scale))[-1]
    inverted = (kept / (values[~is_flat] * top)) @ kept.T / np.outer(scale, scale)
    if is_flat.any():
        touched = (np.abs(vectors[:, is_flat]) > 1e-6).any(axis=1)
        inverted[touched] = np.nan
        inverted[:, touched] = np.nan
    return inverted, vectors[:, is_flat]


def _inverse_of_alive(information: FloatArray, alive: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return :func:`inverse` of some parameters' information, with NaN for the others."""
    inverted = np.full_like(information, np.nan)
    if not len(alive):
        return inverted, np.zeros((len(information), 0))
    block = np.ix_(alive, alive)
    inverted[block], flat_of_alive = inverse(information[block])
    flat = np.zeros((len(information), flat_of_alive.shape[1]))
    flat[alive] = flat_of_alive
    return inverted, flat


def covariance(
    cov_type: str,
    hessian: FloatArray,
    outer: FloatArray,
    psi: CellScore,
    first_stage: FloatArray,
    counts: Counts,
    dead: BoolArray | None = None,
    choice_meat: FloatArray | None = None,
    noise: FloatArray | None = None,
) -> Covariance:
    """Return the covariance of an estimate.

    Parameters
    ----------
    cov_type : str
        See the module docstring.
    hessian : FloatArray, shape (K, K)
        Second derivative of the log-likelihood (negative definite at a maximum).
    outer : FloatArray, shape (K, K)
        Sum over member-months of the outer product of scores.
    psi : callable
        Score and first-stage influence of cells.
    first_stage : FloatArray, shape (K, K)
        ``V1``; zeros when the transitions are known or estimated jointly.
    counts : Counts
        Members' cells, or buckets, to cluster by.
    dead : BoolArray, shape (K,), optional
        Parameters along which the likelihood has no curvature left at the estimate: no variance
        is made up for them.
    choice_meat : FloatArray, shape (K, K), optional
        Variance of the choices' part of psi, where it differs from the information.
    noise : FloatArray, shape (K, K), optional
        Further variance of the scores (simulated values), for every type.
    """
    name = check_cov_type(cov_type)
    sums: FloatArray | None = None
    config: dict[str, Any] = {"first_stage": bool(first_stage.any())}
    if name == "opg":
        bread, flat = inverse(outer, dead)
        meat = (outer if choice_meat is None else choice_meat) + first_stage
    else:
        bread, flat = inverse(-hessian, dead)
        if name == "unadjusted":
            meat = (-hessian if choice_meat is None else choice_meat) + first_stage
        elif name == "robust":
            meat = robust_meat(psi, counts)
        else:
            meat, config["clusters"], config["by"], sums = clustered_meat(psi, counts)
            config["unit"] = counts.unit
    if noise is not None:
        meat = meat + noise
    has_variance = np.isfinite(np.diag(bread))
    if "clusters" in config and config["clusters"] <= len(hessian):
        has_variance[:] = False  # the sums of so few clusters span too few directions
    matrix = np.full_like(bread, np.nan)
    inner = np.ix_(has_variance, has_variance)
    matrix[inner] = bread[inner] @ meat[inner] @ bread[inner]
    matrix = (matrix + matrix.T) / 2  # products of matrices are symmetric up to rounding only
    influence = None
    if sums is not None:
        influence = np.full_like(sums, np.nan)
        influence[:, has_variance] = sums[:, has_variance] @ bread[inner]
    return Covariance(matrix, name, config, flat, influence)


def robust_meat(psi: CellScore, counts: Counts) -> FloatArray:
    """Return ``sum over member-months of psi psi'``."""
    if counts.members is None:
        score, n = psi(counts.cells[:, 2:6]), counts.n
    else:
        members = counts.members  # each distinct cell once, with its weighted member-months
        weights = np.repeat(members.weights, np.diff(members.indptr))
        total = np.bincount(
            members.index, weights=members.n * weights, minlength=len(members.cells)
        )
        n = np.asarray(total, dtype=np.float64)
        score = psi(members.cells[:, 1:])
    return (score * n[:, None]).T @ score


def clustered_meat(psi: CellScore, counts: Counts) -> tuple[FloatArray, int, str, FloatArray]:
    """Return ``sum_i w_i G_i G_i'``, the number of clusters, their name, and sums by bucket.

    Clusters are members, or buckets of members where the panel was too long to keep each
    member's cells; buckets are unions of members, so the estimate stays valid, with fewer
    clusters. Or they are regions, see :func:`check_cluster`. The sums (B, K) are by bucket or
    region in every case.
    """
    if counts.members is not None and counts.unit != "region":
        members = counts.members
        sums = members.matrix() @ psi(members.cells[:, 1:])
        meat = (sums * members.weights[:, None]).T @ sums
        by_bucket = bucket_sums(members.bucket, sums * members.weights[:, None], counts.buckets)
        return meat, members.size, "member", by_bucket
    if counts.unit == "region" and counts.regions is not None:
        regions = counts.regions
        # (segment, region, period, state, choice, next, decides) -> psi's order, periods from 0
        cells = regions.cells[:, [3, 4, 5, 6, 2]].copy()
        cells[:, 4] -= counts.first_period if counts.origin is None else counts.origin
        unit, score = regions.cells[:, 1], psi(cells) * regions.n[:, None]
    else:
        unit, score = counts.cells[:, 1], psi(counts.cells[:, 2:6]) * counts.n[:, None]
    sums = bucket_sums(unit, score, counts.buckets)
    return sums.T @ sums, int(np.unique(unit).size), counts.unit, sums


def bucket_sums(unit: IntArray, values: FloatArray, buckets: int) -> FloatArray:
    """Return the sum of the rows of ``values`` (C, K) by unit, (buckets, K)."""
    columns = [np.bincount(unit, weights=column, minlength=buckets) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((buckets, 0))
