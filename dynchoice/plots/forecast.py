"""The picture of a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynchoice.errors import MissingExtraError, SpecificationError, suggest

if TYPE_CHECKING:
    from dynchoice.counterfactuals.forecast import Forecast

COLOURS = ("#333333", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


LETTERS = 9
"""Letters of a legend to an inch, at the least."""


def fitting(name: str, width: float) -> str:
    """Return a label cut to what one column of a legend holds."""
    most = int(LETTERS * width) - 8
    return name if len(name) <= most else f"{name[: most - 1]}…"


def legend_columns(names: Sequence[str], width: float, most: int = 5) -> int:
    """Return how many columns of a legend fit into a picture of some inches."""
    longest = max((len(str(n)) for n in names), default=1)
    return max(1, min(len(names), most, int(LETTERS * width / (longest + 7))))


def line_style(i: int) -> dict[str, Any]:
    """Return how the i-th scenario is drawn beside its colour: colours come back with dots."""
    if i == 0:
        return {"ls": (0, (4, 3)), "zorder": 5}
    return {"ls": ("-", ":", "-.")[(i // len(COLOURS)) % 3]}


def literal(figure: Any) -> None:
    """Have every text of a figure drawn as it is: a label may hold dollars."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def plot_forecast(
    forecast: Forecast, segments: Sequence[Any] | None = None, path: Any = None
) -> Any:
    """Draw take-up by period: a column a segment, a row a choice, a line a scenario.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SpecificationError
        An unknown segment.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plots need matplotlib: pip install 'dynchoice[report]'") from None
    table = forecast.take_up
    known = list(dict.fromkeys(table["segment"]))
    shown = [str(s) for s in segments] if segments is not None else known
    for s in shown:
        if s not in known:
            raise SpecificationError(
                f"no segment {s!r} in the forecast.{suggest(s, known)} Known: {', '.join(known)}"
            )
    choices = list(dict.fromkeys(table["choice"]))
    scenarios = list(dict.fromkeys(table["scenario"]))
    figure = Figure(
        figsize=(max(3.1 * len(shown), 6.0), 2.1 * len(choices) + 0.9), layout="constrained"
    )
    axes = figure.subplots(len(choices), len(shown), squeeze=False, sharex=True, sharey="row")
    for c, segment in enumerate(shown):
        for r, choice in enumerate(choices):
            ax = axes[r][c]
            part = table[(table["segment"] == segment) & (table["choice"] == choice)]
            for i, scenario in enumerate(scenarios):
                line = part[part["scenario"] == scenario]
                colour = COLOURS[i % len(COLOURS)]
                x = range(len(line))
                # the baseline lies on top, dashed, so that a scenario without effect shows
                style = line_style(i)
                label = fitting(scenario, figure.get_figwidth())
                ax.plot(x, 100 * line["share"], color=colour, label=label, lw=1.6, **style)
                if line["lower"].notna().all():
                    ax.fill_between(
                        x, 100 * line["lower"], 100 * line["upper"], color=colour, alpha=0.15, lw=0
                    )
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
            if r == 0:
                ax.set_title(segment, fontsize=10)
            if c == 0:
                ax.set_ylabel(f"{choice}, % of customers", fontsize=9)
            if r == len(choices) - 1:
                # of the baseline: a plan that a scenario adds has no line elsewhere
                labels = list(table[table["segment"] == segment].drop_duplicates("period")["label"])
                step = max(1, -(-len(labels) // 5))
                ax.set_xticks(range(0, len(labels), step), labels[::step], rotation=35, fontsize=8)
    handles, names = axes[0][0].get_legend_handles_labels()
    band = f" (bands: {forecast.level:.0%} of draws, parameters and laws)" if forecast.draws else ""
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=legend_columns(names, figure.get_figwidth()),
        frameon=False,
        title=f"Take-up{band}",
    )
    literal(figure)
    if path is not None:
        figure.savefig(
            path, dpi=140, metadata={"Software": None} if str(path).endswith("png") else None
        )
    return figure
