"""Pseudo-likelihood of finitely dependent choices (Arcidiacono and Miller 2011, section 3).

With the weights ``d_r`` of :mod:`dynchoice.model.dependence` and first-stage probabilities P,

    v_j - v_k = x_j theta - x_k theta + sum_r beta^r d_r (x theta + offset + psi),
    psi_a = -log pi_a + (1 - attention) log pi_default,

linear in the parameters: a logit without a fixed point, and the discount factor is one more
coefficient. There is no zero Jacobian, so the error of P enters the standard errors; so does that
of the transitions, through ``d (v_j - v_k) = (1 + d)(beta dF V)``, which needs no derivative of
the weights: at the truth the index is the same for every valid choice of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.estimate.choice_probabilities import static
from dynchoice.estimate.likelihood import choice_gradient, second_order, through_values
from dynchoice.kernels import core as kernels
from dynchoice.model.attention import psi, psi_derivative
from dynchoice.model.ddc import DDC
from dynchoice.model.dependence import (
    FiniteDependence,
    describe_failures,
    finite_dependence,
)
from dynchoice.model.factored import Factored
from dynchoice.typing import FloatArray, IntArray


@dataclass
class DependentEvaluation:
    """The pseudo-likelihood at one parameter vector; arrays by seen row (R, J) as in Likelihood."""

    params: FloatArray
    loglik: float
    score: FloatArray
    outer: FloatArray
    pi: FloatArray
    P: FloatArray
    dv: FloatArray
    dlogp: FloatArray
    converged: bool = True
    message: str = "finite dependence: no fixed point"


class DependentLikelihood:
    """Pseudo-likelihood of choice counts through finite dependence.

    Parameters
    ----------
    model : DDC
        Transitions known.
    n : FloatArray, shape (S, J) or (T, S, J)
        Choices that enter; by period at a finite horizon.
    periods : {1, 2}
        Dependence to use.
    free_beta : bool
        Append the discount factor to the parameters.
    found : FiniteDependence, optional
        Of an earlier likelihood on the same model and seen states, to save the search.

    Raises
    ------
    SpecificationError
        No state has two choices that are finitely dependent.
    """

    def __init__(
        self,
        model: DDC,
        n: FloatArray,
        periods: int,
        free_beta: bool,
        found: FiniteDependence | None = None,
    ) -> None:
        self.model, self.free_beta = model, free_beta
        S, J, K = model.shape
        self.horizon = 1 if model.horizon is None else model.horizon
        by_period = n.reshape(-1, S, J)
        pooled = by_period.sum(axis=0)
        self.everything = by_period
        seen = np.flatnonzero(pooled.sum(axis=1) > 0)
        if found is None:
            found = finite_dependence(model, periods, states=seen, precision=pooled)
        self.found = found
        # with inattention the default's mixture ties all choices together, without it a logit
        # holds within any subset of the choices
        partial = np.flatnonzero(
            (self.found.periods == -1).any(axis=1) & (model.attention[seen] < 1)
        )
        use = self.found.holds.copy()
        use[partial] = False
        use[use.sum(axis=1) < 2] = False
        if not use.any():
            raise SpecificationError(
                f"no state has finite dependence within {periods} period(s), for instance"
                f" {describe_failures(self.found, model.choices)}: the choice changes where members"
                " stand for longer. Use valuation='exact', NPL or NFXP; finite_dependence(model)"
                " tells more"
            )
        place = np.full(S, -1, dtype=np.int64)
        place[seen] = np.arange(len(seen))
        t, s = np.nonzero((by_period * use[place]).sum(axis=2) > 0)
        self.t, self.s, self.u = t, s, place[s]
        self.offered = use[self.u]
        self.n = np.ascontiguousarray(by_period[t, s] * self.offered)
        self.total = float(self.n.sum())
        self.dropped = float(n.sum() - self.total)
        self.rows = static(model, model.utility.x[self.s], model.utility.offset[self.s], self.s)
        self.rows = self.rows.unchecked(available=self.offered)
        self.attentive = bool((self.rows.attention == 1).all())
        self.everywhere = bool((model.attention == 1).all() and model.available.all())
        self.default = np.ascontiguousarray(self.rows.default)
        self._flatten(model)

    def _flatten(self, model: DDC) -> None:
        """Lay out features relative to the reference and behind each layer of weights."""
        S, J, K = model.shape
        ref = self.found.reference[self.u]
        x, flat = model.utility.x, model.utility.x.reshape(S * J, K)
        rows = np.arange(len(self.u))
        self.x0 = x[self.s] - x[self.s, ref][:, None, :]
        self.base = model.utility.offset[self.s]
        self.base = self.base - self.base[rows, ref][:, None]
        last = self.horizon - 1 if model.horizon is not None else np.iinfo(np.int64).max
        self.layers = []
        for depth, W in enumerate(self.found.weights, start=1):
            ahead = (self.t + depth <= last).astype(np.float64)
            xw = np.asarray(W @ flat).reshape(-1, J, K)[self.u] * ahead[:, None, None]
            self.layers.append((W, ahead, xw))
        self.known = [np.zeros((len(self.u), J)) for _ in self.layers]
        self._looks: dict[int, list[tuple[int, IntArray, Any]]] = {}

    def _rows_of(self, depth: int) -> list[tuple[int, IntArray, Any]]:
        """Return (period looked at, rows that look at it, their weights) for a layer."""
        if depth not in self._looks:
            if self.model.horizon is None:
                pairs = [(0, np.arange(len(self.t)))]
            else:
                ahead = self.t + depth
                periods = [int(p) for p in np.unique(ahead) if p < self.horizon]
                pairs = [(p, np.flatnonzero(ahead == p)) for p in periods]
            W, J = self.layers[depth - 1][0], self.model.shape[1]
            self._looks[depth] = [
                (p, rows, W[(self.u[rows][:, None] * J + np.arange(J)).reshape(-1)])
                for p, rows in pairs
            ]
        return self._looks[depth]

    def copy(self) -> DependentLikelihood:
        """Return the same rows and weights with counts and probabilities of its own."""
        new = object.__new__(DependentLikelihood)
        new.__dict__.update(self.__dict__)
        new.known = [known.copy() for known in self.known]
        return new

    def recount(self, n: FloatArray) -> None:
        """Take other counts of the same rows: (S, J), or (T, S, J) at a finite horizon."""
        by_period = n.reshape(-1, *self.model.shape[:2])
        self.n = np.ascontiguousarray(by_period[self.t, self.s] * self.offered)
        self.total = float(self.n.sum())

    def set_probabilities(self, P: FloatArray) -> None:
        """Take first-stage probabilities ``P`` (S, J), or (T*S, J) at a finite horizon."""
        S, J, _ = self.model.shape
        by_period = P.reshape(-1, S, J)
        self.P = by_period
        for depth, known in enumerate(self.known, start=1):
            known[:] = 0.0
            for period, rows, W in self._rows_of(depth):
                q = self.model.utility.offset + self.psi(by_period[period])
                value = W @ q.reshape(-1)
                known[rows] = np.asarray(value).reshape(-1, J)

    @property
    def clamped(self) -> int:
        """Cells whose probability is below what inattention alone gives: read as almost zero."""
        model = self.model
        floor = self.P[:, np.arange(model.states.size), model.default] - (1 - model.attention)
        return int((floor <= 1e-10 * model.attention).sum()) if (model.attention < 1).any() else 0

    def psi(self, P: FloatArray) -> FloatArray:
        """Return ``-log pi_a + (1 - attention) log pi_default`` (S, J); 0 where not offered."""
        model = self.model
        if self.everywhere:
            return np.asarray(-np.log(P))
        return psi(model, P)

    def discount(self, params: FloatArray) -> float:
        """Return the discount factor at a parameter vector."""
        return float(params[-1]) if self.free_beta else self.model.beta

    def evaluate(self, params: FloatArray) -> DependentEvaluation:
        """Return the pseudo-likelihood with score and outer product."""
        beta = self.discount(params)
        theta = params[: self.model.shape[2]]
        dv = self.x0.copy()
        index = self.base + self.x0 @ theta
        slope = np.zeros_like(index)
        for depth, ((_, _, xw), known) in enumerate(
            zip(self.layers, self.known, strict=True), start=1
        ):
            part = xw @ theta + known
            dv += beta**depth * xw
            index = index + beta**depth * part
            slope += depth * beta ** (depth - 1) * part
        if self.free_beta:
            dv = np.concatenate([dv, slope[:, :, None]], axis=2)
        dv = np.ascontiguousarray(dv)
        R, J = index.shape
        u = np.where(self.offered, index, -np.inf)
        v, pi, P, V = np.empty((R, J)), np.empty((R, J)), np.empty((R, J)), np.empty(R)
        attention = self.rows.attention
        kernels.soft_bellman(u, np.zeros((R, J)), 0.0, attention, self.default, v, V, pi, P)
        dlogp = np.empty_like(dv)
        kernels.log_ccp_derivative(pi, P, attention, self.default, dv, dlogp)
        K = dv.shape[2]
        score, outer = np.zeros(K), np.zeros((K, K))
        kernels.score_and_outer(self.n, dlogp, score, outer)
        loglik = float(kernels.log_likelihood(self.n, P, v, attention))
        return DependentEvaluation(
            params=params.copy(),
            loglik=loglik,
            score=score,
            outer=outer,
            pi=pi,
            P=P,
            dv=dv,
            dlogp=dlogp,
        )

    def hessian(self, at: DependentEvaluation) -> FloatArray:
        """Return the exact second derivative of the pseudo-likelihood given P."""
        g, seen, extra = choice_gradient(self.rows, self.n, at.pi, at.P, self.attentive)
        out = second_order(self.rows, -seen, extra, at.pi, at.dv)
        if self.free_beta:
            beta, K = self.discount(at.params), self.model.shape[2]
            theta = at.params[:K]
            for depth, ((_, _, xw), known) in enumerate(
                zip(self.layers, self.known, strict=True), start=1
            ):
                cross = depth * beta ** (depth - 1) * np.einsum("rj,rjk->k", g, xw)
                out[:K, K] += cross
                out[K, :K] += cross
                if depth == 2:
                    out[K, K] += 2 * float((g * (xw @ theta + known)).sum())
        return out

    # first-stage error ------------------------------------------------------------------------

    def _pulls(self, at: DependentEvaluation) -> FloatArray:
        """Return what the index (R, J) does to each score: (K, R, J)."""
        _, seen, extra = choice_gradient(self.rows, self.n, at.pi, at.P, self.attentive)
        return np.stack(
            [
                through_values(self.rows, -seen, extra, at.pi, at.dv[:, :, k])
                for k in range(at.dv.shape[2])
            ]
        )

    def probability_derivative(self, at: DependentEvaluation) -> FloatArray:
        """Return the derivative of the scores by first-stage P, (K, T*S, J)."""
        model, beta = self.model, self.discount(at.params)
        S, J, _ = model.shape
        G = self._pulls(at)
        K = len(G)
        D = np.zeros((self.P.shape[0], S * J, K))
        for depth in range(1, len(self.layers) + 1):
            for period, rows, W in self._rows_of(depth):
                g = G[:, rows].reshape(K, -1).T
                D[period] += beta**depth * np.asarray(W.T @ g)
        out = np.empty((K, self.P.shape[0] * S, J))
        for period, P in enumerate(self.P):
            d = np.moveaxis(D[period].reshape(S, J, K), 2, 0)
            out[:, period * S : (period + 1) * S] = psi_derivative(model, P, d)
        return out

    def transition_derivative(
        self, at: DependentEvaluation, V: FloatArray
    ) -> dict[str, FloatArray]:
        """Return the derivative of the scores by each estimated law's rows, (K, R, m).

        ``V`` (S,), or (T, S) at a finite horizon, is the ex-ante value at the estimate.
        """
        model, beta = self.model, self.discount(at.params)
        F = model.transitions
        assert isinstance(F, Factored)
        S, J, _ = model.shape
        G = self._pulls(at)
        K = len(G)
        values = V.reshape(-1, S)
        # weight on beta F V by the period whose value it reaches, (T, S*J, K)
        M = np.zeros((len(values) + 3, S * J, K))
        stationary = model.horizon is None
        at_row = self.s[:, None] * J + np.arange(J)
        for k in range(K):
            for period in [0] if stationary else range(self.horizon):
                rows = np.arange(len(self.t)) if stationary else np.flatnonzero(self.t == period)
                target = 0 if stationary else period + 1
                np.add.at(M[target, :, k], at_row[rows], G[k, rows])
        for depth in range(1, len(self.layers) + 1):
            for period, rows, W in self._rows_of(depth):
                g = G[:, rows].reshape(K, -1).T
                target = 0 if stationary else period + 1
                M[target] += beta**depth * np.asarray(W.T @ g)
        out: dict[str, FloatArray] = {}
        for period, value in enumerate(values):
            for k in range(K):
                m = np.ascontiguousarray(beta * M[period, :, k].reshape(S, J))
                if not m.any():
                    continue
                for name, gradient in F.law_gradient(m, value).items():
                    total = out.setdefault(name, np.zeros((K, *gradient.shape)))
                    total[k] += gradient
        return out

    def by_state(self, table: FloatArray) -> FloatArray:
        """Spread a table of seen rows (R, J, K) over (T, S, J, K); zero elsewhere."""
        S, J, _ = self.model.shape
        out = np.zeros((self.horizon, S, J, table.shape[2]))
        out[self.t, self.s] = np.where(self.offered[:, :, None], table, 0.0)
        return out
