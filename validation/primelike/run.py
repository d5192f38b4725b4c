"""The prototype of papers.md 7.4 built by Membership: its table, identities and the truth table.

python validation/primelike/run.py
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Study, expected, main

import dynchoice as dc
from dynchoice.counterfactuals.population import population
from dynchoice.counterfactuals.steady_state import Stationary

HERE = Path(__file__).resolve().parent
MONTHS = 600
MEASURES = {
    "penetration": "penetration",
    "monthly_share": "share of members: monthly",
    "conversion": "trial conversion",
    "renewal_0": "renewal rate y0",
    "renewal_1": "renewal rate y1",
    "renewal_2": "renewal rate y2",
    "renewal": "renewal rate",
    "revenue": "revenue",
}


def scenarios() -> dict[str, dc.Scenario]:
    """The issue's six, by the names of expected.toml."""
    return {
        "no_video": dc.Scenario("no video", bundle={"video": 0}),
        "no_shipping": dc.Scenario("no shipping", bundle={"shipping": 0}),
        "gaming_doubled": dc.Scenario("gaming x 2", bundle={"gaming": 2}),
        "annual_159": dc.Scenario("annual 159", prices={"annual": 159}),
        "monthly_17.99": dc.Scenario("monthly 17.99", prices={"monthly": 17.99}),
        "attentive": dc.Scenario("fully attentive", attention=1.0),
    }


def after_600_months(club: dc.Membership) -> dict[str, np.ndarray]:
    """Where each type's customers stand in month 601 without any change."""
    out = {}
    model = club.model()
    for kind in club.types:
        ccp = dc.solve(model, club.theta(kind)).ccp
        mu = club.newcomers()
        for _ in range(MONTHS):
            mu = model.transitions.push(mu[:, None] * ccp)
        out[kind] = mu
    return out


def table(study: Study, club: dc.Membership, kind: str, want: dict) -> pd.DataFrame:
    """The prototype's table in month 601, checked against the independent implementation."""
    listed = {k: v for k, v in scenarios().items() if k in want[kind]}
    f = dc.forecast(club, listed.values(), start="newcomers", periods=MONTHS + 1, long_run="point")
    study.check(f"{kind}: converged", f.converged, 1, 0, "own oracle")
    last = f.outcomes[(f.outcomes["period"] == MONTHS + 1) & (f.outcomes["segment"] == "all")]
    last = last.set_index(["scenario", "measure"])["value"]
    start = after_600_months(club)
    rows = {}
    for key, s in {"baseline": dc.Scenario("baseline"), **listed}.items():
        row = {k: float(last[s.name, m]) for k, m in MEASURES.items()}
        row["revenue"] *= 12
        w = dc.welfare(club, s, start=start).table.iloc[0]
        row["surplus"] = float(w["money"])
        row["surplus_experience"] = float(w["experienced money"])
        far = f.long_run[(f.long_run["scenario"] == s.name) & (f.long_run["segment"] == "all")]
        row["stationary revenue"] = 12 * float(far.set_index("measure")["value"]["revenue"])
        rows[key] = row
        for k, value in want[kind][key].items():
            tolerance = want["tolerance"] * max(1.0, abs(value))
            study.check(f"{kind} {key}: {k}", row[k], value, tolerance, "own oracle")
    return pd.DataFrame(rows).T


def identities(study: Study, club: dc.Membership, want: dict) -> None:
    """papers.md 9, row 18b."""
    bands = want["bands"]
    model = club.model()
    for who in population(club, None).groups:
        s = Stationary(who.model, who.theta)
        from dynchoice.counterfactuals.welfare import experience

        gap = np.abs(experience(s.engine, who.theta) - s.policy.V).max()
        study.check(f"{who.kind}: V = W", gap, 0, bands["value_is_experience"], "closed form")
        P, pi = s.policy.P[0], s.policy.pi[0]
        rows = np.arange(len(P))
        a, d = s.engine.blocks.blocked(model.attention)[0], s.engine.blocks.default[0]
        unmixed = P.copy()
        unmixed[rows, d] -= 1 - a
        gap = np.abs(unmixed / a[:, None] - pi).max()
        study.check(f"{who.kind}: unmixing", gap, 0, bands["unmixing"], "closed form")
        for name in ("price", "joining cost", "video"):
            k = model.names.index(name)
            found = s.change(model.utility.x[:, :, k])
            h = 3e-5 * abs(who.theta[k])  # in proportion: a cent moves utils far
            ends = []
            for sign in (1, -1):
                theta = who.theta.copy()
                theta[k] += sign * h
                ends.append(Stationary(model, theta))
            for what, exact, up, down in (
                ("V", found.dV, ends[0].policy.V, ends[1].policy.V),
                ("P", found.dP, ends[0].policy.P, ends[1].policy.P),
                ("steady state", found.dmu, ends[0].mu, ends[1].mu),
            ):
                gap = np.abs((up - down) / (2 * h) - exact).max() / np.abs(exact).max()
                study.check(
                    f"{who.kind}: d {what} / d {name}", gap, 0, bands["derivative"],
                    "finite differences",
                )  # fmt: skip


def eccp_identity(study: Study, club: dc.Membership, want: dict) -> None:
    """papers.md 6.4: with engagement independent of membership and no trial, leaving renews."""
    same = [replace(b, gain_outside=b.gain, stay_outside=b.stay) for b in club.benefits]
    plans = [replace(p, trial=0, attention=1.0, renewal_attention=None) for p in club.plans]
    plain = replace(
        club, plans=plans, benefits=same, attention_outside=1.0, attention_trial=1.0,
        costs=("joining cost", "cancelling cost", "switching cost", "paying upfront"),
    )  # fmt: skip
    model, theta = plain.model(), plain.theta("engaged")
    ccp, u = dc.solve(model, theta).ccp, model.flow_utility(theta)
    contract = model.states.axis_codes("contract")
    out = np.flatnonzero(contract == 0)
    logs = np.log(np.where(ccp > 0, ccp, 1))
    worst = 0.0
    for j in (1, 2):
        there = model.transitions.expect(
            np.stack([logs[:, 0], np.where(u > -1e300, u, 0)[:, 0]], 1)
        )
        left = logs[out, j] - logs[out, 0] + model.beta * (there[out, j, 0] - there[out, 0, 0])
        right = u[out, j] - u[out, 0] + model.beta * (there[out, j, 1] - there[out, 0, 1])
        worst = max(worst, float(np.abs(left - right).max()))
    study.check("ECCP identity", worst, 0, want["bands"]["eccp"], "closed form")


def truth_table(study: Study, want: dict) -> None:
    """papers.md 6.2: identified counterfactuals do not move with the anchor, others do."""
    from dynchoice.counterfactuals.identified import Dynamics, equivalent_payoffs

    rng = np.random.default_rng(62)
    S, J, beta = 30, 4, 0.95
    F = rng.dirichlet(np.ones(S), size=(S, J))
    G = F.copy()
    G[:, 1] = rng.dirichlet(np.ones(S), size=S)
    u = rng.normal(size=(S, J))
    g = rng.normal(size=(S, J))
    twin = equivalent_payoffs(Dynamics.of(F, beta), u, rng.normal(size=S))

    def ccp(u: np.ndarray, F: np.ndarray, beta: float = beta) -> np.ndarray:
        model = dc.DDC(
            states=dc.StateSpace(s=range(S)),
            choices=list(range(u.shape[1])),
            beta=beta,
            utility=dc.Utility.from_array(np.zeros((*u.shape, 1)), ["k"], offset=u),
            transitions=dc.Transitions.dense(F),
        )
        return dc.solve(model, [0.0]).ccp

    def both(change: object) -> float:
        a, b = change(u), change(twin)  # type: ignore[operator]
        return float(np.abs(ccp(*a) - ccp(*b)).max())

    add = lambda u, j, k: np.concatenate([u, u[:, [j]] + g[:, [k]]], axis=1)  # noqa: E731
    one = np.array([1, 2.0, 1, 1])
    cases = {
        "additive transfers": (lambda u: (u + g, F), True),
        "an action dropped": (lambda u: (u[:, [0, 1, 3]], F[:, [0, 1, 3]]), True),
        "the reference dropped": (lambda u: (u[:, 1:], F[:, 1:]), True),
        "a copy of an action": (lambda u: (add(u, 2, 0), F[:, [0, 1, 2, 3, 2]]), True),
        "all payoffs scaled": (lambda u: (1.5 * u, F), True),
        "one law changed": (lambda u: (u, G), False),
        "one payoff scaled": (lambda u: (u * one, F), False),
        "another discount factor": (lambda u: (u, F, 0.9), False),
        "payoff of one, moves of another": (lambda u: (add(u, 2, 0), F[:, [0, 1, 2, 3, 1]]), False),
    }
    for name, (change, identified) in cases.items():
        gap = both(change)
        if identified:
            study.check(
                f"identified: {name}", gap, 0, want["bands"]["truth_table"], "papers.md 6.2"
            )
        else:
            study.within(f"not identified: {name}", gap, 1e-3, 1, "papers.md 6.2")


def flows(study: Study, club: dc.Membership, want: dict) -> None:
    """The flow matrix adds up, a null scenario is null, zero lead is a surprise."""
    dear = {"annual": 159}
    listed = [
        dc.Scenario("null"),
        dc.Scenario("surprise", prices=dear, starts=7),
        dc.Scenario("zero lead", prices=dear, starts=7, announced=7),
        dc.Scenario("announced", prices=dear, starts=7, announced=1),
    ]
    f = dc.forecast(club, listed, periods=24)
    shares = f.take_up.set_index(["scenario", "period", "choice"])["share"]
    own = f.flows.set_index(["scenario", "period", "source", "choice"])["share"]
    into = own.groupby(level=[0, 1, 3]).sum()
    gap = np.abs(into - shares.reindex(into.index.set_names(shares.index.names))).max()
    study.check("flows into a plan are its share", gap, 0, want["bands"]["flows"], "closed form")
    later = own[own.index.get_level_values("period") > 1]
    of = later.groupby(level=[0, 1, 2]).sum()
    before = [shares[s, t - 1, c] for s, t, c in of.index]
    gap = np.abs(of.to_numpy() - np.array(before)).max()
    study.check("flows out of a plan are its share", gap, 0, want["bands"]["flows"], "closed form")
    values = {s: f.outcomes[f.outcomes.scenario == s]["value"].to_numpy() for s in
              ("baseline", "null", "surprise", "zero lead")}  # fmt: skip
    same = np.array_equal(values["baseline"], values["null"], equal_nan=True)
    study.check("null scenario is null, to the bit", same, 1, 0, "closed form")
    same = np.array_equal(values["surprise"], values["zero lead"], equal_nan=True)
    study.check("zero lead is a surprise, to the bit", same, 1, 0, "closed form")


def run(quick: bool) -> Study:
    """The table, the identities, the truth table."""
    study, want = Study("primelike"), expected(HERE)
    club = dc.Membership.from_toml(HERE / "prime_like.toml")
    kinds = ("sophisticated",) if quick else ("sophisticated", "naive")
    for kind in kinds:
        own = club if kind == "sophisticated" else replace(club, naive=1.0)
        rows = table(study, own, kind, want)
        study.say(f"{kind}\n{rows.round(6).to_string()}")
    truth_table(study, want)
    flows(study, club, want)
    eccp_identity(study, club, want)
    if not quick:
        identities(study, club, want)
    return study


if __name__ == "__main__":
    main(run)
