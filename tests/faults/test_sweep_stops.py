"""Ctrl-C and SIGTERM, as a terminal and Slurm send them: to a real sweep with a Ray of its own."""

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.command import Python
from tests.faults.sweeps import Sweep, assert_whole_in_mlflow, within

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

GRID = """
  train: {epochs: 12, steps_per_epoch: 60}
seeds: [0, 1, 2]
"""


def running(sweep: Sweep) -> Python:
    """A driver that has done an epoch."""
    before = sweep.num_epochs
    driver = sweep.start("--max-concurrent", "2")
    assert driver.until(lambda: sweep.num_epochs > before), driver.err
    return driver


def statuses(sweep: Sweep) -> dict[str, str]:
    client = MlflowClient(f"sqlite:///{sweep.out.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep.out.name)
    assert experiment is not None
    return {str(run.info.run_name): run.info.status for run in client.search_runs([experiment.experiment_id])}


def assert_stopped(sweep: Sweep) -> None:
    """No trial and no run is open, those that had begun are stopped."""
    states = {entry.trial.title: entry.state for entry in sweep.entries}
    assert set(states.values()) <= {"new", "stopped", "finished"} and "stopped" in states.values()
    found = {"new": None, "stopped": "KILLED", "finished": "FINISHED"}
    wanted = {title: found[state] for title, state in states.items() if state != "new"}
    assert statuses(sweep) == {"g": "KILLED", **wanted}


def test_sweep_stops_after_the_epoch_or_at_once_and_goes_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, GRID)
    with running(sweep) as driver:
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.wait() == 130, driver.err
        assert "Ctrl-C: finishing the running epochs, then stopping" in driver.err and "Traceback" not in driver.err
        assert "stopped as asked; run the same command again to resume" in driver.out
        assert within(lambda: not driver.processes())
    assert_stopped(sweep)
    assert all(entry.state != "stopped" or list(entry.folder.glob("state/*")) for entry in sweep.entries)

    with running(sweep) as driver:
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait() == 130, driver.err
        assert "SIGTERM: finishing the running epochs" in driver.err and "Traceback" not in driver.err
    assert_stopped(sweep)

    with running(sweep) as driver:
        os.killpg(driver.process.pid, signal.SIGINT)
        time.sleep(0.1)
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.wait() == 130, driver.err
        assert "Traceback" not in driver.err
        assert within(lambda: not driver.processes())
    assert_stopped(sweep)

    status, _, err = sweep.run("--max-concurrent", "2")
    assert status == 0, err
    assert_whole_in_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", sweep)
