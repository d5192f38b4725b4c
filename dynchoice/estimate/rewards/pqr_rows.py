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
from dataclasses import dataclass

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError, IdentificationError
from dynchoice.estimate.choice_logit import ChoiceLogit, taken
from dynchoice.estimate.rewards.first_stages import FirstStages, SieveStages
from dynchoice.estimate.rewards.row_blocks import RowBlock, row_blocks
from dynchoice.estimate.rewards.rows import SievedRows, ValueSystem, add_by_member, solved
from dynchoice.estimate.rewards.value_forms import (
    ActionValues,
    AnchorValues,
    ValueForm,
    next_value,
)
from dynchoice.inference.diagnostics import Identification
from dynchoice.model.reward import RewardModel
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import BoolArray, FloatArray, Progress

DEAD = 1e-10
"""Share of a feature's square that must be left once the reference earns it as well."""
RIDGE = 1e-6
"""Observations that the representer of P is worth against: keeps separated directions finite."""


@dataclass(frozen=True, kw_only=True)
class RowsFit:
    """The three steps' estimates and what the parameters rest on."""

    policy: ChoiceLogit
    c: FloatArray
    """Coefficients of values, ``shift`` included (D,)."""
    h: FloatArray
    """Deep PQR: coefficients (J, G) of ``E[V' | s, a]``; empty in GenPQR."""
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
    shift: FloatArray
    """What the references' features add to the coefficients of values."""


@dataclass(frozen=True, kw_only=True)
class QStep:
    """Equations of the Q step, ``system c = target``, and what they move with.

    Attributes
    ----------
    by_theta : FloatArray, shape (D, K)
        The target's slope by ``theta``: what the references' features earn.
    by_policy : FloatArray, shape (D, (J - 1) G)
        The target's slope by the policy's coefficients.
    moments, moments_next : FloatArray, shape (J, G, G)
        Deep PQR: ``sum w phi phi'`` and ``sum w phi phi_next'`` of the rows with each choice, for
        the R step's regressions. Zero in GenPQR, which has none.
    """

    system: ValueSystem
    target: FloatArray
    by_theta: FloatArray
    by_policy: FloatArray
    moments: FloatArray
    moments_next: FloatArray

    def values(self) -> tuple[FloatArray, FloatArray]:
        """Return ``c`` (D,) while the references' features earn nothing, and ``H`` (D, K)."""
        return self.system.solve(self.target), self.system.solve(self.by_theta)


@dataclass(frozen=True, kw_only=True)
class RewardSums:
    """What the rows add up to in the equations of ``theta``, and these sums' slopes.

    Attributes
    ----------
    gram : FloatArray, shape (K, K)
        ``sum w x x'``.
    inner : FloatArray, shape (K, K)
        ``sum w z z'`` with ``z`` the normalised features.
    normal : FloatArray, shape (K, K)
        ``sum w z (x - dr/dtheta)'``.
    product : FloatArray, shape (K,)
        ``sum w z r``.
    by_values : FloatArray, shape (K, D)
        Slope of ``product`` by ``c``.
    by_policy : FloatArray, shape (K, (J - 1) G)
        Its slope by the policy's coefficients.
    information : FloatArray, shape ((J - 1) G, (J - 1) G)
        Of the logit behind the representer of P.
    next_values : FloatArray, shape (J, G)
        Deep PQR: ``sum w phi V'`` of the rows with each choice.
    """

    gram: FloatArray
    inner: FloatArray
    normal: FloatArray
    product: FloatArray
    by_values: FloatArray
    by_policy: FloatArray
    information: FloatArray
    next_values: FloatArray


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
        self,
        model: RewardModel,
        rows: Trajectories,
        *,
        general: bool,
        degree: int,
        pairs: bool | None,
        pool: float,
        support: int,
    ) -> None:
        checks.whole(support, "support", 1)
        self.degree, self.pairs, self.pool, self.support = degree, pairs, float(pool), support
        self.sieved = SievedRows(model, rows, degree, pairs)
        self.model, self.rows, self.J = model, rows, len(model.choices)
        self.sieve, self.anchored = self.sieved.sieve, self.sieved.anchored
        self.form: ValueForm = (ActionValues if general else AnchorValues)(model.beta, self.J)
        if self.anchored < support:
            raise DataError(
                f"{self.anchored:,} rows take the anchor {model.choices[model.anchor]!r}; its value"
                f" needs support={support:,} at least. Take another anchor, or lower support= and"
                " read the intervals with care"
            )

    def blocks(
        self, stages: FirstStages, features: bool = True, values: bool = True
    ) -> Iterator[RowBlock]:
        """Yield all rows with what follows them; see :func:`.row_blocks.row_blocks`."""
        return row_blocks(
            self.sieved,
            stages,
            features=features,
            values=values,
            next_features=self.form.needs_next_features,
        )

    def without(self, members: BoolArray) -> RowsPQR:
        """Return the same steps on the rows of other members (``members``: who is left out)."""
        return RowsPQR(
            self.model,
            self.rows.reweighted((~members).astype(np.float64)),
            general=isinstance(self.form, ActionValues),
            degree=self.degree,
            pairs=self.pairs,
            pool=self.pool,
            support=self.support,
        )

    def fit(
        self,
        tol: float = 1e-8,
        maxiter: int = 100,
        progress: Progress | None = None,
        learned: FirstStages | None = None,
    ) -> RowsFit:
        """Run the three steps and the projection, with the influence of every member.

        Parameters
        ----------
        tol, maxiter, progress
            See :meth:`dynchoice.NFXP.fit`.
        learned : FirstStages, optional
            In place of the sieve's probabilities and values.
        """
        report = progress or (lambda done, total, text: None)
        report(0, 4, "policy")
        policy = self.sieved.policy(tol, maxiter)
        report(1, 4, "value of the reference")
        step = self.system(self.sieve_stages(policy) if learned is None else learned)
        c, H = step.values()
        report(2, 4, "reward")
        stages = self.sieve_stages(policy, c) if learned is None else learned
        # how the regressions of Deep PQR's R step carry H to the next row; GenPQR has none
        regresses = self.form.regresses_next
        law = solved(step.moments, step.moments_next @ H) if regresses else np.zeros(0)
        sums = self._reward_sums(stages, policy if learned is None else None, H, law)
        K, names = self.sieved.features()
        theta = project(sums, names)
        report(3, 4, "standard errors")
        # the representers: what a miss in Q, and in P, does to the equations of theta
        L_c = step.system.solve(sums.by_values.T, transposed=True).T
        L_e = solved(sums.information, (sums.by_policy + L_c @ step.by_policy).T).T
        correction = np.zeros(K)
        if learned is not None:
            missed = np.zeros(K)
            for block in self.blocks(stages, features=False):
                missed += block.weight @ self._first_stage_influence(block, L_c, L_e)
            correction = solved(sums.normal, missed)
            theta = theta + correction
        shift = H @ theta
        h = np.zeros((0, 0))
        if regresses:
            next_values = sums.next_values + step.moments_next @ shift
            h = solved(step.moments, next_values[:, :, None])[:, :, 0]
        influence, weight = np.zeros((self.rows.nmembers, K)), np.ones(self.rows.nmembers)
        loglik = 0.0
        for block in self.blocks(stages):
            loglik += float(block.weight @ block.logs[np.arange(len(block.phi)), block.choice])
            by_row = self._influence(block, theta, H, law, L_c, L_e)
            add_by_member(influence, weight, self.rows.member[block.rows], by_row, block.weight)
        report(4, 4, "done")
        return RowsFit(
            policy=policy,
            c=c + shift,
            h=h,
            theta=theta,
            correction=correction,
            names=names,
            gram=sums.gram,
            sums=solved(sums.normal, influence.T).T,
            member_weight=weight,
            uses={
                "share": self.sieved.followed,
                "anchor rows": float(self.anchored),
                "anchor share": self.sieved.share,
            },
            system=step.system,
            loglik=loglik,
            shift=shift,
        )

    def sieve_stages(self, policy: ChoiceLogit, c: FloatArray | None = None) -> SieveStages:
        """Return the sieve's first two steps; before the Q step, without ``c``, its policy only."""
        return SieveStages(policy, np.zeros(0) if c is None else c, self.form)

    # Q ---------------------------------------------------------------------------------------

    def system(self, stages: FirstStages) -> QStep:
        """Return the Q step's equations."""
        form, J, G = self.form, self.J, self.sieve.size
        D = form.size(G)
        second, second_next = np.zeros((D, D)), np.zeros((D, D))  # sums of f f' and of f f_next'
        target, by_policy = np.zeros(D), np.zeros((D, J - 1, G))
        by_theta = np.zeros((D, self.sieved.features()[0]))
        moments, moments_next = np.zeros((J, G, G)), np.zeros((J, G, G))
        for block in self.blocks(stages, values=False):
            used = form.value_rows(block)
            weight, gap_next = block.weight[used.rows], block.gap_next[used.chosen]
            phi_next = block.phi_next[used.chosen]
            weighted = used.f * weight[:, None]
            second += weighted.T @ used.f
            second_next += weighted.T @ used.f_next
            target += weighted.T @ form.target(block, used)
            by_theta += weighted.T @ form.target_by_theta(block, used)
            for j in range(J - 1):
                pulled = used.f * (weight * gap_next[:, j])[:, None]
                by_policy[:, j] += form.log_next_factor * (pulled.T @ phi_next)
            for j in range(J if form.regresses_next else 0):
                chosen = block.choice[block.followed] == j
                phi = block.phi[block.followed[chosen]]
                weighted = phi * block.weight[block.followed[chosen], None]
                moments[j] += weighted.T @ phi
                moments_next[j] += weighted.T @ block.phi_next[chosen]
        # the first G columns are those that all choices share; the ridge is on GenPQR's others
        second[np.arange(G, D), np.arange(G, D)] += self.pool
        # a choice whose rows do not span the sieve must not stop the R step of the others
        moments += 1e-9 * np.trace(moments, axis1=1, axis2=2).max() / G * np.eye(G)
        return QStep(
            system=ValueSystem.of(second, second_next, self.model.beta, "values of the reference"),
            target=target,
            by_theta=by_theta,
            by_policy=by_policy.reshape(D, -1),
            moments=moments,
            moments_next=moments_next,
        )

    # R ---------------------------------------------------------------------------------------

    def _reward_sums(
        self, stages: FirstStages, policy: ChoiceLogit | None, H: FloatArray, law: FloatArray
    ) -> RewardSums:
        """Return the sums of a pass over the rows that ``theta`` and its influence rest on.

        Parameters
        ----------
        policy : ChoiceLogit or None
            None where learners stand in for it: P's information is then at their probabilities.
        """
        form, J, G, K = self.form, self.J, self.sieve.size, self.sieved.features()[0]
        gram, inner, normal = (np.zeros((K, K)) for _ in range(3))
        product, by_values = np.zeros(K), np.zeros((K, form.size(G)))
        by_policy, next_values = np.zeros((K, J - 1, G)), np.zeros((J, G))
        information = RIDGE * np.eye((J - 1) * G) if policy is None else policy.information
        for block in self.blocks(stages):
            x, r = self._rewards(block)
            slope = form.reward_by_values(block)
            weight = block.weight[block.followed]
            z = self._normalised(block, x, H, law)
            weighted = z * weight[:, None]
            gram += (x * weight[:, None]).T @ x
            inner += weighted.T @ z
            normal += weighted.T @ form.own_features(block, x - slope @ H)
            product += weighted.T @ r
            by_values += weighted.T @ slope
            if policy is None:
                information += self._information(block)
            for factor, gap, columns in form.reward_by_policy(block):
                for j in range(J - 1):
                    by_policy[:, j] += factor * (weighted * gap[:, [j]]).T @ columns
            if form.regresses_next:
                ahead, phi = next_value(block), block.phi[block.followed]
                for j in range(J):
                    chosen = block.choice[block.followed] == j
                    next_values[j] += (phi[chosen] * weight[chosen, None]).T @ ahead[chosen]
        return RewardSums(
            gram=gram,
            inner=inner,
            normal=normal,
            product=product,
            by_values=by_values,
            by_policy=by_policy.reshape(K, -1),
            information=information,
            next_values=next_values,
        )

    def _rewards(self, block: RowBlock) -> tuple[FloatArray, FloatArray]:
        """Return features (m, K) of the choices taken, and their reward less its known part."""
        rows = block.followed
        choice, reference = block.choice[rows], block.reference[rows]
        x = block.x[rows][np.arange(len(rows)), choice]
        odds = block.logs[rows, choice] - block.logs[rows, reference]
        known = block.base[rows, choice] + np.where(choice == reference, block.paid[rows], 0.0)
        return x, self.form.reward(block, odds) - known

    def _normalised(
        self, block: RowBlock, x: FloatArray, H: FloatArray, law: FloatArray
    ) -> FloatArray:
        """Return ``z`` (m, K); ``x`` itself where the references have no features."""
        return self.form.normalised(block, x, H, law) if H.any() else x

    # influence -------------------------------------------------------------------------------

    def _influence(
        self,
        block: RowBlock,
        theta: FloatArray,
        H: FloatArray,
        law: FloatArray,
        L_c: FloatArray,
        L_e: FloatArray,
    ) -> FloatArray:
        """Return what each row adds to the equations of ``theta`` (n, K), through all steps."""
        shift = H @ theta
        if shift.any():
            n = np.arange(len(block.phi))
            g = block.g + block.x[n, block.reference] @ theta
            block = self.form.earning(block, g, shift, theta)
        x, r = self._rewards(block)
        z = self._normalised(block, x, H, law)
        by_row = self._first_stage_influence(block, L_c, L_e)
        by_row[block.followed] += z * (r - x @ theta)[:, None]
        return by_row

    def _first_stage_influence(
        self, block: RowBlock, L_c: FloatArray, L_e: FloatArray
    ) -> FloatArray:
        """Return what rows' misses in Q and P do to ``sum x r`` (n, K)."""
        by_row, G = np.zeros((len(block.phi), len(L_c))), self.sieve.size
        used = self.form.value_rows(block)
        value, value_next = self.form.value_taken(block, used), block.value_next[used.chosen]
        miss = self.form.target(block, used) - value + self.model.beta * value_next
        by_row[used.rows] += (used.f * miss[:, None]) @ L_c.T
        gap = taken(block.choice, self.J) - block.probabilities[:, 1:]
        for j in range(self.J - 1):
            by_row += gap[:, [j]] * (block.phi @ L_e[:, j * G : (j + 1) * G].T)
        return by_row

    def _information(self, block: RowBlock) -> FloatArray:
        """Return the sieve logit's information at the rows' probabilities."""
        J, G = self.J, self.sieve.size
        pi, out = block.probabilities, np.zeros((J - 1, G, J - 1, G))
        for a in range(J - 1):
            for b in range(J - 1):
                weight = block.weight * pi[:, a + 1] * ((a == b) - pi[:, b + 1])
                out[a, :, b] = (block.phi * weight[:, None]).T @ block.phi
        return out.reshape((J - 1) * G, -1)


def project(sums: RewardSums, names: tuple[str, ...]) -> FloatArray:
    """Return ``theta``, the projection of the reward on the features.

    Raises
    ------
    IdentificationError
        Features that are collinear where there are rows, or that the reference earns alike.
    """
    left, before = np.diag(sums.inner), np.diag(sums.gram)
    dead = [n for n, v, x in zip(names, left, before, strict=True) if v <= DEAD * x or x <= 0]
    flat = [] if dead else Identification.of(names, sums.inner).flat
    if flat or dead:
        raise IdentificationError(
            "the reward cannot be projected on features that are collinear where there are"
            f" rows, or that the anchor (or a contract's only choice) earns alike:"
            f" {'; '.join(flat) if flat else ', '.join(map(repr, dead))}. Drop one of them or"
            " combine them"
        )
    return solved(sums.normal, sums.product)
