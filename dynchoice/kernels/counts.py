"""Numba code of counting: rows are written into a grid, and the grid's cells are counted.

A grid (members, periods) holds the code of each row of the panel, and ``empty`` where a member has
no row. Keys (whole numbers from 0) are counted in a hash table by open addressing: ``table`` (m,)
holds keys or -1 and ``found`` (m,) how often each was met. ``m`` is a power of two, so that a mask
takes the place of a remainder.

A file of its own: see :mod:`dynchoice.kernels.levels`.
"""

from __future__ import annotations

import numpy as np

from dynchoice.kernels.core import compiled


@compiled
def fill_grid(member, period, code, low, first, grid, empty):
    """Write rows into ``grid`` (members, periods); return (rows written, refused, doubled).

    ``low`` is the number of the grid's first member and ``first`` its first period. Rows of members
    outside the grid are left out: another pass counts them. A row is refused where its ``code`` is
    below 0 or its period is outside. A second row of a member and period is counted as doubled, and
    not written.
    """
    N, T = grid.shape
    written, refused, doubled = 0, 0, 0
    for i in range(member.size):
        m = member[i] - low
        if m < 0 or m >= N:
            continue
        t = period[i] - first
        if code[i] < 0 or t < 0 or t >= T:
            refused += 1
        elif grid[m, t] != empty:
            doubled += 1
        else:
            grid[m, t] = code[i]
            written += 1
    return written, refused, doubled


@compiled
def fill_weights(member, weight, low, weights):
    """Write each member's weight (N,); return how many rows have another than their member.

    ``weights`` is NaN where no row of the member was read yet.
    """
    uneven = 0
    for i in range(member.size):
        m = member[i] - low
        if 0 <= m < weights.size:
            if weights[m] != weights[m]:
                weights[m] = weight[i]
            elif weights[m] != weight[i]:
                uneven += 1
    return uneven


@compiled
def describe_members(grid, empty, cells, segments, first, last, total, seen, extra):
    """Add the numbers of a panel's report to ``total`` (9,), and members by segment to ``seen``.

    ``total``: members, rows, gaps, members with gaps, entered after period ``first``, gone before
    ``last``, there at ``last``, with one row, in several segments. A code divided by ``cells`` is
    region * ``segments`` + segment. ``seen`` (segments, weights) counts members by segment and by
    the code of their weight, ``extra`` (N,).
    """
    N, T = grid.shape
    here = np.empty(segments, dtype=np.bool_)
    for m in range(N):
        start, end, months, gaps = -1, -1, 0, 0
        here[:] = False
        for t in range(T):
            if grid[m, t] != empty:
                if start < 0:
                    start = t
                elif t > end + 1:  # periods without a row since the last one
                    gaps += 1
                end = t
                months += 1
                here[np.int64(grid[m, t]) // cells % segments] = True
        if start < 0:
            continue
        total[0] += 1
        total[1] += months
        total[2] += gaps
        total[3] += gaps > 0
        total[4] += start > first
        total[5] += end < last
        total[6] += end == last
        total[7] += months == 1
        places = 0
        for g in range(segments):
            if here[g]:
                places += 1
                seen[g, extra[m]] += 1
        total[8] += places > 1


@compiled
def member_keys(grid, empty, members, extra, sizes, by_region, keys, period_keys, region_keys):
    """Write the keys of each row of some members; return the number of these rows.

    The three arrays of keys are overwritten from their first place on. A code is
    ((region, segment), (state, choice), decides) with ``sizes`` = (segments, states, choices,
    weights). Keys end with the code of the member's weight, ``extra`` (N,): ``keys`` are (segment,
    state, choice, decides, next state + 1), ``period_keys`` (segment, period, state, choice,
    decides) and ``region_keys``, if wanted, (region, segment, period, state, choice, decides, next
    state + 1).
    """
    segments, S, J, weights = sizes
    N, T = grid.shape
    cells = S * J * 2
    k = 0
    for i in members:
        ahead = np.int64(0)  # next state + 1; 0 where the next period has no row
        for back in range(T):  # from the last period backwards, so that the next state is known
            t = T - 1 - back
            if grid[i, t] == empty:
                ahead = np.int64(0)
                continue
            code = np.int64(grid[i, t])
            group = code // cells
            cell = code - group * cells
            segment = group % segments if by_region else group
            keys[k] = ((segment * cells + cell) * (S + 1) + ahead) * weights + extra[i]
            period_keys[k] = ((segment * T + t) * cells + cell) * weights + extra[i]
            if by_region:
                place = (group * T + t) * cells + cell
                region_keys[k] = (place * (S + 1) + ahead) * weights + extra[i]
            ahead = cell // (J * 2) + 1
            k += 1
    return k


@compiled
def count_keys(keys, start, table, found):
    """Count keys from number ``start`` on; return (keys done, places taken).

    It stops early when half the table is taken, since searches in a fuller one are long: the caller
    goes on with a larger table.
    """
    mask = table.size - 1
    taken = 0
    for i in range(table.size):
        taken += table[i] >= 0
    for i in range(start, keys.size):
        if 2 * taken > table.size:
            return i, taken
        key = keys[i]
        # 2**64 over the golden ratio spreads keys that lie close; its high bits are mixed into the
        # low ones, which the mask keeps
        h = key * np.int64(-7046029254386353131)
        at = (h ^ (h >> 32)) & mask
        while table[at] != key and table[at] >= 0:
            at = (at + 1) & mask
        if table[at] < 0:
            table[at] = key
            taken += 1
        found[at] += 1
    return keys.size, taken


@compiled
def regrow(table, found, larger, counts):
    """Move a table of counted keys into a larger one: ``larger`` (all -1), ``counts`` (all 0)."""
    mask = larger.size - 1
    for i in range(table.size):
        if table[i] >= 0:
            h = table[i] * np.int64(-7046029254386353131)
            at = (h ^ (h >> 32)) & mask
            while larger[at] >= 0:
                at = (at + 1) & mask
            larger[at] = table[i]
            counts[at] = found[i]
