"""What the package answers to fixed questions, kept so that no rewrite changes it.

    PYTHONPATH=tests python -m frozen          # compare with what is kept, to the bit
    PYTHONPATH=tests python -m frozen --keep   # keep today's answers: say why in the commit

``tests/data/answers.npz`` holds numbers, ``run.json`` the digest of every file of one published
run and the machine that made both. Another machine (libraries, processor) may differ in the last
bits, so there the numbers are compared to 1e-7 and the bytes of the run are not.
``saved/`` holds one file of each kind of result as version 0.1.0 saved it. They must load for ever:
new kinds are added, none is written again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pandas as pd

import dynchoice as dc

HERE = Path(__file__).resolve().parent / "data"
ANSWERS, RUN, SAVED = HERE / "answers.npz", HERE / "run.json", HERE / "saved"
PRIME = Path(__file__).resolve().parents[1] / "data" / "prime"

Answer = dict[str, np.ndarray]


def machine() -> str:
    """Return a digest of what the last bits of a number depend on."""
    import platform

    from numpy._core._multiarray_umath import __cpu_features__

    from dynchoice.run.manifest import versions

    parts = [platform.machine(), sorted(k for k, on in __cpu_features__.items() if on)]
    return hashlib.sha256(json.dumps([parts, dict(versions())]).encode()).hexdigest()


def numbers(table: pd.DataFrame) -> np.ndarray:
    """Return the numeric columns of a table, in their order."""
    return table.select_dtypes("number").to_numpy(dtype=np.float64)


def estimates(fit: Any) -> Answer:
    """Return what a fit says."""
    return {
        "params": fit.params.to_numpy(),
        "std_errors": fit.std_errors.to_numpy(),
        "loglik": np.array(fit.loglik),
    }


def small() -> tuple[builders.Membership, dc.Panel]:
    """Return the small membership model of the contract test, with its panel."""
    membership = builders.small_membership(members=600, periods=8, seed=3)
    return membership, builders.membership_panel(membership, membership.frame)


def recount() -> Answer:
    """Return digests of the counts of the sample, by every kind of cell."""
    from dynchoice.run.config import load_run

    counts = load_run(PRIME / "run.toml").panel().counts
    exact = {
        name: hashlib.sha256(np.ascontiguousarray(getattr(counts, name)).tobytes()).digest()
        for name in ("cells", "n", "period_cells", "period_n")
    } | {"digest": bytes.fromhex(counts.digest)}
    return {name: np.frombuffer(value, dtype=np.uint8) for name, value in exact.items()}


def nfxp() -> Answer:
    """Return NFXP's estimates of the small model, in every covariance, and its scores' Hessian."""
    membership, panel = small()
    fit = dc.NFXP(membership.unknown, panel).fit()
    out = estimates(fit) | {"hessian": fit.hessian, "ccp": fit.ccp, "V": fit.solution.V}
    for kind in ("unadjusted", "opg", "robust"):
        out[kind] = dc.NFXP(membership.unknown, panel).fit(cov_type=kind).cov.to_numpy()
    joint = dc.NFXP(membership.unknown, panel, transitions="joint").fit()
    return out | {f"joint {k}": v for k, v in estimates(joint).items()}


def ccpem() -> Answer:
    """Return two types by EM, their shares and who probably is what."""
    membership, panel = small()
    fit = dc.CCPEM(membership.unknown, panel, types=2, varying=["member"]).fit(seed=1)
    ahead = dc.forecast(fit, start=panel, periods=3, draws=10, by="type")
    return estimates(fit) | {"posteriors": fit.posteriors, "take_up": numbers(ahead.take_up)}


def tables(forecast: dc.Forecast) -> Answer:
    """Return every table of a forecast as numbers."""
    names = ("take_up", "flows", "welfare", "outcomes", "long_run")
    found = {name: getattr(forecast, name) for name in names}
    return {name: numbers(t) for name, t in found.items() if t is not None and len(t)}


def club() -> dc.Membership:
    """Return the programme of the README."""
    return dc.Membership(
        plans=[
            dc.Plan("monthly", 3.99),
            dc.Plan("annual", 23.99, periods=12, cancel="at renewal", features={"annual": 1}),
        ],
        benefits=[
            dc.Benefit("shipping"),
            dc.Benefit("video"),
            dc.Benefit("music"),
            dc.Benefit("grocery", given=("shipping",), by_bundle=True),
        ],
        costs=("joining cost", "switching cost"),
        menus={"old": {"monthly": 2.39, "annual": 17.99}, "new": {}},
        bundles={"no_grocery": {"grocery": 0}, "with_grocery": {}},
    )


def grandfathered() -> Answer:
    """Return a forecast of a membership with 50 draws: prices kept, a bundle, a plan, by region."""
    rows = pd.read_parquet(PRIME / "prime.parquet").query("segment == 'India rural'")
    names = {"member": "member", "time": "month", "plan": "plan", "contract": "contract"}
    programme = club()
    panel = programme.panel(rows, **names, region="region")
    fit = dc.NFXP(programme.model(), panel).fit()
    scenarios = [
        dc.Scenario("kept", prices={"annual": lambda p: 1.2 * p}, grandfathered=True, starts=3),
        dc.Scenario("until renewal", prices={"annual": 30.0}, grandfathered="contract"),
        dc.Scenario("grocery", offer={"bundle": "with_grocery"}, starts=4, announced=1),
        dc.Scenario(
            "quarterly", plans=dc.Plan("quarter", 9.0, periods=3, like="monthly"), drop="monthly"
        ),
        dc.Scenario("sale", prices={"monthly": 2.0}, starts=2, ends=4),
    ]
    ahead = dc.forecast(fit, scenarios, start=panel, periods=8, draws=50, long_run="bands")
    regions = dc.forecast(fit, scenarios[2], start=panel, periods=5, draws=0, by="region")
    welfare = dc.welfare(fit, scenarios[0], start=panel)
    point = dc.counterfactual(fit, scenarios[4])
    out = tables(ahead) | {f"region {k}": v for k, v in tables(regions).items()}
    return out | {
        "welfare of members": numbers(welfare.table),
        "counterfactual": point.ccp,
        "elasticities": numbers(dc.elasticities(fit, start=panel).table),
    }


MOVES = ("manifest.json", ".stages")
"""Files of a run that hold times."""


def published_run(folder: Path) -> Path:
    """Publish a run of a tenth of the sample in a folder and return where."""
    from dynchoice.run import cli

    for name in ("run.toml", "contract.csv", "attributes.csv"):
        shutil.copy(PRIME / name, folder)
    panel = pd.read_parquet(PRIME / "prime.parquet")
    panel[panel["member"] % 10 == 0].to_parquet(folder / "prime.parquet")
    fast = ["--set", "forecast.draws=5", "--set", "forecast.periods=8", "--quiet"]
    assert cli.main(["forecast", str(folder / "run.toml"), *fast]) == 0
    return (folder / "out" / "current").resolve()


def digests(published: Path) -> dict[str, str]:
    """Return the sha256 of every file of a published run that holds no time of day.

    The report names a digest of its inputs, the package's code among them: it is left out. Of a
    saved fit it is the content that counts, not the order in which its fields stand.
    """
    found = sorted(p for p in published.rglob("*") if p.is_file())
    named = {p.relative_to(published).as_posix(): p for p in found}
    return {
        name: content_digest(path) if path.suffix == ".npz" else file_digest(path)
        for name, path in named.items()
        if not name.startswith(MOVES)
    }


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, without the digest of its inputs that it may name."""
    content = re.sub(rb"digest [0-9a-f]{32}", b"digest", path.read_bytes())
    return hashlib.sha256(content).hexdigest()


def content_digest(path: Path) -> str:
    """Return the sha256 of the fields of a saved fit, by name."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    h = hashlib.sha256()

    def add(where: str, node: Any) -> None:
        if isinstance(node, dict) and "__array__" in node:
            array = arrays[node["__array__"]]
            h.update(f"{where} {array.dtype} {array.shape}".encode() + array.tobytes())
        elif isinstance(node, dict | list):
            items = sorted(node.items()) if isinstance(node, dict) else enumerate(node)
            for key, value in items:
                add(f"{where}/{key}", value)
        else:
            h.update(f"{where} {node!r}".encode())

    add("", json.loads(str(arrays["skeleton"])))
    return h.hexdigest()


def run_tables(published: Path) -> Answer:
    """Return the numbers of a published run's tables."""
    return {p.stem: numbers(pd.read_parquet(p)) for p in sorted(published.glob("*.parquet"))}


def kinds() -> dict[str, Callable[[], Any]]:
    """Return how each kind of file is made: something with a ``save``."""
    from estimate.test_eccp import as_panel, sampled
    from estimate.test_pqr_rows import chain, loaded, spec

    membership, panel = small()
    model, rows = membership.unknown, loaded(chain(0))
    renewals, frame = sampled(0)
    market = dc.ECCP(renewals, as_panel(frame))
    return {
        "NFXP": lambda: dc.NFXP(model, panel).fit(),
        "NFXP joint": lambda: dc.NFXP(model, panel, transitions="joint").fit(),
        "NFXP bootstrap": lambda: dc.NFXP(model, panel).fit(cov_type="bootstrap", draws=20, seed=1),
        "CCP": lambda: dc.CCP(model, panel).fit(),
        "NPL": lambda: dc.NPL(model, panel).fit(),
        "ECCP": market.fit,
        "CCPEM": lambda: dc.CCPEM(model, panel, types=2, varying=["member"]).fit(seed=1),
        "DeepPQR on levels": lambda: dc.DeepPQR(model, panel).fit(),
        "MCEIRL": lambda: dc.MCEIRL(model, panel).fit(),
        "DeepPQR on rows": lambda: dc.DeepPQR(spec(), rows, degree=1).fit(),
        "GenPQR on rows": lambda: dc.GenPQR(spec(), rows, degree=1).fit(),
        "GLADIUS on rows": lambda: dc.GLADIUS(spec(), rows, degree=1).fit(),
        "TDCCP": lambda: dc.TDCCP(spec(), rows, degree=1).fit(),
        "SAmQ": lambda: dc.SAmQ(spec(), rows, clusters=4, degree=1).fit(),
        "counts": lambda: panel.counts,
        "callouts": lambda: page(dc.Callouts),
        "layouts": lambda: dc.LayoutBandit({"top": ["a", "b"], "side": ["c", "d"]}, seed=1),
    }


def page(kind: Any) -> Any:
    """Return a small page of callouts that has learned from clicks."""
    items = pd.DataFrame({"item": ["a", "b", "c", "d"], "benefit": ["x", "x", "y", "y"]})
    made = kind(
        items, context={"plan": ["none", "annual"]}, terms=["1", "item", "benefit:plan"], slots=2,
        category="benefit", window=7, seed=1,
    )  # fmt: skip
    members = pd.DataFrame({"member": range(40), "plan": ["none", "annual"] * 20})
    log = made.decide(members).merge(members).assign(time=0.5)
    log["impression"] = range(len(log))
    clicks = pd.DataFrame({"impression": [0, 3, 8], "time": [0.6, 0.7, 0.9]})
    made.learn(log, clicks, batch="first", now=20.0)
    return made


def file_of(kind: str) -> Path:
    """Return where a kind's file of version 0.1.0 is."""
    return SAVED / f"{kind.replace(' ', '_')}.npz"


def loaded_kind(kind: str) -> Any:
    """Load a kind's file as its users do."""
    from dynchoice.panel.saved import load_counts

    readers = {
        "counts": load_counts, "callouts": dc.Callouts.load, "layouts": dc.LayoutBandit.load,
    }  # fmt: skip
    return readers.get(kind, dc.load)(file_of(kind))


def save_kinds() -> None:
    """Save a file of each kind that has none yet."""
    SAVED.mkdir(parents=True, exist_ok=True)
    for kind, make in kinds().items():
        if not file_of(kind).exists():
            made = make()
            if kind == "counts":
                from dynchoice.panel.saved import save_counts

                save_counts(made, file_of(kind))
            else:
                made.save(file_of(kind))


def answers_of_files() -> Answer:
    """Return what the saved fits say, once loaded."""
    out: Answer = {}
    for kind in kinds():
        found = loaded_kind(kind)
        if hasattr(found, "std_errors"):
            out |= {f"{kind}: {k}": v for k, v in estimates(found).items()}
        elif kind == "counts":
            out[f"{kind}: n"] = found.n
        else:
            model = found.models[0] if kind == "layouts" else found.model
            out[f"{kind}: mean"] = np.asarray(model.posterior.mean)
    return out


QUESTIONS: dict[str, Callable[[], Answer]] = {
    "recount": recount,
    "nfxp": nfxp,
    "ccpem": ccpem,
    "grandfathered": grandfathered,
    "saved files": answers_of_files,
}


def ask() -> dict[str, np.ndarray]:
    """Return all answers under ``question/name``."""
    return {f"{q}/{k}": v for q, answer in QUESTIONS.items() for k, v in answer().items()}


def main() -> int:
    """Compare with, or keep, the answers of this checkout."""
    if "--keep" in sys.argv:
        save_kinds()
    found = ask()
    with tempfile.TemporaryDirectory() as folder:
        published = published_run(Path(folder))
        found |= {f"run/{k}": v for k, v in run_tables(published).items()}
        files = digests(published)
    if "--keep" in sys.argv:
        np.savez_compressed(ANSWERS, **found)
        RUN.write_text(json.dumps({"machine": machine(), "files": files}, indent=1) + "\n")
        return 0
    kept, run = np.load(ANSWERS), json.loads(RUN.read_text())
    same = machine() == run["machine"]
    sys.stdout.write(f"machine {'as' if same else 'NOT as'} when the answers were kept\n")
    wrong = sorted(set(kept.files) ^ set(found))
    for name in sorted(set(kept.files) & set(found)):
        a, b = kept[name], found[name]
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            gap = np.nanmax(np.abs(a - b)) if a.shape == b.shape else "shapes"
            wrong.append(f"{name}: {gap}")
    wrong += sorted(
        f"{n}: bytes" for n in files | run["files"] if files.get(n) != run["files"].get(n)
    )
    sys.stdout.write(("\n".join(wrong) or "all answers equal to the bit") + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
