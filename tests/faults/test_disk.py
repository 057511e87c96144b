"""The place of a store fails in mid-run: each fault is one line and status 2, and the same command ends the store.

What was committed stays whole, and the store that is finished later is byte for byte an undisturbed one.
"""

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from tests.faults import command
from tests.support.quick_networks import few_weights

ROWS = {"clips": 1, "objects": 8, "text": 64}
BACK_S = 3600.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of a few clips."""
    return command.benchmark(tmp_path_factory.mktemp("source") / "bench", 5)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, room for some clips and not for all."""
    with command.small_disk(tmp_path / "disk", "3m") as folder:
        yield folder


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", "tmpfs", str(disk)], check=True)


def one_line(text: str) -> str:
    """The error of a command beside its lines of progress."""
    lines = [line for line in text.splitlines() if line and not re.match(r"refavs-extract: \d+/\d+ ", line)]
    assert len(lines) == 1 and lines[0].startswith("refavs-extract: "), text
    return lines[0]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the runs in this process."""
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=2**27, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR)  # fmt: skip
    yield
    ray.shutdown()


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Jobs are run here and not on Ray, whose start takes most of a short run."""
    from extract.pipeline.worker import Worker

    def run_jobs(jobs: Any, location: str, streams: Any, *more: object) -> Iterator[Any]:
        worker = Worker(location, streams, 1)
        yield None
        yield from (worker.run(job) for job in jobs)

    patch.setattr("extract.pipeline.extraction.run_jobs", run_jobs)


@pytest.mark.process
@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=[pytest.mark.faults, pytest.mark.ray])])
def test_full_disk_in_mid_shard(
    source: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest, ray: bool,
) -> None:  # fmt: skip
    from extract.cli import main

    if ray:
        request.getfixturevalue("ray_here")
    else:
        in_this_process(monkeypatch)
        few_weights(monkeypatch)
    store = command.prepare(disk / "s", ROWS)
    options = [*command.OPTIONS, "--workers", "2"]
    assert main([str(source), str(store), *options]) == 2
    line = one_line(capsys.readouterr().err)
    assert re.search(r"cannot write /.*/disk/s/.*: No space left on device; free space or name another folder", line)
    before = command.commits_of(store)
    assert before and not list(store.rglob("*.partial"))
    command.assert_whole(store)
    remount(disk, "size=100m")
    assert main([str(source), str(store), *options]) == 0
    assert before.items() <= command.commits_of(store).items()
    undisturbed = command.prepare(tmp_path / "undisturbed", ROWS)
    in_this_process(monkeypatch)
    assert main([str(source), str(undisturbed), *options]) == 0
    assert command.files_of(store) == command.files_of(undisturbed) and not verify(store).damage


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray for drivers in processes of their own."""
    with command.Cluster(tmp_path_factory.mktemp("drivers") / "logs", 2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as it should be."""
    store = command.prepare(tmp_path_factory.mktemp("undisturbed") / "s", ROWS)
    assert cluster.run(source, store, "--workers", "2").wait() == 0
    return store


def started(cluster: Any, source: Path, store: Path) -> Any:
    """A driver that has committed a clip and has more to do."""
    driver = cluster.start(source, store, "--workers", "2")
    assert driver.until(lambda: any(name.startswith("visual/") for name in command.commits_of(store))), driver.err
    return driver


def finish(cluster: Any, source: Path, store: Path, undisturbed: Path, before: dict[str, bytes]) -> None:
    """The same command ends the store, which is then the undisturbed one."""
    driver = cluster.run(source, store, "--workers", "2")
    assert driver.wait() == 0, driver.err
    assert before.items() <= command.commits_of(store).items()
    assert command.files_of(store) == command.files_of(undisturbed) and not verify(store).damage


@pytest.mark.faults
@pytest.mark.ray
def test_disk_that_becomes_read_only(cluster: Any, source: Path, undisturbed: Path, disk: Path) -> None:
    remount(disk, "size=100m")
    store = command.prepare(disk / "s", ROWS)
    driver = started(cluster, source, store)
    # A disk with a file open for writing cannot be remounted; the system does it by force where it fails.
    attempts = 0
    while driver.running:
        done = subprocess.run(["mount", "-o", "remount,ro", "tmpfs", str(disk)], capture_output=True)
        attempts += 1
        if done.returncode == 0:
            break
    else:
        pytest.fail("the run ended before the disk could be made read-only")
    assert driver.wait() == 2
    assert re.search(r"cannot write /.*: Read-only file system; free space or name another", one_line(driver.err))
    before = command.commits_of(store)
    assert before
    command.assert_whole(store)
    again = cluster.run(source, store, "--workers", "2")
    assert again.wait() == 2 and "Read-only file system" in again.err.splitlines()[-1]
    remount(disk, "rw,size=100m")
    finish(cluster, source, store, undisturbed, before)


@pytest.mark.faults
@pytest.mark.ray
def test_store_that_is_moved_away(cluster: Any, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = command.prepare(tmp_path / "s", ROWS)
    driver = started(cluster, source, store)
    store.rename(tmp_path / "moved")
    status = driver.wait()
    assert status == 2, driver.err
    line = one_line(driver.err)
    assert str(store) in line, line
    before = command.commits_of(tmp_path / "moved")
    command.assert_whole(tmp_path / "moved")
    finish(cluster, source, tmp_path / "moved", undisturbed, before)
    if store.exists():
        assert not command.commits_of(store), "a part of the store was written where it was before"


@pytest.mark.faults
@pytest.mark.ray
def test_store_that_is_copied_elsewhere(cluster: Any, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(undisturbed, tmp_path / "deep" / "er" / "copy"))
    assert not verify(copy).damage
    store, original = FeatureStore(copy), FeatureStore(undisturbed)
    assert store.finished and store.fingerprint == original.fingerprint
    assert store.sample(0).visual.keys() == original.sample(0).visual.keys()
    assert str(undisturbed) not in "".join(path.read_text(errors="replace") for path in copy.rglob("*.json"))
    driver = cluster.run(source, copy, "--workers", "2")
    assert driver.wait() == 0 and "nothing to do" in driver.out
    assert command.files_of(copy) == command.files_of(undisturbed)


CLOCK = """
import os, time
# From the first look on, the clock of this process is wrong, and goes back once more while it runs.
_time, _started = time.time, time.monotonic()
_wrong = [{back}, {back} * 3]
time.time = lambda: _time() - _wrong[time.monotonic() - _started > 8]
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.faults
@pytest.mark.ray
def test_clock_that_is_set_back(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    """In the driver and its workers, an hour and then two more; and files come from the future."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(CLOCK.format(back=BACK_S))
    store = command.prepare(tmp_path / "s", ROWS)
    future = time.time() + 10 * 365 * 24 * 3600
    for path in [*store.rglob("*"), *source.rglob("*.jpg")]:
        os.utime(path, (future, future))
    variables = {"PYTHONPATH": f"{tmp_path / 'path'}{os.pathsep}{command.REPOSITORY}"}
    with command.Command(source, store, "--workers", "2", environment=variables) as driver:
        assert driver.wait() == 0, driver.err
    assert command.files_of(store) == command.files_of(undisturbed) and not verify(store).damage


@pytest.mark.faults
@pytest.mark.ray
def test_two_drivers_on_one_store(cluster: Any, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = command.prepare(tmp_path / "s", ROWS)
    drivers = [cluster.start(source, store) for _ in range(2)]
    statuses = [driver.wait() for driver in drivers]
    assert sorted(statuses) == [0, 2], [driver.err for driver in drivers]
    text = drivers[statuses.index(2)].err
    assert "is being written by refavs-extract (process" in text and "wait for its end, stop it or name another" in text
    assert command.files_of(store) == command.files_of(undisturbed) and not verify(store).damage


@pytest.mark.faults
@pytest.mark.ray
def test_small_shared_memory(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Ray keeps its objects in /dev/shm, which is 64 MB in a container by default; features never go there."""
    store = command.prepare(tmp_path / "s", ROWS)
    inside = "mount -t tmpfs -o size=1m tmpfs /dev/shm && exec \"$@\""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "sh", "-c", inside, "", "true"]).returncode:
        pytest.skip("another /dev/shm for one process needs root")
    with command.Command(source, store, "--workers", "2", before=["unshare", "-m", "sh", "-c", inside, ""]) as driver:
        assert driver.wait() == 0, driver.err
        print(f"/dev/shm of 1 MB: {driver.err!r}")
    assert command.files_of(store) == command.files_of(undisturbed) and not verify(store).damage
