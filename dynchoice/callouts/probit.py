"""Bayesian probit regression with sparse features: the model of the probability of a click.

``P(click | x, w) = Phi(x'w)``, weights ``w_i ~ N(mu_c(i), tau_c(i)^2)`` by feature group ``c``
(SOURCES.md 2 and 3; Graepel, Candela, Borchert and Herbrich 2010 for the updates).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from scipy.special import ndtr

from dynchoice import checks
from dynchoice.callouts.impression_cells import Cells, check_rows, make_cells, no_cells, split_cells
from dynchoice.callouts.joint import Joint, joint_posterior
from dynchoice.errors import ConvergenceWarning, DynChoiceWarning, SpecificationError, suggest
from dynchoice.kernels import callouts as kernels
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Moments: TypeAlias = Mapping[str, float | Sequence[float]]
"""Feature group -> variance, or (mean, variance)."""
Sites: TypeAlias = tuple[FloatArray, FloatArray]
"""Each cell's part of the posterior in natural parameters: ``tau`` and ``nu`` of its predictor
(``joint``, shape (cells,)), or precision and shift of its features (``ep``, shape (cells, A))."""


class LearnedPrior(Protocol):
    """A prior that was learned: a :class:`dynchoice.MetaPrior`."""

    @property
    def moments(self) -> Mapping[str, tuple[float, float]]:
        """Feature group -> (mean, variance)."""


Prior: TypeAlias = Moments | LearnedPrior

METHODS = {
    "adf": "assumed-density filtering: each batch once, nothing kept but means and variances",
    "ep": "expectation propagation, factored: distinct rows kept, until nothing changes",
    "joint": "expectation propagation with all covariances: distinct rows kept",
}
PASSES, TOLERANCE = 200, 1e-4
MOST_JOINT = 5000
NODES, WEIGHTS = np.polynomial.hermite.hermgauss(24)
WEIGHTS = WEIGHTS / np.sqrt(np.pi)


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian belief over weights.

    Attributes
    ----------
    mean, variance : array, shape (n,)
    covariance : array, shape (n, n), optional
        None where weights are independent.
    converged : bool
    passes : int
        Passes over the cells that it took.
    log_evidence : float or None
        Of the cells, where it is known (``joint``).
    """

    mean: FloatArray
    variance: FloatArray
    covariance: FloatArray | None = None
    converged: bool = True
    passes: int = 0
    log_evidence: float | None = None

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Return ``n`` draws of all weights, shape (n, features)."""
        z = rng.standard_normal((n, len(self.mean)))
        if self.covariance is None:
            z *= np.sqrt(self.variance)
        else:
            z = z @ root(self.covariance).T
        z += self.mean
        return z

    def moments(self, index: IntArray, value: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and variance of the linear predictor of rows of features."""
        mean, var = np.empty(len(index)), np.empty(len(index))
        if self.covariance is None:
            kernels.linear_moments(index, value, self.mean, self.variance, mean, var)
        else:
            kernels.joint_moments(index, value, self.mean, self.covariance, mean, var)
        return mean, var


def root(covariance: FloatArray) -> FloatArray:
    """Return a factor ``R`` with ``R R' = covariance``, also where it is singular to rounding."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), float)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of the weights, without any prior, as a Gaussian in natural parameters.

    The posterior less the prior: ``precision`` (n,) or (n, n) and ``shift`` (n,) = precision times
    estimate. Nothing of the prior is counted twice, as it would be in posterior means (SOURCES.md
    2).
    """

    precision: FloatArray
    shift: FloatArray

    @property
    def joint(self) -> bool:
        """Whether covariances are known."""
        return self.precision.ndim == 2


class Probit:
    """A probit model of clicks that learns batch by batch.

    Parameters
    ----------
    groups : sequence of str
        Group of each feature: weights of a group share their prior.
    prior : mapping or MetaPrior, optional
        Group -> variance, or (mean, variance), of its weights before any data. Default: 0 and 1.
    method : str
        ``"joint"`` (distinct rows are kept with their counts, and all covariances between weights:
        means and variances are those of the exact posterior to a few hundredths of a standard
        deviation; up to 5,000 features), ``"adf"`` (a stream: any number of rows and features;
        variances of single weights are too small where features come together, and single rows'
        order, which is shuffled, moves predictions by up to half a standard deviation) or ``"ep"``
        (as joint, without covariances: means as good, but predictions are too uncertain, however
        many data, where features always come together: not for Thompson sampling there).
    forget : float
        Share of what was known that is kept at each batch: a power prior, for drift. 1 keeps all.

    Attributes
    ----------
    posterior : Gaussian
    prior : dict
        Group -> (mean, variance).
    batches : int
        Batches learned.

    Raises
    ------
    SpecificationError
        An unknown group, method, or a prior that is none.

    Examples
    --------
    >>> import numpy as np
    >>> model = Probit(["1", "item", "item"], prior={"1": (-1.5, 1.0), "item": 0.1})
    >>> model.update([[0, 1], [0, 2]], clicks=[30, 10], shown=[200, 200]).batches
    1
    >>> p = model.predict([[0, 1], [0, 2]])
    >>> bool(p[0] > p[1])
    True
    """

    def __init__(
        self,
        groups: Sequence[str],
        prior: Prior | None = None,
        *,
        method: str = "adf",
        forget: float = 1.0,
    ) -> None:
        names = [str(g) for g in checks.items(groups, "groups")]
        if method not in METHODS:
            meanings = "; ".join(f"{k!r}: {v}" for k, v in METHODS.items())
            raise SpecificationError(
                f"method {method!r} is unknown.{suggest(method, METHODS)} There are {meanings}"
            )
        self.forget = checks.share(checks.positive(forget, "forget"), "forget")
        if method == "joint" and len(names) > MOST_JOINT:
            raise SpecificationError(
                f"{len(names):,} features: joint covariances are for up to {MOST_JOINT:,}; use"
                " method='ep', or 'adf' for a stream"
            )
        self.method = method
        self.groups = tuple(dict.fromkeys(names))
        place = {g: i for i, g in enumerate(self.groups)}
        self.group = np.array([place[g] for g in names], np.int64)
        self.prior = read_prior(prior, self.groups)
        self.batches, self.impressions, self.clicks = 0, 0.0, 0.0
        n, C = len(names), len(self.groups)
        self.together = np.zeros((C, C))
        """How often groups are active together: which means of groups can be told apart."""
        self.cells = no_cells()
        """Distinct rows kept, with their outcomes (none with ``adf``)."""
        # posterior less prior in natural parameters, weight by weight (0 with joint)
        self._precision, self._shift = np.zeros(n), np.zeros(n)
        self._sites: Sites | None = None
        self.posterior = self._from_prior()

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.group)

    def prior_moments(self) -> tuple[FloatArray, FloatArray]:
        """Return prior means and variances of all weights, shape (n,) each."""
        table = np.array([self.prior[g] for g in self.groups])
        return table[self.group, 0], table[self.group, 1]

    def update(
        self,
        index: ArrayLike,
        clicks: ArrayLike,
        shown: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        seed: int = 0,
    ) -> Probit:
        """Learn a batch of rows whose outcomes are known; return the model.

        Parameters
        ----------
        index : integer array, shape (n, A)
            Active features of each row, -1 where it has fewer.
        clicks : array, shape (n,)
        shown : array, shape (n,), optional
            Impressions of each row. Default: one.
        value : array, shape (n, A), optional
            Default: ones.
        seed : int
            Of the order in which ``adf`` takes the rows.

        Raises
        ------
        SpecificationError, DataError
            See :func:`dynchoice.callouts.impression_cells.make_cells`.
        """
        new = make_cells(index, clicks, shown, value, features=self.features)
        return self.learn(new, seed=seed)

    def learn(self, cells: Cells, *, seed: int = 0) -> Probit:
        """Learn a batch of cells; see :meth:`update`."""
        new, _ = cells.add_up()
        self._count(new)
        if self.method == "adf":
            self._stream(new, seed)
        else:
            old = self.cells.fade(self.forget) if self.forget < 1 else self.cells
            if old.size != self.cells.size:  # spent cells are gone, so sites fit no longer
                self._sites = None
            merged, place = old.join(new).add_up()
            self._sites = move_sites(self._sites, place[: old.size], merged, self.method)
            self.cells = merged
            self._settle()
        self.batches += 1
        return self

    def with_open(self, cells: Cells | None, *, seed: int = 0) -> Gaussian:
        """Return the posterior that also takes account of open impressions; keep nothing of them.

        An impression without a click, whose clicks come by now with probability ``due``, has
        likelihood ``1 - due Phi(z)``.
        """
        if cells is None or not cells.size:
            return self.posterior
        new, _ = cells.add_up()
        if self.method == "adf":
            m, v = self.posterior.mean.copy(), self.posterior.variance.copy()
            one_pass(new, m, v, seed)
            return Gaussian(m, v)
        merged, place = self.cells.join(new).add_up()
        sites = move_sites(self._sites, place[: self.cells.size], merged, self.method)
        posterior, _ = self._solve(merged, sites)
        warn_unless_settled(posterior)
        return posterior

    def predict(self, index: ArrayLike, value: ArrayLike | None = None) -> FloatArray:
        """Return probabilities of a click, averaged over the posterior of the weights.

        ``Phi(E z / sqrt(1 + var z))``: for an item never shown, its group's mean and variance.
        """
        rows, weights = check_rows(index, value, self.features)
        mean, var = self.posterior.moments(rows, weights)
        return np.asarray(ndtr(mean / np.sqrt(1 + var)))

    def likelihood(self) -> Likelihood:
        """Return the likelihood of the weights: the posterior less the prior."""
        if self.method == "joint":
            if self._sites is None:
                n = self.features
                return Likelihood(np.zeros((n, n)), np.zeros(n))
            design = Joint(self.cells, self.features)
            tau, nu = self._sites
            return Likelihood(design.precision(tau), design.shift(nu))
        return Likelihood(self._precision.copy(), self._shift.copy())

    def set_prior(self, prior: Prior | None) -> Probit:
        """Replay all that was learned under another prior; return the model.

        ``ep`` and ``joint`` go over their cells again; ``adf`` multiplies the new prior by what its
        updates amount to.
        """
        self.prior = read_prior(prior, self.groups)
        if self.method == "adf":
            self.posterior = self._from_prior()
        else:
            self._settle()
        return self

    def remap(self, place: IntArray, groups: Sequence[str]) -> Probit:
        """Move features to new places among more of them; the new ones start from their group.

        Parameters
        ----------
        place : integer array, shape (n,)
            New place of each old feature.
        groups : sequence of str
            Group of each feature afterwards. Groups stay as they are.
        """
        code = {g: i for i, g in enumerate(self.groups)}
        unknown = [g for g in groups if g not in code]
        if unknown:
            raise SpecificationError(f"the group {unknown[0]!r} is new: groups are fixed")
        if len(groups) == self.features and np.array_equal(place, np.arange(self.features)):
            return self
        if self.method == "joint" and len(groups) > MOST_JOINT:
            self._to_stream(len(groups))
        self.group = np.array([code[g] for g in groups], np.int64)
        precision, shift = np.zeros(len(groups)), np.zeros(len(groups))
        precision[place], shift[place] = self._precision, self._shift
        self._precision, self._shift = precision, shift
        index = np.where(self.cells.index >= 0, place[np.maximum(self.cells.index, 0)], -1)
        self.cells = replace(self.cells, index=index)
        if self.method == "adf":
            self.posterior = self._from_prior()
        else:
            self._settle()
        return self

    def _to_stream(self, features: int) -> None:
        """Go on as a stream, from each weight's own posterior: the model has grown too large."""
        warnings.warn(
            f"{features:,} features: covariances are kept for up to {MOST_JOINT:,}; the model goes"
            " on with method 'adf' and forgets them",
            DynChoiceWarning,
            stacklevel=4,
        )
        m0, v0 = self.prior_moments()
        mean, variance = self.posterior.mean, self.posterior.variance
        self._precision = np.maximum(1 / variance - 1 / v0, 0.0)
        self._shift = mean / variance - m0 / v0
        self.cells, self._sites, self.method = no_cells(), None, "adf"

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays."""
        return {
            "method": self.method,
            "forget": self.forget,
            "groups": list(self.groups),
            "group": self.group,
            "prior": {g: list(p) for g, p in self.prior.items()},
            "batches": self.batches,
            "impressions": self.impressions,
            "clicks": self.clicks,
            "together": self.together,
            "precision": self._precision,
            "shift": self._shift,
            "index": self.cells.index,
            "value": self.cells.value,
            "outcomes": self.cells.outcomes,
            "sites": None if self._sites is None else list(self._sites),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Probit:
        """Return the model that :meth:`to_tree` took apart."""
        names = [tree["groups"][int(c)] for c in tree["group"]]
        prior = {g: tuple(p) for g, p in tree["prior"].items()}
        model = cls(names, prior, method=tree["method"], forget=tree["forget"])
        # groups keep the saved order, which need not be that of the features
        model.groups = tuple(tree["groups"])
        model.group = np.asarray(tree["group"], np.int64)
        model.prior = {g: prior[g] for g in model.groups}
        model.batches, model.together = int(tree["batches"]), tree["together"]
        model.impressions, model.clicks = float(tree["impressions"]), float(tree["clicks"])
        model._precision, model._shift = tree["precision"], tree["shift"]
        index, value = tree["index"], tree["value"]
        model.cells = Cells(index, value, tree["outcomes"], np.ones(len(index)))
        if tree["sites"] is not None:
            first, second = tree["sites"]
            model._sites = (first, second)
        model.posterior = (
            model._solve(model.cells, model._sites)[0] if index.size else model._from_prior()
        )
        return model

    def _count(self, new: Cells) -> None:
        """Add a batch to the totals."""
        shown = new.outcomes.sum(axis=1)
        per_group = np.zeros((new.size, len(self.groups)))
        for a in range(new.index.shape[1]):
            active = np.flatnonzero(new.index[:, a] >= 0)
            group = self.group[new.index[active, a]]
            np.add.at(per_group, (active, group), new.value[active, a])
        self.together = self.forget * self.together + per_group.T @ (per_group * shown[:, None])
        self.impressions += new.shown
        self.clicks += float(new.outcomes[:, 0].sum())

    def _from_prior(self) -> Gaussian:
        """Return prior times the likelihood as kept in natural parameters."""
        m0, v0 = self.prior_moments()
        variance = 1 / (1 / v0 + self._precision)
        mean = variance * (m0 / v0 + self._shift)
        covariance = np.diag(variance) if self.method == "joint" else None
        return Gaussian(mean, variance, covariance)

    def _stream(self, new: Cells, seed: int) -> None:
        """Update the posterior by each cell of a batch once."""
        self._precision = self.forget * self._precision
        self._shift = self.forget * self._shift
        start = self._from_prior()
        m, v = start.mean.copy(), start.variance.copy()
        one_pass(new, m, v, seed + self.batches)
        m0, v0 = self.prior_moments()
        self._precision = np.maximum(1 / v - 1 / v0, 0.0)
        self._shift = m / v - m0 / v0
        self.posterior = Gaussian(m, v)

    def _settle(self) -> None:
        """Solve for the posterior of what is kept."""
        self.posterior, self._sites = self._solve(self.cells, self._sites)
        warn_unless_settled(self.posterior)
        if self.method == "ep":
            m0, v0 = self.prior_moments()
            self._precision = 1 / self.posterior.variance - 1 / v0
            self._shift = self.posterior.mean / self.posterior.variance - m0 / v0

    def _solve(self, cells: Cells, sites: Sites | None) -> tuple[Gaussian, Sites | None]:
        """Return the posterior of cells and their sites, starting from given ones (left alone)."""
        m0, v0 = self.prior_moments()
        if not cells.size:
            covariance = np.diag(v0) if self.method == "joint" else None
            return Gaussian(m0, v0, covariance), None
        if self.method == "joint":
            start = None if sites is None else (sites[0].copy(), sites[1].copy())
            m, S, settled, passes, converged, evidence = joint_posterior(
                cells, m0, v0, start, NODES, WEIGHTS
            )
            return Gaussian(m, np.diag(S).copy(), S, converged, passes, evidence), settled
        return self._solve_factored(cells, sites, m0, v0)

    def _solve_factored(
        self, cells: Cells, sites: Sites | None, m0: FloatArray, v0: FloatArray
    ) -> tuple[Gaussian, Sites]:
        """Return the posterior without covariances, and its sites; see :meth:`_solve`."""
        shape = cells.index.shape
        p, h = (np.zeros(shape), np.zeros(shape)) if sites is None else (x.copy() for x in sites)
        order = np.arange(cells.size)
        active = cells.index >= 0
        precision, shift = 1 / v0, m0 / v0
        np.add.at(precision, cells.index[active], p[active])
        np.add.at(shift, cells.index[active], h[active])
        if (precision <= 0).any():  # sites of another prior that do not fit this one
            p, h = np.zeros(shape), np.zeros(shape)
            precision, shift = 1 / v0, m0 / v0
        m, v = shift / precision, 1 / precision
        passes, change = 0, np.inf
        while change > TOLERANCE and passes < PASSES:
            # the rows and their order; the posterior; the sites, taken out and kept; the quadrature
            rows = (cells.index, cells.value, cells.outcomes, cells.due, order)
            change = kernels.factored_pass(*rows, m, v, p, h, True, NODES, WEIGHTS)
            passes += 1
        return Gaussian(m, v, None, change <= TOLERANCE, passes), (p, h)


def warn_unless_settled(posterior: Gaussian) -> None:
    """Warn if a posterior's passes over the cells did not settle."""
    if not posterior.converged:
        warnings.warn(
            f"the posterior of clicks did not settle in {posterior.passes} passes over the cells;"
            " its `converged` says so",
            ConvergenceWarning,
            stacklevel=3,
        )


def one_pass(new: Cells, m: FloatArray, v: FloatArray, seed: int) -> None:
    """Update a factored posterior by each cell once, in a random order."""
    outcomes, cell = split_cells(new.outcomes)
    order = np.random.default_rng(seed).permutation(len(cell))
    no_sites = np.zeros((1, 1))
    rows = (new.index[cell], new.value[cell], outcomes, new.due[cell], order)
    kernels.factored_pass(*rows, m, v, no_sites, no_sites, False, NODES, WEIGHTS)


def move_sites(sites: Sites | None, place: IntArray, cells: Cells, method: str) -> Sites | None:
    """Return the sites of old cells at their places among new ones (0 for those)."""
    if sites is None:
        return None

    def move(old: FloatArray) -> FloatArray:
        if method == "joint":
            new = np.zeros(cells.size)
            new[place] = old
        else:
            new = np.zeros(cells.index.shape)
            new[place, : old.shape[1]] = old
        return new

    return move(sites[0]), move(sites[1])


def prior_mapping(prior: Prior | None) -> Moments:
    """Return a prior by group: a mapping as it is, what a MetaPrior has learned, or nothing.

    Raises
    ------
    SpecificationError
        It is no prior.
    """
    moments = {} if prior is None else getattr(prior, "moments", prior)
    if not isinstance(moments, Mapping):
        raise SpecificationError(
            f"prior={prior!r}: give {{group: variance}} or {{group: (mean, variance)}}"
        )
    return moments


def read_prior(prior: Prior | None, groups: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return group -> (mean, variance) of every group; N(0, 1) where the prior names none.

    Raises
    ------
    SpecificationError
        A group that is unknown, or a variance that is not positive.
    """
    moments = prior_mapping(prior)
    checks.known(moments, groups, "prior: feature group")
    out = {}
    for g in groups:
        entry: Any = moments.get(g, 1.0)
        try:
            mean, variance = map(float, (0.0, entry) if np.ndim(entry) == 0 else entry)
        except (TypeError, ValueError):
            raise SpecificationError(
                f"prior of {g!r} is {entry!r}: give a variance, or (mean, variance)"
            ) from None
        if not (np.isfinite(mean) and 0 < variance < np.inf):
            raise SpecificationError(
                f"prior of {g!r} is mean {mean:g}, variance {variance:g}: a positive variance is"
                " needed"
            )
        out[g] = (mean, variance)
    return out
