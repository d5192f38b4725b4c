"""Files and connections named in a run file: what is read, and what is never shown."""

import re
from types import SimpleNamespace

import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.run.config import load_run
from dynchoice.run.init import write_sample
from dynchoice.run.source import refuse_secrets


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
