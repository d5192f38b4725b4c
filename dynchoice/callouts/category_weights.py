"""Personal weights of categories: learned from a member's clicks, or read from a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.callouts.catalogue import Catalogue, as_texts
from dynchoice.errors import DataError, SpecificationError
from dynchoice.panel.states import as_floats
from dynchoice.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


def learn_category_weights(
    catalogue: Catalogue, category: str | None, log: pd.DataFrame, strength: float
) -> pd.DataFrame:
    """Return each member's weights of categories (Teo et al. 2016), from clicks."""
    import pandas as pd

    if category is None:
        raise SpecificationError("members' weights need category=, a column of the catalogue")
    strength = checks.positive(strength, "strength")
    checks.columns(log, ("member", "item"), "the log")
    levels = list(catalogue.levels[category])
    codes = catalogue.codes[category][catalogue.item_codes(log["item"].to_numpy())]
    nobody = int(log["member"].isna().sum())
    if nobody:
        raise DataError(f"the log has {nobody:,} clicks of no member")
    row, texts = pd.factorize(as_texts(log["member"]))
    first_row = np.unique(row, return_index=True)[1]
    members = log["member"].to_numpy()[first_row] if len(texts) else log["member"].to_numpy()[:0]
    counts = np.zeros((len(members), len(levels)))
    np.add.at(counts, (row, codes), 1.0)
    # one click added to each category: no weight is 0 where nobody has clicked yet
    common = counts.sum(axis=0) + 1.0
    share = counts + strength * common / common.sum()
    share /= share.sum(axis=1, keepdims=True)
    return pd.DataFrame(share * len(levels), index=members, columns=levels)


def read_category_weights(
    catalogue: Catalogue,
    category: str | None,
    weights: pd.DataFrame | ArrayLike | None,
    members: AnyArray,
) -> FloatArray:
    """Return weights (members, categories); members that are not in the table weigh all alike."""
    import pandas as pd

    levels = [] if category is None else list(catalogue.levels[category])
    shape = (len(members), len(levels) if category is not None else 1)
    if weights is None:
        return np.ones(shape)
    if isinstance(weights, pd.DataFrame):
        if category is None:
            raise SpecificationError("weights need category=, a column of the catalogue")
        checks.columns(weights, levels, "the table of weights")  # type: ignore[arg-type]
        by_member = weights.set_index("member") if "member" in weights.columns else weights
        by_member = by_member.set_axis(as_texts(by_member.index.to_numpy()))
        if not by_member.index.is_unique:
            raise DataError("members repeat in the table of weights")
        rows = by_member[levels].reindex(as_texts(members))
        table = as_floats(rows.to_numpy(float, na_value=np.nan), "weights")
        table = np.where(np.isnan(table), 1.0, table)
    else:
        table = as_floats(weights, "weights")
    checks.shape(table, "weights", shape, "(members, categories)")
    if not np.isfinite(table).all() or (table < 0).any():
        raise DataError("weights of categories must be numbers of at least 0")
    return np.ascontiguousarray(table)
