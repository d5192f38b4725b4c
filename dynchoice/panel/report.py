"""Report: what was found in a panel, line by line."""

from __future__ import annotations

from dataclasses import dataclass

from dynchoice._lazy import pd
from dynchoice.errors import suggest


@dataclass(frozen=True)
class Report:
    """What was found in a panel: a table of (subject, rows, members, what it means)."""

    table: pd.DataFrame

    def __getitem__(self, subject: str) -> int:
        """Return the number of rows (or members) of one line of the table."""
        if subject not in self.table.index:
            raise KeyError(f"no line {subject!r}.{suggest(subject, self.table.index)}")
        return int(self.table.loc[subject, "count"])

    def __str__(self) -> str:
        width = max(30, *(len(str(name)) for name in self.table.index))
        lines = [f"{'panel':<{width}}{'count':>14}"]
        lines += [
            f"{name:<{width}}{int(row['count']):>14,}  {row['note']}".rstrip()
            for name, row in self.table.iterrows()
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return str(self.table.to_html())
