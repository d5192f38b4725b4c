"""Guard rails: when a run is kept for inspection instead of being published.

New estimates and forecasts are set beside those of the run before, its forecast beside what then
happened; rows refused and directions that the data leave flat are looked at each time. A breach is
raised as a :class:`dynchoice.CheckError` (exit code 4) by :mod:`dynchoice.run.release`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.names import ALL, BASELINE
from dynchoice.run.publish import Published
from dynchoice.run.schema import Guard, Limit
from dynchoice.typing import Level

if TYPE_CHECKING:
    import pandas as pd

OK, BREACH, WARNING, OFF, NONE = "ok", "breach", "warning", "off", "none"


@dataclass(frozen=True)
class Finding:
    """What one guard rail found.

    ``value`` is the largest found, ``limit`` its threshold, and ``status`` one of ``ok``,
    ``breach``, ``warning``, ``off`` and ``none`` (there is nothing to compare with).
    """

    guard: str
    subject: str
    value: float
    limit: float
    status: str
    text: str


def judge(guard: str, subject: str, value: float, limit: Limit, text: str) -> Finding:
    """Return the finding of a value against a limit; a value that is no number is a breach."""
    if limit == "off":
        return Finding(guard, subject, value, np.nan, OFF, text)
    status = OK if value <= float(limit) else BREACH
    return Finding(guard, subject, value, float(limit), status, text)


def nothing_to_compare(guard: str, why: str) -> Finding:
    """Return the finding of a guard rail that has nothing to compare."""
    return Finding(guard, "", np.nan, np.nan, NONE, why)


def guard_rails(
    guard: Guard,
    count: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    cohorts: pd.DataFrame,
    before: Published | None,
    past: list[Published],
) -> list[Finding]:
    """Return the findings of all guard rails.

    Parameters
    ----------
    guard : Guard
        Thresholds of the run file.
    count : mapping
        Facts of the counting stage: rows, refused, first and last period, segments.
    tables : mapping of DataFrame
        ``estimates``, ``take_up`` and ``diagnostics`` of the new run.
    cohorts : pandas.DataFrame
        What members seen at earlier periods chose since (:func:`observed_since`).
    before : Published, optional
        The run that is published now.
    past : list of Published
        Complete runs, oldest first: the last one that foresaw a month now observed is calibrated.
    """
    share = count["refused"] / max(count["rows"] + count["refused"], 1)
    out = [
        judge(
            "refused",
            "rows",
            share,
            guard.refused,
            f"{count['refused']:,} of {count['rows'] + count['refused']:,} rows refused or left out"
            f" ({share:.2%})",
        )
    ]
    out += find_flat_directions(guard, tables["diagnostics"])
    if before is None:
        out += [
            nothing_to_compare(g, "no run before this one")
            for g in ("drift of estimates", "drift of take-up", "drift of scenarios", "lost")
        ]
    else:
        out += [
            drift_of_estimates(guard, tables["estimates"], before),
            drift_of_take_up(guard, tables["take_up"], before),
            drift_of_scenarios(guard, tables["take_up"], before),
            *find_losses(guard, count, before),
        ]
    out.append(compare_with_past(guard, cohorts, past))
    return out


def find_flat_directions(guard: Guard, diagnostics: pd.DataFrame) -> list[Finding]:
    """Return a finding for each kind of direction that the data leave flat or weak."""
    out = []
    for kind in ("flat", "weak"):
        rows = diagnostics[(diagnostics["diagnostic"] == f"{kind} directions")]
        rows = rows[rows["value"] > 0]
        if rows.empty:
            continue
        directions = "; ".join(f"{r.segment}: {r.note}" for r in rows.itertuples())
        hold = kind == "flat" and guard.identification == "hold"
        out.append(
            Finding(
                "identification",
                f"{len(rows)} segment(s)",
                float(rows["value"].sum()),
                0.0 if hold else np.nan,
                BREACH if hold else WARNING,
                f"the data leave {kind}: {directions}",
            )
        )
    if not out:
        out.append(Finding("identification", ALL, 0.0, 0.0, OK, "no flat or weak direction"))
    return out


def drift_of_estimates(guard: Guard, new: pd.DataFrame, before: Published) -> Finding:
    """Return the largest change of an estimate, in standard errors of the run before."""
    old = before.table("estimates")
    name = "drift of estimates"
    if old is None:
        return nothing_to_compare(name, f"{before.folder.name} has no estimates that can be read")
    keys = ["segment", "parameter"]
    both = new.merge(old, on=keys, suffixes=("", "_old"))
    if both.empty:
        return nothing_to_compare(name, "no parameter is in both runs")
    apart = (both["estimate"] - both["estimate_old"]).abs()
    unit = both["std_error_old"].where(both["std_error_old"] > 0, both["std_error"])
    # what has no standard error, or is no number, has no measure in which it stays within a limit
    drift = np.where(apart == 0, 0.0, apart / unit.where(unit > 0))
    both["drift"] = np.where(np.isnan(drift), np.inf, drift)
    worst = both.loc[both["drift"].idxmax()]
    fresh = len(new) - len(both)
    more = f"; {fresh} parameter(s) are new" if fresh else ""
    return judge(
        name,
        f"{worst['segment']}: {worst['parameter']}",
        float(worst["drift"]),
        guard.drift_estimates,
        f"{worst['segment']}: {worst['parameter']} moved from {worst['estimate_old']:.4g} to"
        f" {worst['estimate']:.4g}, {worst['drift']:.1f} standard errors{more}",
    )


def drift_of_take_up(guard: Guard, new: pd.DataFrame, before: Published) -> Finding:
    """Return the largest change of the baseline's take-up for the same month, in points."""
    old = before.table("take_up")
    name = "drift of take-up"
    if old is None:
        return nothing_to_compare(name, f"{before.folder.name} has no forecast that can be read")
    keys = ["segment", "label", "choice"]
    new, old = (t[t["scenario"] == BASELINE] for t in (new, old))
    both = new.merge(old, on=keys, suffixes=("", "_old"))
    if both.empty:
        return nothing_to_compare(name, "no month is in both forecasts")
    both["drift"] = 100 * (both["share"] - both["share_old"]).abs()
    worst = both.loc[both["drift"].idxmax()]
    return judge(
        name,
        f"{worst['segment']}: {worst['choice']}",
        float(worst["drift"]),
        guard.drift_take_up,
        f"{worst['segment']}: {worst['choice']} in {worst['label']} was {worst['share_old']:.1%},"
        f" is {worst['share']:.1%}: {worst['drift']:.1f} points",
    )


def drift_of_scenarios(guard: Guard, new: pd.DataFrame, before: Published) -> Finding:
    """Return the largest change of a scenario of the same name, in points: it never holds a run.

    The run file may mean another scenario by it, on purpose or by a slip.
    """
    old, name = before.table("take_up"), "drift of scenarios"
    if old is None:
        return nothing_to_compare(name, f"{before.folder.name} has no forecast that can be read")
    keys = ["scenario", "segment", "label", "choice"]
    new, old = (t[t["scenario"] != BASELINE] for t in (new, old))
    both = new.merge(old, on=keys, suffixes=("", "_old"))
    if both.empty:
        return nothing_to_compare(name, "no scenario is in both forecasts")
    both["drift"] = 100 * (both["share"] - both["share_old"]).abs()
    worst = both.loc[both["drift"].idxmax()]
    finding = judge(
        name,
        f"{worst['scenario']}: {worst['segment']}: {worst['choice']}",
        float(worst["drift"]),
        guard.drift_take_up,
        f"{worst['scenario']}: {worst['segment']}: {worst['choice']} in {worst['label']} was"
        f" {worst['share_old']:.1%}, is {worst['share']:.1%}: {worst['drift']:.1f} points",
    )
    return replace(finding, status=WARNING) if finding.status == BREACH else finding


def find_losses(guard: Guard, count: Mapping[str, Any], before: Published) -> list[Finding]:
    """Return what the run before had and this one lacks: segments, months, half of its rows."""
    old = before.manifest.get("panel", {})
    problems = []
    gone = [m for m in before.manifest.get("fits", {}) if m not in count["chosen"]]
    if gone:
        problems.append(f"segment(s) {', '.join(gone[:3])} are gone")
    if count["kind"] == old.get("kind") and count["last"] < old.get("last", count["last"]):
        problems.append(f"data end in {count['last_label']}, ended in {old['last_label']}")
    if count["rows"] < old.get("rows", 0) / 2:
        problems.append(f"{count['rows']:,} rows, there were {old['rows']:,}")
    old_fits, new_fits = before.manifest.get("fits", {}), count.get("parameters", {})
    for m in [m for m in old_fits if m in new_fits]:
        missing = [p for p in old_fits[m].get("params", {}) if p not in new_fits[m]]
        if missing:
            problems.append(f"parameter(s) {', '.join(missing[:3])} of {m} are gone")
            break
    if not problems:
        return [Finding("lost", "", 0.0, 0.0, OK, "no segment, month or half of the rows is gone")]
    hold = guard.lost == "hold"
    text = "; ".join(problems)
    return [Finding("lost", "data", float(len(problems)), 0.0, BREACH if hold else WARNING, text)]


def unreadable(guard: Guard) -> Finding:
    """Return the finding where there was a run before and it cannot be read."""
    text = "the run published before cannot be read: there is nothing to compare with"
    status = BREACH if guard.lost == "hold" else WARNING
    return Finding("lost", "the run before", 1.0, 0.0, status, text)


def compare_with_past(guard: Guard, cohorts: pd.DataFrame, past: list[Published]) -> Finding:
    """Return how far the last forecast was from what its members then did, in points."""
    name = "calibration"
    if cohorts.empty:
        return nothing_to_compare(name, "no month is observed after any origin")
    for run in reversed(past):
        last = run.manifest.get("panel", {}).get("last")
        observed = cohorts[cohorts["origin"] == last]
        forecast = run.table("take_up")
        if observed.empty or forecast is None:
            continue
        base = forecast[forecast["scenario"] == BASELINE]
        size = base[base["period"] == 1].groupby("segment")["members"].sum()
        both = base.merge(observed, on=["segment", "period", "choice"])
        both["first_members"] = both["segment"].map(size)
        if both.empty:
            continue
        both["gap"] = 100 * (both["share"] - both["observed"]).abs()
        # the chance in what so many members do is no mistake of the forecast
        p = both["share"].clip(0, 1)
        both["noise"] = 100 * np.sqrt(p * (1 - p) / both["members_seen"])
        both["beyond"] = (both["gap"] - 2 * both["noise"]).clip(lower=0)
        worst = both.loc[both["beyond"].idxmax()]
        seen_again = 100 * worst["members_seen"] / worst["first_members"]
        return judge(
            name,
            f"{worst['segment']}: {worst['choice']}",
            float(worst["beyond"]),
            guard.calibration,
            f"{run.folder.name} foresaw {worst['share']:.1%} {worst['choice']} of"
            f" {worst['segment']} in {worst['label']}; it was {worst['observed']:.1%}:"
            f" {worst['gap']:.1f} points, of which {2 * worst['noise']:.1f} may be chance"
            f" ({seen_again:.0f} % of its members were seen then)",
        )
    return nothing_to_compare(name, "no earlier run foresaw a month that is observed now")


def observed_since(
    followed: Mapping[int, pd.DataFrame], choices: tuple[Level, ...]
) -> pd.DataFrame:
    """Return what members seen at earlier origins chose since.

    Parameters
    ----------
    followed : mapping of int -> DataFrame
        Number of the origin's period -> :func:`dynchoice.panel.cohorts.followed`.
    choices : tuple of labels

    Returns
    -------
    pandas.DataFrame
        ``origin``, ``segment`` (``all`` too), ``period`` after the origin, ``choice``, ``observed``
        share and ``members_seen``.
    """
    import pandas as pd

    rows = []
    for origin, table in followed.items():
        labels = sorted(table["segment"].unique())
        groups = [(m, table[table["segment"] == m]) for m in labels]
        if len(labels) > 1:
            groups.append((ALL, table))
        for segment, rows_of in groups:
            for period, month in rows_of.groupby("period"):
                total = float(month["n"].sum())
                by_choice = month.groupby("later")["n"].sum()
                for j, label in enumerate(choices):
                    rows.append(
                        {
                            "origin": origin,
                            "segment": str(segment),
                            "period": int(str(period)),
                            "choice": str(label),
                            "observed": float(by_choice.get(j, 0.0)) / total,
                            "members_seen": total,
                        }
                    )
    columns = ["origin", "segment", "period", "choice", "observed", "members_seen"]
    return pd.DataFrame(rows, columns=columns)


def breaches(findings: list[Finding]) -> list[Finding]:
    """Return those that keep a run from being published."""
    return [f for f in findings if f.status == BREACH]


def guard_table(findings: list[Finding]) -> pd.DataFrame:
    """Return findings as a table."""
    import pandas as pd

    return pd.DataFrame([asdict(f) for f in findings])
