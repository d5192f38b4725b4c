"""The command line of callouts: train, score, evaluate; run again; what is mistyped."""

import json

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice.run import callout_job as callouts
from dynchoice.run import cli

ITEMS = pd.DataFrame(
    {"item": ["1", "2", "c"], "benefit": ["x", "y", "y"], "price": [1 / 3, 0.1 + 0.2, 2.0]}
)
CONFIG = """
title = "Page"
catalogue = "items.csv"
[context]
plan = ["None", "monthly"]
ten = [0, 1]
[policy]
terms = ["1", "item", "benefit:plan"]
slots = 2
category = "benefit"
diversity = 0.5
learn_prior = "moments"
[feedback]
impressions = "shown/*.csv"
clicks = "clicks/*.csv"
window = 2.0
[score]
members = "members.csv"
[evaluate]
log = "log.csv"
cluster = "member"
"""


@pytest.fixture()
def job(tmp_path):
    """A folder with a catalogue, three days of feedback, members, a log and the file."""
    rng = np.random.default_rng(0)
    (tmp_path / "shown").mkdir()
    (tmp_path / "clicks").mkdir()
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    for day in (1, 2, 10):
        n = 60
        rows = people(n, rng).assign(
            impression=[f"{day}-{i}" for i in range(n)], time=20_000.0 + day + rng.random(n),
            item=rng.choice(["1", "2"] if day == 1 else ["1", "2", "c"], n),
            slot=rng.integers(1, 3, n),
        )  # fmt: skip
        rows.to_csv(tmp_path / "shown" / f"b_{day}.csv", index=False)
        hit = rng.random(n) < np.where(rows["item"] == "2", 0.4, 0.1)
        times = rows["time"][hit] + 0.3
        clicks = pd.DataFrame({"impression": rows["impression"][hit], "time": times})
        clicks.to_csv(tmp_path / "clicks" / f"b_{day}.csv", index=False)
    people(200, rng).to_csv(tmp_path / "members.csv", index=False)
    log = people(600, rng).assign(propensity=1 / 3, slot=1)
    log["item"] = rng.choice(["1", "2", "c"], 600)
    log["reward"] = (rng.random(600) < np.where(log["item"] == "2", 0.4, 0.1)).astype(int)
    second = log.assign(slot=2, reward=0)
    pd.concat([log, second]).to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "callouts.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def people(n, rng):
    plan = rng.choice(["None", "monthly"], n)
    return pd.DataFrame({"member": np.arange(n), "plan": plan, "ten": rng.integers(0, 2, n)})


def run(job, step, *options):
    return cli.main(["callouts", step, str(job / "callouts.toml"), *options])


def test_the_three_steps(job, capsys):
    assert run(job, "train") == 0
    told = capsys.readouterr().out
    order = [told.index(f"batch 'b_{d}'") for d in (1, 2, 10)]
    assert order == sorted(order), "batch 2 comes before batch 10"
    assert "Prior by moments" in told and "unmatched" not in told
    state = (job / "out" / "callouts.npz").read_bytes()
    assert run(job, "train") == 0
    assert "no new batch" in capsys.readouterr().out
    assert (job / "out" / "callouts.npz").read_bytes() == state, "nothing new: the same bytes"
    assert run(job, "score", "--name", "monday") == 0
    shown = pd.read_parquet(job / "out" / "decisions.parquet")
    assert len(shown) == 400 and shown["propensity"].between(0, 1).all()
    first = (job / "out" / "decisions.parquet").read_bytes()
    assert run(job, "score", "--name", "monday", "--quiet") == 0
    assert (job / "out" / "decisions.parquet").read_bytes() == first
    assert run(job, "score", "--name", "tuesday", "--quiet") == 0
    assert (job / "out" / "decisions.parquet").read_bytes() != first
    assert run(job, "evaluate") == 0
    text = capsys.readouterr().out
    assert "DR" in text and "the first slot only: 600 of 1,200 rows" in text
    told = json.loads((job / "out" / "evaluation.json").read_text())
    assert told["nobs"] == 600 and told["estimators"]["DR"]["value"] > 0.15


def test_a_run_killed_between_batches_is_run_again(job, monkeypatch):
    whole = callouts.train(callouts.load_job(job / "callouts.toml"))
    want = dc.Callouts.load(job / "out" / "callouts.npz").posterior.mean
    assert "b_10" in whole
    (job / "out" / "callouts.npz").unlink()

    def stop(done, total, text):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        callouts.train(callouts.load_job(job / "callouts.toml"), stop)
    assert not (job / "out" / "callouts.npz").exists()
    callouts.train(callouts.load_job(job / "callouts.toml"))
    np.testing.assert_array_equal(dc.Callouts.load(job / "out" / "callouts.npz").posterior.mean,
                                  want)  # fmt: skip


def test_an_interrupted_batch_is_not_lost(monkeypatch):
    from dynchoice.callouts.probit import Probit

    policy = dc.Callouts(ITEMS, None, ["1", "item"], window=1.0)
    rows = pd.DataFrame({"impression": range(50), "item": "1", "time": 0.0})
    own = Probit.learn

    def broken(self, *a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(Probit, "learn", broken)
    with pytest.raises(KeyboardInterrupt):
        policy.learn(rows, batch="a", now=2.0)
    monkeypatch.setattr(Probit, "learn", own)
    told = policy.learn(rows, batch="a", now=2.0)
    assert not told.repeated and policy.model.impressions == 50


def test_items_come_and_go_between_runs(job, capsys):
    values = ITEMS[["item"]].assign(value=[1.0, 2.0, 3.0])
    values.to_csv(job / "values.csv", index=False)
    more = ["--set", 'values="values.csv"', "--quiet"]
    assert run(job, "train", *more) == 0
    left = ITEMS[ITEMS["item"] != "c"]
    new = pd.DataFrame({"item": ["d"], "benefit": ["z"], "price": [1.5]})
    pd.concat([left, new]).to_csv(job / "items.csv", index=False)
    pd.concat([values[values["item"] != "c"], new.assign(value=9.0)])[["item", "value"]].to_csv(
        job / "values.csv", index=False
    )
    assert run(job, "train", *more) == 0 and run(job, "score", *more) == 0
    shown = pd.read_parquet(job / "out" / "decisions.parquet")
    assert "d" in set(shown["item"]) and "c" not in set(shown["item"])
    ITEMS.assign(price=9.0).to_csv(job / "items.csv", index=False)
    assert run(job, "train", "--quiet") == 5
    assert "another 'price' than before" in capsys.readouterr().err


def test_a_prior_in_the_file_is_the_prior(job):
    plain = ["--set", 'policy.learn_prior="no"', "--quiet"]
    assert run(job, "train", *plain) == 0
    assert run(job, "train", *plain, "--set", "policy.prior={item=0.5}") == 0
    assert dc.Callouts.load(job / "out" / "callouts.npz").model.prior["item"] == (0.0, 0.5)


@pytest.mark.parametrize(
    "change,code,text",
    [
        ("policy.slotz=2", 2, "Did you mean 'slots'"),
        ("policy.terms=['1', 'itm']", 2, "Did you mean 'item'"),
        ("catalogue='item.csv'", 2, "Did you mean 'items.csv'"),
        ("feedback.impressions='shwn/*.csv'", 2, "no file is"),
        ("feedback.columns={item='itm'}", 5, "column 'itm' is missing"),
        ("policy.method='EP'", 2, "Did you mean 'ep'"),
        ("feedback.window=-1", 2, "greater than 0"),
        ("context={plan=['None'], ten=[0, 1]}", 5, "levels: monthly"),
    ],
)
def test_mistakes(job, capsys, change, code, text):
    key, _, value = change.partition("=")
    assert run(job, "train", "--quiet", "--set", f"{key}={value}") == code
    err = capsys.readouterr().err
    assert text in err and "Traceback" not in err


def test_mistakes_later(job, capsys):
    assert run(job, "score", "--quiet") == 2
    assert "callouts train" in capsys.readouterr().err
    assert run(job, "train", "--quiet") == 0
    assert run(job, "train", "--quiet", "--set", "feedback.window=9.0") == 2
    assert "feedback.window is not what" in capsys.readouterr().err
    shown = pd.read_csv(job / "shown" / "b_1.csv", keep_default_na=False)
    shown.iloc[1:].to_csv(job / "shown" / "b_1.csv", index=False)
    assert run(job, "train", "--quiet") == 5
    assert "other content" in capsys.readouterr().err
    pd.DataFrame({"member": [], "plan": [], "ten": []}).to_csv(job / "members.csv", index=False)
    assert run(job, "score", "--quiet") == 0
    assert len(pd.read_parquet(job / "out" / "decisions.parquet")) == 0
    (job / "log.csv").write_text("item,slot\n", encoding="utf-8")
    assert run(job, "evaluate", "--quiet") == 5
    with pytest.raises(SystemExit):
        cli.main(["callouts", "trian", "x.toml"])


def test_ids_are_what_they_are_written_as(job, capsys):
    for day in (1, 2, 10):  # digits only in some files, zeros before them in others
        for kind, columns in (("shown", ["impression"]), ("clicks", ["impression"])):
            path = job / kind / f"b_{day}.csv"
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            for c in columns:
                frame[c] = ["00" + x.replace("-", "") for x in frame[c]]
            frame.to_csv(path, index=False)
    assert run(job, "train") == 0
    assert "unmatched" not in capsys.readouterr().out
    people = pd.read_csv(job / "members.csv", keep_default_na=False)
    people["member"] = [f"{m:06d}" for m in people["member"]]
    people.to_csv(job / "members.csv", index=False)
    assert run(job, "score", "--quiet") == 0
    shown = pd.read_parquet(job / "out" / "decisions.parquet")
    assert set(shown["member"]) == set(people["member"])
    people.drop(columns="member").to_csv(job / "members.csv", index=False)
    assert run(job, "score", "--quiet") == 5
    assert "column 'member' is missing" in capsys.readouterr().err
    assert run(job, "score", "--quiet", "--set", "score.columns={membr='plan'}") == 2
    assert "Did you mean 'member'" in capsys.readouterr().err


def test_caps_know_members_whose_ids_are_numbers_elsewhere(job):
    ITEMS.assign(cap=1).to_csv(job / "items.csv", index=False)
    assert run(job, "train", "--quiet") == 0
    people = pd.read_csv(job / "members.csv", keep_default_na=False)
    people.to_parquet(job / "members.parquet")  # numbers
    seen = people[["member"]].assign(item="2", time=20_011.0)
    seen.to_csv(job / "seen.csv", index=False)  # texts
    late = people[["member"]].assign(item="1", time=20_900.0)
    late.to_csv(job / "late.csv", index=False)  # not seen yet
    more = ["--set", "score.members='members.parquet'", "--now", "20012",
            "--set", "score.seen=['seen.csv', 'late.csv']"]  # fmt: skip
    assert run(job, "score", "--quiet", *more) == 0
    shown = pd.read_parquet(job / "out" / "decisions.parquet")
    assert set(shown["item"]) == {"1", "c"} and shown["member"].dtype.kind == "i"


def test_clicks_may_come_later_or_alone(job, capsys):
    kept = (job / "clicks" / "b_2.csv").read_bytes()
    (job / "clicks" / "b_2.csv").unlink()
    (job / "clicks" / "b_10.csv").unlink()
    (job / "shown" / "b_10.csv").rename(job / "b_10.csv")
    assert run(job, "train") == 0
    capsys.readouterr()
    (job / "clicks" / "b_2.csv").write_bytes(kept)
    assert run(job, "train") == 0
    out = capsys.readouterr().out
    assert "batch 'b_2 (clicks)': 0 impressions" in out and "unmatched" not in out
    late = dc.Callouts.load(job / "out" / "callouts.npz")
    (job / "shown" / "b_1.csv").unlink()  # what was learned need not stay
    assert run(job, "train") == 0
    assert "batch 'b_" not in capsys.readouterr().out
    assert late.feedback.waiting > 0


def test_files_that_would_spoil_the_state_are_refused(job, capsys):
    assert run(job, "train", "--quiet") == 0
    state = (job / "out" / "callouts.npz").read_bytes()
    copy = (job / "shown" / "b_10.csv").read_bytes()
    (job / "shown" / "b_10 (1).csv").write_bytes(copy)
    assert run(job, "train", "--quiet") == 5
    assert "were learned before, as batch 'b_10'" in capsys.readouterr().err
    (job / "shown" / "b_10 (1).csv").unlink()
    future = pd.read_csv(job / "shown" / "b_10.csv", keep_default_na=False).head(3)
    future.assign(impression=["x", "y", "z"], time=40_000.0).to_csv(
        job / "shown" / "b_11.csv", index=False
    )
    assert run(job, "train", "--quiet") == 5
    err = capsys.readouterr().err
    assert "b_11.csv: 3 times lie in the future" in err
    assert (job / "out" / "callouts.npz").read_bytes() == state
    (job / "shown" / "b_11.csv").write_text("impression,item,time,slot,plan,ten\n", "utf-8")
    assert run(job, "train", "--quiet") == 0, "an empty file is an empty batch"


def test_good_batches_before_a_bad_one_are_kept(job, capsys):
    bad = pd.read_csv(job / "shown" / "b_10.csv", keep_default_na=False).assign(item="zzz")
    bad.to_csv(job / "shown" / "b_10.csv", index=False)
    assert run(job, "train", "--quiet") == 5
    err = capsys.readouterr().err
    assert "b_10.csv" in err and "Keep its row, with an end" in err
    assert set(dc.Callouts.load(job / "out" / "callouts.npz").feedback.learned) == {"b_1", "b_2"}


def test_another_way_to_learn_priors_is_taken_at_once(job, capsys):
    assert run(job, "train", "--quiet") == 0
    assert run(job, "train", "--set", "policy.learn_prior='em'") == 0
    assert "Prior by em" in capsys.readouterr().out
    assert run(job, "train", "--set", "policy.learn_prior='em'") == 0
    assert "Prior by em" not in capsys.readouterr().out


def test_the_page_has_another_number_when_it_changes(job):
    assert run(job, "train", "--quiet") == 0
    numbers = []
    for more in ([], [], ["--set", "policy.diversity=3.0"]):
        assert run(job, "score", "--quiet", *more) == 0
        numbers.append(pd.read_parquet(job / "out" / "decisions.parquet")["snapshot"].iloc[0])
    assert numbers[0] == numbers[1] != numbers[2]


def test_members_in_several_files_of_which_one_is_empty(job):
    assert run(job, "train", "--quiet") == 0
    (job / "none.csv").write_text("member,plan,ten\n", encoding="utf-8")
    for order in ("['none.csv', 'members.csv']", "['members.csv', 'none.csv']"):
        assert run(job, "score", "--quiet", "--set", f"score.members={order}") == 0
        assert len(pd.read_parquet(job / "out" / "decisions.parquet")) == 400


def test_a_catalogue_that_grows_keeps_its_way_of_learning(job, monkeypatch):
    """Without a method in the file, the state's stands: a larger catalogue does not stop a job."""
    from dynchoice.callouts import bandit

    assert run(job, "train", "--quiet") == 0
    assert dc.Callouts.load(job / "out" / "callouts.npz").model.method == "joint"
    monkeypatch.setattr(bandit, "SMALL", 5)
    assert run(job, "train", "--quiet") == 0 and run(job, "score", "--quiet") == 0
    assert dc.Callouts.load(job / "out" / "callouts.npz").model.method == "joint"
    assert run(job, "train", "--quiet", "--set", "policy.method='ep'") == 2


def test_clicks_before_their_impressions_wait(job, capsys):
    (job / "shown" / "b_10.csv").rename(job / "later.csv")
    assert run(job, "train") == 0
    assert "b_10.csv waits" in capsys.readouterr().out
    (job / "later.csv").rename(job / "shown" / "b_10.csv")
    assert run(job, "train") == 0
    out = capsys.readouterr().out
    assert "batch 'b_10': 60 impressions" in out and "unmatched" not in out


def test_a_file_that_grows_while_it_is_read_is_told(job, capsys, monkeypatch):
    read = callouts.read_table
    path = job / "shown" / "b_10.csv"

    def growing(file, *a, **k):
        out = read(file, *a, **k)
        if file == path:
            last = path.read_text(encoding="utf-8").splitlines()[-1]
            path.open("a", encoding="utf-8").write(last.replace("10-59", "10-60") + "\n")
        return out

    monkeypatch.setattr(callouts, "read_table", growing)
    assert run(job, "train", "--quiet") == 0
    monkeypatch.undo()
    assert run(job, "train", "--quiet") == 5
    assert "b_10.csv was learned with other content" in capsys.readouterr().err


def test_a_prior_is_learned_on_what_a_failed_run_saved(job, capsys):
    for day in (1, 2):
        path = job / "shown" / f"b_{day}.csv"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame.assign(time=[str(float(x) - 10) for x in frame["time"]]).to_csv(path, index=False)
        (job / "clicks" / f"b_{day}.csv").unlink()
    (job / "shown" / "b_11.csv").write_text("nonsense\n", encoding="utf-8")
    assert run(job, "train", "--quiet") == 5
    (job / "shown" / "b_11.csv").unlink()
    assert run(job, "train") == 0
    assert "Prior by moments" in capsys.readouterr().out


def test_members_who_may_see_nothing_do_not_stop_the_others(job):
    ITEMS.assign(for_plan="monthly").to_csv(job / "items.csv", index=False)
    assert run(job, "train", "--quiet") == 0
    people = pd.read_csv(job / "members.csv", dtype=str, keep_default_na=False)
    people[people["plan"] == "None"].to_csv(job / "m1.csv", index=False)
    people[people["plan"] == "monthly"].to_csv(job / "m2.csv", index=False)
    more = ["--set", "score.members=['m1.csv', 'm2.csv']", "--quiet"]
    assert run(job, "score", *more) == 0
    shown = pd.read_parquet(job / "out" / "decisions.parquet")
    assert set(shown["member"]) == set(people[people["plan"] == "monthly"]["member"])


def test_a_column_of_ours_that_the_file_has_too(job):
    path = job / "shown" / "b_10.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.assign(shown_at=frame["time"], time="x").to_csv(path, index=False)
    for day in (1, 2):
        other = job / "shown" / f"b_{day}.csv"
        table = pd.read_csv(other, dtype=str, keep_default_na=False)
        table.rename(columns={"time": "shown_at"}).to_csv(other, index=False)
    assert run(job, "train", "--quiet", "--set", "feedback.columns={time='shown_at'}") == 0


@pytest.mark.filterwarnings("ignore:MetaPrior. variances still changed")
def test_a_prior_that_does_not_converge_is_an_exit_code(job, capsys, monkeypatch):
    from dynchoice.callouts import prior

    monkeypatch.setattr(prior, "SETTLED", -1.0)
    assert run(job, "train", "--quiet") == 3
    assert "did not converge" in capsys.readouterr().err
    kept = dc.Callouts.load(job / "out" / "callouts.npz")
    assert kept.model.impressions > 0 and kept.model.prior["item"] == (0.0, 0.1)
