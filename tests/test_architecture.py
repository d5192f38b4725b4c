"""The shape of the package: imports go down, numba stays in one file, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import oracles
import pytest

import dynchoice

PACKAGE = Path(dynchoice.__file__).parent
LADDER = [
    "base",
    "panel",
    "model",
    "membership",
    "solvers",
    "inference",
    "estimate",
    "counterfactuals",
    "run",
]
FILES = sorted(PACKAGE.rglob("*.py"))
LATE = {"ibis", "linearmodels", "torch", "matplotlib", "formulaic", "duckdb", "rich", "joblib"}


DECORATORS = {"compiled", "fused", "vectors", "finite_vectors"}
KERNELS = sorted({p.name for p in (PACKAGE / "kernels").glob("*.py")} - {"__init__.py", "cache.py"})


def rung(parts: tuple[str, ...]) -> int:
    if parts[0] == "callouts":  # beside the ladder: stands on the panel, run may use it
        return LADDER.index("model")
    return LADDER.index(parts[0]) if len(parts) > 1 and parts[0] in LADDER else 0


def imports(path: Path):
    """Every imported module of a file, and whether it is imported at the top level."""

    def walk(node: ast.AST, top: bool):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            for a in node.names:
                yield a.name, top
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, top
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, top and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_the_ladder(path):
    own = path.relative_to(PACKAGE).parts
    if own in (("__init__.py",), ("__main__.py",)):
        return
    for module, _ in imports(path):
        if not module.startswith("dynchoice."):
            continue
        target = rung((*module.split(".")[1:], ""))
        same = own[0] == module.split(".")[1]
        forwarding = own[-1] == "__init__.py" and same
        assert target < rung(own) or same or target == 0 or forwarding, f"{own} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_where_they_belong(path):
    name = path.relative_to(PACKAGE).as_posix()
    for module, top in imports(path):
        root = module.split(".")[0]
        if root == "numba":
            assert name == "kernels/core.py"
        if root == "pandas":
            assert not name.startswith("solvers/") and not name.startswith("kernels/")
            assert not top
        if root in LATE:
            assert not top, f"{name} imports {module} at the top"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path):
    limit = 700 if path.parent.name == "kernels" else 560
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_call_none_of_another_file(name):
    """Numba's cache on disk does not see an edit of a callee in another file."""
    tree = ast.parse((PACKAGE / "kernels" / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(not a.name.startswith("dynchoice") for a in node.names)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynchoice"):
            if node.module == "dynchoice.kernels.cache":  # where compiled code is kept: no kernels
                continue
            assert name != "core.py" and node.module == "dynchoice.kernels.core"
            assert {a.name for a in node.names} <= DECORATORS


def test_import_is_cheap():
    code = (
        "import sys, time; t = time.perf_counter(); import dynchoice;"
        "print(time.perf_counter() - t, 'numpy' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, numpy_loaded = min(r.stdout.split() for r in runs)
    assert float(seconds) < 0.1
    assert numpy_loaded == "False"


def test_public_names_load_and_unknown_ones_do_not():
    for name in dynchoice.__all__:
        assert getattr(dynchoice, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'NXFP'"):
        _ = dynchoice.NXFP


OVERRIDES = (
    "expect",
    "push",
    "stacked",
    "estimated",
    "blocks",
    "evaluate",
    "hessian",
    "cross_derivative",
)
"""Methods whose docstring stands in the base class."""


def test_every_public_class_and_function_has_a_docstring():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        for holder in (tree, *classes):
            for node in holder.body:
                named = isinstance(node, ast.FunctionDef | ast.ClassDef)
                if named and not node.name.startswith("_") and node.name not in OVERRIDES:
                    assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_every_exception_has_an_exit_code_and_a_builtin():
    from dynchoice import errors

    allowed = {0, 1, 2, 3, 4, 5, 75}
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    for kind in kinds:
        if issubclass(kind, errors.DynChoiceError):
            assert kind.exit_code in allowed
            if kind is not errors.DynChoiceError:
                assert len(kind.__mro__) > 4


def test_the_oracles_do_not_use_the_package():
    assert "dynchoice" not in Path(oracles.__file__).read_text(encoding="utf-8").replace(
        "dynchoice package", ""
    )
