"""Pictures of outcomes, flows, bundles and elasticities (matplotlib, extra ``report``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.plots.figure import (
    COLOURS,
    clear_frame,
    finish,
    label_periods,
    line_style,
    new_figure,
    pick,
)
from dynchoice.typing import FilePath, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = ("penetration", "revenue", "surplus")
"""Measures that are drawn where none are asked for."""
UNITS = {
    "revenue": "money per customer",
    "profit": "money per customer",
    "surplus": "money per customer",
    "payments": "money per customer",
    "refunds": "money per customer",
    "benefit cost": "money per customer",
}


def plot_outcomes(
    outcomes: pd.DataFrame | None,
    measures: str | Iterable[object] | None = None,
    segments: str | Iterable[object] | None = None,
    path: FilePath | None = None,
) -> Figure:
    """Draw measures by period: a column a segment, a row a measure, a line a scenario.

    The dark band is pointwise, the light one holds the whole path.

    Parameters
    ----------
    outcomes : pandas.DataFrame or None
        As of :class:`dynchoice.counterfactuals.forecast.Forecast`.
    measures, segments : names, optional
        Default: penetration, revenue and surplus; all segments.
    path : path, optional
        File to save the picture in.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SpecificationError
        No table, or an unknown measure or segment.
    """
    if outcomes is None:
        raise SpecificationError("outcomes are there for models built by Membership only")
    all_measures = list(dict.fromkeys(outcomes["measure"]))
    rows = pick(measures, all_measures, "measure") if measures is not None else list(SHOWN)
    columns = pick(segments, list(dict.fromkeys(outcomes["segment"])), "segment")
    scenarios = list(dict.fromkeys(outcomes["scenario"]))
    figure = new_figure(max(3.2 * len(columns), 6.0), 2.1 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for c, segment in enumerate(columns):
        of_segment = outcomes[outcomes["segment"] == segment]
        for r, measure in enumerate(rows):
            ax = axes[r][c]
            scale = 1.0 if measure in UNITS else 100.0
            _draw_lines(ax, of_segment[of_segment["measure"] == measure], scenarios, scale)
            clear_frame(ax)
            if r == 0:
                ax.set_title(segment, fontsize=10)
            if c == 0:
                unit = UNITS.get(measure, "% of customers" if "rate" not in measure else "%")
                unit = "%" if measure == "trial conversion" else unit
                ax.set_ylabel(f"{measure},\n{unit}", fontsize=9)
            if r == len(rows) - 1:
                labels = list(of_segment.drop_duplicates("period")["label"])
                label_periods(ax, labels, 5, rotation=35, fontsize=8)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=min(len(names), 4), frameon=False
    )
    return finish(figure, path)


def _draw_lines(ax: Axes, table: pd.DataFrame, scenarios: list[str], scale: float) -> None:
    """Draw one measure in one segment, a line a scenario, with its two bands."""
    for i, scenario in enumerate(scenarios):
        line = table[table["scenario"] == scenario]
        x, colour = np.arange(len(line)), COLOURS[i % len(COLOURS)]
        ax.plot(x, scale * line["value"], color=colour, lw=1.6, label=scenario, **line_style(i))
        for low, high, alpha in (
            ("lower_uniform", "upper_uniform", 0.08),
            ("lower", "upper", 0.16),
        ):
            if line[low].notna().all():
                ax.fill_between(
                    x, scale * line[low], scale * line[high], color=colour, alpha=alpha, lw=0
                )


def plot_flows(
    flows: pd.DataFrame,
    scenario: str,
    segment: object = None,
    period: int | None = None,
    path: FilePath | None = None,
) -> Figure:
    """Draw who moves from which plan to which in one period, baseline left, scenario right.

    Bands are as wide as the share of customers that moves along them.

    Parameters
    ----------
    flows : pandas.DataFrame
        As of :class:`dynchoice.counterfactuals.forecast.Forecast`.
    scenario : str
    segment, period : label, int, optional
        Default: the last ones.
    path : path, optional
        File to save the picture in.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SpecificationError
        An unknown scenario, segment or period.
    """
    scenarios = list(dict.fromkeys(flows["scenario"]))
    (name,) = pick(scenario, scenarios, "scenario")
    segments = list(dict.fromkeys(flows["segment"]))
    (segment,) = pick(segments[-1] if segment is None else str(segment), segments, "segment")
    number = int(flows["period"].max()) if period is None else int(period)
    baseline = scenarios[0]
    shown = [baseline, name] if name != baseline else [name]
    figure = new_figure(5.0 * len(shown), 4.2)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, title in zip(axes, shown, strict=True):
        part = flows[
            (flows["scenario"] == title)
            & (flows["segment"] == segment)
            & (flows["period"] == number)
        ]
        if not len(part):
            last = flows.period.max()
            raise SpecificationError(f"no flows in period {number}: periods 1 to {last}")
        labels = list(dict.fromkeys(part["choice"]))
        table = part.pivot_table(index="source", columns="choice", values="share", sort=False)
        matrix = table.reindex(index=labels, columns=labels).fillna(0.0).to_numpy()
        draw_flows(ax, matrix, labels)
        ax.set_title(f"{title}: {segment}, period {part['label'].iloc[0]}", fontsize=10)
    return finish(figure, path)


def draw_flows(ax: Axes, matrix: FloatArray, labels: Sequence[str]) -> None:
    """Draw a flow matrix (sources by choices) as bands between two columns."""
    gap = 0.04  # between one plan and the next
    left = np.concatenate([[0.0], np.cumsum(matrix.sum(axis=1) + gap)])
    right = np.concatenate([[0.0], np.cumsum(matrix.sum(axis=0) + gap)])
    x = np.linspace(0.0, 1.0, 40)
    bend = 3 * x**2 - 2 * x**3  # from 0 to 1, level at both ends
    from_, to = left[:-1].copy(), right[:-1].copy()
    for i in range(len(labels)):
        for j in range(len(labels)):
            size = matrix[i, j]
            if size <= 0:
                continue
            low = from_[i] + (to[j] - from_[i]) * bend
            colour = COLOURS[1 + i % (len(COLOURS) - 1)]
            ax.fill_between(x, low, low + size, color=colour, alpha=0.75 if i == j else 0.4, lw=0)
            if i != j and size > (0.004 if len(labels) < 4 else 0.012):
                # near where a band starts: two that cross meet in the middle
                k = 5 if len(labels) < 4 else 4 + (12 * j) // (len(labels) - 1)
                ax.text(
                    x[k], low[k] + size / 2, f"{size:.1%}", ha="center", va="center", fontsize=7
                )
            from_[i] += size
            to[j] += size
    for k, label in enumerate(labels):
        sides = (
            (-0.02, left[k], matrix[k].sum(), "right"),
            (1.02, right[k], matrix[:, k].sum(), "left"),
        )
        for position, start, size, ha in sides:
            ax.text(
                position, start + size / 2, f"{label}\n{size:.1%}", ha=ha, va="center", fontsize=8
            )
    ax.set_xlim(-0.3, 1.3)
    ax.invert_yaxis()
    ax.axis("off")


def plot_frontier(
    table: pd.DataFrame,
    frontier: pd.DataFrame,
    x: str = "surplus",
    y: str = "profit",
    path: FilePath | None = None,
) -> Figure:
    """Draw bundles by two outcomes, a panel a segment, with the frontier and its names.

    Parameters
    ----------
    table, frontier : pandas.DataFrame
        As of :class:`dynchoice.counterfactuals.bundles.Bundles`.
    x, y : str
        Outcomes: columns of both.
    path : path, optional
        File to save the picture in.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    segments = list(dict.fromkeys(table["segment"]))
    columns = min(len(segments), 2)
    rows = -(-len(segments) // columns)
    figure = new_figure(5.2 * columns, 3.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax in axes[len(segments) :]:
        ax.axis("off")
    for ax, segment in zip(axes, segments, strict=False):
        part, top = table[table["segment"] == segment], frontier[frontier["segment"] == segment]
        ax.scatter(part[x], part[y], s=14, color="#999999", label="bundles", zorder=2)
        ax.plot(top[x], top[y], "o-", color=COLOURS[1], ms=5, lw=1.4, label="frontier", zorder=3)
        shown = top.iloc[:: max(1, len(top) // 4)]
        for i, (_, row) in enumerate(shown.iterrows()):
            price = [f"{c[6:]} {row[c]:g}" for c in table.columns if str(c).startswith("price ")]
            text = row["bundle"] + (f"\n({', '.join(price)})" if price else "")
            ax.annotate(
                text,
                (row[x], row[y]),
                xytext=(6, -12 if i % 2 else 6),  # by turns below and above: neighbours collide
                textcoords="offset points",
                fontsize=6.5,
            )
        ax.set_title(segment, fontsize=10)
        ax.set_xlabel(f"{x}, money per customer and period", fontsize=9)
        ax.set_ylabel(y, fontsize=9)
        ax.margins(0.15)
        clear_frame(ax)
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, path)


def plot_elasticities(
    table: pd.DataFrame, horizon: str = "long", path: FilePath | None = None
) -> Figure:
    """Draw elasticities as a coloured table, a panel a segment: rows are prices.

    Parameters
    ----------
    table : pandas.DataFrame
        As of :class:`dynchoice.counterfactuals.bundles.Elasticities`.
    horizon : {"short", "long"}
    path : path, optional
        File to save the picture in.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SpecificationError
        Another horizon.
    """
    checks.one_of(horizon, "horizon", ("short", "long"))
    segments = list(dict.fromkeys(table["segment"]))
    figure = new_figure(3.6 * len(segments), 1.2 + 0.7 * table["price"].nunique())
    axes = figure.subplots(1, len(segments), squeeze=False)[0]
    limit = float(np.abs(table[horizon]).max())  # one scale of colours for all segments
    for ax, segment in zip(axes, segments, strict=True):
        part = table[table["segment"] == segment]
        wide = part.pivot_table(index="price", columns="share", values=horizon, sort=False)
        ax.imshow(wide.to_numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        for r in range(wide.shape[0]):
            for c in range(wide.shape[1]):
                value = wide.iat[r, c]
                colour = "white" if abs(value) > 0.6 * limit else "black"
                ax.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
        ax.set_xticks(range(wide.shape[1]), wide.columns, fontsize=8)
        ax.set_yticks(range(wide.shape[0]), [f"price of {p}" for p in wide.index], fontsize=8)
        ax.set_title(f"{segment}, {horizon} run", fontsize=10)
    return finish(figure, path)
