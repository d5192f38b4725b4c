"""The identification report: what in the data tells the parameters apart.

Built from the expected information of the choices, ``sum_s n_s sum_j P_j dlogP_j dlogP_j'``. It is
a sum over states, regions and months, so the part of any of them can be taken out exactly: what is
left without the rows of a roll-out is what would be known without that roll-out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import SpecificationError
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
    from numpy.typing import ArrayLike

HIGH = 0.9
"""Correlation of two estimates above which they are called hard to tell apart."""
MUCH = 0.5
"""Loss of information, beyond that of the rows, above which a roll-out is said to separate."""


def correlations(information: FloatArray) -> FloatArray:
    """Return correlations (K, K) of the estimates that an information matrix implies.

    Pairs on a flat direction get +-1: nothing tells them apart.
    """
    values, vectors, _ = _spectrum(information)
    # a flat direction gets an enormous variance, so that it dominates the correlation
    cov = (vectors / np.maximum(values, _floor(values))) @ vectors.T
    size = np.sqrt(np.diag(cov))
    return np.asarray(np.clip(cov / np.outer(size, size), -1.0, 1.0))


def effective(information: FloatArray) -> FloatArray:
    """Return each parameter's information given the others, ``1 / [I^-1]_kk`` (K,)."""
    values, vectors, scale = _spectrum(information)
    variances = (vectors**2 / np.maximum(values, _floor(values))).sum(axis=1)
    return np.asarray(np.where(np.diag(information) > 0, scale**2 / variances, 0.0))


def _spectrum(information: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return eigenvalues (ascending) and vectors of the information scaled to unit diagonal.

    The third array holds the scales (K,), 1 for a parameter without information.
    """
    scale = np.sqrt(np.maximum(np.diag(information), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(information / np.outer(safe, safe))
    return values, vectors, safe


def _floor(values: FloatArray) -> float:
    """Return the eigenvalue below which a direction is flat."""
    return FLAT * max(float(values[-1]), 1e-300)


@dataclass(frozen=True)
class Source:
    """The information that is left without one roll-out (or price change).

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
    """Weak directions, pairs that are hard to tell apart and what separates them.

    ``print`` it to read it; :meth:`frame`, :meth:`pairs`, :meth:`shares` and :meth:`varies` are
    tables for scripts.

    Attributes
    ----------
    information : FloatArray, shape (K, K)
    sources : tuple of Source
        One for each roll-out or price change.
    moves : FloatArray, shape (K, 4)
        The columns of :meth:`varies` that the data give.
    anchor : str
        Where utility is normalised, in words.
    at : str
        Where the information was taken, in words.
    regional : bool
        Whether the panel names regions, so that roll-outs were looked for.
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
        names = list(self.names)
        if isinstance(among, str):
            raise SpecificationError(f"among: pass a list of names, not the text {among!r}")
        chosen = names if among is None else list(among)
        checks.known(chosen, names, "among: parameter")
        tables = {"correlation": correlations(self.information)}
        for source in self.sources:
            tables[f"without {source.event.label}"] = correlations(source.information)
        rows: list[dict[str, Any]] = []
        for i, second in enumerate(names):
            for j, first in enumerate(names[:i]):
                if first in chosen and second in chosen:
                    values = {label: table[i, j] for label, table in tables.items()}
                    rows.append({"first": first, "second": second, **values})
        pairs = pd.DataFrame(rows)
        if not len(pairs):
            return pairs
        order = np.argsort(-pairs["correlation"].abs().to_numpy(), kind="stable")
        return pairs.iloc[order].reset_index(drop=True)

    def shares(self) -> pd.DataFrame:
        """Return the share of each parameter's information that comes from each roll-out's rows.

        ``1 - i_without / i`` with ``i`` the information on the parameter given all others.
        """
        whole = effective(self.information)
        columns = {}
        for source in self.sources:
            left = effective(source.information)
            # a parameter without information has none from any source: the ratio stays at one
            ratio = np.divide(left, whole, out=np.ones_like(whole), where=whole > 0)
            columns[source.event.label] = 1 - ratio
        return pd.DataFrame(columns, index=list(self.names))

    def varies(self) -> pd.DataFrame:
        """Return, for each parameter, where its feature differs across the choices offered.

        ``states`` of those seen, share of ``member_months`` in them, least and largest contrast
        between choices; and the standard error that the information implies.
        """
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
        first, second = self.hardest(among)
        i, j = self.names.index(first), self.names.index(second)
        correlation = abs(correlations(self.information)[i, j])
        text = f"{first} and {second}: {correlation:.2f} correlated"
        if _share_flat_direction(self.information, i, j):
            return text + "; nothing in these data tells them apart."
        if correlation < HIGH:
            text += " (no pair is above 0.90)"
        if not self.sources:
            if not self.regional:
                return text + (
                    "; no roll-out or price change was looked for: the panel names no regions"
                    " (region=)."
                )
            return text + "; no roll-out or price change is in the panel to separate them."
        loss, source = self._most_telling_source(i, j)
        if loss < MUCH:
            return text + (
                "; no roll-out or price change separates them by itself: it takes what differs"
                " between members, regions and months together."
            )
        return f"{text}; {self._source_in_words(source, i, j)}"

    def _most_telling_source(self, i: int, j: int) -> tuple[float, Source]:
        """Return the source without which two parameters lose most, and how much they lose."""
        whole = effective(self.information)
        losses = []
        for source in self.sources:
            left = effective(source.information)
            # information that goes beyond what taking out so many rows would take anyway
            rest = max(1 - source.rows, 1e-9)
            losses.append(1 - min(left[i] / whole[i], left[j] / whole[j]) / rest)
        best = max(range(len(losses)), key=lambda k: losses[k])
        return losses[best], self.sources[best]

    def _source_in_words(self, source: Source, i: int, j: int) -> str:
        """Say how well two parameters are told apart without the rows of a source."""
        text = f"what separates them is {source.event.label}: without {source.dropped}"
        if _share_flat_direction(source.information, i, j):
            return f"{text} nothing tells them apart."
        correlation = abs(correlations(source.information)[i, j])
        whole, left = effective(self.information), effective(source.information)
        ratio = np.sqrt(max(whole[i] / left[i], whole[j] / left[j]))
        return (
            f"{text} ({source.rows:.0%} of the member-months) they are {correlation:.3f} correlated"
            f" and the standard errors {ratio:.1f} times as large."
        )

    def _best_pair_in_words(self, source: Source) -> str:
        """Say which pair a roll-out separates best."""
        with_it = np.abs(correlations(self.information))
        without = np.abs(correlations(source.information))
        K = len(self.names)
        # by how much the part that is not shared shrinks
        gain = np.tril((1 - with_it) / np.maximum(1 - without, 1e-9), -1)
        i, j = np.unravel_index(int(gain.argmax()), (K, K))
        if gain[i, j] < 1.5:
            return "it separates no pair that is not told apart without it"
        return (
            f"it separates {self.names[j]} and {self.names[i]}: {with_it[i, j]:.2f} correlated with"
            f" it, {without[i, j]:.2f} without"
        )

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
            for source in self.sources:
                label = source.event.label
                column = table[label].sort_values(ascending=False)
                top = [f"{name} {share:.0%}" for name, share in column.head(3).items()]
                kind = "months after it" if source.event.everywhere else "regions"
                lines.append(
                    f"{label}: its {kind} hold {source.rows:.0%} of the rows and, of the"
                    f" information, {', '.join(top)}; {self._best_pair_in_words(source)}"
                )
        lines = [wrapped(line) for line in lines]
        lines.append("")
        lines.append(self.frame().to_string(index=False, float_format="{:.3g}".format))
        lines.append("")
        lines.append(self.varies().to_string(float_format="{:.3g}".format))
        return "\n".join(lines)

    __repr__ = __str__


def _share_flat_direction(information: FloatArray, i: int, j: int) -> bool:
    """Return whether one of two parameters lies on a direction that nothing identifies."""
    values, vectors, _ = _spectrum(information)
    flat = vectors[:, values < _floor(values)]
    return bool((np.abs(flat[[i, j]]) > 1e-3).any()) if flat.shape[1] else False


def anchor_in_words(model: DDC) -> str:
    """Say where utility is normalised: choices whose features are zero."""
    is_zero = (np.abs(model.utility.x).max(axis=2) == 0) & (model.utility.offset == 0)
    is_zero &= model.available
    parts = []
    for j, label in enumerate(model.choices):
        offered = int(model.available[:, j].sum())
        zero = int(is_zero[:, j].sum())
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
    by_state = state_information(P, dlogp)
    n = counts.n_sj().sum(axis=1)
    information = np.einsum("s,skl->kl", n, by_state)
    spectrum = Identification.of(model.names, information)
    return IdentificationReport(
        names=spectrum.names,
        eigenvalues=spectrum.eigenvalues,
        vectors=spectrum.vectors,
        scale=spectrum.scale,
        information=information,
        sources=tuple(_find_sources(model, counts, by_state)),
        moves=_measure_contrasts(model, n),
        anchor=anchor_in_words(model),
        at=at,
        regional=counts.regions is not None,
    )


def _find_sources(model: DDC, counts: Counts, by_state: FloatArray) -> Iterator[Source]:
    """Yield what each roll-out contributes, from one choice's information by state (S, K, K)."""
    regions = counts.regions
    if regions is None:
        return
    # cells are (segment, region, period, state, choice, next state, decides)
    region, period, state = regions.cells[:, 1], regions.cells[:, 2], regions.cells[:, 3]
    weight = regions.n * (regions.cells[:, 6] == 1)
    for event in market_events(model, counts):
        if event.everywhere:
            # no region is left to compare with: before and after are compared
            never = counts.last_period + 1
            first = np.array([event.starts.get(label, never) for label in regions.labels])
            drop = period >= first[region]
            dropped = "the months after it"
        else:
            treated = np.array([label in event.starts for label in regions.labels])
            drop = treated[region]
            dropped = "the rows of those regions"
        left = np.bincount(state[~drop], weights=weight[~drop], minlength=model.states.size)
        share = float(weight[drop].sum() / max(weight.sum(), 1e-300))
        yield Source(event, dropped, share, np.einsum("s,skl->kl", left, by_state))


def _measure_contrasts(model: DDC, n: FloatArray) -> FloatArray:
    """Return where each feature differs across the choices offered (K, 4).

    Columns: states among those observed, share of the member-months ``n`` (S,) in them, least and
    largest contrast.
    """
    x = np.where(model.available[:, :, None], model.utility.x, np.nan)
    contrast = np.nanmax(x, axis=1) - np.nanmin(x, axis=1)
    differs = (contrast > 0) & (n > 0)[:, None]
    shown = np.where(differs, contrast, np.nan)
    total = max(float(n.sum()), 1e-300)
    columns = list(zip(shown.T, differs.any(axis=0), strict=True))
    return np.column_stack(
        [
            differs.sum(axis=0),
            (differs * n[:, None]).sum(axis=0) / total,
            [np.nanmin(values) if varies else 0.0 for values, varies in columns],
            [np.nanmax(values) if varies else 0.0 for values, varies in columns],
        ]
    ).astype(np.float64)


def identification(
    model: DDC, data: Panel | Counts, params: ArrayLike | Mapping[str, float] | None = None
) -> IdentificationReport:
    """Report what a panel can tell about a model's parameters, before any fit.

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
    checks.instance(counts, "data", Counts, "pass a Panel or its Counts")
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
