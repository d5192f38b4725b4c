"""What if, and what next; the package itself is callable, as ``dynchoice.counterfactual``.

``dynchoice.counterfactual(results, scenario)`` is public, and importing any module of this folder
binds the same name to the folder: so the folder forwards the call to
:func:`dynchoice.counterfactual.scenario.counterfactual`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from dynchoice.counterfactual.scenario import counterfactual

        return counterfactual(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
