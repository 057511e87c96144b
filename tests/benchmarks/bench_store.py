"""Reads and writes clips with refavs and with other libraries, and prints how many times as fast refavs is.

`make bench-store` runs it. All contenders take turns within one run, each with every batch, so that whatever else the
machine does meets all of them; what they read is compared with what was written. `--quick` shrinks it to a smoke test.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from contenders import (
    MAPS,
    open_store,
    open_tensorstore,
    readers,
    spec_of,
    sync_file,
    write_files,
    write_raw,
    write_store,
    write_tensorstore,
    write_zarr,
)
from machine import describe, ratio, speed, table

from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.checksum import crc32c
from refavs.store.format.shard import ShardFile

PACKAGES = ("torch", "numpy", "tensorstore", "zarr", "h5py", "google-crc32c")
OURS, VERIFIED = "refavs, never", "refavs, always"
READ_TARGETS = {"tensorstore, read": 5, "zarr-python, out": 7, "h5py, read_direct": 2, "np.memmap, copy": 1.2}
Times = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Clips of one size: `side` of the 10 x 256 fp16 maps, how many there are, lie in a shard and make a batch."""

    side: int
    num_clips: int
    rows_per_shard: int
    batch: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of a clip."""
        return (10, 256, self.side, self.side)


SIZES = (
    Size(side=32, num_clips=80, rows_per_shard=16, batch=16),
    Size(side=48, num_clips=40, rows_per_shard=8, batch=8),
    Size(side=108, num_clips=14, rows_per_shard=4, batch=4),
)
QUICK = (Size(side=8, num_clips=6, rows_per_shard=4, batch=2),)


def make_clips(size: Size) -> np.ndarray:
    """Distinct clips of finite noise."""
    base = np.random.default_rng(size.side).random(size.shape, dtype=np.float32).astype(np.float16).reshape(-1)
    return np.stack([np.roll(base, 4099 * row).reshape(size.shape) for row in range(size.num_clips)])


def bench_reads(folder: Path, size: Size, repeats: int) -> tuple[Times, int]:
    """Seconds of each reader for random batches from warm files, and the bytes of a batch."""
    clips = make_clips(size)
    write_files(folder, clips, size.rows_per_shard)
    batch = np.zeros((size.batch, *size.shape), np.float16)
    contenders = readers(folder, batch, size.num_clips, clips)
    for read in contenders.values():  # every page is touched once, every checksum compared
        for start in range(0, size.num_clips, size.batch):
            read(range(start, min(start + size.batch, size.num_clips)))
    rng = np.random.default_rng(0)
    taken: Times = {name: [] for name in contenders}
    for repeat in range(repeats):
        rows = rng.choice(size.num_clips, size.batch, replace=False).tolist()
        for name in turn(list(contenders), repeat):
            compared = repeat in (0, repeats - 1)
            if compared:
                batch[:] = 0
            taken[name].append(seconds(lambda name=name, rows=rows: contenders[name](rows)))
            if compared and not all(np.array_equal(batch[place], clips[row]) for place, row in enumerate(rows)):
                raise AssertionError(f"{name} read other bytes than were written")
    return taken, batch.nbytes


def bench_cold_reads(folder: Path, size: Size, repeats: int) -> tuple[Times, int]:
    """Seconds for one batch after the kernel was asked to drop the files' pages, everything opened anew."""
    batch = np.zeros((size.batch, *size.shape), np.float16)
    rng = np.random.default_rng(1)

    def refavs(rows: Sequence[int]) -> None:
        FeatureStore(folder / "store", verify="never").read_rows({MAPS: rows}, lambda *_: torch.from_numpy(batch))

    def memmap(rows: Sequence[int]) -> None:
        mapped = np.memmap(folder / "clips.raw", np.float16, "r", shape=(size.num_clips, *size.shape))
        for place, row in enumerate(rows):
            batch[place] = mapped[row]

    def tensorstore(rows: Sequence[int]) -> None:
        array = open_tensorstore(folder / "bare")
        for place, found in enumerate([array[row].read() for row in rows]):
            batch[place] = found.result()

    contenders = {"refavs, never": refavs, "np.memmap, copy": memmap, "tensorstore, no checksums, read": tensorstore}
    taken: Times = {name: [] for name in contenders}
    for repeat in range(repeats):
        rows = rng.choice(size.num_clips, size.batch, replace=False).tolist()
        for name in turn(list(contenders), repeat):
            drop_pages(folder)
            taken[name].append(seconds(lambda name=name, rows=rows: contenders[name](rows)))
    return taken, batch.nbytes


def bench_writes(folder: Path, size: Size, repeats: int) -> tuple[Times, int]:
    """Seconds to write one shard of all clips, checksums and fsync included."""
    clips = list(make_clips(Size(side=size.side, num_clips=8, rows_per_shard=8, batch=1)))
    clips = [clips[row % len(clips)] for row in range(size.num_clips)]

    def shard_file() -> None:
        file = ShardFile(LocalFolder(folder), "shard", len(clips))
        for place, clip in enumerate(clips):
            file.append(place, clip)
        file.finish()
        file.publish()

    contenders: dict[str, Callable[[], None]] = {
        "raw write + fsync": lambda: write_raw(folder / "raw", clips),
        "refavs, ShardFile": shard_file,
        "refavs, ShardWriter with statistics": lambda: write_store(
            open_store(folder / "store", size.shape, len(clips), statistics=True), clips),
        "zarr-python + fsync": lambda: write_zarr(folder / "zarr", clips),
        "tensorstore": lambda: write_tensorstore(folder / "tensorstore", clips),
    }  # fmt: skip
    taken: Times = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in turn(list(contenders), repeat):
            empty(folder)
            os.sync()
            taken[name].append(seconds(contenders[name]))
    empty(folder)
    return taken, sum(clip.nbytes for clip in clips)


def bench_checksum(size: Size, repeats: int) -> tuple[Times, int]:
    """Seconds of the parts of writing a clip that need no disk."""
    (clip,) = make_clips(Size(side=size.side, num_clips=1, rows_per_shard=1, batch=1))
    axis = spec_of(size.shape, True).axes.index("c")
    parts: dict[str, Callable[[], object]] = {
        "crc32c": lambda: crc32c(clip),
        "statistics": lambda: ChannelSums.of(clip, axis),
    }
    return {name: [seconds(part) for _ in range(repeats)] for name, part in parts.items()}, clip.nbytes


def peak_memory(folder: Path, size: Size) -> float:
    """Clips by which the memory of a process rises while it writes a shard of all clips."""
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, str(script), str(folder / "peak"), str(size.num_clips), str(size.side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def turn(names: list[str], by: int) -> list[str]:
    """`names` in another order each time, so that nobody always follows the same one and finds its caches."""
    return random.Random(by).sample(names, len(names))


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drop_pages(folder: Path) -> None:
    """Asks the kernel to forget what it holds of the files; pages that a process has mapped stay."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def empty(folder: Path) -> None:
    """Removes everything in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_table(size: Size, taken: Times, num_bytes: int) -> str:
    """Readers with the ratios of ours to them."""
    rows = []
    for name, times in taken.items():
        target = READ_TARGETS.get(name)
        rows.append([name, speed(num_bytes, times), ratio(taken[OURS], times), f">= {target}" if target else "",
                     ratio(taken[VERIFIED], times), ">= 1.5" if name.startswith("tensorstore, ") and
                     "no checksums" not in name else ""])  # fmt: skip
    clip = num_bytes / size.batch / 1e6
    title = f"### Warm random reads, {clip:.1f} MB clips, {size.batch} to a batch\n\n"
    header = ["reader", "GB/s best / median", "refavs (never) is x", "target", "refavs (always) is x", "target"]
    return title + table(header, rows)


def write_table(size: Size, taken: Times, num_bytes: int, peak: float) -> str:
    """Writers with the ratios to a raw write and to zarr-python."""
    raw, zarr = taken["raw write + fsync"], taken["zarr-python + fsync"]
    rows = [[name, speed(num_bytes, times), ratio(times, raw), ">= 0.8" if "refavs" in name else "",
             ratio(times, zarr), ">= 2" if "refavs" in name else ""] for name, times in taken.items()]  # fmt: skip
    clip = num_bytes / size.num_clips
    header = ["writer", "GB/s best / median", "x raw", "target", "x zarr-python", "target"]
    return (f"### One shard of {num_bytes / 1e9:.2f} GB in {clip / 1e6:.1f} MB clips, on the disk\n\n"
            f"{table(header, rows)}\n\nMemory of the process rose by {peak:.2f} clips (target <= 3).")  # fmt: skip


def plain_table(title: str, taken: Times, num_bytes: int) -> str:
    """Names and speeds."""
    rows = [[name, speed(num_bytes, times)] for name, times in taken.items()]
    return f"### {title}\n\n" + table(["", "GB/s best / median"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small clips, to see that it works")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where to write; its disk is measured")
    parser.add_argument("--repeats", type=int, help="batches per size; shards are written a third as often")
    args = parser.parse_args(argv)
    repeats = args.repeats or (2 if args.quick else 12)
    sizes = QUICK if args.quick else SIZES
    shard = QUICK[0] if args.quick else Size(side=48, num_clips=85, rows_per_shard=85, batch=1)
    print(f"{describe(Path(args.folder), PACKAGES)}, {torch.get_num_threads()} threads of torch", flush=True)
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-store-", dir=args.folder) as folder:
            taken, num_bytes = bench_reads(Path(folder), size, repeats)
            print(f"\n{read_table(size, taken, num_bytes)}", flush=True)
            if size == sizes[-1]:
                taken, num_bytes = bench_cold_reads(Path(folder), size, max(repeats // 3, 2))
                print("\n" + plain_table("Cold reads (information only)", taken, num_bytes), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=args.folder) as folder:
        taken, num_bytes = bench_writes(Path(folder), shard, max(repeats // 3, 2))
        peak = peak_memory(Path(folder), shard)
        print(f"\n{write_table(shard, taken, num_bytes, peak)}", flush=True)
    print("\n" + plain_table("Parts of writing a clip", *bench_checksum(shard, repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
