"""Read fits back from files: one kind of file, with a marker of the class that it holds."""

from __future__ import annotations

import os

from dynchoice.errors import DataError, StorageError
from dynchoice.inference.estimates import Estimates
from dynchoice.inference.mixture_results import MixtureResults
from dynchoice.inference.results import Results
from dynchoice.inference.reward_results import RewardResults
from dynchoice.names import RESULTS
from dynchoice.storage import load_tree

KINDS: dict[str, type[Estimates]] = {
    kind.marker: kind for kind in (Results, MixtureResults, RewardResults)
}
"""Every class of results by the marker that its files carry; a new class is added here."""


def load(path: str | os.PathLike[str]) -> Results | MixtureResults | RewardResults:
    """Load a fit saved by its ``save``: Results, MixtureResults or RewardResults.

    Raises
    ------
    StorageError
        No such file, damaged, or no results of this package.
    """
    tree = dict(load_tree(path, RESULTS))
    # the marker leaves the tree: what stays are the fields of the class
    markers = [marker for marker in KINDS if tree.pop(marker, False)]
    kind = KINDS[markers[0] if markers else Results.marker]
    try:
        fit = kind.from_tree(tree)
    except (KeyError, TypeError, DataError) as error:
        raise StorageError(f"{path} cannot be read by this version: {error}") from error
    assert isinstance(fit, Results | MixtureResults | RewardResults)
    return fit
