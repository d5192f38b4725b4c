"""Expectation propagation with all covariances between the weights of a probit model.

Sites are Gaussian in each cell's linear predictor ``x'w``; the posterior has precision
``diag(1 / v0) + X' diag(tau) X`` (Rasmussen and Williams 2006, section 3.6, in weight space).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array

from dynchoice.callouts.impression_cells import Cells
from dynchoice.kernels import callouts as kernels
from dynchoice.typing import FloatArray

PASSES, TOLERANCE = 200, 1e-5


class Joint:
    """The design matrix of cells, and the sums that sites need of it."""

    def __init__(self, cells: Cells, features: int) -> None:
        active = cells.index >= 0
        rows = np.broadcast_to(np.arange(cells.size)[:, None], cells.index.shape)[active]
        data = (cells.value[active], (rows, cells.index[active]))
        self.x = csr_array(data, shape=(cells.size, features))

    def precision(self, tau: FloatArray) -> FloatArray:
        """Return ``X' diag(tau) X``."""
        return np.asarray((self.x.T @ self.x.multiply(tau[:, None])).todense())

    def shift(self, nu: FloatArray) -> FloatArray:
        """Return ``X' nu``."""
        return np.asarray(self.x.T @ nu)


def joint_posterior(
    cells: Cells,
    m0: FloatArray,
    v0: FloatArray,
    sites: tuple[FloatArray, FloatArray] | None,
    nodes: FloatArray,
    weights: FloatArray,
) -> tuple[FloatArray, FloatArray, tuple[FloatArray, FloatArray], int, bool, float]:
    """Solve for the posterior: mean (n,), covariance (n, n), sites, passes, settled, log evidence.

    Parameters
    ----------
    cells : Cells
    m0, v0 : array, shape (n,)
        Prior.
    sites : pair of arrays (cells,), optional
        Where to start: natural parameters ``tau`` and ``nu``.
    nodes, weights : array
        Gauss-Hermite, weights divided by the root of pi.
    """
    design = Joint(cells, len(m0))
    tau, nu = sites if sites is not None else (np.zeros(cells.size), np.zeros(cells.size))
    zm, zv = np.empty(cells.size), np.empty(cells.size)

    def solve() -> tuple[FloatArray, FloatArray, Any]:
        precision = design.precision(tau)
        precision[np.diag_indices(len(m0))] += 1 / v0
        factor = cho_factor(precision, lower=True)
        covariance = cho_solve(factor, np.eye(len(m0)))
        mean = cho_solve(factor, m0 / v0 + design.shift(nu))
        kernels.joint_moments(cells.index, cells.value, mean, covariance, zm, zv)
        return mean, covariance, factor

    mean, covariance, factor = solve()
    # damped where a pass changes more than the one before: the sites swing around their answer
    step, before, passes, converged = 1.0, np.inf, 0, False
    while passes < PASSES and not converged:
        change = kernels.joint_sites(
            zm, zv, cells.outcomes, cells.due, tau, nu, step, nodes, weights
        )
        mean, covariance, factor = solve()
        passes += 1
        converged = change < TOLERANCE
        step = max(0.25, 0.7 * step) if change > before else step
        before = change
    evidence = kernels.joint_evidence(zm, zv, cells.outcomes, cells.due, tau, nu, nodes, weights)
    # log of the Gaussian's own integral: prior, sites and the posterior's normaliser
    shift = m0 / v0 + design.shift(nu)
    log_det = 2 * float(np.log(np.diag(factor[0])).sum()) + float(np.log(v0).sum())
    integral = 0.5 * float(shift @ mean) - 0.5 * float((m0 * m0 / v0).sum()) - 0.5 * log_det
    return mean, covariance, (tau, nu), passes, converged, float(evidence) + integral
