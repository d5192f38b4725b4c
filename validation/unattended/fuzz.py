"""Run files, rows and ``--set`` changed at random: every answer is one of the exit codes.

``python validation/unattended/fuzz.py --minutes 10`` takes two run files that work, each time with
something else wrong in them or beside them, and calls ``check``, ``forecast --dry-run`` and, where
rows are changed, ``forecast``, within this process. Exit codes other than 0, 2, 3, 4 and 5,
exceptions, tracebacks, answers that are long or late, and files left behind are failures: they are
written to a file, and the exit code is 4.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pandas as pd

from dynchoice.run import cli

ROOT = Path(__file__).resolve().parents[2]
PRIME = ROOT / "data" / "prime"
GOOD = frozenset({0, 2, 3, 4, 5})
SECONDS = 30
BYTES = 6 * 2**30
LINES, LETTERS = 45, 6000
QUICK = ("forecast.draws=0", "output.report=false", "output.picture=false")
CASE, SPARE = "case.toml", "spare"
TOKEN = re.compile(r"\"[^\"\n]*\"|[\w.+-]+|[^\w\s]")
SECTION = re.compile(r"^\[+([\w.]+)\]+", re.MULTILINE)

# samples -----------------------------------------------------------------------------------------


@dataclass
class Sample:
    """A folder with a run file that works, its text, and the files beside it."""

    folder: Path
    text: str
    keys: list[str]
    words: list[str]
    tables: list[str]
    panel: str


def keys_of(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a run file."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict) or (isinstance(value, list) and value != []):
            yield from keys_of(value, f"{name}.")


def bare(text: str) -> str:
    """Return a run file without its comments and blank lines."""
    lines = (re.sub(r"\s+#.*$", "", x) for x in text.splitlines())
    return "\n".join(x for x in lines if x.strip() and not x.startswith("#"))


def finished(folder: Path, panel: str, tables: list[str]) -> Sample:
    """Run a sample once, so that plans have stages to find, and describe it."""
    sets = [x for s in QUICK for x in ("--set", s)]
    if cli.main(["forecast", str(folder / "run.toml"), *sets, "--quiet"]) != 0:
        sys.exit(f"the sample in {folder} does not work: nothing to change")
    text = bare((folder / "run.toml").read_text(encoding="utf-8"))
    words = sorted({t.strip('"') for t in TOKEN.findall(text) if re.search(r"\w", t)})
    return Sample(folder, text, list(keys_of(tomllib.loads(text))), words, tables, panel)


def samples(root: Path) -> list[Sample]:
    """Return both kinds of run file, on a few members."""
    club, prime = root / "club", root / "prime"
    if cli.main(["init", str(club), "--quiet"]) != 0:
        sys.exit("dynchoice init does not work: nothing to change")
    rows = pd.read_parquet(club / "members.parquet")
    rows[rows["member"] % 500 < 25].to_parquet(club / "members.parquet", index=False)
    prime.mkdir()
    for name in ("run.toml", "contract.csv", "attributes.csv"):
        shutil.copy(PRIME / name, prime)
    rows = pd.read_parquet(PRIME / "prime.parquet")
    rows[rows["member"] % 150 == 0].to_parquet(prime / "prime.parquet", index=False)
    return [
        finished(club, "members.parquet", []),
        finished(prime, "prime.parquet", ["contract.csv", "attributes.csv"]),
    ]


# changes -----------------------------------------------------------------------------------------

NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "12", "-0.0", "0.5", "1.0", "1.5", "1e-300", "1e308", "1e400",
    "nan", "inf", "-inf", "255", "256", "65536", "2147483648", "9223372036854775807",
    "9223372036854775808", "1" + "0" * 30, "0x10", "1_000",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "none", "all", "baseline", "off", "hold", "2026-07", "2026-13", "2024-Q2", "..",
    "../../x", ".", "*", "a/b", "a.b", "\\u0000", "\\u00e9\\u4e2d", "\\n", "\\u001b[2J", "'", "`",
    "${HOME}", "${NOT_SET}", "{0}", "%s", "[x]", "0 + price", "I(price)", "choice", "segment",
    "__class__", "x" * 300, "run.toml", "contract.csv", "members.parquet", "prime.parquet",
)  # fmt: skip
WRONG = ("True", "null", "", "=", "[", "]", "{", "}", '"', "2026-07-01", "07:30:00", "#", "[[x]]")


def value(rng: random.Random, sample: Sample, deep: int = 0) -> str:
    """Return a TOML value, rarely something that is none."""
    kind = rng.randrange(12 if deep < 3 else 8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return f'"{rng.choice(TEXTS)}"'
    if kind == 5:
        return f'"{rng.choice(sample.words)}"'
    if kind == 6:
        return rng.choice(("true", "false"))
    if kind == 7:
        return rng.choice(WRONG)
    inner = [value(rng, sample, deep + 1) for _ in range(rng.randrange(4))]
    if kind < 10:
        return f"[{', '.join(inner)}]"
    names = [rng.choice([*sample.words, "a", "b"]) for _ in inner]
    return "{" + ", ".join(f'"{n}" = {v}' for n, v in zip(names, inner, strict=True)) + "}"


def line_changed(text: str, rng: random.Random, sample: Sample) -> str:
    """Delete, repeat, swap, move or cut lines."""
    lines = text.split("\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[a]
    elif kind == 1:
        lines.insert(b, lines[a])
    elif kind == 2:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 3:
        del lines[min(a, b) : min(a, b) + rng.randrange(1, 6)]
    else:
        lines = lines[: a + 1]
    return "\n".join(lines)


def token_changed(text: str, rng: random.Random, sample: Sample) -> str:
    """Delete, repeat, replace or misspell one token."""
    found = list(TOKEN.finditer(text))
    if not found:
        return text
    token, other = rng.choice(found), rng.choice(found)
    word = token[0]
    at = rng.randrange(len(word))
    new = rng.choice(
        (
            "",
            f"{word} {word}",
            other[0],
            value(rng, sample),
            word[:at] + word[at + 1 :],
            word[:at] + rng.choice("aeiou_.-0 \n\"'") + word[at:],
            word.upper(),
        )
    )
    return text[: token.start()] + new + text[token.end() :]


def value_changed(text: str, rng: random.Random, sample: Sample) -> str:
    """Give one key another value."""
    lines = text.split("\n")
    named = [i for i, x in enumerate(lines) if re.match(r"[\w.]+ *=", x)]
    if not named:
        return text
    at = rng.choice(named)
    lines[at] = f"{lines[at].partition('=')[0]}= {value(rng, sample)}"
    return "\n".join(lines)


def key_added(text: str, rng: random.Random, sample: Sample) -> str:
    """Add a key, known elsewhere or not, to some table."""
    lines = text.split("\n")
    name = rng.choice([*ALL_KEYS, *sample.words, "x"])
    name = name if re.fullmatch(r"[\w-]+", name) else json.dumps(name)
    lines.insert(rng.randrange(len(lines) + 1), f"{name} = {value(rng, sample)}")
    return "\n".join(lines)


def all_keys() -> list[str]:
    """Return every key that some table of a run file or of a programme knows."""
    from dataclasses import fields

    from pydantic import BaseModel

    from dynchoice.membership.membership import Membership
    from dynchoice.membership.plans import Benefit, Plan
    from dynchoice.run import schema

    tables = [x for x in vars(schema).values() if isinstance(x, type) and issubclass(x, BaseModel)]
    names = {f.alias or n for t in tables for n, f in t.model_fields.items()}
    return sorted(names | {f.name for kind in (Membership, Plan, Benefit) for f in fields(kind)})


ALL_KEYS = all_keys()
CHANGES: tuple[Callable[[str, random.Random, Sample], str], ...] = (
    line_changed,
    token_changed,
    token_changed,
    value_changed,
    value_changed,
    value_changed,
    key_added,
)


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """Change, cut or repeat some bytes."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        kind, at = rng.randrange(4), rng.randrange(len(out) + 1)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del out[at : at + rng.randrange(1, 1 + max(len(out) // 4, 1))]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.randrange(1, 40))
        else:
            out[at:at] = out[at : at + 200]
    return bytes(out)


def cells(rng: random.Random, rows: pd.DataFrame, old: pd.Series) -> Any:
    """Return other values for a column."""
    n = len(rows)
    kind = rng.randrange(13)
    if kind == 0:
        return rows[rng.choice(list(rows.columns))]
    if kind == 1:
        return rng.choice([0, 1, -1, 3, 2.5, True, None, float("nan"), float("inf"), 10**18])
    if kind == 2:
        return rng.choice([*TEXTS, "2024-01-01", "2024-W05", "x" * 5000])
    if kind == 3:
        return rng.choice([pd.Timestamp("2024-01-31"), pd.Timestamp("2024-03-01", tz="UTC")])
    if kind == 4:
        return pd.Series([[1]] * n, index=rows.index)
    if kind == 5:
        return pd.Series([{"a": 1}] * n, index=rows.index)
    if kind == 6:
        return pd.Series([b"\xff\x00"] * n, index=rows.index)
    if kind == 7:
        return old.sample(frac=1, random_state=rng.randrange(99)).to_numpy()
    if kind == 8:
        return old.astype(str)
    if kind == 9:
        return old.astype("category")
    if kind == 10:
        return range(n)
    new = old.astype(object)
    some = [rng.randrange(n) for _ in range(rng.choice((1, 3, n // 3)))]
    new.iloc[some] = rng.choice([None, "", "x", "none", "2024-13", 0, 7, -1, 0.5, True])
    kinds = {type(x) for x in new if x is not None}
    return new if len(kinds) <= 1 else new.map(lambda x: x if x is None else str(x))


def rows_changed(data: bytes, rng: random.Random) -> bytes:
    """Change rows or columns of a Parquet file."""
    rows = pd.read_parquet(io.BytesIO(data))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(rows.columns))
        kind = rng.randrange(10)
        if kind == 0 and len(rows.columns) > 1:
            rows = rows.drop(columns=name)
        elif kind == 1:
            rows = rows.rename(columns={name: rng.choice(["x", name.upper(), f"{name} "])})
        elif kind == 2:
            rows = rows.sample(frac=rng.choice((0.0, 0.001, 0.02, 0.5, 1.0)), random_state=1)
        elif kind == 3:
            rows = pd.concat([rows, rows.head(rng.choice((1, 50, len(rows))))])
        elif kind == 4 and len(rows):
            rows = rows[rows[name].astype(str) == str(rows[name].iloc[rng.randrange(len(rows))])]
        elif len(rows):
            rows = rows.assign(**{name: cells(rng, rows, rows[name])})
        rows = rows.reset_index(drop=True)
    out = io.BytesIO()
    try:
        rows.to_parquet(out, index=False)
    except (ValueError, TypeError, OverflowError):
        return data
    return out.getvalue()


def setting(rng: random.Random, sample: Sample) -> str:
    """Return what follows ``--set``: a key, mostly known, and a value."""
    key = rng.choice(sample.keys)
    kind = rng.randrange(10)
    if kind == 0:
        key = f"{key}.{rng.choice([*ALL_KEYS, '0', '9', '-1'])}"
    elif kind == 1:
        sections = [*SECTION.findall(sample.text), "guard", "backtest", "output"]
        key = f"{rng.choice(sections)}.{rng.choice(ALL_KEYS)}"
    elif kind == 2:
        at = rng.randrange(len(key) + 1)
        key = key[:at] + rng.choice(["", ".", " ", "x", '"', "="]) + key[at + 1 :]
    return f"{key}={value(rng, sample)}"


# cases -------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One run file, what else is changed beside it, and the command."""

    number: int
    sample: Sample
    run: bytes
    argv: list[str]
    beside: dict[str, bytes] = field(default_factory=dict)

    def record(self, why: str, told: str) -> str:
        """Return the case as one line of JSON."""
        return json.dumps(
            {
                "case": self.number,
                "why": why,
                "sample": self.sample.folder.name,
                "argv": self.argv,
                "run": self.run.decode("utf-8", "backslashreplace"),
                "run_base64": base64.b64encode(self.run).decode(),
                "beside": {k: base64.b64encode(v).decode() for k, v in self.beside.items()},
                "told": told[-4000:],
            }
        )


def made(number: int, seed: int, sources: list[Sample]) -> Case:
    """Return one case; the same seed and number give the same one."""
    rng = random.Random(f"{seed} {number}")
    sample = rng.choice(sources)
    text, argv, beside = sample.text, list[str](), dict[str, bytes]()
    kind = rng.randrange(24)
    if kind < 14:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
            text = rng.choice(CHANGES)(text, rng, sample)
    run = text.encode("utf-8", "surrogatepass")
    if 13 <= kind < 18:
        for _ in range(rng.randrange(1, 4)):
            argv += ["--set", setting(rng, sample)]
    if kind == 18:
        run = bytes_changed(run, rng)
    if kind == 19:
        name = rng.choice([*sample.tables, sample.panel])
        beside[name] = bytes_changed((sample.folder / name).read_bytes(), rng)
    command = rng.choice((["check"], ["forecast", "--dry-run"]))
    if kind >= 20:
        beside[sample.panel] = rows_changed((sample.folder / sample.panel).read_bytes(), rng)
        whole = ["forecast", "--set", f"output.folder='{SPARE}'"]
        whole += [x for s in QUICK for x in ("--set", s)]
        return Case(number, sample, run, rng.choice((["check"], ["check"], whole)), beside)
    if command[0] == "forecast" and rng.randrange(10) == 0:
        words = [*sample.words, "", ",", "families"]
        command += rng.choice(
            (["--segments", rng.choice(words)], ["--force"], ["--jobs", rng.choice(NUMBERS)])
        )
    return Case(number, sample, run, [*command, *argv], beside)


class TooLong(BaseException):
    """A case took longer than any answer may."""


def stop(signum: int, frame: Any) -> None:
    """Raise that a case takes too long."""
    raise TooLong


def answered(case: Case) -> tuple[int | None, str, str]:
    """Return the exit code (None: an exception came out), what was told, and what came out."""
    err, out = io.StringIO(), io.StringIO()
    path = case.sample.folder / CASE
    path.write_bytes(case.run)
    came, code = "", None
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        signal.alarm(SECONDS)
        try:
            code = cli.main([case.argv[0], str(path), *case.argv[1:]])
        except SystemExit as error:
            code = error.code if error.code == 2 else None
            came = "" if code == 2 else f"SystemExit({error.code!r})"
        except TooLong:
            came = f"no answer within {SECONDS} seconds"
        except BaseException as error:
            came = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}"
        finally:
            signal.alarm(0)
    return code, err.getvalue(), came


def judged(case: Case, code: int | None, told: str, came: str) -> str:
    """Return what is wrong with an answer, or nothing."""
    own = "\n".join(x for x in told.splitlines() if not re.match(r"\[\d+/\d+\]", x))
    if code is None:
        return came
    if code not in GOOD:
        return f"exit code {code}"
    for text in ("Traceback", "dynchoice: unexpected", "mistake in dynchoice", "\0", "\x1b"):
        if text in own:
            return f"{text!r} in what is told"
    if len(own) > LETTERS or len(own.splitlines()) > LINES:
        return f"{len(own):,} letters in {len(own.splitlines())} lines"
    return "" if own.strip() or code == 0 else "nothing is told"


@contextlib.contextmanager
def changed(case: Case) -> Iterator[None]:
    """Put what is changed beside the run file there, and back."""
    kept = {name: (case.sample.folder / name).read_bytes() for name in case.beside}
    try:
        for name, data in case.beside.items():
            (case.sample.folder / name).write_bytes(data)
        yield
    finally:
        for name, data in kept.items():
            (case.sample.folder / name).write_bytes(data)
        shutil.rmtree(case.sample.folder / SPARE, ignore_errors=True)


def kept_report(told: str) -> str:
    """Return the traceback that an unexpected error was kept in, and remove its file."""
    found = re.search(r"\S*dynchoice-error-\w+\.txt", told)
    if not found:
        return ""
    try:
        text = Path(found[0]).read_text(encoding="utf-8")
        Path(found[0]).unlink()
    except OSError:
        return ""
    return text[-3000:]


def fuzz(sources: list[Sample], root: Path, args: argparse.Namespace) -> int:
    """Try cases until time is up, print how many had which exit code, and return ours."""
    codes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    slowest = (0.0, 0)
    last = root / "last.json"
    before = {p for p in root.rglob("*") if p.name not in (CASE, last.name)}
    ends = time.monotonic() + 60 * args.minutes
    number, failed = args.first, 0
    args.failures.unlink(missing_ok=True)
    while time.monotonic() < ends and (args.cases is None or number < args.first + args.cases):
        case = made(number, args.seed, sources)
        last.write_text(case.record("running", ""))
        began = time.monotonic()
        with changed(case):
            code, told, came = answered(case)
        slowest = max(slowest, (time.monotonic() - began, number))
        why = judged(case, code, told, came)
        left = {p for p in root.rglob("*") if p.name not in (CASE, last.name)} - before
        if left and not why:
            why = f"left behind: {sorted(map(str, left))[:3]}"
        before |= left
        codes["none" if code is None else str(code)] += 1
        if why:
            failed += 1
            known = re.sub(r"0x\w+|\d+|/\S+", "", why + told[-300:])
            seen[known] += 1
            if seen[known] == 1:
                print(f"case {number}: {why.splitlines()[0][:200]}\n{told[-400:]}", flush=True)
            with args.failures.open("a", encoding="utf-8") as handle:
                handle.write(case.record(why, told + kept_report(told)) + "\n")
        number += 1
    table = ", ".join(f"{code}: {n:,}" for code, n in sorted(codes.items()))
    print(f"{number - args.first:,} cases with seed {args.seed}; by exit code {table}")
    print(f"slowest: case {slowest[1]} with {slowest[0]:.1f} s")
    if failed:
        print(f"{failed:,} failures of {len(seen)} kinds, in {args.failures}")
        return 4
    print("no failure")
    return 0


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, help="at most so many")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures.jsonl"))
    args = parser.parse_args()
    args.failures = args.failures.resolve()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, hard))
    signal.signal(signal.SIGALRM, stop)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="dynchoice-fuzz-") as name:
        root = Path(name)
        os.chdir(root)
        return fuzz(samples(root), root, args)


if __name__ == "__main__":
    sys.exit(main())
