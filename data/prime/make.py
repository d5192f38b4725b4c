"""Make the sample panel: a simulated Prime-like business, from truth.toml and nothing else.

    python data/prime/make.py            # writes contract.csv, attributes.csv, prime.parquet

The model is the one of run.toml with the laws and parameters of truth.toml. Members start two
years before the first month shown, so that contracts are not all new; prices change once, grocery
delivery rolls out by region, and both come as a surprise.
"""

from __future__ import annotations

import csv
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import dynchoice as dc
from dynchoice.run.config import load_run

HERE = Path(__file__).parent
CLOCK = [f"annual_{m}" for m in range(12)]
CONTRACTS = ["none", "monthly", *CLOCK]
PRICES = {"old": (0, 1.0), "new": (1, 1.0), "annual_cut": (1, 0.8)}  # menu, annual price factor
BUNDLES = {"no_grocery": 0, "with_grocery": 1}
CHOICES = ["none", "monthly", "annual"]
BENEFITS = ["shipping", "video", "music", "grocery"]
PARAMS = ["member", "annual", *BENEFITS, "price", "join", "switch"]
BURN_IN = 24


def truth() -> dict:
    return tomllib.loads((HERE / "truth.toml").read_text(encoding="utf-8"))


def contract_rows() -> list[tuple[str, str, str]]:
    """(choice, contract, next contract) for every choice that is offered."""
    rows = []
    for now in CONTRACTS:
        left = int(now.split("_")[1]) if now.startswith("annual") else 0
        if left > 0:
            rows.append(("annual", now, f"annual_{left - 1}"))
        else:
            rows += [("none", now, "none"), ("monthly", now, "monthly")]
            rows.append(("annual", now, "annual_11"))
    return rows


def attribute_rows(spec: dict) -> list[dict]:
    """One row per segment, contract, prices, bundle and choice: what it costs and is."""
    rows = []
    for segment, s in spec["segments"].items():
        for now in CONTRACTS:
            locked = now.startswith("annual") and now != "annual_0"
            for (prices, (menu, factor)), (bundle, grocery), choice in product(
                PRICES.items(), BUNDLES.items(), CHOICES
            ):
                pay = 0.0
                if choice == "monthly":
                    pay = s["prices"]["monthly"][menu]
                if choice == "annual" and not locked:
                    pay = s["prices"]["annual"][menu] * factor
                rows.append(
                    {
                        "segment": segment,
                        "contract": now,
                        "prices": prices,
                        "bundle": bundle,
                        "choice": choice,
                        "member": int(choice != "none"),
                        "annual": int(choice == "annual"),
                        "price": round(-pay, 4),
                        "join": -int(now == "none" and choice != "none"),
                        "switch": -int(
                            (now == "monthly" and choice == "annual")
                            or (now == "annual_0" and choice == "monthly")
                        ),
                        "grocery_on": grocery,
                    }
                )
    return rows


def write_tables(spec: dict) -> None:
    with (HERE / "contract.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("choice", "contract", "next"), *contract_rows()])
    rows = attribute_rows(spec)
    with (HERE / "attributes.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def true_laws(spec: dict) -> dict:
    """Engagement laws with the probabilities of truth.toml."""

    def rows(name: str) -> list:
        return [[[1 - p, p] for p in spec["engagement"][name][c]] for c in CHOICES]

    laws = {b: dc.Markov(("choice",), rows(b)) for b in BENEFITS[:3]}
    off, alone, along = (rows(f"{k}") for k in ("no_grocery", "grocery_alone", "grocery_shipping"))
    table = [[[off[c], off[c]], [alone[c], along[c]]] for c in range(3)]
    laws["grocery"] = dc.Markov(("choice", "bundle", "shipping"), table)
    return laws


def true_model(segment: str, spec: dict) -> tuple[dc.DDC, np.ndarray]:
    """The model of run.toml with true laws, and the true parameters in its order."""
    model = load_run(HERE / "run.toml").model(segment)
    laws = {**model.transitions.laws, **true_laws(spec)}
    model = model.with_transitions(dc.Transitions.factored(model.states, model.choices, laws))
    return model, np.array([spec["segments"][segment]["params"][p] for p in PARAMS])


def simulate_segment(segment: str, spec: dict, rng: np.random.Generator) -> pd.DataFrame:
    """Member-months of one segment: states, choices, entry and exit."""
    model, theta = true_model(segment, spec)
    s = spec["segments"][segment]
    N, T = s["members"], spec["months"]
    region = rng.integers(0, len(s["grocery_from"]), N)
    roll_out = np.array(s["grocery_from"])[region]
    start = pd.DataFrame({"contract": ["none"] * N, "prices": "old"})
    start["bundle"] = np.where(roll_out == 0, "with_grocery", "no_grocery")
    for b in BENEFITS:
        start[b] = rng.integers(0, 2, N) if b != "grocery" else 0
    codes = model.states.codes(start)
    changes = sorted({spec["price_change"], *(m for m in s["grocery_from"] if 0 < m <= T)})
    states, choices = [], []
    burn = dc.simulate(model, params=theta, members=N, periods=BURN_IN, seed=rng, start=codes)
    codes, month = burn.after, 1
    for stop in [*changes, T + 1]:
        if stop > month:
            span = dc.simulate(
                model, params=theta, members=N, periods=stop - month, seed=rng, start=codes
            )
            states.append(span.states)
            choices.append(span.choices)
            codes, month = span.after, stop
        if stop <= T:  # the new prices, and grocery where the roll-out has come
            levels = model.states.labels(codes)
            levels["prices"] = "new" if stop >= spec["price_change"] else "old"
            levels["bundle"] = np.where(roll_out <= stop, "with_grocery", "no_grocery")
            codes = model.states.codes(levels)
    state, choice = np.concatenate(states, axis=1), np.concatenate(choices, axis=1)
    entry = np.where(rng.random(N) < spec["share_entering_later"], rng.integers(1, T, N), 0)
    leave = np.minimum(rng.geometric(spec["monthly_exit"], N) + entry, T)
    month_no = np.tile(np.arange(T), N)
    inside = (month_no >= np.repeat(entry, T)) & (month_no < np.repeat(leave, T))
    table = model.states.labels(state.reshape(-1))
    first = pd.Period(spec["first_month"], "M")
    names = np.array([str(first + t) for t in range(T)])
    table.insert(0, "member", np.repeat(np.arange(N), T))
    table.insert(1, "month", names[month_no])
    table.insert(2, "segment", segment)
    places = np.array([f"{s['country']}{r + 1:02d}" for r in range(len(s["grocery_from"]))])
    table.insert(3, "region", np.repeat(places[region], T))
    table["plan"] = np.array(CHOICES)[choice.reshape(-1)]
    return table[inside].reset_index(drop=True)


def make(seed: int | None = None) -> pd.DataFrame:
    """The whole panel; members are numbered through."""
    spec = truth()
    streams = np.random.SeedSequence(spec["seed"] if seed is None else seed)
    parts, first = [], 0
    for segment, stream in zip(spec["segments"], streams.spawn(len(spec["segments"])), strict=True):
        part = simulate_segment(segment, spec, np.random.default_rng(stream))
        part["member"] += first
        first += spec["segments"][segment]["members"]
        parts.append(part)
    panel = pd.concat(parts, ignore_index=True)
    for b in BENEFITS:
        panel[b] = panel[b].astype("int8")
    panel["member"] = panel["member"].astype("int32")
    return panel


def main() -> int:
    write_tables(truth())
    panel = make()
    target = HERE / "prime.parquet"
    panel.to_parquet(target, index=False, compression="zstd", compression_level=19)
    print(f"{target}: {len(panel):,} rows, {panel.member.nunique():,} members")
    print(f"{target.stat().st_size / 1e6:.2f} MB")
    last = panel[panel.month == panel.month.max()]
    shares = pd.crosstab(panel.segment, panel.plan, normalize="index").round(3)
    print(shares, pd.crosstab(last.segment, last.plan, normalize="index").round(3), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
