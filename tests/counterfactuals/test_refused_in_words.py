"""Slips in scenarios, bundles, calibrations and experiments are refused in words."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from term_club import CLUB, GOODS, TERM, dear, fitted, mixed, panel

import dynchoice as dc

CHAINLESS = replace(GOODS, benefits=[dc.Benefit("films")])
RAMP = dc.Scenario("x", prices={"monthly": 15}, ramp={"a": 1})
CHEAP = dc.RollOut("x", dc.Scenario("x", offer={"prices": "cheap"}), ["b"])


def ranked(target: object = float, candidates: object = (CHEAP,), fits: object = None) -> None:
    dc.rank_experiments(fitted() if fits is None else fits, target, candidates, start=panel())


def fit_to(moments: object, own: dc.Membership = GOODS, **options: object) -> None:
    dc.calibrate(own, moments, ["price"], **options)


def from_text(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "club.toml"
        file.write_bytes(text)
        dc.Membership.from_toml(file)


REFUSED = [
    (lambda: dc.Scenario("x", **dear, grandfathered="yes").changed(TERM.model()),
     "'yes'.*True.*'contract'"),
    (lambda: replace(TERM, kept={}, kept_until="x"), "kept_until='x'.*'leaving'.*'renewal'"),
    (lambda: dc.forecast({}, []), "the mapping is empty"),
    (lambda: dc.forecast(CLUB, periods="12"), "periods='12' must be a whole number"),
    (lambda: dc.forecast(CLUB, level=90), r"level=90 .*for 90% write 0\.9"),
    (lambda: dc.forecast(CLUB, dc.Scenario("x", ramp={})), "'x'.*ramp={} starts nowhere"),
    (lambda: dc.Scenario("x", starts="2025-01"), "starts='2025-01'.*whole numbers of periods"),
    (lambda: dc.Scenario("x", starts=1.5), r"starts=1\.5.*whole numbers of periods"),
    (lambda: dc.forecast(mixed(), start=panel(None), by="region"), "no regions.*region="),
    (lambda: dc.forecast(mixed(), RAMP, start=panel(None)), "no regions.*region="),
    (lambda: dc.shapley(GOODS, []), "benefits is empty"),
    (lambda: dc.shapley(GOODS, "films"), r"benefits=\['films'\]"),
    (lambda: dc.shapley(GOODS, outcomes="revenue"), r"outcomes=\['revenue'\]"),
    (lambda: fit_to({"penetration": 0.4}, CHAINLESS), "'films' has no chain.*gain= and stay="),
    (lambda: fit_to({"penetration": np.nan}), "'penetration'=nan is no number"),
    (lambda: fit_to({"penetration": "40%"}), "'penetration'='40%' is no number"),
    (lambda: fit_to({"penetration": 40}), r"'penetration' is 40.*0\.4 for 40 %"),
    (lambda: fit_to({"penetration": 0.4}, bounds={"prise": (0, 1)}), "'prise'.*Did.*'price'"),
    (lambda: fit_to({"penetration": 0.4}, bounds={"price": (3, 1)}), r"\(3, 1\) must rise"),
    (lambda: dc.welfare(GOODS, [dc.Scenario("x")]), "must be a Scenario, got list.*one at a time"),
    (lambda: dc.welfare(GOODS, "x"), "must be a Scenario, got str"),
    (lambda: dc.welfare(GOODS, RAMP), r"forecast\(\.\.\.\)\.welfare"),
    (lambda: dc.check_identified(CLUB.model(), dc.Scenario("x")), r"scenario\.changed\("),
    (lambda: dc.check_identified(CLUB.model(), fitted()), r"got Results .*pass results\.model"),
    (lambda: dc.check_identified(CLUB.model(), CLUB), r"got Membership .*pass club\.model\(\)"),
    (lambda: dc.bundles(GOODS, prices={"monthly": 79}), r"\{'monthly': \[79\]\}"),
    (lambda: dc.bundles(GOODS, prices={"monthly": "79"}), "'monthly': a list of prices"),
    (lambda: dc.bundles(GOODS, prices={"monthly": []}), "prices of 'monthly'"),
    (lambda: dc.bundles(GOODS, prices={"monthly": ["a"]}), "'monthly'='a' is no number"),
    (lambda: dc.bundles(GOODS, prices=[79]), "prices must be {plan: .*got list"),
    (lambda: dc.bundles(GOODS, prices={"montly": [79]}), "'montly'.*Did you mean 'monthly'"),
    (lambda: dc.bundles(GOODS, objective="profitt"), "'profitt'.*Did you mean 'profit'"),
    (lambda: dc.bundles(GOODS, starts=0), "starts=0"),
    (lambda: ranked("penetration"), "target='penetration': pass a function, e.g. lambda fit"),
    (lambda: ranked(lambda fit: 1.0), "does not move with any parameter"),
    (lambda: ranked(lambda fit: float("nan")), r"target\(results\)=nan is no number"),
    (lambda: ranked(lambda fit: fit.theta[0], CHEAP), "candidates=.*give a list"),
    (lambda: ranked(fits={"all": fitted()}), "takes one Results, got dict"),
    (lambda: replace(CHEAP, share=50), r"share=50 .*0\.5 for half"),
    (lambda: replace(CHEAP, months=0), "months=0 must be a whole number"),
    (lambda: replace(CHEAP, regions="north"), r"regions=\['north'\]"),
    (lambda: from_text(b"# \xe9"), r"club\.toml is not UTF-8"),
    (lambda: from_text(b"[[plans]]\nname = 'monthly'"), "'price' of 'monthly' is missing"),
    (lambda: dc.simulate(CLUB), r"club\.model\(\), params=club\.theta\(\), start=club\.newcomers"),
    (lambda: dc.Scenario("x", bundle={"films": -0.5}).changed(GOODS.model()), r"films.*-0\.5"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_it_is_refused_in_words(call, message):
    with pytest.raises(dc.SpecificationError, match=f"(?s){message}"):
        call()


@pytest.mark.filterwarnings("error")
def test_numbers_ten_times_off_are_said_to_be_slips():
    model = replace(GOODS, plans=[dc.Plan("annual", 120, periods=12)], menus={}).model()
    slips = {"prices": {"annual": 1.2}}, {"bundle": {"films": 50}}
    for change, what in zip(slips, ("'annual' goes from 120 to 1.2", "films"), strict=True):
        with pytest.warns(dc.DynChoiceWarning, match=what):
            dc.Scenario("x", **change).changed(model)
    dc.Scenario("x", prices={"annual": lambda p: 1.2 * p}, bundle={"films": 0}).changed(model)
