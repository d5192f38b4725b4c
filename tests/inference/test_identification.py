"""The identification report against direct inverses, and against what was put into the panel."""

from dataclasses import replace

import builders
import numpy as np
import oracles
import pytest

import dynchoice as dc
from dynchoice.inference.identification import correlations, effective
from dynchoice.model.regions import market_events

REGIONS = ["east", "north", "south", "west"]
ROLL_OUT = {"east": 3, "north": 5, "south": 5}
"""First period of the bundle; west never has it. The price rises at 6 everywhere."""
PERIODS = 9
CHOICES = ["out", "in"]
STATES = dc.StateSpace(held=["out", "in"], bundle=["old", "new"], price=["low", "high"])
NAMES = ["in", "pay", "bundle", "join"]
THETA = np.array([0.3, 0.8, 0.5, 1.0])


def club(columns=(0, 1, 2, 3), names=NAMES):
    held, bundle, price = (STATES.axis_codes(a) for a in ("held", "bundle", "price"))
    x = np.zeros((8, 2, 5))
    x[:, 1, :] = np.stack([held**0.0, -1.0 - price, bundle, held - 1, 2.0 * bundle], axis=1)
    laws = {"held": dc.Deterministic(lambda level, choice: choice)}
    laws |= {"bundle": dc.Fixed(), "price": dc.Fixed()}
    return dc.DDC(
        states=STATES,
        choices=CHOICES,
        utility=dc.Utility.from_array(x[:, :, list(columns)], names),
        transitions=dc.Transitions.factored(STATES, CHOICES, laws),
        beta=0.9,
    )


def as_spec(model, theta=THETA):
    return {
        "x": model.utility.x,
        "offset": model.utility.offset,
        "F": model.transitions.dense_array(),
        "beta": model.beta,
        "available": model.available,
        "attention": model.attention,
        "default": np.zeros(8, dtype=int),
        "params": theta,
    }


def counts_of(model, roll_out, price_at, lost=0.0, regions=REGIONS):
    """Counts of a simulated panel: 60 members a region; a share ``lost`` do not see the change."""
    spec = as_spec(club())
    P = oracles.solve_newton(spec, THETA)[3]
    rng = np.random.default_rng(4)
    rows = []
    for r, region in enumerate(regions):
        held, behind = rng.integers(2, size=60), rng.random(60) < lost
        for t in range(PERIODS):

            def state(at, held, region=region, behind=behind):
                bundle = (at >= roll_out.get(region, 99)) & ~behind
                return held * 4 + bundle * 2 + (at >= price_at.get(region, 99))

            s = state(t, held)
            choice = (rng.random(60) < P[s, 1]).astype(int)
            last = t == PERIODS - 1
            following = np.full(60, -1) if last else state(t + 1, choice)
            rows += [(r, t, *row, 1) for row in zip(s, choice, following, strict=True)]
            held = choice
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    table = dict(zip(["r", "t", "s", "j", "following", "n"], columns, strict=True))
    return builders.region_counts(model, table, regions), table


@pytest.fixture(scope="module")
def case():
    model = club()
    counts, rows = counts_of(model, ROLL_OUT, dict.fromkeys(REGIONS, 6))
    return model, counts, rows


@pytest.fixture(scope="module")
def report(case):
    return dc.identification(case[0], case[1], THETA)


def information_of(model, rows, keep, theta=THETA):
    """Expected information of the rows kept, state by state."""
    spec = as_spec(model, theta)
    score = oracles.scores_cs(spec, theta)
    P = oracles.solve_newton(spec, theta)[3]
    out = np.zeros((score.shape[2],) * 2)
    for s in rows["s"][keep]:
        for j in range(2):
            out += P[s, j] * np.outer(score[s, j], score[s, j])
    return out


# ---------------------------------------------------------------- numbers


def test_correlations_and_effective_information_by_direct_inverse():
    rng = np.random.default_rng(0)
    for scale in (np.ones(4), np.array([1.0, 100.0, 1e-3, 5.0])):
        A = rng.normal(size=(30, 4)) * scale
        information = A.T @ A
        cov = np.linalg.inv(information)
        size = np.sqrt(np.diag(cov))
        want = cov / np.outer(size, size)
        np.testing.assert_allclose(correlations(information), want, atol=1e-9)
        np.testing.assert_allclose(effective(information), 1 / np.diag(cov), rtol=1e-8)
    flat = np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 3.0]])
    assert correlations(flat)[0, 1] == pytest.approx(-1, abs=1e-6)
    got = effective(flat)
    assert got[2] == pytest.approx(3) and (got[:2] < 1e-6).all()


def test_information_pairs_and_standard_errors(case, report):
    model, counts, rows = case
    every = np.ones(len(rows["s"]), dtype=bool)
    information = information_of(model, rows, every)
    np.testing.assert_allclose(report.information, information, rtol=1e-8)
    cov = np.linalg.inv(information)
    size = np.sqrt(np.diag(cov))
    pairs = report.pairs()
    assert len(pairs) == 6
    for row in pairs.itertuples():
        i, j = NAMES.index(row.first), NAMES.index(row.second)
        assert row.correlation == pytest.approx(cov[i, j] / (size[i] * size[j]), abs=1e-8)
    assert (pairs["correlation"].abs().diff().dropna() <= 1e-12).all()
    assert report.hardest() == (pairs["first"][0], pairs["second"][0])
    varies = report.varies()
    np.testing.assert_allclose(varies["std_error"], size, rtol=1e-8)
    np.testing.assert_array_equal(varies["largest"], [1, 2, 1, 1])
    np.testing.assert_array_equal(varies["least"], [1, 1, 1, 1])
    seen = np.unique(rows["s"])
    new = np.isin(rows["s"], [2, 3, 6, 7])
    assert varies["states"]["in"] == len(seen) and varies["member_months"]["in"] == 1
    assert varies["states"]["bundle"] == len(np.intersect1d(seen, [2, 3, 6, 7]))
    assert varies["member_months"]["bundle"] == pytest.approx(new.mean())
    assert varies["member_months"]["join"] == pytest.approx((rows["s"] < 4).mean())
    values = np.linalg.eigvalsh(information / np.sqrt(np.outer(*[np.diag(information)] * 2)))
    assert report.condition == pytest.approx(values[-1] / values[0], rel=1e-6)
    small = report.pairs(["pay", "bundle"])
    assert len(small) == 1 and report.hardest(["pay", "bundle"]) == ("pay", "bundle")
    with pytest.raises(dc.SpecificationError, match=r"'bundel' is unknown.*'bundle'"):
        report.pairs(["bundel"])
    with pytest.raises(dc.SpecificationError, match="two parameters"):
        report.hardest(["pay"])


def test_shares_of_information_by_hand(case, report):
    model, _, rows = case
    region = np.array(REGIONS)[rows["r"]]
    shares = report.shares()
    assert shares.shape == (4, 2)
    bundle = next(s for s in report.sources if s.event.axis == "bundle")
    price = next(s for s in report.sources if s.event.axis == "price")
    whole = information_of(model, rows, np.ones(len(region), dtype=bool))
    for source, taken in ((bundle, region != "west"), (price, rows["t"] >= 6)):
        rest, part = (information_of(model, rows, k) for k in (~taken, taken))
        np.testing.assert_allclose(source.information, rest, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(rest + part, whole, rtol=1e-9)
        assert source.rows == pytest.approx(taken.mean())
        own = 1 - effective(rest) / effective(whole)
        np.testing.assert_allclose(shares[source.event.label], own, atol=1e-9)
    assert shares[bundle.event.label]["bundle"] == pytest.approx(1)  # west never has it
    assert shares[price.event.label]["pay"] == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------- events


def test_staggered_roll_outs_and_price_changes(case):
    events = {e.axis: e for e in market_events(*case[:2])}
    assert set(events) == {"bundle", "price"}
    bundle, price = events["bundle"], events["price"]
    assert (bundle.before, bundle.after) == ("old", "new") and bundle.starts == ROLL_OUT
    assert not bundle.everywhere and not bundle.at_once
    assert price.starts == dict.fromkeys(REGIONS, 6) and price.at_once and price.everywhere
    assert bundle.label == "bundle old -> new in 3 of 4 regions (3 to 5)"
    assert price.label == "price low -> high in 4 of 4 regions (6)"


def test_everywhere_but_not_at_once():
    model = club()
    counts, _ = counts_of(model, {}, {"east": 2, "north": 4, "south": 4, "west": 7})
    (event,) = market_events(model, counts)
    assert event.everywhere and not event.at_once and event.regions == 4
    assert event.starts == {"east": 2, "north": 4, "south": 4, "west": 7}


@pytest.mark.parametrize(("lost", "found"), [(0.2, True), (0.8, False)])
def test_an_event_moves_more_than_half(lost, found):
    model = club()
    events = market_events(model, counts_of(model, ROLL_OUT, {}, lost)[0])
    assert bool(events) == found
    assert not found or events[0].starts == ROLL_OUT


def test_nothing_moves_or_nothing_is_known_of_regions(case):
    model = club()
    assert market_events(model, counts_of(model, {}, {})[0]) == []
    assert market_events(model, replace(case[1], regions=None)) == []
    alone = dc.identification(model, replace(case[1], regions=None), THETA)
    assert alone.sources == () and "no roll-out or price change" in alone.pair_in_words()
    dense = dc.Transitions.dense(model.transitions.dense_array())
    assert market_events(model.with_parts(transitions=dense), case[1]) == []


# ---------------------------------------------------------------- words


def test_what_separates_a_pair(case, report):
    words = report.pair_in_words(["pay", "bundle"])
    assert words.startswith("pay and bundle: ") and "nothing tells them apart" in words
    # the bundle moves at the same time in every region: no region to compare with
    model = club()
    counts, _ = counts_of(model, dict.fromkeys(REGIONS, 6), dict.fromkeys(REGIONS, 6))
    together = dc.identification(model, counts, THETA)
    assert len(together.flat) == 1 and "pay" in together.flat[0] and "bundle" in together.flat[0]
    assert "nothing in these data tells them apart" in together.pair_in_words(["pay", "bundle"])
    assert abs(together.pairs(["pay", "bundle"])["correlation"][0]) > 0.999
    assert abs(report.pairs(["pay", "bundle"])["correlation"][0]) < 0.99


def test_dropping_the_roll_out_changes_the_words(case, report):
    model, counts, _ = case
    own = counts.regions
    keep = own.cells[:, 1] == REGIONS.index("west")
    cells = own.cells[keep]
    rows = dict(zip(["r", "t", "s", "j", "following"], cells[:, 1:6].T, strict=True))
    rows["r"] = 0 * rows["r"]
    without = builders.region_counts(model, {**rows, "n": own.n[keep]}, ["west"])
    left = dc.identification(model, without, THETA)
    assert [s.event.axis for s in left.sources] == ["price"]
    assert report.pair_in_words() != left.pair_in_words()
    assert any("bundle" in direction for direction in left.flat) and report.flat == []
    assert "Not identified at all" in str(left) and "Not identified" not in str(report)


def test_a_flat_pair_says_so(case):
    model = club((0, 1, 2, 3, 4), [*NAMES, "twice"])
    flat = dc.identification(model, case[1], np.r_[THETA, 0.0])
    assert set(flat.hardest()) == {"bundle", "twice"}
    assert "nothing in these data tells them apart" in flat.pair_in_words()
    assert "1.00 correlated" in flat.pair_in_words()
    assert len(flat.flat) == 1 and "bundle" in flat.flat[0] and "twice" in flat.flat[0]
    single = dc.identification(club((0,), ["in"]), case[1])
    assert single.pair_in_words() == "One parameter: nothing to confuse it with."
    assert len(single.pairs()) == 0 and str(single)


def test_the_printed_report(case, report):
    text = str(report)
    for part in ("at the parameters given", "'out' is worth 0 in 8 of the 8 states", "verdict"):
        assert part in text
    for event in market_events(*case[:2]):
        assert event.label in text
    assert "at zero" in str(dc.identification(*case[:2]))
    assert repr(report) == text


# ---------------------------------------------------------------- after a fit


def test_identification_and_support_of_a_fit(case):
    model, counts, rows = case
    fit = dc.NFXP(model, counts).fit(cov_type="unadjusted")
    own = fit.identification(counts)
    direct = dc.identification(fit.model, counts, fit.params)
    np.testing.assert_allclose(own.information, direct.information, rtol=1e-7)
    assert "at the estimate" in str(own)
    observed = fit.identification()
    np.testing.assert_allclose(observed.eigenvalues, own.eigenvalues, rtol=0.5)
    other, _ = counts_of(model, {}, {})
    with pytest.raises(dc.SpecificationError, match="digests differ"):
        fit.identification(other)
    with pytest.raises(dc.SpecificationError, match="pass a Panel"):
        fit.identification(rows)
    n = oracles.counts(rows["s"], rows["j"], 8, 2)
    support = fit.support()
    seen = n.sum(axis=1) > 0
    assert support.seen == seen.sum()
    assert support.empty_cells == (n[seen] == 0).sum()
    assert support.thin_cells == ((n > 0) & (n < 5)).sum()
    both = (n > 0).all(axis=1)
    assert support.overlap == pytest.approx(n[both].sum() / n.sum())
    table = support.frame()
    np.testing.assert_array_equal(table["taken"], n.sum(axis=0))
    np.testing.assert_array_equal(table["states offering it"], [8, 8])
    np.testing.assert_array_equal(table["of them seen"], [seen.sum()] * 2)
    np.testing.assert_array_equal(table["never taken there"], (n[seen] == 0).sum(axis=0))
    least = [c[c > 0].min() for c in n.T]
    np.testing.assert_array_equal(table["smallest positive cell"], least)
    thin = support.thin()
    assert len(thin) == (n[seen] < 5).sum() and (thin["taken"] < 5).all()
    assert f"{int(seen.sum())} of 8 states are seen" in str(support)


def test_support_by_hand_with_a_mask():
    states = dc.StateSpace(s=range(4))
    n = np.array([[6.0, 0, 0], [3, 2, 0], [0, 0, 0], [9, 0, 0]])
    available = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=bool)
    from dynchoice.inference.diagnostics import Support

    support = Support(states, ("a", "b", "c"), n, available)
    assert (support.seen, support.empty_cells, support.thin_cells) == (3, 2, 2)
    assert support.overlap == pytest.approx(5 / 11)  # state 3 offers no choice
    table = support.frame()
    assert table["smallest positive cell"].tolist() == [3, 2, np.inf]
    assert table["never taken there"].tolist() == [0, 1, 1]
    assert table["thin cells"].tolist() == [1, 1, 0]
    thin = support.thin(2)
    assert thin["taken"].tolist() == [0, 3] and thin["choices in the state"].tolist() == [6, 5]


def test_refusals(case):
    model, counts, rows = case
    with pytest.raises(dc.SpecificationError, match="pass a Panel"):
        dc.identification(model, rows)
    with pytest.raises(dc.SpecificationError, match="infinite horizons"):
        dc.identification(model.with_parts(horizon=9), counts)
    with pytest.raises(dc.SpecificationError):
        dc.identification(model, counts, {"in": 1.0})


@pytest.mark.parametrize("kind", ["states", "choices"])
def test_counts_of_another_model_are_refused(case, kind):
    model = club()
    other = {
        "states": replace(case[1], states=dc.StateSpace(s=range(8)), _cache={}),
        "choices": replace(case[1], choices=("in", "out"), _cache={}),
    }[kind]
    with pytest.raises(dc.SpecificationError, match=kind):
        dc.identification(model, other)


def test_laws_without_probabilities_are_estimated(membership):
    panel = builders.membership_panel(membership, membership.frame)
    before = dc.identification(membership.unknown, panel)
    fitted = dc.NFXP(membership.unknown, panel).fit().model
    after = dc.identification(fitted, panel)
    np.testing.assert_allclose(before.information, after.information, rtol=1e-12)


@pytest.mark.parametrize("estimator", [dc.NFXP, dc.CCP], ids=["NFXP", "CCP"])
def test_a_price_that_is_a_plan_constant_is_named_and_no_traceback(membership, estimator):
    # a newcomer's first model: one price a plan, paid up front for the annual one
    base = membership.unknown
    states, contract = base.states, base.states.axis_codes("contract")
    x = np.zeros((states.size, 3, 4))
    x[:, 1, 0] = x[:, 2, 1] = 1
    x[contract == 0, 1:, 2] = -1
    x[:, 1, 3], x[contract <= 2, 2, 3] = -2.0, -5.0
    utility = dc.Utility.from_array(x, ["monthly", "annual", "join", "price"])
    panel = builders.membership_panel(membership, membership.frame)
    with pytest.raises(dc.IdentificationError, match=r"does not change along.*price"):
        estimator(base.with_parts(utility=utility), panel).fit()
