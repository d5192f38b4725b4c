"""The sections and keys of a callout file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from dynchoice.run.schema import Column, Label, Name, Positive, Section

Paths = Name | Annotated[list[Name], Field(min_length=1)]
Whole = Annotated[int, Field(ge=1)]
Moments = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
Levels = Annotated[list[Label], Field(min_length=1)]


class PolicyPart(Section):
    """The model and the page: options of :class:`dynchoice.Callouts`."""

    terms: Annotated[list[Name], Field(min_length=1)] = Field(default=["1", "item"])
    slots: Whole = 1
    method: Literal["adf", "ep", "joint"] | None = None
    forget: Annotated[float, Field(gt=0, le=1)] = 1.0
    prior: dict[str, Positive | Moments] = Field(default_factory=dict)
    learn_prior: Literal["no", "moments", "em", "james-stein"] = "no"
    category: Column | None = None
    diversity: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cap_window: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 7.0
    draws: Whole = 256
    explore: bool = True
    at_random: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0


class FeedbackPart(Section):
    """Where impressions and clicks are: a file is a batch, named by its name."""

    impressions: Paths
    clicks: Paths | None = None
    window: Positive = 7.0
    pending: Literal["due", "wait", "failure"] = "due"
    delay_by: Column | None = None
    columns: dict[str, Column] = Field(default_factory=dict)
    click_columns: dict[str, Column] = Field(default_factory=dict)


class ScorePart(Section):
    """The members to decide for, and the logs that say what they may see."""

    members: Paths
    seen: Paths | None = None
    clicked: Paths | None = None
    columns: dict[str, Column] = Field(default_factory=dict)
    log_columns: dict[str, Column] = Field(default_factory=dict)


class EvaluatePart(Section):
    """A log with propensities, on which the policy is valued."""

    log: Paths
    reward: Column = "reward"
    propensity: Column = "propensity"
    cluster: Column | None = None
    clip: Positive | None = None
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    interval: Literal["normal", "bootstrap"] = "normal"
    columns: dict[str, Column] = Field(default_factory=dict)


class CalloutFile(Section):
    """A whole callout file."""

    title: Name = "Callouts"
    catalogue: Name
    context: dict[str, Levels] = Field(default_factory=dict)
    values: Name | None = None
    policy: PolicyPart = PolicyPart()
    feedback: FeedbackPart
    score: ScorePart | None = None
    evaluate: EvaluatePart | None = None
    folder: Name = "out"

    def options(self) -> dict[str, Any]:
        """Return the arguments of :class:`dynchoice.Callouts` but tables."""
        options = self.policy.model_dump(exclude={"learn_prior", "prior", "terms"})
        options["prior"] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.policy.prior.items()
        }
        options |= self.feedback.model_dump(include={"window", "pending", "delay_by"})
        return options
