"""The design of papers.md 3: 3 slots of 8 contents, weights N(0, 1), 40 batches of 1,000."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm

import dynchoice as dc

CONTENTS, SLOTS, BATCH, BATCHES = 8, 3, 1000, 40
PAGE = {f"s{d}": range(CONTENTS) for d in range(SLOTS)}
BASE = -1.6


def scales(a1: float, a2: float) -> tuple[float, float]:
    """Return the standard deviations of contents' and pairs' weights in the index."""
    c = 0.35 * np.sqrt(2) / np.sqrt(SLOTS * a1**2 + SLOTS * a2**2)
    return c * a1, c * a2


def world(seed: int, a1: float, a2: float) -> np.ndarray:
    """Return the click probability (8, 8, 8) of every layout."""
    rng = np.random.default_rng([seed, 1])
    main = rng.standard_normal((SLOTS, CONTENTS))
    pair = rng.standard_normal((SLOTS, CONTENTS, CONTENTS))
    a, b = scales(a1, a2)
    index = np.full((CONTENTS,) * SLOTS, BASE)
    for d in range(SLOTS):
        shape = [1] * SLOTS
        shape[d] = CONTENTS
        index = index + a * main[d].reshape(shape)
    for k, (d, e) in enumerate([(0, 1), (0, 2), (1, 2)]):
        shape = [1] * SLOTS
        shape[d] = shape[e] = CONTENTS
        index = index + b * pair[k].reshape(shape)
    return norm.cdf(index)


def oracle(a1: float, a2: float, order: int) -> dict[str, tuple[float, float]]:
    """Return the true variances of the groups (a small one where the truth is none)."""
    a, b = scales(a1, a2)
    own = {"content": (0.0, max(a * a, 1e-4))}
    return own | {"pair": (0.0, max(b * b, 1e-4))} if order == 2 else own


def regret(
    page: dc.LayoutBandit, seed: int, a1: float, a2: float, batches: int = BATCHES,
    after: Callable[[dc.LayoutBandit, int], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the mean regret of each batch; ``after`` is called when one was learned."""
    chance = world(seed, a1, a2)
    rng = np.random.default_rng([seed, 2])
    out = np.empty(batches)
    names = list(PAGE)
    for b in range(batches):
        shown = page.decide(BATCH)
        p = chance[tuple(shown[n].to_numpy() for n in names)]
        out[b] = chance.max() - p.mean()
        clicks = (rng.random(BATCH) < p).astype(int)
        told = pd.DataFrame({n: shown[n] for n in names} | {"clicks": clicks})
        page.learn(told, batch=str(b))
        if after is not None:
            after(page, b)
    return out


def bandit(name: str, seed: int, a1: float, a2: float, method: str, prior: str) -> dc.LayoutBandit:
    """Return MVT1, MVT2, N^D-MAB or D-MABs with N(0, 1) priors or the true group variances."""
    kind = {"N^D-MAB": "one-arm", "D-MABs": "independent"}.get(name, "multivariate")
    order = 1 if name == "MVT1" else 2
    given = oracle(a1, a2, order) if prior == "oracle" else None
    return dc.LayoutBandit(
        PAGE, order=order, kind=kind, method=method, prior=given, draws=BATCH, seed=seed
    )
