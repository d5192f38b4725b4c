"""Bounds on a counterfactual that rests on the normalised choice's payoffs (SOURCES.md 6.3, 8A.5).

What the data and the maintained model leave open is the anchor's payoff ``u_J`` (S,). With
restrictions on it, the counterfactual outcomes that the data allow are an interval, found by
minimising and maximising the outcome over ``u_J`` (Kalouptsidi, Kitamura, Lima and Souza-Rodrigues,
"Counterfactual Analysis for Structural Dynamic Discrete Choice Models"). Gradients are exact:
:class:`dynchoice.counterfactuals.identified.Sensitivity`. Known transfers stay at their values in
utils. The interval is of point estimates: sampling error is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dynchoice.counterfactuals.identified import (
    Dynamics,
    Outcome,
    Sensitivity,
    check_state_map,
    mapped,
    payoff_blocks,
    payoff_factors,
)
from dynchoice.errors import SpecificationError, first_few, suggest
from dynchoice.inference.results import Results
from dynchoice.inference.summary import wrapped
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import StateSpace, as_floats
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray, IntArray, Level

DIRECTIONS = 200
"""States up to which every payoff of the anchor is free by itself."""
FEASIBLE = 1e-7
"""Utils by which a restriction may be missed."""


@dataclass(frozen=True, eq=False)
class Restriction:
    """``low <= matrix @ u_J <= high`` (m,); of ``u_J`` less its maintained value if ``relative``.

    ``matrix`` (m, S) may be sparse. Build with the class methods below, or directly. Everywhere
    ``where`` selects states: ``{axis: level or levels}``, a mask (S,), codes, or None for all.

    Examples
    --------
    >>> states = StateSpace(plan=["none", "monthly"], use=range(3))
    >>> Restriction.between(states, high=0, where={"plan": "monthly"}).matrix.shape
    (3, 6)
    """

    name: str
    matrix: Any
    low: FloatArray
    high: FloatArray
    relative: bool = False

    def holds(self, u: FloatArray) -> bool:
        """Return whether the maintained payoffs (S,) satisfy it."""
        x = self.matrix @ (0 * u if self.relative else u)
        return bool(((x >= self.low - FEASIBLE) & (x <= self.high + FEASIBLE)).all())

    @classmethod
    def between(
        cls,
        states: StateSpace,
        low: Any = -np.inf,
        high: Any = np.inf,
        where: Any = None,
        name: str = "",
    ) -> Restriction:
        """Limit payoffs of the anchor, in utils (a sign: ``high=0``); numbers or one a state."""
        at = select(states, where)
        name = name or f"between {low} and {high}"
        a, b = as_floats(low, name).reshape(-1), as_floats(high, name).reshape(-1)
        if not len(at) or {a.size, b.size} - {1, len(at)} or not (a <= b).all():
            raise SpecificationError(
                f"restriction {name!r} on {len(at):,} states: select some, and give low <= high as"
                " numbers or one for each"
            )
        return cls(name, _pick(at, states.size), a + np.zeros(len(at)), b + np.zeros(len(at)))

    @classmethod
    def known(
        cls, states: StateSpace, value: Any = 0.0, where: Any = None, name: str = ""
    ) -> Restriction:
        """Fix payoffs of the anchor: the normalisation is asserted in the states selected."""
        return cls.between(states, value, value, where, name or f"known to be {value}")

    @classmethod
    def within(
        cls, states: StateSpace, low: Any, high: Any, where: Any = None, name: str = ""
    ) -> Restriction:
        """Keep payoffs of the anchor within ``low .. high`` utils of their maintained values."""
        limits = cls.between(states, low, high, where, name or f"within {low} .. {high}")
        return replace(limits, relative=True)

    @classmethod
    def monotone(
        cls,
        states: StateSpace,
        axis: str,
        increasing: bool = True,
        where: Any = None,
        name: str = "",
    ) -> Restriction:
        """Let payoffs of the anchor rise (or fall) along an axis, the other levels given."""
        keep = np.zeros(states.size, dtype=bool)
        keep[select(states, where)] = True
        step = int(np.prod(states.shape[states.axis(axis) + 1 :]))
        at = np.flatnonzero(keep & (states.axis_codes(axis) < len(states.axes[axis]) - 1))
        at = at[keep[at + step]]
        name = name or f"{'rises' if increasing else 'falls'} in {axis}"
        if not len(at):
            raise SpecificationError(f"restriction {name!r}: no two states selected are neighbours")
        rise = _pick(at + step, states.size) - _pick(at, states.size)
        return cls(name, rise if increasing else -rise, np.zeros(len(at)), np.full(len(at), np.inf))


def _pick(at: IntArray, S: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(at)), (np.arange(len(at)), at)), shape=(len(at), S))


def select(states: StateSpace, where: Any = None) -> IntArray:
    """Return state codes: all, ``{axis: level or levels}``, a mask (S,), or codes."""
    if isinstance(where, Mapping):
        keep = np.ones(states.size, dtype=bool)
        for axis, levels in where.items():
            listed = levels if isinstance(levels, (list, tuple, set, range)) else [levels]
            keep &= np.isin(states.axis_codes(axis), [states.level_code(axis, x) for x in listed])
        return np.flatnonzero(keep)
    at = np.arange(states.size) if where is None else np.asarray(where)
    if at.dtype == np.bool_ and at.shape == (states.size,):
        return np.flatnonzero(at)
    if at.ndim != 1 or at.dtype.kind not in "iu" or ((at < 0) | (at >= states.size)).any():
        raise SpecificationError(f"where={where!r}: pass levels, a mask or codes of states")
    return at.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Polytope:
    """Directions' coefficients ``z = origin + basis @ y``, ``box`` (Y, 2) and rows around ``y``."""

    origin: FloatArray
    basis: FloatArray
    box: FloatArray
    rows: FloatArray
    low: FloatArray
    high: FloatArray

    def miss(self, y: FloatArray) -> float:
        """Return by how much ``y`` misses the restrictions."""
        r = self.rows @ y
        gaps = np.r_[self.box[:, 0] - y, y - self.box[:, 1], self.low - r, r - self.high]
        return float(gaps.max(initial=0.0))

    def vertex(self, c: FloatArray) -> FloatArray | None:
        """Return a point that minimises ``c @ y``, or None where there is none."""
        from scipy.optimize import linprog

        if not len(c):
            return c
        up, down = np.isfinite(self.high), np.isfinite(self.low)
        A = np.r_[self.rows[up], -self.rows[down]]
        b = np.r_[self.high[up], -self.low[down]]
        found = linprog(c, A_ub=A if len(A) else None, b_ub=b if len(A) else None, bounds=self.box)
        return np.asarray(found.x) if found.status == 0 else None


def polytope(
    restrictions: Sequence[Restriction], B: FloatArray, maintained: FloatArray
) -> Polytope | None:
    """Return what restrictions leave of ``u_J = maintained + B z``, or None where they conflict.

    Equalities are solved away; rows of one coefficient become limits of it.
    """
    from scipy.linalg import null_space

    D = B.shape[1]
    parts = [(np.zeros((0, D)), np.zeros(0), np.zeros(0))]
    for r in restrictions:
        shift = 0.0 if r.relative else r.matrix @ maintained
        parts.append((np.asarray(r.matrix @ B), r.low - shift, r.high - shift))
    R, low, high = (np.concatenate([p[i] for p in parts]) for i in range(3))
    equal = low == high
    origin, basis = np.zeros(D), np.eye(D)
    if equal.any():
        single = equal & ((R != 0).sum(axis=1) == 1)
        fixed = np.argmax(R[single] != 0, axis=1)
        origin[fixed] = low[single] / R[single, fixed]
        basis = basis[:, np.setdiff1d(np.arange(D), fixed)]
        rest = R[equal] @ basis
        if np.abs(rest).max(initial=0.0) > 0:
            move = np.linalg.lstsq(rest, low[equal] - R[equal] @ origin, rcond=None)[0]
            origin, basis = origin + basis @ move, basis @ null_space(rest, rcond=1e-10)
        if np.abs(R[equal] @ origin - low[equal]).max() > FEASIBLE:
            return None
    rows = R[~equal] @ basis
    low, high = low[~equal] - R[~equal] @ origin, high[~equal] - R[~equal] @ origin
    filled = np.abs(rows) > 1e-12
    empty = ~filled.any(axis=1)
    if (low[empty] > FEASIBLE).any() or (high[empty] < -FEASIBLE).any():
        return None
    box = np.tile([-np.inf, np.inf], (basis.shape[1], 1))
    for i in np.flatnonzero(filled.sum(axis=1) == 1):
        k = int(filled[i].argmax())
        ends = np.sort([low[i] / rows[i, k], high[i] / rows[i, k]])
        box[k] = max(box[k, 0], ends[0]), min(box[k, 1], ends[1])
    if (box[:, 0] > box[:, 1] + FEASIBLE).any():
        return None
    box[:, 1] = np.maximum(box[:, 0], box[:, 1])
    many = np.unique(np.c_[rows, low, high][filled.sum(axis=1) > 1], axis=0)
    left = Polytope(origin, basis, box, many[:, :-2], many[:, -2], many[:, -1])
    return left if left.vertex(np.zeros(basis.shape[1])) is not None else None


class End(NamedTuple):
    """One end of the interval: value, coefficients ``z``, and how the searches for it went."""

    value: float
    z: FloatArray
    converged: bool
    agree: int


def extreme(given: Sensitivity, left: Polytope, starts: Sequence[FloatArray], sign: float) -> End:
    """Minimise (sign 1) or maximise (sign -1) the outcome from every start (Y,) with SLSQP.

    The outcome is scaled to a slope of one util at the start: the first step is then of the size
    of the problem, which the method's unit Hessian takes for granted.
    """
    from scipy.optimize import Bounds as Box
    from scipy.optimize import LinearConstraint, minimize

    def target(y: FloatArray, scale: float) -> tuple[float, FloatArray]:
        value, gradient = given(left.origin + left.basis @ y)
        return sign * scale * value, sign * scale * (gradient @ left.basis)

    options: dict[str, Any] = {"bounds": Box(left.box[:, 0], left.box[:, 1])}
    if len(left.rows):
        options["constraints"] = [LinearConstraint(left.rows, left.low, left.high)]
    options |= {"jac": True, "method": "SLSQP", "options": {"ftol": 1e-10, "maxiter": 500}}
    ends = []
    for start in starts:
        before, fine, y = given.failures, True, start
        value, slope = target(y, 1.0)
        if len(y):
            scale = 1 / max(float(np.abs(slope).max()), 1e-8)
            found = minimize(target, y, (scale,), **options)
            y, fine = np.clip(found.x, left.box[:, 0], left.box[:, 1]), bool(found.success)
            value = target(y, 1.0)[0]
        if left.miss(y) > 10 * FEASIBLE:
            y, fine, value = start, False, target(start, 1.0)[0]
        ends.append((value, fine and given.failures == before, y))
    value, fine, y = min(ends, key=lambda e: e[0])
    agree = sum(e[0] <= value + 1e-6 * (1 + abs(value)) for e in ends)
    return End(sign * value, left.origin + left.basis @ y, fine, agree)


@dataclass(frozen=True, eq=False)
class Bounds:
    """The interval of a counterfactual outcome that data and restrictions allow.

    Attributes
    ----------
    lower, upper, maintained : float
        Ends, and the outcome at the maintained normalisation.
    lower_at, upper_at : FloatArray, shape (S,)
        Payoffs of the anchor at the ends, in utils.
    converged : bool
        The best search of each end ended by its criterion, and every solution in it converged.
    agree, starts : (int, int), int
        Searches that ended at the lower and at the upper end, of how many.
    without : dict
        Restriction -> interval without it; NaN where then nothing bounds the payoffs.
    violated : tuple of str
        Restrictions that the maintained normalisation itself does not satisfy.
    free, rank, held : int
        Free directions under the restrictions; those among all that the outcome can depend on;
        payoffs of choices never offered in the baseline, kept at their functional form.
    """

    outcome: str
    lower: float
    upper: float
    maintained: float
    lower_at: FloatArray
    upper_at: FloatArray
    converged: bool
    agree: tuple[int, int]
    starts: int
    without: dict[str, tuple[float, float]]
    violated: tuple[str, ...]
    free: int
    rank: int
    held: int = 0

    @property
    def width(self) -> float:
        """Upper less lower end."""
        return self.upper - self.lower

    @property
    def removed(self) -> dict[str, float]:
        """Restriction -> share of the width without it that it removes."""
        widths = {name: high - low for name, (low, high) in self.without.items()}
        return {k: 1 - self.width / w if w > 1e-12 else 0.0 * w for k, w in widths.items()}

    def __str__(self) -> str:
        lines = [
            f"Bounds on {self.outcome}: {self.lower:.6g} .. {self.upper:.6g} (width"
            f" {self.width:.4g}; {self.maintained:.6g} at the maintained normalisation)",
            f"{self.free:,} payoffs or directions free, {self.rank:,} matter; {self.agree[0]} and"
            f" {self.agree[1]} of {self.starts} searches ended at the lower and upper end",
        ]
        for name, share in self.removed.items():
            text = f"removes {100 * share:.1f}% of the width"
            lines.append(f"- {name}: {'needed to bound' if np.isnan(share) else text}")
        if self.violated:
            lines.append(f"The maintained normalisation violates: {', '.join(self.violated)}.")
        if self.held:
            lines.append(f"{self.held:,} payoffs never offered are kept at their functional form.")
        if not self.converged:
            lines.append("NOT CONVERGED: the interval may be too narrow; try more starts.")
        return "\n".join(wrapped(line) for line in lines)


def bounds(
    given: Sensitivity,
    restrictions: Sequence[Restriction],
    maintained: FloatArray,
    *,
    starts: int = 20,
    seed: int | None = 0,
    outcome: str = "the outcome",
) -> Bounds:
    """Minimise and maximise an outcome over the anchor's payoffs ``maintained + B z``.

    Parameters
    ----------
    given : Sensitivity
    restrictions : sequence of Restriction
    maintained : FloatArray, shape (S,)
    starts : int
        Searches for each end: from the maintained normalisation, and from random points between
        it and random corners. As many, and the ends found, serve each interval without one
        restriction. The outcome may have many local optima, at corners above all.

    Raises
    ------
    SpecificationError
        Restrictions conflict (which ones), or leave payoffs unbounded that matter.
    """
    B = given.B
    rest = {r.name: [x for x in restrictions if x is not r] for r in restrictions}
    left = polytope(restrictions, B, maintained)
    if left is None:
        guilty = [n for n, some in rest.items() if polytope(some, B, maintained) is not None]
        raise SpecificationError(
            "no payoff of the normalised choice along the directions satisfies the restrictions"
            + (f"; without {first_few([repr(n) for n in guilty])} there is one" if guilty else "")
        )
    rng = np.random.default_rng(seed)
    points = start_points(left, given.matters, [np.zeros(B.shape[1])], starts, rng)
    if points is None:
        raise SpecificationError(
            f"{len(given.matters):,} directions of the normalised choice's payoffs matter and the"
            " restrictions do not bound all of them: add Restriction.within(states, low, high)"
        )
    low, high = (extreme(given, left, points, sign) for sign in (1.0, -1.0))
    without = {}
    for name, some in rest.items():
        wider, without[name] = polytope(some, B, maintained) or left, (np.nan, np.nan)
        more = start_points(wider, given.matters, [low.z, high.z], 2 + starts, rng)
        if more is not None:
            ends = [extreme(given, wider, more, sign).value for sign in (1.0, -1.0)]
            without[name] = (min(ends[0], low.value), max(ends[1], high.value))
    return Bounds(
        outcome,
        low.value,
        high.value,
        given(np.zeros(B.shape[1]))[0],
        maintained + B @ low.z,
        maintained + B @ high.z,
        low.converged and high.converged,
        (low.agree, high.agree),
        len(points),
        without,
        tuple(r.name for r in restrictions if not r.holds(maintained)),
        left.basis.shape[1],
        len(given.matters),
    )


def start_points(
    left: Polytope,
    matters: FloatArray,
    first: Sequence[FloatArray],
    n: int,
    rng: np.random.Generator,
) -> list[FloatArray] | None:
    """Return ``n`` feasible points (Y,), or None where directions that matter are unbounded.

    Those of ``first`` (D,) that are feasible come first; the others lie between a feasible point
    and a random corner. A random objective is unbounded, up or down, almost surely if any is.
    """
    points = []
    for z in first:
        y: FloatArray = np.linalg.pinv(left.basis) @ (z - left.origin)
        off = np.abs(left.origin + left.basis @ y - z).max(initial=0.0)
        if max(off, left.miss(y)) <= FEASIBLE:
            points.append(np.clip(y, left.box[:, 0], left.box[:, 1]))
    slope = matters @ left.basis
    c = rng.standard_normal(len(slope)) @ slope
    one, other = left.vertex(c), left.vertex(-c)
    if one is None or other is None:
        return None
    if not points:
        points.append((one + other) / 2)
    while len(points) < n:
        corner = left.vertex(rng.standard_normal(len(slope)) @ slope)
        if corner is None:
            return None
        points.append(points[0] + rng.uniform() * (corner - points[0]))
    return points


def share_of(weights: FloatArray, codes: Sequence[int]) -> Outcome:
    """Return the outcome: mean probability, over weights (S~,), of some choices."""

    def value(V: FloatArray, P: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        slope = np.zeros_like(P)
        slope[:, codes] = weights[:, None]
        return float((slope * P).sum()), np.zeros_like(V), slope

    return value


def mean_value(weights: FloatArray) -> Outcome:
    """Return the outcome: mean ex-ante value, in utils, over weights (S~,)."""
    return lambda V, P: (float(weights @ V), weights, np.zeros_like(P))


def axis_directions(states: StateSpace) -> FloatArray:
    """Return directions (S, D): each state by itself up to 200, else one a level of each axis."""
    if states.size <= DIRECTIONS:
        return np.eye(states.size)
    parts = [np.eye(len(levels))[states.axis_codes(a)] for a, levels in states.axes.items()]
    return np.concatenate([parts[0], *(p[:, 1:] for p in parts[1:])], axis=1)


def counterfactual_bounds(
    results: Results,
    scenario_model: DDC,
    restrictions: Sequence[Restriction],
    *,
    outcome: str | Outcome = "take-up",
    choice: Any = None,
    weights: Any = None,
    starts: int = 20,
    seed: int | None = 0,
    directions: Any = None,
    payoff: Mapping[Level, Any] | None = None,
    state_map: Any = None,
    params: Any = None,
) -> Bounds:
    """Bound a counterfactual over the payoffs of the outside choice that data leave open.

    Parameters
    ----------
    results : Results
        A fit with infinite horizon. The payoffs of its choice code 0 are free, around what its
        utility has for them; where it is not offered, those of the first choice offered.
    scenario_model : DDC
        With the parameters of the fit: ``scenario.changed(results.model)``.
    restrictions : sequence of Restriction
    outcome : str or callable
        ``"take-up"``: mean probability of ``choice``; ``"welfare"``: mean change of the ex-ante
        value, in utils; or :data:`Outcome`, with its gradient.
    choice : label or list of labels, optional
        Default: all but the outside choice.
    weights : array (S~,), optional
        Over states. Default: those that the panel showed.
    directions : array (S, D), optional
        Along which those payoffs move. Default: :func:`axis_directions`.
    payoff, state_map
        As in :func:`dynchoice.counterfactuals.identified.check_identified`.
    params : array (K,) or mapping, optional
        Parameters of the scenario. Default: the estimate.

    starts, seed
        See :func:`bounds`, also for the errors raised.
    """
    if not isinstance(results, Results):
        raise SpecificationError(f"bounds are for one Results, got {type(results).__name__}")
    results.require_model("bounds on a counterfactual")
    base, new = results.model, scenario_model
    factors, _ = payoff_factors(base, new, payoff, None)
    origin = check_state_map(base, new, state_map)
    if new.names != base.names:
        raise SpecificationError(
            f"the scenario has other parameters ({', '.join(new.names)}) than the fit"
        )
    S, S_new = base.states.size, new.states.size
    for r in restrictions:
        if not isinstance(r, Restriction) or r.matrix.shape[1] != S:
            raise SpecificationError(f"restriction {r!r} is none over the fit's {S:,} states")
    if len({r.name for r in restrictions}) < len(restrictions):
        raise SpecificationError("restrictions need distinct names: pass name=")
    B = axis_directions(base.states) if directions is None else as_floats(directions, "directions")
    if B.ndim != 2 or len(B) != S:
        raise SpecificationError(f"directions: shape ({S}, D) is needed, got {B.shape}")
    w = as_floats(results.counts.sum(axis=1) if weights is None else weights, "weights")
    if w.shape != (S_new,) or not (w >= 0).all() or not w.sum() > 0:
        raise SpecificationError(f"weights (over new states) must be non-negative, ({S_new},)")
    w = w / w.sum()
    function, text, options = _outcome(results, new, outcome, choice, w, origin)
    dynamics, blocks = Dynamics.of_model(base), payoff_blocks(factors, origin, S)
    u = base.flow_utility(results.theta)
    u_new = new.flow_utility(results.theta if params is None else params)
    with one_blas_thread():
        given = Sensitivity(dynamics, new, u_new, blocks, function, B, **options)
        found = bounds(
            given, restrictions, dynamics.at_anchor(u), starts=starts, seed=seed, outcome=text
        )
    _, unknown = mapped(blocks, np.zeros((*u.shape, 0)), dynamics, Dynamics.of_model(new))
    return replace(found, held=int(unknown.sum()))


def _outcome(
    results: Results, new: DDC, outcome: Any, choice: Any, w: FloatArray, origin: IntArray
) -> tuple[Outcome, str, dict[str, Any]]:
    """Return the outcome, its name, and the options of :class:`Sensitivity` that go with it."""
    if callable(outcome):
        return outcome, getattr(outcome, "__name__", "the outcome"), {}
    if outcome == "welfare":
        if (origin[w > 0] < 0).any():
            raise SpecificationError("welfare is a change: weights must be zero in new states")
        own = np.bincount(origin[w > 0], weights=w[w > 0], minlength=results.model.states.size)
        return mean_value(w), "the mean change of value", {"welfare": (own, results.solution.V)}
    if outcome != "take-up":
        raise SpecificationError(
            f"outcome {outcome!r} is unknown: pass 'take-up', 'welfare' or a function"
        )
    listed = list(choice) if isinstance(choice, (list, tuple)) else [choice]
    if choice is None:
        listed = [c for c in new.choices if c != results.model.choices[0]]
    for c in listed:
        if c not in new.choices:
            raise SpecificationError(f"{c!r} is no choice.{suggest(c, new.choices)}")
    text = f"the mean probability of {first_few(listed)}"
    return share_of(w, [new.choices.index(c) for c in listed]), text, {"shares_only": True}
