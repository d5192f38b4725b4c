"""Ledger: what a path of a membership amounts to, in customers and money, month by month.

A path arrives as sums by group of states and choice (``cells``); here they become stocks, moves
between plans, renewals, payments and costs. All entries add up over offers, regions, types and
segments; rates are ratios of sums, taken last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.membership.contracts import NEW, PAID, TRIAL
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import BUNDLE, CONTRACT, MENU, VINTAGE
from dynchoice.solvers.layout import PlainBlocks
from dynchoice.typing import FloatArray, IntArray

RATES = {
    "trial conversion": ("trial converted", "trial ended"),
    "renewal rate": ("renewed", "due"),
}
"""Ratios of entries; renewal by tenure is added where tenure is tracked."""


@dataclass(frozen=True)
class Ledger:
    """Weights that turn sums of a path into entries.

    Attributes
    ----------
    group : IntArray, shape (n,)
        Group of a block's states.
    names : tuple of str
        Entries.
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
        order, states, c = blocks.order, club.states, club.contracts
        first = order[0]
        contract = states.axis_codes(CONTRACT)
        keys = [contract[first], club.unused[first].astype(np.int64)]
        # offers are blocks of their own, but for models that are solved in one piece
        axes = [a for a in (MENU, BUNDLE, VINTAGE) if a in states.axes]
        keys += [states.axis_codes(a)[first] for a in axes]
        _, at, group = np.unique(
            np.stack(keys, axis=1), axis=0, return_index=True, return_inverse=True
        )
        level = contract[first][at]
        held = c.held[level]
        names, parts = entries(club, level)
        pays, back = club.payments()[order][:, at], club.refunds()[order][:, at]
        J = len(club.choices)
        refunds = np.where(np.arange(J) == 0, back[..., None], 0.0)
        B = blocks.B
        cost = np.zeros((B, J, blocks.n))
        for k in club.benefits:
            if k.cost:
                use = states.axis_codes(k.name)[order]
                offered = club.included(k)[order] > 0
                cost[:, 1:] += k.cost * (use[..., None] * offered).transpose(0, 2, 1)
        return cls(
            np.ascontiguousarray(group.reshape(-1), dtype=np.int64),
            (*names, "payments", "refunds", "benefit cost"),
            np.ascontiguousarray(np.stack(parts).reshape(len(parts), -1).T),
            np.stack([pays, refunds]),
            cost,
            held,
        )

    def cost(self, P: FloatArray) -> FloatArray:
        """Return what use of benefits is expected to cost by state (B, n) under ``P`` (B, n, J)."""
        use = self.by_use[:, 0] * P[..., 0]
        for j in range(1, P.shape[2]):
            use += self.by_use[:, j] * P[..., j]
        return np.asarray(use)

    def read(self, cells: FloatArray, cost: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return entries (T, entries), and mass by plan held and plan chosen (T, J, J), of sums
        (T, B, groups, J) and the benefits' cost (T,)."""
        T, B, G, J = cells.shape
        total = cells.sum(axis=1)
        out = np.empty((T, len(self.names)))
        out[:, :-3] = total.reshape(T, -1) @ self.by_cell
        out[:, -3:-1] = cells.reshape(T, -1) @ self.money.reshape(2, -1).T
        out[:, -1] = cost
        source = (np.arange(J)[:, None] == self.held).astype(np.float64)
        return out, source @ total

    def named(self, found: FloatArray, names: tuple[str, ...]) -> FloatArray:
        """Return entries (..., E) under other names' order; what is not here is zero."""
        if not names or names == self.names:
            return found
        at = {k: i for i, k in enumerate(self.names)}
        zero = np.zeros(found.shape[:-1])
        return np.stack([found[..., at[k]] if k in at else zero for k in names], axis=-1)


def entries(club: Membership, level: IntArray) -> tuple[list[str], list[FloatArray]]:
    """Return names and weights (groups, J) of what is counted by contract level and choice."""
    c = club.contracts
    kind, held, left, years = c.kind[level], c.held[level], c.left[level], c.years[level]
    J = len(club.choices)
    chosen = np.arange(J)[None, :]
    every = np.ones((len(level), J))
    inside, stays = (held > 0)[:, None], chosen > 0
    names, parts = [], []

    def add(name: str, where: Any) -> None:
        names.append(name)
        parts.append(every * where)

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
    if c.trials:
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
    return names, parts


def _trial_starts(club: Membership, level: IntArray) -> FloatArray:
    has = np.array([0.0, *(float(p.trial > 0) for p in club.plans)])
    return np.asarray((club.contracts.kind[level] == NEW)[:, None] * has[None, :])


def rates(names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return ratios of entries that can be taken: name -> (numerator, denominator)."""
    out = {k: v for k, v in RATES.items() if v[1] in names}
    years = [n[5:] for n in names if n.startswith("due y")]
    out |= {f"renewal rate {'y' + y}": (f"renewed y{y}", f"due y{y}") for y in years}
    return out
