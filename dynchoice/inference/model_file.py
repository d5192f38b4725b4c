"""A model as nested plain values and arrays, and back: what :mod:`dynchoice.storage` saves."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynchoice.membership.membership import Membership
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, Cycle, Deterministic, Fixed, Increment, Law, Markov
from dynchoice.model.transitions import Stacked, Transitions
from dynchoice.model.utility import Utility
from dynchoice.panel.states import StateSpace
from dynchoice.typing import Level

KINDS: dict[str, type[Fixed] | type[Cycle]] = {"Fixed": Fixed, "Cycle": Cycle}


def model_to_tree(model: DDC) -> dict[str, Any]:
    """Return a model as a tree."""
    utility = model.utility
    attributes = utility.attributes
    return {
        "axes": [[name, list(levels)] for name, levels in model.states.axes.items()],
        "choices": list(model.choices),
        "x": utility.x,
        "names": list(utility.names),
        "offset": utility.offset,
        "formula": utility.formula,
        "attributes": None
        if attributes is None
        else {str(c): attributes[c].tolist() for c in attributes.columns},
        "transitions": _transitions_to_tree(model.transitions),
        "beta": model.beta,
        "available": model.available,
        "attention": model.attention,
        "default": model.default,
        "horizon": model.horizon,
        "perceived": None if model.sophisticated else model.perceived,
        "membership": None if model.membership is None else model.membership.to_dict(),
    }


def model_from_tree(tree: dict[str, Any]) -> DDC:
    """Return the model that :func:`model_to_tree` described."""
    import pandas as pd

    states = StateSpace.from_axes(dict(tree["axes"]))
    choices = tuple(tree["choices"])
    attributes = None if tree["attributes"] is None else pd.DataFrame(tree["attributes"])
    utility = Utility(
        x=np.ascontiguousarray(tree["x"]),
        names=tuple(tree["names"]),
        offset=np.ascontiguousarray(tree["offset"]),
        formula=tree["formula"],
        attributes=attributes,
    )
    programme = tree.get("membership")  # files of before these two were there lack them
    return DDC(
        perceived=tree.get("perceived"),
        membership=None if programme is None else Membership.from_dict(programme),
        states=states,
        choices=choices,
        utility=utility,
        transitions=_transitions_from_tree(tree["transitions"], states, choices),
        beta=tree["beta"],
        available=tree["available"],
        attention=tree["attention"],
        default=tree["default"],
        horizon=tree["horizon"],
    )


def _transitions_to_tree(transitions: Transitions) -> dict[str, Any]:
    """Return transitions as a tree: laws as they are bound, or stacked rows."""
    if isinstance(transitions, Factored):
        return {
            "kind": "factored",
            "laws": [_law_to_tree(law, transitions.choices) for law in transitions.bound],
        }
    indptr, indices, data = transitions.stacked()
    return {
        "kind": transitions.kind,
        "J": transitions.J,
        "indptr": indptr,
        "indices": indices,
        "data": data,
    }


def _transitions_from_tree(
    tree: dict[str, Any], states: StateSpace, choices: tuple[Level, ...]
) -> Transitions:
    """Return the transitions that :func:`_transitions_to_tree` described."""
    if tree["kind"] != "factored":
        from scipy.sparse import csr_array

        shape = (states.size * tree["J"], states.size)
        matrix = csr_array((tree["data"], tree["indices"], tree["indptr"]), shape=shape)
        return Stacked(matrix, tree["J"], tree["kind"])
    bound = tuple(_law_from_tree(t) for t in tree["laws"])
    names = states.names
    laws = {
        names[law.axes[0]] if len(law.axes) == 1 else tuple(names[a] for a in law.axes): law.family
        for law in bound
    }
    return Factored(states, choices, laws, bound)


def _law_to_tree(law: BoundLaw, choices: tuple[Level, ...]) -> dict[str, Any]:
    """Return a bound law as a tree."""
    family = law.family
    # a lifted law is one of known probabilities once it is stored
    kind = "Markov" if isinstance(family, Markov) else type(family).__name__
    extra: dict[str, Any] = {"type": kind, "estimated": law.estimated}
    if isinstance(family, Deterministic | Markov):
        extra["given"] = list(family.given)
    if isinstance(family, Increment):
        extra |= {
            "max_step": family.max_step,
            "after_reset": family.after_reset,
            "reset_on": [choices[j] for j in law.resets],
        }
    return {
        **extra,
        "name": law.name,
        "axes": list(law.axes),
        "n": law.n,
        "parents": list(law.parents),
        "groups": law.groups,
        "by_choice": law.by_choice,
        "choices": law.choices,
        "following": law.following,
        "table": law.table,
        "undefined": law.undefined,
        "resets": list(law.resets),
    }


def _law_from_tree(tree: dict[str, Any]) -> BoundLaw:
    """Return the law that :func:`_law_to_tree` described."""
    # the table holds the probabilities; the family only says which of them were estimated
    given = tuple(tree.get("given", ()))
    known = None if tree["estimated"] else "in the table"
    family: Law
    if tree["type"] == "Markov":
        family = Markov(given, known)
    elif tree["type"] == "Increment":
        resets = tree["reset_on"] or None
        family = Increment(tree["max_step"], resets, known, tree["after_reset"])
    elif tree["type"] == "Deterministic":
        family = Deterministic(None, given)
    else:
        family = KINDS[tree["type"]]()
    return BoundLaw(
        name=tree["name"],
        family=family,
        axes=tuple(tree["axes"]),
        n=tree["n"],
        parents=tuple(tree["parents"]),
        groups=tree["groups"],
        by_choice=tree["by_choice"],
        choices=tree["choices"],
        following=tree["following"],
        table=tree["table"],
        undefined=tree["undefined"],
        resets=tuple(tree["resets"]),
    )
