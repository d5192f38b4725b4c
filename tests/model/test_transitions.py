import numpy as np
import oracles
import pytest
from scipy.sparse import csr_array

import dynchoice as dc
from dynchoice.model import factored

CHOICES = ["stop", "go"]
STATES = dc.StateSpace(
    region=["n", "s"], clock=range(3), season=range(4), use=range(3), miles=range(5)
)


def laws(rng):
    use = rng.dirichlet(np.ones(3), size=(2, 3, 3))  # choice, clock, own
    return {
        "region": dc.Fixed(),
        "clock": dc.Deterministic(
            lambda level, choice, season: (
                (level + 1) % 3 if choice == "go" or season == 0 else level
            ),
            given=("choice", "season"),
        ),
        "season": dc.Cycle(),
        "use": dc.Markov(("choice", "clock"), use),
        "miles": dc.Increment(2, "go", probabilities=[0.5, 0.3, 0.2]),
    }, use


def brute(use):
    p = [0.5, 0.3, 0.2]

    def clock(a, b, own, levels, j):
        return float(b == ((own + 1) % 3 if j == 1 or levels[2] == 0 else own))

    def miles(a, b, own, levels, j):
        base = 0 if j == 1 else own
        return sum(p[k] for k in range(3) if min(base + k, 4) == b)

    return [
        lambda a, b, own, levels, j: float(b == own),
        clock,
        lambda a, b, own, levels, j: float(b == (own + 1) % 4),
        lambda a, b, own, levels, j: use[j, levels[1], own, b],
        miles,
    ]


@pytest.fixture(params=["stacked", "matrix-free"])
def product(request, monkeypatch):
    if request.param == "matrix-free":
        monkeypatch.setattr(factored, "STACKED_LIMIT", 0)
    rng = np.random.default_rng(4)
    spec, use = laws(rng)
    F = dc.Transitions.factored(STATES, CHOICES, spec)
    dense = oracles.factored_dense(STATES.shape, brute(use), 2)
    return F, dense


def test_a_product_of_laws_equals_brute_force_enumeration(product):
    F, dense = product
    rng = np.random.default_rng(0)
    V, many = rng.normal(size=STATES.size), rng.normal(size=(STATES.size, 3))
    m = rng.random((STATES.size, 2))
    np.testing.assert_allclose(F.dense(), dense, atol=1e-15)
    np.testing.assert_allclose(F.expect(V), dense @ V, atol=1e-13)
    np.testing.assert_allclose(F.expect(many), np.einsum("sjt,tk->sjk", dense, many), atol=1e-13)
    np.testing.assert_allclose(F.push(m), np.einsum("sj,sjt->t", m, dense), atol=1e-13)
    assert len(np.unique(F.blocks)) == 2


def test_the_gradient_by_a_laws_table_is_its_directional_derivative(product):
    F, dense = product
    rng = np.random.default_rng(1)
    unknown = dc.Transitions.factored(
        STATES, CHOICES, {**F.laws, "use": dc.Markov(("choice", "clock"))}
    )
    filled = unknown.with_bound(
        tuple(
            next(b for b in F.bound if b.name == law.name)
            if law.table is None and law.following is None
            else law
            for law in unknown.bound
        )
    )
    # the family says that it is estimated, the table holds known numbers
    from dataclasses import replace

    filled = filled.with_bound(
        tuple(
            replace(b, family=dc.Markov(("choice", "clock"))) if b.name == "use" else b
            for b in filled.bound
        )
    )
    V, q = rng.normal(size=STATES.size), rng.normal(size=(STATES.size, 2))
    gradient = filled.law_gradient(q, V)["use"]
    change = rng.normal(size=gradient.shape)
    directional = (q * filled.expect_change("use", change, V)).sum()
    assert directional == pytest.approx((gradient * change).sum(), rel=1e-10)


def test_joint_laws_over_neighbouring_axes():
    states = dc.StateSpace(z=range(2), a=range(2), b=range(3))
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6), size=(2, 6))
    F = dc.Transitions.factored(
        states, CHOICES, {"z": dc.Fixed(), ("a", "b"): dc.Markov(("choice",), p)}
    )
    dense = F.dense()
    for z in range(2):
        block = dense[6 * z : 6 * z + 6, :, 6 * z : 6 * z + 6]
        np.testing.assert_allclose(block, p.transpose(1, 0, 2), atol=1e-15)


def test_dense_and_sparse_agree_and_axis_order_is_checked():
    rng = np.random.default_rng(0)
    F = rng.dirichlet(np.ones(5), size=(5, 2))
    a = dc.Transitions.dense(F)
    b = dc.Transitions.sparse([csr_array(F[:, j]) for j in range(2)])
    V = rng.normal(size=5)
    np.testing.assert_allclose(a.expect(V), F @ V, atol=1e-15)
    np.testing.assert_allclose(b.dense(), F, atol=0)
    assert (a.kind, b.kind) == ("dense", "sparse")
    with pytest.raises(dc.SpecificationError, match="axis order is F"):
        dc.Transitions.dense(F.transpose(1, 0, 2))


def test_rows_that_do_not_sum_to_one_are_named():
    F = np.full((3, 2, 3), 1 / 3)
    F[1, 0, 0] = 0.9
    F[2, 1, 1] = np.nan
    with pytest.raises(
        dc.SpecificationError, match=r"2 of 6 rows do not sum to one.*F\[s=1, j=0\]"
    ):
        dc.Transitions.dense(F)
    F = np.full((3, 2, 3), 1 / 3)
    F[0, 0] = [1.5, -0.5, 0]
    with pytest.raises(dc.SpecificationError, match="negative"):
        dc.Transitions.dense(F)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"miles": None}, "law 'miles' is a NoneType"),
        ({"miles": dc.Increment(9)}, "max_step=9 does not fit an axis of 5 levels"),
        ({"miles": dc.Increment(2, "goo")}, r"reset_on: choice 'goo'.*Did you mean 'go'"),
        ({"miles": dc.Increment(2, "go", [0.5, 0.5])}, r"shape \(2,\), expected \(3,\)"),
        ({"miles": dc.Increment(1, "go", [0.5, 0.6])}, "do not sum to one"),
        ({"use": dc.Markov(("choice", "clok"), None)}, r"no axis is named 'clok'.*'clock'"),
        ({"use": dc.Markov(("choice",), np.ones((2, 3)))}, r"expected \(2, 3, 3\)"),
        ({"use": dc.Markov(("choice", "use"))}, "names itself"),
        ({"clock": dc.Deterministic(lambda level, choice: 7)}, "to 7, which is no level"),
        ({"clock": dc.Deterministic({("go", 9): 1})}, "are no combination"),
        ({"clock": dc.Deterministic([[0, 1, 2]])}, r"shape \(1, 3\), expected \(2, 3\)"),
        ({"clock": dc.Markov(("use",)), "use": dc.Markov(("clock",))}, "form a cycle"),
        ({("region", "season"): dc.Fixed()}, "neighbours"),
        ({("season", "use"): dc.Fixed()}, "two laws move 'season'"),
    ],
)
def test_bad_laws(change, message):
    spec = {**laws(np.random.default_rng(0))[0], **change}
    with pytest.raises(dc.SpecificationError, match=message):
        dc.Transitions.factored(STATES, CHOICES, spec)


def test_an_axis_without_a_law_is_named():
    spec = laws(np.random.default_rng(0))[0]
    del spec["season"]
    with pytest.raises(dc.SpecificationError, match="no law for axis 'season'"):
        dc.Transitions.factored(STATES, CHOICES, spec)


def test_laws_without_probabilities_say_so_when_solved():
    states = dc.StateSpace(a=range(2))
    F = dc.Transitions.factored(states, CHOICES, {"a": dc.Markov()})
    model = dc.DDC(
        states=states,
        choices=CHOICES,
        transitions=F,
        beta=0.5,
        utility=dc.Utility.from_array(np.zeros((2, 2, 1)), ["k"]),
    )
    with pytest.raises(dc.SpecificationError, match=r"'a'.*no probabilities yet"):
        dc.solve(model, [0.0])


def test_rows_never_observed_borrow_and_are_counted():
    states = dc.StateSpace(z=["a", "b"], x=range(2))
    F = dc.Transitions.factored(states, CHOICES, {"z": dc.Fixed(), "x": dc.Markov(("choice", "z"))})
    moves = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]])
    estimated, (law,) = F.estimate(moves, np.array([3.0, 1.0, 2.0, 4.0]))
    table = estimated.bound[1].table
    assert table[0, 0].tolist() == [[0.75, 0.25], [0.0, 1.0]]  # stop, z=a; x=1 borrows from go
    assert table[1, 0].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert table[0, 1].tolist() == [[3 / 8, 5 / 8], [0.0, 1.0]]  # never seen: pooled
    assert law.borrowed == 5 and law.nparams == 1
