"""What the payoffs of a counterfactual are made of: choices and states of the baseline.

``u~_a(s~) = sum_b H_ab u_b + g_a``: which baseline choices ``b`` the payoff of each new choice is
made of, and in which baseline state each new state has its payoffs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError
from dynchoice.model.ddc import DDC
from dynchoice.panel.states import as_floats
from dynchoice.typing import BoolArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

Payoff: TypeAlias = "Mapping[tuple[int, int], FloatArray | csr_array]"
"""``(a, b) -> H_ab``, dense or sparse (S~, S): counterfactual payoff of a from baseline b."""
MadeOf: TypeAlias = "Mapping[Level, Level | Mapping[Level, float] | None]"
"""New choice -> what its payoff is made of: a baseline choice, ``{choice: factor}``, or nothing."""
Utils: TypeAlias = "Mapping[Level, float | FloatArray]"
"""New choice -> known utils, a number or (S~,)."""
MODELS = {
    "Scenario": "pass scenario.changed(results.model)",
    "Results": "pass results.model",
    "Membership": "pass club.model()",
}
"""How to get a model of what was passed instead."""


def payoff_factors(
    base: DDC, new: DDC, payoff: MadeOf | None, offsets: Utils | None
) -> tuple[FloatArray, BoolArray]:
    """Return factors (J~, J) of baseline payoffs, and choices (J~,) whose payoff is given."""
    for name, model in (("base", base), ("new", new)):
        checks.instance(model, name, DDC, MODELS.get(type(model).__name__, ""))
    payoff, offsets = dict(payoff or {}), dict(offsets or {})
    checks.known((*payoff, *offsets), new.choices, "new choice")
    for label, utils in offsets.items():
        if as_floats(utils, f"offsets of {label!r}").size not in (1, new.states.size):
            raise SpecificationError(f"offsets of {label!r}: pass a number or one utils a state")
    out = np.zeros((len(new.choices), len(base.choices)))
    known = np.zeros(len(new.choices), dtype=bool)
    for a, label in enumerate(new.choices):
        if label not in payoff and label not in base.choices:
            raise SpecificationError(
                f"choice {label!r} is new: say payoff={{{label!r}: choice whose payoff it has}}"
            )
        parts = payoff.get(label, label)
        known[a] = parts is None and label in offsets
        if parts is None:
            continue
        factors = parts if isinstance(parts, Mapping) else {parts: 1.0}
        checks.known(factors, base.choices, "payoff: baseline choice")
        for source, factor in factors.items():
            out[a, base.choices.index(source)] = float(factor)
    return out, known


def check_state_map(base: DDC, new: DDC, state_map: ArrayLike | None) -> IntArray:
    """Return the baseline state (S~,) of each new state, -1 for none.

    Raises
    ------
    SpecificationError
        No such map; a finite horizon; transitions that are not known.
    """
    for model in (base, new):
        if model.horizon is not None:
            raise SpecificationError("this is for models with an infinite horizon")
        if not getattr(model.transitions, "known", True):
            raise SpecificationError("transitions without probabilities: take results.model")
    S, S_new = base.states.size, new.states.size
    if state_map is None:
        if base.states != new.states:
            raise SpecificationError(
                "the two models have other states: give state_map, the baseline state whose"
                " payoffs each new state has (-1 for none)"
            )
        return np.arange(S)
    codes = np.asarray(state_map)
    whole = codes.shape == (S_new,) and codes.dtype.kind in "iu"
    if not whole or codes.min() < -1 or codes.max() >= S:
        raise SpecificationError(
            f"state_map must hold codes -1 .. {S - 1} of baseline states, shape ({S_new},)"
        )
    return codes.astype(np.int64)


def payoff_blocks(factors: FloatArray, origin: IntArray, S: int) -> Payoff:
    """Return ``H`` for factors (J~, J) and the baseline state of each state (-1: none)."""
    from scipy.sparse import csr_array

    mapped = np.flatnonzero(origin >= 0)
    entries = np.ones(len(mapped)), (mapped, origin[mapped])
    pick = csr_array(entries, shape=(len(origin), S))
    return {(int(a), int(b)): factors[a, b] * pick for a, b in np.argwhere(factors)}
