"""Models and panels that tests share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import oracles
import pandas as pd

import dynchoice as dc
from dynchoice.panel.cells import RegionCells
from dynchoice.panel.counts import NO_NEXT, Counts, MemberCells, group_sum


def from_oracle(spec: dict[str, Any]) -> dc.DDC:
    """The package's model of an oracle's random model."""
    S, J, K = spec["x"].shape
    return dc.DDC(
        states=dc.StateSpace(s=range(S)),
        choices=[f"c{j}" for j in range(J)],
        utility=dc.Utility.from_array(
            spec["x"], [f"k{k}" for k in range(K)], offset=spec["offset"]
        ),
        transitions=dc.Transitions.dense(spec["F"]),
        beta=spec["beta"],
        available=spec["available"],
        attention=spec["attention"],
        default=spec["default"],
    )


def counts_from(
    model: dc.DDC,
    member: np.ndarray,
    period: np.ndarray,
    state: np.ndarray,
    choice: np.ndarray,
    next_state: np.ndarray | None = None,
) -> Counts:
    """Counts of rows given as arrays, members 0 .. N-1, without any query."""
    zero = np.zeros_like(state)
    following = np.full_like(state, NO_NEXT) if next_state is None else next_state
    cells = np.stack([zero, member % 50, state, choice, following, zero + 1], axis=1)
    unique, n = group_sum(cells, np.ones(len(state)))
    by_period = np.stack([zero, period, state, choice, zero + 1], axis=1)
    unique_period, n_period = group_sum(by_period, np.ones(len(state)))
    N = int(member.max()) + 1
    own = np.stack([member, zero, state, choice, following, zero + 1], axis=1)
    grouped, n_own = group_sum(own, np.ones(len(state)))
    opening = np.lexsort((period, member))
    seen, at = np.unique(member[opening], return_index=True)
    first = state[opening][at]
    members = MemberCells.from_rows(
        grouped[:, 0],
        grouped[:, 1:],
        n_own,
        np.ones(N),
        np.stack([seen, 0 * first, first], axis=1),
        np.arange(N) % 50,
        np.zeros(N, np.int64),
    )
    return Counts(
        states=model.states,
        choices=model.choices,
        segments=("all",),
        buckets=50,
        cells=unique,
        n=n,
        period_cells=unique_period,
        period_n=n_period,
        segment_members=np.array([N]),
        members=members,
    )


def choice_counts(model: dc.DDC, n: np.ndarray) -> Counts:
    """Counts that hold only choices n (S, J), each row a member of its own kind."""
    s, j = np.nonzero(n)
    zero = np.zeros_like(s)
    cells = np.stack([zero, zero, s, j, zero + NO_NEXT, zero + 1], axis=1)
    return Counts(
        states=model.states,
        choices=model.choices,
        segments=("all",),
        buckets=2,
        cells=cells,
        n=n[s, j].astype(float),
        period_cells=np.stack([zero, zero, s, j, zero + 1], axis=1),
        period_n=n[s, j].astype(float),
        segment_members=np.array([int(n.sum())]),
    )


def simulated_counts(spec: dict[str, Any], members: int, periods: int, seed: int):
    """The package's model of an oracle model, counts of its simulated panel, and the rows."""
    model = from_oracle(spec)
    member, period, state, choice, following = oracles.simulate(
        spec, spec["params"], members, periods, seed
    )
    last = period == periods - 1
    moved = np.where(last, NO_NEXT, following)
    counts = counts_from(model, member, period, state, choice, moved)
    return model, counts, (member, period, state, choice, following)


@dataclass
class Membership:
    """A small membership model: known (true laws) and unknown (laws to estimate)."""

    known: dc.DDC
    unknown: dc.DDC
    theta: np.ndarray
    frame: pd.DataFrame


CHOICES = ["none", "monthly", "annual"]
CONTRACTS = ["none", "monthly", "annual_0", "annual_1", "annual_2"]


def small_laws(known: bool) -> dict[str, Any]:
    """A three-month annual contract, two engagement flags, an offer."""

    def following(level: str, choice: str) -> str | None:
        if level in ("annual_1", "annual_2"):
            return f"annual_{int(level[-1]) - 1}" if choice == "annual" else None
        return {"none": "none", "monthly": "monthly", "annual": "annual_2"}[choice]

    use = [[[0.8, 0.2], [0.4, 0.6]], [[0.6, 0.4], [0.1, 0.9]], [[0.6, 0.4], [0.1, 0.9]]]
    late = [
        [[[0.9, 0.1], [0.6, 0.4]], [[0.85, 0.15], [0.4, 0.6]]],
        [[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.1, 0.9]]],
        [[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.1, 0.9]]],
    ]
    return {
        "contract": dc.Deterministic(following),
        "offer": dc.Fixed(),
        "ship": dc.Markov(("choice",), use if known else None),
        "video": dc.Markov(("choice", "ship"), late if known else None),
    }


def small_membership(members: int = 3000, periods: int = 14, seed: int = 11) -> Membership:
    states = dc.StateSpace(contract=CONTRACTS, offer=["old", "new"], ship=[0, 1], video=[0, 1])
    price = {("monthly", "old"): 2.0, ("monthly", "new"): 3.0}
    price |= {("annual", "old"): 5.0, ("annual", "new"): 6.0}
    rows = []
    for contract in CONTRACTS:
        for offer in ("old", "new"):
            for choice in CHOICES:
                locked = contract in ("annual_1", "annual_2")
                rows.append(
                    {
                        "contract": contract,
                        "offer": offer,
                        "choice": choice,
                        "member": int(choice != "none"),
                        "pay": 0.0 if locked else -price.get((choice, offer), 0.0),
                        "join": -int(contract == "none" and choice != "none"),
                    }
                )
    utility = dc.Utility.from_formula(
        "0 + member + member:ship + member:video + pay + join",
        states,
        CHOICES,
        pd.DataFrame(rows),
    )
    available = np.ones((states.size, 3), dtype=bool)
    locked = np.isin(states.axis_codes("contract"), (3, 4))
    available[np.ix_(locked, [0, 1])] = False
    models = [
        dc.DDC(
            states=states,
            choices=CHOICES,
            utility=utility,
            transitions=dc.Transitions.factored(states, CHOICES, small_laws(known)),
            beta=0.97,
            available=available,
        )
        for known in (True, False)
    ]
    theta = np.array([-0.3, 0.6, 0.5, 0.3, 1.0])
    start = np.flatnonzero(states.axis_codes("contract") == 0)
    rng = np.random.default_rng(seed)
    paths = dc.simulate(
        models[0],
        params=theta,
        members=members,
        periods=periods,
        seed=rng,
        start=rng.choice(start, members),
    )
    return Membership(models[0], models[1], theta, paths.frame())


def membership_panel(membership: Membership, frame: pd.DataFrame, **options: Any) -> dc.Panel:
    return dc.Panel(
        frame,
        member="member",
        time="period",
        choice="choice",
        states=membership.known.states,
        choices=CHOICES,
        **options,
    )


@dataclass
class TypedRows:
    """Rows of a panel of unobserved types: arrays (rows,), and each member's type (N,)."""

    member: np.ndarray
    period: np.ndarray
    state: np.ndarray
    choice: np.ndarray
    following: np.ndarray
    kind: np.ndarray

    def frame(self) -> pd.DataFrame:
        """The rows as a table with columns id, t, s, choice."""
        label = np.array([f"c{j}" for j in range(self.choice.max() + 1)])
        columns = {"id": self.member, "t": self.period, "s": self.state}
        return pd.DataFrame({**columns, "choice": label[self.choice]})


def typed_rows(
    spec: dict[str, Any], params: Any, members: Any, periods: int, seed: int
) -> TypedRows:
    """Simulate members of several types (``members`` of each), in shuffled order of id."""
    parts = [
        oracles.simulate(spec, np.asarray(p), int(m), periods, seed + 1000 * q)
        for q, (p, m) in enumerate(zip(params, members, strict=True))
    ]
    total = int(np.sum(members))
    name = np.random.default_rng(seed).permutation(total)
    member = name[np.concatenate([p[0] + o for p, o in _offsets(parts, members)])]
    rest = [np.concatenate([p[i] for p in parts]) for i in range(1, 5)]
    order = np.lexsort((rest[0], member))
    kind = np.empty(total, dtype=np.int64)
    kind[name] = np.repeat(np.arange(len(parts)), members)
    return TypedRows(member[order], *(x[order] for x in rest), kind)


def _offsets(parts: list[Any], members: Any) -> list[tuple[Any, int]]:
    return list(zip(parts, np.r_[0, np.cumsum(members)[:-1]].tolist(), strict=True))


def typed_counts(model: dc.DDC, rows: TypedRows, by_period: bool = False) -> Counts:
    """Counts of typed rows; members' cells carry the period on request."""
    last = rows.period == rows.period.max()
    moved = np.where(last, NO_NEXT, rows.following)
    counts = counts_from(model, rows.member, rows.period, rows.state, rows.choice, moved)
    if not by_period:
        return counts
    m, zero = counts.members, np.zeros_like(rows.state)
    own = np.stack([zero, rows.state, rows.choice, moved, zero + 1, rows.period], axis=1)
    cells = MemberCells.from_rows(
        rows.member, own, np.ones(len(own)), m.weights, m.firsts, m.bucket, m.region
    )
    return replace(counts, members=cells)


def region_counts(model: dc.DDC, rows: dict[str, np.ndarray], labels: Any) -> Counts:
    """Counts of rows (r, t, s, j, following, n) that are already summed, by region and period."""
    r, t, s, j, following = (
        np.asarray(rows[c], np.int64) for c in ["r", "t", "s", "j", "following"]
    )
    n, zero = np.asarray(rows["n"], dtype=float), np.zeros_like(r)
    own = RegionCells(
        tuple(labels), *group_sum(np.stack([zero, r, t, s, j, following, zero + 1], axis=1), n)
    )
    cells, total = group_sum(np.stack([zero, r, s, j, following, zero + 1], axis=1), n)
    by_period, n_period = group_sum(np.stack([zero, t, s, j, zero + 1], axis=1), n)
    return Counts(
        states=model.states,
        choices=model.choices,
        segments=("all",),
        buckets=len(labels),
        cells=cells,
        n=total,
        period_cells=by_period,
        period_n=n_period,
        segment_members=np.array([1000.0]),
        regions=own,
    )


RUST_STATES, RUST_CHOICES = dc.StateSpace(m=range(8)), ["keep", "replace"]


def rust(
    probabilities: Any = (0.3, 0.5, 0.2), beta: float = 0.9, horizon: int | None = None
) -> dc.DDC:
    """A bus engine on eight levels of mileage."""
    x = np.zeros((8, 2, 2))
    x[:, 0, 0], x[:, 1, 1] = -np.arange(8.0), -1.0
    law = {"m": dc.Increment(2, "replace", probabilities=probabilities)}
    return dc.DDC(
        states=RUST_STATES,
        choices=RUST_CHOICES,
        utility=dc.Utility.from_array(x, ["cost", "RC"]),
        transitions=dc.Transitions.factored(RUST_STATES, RUST_CHOICES, law),
        beta=beta,
        horizon=horizon,
    )


def as_spec(model: dc.DDC, theta: Any) -> dict[str, Any]:
    """The oracle's dict of a package model."""
    return {
        "x": model.utility.x,
        "offset": model.utility.offset,
        "F": model.transitions.dense_array(),
        "beta": model.beta,
        "available": model.available,
        "attention": model.attention,
        "default": model.available.argmax(axis=1),  # all are attentive here
        "params": np.asarray(theta, dtype=float),
    }


HISTORY = {
    "member": "id",
    "time": "t",
    "choice": "c",
    "states": dc.StateSpace(x=range(4), y=["a", "b"]),
    "choices": ["out", "in"],
}
"""How the rows of :func:`member_history` are read."""


def member_history(seed, members=120, periods=9, ids="int"):
    """Random histories with gaps, entries, movers between segments and regions, and weights."""
    rng = np.random.default_rng(seed)
    rows = []
    for m in range(members):
        first, last = sorted(rng.integers(0, periods, 2))
        weight = rng.choice([0.1, 0.7, 1.3])
        for t in range(first, last + 1):
            if rng.random() < 0.85:
                rows.append((m, t, rng.integers(4), rng.choice(["a", "b"]),
                             rng.choice(["out", "in"]), f"s{rng.integers(3)}",
                             f"r{m % 3}", weight, int(rng.random() < 0.9)))  # fmt: skip
    names = ["id", "t", "x", "y", "c", "segment", "region", "w", "d"]
    df = pd.DataFrame(rows, columns=names)
    if ids == "text":
        df["id"] = "m" + df["id"].astype(str)
    elif ids == "sparse":
        df["id"] = df["id"] * 10**12
    return df


def same_counts(a, b):
    """Counts equal to the bit."""
    assert a.segments == b.segments and a.origin == b.origin and a.period_kind == b.period_kind
    for name in ("cells", "n", "period_cells", "period_n", "segment_members"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.shape == right.shape and (left == right).all(), name
    assert (a.regions is None) == (b.regions is None)
    if a.regions is not None:
        assert a.regions.labels == b.regions.labels
        assert (a.regions.cells == b.regions.cells).all() and (a.regions.n == b.regions.n).all()
    assert a.digest == b.digest
