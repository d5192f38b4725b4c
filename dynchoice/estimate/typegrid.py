"""TypeGrid: a nonparametric distribution of types over a grid of parameters.

After Nevo, Turner and Williams (2016): the model is solved once for each of ``G`` candidate types;
what is estimated are the weights alone, a convex problem with one solution. Either by moments,

    min_w (m - sum_g w_g m_g)' W (m - sum_g w_g m_g),   w >= 0, sum w = 1,

with ``m`` the joint frequencies of state and choice by period, or by the likelihood of members'
histories. Counterfactuals reuse the solved types.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    SpecificationError,
)
from dynchoice.estimate import first_stage as laws_of_motion
from dynchoice.estimate.first_stage import counts_of
from dynchoice.estimate.types.histories import histories
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.panel.counts import Counts
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.solvers.solver import Solver
from dynchoice.typing import FloatArray, IntArray, Progress

if TYPE_CHECKING:
    from dynchoice.panel.panel import Panel

METHODS = ("moments", "likelihood")
EM_STEPS = 20_000
EM_TOL = 1e-10
SUM_WEIGHT = 1e4
"""Weight of the row that makes the weights sum to one in the least-squares problem."""


@dataclass(frozen=True)
class TypeGridResults:
    """Weights of the candidate types, and what they say of the parameters.

    Attributes
    ----------
    grid : FloatArray, shape (G, K)
    weights : FloatArray, shape (G,)
    criterion : float
        Distance of the moments, or log-likelihood of the histories.
    draws : FloatArray, shape (B, G), or None
        Weights of resampled panels.
    converged : bool
        Whether the weights met their criterion: no type could add more than 1e-4 to the
        log-likelihood, or non-negative least squares came to an end.
    model : DDC
        With the transitions as estimated.
    """

    names: tuple[str, ...]
    grid: FloatArray
    weights: FloatArray
    criterion: float
    method: str
    model: DDC
    draws: FloatArray | None
    notes: tuple[str, ...] = ()
    converged: bool = True

    def frame(self) -> pd.DataFrame:
        """Return the types with positive weight, largest first."""
        table = pd.DataFrame(self.grid, columns=list(self.names))
        table.insert(0, "weight", self.weights)
        if self.draws is not None:
            table.insert(1, "std_error", self.draws.std(axis=0, ddof=1))
        kept = table[table["weight"] > 1e-6]
        return kept.sort_values("weight", ascending=False)

    def moments(self) -> pd.DataFrame:
        """Return mean and standard deviation of each parameter over types, with errors."""
        mean = self.weights @ self.grid
        sd = np.sqrt(np.maximum(self.weights @ (self.grid - mean) ** 2, 0.0))
        table = pd.DataFrame({"mean": mean, "sd": sd}, index=list(self.names))
        if self.draws is not None:
            means = self.draws @ self.grid
            seconds = self.draws @ self.grid**2
            spreads = np.sqrt(np.maximum(seconds - means**2, 0.0))
            table["mean_se"] = means.std(axis=0, ddof=1)
            table["sd_se"] = spreads.std(axis=0, ddof=1)
        return table

    def __str__(self) -> str:
        used = int((self.weights > 1e-6).sum())
        head = (
            f"TypeGrid ({self.method}): {used} of {len(self.weights)} types have weight;"
            f" criterion {self.criterion:.6g}{'' if self.converged else ' NOT CONVERGED'}"
        )
        parts = [head, self.moments().to_string(float_format="{:.4f}".format)]
        parts += [self.frame().head(10).to_string(float_format="{:.4f}".format), *self.notes]
        return "\n\n".join(parts)

    __repr__ = __str__


class TypeGrid:
    """Nonparametric distribution of types over a grid (Nevo, Turner and Williams 2016).

    Parameters
    ----------
    model : DDC
        Infinite horizon.
    data : Panel or Counts
    grid : array (G, K) or DataFrame
        Candidate types: a value of every parameter each.
    method : {"moments", "likelihood"}
        Moments need no histories of members, but that every type starts from the distribution
        over states of the first period (true where histories start at birth); the likelihood
        conditions on the first state in the same way.

    Raises
    ------
    SpecificationError
        A grid of the wrong shape; one type only; an unknown method.
    """

    def __init__(
        self,
        model: DDC,
        data: Panel | Counts,
        grid: FloatArray | pd.DataFrame,
        *,
        method: str = "moments",
    ) -> None:
        if model.horizon is not None:
            raise SpecificationError("TypeGrid is for infinite horizons")
        checks.one_of(method, "method", METHODS)
        rows = grid.to_dict("records") if hasattr(grid, "to_dict") else list(grid)
        self.grid = np.array([model.vector(row) for row in rows])
        if len(self.grid) < 2:
            raise SpecificationError("grid: at least two candidate types are needed")
        self.model, self.method = model, method
        self.counts: Counts
        self.counts, self.panel = counts_of(data)
        self._first = laws_of_motion.first_stage(model, self.counts, self.panel)

    def fit(
        self, *, draws: int = 0, seed: int = 0, progress: Progress | None = None
    ) -> TypeGridResults:
        """Solve every type and find the weights.

        Parameters
        ----------
        draws : int
            Resampled panels (by member bucket) for standard errors; the types are not solved
            again, and the laws of motion are kept.
        seed : int
        """
        model = self._first.model
        P = []
        with one_blas_thread():
            solver = Solver(model)
            for g, theta in enumerate(self.grid):
                point = solver.solve_near(theta) if g else solver.expand(theta)
                if not point.converged:
                    raise SpecificationError(
                        f"the model at type {g} does not solve: {point.message}"
                    )
                P.append(solver.observed())
                if progress is not None:
                    progress(g + 1, len(self.grid), "types solved")
        if self.method == "likelihood":
            return self._by_likelihood(np.array(P), draws, seed)
        return self._by_moments(np.array(P), draws, seed)

    def _by_likelihood(self, P: FloatArray, draws: int, seed: int) -> TypeGridResults:
        data = histories(self.counts.members, False)
        log_L = np.stack([data.sums(np.log(np.where(p > 0, p, 1.0))) for p in P], axis=1)
        weights, value, sound = grid_weights(log_L, data.weight)
        sample = None
        if draws:
            members = self.counts.members
            assert members is not None
            sample = np.empty((draws, len(P)))
            for b, factor in enumerate(_factors(members.bucket, draws, seed)):
                w = np.bincount(
                    data.member, weights=members.weights * factor, minlength=len(data.weight)
                )
                sample[b] = grid_weights(log_L, np.asarray(w, dtype=np.float64), weights)[0]
        return TypeGridResults(
            names=self.model.names,
            grid=self.grid,
            weights=weights,
            criterion=value,
            method=self.method,
            model=self._first.model,
            draws=sample,
            converged=sound,
        )

    def _by_moments(self, P: FloatArray, draws: int, seed: int) -> TypeGridResults:
        model, counts = self._first.model, self.counts
        T = counts.last_period - counts.first_period + 1
        if isinstance(model.transitions, Factored):
            moves, moved = counts.moves()
            if float(moved[model.transitions.surprises(moves)].sum()) > 0:
                raise SpecificationError(
                    "the panel sees prices or bundles change (a Fixed axis moves), which paths of"
                    " moments do not follow: use method='likelihood'"
                )
        n = counts.n_tsj(T) if counts.origin in (None, counts.first_period) else None
        if n is None:
            raise DataError("moments by period need the counts of the whole panel")
        size = n.sum(axis=(1, 2), keepdims=True)
        start = n[0].sum(axis=1) / n[0].sum()
        predicted = []
        for p in P:
            mu, path = start, []
            for t in range(T):
                path.append(mu[:, None] * p)
                if t < T - 1:
                    mu = model.transitions.push(path[-1])
            predicted.append(np.array(path))
        M = np.stack([m.reshape(-1) for m in predicted], axis=1)
        overall = M.mean(axis=1)
        W = np.sqrt(np.repeat(size.reshape(-1), M.shape[0] // T) / np.maximum(overall, 1e-6))
        m = (n / np.maximum(size, 1e-300)).reshape(-1)
        weights, value = simplex_least_squares(M * W[:, None], m * W)
        sample = None
        if draws:
            if self.panel is None:
                raise SpecificationError("bootstrapped moments need the Panel, not its Counts")
            buckets = self.panel.bucket_cells()
            sample = np.empty((draws, len(P)))
            for b, factor in enumerate(_factors(buckets.cells[:, 1], draws, seed)):
                _, _, t, s, j, _, decides = buckets.cells.T
                code = ((t - counts.first_period) * n.shape[1] + s) * n.shape[2] + j
                flat = np.bincount(
                    code, weights=buckets.n * factor * (decides == 1), minlength=n.size
                ).reshape(n.shape)
                share = flat / np.maximum(flat.sum(axis=(1, 2), keepdims=True), 1e-300)
                sample[b] = simplex_least_squares(M * W[:, None], share.reshape(-1) * W)[0]
        notes = ("Every type is taken to start from the first period's distribution over states",)
        return TypeGridResults(
            names=model.names,
            grid=self.grid,
            weights=weights,
            criterion=value,
            method=self.method,
            model=model,
            draws=sample,
            notes=notes,
        )


def simplex_least_squares(A: FloatArray, b: FloatArray) -> tuple[FloatArray, float]:
    """Return ``w >= 0`` with ``sum w = 1`` that minimises ``|b - A w|^2``, and the minimum."""
    from scipy.optimize import nnls

    scale = SUM_WEIGHT * max(float(np.abs(A).max()), 1.0)
    top = np.vstack([A, np.full(A.shape[1], scale)])
    try:
        w, _ = nnls(top, np.r_[b, scale], maxiter=50 * A.shape[1])
    except RuntimeError as error:
        raise ConvergenceError(f"TypeGrid: the weights did not converge: {error}") from error
    w = w / w.sum()
    return w, float(((b - A @ w) ** 2).sum())


def grid_weights(
    log_L: FloatArray, weight: FloatArray, start: FloatArray | None = None
) -> tuple[FloatArray, float, bool]:
    """Return weights (G,) that maximise ``sum_i weight_i log sum_g w_g L_ig``, value, converged.

    EM for weights alone is monotone and the problem concave; it stops when Lindsay's (1983)
    gradient bound says that no type could add more than ``1e-4`` to the log-likelihood.
    """
    top = log_L.max(axis=1, keepdims=True)
    L = np.exp(log_L - top)
    G = L.shape[1]
    w = np.full(G, 1 / G) if start is None else 0.99 * start + 0.01 / G
    total = weight.sum()
    sound = False
    for _ in range(EM_STEPS):
        mix = L @ w
        gradient = L.T @ (weight / mix)
        w = w * gradient / total
        if gradient.max() - total < 1e-4:
            sound = True
            break
    if not sound:
        warnings.warn("TypeGrid: the weights did not converge", ConvergenceWarning, stacklevel=4)
    w = np.where(w < EM_TOL, 0.0, w)
    w /= w.sum()
    return w, float(weight @ (np.log(L @ w) + top[:, 0])), sound


def _factors(bucket: IntArray, draws: int, seed: int) -> Iterator[IntArray]:
    """Yield how often each entry's bucket is drawn, one resampled panel after the other."""
    filled, code = np.unique(bucket, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)))[code]
