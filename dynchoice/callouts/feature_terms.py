"""Terms: the features that a pair of a member and a callout has, and where each stands.

A term is a product of columns, of the callout (``item``, ``category`` ...) and of the member's
context (``plan``, ``tenure`` ...): ``"1"``, ``"item"``, ``"category:plan"``. Each combination of
levels is one 0/1 feature, in a place worked out from the levels' codes, so that none is looked up:
``base + (combination of the item's levels) * width + (combination of the context's levels)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynchoice import checks
from dynchoice.errors import SpecificationError, suggest
from dynchoice.panel.states import StateSpace
from dynchoice.typing import IntArray, Level

SLOT = "slot"
MOST_FEATURES = 200_000_000


@dataclass(frozen=True)
class Term:
    """One product of columns: those of the item, and those of the context."""

    name: str
    of_item: tuple[str, ...]
    of_context: tuple[str, ...]


class Terms:
    """The features of pairs of members and items.

    Parameters
    ----------
    terms : sequence of str
    item_levels : mapping
        Column of the catalogue -> its levels.
    context : StateSpace
    slots : int
        Places on the page; a term ``"slot"`` tells them apart.

    Raises
    ------
    SpecificationError
        A term that is no product of known columns, or is there twice.
    """

    def __init__(
        self,
        terms: Sequence[str],
        item_levels: Mapping[str, Sequence[Level]],
        context: StateSpace | None,
        slots: int = 1,
    ) -> None:
        self.names = tuple(terms)
        self.item_levels = {k: tuple(v) for k, v in item_levels.items()}
        self.context, self.slots = context, slots
        axes = () if context is None else context.names
        clash = [a for a in axes if a in self.item_levels or a == SLOT]
        if clash:
            raise SpecificationError(
                f"{clash[0]!r} is a column of the context and of the catalogue (or the slot):"
                " rename one"
            )
        if isinstance(terms, str) or not self.names:
            raise SpecificationError(
                f"terms is a list of texts like 'item' or 'item:plan': {terms!r}"
            )
        self.terms = tuple(self._parse(t, axes) for t in self.names)
        kinds = [(frozenset(t.of_item), frozenset(t.of_context)) for t in self.terms]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                raise SpecificationError(f"the term {self.names[i]!r} is there twice")
        sizes = [self._item_size(t) * self._context_size(t) for t in self.terms]
        if sum(sizes) > MOST_FEATURES:
            raise SpecificationError(
                f"the terms make {sum(sizes):,} features: more than {MOST_FEATURES:,}"
            )
        self.base = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self.width = np.array([self._context_size(t) for t in self.terms], np.int64)
        self.size = int(sum(sizes))

    def _parse(self, text: str, axes: Sequence[str]) -> Term:
        """Return a term from its text."""
        columns = [*self.item_levels, *axes, SLOT]
        parts = [p.strip() for p in str(text).split(":")]
        if parts == ["1"]:
            return Term("1", (), ())
        checks.known(parts, columns, f"the term {text!r}: column")
        if len(set(parts)) < len(parts):
            raise SpecificationError(f"the term {text!r} names a column twice")
        if SLOT in parts and any(p in self.item_levels for p in parts):
            raise SpecificationError(
                f"the term {text!r}: a slot moves all items alike, or the ranking would need every"
                " order of them; leave it a term of its own"
            )
        items = tuple(p for p in parts if p in self.item_levels)
        return Term(str(text), items, tuple(p for p in parts if p not in self.item_levels))

    def _levels(self, name: str) -> int:
        """Return the number of levels of a column of the context."""
        if name == SLOT:
            return self.slots
        assert self.context is not None  # _parse takes no other columns
        return len(self.context.axes[name])

    def _item_size(self, term: Term) -> int:
        return int(np.prod([len(self.item_levels[c]) for c in term.of_item], dtype=np.int64))

    def _context_size(self, term: Term) -> int:
        return int(np.prod([self._levels(c) for c in term.of_context], dtype=np.int64))

    @property
    def groups(self) -> list[str]:
        """The term of each feature: its feature group."""
        sizes = [self._item_size(t) * self._context_size(t) for t in self.terms]
        return [t.name for t, n in zip(self.terms, sizes, strict=True) for _ in range(n)]

    def item_codes(self, codes: Mapping[str, IntArray]) -> IntArray:
        """Return the combination (I, T) that each item is of each term's item columns."""
        n = len(next(iter(codes.values())))
        out = np.zeros((n, len(self.terms)), np.int64)
        for t, term in enumerate(self.terms):
            for c in term.of_item:
                out[:, t] = out[:, t] * len(self.item_levels[c]) + codes[c]
        return out

    def context_codes(self, codes: IntArray, slot: IntArray | None = None) -> IntArray:
        """Return the combination (n, T) of each term's context columns, of context codes (n,).

        ``slot`` (n,) counts from 0; without it the first is meant.
        """
        codes = np.asarray(codes, np.int64)
        axes: dict[str, IntArray] = {SLOT: np.zeros(len(codes), np.int64) if slot is None else slot}
        if self.context is not None:
            grid = np.unravel_index(codes, self.context.shape)
            axes |= dict(zip(self.context.names, grid, strict=True))
        out = np.zeros((len(codes), len(self.terms)), np.int64)
        for t, term in enumerate(self.terms):
            for c in term.of_context:
                out[:, t] = out[:, t] * self._levels(c) + axes[c]
        return out

    def index(self, item_codes: IntArray, context_codes: IntArray) -> IntArray:
        """Return features (n, T) of pairs, from rows of both."""
        return np.asarray(self.base + item_codes * self.width + context_codes)

    def place_in(self, other: Terms) -> IntArray:
        """Return the place of each feature among those of terms with more levels of items."""
        out = np.empty(self.size, np.int64)
        for t, term in enumerate(self.terms):
            old = [len(self.item_levels[c]) for c in term.of_item]
            new = [len(other.item_levels[c]) for c in term.of_item]
            width = int(self.width[t])
            # every combination of the item's old levels, then its code among the new ones
            combos = np.indices(old).reshape(len(old), -1) if old else np.zeros((0, 1), np.int64)
            code = np.zeros(combos.shape[1], np.int64)
            for k, n in enumerate(new):
                code = code * n + combos[k]
            start = int(self.base[t])
            places = other.base[t] + code[:, None] * width + np.arange(width)
            out[start : start + places.size] = places.ravel()
        return out


def code_context(space: StateSpace | None, context: Mapping[str, Level]) -> int:
    """Return the code of one context, given as column -> level.

    Raises
    ------
    SpecificationError
        A column that is missing or unknown, or no level of it.
    """
    axes = () if space is None else space.names
    for name in (*context, *axes):
        if name not in axes or name not in context:
            raise SpecificationError(
                f"the context is {', '.join(axes) or 'empty'}; got {', '.join(context)}."
                f"{suggest(name, axes)}"
            )
    if space is None:
        return 0
    levels = tuple(space.level_code(n, context[n]) for n in axes)
    return int(np.ravel_multi_index(levels, space.shape))
