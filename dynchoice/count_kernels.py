"""Numba code of counting: rows into a grid of members and periods, and its cells into a table.

A grid (members, periods) holds one code a row of the panel, ``empty`` where there is none. Tables
count keys (whole numbers from 0) by open addressing: ``table`` (m,) holds keys or -1 and ``found``
(m,) how often each was met; ``m`` is a power of two.

A file of its own: see :mod:`dynchoice.level_kernels`.
"""

from __future__ import annotations

import numpy as np

from dynchoice.kernels import compiled


@compiled
def fill_grid(member, period, code, low, first, grid, empty):
    """Write rows into ``grid`` (members, periods); return (rows written, refused, doubled).

    Rows of members outside the grid are left out; ``code`` below 0 is a row to refuse. A place that
    is taken already is a second row of that member and period: it is counted, not written.
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
    """Write each member's weight (N,); return how many rows disagree with their member's."""
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
    """Add what a report says of members into ``total`` (9,), and who is seen where.

    ``total``: members, rows, gaps, members with gaps, entered after period ``first``, gone before
    ``last``, there at ``last``, with one row, in several segments. A code divided by ``cells`` is
    region and segment, ``segments`` of these. ``seen`` (segments, weights) counts members by
    segment and by code of weight, ``extra`` (N,).
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
                elif t > end + 1:
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
def member_keys(grid, empty, members, extra, sizes, by_period, by_region, keys):
    """Write a key for each row of some members; return how many.

    A code is ((region, segment), (state, choice), decides) with ``sizes`` = (segments, states,
    choices, weights). The key is (region if wanted, segment, period if wanted, state, choice,
    decides, next state + 1 unless only ``by_period``, weight).
    """
    segments, S, J, weights = sizes
    N, T = grid.shape
    k = 0
    for i in members:
        for t in range(T):
            if grid[i, t] == empty:
                continue
            code = np.int64(grid[i, t])
            cell = code % (S * J * 2)
            group = code // (S * J * 2)
            key = group if by_region else group % segments
            if by_period:
                key = key * T + t
            key = key * (S * J * 2) + cell
            if by_region or not by_period:
                ahead = np.int64(0)
                if t + 1 < T and grid[i, t + 1] != empty:
                    ahead = np.int64(grid[i, t + 1]) % (S * J * 2) // (J * 2) + 1
                key = key * (S + 1) + ahead
            keys[k] = key * weights + extra[i]
            k += 1
    return k


@compiled
def count_keys(keys, start, table, found):
    """Count keys from number ``start`` on; return (keys done, places taken).

    It stops early when half the table is taken: the caller goes on with a larger one.
    """
    mask = table.size - 1
    taken = 0
    for i in range(table.size):
        taken += table[i] >= 0
    for i in range(start, keys.size):
        if 2 * taken > table.size:
            return i, taken
        key = keys[i]
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
    """Move a table of counted keys into a larger one."""
    mask = larger.size - 1
    for i in range(table.size):
        if table[i] >= 0:
            h = table[i] * np.int64(-7046029254386353131)
            at = (h ^ (h >> 32)) & mask
            while larger[at] >= 0:
                at = (at + 1) & mask
            larger[at] = table[i]
            counts[at] = found[i]
