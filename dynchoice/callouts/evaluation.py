"""The value of a policy on another one's log: from propensities (off-policy), and by replay.

SOURCES.md 8A.6. Weights are ``w = target probability / propensity`` of what was shown:

    IPS = mean(w r),   SNIPS = sum(w r) / sum(w),   DR = mean(q(x, target) + w (r - q(x, shown)))

(Horvitz and Thompson 1952; Swaminathan and Joachims 2015; Dudik, Langford and Li 2011.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from dynchoice import checks
from dynchoice.callouts.catalogue import Moment, when_of
from dynchoice.callouts.probit import Probit
from dynchoice.callouts.thompson import plain_rules
from dynchoice.errors import DataError, SpecificationError
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray, IntArray, Progress

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from dynchoice.callouts.bandit import Callouts

INTERVALS = ("normal", "bootstrap")
FEW = 30
"""Effective impressions below which a warning says that normal intervals are not to be trusted."""
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
        """Return the difference to another policy on the same log, its error and its interval.

        Raises
        ------
        SpecificationError
            The other value is of another log, or lacks the estimator.
        """
        for value in (self, other):
            checks.known([estimator], value.values, "estimator")
        if self.clusters != other.clusters or self.nobs != other.nobs:
            raise SpecificationError("the two values come from different logs")
        gap = self.values[estimator] - other.values[estimator]
        error = float(np.linalg.norm(self.influence[estimator] - other.influence[estimator]))
        z = float(student.ppf(0.5 + self.level / 2, max(self.clusters - 1, 1)))
        return gap, error, gap - z * error, gap + z * error

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to read the values with care."""
        notes = []
        if self.clusters < 2:
            notes.append("one cluster: nothing can be said of errors")
        if self.effective < FEW:
            notes.append(
                f"only {self.effective:.1f} effective impressions: the intervals are too narrow"
            )
        if abs(self.mean_weight - 1) > 4 * self.mean_weight_error + 1e-12 and self.clip is None:
            notes.append(
                f"weights average {self.mean_weight:.3f} ({self.mean_weight_error:.3f}), not 1:"
                " propensities or target probabilities are wrong, or the target shows what the log"
                " never did"
            )
        if self.clipped_mass > 0.05:
            notes.append(f"clipping took {self.clipped_mass:.0%} of all weight: values are biased")
        return tuple(notes)

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
    target: ArrayLike,
    *,
    reward: str = "reward",
    propensity: str = "propensity",
    shown: ArrayLike | None = None,
    model: ArrayLike | None = None,
    clip: float | None = None,
    cluster: str | None = None,
    level: float = 0.95,
    interval: str = "normal",
    draws: int = 1000,
    seed: int = 0,
) -> PolicyValue:
    """Estimate the value of a policy from the log of another.

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
    r = read_numbers(log, reward)
    p = read_numbers(log, propensity)
    bad = np.flatnonzero((p <= 0) | (p > 1))
    if len(bad):
        raise DataError(
            f"{len(bad):,} propensities are not above 0 and at most 1 (first: row {bad[0]},"
            f" {p[bad[0]]:g})"
        )
    checks.one_of(interval, "interval", INTERVALS)
    level = checks.share(level, "level", open_interval=True)
    if interval == "bootstrap":
        draws = checks.whole(draws, "draws", 2)
    if clip is not None:
        clip = checks.positive(clip, "clip")
    wanted, q_shown, q_target = read_target(target, shown, model, len(r))
    raw = wanted / p
    w = raw if clip is None else np.minimum(raw, clip)
    group, G = read_clusters(log, cluster)
    n = len(r)
    terms: dict[str, FloatArray] = {"log": r, "IPS": w * r}
    if q_target is not None and q_shown is not None:
        terms["DR"] = q_target + w * (r - q_shown)
    values, influence = estimate_values(terms, w, r, group, G)
    if interval == "normal":
        z = float(student.ppf(0.5 + level / 2, max(G - 1, 1)))
        spread = {k: z * float(np.sqrt(x @ x)) for k, x in influence.items()}
        bounds = {k: (values[k] - spread[k], values[k] + spread[k]) for k in values}
    else:
        bounds = bootstrap_bounds(terms, w, group, G, level=level, draws=draws, seed=seed)
    total = float(w.sum())
    mean_shift = np.bincount(group, (raw - raw.mean()) / n, G)
    return PolicyValue(
        values=values,
        influence=influence,
        bounds=bounds,
        level=level,
        interval=interval,
        nobs=n,
        clusters=G,
        effective=float(total**2 / (w @ w)) if total > 0 else 0.0,
        largest=float(raw.max()),
        clip=clip,
        clipped=0 if clip is None else int((raw > clip).sum()),
        clipped_mass=0.0 if clip is None or raw.sum() == 0 else float(1 - total / raw.sum()),
        mean_weight=float(raw.mean()),
        mean_weight_error=float(np.sqrt((mean_shift**2).sum())),
    )


def estimate_values(
    terms: dict[str, FloatArray], w: FloatArray, r: FloatArray, group: IntArray, G: int
) -> tuple[dict[str, float], dict[str, FloatArray]]:
    """Return each estimator's value and its influence by cluster (G,).

    Parameters
    ----------
    terms : dict
        Estimator that is a mean -> what it is the mean of (n,).
    w, r : array, shape (n,)
        Weights and rewards, for ``SNIPS``, a ratio.
    group : integer array, shape (n,)
        Cluster of each row, of ``G``.
    """

    def add_up(x: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(group, x, G), float)

    values = {k: float(x.mean()) for k, x in terms.items()}
    influence = {k: add_up((x - values[k]) / len(r)) for k, x in terms.items()}
    total = float(w.sum())
    if total > 0:
        values["SNIPS"] = float((w * r).sum() / total)
        influence["SNIPS"] = add_up(w * (r - values["SNIPS"]) / total)
    else:
        values["SNIPS"] = np.nan
        influence["SNIPS"] = np.full(G, np.nan)
    order = [k for k in ("log", "IPS", "SNIPS", "DR") if k in values]
    few_clusters = np.sqrt(G / max(G - 1, 1))
    if G < 2:  # one cluster has no spread: nothing is known of errors
        influence = {k: np.full(G, np.nan) for k in order}
    return (
        {k: values[k] for k in order},
        {k: influence[k] * few_clusters for k in order},
    )


def bootstrap_bounds(
    terms: dict[str, FloatArray],
    w: FloatArray,
    group: IntArray,
    G: int,
    *,
    level: float,
    draws: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Return bootstrap percentiles over clusters; see :func:`estimate_values`."""
    # a draw takes whole clusters so many times: their sums are all that it needs
    sums = {k: np.bincount(group, x, G) for k, x in terms.items()}
    size = np.bincount(group, minlength=G).astype(float)
    weight = np.bincount(group, w, G)
    rng = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {k: [] for k in [*terms, "SNIPS"]}
    for _ in range(draws):
        times = np.bincount(rng.integers(0, G, G), minlength=G).astype(float)
        for k, x in sums.items():
            resampled[k].append(float(times @ x / (times @ size)))
        total = times @ weight
        snips = float(times @ sums["IPS"] / total) if total > 0 else np.nan
        resampled["SNIPS"].append(snips)
    tail = (1 - level) / 2
    return {
        k: (float(np.nanquantile(x, tail)), float(np.nanquantile(x, 1 - tail)))
        for k, x in resampled.items()
    }


def read_numbers(log: pd.DataFrame, column: str) -> FloatArray:
    """Return a column as finite numbers."""
    checks.columns(log, [column], "the log")
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


def read_clusters(log: pd.DataFrame, cluster: str | None) -> tuple[IntArray, int]:
    """Return each row's cluster and their number."""
    if cluster is None:
        return np.arange(len(log)), len(log)
    import pandas as pd

    checks.columns(log, [cluster], "the log")
    group, names = pd.factorize(log[cluster])
    if (group < 0).any():
        raise DataError(f"column {cluster!r} is empty in {int((group < 0).sum()):,} rows")
    return group.astype(np.int64), len(names)


def read_target(
    target: ArrayLike, shown: ArrayLike | None, model: ArrayLike | None, n: int
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
    item, A = np.asarray(shown), wanted.shape[1]
    if item.shape != (n,) or item.dtype.kind not in "iu" or item.min() < 0 or item.max() >= A:
        raise SpecificationError(f"shown must be {n:,} whole numbers from 0 to {A - 1}")
    of_shown = wanted[np.arange(n), item]
    if model is None:
        return of_shown, None, None
    q = np.asarray(model, float)
    if q.shape != wanted.shape or not np.isfinite(q).all():
        raise SpecificationError(f"model is {q.shape}, target {wanted.shape}: numbers of one shape")
    return of_shown, q[np.arange(n), item], (wanted * q).sum(axis=1)


def cross_fitted(
    policy: Callouts,
    log: pd.DataFrame,
    *,
    reward: str = "reward",
    folds: int = 2,
    cluster: str | None = None,
    seed: int = 0,
) -> FloatArray:
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
    r = read_numbers(log, reward)
    if not np.isin(r, (0.0, 1.0)).all():
        raise DataError("cross_fitted is for rewards of 0 and 1; pass model= for others")
    folds = checks.whole(folds, "folds", 2)
    group, G = read_clusters(log, cluster)
    fold = np.random.default_rng(seed).permutation(G)[group] % folds
    checks.columns(log, ["item"], "the log")
    item = policy.catalogue.item_codes(log["item"].to_numpy())
    codes = policy.context_codes(log)
    unique, row = np.unique(codes, return_inverse=True)
    icode = policy.terms.item_codes(policy.catalogue.codes)
    ccode = policy.terms.context_codes(unique)
    out = np.empty((len(r), policy.catalogue.size))
    every = policy.terms.index(icode[None], ccode[:, None])  # (contexts, I, T)
    for k in range(folds):
        inside = fold == k
        model = Probit(policy.terms.groups, policy.model.prior, method=policy.model.method)
        rest = ~inside
        model.update(every[row[rest], item[rest]], r[rest])
        flat = every.reshape(-1, every.shape[2])
        chance = model.predict(flat).reshape(len(unique), -1)
        out[inside] = chance[row[inside]]
    return out


@dataclass(frozen=True)
class Replay:
    """The rewards of a policy on the rows of a log that it would have shown itself.

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
    policy: Callouts,
    log: pd.DataFrame,
    *,
    reward: str = "reward",
    batch: int = 1000,
    propensity: str | None = None,
    learn: bool = True,
    now: Moment | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Replay:
    """Run a policy over a log: it learns from the rows that it would have shown itself.

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
    batch = checks.whole(batch, "batch", 1)
    checks.columns(log, ["item"], "the log")
    when = when_of(now)
    r = read_numbers(log, reward)
    if learn and not np.isin(r, (0.0, 1.0)).all():
        raise DataError("a policy learns from rewards of 0 and 1: pass learn=False for others")
    keep = np.ones(len(log))
    if propensity is not None:
        p = read_numbers(log, propensity)
        if (p <= 0).any():
            raise DataError(f"{int((p <= 0).sum()):,} propensities are not positive")
        keep = p.min() / p
    item = policy.catalogue.item_codes(log["item"].to_numpy())
    codes = policy.context_codes(log)
    icode = policy.terms.item_codes(policy.catalogue.codes)
    rng = np.random.default_rng(seed)
    rewards: list[FloatArray] = []
    curve = []
    for start in range(0, len(log), batch):
        part = slice(start, start + batch)
        chosen = draw_first_items(policy, codes[part], rng, when)
        same = (chosen == item[part]) & (rng.random(len(chosen)) < keep[part])
        kept = np.flatnonzero(same) + start
        if learn and len(kept):
            index = policy.terms.index(icode[item[kept]], policy.terms.context_codes(codes[kept]))
            policy.model.update(index, r[kept], seed=seed)
            policy.snapshot += 1
            policy.refresh()
        rewards.append(r[kept])
        mean = float(r[kept].mean()) if len(kept) else np.nan
        curve.append((start, len(chosen), len(kept), mean))
        if progress is not None:
            progress(min(start + batch, len(log)), len(log), "replayed")
    matched = np.concatenate(rewards)
    n = len(matched)
    if not n:
        raise DataError("no row of the log is what the policy would have shown")
    # rewards that are all alike (no click among few rows) tell nothing of their spread
    spread = float(matched.std(ddof=1)) if n > 1 else 0.0
    error = spread / np.sqrt(n) if spread > 0 else np.nan
    table = pd.DataFrame(curve, columns=["from", "rows", "kept", "reward"])
    return Replay(len(log), n, float(matched.mean()), error, table)


def draw_first_items(
    policy: Callouts, codes: IntArray, rng: np.random.Generator, when: float | None
) -> IntArray:
    """Return an item for each context, by one random draw each."""
    draw = rng.integers(0, policy.draws, len(codes))
    random = rng.random(len(codes)) < policy.at_random
    rules = plain_rules(codes, draw, random, policy.current.categories)
    return policy.current.decide(rules, when, rng).items[:, 0]
