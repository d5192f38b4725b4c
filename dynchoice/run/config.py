"""The run file: TOML, checked by pydantic, every error at once with the nearest valid name."""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dynchoice.errors import ConfigError, SpecificationError, suggest
from dynchoice.names import BASELINE
from dynchoice.panel.states import StateSpace
from dynchoice.run.schema import HISTORY, RunFile

if TYPE_CHECKING:
    from dynchoice.counterfactuals.scenario import Scenario
    from dynchoice.membership.membership import Membership
    from dynchoice.model.ddc import DDC
    from dynchoice.panel.panel import Panel

SHOWN, LONGEST = 20, 250
"""Mistakes shown at most, and letters of each, so that the list stays on one screen."""
MOST_STATES = 50_000_000
LARGEST = 5_000_000
"""Bytes of the largest run file read."""


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
        raw = read_toml(source)
        for key, value in (changes or {}).items():
            raw = changed(raw, key, value)
        problems = of_the_whole(raw)
        try:
            spec = RunFile.model_validate(raw)
        except ValidationError as error:
            problems = [*explain(error, raw), *problems]
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    if problems:
        more = len(problems) - SHOWN
        told = [x if len(x) <= LONGEST else f"{x[:LONGEST]}..." for x in problems[:SHOWN]]
        tail = [f"- and {more} more"] if more > 0 else []
        raise ConfigError(f"{source}:\n" + "\n".join([*told, *tail])) from None
    return Run(spec, source.resolve().parent, source)


def read_toml(source: Path) -> dict[str, Any]:
    """Read a TOML file, or say what is wrong with it."""
    try:
        if source.is_dir():
            raise ConfigError(f"{source} is a folder; name the run file in it")
        if source.stat().st_size > LARGEST:
            raise ConfigError(f"{source} is larger than {LARGEST:,} bytes: is it a run file?")
        return tomllib.loads(source.read_text(encoding="utf-8-sig"))
    except ConfigError:
        raise
    except FileNotFoundError:
        near = (
            sorted(p.name for p in source.parent.glob("*.toml")) if source.parent.is_dir() else ()
        )
        raise ConfigError(f"no such run file: {source}.{suggest(source.name, near)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    except (RecursionError, ValueError) as error:  # tomllib on absurd nesting and numbers
        raise ConfigError(f"{source} is not valid TOML: {error}") from error


def changed(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the content of a run file with one dotted key set; numbers count list items from 0."""
    out = copy.deepcopy(raw)
    node: Any = out
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(node, list):
            node = node[_place(node, name, key)]
        else:
            node = node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {key}: {name!r} is no table of the run file")
    if isinstance(node, list):
        node[_place(node, last, key)] = value
    else:
        node[last] = value
    return out


def _place(node: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"--set {key}: {name!r} is no number from 0 to {len(node) - 1}")
    return int(name)


def of_the_whole(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between keys of a run file: said beside what is wrong with each."""
    data, member = raw.get("data"), "membership" in raw
    out = []
    if isinstance(data, Mapping):
        out += one_source(data)
        out += [] if member else [f"- data.{k}: only with membership" for k in HISTORY if k in data]
    parts = ("axes", "model", "utility")
    if member:
        text = "not with membership, which describes the model"
        out += [f"- {k}: {text}" for k in parts if k in raw]
    else:
        text = "is missing (describe the model by axes, model and utility, or by membership)"
        out += [f"- {k}: {text}" for k in parts if k not in raw]
    axes, model, estimate = (mapping(raw.get(k)) for k in ("axes", "model", "estimate"))
    for name, axis in axes.items():
        out += [f"- axes.{name}: {text}" for text in of_an_axis(mapping(axis))]
    if "default" in model and "attention" not in model:
        out.append("- model.default: goes with attention, the probability of an active choice")
    if estimate.get("transitions") == "joint" and estimate.get("method", "NFXP") != "NFXP":
        out.append("- estimate.transitions: 'joint' goes with method = 'NFXP'")
    scenarios = raw.get("scenario")
    listed = [mapping(s) for s in scenarios] if isinstance(scenarios, list) else []
    if "region" not in mapping(data):
        needs = "needs data.region, the column of regions"
        out += [f"- scenario[{i}].ramp: {needs}" for i, s in enumerate(listed) if s.get("ramp")]
        out += [f"- estimate.cluster: {needs}"] if estimate.get("cluster") == "region" else []
    return out + of_scenarios(listed)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a table of a run file, an empty one where it is something else."""
    return value if isinstance(value, Mapping) else {}


def one_source(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with where the rows are said to be."""
    given = [k for k in ("path", "duckdb", "connection") if k in data]
    if not given:
        return [
            "- data.path: is missing (Parquet or CSV; or say duckdb, a DuckDB file, or connection,"
            " a database)"
        ]
    if len(given) > 1:
        return [f"- data: give one of {' and '.join(given)}, not both"]
    if given != ["path"] and "table" not in data:
        return [f"- data.table: is missing: {given[0]} needs the name of the table to read"]
    if given == ["path"] and ("table" in data or "schema" in data):
        return ["- data: table and schema go with duckdb or connection, not with path"]
    return twice_named(data)


def twice_named(data: Mapping[str, Any]) -> list[str]:
    """Return columns that are said to be two things at once."""
    roles = ("member", "time", "choice", "weights", "decision")
    named = [(k, data[k]) for k in roles if isinstance(data.get(k), str)]
    return [
        f"- data.{b}: {column!r} is data.{a} already"
        for i, (a, column) in enumerate(named)
        for b, other in named[i + 1 :]
        if other == column
    ]


LAWS: dict[str, tuple[str, ...]] = {
    "fixed": (),
    "cycle": (),
    "deterministic": ("given", "table"),
    "markov": ("given", "probabilities"),
    "increment": ("max_step", "reset_on", "probabilities"),
}
"""Keys of an axis that each law has."""


def of_an_axis(axis: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between the keys of one axis."""
    out = [] if ("levels" in axis) != ("range" in axis) else ["give either levels or range"]
    law, levels = axis.get("law"), axis.get("levels")
    if isinstance(levels, list):
        kinds = {isinstance(x, str) for x in levels if isinstance(x, str | int | float)}
        out += ["levels mix texts and numbers: make them one or the other"] * (len(kinds) > 1)
    law = law if isinstance(law, str) else ""
    needed = {"increment": ("max_step", "max_step"), "deterministic": ("table", "table, a CSV")}
    if law in needed and needed[law][0] not in axis:
        out.append(f"law {law!r} needs {needed[law][1]}")
    if law in LAWS:
        own = [k for keys in LAWS.values() for k in keys if k in axis and k not in LAWS[law]]
        out += [f"{k} does not go with law {law!r}" for k in dict.fromkeys(own)]
    return out


def of_scenarios(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return names that repeat, and parameters that are changed twice."""
    names = [str(s.get("name")) for s in listed if "name" in s]
    out = [f"- scenario: the name {n!r} repeats" for n in sorted(set(names)) if names.count(n) > 1]
    if BASELINE in names:
        out.append(f"- scenario: {BASELINE!r} is the forecast without changes: rename it")
    for i, s in enumerate(listed):
        twice = set(mapping(s.get("params"))) & set(mapping(s.get("scale")))
        out += [f"- scenario[{i}]: {n!r} stands in params and in scale" for n in sorted(twice)]
    return out


def explain(
    error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel] = RunFile
) -> list[str]:
    """Return one line a wrong key: its path, what is wrong, and the nearest valid name."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        where = path_in(item["loc"], raw, item["type"])
        secret = "connection" in where  # a password may stand there, wrongly: never shown
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown key." + suggest(where[-1], known_keys(where[:-1], root))
        elif item["type"] == "missing":
            text = "is missing"
        elif item["type"] in ("literal_error", "enum"):
            allowed = re.findall(r"'([^']+)'", str(item.get("ctx", {}).get("expected", "")))
            text += f", not {short(item['input'])}.{suggest(item['input'], allowed)}"
        elif item["type"] == "string_pattern_mismatch":
            text = f"{short(item['input'])} is not of the form {item['ctx']['pattern']}"
        elif not isinstance(item["input"], Mapping) and "loc" in item and not secret:
            text += f", got {short(item['input'])}"
        parts = [f"[{p}]" if isinstance(p, int) else f".{cut(p)}" for p in where]
        name = "".join(parts).lstrip(".")
        told = found.setdefault(name or "run file", [])
        if text not in told:
            told.append(text)
    return [f"- {name}: {' / '.join(texts)}" for name, texts in found.items()]


def short(value: Any) -> str:
    """Return a value as it was typed, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cut(text: str) -> str:
    """Return a key, cut where it is long."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def path_in(loc: tuple[int | str, ...], raw: Any, kind: str) -> list[int | str]:
    """Return a pydantic location without the names of unions' branches."""
    node, out = raw, list[int | str]()
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        inside = isinstance(node, Mapping) and part in node
        inside |= isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside:
            out.append(part)
            node = node[part]
        elif last and kind == "missing" and isinstance(node, Mapping):
            out.append(part)
    return out


def known_keys(where: list[int | str], root: type[BaseModel] = RunFile) -> list[str]:
    """Return the valid keys of the table at a path."""
    table: Any = root
    for part in where:
        table = step_into(table, part)
        if table is None:
            return []
    if not (isinstance(table, type) and issubclass(table, BaseModel)):
        return []
    return [f.alias or n for n, f in table.model_fields.items()]


def step_into(table: Any, part: int | str) -> Any:
    """Return the type that one step of a path leads to, the first section among alternatives."""
    if isinstance(table, type) and issubclass(table, BaseModel):
        field = table.model_fields.get(str(part))
        return None if field is None else section_in(field.annotation)
    origin, args = get_origin(table), get_args(table)
    if origin in (list, dict):
        return section_in(args[-1])
    return None


def section_in(annotation: Any) -> Any:
    """Return the section (or list or dict of them) within an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return section_in(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inner = [section_in(a) for a in get_args(annotation)]
        good = [a for a in inner if a is not None]
        return good[0] if good else None
    if origin in (list, dict):
        return annotation
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


class Run:
    """A checked run file and what it builds: panel, model by segment, scenarios.

    What it builds is imported when it is asked for: a run with nothing to do needs none of it.
    """

    def __init__(self, spec: RunFile, folder: Path, source: Path) -> None:
        self.spec, self.folder, self.source = spec, folder, source
        if spec.axes is not None:
            size = math.prod(a.size for a in spec.axes.values())
            if size > MOST_STATES:
                raise ConfigError(
                    f"{source}: axes: {size:,} states; more than {MOST_STATES:,} are not supported:"
                    " leave out axes, or join levels"
                )
            try:
                self.states = StateSpace.from_axes(
                    {n: a.all_levels() for n, a in spec.axes.items()}
                )
            except SpecificationError as error:
                raise ConfigError(f"{source}: {error}") from error

    def __getattr__(self, name: str) -> Any:
        # only a membership's states are not there from the start: they need the whole programme
        if name == "states":
            self.states = self.membership.states
            return self.states
        raise AttributeError(name)

    def path(self, name: str) -> Path:
        """Return a path of the run file as seen from here."""
        return self.folder / name

    @property
    def out(self) -> Path:
        """Folder of the outputs."""
        return self.path(self.spec.output.folder)

    @property
    def tables(self) -> list[Path]:
        """Files beside the panel that the run file names."""
        spec = self.spec
        names = [a.table for a in (spec.axes or {}).values() if a.table]
        names += [spec.utility.attributes] if spec.utility and spec.utility.attributes else []
        names += [spec.data.offers] if spec.data.offers else []
        file = (spec.membership or {}).get("file")
        names += [file] if isinstance(file, str) else []
        return [self.path(n) for n in dict.fromkeys(names)]

    @property
    def data_files(self) -> list[Path]:
        """Files that hold the panel (none: a database does)."""
        from dynchoice.run.source import files_of

        return files_of(self)

    @property
    def inputs(self) -> list[Path]:
        """Files that the run reads."""
        return [self.source, *self.data_files, *self.tables]

    @cached_property
    def membership(self) -> Membership:
        """The programme that the run file describes or names.

        Raises
        ------
        ConfigError
            Whatever does not fit.
        """
        from dynchoice.run.build import membership

        return membership(self)

    @property
    def choices(self) -> tuple[Any, ...]:
        """Labels of the choices."""
        if self.spec.model is not None:
            return tuple(self.spec.model.choices)
        return self.membership.choices

    def panel(self, **options: Any) -> Panel:
        """Read, check and count the panel; ``progress`` and other options as :class:`Panel`'s."""
        from dynchoice.run.build import panel

        return panel(self, **options)

    def model(self, segment: Any) -> DDC:
        """Build the model of one segment.

        Raises
        ------
        ConfigError
            Whatever is wrong with it, with the run file named.
        """
        from dynchoice.run.build import model

        try:
            return model(self, segment)
        except SpecificationError as error:
            raise ConfigError(f"{self.source}: {error}") from error

    def scenarios(self, first: int | None = None, kind: str = "month") -> list[Scenario]:
        """Return the scenarios; ``first`` is the number of the forecast's first period.

        Raises
        ------
        ConfigError
            A scenario that cannot be; dates, where ``first`` is not known.
        """
        from dynchoice.run.build import scenarios

        return scenarios(self, first, kind)[0]
