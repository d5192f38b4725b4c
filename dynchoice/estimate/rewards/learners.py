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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from dynchoice import checks
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
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray, Progress

SETTLED = 0.02
"""Root mean square move of the last round, in spreads of the values, below which they settled."""


class Trainable(Protocol):
    """What is fitted to rows (n, p) and targets (n,), in place."""

    @property
    def fit(self) -> Callable[..., object]:
        """Called as ``fit(X, y)``, or with ``sample_weight=`` where rows have weights."""
        ...


class Regressor(Trainable, Protocol):
    """A learner of numbers, as scikit-learn's are."""

    def predict(self, X: FloatArray) -> FloatArray:
        """Return predictions (n,)."""
        ...


class Classifier(Trainable, Protocol):
    """A learner of choice probabilities, as scikit-learn's are."""

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Return probabilities (n, classes)."""
        ...


Model = TypeVar("Model", bound=Trainable)


def check_learner(learner: object, methods: tuple[str, ...], option: str) -> None:
    """Raise for a learner that lacks a method, and say which.

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


def fit_copy(learner: Model, X: FloatArray, y: AnyArray, weight: FloatArray) -> Model:
    """Return a copy of a learner fitted to rows; weights go to learners that take them.

    Raises
    ------
    SpecificationError
        Weights differ and the learner takes none.
    """
    model = copy.deepcopy(learner)
    if (weight == weight[0]).all():
        model.fit(X, y)
        return model
    if "sample_weight" not in inspect.signature(model.fit).parameters:
        raise SpecificationError(
            f"the rows have weights, but fit() of {type(model).__name__} takes no sample_weight"
        )
    model.fit(X, y, sample_weight=weight)
    return model


@contextmanager
def named_fold(k: int, folds: int) -> Iterator[None]:
    """Say in an error about identification which fold's members were left out."""
    try:
        yield
    except IdentificationError as error:
        raise IdentificationError(
            f"without the members of fold {k + 1} of {folds}: {error}. Or fewer folds="
        ) from error


def deal_folds(members: int, folds: int, seed: int | None) -> IntArray:
    """Return the fold of every member.

    Raises
    ------
    SpecificationError
        Fewer than two folds, or more than members.
    """
    if checks.whole(folds, "folds", 2) > members:
        raise SpecificationError(f"folds={folds:,} is above the number of members ({members:,})")
    checks.seed(seed)
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


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """States of all rows with their reference choices.

    Attributes
    ----------
    x : FloatArray, shape (N, p)
    offered : BoolArray, shape (N, J), or None
    choice : IntArray, shape (N,)
        The reference.
    paid : FloatArray, shape (N,)
        Its reward.
    """

    x: FloatArray
    offered: BoolArray | None
    choice: IntArray
    paid: FloatArray

    @classmethod
    def of(cls, steps: RowsPQR) -> Referenced:
        """Look them up."""
        x = np.asarray(steps.rows.x)
        table = steps.sieved.table(x)
        offered = steps.model.offered(table)
        choice = steps.model.reference(offered, len(x))
        return cls(x=x, offered=offered, choice=choice, paid=steps.model.paid(table, choice))


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
        self,
        steps: RowsPQR,
        classifier: Classifier | None,
        regressor: Regressor,
        *,
        folds: int,
        rounds: int,
        seed: int | None,
    ) -> None:
        checks.whole(rounds, "rounds", 1)
        self.steps, self.sieved = steps, steps.sieved
        self.model, self.rows, self.general = steps.model, steps.rows, steps.form.name == "general"
        if classifier is not None:
            check_learner(classifier, ("fit", "predict_proba"), "classifier")
        self.classifier = classifier
        check_learner(regressor, ("fit", "predict"), "regressor")
        self.regressor = regressor
        self.folds, self.rounds = folds, rounds
        self.fold = deal_folds(steps.rows.nmembers, folds, seed)

    def fit(self, progress: Progress | None = None) -> Learned:
        """Return the stages of all rows."""
        rows, J, N = self.rows, len(self.model.choices), len(self.rows.x)
        report = progress or (lambda done, total, text: None)
        references = Referenced.of(self.steps)
        x, offered = references.x, references.offered
        log_pi, value = np.zeros((N, J)), np.zeros((N, J) if self.general else N)
        policies: list[SievePolicy | ClassifierPolicy] = []
        values: list[Corrected] = []
        clipped, worst, most = 0, 0.0, 0
        for k in range(self.folds):
            out = self.fold[rows.member] == k
            used = np.flatnonzero(~out)
            report(2 * k, 2 * self.folds, f"policy without fold {k + 1}")
            logit, base = self._sieve(k)
            policy = self._policy(used, offered, logit)
            # the fold's Q step needs log pi at its own rows too, as targets
            logs, _ = policy.logs(x, offered)
            offered_out = None if offered is None else offered[out]
            log_pi[out], clipped_out = policy.logs(x[out], offered_out)
            clipped += clipped_out
            report(2 * k + 1, 2 * self.folds, f"values without fold {k + 1}")
            learned, count, move = self._iterate(used, logs, references, base)
            value[out] = self._predict(learned, x[out])
            policies.append(policy)
            values.append(learned)
            worst, most = max(worst, move), max(most, count)
        report(2 * self.folds, 2 * self.folds, "learned")
        stages = LearnedStages(log_pi, value)
        ahead = () if self.general else self._ahead(stages, references.choice)
        settled = worst <= SETTLED
        message = f"values moved by {worst:.2%} of their spread in the last of {most} rounds"
        notes = [
            f"Probabilities and values are learned by {self._names()} in {self.folds} folds of"
            " members, each predicted by learners that did not see it"
        ]
        if clipped:
            notes.append(
                f"{clipped:,} of {N:,} rows had a probability below {CLIP:g}, raised to it"
            )
        return Learned(
            stages=stages,
            predictor=LearnedReward(tuple(policies), tuple(values), ahead, self.general),
            settled=settled,
            message=message,
            notes=tuple(notes),
        )

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

    def _policy(
        self, used: IntArray, offered: BoolArray | None, logit: ChoiceLogit
    ) -> SievePolicy | ClassifierPolicy:
        """Return the choice probabilities of some rows."""
        J, rows = len(self.model.choices), self.rows
        if self.classifier is None:
            return SievePolicy(self.sieved.sieve, logit.coefficients)
        if offered is not None:
            used = used[offered[used].sum(axis=1) > 1]
        fit = fit_copy(self.classifier, rows.x[used], rows.choice[used], rows.weight[used])
        return ClassifierPolicy(fit, J)

    def _ahead(self, stages: LearnedStages, reference: IntArray) -> tuple[Corrected, ...]:
        """Return the R step: ``E[V(s') | s, a]`` on the state for every choice.

        Like the values, on the sieve and by a learner of what that misses.
        """
        rows, sieve, out = self.rows, self.sieved.sieve, []
        moved = np.flatnonzero(rows.next != NO_ROW)
        after = rows.next[moved]
        V_next = np.zeros(len(rows.x))
        V_next[moved] = stages.value[after] - stages.log_pi[after, reference[after]]
        followed = (rows.next != NO_ROW) | rows.ended
        for j, name in enumerate(self.model.choices):
            taken = np.flatnonzero(followed & (rows.choice == j))
            if not len(taken):
                raise DataError(f"no row that takes {name!r} has a next row: its reward is unknown")
            x, weight = np.asarray(rows.x[taken]), rows.weight[taken]
            phi = sieve(x)
            gram = (phi * weight[:, None]).T @ phi
            gram += 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))
            base = SieveValue(sieve, solved(gram, phi.T @ (weight * V_next[taken])), 0)
            learner = fit_copy(self.regressor, x, V_next[taken] - phi @ base.c, weight)
            out.append(Corrected(base, learner, 0.0))
        return tuple(out)

    def _predict(self, learner: Corrected, x: FloatArray) -> FloatArray:
        """Return ``W`` (n,) or ``h`` (n, J)."""
        if not self.general:
            return predicted(learner, x)
        return choice_values(learner, x, len(self.model.choices))

    def _iterate(
        self, used: IntArray, logs: FloatArray, references: Referenced, base: SieveValue
    ) -> tuple[Corrected, int, float]:
        """Return values learned from some rows, rounds taken and the last move."""
        rows, beta, J = self.rows, self.model.beta, len(self.model.choices)
        x, reference, g = references.x, references.choice, references.paid
        fit_rows = used[(rows.next[used] != NO_ROW) | rows.ended[used]]
        if not self.general:
            fit_rows = fit_rows[rows.choice[fit_rows] == reference[fit_rows]]
        if not len(fit_rows):
            raise DataError("no row outside a fold takes the anchor and has a next row")
        moved = rows.next[fit_rows] != NO_ROW
        after = rows.next[fit_rows[moved]]
        inputs, inputs_next, weight = x[fit_rows], x[after], rows.weight[fit_rows]
        # the target of every round, before the next row's value
        if self.general:
            fixed = np.zeros(len(fit_rows))
            fixed[moved] = logs[after, reference[after]] - g[after]
            inputs = with_choice(inputs, rows.choice[fit_rows], J)
            inputs_next = with_choice(inputs_next, reference[after], J)
        else:
            fixed = g[fit_rows].copy()
            fixed[moved] -= beta * logs[after, reference[after]]
        # learners are fitted to what the sieve's values miss
        sieve, sieve_next = base.predict(inputs), base.predict(inputs_next)
        total = weight.sum()
        lost = 1 - beta * float(weight[moved].sum() / total)
        shift, now, value_next = 0.0, sieve.copy(), sieve_next.copy()
        move, count = np.inf, 0
        for count in range(1, self.rounds + 1):  # noqa: B007
            y = fixed - sieve
            y[moved] += beta * value_next
            learner = fit_copy(self.regressor, inputs, y, weight)
            value = sieve + predicted(learner, inputs)
            value_next = sieve_next + predicted(learner, inputs_next)
            # the constant that makes the mean residual zero
            residual = fixed - value
            residual[moved] += beta * value_next
            shift = float(weight @ residual / total) / lost
            value, value_next = value + shift, value_next + shift
            move = float(np.sqrt(weight @ (value - now) ** 2 / total))
            now = value
            spread = float(np.sqrt(weight @ (now - weight @ now / total) ** 2 / total))
            move /= max(spread, 1e-12 * max(1.0, float(np.abs(now).max())))
            if move <= SETTLED / 10:
                break
        return Corrected(base, learner, shift), count, move


@dataclass(frozen=True)
class CrossFitted:
    """Options of :class:`CrossFit`, for rows to come."""

    classifier: Classifier | None
    regressor: Regressor
    folds: int
    rounds: int
    trains: bool = True

    def __call__(self, steps: RowsPQR, seed: int | None, progress: Progress | None) -> Learned:
        """Return the stages of all rows."""
        cross = CrossFit(
            steps,
            self.classifier,
            self.regressor,
            folds=self.folds,
            rounds=self.rounds,
            seed=0 if seed is None else seed,
        )
        return cross.fit(progress)
