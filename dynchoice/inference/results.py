"""The results of one fit, under linearmodels' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.inference.diagnostics import Identification, Support
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.hypotheses import ChiSquaredTest
from dynchoice.inference.model_file import model_from_tree, model_to_tree
from dynchoice.inference.summary import Summary, number
from dynchoice.model.ddc import DDC
from dynchoice.model.transitions import Transitions
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.solvers.solve import Solution, solve
from dynchoice.typing import FloatArray


@dataclass(frozen=True, kw_only=True)
class Results(Estimates):
    """Estimates of one fit with everything needed to test, predict and simulate.

    Attributes
    ----------
    estimator, theta, cov_matrix, cov_type, cov_config, nobs, nmembers, converged, message, ...
        As of every fit: :class:`dynchoice.inference.estimates.Estimates`.
    model : DDC
        With the transitions as estimated.
    loglik : float
        Log-likelihood of the choices at the estimates.
    loglik_transitions : float or None
        Log-likelihood of the observed moves, where laws were estimated.
    pseudo_loglik : float or None
        What a pseudo-likelihood estimator maximised; never called ``loglik``.
    loglik_null : float
        Every available choice equally likely.
    counts : FloatArray, shape (S, J)
        Choices that entered the likelihood.
    hessian : FloatArray, shape (K + E, K + E)
        Second derivative of the (pseudo-)log-likelihood.
    extra, extra_names
        ``E`` estimates beside the model's parameters, for instance ``beta``.
    bootstrap_laws : tuple of dict
        Tables of the estimated laws of each resampled panel.
    tests : dict
        Specification tests of the estimator's own (linear IV: first-stage F, Hansen's J ...).
    market : tuple of str
        Parameters whose features were multiplied by market variables (ECCP): such a fit has no
        model to solve.
    uses : dict
        How much of the data the estimate uses: member-months, states, choices (and equations,
        regions, periods); :meth:`dynchoice.inference.compare.Comparison.support` lists it.
    rows_digest : str
        Digest of the rows that states were made from, where states are no column of the data.
    """

    model: DDC
    loglik_null: float
    counts: FloatArray
    hessian: FloatArray
    value: FloatArray
    loglik_transitions: float | None = None
    pseudo_loglik: float | None = None
    extra_params: int = 0
    first_stage: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    extra: FloatArray = field(default_factory=lambda: np.zeros(0))
    extra_names: tuple[str, ...] = ()
    tests: dict[str, Any] = field(default_factory=dict, repr=False)
    uses: dict[str, float] = field(default_factory=dict, repr=False)
    market: tuple[str, ...] = ()
    bootstrap_laws: tuple[dict[str, FloatArray], ...] = field(default=(), repr=False)
    rows_digest: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The model's parameters, then what else was estimated (``beta``)."""
        return (*self.model.names, *self.extra_names)

    @property
    def states_digest(self) -> str:
        """:attr:`rows_digest`."""
        return self.rows_digest

    @property
    def vector(self) -> FloatArray:
        """:attr:`theta` and :attr:`extra`."""
        return np.r_[self.theta, self.extra]

    def restart(self) -> FloatArray:
        """Return the ``start`` of a refit from here."""
        return self.theta

    @property
    def maximum_likelihood(self) -> bool:
        """Whether the estimate maximises the likelihood, not a pseudo-likelihood, and is no IV."""
        return self.pseudo_loglik is None and self.estimator.split(" ")[0] in (
            "NFXP",
            "NPL",
            "MCEIRL",
            "SAmQ",
        )

    def require_model(self, what: str) -> None:
        """Raise where the estimates do not determine a model that can be solved.

        Parameters
        ----------
        what : str
            What is asked for, for the message.
        """
        if self.market:
            raise SpecificationError(
                f"{what} needs a model to solve, and this fit multiplies {', '.join(self.market)}"
                " by market variables whose law of motion is not specified: put their levels into"
                " the states (a Fixed axis) and fit again"
            )

    # fit -------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Free parameters of the choice likelihood: the estimates and the numbers of a reward."""
        return len(self.vector) + int(self.uses.get("rewards", 0))

    @property
    def rsquared_mcfadden(self) -> float:
        """One minus the ratio of the log-likelihood to that of equally likely choices."""
        return 1 - self.loglik / self.loglik_null if self.loglik_null else float("nan")

    @property
    def transitions(self) -> Transitions:
        """Transitions as given or estimated."""
        return self.model.transitions

    # the model at the estimates --------------------------------------------------------------

    @cached_property
    def solution(self) -> Solution:
        """The model solved at the estimates."""
        self.require_model("solution")
        start = self.value if self.model.horizon is None else None
        return solve(self.model, self.theta, start=start)

    @property
    def ccp(self) -> FloatArray:
        """Observed conditional choice probabilities (S, J) at the estimates."""
        return self.solution.ccp

    def predict(self, df: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return choice probabilities for rows of a table with one column a state axis.

        Without a table: for every state. Columns are the choices; the index is the table's.

        Raises
        ------
        ColumnError, DataError
            A missing column; a level that the model does not know.
        """
        if self.model.horizon is not None:
            raise SpecificationError(
                "predict() is for infinite horizons; results.solution.ccp[t] has each period"
            )
        states = self.model.states
        frame = states.frame() if df is None else df
        codes = states.codes(frame)
        return pd.DataFrame(self.ccp[codes], index=frame.index, columns=list(self.model.choices))

    def reward(self) -> pd.DataFrame:
        """Return the flow utility at the estimates, a row a state, in utils.

        After inverse reinforcement learning (:class:`dynchoice.DeepPQR`) this is the estimated
        reward, with what its projection on the features misses. NaN where a choice is not offered.
        """
        model = self.model
        u = np.where(model.available, model.utility.flow(self.theta), np.nan)
        index = pd.MultiIndex.from_frame(model.states.frame())
        return pd.DataFrame(u, index=index, columns=list(model.choices))

    # tests -----------------------------------------------------------------------------------

    def lr_test(self, other: Results) -> ChiSquaredTest:
        """Test this fit against a nested one on the same data by the likelihood ratio.

        Raises
        ------
        SpecificationError
            Other data; as many parameters; a larger likelihood with fewer parameters.
        """
        checks.instance(other, "other", Results)
        for fit in (self, other):
            if not fit.maximum_likelihood:
                raise SpecificationError(
                    f"a likelihood ratio needs maximum likelihood fits (NFXP, NPL), not"
                    f" {fit.estimator}"
                )
        if self.estimator != other.estimator:
            raise SpecificationError(
                f"a likelihood ratio needs one estimator, got {self.estimator} and"
                f" {other.estimator}"
            )
        large, small = (self, other) if len(self.theta) > len(other.theta) else (other, self)
        if self.data_digest != other.data_digest:
            raise SpecificationError("a likelihood ratio needs two fits of the same data")
        df = len(large.theta) - len(small.theta)
        if df == 0:
            raise SpecificationError("the two fits have the same number of parameters")
        refuse_not_nested(large, small)
        # a little below zero is rounding, more of it a wrong pair of models
        stat = 2 * (large.loglik - small.loglik)
        if stat < -1e-6 * abs(large.loglik):
            raise SpecificationError(
                f"the fit with more parameters has the lower log-likelihood ({large.loglik:.4f} <"
                f" {small.loglik:.4f}): the models are not nested or one did not converge"
            )
        null = ", ".join(f"{name} = 0" for name in large.names if name not in small.names)
        return ChiSquaredTest("Likelihood ratio test", null, max(stat, 0.0), df)

    def identification(self, data: Panel | Counts | None = None) -> Identification:
        """Return which directions of the parameters the data tell apart, smallest first.

        Parameters
        ----------
        data : Panel or Counts, optional
            The data of the fit: adds hard pairs and what separates them, roll-outs' shares of the
            information, and what varies where
            (:class:`dynchoice.inference.identification.IdentificationReport`).
        """
        if data is None:
            return Identification.of(self.names, -self.hessian)
        from dynchoice.inference.identification import identification_report

        counts = data.counts if isinstance(data, Panel) else data
        checks.instance(counts, "data", Counts, "pass a Panel or its Counts")
        if counts.digest != self.data_digest:
            raise SpecificationError("these are not the data of the fit (their digests differ)")
        if self.model.horizon is not None:
            raise SpecificationError("the identification report is for infinite horizons")
        start = self.value if self.value.size else None
        return identification_report(self.model, counts, self.theta, start)

    def support(self) -> Support:
        """Return where the panel has choices and where only the model speaks."""
        model = self.model
        return Support(model.states, model.choices, self.counts, model.available)

    def draws(self, n: int, seed: int | np.random.Generator | None = 0) -> FloatArray:
        """Return draws of the parameters (n, K) from the estimator's normal approximation.

        Raises
        ------
        SpecificationError
            Some parameter has no variance: a flat direction cannot be drawn.
        """
        if not np.isfinite(self.cov_matrix).all():
            raise SpecificationError(
                "no draws: the data leave these directions flat: "
                + "; ".join(self.identification().flat)
            )
        K = len(self.theta)
        values, vectors = np.linalg.eigh(self.cov_matrix[:K, :K])
        # a root by eigenvectors: Cholesky's needs eigenvalues above zero, rounding may leave less
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        noise = np.random.default_rng(seed).standard_normal((n, K))
        return np.asarray(self.theta + noise @ root.T)

    # output ----------------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        """The table of estimates: ``print`` it, or ``.as_html() .as_latex() .as_csv()``.

        ``results.summary`` and ``results.summary()`` are the same.
        """
        facts = list_facts(self, self.model, self.loglik_transitions, self.pseudo_loglik)
        pseudo = ("Pseudo R-squared:", number(self.rsquared_mcfadden))
        return self._tabulate([*facts, pseudo])

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays and plain values, for saving."""
        return {**super().to_tree(), "model": model_to_tree(self.model)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_tree`."""
        return super().from_tree({**tree, "model": model_from_tree(tree["model"])})

    def __repr__(self) -> str:
        return (
            f"Results({self.estimator}: {len(self.theta)} parameters, {self.nobs:,.0f}"
            f" member-months, log-likelihood {self.loglik:.4f},"
            f" {'converged' if self.converged else 'NOT CONVERGED'})"
        )


def list_facts(
    fit: Estimates, model: DDC, loglik_transitions: float | None, pseudo_loglik: float | None
) -> list[tuple[str, str]]:
    """Return the facts above the summary of a fit on counts of states and choices."""
    S, J, _ = model.shape
    facts = [
        ("Estimator:", fit.estimator),
        ("Member-months:", f"{fit.nobs:,.0f}"),
        ("Members:", f"{fit.nmembers:,}"),
        ("States x choices:", f"{S:,} x {J}"),
        ("Discount factor:", f"{model.beta:g}"),
        ("Log-likelihood:", number(fit.loglik)),
        ("Converged:", "yes" if fit.converged else "NO"),
        ("Covariance:", fit._covariance_in_words()),
        ("First-stage error:", fit.cov_config.get("first_stage_label", "none")),
        ("AIC:", number(fit.aic, 2)),
        ("BIC:", number(fit.bic, 2)),
    ]
    if loglik_transitions is not None and np.isfinite(fit.loglik):
        facts.append(("Log-lik. with transitions:", number(fit.loglik + loglik_transitions)))
    if pseudo_loglik is not None:
        facts.append(("Pseudo-log-likelihood:", number(pseudo_loglik)))
    return facts


def refuse_not_nested(large: Results, small: Results) -> None:
    """Raise unless the smaller model is the larger one without some features.

    Raises
    ------
    SpecificationError
        Other parameters, another discount factor, or other values of the common features.
    """
    full, part = large.model, small.model
    missing = [name for name in part.names if name not in full.names]
    if missing:
        raise SpecificationError(
            f"the smaller model has {missing[0]!r} and the larger one has not: they are not nested"
        )
    columns = [full.names.index(name) for name in part.names]
    same = (
        full.beta == part.beta
        and np.array_equal(full.available, part.available)
        and np.array_equal(full.attention, part.attention)
        and np.array_equal(full.utility.offset, part.utility.offset)
        and np.array_equal(full.utility.x[:, :, columns], part.utility.x)
    )
    if not same:
        raise SpecificationError(
            "the two models differ in more than the parameters left out (beta, availability,"
            " attention, offset or features): they are not nested"
        )
