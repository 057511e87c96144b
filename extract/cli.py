"""refavs-extract: frozen features of a benchmark or a folder of videos, into a store."""

import argparse
import errno
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from extract.encoders.visual import LEVELS
from extract.job import Resources, run_jobs
from extract.plan import (
    Estimate,
    array_specs,
    estimate,
    expressions_table,
    plan_jobs,
    refuse_replaced,
    wanted_items,
)
from extract.presets import PRESETS, Encoders, Preset, build_encoders, preset_named
from extract.weights import WeightSource
from extract.worker import JobResult
from refavs.cli import Exit, run_command
from refavs.console import ProgressBar
from refavs.data.bench import Source, read_source
from refavs.errors import RefAVSError
from refavs.store.columns import EXPRESSIONS_RECORD
from refavs.store.folder import open_folder
from refavs.store.lease import Lease
from refavs.store.schema import refuse_foreign
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
    add("source", type=Path, metavar="SOURCE", help="benchmark root (with metadata.csv) or a folder of videos")
    add("store", type=Path, metavar="STORE", help="folder of the store; made where there is none, else completed")
    add("--preset", default="base", metavar="NAME", help=f"encoder sizes: {', '.join(PRESETS)}")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="weights of the encoders")
    add("--seed", type=int, default=0, help="of random weights")
    add("--weights-dir", type=Path, metavar="DIR",
        help="pretrained weights: mask2former/, roberta-base/ (as on the hub) and vggish.pth, or visual.safetensors "
        "for preset tiny; otherwise the hub's cache or a download")  # fmt: skip
    add("--levels", default="pixel_decoder", metavar="LEVELS", help=f"visual maps to keep: {', '.join(LEVELS)} or both")
    add("--precision", choices=("fp32", "bf16"), help="of Swin and VGGish; default: the preset's")
    add("--expressions", type=Path, metavar="CSV", help="columns video,exp: expressions about a folder of videos")
    add("--workers", type=int, metavar="N", help="worker processes; default: one per processor")
    add("--gpus-per-worker", type=float, default=0.0, metavar="G", help="share of a GPU for each worker")
    add("--address", metavar="ADDRESS", help="a running Ray cluster; default: one on this machine for this run")
    add("--dry-run", action="store_true", help="only say what would be done: clips, shards, bytes, estimated time")
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and the example as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-extract; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(NAME, lambda: extract(args))


@dataclass
class _Totals:
    """What one run did."""

    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    failures: list[str] = field(default_factory=list)
    num_bytes: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, result: JobResult) -> None:
        self.done[result.table] += result.num_done
        self.num_bytes += result.num_bytes
        self.failures += [f"{result.table} {key}: {reason}" for key, reason in result.failures.items()]
        if result.error is not None:
            self.broken.append(result.trace)


def extract(args: argparse.Namespace) -> int:
    """Extracts what is missing; returns the exit status."""
    preset = preset_named(args.preset)
    resources = Resources(
        address=args.address, num_workers=args.workers, gpus_per_worker=args.gpus_per_worker
    )
    weights = WeightSource(kind=args.weights, seed=args.seed, folder=args.weights_dir)
    levels = tuple(dict.fromkeys(level.strip() for level in args.levels.split(",") if level.strip()))
    encoders = build_encoders(preset, weights, levels, args.precision, resources.device)
    source = read_source(args.source, args.expressions)
    if args.dry_run:
        blank = build_encoders(preset, WeightSource(kind="random"), levels, args.precision, resources.device)
        return _dry_run(source, args.store, preset, encoders, blank, resources)
    fingerprints, specs = encoders.fingerprints(), array_specs(preset, encoders)
    folder = open_folder(args.store)
    refuse_foreign(folder)
    with Lease(folder, NAME) as lease:
        writer = StoreWriter.open(
            args.store, encoders=fingerprints, source=f"{source.kind} {source.root}", num_frames=preset.num_frames,
            input_size=preset.input_size, specs=specs, rows_per_shard=preset.rows_per_shard,
        )
        # Videos without a CSV say nothing about expressions, so those the store has stay.
        keeps = source.kind == "videos" and args.expressions is None and writer.folder.exists(EXPRESSIONS_RECORD)
        return _complete(writer, lease, source, preset, encoders, resources, keeps)


def _complete(
    writer: StoreWriter, lease: Lease, source: Source, preset: Preset, encoders: Encoders, resources: Resources,
    keeps: bool,
) -> int:
    """Writes what is missing in a store that this process holds; the table of expressions unless it `keeps` that."""
    started = time.monotonic()
    refuse_replaced(writer, source.clips)
    _report(source, encoders)
    jobs = plan_jobs(writer, wanted_items(source))
    totals = _Totals()
    if jobs:
        results = run_jobs(jobs, writer.location, preset, encoders, resources)
        next(results)
        with ProgressBar(NAME, sum(len(job.items) for job in jobs), "clips, objects and texts") as bar:
            for result in results:
                lease.check()
                if result is None:
                    bar.advance(0)
                    continue
                _stop_at(result.error)
                totals.add(result)
                bar.advance(result.num_done + len(result.failures))
    lease.check()
    if not keeps:
        writer.write_expressions(expressions_table(source, {table: writer.committed(table) for table in TABLES}))
    lease.check()
    writer.finalise()
    return _summary(source, writer, totals, bool(jobs), time.monotonic() - started)


def _stop_at(error: Exception | None) -> None:
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


def _summary(source: Source, writer: StoreWriter, totals: _Totals, worked: bool, seconds: float) -> int:
    if not worked:
        print(f"nothing to do: all {len(source.clips)} clips of {source.root} are in {writer.location}")
        return Exit.COMPLETE
    table = Table("", "now", "in the store", title=writer.location)
    for name in TABLES:
        table.add_row(name, str(totals.done[name]), str(len(writer.committed(name))))
    table.add_row("failures", str(len(totals.failures)), "")
    table.add_row("bytes", f"{totals.num_bytes:,}", "")
    table.add_row("seconds", f"{seconds:.1f}", "")
    table.add_row("clips/s", f"{totals.done['clips'] / seconds:.2f}", "")
    Console().print(table)
    for failure in totals.failures:
        print(f"{NAME}: {failure}", file=sys.stderr)
    for trace in totals.broken:
        print(trace, file=sys.stderr)
    if totals.broken:
        return Exit.ERROR
    return Exit.FAILURES if totals.failures else Exit.COMPLETE


def _dry_run(
    source: Source, store: Path, preset: Preset, encoders: Encoders, blank: Encoders, resources: Resources
) -> int:
    """`blank` are the same networks with random weights, whose time is the same."""
    specs = array_specs(preset, encoders)
    committed = _committed(store, source, preset, encoders)
    missing = {
        table: {key: item for key, item in items.items() if key not in committed[table]}
        for table, items in wanted_items(source).items()
    }
    num_workers = resources.local_workers()
    plan: Estimate = estimate(preset, blank, specs, missing, num_workers)
    table = Table("", "missing", "shards", title=f"{store} (nothing was written)")
    for name in TABLES:
        table.add_row(name, str(plan.missing[name]), str(plan.shards[name]))
    console = Console()
    console.print(table)
    console.print(f"{plan.num_bytes:,} bytes; about {plan.seconds:,.0f} s with {num_workers} workers on this machine")
    return Exit.COMPLETE


def _committed(store: Path, source: Source, preset: Preset, encoders: Encoders) -> dict[str, set[str]]:
    """Keys that a store has already, without touching it.

    Raises:
        StoreError: the store is another one's, or has clips of other files.
    """
    if not (store / "zarr.json").is_file():
        return {table: set() for table in TABLES}
    planned_schema(
        open_folder(store), encoders=encoders.fingerprints(), source=str(source.root), num_frames=preset.num_frames,
        input_size=preset.input_size, specs=array_specs(preset, encoders), rows_per_shard=preset.rows_per_shard,
    )
    writer = StoreWriter.attach(store)
    refuse_replaced(writer, source.clips)
    return {table: set(writer.committed(table)) for table in TABLES}


if __name__ == "__main__":
    sys.exit(main())
