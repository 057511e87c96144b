"""refavs-extract: frozen features of a benchmark or a folder of videos, into a store."""

import argparse
import errno
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from extract.check_weights import check_weights
from extract.encoders.visual import LEVELS, levels_of
from extract.estimate import calibrate, clip_bytes, missing_in
from extract.job import Resources, cluster_has_gpus, limited_by_gpus, num_processors, run_jobs
from extract.log import RunLog
from extract.notes import counted
from extract.plan import Job, array_specs, expressions_table, plan_jobs, refuse_replaced, shares_of, wanted_items
from extract.presets import PRESETS, Encoders, Preset, build_encoders, preset_named
from extract.weights import WeightSource
from extract.worker import JobResult
from refavs.accelerator import DEVICES, PRECISIONS, Precision, gpus_each, local_gpus_seen, slow_bf16
from refavs.cli import Exit, run_command
from refavs.console import ProgressBar
from refavs.data.bench import Source, read_source
from refavs.errors import ConfigError, RefAVSError
from refavs.store.columns import EXPRESSIONS_RECORD
from refavs.store.commits import REMEDY, lacking, record_name
from refavs.store.folder import Folder, LocalFolder, open_folder
from refavs.store.lease import Lease
from refavs.store.schema import LOG, StoreSchema, refuse_foreign
from refavs.store.writer import StoreWriter, planned_schema

NAME = "refavs-extract"
TABLES = ("clips", "objects", "text")
MOST_NAMED = 20
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=NAME, description="Extracts the frozen features of a source into a store; only what is missing there.",
        formatter_class=_Formatter,
        epilog="example:\n  refavs-extract videos/ features.zarr --preset tiny --expressions questions.csv\n\n"
        "exit status: 0 complete, 2 bad input, 3 finished but some clips failed (listed), 130 interrupted",
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", nargs="?",
        help="benchmark root (with metadata.csv) or a folder of videos")
    add("store", metavar="STORE", nargs="?",
        help="folder of the store, or a URL (s3://bucket/name); made where there is none, else completed")  # fmt: skip
    add("--preset", default="base", metavar="NAME", help=f"encoder sizes: {', '.join(PRESETS)}")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="weights of the encoders")
    add("--seed", type=int, default=0, help="of random weights")
    add("--weights-dir", type=Path, metavar="DIR",
        help="pretrained weights: mask2former/ (preset imagenet: swin/), roberta-base/ (preset released: "
        "distilroberta-base/) as on the hub, vggish.pth; or visual.safetensors for preset tiny; otherwise the hub's "
        "cache or a download")  # fmt: skip
    add("--levels", default="pixel_decoder", metavar="LEVELS",
        help=f"visual maps to keep: {','.join(LEVELS)} or one of them; added to those that the store has")  # fmt: skip
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="of Swin, pixel decoder and VGGish; auto: "
        "that of STORE, and fp32 for a new one, so that features are the same on every machine")  # fmt: skip
    add("--expressions", type=Path, metavar="CSV", help="columns video,exp: expressions about a folder of videos")
    add("--device", choices=DEVICES, default="auto",
        help="where the encoders run; auto takes GPUs where there are any, on this machine or the cluster")  # fmt: skip
    add("--workers", type=int, metavar="N", help="worker processes; default: one per processor, or per GPU")
    add("--gpus-per-worker", type=float, metavar="G", help="share of a GPU for each worker; default: 1 on a GPU")
    add("--batch-clips", type=int, metavar="N",
        help="clips in one pass through the visual encoder; default: 4 on a GPU, 1 on a processor")  # fmt: skip
    add("--log", type=Path, metavar="FILE", help="append JSON lines about the run: speed, stages, failures; default: "
        f"nothing on a terminal, else STORE.{LOG} beside a local store")  # fmt: skip
    add("--address", metavar="ADDRESS", help="a running Ray cluster; default: one on this machine for this run")
    add("--check-weights", type=Path, metavar="DIR",
        help="only say which pretrained weights of the preset DIR has, and what to fetch; without SOURCE and STORE")
    add("--dry-run", action="store_true", help="only say what would be done: clips, shards, bytes, time and cost")
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and the example as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-extract; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.check_weights is not None:
        return run_command(NAME, lambda: check_weights(preset_named(args.preset), args.check_weights))
    if args.store is None:
        parser.error("SOURCE and STORE are required, save with --check-weights DIR")
    return run_command(NAME, lambda: extract(args))


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


def extract(args: argparse.Namespace) -> int:
    """Extracts what is missing; returns the exit status."""
    run = prepared(args)
    if args.dry_run:
        return _dry_run(run)
    description = run.description()  # reads weights, so that nothing is made where there are none
    with Lease(run.folder, NAME) as lease:
        writer = StoreWriter.open(args.store, **description)
        # Videos without a CSV say nothing about expressions, so those the store has stay.
        keeps = run.source.kind == "videos" and args.expressions is None and writer.folder.exists(EXPRESSIONS_RECORD)
        return _complete(run, writer, lease, keeps)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line asks for."""

    folder: Folder
    source: Source
    preset: Preset
    encoders: Encoders
    resources: Resources
    log: Path | None
    extraction: dict[str, Any]

    def description(self) -> dict[str, Any]:
        """What a store is opened with."""
        return {
            "encoders": self.encoders.fingerprints(), "source": f"{self.source.kind} {self.source.root}",
            "num_frames": self.preset.num_frames, "input_size": self.preset.input_size,
            "specs": array_specs(self.preset, self.encoders), "rows_per_shard": self.preset.rows_per_shard,
            "extraction": self.extraction,
        }  # fmt: skip


def prepared(args: argparse.Namespace) -> Run:
    """Checks the arguments against each other, the source and the store; changes nothing."""
    preset = preset_named(args.preset)
    resources = Resources(
        address=args.address, num_workers=args.workers, gpus_per_worker=_gpus_per_worker(args),
        batch_clips=args.batch_clips,
    )
    weights = WeightSource(kind=args.weights, seed=args.seed, folder=args.weights_dir)
    asked = tuple(dict.fromkeys(level.strip() for level in args.levels.split(",") if level.strip()))
    folder = open_folder(args.store)
    refuse_foreign(folder)
    kept = StoreWriter.attach(args.store).schema if folder.exists("zarr.json") else None
    precision = _precision(args.precision, kept, resources.device)
    encoders = build_encoders(preset, weights, asked, precision, resources.device)
    has = () if kept is None else levels_of(kept.specs)
    if not set(has) <= set(asked):
        levels = tuple(level for level in LEVELS if level in (*has, *asked))
        encoders = build_encoders(preset, weights, levels, precision, resources.device)
        print(f"{folder.location} has level {' and '.join(has)}; this run keeps it complete as well: "
              f"{', '.join(levels)}")  # fmt: skip
    log = args.log or _log_beside(folder)
    if log is not None and not log.absolute().parent.is_dir() and log.absolute().parent != Path(args.store).absolute():
        raise ConfigError(f"--log {log} cannot be written: there is no folder {log.absolute().parent}; make it first")
    source = read_source(args.source, args.expressions)
    extraction = {
        "source": str(args.source.absolute()), "preset": args.preset, "weights": args.weights, "seed": args.seed,
        "levels": ",".join(level for level in LEVELS if level in encoders.visual.levels),
        "precision": encoders.visual.precision,
        "expressions": None if args.expressions is None else str(args.expressions.absolute()),
        "batch_clips": resources.clips_per_pass,
    }  # fmt: skip
    return Run(folder=folder, source=source, preset=preset, encoders=encoders, resources=resources, log=log,
               extraction=extraction)  # fmt: skip


def _gpus_per_worker(args: argparse.Namespace) -> float:
    """GPUs of a worker, as the command line and what is there decide."""

    def seen() -> bool:
        return local_gpus_seen(args.device, _warn) if args.address is None else cluster_has_gpus(args.address)

    if args.address is None and args.device == "cuda":
        local_gpus_seen(args.device, _warn)
    return gpus_each(args.device, args.gpus_per_worker, seen, "--gpus-per-worker")


def _precision(asked: str, store: StoreSchema | None, device: str) -> Precision:
    """The precision to compute in: as asked; else that of the store; else fp32."""
    known = "fp32" if store is None else store.extraction.get("precision", "fp32")
    wanted = known if asked == "auto" else asked
    if wanted not in PRECISIONS:
        raise ConfigError(f"the store says that it was made with precision {wanted!r}; give one of "
                          f"{', '.join(PRECISIONS)} by --precision")
    precision: Precision = PRECISIONS[PRECISIONS.index(wanted)]
    if precision == "bf16" and (factor := slow_bf16(device)) is not None:
        _warn(f"bf16 takes {factor:.1f} times as long as fp32 on this processor (measured now on a convolution), which "
              "has no instructions for it; --precision fp32 is faster, in a store of its own")
    return precision


def _warn(line: str) -> None:
    print(f"{NAME}: {line}", file=sys.stderr)


def _log_beside(folder: Folder) -> Path | None:
    """Where a run that nobody watches is logged: outside the store, whose bytes it does not change."""
    if sys.stderr.isatty() or not isinstance(folder, LocalFolder):
        return None
    path = folder.path.with_name(f"{folder.path.name}.{LOG}")
    return path if os.access(path.parent, os.W_OK) else None


def _complete(run: Run, writer: StoreWriter, lease: Lease, keeps: bool) -> int:
    """Writes what is missing in a store that this process holds; the table of expressions unless it `keeps` that."""
    started = time.monotonic()
    source = run.source
    refuse_replaced(writer, source.clips)
    _report(source, run.encoders)
    jobs = plan_jobs(writer, wanted_items(source), shares_of(writer, source.clips))
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
        print(source.report.render())
    cut = encoders.text.overlong(dict.fromkeys(source.expressions["text"]))
    if cut:
        named = [f"  {length} tokens: {text!r}" for text, length in list(cut.items())[:MOST_NAMED]]
        more = [f"  and {len(cut) - MOST_NAMED} more"] if len(cut) > MOST_NAMED else []
        limit = encoders.text.settings.length
        print("\n".join([f"{len(cut)} expressions have more than {limit} tokens and lose their end:", *named, *more]))


def _summary(source: Source, writer: StoreWriter, totals: Totals, jobs: Sequence[Job], seconds: float) -> int:
    if incomplete := [record for record in writer.records() if lacking(record, writer.schema)]:
        paths = sorted({path for record in incomplete for path in lacking(record, writer.schema)})
        print(f"{len(incomplete)} shards of {writer.location} still lack {', '.join(paths)}; run the command again "
              "with a SOURCE that has all of their clips")  # fmt: skip
    if not jobs and not totals.failures:
        print(f"nothing to do: all {len(source.clips)} clips of {source.root} are in {writer.location}")
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
    Console().print(table)
    for failure in totals.failures:
        print(f"{NAME}: {failure}", file=sys.stderr)
    for trace, count in totals.broken.items():
        print(f"{trace}{NAME}: so {count} shards broke", file=sys.stderr)
    if totals.broken:
        return Exit.ERROR
    return Exit.FAILURES if totals.failures else Exit.COMPLETE


def _dry_run(run: Run) -> int:
    """Says what a run would do and cost; the store is not touched.

    Raises:
        StoreError: the store is another one's, or has clips of other files.
    """
    writer = StoreWriter(run.folder, planned_schema(run.folder, **run.description()))
    refuse_replaced(writer, run.source.clips)
    missing = missing_in(writer, wanted_items(run.source), shares_of(writer, run.source.clips))
    console = Console()
    table = Table("", "missing", "shards", title=f"{writer.location} (nothing was written)")
    for name in TABLES:
        table.add_row(name, str(missing.keys[name]), str(missing.shards[name]))
    console.print(table)
    num_workers, on_gpu = run.resources.local_workers(), run.resources.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        console.print(f"{missing.num_bytes:,} bytes; no GPU on this machine to measure the time on")
        return Exit.COMPLETE
    num_workers = limited_by_gpus(num_workers, run.resources.gpus_per_worker, [torch.cuda.device_count()])
    # Random weights take the same time, and no file is read for them.
    precision = run.encoders.visual.precision
    levels = missing.levels or run.encoders.visual.levels
    blank = build_encoders(run.preset, WeightSource(kind="random"), levels, precision, run.resources.device)
    num_threads = max(1, num_processors() // num_workers)
    torch.set_num_threads(num_threads)
    each = calibrate(run.preset, blank, run.source.clips, levels)
    seconds = missing.seconds(each, num_workers)
    console.print(f"{missing.num_bytes:,} bytes; about {seconds:,.0f} s with {num_workers} workers on this machine; "
                  f"{missing.num_sharing} clips share another's features")
    console.print(each.render())
    costs = Table("clips", "bytes", "GPU-hours" if on_gpu else "CPU-hours", title="cost of clips as these are")
    for count in sorted({missing.keys["clips"], 1_000, 1_000_000} - {0}):
        hours = count * (each.on_gpu * run.resources.gpus_per_worker if on_gpu else each.of_clip * num_threads) / 3600
        costs.add_row(f"{count:,}", f"{count * clip_bytes(writer):,}", f"{hours:,.2f}")
    console.print(costs)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
