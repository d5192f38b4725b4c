"""Inattention: what happens in the periods in which a member does not look.

With probability ``attention(s)`` a member chooses, with probabilities ``pi``; otherwise the
default of the state is executed (SOURCES.md 7.3):

    P(a|s) = attention pi(a|s) + (1 - attention) 1{a = default}             (mixing)
    V(s)   = attention logsum(v(s)) + (1 - attention) v(s, default)

:func:`mix` and :func:`unmix` go from ``pi`` to ``P`` and back. The solvers mix P and V in one pass
over the states (:func:`dynchoice.kernels.core.soft_bellman`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.panel.states import StateSpace, as_floats
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray, Level


class Inattentive(Protocol):
    """What the formulas need of a model: a :class:`dynchoice.DDC` has it."""

    @property
    def available(self) -> BoolArray:
        """Choices on offer (S, J)."""

    @property
    def attention(self) -> FloatArray:
        """Probability of an active choice (S,)."""

    @property
    def default(self) -> IntArray:
        """Code of what happens to who does not look (S,)."""


def mix(pi: FloatArray, attention: FloatArray, default: IntArray) -> FloatArray:
    """Return observed probabilities (S, J): attentive ones with the default mixed in."""
    P = attention[:, None] * pi
    P[np.arange(len(P)), default] += 1 - attention
    return P


def unmix(model: Inattentive, P: FloatArray) -> FloatArray:
    """Return attentive probabilities: ``pi = (P - (1 - a) 1{default}) / a``, kept positive."""
    a = model.attention[:, None]
    pi = P.copy()
    pi[np.arange(len(P)), model.default] -= 1 - model.attention
    # an estimated share of the default can be below what inattention alone gives: its log must
    # still exist, and the row sum to one
    pi = np.where(model.available, np.maximum(pi / a, 1e-10), 0.0)
    return np.asarray(pi / pi.sum(axis=1, keepdims=True))


def psi(model: Inattentive, P: FloatArray) -> FloatArray:
    """Return ``V - v = -log pi_a + (1 - attention) log pi_default`` (S, J); 0 where not offered.

    Arcidiacono and Miller (2011, Lemma 1) with mean-zero shocks and inattention.
    """
    pi = unmix(model, P)
    logs = np.where(pi > 0, np.log(np.where(pi > 0, pi, 1.0)), 0.0)
    log_default = logs[np.arange(len(P)), model.default]
    out = -logs + ((1 - model.attention) * log_default)[:, None]
    return np.asarray(np.where(model.available, out, 0.0))


def psi_derivative(model: Inattentive, P: FloatArray, d: FloatArray) -> FloatArray:
    """Return the derivative of ``sum d psi`` by ``P``, for weights ``d`` (K, S, J)."""
    s, inattentive = np.arange(len(P)), 1 - model.attention
    raw = P.copy()
    raw[s, model.default] -= inattentive
    pi = unmix(model, P)
    # where unmix holds a share at its floor, a small change of P changes nothing
    free = (raw > 1e-10 * model.attention[:, None]) & (pi > 0)
    steep = np.where(free, 1 / (model.attention[:, None] * np.maximum(pi, 1e-300)), 0.0)
    weights = np.where(model.available, d, 0.0)
    out = -weights * steep
    out[:, s, model.default] += inattentive * weights.sum(axis=2) * steep[s, model.default]
    return np.asarray(out)


def check_attention(attention: Any, S: int) -> FloatArray:
    """Return attention (S,), each in (0, 1]; a number serves every state.

    Raises
    ------
    SpecificationError
        Another shape; a value outside.
    """
    if attention is None:
        return np.ones(S)
    a = as_floats(attention, "attention")
    a = a.reshape(()) if a.size == 1 and np.ndim(attention) == 0 else a
    if a.ndim == 0:
        a = np.full(S, float(a))
    checks.shape(a, "attention", (S,), "(S,)")
    bad = np.flatnonzero(~((a > 0) & (a <= 1)))
    if len(bad):
        raise SpecificationError(
            f"attention must lie in (0, 1]; {len(bad)} of {S} states do not, first: state"
            f" {bad[0]} with {a[bad[0]]:.6g}"
        )
    return np.ascontiguousarray(a)


def check_perceived(perceived: Any, attention: FloatArray, S: int) -> FloatArray:
    """Return the attention that members count on (S,), nowhere below the true one.

    Raises
    ------
    SpecificationError
        As for attention; a value below the true one.
    """
    a = check_attention(perceived, S)
    low = np.flatnonzero(a < attention)
    if len(low):
        s = int(low[0])
        raise SpecificationError(
            f"perceived attention is below attention in {len(low)} of {S} states, first: state {s}"
            f" with {a[s]:.6g} < {attention[s]:.6g}; naive members overrate their attention"
        )
    return a


def check_default(
    default: Any,
    attention: FloatArray,
    available: BoolArray,
    states: StateSpace,
    choices: Sequence[Level],
) -> IntArray:
    """Return the default choice's code (S,); it must be available where attention is below 1.

    Raises
    ------
    SpecificationError
        No default where one is needed; no label or code of a choice; a choice not on offer.
    """
    S, J = available.shape
    needed = attention < 1
    if default is None:
        if needed.any():
            raise SpecificationError(
                f"attention is below 1 in {int(needed.sum()):,} states: say with default= what"
                " happens to a member who does not look"
            )
        return np.zeros(S, dtype=np.int64)
    codes = _default_codes(default, choices)
    if codes.ndim == 0 and codes.dtype.kind in "iu":
        codes = np.full(S, int(codes))
    if codes.shape != (S,) or codes.dtype.kind not in "iu":
        raise SpecificationError(
            f"default must hold one choice code a state, shape (S,) = ({S},); got {codes.dtype}"
            f" {codes.shape}"
        )
    codes = codes.astype(np.int64)
    outside = np.flatnonzero((codes < 0) | (codes >= J))
    if len(outside):
        raise SpecificationError(f"default {codes[outside[0]]} is no choice code 0 .. {J - 1}")
    missing = np.flatnonzero(needed & ~available[np.arange(S), codes])
    if len(missing):
        s = int(missing[0])
        raise SpecificationError(
            f"the default choice is not available in {len(missing):,} states where attention is"
            f" below 1, first: {choices[codes[s]]!r} in ({states.describe(s)})"
        )
    return codes


def _default_codes(default: Any, choices: Sequence[Level]) -> AnyArray:
    """Return defaults as an array, labels of choices replaced by their codes."""
    values = np.asarray(default)
    distinct = np.unique(values) if values.dtype.kind in "iuU" else values.reshape(-1)
    labels = [x.item() if isinstance(x, np.generic) else x for x in distinct]
    if all(x in choices for x in labels):
        # labels come first: integer labels would otherwise be read as codes
        code = {x: list(choices).index(x) for x in labels}
        return np.array([code[x] for x in values.reshape(-1).tolist()]).reshape(values.shape)
    if values.dtype.kind in "OUS":
        checks.known(labels, choices, "default")
    return values
