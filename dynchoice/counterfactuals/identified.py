"""Which counterfactuals the data identify whatever the payoffs of the normalised choice.

Choices reveal payoffs only up to an arbitrary value function: if ``pi`` solves the model at ``u``,
it solves it at ``u + (I - beta F_a) X`` for every ``X`` (S,). With the anchor's payoff ``u_J`` as
coordinates, ``du_a = A_a du_J``, ``A_a = (I - beta F_a)(I - beta F_J)^{-1}`` (SOURCES.md 6.1). A
counterfactual with payoffs ``u~_a = sum_b H_ab u_b + g_a``, transitions ``F~`` and discount
factor ``beta~`` has the same probabilities for all of them if and only if

    D_a = sum_b H_ab A_b - A~_a sum_b H_Jb A_b = 0    for every choice a

(Kalouptsidi, Scott and Souza-Rodrigues 2021, QE; SOURCES.md 6.2). Here in general:

- The anchor may differ by state, and in the counterfactual: any choice offered there serves.
- Rows of choices that are not offered do not exist. A counterfactual payoff that would be made of
  one never offered is unknown: a dimension of its own.
- Inattention changes ``b_a`` but not ``A_a``: ``V = attention logsum(v) + (1 - attention) v_d``
  gives ``V = v_a + psi_a``, ``psi_a = -log pi_a + (1 - attention) log pi_d`` with the unmixed
  ``pi``, so ``u_a = A_a (u_J + psi_J) - psi_a`` as before. The counterfactual depends on ``u~``
  alone, so changed attention or defaults (both known) leave the criterion as it is.
- The map from probabilities to payoffs modulo ``(I - beta~ F~_a) X`` is one-to-one, so the set
  of probabilities that the data allow is a manifold whose dimension is the rank of ``D``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.counterfactuals.payoff_map import (
    MadeOf,
    Payoff,
    Utils,
    check_state_map,
    payoff_blocks,
    payoff_factors,
)
from dynchoice.errors import SpecificationError
from dynchoice.inference.summary import wrapped
from dynchoice.model.ddc import DDC
from dynchoice.model.transitions import Transitions
from dynchoice.solvers.linear import PolicySystem, one_blas_thread
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

DENSE_STATES = 2000
"""States of a group that never reach others, above which the criterion is not computed."""


@dataclass(frozen=True, eq=False)
class Dynamics:
    """How states move and what is offered; ``anchor`` (S,) is a choice offered in each state.

    ``F`` is an array (S, J, S) or the package's transitions.
    """

    F: FloatArray | Transitions
    beta: float
    available: BoolArray
    anchor: IntArray

    @classmethod
    def of(
        cls,
        F: FloatArray | Transitions,
        beta: float,
        available: BoolArray | None = None,
        anchor: int | IntArray | None = None,
    ) -> Dynamics:
        """Build; default: everything offered, and the first choice offered as the anchor.

        Raises
        ------
        SpecificationError
            An anchor, code or (S,), that is not offered somewhere; shapes that do not fit.
        """
        S, J = (F.S, F.J) if isinstance(F, Transitions) else F.shape[:2]
        mask = np.ones((S, J), dtype=bool) if available is None else np.asarray(available, bool)
        checks.shape(mask, "available", (S, J), "(S, J)")
        codes = mask.argmax(axis=1)
        if anchor is not None:
            codes = np.broadcast_to(anchor, S).astype(np.int64)
        missing = np.flatnonzero(~mask[np.arange(S), codes])
        if len(missing):
            first = missing[0]
            raise SpecificationError(
                f"the anchor is not offered in {len(missing):,} of {S:,} states, first: choice"
                f" {codes[first]} in state {first}; give one code a state, anchor (S,)"
            )
        return cls(F, float(beta), mask, codes)

    @classmethod
    def of_model(cls, model: DDC) -> Dynamics:
        """Build from a model; anchored at choice code 0, or the first that a state offers."""
        return cls.of(model.transitions, model.beta, model.available)

    def flows(self, X: FloatArray) -> FloatArray:
        """Return ``X(s) - beta E[X | s, a]`` (S, J, D) for ``X`` (S, D), zero if not offered."""
        if isinstance(self.F, Transitions):
            ahead = self.F.expect(X)
        else:
            ahead = (self.F.reshape(-1, len(X)) @ X).reshape(*self.available.shape, -1)
        return (X[:, None] - self.beta * ahead) * self.available[:, :, None]

    def values(self, B: FloatArray) -> FloatArray:
        """Return ``(I - beta F_J)^{-1} B`` (S, D): values of anchor payoffs ``B`` (S, D)."""
        rows = np.arange(len(B))
        if isinstance(self.F, Transitions):
            system = PolicySystem(self.F, self.beta)
            system.factor(np.eye(self.available.shape[1])[self.anchor])
            return system.solve(np.ascontiguousarray(B))
        return np.asarray(
            np.linalg.solve(np.eye(len(B)) - self.beta * self.F[rows, self.anchor], B)
        )

    def at_anchor(self, x: FloatArray) -> FloatArray:
        """Return the anchor's entries (S, ...) of an array (S, J, ...)."""
        return x[np.arange(len(x)), self.anchor]


def equivalent_payoffs(dynamics: Dynamics, u: FloatArray, shift: FloatArray) -> FloatArray:
    """Return payoffs (S, J) behind the same choice probabilities as ``u`` (S, J).

    The anchor's payoffs are other by ``shift`` (S,), all by ``A_a shift`` (SOURCES.md 6.1).
    """
    return np.asarray(u + dynamics.flows(dynamics.values(shift[:, None]))[:, :, 0])


def payoffs_of(
    dynamics: Dynamics,
    pi: FloatArray,
    anchor_payoff: FloatArray,
    attention: float | FloatArray = 1.0,
    default: int | IntArray = 0,
) -> FloatArray:
    """Return the payoffs (S, J) behind probabilities: ``u_a = A_a (u_J + psi_J) - psi_a``.

    Parameters
    ----------
    pi : FloatArray, shape (S, J)
        Unmixed probabilities (of attentive members), positive where offered.
    anchor_payoff : FloatArray, shape (S,)
    attention, default : number or array (S,)
        Attention that members count on; code of the default.

    Raises
    ------
    SpecificationError
        A choice that is offered and never made: it reveals no payoff.
    """
    never_made = dynamics.available & ~(pi > 0)
    if never_made.any():
        s, j = np.argwhere(never_made)[0]
        raise SpecificationError(
            f"{int(never_made.sum()):,} choices offered have probability zero, first: choice {j} in"
            f" state {s}; smooth the probabilities, or declare them unavailable"
        )
    log_pi = np.log(np.where(dynamics.available, pi, 1.0))
    passive = log_pi[np.arange(len(pi)), np.broadcast_to(default, len(pi))]
    psi = ((1 - np.asarray(attention)) * passive)[:, None] - log_pi
    V = dynamics.values((anchor_payoff + dynamics.at_anchor(psi))[:, None])
    return np.where(dynamics.available, dynamics.flows(V)[:, :, 0] - psi, -np.inf)


def map_payoffs(
    payoff: Payoff,
    values: FloatArray,
    base: Dynamics,
    new: Dynamics,
    known: bool | BoolArray = False,
) -> tuple[FloatArray, BoolArray]:
    """Return ``sum_b H_ab values_b`` (S~, J~, D), and which payoffs are unknown (S~, J~): those
    offered that take from one never offered in the baseline, or from none and are not ``known``.
    """
    out = np.zeros((*new.available.shape, values.shape[2]))
    total, lost = np.zeros(new.available.shape), np.zeros(new.available.shape)
    for (a, b), H in payoff.items():
        out[:, a] += H @ values[:, b]
        total[:, a] += abs(H) @ np.ones(len(values))
        lost[:, a] += abs(H) @ (~base.available[:, b]).astype(np.float64)
    unknown = ((lost > 0) | ((total == 0) & ~np.broadcast_to(known, total.shape))) & new.available
    out[~new.available | unknown] = 0.0
    return out, unknown


def value_changes(new: Dynamics, T: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return what payoff changes ``T`` (S~, J~, D) leave beside the anchor's, and their value.

    The first is ``D_a = T_a - A~_a T_J`` (S~, J~, D), the second ``(I - beta~ F~_J)^{-1} T_J``
    (S~, D).
    """
    X = new.values(new.at_anchor(T))
    return T - new.flows(X), X


@dataclass(frozen=True, eq=False, kw_only=True)
class Criterion:
    """The criterion in numbers: see :class:`Identified`; ``matters`` (S,) is by baseline state."""

    norms: FloatArray
    rank: int
    matters: BoolArray
    welfare: float
    unknown: BoolArray


def criterion(
    base: Dynamics,
    new: Dynamics,
    payoff: Payoff | None = None,
    *,
    known: bool | BoolArray = False,
    origin: IntArray | None = None,
    tolerance: float = 1e-8,
) -> Criterion:
    """Compute ``D_a`` (S~, S) for every choice, its norm and the rank of all together.

    Parameters
    ----------
    base, new : Dynamics
    payoff : mapping, optional
        Blocks ``H``; default: every choice keeps its own payoff.
    known : BoolArray, shape (S~, J~)
        Counterfactual payoffs that are given in utils.
    origin : IntArray, shape (S~,), optional
        Baseline state that the welfare of each state is set against (below 0: none); default:
        the same one, where there are as many states.

    Notes
    -----
    Norms (J~,) are the largest absolute row sums: utils by which payoffs relative to the anchor's
    move if the anchor's payoffs move by a util at most.
    """
    S, (S_new, J_new) = len(base.anchor), new.available.shape
    if payoff is None:
        payoff = {(a, a): np.eye(S_new, S) for a in range(J_new)}
    if origin is None:
        origin = np.arange(S_new) if S_new == S else np.full(S_new, -1)
    X = base.values(np.eye(S))
    T, unknown = map_payoffs(payoff, base.flows(X), base, new, known)
    cells = np.argwhere(unknown)  # each unknown payoff is one more direction
    directions = np.zeros((S_new, J_new, len(cells)))
    directions[cells[:, 0], cells[:, 1], np.arange(len(cells))] = 1.0
    D, X_new = value_changes(new, np.concatenate([T, directions], axis=2))
    norms = np.abs(D).sum(axis=2).max(axis=0)
    X_new[:, :S][origin >= 0] -= X[origin[origin >= 0]]
    welfare = (1 - base.beta) * np.abs(X_new[origin >= 0]).sum(axis=1).max(initial=0.0)
    rows, free = np.split(D.reshape(-1, D.shape[2]), [S], axis=1)
    if len(cells):  # what unknown payoffs may do in any case is no matter of the anchor's
        rows = rows - free @ np.linalg.lstsq(free, rows, rcond=None)[0]
    matters = np.abs(rows).max(axis=0) > tolerance
    return Criterion(
        norms=norms,
        rank=_rank(D, norms.max(), tolerance),
        matters=matters,
        welfare=float(welfare),
        unknown=unknown,
    )


def _rank(D: FloatArray, norm: float, tolerance: float) -> int:
    """Return the rank of all rows of ``D``, 0 where no row is longer than the tolerance."""
    if norm <= tolerance:
        return 0
    rows = D.reshape(-1, D.shape[2])
    rows = rows[np.abs(rows).max(axis=1) > 0]
    # a factor R has the rows' singular values, and is small
    square = np.linalg.qr(rows, mode="r") if len(rows) > rows.shape[1] else rows
    size = np.linalg.svd(square, compute_uv=False)
    return max(1, int((size > tolerance * max(1.0, size[0])).sum()))


@dataclass(frozen=True, kw_only=True)
class Identified:
    """Whether a counterfactual is free of the normalisation.

    Attributes
    ----------
    identified : bool
        Its choice probabilities are the same for every payoff of the anchor.
    norms : dict
        Choice -> ``max_s sum_t |D_a[s, t]|`` in utils (:func:`criterion`).
    rank : int
        Dimension of the set of probabilities that the data allow; 0 is a point.
    states : int
        How many of the ``size`` payoffs of the anchor matter.
    welfare : float
        By how many utils a period the change of the value moves if those payoffs move by one.
    unknown : int
        Payoffs offered that no choice in the data reveals; each is a dimension of its own.
    """

    identified: bool
    norms: dict[Level, float]
    rank: int
    states: int
    size: int
    welfare: float
    unknown: int
    tolerance: float

    @property
    def welfare_identified(self) -> bool:
        """Whether the change of the ex-ante value is free of the normalisation as well."""
        return self.identified and self.welfare <= self.tolerance

    def __str__(self) -> str:
        if self.identified:
            word = "is identified too" if self.welfare_identified else "is NOT: it moves with them"
            return wrapped(
                "Identified: no payoff of the normalised choice moves a probability. The change of"
                f" welfare {word}."
            )
        moved = [f"{c!r} by {n:.2g}" for c, n in self.norms.items() if n > self.tolerance]
        lines = [
            f"NOT identified: the normalised choice's payoffs matter in {self.states:,} of"
            f" {self.size:,} states. If they move by one util at most, payoffs move relative to"
            f" it: {', '.join(moved)}. The probabilities that the data allow form a set of"
            f" dimension {self.rank:,}. Assert those payoffs, or compute counterfactual_bounds()."
        ]
        if self.unknown:
            lines.append(
                f"{self.unknown:,} payoffs are of choices never offered: nothing shows them."
            )
        return "\n".join(wrapped(line) for line in lines)


def check_identified(
    base: DDC,
    new: DDC,
    *,
    payoff: MadeOf | None = None,
    offsets: Utils | None = None,
    state_map: ArrayLike | None = None,
    tolerance: float = 1e-8,
) -> Identified:
    """Return whether the data behind one model identify the probabilities of another.

    Parameters
    ----------
    base, new : DDC
        Infinite horizon, known transitions: ``results.model``, ``scenario.changed(results.model)``.
        Choices are matched by label. Differences of utility are read as known transfers in utils.
    payoff : mapping, optional
        Choice of ``new`` -> what its payoff is made of: a choice of ``base``; ``{choice: factor}``;
        or None, of nothing. Needed for new labels.
    offsets : mapping, optional
        Choice -> utils, a number or (S~,), known. They never matter themselves; but a choice
        made of nothing is known with one and unknown without.
    state_map : IntArray, shape (S~,), optional
        Baseline state whose payoffs each state of ``new`` has, -1 for none. Needed where the
        states differ.

    Raises
    ------
    SpecificationError
        A finite horizon; a new label without ``payoff``; other states without ``state_map``; a
        group of more than 2,000 states (groups never reach each other: separate problems).
    """
    factors, known = payoff_factors(base, new, payoff, offsets)
    origin = check_state_map(base, new, state_map)
    F, G = _rows(base), _rows(new)
    S = base.states.size
    parts: list[Criterion] = []
    with one_blas_thread():
        for group in _groups(base, new, F, G, origin):
            states, states_new = group[group < S], group[group >= S] - S
            if not len(states_new):
                continue
            if max(len(states), len(states_new)) > DENSE_STATES:
                raise SpecificationError(
                    f"{len(group):,} states reach each other; the criterion is dense and computed"
                    f" up to {DENSE_STATES:,}. Check a smaller version (fewer levels of one axis)"
                )
            position = np.full(S + 1, -1)  # the last one answers for origin -1
            position[states] = np.arange(len(states))
            local = position[origin[states_new]]
            parts.append(
                criterion(
                    _part(base, F, states),
                    _part(new, G, states_new),
                    payoff_blocks(factors, local, len(states)),
                    known=known,
                    origin=local,
                    tolerance=tolerance,
                )
            )
    norms = np.max([part.norms for part in parts], axis=0)
    return Identified(
        identified=bool((norms <= tolerance).all()),
        norms=dict(zip(new.choices, norms.tolist(), strict=True)),
        rank=sum(part.rank for part in parts),
        states=sum(int(part.matters.sum()) for part in parts),
        size=S,
        welfare=max(part.welfare for part in parts),
        unknown=sum(int(part.unknown.sum()) for part in parts),
        tolerance=tolerance,
    )


def _rows(model: DDC) -> csr_array:
    """Return F as CSR (S J, S), zero in rows of choices that are not offered."""
    from scipy.sparse import csr_array

    rows = model.transitions.stacked()
    if rows is None:
        raise SpecificationError(
            f"the transitions over {model.states.size:,} states are too large to expand; check a"
            " smaller version (fewer levels of one axis)"
        )
    indptr, indices, data = rows
    kept = data * np.repeat(model.available.reshape(-1), np.diff(indptr))
    shape = (len(indptr) - 1, model.states.size)
    matrix = csr_array((kept, indices, indptr), shape=shape, copy=True)
    matrix.eliminate_zeros()
    return matrix


def _part(model: DDC, F: csr_array, states: IntArray) -> Dynamics:
    """Return the dynamics of some states that reach no others, dense."""
    n, J = len(states), len(model.choices)
    rows = F[(states[:, None] * J + np.arange(J)).reshape(-1)]
    dense = rows[:, states].toarray().reshape(n, J, n)
    return Dynamics.of(dense, model.beta, model.available[states])


def _groups(base: DDC, new: DDC, F: csr_array, G: csr_array, origin: IntArray) -> list[IntArray]:
    """Return groups of baseline states and, numbered from S on, new ones that do not interact."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    S, n = base.states.size, base.states.size + new.states.size
    f, g, linked = F.tocoo(), G.tocoo(), np.flatnonzero(origin >= 0)
    source = np.r_[f.row // len(base.choices), S + g.row // len(new.choices), S + linked]
    target = np.r_[f.col, S + g.col, origin[linked]]
    graph = coo_array((np.ones(len(source)), (source, target)), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    order = np.argsort(label, kind="stable").astype(np.int64)
    return np.split(order, np.cumsum(np.bincount(label))[:-1])
