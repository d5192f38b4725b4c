"""ECCP: linear regression of log-odds by region and month, without solving anything.

Kalouptsidi, Scott and Souza-Rodrigues (2021, Journal of Econometrics). With one-period finite
dependence (weights ``d``, for instance on a renewal choice) the choice probabilities of a region at
``t`` and ``t + 1`` give, for every state and pair of choices,

    log(pi_j / pi_k) - beta sum d psi_{t+1} = [x_j - x_k + beta sum d x_{t+1}] theta + e,

where ``psi = -log pi + (1 - attention) log pi_default`` and ``e`` holds unobserved tastes of the
region and the members' forecast error, realised less expected. No law of motion of prices, bundles
or any other market state is needed; what is dated ``t + 1`` or measured with error needs
instruments known at ``t``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.estimate import first_stage as laws_of_motion
from dynchoice.estimate.estimator import CountsEstimator, FitOptions
from dynchoice.estimate.first_stage import FirstStage, counts_of
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.linear.equations import EulerEquations, comparable, comparisons
from dynchoice.estimate.linear.iv import (
    Ordered,
    Regression,
    RegressionArrays,
    run_iv,
    second_stage,
)
from dynchoice.estimate.linear.market import read_market
from dynchoice.estimate.optimise import Optimization
from dynchoice.inference.covariance import cluster_notes
from dynchoice.inference.results import Results
from dynchoice.model.ddc import DDC
from dynchoice.model.dependence import FiniteDependence, describe_failures, finite_dependence
from dynchoice.model.regions import RegionGrid
from dynchoice.panel.counts import Counts
from dynchoice.typing import FloatArray, IntArray, Level

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.panel.panel import Panel

CORRECTIONS = ("half", "none", "jackknife")
SURPRISES = ("drop", "keep")
WEIGHTS = ("precision", "members", "none")
EFFECTS = ("region", "period", "state", "choice")
METHODS = ("2sls", "gmm")
CLUSTERS = ("region", "period")


class ECCP(CountsEstimator[Results]):
    """Linear instrumental-variable estimator from Euler equations in CCPs.

    Parameters
    ----------
    model : DDC
        Infinite horizon, with one-period finite dependence between some choices. ``Fixed`` axes
        (prices, bundle) are the market state: each region's own path of them is read off the
        panel.
    data : Panel or Counts
        With regions.
    renewal : label, optional
        The choice to condition on in the next period; default: what the data support best.
    market : DataFrame, optional
        Columns ``region``, ``period`` and market variables. A variable named like a parameter
        multiplies its feature: it need not be discrete, nor an axis.
    instruments : mapping, optional
        Parameter -> market variable(s) to stand in for its own, or ``"lag"``, ``"lag2"`` ... for
        the variable's own past. Default for every parameter: its regressor with everything dated
        ``t + 1`` set back to ``t``.
    effects : sequence of str
        Fixed effects to remove: ``"region"``, ``"period"``, ``"state"``, ``"choice"`` or products
        like ``"region:state:choice"``.
    correction : {"half", "none", "jackknife"}
        Log-odds of small cells: ``(n + 1/2) / (N + J/2)``, raw frequencies, or the split-sample
        jackknife on top of the first.
    minimum : float
        Members that a cell needs, at ``t`` and at ``t + 1``.
    surprises : {"drop", "keep"}
        Months after which a ``Fixed`` axis (prices, bundle) changes in the region. The model takes
        such a change as a surprise, so that the next month's choices are not those that members
        expected: the equation does not hold there. ``"keep"`` where members are taken to have
        rational expectations of the change.
    weights : {"precision", "members", "none"}
        Inverse of the sampling variance of the dependent variable (from cell sizes and pooled
        probabilities); cell sizes; none.
    method : {"2sls", "gmm"}
        linearmodels' IV2SLS, or IVGMM with clustered weights (where overidentified).

    Raises
    ------
    SpecificationError
        No regions; no finite dependence; names that are not known.
    DataError
        No cell large enough; market variables missing for a region and period.

    References
    ----------
    Kalouptsidi, Scott and Souza-Rodrigues (2021), Journal of Econometrics 222.
    """

    name = "ECCP"
    defaults: ClassVar[Mapping[str, Any]] = {"cluster": "region", "seed": 0}

    def __init__(
        self,
        model: DDC,
        data: Panel | Counts,
        *,
        renewal: Level | None = None,
        market: pd.DataFrame | None = None,
        instruments: Mapping[str, str | Sequence[str]] | None = None,
        effects: str | Sequence[str] = (),
        correction: str = "half",
        minimum: float = 20.0,
        surprises: str = "drop",
        weights: str = "precision",
        method: str = "2sls",
    ) -> None:
        if model.horizon is not None:
            raise SpecificationError("ECCP is for infinite horizons; NFXP takes a finite one")
        checks.one_of(correction, "correction", CORRECTIONS)
        checks.one_of(surprises, "surprises", SURPRISES)
        checks.one_of(weights, "weights", WEIGHTS)
        checks.one_of(method, "method", METHODS)
        self.model = model
        self.options = {
            "renewal": renewal,
            "market": market,
            "instruments": instruments,
            "effects": effects,
            "correction": correction,
            "minimum": minimum,
            "surprises": surprises,
            "weights": weights,
            "method": method,
        }
        self.effects = read_effects(effects)
        self.minimum = checks.number(minimum, "minimum")
        self.correction, self.surprises = correction, surprises
        self.weights, self.method = weights, method
        self.counts: Counts
        self.counts, self.panel = counts_of(data)
        if self.counts.regions is None:
            self.counts.by_region()  # says what to do
        self._first: FirstStage = laws_of_motion.first_stage(model, self.counts, self.panel)
        estimated, n = self._first.model, self.counts.n_sj()
        self.dependence: FiniteDependence = finite_dependence(
            estimated,
            1,
            states=np.flatnonzero(n.sum(axis=1) > 0),
            precision=n,
            through=renewal,
        )
        # pairs stay in every resampled fit, whose laws of motion are others
        self._pairs: IntArray = np.argwhere(comparable(self.dependence))
        if not len(self._pairs):
            raise SpecificationError(
                "no pair of choices has one-period finite dependence, for instance"
                f" {describe_failures(self.dependence, estimated.choices)}: where engagement"
                " depends on membership no choice renews (finite_dependence(model) tells more). Use"
                " NFXP, NPL or CCP"
            )
        self._grid = RegionGrid(estimated, self.counts)
        self._copies: FloatArray = np.ones(len(self._grid.labels))
        self.multipliers, self.standins, self._unused = read_market(
            model.names, self._grid, market, instruments
        )

    def again(self, counts: Counts) -> ECCP:
        """Return the estimator on resampled regions: cells as they were, regions weighed anew.

        A region drawn twice counts twice; its cells do not become cells of twice the size. Laws of
        motion are estimated anew.
        """
        before, after = self.counts.regions, counts.regions
        assert before is not None and after is not None
        R = len(before.labels)
        weight_before = np.bincount(before.cells[:, 1], weights=before.n, minlength=R)
        weight_after = np.bincount(after.cells[:, 1], weights=after.n, minlength=R)
        other = copy.copy(self)
        other._copies = np.divide(
            weight_after, weight_before, out=np.zeros(R), where=weight_before > 0
        )
        other._first = laws_of_motion.first_stage(self.model, counts, None)
        other.dependence = finite_dependence(
            other._first.model,
            1,
            states=self.dependence.rows,
            precision=self.counts.n_sj(),
            through=self.options["renewal"],
        )
        return other

    def regression(self, n: FloatArray | None = None) -> Regression:
        """Return the regression that :meth:`fit` runs, to look at or to run otherwise.

        Parameters
        ----------
        n : FloatArray, shape (R, T, S, J), optional
            Counts by region and period; default those of the data.
        """
        equations = EulerEquations(
            self._first.model,
            self._grid,
            minimum=self.minimum,
            surprises=self.surprises,
            weighting=self.weights,
            copies=self._copies,
            multipliers=self.multipliers,
            standins=self.standins,
        )
        pairs = comparisons(self.dependence, self._pairs)
        return equations.regression(pairs, self._grid.n if n is None else n, self.correction)

    # fit --------------------------------------------------------------------------------------

    def estimate(self, options: FitOptions) -> Results:
        """Estimate by instrumental variables; nothing is searched for.

        ``tests`` of the results hold linearmodels' first-stage diagnostics, over-identification
        test and weak-instrument F under its names. ``loglik`` is the likelihood of the model solved
        at the estimates, or NaN where market variables leave no model to solve.
        """
        kind, cluster = options.cov_type, options.cluster
        if kind == "opg":
            raise SpecificationError("a linear estimator has no 'opg' covariance: use 'robust'")
        checks.one_of(cluster, "cluster", CLUSTERS)
        regression = self.regression()
        fit, arrays = self._run(regression, kind, cluster)
        theta = np.asarray(fit.params, dtype=np.float64)
        notes = list(self._first.notes)
        if self.correction == "jackknife":
            halves = self._halves(options.seed)
            split = [self._run(half, "unadjusted", cluster)[0].params for half in halves]
            theta = 2 * theta - np.mean(split, axis=0)
            notes.append("Split-sample jackknife: 2 theta - mean of the two halves'")
        notes += self._notes(regression, fit)
        return self._results(regression, fit, arrays, theta, notes, options)

    def _run(
        self, regression: Regression, kind: str, cluster: str
    ) -> tuple[Ordered, RegressionArrays]:
        groups = self._groups(regression.cells)
        return run_iv(regression, groups, self.method, kind, cluster)

    def resample(self, options: FitOptions) -> Results:
        """Return the fit with the covariance of its estimates on resampled regions."""
        if options.cluster != "region":
            checks.one_of(options.cluster, "cluster", CLUSTERS)
            raise SpecificationError(
                f"the bootstrap resamples regions, not {options.cluster}s: use cluster='region'"
            )
        return super().resample(options)

    def _groups(self, cells: pd.DataFrame) -> list[IntArray]:
        out = []
        # the state of an effect is the agent's own: prices and bundle must not be absorbed with it
        cells = cells.assign(state=self._grid.base[cells["state"]])
        for effect in self.effects:
            key = cells[effect.split(":")].astype(str).agg("|".join, axis=1)
            out.append(np.unique(key.to_numpy(), return_inverse=True)[1].reshape(-1))
        return out

    def _halves(self, seed: int | None) -> list[Regression]:
        """Return the regressions of two random halves of every cell's members."""
        n = self._grid.n
        whole = np.rint(n).astype(np.int64)
        if not np.allclose(whole, n):
            raise SpecificationError(
                "the jackknife splits cells in whole members: weights must be integers"
            )
        rng = np.random.default_rng(seed)
        half = rng.binomial(whole, 0.5).astype(np.float64)
        return [self.regression(half), self.regression(n - half)]

    def _notes(self, regression: Regression, fit: Ordered) -> list[str]:
        """Return what the summary says of the equations and their instruments."""
        cells = regression.cells
        sizes = cells["members"]
        notes = [
            f"{len(regression.dependent):,} equations in {cells['region'].nunique()} regions and"
            f" {cells['period'].nunique()} periods; cells of {sizes.median():,.0f} members"
            f" (median), {sizes.min():,.0f} (least); log-odds of a cell of N members are biased by"
            f" about 1/N without correction ({self.correction!r} here)"
        ]
        dropped = [f"{v:,} equations ({k})" for k, v in regression.dropped.items() if v]
        if dropped:
            notes.append(f"Left out: {', '.join(dropped)}")
        if self._unused:
            notes.append(f"Market columns not used: {', '.join(self._unused)}")
        notes.append("Laws of motion are taken as known; cov_type='bootstrap' redoes them")
        weak = fit.tests().get("weakest F")
        if weak is not None and weak < 10:
            notes.append(f"Weak instruments: the smallest first-stage F is {weak:.1f} (below 10)")
        return notes

    def _results(
        self,
        regression: Regression,
        fit: Ordered,
        arrays: RegressionArrays,
        theta: FloatArray,
        notes: list[str],
        options: FitOptions,
    ) -> Results:
        """Return the results of a linear fit whose estimates are ``theta``."""
        from dynchoice import __version__

        model, counts, kind = self._first.model, self.counts, options.cov_type
        cov = np.asarray(fit.cov, dtype=np.float64)
        by_cluster, information = second_stage(arrays, np.asarray(fit.params))
        config: dict[str, Any] = {"first_stage_label": "CCPs in the regression error"}
        influence = None
        if kind == "clustered":
            units = int(np.unique(arrays.unit).size)
            config.update(clusters=units, by=options.cluster, unit=options.cluster)
            notes = [*notes, *cluster_notes(units, len(theta))]
            if units <= len(theta):
                cov = np.full_like(cov, np.nan)
            influence = by_cluster
            if options.cluster == "region":
                influence = self._by_region(regression.cells["region"], by_cluster)
        n = counts.n_sj()
        offered = np.log(model.available.sum(axis=1))
        loglik, value = float("nan"), np.zeros(0)
        if not self.multipliers:
            evaluation = Likelihood(model, n).evaluate(theta)
            loglik = evaluation.loglik
            value = np.zeros(0) if evaluation.point is None else evaluation.point.h
        message = "converged: a linear estimator"
        cells = regression.cells
        used = cells.drop_duplicates(["region", "period", "state"])["members"].sum()
        return Results(
            estimator=f"{self.name} ({self.method})",
            model=model,
            theta=theta,
            cov_matrix=(cov + cov.T) / 2,
            cov_type=kind,
            cov_config=config,
            loglik=loglik,
            loglik_null=-float(n.sum(axis=1) @ offered),
            nobs=counts.nobs,
            nmembers=counts.nmembers,
            converged=True,
            message=message,
            optimization=asdict(Optimization(True, message, 1, 1, 0.0, 0.0, np.zeros(0))),
            counts=n,
            hessian=-information,
            value=value,
            data_digest=counts.digest,
            package_version=__version__,
            seed=options.seed,
            loglik_transitions=self._first.loglik,
            notes=tuple(notes),
            first_stage=self._first.records(),
            influence=influence,
            tests=fit.tests(),
            market=tuple(self.multipliers),
            uses={
                "share": float(used / self._grid.n.sum()),
                "states": int(cells["state"].nunique()),
                "equations": len(regression.dependent),
            },
        )

    def _by_region(self, regions: pd.Series, by_cluster: FloatArray) -> FloatArray:
        """Return influence by all regions (R, K), zero for those without an equation."""
        labels = list(self._grid.labels)
        out = np.zeros((len(labels), by_cluster.shape[1]))
        out[[labels.index(x) for x in np.unique(regions.to_numpy())]] = by_cluster
        return out


def read_effects(effects: str | Sequence[str]) -> tuple[str, ...]:
    """Return the fixed effects to remove.

    Raises
    ------
    SpecificationError
        Neither names nor products of them.
    """
    names = checks.names(effects, "effects")
    parts = [part for name in names for part in name.split(":")]
    checks.known(parts, EFFECTS, "effects: part")
    return names
