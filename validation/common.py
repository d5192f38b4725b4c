"""What validation studies share: where data are, how claims are checked and reported."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def shared_data() -> Path:
    """Return the folder of real data, or stop with a clear message."""
    folder = Path(os.environ.get("DYNCHOICE_DATA", HERE.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"real data are absent: set DYNCHOICE_DATA to their folder (looked in {folder})")
    return folder


@dataclass
class Study:
    """Collects claims of one study; each is a number against an expected one."""

    name: str
    claims: list[dict[str, Any]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def check(self, what: str, got: float, want: float, tolerance: float, kind: str) -> None:
        """Record whether ``got`` is within ``tolerance`` of ``want``."""
        self.claims.append(
            {
                "claim": what,
                "got": float(got),
                "want": float(want),
                "tolerance": tolerance,
                "kind": kind,
                "ok": bool(abs(got - want) <= tolerance),
            }
        )

    def within(self, what: str, got: float, low: float, high: float, kind: str) -> None:
        """Record whether ``got`` lies between two bounds."""
        middle, half = (low + high) / 2, (high - low) / 2
        self.check(what, got, middle, half, kind)

    def say(self, text: str) -> None:
        """Add a table or paragraph to the report, and print it."""
        self.tables.append(text)
        print(text, flush=True)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Claims that do not hold."""
        return [c for c in self.claims if not c["ok"]]

    def report(self) -> str:
        """Return the study as Markdown."""
        seconds = time.perf_counter() - self.started
        head = f"## {self.name}\n\n{len(self.claims) - len(self.failed)} of {len(self.claims)}"
        lines = [f"{head} claims hold ({seconds:.0f} s).\n"]
        if self.claims:
            lines += [
                "| claim | got | expected | tolerance | kind | |",
                "|---|---|---|---|---|---|",
            ]
        lines += [
            f"| {c['claim']} | {c['got']:.6g} | {c['want']:.6g} | {c['tolerance']:.2g} |"
            f" {c['kind']} | {'ok' if c['ok'] else '**FAILS**'} |"
            for c in self.claims
        ]
        return "\n".join([*lines, "", *(f"```\n{t}\n```\n" for t in self.tables)])


def leave(study: Study) -> None:
    """Write claims and tables where ``VALIDATION_OUT`` says: for a report over many processes."""
    target = os.environ.get("VALIDATION_OUT")
    if target:
        text = json.dumps({"claims": study.claims, "tables": study.tables})
        Path(target).write_text(text, encoding="utf-8")


def end(study: Study) -> None:
    """Print the claims that fail and leave with exit code 4 if there are any."""
    leave(study)
    for claim in study.failed:
        print("FAILS", json.dumps(claim))
    held = len(study.claims) - len(study.failed)
    print(f"{study.name}: {held} of {len(study.claims)} claims hold")
    sys.exit(4 if study.failed else 0)


def expected(study: Path) -> dict[str, Any]:
    """Read the numbers that a study must reproduce."""
    return tomllib.loads((study / "expected.toml").read_text(encoding="utf-8"))


def main(run: Callable[[bool], Study]) -> None:
    """Run one study from the command line; exit 4 if a claim fails."""
    parser = argparse.ArgumentParser(description=sys.modules[run.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    end(run(parser.parse_args().quick))
