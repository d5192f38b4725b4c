"""A policy's whole state as nested dicts of arrays and texts, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynchoice.callouts.bandit import Callouts
from dynchoice.callouts.catalogue import Catalogue
from dynchoice.callouts.feedback import Feedback
from dynchoice.callouts.probit import Probit
from dynchoice.callouts.values import frame_of, text_of
from dynchoice.errors import DataError, first_few


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


def moved(old: Callouts, new: Callouts) -> Callouts:
    """Return ``new`` with what ``old`` has learned.

    Items of ``new`` that ``old`` does not have start from their group; those that are gone are kept
    as ended, so that their impressions can still be learned.

    Raises
    ------
    DataError
        An item has other attributes than before.
    """
    import pandas as pd

    before, after = old.catalogue, new.catalogue
    gone = [x for x in before.items if x not in set(after.items)]
    frame = after.frame
    if gone:
        lost = before.frame[before.frame["item"].isin(gone)].copy()
        lost["ends"] = -1e9
        if "ends" in frame and not pd.api.types.is_numeric_dtype(frame["ends"]):
            frame = frame.assign(ends=after.ends)
        if "starts" in lost:
            lost["starts"] = before.starts[before.item_codes(gone)] if (
                before.starts is not None) else None  # fmt: skip
        if "starts" in frame and after.starts is not None:
            frame = frame.assign(starts=after.starts)
        frame = pd.concat([frame, lost.reindex(columns=[*dict.fromkeys([*frame.columns, "ends"])])],
                          ignore_index=True)  # fmt: skip
    # old items first, in their old order, so that codes of open impressions stay
    place = {x: i for i, x in enumerate(before.items)}
    order = sorted(
        range(len(frame)), key=lambda i: place.get(frame["item"].iloc[i], len(place) + i)
    )
    whole = Catalogue(frame.iloc[order], new.context)
    for c, levels in before.levels.items():
        if c not in whole.levels:
            raise DataError(f"the catalogue has lost the column {c!r}")
        was = [levels[k] for k in before.codes[c]]
        now = [whole.levels[c][k] for k in whole.codes[c][: before.size]]
        other = [str(before.items[i]) for i in range(before.size) if was[i] != now[i]]
        if other:
            raise DataError(
                f"{len(other):,} items have another {c!r} than before ({first_few(other)}): what"
                " was learned of them would be wrong; give them new names"
            )
    own = Callouts(
        whole, new.context, new.terms.names, method=old.model.method, forget=new.model.forget,
        slots=new.slots, category=new.category, delay_by=new.delay_by, diversity=new.diversity,
        cap_window=new.cap_window, draws=new.draws, explore=new.explore, seed=new.seed,
    )  # fmt: skip
    own.model = old.model.remap(old.terms.moved_to(own.terms), own.terms.groups)
    own.model.forget = new.model.forget
    own.feedback = old.feedback
    if own.delay_by is not None:
        own.feedback.delays.grown(len(whole.levels[own.delay_by]))
    own.snapshot, own.decisions = old.snapshot, old.decisions
    own.set_values(new.values)
    return own
