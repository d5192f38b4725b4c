"""Any learner in the first two steps: cross-fitted, corrected, refused where it is none."""

import numpy as np
import pytest
from estimate.test_pqr_rows import CHOICES, GRID, THETA, chain, line, loaded, members_on, spec
from scipy.stats import norm

import dynchoice as dc

__all__ = ["line"]


class Means:
    """Regressor and classifier by bins of the first column: what a user might write."""

    def __init__(self, bins=12):
        self.bins = bins

    def _at(self, X):
        return np.searchsorted(self.edges, X[:, 0])

    def fit(self, X, y, sample_weight=None):
        w = np.ones(len(X)) if sample_weight is None else sample_weight
        self.edges = np.quantile(X[:, 0], np.linspace(0, 1, self.bins + 1)[1:-1])
        k = self._at(X)
        total = np.bincount(k, w, self.bins) + 1e-9
        self.mean = np.bincount(k, w * y, self.bins) / total
        self.share = np.stack([np.bincount(k, w * (y == j), self.bins) for j in range(3)], 1)
        self.share /= total[:, None]
        return self

    def predict(self, X):
        return self.mean[self._at(X)]

    def predict_proba(self, X):
        return self.share[self._at(X)]


class Nothing(Means):
    """Learns nothing: the sieve's values stay as they are."""

    def predict(self, X):
        return np.zeros(len(X))


@pytest.fixture(scope="module")
def rows(line):
    return loaded(members_on(line, 2000, 10, 3), ["hours"])


def test_a_learner_that_adds_nothing_is_the_sieve(rows):
    """Two folds' sieves, corrected to first order: the estimate of all rows, nearly."""
    plain = dc.DeepPQR(spec(), rows, degree=3).fit()
    fit = dc.DeepPQR(spec(), rows, degree=3, regressor=Nothing()).fit(seed=1)
    assert fit.converged and np.abs((fit.vector - plain.vector) / plain.std_errors).max() < 0.1
    assert (fit.std_errors / plain.std_errors).between(0.9, 1.1).all()


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_the_correction_repairs_a_crude_learner(rows, kind):
    plain = kind(spec(), rows, degree=3).fit()
    crude = kind(
        spec(), rows, degree=3, regressor=Nothing(), classifier=Means(4), folds=2, rounds=5
    ).fit(seed=0)
    assert np.abs((crude.vector - plain.vector) / plain.std_errors).max() < 1
    assert "corrected" in crude.notes[0] and "Means and Nothing in 2 folds" in crude.notes[1]


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_rewards_of_a_learner_that_learns_nothing_are_the_sieves(rows, line, kind):
    """Every step starts beside the sieve, and what the anchor earns is known."""
    import pandas as pd

    table = pd.DataFrame({"hours": GRID[20:180:10]})
    fit = kind(spec(), rows, degree=3, regressor=Nothing(), folds=2).fit(seed=0)
    plain = kind(spec(), rows, degree=3).fit()
    assert (fit.reward(table)["out"] == 0).all() and (plain.reward(table)["out"] == 0).all()
    assert np.abs(fit.reward(table) - plain.reward(table)).max().max() < 0.1
    with pytest.raises(dc.SpecificationError, match="must be numbers"):
        fit.reward(pd.DataFrame({"hours": ["many"]}))
    with pytest.raises(dc.SpecificationError, match="missing or infinite"):
        fit.reward(pd.DataFrame({"hours": [np.nan]}))
    with pytest.raises(dc.SpecificationError, match="a pandas table"):
        fit.reward({"hours": 1})


@pytest.mark.slow
def test_intervals_with_learners_hold_the_truth_as_often_as_they_say(line):
    held, draws = [], 60
    for seed in range(draws):
        own = loaded(members_on(line, 1500, 8, 100 + seed), ["hours"])
        fit = dc.DeepPQR(
            spec(), own, degree=2, regressor=Means(), classifier=Means(), folds=2, rounds=10
        ).fit(seed=seed)
        held.append(np.abs(fit.vector - THETA) < norm.ppf(0.975) * fit.std_errors)
    share = np.mean(held, axis=0)
    assert (share > 0.95 - 3.2 * np.sqrt(0.05 * 0.95 / draws)).all(), share


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.GenPQR])
def test_rewards_at_any_state_and_seeds(rows, line, kind):
    fit = kind(spec(), rows, degree=2, regressor=Means(), folds=3, rounds=6).fit(seed=5)
    import pandas as pd

    table = pd.DataFrame({"hours": GRID[40:160]})
    assert np.abs(fit.reward(table) - line[1][40:160]).mean().max() < 0.2
    assert np.allclose(np.exp(fit.values(table)).div(np.exp(fit.values(table)).sum(axis=1), axis=0),
                       fit.predict(table), atol=1e-9)  # fmt: skip
    again = kind(spec(), rows, degree=2, regressor=Means(), folds=3, rounds=6).fit(seed=5)
    assert again.params.equals(fit.params) and again.reward(table).equals(fit.reward(table))
    other = kind(spec(), rows, degree=2, regressor=Means(), folds=3, rounds=6).fit(seed=6)
    assert not other.params.equals(fit.params)
    with pytest.raises(dc.StorageError, match="without pickle"):
        fit.save("nowhere")
    found = dc.reward_counterfactual(fit, rows, drop="more")
    assert found.converged and found.identified


def test_the_learner_that_was_passed_stays_as_it_is(rows):
    learner = Means()
    dc.DeepPQR(spec(), rows, regressor=learner, folds=2, rounds=2).fit()
    assert not hasattr(learner, "mean")


def test_values_that_still_move_are_not_called_converged(rows):
    class Noisy(Means):
        def predict(self, X):
            return np.random.default_rng().normal(size=len(X)) * 5

    with pytest.warns(dc.ConvergenceWarning, match="values moved by"):
        fit = dc.DeepPQR(spec(), rows, regressor=Noisy(), folds=2, rounds=3).fit()
    assert not fit.converged and "NOT CONVERGED" in str(fit.summary)
    with pytest.raises(dc.ConvergenceError):
        dc.DeepPQR(spec(), rows, regressor=Noisy(), folds=2, rounds=3).fit(strict=True)


class NoWeights(Means):
    def fit(self, X, y):
        return super().fit(X, y)


class Wrong(Means):
    def predict(self, X):
        return np.full(len(X), np.nan)


class WrongShares(Means):
    def predict_proba(self, X):
        return -self.share[self._at(X)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regressor": Means}, "the class Means"),
        ({"regressor": 3}, "it lacks fit, predict"),
        ({"regressor": Means(), "classifier": 3}, "classifier=3"),
        ({"regressor": Means(), "folds": 1}, "folds=1"),
        ({"regressor": Means(), "folds": 10**6}, "number of members"),
        ({"regressor": Means(), "rounds": 0}, "rounds=0"),
        ({"pairs": "yes"}, "pairs='yes'"),
        ({"support": "a"}, "support='a'"),
        ({"classifier": Means()}, "classifier= goes with a regressor="),
        ({"folds": 3}, "folds= goes with a regressor="),
        ({"regressor": Wrong()}, "not finite"),
        ({"regressor": Means(), "classifier": WrongShares()}, "no probabilities"),
    ],
)
def test_bad_learners_are_named(rows, options, message):
    with pytest.raises(dc.DynChoiceError, match=message):
        dc.DeepPQR(spec(), rows, **options).fit()


def test_weights_reach_learners_that_take_them():
    frame = chain(4)
    frame["w"] = 1.0 + (frame["id"] % 2)
    weighted = loaded(frame, ["hours"], weights="w")
    options = {"degree": 1, "folds": 2, "rounds": 3}
    fit = dc.DeepPQR(spec(), weighted, regressor=Means(5), **{**options, "rounds": 30}).fit()
    assert fit.converged and fit.nobs == frame["w"].sum()
    with pytest.raises(dc.SpecificationError, match="takes no sample_weight"):
        dc.DeepPQR(spec(), weighted, regressor=NoWeights(5), **options).fit()
    with pytest.raises(dc.SpecificationError, match="not valid in general"):
        dc.DeepPQR(spec(), weighted, regressor=Means(), **options).fit(cov_type="bootstrap")


# errors on rows ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.TDCCP, dc.GLADIUS])
def test_bootstrap_agrees_with_influence(line, kind):
    own = loaded(members_on(line, 800, 8, 9), ["hours"])
    plain = kind(spec(), own).fit()
    boot = kind(spec(), own).fit(cov_type="bootstrap", draws=60, seed=0)
    assert (boot.params == plain.params).all() and boot.bootstrap.shape == (60, 3)
    assert (boot.std_errors / plain.std_errors).between(0.7, 1.4).all()
    assert boot.conf_int(method="percentile").notna().all(axis=None)
    with pytest.raises(dc.SpecificationError, match="draws=3"):
        kind(spec(), own).fit(cov_type="bootstrap", draws=3)


def test_a_weight_is_as_many_members_to_the_bootstrap(line):
    """Nine of every member: errors a third as large, by influence and by bootstrap."""
    frame = members_on(line, 300, 6, 9).assign(w=9.0)
    own = loaded(frame, ["hours"], weights="w")
    boot = dc.DeepPQR(spec(), own).fit(cov_type="bootstrap", draws=40, seed=0)
    assert (boot.std_errors / dc.DeepPQR(spec(), own).fit().std_errors).between(0.6, 1.5).all()


@pytest.mark.parametrize("kind", [dc.DeepPQR, dc.TDCCP])
def test_errors_by_region_are_sums_of_members(line, kind):
    frame = members_on(line, 600, 8, 9)
    frame["where"] = "r" + (frame["id"] % 20).astype(str)
    own = loaded(frame, ["hours"], region="where")
    by_member, by_region = kind(spec(), own).fit(), kind(spec(), own).fit(cluster="region")
    assert by_region.cov_config["clusters"] == 20 and by_region.influence.shape == (20, 3)
    code = np.array([int(r[1:]) for r in frame.drop_duplicates("id").sort_values("id")["where"]])
    sums = np.stack([by_member.influence[code == k].sum(axis=0) for k in range(20)])
    assert np.allclose(sums.T @ sums, by_region.cov, rtol=1e-8)
    with pytest.raises(dc.SpecificationError, match="names no column"):
        kind(spec(), loaded(frame, ["hours"])).fit(cluster="region")
    frame.loc[frame.index[5], "where"] = "elsewhere"
    with pytest.raises(dc.DataError, match="changes or is missing for 1 member"):
        loaded(frame, ["hours"], region="where")
    frame["where"] = np.where(frame["id"] == 3, None, "here")
    with pytest.raises(dc.DataError, match="first: member 3"):
        loaded(frame, ["hours"], region="where")


# values that are none ----------------------------------------------------------------------------


def test_a_regression_that_would_diverge_is_refused():
    """Baird's star: off the anchor's rows the projected law grows; no value is printed."""
    rng, rows = np.random.default_rng(0), []
    for m in range(400):
        rows += [(m, 0, 1.0, "out"), (m, 1, 2.5 + 0.1 * rng.random(), "in")]
        rows += [(m, 2, rng.random(), "more"), (m, 3, 1.0, "out"), (m, 4, 2.5, "in")]
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["id", "t", "hours", "plan"])
    model = spec(features=lambda t: np.stack([0 * t[["hours"]], 1 + 0 * t[["hours"]],
                                              0 * t[["hours"]]], axis=1), names=["in"])  # fmt: skip
    from dynchoice.estimate.rewards.rows import ValueSystem

    M, N = np.array([[1.0]]), np.array([[2.5]])
    with pytest.raises(dc.IdentificationError, match="not below one"):
        ValueSystem.of(M, N, 0.9, "values")
    assert ValueSystem.of(M, N, 0.3, "values").radius == 2.5
    # on the anchor's rows hours never vary: the column is left out, and that is said
    data = loaded(frame, ["hours"])
    fit = dc.DeepPQR(model, data, degree=1).fit()
    assert any("1 of 2 columns" in n for n in fit.notes)


def test_rows_without_a_next_one_are_named(line):
    frame = members_on(line, 200, 1, 0)
    for kind in (dc.DeepPQR, dc.GenPQR, dc.TDCCP):
        with pytest.raises(dc.DataError, match="none of 200 rows has a next row"):
            kind(spec(), loaded(frame, ["hours"]))


def test_weights_that_change_within_a_member_are_refused():
    frame = chain(0).assign(w=1.0)
    frame.loc[3, "w"] = 2.0
    with pytest.raises(dc.DataError, match="of 1 member"):
        loaded(frame, weights="w")


def test_genpqr_without_a_future_is_the_log_odds(line):
    """At beta = 0 the reward is the log odds whatever the sieve."""
    own = loaded(members_on(line, 1500, 4, 2), ["hours"])
    fits = [k(spec(beta=0.0), own, degree=2).fit() for k in (dc.DeepPQR, dc.GenPQR)]
    table = own.frame().head(100)
    p = fits[0].predict(table)
    odds = np.log(p).sub(np.log(p[CHOICES[0]]), axis=0)
    for fit in fits:
        assert np.allclose(fit.reward(table), odds, atol=1e-8)
