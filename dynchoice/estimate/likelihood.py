"""Log-likelihood, score, outer product and Hessian of choices, from counts.

The data enter as ``n[s, j]`` only, so the cost does not grow with the number of members.
Derivatives use the implicit function theorem (Rust 1988; Iskhakov et al. 2016): with
``A = I - beta sum_j diag(P_j) F_j``,

    dV/dtheta_k = A^{-1} sum_j P_j x_jk,        dv_j = x_j + beta F_j dV,
    d log P(j|s) = omega_j (dv_j - sum_i pi_i dv_i),

``omega = 1`` but for the default of an inattentive state. The exact Hessian needs one more
(transposed) solve, whatever K: second derivatives of V enter only through
``lambda = A^{-T} beta F' (dl/dv)``, because ``A d2V_kl = a Cov_pi(dv_k, dv_l)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.kernels import core as kernels
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.solvers.bellman import over_choices
from dynchoice.solvers.fixed_point import FixedPoint
from dynchoice.solvers.memory_needed import check_likelihood
from dynchoice.solvers.solver import Solver
from dynchoice.typing import FloatArray

DERIVATIVE_RTOL = 1e-10
"""Relative accuracy of the derivative of V where sweeps solve for it."""


@dataclass
class Evaluation:
    """The likelihood and what it was made of at one parameter vector.

    ``score`` (K,) and ``outer`` (K, K) are sums over member-months of d log P and its outer
    product; ``dlogp`` and ``dv`` are (S, J, K), with a leading period axis at a finite horizon.
    ``P`` is observed; ``policy`` is what members expect of themselves (``P`` unless naive).
    """

    params: FloatArray
    loglik: float
    score: FloatArray
    outer: FloatArray
    point: FixedPoint | None
    v: FloatArray
    pi: FloatArray
    P: FloatArray
    dV: FloatArray
    dv: FloatArray
    dlogp: FloatArray
    policy: FloatArray
    V: FloatArray | None = None

    @property
    def converged(self) -> bool:
        """Whether the inner fixed point converged."""
        return self.point is None or self.point.converged

    @property
    def message(self) -> str:
        """Status of the inner fixed point."""
        return "backward induction" if self.point is None else self.point.message


class Likelihood:
    """Likelihood of choice counts under a model with known transitions, infinite horizon.

    Parameters
    ----------
    model : DDC
    n : FloatArray, shape (S, J)
        Choices that enter the likelihood; none where a choice is not offered.
    value : FloatArray, shape (S,), optional
        Where the first solution starts.
    """

    def __init__(self, model: DDC, n: FloatArray, value: FloatArray | None = None) -> None:
        check_likelihood(model)
        self.model, self.n = model, np.ascontiguousarray(n, dtype=np.float64)
        self.total = float(self.n.sum())
        self.attentive = bool((model.attention == 1).all())
        self.solver = Solver(model)
        self._x = self.solver.x
        self._offset = np.where(model.available, model.utility.offset, -np.inf)
        self._no_dV = np.zeros(self._x.shape[::2])
        self._last: Evaluation | None = None
        self._factored: Evaluation | None = None
        self.value = value

    def warm(self, evaluation: Evaluation | None) -> None:
        """Let the next solution start from another likelihood's, at nearby primitives."""
        if evaluation is not None and evaluation.converged:
            self._last = replace(evaluation, params=evaluation.params + np.nan)

    def release(self) -> None:
        """Leave the linear system to others: the next derivative sets its policy again."""
        self._factored = None

    def recount(self, n: FloatArray) -> None:
        """Take other counts (S, J); a solution already made is kept."""
        self.n = np.ascontiguousarray(n, dtype=np.float64)
        self.total = float(n.sum())
        last = self._last
        if last is None:
            return
        K = len(last.params)
        score, outer = np.zeros(K), np.zeros((K, K))
        kernels.score_and_outer(self.n, last.dlogp, score, outer)
        loglik = float(kernels.log_likelihood(self.n, last.P, last.v, self.model.attention))
        renewed = replace(last, score=score, outer=outer, loglik=loglik)
        if self._factored is last:
            self._factored = renewed
        self._last = renewed

    def flow(self, params: FloatArray) -> FloatArray:
        """Return flow utility (S, J), minus infinity where a choice is not offered."""
        return self._offset + self._x @ params

    def evaluate(self, params: FloatArray) -> Evaluation:
        """Solve the model and differentiate it; starts from where the last solution points."""
        last = self._last
        if last is not None and np.array_equal(last.params, params):
            return last
        start = self.value if last is None else None
        if last is not None and last.converged and last.point is not None:
            shift = params - last.params
            start = last.point.h
            if self.model.beta > 0:
                start = start + last.dV @ np.where(np.isfinite(shift), shift, 0.0)
        solver = self.solver
        self._factored = None
        point = solver.solve(self.flow(params), start)
        if self.model.beta == 0:
            # nothing below reads the derivative of V when the future does not count
            dV, dv = self._no_dV, self._x
        else:
            near = None if last is None or not last.converged else last.dV
            dV, dv = solver.derivative(DERIVATIVE_RTOL, near)
            if solver.system.failures:
                # values may be right and their derivatives wrong: neither is to be trusted then
                point = replace(point, converged=False, message=solver.system.failures[-1])
        policy = solver.policy()
        P = policy if self.model.sophisticated else solver.bellman.observed()
        dlogp = solver.log_ccp_derivative(dv, P)
        K = len(params)
        score, outer = np.zeros(K), np.zeros((K, K))
        kernels.score_and_outer(self.n, dlogp, score, outer)
        b = solver.bellman
        self._last = Evaluation(
            params.copy(),
            float(kernels.log_likelihood(self.n, P, b.v, self.model.attention)),
            score,
            outer,
            point=point,
            v=b.v.copy(),
            pi=b.pi.copy(),
            P=P,
            dV=dV,
            dv=dv,
            dlogp=dlogp,
            policy=policy,
        )
        self._factored = self._last
        return self._last

    def _hold(self, at: Evaluation) -> None:
        """Make the linear system that of an evaluation, which need not be the last one made."""
        held = self._factored
        if (held is None or held.policy is not at.policy) and self.model.beta > 0:
            self.solver.hold(at.policy)
            self._factored = at

    def _adjoint(self, m: FloatArray) -> FloatArray:
        """Return ``A^{-T} beta F' m`` (S,) for ``m`` (S, J)."""
        if self.model.beta == 0:
            return np.zeros(m.shape[0])
        return self.solver.adjoint(m)

    def hessian(self, at: Evaluation) -> FloatArray:
        """Return the exact second derivative (K, K) of the log-likelihood."""
        self._hold(at)
        g, seen, extra = choice_gradient(self.model, self.n, at.pi, at.P, self.attentive)
        lam = self._adjoint(g) * self.model.perceived
        return second_order(self.model, lam - seen, extra, at.pi, at.dv)

    def pull(self, at: Evaluation, k: int) -> FloatArray:
        """Return what a change of ``v`` (S, J) does to score ``k`` through its curvature."""
        _, seen, extra = choice_gradient(self.model, self.n, at.pi, at.P, self.attentive)
        return through_values(self.model, -seen, extra, at.pi, at.dv[:, :, k])

    def transition_score(self, at: Evaluation) -> dict[str, FloatArray]:
        """Return the derivative of the log-likelihood by each estimated law's rows (R, m)."""
        transitions = self.model.transitions
        assert isinstance(transitions, Factored) and at.point is not None
        self._hold(at)
        g, _, _ = choice_gradient(self.model, self.n, at.pi, at.P, self.attentive)
        q = self.model.beta * (g + self._adjoint(g)[:, None] * at.policy)
        return transitions.law_gradient(q, at.point.h)

    def cross_derivative(self, at: Evaluation) -> dict[str, FloatArray]:
        """Return ``d score_k / d p`` for each estimated law, (K, R, m).

        Exact, by adjoints: K transposed solves whatever the number of probabilities. Each
        (R, m) row is defined up to a constant, which probabilities that sum to one cannot feel.
        """
        model = self.model
        transitions = model.transitions
        assert isinstance(transitions, Factored) and at.point is not None
        self._hold(at)
        g, seen, extra = choice_gradient(model, self.n, at.pi, at.P, self.attentive)
        lam = self._adjoint(g)
        first = model.beta * (g + lam[:, None] * at.policy)
        out: dict[str, list[FloatArray]] = {}
        for k in range(at.dv.shape[2]):
            weight = lam * model.perceived - seen
            y = through_values(model, weight, extra, at.pi, at.dv[:, :, k])
            second = model.beta * (y + self._adjoint(y)[:, None] * at.policy)
            direct = transitions.law_gradient(first, np.ascontiguousarray(at.dV[:, k]))
            through = transitions.law_gradient(second, at.point.h)
            for name in direct:
                out.setdefault(name, []).append(direct[name] + through[name])
        return {name: np.stack(parts) for name, parts in out.items()}


class FiniteLikelihood(Likelihood):
    """The same over a finite horizon: each period has its own probabilities and counts.

    ``n`` is (T, S, J). ``dV_t = sum_j P_tj (x_j + beta F_j dV_{t+1})``, backwards.
    """

    def __init__(self, model: DDC, n: FloatArray) -> None:
        if not model.sophisticated:
            raise SpecificationError("naive members (perceived=) need an infinite horizon")
        super().__init__(model.with_parts(horizon=None, beta=0.0), n.sum(axis=0))
        self.model, self.n_t = model, np.ascontiguousarray(n)

    def recount(self, n: FloatArray) -> None:
        """Take other counts (T, S, J)."""
        self.n_t = np.ascontiguousarray(n, dtype=np.float64)
        self.total = float(n.sum())
        if self._last is not None:
            last, K = self._last, len(self._last.params)
            score, outer = np.zeros(K), np.zeros((K, K))
            for t in range(len(n)):
                kernels.score_and_outer(self.n_t[t], last.dlogp[t], score, outer)
            a = self.model.attention
            loglik = sum(
                kernels.log_likelihood(self.n_t[t], last.P[t], last.v[t], a) for t in range(len(n))
            )
            self._last = replace(last, score=score, outer=outer, loglik=float(loglik))

    def evaluate(self, params: FloatArray) -> Evaluation:
        from dynchoice.solvers.backward_induction import backward_induction

        if self._last is not None and np.array_equal(self._last.params, params):
            return self._last
        V, v, pi, P = backward_induction(self.model, self.flow(params))
        T, S, J = P.shape
        K = len(params)
        dv, dlogp, dV = np.empty((T, S, J, K)), np.empty((T, S, J, K)), np.empty((T, S, K))
        score, outer = np.zeros(K), np.zeros((K, K))
        ahead = np.zeros((S, K))
        for t in range(T - 1, -1, -1):
            dv[t] = self._x + self.model.beta * self.model.transitions.expect(ahead)
            dV[t] = ahead = over_choices(P[t], dv[t])
            kernels.log_ccp_derivative(
                pi[t], P[t], self.model.attention, self.model.default, dv[t], dlogp[t]
            )
            kernels.score_and_outer(self.n_t[t], dlogp[t], score, outer)
        a = self.model.attention
        loglik = float(sum(kernels.log_likelihood(self.n_t[t], P[t], v[t], a) for t in range(T)))
        self._last = Evaluation(
            params.copy(),
            loglik,
            score,
            outer,
            point=None,
            v=v,
            pi=pi,
            P=P,
            dV=dV,
            dv=dv,
            dlogp=dlogp,
            policy=P,
            V=V,
        )
        return self._last

    def cross_derivative(self, at: Evaluation) -> dict[str, FloatArray]:
        model, F = self.model, self.model.transitions
        assert isinstance(F, Factored) and at.V is not None
        T, S = at.V.shape
        K = at.dv.shape[3]
        out: dict[str, FloatArray] = {}
        lam, mu = np.zeros(S), np.zeros((K, S))
        for t in range(T - 1):
            g, seen, extra = choice_gradient(model, self.n_t[t], at.pi[t], at.P[t], self.attentive)
            m = model.beta * (g + lam[:, None] * at.P[t])
            weight = lam * model.attention - seen
            for k in range(K):
                y = through_values(model, weight, extra, at.pi[t], at.dv[t, :, :, k])
                w = model.beta * (y + mu[k][:, None] * at.P[t])
                direct = F.law_gradient(m, np.ascontiguousarray(at.dV[t + 1, :, k]))
                through = F.law_gradient(w, at.V[t + 1])
                mu[k] = F.push(w)
                for name in direct:
                    total = out.setdefault(name, np.zeros((K, *direct[name].shape)))
                    total[k] += direct[name] + through[name]
            lam = F.push(m)
        return out

    def hessian(self, at: Evaluation) -> FloatArray:
        total = np.zeros((len(at.params),) * 2)
        lam = np.zeros(at.P.shape[1])
        for t in range(at.P.shape[0]):
            g, seen, extra = choice_gradient(
                self.model, self.n_t[t], at.pi[t], at.P[t], self.attentive
            )
            weight = lam * self.model.attention - seen
            total += second_order(self.model, weight, extra, at.pi[t], at.dv[t])
            lam = self.model.beta * self.model.transitions.push(g + lam[:, None] * at.P[t])
        return total


def choice_gradient(
    model: DDC, n: FloatArray, pi: FloatArray, P: FloatArray, attentive: bool
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Return ``dl/dv`` (S, J), the effective counts (S,) and the default's curvature (S,) or None.

    ``l(v) = sum_j n_j log P_j``; with ``w_j = n_j omega_j``: ``dl/dv_j = w_j - pi_j sum_i w_i``,
    ``d2l = -(sum w) Cov_pi + n_d omega_d (1 - omega_d) (e_d - pi)(e_d - pi)'``.
    """
    if attentive:
        seen = n.sum(axis=1)
        return n - seen[:, None] * pi, seen, None
    rows = np.arange(n.shape[0])
    d = model.default
    omega = np.ones_like(n)
    omega[rows, d] = model.attention * pi[rows, d] / P[rows, d]
    w = n * omega
    seen = w.sum(axis=1)
    curvature = w[rows, d] * (1 - omega[rows, d])
    return w - seen[:, None] * pi, seen, curvature


def second_order(
    model: DDC, weight: FloatArray, extra: FloatArray | None, pi: FloatArray, dv: FloatArray
) -> FloatArray:
    """Return ``sum_s weight Cov_pi[dv]`` plus the curvature of the default's mixture (K, K)."""
    K = dv.shape[2]
    out = np.zeros((K, K))
    kernels.weighted_choice_covariance(np.ascontiguousarray(weight), pi, dv, out)
    if extra is not None:
        rows = np.arange(len(weight))
        mean = over_choices(pi, dv)
        d = dv[rows, model.default] - mean
        out += (extra[:, None] * d).T @ d
    return (out + out.T) / 2


def through_values(
    model: DDC, weight: FloatArray, extra: FloatArray | None, pi: FloatArray, dv: FloatArray
) -> FloatArray:
    """Return what a change of ``v`` (S, J) does to one score through its curvature.

    ``sum_s weight pi_j (dv_j - mean)`` with the default's curvature added; ``dv`` is the
    derivative of ``v`` by the score's own parameter.
    """
    centred = np.where(pi > 0, dv - (pi * dv).sum(axis=1, keepdims=True), 0.0)
    y = weight[:, None] * pi * centred
    if extra is not None:
        rows = np.arange(len(weight))
        d = centred[rows, model.default] * extra
        y -= pi * d[:, None]
        y[rows, model.default] += d
    return np.asarray(y)
