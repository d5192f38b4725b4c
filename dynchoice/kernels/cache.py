"""Where compiled kernels are kept between processes.

numba keeps them beside the package, or in the user's cache folder where the package cannot be
written. ``DYNCHOICE_CACHE`` names another folder: a volume of a container, say, filled once by
``dynchoice warm-up``. Where nothing can be written they are kept in the temporary folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SETTING = "DYNCHOICE_CACHE"


def folder(package: Path) -> str | None:
    """Return the folder that numba must be told of, or None where its own choice will do.

    ``package`` is the folder that holds the kernels.
    """
    given = os.environ.get(SETTING)
    if given:
        return str(Path(given).expanduser().absolute())
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    beside = package / "__pycache__"
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if any(_writable(place) for place in (beside, users)):
        return None
    return str(Path(tempfile.gettempdir()) / f"dynchoice-cache-{os.getuid()}")


def _writable(place: Path) -> bool:
    """Return whether a folder, or the nearest one above it that exists, can be written."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
