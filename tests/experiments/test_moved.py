"""A sweep whose folder was moved or renamed with MLflow's database, and paths that addresses have to escape."""

import contextlib
import json
import os
import sqlite3
import sys
import types
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.records.ledger import Ledger
from experiments.sweep.driver import refuse_unwritable, run_sweep
from experiments.sweep.outcome import Options
from experiments.tracking.client import default_tracking_uri
from experiments.tracking.database import database_at, sqlite_uri
from experiments.tracking.place import follow_database, moved_to
from experiments.tracking.sync import pending
from refavs.errors import ConfigError
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store
from tests.experiments.test_sweep import InProcess, grid_of

ODD = ["50%20off", "what?now", "a#b", "100%", "a%3Fb?c=d&e", "sp ace", "q'uo\"te", "at@home", "co:lon", "br[old]", "é"]


def database_with(path: Path, run_id: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table runs (run_uuid text)")
        connection.execute("insert into runs values (?)", (run_id,))
        connection.commit()
    return path


@pytest.mark.parametrize("name", ODD)
def test_database_of_any_path_has_an_address(tmp_path: Path, name: str) -> None:
    from sqlalchemy import create_engine, text

    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = default_tracking_uri(path.parent / "smoke")
    assert database_at(uri) == path
    with contextlib.closing(create_engine(uri).connect()) as connection:
        connection.execute(text("create table a (b text)"))
    assert path.is_file() and [entry.name for entry in tmp_path.iterdir()] == [name]


def test_server_address_is_not_a_file() -> None:
    for uri in ("http://host:5000", "postgresql://me@host/db", "sqlite://", "sqlite:///:memory:?cache=shared"):
        assert database_at(uri) is None
    assert database_at("sqlite:///runs/a.db") == Path("runs/a.db")


def test_only_a_database_that_has_the_run_is_followed(tmp_path: Path) -> None:
    now = sqlite_uri(database_with(tmp_path / "after" / "mlflow.db", "run"))
    facts = {"tracking_uri": f"sqlite:///{tmp_path}/before/mlflow.db", "run_id": "run"}
    assert moved_to(facts, now) == now
    assert moved_to({**facts, "run_id": "another"}, now) is None
    assert moved_to({**facts, "tracking_uri": "http://host"}, now) is None
    assert moved_to(facts, f"sqlite:///{tmp_path}/nowhere/mlflow.db") is None
    (tmp_path / "after" / "mlflow.db").write_text("no database")
    assert moved_to(facts, now) is None
    database_with(tmp_path / "before" / "mlflow.db", "run")
    assert moved_to(facts, sqlite_uri(database_with(tmp_path / "copy" / "mlflow.db", "run"))) is None


def test_data_sent_to_a_moved_database_counts_as_sent(tmp_path: Path) -> None:
    now = sqlite_uri(database_with(tmp_path / "after" / "mlflow.db", "run"))
    before, ledger = f"sqlite:///{tmp_path}/before/mlflow.db", Ledger(tmp_path / "after" / "s")
    ledger.set_sweep(tracking_uri=before, run_id="run", closed="mark of before")
    sent = {"trials/a": {"uri": before, "epochs": 3}, "trials/b": {"uri": "http://host", "epochs": 2}}
    for name, facts in sent.items():
        (ledger.root / name).mkdir(parents=True)
        (ledger.root / name / "mlflow.json").write_text(json.dumps(facts))
    marks = {before: "mark of before", now: "mark of now", "http://host": "mark of host"}
    follow_database(ledger, "http://host", marks)  # a second server has none of it
    assert ledger.sweep["tracking_uri"] == before and ledger.sweep["closed"] == "mark of before"
    follow_database(ledger, now, marks)
    assert ledger.sweep["tracking_uri"] == now and ledger.sweep["closed"] == "mark of now"
    found = {name: json.loads((ledger.root / name / "mlflow.json").read_text()) for name in sent}
    assert found == {"trials/a": {"uri": now, "epochs": 3}, "trials/b": sent["trials/b"]}


def test_sweep_folder_with_a_non_utf8_name_is_refused() -> None:
    refuse_unwritable("the store", "/é")
    with pytest.raises(ConfigError, match=r"the store '/caf\\udce9/s' has bytes in its name that are not UTF-8"):
        refuse_unwritable("the store", os.fsdecode(b"/caf\xe9/s"))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    jobs = InProcess()
    runner = types.SimpleNamespace(run_trials=jobs.run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    return jobs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_moved_and_renamed_sweep_continues(jobs: InProcess, store: FeatureStore, tmp_path: Path) -> None:
    """Into a folder of an odd name, with the database; then its own folder gets another name."""
    before, after = tmp_path / "before", tmp_path / "50%20off?#"
    run_sweep(grid_of("full"), store, before / "s")
    first = Ledger(before / "s").sweep
    before.rename(after)
    outcome = run_sweep(grid_of("full"), store, after / "s")
    assert outcome.num_run == 0 and not outcome.unsent and not before.exists()
    assert database_at(outcome.tracking_uri) == after / "mlflow.db"
    assert not any(pending(entry, outcome.tracking_uri) for entry in outcome.entries)
    (key,) = [entry.key for entry in outcome.entries]

    (after / "s").rename(after / "renamed")
    outcome = run_sweep(grid_of("full"), store, after / "renamed", options=Options(rerun=(key[:8],)))
    assert outcome.num_run == 1 and not outcome.unsent
    assert Ledger(after / "renamed").sweep["run_id"] == first["run_id"]
    client = MlflowClient(outcome.tracking_uri)
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(str(run.info.run_name) for run in runs) == ["full, seed 0", "g"]
    gone = client.search_runs([experiment.experiment_id], run_view_type=2)  # the deleted ones
    assert [run.info.run_name for run in gone] == ["full, seed 0"]
