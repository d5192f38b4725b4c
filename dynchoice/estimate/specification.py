"""Specification tests between models: score (Lagrange multiplier) and Vuong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.estimate import first_stage as laws_of_motion
from dynchoice.estimate.first_stage import counts_of
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.make_results import score_parts
from dynchoice.estimate.types.histories import histories
from dynchoice.inference.contrasts import ContrastTest
from dynchoice.inference.covariance import check_cluster, clustered_meat
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.hypotheses import ChiSquaredTest
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results, refuse_not_nested
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel


def score_test(
    restricted: Results,
    model: DDC,
    data: Panel | Counts,
    *,
    at: dict[str, float] | None = None,
    robust: bool = True,
    cluster: str = "member",
) -> ChiSquaredTest:
    """Test the restricted fit against a larger model by the score, without fitting the latter.

    With ``s_1`` the scores of the parameters that were estimated (zero at the restricted maximum)
    and ``s_2`` those of the added ones, ``e = s_2 - H_21 H_11^-1 s_1`` has, clustered, the variance
    of ``G_2 - H_21 H_11^-1 G_1`` with ``G`` the cluster sums (Boos 1992, generalised score);
    ``robust=False`` takes the information instead (Rao 1948).

    Parameters
    ----------
    restricted : Results
        Maximum likelihood fit whose parameters the larger model has as well.
    model : DDC
        Larger model, infinite horizon; laws without probabilities are estimated from the data.
    data : Panel or Counts
        The data of the fit.
    at : mapping, optional
        Values of the added parameters under the null; zero by default.

    Raises
    ------
    SpecificationError
        Other data; a model without added parameters; a restricted fit that is no maximum.
    """
    counts, panel = counts_of(data)
    if counts.digest != restricted.data_digest:
        raise SpecificationError("these are not the data of the fit (their digests differ)")
    if not isinstance(restricted, Results) or not restricted.maximum_likelihood:
        raise SpecificationError(
            "a score test starts from a maximum likelihood fit (NFXP, NPL), not"
            f" {getattr(restricted, 'estimator', type(restricted).__name__)}"
        )
    if not restricted.converged:
        raise SpecificationError("a score test starts from a fit that converged")
    small = restricted.model
    if model.horizon is not None or small.horizon is not None:
        raise SpecificationError("the score test is for infinite horizons")
    same = (
        model.beta == small.beta
        and np.array_equal(model.available, small.available)
        and np.array_equal(model.attention, small.attention)
        and np.array_equal(model.default, small.default)
        and np.array_equal(model.utility.offset, small.utility.offset)
    )
    if not same:
        raise SpecificationError(
            "the larger model differs from the fit's in more than its features (beta, availability,"
            " attention or offset): the fit is not nested in it"
        )
    added = [n for n in model.names if n not in restricted.names]
    missing = [n for n in restricted.model.names if n not in model.names]
    if missing or not added:
        what = f"does not have {missing[0]!r}" if missing else "adds no parameter"
        raise SpecificationError(f"the larger model {what}: the fit must be nested in it")
    values = dict(zip(restricted.model.names, restricted.theta, strict=True))
    theta = model.vector({**dict.fromkeys(added, 0.0), **(at or {}), **values})
    first = laws_of_motion.first_stage(model, counts, panel)
    with one_blas_thread():
        likelihood = Likelihood(first.model, counts.n_sj())
        point = likelihood.evaluate(theta)
        parts = score_parts(likelihood, point, first)
    free = np.array([n not in added for n in model.names])
    information = -parts.hessian
    A = np.linalg.solve(information[np.ix_(free, free)], information[np.ix_(free, ~free)]).T
    e = point.score[~free] - A @ point.score[free]
    if robust:
        meat, clusters, _, _ = clustered_meat(parts.psi, check_cluster(cluster, counts))
        V = (
            meat[np.ix_(~free, ~free)]
            - A @ meat[np.ix_(free, ~free)]
            - meat[np.ix_(~free, free)] @ A.T
            + A @ meat[np.ix_(free, free)] @ A.T
        )
    else:
        V = information[np.ix_(~free, ~free)] - A @ information[np.ix_(free, ~free)]
    size = np.sqrt(np.maximum(np.diag(V), 0.0))
    before = np.sqrt(np.maximum(np.diag(information)[~free], 0.0))
    dull = size <= 1e-7 * np.maximum(before, 1e-300)
    if dull.any() or np.linalg.eigvalsh(V / np.outer(size, size))[0] < 1e-10:
        lost = ", ".join(n for n, d in zip(added, dull, strict=True) if d) or ", ".join(added)
        raise IdentificationError(
            f"{lost} would add nothing that the other parameters do not explain already"
        )
    null = ", ".join(f"{n} = {(at or {}).get(n, 0.0):g}" for n in added)
    stat = float(e @ np.linalg.solve(V, e))
    if robust:
        return ContrastTest("Score test", null, stat, len(added), clusters)
    return ChiSquaredTest("Score test", null, stat, len(added))


@dataclass(frozen=True)
class VuongTest:
    """Vuong's (1989) test: positive ``stat`` favours the first model."""

    null: str
    stat: float
    difference: float
    members: int
    corrected: bool = False

    @property
    def pval(self) -> float:
        """Two-sided, normal."""
        from scipy.stats import norm

        return float(2 * norm.sf(abs(self.stat)))

    def __str__(self) -> str:
        better = "neither" if self.pval >= 0.05 else "the first" if self.stat > 0 else "the second"
        return (
            f"Vuong test\nH0: {self.null}\nLog-likelihood difference"
            f"{', corrected' if self.corrected else ''}: {self.difference:.4f}\n"
            f"Statistic: {self.stat:.4f}\nP-value: {self.pval:.4f}\nDistributed: N(0, 1) over"
            f" {self.members:,} members; favoured at 5%: {better}"
        )

    __repr__ = __str__


def member_loglik(fit: Estimates, data: Panel | Counts) -> tuple[FloatArray, FloatArray]:
    """Return each member's log-likelihood at a fit (members,), and the members' weights."""
    counts, _ = counts_of(data)
    if counts.digest != fit.data_digest:
        raise SpecificationError("these are not the data of the fit (their digests differ)")
    if counts.members is None:
        raise SpecificationError("members' histories are needed: build the Panel with member_limit")
    if isinstance(fit, MixtureResults):
        if fit.member_loglik is None:
            raise SpecificationError(
                "a mixture by finite dependence has no likelihood of its members"
            )
        return fit.member_loglik, counts.members.weights
    if not isinstance(fit, Results) or fit.model.horizon is not None:
        raise SpecificationError("this needs fits of infinite-horizon models")
    P = fit.ccp
    data_of_members = histories(counts.members, False)
    logs = data_of_members.sums(np.log(np.where(P > 0, P, 1.0)))
    return logs[data_of_members.member], counts.members.weights


def vuong_test(
    one: Estimates, other: Estimates, data: Panel | Counts, *, correct: bool = True
) -> VuongTest:
    """Test which of two models that are not nested is nearer to the truth (Vuong 1989).

    The statistic is the sum over members of the difference of their log-likelihoods, over its
    standard deviation: members, not months, are independent.

    Parameters
    ----------
    one, other : Results or MixtureResults
        Fits of the same data.
    data : Panel or Counts
    correct : bool
        Schwarz's correction for the numbers of parameters, ``(K1 - K2) / 2 log N``.

    Raises
    ------
    SpecificationError
        Other data; no members' histories; models that do not differ; mixtures of one model with
        different numbers of types, which are nested.
    """
    for fit in (one, other):
        if not getattr(fit, "converged", False):
            raise SpecificationError(f"{fit.estimator} did not converge: nothing to compare")
    names = [set(getattr(f, "model_names", None) or f.names) for f in (one, other)]
    mixed = any(isinstance(f, MixtureResults) for f in (one, other))
    if mixed and (names[0] <= names[1] or names[1] <= names[0]):
        raise SpecificationError(
            "a model with fewer types is nested in one with more, where Vuong's statistic is not"
            " normal: compare the BIC (dc.select_types)"
        )
    if not mixed and isinstance(one, Results) and isinstance(other, Results):
        large, small = (one, other) if len(one.theta) >= len(other.theta) else (other, one)
        try:
            refuse_not_nested(large, small)
        except SpecificationError:
            pass  # not nested: what this test is for
        else:
            raise SpecificationError(
                "one of the models is nested in the other, where Vuong's statistic is not normal:"
                " use lr_test"
            )
    a, weights = member_loglik(one, data)
    b, _ = member_loglik(other, data)
    gap = a - b
    N = float(weights.sum())
    mean = float(weights @ gap) / N
    spread = float(np.sqrt(weights @ (gap - mean) ** 2))
    if spread <= 1e-10 * (1 + abs(float(weights @ a))):
        raise SpecificationError("the two fits give every member the same likelihood")
    difference = float(weights @ gap)
    if correct:
        difference -= (len(one.vector) - len(other.vector)) / 2 * float(np.log(N))
    labels = [f"{f.estimator} in {', '.join(f.names)}" for f in (one, other)]
    null = f"{labels[0]} and {labels[1]} are equally near to the truth"
    return VuongTest(null, difference / spread, difference, round(N), correct)
