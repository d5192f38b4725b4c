"""Publishing a run: guard rails, its folder and files, ``current``, what is left of older runs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynchoice.errors import CheckError
from dynchoice.names import BASELINE
from dynchoice.run import manifest, publish, source
from dynchoice.run.progress import Interrupted
from dynchoice.run.publish import COMPLETE, HELD, PARTIAL, Outcome, Published
from dynchoice.run.stage_work import Job, steps_of

if TYPE_CHECKING:
    import pandas as pd

    from dynchoice.run.guard import Finding

logger = logging.getLogger("dynchoice.run")

RECENT = 3
"""Runs whose stages stay, so that going back to an older run file is quick."""


class Release:
    """What follows once every stage of a job is done."""

    def __init__(self, job: Job, segments: list[str]) -> None:
        self.job, self.segments = job, segments
        self.run, self.stages, self.keys = job.run, job.stages, job.keys
        self.total = steps_of(segments)

    def publish(self) -> Outcome:
        """Write the run, or find that it is there, and let ``current`` point to it."""
        out, segments, total = self.run.out, self.segments, self.total
        digest = self.keys.whole(segments)
        partial = segments != self.job.choose(self.job.counted, by_hand=False)
        self.keys.refuse_changes()
        before = publish.current_run(out)
        notes = tuple(self.notes())
        force = self.job.options.force
        if partial:
            same = None if force else publish.same_run(out, digest, PARTIAL, before)
            written = same or self.write([], digest, PARTIAL, before)
            self.tidy()
            self.job.tell(total, total, f"{written.folder}: some segments only, not published")
            return Outcome(written.folder, PARTIAL, digest, tuple(self.stages.fresh), notes)
        again = force and bool(self.stages.fresh)
        if not again and before is not None and before.digest == digest and before.whole():
            self.job.tell(total, total, f"nothing has changed since {before.folder.name}")
            return Outcome(before.folder, "unchanged", digest, (), notes)
        # a run that was killed between its writing and its publication
        whole = None if again else publish.same_run(out, digest, COMPLETE, before)
        written = whole or self.guarded(digest, before)
        try:
            publish.point_to(out, written)
        except (OSError, Interrupted):
            after = publish.current_run(out)
            if after is None or after.folder != written.folder:
                raise
        try:
            self.tidy()
            self.job.tell(total, total, f"published {written.folder}")
        except (OSError, Interrupted) as error:  # nobody listens, or a signal: it is published
            logger.warning("after the publication: %s", type(error).__name__)
        return Outcome(written.folder, COMPLETE, digest, tuple(self.stages.fresh), notes)

    def guarded(self, digest: str, before: Published | None) -> Published:
        """Write the run if no guard rail holds it; else write it for inspection and say so."""
        from dynchoice.run.guard import breaches, guard_rails, unreadable

        past = [r for r in publish.runs(self.run.out) if r.status == COMPLETE]
        tables = self.tables()
        params = {m: list(self.stages.done[f"estimate/{m}"].facts["params"]) for m in self.segments}
        count = {**self.job.counted.facts, "chosen": self.segments, "parameters": params}
        previous = self.predecessor(before, past, digest)
        findings = guard_rails(self.run.spec.guard, count, tables, self.cohorts(), previous, past)
        if previous is None and (past or (self.run.out / publish.CURRENT).is_symlink()):
            findings.append(unreadable(self.run.spec.guard))
        broken = breaches(findings)
        if broken and not self.job.options.accept:
            same = publish.same_run(self.run.out, digest, HELD, before)
            written = same or self.write(findings, digest, HELD, before, tables)
            self.tidy()
            lines = "\n".join(f"- {f.guard}: {f.text} (limit {f.limit:g})" for f in broken)
            raise CheckError(
                f"{len(broken)} guard rail(s) hold this run:\n{lines}\nIt is kept in"
                f" {written.folder}; current is as it was. If the change is right, publish it with"
                " --accept"
            )
        self.job.tell(self.total - 1, self.total, "writing")
        return self.write(findings, digest, COMPLETE, before, tables)

    @staticmethod
    def predecessor(
        before: Published | None, past: list[Published], digest: str
    ) -> Published | None:
        """Return the run to compare with: the one published, or the newest that is whole."""
        if before is not None and (before.digest == digest or before.whole()):
            return before
        return next((r for r in reversed(past) if r.whole()), None)

    def cohorts(self) -> pd.DataFrame:
        """Return what members seen at earlier origins chose since."""
        import pandas as pd

        return pd.read_parquet(self.job.counted.file("cohorts.parquet"))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return all tables of the run but the guard's, from what the stages wrote."""
        import pandas as pd

        from dynchoice.run.tables import FORECAST, estimates_table

        done = self.stages.done
        out = {"estimates": estimates_table(self.job.fits)}
        for name in FORECAST:
            files = [done[f"forecast/{n}"].file(f"{name}.parquet") for n in self.keys.names]
            # of some tables (revenue, long_run) a scenario may have no rows
            parts = [pd.read_parquet(f) for f in files if f.exists()]
            if parts:
                out[name] = pd.concat(parts, ignore_index=True)
        for name in ("diagnostics", "fit"):
            files = [done[f"diagnose/{m}"].file(f"{name}.parquet") for m in self.segments]
            out[name] = pd.concat([pd.read_parquet(f) for f in files], ignore_index=True)
        return out

    def write(
        self,
        findings: list[Finding],
        digest: str,
        status: str,
        before: Published | None,
        tables: dict[str, pd.DataFrame] | None = None,
    ) -> Published:
        """Write a run's folder."""
        from dynchoice.run.guard import guard_table

        whole = dict(tables or self.tables())
        if findings:
            whole["guard"] = guard_table(findings)

        def write(folder: Path) -> Mapping[str, Any]:
            facts = self.facts(digest, status, before)
            return write_outputs(self.job, folder, whole, facts)

        return publish.write_run(self.run.out, self.job.begun, write)

    def facts(self, digest: str, status: str, before: Published | None) -> dict[str, Any]:
        """Return what the manifest says beside its tables."""
        spec, done = self.run.spec, self.stages.done
        count = self.job.counted.facts
        base = done[f"forecast/{BASELINE}"].facts
        return {
            "started": self.job.begun.isoformat(timespec="microseconds"),
            "status": status,
            "digest": digest,
            "previous": None if before is None else before.folder.name,
            "accepted": self.job.options.accept,
            "run_file": self.run.source.name,
            "config": spec.model_dump(mode="json", by_alias=True),
            "versions": dict(manifest.versions()),
            "source": source.describe_source(self.run),
            "inputs": self.keys.inputs(),
            "panel": {
                **{k: count[k] for k in ("rows", "members", "refused", "first", "last", "kind")},
                **{k: count[k] for k in ("first_label", "last_label", "report")},
            },
            "data_digest": count["digest"],
            "seed": spec.forecast.seed,
            "jobs": self.job.options.jobs,
            "fits": {m: done[f"estimate/{m}"].facts for m in self.segments},
            "forecast": {
                **{k: base[k] for k in ("message", "draws", "level")},
                "notes": self.collect("notes"),
            },
            "scenarios": self.keys.names[1:],
            "notes": self.notes(),
            "stages": {name: s.folder.name for name, s in done.items()},
            "fresh": list(self.stages.fresh),
            "timings": {name: s.seconds for name, s in done.items()},
        }

    def notes(self) -> list[str]:
        """Return what a reader should know: warnings of all stages, scenarios left out."""
        return list(dict.fromkeys([*self.collect("warnings"), *self.keys.left_out]))

    def collect(self, kind: str) -> list[str]:
        """Return notes or warnings of all stages, without those about scenarios that are gone."""
        said = [w for s in self.stages.done.values() for w in s.facts.get(kind, ())]
        current = [f"scenario {n!r}" for n in self.keys.names]
        kept = [w for w in said if "scenario '" not in w or any(n in w for n in current)]
        return list(dict.fromkeys(kept))

    def tidy(self) -> None:
        """Remove runs beyond ``output.keep`` and stages that no run kept goes back to.

        Stages done since the oldest of the last runs (of whatever outcome) stay: they may
        be the finished part of something that was killed.
        """
        try:
            publish.prune_runs(self.run.out, self.run.spec.output.keep)
            last = publish.runs(self.run.out)[-RECENT:]
            if len(last) > 1:
                since = min(r.folder.stat().st_mtime for r in last)
                self.stages.prune(publish.stages_in_use(self.run.out, RECENT), since)
        except OSError as error:  # the run is published all the same
            logger.warning("old stages stay: %s", error)


# the files of a run ---------------------------------------------------------------------------


def write_outputs(
    job: Job, folder: Path, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a run's files into a folder and return its manifest."""
    from dynchoice.run.tables import describe_tables, write_table

    output, done = job.run.spec.output, job.stages.done
    for name, table in tables.items():
        write_table(table, folder, name, output.csv)
    (folder / "results").mkdir()
    texts = []
    for i, segment in enumerate(job.segments_run):
        fit = done[f"estimate/{segment}"].file("results.npz")
        shutil.copyfile(fit, folder / "results" / f"{i:03d}-{slug(segment)}.npz")
        texts.append(done[f"diagnose/{segment}"].file("summary.txt").read_text(encoding="utf-8"))
    (folder / "summary.txt").write_text("\n".join(texts), encoding="utf-8")
    words = in_words(tables["take_up"], tables["badges"], facts)
    (folder / "forecast.txt").write_text(words + "\n", encoding="utf-8")
    shutil.copyfile(job.counted.file("panel.txt"), folder / "panel.txt")
    if output.picture:
        from dynchoice.plots.forecast import plot_forecast

        level, draws = (facts["forecast"][key] for key in ("level", "draws"))
        plot_forecast(tables["take_up"], level, draws, path=folder / "forecast.png")
    record = {**facts, "tables": describe_tables(tables)}
    if output.report:
        from dynchoice.run.report import write_report

        write_report(folder / "report.html", tables, record, job.run.spec.title)
    return record


def slug(segment: str) -> str:
    """Return a label as part of a file name."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in segment)
    return plain.strip("-").lower()[:60] or "segment"


def in_words(take_up: pd.DataFrame, badges: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """Return the last month's take-up by segment and scenario, and what each rests on."""
    table = take_up[take_up["period"] == take_up["period"].max()]
    when, level = table["label"].iloc[0], f"{facts['forecast']['level']:.0%}"
    lines = [f"Take-up in {when} (bands: {level} of draws, parameters and laws)"]
    for segment, part in table.groupby("segment", sort=False):
        lines.append(f"\n{segment}")
        for scenario, rows in part.groupby("scenario", sort=False):
            cells = [
                f"{r.choice} {r.share:.1%}"
                + (f" [{r.lower:.1%}, {r.upper:.1%}]" if r.lower == r.lower else "")
                for r in rows.itertuples()
            ]
            lines.append(f"  {scenario}: " + "; ".join(cells))
    lines.append("\nWhat the scenarios rest on")
    for r in badges[badges["scenario"] != BASELINE].itertuples():
        why = f" ({r.reasons})" if r.reasons else ""
        lines.append(f"  {r.segment}, {r.scenario}: {r.badge}{why}")
    return "\n".join(lines)
