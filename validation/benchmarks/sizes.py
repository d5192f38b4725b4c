"""The largest forecast that issue 4 names: 43 contract levels x 32 engagement states x 20 offers x
5 types, 12 scenarios x 200 draws x 36 months, on two cores.

    python validation/benchmarks/sizes.py [--draws 200]

Every offer holds customers in every state, every scenario but one changes every offer, and every
draw is re-solved: nothing can be skipped. Wall seconds and the peak of memory of the process.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, end

import dynchoice as dc

SECONDS, GIGABYTES = 120, 4


def programme() -> dc.Membership:
    """The prototype with five menus, four bundles and five types."""
    club = dc.Membership.from_toml(HERE.parent / "primelike" / "prime_like.toml")
    menus = {f"m{i}": {"monthly": 12.99 + 0.8 * i, "annual": 119 + 7.0 * i} for i in range(5)}
    bundles = {
        "all": {},
        "no grocery": {"grocery": 0},
        "no gaming": {"gaming": 0},
        "half video": {"video": 0.5},
    }
    scale, upfront = (1.06, 0.95, 0.33, 0.6, 0.8), (0.0, 4.5, 2.0, 1.0, 3.0)
    types = {
        f"type {q}": dc.MemberType(
            0.2, scale[q], {"member": 0.1 - 0.04 * q, "paying upfront": upfront[q]}
        )
        for q in range(5)
    }
    return replace(club, menus=menus, bundles=bundles, types=types)


def scenarios() -> list[dc.Scenario]:
    """Twelve changes of several kinds."""
    return [
        dc.Scenario("annual 159", prices={"annual": 159}),
        dc.Scenario("monthly 17.99", prices={"monthly": 17.99}),
        dc.Scenario("all 10% off", prices={p: lambda x: 0.9 * x for p in ("monthly", "annual")}),
        dc.Scenario("announced", prices={"annual": lambda x: 1.1 * x}, starts=7, announced=4),
        dc.Scenario("no video", bundle={"video": 0}),
        dc.Scenario("gaming doubled", bundle={"gaming": 2}),
        dc.Scenario("shipping improved", bundle={"shipping": 1.2}),
        dc.Scenario("attention at trial end", attention={"trial": 1.0}),
        dc.Scenario("better callouts", engagement={"video": {"gain": 1.3}}),
        dc.Scenario("easier to join", params={"joining cost": lambda x: 0.5 * x}),
        dc.Scenario("simple cancel", params={"cancelling cost": lambda x: 0.5 * x}),
        dc.Scenario("everything everywhere", offer={"bundle": "all"}),
    ]


def assumed(model: dc.DDC, theta: np.ndarray) -> dc.Results:
    """A fit with standard errors of three per cent: what a forecast draws from."""
    spread = 0.03 * np.abs(theta) + 0.002
    n = np.zeros(model.shape[:2])
    return dc.Results(
        estimator="assumed", model=model, theta=theta, cov_matrix=np.diag(spread**2),
        cov_type="assumed", cov_config={}, loglik=float("nan"), loglik_null=float("nan"),
        nobs=1.0, nmembers=1, converged=True, message="assumed", optimization={}, counts=n,
        hessian=-np.diag(spread**-2.0), value=np.zeros(0), data_digest="", package_version="",
    )  # fmt: skip


def sizes(study: Study, draws: int = 200) -> None:
    """Measure the forecast at full size, or fewer draws for a trial."""
    club = programme()
    model = club.model()
    fits = {kind: assumed(model, club.theta(kind)) for kind in club.types}
    weights = np.random.default_rng(0).random(model.states.size)
    start = dict.fromkeys(fits, weights)
    begun = time.perf_counter()
    cpu = time.process_time()
    f = dc.forecast(
        fits, scenarios(), start=start, periods=36, draws=draws, n_jobs=2, long_run="none"
    )
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    study.say(
        f"{model.states.size:,} states x 5 types, 12 scenarios x {draws} draws x 36 months:"
        f" {seconds:.1f} s wall, {cpu:.1f} s of two cores, {peak:.2f} GB; {f.message}"
    )
    study.check("sizes: converged", f.converged, 1, 0, "own oracle")
    study.within("sizes: memory, GB", peak, 0, GIGABYTES, "issue 4")
    if draws >= 200:
        study.within("sizes: wall seconds", seconds, 0, SECONDS, "issue 4")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    found = Study("sizes")
    sizes(found, parser.parse_args().draws)
    end(found)
