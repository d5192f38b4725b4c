"""The files of a run: tables, fits, texts, pictures, the report, and what the manifest says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice.run.tables import described, write_table

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.run.job import Job


def write_outputs(
    job: Job, folder: Path, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a run's files into a folder and return its manifest."""
    output, done = job.run.spec.output, job.stages.done
    for name, table in tables.items():
        write_table(table, folder, name, output.csv)
    (folder / "results").mkdir()
    texts = []
    for i, segment in enumerate(job.segments_run):
        fit = done[f"estimate/{segment}"].file("results.npz")
        shutil.copyfile(fit, folder / "results" / f"{i:03d}-{slug(segment)}.npz")
        texts.append(done[f"diagnose/{segment}"].file("summary.txt").read_text(encoding="utf-8"))
    (folder / "summary.txt").write_text("\n".join(texts), encoding="utf-8")
    words = in_words(tables["take_up"], tables["badges"], facts)
    (folder / "forecast.txt").write_text(words + "\n", encoding="utf-8")
    shutil.copyfile(job.counted.file("panel.txt"), folder / "panel.txt")
    if output.picture:
        from dynchoice.plots.forecast import plot_forecast

        level, draws = (facts["forecast"][key] for key in ("level", "draws"))
        plot_forecast(tables["take_up"], level, draws, path=folder / "forecast.png")
    record = {**facts, "tables": described(tables)}
    if output.report:
        from dynchoice.run.report import write_report

        write_report(folder / "report.html", tables, record, job.run.spec.title)
    return record


def slug(segment: Any) -> str:
    """Return a label as part of a file name."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in str(segment))
    return plain.strip("-").lower()[:60] or "segment"


def in_words(take_up: pd.DataFrame, badges: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """Return the last month's take-up by segment and scenario, and what each rests on."""
    table = take_up[take_up["period"] == take_up["period"].max()]
    when, level = table["label"].iloc[0], f"{facts['forecast']['level']:.0%}"
    lines = [f"Take-up in {when} (bands: {level} of draws, parameters and laws)"]
    for segment, part in table.groupby("segment", sort=False):
        lines.append(f"\n{segment}")
        for scenario, rows in part.groupby("scenario", sort=False):
            cells = [
                f"{r.choice} {r.share:.1%}"
                + (f" [{r.lower:.1%}, {r.upper:.1%}]" if r.lower == r.lower else "")
                for r in rows.itertuples()
            ]
            lines.append(f"  {scenario}: " + "; ".join(cells))
    lines.append("\nWhat the scenarios rest on")
    for r in badges[badges["scenario"] != "baseline"].itertuples():
        why = f" ({r.reasons})" if r.reasons else ""
        lines.append(f"  {r.segment}, {r.scenario}: {r.badge}{why}")
    return "\n".join(lines)
