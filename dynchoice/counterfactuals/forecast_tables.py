"""Paths laid out as tidy tables, with bands pointwise and over whole paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.accounts import measures
from dynchoice.counterfactuals.badges import ORDER, Badge
from dynchoice.counterfactuals.bands import Bands, bands_of
from dynchoice.counterfactuals.group_paths import GroupPaths
from dynchoice.counterfactuals.lifetime_value import LongRun
from dynchoice.counterfactuals.population import Group
from dynchoice.counterfactuals.roll_forward import Sums
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.names import ALL
from dynchoice.typing import FloatArray, Level


@dataclass(frozen=True)
class Cut:
    """A group of rows of the tables: its labels, and the (fit, group) numbers that it adds up.

    ``other`` is a type or region, or ``"all"``.
    """

    segment: str
    other: str
    members: tuple[tuple[int, int], ...]


def cuts(tasks: Sequence[list[Group]], by: str | None) -> list[Cut]:
    """Return the groups of rows: segments, all together, and each split ``by``."""
    listed = [
        (t, g, str(group.segment), str(group.kind if by == "type" else group.region))
        for t, groups in enumerate(tasks)
        for g, group in enumerate(groups)
    ]
    segments = list(dict.fromkeys(segment for _, _, segment, _ in listed))
    if len(segments) > 1:
        segments.append(ALL)
    others = [ALL]
    if by is not None:
        others = list(dict.fromkeys(other for *_, other in listed))
        others += [ALL] if len(others) > 1 else []
    out = []
    for segment in segments:
        for other in others:
            members = tuple(
                (t, g) for t, g, s, o in listed if segment in (ALL, s) and other in (ALL, o)
            )
            if members:
                out.append(Cut(segment, other, members))
    return out


def lay_out(
    done: Sequence[GroupPaths],
    tasks: Sequence[list[Group]],
    scenarios: Sequence[Scenario],
    labels: list[str],
    *,
    level: float,
    kind: str,
    by: str | None,
) -> dict[str, Any]:
    """Return the tables of a forecast by name.

    ``tasks`` are the groups of each fit, whose paths are ``done``; ``kind`` is the kind of bands.
    """
    choices = done[0].choices  # segments may differ only by what they share
    reader = Reader(done, kind, level)
    rows: dict[str, list[Any]] = {"take_up": [], "flows": [], "welfare": [], "outcomes": []}
    long_rows: list[dict[str, Any]] = []
    for i, scenario in enumerate(scenarios):
        for cut in cuts(tasks, by):
            head = {"scenario": scenario.name, "segment": cut.segment}
            if by is not None:
                head[by] = cut.other
            size = reader.total(i, cut)
            rows["take_up"].append(_take_up(head, reader, i, cut, choices[i], size))
            rows["flows"].append(_flows(head, reader, i, cut, choices[i], size))
            rows["welfare"].append(_welfare(head, reader, i, cut, size))
            if done[0].names[i]:
                rows["outcomes"].append(_outcomes(head, reader, i, cut, size))
                long_rows += _long_run(head, reader, i, cut, size)
    out: dict[str, Any] = {}
    for name in ("take_up", "flows", "outcomes"):
        parts = rows[name]
        table = pd.concat(parts, ignore_index=True) if parts else None
        if table is not None:
            text = [labels[t - 1] if labels else str(t) for t in table["period"]]
            table.insert(list(table.columns).index("period") + 1, "label", text)
        out[name] = table
    out["welfare"] = pd.DataFrame(rows["welfare"])
    out["long_run"] = pd.DataFrame(long_rows) if long_rows else None
    out["badges"] = badge_table(done, tasks, scenarios)
    for name in ("take_up", "welfare", "outcomes", "long_run"):
        if out[name] is not None:
            _add_badges(out[name], out["badges"], money=name == "welfare")
    return out


def _add_badges(table: pd.DataFrame, badges: pd.DataFrame, money: bool) -> None:
    """Add the column ``badge``: the scenario's, or money's for amounts in money."""
    by_scenario = badges.set_index(["scenario", "segment"])
    keys = pd.MultiIndex.from_frame(table[["scenario", "segment"]])
    in_money = np.full(len(table), money)
    if "measure" in table.columns:
        in_money = (table["measure"] == "surplus").to_numpy()
    columns = (by_scenario[name].reindex(keys).to_numpy() for name in ("money", "badge"))
    table["badge"] = np.where(in_money, *columns)


def badge_table(
    done: Sequence[GroupPaths], tasks: Sequence[list[Group]], scenarios: Sequence[Scenario]
) -> pd.DataFrame:
    """Return scenario, segment, badge, money's badge, reasons; all rest on the weakest."""
    rows: list[dict[str, str]] = []
    for i, scenario in enumerate(scenarios):
        by_segment: dict[str, list[Badge]] = {}
        for paths, groups in zip(done, tasks, strict=True):
            for group in groups:
                badges = by_segment.setdefault(str(group.segment), [])
                badge = paths.badges[i]
                badges += [] if badge is None else [badge]
        if len(by_segment) > 1:
            by_segment[ALL] = [b for badges in by_segment.values() for b in badges]
        for segment, badges in by_segment.items():
            rows.append(
                {
                    "scenario": scenario.name,
                    "segment": segment,
                    "badge": max((b.label for b in badges), key=ORDER.index, default=""),
                    "money": max((b.money for b in badges), key=ORDER.index, default=""),
                    "reasons": "; ".join(dict.fromkeys(r for b in badges for r in b.reasons)),
                }
            )
    return pd.DataFrame(rows)


class Reader:
    """Adds up the groups of a cut at the estimates and at every draw, and makes bands of sums.

    Everywhere ``i`` is a scenario, ``t`` a fit, ``g`` one of its groups, ``b`` a draw (-1: the
    estimates).
    """

    def __init__(self, done: Sequence[GroupPaths], kind: str, level: float) -> None:
        self.done, self.kind, self.level = done, kind, level
        lengths = [len(d.drawn) for d in done]
        self.draws = sum(lengths) if kind == "delta" else min(lengths, default=0)
        self.parts = lengths

    def bands(self, point: FloatArray, drawn: Sequence[FloatArray] | FloatArray) -> Bands:
        """Return the bands of a path (T, ...) from its draws."""
        return bands_of(point, drawn, self.level, self.kind, self.parts)

    def band(self, point: float, drawn: Sequence[float]) -> tuple[float, float]:
        """Return the lower and upper end of a number from its draws."""
        bands = self.bands(np.atleast_1d(point), [np.atleast_1d(value) for value in drawn])
        return float(bands.lower[0]), float(bands.upper[0])

    def _sums(self, t: int, b: int, i: int, g: int) -> Sums:
        """Return what a group adds up to at a draw of its fit."""
        paths = self.done[t]
        return paths.point[i][g] if b < 0 else paths.drawn[b][i][g]

    def alpha(self, t: int, b: int) -> float:
        """Return the price parameter of a fit at a draw."""
        return float(self.done[t].alpha[self._draw_of(t, b) + 1])

    def _draw_of(self, t: int, b: int) -> int:
        """Return which draw of fit ``t`` the pooled draw ``b`` takes.

        Draws of segments are paired: they are independent samples. Differences of the delta
        method move one fit at a time.
        """
        if b < 0 or self.kind != "delta":
            return b
        first = sum(self.parts[:t])
        return b - first if first <= b < first + self.parts[t] else -1

    def value(self, i: int, cut: Cut, read: Callable[[Sums, float], Any], b: int = -1) -> Any:
        """Return the sum over a cut of ``read(sums, alpha)`` at a draw."""
        return sum(
            read(self._sums(t, self._draw_of(t, b), i, g), self.alpha(t, b)) for t, g in cut.members
        )

    def long_runs(self, i: int, cut: Cut, b: int = -1) -> list[tuple[LongRun, float]] | None:
        """Return the long runs of a cut's groups with their price parameters, if computed."""
        out = []
        for t, g in cut.members:
            paths, draw = self.done[t], self._draw_of(t, b)
            long_run = paths.long_run[i][g] if draw < 0 else paths.long_run_drawn[draw][i][g]
            if long_run is None:
                return None
            out.append((long_run, self.alpha(t, b)))
        return out

    def all(self, i: int, cut: Cut, read: Callable[[Sums, float], Any]) -> tuple[Any, list[Any]]:
        """Return a sum at the estimates and at each draw."""
        return self.value(i, cut, read), [self.value(i, cut, read, b) for b in range(self.draws)]

    def total(self, i: int, cut: Cut) -> float:
        """Return the number of customers in a cut under a scenario, NaN for nobody."""
        size = float(self.value(i, cut, lambda s, a: s.shares[0].sum()))
        return size if size > 0 else float("nan")


def _take_up(
    head: dict[str, str],
    reader: Reader,
    i: int,
    cut: Cut,
    choices: Sequence[Level],
    size: float,
) -> pd.DataFrame:
    """Return the rows of ``take_up`` of a scenario and cut."""
    point, drawn = reader.all(i, cut, lambda s, a: s.shares / size)
    bands = reader.bands(point, drawn)
    T, J = point.shape
    t, j = np.divmod(np.arange(T * J), J)
    return pd.DataFrame(
        {
            **head,
            "period": t + 1,
            "choice": [choices[c] for c in j],
            "share": point.reshape(-1),
            "lower": bands.lower.reshape(-1),
            "upper": bands.upper.reshape(-1),
            "lower_uniform": bands.lower_uniform.reshape(-1),
            "upper_uniform": bands.upper_uniform.reshape(-1),
            "members": point.reshape(-1) * size,
        }
    )


def _flows(
    head: dict[str, str],
    reader: Reader,
    i: int,
    cut: Cut,
    choices: Sequence[Level],
    size: float,
) -> pd.DataFrame:
    """Return the rows of ``flows`` of a scenario and cut."""
    point, drawn = reader.all(i, cut, lambda s, a: s.flows / size)
    bands = reader.bands(point, drawn)
    T, J, _ = point.shape
    code = np.arange(T * J * J)
    return pd.DataFrame(
        {
            **head,
            "period": code // (J * J) + 1,
            "source": [choices[c] for c in code // J % J],
            "choice": [choices[c] for c in code % J],
            "share": point.reshape(-1),
            "lower": bands.lower.reshape(-1),
            "upper": bands.upper.reshape(-1),
        }
    ).dropna(subset=["share"])


def _welfare(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, size: float
) -> dict[str, str | float]:
    """Return the row of ``welfare`` of a scenario and cut: utils, and money."""
    row: dict[str, str | float] = dict(head)
    for name, prefix, read in (
        ("change", "", lambda s, a: s.welfare / size),
        ("money", "money_", lambda s, a: s.welfare / a / size),
    ):
        point, drawn = reader.all(i, cut, read)
        lower, upper = reader.band(point, drawn)
        row |= {name: float(point), f"{prefix}lower": lower, f"{prefix}upper": upper}
    return row


def _outcomes(head: dict[str, str], reader: Reader, i: int, cut: Cut, size: float) -> pd.DataFrame:
    """Return the rows of ``outcomes`` of a scenario and cut."""
    draws = range(-1, reader.draws)  # the estimates first
    entries = np.stack([reader.value(i, cut, lambda s, a: s.entries, b) for b in draws])
    surplus = np.stack([reader.value(i, cut, lambda s, a: s.surplus / a, b) for b in draws])
    by_name = measures(entries, reader.done[0].names[i], surplus, size)
    values = np.stack(list(by_name.values()), axis=2)  # (draws, periods, measures)
    point = values[0]
    bands = reader.bands(point, values[1:])
    T, M = point.shape
    return pd.DataFrame(
        {
            **head,
            "period": np.tile(np.arange(T) + 1, M),
            "measure": np.repeat(list(by_name), T),
            "value": point.T.reshape(-1),
            "lower": bands.lower.T.reshape(-1),
            "upper": bands.upper.T.reshape(-1),
            "lower_uniform": bands.lower_uniform.T.reshape(-1),
            "upper_uniform": bands.upper_uniform.T.reshape(-1),
        }
    )


def _long_run(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, size: float
) -> list[dict[str, str | float]]:
    """Return the rows of ``long_run`` of a scenario and cut; none where it was not computed."""

    def measures_at(b: int) -> dict[str, float] | None:
        """Return the measures at a draw, if computed."""
        groups = reader.long_runs(i, cut, b)
        if groups is None:
            return None
        entries = np.sum([long_run.entries for long_run, _ in groups], axis=0)
        surplus = sum(long_run.surplus / alpha for long_run, alpha in groups)
        values = measures(entries, reader.done[0].names[i], surplus, size)
        return {name: float(value) for name, value in values.items()} | {
            "lifetime revenue": sum(long_run.revenue for long_run, _ in groups) / size,
            "lifetime profit": sum(long_run.profit for long_run, _ in groups) / size,
        }

    point = measures_at(-1)
    if point is None:
        return []
    drawn = [values for b in range(reader.draws) if (values := measures_at(b)) is not None]
    if reader.kind == "delta" and len(drawn) < reader.draws:
        drawn = []  # a difference needs both of its ends
    rows: list[dict[str, str | float]] = []
    for name, value in point.items():
        lower, upper = reader.band(value, [values[name] for values in drawn])
        rows.append({**head, "measure": name, "value": value, "lower": lower, "upper": upper})
    return rows
