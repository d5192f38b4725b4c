"""Models and clocks that benchmarks share, and a plain scipy NFXP to measure against."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

import dynchoice as dc
from dynchoice.panel.counts import NO_NEXT, Counts

PLANS = ["none", "monthly", "annual"]


def cpu(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call, after one warm-up.

    Short calls are repeated for a second: another tenant of the machine may have a tenth of it.
    """
    work()
    times: list[float] = []
    while len(times) < repeats or sum(times) < 1.0:
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times))


def bus_model(
    bins: int, beta: float, increments: list[float] | None, size: int | None = None
) -> dc.DDC:
    """Rust's engine replacement; ``size`` levels if given (the same increments)."""
    states = dc.StateSpace(mileage=range(size or bins))
    choices = ["keep", "replace"]
    attributes = pd.DataFrame({"choice": choices, "kept": [-0.001, 0.0], "RC": [0.0, -1.0]})
    utility = dc.Utility.from_formula("0 + RC + kept:mileage", states, choices, attributes)
    step = len(increments) - 1 if increments else (2 if bins == 90 else 5)
    law = dc.Increment(step, reset_on="replace", probabilities=increments, after_reset=1)
    transitions = dc.Transitions.factored(states, choices, {"mileage": law})
    return dc.DDC(
        states=states, choices=choices, utility=utility, transitions=transitions, beta=beta
    )


def plan_model(tenure: int, usage: int, beta: float = 0.98) -> tuple[dc.DDC, np.ndarray]:
    """3 plans x tenure x usage, 3 choices, 8 parameters, 3 non-zeros a row and choice."""
    states = dc.StateSpace(plan=PLANS, tenure=range(tenure), usage=range(usage))
    levels = states.frame()
    held = levels["plan"].to_numpy()
    t, u = levels["tenure"].to_numpy() / tenure, levels["usage"].to_numpy() / usage
    x = np.zeros((states.size, 3, 8))
    x[:, 1, 0] = x[:, 2, 1] = 1
    x[:, 1, 2], x[:, 2, 3] = u, u
    for j, plan in enumerate(PLANS):
        x[:, j, 4] = t * (held == plan) * (j > 0)
        x[:, j, 5] = -1.0 * (held != plan)
    x[:, 2, 6], x[:, 1, 7] = u * t, t
    drift = np.zeros((3, usage, usage))
    for j, (down, up) in enumerate([(0.4, 0.1), (0.2, 0.25), (0.15, 0.35)]):
        for i in range(usage):
            drift[j, i, max(i - 1, 0)] += down
            drift[j, i, min(i + 1, usage - 1)] += up
            drift[j, i, i] += 1 - down - up

    def stay(level: int, choice: str, plan: str) -> int:
        return min(level + 1, tenure - 1) if choice == plan else 0

    laws = {
        "plan": dc.Deterministic(lambda level, choice: choice),
        "tenure": dc.Deterministic(stay, given=("choice", "plan")),
        "usage": dc.Markov(("choice",), drift),
    }
    model = dc.DDC(
        states=states,
        choices=PLANS,
        utility=dc.Utility.from_array(x, [f"theta{k}" for k in range(8)]),
        transitions=dc.Transitions.factored(states, PLANS, laws),
        beta=beta,
    )
    return model, np.array([-0.3, -0.8, 1.2, 1.6, 0.4, 0.7, 0.3, 0.1])


def draw_counts(model: dc.DDC, theta: np.ndarray, total: int, seed: int = 0) -> Counts:
    """Counts of ``total`` independent member-months near the model's steady state."""
    P = dc.solve(model, theta, strict=True).ccp
    mu = np.full(model.states.size, 1 / model.states.size)
    for _ in range(60):
        mu = model.transitions.push(mu[:, None] * P)
    joint = (mu[:, None] * P).reshape(-1)
    n = np.random.default_rng(seed).multinomial(total, joint / joint.sum()).reshape(P.shape)
    s, j = np.nonzero(n)
    zero = np.zeros_like(s)
    number = n[s, j].astype(float)
    return Counts(
        states=model.states,
        choices=model.choices,
        segments=("all",),
        buckets=200,
        cells=np.stack([zero, s % 200, s, j, zero + NO_NEXT, zero + 1], axis=1),
        n=number,
        period_cells=np.stack([zero, zero, s, j, zero + 1], axis=1),
        period_n=number,
        segment_members=np.array([float(total)]),
    )


def plain_scipy(model: dc.DDC, n: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float, int]:
    """NFXP as an economist would write it with numpy and scipy: sparse NK inside, BFGS outside.

    Returns estimates, log-likelihood and the number of likelihood evaluations.
    """
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix, diags, identity
    from scipy.sparse.linalg import splu

    S, J, _ = model.shape
    beta, x = model.beta, model.utility.x
    dense = model.transitions.stacked()
    stacked = csr_matrix((dense[2], dense[1], dense[0]), shape=(S * J, S))
    F = [stacked[np.arange(S) * J + j] for j in range(J)]
    total = n.sum()

    def solve(theta: np.ndarray):
        u = x @ theta
        V = np.zeros(S)
        for step in range(100):
            v = u + beta * np.column_stack([F[j] @ V for j in range(J)])
            top = v.max(axis=1, keepdims=True)
            T = np.log(np.exp(v - top).sum(axis=1)) + top[:, 0]
            P = np.exp(v - T[:, None])
            gap = T - V
            if step < 10:
                V = T
                continue
            A = identity(S, format="csc") - beta * sum(diags(P[:, j]) @ F[j] for j in range(J))
            lu = splu(A.tocsc(), permc_spec="MMD_AT_PLUS_A")
            V = V + lu.solve(gap)
            if np.abs(gap).max() < 1e-10 * (1 + np.abs(V).max()):
                return P, lu
        raise RuntimeError("no fixed point")

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        P, lu = solve(theta)
        dV = lu.solve(np.einsum("sj,sjk->sk", P, x))
        dv = x + beta * np.stack([F[j] @ dV for j in range(J)], axis=1)
        score = np.einsum("sj,sjk->k", n, dv - np.einsum("sj,sjk->sk", P, dv)[:, None])
        return -(n[n > 0] * np.log(P[n > 0])).sum() / total, -score / total

    result = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    return result.x, -result.fun * total, result.nfev
