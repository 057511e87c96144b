"""Cost of scheduling per shard, in time and memory, with encoders that only sleep.

`make bench-scheduler` runs it. Three parts: the real plan and the real schedule with workers and a clock that are
simulated; the real driver on Ray with workers that do nothing; and the whole of planning, extracting, committing and
reading back shards of a few texts. Then the size of commit records of preset `base`. infra/SCALING.md reckons with
what is printed here. `--quick` shrinks everything to a smoke test.
"""

import argparse
import heapq
import os
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from machine import describe, table

from extract.encoders.presets import preset_named
from extract.encoders.protocol import Encoder, EncoderSetup, Text
from extract.encoders.streams import Stream, StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.pipeline.log import RunLog
from extract.pipeline.plan import Job, Unit, plan_jobs
from extract.pipeline.ray_pool import PoolResources, run_jobs
from extract.pipeline.schedule import Schedule
from extract.pipeline.turns import JOB_STAGES
from extract.pipeline.worker import JobResult
from refavs.data.layouts import Clip
from refavs.machine.processors import num_processors
from refavs.steps import Steps
from refavs.store.folders import open_folder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import CommitRecord, read_record, record_name, short_digest, write_record
from refavs.store.format.schema import ArraySpec, StoreSchema, StreamSpec, text_key
from refavs.store.format.shard import ShardFacts
from refavs.store.plan import plan_shards
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter

PACKAGES = ("ray", "torch", "numpy")
TARGET_MS = 1.0
FRAMES_PER_S = 300.0
DEATHS = 1e-3
RESTART_S = 30.0
ROWS = 4
BASE = preset_named("base").streams
LEVELS = ("backbone", "pixel_decoder")
VISUAL = "visual/mask2former-swin-base-ade"


def base_streams() -> StreamSet:
    """The streams of preset base with both levels; nothing of the weights is read."""
    setup = EncoderSetup(weights=WeightSource(kind="random"))
    return choose_streams(BASE, Steps(10), lambda name: setup, LEVELS)


def base_schema(rows_per_shard: int) -> StoreSchema:
    """Schema of a store of them."""
    specs = {id: spec if id.startswith("text/") else replace(spec, rows_per_shard=rows_per_shard)
             for id, spec in base_streams().specs().items()}  # fmt: skip
    return StoreSchema(streams=specs, source="simulated", seconds=10, fps=1.0, mask_size=384, objects_per_shard=64)


def planned(schema: StoreSchema, num_shards: int) -> list[Job]:
    """Jobs as the command makes them of a benchmark with names as long as those of Ref-AVS Bench."""
    keys = [f"-{number:010d}_20000_30000" for number in range(num_shards * ROWS)]
    places = {key: Path("/data/ref-avs/media") / key for key in keys}
    clips = {key: Clip(id=key, frames=tuple(place / "frames" / f"{second}.jpg" for second in range(10)),
                       audio=place / "audio.wav") for key, place in places.items()}  # fmt: skip
    groups = [keys[start : start + ROWS] for start in range(0, len(keys), ROWS)]
    ids = (f"{VISUAL}/pixel_decoder", "audio/vggish")
    plans = zip(*(plan_shards(schema, id, [], groups) for id in ids), strict=True)
    return [
        Job(kind="clips", units=tuple(Unit(name=key, item=clips[key], keys=dict.fromkeys(ids, key)) for key in group),
            shards=tuple(shard for shard in shards if shard is not None))
        for group, shards in zip(groups, plans, strict=True)
    ]  # fmt: skip


@dataclass(order=True)
class Event:
    """A worker ends a task, or is ready, at a moment of the simulated clock."""

    time_s: float
    number: int
    worker: int = field(compare=False)
    task: Any = field(compare=False)


def simulate(jobs: Sequence[Job], num_workers: int, seed: int = 0) -> tuple[float, int, RunLog]:
    """Runs all jobs with workers that sleep on a simulated clock and sometimes die; returns its end and the deaths."""
    generator, schedule = random.Random(seed), Schedule([job.names for job in jobs])
    events: list[Event] = [Event(generator.uniform(5, 30), worker, worker, None) for worker in range(num_workers)]
    heapq.heapify(events)
    number, deaths, now, free_s = num_workers, 0, 0.0, [0.0] * num_workers
    alive = list(range(num_workers))  # by place, the name of the worker that is there now
    log = RunLog(None, {"clips": len(jobs) * ROWS})
    stages = dict.fromkeys(JOB_STAGES, 0.1)

    def give(place: int) -> None:
        nonlocal number
        for task in schedule.assign(alive[place]):
            # A worker's second job waits for its encoders.
            free_s[place] = max(now, free_s[place]) + ROWS * 10 / FRAMES_PER_S * generator.uniform(0.7, 1.3)
            number += 1
            heapq.heappush(events, Event(free_s[place], number, alive[place], task))

    while schedule.num_left:
        event = heapq.heappop(events)
        now, place = event.time_s, event.worker % num_workers
        if event.worker != alive[place]:
            continue
        if event.task is None:
            schedule.enlist(event.worker)
        elif generator.random() < DEATHS:
            deaths += 1
            schedule.lost(event.worker, "simulated")
            alive[place] += num_workers
            number += 1
            heapq.heappush(events, Event(now + RESTART_S, number, alive[place], None))
            for other in range(num_workers):
                give(other)
            continue
        else:
            schedule.done(event.worker, event.task)
            if event.task.probe is None:
                log.add(JobResult(kind="clips", num_done=ROWS, seconds=0.2, stages_s=stages, worker=str(place)))
        give(place)
    return now, deaths, log


def simulated(sizes: Sequence[int], num_workers: int) -> str:
    """Time and memory by the number of shards; memory is counted in a run of its own, which is slower."""
    schema = base_schema(ROWS)
    rows = []
    for size in sizes:
        started = time.perf_counter()
        jobs = planned(schema, size)
        planning = time.perf_counter() - started
        started = time.perf_counter()
        end_s, deaths, _ = simulate(jobs, num_workers)
        scheduling = time.perf_counter() - started
        del jobs
        tracemalloc.start()
        jobs = planned(schema, size)
        job_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        simulate(jobs, num_workers)
        more_bytes = tracemalloc.get_traced_memory()[1] - job_bytes
        tracemalloc.stop()
        ideal_s = size * ROWS * 10 / FRAMES_PER_S / num_workers
        rows.append([
            f"{size:,}", f"{planning / size * 1e3:.3f}", f"{scheduling / size * 1e3:.3f}",
            f"{job_bytes / size:,.0f}", f"{more_bytes / size:,.0f}", f"{(job_bytes + more_bytes) / 2**20:,.1f}",
            str(deaths), f"{end_s:,.0f} ({ideal_s / end_s:.0%})",
        ])  # fmt: skip
    header = ("shards", "plan, ms each", "schedule, ms each", "bytes/shard: jobs", "bytes/shard: schedule",
              "MiB in all", "deaths", "simulated s (encoders busy)")  # fmt: skip
    return table(header, rows)


class Sleeper:
    """Stands for a worker on Ray; it does nothing, so that all that is left is the driver and Ray."""

    def __init__(self, *_: object) -> None:
        self._name = f"here:{os.getpid()}"

    def ready(self) -> str:
        """As a real one."""
        return self._name

    def run(self, job: Job, condemned: dict[str, str]) -> JobResult:
        """Says that all is done."""
        return JobResult(kind=job.kind, num_done=len(job.units), seconds=0.1, worker=self._name,
                         stages_s=dict.fromkeys(JOB_STAGES, 0.1))  # fmt: skip


def on_ray(num_shards: int, num_workers: int) -> str:
    """The real driver and Ray, from the first result to the last, and the driver's memory meanwhile."""
    jobs = planned(base_schema(ROWS), num_shards)
    streams = base_streams()
    with mock.patch("extract.pipeline.ray_pool.Worker", Sleeper), RunLog(None, {"clips": num_shards * ROWS}) as log:
        results = (result for result in run_jobs(jobs, "/nowhere", streams, PoolResources(num_workers=num_workers))
                   if result is not None)  # fmt: skip
        next(results)
        started, before = time.perf_counter(), resident_bytes()
        count = sum(log.add(result) is None for result in results)
        seconds, grown = time.perf_counter() - started, resident_bytes() - before
    row = [f"{num_shards:,}", str(num_workers), f"{seconds / count * 1e3:.3f}", f"{grown / count:,.0f}"]
    return table(("shards", "workers", "driver and Ray, ms each", "bytes/shard the driver grew by"), [row])


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class SleepingText(Encoder):
    """An encoder of texts that does nothing."""

    name, modality, takes = "asleep", "text", Text()

    def facts(self, level: str) -> dict[str, Any]:
        """What its stream is called."""
        return {"name": "asleep"}

    def encode(self, batch: Sequence[str], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Zeros."""
        return [{"features": np.zeros((4, 8), np.float16)} for _ in batch]


def with_commits(num_shards: int, num_workers: int, folder: Path) -> str:
    """Everything of a run but media and networks, and what the next run and a reader then have to read."""
    id, encoder = "text/asleep", SleepingText()
    texts = [f"object {number}" for number in range(num_shards * ROWS)]
    units = [Unit(name=text, item=text, keys={id: text_key(text)}) for text in texts]
    spec = ArraySpec(name="features", shape=(4, 8), dtype="float16", axes=("l", "c"), statistics=True)
    streams = StreamSet({"asleep": encoder}, {id: Stream(id=id, encoder="asleep", level="", given=(spec,))},
                        Steps(seconds=1))  # fmt: skip

    def opened() -> StoreWriter:
        table = StreamSpec(fingerprint=encoder.facts(""), arrays=(spec,), rows_per_shard=ROWS)
        return StoreWriter.open(folder, StoreSchema(
            streams={id: table}, source="simulated", seconds=1, fps=1.0, mask_size=8, objects_per_shard=1,
        ))  # fmt: skip

    def left(writer: StoreWriter) -> list[Job]:
        return plan_jobs(writer, {"clips": [], "text": units, "objects": []})

    writer = opened()
    jobs = left(writer)
    results = (result for result in run_jobs(jobs, str(folder), streams, PoolResources(num_workers=num_workers))
               if result is not None)  # fmt: skip
    first = next(results)
    assert first.error is None, first.trace
    timed = {"extract and commit": seconds_of(lambda: [result.seconds for result in results])}
    timed["finalise"] = seconds_of(writer.finalise)
    timed["next run: open and plan"] = seconds_of(lambda: left(opened()))
    timed["open for reading"] = seconds_of(lambda: FeatureStore(folder))
    rows = [[name, f"{seconds / num_shards * 1e3:.3f}", f"{seconds:.2f}"] for name, seconds in timed.items()]
    return table((f"{num_shards:,} shards of {ROWS} texts", "ms each", "s in all"), rows)


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def record_of(schema: StoreSchema, id: str, rows: int, index: int) -> CommitRecord:
    """A commit record of a stream of preset base with values as wide as real ones."""
    generator = np.random.default_rng(index)
    keys = [f"{index * rows + place:064x}" for place in range(rows)]
    specs = schema.streams[id].arrays
    sums = {
        spec.name: ChannelSums(count=10**6, total=generator.normal(size=width), squares=generator.normal(size=width))
        for spec in specs for width in [spec.shape[spec.axes.index("c")]]
    }
    places = {place: 4 * 10**9 - place for place in range(rows)}
    facts = {spec.name: ShardFacts(num_bytes=spec.row_bytes * rows, crc32c=4 * 10**9 - index, rows=places)
             for spec in specs}  # fmt: skip
    return CommitRecord(
        table=id, index=index, rows={key: index * rows + place for place, key in enumerate(keys)},
        meta={key: {} for key in keys}, arrays=facts, fingerprint=short_digest(schema.streams[id].fingerprint),
        statistics=sums, seconds=12.345,
    )  # fmt: skip


def record_sizes(folder: Path, count: int) -> str:
    """Bytes, reading time and memory of commit records of preset base."""
    lines = []
    for rows in (4, 16, 64):
        schema = base_schema(rows)
        for level in LEVELS:
            place = folder / f"{rows}-{level}"
            lines.append([str(rows), level, *measured(place, schema, f"{VISUAL}/{level}", rows, count)])
    header = ("rows per shard", "level", "bytes", "bytes/clip", "read, ms", "memory, bytes", "memory/clip, bytes")
    return table(header, lines)


def measured(
    root: Path, schema: StoreSchema, id: str, rows: int, count: int
) -> Iterable[str]:
    """One line of `record_sizes`, over `count` records."""
    folder = open_folder(root)
    names = [record_name(id, index) for index in range(count)]
    for index in range(count):
        write_record(folder, record_of(schema, id, rows, index))
    num_bytes = sum((root / name).stat().st_size for name in names) / count
    seconds = seconds_of(lambda: [read_record(folder, name, schema) for name in names]) / count
    tracemalloc.start()
    kept = [read_record(folder, name, schema) for name in names]
    memory = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    del kept
    return (f"{num_bytes:,.0f}", f"{num_bytes / rows:,.0f}", f"{seconds * 1e3:.2f}", f"{memory:,.0f}",
            f"{memory / rows:,.0f}")  # fmt: skip


def parts(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str]]:
    """Title and table of each part."""
    workers = args.workers or num_processors()
    title = f"Plan and schedule, {args.simulated_workers} simulated workers, {DEATHS:.1%} of the tasks end in a death"
    yield f"{title} (target: {TARGET_MS:g} ms each)", simulated(args.sizes, args.simulated_workers)
    if not args.no_ray:
        yield "Driver and Ray, workers that do nothing", on_ray(args.ray_shards, workers)
        yield "Run with commits, encoders that do nothing", with_commits(args.commit_shards, workers, folder / "store")
    yield "Commit records of preset base", record_sizes(folder, args.records)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], metavar="N", help="shards to simulate")
    add("--simulated-workers", type=int, default=64, metavar="N", help="workers to simulate")
    add("--ray-shards", type=int, default=20_000, metavar="N", help="shards with Ray")
    add("--commit-shards", type=int, default=1_000, metavar="N", help="shards with Ray and commits")
    add("--records", type=int, default=200, metavar="N", help="commit records of each shape")
    add("--workers", type=int, metavar="N", help="workers on Ray; one per processor otherwise")
    add("--folder", type=Path, metavar="DIR", help="where to write; a temporary folder otherwise")
    add("--no-ray", action="store_true", help="leave out what needs Ray")
    add("--quick", action="store_true", help="a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.ray_shards, args.commit_shards, args.records = [100, 1_000], 50, 10, 3
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(describe(Path(folder), PACKAGES), flush=True)
        for title, text in parts(args, Path(folder)):
            print(f"\n### {title}\n\n{text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
