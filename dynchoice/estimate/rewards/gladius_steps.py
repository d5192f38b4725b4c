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

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dynchoice.errors import DataError
from dynchoice.estimate.choice_logit import ChoiceLogit
from dynchoice.estimate.rewards.first_stages import LearnedStages, Rows
from dynchoice.estimate.rewards.learners import Learned, Referenced, deal_folds, named_fold
from dynchoice.estimate.rewards.network import Network, torch_module, train
from dynchoice.estimate.rewards.pqr_rows import RowsFit, RowsPQR
from dynchoice.estimate.rewards.row_blocks import RowBlock
from dynchoice.estimate.rewards.rows import solved
from dynchoice.model.sieve import Sieve, log_softmax
from dynchoice.panel.trajectories import NO_ROW
from dynchoice.typing import BoolArray, FloatArray, IntArray, Progress

if TYPE_CHECKING:
    import torch

STEPS = 50
SETTLED = 1e-9
"""Twice what the objective may still gain by a step, a row."""


@dataclass(frozen=True)
class JointStages:
    """``Q = f(s, a) b`` on columns that choices share and columns of each; its softmax."""

    b: FloatArray
    J: int

    def logs(self, rows: Rows, phi: FloatArray, offered: BoolArray | None) -> FloatArray:
        """See :class:`dynchoice.estimate.rewards.first_stages.FirstStages`."""
        return log_softmax(self.values(rows, phi), offered)

    def values(self, rows: Rows, phi: FloatArray) -> FloatArray:
        """Return ``Q`` (n, J)."""
        del rows
        return self.q(phi)

    def q(self, phi: FloatArray) -> FloatArray:
        """Return ``Q`` (n, J) at states with these columns."""
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
        report = progress or (lambda done, total, text: None)
        J, nobs = steps.J, steps.rows.nobs
        b = self._start(steps)
        value, gradient, hessian = self._objective(steps, b)
        gain, count = np.inf, 0
        for count in range(1, STEPS + 1):
            report(count, STEPS, "values and probabilities")
            move = np.linalg.solve(hessian, -gradient)
            gain = float(-gradient @ move)
            if gain <= SETTLED * nobs:
                break
            for halving in range(30):
                trial = b + move / 2**halving
                objective = self._objective(steps, trial)
                if objective[0] <= value + 1e-12 * abs(value):
                    break
            b, (value, gradient, hessian) = trial, objective
        N = len(steps.rows.x)
        log_pi, W = np.zeros((N, J)), np.zeros(N)
        for block in steps.blocks(JointStages(b, J)):
            log_pi[block.rows] = block.logs
            W[block.rows] = block.value[np.arange(len(block.reference)), block.reference]
        return Learned(
            stages=LearnedStages(log_pi, W),
            predictor=None,
            settled=gain <= SETTLED * nobs,
            message=f"the objective gains {gain / nobs:.1e} a row from step {count}",
            notes=(
                f"Probabilities and values minimise one objective (weight {self.weight:g}) on a"
                f" sieve whose columns choices share, with {self.pool:g} rows against what they do"
                " not",
            ),
            coefficients=b,
        )

    def _start(self, steps: RowsPQR) -> FloatArray:
        """Return Deep PQR's values as coefficients: the minimum where nothing is pooled."""
        policy = steps.sieved.policy(1e-8, 100)
        c, _ = steps.system(steps.sieve_stages(policy)).values()
        return joint_coefficients(c, policy, steps.model.anchor)

    def _objective(self, steps: RowsPQR, b: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Return the objective, its gradient and Gauss-Newton Hessian at ``b``."""
        J, G, beta = steps.J, steps.sieve.size, steps.model.beta
        D = (1 + J) * G
        value, gradient, hessian = 0.0, np.zeros(D), np.zeros((D, D))
        # regressions of g + beta V' on phi, over the rows with each choice as the reference
        moments, target = np.zeros((J, G, G)), np.zeros((J, G))
        target_by_b = np.zeros((J, G, D))
        for block in steps.blocks(JointStages(b, J), features=False):
            pi = block.probabilities
            value -= float(block.weight @ block.logs[np.arange(len(pi)), block.choice])
            miss = (np.eye(J)[block.choice] - pi) * block.weight[:, None]
            gradient[G:] -= (miss.T @ block.phi).reshape(-1)
            self._add_information(hessian[G:, G:], block, pi)
            chosen = block.choice[block.followed] == block.reference[block.followed]
            rows = block.followed[chosen]
            phi, ahead = block.phi[rows], block.phi_next[chosen]
            V = block.value_next[chosen] - block.log_next[chosen]
            pi_next = self._next_probabilities(block)[chosen]
            own = (pi_next[:, :, None] * ahead[:, None, :]).reshape(len(rows), -1)
            V_by_b = np.column_stack([ahead, own])
            for j in range(J):
                picked = block.choice[rows] == j
                weighted = phi[picked] * block.weight[rows[picked], None]
                moments[j] += weighted.T @ phi[picked]
                target[j] += weighted.T @ (block.g[rows[picked]] + beta * V[picked])
                target_by_b[j] += beta * (weighted.T @ V_by_b[picked])
        for j in range(J):
            if not moments[j].any():  # never a reference
                continue
            second = moments[j] + 1e-9 * np.trace(moments[j]) / G * np.eye(G)
            own_columns = slice((1 + j) * G, (2 + j) * G)
            residual = solved(second, target[j]) - b[:G] - b[own_columns]
            slope = solved(second, target_by_b[j])
            slope[:, :G] -= np.eye(G)
            slope[:, own_columns] -= np.eye(G)
            value += self.weight * float(residual @ second @ residual)
            gradient += 2 * self.weight * (slope.T @ (second @ residual))
            hessian += 2 * self.weight * (slope.T @ second @ slope)
        # what all choices share is pulled by next to nothing: own columns that shift alike are flat
        pull = np.r_[np.full(G, 1e-9 * self.pool), np.full(J * G, self.pool)]
        value += float(pull @ b**2) / 2
        return value, gradient + pull * b, hessian + np.diag(pull)

    @staticmethod
    def _add_information(hessian: FloatArray, block: RowBlock, pi: FloatArray) -> None:
        """Add the likelihood's curvature by the columns of each choice, in place."""
        J, G, phi = pi.shape[1], block.phi.shape[1], block.phi
        for a in range(J):
            for c in range(J):
                weight = block.weight * pi[:, a] * ((a == c) - pi[:, c])
                part = hessian[a * G : (a + 1) * G, c * G : (c + 1) * G]
                part += (phi * weight[:, None]).T @ phi

    @staticmethod
    def _next_probabilities(block: RowBlock) -> FloatArray:
        """Return ``pi(.|s')`` (m, J); 0 after a terminal row."""
        J = block.gap_next.shape[1] + 1
        pi = np.zeros((len(block.gap_next), J))
        # the sieve has a constant, so only what follows a terminal row is zero throughout
        moved = block.phi_next.any(axis=1)
        pi[moved] = np.eye(J)[block.reference_next[moved]]
        pi[:, 1:] -= block.gap_next
        pi[moved, 0] = 1 - pi[moved, 1:].sum(axis=1)
        return pi


def joint_coefficients(c: FloatArray, policy: ChoiceLogit, anchor: int) -> FloatArray:
    """Return ``Q`` as shared and own columns: the anchor's value ``c`` and odds against it."""
    odds = np.vstack([np.zeros(len(c)), policy.coefficients])
    return np.r_[c, (odds - odds[anchor]).reshape(-1)]


@dataclass(frozen=True)
class JointPredictor:
    """``Q`` and ``zeta`` of networks beside a sieve, averaged over folds."""

    fits: tuple[JointFit, ...]

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


@dataclass(frozen=True, kw_only=True)
class JointFit:
    """``Q`` and ``zeta`` of one fold: a sieve's, what networks add to them, and a constant."""

    sieve: Sieve
    b: FloatArray
    h: FloatArray
    nets: tuple[torch.nn.Module, ...]
    """What networks add to ``Q``, and to ``zeta``."""
    centre: FloatArray
    spread: FloatArray
    shift: float

    def base(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the sieve's ``Q`` and ``zeta`` (n, J)."""
        phi = self.sieve(x)
        return JointStages(self.b, len(self.h)).q(phi), phi @ self.h.T

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
        rows, J = steps.rows, steps.J
        references = Referenced.of(steps)
        x, offered = references.x, references.offered
        folds = deal_folds(rows.nmembers, self.folds, 0 if seed is None else seed)
        fold = folds[rows.member]
        log_pi, W = np.zeros((len(x), J)), np.zeros(len(x))
        fits, epochs_run = [], []
        for k in range(self.folds):
            if progress is not None:
                progress(k, self.folds, f"networks without fold {k + 1}")
            with named_fold(k, self.folds):
                away = steps.without(folds == k)
                sieve_fit = away.fit()
            fit, epochs = self._train(sieve_fit, away, references, np.flatnonzero(fold != k))
            out = np.flatnonzero(fold == k)
            q = fit.q(x[out])
            log_pi[out] = log_softmax(q, None if offered is None else offered[out])
            W[out] = q[np.arange(len(out)), references.choice[out]]
            fits.append(fit)
            epochs_run.append(epochs)
        stopped = max(epochs_run) < self.network.epochs
        return Learned(
            stages=LearnedStages(log_pi, W),
            predictor=JointPredictor(tuple(fits)),
            settled=stopped,
            message=f"networks ran {max(epochs_run)} epochs at most"
            + ("" if stopped else f": all of epochs={self.network.epochs}, still improving"),
            notes=(
                f"Probabilities and values minimise one objective (weight {self.weight:g}) by"
                f" {self.network!r} in {self.folds} folds of members, each predicted by networks"
                " that did not see it",
            ),
        )

    def _train(
        self, sieve_fit: RowsFit, steps: RowsPQR, references: Referenced, used: IntArray
    ) -> tuple[JointFit, int]:
        """Return networks trained on some rows, and the epochs that took."""
        x, J = references.x, steps.J
        centre, spread = x[used].mean(axis=0), x[used].std(axis=0)
        nets = tuple(zero_output(self.network.layers(x.shape[1], J)) for _ in range(2))
        start = JointFit(
            sieve=steps.sieve,
            b=joint_coefficients(sieve_fit.c, sieve_fit.policy, steps.model.anchor),
            h=sieve_fit.h,
            nets=nets,
            centre=centre,
            spread=np.where(spread > 0, spread, 1.0),
            shift=0.0,
        )
        loss = JointLoss(start, steps, references, used, self.weight, self.network.rate)
        n = self.network
        epochs = train(
            [loss.q_net, loss.zeta_net],
            loss,
            len(used),
            batch=n.batch,
            rate=n.rate,
            decay=n.decay,
            epochs=n.epochs,
            holdout=n.holdout,
            patience=n.patience,
            seed=n.seed,
            ascent=loss.fit_zeta,
            descend=[loss.q_net],
            # zeta in V's place: what is watched must not reward a bad zeta
            watch=lambda part: loss(part, projected=True),
        )
        return replace(start, shift=loss.missing_constant()), epochs


class JointLoss:
    """The objective in batches of rows, as torch differentiates it.

    Parameters
    ----------
    start : JointFit
        The sieve's ``Q`` and ``zeta``, and the networks that add to them.
    steps : RowsPQR
        Of the rows outside a fold.
    references : Referenced
    used : IntArray
        Rows to train on; batches are positions among them.
    weight, rate : float
        Of the Bellman residuals; of the steps on ``zeta``.

    Raises
    ------
    DataError
        None of the rows takes the anchor and has a next row.
    """

    def __init__(
        self,
        start: JointFit,
        steps: RowsPQR,
        references: Referenced,
        used: IntArray,
        weight: float,
        rate: float,
    ) -> None:
        torch, rows = torch_module(), steps.rows
        moved = rows.next != NO_ROW
        followed = moved | rows.ended
        anchored = followed & (rows.choice == references.choice)
        if not anchored[used].any():
            raise DataError("no row outside a fold takes the anchor and has a next row")
        self.beta, self.bellman_weight = steps.model.beta, weight
        self.used = torch.from_numpy(used)
        self.z = torch.from_numpy((references.x - start.centre) / start.spread)
        self.choice = torch.from_numpy(rows.choice)
        self.reference = torch.from_numpy(references.choice)
        offered = references.offered
        self.offered = None if offered is None else torch.from_numpy(offered)
        self.weight = torch.from_numpy(rows.weight)
        self.paid = torch.from_numpy(references.paid)
        self.followed, self.anchored = torch.from_numpy(followed), torch.from_numpy(anchored)
        # where there is no next row, that of row 0 is taken times zero
        self.next_row = torch.from_numpy(np.maximum(rows.next, 0))
        self.moved = torch.from_numpy(moved.astype(np.float64))
        self.base_q, self.base_zeta = (torch.from_numpy(v) for v in start.base(references.x))
        self.q_net, self.zeta_net = start.nets
        self.zeta_steps = torch.optim.Adam(self.zeta_net.parameters(), lr=rate)

    def q(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``Q`` (n, J)."""
        return self.q_net(self.z[rows]) + self.base_q[rows]

    def zeta(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``zeta`` (n, J)."""
        return self.zeta_net(self.z[rows]) + self.base_zeta[rows]

    def offered_q(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``Q``, minus infinity where a choice is not offered."""
        q = self.q(rows)
        return q if self.offered is None else q.masked_fill(~self.offered[rows], -np.inf)

    def next_value(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``V_Q(s')`` (n,); 0 after a terminal row."""
        ahead = self.offered_q(self.next_row[rows])
        return torch_module().logsumexp(ahead, dim=1) * self.moved[rows]

    def fit_zeta(self, part: IntArray) -> None:
        """Step ``zeta`` towards ``V_Q(s')`` on a batch, ``Q`` held."""
        rows = self.used[part]
        rows = rows[self.followed[rows]]
        if not len(rows):
            return
        with torch_module().no_grad():
            V = self.next_value(rows)
        zeta = self.zeta(rows).gather(1, self.choice[rows][:, None])[:, 0]
        weight = self.weight[rows]
        self.zeta_steps.zero_grad()
        ((zeta - V) ** 2 * weight).sum().div(weight.sum()).backward()
        self.zeta_steps.step()

    def __call__(self, part: IntArray, projected: bool = False) -> torch.Tensor:
        """Return the objective a row of a batch, with ``zeta`` in place of V' if ``projected``."""
        torch = torch_module()
        rows = self.used[part]
        logs = torch.log_softmax(self.offered_q(rows), dim=1)
        taken = logs.gather(1, self.choice[rows][:, None])[:, 0]
        total = -(taken * self.weight[rows]).sum()
        anchored = rows[self.anchored[rows]]
        if len(anchored):
            V = self.next_value(anchored)
            reference = self.reference[anchored][:, None]
            q = self.q(anchored).gather(1, reference)[:, 0]
            with torch.no_grad():
                zeta = self.zeta(anchored).gather(1, reference)[:, 0]
            paid, beta = self.paid[anchored], self.beta
            if projected:
                square = (paid + beta * zeta - q) ** 2
            else:
                square = (paid + beta * V - q) ** 2 - beta**2 * (V - zeta) ** 2
            total = total + self.bellman_weight * (square * self.weight[anchored]).sum()
        return total / self.weight[rows].sum()

    def missing_constant(self) -> float:
        """Return what to add to ``Q`` for a mean Bellman residual of zero.

        No gradient reaches this constant soon: adding it to ``Q`` changes no probability.
        """
        rows = self.used[self.anchored[self.used]]
        weight = self.weight[rows]
        with torch_module().no_grad():
            q = self.q(rows).gather(1, self.reference[rows][:, None])[:, 0]
            residual = self.paid[rows] + self.beta * self.next_value(rows) - q
            mean = float((residual * weight).sum() / weight.sum())
            moved = float((self.moved[rows] * weight).sum() / weight.sum())
        return mean / (1 - self.beta * moved)


def zero_output(net: torch.nn.Module) -> torch.nn.Module:
    """Return a network with its last layer set to zero: nothing, until it is trained."""
    torch = torch_module()
    torch.nn.init.zeros_(net[-1].weight)
    torch.nn.init.zeros_(net[-1].bias)
    return net
