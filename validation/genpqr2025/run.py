"""GenPQR against Deep PQR where the anchor is rare: van der Laan, Kallus and Bibaut (2025)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main

import dynchoice as dc

P, J, BETA, PERIODS, HELD = 5, 5, 0.9, 10, 300
SHIFTS = np.r_[0, np.linspace(-0.35, 0.35, J - 1)]
CHOICES = ["none", *(f"c{j}" for j in range(1, J))]
NAMES = [f"s{k}" for k in range(P)]
KINDS = {"DeepPQR": dc.DeepPQR, "GenPQR": dc.GenPQR}


# the design --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A policy and the reward that makes it optimal (papers.md 1.1)."""

    w: np.ndarray
    own: float
    scale: float
    shift: float

    @classmethod
    def drawn(cls, seed: int, scale: float, shift: float) -> World:
        """Return the world of a seed; its weights do not depend on the anchor's shift."""
        rng = np.random.default_rng([1, seed])
        return cls(rng.uniform(0.5, 1.5, P), float(rng.uniform(0.5, 1.5)), scale, shift)

    def logs(self, s: np.ndarray) -> np.ndarray:
        """Return log choice probabilities (n, J)."""
        a = np.arange(J) / (J - 1)
        u = self.scale * a * np.tanh((s @ self.w / P)[:, None] + a * self.own)
        u[:, 0] += self.shift
        return u - np.log(np.exp(u).sum(axis=1, keepdims=True))

    def value(self, s: np.ndarray) -> np.ndarray:
        """Return ``V = W - log pi_0``: the anchor pays nothing and leaves the state as it is."""
        return -self.logs(s)[:, 0] / (1 - BETA)

    def reward(self, s: np.ndarray) -> np.ndarray:
        """Return the reward (n, J) by (iii)."""
        ahead = [self.value(moved(s, np.full(len(s), j))) for j in range(J)]
        return self.logs(s) + self.value(s)[:, None] - BETA * np.stack(ahead, axis=1)

    def paths(self, number: int, rng: np.random.Generator) -> pd.DataFrame:
        """Return paths that start anywhere in the box."""
        s, parts = rng.uniform(-P, P, (number, P)), []
        for t in range(PERIODS):
            chance = np.exp(self.logs(s)).cumsum(axis=1)
            a = (rng.random(number)[:, None] > chance).sum(axis=1).clip(0, J - 1)
            part = pd.DataFrame(s, columns=NAMES)
            parts.append(part.assign(id=np.arange(number), t=t, plan=np.array(CHOICES)[a]))
            s = moved(s, a)
        return pd.concat(parts, ignore_index=True)


def moved(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return next states: all coordinates shift alike; out of the box, back to the origin."""
    out = s + SHIFTS[a][:, None]
    out[(np.abs(out) > P).any(axis=1)] = 0
    return out


def consistent(study: Study, want: dict[str, Any]) -> None:
    """The reward's soft-optimal policy is the policy, and the anchor's reward is zero."""
    world = World.drawn(0, want["design"]["scale"], -1.0)
    s = np.random.default_rng(0).uniform(-P, P, (10_000, P))
    r = world.reward(s)
    v = r + BETA * np.stack([world.value(moved(s, np.full(len(s), j))) for j in range(J)], axis=1)
    V = np.log(np.exp(v - v.max(axis=1, keepdims=True)).sum(axis=1)) + v.max(axis=1)
    gap = max(np.abs(V - world.value(s)).max(), np.abs(r[:, 0]).max())
    study.check("Bellman equation and the anchor's reward of the design", gap, 0,
                want["design"]["exact"], "closed form")  # fmt: skip


# estimators --------------------------------------------------------------------------------------


def model() -> dc.RewardModel:
    """Return choices and discounting; the reward is read at states, not by its features."""
    attributes = pd.DataFrame({"choice": CHOICES, "a": np.arange(J) / (J - 1)})
    return dc.RewardModel(
        CHOICES, beta=BETA, anchor="none", attributes=attributes, features="0 + a + a:s0"
    )


def loaded(frame: pd.DataFrame) -> dc.Trajectories:
    """Return the rows as the package reads them."""
    return dc.Trajectories(
        frame, member="id", time="t", choice="plan", features=NAMES, choices=CHOICES
    )


@dataclass
class Held:
    """Held-out rows, their own choices, true rewards, and which of them reset."""

    frame: pd.DataFrame
    choice: np.ndarray
    truth: np.ndarray
    resets: np.ndarray

    @classmethod
    def of(cls, world: World, rng: np.random.Generator) -> Held:
        """Draw paths of their own."""
        frame = world.paths(HELD, rng)
        s = frame[NAMES].to_numpy()
        choice = frame["plan"].map({c: j for j, c in enumerate(CHOICES)}).to_numpy()
        resets = (np.abs(s + SHIFTS[choice][:, None]) > P).any(axis=1)
        return cls(frame, choice, world.reward(s)[np.arange(len(s)), choice], resets)

    def score(self, reward: np.ndarray) -> dict[str, float]:
        """Return the errors of rewards (n, J)."""
        got = reward[np.arange(len(reward)), self.choice]
        square = (got - self.truth) ** 2
        return {
            "MSE": float(square.mean()),
            "no reset": float(square[~self.resets].mean()),
            "corr": float(np.corrcoef(got, self.truth)[0, 1]) if got.std() > 0 else 0.0,
        }


def sample(
    want: dict[str, Any], setting: dict[str, Any], seed: int
) -> tuple[World, pd.DataFrame, Held]:
    """Return the world, rows and held-out rows of a seed."""
    world = World.drawn(seed, want["design"]["scale"], setting["shift"])
    rng = np.random.default_rng([2, seed, setting["trajectories"]])
    return world, world.paths(setting["trajectories"], rng), Held.of(world, rng)


def baselines(fit: Any, held: Held) -> dict[str, dict[str, float]]:
    """Return the scores of rewards that leave the future out or take it for granted.

    "policy, law known" is the closed form with estimated probabilities: all that it misses is P.
    """

    def logs(s: np.ndarray) -> np.ndarray:
        return np.log(fit.predict(pd.DataFrame(s, columns=NAMES)).to_numpy())

    s = held.frame[NAMES].to_numpy()
    here = logs(s)
    ahead = [-logs(moved(s, np.full(len(s), j)))[:, 0] / (1 - BETA) for j in range(J)]
    known = here - here[:, :1] / (1 - BETA) - BETA * np.stack(ahead, axis=1)
    return {
        "policy, law known": held.score(known),
        "Q as reward": held.score(here - here[:, :1]),
        "log policy": held.score(here),
    }


def regressor() -> Any:
    """Return small boosted trees (scikit-learn)."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=30, max_leaf_nodes=8)


def plain(rows: dc.Trajectories, held: Held, fit: Any, rounds: int = 8) -> dict[str, Any]:
    """Return both algorithms as published: trees from zero, eight rounds, no sieve beneath.

    "R step exact" is Deep PQR with its own W, but V at the true next state: no regression of it.
    """
    at = np.flatnonzero(rows.next >= 0)
    x, a, after = rows.x[at], rows.choice[at], rows.x[rows.next[at]]
    s = held.frame[NAMES].to_numpy()

    def logs(z: np.ndarray) -> np.ndarray:
        return np.log(fit.predict(pd.DataFrame(z, columns=NAMES)).to_numpy())

    def beside(z: np.ndarray, j: Any) -> np.ndarray:
        return np.column_stack([z, np.eye(J)[np.broadcast_to(j, len(z))]])

    here, l_after, own = logs(s), logs(after)[:, 0], a == 0
    W_after, q_after = np.zeros(len(at)), np.zeros(len(at))
    for _ in range(rounds):
        W = regressor().fit(x[own], BETA * (W_after - l_after)[own])
        W_after = W.predict(after)
        h = regressor().fit(beside(x, a), q_after)
        q_after = l_after + BETA * h.predict(beside(after, 0))
    z = regressor().fit(beside(x, a), W_after - l_after)
    Q = here - here[:, :1] + W.predict(s)[:, None]
    ahead = np.stack([z.predict(beside(s, j)) for j in range(J)], axis=1)
    to = [moved(s, np.full(len(s), j)) for j in range(J)]
    exact = np.stack([W.predict(n) - logs(n)[:, 0] for n in to], axis=1)
    q = here + BETA * np.stack([h.predict(beside(s, j)) for j in range(J)], axis=1)
    return {
        "DeepPQR": held.score(Q - BETA * ahead),
        "R step exact": held.score(Q - BETA * exact),
        "GenPQR": held.score(q - q[:, :1]),
    }


# claims ------------------------------------------------------------------------------------------

Scores = dict[tuple[Any, ...], list[dict[str, float]]]


def scored(want: dict[str, Any], setting: dict[str, Any], specs: list[str], out: Scores,
    draws: int,
) -> None:  # fmt: skip
    """Fit everything on all draws of a setting."""
    place = (setting["trajectories"], setting["shift"])
    for seed in range(draws):
        _, frame, held = sample(want, setting, seed)
        rows = loaded(frame)
        first = None
        for spec in specs:
            options = {"degree": 3 if spec == "degree 3" else 2}
            if spec == "trees":
                options |= {"regressor": regressor(), "folds": 2, "rounds": 8}
            if spec == "plain trees":
                assert first is not None
                for name, score in plain(rows, held, first).items():
                    out.setdefault((spec, name, *place), []).append(score)
                continue
            for name, kind in KINDS.items():
                fit = kind(model(), rows, **options).fit()
                first = first or fit
                score = held.score(fit.reward(held.frame).to_numpy())
                out.setdefault((spec, name, *place), []).append(score)
        for name, score in baselines(first, held).items():
            out.setdefault(("logit, degree 2", name, *place), []).append(score)
        share = float((frame["plan"] == CHOICES[0]).mean())
        row = {"MSE": share, "no reset": float(held.resets.mean()), "corr": np.nan}
        out.setdefault(("design", "anchor and reset shares", *place), []).append(row)


def pairs(scores: Scores, specs: Iterable[str]) -> pd.DataFrame:
    """Return Deep PQR's MSE less GenPQR's, by seed: mean, interval and size in standard errors."""
    found = {}
    for spec, name, *place in scores:
        if name == "GenPQR" and spec in specs:
            e = [[s["MSE"] for s in scores[(spec, k, *place)]] for k in KINDS]
            d = np.subtract(*e)
            half = d.std(ddof=1) / np.sqrt(len(d))
            row = (d.mean(), d.mean() - 1.96 * half, d.mean() + 1.96 * half, d.mean() / half)
            found[(spec, *place)] = (*row, float((d > 0).mean()))
    columns = ["DeepPQR - GenPQR", "low", "high", "t", "seeds above 0"]
    table = pd.DataFrame(found, index=columns).T
    return table.rename_axis(index=["learners", "trajectories", "shift"])


def claims(study: Study, want: dict[str, Any], scores: Scores, quick: bool, draws: int) -> None:
    """Row 17: order with a rare anchor, the gap by anchor rows, and the baselines."""
    names = ["learners", "estimator", "trajectories", "shift"]
    means = {k: pd.DataFrame(v).mean() for k, v in scores.items()}
    table = pd.DataFrame(means).T.rename_axis(index=names)
    table["s.e."] = [pd.DataFrame(v)["MSE"].sem() for v in scores.values()]
    theirs = pd.DataFrame(want["setting"]).to_string(index=False)
    study.say(f"Held-out reward, means of {draws} seeds\n{table.round(3).to_string()}"
              f"\n\npublished (MSE, correlation)\n{theirs}")  # fmt: skip
    gap = pairs(scores, {k[0] for k in scores if k[1] == "GenPQR"})
    study.say(f"Paired differences of MSE\n{gap.round(3).to_string()}")
    for spec, number, shift in gap.index:
        if shift < 0:
            study.within(f"{spec}, {number} paths, rare anchor: DeepPQR over GenPQR, in s.e.",
                         gap["t"][spec, number, shift], want["t"], 1e3,
                         "published (order)")  # fmt: skip
    for spec in dict.fromkeys(gap.index.get_level_values(0)):
        own = gap["DeepPQR - GenPQR"][spec]
        study.check(f"{spec}: the gap falls with anchor rows", float((np.diff(own) < 0).all()), 1,
                    0, "published (order)")  # fmt: skip
    if not quick:
        mse, place = table["MSE"], (1000, 0.0)
        order = [
            mse[("degree 2", "GenPQR", *place)], mse[("degree 2", "DeepPQR", *place)],
            mse[("logit, degree 2", "Q as reward", *place)],
            mse[("logit, degree 2", "log policy", *place)],
        ]  # fmt: skip
        texts = ("GenPQR, DeepPQR", "DeepPQR, Q as reward", "Q as reward, log policy")
        for text, low, high in zip(texts, order, order[1:], strict=False):
            study.check(f"1,000 paths, shift 0, MSE in order: {text}", float(low < high), 1, 0,
                        "published (order)")  # fmt: skip


def run(quick: bool) -> Study:
    """Run the study."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    study, want, scores = Study("genpqr2025"), expected(HERE), {}
    draws = want["draws"] // 2 if quick else want["draws"]
    consistent(study, want)
    everything = ["degree 2", "degree 3", "trees", "plain trees"]
    for setting in want["setting"][: 2 if quick else None]:
        rare = setting["shift"] < 0
        specs = everything if rare and not quick else ["degree 2"]
        scored(want, setting, specs, scores, draws)
    claims(study, want, scores, quick, draws)
    return study


if __name__ == "__main__":
    main(run)
