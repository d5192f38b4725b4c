"""What a run file may say: its sections and their keys, as pydantic models.

Only names, types and ranges live here (:mod:`dynchoice.run.config` checks what keys say of each
other); nothing is read or built. Keys that Python declares (of a scenario, of a panel) are taken
from there (:mod:`dynchoice.run.derived`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from dynchoice.run.derived import Label as Label
from dynchoice.run.derived import Name as Name
from dynchoice.run.derived import declared, with_keys_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["off"]
"""A threshold of a guard rail, or ``"off"``."""
Column = Annotated[str, Field(min_length=1)]


MOST_PERIODS, MOST_DRAWS = 1_200, 100_000
"""A century of months; more draws than any band needs."""
Periods = Annotated[int, Field(ge=1, le=MOST_PERIODS)]
Draws = Annotated[int, Field(ge=0, le=MOST_DRAWS)]


class Section(BaseModel):
    """A table of the run file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Derived(Section):
    """A table some of whose keys are declared elsewhere (:mod:`dynchoice.run.derived`)."""

    if TYPE_CHECKING:  # mypy does not see the keys that are added

        def __getattr__(self, name: str) -> Any:
            """Return the value of a key."""


SCENARIO = ("counterfactuals/scenario.py", "Scenario")
PANEL_OPTIONS = ("panel/panel.py", "Panel")
HISTORY_OPTIONS = ("membership/read_panel.py", "read_panel")

PLACE = ("path", "duckdb", "connection", "table", "schema_")
NOT_SAID = ("states", "choices", "columns", "buckets", "member_limit", "progress")
"""Options of a panel that a run file says elsewhere, or leaves as they are."""
PANEL = tuple(k for k in declared(*PANEL_OPTIONS) if k not in NOT_SAID)
"""Keys of ``[data]`` that are options of :class:`dynchoice.Panel`."""
HISTORY = tuple(k for k in declared(*HISTORY_OPTIONS) if k not in (*PANEL, "plan"))
"""Keys of ``[data]`` that only a membership's plan history has."""
FIRST_OF_DATA = (*PLACE, *PANEL, "segments", "contract")


@with_keys_of(*HISTORY_OPTIONS, first=FIRST_OF_DATA, leave=(*PANEL, "plan"))
@with_keys_of(*PANEL_OPTIONS, first=PLACE, leave=NOT_SAID)
class Data(Derived):
    """Where the panel is and which columns are what."""

    path: Name | Annotated[list[Name], Field(min_length=1)] | None = None
    duckdb: Name | None = None
    connection: Name | None = None
    table: Name | None = None
    schema_: Name | None = Field(default=None, alias="schema")
    freq: Literal["integer", "month", "quarter", "year"] | None = None
    invalid: Literal["raise", "drop"] = "raise"
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*(kB|KB|MB|GB|TB)$")] | None = None
    segments: Annotated[list[Label], Field(min_length=1)] | None = None
    # of a membership's plan history
    contract: Column | None = None
    offers: Name | None = None
    entry: Literal["new", "outside", "unknown"] = "new"
    none: Label = "none"
    broken: Literal["raise", "drop"] = "raise"


class Axis(Section):
    """One axis of the state: levels, column, and law of motion."""

    levels: Annotated[list[Label], Field(min_length=1)] | None = None
    range: int | None = Field(default=None, ge=1, le=50_000_000)
    column: Column | None = None
    law: Literal["fixed", "cycle", "deterministic", "markov", "increment"]
    given: list[str] = ["choice"]
    table: Name | None = None
    probabilities: list[Any] | None = None
    max_step: int | None = Field(default=None, ge=0)
    reset_on: str | list[str] | None = None

    @property
    def size(self) -> int:
        """Number of levels."""
        return len(self.levels) if self.levels is not None else self.range or 0

    def all_levels(self) -> list[Label]:
        """Return the levels, spelt out or 0 .. range-1."""
        return list(self.levels) if self.levels is not None else list(range(self.range or 0))


class Rule(Section):
    """States (by levels of some axes) in which some choices are not offered."""

    where: dict[str, Label | list[Label]]
    choices: list[Label]


class Model(Section):
    """Choices, discounting, availability, inattention."""

    choices: Annotated[list[Label], Field(min_length=2)]
    beta: float
    unavailable: list[Rule] = []
    attention: float | None = None
    default: Label | None = None


class UtilityPart(Section):
    """Formula and attributes (a CSV; its column ``segment`` may select rows)."""

    formula: Name
    attributes: Name | None = None


class Estimate(Section):
    """How to estimate."""

    method: Literal["NFXP", "NPL", "CCP"] = "NFXP"
    transitions: Literal["two-step", "joint"] = "two-step"
    cov_type: Literal["clustered", "robust", "opg", "unadjusted", "bootstrap"] = "clustered"
    cluster: Literal["member", "region"] = "member"
    tol: float = Field(default=1e-8, gt=0, le=1e-4)
    maxiter: int = Field(default=100, ge=1, le=100_000)
    draws: int = Field(default=199, ge=2, le=MOST_DRAWS)
    seed: int = Field(default=0, ge=0)


class ForecastPart(Section):
    """How far and with which bands."""

    periods: Periods = 24
    draws: Draws = 100
    level: float = Field(default=0.9, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    bands: Literal["draws", "bootstrap", "delta"] = "draws"
    long_run: Literal["point", "bands", "none"] = "point"


DATES = ("starts", "announced", "ends")


class Factor(Section):
    """A change by a factor or by an amount, of what there is."""

    times: FiniteFloat = 1.0
    plus: FiniteFloat = 0.0


@with_keys_of(*SCENARIO, first=("name", *DATES, "offer", "params", "scale", "prices"))
class ScenarioPart(Derived):
    """One scenario: the keys of :class:`dynchoice.Scenario`, and what stands for functions there.

    A parameter is scaled by ``scale``, a price by ``{times = 1.1, plus = 0}``.
    """

    scale: dict[str, FiniteFloat] = {}
    prices: dict[str, FiniteFloat | Factor] = {}


class Guard(Section):
    """When a run is kept for inspection instead of being published."""

    refused: Limit = 0.01
    drift_estimates: Limit = 4.0
    drift_take_up: Limit = 5.0
    calibration: Limit = 5.0
    identification: Literal["hold", "warn"] = "warn"
    lost: Literal["hold", "warn"] = "hold"


class Output(Section):
    """Where results go and which."""

    folder: Name = "out"
    picture: bool = True
    report: bool = True
    csv: bool = False
    keep: int = Field(default=0, ge=0)


Baseline = Literal[
    "last month", "Markov table", "static logit", "seasonal series", "retention curve"
]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


class Backtest(Section):
    """Rolling origins and what the model is compared with."""

    origins: (
        Annotated[int, Field(ge=1, le=MOST_PERIODS)] | Annotated[list[str], Field(min_length=1)]
    ) = 6
    horizon: Periods = 3
    draws: Draws = 100
    step: Periods = 1
    against: list[Baseline] = list(BASELINES)
    outside: Label | None = None


class RunFile(Section):
    """A whole run file: either a membership, or axes, model and utility."""

    title: Name = "Membership forecast"
    data: Data
    membership: dict[str, Any] | None = None
    axes: Annotated[dict[Name, Axis], Field(min_length=1)] | None = None
    model: Model | None = None
    utility: UtilityPart | None = None
    estimate: Estimate = Estimate()
    forecast: ForecastPart = ForecastPart()
    scenario: list[ScenarioPart] = []
    guard: Guard = Guard()
    backtest: Backtest = Backtest()
    output: Output = Output()
