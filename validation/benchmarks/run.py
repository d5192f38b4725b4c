"""Speed: ours against econirl and plain scipy in one run, scaling in S and N, cold start.

    python validation/benchmarks/run.py [--quick]

The speed rows of small and medium models; ``report.py`` runs this and all others. econirl is
measured where it is installed (``pip install econirl``); it is not needed.
Times are process CPU seconds, one BLAS thread, median of the repeats: read ratios.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))
from common import Study, main
from models import bus_model, cpu, draw_counts, plain_scipy, plan_model

import dynchoice as dc
from dynchoice.estimate.choice_probabilities import pooled
from dynchoice.estimate.npl import npl
from dynchoice.solvers.linear import one_blas_thread

BUS_TRUTH = np.array([10.0750, 2.2930])


def rust(study: Study, repeats: int) -> None:
    """Rust's groups 4 and 1-4 on the real panel, and plain scipy on the same counts."""
    spec = HERE.parent / "rust1987" / "run.py"
    import importlib.util

    loader = importlib.util.spec_from_file_location("rust1987_run", spec)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    for groups, bins, promise in (("4", 90, 0.005), ("1-4", 175, 0.015)):
        panel = module.bus_panel(module.GROUPS[groups], bins)
        model = module.bus_model(bins, 0.9999, module.MAX_STEP[bins, groups])
        estimator = dc.NFXP(model, panel)
        fit = estimator.fit(strict=True)
        ours = cpu(lambda e=estimator: e.fit(), repeats)
        n = panel.counts.n_sj()
        plain = cpu(lambda m=fit.model, n=n: plain_scipy(m, n, np.array([8.0, 1.0])), 3)
        gap = np.abs(plain_scipy(fit.model, n, np.array([8.0, 1.0]))[0] - fit.theta).max()
        study.say(
            f"NFXP, Rust groups {groups}, {bins} bins: dynchoice {1e3 * ours:.1f} ms (promise"
            f" {1e3 * promise:.0f}), plain scipy {1e3 * plain:.0f} ms, ratio {plain / ours:.1f};"
            f" estimates differ by {gap:.1e}"
        )
        study.check(f"Rust {groups}, {bins} bins, ms", 1e3 * ours, 0, 1e3 * promise, "design.md 6")
        nested_pseudo_likelihood(study, model, panel, fit, ours, repeats)


def nested_pseudo_likelihood(
    study: Study, model: dc.DDC, panel: dc.Panel, fit: dc.Results, nfxp: float, repeats: int
) -> None:
    """NPL on the same counts: the iterations to the fixed point, and the whole fit."""
    estimator = dc.NPL(model, panel)
    whole = cpu(lambda: estimator.fit(), repeats)
    n = panel.counts.n_sj()
    start = pooled(n, fit.model.available)

    def iterations() -> object:
        with one_blas_thread():
            return npl(fit.model, n, start, 1e-8, 100)

    bare = cpu(iterations, repeats)
    gap = np.abs(estimator.fit().theta - fit.theta) / fit.std_errors.to_numpy()
    study.say(
        f"NPL to convergence: iterations {1e3 * bare:.1f} ms (promise 2, Rust group 4), with"
        f" covariance and results {1e3 * whole:.1f} ms, NFXP {1e3 * nfxp:.1f} ms in the same run;"
        f" {gap.max():.1e} standard errors from NFXP"
    )
    if model.states.size == 90:
        study.check("NPL iterations, Rust 4, ms", 1e3 * bare, 0, 2, "design.md 6")
    study.check("NPL from NFXP, standard errors", gap.max(), 0, 1e-6, "theory")


def econirl(study: Study) -> None:
    """econirl's NFXP on a simulated bus panel of 90 states, the same rows as ours."""
    try:
        from econirl.core.reward_spec import RewardSpec
        from econirl.estimators import NFXP as Rival
    except ImportError as error:
        study.say(f"econirl is not installed here ({error}): pip install econirl to compare")
        return
    model = bus_model(90, 0.9999, [0.39, 0.6, 0.01])
    paths = dc.simulate(
        model, params=BUS_TRUTH, members=50, periods=120, seed=1, start=np.zeros(50, dtype=int)
    )
    frame = paths.frame()
    panel = dc.Panel(
        frame,
        member="member",
        time="period",
        choice="choice",
        states=model.states,
        choices=model.choices,
    )
    estimator = dc.NFXP(model, panel)
    ours, fit = cpu(lambda: estimator.fit(), 5), estimator.fit(cov_type="unadjusted")
    rows = pd.DataFrame(
        {
            "bus": paths.states.shape[1] * 0 + np.repeat(np.arange(50), 120),
            "state": paths.states.reshape(-1),
            "action": paths.choices.reshape(-1),
        }
    )
    features = np.zeros((90, 2, 2))
    features[:, 1, 0], features[:, 0, 1] = -1, -0.001 * np.arange(90)
    tensor = np.ascontiguousarray(model.transitions.dense().transpose(1, 0, 2))

    def rival() -> object:
        spec = RewardSpec(features, names=["RC", "theta11"])
        return Rival(n_states=90, n_actions=2, discount=0.9999, utility=spec).fit(
            rows, state="state", action="action", id="bus", transitions=tensor
        )

    start = time.process_time()
    found = rival()
    cold = time.process_time() - start
    start = time.process_time()
    rival()
    warm = time.process_time() - start
    theirs = [found.params_["RC"], found.params_["theta11"]]
    gap = np.abs((np.array(theirs) - fit.params) / fit.std_errors).max()
    study.say(
        f"NFXP, simulated bus panel of 6,000 rows, 90 states: dynchoice {1e3 * ours:.1f} ms,"
        f" econirl {warm:.2f} s warm ({cold:.1f} s cold), ratio {warm / ours:.0f}; estimates differ"
        f" by {gap:.1e} standard errors"
    )
    study.check("econirl at least 100 times slower", float(warm / ours > 100), 1, 0, "ratio")


def plan(study: Study, quick: bool) -> None:
    """The plan model by size, against plain scipy."""
    lines = [
        f"{'states':>7} {'dynchoice s':>12} {'plain scipy s':>14} {'ratio':>6} {'apart, se':>10}"
    ]
    for tenure, usage in ((6, 6), (12, 14), (18, 19), *(() if quick else ((40, 42), (56, 60)))):
        model, theta = plan_model(tenure, usage)
        counts = draw_counts(model, theta, 100_000)
        estimator = dc.NFXP(model, counts)
        ours, fit = cpu(lambda e=estimator: e.fit(), 3), estimator.fit(cov_type="unadjusted")
        n = counts.n_sj()
        start = time.process_time()
        theirs = plain_scipy(model, n, np.zeros(8))[0]
        plain = time.process_time() - start
        apart = float(np.abs((theirs - fit.params) / fit.std_errors).max())
        S = model.states.size
        lines.append(f"{S:>7,} {ours:>12.3f} {plain:>14.2f} {plain / ours:>6.1f} {apart:>10.1e}")
        if S == 5040:
            study.check("plan model, 5,040 states, s", ours, 0, 1.2, "design.md 6")
    study.say("NFXP, 3 plans x tenure x usage, 8 parameters, 100,000 rows\n" + "\n".join(lines))
    model, theta = plan_model(12, 14)
    lines = []
    for total in (10**4, 10**6, 10**8):
        estimator = dc.NFXP(model, draw_counts(model, theta, total))
        lines.append(f"{total:>12,} rows: {1e3 * cpu(lambda e=estimator: e.fit(), 5):6.1f} ms")
    study.say("NFXP, 504 states, by number of rows (counted before)\n" + "\n".join(lines))


def forecasts(study: Study) -> None:
    """24 months ahead on 5,040 states, against simulating 100,000 members."""
    from dynchoice.counterfactuals.engine import Engine
    from dynchoice.counterfactuals.roll_forward import Dates, follow, phases

    model, theta = plan_model(40, 42)
    with one_blas_thread():
        engine = Engine(model, theta)
    mu = engine.blocks.blocked(np.full(model.states.size, 1 / model.states.size))
    now = engine, engine.base, theta

    def push() -> object:
        """What dc.forecast does for one scenario and draw once the policy is solved."""
        listed, _ = phases(now, now, None, Dates(1), 24)
        return follow(engine, listed, mu, None, {}, None)

    exact = cpu(push, 15)
    simulated = cpu(lambda: dc.simulate(model, params=theta, members=100_000, periods=24), 1) - cpu(
        lambda: dc.solve(model, theta), 2
    )
    study.say(
        f"forecast of 24 months, 5,040 states, take-up and flows: {1e3 * exact:.2f} ms a scenario;"
        f" simulating 100,000 members {1e3 * simulated:.0f} ms"
    )
    study.check("forecast, 24 x 5,040, ms", 1e3 * exact, 0, 2.0, "design.md 6")


def cold_start(study: Study) -> None:
    """Import, help, and the first small fit in a fresh process: kernels kept, none, not wanted.

    With bytecode, as every installed package has it.
    """
    fit = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import numpy as np; from models import *;"
        "m = bus_model(90, .9999, [.39, .6, .01]);"
        "c = draw_counts(m, np.array([10., 2.3]), 4000); dc.NFXP(m, c).fit(strict=True)"
    )
    # without pandas and formulas, which take 0.6 s to import
    arrays = (
        "import numpy as np, dynchoice as dc; from dynchoice.panel.counts import Counts;"
        "S = 90; states = dc.StateSpace(mileage=range(S)); x = np.zeros((S, 2, 2));"
        "x[:, 0, 0] = -0.001 * np.arange(S); x[:, 1, 1] = -1;"
        "law = dc.Increment(2, 'replace', probabilities=[.39, .6, .01], after_reset=1);"
        "F = dc.Transitions.factored(states, ['keep', 'replace'], {'mileage': law});"
        "u = dc.Utility.from_array(x, ['kept', 'RC']);"
        "m = dc.DDC(states=states, choices=['keep', 'replace'], utility=u, transitions=F,"
        " beta=.9999); P = dc.solve(m, [2.3, 10.]).ccp; mu = np.full(S, 1 / S);\n"
        "for _ in range(60): mu = F.push(mu[:, None] * P)\n"
        "n = np.random.default_rng(0).multinomial(4000, (mu[:, None] * P).ravel()).reshape(S, 2);"
        "s, j = np.nonzero(n); z = 0 * s; k = n[s, j].astype(float);"
        "c = Counts(states=states, choices=m.choices, segments=('all',), buckets=200,"
        " cells=np.stack([z, s, s, j, z - 1, z + 1], 1), n=k, period_cells=np.stack([z, z, s, j,"
        " z + 1], 1), period_n=k, segment_members=np.array([4000.]));"
        "dc.NFXP(m, c).fit(strict=True)"
    )
    commands = {
        "import dynchoice": ["-c", "import dynchoice"],
        "dynchoice --help": ["-m", "dynchoice", "--help"],
        "first small fit": ["-c", fit],
        "first small fit from arrays": ["-c", arrays],
    }
    with TemporaryDirectory() as folder:
        os.environ |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
        bare = min(wall([sys.executable, "-c", "pass"]) for _ in range(5))
        for what, promise in (
            ("import dynchoice", 0.1),
            ("dynchoice --help", 0.1),
            ("first small fit", 1.2),
            ("first small fit from arrays", 1.2),
        ):
            command = [sys.executable, *commands[what]]
            wall(command)
            seconds = min(wall(command) for _ in range(5)) - (bare if promise == 0.1 else 0)
            study.say(f"{what}: {seconds:.3f} s wall (promise {promise})")
            study.check(f"{what}, s", seconds, 0, promise, "design.md 6")
        first = [sys.executable, "-c", fit]
        study.say(
            f"of a first small fit, imports of other packages: {imports(first):.2f} s (of an import"
            " with its clock on, which is a little slower)"
        )
        lines = [f"{'states':>7} {'compiled, kept':>15} {'compiled':>10} {'not compiled':>13}"]
        for bins in (90, 300, 900):
            given = [sys.executable, "-c", fit.replace("90,", f"{bins},", 1)]
            plain = min(wall(given, NUMBA_DISABLE_JIT="1") for _ in range(3))
            none = min(wall(given, DYNCHOICE_CACHE=f"{folder}/{bins}/{i}") for i in range(2))
            kept = min(wall(given) for _ in range(3))
            lines.append(f"{bins:>7,} {kept:>15.2f} {none:>10.2f} {plain:>13.2f}")
            if bins == 90:
                study.check("small fit, not compiled, over compiling", plain / none, 0, 1, "ratio")
        study.say(
            "first fit of a process, s wall (NUMBA_DISABLE_JIT=1: nothing compiled)\n"
            + "\n".join(lines)
        )


def wall(command: list[str], **setting: str) -> float:
    """Wall seconds of a fresh process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **setting})
    return time.perf_counter() - start


def imports(command: list[str]) -> float:
    """Seconds that a command spends importing what is not ours."""
    python, *rest = command
    done = subprocess.run(
        [python, "-X", "importtime", *rest], check=True, capture_output=True, text=True
    )
    rows = [line.split("|") for line in done.stderr.splitlines() if "|" in line][1:]
    theirs = [r for r in rows if not r[2].strip().startswith("dynchoice")]
    return sum(int(r[0].split(":")[1]) for r in theirs) / 1e6


def run(quick: bool) -> Study:
    """All benchmarks."""
    study = Study("benchmarks")
    rust(study, 5 if quick else 31)
    plan(study, quick)
    forecasts(study)
    cold_start(study)
    if not quick:
        econirl(study)
    return study


if __name__ == "__main__":
    main(run)
