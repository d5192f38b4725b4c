import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.run import cli
from dynchoice.run.config import load_run

ROOT = Path(__file__).resolve().parents[2]
PRIME = ROOT / "data" / "prime"


@pytest.fixture(scope="module")
def tenth(tmp_path_factory):
    """The sample run on a tenth of its members."""
    folder = tmp_path_factory.mktemp("tenth")
    for name in ("run.toml", "contract.csv", "attributes.csv"):
        shutil.copy(PRIME / name, folder)
    panel = pd.read_parquet(PRIME / "prime.parquet")
    panel[panel["member"] % 10 == 0].to_parquet(folder / "prime.parquet")
    return folder


@pytest.fixture
def prime(tenth, tmp_path):
    """A copy of it, in a folder of the test's own."""
    shutil.copytree(tenth, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run.toml"


FAST = ["--set", "forecast.draws=5", "--set", "forecast.periods=8"]
FAST += ["--set", "output.report=false"]  # the page is that of test_report.py


@pytest.fixture(scope="module")
def published(tenth, tmp_path_factory):
    """A folder with one published run, and what the command printed."""
    folder = shutil.copytree(tenth, tmp_path_factory.mktemp("published") / "prime")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["forecast", str(folder / "run.toml"), *FAST]) == 0
    return folder / "run.toml", out.getvalue(), err.getvalue()


def test_forecast_publishes_a_whole_run(published):
    prime, out, err = published
    folder = Path(out.strip())
    assert "[4/7] estimating US families" in err
    current = prime.parent / "out" / "current"
    assert current.resolve() == folder.resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["versions"]["dynchoice"] == dc.__version__
    assert {f["name"] for f in manifest["inputs"]} == {
        "run.toml",
        "prime.parquet",
        "contract.csv",
        "attributes.csv",
    }
    assert all(f["converged"] for f in manifest["fits"].values())
    named = {f["name"] for f in manifest["outputs"]}
    assert {"take_up.parquet", "flows.parquet", "welfare.parquet", "estimates.parquet",
            "forecast.png", "summary.txt", "panel.txt", "forecast.txt"} <= named  # fmt: skip
    take_up = pd.read_parquet(folder / "take_up.parquet")
    assert set(take_up["scenario"]) == {"baseline", "grocery everywhere", "annual 20% off"}
    assert take_up["period"].max() == 8 and take_up["label"].iloc[0] == "2024-01"
    fit = dc.load(next((folder / "results").glob("*.npz")))
    assert fit.converged
    words = (folder / "forecast.txt").read_text()
    assert "annual 20% off: none" in words and "What the scenarios rest on" in words
    leftovers = [p.name for p in (prime.parent / "out").iterdir() if p.name.startswith(".writing")]
    assert not leftovers


def test_a_second_run_gives_the_same_numbers_and_moves_current(published):
    prime = published[0]
    numbers = [*FAST, "--set", "output.picture=false", "--quiet"]
    out = prime.parent / "out"
    first = (out / "current").resolve()
    assert cli.main(["forecast", str(prime), *numbers, "--jobs", "2", "--force"]) == 0
    second = (out / "current").resolve()
    assert first != second and first.exists()
    for name in ("take_up", "flows", "welfare", "estimates"):
        assert (first / f"{name}.parquet").read_bytes() == (second / f"{name}.parquet").read_bytes()


@pytest.mark.slow
def test_the_sample_estimates_agree_with_the_truth_beside_it(prime):
    import tomllib

    cli.main(["forecast", str(prime), "--set", "forecast.draws=0", "--quiet"])
    table = pd.read_parquet(prime.parent / "out" / "current" / "estimates.parquet")
    truth = tomllib.loads((PRIME / "truth.toml").read_text())["segments"]
    short = {"member:shipping": "shipping", "member:video": "video", "member:music": "music",
             "member:grocery:grocery_on": "grocery"}  # fmt: skip
    z = [
        (row.estimate - truth[row.segment]["params"][short.get(row.parameter, row.parameter)])
        / row.std_error
        for row in table.itertuples()
    ]
    assert len(z) == 36 and max(map(abs, z)) < 4
    assert sum(v * v for v in z) / 36 < 2


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("model.beta=1.2", 2, "beta=1.2 is outside"),
        ("forecast.periods=0", 2, "forecast.periods: Input should be greater than or equal to 1"),
        ("forecast.drws=3", 2, "forecast.drws: unknown key. Did you mean 'draws'"),
        ("data.membr='x'", 2, "data.membr: unknown key. Did you mean 'member'"),
        ("data.member='membr'", 5, "no column 'membr'"),
        ("data.path='gone.parquet'", 5, "no such file"),
        ("utility.formula='0 + membr'", 2, "Did you mean 'member'"),
        ("utility.attributes='gone.csv'", 2, "cannot read 'gone.csv'"),
        ("estimate.maxiter=1", 3, "fits failed"),
        ("nonsense", 2, "expected KEY=VALUE"),
        ("data.path.deep=1", 2, "is no table"),
        ("axes.video.law='markow'", 2, "axes.video.law"),
    ],
)
def test_exit_codes_and_messages(prime, capsys, setting, code, message):
    more = ["--set", "estimate.tol=1e-15"] if setting == "estimate.maxiter=1" else []
    got = cli.main(["forecast", str(prime), "--set", setting, *more])
    error = capsys.readouterr().err
    assert got == code, error
    assert message in error
    assert not (prime.parent / "out" / "current").exists()


def test_every_error_of_a_run_file_is_shown_at_once(tmp_path, capsys):
    (tmp_path / "run.toml").write_text(
        "[data]\nmember = 'm'\n[model]\nchoices = ['a', 'b']\nbeta = 'x'\n[axes.s]\nlaw = 'fixed'\n"
    )
    assert cli.main(["forecast", str(tmp_path / "run.toml")]) == 2
    error = capsys.readouterr().err
    for part in (
        "data.path: is missing",
        "data.time: is missing",
        "model.beta",
        "utility: is missing",
    ):
        assert part in error
    (tmp_path / "run.toml").write_text("[data\n")
    assert cli.main(["forecast", str(tmp_path / "run.toml")]) == 2
    assert "is not valid TOML" in capsys.readouterr().err
    assert cli.main(["forecast", str(tmp_path / "gone.toml")]) == 2
    assert "no such run file" in capsys.readouterr().err


def test_scenario_mistakes_in_the_run_file(prime):
    text = prime.read_text()
    prime.write_text(text.replace('name = "annual 20% off"', 'name = "grocery everywhere"'))
    with pytest.raises(dc.ConfigError, match="the name 'grocery everywhere' repeats"):
        load_run(prime)


def test_a_held_lock_is_code_75(prime, capsys):
    from dynchoice.run.job import locked

    with locked(prime.parent / "out"):
        code = "import sys; from dynchoice.run.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "forecast", str(prime)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 75
    assert f"pid {os.getpid()}" in done.stderr


def test_help_is_quick_and_names_the_exit_codes():
    done = subprocess.run(
        [sys.executable, "-m", "dynchoice", "--help"], capture_output=True, text=True, check=True
    )
    assert "75 another run holds the lock" in done.stdout
    usage = subprocess.run(
        [sys.executable, "-m", "dynchoice", "forecst"], capture_output=True, text=True, check=False
    )
    assert usage.returncode == 2


def test_an_output_folder_that_cannot_be_written(prime, capsys):
    (prime.parent / "out").write_text("a file")
    assert cli.main(["forecast", str(prime)]) == 2
    assert "cannot make the output folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_and_the_next_one_sweeps(prime):
    import signal
    import time

    out = prime.parent / "out"
    (out / ".writing-old").mkdir(parents=True)
    (out / ".writing-old" / "half.parquet").write_text("x")
    code = "import sys; from dynchoice.run.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "forecast", str(prime)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "estimating" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    time.sleep(0.1)
    assert not list(out.glob(".writing-*")) and not (out / "current").exists()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_scenario_added_later_has_the_bytes_of_one_that_was_there(tmp_path, jobs):
    from dynchoice.run.init import write_sample

    quick = ["--quiet", "--jobs", jobs, "--set", "forecast.draws=8", "--set",
             "output.report=false", "--set", "output.picture=false"]  # fmt: skip
    for name in ("whole", "later"):
        write_sample(tmp_path / name)
    assert cli.main(["forecast", str(tmp_path / "whole" / "run.toml"), *quick]) == 0
    run = tmp_path / "later" / "run.toml"
    text = run.read_text()
    first, second = (text.index(f'name = "{n}"') for n in ("music for all", "annual 15% off"))
    head, tail = text[: text.rindex("[[scenario]]", 0, second)], text[text.index("[guard]") :]
    assert first < len(head)
    run.write_text(head + tail)
    assert cli.main(["forecast", str(run), *quick]) == 0
    run.write_text(text)
    assert cli.main(["forecast", str(run), *quick]) == 0
    manifest = json.loads((tmp_path / "later/out/current/manifest.json").read_text())
    assert manifest["fresh"] == ["check/model", "forecast/annual 15% off"]
    for path in (tmp_path / "whole/out/current").glob("*.parquet"):
        if path.stem != "guard":  # the later run was compared with one before it
            assert path.read_bytes() == (tmp_path / "later/out/current" / path.name).read_bytes()


@pytest.mark.slow
def test_dates_of_scenarios_move_with_the_data(tmp_path, capsys):
    from dynchoice.run.init import write_sample

    write_sample(tmp_path / "s")
    run = tmp_path / "s" / "run.toml"
    text = run.read_text()
    text = text.replace("starts = 4\nannounced = 1", 'starts = "2026-03"\nannounced = 1', 1)
    text = text.replace(
        'name = "annual 15% off"\nstarts = 4\nprices = {annual = {times = 0.85}}\n'
        'grandfathered = "contract"',
        'name = "promotion"\nstarts = "2025-10"\nends = "2025-12"\n'
        "prices = {annual = {times = 0.85}}",
    )
    text += "\n[[scenario]]\nname = 'far'\nstarts = '2029-01'\noffer = {bundle = 'with_music'}\n"
    run.write_text(text)
    quick = ["--set", "forecast.draws=0", "--set", "output.report=false",
             "--set", "output.picture=false"]  # fmt: skip
    assert cli.main(["forecast", str(run), *quick]) == 0
    said = capsys.readouterr().err
    assert "'promotion' ended in 2025-12, before the forecast: left out" in said
    assert "'far' starts in period 37, after the last one (24): left out" in said
    table = pd.read_parquet(tmp_path / "s/out/current/take_up.parquet")
    assert set(table["scenario"]) == {"baseline", "music for all"}
    shares = table[(table["segment"] == "all") & (table["choice"] == "none")].pivot(
        index="label", columns="scenario", values="share"
    )
    moved = (shares["music for all"] - shares["baseline"]).abs()
    assert moved["2026-02"] < moved["2026-03"]  # announced, then in force
    # as of 2025-09 the promotion lies ahead
    rows = pd.read_parquet(tmp_path / "s" / "members.parquet")
    rows[rows["month"] <= "2025-09"].to_parquet(tmp_path / "s" / "members.parquet")
    assert cli.main(["forecast", str(run), *quick, "--accept"]) == 0
    table = pd.read_parquet(tmp_path / "s/out/current/take_up.parquet")
    assert "promotion" in set(table["scenario"])
    rows = table[(table["scenario"] == "promotion") & (table["segment"] == "all")]
    base = table[(table["scenario"] == "baseline") & (table["segment"] == "all")]
    gap = (rows["share"].to_numpy() - base["share"].to_numpy()).reshape(24, 3)
    assert abs(gap[0]).max() > 1e-4 and abs(gap[-1]).max() < abs(gap[1]).max()


def test_a_lift_of_callouts_is_a_scenario_of_the_run_file(prime, capsys):
    lift = ["--set", "scenario.0.lift={video={none=0.05, monthly=0.1, annual=0.1}, music=0.05}"]
    plain = ["--set", "scenario.0.offer={}", *FAST, "--set", "output.report=false"]
    plain += ["--set", "output.picture=false"]
    assert cli.main(["forecast", str(prime), *lift, *plain, "--quiet"]) == 0
    table = pd.read_parquet(prime.parent / "out" / "current" / "take_up.parquet")
    last = table[(table["period"] == table["period"].max()) & (table["choice"] == "none")]
    share = last[last["segment"] == "all"].set_index("scenario")["share"]
    assert share["grocery everywhere"] < share["baseline"] - 1e-4
    for wrong, text in (
        ("{vido=0.1}", "Did you mean 'video'"),
        ("{video={monthy=0.1}}", "Did you mean 'monthly'"),
        ("{video=3}", "between -1 and 1"),
        ("{contract=0.1}", "no Markov law"),
    ):
        assert cli.main(["check", str(prime), "--quiet", "--set", f"scenario.0.lift={wrong}"]) == 2
        assert text in capsys.readouterr().err


def test_segments_whose_names_look_like_numbers_keep_their_names(tmp_path):
    """Attributes of "01" were looked for under "1" in one place and under "01" in another."""
    folder = tmp_path / "prime"
    shutil.copytree(PRIME, folder, ignore=shutil.ignore_patterns("*.png", "out"))
    rows = pd.read_parquet(folder / "prime.parquet").query("member % 100 == 0")
    names = {label: f"0{i}" for i, label in enumerate(sorted(rows["segment"].unique()), 1)}
    rows.assign(segment=rows["segment"].map(names)).to_parquet(folder / "prime.parquet")
    table = pd.read_csv(folder / "attributes.csv", keep_default_na=False)
    table.assign(segment=table["segment"].map(names)).to_csv(folder / "attributes.csv", index=False)
    assert cli.main(["check", str(folder / "run.toml"), "--quiet"]) == 0
