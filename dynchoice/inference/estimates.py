"""What every fit offers, whichever estimator made it, under linearmodels' names.

The normal distribution comes from :mod:`scipy.special`: :mod:`scipy.stats` calls the same
functions, but takes a second to import.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.special import ndtr, ndtri

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.inference.contrasts import (
    BootstrapTest,
    ContrastTest,
    hausman,
    score_bootstrap,
)
from dynchoice.inference.delta import delta_method
from dynchoice.inference.hypotheses import ChiSquaredTest, Formula, wald
from dynchoice.inference.summary import Summary, summarise
from dynchoice.names import RESULTS
from dynchoice.storage import save_tree
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Estimates(ABC):
    """Parameters with names and a covariance, and everything that follows from these alone.

    Every fit has this, whichever estimator made it; a subclass adds what was fitted.

    Attributes
    ----------
    estimator : str
    theta : FloatArray, shape (K,)
        Estimates as a vector; :attr:`params` labels them.
    cov_matrix : FloatArray, shape (K, K)
        NaN where the data leave a direction flat.
    cov_type, cov_config
        Which covariance this is, clusters, and whether first-stage error is in it.
    loglik : float
        Log-likelihood at the estimates.
    nobs, nmembers
        Member-months and members.
    converged, message, optimization
        Status; ``optimization`` has iterations, gradient and starts.
    data_digest, package_version, seed
        What the fit was made from.
    notes : tuple of str
        What a reader of the summary must know.
    bootstrap : FloatArray, shape (draws, K), or None
        Estimates of the resampled panels (``cov_type="bootstrap"``).
    influence : FloatArray, shape (clusters, K), or None
        What each bucket of members (or region) adds to the estimate, for contrasts.
    """

    marker: ClassVar[str] = ""
    """The key in a saved file that names its class; without one: :class:`dynchoice.Results`."""

    estimator: str
    theta: FloatArray
    cov_matrix: FloatArray
    cov_type: str
    cov_config: dict[str, Any]
    loglik: float
    nobs: float
    nmembers: int
    converged: bool
    message: str
    optimization: dict[str, Any]
    data_digest: str
    package_version: str
    seed: int | None = None
    notes: tuple[str, ...] = ()
    bootstrap: FloatArray | None = field(default=None, repr=False)
    influence: FloatArray | None = field(default=None, repr=False)

    @property
    def likelihood_of(self) -> str:
        """What the log-likelihood speaks of: criteria of different things are not compared."""
        return "parameters"

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Parameter names, in the order of every vector and matrix here."""

    @property
    def vector(self) -> FloatArray:
        """Estimates, unlabelled; :attr:`params` labels them."""
        return self.theta

    @property
    def states_digest(self) -> str:
        """Digest of the rows that states were made from, where states are no column of the data."""
        return ""

    # criteria --------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Free parameters of the likelihood that :attr:`aic` and :attr:`bic` speak of."""
        return len(self.vector)

    @property
    def criterion(self) -> float:
        """The log-likelihood that :attr:`aic` and :attr:`bic` speak of."""
        return self.loglik

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return 2 * self.free - 2 * self.criterion

    @property
    def bic(self) -> float:
        """Bayes' criterion with log(member-months); NaN for a market without data."""
        if self.nobs <= 0:
            return float("nan")
        return float(np.log(self.nobs)) * self.free - 2 * self.criterion

    # files -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save to one file (``.npz`` with a JSON skeleton, no pickle).

        :func:`dynchoice.load` reads it.

        Raises
        ------
        StorageError
            It cannot be written, or holds what no file can (functions, fitted learners).
        """
        marked = {self.marker: True} if self.marker else {}
        return save_tree(path, RESULTS, {**self.to_tree(), **marked})

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays and plain values, for saving."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_tree`; what older files lack takes its default."""
        values = dict(tree)
        for f in fields(cls):
            # files hold tuples as lists
            if str(f.type).startswith("tuple") and f.name in values:
                values[f.name] = tuple(values[f.name])
        return cls(**values)

    @property
    @abstractmethod
    def summary(self) -> Summary:
        """The table of estimates."""

    def _tabulate(self, facts: Iterable[tuple[str, str]]) -> Summary:
        """Return the summary with some facts above the table of estimates."""
        interval = self.conf_int()
        columns = (
            self.params,
            self.std_errors,
            self.tstats,
            self.pvalues,
            interval["lower"],
            interval["upper"],
        )
        numbers = np.column_stack([column.to_numpy() for column in columns])
        status = () if self.converged else (f"NOT CONVERGED: {self.message}",)
        rows = zip(self.names, numbers, strict=True)
        return summarise(self.estimator, facts, rows, (*status, *self.notes))

    def _covariance_in_words(self) -> str:
        """Return the type of the covariance, with the number and kind of clusters."""
        config = self.cov_config
        if "clusters" not in config:
            return self.cov_type
        return f"{self.cov_type} ({config['clusters']:,} by {config['by']})"

    def restart(self) -> FloatArray:
        """Return the ``start`` of a refit from here."""
        return self.vector

    def refreshed(self) -> Self:
        """Return the fit after its covariance was replaced, with what is derived from it."""
        return self

    def _series(self, values: FloatArray, name: str) -> pd.Series:
        return pd.Series(np.array(values), index=list(self.names), name=name)

    @cached_property
    def params(self) -> pd.Series:
        """Estimates, in utils per unit of each feature."""
        return self._series(self.vector, "parameter")

    @cached_property
    def std_errors(self) -> pd.Series:
        """Standard errors; NaN for parameters on a flat direction."""
        return self._series(np.sqrt(np.diag(self.cov_matrix)), "std_error")

    @cached_property
    def tstats(self) -> pd.Series:
        """Estimates over standard errors."""
        return (self.params / self.std_errors).rename("tstat")

    @cached_property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values, normal reference."""
        return self._series(2 * ndtr(-np.abs(self.tstats.to_numpy())), "pvalue")

    @cached_property
    def cov(self) -> pd.DataFrame:
        """Covariance of the estimates."""
        names = list(self.names)
        return pd.DataFrame(np.array(self.cov_matrix), index=names, columns=names)

    def conf_int(self, level: float = 0.95, *, method: str = "normal") -> pd.DataFrame:
        """Return confidence intervals, columns ``lower`` and ``upper``.

        Parameters
        ----------
        level : float
        method : {"normal", "percentile"}
            ``"percentile"`` takes quantiles of the bootstrap draws (``cov_type="bootstrap"``).
        """
        level = checks.share(level, "level", open_interval=True)
        if checks.one_of(method, "method", ("normal", "percentile")) == "percentile":
            if self.bootstrap is None:
                raise SpecificationError("percentiles need a fit with cov_type='bootstrap'")
            tails = [0.5 - level / 2, 0.5 + level / 2]
            lower, upper = np.quantile(self.bootstrap, tails, axis=0)
            return pd.DataFrame({"lower": lower, "upper": upper}, index=list(self.names))
        half = ndtri(0.5 + level / 2) * self.std_errors
        return pd.DataFrame({"lower": self.params - half, "upper": self.params + half})

    # statsmodels' names

    @property
    def bse(self) -> pd.Series:
        """Alias of :attr:`std_errors`."""
        return self.std_errors

    @property
    def tvalues(self) -> pd.Series:
        """Alias of :attr:`tstats`."""
        return self.tstats

    @property
    def llf(self) -> float:
        """Alias of :attr:`loglik`."""
        return self.loglik

    def cov_params(self) -> pd.DataFrame:
        """Return :attr:`cov`."""
        return self.cov

    # tests -----------------------------------------------------------------------------------

    def wald_test(
        self,
        restriction: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        formula: Formula | None = None,
    ) -> ChiSquaredTest:
        """Test linear restrictions; see :func:`dynchoice.inference.hypotheses.wald`.

        Examples: ``wald_test(formula="video = 0")``, ``wald_test(np.eye(2))``.
        """
        return wald(self.names, self.vector, self.cov_matrix, restriction, value, formula)

    def hausman_test(self, other: Estimates) -> ContrastTest:
        """Test that two estimators of the same parameters agree (Hausman 1978).

        The variance of the contrast comes from both estimators' influence by cluster, so neither
        needs to be efficient; see :func:`dynchoice.inference.contrasts.hausman`.
        """
        return hausman(self, other)

    def score_bootstrap(
        self,
        restriction: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        formula: Formula | None = None,
        draws: int = 999,
        seed: int | None = 0,
    ) -> BootstrapTest:
        """Test linear restrictions by a wild bootstrap of the cluster scores, for few clusters.

        See :func:`dynchoice.inference.contrasts.score_bootstrap` (Kline and Santos 2012).
        """
        return score_bootstrap(self, restriction, value, formula, draws, seed)

    def delta_method(
        self,
        f: Callable[[pd.Series], ArrayLike],
        *,
        level: float = 0.95,
        names: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return a function of the parameters with standard errors by the delta method.

        Parameters
        ----------
        f : callable
            Takes the parameters as a labelled Series and returns a number or a vector. Its
            gradient is taken by central differences with steps of a thousandth of a standard
            error.
        level : float
        names : sequence of str, optional

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate``, ``std_error``, ``lower``, ``upper``.

        Raises
        ------
        SpecificationError
            The covariance has parameters without a variance.
        """
        return delta_method(f, self.params, self.cov_matrix, level, names)

    def _repr_html_(self) -> str:
        return self.summary.as_html()
