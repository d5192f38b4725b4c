"""What if, with an estimated reward over states that are numbers: fitted soft-Q.

The reward of a fit is taken as it is, changed, and the soft Bellman equation is solved again on the
rows' own moves: with ``E[V(s') | s, a] = phi(s)'Z_a`` and ``M_a = sum_{a} w phi phi'``,

    Z_a = M_a^{-1} sum_{rows with a} w phi(s) V(s'),
    V(s') = log sum_a exp(r(s',a) + beta phi(s')'Z_a),

whose fixed point Newton's method finds. The baseline is solved the same way, so a change of nothing
changes nothing.

Rewards are known up to what the anchor pays. Other anchors' rewards give ``r_a + kappa - beta
E[kappa(s') | s, a]`` for some function ``kappa`` of the state, with the same choice probabilities
(Kalouptsidi, Scott and Souza-Rodrigues 2021; papers' ``A_a c``). The scenario is solved again for
``kappa`` = columns of the sieve and mixtures of all: where that moves nothing, the answer does not
rest on the anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice._lazy import pd
from dynchoice.errors import DataError, SpecificationError
from dynchoice.inference.reward_results import RewardResults, numbers_of
from dynchoice.model.sieve import Sieve
from dynchoice.model.utility import evaluate
from dynchoice.panel.trajectories import NO_ROW, Trajectories
from dynchoice.typing import AnyArray, BoolArray, FloatArray, IntArray, Level

SAME = 1e-6
"""Largest move of a probability up to which an answer does not rest on the anchor."""
MIXTURES = 3
"""Random mixtures of all columns that are tried beside them."""
COLUMNS = 12
"""Columns of the sieve that are tried as other anchors' rewards."""


Reward: TypeAlias = "str | Callable[[pd.DataFrame], Any]"
"""What is added to a reward: a formula, or a function of states that returns (rows, J)."""
Moves: TypeAlias = "Callable[[pd.DataFrame, pd.DataFrame, AnyArray], pd.DataFrame]"
"""Next states, states and choices -> the states that follow instead."""


@dataclass(frozen=True)
class Change:
    """What a scenario changes; see :func:`reward_counterfactual`."""

    reward: Reward | None = None
    drop: tuple[int, ...] = ()
    scale: float = 1.0
    beta: float | None = None
    moves: Moves | None = None


@dataclass(frozen=True)
class Solved:
    """Coefficients ``Z`` (J, G) of ``E[V(s') | s, a]`` and how they were found."""

    Z: FloatArray
    converged: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class RewardCounterfactual:
    """Choices and values under a changed reward beside the baseline.

    Attributes
    ----------
    shares : pandas.DataFrame
        Mean choice probabilities over the rows' states: baseline, scenario, change.
    welfare : float
        Mean change of the ex-ante value, in utils.
    identified : bool
        Whether the scenario's probabilities stay as they are whatever the anchor pays.
    normalisation : float
        Largest move of a probability among the other anchors' rewards that were tried.
    fit_gap : float
        Largest distance of the baseline's mean shares from those of the estimated policy.
    converged, message
    """

    shares: pd.DataFrame
    welfare: float
    identified: bool
    normalisation: float
    fit_gap: float
    converged: bool
    message: str
    _system: SoftQ = field(repr=False)
    _solved: tuple[Solved, Solved] = field(repr=False)

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the scenario's choice probabilities at states."""
        return self._system.table(table, self._solved[1], probabilities=True)

    def values(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the scenario's choice-specific values at states, in utils."""
        return self._system.table(table, self._solved[1], probabilities=False)

    def __str__(self) -> str:
        badge = "identified" if self.identified else "DEPENDS ON WHAT THE ANCHOR PAYS"
        lines = [
            f"Welfare {self.welfare:+.6g} utils a member; {badge} (other anchors' rewards move a"
            f" probability by up to {self.normalisation:.1e})",
            self.shares.to_string(float_format="{:.4f}".format),
        ]
        if not self.converged:
            lines.append(f"NOT CONVERGED: {self.message}")
        return "\n".join(lines)

    __repr__ = __str__


class SoftQ:
    """The rows, the sieve and the reward of one scenario.

    Parameters
    ----------
    fit : RewardResults
    rows : Trajectories
    sieve : Sieve
    change : Change
    """

    def __init__(
        self, fit: RewardResults, rows: Trajectories, sieve: Sieve, change: Change
    ) -> None:
        self.fit, self.sieve, self.change = fit, sieve, change
        self.beta = fit.model.beta if change.beta is None else change.beta
        self.choices = fit.model.choices
        self.x = np.asarray(rows.x)
        self.weight, self.choice = rows.weight, rows.choice
        moved = np.flatnonzero(rows.next != NO_ROW)
        self.known = np.flatnonzero((rows.next != NO_ROW) | rows.ended)
        self.went = np.isin(self.known, moved)
        following = self.x[rows.next[moved]]
        if change.moves is not None:
            following = self._changed_moves(rows, moved, following)
        self.phi, self.phi_next = sieve(self.x), sieve(following)
        self.r, self.can = self._reward(self.x)
        self.r_next, self.can_next = self._reward(following)
        self.inverses: list[FloatArray] = []
        for j, name in enumerate(self.choices):
            rows_of_choice = self.known[self.choice[self.known] == j]
            if not len(rows_of_choice):
                raise DataError(f"no row that takes {name!r} has a next row: its law is unknown")
            phi, w = self.phi[rows_of_choice], self.weight[rows_of_choice, None]
            # a pseudo-inverse: some columns the rows with a choice do not tell apart (what is never
            # offered there)
            inverse = np.linalg.pinv((phi * w).T @ phi, rcond=1e-10, hermitian=True)
            self.inverses.append(inverse)

    # the scenario ----------------------------------------------------------------------------

    def _frame(self, x: FloatArray) -> pd.DataFrame:
        """Return states (n, features) as a table."""
        return pd.DataFrame(x, columns=list(self.fit.features))

    def _changed_moves(
        self, rows: Trajectories, moved: IntArray, following: FloatArray
    ) -> FloatArray:
        """Return the next states (rows, features) after the scenario's ``moves``."""
        assert self.change.moves is not None
        labels = np.array(self.choices, dtype=object)[rows.choice[moved]]
        table = self.change.moves(self._frame(following), self._frame(self.x[moved]), labels)
        missing = [c for c in self.fit.features if c not in getattr(table, "columns", ())]
        if missing or len(table) != len(moved):
            raise SpecificationError(
                "moves must return a table of next states, a row for each it got, with columns"
                f" {', '.join(self.fit.features)}"
            )
        out = np.ascontiguousarray(table[list(self.fit.features)].to_numpy(dtype=np.float64))
        if not np.isfinite(out).all():
            raise SpecificationError("moves returned next states that are not finite")
        return out

    def _reward(self, x: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Return the scenario's reward (n, J), 0 where not offered, and what is offered."""
        table = self._frame(x)
        r = self.fit.reward(table).to_numpy()
        can = np.isfinite(r)
        can[:, list(self.change.drop)] = False
        if (~can.any(axis=1)).any():
            raise SpecificationError("the scenario leaves states without any choice")
        r = np.where(can, self.change.scale * np.where(can, r, 0.0), 0.0)
        if self.change.reward is not None:
            r = r + np.where(can, self._added(table), 0.0)
        return r, can

    def _added(self, table: pd.DataFrame) -> FloatArray:
        """Return what the scenario adds to the reward (n, J)."""
        change, J = self.change.reward, len(self.choices)
        assert change is not None
        if callable(change):
            out = np.asarray(change(table), dtype=np.float64)
        else:
            flat, names = evaluate(change, self.fit.model.long(table))
            if flat.shape[1] != 1:
                raise SpecificationError(
                    f"reward={change!r} has {flat.shape[1]} columns ({', '.join(names)}): write"
                    " one, as '0 + I(-0.5 * member)'"
                )
            out = flat.reshape(len(table), J)
        if out.shape != (len(table), J) or not np.isfinite(out).all():
            raise SpecificationError(
                f"reward must give finite numbers of shape (rows, J) = {(len(table), J)}"
            )
        return out

    # the fixed point -------------------------------------------------------------------------

    def _logsum(
        self, r: FloatArray, can: BoolArray, phi: FloatArray, Z: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return ``V`` (n,) and probabilities (n, J)."""
        v = np.where(can, r + self.beta * (phi @ Z.T), -np.inf)
        top = v.max(axis=1)
        V = top + np.log(np.exp(v - top[:, None]).sum(axis=1))
        return V, np.exp(v - V[:, None])

    def solve(self, start: FloatArray, tol: float, maxiter: int) -> Solved:
        """Solve by Newton's method."""
        J, G = start.shape
        Z, size = start.copy(), np.inf
        for step in range(maxiter + 1):
            V_moved, p = self._logsum(self.r_next, self.can_next, self.phi_next, Z)
            V = np.zeros(len(self.known))
            V[self.went] = V_moved
            residual, slope = np.empty((J, G)), np.zeros((J, G, J, G))
            for a in range(J):
                takes = self.choice[self.known] == a
                phi, w = self.phi[self.known[takes]], self.weight[self.known[takes], None]
                residual[a] = self.inverses[a] @ ((phi * w).T @ V[takes]) - Z[a]
                went = takes[self.went]
                lead = (phi * w)[self.went[takes]]
                for b in range(J):
                    follow = self.phi_next[went] * p[went][:, [b]]
                    slope[a, :, b] = self.beta * (self.inverses[a] @ (lead.T @ follow))
            size = float(np.abs(self.phi @ residual.T).max()) / max(1.0, float(np.abs(V).max()))
            if size <= tol or step == maxiter:
                break
            full = np.eye(J * G) - slope.reshape(J * G, J * G)
            Z = Z + np.linalg.solve(full, residual.reshape(-1)).reshape(J, G)
        converged = bool(size <= tol)
        state = "converged" if converged else "not converged"
        return Solved(Z, converged, f"{state}: residual {size:.1e} after {step} Newton steps")

    def law(self) -> list[FloatArray]:
        """Return ``E[phi(s') | s, a] = L_a phi(s)`` as ``L_a'`` (G, G) for every choice."""
        return [g @ self._moments(a) for a, g in enumerate(self.inverses)]

    def shifted(self, k: FloatArray, law: list[FloatArray]) -> SoftQ:
        """Return the system with the reward of another anchor: ``kappa = phi k``.

        ``law`` is the baseline's, under which the fit saw the choices.
        """
        import copy

        out, base = copy.copy(self), self.fit.model.beta
        K = np.stack([by_choice @ k for by_choice in law])
        for name, phi in (("r", self.phi), ("r_next", self.phi_next)):
            more = (phi @ k)[:, None] - base * (phi @ K.T)
            setattr(out, name, getattr(self, name) + self.change.scale * more)
        return out

    def _moments(self, a: int) -> FloatArray:
        """Return ``sum w phi phi'`` over the moves of a choice."""
        takes = self.choice[self.known] == a
        phi, w = self.phi[self.known[takes]], self.weight[self.known[takes], None]
        return (phi * w)[self.went[takes]].T @ self.phi_next[takes[self.went]]

    def at_rows(self, solved: Solved) -> tuple[FloatArray, FloatArray]:
        """Return values (N,) and probabilities (N, J) at the rows' states."""
        return self._logsum(self.r, self.can, self.phi, solved.Z)

    def table(self, table: pd.DataFrame, solved: Solved, probabilities: bool) -> pd.DataFrame:
        """Return probabilities or choice-specific values at states."""
        x = numbers_of(table, self.fit.features)
        r, can = self._reward(x)
        phi = self.sieve(x)
        if probabilities:
            out = self._logsum(r, can, phi, solved.Z)[1]
        else:
            out = np.where(can, r + self.beta * (phi @ solved.Z.T), np.nan)
        return pd.DataFrame(out, index=table.index, columns=list(self.choices))


def reward_counterfactual(
    fit: RewardResults,
    rows: Trajectories,
    *,
    reward: Reward | None = None,
    drop: Iterable[Level] = (),
    scale: float = 1.0,
    beta: float | None = None,
    moves: Moves | None = None,
    degree: int = 3,
    pairs: bool | None = None,
    tol: float = 1e-10,
    maxiter: int = 50,
) -> RewardCounterfactual:
    """Solve again with an estimated reward, changed (fitted soft-Q).

    Parameters
    ----------
    fit : RewardResults
        Of :class:`dynchoice.DeepPQR`, GenPQR, GLADIUS or TDCCP on rows.
    rows : Trajectories
        Whose moves are the law of motion, and over whose states means are taken.
    reward : str or callable, optional
        Added to the reward, in utils: a formula of one column over states, ``choice`` and the
        model's attributes (``"0 + I(-0.5 * member)"``), or a function of a table of states that
        returns (rows, J).
    drop : labels, optional
        Choices that are no longer offered.
    scale : float
        Every choice's reward is multiplied by it.
    beta : float, optional
        Another discount factor.
    moves : callable, optional
        ``moves(next_states, states, choices)`` returns the states that follow instead: a changed
        law of motion.
    degree, pairs
        Of the sieve of ``E[V(s') | s, a]``.
    tol, maxiter
        Of Newton's method: residual relative to the largest value.

    Returns
    -------
    RewardCounterfactual

    Raises
    ------
    SpecificationError
        Unknown choices; a change that is no number for every state and choice; states left
        without a choice.
    DataError
        A choice that no followed row takes.

    Examples
    --------
    >>> found = reward_counterfactual(fit, rows, reward="0 + I(0.5 * member)")  # doctest: +SKIP
    >>> found.shares, found.welfare, found.identified  # doctest: +SKIP
    """
    if not isinstance(fit, RewardResults) or not isinstance(rows, Trajectories):
        raise SpecificationError(
            f"reward_counterfactual takes a RewardResults and Trajectories, not a"
            f" {type(fit).__name__} and a {type(rows).__name__} (for Results: dc.counterfactual)"
        )
    if rows.features != fit.features or rows.choices != fit.model.choices:
        raise SpecificationError(
            f"the rows' features {list(rows.features)} or choices are not those of the fit"
            f" ({list(fit.features)})"
        )
    labels = list(fit.model.choices)
    dropped = [drop] if isinstance(drop, str) else list(drop)
    checks.known(dropped, labels, "drop: choice")
    for name, value, low, high in (("scale", scale, 0, np.inf), ("beta", beta, -1e-300, 1)):
        if value is not None and not (isinstance(value, int | float) and low < value < high):
            raise SpecificationError(
                f"{name}={value!r}: a number above {max(low, 0)}, below {high}"
            )
    sieve = Sieve.of(np.asarray(rows.x), degree, pairs)
    change = Change(reward, tuple(labels.index(k) for k in dropped), float(scale), beta, moves)
    base, other = (SoftQ(fit, rows, sieve, c) for c in (Change(), change))
    none = np.zeros((len(labels), sieve.size))
    before = base.solve(none, tol, maxiter)
    after = other.solve(before.Z, tol, maxiter) if change != Change() else before
    (V0, P0), (V1, P1) = base.at_rows(before), other.at_rows(after)
    w = rows.weight / rows.weight.sum()
    return RewardCounterfactual(
        shares=_shares(labels, w @ P0, w @ P1),
        welfare=float(w @ (V1 - V0)),
        **_normalisation(base, other, after, P1, tol, maxiter),
        fit_gap=float(np.abs(w @ P0 - w @ fit.predict(rows.frame()).to_numpy()).max()),
        converged=before.converged and after.converged,
        message=after.message if before.converged else f"baseline {before.message}",
        _system=other,
        _solved=(before, after),
    )


def _shares(labels: list[Level], before: FloatArray, after: FloatArray) -> pd.DataFrame:
    """Return mean choice probabilities (J,) as a table: baseline, scenario, change."""
    table = pd.DataFrame(
        {"baseline": before, "scenario": after}, index=pd.Index(labels, name="choice")
    )
    table["change"] = table["scenario"] - table["baseline"]
    return table


def _normalisation(
    base: SoftQ, system: SoftQ, solved: Solved, P: FloatArray, tol: float, maxiter: int
) -> dict[str, Any]:
    """Return whether other anchors' rewards move the probabilities, and by how much."""
    G, law, worst = system.sieve.size, base.law(), 0.0
    spread = system.phi.std(axis=0)
    unit = np.where(spread > 0, 1.0 / np.where(spread > 0, spread, 1.0), 1.0)
    rng = np.random.default_rng(0)
    # single columns, and mixtures of all of them: the condition is linear in kappa
    tried = [*(np.eye(G)[: min(G, COLUMNS)] * unit), *(rng.normal(size=(MIXTURES, G)) * unit)]
    for k in tried:
        moved = system.shifted(k, law)
        solution = moved.solve(solved.Z, tol, maxiter)
        if not solution.converged:
            return {"identified": False, "normalisation": np.inf}
        worst = max(worst, float(np.abs(moved.at_rows(solution)[1] - P).max()))
    return {"identified": worst <= SAME, "normalisation": worst}
