"""What every fit offers, whichever estimator made it, under linearmodels' names."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.inference.contrasts import (
    BootstrapTest,
    ContrastTest,
    hausman,
    score_bootstrap,
)
from dynchoice.inference.hypotheses import ChiSquaredTest, wald
from dynchoice.inference.summary import Summary
from dynchoice.names import RESULTS
from dynchoice.storage import save_tree
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Estimates(ABC):
    """Parameters with names and a covariance, and what follows from these alone.

    What every fit has, whichever estimator made it; a subclass adds what it is a fit of.

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
        Honest status; ``optimization`` has iterations, gradient and starts.
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
    """Says in a saved file which class it holds; none: :class:`dynchoice.Results`."""

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
        """What the log-likelihood is of; criteria of other things are not compared."""
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
            if str(f.type).startswith("tuple") and f.name in values:
                values[f.name] = tuple(values[f.name])
        return cls(**values)

    @property
    @abstractmethod
    def summary(self) -> Summary:
        """The table of estimates."""

    def restart(self) -> Any:
        """Return the ``start`` of a refit from here."""
        return self.vector

    def refreshed(self) -> Any:
        """Return the fit with whatever is derived from the covariance derived again."""
        return self

    def _series(self, values: FloatArray, name: str) -> pd.Series:
        import pandas as pd

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
        from scipy.stats import norm

        return self._series(2 * norm.sf(np.abs(self.tstats.to_numpy())), "pvalue")

    @cached_property
    def cov(self) -> pd.DataFrame:
        """Covariance of the estimates."""
        import pandas as pd

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
        import pandas as pd
        from scipy.stats import norm

        if not 0 < level < 1:
            raise SpecificationError(f"level={level:g} must lie between 0 and 1 (0.95 for 95%)")
        if method == "percentile":
            if self.bootstrap is None:
                raise SpecificationError("percentiles need a fit with cov_type='bootstrap'")
            tails = [0.5 - level / 2, 0.5 + level / 2]
            lower, upper = np.quantile(self.bootstrap, tails, axis=0)
            return pd.DataFrame({"lower": lower, "upper": upper}, index=list(self.names))
        if method != "normal":
            raise SpecificationError(f"method={method!r}: use 'normal' or 'percentile'")
        half = norm.ppf(0.5 + level / 2) * self.std_errors
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
        self, restriction: Any = None, value: Any = None, *, formula: Any = None
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
        restriction: Any = None,
        value: Any = None,
        *,
        formula: Any = None,
        draws: int = 999,
        seed: int | None = 0,
    ) -> BootstrapTest:
        """Test linear restrictions by a wild bootstrap of the cluster scores, for few clusters.

        See :func:`dynchoice.inference.contrasts.score_bootstrap` (Kline and Santos 2012).
        """
        return score_bootstrap(self, restriction, value, formula, draws, seed)

    def delta_method(
        self, f: Callable[[Any], Any], *, level: float = 0.95, names: Any = None
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
        import pandas as pd
        from scipy.stats import norm

        if not 0 < level < 1:
            raise SpecificationError(f"level={level:g} must lie between 0 and 1 (0.95 for 95%)")
        se = np.sqrt(np.diag(self.cov_matrix))
        if not np.isfinite(se).all():
            lost = [n for n, x in zip(self.names, se, strict=True) if not np.isfinite(x)]
            raise SpecificationError(
                "the covariance has parameters without a variance (flat directions): "
                + ", ".join(lost)
            )
        first = f(self.params)
        center = np.atleast_1d(np.asarray(first, dtype=np.float64))
        if names is None and hasattr(first, "index") and len(center) == len(first.index):
            names = list(first.index)
        gradient = np.empty((len(center), len(se)))
        for k, step in enumerate(1e-3 * se):
            up, down = self.params.copy(), self.params.copy()
            up.iloc[k] += step
            down.iloc[k] -= step
            gradient[:, k] = (np.atleast_1d(f(up)) - np.atleast_1d(f(down))) / (2 * step)
        spread = np.sqrt(np.einsum("ik,kl,il->i", gradient, self.cov_matrix, gradient))
        half = norm.ppf(0.5 + level / 2) * spread
        if names is not None and len(list(names)) != len(center):
            raise SpecificationError(f"{len(center)} values need as many names, got {names!r}")
        index = list(names) if names is not None else list(range(len(center)))
        return pd.DataFrame(
            {
                "estimate": center,
                "std_error": spread,
                "lower": center - half,
                "upper": center + half,
            },
            index=index,
        )

    def _repr_html_(self) -> str:
        return self.summary.as_html()
