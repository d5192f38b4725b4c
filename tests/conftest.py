"""Shared fixtures: strict numpy errors, one BLAS thread, kernels cached outside the source."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / "dynchoice-numba-cache"))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent


def compile_each_kernel_once():
    """Have a worker wait for a kernel that another one compiles, and read it from the cache.

    Two workers that start beside an empty cache would compile most kernels twice, which takes half
    a minute. A lock is a file of the kernel's name; a kernel is compiled with those it calls, and
    calls make no circle, so that no two workers wait for each other. Threads of a worker take
    numba's own lock first, for the same reason.
    """
    from filelock import FileLock
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.dispatcher import Dispatcher

    folder = Path(os.environ["NUMBA_CACHE_DIR"]) / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    alone = Dispatcher.compile

    def compile(self, sig):
        name = f"{self.py_func.__module__}.{self.py_func.__qualname__}".replace("<", "").strip(">")
        with global_compiler_lock, FileLock(folder / f"{name}.lock"):
            return alone(self, sig)

    Dispatcher.compile = compile


if "PYTEST_XDIST_WORKER" in os.environ:
    compile_each_kernel_once()


# modules and tests live until the end: a sixth of the time would go into looking for garbage among
# them (a quarter of a million objects, at every full collection)
gc.disable()


def pytest_collection_finish():
    """Leave what was imported and collected out of every later search for garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Leave slow tests to CI: the others take minutes, these as long again."""
    if os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason="slow: runs where CI=true")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def strict_numpy():
    # kernels wrap whole numbers round on purpose: without numba, numpy sees it
    over = "ignore" if os.environ.get("NUMBA_DISABLE_JIT") else "raise"
    with np.errstate(divide="raise", over=over, invalid="raise", under="ignore"):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that says why."""
    folder = Path(os.environ.get("DYNCHOICE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data are absent: set DYNCHOICE_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A forecast of the sample was made: limits in seconds are on answers, not on compiling."""
    import shutil

    from dynchoice.run import cli

    folder = tmp_path_factory.mktemp("compiled")
    for name in ("run.toml", "contract.csv", "attributes.csv"):
        shutil.copy(ROOT / "data" / "prime" / name, folder)
    panel = pd.read_parquet(ROOT / "data" / "prime" / "prime.parquet")
    panel[panel["member"] % 20 == 0].to_parquet(folder / "prime.parquet")
    quick = ["--set", "forecast.draws=0", "--set", "output.report=false"]
    quick += ["--set", "output.picture=false", "--quiet"]
    assert cli.main(["forecast", str(folder / "run.toml"), *quick]) == 0


@pytest.fixture(scope="session")
def membership():
    """A small three-plan model with a contract clock, its truth, and a simulated panel frame."""
    import builders

    return builders.small_membership()


@pytest.fixture(scope="session")
def fitted(membership):
    """An NFXP fit of the small membership panel, with its panel."""
    import builders

    import dynchoice as dc

    panel = builders.membership_panel(membership, membership.frame)
    return dc.NFXP(membership.unknown, panel).fit(), panel


@pytest.fixture
def people() -> pd.DataFrame:
    """Three members, four months, one gap, one early exit, in no order."""
    rows = [
        ("ann", 0, 0, "out"),
        ("ann", 1, 0, "in"),
        ("ann", 2, 1, "in"),
        ("ann", 3, 1, "out"),
        ("bob", 0, 0, "in"),
        ("bob", 1, 1, "in"),
        ("bob", 3, 1, "in"),
        ("eve", 1, 0, "out"),
        ("eve", 2, 0, "out"),
    ]
    frame = pd.DataFrame(rows, columns=["id", "t", "x", "plan"])
    return frame.sample(frac=1, random_state=3).reset_index(drop=True)
