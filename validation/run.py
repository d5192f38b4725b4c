"""Run all studies, or those named, and write REPORT.md; exit 4 if a claim fails.

python validation/run.py [--quick] [rust1987 houston coverage ...]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def load(name: str):
    """Import validation/NAME/run.py under a name that worker processes can import as well."""
    return importlib.import_module(f"{name}.run")


def main() -> int:
    known = sorted(p.parent.name for p in HERE.glob("*/run.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="each study under a minute")
    args = parser.parse_args()
    unknown = [s for s in args.studies if s not in known]
    if unknown:
        parser.error(f"no study {unknown[0]!r}; known: {', '.join(known)}")
    from dynchoice import __version__

    when = datetime.now(UTC).isoformat(timespec="seconds")
    parts = [f"# Validation of dynchoice {__version__}, {when}\n"]
    failures = 0
    lines = []
    for name in args.studies or known:
        print(f"== {name}", flush=True)
        study = load(name).run(args.quick)
        parts.append(study.report())
        failures += len(study.failed)
        lines += [json.dumps({"study": name, **c}) for c in study.claims]
    (HERE / "REPORT.md").write_text("\n".join(parts), encoding="utf-8")
    (HERE / "claims.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{failures} claim(s) fail; see {HERE / 'REPORT.md'}")
    return 4 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
