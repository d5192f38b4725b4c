"""Deep PQR and GenPQR on rows whose states are numbers, with linear sieves: three solves.

``phi(s)`` are the sieve's columns, ``l = log pi``, ``o`` the reference choice (the anchor, or the
only choice offered), ``g`` its reward, and primes the next row.

P. ``pi`` by a multinomial logit on ``phi``.

Q. Deep PQR, equation (ii): ``W = phi c`` solves, over rows with ``a = o``,
   ``sum phi (phi - beta phi')' c = sum phi (g - beta l'_o)``: the fixed point of fitted-Q iteration
   (its limit in one solve). ``Q_a = l_a - l_o + W``, ``V = W - l_o``.
   GenPQR: ``q = f(s,a) c`` solves, over all rows,
   ``sum f (f - beta f'_o)' c = sum f (l_a - g)`` with ``f(s,a)`` = columns shared by all choices
   and columns of each, a ridge on the latter. ``V = -q_o``.

R. Deep PQR: ``r_a = Q_a - beta E[V' | s, a]``, a regression on ``phi`` for each choice.
   GenPQR: ``r_a = q_a - q_o + g``, no further regression.

Parameters: ``theta = (sum x x')^{-1} sum x r`` over the rows taken, with ``beta V'`` as observed in
place of its regression. The influence of a row goes through all three solves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    IdentificationError,
    SpecificationError,
)
from dynchoice.estimate.choice_logit import ChoiceLogit, taken
from dynchoice.estimate.optimise import check_options
from dynchoice.estimate.rows import SievedRows, solved, well_conditioned
from dynchoice.inference.covariance import check_cov_type
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.rewards import RewardResults
from dynchoice.model.reward import RewardModel
from dynchoice.model.sieve import by_choice
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import BoolArray, FloatArray, IntArray, Progress

FEW = 10
"""Anchor rows a column below which the summary warns of its intervals."""


@dataclass(frozen=True)
class Slab:
    """Some rows with everything that the three steps ask of them; see the module's docstring.

    ``d_next`` (m, J - 1, .) etc. are not kept: derivatives by the logit's coefficients are outer
    products of ``gap`` and ``phi``.
    """

    rows: slice
    phi: FloatArray
    x: FloatArray
    base: FloatArray
    """Known part of the reward (n, J)."""
    g: FloatArray
    choice: IntArray
    weight: FloatArray
    offered: BoolArray | None
    o: IntArray
    logs: FloatArray
    known: IntArray
    """Rows whose continuation is observed: the next row, or nothing after a terminal one."""
    phi_next: FloatArray
    o_next: IntArray
    l_next: FloatArray
    """``log pi(o'|s')`` of known rows; 0 after a terminal one."""
    gap_next: FloatArray
    """``1{o' = j} - pi_j(s')`` (known, J - 1): derivative of ``l_next`` by the logit's index."""


@dataclass(frozen=True)
class RowsFit:
    """The three steps' estimates and what the parameters rest on."""

    policy: ChoiceLogit
    c: FloatArray
    h: FloatArray
    theta: FloatArray
    names: tuple[str, ...]
    gram: FloatArray
    sums: FloatArray
    """Influence of every member on ``theta`` (N_members, K)."""
    member_weight: FloatArray
    uses: dict[str, float]
    condition: float


class RowsPQR:
    """The three steps on :class:`dynchoice.Trajectories`; pure of options and results.

    Parameters
    ----------
    model : RewardModel
    rows : Trajectories
    general : bool
        GenPQR: all rows inform the value of the reference; else Deep PQR.
    degree, pairs
        Of the sieve.
    pool : float
        GenPQR: ridge, in rows, on the columns that choices do not share.
    support : int
        Rows that must have taken the reference choice.
    """

    def __init__(
        self, model: RewardModel, rows: Trajectories, *, general: bool, degree: int,
        pairs: bool | None, pool: float, support: int,
    ) -> None:  # fmt: skip
        self.sieved = SievedRows(model, rows, degree, pairs)
        self.model, self.rows, self.general = model, rows, general
        self.pool, self.J = float(pool), len(model.choices)
        self.sieve, self.anchored = self.sieved.sieve, self.sieved.anchored
        if self.anchored < support:
            raise DataError(
                f"{self.anchored:,} rows take the anchor {model.choices[model.anchor]!r}; its value"
                f" needs support={support:,} at least. Take another anchor"
                + ("" if general else ", or GenPQR, which learns from all rows")
            )

    # rows ------------------------------------------------------------------------------------

    def _slabs(self, policy: ChoiceLogit, features: bool = True) -> Iterator[Slab]:
        """Yield all rows with what follows them."""
        J = self.J
        for b in self.rows.blocks():
            table = self.sieved.table(b.x)
            offered = self.model.offered(table)
            phi = self.sieve(b.x)
            x = self.model.design(table)[0] if features else np.zeros((len(table), J, 0))
            after = self.sieved.table(b.x_next)
            offered_next = self.model.offered(after)
            o_next = self.model.reference(offered_next, len(after))
            phi_moved = self.sieve(b.x_next)
            logs = policy.log_probabilities(phi_moved, offered_next)
            pi = np.exp(logs) if offered_next is None else np.exp(logs) * offered_next
            gap = taken(o_next, J) - pi[:, 1:]
            known = np.sort(np.r_[b.moved, np.flatnonzero(b.ended)])
            put = np.searchsorted(known, b.moved)
            phi_next, gap_next = np.zeros((len(known), phi.shape[1])), np.zeros((len(known), J - 1))
            l_next, to = np.zeros(len(known)), np.zeros(len(known), dtype=np.int64)
            phi_next[put], gap_next[put], to[put] = phi_moved, gap, o_next
            l_next[put] = logs[np.arange(len(after)), o_next]
            yield Slab(
                b.rows, phi, x, self.model.base(table), self.model.known(table), b.choice, b.weight,
                offered,
                self.model.reference(offered, len(table)),
                policy.log_probabilities(phi, offered), known, phi_next, to, l_next, gap_next,
            )  # fmt: skip

    # the steps -------------------------------------------------------------------------------

    def fit(
        self, tol: float = 1e-8, maxiter: int = 100, progress: Progress | None = None
    ) -> RowsFit:
        """Run the three steps and the projection, with the influence of every member."""
        tell = progress or (lambda done, total, text: None)
        tell(0, 4, "policy")
        policy = self.sieved.policy(tol, maxiter)
        tell(1, 4, "value of the reference")
        A, b, C = self._value(policy)
        c = solved(A, b)
        tell(2, 4, "reward")
        return self._reward(policy, A, c, C, tell)

    def _value(self, policy: ChoiceLogit) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the Q step's system ``A``, right side ``b``, and ``db`` by the logit's index."""
        J, G, beta = self.J, self.sieve.size, self.model.beta
        D = (1 + J) * G if self.general else G
        A, b, C = np.zeros((D, D)), np.zeros(D), np.zeros((D, J - 1, G))
        for s in self._slabs(policy, features=False):
            if self.general:
                at = s.known
                w = s.weight[at]
                f = by_choice(s.phi[at], s.choice[at], J)
                ahead = by_choice(s.phi_next, s.o_next, J)
                own = s.logs[at, s.choice[at]]
                A += (f * w[:, None]).T @ (f - beta * ahead)
                b += (f * w[:, None]).T @ (own - s.g[at])
                pi = self._probabilities(s)[at]
                gap = taken(s.choice[at], J) - pi[:, 1:]
                for j in range(J - 1):
                    C[:, j] += (f * (w * gap[:, j])[:, None]).T @ s.phi[at]
            else:
                mine = s.choice[s.known] == s.o[s.known]
                at = s.known[mine]
                w, phi, ahead = s.weight[at], s.phi[at], s.phi_next[mine]
                A += (phi * w[:, None]).T @ (phi - beta * ahead)
                b += (phi * w[:, None]).T @ (s.g[at] - beta * s.l_next[mine])
                for j in range(J - 1):
                    own = w * s.gap_next[mine, j]
                    C[:, j] -= beta * ((phi * own[:, None]).T @ ahead)
        if self.general:
            A[np.arange(G, D), np.arange(G, D)] += self.pool
        self.condition = well_conditioned(A, "values of the reference")
        return A, b, C.reshape(D, -1)

    @staticmethod
    def _probabilities(s: Slab) -> FloatArray:
        return np.exp(s.logs) if s.offered is None else np.exp(s.logs) * s.offered

    def _reward(
        self, policy: ChoiceLogit, A: FloatArray, c: FloatArray, C: FloatArray, tell: Progress
    ) -> RowsFit:
        """Return everything after the Q step: two more passes over the rows."""
        J, G, beta = self.J, self.sieve.size, self.model.beta
        K, names = self.sieved.features()
        gram, q = np.zeros((K, K)), np.zeros(K)
        D_c, D_e = np.zeros((K, len(c))), np.zeros((K, J - 1, G))
        cells, target = np.zeros((J, G, G)), np.zeros((J, G))
        for s in self._slabs(policy):
            x, r, by_c, z = self._rewards(s, c)
            w = s.weight[s.known]
            xw = x * w[:, None]
            gram += xw.T @ x
            q += xw.T @ r
            D_c += xw.T @ by_c
            if not self.general:
                phi = s.phi[s.known]
                both = taken(s.choice[s.known], J) - taken(s.o[s.known], J)
                for j in range(J - 1):
                    D_e[:, j] += (xw * both[:, [j]]).T @ phi
                    D_e[:, j] += beta * (xw * s.gap_next[:, [j]]).T @ s.phi_next
                for j in range(J):
                    own = s.choice[s.known] == j
                    p = phi[own] * w[own, None]
                    cells[j] += p.T @ phi[own]
                    target[j] += p.T @ z[own]
        theta = self._projected(gram, q, names)
        h = np.zeros((0, 0))
        if not self.general:
            little = 1e-9 * np.trace(cells, axis1=1, axis2=2).max() / G * np.eye(G)
            h = solved(cells + little, target[:, :, None])[:, :, 0]
        tell(3, 4, "standard errors")
        Lc = np.linalg.solve(A.T, D_c.T).T
        Le = np.linalg.solve(policy.information, (D_e.reshape(K, -1) + Lc @ C).T).T
        sums, weight = np.zeros((self.rows.nmembers, K)), np.ones(self.rows.nmembers)
        for s in self._slabs(policy):
            x, r, by_c, _ = self._rewards(s, c)
            own = np.zeros((len(s.phi), K))
            own[s.known] = x * (r - x @ theta)[:, None]
            at, f, miss = self._value_miss(s, c)
            own[at] += (f * miss[:, None]) @ Lc.T
            gap = taken(s.choice, J) - self._probabilities(s)[:, 1:]
            for j in range(J - 1):
                own += gap[:, [j]] * (s.phi @ Le[:, j * G : (j + 1) * G].T)
            who = self.rows.member[s.rows]
            first = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
            sums[who[first]] += np.add.reduceat(own, first, axis=0)
            weight[who[first]] = s.weight[first]
        tell(4, 4, "done")
        return RowsFit(
            policy, c, h, theta, names, gram, solved(gram, sums.T).T, weight,
            {"anchor rows": float(self.anchored), "anchor share": self.sieved.share},
            self.condition,
        )  # fmt: skip

    def _rewards(
        self, s: Slab, c: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return features, reward less its known part, its slope by ``c``, and ``V'``."""
        at, beta, J = s.known, self.model.beta, self.J
        i = np.arange(len(at))
        x = s.x[at][i, s.choice[at]]
        if self.general:
            by_c = by_choice(s.phi[at], s.choice[at], J) - by_choice(s.phi[at], s.o[at], J)
            return x, by_c @ c + s.g[at] - s.base[at, s.choice[at]], by_c, np.zeros(0)
        by_c = s.phi[at] - beta * s.phi_next
        z = s.phi_next @ c - s.l_next
        odds = s.logs[at, s.choice[at]] - s.logs[at, s.o[at]]
        known = s.base[at, s.choice[at]]
        return x, odds + s.phi[at] @ c - beta * z - known, by_c, z

    def _value_miss(self, s: Slab, c: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return the rows of the Q step, their columns, and its residuals at ``c``."""
        beta, J = self.model.beta, self.J
        if self.general:
            at = s.known
            f = by_choice(s.phi[at], s.choice[at], J)
            ahead = by_choice(s.phi_next, s.o_next, J)
            own = s.logs[at, s.choice[at]]
            return at, f, own - s.g[at] - (f - beta * ahead) @ c
        mine = s.choice[s.known] == s.o[s.known]
        at = s.known[mine]
        y = s.g[at] - beta * s.l_next[mine]
        return at, s.phi[at], y - (s.phi[at] - beta * s.phi_next[mine]) @ c

    def _projected(self, gram: FloatArray, q: FloatArray, names: tuple[str, ...]) -> FloatArray:
        flat = Identification.of(names, gram).flat
        dead = [k for k, v in zip(names, np.diag(gram), strict=True) if v <= 0]
        if flat or dead:
            raise IdentificationError(
                "the reward cannot be projected on features that are collinear where there are"
                f" rows: {'; '.join(flat) if flat else ', '.join(map(repr, dead))}. Drop one of"
                " them or combine them"
            )
        return solved(gram, q)


class RowsReward:
    """Deep PQR or GenPQR on rows, as an estimator: options, covariance, results."""

    def __init__(self, name: str, model: RewardModel, rows: Trajectories, **options: Any) -> None:
        self.name, self.model, self.rows = name, model, rows
        self.steps = RowsPQR(model, rows, **options)

    def fit(
        self,
        *,
        cov_type: str = "clustered",
        cluster: str = "member",
        tol: float = 1e-8,
        maxiter: int = 100,
        seed: int | None = None,
        progress: Progress | None = None,
        strict: bool = False,
        **unused: Any,
    ) -> RewardResults:
        """Estimate; see :meth:`dynchoice.DeepPQR.fit`."""
        from dynchoice import __version__

        del unused
        check_options(tol, maxiter, progress)
        if check_cov_type(cov_type) not in ("clustered", "robust") or cluster != "member":
            raise SpecificationError(
                f"cov_type={cov_type!r}, cluster={cluster!r}: rewards over numbers have errors"
                " clustered by member only"
            )
        found = self.steps.fit(tol, maxiter, progress)
        meat = (found.sums * found.member_weight[:, None]).T @ found.sums
        policy = found.policy
        message = (
            f"converged: policy in {policy.steps} steps, then closed forms"
            if policy.converged
            else f"not converged: the policy's gradient is {policy.gradient:.1e} after"
            f" {policy.steps} steps"
        )
        if not policy.converged:
            if strict:
                raise ConvergenceError(message)
            warnings.warn(f"{self.name}: {message}", ConvergenceWarning, stacklevel=4)
        N = self.rows.nmembers
        return RewardResults(
            estimator=self.name, model=self.model, features=self.rows.features,
            names_=found.names, theta=found.theta, cov_matrix=meat,
            cov_type="clustered",
            cov_config={"clusters": N, "by": "member", "first_stage_label": "included"},
            loglik=policy.loglik, loglik_null=policy.loglik_null, nobs=self.rows.nobs, nmembers=N,
            converged=policy.converged, message=message,
            optimization={"iterations": policy.steps, "gradient": policy.gradient,
                          "condition": found.condition},
            sieve=self.steps.sieve, policy_coefficients=policy.coefficients,
            value_coefficients=found.c, ahead_coefficients=found.h,
            form="general" if self.steps.general else "anchor",
            data_digest=self.rows.digest, package_version=__version__, seed=seed,
            notes=self._notes(found), uses=found.uses,
        )  # fmt: skip

    def _notes(self, found: RowsFit) -> tuple[str, ...]:
        few = self.steps.anchored < FEW * len(found.c)
        notes = [
            "The parameters are a projection of the estimated reward on the features; the sieve is"
            " taken as flexible enough (compare degree=)",
        ]
        if few:
            notes.append(
                f"Only {self.steps.anchored:,} rows take the anchor, for {len(found.c)} columns of"
                " its value: expect intervals that are too narrow"
            )
        return tuple(notes)
