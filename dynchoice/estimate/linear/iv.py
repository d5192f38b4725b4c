"""Linear instrumental-variable regressions through linearmodels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.inference.covariance import bucket_sums
from dynchoice.inference.diagnostics import Identification
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from linearmodels.iv.results import IVGMMResults, IVResults, OLSResults


@dataclass(frozen=True)
class Regression:
    """The regression as linearmodels takes it, one row a (region, period, state, choice).

    Attributes
    ----------
    dependent : Series
    exog, instruments : DataFrame
        Regressors, and their instruments (equal where nothing needs instrumenting).
    weights : Series
    cells : DataFrame
        Region, period, state (code), choice, reference choice, members in the cell.
    dropped : dict
        Rows left out, by reason.
    """

    dependent: pd.Series
    exog: pd.DataFrame
    instruments: pd.DataFrame
    weights: pd.Series
    cells: pd.DataFrame
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class RegressionArrays:
    """What went into a fit, effects removed.

    Attributes
    ----------
    y : FloatArray, shape (n,)
    X, Z : FloatArray, shape (n, K) and (n, M)
        Regressors, and their instruments.
    w : FloatArray, shape (n,)
        Weights with mean one.
    unit : IntArray, shape (n,)
        Number of the cluster.
    moments, moment_weight : FloatArray, shape (n, L) and (L, L), optional
        GMM: what is orthogonal to the error, and the weight of these moments.
    """

    y: FloatArray
    X: FloatArray
    Z: FloatArray
    w: FloatArray
    unit: IntArray
    moments: FloatArray | None = None
    moment_weight: FloatArray | None = None


def run_iv(
    regression: Regression, groups: list[IntArray], method: str, kind: str, cluster: str
) -> tuple[Ordered, RegressionArrays]:
    """Run linearmodels on a regression, effects removed.

    Returns the fit in the order of the regressors, and the arrays that went in.

    Raises
    ------
    SpecificationError
        One cluster only.
    IdentificationError
        Regressors or instruments that are collinear or do not vary; too few instruments.
    """
    from linearmodels.iv import IV2SLS

    arrays = remove_effects(regression, groups, cluster)
    names = regression.exog.columns
    refuse_collinear(list(names), arrays.X, arrays.w, "regressors")
    config: dict[str, Any] = {"cov_type": kind}
    if kind == "clustered":
        if len(np.unique(arrays.unit)) < 2:
            raise SpecificationError(
                f"one {cluster} cannot be clustered by: use cluster="
                f"{'period' if cluster == 'region' else 'region'!r} or cov_type='robust'"
            )
        config["clusters"] = arrays.unit[:, None]
    X, Z, w = arrays.X, arrays.Z, arrays.w
    if X.shape == Z.shape and np.allclose(X, Z, rtol=1e-12, atol=1e-12):
        exog = pd.DataFrame(X, columns=names)
        fit = IV2SLS(arrays.y, exog, None, None, weights=w).fit(**config)
        return Ordered(fit, names, instrumented=False), arrays
    return run_instrumented(regression, arrays, method, config)


def remove_effects(
    regression: Regression, groups: list[IntArray], cluster: str
) -> RegressionArrays:
    """Return a regression's arrays, less the weighted means of every group."""
    y, X, Z, w = (
        regression.dependent.to_numpy(),
        regression.exog.to_numpy(),
        regression.instruments.to_numpy(),
        regression.weights.to_numpy(),
    )
    w = w / w.mean()
    if groups:
        stack = remove_means(np.column_stack([y, X, Z]), w, groups)
        y, X, Z = stack[:, 0], stack[:, 1 : 1 + X.shape[1]], stack[:, 1 + X.shape[1] :]
    unit = np.unique(regression.cells[cluster].to_numpy(), return_inverse=True)[1].reshape(-1)
    return RegressionArrays(y=y, X=X, Z=Z, w=w, unit=unit)


def run_instrumented(
    regression: Regression, arrays: RegressionArrays, method: str, config: dict[str, Any]
) -> tuple[Ordered, RegressionArrays]:
    """Return linearmodels' IV2SLS or IVGMM; see :func:`run_iv`."""
    from linearmodels.iv import IV2SLS, IVGMM

    X, Z, w = arrays.X, arrays.Z, arrays.w
    names, z_names = regression.exog.columns, regression.instruments.columns
    endogenous, outside = columns_without_twin(X, Z), columns_without_twin(Z, X)
    exogenous = [k for k in range(X.shape[1]) if k not in endogenous]
    if len(outside) < len(endogenous):
        raise IdentificationError(
            f"{len(endogenous)} regressors need instruments and {len(outside)} are given"
        )
    moments = np.column_stack([X[:, exogenous], Z[:, outside]])
    refuse_collinear([*names[exogenous], *z_names[outside]], moments, w, "instruments")
    exog = pd.DataFrame(X, columns=names)
    arguments = (
        arrays.y,
        exog.iloc[:, exogenous] if exogenous else None,
        exog.iloc[:, endogenous],
        pd.DataFrame(Z[:, outside], columns=[z_names[m] for m in outside]),
    )
    if method != "gmm":
        fit = IV2SLS(*arguments, weights=w).fit(**config)
        return Ordered(fit, names, instrumented=True), arrays
    options: dict[str, Any] = {"weight_type": "robust"}
    if "clusters" in config:
        options = {"weight_type": "clustered", "clusters": config["clusters"]}
    fit = IVGMM(*arguments, weights=w, **options).fit(**config)
    moment_weight = np.asarray(cast("IVGMMResults", fit).weight_matrix)
    kept = replace(arrays, moments=moments, moment_weight=moment_weight)
    return Ordered(fit, names, instrumented=True), kept


def columns_without_twin(columns: FloatArray, others: FloatArray) -> list[int]:
    """Return the columns (n, A) that are none of the others (n, B)."""
    return [
        k
        for k in range(columns.shape[1])
        if not any(np.allclose(columns[:, k], o, rtol=1e-12) for o in others.T)
    ]


class Ordered:
    """A linearmodels fit with its parameters in the model's order."""

    def __init__(self, fit: OLSResults, names: pd.Index, *, instrumented: bool) -> None:
        self.fit, self.instrumented = fit, instrumented
        order = [list(fit.params.index).index(name) for name in names]
        self.params = fit.params.iloc[order]
        self.cov = fit.cov.iloc[order, order]

    def tests(self) -> dict[str, Any]:
        """Return linearmodels' diagnostics as plain values, under its names.

        ``first_stage`` holds one row a regressor with an instrument (``rsquared``,
        ``partial.rsquared``, ``shea.rsquared``, ``f.stat`` ...); ``"weakest F"`` is the smallest
        ``f.stat`` (per instrument, where linearmodels reports a chi-squared).
        """
        out: dict[str, Any] = {"nobs": int(self.fit.nobs), "rsquared": float(self.fit.rsquared)}
        if not self.instrumented:
            return out
        table = cast("IVResults", self.fit).first_stage.diagnostics
        numeric = [c for c in table.columns if c != "f.dist"]
        out["first_stage"] = {
            str(name): {str(c): float(row[c]) for c in numeric} for name, row in table.iterrows()
        }
        chi2 = table["f.dist"].astype(str).str.startswith("chi2").any()
        scale = self.fit.model.instruments.shape[1] if chi2 else 1
        out["weakest F"] = float(table["f.stat"].min()) / scale
        for name in ("j_stat", "sargan", "wooldridge_overid"):
            test = getattr(self.fit, name, None)
            if test is not None and np.isfinite(getattr(test, "stat", np.nan)):
                out[name] = {"stat": float(test.stat), "pval": float(test.pval), "df": test.df}
        return out


def second_stage(arrays: RegressionArrays, params: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return influence by cluster (G, K) and information (K, K) of two-stage least squares."""
    X, Z, w = arrays.X, arrays.Z, arrays.w
    root = np.sqrt(w)[:, None]
    projected = fitted = Z @ np.linalg.lstsq(Z * root, X * root, rcond=None)[0]
    if arrays.moments is not None and arrays.moment_weight is not None:
        # the combination of moments that the GMM weight picks takes the projection's place
        moments, weight = arrays.moments, arrays.moment_weight
        fitted = moments @ (weight @ ((moments * w[:, None]).T @ X))
    residual = arrays.y - X @ params
    bread = np.linalg.inv((fitted * w[:, None]).T @ X)
    clusters = int(arrays.unit.max()) + 1
    scores = bucket_sums(arrays.unit, fitted * (w * residual)[:, None], clusters)
    sigma2 = float((w * residual**2).mean())
    return scores @ bread.T, (projected * w[:, None]).T @ projected / sigma2


def remove_means(values: FloatArray, w: FloatArray, groups: list[IntArray]) -> FloatArray:
    """Remove weighted group means, by turns until nothing moves (Gaure 2013)."""
    out = values.copy()
    for _ in range(1000):
        before = out.copy()
        for g in groups:
            total = np.bincount(g, weights=w)
            for c in range(out.shape[1]):
                out[:, c] -= (np.bincount(g, weights=w * out[:, c]) / total)[g]
        if len(groups) == 1 or np.abs(out - before).max() < 1e-12 * (1 + np.abs(out).max()):
            return out
    return out


def refuse_collinear(names: list[str], X: FloatArray, w: FloatArray, what: str) -> None:
    """Raise where regressors do not vary, or move together."""
    information = (X * w[:, None]).T @ X
    dead = [n for n, v in zip(names, np.diag(information), strict=True) if v <= 1e-14 * len(X)]
    if dead:
        raise IdentificationError(
            f"{what}: {', '.join(map(repr, dead))} do not vary in the equations that can be formed"
            " (effects removed): the regression cannot tell them"
        )
    flat = Identification.of(names, information).flat
    if flat:
        raise IdentificationError(f"{what} are collinear along: {'; '.join(flat)}")
