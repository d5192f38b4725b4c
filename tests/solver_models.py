"""Random factored models that solvers meet, small enough for dense twins."""

from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import oracles
from test_kernels import laws_of

import dynchoice as dc
from dynchoice.model import factored as factored_module

EPS = np.finfo(float).eps
BENCHMARKS = Path(__file__).resolve().parents[1] / "validation" / "benchmarks"
CASES = [1, 2, 3, 6, 7, 100]
"""Random models: many small offers, one large, levels only, chains in pieces; rich ones."""
KINDS = ("attentive", "inattentive", "naive")


@contextmanager
def unexpanded():
    """Every factored law that is first used in here counts as too large to expand."""
    kept, factored_module.STACKED_LIMIT = factored_module.STACKED_LIMIT, 0
    try:
        yield
    finally:
        factored_module.STACKED_LIMIT = kept


def rich(rng):
    """(shape, laws) with everything at once: offers, a contract and a season as levels, two halves
    of which one has a parent inside, laws that look at the offer; axes in any order."""
    sizes = {"offer": 2, "contract": 4, "season": 2, "a": 3, "b": 2, "d": 3}
    names = [str(name) for name in rng.permutation(list(sizes))]
    at, shape = {name: i for i, name in enumerate(names)}, tuple(sizes[n] for n in names)
    contract = np.zeros((3, 4, 4))
    contract[0, :, 0] = contract[1, :, 1] = 1.0
    contract[2, np.arange(4), [3, 3, 1, 2]] = 1.0
    contract[2] = 0.9 * contract[2] + 0.1 * contract[0]
    looks = {"a": ("choice", "offer"), "b": ("a", "choice"), "d": ("offer",)}
    laws = [
        {"axes": (at["offer"],), "given": (), "kind": "fixed", "table": None},
        {
            "axes": (at["season"],),
            "given": (),
            "kind": "deterministic",
            "table": np.array([1, 0], dtype=object),
        },
        {"axes": (at["contract"],), "given": ("choice",), "kind": "markov", "table": contract},
    ]
    for name, given in looks.items():
        dims = [3 if g == "choice" else sizes[g] for g in given]
        n = sizes[name]
        table = oracles.random_rows(rng, int(np.prod(dims)), n).reshape(*dims, n, n)
        given = tuple(g if g == "choice" else at[g] for g in given)
        laws.append({"axes": (at[name],), "given": given, "kind": "markov", "table": table})
    return shape, laws


@lru_cache
def pieces(seed, kind="inattentive"):
    """An oracle's random model with its laws: a rich one from 100 on. In every third some levels
    of an axis offer one choice only."""
    rng = np.random.default_rng([seed, 7])
    J, K = int(rng.integers(2, 5)), 2
    if seed >= 100:
        J, (shape, laws) = 3, rich(rng)
    else:
        shape, laws = oracles.random_factored(seed, J, free=True)
    S = int(np.prod(shape))
    allowed = ~oracles.law_forbids(shape, laws, J)
    available = (rng.random((S, J)) < 0.6) & allowed
    if seed % 3 == 0 or seed >= 100:
        axis = laws[2]["axes"][0] if seed >= 100 else int(rng.integers(len(shape)))
        offered = rng.random((shape[axis], J)) < 0.5
        offered[-1] = False
        available &= offered[np.unravel_index(np.arange(S), shape)[axis]]
    available[:, 0] = True
    attention = np.where(rng.random(S) < 0.5, 1.0, rng.uniform(0.3, 1.0, S))
    perceived = np.where(rng.random(S) < 0.5, attention, (1 + attention) / 2)
    spec = {
        "x": rng.normal(size=(S, J, K)),
        "offset": rng.normal(size=(S, J)),
        "F": oracles.law_product(shape, laws, J),
        "available": available,
        "attention": np.ones(S) if kind == "attentive" else attention,
        "default": np.array([rng.choice(np.flatnonzero(row)) for row in available]),
        "params": rng.normal(size=K),
    }
    return shape, laws, spec, perceived


def model_of(seed, beta, kind="inattentive"):
    """A new model, nothing of which is cached, and the oracle's."""
    shape, laws, spec, perceived = pieces(seed, kind)
    states = dc.StateSpace(**{f"a{i}": range(n) for i, n in enumerate(shape)})
    J = spec["x"].shape[1]
    model = dc.DDC(
        states=states,
        choices=[f"c{j}" for j in range(J)],
        utility=dc.Utility.from_array(spec["x"], ["k0", "k1"], offset=spec["offset"]),
        transitions=dc.Transitions.factored(
            states, [f"c{j}" for j in range(J)], laws_of(shape, laws)
        ),
        beta=beta,
        perceived=perceived if kind == "naive" else None,
        **{k: spec[k] for k in ("available", "attention", "default")},
    )
    return model, {**spec, "beta": beta}


def policies(rng, available):
    """Random policies; one has zeros beyond the mask, one never takes a choice that others do."""
    for kind in ("all", "some", "first", "all"):
        P = rng.gamma(1.0, size=available.shape) * available + 1e-300 * available
        if kind == "some":
            P[:, 1:] *= rng.random(P[:, 1:].shape) < 0.5
        if kind == "first":
            P[:, 1:] = 0.0
        yield P / P.sum(axis=1, keepdims=True)


def groups_of(model):
    return [
        np.flatnonzero(model.transitions.blocks == b) for b in np.unique(model.transitions.blocks)
    ]


def counts(rng, model):
    return np.where(model.available, rng.integers(0, 6, model.available.shape), 0).astype(float)


def clock_model(beta=0.99):
    """Two offers that never meet, a clock, a drifting level: 2 blocks of 60 states."""
    states = dc.StateSpace(offer=["a", "b"], clock=range(6), level=range(10))
    choices = ["stay", "move", "rest"]
    rng = np.random.default_rng(0)
    drift = np.zeros((3, 10, 10))
    for j, up in enumerate((0.1, 0.5, 0.3)):
        for i in range(10):
            drift[j, i, min(i + 1, 9)] += up
            drift[j, i, max(i - 1, 0)] += 0.2
            drift[j, i, i] += 0.8 - up
    laws = {
        "offer": dc.Fixed(),
        "clock": dc.Deterministic(lambda level, choice: 0 if choice == "move" else (level + 1) % 6),
        "level": dc.Markov(("choice",), drift),
    }
    utility = dc.Utility.from_array(rng.normal(size=(120, 3, 4)), list("abcd"))
    return dc.DDC(
        states=states,
        choices=choices,
        utility=utility,
        beta=beta,
        transitions=dc.Transitions.factored(states, choices, laws),
    )
