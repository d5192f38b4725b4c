"""How much memory there is, and an error before an allocation that cannot fit.

``DYNCHOICE_MEMORY`` (``"4GB"``, or a number of bytes) bounds what one process takes; without it, it
is all that the machine or its container has free.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dynchoice.errors import MemoryLimitError, SpecificationError

SETTING = "DYNCHOICE_MEMORY"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def in_bytes(size: str | int | float) -> int:
    """Return a size as bytes: a number, or a text such as ``"800MB"`` or ``"1.5 GB"``.

    Raises
    ------
    SpecificationError
        Not a size, or not positive.

    Examples
    --------
    >>> in_bytes("1.5 GB")
    1500000000
    """
    number: Any
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?B)?\s*", size.upper())
        number, unit = (match[1], UNITS[match[2] or "B"]) if match else ("0", 1)
    else:
        number, unit = ("0" if isinstance(size, bool) else size), 1
    try:
        value = float(number) * unit
    except (TypeError, ValueError, OverflowError):
        value = 0.0
    if not 1 <= value < 1e18:
        raise SpecificationError(
            f"memory={size!r} is no size: give bytes, or a text such as '800MB' or '4GB'"
        )
    return int(value)


def limit() -> int:
    """Return the bytes that this process may still take."""
    given = os.environ.get(SETTING)
    if given:
        return in_bytes(given)
    free = [_free_of_machine()]
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        bound, taken = _number(most), _number(used)
        if bound is not None and taken is not None:
            free.append(max(bound - taken, 0))
    return min(free)


def _free_of_machine() -> int:
    try:
        text = Path("/proc/meminfo").read_text()
        match = re.search(r"MemAvailable:\s+(\d+) kB", text)
        if match:
            return int(match[1]) * 1024
    except OSError:
        pass  # not Linux: what is installed is all that is known
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def require(needed: int, what: str, remedy: str) -> None:
    """Raise if something needs more bytes than there are.

    Raises
    ------
    MemoryLimitError
        With both figures, and what to do.
    """
    most = limit()
    if needed > most:
        bound = f"{SETTING} allows" if os.environ.get(SETTING) else "there are"
        raise MemoryLimitError(
            f"{what} takes about {needed / 1e9:.1f} GB, {bound} {most / 1e9:.1f} GB: {remedy}"
        )
