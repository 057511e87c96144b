"""The arithmetic of infra/SCALING.md: what an extraction of N clips is in files, bytes, memory, time and money.

    python tests/benchmarks/scaling.py --clips 1e4 1e6 1e8 --rows-per-shard 4 16 64 --level pixel_decoder

Prices and speeds are assumptions, each an option. What a commit record and a job weigh was measured by bench_scheduler.
"""

import argparse
import math
import sys
from collections.abc import Sequence

from machine import table

from extract.encoders.presets import preset_named
from extract.encoders.protocol import EncoderSetup
from extract.encoders.streams import choose_streams
from extract.encoders.weights import WeightSource
from refavs.steps import Steps

# Bytes of a record on disk, of a record in memory and of a job in memory: so many, and so many more for each clip.
RECORD = {"pixel_decoder": (25_600, 390), "backbone": (41_900, 390), "both": (67_100, 450)}
KEPT = {"pixel_decoder": (21_900, 1_020), "backbone": (37_900, 1_020), "both": (56_000, 1_290)}
JOB = (300, 800)
PART_BYTES = 8 * 2**20  # of an upload
LISTED = 1_000  # names that one request to list returns


def row_bytes(level: str) -> list[int]:
    """Bytes of a clip in each array of preset base."""
    levels = ("backbone", "pixel_decoder") if level == "both" else (level,)
    setup = EncoderSetup(weights=WeightSource(kind="random"))
    streams = choose_streams(preset_named("base").streams, Steps(10), lambda name: setup, levels).of("visual", "audio")
    return [spec.row_bytes for stream in streams.values() for spec in stream.arrays]


def uploads(num_bytes: int) -> int:
    """Requests that write one file: one, or its parts with a beginning and an end."""
    parts = math.ceil(num_bytes / PART_BYTES)
    return 1 if parts == 1 else parts + 2


def line(args: argparse.Namespace, num_clips: int, rows: int) -> list[str]:
    """What `num_clips` clips are in shards of `rows` clips."""
    sizes = row_bytes(args.level)
    shards = math.ceil(num_clips / rows)
    terabytes = num_clips * sum(sizes) / 1e12
    puts = shards * (sum(uploads(size * rows) for size in sizes) + 1)
    record, kept, job = ((fixed + each * rows) * shards for fixed, each in (RECORD[args.level], KEPT[args.level], JOB))
    gpu_hours = num_clips * args.frames / args.frames_per_s / 3600
    return [
        f"{num_clips:.0e}", str(rows), f"{rows * max(sizes) / 1e6:,.0f}", f"{terabytes:,.2f}",
        f"{shards * (len(sizes) + 1):,}", f"{record / 1e9:,.2f}", f"{math.ceil(shards / LISTED):,}",
        f"{shards * args.read_ms / 1e3:,.0f}", f"{(kept + job) / 1e9:,.2f}", f"{shards * args.schedule_ms / 1e3:,.0f}",
        f"{gpu_hours:,.1f}", f"{gpu_hours / args.gpus:,.2f}", f"{gpu_hours * args.gpu_price:,.0f}",
        f"{puts / 1e3 * args.put_price:,.2f}", f"{terabytes * 1e3 * args.storage_price:,.0f}",
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--clips", type=float, nargs="+", default=[1e4, 1e6, 1e8], metavar="N", help="clips")
    add("--rows-per-shard", type=int, nargs="+", default=[4, 16, 64], metavar="S", help="clips in a shard")
    add("--level", choices=tuple(RECORD), default="pixel_decoder", help="maps that are kept")
    add("--frames", type=int, default=10, help="of a clip")
    add("--frames-per-s", type=float, default=300.0, help="of a GPU")
    add("--gpus", type=int, default=64, help="that work at a time")
    add("--read-ms", type=float, default=0.5, help="to read a commit record, on one core")
    add("--schedule-ms", type=float, default=1.0, help="of the driver for each shard")
    add("--gpu-price", type=float, default=3.0, help="dollars for an hour of a GPU")
    add("--put-price", type=float, default=0.005, help="dollars for 1,000 requests that write or list")
    add("--storage-price", type=float, default=0.023, help="dollars for a GB and month")
    args = parser.parse_args(argv)
    header = ("clips", "rows per shard", "largest file, MB", "TB", "files", "records, GB", "listing requests",
              "reading records, s", "driver, GB", "driver's time, s", "GPU hours", f"hours, {args.gpus} GPUs",
              "GPU, $", "requests, $", "storage, $/month")  # fmt: skip
    print(table(header, [line(args, int(clips), rows) for clips in args.clips for rows in args.rows_per_shard]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
