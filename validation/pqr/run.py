"""Rewards from choices: exact recovery, error bound, wrong anchors, coverage (papers.md 1)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main

import dynchoice as dc
from dynchoice.estimate.rewards.normalised import normalised

BETAS = (0.0, 0.5, 0.95, 0.99, 0.999)
THETA = np.array([-0.6, 0.5, -0.4])
CHOICES = ["out", "in", "more"]
GRID = np.linspace(0, 4, 401)
BETA = 0.9


# tables ------------------------------------------------------------------------------------------


def random_truth(seed: int, beta: float, S: int = 30, J: int = 4) -> tuple[np.ndarray, ...]:
    """Return laws (S, J, S), rewards (S, J) and probabilities by contraction to rounding."""
    rng = np.random.default_rng(seed)
    F, r = rng.dirichlet(np.ones(S), size=(S, J)), rng.normal(size=(S, J))
    V = np.zeros(S)
    for _ in range(50_000):
        v = r + beta * (F @ V)
        top = v.max(axis=1)
        new = top + np.log(np.exp(v - top[:, None]).sum(axis=1))
        if np.abs(new - V).max() <= 1e-13 * max(1.0, np.abs(new).max()):
            break
        V = new
    return F, r, np.exp(v - new[:, None])


def model_of(F: np.ndarray, beta: float) -> dc.DDC:
    """Return a model of these laws, without features."""
    S, J, _ = F.shape
    return dc.DDC(
        states=dc.StateSpace(s=range(S)), choices=[f"c{j}" for j in range(J)],
        utility=dc.Utility.from_array(np.zeros((S, J, 0)), []),
        transitions=dc.Transitions.dense(F), beta=beta,
    )  # fmt: skip


def anchored(P: np.ndarray) -> np.ndarray:
    """Return the policy that always takes choice 0."""
    mu = np.zeros_like(P)
    mu[:, 0] = 1
    return mu


def exact(study: Study, want: dict[str, float], models: int) -> None:
    """Reward from the true policy and law, anchored and under random reference policies."""
    worst = {"anchor": 0.0, "reference": 0.0}
    for beta in BETAS:
        for seed in range(models):
            F, r, P = random_truth(seed, beta)
            model = model_of(F, beta)
            mu = np.random.default_rng(seed).dirichlet(np.ones(4), size=30)
            for kind, policy in (("anchor", anchored(P)), ("reference", mu)):
                found = normalised(model, P, policy, (policy * r).sum(axis=1))
                worst[kind] = max(worst[kind], float(np.abs(found.r - r).max()))
    for kind, error in worst.items():
        text = f"exact recovery, {kind}: largest error of {models * len(BETAS)} models"
        study.check(text, error, 0, want["exact"], "closed form")


def bounds(study: Study, models: int) -> None:
    """The bound of papers.md 1.1 on random models: share of it that the worst error takes."""
    beta, rows = 0.92, []
    for d in (1e-3, 1e-2, 1e-1):
        share, largest = [], 0.0
        for seed in range(models):
            F, r, P = random_truth(seed, beta)
            rng = np.random.default_rng(10_000 + seed)
            noisy = P * np.exp(d * rng.uniform(-1, 1, P.shape))
            noisy /= noisy.sum(axis=1, keepdims=True)
            size = np.abs(np.log(noisy / P)).max()
            model, mu = model_of(F, beta), anchored(P)
            right, found = (normalised(model, p, mu, r[:, 0]) for p in (P, noisy))
            W, What = (f.V - f.psi[:, 0] for f in (right, found))
            share += [
                np.abs(What - W).max() / (beta * size / (1 - beta)),
                np.abs(found.Q - right.Q).max() / (2 * size + beta * size / (1 - beta)),
                np.abs(found.r - r).max() / (2 * size / (1 - beta)),
            ]
            largest = max(largest, float(np.abs(found.r - r).max()))
        study.within(f"bound at d = {d:g}: share taken", max(share), 0, 1, "closed form")
        rows.append((d, largest, 2 * d / (1 - beta)))
    table = pd.DataFrame(rows, columns=["d", "largest error of r", "bound 2d/(1 - beta)"])
    study.say(f"Error bound, {models} random models of 30 states, beta .92\n{table.to_string()}")


def wrong_anchor(study: Study, want: dict[str, float], models: int) -> None:
    """An anchor's reward off by c gives r_a - A_a c, and the same probabilities."""
    beta, off, same = 0.9, 0.0, 0.0
    for seed in range(models):
        F, r, P = random_truth(seed, beta)
        S = len(P)
        found = normalised(model_of(F, beta), P, anchored(P), np.zeros(S))
        left = np.linalg.inv(np.eye(S) - beta * F[:, 0])
        for a in range(4):
            A = (np.eye(S) - beta * F[:, a]) @ left
            off = max(off, float(np.abs(found.r[:, a] - (r[:, a] - A @ r[:, 0])).max()))
        own = model_of(F, beta)
        own = own.with_parts(utility=dc.Utility.from_array(np.zeros((S, 4, 0)), [], found.r))
        same = max(same, float(np.abs(dc.solve(own, np.zeros(0)).ccp - P).max()))
    study.check("wrong anchor: distance from A_a c", off, 0, want["exact"], "closed form")
    study.check("wrong anchor: distance of probabilities", same, 0, want["exact"], "closed form")


# rows --------------------------------------------------------------------------------------------


def line() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return laws, rewards and policy of hours watched, solved on a fine grid."""
    edges = np.r_[-np.inf, (GRID[1:] + GRID[:-1]) / 2, np.inf]
    F = np.stack(
        [
            np.diff(norm.cdf((edges - (0.6 * GRID + m)[:, None]) / 0.5), axis=1)
            for m in (0.3, 0.9, 1.2)
        ]
    )
    one = THETA[0] + THETA[1] * GRID
    u = np.stack([0 * GRID, one, one + THETA[2]], axis=1)
    V = np.zeros(len(GRID))
    for _ in range(600):
        v = u + BETA * np.einsum("jst,t->sj", F, V)
        V = np.log(np.exp(v).sum(axis=1))
    return F, u, np.exp(v - V[:, None])


def members(truth: tuple[np.ndarray, ...], number: int, periods: int, seed: int) -> dc.Trajectories:
    """Return simulated members."""
    F, _, P = truth
    rng = np.random.default_rng(seed)
    i, parts = rng.integers(0, len(GRID), number), []
    chance, ahead = P.cumsum(axis=1), F.cumsum(axis=2)
    for t in range(periods):
        a = (rng.random(number)[:, None] > chance[i]).sum(axis=1).clip(0, 2)
        row = {"id": np.arange(number), "t": t, "hours": GRID[i], "plan": np.array(CHOICES)[a]}
        parts.append(pd.DataFrame(row))
        i = (rng.random(number)[:, None] > ahead[a, i]).sum(axis=1).clip(0, len(GRID) - 1)
    return dc.Trajectories(
        pd.concat(parts, ignore_index=True), member="id", time="t", choice="plan",
        features=["hours"], choices=CHOICES,
    )  # fmt: skip


def coverage(study: Study, want: dict[str, float], draws: int, number: int) -> None:
    """Bias, spread and coverage of the estimators on rows."""
    truth = line()
    attributes = pd.DataFrame({"choice": CHOICES, "member": [0, 1, 1], "plus": [0, 0, 1]})
    model = dc.RewardModel(
        CHOICES, beta=BETA, anchor="out", features="0 + member + member:hours + plus",
        attributes=attributes,
    )  # fmt: skip
    kinds = {"DeepPQR": dc.DeepPQR, "GenPQR": dc.GenPQR, "TDCCP": dc.TDCCP}
    found: dict[str, list[np.ndarray]] = {k: [] for k in kinds}
    errors: dict[str, list[np.ndarray]] = {k: [] for k in kinds}
    for seed in range(draws):
        rows = members(truth, number, 10, seed)
        for name, kind in kinds.items():
            fit = kind(model, rows, degree=3).fit()
            found[name].append(fit.vector)
            errors[name].append(fit.std_errors.to_numpy())
    lines = []
    for name in kinds:
        e, s = np.array(found[name]), np.array(errors[name])
        held = (np.abs(e - THETA) < norm.ppf(0.975) * s).mean(axis=0)
        bias = (e.mean(axis=0) - THETA) / (e.std(axis=0, ddof=1) / np.sqrt(draws))
        lines += [
            (name, k, THETA[i], e[:, i].mean(), e[:, i].std(ddof=1), s[:, i].mean(), held[i])
            for i, k in enumerate(fit.names)
        ]
        noise = 3 * np.sqrt(0.05 * 0.95 / draws)
        study.within(f"{name}: least coverage", held.min(), 0.95 - noise - want["short"], 1,
                     "own oracle")  # fmt: skip
        study.check(f"{name}: bias, in s.e. of the mean", np.abs(bias).max(), 0, want["bias"],
                    "own oracle")  # fmt: skip
        ratio = s.mean(axis=0) / e.std(axis=0, ddof=1)
        study.within(f"{name}: s.e. over spread", ratio[np.abs(ratio - 1).argmax()],
                     1 - want["ratio"], 1 + want["ratio"], "own oracle")  # fmt: skip
    head = ["estimator", "parameter", "truth", "mean", "spread", "mean s.e.", "coverage of 95%"]
    table = pd.DataFrame(lines, columns=head).round(4).to_string(index=False)
    study.say(f"{draws} samples of {number:,} members x 10 periods, cubic sieve\n{table}")


def run(quick: bool) -> Study:
    """Run the study."""
    study, want = Study("pqr"), expected(HERE)
    exact(study, want, 4 if quick else 100)
    bounds(study, 5 if quick else 200)
    wrong_anchor(study, want, 3 if quick else 50)
    coverage(study, want, 15 if quick else 300, 1000 if quick else 2000)
    return study


if __name__ == "__main__":
    main(run)
