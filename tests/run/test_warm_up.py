"""Compiled before they are needed, and kept where there is room."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dynchoice.kernels import cache
from dynchoice.run import cli
from dynchoice.run import warm_up as warm


def kernels_of(module):
    return {
        name
        for name, kernel in vars(module).items()
        if hasattr(kernel, "py_func") and kernel.__module__ == module.__name__
    }


def called_by_others(module):
    """Kernels that others call: compiled with them."""
    names = kernels_of(module)
    return {
        name
        for name in names
        for other in names - {name}
        if name in getattr(module, other).py_func.__code__.co_names
    }


def test_every_kernel_is_ready_after_a_warm_up():
    told = []
    found = warm.warm_up(lambda *a: told.append(a))
    for module in warm.MODULES:
        missing = kernels_of(module) - set(warm.ready(module)) - called_by_others(module)
        assert not missing, module.__name__
        assert found[module.__name__] == len(warm.ready(module)) > 0
    assert [t[0] for t in told] == list(range(6)) and told[-1][1:] == (5, "done")


def test_the_command_says_how_many(capsys, monkeypatch):
    monkeypatch.setattr(warm, "warm_up", lambda progress: {"a": 3, "b": 4})
    assert cli.main(["warm-up"]) == 0
    assert capsys.readouterr().out == "7 kernels are ready\n"
    assert cli.main(["warm-up", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_kernels_are_kept_in_the_folder_named(tmp_path):
    code = (
        "import numpy as np; from dynchoice.kernels import core as k;"
        "k.policy_average(np.ones((2, 2)), np.ones((2, 2, 1)), np.ones((2, 1)))"
    )
    kept = tmp_path / "kept"
    env = {**os.environ, cache.SETTING: str(kept)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
    made = [p.name for p in kept.rglob("*.nbc")]
    assert len(made) == 1 and "policy_average" in made[0]


def test_where_kernels_are_kept(tmp_path, monkeypatch):
    for name in (cache.SETTING, "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    package = tmp_path / "package"
    package.mkdir()
    assert cache.folder(package) is None  # beside the package
    allowed = os.access

    def read_only(path, mode):
        return not Path(path).is_relative_to(tmp_path) and allowed(path, mode)

    monkeypatch.setattr(os, "access", read_only)
    fallback = cache.folder(package)
    assert fallback is not None and Path(fallback).parent == Path(tempfile.gettempdir())
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    assert cache.folder(package) is None  # numba was told
    monkeypatch.setenv(cache.SETTING, "~/kept")
    assert cache.folder(package) == str(Path.home() / "kept")


@pytest.mark.parametrize("arguments", [["warmup"], ["warm-up", "--folder", "x"]])
def test_what_is_mistyped_is_told(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err


def small_fit(**setting):
    """Estimates of Rust's problem at 40 bins, in a process of its own."""
    code = (
        "import numpy as np, dynchoice as dc;"
        "from dynchoice.estimate.likelihood import Likelihood;"
        "S = 40; states = dc.StateSpace(mileage=range(S)); x = np.zeros((S, 2, 2));"
        "x[:, 0, 0] = -0.1 * np.arange(S); x[:, 1, 1] = -1;"
        "law = dc.Increment(2, 'replace', probabilities=[.3, .6, .1], after_reset=1);"
        "F = dc.Transitions.factored(states, ['keep', 'replace'], {'mileage': law});"
        "u = dc.Utility.from_array(x, ['kept', 'RC']);"
        "m = dc.DDC(states=states, choices=['keep', 'replace'], utility=u, transitions=F,"
        " beta=.99); n = 100 * dc.solve(m, [.5, 4.]).ccp; e = Likelihood(m, n);"
        "theta = np.array([.4, 5.]);\n"
        "for _ in range(12): a = e.evaluate(theta); theta = theta - np.linalg.solve(e.hessian(a),"
        " a.score)\n"
        "from dynchoice.kernels import core; print(core.INTERPRETED, *theta.tolist())"
    )
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **setting},
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    interpreted, *theta = done.stdout.split()
    return interpreted == "True", [float(t) for t in theta]


@pytest.mark.slow
def test_small_models_are_fitted_without_compiling(tmp_path):
    """By numba's own switch: the same estimates, and no kernel is kept or looked for."""
    off, theta = small_fit(NUMBA_DISABLE_JIT="1", **{cache.SETTING: str(tmp_path)})
    assert off and not list(tmp_path.rglob("*.nbc"))
    assert theta == pytest.approx([0.5, 4.0], rel=1e-8)
    on, other = small_fit()
    assert not on and other == pytest.approx(theta, rel=1e-9)


def test_nothing_to_warm_up_where_numba_is_off(monkeypatch, capsys):
    monkeypatch.setattr(warm.kernels, "INTERPRETED", True)
    assert cli.main(["warm-up"]) == 2
    assert "NUMBA_DISABLE_JIT" in capsys.readouterr().err
