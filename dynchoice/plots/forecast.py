"""The picture of take-up in a forecast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dynchoice._lazy import pd
from dynchoice.plots.figure import (
    COLOURS,
    clear_frame,
    finish,
    fitting,
    label_periods,
    legend_columns,
    line_style,
    new_figure,
    pick,
)
from dynchoice.typing import FilePath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_forecast(
    take_up: pd.DataFrame,
    level: float,
    draws: int,
    segments: Iterable[object] | None = None,
    path: FilePath | None = None,
) -> Figure:
    """Draw take-up by period: a column a segment, a row a choice, a line a scenario.

    Parameters
    ----------
    take_up : pandas.DataFrame
        As of :class:`dynchoice.counterfactuals.forecast.Forecast`.
    level, draws : float, int
        Of the bands; without draws there are none.
    segments : labels, optional
        Default: all.
    path : path, optional
        File to save the picture in.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SpecificationError
        An unknown segment.
    """
    all_segments = list(dict.fromkeys(take_up["segment"]))
    columns = pick(segments, all_segments, "segment")
    choices = list(dict.fromkeys(take_up["choice"]))
    scenarios = list(dict.fromkeys(take_up["scenario"]))
    figure = new_figure(max(3.1 * len(columns), 6.0), 2.1 * len(choices) + 0.9)
    axes = figure.subplots(len(choices), len(columns), squeeze=False, sharex=True, sharey="row")
    for c, segment in enumerate(columns):
        of_segment = take_up[take_up["segment"] == segment]
        for r, choice in enumerate(choices):
            ax = axes[r][c]
            lines = of_segment[of_segment["choice"] == choice]
            _draw_lines(ax, lines, scenarios, figure.get_figwidth())
            clear_frame(ax)
            if r == 0:
                ax.set_title(segment, fontsize=10)
            if c == 0:
                ax.set_ylabel(f"{choice}, % of customers", fontsize=9)
            if r == len(choices) - 1:
                # of the baseline: a plan that a scenario adds has no line elsewhere
                labels = list(of_segment.drop_duplicates("period")["label"])
                label_periods(ax, labels, 5, rotation=35, fontsize=8)
    handles, names = axes[0][0].get_legend_handles_labels()
    band = f" (bands: {level:.0%} of draws, parameters and laws)" if draws else ""
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=legend_columns(names, figure.get_figwidth()),
        frameon=False,
        title=f"Take-up{band}",
    )
    return finish(figure, path)


def _draw_lines(ax: Axes, table: pd.DataFrame, scenarios: list[str], width: float) -> None:
    """Draw the take-up of one choice in one segment, a line a scenario, with its band."""
    for i, scenario in enumerate(scenarios):
        line = table[table["scenario"] == scenario]
        colour, x = COLOURS[i % len(COLOURS)], range(len(line))
        label = fitting(scenario, width)
        ax.plot(x, 100 * line["share"], color=colour, label=label, lw=1.6, **line_style(i))
        if line["lower"].notna().all():
            ax.fill_between(
                x, 100 * line["lower"], 100 * line["upper"], color=colour, alpha=0.15, lw=0
            )
