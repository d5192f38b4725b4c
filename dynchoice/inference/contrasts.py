"""Contrasts between estimators, and tests for few clusters, from influence by cluster.

``influence`` (G, K) holds what each cluster adds to an estimate, ``H^-1`` times its summed score
(with the first stage's part). Sums of outer products of influence are clustered variances, of one
estimator or of the difference of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.inference.hypotheses import ChiSquaredTest, Formula, restrictions
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from dynchoice.inference.estimates import Estimates


@dataclass(frozen=True)
class BootstrapTest:
    """A statistic with its bootstrap distribution under the null: ``.stat .df .pval .null``."""

    name: str
    null: str
    stat: float
    df: int
    distribution: FloatArray

    @property
    def pval(self) -> float:
        """Share of bootstrap statistics at least as large, the observed one counted in."""
        n = len(self.distribution)
        return float((1 + (self.distribution >= self.stat).sum()) / (n + 1))

    def __str__(self) -> str:
        return (
            f"{self.name}\nH0: {self.null}\nStatistic: {self.stat:.4f}\nP-value: {self.pval:.4f}\n"
            f"Distributed: {len(self.distribution):,} bootstrap draws, {self.df} restriction(s)"
        )

    __repr__ = __str__


FIRST_ORDER = ("NFXP", "NPL", "CCP")
"""Estimators that are one to first order."""


def same_to_first_order(one: str, other: str) -> bool:
    """Return whether two estimators differ in second order only.

    Likelihood and pseudo-likelihood with exact values do, given the transitions (Aguirregabiria
    and Mira 2002, Proposition 4). Finite dependence does not, nor does joint estimation of the
    transitions.
    """
    return all(
        name in FIRST_ORDER or (name.startswith("NPL (") and name.endswith("steps)"))
        for name in (one, other)
    )


@dataclass(frozen=True)
class ContrastTest(ChiSquaredTest):
    """A contrast whose variance comes from ``clusters`` clusters.

    The p-value is that of Hotelling's statistic, ``F(df, clusters - df)``: chi-squared with many
    clusters, and honest with few.
    """

    clusters: int = 0

    @property
    def pval(self) -> float:
        """Probability of a larger statistic under the null."""
        from scipy.stats import f

        free = self.clusters - self.df
        if free < 1:
            return float("nan")
        return float(f.sf(self.stat * free / (self.df * (self.clusters - 1)), self.df, free))

    def __str__(self) -> str:
        return (
            f"{self.name}\nH0: {self.null}\nStatistic: {self.stat:.4f}\nP-value: {self.pval:.4f}\n"
            f"Distributed: F({self.df}, {self.clusters - self.df}) over {self.clusters} clusters"
        )

    __repr__ = __str__


def _influence(fit: Estimates) -> FloatArray:
    """Return a fit's influence by cluster (G, K), or say how to get it."""
    if fit.influence is None:
        raise SpecificationError(
            f"{fit.estimator} keeps no influence by cluster with cov_type={fit.cov_type!r}: fit"
            " with cov_type='clustered' (and without simulated values, whose error is no cluster's)"
        )
    return fit.influence


def hausman(one: Estimates, other: Estimates) -> ContrastTest:
    """Test that two estimators of the same parameters have one limit.

    ``(b1 - b2)' V^+ (b1 - b2)`` with ``V`` the clustered variance of the difference, from the
    influence of every cluster on both (Cameron and Trivedi 2005, section 8.3; Hausman 1978
    when one of them is efficient). Directions in which the two cannot differ are left out:
    the degrees of freedom are the rank of ``V``.

    Raises
    ------
    SpecificationError
        Other data or clusters; no parameter in common; influence not kept.
    IdentificationError
        Two estimators that are the same to first order, and more than a standard error apart.
    """
    if not hasattr(other, "influence"):
        raise SpecificationError(f"hausman_test takes a fit, got {type(other).__name__}")
    influence = _matching_influence(one, other)
    common = [name for name in one.names if name in other.names]
    if not common:
        raise SpecificationError("the two fits have no parameter in common")
    rows = [one.names.index(name) for name in common]
    other_rows = [other.names.index(name) for name in common]
    gap = one.vector[rows] - other.vector[other_rows]
    difference = influence[0][:, rows] - influence[1][:, other_rows]
    V = difference.T @ difference
    size = np.sqrt(np.diag(one.cov_matrix)[rows] + np.diag(other.cov_matrix)[other_rows])
    if not np.isfinite(size).all():
        raise SpecificationError("a contrast needs standard errors of every common parameter")
    null = f"{one.estimator} = {other.estimator} (the same estimate to first order)"
    same = ContrastTest("Hausman contrast", null, 0.0, 1, len(influence[0]))
    if same_to_first_order(one.estimator, other.estimator) and one.names == other.names:
        apart = float(np.abs(gap / size).max())
        if apart > 1:
            raise IdentificationError(
                f"{one.estimator} and {other.estimator} are the same to first order where the model"
                f" holds, so that no contrast has a variance, yet they are {apart:.1f} standard"
                " errors apart: the first stage dominates, or the model does not hold"
            )
        return same
    # in units of standard errors, so that the scale of a parameter does not decide
    values, vectors = np.linalg.eigh(V / np.outer(size, size))
    # smaller directions hold second-order noise only: there the two agree by construction
    kept = values > max(1e-8, 1 / one.nobs)
    if not kept.any():
        return same
    z = vectors[:, kept].T @ (gap / size)
    stat = float((z**2 / values[kept]).sum())
    null = f"{one.estimator} = {other.estimator} in {', '.join(common)}"
    if int(kept.sum()) < len(common):
        null += f" (they can differ in {int(kept.sum())} directions)"
    present = [(part != 0).any(axis=1) for part in influence]
    clusters = int((present[0] | present[1]).sum())
    return ContrastTest("Hausman contrast", null, stat, int(kept.sum()), clusters)


def _matching_influence(one: Estimates, other: Estimates) -> tuple[FloatArray, FloatArray]:
    """Return both fits' influence, cluster by cluster.

    Raises
    ------
    SpecificationError
        Other data or clusters; influence not kept.
    """
    if one.data_digest != other.data_digest:
        raise SpecificationError("a contrast needs two fits of the same data")
    a, b = _influence(one), _influence(other)
    if len(a) != len(b) or one.cov_config.get("unit") != other.cov_config.get("unit"):
        raise SpecificationError(
            "a contrast needs the same clusters in both fits, got"
            f" {one.cov_config.get('unit')} and {other.cov_config.get('unit')}: fit both with"
            " cluster='region'"
        )
    return a, b


def score_bootstrap(
    fit: Estimates,
    restriction: ArrayLike | None = None,
    value: ArrayLike | None = None,
    formula: Formula | None = None,
    draws: int = 999,
    seed: int | None = 0,
) -> BootstrapTest:
    """Test linear restrictions by resampling the signs of the cluster scores.

    No refit: every draw flips each cluster's influence with probability one half and recomputes
    the clustered Wald statistic (Kline and Santos 2012, Journal of Econometric Methods 1). With
    few clusters, or cells of very unequal size, its p-value is better than chi-squared.

    Raises
    ------
    SpecificationError
        Influence not kept; fewer than 19 draws; a restriction that cannot be read.
    """
    draws = checks.whole(draws, "draws", 19)  # fewer give no p-value of .05
    R, q, null = restrictions(fit.names, restriction, value, formula)
    influence = _influence(fit)
    influence = influence[(influence != 0).any(axis=1)]  # buckets without members are no clusters
    # under the null scores sum to zero; those of the unrestricted fit do up to the first stage
    scores = (influence - influence.mean(axis=0)) @ R.T
    if not np.isfinite(scores).all() or np.linalg.matrix_rank(scores) < len(R):
        raise IdentificationError(
            f"{len(influence)} clusters carry no variance of the {len(R)} restriction(s): too few"
            " of them, or a parameter that the data leave flat"
        )
    observed = _wald_statistic(R @ fit.vector - q, influence @ R.T)
    rng = np.random.default_rng(seed)
    distribution = np.empty(draws)
    for draw in range(draws):
        flipped = scores * rng.choice([-1.0, 1.0], len(scores))[:, None]
        gap = flipped.sum(axis=0)
        distribution[draw] = _wald_statistic(gap, flipped - flipped.mean(axis=0))
    name = f"Score bootstrap test ({len(influence)} clusters)"
    return BootstrapTest(name, null, observed, len(R), distribution)


def _wald_statistic(gap: FloatArray, parts: FloatArray) -> float:
    """Return ``gap' V^+ gap`` with ``V`` the sum of outer products of parts (clusters, r)."""
    return float(gap @ np.linalg.pinv(parts.T @ parts, hermitian=True) @ gap)
