"""What each stage of a run rests on, as digests: the run file's parts, tables and rows."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from dynchoice.errors import ConfigError, DataError, first_few
from dynchoice.names import BASELINE
from dynchoice.run import source
from dynchoice.run.inputs import Inputs
from dynchoice.run.reader import Stamp, stamp
from dynchoice.run.stages import key_of

PLACES = frozenset({"path", "duckdb", "connection", "memory"})
"""Keys of ``[data]`` that say where rows are, not what they mean: the rows' digest counts."""


class Keys:
    """Digests of the inputs of a run's stages.

    Parameters
    ----------
    run : Inputs

    Attributes
    ----------
    seen : dict
        Inputs whose digests were taken, with what told that they are as they were.
    facts : mapping
        What the counting stage found, once it is done: later keys go by it.
    key : str
        Key of the counting stage.
    """

    def __init__(self, run: Inputs) -> None:
        self.run = run
        self.seen: dict[Path, tuple[Stamp, str]] = {}
        self.facts: Mapping[str, Any] = {}
        self.key = ""

    def digest_of(self, path: Path) -> str:
        """Return the sha256 of an input, taken once: what changes later is another run's."""
        if path not in self.seen:
            mark = stamp(path)
            self.seen[path] = mark, self.run.reader.digest(path)
        return self.seen[path][1]

    def refuse_changes(self) -> None:
        """Raise where an input has changed: what was made of it may not be what the keys say.

        Raises
        ------
        DataError
            A file is no more what it was when the run began.
        """
        changed = [p for p, (mark, _) in self.seen.items() if stamp(p) != mark]
        if changed:
            raise DataError(
                f"{first_few([p.name for p in changed])} changed while it was used: run again"
            )

    def inputs(self) -> list[dict[str, Any]]:
        """Return name, size and digest of every file that the run reads, as it was read."""
        out = []
        for path in [self.run.source, *source.files_of(self.run), *self.run.tables]:
            if path.is_file():
                sha = self.digest_of(path)
                name = os.path.relpath(path, self.run.folder)
                size = self.seen[path][0][0]
                out.append({"name": name, "bytes": size, "sha256": sha})
        return out

    @cached_property
    def described(self) -> dict[str, Any]:
        """The parts of the run file that describe the model, with its tables' digests."""
        spec = self.run.spec
        plain = spec.model_dump(mode="json", by_alias=True)
        parts = {k: plain[k] for k in ("membership", "axes", "model", "utility")}
        parts["tables"] = {}
        attributes = spec.utility.attributes if spec.utility else None
        for path in self.run.tables:
            name = str(path.relative_to(self.run.folder) if self._inside(path) else path)
            if path.is_file() and path != (attributes and self.run.path(attributes)):
                parts["tables"][name] = self.digest_of(path)
        return parts

    def _inside(self, path: Path) -> bool:
        return path.is_relative_to(self.run.folder)

    def model_inputs(self, segment: str) -> dict[str, Any]:
        """Return what the model of one segment rests on: of attributes, its own rows only."""
        utility = self.run.spec.utility
        if utility is None or utility.attributes is None:
            return self.described
        return {**self.described, "attributes": self.attribute_digest(segment)}

    @cached_property
    def attribute_rows(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the attributes, as texts."""
        assert self.run.spec.utility is not None and self.run.spec.utility.attributes is not None
        path = self.run.path(self.run.spec.utility.attributes)
        try:
            self.digest_of(path)
            text = self.run.reader.content(path).decode("utf-8-sig")
            header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
        except (OSError, ValueError, csv.Error) as error:
            raise ConfigError(f"{self.run.source}: utility.attributes: {error}") from error
        return header, rows

    def attribute_digest(self, segment: str) -> str:
        """Return the digest of a segment's rows of the attributes."""
        header, rows = self.attribute_rows
        if "segment" in header and "segment" not in self.run.states.axes:
            column = header.index("segment")
            rows = [r for r in rows if len(r) <= column or r[column] == segment]
        return hashlib.sha256(repr((header, rows)).encode()).hexdigest()

    def check(self) -> str:
        """Return the key of the checks made before rows are read."""
        plain = self.run.spec.model_dump(mode="json")
        inputs = {
            **{k: plain[k] for k in ("membership", "axes", "model", "utility", "scenario")},
            "periods": self.run.spec.forecast.periods,
            "tables": {str(p): self.digest_of(p) for p in self.run.tables if p.is_file()},
        }
        return key_of("check", inputs)

    @property
    def meaning(self) -> dict[str, Any]:
        """What the rows mean: what counts rest on beside the rows."""
        plain = self.run.spec.data.model_dump(mode="json", exclude=set(PLACES))
        parts = self.described
        axes = parts["axes"]
        levels = axes and {
            k: {w: a[w] for w in ("levels", "range", "column")} for k, a in axes.items()
        }
        choices = parts["model"] and parts["model"]["choices"]
        tables = parts["tables"] if parts["membership"] else {}  # the programme, the offers
        return {
            "data": plain,
            "axes": levels,
            "choices": choices,
            "membership": parts["membership"],
            "tables": tables,
        }

    def count(self) -> str | None:
        """Return the key of the counts of files, None for a database: it is counted each time.

        A DuckDB file is a database: its views read other files, and what was written last may
        stand beside it.
        """
        if self.run.spec.data.path is None:
            return None
        files = source.files_of(self.run)
        if not files:
            raise DataError(f"no such file: {self.run.spec.data.path}")
        source.check_readable(files)
        return key_of("count", {**self.meaning, "rows": [self.digest_of(f) for f in files]})

    def counted(self, facts: Mapping[str, Any], since: str) -> str:
        """Return the key of a database's counts: by all that they turned out to be.

        ``since`` stands for what members of earlier months did.
        """
        kept = {k: v for k, v in facts.items() if k != "warnings"}
        return key_of("count", {**self.meaning, "facts": kept, "since": since})

    def estimate(self, segment: str) -> str:
        """Return the key of one segment's fit."""
        return key_of(
            "estimate",
            {
                "counts": self.facts["segments"][segment],
                "segment": segment,
                "model": self.model_inputs(segment),
                "estimate": self.run.spec.estimate.model_dump(mode="json"),
            },
        )

    def diagnose(self, segment: str) -> str:
        """Return the key of what is said of one fit."""
        return key_of("diagnose", {"estimate": self.estimate(segment)})

    @cached_property
    def coming(self) -> tuple[list[Any], list[str]]:
        """Scenarios of the forecast from the month after the data, and what is past."""
        from dynchoice.run import build

        facts = self.facts
        listed, past = build.scenarios(self.run, facts["last"] + 1, facts["kind"])
        periods = self.run.spec.forecast.periods
        late = [s for s in listed if s.starts > periods and s.ramp is None]
        kept = [s for s in listed if s not in late]
        too_late = [
            f"scenario {s.name!r} starts in period {s.starts}, after the last one ({periods}):"
            " left out until it comes nearer"
            for s in late
        ]
        return kept, [*past, *too_late]

    def forecast(self, segments: list[str], name: str) -> str:
        """Return the key of one scenario's forecast."""
        every = self.run.spec.scenario
        # a roll-out by region has everything computed region by region: other last bits
        sections = [s for s in every if s.name == name or self.regional]
        plain = [name, *[s.model_dump(mode="json") for s in sections]]
        return key_of(
            "forecast",
            {
                "counts": {m: self.facts["segments"][m] for m in segments},
                "last": self.facts["last"],
                "estimates": {m: self.estimate(m) for m in segments},
                "forecast": self.run.spec.forecast.model_dump(mode="json"),
                "scenario": plain,
            },
        )

    @property
    def regional(self) -> bool:
        """Whether some scenario is a roll-out by region."""
        return any(s.ramp for s in self.run.spec.scenario)

    @property
    def dated(self) -> bool:
        """Whether some scenario has a date: which of them are forecast then goes by the data."""
        dates = ((s.starts, s.ends) for s in self.run.spec.scenario)
        return any(isinstance(d, str) for pair in dates for d in pair)

    @property
    def left_out(self) -> list[str]:
        """Scenarios that are past or too far ahead, in words."""
        return self.coming[1] if self.dated else []

    @property
    def names(self) -> list[str]:
        """The baseline and the scenarios that are forecast: those not past and not too far."""
        if self.dated:
            return [BASELINE, *[s.name for s in self.coming[0]]]
        return [BASELINE, *[s.name for s in self.run.spec.scenario]]

    def whole(self, segments: list[str]) -> str:
        """Return the digest of the whole run: of all that its files rest on."""
        spec = self.run.spec
        output = spec.output.model_dump(mode="json", exclude={"folder", "keep"})
        return key_of(
            "run",
            {
                "count": self.key,
                "segments": {m: self.estimate(m) for m in segments},
                "forecasts": {n: self.forecast(segments, n) for n in self.names},
                "guard": spec.guard.model_dump(mode="json"),
                "output": output,
                "title": spec.title,
            },
        )
