"""Simulate and recover: does the estimator find the estimate again?"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DynChoiceError, DynChoiceWarning, SpecificationError
from dynchoice.estimate.estimator import CountsEstimator
from dynchoice.estimate.first_stage import counts_of
from dynchoice.estimate.nfxp import NFXP
from dynchoice.estimate.workers import processes
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.panel.cells import NO_NEXT
from dynchoice.panel.counts import Counts
from dynchoice.typing import FloatArray, IntArray, Progress

if TYPE_CHECKING:
    from dynchoice.panel.panel import Panel

LEAST_DRAWS = 10
"""Panels that an audit needs to see anything."""


@dataclass(frozen=True)
class Audit:
    """What an estimator does on panels drawn from its own estimate.

    Attributes
    ----------
    estimates, std_errors : FloatArray, shape (draws, K)
        Of the panels whose fit converged.
    truth : FloatArray, shape (K,)
    failed : int
        Fits that did not converge or were refused.
    """

    names: tuple[str, ...]
    estimates: FloatArray
    std_errors: FloatArray
    truth: FloatArray
    failed: int

    def frame(self, level: float = 0.95) -> pd.DataFrame:
        """Return bias, SD, mean standard error over SD, and coverage, one row a parameter."""
        from scipy.stats import norm

        z = (self.estimates - self.truth) / self.std_errors
        sd = self.estimates.std(axis=0, ddof=1)
        bias = self.estimates.mean(axis=0) - self.truth
        return pd.DataFrame(
            {
                "truth": self.truth,
                "bias": bias,
                "bias / sd": bias / sd,
                "sd": sd,
                "se / sd": self.std_errors.mean(axis=0) / sd,
                "coverage": (np.abs(z) <= norm.ppf(0.5 + level / 2)).mean(axis=0),
            },
            index=list(self.names),
        )

    def __str__(self) -> str:
        head = f"Audit: {len(self.estimates)} panels drawn from the estimate, {self.failed} failed"
        return head + "\n" + self.frame().to_string(float_format="{:.4g}".format)

    __repr__ = __str__


def redraw(model: DDC, P: FloatArray, counts: Counts, rng: np.random.Generator) -> Counts:
    """Return counts with choices and moves drawn from the model, states visited as in the data.

    Choices of every state are multinomial with ``P``; where the data show a next month, the next
    state is drawn from the law of motion of the choice drawn.
    """
    S, J = counts.shape
    n = np.rint(counts.n_sj().sum(axis=1)).astype(np.int64)
    new = np.stack([rng.multinomial(m, p / p.sum()) for m, p in zip(n, P, strict=True)])
    moves, moved = counts.moves()
    followed = np.bincount(moves[:, 0], weights=moved, minlength=S)
    share = np.minimum(followed / np.maximum(n, 1), 1.0)
    rows: list[IntArray] = []
    sizes: list[FloatArray] = []
    s, j = np.nonzero(new)
    rows.append(np.stack([s * 0, s * 0, s, j, s * 0 + NO_NEXT, s * 0 + 1], axis=1))
    sizes.append(new[s, j].astype(np.float64))
    stacked = model.transitions.stacked()
    if stacked is None:
        raise SpecificationError("the audit needs the transitions expanded, and they are too large")
    indptr, indices, data = stacked
    for a, b in zip(s, j, strict=True):
        m = rng.binomial(new[a, b], share[a])
        if not m:
            continue
        row = slice(indptr[a * J + b], indptr[a * J + b + 1])
        p = data[row] / data[row].sum()
        drawn = rng.multinomial(m, p)
        k = np.flatnonzero(drawn)
        to = indices[row][k]
        zero = np.zeros_like(to)
        rows.append(np.stack([zero, zero, zero + a, zero + b, to, zero], axis=1))
        sizes.append(drawn[k].astype(np.float64))
    return replace(
        counts,
        segments=("all",),
        cells=np.concatenate(rows).astype(np.int64),
        n=np.concatenate(sizes),
        segment_members=np.array([float(counts.segment_members.sum())]),
        members=None,
        regions=None,
        _cache={},
    )


MakeEstimator: TypeAlias = Callable[[DDC, Counts], CountsEstimator[Results]]
"""An estimator of the package: ``dc.NFXP``, ``dc.NPL``, ``dc.CCP``."""
Refit: TypeAlias = "tuple[FloatArray, FloatArray] | str"
"""Estimates and standard errors, or why there are none."""


def refit_redrawn(
    results: Results, counts: Counts, estimator: MakeEstimator, seed: np.random.SeedSequence
) -> Refit:
    """Draw one panel and fit it."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynChoiceWarning)
        try:
            drawn = redraw(results.model, results.ccp, counts, rng)
            fit = estimator(results.model, drawn).fit(cov_type="unadjusted")
        except DynChoiceError as error:
            return str(error)
    return (fit.theta, fit.std_errors.to_numpy()) if fit.converged else fit.message


def audit(
    results: Results,
    data: Panel | Counts,
    *,
    estimator: MakeEstimator = NFXP,
    draws: int = 100,
    jobs: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Simulate panels from an estimate and estimate them: bias, SE/SD ratio, coverage.

    A parametric check of the whole procedure at the point that matters (SOURCES.md 8.5, point 6):
    the first stage is redone on moves drawn from the estimated laws.

    Parameters
    ----------
    results : Results
        Infinite horizon.
    data : Panel or Counts
        The data of the fit: its states visited are kept.
    estimator : class
        ``dc.NFXP``, ``dc.NPL`` or ``dc.CCP``.
    draws, jobs : int

    Raises
    ------
    SpecificationError
        Fewer than 10 draws; other data; a fit that did not converge; a finite horizon.
    """
    counts, _ = counts_of(data)
    if not isinstance(results, Results) or "type" in results.uses:
        raise SpecificationError("audit() takes one fit of everybody (Results)")
    results.require_model("the audit")
    checks.whole(draws, "draws", LEAST_DRAWS)
    if counts.digest != results.data_digest:
        raise SpecificationError("these are not the data of the fit (their digests differ)")
    if not results.converged or results.model.horizon is not None:
        raise SpecificationError("the audit needs a converged fit of an infinite-horizon model")
    streams = np.random.SeedSequence(seed).spawn(draws)
    refits: list[Refit] = []
    batch = 8 * jobs
    for i in range(0, draws, batch):
        todo = streams[i : i + batch]
        if jobs == 1:
            refits += [refit_redrawn(results, counts, estimator, s) for s in todo]
        else:
            from joblib import delayed

            refits += processes(jobs)(
                delayed(refit_redrawn)(results, counts, estimator, s) for s in todo
            )
        if progress is not None:
            progress(len(refits), draws, "audit")
    good = [fit for fit in refits if not isinstance(fit, str)]
    if len(good) < 2:
        reason = next(fit for fit in refits if isinstance(fit, str))
        raise SpecificationError(f"no panel drawn from the estimate could be fitted: {reason}")
    estimates, errors = (np.array(x) for x in zip(*good, strict=True))
    names = results.model.names
    return Audit(names, estimates, errors, results.theta, len(refits) - len(good))
