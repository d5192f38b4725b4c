"""Tables of estimates as text, HTML, LaTeX and CSV."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# what TeX reads as commands
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


@dataclass(frozen=True)
class Summary:
    """A title, pairs of facts, a table and notes, as text, HTML, LaTeX or CSV."""

    title: str
    facts: tuple[tuple[str, str], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def as_text(self) -> str:
        """Return plain text in fixed columns."""
        widths = [
            max(len(row[c]) for row in (self.header, *self.rows)) + (2 if c else 0)
            for c in range(len(self.header))
        ]
        longest = max((len(label) + len(value) for label, value in self.facts), default=0)
        width = max(sum(widths), 72, 2 * longest + 8)
        lines = [self.title.center(width).rstrip(), "=" * width]
        half = (len(self.facts) + 1) // 2
        left, right = self.facts[:half], (*self.facts[half:], ("", ""))
        column = width // 2 - 2
        for pair in zip(left, right, strict=False):
            parts = [f"{label} {value:>{max(column - len(label) - 1, 0)}}" for label, value in pair]
            lines.append("    ".join(parts).rstrip())
        if self.facts:
            lines.append("=" * width)
        for i, row in enumerate((self.header, *self.rows)):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            lines.append("".join(cells).rstrip())
            if i == 0:
                lines.append("-" * width)
        lines.append("=" * width)
        return "\n".join([*lines, *(wrapped(note, max(width, 88)) for note in self.notes)])

    def as_html(self) -> str:
        """Return an HTML fragment: two tables and a list of notes."""

        def table(rows: Sequence[Sequence[str]], head: Sequence[str] | None) -> str:
            top = ""
            if head is not None:
                cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
                top = f"<thead><tr>{cells}</tr></thead>"
            body = "".join(
                "<tr>"
                + f"<th>{html.escape(row[0])}</th>"
                + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
                + "</tr>"
                for row in rows
            )
            return f"<table>{top}<tbody>{body}</tbody></table>"

        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<h4>{html.escape(self.title)}</h4>"
            + table(self.facts, None)
            + table(self.rows, self.header)
            + (f"<ul>{notes}</ul>" if notes else "")
        )

    def as_latex(self) -> str:
        """Return a LaTeX tabular with the table and the facts below it."""

        def tex(text: str) -> str:
            return "".join(LATEX.get(letter, letter) for letter in text)

        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(tex, cells)) + r" \\"

        span = len(self.header)
        body = [line(row) for row in self.rows]
        facts = [
            f"{tex(label)} & \\multicolumn{{{span - 1}}}{{r}}{{{tex(value)}}} \\\\"
            for label, value in self.facts
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
                *[f"% {note}" for note in self.notes],
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
    """Return text in lines of at most ``width``, indented from the second on."""
    return textwrap.fill(
        text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def number(value: float, digits: int = 4) -> str:
    """Return a number with ``digits`` decimals (or digits, if large or tiny); n/a if missing."""
    if value is None or not np.isfinite(value):
        return "n/a"
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 10.0**-digits):
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}"


HEADER = ("Parameter", "Estimate", "Std. Err.", "T-stat", "P-value", "Lower CI", "Upper CI")


def summarise(
    estimator: str,
    facts: Iterable[tuple[str, str]],
    rows: Iterable[tuple[str, Iterable[float]]],
    notes: Iterable[str],
) -> Summary:
    """Return the summary of one fit.

    Parameters
    ----------
    estimator : str
    facts : pairs of str
        What stands above the table.
    rows : pairs of a parameter's name and its numbers
        The numbers in the columns of ``HEADER``.
    notes : str
    """
    return Summary(
        title=f"{estimator} estimation summary",
        facts=tuple(facts),
        header=HEADER,
        rows=tuple((name, *map(number, values)) for name, values in rows),
        notes=tuple(notes),
    )
