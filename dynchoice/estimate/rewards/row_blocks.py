"""Rows in blocks, with what the steps of Deep PQR, GenPQR and GLADIUS ask of each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dynchoice.estimate.choice_logit import taken
from dynchoice.estimate.rewards.first_stages import FirstStages
from dynchoice.estimate.rewards.rows import SievedRows
from dynchoice.typing import BoolArray, FloatArray, IntArray

Values = TypeVar("Values", FloatArray, IntArray)


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """n rows, of which m are followed, with the letters of :mod:`.pqr_rows`.

    A row is followed where its continuation is observed: by the next row, or by nothing after a
    terminal one. Arrays ``..._next`` have a row for each followed row, zero after a terminal one.
    Derivatives by the logit's coefficients are outer products of ``gap_next`` and ``phi_next``, so
    they are not kept.
    """

    rows: slice
    phi: FloatArray
    """Columns of the sieve (n, G)."""
    x: FloatArray
    """Features of every choice (n, J, K)."""
    base: FloatArray
    """Known part of the reward of every choice (n, J)."""
    reference: IntArray
    """``o``: the anchor, or the only choice offered (n,)."""
    g: FloatArray
    """Reward of the reference (n,)."""
    paid: FloatArray
    """``g`` without the offset (n,)."""
    choice: IntArray
    weight: FloatArray
    offered: BoolArray | None
    logs: FloatArray
    """``log pi`` (n, J); 0 where a choice is not offered."""
    value: FloatArray
    """``W`` (n,) or ``h`` (n, J); empty before the Q step."""
    followed: IntArray
    """Positions of the m followed rows within the block, sorted."""
    phi_next: FloatArray
    reference_next: IntArray
    log_next: FloatArray
    """``log pi(o'|s')``."""
    gap_next: FloatArray
    """``1{o' = j} - pi_j(s')`` (m, J - 1): derivative of ``log_next`` by the logit's index."""
    value_next: FloatArray
    """``W`` or ``h_o`` of the next row."""
    g_next: FloatArray
    x_next: FloatArray
    """Features of the next row's reference (m, K); K = 0 where they were not asked for."""

    @property
    def probabilities(self) -> FloatArray:
        """``pi`` (n, J)."""
        return np.exp(self.logs) if self.offered is None else np.exp(self.logs) * self.offered


def row_blocks(
    sieved: SievedRows,
    stages: FirstStages,
    *,
    features: bool = True,
    values: bool = True,
    next_features: bool = False,
) -> Iterator[RowBlock]:
    """Yield all rows with what follows them.

    Parameters
    ----------
    features, values
        Whether features of choices and the stages' values are needed.
    next_features
        Whether features of the next row's reference are needed.
    """
    J, rows, model = sieved.J, sieved.rows, sieved.model
    for block in rows.blocks():
        n = len(block.choice)
        # a row's next one is the row after it, so everything is evaluated once, on the block and
        # the row after its last
        span = slice(block.rows.start, min(block.rows.stop + 1, len(rows.x)))
        states = np.ascontiguousarray(rows.x[span])
        table, phi = sieved.table(states), sieved.sieve(states)
        offered = model.offered(table)
        reference, base = model.reference(offered, len(table)), model.base(table)
        paid = model.known(table)
        g = paid + base[np.arange(len(table)), reference]
        x = model.design(table)[0] if features else np.zeros((len(table), J, 0))
        logs = stages.logs(span, phi, offered)
        followed = np.sort(np.r_[block.moved, np.flatnonzero(block.ended)])
        # positions of the next rows, and of the rows they follow among the followed ones
        after, place = block.moved + 1, np.searchsorted(followed, block.moved)
        reference_next, logs_next = reference[after], logs[after]
        pi_next = np.exp(logs_next) if offered is None else np.exp(logs_next) * offered[after]
        each = np.arange(len(after))

        def spread(moved: Values, place: IntArray = place, size: int = len(followed)) -> Values:
            """Put what belongs to next rows beside the rows they follow, zero elsewhere."""
            out = np.zeros((size, *moved.shape[1:]), dtype=moved.dtype)
            out[place] = moved
            return out

        value, value_next = np.zeros(0), np.zeros(len(followed) if values else 0)
        if values:
            all_values = stages.values(span, phi)
            value, moved = all_values[:n], all_values[after]
            value_next = spread(moved[each, reference_next] if moved.ndim > 1 else moved)
        x_next = x[after, reference_next] if next_features else np.zeros((len(after), 0))
        yield RowBlock(
            rows=block.rows,
            phi=phi[:n],
            x=x[:n],
            base=base[:n],
            reference=reference[:n],
            g=g[:n],
            paid=paid[:n],
            choice=block.choice,
            weight=block.weight,
            offered=None if offered is None else offered[:n],
            logs=logs[:n],
            value=value,
            followed=followed,
            phi_next=spread(phi[after]),
            reference_next=spread(reference_next),
            log_next=spread(logs_next[each, reference_next]),
            gap_next=spread(taken(reference_next, J) - pi_next[:, 1:]),
            value_next=value_next,
            g_next=spread(g[after]),
            x_next=spread(x_next),
        )
