"""Plan histories read into panels, against a scalar machine that walks one member at a time."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from histories import CLUBS, COLUMNS, cells, histories, used, with_use

import dynchoice as dc
from dynchoice.membership.history import contract_levels

pytestmark = pytest.mark.filterwarnings("ignore:.*a history of plans does not show")


def same(found: pd.Series, want: pd.Series) -> None:
    """Levels agree row by row, and are missing together."""
    a = found.astype(object).where(found.notna(), None)
    b = want.astype(object).where(want.notna(), None)
    bad = [(i, x, y) for i, x, y in zip(want.index, a[want.index], b, strict=True) if x != y]
    assert not bad, (len(bad), bad[:3])


@pytest.mark.parametrize("entry", ["new", "outside", "unknown"])
@pytest.mark.parametrize("name", CLUBS)
def test_contract_levels_are_those_of_the_machine(name, entry):
    club = CLUBS[name]
    frame = histories(club, entry, seed=7)
    found = contract_levels(club, frame, **COLUMNS, entry=entry)
    same(found, frame["level"])
    seen = set(frame["level"].dropna())
    assert len(seen) > 0.6 * len(club.contracts.labels)  # the histories reach most of them
    assert frame["level"].isna().any()


@pytest.mark.parametrize("kind", ["yyyymm", "text", "period", "date"])
def test_periods_may_be_written_in_any_way(kind):
    club = CLUBS["months and years"]
    frame = histories(club, "new", seed=8, members=15, kind=kind)
    same(contract_levels(club, frame, **COLUMNS), frame["level"])


def levels_of(club, choices, entry="new", **options):
    frame = pd.DataFrame({"who": 1, "when": range(len(choices)), "plan": choices})
    for key, values in options.items():
        frame[key] = values
    extra = {key: key for key in options}
    found = contract_levels(club, frame, **COLUMNS, entry=entry, **extra)
    return [None if pd.isna(x) else x for x in found]


def test_tenure_and_eligibility_count_months_by_hand():
    club = CLUBS["months and years"]
    levels = levels_of(club, ["monthly"] * 14 + ["annual"] * 14)
    assert levels[:2] == ["new", "trial monthly"]
    # the first of twelve paid months is the second in all: in the 14th, a year has been served
    assert levels[2:13] == ["monthly y0"] * 11
    assert levels[13:15] == ["monthly y1"] * 2
    assert levels[15:27] == [f"annual_{m} y1" for m in range(11, -1, -1)]
    assert levels[27] == "annual_11 y2"
    away = levels_of(club, ["monthly", "none"] + ["none"] * 12)
    assert away == ["new", "trial monthly"] + ["lapsed"] * 11 + ["new"]


@pytest.mark.parametrize("held", [1, 5])
def test_months_away_count_from_the_first_also_for_who_entered_unknown(held):
    """Twelve months without membership make a new customer, known before them or not."""
    club = CLUBS["months and years"]
    away = ["none"] * 14
    known = levels_of(club, ["monthly"] * (held + 1) + away)
    unknown = levels_of(club, ["monthly"] * held + away, entry="unknown")
    assert known[held + 2 :] == ["lapsed"] * 11 + ["new"] * 2
    assert unknown[:held] == [None] * held and unknown[held] is None
    assert unknown[held + 1 :] == ["lapsed"] * 11 + ["new"] * 2


def test_after_a_gap_nothing_is_known_until_a_month_outside():
    club = CLUBS["months and years"]
    frame = pd.DataFrame(
        {
            "who": 1,
            "when": [0, 1, 3, 4, 5, 6, 7],
            "plan": ["monthly", "monthly", "monthly", "none", "monthly", "annual", "annual"],
        }
    )
    found = contract_levels(club, frame, **COLUMNS)
    assert [None if pd.isna(x) else x for x in found] == [
        "new", "trial monthly", None, None, "lapsed", "monthly y0", "annual_11 y0",
    ]  # fmt: skip


# pins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUBS)
def test_a_column_of_levels_counts_where_it_is_filled(name):
    club = CLUBS[name]
    frame = histories(club, "new", seed=9, members=30)
    rng = np.random.default_rng(1)
    some = frame["level"].where(rng.random(len(frame)) < 0.3)
    same(contract_levels(club, frame.assign(c=some), **COLUMNS, contract="c"), frame["level"])
    everything = contract_levels(club, frame.assign(c=frame["level"]), **COLUMNS, contract="c")
    same(everything, frame["level"])
    # a pin that contradicts what was derived counts too
    first = frame.sort_values(["who", "t"]).groupby("who").head(1).index
    other = "lapsed" if "lapsed" in club.contracts.labels else "none"
    pins = pd.Series(None, index=frame.index, dtype=object)
    pins[first] = other
    found = contract_levels(club, frame.assign(c=pins, plan="none"), **COLUMNS, contract="c")
    assert (found[first] == other).all()


def test_a_pin_says_where_a_stranger_stands():
    club = CLUBS["one trial ever"]
    pins = [None, "half_2", None, None, None, None]
    choices = ["half", "half", "half", "monthly", "none", "none"]
    found = levels_of(club, choices, entry="unknown", contract=pins)
    assert found == [None, "half_2", "half_1", "half_0", "monthly", "lapsed"]


def test_a_pinned_second_year_lasts_a_year_at_most():
    """Who is in the second year of membership is in the third twelve paid months later."""
    club = CLUBS["months and years"]
    pins = ["monthly y1"] + [None] * 13
    found = levels_of(club, ["monthly"] * 14, entry="unknown", contract=pins)
    assert found[0] == "monthly y1"
    assert found[13] == "monthly y2"


# what the contract does not allow --------------------------------------------------------------


def test_choices_that_the_contract_forbids_are_counted_and_named():
    club = CLUBS["months and years"]
    frame = pd.DataFrame(
        {
            "who": np.repeat(["ann", "bob", "eve"], 4),
            "when": np.tile(range(4), 3),
            "plan": [
                *("annual", "annual", "annual", "monthly"),  # in the year: no other plan
                *("annual", "annual", "annual", "none"),
                *("annual", "annual", "monthly", "monthly"),
            ],
        }
    )
    with pytest.raises(dc.DataError) as error:
        contract_levels(club, frame, **COLUMNS)
    text = str(error.value)
    # a break is counted once: where eve stands in the month after it is not known
    assert "2 row(s)" in text and "ann" in text and "eve" in text and "bob" not in text
    assert "'monthly'" in text and "annual_10 y0" in text and "annual_11 y0" in text
    strict = replace(
        club, plans=(club.plans[0], replace(club.plans[1], trial=0, cancel="at renewal"))
    )
    with pytest.raises(dc.DataError, match=r"3 row\(s\).*member ann.*member bob.*member eve"):
        contract_levels(strict, frame, **COLUMNS)


BASE = pd.DataFrame({"who": [1, 1], "when": [0, 1], "plan": ["monthly", "none"], "use": [0, 1]})
WRONG = {
    "plan misspelt": (
        {"frame": BASE.assign(plan=["montly", "none"])},
        r"1 row\(s\) of 'plan'.*montly.*Did you mean 'monthly'",
    ),
    "plan missing": ({"frame": BASE.assign(plan=[None, "none"])}, r"1 row\(s\) of 'plan'"),
    "column misspelt": ({"plan": "pln"}, "'pln'.*'plan'"),
    "time misspelt": ({"time": "wen"}, "'wen'.*'when'"),
    "repeated month": ({"frame": BASE.assign(when=0)}, r"1 row\(s\) repeat.*member 1"),
    "no dates": ({"frame": BASE.assign(when=["x", "y"])}, "2 .*'when'.*no dates"),
    "entry misspelt": ({"entry": "newe"}, "'newe'.*'new'"),
    "contract level misspelt": (
        {"frame": BASE.assign(c=["nwe", "new"]), "contract": "c"},
        r"1 row\(s\) of 'c'.*nwe.*'new'",
    ),
    "engagement misspelt": ({"engagement": {"vdeo": "use"}}, "'vdeo'.*'video'"),
    "engagement column misspelt": ({"engagement": {"video": "us"}}, "'us'.*'use'"),
    "level of use unknown": ({"frame": BASE.assign(use=7)}, "7"),
    "use in words": ({"frame": BASE.assign(use="often")}, "'video'.*numbers"),
    "nobody is known": ({"entry": "unknown", "frame": BASE.assign(plan="monthly")}, "no row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_history_is_named(name):
    changes, message = WRONG[name]
    club = dc.Membership([dc.Plan("monthly", 15, trial=1)], [dc.Benefit("video", 0.1, 0.9)])
    options = {**COLUMNS, "engagement": {"video": "use"}, **changes}
    frame = options.pop("frame", BASE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.DataWarning)
        with pytest.raises(dc.DynChoiceError, match=message):
            club.panel(frame, **options)


# panels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("none", ["none", "no plan"])
@pytest.mark.parametrize("how", ["frame", "parquet", "csv"])
def test_a_panel_holds_the_rows_whose_level_is_known(how, none, tmp_path):
    club = with_use(CLUBS["quarters"])
    frame = used(histories(club, "new", seed=3, members=25), 1)
    want = Counter(
        (r["video"], r["food"], r["level"], r["plan"])
        for r in frame.dropna(subset=["level"]).to_dict("records")
    )
    data = frame.drop(columns=["level", "t"])
    data["plan"] = data["plan"].where(data["plan"] != "none", none)
    if how != "frame":
        path = tmp_path / f"history.{how}"
        data.to_parquet(path, index=False) if how == "parquet" else data.to_csv(path, index=False)
        data = path
    missing = int(frame["level"].isna().sum())
    with pytest.warns(dc.DataWarning, match=f"{missing:,} of {len(frame):,}"):
        panel = club.panel(data, **COLUMNS, none=none)
    assert cells(panel) == want


def test_lag_takes_the_use_of_the_month_before():
    club = with_use(CLUBS["months and years"])
    frame = used(histories(club, "new", seed=4, members=25), 2)
    want, before = Counter(), {}
    for r in frame.sort_values(["who", "t"]).to_dict("records"):
        seen = before.get((r["who"], r["t"] - 1))
        if seen is not None and pd.notna(r["level"]):
            want[(seen["video"], seen["food"], r["level"], r["plan"])] += 1
        before[r["who"], r["t"]] = r
    with pytest.warns(dc.DataWarning, match="left out"):
        panel = club.panel(frame, **COLUMNS, lag=True)
    assert cells(panel) == want


def test_offers_follow_the_schedule_by_region_and_date():
    club = replace(
        with_use(CLUBS["months and years"]),
        menus={"old": {}, "mid": {"annual": 110}, "new": {"annual": 139}},
        bundles={"all": {}, "less": {"video": 0.5}},
    )
    frame = used(histories(club, "new", seed=5, members=30, kind="text", gaps=0.0), 3)
    frame["place"] = np.where(frame["who"].str[-1].astype(int) % 2 == 0, "east", "west")
    offers = pd.DataFrame(
        [
            ("2020-01", "east", "old", "all"),
            ("2021-03", "east", "new", None),
            ("2020-01", "west", "old", "less"),
            ("2022-06", "west", "new", None),
            ("2020-08", "west", "mid", None),
            ("2021-01", "west", None, "all"),
        ],
        columns=["from", "place", "prices", "bundle"],
    )

    def in_force(place, when):
        if place == "east":
            return ("new" if when >= "2021-03" else "old"), "all"
        prices = "new" if when >= "2022-06" else "mid" if when >= "2020-08" else "old"
        return prices, "all" if when >= "2021-01" else "less"

    want = Counter(
        (*in_force(r["place"], r["when"]), r["video"], r["food"], r["level"], r["plan"])
        for r in frame.to_dict("records")
    )
    panel = club.panel(frame, **COLUMNS, offers=offers, region="place")
    assert cells(panel) == want
    # one schedule for everybody, prices from it and the bundle from the data
    one = offers[offers["place"] == "east"][["from", "prices"]]
    want = Counter(
        (in_force("east", r["when"])[0], "less", r["video"], r["food"], r["level"], r["plan"])
        for r in frame.to_dict("records")
    )
    panel = club.panel(frame.assign(bundle="less"), **COLUMNS, offers=one, region="place")
    assert cells(panel) == want


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        (pd.DataFrame({"from": [5], "prices": ["old"]}), r"row\(s\) have no prices.*when 0"),
        (pd.DataFrame({"form": [0], "prices": ["old"]}), "'from'.*'form'"),
        (pd.DataFrame({"from": [0], "prices": ["odl"]}), "odl"),
        (
            pd.DataFrame({"from": [0], "prices": ["old"], "place": ["east"]}),
            "no prices.*place west",
        ),
        (pd.DataFrame({"from": [0], "price": ["old"]}), "'prices'"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_named(offers, message):
    club = dc.Membership([dc.Plan("monthly", 15)], menus={"old": {}, "new": {"monthly": 9}})
    frame = pd.DataFrame(
        {"who": [1, 1, 2], "when": [0, 1, 0], "plan": "monthly", "place": ["east", "east", "west"]}
    )
    with pytest.raises(dc.DynChoiceError, match=message):
        club.panel(frame, **COLUMNS, offers=offers, region="place")


# estimates ------------------------------------------------------------------------------------

TRUTH = {
    "member": 0.1, "video": 0.4, "parcels": 0.5, "price": 0.06, "joining cost": 1.0,
    "cancelling cost": 0.6, "switching cost": 0.5, "paying upfront": 0.8,
}  # fmt: skip


def two_menus(naive: float = 0.0, attention: float = 1.0, known: bool = True) -> dc.Membership:
    chains = {"video": (0.2, 0.9, 0.1, 0.7), "parcels": (0.3, 0.85, 0.2, 0.8)}
    return dc.Membership(
        [
            dc.Plan("monthly", 15, trial=1, attention=attention),
            dc.Plan("annual", 120, periods=12, trial=1, refund="unused", attention=attention),
        ],
        [dc.Benefit(k, *v) if known else dc.Benefit(k) for k, v in chains.items()],
        beta=0.98,
        menus={"old": {"monthly": 10, "annual": 95}, "new": {"monthly": 16, "annual": 125}},
        naive=naive,
        attention_outside=0.8 if attention < 1 else 1.0,
        params=TRUTH,
    )


@cache
def simulated(naive: float = 0.0, attention: float = 1.0) -> pd.DataFrame:
    """1,500 members over 24 months, half of them under each price list."""
    club = two_menus(naive, attention)
    model, N = club.model(), 1500
    start = pd.DataFrame(
        {"prices": np.where(np.arange(N) % 2, "old", "new"), "video": 0, "parcels": 0}
    ).assign(contract="new")
    paths = dc.simulate(
        model, params=club.theta(), members=N, periods=24, seed=12, start=model.states.codes(start)
    )
    return paths.frame()


def panel_of(club, frame, contract="contract"):
    return club.panel(frame, member="member", time="period", plan="choice", contract=contract)


def test_nfxp_recovers_a_simulated_programme():
    club = two_menus(known=False)
    fit = dc.NFXP(club.model(), panel_of(club, simulated())).fit()
    assert fit.converged
    assert fit.params.index.tolist() == list(TRUTH)
    z = (fit.params - pd.Series(TRUTH)) / fit.std_errors
    assert np.abs(z).max() < 3.5 and (fit.std_errors > 0).all()
    chain = next(law for law in fit.transitions.bound if law.name == "video").table
    truth = next(law for law in two_menus().model().transitions.bound if law.name == "video")
    assert np.abs(chain - truth.table).max() < 0.05


def test_levels_derived_from_the_plans_are_those_simulated_where_nothing_is_left_to_chance():
    """Without a return to the trial and without tenure, the clock follows from the plans."""
    club = replace(two_menus(), trial_again=None)
    model = club.model()
    code = model.states.codes(
        pd.DataFrame({"prices": ["old"], "video": [0], "parcels": [0], "contract": ["new"]})
    )
    frame = dc.simulate(
        model, params=club.theta(), members=300, periods=24, seed=1, start=np.repeat(code, 300)
    ).frame()
    found = contract_levels(club, frame, member="member", time="period", plan="choice")
    assert (found == frame["contract"]).all()


def test_nfxp_of_naive_members():
    club = two_menus(naive=1.0, attention=0.5)
    panel = panel_of(club, simulated(1.0, 0.5))
    model = club.model()
    assert not model.sophisticated
    likelihood = dc.NFXP(model, panel).likelihood()
    n, theta = panel.counts.n_sj(), club.theta() + 0.05

    def loglik(p):
        P = dc.solve(model, p, tol=1e-13).ccp
        return float((n * np.log(np.where(n > 0, P, 1.0))).sum())

    at = likelihood.evaluate(theta)
    assert at.loglik == pytest.approx(loglik(theta), rel=1e-12)
    h = 1e-5
    for k, name in enumerate(model.names):
        step = h * np.eye(len(theta))[k]
        slope = (loglik(theta + step) - loglik(theta - step)) / (2 * h)
        assert at.score[k] == pytest.approx(slope, rel=1e-5, abs=1e-3), name
    fit = dc.NFXP(model, panel).fit()
    assert fit.converged
    z = (fit.params - pd.Series(TRUTH)) / fit.std_errors
    assert np.abs(z).max() < 3.5
    best = dc.NFXP(model, panel).likelihood().evaluate(fit.theta)
    assert np.abs(best.score).max() / n.sum() < 1e-6
    # taken for sophisticated, the same data fit worse
    other = dc.NFXP(replace(club, naive=0.0).model(), panel).fit()
    assert other.loglik < fit.loglik - 3


def test_use_from_arrow_is_read():
    own = dc.Membership(
        [dc.Plan("monthly", 10.0)], [dc.Benefit("ship", gain=0.2, stay=0.9)], beta=0.95,
        params={"member": 0.1, "ship": 0.3, "price": 0.06, "joining cost": 0.5},
    )  # fmt: skip
    frame = pd.DataFrame({"id": 1, "t": range(4), "plan": ["none", "monthly", "monthly", "none"]})
    plain = own.panel(frame.assign(ship=[0, 1, 1, 0]), member="id", time="t", plan="plan")
    arrow = frame.assign(ship=pd.array([0, 1, 1, 0], dtype="int64[pyarrow]"))
    panel = own.panel(arrow, member="id", time="t", plan="plan")
    assert (panel.counts.n_sj() == plain.counts.n_sj()).all()
