"""Models too large to expand, made small: dense twins, and the expanded path beside the large one.

Everything here runs through levels and two halves because the limit of expansion is set to zero;
what is expected comes from dense NumPy (``oracles``), or from the same call on the expanded model.
"""

import copy
import gc
import itertools
import pickle
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
import oracles
import pytest
from test_kernels import laws_of

import dynchoice as dc
from dynchoice.estimate import likelihood as likelihood_module
from dynchoice.estimate import start as start_module
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.model import factored as factored_module
from dynchoice.model import level_graph as levels_module
from dynchoice.model.level_product import Product
from dynchoice.solvers import linear as linear_module
from dynchoice.solvers import sweeps as sweeps_module
from dynchoice.solvers.bellman import Bellman, LevelBellman
from dynchoice.solvers.krylov import Rooms
from dynchoice.solvers.layout import PlainBlocks
from dynchoice.solvers.linear import PolicySystem
from dynchoice.solvers.solver import Solver, ccp_derivative
from dynchoice.solvers.sweeps import Sweeps

EPS = np.finfo(float).eps
BENCHMARKS = Path(__file__).resolve().parents[2] / "validation" / "benchmarks"
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


@pytest.fixture
def rng():
    return np.random.default_rng(23)


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


# ---------------------------------------------------------------- linear systems


@pytest.mark.parametrize("beta", [1e-6, 0.5, 0.95, 0.9999, 0.99999])
def test_both_systems_against_dense_solutions(rng, beta):
    """One system for many policies in a row; the residual is what was asked for, but for rounding
    of the matrix times the solution, which is 1 / (1 - beta) as large as the right side."""
    tried = set()
    for seed in CASES:
        with unexpanded():
            model, spec = model_of(seed, beta)
            system = PolicySystem(model.transitions, beta)
        assert system.method == "levels"
        for P in policies(rng, model.available):
            system.factor(P)
            A = np.eye(len(P)) - beta * oracles.markov(P, spec["F"])
            for b in (rng.normal(size=len(P)), rng.random(len(P))):
                x, y = system.solve(b), system.solve(b, transposed=True)
                floor = 50 * EPS * np.sqrt(len(P))
                for own in groups_of(model):
                    at = np.ix_(own, own)
                    left = np.linalg.norm(A[at] @ x[own] - b[own])
                    spread = np.linalg.norm(b[own] - b[own[0]])
                    assert left <= 1e-11 * spread + floor * np.abs(x[own]).max()
                    left = np.linalg.norm(A[at].T @ y[own] - b[own])
                    assert left <= 1e-11 * np.linalg.norm(b[own]) + floor * np.abs(y[own]).sum()
                near = 1e-10 + 50 * EPS / (1 - beta)
                np.testing.assert_allclose(x, np.linalg.solve(A, b), atol=near * np.abs(x).max())
                np.testing.assert_allclose(y, np.linalg.solve(A.T, b), atol=near * np.abs(y).max())
        assert not system.failures
        law = system.sweeps.law
        tried |= {("offers", law.B > 1), ("halves", min(law.D, law.E) > 1), ("one", law.n == 1)}
    assert {("offers", True), ("halves", True), ("offers", False)} <= tried


@pytest.mark.parametrize("beta", [0.9999, 0.99999])
def test_differences_of_values_keep_their_digits(rng, beta):
    """Choices hang on relative values, which do not feel the level's 1 / (1 - beta)."""
    for seed in CASES:
        with unexpanded():
            model, spec = model_of(seed, beta)
            system = PolicySystem(model.transitions, beta)
            groups = groups_of(model)
        P = next(policies(rng, model.available))
        system.factor(P)
        b = rng.normal(size=len(P))
        x = system.solve(b)
        for own in groups:
            F = spec["F"][np.ix_(own, range(P.shape[1]), own)]
            want = oracles.relative_solve(F, P[own], beta, b[own])
            # other modes of the chain may be slow as well: their size says so
            np.testing.assert_allclose(
                x[own] - x[own[0]],
                want,
                atol=1e-10 * (1 + np.abs(want).max()) + EPS * np.abs(x).max(),
            )


def test_the_sum_of_a_right_side_is_not_chased_into_rounding(rng):
    """Of the transposed system the sum is 1 / (1 - beta) as large as the right side's: what is
    left after it sums to zero but for rounding, which no step can make smaller. Steps that try
    are noise, and in small blocks their combination is no solution."""
    beta, asked = 0.99999, 0
    for seed in (*range(12), 100):
        with unexpanded():
            model, spec = model_of(seed, beta)
            system = PolicySystem(model.transitions, beta)
        P = next(policies(rng, model.available))
        system.factor(P)
        A = np.eye(len(P)) - beta * oracles.markov(P, spec["F"])
        for b in rng.random((6, len(P))):
            before = system.products
            y = system.solve(b, transposed=True)
            asked = max(asked, (system.products - before) / system.sweeps.law.B)
            want = np.linalg.solve(A.T, b)
            assert np.abs(y - want).max() < 1e-8 * np.abs(want).max(), (seed, system.failures)
    assert asked < 70  # sweeps a block; 35 do for sides that sum to zero


def test_moves_never_offered_may_be_left_out(rng):
    for seed in CASES:
        model, spec = model_of(seed, 0.95)
        whole = model.transitions.product
        on = model.available
        law = whole.trimmed(whole.laid(on))
        assert whole.trimmed(whole.laid(on)) is law  # made once
        assert law is whole or law.graph[0][-1] < whole.graph[0][-1]
        V, mass = rng.normal(size=whole.S), rng.random(on.shape) * on
        ev, x = np.full((law.B, law.C, law.J, law.n), np.nan), law.laid(V)
        law.expect_laid(x, ev)
        np.testing.assert_allclose(law.by_state(ev)[on], (spec["F"] @ V)[on], atol=1e-13)
        want = np.einsum("sj,sjt->t", mass, spec["F"])
        np.testing.assert_allclose(law.push(mass), want, atol=1e-13)
        np.testing.assert_allclose(whole.push(mass), want, atol=1e-13)
        W = law.laid(0.95 * mass / mass.sum(axis=1, keepdims=True))
        A = np.eye(whole.S) - np.einsum("sj,sjt->st", law.by_state(W), spec["F"])
        for product in (law, whole):
            y, out, left = (np.full_like(x, np.nan) for _ in range(3))
            for b in range(product.B):
                product.sweep(b, x[b], W[b], y[b], out[b])
                product.defect(b, x[b], W[b], y[b], left[b])
            np.testing.assert_allclose(product.by_state(out), A @ product.by_state(y), atol=1e-12)
            np.testing.assert_allclose(left, x - out, atol=1e-12)
            for b in range(product.B):
                product.sweep_back(b, x[b], W[b], y[b], out[b])
            want = A.T @ product.by_state(y)
            np.testing.assert_allclose(product.by_state(out), want, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.9999])
def test_a_solution_nearby_saves_sweeps_and_changes_nothing(rng, beta):
    saved = 0
    for seed in (1, 3, 6, 17, 100):
        with unexpanded():
            model, spec = model_of(seed, beta)
            system = PolicySystem(model.transitions, beta)
        P, other, *_ = policies(rng, model.available)
        b = rng.normal(size=(len(P), 3))
        system.factor(other)
        near = system.solve(b)
        system.factor(0.99 * P + 0.01 * other)
        fresh, before = system.solve(b), system.products
        for guess in (near, fresh, 0 * near):
            found = system.solve(b, guess=guess)
            size = np.abs(fresh).max() + np.abs(guess).max()
            np.testing.assert_allclose(
                found, fresh, atol=1e-9 * np.abs(fresh).max() + 50 * EPS / (1 - beta) * size
            )
        assert not system.failures
        before = system.products
        system.solve(b, guess=fresh * (1 + 1e-9), rtol=1e-6)
        saved += system.products == before
    assert saved >= 4


@pytest.mark.parametrize("far", [np.nan, 1e3, 1e6, 1e12])
def test_a_bad_guess_does_no_harm(rng, far):
    """What is handed back must solve the system, or say that it does not; and not after 2,000
    sweeps a block, which take minutes where a sweep takes a tenth of a second. The solution
    itself is about 3,000 here."""
    beta = 0.9999
    for seed in (1, 103):
        with unexpanded():
            model, spec = model_of(seed, beta)
            system = PolicySystem(model.transitions, beta)
        P = next(policies(rng, model.available))
        system.factor(P)
        b, guess = rng.normal(size=len(P)), rng.normal(size=len(P))
        guess[3] = far
        guess *= 1.0 if np.isnan(far) else far
        system.solve(b)
        alone = system.products
        x = system.solve(b, guess=guess)
        left = (np.eye(len(P)) - beta * oracles.markov(P, spec["F"])) @ x - b
        assert system.failures or np.linalg.norm(left) <= 1e-9 * np.linalg.norm(b)
        assert system.products - alone <= 3 * alone


def test_nonsense_on_the_right_is_told_at_once(rng):
    with unexpanded():
        model, _ = model_of(1, 0.99)
        system = PolicySystem(model.transitions, 0.99)
    system.factor(next(policies(rng, model.available)))
    b = rng.normal(size=model.shape[0])
    b[4] = np.nan
    with np.errstate(all="ignore"):
        system.solve(b)
    assert system.failures
    assert system.products <= 100 * system.sweeps.law.B


def test_nonsense_in_a_policy_is_not_taken_for_choices_never_offered(rng):
    with unexpanded():
        model, _ = model_of(1, 0.99)
        system = PolicySystem(model.transitions, 0.99)
    P = np.full(model.available.shape, np.nan)
    with np.errstate(all="ignore"):
        system.factor(P)
        found = system.solve(rng.normal(size=len(P)))
    assert system.failures or not np.isfinite(found).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_right_sides_in_threads_are_solved_to_the_bit_alike(rng, monkeypatch, transposed):
    for seed in (3, 9, 100):
        with unexpanded():
            model, _ = model_of(seed, 0.999)
            P = next(policies(rng, model.available))
            right, near = rng.normal(size=(2, len(P), 9))
            found = []
            for threads in (1, 2, 5, 1):
                monkeypatch.setattr(sweeps_module, "free_threads", lambda threads=threads: threads)
                system = PolicySystem(model.transitions, 0.999)
                system.factor(P)
                one = system.solve(right, transposed, guess=near)
                two = system.solve(right, transposed)
                columns = [system.solve(c.copy(), transposed) for c in right.T]
                assert (two == np.stack(columns, axis=1)).all() and two.flags.c_contiguous
                found.append((one, two, system.products))
            for one, two, products in found[1:]:
                assert (one == found[0][0]).all() and (two == found[0][1]).all()
                assert products == found[0][2]


def test_systems_of_one_law_in_several_threads(rng):
    """They share the law, its trimmed forms and nothing that is written to."""
    with unexpanded():
        model, _ = model_of(101, 0.99)
        F = model.transitions
        tasks = [(P, rng.normal(size=(F.S, 2))) for P in policies(rng, model.available)] * 6

        def run(task):
            system = PolicySystem(F, 0.99)
            system.factor(task[0])
            return system.solve(task[1]), system.solve(task[1], transposed=True)

        alone = [run(task) for task in tasks]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(run, tasks))
    for a, b in zip(alone, together, strict=True):
        assert (a[0] == b[0]).all() and (a[1] == b[1]).all()


def test_workers_do_not_start_threads_of_their_own():
    assert sweeps_module.free_threads() >= 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(sweeps_module.free_threads).result() == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_no_right_sides_and_one(rng, transposed):
    """A model without parameters has none: its derivative is (S, 0)."""
    with unexpanded():
        model, _ = model_of(1, 0.99)
        system = PolicySystem(model.transitions, 0.99)
    system.factor(next(policies(rng, model.available)))
    b = rng.normal(size=model.shape[0])
    one = system.solve(b[:, None], transposed)
    assert one.shape == (len(b), 1) and (one[:, 0] == system.solve(b, transposed)).all()
    assert system.solve(np.zeros((len(b), 0)), transposed).shape == (len(b), 0)


def test_sides_that_are_constant_or_zero_by_offer(rng):
    with unexpanded():
        model, spec = next(
            (m, s) for m, s in (model_of(i, 0.99) for i in range(20)) if m.transitions.product.B > 1
        )
        system = PolicySystem(model.transitions, 0.99)
    P = next(policies(rng, model.available))
    system.factor(P)
    A = np.eye(len(P)) - 0.99 * oracles.markov(P, spec["F"])
    own = groups_of(model)[1]
    for value in (0.0, 2.0):
        b = rng.normal(size=len(P))
        b[own] = value
        np.testing.assert_allclose(system.solve(b), np.linalg.solve(A, b), atol=1e-9)
        back = system.solve(b, transposed=True)
        np.testing.assert_allclose(back, np.linalg.solve(A.T, b), atol=1e-9)
    assert not system.failures and (system.solve(np.zeros(len(P)), True) == 0).all()


def test_misses_are_told(rng, monkeypatch):
    with unexpanded():
        model, spec = model_of(1, 0.999)
        theta, n = spec["params"], rng.integers(0, 5, model.available.shape) * model.available
        good = Likelihood(model, n)
        at = good.evaluate(theta)
        monkeypatch.setattr(sweeps_module, "KRYLOV_CYCLES", 1)
        monkeypatch.setattr(sweeps_module, "KRYLOV_VECTORS", 1)
        system = PolicySystem(model.transitions, 0.999)
        system.factor(at.policy)
        b = rng.normal(size=len(n))
        for transposed in (False, True):
            x = system.solve(b, transposed)
            A = np.eye(len(n)) - 0.999 * oracles.markov(at.policy, spec["F"])
            left = (A.T if transposed else A) @ x - b
            size = np.linalg.norm(left if transposed else left - left[0])
            size /= np.linalg.norm(b if transposed else b - b[0])
            assert float(system.failures[-1].split()[-1]) == pytest.approx(size, rel=0.05)
        assert len(system.failures) == 2
        # a fixed point that is there, a derivative that is not
        lame = Likelihood(model, n, at.point.h)
        found = lame.evaluate(theta)
        assert not found.converged and "sweeps stopped" in found.message
        monkeypatch.undo()
        factored_module.STACKED_LIMIT = 0
        again = Likelihood(model, n, at.point.h).evaluate(theta)
        assert again.converged
        np.testing.assert_allclose(again.score, at.score, atol=1e-6)


def test_copies_for_other_processes(rng):
    with unexpanded():
        model, spec = model_of(100, 0.95)
        at = dc.solve(model, spec["params"])
        assert isinstance(model.transitions.__dict__["product"], Product)
        copy = pickle.loads(pickle.dumps(model))
        again = dc.solve(copy, spec["params"])
        assert (again.V == at.V).all() and (again.ccp == at.ccp).all()
        law = model.transitions.product.trimmed(model.transitions.product.laid(model.available))
        twin = pickle.loads(pickle.dumps(law))
    x = rng.normal(size=law.S)
    assert (twin.expect(x) == law.expect(x)).all()


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_by_level_is_the_operator(rng, kind):
    for seed in CASES:
        model, spec = model_of(seed, 0.97, kind)
        plain = Bellman(model)
        with unexpanded():
            other, _ = model_of(seed, 0.97, kind)
            level = LevelBellman(other, other.transitions.product)
        for size in (1.0, 1e3):
            h, u = size * rng.normal(size=len(plain.T)), model.flow_utility(spec["params"])
            with unexpanded():
                got = level.apply(level.laid(u), h)
            # roots differ where blocks of the expanded law are finer than its offers
            plain.root = level.root
            assert got == pytest.approx(plain.apply(u, h), rel=1e-11)
            on = model.available
            for name in ("pi", "P", "T", "gain", "r"):
                a, b = getattr(level, name), getattr(plain, name)
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * size, err_msg=name)
            np.testing.assert_allclose(level.v[on], plain.v[on], atol=1e-12 * size)
            assert np.isneginf(level.v[~on]).all() and (level.P[~on] == 0).all()
            np.testing.assert_allclose(level.observed(), plain.observed(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.5, 0.99, 0.99999])
def test_solutions_against_dense_newton(beta):
    for seed in CASES:
        model, spec = model_of(seed, beta)
        with unexpanded():
            found = dc.solve(model, spec["params"])
        assert found.converged, (seed, found.message)
        assert beta == 0 or found.stats["method"] == "levels"
        P = np.zeros_like(spec["offset"])
        V = np.zeros(len(P))
        with unexpanded():
            groups = groups_of(model) if beta > 0 else [np.arange(len(P))]
        for own in groups:
            part = {k: spec[k][own] for k in ("x", "offset", "available", "attention", "default")}
            part |= {"F": spec["F"][np.ix_(own, range(P.shape[1]), own)], "beta": beta}
            V[own], _, _, P[own] = oracles.solve_newton(part, spec["params"])
        near = 1e-9 + 20 * EPS / (1 - beta)
        np.testing.assert_allclose(found.ccp, P, atol=near)
        np.testing.assert_allclose(found.V, V, rtol=near, atol=near * (1 + np.abs(V).max()))


@pytest.mark.parametrize(("seed", "beta"), [(4, 0.999), (4, 0.99999), (72, 0.99999)])
def test_chains_in_several_pieces_converge_as_the_expanded_model_does(seed, beta):
    """Laws whose cycles hang on the choice: gains differ between them until the policy is right,
    so that a Newton step solved to a tenth throws the values by 0.1 / (1 - beta)."""
    model, spec = model_of(seed, beta, "attentive")
    want = dc.solve(model, spec["params"])
    assert want.converged
    with unexpanded():
        other, _ = model_of(seed, beta, "attentive")
        found = dc.solve(other, spec["params"])
    assert found.stats["method"] == "levels"
    assert found.converged, found.message
    np.testing.assert_allclose(found.ccp, want.ccp, atol=1e-6)


# ---------------------------------------------------------------- likelihood


def counts(rng, model):
    return np.where(model.available, rng.integers(0, 6, model.available.shape), 0).astype(float)


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.95, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_and_derivatives_are_those_of_the_expanded_model(rng, kind, beta):
    """Several parameters in a row, then the Hessian of each: no evaluation lends its arrays."""
    for seed in (1, 3, 6, 100):
        small, spec = model_of(seed, beta, kind)
        n = counts(rng, small)
        points = spec["params"] + np.vstack([np.zeros(2), 0.5 * rng.normal(size=(2, 2))])
        one = Likelihood(small, n)
        wanted = [one.evaluate(p) for p in points]
        with unexpanded():
            large, _ = model_of(seed, beta, kind)
            two = Likelihood(large, n)
            assert two.solver.system.method == ("levels" if beta else "identity")
            found = [two.evaluate(p) for p in points]
            held = [
                {k: v.copy() for k, v in vars(e).items() if isinstance(v, np.ndarray)}
                for e in found
            ]
            curves = [two.hessian(e) for e in (found[1], found[0], found[2])]
        for e, kept in zip(found, held, strict=True):
            for name, array in kept.items():
                np.testing.assert_array_equal(getattr(e, name), array, err_msg=name)
        near = 1e-9 if beta < 0.99 else 1e-7
        for w, f, H in zip(wanted, found, (curves[1], curves[0], curves[2]), strict=True):
            assert w.converged and f.converged
            scale = np.sqrt(np.outer(np.diag(w.outer), np.diag(w.outer))) + n.sum()
            assert f.loglik == pytest.approx(w.loglik, rel=near)
            np.testing.assert_allclose(f.score, w.score, atol=near * scale.max())
            np.testing.assert_allclose(f.outer, w.outer, atol=near * scale.max())
            np.testing.assert_allclose(H, one.hessian(w), atol=10 * near * scale.max())
            for name in ("P", "pi", "policy", "dlogp"):
                a, b = getattr(f, name), getattr(w, name)
                np.testing.assert_allclose(a, b, atol=100 * near * (1 + np.abs(b).max()))


@pytest.mark.parametrize("beta", [0.5, 0.99])
def test_expanded_models_that_factor_badly(rng, monkeypatch, beta):
    """Where neither dense nor sparse LU pays, whatever takes their place finds the same, also
    where the expanded law falls into more pieces than it has offers."""
    pieces_of = set()
    for seed in (1, 4, 6, 7, 72, 100):
        model, spec = model_of(seed, beta)
        n = counts(rng, model)
        one = Likelihood(model, n)
        want = one.evaluate(spec["params"])
        with monkeypatch.context() as patched:
            patched.setattr(linear_module, "DENSE_STATES", 0)
            patched.setattr(linear_module, "LU_WORK", 0.0)
            other, _ = model_of(seed, beta)
            two = Likelihood(other, n)
        assert two.solver.system.method in ("levels", "gmres")
        found = two.evaluate(spec["params"])
        assert want.converged and found.converged, (seed, found.message)
        scale = 1e-8 * (1 + np.abs(want.outer).max())
        np.testing.assert_allclose(found.score, want.score, atol=scale)
        np.testing.assert_allclose(two.hessian(found), one.hessian(want), atol=10 * scale)
        np.testing.assert_allclose(found.P, want.P, atol=1e-8)
        pieces_of.add(len(np.unique(other.transitions.blocks)) > other.transitions.product.B)
    assert pieces_of == {True, False}


@pytest.mark.parametrize("beta", [0.5, 0.9999])
def test_score_and_hessian_against_the_oracle(rng, beta):
    for seed in (3, 7, 100):
        model, spec = model_of(seed, beta)
        with unexpanded():
            if model.transitions.product.B > 1 and beta > 0.99:
                continue
            n = counts(rng, model)
            likelihood = Likelihood(model, n)
            at = likelihood.evaluate(spec["params"])
            H = likelihood.hessian(at)
        want = oracles.gradient(spec, spec["params"], n)
        near = n.sum() * (1e-8 + 1e3 * EPS / (1 - beta))
        np.testing.assert_allclose(at.score, want, atol=near)
        assert at.loglik == pytest.approx(oracles.loglik(spec, spec["params"], n), rel=1e-9)
        np.testing.assert_allclose(
            H, oracles.hessian_fd(spec, spec["params"], n), rtol=2e-5, atol=1e2 * near
        )


@pytest.mark.parametrize("beta", [0.5, 0.999, 0.9999])
@pytest.mark.parametrize("kind", KINDS)
def test_hessian_against_differences_of_the_score(rng, kind, beta):
    for seed in (3, 101):
        with unexpanded():
            model, spec = model_of(seed, beta, kind)
            likelihood = Likelihood(model, counts(rng, model))
            at = likelihood.evaluate(spec["params"])
            H = likelihood.hessian(at)
            step = 1e-3

            def score(p, likelihood=likelihood):
                e = likelihood.evaluate(p)
                assert e.converged
                return e.score

            slopes = np.stack(
                [oracles.central5(score, spec["params"], k, step) for k in range(2)], axis=1
            )
            again = likelihood.hessian(at)  # of an evaluation that is not the last one
        np.testing.assert_allclose(again, H, rtol=1e-8, atol=1e-8 * np.abs(H).max())
        np.testing.assert_allclose(slopes, H, atol=2e-5 * np.abs(H).max())


def test_derivatives_where_members_hardly_move(rng):
    """Second modes as slow as discounting: what an accuracy of 1e-10 leaves of the derivative."""
    n1, C, n2 = 5, 7, 4
    R = np.zeros((2, C, C))
    R[0, :, 0] = 1.0
    R[1, np.arange(C), np.maximum(np.arange(C) - 1, 0)] = 1.0
    R[1, 0] = np.eye(C)[C - 1]

    def rows(n, *lead):
        return 0.9999 * np.eye(n) + 1e-4 * rng.dirichlet(np.ones(n), size=(*lead, n))

    laws = {
        "a": dc.Markov(("choice",), rows(n1, 2)),
        "c": dc.Markov(("choice",), R),
        "b": dc.Markov(("choice", "a"), rows(n2, 2, n1)),
    }
    states, x = dc.StateSpace(a=range(n1), c=range(C), b=range(n2)), rng.normal(size=(140, 2, 2))
    model = dc.DDC(
        states=states,
        choices=["out", "in"],
        utility=dc.Utility.from_array(0.3 * x, ["k0", "k1"]),
        transitions=dc.Transitions.factored(states, ["out", "in"], laws),
        beta=0.9999,
    )
    theta, n = np.array([0.4, -0.7]), rng.integers(0, 9, (140, 2)).astype(float)
    with unexpanded():
        likelihood = Likelihood(model, n)
        assert likelihood.solver.system.method == "levels"
        far = likelihood.evaluate(theta + 0.3)
        at = likelihood.evaluate(theta)
    assert far.converged and at.converged
    spec = builders.as_spec(model, theta)
    want = oracles.scores_cs(spec, theta)
    np.testing.assert_allclose(at.dlogp, want, atol=1e-8 * np.abs(want).max())


def test_counts_change_and_others_lend_their_solution(rng):
    with unexpanded():
        model, spec = model_of(100, 0.99)
        n, m = counts(rng, model), counts(rng, model)
        likelihood = Likelihood(model, n)
        first = likelihood.evaluate(spec["params"])
        likelihood.recount(m)
        at, fresh = likelihood.evaluate(spec["params"]), Likelihood(model, m)
        assert at.dlogp is first.dlogp
        want = fresh.evaluate(spec["params"])
        warm = Likelihood(model, m)
        warm.warm(first)
        also = warm.evaluate(spec["params"] + 0.1)
        there = fresh.evaluate(spec["params"] + 0.1)
        for a, b in ((at, want), (also, there)):
            np.testing.assert_allclose(a.score, b.score, atol=1e-7 * n.sum())
        H = fresh.hessian(want)
        np.testing.assert_allclose(likelihood.hessian(at), H, atol=1e-8 * np.abs(H).max())


def test_pseudo_likelihood_stages_do_not_disturb_an_evaluation(rng):
    """The default start borrows the likelihood's system and leaves another policy in it."""
    with unexpanded():
        model, spec = model_of(100, 0.95, "attentive")
        n = counts(rng, model)
        likelihood = Likelihood(model, n)
        at = likelihood.evaluate(spec["params"])
        H = likelihood.hessian(at)
        start_module.large_start(model, n, likelihood)
        np.testing.assert_allclose(
            likelihood.hessian(at), H, rtol=1e-8, atol=1e-8 * np.abs(H).max()
        )


# ---------------------------------------------------------------- estimation


@pytest.fixture(scope="module")
def members():
    """Membership models of every kind, and a panel simulated from each."""
    base = builders.small_membership(members=900, periods=8)
    contract = base.known.states.axis_codes("contract")
    default = np.array([0, 1, 0, 2, 2])[contract]  # what a contract does where nobody looks

    @lru_cache
    def panel(kind):
        if kind == "attentive":
            return builders.membership_panel(base, base.frame)
        paths = dc.simulate(
            make(kind),
            params=base.theta,
            members=900,
            periods=8,
            seed=np.random.default_rng(3),
            start=np.random.default_rng(4).choice(np.flatnonzero(contract == 0), 900),
        )
        return builders.membership_panel(base, paths.frame())

    def make(kind, known=True, beta=0.97):
        old = base.known
        options = {} if kind == "attentive" else {"attention": 0.4 + 0.3 * (contract > 0)}
        if options:
            options["default"] = default
        if kind == "naive":
            options["perceived"] = 1.0
        return dc.DDC(
            states=old.states,
            choices=old.choices,
            utility=old.utility,
            transitions=dc.Transitions.factored(
                old.states, old.choices, builders.small_laws(known)
            ),
            beta=beta,
            available=old.available,
            **options,
        )

    return SimpleNamespace(theta=base.theta, make=make, panel=panel, contract=contract)


def same_fit(a, b, near=1e-6):
    assert a.converged and b.converged
    se = a.std_errors.to_numpy()
    assert np.abs((a.params - b.params).to_numpy() / se).max() < near
    np.testing.assert_allclose(b.std_errors, se, rtol=near)
    np.testing.assert_allclose(b.cov, a.cov, atol=10 * near * np.outer(se, se).max())
    np.testing.assert_allclose(b.cov / np.outer(se, se), a.cov / np.outer(se, se), atol=10 * near)
    assert b.loglik == pytest.approx(a.loglik, rel=1e-10)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_fits_are_those_of_the_expanded_model(members, kind, known):
    panel = members.panel(kind)
    small = dc.NFXP(members.make(kind, known), panel).fit(tol=1e-10)
    with unexpanded():
        nfxp = dc.NFXP(members.make(kind, known), panel)
        assert nfxp.likelihood().solver.system.method == "levels"
        large = nfxp.fit(tol=1e-10)
    same_fit(small, large)


@pytest.mark.parametrize("cov_type", ["robust", "opg", "unadjusted"])
def test_covariances_are_those_of_the_expanded_model(members, cov_type):
    panel = members.panel("inattentive")
    small = dc.NFXP(members.make("inattentive", False), panel).fit(cov_type=cov_type, tol=1e-10)
    with unexpanded():
        large = dc.NFXP(members.make("inattentive", False), panel).fit(
            cov_type=cov_type, start=0 * members.theta, tol=1e-10
        )
    same_fit(small, large)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9999])
def test_fits_at_other_discount_factors(members, beta):
    panel = members.panel("attentive")
    small = dc.NFXP(members.make("attentive", True, beta), panel).fit(tol=1e-10)
    with unexpanded():
        large = dc.NFXP(members.make("attentive", True, beta), panel).fit(tol=1e-10)
    same_fit(small, large, 1e-5 if beta > 0.999 else 1e-6)


def test_other_estimators_through_the_large_path(members):
    panel = members.panel("inattentive")

    def fits():
        model = members.make("inattentive", False)
        return [dc.NPL(model, panel).fit(), dc.CCP(model, panel).fit()]

    small = fits()
    with unexpanded():
        large = fits()
    for a, b in zip(small, large, strict=True):
        same_fit(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_estimated_laws(members, kind, rng):
    """Along random changes of the laws' rows that keep their sums, by differences."""
    with unexpanded():
        nfxp = dc.NFXP(members.make(kind, False), members.panel(kind))
        likelihood, n = nfxp.likelihood(), nfxp.counts.n_sj()
        model = likelihood.model
        theta = 0.9 * members.theta
        at = likelihood.evaluate(theta)
        score, cross = likelihood.transition_score(at), likelihood.cross_derivative(at)
        assert set(score) == set(cross) == {"ship", "video"}
        for law in model.transitions.bound:
            if not law.estimated:
                continue
            change = rng.normal(size=score[law.name].shape)
            change -= change.mean(axis=1, keepdims=True)
            ends = []
            for step in (1e-5, -1e-5):
                table = law.table + step * law.fill(change)
                bound = tuple(
                    replace(other, table=table) if other is law else other
                    for other in model.transitions.bound
                )
                F = model.transitions.with_bound(bound)
                ends.append(Likelihood(model.unchecked(transitions=F), n).evaluate(theta))
            slope = (ends[0].loglik - ends[1].loglik) / 2e-5
            assert (score[law.name] * change).sum() == pytest.approx(slope, rel=1e-5, abs=1e-3)
            slopes = (ends[0].score - ends[1].score) / 2e-5
            found = np.einsum("krm,rm->k", cross[law.name], change)
            np.testing.assert_allclose(found, slopes, rtol=1e-4, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("kind", ["attentive", "inattentive"])
def test_the_default_start_is_near_the_maximum(members, kind):
    with unexpanded():
        nfxp = dc.NFXP(members.make(kind), members.panel(kind))
        likelihood = nfxp.likelihood()
        n = nfxp.counts.n_sj()
        theta, sound = start_module.default_start(likelihood.model, n, likelihood)
        at = likelihood.evaluate(theta)
        fit = nfxp.fit()
    assert sound and at.converged and at.point.contractions == 0  # from the value handed over
    assert np.abs((theta - fit.params) / fit.std_errors).max() < 0.1
    # the value is that of the start's parameters, nearly
    h = likelihood.value - likelihood.value[at.point.h == 0][0]
    blocks = likelihood.model.transitions.blocks
    for b in np.unique(blocks):
        own = np.flatnonzero(blocks == b)
        d = (likelihood.value - at.point.h)[own]
        assert np.ptp(d) < 0.05 * max(1.0, np.ptp(h))


def test_stages_of_the_start_invert_what_is_observed_of_naive_members(members, monkeypatch):
    """With the policy that naive members expect of themselves, the inversion takes away default
    choices that are not in it."""
    seen, flows = [], start_module.policy_flows

    def spy(model, P, pi):
        seen.append((model, P.copy(), pi.copy()))
        return flows(model, P, pi)

    monkeypatch.setattr(start_module, "policy_flows", spy)
    with unexpanded():
        nfxp = dc.NFXP(members.make("naive"), members.panel("naive"))
        fit = nfxp.fit()
    assert len(seen) == start_module.LARGE_STAGES
    for model, P, pi in seen[1:]:
        rows = np.arange(len(P))
        assert (P[rows, model.default] >= 1 - model.attention - 1e-12).all()
        mixed = model.attention[:, None] * pi
        mixed[rows, model.default] += 1 - model.attention
        np.testing.assert_allclose(mixed, P, atol=1e-8)
    off = (fit.optimization["start"] - fit.params) / fit.std_errors
    assert np.abs(off).max() < 4  # 2.4 when it is right, 10 when it is not


def test_what_nothing_identifies_is_refused(members):
    old = members.make("attentive")
    season = (old.states.axis_codes("offer") + 0.5) * np.ones((3, 1))
    for extra in (old.utility.x[:, :, :1], season.T[:, :, None]):
        x = np.concatenate([old.utility.x, extra], axis=2)
        utility = dc.Utility.from_array(x, [*old.names, "extra"])
        with unexpanded():
            model = members.make("attentive").with_parts(utility=utility)
            with pytest.raises(dc.IdentificationError, match="extra"):
                dc.NFXP(model, members.panel("attentive")).fit()


# ---------------------------------------------------------------- what uses solutions


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_choice_probabilities(rng, kind):
    for seed in (1, 6, 100):
        model, spec = model_of(seed, 0.95, kind)
        P, dlogp = ccp_derivative(model, spec["params"])
        with unexpanded():
            other, _ = model_of(seed, 0.95, kind)
            found = ccp_derivative(other, spec["params"])
        np.testing.assert_allclose(found[0], P, atol=1e-10)
        np.testing.assert_allclose(found[1], dlogp, atol=1e-8 * (1 + np.abs(dlogp).max()))
        if kind != "naive":
            want = oracles.scores_cs(spec, spec["params"])
            on = model.available
            np.testing.assert_allclose(found[1][on], want[on], atol=1e-7 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_solutions_nearby(rng, kind):
    for seed in (3, 6, 101):
        model, spec = model_of(seed, 0.99, kind)
        small = Solver(model)
        small.expand(spec["params"])
        with unexpanded():
            other, _ = model_of(seed, 0.99, kind)
            large = Solver(other)
            large.expand(spec["params"])
            for p in (spec["params"], spec["params"] + 0.1, spec["params"] - 2.0):
                a, b = small.solve_near(p), large.solve_near(p)
                assert a.converged and b.converged
                V = small.value(a)
                np.testing.assert_allclose(large.value(b), V, atol=1e-9 * (1 + np.abs(V).max()))
                np.testing.assert_allclose(large.observed(), small.observed(), atol=1e-9)
                np.testing.assert_allclose(large.policy(), small.policy(), atol=1e-9)


def test_a_model_without_parameters_is_solved_from_nearby(rng):
    shape, laws, spec, _ = pieces(1)
    states = dc.StateSpace(**{f"a{i}": range(n) for i, n in enumerate(shape)})
    choices = [f"c{j}" for j in range(spec["x"].shape[1])]

    def make():
        return dc.DDC(
            states=states,
            choices=choices,
            utility=dc.Utility.from_array(spec["x"][:, :, :0], [], offset=spec["offset"]),
            transitions=dc.Transitions.factored(states, choices, laws_of(shape, laws)),
            beta=0.95,
            available=spec["available"],
        )

    small = Solver(make())
    V = small.value(small.expand(np.zeros(0)))
    with unexpanded():
        large = Solver(make())
        np.testing.assert_allclose(large.value(large.expand(np.zeros(0))), V, atol=1e-9)


def test_plain_blocks_solve_through_the_large_path(rng):
    for seed in (1, 3, 6):
        model, spec = model_of(seed, 0.95)
        with unexpanded():
            blocks = PlainBlocks(model)
            u = blocks.blocked(model.flow_utility(spec["params"]))
            one = blocks.solve(u)
            kept = one.P.copy(), one.pi.copy()
            two = blocks.solve(u + blocks.blocked(rng.normal(size=model.available.shape)), one.h)
            P = blocks.by_state(one.policy)
            right = rng.normal(size=(1, model.shape[0], 2))
            slope = blocks.solve_linear(one.policy, right)
            if model.transitions.product.B > 1:
                continue
        assert one.converged and two.converged
        assert (kept[0] == one.P).all() and (kept[1] == one.pi).all()
        want = oracles.solve_newton(spec, spec["params"])
        np.testing.assert_allclose(one.V[0], want[0], atol=1e-8)
        np.testing.assert_allclose(P, want[3], atol=1e-9)
        for k in range(2):
            exact = oracles.relative_solve(spec["F"], P, 0.95, right[0, :, k])
            np.testing.assert_allclose(slope[0, :, k], exact, atol=1e-9 * (1 + np.abs(exact).max()))


@pytest.mark.parametrize("kind", ["attentive", "naive"])
def test_forecasts_through_the_large_path(members, kind):
    panel = members.panel(kind)
    dear = dc.Scenario("dear", params={"pay": lambda p: 2 * p})

    def tables():
        fit = dc.NFXP(members.make(kind, False), panel).fit(start=members.theta)
        result = dc.forecast(fit, dear, start=panel, periods=4, draws=5, seed=2)
        return [t.select_dtypes("number").to_numpy() for t in (result.take_up, result.flows)]

    small = tables()
    with unexpanded():
        large = tables()
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_sweeps_stand_alone(rng):
    """The class itself, with a policy by level; an evaluation may ask for what a step does not."""
    model, spec = model_of(3, 0.9)
    with unexpanded():
        law = model.transitions.product
    sweeps = Sweeps(law, 0.9)
    for P in policies(rng, model.available):
        sweeps.factor(law.laid(P))
        A = np.eye(law.S) - 0.9 * oracles.markov(P, spec["F"])
        b = rng.normal(size=(law.S, 2))
        np.testing.assert_allclose(sweeps.solve(b, 1e-12), np.linalg.solve(A, b), atol=1e-9)
        loose = sweeps.solve(b[:, 0].copy(), 1e-2)
        left = A @ loose - b[:, 0]
        for own in groups_of(model):
            size = np.linalg.norm(b[own, 0] - b[own[0], 0])
            assert np.linalg.norm(left[own]) <= 1.001e-2 * size
    assert not sweeps.failures and likelihood_module.DERIVATIVE_RTOL <= 1e-9


# ---------------------------------------------------------------- orders and coarse corrections


def graph_of(edges, n):
    return [sorted({b for a, b in edges if a == i and b != i}) for i in range(n)]


def test_a_year_is_cut_once(rng):
    """Twelve seasons, five contracts, moves at random: only December's lead back."""
    seasons, contracts = 12, 5
    for _ in range(20):
        edges = set()
        for s in range(seasons):
            for c in range(contracts):
                for to in rng.choice(contracts, size=2, replace=False):
                    edges.add((s * contracts + c, (s + 1) % seasons * contracts + int(to)))
        reach = graph_of(edges, seasons * contracts)
        order = levels_module.sweep_order(reach)
        assert sorted(order) == list(range(seasons * contracts))
        rank = np.argsort(order)
        late = {a // contracts for a, b in edges if rank[b] > rank[a]}
        assert len(late) == 1


@pytest.mark.parametrize(
    ("edges", "n", "period"),
    [
        ([(0, 1), (1, 2), (2, 0)], 3, 3),
        ([(0, 1), (1, 0), (1, 2), (2, 3), (3, 0)], 4, 2),
        ([(0, 1), (1, 0), (1, 2), (2, 0)], 3, 1),  # ways back of two steps and of three
        ([(0, 1), (1, 2)], 3, 1),  # no way back
        ([(0, 1), (1, 2), (2, 3), (0, 3)], 4, 1),  # two ways there are no period
        ([(4, 5), (5, 6), (6, 4), (6, 0), (0, 1), (1, 0)], 7, 3),  # two cycles, one leads on
    ],
)
def test_orders_of_a_graph(edges, n, period):
    reach = graph_of(edges, n)
    order = levels_module.sweep_order(reach)
    assert sorted(order) == list(range(n))
    rank, walks = np.argsort(order), np.linalg.matrix_power(np.eye(n) + adjacency(edges, n), n)
    together = (walks > 0) & (walks.T > 0)
    group = together.argmax(axis=1)
    phase = levels_module.phases(reach, group)
    assert phase.max() + 1 == period
    for a, b in edges:
        if together[a, b]:
            width = phase[group == group[a]].max() + 1
            assert (phase[a] + 1) % width == phase[b]
            assert rank[b] < rank[a] or phase[b] == 0
        else:
            assert rank[b] < rank[a]


def adjacency(edges, n):
    out = np.zeros((n, n))
    for a, b in edges:
        out[a, b] = 1
    return out


@pytest.mark.parametrize("ways", [(1, 3), (1, 2, 4), (2, 6)])
def test_levels_that_only_rise_are_solved_at_once(ways, rng):
    """No way back: each level after those it leads to leaves nothing for a second sweep."""
    for n in (10, 37):
        edges = {(a, min(a + k, n - 1)) for a in range(n - 1) for k in ways}
        edges |= {(a, int(rng.integers(a + 1, n))) for a in range(n - 1)}
        rank = np.argsort(levels_module.sweep_order(graph_of(edges, n)))
        assert all(rank[b] < rank[a] for a, b in edges)


def test_systems_that_have_solved_go_to_other_processes(rng):
    model, _ = model_of(6, 0.9)
    with unexpanded():
        system = PolicySystem(model.transitions, 0.9)
    system.factor(next(policies(rng, model.available)))
    b = rng.normal(size=(model.states.size, 2))
    x = system.solve(b)
    for copied in (pickle.loads(pickle.dumps(system)), copy.deepcopy(system)):
        np.testing.assert_array_equal(copied.solve(b), x)


def test_a_policy_may_change_after_it_was_taken(rng):
    """One choice, one state a level: what is known by state is known by level already."""
    tried = 0
    for seed in range(40):
        model, _ = model_of(seed, 0.9)
        with unexpanded():
            system = PolicySystem(model.transitions, 0.9)
            P = next(policies(rng, model.available))
            system.factor(P)
        if system.sweeps is None:
            continue
        tried += 1
        assert not np.may_share_memory(system.sweeps._P, P)
        b = rng.normal(size=len(P))
        x = system.solve(b)
        P[:] = np.nan
        np.testing.assert_array_equal(system.solve(b), x)
    assert tried > 10


def test_many_moves_between_levels_are_not_factored(rng, monkeypatch):
    model, spec = model_of(100, 0.99)
    P = next(policies(rng, model.available))
    b = rng.normal(size=len(P))
    A = np.eye(len(P)) - 0.99 * oracles.markov(P, spec["F"])
    sweeps = []
    for most in (sweeps_module.COARSE_MOVES, 0):
        monkeypatch.setattr(sweeps_module, "COARSE_MOVES", most)
        with unexpanded():
            system = PolicySystem(model.transitions, 0.99)
        system.factor(P)
        np.testing.assert_allclose(system.solve(b), np.linalg.solve(A, b), rtol=1e-8)
        sweeps.append(system.products)
    assert sweeps[0] < sweeps[1]


def test_rows_that_sum_to_one_but_for_rounding(rng):
    """Accepted rows are divided by their sum: 1e-9 would be worth 1e-5 of a value at .9999."""
    states = dc.StateSpace(level=range(3), a=range(4), b=range(4))
    tables = [rng.dirichlet(np.ones(4), 4) * (1 + 5e-9) for _ in range(2)]
    model = dc.Transitions.factored(
        states,
        ["x"],
        {
            "level": dc.Deterministic(lambda level, choice: (level + 1) % 3),
            "a": dc.Markov((), tables[0]),
            "b": dc.Markov((), tables[1]),
        },
    )
    with unexpanded():
        system = PolicySystem(model, 0.9999)
        system.factor(np.ones((48, 1)))
    b = rng.normal(size=48)
    rows = [t / t.sum(axis=1, keepdims=True) for t in tables]
    F = np.kron(np.roll(np.eye(3), 1, axis=1), np.kron(*rows))
    want = np.linalg.solve(np.eye(48) - 0.9999 * F, b)
    np.testing.assert_allclose(system.solve(b), want, rtol=1e-10)


def test_levels_that_differ_in_nothing_else_take_one_sweep(rng):
    """Where policies depend on the level alone, the system between levels is all there is."""
    model, spec = model_of(100, 0.99)
    with unexpanded():
        law = model.transitions.product
    P = rng.gamma(1.0, size=(law.B, law.C, law.J, 1)) * np.ones((1, 1, 1, law.n))
    P /= P.sum(axis=2, keepdims=True)
    b = np.repeat(rng.normal(size=(law.B, law.C, 1)), law.n, axis=2)
    sweeps = Sweeps(law, 0.99)
    sweeps.factor(P)
    found = sweeps.solve(law.by_state(b), 1e-11)
    assert sweeps.sweeps == law.B
    A = np.eye(law.S) - 0.99 * oracles.markov(law.by_state(P), spec["F"])
    np.testing.assert_allclose(found, np.linalg.solve(A, law.by_state(b)), rtol=1e-9)


def test_seasons_cost_few_sweeps_more():
    """A club without and with twelve seasons: what a year of contracts and seasons starts at
    different phases must not be left to GMRES."""
    large = runpy.run_path(str(BENCHMARKS / "large.py"))
    club = large["programme"](5)
    plain = dc.solve(club.model(), club.theta()).stats
    year = dc.solve(*large["seasonal"](club)).stats
    assert plain["method"] == year["method"] == "levels"
    assert year["products"] <= 1.3 * plain["products"]


def test_solutions_of_millions_may_be_asked_for_twice(rng):
    """Arrays that a step overwrites are not those that were handed out."""
    model, _ = model_of(100, 0.95)
    with unexpanded():
        bellman = LevelBellman(model, model.transitions.product)
    u = bellman.laid(model.flow_utility(rng.normal(size=2)))
    bellman.apply(u, np.zeros(model.states.size))
    before = [bellman.v, bellman.pi, bellman.P]
    kept = [x.copy() for x in before]
    bellman.apply(u, rng.normal(size=model.states.size))
    for a, b, now in zip(before, kept, (bellman.v, bellman.pi, bellman.P), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.nan_to_num(now, neginf=0.0) != np.nan_to_num(a, neginf=0.0)).any()


def test_work_arrays_are_used_again_and_go_with_the_law(rng, monkeypatch):
    """By every system of a law or of its size; one at a time; no more than a bound."""
    rooms = Rooms(10**9)
    monkeypatch.setattr(sweeps_module, "ROOMS", rooms)
    model, _ = model_of(6, 0.9)
    with unexpanded():
        law = model.transitions.product
    b = rng.normal(size=law.S)
    held = set()
    for P in itertools.islice(policies(rng, model.available), 2):
        sweeps = Sweeps(law, 0.9)
        sweeps.factor(law.laid(P))
        sweeps.solve(b, 1e-8)
        held.add(id(rooms._kept[0][1][0]))
        assert len(rooms._kept) == 1
        assert sweeps.law._room(0)[0].base is law._room(0)[0].base
    assert len(held) == 1
    del sweeps, model, law
    gc.collect()
    assert not rooms._kept


def test_rooms_are_bounded_and_nobodys_twice():
    class Law:
        pass

    law, rooms = Law(), Rooms(1000)
    one, two = rooms.take(4, 50), rooms.take(4, 50)
    assert one[0].shape == (5, 50) and one[1].shape == (4, 50) and one[0] is not two[0]
    rooms.give(one, law)
    rooms.give(two, law)
    assert rooms.take(3, 50)[1].shape == (3, 50)
    taken = [rooms.take(4, 50)[0] for _ in range(3)]
    assert {id(one[0]), id(two[0])} == {id(t) for t in taken[:2]} and taken[2] is not one[0]
    for _ in range(5):
        rooms.give(rooms.take(4, 50), law)
        rooms.give(rooms.take(2, 60), law)
        assert sum(a.size + z.size for _, (a, z) in rooms._kept) <= 1000
    rooms.give((np.empty((50, 50)), np.empty((49, 50))), law)  # larger than all: not kept
    assert all(a.size < 1000 for _, (a, _) in rooms._kept) and rooms._kept

    def use(_):
        for _ in range(200):
            room = rooms.take(4, 50)
            me = float(threading.get_ident() % 1000)
            room[0][:] = 0.0
            np.add(room[0], me, out=room[0])
            assert (room[0] == me).all()
            rooms.give(room, law)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
