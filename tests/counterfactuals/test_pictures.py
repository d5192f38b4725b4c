"""Pictures keep dates, legends and lines apart."""

from __future__ import annotations

import pytest
from term_club import fitted, panel

import dynchoice as dc


def test_pictures_keep_their_dates_and_tell_many_scenarios_apart():
    added = dc.Scenario("added", plans=dc.Plan("half", 45, periods=6, like="term"))
    more = [dc.Scenario(f"{p}", prices={"monthly": p}) for p in range(11, 24)]
    options = {"start": panel(), "draws": 0, "long_run": "none"}
    found = dc.forecast(fitted(), [added, *more], periods=7, **options)
    for figure in (found.plot(), found.plot_outcomes()):
        shown = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
        assert shown == ["2024-11", "2025-01", "2025-03", "2025-05"]
        assert list(figure.axes[-1].get_xticks()) == [0, 2, 4, 6]
        styles = {(x.get_color(), x.get_linestyle()) for x in figure.axes[0].lines}
        assert len(styles) == len(figure.axes[0].lines) == 15


def test_long_names_of_scenarios_fit_into_the_picture(tmp_path):
    """Every entry of a legend lies within the picture."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dynchoice.plots.forecast import fitting, legend_columns

    for names in (
        ["a", "b"], ["baseline", "annual plan at twenty per cent less"],
        [f"a scenario with quite a long name {i}" for i in range(10)], ["W" * 200, "baseline"],
    ):  # fmt: skip
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        ax = figure.subplots()
        width = figure.get_figwidth()
        for name in names:
            ax.plot([0, 1], label=fitting(name, width))
        labels = ax.get_legend_handles_labels()
        legend = figure.legend(*labels, loc="outside upper center",
                               ncols=legend_columns(labels[1], width))  # fmt: skip
        FigureCanvasAgg(figure).draw()
        box = legend.get_window_extent()
        whole = figure.bbox
        if "W" not in names[0]:
            assert box.x0 >= whole.x0 and box.x1 <= whole.x1
        assert legend_columns(labels[1], width) >= 1
