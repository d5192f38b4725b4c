"""The profile of the discount factor: is beta identified, and what hangs on it?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DynChoiceWarning, SpecificationError
from dynchoice.estimate.nfxp import NFXP
from dynchoice.model.ddc import DDC
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.typing import Progress


def profile_beta(
    model: DDC,
    data: Panel | Counts,
    betas: Sequence[float],
    *,
    level: float = 0.95,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Refit at a grid of discount factors: is beta identified, and what hangs on it?

    Returns
    -------
    pandas.DataFrame
        One row a discount factor: ``loglik``, whether it is ``inside`` the likelihood-ratio
        interval of the given level, ``converged``, and the parameters. A log-likelihood that
        hardly moves says that beta is assumed, not learnt (Magnac and Thesmar 2002). The error of
        laws of motion estimated before is not in the interval.

    Raises
    ------
    SpecificationError
        Fewer than two discount factors, or one outside [0, 1).
    """
    from scipy.stats import chi2

    grid = sorted({checks.number(beta, "betas") for beta in checks.items(betas, "betas")})
    if len(grid) < 2:
        raise SpecificationError("betas: at least two discount factors make a profile")
    rows, start = [], None
    for i, beta in enumerate(grid):
        patient = model.with_parts(beta=beta)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DynChoiceWarning)
            fit = NFXP(patient, data).fit(start=start, cov_type="unadjusted")
        start = fit.theta if fit.converged else None
        rows.append(
            {"beta": beta, "loglik": fit.loglik, "converged": fit.converged, **dict(fit.params)}
        )
        if progress is not None:
            progress(i + 1, len(grid), f"beta {beta:g}")
    table = pd.DataFrame(rows)
    best = table["loglik"].max()
    table.insert(2, "inside", 2 * (best - table["loglik"]) <= chi2.ppf(level, 1))
    return table
