"""Linear systems of a policy, by every method, against dense solutions."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
from solver_models import CASES, EPS, clock_model, groups_of, model_of, policies, unexpanded

import dynchoice as dc
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.model import factored
from dynchoice.model import factored as factored_module
from dynchoice.model import level_product as product
from dynchoice.solvers import linear
from dynchoice.solvers import sweeps as sweeps_module
from dynchoice.solvers.linear import PolicySystem, choose_method


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


@pytest.mark.parametrize(
    "method", ["dense", "sparse", "gmres", "levels", "expanded levels", "matrix-free"]
)
def test_every_linear_solver_gives_the_same_answers(method, monkeypatch):
    if method in ("sparse", "gmres"):
        monkeypatch.setattr(linear, "DENSE_STATES", 0)
    if method in ("gmres", "expanded levels"):
        monkeypatch.setattr(linear, "DENSE_STATES", 0)
        monkeypatch.setattr(linear, "LU_WORK", 0)
    if method in ("levels", "matrix-free"):
        monkeypatch.setattr(factored, "STACKED_LIMIT", 0)
    if method in ("matrix-free", "gmres"):  # a law without the form that sweeps need
        monkeypatch.setattr(product, "LARGEST_HALF", 0)
    model = clock_model()
    chosen, reason = choose_method(model.transitions)
    assert chosen == method.replace("matrix-free", "gmres").replace("expanded ", "") and reason
    theta = np.array([0.5, -0.3, 0.2, 1.0])
    solution = dc.solve(model, theta)
    assert solution.converged and solution.stats["method"] == chosen
    F, P = model.transitions.dense(), solution.ccp
    A = np.eye(120) - 0.99 * np.einsum("sj,sjt->st", P, F)
    b = np.random.default_rng(1).normal(size=(120, 3))
    system = PolicySystem(model.transitions, 0.99)
    system.factor(P)
    np.testing.assert_allclose(A @ system.solve(b), b, atol=1e-8)
    np.testing.assert_allclose(A.T @ system.solve(b[:, 0], transposed=True), b[:, 0], atol=1e-8)
    V = np.linalg.solve(A, (P * (model.flow_utility(theta) - np.log(P))).sum(axis=1))
    np.testing.assert_allclose(solution.V, V, rtol=1e-9)


def test_blocks_are_closed_groups():
    blocks = clock_model().transitions.blocks
    assert len(np.unique(blocks)) == 2 and (blocks[:60] == blocks[0]).all()
