"""One origin of a backtest: what each method said of the months after it, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from dynchoice.counterfactuals import backtest_rivals as baselines
from dynchoice.inference.results import Results
from dynchoice.panel.counts import Counts
from dynchoice.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    import pandas as pd

MODEL = "model"
SEASONS = {"month": 12, "quarter": 4}
LOWEST = 1e-12
"""Probabilities below count as this in a log score: what a model rules out and happens."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What was known of one segment at an origin, and what its members chose after it."""

    fit: Results
    static: Results | None
    counts: Counts
    followed: pd.DataFrame
    pairs: pd.DataFrame
    spells: pd.DataFrame
    outside: int
    against: tuple[str, ...]


def paths_of(fit: Results, H: int) -> FloatArray:
    """Return what follows each state and choice after 1 .. H periods (H, S, J, J).

    The model's chain run backwards: ``f_1 = P``, ``f_{h+1}(s) = sum_j P(j | s) E[f_h | s, j]``,
    so that no matrix between states is ever formed.
    """
    P, F = fit.ccp, fit.model.transitions
    S, J = P.shape
    out = np.empty((H, S, J, J))
    f = np.ascontiguousarray(P)
    for h in range(H):
        for later in range(J):
            out[h, :, :, later] = F.expect(np.ascontiguousarray(f[:, later]))
        f = np.einsum("sj,sjk->sk", P, out[h])
    return out


def forecast_members(known: Known, H: int) -> dict[str, FloatArray]:
    """Return what each method forecasts for each row of ``followed``: by method, (H, rows, J).

    Methods that forecast shares only are not in it.
    """
    table, J = known.followed, len(known.counts.choices)
    s, c = table["state"].to_numpy(int), table["choice"].to_numpy(int)
    out = {MODEL: paths_of(known.fit, H)[:, s, c]}
    if known.static is not None:
        out["static logit"] = paths_of(known.static, H)[:, s, c]
    if "Markov table" in known.against:
        out["Markov table"] = baselines.markov_table(known.pairs, J, H)[:, c]
    if "last month" in known.against:
        out["last month"] = baselines.last_month(known.pairs, J, H)[:, c]
    return out


def forecast_shares(known: Known, H: int) -> dict[str, FloatArray]:
    """Return the shares (H, J) of methods that forecast shares only.

    They are of the members seen again in each period, as the other methods' are: all forecast the
    same people, and none knows more of who will be seen than the others.
    """
    t, J = known.followed, len(known.counts.choices)
    shares = np.full((H, J), np.nan)
    for h in range(1, H + 1):
        rows = t[t["period"] == h]
        n = np.bincount(
            rows["choice"].to_numpy(int), weights=rows["n"].to_numpy(float), minlength=J
        )
        if n.sum() > 0:
            shares[h - 1] = n / n.sum()
    out = {}
    if "last month" in known.against:
        out["last month"] = shares
    if "seasonal series" in known.against:
        season = SEASONS.get(known.counts.period_kind, 1)
        out["seasonal series"] = baselines.seasonal_series(monthly_shares(known.counts), H, season)
    if "retention curve" in known.against:
        out["retention curve"] = baselines.retention_curve(known.spells, shares, known.outside, H)
    return out


def monthly_shares(counts: Counts) -> FloatArray:
    """Return the shares of choices in each period (T, J), those without rows left out."""
    t, j = counts.period_cells[:, 1], counts.period_cells[:, 3]
    first = counts.first_period
    n = np.zeros((counts.last_period - first + 1, len(counts.choices)))
    np.add.at(n, (t - first, j), counts.period_n)
    n = n[n.sum(axis=1) > 0]
    return np.asarray(n / n.sum(axis=1, keepdims=True))


def evaluate(
    segment: str, known: Known, bands: pd.DataFrame, H: int, level: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return errors of take-up, log scores and calibration of one segment at one origin.

    Parameters
    ----------
    segment : str
    known : Known
    bands : pandas.DataFrame
        The baseline of the model's forecast: ``period``, ``choice``, ``share``, ``lower``,
        ``upper``.
    H : int
        Periods ahead that are observed.
    level : float
        Of the bands.
    """
    choices = [str(c) for c in known.counts.choices]
    table, chances = known.followed, forecast_members(known, H)
    later, n = table["later"].to_numpy(int), table["n"].to_numpy(float)
    ahead = table["period"].to_numpy(int)
    shares = forecast_shares(known, H)
    errors, scores, bins = [], [], []
    first = float(known.counts.at_period().sum())
    base = bands.set_index(["period", "choice"])
    for h in range(1, H + 1):
        rows = np.flatnonzero(ahead == h)
        if not len(rows):
            continue
        w, total = n[rows], n[rows].sum()
        observed = np.bincount(later[rows], weights=w, minlength=len(choices)) / total
        forecasts = {m: w @ p[h - 1][rows] / total for m, p in chances.items()}
        # of methods that speak of both, what they say of shares counts
        forecasts |= {m: x[h - 1] for m, x in shares.items()}
        p = chances[MODEL][h - 1][rows]
        chance = np.sqrt(w @ (p * (1 - p))) / total
        for method, forecast in forecasts.items():
            for j, choice in enumerate(choices):
                error: dict[str, Any] = {
                    "segment": segment,
                    "horizon": h,
                    "choice": choice,
                    "method": method,
                    "forecast": float(forecast[j]),
                    "observed": float(observed[j]),
                    "members": float(total),
                    "seen": float(total) / first,
                }
                band = base.loc[(h, choice)] if method == MODEL else None
                errors.append({**error, **band_of(error["forecast"], band, chance[j], level)})
        happened = {m: q[h - 1][rows, later[rows]] for m, q in chances.items()}
        scores += score_rows(segment, h, happened, w)
        bins += calibration_rows(segment, h, p, later[rows], w)
    return errors, scores, bins


def score_rows(
    segment: str, h: int, happened: Mapping[str, FloatArray], w: FloatArray
) -> list[dict[str, Any]]:
    """Return each method's log score, and the model's gain over it.

    Parameters
    ----------
    happened : mapping
        Method -> the probability (rows,) that it gave to what happened.
    w : array (rows,)
        Members of each row.
    """
    total = w.sum()
    logs = {m: np.log(np.maximum(q, LOWEST)) for m, q in happened.items()}
    records = []
    for method, log in logs.items():
        gain = logs[MODEL] - log
        mean = float(w @ gain / total)
        records.append(
            {
                "segment": segment,
                "horizon": h,
                "method": method,
                "n": float(total),
                "score": float(w @ log / total),
                "model_gains": mean,
                "std_error": float(np.sqrt(w @ (gain - mean) ** 2) / total),
            }
        )
    return records


def band_of(
    forecast: float, row: pd.Series | None, chance: float, level: float
) -> dict[str, float]:
    """Return the model's band of one share, and one that holds the chance of so few members too.

    Bands are those of the forecast of everybody at the origin, laid around the forecast of those
    who were seen later.
    """
    if row is None:
        return dict.fromkeys(("lower", "upper", "wide_lower", "wide_upper"), float("nan"))
    z = float(ndtri(0.5 + level / 2))
    below = float(row["share"] - row["lower"])
    above = float(row["upper"] - row["share"])
    return {
        "lower": forecast - below,
        "upper": forecast + above,
        "wide_lower": forecast - float(np.hypot(below, z * chance)),
        "wide_upper": forecast + float(np.hypot(above, z * chance)),
    }


EDGES = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0])


def calibration_rows(
    segment: str, h: int, p: FloatArray, later: AnyArray, w: FloatArray
) -> list[dict[str, Any]]:
    """Return sums of probabilities and of what happened, by bins of the probability."""
    J = p.shape[1]
    hit = np.eye(J)[later]
    bin_of = np.clip(np.searchsorted(EDGES, p, side="right") - 1, 0, len(EDGES) - 2)
    size, forecast, happened = (np.zeros(len(EDGES) - 1) for _ in range(3))
    weight = np.broadcast_to(w[:, None], p.shape)
    np.add.at(size, bin_of, weight)
    np.add.at(forecast, bin_of, weight * p)
    np.add.at(happened, bin_of, weight * hit)
    return [
        {
            "segment": segment,
            "horizon": h,
            "bin": b,
            "n": float(size[b]),
            "said": float(forecast[b]),
            "happened": float(happened[b]),
        }
        for b in np.flatnonzero(size)
    ]


CELL = ["origin", "segment", "horizon", "choice"]


def common_cells(errors: pd.DataFrame) -> pd.DataFrame:
    """Return the errors in cells where every method has a forecast (or, if none, where any has)."""
    methods = errors[errors["forecast"].notna()].groupby(CELL)["method"].nunique()
    counted = errors.merge(methods.rename("methods").reset_index(), on=CELL, how="left")
    common = counted[counted["methods"] == errors["method"].nunique()]
    return counted[counted["forecast"].notna()] if common.empty else common


def cells_in_words(errors: pd.DataFrame) -> str:
    """Say over how many of the cells methods are compared, and the model's error over all."""
    model = errors[errors["method"] == errors["method"].iloc[0]]
    forecast = model[model["forecast"].notna()]
    used = common_cells(errors)[CELL].drop_duplicates()
    if len(used) == len(forecast):
        return ""
    gap = (
        100
        * (forecast["forecast"] - forecast["observed"]).abs().groupby(forecast["horizon"]).mean()
    )
    each = ", ".join(f"{v:.2f} at {h}" for h, v in gap.items())
    return (
        f"errors are over the {len(used):,} of {len(forecast):,} cells (origin, segment, month"
        f" ahead, choice) in which every method has a forecast; over all of them the"
        f" {model['method'].iloc[0]}'s are {each} months ahead"
    )


def summary_of(errors: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return by method and months ahead: error of take-up, coverage of bands, log score, gains.

    Errors are over the cells (origin, segment, choice) in which every method has a forecast.

    Standard errors of gains take origins (the members are the same ones) and segments as fully
    correlated: they are upper bounds.
    """
    import pandas as pd

    order = list(dict.fromkeys(errors["method"]))
    errors = common_cells(errors)
    rows = []
    for method in order:
        for h, cells in errors[errors["method"] == method].groupby("horizon"):
            gap = (cells["forecast"] - cells["observed"]).abs()
            row: dict[str, Any] = {
                "method": method,
                "horizon": h,
                "error": 100 * float(gap.mean()),
                "largest": 100 * float(gap.max()),
                "cells": len(cells),
            }
            for name, low, high in (
                ("coverage", "lower", "upper"),
                ("coverage_wide", "wide_lower", "wide_upper"),
            ):
                banded = cells[cells[low].notna()]
                inside = (banded[low] <= banded["observed"]) & (banded["observed"] <= banded[high])
                row[name] = float(inside.mean()) if len(banded) else float("nan")
            scored = scores[(scores["method"] == method) & (scores["horizon"] == h)]
            for name in ("score", "model_gains", "std_error"):
                weighed = (
                    float(scored["n"] @ scored[name] / scored["n"].sum()) if len(scored) else np.nan
                )
                row[name] = weighed
            rows.append(row)
    return pd.DataFrame(rows)


def pooled_bins(bins: pd.DataFrame) -> pd.DataFrame:
    """Return calibration over all segments, origins and horizons, a row a bin of probability."""
    total = bins.groupby("bin", as_index=False)[["n", "said", "happened"]].sum()
    total["said"] /= total["n"]
    total["happened"] /= total["n"]
    total["from"], total["to"] = EDGES[total["bin"]], EDGES[total["bin"] + 1]
    out: pd.DataFrame = total[["from", "to", "n", "said", "happened"]]
    return out


def by_segment(errors: pd.DataFrame) -> pd.DataFrame:
    """Return the error of take-up by segment, method and months ahead, in points."""
    cells = common_cells(errors)
    cells = cells.assign(error=100 * (cells["forecast"] - cells["observed"]).abs())
    out: pd.DataFrame = cells.groupby(["segment", "method", "horizon"], sort=False, as_index=False)[
        "error"
    ].mean()
    return out
