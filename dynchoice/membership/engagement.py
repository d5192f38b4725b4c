"""Engagement chains of a membership programme: given, estimated, or carried over to a new plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.membership.names import BUNDLE
from dynchoice.membership.plans import Benefit
from dynchoice.membership.programme import Programme
from dynchoice.model.factored import Factored
from dynchoice.model.laws import Markov
from dynchoice.typing import FloatArray


def engagement_laws(club: Programme, estimated: Any) -> dict[str, Markov]:
    """Return one Markov law a benefit, given the choice (and bundle, and other benefits)."""
    out = {}
    for b in club.benefits:
        by_bundle = b.by_bundle and bool(club.bundles)
        given = ("choice", *((BUNDLE,) if by_bundle else ()), *b.given)
        if b.known:
            out[b.name] = Markov(given, known_table(club, b, by_bundle))
        elif estimated is None:
            out[b.name] = Markov(given)
        else:
            out[b.name] = Markov(given, carried_table(club, b, by_bundle, *estimated))
    return out


def known_table(club: Programme, benefit: Benefit, by_bundle: bool) -> FloatArray:
    """Return chains by choice (and bundle): the inside one under plans that have the benefit."""
    outside, inside = benefit.table()
    inside = benefit.lifted(inside) if benefit.levels == 2 else inside
    rows = []
    for bundle in club.bundles if by_bundle else (None,):
        has = [
            p.engaged(benefit.name) and (bundle is None or club.share(benefit, i, bundle) > 0)
            for i, p in enumerate(club.plans)
        ]
        rows.append(np.stack([outside, *(inside if h else outside for h in has)]))
    return np.stack(rows, axis=1) if by_bundle else rows[0]


def carried_table(
    club: Programme, benefit: Benefit, by_bundle: bool, old: Programme, fitted: Factored
) -> FloatArray:
    """Return estimated chains laid out for a changed programme.

    A plan takes its own chain, a new one that of the plan it is ``like``; with ``by_bundle`` a
    bundle takes the chain of the fitted one that has the benefit in the same share.

    Raises
    ------
    SpecificationError
        A new plan without ``like``; a benefit or bundle whose chain was never estimated.
    """
    law = next((x for x in fitted.bound if x.name == benefit.name), None)
    if law is None or law.table is None:
        raise SpecificationError(
            f"benefit {benefit.name!r} was not in the data: give its chain (gain=, stay=) and its"
            " value (params=) as a range of scenarios"
        )
    parents = [fitted.states.names[p] for p in law.parents]
    shape = [fitted.states.shape[p] for p in law.parents]
    old_table = law.table.reshape(law.table.shape[0], *shape, law.n, law.n)
    out = []
    for j in range(len(club.choices)):
        source = _source_choice(club, old, j) if law.by_choice else 0
        rows = old_table[source]
        if BUNDLE in parents:
            at = parents.index(BUNDLE)
            kept = [_source_bundle(club, old, benefit, x) for x in club.bundles]
            rows = np.take(rows, kept, axis=at)
            order = [at, *(i for i in range(len(parents)) if i != at)]
            rows = rows.transpose(*order, rows.ndim - 2, rows.ndim - 1)
        elif by_bundle:
            rows = np.stack([rows] * len(club.bundles))
        out.append(benefit.lifted(rows) if j and benefit.levels == 2 else rows)
    return np.stack(out)


def _source_choice(club: Programme, old: Programme, j: int) -> int:
    if j == 0:
        return 0
    plan = club.plans[j - 1]
    if plan.name in old.choices:
        return old.choices.index(plan.name)
    if plan.like is None or plan.like not in old.choices:
        raise SpecificationError(
            f"plan {plan.name!r} was not in the data: say with like= which plan's members its"
            f" members will use benefits like ({', '.join(old.choices[1:])})"
        )
    return old.choices.index(plan.like)


def _source_bundle(club: Programme, old: Programme, benefit: Benefit, bundle: str) -> int:
    want = [club.share(benefit, i, bundle) > 0 for i in range(len(club.plans))]
    labels = list(old.bundles)
    rank = sorted(labels, key=lambda x: x != bundle)
    for label in rank:
        has = [old.share(benefit, i, label) > 0 for i in range(len(old.plans))]
        if has[: len(want)] == want[: len(has)]:
            return labels.index(label)
    raise SpecificationError(
        f"how members use {benefit.name!r} under the bundle {bundle!r} was never seen."
        f"{suggest(bundle, labels)} Give its chain (gain=, stay=)"
    )
