"""Pictures of a report, as SVG that stands inside the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice.plots.forecast import COLOURS, legend_columns, line_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

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


def new_figure(rows: int, columns: int = 1, height: float = 1.7, **options: Any) -> Any:
    """Return a figure and its axes, a list of rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height * rows + 0.7), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def svg_of(figure: Figure, name: str, title: str) -> str:
    """Return a figure as SVG for a page: scaled to the column, the same bytes each time."""
    import matplotlib as mpl
    from markupsafe import escape

    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # letters stay letters: the reader's fonts draw them, whatever this machine has
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # names that only this picture uses: a page holds many pictures
    text = re.sub(r"<[^>]+>", lambda tag: renamed(tag[0], name), text)
    head = re.search(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    opening = (
        f'<svg {box[0]} xmlns="http://www.w3.org/2000/svg"'
        f' xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(title)}">'
    )
    return opening + text[head.end() :]


def renamed(tag: str, name: str) -> str:
    """Return a tag whose names, and references to names, are a picture's own."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", tag)


def styled(draw: Any) -> Any:
    """Run a drawing function with the report's style."""

    def drawn(*args: Any, **options: Any) -> str:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return str(draw(*args, **options))

    drawn.__doc__ = draw.__doc__
    return drawn


def month_ticks(ax: Any, labels: Sequence[str], most: int = 6) -> None:
    """Label some of the months."""
    step = max(1, -(-len(labels) // most))
    ax.set_xticks(range(0, len(labels), step), list(labels)[::step], rotation=30, ha="right")


def cut(text: str, most: int = 30) -> str:
    """Return a label short enough for a picture."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


@styled
def take_up(table: pd.DataFrame, segment: str, choices: Sequence[str], name: str) -> str:
    """Draw the take-up of each choice in one segment, a line a scenario."""
    own = table[table["segment"] == segment]
    scenarios = list(dict.fromkeys(own["scenario"]))
    figure, axes = new_figure(len(choices), sharex=True)
    labels = list(own.drop_duplicates("period")["label"])
    for r, choice in enumerate(choices):
        ax = axes[r][0]
        for i, scenario in enumerate(scenarios):
            line = own[(own["choice"] == choice) & (own["scenario"] == scenario)]
            colour, x = COLOURS[i % len(COLOURS)], line["period"].to_numpy() - 1
            ax.plot(
                x, 100 * line["share"], color=colour, lw=1.5, label=cut(scenario), **line_style(i)
            )
            if line["lower"].notna().all():
                ax.fill_between(
                    x, 100 * line["lower"], 100 * line["upper"], color=colour, alpha=0.15, lw=0
                )
        ax.set_ylabel(f"{cut(choice, 16)}, %")
    month_ticks(axes[-1][0], labels)
    handles, names = axes[0][0].get_legend_handles_labels()
    ncols = legend_columns(names, figure.get_figwidth(), 2)
    figure.legend(handles, names, loc="outside upper left", ncols=ncols, frameon=False)
    return svg_of(figure, name, f"Take-up by month, {segment}")


@styled
def fitted(table: pd.DataFrame, segment: str, choices: Sequence[str], name: str) -> str:
    """Draw observed (dots) and fitted (lines) shares of each choice by month."""
    own = table[table["segment"] == segment]
    labels = list(dict.fromkeys(own["label"]))
    place = {x: i for i, x in enumerate(labels)}
    figure, axes = new_figure(1, height=2.0)
    ax = axes[0][0]
    for i, choice in enumerate(choices):
        line = own[own["choice"] == choice]
        x, colour = [place[m] for m in line["label"]], COLOURS[(i + 1) % len(COLOURS)]
        ax.plot(x, 100 * line["observed"], "o", ms=2.6, color=colour, mec="none")
        ax.plot(x, 100 * line["fitted"], "-", lw=1.2, color=colour, label=cut(choice, 16))
    ax.set_ylabel("% of decisions")
    month_ticks(ax, labels)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return svg_of(figure, name, f"Observed and fitted shares, {segment}")


@styled
def estimates(table: pd.DataFrame, segment: str, name: str) -> str:
    """Draw estimates with their 95 % intervals."""
    own = table[table["segment"] == segment].iloc[::-1]
    figure, axes = new_figure(1, height=0.22 * len(own) + 0.5)
    ax, y = axes[0][0], range(len(own))
    ax.hlines(y, own["lower"], own["upper"], color=COLOURS[1], lw=1.4)
    ax.plot(own["estimate"], y, "o", ms=3.4, color=COLOURS[1])
    ax.axvline(0, color="#888", lw=0.8)
    ax.set_yticks(list(y), [cut(p, 26) for p in own["parameter"]])
    ax.set_xlabel("utils")
    return svg_of(figure, name, f"Estimates, {segment}")


def draw_errors(ax: Any, summary: pd.DataFrame) -> None:
    """Draw the mean absolute error of take-up by periods ahead, a line a method."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for i, method in enumerate(dict.fromkeys(summary["method"])):
        line = summary[summary["method"] == method].sort_values("horizon")
        first: dict[str, Any] = {"lw": 2.2, "zorder": 5, "marker": "o", "ms": 3.5}
        style = first if i == 0 else {"lw": 1.2, "marker": ".", **line_style(i)}
        ax.plot(
            line["horizon"], line["error"], color=COLOURS[i % len(COLOURS)], label=cut(method),
            **style,
        )  # fmt: skip
    ax.set_xlabel("periods ahead")
    ax.set_ylabel("error of take-up, points")
    ax.set_xticks(sorted(summary["horizon"].unique()))
    # one bad method would press the others together
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_shares(ax: Any, errors: pd.DataFrame) -> None:
    """Draw the model's forecast against observed shares; what lies on the line was right."""
    table = errors[errors["method"] == "model"]
    for i, choice in enumerate(dict.fromkeys(table["choice"])):
        own = table[table["choice"] == choice]
        f = 100 * own["forecast"]
        spread = [f - 100 * own["wide_lower"], 100 * own["wide_upper"] - f]
        ax.errorbar(
            f, 100 * own["observed"], xerr=spread, fmt="o", ms=2.6, elinewidth=0.6,
            color=COLOURS[(i + 1) % len(COLOURS)], label=cut(str(choice), 16),
        )  # fmt: skip
    top = 105 * max(table["forecast"].max(), table["observed"].max())
    ax.plot([0, top], [0, top], color="#888", lw=0.8)
    ax.set_xlabel("forecast, % of members")
    ax.set_ylabel("observed, %")


def draw_calibration(ax: Any, bins: pd.DataFrame) -> None:
    """Draw how often what was given each probability happened."""
    ax.plot([0, 100], [0, 100], color="#888", lw=0.8)
    ax.plot(100 * bins["said"], 100 * bins["happened"], "o-", ms=3.5, lw=1, color=COLOURS[1])
    ax.set_xlabel("probability said, %")
    ax.set_ylabel("happened, %")


@styled
def backtest_figure(which: str, table: pd.DataFrame, name: str) -> str:
    """Draw ``errors``, ``shares`` or ``calibration`` of a backtest."""
    draw, title = {
        "errors": (draw_errors, "Error of take-up by periods ahead"),
        "shares": (draw_shares, "Forecast against observed take-up"),
        "calibration": (draw_calibration, "Calibration of probabilities"),
    }[which]
    figure, axes = new_figure(1, height=2.6)
    draw(axes[0][0], table)
    if axes[0][0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return svg_of(figure, name, title)


def backtest_picture(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw errors, shares and calibration of a backtest into a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.9), layout="constrained")
        axes = figure.subplots(1, 3)
        draw_errors(axes[0], tables["summary"])
        draw_shares(axes[1], tables["errors"])
        draw_calibration(axes[2], tables["calibration"])
        for ax in axes[:2]:  # above, where no line runs
            ax.legend(
                frameon=False, fontsize=7.5, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0)
            )
        figure.savefig(path, dpi=140, metadata={"Software": None})
