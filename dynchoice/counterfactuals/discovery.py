"""Discovery: what it is worth in the long run that a member starts to use a benefit.

The bridge between the structural model and callouts, both ways. :func:`discovery_values` turns a
fit into rewards for :class:`dynchoice.Callouts`; the lift in engagement that a callout policy
brings (:func:`callout_lift`) makes a :class:`dynchoice.Scenario` for :func:`dynchoice.forecast`.

A callout seen in state ``s`` acts before next period's use of benefit ``k`` is drawn. If the member
then uses it who would have used it with probability ``p0_j(s)``, the gain is

    sum_j P_j(s) (1 - p0_j(s)) beta E[V(x' with k used) - V(x' with k not used) | s, j],

or the same with expected membership months in place of ``beta V``. Own formula; the tests hold it
to a dense enumeration of the states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.draws import Draw, draw_estimates, scenario_tables
from dynchoice.counterfactuals.population import (
    Fits,
    Group,
    Start,
    population,
    price_of_utility,
)
from dynchoice.errors import ConvergenceError, SpecificationError, suggest
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, Markov
from dynchoice.solvers.solve import solve
from dynchoice.typing import FloatArray, IntArray, Level

FAINT = 1e-9
"""Weight of a state where nobody stands, against all members: it decides in empty cells only."""
TAKEN = ("benefit", "value", "members", "std_error")
OUTCOMES = ("value", "money", "months")
OUTSIDE = ("none", "outside", "no membership")
"""Usual labels of the choice that is no membership."""
By: TypeAlias = "Mapping[str, str | Callable[[pd.DataFrame], Any]] | Sequence[str]"
"""What values are told apart by: see :func:`discovery_values`."""


def discovery_values(
    results: Fits,
    benefits: Sequence[str] | None = None,
    *,
    by: By = (),
    outcome: str = "value",
    horizon: int = 24,
    outside: Level | None = None,
    start: Start = None,
    draws: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what it is worth that a member discovers each benefit.

    Parameters
    ----------
    results : Results, MixtureResults or mapping of segment to Results
    benefits : sequence of str, optional
        Axes of use with two or more levels; a discovery leads from the lowest to the next. Default:
        all axes with Markov laws (that are not certain).
    by : sequence of str or mapping, optional
        What the values are told apart by: names of state axes, or new column -> axis, or function
        of the table of states. Others are averaged over the members there are (alike, where none
        are).
    outcome : str
        ``"value"``: utils of ex-ante value; ``"money"``: that over the price parameter;
        ``"months"``: expected periods of membership within ``horizon``.
    horizon : int
        Periods that ``"months"`` looks ahead.
    outside : label, optional
        The choice that is no membership, for ``"months"``. Default: ``"none"``.
    start : Panel, Counts, array (S,) or "steady state"
        Where members stand, as for :func:`dynchoice.forecast`.
    draws : int
        Draws of the estimates for standard errors (Results or a mapping of them).
    seed : int

    Returns
    -------
    pandas.DataFrame
        Columns of ``by``, ``benefit``, ``value``, ``members`` (how many the mean is over) and, with
        draws, ``std_error``.

    Raises
    ------
    SpecificationError
        An axis that is no benefit, no factored model, an unknown outcome.
    ConvergenceError
        The model could not be solved.
    """
    checks.one_of(outcome, "outcome", OUTCOMES)
    checks.whole(horizon, "horizon", 1)
    if checks.whole(draws, "draws") == 1:
        raise SpecificationError("draws=1: 0, or at least 2 for standard errors")
    groups = population(results, start).groups
    if draws and isinstance(results, MixtureResults):
        raise SpecificationError(
            "standard errors are for Results, or a mapping of segments to them"
        )
    if outcome == "money" and not all(np.isfinite(g.alpha) and g.alpha > 0 for g in groups):
        raise SpecificationError(
            "outcome='money' needs a parameter of price, above 0: take 'value' (utils) or 'months'"
        )
    names = benefit_axes(groups[0].model, benefits)
    for group in groups[1:]:
        benefit_axes(group.model, names)  # each fit must have them all
    cells, labels = common_cells(groups, by)
    goal = Goal(outcome, int(horizon), outside)
    n = len(labels)
    mass = np.zeros(n)
    for group, cell in zip(groups, cells, strict=True):
        mass += np.bincount(cell, group.mu, n)
    value = average_by_cell(
        groups, cells, n, [discoveries(g.model, g.theta, names, goal) for g in groups]
    )
    out = pd.concat(
        [
            labels.assign(benefit=name, value=value[:, k], members=mass)
            for k, name in enumerate(names)
        ],
        ignore_index=True,
    )
    if draws:
        spread = draw_values(groups, names, goal, cells, n, int(draws), seed)
        out["std_error"] = spread.std(axis=0, ddof=1).ravel()
    return out


@dataclass(frozen=True)
class Goal:
    """What counts: see :func:`discovery_values`."""

    outcome: str
    horizon: int
    outside: Level | None


def benefit_axes(model: DDC, benefits: Sequence[str] | None) -> list[str]:
    """Return the axes of use: those named, or all."""
    F = model.transitions
    if not isinstance(F, Factored):
        raise SpecificationError("discoveries need a factored model, with an axis for each benefit")
    axes = [law.name for law in F.bound if is_use(law)]
    if benefits is None:
        if not axes:
            raise SpecificationError("no axis of the model has a Markov law: name the benefits")
        return axes
    wanted = [benefits] if isinstance(benefits, str) else list(benefits)
    checks.known(wanted, axes, "benefits: axis with a Markov law of its own")
    return wanted


def is_use(law: BoundLaw) -> bool:
    """Return whether an axis may be one of use: a Markov law of its own that leaves things open."""
    alone = isinstance(law.family, Markov) and len(law.axes) == 1
    return alone and (law.table is None or bool(((law.table > 0) & (law.table < 1)).any()))


def assign_cells(model: DDC, by: By) -> tuple[IntArray, pd.DataFrame]:
    """Return the cell (S,) of each state and the cells' labels."""
    frame = model.states.frame()
    if isinstance(by, str):
        by = [by]
    columns = dict(by) if isinstance(by, Mapping) else {name: name for name in by}
    if not columns:
        return np.zeros(model.states.size, np.int64), pd.DataFrame(index=[0])
    table: dict[str, Any] = {}
    for name, what in columns.items():
        if name in TAKEN:
            raise SpecificationError(f"by: {name!r} is a column of the result: use another name")
        if callable(what):
            values = np.asarray(what(frame), object)
            if values.shape != (len(frame),) or pd.isna(values).any():
                raise SpecificationError(
                    f"by: the function of {name!r} must give a label for each of {len(frame):,}"
                    " states"
                )
            table[name] = pd.Series(values).infer_objects().to_numpy()
        elif what in frame.columns:
            table[name] = frame[what].to_numpy()
        else:
            raise SpecificationError(
                f"by: {what!r} is no axis of the states.{suggest(what, frame.columns)} Axes:"
                f" {', '.join(frame.columns)}; or a function of their table"
            )
    groups = pd.DataFrame(table).groupby(list(columns), sort=False)
    labels = groups.size().reset_index().drop(columns=0)
    return groups.ngroup().to_numpy(np.int64), labels


def discoveries(model: DDC, theta: FloatArray, names: Sequence[str], goal: Goal) -> FloatArray:
    """Return the worth (S, benefits) of a discovery in every state, of one model."""
    solution = solve(model, theta)
    if not solution.converged:
        raise ConvergenceError(f"the model was not solved: {solution.message}")
    P = solution.ccp
    F = model.transitions
    assert isinstance(F, Factored)
    if goal.outcome == "months":
        ahead = months_ahead(model, P, goal)
    else:
        scale = 1 / price_of_utility(model, theta) if goal.outcome == "money" else 1.0
        ahead = model.beta * scale * solution.V
    laws = {law.name: law for law in F.bound}
    out = np.empty((model.states.size, len(names)))
    for k, name in enumerate(names):
        law = laws[name]
        used, unused = at_levels(model, law, ahead)
        gain = F.expect(np.ascontiguousarray(used - unused))
        out[:, k] = (P * (1 - start_probability(F, law)) * gain).sum(axis=1)
    return out


def at_levels(model: DDC, law: BoundLaw, V: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return V (S,) as if the benefit's axis stood on its second level, and on its lowest."""
    axis = law.axes[0]
    grid = V.reshape(model.states.shape)
    out = []
    for level in (1, 0):
        fixed = np.take(grid, [level], axis=axis)
        out.append(np.ascontiguousarray(np.broadcast_to(fixed, grid.shape)).reshape(-1))
    return out[0], out[1]


def start_probability(F: Factored, law: BoundLaw) -> FloatArray:
    """Return the probability (S, J) that the benefit is used next period anyway."""
    assert law.table is not None
    used = 1 - law.table[:, :, :, 0]  # (choices, groups of parents, own level)
    if not law.by_choice:
        used = np.repeat(used, len(F.choices), axis=0)
    return np.ascontiguousarray(used[:, F.group(law), F.own(law)].T)


def months_ahead(model: DDC, P: FloatArray, goal: Goal) -> FloatArray:
    """Return expected periods of membership (S,) within the horizon, from next period on."""
    labels = list(model.choices)
    outside = goal.outside
    if outside is None:
        usual = [c for c in labels if c in OUTSIDE]
        if len(usual) != 1:
            raise SpecificationError("outcome='months': say outside=, the choice of no membership")
        outside = usual[0]
    checks.known([outside], labels, "outside: choice")
    inside = P[:, [j for j, c in enumerate(labels) if c != outside]].sum(axis=1)
    months = np.zeros(model.states.size)
    for _ in range(goal.horizon):
        months = inside + (P * model.transitions.expect(months)).sum(axis=1)
    return months


def draw_values(
    groups: Sequence[Group],
    names: Sequence[str],
    goal: Goal,
    cells: Sequence[IntArray],
    n: int,
    draws: int,
    seed: int,
) -> FloatArray:
    """Return values (draws, benefits, cells) at draws of estimates and laws.

    A fit is drawn once for all groups that share it: what they have in common does not average out.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[int, list[Draw]] = {}
    for group in groups:
        if not isinstance(group.fit, Results):
            raise SpecificationError(
                "standard errors are for Results, or a mapping of segments to them"
            )
        if id(group.fit) not in drawn:
            drawn[id(group.fit)] = draw_estimates(group.fit, draws, rng)
    out = np.zeros((draws, len(names), n))
    for d in range(draws):
        worth = []
        for group in groups:
            draw = drawn[id(group.fit)][d]
            F = group.model.transitions
            assert isinstance(F, Factored)
            tables = scenario_tables(group.model, group.model, draw.tables)
            bound = tuple(
                replace(law, table=tables[law.name]) if law.name in tables else law
                for law in F.bound
            )
            model = group.model.with_parts(transitions=F.with_bound(bound))
            worth.append(discoveries(model, draw.theta, names, goal))
        out[d] = average_by_cell(groups, cells, n, worth).T
    return out


def common_cells(groups: Sequence[Group], by: By) -> tuple[list[IntArray], pd.DataFrame]:
    """Return the cell of each state of each group's model, and the labels of all cells."""
    number: dict[tuple[Level, ...], int] = {}
    frames, cells = [], []
    for group in groups:
        cell, labels = assign_cells(group.model, by)
        rows = [tuple(row) for row in labels.itertuples(index=False)]
        fresh = [i for i, row in enumerate(rows) if row not in number]
        for i in fresh:
            number[rows[i]] = len(number)
        frames.append(labels.iloc[fresh])
        cells.append(np.array([number[row] for row in rows], np.int64)[cell])
    return cells, pd.concat(frames, ignore_index=True)


def average_by_cell(
    groups: Sequence[Group], cells: Sequence[IntArray], n: int, worth: Sequence[FloatArray]
) -> FloatArray:
    """Return means (n, benefits) over the members of each cell; of its states, where none are."""
    total = sum(group.customers for group in groups)
    weights, sums = np.zeros(n), np.zeros((n, worth[0].shape[1]))
    for group, cell, values in zip(groups, cells, worth, strict=True):
        weight = group.mu + FAINT * total / len(group.mu)
        weights += np.bincount(cell, weight, n)
        for k in range(values.shape[1]):
            sums[:, k] += np.bincount(cell, weight * values[:, k], n)
    return np.asarray(sums / weights[:, None])


def callout_lift(
    clicks: pd.DataFrame,
    than: pd.DataFrame | None = None,
    *,
    benefit: str = "benefit",
    starts: Mapping[str, float] | float = 1.0,
    visits: float = 1.0,
    by: Mapping[str, str] | Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a callout policy adds to the probability that members start benefits.

    Parameters
    ----------
    clicks : pandas.DataFrame
        Expected clicks a visit by context and benefit: ``policy.expected_clicks(members, ...)``.
    than : pandas.DataFrame, optional
        The same of the page as it is, whose clicks the estimated laws contain already. Default: it
        shows no callouts.
    benefit : str
        Column of benefits, which are axes of the model.
    starts : float or mapping
        Share of clicks that become a start, by benefit.
    visits : float
        Visits of a member in a period.
    by : mapping or sequence of str
        Context column -> parent of the benefits' laws (``{"plan": "choice"}``), or columns that are
        parents by name. Other columns are averaged over, by their number of members.

    Returns
    -------
    dict
        Benefit -> added probability, or a table of it: the ``lift`` of a :class:`Scenario`.

    Raises
    ------
    SpecificationError
        A column or a benefit's share is missing, or the two tables do not fit.
    """
    by = [by] if isinstance(by, str) else by
    names = dict(by) if isinstance(by, Mapping) else {c: c for c in by}
    checks.positive(visits, "visits")
    for what, table in (("clicks", clicks), ("than", than)):
        if table is not None:
            _check_clicks(table, what, (benefit, "clicks", "members", *names))
    clicks = clicks.assign(clicks_than=0.0) if than is None else _beside(clicks, than)
    share = starts if isinstance(starts, Mapping) else dict.fromkeys(clicks[benefit], starts)
    for b in clicks[benefit].unique():
        if b not in share:
            raise SpecificationError(f"starts has no share of {b!r}.{suggest(b, share)}")
        checks.share(share[b], f"starts of {b!r}")
    part = clicks[benefit].map(share).to_numpy(float)
    new, old = (
        at_least_one(part * clicks[c].to_numpy(float), visits) for c in ("clicks", "clicks_than")
    )
    frame = clicks.assign(weighted=(new - old) * clicks["members"].to_numpy(float))
    out: dict[str, Any] = {}
    for b, rows in frame.groupby(benefit, sort=False):
        if not names:
            out[str(b)] = float(rows["weighted"].sum() / rows["members"].sum())
            continue
        sums = rows.groupby(list(names), sort=False)[["weighted", "members"]].sum()
        mean = (sums["weighted"] / sums["members"]).reset_index(name="start")
        out[str(b)] = mean.rename(columns=names)
    return out


def _check_clicks(table: pd.DataFrame, what: str, columns: Sequence[str]) -> None:
    """Raise unless a table of clicks has its columns, with numbers in them."""
    checks.known(columns, table.columns, f"{what}: column")
    numbers = table[["clicks", "members"]].to_numpy(float)
    if not np.isfinite(numbers).all() or (numbers[:, 1] <= 0).any():
        raise SpecificationError(f"{what}: clicks must be numbers, and members above 0")


def _beside(clicks: pd.DataFrame, than: pd.DataFrame) -> pd.DataFrame:
    """Return clicks with those of another table in a column ``clicks_than``, by context."""
    keys = [c for c in clicks.columns if c not in ("clicks", "members")]
    both = None
    if all(c in than.columns for c in keys):
        other = than.drop(columns="members")
        both = clicks.merge(other, on=keys, how="left", suffixes=("", "_than"))
    if both is None or both["clicks_than"].isna().any() or len(both) != len(clicks):
        raise SpecificationError("the two tables of clicks have different contexts or benefits")
    return both


def at_least_one(p: FloatArray, visits: float) -> FloatArray:
    """Return the probability of a start in a number of visits, each with probability ``p``."""
    return np.asarray(1 - (1 - np.clip(p, 0.0, 1.0)) ** visits)
