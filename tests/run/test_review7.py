"""What a review of scheduled runs found: each was wrong once."""

import contextlib
import io
import os
import re
import signal
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from run.test_unattended import done, forecast, started

import dynchoice as dc
from dynchoice.counterfactuals.backtest_scores import by_segment, cells_in_words, summary_of
from dynchoice.run import cli
from dynchoice.run.config import load_run
from dynchoice.run.guard import drift_of_scenarios
from dynchoice.run.init import write_sample
from dynchoice.run.schema import Guard
from dynchoice.run.source import refuse_secrets
from dynchoice.run.stages import RECORD, Stages

FAST = [
    *("--set", "forecast.draws=3", "--set", "forecast.periods=4", "--set", "output.picture=false"),
    *("--set", "output.report=false", "--set", 'guard.drift_estimates="off"'),
    *("--set", 'guard.drift_take_up="off"', "--set", 'guard.calibration="off"'),
]


# data --------------------------------------------------------------------------------------------


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path):
    """DuckDB took rows[1].parquet for a pattern, and read rows1.parquet."""
    rows = pd.DataFrame({"id": [1, 2], "t": [0, 0], "x": [0, 1], "c": ["a", "b"]})
    folder = tmp_path / "now [old]?"
    folder.mkdir()
    rows.to_parquet(folder / "rows[1].parquet")
    rows.head(1).to_parquet(folder / "rows1.parquet")
    rows.to_csv(folder / "rows[1].csv", index=False)
    for name in ("rows[1].parquet", "rows[1].csv"):
        panel = dc.Panel(
            str(folder / name), member="id", time="t", choice="c",
            states=dc.StateSpace(x=[0, 1]), choices=["a", "b"],
        )  # fmt: skip
        assert panel.counts.nobs == 2


def test_attributes_of_a_segment_are_those_whose_text_is_its_own(tmp_path):
    """Numbers were compared in one place and texts in another: a change went unnoticed."""
    from dynchoice.run.build import read_csv
    from dynchoice.run.reader import Reader

    (tmp_path / "a.csv").write_text("segment,choice,gain\n01,in,1\n1,in,2\n", encoding="utf-8")
    run = SimpleNamespace(
        path=lambda name: tmp_path / name, source="run.toml", reader=Reader([])
    )  # fmt: skip
    assert read_csv(run, "a.csv", "k", ("segment",))["segment"].tolist() == ["01", "1"]
    assert read_csv(run, "a.csv", "k")["segment"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:hun/ter2@h/db", "postgres://u:hun#ter2@h/db", "postgres://u:hun?ter2@h/db",
        "u:hunter2@h/db", "postgres:u:hunter2@h/db", "postgres://h/db?pw=hunter2",
        "postgres://u:hun@ter2@h/db", "postgres://u:${A}hunter2@h/db",
    ],
)  # fmt: skip
def test_no_part_of_a_password_is_shown(text):
    with pytest.raises(dc.ConfigError) as error:
        refuse_secrets(text, SimpleNamespace(source="run.toml"))
    assert "hun" not in str(error.value) and "ter2" not in str(error.value)


def test_connections_without_a_password_are_urls():
    for text in ("postgres://u:${A}@h:5432/db", "${URL}", "postgres://u@h/db", "postgres://h/db"):
        refuse_secrets(text, SimpleNamespace(source="run.toml"))


def test_a_list_in_place_of_a_connection_is_not_shown(tmp_path):
    write_sample(tmp_path)
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    (tmp_path / "run.toml").write_text(
        re.sub(r'(?m)^path = .*$', 'connection = ["postgres://u:hunter2@h/db"]', text),
        encoding="utf-8",
    )  # fmt: skip
    with pytest.raises(dc.ConfigError) as error:
        load_run(tmp_path / "run.toml")
    assert "connection" in str(error.value) and "hunter2" not in str(error.value)


def test_a_folder_in_place_of_a_run_file_is_called_one(tmp_path):
    with pytest.raises(dc.ConfigError, match=r"^[^:]*is a folder; name the run file in it$"):
        load_run(tmp_path)


# stages ------------------------------------------------------------------------------------------


def test_stages_of_a_killed_run_stay_until_a_later_run_has_been_published(tmp_path):
    stages, now = Stages(tmp_path), time.time()
    for name, age in (("a-old", 100), ("b-fresh", 1), ("c-kept", 100), ("d-half", 1)):
        folder = tmp_path / ".stages" / name
        folder.mkdir(parents=True)
        if name != "d-half":
            (folder / RECORD).write_text("{}", encoding="utf-8")
        os.utime(folder, (now - age, now - age))
    assert stages.prune({"c-kept"}, now - 50) == 2
    assert sorted(p.name for p in (tmp_path / ".stages").iterdir()) == ["b-fresh", "c-kept"]


@pytest.mark.slow
def test_a_run_of_some_segments_keeps_what_a_killed_one_finished(tmp_path):
    write_sample(tmp_path)
    segments = dict.fromkeys(pd.read_parquet(tmp_path / "members.parquet")["segment"])
    done(tmp_path, *FAST, "--segments", next(iter(segments)))  # as if killed after one estimate
    before = {p.name for p in (tmp_path / "out/.stages").iterdir()}
    done(tmp_path, *FAST, "--segments", list(segments)[1])
    assert before <= {p.name for p in (tmp_path / "out/.stages").iterdir()}
    said = done(tmp_path, *FAST)
    assert said.count("estimated before") == 2 or "estimating" not in said


# publication -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stop_after_the_publication_says_that_it_happened(tmp_path):
    write_sample(tmp_path)
    done(tmp_path, *FAST)
    ended = set()
    for i in range(4):
        title = f'title="Run {i}"'
        process = started(tmp_path, *FAST, "--set", title)
        link, was = tmp_path / "out/current", os.readlink(tmp_path / "out/current")
        while process.poll() is None and os.readlink(link) == was:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert os.readlink(link) != was and "nothing was published" not in said
        ended.add(process.returncode)
    assert ended <= {0, -signal.SIGTERM}


@pytest.mark.slow
def test_a_full_output_after_the_publication_is_no_failure(tmp_path):
    write_sample(tmp_path)
    said, full = io.StringIO(), open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with contextlib.redirect_stdout(full), contextlib.redirect_stderr(said):
        code = cli.main(["forecast", str(tmp_path / "run.toml"), *FAST])
    with contextlib.suppress(OSError):
        full.close()
    assert "nothing was published" not in said.getvalue() and code == 0
    assert (tmp_path / "out/current").exists()


def test_a_file_called_backtest_is_not_replaced(tmp_path):
    write_sample(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/backtest").write_text("mine", encoding="utf-8")
    code, said = forecast(tmp_path, *FAST)
    assert code == 2 and "is in the way" in said
    assert (tmp_path / "out/backtest").read_text(encoding="utf-8") == "mine"


# numbers -----------------------------------------------------------------------------------------


def errors_with_a_hole():
    """Two methods, three origins; the second has no forecast at the first origin."""
    rows = []
    for o, gap in enumerate((0.10, 0.02, 0.02)):
        for method, own in (("model", gap), ("series", np.nan if o == 0 else 0.05)):
            rows.append((f"o{o}", "s", 1, "in", method, 0.5 + own, 0.5))
    head = ["origin", "segment", "horizon", "choice", "method", "forecast", "observed"]
    out = pd.DataFrame(rows, columns=head)
    return out.assign(lower=0.4, upper=0.6, wide_lower=0.3, wide_upper=0.7)


def test_both_tables_of_a_backtest_are_over_the_same_cells():
    errors = errors_with_a_hole()
    none = pd.DataFrame(columns=["method", "horizon", "n", "score", "model_gains", "std_error"])
    first = summary_of(errors, none).set_index("method")
    second = by_segment(errors).set_index("method")
    assert first["error"].round(9).to_dict() == second["error"].round(9).to_dict()
    assert first.loc["model", "error"] == pytest.approx(2.0)
    said = cells_in_words(errors)
    assert "2 of 3 cells" in said and "4.67 at 1" in said
    assert cells_in_words(errors[errors["origin"] != "o0"]) == ""


def test_a_scenario_that_means_something_else_is_told_and_not_held():
    base = pd.DataFrame(
        {"scenario": "cheap", "segment": "s", "label": ["m1"], "choice": "in", "share": [0.17]}
    )
    before = SimpleNamespace(
        table=lambda name: base, folder=SimpleNamespace(name="run-1")
    )  # fmt: skip
    found = drift_of_scenarios(Guard(), base.assign(share=0.93), before)
    assert found.status == "warning" and "76.0 points" in found.text
    assert drift_of_scenarios(Guard(), base, before).status == "ok"


def test_bands_of_draws_with_one_number_have_no_spread_and_no_warning():
    from dynchoice.counterfactuals.forecast_tables import bands_of

    point = np.array([[1.0, 2.0]])
    drawn = [np.array([[1.0, np.nan]]), np.array([[1.2, np.nan]]), np.array([[0.9, 2.1]])]
    found = bands_of(point, drawn, 0.9, "draws", [1, 1, 1])
    assert np.isfinite(np.asarray(found.lower)).all()


# pictures ----------------------------------------------------------------------------------------


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
