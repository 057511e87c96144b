"""kill -9 at every point and any moment: nothing committed is torn, lost or doubled, and the same run ends the store.

First the library: a process is killed before and after each call that changes a file. Then the whole command: drivers
and workers of real extractions are killed at random moments.
"""

import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from refavs.errors import StoreError
from tests.faults import command
from tests.refavs import small_store as small

REPOSITORY = Path(__file__).parents[2]
WIDER = small.STREAMS | {small.BACKBONE_STREAM: small.LEVEL}


def fresh(root: Path) -> None:
    """A store from nothing."""
    small.write_store(root)


def wider(root: Path) -> None:
    """A store of clips that share frames, with a stream more."""
    small.write_shared(root, WIDER)


def drop(root: Path) -> None:
    """Drops that stream, unless it is gone."""
    writer = small.open_writer(root, streams={})
    with contextlib.suppress(StoreError):
        writer.drop(small.BACKBONE_STREAM)
    writer.finalise()


JOBS: dict[str, tuple[Callable[[Path], None] | None, Callable[[Path], None]]] = {
    "fresh": (None, fresh), "second stream": (small.write_shared, wider), "drop": (wider, drop),
}  # fmt: skip

# Runs a job once for each call that changes a file, in a process that is killed before or after that call.
KILLER = """
import os, shutil, signal, sys
from collections import Counter
from pathlib import Path
import tests.faults.test_kills as kills
step = int(sys.argv[2])
CALLS = {name: getattr(os, name) for name in ("open", "write", "rename", "unlink", "fsync")}
CALLS["fsync"] = lambda file: None

def run(job, root, death=None):
    counts = Counter()
    def wrap(name):
        def call(*arguments, **options):
            counts[name] += 1
            if death == (name, counts[name], "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            result = CALLS[name](*arguments, **options)
            if death == (name, counts[name], "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call
    for name in CALLS:
        setattr(os, name, wrap(name))
    job(root)
    for name, call in CALLS.items():
        setattr(os, name, call)
    return counts

def prepared(out, before, name):
    root = out / name
    if before is not None:
        shutil.copytree(out / "before", root)
    return root

os.fsync = CALLS["fsync"]
for name, (before, job) in kills.JOBS.items():
    out = Path(sys.argv[1]) / name
    out.mkdir()
    if before is not None:
        before(out / "before")
    counts = run(job, prepared(out, before, "undisturbed"))
    points = [(call, number, side) for call in CALLS for number in range(1, counts[call] + 1)
              for side in (("before", "after") if call in ("rename", "unlink") else ("before",))]
    for call, number, side in points[::step]:
        child = os.fork()
        if not child:
            run(job, prepared(out, before, f"{call}-{number}-{side}"), (call, number, side))
            os._exit(0)
        os.waitpid(child, 0)
"""


def kill_at_points(folder: Path, step: int) -> dict[str, int]:
    """Kills each job at every `step`-th point, and lets it run again; returns how many kills there were of each."""
    command = [sys.executable, "-c", KILLER, str(folder), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    kills = {}
    for name, (_, job) in JOBS.items():
        expected = small.files_of(folder / name / "undisturbed")
        roots = [root for root in sorted((folder / name).iterdir()) if root.name not in ("undisturbed", "before")]
        unfinished = 0
        for root in roots:
            unfinished += small.files_of(root) != expected
            if (root / "zarr.json").exists():
                small.assert_whole(root)
            job(root)
            assert small.files_of(root) == expected, root.name
            shutil.rmtree(root)
        kills[name] = unfinished
    return kills


@pytest.mark.process
def test_kill_at_some_points_of_a_commit(tmp_path: Path) -> None:
    assert sum(kill_at_points(tmp_path, 110).values()) >= 5


@pytest.mark.faults
def test_kill_at_many_points_of_a_commit(tmp_path: Path) -> None:
    kills = kill_at_points(tmp_path, 3)
    print(f"kills at points: {kills}")
    assert kills["fresh"] > 200 and kills["second stream"] > 50 and kills["drop"] > 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of some clips."""
    return command.benchmark(tmp_path_factory.mktemp("source") / "bench", 24)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray that outlives the drivers that are killed."""
    with command.Cluster(tmp_path_factory.mktemp("drivers") / "logs", 2) as cluster:
        yield cluster


@dataclass
class Kills:
    """What was killed, and what was found afterwards."""

    drivers: int = 0
    workers: int = 0
    runs: int = 0
    looks: int = 0
    torn: int = 0

    @property
    def total(self) -> int:
        """Processes killed."""
        return self.drivers + self.workers


class Victim:
    """One store, extracted by a command that is killed again and again and started again."""

    def __init__(self, cluster: Any, source: Path, store: Path, rng: random.Random, kills: Kills) -> None:
        self.cluster, self.source, self.store, self.rng, self.kills = cluster, source, store, rng, kills
        self.before: dict[str, bytes] = {}
        command.prepare(store)
        self._start()

    def _start(self) -> None:
        self.kills.runs += 1
        self.driver = self.cluster.start(self.source, self.store, "--workers", "2")

    def look(self) -> None:
        """Nothing that was committed may be torn, lost or written again."""
        command.assert_whole(self.store, self.before)
        self.before = command.commits_of(self.store)
        self.kills.looks += 1

    def wait(self) -> bool:
        """Until something more is committed, and a random moment on; False where the run has ended."""
        count = len(command.commits_of(self.store))
        going = self.driver.until(lambda: len(command.commits_of(self.store)) > count)
        time.sleep(self.rng.uniform(0, 1))
        return going and self.driver.running

    def kill_workers(self) -> None:
        """One or two workers at the same moment."""
        workers = self.cluster.workers()
        self.rng.shuffle(workers)
        self.kills.workers += sum(map(command.kill, workers[: self.rng.choice((1, 2))]))

    def kill_driver(self) -> None:
        """The driver, and at half the times its workers with it; then the same command again."""
        workers = self.cluster.workers() if self.rng.random() < 0.5 else []
        self.kills.drivers += self.driver.kill()
        self.kills.workers += sum(map(command.kill, workers))
        self.driver.wait()
        self.look()
        self._start()
        # At times a run that has not come to its first commit.
        while self.rng.random() < 0.3:
            time.sleep(self.rng.uniform(0, 4))
            self.kills.drivers += self.driver.kill()
            self.driver.wait()
            self.look()
            self._start()


def kill_at_random(cluster: Any, source: Path, folder: Path, wanted: int, seed: int, num_stores: int) -> Kills:
    """Kills drivers and workers of extractions until `wanted` are dead; every store ends as the undisturbed one."""
    rng, kills = random.Random(seed), Kills()
    undisturbed = command.prepare(folder / "undisturbed")
    assert cluster.run(source, undisturbed, "--workers", "2").wait() == 0
    expected = command.files_of(undisturbed)
    num_shards = len(command.commits_of(undisturbed))
    for number in range(100):
        victim = Victim(cluster, source, folder / f"s{number}", rng, kills)
        share = wanted * (number + 1) / num_stores
        while kills.total < share and victim.wait():
            # A job that kills three workers is given up, so the last jobs are left to live.
            late = len(command.commits_of(victim.store)) > 0.5 * num_shards
            if late or rng.random() < 0.4:
                victim.kill_driver()
            else:
                victim.kill_workers()
            print(kills, flush=True)
            if late:
                break
        status = victim.driver.wait()
        assert status == 0, f"{status}: {victim.driver.err}"
        victim.look()
        assert command.files_of(victim.store) == expected
        shutil.rmtree(victim.store)
        if kills.total >= wanted:
            break
    return kills


@pytest.mark.faults
@pytest.mark.ray
def test_drivers_and_workers_killed_at_random_moments(cluster: Any, source: Path, tmp_path: Path) -> None:
    kills = kill_at_random(cluster, source, tmp_path, wanted=52, seed=0, num_stores=4)
    print(f"random kills: {kills}")
    assert kills.total >= 50 and kills.drivers >= 8 and kills.workers >= 20


@pytest.mark.faults
@pytest.mark.ray
def test_killed_command_leaves_no_process_behind(source: Path, tmp_path: Path) -> None:
    """The command with a Ray of its own: when the driver is killed, that Ray ends by itself."""
    store = command.prepare(tmp_path / "s")
    with command.Command(source, store, "--workers", "2") as driver:
        assert driver.until(lambda: len(command.commits_of(store)) > 3), driver.err
        driver.process.kill()
        driver.process.wait()
        deadline = time.monotonic() + command.PATIENCE_S
        while driver.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not driver.processes()
    command.assert_whole(store)
