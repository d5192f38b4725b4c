"""TD-CCP: a pseudo-likelihood whose values come from temporal differences, without laws of motion.

Utility is linear, ``u = x(s,a)'theta``. With ``f(s,a)`` a linear basis, ``e = -log pi`` and primes
the member's next row,

    omega = {sum f (f - beta f')'}^{-1} sum f beta x'',   h(s,a) = x + f'omega,
    xi    = {sum f (f - beta f')'}^{-1} sum f beta e',    g(s,a) = f'xi

(a known part of the utility stands beside ``e'``) estimate the discounted sums of features and of
entropies that follow ``(s,a)`` (the semi-gradient of temporal differences, whose fixed point is one
solve; what is earned today is known and stays out of the basis), and ``theta`` maximises
``sum log softmax_a(h(s,a)'theta + g(s,a))``. Only ``(s, a, s', a')`` are used.

The scores are corrected to be locally robust (in the standard errors; with ``robust=True`` in the
estimate, cross-fitted, too): what a row adds to omega and xi adds to them through
``Gamma f (beta (x' theta + e') - (f - beta f')'v)``, ``v = omega theta + xi``. The first stage
``pi`` needs no correction: entropy is at its maximum there (Adusumilli and Eckardt 2025).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    IdentificationError,
    SpecificationError,
)
from dynchoice.estimate.choice_logit import ChoiceLogit
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.rewards.learners import deal_folds, named_fold
from dynchoice.estimate.rewards.row_bootstrap import RowsEstimator, clustered
from dynchoice.estimate.rewards.rows import (
    SievedRows,
    ValueSystem,
    add_by_member,
    check_row_data,
    solved,
)
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.reward_results import RewardResults
from dynchoice.model.reward import RewardModel
from dynchoice.model.sieve import log_softmax
from dynchoice.panel.trajectories import Trajectories
from dynchoice.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class Step:
    """Some rows: basis, features, choices; and those among them with a next row."""

    rows: slice
    phi: FloatArray
    x: FloatArray
    base: FloatArray
    choice: IntArray
    weight: FloatArray
    offered: BoolArray | None
    followed: IntArray
    """Positions of the m rows whose continuation is observed."""
    phi_next: FloatArray
    choice_next: IntArray
    e_next: FloatArray
    """``-log pi(a'|s')`` and the known part of the utility; 0 after a terminal row."""
    x_next: FloatArray
    """Features of the next row's choice (m, K); 0 after a terminal row."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where the scores are zero.

    Attributes
    ----------
    theta : FloatArray, shape (K,)
    slope : FloatArray, shape (K, K)
        Minus the scores' derivative.
    sums : FloatArray, shape (N_members, K)
        Every member's locally robust score.
    weight : FloatArray, shape (N_members,)
    omega, xi : FloatArray, shape (D, K) and (D,)
    """

    theta: FloatArray
    slope: FloatArray
    sums: FloatArray
    weight: FloatArray
    omega: FloatArray
    xi: FloatArray
    converged: bool = True
    message: str = ""

    @property
    def values(self) -> FloatArray:
        """Coefficients (D,) of the discounted sums that follow a state and choice."""
        return np.asarray(self.omega @ self.theta + self.xi)


class TDCCP(RowsEstimator):
    """Conditional choice probabilities by temporal differences (Adusumilli and Eckardt 2025).

    Parameters
    ----------
    model : RewardModel
        Its features are those of the utility, zero for the anchor.
    data : Trajectories
    degree : int
        Highest power in the basis ``f`` of values, which every choice has for itself.
    pairs : bool, optional
        Products of two features in it. Default: up to 8 features.
    policy_degree : int, optional
        Of the first-stage probabilities' sieve. Default: ``degree``.
    ahead : sequence of str, optional
        Features of the state on which its future depends once the choice is given; the basis is
        of these only. (What was chosen last month, where it only moves today's cost, is none.)
    robust : bool
        Whether ``theta`` solves the locally robust moment, cross-fitted over two halves of the
        members (``fit(seed=)`` says which): choice probabilities and values of one half, scores of
        the other. Errors of values then enter by products only; it costs precision in small
        samples. Default: the pseudo-likelihood's own maximum.
    followed : bool
        Whether only rows with a next one enter the pseudo-likelihood, as in the paper. Default:
        all rows do.

    Raises
    ------
    SpecificationError
        Other data; choices that differ.
    IdentificationError
        Values that the rows do not determine; parameters that move no choice.

    Notes
    -----
    With a full set of cell dummies this is the classical estimator by cells. Standard errors treat
    the basis as flexible enough (Ackerberg, Chen and Hahn 2012) and are clustered by member.

    References
    ----------
    Adusumilli and Eckardt (2025), Temporal-difference estimation of dynamic discrete choice models.
    """

    name = "TDCCP"

    def __init__(
        self,
        model: RewardModel,
        data: Trajectories,
        *,
        degree: int = 2,
        pairs: bool | None = None,
        policy_degree: int | None = None,
        ahead: Sequence[str] | None = None,
        followed: bool = False,
        robust: bool = False,
    ) -> None:
        check_row_data(self.name, model, data)
        if model.reward != 0:
            raise SpecificationError("TDCCP: the anchor's reward is zero; drop reward=")
        self.model, self.rows = model, data
        self.options: dict[str, Any] = {
            "degree": degree,
            "pairs": pairs,
            "policy_degree": policy_degree,
            "ahead": ahead,
            "followed": followed,
            "robust": robust,
        }
        self.values = SievedRows(model, data, degree, pairs, ahead)
        power = degree if policy_degree is None else policy_degree
        same = power == degree and ahead is None
        self.policy = self.values if same else SievedRows(model, data, power, pairs)

    def on(self, rows: Trajectories) -> Self:
        """Return the same estimator on other rows."""
        return type(self)(self.model, rows, **self.options)

    def estimate_rows(self, options: FitOptions) -> RewardResults:
        """Return the maximum of the pseudo-likelihood, or the robust moment's solution."""
        from dynchoice import __version__

        report = options.progress or (lambda done, total, text: None)
        report(0, 3, "choice probabilities")
        policy = self.policy.policy(options.tol, options.maxiter)
        report(1, 3, "values")
        system, omega, xi = self._differences(policy)
        report(2, 3, "pseudo-likelihood")
        theta, H, gamma, steps, size, loglik = self._maximise(
            policy, omega, xi, options.tol, options.maxiter
        )
        converged = size <= options.tol * 100 and policy.converged
        message = (
            f"converged: {steps} steps, scaled gradient {size:.1e}"
            if converged
            else f"not converged: scaled gradient {size:.1e} after {steps} steps"
        )
        if not converged:
            _warn_or_raise(message, options)
        note = (
            "The log-likelihood is a pseudo-likelihood: values are those of the estimated"
            " probabilities"
        )
        if self.options["robust"]:
            report(2, 3, "robust moment")
            moment = self._robust(theta, options)
            converged = converged and moment.converged
            message = f"{message}; robust moment: {moment.message}"
            note += "; the parameters solve the locally robust moment, cross-fitted over two halves"
            if not moment.converged:
                _warn_or_raise(message, options)
        else:
            sums, weight = self._influence(policy, omega, xi, theta, system, gamma)
            moment = Moment(theta=theta, slope=H, sums=sums, weight=weight, omega=omega, xi=xi)
        sums = solved(moment.slope, moment.sums.T).T
        errors = clustered(self.rows, sums, moment.weight, options.cluster)
        report(3, 3, "done")
        return RewardResults(
            estimator=self.name,
            model=self.model,
            features=self.rows.features,
            names_=self.values.features()[1],
            theta=moment.theta,
            cov_matrix=errors.cov,
            cov_type="clustered",
            cov_config=errors.config,
            influence=errors.influence,
            loglik=loglik,
            loglik_null=policy.loglik_null,
            nobs=self.rows.nobs,
            nmembers=self.rows.nmembers,
            converged=converged,
            message=message,
            optimization={
                "iterations": steps,
                "gradient": size,
                "condition": system.condition,
                "contraction": self.model.beta * system.radius,
            },
            sieve=self.values.sieve,
            policy_coefficients=policy.coefficients,
            value_coefficients=moment.values.reshape(len(self.model.choices), -1),
            ahead_coefficients=np.zeros((0, 0)),
            data_digest=self.rows.digest,
            package_version=__version__,
            seed=options.seed,
            form="linear",
            notes=(note,),
            uses=self._uses(),
        )

    def _uses(self) -> dict[str, float]:
        """Return what of the rows the estimate rests on."""
        return {
            "share": self.values.followed if self.options["followed"] else 1.0,
            "rows with a next one": self.values.followed,
            "anchor rows": float(self.values.anchored),
            "anchor share": self.values.share,
        }

    # rows ------------------------------------------------------------------------------------

    def _steps(self, policy: ChoiceLogit) -> Iterator[Step]:
        rows, values = self.rows, self.values
        for block in rows.blocks():
            table, table_next = values.table(block.x), values.table(block.x_next)
            choice_next = rows.choice[rows.next[block.rows][block.moved]]
            logs = policy.log_probabilities(
                self.policy.sieve(block.x_next), self.model.offered(table_next)
            )
            x, each = self.model.design(table)[0], np.arange(len(table_next))
            earned = self.model.base(table_next)[each, choice_next] - logs[each, choice_next]
            followed = np.sort(np.r_[block.moved, np.flatnonzero(block.ended)])
            # what belongs to next rows is put beside the rows they follow, zero elsewhere
            place, m = np.searchsorted(followed, block.moved), len(followed)
            phi_next, x_next = np.zeros((m, values.sieve.size)), np.zeros((m, x.shape[2]))
            to, e_next = np.zeros(m, dtype=np.int64), np.zeros(m)
            phi_next[place], to[place] = values.sieve(block.x_next), choice_next
            e_next[place] = earned
            x_next[place] = self.model.design(table_next)[0][each, choice_next]
            yield Step(
                rows=block.rows,
                phi=values.sieve(block.x),
                x=x,
                base=self.model.base(table),
                choice=block.choice,
                weight=self._weights(block.weight, followed),
                offered=self.model.offered(table),
                followed=followed,
                phi_next=phi_next,
                choice_next=to,
                e_next=e_next,
                x_next=x_next,
            )

    def _weights(self, weight: FloatArray, followed: IntArray) -> FloatArray:
        """Return the rows' weights; 0 for those that are not followed, where they are left out."""
        if not self.options["followed"]:
            return weight
        out = np.zeros_like(weight)
        out[followed] = weight[followed]
        return out

    def _columns(self, phi: FloatArray, choice: IntArray) -> FloatArray:
        """Return ``f(s,a)`` (n, J G): the basis in the place of the choice."""
        out = np.zeros((len(phi), len(self.model.choices), phi.shape[1]))
        out[np.arange(len(phi)), choice] = phi
        return out.reshape(len(phi), -1)

    def _differences(self, policy: ChoiceLogit) -> tuple[ValueSystem, FloatArray, FloatArray]:
        """Return the system of ``sum f (f - beta f')'``, ``omega`` (D, K) and ``xi`` (D,)."""
        J, G, beta = len(self.model.choices), self.values.sieve.size, self.model.beta
        K, _ = self.values.features()
        M, N, b = np.zeros((J * G, J * G)), np.zeros((J * G, J * G)), np.zeros((J * G, K + 1))
        for s in self._steps(policy):
            f = self._columns(s.phi[s.followed], s.choice[s.followed])
            fw = f * s.weight[s.followed, None]
            M += fw.T @ f
            N += fw.T @ self._columns(s.phi_next, s.choice_next)
            b += beta * (fw.T @ np.column_stack([s.x_next, s.e_next]))
        system = ValueSystem.of(M, N, beta, "values of features and entropies")
        both = system.solve(b)
        return system, both[:, :-1], both[:, -1]

    # pseudo-likelihood -----------------------------------------------------------------------

    def _at(
        self, s: Step, omega: FloatArray, xi: FloatArray, theta: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return features ``h`` (n, J, K), probabilities and their logs at ``theta``."""
        n, G = s.phi.shape
        J, K = len(self.model.choices), omega.shape[1]
        ahead = s.phi @ np.moveaxis(omega.reshape(J, G, K), 1, 0).reshape(G, J * K)
        h = s.x + ahead.reshape(n, J, K)
        index = h @ theta + s.base + s.phi @ xi.reshape(J, G).T
        logs = log_softmax(index, s.offered)
        pi = np.exp(logs) if s.offered is None else np.exp(logs) * s.offered
        return h, pi, logs

    def _evaluate(
        self, policy: ChoiceLogit, omega: FloatArray, xi: FloatArray, theta: FloatArray
    ) -> tuple[float, FloatArray, FloatArray, FloatArray]:
        """Return pseudo-log-likelihood, score, information and ``Gamma`` at ``theta``."""
        D, K = omega.shape
        loglik, score, H, gamma = 0.0, np.zeros(K), np.zeros((K, K)), np.zeros((D, K))
        J, G = len(self.model.choices), self.values.sieve.size
        for s in self._steps(policy):
            h, pi, logs = self._at(s, omega, xi, theta)
            i, w = np.arange(len(h)), s.weight
            loglik += float(w @ logs[i, s.choice])
            centred = h - np.einsum("nj,njk->nk", pi, h)[:, None, :]
            score += w @ centred[i, s.choice]
            weighted = centred * (pi * w[:, None])[:, :, None]
            H += np.einsum("njk,njl->kl", weighted, centred)
            gamma += np.stack([s.phi.T @ weighted[:, j] for j in range(J)]).reshape(J * G, K)
        return loglik, score, H, gamma

    def _robust(self, theta: FloatArray, options: FitOptions) -> Moment:
        """Solve the cross-fitted moment from the pseudo-likelihood's maximum ``theta``.

        Newton steps with the slope at fixed representers; they end where the moment is zero.
        """
        rows, maxiter = self.rows, options.maxiter
        half = deal_folds(rows.nmembers, 2, 0 if options.seed is None else options.seed)
        parts = []
        for k in range(2):
            with named_fold(k, 2):
                train = self.on(rows.reweighted((half != k).astype(np.float64)))
                policy = train.policy.policy(options.tol, maxiter)
                system, omega, xi = train._differences(policy)
            score = self.on(rows.reweighted((half == k).astype(np.float64)))
            parts.append((train, score, policy, system, omega, xi))
        K, size, step = len(theta), np.inf, 0
        weight = np.ones(rows.nmembers)
        weight[rows.member] = rows.weight
        for step in range(maxiter + 1):
            slope, sums = np.zeros((K, K)), np.zeros((rows.nmembers, K))
            for train, score, policy, system, omega, xi in parts:
                gamma = train._evaluate(policy, omega, xi, theta)[3]
                slope += score._evaluate(policy, omega, xi, theta)[2]
                slope += score._slope(policy, omega, system, gamma)
                sums += score._influence(policy, omega, xi, theta, system, gamma)[0]
            moment = weight @ sums
            spread = np.sqrt((weight[:, None] * sums**2).sum(axis=0))
            size = float(np.abs(moment / np.where(spread > 0, spread, 1.0)).max())
            if size <= 1e-6 or step == maxiter:
                break
            theta = theta + solved(slope, moment)
        return Moment(
            theta=theta,
            slope=slope,
            sums=sums,
            weight=weight,
            omega=np.mean([omega for *_, omega, _ in parts], axis=0),
            xi=np.mean([xi for *_, xi in parts], axis=0),
            converged=size <= 1e-6,
            message=f"{step} steps, {size:.1e} of its standard deviation left",
        )

    def _slope(
        self, policy: ChoiceLogit, omega: FloatArray, system: ValueSystem, gamma: FloatArray
    ) -> FloatArray:
        """Return minus the derivative (K, K) of the scores' correction by ``theta``."""
        L, beta = system.solve(gamma, transposed=True), self.model.beta
        out = np.zeros((omega.shape[1], omega.shape[1]))
        for s in self._steps(policy):
            f = self._columns(s.phi[s.followed], s.choice[s.followed])
            ahead = self._columns(s.phi_next, s.choice_next)
            w = self.rows.weight[s.rows][s.followed]
            out += L.T @ ((f * w[:, None]).T @ (beta * s.x_next - (f - beta * ahead) @ omega))
        return out

    def _maximise(
        self, policy: ChoiceLogit, omega: FloatArray, xi: FloatArray, tol: float, maxiter: int
    ) -> tuple[FloatArray, FloatArray, FloatArray, int, float, float]:
        """Maximise by Newton steps: theta, information, ``Gamma`` (D, K), steps, gradient, loglik.

        ``Gamma = sum_s sum_j pi_j f_j (h_j - sum pi h)'`` is what the index moves the scores by.
        """
        theta = np.zeros(omega.shape[1])
        loglik, score, H, gamma = self._evaluate(policy, omega, xi, theta)
        flat = Identification.of(self.values.features()[1], H).flat
        if flat or (np.diag(H) <= 0).any():
            raise IdentificationError(
                "parameters move no choice, or only together: "
                + ("; ".join(flat) if flat else "a feature whose discounted sums do not differ")
            )
        steps = 0
        for steps in range(1, maxiter + 1):  # noqa: B007
            move = np.linalg.solve(H, score)
            if float(score @ move) <= tol**2 * max(self.rows.nobs, 1.0):
                break
            for halving in range(20):
                tried = self._evaluate(policy, omega, xi, theta + move / 2**halving)
                if tried[0] >= loglik - 1e-12 * abs(loglik):
                    break
            theta = theta + move / 2**halving
            loglik, score, H, gamma = tried
        size = float(np.abs(score / np.sqrt(np.diag(H) * max(self.rows.nobs, 1.0))).max())
        return theta, H, gamma, steps, size, loglik

    def _influence(
        self,
        policy: ChoiceLogit,
        omega: FloatArray,
        xi: FloatArray,
        theta: FloatArray,
        system: ValueSystem,
        gamma: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Return every member's locally robust score (N, K) and weight (N,)."""
        K, beta, v = len(theta), self.model.beta, omega @ theta + xi
        # the score falls as the index of a choice rises: - Gamma' A^{-1}
        L = system.solve(gamma, transposed=True)
        sums, weight = np.zeros((self.rows.nmembers, K)), np.ones(self.rows.nmembers)
        for s in self._steps(policy):
            h, pi, _ = self._at(s, omega, xi, theta)
            by_row = h[np.arange(len(h)), s.choice] - np.einsum("nj,njk->nk", pi, h)
            by_row *= (s.weight > 0)[:, None]
            f = self._columns(s.phi[s.followed], s.choice[s.followed])
            ahead = self._columns(s.phi_next, s.choice_next)
            miss = beta * (s.x_next @ theta + s.e_next) - (f - beta * ahead) @ v
            row_weight = self.rows.weight[s.rows]
            counts = row_weight[s.followed] > 0
            by_row[s.followed] -= (f * (miss * counts)[:, None]) @ L
            add_by_member(sums, weight, self.rows.member[s.rows], by_row, row_weight)
        return sums, weight


def _warn_or_raise(message: str, options: FitOptions) -> None:
    if options.strict:
        raise ConvergenceError(message)
    warnings.warn(f"TDCCP: {message}", ConvergenceWarning, stacklevel=3)


def report_failure(message: str, strict: bool) -> None:
    """Raise, if strict, or warn that a step stopped before its criterion."""
    if strict:
        raise ConvergenceError(message)
    warnings.warn(f"TDCCP: {message}", ConvergenceWarning, stacklevel=6)
