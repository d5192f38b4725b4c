"""GLADIUS: one minimisation for choices and Bellman residuals of the anchor, then the reward."""

from __future__ import annotations

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.estimate.pqr import POOL, SUPPORT, RewardEstimator
from dynchoice.estimate.rewards.gladius_steps import JointNetworks, JointSieve
from dynchoice.estimate.rewards.network import Network, torch_module
from dynchoice.estimate.rewards.rows import check_row_data
from dynchoice.estimate.rewards.rows_reward import RowsReward
from dynchoice.model.reward import RewardModel
from dynchoice.panel.trajectories import Trajectories

LITTLE = 0.1
"""Rows that pull on what choices do not share, by default."""


class GLADIUS(RewardEstimator):
    """Empirical-risk-minimising inverse reinforcement learning (GLADIUS).

    Parameters
    ----------
    model : RewardModel
    data : Trajectories
    network : Network, optional
        Layers and training of ``Q`` and ``zeta`` (needs torch). Default: a sieve.
    weight : float
        Of the anchor's squared Bellman residuals against the log-likelihood.
    folds : int, optional
        With a network: folds of members, each predicted by networks that did not see it (2).
    degree, pairs, support
        As of :class:`dynchoice.DeepPQR`; with a network, of the sieve that corrects it.
    pool : float, optional
        On a sieve: rows that pull what choices do not share towards zero (.1: more of them pull
        the choice probabilities towards each other).

    Raises
    ------
    SpecificationError
        Other data; a weight or pool that is not positive; options that do not go together.
    DataError
        Fewer than ``support`` rows with the anchor.
    MissingExtraError
        A network without torch.

    Notes
    -----
    On a sieve whose columns choices do not share (``pool`` towards 0) it is Deep PQR: the
    likelihood fixes differences of values, the residuals then their level, exactly. What is new
    comes from restrictions on ``Q``: pooled columns, or a network. The parameters are the
    projection of the reward, corrected for the first steps' errors as those of Deep PQR are.

    References
    ----------
    Kang, Yoganarasimhan and Jain (2025), An empirical risk minimization approach for offline
    inverse RL and dynamic discrete choice models.
    """

    name = "GLADIUS"

    def __init__(
        self,
        model: RewardModel,
        data: Trajectories,
        *,
        network: Network | None = None,
        weight: float = 1.0,
        folds: int | None = None,
        degree: int = 2,
        pairs: bool | None = None,
        pool: float | None = None,
        support: int = SUPPORT,
    ) -> None:
        check_row_data(self.name, model, data)
        checks.positive(weight, "weight")
        pull = checks.positive(LITTLE if pool is None else pool, "pool")
        learner: JointSieve | JointNetworks
        if network is None:
            if folds is not None:
                raise SpecificationError("GLADIUS: folds= goes with a network=")
            learner = JointSieve(weight, pull)
        else:
            if not isinstance(network, Network):
                raise SpecificationError(f"network={network!r}: a dynchoice.Network is needed")
            if pool is not None:
                raise SpecificationError("GLADIUS: pool= is for the sieve, without network=")
            torch_module()  # says at once how to install it
            learner = JointNetworks(network, weight, 2 if folds is None else folds)
        self.model = model
        self.made = RowsReward(
            self.name,
            model,
            data,
            learner,
            general=False,
            degree=degree,
            pairs=pairs,
            pool=POOL,
            support=support,
        )
