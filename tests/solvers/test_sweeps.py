"""Sweeps over levels: what a law is cut into, in which order it is swept, which rooms are used.

Everything here runs through levels and two halves because the limit of expansion is set to zero;
what is expected comes from dense NumPy (``oracles``), or from the same call on the expanded model.
"""

import gc
import itertools
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
from solver_models import BENCHMARKS, CASES, groups_of, model_of, policies, unexpanded

import dynchoice as dc
from dynchoice.estimate import likelihood as likelihood_module
from dynchoice.model import level_graph as levels_module
from dynchoice.solvers import sweeps as sweeps_module
from dynchoice.solvers.krylov import Rooms
from dynchoice.solvers.sweeps import Sweeps


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


def test_workers_do_not_start_threads_of_their_own():
    assert sweeps_module.free_threads() >= 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(sweeps_module.free_threads).result() == 1


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
