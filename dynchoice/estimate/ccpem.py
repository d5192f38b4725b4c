"""CCPEM: finite mixtures of unobserved types, with NFXP or CCPs inside."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.estimate.ccp import CCP
from dynchoice.estimate.estimator import FitOptions
from dynchoice.estimate.finite_dependence import DependentLikelihood
from dynchoice.estimate.first_stage import FirstStage
from dynchoice.estimate.nfxp import NFXP
from dynchoice.estimate.optimise import Optimization, maximise
from dynchoice.estimate.two_step import TwoStepEstimator, check_valuation
from dynchoice.estimate.types.em import EM, EMState, FullInner, PseudoInner, opening_posteriors
from dynchoice.estimate.types.histories import Histories, histories
from dynchoice.estimate.types.mixture import (
    MixtureEvaluation,
    MixtureLikelihood,
    TypeLayout,
    share_features,
    share_probabilities,
)
from dynchoice.estimate.types.mixture_report import MixtureEstimate, mixture_results
from dynchoice.inference.compare import Comparison, compare
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts, MemberCells
from dynchoice.panel.states import as_floats
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.model.utility import Utility
    from dynchoice.panel.panel import Panel

INNER = ("NFXP", "CCP")
BURN_IN = 15
"""EM steps of every start before the best one is carried to the maximum."""
MAX_EM = 2000
EM_TOL = 1e-6


class CCPEM(TwoStepEstimator[MixtureResults]):
    """Mixture of unobserved types by expectation-maximisation (Arcidiacono and Miller 2011).

    Parameters
    ----------
    model : DDC
    data : Panel or Counts
        With members' histories (``member_limit``).
    types : int
        Number of types ``Q``; 1 is the model without types.
    varying : sequence of str, optional
        Parameters of their own for each type; the others are shared. Default: all.
    inner : {"NFXP", "CCP"}
        M-steps with the model solved for each type, or with choice probabilities of each type in
        place of solutions. Except by finite dependence both have the maximum of the mixture's
        likelihood as their fixed point, and Newton steps with the exact Hessian take the result
        there: EM is slow in the last digits.
    shares : str
        Type shares given the first state seen: ``"constant"``, or a formula over the axes for a
        multinomial logit (the initial-condition problem: histories that do not start at birth
        have selected types into states).
    first_stage, valuation, beta, dependence
        With CCPs inside, as in :class:`dynchoice.CCP`; ``"exact"`` updates the probabilities from
        the model, ``"finite-dependence"`` re-estimates them by type.

    Raises
    ------
    SpecificationError
        Options that do not fit; counts without members' histories.

    Notes
    -----
    Types are ordered by their first varying parameter, smallest first. Standard errors with
    ``inner="NFXP"`` carry the first stage; with CCPs by finite dependence the first-stage
    probabilities have no zero Jacobian and only ``cov_type="bootstrap"`` carries them (the summary
    says so).

    References
    ----------
    Arcidiacono and Miller (2011), Econometrica 79. Louis (1982), JRSS B 44.
    """

    name = "CCPEM"
    defaults: ClassVar[Mapping[str, Any]] = {"starts": 5, "seed": 0}
    several_starts = True

    def __init__(
        self,
        model: DDC,
        data: Panel | Counts,
        *,
        types: int = 2,
        varying: Sequence[str] | None = None,
        inner: str = "NFXP",
        shares: str = "constant",
        first_stage: str | Utility = "smoothed",
        valuation: str = "exact",
        beta: str | None = None,
        dependence: int = 2,
    ) -> None:
        self.types = checks.whole(types, "types", 1)
        checks.one_of(inner, "inner", INNER)
        if valuation == "simulation":
            raise SpecificationError(
                f"valuation={valuation!r}: CCPs inside take 'exact' or 'finite-dependence'"
            )
        if inner == "CCP":
            check_valuation("inner='CCP'", model, valuation, beta)
        elif valuation != "exact":
            raise SpecificationError(f"valuation={valuation!r} needs inner='CCP'")
        elif beta is not None:
            raise SpecificationError(
                f"beta={beta!r}: only 'estimate', with inner='CCP' and finite dependence"
            )
        self.inner, self.valuation, self.dependence = inner, valuation, dependence
        self.options = {
            "types": self.types,
            "varying": varying,
            "inner": inner,
            "shares": shares,
            "first_stage": first_stage,
            "valuation": valuation,
            "beta": beta,
            "dependence": dependence,
        }
        self._read(model, data, first_stage)
        self.first: FirstStage = self._first
        self.members = self._member_cells()
        self.counts = replace(self.counts, members=self.members, _cache={})
        self.data: Histories = histories(self.members, model.horizon is not None)
        self._phi, names = share_features(model, shares, self.data)
        extra = ("beta",) if beta is not None else ()
        self._dependent_part: DependentLikelihood | None = None
        self.layout = TypeLayout.of(model.names, varying, self.types, names, extra)
        S, J, _ = model.shape
        self.shape = (S, J) if model.horizon is None else (model.horizon, S, J)

    def _member_cells(self) -> MemberCells | None:
        if self.model.horizon is None or self.counts.members is None:
            return self.counts.members
        if self.counts.members.cells.shape[1] > 5:
            return self.counts.members
        if self.panel is None:
            raise SpecificationError(
                "types at a finite horizon need the Panel: its Counts keep no periods by member"
            )
        return self.panel.member_cells(by_period=True)

    def estimate(self, options: FitOptions) -> MixtureResults:
        """Return the maximum of the mixture's likelihood, or EM's fixed point with CCPs inside.

        ``tol`` and ``maxiter`` are of the Newton steps at the end; with CCPs inside, EM stops when
        no parameter moves by more than 1e-6. The first starting point comes from members' scores at
        the fit without types, the others are random; the best after a few EM steps is carried on.
        """
        state, trace = self._em(options)
        if self.valuation == "exact":
            return self._maximise_mixture(state, trace, options)
        return self._by_ccp(state, trace, options)

    # EM --------------------------------------------------------------------------------------

    def _dependent(self) -> DependentLikelihood:
        """Return the pseudo-likelihood of all members, made once."""
        if self._dependent_part is None:
            n = self.data.counts(np.ones(len(self.data.weight)), self.shape)
            model, free = self.first.model, bool(self.layout.extra)
            part = DependentLikelihood(model, n, self.dependence, free)
            if part.dropped:
                raise SpecificationError(
                    f"finite dependence leaves out {part.dropped:,.0f} member-months: a history"
                    " needs all its choices. Use valuation='exact' or inner='NFXP'"
                )
            self._dependent_part = part
        return self._dependent_part

    def _make_inner(self) -> Any:
        if self.inner == "NFXP":
            return FullInner(self.first.model, self.data, self.layout)
        return PseudoInner(
            self.first.model,
            self.data,
            self.layout,
            self._stage,
            self._dependent() if self.valuation == "finite-dependence" else None,
        )

    def _em(self, options: FitOptions) -> tuple[EMState, tuple[dict[str, Any], ...]]:
        """Run EM from every start and return the best, carried on where CCPs are inside."""
        start, tol, maxiter = options.start, options.tol, options.maxiter
        progress = options.progress
        L, G = self.layout, self._phi.shape[1]
        gamma = np.zeros((L.types - 1, G))
        dependent = self.valuation == "finite-dependence"
        if start is not None and (dependent or np.ndim(start) == 2):
            base, _, _ = self._without_types(tol, maxiter)
            opening = [self._posteriors(start)]
        elif start is not None:
            theta = self._vector(start)
            opening = [self._posterior_at(theta)]
            base = self._utilities(theta)
            gamma = L.shares(theta)
        else:
            base, scores, variance = self._without_types(tol, maxiter)
            opening = [np.ones((len(self.data.weight), 1))]
            if L.types > 1:
                opening = opening_posteriors(
                    scores, variance, L.types, options.starts, options.seed
                )
        trace, runs = [], []
        for i, post in enumerate(opening):
            em = EM(self.data, L, self._phi, self._make_inner(), self.shape)
            state = EMState(base.copy(), gamma.copy(), post, -np.inf)
            burn = BURN_IN if len(opening) > 1 or self.inner == "NFXP" else 1
            state = em.run(state, EM_TOL, burn, progress=progress)
            runs.append((em, state))
            trace.append({"start": i, "loglik": state.loglik, "params": state.params})
        best = int(np.argmax([s.loglik for _, s in runs]))
        em, state = runs[best]
        if self.inner == "CCP" and not state.converged:
            state = em.run(state, EM_TOL, MAX_EM, progress=progress)
        return state, tuple(trace)

    def _vector(self, start: Any) -> FloatArray:
        names = self.layout.names
        if hasattr(start, "to_dict"):
            start = start.to_dict()
        if isinstance(start, dict):
            checks.known(start, names, "start: parameter")
            missing = [n for n in names if n not in start]
            if missing:
                raise SpecificationError(f"start: parameter {missing[0]!r} has no value")
            start = [start[n] for n in names]
        theta = as_floats(start, "start")
        if theta.shape != (len(names),) or not np.isfinite(theta).all():
            raise SpecificationError(
                f"start: {len(names)} finite parameters are needed ({', '.join(names)}), got shape"
                f" {theta.shape}"
            )
        return theta

    def _posteriors(self, start: Any) -> FloatArray:
        """Return posteriors by history from those by member."""
        posteriors = as_floats(start, "start")
        members = len(self.data.member)
        good = posteriors.shape == (members, self.types) and np.isfinite(posteriors).all()
        if not good or (np.abs(posteriors.sum(axis=1) - 1) > 1e-6).any() or posteriors.min() < 0:
            raise SpecificationError(
                "start: with finite dependence pass posteriors by member, shape"
                f" ({members:,}, {self.types}), rows that sum to one; got shape {posteriors.shape}"
            )
        out = np.empty((len(self.data.weight), self.types))
        out[self.data.member] = posteriors
        return out

    def _utilities(self, theta: FloatArray) -> FloatArray:
        """Return what the inner M-step works on: utilities of all types, then extras."""
        E = len(self.layout.extra)
        return np.r_[theta[: self.layout.utility], theta[len(theta) - E :]]

    def _posterior_at(self, theta: FloatArray) -> FloatArray:
        model = self.first.model
        likelihood = MixtureLikelihood(model, self.data, self.layout, self._phi)
        return likelihood.evaluate(theta).post

    def _without_types(self, tol: float, maxiter: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the fit without types in every type's place, members' scores and variances."""
        model, L = self.first.model, self.layout
        one = TypeLayout(model.names, L.varying, 1, L.share_names, L.extra)
        n = self.data.counts(np.ones(len(self.data.weight)), self.shape)
        if self.inner == "CCP" and self.valuation == "finite-dependence":
            part = self._dependent().copy()
            part.set_probabilities(self._stage.estimate(model, n.reshape(-1, n.shape[-1])).P)
            zero = np.zeros(len(model.names) + len(L.extra))
            zero[len(model.names) :] = model.beta
            evaluation, status = maximise(part.evaluate, part.hessian, zero, part.total, tol=1e-6)
            table = part.by_state(evaluation.dlogp).reshape(*self.shape, -1)
            P = part.by_state(evaluation.P[:, :, None]).reshape(self.shape)
            params = evaluation.params
        else:
            data = self.counts if self.panel is None else self.panel
            estimator = (NFXP if self.inner == "NFXP" else CCP)(self.model, data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = estimator.fit(cov_type="unadjusted", tol=max(tol, 1e-6), maxiter=maxiter)
            mixture = MixtureLikelihood(model, self.data, replace(one, extra=()), self._phi)
            evaluation = mixture.parts[0].evaluate(fit.theta)
            table, P, params = evaluation.dlogp, evaluation.P, fit.theta
        table = table[..., [model.names.index(v) for v in L.varying]]
        scores = self.data.sums(table)
        spread = (P[..., None] * table**2).sum(axis=-2, keepdims=True) * np.ones_like(table)
        variance = self.data.sums(spread)
        wide = np.zeros(L.utility + len(L.extra))
        for q in range(L.types):
            wide[L.places(q)] = params[: len(model.names)]
        wide[L.utility :] = params[len(model.names) :]
        return wide, scores, variance

    def _sort_types(self, theta: FloatArray) -> tuple[FloatArray, IntArray]:
        """Return the vector with types in order of their first varying parameter."""
        L = self.layout
        if L.types == 1:
            return theta, np.zeros(1, dtype=np.int64)
        k = L.model_names.index(L.varying[0])
        first = np.array([theta[L.places(q)][k] for q in range(L.types)])
        order = np.argsort(first, kind="stable")
        return L.relabelled(theta, order), order

    # results ----------------------------------------------------------------------------------

    def _maximise_mixture(
        self,
        state: EMState,
        trace: tuple[dict[str, Any], ...],
        options: FitOptions,
    ) -> MixtureResults:
        """Take EM's best point to the maximum of the likelihood, and report."""
        L = self.layout
        theta, _ = self._sort_types(np.r_[state.params, state.gamma.reshape(-1)])
        likelihood = MixtureLikelihood(self.first.model, self.data, L, self._phi)
        best, optimization = maximise(
            likelihood.evaluate,
            likelihood.hessian,
            theta,
            likelihood.total,
            tol=options.tol,
            maxiter=options.maxiter,
        )
        evaluation: MixtureEvaluation = best
        hessian = likelihood.hessian(evaluation)
        cross = None
        label = "none: transitions given"
        if self.first.estimates and self.model.beta > 0:
            if self.model.horizon is None:
                cross = likelihood.transition_derivative(evaluation)
                label = "included"
            else:
                label = "NOT included: use cov_type='bootstrap'"
        estimate = MixtureEstimate(
            theta=evaluation.params,
            loglik=evaluation.loglik,
            post=evaluation.post,
            hessian=hessian,
            outer=evaluation.outer,
            by_history=evaluation.by_history,
            cross=cross,
            label=label,
            optimization=optimization,
            trace=trace,
            iterations=state.iterations,
            each=evaluation.each,
        )
        return mixture_results(self, estimate, options)

    def _by_ccp(
        self,
        state: EMState,
        trace: tuple[dict[str, Any], ...],
        options: FitOptions,
    ) -> MixtureResults:
        """Report the fixed point of EM with CCPs by finite dependence inside."""
        L, E = self.layout, len(self.layout.extra)
        utilities = state.params[: len(state.params) - E] if E else state.params
        theta = np.r_[utilities, state.gamma.reshape(-1), state.params[L.utility :]]
        theta, order = self._sort_types(theta)
        post = state.post[:, order]
        converged = state.converged
        message = (
            f"converged: no parameter moves by more than {EM_TOL:.0e} in an EM step"
            if converged
            else f"not converged: parameters still move after {state.iterations} EM steps"
        )
        status = Optimization(
            converged=converged,
            message=message,
            iterations=state.iterations,
            evaluations=state.iterations,
            gradient=np.nan,
            decrement=np.nan,
            start=np.zeros(0),
        )
        by_history, hessian = self._pseudo_scores(state, theta, order)
        weighted = by_history * self.data.weight[:, None]
        estimate = MixtureEstimate(
            theta=theta,
            loglik=float("nan"),
            post=post,
            hessian=hessian,
            outer=weighted.T @ by_history,
            by_history=by_history,
            label="choice probabilities NOT included: use cov_type='bootstrap'",
            optimization=status,
            trace=trace,
            iterations=state.iterations,
            pseudo=state.loglik,
        )
        return mixture_results(self, estimate, options)

    def _pseudo_scores(
        self, state: EMState, theta: FloatArray, order: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return histories' scores (N, P) of the pseudo-mixture at the fixed point, and its BHHH
        information with the opposite sign."""
        L, Q = self.layout, self.layout.types
        inner = self._make_inner()
        counts = [self.data.counts(state.post[:, q], self.shape) for q in range(Q)]
        inner.step(state.params, counts)
        share = share_probabilities(self._phi, state.gamma)
        out = np.zeros((len(self.data.weight), len(theta)))
        new = {int(old): q for q, old in enumerate(order)}
        G = self._phi.shape[1]
        for old in range(Q):
            q = new[old]
            part, now = inner.parts[old], inner.now[old]
            table = part.by_state(now.dlogp).reshape(*self.shape, -1)
            score = self.data.sums(table) * state.post[:, old, None]
            K = len(L.model_names)
            out[:, L.places(q)] += score[:, :K]
            if L.extra:
                out[:, -len(L.extra) :] += score[:, K:]
            if q > 0:
                first = L.utility + (q - 1) * G
                gap = (state.post[:, old] - share[:, old])[:, None]
                out[:, first : first + G] += gap * self._phi
        weighted = out * self.data.weight[:, None]
        return out, -(weighted.T @ out)


def select_types(
    model: DDC,
    data: Panel | Counts,
    types: Sequence[int] = (1, 2, 3),
    *,
    fit: dict[str, Any] | None = None,
    **options: Any,
) -> Comparison:
    """Fit mixtures with several numbers of types, side by side.

    Parameters
    ----------
    types : sequence of int
    fit : mapping, optional
        Options of :meth:`CCPEM.fit`, for instance ``{"starts": 10, "seed": 1}``.
    **options
        Of :class:`CCPEM`.

    Returns
    -------
    Comparison
        Labels ``"1 type"``, ``"2 types"`` ...; ``.best()`` is the one with the smallest BIC among
        those that converged (too many types do not, and say so).
    """
    fits = {
        f"{q} type{'s' * (q > 1)}": CCPEM(model, data, types=q, **options).fit(**(fit or {}))
        for q in types
    }
    return compare(fits)
