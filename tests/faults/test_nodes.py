"""Workers and whole nodes are killed in mid-extraction, on a Ray cluster of two nodes on this machine.

The store must end complete, verified, and with the bytes of one that nothing disturbed.
"""

import contextlib
import copy
import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from extract.pipeline.content import contents_of
from extract.pipeline.local_ray import few_processes
from extract.pipeline.plan import Job
from extract.pipeline.ray_pool import PoolResources, run_jobs
from extract.pipeline.tables import write_tables
from extract.pipeline.worker import Worker
from refavs.data.layouts import Source, read_source
from refavs.files.partials import PARTIAL
from refavs.steps import Steps
from refavs.store.format.schema import StoreSchema
from refavs.store.verify import verify
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark
from tests.extract.command import jobs_of, streams_of
from tests.faults.command import small_shards

pytestmark = pytest.mark.ray
STREAMS = streams_of()  # without weights, to be sent
ROWS = {"clips": 1, "objects": 4, "text": 4}
OBJECT_STORE_BYTES = 100 * 2**20
WAIT_FOR_SECOND_S = 30.0


@dataclass
class Nodes:
    """A head node, on which the driver is, and others that can be lost."""

    cluster: Any

    def add(self) -> Any:
        """One more node with room for one worker."""
        with few_processes():
            return self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)

    @staticmethod
    def of_worker(pid: int) -> int:
        """Process of the node that a worker belongs to."""
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    @staticmethod
    def process_of(node: Any) -> int:
        """Process of a node."""
        return node.all_processes["raylet"][0].process.pid

    def num_workers(self) -> int:
        """Workers that are ready or at work."""
        found = 0
        for node in self.cluster.list_all_nodes():
            raylet = self.process_of(node)
            children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
            for child in children:
                with contextlib.suppress(OSError):  # it has ended
                    title = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0 ")
                    found += title in (b"ray::Worker", b"ray::Worker.run")
        return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    with few_processes():
        cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield Nodes(cluster)
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=7, seed=4, size=96, videos=False)
    return read_source(root)


def planned(location: Path, source: Source) -> tuple[StoreWriter, list[Job]]:
    writer = StoreWriter.open(location, StoreSchema(
        streams=small_shards(STREAMS.specs(), ROWS), source="test", seconds=10, fps=1.0, mask_size=96,
        objects_per_shard=ROWS["objects"],
    ))  # fmt: skip
    return writer, jobs_of(writer, source, STREAMS)


def finished(writer: StoreWriter, source: Source) -> dict[str, Any]:
    """Every file of the store once it is complete; commit records without the time they took."""
    write_tables(writer, source, contents_of(source.clips, Steps(10))[0])
    writer.finalise()
    root = Path(writer.location)
    paths = [path for path in root.rglob("*") if path.is_file()]
    files: dict[str, Any] = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    for name in [name for name in files if name.startswith("commits/")]:
        content = json.loads(files[name])
        content.pop("crc32c", None)
        content.get("record", {}).pop("seconds", None)
        files[name] = content
    return files


@pytest.fixture(scope="module")
def undisturbed(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    location = tmp_path_factory.mktemp("undisturbed") / "store"
    writer, jobs = planned(location, source)
    worker = Worker(str(location), copy.deepcopy(STREAMS))
    assert not any(result.failures or result.error for result in map(worker.run, jobs))
    return finished(writer, source)


def extract(
    nodes: Nodes, location: Path, source: Source, disturb: Callable[[int], None], num_given_up: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Extracts; `disturb` is told the process of each result's worker. Returns the files and notes.

    At most `num_given_up` jobs may be given up, because each of their runs was hit. The same call again does them, but
    for those that were committed just before their worker was hit.
    """
    writer, jobs = planned(location, source)
    num_items = sum(len(job.units) for job in jobs)
    notes: list[str] = []
    num_done, held = 0, False
    for result in run_jobs(jobs, str(location), STREAMS, PoolResources(num_workers=2), notes.append):
        if result is None:
            continue
        assert result.error is None
        if result.failures:
            num_given_up -= 1
            assert num_given_up >= 0 and all("died 3 times" in reason for reason in result.failures.values())
            continue
        num_done += result.num_done
        # A fast first worker would do all jobs. The wait has an end, for a worker that died at its start is replaced
        # only where this loop goes on.
        deadline = time.monotonic() + WAIT_FOR_SECOND_S
        while not held and time.monotonic() < deadline:
            held = nodes.num_workers() >= 2
            time.sleep(0.1)
        pid = int(result.worker.split(":")[-1])
        if Path(f"/proc/{pid}").exists():  # the result may come from one that is dead by now
            disturb(pid)
    if num_done < num_items:
        worker = Worker(str(location), copy.deepcopy(STREAMS))
        for job in planned(location, source)[1]:
            assert worker.run(job).num_done == len(job.units)
    assert num_done <= num_items and not planned(location, source)[1]
    files = finished(writer, source)
    verdict = verify(location)
    assert not verdict.damage
    for stray in verdict.uncommitted:  # what killed workers left, which goes when the store is opened next
        assert PARTIAL in stray
        files.pop(stray)
    return files, notes


def test_killed_worker_and_lost_node_leave_a_whole_store(
    nodes: Nodes, source: Source, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    doomed = nodes.add()
    killed: list[int] = []
    lost: list[int] = []

    def disturb(pid: int) -> None:
        on_doomed = nodes.of_worker(pid) == nodes.process_of(doomed) if not lost else False
        if not killed and not on_doomed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        elif killed and on_doomed:
            lost.append(pid)
            nodes.cluster.remove_node(doomed, allow_graceful=False)

    files, notes = extract(nodes, tmp_path / "store", source, disturb)
    assert killed and lost and len(notes) == 2
    assert all("is lost" in note and "back into the queue" in note for note in notes)
    assert files == undisturbed


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_many_deaths_of_workers_and_nodes_leave_a_whole_store(
    nodes: Nodes, source: Source, undisturbed: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    others = [nodes.add()]
    killed: list[int] = []

    def disturb(pid: int) -> None:
        if pid in killed or generator.random() > 0.4:
            return
        killed.append(pid)
        if nodes.of_worker(pid) == nodes.process_of(others[-1]) and generator.random() < 0.5:
            nodes.cluster.remove_node(others[-1], allow_graceful=False)
            others.append(nodes.add())
        else:
            os.kill(pid, signal.SIGKILL)

    files, _ = extract(nodes, tmp_path / "store", source, disturb, num_given_up=2)
    nodes.cluster.remove_node(others[-1], allow_graceful=False)
    print(f"seed {seed}: {len(killed)} workers killed, {len(others) - 1} of them with their nodes")
    assert killed and files == undisturbed
