"""What a page is expected to bring: clicks a visit, by context and a column of the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.callouts.thompson import Snapshot
from dynchoice.errors import SpecificationError
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd


def table_expected_clicks(
    policy: Snapshot, page: Snapshot | None, codes: IntArray, by: str, when: float | None
) -> pd.DataFrame:
    """Return expected clicks a visit, by context and a column of the catalogue.

    Parameters
    ----------
    policy : Snapshot
        Whose probabilities of clicks and whose eligible items they are.
    page : Snapshot, optional
        What is shown; without it, eligible items at random.
    codes : integer array, shape (n,)
        Each member's context.
    by : str
        Column of the catalogue.
    when : float, optional
        In days.

    Returns
    -------
    pandas.DataFrame
        Columns of the context, ``by``, ``clicks`` and ``members``; every level of ``by``.
    """
    import pandas as pd

    catalogue, context = policy.catalogue, policy.terms.context
    checks.known([by], catalogue.levels, "by: column of the catalogue")
    if page is not None:
        layouts = [(p.catalogue.items, p.slots, p.terms.context) for p in (page, policy)]
        if layouts[0] != layouts[1]:
            raise SpecificationError("the other page has other items, slots or contexts")
    if not len(codes):
        raise SpecificationError("there are no members to expect clicks of")
    unique, counts = np.unique(codes, return_counts=True)
    size, levels = catalogue.size, list(catalogue.levels[by])
    parts = []
    for code, n in zip(unique, counts, strict=True):
        shares = slot_shares(page, policy.eligible(int(code), when), policy.slots, int(code), when)
        clicks = np.zeros(size)
        for slot, share in enumerate(shares):
            pairs = np.arange(size), np.full(size, code), np.full(size, slot)
            clicks += share * policy.probability(*pairs)
        sums = np.bincount(catalogue.codes[by], clicks, len(levels))
        frame = pd.DataFrame({by: levels, "clicks": sums, "members": n})
        if context is not None:
            labels = context.labels([int(code)]).iloc[0]
            for k, name in enumerate(context.names):
                frame.insert(k, name, labels[name])
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def slot_shares(
    page: Snapshot | None, eligible: BoolArray, slots: int, code: int, when: float | None
) -> FloatArray:
    """Return the share (slots, I) of visits in which each item stands in each slot."""
    chance = share_at_random(eligible, slots)
    if page is None:
        return chance
    share = share_of_slates(page.slates(code, when).items, len(eligible))
    e = page.at_random
    return share if e == 0.0 else (1 - e) * share + e * chance


def share_at_random(eligible: BoolArray, slots: int) -> FloatArray:
    """Return the share (slots, I) of each item in each slot, of eligible ones in random order."""
    n = int(eligible.sum())
    out = np.zeros((slots, len(eligible)))
    out[: min(slots, n), eligible] = 1 / max(n, 1)
    return out


def share_of_slates(slates: IntArray, size: int) -> FloatArray:
    """Return the share (slots, I) of each item in each slot over draws' slates (R, slots)."""
    out = np.zeros((slates.shape[1], size))
    for s in range(slates.shape[1]):
        kept = slates[:, s][slates[:, s] >= 0]
        out[s] = np.bincount(kept, minlength=size) / len(slates)
    return out
