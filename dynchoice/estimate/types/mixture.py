"""Likelihood of a finite mixture of unobserved types, from members' histories.

    l_i = log sum_q share_q(x_i1) prod_t P_q(a_it | x_it)

with ``share`` a multinomial logit in features of the first state seen (the initial condition) and
``P_q`` the choice probabilities of the model at type q's parameters. Score and Hessian are exact
(Louis 1982): with ``s_iq`` the score of history i were its type q, and posterior ``p_iq``,

    score   = sum_i sum_q p_iq s_iq
    Hessian = sum_q Hessian_q(counts weighted by p_q) + sum_i Cov_{q ~ p_i}(s_iq),

so that the dear part is one ordinary Hessian a type, whatever the number of members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import DataError, SpecificationError
from dynchoice.estimate.likelihood import Evaluation, FiniteLikelihood, Likelihood
from dynchoice.estimate.types.histories import Histories
from dynchoice.model.ddc import DDC
from dynchoice.typing import FloatArray, IntArray


@dataclass(frozen=True)
class TypeLayout:
    """Where the parameters of each type stand in the vector of all.

    The vector holds the model's parameters in order, those in ``varying`` once a type, then the
    share coefficients of types 1 .. Q-1.
    """

    model_names: tuple[str, ...]
    varying: tuple[str, ...]
    types: int
    share_names: tuple[str, ...]
    extra: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        varying: Sequence[str] | None,
        types: int,
        share_names: Sequence[str],
        extra: tuple[str, ...] = (),
    ) -> TypeLayout:
        """Check the names of varying parameters (None: all of them)."""
        chosen = tuple(names) if varying is None else varying
        listed = isinstance(chosen, list | tuple | set)
        if not listed or not all(isinstance(v, str) for v in chosen):
            raise SpecificationError(f"varying={varying!r}: pass a list of parameter names")
        checks.known(chosen, names, "varying: parameter")
        if types > 1 and not chosen:
            raise SpecificationError("varying is empty: types must differ in some parameter")
        kept = tuple(n for n in names if n in chosen)
        return cls(tuple(names), kept, types, tuple(share_names), extra)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the whole vector: ``taste[0]``, ``taste[1]``, ``price``, ``share[1]`` ..."""
        out = list(self.utility_names)
        for q in range(1, self.types):
            out += [f"share[{q}]" if g == "1" else f"share[{q}]:{g}" for g in self.share_names]
        return (*out, *self.extra)

    @property
    def utility_names(self) -> tuple[str, ...]:
        """Labels of the utility parameters of all types."""
        out: list[str] = []
        for name in self.model_names:
            if name in self.varying and self.types > 1:
                out += [f"{name}[{q}]" for q in range(self.types)]
            else:
                out.append(name)
        return tuple(out)

    @property
    def utility(self) -> int:
        """Number of utility parameters of all types together."""
        K, V = len(self.model_names), len(self.varying)
        return K + V * (self.types - 1)

    def places(self, q: int) -> IntArray:
        """Return where the model's parameters (K,) of type ``q`` stand in the vector."""
        out, place = [], 0
        for name in self.model_names:
            wide = name in self.varying and self.types > 1
            out.append(place + (q if wide else 0))
            place += self.types if wide else 1
        return np.array(out, dtype=np.int64)

    def shares(self, params: FloatArray) -> FloatArray:
        """Return the share coefficients (Q - 1, G)."""
        G = len(self.share_names)
        first = self.utility
        return params[first : first + (self.types - 1) * G].reshape(self.types - 1, G)

    def relabelled(self, params: FloatArray, order: IntArray) -> FloatArray:
        """Return the vector with type ``q`` what was type ``order[q]``."""
        out = params.copy()
        for q, old in enumerate(order):
            out[self.places(q)] = params[self.places(int(old))]
        G = len(self.share_names)
        if self.types > 1 and G:
            full = np.vstack([np.zeros(G), self.shares(params)])[order]
            out[self.utility : self.utility + (self.types - 1) * G] = (full[1:] - full[0]).reshape(
                -1
            )
        return out


def share_probabilities(phi: FloatArray, gamma: FloatArray) -> FloatArray:
    """Return type shares (N, Q) from features (N, G) and coefficients (Q - 1, G)."""
    index = np.concatenate([np.zeros((len(phi), 1)), phi @ gamma.T], axis=1)
    index -= index.max(axis=1, keepdims=True)
    e = np.exp(index)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def posterior(log_joint: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return posteriors (N, Q) and log-likelihoods (N,) from log share plus log-likelihood."""
    top = log_joint.max(axis=1, keepdims=True)
    e = np.exp(log_joint - top)
    total = e.sum(axis=1, keepdims=True)
    return e / total, (top + np.log(total))[:, 0]


def share_features(model: DDC, shares: str, data: Histories) -> tuple[FloatArray, tuple[str, ...]]:
    """Return features of the first states (N, G) for the type shares, and their names.

    Raises
    ------
    SpecificationError
        A formula that names something other than an axis.
    """
    if shares == "constant":
        return np.ones((len(data.weight), 1)), ("1",)
    from formulaic import model_matrix

    frame = model.states.frame()
    try:
        matrix = model_matrix(shares, frame, na_action="raise")
    except Exception as error:
        raise SpecificationError(
            f"shares={shares!r}: use 'constant' or a formula over the axes"
            f" ({', '.join(frame.columns)}): {error}"
        ) from error
    x = np.asarray(matrix, dtype=np.float64)[data.first]
    if not np.isfinite(x).all():
        raise DataError(f"shares={shares!r}: some features of the first states are not finite")
    names = tuple("1" if c == "Intercept" else str(c) for c in matrix.columns)
    if np.linalg.matrix_rank(x) < x.shape[1]:
        still = [n for n, c in zip(names, x.T, strict=True) if n != "1" and np.ptp(c) == 0]
        what = f" ({', '.join(map(repr, still))} never vary there)" if still else ""
        raise SpecificationError(
            f"shares={shares!r}: its features are collinear in the first states seen{what}"
        )
    return np.ascontiguousarray(x), names


@dataclass
class MixtureEvaluation:
    """The mixture likelihood at one vector: sums over members, posteriors, types' evaluations."""

    params: FloatArray
    loglik: float
    score: FloatArray
    outer: FloatArray
    by_history: FloatArray
    post: FloatArray
    each: FloatArray
    inner: tuple[Evaluation, ...]
    scores: tuple[FloatArray, ...]

    @property
    def converged(self) -> bool:
        """Whether every type's fixed point converged."""
        return all(e.converged for e in self.inner)

    @property
    def message(self) -> str:
        """Status of the first type's fixed point that did not converge, or of the first."""
        bad = [e.message for e in self.inner if not e.converged]
        return bad[0] if bad else self.inner[0].message


class MixtureLikelihood:
    """Mixture over types of the model's likelihood (NFXP inside).

    Parameters
    ----------
    model : DDC
        Transitions known.
    data : Histories
    layout : TypeLayout
    phi : FloatArray, shape (N, G)
        Share features of each history's first state.
    """

    def __init__(self, model: DDC, data: Histories, layout: TypeLayout, phi: FloatArray) -> None:
        self.model, self.data, self.layout, self.phi = model, data, layout, phi
        S, J, _ = model.shape
        self.shape = (S, J) if model.horizon is None else (model.horizon, S, J)
        n = data.counts(np.ones(len(data.weight)), self.shape)
        self.total = float(n.sum())
        self.parts: list[Any] = [
            Likelihood(model, n) if model.horizon is None else FiniteLikelihood(model, n)
            for _ in range(layout.types)
        ]
        self._last: MixtureEvaluation | None = None

    def log_table(self, at: Evaluation) -> FloatArray:
        """Return log P by cell, zero where P is (such cells are never visited)."""
        return np.log(np.where(at.P > 0, at.P, 1.0))

    def evaluate(self, params: FloatArray) -> MixtureEvaluation:
        """Return the likelihood with score and outer product of members' scores."""
        if self._last is not None and np.array_equal(self._last.params, params):
            return self._last
        L, data, Q = self.layout, self.data, self.layout.types
        share = share_probabilities(self.phi, L.shares(params))
        inner = tuple(part.evaluate(params[L.places(q)]) for q, part in enumerate(self.parts))
        log_joint = np.stack([data.sums(self.log_table(e)) for e in inner], axis=1)
        post, each = posterior(log_joint + np.log(np.maximum(share, 1e-300)))
        scores = tuple(self.full_score(e, share, q) for q, e in enumerate(inner))
        by_history = sum(post[:, q, None] * scores[q] for q in range(Q))
        assert isinstance(by_history, np.ndarray)
        weighted = by_history * data.weight[:, None]
        self._last = MixtureEvaluation(
            params=params.copy(),
            loglik=float(data.weight @ each),
            score=weighted.sum(axis=0),
            outer=weighted.T @ by_history,
            by_history=by_history,
            post=post,
            each=each,
            inner=inner,
            scores=scores,
        )
        return self._last

    def full_score(self, at: Evaluation, share: FloatArray, q: int) -> FloatArray:
        """Return each history's score (N, P) were its type ``q``."""
        L = self.layout
        out = np.zeros((len(share), len(L.names)))
        out[:, L.places(q)] = self.data.sums(at.dlogp)
        G = self.phi.shape[1]
        for r in range(1, L.types):
            first = L.utility + (r - 1) * G
            out[:, first : first + G] = (float(r == q) - share[:, r])[:, None] * self.phi
        return out

    def _recount(self, at: MixtureEvaluation) -> None:
        """Give each type's likelihood the counts that its posterior weighs."""
        for q, part in enumerate(self.parts):
            part.recount(self.data.counts(at.post[:, q], self.shape))

    def hessian(self, at: MixtureEvaluation) -> FloatArray:
        """Return the exact second derivative (P, P) of the mixture's log-likelihood."""
        L, w = self.layout, self.data.weight
        self._recount(at)
        out = np.zeros((len(at.params),) * 2)
        for q, part in enumerate(self.parts):
            where = L.places(q)
            out[np.ix_(where, where)] += part.hessian(at.inner[q])
            centred = at.scores[q] - at.by_history
            out += (centred * (w * at.post[:, q])[:, None]).T @ centred
        share = share_probabilities(self.phi, L.shares(at.params))
        G = self.phi.shape[1]
        for a in range(1, L.types):
            for b in range(1, L.types):
                weight = w * share[:, a] * (float(a == b) - share[:, b])
                i = slice(L.utility + (a - 1) * G, L.utility + a * G)
                j = slice(L.utility + (b - 1) * G, L.utility + b * G)
                out[i, j] -= (self.phi * weight[:, None]).T @ self.phi
        return (out + out.T) / 2

    def transition_derivative(self, at: MixtureEvaluation) -> dict[str, FloatArray]:
        """Return the derivative of the score by each estimated law's rows, (P, R, m).

        The laws move each type's choice probabilities, hence the scores given the type and, through
        the posteriors, the weights of the types.
        """
        L, w = self.layout, self.data.weight
        self._recount(at)
        out: dict[str, FloatArray] = {}
        total = len(at.params)
        for q, part in enumerate(self.parts):
            for name, cross in part.cross_derivative(at.inner[q]).items():
                table = out.setdefault(name, np.zeros((total, *cross.shape[1:])))
                table[L.places(q)] += cross
        if L.types == 1:
            return out
        for q, part in enumerate(self.parts):
            centred = (at.scores[q] - at.by_history) * (w * at.post[:, q])[:, None]
            for k in range(total):
                n = np.zeros(self.shape)
                n[self.data.at] = self.data.H.T @ centred[:, k]
                part.recount(n)
                for name, gradient in part.transition_score(at.inner[q]).items():
                    out[name][k] += gradient
        self._recount(at)
        return out
