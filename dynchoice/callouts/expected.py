"""What a page is expected to bring: clicks a visit, by context and a column of the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.callouts.bandit import Callouts

RANDOM = "random"


def expected_clicks(
    policy: Callouts, members: pd.DataFrame, by: str, page: Any, when: float | None
) -> pd.DataFrame:
    """Return the table of :meth:`dynchoice.Callouts.expected_clicks`."""
    import pandas as pd

    own = policy.catalogue
    if by not in own.levels:
        raise SpecificationError(
            f"by={by!r} is no column of the catalogue.{suggest(by, own.levels)}"
        )
    if page is not None and page != RANDOM and not hasattr(page, "slates"):
        raise SpecificationError(f"page={page!r}: 'random', another Callouts, or None")
    other = policy if page is None or page == RANDOM else page
    same = (other.catalogue.items, other.slots, other.context)
    if same != (own.items, policy.slots, policy.context):
        raise SpecificationError("the other page has other items, slots or contexts")
    if not len(members):
        raise SpecificationError("there are no members to expect clicks of")
    unique, counts = np.unique(policy.context_codes(members), return_counts=True)
    size, levels = own.size, list(own.levels[by])
    parts = []
    for code, n in zip(unique, counts, strict=True):
        may = own.open_at(when) & own.eligible(int(code))
        share = (
            random_shares(may, policy.slots)
            if page == RANDOM
            else slate_shares(other.slates(int(code), when), size)
        )
        if page != RANDOM and other.at_random > 0:
            chance = random_shares(may, policy.slots)
            share = (1 - other.at_random) * share + other.at_random * chance
        clicks = np.zeros(size)
        for s in range(policy.slots):
            at = np.full(size, code), np.full(size, s)
            clicks += share[s] * policy.current.probability(np.arange(size), *at)
        frame = pd.DataFrame(
            {by: levels, "clicks": np.bincount(own.codes[by], clicks, len(levels)), "members": n}
        )
        if policy.context is not None:
            labels = policy.context.labels([int(code)]).iloc[0]
            for k, name in enumerate(policy.context.names):
                frame.insert(k, name, labels[name])
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def random_shares(may: np.ndarray[Any, np.dtype[np.bool_]], slots: int) -> FloatArray:
    """Return the share (slots, I) of each item in each slot, of eligible ones in random order."""
    n = int(may.sum())
    out = np.zeros((slots, len(may)))
    out[: min(slots, n), may] = 1 / max(n, 1)
    return out


def slate_shares(slates: IntArray, size: int) -> FloatArray:
    """Return the share (slots, I) of each item in each slot over draws' slates (R, slots)."""
    out = np.zeros((slates.shape[1], size))
    for s in range(slates.shape[1]):
        kept = slates[:, s][slates[:, s] >= 0]
        out[s] = np.bincount(kept, minlength=size) / len(slates)
    return out
