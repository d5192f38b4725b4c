"""Off-policy values: closed forms, coverage, clipping, replay, worlds."""

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc

A = 4
RATES = np.array([[0.1, 0.2, 0.05, 0.3], [0.3, 0.1, 0.1, 0.05]])
LOGGING = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
TARGET = np.array([[0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1]])
VALUE = float((0.5 * (TARGET * RATES).sum(axis=1)).sum())


def log_of(n, seed, members=None):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, n)
    a = (rng.random(n)[:, None] > np.cumsum(LOGGING[x], axis=1)).sum(axis=1)
    r = (rng.random(n) < RATES[x, a]).astype(float)
    frame = pd.DataFrame({"x": x, "a": a, "reward": r, "propensity": LOGGING[x, a]})
    if members:
        frame["member"] = rng.integers(0, members, n)
    return frame


def test_values_are_those_of_the_formulas():
    log = log_of(500, 0)
    q = np.full((500, A), 0.15)
    got = dc.off_policy(log, TARGET[log["x"]], shown=log["a"].to_numpy(), model=q)
    w = TARGET[log["x"], log["a"]] / log["propensity"].to_numpy()
    r = log["reward"].to_numpy()
    assert got.values["IPS"] == pytest.approx((w * r).mean(), rel=1e-14)
    assert got.values["SNIPS"] == pytest.approx((w * r).sum() / w.sum(), rel=1e-14)
    assert got.values["DR"] == pytest.approx((0.15 + w * (r - 0.15)).mean(), rel=1e-14)
    assert got.std_errors["IPS"] == pytest.approx((w * r).std(ddof=1) / np.sqrt(500), rel=1e-12)
    assert got.effective == pytest.approx(w.sum() ** 2 / (w @ w))
    same = dc.off_policy(log, LOGGING[log["x"], log["a"]])
    assert same.values["IPS"] == pytest.approx(same.values["log"]) and same.largest == 1
    text = str(got)
    assert "not clipped" in text and "gain over log" in text and "DR" in text


@pytest.mark.parametrize("interval", ["normal", "bootstrap"])
def test_intervals_cover(interval):
    runs, n = (600, 1500) if interval == "normal" else (150, 800)
    hits = {"IPS": 0, "SNIPS": 0, "DR": 0}
    for seed in range(runs):
        log = log_of(n, seed)
        q = np.tile(np.array([0.1, 0.3, 0.2, 0.1]), (n, 1))  # a wrong model
        got = dc.off_policy(
            log, TARGET[log["x"]], shown=log["a"].to_numpy(), model=q, interval=interval,
            draws=200,
        )  # fmt: skip
        for k in hits:
            low, high = got.bounds[k]
            hits[k] += low <= VALUE <= high
    slack = 3 * np.sqrt(0.95 * 0.05 / runs) + 0.01
    for k, h in hits.items():
        assert abs(h / runs - 0.95) < slack, (k, h / runs)


def test_a_model_of_rewards_lowers_the_error():
    plain, helped = [], []
    for seed in range(100):
        log = log_of(600, seed)
        q = RATES[log["x"]]
        got = dc.off_policy(log, TARGET[log["x"]], shown=log["a"].to_numpy(), model=q)
        plain.append(got.values["IPS"])
        helped.append(got.values["DR"])
    assert np.std(helped) < np.std(plain)
    assert abs(np.mean(helped) - VALUE) < 4 * np.std(helped) / 10


def test_clusters_widen_what_hangs_together():
    log = log_of(400, 3)
    twice = pd.concat([log, log], ignore_index=True).assign(member=np.tile(np.arange(400), 2))
    target = TARGET[twice["x"], twice["a"]]
    alone = dc.off_policy(twice, target)
    apart = dc.off_policy(twice, target, cluster="member")
    once = dc.off_policy(log, TARGET[log["x"], log["a"]])
    assert apart.clusters == 400
    for k in ("IPS", "SNIPS"):
        assert apart.std_errors[k] == pytest.approx(once.std_errors[k], rel=1e-12)
        assert alone.std_errors[k] < 0.72 * apart.std_errors[k]


def test_clipping_is_reported():
    log = log_of(2000, 1)
    target = TARGET[log["x"], log["a"]]
    free, cut = dc.off_policy(log, target), dc.off_policy(log, target, clip=2.0)
    w = target / log["propensity"].to_numpy()
    assert cut.clipped == (w > 2).sum() and cut.largest == free.largest == w.max()
    assert cut.clipped_mass == pytest.approx(1 - np.minimum(w, 2).sum() / w.sum())
    assert "clipped: " in str(cut) and "biased" in str(cut)
    assert cut.values["IPS"] < free.values["IPS"]


def test_two_policies_are_compared_on_their_common_log():
    log = log_of(3000, 2)
    at = (log["x"], log["a"])
    good = dc.off_policy(log, TARGET[at])
    close = dc.off_policy(log, (0.99 * TARGET + 0.01 * LOGGING)[at])
    gap, error, low, high = good.minus(close)
    assert low < gap < high and error < 0.1 * good.std_errors["IPS"]
    with pytest.raises(dc.SpecificationError, match="different logs"):
        good.minus(dc.off_policy(log.iloc[:10], TARGET[at][:10]))


def test_what_a_target_never_shows_is_told():
    log = log_of(4000, 5)
    wrong = dc.off_policy(log, TARGET[log["x"], log["a"]] * 0.6)
    assert "not 1" in wrong.warnings[0]
    few = dc.off_policy(log.iloc[:40], TARGET[log["x"], log["a"]][:40])
    assert any("effective" in w for w in few.warnings)


@pytest.mark.parametrize(
    "change,error,text",
    [
        (lambda g: dc.off_policy(g.drop(columns="reward"), TARGET[g["x"]]), dc.ColumnError,
         "'reward'"),
        (lambda g: dc.off_policy(g.assign(propensity=0), g["a"] * 0), dc.DataError, "10 propens"),
        (lambda g: dc.off_policy(g.assign(reward="a"), g["a"] * 0), dc.DataError, "numbers"),
        (lambda g: dc.off_policy(g.assign(reward=np.nan), g["a"] * 0), dc.DataError, "10 are no"),
        (lambda g: dc.off_policy(g, [0.1]), dc.SpecificationError, "the log 10 rows"),
        (lambda g: dc.off_policy(g, TARGET[g["x"]]), dc.SpecificationError, "shown= says"),
        (lambda g: dc.off_policy(g, 0.5 * TARGET[g["x"]], shown=g["a"]), dc.DataError,
         "do not sum to one"),
        (lambda g: dc.off_policy(g, -1.0 + 0 * g["a"]), dc.DataError, "between 0 and 1"),
        (lambda g: dc.off_policy(g, 0 * g["a"], model=np.ones(10)), dc.SpecificationError, "DR"),
        (lambda g: dc.off_policy(g, 0 * g["a"], interval="t"), dc.SpecificationError, "normal"),
        (lambda g: dc.off_policy(g, 0 * g["a"], clip=-1), dc.SpecificationError, "clip"),
        (lambda g: dc.off_policy(g.iloc[:0], []), dc.DataError, "no rows"),
    ],
)  # fmt: skip
def test_mistakes(change, error, text):
    with pytest.raises(error, match=text):
        change(log_of(10, 0))


ITEMS = pd.DataFrame({"item": list("abcdef"), "kind": list("xxyyzz")})
CONTEXT = {"plan": ["none", "monthly"]}


def test_replay_of_a_random_log_is_the_policy_value():
    world = dc.CalloutWorld(ITEMS, CONTEXT, ["1", "item", "kind:plan"], base=-0.5, seed=4)
    rng = np.random.default_rng(0)
    log = world.members(30_000, rng)
    codes = world.context.codes(log)
    item = rng.integers(0, 6, len(log))
    log["item"] = ITEMS["item"].to_numpy()[item]
    log["reward"] = world.clicks(item, codes, rng)[0]
    policy = dc.Callouts(ITEMS, CONTEXT, ["1", "item", "kind:plan"], explore=False)
    train, test = log.iloc[:20_000], log.iloc[20_000:]
    lived = dc.replay(policy, train, batch=2000)
    assert lived.matched == pytest.approx(20_000 / 6, rel=0.1)
    first, last = lived.curve["reward"].iloc[:2].mean(), lived.curve["reward"].iloc[-5:].mean()
    assert last > first
    again = dc.replay(policy, test, learn=False)
    want = np.mean(
        [world.chances[c, policy.slates(int(c))[0, 0]] for c in world.context.codes(test)]
    )
    assert abs(again.value - want) < 4 * again.std_error and "rows kept" in str(again)
    uneven = test[rng.random(len(test)) < np.where(test["item"] < "c", 1.0, 0.3)]
    share = np.where(uneven["item"] < "c", 1.0, 0.3)
    fixed = dc.replay(policy, uneven.assign(p=share / 4.0), propensity="p", learn=False)
    assert abs(fixed.value - want) < 4 * fixed.std_error
    with pytest.raises(dc.SpecificationError, match="one slot"):
        dc.replay(dc.Callouts(ITEMS, CONTEXT, slots=2), test)


def test_cross_fitted_rewards_do_not_see_their_own_row():
    rng = np.random.default_rng(1)
    log = pd.DataFrame({"plan": "none", "item": rng.choice(list("abcdef"), 400)})
    log["reward"] = (rng.random(400) < 0.3).astype(float)
    policy = dc.Callouts(ITEMS, CONTEXT, ["1", "item"], method="ep")
    q = dc.cross_fitted(policy, log, folds=4)
    other = log.copy()
    other.loc[0, "reward"] = 1 - log.loc[0, "reward"]
    again = dc.cross_fitted(policy, other, folds=4)
    np.testing.assert_allclose(again[0], q[0])
    assert np.abs(again - q).max() > 1e-4 and q.shape == (400, 6)
    with pytest.raises(dc.DataError, match="0 and 1"):
        dc.cross_fitted(policy, log.assign(reward=2.0))


def test_a_world_is_what_it_says_and_regret_falls():
    world = dc.CalloutWorld(
        ITEMS, CONTEXT, ["1", "item", "kind:plan"], base=-1.0, delays=[0.6, 0.0, 0.4], seed=2
    )
    rng = np.random.default_rng(0)
    hit, delay = world.clicks(np.full(40_000, 2), np.full(40_000, 1), rng)
    assert hit.mean() == pytest.approx(world.chances[1, 2], abs=0.01)
    assert np.bincount(np.floor(delay).astype(int)) / 40_000 == pytest.approx(
        [0.6, 0, 0.4], abs=0.02
    )
    policy = dc.Callouts(ITEMS, CONTEXT, ["1", "item", "kind:plan"], window=3.0)
    life = dc.live(policy, world, days=15, per_day=400, keep_log=True, prior="moments",
                   prior_days=(6,))  # fmt: skip
    regret = life.days["regret"]
    assert regret.iloc[-4:].mean() < 0.5 * regret.iloc[:2].mean() and (regret > -1e-12).all()
    assert len(life.log) == 6000 and life.regret == pytest.approx(regret.sum())
    policy = dc.Callouts(ITEMS.iloc[:4], CONTEXT, ["1", "item", "kind:plan"], window=3.0)
    life = dc.live(policy, world, days=4, per_day=300, arrivals={2: ["e", "f"]})
    assert life.days["new"].iloc[:2].tolist() == [0, 0] and life.days["new"].iloc[2] > 0.02
    with pytest.raises(dc.SpecificationError, match="Did you mean 'item'"):
        dc.CalloutWorld(ITEMS, CONTEXT, spread={"itm": 1})
    with pytest.raises(dc.SpecificationError, match="sum to one"):
        dc.CalloutWorld(ITEMS, CONTEXT, delays=[0.5, 0.4])
