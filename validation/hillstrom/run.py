"""Which e-mail to send: Hillstrom's experiment, valued by inverse propensity out of fold."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main, shared_data

import dynchoice as dc

ARMS = ["No E-Mail", "Mens E-Mail", "Womens E-Mail"]
ITEMS = pd.DataFrame({"item": ARMS})
CONTEXT = {
    "recent": ["1-3", "4-7", "8-12"],
    "spent": ["under 100", "100-350", "over 350"],
    "mens": [0, 1],
    "womens": [0, 1],
    "newbie": [0, 1],
    "zip_code": ["Rural", "Surburban", "Urban"],
    "channel": ["Multichannel", "Phone", "Web"],
}
TERMS = ["1", "item", *CONTEXT, *(f"item:{c}" for c in CONTEXT), "item:mens:womens"]


def rows() -> pd.DataFrame:
    """Return the experiment with contexts in levels; every arm had probability one third."""
    frame = pd.read_csv(shared_data() / "hillstrom" / "hillstrom_odd_rows.csv.gz")
    frame["recent"] = pd.cut(frame["recency"], [0, 3, 7, 12], labels=CONTEXT["recent"]).astype(str)
    cuts = [-1, 100, 350, np.inf]
    frame["spent"] = pd.cut(frame["history"], cuts, labels=CONTEXT["spent"]).astype(str)
    return frame.rename(columns={"segment": "item"}).assign(propensity=1 / 3)


def fresh(method: str = "joint") -> dc.Callouts:
    """Return a policy that knows nothing, and ranks by what it expects."""
    return dc.Callouts(
        ITEMS, CONTEXT, TERMS, method=method, window=1.0, explore=False,
        prior={t: 0.02 for t in TERMS if t != "1"},
    )  # fmt: skip


def learned(log: pd.DataFrame, reward: str, method: str = "joint") -> dc.Callouts:
    """Return a policy that has learned from rows of the experiment."""
    policy = fresh(method)
    told = log.assign(impression=np.arange(len(log)), time=0.0)
    hits = told[told[reward] == 1]
    clicks = pd.DataFrame({"impression": hits["impression"], "time": 0.5})
    policy.learn(told, clicks, batch="e-mails", now=2.0)
    policy.learn_prior("moments")
    return policy


def valued(study: Study, log: pd.DataFrame, folds: int) -> None:
    """Out-of-fold policies for visits: against fixed arms, with intervals of the differences."""
    rng = np.random.default_rng(0)
    fold = rng.permutation(len(log)) % folds
    target = np.empty((len(log), 3))
    priors = []
    for k in range(folds):
        policy = learned(log[fold != k].reset_index(drop=True), "visit")
        target[fold == k] = policy.first_shares(log[fold == k])
        priors.append({g: round(v, 4) for g, (_, v) in policy.model.prior.items()})
    shown = fresh().catalogue.item_codes(log["item"].to_numpy())
    model = dc.cross_fitted(fresh(), log, reward="visit", folds=folds)
    options = {"reward": "visit", "shown": shown, "model": model}
    policy_value = dc.off_policy(log, target, **options)
    study.say(f"policy learned out of fold ({folds} folds), visits\n{policy_value}")
    shares = pd.Series(target.mean(axis=0), ARMS).round(3).to_dict()
    study.say(f"it sends {shares}; variances learned in the first fold: {priors[0]}")
    fixed = {}
    for a, name in enumerate(ARMS):
        arm = np.zeros((len(log), 3))
        arm[:, a] = 1.0
        fixed[name] = dc.off_policy(log, arm, **options)
        plain = log.loc[log["item"] == name, "visit"].mean()
        study.check(f"{name}: SNIPS of a fixed arm is its mean", fixed[name].values["SNIPS"], plain,
                    1e-12, "identity")  # fmt: skip
    best = max(ARMS, key=lambda n: fixed[n].values["SNIPS"])
    lines = []
    for estimator in ("IPS", "SNIPS", "DR"):
        for name in (best, "No E-Mail"):
            gap, error, low, high = policy_value.minus(fixed[name], estimator)
            lines.append((estimator, f"policy less {name}", gap, error, low, high))
    table = pd.DataFrame(lines, columns=["estimator", "what", "gap", "s.e.", "lower", "upper"])
    study.say(f"best fixed arm: {best}\n{table.round(5).to_string(index=False)}")
    study.check(
        "the best fixed arm is the men's e-mail", float(best == "Mens E-Mail"), 1, 0, "data"
    )
    gap = policy_value.minus(fixed["No E-Mail"], "DR")
    study.within("visits over no e-mail: lower bound", gap[2], 0.0, 1.0, "own bound")
    gap = policy_value.minus(fixed[best], "DR")
    study.within("visits over the best fixed arm: upper bound", gap[3], 0.0, 1.0, "own bound")
    study.within("visits over the best fixed arm: lower bound", gap[2], -0.005, 1.0, "own bound")
    width = {k: b[1] - b[0] for k, b in policy_value.bounds.items()}
    study.within("DR's interval over IPS's", width["DR"] / width["IPS"], 0.0, 1.0, "theory")
    spend = dc.off_policy(log, target, reward="spend", shown=shown)
    arm = np.zeros((len(log), 3))
    arm[:, ARMS.index(best)] = 1.0
    other = dc.off_policy(log, arm, reward="spend", shown=shown)
    gap = spend.minus(other, "SNIPS")
    study.say(f"spend: {spend.values['SNIPS']:.3f} USD a customer (log {spend.values['log']:.3f});"
              f" less {best} {gap[0]:.3f} [{gap[2]:.3f}, {gap[3]:.3f}]")  # fmt: skip


def replayed(study: Study, log: pd.DataFrame) -> None:
    """The same experiment lived through by a policy that explores, against chance."""
    policy = dc.Callouts(ITEMS, CONTEXT, TERMS, window=1.0, seed=1,
                         prior={t: 0.02 for t in TERMS if t != "1"})  # fmt: skip
    own = dc.replay(policy, log, reward="visit", batch=2000, seed=3)
    study.say(str(own))
    mean = log["visit"].mean()
    study.within("replay: visits over those of the log (s.e.)", (own.value - mean) / own.std_error,
                 1.0, 1e3, "own bound")  # fmt: skip
    study.within("replay keeps a third of the rows", own.matched / own.rows, 0.31, 0.36, "design")


def run(quick: bool) -> Study:
    """Run the study."""
    warnings.simplefilter("ignore", dc.DynChoiceWarning)
    study, want = Study("hillstrom"), expected(HERE)
    log = rows()
    study.check("rows", len(log), want["rows"], 0, "data")
    valued(study, log, 3 if quick else 10)
    replayed(study, log)
    return study


if __name__ == "__main__":
    main(run)
