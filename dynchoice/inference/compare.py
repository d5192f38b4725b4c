"""Several fits side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.summary import Summary, number

if TYPE_CHECKING:
    import pandas as pd


class Comparison:
    """Several fits side by side: ``params``, ``std_errors``, ``tstats``, ``summary()``."""

    def __init__(self, results: Mapping[str, Estimates], precision: str = "std_errors") -> None:
        self.results = dict(results)
        if precision not in ("std_errors", "tstats", "pvalues"):
            raise SpecificationError(
                f"precision={precision!r}: use 'std_errors', 'tstats' or 'pvalues'"
            )
        self.precision = precision

    def _joined(self, attribute: str) -> pd.DataFrame:
        import pandas as pd

        order = list(dict.fromkeys(n for r in self.results.values() for n in r.params.index))
        return pd.DataFrame(
            {name: getattr(r, attribute) for name, r in self.results.items()}
        ).reindex(order)

    @property
    def params(self) -> pd.DataFrame:
        """Estimates, one column a fit."""
        return self._joined("params")

    @property
    def std_errors(self) -> pd.DataFrame:
        """Standard errors, one column a fit."""
        return self._joined("std_errors")

    @property
    def tstats(self) -> pd.DataFrame:
        """T-statistics, one column a fit."""
        return self._joined("tstats")

    def best(self, by: str = "bic") -> str:
        """Return the label of the converged fit with the smallest ``"bic"`` or ``"aic"``.

        Raises
        ------
        SpecificationError
            Another criterion; no fit converged with one.
        """
        if by not in ("bic", "aic"):
            raise SpecificationError(f"by={by!r}: use 'bic' or 'aic'")
        values = {
            name: float(getattr(r, by))
            for name, r in self.results.items()
            if r.converged and r.likelihood_of == "parameters"
        }
        values = {name: v for name, v in values.items() if np.isfinite(v)}
        if not values:
            raise SpecificationError(f"no fit converged with a finite {by}")
        return min(values, key=lambda name: values[name])

    def support(self) -> pd.DataFrame:
        """Return what of the data each fit rests on: member-months, states, choices compared.

        Estimators that agree while they use different rows corroborate each other; one that
        leaves rows out says here which share.
        """
        import pandas as pd

        rows = {}
        for name, r in self.results.items():
            uses = dict(getattr(r, "uses", {}) or {})
            share = float(uses.pop("share", 1.0))
            rows[name] = {"member-months": r.nobs * share, "of all": share, **uses}
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def summary(self) -> Summary:
        """The table (also callable): estimates with their precision in brackets below."""
        below = self._joined(self.precision)
        rows: list[tuple[str, ...]] = []
        for name, row in self.params.iterrows():
            rows.append((str(name), *(number(v) if v == v else "" for v in row)))
            rows.append(("", *(f"({number(v)})" if v == v else "" for v in below.loc[str(name)])))
        facts: list[tuple[str, Any]] = [
            ("Log-likelihood", lambda r: number(r.loglik)),
            ("Member-months", lambda r: f"{r.nobs:,.0f}"),
            ("Covariance", lambda r: r.cov_type),
            ("Converged", lambda r: "yes" if r.converged else "NO"),
            ("AIC", lambda r: number(r.aic, 2) if r.likelihood_of == "parameters" else ""),
            ("BIC", lambda r: number(r.bic, 2) if r.likelihood_of == "parameters" else ""),
            ("Rows used", lambda r: f"{(getattr(r, 'uses', {}) or {}).get('share', 1.0):.1%}"),
        ]
        for label, read in facts:
            rows.append((label, *(read(r) for r in self.results.values())))
        data = {r.states_digest or r.data_digest for r in self.results.values()}
        notes = []
        if len(data) > 1:
            # counts of levels and rows of numbers have digests of their own kinds
            kinds = {bool(r.states_digest) for r in self.results.values()}
            notes.append(
                "The fits do not use the same data."
                if len(kinds) == 1
                else "Some fits are of rows of numbers, some of counts of levels: whether of the"
                " same data, their digests cannot tell."
            )
        other = [n for n, r in self.results.items() if r.likelihood_of != "parameters"]
        if other:
            notes.append(
                f"The log-likelihood of {', '.join(other)} is that of its first-stage policy, not"
                " of the parameters"
            )
        notes.append(f"{self.precision} in brackets")
        return Summary("Model comparison", (), ("", *self.results), tuple(rows), tuple(notes))

    def __str__(self) -> str:
        return self.summary.as_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.summary.as_html()


def compare(
    results: Mapping[str, Estimates] | Sequence[Estimates], *, precision: str = "std_errors"
) -> Comparison:
    """Put several fits side by side.

    Parameters
    ----------
    results : mapping of label to fit, or sequence
    precision : {"std_errors", "tstats", "pvalues"}
        What stands in brackets below each estimate.

    Raises
    ------
    SpecificationError
        Nothing to compare, or an entry that is no Results.
    """
    if isinstance(results, Estimates):
        results = [results]
    if not isinstance(results, Mapping | list | tuple):
        raise SpecificationError(
            f"compare takes a mapping or list of Results, got {type(results).__name__}"
        )
    named = (
        results
        if isinstance(results, Mapping)
        else {f"({i + 1})": r for i, r in enumerate(results)}
    )
    if not named:
        raise SpecificationError("compare needs one result at least")
    for label, r in named.items():
        if not isinstance(r, Estimates):
            raise SpecificationError(f"{label!r} is a {type(r).__name__}, not Results")
    return Comparison(named, precision)
