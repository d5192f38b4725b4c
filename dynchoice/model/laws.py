"""Laws of motion of one axis (or a block of neighbouring axes) of the state.

A law says how the next level of an axis follows from the choice, the axis' own level and the
current levels of its parents. A law is *bound* to a state space into a table
``table[j, g, i, k]`` = probability of level ``k`` next, from level ``i``, under choice ``j``
(one row if the law ignores the choice) and parents' combination ``g``; deterministic laws keep
``following[j, g, i]`` instead. Laws with unknown probabilities are families: a few multinomial
rows that fill the table, estimated from counts in the first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, first_few, suggest
from dynchoice.panel.states import StateSpace, as_floats, plain
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level

UNINFORMATIVE, IMPOSSIBLE = -1, -2
"""Outcome codes of an observed move that tells nothing of the law, or that the law forbids."""
SUM_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Fixed:
    """The level never moves: a segment, a region, or an offer (prices and bundle in force).

    Members expect it to stay. Where the panel shows that it moved after all (a price change, a
    roll-out), the move is a surprise: it is reported, and it is no error.
    """


@dataclass(frozen=True)
class Cycle:
    """The level advances by one each period and starts again after the last: a season."""


@dataclass(frozen=True)
class Deterministic:
    """The next level follows for certain from the choice, the own level and the parents.

    Parameters
    ----------
    table : callable, mapping or array
        Callable: ``table(level, **given)`` with the labels of ``given`` by name, returns the next
        level. Mapping: ``{(given labels ..., own level): next level}``. Array of next levels of
        shape ``(levels of each given ..., own levels)``. ``None`` or an absent key marks a
        combination that cannot arise (a choice that is not offered there).
    given : tuple of str
        ``"choice"`` and names of other axes, in the order of the table.
    """

    table: Any
    given: tuple[str, ...] = ("choice",)


@dataclass(frozen=True)
class Markov:
    """The next level is drawn given the choice, the own level and the parents.

    Parameters
    ----------
    given : tuple of str
        ``"choice"`` and names of other axes.
    probabilities : array, optional
        Shape ``(levels of each given ..., own levels, own levels)``, rows sum to one. Without
        it the law is estimated from the counts by frequencies.
    stand_ins : integer array, optional
        Shape ``(levels of each given ..., own levels)``: the own level whose row, with the same
        choice and parents, stands in for one that was never observed. Default: frequencies
        pooled over choices and parents do.
    """

    given: tuple[str, ...] = ("choice",)
    probabilities: Any = None
    stand_ins: Any = None


@dataclass(frozen=True)
class Increment:
    """The level grows by 0 .. ``max_step`` a period, and starts from zero after a reset.

    Parameters
    ----------
    max_step : int
    reset_on : label or sequence of labels, optional
        Choices after which the next level is drawn from level 0 (Rust 1987: replacement).
    probabilities : array, shape (max_step + 1,), optional
        Of each step. Without it they are estimated from the counts.
    after_reset : int
        Added to the level seen after a reset when steps are counted in the first stage. Rust
        (1987) counts bins from one, so that a level ``k`` after a replacement is a step of
        ``k + 1``: pass 1 to reproduce his Table V to X.
    """

    max_step: int
    reset_on: Any = None
    probabilities: Any = None
    after_reset: int = 0


Law = Fixed | Cycle | Deterministic | Markov | Increment


@dataclass(frozen=True)
class BoundLaw:
    """A law laid out on the axes of a state space; see the module docstring.

    ``axes`` are the positions of its (neighbouring) axes, ``n`` their number of levels together,
    ``parents`` the positions of its parent axes, ``by_choice`` whether the first dimension of
    the table has ``J`` rows. ``family`` is the law as given; ``following`` is None for
    stochastic laws and ``table`` None for deterministic or not yet estimated ones.
    """

    name: str
    family: Law
    axes: tuple[int, ...]
    n: int
    parents: tuple[int, ...]
    groups: int
    by_choice: bool
    choices: int
    following: IntArray | None = None
    table: FloatArray | None = None
    undefined: AnyArray | None = None
    resets: tuple[int, ...] = field(default=())
    stand_ins: IntArray | None = None
    """Row (R,) that stands in for each that was never observed."""

    @property
    def estimated(self) -> bool:
        """Whether its probabilities come from the counts."""
        return isinstance(self.family, Markov | Increment) and self.family.probabilities is None

    @property
    def rows(self) -> tuple[int, int]:
        """``(R, m)``: multinomial rows of the family and outcomes of each."""
        if isinstance(self.family, Increment):
            return 1, self.family.max_step + 1
        return (self.choices if self.by_choice else 1) * self.groups * self.n, self.n

    def outcomes(
        self, choice: IntArray, group: IntArray, own: IntArray, following: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Return (multinomial row, outcome) of observed moves; below 0: see module constants."""
        if isinstance(self.family, Increment):
            reset = np.isin(choice, self.resets)
            step = following - np.where(reset, -self.family.after_reset, own)
            top = self.family.max_step
            # near the last level several steps lead to it: which one was made is not seen
            censored = ~reset & (own + top > self.n - 1)
            impossible = (step < 0) | (step > top)
            outcome = np.where(
                impossible, IMPOSSIBLE, np.where(censored, UNINFORMATIVE, step)
            ).astype(np.int64)
            return np.zeros_like(outcome), outcome
        row = ((choice if self.by_choice else 0) * self.groups + group) * self.n + own
        return np.asarray(row, dtype=np.int64), following

    def fill(self, probabilities: FloatArray) -> FloatArray:
        """Return the table (J or 1, G, n, n) of the family's multinomial rows (R, m)."""
        if isinstance(self.family, Increment):
            table = np.zeros((self.choices if self.by_choice else 1, self.groups, self.n, self.n))
            levels = np.arange(self.n)
            for j in range(table.shape[0]):
                base = np.zeros(self.n, dtype=np.int64) if j in self.resets else levels
                for step, p in enumerate(probabilities[0]):
                    # add.at: steps beyond the last level all end there, and their chances add up
                    np.add.at(table[j, 0], (levels, np.minimum(base + step, self.n - 1)), p)
            return table
        return np.ascontiguousarray(
            probabilities.reshape(
                self.choices if self.by_choice else 1, self.groups, self.n, self.n
            )
        )

    def pull(self, gradient: FloatArray) -> FloatArray:
        """Return the derivative by the multinomial rows (R, m) from that by the table.

        The adjoint of :meth:`fill`.
        """
        if isinstance(self.family, Increment):
            out = np.zeros((1, self.family.max_step + 1))
            levels = np.arange(self.n)
            for j in range(gradient.shape[0]):
                base = np.zeros(self.n, dtype=np.int64) if j in self.resets else levels
                for step in range(out.shape[1]):
                    target = np.minimum(base + step, self.n - 1)
                    out[0, step] += gradient[j, 0][levels, target].sum()
            return out
        return gradient.reshape(-1, self.n)


def bind(
    states: StateSpace, choices: Sequence[Level], key: str | tuple[str, ...], law: Law
) -> BoundLaw:
    """Lay a law out on the axes of a state space.

    Raises
    ------
    SpecificationError
        Unknown axis, parent or level; a tuple of axes that are not neighbours; probabilities of
        the wrong shape or not summing to one (with the row named).
    """
    names = (key,) if isinstance(key, str) else tuple(key)
    axes = tuple(states.axis(n) for n in names)
    name = "*".join(names)
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise SpecificationError(
            f"law {name!r}: the axes of a joint law must be neighbours, in the order of the"
            f" states; the axes are {', '.join(states.axes)}"
        )
    n = int(np.prod([states.shape[a] for a in axes]))
    if not isinstance(law, Fixed | Cycle | Deterministic | Markov | Increment):
        raise SpecificationError(
            f"law {name!r} is a {type(law).__name__}; use Fixed, Cycle, Deterministic, Markov or"
            " Increment"
        )
    law, given = _check_given(law, states, axes, name)
    if isinstance(law, Increment) and not isinstance(law.max_step, int):
        raise SpecificationError(f"law {name!r}: max_step={law.max_step!r} must be an integer")
    parents = tuple(states.axis(g) for g in given if g != "choice")
    groups = int(np.prod([states.shape[p] for p in parents])) if parents else 1
    by_choice = "choice" in given or (isinstance(law, Increment) and law.reset_on is not None)
    bound = BoundLaw(
        name=name,
        family=law,
        axes=axes,
        n=n,
        parents=parents,
        groups=groups,
        by_choice=by_choice,
        choices=len(choices),
        resets=_reset_codes(law, choices, name),
    )
    if isinstance(law, Fixed):
        return replace(bound, following=np.arange(n, dtype=np.int64).reshape(1, 1, n))
    if isinstance(law, Cycle):
        return replace(bound, following=((np.arange(n) + 1) % n).reshape(1, 1, n))
    if isinstance(law, Deterministic):
        return _bind_deterministic(bound, states, choices, names, law)
    if isinstance(law, Increment) and not 0 <= law.max_step < n:
        raise SpecificationError(
            f"law {name!r}: max_step={law.max_step} does not fit an axis of {n} levels"
        )
    if law.probabilities is None:
        if isinstance(law, Markov) and law.stand_ins is not None:
            return replace(bound, stand_ins=_stand_ins(bound, states, choices, given, law))
        return bound
    return replace(bound, table=bound.fill(_probabilities(bound, states, choices, given, law)))


def _check_given(
    law: Law, states: StateSpace, axes: tuple[int, ...], name: str
) -> tuple[Law, tuple[str, ...]]:
    """Return the law and its ``given`` as a tuple: ``"choice"`` and other axes, each once."""
    given = law.given if isinstance(law, Deterministic | Markov) else ()
    if isinstance(given, str):
        given = (given,)
        law = replace(law, given=given)
    if not isinstance(given, (tuple, list)):
        raise SpecificationError(f"law {name!r}: given={given!r} must name axes, or be ()")
    repeated = [g for g in given if list(given).count(g) > 1]
    if repeated:
        raise SpecificationError(f"law {name!r} names {repeated[0]!r} twice among its parents")
    for g in given:
        if g != "choice" and states.axis(g) in axes:
            raise SpecificationError(
                f"law {name!r} names itself ({g!r}) among its parents: the own level always"
                " counts, leave it out"
            )
    return law, tuple(given)


def _reset_codes(law: Law, choices: Sequence[Level], name: str) -> tuple[int, ...]:
    """Return the codes of the choices after which an increment starts from zero."""
    if not isinstance(law, Increment) or law.reset_on is None:
        return ()
    labels = law.reset_on if isinstance(law.reset_on, (list, tuple)) else [law.reset_on]
    checks.known(labels, choices, f"law {name!r}: reset_on: choice")
    return tuple(list(choices).index(label) for label in labels)


def _probabilities(
    bound: BoundLaw,
    states: StateSpace,
    choices: Sequence[Level],
    given: Sequence[str],
    law: Markov | Increment,
) -> FloatArray:
    """Return given probabilities as multinomial rows (R, m), checked, each summing to one."""
    p = as_floats(law.probabilities, f"law {bound.name!r}: probabilities")
    sizes = _sizes(given, states, choices)
    shape = (law.max_step + 1,) if isinstance(law, Increment) else (*sizes, bound.n, bound.n)
    if p.shape != shape:
        raise SpecificationError(
            f"law {bound.name!r}: probabilities have shape {p.shape}, expected {shape}"
            f" ({', '.join([*given, 'own level', 'next level'])})"
        )
    if not isinstance(law, Increment):
        p = p.transpose(*_choice_first(given), p.ndim - 2, p.ndim - 1)
    rows = p.reshape(bound.rows)
    sums = rows.sum(axis=1)
    # ~(<=) rather than >: NaN is bad too
    bad = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE) | (rows < 0).any(axis=1))
    if len(bad):
        shown = [f"row {r} (sum {rows[r].sum():.6g}, least {rows[r].min():.6g})" for r in bad[:3]]
        raise SpecificationError(
            f"law {bound.name!r}: {len(bad)} of {len(rows)} rows of probabilities are negative or"
            f" do not sum to one: {first_few(shown)}"
        )
    # what rounding has left is worth 1 / (1 - beta) times as much in values
    return rows / sums[:, None]


def _sizes(given: Sequence[str], states: StateSpace, choices: Sequence[Level]) -> list[int]:
    """Return the number of levels of each parent, the choice among them."""
    return [len(choices) if g == "choice" else states.shape[states.axis(g)] for g in given]


def _choice_first(given: Sequence[str]) -> list[int]:
    """Return the order of a table's dimensions in which the choice comes before the parents."""
    order = [given.index("choice")] if "choice" in given else []
    return order + [i for i, g in enumerate(given) if g != "choice"]


def _stand_ins(
    bound: BoundLaw, states: StateSpace, choices: Sequence[Level], given: Sequence[str], law: Markov
) -> IntArray:
    """Return the row (R,) that stands in for each multinomial row."""
    levels = np.asarray(law.stand_ins)
    shape = (*_sizes(given, states, choices), bound.n)
    whole = levels.dtype.kind in "iu"
    if levels.shape != shape or not whole or ((levels < 0) | (levels >= bound.n)).any():
        raise SpecificationError(
            f"law {bound.name!r}: stand_ins must hold own levels 0 to {bound.n - 1}, shape {shape}"
            f" ({', '.join([*given, 'own level'])}); got shape {levels.shape}"
        )
    flat = levels.transpose(*_choice_first(given), levels.ndim - 1).reshape(-1, bound.n)
    return np.asarray(flat + bound.n * np.arange(len(flat))[:, None], dtype=np.int64).reshape(-1)


def _joint_levels(states: StateSpace, names: tuple[str, ...]) -> list[Level]:
    """Return the levels of one axis, or the tuples of levels of several."""
    if len(names) == 1:
        return list(states.axes[names[0]])
    return list(product(*(states.axes[n] for n in names)))


def _bind_deterministic(
    bound: BoundLaw,
    states: StateSpace,
    choices: Sequence[Level],
    names: tuple[str, ...],
    law: Deterministic,
) -> BoundLaw:
    """Lay a deterministic law out: the next level of every (choice, parents, own level)."""
    levels = _joint_levels(states, names)
    position = {level: i for i, level in enumerate(levels)}
    dims = [list(choices) if g == "choice" else list(states.axes[g]) for g in law.given]
    find_next = _lookup(law, dims, levels, bound.name)
    parents = [g for g in law.given if g != "choice"]
    following = np.empty((len(choices) if bound.by_choice else 1, bound.groups, bound.n), np.int64)
    undefined = np.zeros(following.shape, dtype=bool)
    for j, choice in enumerate(choices if bound.by_choice else [None]):
        for g, combination in enumerate(product(*(states.axes[p] for p in parents))):
            labels = {"choice": choice, **dict(zip(parents, combination, strict=True))}
            key = tuple(labels[name] for name in law.given)
            for i, level in enumerate(levels):
                try:
                    target = find_next(key, level)
                except TypeError as error:
                    raise SpecificationError(
                        f"law {bound.name!r}: its function could not be called with the level and"
                        f" {', '.join(law.given) or 'nothing else'}: {error}"
                    ) from error
                if target is None:
                    following[j, g, i], undefined[j, g, i] = i, True
                    continue
                if len(names) > 1 and not isinstance(target, (tuple, list)):
                    raise SpecificationError(
                        f"law {bound.name!r} moves {len(names)} axes: its function must return a"
                        f" tuple of levels, got {target!r}"
                    )
                target = tuple(map(plain, target)) if len(names) > 1 else plain(target)
                if target not in position:
                    where = ", ".join(f"{k}={v}" for k, v in labels.items() if k in law.given)
                    raise SpecificationError(
                        f"law {bound.name!r} sends level {level!r} ({where}) to {target!r}, which"
                        f" is no level.{suggest(target, levels)}"
                    )
                following[j, g, i] = position[target]
    return replace(bound, following=following, undefined=undefined)


def _lookup(
    law: Deterministic, dims: list[list[Level]], levels: list[Level], name: str
) -> Callable[[tuple[Any, ...], Any], Any]:
    """Return the law's table as a function of (labels of ``given``, own level)."""
    if callable(law.table):
        call = law.table
        return lambda key, level: call(level, **dict(zip(law.given, key, strict=True)))
    if isinstance(law.table, Mapping):
        table = dict(law.table)
        if not law.given:  # keys are the own levels themselves
            table = {(k,): v for k, v in table.items()}
        possible = {(*key, level) for key in product(*dims) for level in levels}
        strange = [k for k in table if k not in possible]
        if strange:
            raise SpecificationError(
                f"law {name!r}: {len(strange)} key(s) of its table are no combination of"
                f" ({', '.join([*law.given, 'own level'])}): {first_few(strange)}"
            )
        return lambda key, level: table.get((*key, level))
    array = np.asarray(law.table, dtype=object)
    shape = (*(len(d) for d in dims), len(levels))
    if array.shape != shape:
        raise SpecificationError(
            f"law {name!r}: its table has shape {array.shape}, expected {shape}"
            f" ({', '.join([*law.given, 'own level'])})"
        )
    return lambda key, level: array[
        (*(d.index(k) for d, k in zip(dims, key, strict=True)), levels.index(level))
    ]
