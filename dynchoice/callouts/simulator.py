"""A simulated page whose truth is known: members come, see callouts and click, some of them late.

For studies of policies: regret needs the truth. :func:`live` runs a policy in it day by day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.special import ndtr

from dynchoice import checks
from dynchoice.callouts.bandit import Callouts
from dynchoice.callouts.catalogue import Catalogue
from dynchoice.callouts.feature_terms import Terms
from dynchoice.errors import SpecificationError
from dynchoice.panel.states import StateSpace
from dynchoice.typing import FloatArray, IntArray, Level, Progress

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    DelayShares: TypeAlias = ArrayLike | Mapping[Level, ArrayLike]
    """Shares of clicks by day of delay, or by level of ``delay_by``."""


class CalloutWorld:
    """Members, callouts and the probability of a click, known exactly.

    Parameters
    ----------
    catalogue : pandas.DataFrame
        All items there will ever be; see :class:`dynchoice.Callouts`.
    context : mapping or StateSpace, optional
    terms : sequence of str
        Features of the truth.
    spread : mapping or float
        Term -> standard deviation of its weights.
    base : float
        Weight of the intercept: ``Phi(base)`` is the typical click rate.
    weights : array (n,), optional
        The truth itself, instead of drawing it.
    population : array, optional
        Share of members in each context. Default: alike.
    delays : array or mapping, optional
        Shares of clicks by day of delay, or by level of ``delay_by``. Default: at once.
    delay_by : str, optional
        Column of the catalogue.
    seed : int
        Of the truth.

    Raises
    ------
    SpecificationError
        A spread of an unknown term, shares that do not sum to one.
    """

    def __init__(
        self,
        catalogue: pd.DataFrame,
        context: Mapping[str, Sequence[Level]] | StateSpace | None = None,
        terms: Sequence[str] = ("1", "item"),
        *,
        spread: Mapping[str, float] | float = 0.3,
        base: float = -1.8,
        weights: ArrayLike | None = None,
        population: ArrayLike | None = None,
        delays: DelayShares | None = None,
        delay_by: str | None = None,
        seed: int = 0,
    ) -> None:
        if context is not None and not isinstance(context, StateSpace):
            context = StateSpace.from_axes(context)
        self.context = context
        self.catalogue = Catalogue(catalogue, context)
        self.terms = Terms(terms, self.catalogue.levels, context)
        rng = np.random.default_rng(seed)
        if weights is None:
            if not isinstance(spread, Mapping):
                spread = {t: spread for t in self.terms.names if t != "1"}
            checks.known(spread, self.terms.names, "spread: term")
            scale = np.array([spread.get(g, 0.0) for g in self.terms.groups])
            drawn = scale * rng.standard_normal(self.terms.size)
            drawn[[g == "1" for g in self.terms.groups]] = base
            weights = drawn
        self.weights = np.asarray(weights, float)
        checks.shape(self.weights, "weights", (self.terms.size,), "(features,)")
        X = 1 if context is None else context.size
        share = np.full(X, 1 / X) if population is None else np.asarray(population, float)
        if share.shape != (X,) or not np.isclose(share.sum(), 1):
            raise SpecificationError(f"population must be {X} shares that sum to one")
        self.population = share
        self.delay_by = delay_by
        self._delays = self._delay_table(delays)
        icode = self.terms.item_codes(self.catalogue.codes)
        index = self.terms.index(icode[None], self.terms.context_codes(np.arange(X))[:, None])
        self.chances = ndtr(self.weights[index].sum(axis=2))
        """Probability (X, I) of a click in each context."""

    def _delay_table(self, delays: DelayShares | None) -> FloatArray:
        """Return the shares of clicks (groups, days) by day of delay."""
        if self.delay_by is not None:
            if self.delay_by not in self.catalogue.levels or not isinstance(delays, Mapping):
                raise SpecificationError("delay_by needs a column of the catalogue and a mapping")
            levels = self.catalogue.levels[self.delay_by]
            missing = [x for x in levels if x not in delays]
            if missing:
                raise SpecificationError(f"delays has no shares of {missing[0]!r}")
            rows = [np.asarray(delays[x], float) for x in levels]
            days = max(len(r) for r in rows)
            table = np.array([np.pad(r, (0, days - len(r))) for r in rows])
        else:
            table = np.atleast_2d(np.ones(1) if delays is None else np.asarray(delays, float))
        if not np.allclose(table.sum(axis=1), 1) or (table < 0).any():
            raise SpecificationError("delays are shares of clicks by day: they sum to one")
        return table

    def members(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Return ``n`` members drawn from the population."""
        import pandas as pd

        if self.context is None:
            return pd.DataFrame({"member": np.arange(n)})
        codes = rng.choice(self.context.size, n, p=self.population)
        frame = self.context.labels(codes)
        frame.insert(0, "member", np.arange(n))
        return frame

    def clicks(
        self, item: IntArray, codes: IntArray, rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """Return whether each impression is clicked, and after how many days."""
        hit = rng.random(len(item)) < self.chances[codes, item]
        group = (
            np.zeros(len(item), np.int64)
            if self.delay_by is None
            else self.catalogue.codes[self.delay_by][item]
        )
        steps = np.cumsum(self._delays, axis=1)
        day = (rng.random(len(item))[:, None] > steps[group]).sum(axis=1)
        at_once = self._delays.shape[1] == 1
        within = np.zeros(len(item)) if at_once else rng.random(len(item))
        return hit.astype(float), day + within


@dataclass(frozen=True)
class Life:
    """The record of a policy in a world.

    Attributes
    ----------
    days : pandas.DataFrame
        Day by day: ``impressions``, ``reward`` (expected clicks, or value), ``regret`` (a mean per
        member, against the best eligible items), ``new`` (share of impressions of items that came
        later).
    log : pandas.DataFrame
        Every impression: member's context, item, propensity, whether and when it was clicked.
    """

    days: pd.DataFrame
    log: pd.DataFrame

    @property
    def regret(self) -> float:
        """The regret, summed over days."""
        return float(self.days["regret"].sum())


def live(
    policy: Callouts,
    world: CalloutWorld,
    *,
    days: int,
    per_day: int,
    arrivals: Mapping[int, Sequence[Level]] | None = None,
    prior: str | None = None,
    prior_days: Sequence[int] = (),
    seed: int = 0,
    keep_log: bool = False,
    progress: Progress | None = None,
) -> Life:
    """Run a policy in a world: it decides and learns, one batch a day.

    Parameters
    ----------
    policy : Callouts
        It is changed.
    world : CalloutWorld
    days, per_day : int
    arrivals : mapping, optional
        Day -> items of the world's catalogue that the policy gets then.
    prior : str, optional
        Method by which the policy learns its prior on ``prior_days``.
    prior_days : sequence of int
    seed : int
        Of members and clicks: the same for all policies compared.
    keep_log : bool
    progress : callable, optional

    Returns
    -------
    Life
    """
    import pandas as pd

    arrivals = arrivals or {}
    late = {x for items in arrivals.values() for x in items}
    rng = np.random.default_rng([seed, 77])
    waiting: list[pd.DataFrame] = []
    rows, logs = [], []
    number = 0
    for day in range(days):
        if day in arrivals:
            frame = world.catalogue.frame
            policy.add(frame[frame["item"].isin(list(arrivals[day]))])
        members = world.members(per_day, rng)
        shown = policy.decide(members, now=float(day), seed=day)
        member = shown["member"].to_numpy()
        codes = (
            np.zeros(per_day, np.int64) if world.context is None else world.context.codes(members)
        )
        item = world.catalogue.item_codes(shown["item"].to_numpy())
        hit, delay = world.clicks(item, codes[member], rng)
        time = day + rng.random(len(shown))
        frame = members.iloc[member].reset_index(drop=True)
        frame["impression"] = number + np.arange(len(shown))
        number += len(shown)
        frame["item"], frame["slot"] = shown["item"].to_numpy(), shown["slot"].to_numpy()
        frame["time"] = time
        clicked = hit == 1
        waiting.append(
            pd.DataFrame(
                {
                    "impression": frame["impression"].to_numpy()[clicked],
                    "time": (time + delay)[clicked],
                }
            )
        )
        rows.append(account_day(policy, world, codes, member, item, late, float(day)))
        if keep_log:
            logs.append(
                frame.assign(
                    propensity=shown["propensity"].to_numpy(), reward=hit, delay=delay, day=day
                )
            )
        now = float(day + 1)
        pending = pd.concat(waiting, ignore_index=True)
        due = pending["time"].to_numpy() < now
        waiting = [pending[~due]]
        policy.learn(frame, pending[due], batch=f"day {day}", now=now)
        if prior is not None and day in prior_days:
            policy.learn_prior(prior)
        if progress is not None:
            progress(day + 1, days, "days lived")
    table = pd.DataFrame(rows, index=pd.RangeIndex(days, name="day"))
    return Life(table, pd.concat(logs, ignore_index=True) if logs else pd.DataFrame())


def account_day(
    policy: Callouts,
    world: CalloutWorld,
    codes: IntArray,
    member: IntArray,
    item: IntArray,
    late: set[Level],
    now: float,
) -> dict[str, float]:
    """Return a day's reward and regret by the truth, per member.

    Parameters
    ----------
    policy : Callouts
    world : CalloutWorld
    codes : integer array, shape (members,)
        Context of each member.
    member, item : integer array, shape (n,)
        Of each impression; items by their place in the world's catalogue.
    late : set
        Items that came later.
    now : float
    """
    # items have other places in the two catalogues
    in_world = world.catalogue.item_codes(np.array(policy.catalogue.items, object))
    place_of = {x: i for i, x in enumerate(policy.catalogue.items)}
    in_policy = np.array([place_of.get(x, -1) for x in world.catalogue.items])
    best = np.zeros(len(codes))
    worth = np.empty(len(item))
    for code in np.unique(codes):
        value = policy.item_values(int(code))
        reward = world.chances[code, in_world] * value
        eligible = policy.catalogue.eligible(int(code)) & policy.catalogue.open_at(now)
        reward = np.where(eligible, reward, 0.0)
        best[codes == code] = np.sort(reward)[::-1][: policy.slots].sum()
        inside = codes[member] == code
        worth[inside] = world.chances[code, item[inside]] * value[in_policy[item[inside]]]
    new = np.isin(np.array(world.catalogue.items, object)[item], np.array(list(late), object))
    return {
        "impressions": len(item),
        "reward": float(worth.sum() / len(codes)),
        "regret": float((best.sum() - worth.sum()) / len(codes)),
        "new": float(new.mean()),
    }
