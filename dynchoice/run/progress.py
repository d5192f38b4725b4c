"""How a run tells what it does: bars on a terminal, plain or JSON lines elsewhere."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from dynchoice.typing import Progress

STOPPING = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 10.0
"""Seconds that a signal may take to stop the main thread by itself."""


class Interrupted(BaseException):
    """A signal asked to stop.

    No ``KeyboardInterrupt``: where one has passed through ``exec``, as formulas are evaluated,
    CPython dies of the signal at its end instead of leaving with the exit code.
    """


class Stop:
    """Whether a signal has asked to stop.

    A signal raises :class:`Interrupted` where it happens to come; a driver may turn that into an
    error of its own, and a destructor swallows it. So it is written down too, and looked at between
    steps and when anything goes wrong. Where the main thread is in a library that does not return
    (DuckDB, when a query is one long task), Python's handler never runs: a thread that hears the
    signal itself then ends the process, which is as safe as a ``kill -9``.

    Parameters
    ----------
    stuck : callable, optional
        Called with no argument before the process is ended so; returns its exit code.
    """

    def __init__(self, stuck: Callable[[], int] | None = None) -> None:
        self.asked = False
        self.stuck = stuck
        self.left = threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked = True
        raise Interrupted(signal.Signals(number).name)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM, as schedulers send it, and SIGINT; they come in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        hears, sends = socket.socketpair()
        sends.setblocking(False)
        before = {n: signal.signal(n, self) for n in STOPPING}
        wakeup = signal.set_wakeup_fd(sends.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._insist, args=(hears,), daemon=True).start()
        try:
            yield
        finally:
            self.left.set()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            sends.close()

    def _insist(self, hears: socket.socket) -> None:
        """End the process if the main thread has not left soon after a signal."""
        with hears:
            while number := hears.recv(1):
                if number[0] in STOPPING and self.stuck and not self.left.wait(PATIENCE):
                    os._exit(self.stuck())

    def look(self) -> None:
        """Stop here if that was asked for.

        Raises
        ------
        Interrupted
            It was.
        """
        if self.asked:
            raise Interrupted

    def between(self, progress: Progress | None) -> Progress:
        """Return progress that looks before every step, whether or not it is shown."""

        def step(done: int, total: int, text: str) -> None:
            self.look()
            if progress is not None:
                progress(done, total, text)

        return step


class Lines(logging.Formatter):
    """One JSON object a line: time, level, logger, message."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        super().__init__()
        self.clean = clean

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        own = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({**own, "message": self.clean(record.getMessage())}, ensure_ascii=False)


class Plain(logging.Formatter):
    """``level: message``."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        super().__init__()
        self.clean = clean

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line of text."""
        return f"{record.levelname.lower()}: {self.clean(record.getMessage())}"


@contextmanager
def progress_of(
    quiet: bool, log: str = "auto", clean: Callable[[str], str] = str
) -> Iterator[Progress | None]:
    """Yield what draws a bar on a terminal, writes lines elsewhere, or None.

    Warnings of the package's loggers go the same way; ``clean`` takes secrets out of every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(clean) if log == "json" else Plain(clean))
    handler.setLevel(logging.WARNING)
    root = logging.getLogger("dynchoice")
    root.addHandler(handler)
    try:
        if log == "json":
            yield None if quiet else json_lines(clean)
        elif quiet:
            yield None
        elif sys.stderr.isatty() and log == "auto":
            with bar() as draw:
                yield draw
        else:
            yield lambda done, total, text: write(f"[{done}/{total}] {clean(text)}\n")
    finally:
        root.removeHandler(handler)


def write(text: str) -> None:
    """Write to the error stream at once."""
    sys.stderr.write(text)
    sys.stderr.flush()


def json_lines(clean: Callable[[str], str]) -> Progress:
    """Return progress that writes one JSON object a step."""

    def tell(done: int, total: int, text: str) -> None:
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": "info", "message": clean(text)}
        write(json.dumps({**line, "done": done, "total": total}, ensure_ascii=False) + "\n")

    return tell


@contextmanager
def bar() -> Iterator[Progress]:
    """Yield progress that draws one bar."""
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bars(*columns, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def draw(done: int, total: int, text: str) -> None:
            bars.update(task, completed=done, total=total, description=escape(text))

        yield draw
