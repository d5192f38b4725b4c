"""MetaPrior: how much weights of a feature group differ, learned from the model's own data.

Empirical Bayes after Nabi, Nassif, Hong, Mamani and Imbens (2022); SOURCES.md 2. What the data say
of a weight is taken from the likelihood alone (posterior less prior), since posterior means are
shrunk already. Then the data are replayed under the prior learned (``Probit.set_prior``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynchoice import checks
from dynchoice.callouts.probit import Likelihood, Moments, Probit, read_prior
from dynchoice.errors import ConvergenceWarning, SpecificationError
from dynchoice.typing import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

LEARNERS = ("moments", "em", "james-stein")
FLOOR = 1e-4
"""Least variance of a group: below it weights are one number, and exploration ends."""
LEAST_PRECISION = 1e-8
REPLAYS, UNDAMPED, EM_STEPS, SETTLED = 100, 8, 200, 1e-3

Pairs: TypeAlias = dict[str, tuple[float, float]]
"""Group -> (mean, variance)."""
Estimates: TypeAlias = dict[str, tuple[float, float, float]]
"""Group -> (mean, variance as estimated, its standard error)."""


@dataclass(frozen=True)
class MetaPrior:
    """Prior means and variances by feature group.

    Attributes
    ----------
    moments : dict
        Group -> (mean, variance); what :class:`Probit` takes as ``prior``.
    method : str
        ``"moments"``, ``"em"``, ``"james-stein"`` or ``"fixed"``.
    raw : dict
        Group -> variance as estimated, before flooring: unbiased by moments, so it can be negative.
    std_errors : dict
        Group -> standard error of that variance (NaN where none is known).
    weights : dict
        Group -> number of weights that the data say something of.
    learned_means : tuple of str
        Groups whose mean was learned.
    replays : int
        Times the data were replayed.
    converged : bool
    model : str
        Method of inference of the model it was learned from.

    Examples
    --------
    >>> MetaPrior.fixed({"1": (-1.6, 1.0), "item": 0.04}).moments["item"]
    (0.0, 0.04)
    """

    moments: Pairs
    method: str
    raw: dict[str, float]
    std_errors: dict[str, float]
    weights: dict[str, int]
    learned_means: tuple[str, ...] = ()
    replays: int = 0
    converged: bool = True
    model: str = "joint"

    @classmethod
    def fixed(cls, moments: Moments) -> MetaPrior:
        """Return a prior as given: group -> variance or (mean, variance)."""
        pairs = read_prior(moments, tuple(moments))
        raw = {g: variance for g, (_, variance) in pairs.items()}
        return cls(moments=pairs, method="fixed", raw=raw, std_errors={}, weights={})

    @classmethod
    def learn(
        cls,
        model: Probit,
        method: str = "moments",
        *,
        groups: Sequence[str] | None = None,
        means: Sequence[str] | str = "identified",
        floor: float = FLOOR,
        replays: int = REPLAYS,
    ) -> MetaPrior:
        """Learn a prior from what a model has seen; the model stays as it is.

        Best from models with ``method="joint"``: what ``"adf"`` and ``"ep"`` say of single weights
        leaves out how they move together, and variances come out wrong (up to a factor of two, in
        either direction) where features come together. The result says so.

        Parameters
        ----------
        model : Probit
        method : str
            ``"moments"``: spread of the estimates less their sampling variance (SOURCES.md 2; with
            ``joint`` models by quadratic forms that take covariances into account, so that features
            that always come together do no harm; unbiased for given weights, restricted maximum
            likelihood where replays have settled). ``"em"``: maximum of the marginal likelihood.
            ``"james-stein"``: what positive-part shrinkage implies, one number a group.
        groups : sequence of str, optional
            Groups to learn. Default: all with at least two weights. The others
            keep the model's prior.
        means : "identified" or sequence of str
            Groups whose mean is learned too; others' are 0. A mean is identified if the group is
            not always as active as groups before it together (dummies of all levels beside an
            intercept have none).
        floor : float
            Least variance.
        replays : int
            Most replays of the data under the prior learned, for what of the likelihood depends on
            where it is looked at. ``adf`` keeps no rows: its likelihood is what it is.

        Returns
        -------
        MetaPrior

        Raises
        ------
        SpecificationError
            Unknown method or group, or nothing learned yet.
        """
        checks.one_of(method, "method", LEARNERS)
        if not model.impressions:
            raise SpecificationError(
                "the model has seen no data: a prior cannot be learned of none"
            )
        wanted = chosen_groups(model, groups)
        if isinstance(means, str):
            if means != "identified":
                raise SpecificationError(f"means={means!r}: 'identified', or a list of groups")
            means = identified_means(model)
        else:
            means = chosen_groups(model, means)
        with_mean = tuple(g for g in wanted if g in means)
        replayed = Probit.from_tree(model.to_tree())  # the model stays as it is
        moments = dict(model.prior)
        learner = {"moments": by_moments, "em": by_em, "james-stein": by_james_stein}[method]
        done, change, estimates = 0, np.inf, {}
        while change > SETTLED and done < max(1, replays):
            estimates = learner(replayed, wanted, with_mean)
            new = dict(moments)
            for g, (mean, raw, _) in estimates.items():
                new[g] = (mean, max(raw, floor))
            change = largest_change(moments, new)
            if done >= UNDAMPED and change > SETTLED:  # it goes to and fro: half the way then
                new = halfway(moments, new)
            moments = new
            if change > SETTLED:
                replayed.set_prior(moments)
            done += 1
        if change > SETTLED:
            warnings.warn(
                f"MetaPrior: variances still changed by {change:.1%} after {done} replays: not"
                " converged (more replays=, or fewer groups)",
                ConvergenceWarning,
                stacklevel=2,
            )
        likelihood = replayed.likelihood()
        precision = np.diag(likelihood.precision) if likelihood.joint else likelihood.precision
        informed = precision > LEAST_PRECISION
        return cls(
            moments=moments,
            method=method,
            raw={g: raw for g, (_, raw, _) in estimates.items()},
            std_errors={g: error for g, (_, _, error) in estimates.items()},
            weights={g: int(informed[model.group == i].sum()) for i, g in enumerate(model.groups)},
            learned_means=with_mean,
            replays=done,
            converged=change <= SETTLED,
            model=model.method,
        )

    @property
    def table(self) -> pd.DataFrame:
        """Group by group: mean, variance used, variance as estimated, its error, weights."""
        import pandas as pd

        rows = {
            g: {
                "mean": mean,
                "variance": variance,
                "as estimated": self.raw.get(g, np.nan),
                "std. error": self.std_errors.get(g, np.nan),
                "weights": self.weights.get(g, 0),
                "learned": self.method != "fixed" and g in self.raw,
            }
            for g, (mean, variance) in self.moments.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")

    def __str__(self) -> str:
        end = "" if self.converged else f"\nNOT CONVERGED after {self.replays} replays"
        if self.model != "joint":
            end += (
                f"\nNOTE: learned from a model without covariances ({self.model}): where features"
                " come together these variances are biased; method 'joint' is not"
            )
        return f"Prior by {self.method}\n{self.table.to_string(float_format='%.4g')}{end}"


def chosen_groups(model: Probit, groups: Sequence[str] | None) -> tuple[str, ...]:
    """Return the groups to learn."""
    size = np.bincount(model.group, minlength=len(model.groups))
    if groups is None:
        return tuple(g for g, n in zip(model.groups, size, strict=True) if n >= 2)
    checks.known(groups, model.groups, "feature group")
    for g in groups:
        if size[model.groups.index(g)] < 2:
            raise SpecificationError(f"the group {g!r} has one weight: no variance to learn")
    return tuple(groups)


def identified_means(model: Probit) -> tuple[str, ...]:
    """Return the groups whose mean can be learned beside those of the groups before it.

    A group's mean moves all its features at once. Where the groups before it, active in the same
    rows, can move predictions in the same way, the data do not tell the two apart: the group's
    activity, regressed on theirs, then leaves nothing. Groups with one weight come first: an
    intercept takes what is common.
    """
    size = np.bincount(model.group, minlength=len(model.groups))
    order = [*np.flatnonzero(size == 1), *np.flatnonzero(size > 1)]
    gram = model.together
    identified: list[str] = []
    basis: list[int] = []
    for c in order:
        rest = gram[c, c]
        if basis:
            before = np.array(basis)
            row = gram[c][before]
            rest -= row @ np.linalg.lstsq(gram[np.ix_(before, before)], row, rcond=None)[0]
        if rest > 1e-6 * max(gram[c, c], 1e-300):
            basis.append(int(c))
            if size[c] > 1:
                identified.append(model.groups[c])
    return tuple(identified)


def halfway(old: Pairs, new: Pairs) -> Pairs:
    """Return a prior between two: means in the middle, variances at their geometric mean."""
    return {
        g: (0.5 * (old[g][0] + mean), float(np.sqrt(old[g][1] * variance)))
        for g, (mean, variance) in new.items()
    }


def largest_change(old: Pairs, new: Pairs) -> float:
    """Return the largest change of a prior: variances relatively, means in standard deviations."""
    moves = [0.0]
    for g, (mean, variance) in new.items():
        moves.append(abs(np.log(variance / old[g][1])))
        moves.append(abs(mean - old[g][0]) / np.sqrt(variance))
    return float(max(moves))


def estimate_weights(likelihood: Likelihood, which: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return estimates and sampling variances of weights, where data inform them (SOURCES.md 2)."""
    p, h = likelihood.precision[which], likelihood.shift[which]
    informed = p > LEAST_PRECISION
    return h[informed] / p[informed], 1 / p[informed]


def features_of(model: Probit, group: str) -> IntArray:
    """Return the features (n,) of a group."""
    return np.flatnonzero(model.group == model.groups.index(group))


def moment_variance(
    estimate: FloatArray, variance: FloatArray, with_mean: bool, guess: float
) -> tuple[float, float, float]:
    """Return mean, variance of the true weights (unbiased) and its standard error.

    Weights ``1 / (s_i^2 + guess)``; if all ``s_i`` are equal it is the spread of the estimates less
    ``s^2`` (SOURCES.md 2; DerSimonian and Laird 1986 for unequal ones). Without a mean to learn it
    is 0.
    """
    w = 1 / (variance + guess)
    total = w.sum()
    mean = float(w @ estimate / total) if with_mean else 0.0
    q = w @ (estimate - mean) ** 2
    noise = w @ variance - (w @ (w * variance) / total if with_mean else 0.0)
    scale = total - (w @ w / total if with_mean else 0.0)
    tau2 = float((q - noise) / scale)
    spread = (variance + max(tau2, 0.0)) * w
    return mean, tau2, float(np.sqrt(2 * (spread @ spread)) / scale)


def by_moments(model: Probit, groups: Sequence[str], with_mean: Sequence[str]) -> Estimates:
    """Return each group's mean and variance by moments."""
    likelihood = model.likelihood()
    if likelihood.joint:
        return quadratic_forms(model, likelihood, groups, with_mean)
    out: Estimates = {}
    for g in groups:
        estimate, variance = estimate_weights(likelihood, features_of(model, g))
        mean = g in with_mean
        if len(estimate) > int(mean):
            out[g] = moment_variance(estimate, variance, mean, model.prior[g][1])
    return out


def quadratic_forms(
    model: Probit, likelihood: Likelihood, groups: Sequence[str], with_mean: Sequence[str]
) -> Estimates:
    """Return variances by expected quadratic forms under the current ones as weights (MINQUE).

    With likelihood precision ``L`` and prior variances ``T``: ``A = L (I + T L)^{-1}``, of which
    group ``c`` has ``E[r_c' r_c] = tr_c(A) - ...`` linear in the variances; solving is unbiased for
    any ``T``, also where ``L`` is singular. At a fixed point it is restricted maximum likelihood.
    """
    L, (prior_means, T) = likelihood.precision, model.prior_moments()
    n = len(T)
    # prior means of groups not learned stay: take them out of the shift
    is_learned = np.isin(model.group, [model.groups.index(g) for g in groups])
    m0 = np.where(is_learned, 0.0, prior_means)
    h = likelihood.shift - L @ m0
    inverse = np.linalg.inv(np.eye(n) + T[:, None] * L)
    A = L @ inverse
    A = 0.5 * (A + A.T)
    r = inverse.T @ h  # (I + L T)^{-1} h
    indicator = {g: (model.group == model.groups.index(g)).astype(float) for g in groups}
    mean = dict.fromkeys(groups, 0.0)
    if with_mean:  # generalised least squares, and A with the means projected out (REML)
        Z = np.stack([indicator[g] for g in with_mean], axis=1)
        inner = Z.T @ A @ Z
        solved = np.linalg.solve(inner, Z.T @ r)
        mean.update(zip(with_mean, solved.tolist(), strict=True))
        r = r - A @ (Z @ solved)
        A = A - A @ Z @ np.linalg.solve(inner, Z.T @ A)
    square = A * A
    M = np.array([[indicator[c] @ square @ indicator[d] for d in groups] for c in groups])
    gap = np.array([indicator[g] @ (r * r) - indicator[g] @ np.diag(A) for g in groups])
    # groups of which the data say nothing have no equation
    informed = [k for k in range(len(groups)) if M[k, k] > 1e-12 * max(M.max(), 1e-300)]
    inside = np.ix_(informed, informed)
    step = np.linalg.lstsq(M[inside], gap[informed], rcond=None)[0]
    error = np.sqrt(np.maximum(np.diag(2 * np.linalg.pinv(M[inside])), 0))
    return {
        groups[k]: (mean[groups[k]], model.prior[groups[k]][1] + float(step[i]), float(error[i]))
        for i, k in enumerate(informed)
    }


def by_em(model: Probit, groups: Sequence[str], with_mean: Sequence[str]) -> Estimates:
    """Return the maximum of the marginal likelihood, by EM on the Gaussian likelihood.

    ``tau_c^2 = mean_i [(m_i - mu_c)^2 + v_i]`` over the posterior, with the best means for the
    variances at hand (where these are small, EM's own step of a mean is small too, right or wrong);
    steps are extrapolated. A variance that goes to zero ends at a tenth of the floor.
    """
    likelihood = model.likelihood()
    m0, v0 = model.prior_moments()
    place = {g: features_of(model, g) for g in groups}
    if not likelihood.joint:  # weights that the data say nothing of only slow EM down
        informed = likelihood.precision > LEAST_PRECISION
        place = {g: features[informed[features]] for g, features in place.items()}
        place = {g: features for g, features in place.items() if len(features) > 1}
    for g, features in place.items():
        if g not in with_mean:
            m0[features] = 0.0
    out: Estimates = {}
    if not place:
        return out

    def step(log_tau2: FloatArray) -> tuple[FloatArray, Estimates]:
        """One step of EM from variances of the groups, in logarithms."""
        for tau2, features in zip(np.exp(log_tau2), place.values(), strict=True):
            v0[features] = tau2
        L, means = likelihood.precision, generalised_means(likelihood, v0, m0, place, with_mean)
        for g, mu in means.items():
            m0[place[g]] = mu
        if likelihood.joint:
            S = np.linalg.inv(L + np.diag(1 / v0))
            m, v = S @ (m0 / v0 + likelihood.shift), np.diag(S)
        else:
            v = 1 / (1 / v0 + L)
            m = v * (m0 / v0 + likelihood.shift)
        estimates: Estimates = {}
        for g, features in place.items():
            mu = means.get(g, 0.0)
            tau2 = float(((m[features] - mu) ** 2 + v[features]).mean())
            estimates[g] = (mu, tau2, np.nan)
        return np.log([max(x[1], FLOOR / 10) for x in estimates.values()]), estimates

    x = np.log([v0[features[0]] for features in place.values()])
    for _ in range(EM_STEPS):
        one, out = step(x)
        two, out = step(one)
        r, w = one - x, (two - one) - (one - x)
        if np.abs(two - one).max() < 1e-5:
            break
        # squared extrapolation (Varadhan and Roland 2008), held within a factor of ten
        length = max(1.0, float(np.linalg.norm(r)) / max(float(np.linalg.norm(w)), 1e-12))
        x = np.clip(x + 2 * length * r + length**2 * w, two - 2.3, two + 2.3)
    return out


def generalised_means(
    likelihood: Likelihood,
    T: FloatArray,
    m0: FloatArray,
    place: Mapping[str, IntArray],
    with_mean: Sequence[str],
) -> dict[str, float]:
    """Return the groups' means by generalised least squares, given prior variances ``T``."""
    groups = [g for g in place if g in with_mean]
    if not groups:
        return {}
    Z = np.zeros((len(T), len(groups)))
    for k, g in enumerate(groups):
        Z[place[g], k] = 1.0
    fixed = np.where(Z.any(axis=1), 0.0, m0)
    L = likelihood.precision
    if likelihood.joint:
        inverse = np.linalg.inv(np.eye(len(T)) + T[:, None] * L)
        A, r = L @ inverse, inverse.T @ (likelihood.shift - L @ fixed)
        solved = np.linalg.lstsq(Z.T @ A @ Z, Z.T @ r, rcond=None)[0]
    else:
        shrunk = 1 / (1 + L * T)
        solved = (Z.T @ (shrunk * (likelihood.shift - L * fixed))) / (Z.T @ (L * shrunk))
    return dict(zip(groups, solved.tolist(), strict=True))


def by_james_stein(model: Probit, groups: Sequence[str], with_mean: Sequence[str]) -> Estimates:
    """Return the variance that positive-part James-Stein shrinkage implies in each group.

    With the mean ``s^2`` of sampling variances and ``k`` weights, estimates are shrunk by
    ``B = (k - 2) s^2 / sum (estimate - mean)^2`` (``k - 3`` with a mean; Efron and Morris 1973), as
    they would be under variance ``s^2 (1 - B) / B``.
    """
    likelihood = model.likelihood()
    if likelihood.joint:
        likelihood = marginal_likelihood(model)
    out: Estimates = {}
    for g in groups:
        estimate, variance = estimate_weights(likelihood, features_of(model, g))
        lost = 3 if g in with_mean else 2
        if len(estimate) <= lost:
            continue
        # weights that were hardly shown would make up the whole mean: harmonic, as EM's weights do
        s2 = float(len(variance) / (1 / variance).sum())
        w = s2 / variance
        mean = float(w @ estimate / w.sum()) if g in with_mean else 0.0
        spread = float(w @ (estimate - mean) ** 2)
        out[g] = (mean, spread / (len(estimate) - lost) - s2, np.nan)
    return out


def marginal_likelihood(model: Probit) -> Likelihood:
    """Return each weight's likelihood by itself, the other weights integrated out."""
    m0, v0 = model.prior_moments()
    mean, variance = model.posterior.mean, model.posterior.variance
    return Likelihood(1 / variance - 1 / v0, mean / variance - m0 / v0)
