"""Pictures of a report, as SVG that stands inside the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from dynchoice._lazy import pd
from dynchoice.plots.figure import (
    COLOURS,
    label_periods,
    legend_columns,
    line_style,
    load_matplotlib,
    new_figure,
)
from dynchoice.typing import AnyArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Options = ParamSpec("Options")

WIDTH = 4.6
"""Inches: as wide as a phone, so that letters are read there and stand in columns elsewhere."""
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a label may hold dollars
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def new_column(rows: int, height: float = 1.7) -> tuple[Figure, AnyArray]:
    """Return a figure as wide as a column of the page and its axes, (rows,), one below another."""
    figure = new_figure(WIDTH, height * rows + 0.7)
    return figure, figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]


def to_svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as SVG for a page: scaled to the column, the same bytes each time."""
    from markupsafe import escape

    buffer = io.StringIO()
    with load_matplotlib().rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # letters stay letters: the reader's fonts draw them, whatever this machine has
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # names that only this picture uses: a page holds many pictures
    text = re.sub(r"<[^>]+>", lambda tag: rename_ids(tag[0], name), text)
    head = re.search(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    opening = (
        f'<svg {box[0]} xmlns="http://www.w3.org/2000/svg"'
        f' xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(title)}">'
    )
    return opening + text[head.end() :]


def rename_ids(tag: str, name: str) -> str:
    """Return a tag of SVG with the picture's name put before its ids and references to ids."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", tag)


def with_style(draw: Callable[Options, str]) -> Callable[Options, str]:
    """Let a drawing function run with the report's style."""

    @wraps(draw)
    def draw_with_style(*args: Options.args, **options: Options.kwargs) -> str:
        with load_matplotlib().rc_context(STYLE):
            return draw(*args, **options)

    return draw_with_style


def label_months(ax: Axes, labels: Sequence[str]) -> None:
    """Label some of the months."""
    label_periods(ax, labels, 6, rotation=30, ha="right")


def shorten(text: str, most: int = 30) -> str:
    """Return a label short enough for a picture."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


@with_style
def take_up(table: pd.DataFrame, segment: str, choices: Sequence[str], name: str) -> str:
    """Draw the take-up of each choice in one segment, a line a scenario."""
    table = table[table["segment"] == segment]
    scenarios = list(dict.fromkeys(table["scenario"]))
    figure, axes = new_column(len(choices))
    labels = list(table.drop_duplicates("period")["label"])
    for ax, choice in zip(axes, choices, strict=True):
        for i, scenario in enumerate(scenarios):
            line = table[(table["choice"] == choice) & (table["scenario"] == scenario)]
            colour, x = COLOURS[i % len(COLOURS)], line["period"].to_numpy() - 1
            ax.plot(
                x,
                100 * line["share"],
                color=colour,
                lw=1.5,
                label=shorten(scenario),
                **line_style(i),
            )
            if line["lower"].notna().all():
                ax.fill_between(
                    x, 100 * line["lower"], 100 * line["upper"], color=colour, alpha=0.15, lw=0
                )
        ax.set_ylabel(f"{shorten(choice, 16)}, %")
    label_months(axes[-1], labels)
    handles, names = axes[0].get_legend_handles_labels()
    ncols = legend_columns(names, figure.get_figwidth(), 2)
    figure.legend(handles, names, loc="outside upper left", ncols=ncols, frameon=False)
    return to_svg(figure, name, f"Take-up by month, {segment}")


@with_style
def fitted(table: pd.DataFrame, segment: str, choices: Sequence[str], name: str) -> str:
    """Draw observed (dots) and fitted (lines) shares of each choice by month."""
    table = table[table["segment"] == segment]
    labels = list(dict.fromkeys(table["label"]))
    position = {x: i for i, x in enumerate(labels)}
    figure, (ax,) = new_column(1, height=2.0)
    for i, choice in enumerate(choices):
        line = table[table["choice"] == choice]
        x, colour = [position[m] for m in line["label"]], COLOURS[(i + 1) % len(COLOURS)]
        ax.plot(x, 100 * line["observed"], "o", ms=2.6, color=colour, mec="none")
        ax.plot(x, 100 * line["fitted"], "-", lw=1.2, color=colour, label=shorten(choice, 16))
    ax.set_ylabel("% of decisions")
    label_months(ax, labels)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return to_svg(figure, name, f"Observed and fitted shares, {segment}")


@with_style
def estimates(table: pd.DataFrame, segment: str, name: str) -> str:
    """Draw estimates with their 95 % intervals."""
    table = table[table["segment"] == segment].iloc[::-1]  # the first one on top
    figure, (ax,) = new_column(1, height=0.22 * len(table) + 0.5)
    y = range(len(table))
    ax.hlines(y, table["lower"], table["upper"], color=COLOURS[1], lw=1.4)
    ax.plot(table["estimate"], y, "o", ms=3.4, color=COLOURS[1])
    ax.axvline(0, color="#888", lw=0.8)
    ax.set_yticks(list(y), [shorten(p, 26) for p in table["parameter"]])
    ax.set_xlabel("utils")
    return to_svg(figure, name, f"Estimates, {segment}")


def draw_errors(ax: Axes, summary: pd.DataFrame) -> None:
    """Draw the mean absolute error of take-up by periods ahead, a line a method."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for i, method in enumerate(dict.fromkeys(summary["method"])):
        line = summary[summary["method"] == method].sort_values("horizon")
        first: dict[str, Any] = {"lw": 2.2, "zorder": 5, "marker": "o", "ms": 3.5}
        style = first if i == 0 else {"lw": 1.2, "marker": ".", **line_style(i)}
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(line["horizon"], line["error"], color=colour, label=shorten(method), **style)
    ax.set_xlabel("periods ahead")
    ax.set_ylabel("error of take-up, points")
    ax.set_xticks(sorted(summary["horizon"].unique()))
    # one bad method would press the others together
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_shares(ax: Axes, errors: pd.DataFrame) -> None:
    """Draw the model's forecast against observed shares; what lies on the line was right."""
    table = errors[errors["method"] == "model"]
    for i, choice in enumerate(dict.fromkeys(table["choice"])):
        part = table[table["choice"] == choice]
        percent = 100 * part["forecast"]
        spread = [percent - 100 * part["wide_lower"], 100 * part["wide_upper"] - percent]
        ax.errorbar(
            percent,
            100 * part["observed"],
            xerr=spread,
            fmt="o",
            ms=2.6,
            elinewidth=0.6,
            color=COLOURS[(i + 1) % len(COLOURS)],
            label=shorten(str(choice), 16),
        )
    top = 105 * max(table["forecast"].max(), table["observed"].max())
    ax.plot([0, top], [0, top], color="#888", lw=0.8)
    ax.set_xlabel("forecast, % of members")
    ax.set_ylabel("observed, %")


def draw_calibration(ax: Axes, bins: pd.DataFrame) -> None:
    """Draw how often that happened which was forecast with each probability."""
    ax.plot([0, 100], [0, 100], color="#888", lw=0.8)
    ax.plot(100 * bins["said"], 100 * bins["happened"], "o-", ms=3.5, lw=1, color=COLOURS[1])
    ax.set_xlabel("probability said, %")
    ax.set_ylabel("happened, %")


@with_style
def backtest_figure(which: str, table: pd.DataFrame, name: str) -> str:
    """Draw ``errors``, ``shares`` or ``calibration`` of a backtest."""
    draw, title = {
        "errors": (draw_errors, "Error of take-up by periods ahead"),
        "shares": (draw_shares, "Forecast against observed take-up"),
        "calibration": (draw_calibration, "Calibration of probabilities"),
    }[which]
    figure, (ax,) = new_column(1, height=2.6)
    draw(ax, table)
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return to_svg(figure, name, title)


def backtest_picture(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw errors, shares and calibration of a backtest into a PNG."""
    with load_matplotlib().rc_context(STYLE):
        figure = new_figure(11, 3.9)
        axes = figure.subplots(1, 3)
        draw_errors(axes[0], tables["summary"])
        draw_shares(axes[1], tables["errors"])
        draw_calibration(axes[2], tables["calibration"])
        for ax in axes[:2]:  # above, where no line runs
            ax.legend(
                frameon=False, fontsize=7.5, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0)
            )
        figure.savefig(path, dpi=140, metadata={"Software": None})
