"""Elasticities of take-up by prices, short and long run, and where buyers go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice._lazy import pd
from dynchoice.counterfactuals.population import Fits, Start, population
from dynchoice.counterfactuals.steady_state import Stationary
from dynchoice.errors import SpecificationError
from dynchoice.typing import FilePath, FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HORIZONS = ("short", "long")


@dataclass(frozen=True)
class Elasticities:
    """Elasticities of plans' shares by prices, and where buyers go.

    Attributes
    ----------
    table : pandas.DataFrame
        segment, price (the plan whose price rises), share (the choice), ``short`` (today's
        customers at once), ``long`` (the steady state); percent per percent.
    derivatives : pandas.DataFrame
        segment, price, share, short, long: per unit of money on every menu.
    diversion : pandas.DataFrame
        segment, price, to, short, long: of the customers that the plan loses, the share that each
        other choice gains. NaN for a plan that the segment does not choose at all.
    """

    table: pd.DataFrame
    derivatives: pd.DataFrame
    diversion: pd.DataFrame

    def plot(self, horizon: str = "long", path: FilePath | None = None) -> Figure:
        """Draw the elasticities as a table in colours, a panel a segment."""
        from dynchoice.plots.outcomes import plot_elasticities

        return plot_elasticities(self.table, horizon, path)

    def __str__(self) -> str:
        wide = self.table.pivot_table(
            index=["segment", "price"], columns="share", values=["short", "long"], sort=False
        )
        return f"Elasticities of shares by prices\n{wide.round(3).to_string()}"

    __repr__ = __str__


def ratio(a: float, b: float) -> float:
    """Return ``a / b``, NaN for ``b = 0``: a plan that nobody takes."""
    return float(a / b) if abs(b) > 0 else float("nan")


def elasticities(results: Fits, *, start: Start = None) -> Elasticities:
    """Return elasticities of take-up by prices from implicit derivatives, short and long run.

    Short run: the distribution of customers is today's, choice probabilities answer at once.
    Long run: the steady state of the same customers.

    Parameters
    ----------
    results, start : as for :func:`dynchoice.forecast`
    """
    rows, slopes, moves = [], [], []
    for segment, groups in population(results, start).by_segment().items():
        club = groups[0].model.membership
        if club is None:
            raise SpecificationError("elasticities() needs a model built by Membership")
        level: dict[str, FloatArray] = {}
        slope: dict[tuple[str, str, str], FloatArray] = {}
        mass = sum(group.customers for group in groups)
        for group in groups:
            weight = group.customers / mass
            steady = Stationary(group.model, group.theta, group.mu)
            today = steady.engine.blocks.blocked(group.mu / group.customers)
            for horizon, mu in (("short", today), ("long", steady.mu)):
                shares = np.einsum("bn,bnj->j", mu, steady.policy.P)
                level[horizon] = level.get(horizon, 0.0) + weight * shares
            for k, p in enumerate(club.plans):
                direction = steady.price_direction(p.name)
                price = steady.club.prices()[:, [k]]  # of each state: menus may differ
                for kind, du in (("unit", direction), ("percent", direction * price)):
                    change = steady.change(du)
                    short = np.einsum("bn,bnj->j", today, change.dP)
                    long = np.einsum("bn,bnj->j", steady.mu, change.dP)
                    long = long + np.einsum("bn,bnj->j", change.dmu, steady.policy.P)
                    for horizon, value in (("short", short), ("long", long)):
                        key = (p.name, kind, horizon)
                        slope[key] = slope.get(key, 0.0) + weight * value
        for p in club.plans:
            j = club.choices.index(p.name)
            for k, label in enumerate(club.choices):
                head = {"segment": segment, "price": p.name}
                change_of = {h: slope[p.name, "unit", h] for h in HORIZONS}
                slopes.append({**head, "share": label, **{h: change_of[h][k] for h in HORIZONS}})
                elastic = {h: ratio(slope[p.name, "percent", h][k], level[h][k]) for h in HORIZONS}
                rows.append({**head, "share": label, **elastic})
                if k != j:  # what the plan loses, by where it goes
                    gained = {h: ratio(change_of[h][k], -change_of[h][j]) for h in HORIZONS}
                    moves.append({**head, "to": label, **gained})
    return Elasticities(pd.DataFrame(rows), pd.DataFrame(slopes), pd.DataFrame(moves))
