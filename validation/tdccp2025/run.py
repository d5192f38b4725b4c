"""TD-CCP on the entry problem of Adusumilli and Eckardt (2025), Table 1: the semi-gradient."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import qr
from scipy.stats import norm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main

import dynchoice as dc

BETA, POINTS, FIRMS, WIDTH = 0.95, 6, 3000, 0.5
WIDTHS = (0.4, 0.5, 0.6, 1.0, 2.0, 3.0)
NAMES = ("VP0", "VP1", "VP2", "FC0", "FC1", "EC0", "EC1")
THETA = np.array([0.5, 1.0, -1.0, 1.5, 1.0, 1.0, 1.0])
STATE = ["z1", "z2", "z3", "z4", "ew", "z1ew", "z2ew", "out", "outz4"]
CHOICES = ["out", "enter"]

Columns = Callable[[np.ndarray, np.ndarray], np.ndarray]


# model -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """Points ``x`` (6^5, 5) of z1 to z4 and w, their laws; by point and last choice (6^5, 2):
    value of entering less staying out, ergodic share."""

    x: np.ndarray
    laws: tuple[np.ndarray, ...]
    gap: np.ndarray
    share: np.ndarray

    @property
    def enter(self) -> np.ndarray:
        """Probability to enter (6^5, 2)."""
        return 1 / (1 + np.exp(-self.gap))


def tauchen(constant: float, slope: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the points and law of an AR(1) with N(0, 1) shocks; half-width in its own SDs."""
    grid = np.linspace(-width, width, POINTS) / np.sqrt(1 - slope**2) + constant / (1 - slope)
    edges = np.r_[-np.inf, (grid[1:] + grid[:-1]) / 2, np.inf]
    return grid, np.diff(norm.cdf(edges - (constant + slope * grid)[:, None]), axis=1)


def ahead(laws: tuple[np.ndarray, ...], table: np.ndarray) -> np.ndarray:
    """Return ``E[table(x') | x]`` (6^5, K), one law at a time."""
    cube = table.reshape(*[POINTS] * 5, -1)
    for k, law in enumerate(laws):
        cube = np.moveaxis(np.tensordot(law, cube, (1, k)), 0, k)
    return cube.reshape(len(table), -1)


def payoffs(x: np.ndarray, lag: np.ndarray | float) -> np.ndarray:
    """Return the features (n, 7) of entering."""
    z1, z2, z3, z4, w = x.T
    one, out = np.ones(len(x)), np.ones(len(x)) - lag
    return np.stack([np.exp(w), z1 * np.exp(w), z2 * np.exp(w), -one, -z3, -out, -out * z4], axis=1)


def solved(width: float) -> Truth:
    """Iterate on values, then on the distribution, to rounding."""
    z, law = tauchen(0.0, 0.6, width)
    w, law_w = tauchen(0.2, 0.6, width)
    laws = (law,) * 4 + (law_w,)
    x = np.stack([g.ravel() for g in np.meshgrid(z, z, z, z, w, indexing="ij")], axis=1)
    flow = np.stack([payoffs(x, lag) @ THETA for lag in (0, 1)], axis=1)
    V = np.zeros_like(flow)
    for _ in range(5000):
        go = BETA * ahead(laws, V)
        new = np.logaddexp(flow + go[:, 1:], go[:, :1])
        step, V = np.abs(new - V).max(), new
        if step < 1e-11:
            break
    truth = Truth(x, laws, flow + go[:, 1:] - go[:, :1], np.full_like(V, 0.5 / len(x)))
    back, share = tuple(p.T for p in laws), truth.share
    for _ in range(5000):
        chosen = np.stack([(share * p).sum(axis=1) for p in (1 - truth.enter, truth.enter)], axis=1)
        step, share = np.abs(ahead(back, chosen) - share).sum(), ahead(back, chosen)
        if step < 1e-14:
            break
    return replace(truth, share=share / share.sum())


@dataclass(frozen=True)
class Sample:
    """Two rows a firm: states (2, n, 5), last choices and choices (2, n)."""

    x: np.ndarray
    lag: np.ndarray
    a: np.ndarray


def sample(truth: Truth, seed: int) -> Sample:
    """Draw firms from the ergodic distribution."""
    rng = np.random.default_rng(seed)
    total = truth.share.ravel().cumsum()
    drawn = np.minimum(np.searchsorted(total, rng.random(FIRMS)), total.size - 1)
    i, lag = drawn // 2, drawn % 2
    a = (rng.random(FIRMS) < truth.enter[i, lag]).astype(int)
    moved = [
        np.minimum((rng.random(FIRMS)[:, None] > law.cumsum(axis=1)[j]).sum(axis=1), POINTS - 1)
        for law, j in zip(truth.laws, np.unravel_index(i, (POINTS,) * 5), strict=True)
    ]
    j = np.ravel_multi_index(moved, (POINTS,) * 5)
    a_next = (rng.random(FIRMS) < truth.enter[j, a]).astype(int)
    return Sample(truth.x[[i, j]], np.array([lag, a]), np.array([a, a_next]))


# the estimator in plain numpy --------------------------------------------------------------------


def first_order(x: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Return the paper's columns of the state (n, 10): the last two are for the entry costs."""
    z1, z2, z3, z4, w = x.T
    one, e, out = np.ones(len(x)), np.exp(w), 1.0 - lag
    return np.stack([one, z1, z2, z3, z4, e, z1 * e, z2 * e, out, out * z4], axis=1)


def second_order(x: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Return the columns of the earlier draft (n, 23): up to second order, then the same two."""
    z1, z2, z3, z4, w = x.T
    v, out = [z1 * np.exp(w), z2 * np.exp(w), z3, z4, np.exp(w)], 1.0 - lag
    pairs = [a * b for a, b in combinations_with_replacement(v, 2)]
    return np.stack([np.ones(len(x)), *v, *pairs, out, out * z4], axis=1)


def everywhere(G: int) -> list[np.ndarray]:
    """Return the columns of (state, choice) for every feature and, last, the entropy: all."""
    return [np.arange(2 * G)] * 8


def papers_own(G: int) -> list[np.ndarray]:
    """Return the same where only EC0 and EC1 have a column of the last choice, when entering."""
    plain = np.r_[0 : G - 2, G : 2 * G - 2]
    return [plain] * 5 + [np.r_[plain, 2 * G - 2], np.r_[plain, 2 * G - 1], plain]


def placed(columns: np.ndarray, a: np.ndarray | int) -> np.ndarray:
    """Return the columns in the place of the choice (n, 2 G)."""
    taken = np.broadcast_to(a, len(columns))[:, None]
    return np.hstack([columns * (1 - taken), columns * taken])


def differences(A: np.ndarray, b: np.ndarray, use: list[np.ndarray]) -> np.ndarray:
    """Solve ``A v = b`` (D, 8), every column of it on its own columns of the basis."""
    out = np.zeros_like(b)
    for k, at in enumerate(use):
        out[at, k] = np.linalg.solve(A[np.ix_(at, at)], b[at, k])
    return out


def logit(
    x: np.ndarray, a: np.ndarray, offset: np.ndarray | float = 0.0, weight: Any = 1.0
) -> np.ndarray:
    """Return the coefficients of a logit, by Newton steps (``a`` may be a probability)."""
    found = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ found + offset)))
        step = np.linalg.solve(
            (x * (weight * p * (1 - p))[:, None]).T @ x, x.T @ (weight * (a - p))
        )
        found = found + step
        if np.abs(step).max() < 1e-12:
            break
    return found


def quadratic(state: np.ndarray) -> np.ndarray:
    """Return a constant, columns, squares and products (n, G), those that add nothing left out."""
    v = (state - state.mean(axis=0)) / state.std(axis=0)
    pairs = [a * b for a, b in combinations_with_replacement(v.T, 2)]
    whole = np.stack([np.ones(len(v)), *v.T, *pairs], axis=1)
    _, r, order = qr(whole / np.linalg.norm(whole, axis=0), mode="economic", pivoting=True)
    return whole[:, np.sort(order[np.abs(np.diag(r)) > 1e-7])]


def plain(
    s: Sample, columns: Columns, use: Callable[[int], list[np.ndarray]], *, all_rows: bool,
    policy: Columns, kept_out: bool = False,
) -> np.ndarray:  # fmt: skip
    """Return theta: first-stage logit, one solve for omega and xi, pseudo-likelihood.

    With ``kept_out`` the basis is of what follows a choice; what is earned today is added to it.
    """
    n = s.x.shape[1]
    x, lag, a = s.x.reshape(-1, 5), s.lag.ravel(), s.a.ravel()
    q = quadratic(policy(x, lag))
    chance = 1 / (1 + np.exp(-(q @ logit(q, a))[n:]))
    entropy = -np.log(np.where(a[n:] == 1, chance, 1 - chance))
    c = columns(x, lag)
    f, f_next = placed(c[:n], a[:n]), placed(c[n:], a[n:])
    z = payoffs(x[:n], lag[:n]) * a[:n, None]
    if kept_out:
        z = BETA * payoffs(x[n:], lag[n:]) * a[n:, None]
    b = f.T @ np.column_stack([z, BETA * entropy])
    v = differences(f.T @ (f - BETA * f_next), b, use(c.shape[1]))
    rows = slice(None) if all_rows else slice(n)
    gap = (placed(c, 1) - placed(c, 0))[rows] @ v
    today = payoffs(x, lag)[rows] if kept_out else 0.0
    return logit(gap[:, :7] + today, a[rows], gap[:, 7])


def state_of(x: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Return the state (n, 6), on which the paper's first stage is quadratic."""
    return np.column_stack([x, lag])


def limit(
    truth: Truth, columns: Columns, use: Callable[[int], list[np.ndarray]], kept_out: bool = False
) -> np.ndarray:
    """Return what the estimator tends to as firms grow: its equations in expectations."""
    x, p, n = truth.x, truth.enter, len(truth.x)
    log_in, log_out = -np.logaddexp(0, -truth.gap), -np.logaddexp(0, truth.gap)
    entropy = -(p * log_in + (1 - p) * log_out)
    c = [columns(x, np.full(n, lag)) for lag in (0, 1)]
    D = 2 * c[0].shape[1]
    A, b = np.zeros((D, D)), np.zeros((D, 8))
    for a in (0, 1):
        both = placed(c[a], 1) * p[:, [a]] + placed(c[a], 0) * (1 - p[:, [a]])
        next_pays = payoffs(x, a) * p[:, [a]]
        mean = ahead(truth.laws, np.column_stack([both, next_pays, entropy[:, a]]))
        for lag in (0, 1):
            f = placed(c[lag], a)
            w = truth.share[:, lag] * (p if a else 1 - p)[:, lag]
            z = BETA * mean[:, D : D + 7] if kept_out else a * payoffs(x, lag)
            b += (f * w[:, None]).T @ np.column_stack([z, BETA * mean[:, -1]])
            A += (f * w[:, None]).T @ (f - BETA * mean[:, :D])
    v = differences(A, b, use(c[0].shape[1]))
    gap = np.concatenate([(placed(k, 1) - placed(k, 0)) @ v for k in c])
    if kept_out:
        gap[:, :7] += np.concatenate([payoffs(x, lag) for lag in (0, 1)])
    return logit(gap[:, :7], p.T.ravel(), gap[:, 7], truth.share.T.ravel())


# the package -------------------------------------------------------------------------------------


def derived(x: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Return the numbers (n, 9) that the package is given as the state."""
    return first_order(x, lag)[:, 1:]


def rows_of(s: Sample) -> dc.Trajectories:
    """Return the sample as the package reads it."""
    n = s.x.shape[1]
    frame = pd.DataFrame(derived(s.x.reshape(-1, 5), s.lag.ravel()), columns=STATE)
    frame["firm"], frame["t"] = np.tile(np.arange(n), 2), np.repeat([0, 1], n)
    frame["plan"] = np.array(CHOICES)[s.a.ravel()]
    return dc.Trajectories(
        frame, member="firm", time="t", choice="plan", features=STATE, choices=CHOICES
    )


def features(table: pd.DataFrame) -> np.ndarray:
    """Return the utility's features (n, 2, 7); staying out has none."""
    t, out = {k: table[k].to_numpy() for k in STATE}, np.zeros((len(table), 2, 7))
    out[:, 1] = np.stack(
        [t["ew"], t["z1ew"], t["z2ew"], -np.ones(len(table)), -t["z3"], -t["out"], -t["outz4"]],
        axis=1,
    )
    return out


MODEL = dc.RewardModel(CHOICES, beta=BETA, anchor="out", features=features, names=NAMES)
FUTURE = STATE[:7]
OPTIONS = {"degree": 1, "policy_degree": 2, "pairs": True, "ahead": FUTURE}


def future(x: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Return the columns (n, 8) on which what follows a choice depends."""
    return first_order(x, lag)[:, :8]


# study -------------------------------------------------------------------------------------------


def same_theta(study: Study, truth: Truth, want: dict[str, Any], draws: int) -> None:
    """The package against the plain version, on the same basis and rows."""
    worst = 0.0
    for seed in range(draws):
        s = sample(truth, 90_000 + seed)
        for followed in (False, True):
            other = plain(
                s, future, everywhere, all_rows=not followed, policy=derived, kept_out=True
            )
            fit = dc.TDCCP(MODEL, rows_of(s), followed=followed, **OPTIONS).fit()
            worst = max(worst, float(np.abs(fit.vector - other).max()))
    text = f"package: largest distance of theta from plain numpy, {draws} samples"
    study.check(text, worst, 0, want["same"], "own oracle")


def choose_width(study: Study, truth: Truth, want: dict[str, Any]) -> np.ndarray:
    """Limits of the estimator by width of Tauchen's grid; that of the width used is returned."""
    found = {w: limit(solved(w), first_order, papers_own) for w in WIDTHS if w != WIDTH}
    found[WIDTH] = limit(truth, first_order, papers_own)
    lines = {f"width {w}": found[w] for w in sorted(found)} | {"published": want["mean"]}
    table = pd.DataFrame(lines, index=NAMES).T.round(4)
    study.say(f"Limit of the estimator by width of the grid in SDs\n{table.to_string()}")
    off = np.abs(found[WIDTH] - want["mean"]).max()
    study.check(f"limit at width {WIDTH}: distance from published means", off, 0,
                want["mean_within"], "published")  # fmt: skip
    return found[WIDTH]


def row(study: Study, name: str, e: np.ndarray, want: dict[str, Any], rule: dict[str, Any]) -> None:
    """Print a row of the table; claim that it is the published one."""
    mean, sd, R = e.mean(axis=0), e.std(axis=0, ddof=1), len(e)
    total = float(((e - THETA) ** 2).mean(axis=0).sum())
    noise_mean = np.hypot(sd / np.sqrt(R), np.array(want["sd"]) / np.sqrt(want["draws"]))
    noise_sd = np.sqrt(1 / (2 * R) + 1 / (2 * want["draws"]))
    off = sd / want["sd"] - 1
    lines = {
        "mean": mean, "published mean": want["mean"], "MC error": noise_mean,
        "sd": sd, "published sd": want["sd"], "sd off": off, "in MC errors": off / noise_sd,
    }  # fmt: skip
    table = pd.DataFrame(lines, index=NAMES).round(4).to_string()
    study.say(f"{name}, {R} samples: total MSE {total:.4f}, published {want['mse']}\n{table}")
    for k, label in enumerate(NAMES):
        study.check(f"{name}: mean of {label}", mean[k], want["mean"][k], rule["mean_within"],
                    "published")  # fmt: skip
        bound = rule["sd_within"] * want["sd"][k]
        study.check(f"{name}: SD of {label}", sd[k], want["sd"][k], bound, "published")
    study.check(f"{name}: total MSE", total, want["mse"], rule["mse_within"], "published")


def cover(
    study: Study, name: str, e: np.ndarray, s: np.ndarray, rule: dict[str, Any],
    centre: np.ndarray, claims: bool,
) -> None:  # fmt: skip
    """Coverage of 95 % intervals, of the truth and of the limit, and errors against spread."""
    held, own = ((np.abs(e - c) < norm.ppf(0.975) * s).mean(axis=0) for c in (THETA, centre))
    ratio = s.mean(axis=0) / e.std(axis=0, ddof=1)
    noise = 3 * np.sqrt(0.05 * 0.95 / len(e))
    away = (e.mean(axis=0) - centre) / (e.std(axis=0, ddof=1) / np.sqrt(len(e)))
    lines = {
        "limit": centre, "mean less limit, in s.e.": away, "covers truth": held,
        "covers limit": own, "mean s.e. over SD": ratio,
    }  # fmt: skip
    table = pd.DataFrame(lines, index=NAMES).round(3).to_string()
    study.say(f"{name}: 95 % intervals (chance: +-{noise:.3f})\n{table}")
    if not claims:
        return
    study.within(f"{name}: least coverage of the truth", held.min(), 0.95 - noise, 1, "own oracle")
    worst = ratio[np.abs(ratio - 1).argmax()]
    study.within(f"{name}: s.e. over SD", worst, 1 - rule["ratio"], 1 + rule["ratio"], "own oracle")


def parts(study: Study, found: dict[str, list[np.ndarray]]) -> None:
    """What rows and basis do, in plain numpy, and the package."""
    lines = {}
    for name, draws in found.items():
        e = np.array(draws)
        total = ((e - THETA) ** 2).mean(axis=0).sum()
        lines[name] = np.r_[e.std(axis=0, ddof=1), total]
    table = pd.DataFrame(lines, index=[*NAMES, "total MSE"]).T.round(4)
    study.say(f"SDs by rows of the pseudo-likelihood and basis, plain numpy\n{table.to_string()}")


def monte_carlo(study: Study, truth: Truth, want: dict[str, Any], draws: int, claims: bool) -> None:
    """The table: the plain version as in the paper, its earlier draft, and the package."""
    kinds = {"plain": first_order, "draft, plain": second_order}
    e: dict[str, list[np.ndarray]] = {name: [] for name in [*kinds, "package, followed rows"]}
    package: list[np.ndarray] = []
    second: list[np.ndarray] = []
    robust: list[np.ndarray] = []
    robust_errors: list[np.ndarray] = []
    robust_followed: list[np.ndarray] = []
    second_errors: list[np.ndarray] = []
    split: dict[str, list[np.ndarray]] = {}
    errors, seconds = [], []
    for seed in range(draws):
        s = sample(truth, seed)
        for name, columns in kinds.items():
            e[name].append(plain(s, columns, papers_own, all_rows=False, policy=state_of))
        for all_rows in (False, True):
            for basis, use in (("own", papers_own), ("shared", everywhere)):
                name = f"{'all' if all_rows else 'first'} rows, {basis} basis"
                theta = plain(s, first_order, use, all_rows=all_rows, policy=state_of)
                split.setdefault(name, []).append(theta)
        rows, began = rows_of(s), time.process_time()
        fit = dc.TDCCP(MODEL, rows, **OPTIONS).fit()
        seconds.append(time.process_time() - began)
        package.append(fit.vector)
        solid = dc.TDCCP(MODEL, rows, robust=True, **OPTIONS).fit()
        robust.append(solid.vector)
        robust_errors.append(solid.std_errors.to_numpy())
        solid = dc.TDCCP(MODEL, rows, robust=True, followed=True, **OPTIONS).fit()
        robust_followed.append(solid.vector)
        rich = dc.TDCCP(MODEL, rows, **OPTIONS | {"degree": 2}).fit()
        second.append(rich.vector)
        second_errors.append(rich.std_errors.to_numpy())
        as_paper = dc.TDCCP(MODEL, rows, followed=True, **OPTIONS).fit()
        e["package, followed rows"].append(as_paper.vector)
        errors.append(fit.std_errors.to_numpy())
    into = study if claims else Study("few samples: shown, not claimed")
    for name, found in e.items():
        which = want["draft"] if name.startswith("draft") else want["table1"]
        row(into, name, np.array(found), which, want)
    centre = limit(truth, future, everywhere, kept_out=True)
    cover(into, "package", np.array(package), np.array(errors), want, centre, True)
    cover(into, "package, second order", np.array(second), np.array(second_errors), want, THETA,
          False)  # fmt: skip
    cover(into, "package, robust", np.array(robust), np.array(robust_errors), want, THETA, False)
    split["package, robust"], split["package, robust, followed rows"] = robust, robust_followed
    split["package, followed rows"], split["package, all rows"] = (
        e["package, followed rows"],
        package,
    )
    split["package, second order"] = second  # fmt: skip
    parts(into, split)
    total = [float(((np.array(k) - THETA) ** 2).mean(axis=0).sum()) for k in (package, e["plain"])]
    solid_mse = float(((np.array(robust_followed) - THETA) ** 2).mean(axis=0).sum())
    into.check("package, robust, followed rows: total MSE", solid_mse, want["robust"]["mse"],
               want["mse_within"], "published")  # fmt: skip
    into.within("package, all rows: total MSE over the paper's", total[0] / total[1], 0, 1,
                "own oracle")  # fmt: skip
    if into is not study:
        study.tables += into.tables
    study.within("package: CPU seconds a fit", float(np.median(seconds)), 0,
                 want["table1"]["seconds"], "published")  # fmt: skip


def run(quick: bool) -> Study:
    """Run the study."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    study, want = Study("tdccp2025"), expected(HERE)
    truth = solved(WIDTH)
    choose_width(study, truth, want["table1"] | {"mean_within": want["mean_within"]})
    same_theta(study, truth, want, 2 if quick else 10)
    monte_carlo(study, truth, want, 2 if quick else 500, claims=not quick)
    return study


if __name__ == "__main__":
    main(run)
