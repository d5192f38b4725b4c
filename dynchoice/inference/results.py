"""Results: what one fit says, under linearmodels' names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import DataError, SpecificationError, StorageError
from dynchoice.inference.diagnostics import Identification, Support
from dynchoice.inference.hypotheses import ChiSquaredTest, wald
from dynchoice.inference.summary import Summary, summarise
from dynchoice.model.ddc import DDC
from dynchoice.model.stored import model_from_tree, model_to_tree
from dynchoice.model.transitions import Transitions
from dynchoice.solve.solution import Solution, solve
from dynchoice.storage import load_tree, save_tree
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd

KIND = "dynchoice results"


@dataclass(frozen=True)
class Results:
    """Estimates of one fit with everything needed to test, predict and simulate.

    Attributes
    ----------
    estimator : str
    model : DDC
        With the transitions as estimated.
    theta : FloatArray, shape (K,)
        Estimates as a vector; :attr:`params` labels them.
    cov_matrix : FloatArray, shape (K, K)
        NaN where the data leave a direction flat.
    cov_type, cov_config
        Which covariance this is, clusters, and whether first-stage error is in it.
    loglik : float
        Log-likelihood of the choices at the estimates.
    loglik_transitions : float or None
        Log-likelihood of the observed moves, where laws were estimated.
    pseudo_loglik : float or None
        What a pseudo-likelihood estimator maximised; never called ``loglik``.
    loglik_null : float
        Every available choice equally likely.
    converged, message, optimization
        Honest status; ``optimization`` has iterations, gradient and starts.
    counts : FloatArray, shape (S, J)
        Choices that entered the likelihood.
    hessian : FloatArray, shape (K, K)
        Second derivative of the log-likelihood.
    """

    estimator: str
    model: DDC
    theta: FloatArray
    cov_matrix: FloatArray
    cov_type: str
    cov_config: dict[str, Any]
    loglik: float
    loglik_null: float
    nobs: float
    nmembers: int
    converged: bool
    message: str
    optimization: dict[str, Any]
    counts: FloatArray
    hessian: FloatArray
    value: FloatArray
    data_digest: str
    package_version: str
    seed: int | None = None
    loglik_transitions: float | None = None
    pseudo_loglik: float | None = None
    extra_params: int = 0
    notes: tuple[str, ...] = ()
    first_stage: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    # estimates -------------------------------------------------------------------------------

    def _series(self, values: FloatArray, name: str) -> pd.Series:
        import pandas as pd

        return pd.Series(np.array(values), index=list(self.model.names), name=name)

    @cached_property
    def params(self) -> pd.Series:
        """Estimates (K,), in utils per unit of each feature."""
        return self._series(self.theta, "parameter")

    @cached_property
    def std_errors(self) -> pd.Series:
        """Standard errors (K,); NaN for parameters on a flat direction."""
        return self._series(np.sqrt(np.diag(self.cov_matrix)), "std_error")

    @cached_property
    def tstats(self) -> pd.Series:
        """Estimates over standard errors (K,)."""
        return (self.params / self.std_errors).rename("tstat")

    @cached_property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values (K,), normal reference."""
        from scipy.stats import norm

        return self._series(2 * norm.sf(np.abs(self.tstats.to_numpy())), "pvalue")

    @cached_property
    def cov(self) -> pd.DataFrame:
        """Covariance of the estimates (K, K)."""
        import pandas as pd

        names = list(self.model.names)
        return pd.DataFrame(np.array(self.cov_matrix), index=names, columns=names)

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Return normal confidence intervals, columns ``lower`` and ``upper``."""
        import pandas as pd
        from scipy.stats import norm

        if not 0 < level < 1:
            raise SpecificationError(f"level={level:g} must lie between 0 and 1 (0.95 for 95%)")
        half = norm.ppf(0.5 + level / 2) * self.std_errors
        return pd.DataFrame({"lower": self.params - half, "upper": self.params + half})

    @property
    def aic(self) -> float:
        """Akaike's criterion of the choice likelihood."""
        return 2 * len(self.theta) - 2 * self.loglik

    @property
    def bic(self) -> float:
        """Bayes' criterion of the choice likelihood."""
        return float(np.log(self.nobs)) * len(self.theta) - 2 * self.loglik

    @property
    def rsquared_mcfadden(self) -> float:
        """One less the ratio of log-likelihoods to equally likely choices."""
        return 1 - self.loglik / self.loglik_null if self.loglik_null else float("nan")

    @property
    def transitions(self) -> Transitions:
        """Transitions as given or estimated."""
        return self.model.transitions

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

    # the model at the estimates --------------------------------------------------------------

    @cached_property
    def solution(self) -> Solution:
        """The model solved at the estimates."""
        start = self.value if self.model.horizon is None else None
        return solve(self.model, self.theta, start=start)

    @property
    def ccp(self) -> FloatArray:
        """Observed conditional choice probabilities (S, J) at the estimates."""
        return self.solution.ccp

    def predict(self, df: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return choice probabilities for rows of a table with one column a state axis.

        Without a table: for every state. Columns are the choices; the index is the table's.

        Raises
        ------
        ColumnError, DataError
            A missing column; a level that the model does not know.
        """
        import pandas as pd

        if self.model.horizon is not None:
            raise SpecificationError(
                "predict() is for infinite horizons; results.solution.ccp[t] has each period"
            )
        states = self.model.states
        frame = states.frame() if df is None else df
        codes = states.codes(frame)
        return pd.DataFrame(self.ccp[codes], index=frame.index, columns=list(self.model.choices))

    # tests -----------------------------------------------------------------------------------

    def wald_test(
        self, restriction: Any = None, value: Any = None, *, formula: Any = None
    ) -> ChiSquaredTest:
        """Test linear restrictions; see :func:`dynchoice.inference.hypotheses.wald`.

        Examples: ``wald_test(formula="video = 0")``, ``wald_test(np.eye(2))``.
        """
        return wald(self.model.names, self.theta, self.cov_matrix, restriction, value, formula)

    def lr_test(self, other: Results) -> ChiSquaredTest:
        """Test this fit against a nested one on the same data by the likelihood ratio.

        Raises
        ------
        SpecificationError
            Other data; as many parameters; a larger likelihood with fewer parameters.
        """
        if not isinstance(other, Results):
            raise SpecificationError(f"lr_test takes Results, got {type(other).__name__}")
        if self.pseudo_loglik is not None or other.pseudo_loglik is not None:
            raise SpecificationError("a likelihood ratio needs maximum likelihood fits, not CCP")
        if self.estimator != other.estimator:
            raise SpecificationError(
                f"a likelihood ratio needs one estimator, got {self.estimator} and"
                f" {other.estimator}"
            )
        large, small = (self, other) if len(self.theta) > len(other.theta) else (other, self)
        if self.data_digest != other.data_digest:
            raise SpecificationError("a likelihood ratio needs two fits of the same data")
        df = len(large.theta) - len(small.theta)
        if df == 0:
            raise SpecificationError("the two fits have the same number of parameters")
        stat = 2 * (large.loglik - small.loglik)
        if stat < -1e-6 * abs(large.loglik):
            raise SpecificationError(
                f"the fit with more parameters has the lower log-likelihood ({large.loglik:.4f} <"
                f" {small.loglik:.4f}): the models are not nested or one did not converge"
            )
        null = f"the model with {len(small.theta)} parameters"
        return ChiSquaredTest("Likelihood ratio test", null, max(stat, 0.0), df)

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
        """
        import pandas as pd
        from scipy.stats import norm

        if not 0 < level < 1:
            raise SpecificationError(f"level={level:g} must lie between 0 and 1 (0.95 for 95%)")
        se = np.sqrt(np.diag(self.cov_matrix))
        if not np.isfinite(se).all():
            raise SpecificationError(
                "the covariance has parameters without a variance (flat directions): "
                + "; ".join(self.identification().flat)
            )
        first = f(self.params)
        center = np.atleast_1d(np.asarray(first, dtype=np.float64))
        if names is None and hasattr(first, "index") and len(center) == len(first.index):
            names = list(first.index)
        gradient = np.empty((len(center), len(self.theta)))
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

    def identification(self) -> Identification:
        """Return which directions of the parameters the data tell apart, smallest first."""
        return Identification.of(self.model.names, -self.hessian)

    def support(self) -> Support:
        """Return where the panel has choices and where only the model speaks."""
        model = self.model
        return Support(model.states, model.choices, self.counts, model.available)

    def draws(self, n: int, seed: int | np.random.Generator | None = 0) -> FloatArray:
        """Return parameter draws (n, K) from the normal approximation of the estimator.

        Raises
        ------
        SpecificationError
            Some parameter has no variance: a flat direction cannot be drawn.
        """
        if not np.isfinite(self.cov_matrix).all():
            raise SpecificationError(
                "no draws: the data leave these directions flat: "
                + "; ".join(self.identification().flat)
            )
        values, vectors = np.linalg.eigh(self.cov_matrix)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        noise = np.random.default_rng(seed).standard_normal((n, len(self.theta)))
        return np.asarray(self.theta + noise @ root.T)

    # output ----------------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        """The table of estimates: ``print`` it, or ``.as_html() .as_latex() .as_csv()``.

        ``results.summary`` and ``results.summary()`` are the same.
        """
        return summarise(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save to one file (``.npz`` with a JSON skeleton, no pickle); :func:`load` reads it."""
        plain = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("model", "first_stage", "notes")
        }
        tree = {
            **plain,
            "notes": list(self.notes),
            "first_stage": list(self.first_stage),
            "model": model_to_tree(self.model),
        }
        return save_tree(path, KIND, tree)

    def __repr__(self) -> str:
        return (
            f"Results({self.estimator}: {len(self.theta)} parameters, {self.nobs:,.0f}"
            f" member-months, log-likelihood {self.loglik:.4f},"
            f" {'converged' if self.converged else 'NOT CONVERGED'})"
        )

    def _repr_html_(self) -> str:
        return self.summary.as_html()


def load(path: str | os.PathLike[str]) -> Results:
    """Load results saved by :meth:`Results.save`.

    Raises
    ------
    StorageError
        No such file, damaged, or no results of this package.
    """
    tree: Mapping[str, Any] = load_tree(path, KIND)
    fields = dict(tree)
    try:
        fields["model"] = model_from_tree(fields["model"])
        fields["notes"] = tuple(fields["notes"])
        fields["first_stage"] = tuple(fields["first_stage"])
        return Results(**fields)
    except (KeyError, TypeError, DataError) as error:
        raise StorageError(f"{path} cannot be read by this version: {error}") from error
