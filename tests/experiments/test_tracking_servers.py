"""Sweeps that log to a real MLflow server on PostgreSQL, and to SQLite from eight trials at once."""

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.sweeps import Server, Sweep, assert_whole_in_mlflow, points_in_database

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

GRID = """
  train: {epochs: 3, steps_per_epoch: 4}
cases: {full: {}, no_audio: {model.audio: false}}
"""


def postgres_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a new PostgreSQL database, whose server ends with the test."""
    programs = postgres_programs()
    if programs is None or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("no PostgreSQL here: it takes its programs and the package psycopg2-binary")
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="rf-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            try:
                pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        data = folder / "data"
        control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
        initdb = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "refavs", "-A", "trust", "-E", "UTF8"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/")
        options = f"-p {port} -h 127.0.0.1 -k {folder}"
        subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        try:
            yield f"postgresql+psycopg2://refavs@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_sweep_through_a_server_on_postgresql(postgres: str, tmp_path: Path) -> None:
    with Server(tmp_path / "server", postgres) as server:
        sweep = Sweep(tmp_path, f"{GRID}seeds: [0, 1]\n", "--tracking-uri", server.uri)
        status, out, err = sweep.run()
        assert status == 0 and "4 trials finished now, 4 of 4 in all" in out, out + err
        assert_whole_in_mlflow(server.uri, sweep)
        status, out, err = sweep.run()
        assert status == 0 and "nothing to do" in out, out + err
        assert_whole_in_mlflow(server.uri, sweep)
        assert_whole_in_mlflow(postgres, sweep)  # the database itself, past the server
    assert not list(tmp_path.glob("**/mlflow.db"))


def test_eight_trials_log_to_sqlite_at_once(tmp_path: Path) -> None:
    grid = GRID.replace("epochs: 3, steps_per_epoch: 4", "epochs: 15, steps_per_epoch: 10")
    sweep = Sweep(tmp_path, f"{grid}seeds: [0, 1, 2, 3]\n", "--max-concurrent", "8", "--cpus-per-trial", "0.125")
    with sweep.start() as driver:
        at_once = 0
        while driver.running:
            at_once = max(at_once, sum(entry.state == "running" for entry in sweep.entries))
            time.sleep(0.1)
        assert driver.wait() == 0 and "8 of 8 in all" in driver.out, driver.out + driver.err
    assert at_once == 8, f"only {at_once} trials ran at once"
    assert_whole_in_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", sweep)
    assert points_in_database(tmp_path / "mlflow.db") > 8 * 15 * 10
