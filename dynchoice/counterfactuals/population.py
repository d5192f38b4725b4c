"""Population: the groups of customers that a question is about, and where they stand.

Forecasts, welfare, bundles, elasticities and discoveries all start from the same people: a group
shares a fit (a model at parameters), a segment, a type and a region, and stands somewhere in period
1. Groups come from a panel's last period moved one period on, from an array, from a mixture's
posteriors, or from a programme whose parameters are assumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.engine import Engine, steady_state
from dynchoice.errors import DataError, DataWarning, SpecificationError, first_few, suggest
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import PRICE
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray, Level

Fits: TypeAlias = "Results | MixtureResults | Membership | Mapping[Any, Results]"
"""What has customers: one fit for everyone, one a segment, a mixture, or assumed parameters."""
Start: TypeAlias = "Panel | Counts | FloatArray | Mapping[Any, FloatArray] | str | None"
"""Where they stand: see :func:`dynchoice.forecast`."""
Part: TypeAlias = tuple[Level, FloatArray]
"""A region's customers: choices seen last (S, J), or a distribution over states (S,)."""


class Fitted(Protocol):
    """What a forecast needs of a fit: a model, its parameters, and the data behind them.

    ``value`` (S,) or empty is where solutions start; ``counts`` (S, J) are None where nothing was
    estimated.
    """

    @property
    def model(self) -> DDC:
        """The model, with the laws of motion as estimated."""

    @property
    def theta(self) -> FloatArray:
        """Parameters (K,)."""

    @property
    def value(self) -> FloatArray:
        """Where solutions start (S,), or empty."""

    @property
    def counts(self) -> FloatArray | None:
        """Choices of the data (S, J), or None."""


@dataclass(frozen=True)
class Calibrated:
    """A model at assumed or calibrated parameters: a fit without sampling error."""

    model: DDC
    theta: FloatArray
    share: float = 1.0
    value: FloatArray = field(default_factory=lambda: np.zeros(0))
    counts: FloatArray | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Customers who share a fit, a segment, a type and a region.

    Attributes
    ----------
    fit : Fitted
    segment, kind, region : label
        ``"all"`` where customers are not split so; ``kind`` is the unobserved type.
    mu : FloatArray, shape (S,)
        Where they stand in period 1, in customers.
    last : FloatArray, shape (S, J), or None
        Their choices of the period before, where they were seen.
    mass : float
        How many they were when they were last seen: what shares are of.
    """

    fit: Fitted
    segment: Level
    kind: Level
    region: Level
    mu: FloatArray
    last: FloatArray | None
    mass: float

    @property
    def model(self) -> DDC:
        """The model of their fit."""
        return self.fit.model

    @property
    def theta(self) -> FloatArray:
        """The parameters of their fit, (K,)."""
        return self.fit.theta

    @property
    def customers(self) -> float:
        """How many stand somewhere in period 1: ``mass`` but for rounding."""
        return float(self.mu.sum())

    @property
    def alpha(self) -> float:
        """Utils per unit of money; NaN where there is no price parameter above 0."""
        return price_of_utility(self.model, self.theta)


@dataclass(frozen=True)
class Population:
    """Groups of customers; those of one fit stand together.

    ``period`` is the number and kind of period 1, where the data say which it is.
    """

    groups: tuple[Group, ...]
    period: tuple[int, str] | None = None

    def by_fit(self) -> list[list[Group]]:
        """Return the groups of each distinct fit: what is drawn of a fit is drawn once for all."""
        parts: dict[int, list[Group]] = {}
        for group in self.groups:
            parts.setdefault(id(group.fit), []).append(group)
        return list(parts.values())

    def by_segment(self) -> dict[str, list[Group]]:
        """Return the groups of each segment."""
        parts: dict[str, list[Group]] = {}
        for group in self.groups:
            parts.setdefault(str(group.segment), []).append(group)
        return parts


def price_of_utility(model: DDC, theta: FloatArray) -> float:
    """Return the price parameter (utils per unit of money), NaN where there is none above 0."""
    value = float("nan")
    if PRICE in model.names:
        value = float(theta[model.names.index(PRICE)])
    elif model.membership is not None:
        value = float(model.membership.fixed.get(PRICE, float("nan")))
    return value if value > 0 else float("nan")


def population(results: Fits, start: Start, regional: bool = False) -> Population:
    """Return the groups of customers that a forecast starts from.

    Parameters
    ----------
    results : Results, MixtureResults, Membership, or mapping of segment -> Results
    start : as for :func:`dynchoice.forecast`
    regional : bool
        Split the groups by region too, which needs a Panel or Counts with regions.

    Raises
    ------
    SpecificationError, DataError
        Fits and starts that do not belong together; a segment without members.
    """
    if isinstance(results, Membership):
        return Population(tuple(_groups_of_programme(results, start, regional)))
    if isinstance(results, MixtureResults):
        fits, parts, period = _types_of_mixture(results, start, regional)
        return Population(tuple(_groups(fits, parts, typed=True)), period)
    _refuse_other_fits(results)
    parts, first = _starts(results, start, regional)
    fits = _fits_by_segment(results, parts)
    return Population(tuple(_groups(fits, parts, typed=False)), first)


def _refuse_other_fits(results: Results | Mapping[Level, Results]) -> None:
    """Raise unless there are fits, each with a model that can be solved."""
    if isinstance(results, Mapping) and not results:
        raise SpecificationError("there is no fit to forecast with: the mapping is empty")
    for fit in results.values() if isinstance(results, Mapping) else [results]:
        if not isinstance(fit, Results):
            raise SpecificationError(
                f"forecast() takes Results, MixtureResults, a Membership, or a mapping of segment"
                f" to Results; got {type(fit).__name__}"
            )
        fit.require_model("a forecast")


def _fits_by_segment(
    results: Results | Mapping[Level, Results], starts: Mapping[Level, list[Part]]
) -> dict[Level, Results]:
    """Return the fit of each segment that has members to start from."""
    if isinstance(results, Results):
        return dict.fromkeys(starts, results)
    fits = dict(results)
    missing = [segment for segment in fits if segment not in starts]
    if missing:
        raise SpecificationError(
            f"there is a fit of segment {missing[0]!r} but no member of it to start from."
            f"{suggest(missing[0], starts)}"
        )
    left_out = [segment for segment in starts if segment not in fits]
    if left_out:
        warnings.warn(
            f"no fit for segment(s) {first_few(left_out)}: their members are not in the forecast",
            DataWarning,
            stacklevel=4,
        )
    return fits


def _groups(
    fits: Mapping[Level, Results], starts: Mapping[Level, list[Part]], typed: bool
) -> list[Group]:
    """Return the groups of fits by segment (or by type), moved to period 1."""
    if len(fits) > 1 and ALL in map(str, fits):
        raise SpecificationError(f"a segment may not be named {ALL!r}: it stands for all together")
    if len({fit.model.choices for fit in fits.values()}) > 1:
        raise SpecificationError("the fits of the segments have different choices")
    groups: list[Group] = []
    for label, fit in fits.items():
        if not sum(float(part.sum()) for _, part in starts[label]) > 0:
            raise DataError(f"segment {label!r} has no member in the last period to start from")
        if fit.model.horizon is not None:
            raise SpecificationError("forecast() is for infinite horizons")
        for region, part in starts[label]:
            if len(part) != fit.model.states.size:
                raise SpecificationError(
                    f"start of {label!r} is over {len(part)} states, the model has"
                    f" {fit.model.states.size}"
                )
            # choices of the last period move on by one; a distribution is period 1's already
            last = part if part.ndim == 2 else None
            mu = part if last is None else fit.model.transitions.push(np.ascontiguousarray(part))
            groups.append(
                Group(
                    fit=fit,
                    segment=label,
                    kind=label if typed else ALL,
                    region=region,
                    mu=mu,
                    last=last,
                    mass=float(part.sum()),
                )
            )
    return groups


def _starts(
    results: Results | Mapping[Level, Results], start: Start, regional: bool
) -> tuple[dict[Level, list[Part]], tuple[int, str] | None]:
    """Return each segment's customers by region, and period 1 where the data say which it is."""
    counts = start.counts if isinstance(start, Panel) else start
    if isinstance(counts, Counts):
        first = (counts.last_period + 1, counts.period_kind)
        if regional:
            return choices_by_region(counts), first
        last = counts.at_period()
        return {label: [(ALL, last[m])] for m, label in enumerate(counts.segments)}, first
    if regional:
        raise SpecificationError("by region needs start= a Panel (or Counts) with regions")
    if start is None or isinstance(start, str):
        if start is None:
            raise SpecificationError("start= is needed: the Panel, an array, or 'steady state'")
        if start != "steady state":
            raise SpecificationError(f"start={start!r}: a Panel, an array or 'steady state'")
        fits = results if isinstance(results, Mapping) else {ALL: results}
        return {label: [(ALL, baseline_steady_state(fit))] for label, fit in fits.items()}, None
    if hasattr(start, "columns"):
        raise SpecificationError(
            "start= is a table: pass the Panel, its Counts, or an array over states"
            " (np.bincount(states.codes(table), minlength=states.size))"
        )
    arrays = start if isinstance(start, Mapping) else {ALL: start}
    parts: dict[Level, list[Part]] = {}
    for label, weights in arrays.items():
        mu = as_floats(weights, f"start of {label!r}")
        if mu.ndim != 1 or not (mu >= 0).all() or not np.isfinite(mu).all():
            raise SpecificationError(
                f"start of {label!r} must be a non-negative vector over states, got {mu.shape}"
            )
        parts[label] = [(ALL, mu)]
    return parts, None


def choices_by_region(counts: Counts) -> dict[Level, list[Part]]:
    """Return last-period choices (S, J) by segment and region.

    Raises
    ------
    SpecificationError
        The counts have no regions.
    """
    if counts.regions is None:
        counts.by_region()  # raises, and says what to do
    cells = counts.regions
    assert cells is not None
    S, J = counts.states.size, len(counts.choices)
    parts: dict[Level, list[Part]] = {}
    for m, label in enumerate(counts.segments):
        last = (cells.cells[:, 0] == m) & (cells.cells[:, 2] == counts.last_period)
        parts[label] = []
        for r, region in enumerate(cells.labels):
            rows = last & (cells.cells[:, 1] == r)
            if rows.any():
                n = np.zeros((S, J))
                np.add.at(n, (cells.cells[rows, 3], cells.cells[rows, 4]), cells.n[rows])
                parts[label].append((region, n))
    return parts


def _types_of_mixture(
    results: MixtureResults, start: Start, regional: bool
) -> tuple[dict[Level, Results], dict[Level, list[Part]], tuple[int, str]]:
    """Return the types' fits, their members by state and region, and period 1.

    Members of the panel's last period count towards each type with their posterior probability and
    move on by that type's law of motion.

    Raises
    ------
    SpecificationError
        No Panel: its Counts do not say which member stands where.
    DataError
        A panel with other members than the fit's.
    """
    if not isinstance(start, Panel):
        raise SpecificationError(
            "a mixture's forecast starts from the Panel of the fit (who stands where depends on the"
            " type), or forecast one type: results.type(q)"
        )
    members = np.sort(start.rows.select("member").distinct().execute()["member"].to_numpy())
    if len(members) != len(results.posteriors):
        raise DataError(
            f"the panel has {len(members):,} members, the fit {len(results.posteriors):,}: pass"
            " the panel of the fit"
        )
    if regional and not start.regions:
        raise SpecificationError("the panel has no regions: name their column (region=)")
    last = _last_rows(start, regional)
    row = np.searchsorted(members, last["member"].to_numpy())
    weight = last["weight"].to_numpy(dtype=np.float64)
    fits: dict[Level, Results] = {}
    starts: dict[Level, list[Part]] = {}
    for q, fit in enumerate(results.by_type):
        fits[f"type {q}"], starts[f"type {q}"] = fit, []
        for region in start.regions if regional else (ALL,):
            inside = (last["region"] == region).to_numpy() if regional else np.ones(len(row), bool)
            mass = np.zeros(fit.model.shape[:2])
            cell = last["state"].to_numpy()[inside], last["choice"].to_numpy()[inside]
            np.add.at(mass, cell, weight[inside] * results.posteriors[row[inside], q])
            if not regional or inside.any():
                starts[f"type {q}"].append((region, mass))
    counts = start.counts
    return fits, starts, (counts.last_period + 1, counts.period_kind)


def _last_rows(panel: Panel, regional: bool) -> pd.DataFrame:
    """Return member, state, choice, weight (and region) of the panel's last period, by member."""
    rows = panel.rows
    columns = ["member", "state", "choice", "weight", *(["region"] if regional else [])]
    table = rows.filter(rows.period == rows.period.max()).select(*columns).execute()
    # a query's rows come in any order, and the last bits of sums follow it
    return table.sort_values("member")


def require_chains(club: Membership) -> None:
    """Raise where a benefit has no chain of use, so that nothing says how members use it."""
    without = [b.name for b in club.benefits if not b.known]
    if without:
        raise SpecificationError(
            f"benefit {without[0]!r} has no chain: give gain= and stay=, or fit the model"
        )


def calibrated_fits(club: Membership) -> dict[tuple[str, str], Calibrated]:
    """Return (segment, type) -> model at the programme's own parameters, types by their share.

    Raises
    ------
    SpecificationError
        A benefit has no chain of use: neither assumed nor estimated.
    """
    fits: dict[tuple[str, str], Calibrated] = {}
    for segment in club.segments or (ALL,):
        programme = club.segment(segment) if club.segments else club
        require_chains(programme)
        model = programme.model()
        for kind, spec in programme.types.items():
            of_type = programme.of_type(kind)
            # types that differ in estimated parameters only share the model: it is solved together
            same_model = of_type.fixed == programme.fixed
            fits[segment, kind] = Calibrated(
                model if same_model else of_type.model(), of_type.theta(), spec.share
            )
        if not programme.types:
            fits[segment, ALL] = Calibrated(model, programme.theta())
    return fits


def _groups_of_programme(club: Membership, start: Start, regional: bool) -> list[Group]:
    """Return the groups of a programme's own segments and types, at its own parameters."""
    if regional:
        raise SpecificationError("a programme without a panel has no regions")
    groups = []
    for (segment, kind), fit in calibrated_fits(club).items():
        if start is None or (isinstance(start, str) and start == "steady state"):
            mu = baseline_steady_state(fit)
        elif isinstance(start, str) and start == "newcomers":
            assert fit.model.membership is not None
            mu = fit.model.membership.newcomers()
        else:
            weights = _start_of(start, segment, kind) if isinstance(start, Mapping) else start
            mu = as_floats(weights, "start")
            if mu.shape != (fit.model.states.size,) or not (mu >= 0).all() or not mu.sum() > 0:
                raise SpecificationError(
                    f"start must be a non-negative vector over {fit.model.states.size} states"
                )
        groups.append(
            Group(
                fit=fit,
                segment=segment,
                kind=kind,
                region=ALL,
                mu=fit.share * mu,
                last=None,
                mass=fit.share * float(mu.sum()),
            )
        )
    return groups


def _start_of(start: Mapping[Level, FloatArray], segment: str, kind: str) -> FloatArray:
    """Return the start of a (segment, type): named by both, by the type or by the segment."""
    for name in ((segment, kind), kind, segment):
        if name in start:
            return start[name]
    raise SpecificationError(
        f"start has nothing for {segment!r}, type {kind!r}; it names {first_few(list(start))}"
    )


def baseline_steady_state(fit: Fitted) -> FloatArray:
    """Return the stationary distribution (S,) of a model at its parameters.

    A membership's is in its first offer (the other menus and bundles are scenarios); of another
    model, every state counts alike at the start.
    """
    model = fit.model
    engine = Engine(model, fit.theta)
    club = model.membership
    start = np.full(model.states.size, 1 / model.states.size) if club is None else club.newcomers()
    mu, _ = steady_state(engine, engine.base, engine.blocks.blocked(start))
    return engine.blocks.by_state(mu)
