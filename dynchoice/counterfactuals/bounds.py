"""Bounds on a counterfactual that rests on the normalised choice's payoffs (SOURCES.md 6.3, 8A.5).

What the data and the maintained model leave open is the anchor's payoff ``u_J`` (S,). With
restrictions on it, the counterfactual outcomes that the data allow are an interval, found by
minimising and maximising the outcome over ``u_J`` (Kalouptsidi, Kitamura, Lima and Souza-Rodrigues,
"Counterfactual Analysis for Structural Dynamic Discrete Choice Models"). Gradients are exact:
:class:`dynchoice.counterfactuals.sensitivity.Sensitivity`. Known transfers stay at their values in
utils. The interval is of point estimates: sampling error is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynchoice import checks
from dynchoice.counterfactuals.identified import (
    Dynamics,
    map_payoffs,
)
from dynchoice.counterfactuals.payoff_map import (
    MadeOf,
    check_state_map,
    payoff_blocks,
    payoff_factors,
)
from dynchoice.counterfactuals.restrictions import FEASIBLE, Polytope, Restriction, polytope
from dynchoice.counterfactuals.sensitivity import Outcome, Sensitivity
from dynchoice.errors import SpecificationError, first_few
from dynchoice.inference.results import Results
from dynchoice.inference.summary import wrapped
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import StateSpace, as_floats
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.typing import FloatArray, IntArray, Level

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DIRECTIONS = 200
"""States up to which every payoff of the anchor is free by itself."""


class End(NamedTuple):
    """One end of the interval: value, coefficients ``z``, and how the searches for it went."""

    value: float
    z: FloatArray
    converged: bool
    agree: int


def extreme(
    function: Sensitivity, left: Polytope, starts: Sequence[FloatArray], sign: float
) -> End:
    """Minimise (sign 1) or maximise (sign -1) the outcome from every start (Y,) with SLSQP.

    The outcome is scaled to a slope of one util at the start: the first step is then of the size
    of the problem, which the method's unit Hessian takes for granted.
    """
    from scipy.optimize import Bounds as Box
    from scipy.optimize import LinearConstraint, minimize

    def target(y: FloatArray, scale: float) -> tuple[float, FloatArray]:
        value, gradient = function(left.origin + left.basis @ y)
        return sign * scale * value, sign * scale * (gradient @ left.basis)

    options: dict[str, Any] = {"bounds": Box(left.box[:, 0], left.box[:, 1])}
    if len(left.rows):
        options["constraints"] = [LinearConstraint(left.rows, left.low, left.high)]
    options |= {"jac": True, "method": "SLSQP", "options": {"ftol": 1e-10, "maxiter": 500}}
    ends = []
    for start in starts:
        failures, converged, y = function.failures, True, start
        value, slope = target(y, 1.0)
        if len(y):
            scale = 1 / max(float(np.abs(slope).max()), 1e-8)
            search = minimize(target, y, (scale,), **options)
            y, converged = np.clip(search.x, left.box[:, 0], left.box[:, 1]), bool(search.success)
            value = target(y, 1.0)[0]
        if left.miss(y) > 10 * FEASIBLE:  # the search left the restrictions: it found nothing
            y, converged, value = start, False, target(start, 1.0)[0]
        ends.append((value, converged and function.failures == failures, y))
    value, converged, y = min(ends, key=lambda end: end[0])
    agree = sum(end[0] <= value + 1e-6 * (1 + abs(value)) for end in ends)
    return End(sign * value, left.origin + left.basis @ y, converged, agree)


@dataclass(frozen=True, eq=False, kw_only=True)
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
    function: Sensitivity,
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
    function : Sensitivity
        The outcome of ``z``.
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
    B = function.B
    others = {r.name: [x for x in restrictions if x is not r] for r in restrictions}
    left = polytope(restrictions, B, maintained)
    if left is None:
        guilty = [n for n, rest in others.items() if polytope(rest, B, maintained) is not None]
        raise SpecificationError(
            "no payoff of the normalised choice along the directions satisfies the restrictions"
            + (f"; without {first_few([repr(n) for n in guilty])} there is one" if guilty else "")
        )
    rng = np.random.default_rng(seed)
    points = start_points(left, function.matters, [np.zeros(B.shape[1])], starts, rng)
    if points is None:
        raise SpecificationError(
            f"{len(function.matters):,} directions of the normalised choice's payoffs matter and"
            " the restrictions do not bound all of them: add Restriction.within(states, low, high)"
        )
    low, high = (extreme(function, left, points, sign) for sign in (1.0, -1.0))
    without = {}
    for name, rest in others.items():
        wider, without[name] = polytope(rest, B, maintained) or left, (np.nan, np.nan)
        more = start_points(wider, function.matters, [low.z, high.z], 2 + starts, rng)
        if more is not None:
            # the narrower interval's ends are allowed here too, so this one holds them
            ends = [extreme(function, wider, more, sign).value for sign in (1.0, -1.0)]
            without[name] = (min(ends[0], low.value), max(ends[1], high.value))
    return Bounds(
        outcome=outcome,
        lower=low.value,
        upper=high.value,
        maintained=function(np.zeros(B.shape[1]))[0],
        lower_at=maintained + B @ low.z,
        upper_at=maintained + B @ high.z,
        converged=low.converged and high.converged,
        agree=(low.agree, high.agree),
        starts=len(points),
        without=without,
        violated=tuple(r.name for r in restrictions if not r.holds(maintained)),
        free=left.basis.shape[1],
        rank=len(function.matters),
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
        gap = np.abs(left.origin + left.basis @ y - z).max(initial=0.0)
        if max(gap, left.miss(y)) <= FEASIBLE:
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
    choice: Level | Sequence[Level] | None = None,
    weights: ArrayLike | None = None,
    starts: int = 20,
    seed: int | None = 0,
    directions: ArrayLike | None = None,
    payoff: MadeOf | None = None,
    state_map: ArrayLike | None = None,
    params: Mapping[str, float] | ArrayLike | None = None,
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
    checks.instance(results, "results", Results, "one fit at a time")
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
        interval = bounds(
            Sensitivity(dynamics, new, u_new, blocks, function, B, **options),
            restrictions,
            dynamics.at_anchor(u),
            starts=starts,
            seed=seed,
            outcome=text,
        )
    _, unknown = map_payoffs(blocks, np.zeros((*u.shape, 0)), dynamics, Dynamics.of_model(new))
    return replace(interval, held=int(unknown.sum()))


def _outcome(
    results: Results,
    new: DDC,
    outcome: str | Outcome,
    choice: Level | Sequence[Level] | None,
    w: FloatArray,
    origin: IntArray,
) -> tuple[Outcome, str, dict[str, Any]]:
    """Return the outcome, its name, and the options of :class:`Sensitivity` that go with it."""
    if callable(outcome):
        return outcome, getattr(outcome, "__name__", "the outcome"), {}
    if outcome == "welfare":
        if (origin[w > 0] < 0).any():
            raise SpecificationError("welfare is a change: weights must be zero in new states")
        S = results.model.states.size
        before = np.bincount(origin[w > 0], weights=w[w > 0], minlength=S)
        welfare = before, results.solution.V
        return mean_value(w), "the mean change of value", {"welfare": welfare}
    if outcome != "take-up":
        raise SpecificationError(
            f"outcome {outcome!r} is unknown: pass 'take-up', 'welfare' or a function"
        )
    listed = list(choice) if isinstance(choice, list | tuple) else [choice]
    if choice is None:
        listed = [c for c in new.choices if c != results.model.choices[0]]
    checks.known(listed, new.choices, "choice")
    text = f"the mean probability of {first_few(listed)}"
    return share_of(w, [new.choices.index(c) for c in listed]), text, {"shares_only": True}
