"""The results of inverse reinforcement learning on rows whose states are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError, StorageError
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.learner_predictions import Predictor
from dynchoice.inference.reward_forms import FORMS, States
from dynchoice.inference.summary import Summary, number
from dynchoice.model.reward import RewardModel
from dynchoice.model.sieve import Sieve
from dynchoice.typing import BoolArray, FloatArray

if TYPE_CHECKING:
    from dynchoice.model.ddc import DDC
    from dynchoice.model.transitions import Transitions
    from dynchoice.panel.states import StateSpace


def numbers_of(table: pd.DataFrame, features: tuple[str, ...]) -> FloatArray:
    """Return the states (n, p) of a table's rows.

    Raises
    ------
    SpecificationError
        No table; a feature that is missing, no number or not finite.
    """
    if not hasattr(table, "columns"):
        raise SpecificationError(f"states: a pandas table is needed, not a {type(table).__name__}")
    for name in features:
        RewardModel._column(table, name, "state")
    try:
        x = np.ascontiguousarray(table[list(features)].to_numpy(dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise SpecificationError(f"states must be numbers: {error}") from error
    if not np.isfinite(x).all():
        first = features[int(np.argmin(np.isfinite(x).all(axis=0)))]
        raise SpecificationError(f"state {first!r} is missing or infinite in some rows")
    return x


@dataclass(frozen=True, kw_only=True)
class RewardResults(Estimates):
    """A reward over continuous states, its policy and values, and its projection on features.

    Attributes
    ----------
    estimator : str
    model : RewardModel
    features : tuple of str
        Columns of a state, in order.
    theta : FloatArray, shape (K,)
        Projection of the reward on the model's features, in utils.
    cov_matrix, cov_type, cov_config
        Of ``theta``: clustered by member, through policy and values.
    loglik, loglik_null : float
        Log-likelihood of the choices under the estimated policy (not of ``theta``).
    sieve : Sieve
    policy_coefficients : FloatArray, shape (J - 1, G)
    value_coefficients : FloatArray
        Of ``W(s)`` (Deep PQR, (G,)), ``E[q(s', o') | s, a]`` (GenPQR,
        ((1 + J) G,)) or what follows
        a choice (TD-CCP, (J, G)).
    ahead_coefficients : FloatArray, shape (J, G)
        Deep PQR (else empty): of ``E[V(s') | s, a]``.
    uses : dict
        Rows and share of the anchor.
    """

    marker: ClassVar[str] = "rewards"

    model: RewardModel
    features: tuple[str, ...]
    names_: tuple[str, ...]
    loglik_null: float
    sieve: Sieve
    policy_coefficients: FloatArray
    value_coefficients: FloatArray
    ahead_coefficients: FloatArray
    form: str
    """What values were estimated: a name of :data:`dynchoice.inference.reward_forms.FORMS`."""
    uses: dict[str, float] = field(default_factory=dict, repr=False)
    predictor: Predictor | None = field(default=None, repr=False)
    """Fitted learners, where they stood in for the sieve; such fits cannot be saved."""

    @property
    def likelihood_of(self) -> str:
        """The policy; of TD-CCP the parameters, which maximise its pseudo-likelihood."""
        return "policy" if FORMS[self.form].projects else "parameters"

    @property
    def states_digest(self) -> str:
        """:attr:`data_digest`: states are made from rows of numbers."""
        return self.data_digest

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return self.names_

    @property
    def free(self) -> int:
        """Free parameters of the choice likelihood: the policy's coefficients (TD-CCP: its own)."""
        return int(self.policy_coefficients.size) if FORMS[self.form].projects else len(self.theta)

    # at states -------------------------------------------------------------------------------

    def _at(self, table: pd.DataFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return log probabilities, values and rewards (n, J); NaN where not offered."""
        x = numbers_of(table, self.features)
        offered = self.model.offered(table)
        rows, reference = np.arange(len(x)), self.model.reference(offered, len(x))
        form = FORMS[self.form]
        if self.predictor is not None:
            paid = self.model.paid(table, reference)
            logs, values, r = self.predictor.at(x, offered, reference, paid, self.model.beta)
        else:
            logs, values, r = form.at(self, States(table, self.sieve(x), offered, reference))
        if form.projects:
            # what the reference earns is known up to its features: the number of the model is taken
            # instead of its approximation
            features = self.model.design(table)[0][rows, reference]
            r[rows, reference] = self.model.paid(table, reference) + features @ self.theta
        if offered is not None:
            logs, values, r = (np.where(offered, part, np.nan) for part in (logs, values, r))
        return logs, values, r

    def _table(self, values: FloatArray, table: pd.DataFrame) -> pd.DataFrame:
        """Return values (n, J) as a table, a row a row of ``table``, a column a choice."""
        return pd.DataFrame(values, index=table.index, columns=list(self.model.choices))

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return choice probabilities at states (a table with the features' columns)."""
        return self._table(np.nan_to_num(np.exp(self._at(table)[0])), table)

    def reward(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the estimated reward ``r(s, a)`` at states, in utils."""
        return self._table(self._at(table)[2], table)

    def values(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return choice-specific values ``Q(s, a)`` at states, in utils."""
        return self._table(self._at(table)[1], table)

    def on_levels(
        self, states: StateSpace, transitions: Transitions, available: BoolArray | None = None
    ) -> DDC:
        """Return the estimated reward as a model on a grid of levels, to be solved again.

        Parameters
        ----------
        states : StateSpace
            Axes of numbers named like the state's features.
        transitions : Transitions
            Laws of motion of the levels.
        available : BoolArray, shape (S, J), optional
            Default: the model's.

        Returns
        -------
        DDC
            Its parameters are :attr:`params`; what the features miss of the reward is the known
            part (offset) of its utility. Use it as ``dc.solve(model, fit.params)`` or in
            ``dc.check_identified``.

        Raises
        ------
        SpecificationError
            A feature that no axis is named after, or levels that are no numbers.
        """
        from dynchoice.model.ddc import DDC
        from dynchoice.model.utility import Utility

        table = states.frame()
        for name in self.features:
            RewardModel._column(table, name, "states")
        try:
            table = table[list(self.features)].astype(float)
        except (TypeError, ValueError) as error:
            raise SpecificationError(f"levels of states must be numbers: {error}") from error
        r = self._at(table)[2]
        x, names = self.model.design(table)
        offered = np.isfinite(r) if available is None else np.asarray(available, dtype=bool)
        rest = np.where(np.isfinite(r), r - x @ self.theta, 0.0)
        return DDC(
            states=states,
            choices=list(self.model.choices),
            beta=self.model.beta,
            utility=Utility.from_array(x, list(names), rest),
            transitions=transitions,
            available=offered,
        )

    # output ----------------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        """The projection of the reward on the features, with the rows it comes from."""
        share = self.uses["anchor share"]
        facts = (
            ("Estimator:", self.estimator),
            ("Member-months:", f"{self.nobs:,.0f}"),
            ("Members:", f"{self.nmembers:,}"),
            ("State features:", f"{len(self.features)}"),
            ("Columns of the sieve:", f"{self.sieve.size}"),
            ("Discount factor:", f"{self.model.beta:g}"),
            ("Converged:", "yes" if self.converged else "NO"),
            ("Covariance:", self._covariance_in_words()),
            ("First-stage error:", self.cov_config.get("first_stage_label", "none")),
            ("Rows with the anchor:", f"{self.uses['anchor rows']:,.0f} ({share:.1%})"),
            ("Log-lik. of the policy:", number(self.loglik)),
            ("AIC of the policy:", number(self.aic, 2)),
        )
        return self._tabulate(facts)

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays and plain values, for saving.

        Raises
        ------
        StorageError
            The features are a function, or learners were used, which no file can hold.
        """
        if self.predictor is not None:
            raise StorageError(
                "a fit with learners cannot be saved: no file holds them without pickle. Save what"
                " you need of it (params, cov, reward(table)) as tables"
            )
        if not isinstance(self.model.features, str):
            raise StorageError("features given as a function cannot be saved: use a formula")
        model, attributes = self.model, self.model.attributes
        tree = super().to_tree()
        del tree["predictor"]
        tree["sieve"] = [self.sieve.centre, self.sieve.spread, self.sieve.powers]
        tree["model"] = {
            "choices": list(model.choices),
            "beta": model.beta,
            "anchor": model.choices[model.anchor],
            "features": model.features,
            "attributes": None if attributes is None else attributes.to_dict(orient="list"),
            "reward": model.reward,
            # pairs: keys of a mapping in the file would become text
            "available": [[choice, column] for choice, column in model.available.items()],
            "offset": model.offset,
        }
        return tree

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_tree`."""
        model = dict(tree["model"])
        if model["attributes"] is not None:
            model["attributes"] = pd.DataFrame(dict(model["attributes"]))
        model["available"] = dict(model["available"])
        rebuilt = {
            "model": RewardModel(model.pop("choices"), **model),
            "sieve": Sieve(*tree["sieve"]),
        }
        return super().from_tree({**tree, **rebuilt})

    def __repr__(self) -> str:
        return (
            f"RewardResults({self.estimator}: {len(self.theta)} parameters, {self.nobs:,.0f}"
            f" member-months, {'converged' if self.converged else 'NOT CONVERGED'})"
        )
