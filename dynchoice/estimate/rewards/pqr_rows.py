"""Deep PQR and GenPQR on rows whose states are numbers, with linear sieves: three solves.

``phi(s)`` are the sieve's columns, ``l = log pi``, ``o`` the reference choice (the anchor, or the
only choice offered), ``g`` its reward, and primes the next row.

P. ``pi`` by a multinomial logit on ``phi``.

Q. Deep PQR, equation (ii): ``W = phi c`` solves, over rows with ``a = o``,
   ``sum phi (phi - beta phi')' c = sum phi (g - beta l'_o)``: the fixed point of fitted-Q iteration
   (its limit in one solve). ``Q_a = l_a - l_o + W``, ``V = W - l_o``.
   GenPQR: ``q_a = l_a - g + beta h_a``, ``h_a = E[q'_o | s, a]``, and ``h = f(s,a) c`` solves,
   over all rows, ``sum f (f - beta f'_o)' c = sum f (l'_o - g')`` with ``f(s,a)`` = columns shared
   by all choices and columns of each, a ridge on the latter. ``V = -q_o``. (``log pi`` itself is no
   function of the sieve; it stays as it is.)

R. Deep PQR: ``r_a = Q_a - beta E[V' | s, a]``, a regression on ``phi`` for each choice.
   GenPQR: ``r_a = q_a - q_o + g``, no further regression.

Parameters: ``theta = (sum x x')^{-1} sum x r`` over the rows taken, with ``beta V'`` as observed in
place of its regression. The influence of a row goes through all three solves.

Where the reference itself has features (inside a contract, the cost of leaving), its reward is
``g + x_o theta``. Values are linear in it: ``H``, ``A H = sum phi x_o`` (GenPQR: ``-sum f x'_o``),
is what they gain by ``theta``. ``theta`` solves ``sum z (r - (x - dr/dtheta)' theta) = 0``, where
``z`` is ``x - dr/dtheta`` as the sieve expects it: the features normalised as the reward is
(:meth:`dynchoice.estimate.rewards.normalised.Normalised.features`). Everything else follows at that
``theta``. Without such features ``z = x``.

Where learners stand in for the sieve in P and Q, ``theta`` is corrected by the mean of that
influence at their predictions (zero for the sieve itself): weights ``L_c = (dtheta/dc) A^{-1}`` on
what Q misses and ``L_e`` on what P misses, the sieve's representers of the efficient influence
function of van der Laan, Bibaut and Kallus (their weights ``alpha``). First-stage errors then
enter by products only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynchoice.errors import DataError, IdentificationError, SpecificationError
from dynchoice.estimate.choice_logit import ChoiceLogit, taken
from dynchoice.estimate.rewards.first_stages import FirstStages, SieveStages
from dynchoice.estimate.rewards.rows import SievedRows, ValueSystem, solved
from dynchoice.inference.diagnostics import Identification
from dynchoice.model.reward import RewardModel
from dynchoice.model.sieve import by_choice
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import BoolArray, FloatArray, IntArray, Progress

DEAD = 1e-10
"""Share of a feature's square that must be left once the reference earns it as well."""
RIDGE = 1e-6
"""Observations that the representer of P is worth against: keeps separated directions finite."""


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
    value: FloatArray
    """``W`` (n,) or ``h`` (n, J); empty before the Q step."""
    value_next: FloatArray
    """``W`` or ``h_o`` of the next row (known,); 0 after a terminal one."""
    g_next: FloatArray
    """Reward of the next row's reference (known,); 0 after a terminal one."""
    paid: FloatArray
    """``g`` without the offset (n,)."""
    xo_next: FloatArray
    """GenPQR: features of the next row's reference (known, K); 0 after a terminal one."""


@dataclass(frozen=True)
class RowsFit:
    """The three steps' estimates and what the parameters rest on."""

    policy: ChoiceLogit
    c: FloatArray
    h: FloatArray
    theta: FloatArray
    correction: FloatArray
    """What the sieve's representers add to ``theta`` for learners' errors (K,)."""
    names: tuple[str, ...]
    gram: FloatArray
    sums: FloatArray
    """Influence of every member on ``theta`` (N_members, K)."""
    member_weight: FloatArray
    uses: dict[str, float]
    system: ValueSystem
    loglik: float
    """Of the choices under the stages' probabilities."""
    moved: FloatArray
    """What the references' features add to the coefficients of values."""


@dataclass(frozen=True)
class QStep:
    """Equations of the Q step, ``system c = b``, and what they move with.

    Attributes
    ----------
    gain : FloatArray, shape (D, K)
        ``db / dtheta``: what the references' features earn.
    C : FloatArray, shape (D, (J - 1) G)
        ``db`` by the policy's coefficients.
    cells, follow : FloatArray, shape (J, G, G)
        Deep PQR: ``sum w phi phi'`` and ``sum w phi phi_next'`` of the rows with each choice.
    """

    system: ValueSystem
    b: FloatArray
    gain: FloatArray
    C: FloatArray
    cells: FloatArray
    follow: FloatArray


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
        self.options: dict[str, Any] = {
            "general": general, "degree": degree, "pairs": pairs, "pool": pool, "support": support,
        }  # fmt: skip
        if isinstance(support, bool) or not isinstance(support, int) or support < 1:
            raise SpecificationError(f"support={support!r}: a whole number of rows, one at least")
        self.sieved = SievedRows(model, rows, degree, pairs)
        self.model, self.rows, self.general = model, rows, general
        self.pool, self.J = float(pool), len(model.choices)
        self.sieve, self.anchored = self.sieved.sieve, self.sieved.anchored
        if self.anchored < support:
            raise DataError(
                f"{self.anchored:,} rows take the anchor {model.choices[model.anchor]!r}; its value"
                f" needs support={support:,} at least. Take another anchor, or lower support= and"
                " read the intervals with care"
            )

    # rows ------------------------------------------------------------------------------------

    def slabs(
        self, stages: FirstStages, features: bool = True, values: bool = True
    ) -> Iterator[Slab]:
        """Yield all rows with what follows them.

        A row's next one is the row after it, so everything is evaluated once, on a block and the
        row after its last.
        """
        J, rows, model = self.J, self.rows, self.model
        for b in rows.blocks():
            n, here = len(b.choice), slice(b.rows.start, min(b.rows.stop + 1, len(rows.x)))
            whole = np.ascontiguousarray(rows.x[here])
            table, all_phi = self.sieved.table(whole), self.sieve(whole)
            all_offered = model.offered(table)
            all_o, all_base = model.reference(all_offered, len(table)), model.base(table)
            all_paid, i = model.known(table), np.arange(len(table))
            all_g = all_paid + all_base[i, all_o]
            all_x = model.design(table)[0] if features else np.zeros((len(table), J, 0))
            all_logs = stages.logs(here, all_phi, all_offered)
            known = np.sort(np.r_[b.moved, np.flatnonzero(b.ended)])
            put, at = np.searchsorted(known, b.moved), b.moved + 1
            o_next, logs = all_o[at], all_logs[at]
            pi = np.exp(logs) if all_offered is None else np.exp(logs) * all_offered[at]
            m = np.arange(len(at))

            def after(values: Any, put: IntArray = put, size: int = len(known)) -> Any:
                out = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
                out[put] = values
                return out

            value, value_next = np.zeros(0), np.zeros(len(known) if values else 0)
            if values:
                all_values = stages.values(here, all_phi)
                moved = all_values[at]
                value = all_values[:n]
                value_next = after(moved[m, o_next] if moved.ndim > 1 else moved)
            earned = all_x[at, o_next] if self.general else np.zeros((len(at), 0))
            yield Slab(
                b.rows, all_phi[:n], all_x[:n], all_base[:n], all_g[:n], b.choice, b.weight,
                None if all_offered is None else all_offered[:n], all_o[:n], all_logs[:n], known,
                after(all_phi[at]), after(o_next), after(logs[m, o_next]),
                after(taken(o_next, J) - pi[:, 1:]), value, value_next, after(all_g[at]),
                all_paid[:n], after(earned),
            )  # fmt: skip

    def without(self, members: BoolArray) -> RowsPQR:
        """Return the same steps on the rows of other members (``members``: who is left out)."""
        return RowsPQR(
            self.model, self.rows.reweighted((~members).astype(np.float64)), **self.options
        )

    # the steps -------------------------------------------------------------------------------

    def fit(
        self, tol: float = 1e-8, maxiter: int = 100, progress: Progress | None = None,
        learned: FirstStages | None = None,
    ) -> RowsFit:  # fmt: skip
        """Run the three steps and the projection, with the influence of every member.

        Parameters
        ----------
        tol, maxiter, progress
            See :meth:`dynchoice.NFXP.fit`.
        learned : FirstStages, optional
            In place of the sieve's probabilities and values.
        """
        tell = progress or (lambda done, total, text: None)
        tell(0, 4, "policy")
        policy = self.sieved.policy(tol, maxiter)
        tell(1, 4, "value of the reference")
        own = SieveStages(policy, np.zeros(0), self.general)
        q = self.system(own if learned is None else learned)
        c, H = q.system.solve(q.b), q.system.solve(q.gain)
        tell(2, 4, "reward")
        stages = SieveStages(policy, c, self.general) if learned is None else learned
        return self._reward(stages, policy, q, c, H, tell)

    def system(self, stages: FirstStages) -> QStep:
        """Return the Q step's equations."""
        J, G, beta = self.J, self.sieve.size, self.model.beta
        D = (1 + J) * G if self.general else G
        M, N = np.zeros((D, D)), np.zeros((D, D))
        b, C = np.zeros(D), np.zeros((D, J - 1, G))
        gain = np.zeros((D, self.sieved.features()[0]))
        cells, follow = np.zeros((J, G, G)), np.zeros((J, G, G))
        for s in self.slabs(stages, values=False):
            at, f, ahead, mine = self._value_rows(s)
            w = s.weight[at]
            fw = f * w[:, None]
            M += fw.T @ f
            N += fw.T @ ahead
            b += fw.T @ self._value_target(s, at, mine)
            gain += fw.T @ (-s.xo_next if self.general else s.x[at, s.o[at]])
            sign, ahead_of = (1.0, s.phi_next) if self.general else (-beta, ahead)
            for j in range(J - 1):
                C[:, j] += sign * ((f * (w * s.gap_next[mine, j])[:, None]).T @ ahead_of)
            for j in range(0 if self.general else J):
                own = s.choice[s.known] == j
                p = s.phi[s.known[own]] * s.weight[s.known[own], None]
                cells[j] += p.T @ s.phi[s.known[own]]
                follow[j] += p.T @ s.phi_next[own]
        if self.general:
            M[np.arange(G, D), np.arange(G, D)] += self.pool
        cells += 1e-9 * np.trace(cells, axis1=1, axis2=2).max() / G * np.eye(G)
        system = ValueSystem.of(M, N, beta, "values of the reference")
        return QStep(system, b, gain, C.reshape(D, -1), cells, follow)

    def _value_rows(self, s: Slab) -> tuple[IntArray, FloatArray, FloatArray, BoolArray]:
        """Return the rows of the Q step, their columns, the next rows', and which known ones."""
        if self.general:
            at = s.known
            f = by_choice(s.phi[at], s.choice[at], self.J)
            return at, f, by_choice(s.phi_next, s.o_next, self.J), np.ones(len(at), dtype=bool)
        mine = s.choice[s.known] == s.o[s.known]
        at = s.known[mine]
        return at, s.phi[at], s.phi_next[mine], mine

    def _value_target(self, s: Slab, at: IntArray, mine: BoolArray) -> FloatArray:
        """Return what the Q step regresses, before the next row's value."""
        if self.general:
            return np.asarray(s.l_next - s.g_next)
        return np.asarray(s.g[at] - self.model.beta * s.l_next[mine])

    @staticmethod
    def _probabilities(s: Slab) -> FloatArray:
        return np.exp(s.logs) if s.offered is None else np.exp(s.logs) * s.offered

    def _reward(
        self, stages: FirstStages, policy: ChoiceLogit, step: QStep, c: FloatArray, H: FloatArray,
        tell: Progress,
    ) -> RowsFit:  # fmt: skip
        """Return everything after the Q step: two more passes over the rows."""
        J, G = self.J, self.sieve.size
        K, names = self.sieved.features()
        gram, inner, normal = (np.zeros((K, K)) for _ in range(3))
        q = np.zeros(K)
        D_c, D_e = np.zeros((K, len(c))), np.zeros((K, J - 1, G))
        target, system = np.zeros((J, G)), step.system
        law = None if self.general else solved(step.cells, step.follow @ H)
        sieved = isinstance(stages, SieveStages)
        information = policy.information if sieved else RIDGE * np.eye((J - 1) * G)
        for s in self.slabs(stages):
            x, r, by_c, z = self._rewards(s)
            w = s.weight[s.known]
            z_x = self._normalised(s, x, H, law)
            xw = z_x * w[:, None]
            gram += (x * w[:, None]).T @ x
            inner += xw.T @ z_x
            own = x - by_c @ H
            normal += xw.T @ (own - s.x[s.known, s.o[s.known]] if self.general else own)
            q += xw.T @ r
            D_c += xw.T @ by_c
            if not sieved:
                information += self._information(s)
            phi = s.phi[s.known]
            both = taken(s.choice[s.known], J) - taken(s.o[s.known], J)
            for j in range(J - 1):
                D_e[:, j] += (xw * both[:, [j]]).T @ phi
            if not self.general:
                for j in range(J - 1):
                    D_e[:, j] += self.model.beta * (xw * s.gap_next[:, [j]]).T @ s.phi_next
                for j in range(J):
                    mine = s.choice[s.known] == j
                    p = phi[mine] * w[mine, None]
                    target[j] += p.T @ z[mine]
        theta = self._projected(gram, inner, normal, q, names)
        tell(3, 4, "standard errors")
        Lc = system.solve(D_c.T, transposed=True).T
        Le = solved(information, (D_e.reshape(K, -1) + Lc @ step.C).T).T
        correction = np.zeros(K)
        if not sieved:
            missed = np.zeros(K)
            for s in self.slabs(stages, features=False):
                missed += s.weight @ self._first_stage_influence(s, Lc, Le)
            correction = solved(normal, missed)
            theta = theta + correction
        moved = H @ theta
        h = np.zeros((0, 0))
        if not self.general:
            h = solved(step.cells, (target + step.follow @ moved)[:, :, None])[:, :, 0]
        sums, weight = np.zeros((self.rows.nmembers, K)), np.ones(self.rows.nmembers)
        loglik = 0.0
        for slab in self.slabs(stages):
            s = self._earning(slab, moved, theta) if moved.any() else slab
            x, r, _, _ = self._rewards(s)
            z = self._normalised(s, x, H, law)
            own = self._first_stage_influence(s, Lc, Le)
            loglik += float(s.weight @ s.logs[np.arange(len(s.phi)), s.choice])
            own[s.known] += z * (r - x @ theta)[:, None]
            who = self.rows.member[s.rows]
            first = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
            sums[who[first]] += np.add.reduceat(own, first, axis=0)
            weight[who[first]] = s.weight[first]
        tell(4, 4, "done")
        return RowsFit(
            policy, c + moved, h, theta, correction, names, gram, solved(normal, sums.T).T, weight,
            {
                "share": self.sieved.followed, "anchor rows": float(self.anchored),
                "anchor share": self.sieved.share,
            },
            system, loglik, moved,
        )  # fmt: skip

    def _normalised(
        self, s: Slab, x: FloatArray, H: FloatArray, law: FloatArray | None
    ) -> FloatArray:
        """Return the features normalised as the reward is (known, K); ``x`` without ``H``."""
        if not H.any():
            return x
        at, a, o = s.known, s.choice[s.known], s.o[s.known]
        if law is None:
            ahead = by_choice(s.phi[at], a, self.J) - by_choice(s.phi[at], o, self.J)
            return np.asarray(x - s.x[at, o] - self.model.beta * (ahead @ H))
        follows = np.einsum("ng,ngk->nk", s.phi[at], law[a])
        return np.asarray(x - s.phi[at] @ H + self.model.beta * follows)

    def _earning(self, s: Slab, moved: FloatArray, theta: FloatArray) -> Slab:
        """Return rows whose reference earns what its features say; ``moved = H theta``."""
        i = np.arange(len(s.o))
        g = s.g + s.x[i, s.o] @ theta
        if not self.general:
            value, ahead = s.value + s.phi @ moved, s.value_next + s.phi_next @ moved
            return replace(s, g=g, value=value, value_next=ahead)
        J = self.J
        each = [by_choice(s.phi, np.full(len(i), j, dtype=np.int64), J) @ moved for j in range(J)]
        ahead = s.value_next + by_choice(s.phi_next, s.o_next, J) @ moved
        return replace(
            s, g=g, value=s.value + np.stack(each, axis=1), value_next=ahead,
            g_next=s.g_next + s.xo_next @ theta,
        )  # fmt: skip

    def _information(self, s: Slab) -> FloatArray:
        """Return the sieve logit's information at the rows' probabilities."""
        J, G = self.J, self.sieve.size
        pi, out = self._probabilities(s), np.zeros((J - 1, G, J - 1, G))
        for a in range(J - 1):
            for b in range(J - 1):
                w = s.weight * pi[:, a + 1] * ((a == b) - pi[:, b + 1])
                out[a, :, b] = (s.phi * w[:, None]).T @ s.phi
        return out.reshape((J - 1) * G, -1)

    def _first_stage_influence(self, s: Slab, Lc: FloatArray, Le: FloatArray) -> FloatArray:
        """Return what rows' misses in Q and P do to ``sum x r`` (n, K)."""
        own, G = np.zeros((len(s.phi), len(Lc))), self.sieve.size
        at, f, miss = self._value_miss(s)
        own[at] += (f * miss[:, None]) @ Lc.T
        gap = taken(s.choice, self.J) - self._probabilities(s)[:, 1:]
        for j in range(self.J - 1):
            own += gap[:, [j]] * (s.phi @ Le[:, j * G : (j + 1) * G].T)
        return own

    def _rewards(self, s: Slab) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return features, reward less its known part, its slope by ``c``, and ``V'``."""
        at, beta, J = s.known, self.model.beta, self.J
        i = np.arange(len(at))
        a, o = s.choice[at], s.o[at]
        x = s.x[at][i, a]
        odds = s.logs[at, a] - s.logs[at, o]
        known = s.base[at, a] + np.where(a == o, s.paid[at], 0.0)
        if self.general:
            by_c = beta * (by_choice(s.phi[at], a, J) - by_choice(s.phi[at], o, J))
            h = beta * (s.value[at][i, a] - s.value[at][i, o])
            return x, odds + h + s.g[at] - known, by_c, np.zeros(0)
        by_c = s.phi[at] - beta * s.phi_next
        z = s.value_next - s.l_next
        return x, odds + s.value[at] - beta * z - known, by_c, z

    def _value_miss(self, s: Slab) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return the rows of the Q step, their columns, and its residuals."""
        at, f, _, mine = self._value_rows(s)
        value = s.value[at, s.choice[at]] if self.general else s.value[at]
        miss = self._value_target(s, at, mine) - value + self.model.beta * s.value_next[mine]
        return at, f, miss

    @staticmethod
    def _projected(
        gram: FloatArray, inner: FloatArray, normal: FloatArray, q: FloatArray,
        names: tuple[str, ...],
    ) -> FloatArray:  # fmt: skip
        """Return the projection; ``inner`` holds second moments of the normalised features."""
        size = np.diag(inner)
        dead = [
            k for k, v, x in zip(names, size, np.diag(gram), strict=True) if v <= DEAD * x or x <= 0
        ]
        flat = [] if dead else Identification.of(names, inner).flat
        if flat or dead:
            raise IdentificationError(
                "the reward cannot be projected on features that are collinear where there are"
                f" rows, or that the anchor (or a contract's only choice) earns alike:"
                f" {'; '.join(flat) if flat else ', '.join(map(repr, dead))}. Drop one of them or"
                " combine them"
            )
        return solved(normal, q)
