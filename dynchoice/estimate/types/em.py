"""Expectation-maximisation over unobserved types, with the likelihood or with CCPs inside.

Arcidiacono and Miller (2011, section 4): given posteriors, shares and choice probabilities of
each type are re-estimated, then the utility parameters by a weighted (pseudo-)likelihood; given
those, the posteriors. With CCPs inside, no step climbs the likelihood for certain, so the
iteration stops when parameters do, not when the likelihood does; SQUAREM (Varadhan and Roland
2008) on the posteriors' log-odds takes it there in a third of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dynchoice.estimate.choice_probabilities import FirstStageChoice, flexible_logit, smoothed
from dynchoice.estimate.finite_dependence import DependentLikelihood
from dynchoice.estimate.likelihood import FiniteLikelihood, Likelihood
from dynchoice.estimate.policy_inversion import pseudo_likelihood
from dynchoice.estimate.types.histories import Histories
from dynchoice.estimate.types.mixture import TypeLayout, posterior, share_probabilities
from dynchoice.model.ddc import DDC
from dynchoice.solvers.linear import PolicySystem
from dynchoice.typing import FloatArray, IntArray, Progress

ODDS = 30.0
"""Bound on the posteriors' log-odds while extrapolating."""
WARM_UP = 5
LONGEST = 64.0


class Inner(Protocol):
    """One M-step of the utility parameters and the log-probabilities that follow."""

    def step(self, params: FloatArray, counts: list[FloatArray]) -> FloatArray:
        """Return new utility (and further) parameters given type-weighted counts."""
        ...

    def log_tables(self) -> list[FloatArray]:
        """Return log P by cell for each type at the last parameters."""
        ...


def newton_step(
    parts: list[Any], places: list[IntArray], evaluations: list[Any], params: FloatArray
) -> FloatArray:
    """Return one joint Newton step of types that share some parameters."""
    U = len(params)
    score, information = np.zeros(U), np.zeros((U, U))
    for part, where, at in zip(parts, places, evaluations, strict=True):
        np.add.at(score, where, at.score)
        H = part.hessian(at)
        if np.linalg.eigvalsh(-H)[0] <= 0:
            H = -at.outer
        information[np.ix_(where, where)] -= H
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    inner = information / np.outer(scale, scale)
    return np.asarray(np.linalg.lstsq(inner, score / scale, rcond=1e-12)[0] / scale)


def climb_jointly(
    parts: list[Any],
    places: list[IntArray],
    params: FloatArray,
    steps: int,
    tol: float,
) -> tuple[FloatArray, list[Any]]:
    """Take Newton steps of the types' joint (pseudo-)likelihood while they climb."""
    now = [part.evaluate(params[where]) for part, where in zip(parts, places, strict=True)]
    value = sum(e.loglik for e in now)
    for _ in range(steps):
        step = newton_step(parts, places, now, params)
        size = float(np.abs(step).max() / (1 + np.abs(params).max()))
        for halving in range(12):
            trial = params + step / 2**halving
            then = [p.evaluate(trial[w]) for p, w in zip(parts, places, strict=True)]
            after = sum(e.loglik for e in then)
            if np.isfinite(after) and after >= value - 1e-10 * abs(value):
                params, now, value = trial, then, after
                break
        else:
            break
        if size < tol:
            break
    return params, now


class FullInner:
    """M-steps of the likelihood: one Newton step each, with the model solved for every type."""

    def __init__(self, model: DDC, data: Histories, layout: TypeLayout) -> None:
        S, J, _ = model.shape
        self.shape = (S, J) if model.horizon is None else (model.horizon, S, J)
        n = data.counts(np.ones(len(data.weight)), self.shape)
        kind: Any = Likelihood if model.horizon is None else FiniteLikelihood
        self.parts = [kind(model, n) for _ in range(layout.types)]
        self.places = [layout.places(q) for q in range(layout.types)]
        self.now: list[Any] = []

    def step(self, params: FloatArray, counts: list[FloatArray]) -> FloatArray:
        """Return the parameters after one Newton step."""
        for part, n in zip(self.parts, counts, strict=True):
            part.recount(n)
        params, self.now = climb_jointly(self.parts, self.places, params, 1, 1e-8)
        return params

    def log_tables(self) -> list[FloatArray]:
        """Return log P of each type."""
        return [np.log(np.where(e.P > 0, e.P, 1.0)) for e in self.now]


class PseudoInner:
    """M-steps with type-specific choice probabilities in place of solutions.

    Exact values: the probabilities of the last estimate (so that the fixed point is the maximum
    of the likelihood, as for NPL). Finite dependence: a first stage of its own for each type,
    weighted by the posteriors (Arcidiacono and Miller's first update).
    """

    def __init__(
        self,
        model: DDC,
        data: Histories,
        layout: TypeLayout,
        stage: FirstStageChoice,
        dependent: DependentLikelihood | None,
    ) -> None:
        S, J, _ = model.shape
        Q, E = layout.types, len(layout.extra)  # E extra parameters stand at the end
        self.model, self.stage, self.dependent = model, stage, dependent is not None
        self.shape = (S, J) if model.horizon is None else (model.horizon, S, J)
        self.n = data.counts(np.ones(len(data.weight)), self.shape)
        tail = layout.utility + np.arange(E)
        self.places = [np.r_[layout.places(q), tail] for q in range(Q)]
        self.params: list[FloatArray | None] = [None] * Q
        self.P: list[FloatArray | None] = [None] * Q
        self.now: list[Any] = []
        self.parts: list[Any] = []
        if dependent is not None:
            self.parts = [dependent.copy() for _ in range(Q)]
        else:
            self.system = PolicySystem(model.transitions, model.beta)

    def step(self, params: FloatArray, counts: list[FloatArray]) -> FloatArray:
        """Re-estimate the types' probabilities, then maximise the joint pseudo-likelihood."""
        parts = []
        for q, n in enumerate(counts):
            if self.dependent:
                first = self.stage.estimate(self.model, n.reshape(-1, n.shape[-1]), self.params[q])
                self.params[q] = first.params if self.stage.kind == "logit" else None
                self.parts[q].recount(n)
                self.parts[q].set_probabilities(first.P)
                parts.append(self.parts[q])
            else:
                P = self.P[q] if self.P[q] is not None else smoothed(self.model, n).P
                assert P is not None
                parts.append(pseudo_likelihood(self.model, self.system, n, P)[0])
        params, self.now = climb_jointly(parts, self.places, params, 50, 1e-9)
        if not self.dependent:
            self.P = [e.P for e in self.now]
        self.parts = parts
        return params

    def log_tables(self) -> list[FloatArray]:
        """Return log P of each type; zero in rows that were never seen."""
        if not self.dependent:
            return [np.log(np.where(e.P > 0, e.P, 1.0)) for e in self.now]
        out = []
        for part, e in zip(self.parts, self.now, strict=True):
            P = part.by_state(e.P[:, :, None])[..., 0].reshape(self.shape)
            out.append(np.log(np.where(P > 0, P, 1.0)))
        return out


@dataclass
class EMState:
    """Where the iteration stands."""

    params: FloatArray
    gamma: FloatArray
    post: FloatArray
    loglik: float
    iterations: int = 0
    converged: bool = False


class EM:
    """The EM map on posteriors, with any inner M-step."""

    def __init__(
        self,
        data: Histories,
        layout: TypeLayout,
        phi: FloatArray,
        inner: Inner,
        shape: tuple[int, ...],
    ) -> None:
        self.data, self.layout, self.phi, self.inner, self.shape = data, layout, phi, inner, shape

    def map(self, state: EMState) -> EMState:
        """M-step given the posteriors, then E-step."""
        data, Q = self.data, self.layout.types
        counts = [data.counts(state.post[:, q], self.shape) for q in range(Q)]
        params = self.inner.step(state.params, counts)
        weights = state.post * data.weight[:, None]
        gamma = state.gamma
        if Q > 1:
            everywhere = np.ones((len(weights), Q), dtype=bool)
            # hardly any ridge: the shares' first-order condition is part of the likelihood's
            start = gamma.reshape(-1)
            fitted = flexible_logit(self.phi, weights, everywhere, start, ridge=1e-9)
            gamma = fitted.params.reshape(Q - 1, -1)
        share = share_probabilities(self.phi, gamma)
        log_joint = np.stack([data.sums(t) for t in self.inner.log_tables()], axis=1)
        post, each = posterior(log_joint + np.log(np.maximum(share, 1e-300)))
        return EMState(params, gamma, post, float(data.weight @ each), state.iterations + 1)

    def run(
        self,
        state: EMState,
        tol: float,
        maxiter: int,
        accelerate: bool = True,
        progress: Progress | None = None,
    ) -> EMState:
        """Iterate until the largest change of a parameter in one plain step is within ``tol``."""
        while state.iterations < maxiter:
            one = self.map(state)
            if self._change(state, one) <= tol:
                one.converged = True
                return one
            if progress is not None:
                progress(one.iterations, maxiter, f"EM, log-likelihood {one.loglik:.4f}")
            if not accelerate or one.iterations < WARM_UP or self.layout.types == 1:
                state = one
                continue
            two = self.map(one)
            if self._change(one, two) <= tol:
                two.converged = True
                return two
            state = self.map(self._extrapolated(state, one, two))
        return state

    @staticmethod
    def _change(a: EMState, b: EMState) -> float:
        x, y = np.r_[a.params, a.gamma.reshape(-1)], np.r_[b.params, b.gamma.reshape(-1)]
        return float(np.abs((y - x) / (1 + np.abs(x))).max())

    @staticmethod
    def _extrapolated(a: EMState, b: EMState, c: EMState) -> EMState:
        """Return the SQUAREM point from three successive posteriors."""
        z = [_log_odds(s.post) for s in (a, b, c)]
        r, v = z[1] - z[0], z[2] - 2 * z[1] + z[0]
        size = float(np.sqrt((v**2).sum()))
        step = float(np.sqrt((r**2).sum())) / size if size > 0 else 1.0
        alpha = min(max(step, 1.0), LONGEST)
        odds = np.clip(z[0] + 2 * alpha * r + alpha**2 * v, -ODDS, ODDS)
        post = np.exp(np.c_[np.zeros(len(odds)), odds])
        post /= post.sum(axis=1, keepdims=True)
        return EMState(c.params, c.gamma, post, c.loglik, c.iterations)


def _log_odds(post: FloatArray) -> FloatArray:
    """Return log-odds against type 0, bounded."""
    safe = np.maximum(post, 1e-300)
    return np.asarray(np.clip(np.log(safe[:, 1:] / safe[:, :1]), -ODDS, ODDS))


def opening_posteriors(
    scores: FloatArray, variance: FloatArray, types: int, starts: int, seed: int | None
) -> list[FloatArray]:
    """Return where EM starts, each (N, Q), from members' scores at a fit without types.

    The first start ranks members by the main direction of their standardised scores (who joins
    and stays more than the fit expects); the others by random directions with noise.
    """
    rng = np.random.default_rng(seed)
    z = scores / np.sqrt(np.maximum(variance, 1e-12))
    _, vectors = np.linalg.eigh(z.T @ z)
    out = []
    for i in range(starts):
        index = z @ vectors[:, -1] if i == 0 else z @ rng.standard_normal(z.shape[1])
        spread = index.std()
        if i > 0 or spread == 0:
            index = index + (spread or 1.0) * rng.standard_normal(len(index)) * (i > 0)
        rank = (np.argsort(np.argsort(index, kind="stable"), kind="stable") + 0.5) / len(index)
        distance = rank[:, None] * types - (np.arange(types) + 0.5)
        post = np.exp(-2 * distance**2)
        out.append(post / post.sum(axis=1, keepdims=True))
    return out


MakeInner = Callable[[], Inner]
"""Makes a fresh inner M-step for each start."""
