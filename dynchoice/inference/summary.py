"""Tables of estimates as text, HTML, LaTeX and CSV."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
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
