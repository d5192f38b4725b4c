"""``solve``: the values and choice probabilities of a model at given parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import ConvergenceError, SpecificationError
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import as_floats
from dynchoice.solvers.backward_induction import backward_induction
from dynchoice.solvers.linear import one_blas_thread
from dynchoice.solvers.memory_needed import check_solution
from dynchoice.solvers.solver import Solver
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Solution:
    """Values and probabilities, and whether they converged.

    Attributes
    ----------
    V : FloatArray, shape (S,) or (T, S)
        Ex-ante value in utils (mean-zero shocks).
    v : FloatArray, shape (S, J) or (T, S, J)
        Choice-specific value in utils, minus infinity where a choice is not offered.
    ccp : FloatArray, shape (S, J) or (T, S, J)
        Observed conditional choice probabilities (inattention mixed in).
    converged : bool
    residual : float
        ``max|T(V) - V| / (1 + max|V|)``.
    message : str
    stats : dict
        Steps taken, the linear solver and why it was chosen.
    """

    V: FloatArray
    v: FloatArray
    ccp: FloatArray
    converged: bool
    residual: float
    message: str
    stats: dict[str, Any] = field(default_factory=dict)
    model: DDC | None = field(default=None, repr=False)

    def frame(self) -> pd.DataFrame:
        """Return a table of states with V and one probability column a choice."""
        if self.model is None or self.V.ndim == 2:
            raise SpecificationError("frame() is for infinite-horizon solutions with a model")
        table = self.model.states.frame()
        table["V"] = self.V
        for j, label in enumerate(self.model.choices):
            table[f"P({label})"] = self.ccp[:, j]
        return table


def solve(
    model: DDC,
    params: ArrayLike | Mapping[str, float],
    *,
    start: FloatArray | None = None,
    tol: float = 1e-12,
    maxiter: int = 50,
    strict: bool = False,
) -> Solution:
    """Solve a dynamic choice model at given parameters.

    Infinite horizon: ``V(s) = log sum_j exp v(s, j)``, ``v(s, j) = u(s, j) + beta E[V(s')|s, j]``
    by contraction and Newton-Kantorovich steps (Rust 1987; Iskhakov et al. 2016). With a
    ``horizon``: backward induction, arrays with a leading period axis.

    Parameters
    ----------
    model : DDC
    params : array (K,), mapping or Series
        Utility parameters, in utils per unit of each feature.
    start : FloatArray, shape (S,), optional
        First guess of ``V``.
    tol : float
        Bound on the residual relative to ``1 + max|V - V(root)|``.
    maxiter : int
        Newton steps at most.
    strict : bool
        Raise instead of returning a solution that did not converge.

    Returns
    -------
    Solution

    Raises
    ------
    ConvergenceError
        Only with ``strict=True``.
    SpecificationError
        Parameters of the wrong number; laws without probabilities.
    MemoryLimitError
        It would take more memory than there is: about ``8 S (8 J + 14)`` bytes (``5 J``
        by sweeps) and the linear solver's (:mod:`dynchoice.solvers.memory_needed`), checked before
        anything is allocated.

    Examples
    --------
    >>> import dynchoice as dc
    >>> states = dc.StateSpace(on=range(1))
    >>> model = dc.DDC(states=states, choices=["a", "b"], beta=0.5,
    ...                utility=dc.Utility.from_array(np.zeros((1, 2, 1)), ["k"]),
    ...                transitions=dc.Transitions.dense(np.ones((1, 2, 1))))
    >>> bool(np.isclose(dc.solve(model, [0.0]).V[0], 2 * np.log(2)))
    True
    """
    check_solution(model)
    if model.horizon is not None:
        V, v, pi, P = backward_induction(model, model.flow_utility(params))
        if not model.sophisticated:
            P = np.stack([model.observed(p) for p in pi])
        message = f"backward induction over {model.horizon} periods"
        return Solution(
            V=V,
            v=v,
            ccp=P,
            converged=True,
            residual=0.0,
            message=message,
            stats={"method": "backward"},
            model=model,
        )
    if start is not None:
        start = as_floats(start, "start")
        checks.shape(start, "start", (model.states.size,), "(S,)")
    with one_blas_thread():
        solver = Solver(model)
        point = solver.solve(model.flow_utility(params), start, tol, maxiter)
    stats = {
        "contractions": point.contractions,
        "newton": point.newton,
        "method": solver.system.method,
        "reason": solver.system.reason,
        "products": solver.system.products,
    }
    del solver.system  # of large models its vectors take as much as all results
    V = solver.value(point)
    v = np.array(solver.bellman.v)
    v += model.beta * (point.gain / (1 - model.beta))[:, None]  # the solver's are relative values
    solution = Solution(
        V=V,
        v=v,
        ccp=solver.observed(),
        converged=point.converged,
        residual=point.residual / (1 + float(np.abs(V).max())),
        message=point.message,
        stats=stats,
        model=model,
    )
    if strict and not solution.converged:
        raise ConvergenceError(solution.message)
    return solution
