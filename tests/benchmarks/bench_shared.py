"""Training from a store on a distant server through the disk cache: step times, waiting and bytes, against a local one.

Prints a Markdown table; ratios are of epochs from one run. The server is a process of this machine that answers after
20 ms and sends 200 MB/s a connection. Usage: python tests/benchmarks/bench_shared.py [--quick] [--folder DIR]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from refavs.data.batches import batches
from refavs.data.prefetch import Ahead
from refavs.machine.processors import num_processors
from refavs.store import FeatureStore
from refavs.store.backends import disk_cache
from refavs.store.backends.object_store import RemoteFile

sys.path.insert(0, str(Path(__file__).parent))
from bench_remote import BUCKET, served
from bench_train import new_learner
from machine import describe, table
from sweep_store import wide_streams
from train_store import PER_CLIP, write_store

PACE = ("0.02", "200e6")
PACKAGES = ("torch", "obstore", "numpy")


@dataclass(frozen=True)
class Epoch:
    """What an epoch took.

    Attributes:
        steps_s: of each step, with the wait for its batch.
        waited_s: for batches.
        num_bytes: from the server.
    """

    steps_s: list[float]
    waited_s: float
    num_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the machine and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="small maps: whether it runs")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    args = parser.parse_args(argv)
    torch.set_num_threads(num_processors())
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, PACKAGES), flush=True)
        channels, num_clips = (8, 3) if args.quick else (64, 12)
        sides = {"mask_features": 96, "s8": 48, "s16": 24, "s32": 12}
        write_store(root / BUCKET / "store", wide_streams(channels, sides), ["train"] * num_clips)
        print_epochs(root, args.quick)
    return 0


def print_epochs(root: Path, quick: bool) -> None:
    """Epochs from the disk, and twice from the server with the cache cold and warm."""
    location = root / BUCKET / "store"
    shards = sum(path.stat().st_size for path in (location / "clips").rglob("c.*"))
    learner = new_learner(FeatureStore(location), True)
    server = str(Path(__file__).with_name("object_server.py"))
    rounds = 1 if quick else 3
    found: dict[str, list[Epoch]] = {"local": [], "cold": [], "warm": []}
    with served(server, str(root), *PACE) as url:
        run_epoch(location, learner, 0)  # of no account
        for number in range(rounds):
            os.environ[disk_cache.FOLDER] = str(root / f"cache{number}")
            for name, place in (("local", location), ("cold", f"{url}/bucket/{BUCKET}/store"),
                                ("warm", f"{url}/bucket/{BUCKET}/store")):  # fmt: skip
                found[name].append(run_epoch(place, learner, number))
    steps = {name: float(np.median([step for epoch in epochs for step in epoch.steps_s]))
             for name, epochs in found.items()}  # fmt: skip
    rows = []
    for name, epochs in found.items():
        total_s = sum(sum(epoch.steps_s) for epoch in epochs)
        waited, num_bytes = sum(epoch.waited_s for epoch in epochs) / total_s, epochs[0].num_bytes
        rows.append([name, f"{steps[name]:.2f}", f"{steps[name] / steps['local']:.3f}", f"{waited:.1%}",
                     f"{num_bytes / 1e6:.1f}", f"{num_bytes / shards:.3f}"])  # fmt: skip
    print(f"\n### Training from a server 20 ms away, with the disk cache\n\n{shards / 1e6:.0f} MB of maps and sound\n")
    print(table(["store", "step, s", "over local", "waiting", "MB in the epoch", "over the clips"], rows))


def run_epoch(place: Path | str, learner: object, epoch: int) -> Epoch:
    """Trains on every clip once, the next batch being read meanwhile."""
    store, steps_s, num_bytes = FeatureStore(place), [], 0
    part = RemoteFile._part

    def counted(file: RemoteFile, start: int, stop: int) -> np.ndarray:
        nonlocal num_bytes
        num_bytes += stop - start
        return part(file, start, stop)

    read = batches(store, range(len(store)), PER_CLIP, seed=0, epoch=epoch, expressions_per_clip=PER_CLIP)
    with mock.patch.object(RemoteFile, "_part", counted):
        ahead = Ahead(read)
        started = time.perf_counter()
        for number, batch in enumerate(ahead):
            learner.step([(0, batch)], number, 1)  # type: ignore[attr-defined]
            steps_s.append(time.perf_counter() - started)
            started = time.perf_counter()
    return Epoch(steps_s, ahead.waited_s, num_bytes)


if __name__ == "__main__":
    sys.exit(main())
