"""Engagement chains of a membership programme: given, estimated, or carried over to a new plan."""

from __future__ import annotations

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.membership.names import BUNDLE
from dynchoice.membership.plans import Benefit
from dynchoice.membership.programme import Programme
from dynchoice.model.factored import Factored
from dynchoice.model.laws import Markov
from dynchoice.typing import FloatArray


def engagement_laws(
    club: Programme, estimated: tuple[Programme, Factored] | None
) -> dict[str, Markov]:
    """Return one Markov law a benefit, given the choice (and bundle, and other benefits).

    Chains that are not given are taken from ``estimated``, a fitted model's programme and
    transitions; without it they have no probabilities yet.
    """
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
        engaged = [
            p.engaged(benefit.name) and (bundle is None or club.share(benefit, i, bundle) > 0)
            for i, p in enumerate(club.plans)
        ]
        rows.append(np.stack([outside, *(inside if e else outside for e in engaged)]))
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
            # the bundle first among the parents, as engagement_laws lists them
            axis = parents.index(BUNDLE)
            sources = [_source_bundle(club, old, benefit, bundle) for bundle in club.bundles]
            rows = np.take(rows, sources, axis=axis)
            order = [axis, *(i for i in range(len(parents)) if i != axis)]
            rows = rows.transpose(*order, rows.ndim - 2, rows.ndim - 1)
        elif by_bundle:  # the fitted programme had no bundles: one chain serves all
            rows = np.stack([rows] * len(club.bundles))
        out.append(benefit.lifted(rows) if j and benefit.levels == 2 else rows)
    return np.stack(out)


def _source_choice(club: Programme, old: Programme, j: int) -> int:
    """Return the fitted choice whose chain choice ``j`` takes: its own plan's, or ``like``."""
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
    """Return the fitted bundle under which the same plans have the benefit; its own name first."""
    has_now = [club.share(benefit, i, bundle) > 0 for i in range(len(club.plans))]
    labels = list(old.bundles)
    for label in sorted(labels, key=lambda x: x != bundle):
        had = [old.share(benefit, i, label) > 0 for i in range(len(old.plans))]
        if had[: len(has_now)] == has_now[: len(had)]:  # plans that are new stand at the end
            return labels.index(label)
    raise SpecificationError(
        f"how members use {benefit.name!r} under the bundle {bundle!r} was never seen."
        f"{suggest(bundle, labels)} Give its chain (gain=, stay=)"
    )
