"""What a run file describes, built: the panel, the model of a segment, the scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.counterfactuals.scenario import Scenario
from dynchoice.errors import ConfigError, DataError, SpecificationError, first_few, suggest
from dynchoice.membership.file import build as build_part
from dynchoice.membership.file import from_plain, read_toml
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import BUNDLE, MENU, VINTAGE
from dynchoice.membership.plans import Benefit, Plan
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import Cycle, Deterministic, Fixed, Increment, Law, Markov
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.names import ALL
from dynchoice.panel.panel import Panel
from dynchoice.panel.source import read_files
from dynchoice.run.schema import Axis, Factor, ScenarioPart
from dynchoice.run.source import check_columns, opened, used_columns

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.run.config import Run


def membership(run: Run) -> Membership:
    """Return the programme of a run file: its own tables, or the file that it names."""
    tree = dict(run.spec.membership or {})
    try:
        if "file" in tree:
            if len(tree) > 1 or not isinstance(tree["file"], str):
                raise SpecificationError("give either file, a path, or the programme itself")
            club = read_toml(run.path(tree["file"]))
        else:
            club = from_plain(tree)
        refuse_programme(run, club)
        return club
    except RecursionError:
        where = tree.get("file", "membership")
        raise ConfigError(f"{run.source}: {where}: nested too deeply") from None
    except (SpecificationError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{run.source}: membership: {error}") from error


def refuse_programme(run: Run, club: Membership) -> None:
    """Refuse a programme that a run cannot be made of."""
    if club.types:
        raise SpecificationError(
            "types: unobserved types are for calibrated programmes, not for estimates of a run"
        )
    if not club.names:
        raise SpecificationError(
            "fixed: every parameter is held fixed: nothing is left to estimate"
        )
    d = run.spec.data
    if d.none in [p.name for p in club.plans]:
        raise SpecificationError(f"data.none: {d.none!r} is a plan; it is what stands for no plan")
    movable = [x for x in (MENU, BUNDLE, VINTAGE) if x in club.states.axes]
    benefits = [b.name for b in club.benefits]
    for key, given, known in (
        ("columns", d.columns, movable),
        ("engagement", d.engagement, benefits),
    ):
        strange = [k for k in given if k not in known]
        if strange:
            raise SpecificationError(
                f"data.{key}: {strange[0]!r} is none of the programme's."
                f"{suggest(strange[0], known)} Known: {', '.join(known) or 'none'}"
            )


def panel(run: Run, **options: Any) -> Panel:
    """Read, check and count the panel.

    Raises
    ------
    DataError, SourceError
        Rows that are refused; a source that cannot be read or was lost.
    """
    with opened(run) as data:
        made = read(run, data, **options)
        made.counts  # noqa: B018  counted while the source is open
        return made


def read(run: Run, data: Any, **options: Any) -> Panel:
    """Return the panel of rows that are open already."""
    d = run.spec.data
    check_columns(read_files(data)[0] if isinstance(data, list) else data, used_columns(run))
    common = {
        "member": d.member, "time": d.time, "segment": d.segment, "region": d.region,
        "weights": d.weights, "decision": d.decision, "freq": d.freq, "invalid": d.invalid,
        "memory": d.memory, **options,
    }  # fmt: skip
    if run.spec.membership is None:
        assert run.spec.axes is not None
        columns = {n: a.column for n, a in run.spec.axes.items() if a.column}
        made = Panel(
            data, choice=d.choice, states=run.states, choices=run.choices, columns=columns, **common
        )
    else:
        offers = None if d.offers is None else read_csv(run, d.offers, "data.offers")
        made = run.membership.panel(
            data, plan=d.choice, contract=d.contract, engagement=d.engagement or None, lag=d.lag,
            offers=offers, entry=d.entry, none=d.none, broken=d.broken, columns=d.columns or None,
            **common,
        )  # fmt: skip
    labels = made.segments
    if "" in labels:
        raise DataError(f"column {d.segment!r} has rows with an empty name of a segment")
    if len(labels) > 1 and ALL in labels:
        raise DataError(f"a segment may not be called {ALL!r}: it stands for all together")
    return made


def any_segment(run: Run) -> Any:
    """Return a segment that the run file knows, to try the model on before reading rows."""
    if run.spec.membership is not None:
        return next(iter(run.membership.segments), "all")
    name = run.spec.utility.attributes if run.spec.utility else None
    if name is None or "segment" in run.states.axes:
        return "all"
    # segments of the data are compared as texts ("01" is not "1"); levels of an axis as they are
    texts = () if "segment" in run.states.axes else ("segment",)
    table = read_csv(run, name, "utility.attributes", texts)
    known = "segment" in table.columns and len(table)
    return str(table["segment"].iloc[0]) if known else "all"


def model(run: Run, segment: Any) -> DDC:
    """Return the model of one segment."""
    if run.spec.membership is not None:
        club = run.membership
        own = club.segment(str(segment)) if str(segment) in club.segments else club
        return own.model()
    m, u, axes = run.spec.model, run.spec.utility, run.spec.axes
    assert m is not None and u is not None and axes is not None
    laws: dict[str | tuple[str, ...], Any] = {
        name: law_of(run, name, axis) for name, axis in axes.items()
    }
    return DDC(
        states=run.states,
        choices=m.choices,
        utility=Utility.from_formula(
            u.formula, run.states, m.choices, attributes_of(run, u.attributes, segment)
        ),
        transitions=Transitions.factored(run.states, m.choices, laws),
        beta=m.beta,
        available=offered(run),
        attention=m.attention,
        default=m.default,
    )


def read_csv(run: Run, name: str, key: str, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV that the run file names; columns of ``texts`` are not read as numbers."""
    import pandas as pd

    try:
        # a level may be called None or NA
        return pd.read_csv(
            run.path(name), keep_default_na=False, na_values=[""], dtype=dict.fromkeys(texts, str)
        )
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{run.source}: {key}: cannot read {name!r}: {text}") from error


def attributes_of(run: Run, name: str | None, segment: Any) -> pd.DataFrame | None:
    """Return the rows of the attributes that are a segment's own."""
    if name is None:
        return None
    table = read_csv(run, name, "utility.attributes")
    refuse_half_numbers(run, name, table)
    if "segment" in table.columns and "segment" not in run.states.axes:
        own = table[table["segment"].astype(str) == str(segment)]
        if own.empty:
            raise ConfigError(
                f"{name}: no row for segment {segment!r}."
                f"{suggest(segment, table['segment'].unique())}"
            )
        table = own.drop(columns="segment").reset_index(drop=True)
    return table


def refuse_half_numbers(run: Run, name: str, table: pd.DataFrame) -> None:
    """Refuse columns of numbers with a text among them: they would be read as categories."""
    import pandas as pd

    for column in table.columns:
        if pd.api.types.is_numeric_dtype(table[column]) or column in (*run.states.axes, "choice"):
            continue
        if column == "segment":
            continue
        number = pd.to_numeric(table[column], errors="coerce")
        odd = number.isna() & table[column].notna()
        if number.notna().any() and odd.any():
            row = int(odd.to_numpy().argmax())
            raise ConfigError(
                f"{name}: column {column!r} holds numbers and {int(odd.sum())} text(s), first"
                f" {table[column].iloc[row]!r} in line {row + 2}"
            )


def law_of(run: Run, name: str, axis: Axis) -> Law:
    """Return the law of motion of one axis."""
    key = f"axes.{name}"
    known = ["choice", *run.states.axes]
    strange = [g for g in axis.given if g not in known]
    if strange:
        raise ConfigError(
            f"{run.source}: {key}.given: {strange[0]!r} is neither 'choice' nor an axis."
            f"{suggest(strange[0], known)} Axes: {', '.join(run.states.axes)}"
        )
    if axis.law == "fixed":
        return Fixed()
    if axis.law == "cycle":
        return Cycle()
    if axis.law == "increment":
        assert axis.max_step is not None
        return Increment(axis.max_step, axis.reset_on, axis.probabilities)
    if axis.law == "markov":
        return Markov(tuple(axis.given), axis.probabilities)
    assert axis.table is not None
    table = read_csv(run, axis.table, key)
    columns = [*axis.given, name, "next"]
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise ConfigError(
            f"{axis.table}: column {missing[0]!r} is missing; it needs {', '.join(columns)}"
        )
    own = table[columns]
    empty = own.isna().any(axis=1)
    if empty.any():
        row = int(empty.to_numpy().argmax())
        raise ConfigError(f"{axis.table}: line {row + 2} misses a value")
    doubled = own.drop_duplicates().duplicated(columns[:-1])
    if doubled.any():
        first = own.drop_duplicates()[doubled].iloc[0].to_dict()
        raise ConfigError(f"{axis.table}: two lines say what follows {first}")
    rows = own.itertuples(index=False, name=None)
    moves = {tuple(plain(v) for v in row[:-1]): plain(row[-1]) for row in rows}
    return Deterministic(moves, tuple(axis.given))


def offered(run: Run) -> Any:
    """Return which choices each state offers (S, J)."""
    m, states = run.spec.model, run.states
    assert m is not None
    choices = m.choices
    mask = np.ones((states.size, len(choices)), dtype=bool)
    for i, rule in enumerate(m.unavailable):
        at = np.ones(states.size, dtype=bool)
        for axis, levels in rule.where.items():
            listed = levels if isinstance(levels, list) else [levels]
            codes = [states.level_code(axis, level) for level in listed]
            at &= np.isin(states.axis_codes(axis), codes)
        for choice in rule.choices:
            if choice not in choices:
                raise ConfigError(
                    f"{run.source}: model.unavailable[{i}]: {choice!r} is no choice."
                    f"{suggest(choice, choices)}"
                )
            mask[at, choices.index(choice)] = False
    return mask


def plain(value: Any) -> Any:
    """Return a numpy scalar as a Python value."""
    return value.item() if isinstance(value, np.generic) else value


# scenarios ------------------------------------------------------------------------------------

MAPPED = ("bundle", "terms", "engagement", "lift", "new_values", "mix")
"""Keys of a scenario that go as they are, where they are not empty."""


def scenarios(
    run: Run, first: int | None = None, kind: str = "month"
) -> tuple[list[Scenario], list[str]]:
    """Return the scenarios, and what was left out because its time has passed.

    ``first`` is the number of the forecast's first period. A scenario that starts before it holds
    from the first period on; one that ended before it is left out.
    """
    out, past = [], []
    for i, s in enumerate(run.spec.scenario):
        try:
            made = scenario(s, lambda when: number_of(when, first, kind))
        except SpecificationError as error:
            raise ConfigError(f"{run.source}: scenario[{i}]: {error}") from error
        if made is None:
            past.append(f"scenario {s.name!r} ended in {s.ends}, before the forecast: left out")
        else:
            out.append(made)
    return out, past


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


def scenario(s: ScenarioPart, number: Callable[[int | str], int | None]) -> Scenario | None:
    """Return one scenario, or None where it has ended already."""
    ends = None if s.ends is None else number(s.ends)
    if ends is not None and ends <= 1 and isinstance(s.ends, str):
        return None
    found = {"starts": number(s.starts), "announced": s.announced and number(s.announced)}
    dates: dict[str, Any] = {k: max(int(v), 1) for k, v in found.items() if v is not None}
    if ends is not None:
        dates["ends"] = ends
    ramp = {k: number(v) for k, v in s.ramp.items()}
    parts: dict[str, Any] = {k: getattr(s, k) for k in MAPPED if getattr(s, k)}
    change: dict[str, Any] = dict(s.params)
    change |= {name: Scaled(factor) for name, factor in s.scale.items()}
    prices = {k: Changed(v) if isinstance(v, Factor) else v for k, v in s.prices.items()}
    return Scenario(
        s.name,
        params=change or None,
        offer=s.offer or None,
        prices=prices or None,
        grandfathered=s.grandfathered,
        plans=[build_part(Plan, p, f"plans[{i}]") for i, p in enumerate(s.plans)],
        drop=tuple(s.drop),
        attention=s.attention,
        benefits=[build_part(Benefit, b, f"benefits[{i}]") for i, b in enumerate(s.benefits)],
        ramp={k: 1 if v is None else max(v, 1) for k, v in ramp.items()} or None,
        **dates,
        **parts,
    )


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


def check_model(run: Run) -> DDC:
    """Refuse mistakes of model and scenarios before a single row is read; return the model."""
    from dynchoice.counterfactuals.forecast import list_scenarios

    if run.spec.data.offers is not None:
        read_csv(run, run.spec.data.offers, "data.offers")
    trial = with_any_laws(run.model(any_segment(run)))
    if not trial.names:
        raise ConfigError(
            f"{run.source}: utility.formula: no term, so there is nothing to estimate"
        )
    try:
        for scenario in list_scenarios(run.scenarios(), run.spec.forecast.periods):
            scenario.theta(trial, np.zeros(len(trial.names)))
            scenario.applied(trial)
    except SpecificationError as error:
        raise ConfigError(f"{run.source}: {error}") from error
    return trial


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


def check_places(run: Run, segments: Iterable[str], regions: Iterable[str]) -> None:
    """Refuse scenarios that name segments or regions which the rows do not have.

    Raises
    ------
    ConfigError
        The first name, with the nearest one.
    """
    for i, s in enumerate(run.spec.scenario):
        for key, named, known in (("ramp", s.ramp, regions), ("mix", s.mix, segments)):
            labels = [str(k) for k in known]
            strange = [k for k in named if str(k) not in labels]
            if strange:
                raise ConfigError(
                    f"{run.source}: scenario[{i}].{key}: no row is of {strange[0]!r}."
                    f"{suggest(strange[0], labels)} There are {first_few(labels, 8)}"
                )


def check_segments(run: Run, found: tuple[Any, ...]) -> list[Any]:
    """Return the segments that are run: those of the run file, or all that the rows hold."""
    wanted = run.spec.data.segments
    if wanted is None:
        return list(found)
    missing = [m for m in wanted if str(m) not in map(str, found)]
    if missing:
        raise DataError(
            f"data.segments: no row is of segment {missing[0]!r}."
            f"{suggest(missing[0], found)} Segments: {', '.join(map(str, found))}"
        )
    return [m for m in found if str(m) in map(str, wanted)]
