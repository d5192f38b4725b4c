"""Tables of estimates as text, HTML, LaTeX and CSV; ``compare`` puts several side by side."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.inference.estimates import Estimates
    from dynchoice.model.ddc import DDC

LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


@dataclass(frozen=True)
class Summary:
    """A title, pairs of facts, a table and notes, in whatever form is asked for."""

    title: str
    facts: tuple[tuple[str, str], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def as_text(self) -> str:
        """Return plain text in fixed columns."""
        widths = [
            max(len(r[c]) for r in (self.header, *self.rows)) + (2 if c else 0)
            for c in range(len(self.header))
        ]
        longest = max((len(a) + len(x) for a, x in self.facts), default=0)
        width = max(sum(widths), 72, 2 * longest + 8)
        lines = [self.title.center(width).rstrip(), "=" * width]
        half = (len(self.facts) + 1) // 2
        left, right = self.facts[:half], (*self.facts[half:], ("", ""))
        column = width // 2 - 2
        for (a, x), (b, y) in zip(left, right, strict=False):
            first = f"{a} {x:>{max(column - len(a) - 1, 0)}}"
            second = f"{b} {y:>{max(column - len(b) - 1, 0)}}"
            lines.append(f"{first}    {second}".rstrip())
        if self.facts:
            lines.append("=" * width)
        for i, row in enumerate((self.header, *self.rows)):
            cells = [row[0].ljust(widths[0])]
            cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
            lines.append("".join(cells).rstrip())
            if i == 0:
                lines.append("-" * width)
        lines.append("=" * width)
        return "\n".join([*lines, *(wrapped(n, max(width, 88)) for n in self.notes)])

    def as_html(self) -> str:
        """Return an HTML fragment: two tables and a list of notes."""

        def table(rows: Sequence[Sequence[str]], head: Sequence[str] | None) -> str:
            top = ""
            if head is not None:
                cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
                top = f"<thead><tr>{cells}</tr></thead>"
            body = "".join(
                "<tr>"
                + f"<th>{html.escape(r[0])}</th>"
                + "".join(f"<td>{html.escape(c)}</td>" for c in r[1:])
                + "</tr>"
                for r in rows
            )
            return f"<table>{top}<tbody>{body}</tbody></table>"

        notes = "".join(f"<li>{html.escape(n)}</li>" for n in self.notes)
        return (
            f"<h4>{html.escape(self.title)}</h4>"
            + table(self.facts, None)
            + table(self.rows, self.header)
            + (f"<ul>{notes}</ul>" if notes else "")
        )

    def as_latex(self) -> str:
        """Return a LaTeX tabular with the table and the facts below it."""

        def tex(text: str) -> str:
            return "".join(LATEX.get(c, c) for c in text)

        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(tex, cells)) + r" \\"

        span = len(self.header)
        body = [line(r) for r in self.rows]
        facts = [
            f"{tex(a)} & \\multicolumn{{{span - 1}}}{{r}}{{{tex(b)}}} \\\\" for a, b in self.facts
        ]
        return "\n".join(
            [
                rf"% {self.title}",
                rf"\begin{{tabular}}{{l{'r' * (span - 1)}}}",
                r"\hline",
                line(self.header),
                r"\hline",
                *body,
                r"\hline",
                *facts,
                r"\hline",
                r"\end{tabular}",
                *[f"% {n}" for n in self.notes],
            ]
        )

    def as_csv(self) -> str:
        """Return the table as comma-separated text."""
        import csv
        import io

        out = io.StringIO()
        csv.writer(out).writerows([self.header, *self.rows])
        return out.getvalue()

    def __call__(self) -> Summary:
        """Return itself: ``results.summary`` and ``results.summary()`` both read well."""
        return self

    def __str__(self) -> str:
        return self.as_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.as_html()


def wrapped(text: str, width: int = 100) -> str:
    """Return text in lines of at most ``width``, the further ones indented."""
    return textwrap.fill(
        text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def number(value: float, digits: int = 4) -> str:
    """Return a number in the width of a table; a missing one says so."""
    if value is None or not np.isfinite(value):
        return "n/a"
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 10.0**-digits):
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}"


HEADER = ("Parameter", "Estimate", "Std. Err.", "T-stat", "P-value", "Lower CI", "Upper CI")


def parameter_rows(r: Estimates) -> tuple[tuple[str, ...], ...]:
    """Return one row a parameter, in the columns of ``HEADER``."""
    interval = r.conf_int()
    return tuple(
        (
            name,
            number(r.params.iloc[k]),
            number(r.std_errors.iloc[k]),
            number(r.tstats.iloc[k]),
            number(r.pvalues.iloc[k]),
            number(interval["lower"].iloc[k]),
            number(interval["upper"].iloc[k]),
        )
        for k, name in enumerate(r.params.index)
    )


def facts_of(r: Any, model: DDC) -> list[tuple[str, str]]:
    """Return the facts above the table that every fit has."""
    S, J, _ = model.shape
    cov = r.cov_type
    if "clusters" in r.cov_config:
        cov += f" ({r.cov_config['clusters']:,} by {r.cov_config['by']})"
    facts = [
        ("Estimator:", r.estimator),
        ("Member-months:", f"{r.nobs:,.0f}"),
        ("Members:", f"{r.nmembers:,}"),
        ("States x choices:", f"{S:,} x {J}"),
        ("Discount factor:", f"{model.beta:g}"),
        ("Log-likelihood:", number(r.loglik)),
        ("Converged:", "yes" if r.converged else "NO"),
        ("Covariance:", cov),
        ("First-stage error:", r.cov_config.get("first_stage_label", "none")),
        ("AIC:", number(r.aic, 2)),
        ("BIC:", number(r.bic, 2)),
    ]
    if r.loglik_transitions is not None and np.isfinite(r.loglik):
        facts.append(("Log-lik. with transitions:", number(r.loglik + r.loglik_transitions)))
    if r.pseudo_loglik is not None:
        facts.append(("Pseudo-log-likelihood:", number(r.pseudo_loglik)))
    return facts


def summarise(r: Any, model: DDC, more: Sequence[tuple[str, str]] = ()) -> Summary:
    """Return the summary of one fit; ``more`` are facts of its own kind."""
    notes = [] if r.converged else [f"NOT CONVERGED: {r.message}"]
    return Summary(
        f"{r.estimator} estimation summary",
        (*facts_of(r, model), *more),
        HEADER,
        parameter_rows(r),
        (*notes, *r.notes),
    )


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
    from dynchoice.inference.estimates import Estimates as Kind

    if isinstance(results, Kind):
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
        if not isinstance(r, Kind):
            raise SpecificationError(f"{label!r} is a {type(r).__name__}, not Results")
    return Comparison(named, precision)
