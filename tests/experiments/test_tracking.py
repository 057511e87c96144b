"""MLflow runs: parent and children, no duplicates after a resume, and correct statuses."""

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from experiments.grid.expand import expand
from experiments.records.ledger import Entry, Ledger
from experiments.tracking.artifacts import download
from experiments.tracking.client import Tracker, default_tracking_uri, git_facts, metric_name
from experiments.tracking.connection import without_password
from experiments.tracking.logged_models import model_of
from experiments.tracking.place import refuse_elsewhere
from refavs.errors import ConfigError
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 1})


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    out = tmp_path_factory.mktemp("runs") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        tracker = Tracker(default_tracking_uri(out), "mine", "sweep-id", out.parent / "artifacts")
        tracker.contact()
        yield tracker


def entry_of(folder: Path, beta: float, workers: int = 1) -> Entry:
    trials = expand("g", {"base": {"model.beta": beta, "resources.workers": workers}}, "g.yaml", {}).trials
    return Ledger(folder).entries(trials, lambda trial: "store")[0]


def record(epoch: int, loss: float) -> dict[str, Any]:
    return {"epoch": epoch, "time_ms": 1000 + epoch, "metrics": {"train/loss": loss, "val/a+b/J": 0.5},
            "usage": [{"time_ms": 1000 * epoch + second, "memory": 8.0} for second in (1, 2)]}


def test_database_lies_beside_the_sweep(tmp_path: Path) -> None:
    assert default_tracking_uri(tmp_path / "runs" / "smoke") == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.long
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "foo://x", "sqlite:///{}/not.db"])
def test_tracking_address_that_cannot_be_used_is_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("no database\n" * 100)
    with pytest.raises(ConfigError, match=r"^MLflow at .* cannot be used \(.*\); give by --tracking-uri a running"):
        Tracker(uri.format(tmp_path), "mine", "sweep-id", None).contact()


@pytest.mark.long
def test_deleted_experiment_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    uri = tracker.client.tracking_uri
    gone = Tracker(uri, "gone", "sweep-id", tmp_path)
    gone.contact()
    tracker.client.delete_experiment(gone.experiment_id)
    with pytest.raises(ConfigError, match=r"'gone' at sqlite:.* is deleted; bring it back with .* restore --exp"):
        Tracker(uri, "gone", "sweep-id", tmp_path).contact()


def test_trial_is_a_child_with_its_settings_and_the_store(
    tracker: Tracker, store: FeatureStore, tmp_path: Path
) -> None:
    parent = tracker.start_sweep("g", "why", store, {"trials": 2})
    run_id = tracker.start_trial(entry_of(tmp_path, 0.25), parent, store)
    run = tracker.client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent and run.info.status == "RUNNING"
    assert run.data.params["model.beta"] == "0.25" and run.data.params["train.learning_rate"] == "0.0001"
    assert run.data.tags["refavs.store"] == store.fingerprint and run.data.tags["refavs.features"] == "random weights"
    (dataset,) = [item.dataset for item in run.inputs.dataset_inputs]
    assert dataset.digest == store.fingerprint[:36]
    assert tracker.client.get_run(parent).data.tags["mlflow.note.content"] == "why"


def test_start_again_finds_the_run(tracker: Tracker, store: FeatureStore, tmp_path: Path) -> None:
    parent = tracker.start_sweep("g", "why", store, {"trials": 3})
    assert tracker.start_sweep("g", "why", store, {"trials": 4}) == parent
    entry = entry_of(tmp_path, 0.5)
    run_id = tracker.start_trial(entry, parent, store)
    tracker.end(run_id, "FAILED", "it broke")
    failed = tracker.client.get_run(run_id)
    assert failed.info.status == "FAILED" and failed.data.tags["refavs.reason"] == "it broke"
    assert tracker.start_trial(entry_of(tmp_path, 0.5, workers=2), parent, store) == run_id  # it may go on otherwise
    run = tracker.client.get_run(run_id)
    assert run.data.tags["refavs.resources.workers"] == "2"
    assert run.info.status == "RUNNING" and "refavs.reason" not in run.data.tags
    assert len(run.inputs.dataset_inputs) == 1


def test_trial_that_begins_anew_is_another_run_and_the_only_one(
    tracker: Tracker, store: FeatureStore, tmp_path: Path
) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    entry = entry_of(tmp_path, 2.5)
    first = tracker.start_trial(entry, parent, store)
    second = tracker.start_trial(entry, parent, store, attempt=1, started_ms=1234)
    assert first != second and tracker.start_trial(entry, parent, store, attempt=1) == second
    assert tracker.client.get_run(first).info.lifecycle_stage == "deleted"
    assert tracker.client.get_run(second).info.start_time == 1234
    tracker.keep_only(entry.key, None)
    assert tracker.client.get_run(second).info.lifecycle_stage == "deleted"


def test_run_whose_creation_was_not_answered_is_found_and_a_late_second_one_removed(
    tracker: Tracker, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    entry, create = entry_of(tmp_path, 3.5), tracker.client.create_run
    made: list[str] = []

    def lost(*arguments: Any, **named: Any) -> None:
        made.append(create(*arguments, **named).info.run_id)
        raise ConnectionError("the answer was lost")

    monkeypatch.setattr(tracker.client, "create_run", lost)
    with pytest.raises(ConnectionError):
        tracker.start_trial(entry, parent, store)
    monkeypatch.undo()
    assert [tracker.start_trial(entry, parent, store)] == made
    tags = tracker.client.get_run(made[0]).data.tags
    late = create(tracker.experiment_id, tags={name: tags[name] for name in ("refavs.sweep", "refavs.key")})
    tracker.keep_only(entry.key, made[0])
    assert tracker.client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"


def test_model_is_registered_once(tracker: Tracker, store: FeatureStore, tmp_path: Path) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    runs = [tracker.start_trial(entry_of(tmp_path, beta), parent, store) for beta in (4.5, 5.5)]
    versions = [tracker.register("it's", run_id, "key") for run_id in (runs[0], runs[0], runs[1])]
    assert versions == [("1", "champion"), ("1", "champion"), ("2", "champion")]
    version = tracker.client.get_model_version("it's", "1")
    assert version.run_id == runs[0] and version.source.endswith(f"{runs[0]}/artifacts/checkpoint")
    other = Tracker(tracker.uri, "mine", "another", None)
    other.contact()
    run_id = other.start_trial(entry_of(tmp_path, 4.5), parent, store)
    assert other.register("it's", run_id, "key") == ("3", "challenger")
    aliases = tracker.client.get_registered_model("it's").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"champion": "2", "challenger": "3"}


def test_checkpoint_is_one_logged_model_that_goes_with_its_run(
    tracker: Tracker, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    entry = entry_of(tmp_path, 7.5)
    (tmp_path / "checkpoint").mkdir()
    for name in ("MLmodel", "config.json", "config.json.12.partial"):
        (tmp_path / "checkpoint" / name).write_text(name)
    run_id = tracker.start_trial(entry, parent, store)
    for _ in range(2):
        assert tracker.log_model(run_id, tmp_path / "checkpoint", entry.key)
    model = model_of(tracker.client, run_id)
    assert model is not None and model.tags["refavs.key"] == entry.key and str(model.status) == "READY"
    files = tracker.client.list_logged_model_artifacts(model.model_id)
    assert sorted(item.path for item in files) == ["MLmodel", "config.json"]
    (output,) = tracker.client.get_run(run_id).outputs.model_outputs
    assert output.model_id == model.model_id
    assert (download(tracker.uri, run_id, "checkpoint") / "config.json").read_text() == "config.json"
    tracker.keep_only(entry.key, None)
    assert model_of(tracker.client, run_id) is None

    def unknown(*arguments: Any, **named: Any) -> None:
        raise MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(tracker.client, "search_logged_models", unknown)  # a server of MLflow 2
    monkeypatch.setattr(tracker.client, "create_logged_model", unknown)
    assert not tracker.log_model(run_id, tmp_path / "checkpoint", entry.key)


def test_record_sent_twice_is_one_point(tracker: Tracker, store: FeatureStore, tmp_path: Path) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    run_id = tracker.start_trial(entry_of(tmp_path, 0.75), parent, store)
    tracker.log_records(run_id, [record(1, 0.5)])
    tracker.log_records(run_id, [record(1, 0.5), record(2, 0.4), record(3, 0.3)])
    points = tracker.client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.4), (3, 0.3)]
    assert len(tracker.client.get_metric_history(run_id, "val/a_b/J")) == 3
    points = tracker.client.get_metric_history(run_id, "system/memory")
    assert [(point.timestamp, point.step) for point in points] == [
        (1001, 1), (1002, 1), (2001, 2), (2002, 2), (3001, 3), (3002, 3)
    ]  # fmt: skip


def test_folder_is_uploaded_and_the_run_finished(tracker: Tracker, store: FeatureStore, tmp_path: Path) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    run_id = tracker.start_trial(entry_of(tmp_path, 1.25), parent, store)
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "a.png").write_bytes(b"x")
    (tmp_path / "overlays" / "b.png.4711.partial").write_bytes(b"of a writer that was killed")
    (tmp_path / "config.json").write_text("{}")
    tracker.log_folder(run_id, tmp_path, ("overlays", "config.json", "absent"))
    tracker.end(run_id, "FINISHED")
    assert sorted(item.path for item in tracker.client.list_artifacts(run_id)) == ["config.json", "overlays"]
    assert [item.path for item in tracker.client.list_artifacts(run_id, "overlays")] == ["overlays/a.png"]
    guarded = Tracker(tracker.uri, "mine", "sweep-id", None, guard=functools.partial(refuse_elsewhere, out=tmp_path))
    with pytest.raises(ConfigError, match=r"its artifacts would go to file:.*artifacts"):
        guarded.contact()
    assert tracker.client.get_run(run_id).info.status == "FINISHED"


def test_more_metrics_than_one_request_takes_are_all_logged(
    tracker: Tracker, store: FeatureStore, tmp_path: Path
) -> None:
    parent = tracker.start_sweep("g", "", store, {})
    run_id = tracker.start_trial(entry_of(tmp_path, 1.5), parent, store)
    tracker.log_records(run_id, [record(epoch, 1 / epoch) for epoch in range(1, 602)])
    assert len(tracker.client.get_metric_history(run_id, "train/loss")) == 601


def test_metric_names_hold_only_what_mlflow_takes() -> None:
    assert metric_name("test_s/acoustic+temporal/J") == "test_s/acoustic_temporal/J"
    long = [metric_name(f"test_s/{'long ' * 60}{end}/J") for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) == 250 for name in long)


def test_names_of_any_length_and_kind_are_taken(tracker: Tracker, store: FeatureStore, tmp_path: Path) -> None:
    parent = tracker.start_sweep("g" * 300, "w" * 30_000, store, {"grid_file": "f" * 9000})
    (trial,) = expand("g", {"base": {"model.beta": 6.5}, "cases": {"c" * 300: {}}}, "g.yaml", {}).trials
    run_id = tracker.start_trial(Ledger(tmp_path).entries((trial,), lambda trial: "store")[0], parent, store)
    names = ["d" * 300, "..", ".", "", "a//b", "/a", "日本語", "a\nb", "[/red]", "🦆", "a" * 249 + "é"]
    metrics = {f"val/{name}/J": 0.5 for name in names}
    tracker.log_records(run_id, [{"epoch": 1, "time_ms": 1, "metrics": metrics}])
    tracker.end(run_id, "FAILED", "r" * 9000)
    assert len(tracker.client.get_run(run_id).data.metrics) >= len(names) - 3  # ".", ".." and "" are the same there


def test_git_facts_tell_commit_and_dirtiness(tmp_path: Path) -> None:
    assert git_facts(tmp_path) == {}

    def git(*arguments: str) -> str:
        own = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "core.hooksPath=/dev/null"]
        command = ["git", "-C", str(tmp_path), *own, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "__init__.py").write_text("")
    assert git_facts(tmp_path) == {}
    git("add", ".")
    git("commit", "-m", "x")
    clean = {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "mlflow.source.git.dirty": "false"}
    assert git_facts(tmp_path) == clean
    (tmp_path / "__init__.py").write_text("changed")
    assert git_facts(tmp_path) == {**clean, "mlflow.source.git.dirty": "true"}


def test_git_facts_of_code_that_travelled_are_those_it_was_sent_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFAVS_GIT_COMMIT", "abc")
    monkeypatch.setenv("REFAVS_GIT_DIRTY", "false")
    assert git_facts(tmp_path) == {"mlflow.source.git.commit": "abc", "mlflow.source.git.dirty": "false"}


def test_address_is_shown_without_its_password() -> None:
    shown = {without_password(uri) for uri in ("http://host/a@b", "http://me:secret@host/a@b", "http://me:p@ss@host/a@b")}
    assert shown == {"http://host/a@b"}
