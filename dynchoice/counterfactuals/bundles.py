"""Which bundle, at which price, for whom: all combinations and the frontier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.counterfactuals.population import Fits, Group, Start, population
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.counterfactuals.steady_state import Stationary
from dynchoice.counterfactuals.welfare import named_benefits, offer_only
from dynchoice.errors import SpecificationError
from dynchoice.model.ddc import DDC
from dynchoice.typing import FilePath, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT = 2048
"""Combinations a segment up to which all are solved; beyond, a search."""
REPORTED = ("penetration", "revenue", "benefit cost", "profit", "surplus")
TIE = 1e-12
"""Difference of an outcome up to which two bundles are alike: rounding."""
TODAY: tuple[bool, ...] = ()
"""Stands for the offers in force, which may differ between regions."""
AS_IS = "as today"


@dataclass(frozen=True)
class Bundles:
    """Outcomes of bundles at prices, in the steady state, per customer and period.

    Attributes
    ----------
    table : pandas.DataFrame
        segment, bundle, one column a plan's price (NaN where customers pay different ones today),
        ``penetration``, ``choosing ...``, ``revenue``,
        ``benefit cost``, ``profit``, ``surplus`` (money, flow), ``welfare`` (money, present value
        of the change of decision utility to today's customers against the first row).
    searched : bool
        Whether only part of the combinations was solved (hill climbing from several starts).
    """

    table: pd.DataFrame
    searched: bool

    def best(self, by: str = "profit") -> pd.DataFrame:
        """Return the best row of each segment."""
        self._check(by)
        return self.table.loc[self.table.groupby("segment", sort=False)[by].idxmax()]

    def frontier(self, x: str = "surplus", y: str = "profit") -> pd.DataFrame:
        """Return, by segment, the rows that no other row beats in both ``x`` and ``y``."""
        self._check(x)
        self._check(y)
        parts = []
        for _, part in self.table.groupby("segment", sort=False):
            part = part.sort_values([x, y], ascending=False)
            top = part[y].cummax().shift(fill_value=-np.inf)
            parts.append(part[part[y] > top + TIE].sort_values(x))
        return pd.concat(parts)

    def plot(self, x: str = "surplus", y: str = "profit", path: FilePath | None = None) -> Figure:
        """Draw all rows and the frontier, a panel a segment."""
        from dynchoice.plots.outcomes import plot_frontier

        return plot_frontier(self.table, self.frontier(x, y), x, y, path)

    def _check(self, name: str) -> None:
        """Raise unless a column holds an outcome."""
        numbers = [c for c in self.table.columns if c not in ("segment", "bundle")]
        checks.known([name], numbers, "outcome")

    def __str__(self) -> str:
        n = len(self.table)
        how = "by hill climbing" if self.searched else "all of them"
        return (
            f"Bundles ({n} solved, {how}); most profitable:\n{self.best().to_string(index=False)}"
        )

    __repr__ = __str__


def bundles(
    results: Fits,
    benefits: Sequence[str] | None = None,
    *,
    prices: Mapping[str, Iterable[float]] | None = None,
    start: Start = None,
    objective: str = "profit",
    starts: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bundles:
    """Solve every bundle of benefits at every price, by segment.

    Parameters
    ----------
    results : Results, MixtureResults, Membership, or mapping of segment -> Results
    benefits : sequence of str, optional
        Benefits to switch on and off; others stay in (none: prices only). Default: all.
    prices : mapping, optional
        Plan -> prices to try. Default: today's.
    start : as for :func:`dynchoice.forecast`
    objective : str
        What a search climbs where there are more than 2,048 combinations.
    starts, seed : int
        Starting bundles of a search (the first has everything), and their seed.
    progress : callable, optional
        ``progress(done, total, message)``.

    Returns
    -------
    Bundles

    Raises
    ------
    SpecificationError
        Unknown benefits or plans; a model without membership.
    """
    grid = price_grid(prices)
    checks.whole(starts, "starts", 1)
    # an empty list is an answer here: prices only
    if benefits is not None and (isinstance(benefits, str) or len(benefits)):
        benefits = checks.items(benefits, "benefits")
    segments = population(results, start).by_segment()
    rows: list[dict[str, Any]] = []
    searched = False
    for i, (segment, groups) in enumerate(segments.items()):
        names = _names(groups[0].model, benefits)
        options = list(product(*(grid[k] for k in grid)))
        solver = _BundleSolver(groups, names, list(grid))
        today = solver(TODAY, ()).row
        checks.one_of(objective, "objective", [name for name in today if name != "bundle"])
        if 2 ** len(names) * len(options) <= LIMIT:
            keys = [(b, p) for b in product((True, False), repeat=len(names)) for p in options]
            for k, key in enumerate(keys):
                solver(*key)
                if progress is not None:
                    progress(i * len(keys) + k + 1, len(segments) * len(keys), f"{segment}")
        else:
            searched = True
            _climb(solver, len(names), options, objective, starts, seed)
        solved = list(solver.solved.values())
        rows += [
            {"segment": segment, **s.row, "welfare": s.value - solved[0].value} for s in solved
        ]
    return Bundles(pd.DataFrame(rows), searched)


def price_grid(prices: Mapping[str, Iterable[float]] | None) -> dict[str, list[float]]:
    """Return ``{plan: prices to try}`` as numbers.

    Raises
    ------
    SpecificationError
        No mapping; a plan without a list of prices; prices that are not numbers of at least 0.
    """
    if prices is None:
        return {}
    if not isinstance(prices, Mapping):
        raise SpecificationError(f"prices must be {{plan: [prices]}}, got {type(prices).__name__}")
    grid = {}
    for plan, values in prices.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise SpecificationError(
                f"prices of {plan!r}: a list of prices is needed, got {values!r}; for one price"
                f" {{{plan!r}: [{values!r}]}}"
            )
        tried = checks.items(values, f"prices of {plan!r}")
        grid[plan] = [checks.number(v, f"price of {plan!r}", 0) for v in tried]
    return grid


def _names(model: DDC, benefits: Sequence[str] | None) -> list[str]:
    """Return the benefits to switch on and off."""
    if model.membership is None:
        raise SpecificationError("bundles() needs a model built by Membership")
    if benefits is None:
        return [b.name for b in model.membership.benefits]
    return named_benefits(model, list(benefits)) if len(benefits) <= 10 else list(benefits)


class _Solved(NamedTuple):
    """Outcomes of a bundle, and the value to today's customers in money."""

    row: dict[str, Any]
    value: float


class _BundleSolver:
    """Solves one bundle at one price list for a segment, once."""

    def __init__(self, groups: list[Group], names: list[str], plans: list[str]) -> None:
        self.groups, self.names, self.plans = groups, names, plans
        club = groups[0].model.membership
        paid: dict[str, set[float]] = {}
        for group in groups:
            if group.model.membership is not None:
                prices = group.model.membership.prices()[group.mu > 0]
                for p, column in zip(group.model.membership.plans, prices.T, strict=True):
                    paid.setdefault(p.name, set()).update(np.unique(column).tolist())
        # a price that all pay today is shown; where they pay different ones there is none
        checks.known(plans, () if club is None else [p.name for p in club.plans], "prices: plan")
        self.today = tuple(
            paid[p].copy().pop() if len(paid.get(p, ())) == 1 else float("nan") for p in plans
        )
        self.solved: dict[tuple[tuple[bool, ...], tuple[float, ...]], _Solved] = {}

    def __call__(self, included: tuple[bool, ...], price: tuple[float, ...]) -> _Solved:
        """Return what a bundle (which of the names are in) at prices by plan comes to."""
        key = (included, price)
        if key in self.solved:
            return self.solved[key]
        if included == TODAY and not price:
            scenario, label, price = Scenario("bundle"), AS_IS, self.today
        else:
            inside = [n for n, yes in zip(self.names, included, strict=True) if yes]
            label = " + ".join(inside) or "none of them"
            prices = dict(zip(self.plans, price, strict=True))
            scenario = Scenario(
                "bundle", bundle=offer_only(self.names, inside), prices=prices or None
            )
        mass = sum(group.customers for group in self.groups)
        total: dict[str, float] = {}
        value = 0.0
        for group in self.groups:
            steady = Stationary(scenario.applied(group.model).model, group.theta, group.mu)
            share = group.customers / mass
            V, occupied = steady.engine.blocks.by_state(steady.policy.V), group.mu > 0
            value += float(group.mu[occupied] @ V[occupied]) / group.alpha / mass
            for k, v in steady.measures.items():
                if k in REPORTED or k.startswith("choosing "):
                    total[k] = total.get(k, 0.0) + share * v
        row = {
            "bundle": label,
            **{f"price {k}": v for k, v in zip(self.plans, price, strict=True)},
            **total,
        }
        self.solved[key] = _Solved(row, value)
        return self.solved[key]


def _climb(
    solver: _BundleSolver,
    K: int,
    options: Sequence[tuple[float, ...]],
    objective: str,
    starts: int,
    seed: int,
) -> None:
    """Change one of ``K`` benefits or the price list at a time while the objective rises.

    What the search came by is in ``solver.solved``.
    """
    rng = np.random.default_rng(seed)

    def score(included: tuple[bool, ...], price: tuple[float, ...]) -> float:
        return float(solver(included, price).row[objective])

    for i in range(starts):
        included = (True,) * K if i == 0 else tuple(bool(x) for x in rng.integers(0, 2, K))
        price = options[0 if i == 0 else int(rng.integers(len(options)))]
        best = score(included, price)
        while True:
            moves = [
                ((*included[:k], not included[k], *included[k + 1 :]), price) for k in range(K)
            ]
            moves += [(included, p) for p in options if p != price]
            value, move = max(((score(*m), m) for m in moves), key=lambda x: x[0])
            if value <= best + TIE:
                break
            best, (included, price) = value, move
