"""Finite dependence: when a few periods of flows and choice probabilities are all that counts.

Arcidiacono and Miller (2011, section 3.2; 2019): choices ``j`` and ``k`` in state ``s`` have
``rho``-period dependence if weights over the choices of the next ``rho`` periods (they sum to
one in every state and may be negative) lead to the same distribution of the state afterwards.
With ``q_a(s) = u_a(s) - log pi_a(s)`` (mean-zero shocks; ``V = v_a - log pi_a`` for every a),

    v_j(s) - v_k(s) = u_j(s) - u_k(s) + sum_{r=1..rho} beta^r sum_{s', a} d_r(s', a) q_a(s'),

where the weights' difference ``d_r`` solves a linear system, state by state:

    sum_a d_1(s', a) = F_j(s'|s) - F_k(s'|s)
    sum_a d_{r+1}(s'', a) = sum_{s', a} d_r(s', a) F_a(s''|s'),     and 0 after the last period.

Dependence holds where the system has a solution: a question of rank, answered by least squares.
A choice after which the state is the same wherever one comes from (a renewal) is the best case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, first_few
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_array

TOLERANCE = 1e-9
MAX_UNKNOWNS = 3000
"""Weights of one state and pair of choices above which the system is not attempted."""


@dataclass(frozen=True)
class FiniteDependence:
    """Where finite dependence holds, and the weights that show it.

    Attributes
    ----------
    states, choices
        Of the model.
    rows : IntArray, shape (R,)
        States that were examined.
    reference : IntArray, shape (R,)
        The choice that the others are compared with.
    periods : IntArray, shape (R, J)
        Periods after which the choice's path meets the reference's: 0 for the reference itself
        and for choices that lead to the same states at once, -1 where none of the periods tried
        suffices, -2 where the choice is not offered.
    weights : tuple of csr_array, each (R*J, S*J)
        ``d_1`` (and ``d_2``), rows ``r * J + j``, columns ``s' * J + a``.
    largest : FloatArray, shape (R, J)
        Sum of the absolute weights over that of ``F_j - F_k``; far above 1, the sampling error of
        the choice probabilities is multiplied.
    attempted : BoolArray, shape (R,)
        False where the system was too large to try.
    """

    states: StateSpace
    choices: tuple[Level, ...]
    rows: IntArray
    reference: IntArray
    periods: IntArray
    weights: tuple[csr_array, ...]
    largest: FloatArray
    attempted: BoolArray

    @property
    def holds(self) -> BoolArray:
        """Where (R, J) the choice can be compared with its row's reference."""
        return self.periods >= 0

    @property
    def complete(self) -> bool:
        """Whether every offered choice of every row examined can be compared."""
        return bool((self.periods != -1).all())

    def frame(self) -> pd.DataFrame:
        """Return one row a choice and span: in how many states, and which ones for instance."""
        import pandas as pd

        J = len(self.choices)
        rows = []
        for j in range(J):
            for span in (0, 1, 2, -1):
                cases = np.flatnonzero((self.periods[:, j] == span) & (self.reference != j))
                if not len(cases):
                    continue
                against = sorted({str(self.choices[k]) for k in self.reference[cases]})
                rows.append(
                    {
                        "choice": self.choices[j],
                        "against": ", ".join(against),
                        "periods": {-1: "none", 0: "0 (same states)"}.get(span, str(span)),
                        "states": len(cases),
                        "largest weights": float(self.largest[cases, j].max()) if span > 0 else 0.0,
                        "for instance": self.states.describe(int(self.rows[cases[0]])),
                    }
                )
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        offered = self.periods >= -1
        pairs = int(offered.sum() - len(self.rows))
        short = int((self.periods == -1).sum())
        head = f"Finite dependence in {len(self.rows):,} states, {pairs:,} pairs of choices: "
        if short == 0:
            head += f"holds in all, within {int(self.periods.max())} period(s)"
        else:
            head += (
                f"FAILS for {short:,} of them. There the choice changes where members stand for"
                " longer (a lock-in, or engagement that depends on membership), and values need"
                " the whole future: use NFXP, NPL or CCP(valuation='exact')"
            )
        if not self.attempted.all():
            head += f"; {int((~self.attempted).sum()):,} states too large to try"
        return head + "\n" + self.frame().to_string(index=False, float_format="{:.3g}".format)

    __repr__ = __str__


def finite_dependence(
    model: DDC,
    periods: int = 2,
    *,
    states: Any = None,
    precision: FloatArray | None = None,
    through: Level | None = None,
) -> FiniteDependence:
    """Find one- and two-period finite dependence of a model, state by state.

    Parameters
    ----------
    model : DDC
        With known transitions (``results.model`` after a fit).
    periods : {1, 2}
        Longest dependence to look for; the shorter is preferred.
    states : sequence of int, optional
        State codes to examine; default all.
    precision : FloatArray, shape (S, J), optional
        Observations behind each choice probability: of the many weights that do, those that
        lean on well-observed choices are taken. Default: the smallest weights.
    through : label, optional
        Put weight on this choice only (the renewal or terminal action of the literature).

    Returns
    -------
    FiniteDependence

    Raises
    ------
    SpecificationError
        Another number of periods; laws without probabilities; transitions too large to expand.

    References
    ----------
    Arcidiacono and Miller (2011), Econometrica 79; (2019), Quantitative Economics 10.

    Examples
    --------
    >>> import numpy as np, dynchoice as dc
    >>> states = dc.StateSpace(mileage=range(3))
    >>> model = dc.DDC(states=states, choices=["keep", "replace"], beta=0.9,
    ...     utility=dc.Utility.from_array(np.zeros((3, 2, 1)), ["cost"]),
    ...     transitions=dc.Transitions.factored(states, ["keep", "replace"],
    ...         {"mileage": dc.Increment(1, "replace", probabilities=[0.5, 0.5])}))
    >>> dc.finite_dependence(model).complete
    True
    """
    if periods not in (1, 2):
        raise SpecificationError(f"periods={periods!r}: finite dependence of 1 or 2 is looked for")
    stacked = model.transitions.stacked()
    if stacked is None:
        raise SpecificationError(
            "finite dependence needs the transitions expanded, and they are too large"
        )
    rows = np.arange(model.states.size) if states is None else np.asarray(states, dtype=np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= model.states.size):
        raise SpecificationError(f"states: codes run from 0 to {model.states.size - 1}")
    allowed = model.available
    if through is not None:
        checks.known([through], model.choices, "through: choice")
        only = np.arange(len(model.choices)) == model.choices.index(through)
        allowed = model.available & only
    search = _Search(model, stacked, precision, allowed)
    return search.run(rows, periods)


class _Search:
    """Linear systems of one model; ``run`` goes through the states."""

    def __init__(
        self, model: DDC, stacked: Any, precision: FloatArray | None, allowed: BoolArray
    ) -> None:
        self.model, self.allowed = model, allowed
        self.S, self.J = model.shape[:2]
        self.indptr, self.indices, self.data = stacked
        self.scale = np.ones((self.S, self.J)) if precision is None else np.sqrt(precision + 1e-3)
        self.scale = np.where(allowed, self.scale, 0.0)
        self.label = self._row_labels()
        self.renewal = self._renewals()

    def row(self, s: int, a: int) -> tuple[IntArray, FloatArray]:
        """Return where (s, a) leads, and with what probability."""
        entries = slice(self.indptr[s * self.J + a], self.indptr[s * self.J + a + 1])
        positive = self.data[entries] > 0
        return self.indices[entries][positive], self.data[entries][positive]

    def _row_labels(self) -> IntArray:
        """Number distinct rows of F: (S, J), equal where two states lead to the same future."""
        labels: dict[bytes, int] = {}
        label = np.empty(self.S * self.J, dtype=np.int64)
        for r in range(self.S * self.J):
            entries = slice(self.indptr[r], self.indptr[r + 1])
            key = self.indices[entries].tobytes() + np.round(self.data[entries], 12).tobytes()
            label[r] = labels.setdefault(key, len(labels))
        return label.reshape(self.S, self.J)

    def _renewals(self) -> IntArray:
        """Return for each state the choice that renews everywhere in its block, or -1."""
        blocks = self.model.transitions.blocks
        out = np.full(self.S, -1, dtype=np.int64)
        best = np.full(int(blocks.max()) + 1, -1.0)
        for a in range(self.J):
            first = np.full(len(best), -1, dtype=np.int64)
            # backwards, so that the label of a block's first state is written last
            order = np.arange(self.S - 1, -1, -1)
            first[blocks[order]] = self.label[order, a]
            differs = np.zeros(len(best), dtype=bool)
            stays = (self.label[:, a] == first[blocks]) & self.allowed[:, a]
            differs[blocks[~stays]] = True
            support = np.bincount(blocks, weights=self.scale[:, a] ** 2, minlength=len(best))
            better = ~differs & (support > best)
            out[better[blocks]] = a
            best = np.where(better, support, best)
        return out

    def run(self, rows: IntArray, periods: int) -> FiniteDependence:
        """Examine the given states."""
        from scipy.sparse import csr_array

        R, J = len(rows), self.J
        available = self.model.available[rows]
        reference = available.argmax(axis=1)
        span = np.where(available, -1, -2)
        largest = np.zeros((R, J))
        attempted = np.ones(R, dtype=bool)
        parts: list[list[Any]] = [[], []]
        for r, s in enumerate(rows):
            span[r], reference[r], solved, attempted[r] = self.examine(int(s), periods)
            for j, (first, second, size) in solved.items():
                largest[r, j] = size
                for part, weights_of in zip(parts, (first, second), strict=True):
                    if weights_of is not None and len(weights_of[0]):
                        part.append((np.full(len(weights_of[0]), r * J + j), *weights_of))
        weights = []
        for part in parts[:periods]:
            i, k, d = (np.concatenate(x) for x in zip(*part, strict=True)) if part else ([], [], [])
            weights.append(csr_array((d, (i, k)), shape=(R * J, self.S * J)))
        return FiniteDependence(
            states=self.model.states,
            choices=self.model.choices,
            rows=rows,
            reference=reference,
            periods=span,
            weights=tuple(weights),
            largest=largest,
            attempted=attempted,
        )

    def examine(self, s: int, periods: int) -> tuple[IntArray, int, dict[int, Any], bool]:
        """Return spans (J,), the reference with the most company, weights by choice, attempted."""
        offered = np.flatnonzero(self.model.available[s])
        span = np.where(self.model.available[s], -1, -2)
        best: tuple[IntArray, int, dict[int, Any]] | None = None
        attempted = True
        placed: set[int] = set()  # who depends on an earlier reference has no other company
        for k in offered:
            if k in placed:
                continue
            spans, solved = span.copy(), {}
            spans[k] = 0
            for j in offered:
                if j == k:
                    continue
                dependence, tried = self.pair(s, int(j), int(k), periods)
                attempted &= tried
                if dependence is not None:
                    spans[j] = dependence[0]
                    solved[int(j)] = dependence[1:]
                    placed.add(int(j))
            if best is None or (spans >= 0).sum() > (best[0] >= 0).sum():
                best = spans, int(k), solved
        assert best is not None
        return *best, attempted

    def pair(self, s: int, j: int, k: int, periods: int) -> tuple[Any, bool]:
        """Return (span, d_1, d_2, size) of choice j against k in state s, or None; and tried."""
        if self.label[s, j] == self.label[s, k]:
            return (0, None, None, 0.0), True
        (to_j, p_j), (to_k, p_k) = self.row(s, j), self.row(s, k)
        support, place = np.unique(np.r_[to_j, to_k], return_inverse=True)
        signed = np.r_[p_j, -p_k]
        change = np.zeros(len(support))
        np.add.at(change, place.reshape(-1), signed)
        a = self.renewal[s]
        if a >= 0:
            return (1, (support * self.J + a, change), None, 1.0), True
        for span in range(1, periods + 1):
            layers, tried = self.system(support, change, span)
            if not tried:
                return None, False
            if layers is not None:
                size = sum(np.abs(d[1]).sum() for d in layers) / np.abs(change).sum()
                second = layers[1] if span == 2 else None
                return (span, layers[0], second, float(size)), True
        return None, True

    def system(
        self, support: IntArray, change: FloatArray, span: int
    ) -> tuple[list[tuple[IntArray, FloatArray]] | None, bool]:
        """Solve for the weights of one or two periods; None where there is no solution."""
        layers: list[tuple[IntArray, IntArray]] = []
        reached = support
        for _ in range(span):
            if not self.allowed[reached].any(axis=1).all():
                return None, True
            s, a = np.nonzero(self.allowed[reached])
            layers.append((reached[s], a))
            if sum(len(x) for x, _ in layers) > MAX_UNKNOWNS:
                return None, False
            after = [self.row(int(x), int(y))[0] for x, y in zip(reached[s], a, strict=True)]
            reached = np.unique(np.concatenate(after))
        unknown = sum(len(x) for x, _ in layers)
        sizes = [len(support)]
        blocks = [support]
        for states, acts in layers:
            reached = np.unique(
                np.concatenate(
                    [self.row(int(x), int(y))[0] for x, y in zip(states, acts, strict=True)]
                )
            )
            blocks.append(reached)
            sizes.append(len(reached))
        top = np.r_[0, np.cumsum(sizes)]
        A, b = np.zeros((int(top[-1]), unknown)), np.zeros(int(top[-1]))
        b[: sizes[0]] = change
        column = 0
        for depth, (states, acts) in enumerate(layers):
            position = np.searchsorted(blocks[depth], states)
            for i, (x, y) in enumerate(zip(states, acts, strict=True)):
                A[top[depth] + position[i], column] += 1.0
                to, p = self.row(int(x), int(y))
                A[top[depth + 1] + np.searchsorted(blocks[depth + 1], to), column] -= p
                column += 1
        # of the many solutions, lstsq takes the smallest in scaled terms: weight goes where the
        # choice probabilities are precise
        scale = np.concatenate([self.scale[x, y] for x, y in layers])
        scale = scale / scale.max()
        y, *_ = np.linalg.lstsq(A * scale, b, rcond=1e-12)
        d = scale * y
        if np.abs(A @ d - b).max() > TOLERANCE:
            return None, True
        d[np.abs(d) < 1e-14] = 0.0
        out, first = [], 0
        for states, acts in layers:
            part = d[first : first + len(states)]
            kept = part != 0
            out.append(((states * self.J + acts)[kept], part[kept]))
            first += len(states)
        return out, True


def describe_failures(found: FiniteDependence, labels: Sequence[Level]) -> str:
    """Return up to three (state, choice) pairs without finite dependence, in words."""
    bad = np.argwhere(found.periods == -1)
    shown = [f"{labels[j]!r} in ({found.states.describe(int(found.rows[r]))})" for r, j in bad[:3]]
    return first_few(shown + [""] * max(len(bad) - 3, 0))
