"""The identification report: what tells the parameters apart, and what does not.

Built from the expected information of the choices, ``sum_s n_s sum_j P_j dlogP_j dlogP_j'``, which
splits exactly over states, regions and months. Taking out the rows of a roll-out shows what would
be known without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice.errors import SpecificationError, suggest
from dynchoice.inference.covariance import FLAT
from dynchoice.inference.diagnostics import Identification
from dynchoice.inference.summary import wrapped
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.regions import MarketEvent, market_events
from dynchoice.panel.counts import Counts
from dynchoice.panel.panel import Panel
from dynchoice.solvers.solver import ccp_derivative, state_information
from dynchoice.typing import FloatArray

if TYPE_CHECKING:
    import pandas as pd

HIGH = 0.9
"""Correlation of two estimates above which they are called hard to tell apart."""
MUCH = 0.5
"""Loss of information, beyond that of the rows, above which a roll-out is said to separate."""


def correlations(information: FloatArray) -> FloatArray:
    """Return correlations (K, K) of the estimates that an information matrix implies.

    Pairs on a flat direction get +-1: nothing tells them apart.
    """
    scale = np.sqrt(np.maximum(np.diag(information), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(information / np.outer(safe, safe))
    # a flat direction gets an enormous variance, so that it dominates the correlation
    floor = FLAT * max(float(values[-1]), 1e-300)
    cov = (vectors / np.maximum(values, floor)) @ vectors.T
    size = np.sqrt(np.diag(cov))
    return np.asarray(np.clip(cov / np.outer(size, size), -1.0, 1.0))


def effective(information: FloatArray) -> FloatArray:
    """Return each parameter's information given the others, ``1 / [I^-1]_kk`` (K,)."""
    scale = np.sqrt(np.maximum(np.diag(information), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(information / np.outer(safe, safe))
    floor = FLAT * max(float(values[-1]), 1e-300)
    inner = (vectors**2 / np.maximum(values, floor)).sum(axis=1)
    return np.asarray(np.where(scale > 0, safe**2 / inner, 0.0))


@dataclass(frozen=True)
class Source:
    """What one roll-out (or price change) contributes.

    Attributes
    ----------
    event : MarketEvent
    dropped : str
        Which rows were taken out: those of the regions where it came, or, where it came
        everywhere, those after it.
    rows : float
        Their share of the member-months.
    information : FloatArray, shape (K, K)
        What is left without them.
    """

    event: MarketEvent
    dropped: str
    rows: float
    information: FloatArray


@dataclass(frozen=True)
class IdentificationReport(Identification):
    """Spectrum and weak directions, hard pairs, what separates them, what varies where.

    ``print`` it to read it; :meth:`frame`, :meth:`pairs`, :meth:`shares` and :meth:`varies` are
    tables for scripts.
    """

    information: FloatArray
    sources: tuple[Source, ...]
    moves: FloatArray
    anchor: str
    at: str
    regional: bool = True

    # tables -----------------------------------------------------------------------------------

    def pairs(self, among: Iterable[str] | None = None) -> pd.DataFrame:
        """Return pairs of parameters by the correlation of their estimates, largest first.

        One column more for each roll-out: the correlation without its rows.

        Parameters
        ----------
        among : names, optional
            Only pairs of these parameters.
        """
        import pandas as pd

        names = list(self.names)
        if isinstance(among, str):
            raise SpecificationError(f"among: pass a list of names, not the text {among!r}")
        chosen = names if among is None else list(among)
        for name in chosen:
            if name not in names:
                raise SpecificationError(
                    f"no parameter {name!r}.{suggest(name, names)} Parameters: {', '.join(names)}"
                )
        own = correlations(self.information)
        without = [correlations(s.information) for s in self.sources]
        rows = []
        for i, a in enumerate(names):
            for j in range(i):
                if a in chosen and names[j] in chosen:
                    row: dict[str, Any] = {
                        "first": names[j],
                        "second": a,
                        "correlation": own[i, j],
                    }
                    for source, table in zip(self.sources, without, strict=True):
                        row[f"without {source.event.label}"] = table[i, j]
                    rows.append(row)
        table = pd.DataFrame(rows)
        if not len(table):
            return table
        order = np.argsort(-table["correlation"].abs().to_numpy(), kind="stable")
        return table.iloc[order].reset_index(drop=True)

    def shares(self) -> pd.DataFrame:
        """Return the share of each parameter's information that comes from each roll-out's rows.

        ``1 - i_without / i`` with ``i`` the information on the parameter given all others.
        """
        import pandas as pd

        whole = effective(self.information)
        columns = {
            s.event.label: 1
            - np.divide(effective(s.information), whole, out=np.ones_like(whole), where=whole > 0)
            for s in self.sources
        }
        return pd.DataFrame(columns, index=list(self.names))

    def varies(self) -> pd.DataFrame:
        """Return, for each parameter, where its feature differs across the choices offered.

        ``states`` of those seen, share of ``member_months`` in them, least and largest contrast
        between choices; and the standard error that the information implies.
        """
        import pandas as pd

        table = pd.DataFrame(
            self.moves,
            index=list(self.names),
            columns=["states", "member_months", "least", "largest"],
        )
        table["std_error"] = 1 / np.sqrt(np.maximum(effective(self.information), 1e-300))
        return table

    def hardest(self, among: Iterable[str] | None = None) -> tuple[str, str]:
        """Return the two parameters that are hardest to tell apart."""
        table = self.pairs(among)
        if not len(table):
            raise SpecificationError("two parameters are needed to make a pair")
        return str(table["first"].iloc[0]), str(table["second"].iloc[0])

    # words ------------------------------------------------------------------------------------

    def pair_in_words(self, among: Iterable[str] | None = None) -> str:
        """Say which pair is hardest to tell apart and what separates it."""
        if len(self.names) < 2:
            return "One parameter: nothing to confuse it with."
        a, b = self.hardest(among)
        i, j = self.names.index(a), self.names.index(b)
        own = abs(correlations(self.information)[i, j])
        flat = self._told_together(self.information, i, j)
        text = f"{a} and {b}: {own:.2f} correlated"
        if flat:
            return text + "; nothing in these data tells them apart."
        if own < HIGH:
            text += " (no pair is above 0.90)"
        best = None
        whole = effective(self.information)
        for s in self.sources:
            left = effective(s.information)
            # information that goes beyond what taking out so many rows would take anyway
            lost = 1 - min(left[i] / whole[i], left[j] / whole[j]) / max(1 - s.rows, 1e-9)
            if best is None or lost > best[0]:
                best = lost, s
        if best is None:
            if not self.regional:
                return text + (
                    "; no roll-out or price change was looked for: the panel names no regions"
                    " (region=)."
                )
            return text + "; no roll-out or price change is in the panel to separate them."
        lost, s = best
        if lost < MUCH:
            return text + (
                "; no roll-out or price change separates them by itself: it takes what differs"
                " between members, regions and months together."
            )
        after = abs(correlations(s.information)[i, j])
        if self._told_together(s.information, i, j):
            return text + (
                f"; what separates them is {s.event.label}: without {s.dropped} nothing tells them"
                " apart."
            )
        ratio = np.sqrt(
            max(whole[i] / effective(s.information)[i], whole[j] / effective(s.information)[j])
        )
        return text + (
            f"; what separates them is {s.event.label}: without {s.dropped} ({s.rows:.0%} of the"
            f" member-months) they are {after:.3f} correlated and the standard errors"
            f" {ratio:.1f} times as large."
        )

    def _separates(self, source: Source) -> str:
        """Say which pair a roll-out separates best."""
        own = np.abs(correlations(self.information))
        without = np.abs(correlations(source.information))
        K = len(self.names)
        # by how much the part that is not shared shrinks
        gain = np.tril((1 - own) / np.maximum(1 - without, 1e-9), -1)
        i, j = np.unravel_index(int(gain.argmax()), (K, K))
        if gain[i, j] < 1.5:
            return "it separates no pair that is not told apart without it"
        return (
            f"it separates {self.names[j]} and {self.names[i]}: {own[i, j]:.2f} correlated with it,"
            f" {without[i, j]:.2f} without"
        )

    @staticmethod
    def _told_together(information: FloatArray, i: int, j: int) -> bool:
        scale = np.sqrt(np.maximum(np.diag(information), 0.0))
        safe = np.where(scale > 0, scale, 1.0)
        values, vectors = np.linalg.eigh(information / np.outer(safe, safe))
        flat = vectors[:, values < FLAT * max(float(values[-1]), 1e-300)]
        return bool((np.abs(flat[[i, j]]) > 1e-3).any()) if flat.shape[1] else False

    def __str__(self) -> str:
        lines = [
            f"Identification {self.at}: condition number {self.condition:.3g} of the scaled"
            " information",
            self.pair_in_words(),
        ]
        if self.flat:
            lines.append("Not identified at all: " + "; ".join(self.flat))
        lines.append(self.anchor)
        if self.sources:
            table = self.shares()
            for s in self.sources:
                column = table[s.event.label].sort_values(ascending=False)
                top = [f"{name} {share:.0%}" for name, share in column.head(3).items()]
                kind = "regions" if not s.event.everywhere else "months after it"
                lines.append(
                    f"{s.event.label}: its {kind} hold {s.rows:.0%} of the rows and, of the"
                    f" information, {', '.join(top)}; {self._separates(s)}"
                )
        lines = [wrapped(line) for line in lines]
        lines.append("")
        lines.append(self.frame().to_string(index=False, float_format="{:.3g}".format))
        lines.append("")
        lines.append(self.varies().to_string(float_format="{:.3g}".format))
        return "\n".join(lines)

    __repr__ = __str__


def anchor_in_words(model: DDC) -> str:
    """Say where utility is normalised: choices whose features are zero."""
    still = (np.abs(model.utility.x).max(axis=2) == 0) & (model.utility.offset == 0)
    still &= model.available
    parts = []
    for j, label in enumerate(model.choices):
        offered = int(model.available[:, j].sum())
        zero = int(still[:, j].sum())
        if zero:
            parts.append(f"{label!r} is worth 0 in {zero:,} of the {offered:,} states offering it")
    if not parts:
        return (
            "Normalisation: no choice has utility 0 anywhere; levels are identified only through"
            " the functional form"
        )
    return "Normalisation (the anchor): " + "; ".join(parts)


def identification_report(
    model: DDC,
    counts: Counts,
    theta: FloatArray,
    value: FloatArray | None = None,
    at: str = "at the estimate",
) -> IdentificationReport:
    """Build the report of a model on counts, at parameters (K,)."""
    P, dlogp = ccp_derivative(model, theta, value)
    J = state_information(P, dlogp)
    n = counts.n_sj().sum(axis=1)
    information = np.einsum("s,skl->kl", n, J)
    sources = []
    if counts.regions is not None:
        own = counts.regions
        for event in market_events(model, counts):
            cells, weight = own.cells, own.n * (own.cells[:, 6] == 1)
            if event.everywhere:
                first = np.array([event.starts.get(x, counts.last_period + 1) for x in own.labels])
                drop = cells[:, 2] >= first[cells[:, 1]]
                dropped = "the months after it"
            else:
                treated = np.array([x in event.starts for x in own.labels])
                drop = treated[cells[:, 1]]
                dropped = "the rows of those regions"
            left = np.bincount(cells[~drop, 3], weights=weight[~drop], minlength=model.states.size)
            share = float(weight[drop].sum() / max(weight.sum(), 1e-300))
            rest = np.einsum("s,skl->kl", left, J)
            sources.append(Source(event, dropped, share, rest))
    x = np.where(model.available[:, :, None], model.utility.x, np.nan)
    seen = n > 0
    spread = np.nanmax(x, axis=1) - np.nanmin(x, axis=1)
    moving = (spread > 0) & seen[:, None]
    total = max(float(n.sum()), 1e-300)
    bounds = np.where(moving, spread, np.nan)
    moves = np.column_stack(
        [
            moving.sum(axis=0),
            (moving * n[:, None]).sum(axis=0) / total,
            [np.nanmin(c) if m.any() else 0.0 for c, m in zip(bounds.T, moving.T, strict=True)],
            [np.nanmax(c) if m.any() else 0.0 for c, m in zip(bounds.T, moving.T, strict=True)],
        ]
    ).astype(np.float64)
    base = Identification.of(model.names, information)
    return IdentificationReport(
        base.names,
        base.eigenvalues,
        base.vectors,
        base.scale,
        information,
        tuple(sources),
        moves,
        anchor_in_words(model),
        at,
        counts.regions is not None,
    )


def identification(model: DDC, data: Any, params: Any = None) -> IdentificationReport:
    """Say what a panel can tell about a model's parameters, before any fit.

    Parameters
    ----------
    model : DDC
        Infinite horizon; laws of motion without probabilities are estimated from the data.
    data : Panel or Counts
        With regions, roll-outs and price changes are found and their part is shown.
    params : array (K,), mapping or Series, optional
        Where to look; default zero, where every choice is equally likely today.

    Raises
    ------
    SpecificationError
        A finite horizon; laws without probabilities.
    """
    counts = data.counts if isinstance(data, Panel) else data
    if not isinstance(counts, Counts):
        raise SpecificationError(f"data is a {type(data).__name__}; pass a Panel or its Counts")
    if counts.states != model.states or counts.choices != model.choices:
        raise SpecificationError(
            f"the panel's states and choices ({counts.states!r}, {list(counts.choices)}) are not"
            f" the model's ({model.states!r}, {list(model.choices)}; the order counts)"
        )
    if model.horizon is not None:
        raise SpecificationError("the identification report is for infinite horizons")
    if isinstance(model.transitions, Factored) and model.transitions.estimated:
        model = model.with_transitions(model.transitions.estimate(*counts.moves())[0])
    theta = np.zeros(len(model.names)) if params is None else model.vector(params)
    at = "at zero" if params is None else "at the parameters given"
    return identification_report(model, counts, theta, at=at)
