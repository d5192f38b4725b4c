"""Transitions as a product of laws, one an axis: the curse of dimensionality kept at bay.

``E[V | s, j]`` is computed axis by axis. An axis is contracted after its parents, so that the
parents stand at their *current* level by then; the order exists because parents form no cycle.
Small products are expanded once into stacked rows, which is then the faster form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dynchoice.errors import DataError, SpecificationError, first_few
from dynchoice.kernels import core as kernels
from dynchoice.model.laws import IMPOSSIBLE, BoundLaw, Fixed, Law, bind
from dynchoice.model.level_product import Product, product_of
from dynchoice.model.transitions import Transitions, connected_blocks, expect_rows
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

STACKED_LIMIT = 3_000_000
"""Non-zeros up to which the product is expanded into stacked rows."""

LINE = 8
"""Numbers to a line of memory: so many columns are computed before they are written together."""

LawLayout = tuple[BoundLaw, tuple[int, int, int], IntArray, IntArray]


@dataclass(frozen=True)
class LawEstimate:
    """First-stage frequencies of one law: counts and probabilities (R, m) by row."""

    name: str
    counts: FloatArray
    probabilities: FloatArray
    borrowed: int
    """Rows never observed: they take the frequencies pooled over choices and parents, or those
    of their stand-ins."""
    sources: IntArray | None = None
    """Row (R,) whose frequencies each row has, where stand-ins were named."""

    @property
    def loglik(self) -> float:
        """Log-likelihood of the observed moves at the frequencies."""
        from scipy.special import xlogy

        return float(xlogy(self.counts, self.probabilities).sum())

    @property
    def nparams(self) -> int:
        """Free probabilities: positive cells less one, a row."""
        return int(np.maximum((self.counts > 0).sum(axis=1) - 1, 0).sum())


class Factored(Transitions):
    """A product of bound laws over the axes of a state space."""

    kind = "factored"

    def __init__(
        self,
        states: StateSpace,
        choices: tuple[Level, ...],
        laws: Mapping[str | tuple[str, ...], Law],
        bound: tuple[BoundLaw, ...] | None = None,
    ) -> None:
        self.states, self.choices, self.laws = states, choices, dict(laws)
        self.S, self.J = states.size, len(choices)
        if bound is None:
            bound = tuple(bind(states, choices, key, law) for key, law in self.laws.items())
            _check_one_law_each(bound, states)
            bound = parents_first(bound, states)
        self.bound = bound

    @property
    def estimated(self) -> bool:
        return any(law.estimated for law in self.bound)

    @property
    def known(self) -> bool:
        """Whether every law has its probabilities (given, or filled in by the first stage)."""
        return all(law.table is not None or law.following is not None for law in self.bound)

    @property
    def undefined(self) -> BoolArray:
        """Where (S, J) a deterministic law has no next level: that choice must not be available."""
        out = np.zeros((self.S, self.J), dtype=bool)
        for law in self.bound:
            if law.undefined is not None and law.undefined.any():
                own, group = self.own(law), self.group(law)
                for j in range(self.J):
                    out[:, j] |= law.undefined[j if law.by_choice else 0, group, own]
        return out

    def own(self, law: BoundLaw) -> IntArray:
        """Return the level (S,) of a law's own axes in every state."""
        return self._code(law.axes)

    def group(self, law: BoundLaw) -> IntArray:
        """Return the number of the parents' combination (S,) in every state."""
        return self._code(law.parents)

    def _code(self, axes: tuple[int, ...]) -> IntArray:
        """Return the joint level of some axes (S,), the last one fastest."""
        shape = self.states.shape
        code = np.zeros([1] * len(shape), dtype=np.int64)
        for a in axes:
            level = np.arange(shape[a]).reshape([-1 if b == a else 1 for b in range(len(shape))])
            code = code * shape[a] + level
        return np.ascontiguousarray(np.broadcast_to(code, shape)).reshape(-1)

    # operator ---------------------------------------------------------------------------------

    @cached_property
    def _layout(self) -> list[LawLayout]:
        """Each law's (pre, n, post) shape, and its parents' code by position before and after.

        In the order of contraction. To a law's kernel the state space is three axes: those before
        its own, its own, those after; parents stand on either side, so that their combination is
        the sum of a part known from the position before and one known from the position after.
        """
        shape = self.states.shape
        out = []
        for law in self.bound:
            first, last = law.axes[0], law.axes[-1]
            before, after = shape[:first], shape[last + 1 :]
            stride, strides = 1, {}
            for p in reversed(law.parents):
                strides[p] = stride
                stride *= shape[p]
            pre = np.zeros(before, dtype=np.int64)
            post = np.zeros(after, dtype=np.int64)
            for p, step in strides.items():
                ahead = p < first
                target, dims, axis = (pre, before, p) if ahead else (post, after, p - last - 1)
                axis_shape = [1] * len(dims)
                axis_shape[axis] = dims[axis]
                target += (step * np.arange(shape[p])).reshape(axis_shape)
            out.append(
                (law, (pre.size, law.n, post.size), pre.reshape(-1).copy(), post.reshape(-1).copy())
            )
        return out

    def _require_known(self) -> None:
        missing = [law.name for law in self.bound if law.table is None and law.following is None]
        if missing:
            raise SpecificationError(
                f"the law(s) of {first_few([repr(m) for m in missing])} have no probabilities yet:"
                " estimate them (any estimator's first stage does), or give probabilities="
            )

    def expect(self, V: FloatArray) -> FloatArray:
        rows = self.stacked()
        if rows is not None:
            return expect_rows(*rows, self.J, V)
        if V.ndim == 2:
            return self._expect_many(V)
        if self.product is not None:
            return self.product.expect(np.ascontiguousarray(V, dtype=np.float64))
        out = np.empty((self.S, self.J))
        for j in range(self.J):
            out[:, j] = self._chain(np.ascontiguousarray(V, dtype=np.float64), j)[-1]
        return out

    def _expect_many(self, V: FloatArray) -> FloatArray:
        """Return expectations (S, J, K) of ``V`` (S, K).

        Column by column, and written a line of memory at a time: a column alone would touch every
        line of the result once.
        """
        K = V.shape[1]
        out = np.empty((self.S * self.J, K))
        line = np.empty((min(LINE, K), self.S * self.J))
        for first in range(0, K, LINE):
            columns = np.ascontiguousarray(V[:, first : first + LINE].T)
            for k, column in enumerate(columns):
                line[k] = self.expect(column).reshape(-1)
            out[:, first : first + LINE] = line[: len(columns)].T
        return out.reshape(self.S, self.J, K)

    @cached_property
    def product(self) -> Product | None:
        """The law as levels and two dense halves, which is faster (None: it has no such form)."""
        self._require_known()
        return product_of(self)

    def _chain(self, V: FloatArray, j: int) -> list[FloatArray]:
        """Return V and what is left of it after each law's contraction under choice ``j``."""
        self._require_known()
        steps = [V]
        for law, shape, gpre, gpost in self._layout:
            X, out, slab = steps[-1].reshape(shape), np.empty(shape), j if law.by_choice else 0
            if law.following is not None:
                kernels.gather_axis(X, law.following[slab], gpre, gpost, out)
            else:
                assert law.table is not None
                kernels.contract_axis(X, law.table[slab], gpre, gpost, out)
            steps.append(out.reshape(-1))
        return steps

    def push(self, m: FloatArray) -> FloatArray:
        rows = self.stacked()
        if rows is not None:
            out = np.zeros(self.S)
            kernels.push_stacked(*rows, np.ascontiguousarray(m).reshape(-1), out)
            return out
        self._require_known()
        if self.product is not None:
            return self.product.push(np.ascontiguousarray(m))
        total = np.zeros(self.S)
        for j in range(self.J):
            Y = np.ascontiguousarray(m[:, j])
            for layout in reversed(self._layout):
                Y = self._adjoint_step(layout, Y, j)
            total += Y
        return total

    def _adjoint_step(self, layout: LawLayout, Y: FloatArray, j: int) -> FloatArray:
        """Return ``Y`` pushed through the transpose of one law's contraction under choice ``j``."""
        law, shape, gpre, gpost = layout
        out, slab = np.empty(shape), j if law.by_choice else 0
        if law.following is not None:
            kernels.gather_axis_adjoint(Y.reshape(shape), law.following[slab], gpre, gpost, out)
        else:
            assert law.table is not None
            kernels.contract_axis_adjoint(Y.reshape(shape), law.table[slab], gpre, gpost, out)
        return out.reshape(-1)

    def dense(self) -> FloatArray:  # type: ignore[override]
        """Return F as an array (S, J, S)."""
        return self.dense_array()

    def law_gradient(self, q: FloatArray, V: FloatArray) -> dict[str, FloatArray]:
        """Return ``d/dp sum_{s,j} q[s,j] E[V(s')|s,j]`` for each estimated law's rows (R, m).

        Reverse mode through the chain of contractions: one forward and one backward pass a
        choice, whatever the number of probabilities.
        """
        grads = {
            law.name: np.zeros((self.J if law.by_choice else 1, law.groups, law.n, law.n))
            for law in self.bound
            if law.estimated
        }
        for j in range(self.J):
            steps = self._chain(np.ascontiguousarray(V), j)
            Y = np.ascontiguousarray(q[:, j])
            for depth in range(len(self._layout) - 1, -1, -1):
                law, shape, gpre, gpost = self._layout[depth]
                if law.estimated:
                    slab = j if law.by_choice else 0
                    X = steps[depth].reshape(shape)
                    kernels.law_gradient(Y.reshape(shape), X, gpre, gpost, grads[law.name][slab])
                Y = self._adjoint_step(self._layout[depth], Y, j)
        return {law.name: law.pull(grads[law.name]) for law in self.bound if law.estimated}

    def expect_change(self, name: str, change: FloatArray, V: FloatArray) -> FloatArray:
        """Return ``dE[V(s')|s, j]`` (S, J) when one law's rows (R, m) change by ``change``."""
        # the expectation is linear in each law's table: put the change where the table stands
        bound = tuple(
            replace(law, table=law.fill(change)) if law.name == name else law for law in self.bound
        )
        varied = self.with_bound(bound)
        V = np.ascontiguousarray(V, dtype=np.float64)
        return np.stack([varied._chain(V, j)[-1] for j in range(self.J)], axis=1)

    # expansion --------------------------------------------------------------------------------

    def _row_entries(self, law: BoundLaw) -> IntArray:
        """Return how many next levels each (j, g, i) row of a law reaches."""
        if law.following is not None:
            return np.ones(law.following.shape, dtype=np.int64)
        assert law.table is not None
        return (law.table > 0).sum(axis=3)

    @cached_property
    def nonzeros(self) -> int:
        """Non-zero entries of F as stacked rows."""
        self._require_known()
        total = 0
        for j in range(self.J):
            per_state = np.ones(self.S, dtype=np.float64)
            for law in self.bound:
                entries = self._row_entries(law)[j if law.by_choice else 0]
                per_state *= entries[self.group(law), self.own(law)]
            total += int(per_state.sum())
        return total

    def stacked(self) -> tuple[IntArray, IntArray, FloatArray] | None:
        return self._stacked

    @cached_property
    def _stacked(self) -> tuple[IntArray, IntArray, FloatArray] | None:
        if self.nonzeros > STACKED_LIMIT:
            return None
        # one entry a cell to begin with; each law splits every entry into those it leads to
        row = np.arange(self.S * self.J, dtype=np.int64)
        column = np.zeros_like(row)
        weight = np.ones(len(row))
        strides = np.r_[np.cumprod(self.states.shape[:0:-1])[::-1], 1].astype(np.int64)
        for law in self.bound:
            levels, start, count, p = self.rows_of(law)
            s, j = row // self.J, row % self.J
            law_row = (((j if law.by_choice else 0) * law.groups + self.group(law)[s]) * law.n) + (
                self.own(law)[s]
            )
            repeat = count[law_row]
            # positions start, start + 1, ... of each entry's law row, all entries in one go
            shift = np.repeat(start[law_row] - np.r_[0, np.cumsum(repeat)[:-1]], repeat)
            entry = shift + np.arange(repeat.sum())
            offset = levels[entry] * strides[law.axes[-1]]
            row, column = np.repeat(row, repeat), np.repeat(column, repeat) + offset
            weight = np.repeat(weight, repeat) * p[entry]
        order = np.lexsort((column, row))
        indptr = np.searchsorted(row[order], np.arange(self.S * self.J + 1)).astype(np.int64)
        return indptr, np.ascontiguousarray(column[order]), np.ascontiguousarray(weight[order])

    def rows_of(self, law: BoundLaw) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
        """Return a law's non-zeros flat: next levels, first entry and number by row, weights."""
        if law.following is not None:
            levels = law.following.reshape(-1)
            rows = np.arange(len(levels))
            return levels, rows, np.ones_like(rows), np.ones(len(levels))
        assert law.table is not None
        table = law.table.reshape(-1, law.n)
        r, k = np.nonzero(table)
        count = np.bincount(r, minlength=len(table))
        return k, np.r_[0, np.cumsum(count)[:-1]], count, table[r, k]

    @cached_property
    def blocks(self) -> IntArray:
        rows = self.stacked()
        if rows is not None:
            return connected_blocks(rows[0], rows[1], self.S, self.J)
        # too large to look at its graph: axes that never move do split the states
        fixed = [law for law in self.bound if isinstance(law.family, Fixed)]
        code = np.zeros(self.S, dtype=np.int64)
        for law in fixed:
            code = code * law.n + self.own(law)
        return np.unique(code, return_inverse=True)[1].reshape(-1).astype(np.int64)

    # first stage ------------------------------------------------------------------------------

    def moves_outcomes(self, law: BoundLaw, moves: IntArray) -> tuple[IntArray, IntArray]:
        """Return the (multinomial row, outcome) that observed (s, j, s') moves are to a law."""
        s, j, following = moves.T
        own, group = self.own(law), self.group(law)
        return law.outcomes(j, group[s], own[s], own[following])

    def estimate(self, moves: IntArray, n: FloatArray) -> tuple[Factored, list[LawEstimate]]:
        """Return the transitions with estimated laws filled in by frequencies of the moves.

        Parameters
        ----------
        moves : IntArray, shape (C, 3)
            Observed (state, choice, next state); impossible ones are refused before.
        n : FloatArray, shape (C,)

        Raises
        ------
        DataError
            No move is observed at all.
        """
        bound, estimates = [], []
        for law in self.bound:
            if not law.estimated:
                bound.append(law)
                continue
            row, outcome = self.moves_outcomes(law, moves)
            tells = outcome >= 0
            R, m = law.rows
            cell = row[tells] * m + outcome[tells]
            flat = np.bincount(cell, weights=n[tells], minlength=R * m)
            counts = np.asarray(flat, dtype=np.float64).reshape(R, m)
            if not counts.any():
                raise DataError(
                    f"the law of {law.name!r} cannot be estimated: the panel shows no member in"
                    " two consecutive periods. Give probabilities="
                )
            probabilities, borrowed = _frequencies(counts, law)
            sources = None
            if law.stand_ins is not None:
                observed = counts.sum(axis=1) > 0
                replaced = ~observed & observed[law.stand_ins]
                sources = np.where(replaced, law.stand_ins, np.arange(len(counts)))
                probabilities = probabilities[sources]
            estimates.append(LawEstimate(law.name, counts, probabilities, borrowed, sources))
            bound.append(replace(law, table=law.fill(probabilities)))
        return self.with_bound(tuple(bound)), estimates

    def with_bound(self, bound: tuple[BoundLaw, ...]) -> Factored:
        """Return a copy with other tables for the same laws."""
        return Factored(self.states, self.choices, self.laws, bound)

    def impossible(self, moves: IntArray) -> BoolArray:
        """Return which observed (s, j, s') moves no law allows (C,); Fixed axes may surprise."""
        out = np.zeros(len(moves), dtype=bool)
        s, j, following = moves.T
        for law in self.bound:
            if isinstance(law.family, Fixed):
                continue
            own, group = self.own(law), self.group(law)
            slab = j if law.by_choice else np.zeros_like(j)
            if law.following is not None:
                out |= own[following] != law.following[slab, group[s], own[s]]
            elif law.estimated:
                out |= self.moves_outcomes(law, moves)[1] == IMPOSSIBLE
            else:
                assert law.table is not None
                out |= law.table[slab, group[s], own[s], own[following]] <= 0
        return out

    def surprises(self, moves: IntArray) -> BoolArray:
        """Return which observed moves change the level of a Fixed axis (C,)."""
        out = np.zeros(len(moves), dtype=bool)
        for law in self.bound:
            if isinstance(law.family, Fixed):
                own = self.own(law)
                out |= own[moves[:, 0]] != own[moves[:, 2]]
        return out


def _frequencies(counts: FloatArray, law: BoundLaw) -> tuple[FloatArray, int]:
    """Return row frequencies, and the number of rows that were never observed.

    These borrow the frequencies pooled over choices and parents; if no row of their own level was
    ever observed, they stay where they are.
    """
    total = counts.sum(axis=1, keepdims=True)
    empty = total[:, 0] == 0
    p = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    if empty.any():
        level = np.arange(len(counts)) % law.n
        pooled = np.zeros((law.n, law.n))
        np.add.at(pooled, level, counts)
        mass = pooled.sum(axis=1, keepdims=True)
        pooled = np.where(mass > 0, pooled / np.where(mass > 0, mass, 1), np.eye(law.n))
        p[empty] = pooled[level[empty]]
    return p, int(empty.sum())


def _check_one_law_each(bound: tuple[BoundLaw, ...], states: StateSpace) -> None:
    """Raise unless every axis is moved by exactly one law."""
    covered = [a for law in bound for a in law.axes]
    absent = [n for i, n in enumerate(states.names) if i not in covered]
    twice = [n for i, n in enumerate(states.names) if covered.count(i) > 1]
    if absent or twice:
        what = f"no law for axis {absent[0]!r}" if absent else f"two laws move {twice[0]!r}"
        raise SpecificationError(
            f"factored transitions: {what}; give each axis exactly one law (Fixed() for one that"
            " never moves)"
        )


def parents_first(bound: tuple[BoundLaw, ...], states: StateSpace) -> tuple[BoundLaw, ...]:
    """Return laws in an order where each comes after the laws that move its parents."""
    done: list[BoundLaw] = []
    left = list(bound)
    while left:
        settled = {a for law in done for a in law.axes}
        ready = [law for law in left if set(law.parents) <= settled]
        if not ready:
            raise SpecificationError(
                "the parents of the laws of "
                + first_few([repr(law.name) for law in left])
                + " form a cycle; a parent is the current level of an axis whose own law does not"
                " look back. Join them in one law over a tuple of axes"
            )
        done.append(ready[0])
        left.remove(ready[0])
    return tuple(done)
