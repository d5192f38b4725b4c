"""One model, many segments: every segment's own estimate, in one run.

Counts are shared, each fit starts from the pooled estimate and its values, and fits run side by
side through joblib: on this machine (``n_jobs=``) or on a cluster (``joblib.parallel_config``).
Fits do not share anything, so the estimates are the same for any number of workers. A fit that
fails, or whose worker dies, is reported with its segment; the others are kept.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DynChoiceError,
    DynChoiceWarning,
    SpecificationError,
    first_few,
)
from dynchoice.estimate.first_stage import counts_of
from dynchoice.estimate.nfxp import NFXP
from dynchoice.estimate.workers import processes
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts
from dynchoice.typing import Level, Progress

if TYPE_CHECKING:
    from dynchoice.panel.panel import Panel

DEATHS = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "BrokenExecutor")
"""Names of the exceptions by which joblib's backends say that a worker is gone."""


@dataclass(frozen=True)
class Attempt:
    """What became of one segment's fit."""

    results: Results | None
    message: str
    seconds: float
    error: str = ""
    """Name of the exception that ended it, if one did."""
    warnings: tuple[str, ...] = ()
    """What the fit warned of, in whatever process it ran."""


@dataclass(frozen=True)
class SegmentFits(Mapping[Level, Results]):
    """Estimates by segment, a mapping of label to :class:`dynchoice.Results`.

    Attributes
    ----------
    pooled : Results or None
        The estimate of all segments together, where the others started.
    attempts : dict
        What became of each segment, those without results too.
    """

    attempts: dict[Level, Attempt]
    pooled: Results | None = field(default=None, repr=False)

    def __getitem__(self, segment: Level) -> Results:
        results = self.attempts[segment].results
        if results is None:
            raise KeyError(f"{segment!r}: {self.attempts[segment].message}")
        return results

    def __iter__(self) -> Iterator[Level]:
        return (m for m, a in self.attempts.items() if a.results is not None)

    def __len__(self) -> int:
        return sum(a.results is not None for a in self.attempts.values())

    @property
    def failed(self) -> dict[Level, str]:
        """Segments without an estimate, or with one that did not converge, and why."""
        return {
            m: a.message
            for m, a in self.attempts.items()
            if a.results is None or not a.results.converged
        }

    @property
    def converged(self) -> bool:
        """Whether every segment has an estimate that converged."""
        return not self.failed

    @property
    def status(self) -> pd.DataFrame:
        """One row a segment: converged, nobs, members, log-likelihood, seconds, message."""
        rows = []
        for segment, a in self.attempts.items():
            r = a.results
            rows.append(
                {
                    "segment": segment,
                    "converged": r is not None and r.converged,
                    "nobs": None if r is None else r.nobs,
                    "members": None if r is None else r.nmembers,
                    "loglik": None if r is None else r.loglik,
                    "evaluations": None if r is None else r.optimization.get("evaluations"),
                    "seconds": a.seconds,
                    "message": a.message,
                }
            )
        return pd.DataFrame(rows).set_index("segment")

    @property
    def params(self) -> pd.DataFrame:
        """Estimates, one row a segment."""
        return pd.DataFrame({m: r.params for m, r in self.items()}).T.rename_axis("segment")

    @property
    def std_errors(self) -> pd.DataFrame:
        """Standard errors, one row a segment."""
        return pd.DataFrame({m: r.std_errors for m, r in self.items()}).T.rename_axis("segment")

    def __str__(self) -> str:
        bad = self.failed
        text = f"{len(self.attempts):,} segments: {len(self.attempts) - len(bad):,} converged"
        if bad:
            shown = first_few([f"{m} ({why})" for m, why in bad.items()])
            text += f", {len(bad):,} not: {shown}"
        return text

    __repr__ = __str__


def fit_segments(
    model: DDC | Callable[[Level], DDC],
    data: Panel | Counts,
    *,
    estimator: Callable[..., Any] = NFXP,
    pooled: bool = True,
    n_jobs: int | None = None,
    progress: Progress | None = None,
    strict: bool = False,
    **options: Any,
) -> SegmentFits:
    """Estimate a model in every segment of a panel.

    Parameters
    ----------
    model : DDC, or callable
        The model of all segments, or a function of the segment's label.
    data : Panel or Counts
        With more than one segment.
    estimator : callable
        ``estimator(model, counts)`` has a ``fit``; default :class:`dynchoice.NFXP`.
    pooled : bool
        Start every segment at the estimate of all of them together (NFXP only; with one model).
        The segment's own start takes over where a fit does not converge from there.
    n_jobs : int, optional
        Fits at once; -1: one a core. Default: what ``joblib.parallel_config`` says, else one.
    progress : callable, optional
        ``progress(done, total, message)`` after every fit.
    strict : bool
        Raise if any fit failed, once all are done.
    **options
        Of ``fit``: ``cov_type``, ``tol``, ``maxiter`` ...

    Returns
    -------
    SegmentFits
        A mapping of segments to results: :func:`dynchoice.forecast` takes it.

    Raises
    ------
    SpecificationError
        One segment only; options that are not fits'.
    ConvergenceError
        Only with ``strict=True``.

    Examples
    --------
    >>> from dynchoice.run.config import load_run
    >>> run = load_run("data/prime/run.toml")
    >>> fits = fit_segments(run.model, run.panel())  # doctest: +SKIP
    >>> fits.status[["converged", "seconds"]]  # doctest: +SKIP
    """
    counts, _ = counts_of(data)
    labels = counts.segments
    if len(labels) < 2:
        raise SpecificationError(
            "the data have one segment: name the column (segment=), or fit it by itself"
        )
    if "start" in options:
        raise SpecificationError("start= is the pooled estimate here; pass pooled=False for none")
    whole: Results | None = None
    nested = estimator is NFXP
    if pooled and nested and isinstance(model, DDC):
        if progress is not None:
            progress(0, len(labels) + 1, "pooled estimate")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            whole = NFXP(model, counts).fit(cov_type="unadjusted")
        if not whole.converged:
            whole = None
    tasks = {
        segment: (
            estimator,
            model if isinstance(model, DDC) else model(segment),
            counts.segment(segment),
            whole,
            options,
        )
        for segment in labels
    }
    attempts: dict[Level, Attempt] = {}

    def done(segment: Level, attempt: Attempt) -> None:
        attempts[segment] = attempt
        if progress is not None:
            progress(len(attempts), len(labels), f"{segment}: {attempt.message}")

    run_all(tasks, n_jobs, done)
    fits = SegmentFits({segment: attempts[segment] for segment in labels}, whole)
    for segment in labels:
        for text in attempts[segment].warnings:
            warnings.warn(f"{segment}: {text}", DynChoiceWarning, stacklevel=2)
    if fits.failed:
        if strict:
            raise ConvergenceError(str(fits))
        warnings.warn(str(fits), ConvergenceWarning, stacklevel=2)
    return fits


def run_all(
    tasks: dict[Level, tuple[Any, ...]],
    n_jobs: int | None,
    done: Callable[[Level, Attempt], None],
) -> None:
    """Run :func:`fit_one` of every task, side by side; what dies is cut out by halving.

    When a worker dies, nobody says which task it had. What is left is run again in two halves,
    until the one that kills its worker is alone.
    """
    from joblib import delayed

    waiting = [(list(tasks), n_jobs)]
    while waiting:
        batch, jobs = waiting.pop(0)
        left = list(batch)
        running = processes(jobs, return_as="generator")
        try:
            finished = running(delayed(fit_one)(*tasks[segment]) for segment in batch)
            for segment, attempt in zip(batch, finished, strict=True):
                left.remove(segment)
                done(segment, attempt)
        except Exception as error:
            name = type(error).__name__
            if name not in DEATHS:
                raise
            if len(left) == 1:
                why = f"its worker died ({name}): out of memory, or killed from outside"
                done(left[0], Attempt(None, why, float("nan"), name))
                continue
            half = len(left) // 2
            # two jobs at least: what may kill its process must not run in this one
            again = jobs if jobs is None or jobs < 0 else max(jobs, 2)
            waiting = [(left[:half], again), (left[half:], again), *waiting]


def fit_one(
    estimator: Callable[..., Any],
    model: DDC,
    counts: Counts,
    pooled: Results | None,
    options: dict[str, Any],
) -> Attempt:
    """Fit one segment, from the pooled estimate first; what goes wrong is the attempt's message."""
    begun = time.perf_counter()
    results: Results | None = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            # not converged is in the results, and told once for all segments
            warnings.simplefilter("always", DynChoiceWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
            if pooled is not None:
                results = estimator(model, counts).fit(start=pooled, **options)
            if results is None or not results.converged:
                results = estimator(model, counts).fit(**options)
    except (DynChoiceError, ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        took = time.perf_counter() - begun
        return Attempt(None, f"{type(error).__name__}: {error}", took, type(error).__name__)
    ours = [w for w in caught if issubclass(w.category, DynChoiceWarning)]
    said = tuple(dict.fromkeys(str(w.message) for w in ours))
    for w in caught:
        if w not in ours:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    took = time.perf_counter() - begun
    return Attempt(results, results.message, took, warnings=said)
