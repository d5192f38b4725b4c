"""A flexible logit of choices on features, with inattention by EM, and its influence function."""

from __future__ import annotations

import numpy as np

from dynchoice.typing import BoolArray, FloatArray, IntArray

NEWTON_STEPS, EM_STEPS = 100, 500


class FlexibleLogit:
    """A multinomial logit of the choices on features ``phi`` (R, G), own by choice.

    The coefficients of choice 0 are zero, and a slight ridge keeps what masks leave unidentified
    in place. With inattention the logit is of the attentive choices, fitted by EM over who
    attended: ``P = a pi + (1 - a) 1{default}``.

    Parameters
    ----------
    phi : FloatArray, shape (R, G)
    n : FloatArray, shape (R, J)
        Counts of choices.
    available : BoolArray, shape (R, J)
    start : FloatArray, shape ((J - 1) G,), optional
    attention : FloatArray, shape (R,), optional
    default : IntArray, shape (R,), optional
    ridge : float
        Penalty on the coefficients, in observations.

    Attributes
    ----------
    gamma : FloatArray, shape (J - 1, G)
        The coefficients.
    pi : FloatArray, shape (R, J)
        Attentive choice probabilities.
    """

    def __init__(
        self,
        phi: FloatArray,
        n: FloatArray,
        available: BoolArray,
        *,
        start: FloatArray | None,
        attention: FloatArray | None,
        default: IntArray | None,
        ridge: float,
    ) -> None:
        self.phi, self.ridge = phi, ridge
        self.attention, self.default = attention, default
        self.mixed = attention is not None and default is not None and bool((attention < 1).any())
        self.R, self.G = phi.shape
        self.J = n.shape[1]
        # rows without a choice say nothing
        self.seen = np.flatnonzero(n.sum(axis=1) > 0)
        self.phi_seen, self.offered_seen = phi[self.seen], available[self.seen]
        self.gamma = np.zeros((self.J - 1, self.G))
        if start is not None:
            self.gamma = start.reshape(self.J - 1, self.G).copy()
        counts = n[self.seen]
        self.active, self.pi_seen = counts, self._maximise(counts)
        for _ in range(EM_STEPS if self.mixed else 0):
            before = self.gamma
            self.active = counts * self.attended(self.pi_seen, self.seen)
            self.pi_seen = self._maximise(self.active)
            if np.abs(self.gamma - before).max() < 1e-9:
                break
        self.pi = self.probabilities(phi, available, self.gamma)

    def probabilities(self, phi: FloatArray, offered: BoolArray, gamma: FloatArray) -> FloatArray:
        """Return the logit's probabilities (rows, J)."""
        # choices outside, rows inside: contiguous passes over many rows
        index = np.zeros((self.J, len(phi)))
        index[1:] = gamma @ phi.T
        if not offered.all():
            index[~offered.T] = -np.inf
        index -= np.maximum.reduce(index)
        np.exp(index, out=index)
        index /= np.add.reduce(index)
        return np.ascontiguousarray(index.T)

    def attended(self, pi: FloatArray, rows: IntArray | slice) -> FloatArray:
        """Return the probability that a choice was an active one, (rows, J)."""
        omega = np.ones_like(pi)
        if self.mixed:
            assert self.attention is not None and self.default is not None
            a, d, i = self.attention[rows], self.default[rows], np.arange(len(pi))
            omega[i, d] = a * pi[i, d] / (a * pi[i, d] + 1 - a)
        return omega

    def _maximise(self, active: FloatArray) -> FloatArray:
        """Move ``gamma`` to the maximum for active choices; return the probabilities there."""
        f, offered, gamma = self.phi_seen, self.offered_seen, self.gamma
        pi = self.probabilities(f, offered, gamma)

        def objective(gamma: FloatArray, pi: FloatArray) -> float:
            logs = np.log(np.where(active > 0, np.maximum(pi, 1e-300), 1.0))
            return float((active * logs).sum() - self.ridge / 2 * (gamma**2).sum())

        value = objective(gamma, pi)
        total = active.sum(axis=1, keepdims=True)
        for _ in range(NEWTON_STEPS):
            score = ((active - total * pi)[:, 1:].T @ f) - self.ridge * gamma
            step = np.linalg.solve(self._information(pi, active), score.reshape(-1))
            if float(score.reshape(-1) @ step) < 1e-10:
                break
            for halving in range(20):
                trial = gamma + step.reshape(gamma.shape) / 2**halving
                pi_trial = self.probabilities(f, offered, trial)
                trial_value = objective(trial, pi_trial)
                if trial_value >= value - 1e-12 * abs(value):
                    break
            gamma, pi, value = trial, pi_trial, trial_value
        self.gamma = gamma
        return pi

    def _information(self, pi: FloatArray, active: FloatArray) -> FloatArray:
        """Return minus the second derivative ((J - 1) G, (J - 1) G), the ridge's included."""
        J, G, f = self.J, self.G, self.phi_seen
        H = np.empty((J - 1, G, J - 1, G))
        total = active.sum(axis=1)
        for a in range(J - 1):
            for b in range(a + 1):
                w = total * pi[:, a + 1] * ((a == b) - pi[:, b + 1])
                H[a, :, b] = (f * w[:, None]).T @ f
                H[b, :, a] = H[a, :, b].T
        return H.reshape((J - 1) * G, -1) + self.ridge * np.eye((J - 1) * G)

    def observed(self) -> FloatArray:
        """Return the probabilities of choices as they are observed, inattention in them."""
        if not self.mixed:
            return self.pi
        assert self.attention is not None and self.default is not None
        P = self.attention[:, None] * self.pi
        P[np.arange(self.R), self.default] += 1 - self.attention
        return P

    def influence(self, D: FloatArray) -> FloatArray:
        """Return what one observed choice adds to K numbers (R, J, K).

        ``D`` (K, R, J) is their derivative by the observed probabilities.
        """
        J, phi, pi = self.J, self.phi, self.pi
        # d pi_i / d gamma_m = pi_i (1{i = m} - pi_m) phi
        scale = 1.0 if self.attention is None else self.attention[:, None]
        centred = scale * pi * (D - (D * pi).sum(axis=2, keepdims=True))
        pull = np.einsum("krj,rg->kjg", centred[:, :, 1:], phi).reshape(len(D), -1)
        H = self._information(self.pi_seen, self.active)
        if self.mixed:
            H = H - self._lost_information()
        weight = np.linalg.solve(H, pull.T).reshape(J - 1, self.G, len(D))
        along = np.zeros((self.R, J, len(D)))
        along[:, 1:] = np.einsum("rg,jgk->rjk", phi, weight)
        along -= (pi[:, :, None] * along).sum(axis=1, keepdims=True)
        return np.asarray(self.attended(pi, slice(None))[:, :, None] * along)

    def _lost_information(self) -> FloatArray:
        """Return the information that not knowing who attended takes away."""
        assert self.default is not None
        pi, f = self.pi_seen, self.phi_seen
        omega = self.attended(pi, self.seen)
        i, d = np.arange(len(pi)), self.default[self.seen]
        lost = self.active[i, d] * (1 - omega[i, d])
        gap = -pi.copy()
        gap[i, d] += 1
        rows = np.einsum("rj,rg->rjg", gap[:, 1:], f).reshape(len(f), -1)
        return np.asarray((rows * lost[:, None]).T @ rows)
