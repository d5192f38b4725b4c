"""CCPEM: finite mixtures of unobserved types, with NFXP or CCPs inside."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    SpecificationError,
    suggest,
)
from dynchoice.estimate import first_stage as laws_of_motion
from dynchoice.estimate.ccp import CCP, VALUATIONS
from dynchoice.estimate.choice_probabilities import FirstStageChoice
from dynchoice.estimate.dependent import DependentLikelihood
from dynchoice.estimate.em import EM, EMState, FullInner, PseudoInner, opening_posteriors
from dynchoice.estimate.first_stage import FirstStage, counts_of, influence
from dynchoice.estimate.histories import Histories, histories
from dynchoice.estimate.mixture import (
    MixtureEvaluation,
    MixtureLikelihood,
    TypeLayout,
    share_probabilities,
)
from dynchoice.estimate.nfxp import NFXP
from dynchoice.estimate.optimise import Optimization, check_options, maximise
from dynchoice.estimate.resampling import resampled
from dynchoice.inference.covariance import (
    FEW_CLUSTERS,
    bucket_sums,
    check_cluster,
    check_cov_type,
    inverse,
)
from dynchoice.inference.mixture import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts, MemberCells
from dynchoice.solve.linear import one_blas_thread
from dynchoice.typing import FloatArray, IntArray, Progress

INNER = ("NFXP", "CCP")
BURN_IN = 15
"""EM steps of every start before the best one is carried to the maximum."""
MAX_EM = 2000
EM_TOL = 1e-6


class CCPEM:
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
        ``"NFXP"``: the mixture's likelihood, carried from EM to its maximum by Newton steps with
        the exact Hessian. ``"CCP"``: choice probabilities of each type in place of solutions.
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

    def __init__(
        self,
        model: DDC,
        data: Any,
        *,
        types: int = 2,
        varying: Sequence[str] | None = None,
        inner: str = "NFXP",
        shares: str = "constant",
        first_stage: Any = "smoothed",
        valuation: str = "exact",
        beta: str | None = None,
        dependence: int = 2,
    ) -> None:
        if isinstance(types, bool) or not isinstance(types, int) or types < 1:
            raise SpecificationError(f"types={types!r}: a positive number of types")
        if inner not in INNER:
            raise SpecificationError(
                f"inner={inner!r} is unknown.{suggest(inner, INNER)} Use 'NFXP' or 'CCP'"
            )
        if valuation not in VALUATIONS or valuation == "simulation":
            raise SpecificationError(
                f"valuation={valuation!r}: CCPs inside take 'exact' or 'finite-dependence'"
            )
        dependent = inner == "CCP" and valuation == "finite-dependence"
        if inner == "NFXP" and valuation != "exact":
            raise SpecificationError(f"valuation={valuation!r} needs inner='CCP'")
        if beta not in (None, "estimate") or (beta is not None and not dependent):
            raise SpecificationError(
                f"beta={beta!r}: only 'estimate', with inner='CCP' and finite dependence"
            )
        if inner == "CCP" and not dependent and model.horizon is not None:
            raise SpecificationError(
                "CCPs by policy inversion are for infinite horizons: use inner='NFXP' or"
                " valuation='finite-dependence'"
            )
        self.model, self.inner, self.valuation = model, inner, valuation
        self.dependence, self.types = dependence, types
        self.options = {
            "types": types,
            "varying": varying,
            "inner": inner,
            "shares": shares,
            "first_stage": first_stage,
            "valuation": valuation,
            "beta": beta,
            "dependence": dependence,
        }
        self.counts: Counts
        self.counts, self.panel = counts_of(data)
        self._stage = FirstStageChoice.of(model, first_stage)
        self._first: FirstStage = laws_of_motion.first_stage(model, self.counts, self.panel)
        self._members = self._member_cells()
        self.data: Histories = histories(self._members, model.horizon is not None)
        self._phi, names = share_features(model, shares, self.data)
        extra = ("beta",) if beta is not None else ()
        self._dependent_part: DependentLikelihood | None = None
        self.layout = TypeLayout.of(model.names, varying, types, names, extra)
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

    def again(self, counts: Counts) -> CCPEM:
        """Return the same estimator on other counts."""
        return type(self)(self.model, counts, **self.options)

    def fit(
        self,
        *,
        start: Any = None,
        cov_type: str = "clustered",
        cluster: str = "member",
        tol: float = 1e-8,
        maxiter: int = 100,
        starts: int = 5,
        draws: int = 199,
        jobs: int = 1,
        seed: int | None = 0,
        progress: Progress | None = None,
        strict: bool = False,
    ) -> MixtureResults:
        """Estimate.

        Parameters
        ----------
        start : array (P,), mapping or Series, or array (members, Q), optional
            Parameters of all types, or posteriors by member, to start from instead of ``starts``.
        cov_type, cluster, tol, maxiter, draws, jobs, progress, strict
            As in :meth:`dynchoice.NFXP.fit`; ``tol`` and ``maxiter`` are of the Newton steps at the
            end. With CCPs inside EM stops when no parameter moves by more than 1e-6.
        starts : int
            Starting points: the first from members' scores at the fit without types, the others
            at random. The best after a few EM steps is carried on; all are in
            ``optimization["starts"]``.
        seed : int
            Of the random starts and the bootstrap.

        Returns
        -------
        MixtureResults
        """
        kind = check_cov_type(cov_type)
        check_options(tol, maxiter)
        if starts < 1:
            raise SpecificationError(f"starts={starts}: at least one is needed")
        if kind == "bootstrap":
            return resampled(
                self,
                {"tol": tol, "maxiter": maxiter, "starts": starts, "start": start},
                cluster=cluster,
                draws=draws,
                jobs=jobs,
                seed=seed,
                progress=progress,
                strict=strict,
            )
        with one_blas_thread():
            state, trace = self._em(start, starts, seed, tol, maxiter, progress)
            if self.inner == "NFXP":
                return self._carried(state, trace, kind, cluster, tol, maxiter, seed, strict)
            return self._by_ccp(state, trace, kind, cluster, seed, strict)

    # EM --------------------------------------------------------------------------------------

    def _dependent(self) -> DependentLikelihood:
        """Return the pseudo-likelihood of all members, made once."""
        if self._dependent_part is None:
            n = self.data.counts(np.ones(len(self.data.weight)), self.shape)
            model, free = self._first.model, bool(self.layout.extra)
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
            return FullInner(self._first.model, self.data, self.layout)
        return PseudoInner(
            self._first.model,
            self.data,
            self.layout,
            self._stage,
            self._dependent() if self.valuation == "finite-dependence" else None,
        )

    def _em(
        self,
        start: Any,
        starts: int,
        seed: int | None,
        tol: float,
        maxiter: int,
        progress: Progress | None,
    ) -> tuple[EMState, tuple[dict[str, Any], ...]]:
        """Run EM from every start and return the best, carried on where CCPs are inside."""
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
                opening = opening_posteriors(scores, variance, L.types, starts, seed)
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
            missing = [n for n in names if n not in start]
            if missing:
                raise SpecificationError(f"start: parameter {missing[0]!r} has no value")
            start = [start[n] for n in names]
        theta = np.asarray(start, dtype=np.float64)
        if theta.shape != (len(names),) or not np.isfinite(theta).all():
            raise SpecificationError(
                f"start: {len(names)} finite parameters are needed ({', '.join(names)}), got shape"
                f" {theta.shape}"
            )
        return theta

    def _posteriors(self, start: Any) -> FloatArray:
        """Return posteriors by history from those by member."""
        given = np.asarray(start, dtype=np.float64)
        members = len(self.data.member)
        good = given.shape == (members, self.types) and np.isfinite(given).all()
        if not good or (np.abs(given.sum(axis=1) - 1) > 1e-6).any() or given.min() < 0:
            raise SpecificationError(
                "start: with finite dependence pass posteriors by member, shape"
                f" ({members:,}, {self.types}), rows that sum to one; got shape {given.shape}"
            )
        out = np.empty((len(self.data.weight), self.types))
        out[self.data.member] = given
        return out

    def _utilities(self, theta: FloatArray) -> FloatArray:
        """Return what the inner M-step works on: utilities of all types, then extras."""
        E = len(self.layout.extra)
        return np.r_[theta[: self.layout.utility], theta[len(theta) - E :]]

    def _posterior_at(self, theta: FloatArray) -> FloatArray:
        model = self._first.model
        likelihood = MixtureLikelihood(model, self.data, self.layout, self._phi)
        return likelihood.evaluate(theta).post

    def _without_types(self, tol: float, maxiter: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the fit without types in every type's place, members' scores and variances."""
        model, L = self._first.model, self.layout
        one = TypeLayout(model.names, L.varying, 1, L.share_names, L.extra)
        n = self.data.counts(np.ones(len(self.data.weight)), self.shape)
        if self.inner == "CCP" and self.valuation == "finite-dependence":
            part = self._dependent().copy()
            part.set_probabilities(self._stage.estimate(model, n.reshape(-1, n.shape[-1])).P)
            zero = np.zeros(len(model.names) + len(L.extra))
            zero[len(model.names) :] = model.beta
            at, status = maximise(part.evaluate, part.hessian, zero, part.total, tol=1e-6)
            table = part.by_state(at.dlogp).reshape(*self.shape, -1)
            P = part.by_state(at.P[:, :, None]).reshape(self.shape)
            params = at.params
        else:
            kind: Any = NFXP if self.inner == "NFXP" else CCP
            estimator = kind(self.model, self.counts if self.panel is None else self.panel)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = estimator.fit(cov_type="unadjusted", tol=max(tol, 1e-6), maxiter=maxiter)
            mixture = MixtureLikelihood(model, self.data, replace(one, extra=()), self._phi)
            at = mixture.parts[0].evaluate(fit.theta)
            table, P, params = at.dlogp, at.P, fit.theta
        del one
        where = [model.names.index(v) for v in L.varying]
        table = table[..., where]
        scores = self.data.sums(table)
        spread = (P[..., None] * table**2).sum(axis=-2, keepdims=True) * np.ones_like(table)
        variance = self.data.sums(spread)
        wide = np.zeros(L.utility + len(L.extra))
        for q in range(L.types):
            wide[L.places(q)] = params[: len(model.names)]
        wide[L.utility :] = params[len(model.names) :]
        return wide, scores, variance

    def _ordered(self, theta: FloatArray) -> tuple[FloatArray, IntArray]:
        """Return the vector with types in order of their first varying parameter."""
        L = self.layout
        if L.types == 1:
            return theta, np.zeros(1, dtype=np.int64)
        k = L.model_names.index(L.varying[0])
        own = np.array([theta[L.places(q)][k] for q in range(L.types)])
        order = np.argsort(own, kind="stable")
        return L.relabelled(theta, order), order

    # results ----------------------------------------------------------------------------------

    def _carried(
        self,
        state: EMState,
        trace: tuple[dict[str, Any], ...],
        kind: str,
        cluster: str,
        tol: float,
        maxiter: int,
        seed: int | None,
        strict: bool,
    ) -> MixtureResults:
        """Take EM's best point to the maximum of the likelihood, and report."""
        L = self.layout
        theta, _ = self._ordered(np.r_[state.params, state.gamma.reshape(-1)])
        likelihood = MixtureLikelihood(self._first.model, self.data, L, self._phi)
        best, optimization = maximise(
            likelihood.evaluate,
            likelihood.hessian,
            theta,
            likelihood.total,
            tol=tol,
            maxiter=maxiter,
        )
        at: MixtureEvaluation = best
        hessian = likelihood.hessian(at)
        cross = None
        label = "none: transitions given"
        if self._first.estimates and self.model.beta > 0:
            if self.model.horizon is None:
                cross = likelihood.transition_derivative(at)
                label = "included"
            else:
                label = "NOT included: use cov_type='bootstrap'"
        return self._results(
            at.params,
            at.loglik,
            at.post,
            hessian,
            at.outer,
            at.by_history,
            cross,
            label,
            optimization,
            trace,
            kind,
            cluster,
            seed,
            strict,
            iterations=state.iterations,
        )

    def _by_ccp(
        self,
        state: EMState,
        trace: tuple[dict[str, Any], ...],
        kind: str,
        cluster: str,
        seed: int | None,
        strict: bool,
    ) -> MixtureResults:
        """Report the fixed point of EM with CCPs inside."""
        L, E = self.layout, len(self.layout.extra)
        utilities = state.params[: len(state.params) - E] if E else state.params
        theta = np.r_[utilities, state.gamma.reshape(-1), state.params[L.utility :]]
        theta, order = self._ordered(theta)
        post = state.post[:, order]
        converged = state.converged
        message = (
            f"converged: no parameter moves by more than {EM_TOL:.0e} in an EM step"
            if converged
            else f"not converged: parameters still move after {state.iterations} EM steps"
        )
        status = Optimization(
            converged, message, state.iterations, state.iterations, np.nan, np.nan, np.zeros(0)
        )
        if self.valuation == "exact":
            likelihood = MixtureLikelihood(self._first.model, self.data, L, self._phi)
            at = likelihood.evaluate(theta)
            cross = None
            label = "none: transitions given"
            if self._first.estimates and self.model.beta > 0:
                cross, label = likelihood.transition_derivative(at), "included"
            return self._results(
                theta,
                at.loglik,
                at.post,
                likelihood.hessian(at),
                at.outer,
                at.by_history,
                cross,
                label,
                status,
                trace,
                kind,
                cluster,
                seed,
                strict,
                iterations=state.iterations,
            )
        by_history, hessian = self._pseudo_scores(state, theta, order)
        weighted = by_history * self.data.weight[:, None]
        return self._results(
            theta,
            float("nan"),
            post,
            hessian,
            weighted.T @ by_history,
            by_history,
            None,
            "choice probabilities NOT included: use cov_type='bootstrap'",
            status,
            trace,
            kind,
            cluster,
            seed,
            strict,
            iterations=state.iterations,
            pseudo=state.loglik,
        )

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

    def _results(
        self,
        theta: FloatArray,
        loglik: float,
        post: FloatArray,
        hessian: FloatArray,
        outer: FloatArray,
        by_history: FloatArray,
        cross: dict[str, FloatArray] | None,
        label: str,
        optimization: Optimization,
        trace: tuple[dict[str, Any], ...],
        kind: str,
        cluster: str,
        seed: int | None,
        strict: bool,
        *,
        iterations: int,
        pseudo: float | None = None,
    ) -> MixtureResults:
        from dynchoice import __version__

        L, data, members = self.layout, self.data, self._members
        assert members is not None
        counts = check_cluster(cluster, self.counts)
        own = by_history[data.member]
        V1 = np.zeros((len(theta),) * 2)
        if cross:
            by_cell, V1 = influence(self._first.model, self._first.estimates, cross)
            own = own + members.matrix() @ by_cell(members.cells[:, 1:])
        config: dict[str, Any] = {"first_stage_label": label, "first_stage": bool(V1.any())}
        bread, flat = inverse(outer if kind == "opg" else -hessian)
        weighted = own * members.weights[:, None]
        by_unit = None
        if kind == "opg":
            meat = outer + V1
        elif kind == "unadjusted":
            meat = -hessian + V1
        elif kind == "robust" or cluster == "member":
            meat = weighted.T @ own
            config.update(clusters=members.size, by="member")
        else:
            by_unit = bucket_sums(members.region, weighted, counts.buckets)
            meat = by_unit.T @ by_unit
            config.update(clusters=int(np.unique(members.region).size), by="region")
        if kind == "clustered":
            if by_unit is None:
                by_unit = bucket_sums(members.bucket, weighted, counts.buckets)
            config["unit"] = counts.unit
        known = np.isfinite(np.diag(bread))
        at = np.ix_(known, known)
        cov = np.full_like(bread, np.nan)
        cov[at] = bread[at] @ meat[at] @ bread[at]
        pull = None
        if by_unit is not None:
            pull = np.full_like(by_unit, np.nan)
            pull[:, known] = by_unit[:, known] @ bread[at]
        notes = list(self._first.notes)
        values = np.linalg.eigvalsh(-hessian) if pseudo is None else np.ones(1)
        converged, message = optimization.converged, optimization.message
        if converged and values[0] < -1e-8 * abs(values[-1]):
            converged = False
            message = "not converged: stationary but not at a maximum; try more starts"
        if flat.shape[1]:
            converged = False
            message = (
                "not converged: the likelihood is flat along some direction: types may be too many"
                " or parameters that vary may not be told apart (see identification())"
            )
        if config.get("clusters", FEW_CLUSTERS) < FEW_CLUSTERS:
            notes.append(f"Only {config['clusters']} clusters: standard errors are rough")
        if pseudo is not None and kind != "opg":
            notes.append(
                "Standard errors take the first-stage choice probabilities as known: use"
                " cov_type='bootstrap'"
            )
        weights = data.weight[:, None] * post
        type_shares = weights.sum(axis=0) / weights.sum()
        if type_shares.min() < 0.01:
            notes.append(
                f"The smallest type has {type_shares.min():.2%} of the members: intervals are not"
                " normal there, and fewer types may do"
            )
        if not converged:
            if strict:
                raise ConvergenceError(message)
            warnings.warn(f"{self.name}: {message}", ConvergenceWarning, stacklevel=4)
        inner = self.inner if self.valuation == "exact" else "CCP, finite dependence"
        status = {**asdict(optimization), "starts": [dict(t) for t in trace], "em": iterations}
        return MixtureResults(
            estimator=f"{self.name} ({L.types} types, {inner})",
            labels=L.names,
            theta=theta,
            cov_matrix=(cov + cov.T) / 2,
            cov_type=kind,
            cov_config=config,
            loglik=loglik,
            nobs=self.counts.nobs,
            nmembers=self.counts.nmembers,
            converged=converged,
            message=message,
            optimization=status,
            hessian=hessian,
            type_shares=type_shares,
            posteriors=post[data.member],
            by_type=self._each(theta, cov, post, kind, config, converged, message),
            data_digest=self.counts.digest,
            package_version=__version__,
            seed=seed,
            pseudo_loglik=pseudo,
            loglik_transitions=self._first.loglik,
            notes=tuple(notes),
            influence=pull,
        )

    def _each(
        self,
        theta: FloatArray,
        cov: FloatArray,
        post: FloatArray,
        kind: str,
        config: dict[str, Any],
        converged: bool,
        message: str,
    ) -> tuple[Results, ...]:
        """Return one ordinary fit a type."""
        from dynchoice import __version__

        L, model = self.layout, self._first.model
        if L.extra and 0 <= theta[-1] < 1:
            model = model.with_parts(beta=float(theta[-1]))
        out = []
        for q in range(L.types):
            where = L.places(q)
            n = self.data.counts(post[:, q], self.shape)
            flat = n if n.ndim == 2 else n.sum(axis=0)
            offered = np.log(model.available.sum(axis=1))
            out.append(
                Results(
                    estimator=f"{self.name}, type {q}",
                    model=model,
                    theta=theta[where].copy(),
                    cov_matrix=cov[np.ix_(where, where)],
                    cov_type=kind,
                    cov_config=dict(config),
                    loglik=float("nan"),
                    loglik_null=-float(flat.sum(axis=1) @ offered),
                    nobs=float(flat.sum()),
                    nmembers=round(float(self.data.weight @ post[:, q])),
                    converged=converged,
                    message=message,
                    optimization={},
                    counts=flat,
                    hessian=-np.linalg.pinv(np.nan_to_num(cov[np.ix_(where, where)])),
                    value=np.zeros(model.states.size),
                    data_digest=self.counts.digest,
                    package_version=__version__,
                    first_stage=self._first.records(),
                )
            )
        return tuple(out)


def share_features(model: DDC, shares: str, data: Histories) -> tuple[FloatArray, tuple[str, ...]]:
    """Return features of the first states (N, G) for the type shares, and their names.

    Raises
    ------
    SpecificationError
        A formula that names something other than an axis.
    """
    if shares == "constant":
        return np.ones((len(data.weight), 1)), ("1",)
    from formulaic import model_matrix

    frame = model.states.frame()
    try:
        matrix = model_matrix(shares, frame, na_action="raise")
    except Exception as error:
        raise SpecificationError(
            f"shares={shares!r}: use 'constant' or a formula over the axes"
            f" ({', '.join(frame.columns)}): {error}"
        ) from error
    x = np.asarray(matrix, dtype=np.float64)[data.first]
    if not np.isfinite(x).all():
        raise DataError(f"shares={shares!r}: some features of the first states are not finite")
    names = tuple("1" if c == "Intercept" else str(c) for c in matrix.columns)
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise SpecificationError(
            f"shares={shares!r}: its features are collinear in the first states seen"
        )
    return np.ascontiguousarray(x), names
