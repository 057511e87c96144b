"""A small sweep as a process of its own, an MLflow server, and what MLflow and the ledger must say in the end."""

import json
import os
import signal
import socket
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from experiments.grid.expand import read_grid
from experiments.records.ledger import Entry, Ledger, read_metrics
from experiments.records.stores import features_in
from experiments.tracking.client import points_of
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store
from tests.faults.command import PATIENCE_S, Python

COMMAND = "import sys; from experiments.cli import main; sys.exit(main(sys.argv[1:]))"
SPLITS = {"train": 2, "val": 1, "test_s": 1, "test_n": 1}
BASE = """
base:
  model: {num_layers: 1, num_queries: 2, num_heads: 2, visual_downsample: 2, decoder_layers: 0}
  loss: {num_points: 0}
"""
TIMES = ("train/seconds_per_step", "train/wait_share", "seconds")
WORKER = b"ray::ImplicitFunc"  # what Ray calls a process that runs trials


class Sweep:
    """A folder with a grid, a store and the sweep's output; `start` is the command that a user would give.

    Args:
        grid: YAML, to which the smallest settings of a model are added.
        options: of every call.
        name: of the sweep's folder, and so of its experiment.
    """

    def __init__(self, folder: Path, grid: str, *options: str, store: Path | None = None, name: str = "g") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store or Path(make_store(folder / "store", SPLITS).location)
        self.address = str(self.store)  # as the command is told it, which may be a URL
        self.out, self.options = folder / name, options
        self._grid = folder / "g.yaml"
        self._grid.write_text(BASE + grid)

    def start(self, *options: str, **settings: Any) -> Python:
        """The driver, as a process with a Ray of its own unless `options` name another."""
        return Python("-c", COMMAND, *self.arguments(*options), **settings)

    def arguments(self, *options: str) -> list[str]:
        """Those of the command."""
        return [str(self._grid), "--store", self.address, "--out", str(self.out), *self.options, *options]

    def run(self, *options: str, **settings: Any) -> tuple[int, str, str]:
        """Exit status, output and errors of a call."""
        with self.start(*options, **settings) as driver:
            return driver.wait(), driver.out, driver.err

    @property
    def entries(self) -> list[Entry]:
        """The trials."""
        return Ledger(self.out).entries(read_grid(str(self._grid)).trials, features_in(FeatureStore(self.store)))

    def entry(self, case: str) -> Entry:
        """The first trial of a case."""
        return next(entry for entry in self.entries if entry.trial.name == case)

    @property
    def num_epochs(self) -> int:
        """Epochs that are on disk, of all trials."""
        folders = list(self.out.glob("trials/*"))
        return sum(len(read_metrics(folder)) for folder in folders)

    def records(self) -> dict[str, list[tuple[int, dict[str, float]]]]:
        """Every number of every trial by title, epoch after epoch and then the results, but for what measures time."""
        return {
            entry.trial.title: [
                (record["epoch"], {name: value for name, value in record["metrics"].items() if name not in TIMES})
                for record in (*read_metrics(entry.folder), entry.result or {"epoch": 0, "metrics": {}})
            ]
            for entry in self.entries
        }


class Server:
    """An MLflow server on a database of its own; use it as a context manager.

    Args:
        database: its address; a file in `folder` where none is given.
        artifacts: where it keeps them; a folder in `folder` where none is given.
    """

    def __init__(self, folder: Path, database: str | None = None, artifacts: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database = database or f"sqlite:///{folder / 'server.db'}"
        self._artifacts = artifacts or str(folder / "artifacts")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: Python | None = None

    def __enter__(self) -> "Server":
        self.start()
        self.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts it; it answers some seconds later."""
        self._process = Python(
            "-m", "mlflow", "server", "--backend-store-uri", self.database, "--artifacts-destination", self._artifacts,
            "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            environment={"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip

    def wait(self) -> None:
        """Returns when it answers."""
        assert self._process is not None
        assert self._process.until(self.answers), f"the server has ended:\n{self._process.err}"

    def answers(self) -> bool:
        """Whether it does now."""
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Kills it and its workers."""
        if self._process is not None:
            self._process.__exit__()
            self._process = None


def kill_driver(driver: Python, with_group: bool) -> None:
    """kill -9, of the process alone or of its group; what Ray started is left to itself."""
    if with_group:
        os.killpg(driver.process.pid, signal.SIGKILL)
    else:
        driver.process.send_signal(signal.SIGKILL)
    driver.process.wait(PATIENCE_S)


def trial_workers(driver: Python) -> list[int]:
    """Processes of this driver's Ray in which trials run."""
    return [pid for pid in driver.workers() if _title(pid).startswith(WORKER)]


def ends_by_itself(driver: Python, seconds: float) -> float | None:
    """How long it took until no process of a killed driver's Ray was left; None where some still are."""
    started = time.monotonic()
    while driver.processes():
        if time.monotonic() > started + seconds:
            return None
        time.sleep(0.1)
    return time.monotonic() - started


def within(condition: Callable[[], object]) -> bool:
    """Waits until something is true, for long; False where it is not."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def assert_whole_in_mlflow(database: str, sweep: Sweep, finished: Sequence[str] | None = None) -> None:
    """Asks MLflow for every point of every metric: each trial has one run, and each number of it stands there once.

    Args:
        database: its tracking address, or that of its server.
        finished: titles of the trials that are; all where none are given.
    """
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name(sweep.out.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_kind = Counter(run.data.tags["refavs.kind"] for run in runs)
    assert by_kind == {"sweep": 1, "trial": len(sweep.entries)}
    parent = next(run.info.run_id for run in runs if run.data.tags["refavs.kind"] == "sweep")
    trials = {run.data.tags["refavs.key"]: run for run in runs if run.data.tags["refavs.kind"] == "trial"}
    for entry in sweep.entries:
        if finished is not None and entry.trial.title not in finished:
            continue
        run = trials[entry.key]
        assert run.info.status == "FINISHED" and run.info.end_time is not None
        assert run.data.tags["mlflow.parentRunId"] == parent and "refavs.reason" not in run.data.tags
        assert entry.result is not None
        wanted = [
            (name, record["epoch"], time_ms, value)
            for record in (*read_metrics(entry.folder), entry.result)
            for time_ms, values in points_of(record) for name, value in values.items()
        ]  # fmt: skip
        found = [
            (name, point.step, point.timestamp, point.value)
            for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)
        ]  # fmt: skip
        assert sorted(found) == sorted(wanted), f"{entry.trial.title}: points are doubled, missing or others"


def points_in_database(path: Path) -> int:
    """Rows of all metrics in an SQLite database of MLflow."""
    with sqlite3.connect(path) as connection:
        return connection.execute("select count(*) from metrics").fetchone()[0]


def status_of(entry: Entry) -> dict[str, Any]:
    """The ledger's word on a trial."""
    return json.loads((entry.folder / "status.json").read_text())


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
