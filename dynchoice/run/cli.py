"""The command line: ``dynchoice init | check | forecast | backtest | callouts | warm-up``.

Exit codes are the errors' own (:mod:`dynchoice.errors`); that a run is held (4) is decided in
:mod:`dynchoice.run.guard` and raised in :mod:`dynchoice.run.release`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from dynchoice.run.config import Run

EPILOG = """exit codes: 0 done, 1 unexpected, 2 bad configuration or usage, 3 not converged,
4 a check failed, 5 data refused, 75 another run holds the lock"""
CALLOUTS = {
    "train": "learn every batch of feedback that was not learned yet",
    "score": "decide what to show to the members of a table",
    "evaluate": "value the policy on a log with propensities",
}
INTERRUPTED = 130
STUCK = "interrupted in a step that did not stop by itself; what is published is whole"
WIDEST, TALLEST, MOST_LETTERS = 1_500, 40, 5_500


class Layout(TypedDict):
    """How every command's help looks."""

    epilog: str
    formatter_class: type[argparse.HelpFormatter]


LAYOUT: Layout = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    from dynchoice import __version__

    top = argparse.ArgumentParser(
        prog="dynchoice",
        description="Dynamic discrete choice models of membership.",
        **LAYOUT,
    )
    top.add_argument("--version", action="version", version=f"dynchoice {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=sentence(text), **LAYOUT)
        added.set_defaults(run_command=run)
        added.add_argument("--quiet", action="store_true", help="print nothing on success")
        return added

    start = command("init", init_command, "write a commented run file that works, with a sample")
    start.add_argument("folder", metavar="DIR", help="a new or empty folder")
    start.add_argument(
        "--recipes", action="store_true", help="and recipes for cron, systemd, Airflow, containers"
    )
    check = command("check", check_command, "check run file, model and data without estimating")
    check.add_argument("--warm", action="store_true", help="compile the kernels too")
    job = command(
        "forecast", forecast_command, "estimate by segment and forecast scenarios from a run file"
    )
    _forecast(job)
    back = command(
        "backtest", backtest_command, "forecast from earlier months and compare with what happened"
    )
    back.add_argument("--force", action="store_true", help="do every stage again")
    for added in (check, job, back):
        added.add_argument("run", metavar="RUN.toml", help="the run file")
        added.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a key of the run file, e.g. --set forecast.draws=0 (a TOML value)",
        )
        added.add_argument(
            "--log",
            choices=("auto", "plain", "json"),
            default="auto",
            help="bars on a terminal and lines elsewhere (auto), lines, or JSON lines",
        )
    for added in (job, back):
        added.add_argument("--jobs", type=int, default=1, metavar="N", help="segments at once")
    _callouts(commands)
    warm = command("warm-up", warm_command, "compile every kernel now, so that no run has to")
    warm.description = (
        "Compile every kernel now, so that no run has to: once in a container image or on a new"
        " machine. They are kept where DYNCHOICE_CACHE says, else beside the package or in the"
        " user's cache folder."
    )
    return top


def sentence(text: str) -> str:
    """Return a text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def _forecast(job: argparse.ArgumentParser) -> None:
    """Add the options that only ``forecast`` has."""
    job.add_argument("--force", action="store_true", help="do every stage again")
    job.add_argument(
        "--segments", metavar="A,B", help="these only; the result is kept and not published"
    )
    job.add_argument(
        "--dry-run", action="store_true", help="say which stages would be done, and do none"
    )
    job.add_argument(
        "--accept", action="store_true", help="publish although a guard rail would hold the run"
    )
    job.add_argument(
        "--exit-code-unchanged",
        type=int,
        default=0,
        metavar="N",
        help="exit code when nothing has changed (Airflow skips on 99; default 0)",
    )


def _callouts(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``callouts train | score | evaluate``."""
    text = "keep a policy of callouts: learn from feedback, decide, value it"
    top = commands.add_parser("callouts", help=text, description=sentence(text))
    steps = top.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, purpose in CALLOUTS.items():
        added = steps.add_parser(name, help=purpose, description=sentence(purpose), **LAYOUT)
        added.set_defaults(run_command=callouts_command)
        added.add_argument("run", metavar="CALLOUTS.toml", help="the callout file")
        added.add_argument("--quiet", action="store_true", help="print nothing on success")
        added.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
        )
        added.add_argument(
            "--log", choices=("auto", "plain", "json"), default="auto", help="bars, lines or JSON"
        )
        if name != "train":
            added.add_argument(
                "--now", metavar="TIME", help="date, or days; default: of the feedback"
            )
        if name == "score":
            added.add_argument(
                "--name", metavar="TEXT", help="picks the random draws; default: today's date"
            )


def changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``--set`` arguments as dotted key -> value (TOML values; bare words are texts)."""
    import tomllib

    from dynchoice.errors import ConfigError

    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ConfigError(f"--set {pair!r}: expected KEY=VALUE, e.g. forecast.draws=0")
        try:
            parsed = tomllib.loads(f"value = {text}")
            out[key.strip()] = parsed["value"] if len(parsed) == 1 else text
        except (tomllib.TOMLDecodeError, RecursionError):
            out[key.strip()] = text
    return out


def opened(args: argparse.Namespace) -> Run:
    """Return the run file of a command, with what ``--set`` says."""
    from dynchoice.run.config import load_run

    run = load_run(args.run, changes(args.set))
    args.loaded = run
    return run


def cleaner(args: argparse.Namespace) -> Callable[[str], str]:
    """Return what takes the secrets of a command's run file out of a text."""
    run = getattr(args, "loaded", None)
    if run is None:
        return str
    from dynchoice.run.source import hide_secrets

    return lambda text: hide_secrets(text, run)


def say(args: argparse.Namespace, text: str) -> None:
    """Print a result, unless the command is quiet."""
    if not args.quiet:
        sys.stdout.write(f"{text}\n")


def init_command(args: argparse.Namespace) -> int:
    """Write a run file and its sample."""
    from dynchoice.run.init import write_recipes, write_sample

    written = write_sample(args.folder)
    if args.recipes:
        written += write_recipes(written[0].parent)
    say(args, "\n".join(str(p) for p in written))
    say(args, f"now: dynchoice forecast {written[0]}")
    return 0


def check_command(args: argparse.Namespace) -> int:
    """Check everything but the estimates."""
    from dynchoice.run.check import check_run
    from dynchoice.run.progress import progress_of

    run = opened(args)
    with progress_of(args.quiet, args.log, cleaner(args)) as progress:
        text = check_run(run, warm=args.warm, progress=args.stop.between(progress))
    say(args, cleaner(args)(text))
    return 0


def forecast_command(args: argparse.Namespace) -> int:
    """Run the forecast with a progress bar on a terminal and lines elsewhere."""
    from dynchoice.errors import ConfigError
    from dynchoice.run.job import Options, plan, run_job
    from dynchoice.run.progress import progress_of

    run = opened(args)
    if not 0 <= args.exit_code_unchanged <= 255:
        raise ConfigError("--exit-code-unchanged: give a number from 0 to 255")
    chosen = None
    if args.segments is not None:
        chosen = tuple(s.strip() for s in args.segments.split(",") if s.strip())
        if not chosen:
            raise ConfigError("--segments names none: give labels with commas between")
    options = Options(args.jobs, args.force, args.accept, chosen)
    if args.dry_run:
        steps = plan(run, options)
        say(args, "\n".join(f"{s.status:<8} {s.stage} {s.name}".rstrip() for s in steps))
        return 0
    clean = cleaner(args)
    args.published = published_since(run)
    with progress_of(args.quiet, args.log, clean) as progress:
        done = run_job(run, options, args.stop.between(progress))
    if not args.quiet:
        for note in done.notes:
            tell_note(args, clean(note))
    say(args, str(done.folder))
    return args.exit_code_unchanged if done.status == "unchanged" else 0


def published_since(run: Run, link: str = "current") -> Callable[[], str | None]:
    """Return what says which folder a link has come to point to since now, if another."""

    def target() -> str | None:
        try:
            return os.readlink(run.out / link)
        except (OSError, ValueError):  # no link, or no name that could be one
            return None

    before = target()

    def new_target() -> str | None:
        now = target()
        return None if now == before else now

    return new_target


def outcome_of(args: argparse.Namespace) -> tuple[str, bool]:
    """Return whether the command published, in words and as a truth value."""
    new = args.published() if hasattr(args, "published") else None
    if new is None:
        return "nothing was published", False
    return f"{new} had been published and is whole", True


def tell_note(args: argparse.Namespace, text: str) -> None:
    """Write what a reader should know beside the result."""
    line = f"note: {text}"
    if args.log == "json":
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": when, "level": "info", "message": line}, ensure_ascii=False)
    sys.stderr.write(f"{line}\n")


def backtest_command(args: argparse.Namespace) -> int:
    """Run the backtest."""
    from dynchoice.run.backtest import run_backtest
    from dynchoice.run.progress import progress_of

    run = opened(args)
    args.published = published_since(run, "backtest")
    with progress_of(args.quiet, args.log, cleaner(args)) as progress:
        step = args.stop.between(progress)
        done = run_backtest(run, jobs=args.jobs, force=args.force, progress=step)
    say(args, f"{done.text}\n{done.folder}")
    return 0


def callouts_command(args: argparse.Namespace) -> int:
    """Run one step of a callout policy."""
    from dynchoice.run import callout_job as callouts
    from dynchoice.run.progress import progress_of

    job = callouts.load_job(args.run, changes(args.set))
    with progress_of(args.quiet, args.log) as progress:
        step = args.stop.between(progress)
        if args.step == "train":
            text = callouts.train(job, step)
        elif args.step == "score":
            text = str(callouts.score(job, name=args.name, now=args.now, progress=step))
        else:
            text = callouts.evaluate(job, now=args.now, progress=step)
    say(args, text)
    return 0


def warm_command(args: argparse.Namespace) -> int:
    """Compile all kernels."""
    from dynchoice.run.progress import progress_of
    from dynchoice.run.warm_up import warm_up

    with progress_of(args.quiet) as progress:
        ready = warm_up(args.stop.between(progress))
    say(args, f"{sum(ready.values())} kernels are ready")
    return 0


def kept_traceback(clean: Callable[[str], str]) -> str:
    """Write what went wrong in full to a file and return its name, for a report of a mistake."""
    try:
        fd, name = tempfile.mkstemp(prefix="dynchoice-error-", suffix=".txt")
        with os.fdopen(fd, "w", encoding="utf-8") as handle:
            handle.write(clean(traceback.format_exc()))
    except OSError:
        return "nowhere: the disk cannot be written"
    return name


def on_one_screen(text: str) -> str:
    """Return a message cut to a screen, without what would upset a terminal or a log."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    lines = [x if len(x) <= WIDEST else f"{x[:WIDEST]}..." for x in plain.splitlines()]
    if len(lines) > TALLEST:
        lines = [*lines[:TALLEST], f"... and {len(lines) - TALLEST} more lines"]
    return "\n".join(lines)[:MOST_LETTERS]


def failed(args: argparse.Namespace, text: str, code: int) -> int:
    """Say what went wrong, without secrets, and return the exit code."""
    line = f"dynchoice: {on_one_screen(cleaner(args)(text))}"
    if getattr(args, "log", "auto") == "json":
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": when, "level": "error", "message": line, "exit_code": code}
        line = json.dumps(record, ensure_ascii=False)
    try:
        sys.stderr.write(f"{line}\n")
    except OSError:  # nobody reads: the exit code still says it
        return code
    return code


def run(args: argparse.Namespace) -> int:
    """Run a command and return the exit code; whatever goes wrong becomes a message."""
    from dynchoice.run.progress import Interrupted

    try:
        return int(args.run_command(args))
    except BaseException as error:
        if isinstance(error, Interrupted | KeyboardInterrupt) or args.stop.asked:
            text, published = outcome_of(args)
            return failed(args, f"interrupted; {text}", 0 if published else INTERRUPTED)
        if not isinstance(error, Exception):
            raise
        return report_error(args, error)


def report_error(args: argparse.Namespace, error: Exception) -> int:
    """Say what went wrong and return the exit code."""
    from dynchoice.errors import DynChoiceError

    if isinstance(error, DynChoiceError):
        return failed(args, f"{type(error).__name__}: {error}", error.exit_code)
    text, published = outcome_of(args)
    if isinstance(error, MemoryError):
        return failed(args, f"out of memory; {text}", 0 if published else 1)
    if isinstance(error, BrokenPipeError):  # who reads our output has gone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return 0 if published else 1
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        where = f" ({error.filename})" if error.filename else ""
        why = "the disk is full" if full else f"{error.strerror or error}"
        if published:  # what could not be written is what it said
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return failed(args, f"{why}{where}; {text}", 0 if published else 1)
    reason = " ".join(cleaner(args)(str(error)).split())[:300]
    return failed(
        args,
        f"unexpected {type(error).__name__}: {reason}\nThis is a mistake in dynchoice; {text}."
        f" Please report it with {kept_traceback(cleaner(args))}",
        1,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    from dynchoice.run.progress import Stop

    args = parser().parse_args(argv)
    # a scheduler's SIGTERM should stop like Ctrl-C: temporary files removed, nothing published
    args.stop = Stop(lambda: failed(args, STUCK, INTERRUPTED))
    with args.stop.listening():
        return run(args)


if __name__ == "__main__":
    sys.exit(main())
