"""Layouts: exact and climbed maxima against brute force, contexts, learning, the state."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import dynchoice as dc

SLOTS = {"headline": ["ship", "film", "song"], "image": ["a", "b"], "button": ["join", "try", "go"]}
CONTEXT = {"plan": ["none", "monthly"], "page": ["home", "cart", "bill"]}


@pytest.mark.parametrize("context", [None, CONTEXT])
@pytest.mark.parametrize("order", [1, 2])
def test_the_best_layout_is_that_of_brute_force(context, order):
    page = dc.LayoutBandit(SLOTS, context, order=order, draws=40, seed=3)
    w = page.models[0].posterior.draw(40, np.random.default_rng(1))
    code = 0 if context is None else 4
    every = np.array(list(itertools.product(range(3), range(2), range(3))))
    names = page.models[0]
    want = []
    for r in range(40):
        scores = []
        for layout in every:
            active = page.features(layout[None], np.array([code]))[0][0]
            scores.append(w[r][active].sum())
        want.append(every[int(np.argmax(scores))])
    np.testing.assert_array_equal(page.enumerated(code, w), want)
    page.restarts = 60
    np.testing.assert_array_equal(page.climbed(code, w), want)
    groups = {names.groups[g] for g in names.group}
    assert ("pair" in groups) == (order == 2) and ("context" in groups) == (context is not None)


def test_features_are_those_of_the_equation():
    """W0 + sum W1 + sum W2 + sum Wc + sum W1c, each weight once."""
    page = dc.LayoutBandit(SLOTS, CONTEXT)
    every = np.array(list(itertools.product(range(3), range(2), range(3))))
    rows = [page.features(every, np.full(len(every), c))[0] for c in range(6)]
    index = np.concatenate(rows)
    assert index.shape == (18 * 6, 1 + 3 + 3 + 2 + 6)
    size = 1 + 8 + (6 + 9 + 6) + (2 + 3) + 8 * (2 + 3)
    assert page.models[0].features == size == len(np.unique(index))
    assert len(np.unique(index, axis=0)) == len(index), "every layout and context has its own"


def test_climbing_finds_nearly_all_maxima_of_many_layouts():
    slots = {f"s{d}": range(6) for d in range(5)}  # 7,776
    page = dc.LayoutBandit(slots, draws=60)
    w = page.models[0].posterior.draw(60, np.random.default_rng(0))
    exact, climbed = page.enumerated(0, w), page.climbed(0, w)
    same = (exact == climbed).all(axis=1)
    assert same.mean() > 0.9
    page.search = "climb"
    assert len(page.decide(10)) == 10


def truth(frame):
    """Probability of a click, with two contents that only work together."""
    song, go = frame["headline"] == "song", frame["button"] == "go"
    z = -1.2 + 0.3 * (frame["headline"] == "film") + 0.2 * (frame["image"] == "b")
    return norm.cdf(z + 1.2 * (song & go) - 0.7 * (song & ~go) - 0.7 * (go & ~song))


BEST = norm.cdf(-1.2 + 0.2 + 1.2)


def lived(page, batches=12, n=500, seed=0, prior=()):
    rng = np.random.default_rng(seed)
    for b in range(batches):
        shown = page.decide(n)
        page.learn(shown.assign(clicks=(rng.random(n) < truth(shown)).astype(int)), batch=str(b))
        if b in prior:
            page.learn_prior()
    return page


def test_every_kind_of_page_learns():
    """Which learns more of what: validation/mvt2017."""
    share = {}
    for name, options in {
        "pairs": {"order": 2},
        "first order": {"order": 1},
        "independent": {"kind": "independent"},
        "one arm": {"kind": "one-arm"},
    }.items():
        pages = [lived(dc.LayoutBandit(SLOTS, seed=s, **options), seed=s) for s in range(2)]
        share[name] = np.mean([truth(p.decide(2000)).mean() for p in pages]) / BEST
    assert min(share.values()) > 0.9, share


def test_a_prior_of_groups_is_learned_by_the_page():
    page = lived(dc.LayoutBandit(SLOTS), prior=(3, 8))
    told = page.models[0].prior
    assert told["pair"][1] != 1.0 and told["content"][1] != 1.0
    with pytest.raises(dc.SpecificationError, match="multivariate"):
        dc.LayoutBandit(SLOTS, kind="one-arm").learn_prior()


def test_propensities_count_draws():
    page = lived(dc.LayoutBandit(SLOTS, draws=50), batches=2)
    shown = page.decide(20_000)
    names = list(SLOTS)
    often = shown.groupby(names).size() / len(shown)
    told = shown.groupby(names)["propensity"].agg(["min", "max"])
    assert (told["min"] == told["max"]).all() and told["min"].sum() == pytest.approx(1)
    assert np.abs(often - told["min"]).max() < 0.02


def test_contexts_get_layouts_of_their_own():
    page = dc.LayoutBandit(SLOTS, {"plan": ["none", "monthly"]}, draws=100)
    rng = np.random.default_rng(0)
    people = pd.DataFrame({"plan": rng.choice(["none", "monthly"], 600)})
    for b in range(10):
        shown = page.decide(people)
        good = (shown["plan"] == "none") == (shown["headline"] == "ship")
        clicks = (rng.random(600) < np.where(good, 0.3, 0.05)).astype(int)
        page.learn(shown.assign(clicks=clicks), batch=str(b))
    shown = page.decide(people)
    assert (shown[shown["plan"] == "none"]["headline"] == "ship").mean() > 0.85
    assert (shown[shown["plan"] == "monthly"]["headline"] == "ship").mean() < 0.15


def test_batches_once_and_the_state(tmp_path):
    page = lived(dc.LayoutBandit(SLOTS, draws=30), batches=2)
    shown = page.decide(50, seed=4).assign(clicks=1, shown=2)
    assert page.learn(shown, batch="x") and not page.learn(shown, batch="x")
    with pytest.raises(dc.DataError, match="other content"):
        page.learn(shown.assign(clicks=0), batch="x")
    again = dc.LayoutBandit.load(page.save(tmp_path / "page.npz"))
    pd.testing.assert_frame_equal(page.decide(40, seed=9), again.decide(40, seed=9))
    assert not again.learn(shown, batch="x")
    np.testing.assert_allclose(again.score(shown), page.score(shown), atol=1e-4)


@pytest.mark.parametrize(
    "call,error,text",
    [
        (lambda: dc.LayoutBandit({}), dc.SpecificationError, "needs slots"),
        (lambda: dc.LayoutBandit({"a": [1, 1]}), dc.SpecificationError, "labels repeat: 1"),
        (lambda: dc.LayoutBandit(SLOTS, order=3), dc.SpecificationError, "order=3"),
        (lambda: dc.LayoutBandit(SLOTS, kind="onearm"), dc.SpecificationError, "mean 'one-arm'"),
        (lambda: dc.LayoutBandit(SLOTS, {"image": [1]}), dc.SpecificationError, "same name"),
        (lambda: dc.LayoutBandit(SLOTS, prior={"pairs": 1}), dc.SpecificationError, "mean 'pair'"),
        (lambda: dc.LayoutBandit(SLOTS, search="x"), dc.SpecificationError, "search="),
        (
            lambda: dc.LayoutBandit({f"s{d}": range(20) for d in range(5)}, kind="one-arm"),
            dc.SpecificationError,
            "too many arms",
        ),
        (lambda: dc.LayoutBandit(SLOTS, CONTEXT).decide(5), dc.SpecificationError, "a context"),
        (
            lambda: dc.LayoutBandit(SLOTS).learn(pd.DataFrame({"headline": ["ship"]}), batch="a"),
            dc.ColumnError,
            "'image' has no column",
        ),
        (
            lambda: dc.LayoutBandit(SLOTS).learn(
                pd.DataFrame({"headline": ["shp"], "image": ["a"], "button": ["go"], "clicks": 0}),
                batch="a",
            ),
            dc.DataError,
            "Did you mean 'ship'",
        ),
    ],
)
def test_mistakes(call, error, text):
    with pytest.raises(error, match=text):
        call()
