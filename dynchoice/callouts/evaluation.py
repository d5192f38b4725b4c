"""What another policy would have earned: off-policy values from logs with propensities, and replay.

SOURCES.md 8A.6. Weights are ``w = target probability / propensity`` of what was shown:

    IPS = mean(w r),   SNIPS = sum(w r) / sum(w),   DR = mean(q(x, target) + w (r - q(x, shown)))

(Horvitz and Thompson 1952; Swaminathan and Joachims 2015; Dudik, Langford and Li 2011.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from dynchoice.callouts.catalogue import as_time
from dynchoice.callouts.member_rules import need
from dynchoice.callouts.policy_draws import Rules
from dynchoice.errors import ColumnError, DataError, SpecificationError, suggest
from dynchoice.panel.states import as_floats
from dynchoice.typing import AnyArray, FloatArray, IntArray, Progress

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.callouts.bandit import Callouts

INTERVALS = ("normal", "bootstrap")
FEW = 30
"""Effective numbers of impressions below it are told: a normal interval is not to be trusted."""
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PolicyValue:
    """Values of a target policy by several estimators.

    Attributes
    ----------
    values : dict
        Estimator (``IPS``, ``SNIPS``, ``DR``) -> value; ``log`` is what was earned.
    influence : dict
        Estimator -> each cluster's influence (G,), which adds up to the estimator's error.
    bounds : dict
        Estimator -> (lower, upper).
    level : float
    interval : str
    nobs, clusters : int
    effective : float
        Effective sample size ``(sum w)^2 / sum w^2``.
    largest : float
        Largest weight, before clipping.
    clip : float or None
    clipped : int
        Rows whose weight was clipped.
    clipped_mass : float
        Share of all weight that clipping took away: the bias it may have made, in shares of the
        largest reward.
    mean_weight : float
        Should be one within its error: if not, propensities or target are wrong.
    mean_weight_error : float

    Notes
    -----
    ``str()`` prints all of it.
    """

    values: dict[str, float]
    influence: dict[str, FloatArray]
    bounds: dict[str, tuple[float, float]]
    level: float
    interval: str
    nobs: int
    clusters: int
    effective: float
    largest: float
    clip: float | None
    clipped: int
    clipped_mass: float
    mean_weight: float
    mean_weight_error: float

    @property
    def std_errors(self) -> dict[str, float]:
        """Standard error of each estimator."""
        return {k: float(np.sqrt(x @ x)) for k, x in self.influence.items()}

    @property
    def table(self) -> pd.DataFrame:
        """Value, standard error, interval and gain over the log, by estimator."""
        import pandas as pd

        errors = self.std_errors
        rows = {}
        for k, value in self.values.items():
            gain = self.influence[k] - self.influence["log"]
            rows[k] = {
                "value": value,
                "std. error": errors[k],
                "lower": self.bounds[k][0],
                "upper": self.bounds[k][1],
                "gain over log": value - self.values["log"],
                "std. error of gain": float(np.sqrt(gain @ gain)),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("estimator")

    def minus(
        self, other: PolicyValue, estimator: str = "IPS"
    ) -> tuple[float, float, float, float]:
        """Return difference to another policy on the same log, its error and interval.

        Raises
        ------
        SpecificationError
            The other value is of another log, or lacks the estimator.
        """
        for own in (self, other):
            if estimator not in own.values:
                raise SpecificationError(
                    f"{estimator!r} was not computed.{suggest(estimator, own.values)}"
                )
        if self.clusters != other.clusters or self.nobs != other.nobs:
            raise SpecificationError("the two values come from different logs")
        gap = self.values[estimator] - other.values[estimator]
        error = float(np.linalg.norm(self.influence[estimator] - other.influence[estimator]))
        z = float(student.ppf(0.5 + self.level / 2, max(self.clusters - 1, 1)))
        return gap, error, gap - z * error, gap + z * error

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know."""
        told = []
        if self.clusters < 2:
            told.append("one cluster: nothing can be said of errors")
        if self.effective < FEW:
            told.append(
                f"only {self.effective:.1f} effective impressions: the intervals are too narrow"
            )
        if abs(self.mean_weight - 1) > 4 * self.mean_weight_error + 1e-12 and self.clip is None:
            told.append(
                f"weights average {self.mean_weight:.3f} ({self.mean_weight_error:.3f}), not 1:"
                " propensities or target probabilities are wrong, or the target shows what the log"
                " never did"
            )
        if self.clipped_mass > 0.05:
            told.append(f"clipping took {self.clipped_mass:.0%} of all weight: values are biased")
        return tuple(told)

    def __str__(self) -> str:
        clip = (
            f"weights above {self.clip:g} clipped: {self.clipped:,} rows, {self.clipped_mass:.2%}"
            " of all weight"
            if self.clip is not None
            else "weights not clipped"
        )
        head = (
            f"Off-policy value, {self.level:.0%} {self.interval} intervals\n"
            f"{self.nobs:,} impressions in {self.clusters:,} clusters, {self.effective:,.0f}"
            f" effective; largest weight {self.largest:,.1f}, mean {self.mean_weight:.3f}; {clip}"
        )
        notes = "".join(f"\nNOTE: {w}" for w in self.warnings)
        return f"{head}\n{self.table.to_string(float_format='%.5f')}{notes}"


def off_policy(
    log: pd.DataFrame,
    target: Any,
    *,
    reward: str = "reward",
    propensity: str = "propensity",
    shown: Any = None,
    model: Any = None,
    clip: float | None = None,
    cluster: str | None = None,
    level: float = 0.95,
    interval: str = "normal",
    draws: int = 1000,
    seed: int = 0,
) -> PolicyValue:
    """Estimate what a policy would have earned on a log of another.

    Parameters
    ----------
    log : pandas.DataFrame
        A row an impression, with its reward and the probability that it was shown.
    target : array (n,) or (n, A)
        The target policy's probability of what was shown; or of each of ``A`` callouts (needed for
        DR), rows summing to one.
    reward, propensity : str
        Columns.
    shown : integer array (n,), optional
        Which of the ``A`` callouts was shown. Needed with (n, A).
    model : array (n, A), optional
        Expected rewards ``q(x, a)``, fitted on other rows (:func:`cross_fitted`): adds DR.
    clip : float, optional
        Largest weight allowed.
    cluster : str, optional
        Column whose rows hang together: the member.
    level : float
    interval : str
        ``"normal"``, or ``"bootstrap"`` (percentiles over resampled clusters).
    draws, seed : int
        Of the bootstrap.

    Returns
    -------
    PolicyValue

    Raises
    ------
    ColumnError, DataError, SpecificationError
        Columns missing, propensities outside (0, 1], probabilities that do not sum to one.
    """
    r = numbers_of(log, reward)
    p = numbers_of(log, propensity)
    bad = np.flatnonzero((p <= 0) | (p > 1))
    if len(bad):
        raise DataError(
            f"{len(bad):,} propensities are not above 0 and at most 1 (first: row {bad[0]},"
            f" {p[bad[0]]:g})"
        )
    if interval not in INTERVALS:
        raise SpecificationError(f"interval={interval!r}: {' or '.join(INTERVALS)}")
    if not 0 < level < 1:
        raise SpecificationError(f"level={level!r}: between 0 and 1")
    if interval == "bootstrap" and draws < 2:
        raise SpecificationError(f"draws={draws!r}: a bootstrap needs at least 2")
    if clip is not None and not clip > 0:
        raise SpecificationError(f"clip={clip!r}: a positive weight")
    wanted, q_shown, q_target = target_of(target, shown, model, len(r))
    raw = wanted / p
    w = raw if clip is None else np.minimum(raw, clip)
    group, G = clusters_of(log, cluster)
    n = len(r)

    def summed(x: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(group, x, G), float)

    parts: dict[str, FloatArray] = {"log": r, "IPS": w * r}
    if q_target is not None and q_shown is not None:
        parts["DR"] = q_target + w * (r - q_shown)
    values: dict[str, float] = {k: float(x.mean()) for k, x in parts.items()}
    influence: dict[str, FloatArray] = {k: summed((x - values[k]) / n) for k, x in parts.items()}
    total = float(w.sum())
    if total > 0:
        values["SNIPS"] = float((w * r).sum() / total)
        influence["SNIPS"] = summed(w * (r - values["SNIPS"]) / total)
    else:
        values["SNIPS"] = np.nan
        influence["SNIPS"] = np.full(G, np.nan)
    order: list[str] = [k for k in ("log", "IPS", "SNIPS", "DR") if k in values]
    values = {k: values[k] for k in order}
    small = G / max(G - 1, 1)
    influence = {k: influence[k] * np.sqrt(small) for k in order}
    if G < 2:
        influence = {k: np.full(G, np.nan) for k in order}
    if interval == "normal":
        z = float(student.ppf(0.5 + level / 2, max(G - 1, 1)))
        spread = {k: z * float(np.sqrt(x @ x)) for k, x in influence.items()}
        bounds = {k: (values[k] - spread[k], values[k] + spread[k]) for k in order}
    else:
        bounds = percentiles(parts, w, r, group, G, level, draws, seed)
    mean_error = float(np.sqrt((summed((raw - raw.mean()) / n) ** 2).sum()))
    return PolicyValue(
        values, influence, bounds, level, interval, n, G,
        float(total**2 / (w @ w)) if total > 0 else 0.0, float(raw.max()), clip,
        0 if clip is None else int((raw > clip).sum()),
        0.0 if clip is None or raw.sum() == 0 else float(1 - total / raw.sum()),
        float(raw.mean()), mean_error,
    )  # fmt: skip


def percentiles(
    parts: dict[str, FloatArray], w: FloatArray, r: FloatArray, group: IntArray, G: int,
    level: float, draws: int, seed: int,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Return bootstrap percentiles over clusters."""
    sums = {k: np.bincount(group, x, G) for k, x in parts.items()}
    size, weight = np.bincount(group, minlength=G).astype(float), np.bincount(group, w, G)
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {k: [] for k in [*parts, "SNIPS"]}
    for _ in range(draws):
        times = np.bincount(rng.integers(0, G, G), minlength=G).astype(float)
        for k, x in sums.items():
            found[k].append(float(times @ x / (times @ size)))
        total = times @ weight
        found["SNIPS"].append(float(times @ sums["IPS"] / total) if total > 0 else np.nan)
    tail = (1 - level) / 2
    return {
        k: (float(np.nanquantile(x, tail)), float(np.nanquantile(x, 1 - tail)))
        for k, x in found.items()
    }


def numbers_of(log: pd.DataFrame, column: str) -> FloatArray:
    """Return a column as finite numbers."""
    if column not in log.columns:
        raise ColumnError(f"the log lacks the column {column!r}.{suggest(column, log.columns)}")
    if not len(log):
        raise DataError("the log has no rows")
    try:
        x = log[column].to_numpy(float)
    except (TypeError, ValueError):
        raise DataError(f"column {column!r} does not hold numbers") from None
    bad = np.flatnonzero(~np.isfinite(x))
    if len(bad):
        raise DataError(f"column {column!r}: {len(bad):,} are no numbers (first: row {bad[0]})")
    return x


def clusters_of(log: pd.DataFrame, cluster: str | None) -> tuple[IntArray, int]:
    """Return each row's cluster and their number."""
    if cluster is None:
        return np.arange(len(log)), len(log)
    if cluster not in log.columns:
        raise ColumnError(f"the log lacks the column {cluster!r}.{suggest(cluster, log.columns)}")
    import pandas as pd

    group, names = pd.factorize(log[cluster])
    if (group < 0).any():
        raise DataError(f"column {cluster!r} is empty in {int((group < 0).sum()):,} rows")
    return group.astype(np.int64), len(names)


def target_of(
    target: Any, shown: Any, model: Any, n: int
) -> tuple[FloatArray, FloatArray | None, FloatArray | None]:
    """Return the target's probability of what was shown, and expected rewards of both."""
    wanted = as_floats(target, "target")
    if wanted.ndim not in (1, 2) or len(wanted) != n:
        raise SpecificationError(
            f"target has shape {wanted.shape}, the log {n:,} rows: (n,) or (n, A) is needed"
        )
    if not np.isfinite(wanted).all() or (wanted < 0).any() or (wanted > 1 + SUM_TOLERANCE).any():
        raise DataError("target probabilities must lie between 0 and 1")
    if wanted.ndim == 1:
        if model is not None:
            raise SpecificationError("DR needs the target's probability of each callout, (n, A)")
        return wanted, None, None
    off = np.abs(wanted.sum(axis=1) - 1) > SUM_TOLERANCE
    if off.any():
        raise DataError(
            f"{int(off.sum()):,} rows of target probabilities do not sum to one (first: row"
            f" {np.flatnonzero(off)[0]})"
        )
    if shown is None:
        raise SpecificationError("with target (n, A), shown= says which callout each row was")
    at = np.asarray(shown)
    if at.shape != (n,) or at.dtype.kind not in "iu" or at.min() < 0 or at.max() >= wanted.shape[1]:
        raise SpecificationError(
            f"shown must be {n:,} whole numbers from 0 to {wanted.shape[1] - 1}"
        )
    own = wanted[np.arange(n), at]
    if model is None:
        return own, None, None
    q = np.asarray(model, float)
    if q.shape != wanted.shape or not np.isfinite(q).all():
        raise SpecificationError(f"model is {q.shape}, target {wanted.shape}: numbers of one shape")
    return own, q[np.arange(n), at], (wanted * q).sum(axis=1)


def cross_fitted(
    policy: Callouts, log: pd.DataFrame, *, reward: str = "reward", folds: int = 2,
    cluster: str | None = None, seed: int = 0,
) -> FloatArray:  # fmt: skip
    """Return expected rewards (n, I) of every item in every row's context, from other folds' rows.

    Parameters
    ----------
    policy : Callouts
        Its catalogue, terms and prior make the model; what it has learned is not used.
    log : pandas.DataFrame
        ``item``, the context's columns and a reward of 0 or 1.
        Rewards are those of the first slot.
    reward : str
    folds : int
    cluster : str, optional
        Rows of one cluster are in one fold.
    seed : int
    """
    from dynchoice.callouts.probit import Probit

    r = numbers_of(log, reward)
    if not np.isin(r, (0.0, 1.0)).all():
        raise DataError("cross_fitted is for rewards of 0 and 1; pass model= for others")
    if folds < 2:
        raise SpecificationError(f"folds={folds!r}: at least 2 are needed")
    group, G = clusters_of(log, cluster)
    fold = np.random.default_rng(seed).permutation(G)[group] % folds
    need(log, ("item",), "the log")
    item = policy.catalogue.item_codes(log["item"].to_numpy())
    codes = policy.context_codes(log)
    unique, row = np.unique(codes, return_inverse=True)
    icode = policy.terms.item_codes(policy.catalogue.codes)
    ccode = policy.terms.context_codes(unique)
    out = np.empty((len(r), policy.catalogue.size))
    every = policy.terms.index(icode[None], ccode[:, None])  # (contexts, I, T)
    for k in range(folds):
        inside = fold == k
        own = Probit(policy.terms.groups, policy.model.prior, method=policy.model.method)
        rest = ~inside
        own.update(every[row[rest], item[rest]], r[rest])
        flat = every.reshape(-1, every.shape[2])
        chance = own.predict(flat).reshape(len(unique), -1)
        out[inside] = chance[row[inside]]
    return out


@dataclass(frozen=True)
class Replay:
    """What a policy earned on the rows of a log that it would have shown itself.

    Attributes
    ----------
    rows, matched : int
        Rows of the log, and those kept.
    value, std_error : float
        Mean reward of those kept; the error is NaN where all are alike.
    curve : pandas.DataFrame
        Batch by batch: rows, kept, mean reward.
    """

    rows: int
    matched: int
    value: float
    std_error: float
    curve: pd.DataFrame

    def __str__(self) -> str:
        return (
            f"Replay: {self.matched:,} of {self.rows:,} rows kept, reward {self.value:.5f}"
            f" ({self.std_error:.5f})"
        )


def replay(
    policy: Callouts, log: pd.DataFrame, *, reward: str = "reward", batch: int = 1000,
    propensity: str | None = None, learn: bool = True, now: Any = None, seed: int = 0,
    progress: Progress | None = None,
) -> Replay:  # fmt: skip
    """Let a policy live through a log: it learns from the rows that it would have shown itself.

    Unbiased for logs that chose at random (Li, Chu, Langford and Wang 2011); with ``propensity`` a
    row is kept with probability (least propensity / its own), which makes any log such a one.

    Parameters
    ----------
    policy : Callouts
        With one slot; a fresh one, or a trained one with ``learn=False``. It is changed.
    log : pandas.DataFrame
        ``item``, context and reward (0 or 1), in order of time.
    reward : str
    batch : int
        Rows between updates.
    propensity : str, optional
        Column. Default: the log chose uniformly.
    learn : bool
    now : number or date, optional
        Time of the page, where items have dates.
    seed : int
    progress : callable, optional
    """
    import pandas as pd

    if policy.slots != 1:
        raise SpecificationError("replay is for policies with one slot")
    if not isinstance(batch, int | np.integer) or batch < 1:
        raise SpecificationError(f"batch={batch!r}: a whole number of rows above 0 is needed")
    need(log, ("item",), "the log")
    when = None if now is None else as_time(now)
    r = numbers_of(log, reward)
    if learn and not np.isin(r, (0.0, 1.0)).all():
        raise DataError("a policy learns from rewards of 0 and 1: pass learn=False for others")
    keep = np.ones(len(log))
    if propensity is not None:
        p = numbers_of(log, propensity)
        if (p <= 0).any():
            raise DataError(f"{int((p <= 0).sum()):,} propensities are not positive")
        keep = p.min() / p
    item = policy.catalogue.item_codes(log["item"].to_numpy())
    codes = policy.context_codes(log)
    icode = policy.terms.item_codes(policy.catalogue.codes)
    rng = np.random.default_rng(seed)
    found: list[FloatArray] = []
    curve = []
    for start in range(0, len(log), batch):
        part = slice(start, start + batch)
        chosen = first_items(policy, codes[part], rng, when)
        same = (chosen == item[part]) & (rng.random(len(chosen)) < keep[part])
        at = np.flatnonzero(same) + start
        if learn and len(at):
            index = policy.terms.index(icode[item[at]], policy.terms.context_codes(codes[at]))
            policy.model.update(index, r[at], seed=seed)
            policy.snapshot += 1
            policy.refresh()
        found.append(r[at])
        curve.append((start, len(chosen), len(at), float(r[at].mean()) if len(at) else np.nan))
        if progress is not None:
            progress(min(start + batch, len(log)), len(log), "replayed")
    kept = np.concatenate(found)
    if not len(kept):
        raise DataError("no row of the log is what the policy would have shown")
    # rewards that are all alike (no click among few rows) tell nothing of their spread
    spread = float(kept.std(ddof=1)) if len(kept) > 1 else 0.0
    error = spread / np.sqrt(len(kept)) if spread > 0 else np.nan
    table = pd.DataFrame(curve, columns=["from", "rows", "kept", "reward"])
    return Replay(len(log), len(kept), float(kept.mean()), error, table)


def first_items(
    policy: Callouts, codes: IntArray, rng: np.random.Generator, when: float | None
) -> AnyArray:
    """Return an item for each context, by one random draw each."""
    draw = rng.integers(0, policy.draws, len(codes))
    none = np.zeros(len(codes) + 1, np.int64)
    alike = np.ones((len(codes), policy.current.categories))
    random = rng.random(len(codes)) < policy.at_random
    rules = Rules(codes, draw, none, none[:0], alike, random)
    return policy.current.decide(rules, when, rng).items[:, 0]
