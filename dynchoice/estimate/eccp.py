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
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError, SpecificationError, suggest
from dynchoice.estimate import first_stage as laws_of_motion
from dynchoice.estimate.estimator import CountsEstimator, FitOptions
from dynchoice.estimate.first_stage import FirstStage, counts_of
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.estimate.linear.iv import Ordered, Regression, run_iv, second_stage
from dynchoice.estimate.linear.log_odds import log_odds, sampling
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
        data: Any,
        *,
        renewal: Level | None = None,
        market: Any = None,
        instruments: Mapping[str, Any] | None = None,
        effects: Any = (),
        correction: str = "half",
        minimum: float = 20.0,
        surprises: str = "drop",
        weights: str = "precision",
        method: str = "2sls",
    ) -> None:
        if model.horizon is not None:
            raise SpecificationError("ECCP is for infinite horizons; NFXP takes a finite one")
        for what, value, known in (
            ("correction", correction, CORRECTIONS),
            ("surprises", surprises, SURPRISES),
            ("weights", weights, WEIGHTS),
            ("method", method, METHODS),
        ):
            if value not in known:
                raise SpecificationError(
                    f"{what}={value!r} is unknown.{suggest(value, known)} Known: {', '.join(known)}"
                )
        if isinstance(effects, str):
            effects = (effects,)
        if not isinstance(effects, list | tuple) or not all(isinstance(e, str) for e in effects):
            raise SpecificationError(f"effects={effects!r}: pass names such as 'region'")
        if not isinstance(minimum, int | float | np.number):
            raise SpecificationError(f"minimum={minimum!r} must be a number of members")
        for effect in effects:
            for part in effect.split(":"):
                if part not in EFFECTS:
                    raise SpecificationError(
                        f"effects: {part!r} is unknown.{suggest(part, EFFECTS)} Known:"
                        f" {', '.join(EFFECTS)}, and products of them"
                    )
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
        self.surprises = surprises
        self.effects, self.correction, self.minimum = tuple(effects), correction, float(minimum)
        self.weights, self.method = weights, method
        self.counts: Counts
        self.counts, self.panel = counts_of(data)
        if self.counts.regions is None:
            self.counts.by_region()  # says what to do
        self._first: FirstStage = laws_of_motion.first_stage(model, self.counts, self.panel)
        own = self._first.model
        pooled = self.counts.n_sj()
        seen = np.flatnonzero(pooled.sum(axis=1) > 0)
        self.found: FiniteDependence = finite_dependence(
            own, 1, states=seen, precision=pooled, through=renewal
        )
        usable = (self.found.periods >= 0) & (
            np.arange(len(own.choices)) != self.found.reference[:, None]
        )
        if not usable.any():
            raise SpecificationError(
                "no pair of choices has one-period finite dependence, for instance"
                f" {describe_failures(self.found, own.choices)}: where engagement depends on"
                " membership no choice renews (finite_dependence(model) tells more). Use NFXP, NPL"
                " or CCP"
            )
        self._pairs = [(int(u), int(j)) for u, j in np.argwhere(usable)]
        self._grid = RegionGrid(own, self.counts)
        self._copies: FloatArray | None = None
        self.multipliers, self.standins, self._unused = read_market(
            model.names, self._grid, market, instruments
        )

    def again(self, counts: Counts) -> ECCP:
        """Return the estimator on resampled regions: cells as they were, regions weighed anew.

        A region drawn twice counts twice; its cells do not become cells of twice the size. Laws of
        motion are estimated anew.
        """
        own, new = self.counts.regions, counts.regions
        assert own is not None and new is not None
        R = len(own.labels)
        before = np.bincount(own.cells[:, 1], weights=own.n, minlength=R)
        after = np.bincount(new.cells[:, 1], weights=new.n, minlength=R)
        other = copy.copy(self)
        other._copies = np.divide(after, before, out=np.zeros(R), where=before > 0)
        other._first = laws_of_motion.first_stage(self.model, counts, None)
        other.found = finite_dependence(
            other._first.model,
            1,
            states=self.found.rows,
            precision=self.counts.n_sj(),
            through=self.options["renewal"],
        )
        return other

    # regression -------------------------------------------------------------------------------

    def regression(self, n: FloatArray | None = None) -> Regression:
        """Return the regression that :meth:`fit` runs, to look at or to run otherwise.

        Parameters
        ----------
        n : FloatArray, shape (R, T, S, J), optional
            Counts by region and period; default those of the data.
        """
        import pandas as pd

        model, grid, found = self._first.model, self._grid, self.found
        n = grid.n if n is None else n
        # cells are chosen and weighed by the whole sample's sizes and pooled probabilities: weights
        # from a cell's own choices would bring the bias of its log-odds back
        N = grid.n.sum(axis=3)
        pooled = grid.n.sum(axis=(0, 1)) + 0.5
        pooled = pooled / pooled.sum(axis=1, keepdims=True)
        logs, psi = log_odds(model, n, self.correction)
        beta, J = model.beta, len(model.choices)
        x, offset = model.utility.x, model.utility.offset
        parts: list[dict[str, Any]] = []
        instruments: list[list[FloatArray]] = [[] for _ in self._instrument_names()]
        regressors: list[FloatArray] = []
        W = found.weights[0] if found.weights else None
        least = max(self.minimum, 1e-12)
        dropped = dict.fromkeys(
            ("small cell", "small cell next period", "mixed market", "surprise", "attention"), 0
        )
        certain, var_log = sampling(model, pooled)
        copies = np.ones(len(grid.labels)) if self._copies is None else self._copies
        for u, j in self._pairs:
            s, k = int(found.rows[u]), int(found.reference[u])
            row = W[[u * J + j]] if W is not None else None
            cols = np.zeros(0, np.int64) if row is None else row.indices
            d = np.zeros(0) if row is None else row.data
            to, act = cols // J, cols % J
            here = N[:, :-1, s]
            target = grid.ahead(s, to)
            enough = here >= least
            after = np.asarray((np.take_along_axis(N[:, 1:], target, axis=2) >= least).all(axis=2))
            clear = grid.clear[:, :, grid.fixed[s]]
            dropped["small cell"] += int(((here > 0) & ~enough).sum())
            dropped["small cell next period"] += int((enough & ~after).sum())
            dropped["mixed market"] += int((enough & after & ~clear).sum())
            use = enough & after & clear & (copies > 0)[:, None]
            # with inattention a small cell's default may fall below what inattention alone gives
            sure = (here >= certain[s]) & (
                np.take_along_axis(N[:, 1:], target, axis=2) >= certain[to]
            ).all(axis=2)
            dropped["attention"] += int((use & ~sure).sum())
            use &= sure
            if self.surprises == "drop":
                new = grid.to[:, :, grid.fixed[s]] != grid.fixed[s]
                dropped["surprise"] += int((use & new).sum())
                use &= ~new
            if not use.any():
                continue
            r, t = np.nonzero(use)
            at = target[r, t]
            q = psi[r[:, None], t[:, None] + 1, at, act]
            y = logs[r, t, s, j] - logs[r, t, s, k] - (offset[s, j] - offset[s, k])
            y = y - beta * ((q + offset[at, act]) * d).sum(axis=1)
            now, then = x[s, j] - x[s, k], x[at, act] * d[None, :, None]
            regressors.append(self._multiplied(now, then.sum(axis=1), r, t, 1, None))
            behind = (x[to, act] * d[:, None]).sum(axis=0)
            for column, (name, table) in enumerate(self._instrument_names()):
                p = model.names.index(name)
                z = self._multiplied(now, np.tile(behind, (len(r), 1)), r, t, 0, (name, table))
                instruments[column].append(z[:, p])
            noise = (var_log[s, j] + var_log[s, k]) / here[r, t]
            if len(to):
                size = N[r[:, None], t[:, None] + 1, at] / var_log[at, act]
                noise = noise + beta**2 * (d**2 / size).sum(axis=1)
            noise = noise / np.maximum(copies[r], 1e-12)
            parts.append(
                {
                    "y": y,
                    "weight": {"precision": 1 / noise, "members": here[r, t] * copies[r]}.get(
                        self.weights, copies[r]
                    ),
                    "region": r,
                    "period": t,
                    "state": np.full(len(r), s),
                    "choice": np.full(len(r), j),
                    "reference": np.full(len(r), k),
                    "members": here[r, t],
                }
            )
        if not parts:
            raise DataError(
                f"no region-month has cells of {self.minimum:g} members at t and t + 1 in states"
                f" that can be compared (dropped: {dropped}): lower minimum=, or coarsen the states"
            )
        whole = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        X = np.concatenate(regressors)
        Z = np.stack([np.concatenate(z) for z in instruments], axis=1)
        good = np.isfinite(Z).all(axis=1)
        dropped["instrument not observed yet"] = int((~good).sum())
        names = list(model.names)
        znames = [f"z{i}: {name}" for i, (name, _) in enumerate(self._instrument_names())]
        if not good.any():
            raise DataError("no row has all its instruments")
        cells = pd.DataFrame(
            {
                "region": np.asarray(grid.labels, dtype=object)[whole["region"][good]],
                "period": whole["period"][good] + grid.first,
                "state": whole["state"][good],
                "choice": whole["choice"][good],
                "reference": whole["reference"][good],
                "members": whole["members"][good],
            }
        )
        return Regression(
            pd.Series(whole["y"][good], name="log-odds"),
            pd.DataFrame(X[good], columns=names),
            pd.DataFrame(Z[good], columns=znames),
            pd.Series(whole["weight"][good], name="weight"),
            cells,
            dropped,
        )

    def _instrument_names(self) -> list[tuple[str, FloatArray | None]]:
        return [(name, table) for name, tables in self.standins.items() for table in tables]

    def _multiplied(
        self,
        now: FloatArray,
        then: FloatArray,
        r: IntArray,
        t: IntArray,
        ahead: int,
        standin: tuple[str, FloatArray | None] | None,
    ) -> FloatArray:
        """Return ``w_t now + beta w_{t+ahead} then`` (rows, K) with market multipliers ``w``."""
        beta = self._first.model.beta
        out = np.empty((len(r), len(now)))
        for k, name in enumerate(self._first.model.names):
            table = self.multipliers.get(name)
            if standin is not None and standin[0] == name:
                table = standin[1]
            if table is None:
                out[:, k] = now[k] + beta * then[:, k]
            else:
                last = np.minimum(t + ahead, table.shape[1] - 1)
                out[:, k] = table[r, t] * now[k] + beta * table[r, last] * then[:, k]
        return out

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
        fit, pieces = run_iv(regression, self._groups(regression.cells), self.method, kind, cluster)
        theta = np.asarray(fit.params, dtype=np.float64)
        cov = np.asarray(fit.cov, dtype=np.float64)
        notes = list(self._first.notes)
        if self.correction == "jackknife":
            split = [
                run_iv(half, self._groups(half.cells), self.method, "unadjusted", cluster)[0].params
                for half in self._halves(options.seed)
            ]
            theta = 2 * theta - np.mean(split, axis=0)
            notes.append("Split-sample jackknife: 2 theta - mean of the two halves'")
        return self._results(regression, fit, pieces, theta, cov, notes, options)

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

    def _share(self, found: Regression) -> float:
        """Return the share of the member-months whose cell enters some equation."""
        cells = found.cells.drop_duplicates(["region", "period", "state"])
        return float(cells["members"].sum() / self._grid.n.sum())

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

    def _results(
        self,
        found: Regression,
        fit: Ordered,
        pieces: dict[str, Any],
        theta: FloatArray,
        cov: FloatArray,
        notes: list[str],
        options: FitOptions,
    ) -> Results:
        from dynchoice import __version__

        kind, cluster = options.cov_type, options.cluster
        model, counts = self._first.model, self.counts
        tests = fit.tests()
        sizes = found.cells["members"]
        notes.append(
            f"{len(found.dependent):,} equations in {found.cells['region'].nunique()} regions and"
            f" {found.cells['period'].nunique()} periods; cells of {sizes.median():,.0f} members"
            f" (median), {sizes.min():,.0f} (least); log-odds of a cell of N members are biased by"
            f" about 1/N without correction ({self.correction!r} here)"
        )
        lost = {k: v for k, v in found.dropped.items() if v}
        if lost:
            notes.append(
                "Left out: " + ", ".join(f"{v:,} equations ({k})" for k, v in lost.items())
            )
        if self._unused:
            notes.append(f"Market columns not used: {', '.join(self._unused)}")
        notes.append("Laws of motion are taken as known; cov_type='bootstrap' redoes them")
        weak = tests.get("weakest F")
        if weak is not None and weak < 10:
            notes.append(f"Weak instruments: the smallest first-stage F is {weak:.1f} (below 10)")
        moments, information = second_stage(pieces, np.asarray(fit.params))
        units = int(np.unique(pieces["unit"]).size)
        config: dict[str, Any] = {"first_stage_label": "CCPs in the regression error"}
        influence = None
        if kind == "clustered":
            config.update(clusters=units, by=cluster, unit=cluster)
            notes += cluster_notes(units, len(theta))
            if units <= len(theta):
                cov = np.full_like(cov, np.nan)
            influence = moments
            if cluster == "region":
                labels = list(self._grid.labels)
                full = np.zeros((len(labels), len(theta)))
                names = np.unique(found.cells["region"].to_numpy())
                full[[labels.index(x) for x in names]] = influence
                influence = full
        n = counts.n_sj()
        offered = np.log(model.available.sum(axis=1))
        loglik, value = float("nan"), np.zeros(0)
        if not self.multipliers:
            at = Likelihood(model, n).evaluate(theta)
            loglik = at.loglik
            value = np.zeros(0) if at.point is None else at.point.h
        message = "converged: a linear estimator"
        status = Optimization(True, message, 1, 1, 0.0, 0.0, np.zeros(0))
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
            optimization=asdict(status),
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
            tests=tests,
            market=tuple(self.multipliers),
            uses={
                "share": self._share(found),
                "states": int(found.cells["state"].nunique()),
                "equations": len(found.dependent),
            },
        )
