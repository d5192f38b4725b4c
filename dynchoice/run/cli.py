"""The command line: ``dynchoice forecast RUN.toml`` and ``dynchoice warm-up``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynchoice.typing import Progress

EPILOG = """exit codes: 0 done, 1 unexpected, 2 bad configuration or usage, 3 not converged,
4 a check failed, 5 data refused, 75 another run holds the lock"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    from dynchoice import __version__

    top = argparse.ArgumentParser(
        prog="dynchoice",
        description="Dynamic discrete choice models of membership.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"dynchoice {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    job = commands.add_parser(
        "forecast",
        help="estimate by segment and forecast scenarios from a run file",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    job.add_argument("run", metavar="RUN.toml", help="the run file")
    job.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run file, e.g. --set forecast.draws=0 (a TOML value)",
    )
    job.add_argument("--jobs", type=int, default=1, metavar="N", help="segments at once")
    job.add_argument("--quiet", action="store_true", help="print nothing on success")
    job.set_defaults(run_command=forecast_command)
    warm = commands.add_parser(
        "warm-up",
        help="compile every kernel now, so that no run has to",
        description="Compile every kernel now, so that no run has to: once in a container image or"
        " on a new machine. They are kept where DYNCHOICE_CACHE says, else beside the package or in"
        " the user's cache folder.",
    )
    warm.add_argument("--quiet", action="store_true", help="print nothing on success")
    warm.set_defaults(run_command=warm_command)
    return top


def changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``--set`` arguments as dotted key -> value (TOML values; bare words are texts)."""
    import tomllib

    from dynchoice.errors import ConfigError

    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r}: expected KEY=VALUE, e.g. forecast.draws=0")
        try:
            out[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            out[key.strip()] = text
    return out


def forecast_command(args: argparse.Namespace) -> None:
    """Run the forecast with a progress bar on a terminal and plain lines elsewhere."""
    from dynchoice.run.config import load_run
    from dynchoice.run.job import run_forecast

    run = load_run(args.run, changes(args.set))
    with progress_of(args.quiet) as progress:
        folder = run_forecast(run, jobs=args.jobs, progress=progress)
    if not args.quiet:
        sys.stdout.write(f"{folder}\n")


def warm_command(args: argparse.Namespace) -> None:
    """Compile all kernels."""
    from dynchoice.run.warm import warm_up

    with progress_of(args.quiet) as progress:
        found = warm_up(progress)
    if not args.quiet:
        sys.stdout.write(f"{sum(found.values())} kernels are ready\n")


@contextmanager
def progress_of(quiet: bool) -> Iterator[Progress | None]:
    """Yield what draws a bar on a terminal, writes plain lines elsewhere, or None."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Bars(*columns, transient=True) as bar:
            task = bar.add_task("starting", total=None)

            def draw(done: int, total: int, text: str) -> None:
                bar.update(task, completed=done, total=total, description=text)

            yield draw
    else:

        def tell(done: int, total: int, text: str) -> None:
            sys.stderr.write(f"[{done}/{total}] {text}\n")

        yield tell


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = parser().parse_args(argv)
    # a scheduler's SIGTERM should stop like Ctrl-C: temporary files removed, nothing published
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from dynchoice.errors import DynChoiceError

    try:
        args.run_command(args)
    except DynChoiceError as error:
        sys.stderr.write(f"dynchoice: {type(error).__name__}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("dynchoice: interrupted; nothing was published\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
