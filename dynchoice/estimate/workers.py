"""Processes that work beside this one: joblib's, which end when this one does.

joblib's own workers wait five minutes for more work, with all their memory, when the process that
started them was killed. Ours watch it, from before their first task on.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any


def processes(n_jobs: int | None, **options: Any) -> Any:
    """Return :class:`joblib.Parallel` whose processes on this machine end with this one.

    Workers of a cluster that ``joblib.parallel_config`` names belong to somebody else and are left
    alone; so are those that a user gave an initializer of their own.

    Parameters
    ----------
    n_jobs : int or None
        Tasks at once; -1: one a core; None: what ``joblib.parallel_config`` says, else one.
    **options
        Of :class:`joblib.Parallel`.
    """
    from joblib import Parallel
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    # by name: joblib does not promise the place of its classes
    loky = type(backend).__name__ == "LokyBackend"
    if loky and "initializer" not in backend.backend_kwargs:
        options |= {"initializer": end_with, "initargs": (os.getpid(),)}
    return Parallel(n_jobs=n_jobs, **options)


def end_with(parent: int) -> None:
    """Have this process end within a second or so of its parent, or now where that is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=watch, daemon=True, name="ends with its parent").start()
