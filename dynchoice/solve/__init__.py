"""Fixed points and their derivatives; the package itself is callable, as ``dynchoice.solve``.

``dynchoice.solve(model, params)`` is public, and importing any module of this folder binds the
same name to the folder: so the folder forwards the call to :func:`dynchoice.solve.solution.solve`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from dynchoice.solve.solution import solve

        return solve(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
