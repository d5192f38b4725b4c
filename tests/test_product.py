"""Large factored models: levels times two dense halves, against dense arrays of small ones."""

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
from test_kernels import factored

import dynchoice as dc
from dynchoice.kernels import products as product_kernels
from dynchoice.model import factored as factored_module
from dynchoice.model.factored import Factored
from dynchoice.model.level_product import Product, product_of, split
from dynchoice.solvers.krylov import flexible_gmres
from dynchoice.solvers.linear import PolicySystem

SEEDS = range(40)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def unexpanded(monkeypatch):
    """Every factored law counts as too large to expand."""
    monkeypatch.setattr(factored_module, "STACKED_LIMIT", 0)


def fresh(m) -> Factored:
    """The law of a model without what it has cached."""
    F = m.model.transitions
    return Factored(F.states, F.choices, F.laws)


def with_product():
    """Random models that have the form, with their laws."""
    for seed in SEEDS:
        m = factored(seed)
        product = product_of(m.model.transitions)
        if product is not None:
            yield m, product


def test_expectations_pushes_and_sweeps_are_those_of_the_dense_law(rng):
    seen = set()
    for m, product in with_product():
        F, J = m.spec["F"], product.J
        on = ~m.model.transitions.undefined
        V = rng.normal(size=product.S)
        mass = rng.random((product.S, J)) * on
        np.testing.assert_allclose(product.expect(V)[on], (F @ V)[on], atol=1e-13)
        want = np.einsum("sj,sjt->t", mass, F)
        np.testing.assert_allclose(product.push(mass), want, atol=1e-13)
        P = rng.random((product.S, J)) * on
        P /= P.sum(axis=1, keepdims=True)
        W = product.laid(0.97 * P)
        A = np.eye(product.S) - 0.97 * np.einsum("sj,sjt->st", P, F)
        v = product.laid(rng.random(product.S))
        y, out = np.full_like(v, np.nan), np.full_like(v, np.nan)
        for b in range(product.B):
            product.sweep(b, v[b], W[b], y[b], out[b])
        np.testing.assert_allclose(product.by_state(out), A @ product.by_state(y), atol=1e-12)
        # a sweep of what is positive lies between it and the solution
        exact = np.linalg.solve(A, product.by_state(v))
        assert (product.by_state(y) <= exact * (1 + 1e-12)).all() and (y >= v - 1e-14).all()
        seen |= {("halves", min(product.D, product.E) > 1), ("blocks", product.B > 1)}
        seen |= {("loops", bool(product.graph[-1].any())), ("levels", product.C > 3)}
    both = (True, False)
    assert {(k, x) for k in ("halves", "blocks", "loops", "levels") for x in both} <= seen


def test_layouts_go_there_and_back(rng):
    for _, product in with_product():
        x, table = rng.normal(size=product.S), rng.normal(size=(product.S, product.J))
        np.testing.assert_array_equal(product.by_state(product.laid(x)), x)
        np.testing.assert_array_equal(product.by_state(product.laid(table)), table)
        assert product.laid(table).shape == (product.B, product.C, product.J, product.n)


def test_the_kernels_write_everything_they_return(rng):
    for _, product in itertools.islice(with_product(), 6):
        A, BT, chain, need = halves = product._halves[0]
        C, J, n, graph = product.C, product.J, product.n, product.graph

        def room(product=product, A=A):
            z = np.full((len(A), product.C, product.n), np.nan)
            return z, np.full((product.D, product.E), np.nan)

        ev = np.full((C, J, n), np.nan)
        x = rng.normal(size=(C, n))
        z, half = room()
        product_kernels.product_ahead(x, z, half, halves)
        for k, c in np.argwhere(need):
            want = np.kron(A[k], BT[k].T) @ x[c]
            np.testing.assert_allclose(z[k, c], want, atol=1e-13)
        product_kernels.product_expect(x, ev, *room(), halves, graph)
        assert np.isfinite(ev).all()
        mass, out = rng.random((C, J, n)), np.full((C, n), np.nan)
        product_kernels.product_push(mass, out, *room(), halves, graph)
        # the adjoint of one is the other
        assert (mass * ev).sum() == pytest.approx((out * x).sum(), rel=1e-12)
        W, y, applied = 0.9 * mass / J, np.full((C, n), np.nan), np.full((C, n), np.nan)
        coarse, shift = rng.normal(size=C), 0.3
        product_kernels.product_sweep(x, shift, y, applied, coarse, *room(), W, 2, halves, graph)
        assert np.isfinite(y).all() and np.isfinite(applied).all()
        left = np.full((C, n), np.nan)
        product_kernels.product_defect(x, y, left, *room(), W, halves, graph)
        np.testing.assert_allclose(left, x - applied, atol=1e-11 * np.abs(x).max())
        turned = product._turned[0]
        back, moved = np.full((C, n), np.nan), np.full((C, n), np.nan)
        product_kernels.product_sweep_back(x, back, moved, *room(), W, 2, turned, halves, graph)
        assert np.isfinite(back).all()
        # <A' back, y> = <back, A y>
        assert (moved * y).sum() == pytest.approx((back * applied).sum(), rel=1e-9)


def test_systems_are_solved_by_sweeps(rng, unexpanded):
    tried = 0
    for m, _ in with_product():
        F = fresh(m)
        for beta in (0.9, 0.9999):
            system = PolicySystem(F, beta)
            assert system.method == "levels" and "levels" in system.reason
            P = rng.random((F.S, F.J)) * ~F.undefined
            P /= P.sum(axis=1, keepdims=True)
            system.factor(P)
            A = np.eye(F.S) - beta * np.einsum("sj,sjt->st", P, m.spec["F"])
            right = rng.normal(size=(F.S, 2))
            want = np.linalg.solve(A, right)
            np.testing.assert_allclose(system.solve(right), want, rtol=1e-8 / (1 - beta) ** 0.5)
            back = system.solve(right[:, 0].copy(), transposed=True)
            want = np.linalg.solve(A.T, right[:, 0])
            np.testing.assert_allclose(back, want, atol=1e-7 * np.abs(want).max())
            assert not system.failures and system.products > 0
            tried += 1
    assert tried > 20


def test_solutions_are_those_of_the_expanded_law(unexpanded):
    for m, _ in itertools.islice(with_product(), 12):
        spec = m.spec
        model = m.model.with_transitions(fresh(m))
        found = dc.solve(model, spec["params"])
        assert found.converged and found.stats["method"] == "levels"
        V, _, _, P = oracles.solve_newton(spec, spec["params"])
        np.testing.assert_allclose(found.V, V, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.ccp, P, atol=1e-9)


def test_a_year_of_seasons_is_one_sweep(rng, unexpanded):
    """A season and a contract make the levels together; members wander in two further axes."""
    R = np.zeros((2, 5, 5))  # out, or a contract of four periods that is run down
    R[0, :, 0] = 1.0
    R[1, np.arange(5), [4, 4, 1, 2, 3]] = 0.9
    R[1, :, 0] += 0.1
    Q = [rng.dirichlet(np.ones(n), size=(2, n)) for n in (4, 2)]
    states = dc.StateSpace(use=range(4), season=range(6), contract=range(5), other=range(2))
    F = dc.Transitions.factored(
        states,
        ["out", "in"],
        {
            "use": dc.Markov(("choice",), Q[0]),
            "season": dc.Cycle(),
            "contract": dc.Markov(("choice",), R),
            "other": dc.Markov(("choice",), Q[1]),
        },
    )
    product = product_of(F)
    assert (product.B, product.C, product.D * product.E) == (1, 30, 8)
    assert not product.graph[-1].any()  # nobody stays in a season
    V = rng.normal(size=states.size)
    np.testing.assert_allclose(product.expect(V), F.dense_array() @ V, atol=1e-13)
    policy = rng.dirichlet(np.ones(2), size=states.size)
    system = PolicySystem(F, 0.9999)
    assert system.method == "levels"
    system.factor(policy)
    right = rng.normal(size=states.size)
    A = np.eye(states.size) - 0.9999 * np.einsum("sj,sjt->st", policy, F.dense_array())
    found = system.solve(right, rtol=1e-10)
    want = np.linalg.solve(A, right)
    np.testing.assert_allclose(found - found[0], want - want[0], atol=1e-8)
    assert system.products <= 20  # plain Krylov steps would go round the seasons one by one


def test_laws_that_look_at_each_other_stay_in_one_half(rng):
    shape = (3, 4, 2, 5, 2)
    states = dc.StateSpace(**{f"a{i}": range(n) for i, n in enumerate(shape)})
    laws = {
        f"a{i}": dc.Markov(("choice",), rng.dirichlet(np.ones(n), size=(2, n)))
        for i, n in enumerate(shape)
    }
    laws["a2"] = dc.Markov(("a0",), rng.dirichlet(np.ones(2), size=(3, 2)))
    F = dc.Transitions.factored(states, ["x", "y"], laws)
    product = product_of(F)
    V = rng.normal(size=states.size)
    np.testing.assert_allclose(product.expect(V), F.dense_array() @ V, atol=1e-13)
    rest = [law for law in F.bound if law.name != "a3"]
    first, second = split(rest, set(), shape)
    together = [{law.name for law in part} for part in (first, second)]
    assert any({"a0", "a2"} <= part for part in together)
    assert split(rest, set(), (300, 4, 2, 5, 2)) is None  # too large for a dense chain


def test_threads_share_a_law_and_copies_leave_the_work_arrays(rng):
    m, product = next(with_product())
    F = m.spec["F"]
    on = ~m.model.transitions.undefined
    inputs = [rng.normal(size=product.S) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(product.expect, inputs))
    for V, ev in zip(inputs, found, strict=True):
        np.testing.assert_allclose(ev[on], (F @ V)[on], atol=1e-13)
    copy = pickle.loads(pickle.dumps(product))
    assert isinstance(copy, Product) and not hasattr(copy._rooms, "arrays")
    np.testing.assert_array_equal(copy.expect(inputs[0]), found[0])


@pytest.mark.parametrize("room", [3, 5, 60])
@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_gmres_restarts_where_it_was(rng, room, beta):
    n = 50
    P = 0.3 * rng.dirichlet(np.ones(n), size=n) + 0.7 * np.roll(np.eye(n), 1, axis=1)
    A = np.eye(n) - beta * P
    b = rng.normal(size=n)
    swept = []

    def sweep(v, y, out):
        swept.append(1)
        y[:] = v / np.diag(A)
        out[:] = A @ y

    def rooms(m):
        return np.empty((m + 1, n)), np.empty((m, n))

    size = np.linalg.norm(b - b[0])
    x, at_root, miss = flexible_gmres(sweep, b, 1e-10 * size, rooms(room), 500)
    assert miss <= 1e-10 * size and len(swept) > min(room, 40)  # small rooms are left and entered
    assert at_root == pytest.approx((A @ x)[0], abs=1e-9)
    left = A @ x - b
    assert np.linalg.norm(left - left[0]) <= 1.01e-10 * size + 1e-12
    stopped = flexible_gmres(sweep, b, 1e-10 * size, rooms(3), 1)
    left = A @ stopped[0] - b
    assert stopped[2] == pytest.approx(np.linalg.norm(left - left[0]), rel=1e-6)
    assert flexible_gmres(sweep, np.full(n, 3.0), 1e-10, rooms(room), 5)[1:] == (0.0, 0.0)
    # the whole system: its slow mode needs all vectors at once
    whole, _, _ = flexible_gmres(sweep, b, 1e-10 * size, rooms(60), 5, relative=False)
    assert np.linalg.norm(A @ whole - b) <= 1e-8 * size


def test_krylov_vectors_are_made_orthogonal_and_added_up(rng):
    basis, H = rng.normal(size=(4, 30)), np.zeros((4, 3))
    basis[0] /= np.linalg.norm(basis[0])
    for k in range(3):
        given = basis[k + 1].copy()
        length = product_kernels.krylov_step(basis, k, H)
        np.testing.assert_allclose(H[: k + 1, k] @ basis[: k + 1] + basis[k + 1], given, atol=1e-13)
        assert length == pytest.approx(np.linalg.norm(basis[k + 1]))
        basis[k + 1] /= length
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-12)
    out = rng.normal(size=30)
    want = out + np.array([2.0, -1.0, 0.5, 3.0]) @ basis
    product_kernels.add_rows(np.array([2.0, -1.0, 0.5, 3.0]), basis, out)
    np.testing.assert_allclose(out, want, atol=1e-13)
