"""A policy's whole state as nested dicts of arrays and texts, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynchoice.callouts.bandit import Callouts
from dynchoice.callouts.feedback import Feedback
from dynchoice.callouts.probit import Probit
from dynchoice.callouts.values import frame_of, text_of


def tree_of(policy: Callouts) -> dict[str, Any]:
    """Return the state; lists in the catalogue's rules become texts."""
    context = policy.context
    options = {
        name: getattr(policy, name)
        for name in (
            "slots", "category", "delay_by", "diversity", "cap_window", "draws", "explore", "seed",
        )
    }  # fmt: skip
    return {
        "catalogue": text_of(policy.catalogue.frame),
        "context": None if context is None else [[k, list(v)] for k, v in context.axes.items()],
        "terms": list(policy.terms.names),
        "values": None if policy.values is None else text_of(policy.values),
        "options": options,
        "model": policy.model.to_tree(),
        "feedback": policy.feedback.to_tree(),
        "snapshot": policy.snapshot,
        "decisions": policy.decisions,
    }


def policy_of(tree: Mapping[str, Any]) -> Callouts:
    """Return the policy that :func:`tree_of` took apart."""
    context = None if tree["context"] is None else dict(tree["context"])
    model = Probit.from_tree(tree["model"])
    own = Callouts(
        frame_of(tree["catalogue"]),
        context,
        tree["terms"],
        method=model.method,
        forget=model.forget,
        values=None if tree["values"] is None else frame_of(tree["values"]),
        **tree["options"],
    )
    own.model = model
    own.feedback = Feedback.from_tree(tree["feedback"])
    own.snapshot, own.decisions = int(tree["snapshot"]), int(tree["decisions"])
    own.refresh()
    return own
