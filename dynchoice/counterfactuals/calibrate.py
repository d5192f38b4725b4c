"""Calibration: parameters that reproduce public aggregate moments, where no panel exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.accounts import member_shares, rates
from dynchoice.counterfactuals.population import require_chains
from dynchoice.counterfactuals.steady_state import Stationary
from dynchoice.errors import SpecificationError, first_few
from dynchoice.membership.membership import Membership
from dynchoice.typing import FloatArray, Progress

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

MET = 1e-6
"""Weighted gap up to which a moment is met."""
SHARES = ("penetration", "trial conversion", "renewal rate", "outside", "joins", "quits")
FRACTIONS = ("share ", "choosing ", "paid: ", "in trial: ", "renewal rate")
"""Measures that are fractions, and how others begin."""
Place: TypeAlias = tuple[str | None, str]
"""Where a free parameter stands: its type (None: common to all) and its name."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A programme whose free parameters were fitted to moments.

    Attributes
    ----------
    club : Membership
        With the fitted parameters.
    moments : pandas.DataFrame
        moment, target, model, gap.
    params : pandas.Series
        The free parameters.
    sensitivity : pandas.DataFrame
        ``-(J'WJ)^{-1} J'W``, parameters by moments: how each parameter moves when a moment is off
        by one (Andrews, Gentzkow and Shapiro 2017).
    converged : bool
    message : str
        Says so where there are fewer moments than parameters, or the moments cannot be met.
    """

    club: Membership
    moments: pd.DataFrame
    params: pd.Series
    sensitivity: pd.DataFrame
    converged: bool
    message: str

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT CONVERGED"
        return (
            f"Calibration ({state}: {self.message})\n\n{self.moments.to_string(index=False)}\n\n"
            f"{self.params.to_string()}"
        )

    __repr__ = __str__


def aggregate(club: Membership) -> dict[str, float]:
    """Return measures of the programme's steady state, types by their shares.

    Rates are ratios of sums over types, money is per customer and period.
    """
    kinds: list[tuple[float, str | None]] = [(t.share, k) for k, t in club.types.items()]
    total: dict[str, float] = {}
    for share, kind in kinds or [(1.0, None)]:
        programme = club if kind is None else club.of_type(kind)
        for name, value in Stationary(programme.model(), programme.theta()).measures.items():
            total[name] = total.get(name, 0.0) + share * value
    ratios = rates(total) | member_shares(total)  # sums of the types' own would mean nothing
    return total | {name: float(value) for name, value in ratios.items()}


def calibrate(
    club: Membership,
    moments: Mapping[str, float],
    free: Sequence[str],
    *,
    weights: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    tol: float = 1e-10,
    maxiter: int = 100,
    progress: Progress | None = None,
) -> Calibration:
    """Fit chosen parameters of a programme to aggregate moments of its steady state.

    Parameters
    ----------
    club : Membership
        Chains given, other parameters in ``params``; its values are where the search starts.
    moments : mapping
        Measure -> target: ``penetration``, ``trial conversion``, ``renewal rate``, ``renewal rate
        y0``, ``share of members: PLAN``, ``revenue`` ... (those of ``forecast().long_run``).
    free : sequence of str
        Parameters to fit, common to all types; ``TYPE: parameter`` for one of a type's own, and
        ``TYPE: scale``.
    weights : mapping, optional
        Moment -> weight. Default: one over the squared target.
    bounds : mapping, optional
        Parameter -> (low, high).
    tol : float
        Relative tolerance of the search.

    Returns
    -------
    Calibration

    Raises
    ------
    SpecificationError
        Unknown parameters or moments.
    """
    from scipy.optimize import least_squares

    checks.instance(club, "club", Membership)
    for what, options in (("moments", moments), ("weights", weights), ("bounds", bounds)):
        if options is not None:
            checks.mapping(options, what)
    require_chains(club)
    free = [str(name) for name in checks.items(free, "free")]
    places = [_place(club, name) for name in free]
    start = np.array([_read(club, place) for place in places])
    target = _targets(moments, aggregate(club))
    scale = _scales(target, weights or {})
    low, high = _limits(bounds or {}, free, start)
    solutions = 0

    def model_moments(x: FloatArray) -> FloatArray:
        """Return the moments at parameters, and report one more solution."""
        nonlocal solutions
        solutions += 1
        if progress is not None:
            progress(solutions, maxiter * (len(free) + 1), "calibrating")
        values = aggregate(_write(club, places, x))
        return np.array([values[name] for name in moments])

    goal = np.array(list(target.values()))
    fit = least_squares(
        lambda x: scale * (model_moments(x) - goal),
        np.clip(start, low + 1e-12, high - 1e-12),
        bounds=(low, high),
        x_scale=np.maximum(np.abs(start), 0.1),
        xtol=tol,
        ftol=tol,
        gtol=tol,
        max_nfev=maxiter,
        diff_step=1e-6,
    )
    return _report(_write(club, places, fit.x), target, free, fit, scale)


def _targets(moments: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    """Return the targets as numbers; raise for what is no moment, and for per cents."""
    checks.known(moments, known, "moment")
    if not moments:
        raise SpecificationError("calibrate() needs targets in moments=")
    target = {name: checks.number(v, f"moment {name!r}") for name, v in moments.items()}
    for name, value in target.items():
        if (name in SHARES or name.startswith(FRACTIONS)) and not 0 <= value <= 1:
            raise SpecificationError(
                f"moment {name!r} is {value:g}: shares are fractions (0.4 for 40 %)"
            )
    return target


def _scales(target: Mapping[str, float], weights: Mapping[str, float]) -> FloatArray:
    """Return what gaps are multiplied by: roots of weights, by default one over the target."""
    checks.known(weights, target, "weights: moment")
    numbers = {name: checks.number(v, f"weight of {name!r}", 0) for name, v in weights.items()}
    return np.array(
        [
            np.sqrt(numbers[name]) if name in numbers else 1 / max(abs(value), 1e-12)
            for name, value in target.items()
        ]
    )


def _limits(
    bounds: Mapping[str, tuple[float, float]], free: Sequence[str], start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return lower and upper limits of the free parameters, infinite where there are none."""
    checks.known(bounds, free, "bounds: free parameter")
    low, high = np.full(len(free), -np.inf), np.full(len(free), np.inf)
    for i, name in enumerate(free):
        if name not in bounds:
            continue
        pair = bounds[name]
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise SpecificationError(f"bounds of {name!r}: (low, high), got {pair!r}")
        low[i], high[i] = (
            open_end if x is None else checks.number(x, f"bounds of {name!r}", infinite=True)
            for x, open_end in zip(pair, (-np.inf, np.inf), strict=True)
        )
        if not low[i] <= start[i] <= high[i] or low[i] == high[i]:
            raise SpecificationError(
                f"bounds of {name!r}: ({low[i]:g}, {high[i]:g}) must rise and hold where the"
                f" search starts ({start[i]:g})"
            )
    return low, high


def _report(
    club: Membership,
    target: Mapping[str, float],
    free: Sequence[str],
    fit: OptimizeResult,
    scale: FloatArray,
) -> Calibration:
    """Return the calibration, and say what the moments do not settle."""
    goal = np.array(list(target.values()))
    J = fit.jac / scale[:, None]
    W = np.diag(scale**2)
    values = np.linalg.svd(fit.jac, compute_uv=False)
    rank = int((values > 1e-8 * max(float(values.max(initial=0.0)), 1e-300)).sum())
    sensitivity = -np.linalg.pinv(J.T @ W @ J) @ J.T @ W
    reached = goal + fit.fun / scale
    gap = float(np.abs(fit.fun).max(initial=0.0))
    message = f"largest weighted gap {gap:.2g}"
    # more moments than parameters are met on balance only
    met = gap <= MET or len(target) > len(free)
    if gap > MET:
        message += ": the moments are not met" + (
            "" if met else ", though there are as many parameters: no values reach them"
        )
    if rank < len(free):
        message += (
            f"; {len(target)} moments tell only {rank} of {len(free)} parameters apart"
            f" ({first_few(list(free))}): fix some, or add moments"
        )
    table = pd.DataFrame(
        {
            "moment": list(target),
            "target": goal,
            "model": reached,
            "gap": reached - goal,
        }
    )
    return Calibration(
        club=club,
        moments=table,
        params=pd.Series(fit.x, index=list(free), name="parameter"),
        sensitivity=pd.DataFrame(sensitivity, index=list(free), columns=list(target)),
        converged=bool(fit.success) and rank == len(free) and met,
        message=message,
    )


def _place(club: Membership, name: str) -> Place:
    """Return where a free parameter stands, given its name (``TYPE: parameter``)."""
    kind, _, parameter = name.rpartition(": ")
    if parameter in club.fixed:
        raise SpecificationError(
            f"free: {parameter!r} is fixed at {club.fixed[parameter]:g}: take it out of fixed="
        )
    if not kind:
        checks.known([name], club.all_names, "free: parameter")
        return None, name
    checks.known([kind], club.types, "free: type")
    if parameter != "scale":
        checks.known([parameter], club.all_names, "free: parameter")
    return kind, parameter


def _read(club: Membership, place: Place) -> float:
    """Return the value of a free parameter."""
    kind, name = place
    if kind is None:
        return float(club.params.get(name, club.fixed.get(name, 0.0)))
    if name == "scale":
        return club.types[kind].scale
    return float(club.types[kind].params.get(name, club.params.get(name, 0.0)))


def _write(club: Membership, places: Sequence[Place], values: FloatArray) -> Membership:
    """Return the programme with other values of its free parameters."""
    params, types = dict(club.params), dict(club.types)
    for (kind, name), value in zip(places, map(float, values), strict=True):
        if kind is None:
            params[name] = value
        elif name == "scale":
            types[kind] = replace(types[kind], scale=value)
        else:
            types[kind] = replace(types[kind], params={**types[kind].params, name: value})
    return replace(club, params=params, types=types)
