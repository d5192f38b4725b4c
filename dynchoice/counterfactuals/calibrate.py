"""Calibration: parameters that reproduce public aggregate moments, where no panel exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.accounts import rates
from dynchoice.counterfactuals.arguments import limit, listed, number
from dynchoice.counterfactuals.steady_state import Stationary
from dynchoice.errors import SpecificationError, first_few, suggest
from dynchoice.membership.membership import Membership
from dynchoice.typing import FloatArray, Progress

MET = 1e-6
"""Weighted gap up to which a moment is met."""


@dataclass(frozen=True)
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
        own = club if kind is None else club.of_type(kind)
        for name, value in Stationary(own.model(), own.theta()).measures.items():
            total[name] = total.get(name, 0.0) + share * value
    for name, (top, bottom) in rates(tuple(total)).items():
        total[name] = total[top] / total[bottom] if total[bottom] > 0 else float("nan")
    for p in club.plans:
        if f"share of members: {p.name}" in total:
            total[f"share of members: {p.name}"] = total[f"paid: {p.name}"] / total["penetration"]
    return total


SHARES = ("penetration", "trial conversion", "renewal rate", "outside", "joins", "quits")
FRACTIONS = ("share ", "choosing ", "paid: ", "in trial: ", "renewal rate")
"""Measures that are fractions, and how others begin."""


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

    if not hasattr(club, "benefits"):
        raise SpecificationError(f"calibrate() takes a Membership, got {type(club).__name__}")
    unknown_chains = [b.name for b in club.benefits if not b.known]
    if unknown_chains:
        raise SpecificationError(
            f"benefit {unknown_chains[0]!r} has no chain: give gain= and stay=, or fit the model"
        )
    free = [str(name) for name in listed(free, "free")]
    for what, given in (("moments", moments), ("weights", weights), ("bounds", bounds)):
        if given is not None and not isinstance(given, Mapping):
            raise SpecificationError(f"{what} must be a mapping, got {type(given).__name__}")
    place = [_place(club, name) for name in free]
    start = np.array([_read(club, p) for p in place])
    first = aggregate(club)
    unknown = [m for m in moments if m not in first]
    if unknown:
        raise SpecificationError(
            f"no moment {unknown[0]!r}.{suggest(unknown[0], first)} Moments: {', '.join(first)}"
        )
    if not len(place) or not moments:
        raise SpecificationError("calibrate() needs parameters in free= and targets in moments=")
    target = np.array([number(v, f"moment {k!r}") for k, v in moments.items()])
    for k, t in zip(moments, target, strict=True):
        if (k in SHARES or k.startswith(FRACTIONS)) and not 0 <= t <= 1:
            raise SpecificationError(f"moment {k!r} is {t:g}: shares are fractions (0.4 for 40 %)")
    own = {k: number(v, f"weight of {k!r}") for k, v in (weights or {}).items()}
    if any(v < 0 for v in own.values()):
        raise SpecificationError(f"weights must be at least 0, got {own}")
    strange = [k for k in own if k not in moments]
    if strange:
        raise SpecificationError(
            f"weights: {strange[0]!r} is no moment.{suggest(strange[0], moments)}"
        )
    scale = np.array(
        [
            np.sqrt(own[k]) if k in own else 1 / max(abs(t), 1e-12)
            for k, t in zip(moments, target, strict=True)
        ]
    )
    low, high = np.full(len(free), -np.inf), np.full(len(free), np.inf)
    strange = [k for k in bounds or {} if k not in free]
    if strange:
        raise SpecificationError(
            f"bounds: {strange[0]!r} is not fitted.{suggest(strange[0], free)} Fitted:"
            f" {', '.join(free)}"
        )
    for i, name in enumerate(free):
        if bounds and name in bounds:
            pair = bounds[name]
            if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise SpecificationError(f"bounds of {name!r}: (low, high), got {pair!r}")
            low[i], high[i] = (
                side if x is None else limit(x, f"bounds of {name!r}")
                for x, side in zip(pair, (-np.inf, np.inf), strict=True)
            )
            if not low[i] <= start[i] <= high[i] or low[i] == high[i]:
                raise SpecificationError(
                    f"bounds of {name!r}: ({low[i]:g}, {high[i]:g}) must rise and hold where the"
                    f" search starts ({start[i]:g})"
                )
    calls = [0]

    def model_moments(x: FloatArray) -> FloatArray:
        calls[0] += 1
        if progress is not None:
            progress(calls[0], maxiter * (len(free) + 1), "calibrating")
        found = aggregate(_written(club, place, x))
        return np.array([found[m] for m in moments])

    fit = least_squares(
        lambda x: scale * (model_moments(x) - target),
        np.clip(start, low + 1e-12, high - 1e-12),
        bounds=(low, high),
        x_scale=np.maximum(np.abs(start), 0.1),
        xtol=tol,
        ftol=tol,
        gtol=tol,
        max_nfev=maxiter,
        diff_step=1e-6,
    )
    fitted = _written(club, place, fit.x)
    return _report(fitted, moments, free, fit, scale, target)


def _report(
    club: Membership,
    moments: Mapping[str, float],
    free: Sequence[str],
    fit: Any,
    scale: FloatArray,
    target: FloatArray,
) -> Calibration:
    J = fit.jac / scale[:, None]
    W = np.diag(scale**2)
    values = np.linalg.svd(fit.jac, compute_uv=False)
    rank = int((values > 1e-8 * max(float(values.max(initial=0.0)), 1e-300)).sum())
    lam = -np.linalg.pinv(J.T @ W @ J) @ J.T @ W
    reached = target + fit.fun / scale
    gap = float(np.abs(fit.fun).max(initial=0.0))
    message = f"largest weighted gap {gap:.2g}"
    met = gap <= MET or len(moments) > len(free)
    if gap > MET:
        message += ": the moments are not met" + (
            "" if met else ", though there are as many parameters: no values reach them"
        )
    if rank < len(free):
        message += (
            f"; {len(moments)} moments tell only {rank} of {len(free)} parameters apart"
            f" ({first_few(list(free))}): fix some, or add moments"
        )
    table = pd.DataFrame(
        {
            "moment": list(moments),
            "target": target,
            "model": reached,
            "gap": reached - target,
        }
    )
    return Calibration(
        club,
        table,
        pd.Series(fit.x, index=list(free), name="parameter"),
        pd.DataFrame(lam, index=list(free), columns=list(moments)),
        bool(fit.success) and rank == len(free) and met,
        message,
    )


def _place(club: Membership, name: str) -> tuple[str | None, str]:
    """Return (type or None, parameter) of a free parameter's name."""
    kind, _, parameter = name.rpartition(": ")
    if parameter in club.fixed:
        raise SpecificationError(
            f"free: {parameter!r} is fixed at {club.fixed[parameter]:g}: take it out of fixed="
        )
    if kind:
        if kind not in club.types:
            raise SpecificationError(f"free: no type {kind!r}.{suggest(kind, club.types)}")
        if parameter != "scale" and parameter not in club.all_names:
            raise SpecificationError(
                f"free: no parameter {parameter!r}.{suggest(parameter, club.all_names)}"
            )
        return kind, parameter
    if name not in club.all_names:
        raise SpecificationError(
            f"free: no parameter {name!r}.{suggest(name, club.all_names)} Parameters:"
            f" {', '.join(club.all_names)}"
        )
    return None, name


def _read(club: Membership, place: tuple[str | None, str]) -> float:
    kind, name = place
    if kind is None:
        return float(club.params.get(name, club.fixed.get(name, 0.0)))
    own = club.types[kind]
    if name == "scale":
        return own.scale
    return float(own.params.get(name, club.params.get(name, 0.0)))


def _written(
    club: Membership, places: Sequence[tuple[str | None, str]], values: FloatArray
) -> Membership:
    params, types = dict(club.params), dict(club.types)
    for (kind, name), value in zip(places, map(float, values), strict=True):
        if kind is None:
            params[name] = value
        elif name == "scale":
            types[kind] = replace(types[kind], scale=value)
        else:
            types[kind] = replace(types[kind], params={**types[kind].params, name: value})
    return replace(club, params=params, types=types)
