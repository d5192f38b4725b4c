"""The run file: TOML, checked by pydantic, every error at once with the nearest valid name."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dynchoice.errors import ConfigError, suggest
from dynchoice.names import BASELINE
from dynchoice.run.inputs import Inputs
from dynchoice.run.schema import HISTORY, RunFile
from dynchoice.typing import Level

if TYPE_CHECKING:
    from dynchoice.counterfactuals.scenario import Scenario
    from dynchoice.model.ddc import DDC
    from dynchoice.panel.panel import Panel

SHOWN, LONGEST = 20, 250
"""Mistakes shown at most, and letters of each, so that the list stays on one screen."""
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
        problems = check_together(raw)
        try:
            spec = RunFile.model_validate(raw)
        except ValidationError as error:
            problems = [*explain(error, raw), *problems]
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    if problems:
        more = len(problems) - SHOWN
        lines = [x if len(x) <= LONGEST else f"{x[:LONGEST]}..." for x in problems[:SHOWN]]
        lines += [f"- and {more} more"] if more > 0 else []
        raise ConfigError(f"{source}:\n" + "\n".join(lines)) from None
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


def changed(raw: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return the content of a run file with one dotted key set; numbers count list items from 0."""
    out = copy.deepcopy(raw)
    node: Any = out
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(node, list):
            node = node[_position(node, name, key)]
        else:
            node = node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {key}: {name!r} is no table of the run file")
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        node[last] = value
    return out


def _position(items: list[Any], name: str, key: str) -> int:
    """Return the position in a list that a part of a dotted key says."""
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(f"--set {key}: {name!r} is no number from 0 to {len(items) - 1}")
    return int(name)


def check_together(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between the keys of a run file, one line a mistake.

    It is said beside what is wrong with each key, so the file is looked at before it is known to
    have the right types.
    """
    data, member = raw.get("data"), "membership" in raw
    lines = []
    if isinstance(data, Mapping):
        lines += check_source(data)
        lines += (
            [] if member else [f"- data.{k}: only with membership" for k in HISTORY if k in data]
        )
    parts = ("axes", "model", "utility")
    if member:
        text = "not with membership, which describes the model"
        lines += [f"- {k}: {text}" for k in parts if k in raw]
    else:
        text = "is missing (describe the model by axes, model and utility, or by membership)"
        lines += [f"- {k}: {text}" for k in parts if k not in raw]
    axes, model, estimate = (mapping(raw.get(k)) for k in ("axes", "model", "estimate"))
    for name, axis in axes.items():
        lines += [f"- axes.{name}: {text}" for text in check_axis(mapping(axis))]
    if "default" in model and "attention" not in model:
        lines.append("- model.default: goes with attention, the probability of an active choice")
    if estimate.get("transitions") == "joint" and estimate.get("method", "NFXP") != "NFXP":
        lines.append("- estimate.transitions: 'joint' goes with method = 'NFXP'")
    scenarios = raw.get("scenario")
    listed = [mapping(s) for s in scenarios] if isinstance(scenarios, list) else []
    if "region" not in mapping(data):
        needs = "needs data.region, the column of regions"
        lines += [f"- scenario[{i}].ramp: {needs}" for i, s in enumerate(listed) if s.get("ramp")]
        lines += [f"- estimate.cluster: {needs}"] if estimate.get("cluster") == "region" else []
    return lines + check_scenarios(listed)


def mapping(value: object) -> Mapping[str, Any]:
    """Return a table of a run file, an empty one where it is something else."""
    return value if isinstance(value, Mapping) else {}


def check_source(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with where the rows are said to be."""
    places = [k for k in ("path", "duckdb", "connection") if k in data]
    if not places:
        return [
            "- data.path: is missing (Parquet or CSV; or say duckdb, a DuckDB file, or connection,"
            " a database)"
        ]
    if len(places) > 1:
        return [f"- data: give one of {' and '.join(places)}, not both"]
    if places != ["path"] and "table" not in data:
        return [f"- data.table: is missing: {places[0]} needs the name of the table to read"]
    if places == ["path"] and ("table" in data or "schema" in data):
        return ["- data: table and schema go with duckdb or connection, not with path"]
    return check_columns_differ(data)


def check_columns_differ(data: Mapping[str, Any]) -> list[str]:
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


def check_axis(axis: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between the keys of one axis."""
    lines = [] if ("levels" in axis) != ("range" in axis) else ["give either levels or range"]
    law, levels = axis.get("law"), axis.get("levels")
    if isinstance(levels, list):
        kinds = {isinstance(x, str) for x in levels if isinstance(x, str | int | float)}
        lines += ["levels mix texts and numbers: make them one or the other"] * (len(kinds) > 1)
    law = law if isinstance(law, str) else ""
    needed = {"increment": ("max_step", "max_step"), "deterministic": ("table", "table, a CSV")}
    if law in needed and needed[law][0] not in axis:
        lines.append(f"law {law!r} needs {needed[law][1]}")
    if law in LAWS:
        foreign = [k for keys in LAWS.values() for k in keys if k in axis and k not in LAWS[law]]
        lines += [f"{k} does not go with law {law!r}" for k in dict.fromkeys(foreign)]
    return lines


def check_scenarios(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return names that repeat, and parameters that are changed twice."""
    names = [str(s.get("name")) for s in listed if "name" in s]
    twice = [n for n in sorted(set(names)) if names.count(n) > 1]
    lines = [f"- scenario: the name {n!r} repeats" for n in twice]
    if BASELINE in names:
        lines.append(f"- scenario: {BASELINE!r} is the forecast without changes: rename it")
    for i, s in enumerate(listed):
        both = set(mapping(s.get("params"))) & set(mapping(s.get("scale")))
        lines += [f"- scenario[{i}]: {n!r} stands in params and in scale" for n in sorted(both)]
    return lines


def explain(
    error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel] = RunFile
) -> list[str]:
    """Return one line a wrong key: its path, what is wrong, and the nearest valid name."""
    texts: dict[str, list[str]] = {}
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
            text += f", not {cut(repr(item['input']))}.{suggest(item['input'], allowed)}"
        elif item["type"] == "string_pattern_mismatch":
            text = f"{cut(repr(item['input']))} is not of the form {item['ctx']['pattern']}"
        elif not isinstance(item["input"], Mapping) and not secret:
            text += f", got {cut(repr(item['input']))}"
        parts = [f"[{p}]" if isinstance(p, int) else f".{cut(p)}" for p in where]
        name = "".join(parts).lstrip(".") or "run file"
        # the branches of a union each say what is wrong, some of them the same
        if text not in texts.setdefault(name, []):
            texts[name].append(text)
    return [f"- {name}: {' / '.join(lines)}" for name, lines in texts.items()]


def cut(text: str) -> str:
    """Return a text, cut where it is long."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def path_in(loc: tuple[int | str, ...], raw: object, kind: str) -> list[int | str]:
    """Return a pydantic location without the names of unions' branches."""
    node: Any = raw
    path: list[int | str] = []
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        inside = isinstance(node, Mapping) and part in node
        inside |= isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside:
            path.append(part)
            node = node[part]
        elif last and kind == "missing" and isinstance(node, Mapping):
            path.append(part)
    return path


def known_keys(where: list[int | str], root: type[BaseModel] = RunFile) -> list[str]:
    """Return the valid keys of the table at a path."""
    table: object = root
    for part in where:
        table = step_into(table, part)
        if table is None:
            return []
    if not (isinstance(table, type) and issubclass(table, BaseModel)):
        return []
    return [f.alias or n for n, f in table.model_fields.items()]


def step_into(table: object, part: int | str) -> object:
    """Return the type that one step of a path leads to, the first section among alternatives."""
    if isinstance(table, type) and issubclass(table, BaseModel):
        field = table.model_fields.get(str(part))
        return None if field is None else section_in(field.annotation)
    if get_origin(table) in (list, dict):
        return section_in(get_args(table)[-1])
    return None


def section_in(annotation: object) -> object:
    """Return the section (or list or dict of them) within an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return section_in(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inside = [section_in(a) for a in get_args(annotation)]
        return next((a for a in inside if a is not None), None)
    if origin in (list, dict):
        return annotation
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


class Run(Inputs):
    """A checked run file and what it builds: panel, model by segment, scenarios.

    What builds it is imported when it is asked for: a run with nothing to do needs none of it.
    """

    def panel(self, **options: Any) -> Panel:
        """Read, check and count the panel; options such as ``progress`` are :class:`Panel`'s."""
        from dynchoice.run import build

        return build.panel(self, **options)

    def model(self, segment: Level) -> DDC:
        """Build the model of one segment: see :func:`dynchoice.run.build.model`."""
        from dynchoice.run import build

        return build.model(self, segment)

    def scenarios(self, first: int | None = None, kind: str = "month") -> list[Scenario]:
        """Return the scenarios that are not past: see :func:`dynchoice.run.build.scenarios`."""
        from dynchoice.run import build

        return build.scenarios(self, first, kind)[0]
