"""The MLflow server goes away in mid-sweep: the trials go on, and MLflow has all of it once it is back."""

import os
import time
from pathlib import Path

import pytest

from tests.faults.sweeps import Server, Sweep, assert_whole_in_mlflow

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

GRID = """
  train: {epochs: 4, steps_per_epoch: 20}
seeds: [0, 1, 2, 3]
"""
OUTAGE_S = float(os.environ.get("REFAVS_OUTAGE_S", "20"))


def test_server_that_is_away_loses_nothing_and_stops_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        sweep = Sweep(tmp_path / "sweep", GRID, "--max-concurrent", "2", "--tracking-uri", server.uri)
        with sweep.start() as driver:
            assert driver.until(lambda: sweep.num_epochs > 0), driver.err
            server.kill()
            assert driver.wait() == 3, driver.err
            assert "does not accept data (MlflowException" in driver.err and "Traceback" not in driver.err
            assert "4 trials finished now, 4 of 4 in all" in driver.out
            assert f"all data is kept in {sweep.out}, and the same command sends it" in driver.out
        assert {entry.state for entry in sweep.entries} == {"finished"}
        status, out, err = sweep.run()  # it is still away
        assert status == 3 and "nothing to do: all 4 trials were finished before" in out, err
        assert "cannot be used (API request to" in err and "it answered before, so the trials run now" in err
        server.start()
        server.wait()
        started = time.monotonic()
        status, out, err = sweep.run()
        print(f"sent in {time.monotonic() - started:.0f} s")
        assert status == 0 and "NOT in MLflow" not in out, out + err
        assert_whole_in_mlflow(server.database, sweep)


def test_server_that_comes_back_has_everything_at_the_end(tmp_path: Path) -> None:
    grid = GRID.replace("epochs: 4", f"epochs: {max(8, int(OUTAGE_S / 3))}")
    with Server(tmp_path / "server") as server:
        sweep = Sweep(tmp_path / "sweep", grid, "--max-concurrent", "2", "--tracking-uri", server.uri)
        with sweep.start() as driver:
            assert driver.until(lambda: sweep.num_epochs > 0), driver.err
            server.kill()
            before, began = sweep.num_epochs, time.monotonic()
            driver.until(lambda: time.monotonic() > began + OUTAGE_S)
            assert sweep.num_epochs > before, "the trials wait for the server"
            server.start()
            assert driver.wait() == 0, driver.err
            assert "MLflow answers again" in driver.err
        assert_whole_in_mlflow(server.database, sweep)
