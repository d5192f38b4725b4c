"""Peers beside ours in one run: econirl, QuantEcon, statsmodels and xlogit.

    python validation/benchmarks/peers.py [--quick] [--env DIR]

Each peer is installed, at the version named below, into a virtual environment in DIR (made if it
is not there; by default a temporary one) and measured there by this same file in a process of its
own, which prints JSON. A peer that cannot be installed or run is reported as "not measured".
``--quick`` has fewer sizes and repeats and leaves out econirl, by far the largest to install.
CPU and wall seconds, median of the repeats after a warm-up, one thread on one core: read ratios.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))
from common import Study, end

# The peers' environment has no dynchoice (except for econirl, which runs beside ours in one
# process): functions that measure ours import it themselves.

PEERS = {"quantecon": "0.11.4", "statsmodels": "0.15.0", "xlogit": "0.2.7", "econirl": "0.1.1"}
SIZES = ((6, 6), (12, 14), (16, 21), (40, 42), (56, 60))
ROWS, CHOICES, GRID = 100_000, ("none", "monthly", "annual"), 10
SHARP = 1000
TRUTH = np.array([-0.5, 0.8, -0.4, 0.3, 0.2, -0.6, 0.5, 0.1])


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Median CPU and wall seconds of a call after one warm-up, and what it returned."""
    found = work()
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        found = work()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return float(np.median(cpu)), float(np.median(wall)), found


class Environment:
    """A virtual environment with the peers, and why some of them are not there."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.reasons: dict[str, str] = {}
        self.broken = "" if self.python.exists() else self._call(["-m", "venv", str(folder)])

    def install(self, peer: str) -> None:
        """Install one peer; econirl with what dynchoice needs, which it runs beside."""
        names = [f"{peer}=={PEERS[peer]}"]
        if peer == "econirl":
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg", encoding="utf-8")
            names += setup["options"]["install_requires"].split("\n")[1:]
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *names]
        reason = self.broken or self._call(pip, str(self.python))
        if reason:
            self.reasons[peer] = f"not installed: {reason}"

    def measure(self, study: Study, peer: str, *arguments: object) -> dict[str, Any] | None:
        """Return what the peer's process printed, or say why there is nothing."""
        reason = self.reasons.get(peer, "")
        if not reason:
            command = [str(Path(__file__).resolve()), "--peer", peer, *map(str, arguments)]
            printed: list[str] = []
            reason = self._call(command, str(self.python), printed)
        if not reason:
            return json.loads(printed[-1])
        study.say(f"{peer} {PEERS[peer]} not measured: {reason}")
        return None

    @staticmethod
    def _call(
        command: list[str], python: str = sys.executable, out: list[str] | None = None
    ) -> str:
        """Run a Python command of at most ten minutes; return why it failed, or nothing."""
        around = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                [python, *command], capture_output=True, text=True, timeout=600, env=around
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            return f"{type(error).__name__}: {error}"[:200]
        if out is not None:
            out += done.stdout.strip().splitlines()
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        return errors[-1][:200] if done.returncode else ""


# What the peers' processes run


def peer_quantecon(files: list[str], repeats: int) -> dict[str, Any]:
    """Policy iteration of DiscreteDP (hard maximum) on models in files."""
    from quantecon.markov import DiscreteDP
    from scipy.sparse import csr_matrix

    found = []
    for file in files:
        data = np.load(file)
        u, V, sharp = data["u"], data["V"], data["sharp"]
        S, J = u.shape
        law = csr_matrix((data["data"], data["indices"], data["indptr"]), shape=(S * J, S))
        s, j = np.divmod(np.arange(S * J), J)
        beta = float(data["beta"])
        build, _, problem = timed(
            lambda u=u, Q=law, b=beta, s=s, j=j: DiscreteDP(u.ravel(), Q, b, s, j), repeats
        )
        cpu, wall, result = timed(lambda p=problem: p.solve(method="policy_iteration"), repeats)
        above, near = V - result.v, sharp - result.v
        found.append(
            {
                "build": build,
                "cpu": cpu,
                "wall": wall,
                "steps": int(result.num_iter),
                "above": [float(above.min()), float(above.max())],
                "near": [float(near.min()), float(near.max())],
            }
        )
    return {"solves": found}


def peer_statsmodels(files: list[str], repeats: int) -> dict[str, Any]:
    """MNLogit by Newton, with standard errors, on rows in files."""
    import statsmodels.api as sm

    found = []
    for file in files:
        data = np.load(file)

        def fit(z: np.ndarray = data["z"], y: np.ndarray = data["y"]) -> dict[str, Any]:
            result = sm.MNLogit(y, z).fit(method="newton", disp=0)
            theta, se = np.asarray(result.params).T, np.asarray(result.bse).T
            return {
                "what": "statsmodels MNLogit, Newton",
                "theta": theta.ravel().tolist(),
                "se": se.ravel().tolist(),
                "loglik": float(result.llf),
            }

        cpu, wall, kept = timed(fit, repeats)
        found.append([{**kept, "cpu": cpu, "wall": wall}])
    return {"fits": found}


def peer_xlogit(files: list[str], repeats: int) -> dict[str, Any]:
    """MultinomialLogit on rows in files, and on their cells weighted by hand."""
    from xlogit import MultinomialLogit

    found = []
    for file in files:
        data = np.load(file)
        fits = []
        for what, z, y, weights in (
            ("xlogit, rows", data["z"], data["y"], None),
            ("xlogit, cells weighted by hand", data["cell_z"], data["cell_y"], data["cell_n"]),
        ):
            if weights is not None and len(y) == len(data["y"]):
                continue  # every row is a cell
            J = len(CHOICES)
            x = features(z).reshape(len(y) * J, -1)
            options = {
                "varnames": [f"theta{k}" for k in range(x.shape[1])],
                "alts": np.tile(np.arange(J), len(y)),
                "ids": np.repeat(np.arange(len(y)), J),
                "weights": None if weights is None else np.repeat(weights, J),
                "y": np.repeat(y, J),
                "verbose": 0,
            }

            def fit(x: np.ndarray = x, options: dict[str, Any] = options) -> Any:
                model = MultinomialLogit()
                model.fit(x, **options)
                return model

            cpu, wall, model = timed(fit, repeats)
            fits.append(
                {
                    "what": what,
                    "theta": model.coeff_.tolist(),
                    "se": model.stderr.tolist(),
                    "loglik": float(model.loglikelihood),
                    "cpu": cpu,
                    "wall": wall,
                }
            )
        found.append(fits)
    return {"fits": found}


def peer_econirl(files: list[str], repeats: int) -> dict[str, Any]:
    """``run.econirl`` as it is, keeping the times and estimates of both packages' fits."""
    import econirl.estimators as theirs
    import run

    fits, ours = [], []

    class Kept(theirs.NFXP):
        """Their estimator, whose fits are noted."""

        def fit(self, *args: Any, **options: Any) -> Any:
            start = time.process_time(), time.perf_counter()
            found = super().fit(*args, **options)
            fits.append(
                {
                    "cpu": time.process_time() - start[0],
                    "wall": time.perf_counter() - start[1],
                    "theta": [float(found.params_[k]) for k in ("RC", "theta11")],
                    "loglik": float(found.log_likelihood_),
                    "converged": bool(found.converged_),
                }
            )
            return found

    def keep(work: Callable[[], Any], times: int) -> float:
        """Stand in for ``run.cpu``, noting the fit."""
        cpu, wall, fit = timed(work, times)
        ours.append(
            {
                "cpu": cpu,
                "wall": wall,
                "theta": fit.theta.tolist(),
                "se": fit.std_errors.to_numpy().tolist(),
                "loglik": float(fit.loglik),
            }
        )
        return cpu

    theirs.NFXP, run.cpu = Kept, keep
    study = Study("econirl")
    run.econirl(study)
    versions = {"jax": version("jax"), "numpy": version("numpy")}
    return {"ours": ours[0], "fits": fits, "said": study.tables, "with": versions}


# What this process runs, and the tables


def bus(study: Study, there: Environment) -> None:
    """econirl's NFXP and ours on the same simulated bus panel, in one process of the peers'."""
    found = there.measure(study, "econirl", 1)
    if found is None:
        return
    ours, fits = found["ours"], found["fits"]
    lines = [
        f"{'':<22} {'cpu s':>9} {'wall s':>9} {'ratio':>6} {'log-likelihood':>15} {'apart':>8}"
    ]
    lines.append(
        f"{'dynchoice':<22} {ours['cpu']:>9.4f} {ours['wall']:>9.4f} {1:>6} {ours['loglik']:>15.6f}"
    )
    for what, fit in zip(("econirl, first fit", "econirl, second fit"), fits, strict=True):
        apart = np.abs(np.array(fit["theta"]) - ours["theta"]) / ours["se"]
        lines.append(
            f"{what:<22} {fit['cpu']:>9.3f} {fit['wall']:>9.3f} {fit['cpu'] / ours['cpu']:>6.0f}"
            f" {fit['loglik']:>15.6f} {apart.max():>8.1e}"
        )
        study.check(f"{what}: from ours, standard errors", apart.max(), 0, 0.01, "same estimator")
        gap = fit["loglik"] - ours["loglik"]
        study.check(f"{what}: log-likelihood less ours", gap, 0, 1e-3, "same estimator")
    study.say(
        "NFXP with standard errors, simulated bus panel, 90 states, beta .9999, 6,000 rows;"
        f" econirl {found['version']}, jax {found['with']['jax']}\n"
        "(econirl: single fits, the first compiles; apart: in standard errors; ratio: of CPU)\n"
        + "\n".join(lines)
    )
    study.say("run.py says: " + found["said"][0])


def solves(study: Study, there: Environment, folder: Path, quick: bool) -> None:
    """QuantEcon's policy iteration without taste shocks, and our solve with them."""
    from models import plan_model

    import dynchoice as dc

    repeats, files, ours = 3 if quick else 7, [], []
    for tenure, usage in SIZES[: 3 if quick else None]:
        model, theta = plan_model(tenure, usage)
        cpu, wall, found = timed(
            lambda m=model, t=theta: dc.solve(m, t, strict=True), min(repeats, 5)
        )
        indptr, indices, data = model.transitions.stacked()
        files.append(folder / f"plan{model.states.size}.npz")
        law = {"indptr": indptr, "indices": indices, "data": data}
        # with utilities times SHARP the shocks matter that much less
        sharp = dc.solve(model, SHARP * theta).V / SHARP
        u = model.flow_utility(theta)
        np.savez(files[-1], u=u, V=found.V, sharp=sharp, beta=model.beta, **law)
        ours.append((model, cpu, wall))
    found = there.measure(study, "quantecon", repeats, *files)
    theirs = [None] * len(ours) if found is None else found["solves"]
    lines = [
        f"{'':>7} {'dynchoice':^19} {'QuantEcon':^29} {'ours /':>7}\n"
        f"{'states':>7} {'cpu s':>9} {'wall s':>9} {'cpu s':>9} {'wall s':>9} {'build s':>9}"
        f" {'theirs':>7} {'steps':>6} {'V above theirs':>15}"
    ]
    for (model, cpu, wall), their in zip(ours, theirs, strict=True):
        S, J, _ = model.shape
        line = f"{S:>7,} {cpu:>9.4f} {wall:>9.4f}"
        if their is not None:
            low, high = their["above"]
            line += (
                f" {their['cpu']:>9.4f} {their['wall']:>9.4f} {their['build']:>9.4f}"
                f" {cpu / their['cpu']:>7.1f} {their['steps']:>6} {low:>7.2f} {high:>7.2f}"
            )
            # max <= logsum <= max + log J in every period: the same model, if these hold
            most = float(np.log(J) / (1 - model.beta) / SHARP)
            for end, above in zip(("least", "most"), their["near"], strict=True):
                what = f"{S} states, utilities x {SHARP}: V / {SHARP} above hard maximum, {end}"
                study.within(what, above, -1e-6, most, "theory")
        lines.append(line)
    study.say(
        "Bellman equation of the plan model. QuantEcon"
        f" {'' if found is None else found['version']} DiscreteDP solves a different and easier"
        " problem:\na hard maximum without taste shocks, where policy iteration has one choice a"
        " state and ends exactly.\n"
        "No choice probabilities come out of it, so it can estimate nothing: a yardstick of the"
        " linear algebra.\n" + "\n".join(lines)
    )


def features(z: np.ndarray) -> np.ndarray:
    """Covariates (n, 4) of a member as features (n, J, 8): own coefficients a choice."""
    x = np.zeros((len(z), len(CHOICES), 8))
    for j in (1, 2):
        x[:, j, 4 * (j - 1) : 4 * j] = z
    return x


def static(study: Study, there: Environment, folder: Path, quick: bool) -> None:
    """Beta of zero: the multinomial logit of statsmodels and xlogit."""
    repeats = 2 if quick else 5
    cases = ("grid",) if quick else ("grid", "own")
    ours, files = [], []
    for case in cases:
        files.append(folder / f"{case}.npz")
        ours.append(static_ours(case, files[-1], repeats))
    rivals = [there.measure(study, peer, repeats, *files) for peer in ("statsmodels", "xlogit")]
    lines = [
        f"{'':<38} {'':>8} {'':>8} {'cpu / ours':^16} {'':>18} {'apart':>8}\n"
        f"{'':<38} {'cpu s':>8} {'wall s':>8} {'fit':>8} {'with':>7} {'log-likelihood':>18}"
        f" {'se':>8}"
    ]
    for i, (case, (kinds, count, fit)) in enumerate(zip(cases, ours, strict=True)):
        lines.append(f"{kinds:,} distinct rows of covariates")
        lines.append(f"{'  dynchoice, counting rows, once':<38} {count[0]:>8.4f} {count[1]:>8.4f}")
        lines.append(
            f"{'  dynchoice, model and fit of counts':<38} {fit[0]:>8.4f} {fit[1]:>8.4f}"
            f" {1:>8} {'':>7} {fit[2].loglik:>18.8f}"
        )
        se = fit[2].std_errors.to_numpy()
        for rival in (r for r in rivals if r is not None):
            for their in rival["fits"][i]:
                apart = np.abs(np.array(their["theta"]) - fit[2].theta)
                gap = their["loglik"] - fit[2].loglik
                whole = f"{their['cpu'] / (count[0] + fit[0]):.2f}"
                if "by hand" in their["what"]:
                    whole = ""  # somebody has counted
                lines.append(
                    f"{'  ' + their['what']:<38} {their['cpu']:>8.4f} {their['wall']:>8.4f}"
                    f" {their['cpu'] / fit[0]:>8.2f} {whole:>7}"
                    f" {their['loglik']:>18.8f} {(apart / se).max():>8.1e}"
                )
                what = f"{their['what']} ({case})"
                study.check(f"{what}: log-likelihood less ours", gap, 0, 1e-6, "same likelihood")
                # xlogit stops once a step promises less than 1e-6 of log-likelihood
                bound = 1e-6 if "MNLogit" in what else 1e-5
                study.check(f"{what}: estimates", apart.max(), 0, bound, "same likelihood")
                ratio = np.abs(np.array(their["se"]) / se - 1).max()
                study.check(f"{what}: standard errors, relative", ratio, 0, 1e-4, "same formula")
    versions = ", ".join(f"{r['peer']} {r['version']}" for r in rivals if r is not None)
    study.say(
        f"static logit (beta 0), {ROWS:,} rows x 3 choices, 8 parameters, with standard errors;"
        f" {versions or 'no peer'}\n"
        "(with: our counting included; apart: in standard errors; above 1 we are faster)\n"
        + "\n".join(lines)
    )


def static_ours(case: str, file: Path, repeats: int) -> tuple[int, tuple, tuple]:
    """Draw rows, write them for the peers, count and fit them: kinds of rows and two times."""
    import pandas as pd

    import dynchoice as dc

    draw = np.random.default_rng(0)
    normal = draw.normal(size=(ROWS, 3))
    if case == "grid":
        states = dc.StateSpace(a=range(GRID), b=range(GRID), c=range(GRID))
        codes = np.clip(np.round(2 * normal + 4.5), 0, GRID - 1).astype(int)
        state = np.ravel_multi_index(tuple(codes.T), states.shape)
        levels = np.column_stack([np.ones(states.size), (states.frame().to_numpy() - 4.5) / 2])
        rows = {axis: codes[:, k] for k, axis in enumerate("abc")}
    else:
        states = dc.StateSpace(row=range(ROWS))
        state, levels = np.arange(ROWS), np.column_stack([np.ones(ROWS), normal])
        rows = {"row": state}
    x = features(levels)
    y = (x[state] @ TRUTH + draw.gumbel(size=(ROWS, len(CHOICES)))).argmax(axis=1)
    n = np.bincount(state * len(CHOICES) + y, minlength=states.size * len(CHOICES))
    cell_s, cell_y = np.divmod(np.flatnonzero(n), len(CHOICES))
    cells = {"cell_z": levels[cell_s], "cell_y": cell_y, "cell_n": n[n > 0].astype(float)}
    np.savez(file, z=levels[state], y=y, **cells)
    frame = pd.DataFrame({"member": np.arange(ROWS), "t": 0, **rows, "y": np.array(CHOICES)[y]})
    names = {"member": "member", "time": "t", "choice": "y"}
    count = timed(lambda: dc.Panel(frame, states=states, choices=CHOICES, **names), repeats)

    def fit() -> dc.Results:
        model = dc.DDC(
            states=states,
            choices=CHOICES,
            utility=dc.Utility.from_array(x, [f"theta{k}" for k in range(x.shape[2])]),
            transitions=dc.Transitions.factored(
                states, CHOICES, {axis: dc.Fixed() for axis in rows}
            ),
            beta=0.0,
        )
        return dc.NFXP(model, count[2]).fit(cov_type="unadjusted", strict=True)

    return int((n.reshape(-1, len(CHOICES)).sum(axis=1) > 0).sum()), count, timed(fit, repeats)


def run(quick: bool, env: Path | None) -> Study:
    """Install the peers, then measure them and ours."""
    study = Study("peers")
    with tempfile.TemporaryDirectory(prefix="dynchoice-peers-") as scratch:
        folder = Path(scratch)
        there = Environment(env.resolve() if env else folder / "env")
        start = time.perf_counter()
        for peer in PEERS:
            if peer == "econirl" and quick:
                there.reasons[peer] = "left out by --quick"
            else:
                there.install(peer)
        print(f"environment ready in {time.perf_counter() - start:.0f} s", flush=True)
        if hasattr(os, "sched_setaffinity"):  # one core for all: econirl's threads count too
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        solves(study, there, folder, quick)
        static(study, there, folder, quick)
        bus(study, there)
    return study


def main() -> None:
    """Read the command line; exit 4 if a claim fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats, no econirl")
    parser.add_argument("--env", type=Path, metavar="DIR", help="where peers are installed")
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer, repeats, *files = options.peer
        found = globals()[f"peer_{peer}"](files, int(repeats))
        print(json.dumps({"peer": peer, "version": version(peer), **found}))
        return
    end(run(options.quick, options.env))


if __name__ == "__main__":
    main()
