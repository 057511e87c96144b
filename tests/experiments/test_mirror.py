"""MLflow mirrors the ledger: nothing is lost during an outage, nothing is duplicated, and trials never wait for it."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from experiments.grid.expand import expand
from experiments.records.ledger import Entry, Ledger
from experiments.tracking import sync as module
from experiments.tracking.client import Tracker, default_tracking_uri
from experiments.tracking.connection import UnreachableError, lasts
from experiments.tracking.database import first_use
from experiments.tracking.sync import Mirror, pending
from refavs.errors import WeightsError
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports

PATIENCE_S = 600
AWAY = MlflowException("API request failed with exception: Connection refused")


class Wire:
    """The client of a tracker, with a line that can be cut.

    Attributes:
        error: raised by every request while it is set.
        of_run: raised by requests that name this run.
        open: requests wait while it is not set.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self.error: Exception | None = None
        self.of_run: dict[str, Exception] = {}
        self.open = threading.Event()
        self.open.set()
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)

        def request(*arguments: Any, **named: Any) -> Any:
            assert self.open.wait(PATIENCE_S)
            if self.error is not None:
                raise self.error
            if arguments and (error := self.of_run.get(str(arguments[0]))):
                raise error
            if name == "log_batch" and "metrics" in named:
                self.batches.append(len(named["metrics"]))
            return found(*arguments, **named)

        return request


class Sweep:
    """A sweep whose trials are written by hand."""

    def __init__(self, root: Path, store: FeatureStore, client: MlflowClient, uri: str) -> None:
        self.ledger, self.store, self.uri = Ledger(root), store, uri
        trials = expand("g", {"grid": {"model.beta": [0, 1]}}, "g.yaml", {}).trials
        self.entries = self.ledger.entries(trials, lambda trial: "store")
        for entry in self.entries:
            self.ledger.enter(entry, "store")
        self.wire = Wire(client)

    def open(self) -> Mirror:
        """Begins a call, as the same command does again."""
        tracker = Tracker(self.uri, "mine", str(self.ledger.root), None)
        tracker.contact()
        tracker.client = self.wire  # type: ignore[assignment]
        mirror = Mirror(tracker, self.ledger, self.store, "g", "why", {}, {"protocol": "canonical"}, self.entries)
        mirror.start()
        for entry in self.entries:
            if pending(entry, self.uri):
                mirror.note(entry)
        return mirror

    def train(self, entry: Entry, *epochs: int, time_ms: int = 1000) -> None:
        """Writes that the trial runs and has these epochs."""
        if entry.state != "running":
            entry.set_status("running", started_s=1.0)
        records = [
            {"epoch": epoch, "time_ms": time_ms + epoch, "seconds": 1.0, "metrics": {"train/loss": time_ms / epoch}}
            for epoch in epochs
        ]
        (entry.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def finish(self, entry: Entry) -> None:
        """Writes that the trial is finished."""
        result = {"epoch": 2, "time_ms": 5000, "metrics": {"test_s/J": 0.5, "seconds": 2.0}}
        (entry.folder / "result.json").write_text(json.dumps(result))
        entry.set_status("finished", seconds=2.0)

    def runs(self, entry: Entry) -> list[Any]:
        """What MLflow has of a trial."""
        experiment = self.wire.client.get_experiment_by_name("mine")
        assert experiment is not None
        found = self.wire.client.search_runs([experiment.experiment_id], f"tags.`refavs.sweep` = '{self.ledger.root}'")
        return [run for run in found if run.data.tags["refavs.key"] == entry.key]

    def points(self, entry: Entry, name: str = "train/loss") -> list[tuple[int, float]]:
        """The points of a metric of the trial's only run."""
        (run,) = self.runs(entry)
        return [(point.step, point.value) for point in self.wire.client.get_metric_history(run.info.run_id, name)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 1})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setattr(module, "write_card", lambda *arguments: None)  # there is no checkpoint
        patch.setattr(module, "LONGEST_PAUSE_S", 0.1)
        yield default_tracking_uri(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def sweep(store: FeatureStore, uri: str, tmp_path: Path) -> Sweep:
    with first_use(uri):
        client = MlflowClient(uri)
    return Sweep(tmp_path / "sweep", store, client, uri)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
def test_server_that_goes_away_and_comes_back_loses_nothing(sweep: Sweep) -> None:
    first, second = sweep.entries
    mirror = sweep.open()
    sweep.train(first, 1)
    mirror.note(first)
    wait_for(lambda: not mirror.error and len(sweep.wire.batches) == 1)
    sweep.wire.error = AWAY
    sweep.wire.open.clear()  # were the sweep to wait for an answer, it would wait here
    for epoch in (2, 3):
        sweep.train(first, *range(1, epoch + 1))
        mirror.note(first)
    sweep.finish(first)
    mirror.note(first)
    sweep.train(second, 1, 2)
    second.set_status("failed", reason="it broke")
    mirror.note(second)
    sweep.wire.open.set()
    wait_for(lambda: bool(mirror.error))
    sweep.wire.error = None
    assert mirror.close("FAILED") == []
    assert sweep.points(first) == [(1, 1000.0), (2, 500.0), (3, 1000 / 3)] and sweep.points(first, "test_s/J") != []
    assert sweep.points(second) == [(1, 1000.0), (2, 500.0)]
    assert [sweep.runs(entry)[0].info.status for entry in sweep.entries] == ["FINISHED", "FAILED"]
    assert sweep.runs(second)[0].data.tags["refavs.reason"] == "it broke"
    assert sweep.runs(first)[0].data.tags["refavs.protocol"] == "canonical"
    assert not any(pending(entry, sweep.uri) for entry in sweep.entries)
    assert ["does not accept data (MlflowException: API request" in mirror.messages[0], mirror.messages[1]] == [
        True, "MLflow answers again",
    ]  # fmt: skip


@pytest.mark.long
def test_what_is_left_at_the_end_is_sent_by_the_next_call(sweep: Sweep) -> None:
    first, second = sweep.entries
    mirror = sweep.open()
    wait_for(lambda: "run_id" in sweep.ledger.sweep)
    sweep.wire.error = AWAY
    sweep.train(first, 1, 2)
    sweep.finish(first)
    second.set_status("running", started_s=1.0)
    second.set_status("stopped")
    for entry in sweep.entries:
        mirror.note(entry)
    left = mirror.close("KILLED", wait_s=0.3)
    assert set(left) == {"the sweep's own run", first.trial.title, second.trial.title}
    assert all(pending(entry, sweep.uri) for entry in sweep.entries)
    sweep.wire.error = None
    assert sweep.open().close("FINISHED") == []
    assert sweep.points(first) == [(1, 1000.0), (2, 500.0)]
    assert [sweep.runs(entry)[0].info.status for entry in sweep.entries] == ["FINISHED", "KILLED"]
    number = len(sweep.wire.batches)
    assert sweep.open().close("FINISHED") == [] and len(sweep.wire.batches) == number  # and once only


@pytest.mark.long
def test_each_epoch_is_one_request_and_a_request_whose_note_was_lost_changes_nothing(sweep: Sweep) -> None:
    entry = sweep.entries[0]
    mirror = sweep.open()
    for epoch in (1, 2, 3):
        sweep.train(entry, *range(1, epoch + 1))
        mirror.note(entry)
        wait_for(lambda epoch=epoch: len(sweep.wire.batches) == epoch)
    mirror.close("KILLED")
    (entry.folder / module.FILE).unlink()
    sweep.finish(entry)
    assert sweep.open().close("FINISHED") == []
    assert sweep.points(entry) == [(1, 1000.0), (2, 500.0), (3, 1000 / 3)]


def test_restarted_trial_leaves_no_metrics_of_its_first_run(sweep: Sweep) -> None:
    entry = sweep.entries[0]
    mirror = sweep.open()
    sweep.train(entry, 1, 2)
    mirror.note(entry)
    wait_for(lambda: len(sweep.wire.batches) == 1)
    sweep.train(entry, 1, time_ms=2000)
    mirror.note(entry)
    wait_for(lambda: len(sweep.wire.batches) == 2)
    assert mirror.close("KILLED") == [] and sweep.points(entry) == [(1, 2000.0)]


@pytest.mark.long
def test_rerun_takes_the_old_run_out_at_once(sweep: Sweep) -> None:
    entry = sweep.entries[0]
    sweep.train(entry, 1, 2)
    sweep.finish(entry)
    assert sweep.open().close("FINISHED") == []
    sweep.ledger.discard(entry)
    assert entry.state == "new" and pending(entry, sweep.uri)
    assert sweep.open().close("KILLED") == [] and sweep.runs(entry) == [] and not pending(entry, sweep.uri)
    sweep.train(entry, 1, 2, time_ms=3000)
    sweep.finish(entry)
    assert sweep.open().close("FINISHED") == [] and sweep.points(entry) == [(1, 3000.0), (2, 1500.0)]


@pytest.mark.long
def test_data_refused_by_mlflow_is_reported_and_the_rest_is_sent(sweep: Sweep) -> None:
    first, second = sweep.entries
    for entry in sweep.entries:
        sweep.train(entry, 1)
    assert sweep.open().close("KILLED") == []
    run_id = sweep.runs(first)[0].info.run_id
    sweep.wire.of_run[run_id] = MlflowException("no", error_code=INVALID_PARAMETER_VALUE)
    for entry in sweep.entries:
        sweep.train(entry, 1, 2)
        sweep.finish(entry)
    mirror = sweep.open()
    assert mirror.close("FINISHED") == [first.trial.title] and pending(first, sweep.uri)
    assert sweep.runs(second)[0].info.status == "FINISHED" and list(mirror.messages) == [
        f"MLflow refuses {first.trial.title}: MlflowException: no"
    ]
    # A server that has lost its database gets everything again.
    sweep.wire.of_run[run_id] = MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
    sweep.wire.client.delete_run(run_id)
    assert sweep.open().close("FINISHED") == []
    assert sweep.points(first) == [(1, 1000.0), (2, 500.0)]


def test_run_that_was_deleted_between_two_calls_gets_all_epochs_again(sweep: Sweep) -> None:
    entry = sweep.entries[0]
    sweep.train(entry, 1, 2)
    entry.set_status("stopped")
    assert sweep.open().close("KILLED") == []
    sweep.wire.client.delete_run(sweep.runs(entry)[0].info.run_id)
    entry.set_status("running", started_s=2.0)
    sweep.train(entry, 1, 2, 3)
    assert sweep.open().close("KILLED") == []
    assert sweep.points(entry) == [(1, 1000.0), (2, 500.0), (3, 1000 / 3)]


def test_runs_deleted_while_running_are_created_again(sweep: Sweep) -> None:
    entry = sweep.entries[0]
    mirror = sweep.open()
    sweep.train(entry, 1)
    mirror.note(entry)
    wait_for(lambda: len(sweep.wire.batches) == 1)
    for run_id in (sweep.runs(entry)[0].info.run_id, sweep.ledger.sweep["run_id"]):
        sweep.wire.client.delete_run(run_id)
    sweep.train(entry, 1, 2)
    mirror.note(entry)
    assert mirror.close("KILLED") == [] and sweep.points(entry) == [(1, 1000.0), (2, 500.0)]
    parent = sweep.wire.client.get_run(sweep.ledger.sweep["run_id"]).info
    assert (parent.lifecycle_stage, parent.status) == ("active", "KILLED")
    assert sweep.runs(entry)[0].data.tags["mlflow.parentRunId"] == parent.run_id


@pytest.mark.long
def test_sweep_that_mlflow_lost_is_sent_again_as_a_whole(sweep: Sweep) -> None:
    first, second = sweep.entries
    sweep.train(first, 1, 2)
    sweep.finish(first)
    assert sweep.open().close("FINISHED") == [] and not pending(first, sweep.uri)
    for run_id in (sweep.runs(first)[0].info.run_id, sweep.ledger.sweep["run_id"]):
        sweep.wire.client.delete_run(run_id)
    sweep.train(second, 1)
    assert sweep.open().close("FINISHED") == []
    assert sweep.points(first) == [(1, 1000.0), (2, 500.0)] and sweep.points(second) == [(1, 1000.0)]
    assert sweep.runs(first)[0].info.status == "FINISHED"


def test_records_that_cannot_be_seen_yet_are_waited_for(sweep: Sweep) -> None:
    entry = sweep.entries[0]
    sweep.train(entry, 1)
    sweep.finish(entry)
    mirror = sweep.open()
    wait_for(lambda: bool(mirror.error))
    assert "are not visible yet" in mirror.error
    sweep.train(entry, 1, 2)
    entry.set_status("finished")
    assert mirror.close("FINISHED") == [] and sweep.points(entry) == [(1, 1000.0), (2, 500.0)]


def test_checkpoint_that_is_gone_holds_nothing_else_up(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise WeightsError("no config.json")

    first, second = sweep.entries
    for entry in sweep.entries:
        sweep.train(entry, 1, 2)
    sweep.finish(first)
    monkeypatch.setattr(module, "write_card", refuse)
    mirror = sweep.open()
    assert mirror.close("FINISHED") == [first.trial.title] and sweep.points(second) == [(1, 1000.0), (2, 500.0)]
    assert mirror.refused == {first.trial.title: "WeightsError: no config.json"}


def test_permanent_errors_are_distinguished() -> None:
    assert lasts(ModuleNotFoundError("psycopg2")) and lasts(WeightsError("gone"))
    assert not lasts(UnreachableError("away")) and not lasts(AWAY) and not lasts(ConnectionError("cut"))


def test_traceback_of_a_failed_trial_is_an_artifact(sweep: Sweep) -> None:
    mirror, entry = sweep.open(), sweep.entries[0]
    sweep.train(entry, 1)
    (entry.folder / "error.txt").write_text("Traceback (most recent call last): ...")
    entry.set_status("failed", reason="it broke")
    mirror.note(entry)
    assert mirror.close("FAILED") == []
    (run,) = sweep.runs(entry)
    assert run.info.status == "FAILED" and run.data.tags["refavs.reason"] == "it broke"
    assert "error.txt" in [item.path for item in sweep.wire.client.list_artifacts(run.info.run_id)]
