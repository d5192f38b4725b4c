"""Models of 282,000 and 3.4 million states: contracts x engagement, and x seasons.

    python validation/benchmarks/large.py [--seasons | --fit]

43 contract levels of the prototype x 3^8 engagement levels of eight benefits: seconds of a solution
from nothing, beside plain NumPy and scipy's GMRES on the factored product (one contraction an axis
by ``np.tensordot``). With ``--seasons`` twelve of them; with ``--fit`` NFXP of 20 parameters. One
row a process, so that the peak of memory is the row's.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, end

import dynchoice as dc


def chain(rise: float, stay: float, n: int = 3) -> np.ndarray:
    """Up with one probability, down with another."""
    out = np.zeros((n, n))
    for i in range(n):
        out[i, min(i + 1, n - 1)] += rise
        out[i, max(i - 1, 0)] += 1 - stay
        out[i, i] += stay - rise
    return out


def programme(benefits: int = 8) -> dc.Membership:
    """The prototype with benefits of three levels of use."""
    club = dc.Membership.from_toml(HERE.parent / "primelike" / "prime_like.toml")
    rng = np.random.default_rng(0)
    old = [b.name for b in club.benefits]
    params = {k: v for k, v in club.params.items() if k not in old}
    listed = []
    for k in range(benefits):
        rise, stay = 0.08 + 0.02 * rng.random(), 0.88 + 0.08 * rng.random()
        law = np.stack([chain(rise / 2, stay - 0.1), chain(rise, stay)])
        listed.append(dc.Benefit(f"b{k}", levels=3, law=law))
        params[f"b{k}"] = float(0.03 + 0.075 * rng.random())
    params["member"] = -0.1  # a third of the population is in
    # one price list does not tell prices from tastes, nor choices a cost of cancelling from one of
    # joining: they are held
    held = ("price", "paying upfront", "cancelling cost")
    fixed = {**club.fixed, **{name: params.pop(name) for name in held if name in params}}
    return replace(
        club, benefits=tuple(listed), params=params, fixed=fixed, types={}, costs=club.used_costs
    )  # fmt: skip


def heavy(club: dc.Membership) -> tuple[dc.DDC, np.ndarray]:
    """The programme with another parameter for members who use a benefit much: 20 in all."""
    base, theta = club.model(), club.theta()
    x, offset = base.utility.x, base.utility.offset
    S, J, K = x.shape
    uses = [axis for axis in base.states.axes if axis != "contract"]
    level = np.unravel_index(np.arange(S), base.states.shape)
    wide = np.zeros((S, J, K + len(uses)))
    wide[:, :, :K] = x
    for k, name in enumerate(uses):
        much = level[base.states.names.index(name)] == 2
        wide[:, 1:, K + k] = much[:, None]
    names = [*base.names, *(f"much {name}" for name in uses)]
    utility = dc.Utility.from_array(wide, names, offset)
    extra = np.random.default_rng(1).normal(0, 0.03, len(uses))
    return base.with_parts(utility=utility), np.append(theta, extra)


def seasonal(club: dc.Membership, seasons: int = 12) -> tuple[dc.DDC, np.ndarray]:
    """The same members in a year of seasons, one parameter: how much more some of them are worth.

    The other parameters are held, in the known part of utility: 14 features of 3.4 million states
    and three choices would take 1.1 GB.
    """
    base = club.model()
    known = base.utility.flow(club.theta())
    states = dc.StateSpace(season=range(seasons), **dict(base.states.axes))
    laws = {"season": dc.Cycle(), **base.transitions.laws}
    wave = np.cos(2 * np.pi * np.arange(seasons) / seasons)
    S, J = known.shape
    x = np.zeros((seasons, S, J, 1))
    x[:, :, 1:] = wave[:, None, None, None]
    model = dc.DDC(
        states=states,
        choices=base.choices,
        utility=dc.Utility.from_array(
            x.reshape(seasons * S, J, 1), ["season"], np.tile(known, (seasons, 1))
        ),
        transitions=dc.Transitions.factored(states, base.choices, laws),
        beta=base.beta,
        available=np.tile(base.available, (seasons, 1)),
        attention=np.tile(base.attention, seasons),
        default=np.tile(base.default, seasons),
    )  # fmt: skip
    return model, np.array([0.2])


def plain_solve(model: dc.DDC, theta: np.ndarray) -> tuple[np.ndarray, int]:
    """Newton by scipy's GMRES on the product law, one einsum an axis; value and products."""
    from scipy.sparse.linalg import LinearOperator, gmres
    from scipy.special import logsumexp

    shape, beta, u = model.states.shape, model.beta, model.flow_utility(theta)
    tables = {}
    for law in model.transitions.bound:
        (axis,) = law.axes
        tables[axis] = [law.table[j if law.by_choice else 0, 0] for j in range(u.shape[1])]
    products = 0

    def expect(V: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        out = np.empty_like(u)
        for j in range(u.shape[1]):
            x = V.reshape(shape)
            for axis, table in tables.items():
                x = np.moveaxis(np.tensordot(table[j], x, axes=(1, axis)), 0, axis)
            out[:, j] = x.reshape(-1)
        return out

    a, d = model.perceived, model.default
    rows = np.arange(len(u))
    h = np.zeros(len(u))
    for step in range(40):
        v = u + beta * expect(h)
        top = logsumexp(v, axis=1)
        pi = np.exp(v - top[:, None])
        T = a * top + (1 - a) * v[rows, d]
        P = a[:, None] * pi
        P[rows, d] += 1 - a
        r = T - h - (T[0] - h[0])
        if np.abs(r).max() <= 1e-10 * (1 + np.abs(h).max()):
            break
        if step < 2:
            h = T - T[0]
            continue

        def apply(x: np.ndarray, P: np.ndarray = P) -> np.ndarray:
            y = x - beta * (P * expect(x)).sum(axis=1)
            return y - y[0]

        rtol = max(1e-11, min(0.1, float(np.abs(r).max())))
        A = LinearOperator((len(h), len(h)), matvec=apply, dtype=float)
        step_, _ = gmres(A, r, rtol=rtol, restart=40, maxiter=20)
        h = h + step_ - step_[0]
    return h + (T[0] - h[0]) / (1 - beta), products


def peak() -> float:
    """Peak of memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def timed(model: dc.DDC, theta: np.ndarray, times: int = 3) -> tuple[float, dc.Solution]:
    """Best of some solutions from nothing."""
    best, found = np.inf, None
    for _ in range(times):
        found = None
        begun = time.perf_counter()
        found = dc.solve(model, theta)
        best = min(best, time.perf_counter() - begun)
    return best, found


def solve_row(study: Study) -> None:
    """282,000 states from nothing, beside plain NumPy."""
    club = programme()
    model, theta = club.model(), club.theta()
    seconds, found = timed(model, theta)
    stats = f"{found.stats['newton']} Newton steps, {found.stats['products']} sweeps"
    study.say(
        f"{model.states.size:,} states: {seconds:.2f} s (promise 0.5), {stats}, {peak():.2f} GB"
    )
    study.check("large: converged", found.converged, 1, 0, "own oracle")
    study.check("large: 282,000 states, s", seconds, 0, 0.5, "design.md 6")
    begun = time.perf_counter()
    V, products = plain_solve(model, theta)
    plain = time.perf_counter() - begun
    gap = float(np.abs(V - found.V).max())
    study.say(
        f"plain NumPy and GMRES: {plain:.1f} s, {products} products, apart {gap:.1e}: ratio"
        f" {plain / seconds:.0f}"
    )
    study.within("large: the same values", gap, 0, 1e-6, "own oracle")


def season_row(study: Study) -> None:
    """The same in twelve seasons: 3.4 million states."""
    model, theta = seasonal(programme())
    seconds, found = timed(model, theta, 2)
    stats = f"{found.stats['newton']} Newton steps, {found.stats['products']} sweeps"
    study.say(
        f"{model.states.size:,} states: {seconds:.2f} s (promise 15), {stats}, {peak():.2f} GB"
    )
    study.check("seasons: converged", found.converged, 1, 0, "own oracle")
    study.check("seasons: 3.4 million states, s", seconds, 0, 15, "design.md 6")
    study.check("seasons: memory, GB", peak(), 0, 2, "design.md 6")


def fit_row(study: Study) -> None:
    """NFXP of 20 parameters on 282,000 states, from counts of a million member-months."""
    from models import draw_counts

    model, theta = heavy(programme())
    counts = draw_counts(model, theta, 1_000_000)
    begun, cpu = time.perf_counter(), time.process_time()
    result = dc.NFXP(model, counts).fit(cov_type="unadjusted")
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    study.say(
        f"NFXP, {model.states.size:,} states, {len(theta)} parameters: {seconds:.1f} s"
        f" wall, {cpu:.1f} s of two cores (promise 30), {result.message}, {peak():.2f} GB"
    )
    gap = np.abs((result.theta - theta) / result.std_errors.to_numpy()).max()
    study.within("large fit: standard errors from the truth", float(gap), 0, 4, "own oracle")
    study.check("large fit: converged", result.converged, 1, 0, "own oracle")
    study.check("large fit: s", seconds, 0, 30, "design.md 6")
    study.check("large fit: memory, GB", peak(), 0, 2, "design.md 6")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seasons", action="store_true")
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    study = Study("large")
    # one row a process: the peak of memory is that row's
    row = season_row if given.seasons else fit_row if given.fit else solve_row
    row(study)
    end(study)
