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

from dynchoice.errors import SpecificationError, suggest
from dynchoice.panel.states import StateSpace, as_floats
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level


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
    pi = np.where(model.available, np.maximum(pi / a, 1e-10), 0.0)
    return np.asarray(pi / pi.sum(axis=1, keepdims=True))


def psi(model: Inattentive, P: FloatArray) -> FloatArray:
    """Return ``V - v = -log pi_a + (1 - attention) log pi_default`` (S, J); 0 where not offered.

    Arcidiacono and Miller (2011, Lemma 1) with mean-zero shocks and inattention.
    """
    pi = unmix(model, P)
    logs = np.where(pi > 0, np.log(np.where(pi > 0, pi, 1.0)), 0.0)
    at_default = logs[np.arange(len(P)), model.default]
    out = -logs + ((1 - model.attention) * at_default)[:, None]
    return np.asarray(np.where(model.available, out, 0.0))


def psi_derivative(model: Inattentive, P: FloatArray, d: FloatArray) -> FloatArray:
    """Return the derivative of ``sum d psi`` by ``P``, for weights ``d`` (K, S, J)."""
    s, lost = np.arange(len(P)), 1 - model.attention
    raw = P.copy()
    raw[s, model.default] -= lost
    pi = unmix(model, P)
    free = (raw > 1e-10 * model.attention[:, None]) & (pi > 0)  # not clamped by unmix
    steep = np.where(free, 1 / (model.attention[:, None] * np.maximum(pi, 1e-300)), 0.0)
    own = np.where(model.available, d, 0.0)
    out = -own * steep
    out[:, s, model.default] += lost * own.sum(axis=2) * steep[s, model.default]
    return np.asarray(out)


def check_attention(attention: Any, S: int) -> FloatArray:
    """Return attention (S,), each in (0, 1]; a number serves every state."""
    if attention is None:
        return np.ones(S)
    a = as_floats(attention, "attention")
    a = a.reshape(()) if a.size == 1 and np.ndim(attention) == 0 else a
    if a.ndim == 0:
        a = np.full(S, float(a))
    if a.shape != (S,):
        raise SpecificationError(f"attention has shape {a.shape}, expected (S,) = ({S},)")
    bad = np.flatnonzero(~((a > 0) & (a <= 1)))
    if len(bad):
        raise SpecificationError(
            f"attention must lie in (0, 1]; {len(bad)} of {S} states do not, first: state"
            f" {bad[0]} with {a[bad[0]]:.6g}"
        )
    return np.ascontiguousarray(a)


def check_perceived(perceived: Any, attention: FloatArray, S: int) -> FloatArray:
    """Return the attention that members count on (S,), nowhere below the true one."""
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
    """Return the default choice's code (S,); it must be available where attention is below 1."""
    S, J = available.shape
    needed = attention < 1
    if default is None:
        if needed.any():
            raise SpecificationError(
                f"attention is below 1 in {int(needed.sum()):,} states: say with default= what"
                " happens to a member who does not look"
            )
        return np.zeros(S, dtype=np.int64)
    d = np.asarray(default)
    distinct = np.unique(d) if d.dtype.kind in "iuU" else d.reshape(-1)
    given = [x.item() if isinstance(x, np.generic) else x for x in distinct]
    if all(x in choices for x in given):
        # labels come first: integer labels would otherwise be read as codes
        code = {x: list(choices).index(x) for x in given}
        d = np.array([code[x] for x in d.reshape(-1).tolist()]).reshape(d.shape)
    elif d.dtype.kind in "OUS":
        unknown = [x for x in given if x not in choices]
        raise SpecificationError(
            f"default {unknown[0]!r} is no choice.{suggest(unknown[0], choices)}"
        )
    if d.ndim == 0 and d.dtype.kind in "iu":
        d = np.full(S, int(d))
    if d.shape != (S,) or d.dtype.kind not in "iu":
        raise SpecificationError(
            f"default must hold one choice code a state, shape (S,) = ({S},); got {d.dtype}"
            f" {d.shape}"
        )
    d = d.astype(np.int64)
    outside = np.flatnonzero((d < 0) | (d >= J))
    if len(outside):
        raise SpecificationError(f"default {d[outside[0]]} is no choice code 0 .. {J - 1}")
    missing = np.flatnonzero(needed & ~available[np.arange(S), d])
    if len(missing):
        s = int(missing[0])
        raise SpecificationError(
            f"the default choice is not available in {len(missing):,} states where attention is"
            f" below 1, first: {choices[d[s]]!r} in ({states.describe(s)})"
        )
    return d
