"""The Euler equations of ECCP as rows of a regression: which cells make one, and what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import DataError
from dynchoice.estimate.linear.iv import Regression
from dynchoice.estimate.linear.log_odds import log_odds, sampling
from dynchoice.estimate.linear.market import StandIns
from dynchoice.model.ddc import DDC
from dynchoice.model.dependence import FiniteDependence
from dynchoice.model.regions import RegionGrid
from dynchoice.typing import BoolArray, FloatArray, IntArray

REASONS = ("small cell", "small cell next period", "mixed market", "surprise", "attention")
"""Why an equation is left out."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A choice in a state against the reference: two paths that meet after a period.

    Attributes
    ----------
    state, choice, reference : int
    next_state, next_choice : IntArray, shape (W,)
        Where finite dependence has weights.
    d : FloatArray, shape (W,)
        These weights.
    """

    state: int
    choice: int
    reference: int
    next_state: IntArray
    next_choice: IntArray
    d: FloatArray


def comparisons(dependence: FiniteDependence, pairs: IntArray) -> Iterator[Comparison]:
    """Yield some pairs (row of ``dependence``, choice) with their weights."""
    J = len(dependence.choices)
    weights = dependence.weights[0] if dependence.weights else None
    for u, j in pairs:
        row = None if weights is None else weights[[u * J + j]]
        column = np.zeros(0, np.int64) if row is None else row.indices
        yield Comparison(
            state=int(dependence.rows[u]),
            choice=int(j),
            reference=int(dependence.reference[u]),
            next_state=column // J,
            next_choice=column % J,
            d=np.zeros(0) if row is None else row.data,
        )


def comparable(dependence: FiniteDependence) -> BoolArray:
    """Return where (R, J) a choice other than the reference can be compared with it."""
    choices = np.arange(len(dependence.choices))
    return (dependence.periods >= 0) & (choices != dependence.reference[:, None])


@dataclass(frozen=True, kw_only=True)
class EquationRows:
    """Equations as arrays with a row each; ``Z`` is NaN where an instrument is not observed yet."""

    y: FloatArray
    X: FloatArray
    Z: FloatArray
    weight: FloatArray
    region: IntArray
    period: IntArray
    state: IntArray
    choice: IntArray
    reference: IntArray
    members: FloatArray


class EulerEquations:
    """The equations of a panel, by region, period, state and choice.

    Parameters
    ----------
    model : DDC
    grid : RegionGrid
        Of the whole sample: it says which cells are used, and how sure they are.
    minimum : float
        Members that a cell needs, at ``t`` and at ``t + 1``.
    surprises : {"drop", "keep"}
        Months after which a Fixed axis changes.
    weighting : {"precision", "members", "none"}
    copies : FloatArray, shape (R,)
        How often each region counts.
    multipliers : mapping of parameter -> FloatArray, shape (R, T)
        Market variables that multiply features.
    standins : StandIns
        Market variables of the instruments.
    """

    def __init__(
        self,
        model: DDC,
        grid: RegionGrid,
        *,
        minimum: float,
        surprises: str,
        weighting: str,
        copies: FloatArray,
        multipliers: Mapping[str, FloatArray],
        standins: StandIns,
    ) -> None:
        self.model, self.grid, self.minimum = model, grid, minimum
        self.surprises, self.weighting, self.copies = surprises, weighting, copies
        self.multipliers = multipliers
        self.instruments = [(name, table) for name, tables in standins.items() for table in tables]
        # cells are chosen and weighed by the whole sample's sizes and pooled probabilities: weights
        # from a cell's own choices would bring the bias of its log-odds back
        self.sizes = grid.n.sum(axis=3)
        pooled = grid.n.sum(axis=(0, 1)) + 0.5
        pooled = pooled / pooled.sum(axis=1, keepdims=True)
        self.certain, self.var_log = sampling(model, pooled)

    def regression(self, pairs: Iterable[Comparison], n: FloatArray, correction: str) -> Regression:
        """Return all equations of counts ``n`` (R, T, S, J) as linearmodels takes them.

        Raises
        ------
        DataError
            No cell is large enough; no equation has all its instruments.
        """
        logs, psi = log_odds(self.model, n, correction)
        dropped = dict.fromkeys(REASONS, 0)
        parts = []
        for pair in pairs:
            target = self.grid.ahead(pair.state, pair.next_state)
            usable = self._usable(pair, target, dropped)
            if usable.any():
                parts.append(self._rows(pair, target, np.nonzero(usable), logs, psi))
        if not parts:
            raise DataError(
                f"no region-month has cells of {self.minimum:g} members at t and t + 1 in states"
                f" that can be compared (dropped: {dropped}): lower minimum=, or coarsen the states"
            )
        return self._as_regression(stack_rows(parts), dropped)

    def _usable(self, pair: Comparison, target: IntArray, dropped: dict[str, int]) -> BoolArray:
        """Return the region-months (R, T - 1) that make an equation; count the others by reason."""
        grid, sizes, s = self.grid, self.sizes, pair.state
        least = max(self.minimum, 1e-12)
        members, market = sizes[:, :-1, s], grid.fixed[s]
        members_next = np.take_along_axis(sizes[:, 1:], target, axis=2)
        enough = members >= least
        enough_next = np.asarray((members_next >= least).all(axis=2))
        clear = grid.clear[:, :, market]
        dropped["small cell"] += int(((members > 0) & ~enough).sum())
        dropped["small cell next period"] += int((enough & ~enough_next).sum())
        dropped["mixed market"] += int((enough & enough_next & ~clear).sum())
        usable = enough & enough_next & clear & (self.copies > 0)[:, None]
        # with inattention a small cell's default may fall below what inattention alone gives
        certain_next = (members_next >= self.certain[pair.next_state]).all(axis=2)
        certain = (members >= self.certain[s]) & certain_next
        dropped["attention"] += int((usable & ~certain).sum())
        usable &= certain
        if self.surprises == "drop":
            changes = grid.to[:, :, market] != market
            dropped["surprise"] += int((usable & changes).sum())
            usable &= ~changes
        return np.asarray(usable)

    def _rows(
        self,
        pair: Comparison,
        target: IntArray,
        where: tuple[IntArray, ...],
        logs: FloatArray,
        psi: FloatArray,
    ) -> EquationRows:
        """Return the equations of a comparison in some region-months.

        ``target`` (R, T - 1, W) are the states ahead, the market's moves included.
        """
        (r, t), s, j, k = where, pair.state, pair.choice, pair.reference
        beta, d, act = self.model.beta, pair.d, pair.next_choice
        x, offset = self.model.utility.x, self.model.utility.offset
        state_next = target[r, t]
        psi_next = psi[r[:, None], t[:, None] + 1, state_next, act]
        y = logs[r, t, s, j] - logs[r, t, s, k] - (offset[s, j] - offset[s, k])
        y = y - beta * ((psi_next + offset[state_next, act]) * d).sum(axis=1)
        now = x[s, j] - x[s, k]
        ahead = (x[state_next, act] * d[None, :, None]).sum(axis=1)
        # instruments: everything dated t + 1 set back to t, the state ahead among it
        ahead_at_t = (x[pair.next_state, act] * d[:, None]).sum(axis=0)
        X = np.empty((len(r), len(now)))
        for p, name in enumerate(self.model.names):
            table = self.multipliers.get(name)
            X[:, p] = self._multiplied(now[p], ahead[:, p], r, t, t + 1, table)
        Z = np.empty((len(r), len(self.instruments)))
        for column, (name, table) in enumerate(self.instruments):
            p = self.model.names.index(name)
            Z[:, column] = self._multiplied(now[p], ahead_at_t[p], r, t, t, table)
        return EquationRows(
            y=y,
            X=X,
            Z=Z,
            weight=self._weight(pair, state_next, r, t),
            region=r,
            period=t,
            state=np.full(len(r), s),
            choice=np.full(len(r), j),
            reference=np.full(len(r), k),
            members=self.sizes[r, t, s],
        )

    def _multiplied(
        self,
        now: float,
        ahead: FloatArray | float,
        r: IntArray,
        t: IntArray,
        t_ahead: IntArray,
        table: FloatArray | None,
    ) -> FloatArray | float:
        """Return ``w_t now + beta w_{t_ahead} ahead`` of one feature, ``w`` a market variable."""
        if table is None:
            return now + self.model.beta * ahead
        last = np.minimum(t_ahead, table.shape[1] - 1)
        return np.asarray(table[r, t] * now + self.model.beta * table[r, last] * ahead)

    def _weight(
        self, pair: Comparison, state_next: IntArray, r: IntArray, t: IntArray
    ) -> FloatArray:
        """Return the weights (n,) of equations."""
        members, copies = self.sizes[r, t, pair.state], self.copies[r]
        if self.weighting == "none":
            return copies
        if self.weighting == "members":
            return np.asarray(members * copies)
        var_log, act = self.var_log, pair.next_choice
        here = var_log[pair.state, pair.choice] + var_log[pair.state, pair.reference]
        noise = here / members
        if len(act):
            size = self.sizes[r[:, None], t[:, None] + 1, state_next] / var_log[state_next, act]
            noise = noise + self.model.beta**2 * (pair.d**2 / size).sum(axis=1)
        noise = noise / np.maximum(copies, 1e-12)
        return np.asarray(1 / noise)

    def _as_regression(self, rows: EquationRows, dropped: dict[str, int]) -> Regression:
        """Return equations with labels, without those that lack an instrument."""
        grid, names = self.grid, list(self.model.names)
        good = np.isfinite(rows.Z).all(axis=1)
        dropped["instrument not observed yet"] = int((~good).sum())
        if not good.any():
            raise DataError("no row has all its instruments")
        z_names = [f"z{i}: {name}" for i, (name, _) in enumerate(self.instruments)]
        cells = {
            "region": np.asarray(grid.labels, dtype=object)[rows.region[good]],
            "period": rows.period[good] + grid.first,
            "state": rows.state[good],
            "choice": rows.choice[good],
            "reference": rows.reference[good],
            "members": rows.members[good],
        }
        return Regression(
            dependent=pd.Series(rows.y[good], name="log-odds"),
            exog=pd.DataFrame(rows.X[good], columns=names),
            instruments=pd.DataFrame(rows.Z[good], columns=z_names),
            weights=pd.Series(rows.weight[good], name="weight"),
            cells=pd.DataFrame(cells),
            dropped=dropped,
        )


def stack_rows(parts: list[EquationRows]) -> EquationRows:
    """Return the rows of several comparisons, one after the other."""
    names = [field.name for field in fields(EquationRows)]
    return EquationRows(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})
