"""What a run file describes, built: the panel, the model of a segment, the scenarios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import ConfigError, DataError, SpecificationError, suggest
from dynchoice.membership.file import PARTS
from dynchoice.membership.file import build as build_part
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import Cycle, Deterministic, Fixed, Increment, Law, Markov
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.names import ALL
from dynchoice.panel.panel import Panel
from dynchoice.run.inputs import Inputs
from dynchoice.run.schema import DATES, HISTORY, PANEL, Axis, Factor, ScenarioPart
from dynchoice.run.source import Rows, as_table, check_columns, opened, used_columns
from dynchoice.typing import BoolArray, Level

if TYPE_CHECKING:
    import pandas as pd

SEGMENT = "segment"
"""Column of the attributes that says whose a row is, unless an axis is called so."""


def panel(run: Inputs, **options: Any) -> Panel:
    """Read, check and count the panel.

    Raises
    ------
    DataError, SourceError
        Rows that are refused; a source that cannot be read or was lost.
    """
    with opened(run) as data:
        counted = read(run, data, **options)
        counted.counts  # noqa: B018  counted while the source is open
        return counted


def read(run: Inputs, data: Rows, **options: Any) -> Panel:
    """Return the panel of rows that are open already."""
    spec = run.spec.data
    check_columns(as_table(data), used_columns(run))
    common = {k: getattr(spec, k) for k in PANEL if k != "choice"} | options
    if run.spec.axes is not None:
        columns = {n: a.column for n, a in run.spec.axes.items() if a.column}
        panel_of_rows = Panel(
            data,
            choice=spec.choice,
            states=run.states,
            choices=run.choices,
            columns=columns,
            **common,
        )
    else:
        history = {k: getattr(spec, k) for k in HISTORY}
        if spec.offers is not None:
            history["offers"] = read_csv(run, spec.offers, "data.offers").copy()
        # what is empty is not said: a programme then has columns of its own names
        history |= {k: history[k] or None for k in ("engagement", "columns")}
        panel_of_rows = run.membership.panel(data, plan=spec.choice, **history, **common)
    labels = panel_of_rows.segments
    if "" in labels:
        raise DataError(f"column {spec.segment!r} has rows with an empty name of a segment")
    if len(labels) > 1 and ALL in labels:
        raise DataError(f"a segment may not be called {ALL!r}: it stands for all together")
    return panel_of_rows


def any_segment(run: Inputs) -> str:
    """Return a segment that the run file knows, to try the model on before reading rows."""
    if run.spec.membership is not None:
        return next(iter(run.membership.segments), ALL)
    table = attribute_table(run)
    if table is None or SEGMENT not in table.columns or SEGMENT in run.states.axes:
        return ALL
    return str(table[SEGMENT].iloc[0]) if len(table) else ALL


def label_of_model(run: Inputs, segment: Level) -> str:
    """Return what tells a segment's model from others: its name, or nothing if all share one."""
    if run.spec.membership is not None:
        return str(segment) if str(segment) in run.membership.segments else ""
    table = attribute_table(run)
    alike = table is None or SEGMENT not in table.columns or SEGMENT in run.states.axes
    return "" if alike else str(segment)


def model(run: Inputs, segment: Level) -> DDC:
    """Return the model of one segment.

    Raises
    ------
    ConfigError
        Whatever is wrong with it, with the run file named.
    """
    try:
        if run.spec.membership is not None:
            club, name = run.membership, label_of_model(run, segment)
            return (club.segment(name) if name else club).model()
        return model_of_axes(run, segment)
    except SpecificationError as error:
        raise ConfigError(f"{run.source}: {error}") from error


def model_of_axes(run: Inputs, segment: Level) -> DDC:
    """Return the model of one segment that axes, model and utility describe."""
    spec, utility, axes = run.spec.model, run.spec.utility, run.spec.axes
    assert spec is not None and utility is not None and axes is not None
    laws: dict[str | tuple[str, ...], Law] = {
        name: law_of(run, name, axis) for name, axis in axes.items()
    }
    return DDC(
        states=run.states,
        choices=spec.choices,
        utility=Utility.from_formula(
            utility.formula, run.states, spec.choices, attributes_of(run, segment)
        ),
        transitions=Transitions.factored(run.states, spec.choices, laws),
        beta=spec.beta,
        available=offered(run),
        attention=spec.attention,
        default=spec.default,
    )


def read_csv(run: Inputs, name: str, key: str, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV that the run file names; columns of ``texts`` are not read as numbers."""
    try:
        return run.reader.csv(run.path(name), texts)
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{run.source}: {key}: cannot read {name!r}: {text}") from error


def attribute_table(run: Inputs) -> pd.DataFrame | None:
    """Return the attributes of all segments, None where the run file names none.

    Segments of the data are compared as texts ("01" is not "1"), levels of an axis as they are.
    """
    name = run.spec.utility.attributes if run.spec.utility else None
    if name is None:
        return None
    texts = () if SEGMENT in run.states.axes else (SEGMENT,)
    return read_csv(run, name, "utility.attributes", texts)


def attributes_of(run: Inputs, segment: Level) -> pd.DataFrame | None:
    """Return the rows of the attributes that are a segment's own."""
    table = attribute_table(run)
    if table is None:
        return None
    assert run.spec.utility is not None and run.spec.utility.attributes is not None
    name = run.spec.utility.attributes
    refuse_half_numbers(run, name, table)
    if SEGMENT in table.columns and SEGMENT not in run.states.axes:
        rows = table[table[SEGMENT] == str(segment)]
        if rows.empty:
            raise ConfigError(
                f"{name}: no row for segment {segment!r}."
                f"{suggest(segment, table[SEGMENT].unique())}"
            )
        table = rows.drop(columns=SEGMENT).reset_index(drop=True)
    return table


def refuse_half_numbers(run: Inputs, name: str, table: pd.DataFrame) -> None:
    """Raise for a column of numbers with a text among them: it would be read as categories."""
    import pandas as pd

    labels = (*run.states.axes, "choice", SEGMENT)
    for column in [c for c in table.columns if c not in labels]:
        if pd.api.types.is_numeric_dtype(table[column]):
            continue
        number = pd.to_numeric(table[column], errors="coerce")
        odd = number.isna() & table[column].notna()
        if number.notna().any() and odd.any():
            row = int(odd.to_numpy().argmax())
            raise ConfigError(
                f"{name}: column {column!r} holds numbers and {int(odd.sum())} text(s), first"
                f" {table[column].iloc[row]!r} in line {row + 2}"
            )


def law_of(run: Inputs, name: str, axis: Axis) -> Law:
    """Return the law of motion of one axis."""
    parents = ["choice", *run.states.axes]
    checks.known(axis.given, parents, f"{run.source}: axes.{name}.given:", error=ConfigError)
    if axis.law == "fixed":
        return Fixed()
    if axis.law == "cycle":
        return Cycle()
    if axis.law == "increment":
        assert axis.max_step is not None
        return Increment(axis.max_step, axis.reset_on, axis.probabilities)
    if axis.law == "markov":
        return Markov(tuple(axis.given), axis.probabilities)
    return Deterministic(next_levels(run, name, axis), tuple(axis.given))


def next_levels(run: Inputs, name: str, axis: Axis) -> dict[tuple[Level, ...], Level]:
    """Return what follows each combination of parents and own level, from the axis's CSV."""
    assert axis.table is not None
    table = read_csv(run, axis.table, f"axes.{name}")
    columns = [*axis.given, name, "next"]
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise ConfigError(
            f"{axis.table}: column {missing[0]!r} is missing; it needs {', '.join(columns)}"
        )
    moves = table[columns]
    empty = moves.isna().any(axis=1)
    if empty.any():
        row = int(empty.to_numpy().argmax())
        raise ConfigError(f"{axis.table}: line {row + 2} misses a value")
    distinct = moves.drop_duplicates()
    doubled = distinct.duplicated(columns[:-1])
    if doubled.any():
        first = distinct[doubled].iloc[0].to_dict()
        raise ConfigError(f"{axis.table}: two lines say what follows {first}")
    rows = moves.itertuples(index=False, name=None)
    return {tuple(plain(v) for v in row[:-1]): plain(row[-1]) for row in rows}


def offered(run: Inputs) -> BoolArray:
    """Return which choices each state offers (S, J)."""
    states = run.states
    assert run.spec.model is not None
    choices = run.spec.model.choices
    mask = np.ones((states.size, len(choices)), dtype=bool)
    for i, rule in enumerate(run.spec.model.unavailable):
        inside = np.ones(states.size, dtype=bool)
        for axis, levels in rule.where.items():
            listed = levels if isinstance(levels, list) else [levels]
            codes = [states.level_code(axis, level) for level in listed]
            inside &= np.isin(states.axis_codes(axis), codes)
        where = f"{run.source}: model.unavailable[{i}]: choice"
        checks.known(rule.choices, choices, where, error=ConfigError)
        for choice in rule.choices:
            mask[inside, choices.index(choice)] = False
    return mask


def plain(value: Any) -> Any:
    """Return a numpy scalar as a Python value."""
    return value.item() if isinstance(value, np.generic) else value


# scenarios ------------------------------------------------------------------------------------


def scenarios(
    run: Inputs, first: int | None = None, kind: str = "month"
) -> tuple[list[Scenario], list[str]]:
    """Return the scenarios, and what was left out because its time has passed.

    ``first`` is the number of the forecast's first period. A scenario that starts before it holds
    from the first period on; one that ended before it is left out.

    Raises
    ------
    ConfigError
        A scenario that cannot be; dates, where ``first`` is not known.
    """
    coming, past = [], []
    for i, section in enumerate(run.spec.scenario):
        try:
            built = scenario(section, lambda when: number_of(when, first, kind))
        except SpecificationError as error:
            raise ConfigError(f"{run.source}: scenario[{i}]: {error}") from error
        if built is None:
            name, ends = section.name, section.ends
            past.append(f"scenario {name!r} ended in {ends}, before the forecast: left out")
        else:
            coming.append(built)
    return coming, past


def number_of(when: int | str, first: int | None, kind: str) -> int | None:
    """Return the period of a forecast (1 is the first) of a number or label, None if not known."""
    if isinstance(when, int):
        return when
    if first is None:
        return None  # the scenario is tried before a row is read
    year, rest = when.split("-")
    quarter = rest.startswith("Q")
    if kind not in ("month", "quarter") or quarter != (kind == "quarter"):
        raise SpecificationError(f"{when!r} is no period of this panel, whose periods are {kind}s")
    number = int(year) * (4 if quarter else 12) + int(rest.lstrip("Q")) - 1
    return number - first + 1


def scenario(section: ScenarioPart, number: Callable[[int | str], int | None]) -> Scenario | None:
    """Return one scenario, or None where it has ended already.

    Keys go to :class:`dynchoice.Scenario` as they are, but those that a file says in its own way.
    """
    ends = None if section.ends is None else number(section.ends)
    if ends is not None and ends <= 1 and isinstance(section.ends, str):
        return None
    keys: dict[str, Any] = {
        key: getattr(section, key)
        for key, field in type(section).model_fields.items()
        if getattr(section, key) != field.default
    }
    # a date that is not known yet is left out, and one before the forecast is its first period
    for key in DATES:
        period = None if keys.get(key) is None else number(keys[key])
        keys[key] = period if period is None or key == "ends" else max(period, 1)
    if keys.get("ramp"):
        periods = {k: number(v) for k, v in keys["ramp"].items()}
        keys["ramp"] = {k: 1 if v is None else max(v, 1) for k, v in periods.items()}
    scaled = {name: Scaled(factor) for name, factor in keys.pop("scale", {}).items()}
    keys["params"] = {**keys.get("params", {}), **scaled}
    keys["prices"] = {
        k: Changed(v) if isinstance(v, Factor) else v for k, v in keys.get("prices", {}).items()
    }
    for key, kind in PARTS.items():
        rows = keys.get(key, [])
        keys[key] = [build_part(kind, row, f"{key}[{i}]") for i, row in enumerate(rows)]
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in keys.items()
        if value not in (None, {}, [])
    }
    return Scenario(**values)


class Scaled:
    """A parameter by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, value: float) -> float:
        """Return the value under the scenario."""
        return value * self.factor


class Changed:
    """A price by a factor and an amount."""

    def __init__(self, change: Factor) -> None:
        self.change = change

    def __call__(self, value: float) -> float:
        """Return the price under the scenario."""
        return value * self.change.times + self.change.plus


def check_model(run: Inputs) -> DDC:
    """Raise for mistakes of model and scenarios before a single row is read; return the model.

    It is the model of :func:`any_segment`.
    """
    from dynchoice.counterfactuals.forecast import list_scenarios

    if run.spec.data.offers is not None:
        read_csv(run, run.spec.data.offers, "data.offers")
    whole = model(run, any_segment(run))
    if not whole.names:
        raise ConfigError(
            f"{run.source}: utility.formula: no term, so there is nothing to estimate"
        )
    try:
        listed = list_scenarios(scenarios(run)[0], run.spec.forecast.periods)
        # only these look at laws' probabilities, which are not estimated yet
        needs_laws = any(s.of_programme or s.lift for s in listed)
        trial = with_any_laws(whole) if needs_laws else whole
        for change in listed:
            change.theta(trial, np.zeros(len(trial.names)))
            change.applied(trial)
    except SpecificationError as error:
        raise ConfigError(f"{run.source}: {error}") from error
    return whole


def with_any_laws(model: DDC) -> DDC:
    """Return a model whose laws have probabilities, any, where they are to be estimated.

    Scenarios can be tried on it before a row has been read.
    """
    laws = model.transitions
    if not isinstance(laws, Factored):
        return model
    bound = tuple(
        replace(b, table=b.fill(np.full(b.rows, 1 / b.rows[1])))
        if b.table is None and b.following is None
        else b
        for b in laws.bound
    )
    whole = Factored(laws.states, laws.choices, laws.laws, bound)
    return model.with_parts(transitions=whole)
