"""GLADIUS on the bus of Kang, Yoganarasimhan and Jain (2025): counts, Table 2, figure 1."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main

import dynchoice as dc

BETA, TOP, PERIODS, RC, STEPS = 0.95, 20, 100, 5.0, 4
CHOICES = ["replace", "keep"]
LEVELS = np.arange(1, TOP + 1)
REWARD = np.column_stack([np.full(TOP, -RC), -1.0 * LEVELS])
ATTRIBUTES = pd.DataFrame({"choice": CHOICES, "keep": [0.0, 1.0], "renew": [1.0, 0.0]})
OWN = [f"x{k}" for k in range(2, TOP + 1)]
ROWS = {"GLADIUS": dc.GLADIUS, "DeepPQR": dc.DeepPQR, "GenPQR": dc.GenPQR}

Truth = tuple[np.ndarray, np.ndarray]


# the bus -----------------------------------------------------------------------------------------


def solved() -> Truth:
    """Return laws (levels, choices, levels) and choice probabilities, by contraction."""
    F = np.zeros((TOP, 2, TOP))
    F[:, 0, 0] = 1
    for x in range(TOP):
        for step in range(1, STEPS + 1):
            F[x, 1, min(x + step, TOP - 1)] += 1 / STEPS
    V = np.zeros(TOP)
    for _ in range(2_000):
        v = REWARD + BETA * F @ V
        V = np.logaddexp(v[:, 0], v[:, 1])
    return F, np.exp(v - V[:, None])


def occupied(truth: Truth) -> np.ndarray:
    """Return the chance of every state and choice, by period (periods, levels, choices)."""
    F, P = truth
    at, out = np.eye(TOP)[0], []
    for _ in range(PERIODS):
        out.append(at[:, None] * P)
        at = np.einsum("sj,sjt->t", out[-1], F)
    return np.array(out)


def paths(truth: Truth, number: int, rng: np.random.Generator, noise: int = 0) -> pd.DataFrame:
    """Return paths of 100 periods, with columns of integers that mean nothing."""
    P = truth[1]
    x, parts = np.ones(number, dtype=int), []
    for t in range(PERIODS):
        keep = rng.random(number) < P[x - 1, 1]
        parts.append(pd.DataFrame({"bus": np.arange(number), "t": t, "x": x, "keep": keep}))
        x = np.where(keep, np.minimum(x + rng.integers(1, STEPS + 1, number), TOP), 1)
    frame = pd.concat(parts, ignore_index=True)
    frame["plan"] = np.where(frame.pop("keep"), "keep", "replace")
    for k in range(noise):
        frame[f"d{k}"] = rng.integers(-10, 11, len(frame)).astype(float)
    return frame


def split(truth: Truth, number: int, seed: int, noise: int = 0) -> tuple[pd.DataFrame, ...]:
    """Return 80 % of the paths to learn from, and the other 20 %."""
    frame = paths(truth, number, np.random.default_rng([number, seed, noise]), noise)
    learn = frame["bus"] < round(0.8 * number)
    return frame[learn], frame[~learn].reset_index(drop=True)


def mape(reward: np.ndarray, test: pd.DataFrame) -> float:
    """Return the mean error, per cent of the reward, over the rows' own states and choices."""
    choice = (test["plan"] == "keep").to_numpy().astype(int)
    truth = REWARD[test["x"].to_numpy() - 1, choice]
    return float(100 * np.abs(reward[np.arange(len(test)), choice] / truth - 1).mean())


# claims on the design ----------------------------------------------------------------------------


def design(study: Study, want: dict[str, Any], truth: Truth, sets: int) -> None:
    """Keep probabilities and visit counts."""
    P = truth[1]
    for x, p in enumerate(want["keep"]):
        study.check(f"chance to keep at {x + 1}", P[x, 1], p, want["digits"], "exact solve")
    published, number = np.array(want["counts"]), 200
    chance = occupied(truth)[:, : len(published), 1]
    mean = number * chance.sum(axis=0)
    drawn = np.array([_keeps(truth, number, seed, len(published)) for seed in range(sets)])
    spread = drawn.std(axis=0, ddof=1)
    for x, (got, theirs) in enumerate(zip(mean, published, strict=True)):
        if theirs >= want["large"]:
            study.check(f"expected keeps at {x + 1} over published", got / theirs, 1,
                        want["share"], "published, one draw")  # fmt: skip
        study.check(f"published keeps at {x + 1}, in s.d. of a draw", (theirs - got) / spread[x], 0,
                    want["errors"], "published, one draw")  # fmt: skip
        off = (drawn[:, x].mean() - got) / (spread[x] / np.sqrt(sets))
        study.check(f"simulated keeps at {x + 1}, in s.e. of {sets} sets", off, 0, 4, "own oracle")
    table = pd.DataFrame(
        {"published": published, "expected": mean, "mean of sets": drawn.mean(axis=0),
         "s.d. of a set": spread}, index=pd.RangeIndex(1, len(published) + 1, name="x"),
    )  # fmt: skip
    study.say(f"Keeps of 200 buses x 100 periods, {sets} sets\n{table.round(1).to_string()}")


def _keeps(truth: Truth, number: int, seed: int, levels: int) -> np.ndarray:
    frame = paths(truth, number, np.random.default_rng([7, seed]))
    kept = frame.loc[frame["plan"] == "keep", "x"]
    return np.bincount(kept, minlength=TOP + 1)[1 : levels + 1]


# estimators --------------------------------------------------------------------------------------


def bus(truth: Truth, law: str, known: bool) -> dc.DDC:
    """Return the parametric model: law "known" or "estimated", replacement cost known or not."""
    states = dc.StateSpace(x=list(range(1, TOP + 1)))
    features = "0 + keep:x" if known else "0 + keep:x + renew"
    utility = dc.Utility.from_formula(features, states, CHOICES, ATTRIBUTES)
    if known:
        utility = dc.Utility.from_array(
            utility.x, utility.names, np.tile([-RC, 0.0], (TOP, 1))
        )  # fmt: skip
    transitions = (
        dc.Transitions.dense(truth[0])
        if law == "known"
        else dc.Transitions.factored(states, CHOICES, {"x": dc.Markov()})
    )
    return dc.DDC(
        states=states, choices=CHOICES, utility=utility, transitions=transitions, beta=BETA
    )


def nfxp(model: dc.DDC, learn: pd.DataFrame, test: pd.DataFrame) -> float:
    """Return the MAPE of the parametric fit."""
    panel = dc.Panel(
        learn, member="bus", time="t", choice="plan", states=model.states, choices=CHOICES
    )
    fit = dc.NFXP(model, panel).fit(cov_type="opg")
    return mape(model.utility.flow(fit.vector)[test["x"].to_numpy() - 1], test)


def with_levels(frame: pd.DataFrame) -> pd.DataFrame:
    """Add a column of 0/1 for every level of mileage above the first."""
    own = (frame["x"].to_numpy()[:, None] == LEVELS[1:]).astype(float)
    return frame.assign(**dict(zip(OWN, own.T, strict=True)))


def reward_model(levels: bool) -> dc.RewardModel:
    """Return choices, discounting and the known reward of replacing."""
    mileage = "1 + " + " + ".join(f"{k} * {c}" for k, c in enumerate(OWN, 1)) if levels else "x"
    return dc.RewardModel(
        CHOICES, beta=BETA, anchor="replace", reward=-RC, attributes=ATTRIBUTES,
        features=f"0 + I(keep * ({mileage}))",
    )  # fmt: skip


def by_rows(
    kind: Any, learn: pd.DataFrame, test: pd.DataFrame, levels: bool = False, **options: Any
) -> float:
    """Return the MAPE of an estimator on rows."""
    noise = [c for c in learn if str(c).startswith("d")]
    used = [c for c in OWN if with_levels(learn)[c].any()] if levels else ["x"]
    if levels:
        learn, test = with_levels(learn), with_levels(test)
    features = [*(OWN if levels else used), *noise]
    rows = dc.Trajectories(
        learn, member="bus", time="t", choice="plan", features=features, choices=CHOICES
    )
    fit = kind(reward_model(levels), rows, **options).fit()
    return mape(fit.reward(test).to_numpy(), test)


# tables ------------------------------------------------------------------------------------------


def shown(errors: dict[tuple[Any, ...], list[float]], index: list[str]) -> pd.DataFrame:
    """Return means over samples, with standard errors."""
    found = {
        k: (np.mean(v), np.std(v, ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan)
        for k, v in errors.items()
    }
    table = pd.DataFrame(found, index=["MAPE", "s.e."]).T
    return table.rename_axis(index=index)


def side_by_side(table: pd.DataFrame) -> str:
    """Return means with standard errors in brackets, one column a size."""
    text = table.apply(lambda row: f"{row['MAPE']:.2f} ({row['s.e.']:.2f})", axis=1)
    return text.unstack().to_string()


def parametric(
    study: Study, want: dict[str, Any], truth: Truth, draws: int, sizes: Iterable[int]
) -> None:
    """NFXP by number of trajectories."""
    kinds = {
        "law and replacement cost estimated": ("estimated", False),
        "law known": ("known", False),
        "law and replacement cost known": ("known", True),
    }
    errors: dict[tuple[Any, ...], list[float]] = {}
    for number in sizes:
        for seed in range(draws):
            learn, test = split(truth, number, seed)
            for name, (law, known) in kinds.items():
                found = nfxp(bus(truth, law, known), learn, test)
                errors.setdefault((name, number), []).append(found)
    table = shown(errors, ["NFXP", "trajectories"])
    study.say(f"MAPE, per cent, of NFXP; {draws} samples\n{side_by_side(table)}")
    got = table["MAPE"]["law and replacement cost estimated", 1000]
    study.within("NFXP at 1,000 trajectories: MAPE", got, 0, want["nfxp_1000"],
                 "row 10, published")  # fmt: skip


SPECS: dict[str, dict[str, Any]] = {
    "degree 2": {"degree": 2},
    "degree 3": {"degree": 3},
    "levels": {"degree": 1, "levels": True},
}


def table_two(
    study: Study, want: dict[str, Any], truth: Truth, draws: int, sizes: Iterable[int], quick: bool
) -> None:
    """Estimators on rows by number of trajectories; quick: rivals have no claim, few rows do."""
    errors: dict[tuple[Any, ...], list[float]] = {}
    for number in sizes:
        for seed in range(draws):
            learn, test = split(truth, number, seed)
            kinds = {"GLADIUS": dc.GLADIUS} if quick and number >= 1000 else ROWS
            for name, kind in kinds.items():
                for spec, options in SPECS.items():
                    found = by_rows(kind, learn, test, **options)
                    errors.setdefault((name, spec, number), []).append(found)
            if kinds is ROWS:
                found = by_rows(dc.GLADIUS, learn, test, degree=2, pool=0.1)
                errors.setdefault(("GLADIUS, pool .1", "degree 2", number), []).append(found)
    table = shown(errors, ["estimator", "mileage", "trajectories"])
    theirs = pd.DataFrame(want["published"], index=want["trajectories"]).T
    study.say(
        f"Table 2: MAPE, per cent, {draws} samples (s.e.)\n{side_by_side(table)}"
        f"\n\npublished\n{theirs.to_string()}"
    )
    bound = want["times"] * want["published"]["gladius"][want["trajectories"].index(1000)]
    for spec in SPECS:
        study.within(f"GLADIUS, {spec}, 1,000 trajectories: MAPE",
                     table["MAPE"]["GLADIUS", spec, 1000], 0, bound, "published x 3")  # fmt: skip


def figure_one(
    study: Study, want: dict[str, Any], truth: Truth, draws: int, numbers: Iterable[int],
    kinds: Iterable[str],
) -> None:  # fmt: skip
    """Estimators on rows by number of columns that mean nothing, 1,000 trajectories."""
    errors: dict[tuple[Any, ...], list[float]] = {}
    for noise in numbers:
        for seed in range(draws):
            learn, test = split(truth, 1000, seed, noise)
            for name in kinds:
                for spec in ("degree 2", "levels"):
                    found = by_rows(ROWS[name], learn, test, **SPECS[spec])
                    errors.setdefault((name, spec, noise), []).append(found)
    table = shown(errors, ["estimator", "mileage", "dummies"])
    theirs = pd.DataFrame(want["dummies"]).set_index("number").T
    study.say(
        f"Figure 1: MAPE, per cent, 1,000 trajectories, {draws} samples (s.e.)\n"
        f"{side_by_side(table)}\n\npublished\n{theirs.to_string()}"
    )
    for noise in numbers:
        bound = want["times"] * theirs.loc["gladius", noise]
        for spec in ("degree 2", "levels"):
            study.within(f"GLADIUS, {spec}, {noise} dummies: MAPE",
                         table["MAPE"]["GLADIUS", spec, noise], 0, bound,
                         "published x 3")  # fmt: skip


def networks(study: Study, want: dict[str, Any], truth: Truth, draws: int) -> None:
    """The networks of the paper, beside the default sieve and beside a line."""
    published = dict(zip(want["dummies"]["number"], want["dummies"]["gladius"], strict=True))
    published[0] = want["published"]["gladius"][want["trajectories"].index(1000)]
    errors: dict[tuple[Any, ...], list[float]] = {}
    for noise in want["networks"]:
        for seed in range(draws):
            learn, test = split(truth, 1000, seed, noise)
            for degree in (1, 2):
                for name, net in (("alone", None), ("with networks", dc.Network((10, 10)))):
                    found = by_rows(dc.GLADIUS, learn, test, degree=degree, network=net)
                    errors.setdefault((f"degree {degree} {name}", noise), []).append(found)
    table = shown(errors, ["GLADIUS", "dummies"])
    study.say(
        f"Networks (10, 10): MAPE, per cent, 1,000 trajectories, {draws} samples (s.e.)\n"
        f"{side_by_side(table)}\n\npublished\n{pd.Series(published).sort_index().to_string()}"
    )
    for degree in (2, 1):
        for noise in want["networks"]:
            study.within(f"GLADIUS, networks beside degree {degree}, {noise} dummies: MAPE",
                         table["MAPE"][f"degree {degree} with networks", noise], 0,
                         want["times"] * published[noise], "published x 3")  # fmt: skip


def run(quick: bool) -> Study:
    """Run the study."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    study, want, truth = Study("gladius2025"), expected(HERE), solved()
    design(study, want, truth, 20 if quick else 200)
    sizes = (50, 1000) if quick else want["trajectories"]
    parametric(study, want, truth, 1 if quick else 20, sizes)
    table_two(study, want, truth, 1 if quick else 10, sizes, quick)
    numbers = (2,) if quick else want["dummies"]["number"]
    kinds = ("GLADIUS",) if quick else ("GLADIUS", "DeepPQR")
    figure_one(study, want, truth, 1 if quick else 4, numbers, kinds)
    if not quick:
        networks(study, want, truth, 3)
    return study


if __name__ == "__main__":
    main(run)
