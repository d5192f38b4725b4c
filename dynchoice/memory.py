"""How much memory a process may take, and an error before something that cannot fit.

``DYNCHOICE_MEMORY`` (``"4GB"``, or a number of bytes) bounds what one process takes; without it, it
is all that the machine or its container has free.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dynchoice.errors import MemoryLimitError, SpecificationError

SETTING = "DYNCHOICE_MEMORY"
CONTAINER_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where Linux says what a container may take and takes: version 2 of its groups, then version 1."""
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
    number: str | int | float = 0  # what is no size stays 0, and is refused below
    unit = 1
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?B)?\s*", size.upper())
        if match:
            number, unit = match[1], UNITS[match[2] or "B"]
    elif not isinstance(size, bool):
        number = size
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
    setting = os.environ.get(SETTING)
    if setting:
        return in_bytes(setting)
    free = [_free_of_machine()]
    for bound_file, taken_file in CONTAINER_FILES:
        bound, taken = _number(bound_file), _number(taken_file)
        if bound is not None and taken is not None:
            free.append(max(bound - taken, 0))
    return min(free)


def _free_of_machine() -> int:
    """Return the bytes that the machine has free, or all that it has where it does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
        match = re.search(r"MemAvailable:\s+(\d+) kB", text)
        if match:
            return int(match[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(path: str) -> int | None:
    """Return the number that a file of the system holds, or None."""
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
        source = f"{SETTING} allows" if os.environ.get(SETTING) else "there are"
        raise MemoryLimitError(
            f"{what} takes about {needed / 1e9:.1f} GB, {source} {most / 1e9:.1f} GB: {remedy}"
        )
