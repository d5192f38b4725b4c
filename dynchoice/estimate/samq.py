"""SAmQ: states aggregated by their values, then nested fixed point on the clusters.

1. Values ``Q(s, .)`` of a reward fit (Deep PQR or GenPQR), anchored, not only their differences.
2. Clusters of states with like values (k-means on ``Q``, one set a pattern of offered choices).
3. Rust's nested fixed point on the clusters, solved exactly: features of a cluster and choice are
   means over the rows that took it there, laws are the moves between clusters.

The bias falls with the spread of values within clusters, the variance grows with their number
(Geng, Nassif and Manzanares 2023).
"""

from __future__ import annotations

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.estimate.estimator import Estimator, FitOptions, renamed
from dynchoice.estimate.nfxp import NFXP
from dynchoice.estimate.pqr import DeepPQR
from dynchoice.estimate.rewards.first_stages import Rows
from dynchoice.estimate.rewards.rows import check_row_data
from dynchoice.inference.results import Results
from dynchoice.inference.reward_results import RewardResults
from dynchoice.model.ddc import DDC
from dynchoice.model.laws import Markov
from dynchoice.model.reward import RewardModel
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.panel.panel import Panel
from dynchoice.panel.states import StateSpace
from dynchoice.panel.trajectories import BLOCK, NO_ROW, Trajectories
from dynchoice.typing import FloatArray, IntArray

CLUSTER_ROWS = 20_000
"""Rows that the clusters' centres are found on."""
AXIS = "cluster"
TRIES, ROUNDS = 4, 50
"""Random starts of k-means, of which the best is kept, and its rounds."""


def best_centres(q: FloatArray, k: int, rng: np.random.Generator) -> FloatArray:
    """Return ``k`` centres (k, J) of values (n, J): the least sum of squares of several starts."""
    from scipy.cluster.vq import kmeans2, vq

    tries = [kmeans2(q, k, iter=ROUNDS, minit="++", rng=rng, missing="warn") for _ in range(TRIES)]
    return np.asarray(min((c for c, _ in tries), key=lambda c: float((vq(q, c)[1] ** 2).sum())))


class SAmQ(Estimator[Results]):
    """State aggregation by values, then NFXP (Geng, Nassif and Manzanares 2023).

    Parameters
    ----------
    model : RewardModel
        Its features are those of the utility.
    data : Trajectories
    clusters : int
        Number of clusters in all.
    first : RewardResults, optional
        Whose values to aggregate by. Default: :class:`dynchoice.DeepPQR` of ``degree``.
    degree : int
        Of the default first fit.
    seed : int
        Of the clusters' first centres.

    Attributes
    ----------
    labels : IntArray, shape (N,)
        Cluster of every row.
    aggregated : DDC
        The model on clusters; counterfactuals of the fit are solved on it.
    panel : Panel

    Raises
    ------
    SpecificationError
        Other data; fewer clusters than two, or than patterns of offered choices; more than rows;
        terminal rows.

    Notes
    -----
    Standard errors are those of NFXP with the clusters taken as given.
    """

    name = "SAmQ"
    several_starts = True

    def __init__(
        self,
        model: RewardModel,
        data: Trajectories,
        *,
        clusters: int = 50,
        first: RewardResults | None = None,
        degree: int = 2,
        seed: int = 0,
    ) -> None:
        check_row_data(self.name, model, data)
        if checks.whole(clusters, "clusters", 2) > len(data.x):
            raise SpecificationError(f"clusters={clusters:,} of {len(data.x):,} rows")
        if data.ended.any():
            raise SpecificationError(
                f"SAmQ: {int(data.ended.sum()):,} rows are terminal, and a cluster has no end: its"
                " moves would be those of who stays. Take DeepPQR, GenPQR, GLADIUS or TDCCP"
            )
        self.model, self.rows = model, data
        values = DeepPQR(model, data, degree=degree).fit() if first is None else first
        assert isinstance(values, RewardResults)
        self.first = values
        self.labels, self._offered = self._clusters(clusters, seed)
        self.aggregated, self.panel = self._aggregate()

    # clusters --------------------------------------------------------------------------------

    def _values(self, rows: Rows) -> tuple[FloatArray, IntArray]:
        """Return values (n, J), 0 where not offered, and the pattern of what is offered."""
        table = self.rows.frame(rows)
        offered = self.model.offered(table)
        J = len(self.model.choices)
        q = np.nan_to_num(self.first.values(table).to_numpy())
        if offered is None:
            return q, np.full(len(table), 2**J - 1, dtype=np.int64)
        return q, (offered * 2 ** np.arange(J)).sum(axis=1)

    def _clusters(self, clusters: int, seed: int) -> tuple[IntArray, FloatArray]:
        """Return every row's cluster, and what each cluster offers (S, J)."""
        from scipy.cluster.vq import vq

        N, J = len(self.rows.x), len(self.model.choices)
        rng = np.random.default_rng(seed)
        some = np.sort(rng.choice(N, min(N, CLUSTER_ROWS), replace=False))
        q, pattern = self._values(some)
        kinds, count = np.unique(pattern, return_counts=True)
        if clusters < len(kinds):
            raise SpecificationError(
                f"clusters={clusters}: {len(kinds)} patterns of offered choices need one each"
            )
        # as many clusters as rows say, one at least
        share = np.maximum(np.floor(clusters * count / count.sum()).astype(int), 1)
        share[share.argmax()] += clusters - share.sum()
        centres: dict[int, FloatArray] = {}
        for kind, k in zip(kinds, share, strict=True):
            alike = q[pattern == kind]
            k = min(int(k), len(np.unique(alike, axis=0)))
            centres[int(kind)] = best_centres(alike, k, rng)
        sizes = [len(c) for c in centres.values()]
        first = dict(zip(centres, np.cumsum([0, *sizes[:-1]]), strict=True))
        labels = np.empty(N, dtype=np.int64)
        for i in range(0, N, BLOCK):
            part = slice(i, min(i + BLOCK, N))
            q, pattern = self._values(part)
            lost = ~np.isin(pattern, list(centres))
            if lost.any():
                raise SpecificationError(
                    f"{int(lost.sum()):,} rows offer a set of choices so rare that no row of the"
                    " sample has it: leave them out"
                )
            for kind, centre in centres.items():
                alike = pattern == kind
                labels[i : part.stop][alike] = first[kind] + vq(q[alike], centre)[0]
        used, labels = np.unique(labels, return_inverse=True)
        kind_of = np.repeat(list(centres), sizes)[used]
        return labels, (kind_of[:, None] // 2 ** np.arange(J) % 2).astype(np.float64)

    # the model on clusters -------------------------------------------------------------------

    def _aggregate(self) -> tuple[DDC, Panel]:
        """Return the model on clusters and its panel."""
        model, rows, labels = self.model, self.rows, self.labels
        S, J = len(self._offered), len(model.choices)
        x0, names = model.design(rows.frame(slice(0, 1)))
        K = x0.shape[2]
        taken, everyone = np.zeros((S, J, K + 1)), np.zeros((S, J, K + 1))
        n, total = np.zeros((S, J)), np.zeros(S)
        for i in range(0, len(labels), BLOCK):
            part = slice(i, min(i + BLOCK, len(labels)))
            table = rows.frame(part)
            base = model.base(table).copy()
            each = np.arange(len(table))
            base[each, model.reference(model.offered(table), len(table))] += model.known(table)
            x = np.concatenate([model.design(table)[0], base[:, :, None]], axis=2)
            c, a, w = labels[part], rows.choice[part], rows.weight[part]
            np.add.at(taken, (c, a), x[each, a] * w[:, None])
            np.add.at(everyone, c, x * w[:, None, None])
            np.add.at(n, (c, a), w)
            np.add.at(total, c, w)
        # where nobody took a choice, its features over everybody in the cluster
        mean = everyone / total[:, None, None]
        features = np.where(n[:, :, None] > 0, taken / np.maximum(n, 1e-300)[:, :, None], mean)
        states = StateSpace(**{AXIS: range(S)})
        law = Markov(given=("choice",), stand_ins=self._stand_ins())
        built = DDC(
            states=states,
            choices=model.choices,
            utility=Utility.from_array(features[:, :, :-1], names, features[:, :, -1]),
            transitions=Transitions.factored(states, model.choices, {AXIS: law}),
            beta=model.beta,
            available=self._offered.astype(bool),
        )
        frame = pd.DataFrame(
            {
                "member": rows.member,
                "time": rows.period,
                AXIS: labels,
                "weight": rows.weight,
                "choice": np.array(model.choices, dtype=object)[rows.choice],
            }
        )
        panel = Panel(
            frame,
            member="member",
            time="time",
            choice="choice",
            states=states,
            choices=model.choices,
            weights="weight",
        )
        return built, panel

    def _stand_ins(self) -> IntArray:
        """Return the cluster (J, S) whose moves after a choice stand in where nobody made it.

        The nearest by values among clusters that offer the same and saw the choice followed.
        """
        S, J = self._offered.shape
        rows, labels = self.rows, self.labels
        moved = np.flatnonzero(rows.next != NO_ROW)
        n = np.bincount(labels[moved] * J + rows.choice[moved], minlength=S * J).reshape(S, J)
        centre, size = np.zeros((S, J)), np.bincount(labels, minlength=S)
        for i in range(0, len(labels), BLOCK):
            part = slice(i, min(i + BLOCK, len(labels)))
            np.add.at(centre, labels[part], self._values(part)[0])
        centre /= size[:, None]
        alike = (self._offered[:, None] == self._offered[None]).all(axis=2)
        away = np.abs(centre[:, None] - centre[None]).max(axis=2)
        out = np.tile(np.arange(S), (J, 1))
        for j in range(J):
            for s in np.flatnonzero((n[:, j] == 0) & (self._offered[:, j] > 0)):
                able = np.flatnonzero(alike[s] & (n[:, j] > 0))
                if len(able):
                    out[j, s] = able[away[s, able].argmin()]
        return out

    def run(self, options: FitOptions) -> Results:
        """Estimate as NFXP does, on the clusters."""
        fit = NFXP(self.aggregated, self.panel).run(options)
        note = (
            f"States are {len(self._offered):,} clusters of like values (largest distance of a"
            f" value from its cluster's mean {self._spread():.2g}), taken as given in the standard"
            " errors"
        )
        return renamed(fit, self.name, note, rows_digest=self.rows.digest)

    def estimate(self, options: FitOptions) -> Results:
        """Return the fit on the clusters: see :meth:`run`."""
        return self.run(options)

    def resample(self, options: FitOptions) -> Results:
        """Return the fit on the clusters, bootstrapped: see :meth:`run`."""
        return self.run(options)

    def _spread(self) -> float:
        """Return ``eps_Q``: the largest distance of a sampled row's values from its cluster's."""
        N = len(self.labels)
        rng = np.random.default_rng(0)
        some = np.sort(rng.choice(N, min(N, CLUSTER_ROWS), replace=False))
        q, c = self._values(some)[0], self.labels[some]
        total = np.maximum(np.bincount(c, minlength=len(self._offered)), 1)
        mean = np.stack([np.bincount(c, v, minlength=len(total)) / total for v in q.T], axis=1)
        return float(np.abs(q - mean[c]).max())
