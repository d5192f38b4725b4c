"""Paths laid out as tidy tables, with bands pointwise and over whole paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.accounts import rates
from dynchoice.counterfactuals.badges import ORDER
from dynchoice.counterfactuals.draws import DELTA_STEP
from dynchoice.counterfactuals.group_paths import GroupPaths
from dynchoice.counterfactuals.long_run import LongRun
from dynchoice.counterfactuals.path import Sums
from dynchoice.counterfactuals.population import Group
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.names import ALL
from dynchoice.typing import FloatArray

UNIFORM_SAMPLES = 2000
NOBODY = 1e-12
"""Share of customers up to which nobody is due, so that there is no rate."""


@dataclass(frozen=True)
class Bands:
    """Lower and upper ends, pointwise and uniform over the first axis of what they are around."""

    lower: FloatArray
    upper: FloatArray
    lower_uniform: FloatArray
    upper_uniform: FloatArray


def bands_of(point: FloatArray, drawn: Any, level: float, kind: str, parts: Sequence[int]) -> Bands:
    """Return bands of a path ``point`` (T, ...) from its draws.

    Pointwise: quantiles of the draws. Uniform (sup-t, SOURCES.md 8.3): ``point +- q se`` with ``q``
    the ``level`` quantile over draws of ``max_t |draw - point| / se``. With ``kind="delta"`` the
    draws are central differences, ``parts`` of them for each independent fit.
    """
    gap = np.full(point.shape, np.nan)
    if not len(drawn):
        return Bands(gap, gap, gap, gap)
    sample = np.stack(drawn)
    if kind == "delta":
        from scipy.stats import norm

        slopes = (sample[0::2] - sample[1::2]) / (2 * DELTA_STEP)
        se = np.sqrt((slopes**2).sum(axis=0))
        half = norm.ppf(0.5 + level / 2) * se
        z = np.random.default_rng(0).standard_normal((UNIFORM_SAMPLES, len(slopes)))
        away = np.tensordot(z, slopes, axes=1)
        q = sup_t(away, se, level)
        return Bands(point - half, point + half, point - q * se, point + q * se)
    none = np.isnan(sample).all(axis=0)  # a rate with nobody due, money without a price
    sample = np.where(none, 0.0, sample)
    quantile = np.nanquantile if np.isnan(sample).any() else np.quantile  # the first is slow
    low, high = quantile(sample, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    # where one draw alone has a number there is no spread to speak of
    few = (~np.isnan(sample)).sum(axis=0) < 2
    se = np.zeros(point.shape)
    if not few.all():
        se = np.where(few, 0.0, np.nanstd(np.where(few, 0.0, sample), axis=0, ddof=1))
    q = sup_t(sample - point, se, level)
    ends = (low, high, point - q * se, point + q * se)
    return Bands(*(np.where(none, np.nan, x) for x in ends))


def sup_t(away: FloatArray, se: FloatArray, level: float) -> FloatArray:
    """Return the quantile of the largest deviation over the path, in standard errors."""
    some = se > 1e-9 * se.max(axis=0, initial=0.0)  # what is known for sure has rounding only
    scale = np.where(some, se, 1.0)
    size = np.where(some, np.abs(away) / scale, 0.0).max(axis=1)
    return np.asarray(np.quantile(size, level, axis=0))


@dataclass(frozen=True)
class Cut:
    """A row group of the tables: labels and the weight of each (task, group) in it."""

    segment: str
    other: str
    members: tuple[tuple[int, int], ...]
    mass: float


def cuts(done: Sequence[GroupPaths], tasks: Sequence[list[Group]], by: str | None) -> list[Cut]:
    """Return the groups of rows: segments, all together, and each split ``by``."""
    listed = [(t, g, group) for t, groups in enumerate(tasks) for g, group in enumerate(groups)]

    def cut(segment: Any, other: Any) -> Cut | None:
        own = [
            (t, g, x)
            for t, g, x in listed
            if (segment == ALL or str(x.segment) == segment)
            and (other == ALL or str(x.kind if by == "type" else x.region) == other)
        ]
        if not own:
            return None
        return Cut(segment, other, tuple((t, g) for t, g, _ in own), sum(x.mass for *_, x in own))

    segments = list(dict.fromkeys(str(x.segment) for *_, x in listed))
    if len(segments) > 1:
        segments.append(ALL)
    others = [ALL]
    if by is not None:
        others = list(dict.fromkeys(str(x.kind if by == "type" else x.region) for *_, x in listed))
        others += [ALL] if len(others) > 1 else []
    return [c for s in segments for o in others if (c := cut(s, o)) is not None]


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
    reader = Reader(done, kind)
    rows: dict[str, list[Any]] = {"take_up": [], "flows": [], "welfare": [], "outcomes": []}
    long_rows: list[dict[str, Any]] = []
    for i, scenario in enumerate(scenarios):
        for cut in cuts(done, tasks, by):
            head = {"scenario": scenario.name, "segment": cut.segment}
            if by is not None:
                head[by] = cut.other
            size = reader.total(i, cut)
            rows["take_up"].append(_take_up(head, reader, i, cut, level, choices[i], size))
            rows["flows"].append(_flows(head, reader, i, cut, level, choices[i], size))
            rows["welfare"].append(_welfare(head, reader, i, cut, level, size))
            if done[0].names[i]:
                rows["outcomes"].append(_outcomes(head, reader, i, cut, level, size))
                long_rows += _long_run(head, reader, i, cut, level, size)
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
    labels_of = dict(zip(*(out["badges"][k] for k in ("key", "badge")), strict=True))
    money_of = dict(zip(*(out["badges"][k] for k in ("key", "money")), strict=True))
    out["badges"] = out["badges"].drop(columns="key")
    for name in ("take_up", "welfare", "outcomes", "long_run"):
        table = out[name]
        if table is not None:
            keys = table["scenario"] + "|" + table["segment"]
            table["badge"] = keys.map(labels_of)
            in_money = np.full(len(table), name == "welfare")
            if "measure" in table.columns:
                in_money = (table["measure"] == "surplus").to_numpy()
            table["badge"] = np.where(in_money, keys.map(money_of), table["badge"])
    return out


def badge_table(
    done: Sequence[GroupPaths], tasks: Sequence[list[Group]], scenarios: Sequence[Scenario]
) -> pd.DataFrame:
    """Return scenario, segment, badge, money's badge, reasons; all rest on the weakest."""
    rows: list[dict[str, str]] = []
    for i, s in enumerate(scenarios):
        found: dict[str, list[Any]] = {}
        for own, groups in zip(done, tasks, strict=True):
            for g in groups:
                found.setdefault(str(g.segment), []).append(own.badges[i])
        everybody = [b for listed in found.values() for b in listed]
        if len(found) > 1:
            found[ALL] = everybody
        for segment, listed in found.items():
            known = [b for b in listed if b is not None]
            worst = max((b.label for b in known), key=ORDER.index, default="")
            reasons = dict.fromkeys(r for b in known for r in b.reasons)
            rows.append(
                {
                    "scenario": s.name,
                    "segment": segment,
                    "badge": worst,
                    "money": max((b.money for b in known), key=ORDER.index, default=""),
                    "reasons": "; ".join(reasons),
                    "key": f"{s.name}|{segment}",
                }
            )
    return pd.DataFrame(rows)


class Reader:
    """Adds up groups of a cut at the estimates and at every draw."""

    def __init__(self, done: Sequence[GroupPaths], kind: str) -> None:
        self.done, self.kind = done, kind
        lengths = [len(d.drawn) for d in done]
        self.draws = sum(lengths) if kind == "delta" else min(lengths, default=0)
        self.parts = lengths

    def _sums(self, t: int, b: int, i: int, g: int) -> Sums:
        own = self.done[t]
        return own.point[i][g] if b < 0 else own.drawn[b][i][g]

    def alpha(self, t: int, b: int) -> float:
        """Return the price parameter of a fit at a draw (-1: the estimate)."""
        return float(self.done[t].alpha[self._own(t, b) + 1])

    def _own(self, t: int, b: int) -> int:
        """Return which draw of fit ``t`` the pooled draw ``b`` takes (-1: the estimate).

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
            read(self._sums(t, self._own(t, b), i, g), self.alpha(t, b)) for t, g in cut.members
        )

    def far(self, i: int, cut: Cut, b: int = -1) -> list[tuple[LongRun, float]] | None:
        """Return the long runs of a cut's groups with their price parameters, if computed."""
        out = []
        for t, g in cut.members:
            own, k = self.done[t], self._own(t, b)
            found = own.long_run[i][g] if k < 0 else own.long_run_drawn[k][i][g]
            if found is None:
                return None
            out.append((found, self.alpha(t, b)))
        return out

    def all(self, i: int, cut: Cut, read: Callable[[Sums, float], Any]) -> tuple[Any, list[Any]]:
        """Return a sum at the estimates and at each draw."""
        return self.value(i, cut, read), [self.value(i, cut, read, b) for b in range(self.draws)]

    def total(self, i: int, cut: Cut) -> float:
        """Return the number of customers in a cut under a scenario, NaN for nobody."""
        size = float(self.value(i, cut, lambda s, a: s.shares[0].sum()))
        return size if size > 0 else float("nan")


def _take_up(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, level: float, choices: Any, size: float
) -> pd.DataFrame:
    point, drawn = reader.all(i, cut, lambda s, a: s.shares / size)
    b = bands_of(point, drawn, level, reader.kind, reader.parts)
    T, J = point.shape
    t, j = np.divmod(np.arange(T * J), J)
    return pd.DataFrame(
        {
            **head,
            "period": t + 1,
            "choice": [choices[c] for c in j],
            "share": point.reshape(-1),
            "lower": b.lower.reshape(-1),
            "upper": b.upper.reshape(-1),
            "lower_uniform": b.lower_uniform.reshape(-1),
            "upper_uniform": b.upper_uniform.reshape(-1),
            "members": point.reshape(-1) * size,
        }
    )


def _flows(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, level: float, choices: Any, size: float
) -> pd.DataFrame:
    point, drawn = reader.all(i, cut, lambda s, a: s.flows / size)
    b = bands_of(point, drawn, level, reader.kind, reader.parts)
    T, J, _ = point.shape
    code = np.arange(T * J * J)
    return pd.DataFrame(
        {
            **head,
            "period": code // (J * J) + 1,
            "source": [choices[c] for c in code // J % J],
            "choice": [choices[c] for c in code % J],
            "share": point.reshape(-1),
            "lower": b.lower.reshape(-1),
            "upper": b.upper.reshape(-1),
        }
    ).dropna(subset=["share"])


def _welfare(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, level: float, size: float
) -> dict[str, Any]:
    out: dict[str, Any] = dict(head)
    for name, read in (
        ("change", lambda s, a: s.welfare / size),
        ("money", lambda s, a: s.welfare / a / size),
    ):
        point, drawn = reader.all(i, cut, read)
        b = bands_of(
            np.atleast_1d(point),
            [np.atleast_1d(d) for d in drawn],
            level,
            reader.kind,
            reader.parts,
        )
        tail = "" if name == "change" else "money_"
        out |= {
            name: float(point),
            f"{tail}lower": float(b.lower[0]),
            f"{tail}upper": float(b.upper[0]),
        }
    return out


def measures(
    entries: FloatArray, names: Sequence[str], surplus: Any, size: float
) -> dict[str, Any]:
    """Return measures from entries (..., E) in customers and surplus in money."""
    out: dict[str, Any] = {n: entries[..., k] / size for k, n in enumerate(names)}
    out["revenue"] = out["payments"] - out["refunds"]
    out["profit"] = out["revenue"] - out["benefit cost"]
    for name, (top, bottom) in rates(tuple(names)).items():
        base = out[bottom]
        some = base > NOBODY
        out[name] = np.divide(out[top], base, out=np.full_like(base, np.nan), where=some)
    out["surplus"] = surplus / size
    monthly = [out[n] for n in names if n.startswith("paid: ")]
    if len(monthly) > 1:
        total = out["penetration"]
        for n in names:
            if n.startswith("paid: "):
                share = np.divide(out[n], total, out=np.full_like(total, np.nan), where=total > 0)
                out[f"share of members: {n[6:]}"] = share
    return out


def _outcomes(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, level: float, size: float
) -> pd.DataFrame:
    names = reader.done[0].names[i]
    at = range(-1, reader.draws)  # the estimates first
    entries = np.stack([reader.value(i, cut, lambda s, a: s.entries, b) for b in at])
    surplus = np.stack([reader.value(i, cut, lambda s, a: s.surplus / a, b) for b in at])
    found = measures(entries, names, surplus, size)
    values = np.stack(list(found.values()), axis=2)  # (draws, periods, measures)
    point = values[0]
    b = bands_of(point, values[1:], level, reader.kind, reader.parts)
    T, M = point.shape
    return pd.DataFrame(
        {
            **head,
            "period": np.tile(np.arange(T) + 1, M),
            "measure": np.repeat(list(found), T),
            "value": point.T.reshape(-1),
            "lower": b.lower.T.reshape(-1),
            "upper": b.upper.T.reshape(-1),
            "lower_uniform": b.lower_uniform.T.reshape(-1),
            "upper_uniform": b.upper_uniform.T.reshape(-1),
        }
    )


def _long_run(
    head: dict[str, str], reader: Reader, i: int, cut: Cut, level: float, size: float
) -> list[dict[str, Any]]:
    names = reader.done[0].names[i]

    def at(b: int) -> dict[str, Any] | None:
        found = reader.far(i, cut, b)
        if found is None:
            return None
        entries = np.sum([x.entries for x, _ in found], axis=0)
        out = measures(entries, names, sum(x.surplus / a for x, a in found), size)
        out["lifetime revenue"] = sum(x.revenue for x, _ in found) / size
        out["lifetime profit"] = sum(x.profit for x, _ in found) / size
        return out

    point = at(-1)
    if point is None:
        return []
    drawn = [x for b in range(reader.draws) if (x := at(b)) is not None]
    if reader.kind == "delta" and len(drawn) < reader.draws:
        drawn = []
    rows = []
    for name, value in point.items():
        b = bands_of(
            np.atleast_1d(value),
            [np.atleast_1d(d[name]) for d in drawn],
            level,
            reader.kind,
            reader.parts,
        )
        rows.append(
            {**head, "measure": name, "value": float(value), "lower": float(b.lower[0]),
             "upper": float(b.upper[0])}
        )  # fmt: skip
    return rows
