"""Which counterfactuals data identify: the truth table, by re-solving and by the criterion."""

import numpy as np
import oracles
import pytest

import dynchoice as dc
from dynchoice.counterfactuals.identified import (
    Dynamics,
    check_identified,
    criterion,
    equivalent_payoffs,
    payoffs_of,
)

S, J, BETA = 30, 4, 0.95


def ddc(u, F, beta=BETA, available=None, attention=None, default=None, perceived=None):
    """A model with payoffs u (S, J), minus infinity where not offered."""
    size, J = u.shape
    mask = np.isfinite(u) if available is None else available & np.isfinite(u)
    return dc.DDC(
        states=dc.StateSpace(s=range(size)),
        choices=[f"c{j}" for j in range(J)],
        utility=dc.Utility.from_array(np.zeros((size, J, 1)), ["k"], np.where(mask, u, 0.0)),
        transitions=dc.Transitions.dense(F),
        beta=beta,
        available=mask,
        attention=attention,
        default=default,
        perceived=perceived,
    )


class World:
    """A random baseline and two payoffs that it cannot tell apart."""

    def __init__(self, kind, seed=0):
        rng = np.random.default_rng(seed)
        self.F = rng.dirichlet(np.full(S, 0.3), size=(S, J))
        self.G = rng.dirichlet(np.full(S, 0.3), size=(S, J))
        self.g = rng.normal(size=(S, J))
        mask = np.ones((S, J), dtype=bool)
        self.a = self.d = self.perceived = None
        if "gaps" in kind:
            mask = rng.random((S, J)) < 0.6
            mask[:, 3] |= mask.sum(axis=1) < 2
            mask[np.arange(S), rng.integers(3, size=S)] = True
        if "inattentive" in kind or "naive" in kind:
            self.a = rng.uniform(0.3, 0.9, S)
            self.d = np.array([rng.choice(np.flatnonzero(m)) for m in mask])
        if "naive" in kind:
            self.perceived = 0.5 + 0.5 * self.a
        self.mask = mask
        u = np.where(mask, rng.normal(size=(S, J)), -np.inf)
        shift = 2 * rng.normal(size=S)
        self.dynamics = Dynamics.of(self.F, BETA, mask)
        self.payoffs = u, equivalent_payoffs(self.dynamics, u, shift)
        self.shift = shift

    def model(self, u, F=None, **options):
        parts = {"attention": self.a, "default": self.d, "perceived": self.perceived}
        return ddc(u, self.F if F is None else F, **{**parts, **options})

    def without(self, j):
        mask = self.mask.copy()
        mask[:, j] = False
        mask[~mask.any(axis=1)] = self.mask[~mask.any(axis=1)]
        default = None
        if self.d is not None:
            default = np.where(mask[np.arange(S), self.d], self.d, mask.argmax(axis=1))
        return {"available": mask, "default": default}

    def other(self, j):
        F = self.F.copy()
        F[:, j] = self.G[:, j]
        return F

    def wider(self, u, payoff, law):
        return self.model(np.c_[u, payoff], np.concatenate([self.F, law[:, None]], axis=1))


def scaled(u, *factors):
    return np.where(np.isfinite(u), u, 0.0) * factors + np.where(np.isfinite(u), 0.0, -np.inf)


def same(*factors):
    return {f"c{j}": {f"c{j}": k} for j, k in enumerate(factors)}


# name -> (counterfactual model of payoffs, payoff=, welfare identified or None: CCPs are not)
TABLE = {
    "transfers": (lambda w, u: w.model(u + w.g), None, True),
    "a choice dropped": (lambda w, u: w.model(u, **w.without(3)), None, True),
    "the anchor dropped": (lambda w, u: w.model(u, **w.without(0)), None, True),
    "all scaled": (lambda w, u: w.model(scaled(u, *[1.7] * 4)), same(*[1.7] * 4), False),
    "a copy with a transfer": (
        lambda w, u: w.wider(u, u[:, 1] + w.g[:, 0], w.F[:, 1]),
        {"c4": "c1"},
        True,
    ),
    "moves of one choice": (lambda w, u: w.model(u, w.other(2)), None, None),
    "moves of the anchor": (lambda w, u: w.model(u, w.other(0)), None, None),
    "one scaled": (lambda w, u: w.model(scaled(u, 1, 1, 1.5, 1)), same(1, 1, 1.5, 1), None),
    "the anchor scaled": (lambda w, u: w.model(scaled(u, 1.5, 1, 1, 1)), same(1.5), None),
    "beta": (lambda w, u: w.model(u, beta=0.9), None, None),
    "a mixture of two": (lambda w, u: w.wider(u, u[:, 1], w.F[:, 2]), {"c4": "c1"}, None),
}
INATTENTION = {
    "attention": (lambda w, u: w.model(u, attention=0.8 * w.a), None, True),
    "full attention": (
        lambda w, u: w.model(u, attention=None, default=None, perceived=None),
        None,
        True,
    ),
    "defaults": (lambda w, u: w.model(u, default=w.mask.argmax(axis=1)), None, True),
    "attention and moves": (
        lambda w, u: w.model(u, w.other(2), attention=0.8 * w.a),
        None,
        None,
    ),
}
CASES = [
    (kind, name)
    for kind in ("plain", "gaps", "inattentive", "naive", "gaps, inattentive")
    for name in [*TABLE, *(INATTENTION if kind not in ("plain", "gaps") else ())]
]


@pytest.fixture(scope="module")
def worlds():
    return {kind: World(kind) for kind, _ in CASES}


def solved(model):
    solution = dc.solve(model, [0.0])
    assert solution.converged
    return solution


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_truth_table(worlds, kind, name):
    """papers.md 6.2: re-solve at two payoffs that the baseline cannot tell apart."""
    world = worlds[kind]
    before = [solved(world.model(u)) for u in world.payoffs]
    assert np.abs(before[0].ccp - before[1].ccp).max() < 1e-11
    assert np.abs(world.shift).max() > 1
    change, payoff, welfare = {**TABLE, **INATTENTION}[name]
    models = [change(world, u) for u in world.payoffs]
    after = [solved(m) for m in models]
    gap = np.abs(after[0].ccp - after[1].ccp).max()
    moved = np.abs((after[0].V - before[0].V) - (after[1].V - before[1].V)).max()
    report = check_identified(world.model(world.payoffs[0]), models[0], payoff=payoff)
    assert report.identified == (welfare is not None)
    assert set(report.norms) == set(models[0].choices)
    if welfare is None:
        assert gap > 1e-3 and max(report.norms.values()) > 0.05
        assert report.rank > 0 and report.states > 0 and not report.welfare_identified
        assert "NOT identified" in str(report)
    else:
        assert gap < 1e-10 and max(report.norms.values()) < 1e-10
        assert report.rank == report.states == 0
        assert report.welfare_identified == welfare == (moved < 1e-8)
        assert str(report).startswith("Identified")
        assert ("identified too" in str(report)) == welfare


@pytest.mark.parametrize("kind", ["plain", "gaps, inattentive"])
@pytest.mark.parametrize("name", ["moves of one choice", "beta", "the anchor scaled"])
def test_the_rank_is_the_dimension(worlds, kind, name):
    """Rank of d log P~ / d u_J, by finite differences of re-solved models."""
    world = worlds[kind]
    u = world.payoffs[0]
    change, payoff, _ = TABLE[name]

    def log_p(shift):
        P = solved(change(world, equivalent_payoffs(world.dynamics, u, shift))).ccp
        return np.log(P[world.mask])

    jacobian = np.stack([(log_p(h) - log_p(-h)) / 0.02 for h in 0.01 * np.eye(S)], axis=1)
    size = np.linalg.svd(jacobian, compute_uv=False)
    rank = check_identified(world.model(u), change(world, u), payoff=payoff).rank
    assert size[rank - 1] > 1e-4
    assert rank == S or size[rank] < 1e-6 * size[0]


def test_which_anchor_payoffs_matter(worlds):
    """Only states from which the changed law moves differently see other payoffs."""
    world = worlds["plain"]
    F = np.zeros((6, 2, 6))
    F[:, :, 0] = 1.0  # everything starts anew in state 0, but choice 1 in state 4
    G = F.copy()
    G[4, 1] = np.eye(6)[5]
    rng = np.random.default_rng(1)
    base, new = (ddc(rng.normal(size=(6, 2)), f) for f in (F, G))
    report = check_identified(base, new)
    assert (report.rank, report.states) == (1, 2)  # u_J in states 0 and 5
    assert report.norms["c0"] < 1e-12 and report.norms["c1"] == pytest.approx(2 * BETA)
    assert report.size == 6 and len(world.shift) == S


def test_scaling_by_state_dependent_anchor_counts_its_states(worlds):
    """Where the anchor is not offered, its payoff does not exist."""
    world = worlds["gaps"]
    change, payoff, _ = TABLE["the anchor scaled"]
    u = world.payoffs[0]
    report = check_identified(world.model(u), change(world, u), payoff=payoff)
    assert report.states == world.mask[:, 0].sum() < S


@pytest.mark.parametrize("kind", ["gaps", "gaps, inattentive", "naive"])
def test_payoffs_behind_probabilities(worlds, kind):
    """6.1 with psi_a = -log pi_a + (1 - attention) log pi_default."""
    world = worlds[kind]
    u = world.payoffs[0]
    counted = world.a if world.perceived is None else world.perceived
    spec = {
        "x": np.zeros((S, J, 1)),
        "offset": np.where(world.mask, u, 0.0),
        "F": world.F,
        "beta": BETA,
        "available": world.mask,
        "attention": np.ones(S) if counted is None else counted,
        "default": world.mask.argmax(axis=1) if world.d is None else world.d,
    }
    pi = oracles.solve_newton(spec, np.zeros(1))[2]
    anchor = world.dynamics.at_anchor(u)
    own = payoffs_of(world.dynamics, pi, anchor, spec["attention"], spec["default"])
    np.testing.assert_allclose(own[world.mask], u[world.mask], atol=1e-11)
    assert np.isneginf(own[~world.mask]).all()
    if counted is not None:  # psi without the default's term is another payoff
        wrong = payoffs_of(world.dynamics, pi, anchor)
        assert np.abs(wrong[world.mask] - u[world.mask]).max() > 0.1
    with pytest.raises(dc.SpecificationError, match="1 choices offered have probability zero"):
        pi[world.mask.nonzero()[0][0], world.mask.nonzero()[1][0]] = 0.0
        payoffs_of(world.dynamics, pi, anchor)


@pytest.mark.parametrize("kind", ["plain", "inattentive"])
def test_welfare_of_transfers(worlds, kind):
    """V~ - V = (I - beta F_J)^{-1} (g_J + psi_J(pi~) - psi_J(pi)), whatever u_J."""
    world = worlds[kind]
    for u in world.payoffs:
        psi, V = [], []
        for payoffs in (u, u + world.g):
            solution = solved(world.model(payoffs))
            own = np.zeros(S) if world.a is None else world.a
            pi = solution.ccp
            if world.a is not None:
                pi = oracles.unmix({"attention": own, "default": world.d}, solution.ccp)
            passive = 0.0 if world.a is None else (1 - own) * np.log(pi[np.arange(S), world.d])
            psi.append(passive - np.log(pi[:, 0]))
            V.append(solution.V)
        change = np.linalg.solve(np.eye(S) - BETA * world.F[:, 0], world.g[:, 0] + psi[1] - psi[0])
        np.testing.assert_allclose(V[1] - V[0], change, atol=1e-9)


def test_any_anchor_gives_the_same_answer(worlds):
    world = worlds["plain"]
    rng = np.random.default_rng(3)
    ranks = set()
    for anchor in (0, 3, rng.integers(J, size=S)):
        base = Dynamics.of(world.F, BETA, anchor=anchor)
        for new_anchor in (1, rng.integers(J, size=S)):
            new = Dynamics.of(world.other(2), BETA, anchor=new_anchor)
            out = criterion(base, new)
            ranks.add(out.rank)
            assert criterion(base, Dynamics.of(world.F, BETA, anchor=new_anchor)).rank == 0
    assert ranks == {S - 1}


def test_payoffs_that_nothing_reveals(worlds):
    """A choice newly offered, unless it copies; with known utils the anchor's payoffs matter."""
    world = worlds["plain"]
    u = world.payoffs[0].copy()
    u[:3, 2] = -np.inf
    base, new = world.model(u), world.model(world.payoffs[0])
    report = check_identified(base, new)
    assert report.unknown == 3 and report.rank == 3 and report.states == 0
    assert "3 payoffs are of choices never offered" in str(report)
    wide = world.wider(world.payoffs[0], 0.0 * u[:, 0], world.F[:, 1])
    base = world.model(world.payoffs[0])
    own = check_identified(base, wide, payoff={"c4": None})
    known = check_identified(base, wide, payoff={"c4": None}, offsets={"c4": 0.0})
    assert (own.unknown, own.rank, own.states) == (S, S, 0)
    assert (known.unknown, known.rank, known.states) == (0, S, S)
    assert known.norms["c0"] < 1e-10 < known.norms["c4"]


def test_states_split_and_copied(worlds):
    """New states with the payoffs of old ones: identified if they move alike, else not."""
    world = worlds["gaps"]
    u = world.payoffs[0]
    at = np.r_[np.arange(S), np.arange(5)]
    F = np.zeros((S + 5, J, S + 5))
    half = np.where(np.arange(S) < 5, 0.5, 1.0)
    F[:, :, :S] = world.F[at] * half
    F[:, :, S:] = 0.5 * world.F[at][:, :, :5]
    base, split = world.model(u), ddc(u[at], F)
    report = check_identified(base, split, state_map=at)
    assert report.identified and report.welfare_identified
    with pytest.raises(dc.SpecificationError, match="state_map"):
        check_identified(base, split)
    wrong = check_identified(base, split, state_map=np.r_[np.arange(S), np.arange(5) + 1])
    assert not wrong.identified
    unknown = check_identified(base, split, state_map=np.where(np.arange(S + 5) < S, at, -1))
    assert unknown.unknown == world.mask[:5].sum() and unknown.rank > 0


def test_groups_of_states_are_separate_problems():
    rng = np.random.default_rng(5)
    F, G = np.zeros((2, 20, 3, 20))
    for part in (slice(0, 8), slice(8, 20)):
        n = part.stop - part.start
        F[part, :, part] = rng.dirichlet(np.ones(n), size=(n, 3))
    G[:] = F
    G[:8, 1, :8] = rng.dirichlet(np.ones(8), size=8)
    order = rng.permutation(20)
    F, G = (x[order][:, :, order] for x in (F, G))
    u = rng.normal(size=(20, 3))
    base, new = ddc(u, F), ddc(u, G)
    held = base.transitions.stacked()[0].copy(), base.transitions.stacked()[2].copy()
    whole = criterion(Dynamics.of(F, BETA), Dynamics.of(G, BETA))
    report = check_identified(base, new)
    assert (report.rank, report.states) == (whole.rank, whole.matters.sum()) == (7, 8)
    np.testing.assert_allclose(list(report.norms.values()), whole.norms, atol=1e-12)
    now = base.transitions.stacked()
    assert np.array_equal(held[0], now[0]) and np.array_equal(held[1], now[2])


def test_laws_as_products_and_transitions_objects(membership):
    """The membership model of the fixtures: a factored law, gaps, an offer."""
    base = membership.known
    assert check_identified(base, base).identified
    F = base.transitions.dense()
    G = F.copy()
    G[:, 1] = G[:, 2]
    report = check_identified(base, base.with_transitions(dc.Transitions.dense(G)))
    assert not report.identified and report.norms["none"] < 1e-10 < report.norms["monthly"]
    own = Dynamics.of_model(base)
    dense = Dynamics.of(F, base.beta, base.available)
    X = np.random.default_rng(0).normal(size=(base.states.size, 2))
    np.testing.assert_allclose(own.flows(own.values(X)), dense.flows(dense.values(X)), atol=1e-11)


def test_refusals(worlds):
    world = worlds["plain"]
    u = world.payoffs[0]
    base = world.model(u)
    wide = world.wider(u, u[:, 1], world.F[:, 1])
    for options, match in [
        ({}, "choice 'c4' is new"),
        ({"payoff": {"c4": "c9"}}, "baseline choice 'c9' is unknown"),
        ({"payoff": {"c5": "c1"}}, "new choice 'c5' is unknown"),
        ({"payoff": {"c4": "c1"}, "offsets": {"c4": [1.0, 2.0]}}, "offsets of 'c4'"),
        ({"payoff": {"c4": "c1"}, "state_map": [0, 1]}, "state_map must hold"),
    ]:
        with pytest.raises(dc.SpecificationError, match=match):
            check_identified(base, wide, **options)
    with pytest.raises(dc.SpecificationError, match="infinite horizon"):
        check_identified(base, base.with_parts(horizon=3))
    with pytest.raises(dc.SpecificationError, match="not offered in 30 of 30"):
        Dynamics.of(world.F, BETA, np.arange(J) != np.zeros((S, 1)), anchor=0)
    big = ddc(np.zeros((2001, 2)), np.zeros((2001, 2, 2001)) + np.eye(2001)[0])
    with pytest.raises(dc.SpecificationError, match="2,000"):
        check_identified(big, big)
