"""Rewards against the structural model: the sample in data/prime, and hours that are a number."""

from __future__ import annotations

import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main

import dynchoice as dc
from dynchoice.run.config import load_run

ROOT = HERE.parents[1]
SEGMENT = "India rural"

# a programme with hours watched ------------------------------------------------------------------

PLANS = ["none", "monthly", "annual"]
BETA, MONTHS, GRID = 0.98, 12, np.linspace(0, 4, 81)
NAMES = ("member", "hours", "price", "join")
THETA = np.array([-0.5, 0.55, -0.35, -1.2])
PRICE = np.array([0.0, 1.0, 8.5])
CONTRACTS = 2 + MONTHS
"""None, monthly, and annual with 0 to 11 months left."""
FEW = 50
"""Samples below which spread and coverage are shown, not claimed."""
STATE = ["hours", "is_none", "is_monthly", "left", "free"]


def payoffs(table: pd.DataFrame) -> np.ndarray:
    """Return the features (n, 3, 4) of states: what each plan is, costs and takes.

    A cost of leaving is not among them: with a constant and a cost of joining it is collinear once
    normalised (-1 join +1 cancel +(1 - beta) member), as :class:`dynchoice.DeepPQR` says.
    """
    n, out = len(table), np.zeros((len(table), 3, 4))
    hours, none = table["hours"].to_numpy(), table["is_none"].to_numpy()
    free = table["free"].to_numpy()
    out[:, 1:, 0] = 1
    out[:, 1:, 1] = hours[:, None]
    out[:, :, 2] = PRICE * np.stack([np.ones(n), np.ones(n), free], axis=1)
    out[:, 1:, 3] = none[:, None]
    return out


def states_of(contract: np.ndarray, hours: np.ndarray) -> pd.DataFrame:
    """Return states as the estimators see them."""
    left = np.maximum(contract - 2, 0)
    return pd.DataFrame(
        {
            "hours": hours, "is_none": 1.0 * (contract == 0), "is_monthly": 1.0 * (contract == 1),
            "left": left / 10.0, "free": 1.0 * (left == 0),
        }
    )  # fmt: skip


def following(contract: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """Return the contract of next month."""
    bought = np.where(contract > 2, contract - 1, CONTRACTS - 1)
    return np.where(plan == 0, 0, np.where(plan == 1, 1, bought))


def solved() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities (contracts, hours, 3), laws of hours (3, ., .) and flow utility."""
    edges = np.r_[-np.inf, (GRID[1:] + GRID[:-1]) / 2, np.inf]
    F = np.stack(
        [
            np.diff(norm.cdf((edges - (0.6 * GRID + m)[:, None]) / 0.5), axis=1)
            for m in (0.3, 0.9, 0.9)
        ]
    )
    c, h = np.meshgrid(np.arange(CONTRACTS), np.arange(len(GRID)), indexing="ij")
    u = payoffs(states_of(c.ravel(), GRID[h.ravel()])) @ THETA
    u = u.reshape(CONTRACTS, len(GRID), 3)
    u[3:, :, :2] = -np.inf
    V = np.zeros((CONTRACTS, len(GRID)))
    to = np.stack([following(np.arange(CONTRACTS), np.full(CONTRACTS, j)) for j in range(3)])
    for _ in range(5000):
        v = u + BETA * np.stack([V[to[j]] @ F[j].T for j in range(3)], axis=2)
        top = v.max(axis=2)
        new = top + np.log(np.exp(v - top[:, :, None]).sum(axis=2))
        if np.abs(new - V).max() < 1e-10:
            break
        V = new
    return np.exp(v - new[:, :, None]), F, u


def members(truth: tuple[np.ndarray, ...], number: int, periods: int, seed: int) -> pd.DataFrame:
    """Return simulated members, after a year that is not kept."""
    P, F, _ = truth
    rng = np.random.default_rng(seed)
    c, h, parts = np.zeros(number, dtype=int), rng.integers(0, 81, number), []
    chance, ahead = P.cumsum(axis=2), F.cumsum(axis=2)
    for t in range(-18, periods):
        a = (rng.random(number)[:, None] > chance[c, h]).sum(axis=1).clip(0, 2)
        if t >= 0:
            row = states_of(c, GRID[h]).assign(id=np.arange(number), t=t, plan=np.array(PLANS)[a])
            parts.append(row.assign(contract=c))
        h = (rng.random(number)[:, None] > ahead[a, h]).sum(axis=1).clip(0, 80)
        c = following(c, a)
    return pd.concat(parts, ignore_index=True)


def binned(frame: pd.DataFrame, bins: int) -> dc.Results:
    """Return NFXP on hours cut into bins, each with its mean: what a structural model does."""
    cut = np.quantile(frame["hours"], np.linspace(0, 1, bins + 1)[1:-1])
    own = frame.assign(bin=np.searchsorted(cut, frame["hours"]))
    mean = own.groupby("bin")["hours"].mean().to_numpy()
    states = dc.StateSpace(contract=range(CONTRACTS), bin=range(bins))
    table = states.frame()
    full = states_of(table["contract"].to_numpy(dtype=int), mean[table["bin"].to_numpy(dtype=int)])
    can = np.ones((states.size, 3), dtype=bool)
    can[full["free"].to_numpy() == 0, :2] = False
    law = {
        "contract": dc.Deterministic(
            lambda level, choice: int(following(np.array(level), np.array(PLANS.index(choice))))
        ),
        "bin": dc.Markov(given=("choice",)),
    }
    model = dc.DDC(
        states=states, choices=PLANS, beta=BETA, available=can,
        utility=dc.Utility.from_array(payoffs(full), NAMES),
        transitions=dc.Transitions.factored(states, PLANS, law),
    )  # fmt: skip
    panel = dc.Panel(own, member="id", time="t", choice="plan", states=states, choices=PLANS)
    return dc.NFXP(model, panel).fit()


def continuous(study: Study, want: dict[str, float], draws: int, number: int) -> None:
    """Bias, spread and coverage of the estimators on rows, beside NFXP on bins of hours."""
    truth = solved()
    model = dc.RewardModel(
        PLANS, beta=BETA, anchor="none", features=payoffs, names=NAMES,
        available={"none": "free", "monthly": "free"},
    )  # fmt: skip
    kinds = {
        "DeepPQR": lambda rows, frame: dc.DeepPQR(model, rows, degree=3).fit(),
        "GenPQR": lambda rows, frame: dc.GenPQR(model, rows, degree=3).fit(),
        "TDCCP": lambda rows, frame: dc.TDCCP(model, rows, degree=3).fit(),
        "NFXP, 4 bins": lambda rows, frame: binned(frame, 4),
        "NFXP, 12 bins": lambda rows, frame: binned(frame, 12),
    }
    found: dict[str, list[np.ndarray]] = {k: [] for k in kinds}
    errors: dict[str, list[np.ndarray]] = {k: [] for k in kinds}
    for seed in range(draws):
        frame = members(truth, number, 18, seed)
        rows = dc.Trajectories(
            frame, member="id", time="t", choice="plan", features=STATE, choices=PLANS
        )
        for name, kind in kinds.items():
            fit = kind(rows, frame)
            found[name].append(fit.vector)
            errors[name].append(fit.std_errors.to_numpy())
    lines = []
    for name in kinds:
        e, s = np.array(found[name]), np.array(errors[name])
        held = (np.abs(e - THETA) < norm.ppf(0.975) * s).mean(axis=0)
        lines += [
            (name, k, THETA[i], e[:, i].mean(), e[:, i].std(ddof=1), s[:, i].mean(), held[i])
            for i, k in enumerate(NAMES)
        ]
        if name.startswith("NFXP") or draws < FEW:
            continue
        noise = 3 * np.sqrt(0.05 * 0.95 / draws)
        study.within(f"{name}: least coverage", held.min(), 0.95 - noise, 1 + 1e-9, "own oracle")
        ratio = s.mean(axis=0) / e.std(axis=0, ddof=1)
        study.within(f"{name}: s.e. over spread", ratio[np.abs(ratio - 1).argmax()],
                     1 - want["ratio"], 1 + want["ratio"], "own oracle")  # fmt: skip
    head = ["estimator", "parameter", "truth", "mean", "spread", "mean s.e.", "coverage of 95%"]
    table = pd.DataFrame(lines, columns=head).round(4).to_string(index=False)
    study.say(f"{draws} samples of {number:,} members x 18 months, hours a number\n{table}")
    compared = dc.compare({k: kind(rows, frame) for k, kind in kinds.items()})
    study.say(str(compared))


# the sample --------------------------------------------------------------------------------------


def sample(study: Study, want: dict[str, float], members: int | None) -> None:
    """NFXP, Deep PQR and GenPQR on one segment of data/prime, levels and rows."""
    run = load_run(ROOT / "data/prime/run.toml")
    model = run.model(SEGMENT)
    data = pd.read_parquet(ROOT / "data/prime/prime.parquet").query(f"segment == '{SEGMENT}'")
    if members:
        data = data[data["member"].isin(data["member"].unique()[:members])]
    panel = dc.Panel(
        data, member="member", time="month", choice="plan", states=run.states,
        choices=run.spec.model.choices,
    )  # fmt: skip
    truth = tomllib.loads((ROOT / "data/prime/truth.toml").read_text(encoding="utf-8"))
    nested = dc.NFXP(model, panel).fit()
    fits = {"NFXP": nested, "NPL": dc.NPL(model, panel).fit()}
    fits["DeepPQR, levels"] = dc.DeepPQR(model, panel, anchor="none").fit()
    rows, reward = as_rows(data, run.states, nested.model, panel)
    fits["DeepPQR, rows"] = dc.DeepPQR(reward, rows, pairs=True).fit()
    fits["GenPQR, rows"] = dc.GenPQR(reward, rows, pairs=True).fit()
    table = dc.compare(fits)
    study.say(f"data/prime, {SEGMENT}, {panel.counts.nmembers:,} members\n{table}")
    known = pd.Series(truth["segments"][SEGMENT]["params"])
    for name in fits:
        away = table.params[name].sub(known.reindex(table.params.index)) / table.std_errors[name]
        study.within(f"{name}: largest distance from the truth in s.e.", away.abs().max(), 0,
                     want["truth"], "simulated from known parameters")  # fmt: skip
    for name in ("DeepPQR, levels", "DeepPQR, rows", "GenPQR, rows"):
        away = (table.params[name] - table.params["NFXP"]) / table.std_errors[name]
        study.within(f"{name}: largest distance from NFXP in its s.e.", away.abs().max(), 0,
                     want["nested"], "structural model")  # fmt: skip


def as_rows(
    data: pd.DataFrame, states: dc.StateSpace, model: dc.DDC, panel: dc.Panel
) -> tuple[dc.Trajectories, dc.RewardModel]:
    """Return the sample as rows of numbers, with the structural model's features."""
    own = data.copy()
    level = {name: {v: i for i, v in enumerate(axis)} for name, axis in states.axes.items()}
    clock = own["contract"].map(lambda c: int(c[7:]) if c.startswith("annual_") else 0)
    table = pd.DataFrame(
        {
            "is_none": 1.0 * (own["contract"] == "none"),
            "is_monthly": 1.0 * (own["contract"] == "monthly"),
            "left": clock / 10.0,
            "free": 1.0 * (clock == 0),
        }
    )
    for name in states.axes:
        if name == "contract":
            continue
        codes = own[name].map(level[name]).astype(float)
        if codes.nunique() > 1:
            table[name] = codes
    fixed = {n: level[n][own[n].iloc[0]] for n in states.axes if n != "contract" and n not in table}
    features = list(table.columns)
    for name in features:
        own[f"x_{name}"] = table[name].to_numpy()

    def codes_of(t: pd.DataFrame) -> np.ndarray:
        left = np.round(10 * t["x_left"].to_numpy()).astype(int)
        contract = np.array([level["contract"][f"annual_{k}"] for k in range(12)])[left]
        contract = np.where(t["x_is_none"] == 1, level["contract"]["none"], contract)
        contract = np.where(t["x_is_monthly"] == 1, level["contract"]["monthly"], contract)
        parts = [
            contract if n == "contract"
            else (t[f"x_{n}"].to_numpy().astype(int) if n in features
                  else np.full(len(t), fixed[n]))
            for n in states.axes
        ]  # fmt: skip
        return np.ravel_multi_index(parts, states.shape)

    rows = dc.Trajectories(
        own, member="member", time="month", choice="plan", choices=list(model.choices),
        features=[f"x_{n}" for n in features],
    )  # fmt: skip
    reward = dc.RewardModel(
        list(model.choices), beta=model.beta, anchor="none",
        features=lambda t: model.utility.x[codes_of(t)], names=model.names,
        available={"none": "x_free", "monthly": "x_free"},
    )  # fmt: skip
    return rows, reward


def run(quick: bool) -> Study:
    """Run the study."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    study, want = Study("prime_rewards"), expected(HERE)
    sample(study, want, 800 if quick else None)
    continuous(study, want, 4 if quick else 100, 600 if quick else 1500)
    return study


if __name__ == "__main__":
    main(run)
