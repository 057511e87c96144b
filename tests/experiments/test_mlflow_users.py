"""What a user of MLflow expects: its environment, its search, its registry, and models that its own functions load."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from experiments.cli import main
from experiments.tracking import user_settings
from experiments.tracking.client import Tracker
from experiments.tracking.model_card import write_card
from refavs.data.rle import decoded
from refavs.errors import ConfigError
from tests.experiments import small_run
from tests.experiments.small_store import make_store
from tests.experiments.test_sweep import BASE, InProcess, jobs  # noqa: F401  a fixture
from tests.experiments.test_tracking import entry_of

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of MLflow and what it imports


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database that only the environment names."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path / 'team' / 'mlflow.db'}")
    (tmp_path / "team").mkdir()
    yield uri


def test_script_of_an_mlflow_user_finds_the_sweep(
    jobs: InProcess, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    store = make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({"base": BASE, "grid": {"model.beta": [0, 1]}}))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "audio team")
    monkeypatch.setenv("MLFLOW_RUN_TAGS", '{"team": "audio", "ticket": 42}')
    out = tmp_path / "runs" / "mine"
    given = [str(tmp_path / "g.yaml"), "--store", store.location, "--out", str(out), "--tag", "team=video"]
    assert main([*given, "--register", "eemc"]) == 0
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    found = mlflow.search_runs(
        experiment_names=["audio team"], filter_string="tags.`refavs.kind` = 'trial' and metrics.`val/J` >= 0",
        order_by=["metrics.`val/J` DESC"],
    )
    assert isinstance(found, pd.DataFrame) and set(found["status"]) == {"FINISHED"}
    assert sorted(found["params.model.beta"]) == ["0.0", "1.0"] and found["metrics.test_s/J"].notna().all()
    assert set(found["tags.team"]) == {"video"} and set(found["tags.ticket"]) == {"42"}
    (parent,) = set(found["tags.mlflow.parentRunId"])
    run = mlflow.get_run(parent)
    best = found.iloc[0]
    assert run.data.metrics["best/val/J"] == best["metrics.val/J"] and run.data.tags["team"] == "video"
    source = mlflow.data.get_source(run.inputs.dataset_inputs[0])
    assert json.loads(source.to_json()) == {"uri": str((tmp_path / "store").resolve())}
    models = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
    assert {model.source_run_id for model in models} == set(found["run_id"])
    version = MlflowClient().get_model_version_by_alias("eemc", "champion")
    assert version.run_id == best["run_id"] and version.current_stage in (None, "None")
    fetched = Path(mlflow.artifacts.download_artifacts(f"runs:/{best['run_id']}/checkpoint"))
    assert {path.name for path in fetched.iterdir()} >= {"MLmodel", "config.json", "model.safetensors"}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(given) == 2  # the recorded address is not obeyed unless somebody names it


def test_registered_model_predicts_through_mlflow(
    uri: str, small_networks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "features").mkdir()
    store = small_run.make_store(tmp_path / "features")
    trial = small_run.make_trial(store, tmp_path / "trial")
    write_card(trial / "checkpoint", store)
    tracker = Tracker(uri, "mine", "sweep-id", tmp_path / "artifacts")
    tracker.contact()
    entry = entry_of(tmp_path / "ledger", 1.0)
    run_id = tracker.start_trial(entry, tracker.start_sweep("g", "", store, {}), store)
    tracker.log_model(run_id, trial / "checkpoint", entry.key)
    assert tracker.register("eemc", run_id, entry.key) == ("1", "champion")
    model = mlflow.pyfunc.load_model("models:/eemc@champion", model_config={"device": "cpu"})
    assert [column.name for column in model.metadata.signature.inputs] == ["video", "expression"]
    video = str(small_run.video_of(store))
    rows = pd.DataFrame({"video": [video, video], "expression": small_run.SENTENCES[:2]})
    found = model.predict(rows)
    assert found[["video", "expression"]].equals(rows)
    masks = np.stack([decoded(one) for one in found["masks"][0]])
    assert masks.shape == (10, 72, 128) and len(found["object_probability"][1]) == 10
    again = model.predict(rows.iloc[1:])
    assert again["masks"].iloc[0] == found["masks"].iloc[1]
    with pytest.raises(mlflow.exceptions.MlflowException, match="expression"):
        model.predict(rows[["video"]])
    assert not any(path.suffix in (".pkl", ".pickle") for path in (tmp_path / "artifacts").rglob("*"))


def test_old_database_is_told_how_to_upgrade(uri: str, tmp_path: Path) -> None:
    Tracker(uri, "mine", "sweep-id", tmp_path).contact()
    with sqlite3.connect(tmp_path / "team" / "mlflow.db") as connection:
        connection.execute("update alembic_version set version_num = '97727af70f4d'")
    with pytest.raises(ConfigError, match=r"made by an older MLflow; .* run 'mlflow db upgrade sqlite:"):
        fresh(Tracker(uri, "mine", "sweep-id", tmp_path))


def fresh(tracker: Tracker) -> None:
    """Contacts as a new process does, which has not opened the database before."""
    from mlflow.tracking._tracking_service import utils

    utils._get_store.__globals__["_tracking_store_registry"]._get_store_with_resolved_uri.cache_clear()
    tracker.contact()


@pytest.mark.parametrize("told", ["team=audio", '["a"]', '{"a": [1]}', "{"])
def test_tags_that_are_no_object_are_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_TAGS", told)
    with pytest.raises(ConfigError, match=r"MLFLOW_RUN_TAGS is .*; accepted: a JSON object of texts"):
        user_settings.run_tags()


@pytest.mark.parametrize(("option", "message"), [
    ("team", "accepted: NAME=VALUE"), ("=x", "accepted: NAME=VALUE"), ("refavs.key=x", "cannot be called 'refavs.key'"),
])  # fmt: skip
def test_odd_tags_are_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        user_settings.run_tags([option])


def test_an_option_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_settings.address(None) is None and user_settings.experiment(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert user_settings.address(None) == "http://team:5000" and user_settings.address("sqlite:///a") == "sqlite:///a"
    assert user_settings.experiment(None) == "theirs" and user_settings.experiment("mine") == "mine"
