"""Many segments in one run: the same estimates for any number of workers, and failures told."""

import os
from dataclasses import replace
from multiprocessing import parent_process

import joblib
import numpy as np
import oracles
import pytest
from builders import from_oracle, simulated_counts

import dynchoice as dc
from dynchoice.errors import ConvergenceError, ConvergenceWarning, DataError, SpecificationError

SEGMENTS = 5


@pytest.fixture(scope="module")
def club():
    """A model, and counts of five segments whose members differ a little in taste."""
    spec = oracles.random_model(3, 12, 3, 3, 0.95, masks=False, attention=False)
    parts, truth = [], {}
    for m in range(SEGMENTS):
        own = {**spec, "params": spec["params"] + 0.1 * m}
        _, counts, _ = simulated_counts(own, 400, 10, seed=m)
        parts.append(replace(counts, segments=(f"s{m}",), _cache={}))
        truth[f"s{m}"] = own["params"]
    return from_oracle(spec), sum(parts), truth


class Deadly:
    """An estimator whose worker is killed at one segment (never in the test's own process)."""

    def __init__(self, model, counts):
        self.fits = dc.NFXP(model, counts)
        self.deadly = counts.segments[0] == "s2" and parent_process() is not None

    def fit(self, **options):
        if self.deadly:
            os._exit(9)
        return self.fits.fit(**options)


class Hasty:
    """An estimator that stops after a step from far away."""

    def __init__(self, model, counts):
        self.fits = dc.NFXP(model, counts)

    def fit(self, **options):
        return self.fits.fit(start=np.full(3, 4.0), maxiter=1, **options)


def refusing(model, counts):
    """An estimator that finds fault with one segment."""
    if counts.segments[0] == "s1":
        raise DataError("3 rows of this segment are impossible")
    return dc.NFXP(model, counts)


def same(a, b):
    assert list(a) == list(b)
    for m in a:
        assert (a[m].params == b[m].params).all() and (a[m].std_errors == b[m].std_errors).all()
        assert a[m].loglik == b[m].loglik and (a[m].value == b[m].value).all()


def test_each_segment_is_its_own_fit(club):
    model, counts, truth = club
    told = []
    fits = dc.fit_segments(model, counts, progress=lambda *a: told.append(a))
    assert fits.converged and fits.failed == {} and list(fits) == list(counts.segments)
    assert fits.pooled.converged and fits.pooled.nobs == counts.nobs
    for m in fits:
        alone = dc.NFXP(model, counts.segment(m)).fit()
        gap = np.abs(fits[m].params - alone.params) / alone.std_errors
        assert gap.max() < 1e-6 and fits[m].loglik == pytest.approx(alone.loglik, rel=1e-12)
        z = (fits[m].params.to_numpy() - truth[m]) / fits[m].std_errors
        assert np.abs(z).max() < 4
    status = fits.status
    assert status["converged"].all() and (status["seconds"] > 0).all()
    assert status["nobs"].sum() == counts.nobs
    assert fits.params.shape == fits.std_errors.shape == (SEGMENTS, 3)
    assert told[0][2] == "pooled estimate"
    assert [t[0] for t in told[1:]] == list(range(1, SEGMENTS + 1))
    assert str(fits) == "5 segments: 5 converged"
    cold = dc.fit_segments(model, counts, pooled=False)
    assert cold.pooled is None
    for m in fits:
        assert (np.abs(cold[m].params - fits[m].params) / fits[m].std_errors).max() < 1e-6


def test_any_number_of_workers_gives_the_same(club):
    model, counts, _ = club
    one = dc.fit_segments(model, counts, n_jobs=1)
    same(one, dc.fit_segments(model, counts, n_jobs=2))
    with joblib.parallel_config(n_jobs=2):
        same(one, dc.fit_segments(model, counts))


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_gives_the_same(club):
    if not os.environ.get("CI"):
        pytest.skip("a cluster takes 20 seconds to start: set CI=true")
    from distributed import Client, LocalCluster

    model, counts, _ = club
    one = dc.fit_segments(model, counts)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    dask = {"backend": "dask"}
    part = counts.segment("s0")
    bootstrap = {"cov_type": "bootstrap", "draws": 20, "seed": 1}
    errors = dc.NFXP(model, part).fit(**bootstrap).std_errors
    several = dc.NFXP(model, part).fit(starts=3, seed=1)
    easier = dc.Scenario("easier", params={"k0": lambda k: 1.1 * k})
    bands = {"start": part, "periods": 4, "draws": 20, "seed": 3}
    here = dc.forecast(one["s0"], easier, **bands).take_up
    with LocalCluster(**settings) as own, Client(own), joblib.parallel_config(**dask):
        same(one, dc.fit_segments(model, counts))
        assert (dc.NFXP(model, part).fit(**bootstrap, jobs=2).std_errors == errors).all()
        there = dc.NFXP(model, part).fit(starts=3, seed=1, jobs=2)
        assert (there.params == several.params).all()
        assert dc.forecast(one["s0"], easier, **bands, n_jobs=2).take_up.equals(here)


def test_starts_side_by_side_are_those_one_by_one(club):
    model, counts, _ = club
    part = counts.segment("s1")
    told = []
    one = dc.NFXP(model, part).fit(starts=3, seed=4, progress=lambda *a: told.append(a))
    two = dc.NFXP(model, part).fit(starts=3, seed=4, jobs=2)
    assert (one.params == two.params).all() and (one.cov == two.cov).all().all()
    for a, b in zip(one.optimization["starts"], two.optimization["starts"], strict=True):
        assert a["loglik"] == b["loglik"] and (a["params"] == b["params"]).all()
    assert [t[:2] for t in told if t[2].startswith("start ")] == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(SpecificationError, match="jobs=0 must be a whole number of at least 1"):
        dc.NFXP(model, part).fit(jobs=0)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_the_rest_kept(club):
    model, counts, _ = club
    with pytest.warns(ConvergenceWarning, match=r"5 segments: 4 converged, 1 not: s2 \(its worker"):
        fits = dc.fit_segments(model, counts, estimator=Deadly, n_jobs=2)
    assert list(fits) == ["s0", "s1", "s3", "s4"] and list(fits.failed) == ["s2"]
    assert np.isnan(fits.attempts["s2"].seconds) and not fits.converged
    with pytest.raises(KeyError, match="worker died"):
        fits["s2"]
    assert not fits.status.loc["s2", "converged"]
    alone = dc.fit_segments(model, counts, pooled=False)
    for m in fits:
        assert (fits[m].params == alone[m].params).all()


def test_a_segment_that_cannot_be_fitted_is_reported(club):
    model, counts, _ = club
    with pytest.warns(ConvergenceWarning, match="s1 .DataError: 3 rows of this segment"):
        fits = dc.fit_segments(model, counts, estimator=refusing)
    assert fits.attempts["s1"].error == "DataError" and len(fits) == 4
    with pytest.raises(ConvergenceError, match="4 converged, 1 not"):
        dc.fit_segments(model, counts, estimator=refusing, strict=True)


def test_fits_that_do_not_converge_say_so(club):
    model, counts, _ = club
    with pytest.warns(ConvergenceWarning, match="5 segments: 0 converged"):
        fits = dc.fit_segments(model, counts, estimator=Hasty)
    assert len(fits) == 5 and all("not converged" in text for text in fits.failed.values())


def test_what_makes_no_sense_is_refused(club):
    model, counts, _ = club
    with pytest.raises(SpecificationError, match="one segment"):
        dc.fit_segments(model, counts.segment("s0"))
    with pytest.raises(SpecificationError, match="pooled=False"):
        dc.fit_segments(model, counts, start=np.zeros(3))


def test_models_may_differ_by_segment_and_forecasts_take_the_fits(club):
    model, counts, _ = club
    asked = []

    def by_segment(label):
        asked.append(label)
        return model

    fits = dc.fit_segments(by_segment, counts)
    assert asked == list(counts.segments) and fits.pooled is None
    f = dc.forecast(fits, start=counts, periods=3, draws=0)
    assert set(f.take_up["segment"]) == {*fits, "all"}
