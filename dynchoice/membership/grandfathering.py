"""Grandfathering: members with a running plan keep their old prices when a list changes.

Kept prices are a programme's second set of lists (``kept``: old price by menu and plan), and who
keeps them is an axis of the state, the vintage: ``kept`` or ``current``. They are kept until the
member leaves (the vintage stays as long as a plan is chosen), or until the contract that runs ends
(``kept_until="renewal"``: the vintage then moves with the contract). Members move to the vintage
``kept`` when the change comes (:func:`dynchoice.membership.changes.state_map`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.membership.contracts import NONE, PAID, Contracts
from dynchoice.membership.names import CONTRACT, CURRENT, VINTAGE
from dynchoice.model.laws import Deterministic, Law, Markov
from dynchoice.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from dynchoice.membership.plans import Plan


def check_grandfathered(grandfathered: bool | str, keeps_already: bool) -> None:
    """Validate how long old prices are kept, in a programme where some may be kept already.

    Raises
    ------
    SpecificationError
        Another way; a second vintage of prices.
    """
    if not isinstance(grandfathered, bool) and grandfathered != "contract":
        raise SpecificationError(
            f"grandfathered={grandfathered!r}: use True (until they leave) or 'contract' (until"
            " the contract that runs ends)"
        )
    if grandfathered and keeps_already:
        raise SpecificationError(
            "some members keep older prices already: a second vintage of prices is not modelled"
        )


def old_lists(
    plans: tuple[Plan, ...], menus: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return today's price of every plan by menu (one unnamed menu where there are none)."""
    return {
        label: {p.name: float(menu.get(p.name, p.price)) for p in plans}
        for label, menu in (menus or {"": {}}).items()
    }


def kept_until(grandfathered: bool | str) -> str:
    """Return what ends kept prices, in the words of :class:`dynchoice.Membership`."""
    return "renewal" if grandfathered == "contract" else "leaving"


def kept_price_table(
    kept: Mapping[str, Mapping[str, float]],
    labels: list[str],
    plans: tuple[Plan, ...],
    menu_codes: IntArray,
    keeps: BoolArray,
) -> FloatArray:
    """Return prices that members keep (S, plans), NaN where the list in force holds.

    ``menu_codes`` (S,) is the menu in force in each state, ``keeps`` (S,) who keeps old prices.
    """
    old = [[kept.get(label, {}).get(p.name, np.nan) for p in plans] for label in labels]
    return np.where(keeps[:, None], np.array(old)[menu_codes], np.nan)


def vintage_laws(contracts: Contracts, until: str) -> dict[str | tuple[str, ...], Law]:
    """Return the laws of the vintage and of the contract where some members keep old prices."""
    if until == "renewal":
        # which prices hold depends on where the contract goes: one law of both
        return {(VINTAGE, CONTRACT): Markov(("choice",), vintage_and_contract(contracts))}
    stays = Deterministic(lambda level, choice: level if choice != NONE else CURRENT, ("choice",))
    return {VINTAGE: stays, CONTRACT: Markov(("choice",), contracts.table)}


def vintage_and_contract(contracts: Contracts) -> FloatArray:
    """Return the joint law of vintage and contract (J, 2 C, 2 C) given the choice.

    Kept prices end with the contract that runs.
    """
    J, C, _ = contracts.table.shape
    runs = (contracts.kind == PAID) & (contracts.left > 0)
    law = np.zeros((J, 2, C, 2, C))
    law[:, 0, :, 0] = contracts.table
    for j in range(J):
        stay = runs & (j > 0)
        law[j, 1, stay, 1] = contracts.table[j, stay]
        law[j, 1, ~stay, 0] = contracts.table[j, ~stay]
    return law.reshape(J, 2 * C, 2 * C)
