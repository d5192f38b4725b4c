"""The results of a finite mixture of unobserved types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.inference.diagnostics import Identification, Support
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.results import Results, list_facts
from dynchoice.inference.summary import Summary
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.panel.counts import Counts
    from dynchoice.panel.panel import Panel


@dataclass(frozen=True, kw_only=True)
class MixtureResults(Estimates):
    """Estimates of a mixture: parameters and share of every type, and each member's probable type.

    Attributes
    ----------
    theta : FloatArray, shape (P,)
        All parameters; :attr:`params` labels them (``taste[0]``, ``taste[1]``, ``price``,
        ``share[1]`` ...). Share coefficients are log-odds against type 0.
    type_shares : FloatArray, shape (Q,)
        Share of each type among the members.
    posteriors : FloatArray, shape (members, Q)
        Probability of each type given a member's whole history, in order of the member's id.
    by_type : tuple of Results
        One ordinary fit a type, for solving, forecasting and counterfactuals; its counts are the
        posterior-weighted ones.
    places : IntArray, shape (Q, K)
        Where each type's parameters stand in ``theta``.
    loglik : float
        Log-likelihood of the mixture; with CCPs inside, of the pseudo-likelihood's mixture
        (``pseudo_loglik``), and NaN here.
    member_loglik : FloatArray, shape (members,), or None
        Each member's part of it.
    """

    marker: ClassVar[str] = "mixture"

    labels: tuple[str, ...]
    hessian: FloatArray
    type_shares: FloatArray
    posteriors: FloatArray = field(repr=False)
    by_type: tuple[Results, ...] = field(repr=False)
    places: IntArray = field(repr=False)
    pseudo_loglik: float | None = None
    loglik_transitions: float | None = None
    member_loglik: FloatArray | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter labels."""
        return self.labels

    def refreshed(self) -> Self:
        """Return the fit with every type's covariance taken from the whole one."""
        types = tuple(
            replace(
                fit,
                cov_matrix=self.cov_matrix[np.ix_(rows, rows)],
                cov_type=self.cov_type,
                cov_config=dict(self.cov_config),
            )
            for fit, rows in zip(self.by_type, self.places, strict=True)
        )
        return replace(self, by_type=types)

    def restart(self) -> FloatArray:
        """Return the ``start`` of a refit from here: parameters, or posteriors by member."""
        return self.theta if self.pseudo_loglik is None else self.posteriors

    @property
    def model_names(self) -> tuple[str, ...]:
        """Parameter names of the model that every type has."""
        return self.by_type[0].model.names

    @property
    def types(self) -> int:
        """Number of types ``Q``."""
        return len(self.by_type)

    @property
    def criterion(self) -> float:
        """The mixture's log-likelihood, or pseudo-log-likelihood where that was maximised."""
        return self.loglik if self.pseudo_loglik is None else self.pseudo_loglik

    @property
    def shares(self) -> pd.Series:
        """Share of each type among the members."""
        return pd.Series(self.type_shares, index=[f"type {q}" for q in range(self.types)])

    @property
    def entropy(self) -> float:
        """How well histories tell types apart: 1 for certain, 0 for not at all."""
        if self.types == 1:
            return 1.0
        p = np.maximum(self.posteriors, 1e-300)
        return float(1 + (p * np.log(p)).sum(axis=1).mean() / np.log(self.types))

    def type(self, q: int) -> Results:
        """Return the fit of one type, ready for ``dc.forecast`` and ``dc.counterfactual``.

        Raises
        ------
        SpecificationError
            No such type.
        """
        if isinstance(q, bool) or not isinstance(q, int | np.integer) or not 0 <= q < self.types:
            raise SpecificationError(f"no type {q!r}: types are 0 to {self.types - 1}")
        return self.by_type[int(q)]

    def identification(self, data: Panel | Counts | None = None) -> Identification:
        """Return which directions of the parameters the data tell apart, smallest first.

        Raises
        ------
        SpecificationError
            With data: roll-outs are looked for in one fit of all members, not in a mixture.
        """
        if data is not None:
            raise SpecificationError(
                "a mixture's identification() takes no data; dc.identification(model, data, params)"
                " shows what roll-outs tell at a type's parameters"
            )
        return Identification.of(self.names, -self.hessian)

    def support(self) -> Support:
        """Return where the panel has choices and where only the model speaks."""
        model = self.by_type[0].model
        n = np.sum([fit.counts for fit in self.by_type], axis=0)
        # counts weighted by posteriors add up to whole numbers, but for rounding
        return Support(model.states, model.choices, np.round(n, 6), model.available)

    @property
    def summary(self) -> Summary:
        """The table of estimates (also callable)."""
        model = self.by_type[0].model
        facts = list_facts(self, model, self.loglik_transitions, self.pseudo_loglik)
        facts += [
            ("Types:", str(self.types)),
            ("Shares:", ", ".join(f"{s:.3f}" for s in self.type_shares)),
            ("Entropy of posteriors:", f"{self.entropy:.3f}"),
        ]
        return self._tabulate(facts)

    def to_tree(self) -> dict[str, Any]:
        """Return everything as nested dicts of arrays and plain values, for saving."""
        return {**super().to_tree(), "by_type": [fit.to_tree() for fit in self.by_type]}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_tree`."""
        types = [Results.from_tree(part) for part in tree["by_type"]]
        return super().from_tree({**tree, "by_type": types})

    def __repr__(self) -> str:
        return (
            f"MixtureResults({self.estimator}: {self.types} types,"
            f" {len(self.theta)} parameters, {self.nobs:,.0f} member-months,"
            f" {'converged' if self.converged else 'NOT CONVERGED'})"
        )
