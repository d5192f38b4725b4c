"""Where model and panel meet: refusals, first-stage transitions and their influence.

The first stage estimates each law without probabilities by frequencies. Its sampling error
enters the second stage through ``c_k(s, j, s')``, the influence of one observed move on the
score of parameter ``k``: with ``C`` the derivative of the score by a multinomial row ``p`` with
``n`` observations, a move to outcome ``i`` contributes ``(C_i - sum p C) / n``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynchoice.errors import DataError, SpecificationError, first_few
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored, LawEstimate
from dynchoice.panel.counts import NO_NEXT, Counts
from dynchoice.panel.panel import Panel
from dynchoice.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class FirstStage:
    """The model with every law filled in, what was estimated, and remarks for the summary."""

    model: DDC
    estimates: tuple[LawEstimate, ...]
    notes: tuple[str, ...]

    @property
    def loglik(self) -> float | None:
        """Log-likelihood of the observed moves; None when nothing was estimated."""
        return sum(e.loglik for e in self.estimates) if self.estimates else None

    @property
    def nparams(self) -> int:
        """Free probabilities estimated."""
        return sum(e.nparams for e in self.estimates)

    def records(self, cross: dict[str, FloatArray] | None = None) -> tuple[dict[str, Any], ...]:
        """Return what a results object keeps of the first stage.

        ``cross`` is the derivative of the second stage's score by each law's rows.
        """
        return tuple(
            {
                "law": e.name,
                "counts": e.counts,
                "probabilities": e.probabilities,
                "borrowed": e.borrowed,
                **({} if cross is None else {"cross": cross[e.name]}),
            }
            for e in self.estimates
        )


def counts_of(data: Panel | Counts) -> tuple[Counts, Panel | None]:
    """Return the counts of a Panel or Counts, and the panel if there is one."""
    if isinstance(data, Panel):
        return data.counts, data
    if isinstance(data, Counts):
        return data, None
    raise SpecificationError(f"data is a {type(data).__name__}; pass a Panel or its Counts")


def first_stage(
    model: DDC, counts: Counts, panel: Panel | None, *, naive: bool = False
) -> FirstStage:
    """Check that the panel can come from the model and estimate the laws that need it.

    Parameters
    ----------
    naive : bool
        Whether the estimator can do with members who overrate their attention: inverting choice
        probabilities assumes that they foresee it.

    Raises
    ------
    SpecificationError
        Model and panel have other states or choices; naive members where they cannot be.
    DataError
        Choices that the state does not offer; moves that no law allows; no choice at all.
    """
    if counts.states != model.states:
        raise SpecificationError(
            f"the panel's states ({counts.states!r}) are not the model's ({model.states!r})"
        )
    if counts.choices != model.choices:
        raise SpecificationError(
            f"the panel's choices {list(counts.choices)} are not the model's {list(model.choices)}"
            " (the order counts)"
        )
    if not naive and not model.sophisticated:
        raise SpecificationError(
            "naive members (perceived attention above attention) are estimated by NFXP only: choice"
            " probabilities cannot be inverted to values that members misjudge"
        )
    if counts.nobs <= 0:
        raise DataError("no row of the panel enters the likelihood (decision is 0 everywhere)")
    refuse_unavailable(model, counts, panel)
    moves, n = counts.moves()
    notes: list[str] = []
    if model.membership is not None and model.membership.fixed:
        held = ", ".join(f"{k} = {v:g}" for k, v in model.membership.fixed.items())
        notes.append(f"held fixed, not estimated: {held}")
    estimates: list[LawEstimate] = []
    transitions = model.transitions
    if isinstance(transitions, Factored):
        refuse_moves(model, transitions.impossible(moves), moves, n, panel)
        surprise = float(n[transitions.surprises(moves)].sum())
        if surprise:
            notes.append(
                f"{surprise:,.0f} member-months change the level of a Fixed axis (a price change, a"
                " roll-out): members are taken to be surprised"
            )
        if transitions.estimated:
            transitions, estimates = transitions.estimate(moves, n)
            model = model.with_transitions(transitions)
        for e in estimates:
            if e.borrowed:
                notes.append(
                    f"law {e.name!r}: {e.borrowed} of {len(e.counts)} rows were never observed and"
                    " take the frequencies "
                    + (
                        "pooled over choices and parents"
                        if e.sources is None
                        else "of the same choice in the state like theirs"
                    )
                )
    elif len(moves):
        refuse_moves(model, ~reachable(transitions.stacked(), moves, model), moves, n, panel)
    visited = int((counts.n_sj().sum(axis=1) > 0).sum())
    if visited < model.states.size:
        notes.append(
            f"{model.states.size - visited:,} of {model.states.size:,} states are never seen: there"
            " the model speaks, not the data (see support())"
        )
    return FirstStage(model, tuple(estimates), tuple(notes))


def reachable(
    stacked: tuple[IntArray, IntArray, FloatArray], moves: IntArray, model: DDC
) -> BoolArray:
    """Return which observed (s, j, s') moves have positive probability in stacked rows."""
    indptr, indices, data = stacked
    row = moves[:, 0] * len(model.choices) + moves[:, 1]
    out = np.zeros(len(moves), dtype=bool)
    for i, (first, last) in enumerate(zip(indptr[row], indptr[row + 1], strict=True)):
        cell = first + np.searchsorted(indices[first:last], moves[i, 2])
        out[i] = cell < last and indices[cell] == moves[i, 2] and data[cell] > 0
    return out


def refuse_unavailable(model: DDC, counts: Counts, panel: Panel | None) -> None:
    """Raise if the panel holds choices that their state does not offer."""
    state, choice = counts.cells[:, 2], counts.cells[:, 3]
    bad = ~model.available[state, choice]
    if not bad.any():
        return
    shown = []
    pairs = list(dict.fromkeys(zip(state[bad].tolist(), choice[bad].tolist(), strict=True)))
    for s, j in pairs[:3]:
        where = f"{model.choices[j]!r} in ({model.states.describe(s)})"
        rows = f", {first_few(panel.first_rows(s, j))}" if panel is not None else ""
        shown.append(where + rows)
    raise DataError(
        f"{counts.n[bad].sum():,.0f} member-months take a choice that their state does not offer,"
        f" in {len(pairs):,} state-choice pairs: {'; '.join(shown)}. Mend the panel, or change"
        " available="
    )


def refuse_moves(
    model: DDC, bad: BoolArray, moves: IntArray, n: FloatArray, panel: Panel | None
) -> None:
    """Raise if the panel holds moves that the transition law gives probability zero."""
    if not bad.any():
        return
    shown = []
    for s, j, following in moves[bad][:3]:
        where = (
            f"({model.states.describe(s)}) -> ({model.states.describe(following)}) after"
            f" {model.choices[j]!r}"
        )
        rows = f", {first_few(panel.first_rows(s, j, following))}" if panel is not None else ""
        shown.append(where + rows)
    raise DataError(
        f"{n[bad].sum():,.0f} member-months move where the transition law does not allow,"
        f" in {int(bad.sum()):,} cells: {'; '.join(shown)}. Mend the panel, or change the law"
    )


def influence(
    model: DDC, estimates: tuple[LawEstimate, ...], cross: dict[str, FloatArray]
) -> tuple[Callable[[IntArray], FloatArray], FloatArray]:
    """Return the first stage's influence on the score, by cell, and its variance ``V1``.

    Parameters
    ----------
    cross : dict of FloatArray, shape (K, R, m)
        Derivative of the score by each law's multinomial rows.

    Returns
    -------
    by_cell : callable
        Cells (C, 4) of (state, choice, next state, decides) -> influence (C, K).
    V1 : FloatArray, shape (K, K)
        Sum over observed moves of the outer product of their influence, law by law.
    """
    transitions = model.transitions
    assert isinstance(transitions, Factored)
    laws = {law.name: law for law in transitions.bound}
    K = len(next(iter(cross.values()))) if cross else len(model.names)
    tables: list[tuple[Any, FloatArray]] = []
    V1 = np.zeros((K, K))
    for e in estimates:
        C = cross[e.name]
        if e.sources is not None:
            # what rows do that others stand in for, they do
            stood_in = np.zeros((C.shape[1], len(C), C.shape[2]))
            np.add.at(stood_in, e.sources, np.moveaxis(C, 1, 0))
            C = np.moveaxis(stood_in, 0, 1)
        total = e.counts.sum(axis=1)
        centred = C - np.einsum("krm,rm->kr", C, e.probabilities)[:, :, None]
        c = np.divide(
            centred, total[None, :, None], out=np.zeros_like(centred), where=total[:, None] > 0
        )
        V1 += np.einsum("krm,lrm,rm->kl", c, c, e.counts)
        tables.append((laws[e.name], c))

    def by_cell(cells: IntArray) -> FloatArray:
        out = np.zeros((len(cells), K))
        moved = cells[:, 2] != NO_NEXT
        moves = np.ascontiguousarray(cells[moved, :3])
        for law, c in tables:
            row, outcome = transitions.moves_outcomes(law, moves)
            informative = outcome >= 0
            part = np.zeros((len(moves), K))
            part[informative] = c[:, row[informative], outcome[informative]].T
            out[moved] += part
        return out

    return by_cell, V1
