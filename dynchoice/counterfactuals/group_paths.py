"""One fit's part of a forecast: its groups of customers under all scenarios and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice.counterfactuals.accounts import Ledger
from dynchoice.counterfactuals.applied import AppliedScenario
from dynchoice.counterfactuals.badges import Badge, badge
from dynchoice.counterfactuals.draws import Draw, tables_of
from dynchoice.counterfactuals.engine import Engine, Features, Policy, steady_state
from dynchoice.counterfactuals.path import Dates, Sums, enter, follow, moved, phases
from dynchoice.counterfactuals.population import Fitted, Group, price_of_utility
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import SpecificationError, suggest
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.solvers.layout import PlainBlocks
from dynchoice.solvers.layout_levels import blocks_of
from dynchoice.typing import BoolArray, FloatArray, IntArray

BATCH = 8
"""Draws whose flow utilities are computed at once: one product of matrices."""
DRAW_TOL = 1e-8
"""Residual of solutions at draws; those at the estimates go to 1e-12."""


Ahead = dict[tuple[int, bytes], tuple[FloatArray, FloatArray | None]]
"""Flow utilities (B, n, J) and starting values (B, n) by engine and parameters."""


@dataclass(frozen=True)
class LongRun:
    """Entries of a period in the steady state (E,), and present values of revenue and profit."""

    shares: FloatArray
    entries: FloatArray
    surplus: float
    revenue: float
    profit: float


@dataclass
class GroupPaths:
    """Sums by scenario and group at the estimates and at each draw, with money's price.

    ``point[i][g]``, ``drawn[b][i][g]`` are paths of scenario ``i`` and group ``g``, surplus and
    welfare in utils; ``alpha`` (1 + draws,) is the price parameter.
    """

    point: list[list[Sums]]
    drawn: list[list[list[Sums]]]
    alpha: FloatArray
    names: list[tuple[str, ...]]
    choices: list[tuple[Any, ...]]
    long_run: list[list[LongRun | None]]
    long_run_drawn: list[list[list[LongRun | None]]]
    failures: int
    solved: int
    badges: list[Badge | None]
    notes: tuple[str, ...] = ()

    def with_draws_of(self, others: Sequence[GroupPaths]) -> GroupPaths:
        """Return these paths with the draws of later chunks appended."""
        return replace(
            self,
            drawn=[x for part in (self, *others) for x in part.drawn],
            alpha=np.concatenate([self.alpha, *(o.alpha[1:] for o in others)]),
            long_run_drawn=[x for part in (self, *others) for x in part.long_run_drawn],
            failures=self.failures + sum(o.failures for o in others),
            solved=self.solved + sum(o.solved for o in others),
        )


class Shared:
    """What the fits of one forecast have in common: scenarios applied, features, ledgers.

    Types and segments often share a model; what is made for it is made once. Everything here is
    read and never written again.
    """

    def __init__(self, scenarios: Sequence[Scenario]) -> None:
        self.scenarios = scenarios
        # the model is kept beside what its id stands for, so that the id is not given away
        self._applied: dict[int, tuple[DDC, list[AppliedScenario]]] = {}
        self.features: dict[int, Features] = {}
        self.ledgers: dict[int, Ledger] = {}

    def applied(self, base: DDC) -> list[AppliedScenario]:
        """Return the scenarios applied to a model, each once."""
        if id(base) not in self._applied:
            self._applied[id(base)] = base, [s.applied(base) for s in self.scenarios]
        return self._applied[id(base)][1]

    def engine(self, model: DDC, theta: FloatArray, active: BoolArray) -> Engine:
        """Return an engine on the model's shared features."""
        engine = Engine(model, theta, active, self.features.get(id(model)))
        self.features[id(model)] = engine.features
        if model.membership is not None and id(model) not in self.ledgers:
            self.ledgers[id(model)] = Ledger.of(model.membership, engine.blocks)
        return engine


@dataclass(frozen=True)
class Task:
    """What one thread computes: a fit, its groups, the scenarios and some draws."""

    fit: Fitted
    groups: list[Group]
    scenarios: Sequence[Scenario]
    periods: int
    draws: list[Draw]
    long_run: str
    shared: Shared
    badges: bool = True

    @property
    def title(self) -> str:
        """What a progress bar says."""
        segments = dict.fromkeys(str(g.segment) for g in self.groups)
        return f"forecast {next(iter(segments)) if len(segments) == 1 else ALL}"

    def split(self, chunks: int) -> list[Task]:
        """Return the task in chunks of draws (each solves the estimates again)."""
        if chunks <= 1 or len(self.draws) < 2 * chunks:
            return [self]
        # whole batches, so that every draw is computed in the same company however many threads
        size = BATCH * -(-len(self.draws) // (chunks * BATCH))
        return [
            replace(self, draws=self.draws[i : i + size], badges=i == 0)
            for i in range(0, len(self.draws), size)
        ]


@dataclass
class Prepared:
    """One scenario made ready: engine, dates by group, ledger."""

    applied: AppliedScenario
    engine: Engine
    dates: list[Dates]
    ledger: Ledger | None
    mix: list[float]
    badge: Badge | None = None

    @property
    def place(self) -> IntArray | None:
        """Where members move once the scenario is in force."""
        return self.applied.place


def occupied(blocks: PlainBlocks, mu: FloatArray) -> BoolArray:
    """Return the blocks (B,) in which somebody stands."""
    return np.asarray((mu[blocks.order] > 0).any(axis=1))


def prepare(task: Task) -> list[Prepared]:
    """Compile the baseline and every scenario; those that only move members share an engine."""
    base, theta = task.fit.model, task.fit.theta
    present = np.sum([g.mu for g in task.groups], axis=0)
    blocks = blocks_of(base)
    active = occupied(blocks, present)
    scenarios = task.shared.applied(base)
    # scenarios that only move members share the baseline's engine: it must solve where they go too
    visited = present.copy()
    for applied in scenarios:
        if applied.model is base and applied.place is not None:
            np.add.at(visited, applied.place[blocks.order[active].reshape(-1)], 1.0)
    ready: list[Prepared] = []
    for applied in scenarios:
        scenario, model = applied.scenario, applied.model
        params = applied.theta(theta)
        same = [
            p.engine
            for p in ready
            if p.engine.model is model and np.array_equal(p.engine.theta, params)
        ]
        if same:
            engine = same[0]
        else:
            target = visited if model is base else _reached(base, blocks, active, applied)
            engine = task.shared.engine(model, params, occupied(blocks_of(model), target))
        ready.append(
            Prepared(
                applied=applied,
                engine=engine,
                dates=[_dates(scenario, g) for g in task.groups],
                ledger=task.shared.ledgers.get(id(model)),
                mix=[_mix(scenario, g) for g in task.groups],
                badge=badge(applied, task.fit.counts) if task.badges else None,
            )
        )
    return ready


def _reached(
    base: DDC, blocks: PlainBlocks, active: BoolArray, applied: AppliedScenario
) -> FloatArray:
    """Return a mark (S~,) on states where members of the occupied blocks will stand."""
    states = blocks.order[active].reshape(-1)
    mark = np.zeros(applied.model.states.size)
    mark[states if applied.place is None else applied.place[states]] = 1.0
    return mark


def _dates(s: Scenario, group: Group) -> Dates:
    if s.ramp is None:
        return Dates(s.starts, s.announced, s.ends)
    first = next((v for k, v in s.ramp.items() if str(k) == str(group.region)), None)
    if first is None:
        return Dates(None)
    return Dates(int(first), max(int(first) - s.lead, 1), None)


def _mix(s: Scenario, group: Group) -> float:
    if not s.mix:
        return 1.0
    return float(next((v for k, v in s.mix.items() if str(k) == str(group.segment)), 1.0))


def check_ramps(scenarios: Sequence[Scenario], groups: Sequence[Group]) -> None:
    """Refuse regions and segments that nobody lives in."""
    regions = [str(g.region) for g in groups]
    segments = [str(g.segment) for g in groups]
    for s in scenarios:
        for what, names, pool in (("ramp", s.ramp, regions), ("mix", s.mix, segments)):
            strange = [k for k in names or () if str(k) not in pool]
            if strange:
                raise SpecificationError(
                    f"scenario {s.name!r}: {what} names {strange[0]!r}, where nobody starts."
                    f"{suggest(strange[0], dict.fromkeys(pool))}"
                )
        if s.mix and groups and not any(_mix(s, g) for g in groups):
            raise SpecificationError(f"scenario {s.name!r}: mix leaves nobody")


def run_task(task: Task) -> GroupPaths:
    """Return the paths of one fit: estimates first, then draws."""
    ready = prepare(task)
    base = ready[0].engine
    mus = [base.blocks.blocked(g.mu) for g in task.groups]
    ledgers = {id(p.engine): p.ledger for p in ready if p.ledger is not None}
    if task.draws:
        for p in ready:
            p.engine.prepare()
    names = [p.ledger.names if p.ledger is not None else () for p in ready]
    out = GroupPaths(
        point=[],
        drawn=[],
        alpha=np.zeros(0),
        names=names,
        choices=[p.engine.model.choices for p in ready],
        long_run=[],
        long_run_drawn=[],
        failures=0,
        solved=0,
        badges=[p.badge for p in ready],
    )
    alphas: list[float] = []
    flows: Ahead = {}
    everything = [Draw(task.fit.theta), *task.draws]
    for b, draw in enumerate(everything):
        if b % BATCH == 1:
            ahead = everything[b : b + BATCH]
            flows = flows_ahead(task, ready, [d.theta for d in ahead])
        if draw.tables:
            for engine in unique_engines(ready):
                engine.with_tables(tables_of(engine.model, task.fit.model, draw.tables))
        paths, far, solved, failed = one_draw(task, ready, mus, ledgers, draw.theta, b == 0, flows)
        out.solved += solved
        out.failures += failed
        alphas.append(price_of_utility(task.fit.model, draw.theta))
        if b == 0:
            out.point, out.long_run = paths, far
        else:
            out.drawn.append(paths)
            out.long_run_drawn.append(far)
    out.alpha = np.array(alphas)
    return out


def flows_ahead(task: Task, ready: Sequence[Prepared], thetas: Sequence[FloatArray]) -> Ahead:
    """Return flow utilities and starting values of some draws by engine and parameters."""
    out: Ahead = {}
    for p in ready:
        own = [p.applied.theta(theta) for theta in thetas]
        new = [x for x in own if (id(p.engine), x.tobytes()) not in out]
        if new:
            thetas_new = np.stack(new)
            pairs = zip(p.engine.flow(thetas_new), p.engine.guesses(thetas_new), strict=True)
            for x, pair in zip(new, pairs, strict=True):
                out[id(p.engine), x.tobytes()] = pair
    return out


def unique_engines(ready: Sequence[Prepared]) -> list[Engine]:
    """Return the engines, each once."""
    return list({id(p.engine): p.engine for p in ready}.values())


def one_draw(
    task: Task,
    ready: list[Prepared],
    mus: list[FloatArray],
    ledgers: dict[int, Ledger],
    theta: FloatArray,
    first: bool,
    flows: Ahead,
) -> tuple[list[list[Sums]], list[list[LongRun | None]], int, int]:
    """Return sums by scenario and group at one draw, solutions made and failed."""
    tol = 1e-12 if first else DRAW_TOL
    policies: dict[tuple[int, bytes], Policy] = {}
    found: list[tuple[Engine, Policy, FloatArray]] = []
    failed = 0
    beyond: FloatArray | None = None
    for p in ready:
        own = p.applied.theta(theta)
        key = (id(p.engine), own.tobytes())
        if key not in policies:
            u, guess = flows.get(key, (None, None))
            policies[key] = p.engine.at(own, tol, beyond, u, guess)
            if p is ready[0] and guess is not None and p.engine.last is not None:
                beyond = p.engine.last - guess
            failed += not policies[key].converged
        found.append((p.engine, policies[key], own))
    base = found[0]
    paths: list[list[Sums]] = []
    far: list[list[LongRun | None]] = []
    for p, new in zip(ready, found, strict=True):
        known: dict[Dates, Any] = {}
        paths.append([])
        far.append([])
        for g, (group, mu) in enumerate(zip(task.groups, mus, strict=True)):
            dates = p.dates[g]
            if dates not in known:
                known[dates] = phases(base, new, p.place, dates, task.periods)
            listed, V = known[dates]
            names = p.ledger.names if p.ledger is not None else ()
            sums, _ = follow(
                base[0], listed, mu, p.place, ledgers, group.last, names, p.engine.blocks.J
            )
            sums.welfare = welfare_change(base, V, mu, dates, task.periods)
            if p.mix[g] != 1.0:
                sums = scaled(sums, p.mix[g])
            paths[-1].append(sums)
            wanted = task.long_run == "bands" or (task.long_run == "point" and first)
            entry = None
            if wanted and p.ledger is not None:
                entry = long_run_of(base, new, p, dates, mu, sums, p.mix[g], ledgers)
            far[-1].append(entry)
    return paths, far, len(policies), failed


def scaled(sums: Sums, factor: float) -> Sums:
    """Return the sums of so many times as many customers."""
    return Sums(
        factor * sums.shares,
        factor * sums.flows,
        factor * sums.entries,
        factor * sums.surplus,
        factor * sums.welfare,
    )


def stepped(engine: Engine, policy: Policy, mu: FloatArray, periods: int) -> FloatArray:
    """Return a distribution (B, n) some periods later."""
    if not periods:
        return mu
    moves = [engine.blocks.mover(b, P) for b, P in enumerate(policy.P)]
    for _ in range(periods):
        mu = np.stack([move(own) for move, own in zip(moves, mu, strict=True)])
    return mu


def welfare_change(
    base: tuple[Engine, Policy, FloatArray],
    V: FloatArray,
    mu: FloatArray,
    dates: Dates,
    periods: int,
) -> float:
    """Return the change of value when the scenario becomes known, summed over customers."""
    engine, policy, _ = base
    if V is policy.V or dates.known is None:
        return 0.0
    at = stepped(engine, policy, mu, min(dates.known, periods) - 1)
    # blocks in which nobody stands are not solved: their values are zero
    return float(np.vdot(at, V) - np.vdot(at, policy.V))


def long_run_of(
    base: tuple[Engine, Policy, FloatArray],
    new: tuple[Engine, Policy, FloatArray],
    p: Prepared,
    dates: Dates,
    mu: FloatArray,
    sums: Sums,
    factor: float,
    ledgers: dict[int, Ledger],
) -> LongRun:
    """Return the steady state of a scenario for good, and today's customers' present value."""
    lasting = dates.starts is not None and dates.ends is None
    engine, policy, theta = new if lasting else base
    there = mu
    if lasting and p.place is not None:
        there = moved(base[0], engine, p.place, mu)
    elif engine is not base[0]:
        there = moved(base[0], engine, None, mu)
    assert p.ledger is not None
    ledger = p.ledger
    if not lasting:
        ledger = Ledger.of(engine.model.membership, engine.blocks)
    rest, _ = steady_state(engine, policy, there)
    stay = rest.copy()
    money, cost = cash(engine, policy, ledger)
    cells, values = engine.blocks.push(
        stay, policy.P, 1, cost[:, None], ledger.group, ledger.groups
    )
    found, _ = ledger.read(cells, values.sum(axis=0)[:1, 0])
    entries = ledger.named(found[0], p.ledger.names)
    worth = engine.flow_value(theta, policy)
    beta = engine.model.beta
    # the tail begins where nothing changes any more, which may be after the forecast
    T = max(len(sums.entries), dates.starts or 0, (dates.ends or 1) - 1)
    if len(sums.entries) < T:
        listed, _ = phases(base, new, p.place, dates, T)
        sums, _ = follow(
            base[0], listed, mu, p.place, ledgers, None, p.ledger.names, p.engine.blocks.J
        )
        sums = scaled(sums, factor)
    names = list(p.ledger.names)
    revenue = sums.entries[:, names.index("payments")] - sums.entries[:, names.index("refunds")]
    spent = sums.entries[:, names.index("benefit cost")]
    discount = beta ** np.arange(T)
    end = final_distribution(base, new, p, dates, mu, T)
    pv_cash, pv_cost = present_values(engine, policy, [money, cost])
    tail = factor * beta**T
    revenue_pv = float(discount @ revenue + tail * (end * pv_cash).sum())
    cost_pv = float(discount @ spent + tail * (end * pv_cost).sum())
    return LongRun(
        factor * cells.sum(axis=(0, 1, 2)),
        factor * entries,
        factor * float((rest * worth).sum()),
        revenue_pv,
        revenue_pv - cost_pv,
    )


def final_distribution(
    base: tuple[Engine, Policy, FloatArray],
    new: tuple[Engine, Policy, FloatArray],
    p: Prepared,
    dates: Dates,
    mu: FloatArray,
    periods: int,
) -> FloatArray:
    """Return where customers stand after the last period, in the layout of what holds then."""
    listed, _ = phases(base, new, p.place, dates, periods)
    before, at = base[0], mu
    for phase in listed:
        at = enter(before, phase, p.place, at)
        before = phase.engine
        at = stepped(before, phase.policy, at, phase.periods)
    lasting = dates.starts is not None and dates.ends is None
    target = new[0] if lasting else base[0]
    if before is target:
        return at
    return moved(before, target, p.place if lasting else None, at)


def cash(engine: Engine, policy: Policy, ledger: Ledger) -> tuple[FloatArray, FloatArray]:
    """Return expected payments less refunds, and costs of benefits, by state (B, n)."""
    net = ledger.money[0] - ledger.money[1]
    return (policy.P * net[:, ledger.group]).sum(axis=2), ledger.cost(policy.P)


def present_values(engine: Engine, policy: Policy, flows: Sequence[FloatArray]) -> list[FloatArray]:
    """Return ``(I - beta F^P)^{-1} flow`` (B, n) of each flow (SOURCES.md 7.5)."""
    b, beta = engine.blocks, engine.model.beta
    right = np.stack(flows, axis=2)
    relative = b.solve_linear(policy.P, right)
    out = []
    for k in range(right.shape[2]):
        h = relative[:, :, k]
        value = np.empty_like(h)
        for i in range(b.B):
            ahead = b.policy_expect(i, h[i], policy.P[i])
            value[i] = h[i] + (right[i, 0, k] + beta * ahead[0] - h[i, 0]) / (1 - beta)
        out.append(value)
    return out
