"""Maximum causal entropy inverse reinforcement learning with linear rewards: NFXP by another name.

Ziebart, Bagnell and Dey (2010) look for the policy of most causal entropy whose discounted features
are those of the data; the multipliers of the features are the reward's coefficients. Its dual is
the log-likelihood of a dynamic logit: with ``n(s, a)`` rows,

    d loglik / d theta = sum n(s,a) (x(s,a) + beta E[X(s') | s,a]) - sum n(s) X(s),

``X`` the discounted features of following the policy. At the maximum, the features that follow the
observed choices are those that follow the policy's choices: features are matched.
"""

from __future__ import annotations

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.estimate.estimator import FitOptions, renamed
from dynchoice.estimate.nfxp import NFXP
from dynchoice.inference.results import Results
from dynchoice.solvers.bellman import over_choices
from dynchoice.solvers.linear import PolicySystem, one_blas_thread


class MCEIRL(NFXP):
    """Maximum causal entropy inverse reinforcement learning, linear rewards, levels of states.

    Parameters
    ----------
    model : DDC
        Infinite horizon; its features are the reward's.
    data : Panel or Counts

    Notes
    -----
    The estimates are :class:`dynchoice.NFXP`'s, to the bit, standard errors included (which the
    literature on inverse reinforcement learning does without); :func:`feature_match` shows the
    condition that they meet.

    References
    ----------
    Ziebart, Bagnell and Dey (2010), ICML 27.
    """

    name = "MCEIRL"

    def run(self, options: FitOptions) -> Results:
        """Estimate as NFXP does, and say how well features are matched."""
        if self.model.horizon is not None:
            raise SpecificationError("MCEIRL is for infinite horizons")
        if not (self.model.attention == 1).all():
            raise SpecificationError("MCEIRL has no inattention: use NFXP, or drop attention=")
        fit = super().run(options)
        match = feature_match(fit)
        scale = np.maximum(match["observed"].abs().max(), 1e-300)
        gap = float((match["observed"] - match["model"]).abs().max() / scale)
        note = (
            f"Discounted features after the choices observed and after the model's agree to"
            f" {gap:.1e} of the largest"
        )
        return renamed(fit, self.name, note)


def feature_match(results: Results) -> pd.DataFrame:
    """Return discounted features after the observed choices and after the model's.

    Parameters
    ----------
    results : Results
        Of a model with an infinite horizon.

    Returns
    -------
    pandas.DataFrame
        By feature: ``observed``, ``model``, means over member-months.
    """
    model, n, P = results.model, results.counts, results.ccp
    with one_blas_thread():
        system = PolicySystem(model.transitions, model.beta)
        system.factor(P)
        X = system.solve(np.ascontiguousarray(over_choices(P, model.utility.x)))
    follows = model.utility.x + model.beta * model.transitions.expect(np.ascontiguousarray(X))
    total = n.sum()
    return pd.DataFrame(
        {
            "observed": np.einsum("sj,sjk->k", n, follows) / total,
            "model": n.sum(axis=1) @ X / total,
        },
        index=list(results.names),
    )
