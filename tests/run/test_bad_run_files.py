"""Run files that cannot be: each is refused in a few words, and nothing is published."""

import datetime
import math
import random
import re
import resource
import shutil
import signal
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynchoice.run import cli

ROOT = Path(__file__).resolve().parents[2]
PRIME = ROOT / "data" / "prime"
QUICK = ["forecast.draws=0", "output.report=false", "output.picture=false"]
BOTH = ("check", "forecast")
NAN, INF = math.nan, math.inf
Edit = Callable[[Path], None]
SECONDS = 10
BYTES = 6 * 2**30


class TooLong(BaseException):
    """A command took longer than any refusal may."""


@contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    """Stop what takes too long."""

    def stop(signum: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except TooLong:
        pytest.fail(f"no answer within {seconds} seconds", pytrace=False)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory(compiled):
    """Let what asks for too much memory fail before the machine does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two run files that work, on few members: a membership, and axes, model and utility."""
    root = tmp_path_factory.mktemp("samples")
    assert cli.main(["init", str(root / "club"), "--quiet"]) == 0
    rows = pd.read_parquet(root / "club" / "members.parquet")
    rows[rows["member"] % 500 < 30].to_parquet(root / "club" / "members.parquet", index=False)
    (root / "prime").mkdir()
    for name in ("run.toml", "contract.csv", "attributes.csv"):
        shutil.copy(PRIME / name, root / "prime")
    rows = pd.read_parquet(PRIME / "prime.parquet")
    few = rows[rows["member"] % 150 == 0]
    few.to_parquet(root / "prime" / "prime.parquet", index=False)
    return root


def raw(content: str | bytes, name: str = "run.toml") -> Edit:
    """Write a file whole."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def sub(old: str, new: str, name: str = "run.toml") -> Edit:
    """Replace the first place of a text."""

    def edit(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, old
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def end(text: str, name: str = "run.toml") -> Edit:
    """Add a text at the end."""

    def edit(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as handle:
            handle.write(text)

    return edit


def _at(tree: Any, key: str) -> tuple[Any, Any]:
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(tree, list):
            tree = tree[int(part)]
        else:
            tree = tree.setdefault(part, {})
    return tree, int(last) if isinstance(tree, list) else last


def put(key: str, value: Any) -> Edit:
    """Set one dotted key."""

    def edit(folder: Path) -> None:
        tree = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
        node, last = _at(tree, key)
        node[last] = value
        (folder / "run.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")

    return edit


def drop(key: str) -> Edit:
    """Take one dotted key away."""

    def edit(folder: Path) -> None:
        tree = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
        node, last = _at(tree, key)
        del node[last]
        (folder / "run.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")

    return edit


def add(key: str, value: Any) -> Edit:
    """Append to the list at a dotted key."""

    def edit(folder: Path) -> None:
        tree = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
        node, last = _at(tree, key)
        node.setdefault(last, []).append(value)
        (folder / "run.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")

    return edit


def scenario(**keys: Any) -> Edit:
    """Make one scenario the only one."""
    return put("scenario", [{"name": "s", "starts": 2, **keys}])


def table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Edit:
    """Change a CSV table beside the run file."""

    def edit(folder: Path) -> None:
        old = pd.read_csv(folder / name, keep_default_na=False)
        change(old).to_csv(folder / name, index=False)

    return edit


def several(*edits: Edit) -> Edit:
    """Make several edits."""

    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def as_folder(folder: Path) -> None:
    (folder / "run.toml").unlink()
    (folder / "run.toml").mkdir()


def renamed(folder: Path) -> None:
    (folder / "run.toml").rename(folder / "runn.toml")


def in_the_way(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "current").write_text("mine")


def blocked(folder: Path) -> None:
    (folder / "out").write_text("mine")


def linked_to_itself(folder: Path) -> None:
    (folder / "run.toml").unlink()
    (folder / "run.toml").symlink_to("run.toml")


@dataclass(frozen=True)
class Case:
    """One bad run file: what is changed of which sample, and what has to be said."""

    name: str
    sample: str
    edit: Edit
    said: tuple[str, ...]
    code: int = 2
    more: tuple[str, ...] = ()
    commands: tuple[str, ...] = BOTH


CASES: list[Case] = []


def case(name: str, sample: str, edit: Edit, *said: str, **options: Any) -> None:
    assert name not in {c.name for c in CASES}, name
    options = {"commands": BOTH[len(CASES) % 2 :][:1], **options}
    CASES.append(Case(name, sample, edit, said, **options))


def nothing(folder: Path) -> None:
    pass


# fmt: off
# not a run file at all
case("empty file", "club", raw(""), "data: is missing")
case("comments only", "prime", raw("# nothing\n"), "data: is missing", "axes: is missing")
case("byte order mark and nothing", "club", raw(b"\xef\xbb\xbf"), "data: is missing")
case("random bytes", "club", raw(bytes(range(256)) * 20), "not UTF-8")
case("utf-16", "club", raw("title = 'é'".encode("utf-16")), "not UTF-8")
case("latin-1", "club", raw("title = 'caf\xe9'".encode("latin-1")), "not UTF-8", "byte 12")
case("nul bytes", "club", raw(b"\0" * 100), "not valid TOML")
case("json", "prime", raw('{"data": {"path": "prime.parquet"}}'), "not valid TOML", "line 1")
case("yaml", "prime", raw("data:\n  path: prime.parquet\n"), "not valid TOML", "line 1")
case("python", "prime", raw("import os\nos.remove('x')\n"), "not valid TOML", "line 1")
case("conflict markers", "club", sub("[estimate]", "<<<<<<< HEAD\n[estimate]"), "not valid TOML")
case("folder", "club", as_folder, "is a folder")
case("not there", "club", renamed, "no such run file", "'runn.toml'")
case("link to itself", "club", linked_to_itself, "run.toml")
case("six megabytes", "club", end("# " + "x" * 6_000_000), "larger than")
case("unclosed bracket", "prime", sub("levels = [0, 1]", "levels = [0, 1"), "not valid TOML")
case("unclosed quote", "club", sub('"members.parquet"', '"members.parquet'), "not valid TOML")
case("key twice", "club", sub("beta = 0.99", "beta = 0.99\nbeta = 0.98"), "not valid TOML", "line")
case("table twice", "club", end("\n[data]\npath = 'x'\n"), "not valid TOML", "line")
case("a scenario as a table", "club", end("\n[scenario]\nname = 's'\n"), "not valid TOML")
case("bare word", "club", sub('"NFXP"', "NFXP"), "not valid TOML", "line")
case("Python's True", "club", sub("report = true", "report = True"), "not valid TOML", "line")
case("lists in lists", "club", end("\nx = " + "[" * 5000 + "]" * 5000), "not valid TOML")
case("tables in tables", "club", end("\nx = " + "{a = " * 3000 + "1" + "}" * 3000), "not valid")
case("dots and dots", "club", raw("a" + ".a" * 3000 + " = 1\n"), "nested too deeply")
case("lists 60 deep", "prime", sub('choices = ["none", "monthly", "annual"]',
     "choices = " + "[" * 60 + "]" * 60), "model.choices")
case("a number of 5,000 digits", "club", sub("periods = 24", "periods = " + "9" * 5000), "TOML")
case("a name of a megabyte", "club", put("x" * 1_000_000, 1), "unknown key")
case("a value of a megabyte", "club", put("estimate.method", "x" * 1_000_000), "estimate.method")
case("a thousand unknown keys", "club", raw("".join(f"k{i} = 1\n" for i in range(1000))), "more")
case("500 scenarios of one name", "club",
     put("scenario", [{"name": "s", "starts": 2}] * 500), "'s' repeats")
case("500 wrong scenarios", "club", put("scenario", [{"nam": "s"}] * 500), "scenario[0].nam")

# wrong types
case("data is text", "prime", put("data", "prime.parquet"), "data:", "'prime.parquet'")
case("data is a list", "club", put("data", [{"path": "members.parquet"}]), "data:")
case("member is a number", "club", put("data.member", 3), "data.member", "got 3")
case("member is empty", "club", put("data.member", ""), "data.member")
case("path is a number", "club", put("data.path", 3.5), "data.path")
case("path is an empty list", "club", put("data.path", []), "data.path")
case("path is empty", "club", put("data.path", ""), "data.path")
case("choices are a text", "prime", put("model.choices", "none"), "model.choices")
case("choices are tables", "prime", put("model.choices", [{"a": 1}, {"b": 2}]), "model.choices")
case("one choice", "prime", put("model.choices", ["none"]), "model.choices")
case("choices twice", "prime",
     put("model.choices", ["none", "monthly", "annual", "annual"]), "repeat", "annual")
case("periods as text", "club", put("forecast.periods", "24"), "forecast.periods", "'24'")
case("periods a fraction", "club", put("forecast.periods", 24.5), "forecast.periods", "24.5")
case("periods true", "club", put("forecast.periods", True), "forecast.periods")
case("periods a date", "club",
     put("forecast.periods", datetime.date(2026, 1, 1)), "forecast.periods")
case("periods a list", "club", put("forecast.periods", [24]), "forecast.periods")
case("csv as text", "club", put("output.csv", "yes"), "output.csv", "'yes'")
case("estimate is a list", "club", put("estimate", []), "estimate")
case("axes is a list", "prime", put("axes", [{"levels": [0, 1]}]), "axes")
case("an axis is a list", "prime", put("axes.video", [0, 1]), "axes.video")
case("scenario is a text", "club", put("scenario", "none"), "scenario")
case("scenarios are texts", "club", put("scenario", ["a", "b"]), "scenario[0]")
case("title is a number", "club", put("title", 5), "title")
case("formula is a list", "prime", put("utility.formula", ["member"]), "utility.formula")
case("offer is a list", "prime", scenario(offer=["bundle"]), "scenario[0].offer")
case("where is a list", "prime", put("model.unavailable.0.where", ["a"]), "unavailable[0].where")
case("given is a text", "prime", put("axes.grocery.given", "choice"), "axes.grocery.given")
case("segments are tables", "club", put("data.segments", [{"a": 1}]), "data.segments")

# misspelt keys, at every level
case("misspelt section", "club", put("estimat", {}), "estimat: unknown key", "'estimate'")
case("misspelt data key", "club", put("data.wieghts", "w"), "data.wieghts", "'weights'")
case("misspelt axis key", "prime", put("axes.video.lvels", [0, 1]), "axes.video.lvels", "'levels'")
case("misspelt model key", "prime", put("model.atention", 0.5), "model.atention", "'attention'")
case("misspelt rule key", "prime",
     put("model.unavailable.0.chioces", ["none"]),
     "model.unavailable[0].chioces", "'choices'")
case("misspelt utility key", "prime", put("utility.fromula", "0"), "utility.fromula", "'formula'")
case("misspelt estimate key", "club", put("estimate.cov_typ", "x"), "cov_typ", "'cov_type'")
case("misspelt forecast key", "club", put("forecast.horizon", 3), "forecast.horizon: unknown key")
case("misspelt scenario key", "club", scenario(anounced=1), "scenario[0].anounced", "'announced'")
case("misspelt guard key", "club", put("guard.refusd", 0.1), "guard.refusd", "'refused'")
case("misspelt output key", "club", put("output.foldr", "x"), "output.foldr", "'folder'")
case("misspelt backtest key", "club", put("backtest.origin", 3), "backtest.origin", "'origins'")
case("misspelt membership key", "club", put("membership.bta", 1), "'bta'", "'beta'")
case("misspelt plan key", "club", put("membership.plans.0.prise", 1), "plans[0]", "'price'")
case("misspelt benefit key", "club", put("membership.benefits.0.gian", 1), "benefits[0]", "'gain'")
case("misspelt price change", "club", scenario(prices={"annual": {"time": 2}}),
     "scenario[0].prices.annual.time")
case("capital letters", "club", put("Data", {}), "Data: unknown key", "'data'")
case("misspelt with an accent", "club", put("forecast.périods", 3), "forecast.périods")

# missing keys
for key in ("member", "time", "choice"):
    case(f"no data.{key}", "club", drop(f"data.{key}"), f"data.{key}: is missing")
case("no data.path", "prime", drop("data.path"), "data.path: is missing")
case("no choices", "prime", drop("model.choices"), "model.choices: is missing")
case("no beta", "prime", drop("model.beta"), "model.beta: is missing")
case("no law", "prime", drop("axes.video.law"), "axes.video.law: is missing")
case("no levels", "prime", drop("axes.video.levels"), "axes.video", "levels or range")
case("no formula", "prime", drop("utility.formula"), "utility.formula: is missing")
case("no axes", "prime", drop("axes"), "axes: is missing")
case("no model", "prime", drop("model"), "model: is missing")
case("no utility", "prime", drop("utility"), "utility: is missing")
case("no name", "club", drop("scenario.0.name"), "scenario[0].name: is missing")
case("no rule's choices", "prime", drop("model.unavailable.0.choices"), "unavailable[0].choices")
case("no table", "prime", drop("axes.contract.table"), "axes.contract", "needs table")
case("no plans", "club", drop("membership.plans"), "membership", "plan")
case("no plan's name", "club", drop("membership.plans.0.name"), "plans[0]", "'name'")
case("no plan's price", "club", drop("membership.plans.1.price"), "'price'", "'annual'")
case("no benefit's name", "club", drop("membership.benefits.0.name"), "benefits[0]", "'name'")

# impossible values
for label, value in (("nan", NAN), ("infinite", INF), ("minus infinite", -INF), ("1.5", 1.5),
                     ("1", 1.0), ("negative", -0.1), ("true", True), ("text", "0.99")):
    case(f"beta {label}", "prime", put("model.beta", value), "beta")
    case(f"membership beta {label}", "club", put("membership.beta", value), "beta")
case("beta 1e400", "prime", sub("beta = 0.9957", "beta = 1e400"), "beta")
case("level 0", "club", put("forecast.level", 0.0), "forecast.level")
case("level 1", "club", put("forecast.level", 1.0), "forecast.level")
case("level nan", "club", put("forecast.level", NAN), "forecast.level")
case("no periods", "club", put("forecast.periods", 0), "forecast.periods", "got 0")
case("negative periods", "club", put("forecast.periods", -3), "forecast.periods", "got -3")
case("a billion periods", "club", put("forecast.periods", 10**9), "forecast.periods",
     commands=BOTH)
case("10**30 periods", "club", put("forecast.periods", 10**30), "forecast.periods")
case("negative draws", "club", nothing, "forecast.draws", more=("--set", "forecast.draws=-1"))
case("a billion draws", "club", nothing, "forecast.draws",
     more=("--set", "forecast.draws=1_000_000_000"),
     commands=BOTH)
case("negative seed", "club", put("forecast.seed", -1), "forecast.seed")
case("tol 0", "club", put("estimate.tol", 0.0), "estimate.tol")
case("tol nan", "club", put("estimate.tol", NAN), "estimate.tol")
case("tol 1", "club", put("estimate.tol", 1.0), "estimate.tol")
case("maxiter 0", "club", put("estimate.maxiter", 0), "estimate.maxiter")
case("one bootstrap draw", "club", put("estimate.draws", 1), "estimate.draws")
case("method", "club", put("estimate.method", "MLE"), "estimate.method", "'MLE'")
case("method in small letters", "club", put("estimate.method", "nfxp"), "'NFXP'")
case("cov_type", "club", put("estimate.cov_type", "cluster"), "'clustered'")
case("cluster", "club", put("estimate.cluster", "plan"), "estimate.cluster", "'plan'")
case("joint with CCP", "prime",
     several(put("estimate.method", "CCP"), put("estimate.transitions", "joint")),
     "estimate.transitions")
case("bands", "club", put("forecast.bands", "bands"), "forecast.bands")
case("freq", "club", put("data.freq", "weekly"), "data.freq", "'weekly'")
case("invalid", "club", put("data.invalid", "skip"), "data.invalid", "'skip'")
case("entry", "club", put("data.entry", "old"), "data.entry", "'old'")
case("memory", "club", put("data.memory", "lots"), "data.memory", "'lots'")
case("guard negative", "club", put("guard.refused", -0.1), "guard.refused")
case("guard nan", "club", put("guard.refused", NAN), "guard.refused")
case("guard on", "club", put("guard.drift_estimates", "on"), "guard.drift_estimates", "'on'")
case("guard lost", "club", put("guard.lost", "off"), "guard.lost", "'off'")
case("keep negative", "club", put("output.keep", -1), "output.keep")
case("backtest against", "club", put("backtest.against", ["model"]), "backtest.against", "'model'")
case("backtest of no origins", "club", put("backtest.origins", 0), "backtest.origins")
case("attention 0", "prime", put("model.attention", 0.0), "attention")
case("attention 1.5", "prime", put("model.attention", 1.5), "attention")
case("attention nan", "prime", put("model.attention", NAN), "attention")
case("default unknown", "prime",
     several(put("model.attention", 0.5), put("model.default", "nine")), "'nine'")
case("no default", "prime", put("model.attention", 0.5), "default")
case("default without attention", "prime", put("model.default", "none"), "attention")

# axes and laws
case("levels and range", "prime", put("axes.video.range", 2), "axes.video", "levels or range")
case("range 0", "prime", several(drop("axes.video.levels"), put("axes.video.range", 0)),
     "axes.video.range")
case("range 10**12", "prime", several(drop("axes.video.levels"), put("axes.video.range", 10**12)),
     "video")
case("too many states", "prime", several(drop("axes.video.levels"),
     put("axes.video.range", 10_000_000)), "states")
case("no level", "prime", put("axes.video.levels", []), "axes.video.levels")
case("levels twice", "prime", put("axes.video.levels", [0, 0]), "video", "0")
case("levels nested", "prime", put("axes.video.levels", [[0], [1]]), "axes.video.levels")
case("levels nan", "prime", put("axes.video.levels", [0.0, NAN]), "video")
case("levels one and true", "prime", put("axes.video.levels", [1, True]), "video")
case("levels dates", "prime", put("axes.video.levels", [datetime.date(2024, 1, 1)]), "axes.video")
case("law unknown", "prime", put("axes.video.law", "markow"), "axes.video.law", "'markov'")
case("given unknown", "prime", put("axes.grocery.given", ["choice", "parcels"]), "'parcels'")
case("given misspelt", "prime", put("axes.grocery.given", ["chioce"]), "'chioce'", "'choice'")
case("given itself", "prime", put("axes.grocery.given", ["choice", "grocery"]), "grocery")
case("given twice", "prime", put("axes.grocery.given", ["choice", "choice"]), "choice")
case("given in a circle", "prime",
     several(put("axes.grocery.given", ["video"]), put("axes.video.given", ["grocery"])),
     "grocery", "video")
case("increment without step", "prime", put("axes.video.law", "increment"), "axes.video", "max_st")
case("increment negative", "prime",
     several(put("axes.video.law", "increment"), put("axes.video.max_step", -1)),
     "axes.video.max_step")
case("increment reset unknown", "prime",
     several(put("axes.video.law", "increment"), put("axes.video.max_step", 1),
             put("axes.video.reset_on", "nine")), "'nine'")
case("increment probabilities", "prime",
     several(put("axes.video.law", "increment"), put("axes.video.max_step", 1),
             put("axes.video.probabilities", [0.5, 0.6])), "video", "probabilities")
for label, value in (
    ("shape", [0.5, 0.5, 0.0]),
    ("sum", [[[0.5, 0.6], [0.5, 0.5]]] * 3),
    ("negative", [[[1.5, -0.5], [0.5, 0.5]]] * 3),
    ("nan", [[[NAN, 0.5], [0.5, 0.5]]] * 3),
    ("text", [[["a", "b"], ["c", "d"]]] * 3),
    ("ragged", [[[0.5, 0.5], [1.0]]] * 3),
    ("empty", []),
):
    case(f"probabilities: {label}", "prime", put("axes.video.probabilities", value), "video")
case("axis called choice", "prime", put("axes.choice", {"levels": [0, 1], "law": "fixed"}),
     "choice")
case("axis without a name", "prime", put("axes.", {"levels": [0, 1], "law": "fixed"}), "axes")
case("law a list", "prime", put("axes.video.law", ["markov"]), "axes.video.law")
case("law a table", "prime", put("axes.video.law", {"is": "markov"}), "axes.video.law")
case("levels of two kinds", "prime", put("axes.video.levels", [0, "one"]), "video",
     commands=BOTH)
case("fixed with a table", "prime", put("axes.prices.table", "contract.csv"), "axes.prices")
case("markov with a step", "prime", put("axes.video.max_step", 1), "axes.video")
case("rule of an unknown axis", "prime",
     put("model.unavailable.0.where", {"contrct": "none"}), "'contrct'", "'contract'")
case("rule of an unknown level", "prime",
     put("model.unavailable.0.where", {"contract": "annual_99"}), "'annual_99'")
case("rule of an unknown choice", "prime",
     put("model.unavailable.0.choices", ["nonne"]), "'nonne'", "'none'")
case("rule that leaves no choice", "prime",
     put("model.unavailable.0.choices", ["none", "monthly", "annual"]), "contract")

# formulas, which run nothing
PWNED = "touch pwned"
for label, value, said in (
    ("empty", "", "utility.formula"),
    ("blank", "   ", "formula"),
    ("zero", "0", "formula"),
    ("one", "1", "constant"),
    ("unknown name", "0 + membr", "'member'"),
    ("only half", "0 + member +", "formula"),
    ("a bracket", "0 + (member", "formula"),
    ("two operators", "0 + member ** ** price", "formula"),
    ("two sides", "price ~ member", "formula"),
    ("three parts", "member | price", "formula"),
    ("a quote", "0 + 'member", "formula"),
    ("a backtick", "0 + `member", "formula"),
    ("constant", "member + contract", "constant"),
    ("nan", "0 + log(price)", "log(price)"),
    ("a transform of the rows", "0 + scale(price)", "scale(price)"),
    ("a power of a million", "0 + (member + price)**1000000", "formula"),
    ("10,000 terms", "0" + " + member" * 10_000 + " + mmber", "formula"),
    ("nul", "0 + member\0", "formula"),
    ("unicode", "0 + mémber", "mémber"),
    ("import", f"0 + __import__('os').system('{PWNED}')", "__import__"),
    ("import in braces", "0 + {__import__('os').system('" + PWNED + "')}", "__import__"),
    ("eval", "0 + eval(\"open('pwned', 'w')\")", "eval"),
    ("exec", "0 + {exec(\"open('pwned', 'w')\")}", "exec"),
    ("open", "0 + {open('pwned', 'w').write('x')}", "open"),
    ("getattr", "0 + getattr(member, 'to_csv')('pwned')", "getattr"),
    ("a method that writes", "0 + member.to_csv('pwned')", "member.to_csv"),
    ("numpy that writes", "0 + np.save('pwned', member)", "np.save"),
    ("a way around names",
     "0 + {[c for c in ().__class__.__base__.__subclasses__()"
     " if c.__name__ == '_wrap_close'][0].__init__.__globals__['system']('" + PWNED + "')}",
     "formula"),
    ("globals of a transform",
     "0 + log.__class__.__base__.__subclasses__().__len__() * member", "formula"),
    ("lambda", "0 + (lambda: open('pwned', 'w'))()", "formula"),
    ("a loop without end", "0 + {[x for x in iter(int, 1)]}", "formula"),
    ("a huge number", "0 + {9**9**9}:member", "formula"),
    ("a division by zero", "0 + {1/0}:member", "formula"),
):
    case(f"formula: {label}", "prime", put("utility.formula", value), said)
case("formula that repeats a direction", "prime",
     put("utility.formula", "0 + member + price + I(2 * price)"), "2 * price", code=3,
     commands=("forecast",))

# tables beside the run file
case("attributes not there", "prime", put("utility.attributes", "gone.csv"), "'gone.csv'")
case("attributes a folder", "prime", put("utility.attributes", "."), "utility.attributes",
     commands=BOTH)
case("attributes with a nul", "prime", put("utility.attributes", "a\0b"), "utility.attributes")
case("attributes empty", "prime", raw("", "attributes.csv"), "attributes")
case("attributes without rows", "prime", table("attributes.csv", lambda t: t.head(0)), "attribut")
case("attributes binary", "prime", raw(bytes(range(256)), "attributes.csv"), "attributes")
case("attributes Parquet", "prime", put("utility.attributes", "prime.parquet"), "utility.attribut")
case("attributes ragged", "prime", end("a,b,c,d,e,f,g,h,i,j,k,l,m\n", "attributes.csv"), "attribu")
case("attributes of no key", "prime",
     table("attributes.csv", lambda t: t.drop(columns=["contract", "prices", "bundle", "choice"])),
     "key column")
case("attributes without one column", "prime",
     table("attributes.csv", lambda t: t.drop(columns="price")), "'price'")
case("attributes repeat", "prime",
     table("attributes.csv", lambda t: pd.concat([t, t.head(3)])), "repeat")
case("attributes miss a value", "prime",
     table("attributes.csv", lambda t: t.assign(price=[None, *t["price"][1:]])),
     "miss a value")
case("attributes hold a text", "prime",
     table("attributes.csv", lambda t: t.assign(price=["dear", *t["price"][1:]])),
     "price",
     commands=BOTH)
case("attributes infinite", "prime",
     table("attributes.csv", lambda t: t.assign(price=[INF, *t["price"][1:]])), "price")
case("attributes of an unknown level", "prime",
     table("attributes.csv", lambda t: t.replace({"contract": {"annual_3": "anual_3"}})),
     "'anual_3'")
case("attributes of an unknown choice", "prime",
     table("attributes.csv", lambda t: t.replace({"choice": {"annual": "anual"}})),
     "'anual'")
case("attributes lack rows", "prime", table("attributes.csv", lambda t: t.drop(index=5)), "no row")
case("attributes lack a segment", "prime",
     table("attributes.csv", lambda t: t[t["segment"] != "US families"]),
     "'US families'",
     commands=BOTH)
case("contract not there", "prime", put("axes.contract.table", "contrct.csv"), "'contrct.csv'")
case("contract empty", "prime", raw("", "contract.csv"), "contract")
case("contract without next", "prime",
     table("contract.csv", lambda t: t.drop(columns="next")), "'next'")
case("contract of an unknown level", "prime",
     table("contract.csv", lambda t: t.replace({"next": {"annual_0": "annual_00"}})),
     "'annual_00'")
case("contract of an unknown choice", "prime",
     table("contract.csv", lambda t: t.replace({"choice": {"annual": "yearly"}})),
     "'yearly'")
case("contract lacks a row", "prime", table("contract.csv", lambda t: t.drop(index=1)), "contract")
case("contract says two things", "prime",
     table("contract.csv", lambda t: pd.concat(
         [t, t.head(1).assign(next="monthly")])), "contract.csv",
     commands=BOTH)
case("contract has a gap", "prime",
     table("contract.csv", lambda t: t.assign(next=[None, *t["next"][1:]])), "contract")

# scenarios
case("name twice", "prime", put("scenario.1.name", "grocery everywhere"), "'grocery everywhere'")
case("name of the baseline", "prime", put("scenario.0.name", "baseline"), "'baseline'")
case("name empty", "prime", put("scenario.0.name", ""), "scenario[0].name")
case("name a number", "prime", put("scenario.0.name", 7), "scenario[0].name")
case("starts 0", "prime", put("scenario.0.starts", 0), "scenario[0].starts")
case("starts true", "prime", put("scenario.0.starts", True), "scenario[0].starts")
case("starts a fraction", "prime", put("scenario.0.starts", 1.5), "scenario[0].starts")
case("starts in month 13", "prime", put("scenario.0.starts", "2024-13"), "scenario[0].starts")
case("starts in words", "prime", put("scenario.0.starts", "July"), "scenario[0].starts", "'July'")
case("starts on a day", "prime", put("scenario.0.starts", "2024-07-01"), "scenario[0].starts")
case("starts on a TOML date", "prime",
     put("scenario.0.starts", datetime.date(2024, 7, 1)), "scenario[0].starts")
case("starts with one digit", "prime", put("scenario.0.starts", "2024-7"), "scenario[0].starts")
case("starts in a quarter", "prime", put("scenario.0.starts", "2024-Q3"), "'2024-Q3'")
case("starts after the horizon", "prime", put("scenario.0.starts", 30), "30", "24")
case("starts in 10**30", "prime", put("scenario.0.starts", 10**30), "scenario")
case("announced after the start", "prime", scenario(announced=5, params={"price": 1.0}), "announc")
case("announced after the start, by date", "prime",
     scenario(starts="2024-03", announced="2024-05", params={"price": 1.0}), "announc")
case("ends before the start", "prime", scenario(ends=1, params={"price": 1.0}), "ends")
case("ends when it starts", "prime", scenario(ends=2, params={"price": 1.0}), "ends")
case("ends an offer", "prime", scenario(ends=5, offer={"prices": "new"}), "ends")
case("offer of an unknown axis", "prime", scenario(offer={"bundel": "x"}), "'bundel'", "'bundle'")
case("offer of an unknown level", "prime", scenario(offer={"prices": "newer"}), "'newer'")
case("offer of an unknown old level", "prime",
     scenario(offer={"prices": {"older": "new"}}), "'older'")
case("offer of an axis that moves", "prime", scenario(offer={"video": 1}), "'video'")
case("unknown parameter", "prime", scenario(params={"prce": 1.0}), "'prce'", "'price'")
case("unknown parameter scaled", "prime", scenario(scale={"prce": 1.0}), "'prce'", "'price'")
case("parameter set and scaled", "prime",
     scenario(scale={"price": 1.0}, params={"price": 1.0}), "'price'")
case("parameter nan", "prime", scenario(params={"price": NAN}), "scenario[0].params.price")
case("parameter infinite", "prime", scenario(scale={"price": INF}), "scenario[0].scale.price")
case("parameter text", "prime", scenario(params={"price": "1"}), "scenario[0].params.price")
case("prices without plans", "prime", scenario(prices={"annual": 5.0}), "Membership")
case("bundle without plans", "prime", scenario(bundle={"video": 0.0}), "Membership")
case("attention without plans", "prime", scenario(attention=0.5), "Membership")
case("ramp of an unknown region", "prime",
     scenario(offer={"bundle": "with_grocery"}, ramp={"atlantis": 3}), "'atlantis'",
     commands=BOTH)
case("ramp without a region column", "prime",
     several(drop("data.region"), scenario(offer={"bundle": "with_grocery"}, ramp={"US": 3})),
     "region",
     commands=BOTH)
case("ramp 0", "club", scenario(offer={"bundle": "with_music"}, ramp={"north": 0}), "ramp.north")
case("mix of an unknown segment", "club", scenario(mix={"retired": 2.0}), "'retired'",
     commands=BOTH)
case("mix negative", "club", scenario(mix={"families": -1.0}), "'families'", "-1")
case("price of an unknown plan", "club", scenario(prices={"anual": 5.0}), "'anual'", "'annual'")
case("price negative", "club", scenario(prices={"annual": -5.0}), "annual")
case("price factor negative", "club", scenario(prices={"annual": {"times": -1.0}}), "annual")
case("price nan", "club", scenario(prices={"annual": NAN}), "scenario[0].prices.annual")
case("price text", "club", scenario(prices={"annual": "5"}), "scenario[0].prices.annual")
case("grandfathered a word", "club",
     scenario(prices={"annual": 5.0}, grandfathered="yes"), "scenario[0].grandfathered")
case("bundle of an unknown benefit", "club", scenario(bundle={"musik": 0.0}), "'musik'", "'music'")
case("bundle text", "club", scenario(bundle={"music": "all"}), "'all'")
case("bundle negative", "club", scenario(bundle={"music": -1.0}), "music")
case("plan that is there", "club", scenario(plans=[{"name": "annual", "price": 5.0}]), "'annual'")
case("plan without a name", "club", scenario(plans=[{"price": 5.0}]), "plans[0]", "'name'")
case("plan like an unknown", "club",
     scenario(plans=[{"name": "x", "price": 5.0, "like": "anual"}]), "'anual'")
case("plan with an unknown key", "club",
     scenario(plans=[{"name": "x", "price": 5.0, "lik": "annual"}]), "'lik'", "'like'")
case("plan called none", "club", scenario(plans=[{"name": "none", "price": 5.0}]), "'none'")
case("plan is a text", "club", scenario(plans=["student"]), "scenario[0].plans[0]")
case("drop an unknown plan", "club", scenario(drop=["anual"]), "'anual'", "'annual'")
case("drop every plan", "club", scenario(drop=["annual", "monthly"]), "plan")
case("drop as text", "club", scenario(drop="annual"), "scenario[0].drop")
case("terms of an unknown plan", "club", scenario(terms={"anual": {"refund": "none"}}), "'anual'")
case("terms unknown", "club", scenario(terms={"annual": {"refunds": "none"}}), "'refunds'")
case("terms impossible", "club", scenario(terms={"annual": {"refund": "half"}}), "'half'")
case("terms of no periods", "club", scenario(terms={"annual": {"periods": 0}}), "periods=0")
case("terms of a name", "club", scenario(terms={"annual": {"name": "x"}}), "name")
case("engagement of an unknown benefit", "club",
     scenario(engagement={"musik": {"gain": 2.0}}), "'musik'")
case("engagement unknown", "club", scenario(engagement={"music": {"gian": 2.0}}), "'gian'")
case("engagement negative", "club", scenario(engagement={"music": {"gain": -2.0}}), "gain")
case("attention of 2", "club", scenario(attention=2.0), "attention")
case("attention of an unknown plan", "club", scenario(attention={"anual": 0.5}), "'anual'")
case("new value of an old benefit", "club", scenario(new_values={"music": 1.0}), "'music'")
case("new benefit without a value", "club",
     scenario(benefits=[{"name": "games", "gain": 0.1, "stay": 0.9}]), "'games'")
case("new benefit without a chain", "club",
     scenario(benefits=[{"name": "games"}], new_values={"games": 1.0}), "'games'")

# a membership
case("membership and axes", "club",
     put("axes", {"x": {"levels": [0, 1], "law": "fixed"}}), "axes: not with membership")
case("membership empty", "club", put("membership", {}), "membership", "plan")
case("membership a text", "club", put("membership", "club.toml"), "membership")
case("file and more", "club", put("membership.file", "club.toml"), "either file")
case("file not there", "club", put("membership", {"file": "club.toml"}), "club.toml")
case("file a folder", "club", put("membership", {"file": "."}), "membership",
     commands=BOTH)
case("file a number", "club", put("membership", {"file": 3}), "file")
case("file with a nul", "club", put("membership", {"file": "a\0b"}), "membership")
case("file binary", "club",
     several(put("membership", {"file": "c.toml"}), raw(bytes(range(256)), "c.toml")),
     "c.toml")
case("file not TOML", "club",
     several(put("membership", {"file": "c.toml"}), raw("plans = [", "c.toml")), "c.toml")
case("file nested", "club",
     several(put("membership", {"file": "c.toml"}), raw("x = " + "[" * 5000, "c.toml")),
     "c.toml")
case("no plan", "club", put("membership.plans", []), "plan")
case("plans a table", "club", put("membership.plans", {"monthly": 10}), "plans")
case("plans are texts", "club", put("membership.plans", ["monthly", "annual"]), "plans[0]")
case("plan twice", "club", put("membership.plans.1.name", "monthly"), "'monthly'")
case("a plan called none", "club", put("membership.plans.0.name", "none"), "'none'")
case("a plan called by a number", "club", put("membership.plans.0.name", 5), "5")
case("a plan called blank", "club", put("membership.plans.0.name", "  "), "name")
for label, value in (("negative", -1.0), ("nan", NAN), ("infinite", INF), ("text", "ten"),
                     ("list", [10.0]), ("true", True)):
    case(f"plan price {label}", "club", put("membership.plans.0.price", value), "price")
case("plan of no periods", "club", put("membership.plans.1.periods", 0), "periods=0")
case("plan of half periods", "club", put("membership.plans.1.periods", 1.5), "periods=1.5")
case("plan of a billion periods", "club", put("membership.plans.1.periods", 10**9), "periods",
     commands=BOTH)
case("plan cancelled", "club", put("membership.plans.1.cancel", "never"), "cancel", "'never'")
case("plan refunded", "club", put("membership.plans.1.refund", "all"), "refund", "'all'")
case("plan attention", "club", put("membership.plans.1.attention", 0), "attention")
case("plan benefits", "club", put("membership.plans.1.benefits", {"musik": 1.0}), "'musik'")
case("plan benefits a list", "club", put("membership.plans.1.benefits", ["music"]), "benefits")
case("plan features nan", "club", put("membership.plans.1.features", {"f": NAN}), "features")
case("benefit twice", "club", put("membership.benefits.1.name", "shipping"), "'shipping'")
case("benefit called like an axis", "club", put("membership.benefits.1.name", "contract"), "contr")
case("benefit called like a parameter", "club", put("membership.benefits.1.name", "price"), "price")
case("benefit half a chain", "club", put("membership.benefits.0.gain", 0.5), "gain and stay")
case("benefit probability", "club",
     several(put("membership.benefits.0.gain", 1.5), put("membership.benefits.0.stay", 0.5)),
     "gain=1.5")
case("benefit of one level", "club", put("membership.benefits.0.levels", 1), "levels=1")
case("benefit of a million levels", "club", put("membership.benefits.0.levels", 10**6), "levels")
case("benefit given unknown", "club", put("membership.benefits.0.given", ["musik"]), "'musik'")
case("menu of an unknown plan", "club", put("membership.menus.old.anual", 5.0), "'anual'")
case("menu of a negative price", "club", put("membership.menus.old.annual", -5.0), "old")
case("menu of a text", "club", put("membership.menus.old.annual", "cheap"), "'cheap'")
case("menus a list", "club", put("membership.menus", ["old", "new"]), "menus")
case("menu a number", "club", put("membership.menus.old", 5), "old")
case("bundle of unknown", "club", put("membership.bundles.no_music.musik", 0), "'musik'")
case("bundle of a text", "club", put("membership.bundles.no_music.music", "none"), "music")
case("costs unknown", "club", put("membership.costs", ["joining"]), "'joining'")
case("costs a number", "club", put("membership.costs", 3), "costs")
case("tenure 0", "club", put("membership.tenure", 0), "tenure=0")
case("tenure a billion", "club", put("membership.tenure", 10**9), "tenure")
case("naive 2", "club", put("membership.naive", 2.0), "naive")
case("fixed unknown", "club", put("membership.fixed", {"prce": 1.0}), "'prce'")
case("fixed nan", "club", put("membership.fixed", {"price": NAN}), "price")
case("fixed everything", "club",
     put("membership.fixed", dict.fromkeys(
         ("member", "shipping", "music", "price", "joining cost", "switching cost",
          "paying upfront"), 1.0)), "fixed",
     commands=BOTH)
case("params unknown", "club", put("membership.params", {"prce": 1.0}), "'prce'")
case("types that do not sum", "club",
     put("membership.types", {"a": {"share": 0.5}, "b": {"share": 0.6}}), "share")
case("types to be estimated", "club",
     put("membership.types", {"a": {"share": 0.5}, "b": {"share": 0.5}}), "types")
case("segment with an unknown key", "club",
     put("membership.segments", {"families": {"prise": {"annual": 5}}}), "'prise'")
case("segment with an unknown plan", "club",
     put("membership.segments", {"families": {"prices": {"anual": 5}}}), "'anual'")
case("engagement column of an unknown benefit", "club",
     put("data.engagement", {"musik": "music"}), "'musik'")
case("columns of an unknown axis", "club", put("data.columns", {"pricez": "prices"}), "'pricez'")
case("offers not there", "club", put("data.offers", "offers.csv"), "'offers.csv'",
     commands=BOTH)
case("history keys without membership", "prime", put("data.entry", "new"), "data.entry")
case("choices none unknown", "club", put("data.none", "monthly"), "'monthly'")

# where rows come from and results go
case("path and duckdb", "club", put("data.duckdb", "x.duckdb"), "path and duckdb")
case("table with a path", "club", put("data.table", "t"), "table")
case("duckdb without a table", "club",
     several(drop("data.path"), put("data.duckdb", "x.duckdb")), "data.table")
CONNECTED = several(drop("data.path"), put("data.table", "t"))
for label, url, said in (
    ("with a password", "postgres://me:hunter2@host/db", "holds a password"),
    ("with a password in its query", "postgres://host/db?password=hunter2", "holds a password"),
    (
        "of a variable that is not set",
        "postgres://me:${DYNCHOICE_NOT_SET}@h/d",
        "DYNCHOICE_NOT_SET",
    ),
    ("that is one variable, not set", "${DYNCHOICE_NOT_SET}", "DYNCHOICE_NOT_SET"),
    ("that is no URL", "the usual one", "data.connection"),
    ("of an unknown kind", "oracel://host/db", "oracel"),
    ("with a broken bracket", "postgres://[::1/db", "data.connection"),
    ("with a broken port", "postgres://host:port/db", "data.connection"),
):
    case(f"connection {label}", "club",
         several(CONNECTED, put("data.connection", url)), said)
case("clusters without a column", "club",
     several(drop("data.region"), put("estimate.cluster", "region")), "data.region",
     commands=BOTH)
case("segments none", "club", put("data.segments", []), "data.segments")
case("segment nobody is of", "club", put("data.segments", ["familes"]), "'familes'", "'families'",
     code=5,
     commands=BOTH)
case("one column for two things", "club", put("data.time", "member"), "member")
case("output folder a file", "club", blocked, "out",
     commands=BOTH)
case("output folder below a file", "club", put("output.folder", "run.toml/out"), "run.toml",
     commands=BOTH)
case("output folder with a nul", "club", put("output.folder", "a\0b"), "output.folder",
     commands=BOTH)
case("output folder empty", "club", put("output.folder", ""), "output.folder")
case("output folder of a long name", "club", put("output.folder", "x" * 300), "output folder",
     commands=BOTH)
case("current in the way", "club", in_the_way, "current is in the way",
     commands=BOTH)
case("path with a nul", "club", put("data.path", "a\0b"), "no such file", code=5)
case("path of a long name", "club", put("data.path", "x" * 300), "xxx", code=5,
     commands=BOTH)

# the command line
case("set without equals", "club", nothing, "'forecast.draws'", more=("--set", "forecast.draws"))
case("set without a key", "club", nothing, "'=3'", more=("--set", "=3"))
case("set below a value", "club", nothing, "'member'", more=("--set", "data.member.x=3"))
case("set unknown", "club", nothing, "forecast.drws", more=("--set", "forecast.drws=3"))
case("set in a list", "club", nothing, "'9'", more=("--set", "scenario.9.name='x'"))
case("set a list by name", "club", nothing, "'x'", more=("--set", "scenario.x.name='x'"))
case("set a nest", "club", nothing, "title", more=("--set", "title=" + "[" * 200 + "]" * 200))
case("no segment named", "club", nothing, "--segments", more=("--segments", ","),
     commands=("forecast",))
case("segment unknown", "club", nothing, "'familes'", "'families'", more=("--segments", "familes"),
     commands=("forecast",))
case("no jobs", "club", nothing, "--jobs", more=("--jobs", "0"), commands=("forecast",))
case("exit code 300", "club", nothing, "--exit-code-unchanged",
     more=("--exit-code-unchanged", "300"), commands=("forecast",))
# fmt: on


def called(command: str, run: Path, more: tuple[str, ...] = ()) -> int:
    """Return the exit code of a command with what makes it quick."""
    sets = [x for s in QUICK for x in ("--set", s)]
    return cli.main([command, str(run), *sets, *more])


def told(error: str) -> str:
    """Return a message without the lines of progress."""
    return "\n".join(x for x in error.splitlines() if not x.startswith("["))


def check_message(error: str, said: tuple[str, ...]) -> None:
    """Assert that a message is short, of this package, and names what it should."""
    for text in said:
        assert text in error
    for text in ("Traceback", "unexpected", "mistake in dynchoice", "\0"):
        assert text not in error
    assert len(error) <= 6000 and len(error.splitlines()) <= 45
    assert error.strip()


def most_slow(cases, every):
    """Keep one of so many for every machine; the others are for CI."""
    return [
        c if i % every == 0 else pytest.param(c, marks=pytest.mark.slow)
        for i, c in enumerate(cases)
    ]


@pytest.mark.parametrize("bad", most_slow(CASES, 4), ids=lambda c: c.name)
def test_a_bad_run_file_is_refused(bad, samples, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(samples / bad.sample, folder)
    monkeypatch.chdir(tmp_path)
    bad.edit(folder)
    for command in bad.commands:
        with bounded():
            code = called(command, folder / "run.toml", bad.more)
        error = told(capsys.readouterr().err)
        assert code == bad.code, (command, error)
        check_message(error, bad.said)
    assert not list(tmp_path.rglob("pwned*"))
    assert not (folder / "out" / "current").is_symlink()


VALUES = (
    "0",
    "-1",
    "1",
    "2",
    "3.5",
    "1e400",
    "nan",
    "-inf",
    "true",
    '""',
    '"x"',
    '"none"',
    "[]",
    "{}",
    "[[]]",
    "[0, 0]",
    "{a = 1}",
    '["a", 1]',
    "2026-07-01",
    '"2026-07"',
    "999999999999999999",
    '"\\u0000"',
    '"../../x"',
    "'''a\nb'''",
    "0x10",
    "[[1, [2]], {b = [{}]}]",
)
TOKEN = re.compile(r"\"[^\"\n]*\"|[\w.+-]+|[^\w\s]")


def mutated(text: str, rng: random.Random) -> str:
    """Return a run file with one thing in it changed."""
    lines = text.splitlines()
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    tokens = list(TOKEN.finditer(text))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines = lines[: at + 1]
    else:
        token, spare = rng.choice(tokens), rng.choice(tokens)
        new = {
            4: "",
            5: f"{token[0]} {token[0]}",
            6: spare[0],
        }.get(kind)
        if new is None:
            named = [i for i, x in enumerate(lines) if re.match(r"\w+ *=", x)]
            at = rng.choice(named)
            lines[at] = f"{lines[at].partition('=')[0]}= {rng.choice(VALUES)}"
        else:
            return text[: token.start()] + new + text[token.end() :]
    return "\n".join(lines)


@pytest.mark.slow
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sample=st.sampled_from(["club", "prime"]),
    seed=st.integers(0, 2**32),
    times=st.integers(1, 3),
)
def test_no_change_of_a_run_file_is_unexpected(samples, capsys, sample, seed, times):
    rng = random.Random(seed)
    text = (samples / sample / "run.toml").read_text(encoding="utf-8")
    bare = "\n".join(x for x in text.splitlines() if x.strip() and not x.startswith("#"))
    for _ in range(times):
        bare = mutated(bare, rng)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        shutil.copytree(samples / sample, folder)
        (folder / "run.toml").write_text(bare, encoding="utf-8")
        with bounded():
            code = called("check", folder / "run.toml", ("--quiet",))
    error = told(capsys.readouterr().err)
    assert code in (0, 2, 3, 4, 5), (bare, error)
    if code:
        check_message(error, ())
