"""``report.html``: one self-contained page, for a manager first and for an economist after.

Nothing in it depends on when or where it was written: the same run has the same bytes. Every text
that comes from data or run file is escaped by the template engine; pictures escape their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice.names import ALL, BASELINE
from dynchoice.plots import report as figures

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.run.schema import RunFile

MEASURES = ("penetration", "revenue", "profit", "surplus", "churn")
MOST_FIGURES = 24
"""Segments that get pictures of their own; tables have them all."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in the rows, its head, and how a value is shown."""

    key: str
    title: str
    show: Callable[[Any], str] = str
    number: bool = False


def percent(value: float | None) -> str:
    """Return a share as a percentage."""
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """Return a difference of shares in points."""
    return "" if value is None or math.isnan(value) else f"{100 * value:+.1f}"


def four_digits(value: float | None) -> str:
    """Return a number with four digits."""
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def missing(value: float | None) -> bool:
    """Return whether there is no number."""
    return value is None or math.isnan(value)


def share(key: str, title: str) -> Column:
    """Return a column of shares."""
    return Column(key, title, percent, True)


def number(key: str, title: str) -> Column:
    """Return a column of numbers."""
    return Column(key, title, four_digits, True)


TAKE_UP = (
    Column("segment", "Segment"),
    Column("scenario", "Scenario"),
    Column("choice", "Choice"),
    share("share", "Share"),
    share("lower", "Lower"),
    share("upper", "Upper"),
    Column("change", "Against baseline, points", points, True),
    Column("badge", "Rests on"),
)
OUTCOMES = (
    Column("segment", "Segment"),
    Column("scenario", "Scenario"),
    Column("measure", "Measure"),
    number("value", "Value"),
    number("lower", "Lower"),
    number("upper", "Upper"),
    Column("badge", "Rests on"),
)
WELFARE = (
    Column("segment", "Segment"),
    Column("scenario", "Scenario"),
    number("change", "Utils a member"),
    number("lower", "Lower"),
    number("upper", "Upper"),
    number("money", "In money"),
    number("money_lower", "Lower"),
    number("money_upper", "Upper"),
    Column("badge", "Rests on"),
)
GUARD = (
    Column("guard", "Guard rail"),
    Column("status", "Status"),
    number("value", "Found"),
    number("limit", "Limit"),
    Column("text", "What was found"),
)
BADGES = (
    Column("scenario", "Scenario"),
    Column("segment", "Segment"),
    Column("badge", "Rests on"),
    Column("reasons", "Why"),
)
ESTIMATES = (
    Column("segment", "Segment"),
    Column("parameter", "Parameter"),
    number("estimate", "Estimate"),
    number("std_error", "Std. error"),
    number("tstat", "t"),
    number("pvalue", "p"),
    number("lower", "Lower"),
    number("upper", "Upper"),
)
DIAGNOSTICS = (
    Column("segment", "Segment"),
    Column("diagnostic", "Diagnostic"),
    number("value", "Value"),
    Column("note", "Note"),
)
INPUTS = (
    Column("name", "File"),
    Column("bytes", "Bytes", lambda v: f"{v:,}", True),
    Column("sha256", "sha256"),
)


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """Return a page of the package's templates; everything is escaped but pictures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dynchoice.run", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    from dynchoice import __version__

    return environment.get_template(template).render(version=__version__, **context)


def rows_of(table: pd.DataFrame, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return a table's rows as mappings, NaN as None."""
    cells = table.reindex(columns=[c.key for c in columns]).astype(object)
    plain = cells.where(cells.notna(), None).to_dict("records")
    for row in plain:
        for c in columns:
            if not c.number and row[c.key] is None:
                row[c.key] = ""
    return [{str(k): v for k, v in row.items()} for row in plain]


def as_picture(title: str, svg: str) -> dict[str, Any]:
    """Return a picture for a page."""
    from markupsafe import Markup

    return {"title": title, "svg": Markup(svg)}


def write_report(
    path: Path,
    tables: Mapping[str, pd.DataFrame],
    record: Mapping[str, Any],
    title: str,
) -> None:
    """Write the report of a run.

    Parameters
    ----------
    path : Path
        File to write; ``summary.txt`` and ``panel.txt`` stand beside it.
    tables : mapping of DataFrame
        The run's tables.
    record : mapping
        What the manifest says.
    title : str
    """
    take_up = tables["take_up"]
    months = list(take_up[take_up["scenario"] == BASELINE].drop_duplicates("period")["label"])
    segments, choices = (list(dict.fromkeys(take_up[k])) for k in ("segment", "choice"))
    first = [ALL] if ALL in segments else []
    ordered = [*first, *[m for m in segments if m not in first]]
    last = last_month(take_up)
    fits = list(dict.fromkeys(tables["estimates"]["segment"]))
    context: dict[str, Any] = {
        "title": title,
        "panel": record["panel"],
        "months": months,
        "forecast": record["forecast"],
        "verdict": verdict(record, tables.get("guard")),
        "short": in_short(last, record),
        "take_up_figures": [
            as_picture(m, figures.take_up(take_up, m, choices, f"take-up-{i}"))
            for i, m in enumerate(ordered[:MOST_FIGURES])
        ],
        "take_up_rows": rows_of(last, TAKE_UP),
        "outcomes": rows_of(chosen_outcomes(tables), OUTCOMES) if "outcomes" in tables else [],
        "welfare": welfare_rows(tables),
        "guard": rows_of(tables["guard"], GUARD) if "guard" in tables else [],
        "notes": record["notes"],
        "badges": rows_of(tables["badges"], BADGES) if "badges" in tables else [],
        "unknown": list_unknown(tables["diagnostics"]),
        "cov_types": ", ".join(dict.fromkeys(f["cov_type"] for f in record["fits"].values())),
        "estimate_figures": [
            as_picture(m, figures.estimates(tables["estimates"], m, f"estimates-{i}"))
            for i, m in enumerate(fits[:MOST_FIGURES])
        ],
        "estimates": rows_of(tables["estimates"], ESTIMATES),
        "fit_figures": [
            as_picture(m, figures.fitted(tables["fit"], m, choices_of(tables["fit"]), f"fit-{i}"))
            for i, m in enumerate(fits[:MOST_FIGURES])
        ],
        "diagnostics": rows_of(tables["diagnostics"], DIAGNOSTICS),
        "summary": (path.parent / "summary.txt").read_text(encoding="utf-8"),
        "panel_text": (path.parent / "panel.txt").read_text(encoding="utf-8"),
        "seed": record["seed"],
        "digest": record["digest"],
        "inputs": [dict(f) for f in record["inputs"]],
        "config": json.dumps(record["config"], indent=2, ensure_ascii=False),
        "versions": "\n".join(f"{k} {v}" for k, v in record["versions"].items()),
        "take_up_columns": TAKE_UP,
        "outcome_columns": OUTCOMES,
        "welfare_columns": WELFARE,
        "guard_columns": GUARD,
        "badge_columns": BADGES,
        "estimate_columns": ESTIMATES,
        "diagnostic_columns": DIAGNOSTICS,
        "input_columns": INPUTS,
    }
    path.write_text(render_page("report.html", context), encoding="utf-8")


def choices_of(table: pd.DataFrame) -> list[str]:
    """Return the choices of a table, in order."""
    return list(dict.fromkeys(table["choice"]))


def last_month(take_up: pd.DataFrame) -> pd.DataFrame:
    """Return the last period's take-up, with its change against the baseline."""
    last = take_up[take_up["period"] == take_up["period"].max()].copy()
    base = last[last["scenario"] == BASELINE].set_index(["segment", "choice"])["share"]
    keys = list(zip(last["segment"], last["choice"], strict=True))
    last["change"] = last["share"].to_numpy() - base.reindex(keys).to_numpy()
    last.loc[last["scenario"] == BASELINE, "change"] = float("nan")
    return last


def chosen_outcomes(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the measures of the last period that a manager asks for first."""
    table = tables["outcomes"]
    table = table[table["period"] == table["period"].max()]
    return table[table["measure"].isin(MEASURES)]


def welfare_rows(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return welfare by scenario and segment, the baseline's zeros apart."""
    if "welfare" not in tables:
        return []
    table = tables["welfare"]
    return rows_of(table[table["scenario"] != BASELINE], WELFARE)


def verdict(record: Mapping[str, Any], guard: pd.DataFrame | None) -> dict[str, str]:
    """Return in a few words whether the run can be relied on."""
    if record["status"] == "partial":
        return {"status": "partial", "text": "Some segments only: not published"}
    broken = [] if guard is None else list(guard[guard["status"] == "breach"]["guard"])
    if record["status"] == "held":
        return {"status": "breach", "text": f"Held, not published: {', '.join(broken)}"}
    if broken:
        return {"status": "breach", "text": f"Published by hand in spite of: {', '.join(broken)}"}
    warned = [] if guard is None else list(guard[guard["status"] == "warning"]["guard"])
    if warned:
        return {"status": "warning", "text": f"Published; look at: {', '.join(warned)}"}
    return {"status": "ok", "text": "All fits converged; no guard rail was touched"}


def in_short(last: pd.DataFrame, record: Mapping[str, Any]) -> list[str]:
    """Return one sentence a scenario about everyone, or about each segment if there is one only."""
    segments = list(dict.fromkeys(last["segment"]))
    of = ALL if ALL in segments else segments[0]
    when = last["label"].iloc[0]
    out = []
    for scenario, rows in last[last["segment"] == of].groupby("scenario", sort=False):
        parts = []
        for r in rows.itertuples():
            band = "" if missing(r.lower) else f" ({100 * r.lower:.1f} to {100 * r.upper:.1f})"
            moved = "" if missing(r.change) else f", {points(r.change)} points"
            parts.append(f"{r.choice} {percent(r.share)}{band}{moved}")
        badge = rows["badge"].iloc[0]
        rests = "" if scenario == BASELINE or not badge else f" This {in_words(badge)}."
        name = "If nothing changes" if scenario == BASELINE else f"With “{scenario}”"
        out.append(f"{name}, in {when}: {'; '.join(parts)}.{rests}")
    return out


def in_words(badge: str) -> str:
    """Return a badge as the end of a sentence."""
    return "is identified by the data" if badge == "identified" else badge


def list_unknown(diagnostics: pd.DataFrame) -> list[str]:
    """Return in words what stays open by segment."""
    out = []
    for segment, rows in diagnostics.groupby("segment", sort=False):
        values = rows.set_index("diagnostic")
        for kind in ("flat", "weak"):
            row = values.loc[f"{kind} directions"]
            if row["value"] > 0:
                out.append(f"{segment}: the data leave {kind}: {row['note']}.")
        hardest = values.loc["hardest direction", "note"]
        thin, empty = (int(values.loc[f"{k} cells", "value"]) for k in ("thin", "empty"))
        out.append(
            f"{segment}: hardest to tell apart: {hardest}. {empty:,} choices were never taken in"
            f" states that were seen, {thin:,} fewer than five times."
        )
    return out


SUMMARY = (
    Column("method", "Method"),
    Column("horizon", "Periods ahead", str, True),
    number("error", "Error, points"),
    number("largest", "Largest"),
    share("coverage", "In band"),
    share("coverage_wide", "With chance"),
    number("score", "Log score"),
    number("model_gains", "Model gains"),
    number("std_error", "Std. error"),
)
BY_SEGMENT = (
    Column("segment", "Segment"),
    Column("method", "Method"),
    Column("horizon", "Periods ahead", str, True),
    number("error", "Error, points"),
)
CALIBRATION = (
    share("from", "From"),
    share("to", "To"),
    number("n", "Choices"),
    share("said", "Said"),
    share("happened", "Happened"),
)


def write_backtest(
    path: Path, tables: Mapping[str, pd.DataFrame], record: Mapping[str, Any], spec: RunFile
) -> None:
    """Write the page of a backtest."""
    summary = tables["summary"]
    context = {
        "title": f"{spec.title}: backtest",
        "panel": record["panel"],
        "origins": record["origins"],
        "failed": record["failed"],
        "level": spec.forecast.level,
        "seen": float(tables["errors"]["seen"].mean()),
        "short": backtest_in_short(summary),
        "figures": [
            as_picture(
                "Error of take-up by periods ahead",
                figures.backtest_figure("errors", summary, "errors"),
            ),
            as_picture(
                "Forecast against observed shares",
                figures.backtest_figure("shares", tables["errors"], "shares"),
            ),
            as_picture(
                "Probabilities said, and how often it happened",
                figures.backtest_figure("calibration", tables["calibration"], "calibration"),
            ),
        ],
        "summary": rows_of(summary, SUMMARY),
        "summary_columns": SUMMARY,
        "by_segment": rows_of(tables["by_segment"], BY_SEGMENT),
        "segment_columns": BY_SEGMENT,
        "calibration": rows_of(tables["calibration"], CALIBRATION),
        "calibration_columns": CALIBRATION,
        "digest": record["digest"],
        "config": json.dumps(record["config"], indent=2, ensure_ascii=False),
        "versions": "\n".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    path.write_text(render_page("backtest.html", context), encoding="utf-8")


def backtest_in_short(summary: pd.DataFrame) -> list[str]:
    """Return one sentence a method: its error beside the model's, and the gain in log score."""
    far = summary["horizon"].max()
    last = summary[summary["horizon"] == far].set_index("method")
    model = last.loc["model"]
    out = [
        f"{far} periods ahead the model's shares are off by {model['error']:.2f} points on average;"
        f" {model['coverage']:.0%} of what happened lies in its bands, {model['coverage_wide']:.0%}"
        " where the chance of so many members is added."
    ]
    for method, row in last.drop(index="model").iterrows():
        if missing(row["error"]):
            out.append(f"{method}: too little data for it.")
            continue
        text = f"{method}: off by {row['error']:.2f} points"
        if not missing(row["model_gains"]):
            z = row["model_gains"] / row["std_error"] if row["std_error"] > 0 else math.inf
            word = "no difference that the data can tell"
            if abs(z) > 2:
                word = "the model is better" if z > 0 else "it beats the model"
            text += (
                f"; log score {row['model_gains']:+.4f} in the model's favour (standard error"
                f" {row['std_error']:.4f}): {word}"
            )
        out.append(f"{text}.")
    return out
