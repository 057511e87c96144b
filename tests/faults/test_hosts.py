"""Extraction and sweeps over three hosts that die, are cut off, lose packets or are slow, with servers that are killed.

In the end every row and every trial is there once, with the bytes and numbers of an undisturbed run. The hosts are
namespaces of this machine (`tests/support/hosts.py`), with a Ray node each; features go to a bucket on a fourth host,
and MLflow is there too. `REFAVS_SEED` chooses other moments.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from refavs.store.verify import verify
from tests.faults.command import Command, Python, assert_whole, benchmark, commits_of, files_of, kill, prepare
from tests.faults.lab import BUCKET, Lab
from tests.faults.sweeps import WORKER, Sweep, assert_whole_in_mlflow, kill_driver
from tests.support.hosts import Host, missing

pytestmark = [
    pytest.mark.faults, pytest.mark.timeout(5400), pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]  # fmt: skip

SEED = int(os.environ.get("REFAVS_SEED", "0"))
ROWS = {"clips": 1, "objects": 2, "text": 8}
EXTRACTING, TRAINING = b"ray::Worker", WORKER
NUM_CLIPS, EPOCHS = 24, 4
OF_EXTRACTION = (
    "host", "cut", "worker", "s3", "host", "driver", "worker", "cut", "s3", "worker", "host", "head", "s3", "cut",
    "worker", "other driver",
)  # fmt: skip
OF_SWEEP = (
    "worker", "mlflow", "host", "s3", "worker", "cut", "driver", "mlflow", "worker", "host", "s3", "worker", "cut",
    "mlflow", "host", "head",
)  # fmt: skip
GRID = f"""
  train: {{epochs: {EPOCHS}, steps_per_epoch: 40}}
cases: {{full: {{}}, points: {{loss.num_points: 8}}, no_audio: {{model.audio: false}}}}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark(tmp_path_factory.mktemp("bench") / "synthetic", NUM_CLIPS)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that one host made alone."""
    store = prepare(tmp_path_factory.mktemp("undisturbed") / "store", ROWS)
    with Command(source, store, "--workers", "2") as command:
        assert command.wait() == 0, command.err
    return store


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path / "servers") as lab:
        yield lab


class Disturbance:
    """Starts a command again each time its driver is gone, and kills and cuts in between.

    Args:
        start: the driver on a host.
        title: of the processes that work.
    """

    def __init__(self, lab: Lab, start: Callable[[Host], Python], title: bytes, generator: random.Random) -> None:
        self.lab, self._start, self._title, self._generator = lab, start, title, generator
        self.place = 0
        self.statuses: list[int] = []
        self._driver: Python | None = None

    @property
    def driver(self) -> Python:
        """It runs, or has just been started again."""
        if self._driver is not None and not self._driver.running:
            self.statuses.append(self._driver.process.returncode)
            assert "Traceback" not in self._driver.err, self._driver.err
            self._driver = None
        if self._driver is None:
            self.lab.fill()
            self._driver = self._start(self.lab.nodes[self.place])
        return self._driver

    def until(self, reached: Callable[[], bool]) -> bool:
        """Waits for a state, and starts the driver again where one ends before; False where the work is over."""
        while True:
            driver = self.driver
            if driver.until(reached):
                return True
            if driver.process.returncode == 0:
                return False

    def workers(self) -> list[int]:
        """Processes on all hosts that work."""
        return [pid for node in self.lab.nodes for pid in node.processes(self._title)]

    def strike(self, kind: str) -> bool:
        """One kill or cut; False where the work is over and nobody there to be killed."""
        lab = self.lab
        time.sleep(self._generator.uniform(0, 2))
        if kind == "worker":
            if not self.until(lambda: bool(found := self.workers()) and kill(self._generator.choice(found))):
                return False
        elif kind == "host":
            self._generator.choice(lab.nodes[1:]).die()
            lab.fill()
        elif kind == "cut":
            lost = self._generator.choice(lab.nodes[1:])
            lost.plug(False)
            time.sleep(25)  # in which it is given up
            lost.plug(True)
            time.sleep(5)  # in which it may go on with what it had
            lost.die()
            lab.fill()
        elif kind == "s3":
            lab.kill_s3()
            time.sleep(self._generator.uniform(0, 3))
            lab.start_s3()
        elif kind == "mlflow":
            lab.kill_mlflow()
            time.sleep(self._generator.uniform(0, 3))
            lab.start_mlflow()
        elif kind == "head":
            lab.nodes[0].die()
            self.place = 0
        else:
            kill_driver(self.driver, with_group=True)
            self.place = 1 if kind == "other driver" else 0
        lab.killed.append(kind)
        return True

    def strikes(self, left: list[str], progress: Callable[[], int]) -> Iterator[None]:
        """Yields after each kill or cut, which follows on some progress, until none is left or the work is over."""
        while left and self._progressed(progress) and self.strike(left[0]):
            left.pop(0)
            yield
        self.finish()

    def _progressed(self, progress: Callable[[], int]) -> bool:
        least = progress()
        return self.until(lambda: progress() > least)

    def finish(self) -> Python:
        """The same command until nothing is left to do."""
        for _ in range(6):
            driver = self.driver
            if driver.wait() == 0:
                return driver
        pytest.fail(f"it does not come to its end:\n{self.driver.out}\n{self.driver.err}")


def num_commits(store: Path) -> int:
    """Shards that are committed."""
    return len(commits_of(store))


def test_extraction_survives_the_loss_of_hosts_cables_and_servers(lab: Lab, source: Path, undisturbed: Path) -> None:
    """As many stores, one after another, as it takes to have all kills and cuts."""
    left, generator, statuses = list(OF_EXTRACTION), random.Random(SEED), []
    while left:
        store = prepare(lab.bucket / f"store{len(left)}", ROWS)
        start = partial(lab.extraction, source=source, store=f"s3://{BUCKET}/{store.name}")
        work, before = Disturbance(lab, start, EXTRACTING, generator), commits_of(store)
        for _ in work.strikes(left, partial(num_commits, store)):
            assert_whole(store, before)
            before = commits_of(store)
        assert not verify(store).damage and files_of(store) == files_of(undisturbed)
        statuses += work.statuses
    print(f"extraction, seed {SEED}: {len(lab.killed)} kills and cuts, drivers ended with {statuses}")


def test_sweep_survives_the_loss_of_hosts_cables_and_servers(lab: Lab, tmp_path: Path) -> None:
    """Its store is in the bucket, which every host reads through a cache on its own disk, cold at the start."""
    alone = Sweep(tmp_path / "alone", GRID)
    assert alone.run("--max-concurrent", "2")[0] == 0
    shutil.copytree(alone.store, lab.bucket / "store")
    lab.start_mlflow()
    lab.mlflow_answers()
    options = ("--tracking-uri", lab.tracking_uri, "--cache", str(lab.hosts.own / "cache"))
    left, generator, statuses = list(OF_SWEEP), random.Random(SEED), []
    while left:
        sweep = Sweep(tmp_path / "hosts", GRID, *options, store=alone.store, name=f"g{len(left)}")
        sweep.address = f"s3://{BUCKET}/store"
        work = Disturbance(lab, partial(lab.sweep, sweep=sweep), TRAINING, generator)
        for _ in work.strikes(left, partial(getattr, sweep, "num_epochs")):
            pass
        assert sweep.records() == alone.records()
        lab.mlflow_answers()
        assert_whole_in_mlflow(lab.database, sweep)
        statuses += work.statuses
    print(f"sweep, seed {SEED}: {len(lab.killed)} kills and cuts, drivers ended with {statuses}")


def test_lost_packets_a_slow_cable_and_a_host_that_is_cut_off(lab: Lab, source: Path, undisturbed: Path) -> None:
    store = prepare(lab.bucket / "store", ROWS)
    _, lost, slow = lab.nodes
    slow.slow(megabits=4)
    slow.lose(0.02)
    driver = lab.extraction(lab.nodes[0], source, f"s3://{BUCKET}/store")
    assert driver.until(lambda: bool(lost.processes(EXTRACTING)) and num_commits(store) >= 3), driver.err
    lost.plug(False)
    assert driver.wait() == 0, driver.out + driver.err
    assert not verify(store).damage and files_of(store) == files_of(undisturbed)


def test_two_drivers_on_two_hosts(lab: Lab, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The second is refused while the first lives, and takes over when nobody can know whether its host lives."""
    store = prepare(tmp_path / "store", ROWS)  # in the folder that all hosts share
    _, one, other = lab.nodes
    first = lab.extraction(one, source, str(store))
    assert first.until(lambda: len(commits_of(store)) >= 3), first.err
    # However slow the second one starts, the first is still at work then.
    workers = [pid for node in lab.nodes for pid in node.processes(EXTRACTING)]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    second = lab.extraction(other, source, str(store))
    assert second.wait() == 2, second.out + second.err
    assert re.search(rf"is being written by refavs-extract \(process \d+ on {one.name}\), which is alive", second.err)
    assert workers and first.running
    one.die()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    last = lab.extraction(other, source, str(store))
    assert last.wait() == 0, last.out + last.err
    assert re.search(rf"took over .* on {one.name}\), which gave no sign of life for 60 s", last.err), last.err
    assert not verify(store).damage and files_of(store) == files_of(undisturbed)
