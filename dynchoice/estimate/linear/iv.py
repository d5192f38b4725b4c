"""Linear instrumental-variable regressions through linearmodels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import IdentificationError, SpecificationError
from dynchoice.inference.covariance import bucket_sums
from dynchoice.inference.diagnostics import Identification
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd


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


def run_iv(
    found: Regression, groups: list[IntArray], method: str, kind: str, cluster: str
) -> tuple[Ordered, dict[str, Any]]:
    """Run linearmodels on a regression, effects removed.

    Returns the fit in the order of the regressors, and the arrays that went in.
    """
    import pandas as pd
    from linearmodels.iv import IV2SLS, IVGMM

    y, X, Z, w = (
        found.dependent.to_numpy(),
        found.exog.to_numpy(),
        found.instruments.to_numpy(),
        found.weights.to_numpy(),
    )
    w = w / w.mean()
    if groups:
        stack = demeaned(np.column_stack([y, X, Z]), w, groups)
        y, X, Z = stack[:, 0], stack[:, 1 : 1 + X.shape[1]], stack[:, 1 + X.shape[1] :]
    refuse_collinear(list(found.exog.columns), X, w, "regressors")
    exog = pd.DataFrame(X, columns=found.exog.columns)
    unit = found.cells[cluster].to_numpy()
    clusters = np.unique(unit, return_inverse=True)[1].reshape(-1, 1)
    same = X.shape == Z.shape and np.allclose(X, Z, rtol=1e-12, atol=1e-12)
    config: dict[str, Any] = {"cov_type": kind}
    if kind == "clustered":
        config["clusters"] = clusters
        if len(np.unique(clusters)) < 2:
            raise SpecificationError(
                f"one {cluster} cannot be clustered by: use cluster="
                f"{'period' if cluster == 'region' else 'region'!r} or cov_type='robust'"
            )
    if same:
        fit = IV2SLS(y, exog, None, None, weights=w).fit(**config)
    else:
        endogenous = [
            k
            for k in range(X.shape[1])
            if not any(np.allclose(X[:, k], Z[:, m], rtol=1e-12) for m in range(Z.shape[1]))
        ]
        outside = [
            m
            for m in range(Z.shape[1])
            if not any(np.allclose(Z[:, m], X[:, k], rtol=1e-12) for k in range(X.shape[1]))
        ]
        inside = [k for k in range(X.shape[1]) if k not in endogenous]
        if len(outside) < len(endogenous):
            raise IdentificationError(
                f"{len(endogenous)} regressors need instruments and {len(outside)} are given"
            )
        refuse_collinear(
            [*found.exog.columns[inside], *found.instruments.columns[outside]],
            np.column_stack([X[:, inside], Z[:, outside]]),
            w,
            "instruments",
        )
        z = pd.DataFrame(Z[:, outside], columns=[found.instruments.columns[m] for m in outside])
        arguments = (
            y,
            exog.iloc[:, inside] if inside else None,
            exog.iloc[:, endogenous],
            z,
        )
        if method == "gmm":
            options: dict[str, Any] = {"weight_type": "robust"}
            if kind == "clustered":
                options = {"weight_type": "clustered", "clusters": clusters}
            fit = IVGMM(*arguments, weights=w, **options).fit(**config)
        else:
            fit = IV2SLS(*arguments, weights=w).fit(**config)
    order = [list(fit.params.index).index(n) for n in found.exog.columns]
    weight = getattr(fit, "weight_matrix", None) if not same else None
    pieces: dict[str, Any] = {
        "order": order,
        "y": y,
        "X": X,
        "Z": Z,
        "w": w,
        "unit": clusters[:, 0],
    }
    if method == "gmm" and weight is not None:
        pieces["gmm"] = np.column_stack([X[:, inside], Z[:, outside]]), np.asarray(weight)
    return Ordered(fit, order, not same), pieces


class Ordered:
    """A linearmodels fit with its parameters in the model's order."""

    def __init__(self, fit: Any, order: list[int], instrumented: bool) -> None:
        self.fit, self.instrumented = fit, instrumented
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
        table = self.fit.first_stage.diagnostics
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


def second_stage(pieces: dict[str, Any], params: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return influence by cluster (G, K) and information (K, K) of two-stage least squares."""
    X, Z, w = pieces["X"], pieces["Z"], pieces["w"]
    root = np.sqrt(w)[:, None]
    fitted = Z @ np.linalg.lstsq(Z * root, X * root, rcond=None)[0]
    projected = fitted
    if "gmm" in pieces:
        # the combination of moments that the GMM weight picks takes the projection's place
        own, weight = pieces["gmm"]
        fitted = own @ (weight @ ((own * w[:, None]).T @ X))
    residual = pieces["y"] - X @ params
    bread = np.linalg.inv((fitted * w[:, None]).T @ X)
    clusters = int(pieces["unit"].max()) + 1
    moments = bucket_sums(pieces["unit"], fitted * (w * residual)[:, None], clusters)
    sigma2 = float((w * residual**2).mean())
    return moments @ bread.T, (projected * w[:, None]).T @ projected / sigma2


def demeaned(values: FloatArray, w: FloatArray, groups: list[IntArray]) -> FloatArray:
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
