"""Linear systems ``(I - beta P) x = b`` with ``P = sum_j diag(P_j) F_j``, and their transpose.

One deterministic rule picks the method (ecosystem.md 3.2; no clock is read):

- blocks of states that never reach each other are separate systems;
- largest block up to ``DENSE_STATES``: dense LU of each block (LAPACK);
- else sparse LU (SuperLU, minimum degree) if ``n w^2 <= LU_WORK`` with ``w`` the bandwidth after
  reverse Cuthill-McKee: thin kernels mix slowly and factor cheaply;
- else, and for factored laws too large to expand, sweeps over levels where the law has levels and
  two dense halves (:mod:`dynchoice.solvers.sweeps`): 5 sweeps a Newton step where plain GMRES needs
  500 products;
- else GMRES, on the expanded law or matrix-free.

A factorisation serves every right side at that policy. One BLAS thread: small solves are up to
60 times slower with two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from dynchoice.kernels import core as kernels
from dynchoice.model.level_product import Product
from dynchoice.model.transitions import Transitions
from dynchoice.solvers.sweeps import Sweeps
from dynchoice.typing import FloatArray, IntArray

DENSE_STATES = 700
"""States of the largest block up to which it is factored as a dense matrix."""
LU_WORK = 1e10
"""Bound on ``n w^2``, the multiplications of a banded LU, up to which the matrix is factored."""
GMRES_RESTART = 40
"""Krylov vectors before a restart."""
GMRES_CYCLES = 50
"""Restarts at most."""
GMRES_RTOL = 1e-12
"""Relative residual at which GMRES stops."""


@lru_cache(maxsize=1)
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Return a context in which BLAS runs one thread."""
    return _controller().limit(limits=1, user_api="blas")


def choose_method(transitions: Transitions) -> tuple[str, str]:
    """Return the method for a transition law ('dense', 'sparse', 'gmres', 'levels') and why.

    Chosen once a law, and kept with it: ordering the states costs as much as a solution.
    """
    kept: dict[str, Any] = transitions.__dict__
    if "_method" not in kept:
        kept["_method"] = _choose_method(transitions)
    return kept["_method"]


def _choose_method(transitions: Transitions) -> tuple[str, str]:
    """Apply the rule of the module docstring."""
    rows = transitions.stacked()
    if rows is None:
        product = getattr(transitions, "product", None)
        if product is not None:
            why = "factored law too large to expand"
            return "levels", f"{why}: sweeps over {_size(product)} states"
        return "gmres", "factored law too large to expand: matrix-free"
    largest = int(np.bincount(transitions.blocks).max())
    if largest <= DENSE_STATES:
        return "dense", f"largest block has {largest} <= {DENSE_STATES} states"
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    indptr, indices, _ = rows
    S = transitions.S
    # the rows of a state's choices follow each other: every J-th pointer makes one row a state
    by_state = np.ascontiguousarray(indptr[:: transitions.J])
    ones = np.ones(len(indices), dtype=np.int8)
    graph = csr_array((ones, indices, by_state), shape=(S, S))
    order = reverse_cuthill_mckee((graph + graph.T).tocsr(), symmetric_mode=True)
    place = np.empty(S, dtype=np.int64)
    place[order] = np.arange(S)
    row = np.repeat(np.arange(S), np.diff(by_state))
    width = float(np.abs(place[row] - place[indices]).max(initial=0))
    work = S * width**2
    why = f"n w^2 = {work:.1e} with bandwidth w = {width:.0f}; LU up to {LU_WORK:.0e}"
    if work <= LU_WORK:
        return "sparse", why
    product = getattr(transitions, "product", None)
    if product is not None:
        return "levels", f"{why}; sweeps over {_size(product)} states"
    return "gmres", why


def _size(product: Product) -> str:
    """Say how large a law of levels and halves is."""
    return f"{product.C:,} levels x {product.D} x {product.E}"


class PolicySystem:
    """The system at the policy last given to :meth:`factor`.

    Attributes
    ----------
    method, reason : str
        What the rule chose and why.
    products : int
        Krylov products (sweeps) so far.
    sweeps : Sweeps or None
        What solves where the method is ``"levels"``.
    failures : list of str
        What went wrong in a solve (a GMRES that missed its cap), for the status of the result.
    """

    def __init__(self, transitions: Transitions, beta: float) -> None:
        self.transitions, self.beta = transitions, beta
        self.method, self.reason = (
            choose_method(transitions) if beta > 0 else ("identity", "beta is zero")
        )
        self._products = 0
        self.failures: list[str] = []
        self._P: FloatArray | None = None
        self.sweeps: Sweeps | None = None
        if self.method == "levels":
            self.sweeps = Sweeps(transitions.product, beta)  # type: ignore[attr-defined]
            self.failures = self.sweeps.failures
        elif self.method == "dense":
            self._prepare_dense()
        elif self.method == "sparse":
            self._prepare_sparse()

    # dense blocks ------------------------------------------------------------------------------

    def _prepare_dense(self) -> None:
        """Make one matrix a block; states are sorted by block, each has its number within it."""
        blocks = self.transitions.blocks
        self._order = np.argsort(blocks, kind="stable").astype(np.int64)
        sizes = np.bincount(blocks)
        self._starts = np.r_[0, np.cumsum(sizes)].astype(np.int64)
        self._local = np.empty(len(blocks), dtype=np.int64)
        self._local[self._order] = np.arange(len(blocks)) - np.repeat(self._starts[:-1], sizes)
        self._matrices = [np.empty((n, n)) for n in sizes]
        self._pivots: list[IntArray] = [np.empty(0, dtype=np.int64)] * len(sizes)

    def _factor_dense(self, P: FloatArray) -> None:
        """Fill and factor the matrices, in their own memory."""
        from scipy.linalg.lapack import dgetrf

        indptr, indices, data = self.transitions.stacked()
        for b, A in enumerate(self._matrices):
            start = int(self._starts[b])
            kernels.policy_blocks(
                indptr, indices, data, P, self.beta, self._order, self._local, start, len(A), A
            )
            # A is written transposed, row by row: A.T is the block in LAPACK's column order
            _, self._pivots[b], info = dgetrf(A.T, overwrite_a=1)
            if info:
                self.failures.append(f"LU of block {b}: LAPACK info {info}")

    def _solve_dense(self, B: FloatArray, trans: int) -> FloatArray:
        """Solve for right sides ``B`` (S,) or (S, K); ``trans`` is LAPACK's, 1 for transposed."""
        from scipy.linalg.lapack import dgetrs

        if len(self._matrices) == 1:
            return np.asarray(dgetrs(self._matrices[0].T, self._pivots[0], B, trans=trans)[0])
        X = np.empty_like(B)
        for b, A in enumerate(self._matrices):
            states = self._order[self._starts[b] : self._starts[b + 1]]
            X[states] = dgetrs(A.T, self._pivots[b], B[states], trans=trans)[0]
        return X

    # sparse LU ---------------------------------------------------------------------------------

    def _prepare_sparse(self) -> None:
        """Lay out the matrix by column, as SuperLU wants it, with a place for every probability.

        Its pattern is the same at every policy, so ``factor`` only adds numbers into ``_csc_data``:
        the probability at position ``q`` of the stacked rows goes to ``_target[q]``.
        """
        indptr, indices, _ = self.transitions.stacked()
        S, J = self.transitions.S, self.transitions.J
        row = np.repeat(np.arange(S), np.diff(np.ascontiguousarray(indptr[::J])))
        # column * S + row numbers cells in the order of columns; the diagonal comes from I
        key = np.r_[indices * S + row, np.arange(S) * (S + 1)]
        unique, place = np.unique(key, return_inverse=True)
        self._target = place[: len(indices)].astype(np.int64)
        self._diagonal = place[len(indices) :]
        self._csc_rows = (unique % S).astype(np.int32)
        self._csc_ptr = np.searchsorted(unique // S, np.arange(S + 1)).astype(np.int32)
        self._csc_data = np.empty(len(unique))

    def _factor_sparse(self, P: FloatArray) -> None:
        """Fill the pattern and factor it."""
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        indptr, _, data = self.transitions.stacked()
        S = self.transitions.S
        self._csc_data[:] = 0.0
        self._csc_data[self._diagonal] = 1.0
        kernels.policy_data(indptr, data, self._target, P, -self.beta, self._csc_data)
        matrix = csc_array((self._csc_data, self._csc_rows, self._csc_ptr), shape=(S, S))
        # rows are strictly diagonally dominant: no pivoting is needed, and symmetric mode keeps
        # the minimum-degree order
        self._lu = splu(
            matrix,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )

    # GMRES -------------------------------------------------------------------------------------

    def _product(self, x: FloatArray) -> FloatArray:
        """Return ``(I - beta P) x``."""
        self._products += 1
        assert self._P is not None
        ev = self.transitions.expect(np.ascontiguousarray(x).reshape(-1))
        return np.asarray(x.reshape(-1) - self.beta * np.einsum("sj,sj->s", self._P, ev))

    def _product_transposed(self, x: FloatArray) -> FloatArray:
        """Return ``(I - beta P)' x``."""
        self._products += 1
        assert self._P is not None
        flat = x.reshape(-1)
        return np.asarray(flat - self.beta * self.transitions.push(self._P * flat[:, None]))

    def _solve_gmres(
        self, b: FloatArray, product: Callable[[FloatArray], FloatArray]
    ) -> FloatArray:
        """Solve for one right side (S,), scaled to size one."""
        from scipy.sparse.linalg import LinearOperator, gmres

        S = len(b)
        size = float(np.abs(b).max(initial=0.0))
        if size == 0.0:
            return np.zeros(S)
        operator = LinearOperator((S, S), matvec=product, dtype=np.float64)
        x, info = gmres(
            operator, b / size, rtol=GMRES_RTOL, restart=GMRES_RESTART, maxiter=GMRES_CYCLES
        )
        if info:
            # scipy asks for more than rounding may allow: what counts is the residual itself
            miss = float(np.abs(product(x) - b / size).max())
            if miss > 1e-8:
                self.failures.append(
                    f"GMRES stopped after {GMRES_CYCLES} cycles with relative residual {miss:.1e}"
                )
        return np.asarray(x * size)

    # public ------------------------------------------------------------------------------------

    @property
    def products(self) -> int:
        """Krylov products (sweeps) so far."""
        return self._products if self.sweeps is None else self.sweeps.sweeps

    def factor(self, P: FloatArray) -> None:
        """Set the policy (S, J) and factor where the method does."""
        self._P = P
        if self.method == "dense":
            self._factor_dense(P)
        elif self.method == "sparse":
            self._factor_sparse(P)
        elif self.method == "gmres":
            # without factors the policy is read at every solve: the caller may change its array
            self._P = P.copy()
        elif self.sweeps is not None:
            by_level = self.sweeps.law.laid(P)
            shared = np.may_share_memory(by_level, P)
            self.sweeps.factor(by_level.copy() if shared else by_level)

    def solve(
        self,
        b: FloatArray,
        transposed: bool = False,
        rtol: float = GMRES_RTOL,
        guess: FloatArray | None = None,
    ) -> FloatArray:
        """Return ``(I - beta P)^{-1} b``, or of the transpose, for ``b`` (S,) or (S, K).

        ``rtol`` is the relative accuracy wanted of sweeps, and ``guess`` where they start (a
        solution nearby); the other methods are exact.
        """
        if self.method == "identity":
            return np.array(b)
        if self.method == "dense":
            return self._solve_dense(b, int(transposed))
        if self.method == "sparse":
            return np.asarray(self._lu.solve(b, trans="T" if transposed else "N"))
        if self.sweeps is not None:
            return self.sweeps.solve(b, rtol, transposed, guess)
        product = self._product_transposed if transposed else self._product
        if b.ndim == 1:
            return self._solve_gmres(b, product)
        columns = [self._solve_gmres(np.ascontiguousarray(c), product) for c in b.T]
        return np.stack(columns, axis=1)
