"""What a number rests on is said beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from term_club import fitted, panel

import dynchoice as dc
from dynchoice.counterfactuals.badges import badge


def test_prices_beyond_those_seen_are_named_with_their_range():
    scenarios = [dc.Scenario(f"{p}", prices={"monthly": p}) for p in (7, 9, 15)]
    found = dc.forecast(fitted(), scenarios, start=panel(), periods=1, draws=0).badges
    reasons = found.set_index("scenario")["reasons"]
    for p in ("7", "15"):
        assert f"'monthly' goes to {p}, seen were 8 to 10" in reasons[p]
    assert "seen were" not in reasons["9"]


def test_an_identification_report_without_regions_says_that_none_were_looked_at():
    model, sentence = fitted().model, "no roll-out or price change was looked for"
    assert sentence in " ".join(str(dc.identification(model, panel(None))).split())
    assert sentence not in " ".join(str(dc.identification(model, panel())).split())


def test_without_any_choice_seen_numbers_rest_on_assumed_values():
    s, fit = dc.Scenario("x", prices={"monthly": 15}), fitted()
    empty = np.zeros_like(fit.counts)
    found = badge(s.applied(fit.model), empty)
    assert found.label == found.money == "rests on assumed values"
    f = dc.forecast(replace(fit, counts=empty), s, start=panel(), periods=1, draws=0)
    assert set(f.badges["badge"]) == {"rests on assumed values"}
