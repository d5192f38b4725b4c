"""Plan histories by a scalar machine that walks one member at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd

import dynchoice as dc

COLUMNS = {"member": "who", "time": "when", "plan": "plan"}


# the machine ----------------------------------------------------------------------------------


class Machine:
    """Where one member stands at the start of a month; ``None`` where nobody can say.

    It counts what the model leaves to chance: months of paid membership since joining (``paid``)
    and months without membership since leaving (``away``), the current one included.
    """

    def __init__(self, club: dc.Membership, entry: str) -> None:
        self.club, self.plans = club, {p.name: p for p in club.plans}
        self.trials = any(p.trial for p in club.plans)
        self.paid = self.away = 0
        self.at = {"new": self.outside(True), "outside": self.outside(False), "unknown": None}[
            entry
        ]

    def outside(self, new: bool) -> tuple:
        return ("new",) if new and self.trials else ("lapsed",)

    def lost(self) -> None:
        """Months are missing: nobody can say where the member stands."""
        self.at, self.paid, self.away = None, 0, 0

    def label(self) -> str | None:
        if self.at is None or self.at[0] == "new":
            return None if self.at is None else "new"
        if self.at[0] == "lapsed":
            return "lapsed" if self.trials else "none"
        kind, name, left, years = self.at
        long = self.plans[name].trial if kind == "trial" else self.plans[name].periods
        text = name + (f"_{left}" if long > 1 else "")
        if kind == "trial":
            return f"trial {text}"
        return text + (f" y{years}" if self.club.tenure > 1 else "")

    def allowed(self) -> list[str]:
        if self.at is None or self.at[0] in ("new", "lapsed") or self.at[2] == 0:
            return ["none", *self.plans]
        kind, name, _, _ = self.at
        stays = kind == "paid" and self.plans[name].cancel == "at renewal"
        return [name] if stays else ["none", name]

    def month(self, choice: str) -> None:
        before = self.at
        if choice == "none":
            self.away = self.away + 1 if before is not None and before[0] == "lapsed" else 1
            again = self.club.trial_again
            if before is not None and before[0] == "new":
                return
            may = before is not None and before[0] == "lapsed" and again is not None
            self.at = self.outside(may and self.trials and self.away >= again)
            return
        if before is None:
            return
        plan = self.plans[choice]
        if before[0] == "new" and plan.trial:
            self.at = ("trial", choice, plan.trial - 1, 0)
            return
        if before[0] == "trial" and before[2] > 0:
            self.at = ("trial", choice, before[2] - 1, 0)
            return
        self.paid = self.paid + 1 if before[0] == "paid" else 1
        if before[0] != "paid":
            self.at = ("paid", choice, plan.periods - 1, 0)
            return
        _, held, left, years = before
        if left > 0:
            self.at = ("paid", held, left - 1, years)
            return
        # a contract is over, and the next class of tenure is one that its length allows
        served = self.plans[held].periods
        if served == 1 and choice != held:
            served = 0
        top = self.club.tenure - 1
        low = min(years + int(served // self.club.per_year), top)
        high = min(low + (1 if served % self.club.per_year else 0), top)
        grown = high if self.paid // self.club.per_year >= high else low
        self.at = ("paid", choice, plan.periods - 1, grown)


CLUBS = {
    "months and years": dc.Membership(
        [dc.Plan("monthly", 15, trial=1), dc.Plan("annual", 120, periods=12, trial=1)], tenure=3
    ),
    "quarters": dc.Membership(
        [
            dc.Plan("monthly", 15, trial=2),
            dc.Plan("quarterly", 40, periods=3, cancel="at renewal"),
        ],
        tenure=3,
        trial_again=5,
    ),
    "no trial": dc.Membership(
        [dc.Plan("monthly", 15), dc.Plan("long", 99, periods=9)], tenure=4, per_year=6
    ),
    "one trial ever": dc.Membership(
        [dc.Plan("monthly", 15, trial=3), dc.Plan("half", 60, periods=6)], trial_again=None
    ),
    "trial at once again": dc.Membership(
        [dc.Plan("monthly", 15, trial=1, periods=2)], trial_again=1, tenure=2, per_year=4
    ),
}


def as_time(numbers: np.ndarray, kind: str) -> list:
    """Months counted from January 2020, as users have them."""
    years, months = 2020 + numbers // 12, numbers % 12 + 1
    if kind == "number":
        return numbers.tolist()
    if kind == "yyyymm":
        return (100 * years + months).tolist()
    text = [f"{y}-{m:02d}" for y, m in zip(years, months, strict=True)]
    if kind == "text":
        return text
    return pd.PeriodIndex(text, freq="M").tolist() if kind == "period" else pd.to_datetime(text)


def histories(club, entry, seed, members=60, months=48, kind="number", gaps=0.02):
    """Random histories that the machine allows, in shuffled rows, with its levels."""
    rng = np.random.default_rng(seed)
    rows = []
    for who in range(members):
        machine, last = Machine(club, entry), None
        first = int(rng.integers(0, 6))
        for t in range(first, first + months):
            if t > first and rng.random() < gaps:
                continue
            if last is not None and t != last + 1:
                machine.lost()
            allowed = machine.allowed()
            stay = machine.at is None or machine.at[0] in ("trial", "paid")
            held = machine.at[1] if machine.at is not None and stay else allowed[-1]
            if stay and held in allowed and rng.random() < 0.93:
                choice = held
            else:
                choice = str(rng.choice(allowed))
            rows.append((f"m{who:03d}", t, choice, machine.label()))
            machine.month(choice)
            last = t
    frame = pd.DataFrame(rows, columns=["who", "t", "plan", "level"])
    frame["when"] = as_time(frame["t"].to_numpy(), kind)
    return frame.sample(frac=1, random_state=seed)


def cells(panel) -> Counter:
    """Member-months by state (labels) and choice, as the estimators see them."""
    n = panel.counts.n_sj()
    rows = panel.counts.states.frame().to_dict("records")
    out = Counter()
    for s, j in zip(*np.nonzero(n), strict=True):
        out[(*rows[s].values(), panel.counts.choices[j])] += int(n[s, j])
    return out


def used(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return frame.assign(video=rng.integers(0, 2, len(frame)), food=rng.integers(0, 3, len(frame)))


def with_use(club):
    foods = dc.Benefit("food", levels=3, law=np.full((2, 3, 3), 1 / 3))
    return replace(club, benefits=(dc.Benefit("video", 0.1, 0.9), foods))
