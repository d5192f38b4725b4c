"""Every exception and warning of the package, with the exit code that the command line gives it.

A message says what is wrong (with counts and the first offenders), where (column, member,
state by name) and what to do. Each class also derives from the builtin that a caller would
expect (``ValueError``, ``LookupError`` ...).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DynChoiceError(Exception):
    """Base of every error raised on purpose by this package."""

    exit_code = 1


class SpecificationError(DynChoiceError, ValueError):
    """The model as described cannot be: wrong shape, unknown name, impossible value."""

    exit_code = 2


class ConfigError(DynChoiceError, ValueError):
    """The run file is wrong."""

    exit_code = 2


class ConvergenceError(DynChoiceError, RuntimeError):
    """A solver or an estimator stopped before its criterion (raised by ``strict=True`` and the
    command line only; elsewhere non-convergence is a status of the result)."""

    exit_code = 3


class IdentificationError(DynChoiceError, ValueError):
    """The data cannot tell the named parameters apart, whatever their values."""

    exit_code = 3


class CheckError(DynChoiceError, RuntimeError):
    """A guard rail or a validation claim failed."""

    exit_code = 4


class DataError(DynChoiceError, ValueError):
    """Rows of the panel were refused."""

    exit_code = 5


class ColumnError(DataError):
    """A column that was asked for is not in the table."""


class SourceError(DynChoiceError, ConnectionError):
    """The database cannot be reached, or was lost while it was read: try again later."""

    exit_code = 1


class StorageError(DynChoiceError, OSError):
    """A file cannot be written, or a saved object cannot be read (damaged, another version)."""

    exit_code = 1


class LockError(DynChoiceError, RuntimeError):
    """Another run holds the lock of the output folder: try later."""

    exit_code = 75


class MemoryLimitError(DynChoiceError, MemoryError):
    """Something would take more memory than there is (or than ``DYNCHOICE_MEMORY`` allows)."""

    exit_code = 1


class MissingExtraError(DynChoiceError, ImportError):
    """An optional package is needed for this and is not installed."""

    exit_code = 2


class DynChoiceWarning(UserWarning):
    """Base of every warning of this package."""


class ConvergenceWarning(DynChoiceWarning):
    """An iteration stopped before its criterion."""


class IdentificationWarning(DynChoiceWarning):
    """Some direction of the parameters is flat or nearly flat at the estimate."""


class DataWarning(DynChoiceWarning):
    """Something in the data that the reader of the result should know."""


def suggest(name: object, known: Iterable[object]) -> str:
    """Return ``' Did you mean ...?'`` for the known name nearest to a mistyped one, else ``''``."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if not near:
        folded = {n.lower(): n for n in names}
        near = [folded[str(name).lower()]] if str(name).lower() in folded else []
    return f" Did you mean {near[0]!r}?" if near else ""


def first_few(items: Sequence[object], limit: int = 3) -> str:
    """Return the first ``limit`` items as text, with the number of those left out."""
    shown = ", ".join(str(i) for i in items[:limit])
    rest = len(items) - limit
    return f"{shown} and {rest:,} more" if rest > 0 else shown
