"""A policy's whole state as nested dicts of arrays and texts, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dynchoice.callouts.bandit import Callouts
from dynchoice.callouts.catalogue import GONE, Catalogue
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
            "slots", "category", "delay_by", "diversity", "cap_window", "draws", "explore",
            "at_random", "seed",
        )
    }  # fmt: skip
    return {
        "catalogue": text_of(policy.catalogue.in_days()),
        "context": None if context is None else [[k, list(v)] for k, v in context.axes.items()],
        "terms": list(policy.terms.names),
        "values": None if policy.values is None else text_of(policy.values),
        "options": options,
        "model": policy.model.to_tree(),
        "feedback": policy.feedback.to_tree(),
        "snapshot": policy.snapshot,
        "decisions": policy.decisions,
        "files": policy.files,
        "prior_method": policy.prior_method,
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
    own.files, own.prior_method = dict(tree["files"]), str(tree["prior_method"])
    own.refresh()
    return own


def merged(before: Catalogue, after: Catalogue) -> Catalogue:
    """Return today's catalogue with the items of yesterday's first, those that are gone ended.

    Codes of items stay, so that what was learned and what waits keep theirs.

    Raises
    ------
    DataError
        An item has other attributes than before, or a column was lost.
    """
    import pandas as pd

    frame, there = after.in_days(), set(after.items)
    gone = [x for x in before.items if x not in there]
    if gone:
        lost = before.in_days()
        lost = lost[lost["item"].isin(gone)].assign(ends=GONE)
        columns = list(dict.fromkeys([*frame.columns, "ends"]))
        parts = [f.reindex(columns=columns).astype(object) for f in (frame, lost)]
        frame = pd.concat(parts, ignore_index=True).infer_objects()
    place = {x: i for i, x in enumerate(before.items)}
    labels = list(frame["item"])
    order = sorted(range(len(labels)), key=lambda i: place.get(labels[i], len(place) + i))
    whole = Catalogue(frame.iloc[order], after.context)
    for c, levels in before.levels.items():
        if c not in whole.levels:
            raise DataError(f"the catalogue has lost the column {c!r}")
        was = [levels[k] for k in before.codes[c]]
        now = [whole.levels[c][k] for k in whole.codes[c][: before.size]]
        other = [
            str(x)
            for x, a, b in zip(before.items, was, now, strict=False)
            if a != b and str(a) != str(b)
        ]
        if other:
            raise DataError(
                f"{len(other):,} items have another {c!r} than before ({first_few(other)}): what"
                " was learned of them would be wrong; give them new names"
            )
    return whole


def moved(
    old: Callouts, catalogue: Catalogue, values: Any, page: Callouts | None = None
) -> Callouts:
    """Return a policy with what ``old`` has learned, over a catalogue that begins with its items.

    Everything is worked out before anything is returned, and ``old`` stays as it is. ``page`` says
    slots, diversity and the like, where they are others.
    """
    page = old if page is None else page
    own = Callouts(
        catalogue, old.context, old.terms.names, method="adf", forget=page.model.forget,
        slots=page.slots, category=page.category, delay_by=old.delay_by, diversity=page.diversity,
        cap_window=page.cap_window, draws=page.draws, explore=page.explore,
        at_random=page.at_random, seed=page.seed, values=values,
    )  # fmt: skip
    own.model = copy.copy(old.model).remap(old.terms.moved_to(own.terms), own.terms.groups)
    own.model.forget = page.model.forget
    own.feedback = copy.deepcopy(old.feedback)
    if own.delay_by is not None:
        own.feedback.delays.grown(len(catalogue.levels[own.delay_by]))
    own.snapshot, own.decisions = old.snapshot + 1, old.decisions
    own.files, own.prior_method = dict(old.files), old.prior_method
    own.refresh()
    return own
