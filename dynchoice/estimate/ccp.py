"""CCP: the conditional choice probability estimator of Hotz and Miller (1993).

With ``P`` a first-stage estimate of the choice probabilities, the value of following them is
linear in the parameters (Aguirregabiria and Mira 2002, eq. 7-8; mean-zero shocks):

    V = Wz theta + We,
    Wz = (I - beta F^P)^{-1} sum_j P_j x_j,
    We = (I - beta F^P)^{-1} (sum_j P_j offset_j - a sum_j pi_j log pi_j),

so that ``v_j = (x_j + beta F_j Wz) theta + offset_j + beta F_j We`` and the pseudo-likelihood is
that of a logit, globally concave with attention one. It is also where NFXP starts.

The first stage shrinks frequencies to a static logit on the model's own features, with the
weight of ``SMOOTHING`` observations a state: empty cells then hold the logit, large cells the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.estimate.first_stage import FirstStage, counts_of, first_stage
from dynchoice.estimate.identified import refuse_unidentified
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.optimise import Optimization, check_options, maximise
from dynchoice.estimate.report import as_results, score_parts
from dynchoice.inference.covariance import check_cov_type
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.panel.counts import Counts
from dynchoice.solve.linear import PolicySystem, one_blas_thread
from dynchoice.typing import FloatArray, Progress

SMOOTHING = 10.0


def static(model: DDC, x: FloatArray, offset: FloatArray) -> DDC:
    """Return the model of a static choice with features ``x`` and known part ``offset``."""
    return model.unchecked(utility=Utility(x, model.names, offset), beta=0.0)


def smoothed_frequencies(model: DDC, n: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return first-stage observed probabilities ``P`` (S, J) and the static logit's params.

    ``P = (n_sj + SMOOTHING P_logit) / (n_s + SMOOTHING)``: never zero where a choice is offered.
    """
    likelihood = Likelihood(static(model, model.utility.x, model.utility.offset), n)
    start = np.zeros(len(model.names))
    best, _ = maximise(likelihood.evaluate, likelihood.hessian, start, likelihood.total, tol=1e-3)
    seen = n.sum(axis=1, keepdims=True)
    return (n + SMOOTHING * best.P) / (seen + SMOOTHING), best.params


def unmix(model: DDC, P: FloatArray) -> FloatArray:
    """Return attentive probabilities: ``pi = (P - (1 - a) 1{default}) / a``, kept positive."""
    a = model.attention[:, None]
    pi = P.copy()
    pi[np.arange(len(P)), model.default] -= 1 - model.attention
    pi = np.where(model.available, np.maximum(pi / a, 1e-10), 0.0)
    return np.asarray(pi / pi.sum(axis=1, keepdims=True))


def valuation(
    model: DDC, system: PolicySystem, P: FloatArray, pi: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return ``Wz`` (S, K) and ``We`` (S,) of the policy; see the module docstring."""
    system.factor(P)
    logs = np.where(pi > 0, np.log(np.where(pi > 0, pi, 1.0)), 0.0)
    entropy = -model.attention * (pi * logs).sum(axis=1)
    flow = np.where(model.available, model.utility.offset, 0.0)
    right = np.column_stack(
        [np.einsum("sj,sjk->sk", P, model.utility.x), (P * flow).sum(axis=1) + entropy]
    )
    W = system.solve(right)
    return np.ascontiguousarray(W[:, :-1]), np.ascontiguousarray(W[:, -1])


def pseudo_likelihood(
    model: DDC, system: PolicySystem, n: FloatArray, P: FloatArray
) -> tuple[Likelihood, FloatArray, FloatArray]:
    """Return the pseudo-likelihood given first-stage probabilities ``P``, and ``Wz``, ``We``."""
    Wz, We = valuation(model, system, P, unmix(model, P))
    F: Transitions = model.transitions
    x = model.utility.x + model.beta * F.expect(Wz)
    offset = model.utility.offset + model.beta * F.expect(We)
    return Likelihood(static(model, x, offset), n), Wz, We


def hotz_miller(
    model: DDC, n: FloatArray, steps: int = 1, tol: float = 1e-8, maxiter: int = 100
) -> tuple[Any, Optimization, FloatArray]:
    """Return the pseudo-likelihood's evaluation, its optimisation and the value ``V`` (S,)."""
    P, start = smoothed_frequencies(model, n)

    def fit(likelihood: Likelihood, start: FloatArray) -> tuple[Any, Optimization]:
        evaluate, hessian = likelihood.evaluate, likelihood.hessian
        return maximise(evaluate, hessian, start, likelihood.total, tol=tol, maxiter=maxiter)

    if model.beta == 0:
        logit = Likelihood(static(model, model.utility.x, model.utility.offset), n)
        return *fit(logit, start), np.zeros(len(n))
    # the static logit's parameters lie far from the dynamic ones; at zero the logit is flat
    start = np.zeros(len(model.names))
    system = PolicySystem(model.transitions, model.beta)
    for _ in range(steps):
        likelihood, Wz, We = pseudo_likelihood(model, system, n, P)
        best, optimization = fit(likelihood, start)
        P, start = best.P, best.params
    return best, optimization, Wz @ best.params + We


class CCP:
    """Hotz-Miller pseudo-likelihood with a smoothed first stage and exact policy valuation.

    Parameters
    ----------
    model : DDC
        Infinite horizon.
    data : Panel or Counts

    Notes
    -----
    Asymptotically equivalent to NFXP given the transitions (Aguirregabiria and Mira 2002,
    Proposition 4), whose covariance it reports; in finite samples it leans on its first stage
    where cells are empty. ``loglik`` is the likelihood at the estimates, the maximised
    pseudo-likelihood stands in ``pseudo_loglik``.

    References
    ----------
    Hotz and Miller (1993), Review of Economic Studies 60. Aguirregabiria and Mira (2002),
    Econometrica 70.
    """

    name = "CCP"

    def __init__(self, model: DDC, data: Any) -> None:
        if model.horizon is not None:
            raise SpecificationError("CCP is for infinite horizons; NFXP takes a finite one")
        self.model = model
        self.counts: Counts
        self.counts, self._panel = counts_of(data)
        self._first: FirstStage = first_stage(model, self.counts, self._panel)

    def fit(
        self,
        *,
        start: Any = None,
        cov_type: str = "clustered",
        tol: float = 1e-8,
        maxiter: int = 100,
        seed: int | None = None,
        progress: Progress | None = None,
        strict: bool = False,
    ) -> Results:
        """Estimate; the arguments are those of :meth:`dynchoice.NFXP.fit`.

        ``start`` is ignored: the pseudo-likelihood's own start is a static logit.
        """
        del start, progress
        check_cov_type(cov_type)
        check_options(tol, maxiter)
        model, n = self._first.model, self.counts.n_sj()
        with one_blas_thread():
            probe = Likelihood(model, n)
            refuse_unidentified(model, probe, probe.evaluate(np.zeros(len(model.names))))
            best, optimization, value = hotz_miller(model, n, tol=tol, maxiter=maxiter)
            likelihood = Likelihood(model, n, value)
            at = likelihood.evaluate(best.params)
            parts = score_parts(likelihood, at, self._first)
        empty = int((model.available & (n == 0))[n.sum(axis=1) > 0].sum())
        notes = (
            (
                f"{empty:,} available choices were never taken in seen states: the first stage is"
                " smoothed there and the one-step estimate leans on it",
            )
            if empty
            else ()
        )
        return as_results(
            self.name,
            self._first,
            self.counts,
            at,
            parts,
            optimization,
            cov_type,
            seed=seed,
            strict=strict,
            pseudo_loglik=best.loglik,
            notes=notes,
        )
