"""Paths: a distribution over states pushed through the phases of a scenario.

    m_t(s, j) = mu_t(s) P_t(j|s),      mu_{t+1}(s') = sum_{s,j} m_t(s, j) F_t(s'|s, j).

A scenario has up to four phases: before anybody knows (stationary baseline), announced but not in
force (baseline payoffs, values solved backwards from the day it starts), in force (stationary, or
solved backwards from the day it ends), and after. No member is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynchoice.counterfactuals.accounts import Ledger
from dynchoice.counterfactuals.engine import Engine, Policy, Solved
from dynchoice.model.ddc import DDC
from dynchoice.typing import FloatArray, IntArray


@dataclass(frozen=True)
class Dates:
    """Periods of a scenario for one group of customers, counted from 1; ``starts`` None: never."""

    starts: int | None
    announced: int | None = None
    ends: int | None = None

    @property
    def known(self) -> int | None:
        """Period from which members know."""
        return self.starts if self.announced is None else self.announced


@dataclass(frozen=True)
class Phase:
    """Some periods under one policy.

    ``ahead`` (B, n) is what members think the next period is worth; ``enters`` says that the
    scenario takes hold with this phase, so that members move to its states.
    """

    engine: Engine
    policy: Policy
    ahead: FloatArray
    periods: int
    theta: FloatArray
    enters: bool = False


@dataclass
class Sums:
    """What a path adds up to, in customers: shares (T, J), flows (T, J, J), entries (T, E).

    ``surplus`` (T,) is the flow of experienced utility, ``welfare`` the change of value when the
    scenario becomes known, in utils summed over customers.
    """

    shares: FloatArray
    flows: FloatArray
    entries: FloatArray
    surplus: FloatArray
    welfare: float = 0.0

    def times(self, factor: float) -> Sums:
        """Return the sums of so many times as many customers."""
        return Sums(
            factor * self.shares,
            factor * self.flows,
            factor * self.entries,
            factor * self.surplus,
            factor * self.welfare,
        )


def move_between(
    source: Engine, target: Engine, place: IntArray | None, mu: FloatArray
) -> FloatArray:
    """Return a distribution (B, n) of one model in the states of another."""
    by_state = source.blocks.by_state(mu)
    if place is not None:
        size = target.model.states.size
        by_state = np.bincount(place, weights=by_state, minlength=size).astype(np.float64)
    return target.blocks.blocked(by_state)


def values_seen_from(
    source: Engine, target: Engine, place: IntArray | None, V: FloatArray
) -> FloatArray:
    """Return values (B, n) of the target's states where the source's states will stand."""
    by_state = target.blocks.by_state(V)
    return source.blocks.blocked(by_state if place is None else by_state[place])


def phases(
    base: Solved,
    new: Solved,
    place: IntArray | None,
    dates: Dates,
    periods: int,
) -> tuple[list[Phase], FloatArray]:
    """Return the phases of a path, and the value (B, n) in the baseline's layout on the day that
    the scenario becomes known.

    ``base`` and ``new`` are the stationary solutions without and with it.
    """
    engine, policy, theta = base
    engine_new, policy_new, theta_new = new
    starts, known = dates.starts, dates.known
    no_change = engine_new is engine and policy_new is policy and place is None
    if starts is None or known is None or no_change:
        return [Phase(engine, policy, policy.V, periods, theta)], policy.V
    # from the last day backwards: the end, then the start, then the announcement
    if dates.ends is None:
        inside = [Phase(engine_new, policy_new, policy_new.V, periods, theta_new)]
        after: list[Phase] = []
        value_at_start = policy_new.V
    else:
        inside, value_at_start = _solve_backwards(
            engine_new, theta_new, policy.V, dates.ends - starts
        )
        after = [Phase(engine, policy, policy.V, periods, theta)]
    inside[0] = replace(inside[0], enters=True)
    ahead = values_seen_from(engine, engine_new, place, value_at_start)
    waiting, ahead = _solve_backwards(engine, theta, ahead, starts - known)
    before = Phase(engine, policy, policy.V, known - 1, theta)
    kept, left = [], periods
    for phase in (before, *waiting, *inside, *after):
        length = min(phase.periods, left)
        if length > 0:
            kept.append(replace(phase, periods=length))
            left -= length
    return kept, ahead


def _solve_backwards(
    engine: Engine, theta: FloatArray, ahead: FloatArray, periods: int
) -> tuple[list[Phase], FloatArray]:
    """Return one phase a period for periods before a day worth ``ahead`` (B, n), and the value of
    the first of them."""
    solved: list[Phase] = []
    for _ in range(periods):
        policy = engine.backward(theta, ahead)
        solved.append(Phase(engine, policy, ahead, 1, theta))
        ahead = policy.V
    return solved[::-1], ahead


def follow(
    origin: Engine,
    listed: Sequence[Phase],
    mu: FloatArray,
    place: IntArray | None,
    ledgers: dict[int, Ledger],
    last: FloatArray | None,
    names: tuple[str, ...] = (),
    choices: int = 0,
) -> tuple[Sums, FloatArray]:
    """Push ``mu`` (B, n) through phases; return what it adds up to and the final distribution.

    Parameters
    ----------
    origin : Engine
        In whose layout ``mu`` is.
    ledgers : dict
        By ``id`` of an engine; engines without one have no membership, and their flows go by
        the choice of the period before.
    last : FloatArray, shape (S, J), optional
        Choices of the period before the first, for such flows.
    names : tuple of str
        Entries wanted; what a phase's ledger does not have is zero.
    choices : int
        Choices wanted at least; those that a phase does not have are not made.
    """
    if not ledgers:
        return follow_choices(origin, listed, mu, place, last, choices)
    parts: list[Sums] = []
    mu, before = mu.copy(), origin  # push moves it on in place
    for i, phase in enumerate(listed):
        engine, policy, n = phase.engine, phase.policy, phase.periods
        mu = enter(before, phase, place, mu)
        before = engine
        b, ledger = engine.blocks, ledgers[id(engine)]
        # who foresees their inattention lives what V says: the flow is V - beta E[V'], for a sum
        # that is pushed along anyway; the naive's flow is summed itself
        naive = not engine.model.sophisticated
        worth = engine.flow_value(phase.theta, policy) if naive else policy.V
        if i == len(listed) - 1 and (engine.twin != np.arange(b.B)).any():
            merged = np.zeros_like(mu)  # offers that are alike go on as one
            np.add.at(merged, engine.twin, mu)
            mu = merged
        each = np.stack([worth, ledger.cost(policy.P)] if ledger.costly else [worth], axis=1)
        cells, values = b.push(mu, policy.P, n, each, ledger.group, ledger.groups)
        total = values.sum(axis=0)[:, 0]
        spent = values.sum(axis=0)[:-1, -1] if ledger.costly else np.zeros(n)
        if naive:
            surplus = total[:-1]
        else:
            later = total[1:].copy()
            later[-1] = float((mu * phase.ahead).sum())
            surplus = total[:-1] - engine.model.beta * later
        entries, flows = ledger.read(cells, spent)
        parts.append(Sums(flows.sum(axis=1), flows, ledger.named(entries, names), surplus))
    return _join(parts, choices), mu


def _join(parts: list[Sums], choices: int) -> Sums:
    """Return consecutive phases as one path; choices added later count zero before."""
    J = max(choices, *(p.shares.shape[1] for p in parts))
    if len(parts) == 1 and parts[0].shares.shape[1] == J:
        return parts[0]

    def wide(a: FloatArray, axes: int) -> FloatArray:
        pad = [(0, 0), *[(0, J - a.shape[1])] * axes]
        return np.pad(a, pad)

    return Sums(
        np.concatenate([wide(p.shares, 1) for p in parts]),
        np.concatenate([wide(p.flows, 2) for p in parts]),
        np.concatenate([p.entries for p in parts]),
        np.concatenate([p.surplus for p in parts]),
    )


def enter(before: Engine, phase: Phase, place: IntArray | None, mu: FloatArray) -> FloatArray:
    """Return where members stand as a phase begins (B, n)."""
    if phase.enters and place is not None:
        return move_between(before, phase.engine, place, mu)
    return mu if phase.engine is before else move_between(before, phase.engine, None, mu)


def follow_choices(
    origin: Engine,
    listed: Sequence[Phase],
    mu: FloatArray,
    place: IntArray | None,
    last: FloatArray | None,
    choices: int = 0,
) -> tuple[Sums, FloatArray]:
    """Push ``mu`` period by period; flows are from the choice of a period to that of the next.

    For models without membership; arguments and results as of :func:`follow`.
    """
    mu, before = mu.copy(), origin
    J = max(choices, *(s.engine.blocks.J for s in listed))
    T = sum(phase.periods for phase in listed)
    shares, flows, surplus = np.zeros((T, J)), np.full((T, J, J), np.nan), np.empty(T)
    t = 0
    for i, phase in enumerate(listed):
        engine, n = phase.engine, phase.periods
        mu = enter(before, phase, place, mu)
        before = engine
        naive = not engine.model.sophisticated
        worth = engine.flow_value(phase.theta, phase.policy) if naive else phase.policy.V
        P = phase.policy.P.reshape(mu.size, -1)
        k = P.shape[1]  # choices of this phase, of J in all
        stays = flow_table(phase, phase, None) if n > 1 else np.zeros((0, mu.size))
        sums = np.column_stack(
            [P, worth.reshape(-1), phase.ahead.reshape(-1), stays.reshape(mu.size, -1)]
        )
        for done, rows in trajectory(engine, phase.policy, mu, n):
            # columns: k choices, worth, worth of the period ahead, k * k moves
            totals = by_row(rows.reshape(len(rows), -1), sums)
            span = slice(t + done, t + done + len(rows) - 1)
            shares[span, :k], surplus[span] = totals[:-1, :k], totals[:-1, k]
            if not naive:
                surplus[span] -= engine.model.beta * totals[1:, k + 1]
            mu = rows[-1]
            ends = done + len(rows) - 1 == n
            if n > 1:  # the last move is to the next phase
                inside = totals[: -2 if ends else -1, k + 2 :].reshape(-1, k, k)
                flows[span.start + 1 : span.start + 1 + len(inside), :k, :k] = inside
            if ends and i + 1 < len(listed):
                moves = np.tensordot(rows[-2], flow_table(phase, listed[i + 1], place), axes=2)
                flows[span.stop, :k, : moves.shape[1]] = moves
        t += n
    if last is not None:
        moves = first_flows(origin, listed[0], place, last)
        flows[0, : len(moves), : moves.shape[1]] = moves
    return Sums(shares, flows, np.zeros((T, 0)), surplus), mu


ROWS = 8
"""Rows of a product at once: always as many, so that their number changes no last bit."""


def by_row(rows: FloatArray, table: FloatArray) -> FloatArray:
    """Return ``rows @ table`` (m, k), each row the same whatever follows it."""
    m, n = rows.shape
    out = np.empty((m + -m % ROWS, table.shape[1]))
    for i in range(0, m - ROWS + 1, ROWS):
        np.matmul(rows[i : i + ROWS], table, out=out[i : i + ROWS])
    rest = m % ROWS
    if rest:
        last = np.zeros((ROWS, n))
        last[:rest] = rows[m - rest :]
        np.matmul(last, table, out=out[m - rest :])
    return out[:m]


def push_periods(engine: Engine, policy: Policy, mu: FloatArray, periods: int) -> FloatArray:
    """Return a distribution (B, n) some periods later."""
    if not periods:
        return mu
    moves = [engine.blocks.mover(b, P) for b, P in enumerate(policy.P)]
    for _ in range(periods):
        mu = np.stack([move(block) for move, block in zip(moves, mu, strict=True)])
    return mu


TOGETHER = 4_000_000
"""Numbers that periods kept at once may take (32 MB)."""


def trajectory(
    engine: Engine, policy: Policy, mu: FloatArray, periods: int
) -> Iterator[tuple[int, FloatArray]]:
    """Yield (periods before, distributions (m + 1, B, n)), several periods at once."""
    moves = {b: engine.blocks.mover(b, policy.P[b]) for b in range(len(mu)) if mu[b].any()}
    together = max(1, TOGETHER // mu.size)
    for done in range(0, periods, together):
        m = min(together, periods - done)
        rows = np.zeros((m + 1, *mu.shape))
        rows[0] = mu
        for k in range(m):
            for b, move in moves.items():
                rows[k + 1, b] = move(rows[k, b])
        mu = rows[-1]
        yield done, rows


def next_choices(model: DDC, following: Phase, place: IntArray | None) -> FloatArray:
    """Return ``E[P_next(k | s') | s, j]`` (S, J, J) from the states of a model."""
    P = following.engine.blocks.by_state(following.policy.P)
    if following.enters and place is not None:
        P = P[place]
    return np.asarray(model.transitions.expect(np.ascontiguousarray(P)))


def flow_table(phase: Phase, following: Phase, place: IntArray | None) -> FloatArray:
    """Return ``P(j|s) E[P_next(k|s') | s, j]`` (B, n, J, J)."""
    expected = next_choices(phase.engine.model, following, place)
    return np.asarray(phase.policy.P[..., None] * phase.engine.blocks.blocked(expected))


def first_flows(
    origin: Engine, first: Phase, place: IntArray | None, last: FloatArray
) -> FloatArray:
    """Return flows into the first period from the choices (S, J) that members were seen to make."""
    return np.einsum("sj,sjk->jk", last, next_choices(origin.model, first, place))
