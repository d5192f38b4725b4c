"""A policy's whole state as nested dicts of arrays and texts, and back; its move to other items."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynchoice.callouts.bandit import Callouts
from dynchoice.callouts.catalogue import GONE, Catalogue
from dynchoice.callouts.feedback import Feedback
from dynchoice.callouts.probit import Probit
from dynchoice.callouts.values import table_from_text, table_to_text
from dynchoice.errors import DataError, first_few

if TYPE_CHECKING:
    import pandas as pd

PAGE = (
    "slots",
    "category",
    "delay_by",
    "diversity",
    "cap_window",
    "draws",
    "explore",
    "at_random",
    "seed",
)
"""Options of a policy that are saved by name, as they were given."""


def policy_to_tree(policy: Callouts) -> dict[str, Any]:
    """Return the state; lists in the catalogue's rules become texts."""
    context = policy.context
    return {
        "catalogue": table_to_text(policy.catalogue.in_days()),
        "context": None if context is None else [[k, list(v)] for k, v in context.axes.items()],
        "terms": list(policy.terms.names),
        "values": None if policy.values is None else table_to_text(policy.values),
        "options": {name: getattr(policy, name) for name in PAGE},
        "model": policy.model.to_tree(),
        "feedback": policy.feedback.to_tree(),
        "snapshot": policy.snapshot,
        "decisions": policy.decisions,
        "files": policy.files,
        "prior_method": policy.prior_method,
    }


def policy_from_tree(tree: Mapping[str, Any]) -> Callouts:
    """Return the policy that :func:`policy_to_tree` took apart."""
    context = None if tree["context"] is None else dict(tree["context"])
    model = Probit.from_tree(tree["model"])
    policy = Callouts(
        table_from_text(tree["catalogue"]),
        context,
        tree["terms"],
        method=model.method,
        forget=model.forget,
        values=None if tree["values"] is None else table_from_text(tree["values"]),
        **tree["options"],
    )
    policy.model = model
    policy.feedback = Feedback.from_tree(tree["feedback"])
    policy.snapshot, policy.decisions = int(tree["snapshot"]), int(tree["decisions"])
    policy.files, policy.prior_method = dict(tree["files"]), str(tree["prior_method"])
    policy.refresh()
    return policy


def merge_catalogues(before: Catalogue, after: Catalogue) -> Catalogue:
    """Return today's catalogue with yesterday's items first; those that are gone have ended.

    Codes of items stay, so that what was learned and what waits keep theirs.

    Raises
    ------
    DataError
        An item has other attributes than before, or a column was lost.
    """
    import pandas as pd

    frame, still_there = after.in_days(), set(after.items)
    gone = [x for x in before.items if x not in still_there]
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
        # compared as written too: a CSV gives 1 where a frame had "1"
        changed = [
            str(x)
            for x, a, b in zip(before.items, was, now, strict=False)
            if a != b and str(a) != str(b)
        ]
        if changed:
            raise DataError(
                f"{len(changed):,} items have another {c!r} than before ({first_few(changed)}):"
                " what was learned of them would be wrong; give them new names"
            )
    return whole


def move_policy(
    old: Callouts,
    catalogue: Catalogue,
    values: pd.DataFrame | None,
    page: Callouts | None = None,
) -> Callouts:
    """Return a policy with what ``old`` has learned, over a catalogue that begins with its items.

    Everything is worked out before anything is returned, and ``old`` stays as it is. ``page`` says
    slots, diversity and the like, where they are others.
    """
    page = old if page is None else page
    options = {name: getattr(page, name) for name in PAGE} | {"delay_by": old.delay_by}
    # adf: its model costs nothing, and old's takes its place
    policy = Callouts(
        catalogue,
        old.context,
        old.terms.names,
        method="adf",
        forget=page.model.forget,
        values=values,
        **options,
    )
    place = old.terms.place_in(policy.terms)
    policy.model = copy.copy(old.model).remap(place, policy.terms.groups)
    policy.model.forget = page.model.forget
    policy.feedback = copy.deepcopy(old.feedback)
    if policy.delay_by is not None:
        policy.feedback.delays.grow(len(catalogue.levels[policy.delay_by]))
    policy.snapshot, policy.decisions = old.snapshot + 1, old.decisions
    policy.files, policy.prior_method = dict(old.files), old.prior_method
    policy.refresh()
    return policy
