"""Accounts: what a path of a membership amounts to, in customers and money, month by month.

A path arrives as sums by group of states and choice (``cells``); here they become stocks, moves
between plans, renewals, payments and costs: the entries of a :class:`Ledger`. Entries add up over
offers, regions, types and segments; rates are ratios of sums, so :func:`measures` are taken last.
Present values and the steady state are in :mod:`dynchoice.counterfactuals.lifetime_value`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice.membership.contracts import NEW, PAID, TRIAL
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import BUNDLE, CONTRACT, MENU, VINTAGE
from dynchoice.solvers.layout import PlainBlocks
from dynchoice.typing import BoolArray, FloatArray, IntArray

RATES = {
    "trial conversion": ("trial converted", "trial ended"),
    "renewal rate": ("renewed", "due"),
}
"""Ratios of entries; renewal by tenure is added where tenure is tracked."""
NOBODY = 1e-12
"""Share of customers up to which nobody is due, so that there is no rate."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Weights that turn sums of a path into entries.

    Attributes
    ----------
    group : IntArray, shape (n,)
        Group of a block's states: those with the same contract, refund and prices.
    names : tuple of str
        Entries; the last three are money.
    by_cell : FloatArray, shape (groups * J, entries but money's)
    money : FloatArray, shape (2, B, groups, J)
        Payments and refunds.
    by_use : FloatArray, shape (B, J, n)
        Money that use of benefits costs.
    held : IntArray, shape (groups,)
        Choice code of the plan held.
    """

    group: IntArray
    names: tuple[str, ...]
    by_cell: FloatArray
    money: FloatArray
    by_use: FloatArray
    held: IntArray

    @property
    def groups(self) -> int:
        """Number of groups of states."""
        return len(self.held)

    @property
    def costly(self) -> bool:
        """Whether use of some benefit costs money."""
        return bool(self.by_use.any())

    @classmethod
    def of(cls, club: Membership, blocks: PlainBlocks) -> Ledger:
        """Build for a membership laid out in blocks."""
        order, states, contracts = blocks.order, club.states, club.contracts
        first = order[0]  # blocks differ by offers: what is grouped by is the same in each
        contract = states.axis_codes(CONTRACT)
        keys = [contract[first], club.unused[first].astype(np.int64)]
        # offers are blocks of their own, but for models that are solved in one piece
        axes = [a for a in (MENU, BUNDLE, VINTAGE) if a in states.axes]
        keys += [states.axis_codes(a)[first] for a in axes]
        _, member, group = np.unique(
            np.stack(keys, axis=1), axis=0, return_index=True, return_inverse=True
        )
        level = contract[first][member]  # of one member of each group, which stands for all
        names, weights = entries(club, level)
        payments, back = club.payments()[order][:, member], club.refunds()[order][:, member]
        J = len(club.choices)
        refunds = np.where(np.arange(J) == 0, back[..., None], 0.0)
        cost = np.zeros((blocks.B, J, blocks.n))
        for benefit in club.benefits:
            if benefit.cost:
                use = states.axis_codes(benefit.name)[order]
                offered = club.included(benefit)[order] > 0
                cost[:, 1:] += benefit.cost * (use[..., None] * offered).transpose(0, 2, 1)
        return cls(
            group=np.ascontiguousarray(group.reshape(-1), dtype=np.int64),
            names=(*names, "payments", "refunds", "benefit cost"),
            by_cell=np.ascontiguousarray(np.stack(weights).reshape(len(weights), -1).T),
            money=np.stack([payments, refunds]),
            by_use=cost,
            held=contracts.held[level],
        )

    def cost(self, P: FloatArray) -> FloatArray:
        """Return what use of benefits is expected to cost by state (B, n) under ``P`` (B, n, J)."""
        total = self.by_use[:, 0] * P[..., 0]
        for j in range(1, P.shape[2]):
            total += self.by_use[:, j] * P[..., j]
        return np.asarray(total)

    def read(self, cells: FloatArray, cost: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return entries (T, E), and mass by plan held and plan chosen (T, J, J).

        ``cells`` (T, B, groups, J) are sums of a path, ``cost`` (T,) is what use of benefits cost.
        """
        T, B, G, J = cells.shape
        total = cells.sum(axis=1)
        out = np.empty((T, len(self.names)))
        out[:, :-3] = total.reshape(T, -1) @ self.by_cell
        out[:, -3:-1] = cells.reshape(T, -1) @ self.money.reshape(2, -1).T
        out[:, -1] = cost
        source = (np.arange(J)[:, None] == self.held).astype(np.float64)
        return out, source @ total

    def named(self, values: FloatArray, names: tuple[str, ...]) -> FloatArray:
        """Return entries (..., E) in the order of other names; those it does not have are zero."""
        if not names or names == self.names:
            return values
        column = {name: k for k, name in enumerate(self.names)}
        zero = np.zeros(values.shape[:-1])
        return np.stack(
            [values[..., column[name]] if name in column else zero for name in names], axis=-1
        )


def entries(club: Membership, level: IntArray) -> tuple[list[str], list[FloatArray]]:
    """Return names and weights (groups, J) of what is counted by contract level and choice."""
    contracts = club.contracts
    kind, held = contracts.kind[level], contracts.held[level]
    left, years = contracts.left[level], contracts.years[level]
    J = len(club.choices)
    chosen = np.arange(J)[None, :]
    every = np.ones((len(level), J))
    inside, stays = (held > 0)[:, None], chosen > 0
    names, weights = [], []

    def add(name: str, where: BoolArray | FloatArray) -> None:
        """Count members of the cells ``where``, which broadcasts to (groups, J)."""
        names.append(name)
        weights.append(every * where)

    add("outside", ~inside)
    for i, p in enumerate(club.plans):
        if p.trial_clock:
            add(f"in trial: {p.name}", ((kind == TRIAL) & (held == i + 1))[:, None])
    for i, p in enumerate(club.plans):
        add(f"paid: {p.name}", ((kind == PAID) & (held == i + 1))[:, None])
    add("penetration", (kind == PAID)[:, None])
    add("joins", ~inside & stays)
    add("quits", inside & ~stays)
    add("switches", inside & stays & (chosen != held[:, None]))
    ends = ((kind == TRIAL) & (left == 0))[:, None]
    if contracts.trials:
        add("trial starts", _trial_starts(club, level))
        add("trial ended", ends)
        add("trial converted", ends & stays)
    long = np.array([False, *(p.clock > 1 for p in club.plans)])[held]
    due = ((kind == PAID) & long & (left == 0))[:, None]
    if any(p.clock > 1 for p in club.plans):
        add("due", due)
        add("renewed", due & stays)
        if club.tenure > 1:
            for k in range(club.tenure):
                add(f"due y{k}", due & (years == k)[:, None])
                add(f"renewed y{k}", due & (years == k)[:, None] & stays)
    return names, weights


def _trial_starts(club: Membership, level: IntArray) -> FloatArray:
    """Return 1 where somebody new takes a plan that has a trial (groups, J)."""
    has_trial = np.array([0.0, *(float(p.trial > 0) for p in club.plans)])
    return np.asarray((club.contracts.kind[level] == NEW)[:, None] * has_trial[None, :])


def measures(
    entries: FloatArray, names: Sequence[str], surplus: FloatArray | float, size: float
) -> dict[str, FloatArray]:
    """Return what periods amount to per customer: entries, revenue, profit, rates, surplus, shares.

    Parameters
    ----------
    entries : FloatArray, shape (..., E)
        In customers and money, by ``names``.
    surplus : FloatArray, shape (...), or float
        In money.
    size : float
        Number of customers.
    """
    values = {name: entries[..., k] / size for k, name in enumerate(names)}
    values["revenue"] = values["payments"] - values["refunds"]
    values["profit"] = values["revenue"] - values["benefit cost"]
    values |= rates(values)
    values["surplus"] = np.asarray(surplus / size)
    return values | member_shares(values)


def rates(values: Mapping[str, FloatArray | float]) -> dict[str, FloatArray]:
    """Return the rates that entries allow, NaN where nobody is due."""
    pairs = {name: pair for name, pair in RATES.items() if pair[1] in values}
    years = [name.removeprefix("due ") for name in values if name.startswith("due y")]
    pairs |= {f"renewal rate {year}": (f"renewed {year}", f"due {year}") for year in years}
    return {name: _ratio(values[top], values[due], NOBODY) for name, (top, due) in pairs.items()}


def member_shares(values: Mapping[str, FloatArray | float]) -> dict[str, FloatArray]:
    """Return each plan's share of paying members, where there are two plans or more."""
    plans = [name.removeprefix("paid: ") for name in values if name.startswith("paid: ")]
    if len(plans) < 2:
        return {}
    members = values["penetration"]
    return {f"share of members: {p}": _ratio(values[f"paid: {p}"], members, 0.0) for p in plans}


def _ratio(top: FloatArray | float, bottom: FloatArray | float, nobody: float) -> FloatArray:
    """Return a ratio, NaN where the denominator is not above ``nobody``."""
    ratio: FloatArray = np.full(np.shape(bottom), np.nan)
    return np.divide(top, bottom, out=ratio, where=np.asarray(bottom) > nobody)
