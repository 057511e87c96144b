"""One run of refavs-extract: workers compute what is missing of a source and commit it to the store."""

import errno
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from extract.encoders.streams import StreamSet, rows_within
from extract.encoders.weights import WeightSource
from extract.media.notes import counted
from extract.pipeline.content import Content, contents_of
from extract.pipeline.log import RunLog
from extract.pipeline.plan import ORDER, Job, Kind, Unit, plan_jobs, wanted_units
from extract.pipeline.ray_pool import PoolResources, run_jobs
from extract.pipeline.tables import refuse_replaced, write_tables
from extract.pipeline.worker import JobResult
from refavs.choices import MaskRule
from refavs.data.layouts import Source
from refavs.errors import RefAVSError
from refavs.files.path_text import path_text
from refavs.store.backends.base import Folder
from refavs.store.format.mask_rows import MaskSize, mask_shape
from refavs.store.format.schema import StoreSchema, StreamSpec
from refavs.store.lease import Lease
from refavs.store.writer import StoreWriter
from refavs.terminal.command import Exit
from refavs.terminal.console import PlainConsole, ProgressBar
from refavs.terminal.printing import say, show_trace, warn

NAME = "refavs-extract"
MANY_CLIPS = 500  # from this number on, hashing has a progress bar
MASK_SHARD_BYTES, MOST_OBJECTS = 2**24, 128
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """A run as requested by the command line.

    Attributes:
        choose: creates the streams with other weights, given the weights source of each encoder.
        weights: the user's choice of weights.
        mask_size: as `StoreSchema` has it.
        keeps_expressions: the source has no expressions, so those of the store stay.
    """

    folder: Folder
    source: Source
    streams: StreamSet
    choose: Callable[[Callable[[str], WeightSource]], StreamSet]
    weights: WeightSource
    resources: PoolResources
    log: Path | None
    mask_rule: MaskRule
    mask_size: MaskSize
    keeps_expressions: bool
    extraction: dict[str, Any]

    def schema(self, streams: Mapping[str, StreamSpec]) -> StoreSchema:
        """The store that the run asks for, with these specifications of its streams."""
        steps = self.streams.steps
        height, width = mask_shape(self.mask_size)
        mask_bytes = len(steps) * height * -(-width // 8)
        return StoreSchema(
            streams=dict(streams), source=f"{self.source.layout} {path_text(self.source.root)}", seconds=steps.seconds,
            fps=steps.fps, mask_size=self.mask_size, extraction=self.extraction, splits=dict(self.source.splits),
            objects_per_shard=rows_within(MASK_SHARD_BYTES, mask_bytes, MOST_OBJECTS),
            mask_rule=self.mask_rule if len(self.source.objects) else None,
        )  # fmt: skip

    def contents(self) -> tuple[dict[str, Content], dict[str, str]]:
        """The content keys of the clips, and the reasons why others cannot be read; with a progress bar if many."""
        clips, steps = self.source.clips, self.streams.steps
        if len(clips) < MANY_CLIPS:
            return contents_of(clips, steps)
        with ProgressBar("reading the clips", len(clips), "clips") as bar:
            return contents_of(clips, steps, bar.advance)


@dataclass
class Totals:
    """Totals of one run."""

    done: Counter[str] = field(default_factory=Counter)
    failures: dict[tuple[Kind, str], str] = field(default_factory=dict)
    num_bytes: int = 0
    broken: Counter[str] = field(default_factory=Counter)

    def add(self, result: JobResult) -> None:
        self.done[result.kind] += result.num_done
        self.num_bytes += result.num_bytes
        self.failures |= {(result.kind, name): reason for name, reason in result.failures.items()}
        if result.error is not None:
            self.broken[result.trace] += 1


def complete(run: Extraction, writer: StoreWriter, lease: Lease, refill: bool = False) -> int:
    """Computes what is missing in a store whose lease this process holds; returns the exit status.

    Args:
        refill: removed shards get the rows that they had, as `plan_jobs` says.
    """
    started = time.monotonic()
    source = run.source
    contents, unreadable = run.contents()
    refuse_replaced(writer, contents)
    _report(run)
    wanted = wanted_units(source, run.streams, contents, run.mask_rule)
    jobs = plan_jobs(writer, wanted, refill=refill)
    totals = Totals(failures={("clips", name): reason for name, reason in unreadable.items()})
    if jobs:
        _work(run, writer, lease, jobs, totals)
    if totals.failures:
        _add_twins(writer, wanted["clips"], totals)
    lease.check()
    write_tables(writer, source, contents, with_expressions=not run.keeps_expressions)
    lease.check()
    writer.finalise()
    return _summary(run, writer, totals, jobs, contents, time.monotonic() - started)


def _work(run: Extraction, writer: StoreWriter, lease: Lease, jobs: Sequence[Job], totals: Totals) -> None:
    """Runs the jobs on workers and shows the progress."""
    num_units: Counter[str] = Counter(dict.fromkeys(ORDER, 0))
    for job in jobs:
        num_units[job.kind] += len(job.units)
    with RunLog(run.log, num_units) as log, closing(
        run_jobs(jobs, writer.location, run.streams, run.resources, log.note)
    ) as results:  # closed here, so that no worker writes after the lease is released
        next(results)
        with ProgressBar(NAME, num_units.total(), "clips, objects and texts") as bar:
            for result in results:
                lease.check()
                log.add(result)
                if result is None:
                    bar.advance(0, log.brief())
                    continue
                stop_at(result.error)
                totals.add(result)
                bar.advance(result.num_done + len(result.failures), log.brief())


def _add_twins(writer: StoreWriter, clips: Sequence[Unit], totals: Totals) -> None:
    """Adds the failures of clips that share frames or audio with a clip that failed."""
    committed: dict[str, Mapping[str, int]] = {}
    owners: dict[tuple[str, str], str] = {}
    for clip in clips:
        for table, key in clip.keys.items():
            if key not in committed.setdefault(table, writer.committed(table)):
                owner = owners.setdefault((table, key), clip.name)
                if owner != clip.name:
                    reason = f"it has the same {table.split('/')[0]} input as {owner}, which failed"
                    totals.failures.setdefault(("clips", clip.name), reason)


def stop_at(error: Exception | None) -> None:
    """Raises errors that would break every other job too: a full disk, missing weights, a missing store."""
    if isinstance(error, RefAVSError) or (isinstance(error, OSError) and error.errno in _WRITE_ERRORS):
        raise error


def _report(run: Extraction) -> None:
    """Prints the report on the source, and the inputs that encoders will truncate."""
    if run.source.report.counts:
        for line in run.source.report.lines():
            say(line)
    texts = list(dict.fromkeys(run.source.expressions["text"]))
    for encoder in run.streams.encoders.values():
        for line in encoder.remarks(texts) if encoder.modality == "text" else ():
            say(line)


def _summary(
    run: Extraction, writer: StoreWriter, totals: Totals, jobs: Sequence[Job], contents: Mapping[str, Content],
    seconds: float,
) -> int:
    """Prints what was done and what the store has now; returns the exit status."""
    if not jobs and not totals.failures:
        say(f"nothing to do: all {len(contents)} clips of {run.source.root} are in {writer.location}")
        return Exit.COMPLETE
    table = Table("", "now", "in the store", title=writer.location)
    known = writer.table("clips")
    clips = [] if known is None else known.to_dict("records")
    texts, objects = writer.table("text"), writer.committed("objects")
    in_store = {"clips": len(clips), "text": 0 if texts is None else len(texts), "objects": len(objects)}
    for kind in ORDER:
        table.add_row(kind, str(totals.done[kind]), str(in_store[kind]))
    table.add_row("failures", str(len(totals.failures)), "")
    for name, count in counted(clips).items():
        table.add_row(f"noted {name}", "", str(count))
    for name in sorted(writer.schema.streams):
        table.add_row(name, "", f"{len(writer.committed(name))} rows")
    table.add_row("bytes", f"{totals.num_bytes:,}", "")
    table.add_row("seconds", f"{seconds:.1f}", "")
    table.add_row("clips/s", f"{totals.done['clips'] / seconds:.2f}", "")
    PlainConsole().print(table)
    for (kind, name), reason in totals.failures.items():
        warn(f"{NAME}: {kind} {name}: {reason}")
    for trace, count in totals.broken.items():
        show_trace(trace.rstrip("\n"))
        warn(f"{NAME}: {count} jobs broke for this reason")
    if totals.broken:
        return Exit.ERROR
    return Exit.FAILURES if totals.failures else Exit.COMPLETE
