"""Several fits side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.summary import Summary, number


class Comparison:
    """Several fits side by side: ``params``, ``std_errors``, ``tstats``, ``summary()``."""

    def __init__(self, results: Mapping[str, Estimates], precision: str = "std_errors") -> None:
        self.results = dict(results)
        self.precision: str = checks.one_of(
            precision, "precision", ("std_errors", "tstats", "pvalues")
        )

    def _joined(self, attribute: str) -> pd.DataFrame:
        """Return a labelled vector of every fit, one column a fit; NaN where it has no such."""
        columns = {label: getattr(fit, attribute) for label, fit in self.results.items()}
        # parameters in the order in which fits bring them: pandas would sort the union
        order = dict.fromkeys(name for fit in self.results.values() for name in fit.params.index)
        return pd.DataFrame(columns).reindex(list(order))

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
        checks.one_of(by, "by", ("bic", "aic"))
        values = {
            label: float(getattr(fit, by))
            for label, fit in self.results.items()
            if fit.converged and fit.likelihood_of == "parameters"
        }
        values = {label: value for label, value in values.items() if np.isfinite(value)}
        if not values:
            raise SpecificationError(f"no fit converged with a finite {by}")
        return min(values, key=lambda label: values[label])

    def support(self) -> pd.DataFrame:
        """Return how much of the data each fit uses: member-months, states, choices compared.

        Estimators that agree while they use different rows corroborate each other; one that
        leaves rows out says here which share.
        """
        rows = {}
        for label, fit in self.results.items():
            uses = _uses(fit)
            share = float(uses.pop("share", 1.0))
            rows[label] = {"member-months": fit.nobs * share, "of all": share, **uses}
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def summary(self) -> Summary:
        """The table (also callable): estimates with their precision in brackets below."""
        return Summary(
            title="Model comparison",
            facts=(),
            header=("", *self.results),
            rows=(*self._parameter_rows(), *self._fact_rows()),
            notes=tuple(self._notes()),
        )

    def _parameter_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield two rows a parameter; a fit without it has empty cells."""
        below = self._joined(self.precision)
        for name, estimates in self.params.iterrows():
            yield (str(name), *("" if np.isnan(v) else number(v) for v in estimates))
            yield ("", *("" if np.isnan(v) else f"({number(v)})" for v in below.loc[str(name)]))

    def _fact_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield one row for each fact about the fits."""
        fits = list(self.results.values())
        # of a likelihood that is not the parameters' own, criteria would mislead
        compared = [fit.likelihood_of == "parameters" for fit in fits]
        yield ("Log-likelihood", *(number(fit.loglik) for fit in fits))
        yield ("Member-months", *(f"{fit.nobs:,.0f}" for fit in fits))
        yield ("Covariance", *(fit.cov_type for fit in fits))
        yield ("Converged", *("yes" if fit.converged else "NO" for fit in fits))
        for label, criterion in (("AIC", "aic"), ("BIC", "bic")):
            values = (getattr(fit, criterion) for fit in fits)
            cells = zip(values, compared, strict=True)
            yield (label, *(number(value, 2) if shown else "" for value, shown in cells))
        yield ("Rows used", *(f"{_uses(fit).get('share', 1.0):.1%}" for fit in fits))

    def _notes(self) -> Iterator[str]:
        """Yield what a reader of the table must know."""
        fits = self.results
        if len({fit.states_digest or fit.data_digest for fit in fits.values()}) > 1:
            # counts of levels and rows of numbers have digests of their own kinds
            if len({bool(fit.states_digest) for fit in fits.values()}) == 1:
                yield "The fits do not use the same data."
            else:
                yield (
                    "Some fits are of rows of numbers, some of counts of levels: whether of the"
                    " same data, their digests cannot tell."
                )
        other = [label for label, fit in fits.items() if fit.likelihood_of != "parameters"]
        if other:
            yield (
                f"The log-likelihood of {', '.join(other)} is that of its first-stage policy, not"
                " of the parameters"
            )
        yield f"{self.precision} in brackets"

    def __str__(self) -> str:
        return self.summary.as_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.summary.as_html()


def _uses(fit: Estimates) -> dict[str, float]:
    """Return what of the data a fit rests on; nothing is known of fits that do not say."""
    return dict(getattr(fit, "uses", None) or {})


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
    if not isinstance(results, Mapping):
        results = {f"({i})": fit for i, fit in enumerate(results, 1)}
    if not results:
        raise SpecificationError("compare needs one result at least")
    for label, fit in results.items():
        if not isinstance(fit, Estimates):
            raise SpecificationError(f"{label!r} is a {type(fit).__name__}, not Results")
    return Comparison(results, precision)
