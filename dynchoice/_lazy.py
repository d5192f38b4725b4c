"""pandas under its usual name, loaded when it is first used.

``from dynchoice._lazy import pd`` at the top of a file stands for an ``import pandas as pd`` in
each of its functions. Importing the package stays free of pandas, which takes half a second; type
checkers see pandas itself. ``pd.`` at the top level of a file would load pandas with that file:
write it in functions and annotations only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["pd"]

if TYPE_CHECKING:
    import pandas as pd
else:

    class _Pandas:
        """Stands for the module; what was asked for once is kept as an attribute."""

        def __getattr__(self, name: str) -> Any:
            import pandas

            value = getattr(pandas, name)
            self.__dict__[name] = value
            return value

    pd = _Pandas()
