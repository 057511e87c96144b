"""The SQLite database of MLflow is made once and whole, and never inside a database of another program."""

import hashlib
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from experiments.tracking import database as module
from experiments.tracking.client import Tracker
from experiments.tracking.database import database_at, first_use
from refavs.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports


@pytest.fixture(autouse=True)
def made_by_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a copy of the one that other tests share."""
    monkeypatch.setattr(module, "_create", module._create.__wrapped__)


def contact(uri: str, name: str) -> None:
    Tracker(uri, name, f"id of {name}", None).contact()


@pytest.mark.process
@pytest.mark.long
def test_sweeps_that_begin_together_with_a_new_database_share_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  once for all

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=contact, args=(uri, f"sweep {number}")) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as connection:
        names = {name for (name,) in connection.execute("select name from experiments")}
        assert names >= {"sweep 0", "sweep 1", "sweep 2"}
        assert connection.execute("select count(*) from alembic_version").fetchall() == [(1,)]


@pytest.mark.process
@pytest.mark.faults
@pytest.mark.long
def test_kill_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    uri, partial = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db.partial"
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    process = multiprocessing.get_context("fork").Process(target=contact, args=(uri, "sweep"))
    process.start()
    deadline = time.monotonic() + 300
    while not partial.exists() or partial.stat().st_size < 100_000:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "mlflow.db").exists()
    contact(uri, "sweep")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table photos (name text)")
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(ConfigError, match=r"photos\.db is a database of another program \(its tables: photos\)"):
        contact(f"sqlite:///{path}", "sweep")
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_long_wait_for_the_database_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    monkeypatch.setattr(module, "_create", lambda uri, database: None)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    told = "another process has been creating the MLflow database"
    with first_use(uri), pytest.raises(ConfigError, match=told), first_use(uri):
        pass


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/b.db?timeout=5", "/a/b.db"),
        ("sqlite:///b.db", "b.db"),
        ("sqlite:///:memory:", None),
        ("sqlite:///", None),
        ("http://host:5000", None),
        ("postgresql://me:secret@host/runs", None),
    ],
)
def test_file_of_an_address(uri: str, path: str | None) -> None:
    assert database_at(uri) == (None if path is None else Path(path))
