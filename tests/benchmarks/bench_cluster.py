"""Extraction over three hosts against one, with encoders that only sleep.

`make bench-cluster` runs it, as root (`tests/support/hosts.py` says what it takes). Each host has one processor for
Ray, and the store is in a bucket on a host of its own. An encoder that sleeps takes no processor, so the hosts of one
machine do not slow one another down: what is left is what the cluster costs, from planning to the last commit. Two
times are given: of the whole run, in which three workers on this machine import torch at once, and from the moment
when all workers were ready. `--quick` shrinks it to a smoke test.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, table

from extract.encoders.protocol import Encoder, Text
from extract.encoders.streams import Stream, StreamSet
from extract.pipeline.plan import Job, Unit, plan_jobs
from extract.pipeline.ray_pool import PoolResources, run_jobs
from refavs.steps import Steps
from refavs.store.format.schema import ArraySpec, StoreSchema, StreamSpec, text_key
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter
from tests.faults.lab import BUCKET, Lab
from tests.support.hosts import RAY_PORT, missing

NUM_SHARDS, ROWS, SLEEP_S = 480, 2, 0.4
WANTED = 2.8
ID = "text/asleep"


class SleepingText(Encoder):
    """An encoder of texts that takes `SLEEP_S` for each."""

    name, modality, takes = "asleep", "text", Text()

    def facts(self, level: str) -> dict[str, Any]:
        """What its stream is called."""
        return {"name": "asleep"}

    def encode(self, batch: Sequence[str], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Ones, after a while."""
        time.sleep(SLEEP_S * len(batch))
        return [{"features": np.ones((4, 8), np.float16)} for _ in batch]


def drive(address: str, location: str, num_shards: int, num_hosts: int) -> dict[str, float]:
    """Extracts as the driver of a cluster; runs on one of its hosts."""
    encoder = SleepingText()
    spec = ArraySpec(name="features", shape=(4, 8), dtype="float16", axes=("l", "c"), statistics=True)
    table = StreamSpec(fingerprint=encoder.facts(""), arrays=(spec,), rows_per_shard=ROWS)
    started = time.perf_counter()
    writer = StoreWriter.open(location, StoreSchema(
        streams={ID: table}, source="simulated", seconds=1, fps=1.0, mask_size=8, objects_per_shard=1,
    ))  # fmt: skip
    texts = [f"object {number}" for number in range(num_shards * ROWS)]
    units = [Unit(name=text, item=text, keys={ID: text_key(text)}) for text in texts]
    jobs: list[Job] = plan_jobs(writer, {"clips": [], "text": units, "objects": []})
    streams = StreamSet({"asleep": encoder}, {ID: Stream(id=ID, encoder="asleep", level="", given=(spec,))},
                        Steps(seconds=1))  # fmt: skip
    workers: set[str] = set()
    ended: list[tuple[float, int]] = []
    for result in run_jobs(jobs, location, streams, PoolResources(address=address, num_workers=num_hosts)):
        if result is not None:
            assert result.error is None, result.trace
            workers.add(result.worker)
            ended.append((time.perf_counter(), len(workers)))
    writer.finalise()
    assert len(FeatureStore(location).records) == num_shards
    at_work = [moment for moment, number in ended if number == num_hosts]
    pace = (len(at_work) - 1) / max(at_work[-1] - at_work[0], 1e-9) if at_work else 0.0
    return {"seconds": ended[-1][0] - started, "shards_per_s": pace}


def measure(num_hosts: int, num_shards: int) -> dict[str, float]:
    """One run on so many hosts."""
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder), num_hosts) as lab:
        command = [sys.executable, __file__, "--drive", f"{lab.nodes[0].address}:{RAY_PORT}", f"s3://{BUCKET}/store",
                   str(num_shards), str(num_hosts)]  # fmt: skip
        settings = [f"{name}={value}" for name, value in lab.hosts.variables.items()]
        run = subprocess.run([*lab.nodes[0].inside(*settings), *command], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.splitlines()[-1])


def main() -> int:
    """Prints the table; 1 where three hosts are not as fast as they must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--drive", nargs=4, metavar="ARGUMENT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        address, location, num_shards, num_hosts = args.drive
        print(json.dumps(drive(address, location, int(num_shards), int(num_hosts))))
        return 0
    if lacking := missing():
        print(f"bench_cluster: {lacking}")
        return 2
    num_shards = 12 if args.quick else NUM_SHARDS
    print(describe(Path(tempfile.gettempdir()), ("ray", "torch", "numpy", "obstore")))
    found = {num_hosts: measure(num_hosts, num_shards) for num_hosts in (1, 3)}
    rows = []
    for num_hosts, facts in found.items():
        pace = f"{facts['shards_per_s']:.2f}"
        rows.append((str(num_hosts), f"{facts['seconds']:.1f}", f"{num_shards / facts['seconds']:.2f}", pace))
    ratio = found[1]["seconds"] / found[3]["seconds"]
    print(f"\n### {num_shards} shards of {ROWS} texts of {SLEEP_S} s each\n")
    print(table(("hosts", "s in all", "shards/s", "shards/s from when all workers were ready"), rows))
    print(f"\nthree hosts against one, whole runs: {ratio:.2f}x; wanted: {WANTED}x")
    return 0 if args.quick or ratio >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
