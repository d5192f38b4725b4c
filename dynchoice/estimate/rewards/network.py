"""Network: a small multilayer perceptron as a learner, in torch (extra ``deep``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from dynchoice import checks
from dynchoice.errors import MissingExtraError
from dynchoice.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Sequential

HOW = (
    "pip install torch --index-url https://download.pytorch.org/whl/cpu (the CPU wheel, 200 MB;"
    " a plain 'pip install dynchoice[deep]' takes the CUDA build, over 5 GB)"
)


def torch_module() -> ModuleType:
    """Return torch, or say how to install it.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"dynchoice.Network needs torch, which is not installed: {HOW}. Without it, pass any"
            " regressor with fit and predict, or none for the sieve"
        ) from error
    return torch


class Network:
    """A multilayer perceptron with ReLUs, trained in minibatches with early stopping.

    Fitted to whole numbers it is a classifier (``predict_proba``), to floats a regressor
    (``predict``). States and targets are standardised inside.

    Parameters
    ----------
    hidden : sequence of int
        Sizes of the hidden layers.
    epochs : int
        At most so many passes over the rows.
    batch : int
        Rows a step.
    rate : float
        Of Adam.
    decay : float
        Weight decay.
    holdout : float
        Share of the rows on which the loss is watched; they are not trained on.
    patience : int
        Epochs without a better loss there after which training stops; the best epoch's weights
        are kept.
    seed : int

    Raises
    ------
    SpecificationError
        Sizes or numbers of passes that are no whole numbers; a rate or share outside (0, 1).
    MissingExtraError
        ``fit`` without torch; the message names the CPU wheel.

    Examples
    --------
    >>> learner = Network(hidden=(32, 32))
    >>> learner.fit(X, y).predict(X)  # doctest: +SKIP
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = (64, 64),
        *,
        epochs: int = 100,
        batch: int = 512,
        rate: float = 3e-3,
        decay: float = 0.0,
        holdout: float = 0.1,
        patience: int = 5,
        seed: int = 0,
    ) -> None:
        sizes = checks.items(hidden if isinstance(hidden, list | tuple) else (hidden,), "hidden")
        self.hidden = tuple(checks.whole(size, "hidden", 1) for size in sizes)
        self.epochs = checks.whole(epochs, "epochs", 1)
        self.batch = checks.whole(batch, "batch", 1)
        self.patience = checks.whole(patience, "patience", 1)
        self.seed = checks.whole(seed, "seed")
        self.rate = checks.share(rate, "rate", open_interval=True)
        self.holdout = checks.share(holdout, "holdout", open_interval=True)
        self.decay = checks.number(decay, "decay", 0)

    # training --------------------------------------------------------------------------------

    def layers(self, inputs: int, outputs: int) -> Sequential:
        """Return an untrained torch module; its weights follow from the seed."""
        torch = torch_module()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            parts: list[Module] = []
            for a, b in zip((inputs, *self.hidden), self.hidden, strict=False):
                parts += [torch.nn.Linear(a, b), torch.nn.ReLU()]
            return torch.nn.Sequential(*parts, torch.nn.Linear(self.hidden[-1], outputs)).double()

    def fit(self, X: FloatArray, y: AnyArray, sample_weight: FloatArray | None = None) -> Network:
        """Train on rows (n, p) and targets (n,)."""
        torch = torch_module()
        X, y = np.asarray(X, dtype=np.float64), np.asarray(y)
        classes = np.issubdtype(y.dtype, np.integer)
        target: AnyArray
        self.centre, spread = X.mean(axis=0), X.std(axis=0)
        self.spread = np.where(spread > 0, spread, 1.0)
        if classes:
            self.classes_, target = np.unique(y, return_inverse=True)
            outputs = len(self.classes_)
        else:
            self.shift, scale = float(y.mean()), float(y.std())
            self.scale = scale if scale > 0 else 1.0
            target, outputs = (y - self.shift) / self.scale, 1
        self.net = self.layers(X.shape[1], outputs)
        w = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)

        def loss(rows: IntArray) -> Tensor:
            outputs = self.net(self._inputs(X[rows]))
            wanted, weight = torch.from_numpy(target[rows]), torch.from_numpy(w[rows])
            if classes:
                each = torch.nn.functional.cross_entropy(outputs, wanted, reduction="none")
            else:
                each = (outputs[:, 0] - wanted) ** 2
            return (each * weight).sum() / weight.sum()

        self.epochs_run = train(
            [self.net],
            loss,
            len(X),
            batch=self.batch,
            rate=self.rate,
            decay=self.decay,
            epochs=self.epochs,
            holdout=self.holdout,
            patience=self.patience,
            seed=self.seed,
        )
        return self

    def _inputs(self, X: FloatArray) -> Tensor:
        return torch_module().from_numpy((X - self.centre) / self.spread)

    def _outputs(self, X: FloatArray) -> FloatArray:
        with torch_module().no_grad():
            return np.asarray(self.net(self._inputs(np.asarray(X, dtype=np.float64))).numpy())

    def predict(self, X: FloatArray) -> FloatArray:
        """Return predictions (n,) of a regressor."""
        return np.asarray(self._outputs(X)[:, 0] * self.scale + self.shift)

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Return probabilities (n, classes) of a classifier."""
        v = self._outputs(X)
        p = np.exp(v - v.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def __repr__(self) -> str:
        return f"Network(hidden={self.hidden})"


def train(
    modules: list[Module],
    loss: Callable[[IntArray], Tensor],
    rows: int,
    *,
    batch: int,
    rate: float,
    decay: float,
    epochs: int,
    holdout: float,
    patience: int,
    seed: int,
    ascent: Callable[[IntArray], None] | None = None,
    descend: list[Module] | None = None,
    watch: Callable[[IntArray], Tensor] | None = None,
) -> int:
    """Minimise ``loss(rows)`` by Adam in minibatches, and keep the best held-out epoch's weights.

    Parameters
    ----------
    modules : list of torch modules
        Whose best weights are kept.
    loss : callable
        Takes positions of rows and returns a scalar.
    rows : int
    ascent : callable, optional
        Called with a batch's positions before every step on ``loss`` (GLADIUS's other network).
    descend : list of torch modules, optional
        Whose weights ``loss`` descends on. Default: all.
    watch : callable, optional
        What is watched on held-out rows, in place of ``loss``.

    Returns
    -------
    int
        Epochs run.
    """
    import copy

    torch = torch_module()
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    held = np.sort(order[: max(int(holdout * rows), 1)])
    kept = order[len(held) :] if rows > 1 else order
    weights = [p for m in modules if descend is None or m in descend for p in m.parameters()]
    steps = torch.optim.Adam(weights, lr=rate, weight_decay=decay)
    with torch.no_grad():
        best, since, epoch = float((watch or loss)(held)), 0, 0
    state = [copy.deepcopy(m.state_dict()) for m in modules]
    for epoch in range(1, epochs + 1):  # noqa: B007
        rng.shuffle(kept)
        for i in range(0, len(kept), batch):
            part = kept[i : i + batch]
            if ascent is not None:
                ascent(part)
            steps.zero_grad()
            loss(part).backward()
            steps.step()
        with torch.no_grad():
            now = float((watch or loss)(held))
        if now < best - 1e-7 * max(abs(best), 1e-12):
            best, since = now, 0
            state = [copy.deepcopy(m.state_dict()) for m in modules]
        else:
            since += 1
            if since >= patience:
                break
    for m, s in zip(modules, state, strict=True):
        m.load_state_dict(s)
    return epoch
