"""Policies: propensities, rules, diversity, delayed feedback, batches, the state."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import dynchoice as dc
from dynchoice.callouts.delay import Delays

ITEMS = pd.DataFrame(
    {
        "item": ["ship", "film", "series", "song", "food"],
        "benefit": ["shipping", "video", "video", "music", "grocery"],
    }
)
CONTEXT = {"plan": ["none", "monthly", "annual"], "new": [0, 1]}
TERMS = ["1", "item", "benefit:plan"]


def members(n, seed=0):
    rng = np.random.default_rng(seed)
    plan, new = rng.choice(CONTEXT["plan"], n), rng.integers(0, 2, n)
    return pd.DataFrame({"member": np.arange(n), "plan": plan, "new": new})


def taught(seed=0, n=4000, **options):
    """A policy that has seen clicks."""
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS, window=1.0, seed=seed, **options)
    rng = np.random.default_rng(seed)
    rows = members(n, seed).assign(impression=np.arange(n), time=0.0, slot=1)
    rows["item"] = rng.choice(ITEMS["item"], n)
    strong = rows["item"].map({"ship": 0.3, "film": 0.2, "series": 0.1, "song": 0.05, "food": 0.2})
    hit = rng.random(n) < strong
    clicks = pd.DataFrame({"impression": rows["impression"][hit], "time": 0.5})
    policy.learn(rows, clicks, batch="first", now=2.0)
    return policy


@pytest.mark.parametrize("method", ["adf", "joint"])
def test_propensities_are_the_shares_of_fresh_posterior_draws(method):
    policy = taught(draws=4000, n=500, method=method)
    one = pd.DataFrame({"plan": ["monthly"], "new": [0]})
    code = int(policy.context_codes(one)[0])
    own = policy.posterior
    cov = np.diag(own.variance) if own.covariance is None else own.covariance
    w = np.random.default_rng(99).multivariate_normal(own.mean, cov, 20_000)
    plans = CONTEXT["plan"].index("monthly")
    benefit = ITEMS["benefit"].map({"shipping": 0, "video": 1, "music": 2, "grocery": 3}).to_numpy()
    z = w[:, [0]] + w[:, 1:6] + w[:, 6 + 3 * benefit + plans]
    want = np.bincount(z.argmax(axis=1), minlength=5) / len(z)
    got = policy.current.first_choice(code, None)
    assert np.abs(got - want).max() < 0.02
    assert got.sum() == pytest.approx(1)


def test_what_is_shown_comes_with_its_own_propensity():
    policy = taught(slots=2, draws=64, category="benefit", diversity=1.0, n=300)
    people = pd.DataFrame({"member": range(30_000), "plan": "none", "new": 0})
    shown = policy.decide(people)
    for slot in (1, 2):
        part = shown[shown["slot"] == slot]
        seen = part.groupby("item").size() / len(people)
        told = part.groupby("item")["propensity"].agg(["min", "max"])
        assert (told["min"] == told["max"]).all(), "one number an item and slot"
        error = np.sqrt(told["min"] * (1 - told["min"]) / len(people))
        assert ((seen - told["min"]).abs() < 5 * error + 1e-12).all()
    slates = shown.pivot(index="member", columns="slot", values="item")
    often = slates.groupby([1, 2]).size() / len(people)
    whole = shown[shown["slot"] == 1].set_index("member")["slate_propensity"]
    told = slates.assign(p=whole).groupby([1, 2])["p"].first()
    assert np.abs(often - told).max() < 5 * np.sqrt(0.25 / len(people))
    assert told.sum() == pytest.approx(1)


def test_blocked_items_and_weights_change_propensities_as_they_should():
    policy = taught(draws=200, category="benefit", n=300)
    people = members(50)
    blocked = pd.DataFrame({"member": range(50), "item": "ship"})
    shown = policy.decide(people, blocked=blocked, seed=1)
    assert not (shown["item"] == "ship").any() and len(shown) == 50
    code = policy.context_codes(people)
    for i in range(5):
        ranked = rank_all(policy, int(code[i]))
        ranked[:, 0] = -np.inf
        want = np.bincount(ranked.argmax(axis=1), minlength=5) / 200
        at = list(ITEMS["item"]).index(shown["item"].iloc[i])
        assert shown["propensity"].iloc[i] == pytest.approx(want[at])
    heavy = np.ones((50, 4))
    heavy[:, 2] = 1e6
    assert (policy.decide(people, weights=heavy)["item"] == "song").all()


def rank_all(policy, code):
    """Every item's click probability (R, 5) under every draw."""
    out = np.empty((policy.draws, 5))
    for r in range(policy.draws):
        policy.current.scores(code, r, out[r])
    return out


def test_a_member_who_has_seen_almost_all_gets_what_is_left():
    items = pd.DataFrame({"item": range(40), "kind": 0})
    policy = dc.Callouts(items, None, ["1", "item"], slots=2, draws=16)
    people = pd.DataFrame({"member": ["a", "b"]})
    seen = pd.DataFrame({"member": "a", "item": range(39)})
    shown = policy.decide(people, blocked=seen)
    mine = shown[shown["member"] == "a"]
    assert mine["item"].tolist() == [39] and mine["propensity"].tolist() == [1.0]
    assert (shown["member"] == "b").sum() == 2


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_greedy_slates_are_those_of_brute_force(strength):
    """The greedy choice of each slot by enumeration; and 1 - 1/e of the best slate."""
    rng = np.random.default_rng(4)
    items = pd.DataFrame({"item": range(9), "kind": rng.integers(0, 3, 9)})
    policy = dc.Callouts(
        items, None, ["1", "item"], slots=3, category="kind", diversity=strength, draws=32,
        prior={"item": 0.5},
    )  # fmt: skip
    weights = np.array([[1.0, 1.4, 0.7]])
    kinds = policy.catalogue.codes["kind"]

    def worth(slate, score):
        total = 0.0
        for c in range(3):
            s = score[[i for i in slate if kinds[i] == c]].sum()
            total += weights[0, c] * (np.log1p(strength * s) / strength if strength else s)
        return total

    for draw in range(32):
        score = norm.cdf(policy.current.weights[draw][0] + policy.current.weights[draw][1:])
        score = score / score.max()
        slate: list[int] = []
        for _ in range(3):
            rest = [i for i in range(9) if i not in slate]
            slate.append(max(rest, key=lambda i: worth([*slate, i], score)))
        people = pd.DataFrame({"member": [0]})
        found = None
        for seed in range(4000):
            if np.random.default_rng([0, seed]).integers(0, 32, 1)[0] == draw:
                found = policy.decide(people, weights=weights, seed=seed)["item"].tolist()
                break
        assert found == slate
        best = max(worth(s, score) for s in itertools.combinations(range(9), 3))
        assert worth(slate, score) >= (1 - 1 / np.e) * best


def test_diversity_brings_other_benefits_onto_the_page():
    rows = {}
    for strength in (0.0, 20.0):
        policy = taught(slots=2, category="benefit", diversity=strength, explore=False)
        shown = policy.decide(members(200))
        kinds = shown["item"].map(ITEMS.set_index("item")["benefit"])
        rows[strength] = kinds.groupby(shown["member"]).nunique().mean()
    assert rows[20.0] == 2.0 > rows[0.0] - 1e-9


def test_who_may_see_what_and_when():
    items = ITEMS.assign(
        for_plan=["none", "monthly|annual", "", None, ["annual"]], starts=[0, 0, 5, 0, 0],
        ends=[np.inf, 9, np.inf, np.inf, np.inf],
    )  # fmt: skip
    policy = dc.Callouts(items, CONTEXT, TERMS, slots=5)
    for now, gone in ((1.0, "series"), (10.0, "film")):
        shown = policy.decide(members(300), now=now).merge(members(300))
        seen = shown.groupby("plan")["item"].agg(set)
        assert "film" not in seen["none"] and "ship" not in seen["monthly"]
        assert "food" in seen["annual"] and "food" not in seen["monthly"]
        assert not (shown["item"] == gone).any()
    with pytest.raises(dc.SpecificationError, match="say now="):
        policy.decide(members(2))


def test_caps_count_recent_impressions():
    policy = dc.Callouts(ITEMS.assign(cap=[2, 1, None, None, None]), CONTEXT, TERMS, cap_window=3)
    log = pd.DataFrame(
        {
            "member": [1, 1, 1, 2, 2, 3],
            "item": ["ship", "ship", "film", "ship", "series", "film"],
            "time": [8.0, 9.0, 5.0, 9.0, 9.0, 8.5],
        }
    )
    capped = policy.capped(log, now=10.0)
    assert set(map(tuple, capped.to_numpy().tolist())) == {(1, "ship"), (3, "film")}


def test_personal_weights_follow_clicks():
    policy = taught(category="benefit")
    log = pd.DataFrame({"member": [7] * 20 + [8] * 2, "item": ["song"] * 20 + ["film", "ship"]})
    weights = policy.category_weights(log)
    assert weights.shape == (2, 4) and np.allclose(weights.mean(axis=1), 1)
    assert weights.loc[7, "music"] > 1.5 * weights.loc[8, "music"]


def test_values_turn_the_ranking():
    values = pd.DataFrame(
        [(b, p, 50.0 if (b, p) == ("music", "none") else 1.0)
         for b in ("shipping", "video", "music", "grocery") for p in CONTEXT["plan"]],
        columns=["benefit", "plan", "value"],
    )  # fmt: skip
    policy = taught(values=values)
    shown = policy.decide(members(200)).merge(members(200))
    assert (shown[shown["plan"] == "none"]["item"] == "song").all()
    assert not (shown[shown["plan"] == "annual"]["item"] == "song").all()
    with pytest.raises(dc.DataError, match="1 combinations have no value"):
        policy.set_values(values.iloc[:-1])
    with pytest.raises(dc.ColumnError, match="Did you mean 'benefit'"):
        policy.set_values(values.rename(columns={"benefit": "benefits"}))


def test_a_batch_is_learned_once():
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS, window=3.0)
    rows = members(100).assign(impression=np.arange(100), item="ship", time=0.5)
    clicks = pd.DataFrame({"impression": [1, 2], "time": [0.7, 1.9]})
    first = policy.learn(rows, clicks, batch="a", now=2.0)
    assert (first.impressions, first.clicks, first.settled, first.open) == (100, 2, 0, 98)
    before = policy.posterior.mean.copy()
    again = policy.learn(rows, clicks, batch="a", now=2.0)
    assert again.repeated and "nothing changed" in str(again)
    np.testing.assert_array_equal(policy.posterior.mean, before)
    with pytest.raises(dc.DataError, match="other content"):
        policy.learn(rows, clicks.iloc[:1], batch="a", now=2.0)
    with pytest.raises(dc.DataError, match="were learned before, as batch 'a'"):
        policy.learn(rows, batch="b", now=2.0)
    with pytest.raises(dc.DataError, match="99 impressions repeat"):
        policy.learn(rows.iloc[1:], batch="b", now=2.0)
    late = pd.DataFrame({"impression": [3, 4, 500, 1, 1], "time": [3.4, 5.0, 3.0, 3.0, 3.1]})
    told = policy.learn(None, late, batch="b", now=6.0)
    assert (told.clicks, told.late, told.unmatched, told.again) == (1, 1, 1, 2)
    assert told.settled == 100 and told.open == 0 and "1 late" in str(told)
    assert policy.model.impressions == 100 and policy.model.clicks == 3
    gone = policy.learn(None, pd.DataFrame({"impression": [5], "time": [6.1]}), batch="c")
    assert gone.unmatched == 1


def test_a_refused_batch_leaves_the_state_as_it_was(tmp_path):
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS, window=3.0)
    rows = members(10).assign(impression=np.arange(10), item="ship", time=1.0)
    policy.learn(rows, batch="a", now=1.0)
    before = policy.save(tmp_path / "a.npz").read_bytes()
    bad = members(3).assign(impression=[20, 21, 22], item="ship", time=2.0)
    early = pd.DataFrame({"impression": [20], "time": [1.5]})
    for call, text in (
        (lambda: policy.learn(bad, early, batch="b", now=3.0), "come before their impression"),
        (lambda: policy.learn(bad, batch="b", now=0.5), "is before times"),
        (lambda: policy.learn(bad.assign(item="shp"), batch="b"), "Did you mean 'ship'"),
        (lambda: policy.learn(bad.assign(time=[1, np.nan, 2]), batch="b"), "have no time"),
        (lambda: policy.learn(None, batch="b"), None),
        (lambda: policy.learn(bad.drop(columns="plan"), batch="c"), "'plan'"),
        (lambda: policy.learn(bad.drop(columns="time"), batch="c"), "'time'"),
    ):
        if text is None:
            continue
        with pytest.raises(dc.DynChoiceError, match=text):
            call()
        assert policy.save(tmp_path / "b.npz").read_bytes() == before


def test_the_state_is_one_plain_file(tmp_path):
    items = ITEMS.assign(for_plan=[None, ["none", "annual"], None, None, None], cap=2)
    items["starts"] = pd.Timestamp("2026-11-01")
    policy = dc.Callouts(
        items, CONTEXT, TERMS, slots=2, category="benefit", diversity=0.5, delay_by="benefit",
        values=pd.DataFrame({"benefit": ITEMS["benefit"].unique(), "value": [1.0, 2.0, 3.0, 0.1]}),
    )  # fmt: skip
    rows = members(200).assign(impression=[f"k{i}" for i in range(200)], item="film", slot=1)
    rows["time"] = pd.Timestamp("2026-11-02")
    rows["clicked_at"] = pd.NaT
    rows.loc[:20, "clicked_at"] = pd.Timestamp("2026-11-02 12:00")
    policy.learn(rows, batch="2026-11-02", now="2026-11-03")
    again = dc.Callouts.load(policy.save(tmp_path / "policy.npz"))
    assert repr(again) == repr(policy) and "200 within their window" in repr(policy)
    one = policy.decide(members(50), now="2026-11-03", seed=1)
    two = again.decide(members(50), now="2026-11-03", seed=1)
    pd.testing.assert_frame_equal(one, two)
    more = pd.DataFrame({"impression": ["k30"], "time": [pd.Timestamp("2026-11-04")]})
    for p in (policy, again):
        assert p.learn(None, more, batch="2026-11-04").clicks == 1
        assert p.learn(rows, batch="2026-11-02", now="2026-11-03").repeated
    np.testing.assert_allclose(policy.posterior.mean, again.posterior.mean, atol=1e-12)
    with pytest.raises(dc.StorageError, match="no such file"):
        dc.Callouts.load(tmp_path / "x.npz")


@pytest.mark.parametrize("method", ["adf", "ep", "joint"])
def test_new_items_start_from_their_group(method):
    policy = taught(method=method)
    before = policy.score(members(20), ["film"] * 20)
    policy.learn_prior()
    policy.add(pd.DataFrame({"item": ["bike", "drama"], "benefit": ["sport", "video"]}))
    tolerance = 0.02 if method == "adf" else 1e-4
    after = dc.Callouts.score(policy, members(20), ["film"] * 20)
    assert np.abs(after - before).max() < max(tolerance, 0.08)  # the prior was learned between
    assert np.unique(policy.score(members(1), ["bike"])).size == 1
    shown = policy.decide(members(3000))
    assert set(shown["item"]) >= {"bike", "drama"}, "explored"
    policy.end("ship", 0.0)
    assert not (policy.decide(members(500), now=1.0)["item"] == "ship").any()
    with pytest.raises(dc.DataError, match="are in the catalogue: film"):
        policy.add(pd.DataFrame({"item": ["film"], "benefit": ["video"]}))


def test_one_decision_is_a_row_of_many():
    policy = taught(slots=2, category="benefit", diversity=1.0)
    items, shares = policy.decide_one(plan="monthly", new=1, draw=7)
    code = int(policy.context_codes(pd.DataFrame({"plan": ["monthly"], "new": [1]}))[0])
    slates = policy.slates(code)
    assert items == tuple(policy.catalogue.items[i] for i in slates[7])
    assert shares[0] == pytest.approx((slates[:, 0] == slates[7, 0]).mean())
    with pytest.raises(dc.SpecificationError, match="Did you mean 'plan'"):
        policy.decide_one(plans="monthly", new=1)


def test_scores_are_those_of_the_model():
    policy = taught()
    people = members(30)
    table = policy.score(people)
    assert table.shape == (30, 5)
    plan = people["plan"].map({p: i for i, p in enumerate(CONTEXT["plan"])}).to_numpy()
    index = np.stack([np.zeros(30, int), np.full(30, 3), 6 + 3 * 1 + plan], axis=1)
    np.testing.assert_allclose(table[:, 2], policy.model.predict(index))
    np.testing.assert_allclose(policy.score(people, ["series"] * 30), table[:, 2])


def test_expected_clicks_add_up():
    policy = taught(slots=2)
    people = members(400)
    own = policy.expected_clicks(people, "benefit")
    assert own["members"].sum() == 400 * 4
    random = policy.expected_clicks(people, "benefit", page="random")
    total = (own["clicks"] * own["members"]).sum()
    assert total > (random["clicks"] * random["members"]).sum()
    shown = policy.decide(pd.concat([people] * 40).assign(member=range(16_000)))
    assert total / 400 == pytest.approx(shown["probability"].sum() / 16_000, rel=0.05)


@pytest.mark.parametrize(
    "make,error,text",
    [
        (lambda: dc.Callouts(ITEMS.drop(columns="item")), dc.ColumnError, "column 'item'"),
        (lambda: dc.Callouts(ITEMS.assign(item="a")), dc.DataError, "twice: a"),
        (lambda: dc.Callouts(ITEMS.iloc[:0]), dc.DataError, "no items"),
        (lambda: dc.Callouts(ITEMS, CONTEXT, ["1", "itm"]), dc.SpecificationError, "mean 'item'"),
        (lambda: dc.Callouts(ITEMS, CONTEXT, ["item", "item"]), dc.SpecificationError, "twice"),
        (lambda: dc.Callouts(ITEMS, CONTEXT, "item"), dc.SpecificationError, "a list of texts"),
        (lambda: dc.Callouts(ITEMS, CONTEXT, ["item:slot"]), dc.SpecificationError, "slot moves"),
        (lambda: dc.Callouts(ITEMS, {"item": [1]}), dc.SpecificationError, "rename one"),
        (lambda: dc.Callouts(ITEMS, diversity=1.0), dc.SpecificationError, "needs category="),
        (lambda: dc.Callouts(ITEMS, category="kind"), dc.SpecificationError, "'kind' is unknown"),
        (lambda: dc.Callouts(ITEMS, slots=0), dc.SpecificationError, "slots=0"),
        (lambda: dc.Callouts(ITEMS, pending="du"), dc.SpecificationError, "Did you mean 'due'"),
        (lambda: dc.Callouts(ITEMS, window=0), dc.SpecificationError, "window"),
        (lambda: dc.Callouts(ITEMS, delays=[1, 2]), dc.SpecificationError, "7 shares"),
        (lambda: dc.Callouts(ITEMS.assign(cap=0)), dc.DataError, "cap below 1"),
        (lambda: dc.Callouts(ITEMS.assign(starts="x")), dc.DataError, "times"),
        (lambda: dc.Callouts(ITEMS.assign(for_plan="gold"), CONTEXT), dc.DataError, "'gold'"),
        (lambda: dc.Callouts(ITEMS.assign(for_pln="none"), CONTEXT), dc.ColumnError, "for_pln"),
    ],
)
def test_mistakes(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_mistakes_in_members():
    policy = taught()
    with pytest.raises(dc.ColumnError, match="'new'"):
        policy.decide(members(3).drop(columns="new"))
    with pytest.raises(dc.DataError, match="Did you mean 'none'"):
        policy.decide(members(3).assign(plan="nonne"))
    assert len(policy.decide(members(0))) == 0


def test_delays_of_young_impressions_are_not_taken_for_all():
    """Right truncation: the share due is estimated without the bias of early clicks."""
    truth = np.array([0.5, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1])
    found, naive = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        delays = Delays(7.0)
        every = []
        for day in range(10):
            n = 200
            shown = day + rng.random(n)
            delay = rng.choice(7, n, p=truth) + rng.random(n)
            seen = shown + delay <= 10.0
            delays.add(shown[seen], delay[seen], np.zeros(seen.sum(), np.int64))
            every.append(np.floor(delay[seen]))
        delays.advance(10.0)
        found.append(delays.shares(10.0)[0])
        counts = np.bincount(np.concatenate(every).astype(int), minlength=7)
        naive.append(np.r_[0, np.cumsum(counts) / counts.sum()])
    want = np.r_[0, np.cumsum(truth)]
    gap = np.mean(found, axis=0) - want
    error = np.std(found, axis=0, ddof=1) / np.sqrt(40)
    assert (np.abs(gap) < 3.5 * error + 0.006).all()  # the assumed delays weigh one click
    assert np.abs(np.mean(naive, axis=0) - want).max() > 0.05
    assert delays.due(np.array([0.5, 9.0]), np.zeros(2, np.int64), 10.0)[1] == 1.0


def test_missing_clicks_are_not_failures():
    """A slow benefit keeps its place: its open impressions count by what is due."""
    items = pd.DataFrame({"item": ["fast", "slow"], "kind": ["fast", "slow"]})
    found = {}
    for pending in ("due", "failure", "wait"):
        policy = dc.Callouts(
            items, None, ["1", "item"], window=5.0, pending=pending, delay_by="kind",
            method="joint", prior={"item": 0.2},
        )  # fmt: skip
        rng = np.random.default_rng(0)
        queue = []
        for day in range(9):
            n = 2000
            rows = pd.DataFrame(
                {"impression": day * n + np.arange(n), "item": np.where(np.arange(n) % 2, "fast",
                 "slow"), "time": day + rng.random(n)}
            )  # fmt: skip
            hit = rng.random(n) < 0.2
            slow = rows["item"].to_numpy() == "slow"
            when = rows["time"].to_numpy() + np.where(slow, 3 + rng.random(n), 0.0)
            queue.append(pd.DataFrame({"impression": rows["impression"][hit], "time": when[hit]}))
            known = pd.concat(queue)
            now = day + 1.0
            policy.learn(rows, known[known["time"] < now], batch=str(day), now=now)
            queue = [known[known["time"] >= now]]
        found[pending] = policy.score(pd.DataFrame(index=range(2)), ["fast", "slow"])
    assert np.abs(found["due"] - 0.2).max() < 0.03
    assert found["failure"][1] < 0.1


def test_items_come_with_rules_that_the_old_ones_lack():
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS)
    new = pd.DataFrame({"item": ["gold"], "benefit": ["vip"], "ends": [5.0], "cap": [1],
                        "for_plan": ["annual"]})  # fmt: skip
    policy.add(new)
    shown = policy.decide(members(2000), now=1.0).merge(members(2000))
    assert set(shown[shown["item"] == "gold"]["plan"]) == {"annual"}
    assert not (policy.decide(members(2000), now=6.0)["item"] == "gold").any()
    assert policy.catalogue.caps[-1] == 1 and np.isinf(policy.catalogue.caps[0])
    with pytest.raises(dc.ColumnError, match="'colour' that old ones lack"):
        policy.add(new.assign(item="x", colour="red"))


def test_a_refused_addition_changes_nothing():
    values = pd.DataFrame({"item": ITEMS["item"], "value": 1.0})
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS, values=values)
    before = repr(policy)
    with pytest.raises(dc.DataError, match="1 combinations have no value"):
        policy.add(pd.DataFrame({"item": ["new"], "benefit": ["video"]}))
    assert repr(policy) == before and len(policy.decide(members(20))) == 20
    policy.set_values(None).add(pd.DataFrame({"item": ["new"], "benefit": ["video"]}))
    assert policy.catalogue.size == 6


def test_ends_hold_through_saving(tmp_path):
    dated = ITEMS.assign(ends=[50.0, np.nan, np.nan, np.nan, np.nan])
    policy = dc.Callouts(dated, CONTEXT, TERMS).end("film", 3.0)
    policy = dc.Callouts.load(policy.save(tmp_path / "a.npz")).end("song", 4.0)
    seen = set(policy.decide(members(3000), now=10.0)["item"])
    assert seen == {"ship", "series", "food"}
    assert "ship" not in set(policy.decide(members(3000), now=51.0)["item"])


@pytest.mark.parametrize(
    "values,days",
    [
        ([1, 2, None], [1, 2, np.nan]),
        (pd.Series([1.0, 2.0]).astype("category"), [1, 2]),
        (["1970-01-02", "1970-01-03 12:00:00", "1970-01-04T00:00:00.5"], [1, 2.5, 3 + 0.5 / 86400]),
        ([pd.Timestamp("1970-01-02"), 3.0, pd.NaT], [1, 3, np.nan]),
        (pd.Series(pd.to_datetime(["1970-01-02"])).dt.tz_localize("UTC"), [1]),
    ],
)
def test_times_are_days(values, days):
    from dynchoice.callouts.catalogue import as_times

    np.testing.assert_allclose(as_times(values, "time"), days)


def test_parts_of_days_are_windows_too():
    delays = Delays(0.5)
    rng = np.random.default_rng(0)
    for day in range(40):
        delays.add(np.full(50, float(day)), 0.5 * rng.random(50), np.zeros(50, np.int64))
    delays.advance(41.0)
    got = delays.due(np.array([0.25, 0.49]), np.zeros(2, np.int64), 41.0)
    np.testing.assert_allclose(got, [0.5, 0.98], atol=0.01)
    assert Delays(1.5, assumed=[0.5, 0.5]).due(
        np.array([1.49]), np.zeros(1, np.int64), 0.0
    ) == pytest.approx(0.9933, abs=1e-3)


def test_more_mistakes():
    policy = taught()
    people = members(3)
    keys = pd.DataFrame({"impression": [(1, 2)], "item": "ship", "time": 3.0}).assign(
        plan="none", new=0
    )
    weights = pd.DataFrame({"member": [0, 0], "shipping": 1, "video": 1, "music": 1, "grocery": 1})
    by_kind = taught(category="benefit")
    for call, error, text in (
        (lambda: policy.score(people, ["ship"] * 4), dc.SpecificationError, "one each"),
        (lambda: policy.propensity(people, ["ship"]), dc.SpecificationError, "one each"),
        (lambda: policy.decide(None), dc.SpecificationError, "must be a table"),
        (lambda: policy.learn([1], batch="x"), dc.SpecificationError, "must be a table"),
        (lambda: policy.learn(keys, batch="x"), dc.DataError, "make them texts"),
        (
            lambda: policy.learn(keys.assign(impression=None), batch="x"),
            dc.DataError,
            "have no key",
        ),
        (lambda: policy.learn(keys.assign(impression=9, time=1.7e9), batch="x"), dc.DataError,
         "seconds"),
        (lambda: by_kind.decide(people, weights=weights), dc.DataError, "members repeat"),
        (lambda: policy.decide_one(plan="none", new=0, draw=9999), dc.SpecificationError,
         "there are 256"),
        (lambda: dc.Callouts(ITEMS, prior=0.5), dc.SpecificationError, "prior=0.5"),
        (lambda: dc.Callouts(ITEMS, window="a"), dc.SpecificationError, "window"),
        (lambda: dc.Callouts(ITEMS, diversity="a"), dc.SpecificationError, "diversity"),
        (lambda: dc.Callouts(ITEMS, forget="a"), dc.SpecificationError, "forget"),
        (lambda: dc.Callouts(ITEMS, seed=-1), dc.SpecificationError, "seed"),
        (lambda: policy.expected_clicks(people.iloc[:0], "benefit"), dc.SpecificationError, "no "),
        (lambda: policy.expected_clicks(people, "kind"), dc.SpecificationError, "'kind' is unk"),
        (
            lambda: policy.expected_clicks(people, "benefit", page=dc.Callouts(ITEMS)),
            dc.SpecificationError,
            "contexts",
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            call()
    first = by_kind.decide(people, weights=weights.iloc[:1].assign(music=1e9))
    assert first["item"].iloc[0] == "song", "matched by the column of members"


def test_impressions_learned_twice_are_told():
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS, window=0.5)
    rows = members(20).assign(impression=range(20), item="ship", time=0.0)
    policy.learn(rows, batch="a", now=1.0)
    told = policy.learn(rows.assign(time=0.1), batch="b", now=2.0)
    assert told.stale == 20 and "older than the last batch's window" in str(told)


def test_another_snapshot_is_another_number():
    policy = taught()
    numbers = [policy.snapshot]
    policy.set_values(pd.DataFrame({"benefit": ITEMS["benefit"].unique(), "value": 2.0}))
    numbers.append(policy.snapshot)
    policy.end("ship", 5.0)
    numbers.append(policy.snapshot)
    assert len(set(numbers)) == 3


def test_a_model_that_outgrows_covariances_goes_on(monkeypatch):
    from dynchoice.callouts import probit

    policy = taught(method="joint")
    before = policy.score(members(5))
    monkeypatch.setattr(probit, "MOST_JOINT", 20)
    with pytest.warns(dc.DynChoiceWarning, match="goes on with method 'adf'"):
        policy.add(pd.DataFrame({"item": ["bike"], "benefit": ["sport"]}))
    assert policy.model.method == "adf"
    assert np.abs(policy.score(members(5))[:, :5] - before).max() < 0.1


@pytest.mark.parametrize("personal", [False, True])
def test_visits_at_random_keep_every_item_possible(personal):
    policy = taught(slots=2, draws=32, category="benefit", n=3000, at_random=0.2)
    people = pd.DataFrame({"member": range(40_000), "plan": "none", "new": 0})
    weights = np.full((40_000, 4), 1.5) if personal else None
    blocked = people[["member"]].assign(item="film") if personal else None
    shown = policy.decide(people, weights=weights, blocked=blocked)
    n = 4 if personal else 5
    for slot in (1, 2):
        part = shown[shown["slot"] == slot]
        seen = part.groupby("item").size() / len(people)
        told = part.groupby("item")["propensity"].agg(["min", "max"])
        assert len(told) == n and (told["max"] - told["min"]).max() < 1e-12
        assert told["min"].min() >= 0.2 / n - 1e-12 and told["min"].sum() == pytest.approx(1)
        error = np.sqrt(told["min"] * (1 - told["min"]) / len(people))
        assert ((seen - told["min"]).abs() < 5 * error).all()
    slates = shown.pivot(index="member", columns="slot", values="item")
    whole = shown[shown["slot"] == 1].set_index("member")["slate_propensity"]
    told = slates.assign(p=whole).groupby([1, 2])["p"].first()
    often = slates.groupby([1, 2]).size() / len(people)
    assert len(told) == n * (n - 1) and told.sum() == pytest.approx(1)
    assert np.abs(often - told).max() < 0.01
    if not personal:
        first = policy.propensity(people.iloc[:1], ["song"])[0]
        mine = shown[(shown["slot"] == 1) & (shown["item"] == "song")]["propensity"].iloc[0]
        assert first == pytest.approx(mine)
        items, shares = policy.decide_one(plan="none", new=0, draw=3)
        assert shares[0] >= 0.8 / 32 and len(items) == 2
        own, chance = (policy.expected_clicks(people, "benefit", page=p)["clicks"].sum()
                       for p in (None, "random"))  # fmt: skip
        assert own > chance
    with pytest.raises(dc.SpecificationError, match="at_random"):
        dc.Callouts(ITEMS, at_random=2)
