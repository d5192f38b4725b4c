"""Deep PQR and GenPQR on states that are levels: closed forms.

Policy (choice probabilities), value of the normalised choice, reward: three steps, each a smooth
function of the one before, so the sampling error of probabilities and laws goes through to the
parameters in closed form. The parameters are the projection of the reward on the model's features,
``theta = E[x x']^{-1} E[x r]``; what the features miss is kept as the known part of the utility of
``results.model``, whose solution therefore has the estimated probabilities exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dynchoice.errors import DataError, IdentificationError, SpecificationError, suggest
from dynchoice.estimate.choice_probabilities import ChoiceProbabilities
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.first_stage import influence
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.make_results import Estimate, ScoreParts, make_results
from dynchoice.estimate.optimise import Optimization
from dynchoice.estimate.rewards.normalised import Normalised, normalised
from dynchoice.estimate.two_step import TwoStepEstimator
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.results import Results
from dynchoice.model.attention import psi_derivative
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray, IntArray, Level

if TYPE_CHECKING:
    from dynchoice.model.utility import Utility
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel


class TableReward(TwoStepEstimator[Results]):
    """A reward on states that are levels; what :class:`DeepPQR` and :class:`GenPQR` are there."""

    def __init__(
        self,
        model: DDC,
        data: Panel | Counts,
        *,
        name: str,
        reference: Level | FloatArray | None,
        reward: float | FloatArray | None,
        first_stage: str | Utility,
        support: int,
    ) -> None:
        self.name = name
        if model.horizon is not None:
            raise SpecificationError(f"{self.name} is for infinite horizons")
        self.options = {
            "name": name,
            "reference": reference,
            "reward": reward,
            "first_stage": first_stage,
            "support": support,
        }
        self._read(model, data, first_stage)
        self.mu = self._reference(reference)
        self.reward = reward
        self.g = self._reward(reward)
        taken = float((self.counts.n_sj() * (self.mu > 0)).sum())
        if taken < support:
            raise DataError(
                f"{taken:,.0f} member-months take a choice of the reference policy; its value needs"
                f" support={support:,} at least. Take another reference (GenPQR averages over"
                " several choices)"
            )

    # the normalisation -----------------------------------------------------------------------

    def _reference(self, reference: Level | FloatArray | None) -> FloatArray:
        """Return the reference policy (S, J) of the argument."""
        model = self.model
        S, J, _ = model.shape
        if reference is None:
            reference = self._outside()
        if isinstance(reference, str) and reference == "uniform" and "uniform" not in model.choices:
            return np.asarray(model.available / model.available.sum(axis=1, keepdims=True))
        if np.ndim(cast("FloatArray", reference)) == 0:  # a label
            if reference not in model.choices:
                raise SpecificationError(
                    f"the reference {reference!r} is no choice.{suggest(reference, model.choices)}"
                    f" Choices: {', '.join(map(str, model.choices))}; or 'uniform', or an array"
                )
            mu = np.zeros((S, J))
            mu[:, model.choices.index(reference)] = 1.0
            forced = model.available.sum(axis=1) == 1  # inside a contract: nothing else is chosen
            mu[forced] = model.available[forced]
        else:
            mu = as_floats(reference, "reference")
            if mu.shape != (S, J) or (mu < 0).any() or np.abs(mu.sum(axis=1) - 1).max() > 1e-9:
                raise SpecificationError(
                    f"reference must hold probabilities (S, J) = {(S, J)} that sum to one in every"
                    f" state, got shape {mu.shape}"
                )
        bad = (mu > 0) & ~model.available
        if bad.any():
            s, j = np.argwhere(bad)[0]
            raise SpecificationError(
                f"the reference policy takes {model.choices[j]!r}, which {int(bad.any(1).sum()):,}"
                f" of {S:,} states do not offer, for instance ({model.states.describe(int(s))}):"
                " there is no such reward. GenPQR takes probabilities (S, J) over what is offered"
            )
        return mu

    def _outside(self) -> Level:
        """Return the choice whose features are zero wherever it is offered."""
        empty = (self.model.utility.x == 0).all(axis=(0, 2))
        if empty.sum() != 1:
            raise SpecificationError(
                f"{self.name}: name the choice with a known reward; the features are zero for"
                f" {int(empty.sum())} of the choices {', '.join(map(str, self.model.choices))}"
            )
        return self.model.choices[int(empty.argmax())]

    def _reward(self, reward: float | FloatArray | None) -> FloatArray:
        """Return the reference's expected reward (S,) of the argument."""
        S = self.model.states.size
        if reward is None:
            return np.asarray((self.mu * self.model.utility.offset).sum(axis=1))
        g = as_floats(reward, "reward")
        if g.ndim > 1 or (g.ndim == 1 and len(g) != S) or not np.isfinite(g).all():
            raise SpecificationError(
                f"reward is the reference's expected reward: one finite number, or {S:,} by state;"
                f" got shape {g.shape}"
            )
        return np.asarray(np.broadcast_to(g, (S,)), dtype=np.float64)

    # estimation ------------------------------------------------------------------------------

    def estimate(self, options: FitOptions) -> Results:
        """Return rewards and their projection on the features, in closed form."""
        n, model = self.counts.n_sj(), self._first.model
        probabilities = self._stage.estimate(self.model, n)
        zero = normalised(model, probabilities.P, self.mu, self.g)
        x, h = zero.features(model.utility.x) if self.reward is None else (model.utility.x, None)
        _, theta = self._project(x, zero.r - model.utility.offset, n)
        solved = (
            zero if h is None else normalised(model, zero.P, self.mu, self.g + self._earned(theta))
        )
        rest = np.where(model.available, solved.r - model.utility.flow(theta), 0.0)
        rewarded = model.with_parts(utility=model.utility.with_offset(rest))
        parts = self._parts(solved, probabilities, x, h, rest, n)
        likelihood = Likelihood(rewarded, n, solved.V)
        evaluation = likelihood.evaluate(theta)
        missed = float(np.abs(evaluation.P - probabilities.P).max())
        exact = missed <= 1e-6
        status = Optimization(
            converged=exact,
            message="converged: solved in closed form"
            if exact
            else f"not converged: the reward's own choice probabilities are {missed:.1e} off",
            iterations=1,
            evaluations=1,
            gradient=missed,
            decrement=0.0,
            start=np.zeros(0),
        )
        estimate = Estimate(
            name=self.name,
            first=self._first,
            counts=self.counts,
            evaluation=evaluation,
            parts=parts,
            optimization=status,
            model=rewarded,
            pseudo_loglik=evaluation.loglik,
            notes=self._notes(probabilities, n),
            extra_params=int(rewarded.available.sum()),
            uses=self._uses(n),
        )
        return make_results(estimate, options)

    def _earned(self, theta: FloatArray) -> FloatArray:
        """Return what the reference's features are worth (S,)."""
        return np.asarray((self.mu * (self.model.utility.x @ theta)).sum(axis=1))

    def _project(
        self, x: FloatArray, r: FloatArray, n: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return the features' second moments (K, K), summed over rows, and the projection."""
        gram = np.einsum("sj,sjk,sjl->kl", n, x, x)
        flat = Identification.of(self.model.names, gram).flat
        if flat or (np.diag(gram) <= 0).any():
            dead = [k for k, v in zip(self.model.names, np.diag(gram), strict=True) if v <= 0]
            what = "; ".join(flat) if flat else ", ".join(map(repr, dead))
            raise IdentificationError(
                f"the reward cannot be projected on features that are collinear where the panel has"
                f" rows: {what}. Drop one of them or combine them"
            )
        return gram, np.linalg.solve(gram, np.einsum("sj,sjk,sj->k", n, x, r))

    def _parts(
        self,
        found: Normalised,
        first: ChoiceProbabilities,
        x: FloatArray,
        h: FloatArray | None,
        rest: FloatArray,
        n: FloatArray,
    ) -> ScoreParts:
        """Return what a member-month adds to ``sum n x rest``, by cell."""
        model, K = found.model, x.shape[2]
        gram = np.einsum("sj,sjk,sjl->kl", n, x, x)
        d = np.stack([found.adjoint(n * x[:, :, k]) for k in range(K)])
        table = x * rest[:, :, None] + first.influence(psi_derivative(model, first.P, -d))
        by_cell, V1, label = None, np.zeros((K, K)), "choice probabilities included"
        if self._first.estimates and model.beta > 0:
            law: Any = model.transitions
            each = [law.law_gradient(-model.beta * d[k], found.V) for k in range(K)]
            if h is not None:
                # features normalised through estimated laws, where the reward is not their sum
                missed = found.adjoint(n * rest)
                for k in range(K):
                    for name, g in law.law_gradient(model.beta * missed, h[:, k]).items():
                        each[k][name] = each[k][name] + g
            cross = {name: np.stack([g[name] for g in each]) for name in each[0]}
            by_cell, V1 = influence(model, self._first.estimates, cross)
            label = "included"
        meat = np.einsum("sj,sjk,sjl->kl", n, table, table)

        def psi(cells: IntArray) -> FloatArray:
            out = table[cells[:, 0], cells[:, 1]] * cells[:, 3, None]
            return np.asarray(out if by_cell is None else out + by_cell(cells))

        return ScoreParts(-gram, gram, psi, V1, label, choice_meat=meat)

    # what the summary says -------------------------------------------------------------------

    def _uses(self, n: FloatArray) -> dict[str, float]:
        taken, seen = n * (self.mu > 0), n.sum(axis=1) > 0
        free = self.model.available[seen].sum() - seen.sum()
        return {
            "share": 1.0,
            "rewards": float(max(free - len(self.model.names), 0)),
            "states": int(seen.sum()),
            "reference rows": float(taken.sum()),
            "reference share": float(taken.sum() / n.sum()),
        }

    def _notes(self, first: ChoiceProbabilities, n: FloatArray) -> tuple[str, ...]:
        uses = self._uses(n)
        seen = n.sum(axis=1) > 0
        never = seen & ((n * (self.mu > 0)).sum(axis=1) == 0)
        ratio = float((self.mu / np.maximum(first.P, 1e-300))[self.model.available].max())
        notes = [
            f"The reference policy's choices are {uses['reference rows']:,.0f} member-months"
            f" ({uses['reference share']:.1%}); in {int(never.sum()):,} of {int(seen.sum()):,} seen"
            f" states nobody took them; largest ratio of reference to observed probability"
            f" {ratio:,.0f}",
            "The parameters are a projection of the estimated reward on the features; what they"
            " miss is in the model's offset, so the log-likelihood is that of the first stage",
        ]
        if first.empty:
            notes.append(
                f"{first.empty:,} available choices were never taken in seen states: the first"
                f" stage is {first.kind} there"
            )
        return tuple(notes)
