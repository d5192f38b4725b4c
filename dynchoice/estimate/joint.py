"""Full maximum likelihood: utility parameters and transition probabilities together.

Rust's (1987) last stage. Each estimated multinomial row with at least two outcomes observed is
written in log-odds against its most frequent outcome, so that no step leaves the simplex; the
utility parameters' covariance does not depend on that choice of coordinates.

The score of a member-month adds that of its choice (which feels the probabilities through V) and
that of its move. In the outer product the two are summed apart: their cross product has mean
zero, and which move to pair with which choice is arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.first_stage import FirstStage
from dynchoice.estimate.likelihood import Evaluation, Likelihood
from dynchoice.estimate.make_results import Estimate, ScoreParts
from dynchoice.estimate.optimise import maximise
from dynchoice.kernels import core as kernels
from dynchoice.model.factored import Factored, LawEstimate
from dynchoice.panel.counts import NO_NEXT, Counts
from dynchoice.typing import FloatArray, IntArray

MAX_FREE = 300
"""Free probabilities above which the joint likelihood is refused."""


@dataclass(frozen=True)
class FreeRow:
    """One multinomial row: its law, row, outcomes with counts (base first), and position."""

    law: str
    row: int
    outcomes: IntArray
    counts: FloatArray
    at: slice


def free_rows(estimates: tuple[LawEstimate, ...]) -> list[FreeRow]:
    """Return the rows with free probabilities, numbered one after the other."""
    rows, used = [], 0
    for e in estimates:
        for r, counts in enumerate(e.counts):
            outcomes = np.flatnonzero(counts)
            if len(outcomes) >= 2:
                order = outcomes[np.argsort(-counts[outcomes], kind="stable")]
                width = len(order) - 1
                rows.append(FreeRow(e.name, r, order, counts[order], slice(used, used + width)))
                used += width
    return rows


@dataclass
class JointEvaluation:
    """The full likelihood at (theta, log-odds); ``inner`` is the choices' part."""

    params: FloatArray
    loglik: float
    score: FloatArray
    outer: FloatArray
    inner: Evaluation
    dlogp: FloatArray
    first: FirstStage

    @property
    def converged(self) -> bool:
        """Whether the inner fixed point converged."""
        return self.inner.converged

    @property
    def message(self) -> str:
        """Status of the inner fixed point."""
        return self.inner.message


class JointLikelihood:
    """Log-likelihood of choices and moves in (theta, log-odds)."""

    def __init__(self, first: FirstStage, counts: Counts) -> None:
        self.first, self.n = first, counts.n_sj()
        self.K = len(first.model.names)
        self.rows = free_rows(first.estimates)
        self.size = self.K + (self.rows[-1].at.stop if self.rows else 0)
        if self.size - self.K > MAX_FREE:
            raise SpecificationError(
                f"joint estimation has {self.size - self.K} free transition probabilities, more"
                f" than {MAX_FREE}: use transitions='two-step', whose standard errors carry the"
                " first stage"
            )
        self._warm: Evaluation | None = None

    def start(self, theta: FloatArray) -> FloatArray:
        """Return (theta, log-odds of the frequencies)."""
        odds = [np.log(r.counts[1:] / r.counts[0]) for r in self.rows]
        return np.concatenate([theta, *odds])

    def probabilities(self, row: FreeRow, params: FloatArray) -> FloatArray:
        """Return the row's probabilities over its outcomes (base first)."""
        z = np.r_[0.0, params[self.K :][row.at]]
        e = np.exp(z - z.max())
        return np.asarray(e / e.sum())

    def stage(self, params: FloatArray) -> FirstStage:
        """Return the first stage with the probabilities of ``params`` filled in."""
        tables = {e.name: e.probabilities.copy() for e in self.first.estimates}
        for row in self.rows:
            tables[row.law][row.row, row.outcomes] = self.probabilities(row, params)
        estimates = tuple(replace(e, probabilities=tables[e.name]) for e in self.first.estimates)
        F = self.first.model.transitions
        assert isinstance(F, Factored)
        bound = tuple(
            replace(law, table=law.fill(tables[law.name])) if law.name in tables else law
            for law in F.bound
        )
        model = self.first.model.with_transitions(F.with_bound(bound))
        return FirstStage(model, estimates, self.first.notes)

    def evaluate(self, params: FloatArray) -> JointEvaluation:
        """Return the full likelihood with score and outer product at ``params``."""
        first = self.stage(params)
        likelihood = Likelihood(first.model, self.n)
        likelihood.warm(self._warm)
        inner = likelihood.evaluate(params[: self.K])
        self._warm = inner
        dlogp = self._all_derivatives(likelihood, inner, first, params)
        score, outer = np.zeros(self.size), np.zeros((self.size, self.size))
        kernels.score_and_outer(self.n, dlogp, score, outer)
        loglik = inner.loglik
        for row in self.rows:
            p = self.probabilities(row, params)
            place = slice(self.K + row.at.start, self.K + row.at.stop)
            total = row.counts.sum()
            score[place] += row.counts[1:] - total * p[1:]
            deviation = np.eye(len(p))[:, 1:] - p[1:]
            outer[place, place] += (deviation * row.counts[:, None]).T @ deviation
        for e in first.estimates:
            loglik += e.loglik
        return JointEvaluation(params.copy(), loglik, score, outer, inner, dlogp, first)

    def _all_derivatives(
        self, likelihood: Likelihood, inner: Evaluation, first: FirstStage, params: FloatArray
    ) -> FloatArray:
        """Return d log P by theta and by log-odds, (S, J, K + G)."""
        F, model = first.model.transitions, first.model
        assert isinstance(F, Factored) and inner.point is not None
        S, J, _ = model.shape
        dev = np.empty((S, J, self.size - self.K))
        shapes = {e.name: e.probabilities.shape for e in first.estimates}
        for row in self.rows:
            p = self.probabilities(row, params)
            for i in range(1, len(p)):
                change = np.zeros(shapes[row.law])
                change[row.row, row.outcomes] = p[i] * ((np.arange(len(p)) == i) - p)
                column = row.at.start + i - 1
                dev[:, :, column] = F.expect_change(row.law, change, inner.point.h)
        dev *= model.beta
        dV = likelihood.solver.invert(np.einsum("sj,sjg->sg", inner.P, dev))
        dv = np.concatenate([inner.dv, dev + model.beta * F.expect(dV)], axis=2)
        out = np.empty_like(dv)
        kernels.log_ccp_derivative(inner.pi, inner.P, model.attention, model.default, dv, out)
        return out

    def hessian(self, at: JointEvaluation) -> FloatArray:
        """Return the second derivative by central differences of the exact score."""
        out = np.empty((self.size, self.size))
        steps = 1e-4 / np.sqrt(np.maximum(np.diag(at.outer), 1e-8))
        for k, step in enumerate(steps):
            up, down = at.params.copy(), at.params.copy()
            up[k] += step
            down[k] -= step
            out[k] = (self.evaluate(up).score - self.evaluate(down).score) / (2 * step)
        return (out + out.T) / 2

    def psi(self, at: JointEvaluation, cells: IntArray) -> FloatArray:
        """Return the score of cells (state, choice, next state, decides), (C, K + G)."""
        out = at.dlogp[cells[:, 0], cells[:, 1]] * cells[:, 3, None]
        F = at.first.model.transitions
        assert isinstance(F, Factored)
        moved = cells[:, 2] != NO_NEXT
        moves = np.ascontiguousarray(cells[moved, :3])
        part = np.zeros((len(moves), self.size))
        laws = {law.name: F.moves_outcomes(law, moves) for law in F.bound if law.estimated}
        for row in self.rows:
            which, outcome = laws[row.law]
            p = self.probabilities(row, at.params)
            deviation = np.eye(len(p))[:, 1:] - p[1:]
            for i, k in enumerate(row.outcomes):
                hit = (which == row.row) & (outcome == k)
                part[hit, self.K + row.at.start : self.K + row.at.stop] += deviation[i]
        out[moved] += part
        return out


def joint_estimate(
    first: FirstStage, counts: Counts, two_step: Evaluation, options: FitOptions
) -> Estimate:
    """Maximise the full likelihood from the two-step estimate; report the utility's part."""
    likelihood = JointLikelihood(first, counts)
    best, optimization = maximise(
        likelihood.evaluate,
        None,
        likelihood.start(two_step.params),
        counts.nobs,
        tol=options.tol,
        maxiter=options.maxiter,
        progress=options.progress,
    )
    parts = ScoreParts(
        hessian=likelihood.hessian(best),
        outer=best.outer,
        psi=lambda cells: likelihood.psi(best, cells),
        first_stage=np.zeros((likelihood.size, likelihood.size)),
        label="estimated jointly",
    )
    return Estimate(
        name="NFXP (joint)",
        first=best.first,
        counts=counts,
        evaluation=best.inner,
        parts=parts,
        optimization=optimization,
        extra_params=likelihood.size - likelihood.K,
        loglik_transitions=sum(e.loglik for e in best.first.estimates),
    )
