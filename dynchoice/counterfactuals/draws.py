"""Draws of everything that was estimated: utility parameters and laws of motion, jointly.

A two-step estimate moves with its first stage: with ``C`` the derivative of the score by a law's
probabilities ``p`` and ``H`` the Hessian, ``d theta = -H^{-1} C dp``. A draw takes ``p`` from the
first stage's sampling distribution (Dirichlet with the observed counts: the multinomial's, kept
positive), moves ``theta`` with it, and adds the second stage's own error, whose covariance is what
the reported one holds beyond the first stage's share.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynchoice.counterfactuals.population import Fitted
from dynchoice.errors import SpecificationError
from dynchoice.inference.results import Results
from dynchoice.membership.engagement import engagement_laws
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import BoundLaw, bind
from dynchoice.model.lifts import Lifted
from dynchoice.typing import FloatArray


@dataclass(frozen=True)
class Draw:
    """Parameters (K,) and tables of the laws drawn with them (none: as estimated)."""

    theta: FloatArray
    tables: dict[str, FloatArray] = field(default_factory=dict)


def draw_fit(
    fit: Fitted, n: int, bands: str, stream: np.random.SeedSequence | None = None
) -> list[Draw]:
    """Return the draws of one fit behind the bands of everything that rests on it.

    Parameters
    ----------
    bands : {"draws", "bootstrap", "delta"}
        See :func:`dynchoice.forecast`.

    Raises
    ------
    SpecificationError
        Nothing was estimated, or the fit has no bootstrap.
    """
    if not n:
        return []
    if not isinstance(fit, Results):
        raise SpecificationError(
            "a calibrated programme has no sampling error to draw from: draws=0, or vary"
            " params= over scenarios"
        )
    if bands == "bootstrap":
        return bootstrap_draws(fit, n)
    if bands == "delta":
        return delta_draws(fit)
    return draw_estimates(fit, n, np.random.default_rng(stream))


def law_records(fit: Results) -> list[dict[str, Any]]:
    """Return the first stage's records that say how the estimate moves with them."""
    return [r for r in fit.first_stage if "cross" in r]


def draw_estimates(fit: Results, n: int, rng: np.random.Generator) -> list[Draw]:
    """Return draws of parameters and laws of one fit.

    Laws are drawn where the fit keeps how its parameters depend on them (NFXP); elsewhere they
    stay at their estimates.
    """
    records = law_records(fit)
    transitions = fit.model.transitions
    if not records or not isinstance(transitions, Factored):
        return [Draw(theta) for theta in fit.draws(n, rng)]
    if not np.isfinite(fit.cov_matrix).all():
        fit.draws(1)  # says which direction is flat
    K = len(fit.theta)
    information = -fit.hessian[:K, :K]
    slopes, share = [], np.zeros((K, K))  # share: what the first stage adds to the covariance
    for r in records:
        p, counts, cross = r["probabilities"], r["counts"], r["cross"]
        slope = np.linalg.solve(information, cross.reshape(cross.shape[0], -1)[:K])
        slope = slope.reshape(K, *p.shape)
        total = counts.sum(axis=1)
        centred = slope - np.einsum("krm,rm->kr", slope, p)[..., None]
        weight = np.divide(p, total[:, None], out=np.zeros_like(p), where=total[:, None] > 0)
        share += np.einsum("krm,lrm,rm->kl", centred, centred, weight)
        slopes.append(slope)
    values, vectors = np.linalg.eigh(fit.cov_matrix[:K, :K] - share)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    laws = {law.name: law for law in transitions.bound}
    out = []
    for _ in range(n):
        theta = fit.theta + root @ rng.standard_normal(K)
        tables = {}
        for r, slope in zip(records, slopes, strict=True):
            p = dirichlet_rows(r["counts"], r["probabilities"], rng)
            theta = theta + np.einsum("krm,rm->k", slope, p - r["probabilities"])
            tables[r["law"]] = laws[r["law"]].fill(p)
        out.append(Draw(theta, tables))
    return out


def dirichlet_rows(counts: FloatArray, p: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return rows drawn from Dirichlet(counts); rows never observed stay at ``p``."""
    gamma = np.where(counts > 0, rng.standard_gamma(np.where(counts > 0, counts, 1.0)), 0.0)
    total = gamma.sum(axis=1, keepdims=True)
    return np.where(total > 0, gamma / np.where(total > 0, total, 1.0), p)


def scenario_tables(model: DDC, base: DDC, drawn: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Return the tables that a scenario's model has when the baseline's laws are those drawn."""
    F, G = base.transitions, model.transitions
    if not drawn or G is F:
        return drawn
    assert isinstance(F, Factored)
    if not isinstance(G, Factored):
        return {}
    old, club = base.membership, model.membership
    if club is not None and old is not None and club is not old:
        bound = tuple(
            replace(law, table=drawn[law.name]) if law.name in drawn else law for law in F.bound
        )
        laws = engagement_laws(club, (old, F.with_bound(bound)))
        fresh = {
            name: bind(model.states, model.choices, name, law).table
            for name, law in laws.items()
            if name in drawn
        }
        return apply_lifts(G, {name: table for name, table in fresh.items() if table is not None})
    baseline = {law.name: law for law in F.bound}
    # a law that the scenario replaced keeps what the scenario says of it
    kept = {
        law.name: drawn[law.name]
        for law in G.bound
        if law.name in drawn
        and law.table is not None
        and table_before_lift(law) is baseline[law.name].table
    }
    return apply_lifts(G, kept)


def table_before_lift(law: BoundLaw) -> FloatArray | None:
    """Return a law's table, before its lift if it has one."""
    return law.family.base if isinstance(law.family, Lifted) else law.table


def apply_lifts(F: Factored, tables: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Return drawn tables with the lifts of a scenario's laws."""
    return tables | {
        law.name: law.family.applied(tables[law.name])
        for law in F.bound
        if isinstance(law.family, Lifted) and law.name in tables
    }


def bootstrap_draws(fit: Results, n: int) -> list[Draw]:
    """Return the fit's own bootstrap estimates and laws as draws, ``n`` at most.

    Raises
    ------
    SpecificationError
        The fit was not bootstrapped.
    """
    if fit.bootstrap is None:
        raise SpecificationError(
            "bands='bootstrap' needs fits made with cov_type='bootstrap' (members' buckets are"
            " resampled and every stage redone)"
        )
    K = len(fit.theta)
    laws, sample = fit.bootstrap_laws, fit.bootstrap[:n, :K]
    if not laws:
        return [Draw(theta) for theta in sample]
    return [Draw(theta, tables) for theta, tables in zip(sample, laws[:n], strict=True)]


DELTA_STEP = 0.02
"""Standard deviations between the points of a central difference."""


def delta_draws(fit: Results) -> list[Draw]:
    """Return pairs of points on both sides of the estimate, one pair a direction of its error.

    Points ``theta +- h r_k`` with ``root = (r_1 ... r_K)``, ``root root' = cov``: the variance of a
    function is the sum of its squared differences over ``4 h^2``. Laws of motion are held.
    """
    if not np.isfinite(fit.cov_matrix).all():
        fit.draws(1)  # says which direction is flat
    K = len(fit.theta)
    values, vectors = np.linalg.eigh(fit.cov_matrix[:K, :K])
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    keep = values > 1e-14 * max(float(values.max(initial=0.0)), 1e-300)
    out = []
    for k in np.flatnonzero(keep):
        for sign in (1, -1):
            out.append(Draw(fit.theta + sign * DELTA_STEP * root[:, k]))
    return out
