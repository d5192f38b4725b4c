"""Forecasts with Membership: out of time from 2017-12, and across the menu change of 2017-04."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main, shared_data

import dynchoice as dc

HERE = Path(__file__).resolve().parent
MENUS = {
    "50/15": {"annual": 50.0, "monthly": 15.0},
    "65/15": {"annual": 65.0, "monthly": 15.0},
    "99/9": {"annual": 99.0, "monthly": 9.0},
}
IN_DATA = {"A50_M15": "50/15", "A65_M15": "65/15", "A99_M9": "99/9"}
SMOOTH = 0.5  # added to each count of the Markov table
COLUMNS = {"member": "uid", "time": "period", "plan": "plan", "contract": "contract"}


def programme(beta: float, **options: Any) -> dc.Membership:
    """The two plans and their one benefit: rides last month (0, 1-3, 4 and more)."""
    return dc.Membership(
        [dc.Plan("monthly", 9), dc.Plan("annual", 99, periods=12, cancel="at renewal")],
        [dc.Benefit("rides", levels=3)],
        beta=beta,
        **options,
    )


def history() -> pd.DataFrame:
    """All member-months with the states of the programme.

    The data's clock says 1 in the month in which a contract ends: level ``annual_0``, a decision.
    Who rides on in that month without a new spell has not renewed, whatever the label says:
    ``plan`` is "none" there. Rows whose clock is not what the contract's law makes of the month
    before are marked ``jump``.
    """
    df = pd.read_csv(shared_data() / "houston_bcycle" / "member_month.csv.gz")
    df = df.sort_values(["uid", "period"], ignore_index=True)
    left, held = df["annual_months_left"], df["plan_prev"] == "annual"
    tail = held & (left == 1) & (df["plan"] == "annual") & (df["active_decision"] == 0)
    df["tail"] = tail
    df["plan"] = df["plan"].mask(tail, "none")
    clock = "annual_" + (left.clip(1, 12) - 1).astype(str)
    df["contract"] = np.where(held & (left > 0), clock, df["plan_prev"].mask(held, "none"))
    df["rides"] = np.digitize(df["trips_prev"], [1, 4])
    df["prices"] = df["menu"].map(IN_DATA)
    df["entry"] = ~df["uid"].duplicated()
    df["decides"] = 1 - df["entry"].astype(int)
    out = (df["plan"] == "none").groupby(df["uid"]).shift(fill_value=False)
    left_once = (out | (~df["entry"] & (df["contract"] == "none"))).groupby(df["uid"]).cummax()
    df["vintage"] = np.where(left_once, "current", "kept")
    club = programme(0.99)
    codes = {label: i for i, label in enumerate(club.contracts.labels)}
    level, choice = df["contract"].map(codes), df["plan"].map(club.choices.index)
    lawful = club.contracts.table[
        choice.shift(fill_value=0), level.shift(fill_value=0).astype(int), level.astype(int)
    ]
    df["jump"] = ~df["entry"] & (lawful == 0)
    return df


def overall(fit: dc.Results) -> np.ndarray:
    """Shares of plans among all decisions, whatever the state (S, J): the zero of the scale."""
    allowed = fit.model.available
    p = allowed * fit.counts[allowed.all(axis=1)].sum(axis=0)
    return p / p.sum(axis=1, keepdims=True)


def markov(fit: dc.Results) -> np.ndarray:
    """No change: smoothed frequencies of plans by contract held, rides (and way in), (S, J)."""
    states, allowed = fit.model.states, fit.model.available
    keys = [states.axis_codes(a) for a in states.axes if a not in ("prices", "vintage")]
    groups = np.unique(np.stack([*keys, allowed[:, 0]], axis=1), axis=0, return_inverse=True)[1]
    n = np.zeros((groups.max() + 1, allowed.shape[1]))
    np.add.at(n, groups, fit.counts)
    p = (n + SMOOTH)[groups] * allowed
    return p / p.sum(axis=1, keepdims=True)


def clustered(d: np.ndarray, who: np.ndarray) -> tuple[float, float]:
    """Return the mean of ``d`` and its standard error, clustered by member."""
    own = pd.Series(d - d.mean()).groupby(np.asarray(who)).sum().to_numpy()
    return float(d.mean()), float(np.sqrt((own**2).sum()) / len(d))


def scores(
    methods: Mapping[str, np.ndarray], at: np.ndarray, chosen: np.ndarray, who: Any
) -> pd.DataFrame:
    """Mean log scores of methods (probabilities (S, J)), and differences to the first one."""
    logs = {k: np.log(p[at, chosen]) for k, p in methods.items()}
    first = next(iter(logs.values()))
    rows = {}
    for name, own in logs.items():
        gain, se = clustered(first - own, np.asarray(who))
        rows[name] = {"rows": len(own), "log score": own.mean(), "model gains": gain, "se": se}
    return pd.DataFrame(rows).T


def calibration(fit: dc.Results, p: np.ndarray, at: np.ndarray, chosen: Any, group: Any) -> Any:
    """Predicted (p) and observed share of each plan by group, and its chi-square."""
    J = p.shape[1]
    table = pd.DataFrame(np.hstack([p[at], np.eye(J)[chosen]])).groupby(np.asarray(group)).sum()
    want, seen = table.to_numpy()[:, :J], table.to_numpy()[:, J:]
    n = seen.sum(axis=1)
    out = pd.DataFrame({"n": n.astype(int)}, index=table.index)
    for j, plan in enumerate(fit.model.choices):
        out[f"p {plan}"], out[plan] = want[:, j] / n, seen[:, j] / n
    out["chi2"] = ((seen - want) ** 2 / np.maximum(want, 1e-12)).sum(axis=1)
    return out


def largest_gap(table: pd.DataFrame, fit: dc.Results) -> float:
    """Largest gap of a plan's share in groups of 100 decisions or more."""
    big = table[table["n"] >= 100]
    return float(max((big[f"p {plan}"] - big[plan]).abs().max() for plan in fit.model.choices))


def by_decile(p: np.ndarray, at: np.ndarray, chosen: np.ndarray) -> pd.DataFrame:
    """Predicted against observed frequency by decile of probability, choices pooled."""
    predicted = p[at].reshape(-1)
    hit = np.eye(p.shape[1])[chosen].reshape(-1)
    bins = pd.qcut(predicted, 10, duplicates="drop", labels=False)
    table = pd.DataFrame({"predicted": predicted, "observed": hit, "bin": bins})
    out = table.groupby("bin").agg(
        n=("observed", "size"), predicted=("predicted", "mean"), observed=("observed", "mean")
    )
    return out.reset_index(drop=True)


# out of time ----------------------------------------------------------------------------------


def estimate(df: pd.DataFrame, beta: float, price: float = 0.0) -> tuple[dc.Panel, dc.Results]:
    """Estimate on one menu; the price parameter is fixed, since nothing identifies it."""
    club = programme(beta, menus={"99/9": MENUS["99/9"]}, fixed={"price": price})
    panel = club.panel(df[~df["jump"]], **COLUMNS, decision="decides")
    return panel, dc.NFXP(club.model(), panel).fit()


def choice_of(fit: dc.Results, df: pd.DataFrame) -> np.ndarray:
    """Codes of the plans chosen."""
    return df["plan"].map(list(fit.model.choices).index).to_numpy()


def ahead(fit: dc.Results, ccp: np.ndarray, k: int) -> np.ndarray:
    """Plan probabilities in month ``k`` (1: this one) by today's state, (S, J)."""
    moves = np.einsum("sj,sjt->st", ccp, fit.transitions.dense())
    return np.linalg.matrix_power(moves, k - 1) @ ccp


def other_windows(study: Study, df: pd.DataFrame) -> None:
    """Other cut-offs and discount factors: one-step gains of the model."""
    rows = {}
    months = sorted(df["period"].unique())
    for beta, last in [(0.99, m) for m in ("2017-08", "2017-09", "2017-10")] + [
        (b, "2017-11") for b in (0.95, 0.99, 0.995)
    ]:
        window = df[df["period"].between("2017-04", last)]
        fit, static = estimate(window, beta)[1], estimate(window, 0.0)[1]
        after = months[months.index(last) + 1 : months.index(last) + 4]
        methods = {"model": fit.ccp, "static logit": static.ccp, "Markov table": markov(fit)}
        found = one_step(methods, fit, df[df["period"].isin(after)])[1]
        rows[last, beta] = {
            "loglik": fit.loglik,
            "model": found.loc["model", "log score"],
            **{f"over {k}": found.loc[k, "model gains"] for k in list(methods)[1:]},
            **{f"se {k}": found.loc[k, "se"] for k in list(methods)[1:]},
        }
    table = pd.DataFrame(rows).T.rename_axis(["months to", "beta"])
    study.say(f"one step, other windows (3 months after each)\n{table.round(5).to_string()}")


def groups_of(df: pd.DataFrame) -> np.ndarray:
    """State groups: contract held and rides."""
    return (df["contract"].str.replace("_0", " ends") + ", rides " + df["rides"].astype(str)).array


def one_step(
    fits: Mapping[str, np.ndarray], fit: dc.Results, later: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return decisions of members known, with their state (``at``), and scores of methods."""
    test = later[~later["entry"]]
    test = test.assign(at=fit.model.states.codes(test))
    test = test[(fit.model.available[test["at"]].sum(axis=1) > 1)]
    return test, scores(fits, test["at"].to_numpy(), choice_of(fit, test), test["uid"])


def out_of_time(study: Study, df: pd.DataFrame, want: Mapping[str, Any], quick: bool) -> None:
    """Estimate on 2017-04 to 2017-11, score 2017-12 to 2018-02."""
    before = want["before"]
    window, later = df[df["period"].between("2017-04", "2017-11")], df[df["period"] >= "2017-12"]
    for claim, value in want["panel"].items():
        study.check(claim, len(window), value, 0, "own oracle")
    panel, fit = estimate(window, 0.99)
    static = estimate(window, 0.0)[1]
    study.say(f"2017-04 to 2017-11\n{panel.report}\n\n{fit.summary}\n\nstatic\n{static.summary}")
    for name, f in (("model", fit), ("static logit", static)):
        study.check(f"out of time: {name} converged", f.converged, 1, 0, "own oracle")
    other = estimate(window, 0.99, price=0.05)[1]
    study.check(
        "log-likelihood does not see the price", other.loglik - fit.loglik, 0, 1e-4, "own oracle"
    )
    methods = {
        "model": fit.ccp,
        "static logit": static.ccp,
        "Markov table": markov(fit),
        "overall shares": overall(fit),
    }
    # one step: the plan of a month given the state at its start
    test, one = one_step(methods, fit, later)
    at, chosen = test["at"].to_numpy(), choice_of(fit, test)
    study.say(f"one step, 2017-12 to 2018-02, members known\n{one.round(5).to_string()}")
    by_month = {
        period: scores(methods, at[own], chosen[own], test["uid"][own])["model gains"]
        for period in sorted(test["period"].unique())
        if (own := (test["period"] == period).to_numpy()).any()
    }
    study.say(f"model's gain by month\n{pd.DataFrame(by_month).round(5).to_string()}")
    gain = one["model gains"]
    bound = before["one_step_vs_markov"]
    study.check("one step: gain over Markov", gain["Markov table"], 0, bound, "set before")
    low = before["one_step_vs_static"]
    study.within("one step: gain over the static logit", gain["static logit"], low, 1, "set before")
    if not quick:
        other_windows(study, df)
    # k months ahead, from the states at the start of 2017-12
    months = sorted(later["period"].unique())
    cohort = later[(later["period"] == months[0]) & ~later["entry"]]
    start = pd.Series(fit.model.states.codes(cohort), index=cohort["uid"])
    left = pd.Series(fit.model.membership.contracts.left, fit.model.membership.contracts.labels)
    left = pd.Series(left[cohort["contract"]].to_numpy(), index=cohort["uid"])
    parts = {}
    for k, month in enumerate(months, start=1):
        rows = later[(later["period"] == month) & later["uid"].isin(start.index)]
        jumped = later[later["jump"] & (later["period"] > months[0]) & (later["period"] <= month)]
        rows = rows[(left[rows["uid"]].to_numpy() < k) & ~rows["uid"].isin(jumped["uid"])]
        s = start[rows["uid"]].to_numpy()
        far = {n: ahead(fit, p, k) for n, p in methods.items() if n != "overall shares"}
        parts[f"{k} ahead"] = scores(far, s, choice_of(fit, rows), rows["uid"])
    table = pd.concat(parts)
    study.say(f"plan k months ahead, given the state at the cut-off\n{table.round(5).to_string()}")
    for k in (2, 3):
        d = table.loc[(f"{k} ahead", "Markov table"), "model gains"]
        bound = before["ahead_vs_markov"]
        study.check(f"{k} ahead: gain over the Markov table", d, 0, bound, "set before")
    # calibration
    holds = (test["contract"] != "none").to_numpy()
    for name in ("model", "static logit", "Markov table"):
        found = calibration(fit, methods[name], at, chosen, groups_of(test))
        gap = largest_gap(found, fit)
        deciles = by_decile(methods[name], at[holds], chosen[holds])
        study.say(
            f"calibration of the {name}: chi2 {found['chi2'].sum():.1f}, largest gap {gap:.3f}\n"
            f"{found.round(4).to_string()}\n\n"
            f"by decile, members with a plan\n{deciles.round(4).to_string()}"
        )
        if name == "model":
            study.within("largest calibration gap", gap, 0, before["calibration_gap"], "set before")
    # the package's own forecast of the cohort is the same arithmetic
    mu = np.bincount(start, minlength=fit.model.states.size).astype(float)
    paths = dc.forecast(fit, start=mu, periods=3, draws=50 if quick else 200)
    own = np.array([mu @ ahead(fit, fit.ccp, k) for k in (1, 2, 3)]) / mu.sum()
    take_up = paths.take_up.pivot(index="period", columns="choice", values="share")
    distance = np.abs(take_up[list(fit.model.choices)].to_numpy() - own).max()
    study.check("forecast() is the chain pushed on", distance, 0, 1e-10, "own oracle")
    seen = later[later["uid"].isin(start.index)].groupby("period")["plan"]
    mix = seen.value_counts(normalize=True).unstack()[list(fit.model.choices)]
    mix.index = range(1, 4)
    shown = paths.take_up[["period", "choice", "share", "lower", "upper"]].merge(
        mix.rename_axis(index="period", columns="choice").stack().rename("observed").reset_index(),
        how="left",
    )
    study.say(f"plan mix of the members of 2017-12\n{shown.round(4).to_string(index=False)}")


# the menu of 2017-04 --------------------------------------------------------------------------


def estimate_early(df: pd.DataFrame, beta: float) -> tuple[dc.Panel, dc.Results]:
    """Estimate on 2012-05 to 2014-08, where the annual price rises from 50 to 65.

    Members enter the data with their first ride as members, so who looked and stayed out is not
    seen: newcomers choose between the plans only. They stand at ``vintage`` "kept" until they
    leave, at the same prices as everybody: the axis only tells them from former members.
    """
    club = programme(beta, menus=MENUS, kept={})
    panel = club.panel(df[~df["jump"]], **COLUMNS)
    model, states = club.model(), club.states
    labels = states.frame()
    available = model.available.copy()
    newcomer = (labels["vintage"] == "kept") & (labels["contract"] == "none")
    available[newcomer.to_numpy(), 0] = False
    return panel, dc.NFXP(model.with_parts(available=available), panel).fit()


def menu_change(study: Study, df: pd.DataFrame, want: Mapping[str, Any], quick: bool) -> None:
    """Estimate before 2014-09, predict the mix under the menu of 2017-04."""
    before = want["before"]
    window = df[df["period"] <= "2014-08"]
    betas = (0.99,) if quick else (0.95, 0.99, 0.995)
    found = {f"beta {b:g}": estimate_early(window, b) for b in betas}
    fits = {name: f for name, (_, f) in found.items()}
    panel, fit = found["beta 0.99"]
    static = estimate_early(window, 0.0)[1]
    study.say(f"to 2014-08\n{panel.report}\n\n{fit.summary}\n\nstatic\n{static.summary}")
    study.say(str(fit.identification()))
    for name, f in {**fits, "static logit": static}.items():
        study.check(f"menu change: {name} converged", f.converged, 1, 0, "own oracle")
    study.say(str(dc.compare({**fits, "static": static})))
    study.within("utils per dollar: sign", fit.params["price"], 0, 1, "own oracle")
    states = fit.model.states
    methods = {"model": fit.ccp, "static logit": static.ccp, "Markov, no change": markov(fit)}
    drawn = np.array([dc.solve(fit.model, theta).ccp for theta in fit.draws(200)])
    # newcomers, who take one plan or the other
    df = df.assign(at=states.codes(df))
    new = df[df["entry"] & ((df["period"] <= "2014-08") | (df["period"] >= "2017-03"))]
    rows = []
    menus = new["prices"].where(new["period"] != "2017-03", "65/15 (2017-03)")
    for menu, own in new.groupby(menus):
        at = int(own["at"].iloc[0])
        odds = annual_odds(fit, at)
        low, high = 1 / (1 + np.exp(-odds[["lower", "upper"]].to_numpy(dtype=float)))
        seen = float((own["plan"] == "annual").mean())
        row = {"menu": menu, "newcomers": len(own), "observed": seen, "model": fit.ccp[at, 2]}
        row |= {"lower": low, "upper": high} | {k: p[at, 2] for k, p in methods.items()}
        row["z"] = (np.log(seen / (1 - seen)) - odds["estimate"]) / odds["std_error"]
        rows.append(row)
    table = pd.DataFrame(rows).set_index("menu")
    study.say(f"annual share of newcomers (90 % band of the model)\n{table.round(4).to_string()}")
    after, pre = table.loc["99/9"], table.loc["65/15"]
    fall = float(after["model"] < pre["model"] and after["observed"] < pre["observed"])
    study.check("newcomers: annual share falls, as predicted", fall, 1, 0, "set before")
    study.check("newcomers: z of the observed log odds", after["z"], *want["after"]["z"], "result")
    # decisions of 2017-04 to 2018-02, given where members stood
    test = df[df["period"] >= "2017-04"]
    test = test[fit.model.available[test["at"]].sum(axis=1) > 1].copy()
    groups = {"newcomers": test["entry"], "members known": ~test["entry"]}
    parts = {
        k: scores(methods, test["at"][g].to_numpy(), choice_of(fit, test[g]), test["uid"][g])
        for k, g in groups.items()
    }
    study.say(f"decisions under 99/9, log scores\n{pd.concat(parts).round(5).to_string()}")
    held = test["contract"].str.replace("annual_0", "annual ends").mask(test["entry"], "newcomer")
    test["before"] = states.codes(test.assign(prices="65/15"))
    rows = []
    for name, own in [*test.groupby(held), ("all", test)]:
        at, hit = own["at"].to_numpy(), np.eye(3)[choice_of(fit, own)]
        band = np.quantile(drawn[:, at].mean(axis=1), [0.05, 0.95], axis=0)
        for j, plan in enumerate(fit.model.choices):
            row = {"came with": name, "n": len(own), "plan": plan, "observed": hit[:, j].mean()}
            row["at 65/15"] = fit.ccp[own["before"], j].mean()
            row |= {"model": fit.ccp[at, j].mean(), "lower": band[0, j], "upper": band[1, j]}
            rows.append(row | {k: p[at, j].mean() for k, p in methods.items()})
    mix = pd.DataFrame(rows)
    study.say(f"plan mix of decisions under 99/9\n{mix.round(4).to_string(index=False)}")
    plans = mix[(mix["came with"] == "all") & (mix["plan"] != "none")].set_index("plan")
    plans = plans[["observed", "at 65/15", *methods]]
    shares = (plans.loc["annual"] / plans.sum()).round(4).to_string()
    taken = drawn[:, test["at"]].sum(axis=1)
    low, high = np.quantile(taken[:, 2] / taken[:, 1:].sum(axis=1), [0.05, 0.95])
    study.say(f"annual share of plans taken (model's band {low:.3f} to {high:.3f})\n{shares}")
    # the members of 2017-03 followed for 11 months, with and without the new menu
    known = df["uid"].isin(df.loc[df["period"] <= "2017-03", "uid"])
    stock = df[known & (df["period"] == "2017-04")].assign(prices="65/15", vintage="current")
    mu = np.bincount(states.codes(stock), minlength=states.size).astype(float)
    change = dc.Scenario("99/9", offer={"prices": "99/9"})
    paths = dc.forecast(fit, change, start=mu, periods=11, draws=50 if quick else 200)
    study.check("menu change: forecast converged", paths.converged, 1, 0, "own oracle")
    months = sorted(df["period"].unique())[-11:]
    seen = df[known & (df["period"] >= "2017-04")].groupby("period")["plan"]
    seen = seen.value_counts(normalize=True).unstack().reindex(months)
    chain = {}
    for name, p in methods.items():
        start = np.bincount(states.codes(stock.assign(prices="99/9")), minlength=states.size)
        laws = static if name == "static logit" else fit
        chain[name] = start @ ahead(laws, p, 11) / start.sum()
    take_up = paths.take_up.set_index(["scenario", "choice", "period"])
    lines = []
    for plan in fit.model.choices[1:]:
        for t in (1, 6, 11):
            old, row = take_up.loc[("baseline", plan, t)], take_up.loc[("99/9", plan, t)]
            lines.append({"plan": plan, "month": months[t - 1], "65/15": old["share"]})
            lines[-1] |= {"99/9": row["share"], "lower": row["lower"], "upper": row["upper"]}
            lines[-1]["observed"] = seen.loc[months[t - 1], plan]
    text = pd.DataFrame(lines).round(4).to_string(index=False)
    last = {k: v[1:].round(4).tolist() for k, v in chain.items()}
    study.say(f"members of 2017-03 ({len(stock):,})\n{text}\nmonthly, annual in 2018-02: {last}")
    gap = take_up.loc[("99/9", "annual", 11), "share"] - seen.loc[months[-1], "annual"]
    study.check("members of 2017-03: annual in 2018-02", gap, 0, before["stock_gap"], "set before")


def annual_odds(fit: dc.Results, at: int) -> pd.Series:
    """Log odds of annual against monthly in a state: estimate, std_error, lower, upper."""

    def odds(params: pd.Series) -> float:
        p = dc.solve(fit.model, params).ccp[at]
        return float(np.log(p[2] / p[1]))

    return fit.delta_method(odds, level=0.9).iloc[0]


def run(quick: bool) -> Study:
    """Both exercises."""
    study = Study("houston_forecast")
    want, df = expected(HERE), history()
    annual = df["contract"].str.startswith("annual") & ~df["entry"]
    good = (df["period"] <= "2014-08") | (df["period"] >= "2017-04")
    agrees = 1 - df["jump"][annual & good].mean()
    study.say(
        f"clock: {agrees:.1%} of {int((annual & good).sum()):,} annual months as the contract's law"
        f" has it; {int(df['jump'][good].sum())} rows left out,"
        f" {int(df['tail'][good].sum())} months of a contract's end relabelled"
    )
    study.within("clock agrees", agrees, want["clock_agrees"], 1, "own oracle")
    out_of_time(study, df, want, quick)
    menu_change(study, df, want, quick)
    return study


if __name__ == "__main__":
    main(run)
