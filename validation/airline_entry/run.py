"""Airline entry, 2013-2015: serve a city pair next year or not, by four estimators of rewards."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main, shared_data

import dynchoice as dc

HERE = Path(__file__).resolve().parent
CHOICES = ["out", "serve"]
FEATURES = ["absent", "distance", "density", "competitors", "share", "both"]
ENTRY = "serve:absent"
NOBODY = 9  # the carrier that serves no airport in any year
BETA, BETAS = 0.9, (0.0, 0.9, 0.95)
BINS = 100  # least rows of a bin that is judged
YEARS = (2013, 2014, 2015)


# data --------------------------------------------------------------------------------------------


def panel() -> pd.DataFrame:
    """Every carrier, pair and year of the file, with the columns that states are made of."""
    folder = shared_data() / "airline_entry"
    df = pd.read_csv(folder / "airline_entry_2013_2015.csv.gz")
    df["pair"] = df["origin"] * 100 + df["destination"]
    df["member"] = df["pair"] * 100 + df["carrier"]
    df["absent"] = 1 - df["present"]
    df["density"] = df["log_passenger_density_2002"]
    df["competitors"] = df["nonstop_competitors"]
    df["share"] = df["origin_share"] + df["destination_share"]
    df["both"] = df["any_origin"] * df["any_destination"]
    df["distance2"] = df["distance_sq"]
    df["population"] = np.log(df["pop_origin"]) + np.log(df["pop_destination"])
    df["rivals"] = df.groupby(["pair", "year"])["present"].transform("sum") - df["present"]
    df["choice"] = np.where(df["present_next"] == 1, "serve", "out")
    return df


def facts(study: Study, df: pd.DataFrame, want: Mapping[str, Any]) -> None:
    """Rows, means and switching against papers.md, and that next year's state is the choice."""
    changed = (df["present"] != df["present_next"]).groupby(df["year"]).mean()
    mean, rows = df.groupby("year")["present_next"].mean(), df.groupby("year").size()
    for i, year in enumerate(YEARS):
        study.check(f"{year}: rows", rows[year], want["rows"], 0, "published")
        for what, got in (("mean", mean), ("switching", changed)):
            text = f"{year}: {what} of present_next"
            study.check(text, got[year], want[what][i], want["tolerance"], "published")
    wide = df.pivot(index="member", columns="year", values=["present", "present_next"])
    for year in YEARS[:-1]:
        off = int((wide["present_next"][year] != wide["present"][year + 1]).sum())
        study.check(f"{year}: rows whose present_next is not present", off, 0, 0, "own oracle")
    missing = df["population"].isna()
    for what, got in (
        ("missing populations", missing.sum()),
        ("rows used", (df["carrier"] != NOBODY).sum()),
    ):
        study.check(what, got, want[what], 0, "own oracle")
    same = df.groupby(["pair", "year"])["competitors"].nunique().max()
    study.check("competitors: values within a pair and year", same, 1, 0, "own oracle")
    once = df.drop_duplicates(["pair", "year"]).assign(total=df["rivals"] + df["present"])
    moves = once.sort_values("year").groupby("pair")[["competitors", "total"]].diff().dropna()
    study.say(
        f"populations: missing in {missing.sum():,} rows, {df[missing]['pair'].nunique()} pairs of"
        f" one airport (served next year: {df[missing]['present_next'].mean():.1%}; elsewhere"
        f" {df[~missing]['present_next'].mean():.1%})\nno passengers in 2002 (density 0):"
        f" {(df['density'] == 0).mean():.1%} of rows\nchanges of nonstop_competitors and of the"
        f" number of carriers present: correlation {moves.corr().iloc[0, 1]:.3f}"
    )


def trajectories(df: pd.DataFrame, features: list[str]) -> dc.Trajectories:
    """Rows of carriers on pairs; states are ``features``."""
    return dc.Trajectories(
        df, member="member", time="year", choice="choice", features=features, choices=CHOICES
    )


def reward(beta: float, features: list[str] | None = None) -> dc.RewardModel:
    """Not serving pays 0; serving pays a constant and a coefficient times each feature."""
    terms = [f"serve:{name}" for name in features or FEATURES]
    attributes = pd.DataFrame({"choice": CHOICES, "serve": [0.0, 1.0]})
    return dc.RewardModel(
        CHOICES, beta=beta, anchor="out", features="0 + serve + " + " + ".join(terms),
        attributes=attributes,
    )  # fmt: skip


# benchmarks --------------------------------------------------------------------------------------


def columns(df: pd.DataFrame) -> np.ndarray:
    """The static logit's columns: those of the reward."""
    return np.column_stack([np.ones(len(df)), df[FEATURES].to_numpy(dtype=float)])


def logit(df: pd.DataFrame) -> np.ndarray:
    """Estimates of the static logit, by Newton's method: what a discount factor of 0 says."""
    x, y = columns(df), df["present_next"].to_numpy(dtype=float)
    at = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ at))
        move = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
        at = at + move
        if np.abs(move).max() < 1e-12:
            break
    return at


def benchmarks(train: pd.DataFrame, test: pd.DataFrame) -> dict[str, np.ndarray]:
    """Probability to serve in each row of ``test``, from ``train``, by methods without a model."""
    stay = train.groupby("absent")["present_next"].mean()
    return {
        "constant": np.full(len(test), train["present_next"].mean()),
        "nothing changes": test["absent"].map(stay).to_numpy(),
        "static logit": 1 / (1 + np.exp(-columns(test) @ logit(train))),
    }


def log_score(p: np.ndarray, df: pd.DataFrame) -> np.ndarray:
    """Log probability of what each row did."""
    return np.log(np.where(df["present_next"] == 1, p, 1 - p))


def clustered(d: np.ndarray, who: pd.Series) -> tuple[float, float]:
    """Mean of ``d`` and its standard error by cluster."""
    own = pd.Series(d - d.mean()).groupby(who.to_numpy()).sum().to_numpy()
    return float(d.mean()), float(np.sqrt((own**2).sum()) / len(d))


# estimators --------------------------------------------------------------------------------------


def estimate(
    rows: dc.Trajectories, beta: float, clusters: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, dc.SAmQ]]:
    """All fits on one reward model, and the aggregated states behind SAmQ's."""
    model = reward(beta)
    fits: dict[str, Any] = {"DeepPQR": dc.DeepPQR(model, rows).fit()}
    fits["GenPQR"] = dc.GenPQR(model, rows).fit()
    fits["TDCCP"] = dc.TDCCP(model, rows).fit()
    made = {}
    for k in clusters:
        name = f"SAmQ {k}"
        made[name] = dc.SAmQ(model, rows, clusters=k, first=fits["DeepPQR"])
        fits[name] = made[name].fit()
    return fits, made


def assigned(made: dc.SAmQ, table: pd.DataFrame) -> np.ndarray:
    """The cluster of states that SAmQ has not seen: that of the nearest mean of values."""
    q = made.first.values(made.rows.frame()).to_numpy()
    count = np.bincount(made.labels)
    mean = np.stack([np.bincount(made.labels, v) / count for v in q.T], axis=1)
    new = made.first.values(table).to_numpy()
    return np.argmin(((new[:, None] - mean[None]) ** 2).sum(axis=2), axis=1)


def predicted(
    fits: Mapping[str, Any], made: Mapping[str, dc.SAmQ], test: pd.DataFrame, new: bool
) -> dict[str, np.ndarray]:
    """Probability to serve in each row of ``test`` by every fit; not ``new``: its own rows."""
    out = {}
    for name, fit in fits.items():
        if name in made:
            at = assigned(made[name], test) if new else made[name].labels
            out[name] = fit.ccp[at, 1]
        elif name != "GenPQR":  # its policy is Deep PQR's
            out[name] = fit.predict(test)["serve"].to_numpy()
    return out


# what is claimed ---------------------------------------------------------------------------------


class Bounds:
    """Bounds set before; those known to fail are claimed to fail."""

    def __init__(self, study: Study, want: Mapping[str, Any]) -> None:
        self.study, self.before = study, want["before"]
        self.fails = set(want["fails"]["names"])

    def hold(self, what: str, got: float, low: float, high: float) -> None:
        """Record a number between two bounds, or that it is not, as expected.toml says."""
        if what not in self.fails:
            self.study.within(what, got, low, high, "set before")
            return
        bad = float(not low <= got <= high)
        text = f"BOUND FAILS: {what}: {got:.4g}, outside [{low:.4g}, {high:.4g}]"
        self.study.say(text)
        self.study.check(f"{text}: fails still", bad, 1, 0, "set before, fails")


def agreement(study: Study, bounds: Bounds, beta: float, fits: Mapping[str, Any]) -> None:
    """One table of all fits; signs; distances from Deep PQR in standard errors."""
    study.say(f"discount factor {beta:g}\n{dc.compare(fits)}")
    first, rows = fits["DeepPQR"], {}
    for name, fit in fits.items():
        study.check(f"beta {beta:g}, {name}: converged", fit.converged, 1, 0, "own oracle")
        low, high = bounds.before["entry_cost"]
        bounds.hold(f"beta {beta:g}, {name}: entry cost", -fit.params[ENTRY], low, high)
        size = np.sqrt(fit.std_errors**2 + first.std_errors**2)
        rows[name] = (fit.params - first.params) / size
        if fit is not first:
            limit = bounds.before["entry_z"]
            what = f"beta {beta:g}, {name}: entry cost less Deep PQR's, in s.e."
            bounds.hold(what, rows[name][ENTRY], -limit, limit)
    table = pd.DataFrame(rows).drop(columns="DeepPQR").round(1)
    study.say(f"distance from Deep PQR, in s.e. (as if independent)\n{table.to_string()}")


def by_pair(study: Study, bounds: Bounds, df: pd.DataFrame, rows: dc.Trajectories) -> None:
    """Standard errors by pair: influences of the carriers on a pair added up.

    The package clusters by member only; its own influences (no public name yet) show what that
    leaves out.
    """
    found = dc.DeepPQR(reward(BETA), rows).made.steps.fit()
    pair = np.sort(df["member"].unique()) // 100
    together = pd.DataFrame(found.sums).groupby(pair).sum().to_numpy()
    carrier = pd.DataFrame(found.sums).groupby(np.sort(df["member"].unique()) % 100).sum()
    se = {
        "by member": np.sqrt((found.sums**2).sum(axis=0)),
        "by pair": np.sqrt((together**2).sum(axis=0)),
        "by carrier (11)": np.sqrt((carrier.to_numpy() ** 2).sum(axis=0)),
    }
    table = pd.DataFrame(se, index=list(found.names))
    table["pair over member"] = table["by pair"] / table["by member"]
    study.say(f"Deep PQR, beta {BETA:g}: standard errors by cluster\n{table.round(4).to_string()}")
    ratio = float(table.loc[ENTRY, "pair over member"])
    bounds.hold("entry cost: s.e. by pair over by member", ratio, 0, bounds.before["pair"])


def variants(study: Study, df: pd.DataFrame, every: pd.DataFrame) -> None:
    """Other states and other rows: Deep PQR and TD-CCP."""
    more = {
        "as above": (df, FEATURES, 2),
        "cubic sieve": (df, FEATURES, 3),
        "linear sieve": (df, FEATURES, 1),
        "with distance squared": (df, [*FEATURES, "distance2"], 2),
        "with rivals present": (df, [*FEATURES, "rivals"], 2),
        "with populations": (df[df["population"].notna()], [*FEATURES, "population"], 2),
        "with the absent carrier": (every, FEATURES, 2),
    }
    lines = {}
    for name, (own, features, degree) in more.items():
        rows = trajectories(own, features)
        for kind in (dc.DeepPQR, dc.TDCCP):
            fit = kind(reward(BETA, features), rows, degree=degree).fit()
            shown = fit.params.round(3).astype(str) + " (" + fit.std_errors.round(3).astype(str)
            lines[name, kind.name] = shown + ")"
    table = pd.DataFrame(lines).T.fillna("")
    study.say(f"other states and rows, beta {BETA:g}\n{table.to_string()}")


# fit ---------------------------------------------------------------------------------------------


def bins_of(df: pd.DataFrame) -> pd.DataFrame:
    """Bins of states: present or not with competitors, and with density."""
    status = np.where(df["absent"] == 1, "absent", "present")
    rivals = np.array(["0", "1-2", "3-4", "5+"])[np.digitize(df["competitors"], [1, 3, 5])]
    density = np.array(["none", "to 9", "9-12", "12+"])[np.digitize(df["density"], [0.01, 9, 12])]
    return pd.DataFrame(
        {
            "competitors": pd.Series(status) + ", competitors " + rivals,
            "density": pd.Series(status) + ", density " + density,
        }
    )


def fit_by_bins(
    study: Study, bounds: Bounds, name: str, methods: Mapping[str, np.ndarray], df: pd.DataFrame,
    limit: float,
) -> None:  # fmt: skip
    """Predicted and observed entry by bins of states, and the largest gap of each method."""
    table, groups = pd.DataFrame(methods), bins_of(df)
    table["observed"] = df["present_next"].to_numpy()
    parts = []
    for column in groups:
        by = table.groupby(groups[column].to_numpy())
        parts.append(by.mean().assign(rows=by.size()))
    out = pd.concat(parts)
    study.say(f"{name}: share that serves next year\n{out.round(3).to_string()}")
    big = out[out["rows"] >= BINS]
    for method in methods:
        gap = float((big[method] - big["observed"]).abs().max())
        if method not in ("constant", "nothing changes"):
            bounds.hold(f"{name}, {method}: largest gap of a bin", gap, 0, limit)


def in_sample(
    study: Study, bounds: Bounds, df: pd.DataFrame, fits: Mapping[str, Any],
    made: Mapping[str, dc.SAmQ],
) -> None:  # fmt: skip
    """Log-likelihoods against a constant and a static logit, and fit by bins."""
    methods = benchmarks(df, df) | predicted(fits, made, df, new=False)
    total = {k: float(log_score(p, df).sum()) for k, p in methods.items()}
    table = pd.DataFrame({"log-likelihood": total})
    table["a row"] = table["log-likelihood"] / len(df)
    table["McFadden"] = 1 - table["log-likelihood"] / total["constant"]
    table["over the static logit"] = table["log-likelihood"] - total["static logit"]
    study.say(f"in sample, {len(df):,} rows, beta {BETA:g}\n{table.round(4).to_string()}")
    for name in ("TDCCP", *made):
        study.check(
            f"{name}: log-likelihood of own predictions", total[name], fits[name].loglik,
            1e-6 * abs(fits[name].loglik), "own oracle",
        )  # fmt: skip
    fit_by_bins(study, bounds, "in sample", methods, df, bounds.before["gap_in"])


def static(study: Study, bounds: Bounds, df: pd.DataFrame, rows: dc.Trajectories) -> None:
    """At discount factor 0 TD-CCP is a static logit."""
    fit = dc.TDCCP(reward(0.0), rows).fit()
    gap = float(np.abs(fit.vector - logit(df)).max())
    study.check("TDCCP at beta 0: distance from a logit", gap, 0, bounds.before["static"],
                "own oracle")  # fmt: skip


def out_of_time(study: Study, bounds: Bounds, df: pd.DataFrame, clusters: tuple[int, ...]) -> None:
    """Estimate on the choices of 2013 and 2014, score those of 2015."""
    train, test = df[df["year"] < 2015], df[df["year"] == 2015].reset_index(drop=True)
    rows = trajectories(train, FEATURES)
    moves = int((rows.next >= 0).sum())
    fits, made = estimate(rows, BETA, clusters)
    plain = benchmarks(train, test)
    methods = plain | predicted(fits, made, test, new=True)
    logs = {k: log_score(p, test) for k, p in methods.items()}
    lines = {}
    for name, own in logs.items():
        line = {"log score": own.mean()}
        for other in ("nothing changes", "static logit"):
            gain, se = clustered(own - logs[other], test["pair"])
            line |= {f"over {other}": gain, f"se {other}": se}
            if name not in plain:
                what = f"out of time, {name}: gain over {other}, in s.e."
                bounds.hold(what, gain / se, bounds.before["gain"], 1e3)
        lines[name] = line
    study.say(
        f"out of time: {len(train):,} choices of 2013 and 2014 ({moves:,} moves), {len(test):,}"
        f" choices of 2015; errors by pair\n{pd.DataFrame(lines).T.round(5).to_string()}"
    )
    fit_by_bins(study, bounds, "2015", methods, test, bounds.before["gap_out"])


# counterfactual ----------------------------------------------------------------------------------


def features_with(fit: dc.Results, competitors: Any) -> dc.Utility:
    """The clusters' features with other competitors: a function of their mean."""
    u = fit.model.utility
    x, k = u.x.copy(), fit.model.names.index("serve:competitors")
    x[:, 1, k] = competitors(x[:, 1, k])
    return dc.Utility.from_array(x, fit.model.names, u.offset)


def frozen(fit: dc.Results) -> dc.Transitions:
    """Another law of motion: who keeps the status quo keeps its state for sure."""
    F = np.array(fit.transitions.dense())
    usual = fit.counts.argmax(axis=1)
    at = np.arange(len(F))
    F[at, usual] = np.eye(len(F))
    return dc.Transitions.dense(F)


def solved(fit: dc.Results, extra: np.ndarray) -> np.ndarray:
    """Probabilities with utils added, by value iteration: independent of the package's solver."""
    F = np.array(fit.transitions.dense())
    u = fit.model.utility.x @ fit.theta + extra
    V = np.zeros(len(u))
    for _ in range(2000):
        v = u + fit.model.beta * F @ V
        V = np.logaddexp(v[:, 0], v[:, 1])
    return np.exp(v - np.logaddexp(v[:, 0], v[:, 1])[:, None])


def counterfactuals(
    study: Study, bounds: Bounds, fits: Mapping[str, Any], made: Mapping[str, dc.SAmQ],
    df: pd.DataFrame,
) -> None:  # fmt: skip
    """More or no competitors in the reward (re-solved), another law, and mere predictions."""
    lines = []
    for name in made:
        fit = fits[name]
        extra = np.zeros(fit.model.shape[:2])
        extra[:, 1] = fit.params["serve:competitors"]
        scenarios = {
            "one more": dc.Scenario("one more competitor, utils", utility=extra),
            "one more (features)": dc.Scenario(
                "one more competitor, features", utility=features_with(fit, lambda c: c + 1)
            ),
            "none": dc.Scenario("no competitor", utility=features_with(fit, lambda c: 0 * c)),
            "frozen": dc.Scenario("states frozen", transitions=frozen(fit)),
        }
        found = {k: dc.counterfactual(fit, s) for k, s in scenarios.items()}
        if name == next(iter(made)):
            study.say("\n\n".join(f"{name}, {c}" for c in found.values()))
        for k, c in found.items():
            study.check(f"{name}, {k}: converged", c.converged, 1, 0, "own oracle")
            lines.append((name, k, *c.shares.loc["serve"], str(c.identified)))
        gap = float(np.abs(found["one more"].ccp - solved(fit, extra)).max())
        study.check(f"{name}, one more: distance from value iteration", gap, 0,
                    bounds.before["solved"], "own oracle")  # fmt: skip
        same = float(np.abs(found["one more"].ccp - found["one more (features)"].ccp).max())
        study.check(f"{name}: utils and features say the same", same, 0, 1e-8, "own oracle")
        study.check(f"{name}: known utils are identified", found["one more"].identified, 1, 0,
                    "published")  # fmt: skip
        study.check(f"{name}: another law is identified", found["frozen"].identified, 0, 0,
                    "published")  # fmt: skip
    for name in ("DeepPQR", "TDCCP"):
        base = fits[name].predict(df)["serve"].mean()
        for k, to in (("one more", df["competitors"] + 1), ("none", 0 * df["competitors"])):
            new = fits[name].predict(df.assign(competitors=to))["serve"].mean()
            lines.append((f"{name} (prediction)", k, base, new, new - base, "no counterfactual"))
    head = ["fit", "competitors", "serve", "then", "change", "identified"]
    table = pd.DataFrame(lines, columns=head).round(4)
    study.say(f"one more or no competitor, beta {BETA:g}\n{table.to_string(index=False)}")


def run(quick: bool) -> Study:
    """Run the study; quick: one discount factor, one number of clusters."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    warnings.filterwarnings("ignore", message=".*future.infer_string.*")
    study, want = Study("airline_entry"), expected(HERE)
    every = panel()
    facts(study, every, want["facts"])
    df = every[every["carrier"] != NOBODY].sort_values(["member", "year"], ignore_index=True)
    bounds, clusters = Bounds(study, want), (20,) if quick else (20, 50, 100)
    rows = trajectories(df, FEATURES)
    static(study, bounds, df, rows)
    for beta in (BETA,) if quick else BETAS:
        found = estimate(rows, beta, clusters)
        agreement(study, bounds, beta, found[0])
        if beta == BETA:
            fits, made = found
    in_sample(study, bounds, df, fits, made)
    out_of_time(study, bounds, df, clusters)
    counterfactuals(study, bounds, fits, made, df)
    if not quick:
        by_pair(study, bounds, df, rows)
        variants(study, df, every)
    return study


if __name__ == "__main__":
    main(run)
