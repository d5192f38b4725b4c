"""What all pictures share: how one is begun and saved, colours, lines and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dynchoice.errors import MissingExtraError, SpecificationError, suggest
from dynchoice.typing import FilePath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#333333", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LETTERS = 9
"""Letters of a legend to an inch, at the least."""


def load_matplotlib() -> ModuleType:
    """Return matplotlib.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("plots need matplotlib: pip install 'dynchoice[report]'") from None
    return matplotlib


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    load_matplotlib()
    # not pyplot's: that keeps every figure until it is closed, and asks for a screen
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finish(figure: Figure, path: FilePath | None) -> Figure:
    """Save a figure where a path is given, and return it."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # a label may hold dollars
    if path is not None:
        # without the version of matplotlib: the same run has the same bytes
        png = str(path).endswith("png")
        figure.savefig(path, dpi=140, metadata={"Software": None} if png else None)
    return figure


def pick(wanted: str | Iterable[object] | None, pool: Sequence[str], what: str) -> list[str]:
    """Return the wanted names as texts, all of the pool where ``wanted`` is None.

    Raises
    ------
    SpecificationError
        A name that is not in the pool.
    """
    if wanted is None:
        return list(pool)
    names = [wanted] if isinstance(wanted, str) else [str(w) for w in wanted]
    for name in names:
        if name not in pool:
            raise SpecificationError(
                f"no {what} {name!r}.{suggest(name, pool)} Known: {', '.join(pool)}"
            )
    return names


def fitting(name: str, width: float) -> str:
    """Return a label cut to what one column of a legend holds."""
    most = int(LETTERS * width) - 8
    return name if len(name) <= most else f"{name[: most - 1]}…"


def legend_columns(names: Sequence[str], width: float, most: int = 5) -> int:
    """Return how many columns of a legend fit into a picture of some inches."""
    longest = max((len(str(n)) for n in names), default=1)
    return max(1, min(len(names), most, int(LETTERS * width / (longest + 7))))


def line_style(i: int) -> dict[str, Any]:
    """Return the line style of the i-th scenario: where colours come back, lines are dotted.

    The baseline is dashed and on top, so that a scenario without effect shows.
    """
    if i == 0:
        return {"ls": (0, (4, 3)), "zorder": 5}
    return {"ls": ("-", ":", "-.")[(i // len(COLOURS)) % 3]}


def clear_frame(ax: Axes) -> None:
    """Draw a faint grid and no frame above and on the right."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def label_periods(ax: Axes, labels: Sequence[str], most: int, **options: Any) -> None:
    """Label at most so many of the periods 0, 1 ... of an axis."""
    step = max(1, -(-len(labels) // most))
    ax.set_xticks(range(0, len(labels), step), labels[::step], **options)
