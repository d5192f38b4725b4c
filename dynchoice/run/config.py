"""The run file: TOML, checked by pydantic, every error at once with the nearest valid name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dynchoice.counterfactual.scenario import Scenario
from dynchoice.errors import ConfigError, SpecificationError, suggest
from dynchoice.model.ddc import DDC
from dynchoice.model.laws import Cycle, Deterministic, Fixed, Increment, Law, Markov
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.panel.panel import Panel
from dynchoice.panel.states import StateSpace

if TYPE_CHECKING:
    import pandas as pd

Label = bool | int | float | str


class Section(BaseModel):
    """A table of the run file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Section):
    """Where the panel is and which columns are what."""

    path: str | Annotated[list[str], Field(min_length=1)]
    member: str
    time: str
    choice: str
    segment: str | None = None
    region: str | None = None
    weights: str | None = None
    decision: str | None = None
    freq: Literal["integer", "month", "quarter", "year"] | None = None
    invalid: Literal["raise", "drop"] = "raise"


class Axis(Section):
    """One axis of the state: levels, column, and law of motion."""

    levels: list[Label] | None = None
    range: int | None = Field(default=None, ge=1)
    column: str | None = None
    law: Literal["fixed", "cycle", "deterministic", "markov", "increment"]
    given: list[str] = ["choice"]
    table: str | None = None
    probabilities: list[Any] | None = None
    max_step: int | None = Field(default=None, ge=0)
    reset_on: str | list[str] | None = None

    def all_levels(self) -> list[Label]:
        """Return the levels, spelt out or 0 .. range-1."""
        return list(self.levels) if self.levels is not None else list(range(self.range or 0))


class Rule(Section):
    """States (by levels of some axes) in which some choices are not offered."""

    where: dict[str, Label | list[Label]]
    choices: list[Label]


class Model(Section):
    """Choices, discounting, availability, inattention."""

    choices: list[Label]
    beta: float
    unavailable: list[Rule] = []
    attention: float | None = None
    default: Label | None = None


class UtilityPart(Section):
    """Formula and attributes (a CSV; its column ``segment`` may select rows)."""

    formula: str
    attributes: str | None = None


class Estimate(Section):
    """How to estimate."""

    transitions: Literal["two-step", "joint"] = "two-step"
    cov_type: Literal["clustered", "robust", "opg", "unadjusted", "bootstrap"] = "clustered"
    tol: float = Field(default=1e-8, gt=0, le=1e-4)
    maxiter: int = Field(default=100, ge=1)


class ForecastPart(Section):
    """How far and with which bands."""

    periods: int = Field(default=24, ge=1)
    draws: int = Field(default=100, ge=0)
    level: float = Field(default=0.9, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class ScenarioPart(Section):
    """One scenario."""

    name: str
    starts: int = Field(default=1, ge=1)
    offer: dict[str, Label | dict[str, Label]] = {}
    params: dict[str, FiniteFloat] = {}
    scale: dict[str, FiniteFloat] = {}


class Output(Section):
    """Where results go."""

    folder: str = "out"
    picture: bool = True


class RunFile(Section):
    """A whole run file."""

    data: Data
    axes: dict[str, Axis]
    model: Model
    utility: UtilityPart
    estimate: Estimate = Estimate()
    forecast: ForecastPart = ForecastPart()
    scenario: list[ScenarioPart] = []
    output: Output = Output()


def load_run(path: str | Path, changes: Mapping[str, Any] | None = None) -> Run:
    """Read and check a run file.

    Parameters
    ----------
    path : path of a TOML file; paths inside it are relative to its folder.
    changes : mapping, optional
        Dotted key -> value, over what the file says.

    Raises
    ------
    ConfigError
        Not TOML; unknown keys, wrong types, missing values: all of them, with their paths.
    """
    source = Path(path)
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no such run file: {source}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {source}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    for key, value in (changes or {}).items():
        node = raw
        *parents, last = key.split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {key}: {name!r} is no table of the run file")
        node[last] = value
    try:
        spec = RunFile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n" + "\n".join(_explain(error))) from None
    return Run(spec, source.resolve().parent, source)


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        where = ".".join(str(p) for p in item["loc"])
        text = item["msg"]
        if item["type"] == "extra_forbidden":
            text = "unknown key." + suggest(item["loc"][-1], _known_keys(item["loc"][:-1]))
        elif item["type"] == "missing":
            text = "is missing"
        lines.append(f"- {where}: {text}")
    return lines


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys of the table at a path."""
    known: dict[str, type[Section]] = {
        "data": Data,
        "axes": Axis,
        "model": Model,
        "utility": UtilityPart,
        "estimate": Estimate,
        "forecast": ForecastPart,
        "scenario": ScenarioPart,
        "output": Output,
    }
    table = known.get(str(loc[0]), RunFile) if loc else RunFile
    if "unavailable" in loc:
        table = Rule
    return list(table.model_fields)


class Run:
    """A checked run file and what it builds: panel, model by segment, scenarios."""

    def __init__(self, spec: RunFile, folder: Path, source: Path) -> None:
        self.spec, self.folder, self.source = spec, folder, source
        problems = [
            f"- axes.{name}: give either levels or range"
            for name, axis in spec.axes.items()
            if (axis.levels is None) == (axis.range is None)
        ]
        names = [s.name for s in spec.scenario]
        problems += [
            f"- scenario: the name {n!r} repeats" for n in set(names) if names.count(n) > 1
        ]
        for i, s in enumerate(spec.scenario):
            both = set(s.params) & set(s.scale)
            problems += [f"- scenario.{i}: {n!r} stands in params and in scale" for n in both]
        if problems:
            raise ConfigError(f"{source}:\n" + "\n".join(problems))
        try:
            self.states = StateSpace.from_axes({n: a.all_levels() for n, a in spec.axes.items()})
        except SpecificationError as error:
            raise ConfigError(f"{source}: {error}") from error

    def path(self, name: str) -> Path:
        """Return a path of the run file as seen from here."""
        return self.folder / name

    @property
    def inputs(self) -> list[Path]:
        """Files that the run reads."""
        import glob

        paths = self.spec.data.path
        data = [str(self.path(p)) for p in (paths if isinstance(paths, list) else [paths])]
        found = [Path(f) for d in data for f in (sorted(glob.glob(d)) if "*" in d else [d])]
        tables = [a.table for a in self.spec.axes.values() if a.table]
        tables += [self.spec.utility.attributes] if self.spec.utility.attributes else []
        return [self.source, *found, *(self.path(t) for t in tables)]

    def panel(self) -> Panel:
        """Read, check and count the panel."""
        d = self.spec.data
        paths = d.path if isinstance(d.path, list) else [d.path]
        return Panel(
            [str(self.path(p)) for p in paths],
            member=d.member,
            time=d.time,
            choice=d.choice,
            states=self.states,
            choices=self.spec.model.choices,
            columns={n: a.column for n, a in self.spec.axes.items() if a.column},
            segment=d.segment,
            region=d.region,
            weights=d.weights,
            decision=d.decision,
            freq=d.freq,
            invalid=d.invalid,
        )

    def any_segment(self) -> Any:
        """Return a segment that the attributes know, to try the model on before reading rows."""
        name = self.spec.utility.attributes
        if name is None or "segment" in self.states.axes:
            return "all"
        table = self.read_csv(name, "utility.attributes")
        known = "segment" in table.columns and len(table)
        return str(table["segment"].iloc[0]) if known else "all"

    def model(self, segment: Any) -> DDC:
        """Build the model of one segment.

        Raises
        ------
        ConfigError
            Whatever is wrong with it, with the run file named.
        """
        try:
            return self._model(segment)
        except SpecificationError as error:
            raise ConfigError(f"{self.source}: {error}") from error

    def _model(self, segment: Any) -> DDC:
        m = self.spec.model
        laws: dict[str | tuple[str, ...], Any] = {
            name: self._law(name, axis) for name, axis in self.spec.axes.items()
        }
        return DDC(
            states=self.states,
            choices=m.choices,
            utility=Utility.from_formula(
                self.spec.utility.formula, self.states, m.choices, self._attributes(segment)
            ),
            transitions=Transitions.factored(self.states, m.choices, laws),
            beta=m.beta,
            available=self._available(),
            attention=m.attention,
            default=m.default,
        )

    def scenarios(self) -> list[Scenario]:
        """Return the scenarios."""
        out = []
        for s in self.spec.scenario:
            change: dict[str, Any] = dict(s.params)
            for name, factor in s.scale.items():
                change[name] = lambda value, factor=factor: value * factor
            out.append(
                Scenario(s.name, params=change or None, offer=s.offer or None, starts=s.starts)
            )
        return out

    def read_csv(self, name: str, key: str) -> pd.DataFrame:
        """Read a CSV that the run file names."""
        import pandas as pd

        try:
            # a level may be called None or NA
            return pd.read_csv(self.path(name), keep_default_na=False, na_values=[""])
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.source}: {key}: cannot read {name!r}: {error}") from error

    def _attributes(self, segment: Any) -> pd.DataFrame | None:
        name = self.spec.utility.attributes
        if name is None:
            return None
        table = self.read_csv(name, "utility.attributes")
        if "segment" in table.columns and "segment" not in self.states.axes:
            own = table[table["segment"].astype(str) == str(segment)]
            if own.empty:
                raise ConfigError(
                    f"{name}: no row for segment {segment!r}."
                    f"{suggest(segment, table['segment'].unique())}"
                )
            table = own.drop(columns="segment").reset_index(drop=True)
        return table

    def _law(self, name: str, axis: Axis) -> Law:
        key = f"axes.{name}"
        if axis.law == "fixed":
            return Fixed()
        if axis.law == "cycle":
            return Cycle()
        if axis.law == "increment":
            if axis.max_step is None:
                raise ConfigError(f"{self.source}: {key}: law 'increment' needs max_step")
            return Increment(axis.max_step, axis.reset_on, axis.probabilities)
        if axis.law == "markov":
            return Markov(tuple(axis.given), axis.probabilities)
        if axis.table is None:
            raise ConfigError(f"{self.source}: {key}: law 'deterministic' needs table, a CSV")
        table = self.read_csv(axis.table, key)
        columns = [*axis.given, name, "next"]
        missing = [c for c in columns if c not in table.columns]
        if missing:
            raise ConfigError(
                f"{axis.table}: column {missing[0]!r} is missing; it needs {', '.join(columns)}"
            )
        rows = table[columns].itertuples(index=False, name=None)
        moves = {tuple(_plain(v) for v in row[:-1]): _plain(row[-1]) for row in rows}
        return Deterministic(moves, tuple(axis.given))

    def _available(self) -> Any:
        choices = self.spec.model.choices
        mask = np.ones((self.states.size, len(choices)), dtype=bool)
        for i, rule in enumerate(self.spec.model.unavailable):
            at = np.ones(self.states.size, dtype=bool)
            for axis, levels in rule.where.items():
                listed = levels if isinstance(levels, list) else [levels]
                codes = [self.states.level_code(axis, level) for level in listed]
                at &= np.isin(self.states.axis_codes(axis), codes)
            for choice in rule.choices:
                if choice not in choices:
                    raise ConfigError(
                        f"{self.source}: model.unavailable.{i}: {choice!r} is no choice."
                        f"{suggest(choice, choices)}"
                    )
                mask[at, choices.index(choice)] = False
        return mask


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
