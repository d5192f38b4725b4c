"""Estimate how much memory a solution or a likelihood takes, before it is allocated.

For ``S`` states, ``J`` choices and ``K`` parameters a solution holds about ``8 S (8 J + 14)``
bytes, ``8 S (5 J + 14)`` where sweeps solve it, and what its linear solver needs: ``8 n^2`` a dense
block of ``n`` states, twice the band of a sparse factorisation, or Krylov vectors. A likelihood
adds ``8 S J K`` for each of five arrays of derivatives (two evaluations are held while a third is
made) and ``24 S K`` for those of values.
"""

from __future__ import annotations

import numpy as np

from dynchoice.memory import require
from dynchoice.model.ddc import DDC
from dynchoice.model.level_product import Product
from dynchoice.solvers.linear import DENSE_STATES, GMRES_RESTART, LU_WORK
from dynchoice.solvers.sweeps import KRYLOV_NUMBERS, KRYLOV_VECTORS

FEW_STATES = 20_000
"""States (times periods) below which no check is made: a few hundred megabytes at most."""
REMEDY = (
    "use fewer states (join levels, drop axes), split the model by segment or offer, or raise"
    " DYNCHOICE_MEMORY if it is set"
)


def solution_bytes(model: DDC) -> int:
    """Return the bytes that a solution takes beside the model itself, about."""
    S, J, _ = model.shape
    if model.horizon is not None:
        return 8 * S * (3 * J + 1) * model.horizon
    if model.beta == 0:
        return 8 * S * (8 * J + 14)
    # arrays (S, J) held at one time: the operator by level makes some of them on demand only
    arrays = 8 if swept(model) is None else 5
    return 8 * S * (arrays * J + 14) + solver_bytes(model)


def swept(model: DDC) -> Product | None:
    """Return the levels and halves of a law too large to expand, or None if it has none."""
    F = model.transitions
    return getattr(F, "product", None) if F.stacked() is None else None


def solver_bytes(model: DDC) -> int:
    """Return the bytes of the linear solver that :func:`choose_method` would choose."""
    F, S = model.transitions, model.states.size
    if F.stacked() is None:
        law = swept(model)
        if law is None:
            return 8 * S * (GMRES_RESTART + 6)
        n = law.C * law.n
        vectors = max(8, min(KRYLOV_NUMBERS // (2 * n), KRYLOV_VECTORS))
        chains = max(len(half[0]) for half in law._halves)
        return int(8 * n * (2 * vectors + 3 + chains))
    sizes = np.bincount(F.blocks).astype(float)
    if sizes.max() <= DENSE_STATES:
        return int(8 * (sizes**2).sum())
    # a band of width w has n w numbers, and n w^2 is bounded; Krylov vectors take no more
    return int(16 * np.sqrt(LU_WORK * S))


def likelihood_bytes(model: DDC) -> int:
    """Return the bytes that a likelihood's derivatives take, about."""
    S, J, K = model.shape
    periods = model.horizon or 1
    return 8 * S * J * K * 5 * periods + 24 * S * K * periods


def check_solution(model: DDC) -> None:
    """Raise if a solution cannot fit.

    Raises
    ------
    MemoryLimitError
        With what it takes, what there is, and what to do.
    """
    if model.states.size * (model.horizon or 1) > FEW_STATES:
        what = f"a solution of {model.states.size:,} states"
        require(solution_bytes(model), what, REMEDY)


def check_likelihood(model: DDC) -> None:
    """Raise if a likelihood and its solution cannot fit.

    Raises
    ------
    MemoryLimitError
        With what it takes, what there is, and what to do.
    """
    S, _, K = model.shape
    if S * (model.horizon or 1) > FEW_STATES:
        what = f"a likelihood of {S:,} states and {K} parameters"
        require(solution_bytes(model) + likelihood_bytes(model), what, REMEDY)
