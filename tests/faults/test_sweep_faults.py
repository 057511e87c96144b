"""Of a sweep one trial meets a full disk, a NaN loss, the kernel's memory killer, or a store that goes away.

That trial is FAILED with its reason, in the ledger and in MLflow, the others finish, and the exit status is 3. A node
that is lost costs nothing but time: its trials go on elsewhere from their last epoch.
"""

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from experiments.records.ledger import read_metrics
from tests.experiments.small_store import CLIPS, make_store
from tests.faults.command import small_disk
from tests.faults.sweeps import Sweep, assert_whole_in_mlflow, within

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

CGROUPS = Path("/sys/fs/cgroup")
MEMORY_BYTES = 2560 * 2**20  # of a driver, its Ray and small trials


def assert_failed(sweep: Sweep, database: str, reasons: dict[str, str]) -> None:
    """The trials of these cases failed for what the patterns say, the others are finished and whole."""
    for entry in sweep.entries:
        wanted = reasons.get(entry.trial.name)
        assert entry.state == ("finished" if wanted is None else "failed"), entry.status
        if wanted is not None:
            assert re.search(wanted, entry.status["reason"]), entry.status
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name(sweep.out.name)
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        wanted = reasons.get(run.data.tags.get("refavs.case", ""))
        if wanted is not None:
            assert run.info.status == "FAILED" and re.search(wanted, run.data.tags["refavs.reason"])
        elif run.data.tags["refavs.kind"] == "sweep":
            assert run.info.status == ("FAILED" if reasons else "FINISHED")
    assert_whole_in_mlflow(database, sweep, [e.trial.title for e in sweep.entries if e.trial.name not in reasons])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 30 MB."""
    with small_disk(tmp_path / "disk", "30m") as folder:
        yield folder


def test_full_disk_and_a_loss_that_is_not_a_number(disk: Path, tmp_path: Path) -> None:
    grid = """
  train: {epochs: 2, steps_per_epoch: 5}
cases:
  full: {}
  too_large: {model.feedforward_channels: 100000}
  diverges: {train.learning_rate: 1.0e+30}
  no_audio: {model.audio: false}
"""
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store = Path(make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1}).location)
    sweep = Sweep(disk, grid, "--max-concurrent", "1", "--tracking-uri", database, store=store)
    status, out, err = sweep.run()
    assert status == 3 and "Traceback" not in err, err
    reasons = {"too_large": "No space left on device", "diverges": "loss (nan|inf|-inf)"}
    assert_failed(sweep, database, reasons)
    for case, reason in reasons.items():
        assert re.search(f"failed: {case}.*{reason}", out), out
    assert not list(sweep.out.rglob("*.partial")), "what did not fit still takes its place"
    subprocess.run(["mount", "-o", "remount,size=600m", "tmpfs", str(disk)], check=True)
    status, out, err = sweep.run("--retry-failed")
    assert status == 3 and "1 trials finished now, 3 of 4 in all" in out, out + err
    assert_failed(sweep, database, {"diverges": "loss (nan|inf|-inf)"})


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of the kernel with little memory; a process enters it by writing its number into the file."""
    own = next((line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines()
                if line.split(":")[1] in ("memory", "")), "/")  # fmt: skip
    first = CGROUPS / "memory"
    version_1 = (first / "memory.limit_in_bytes").is_file()
    group = (first if version_1 else CGROUPS) / own.lstrip("/") / f"refavs-{os.getpid()}"
    try:
        group.mkdir()
        limit, tasks = ("memory.limit_in_bytes", "tasks") if version_1 else ("memory.max", "cgroup.procs")
        (group / limit).write_text(str(MEMORY_BYTES))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"a limit of memory by the kernel needs root and a control group that can be written ({error})")
    try:
        yield group / tasks
    finally:
        within(lambda: not (group / tasks).read_text().strip())
        group.rmdir()


def test_trial_that_the_kernel_kills_for_its_memory(small_memory: Path, tmp_path: Path) -> None:
    grid = """
  train: {epochs: 2, steps_per_epoch: 5}
cases:
  full: {}
  hungry: {model.num_queries: 150000}  # more are refused at once: their masks alone would not fit
  no_audio: {model.audio: false}
"""
    sweep = Sweep(tmp_path, grid, "--max-concurrent", "1")
    inside = ["sh", "-c", f'echo $$ > {small_memory} && exec "$@"', ""]
    status, out, err = sweep.run(before=inside)
    assert status == 3 and "Traceback" not in err, out + err
    assert_failed(sweep, f"sqlite:///{tmp_path / 'mlflow.db'}", {"hungry": "worker died|memory"})
    events = small_memory.with_name("memory.oom_control"), small_memory.with_name("memory.events")
    text = "".join(file.read_text() for file in events if file.is_file())
    print(text, sweep.entry("hungry").status["reason"])
    assert re.search(r"oom_kill [1-9]", text), f"nothing was killed for its memory: {text}"


def test_store_that_goes_away_in_mid_run(tmp_path: Path) -> None:
    """What a worker has mapped stays; the clips of the test splits are opened when training ends."""
    grid = """
  train: {epochs: 2, steps_per_epoch: 100}
cases:
  full: {}
  no_audio: {model.audio: false}
  no_text: {model.text: false}
"""
    store = Path(make_store(tmp_path / "store", CLIPS).location)
    sweep = Sweep(tmp_path, grid, "--max-concurrent", "1", store=store)
    with sweep.start() as driver:
        folder = sweep.entry("full").folder
        assert driver.until(lambda: read_metrics(folder)), driver.err
        store.rename(tmp_path / "away")
        try:
            driver.until(lambda: '"failed"' in (folder / "status.json").read_text())
        finally:
            (tmp_path / "away").rename(store)
        assert driver.wait() == 3 and "Traceback" not in driver.err, driver.out + driver.err
        assert re.search(f"failed: full, .*{store}", driver.out), driver.out
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert_failed(sweep, database, {"full": f"{store}.*"})
    status, out, err = sweep.run("--retry-failed")
    assert status == 0 and "1 trials finished now, 3 of 3 in all" in out, out + err
    assert_failed(sweep, database, {})


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head node with room for one trial; others come and go."""
    import ray
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    logging.getLogger("ray").setLevel(logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_trials_of_a_lost_node_resume_elsewhere_from_their_last_epoch(nodes: Any, tmp_path: Path) -> None:
    grid = """
  train: {epochs: 8, steps_per_epoch: 60}
cases:
  full: {}
  no_audio: {model.audio: false}
"""
    undisturbed = Sweep(tmp_path / "undisturbed", grid, "--max-concurrent", "2")
    assert undisturbed.run()[0] == 0
    doomed = nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    raylet = doomed.all_processes["raylet"][0].process.pid
    sweep = Sweep(tmp_path / "lost", grid, "--address", nodes.address, store=undisturbed.store)
    with sweep.start() as driver:
        assert driver.until(lambda: all(len(read_metrics(entry.folder)) >= 2 for entry in sweep.entries)), driver.err
        times = {entry.key: [record["time_ms"] for record in read_metrics(entry.folder)] for entry in sweep.entries}
        children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        assert any(Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ImplicitFunc") for pid in children)
        nodes.remove_node(doomed, allow_graceful=False)
        assert driver.wait() == 0 and "Traceback" not in driver.err, driver.out + driver.err
    for entry in sweep.entries:
        records = read_metrics(entry.folder)
        assert [record["time_ms"] for record in records[:2]] == times[entry.key][:2], "it began anew"
    assert sweep.records() == undisturbed.records()
    assert_failed(sweep, f"sqlite:///{tmp_path / 'lost' / 'mlflow.db'}", {})
