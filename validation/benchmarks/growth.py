"""How cost grows: in states, parameters, rows, segments; what the machine's limits leave.

    python validation/benchmarks/growth.py [--quick]

Factored models of 10,000 to 3.4 million states (contract levels x benefits x seasons, as in
``large.py``), plan models, and up to 500 segments. Growth exponents are slopes of log seconds on
log size. CPU seconds of one thread unless a line says wall.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))
from common import Study, main
from large import heavy, programme, seasonal
from models import cpu, draw_counts, plan_model

import dynchoice as dc
from dynchoice.estimate.likelihood import Likelihood
from dynchoice.kernels import core as kernels
from dynchoice.solvers import sweeps
from dynchoice.solvers.bellman import bellman_of
from dynchoice.solvers.linear import PolicySystem, one_blas_thread


def slope(sizes: list[float], seconds: list[float]) -> float:
    """Exponent of growth: the slope of log seconds on log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def in_states(study: Study, quick: bool) -> None:
    """A solution of factored models, from nothing, by sweeps."""
    sizes, seconds, lines = [], [], []
    for benefits in (5, 6) if quick else (5, 6, 7, 8, 9):
        club = programme(min(benefits, 8))
        model, theta = seasonal(club) if benefits == 9 else (club.model(), club.theta())
        took = cpu(lambda m=model, t=theta: dc.solve(m, t), 1 if benefits == 9 else 3)
        stats = dc.solve(model, theta).stats
        sizes.append(model.states.size)
        seconds.append(took)
        lines.append(
            f"{model.states.size:>9,} states: {1e3 * took:8.1f} ms, {stats['method']},"
            f" {stats['newton']} Newton steps, {stats['products']} products"
        )
    study.say("solution of factored models\n" + "\n".join(lines))
    growth = slope(sizes, seconds)
    last = slope(sizes[-2:], seconds[-2:])
    study.say(
        f"grows as states to the power {growth:.2f} over all sizes, {last:.2f} over the last two"
    )
    if not quick:
        # between the two largest, where it is worst: a fit over all sizes would flatter
        study.within("growth in states, two largest", last, 0, 1.25, "issue 5")


def in_parameters(study: Study, quick: bool) -> None:
    """An evaluation of the likelihood with its score, at several numbers of parameters."""
    model, theta = heavy(programme(6 if quick else 7))
    n = draw_counts(model, theta, 200_000).n_sj()
    threads, sweeps.free_threads = sweeps.free_threads, lambda: 1
    sizes, seconds, lines = [], [], []
    try:
        for K in (5, 10, model.shape[2]):
            x = np.ascontiguousarray(model.utility.x[:, :, :K])
            known = model.utility.offset + model.utility.x[:, :, K:] @ theta[K:]
            utility = dc.Utility.from_array(x, list(model.names[:K]), known)
            part = model.with_parts(utility=utility)
            likelihood = Likelihood(part, n)
            with one_blas_thread():
                likelihood.evaluate(theta[:K])
                begun = time.process_time()
                for step in (1e-3, 2e-3, 3e-3):
                    likelihood.evaluate(theta[:K] * (1 + step))
                took = (time.process_time() - begun) / 3
            sizes.append(K)
            seconds.append(took)
            lines.append(f"{K:>4} parameters: {1e3 * took:8.1f} ms")
    finally:
        sweeps.free_threads = threads
    study.say(
        f"likelihood and score, {model.states.size:,} states, warm\n" + "\n".join(lines)
        + f"\ngrows as parameters to the power {slope(sizes, seconds):.2f}"
    )  # fmt: skip
    study.within("growth in parameters", slope(sizes, seconds), 0, 1.1, "issue 5")


def in_members(study: Study) -> None:
    """A fit of the same model to more and more member-months."""
    model, theta = plan_model(16, 21)
    lines, seconds = [], []
    for rows in (10**4, 10**6, 10**8):
        counts = draw_counts(model, theta, rows)
        estimator = dc.NFXP(model, counts)
        seconds.append(cpu(lambda e=estimator: e.fit(cov_type="unadjusted"), 5))
        lines.append(f"{rows:>12,} rows: {1e3 * seconds[-1]:8.1f} ms")
    ratio = max(seconds) / min(seconds)
    study.say(
        f"NFXP, {model.states.size:,} states, by rows counted\n" + "\n".join(lines)
        + f"\nlargest over smallest: {ratio:.2f}"
    )  # fmt: skip
    study.within("fits do not grow with rows: ratio", ratio, 0, 2, "issue 5")


def in_segments(study: Study, quick: bool) -> None:
    """Segments fitted in one run, from the pooled estimate and without, one and two workers."""
    model, theta = plan_model(12, 14)
    rng = np.random.default_rng(0)
    most = 20 if quick else 500
    parts = []
    for m in range(most):
        counts = draw_counts(model, theta + rng.normal(0, 0.1, 8), 20_000, seed=m)
        parts.append(replace(counts, segments=(f"s{m:03d}",), _cache={}))
    while len(parts) > 1:  # by pairs: sums of sums cost the logarithm
        pairs = [sum(parts[i : i + 2]) for i in range(0, len(parts), 2)]
        parts = pairs
    whole = parts[0]

    def run(jobs: int, pooled: bool = True) -> tuple[float, dc.SegmentFits]:
        begun = time.perf_counter()
        fits = dc.fit_segments(model, whole, n_jobs=jobs, pooled=pooled, cov_type="unadjusted")
        return time.perf_counter() - begun, fits

    run(2)  # starts the workers
    one, first = run(1)
    two, second = run(2)
    cold, _ = run(1, pooled=False)
    same = all((first[m].params == second[m].params).all() for m in first)
    study.say(
        f"{most} segments x NFXP ({model.states.size:,} states, 8 parameters): {one:.1f} s wall by"
        f" one worker ({1e3 * one / most:.0f} ms a segment), {two:.1f} s by two; without the"
        f" pooled start {cold:.1f} s; {first}"
    )
    study.check("segments converge", first.converged, 1, 0, "own oracle")
    study.check("one and two workers, the same estimates", same, 1, 0, "own oracle")


def of_the_machine(study: Study, quick: bool) -> None:
    """The share of bandwidth and flops that the kernels of large models reach."""
    model, theta = programme(6 if quick else 8).model(), programme(6 if quick else 8).theta()
    with one_blas_thread():
        a = np.random.default_rng(0).normal(size=(1500, 1500))
        out = np.empty_like(a)
        peak = 2 * 1500**3 / cpu(lambda: np.dot(a, a, out), 3) / 1e9
        x, y = np.ones(20_000_000), np.ones(20_000_000)
        stream = 24 * x.size / cpu(lambda: np.add(x, y, out=y), 5) / 1e9
        system = PolicySystem(model.transitions, model.beta)
        bellman = bellman_of(model, system)
        u = bellman.laid(model.flow_utility(theta))
        h = np.zeros(model.states.size)
        if system.sweeps is None:
            study.say("this model is expanded: no sweeps to measure")
            return
        apply = cpu(lambda: bellman.apply(u, h), 5)
        bellman.hand_policy(system)
        law = system.sweeps.law
        v = np.random.default_rng(0).random((law.C, law.n))
        one, two = np.empty_like(v), np.empty_like(v)
        P = system.sweeps._P[0]
        sweep = cpu(lambda: law.sweep(0, v, P, one, two), 10)
        need, loops = law._halves[0][3], law.graph[-1]
        from dynchoice.model.level_product import INNER

        products = need.sum() + INNER * need[:, loops].sum()
        flops = products * 2 * law.n * (law.D + law.E)
        n, S, J = law.C * law.n, model.states.size, model.shape[1]
        moved = 8 * S * (J * 6 + 8)
        dlogp, K = np.random.default_rng(0).random((S, J, 12)), 12
        counts, score, outer = np.ones((S, J)), np.zeros(K), np.zeros((K, K))
        scoring = cpu(lambda: kernels.score_and_outer(counts, dlogp, score, outer), 3)
    study.say(
        f"of this machine, one thread (dgemm {peak:.0f} GFLOP/s, triad {stream:.0f} GB/s)\n"
        f"sweep over {n:,} states: {1e3 * sweep:.1f} ms, {flops / sweep / 1e9:.0f} GFLOP/s in"
        f" products of matrices ({flops / sweep / 1e9 / peak:.0%} of dgemm, the rest is memory)\n"
        f"Bellman operator: {1e3 * apply:.1f} ms, {moved / apply / 1e9:.1f} GB/s"
        f" ({moved / apply / 1e9 / stream:.0%}); its exponentials and logarithms are"
        f" {S * (J + 1) / apply / 1e6:.0f} million a second\n"
        f"score and outer product, {K} parameters: {1e3 * scoring:.1f} ms,"
        f" {S * J * K * (K + 1) / scoring / 1e9:.1f} GFLOP/s"
    )


def run(quick: bool) -> Study:
    """All of it."""
    study = Study("growth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        in_states(study, quick)
        in_parameters(study, quick)
        in_members(study)
        in_segments(study, quick)
        of_the_machine(study, quick)
    return study


if __name__ == "__main__":
    main(run)
