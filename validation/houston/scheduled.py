"""The scheduled run of Houston's bike share: a forecast every month, and a backtest at the end."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study
from houston_forecast.run import history

from dynchoice.run import cli
from dynchoice.run.publish import opened

HERE = Path(__file__).resolve().parent
MONTHS = pd.period_range("2017-04", "2018-02", freq="M").astype(str).tolist()
COLUMNS = ["uid", "period", "plan", "contract", "rides", "decides"]


def rows() -> pd.DataFrame:
    """Member-months of the window, as a scheduled job would be handed them."""
    df = history()
    df = df[df["period"].isin(MONTHS) & ~df["jump"]]
    return df[COLUMNS]


def one_month(folder: Path, table: pd.DataFrame, month: str, more: list[str]) -> dict[str, Any]:
    """Hand over the rows up to a month and run the schedule's command."""
    table[table["period"] <= month].to_parquet(folder / "rows.parquet", index=False)
    code = cli.main(["forecast", str(folder / "run.toml"), "--quiet", *more])
    newest = max((folder / "out").glob("run-*"), key=lambda p: p.stat().st_mtime_ns)
    run = opened(newest)
    assert run is not None
    guard = run.table("guard").set_index("guard")
    found = {f"{name}": guard.loc[name, "value"] for name in guard.index}
    texts = {name: guard.loc[name, "text"] for name in guard.index}
    return {"month": month, "exit": code, "status": run.status, **found, "texts": texts}


def scheduled(study: Study, want: dict[str, Any], quick: bool) -> None:
    """Run the schedule, month by month, then the backtest; show what an operator would see."""
    table = rows()
    out = HERE / "out"
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(HERE / "run.toml", folder)
        table[table["period"] == MONTHS[0]].to_parquet(folder / "rows.parquet", index=False)
        code = cli.main(["forecast", str(folder / "run.toml"), "--quiet"])
        study.check(f"{MONTHS[0]}: one month has no moves to learn from", code, 5, 0, "own oracle")
        months = MONTHS[-2:] if quick else MONTHS[1:]
        more = ["--set", "forecast.draws=20"] if quick else []
        seen = []
        for month in months:
            found = one_month(folder, table, month, more)
            if found["exit"] == 4:  # the operator looks, and publishes what the data say
                found["accepted"] = cli.main(
                    ["forecast", str(folder / "run.toml"), "--quiet", "--accept", *more]
                )
            seen.append(found)
        lines = []
        for s in seen:
            drift = " ".join(
                f"{k} {s[k]:.2f};" for k in ("drift of estimates", "drift of take-up",
                                             "calibration") if s[k] == s[k]
            )  # fmt: skip
            lines.append(f"{s['month']}: exit {s['exit']} ({s['status']}) {drift}")
            lines += [f"    {k}: {s['texts'][k]}" for k in ("drift of take-up", "calibration")]
        study.say("scheduled runs, month by month\n" + "\n".join(lines))
        study.check(
            "scheduled months that end published, held ones by hand",
            sum(s["exit"] == 0 or s.get("accepted") == 0 for s in seen), len(months), 0,
            "own oracle",
        )  # fmt: skip
        again = cli.main(
            ["forecast", str(folder / "run.toml"), "--quiet", "--exit-code-unchanged", "99", *more]
        )
        study.check("the same month again: nothing to do", again, 99, 0, "own oracle")
        backtest(study, folder, want, quick)
        if not quick:
            shutil.copytree((folder / "out" / "current").resolve(), out / "current")
            shutil.copytree((folder / "out" / "backtest").resolve(), out / "backtest")
            (out / "current" / "rows.parquet").unlink(missing_ok=True)


def backtest(study: Study, folder: Path, want: dict[str, Any], quick: bool) -> None:
    """Run the backtest and check what was said of it beforehand."""
    more = ["--set", "backtest.origins=['2017-11']", "--set", "backtest.draws=20"] if quick else []
    code = cli.main(["backtest", str(folder / "run.toml"), "--quiet", *more])
    study.check("backtest: exit code", code, 0, 0, "own oracle")
    done = folder / "out" / "backtest"
    study.say((done / "backtest.txt").read_text(encoding="utf-8"))
    record = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    study.check("backtest: fits that failed", len(record["failed"]), 0, 0, "own oracle")
    summary = pd.read_parquet(done / "summary.parquet").set_index(["method", "horizon"])
    for method, low in want["gains"].items():
        z = [
            summary.loc[(method, h), "model_gains"] / summary.loc[(method, h), "std_error"]
            for h in (1, 2, 3)
        ]
        study.within(f"gain over the {method}, least of 3 horizons, s.e.", min(z), low, 1e3,
                     "set before")  # fmt: skip
    page = (done / "backtest.html").read_text(encoding="utf-8")
    study.check("pictures in backtest.html", page.count("<svg"), 3, 0, "own oracle")
