"""The Open Bandit sample: formats and off-policy code paths (too few clicks to rank policies)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import Study, expected, main, shared_data

import dynchoice as dc


def log_of(campaign: str, behaviour: str) -> pd.DataFrame:
    """Return a log in the names of this package."""
    path = shared_data() / "open_bandit" / f"{behaviour}_{campaign}.csv.gz"
    own = {"item_id": "item", "propensity_score": "propensity", "click": "reward",
           "position": "slot", "timestamp": "time", "user_feature_0": "who"}  # fmt: skip
    frame = pd.read_csv(path, usecols=list(own)).rename(columns=own)
    return frame.assign(impression=np.arange(len(frame)))


def items_of(campaign: str) -> pd.DataFrame:
    """Return the catalogue: items and their hashed attribute."""
    path = shared_data() / "open_bandit" / f"item_context_{campaign}.csv"
    frame = pd.read_csv(path)
    return frame.rename(columns={"item_id": "item", "item_feature_1": "kind"})[["item", "kind"]]


def run(quick: bool) -> Study:
    """Run the study."""
    study, want = Study("open_bandit"), expected(HERE)
    for campaign in ("men", "women"):
        items = items_of(campaign)
        random, bts = log_of(campaign, "random"), log_of(campaign, "bts")
        study.check(f"{campaign}: items", len(items), want["items"][campaign], 0, "PROVENANCE")
        for name, log in (("random", random), ("bts", bts)):
            study.check(f"{campaign}, {name}: clicks", log["reward"].sum(),
                        want["clicks"][f"{name} {campaign}"], 0, "PROVENANCE")  # fmt: skip
        p = random["propensity"].to_numpy()
        study.check(f"{campaign}: the random log's propensities", np.ptp(p * len(items)), 0, 1e-6,
                    "PROVENANCE")  # fmt: skip
        context = {"who": sorted(set(random["who"]) | set(bts["who"]))}
        policy = dc.Callouts(items, context, ["1", "item", "kind:who", "slot"], slots=3, window=1.0)
        told = policy.learn(bts, bts.loc[bts["reward"] == 1, ["impression", "time"]], batch="bts",
                            now=pd.Timestamp("2019-12-02", tz="UTC"))  # fmt: skip
        study.check(f"{campaign}: impressions learned", told.settled, len(bts), 0, "identity")
        shown = policy.catalogue.item_codes(random["item"].to_numpy())
        # what BTS shows by position, from its own log, whoever asks: a policy to value on the other
        share = np.zeros((3, len(items)))
        np.add.at(share, (bts["slot"] - 1, policy.catalogue.item_codes(bts["item"].to_numpy())), 1)
        share /= share.sum(axis=1, keepdims=True)
        target = share[random["slot"].to_numpy() - 1]
        model = dc.cross_fitted(policy, random)
        values = {}
        for clip in (None, 5.0):
            values[clip] = dc.off_policy(random, target, shown=shown, model=model, clip=clip,
                                         interval="bootstrap", draws=300)  # fmt: skip
        study.say(f"{campaign}: BTS's shares valued on the random log; BTS itself earned"
                  f" {bts['reward'].mean():.4f}\n{values[None]}\n{values[5.0]}")  # fmt: skip
        for k in ("IPS", "SNIPS", "DR"):
            low, high = values[None].bounds[k]
            z = 1.96 * np.sqrt(bts["reward"].mean() / len(bts))
            inside = float(low - z <= bts["reward"].mean() <= high + z)
            study.check(f"{campaign}: {k} holds what BTS earned", inside, 1, 0, "data")
        same = dc.off_policy(random, p)
        study.check(f"{campaign}: the log's own policy is worth what it earned", same.values["IPS"],
                    random["reward"].mean(), 1e-9, "identity")  # fmt: skip
        study.within(f"{campaign}: mean weight, in its errors",
                     (values[None].mean_weight - 1) / values[None].mean_weight_error, -4, 4,
                     "identity")  # fmt: skip
        w = share[random["slot"] - 1, shown] / p
        study.check(
            f"{campaign}: clipped mass", values[5.0].clipped_mass,
            1 - np.minimum(w, 5).sum() / w.sum(), 1e-12, "identity",
        )  # fmt: skip
        one = dc.Callouts(items, context, ["1", "item"], window=1.0)
        lived = dc.replay(one, random, batch=2500)
        study.say(str(lived))
        study.within(f"{campaign}: replay keeps about one in {len(items)}",
                     lived.matched * len(items) / len(random), 0.6, 1.5, "design")  # fmt: skip
    del quick
    return study


if __name__ == "__main__":
    main(run)
