"""Compiled before they are needed, and kept where there is room."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dynchoice import cache
from dynchoice.run import cli, warm


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
    assert [t[0] for t in told] == list(range(5)) and told[-1][1:] == (4, "done")


def test_the_command_says_how_many(capsys, monkeypatch):
    monkeypatch.setattr(warm, "warm_up", lambda progress: {"a": 3, "b": 4})
    assert cli.main(["warm-up"]) == 0
    assert capsys.readouterr().out == "7 kernels are ready\n"
    assert cli.main(["warm-up", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_kernels_are_kept_in_the_folder_named(tmp_path):
    code = (
        "import numpy as np; from dynchoice import kernels as k;"
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
