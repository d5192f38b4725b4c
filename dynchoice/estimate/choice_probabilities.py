"""First-stage choice probabilities: frequencies, smoothed frequencies, a flexible logit.

Each knows its influence function: what one observed choice adds to a smooth function of the
probabilities. Estimators without a zero Jacobian (finite dependence) add it to their scores
(SOURCES.md 8.2; Newey and McFadden 1994, section 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import DataError, SpecificationError, suggest
from dynchoice.estimate.flexible_logit import FlexibleLogit
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.optimise import maximise
from dynchoice.model.ddc import DDC
from dynchoice.model.utility import Utility
from dynchoice.panel.states import StateSpace
from dynchoice.typing import BoolArray, FloatArray, IntArray

SMOOTHING = 10.0
"""Observations a state that the static logit is worth in smoothed frequencies."""
FLOOR = 1e-6
"""Least probability of an offered choice in raw frequencies."""
RIDGE = 1e-3
"""Penalty on the flexible logit's coefficients (standardised features), in observations."""
FIRST_STAGES = ("frequencies", "smoothed", "logit")

Influence = Callable[[FloatArray], FloatArray]
"""Derivative of K numbers by the probabilities (K, R, J) -> influence of one choice (R, J, K)."""


@dataclass(frozen=True)
class ChoiceProbabilities:
    """First-stage observed probabilities ``P`` by row (a state, or a period's state) and choice.

    Attributes
    ----------
    P : FloatArray, shape (R, J)
        Rows sum to one; positive where a choice is offered.
    kind : str
    influence : callable
    empty : int
        Offered choices never taken in rows that were seen.
    params : FloatArray
        Of the logit behind it, to start from next time; empty for frequencies.
    """

    P: FloatArray
    kind: str
    influence: Influence
    empty: int
    params: FloatArray


def static(model: DDC, x: FloatArray, offset: FloatArray, rows: IntArray | None = None) -> DDC:
    """Return the model of a static choice with features ``x`` and known part ``offset``.

    ``rows`` (R,) picks the states that ``x`` (R, J, K) speaks of; default all.
    """
    parts: dict[str, Any] = {"utility": Utility(x, tuple(model.names), offset), "beta": 0.0}
    if rows is not None:
        for part in ("available", "attention", "default"):
            parts[part] = np.ascontiguousarray(getattr(model, part)[rows])
    return model.unchecked(**parts)


def frequencies(n: FloatArray, available: BoolArray) -> ChoiceProbabilities:
    """Return ``P = n_sj / n_s``, floored; rows never seen take the choices' overall shares."""
    size = n.sum(axis=1, keepdims=True)
    overall = np.where(available, n.sum(axis=0) + 1.0, 0.0)
    P = np.where(size > 0, n / np.maximum(size, 1e-300), overall)
    P = np.where(available, np.maximum(P, FLOOR), 0.0)
    P /= P.sum(axis=1, keepdims=True)
    return ChoiceProbabilities(
        P=P,
        kind="frequencies",
        influence=lambda D: row_influence(D, P, size),
        empty=empty_cells(n, available),
        params=np.empty(0),
    )


def pooled(n: FloatArray, available: BoolArray, group: IntArray | None = None) -> FloatArray:
    """Return frequencies shrunk to the choices' overall shares: a start, not an estimate.

    With ``group`` (S,), the number of each state's group, to the shares within it.
    """
    overall = n.sum(axis=0) + 1.0
    if group is not None:
        within = np.stack([np.bincount(group, weights=c) for c in n.T], axis=1)
        overall = within[group] + overall / overall.sum()
    share = np.where(available, overall, 0.0)
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray((n + SMOOTHING * share) / (n.sum(axis=1, keepdims=True) + SMOOTHING))


def smoothed(model: DDC, n: FloatArray, weight: float = SMOOTHING) -> ChoiceProbabilities:
    """Return frequencies shrunk to a static logit on the model's own features.

    ``P = (n_sj + weight P_logit) / (n_s + weight)``: never zero where a choice is offered; with
    infinite weight the logit itself.
    """
    likelihood = Likelihood(static(model, model.utility.x, model.utility.offset), n)
    start = np.zeros(len(model.names))
    tol = 1e-8 if np.isinf(weight) else 1e-3
    best, _ = maximise(likelihood.evaluate, likelihood.hessian, start, likelihood.total, tol=tol)
    observed = n.sum(axis=1, keepdims=True)
    pure = np.isinf(weight)  # of inf / inf nothing could be made
    size = np.full_like(observed, np.inf) if pure else observed + weight
    shrink = np.ones_like(observed) if pure else weight / size
    P = shrink * best.P + (n / size)

    def influence(D: FloatArray) -> FloatArray:
        # of the frequencies, and of the logit that they are shrunk to
        by_frequency = row_influence(D, P, size)
        pull = np.einsum("ksj,sj,sjg->kg", D, shrink * best.P, best.dlogp)
        inverse = np.linalg.pinv(-likelihood.hessian(best), hermitian=True)
        return np.asarray(by_frequency + best.dlogp @ (inverse @ pull.T))

    return ChoiceProbabilities(
        P=P,
        kind="smoothed",
        influence=influence,
        empty=empty_cells(n, model.available),
        params=best.params,
    )


def flexible_logit(
    phi: FloatArray,
    n: FloatArray,
    available: BoolArray,
    start: FloatArray | None = None,
    attention: FloatArray | None = None,
    default: IntArray | None = None,
    ridge: float = RIDGE,
) -> ChoiceProbabilities:
    """Return a multinomial logit of the choices on features ``phi`` (R, G), own by choice.

    See :class:`dynchoice.estimate.flexible_logit.FlexibleLogit`.
    """
    logit = FlexibleLogit(
        phi, n, available, start=start, attention=attention, default=default, ridge=ridge
    )
    return ChoiceProbabilities(
        P=logit.observed(),
        kind="logit",
        influence=logit.influence,
        empty=empty_cells(n, available),
        params=logit.gamma.reshape(-1),
    )


def row_influence(D: FloatArray, P: FloatArray, size: FloatArray) -> FloatArray:
    """Return ``(D_j - sum_i P_i D_i) / size`` (R, J, K): one choice's pull on its row."""
    centred = D - (D * P).sum(axis=2, keepdims=True)
    spread = np.divide(centred, size, out=np.zeros_like(centred), where=size > 0)
    return np.moveaxis(spread, 0, 2)


def empty_cells(n: FloatArray, available: BoolArray) -> int:
    """Return the offered choices never taken in rows that were seen."""
    seen = np.flatnonzero(n @ np.ones(n.shape[1]))
    return int((available[seen] & (n[seen] == 0)).sum())


def state_features(states: StateSpace, formula: str | None, periods: int | None) -> FloatArray:
    """Return the features (T*S, G) of a flexible logit, in order of period then state.

    Parameters
    ----------
    formula : str, optional
        Over the axes (and ``period``, from 0, at a finite horizon). Default: a dummy for each
        level of an axis with six levels or fewer, a cubic in the others, and the products of
        every pair of axes.

    Raises
    ------
    SpecificationError
        A name that is no axis; features that are not finite.
    """
    from formulaic import model_matrix

    frame = states.frame()
    if periods is not None:
        frame = pd.concat([frame] * periods, ignore_index=True)
        frame["period"] = np.repeat(np.arange(periods), states.size)
    if formula is None:
        phi = _default_features(frame)
    else:
        try:
            phi = np.asarray(model_matrix(formula, frame, na_action="raise"), dtype=np.float64)
        except Exception as error:
            word = str(error).split("'")[1] if "'" in str(error) else ""
            raise SpecificationError(
                f"first_stage formula {formula!r} cannot be used: {error}."
                f"{suggest(word, frame.columns)} Names: {', '.join(frame.columns)}"
            ) from error
    if not np.isfinite(phi).all():
        raise SpecificationError("first_stage: some features are not finite")
    spread = phi.std(axis=0)
    moving = spread > 0
    middle = np.where(moving, phi.mean(axis=0), 0.0)
    return np.ascontiguousarray(
        np.c_[np.ones(len(phi)), ((phi - middle) / np.where(moving, spread, 1.0))[:, moving]]
    )


def _default_features(frame: pd.DataFrame) -> FloatArray:
    """Return dummies of short axes, cubics of the others, and products of every pair."""
    columns: list[FloatArray] = []
    scores: list[FloatArray] = []
    for name in frame:
        levels, code = np.unique(frame[name].to_numpy(), return_inverse=True)
        if len(levels) == 1:
            continue
        numeric = np.issubdtype(levels.dtype, np.number)
        value = levels[code].astype(float) if numeric else code.astype(float)
        z = (value - value.mean()) / value.std()
        scores.append(z)
        if len(levels) <= 6 or not numeric:
            columns += [(code == k).astype(float) for k in range(1, len(levels))]
        else:
            columns += [z, z**2, z**3]
    for i, a in enumerate(scores):
        columns += [a * b for b in scores[:i]]
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0))


@dataclass(frozen=True)
class FirstStageChoice:
    """Which first stage to use, checked once; ``estimate`` runs it on counts."""

    kind: str
    phi: FloatArray | None = None

    @classmethod
    def of(cls, model: DDC, first_stage: str | Utility) -> FirstStageChoice:
        """Read the estimators' ``first_stage=`` argument.

        Raises
        ------
        SpecificationError
            Neither a known name, nor a formula over the axes, nor a Utility of the same shape.
        """
        if isinstance(first_stage, Utility):
            S, J, G = first_stage.shape
            if model.shape[:2] != (S, J):
                raise SpecificationError(
                    f"first_stage has features for {S} states and {J} choices, the model has"
                    f" {model.shape[0]} and {model.shape[1]}"
                )
            return cls("features", first_stage.x.reshape(S * J, G))
        if not isinstance(first_stage, str):
            raise SpecificationError(
                f"first_stage is a {type(first_stage).__name__}; use {', '.join(FIRST_STAGES)}, a"
                " formula over the axes, or a Utility with its features"
            )
        if first_stage in ("frequencies", "smoothed"):
            return cls(first_stage)
        if first_stage == "logit":
            return cls("logit", state_features(model.states, None, model.horizon))
        names = [*model.states.names, "period", "1", "0"]
        if not any(name in first_stage for name in names):
            raise SpecificationError(
                f"first_stage={first_stage!r} is unknown.{suggest(first_stage, FIRST_STAGES)}"
                f" Use {', '.join(FIRST_STAGES)}, or a formula over {', '.join(names[:-2])}"
            )
        return cls("logit", state_features(model.states, first_stage, model.horizon))

    def estimate(
        self, model: DDC, n: FloatArray, start: FloatArray | None = None
    ) -> ChoiceProbabilities:
        """Return the probabilities of counts ``n`` (R, J), with R = S, or T*S at a horizon.

        Raises
        ------
        DataError
            Smoothing needs at least one choice.
        """
        if not n.any():
            raise DataError("no choice to estimate probabilities from")
        repeat = len(n) // model.states.size
        available = np.tile(model.available, (repeat, 1)) if repeat > 1 else model.available
        if self.kind == "frequencies":
            return frequencies(n, available)
        if self.kind == "logit":
            assert self.phi is not None
            attention = np.tile(model.attention, repeat).astype(np.float64)
            default = np.tile(model.default, repeat).astype(np.int64)
            return flexible_logit(self.phi, n, available, start, attention, default)
        if self.kind == "features":
            assert self.phi is not None
            x = self.phi.reshape(*model.shape[:2], -1)
            names = tuple(f"f{g}" for g in range(x.shape[2]))
            features = Utility(x, names, np.zeros(model.shape[:2]))
            return smoothed(model.unchecked(utility=features), n, weight=np.inf)
        whole = model
        if repeat > 1:
            rows = np.tile(np.arange(model.states.size), repeat)
            utility = Utility(
                np.ascontiguousarray(model.utility.x[rows]), model.names, model.utility.offset[rows]
            )
            whole = static(model, utility.x, utility.offset, rows)
        return smoothed(whole, n)
