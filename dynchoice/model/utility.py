"""Flow utility, linear in parameters: ``u(s, j) = offset(s, j) + x(s, j) @ params``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, first_few, suggest
from dynchoice.model.formula import parse, plain_message
from dynchoice.panel.states import StateSpace, as_floats, check_labels
from dynchoice.typing import FloatArray, Level

if TYPE_CHECKING:
    import pandas as pd

CHOICE = "choice"


@dataclass(frozen=True)
class Utility:
    """Utility features of every state and choice; build with one of the two constructors.

    Attributes
    ----------
    x : FloatArray, shape (S, J, K)
        Features; utils per unit of a parameter.
    names : tuple of str
        ``K`` parameter names.
    offset : FloatArray, shape (S, J)
        Known part of flow utility, in utils (zero by default).
    formula, attributes
        The recipe, for utilities built from a formula.
    """

    x: FloatArray
    names: tuple[str, ...]
    offset: FloatArray
    formula: str | None = None
    attributes: pd.DataFrame | None = None

    @classmethod
    def from_array(cls, x: Any, names: Iterable[str], offset: Any = None) -> Utility:
        """Build from features ``x`` (S, J, K).

        Raises
        ------
        SpecificationError
            Wrong shape, entries that are not finite, names that repeat or do not match ``K``.
        """
        features = as_floats(x, "utility features")
        if features.ndim != 3:
            raise SpecificationError(
                f"utility features need the shape (S, J, K), got {features.shape}"
            )
        if isinstance(names, str):  # a sequence of letters
            raise SpecificationError(f"names: pass a list of names, not the text {names!r}")
        labels = tuple(str(n) for n in names)
        if len(labels) != features.shape[2] or len(set(labels)) != len(labels):
            raise SpecificationError(
                f"{features.shape[2]} features need as many distinct names, got {list(labels)}"
            )
        bad = np.argwhere(~np.isfinite(features))
        if len(bad):
            s, j, k = bad[0]
            raise SpecificationError(
                f"{len(bad):,} utility features are not finite, first: {labels[k]!r} in state {s},"
                f" choice {j}. A choice that is not offered belongs into DDC(available=...)"
            )
        if offset is None:
            base = np.zeros(features.shape[:2])
        else:
            base = as_floats(offset, "offset")
            if base.shape != features.shape[:2] or not np.isfinite(base).all():
                raise SpecificationError(
                    f"offset must be finite with shape (S, J) = {features.shape[:2]}, got"
                    f" {base.shape}"
                )
        return cls(features, labels, base)

    @classmethod
    def from_formula(
        cls,
        formula: str,
        states: StateSpace,
        choices: Iterable[Level],
        attributes: pd.DataFrame | None = None,
    ) -> Utility:
        """Build from a formula over the state axes, ``choice`` and columns of attributes.

        Parameters
        ----------
        formula : str
            In formulaic's (patsy's) language, e.g. ``"0 + replaced + kept:mileage"``. It sees
            one row per state and choice and nothing else: no variable of the caller.
        attributes : pandas.DataFrame, optional
            Columns named like state axes or ``choice`` are keys; the others are attributes,
            joined to every state and choice by the keys.

        Raises
        ------
        SpecificationError
            The formula names something that is neither axis, ``choice`` nor attribute; a state or
            choice without attributes; missing values; a term that is constant across the choices
            of every state; a transform that depends on the rows it sees (``scale``, ``bs``).

        Notes
        -----
        formulaic drops rows with missing values and turns unknown levels into zeros, both
        silently; here both are errors. A term that is the same for every choice cannot move a
        choice directly; where it is meant to work through future states, use :meth:`from_array`.
        """
        labels = check_labels(choices, "choices")
        table = design_table(states, labels, attributes)
        x, names = evaluate(formula, table)
        features = np.ascontiguousarray(x.reshape(states.size, len(labels), -1))
        constant = np.ptp(features, axis=1).max(axis=0) == 0
        if constant.any():
            terms = [name for name, same in zip(names, constant, strict=True) if same]
            raise SpecificationError(
                f"formula term(s) {first_few([repr(t) for t in terms])} are constant across the"
                " choices of every state, so no choice depends on them: interact them with an"
                " attribute of the choice (write '0 + ...' to leave out the intercept)"
            )
        utility = cls.from_array(features, names)
        if attributes is not None:
            used = set(table.columns) & _variables(formula)
            keys = [c for c in attributes.columns if c in states.axes or c == CHOICE]
            attributes = attributes[[c for c in attributes.columns if c in used or c in keys]]
        return replace(utility, formula=formula, attributes=attributes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(S, J, K)``."""
        S, J, K = self.x.shape
        return S, J, K

    def flow(self, params: FloatArray) -> FloatArray:
        """Return ``u`` (S, J) in utils at parameters (K,), availability not applied."""
        return self.offset + self.x @ params

    def with_offset(self, extra: FloatArray) -> Utility:
        """Return a copy with ``extra`` (S, J) utils added to the known part."""
        return replace(self, offset=self.offset + extra)


def design_table(
    states: StateSpace, choices: Sequence[Level], attributes: pd.DataFrame | None
) -> pd.DataFrame:
    """Return one row per state and choice (choice fastest) with levels and attributes."""
    import pandas as pd

    S, J = states.size, len(choices)
    if CHOICE in states.axes:
        raise SpecificationError(f"no state axis may be named {CHOICE!r}")
    table = states.labels(np.repeat(np.arange(S), J))
    table[CHOICE] = list(choices) * S
    if attributes is None:
        return table
    keys = [c for c in attributes.columns if c in states.axes or c == CHOICE]
    values = [c for c in attributes.columns if c not in keys]
    if not keys:
        raise SpecificationError(
            "attributes have no key column: name one 'choice' or like a state axis"
            f" ({', '.join(states.axes)}); they have {', '.join(map(str, attributes.columns))}"
        )
    labels = {CHOICE: list(choices), **{a: list(levels) for a, levels in states.axes.items()}}
    for key in keys:
        checks.known(attributes[key].unique(), labels[key], f"attributes: {key}")
    doubled = attributes.duplicated(keys)
    if doubled.any():
        row = attributes.loc[doubled, keys].iloc[0].to_dict()
        raise SpecificationError(f"attributes: {int(doubled.sum())} row(s) repeat, first {row}")
    missing = attributes[values].isna().any(axis=1)
    if missing.any():
        raise SpecificationError(
            f"attributes: {int(missing.sum())} row(s) miss a value, first"
            f" {attributes.loc[missing].iloc[0].to_dict()}"
        )
    # a mark tells rows without attributes from rows whose attributes are there
    marked = attributes.assign(__found__=True)
    joined = table.merge(marked, on=keys, how="left", sort=False)
    absent = joined["__found__"].isna()
    if absent.any():
        row = joined.loc[absent, keys].iloc[0].to_dict()
        count = len(joined.loc[absent, keys].drop_duplicates())
        raise SpecificationError(f"attributes: {count} combination(s) have no row, first {row}")
    return pd.DataFrame(joined.drop(columns="__found__"))


def _variables(formula: str) -> set[str]:
    """Return the names that a formula uses."""
    return {str(v) for v in parse(formula).required_variables}


def evaluate(formula: str, table: pd.DataFrame) -> tuple[FloatArray, list[str]]:
    """Return the formula's matrix and column names, strictly: no dropped row, no zero fill."""
    from formulaic import model_matrix
    from formulaic.errors import FormulaicError, FormulaMaterializationError

    parsed = parse(formula)
    names = {str(v) for v in parsed.required_variables}
    unknown = sorted(names - set(map(str, table.columns)))
    if unknown:
        raise SpecificationError(
            f"formula {formula!r} names {first_few([repr(u) for u in unknown])}, which is neither"
            f" a state axis, 'choice' nor an attribute.{suggest(unknown[0], table.columns)}"
            f" Known: {', '.join(map(str, table.columns))}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning of the log of zero is an error here
            matrix: Any = model_matrix(parsed, table, na_action="raise", context={})
    except FormulaMaterializationError as error:
        raise SpecificationError(f"formula {formula!r}: {plain_message(error)}") from error
    except (FormulaicError, ValueError, TypeError, ArithmeticError, Warning) as error:
        raise SpecificationError(f"formula {formula!r}: {plain_message(error)}") from error
    if len(matrix) != len(table):
        raise SpecificationError(
            f"formula {formula!r}: {len(table) - len(matrix)} of {len(table)} rows were dropped"
        )
    if matrix.model_spec.transform_state:
        raise SpecificationError(
            f"formula {formula!r} uses transforms that depend on the rows they see"
            f" ({first_few(list(matrix.model_spec.transform_state))}): a counterfactual would"
            " rescale them. Put the transformed column into attributes"
        )
    columns = [str(c) for c in matrix.columns]
    return np.ascontiguousarray(matrix.to_numpy(dtype=np.float64)), columns
