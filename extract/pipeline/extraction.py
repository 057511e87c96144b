"""One run of refavs-extract: what is missing of a source, computed by workers and committed to the store."""

import errno
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from extract.encoders.presets import Encoders, Preset
from extract.media.notes import counted
from extract.pipeline.log import RunLog
from extract.pipeline.plan import (
    Job,
    array_specs,
    expressions_table,
    plan_jobs,
    refuse_replaced,
    shares_of,
    wanted_items,
)
from extract.pipeline.ray_pool import Resources, run_jobs
from extract.pipeline.worker import JobResult
from refavs.choices import MaskRule
from refavs.data.layouts import Source
from refavs.errors import RefAVSError
from refavs.store.backends.base import Folder
from refavs.store.format.commits import REMEDY, lacking, record_name
from refavs.store.lease import Lease
from refavs.store.writer import StoreWriter
from refavs.terminal.command import Exit
from refavs.terminal.console import PlainConsole, ProgressBar
from refavs.terminal.printing import say, show_trace, warn

NAME = "refavs-extract"
TABLES = ("clips", "objects", "text")
MOST_NAMED = 20
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line asks for."""

    folder: Folder
    source: Source
    preset: Preset
    encoders: Encoders
    resources: Resources
    log: Path | None
    mask_rule: MaskRule
    extraction: dict[str, Any]

    def description(self) -> dict[str, Any]:
        """What a store is opened with."""
        return {
            "encoders": self.encoders.fingerprints(), "source": f"{self.source.layout} {self.source.root}",
            "num_frames": self.preset.num_frames, "input_size": self.preset.input_size,
            "specs": array_specs(self.preset, self.encoders), "rows_per_shard": self.preset.rows_per_shard,
            "mask_rule": self.mask_rule if len(self.source.objects) else None, "extraction": self.extraction,
            "splits": dict(self.source.splits),
        }  # fmt: skip


@dataclass
class Totals:
    """What one run did."""

    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    failures: list[str] = field(default_factory=list)
    num_bytes: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)

    def add(self, result: JobResult) -> None:
        self.done[result.table] += result.num_done
        self.num_bytes += result.num_bytes
        self.odd.update(result.odd)
        self.failures += [f"{result.table} {key}: {reason}" for key, reason in result.failures.items()]
        if result.error is not None:
            self.broken[result.trace] += 1


def complete(run: Run, writer: StoreWriter, lease: Lease, keeps: bool) -> int:
    """Writes what is missing in a store that this process holds; the table of expressions unless it `keeps` that."""
    started = time.monotonic()
    source = run.source
    refuse_replaced(writer, source.clips)
    _report(source, run.encoders)
    jobs = plan_jobs(writer, wanted_items(source, run.mask_rule), shares_of(writer, source.clips))
    totals = Totals()
    if jobs:
        work(run, writer, lease, jobs, totals)
    lease.check()
    if not keeps:
        writer.write_expressions(expressions_table(source, {table: writer.committed(table) for table in TABLES}))
    lease.check()
    writer.finalise()
    _add_waiting(writer, source, totals)
    return _summary(source, writer, totals, jobs, time.monotonic() - started)


def work(run: Run, writer: StoreWriter, lease: Lease, jobs: Sequence[Job], totals: Totals) -> None:
    """Has the jobs done by workers, and shows how it goes."""
    num_keys = Counter({table: 0 for table in TABLES})
    for job in jobs:
        num_keys[job.shard.table] += len(job.shard.keys)
    with RunLog(run.log, num_keys) as log, closing(
        run_jobs(jobs, writer.location, run.preset, run.encoders, run.resources, log.note)
    ) as results:  # closed here, so that no worker writes on when the lease is given back
        next(results)
        with ProgressBar(NAME, num_keys.total(), "clips, objects and texts") as bar:
            for result in results:
                lease.check()
                log.add(result)
                if result is None:
                    bar.advance(0, log.brief())
                    continue
                stop_at(result.error)
                totals.add(result)
                bar.advance(result.num_done + len(result.failures), log.brief())


def _add_waiting(writer: StoreWriter, source: Source, totals: Totals) -> None:
    """Names clips whose features are another clip's that failed: they have none until that one is mended."""
    committed, here = writer.committed("clips"), {clip.id for clip in source.clips}
    for record in writer.records("clips"):
        file = writer.folder.where(record_name(record.table, record.index))
        for key in sorted(record.shares.keys() - committed.keys()):
            lost = sorted(set(record.shares[key].values()) - committed.keys())
            why = "which failed" if here.issuperset(lost) else f"which SOURCE lacks; as to {file}: {REMEDY}"
            totals.failures.append(f"clips {key}: has the same input as {', '.join(lost)}, {why}")


def stop_at(error: Exception | None) -> None:
    """Raises what would break every other shard as well: a full disk, missing weights, a store that is gone."""
    if isinstance(error, RefAVSError) or (isinstance(error, OSError) and error.errno in _WRITE_ERRORS):
        raise error


def _report(source: Source, encoders: Encoders) -> None:
    if source.report.counts:
        for line in source.report.lines():
            say(line)
    cut = encoders.text.overlong(dict.fromkeys(source.expressions["text"]))
    if cut:
        named = [f"  {length} tokens: {text!r}" for text, length in list(cut.items())[:MOST_NAMED]]
        more = [f"  and {len(cut) - MOST_NAMED} more"] if len(cut) > MOST_NAMED else []
        limit = encoders.text.settings.length
        for line in [f"{len(cut)} expressions have more than {limit} tokens and lose their end:", *named, *more]:
            say(line)


def _summary(source: Source, writer: StoreWriter, totals: Totals, jobs: Sequence[Job], seconds: float) -> int:
    if incomplete := [record for record in writer.records() if lacking(record, writer.schema)]:
        paths = sorted({path for record in incomplete for path in lacking(record, writer.schema)})
        say(f"{len(incomplete)} shards of {writer.location} still lack {', '.join(paths)}; run the command again "
              "with a SOURCE that has all of their clips")  # fmt: skip
    if not jobs and not totals.failures:
        say(f"nothing to do: all {len(source.clips)} clips of {source.root} are in {writer.location}")
        return Exit.COMPLETE
    table = Table("", "now", "in the store", title=writer.location)
    for name in TABLES:
        table.add_row(name, str(totals.done[name]), str(len(writer.committed(name))))
    sharing = sum(len(job.shard.shares) for job in jobs if not job.shard.adds)
    table.add_row("sharing", str(sharing), str(len(writer.shared("clips"))))
    table.add_row("failures", str(len(totals.failures)), "")
    in_store = counted(facts for record in writer.records("clips") for facts in record.meta.values())
    for name in in_store:
        table.add_row(f"noted {name}", str(totals.odd[name]), str(in_store[name]))
    table.add_row("bytes", f"{totals.num_bytes:,}", "")
    table.add_row("seconds", f"{seconds:.1f}", "")
    table.add_row("clips/s", f"{totals.done['clips'] / seconds:.2f}", "")
    PlainConsole().print(table)
    for failure in totals.failures:
        warn(f"{NAME}: {failure}")
    for trace, count in totals.broken.items():
        show_trace(trace.rstrip("\n"))
        warn(f"{NAME}: so {count} shards broke")
    if totals.broken:
        return Exit.ERROR
    return Exit.FAILURES if totals.failures else Exit.COMPLETE


