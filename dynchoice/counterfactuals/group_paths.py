"""Paths of one fit's customers under all scenarios, at the estimates and at every draw.

A task is prepared once (scenarios applied, engines built at the estimates); then each draw solves
every scenario and pushes every group through it. What comes after the last period is in
:mod:`dynchoice.counterfactuals.lifetime_value`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dynchoice.counterfactuals.accounts import Ledger
from dynchoice.counterfactuals.applied import AppliedScenario
from dynchoice.counterfactuals.badges import Badge, badge
from dynchoice.counterfactuals.draws import Draw, scenario_tables
from dynchoice.counterfactuals.engine import Engine, Features, Policy, Solved
from dynchoice.counterfactuals.lifetime_value import LongRun, compute_long_run
from dynchoice.counterfactuals.population import Fitted, Group, price_of_utility
from dynchoice.counterfactuals.roll_forward import Dates, Phase, Sums, follow, phases, push_periods
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import SpecificationError, suggest
from dynchoice.model.ddc import DDC
from dynchoice.names import ALL
from dynchoice.solvers.layout import PlainBlocks
from dynchoice.solvers.layout_levels import blocks_of
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

BATCH = 8
"""Draws whose flow utilities are computed at once: one product of matrices."""
TOL = 1e-12
"""Residual of solutions at the estimates."""
DRAW_TOL = 1e-8
"""Residual of solutions at draws: far below the sampling error that they are to show."""


Ahead = dict[tuple[int, bytes], tuple[FloatArray, FloatArray | None]]
"""Flow utilities (B, n, J) and starting values (B, n) by engine and parameters."""


@dataclass(kw_only=True)
class GroupPaths:
    """Sums by scenario and group at the estimates and at each draw, with money's price.

    ``point[i][g]``, ``drawn[b][i][g]`` are paths of scenario ``i`` and group ``g``, surplus and
    welfare in utils; ``alpha`` (1 + draws,) is the price parameter.
    """

    point: list[list[Sums]]
    drawn: list[list[list[Sums]]]
    alpha: FloatArray
    names: list[tuple[str, ...]]
    choices: list[tuple[Level, ...]]
    long_run: list[list[LongRun | None]]
    long_run_drawn: list[list[list[LongRun | None]]]
    failures: int
    solved: int
    badges: list[Badge | None]

    def with_draws_of(self, others: Sequence[GroupPaths]) -> GroupPaths:
        """Return these paths with the draws of later chunks appended."""
        return replace(
            self,
            drawn=[draw for part in (self, *others) for draw in part.drawn],
            alpha=np.concatenate([self.alpha, *(o.alpha[1:] for o in others)]),
            long_run_drawn=[draw for part in (self, *others) for draw in part.long_run_drawn],
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

    @property
    def entry_names(self) -> tuple[str, ...]:
        """Entries of the ledger; none without a membership."""
        return () if self.ledger is None else self.ledger.names


def occupied(blocks: PlainBlocks, mu: FloatArray) -> BoolArray:
    """Return which blocks (B,) somebody stands in."""
    return np.asarray((mu[blocks.order] > 0).any(axis=1))


def prepare(task: Task) -> list[Prepared]:
    """Make every scenario ready, the baseline first; those with the same model share an engine."""
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
        engine = next(
            (
                p.engine
                for p in ready
                if p.engine.model is model and np.array_equal(p.engine.theta, params)
            ),
            None,
        )
        if engine is None:
            reached = visited if model is base else _reached(base, blocks, active, applied)
            engine = task.shared.engine(model, params, occupied(blocks_of(model), reached))
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


def _dates(scenario: Scenario, group: Group) -> Dates:
    """Return when a scenario is known, starts and ends for a group."""
    if scenario.ramp is None:
        return Dates(scenario.starts, scenario.announced, scenario.ends)
    by_region = {str(region): starts for region, starts in scenario.ramp.items()}
    if str(group.region) not in by_region:
        return Dates(None)
    starts = int(by_region[str(group.region)])
    return Dates(starts, max(starts - scenario.lead, 1), None)


def _mix(scenario: Scenario, group: Group) -> float:
    """Return the factor on a group's number of customers."""
    by_segment = {str(segment): factor for segment, factor in (scenario.mix or {}).items()}
    return float(by_segment.get(str(group.segment), 1.0))


def check_ramps(scenarios: Sequence[Scenario], groups: Sequence[Group]) -> None:
    """Raise where a scenario names a region or segment in which nobody starts."""
    regions = [str(g.region) for g in groups]
    segments = [str(g.segment) for g in groups]
    for s in scenarios:
        for what, names, pool in (("ramp", s.ramp, regions), ("mix", s.mix, segments)):
            empty = [k for k in names or () if str(k) not in pool]
            if empty:
                raise SpecificationError(
                    f"scenario {s.name!r}: {what} names {empty[0]!r}, where nobody starts."
                    f"{suggest(empty[0], dict.fromkeys(pool))}"
                )
        if s.mix and groups and not any(_mix(s, g) for g in groups):
            raise SpecificationError(f"scenario {s.name!r}: mix leaves nobody")


def run_task(task: Task) -> GroupPaths:
    """Return the paths of one fit: estimates first, then draws."""
    ready = prepare(task)
    blocks = ready[0].engine.blocks
    mus = [blocks.blocked(g.mu) for g in task.groups]
    ledgers = {id(p.engine): p.ledger for p in ready if p.ledger is not None}
    if task.draws:
        for p in ready:
            p.engine.prepare()
    out = GroupPaths(
        point=[],
        drawn=[],
        alpha=np.zeros(0),
        names=[p.entry_names for p in ready],
        choices=[p.engine.model.choices for p in ready],
        long_run=[],
        long_run_drawn=[],
        failures=0,
        solved=0,
        badges=[p.badge for p in ready],
    )
    alphas: list[float] = []
    ahead: Ahead = {}
    everything = [Draw(task.fit.theta), *task.draws]
    for b, draw in enumerate(everything):
        if b % BATCH == 1:  # 0 are the estimates: batches of draws begin at 1, 9, 17 ...
            ahead = flows_ahead(ready, [d.theta for d in everything[b : b + BATCH]])
        if draw.tables:
            for engine in unique_engines(ready):
                engine.with_tables(scenario_tables(engine.model, task.fit.model, draw.tables))
        done = run_draw(task, ready, mus, ledgers, draw.theta, ahead, at_estimates=b == 0)
        out.solved += done.solved
        out.failures += done.failed
        alphas.append(price_of_utility(task.fit.model, draw.theta))
        if b == 0:
            out.point, out.long_run = done.paths, done.long_run
        else:
            out.drawn.append(done.paths)
            out.long_run_drawn.append(done.long_run)
    out.alpha = np.array(alphas)
    return out


def flows_ahead(ready: Sequence[Prepared], thetas: Sequence[FloatArray]) -> Ahead:
    """Return flow utilities and starting values of some draws by engine and parameters."""
    ahead: Ahead = {}
    for p in ready:
        params = [p.applied.theta(theta) for theta in thetas]
        # scenarios that share an engine and change no parameter need the same flow once
        new = [x for x in params if (id(p.engine), x.tobytes()) not in ahead]
        if new:
            stacked = np.stack(new)
            pairs = zip(p.engine.flow(stacked), p.engine.guesses(stacked), strict=True)
            for x, pair in zip(new, pairs, strict=True):
                ahead[id(p.engine), x.tobytes()] = pair
    return ahead


def unique_engines(ready: Sequence[Prepared]) -> list[Engine]:
    """Return the engines, each once."""
    return list({id(p.engine): p.engine for p in ready}.values())


class OneDraw(NamedTuple):
    """One draw's sums and long runs by scenario and group; solutions made, and failed."""

    paths: list[list[Sums]]
    long_run: list[list[LongRun | None]]
    solved: int
    failed: int


def run_draw(
    task: Task,
    ready: Sequence[Prepared],
    mus: Sequence[FloatArray],
    ledgers: dict[int, Ledger],
    theta: FloatArray,
    ahead: Ahead,
    *,
    at_estimates: bool,
) -> OneDraw:
    """Solve every scenario at parameters (K,), and push every group (B, n) through it."""
    solutions, solved, failed = solve_scenarios(
        ready, theta, ahead, TOL if at_estimates else DRAW_TOL
    )
    base = solutions[0]
    out = OneDraw([], [], solved, failed)
    wanted = task.long_run == "bands" or (task.long_run == "point" and at_estimates)
    for p, new in zip(ready, solutions, strict=True):
        by_dates: dict[Dates, tuple[list[Phase], FloatArray]] = {}
        out.paths.append([])
        out.long_run.append([])
        for g, (group, mu) in enumerate(zip(task.groups, mus, strict=True)):
            dates = p.dates[g]
            if dates not in by_dates:
                by_dates[dates] = phases(base, new, p.place, dates, task.periods)
            listed, V = by_dates[dates]
            sums, _ = follow(
                base.engine,
                listed,
                mu,
                p.place,
                ledgers,
                last=group.last,
                names=p.entry_names,
                choices=p.engine.blocks.J,
            )
            sums.welfare = welfare_change(base, V, mu, dates, task.periods)
            if p.mix[g] != 1.0:
                sums = sums.times(p.mix[g])
            out.paths[-1].append(sums)
            long_run = None
            if wanted and p.ledger is not None:
                long_run = compute_long_run(
                    base,
                    new,
                    place=p.place,
                    ledger=p.ledger,
                    ledgers=ledgers,
                    dates=dates,
                    mu=mu,
                    sums=sums,
                    factor=p.mix[g],
                )
            out.long_run[-1].append(long_run)
    return out


def solve_scenarios(
    ready: Sequence[Prepared], theta: FloatArray, ahead: Ahead, tol: float
) -> tuple[list[Solved], int, int]:
    """Return each scenario's solution, how many were computed, and how many did not converge."""
    policies: dict[tuple[int, bytes], Policy] = {}
    solutions: list[Solved] = []
    failed = 0
    beyond: FloatArray | None = None
    for p in ready:
        params = p.applied.theta(theta)
        key = (id(p.engine), params.tobytes())
        if key not in policies:
            u, guess = ahead.get(key, (None, None))
            policies[key] = p.engine.at(params, tol, beyond, u, guess)
            # the baseline comes first: what its guess missed, the scenarios' will miss too
            if p is ready[0] and guess is not None and p.engine.last is not None:
                beyond = p.engine.last - guess
            failed += not policies[key].converged
        solutions.append(Solved(p.engine, policies[key], params))
    return solutions, len(policies), failed


def welfare_change(
    base: Solved, V: FloatArray, mu: FloatArray, dates: Dates, periods: int
) -> float:
    """Return the change of value when the scenario becomes known, summed over customers.

    ``V`` (B, n) is the value of that day in the baseline's layout.
    """
    if V is base.policy.V or dates.known is None:
        return 0.0
    standing = push_periods(base.engine, base.policy, mu, min(dates.known, periods) - 1)
    # blocks in which nobody stands are not solved: their values are zero
    return float(np.vdot(standing, V) - np.vdot(standing, base.policy.V))
