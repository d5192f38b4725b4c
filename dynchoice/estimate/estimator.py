"""One way to fit: every estimator takes the same options and hands its results to the same rules.

``fit`` checks the options once, sends a bootstrap to :mod:`dynchoice.estimate.bootstrap` (or, on
rows, :mod:`dynchoice.estimate.rewards.row_bootstrap`) and everything else to the estimator's own
:meth:`Estimator.estimate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.inference.covariance import check_cov_type
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import Progress

if TYPE_CHECKING:
    from dynchoice.panel.panel import Panel

Fit = TypeVar("Fit", bound=Estimates)
"""What an estimator returns: :class:`dynchoice.Results`, of a mixture, or of a reward."""
LEAST_DRAWS = 20
"""Resampled panels that a bootstrap covariance needs at least."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of one fit, checked; see :meth:`Estimator.fit`."""

    start: Any = None
    cov_type: str = "clustered"
    cluster: str = "member"
    tol: float = 1e-8
    maxiter: int = 100
    starts: int = 1
    draws: int = 199
    jobs: int = 1
    seed: int | None = None
    progress: Progress | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "cov_type", check_cov_type(self.cov_type))
        # a larger tolerance would call anything converged
        if not 0 < checks.number(self.tol, "tol") <= 1e-4:
            raise SpecificationError(f"tol={self.tol!r} must lie between 0 and 1e-4")
        checks.whole(self.maxiter, "maxiter", 1)
        checks.whole(self.starts, "starts", 1)
        checks.whole(self.jobs, "jobs", 1)
        checks.seed(self.seed)
        if self.progress is not None:
            example = "lambda done, total, text: print(done, total, text)"
            checks.function(self.progress, "progress", example)
        if self.cov_type == "bootstrap" and checks.whole(self.draws, "draws") < LEAST_DRAWS:
            raise SpecificationError(
                f"draws={self.draws}: a bootstrap covariance needs {LEAST_DRAWS} at least"
            )

    def keywords(self, **changes: Any) -> dict[str, Any]:
        """Return the options as keywords of ``fit``, some of them changed."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | changes


class Estimator(ABC, Generic[Fit]):
    """What all estimators have in common: a name, the options that made them, and ``fit``.

    An estimator holds no state between fits. A subclass says how one fit without bootstrap is made
    (:meth:`estimate`), and how the bootstrap resamples (:meth:`resample`).

    Attributes
    ----------
    name : str
        As tables of estimates print it.
    options : dict
        The keywords that made the estimator, beside model and data.
    defaults : mapping
        Of ``cluster``, ``starts`` and ``seed``, where they are not :class:`FitOptions`' own.
    several_starts : bool
        Whether there may be several optima, so that ``starts=`` means something.
    """

    name: str
    options: dict[str, Any]
    defaults: ClassVar[Mapping[str, Any]] = {}
    several_starts: ClassVar[bool] = False

    def fit(
        self,
        *,
        start: Any = None,
        cov_type: str = "clustered",
        cluster: str | None = None,
        tol: float = 1e-8,
        maxiter: int = 100,
        starts: int | None = None,
        draws: int = 199,
        jobs: int = 1,
        seed: int | None = None,
        progress: Progress | None = None,
        strict: bool = False,
    ) -> Fit:
        """Estimate.

        Parameters
        ----------
        start : array (K,), mapping, Series or Results, optional
            Where the search begins. NFXP: default the CCP estimate; with Results, of other members
            in the same states, the choice probabilities fitted there. NPL: parameters whose
            probabilities the first stage takes. CCPEM: parameters of all types, or posteriors
            (members, Q), instead of ``starts``. Estimators with one optimum do not need it.
        cov_type : {"clustered", "robust", "opg", "unadjusted", "bootstrap"}
            Rust (1987) printed ``"opg"``. ``"bootstrap"`` redoes every stage on resampled panels.
        cluster : {"member", "region"}, optional
            Unit of ``"clustered"`` and ``"bootstrap"`` (there: buckets of members). Default:
            member; ECCP clusters by region (or ``"period"``).
        tol : float
            Bound on the gradient of the mean log-likelihood in scaled parameters.
        maxiter : int
            Iterations of the optimiser (stages, of NPL) at most.
        starts : int, optional
            Starting points in all, where there may be several optima: NFXP draws the further ones
            around the first (default 1), CCPEM draws posteriors (default 5); all are in
            ``optimization["starts"]``.
        draws : int
            Resampled panels of the bootstrap.
        jobs : int
            Processes that fit resampled panels or climb from several starting points.
        seed : int, optional
            Of the further starting points, simulated paths, random splits and the bootstrap.
        progress : callable, optional
            ``progress(done, total, message)`` after each iteration.
        strict : bool
            Raise if the estimate did not converge, instead of saying so in the results.

        Returns
        -------
        Results, MixtureResults or RewardResults

        Raises
        ------
        IdentificationError
            Parameters that nothing identifies, by name.
        ConvergenceError
            Only with ``strict=True``.
        SpecificationError
            Options that cannot be.
        """
        if starts not in (None, 1) and not self.several_starts:
            raise SpecificationError(f"starts={starts!r}: {self.name} has one optimum to find")
        # one left out is the estimator's own, which is FitOptions' where it has none
        chosen = {"cluster": cluster, "starts": starts, "seed": seed}
        changed = {key: value for key, value in chosen.items() if value is not None}
        return self.run(
            FitOptions(
                start=start,
                cov_type=cov_type,
                tol=tol,
                maxiter=maxiter,
                draws=draws,
                jobs=jobs,
                progress=progress,
                strict=strict,
                **{**self.defaults, **changed},
            )
        )

    def run(self, options: FitOptions) -> Fit:
        """Estimate with options that are checked already."""
        return self.resample(options) if options.cov_type == "bootstrap" else self.estimate(options)

    @abstractmethod
    def estimate(self, options: FitOptions) -> Fit:
        """Return one fit, its covariance analytic."""

    @abstractmethod
    def resample(self, options: FitOptions) -> Fit:
        """Return one fit whose covariance is that of its estimates on resampled members."""

    def restart(self, fit: Fit) -> Any:
        """Return the ``start`` from which the bootstrap refits a resampled panel."""
        return fit.restart()


class CountsEstimator(Estimator[Fit]):
    """An estimator on counts of states and choices: what the bootstrap reweights.

    Attributes
    ----------
    model : DDC
    counts : Counts
    panel : Panel or None
        Where the counts were made from one.
    """

    model: DDC
    counts: Counts
    panel: Panel | None

    def again(self, counts: Counts) -> Self:
        """Return the same estimator on other counts."""
        kind: Any = type(self)
        made: Self = kind(self.model, counts, **self.options)
        return made

    def run(self, options: FitOptions) -> Fit:
        """Estimate with options that are checked already, one BLAS thread around small solves."""
        if options.cov_type == "bootstrap":
            return self.resample(options)
        with one_blas_thread():
            return self.estimate(options)

    def resample(self, options: FitOptions) -> Fit:
        """Return the fit with the covariance of its bootstrap distribution."""
        from dynchoice.estimate.bootstrap import bootstrap_counts

        return bootstrap_counts(self, options)


def renamed(fit: Results, name: str, note: str, **changes: Any) -> Results:
    """Return a fit of another estimator's machinery under its own name, with a note."""
    return replace(fit, estimator=name, notes=(*fit.notes, note), **changes)
