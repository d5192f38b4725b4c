"""Layouts: the content of each slot of a page, learned while few of many layouts are shown.

Hill, Nassif, Liu, Iyer and Vishwanathan (2017); SOURCES.md 3. With contents ``A_d`` of slots ``d``
and context ``X``

    B'W = W0 + sum_d W1_d(A_d) + sum_{d<e} W2_de(A_d, A_e)
             + sum_l Wc_l(X_l) + sum_{d,l} W1c_dl(A_d, X_l)

and ``P(click) = Phi(B'W)``: MVT1 without pairs, MVT2 with. For comparison: one arm per layout
(N^D-MAB) and independent arms per slot (D-MABs).
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr

from dynchoice import checks
from dynchoice.callouts.feedback import check_batch_name
from dynchoice.callouts.prior import MetaPrior
from dynchoice.callouts.probit import MOST_JOINT, Prior, Probit
from dynchoice.errors import ColumnError, DataError, SpecificationError, suggest
from dynchoice.kernels import callouts as kernels
from dynchoice.panel.states import StateSpace, as_floats, check_labels, code_labels
from dynchoice.storage import load_tree, save_tree
from dynchoice.typing import AnyArray, FloatArray, IntArray, Level

if TYPE_CHECKING:
    import pandas as pd

KIND = "layouts"
KINDS = {
    "multivariate": "contents, pairs and context in one model (MVT1, MVT2)",
    "one-arm": "one arm per layout, nothing shared (N^D-MAB)",
    "independent": "arms of each slot, learned as if the others were not there (D-MABs)",
}
OPTIONS = ("order", "kind", "search", "restarts", "draws", "seed")
"""Saved by name, as they were given."""
EXACT = 5_000
"""Up to so many layouts all are compared; above, slots are climbed one by one."""
MOST_ARMS, MOST_EXACT = 200_000, 2_000_000
PASSES = 100
"""Passes over the slots in one climb, at most."""


class LayoutBandit:
    """A policy that fills the slots of a page and learns which layouts are clicked.

    Parameters
    ----------
    slots : mapping
        Slot -> its contents: headline, image, call to action, price framing ...
    context : mapping or StateSpace, optional
        Column -> levels, of the member or the page.
    order : int
        1: contents; 2: pairs of contents too.
    kind : str
        ``"multivariate"``, ``"one-arm"`` or ``"independent"``.
    prior : mapping or MetaPrior, optional
        Feature group -> variance or (mean, variance). Groups: ``"1"``, ``"content"``, ``"pair"``,
        ``"context"``, ``"content:context"``; ``"arm"`` for the other kinds. Default: N(0, 1).
    method : str, optional
        Of inference, see :class:`Probit`. Default: ``"joint"`` up to 2,500 features (pairs come
        with their contents: covariances matter), else ``"adf"``.
    forget : float
    search : str
        ``"auto"``, ``"exact"`` or ``"climb"``: hill-climbing slot by slot with restarts.
    restarts : int
        Random starts of a climb, beside the layout found before.
    draws : int
        Draws of the weights that decide until the next batch; propensities are shares of them.
    seed : int

    Raises
    ------
    SpecificationError
        Fewer than one slot, repeated contents, an unknown kind, or too many arms.

    Examples
    --------
    >>> page = LayoutBandit({"headline": ["ship", "film"], "button": ["join", "try"]}, draws=64)
    >>> shown = page.decide(500)
    >>> sorted(shown.columns)
    ['button', 'headline', 'propensity', 'snapshot']
    >>> page.learn(shown.assign(clicks=(shown["headline"] == "film").astype(int)), batch="1")
    True
    """

    def __init__(
        self,
        slots: Mapping[str, Sequence[Level]],
        context: Mapping[str, Sequence[Level]] | StateSpace | None = None,
        *,
        order: int = 2,
        kind: str = "multivariate",
        prior: Prior | None = None,
        method: str | None = None,
        forget: float = 1.0,
        search: str = "auto",
        restarts: int = 20,
        draws: int = 256,
        seed: int = 0,
    ) -> None:
        if not slots:
            raise SpecificationError("a layout needs slots: slot -> contents")
        self.slots: dict[str, tuple[Level, ...]] = {
            str(k): check_labels(v, f"slot {k!r}") for k, v in slots.items()
        }
        if context is not None and not isinstance(context, StateSpace):
            context = StateSpace.from_axes(context) if context else None
        self.context = context
        if kind not in KINDS:
            meanings = "; ".join(f"{k!r}: {v}" for k, v in KINDS.items())
            raise SpecificationError(
                f"kind={kind!r} is unknown.{suggest(kind, KINDS)} There are {meanings}"
            )
        if context is not None and set(context.names) & set(self.slots):
            raise SpecificationError("a slot and a column of the context have the same name")
        self.kind = kind
        self.order = checks.whole(order, "order", 1, 2)
        self.search = checks.one_of(search, "search", ("auto", "exact", "climb"))
        self.restarts = checks.whole(restarts, "restarts", 1)
        self.draws = checks.whole(draws, "draws", 1)
        self.seed = checks.whole(seed, "seed")
        self.sizes = np.array([len(v) for v in self.slots.values()], np.int64)
        self.layouts = int(np.prod(self.sizes.astype(float)))
        if search == "exact" and self.layouts > MOST_EXACT:
            raise SpecificationError(
                f"{self.layouts:,} layouts are too many to compare all ({MOST_EXACT:,}): 'climb'"
            )
        if kind == "one-arm" and self.layouts > MOST_ARMS:
            raise SpecificationError(f"{self.layouts:,} layouts are too many arms ({MOST_ARMS:,})")
        groups = self._groups()
        if method is None:
            method = "joint" if max(len(g) for g in groups) <= MOST_JOINT // 2 else "adf"
        self.models = [Probit(g, prior, method=method, forget=forget) for g in groups]
        self.snapshot, self.decisions = 0, 0
        self.learned: dict[str, str] = {}
        self._refresh()

    def _refresh(self) -> None:
        """Drop what was computed from the posterior: it has changed."""
        self._weights: list[FloatArray] | None = None
        self._chosen: dict[int, IntArray] = {}

    # -- features

    def _axes(self) -> dict[str, int]:
        """Return the number of levels of each column of the context."""
        return {} if self.context is None else {k: len(v) for k, v in self.context.axes.items()}

    def _groups(self) -> list[list[str]]:
        """Return the groups of features, model by model; note where each block starts."""
        if self.kind == "independent":
            return [["arm"] * int(n) for n in self.sizes]
        if self.kind == "one-arm":
            return [["arm"] * self.layouts]
        D, axes = len(self.sizes), list(self._axes().values())
        groups = ["1"]
        self._main = np.zeros(D, np.int64)
        self._pair: dict[tuple[int, int], int] = {}
        self._of_context, self._crossed = [], {}
        for d in range(D):
            self._main[d] = len(groups)
            groups += ["content"] * int(self.sizes[d])
        if self.order == 2:
            for d, e in combinations(range(D), 2):
                self._pair[d, e] = len(groups)
                groups += ["pair"] * int(self.sizes[d] * self.sizes[e])
        for a, n in enumerate(axes):
            self._of_context.append(len(groups))
            groups += ["context"] * n
            for d in range(D):
                self._crossed[d, a] = len(groups)
                groups += ["content:context"] * int(self.sizes[d] * n)
        return [groups]

    def features(self, layouts: IntArray, context: IntArray | None = None) -> list[IntArray]:
        """Return active features (n, A) of layouts (n, D), model by model.

        ``context`` (n,) are codes.
        """
        if self.kind == "independent":
            return [layouts[:, [d]] for d in range(layouts.shape[1])]
        if self.kind == "one-arm":
            flat = np.ravel_multi_index(tuple(layouts.T), tuple(self.sizes.tolist()))
            return [flat[:, None].astype(np.int64)]
        D = len(self.sizes)
        columns = [np.zeros(len(layouts), np.int64)]
        columns += [self._main[d] + layouts[:, d] for d in range(D)]
        columns += [
            start + layouts[:, d] * self.sizes[e] + layouts[:, e]
            for (d, e), start in self._pair.items()
        ]
        if self.context is not None and context is not None:
            grid = np.unravel_index(context, self.context.shape)
            for a, (level, n) in enumerate(zip(grid, self._axes().values(), strict=True)):
                columns.append(self._of_context[a] + level)
                columns += [self._crossed[d, a] + layouts[:, d] * n + level for d in range(D)]
        return [np.stack(columns, axis=1)]

    # -- deciding

    def decide(self, members: int | pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
        """Choose layouts.

        Parameters
        ----------
        members : int or pandas.DataFrame
            How many, or a table with the context's columns.
        seed : int, optional

        Returns
        -------
        pandas.DataFrame
            The context's columns, one column a slot, ``propensity`` and ``snapshot``.
        """
        import pandas as pd

        if isinstance(members, int | np.integer):
            visits = checks.whole(members, "members")
            if self.context is not None:
                raise SpecificationError("the page has a context: pass a table with its columns")
            frame, codes = pd.DataFrame(index=range(visits)), np.zeros(visits, np.int64)
        else:
            codes = self._codes(members)
            names = [] if self.context is None else list(self.context.names)
            frame = members[names].copy()
        rng = np.random.default_rng([self.seed, self.decisions if seed is None else seed])
        draw = rng.integers(0, self.draws, len(codes))
        layouts = np.empty((len(codes), len(self.sizes)), np.int64)
        share = np.empty(len(codes))
        for code in np.unique(codes):
            inside = codes == code
            chosen = self.chosen(int(code))
            # a layout's propensity is the share of draws that choose it
            _, place, times = np.unique(chosen, axis=0, return_inverse=True, return_counts=True)
            layouts[inside] = chosen[draw[inside]]
            share[inside] = times[place.reshape(-1)[draw[inside]]] / self.draws
        self.decisions += 1
        for d, (name, contents) in enumerate(self.slots.items()):
            frame[name] = pd.Index(list(contents)).take(layouts[:, d])
        return frame.assign(propensity=share, snapshot=self.snapshot)

    def chosen(self, code: int = 0) -> IntArray:
        """Return the best layout (R, D) of each draw in a context."""
        if code not in self._chosen:
            if self._weights is None:
                rng = np.random.default_rng([self.seed, self.snapshot, 1])
                self._weights = [m.posterior.draw(self.draws, rng) for m in self.models]
            self._chosen[code] = self._best(code, self._weights)
        return self._chosen[code]

    def _best(self, code: int, weights: list[FloatArray]) -> IntArray:
        """Return the layouts (R, D) that maximise the score under each draw."""
        if self.kind == "independent":
            return np.stack([w.argmax(axis=1) for w in weights], axis=1)
        if self.kind == "one-arm":
            best = weights[0].argmax(axis=1)
            return np.stack(np.unravel_index(best, tuple(self.sizes.tolist())), axis=1)
        exact = self.layouts <= EXACT if self.search == "auto" else self.search == "exact"
        return self.enumerated(code, weights[0]) if exact else self.climbed(code, weights[0])

    def enumerated(self, code: int, weights: FloatArray) -> IntArray:
        """Return the best layouts by comparing all of them: climbing is tested against it."""
        grid = np.indices(tuple(self.sizes.tolist())).reshape(len(self.sizes), -1).T
        index = self.features(np.ascontiguousarray(grid), np.full(len(grid), code, np.int64))[0]
        score = np.zeros((len(weights), len(grid)))
        for t in range(index.shape[1]):
            score += weights[:, index[:, t]]
        return np.ascontiguousarray(grid[score.argmax(axis=1)])

    def climbed(self, code: int, weights: FloatArray) -> IntArray:
        """Return layouts found by hill-climbing from random starts (Hill et al. 2017)."""
        D, N = len(self.sizes), int(self.sizes.max())
        rng = np.random.default_rng([self.seed, self.snapshot, 3, code])
        out = np.empty((len(weights), D), np.int64)
        # draws are alike: the layout of one is a good start for the next
        last = rng.integers(0, self.sizes)
        for r, w in enumerate(weights):
            main, pair = self.score_tables(code, w, N)
            starts = rng.integers(0, self.sizes, (self.restarts, D))
            starts = np.concatenate([starts, last[None]])
            kernels.climb_from(main, pair, self.sizes, starts, PASSES, out[r])
            last = out[r]
        return out

    def score_tables(self, code: int, w: FloatArray, N: int) -> tuple[FloatArray, FloatArray]:
        """Return the scores (D, N) of contents and (D, D, N, N) of pairs under one draw."""
        D = len(self.sizes)
        main, pair = np.zeros((D, N)), np.zeros((D, D, N, N))
        grid = () if self.context is None else np.unravel_index(code, self.context.shape)
        for d in range(D):
            n = int(self.sizes[d])
            main[d, :n] = w[self._main[d] : self._main[d] + n]
            for a, size in enumerate(self._axes().values()):
                start = self._crossed[d, a] + int(grid[a])
                main[d, :n] += w[start : start + n * size : size]
        for (d, e), start in self._pair.items():
            shape = (int(self.sizes[d]), int(self.sizes[e]))
            block = w[start : start + shape[0] * shape[1]].reshape(shape)
            pair[d, e, : shape[0], : shape[1]] = block
            pair[e, d, : shape[1], : shape[0]] = block.T
        return main, pair

    # -- learning

    def learn(self, shown: pd.DataFrame, *, batch: str) -> bool:
        """Learn a batch of matured outcomes, once; return whether it was new.

        Parameters
        ----------
        shown : pandas.DataFrame
            One column a slot, the context's columns, ``clicks`` and optionally ``shown`` (how many
            impressions a row stands for; default one).
        batch : str

        Raises
        ------
        DataError
            The batch was learned with other content, or contents are unknown.
        """
        import pandas as pd

        check_batch_name(batch)
        layouts = self._layouts(shown)
        codes = self._codes(shown)
        checks.columns(shown, ["clicks"], "layouts shown")
        clicks = as_floats(shown["clicks"].to_numpy(), "column 'clicks'")
        times = np.ones(len(shown))
        if "shown" in shown.columns:
            times = as_floats(shown["shown"].to_numpy(), "column 'shown'")
        content = hashlib.sha256()
        for part in (layouts.ravel(), codes, clicks, times):
            content.update(pd.util.hash_array(part).tobytes())
        digest = content.hexdigest()
        if batch in self.learned:
            if self.learned[batch] != digest:
                raise DataError(f"batch {batch!r} was learned with other content")
            return False
        # copies learn: whoever interrupts leaves all as it was
        models = [copy.copy(m) for m in self.models]
        for model, index in zip(models, self.features(layouts, codes), strict=True):
            model.update(index, clicks, times, seed=self.seed)
        self.models = models
        self.learned = {**self.learned, batch: digest}
        self.snapshot += 1
        self._refresh()
        return True

    def learn_prior(self, method: str = "moments", **options: Any) -> MetaPrior:
        """Learn the prior of the multivariate model and replay all data under it.

        One that did not converge is returned, with a warning, and not taken over.
        """
        if self.kind != "multivariate":
            raise SpecificationError("priors are learned for kind='multivariate'")
        prior = MetaPrior.learn(self.models[0], method, **options)
        if not prior.converged:
            return prior
        self.models = [copy.copy(self.models[0]).set_prior(prior)]
        self.snapshot += 1
        self._refresh()
        return prior

    def score(self, layouts: pd.DataFrame) -> FloatArray:
        """Return the probability of a click on each layout (for independent arms their mean)."""
        index = self.features(self._layouts(layouts), self._codes(layouts))
        chances = []
        for model, rows in zip(self.models, index, strict=True):
            mean, var = model.posterior.moments(rows, np.ones(rows.shape))
            chances.append(ndtr(mean / np.sqrt(1 + var)))
        return np.asarray(np.mean(chances, axis=0))

    def _codes(self, frame: pd.DataFrame) -> IntArray:
        """Return the codes (n,) of contexts."""
        if self.context is None:
            return np.zeros(len(frame), np.int64)
        return self.context.codes(frame)

    def _layouts(self, frame: pd.DataFrame) -> IntArray:
        """Return the codes (n, D) of contents."""
        missing = [s for s in self.slots if s not in frame.columns]
        if missing:
            raise ColumnError(
                f"the slot {missing[0]!r} has no column.{suggest(missing[0], frame.columns)}"
            )
        parts: list[AnyArray] = [
            code_labels(frame[s].to_numpy(), c, f"slot {s!r}") for s, c in self.slots.items()
        ]
        return np.ascontiguousarray(np.stack(parts, axis=1))

    # -- the state

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole state to one file, whole or not at all."""
        tree = {
            "slots": [[k, list(v)] for k, v in self.slots.items()],
            "context": None
            if self.context is None
            else [[k, list(v)] for k, v in self.context.axes.items()],
            "options": {name: getattr(self, name) for name in OPTIONS},
            "models": [m.to_tree() for m in self.models],
            "learned": self.learned,
            "snapshot": self.snapshot,
            "decisions": self.decisions,
        }
        return save_tree(path, KIND, tree)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LayoutBandit:
        """Return the policy that :meth:`save` wrote."""
        tree = load_tree(path, KIND)
        context = None if tree["context"] is None else dict(tree["context"])
        page = cls(dict(tree["slots"]), context, **tree["options"])
        page.models = [Probit.from_tree(m) for m in tree["models"]]
        page.learned = dict(tree["learned"])
        page.snapshot, page.decisions = int(tree["snapshot"]), int(tree["decisions"])
        page._refresh()
        return page

    def __repr__(self) -> str:
        return (
            f"LayoutBandit({self.layouts:,} layouts, {self.kind}, batch {self.models[0].batches})"
        )
