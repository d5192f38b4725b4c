"""Rows that cannot be used: each source is refused in a few words, and nothing is published."""

import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynchoice.errors import DynChoiceWarning
from dynchoice.run import cli

ROOT = Path(__file__).resolve().parents[2]
PRIME = ROOT / "data" / "prime"
QUICK = ("forecast.draws=0", "forecast.periods=8", "output.report=false", "output.picture=false")
BOTH, ONE = ("check", "forecast"), ("forecast",)
NAN, INF = math.nan, math.inf
SECONDS = 60
BYTES = 6 * 2**30
PANEL = {"club": "members.parquet", "prime": "prime.parquet"}
Edit = Callable[[Path], None]
Change = Callable[[pd.DataFrame], pd.DataFrame]


class TooLong(BaseException):
    """A command took longer than any refusal may."""


@contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    """Stop what takes too long."""

    def stop(signum: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except TooLong:
        pytest.fail(f"no answer within {seconds} seconds", pytrace=False)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory(compiled):
    """Let what asks for too much memory fail before the machine does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two run files that work, on few members: a membership, and axes, model and utility."""
    root = tmp_path_factory.mktemp("samples")
    assert cli.main(["init", str(root / "club"), "--quiet"]) == 0
    rows = pd.read_parquet(root / "club" / "members.parquet")
    rows[rows["member"] % 500 < 40].to_parquet(root / "club" / "members.parquet", index=False)
    (root / "prime").mkdir()
    for name in ("run.toml", "contract.csv", "attributes.csv"):
        shutil.copy(PRIME / name, root / "prime")
    rows = pd.read_parquet(PRIME / "prime.parquet")
    few = rows[rows["member"] % 150 == 0]
    few.to_parquet(root / "prime" / "prime.parquet", index=False)
    return root


def panel_of(folder: Path) -> Path:
    """Return the panel's file in a folder."""
    return next(folder / n for n in PANEL.values() if (folder / n).exists())


def frame(change: Change) -> Edit:
    """Change the rows of the panel."""

    def edit(folder: Path) -> None:
        path = panel_of(folder)
        change(pd.read_parquet(path)).to_parquet(path, index=False)

    return edit


def arrow(change: Callable[[pa.Table], pa.Table]) -> Edit:
    """Change the panel as an Arrow table."""

    def edit(folder: Path) -> None:
        path = panel_of(folder)
        pq.write_table(change(pq.read_table(path)), path)

    return edit


def column(name: str, make: Callable[[pa.Table], Any]) -> Edit:
    """Replace one column by an Arrow array."""

    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, make(table))

    return arrow(change)


def some(name: str, value: Any, at: Any = slice(0, 2)) -> Edit:
    """Set a few values of a column."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        new = rows[name].astype(object)
        new.iloc[at] = value
        return rows.assign(**{name: new})

    return frame(change)


def whole(**values: Any) -> Edit:
    """Set whole columns."""
    return frame(lambda rows: rows.assign(**values))


def where(pick: Callable[[pd.DataFrame], Any]) -> Edit:
    """Keep some rows."""
    return frame(lambda rows: rows[pick(rows)])


def without(*names: str) -> Edit:
    """Take columns away."""
    return frame(lambda rows: rows.drop(columns=list(names)))


def content(data: bytes | str, name: str = "") -> Edit:
    """Write a file whole, by default the panel."""

    def edit(folder: Path) -> None:
        path = folder / name if name else panel_of(folder)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return edit


def bytes_of(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of the panel's file."""

    def edit(folder: Path) -> None:
        path = panel_of(folder)
        path.write_bytes(change(path.read_bytes()))

    return edit


def key(old: str, new: str) -> Edit:
    """Replace a text of the run file."""

    def edit(folder: Path) -> None:
        text = (folder / "run.toml").read_text(encoding="utf-8")
        assert old in text, old
        (folder / "run.toml").write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def path(value: str) -> Edit:
    """Name other files in the run file."""
    return key('path = "members.parquet"', f"path = {value}")


def csv(change: Callable[[str], str | bytes] = lambda text: text) -> Edit:
    """Write the panel as CSV, its text changed."""

    def edit(folder: Path) -> None:
        old = folder / "members.parquet"
        text = change(pd.read_parquet(old).to_csv(index=False))
        old.unlink()
        content(text, "members.csv")(folder)
        path('"members.csv"')(folder)

    return edit


def several(*edits: Edit) -> Edit:
    """Make several edits."""

    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def gone(folder: Path) -> None:
    panel_of(folder).unlink()


def folder_instead(folder: Path) -> None:
    gone(folder)
    (folder / "members.parquet").mkdir()


def dangling(folder: Path) -> None:
    gone(folder)
    (folder / "members.parquet").symlink_to("nowhere")


def to_itself(folder: Path) -> None:
    gone(folder)
    (folder / "members.parquet").symlink_to("members.parquet")


def months(make: Callable[[Path, pd.DataFrame], None]) -> Edit:
    """Put files into the folder ``months``, where the run file then looks."""

    def edit(folder: Path) -> None:
        (folder / "months").mkdir()
        make(folder / "months", pd.read_parquet(folder / "members.parquet"))
        path('"months"')(folder)

    return edit


def one_broken(folder: Path, rows: pd.DataFrame) -> None:
    rows.to_parquet(folder / "a.parquet", index=False)
    (folder / "b.parquet").write_bytes(b"PAR1 and nothing")


def other_columns(folder: Path, rows: pd.DataFrame) -> None:
    late = rows["month"] > "2025-06"
    rows[~late].to_parquet(folder / "a.parquet", index=False)
    rows[late].rename(columns={"plan": "choice"}).to_parquet(folder / "b.parquet", index=False)


def other_types(folder: Path, rows: pd.DataFrame) -> None:
    late = rows["month"] > "2025-06"
    rows[~late].to_parquet(folder / "a.parquet", index=False)
    worded = rows[late].assign(shipping="often")
    worded.to_parquet(folder / "b.parquet", index=False)


def same_rows(folder: Path, rows: pd.DataFrame) -> None:
    rows.to_parquet(folder / "a.parquet", index=False)
    rows.to_parquet(folder / "b.parquet", index=False)


def nothing_there(folder: Path, rows: pd.DataFrame) -> None:
    (folder / "notes.txt").write_text("later")


def database(*statements: str, table: str = 'table = "members"') -> Edit:
    """Put the panel into a DuckDB file, where the run file then looks."""

    def edit(folder: Path) -> None:
        con = duckdb.connect(str(folder / "w.duckdb"))
        con.sql(f"CREATE TABLE members AS FROM '{folder}/members.parquet'")
        for statement in statements:
            con.execute(statement)
        con.close()
        key('path = "members.parquet"', f'duckdb = "w.duckdb"\n{table}')(folder)

    return edit


def duck_file(make: Edit) -> Edit:
    """Let the run file look into ``w.duckdb``, which is something else."""
    return several(key('path = "members.parquet"', 'duckdb = "w.duckdb"\ntable = "members"'), make)


def offers(text: str) -> Edit:
    """Give a schedule of offers instead of columns."""
    return several(
        without("prices", "bundle"),
        content(text, "offers.csv"),
        key("[membership] ", 'offers = "offers.csv"\n[membership] '),
    )


def weights(make: Callable[[pd.DataFrame], Any]) -> Edit:
    """Give members weights."""
    return several(
        frame(lambda rows: rows.assign(w=make(rows))),
        key('segment = "segment"  ', 'weights = "w"\nsegment = "segment"  '),
    )


def decides(make: Callable[[pd.DataFrame], Any]) -> Edit:
    """Say which rows decide."""
    return several(
        frame(lambda rows: rows.assign(d=make(rows))),
        key('segment = "segment"  ', 'decision = "d"\nsegment = "segment"  '),
    )


def first(rows: pd.DataFrame, value: Any, otherwise: Any) -> list[Any]:
    """Return one value, then others."""
    return [value, *[otherwise] * (len(rows) - 1)]


def twice(rows: pd.DataFrame, many: int) -> pd.DataFrame:
    """Return rows of which some are there twice."""
    return pd.concat([rows, rows.head(many)])


@dataclass(frozen=True)
class Case:
    """One bad source: what is changed of which sample, and what has to be said."""

    name: str
    sample: str
    edit: Edit
    said: tuple[str, ...]
    code: int = 5
    commands: tuple[str, ...] = BOTH


CASES: list[Case] = []


def case(name: str, sample: str, edit: Edit, *said: str, **options: Any) -> None:
    assert name not in {c.name for c in CASES}, name
    options = {"commands": BOTH[len(CASES) % 2 :][:1], **options}
    CASES.append(Case(name, sample, edit, said, **options))


# fmt: off
# files
case("no file", "club", gone, "no such file", "members.parquet")
case("empty file", "club", content(""), "empty file", "members.parquet")
case("no rows", "club", where(lambda r: r["member"] < 0), "no row")
case("no columns", "club", arrow(lambda t: t.select([])), "members.parquet")
case("half a file", "club", bytes_of(lambda b: b[: len(b) // 2]), "members.parquet", commands=BOTH)
case("a file without its end", "club", bytes_of(lambda b: b[:-10]), "members.parquet")
case("random bytes", "club", content(np.random.default_rng(1).bytes(5000)), "members.parquet")
case("another magic", "club", bytes_of(lambda b: b"PAR2" + b[4:-4] + b"PAR2"), "members.parquet")
case("only magic", "club", content(b"PAR1PAR1"), "members.parquet")
case("pages overwritten", "club",
     bytes_of(lambda b: b[:200] + b"\xff" * (len(b) // 2) + b[200 + len(b) // 2:]),
     "members.parquet")
case("zeros", "club", content(b"\0" * 5000), "members.parquet")
case("Excel", "club", several(content(b"PK\x03\x04" + b"\0" * 500, "m.xlsx"), path('"m.xlsx"')),
     "m.xlsx")
case("text called Parquet", "club", content("member,month\n1,2024-01\n"), "members.parquet")
case("Parquet called CSV", "club",
     several(lambda f: (f / "members.parquet").rename(f / "members.csv"), path('"members.csv"')),
     "members.csv")
case("a folder called Parquet", "club", folder_instead, "members.parquet")
case("a link to nowhere", "club", dangling, "members.parquet")
case("a link to itself", "club", to_itself, "members.parquet")
case("a folder without Parquet", "club", months(nothing_there), "months")
case("a folder that is not there", "club", path('"nowhere/"'), "nowhere")
case("a pattern that matches nothing", "club", path('"months/*.parquet"'), "months/*.parquet")
case("a list with one missing", "club", path('["members.parquet", "more.parquet"]'), "more.parquet")
case("a list of two kinds", "club",
     several(content("a\n1\n", "m.csv"), path('["members.parquet", "m.csv"]')), "Parquet and CSV")
case("one broken file of two", "club", months(one_broken), "b.parquet")
case("files of other columns", "club", months(other_columns), "plan")
case("files of other types", "club", months(other_types), "shipping")
case("the same rows in two files", "club", months(same_rows), "repeat", "member 0")

# CSV
case("CSV ragged", "club", csv(lambda t: t + "1,2,3,4,5" * 3 + "\n"),
     "members.csv")
case("CSV too short a row", "club", csv(lambda t: t + "7,2026-01\n"), "members.csv")
case("CSV binary", "club", csv(lambda t: bytes(range(256)) * 30), "members.csv")
case("CSV of nul bytes", "club", csv(lambda t: b"\0" * 3000))
case("CSV by colons", "club", csv(lambda t: t.replace(",", "~")), "'member'")
case("CSV in latin-1", "club", csv(lambda t: t.replace("north", "n\xf6rd").encode("latin-1")),
     "members.csv")
case("CSV in UTF-16", "club", csv(lambda t: t.encode("utf-16")), "members.csv")
case("CSV of a header", "club", csv(lambda t: t.splitlines()[0] + "\n"), "no row")
case("CSV without a header", "club", csv(lambda t: t.split("\n", 1)[1]), "'member'")
case("CSV of blank lines", "club", csv(lambda t: "\n" * 50), "'member'")
case("CSV of a quote without end", "club", csv(lambda t: t.replace("none", '"none', 1)), "plan")
case("CSV of a header twice", "club", csv(lambda t: t + t.splitlines()[0] + "\n"), "member")
case("CSV of a number with a comma", "club",
     csv(lambda t: t.replace("old,no_music,0", 'old,no_music,"0,5"', 1)), "shipping")
case("CSV of one wrong number late", "club",
     csv(lambda t: re.sub(r",(\d),(\d),students", r",x,\2,students", t, count=1)), "shipping")

# columns
for name in ("member", "month", "plan", "segment", "region", "contract", "shipping", "prices",
             "bundle"):
    case(f"no column {name}", "club", without(name), f"'{name}'")
for name in ("month", "region", "contract", "video"):
    case(f"no column {name}, by axes", "prime", without(name), f"'{name}'")
case("a column misspelt", "club", frame(lambda r: r.rename(columns={"plan": "plans"})), "'plans'")
case("a column in capitals", "club", frame(lambda r: r.rename(columns={"plan": "PLAN"})), "'PLAN'")
case("no column of weights", "club",
     key('segment = "segment"  ', 'weights = "w"\nsegment = "segment"  '),
     "'w'")
case("no column of decisions", "club",
     key('segment = "segment"  ', 'decision = "d"\nsegment = "segment"  '), "'d'")
case("a column twice", "club",
     arrow(lambda t: t.append_column("plan", t["contract"])), "plan", commands=BOTH)
case("a column twice but for capitals", "club",
     frame(lambda r: r.assign(Plan=r["contract"])), "plan")

# missing values
for name in ("member", "month", "plan", "segment", "prices"):
    case(f"missing {name}", "club", some(name, None), name)
for name in ("month", "plan"):
    case(f"only missing {name}", "club", whole(**{name: None}), name)
for name in ("member", "month", "segment", "video"):
    case(f"missing {name}, by axes", "prime", some(name, None), name)
case("shipping nan", "club", some("shipping", NAN), "shipping")
case("video nan, by axes", "prime", some("video", NAN), "video")

# values
case("an unknown plan", "club", some("plan", "anual"), "anual", "'annual'", "2 row")
case("a plan in capitals", "club", some("plan", "Monthly"), "Monthly", "'monthly'")
case("an empty plan", "club", some("plan", ""), "plan")
case("a plan of a number", "club", whole(plan=1), "plan")
case("an unknown price list", "club", some("prices", "newer"), "newer")
case("an unknown bundle", "club", some("bundle", "with_musik"), "with_musik", "'with_music'")
case("an unknown contract", "club", some("contract", "annual_12"), "annual_12")
for label, value in (("2", 2), ("0.5", 0.5), ("infinite", INF)):
    case(f"shipping {label}", "club", some("shipping", value), "shipping")
case("video 0.5, by axes", "prime", some("video", 0.5), "video")
case("shipping as words", "club", whole(shipping="often"), "shipping")
case("video as words, by axes", "prime", whole(video="often"), "video")
case("video as dates, by axes", "prime", whole(video=pd.Timestamp("2024-01-01")), "video")
case("an unknown choice, by axes", "prime", some("plan", "anual"), "anual", "'annual'")
case("a choice of numbers, by axes", "prime", whole(plan=3), "plan")
case("an unknown level, by axes", "prime", some("prices", "newer"), "newer")
case("an unknown contract, by axes", "prime", some("contract", "annual_12"), "annual_12")
case("everything unknown", "club", whole(plan="p", prices="q", bundle="r", contract="s"), "plan")
case("everything unknown, by axes", "prime",
     whole(plan="p", prices="q", bundle="r", contract="s", video=7, music=8, shipping=9), "plan")
case("a plan of a megabyte", "club", some("plan", "x" * 1_000_000), "plan")
case("a choice of a megabyte, by axes", "prime", some("plan", "x" * 1_000_000), "plan")
case("a member of a megabyte", "club",
     frame(lambda r: twice(r.assign(member="x" * 20_000).head(30), 2)), "member")
case("a plan that moves the cursor", "club", some("plan", "\x1b[2J\x07\nall fine"), "plan")
case("a plan that is markup", "club", some("plan", "[bold]x[/]"), "[bold]x[/]")
case("2,000 unknown plans", "club",
     frame(lambda r: r.assign(plan=[f"p{i}" for i in range(len(r))])), "plan")

# types
case("plans as lists", "club",
     column("plan", lambda t: pa.array([["none"]] * len(t))), "plan", commands=BOTH)
case("plans as records", "club",
     column("plan", lambda t: pa.array([{"name": "none"}] * len(t))), "plan")
case("plans as bytes", "club", column("plan", lambda t: pa.array([b"none\xff"] * len(t))), "plan")
case("plans as yes and no", "club", whole(plan=True), "plan")
case("months as records", "club",
     column("month", lambda t: pa.array([{"y": 2024, "m": 1}] * len(t))), "month")
case("months as lists, by axes", "prime",
     column("month", lambda t: pa.array([[2024, 1]] * len(t))), "month")
case("members as lists", "club",
     column("member", lambda t: pa.array([[x] for x in t["member"].to_pylist()])), "member")
case("members as records, by axes", "prime",
     column("member", lambda t: pa.array([{"id": x} for x in t["member"].to_pylist()])), "member",
     commands=BOTH)
case("segments as lists", "club",
     column("segment", lambda t: pa.array([["a"]] * len(t))), "segment", commands=BOTH)
case("shipping as records", "club",
     column("shipping", lambda t: pa.array([{"a": 1}] * len(t))), "shipping")
case("video as lists, by axes", "prime",
     column("video", lambda t: pa.array([[1]] * len(t))), "video", commands=BOTH)
case("contract as numbers", "club", whole(contract=3), "contract")

# time
for label, value in (("in month 13", "2024-13"), ("in month 0", "2024-00"), ("in words", "Jan 24"),
                     ("of a year", "2024"), ("of one digit", "2024-1"), ("empty", ""),
                     ("with a slash", "01/2024"), ("with a day first", "01-02-2024")):
    case(f"a month {label}", "club", some("month", value), "month")
case("a month in words, by axes", "prime", some("month", "Jan 24"), "month")
case("months as fractions", "club",
     frame(lambda r: r.assign(month=np.arange(len(r)) + 0.5)), "month")
case("months as fractions, by axes", "prime",
     frame(lambda r: r.assign(month=np.arange(len(r)) + 0.5)), "month")
case("months with a time zone", "club",
     frame(lambda r: r.assign(month=pd.to_datetime(r["month"]).dt.tz_localize("Europe/Berlin"))),
     "zone")
case("months as yes and no", "club", whole(month=True), "month")
case("months as times of day", "prime",
     column("month", lambda t: pa.array([3600] * len(t), pa.time32("s"))), "month")
case("days instead of months", "club",
     frame(lambda r: r.assign(month=r["month"].str[:5] + "01-" + r["month"].str[5:])),
     "member 0", "repeat")
case("integers that jump at New Year", "prime",
     frame(lambda r: r.assign(month=r["month"].str.replace("-", "").astype(int))), "freq")
case("quarters asked of months", "prime",
     key('segment = "segment"', 'freq = "quarter"\nsegment = "segment"'), "more than once")
case("integers asked of texts", "prime",
     key('segment = "segment"', 'freq = "integer"\nsegment = "segment"'), "integer")

# one row a member and month
case("a row twice", "club", frame(lambda r: twice(r, 1)), "member 0", "2024-01")
case("a row twice, by axes", "prime", frame(lambda r: twice(r, 1)), "member 0", "2021-01")
case("every row twice", "club", frame(lambda r: pd.concat([r, r])), "repeat")
case("two plans in a month", "club",
     frame(lambda r: pd.concat([r, r.head(3).assign(plan="annual")])), "member 0")
case("one member of all rows", "prime", whole(member=1), "more than once")

# weights and decisions
for label, value in (("negative", -1.0), ("nan", NAN)):
    case(f"weight {label}", "club",
         weights(lambda r, v=value: np.where(r["member"] == 3, v, 1.0)), "'w'", "member 3")
case("weight varies", "club", weights(lambda r: 1.0 + r["month"].rank()), "weight", "member 0")
case("weight in words", "club", weights(lambda r: "heavy"), "w")
for label, value in (("2", 2), ("missing", None)):
    case(f"decision {label}", "club",
         decides(lambda r, v=value: pd.array(first(r, v, 1), dtype="Int64")), "'d'")
case("decision in words", "club", decides(lambda r: "yes"), "d")
case("nobody decides", "club", decides(lambda r: 0), "decision", commands=ONE)

# contracts
case("leaves a running contract", "club",
     frame(lambda r: r.assign(plan=r["plan"].mask(r["contract"] == "annual_5", "none"))),
     "annual_5", "none")
case("leaves a running contract, by axes", "prime",
     frame(lambda r: r.assign(plan=r["plan"].mask(r["contract"] == "annual_5", "none"))),
     "annual_5", "none", commands=ONE)
case("a contract that jumps", "club",
     frame(lambda r: r.assign(contract=r["contract"].mask(r["contract"] == "annual_5",
                                                          "annual_9"))), "annual_9", commands=ONE)
case("a contract that jumps, by axes", "prime",
     frame(lambda r: r.assign(contract=r["contract"].mask(r["contract"] == "annual_5",
                                                          "annual_9"))), "annual_9", commands=ONE)
case("a contract out of nothing", "club",
     frame(lambda r: r.assign(contract=np.where(r["plan"] == "none", "annual_0", "none"))),
     "contract", commands=ONE)
case("contracts shuffled", "club",
     frame(lambda r: r.assign(contract=r["contract"].sample(frac=1, random_state=1).to_numpy())),
     "contract")

# too little
case("one month", "club", where(lambda r: r["month"] == "2024-05"), "two consecutive periods",
     commands=ONE)
case("one month, by axes", "prime", where(lambda r: r["month"] == "2021-05"),
     "two consecutive periods", commands=ONE)
case("one row", "club", frame(lambda r: r.head(1)), "two consecutive periods", commands=ONE)
case("one member", "club", where(lambda r: r["member"] == 7), "parameter", code=3, commands=ONE)
case("every other month", "club",
     where(lambda r: r["month"].str[-1].isin(list("13579")) & ~r["month"].str.endswith("11")),
     "", commands=ONE)
case("nobody ever joins", "club", whole(plan="none", contract="none"), "", code=3, commands=ONE)
case("one segment never joins", "club",
     frame(lambda r: r.assign(
         plan=r["plan"].mask(r["segment"] == "students", "none"),
         contract=r["contract"].mask(r["segment"] == "students", "none"))),
     "students", code=3, commands=ONE)
case("nobody takes the annual plan", "club",
     where(lambda r: ~r["member"].isin(r.loc[
         (r["plan"] == "annual") | r["contract"].str.startswith("annual"), "member"])),
     "", code=3, commands=ONE)
case("prices never move", "club", whole(prices="old"), "price", code=3, commands=ONE)
case("a benefit nobody uses", "club", whole(music=0), "music", code=3, commands=ONE)
case("a segment of one row", "club",
     frame(lambda r: pd.concat([r, r.head(1).assign(member=9999, segment="lonely")])),
     "lonely", "two consecutive periods", commands=ONE)
case("a segment that the run file names and nobody is of", "club",
     several(key('# segments = ["families"] ', 'segments = ["families", "students"] '),
             where(lambda r: r["segment"] == "families")), "'students'")
case("attributes of no such segment", "prime",
     frame(lambda r: r.assign(segment=r["segment"].replace("US families", "U.S. families"))),
     "'U.S. families'", "'US families'", code=2, commands=BOTH)
case("an empty segment name", "club", some("segment", "", slice(0, 60)), "segment", commands=BOTH)
case("a segment called all", "club",
     frame(lambda r: r.assign(segment=r["segment"].replace("families", "all"))), "'all'",
     commands=BOTH)
case("20 segments of four members", "club",
     frame(lambda r: r.assign(segment="s" + (r["member"] % 500 % 20).astype(str))), "of 20 fits",
     code=3, commands=ONE)

# many rows refused and left out
case("5% of a plan that is none are refused all the same", "club",
     several(key('# invalid = "raise" ', 'invalid = "drop" '), some("plan", "p", slice(0, 100))),
     "100 row(s) of 'plan' hold no plan", commands=ONE)
case("5% of another price list left out", "club",
     several(key('# invalid = "raise" ', 'invalid = "drop" '), some("prices", "p", slice(0, 100))),
     "refused", code=4, commands=ONE)
case("all refused and left out", "club",
     several(key('# invalid = "raise" ', 'invalid = "drop" '), whole(plan="p")), "plan")

# offers
case("offers without from", "club", offers("start,prices,bundle\n2024-01,old,no_music\n"), "'from'")
case("offers of an unknown list", "club", offers("from,prices,bundle\n2024-01,olde,no_music\n"),
     "olde")
case("offers that cannot be read", "club", offers("from,prices,bundle\nJanuary,old,no_music\n"),
     "January")
case("offers that begin late", "club", offers("from,prices,bundle\n2024-06,old,no_music\n"),
     "2024-0")
case("offers empty", "club", offers(""), "offers.csv", code=2)
case("offers of no row", "club", offers("from,prices,bundle\n"), "offers", commands=BOTH)
case("offers that contradict", "club",
     offers("from,prices,bundle\n2024-01,old,no_music\n2024-01,new,no_music\n"), "offers", "both")

# DuckDB
case("no database", "club", duck_file(lambda f: None), "w.duckdb")
case("an empty database file", "club", duck_file(content("", "w.duckdb")), "w.duckdb")
case("no database file", "club", duck_file(content(b"not a database" * 900, "w.duckdb")),
     "w.duckdb", code=5)
case("SQLite", "club", duck_file(content(b"SQLite format 3\0" + b"\0" * 5000, "w.duckdb")),
     "w.duckdb", code=5)
case("half a database", "club",
     several(database(), lambda f: os.truncate(f / "w.duckdb", 6000)), "w.duckdb")
case("a folder as a database", "club", duck_file(lambda f: (f / "w.duckdb").mkdir()), "w.duckdb")
case("no table", "club", database(table='table = "member"'), "'member'", "'members'", commands=BOTH)
case("no table by injection", "club",
     database(table='table = "members; DROP TABLE members"'), "members; DROP")
case("no schema", "club", database(table='table = "members"\nschema = "lake"'), "'lake'")
case("an empty table", "club", database("DELETE FROM members"), "no row")
case("a table without a column", "club", database("ALTER TABLE members DROP plan"), "'plan'")
case("a table with an unknown plan", "club",
     database("UPDATE members SET plan = 'anual' WHERE member = 3"), "anual")
case("a view of nothing", "club",
     database("CREATE TABLE t (a INT)", "CREATE VIEW v AS FROM t", "DROP TABLE t",
              table='table = "v"'), "v")
case("a view of a file that is gone", "club",
     database("COPY members TO 'gone.parquet'", "CREATE VIEW v AS FROM 'gone.parquet'",
              table='table = "v"'), "gone.parquet")
case("a view that fails on a row", "club",
     database("CREATE VIEW v AS SELECT * REPLACE (CASE WHEN member = 3 THEN 'x'::INT ELSE shipping"
              " END AS shipping) FROM members", table='table = "v"'), "w.duckdb")
case("a view that raises", "club",
     database("CREATE VIEW v AS SELECT * REPLACE (CASE WHEN member = 3 THEN error('no entry')"
              " ELSE plan END AS plan) FROM members", table='table = "v"'), "no entry",
     commands=BOTH)
case("a nested column", "club",
     database("CREATE VIEW v AS SELECT * REPLACE ([plan] AS plan) FROM members",
              table='table = "v"'), "plan")
# fmt: on


def called(command: str, folder: Path) -> int:
    """Return the exit code of a command with what makes it quick."""
    sets = [x for s in QUICK for x in ("--set", s)]
    with bounded():
        return cli.main([command, str(folder / "run.toml"), *sets])


def told(error: str) -> str:
    """Return a message without the lines of progress."""
    return "\n".join(x for x in error.splitlines() if not re.match(r"\[\d+/\d+\]", x))


def check_message(error: str, said: tuple[str, ...] = ()) -> None:
    """Assert that a message is short, of this package, and names what it should."""
    for text in said:
        assert text in error
    for text in ("Traceback", "unexpected", "mistake in dynchoice", "\0", "\x1b", "\x07",
                 "extensions.duckdb"):  # fmt: skip
        assert text not in error
    assert len(error) <= 6000 and len(error.splitlines()) <= 45
    assert error.strip()


@pytest.mark.parametrize(
    ("sample", "edit"),
    [("club", several()), ("prime", several()), ("club", csv()), ("club", database()),
     ("club", weights(lambda r: 2)),
     ("club", offers("from,prices,bundle\n2024-01,old,no_music\n"))],
    ids=["club", "prime", "CSV", "DuckDB", "weights", "offers"],
)  # fmt: skip
def test_what_is_not_bad_is_not_refused(sample, edit, samples, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(samples / sample, folder)
    edit(folder)
    assert called("check", folder) == 0, capsys.readouterr().err


def most_slow(cases, every):
    """Keep one of so many for every machine; the others are for CI."""
    return [
        c if i % every == 0 else pytest.param(c, marks=pytest.mark.slow)
        for i, c in enumerate(cases)
    ]


@pytest.mark.parametrize("bad", most_slow(CASES, 5), ids=lambda c: c.name)
def test_bad_rows_are_refused(bad, samples, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(samples / bad.sample, folder)
    monkeypatch.chdir(tmp_path)
    bad.edit(folder)
    if "gone.parquet" in bad.said:
        (tmp_path / "gone.parquet").unlink()
    for command in bad.commands:
        with warnings.catch_warnings(record=True) as escaped:
            warnings.simplefilter("always", DynChoiceWarning)
            code = called(command, folder)
        assert not [str(w.message) for w in escaped if issubclass(w.category, DynChoiceWarning)]
        error = told(capsys.readouterr().err)
        assert code == bad.code, (command, error)
        check_message(error, bad.said)
    assert not (folder / "out" / "current").is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(samples, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(samples / "club", folder)
    (folder / "members.parquet").chmod(0)
    for command in BOTH:
        assert called(command, folder) == 5
        check_message(told(capsys.readouterr().err), ("no permission", "members.parquet"))


def test_a_database_that_another_process_writes(samples, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(samples / "club", folder)
    database()(folder)
    text = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('on', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text, str(folder / "w.duckdb")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        try:
            assert writer.stdout.readline().strip() == "on"
            codes = [called(command, folder) for command in BOTH]
        finally:
            writer.communicate("\n")
    error = told(capsys.readouterr().err)
    assert codes == [1, 1]
    assert "w.duckdb" in error and "lock" in error.lower()
    check_message(error)


@pytest.mark.parametrize(
    "label",
    [
        "../../outside",
        pytest.param("*/..", marks=pytest.mark.slow),
        pytest.param("x" * 300, marks=pytest.mark.slow),
        "\u00fc\u4e2d \U0001f600\nx",
    ],
)
def test_a_segments_name_is_no_path(samples, tmp_path, capsys, label):
    folder = tmp_path / "deep" / "er" / "run"
    shutil.copytree(samples / "club", folder)
    frame(lambda r: r.assign(segment=r["segment"].replace("families", label)))(folder)
    before = {p for p in tmp_path.rglob("*") if folder / "out" not in [p, *p.parents]}
    code = called("forecast", folder)
    error = told(capsys.readouterr().err)
    assert code in (0, 5), error
    after = {p for p in tmp_path.rglob("*") if folder / "out" not in [p, *p.parents]}
    assert after == before
    if code:
        check_message(error)
    else:
        told_of = pd.read_parquet(folder / "out" / "current" / "estimates.parquet")
        assert set(told_of["segment"]) == {label, "students"}


def test_a_segment_that_has_left_keeps_its_estimates(samples, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(samples / "club", folder)
    where(lambda r: (r["segment"] == "families") | (r["month"] < "2025-10"))(folder)
    code = called("forecast", folder)
    error = told(capsys.readouterr().err)
    assert code in (0, 5), error
    assert "students" in error
    check_message(error)


def test_a_region_a_row_does_not_take_all_memory(samples, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(samples / "prime", folder)
    frame(lambda r: r.assign(region=[f"z{i}" for i in range(len(r))]))(folder)
    code = called("forecast", folder)
    error = told(capsys.readouterr().err)
    assert code in (0, 5), error
    if code:
        check_message(error, ("region",))
