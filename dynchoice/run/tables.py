"""The tables of a run: what each column means, and how estimates and diagnostics become rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.inference.results import Results
from dynchoice.panel.counts import Counts

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.counterfactuals.forecast import Forecast

LABELS = {
    "scenario": "name of the scenario; 'baseline' is the forecast without changes",
    "segment": "segment of members; 'all' stands for all of them together",
    "period": "month of the forecast, 1 is the first",
    "label": "the same month as it reads in the data",
    "choice": "choice of the month",
}
BANDS = {
    "lower": "lower end of the band (level: see the manifest), month by month",
    "upper": "upper end of it",
}
UNIFORM = {
    "lower_uniform": "lower end of the band that holds the whole path at once",
    "upper_uniform": "upper end of it",
}
BADGE = {"badge": "what the number rests on: the data, functional form, the anchor, assumed values"}

SCHEMA: dict[str, dict[str, str]] = {
    "estimates": {
        "segment": LABELS["segment"],
        "parameter": "name of the parameter",
        "estimate": "utils per unit of the feature",
        "std_error": "standard error (kind: see cov_type in the manifest)",
        "tstat": "estimate divided by its standard error",
        "pvalue": "two-sided, normal",
        "lower": "lower end of the 95 % interval",
        "upper": "upper end of it",
        "converged": "whether the fit met its criterion",
    },
    "take_up": {
        **LABELS,
        "share": "share of the members seen in the last month of the data",
        **BANDS,
        **UNIFORM,
        "members": "the same as a number of members",
        **BADGE,
    },
    "flows": {
        **{k: LABELS[k] for k in ("scenario", "segment", "period", "label")},
        "source": "choice of the month before",
        "choice": LABELS["choice"],
        "share": "share of all members that goes from source to choice",
        **BANDS,
    },
    "outcomes": {
        **{k: LABELS[k] for k in ("scenario", "segment", "period", "label")},
        "measure": "what is measured (penetration, renewals, revenue, surplus ...)",
        "value": "shares of customers; money and surplus per customer and month",
        **BANDS,
        **UNIFORM,
        **BADGE,
    },
    "revenue": {
        **{k: LABELS[k] for k in ("scenario", "segment", "period", "label")},
        "value": "payments less refunds per customer and month",
        **BANDS,
        **UNIFORM,
        **BADGE,
    },
    "welfare": {
        "scenario": LABELS["scenario"],
        "segment": LABELS["segment"],
        "change": "mean change of the ex-ante value against the baseline, utils a member",
        **BANDS,
        "money": "the same in money (missing without a price parameter)",
        "money_lower": "lower end of its band",
        "money_upper": "upper end of it",
        **BADGE,
    },
    "long_run": {
        "scenario": LABELS["scenario"],
        "segment": LABELS["segment"],
        "measure": "what is measured, in the new steady state; lifetime values of today's members",
        "value": "shares of customers; money per customer and month",
        **BANDS,
        **BADGE,
    },
    "badges": {
        "scenario": LABELS["scenario"],
        "segment": LABELS["segment"],
        "badge": BADGE["badge"],
        "money": "the same for amounts of money",
        "reasons": "why",
    },
    "diagnostics": {
        "segment": LABELS["segment"],
        "diagnostic": "what is looked at",
        "value": "its value",
        "note": "what it says, in words",
    },
    "fit": {
        "segment": LABELS["segment"],
        "label": "month of the data",
        "choice": LABELS["choice"],
        "observed": "share of the decisions of the month",
        "fitted": "the model's, at the states in which they were made",
        "n": "decisions (sum of weights)",
    },
    "guard": {
        "guard": "which guard rail",
        "subject": "what it looked at",
        "value": "largest value found",
        "limit": "its threshold in the run file (missing: none)",
        "status": "ok, breach, warning, off or none (nothing to compare with)",
        "text": "what it says, in words",
    },
}
"""Tables of a run and the meaning of each column; a manifest repeats it with the types."""

FORECAST = ("take_up", "flows", "outcomes", "revenue", "welfare", "long_run", "badges")


def estimates_table(fits: Mapping[Any, Results]) -> pd.DataFrame:
    """Return all estimates as one tidy table."""
    import pandas as pd

    parts = []
    for segment, r in fits.items():
        interval = r.conf_int()
        parts.append(
            pd.DataFrame(
                {
                    "segment": segment,
                    "parameter": list(r.params.index),
                    "estimate": r.params.to_numpy(),
                    "std_error": r.std_errors.to_numpy(),
                    "tstat": r.tstats.to_numpy(),
                    "pvalue": r.pvalues.to_numpy(),
                    "lower": interval["lower"].to_numpy(),
                    "upper": interval["upper"].to_numpy(),
                    "converged": r.converged,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def forecast_tables(result: Forecast) -> dict[str, pd.DataFrame]:
    """Return the tables of a forecast by name, revenue apart, those with rows."""
    import pandas as pd

    tables = {name: getattr(result, name) for name in FORECAST if name != "revenue"}
    if tables["outcomes"] is not None:
        tables["revenue"] = result.revenue
    filled = {k: v for k, v in tables.items() if isinstance(v, pd.DataFrame) and len(v)}
    for table in filled.values():
        for name in ("choice", "source"):
            if name in table.columns:
                table[name] = table[name].astype(str)
    return filled


def fit_table(segment: str, fit: Results, counts: Counts) -> pd.DataFrame:
    """Return observed and fitted shares of each choice by month."""
    import pandas as pd

    chosen = counts.period_cells[:, 4] == 1
    _, t, s, j, _ = counts.period_cells[chosen].T
    n = counts.period_n[chosen]
    first, periods = int(t.min()), int(t.max() - t.min() + 1)
    J = len(counts.choices)
    observed, fitted = np.zeros((periods, J)), np.zeros((periods, J))
    np.add.at(observed, (t - first, j), n)
    np.add.at(fitted, t - first, n[:, None] * fit.ccp[s])
    total = observed.sum(axis=1)
    period, choice = np.divmod(np.arange(periods * J), J)
    kept = total[period] > 0
    size = np.maximum(total, 1e-300)[:, None]
    return pd.DataFrame(
        {
            "segment": segment,
            "label": [counts.period_label(first + int(p)) for p in period],
            "choice": [str(counts.choices[c]) for c in choice],
            "observed": (observed / size).reshape(-1),
            "fitted": (fitted / size).reshape(-1),
            "n": total[period],
        }
    )[kept].reset_index(drop=True)


def diagnostics_of(segment: str, fit: Results, counts: Counts) -> pd.DataFrame:
    """Return what a reader should know of one fit: convergence, fit, identification, support."""
    import pandas as pd

    identified, support = fit.identification(), fit.support()
    table = fit_table(segment, fit, counts)
    apart = (table["observed"] - table["fitted"]).abs()
    worst = table.loc[apart.idxmax()]
    weak = identified.frame()
    rows = [
        ("converged", float(fit.converged), fit.message),
        ("gradient", float(fit.optimization.get("gradient", np.nan)), "scaled, at the estimate"),
        ("log-likelihood per decision", fit.loglik / fit.nobs, ""),
        ("pseudo R-squared", fit.rsquared_mcfadden, "against equal probabilities"),
        (
            "largest gap of fitted shares, points",
            100 * float(apart.max()),
            f"{worst['choice']} in {worst['label']}",
        ),
        ("condition number", identified.condition, "of the scaled information"),
        ("flat directions", float(len(identified.flat)), "; ".join(identified.flat)),
        (
            "weak directions",
            float((weak["verdict"] == "weak").sum()),
            "; ".join(weak.loc[weak["verdict"] == "weak", "direction"]),
        ),
        ("hardest direction", float(identified.eigenvalues[0]), identified.direction(0)),
        ("states seen", float(support.seen), f"of {support.states.size:,}"),
        ("empty cells", float(support.empty_cells), "choices offered, never taken, in states seen"),
        ("thin cells", float(support.thin_cells), "taken fewer than five times"),
        ("overlap", support.overlap, "share of free choices made where another was made as well"),
    ]
    records = [
        {"segment": segment, "diagnostic": d, "value": float(v), "note": note}
        for d, v, note in rows
    ]
    return pd.DataFrame(records)


def write_table(table: pd.DataFrame, folder: Path, name: str, csv: bool = False) -> None:
    """Write a table as Parquet, and as CSV on request."""
    table.to_parquet(folder / f"{name}.parquet", index=False)
    if csv:
        table.to_csv(folder / f"{name}.csv", index=False)


def describe_tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return columns of tables with their types and meanings, for the manifest."""
    return {
        name: {
            "rows": len(table),
            "columns": {
                c: {"type": str(table[c].dtype), "meaning": SCHEMA.get(name, {}).get(c, "")}
                for c in table.columns
            },
        }
        for name, table in tables.items()
    }
