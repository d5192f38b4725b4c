"""``dynchoice init``: a commented run file that works, on a sample simulated from known values."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import ConfigError, StorageError
from dynchoice.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.membership.membership import Membership

MONTHS, MEMBERS, FIRST = 24, 500, (2024, 1)
TRUTH: dict[str, dict[str, float]] = {
    "families": {"member": 0.2, "shipping": 1.0, "music": 0.4, "price": 0.08},
    "students": {"member": 0.1, "shipping": 0.5, "music": 0.9, "price": 0.09},
}
COSTS = {"joining cost": 1.2, "switching cost": 0.8, "paying upfront": 0.3}
USE: dict[str, Any] = {"gain": 0.12, "stay": 0.88, "gain_outside": 0.06, "stay_outside": 0.75}
REGIONS = ("north", "south", "east", "west")


def write_sample(folder: str | Path) -> list[Path]:
    """Write ``run.toml`` and ``members.parquet`` into a new or empty folder.

    Returns
    -------
    list of Path
        The run file first.

    Raises
    ------
    ConfigError
        The folder holds something.
    StorageError
        It cannot be written.
    """
    import tomllib

    from dynchoice.membership.membership import Membership

    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise ConfigError(f"{target} is not empty: name a new folder")
    except OSError as error:
        raise StorageError(f"cannot write to {target}: {error.strerror or error}") from error
    text = files("dynchoice.run").joinpath("templates/run.toml").read_text(encoding="utf-8")
    for extra, key in (("jinja2", "report"), ("matplotlib", "report"), ("matplotlib", "picture")):
        if find_spec(extra) is None:
            text = text.replace(f"{key} = true ", f"{key} = false")
    club = Membership.from_dict(tomllib.loads(text)["membership"])
    rows = simulate_members(club)
    written = [
        write_text(target / "run.toml", text),
        write_atomically(
            target / "members.parquet", lambda handle: rows.to_parquet(handle, index=False)
        ),
    ]
    return written


RECIPES = (
    "README.md",
    "crontab",
    "dynchoice.service",
    "dynchoice.timer",
    "airflow_dag.py.txt",
    "Containerfile",
)


def write_recipes(folder: Path) -> list[Path]:
    """Write recipes for cron, systemd, Airflow and containers, with the paths of a run file.

    Raises
    ------
    StorageError
        They cannot be written.
    """
    run = (folder / "run.toml").resolve()
    marks = {"@RUN@": [str(run)], "@OUT@": [str(run.parent / "out")], "@HOME@": [str(Path.home())]}
    marks["@COMMAND@"] = command()
    written = []
    for name in RECIPES:
        text = files("dynchoice.run").joinpath(f"templates/recipes/{name}").read_text("utf-8")
        for mark, words in marks.items():
            text = text.replace(mark, spell(words, name))
        # a module that needs Airflow is no module of this package
        target = folder / "recipes" / name.removesuffix(".txt")
        written.append(write_text(target, text))
    return written


def spell(words: list[str], recipe: str) -> str:
    """Return words as a recipe's language takes them, blanks and signs included."""
    if recipe == "crontab":  # a percent sign ends cron's command
        return shlex.join(words).replace("%", "\\%")
    if recipe == "dynchoice.service":
        return " ".join(systemd_word(w) for w in words)
    if recipe == "airflow_dag.py.txt":  # a shell's words within a text of Python
        return shlex.join(words).replace("\\", "\\\\").replace('"', '\\"')
    return " ".join(words)


def systemd_word(word: str) -> str:
    """Return a word as a unit file takes it."""
    plain = word.replace("%", "%%")
    if not any(c in plain for c in " \t\"'\\"):
        return plain
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def write_text(target: Path, text: str) -> Path:
    """Write a text, whole or not at all."""
    return write_atomically(target, lambda handle: handle.write(text.encode()))


def command() -> list[str]:
    """Return how a scheduler, which knows no virtual environment, calls the command line."""
    beside = Path(sys.executable).with_name("dynchoice")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "dynchoice"]


def simulate_members(club: Membership) -> pd.DataFrame:
    """Return members' months of each segment.

    Prices rise in the second year, in two regions later than in the others, and music comes to one
    region after the other, not to all: that is what tells their values apart.
    """
    import pandas as pd

    parts = [
        simulate_segment(club, segment, i * MEMBERS, np.random.SeedSequence([7, i]))
        for i, segment in enumerate(TRUTH)
    ]
    return pd.concat(parts, ignore_index=True)


def simulate_segment(
    club: Membership, segment: str, first: int, seed: np.random.SeedSequence
) -> pd.DataFrame:
    """Return one segment's member-months."""
    from dataclasses import replace

    import pandas as pd

    from dynchoice.counterfactuals.simulate import simulate

    benefits = tuple(replace(b, **USE) for b in club.benefits)
    programme = replace(club, benefits=benefits, params={**TRUTH[segment], **COSTS})
    model, theta, rng = programme.model(), programme.theta(), np.random.default_rng(seed)
    states = model.states
    region = np.arange(MEMBERS) % len(REGIONS)
    levels: Any = pd.DataFrame(
        {"prices": "old", "bundle": "no_music", "shipping": 0, "music": 0, "contract": "none"},
        index=range(MEMBERS),
    )
    levels = states.labels(
        simulate(
            model, params=theta, members=MEMBERS, periods=15, seed=rng, start=states.codes(levels)
        ).after
    )
    months = []
    for t in range(MONTHS):
        levels["prices"] = np.where(t < 13 + 3 * (region % 2), "old", "new")
        on_offer = (region < 2) & (t >= 6 + 5 * region)  # in two regions it never comes
        levels["bundle"] = np.where(on_offer, "with_music", "no_music")
        step = simulate(
            model, params=theta, members=MEMBERS, periods=1, seed=rng, start=states.codes(levels)
        )
        month = levels.drop(columns="contract")
        month.insert(0, "member", first + np.arange(MEMBERS))
        month.insert(1, "month", f"{FIRST[0] + t // 12}-{t % 12 + 1:02d}")
        month["segment"], month["region"] = segment, np.array(REGIONS)[region]
        month["plan"] = pd.Index(list(model.choices)).take(step.choices[:, 0])
        month["contract"] = levels["contract"].to_numpy()
        months.append(month)
        levels = states.labels(step.after)
    return pd.concat(months, ignore_index=True)
