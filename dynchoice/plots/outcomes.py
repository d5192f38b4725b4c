"""Pictures of outcomes, flows, bundles and elasticities (matplotlib, extra ``report``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import MissingExtraError, SpecificationError, suggest
from dynchoice.plots.forecast import COLOURS, line_style, literal

if TYPE_CHECKING:
    from dynchoice.counterfactuals.bundles import Bundles, Elasticities
    from dynchoice.counterfactuals.forecast import Forecast

SHOWN = ("penetration", "revenue", "surplus")
UNITS = {
    "revenue": "money per customer",
    "profit": "money per customer",
    "surplus": "money per customer",
    "payments": "money per customer",
    "refunds": "money per customer",
    "benefit cost": "money per customer",
}


def figure_of(width: float, height: float) -> Any:
    """Return a matplotlib figure.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plots need matplotlib: pip install 'dynchoice[report]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def finish(figure: Any, path: Any) -> Any:
    """Save a figure where a path is given, and return it."""
    literal(figure)
    if path is not None:
        png = str(path).endswith("png")
        figure.savefig(path, dpi=140, metadata={"Software": None} if png else None)
    return figure


def pick(wanted: Any, known: Sequence[str], what: str) -> list[str]:
    """Return names that are known, all where none are wanted."""
    if wanted is None:
        return list(known)
    names = [wanted] if isinstance(wanted, str) else [str(w) for w in wanted]
    for name in names:
        if name not in known:
            raise SpecificationError(
                f"no {what} {name!r}.{suggest(name, known)} Known: {', '.join(known)}"
            )
    return names


def plain(ax: Any) -> None:
    """Take the clutter off an axis."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def plot_outcomes(
    forecast: Forecast,
    measures: Sequence[str] | None = None,
    segments: Any = None,
    path: Any = None,
) -> Any:
    """Draw measures by period: a column a segment, a row a measure, a line a scenario.

    The dark band is pointwise, the light one holds the whole path.
    """
    table = forecast.outcomes
    if table is None:
        raise SpecificationError("outcomes are there for models built by Membership only")
    known = list(dict.fromkeys(table["measure"]))
    rows = pick(measures, known, "measure") if measures is not None else list(SHOWN)
    columns = pick(segments, list(dict.fromkeys(table["segment"])), "segment")
    scenarios = list(dict.fromkeys(table["scenario"]))
    figure = figure_of(max(3.2 * len(columns), 6.0), 2.1 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for c, segment in enumerate(columns):
        for r, measure in enumerate(rows):
            ax = axes[r][c]
            part = table[(table["segment"] == segment) & (table["measure"] == measure)]
            scale = 1.0 if measure in UNITS else 100.0
            for i, scenario in enumerate(scenarios):
                line = part[part["scenario"] == scenario]
                x, colour = np.arange(len(line)), COLOURS[i % len(COLOURS)]
                style = line_style(i)
                ax.plot(x, scale * line["value"], color=colour, lw=1.6, label=scenario, **style)
                for low, high, alpha in (
                    ("lower_uniform", "upper_uniform", 0.08),
                    ("lower", "upper", 0.16),
                ):
                    if line[low].notna().all():
                        ax.fill_between(
                            x, scale * line[low], scale * line[high], color=colour, alpha=alpha,
                            lw=0,
                        )  # fmt: skip
            plain(ax)
            if r == 0:
                ax.set_title(segment, fontsize=10)
            if c == 0:
                unit = UNITS.get(measure, "% of customers" if "rate" not in measure else "%")
                unit = "%" if measure == "trial conversion" else unit
                ax.set_ylabel(f"{measure},\n{unit}", fontsize=9)
            if r == len(rows) - 1:
                text = list(table[table["segment"] == segment].drop_duplicates("period")["label"])
                step = max(1, -(-len(text) // 5))
                ax.set_xticks(range(0, len(text), step), text[::step], rotation=35, fontsize=8)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=min(len(names), 4), frameon=False
    )
    return finish(figure, path)


def plot_flows(
    forecast: Forecast,
    scenario: str,
    segment: Any = None,
    period: int | None = None,
    path: Any = None,
) -> Any:
    """Draw who moves from which plan to which in one period, baseline left, scenario right.

    Bands are as wide as the share of customers that moves along them.
    """
    flows = forecast.flows
    known = list(dict.fromkeys(flows["scenario"]))
    (name,) = pick(scenario, known, "scenario")
    segments = list(dict.fromkeys(flows["segment"]))
    (where,) = pick(segments[-1] if segment is None else str(segment), segments, "segment")
    at = int(flows["period"].max()) if period is None else int(period)
    shown = [known[0], name] if name != known[0] else [name]
    figure = figure_of(5.0 * len(shown), 4.2)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, which in zip(axes, shown, strict=True):
        part = flows[
            (flows["scenario"] == which) & (flows["segment"] == where) & (flows["period"] == at)
        ]
        if not len(part):
            raise SpecificationError(f"no flows in period {at}: periods 1 to {flows.period.max()}")
        labels = list(dict.fromkeys(part["choice"]))
        table = part.pivot_table(index="source", columns="choice", values="share", sort=False)
        matrix = table.reindex(index=labels, columns=labels).fillna(0.0).to_numpy()
        alluvial(ax, matrix, labels)
        label = part["label"].iloc[0]
        ax.set_title(f"{which}: {where}, period {label}", fontsize=10)
    return finish(figure, path)


def alluvial(ax: Any, matrix: Any, labels: Sequence[str]) -> None:
    """Draw a flow matrix (sources by choices) as bands between two columns."""
    gap = 0.04
    left = np.concatenate([[0.0], np.cumsum(matrix.sum(axis=1) + gap)])
    right = np.concatenate([[0.0], np.cumsum(matrix.sum(axis=0) + gap)])
    x = np.linspace(0.0, 1.0, 40)
    bend = 3 * x**2 - 2 * x**3
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
        for at, start, size, ha in sides:
            ax.text(at, start + size / 2, f"{label}\n{size:.1%}", ha=ha, va="center", fontsize=8)
    ax.set_xlim(-0.3, 1.3)
    ax.invert_yaxis()
    ax.axis("off")


def plot_frontier(found: Bundles, x: str = "surplus", y: str = "profit", path: Any = None) -> Any:
    """Draw bundles by two outcomes, a panel a segment, with the frontier and its names."""
    table, edge = found.table, found.frontier(x, y)
    segments = list(dict.fromkeys(table["segment"]))
    columns = min(len(segments), 2)
    rows = -(-len(segments) // columns)
    figure = figure_of(5.2 * columns, 3.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax in axes[len(segments) :]:
        ax.axis("off")
    for ax, segment in zip(axes, segments, strict=False):
        part, top = table[table["segment"] == segment], edge[edge["segment"] == segment]
        ax.scatter(part[x], part[y], s=14, color="#999999", label="bundles", zorder=2)
        ax.plot(top[x], top[y], "o-", color=COLOURS[1], ms=5, lw=1.4, label="frontier", zorder=3)
        shown = top.iloc[:: max(1, len(top) // 4)]
        for i, (_, row) in enumerate(shown.iterrows()):
            price = [f"{c[6:]} {row[c]:g}" for c in table.columns if str(c).startswith("price ")]
            text = row["bundle"] + (f"\n({', '.join(price)})" if price else "")
            ax.annotate(
                text, (row[x], row[y]), xytext=(6, -12 if i % 2 else 6),
                textcoords="offset points", fontsize=6.5,
            )  # fmt: skip
        ax.set_title(segment, fontsize=10)
        ax.set_xlabel(f"{x}, money per customer and period", fontsize=9)
        ax.set_ylabel(y, fontsize=9)
        ax.margins(0.15)
        plain(ax)
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, path)


def plot_elasticities(found: Elasticities, horizon: str = "long", path: Any = None) -> Any:
    """Draw elasticities as a coloured table, a panel a segment: rows are prices."""
    if horizon not in ("short", "long"):
        raise SpecificationError(f"horizon={horizon!r}: use 'short' or 'long'")
    table = found.table
    segments = list(dict.fromkeys(table["segment"]))
    figure = figure_of(3.6 * len(segments), 1.2 + 0.7 * table["price"].nunique())
    axes = figure.subplots(1, len(segments), squeeze=False)[0]
    limit = float(np.abs(table[horizon]).max())
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
