"""P and Q steps by any learner: cross-fitted probabilities and fitted-Q iteration.

A classifier has ``fit(X, y)`` and ``predict_proba(X)``, a regressor ``fit(X, y)`` and
``predict(X)``, as scikit-learn's do; every fit takes a deep copy of the learner that was passed,
which stays as it is. Members are dealt out to folds; a member's rows are predicted by learners that
saw none of them, so the errors of a fit and what it is used on are independent.

Fitted-Q iteration regresses ``y = g - beta l'_o + beta W'`` on the state over rows with the anchor
(Deep PQR), or ``l'_o - g' + beta h'_o`` on state and choice over all rows (GenPQR), round by round.
It starts from the sieve's solution for the same rows, and learners are fitted to what that misses.
After every round a constant is added that makes the mean Bellman residual zero: what is left dies
out at the speed at which states mix, not at ``beta``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import DataError, IdentificationError, SpecificationError
from dynchoice.estimate.choice_logit import ChoiceLogit
from dynchoice.estimate.rewards.first_stages import LearnedStages
from dynchoice.estimate.rewards.pqr_rows import RowsPQR
from dynchoice.estimate.rewards.rows import solved
from dynchoice.inference.learner_predictions import (
    CLIP,
    ClassifierPolicy,
    Corrected,
    LearnedReward,
    Predictor,
    SievePolicy,
    SieveValue,
    choice_values,
    predicted,
    with_choice,
)
from dynchoice.panel.trajectories import NO_ROW
from dynchoice.typing import BoolArray, FloatArray, IntArray, Progress

SETTLED = 0.02
"""Root mean square move of the last round, in spreads of the values, below which they settled."""


def checked(learner: Any, methods: tuple[str, ...], option: str) -> Any:
    """Return a learner, or say what it lacks.

    Raises
    ------
    SpecificationError
        A method is missing, or a class was passed in place of an object.
    """
    lacking = [m for m in methods if not callable(getattr(learner, m, None))]
    if isinstance(learner, type) or lacking:
        what = f"the class {learner.__name__}" if isinstance(learner, type) else repr(learner)
        raise SpecificationError(
            f"{option}={what}: an object with {' and '.join(methods)} is needed, as of"
            " scikit-learn or dynchoice.Network"
            + ("" if isinstance(learner, type) else f"; it lacks {', '.join(lacking)}")
        )
    return learner


def fitted(learner: Any, X: FloatArray, y: Any, weight: FloatArray) -> Any:
    """Return a copy of a learner fitted to rows; weights go to learners that take them.

    Raises
    ------
    SpecificationError
        Weights differ and the learner takes none.
    """
    own = copy.deepcopy(learner)
    if (weight == weight[0]).all():
        own.fit(X, y)
        return own
    if "sample_weight" not in inspect.signature(own.fit).parameters:
        raise SpecificationError(
            f"the rows have weights, but fit() of {type(own).__name__} takes no sample_weight"
        )
    own.fit(X, y, sample_weight=weight)
    return own


@contextmanager
def named_fold(k: int, folds: int) -> Iterator[None]:
    """Say in an error about identification which fold's members were left out."""
    try:
        yield
    except IdentificationError as error:
        raise IdentificationError(
            f"without the members of fold {k + 1} of {folds}: {error}. Or fewer folds="
        ) from error


def folds_of(members: int, folds: int, seed: int | None) -> IntArray:
    """Return the fold of every member.

    Raises
    ------
    SpecificationError
        Fewer than two folds, or more than members.
    """
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= members:
        raise SpecificationError(
            f"folds={folds!r}: a whole number from 2 to the number of members ({members:,})"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise SpecificationError(f"seed={seed!r}: a whole number, zero at least")
    out = np.empty(members, dtype=np.int64)
    out[np.random.default_rng(seed).permutation(members)] = np.arange(members) % folds
    return out


@dataclass(frozen=True)
class Learned:
    """Out-of-fold stages of all rows, and what is kept of the learners behind them.

    Attributes
    ----------
    stages : LearnedStages
    predictor : Predictor or None
    settled : bool
        Whether the values stopped moving.
    message : str
    notes : tuple of str
    """

    stages: LearnedStages
    predictor: Predictor | None
    settled: bool
    message: str
    notes: tuple[str, ...] = ()
    coefficients: FloatArray | None = None
    """Of ``Q`` on a sieve, where there is no predictor."""


class CrossFit:
    """Cross-fitting of the first two steps on rows.

    Parameters
    ----------
    steps : RowsPQR
    classifier : learner or None
        None: the logit on the sieve, one a fold.
    regressor : learner
    folds, rounds : int
    seed : int, optional
        Of the folds.
    """

    def __init__(
        self, steps: RowsPQR, classifier: Any, regressor: Any, *, folds: int, rounds: int,
        seed: int | None,
    ) -> None:  # fmt: skip
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise SpecificationError(f"rounds={rounds!r}: a whole number, one at least")
        self.steps, self.sieved = steps, steps.sieved
        self.model, self.rows, self.general = steps.model, steps.rows, steps.form.name == "general"
        if classifier is not None:
            checked(classifier, ("fit", "predict_proba"), "classifier")
        self.classifier = classifier
        self.regressor = checked(regressor, ("fit", "predict"), "regressor")
        self.folds, self.rounds = folds, rounds
        self.fold = folds_of(steps.rows.nmembers, folds, seed)

    def fit(self, progress: Progress | None = None) -> Learned:
        """Return the stages of all rows."""
        rows, J = self.rows, len(self.model.choices)
        N, tell = len(rows.x), progress or (lambda done, total, text: None)
        table = self.sieved.table(np.asarray(rows.x))
        offered = self.model.offered(table)
        o = self.model.reference(offered, N)
        g = self.model.paid(table, o)
        log_pi, value = np.zeros((N, J)), np.zeros((N, J) if self.general else N)
        policies: list[Any] = []
        values: list[Any] = []
        clipped, worst, most = 0, 0.0, 0
        for k in range(self.folds):
            out = self.fold[rows.member] == k
            used = np.flatnonzero(~out)
            tell(2 * k, 2 * self.folds, f"policy without fold {k + 1}")
            logit, base = self._sieve(k)
            policy = self._policy(used, offered, logit)
            # the fold's Q step needs log pi at its own rows too, as targets
            own, _ = policy.logs(np.asarray(rows.x), offered)
            away = None if offered is None else offered[out]
            log_pi[out], cut = policy.logs(np.asarray(rows.x[out]), away)
            clipped += cut
            tell(2 * k + 1, 2 * self.folds, f"values without fold {k + 1}")
            found, count, move = self._iterate(used, own, o, g, base)
            value[out] = self._predict(found, np.asarray(rows.x[out]))
            policies.append(policy)
            values.append(found)
            worst, most = max(worst, move), max(most, count)
        tell(2 * self.folds, 2 * self.folds, "learned")
        stages = LearnedStages(log_pi, value)
        ahead = () if self.general else self._ahead(stages, o)
        settled = worst <= SETTLED
        message = f"values moved by {worst:.2%} of their spread in the last of {most} rounds"
        notes = [f"Probabilities and values are learned by {self._names()} in {self.folds} folds of"
                 " members, each predicted by learners that did not see it"]  # fmt: skip
        if clipped:
            notes.append(
                f"{clipped:,} of {N:,} rows had a probability below {CLIP:g}, raised to it"
            )
        return Learned(
            stages,
            LearnedReward(tuple(policies), tuple(values), ahead, self.general),
            settled, message, tuple(notes),
        )  # fmt: skip

    def _names(self) -> str:
        policy = "a logit" if self.classifier is None else type(self.classifier).__name__
        return f"{policy} and {type(self.regressor).__name__}"

    def _sieve(self, k: int) -> tuple[ChoiceLogit, SieveValue]:
        """Return the sieve's logit and values for the rows outside a fold."""
        steps = self.steps.without(self.fold == k)
        logit = steps.sieved.policy(1e-8, 100)
        with named_fold(k, self.folds):
            step = steps.system(steps.sieve_stages(logit))
        J = len(self.model.choices)
        return logit, SieveValue(
            self.sieved.sieve, step.system.solve(step.target), J if self.general else 0
        )

    def _policy(self, used: IntArray, offered: BoolArray | None, logit: ChoiceLogit) -> Any:
        """Return the choice probabilities of some rows."""
        J, rows = len(self.model.choices), self.rows
        if self.classifier is None:
            return SievePolicy(self.sieved.sieve, logit.coefficients)
        if offered is not None:
            used = used[offered[used].sum(axis=1) > 1]
        fit = fitted(self.classifier, rows.x[used], rows.choice[used], rows.weight[used])
        return ClassifierPolicy(fit, J)

    def _ahead(self, stages: LearnedStages, o: IntArray) -> tuple[Any, ...]:
        """Return the R step: ``E[V(s') | s, a]`` on the state for every choice.

        Like the values, on the sieve and by a learner of what that misses.
        """
        rows, out = self.rows, []
        moved = np.flatnonzero(rows.next != NO_ROW)
        z = np.zeros(len(rows.x))
        after = rows.next[moved]
        z[moved] = stages.value[after] - stages.log_pi[after, o[after]]
        known = (rows.next != NO_ROW) | rows.ended
        for j, name in enumerate(self.model.choices):
            at = np.flatnonzero(known & (rows.choice == j))
            if not len(at):
                raise DataError(f"no row that takes {name!r} has a next row: its reward is unknown")
            x, w = np.asarray(rows.x[at]), rows.weight[at]
            phi, sieve = self.sieved.sieve(x), self.sieved.sieve
            gram = (phi * w[:, None]).T @ phi
            gram += 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))
            base = SieveValue(sieve, solved(gram, phi.T @ (w * z[at])), 0)
            learner = fitted(self.regressor, x, z[at] - phi @ base.c, w)
            out.append(Corrected(base, learner, 0.0))
        return tuple(out)

    def _predict(self, learner: Any, x: FloatArray) -> FloatArray:
        """Return ``W`` (n,) or ``h`` (n, J)."""
        if not self.general:
            return predicted(learner, x)
        return choice_values(learner, x, len(self.model.choices))

    def _iterate(
        self, used: IntArray, logs: FloatArray, o: IntArray, g: FloatArray, base: SieveValue
    ) -> tuple[Corrected, int, float]:
        """Return values learned from some rows, rounds taken and the last move."""
        rows, beta, J = self.rows, self.model.beta, len(self.model.choices)
        known = used[(rows.next[used] != NO_ROW) | rows.ended[used]]
        at = known if self.general else known[rows.choice[known] == o[known]]
        if not len(at):
            raise DataError("no row outside a fold takes the anchor and has a next row")
        moved = rows.next[at] != NO_ROW
        after = rows.next[at[moved]]
        fixed = np.zeros(len(at)) if self.general else g[at].copy()
        if self.general:
            fixed[moved] = logs[after, o[after]] - g[after]
        else:
            fixed[moved] -= beta * logs[after, o[after]]
        inputs, ahead_of = np.asarray(rows.x[at]), np.asarray(rows.x[after])
        if self.general:
            inputs = with_choice(inputs, rows.choice[at], J)
            ahead_of = with_choice(ahead_of, o[after], J)
        w = rows.weight[at]
        own, ahead = base.predict(inputs), base.predict(ahead_of)
        share = 1 - beta * float(w[moved].sum() / w.sum())
        shift, now, follow = 0.0, own.copy(), ahead.copy()
        learner, move, count = None, np.inf, 0
        for count in range(1, self.rounds + 1):  # noqa: B007
            y = fixed - own
            y[moved] += beta * follow
            learner = fitted(self.regressor, inputs, y, w)
            value = own + predicted(learner, inputs)
            follow = ahead + predicted(learner, ahead_of)
            # the constant that makes the mean residual zero
            residual = fixed - value
            residual[moved] += beta * follow
            shift = float(w @ residual / w.sum()) / share
            value, follow = value + shift, follow + shift
            move = float(np.sqrt(w @ (value - now) ** 2 / w.sum()))
            now = value
            spread = float(np.sqrt(w @ (now - w @ now / w.sum()) ** 2 / w.sum()))
            move /= max(spread, 1e-12 * max(1.0, float(np.abs(now).max())))
            if move <= SETTLED / 10:
                break
        return Corrected(base, learner, shift), count, move


@dataclass(frozen=True)
class CrossFitted:
    """Options of :class:`CrossFit`, for rows to come."""

    classifier: Any
    regressor: Any
    folds: int
    rounds: int
    trains: bool = True

    def __call__(self, steps: RowsPQR, seed: int | None, progress: Progress | None) -> Learned:
        """Return the stages of all rows."""
        cross = CrossFit(
            steps, self.classifier, self.regressor, folds=self.folds, rounds=self.rounds,
            seed=0 if seed is None else seed,
        )  # fmt: skip
        return cross.fit(progress)
