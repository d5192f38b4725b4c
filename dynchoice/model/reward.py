"""RewardModel: what inverse reinforcement learning assumes where states are numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, suggest
from dynchoice.model.utility import evaluate
from dynchoice.panel.states import check_labels
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    import pandas as pd

CHOICE = "choice"


@dataclass(frozen=True, init=False)
class RewardModel:
    """Choices, discount factor, the choice of known reward, and features to read the reward by.

    Parameters
    ----------
    choices : sequence of labels
        ``J`` choices.
    beta : float
        Discount factor per period, in [0, 1).
    anchor : label
        The choice whose reward is known in every state ("not a member").
    features : str or callable
        On what the reward is projected: a formula over the state's columns and ``choice``, as
        ``"0 + member + member:hours"`` with ``attributes``; or a function of a table of states
        that returns an array (rows, J, K), with ``names``.
    names : sequence of str, optional
        Of the features of a callable.
    attributes : pandas.DataFrame, optional
        One row a choice (column ``choice``): columns that formulas may use.
    offset : str, optional
        Formula of one column that is a known part of every choice's reward, in utils: what the
        features add to.
    reward : float or str
        What the anchor is paid beside its features and offset, in utils: a number or a column.
        Default 0, so that an anchor without features earns nothing.
    available : mapping, optional
        Choice -> column of 0/1: where it is offered. Inside a contract a single choice is: its
        reward takes the place of the anchor's. It is what its features say (the parameters are
        found jointly); without features the whole contract's reward is booked at the moment it is
        bought. Default: every choice everywhere.

    Raises
    ------
    SpecificationError
        Anything that does not fit; the message names it.

    Examples
    --------
    >>> import pandas as pd
    >>> model = RewardModel(["out", "in"], beta=0.9, anchor="out", features="0 + member:hours",
    ...                     attributes=pd.DataFrame({"choice": ["out", "in"], "member": [0, 1]}))
    >>> model.design(pd.DataFrame({"hours": [2.0]}))[0].tolist()
    [[[0.0], [2.0]]]
    """

    choices: tuple[Level, ...]
    beta: float
    anchor: int
    features: str | Callable[[pd.DataFrame], FloatArray]
    names: tuple[str, ...]
    attributes: pd.DataFrame | None = field(repr=False)
    reward: float | str
    available: dict[Level, str]
    offset: str | None

    def __init__(
        self,
        choices: Iterable[Level],
        *,
        beta: float,
        anchor: Level,
        features: str | Callable[[pd.DataFrame], FloatArray],
        names: Iterable[str] | None = None,
        attributes: pd.DataFrame | None = None,
        reward: float | str = 0.0,
        available: Mapping[Level, str] | None = None,
        offset: str | None = None,
    ) -> None:
        labels = check_labels(choices, "choices")
        if not isinstance(beta, int | float) or isinstance(beta, bool) or not 0 <= beta < 1:
            raise SpecificationError(f"beta={beta!r}: a discount factor in [0, 1)")
        checks.known([anchor], labels, "anchor: choice")
        checks.known(available or {}, labels, "available: choice")
        if not isinstance(features, str) and (not callable(features) or names is None):
            raise SpecificationError("features: a formula, or a function with names= beside it")
        if isinstance(reward, bool) or not isinstance(reward, int | float | str):
            raise SpecificationError(f"reward={reward!r}: a number, or a column's name")
        values = {
            "choices": labels,
            "beta": float(beta),
            "anchor": labels.index(anchor),
            "features": features,
            "names": () if names is None else tuple(map(str, names)),
            "attributes": attributes,
            "reward": reward,
            "available": dict(available or {}),
            "offset": offset,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if attributes is not None and (
            CHOICE not in attributes
            or set(attributes[CHOICE]) != set(labels)
            or attributes[CHOICE].duplicated().any()
        ):
            raise SpecificationError(
                f"attributes: one row a choice is needed, with a column {CHOICE!r} of"
                f" {', '.join(map(str, labels))}"
            )

    def design(self, table: pd.DataFrame) -> tuple[FloatArray, tuple[str, ...]]:
        """Return the features (n, J, K) of ``n`` states, and their names.

        Raises
        ------
        SpecificationError
            The formula cannot be evaluated; a callable returns another shape; features are not
            finite.
        """
        n, J = len(table), len(self.choices)
        if callable(self.features):
            x, names = np.asarray(self.features(table), dtype=np.float64), self.names
            if x.shape != (n, J, len(names)):
                raise SpecificationError(
                    f"features returned shape {x.shape}; (rows, J, K) = {(n, J, len(names))} is"
                    " needed"
                )
        else:
            flat, columns = evaluate(self.features, self.long(table))
            x, names = flat.reshape(n, J, flat.shape[1]), tuple(columns)
        if not np.isfinite(x).all():
            k = int(np.argwhere(~np.isfinite(x))[0][2])
            raise SpecificationError(f"feature {names[k]!r} is not finite in some states")
        return np.ascontiguousarray(x), names

    def long(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return one row a state and choice, with the choices' attributes."""
        n, J = len(table), len(self.choices)
        long = table.loc[table.index.repeat(J)].reset_index(drop=True)
        if self.attributes is not None:
            by_choice = self.attributes.set_index(CHOICE).loc[list(self.choices)]
            for name in by_choice.columns:
                long[name] = np.tile(by_choice[name].to_numpy(), n)
        long[CHOICE] = list(self.choices) * n
        return long

    def base(self, table: pd.DataFrame) -> FloatArray:
        """Return the known part of the reward (n, J): the offset.

        Raises
        ------
        SpecificationError
            The formula cannot be evaluated, or has more than one column.
        """
        if self.offset is None:
            return np.zeros((len(table), len(self.choices)))
        flat, names = evaluate(self.offset, self.long(table))
        if flat.shape[1] != 1:
            raise SpecificationError(
                f"offset {self.offset!r} has {flat.shape[1]} columns ({', '.join(names)}): write"
                " one, as '0 + I(5 * run)'"
            )
        return np.ascontiguousarray(flat.reshape(len(table), -1))

    def offered(self, table: pd.DataFrame) -> BoolArray | None:
        """Return which choices are offered (n, J), or None where all are everywhere.

        Raises
        ------
        SpecificationError
            No such column; values other than 0 and 1; the anchor missing among several choices.
        """
        if not self.available:
            return None
        out = np.ones((len(table), len(self.choices)), dtype=bool)
        for label, name in self.available.items():
            values = self._column(table, name, "available").to_numpy(dtype=np.float64)
            if not np.isin(values, (0, 1)).all():
                raise SpecificationError(f"available: column {name!r} must hold 0 and 1")
            out[:, self.choices.index(label)] = values == 1
        count = out.sum(axis=1)
        if (count == 0).any():
            raise SpecificationError(f"available: {int((count == 0).sum()):,} rows offer no choice")
        lacking = (count > 1) & ~out[:, self.anchor]
        if lacking.any():
            raise SpecificationError(
                f"available: {int(lacking.sum()):,} rows offer several choices, the anchor"
                f" {self.choices[self.anchor]!r} not among them: their reward is not identified"
            )
        return out

    def reference(self, offered: BoolArray | None, n: int) -> IntArray:
        """Return the choice of known reward (n,): the anchor, or the only one offered."""
        out = np.full(n, self.anchor, dtype=np.int64)
        if offered is not None:
            forced = ~offered[:, self.anchor]
            out[forced] = offered[forced].argmax(axis=1)
        return out

    def paid(self, table: pd.DataFrame, o: IntArray) -> FloatArray:
        """Return the reference's reward (n,) but for what its features earn."""
        return self.known(table) + self.base(table)[np.arange(len(o)), o]

    def known(self, table: pd.DataFrame) -> FloatArray:
        """Return ``reward`` (n,): what the reference is paid beside offset and features."""
        if not isinstance(self.reward, str):
            return np.full(len(table), float(self.reward))
        return np.asarray(self._column(table, self.reward, "reward"), dtype=np.float64)

    @staticmethod
    def _column(table: pd.DataFrame, name: str, role: str) -> pd.Series:
        if name not in table:
            raise SpecificationError(
                f"{role}: {name!r} is no feature of the rows.{suggest(name, table.columns)}"
                f" Features: {', '.join(map(str, table.columns))}"
            )
        return table[name]
