"""GLADIUS: choice probabilities and values in one minimisation, on a sieve or by networks.

    min_Q  sum -log softmax_Q(a|s) + weight 1{a = o} (T Q - Q)^2(s, a),    T Q = g + beta E[V_Q(s')]

with ``V_Q = log sum exp Q`` (Kang, Yoganarasimhan and Jain 2025). ``E[V_Q(s')]`` inside a square
asks for two draws of ``s'``; instead ``zeta(s, a)``, fitted to ``V_Q(s')`` by least squares, takes
the noise of the next state out: ``(T Q - Q)^2 = max_zeta (g + beta V_Q(s') - Q)^2 - beta^2 (V_Q(s')
- zeta)^2``.

On a sieve the maximum over ``zeta`` is a projection, so what is left is ``weight |P(g + beta V_Q) -
Q_o|^2``, minimised by Gauss-Newton steps. Where every choice has columns of its own and nothing
pulls on them (``pool`` = 0), both terms reach their least values at once, and the minimum is Deep
PQR's estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import DataError
from dynchoice.estimate.rewards.first_stages import LearnedStages, SieveStages
from dynchoice.estimate.rewards.learners import Learned, folds_of, named_fold
from dynchoice.estimate.rewards.network import Network, torch_module, train
from dynchoice.estimate.rewards.pqr_rows import RowsFit, RowsPQR, Slab
from dynchoice.estimate.rewards.rows import solved
from dynchoice.model.sieve import Sieve, log_softmax
from dynchoice.panel.trajectories import NO_ROW
from dynchoice.typing import BoolArray, FloatArray, IntArray, Progress

STEPS = 50
SETTLED = 1e-9
"""Twice what the objective may still gain by a step, a row."""


@dataclass(frozen=True)
class JointStages:
    """``Q = f(s, a) b`` on columns that choices share and columns of each; its softmax."""

    b: FloatArray
    J: int

    def logs(self, rows: Any, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
        """See :class:`dynchoice.estimate.rewards.first_stages.FirstStages`."""
        return log_softmax(self.values(rows, phi), offered)

    def values(self, rows: Any, phi: FloatArray) -> FloatArray:
        """Return ``Q`` (n, J)."""
        del rows
        shared, own = np.split(self.b, [phi.shape[1]])
        return np.asarray((phi @ shared)[:, None] + phi @ own.reshape(self.J, -1).T)


class JointSieve:
    """The minimum on a sieve.

    Parameters
    ----------
    weight : float
        Of the squared Bellman residuals against the log-likelihood.
    pool : float
        Rows that pull what choices do not share towards zero.
    """

    trains = False

    def __init__(self, weight: float, pool: float) -> None:
        self.weight, self.pool = weight, pool

    def __call__(self, steps: RowsPQR, seed: int | None, progress: Progress | None) -> Learned:
        """Return probabilities and values of all rows."""
        del seed
        tell = progress or (lambda done, total, text: None)
        J, nobs = steps.J, steps.rows.nobs
        b = self._start(steps)
        now, gradient, H = self._look(steps, b)
        gain, count = np.inf, 0
        for count in range(1, STEPS + 1):
            tell(count, STEPS, "values and probabilities")
            move = np.linalg.solve(H, -gradient)
            gain = float(-gradient @ move)
            if gain <= SETTLED * nobs:
                break
            for halving in range(30):
                trial = b + move / 2**halving
                found = self._look(steps, trial)
                if found[0] <= now + 1e-12 * abs(now):
                    break
            b, (now, gradient, H) = trial, found
        stages = JointStages(b, J)
        N = len(steps.rows.x)
        log_pi, W = np.zeros((N, J)), np.zeros(N)
        for s in steps.slabs(stages):
            log_pi[s.rows] = s.logs
            W[s.rows] = s.value[np.arange(len(s.o)), s.o]
        return Learned(
            LearnedStages(log_pi, W), None, gain <= SETTLED * nobs,
            f"the objective gains {gain / nobs:.1e} a row from step {count}",
            (f"Probabilities and values minimise one objective (weight {self.weight:g}) on a sieve"
             f" whose columns choices share, with {self.pool:g} rows against what they do not",),
            coefficients=b,
        )  # fmt: skip

    def _start(self, steps: RowsPQR) -> FloatArray:
        """Return Deep PQR's values as coefficients: the minimum where nothing is pooled."""
        policy = steps.sieved.policy(1e-8, 100)
        q = steps.system(SieveStages(policy, np.zeros(0), False))
        odds = np.vstack([np.zeros(steps.sieve.size), policy.coefficients])
        return np.r_[q.system.solve(q.b), (odds - odds[steps.model.anchor]).reshape(-1)]

    def _look(self, steps: RowsPQR, b: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Return the objective, its gradient and Gauss-Newton Hessian at ``b``."""
        J, G, beta = steps.J, steps.sieve.size, steps.model.beta
        D = (1 + J) * G
        value, gradient, H = 0.0, np.zeros(D), np.zeros((D, D))
        moments, target = np.zeros((J, G, G)), np.zeros((J, G))
        slope = np.zeros((J, G, D))
        for s in steps.slabs(JointStages(b, J), features=False):
            pi = np.exp(s.logs) if s.offered is None else np.exp(s.logs) * s.offered
            i = np.arange(len(pi))
            value -= float(s.weight @ s.logs[i, s.choice])
            miss = (np.eye(J)[s.choice] - pi) * s.weight[:, None]
            gradient[G:] -= (miss.T @ s.phi).reshape(-1)
            self._add_information(H[G:, G:], s, pi)
            mine = s.choice[s.known] == s.o[s.known]
            at = s.known[mine]
            phi, ahead = s.phi[at], s.phi_next[mine]
            V = s.value_next[mine] - s.l_next[mine]
            p = self._next_probabilities(s)[mine]
            m = np.column_stack([ahead, (p[:, :, None] * ahead[:, None, :]).reshape(len(at), -1)])
            for j in range(J):
                own = s.choice[at] == j
                w = phi[own] * s.weight[at[own], None]
                moments[j] += w.T @ phi[own]
                target[j] += w.T @ (s.g[at[own]] + beta * V[own])
                slope[j] += beta * (w.T @ m[own])
        for j in range(J):
            if not moments[j].any():
                continue
            S = moments[j] + 1e-9 * np.trace(moments[j]) / G * np.eye(G)
            residual = solved(S, target[j]) - b[:G] - b[(1 + j) * G : (2 + j) * G]
            D_j = solved(S, slope[j])
            D_j[:, :G] -= np.eye(G)
            D_j[:, (1 + j) * G : (2 + j) * G] -= np.eye(G)
            value += self.weight * float(residual @ S @ residual)
            gradient += 2 * self.weight * (D_j.T @ (S @ residual))
            H += 2 * self.weight * (D_j.T @ S @ D_j)
        # what all choices share is pulled by next to nothing: own columns that shift alike are flat
        pull = np.r_[np.full(G, 1e-9 * self.pool), np.full(J * G, self.pool)]
        value += float(pull @ b**2) / 2
        return value, gradient + pull * b, H + np.diag(pull)

    @staticmethod
    def _add_information(H: FloatArray, s: Slab, pi: FloatArray) -> None:
        J, G = pi.shape[1], s.phi.shape[1]
        for a in range(J):
            for c in range(J):
                w = s.weight * pi[:, a] * ((a == c) - pi[:, c])
                H[a * G : (a + 1) * G, c * G : (c + 1) * G] += (s.phi * w[:, None]).T @ s.phi

    @staticmethod
    def _next_probabilities(s: Slab) -> FloatArray:
        """Return ``pi(.|s')`` (known, J); 0 after a terminal row."""
        J = s.gap_next.shape[1] + 1
        p = np.zeros((len(s.gap_next), J))
        went = s.phi_next.any(axis=1)
        p[went] = np.eye(J)[s.o_next[went]]
        p[:, 1:] -= s.gap_next
        p[went, 0] = 1 - p[went, 1:].sum(axis=1)
        return p


@dataclass(frozen=True)
class JointPredictor:
    """``Q`` and ``zeta`` of networks beside a sieve, averaged over folds."""

    fits: tuple[Any, ...]

    def at(
        self, x: FloatArray, offered: BoolArray | None, o: IntArray, known: FloatArray, beta: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """See :class:`dynchoice.inference.learner_predictions.Predictor`."""
        del o, known
        q = np.mean([f.q(x) for f in self.fits], axis=0)
        return (
            log_softmax(q, offered),
            q,
            q - beta * np.mean([f.zeta(x) for f in self.fits], axis=0),
        )


@dataclass(frozen=True)
class JointFit:
    """``Q`` and ``zeta`` of one fold: a sieve's, what networks add to them, and a constant."""

    sieve: Sieve
    b: FloatArray
    h: FloatArray
    nets: tuple[Any, Any]
    centre: FloatArray
    spread: FloatArray
    shift: float

    def base(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the sieve's ``Q`` and ``zeta`` (n, J)."""
        phi = self.sieve(x)
        return JointStages(self.b, len(self.h)).values(None, phi), phi @ self.h.T

    def _added(self, which: int, x: FloatArray) -> FloatArray:
        torch = torch_module()
        with torch.no_grad():
            z = torch.from_numpy((x - self.centre) / self.spread)
            return np.asarray(self.nets[which](z).numpy() + self.shift)

    def q(self, x: FloatArray) -> FloatArray:
        """Return ``Q`` (n, J)."""
        return self.base(x)[0] + self._added(0, x)

    def zeta(self, x: FloatArray) -> FloatArray:
        """Return ``zeta`` (n, J)."""
        return self.base(x)[1] + self._added(1, x)


class JointNetworks:
    """The minimum by two networks, cross-fitted: ascent on ``zeta``, descent on ``Q``, by batches.

    Both start as nothing beside the sieve's solution for the same rows, and learn what it misses.

    Parameters
    ----------
    network : Network
        Layers and training of both.
    weight : float
    folds : int
    """

    trains = True

    def __init__(self, network: Network, weight: float, folds: int) -> None:
        self.network, self.weight, self.folds = network, weight, folds

    def __call__(self, steps: RowsPQR, seed: int | None, progress: Progress | None) -> Learned:
        """Return out-of-fold probabilities and values of all rows."""
        rows, model, J = steps.rows, steps.model, steps.J
        x = np.asarray(rows.x)
        table = steps.sieved.table(x)
        offered = model.offered(table)
        o = model.reference(offered, len(x))
        g = model.paid(table, o)
        folds = folds_of(rows.nmembers, self.folds, 0 if seed is None else seed)
        fold = folds[rows.member]
        log_pi, W = np.zeros((len(x), J)), np.zeros(len(x))
        fits, ran = [], []
        for k in range(self.folds):
            if progress is not None:
                progress(k, self.folds, f"networks without fold {k + 1}")
            with named_fold(k, self.folds):
                away = steps.without(folds == k)
                found = away.fit()
            fit, epochs = self._train(found, away, x, offered, o, g, np.flatnonzero(fold != k))
            out = np.flatnonzero(fold == k)
            q = fit.q(x[out])
            log_pi[out] = log_softmax(q, None if offered is None else offered[out])
            W[out] = q[np.arange(len(out)), o[out]]
            fits.append(fit)
            ran.append(epochs)
        stopped = max(ran) < self.network.epochs
        return Learned(
            LearnedStages(log_pi, W), JointPredictor(tuple(fits)), stopped,
            f"networks ran {max(ran)} epochs at most"
            + ("" if stopped else f": all of epochs={self.network.epochs}, still improving"),
            (f"Probabilities and values minimise one objective (weight {self.weight:g}) by"
             f" {self.network!r} in {self.folds} folds of members, each predicted by networks that"
             " did not see it",),
        )  # fmt: skip

    def _train(
        self, found: RowsFit, steps: RowsPQR, x: FloatArray, offered: BoolArray | None, o: IntArray,
        g: FloatArray, used: IntArray,
    ) -> tuple[JointFit, int]:  # fmt: skip
        """Return networks trained on some rows, and the epochs that took."""
        torch, rows, beta, J = torch_module(), steps.rows, steps.model.beta, steps.J
        centre, spread = x[used].mean(axis=0), x[used].std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        z = torch.from_numpy((x - centre) / spread)
        choice, after = torch.from_numpy(rows.choice), rows.next
        followed = (after != NO_ROW) | rows.ended
        anchored = followed & (rows.choice == o)
        if not anchored[used].any():
            raise DataError("no row outside a fold takes the anchor and has a next row")
        can = None if offered is None else torch.from_numpy(offered)
        w, known = torch.from_numpy(rows.weight), torch.from_numpy(g)
        known_row, anchor_row = torch.from_numpy(followed), torch.from_numpy(anchored)
        moved = torch.from_numpy((after != NO_ROW).astype(np.float64))
        to, ref = torch.from_numpy(np.maximum(after, 0)), torch.from_numpy(o)
        odds = np.vstack([np.zeros(steps.sieve.size), found.policy.coefficients])
        b = np.r_[found.c, (odds - odds[steps.model.anchor]).reshape(-1)]
        nets = tuple(zero_output(self.network.layers(x.shape[1], J)) for _ in range(2))
        start = JointFit(steps.sieve, b, found.h, nets, centre, spread, 0.0)
        base_q, base_zeta = (torch.from_numpy(v) for v in start.base(x))
        q_net, zeta_net = nets

        def values(net: Any, at: Any) -> Any:
            return net(z[at]) + (base_q if net is q_net else base_zeta)[at]

        def ahead(at: Any) -> Any:
            q = values(q_net, to[at])
            if can is not None:
                q = q.masked_fill(~can[to[at]], -torch.inf)
            return torch.logsumexp(q, dim=1) * moved[at]

        opt = torch.optim.Adam(zeta_net.parameters(), lr=self.network.rate)

        def ascend(part: IntArray) -> None:
            at = used_t[part]
            at = at[known_row[at]]
            if not len(at):
                return
            with torch.no_grad():
                V = ahead(at)
            found = values(zeta_net, at).gather(1, choice[at][:, None])[:, 0]
            opt.zero_grad()
            ((found - V) ** 2 * w[at]).sum().div(w[at].sum()).backward()
            opt.step()

        def loss(part: IntArray, projected: bool = False) -> Any:
            at = used_t[part]
            q = values(q_net, at)
            if can is not None:
                q = q.masked_fill(~can[at], -torch.inf)
            logs = torch.log_softmax(q, dim=1).gather(1, choice[at][:, None])[:, 0]
            total = -(logs * w[at]).sum()
            own = at[anchor_row[at]]
            if len(own):
                V = ahead(own)
                pick = ref[own][:, None]
                q_o = values(q_net, own).gather(1, pick)[:, 0]
                with torch.no_grad():
                    noise = values(zeta_net, own).gather(1, pick)[:, 0]
                if projected:  # zeta in V's place: what is watched must not reward a bad zeta
                    square = (known[own] + beta * noise - q_o) ** 2
                else:
                    square = (known[own] + beta * V - q_o) ** 2 - beta**2 * (V - noise) ** 2
                total = total + self.weight * (square * w[own]).sum()
            return total / w[at].sum()

        used_t = torch.from_numpy(used)
        n = self.network
        epochs = train(
            [q_net, zeta_net], loss, len(used), batch=n.batch, rate=n.rate, decay=n.decay,
            epochs=n.epochs, holdout=n.holdout, patience=n.patience, seed=n.seed, ascent=ascend,
            descend=[q_net], watch=lambda part: loss(part, projected=True),
        )  # fmt: skip
        # the constant that no gradient reaches soon: the mean Bellman residual is made zero
        at = torch.from_numpy(used[anchored[used]])
        with torch.no_grad():
            q_o = values(q_net, at).gather(1, ref[at][:, None])[:, 0]
            residual = ((known[at] + beta * ahead(at) - q_o) * w[at]).sum() / w[at].sum()
            share_on = float((moved[at] * w[at]).sum() / w[at].sum())
        shift = float(residual) / (1 - beta * share_on)
        fit = JointFit(steps.sieve, b, found.h, nets, centre, spread, shift)
        return fit, epochs


def zero_output(net: Any) -> Any:
    """Return a network with its last layer set to zero: nothing, until it is trained."""
    torch = torch_module()
    torch.nn.init.zeros_(net[-1].weight)
    torch.nn.init.zeros_(net[-1].bias)
    return net
