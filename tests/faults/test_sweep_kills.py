"""kill -9 of the driver, of workers and of the MLflow server at random moments of a sweep, then the same command.

In the end each trial is finished once, in the ledger and in MLflow, no point of a metric is doubled or missing, and all
numbers are, to the last bit, those of a sweep that nothing disturbed.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.command import Python
from tests.faults.sweeps import (
    Server,
    Sweep,
    assert_whole_in_mlflow,
    ends_by_itself,
    kill_driver,
    trial_workers,
    within,
)

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

NUM_TRIALS, EPOCHS = 12, 4
KILLS = {"driver": 6, "driver and its group": 3, "worker": 9, "server": 7}
GRID = f"""
  train: {{epochs: {EPOCHS}, steps_per_epoch: 40}}
cases:
  full: {{}}
  points: {{loss.num_points: 8}}
  mean: {{train.ema_decay: 0.9}}
  no_audio: {{model.audio: false}}
seeds: [0, 1, 2]
"""
GONE_S = 600
UNREACHABLE = "cannot be used (API request to http://127.0.0.1"


class Killer:
    """Goes through a list of kills while a sweep is started again each time its driver is gone."""

    def __init__(self, sweep: Sweep, server: Server, generator: random.Random) -> None:
        self.sweep, self.server, self.generator = sweep, server, generator
        self.driver: Python | None = None
        self.former: list[Python] = []
        self.statuses: list[int] = []

    def running(self) -> Python:
        """The driver, which is started where it has ended, whether the server is up or not."""
        if self.driver is not None and not self.driver.running:
            status = self.driver.process.returncode
            # A sweep whose first words to the server find nobody says so on one line; later it goes on without it.
            assert status in (0, -9, 3) or (status == 2 and UNREACHABLE in self.driver.err), self.driver.err
            self.statuses.append(status)
            if status == 2:
                self.server.wait()
            self.former.append(self.driver)
            self.driver = None
        self.driver = self.driver or self.sweep.start()
        return self.driver

    def kill(self, victim: str, num_epochs: int, delay: float) -> str:
        """Kills once so many epochs are done, and returns what was found of the victim.

        Some are killed while they start, the others while trials are placed, run or end.
        """
        while not (self.running().until(lambda: self.sweep.num_epochs >= num_epochs)):
            assert self.sweep.num_epochs < NUM_TRIALS * EPOCHS, "the sweep is over before the kills are"
        driver = self.running()
        if self.generator.random() < 0.7:
            driver.until(lambda: trial_workers(driver))
        time.sleep(delay)
        if victim == "worker":
            driver.until(lambda: trial_workers(driver))
            workers = trial_workers(driver)
            if not workers:
                return "none there"
            os.kill(self.generator.choice(workers), signal.SIGKILL)
        elif victim == "server":
            self.server.kill()  # which may not answer yet, since the last time
            time.sleep(self.generator.uniform(0, 2))
            self.server.start()
        elif driver.running:
            kill_driver(driver, victim != "driver")
        else:
            return "none there"
        return "killed"

    def finish(self) -> Python:
        """The same command until nothing is left to do."""
        for _ in range(4):
            driver = self.running()
            if driver.wait() == 0:
                return driver
        pytest.fail(f"the sweep does not come to its end:\n{driver.out}\n{driver.err}")

    def close(self) -> None:
        """Ends whatever is left."""
        for driver in (*self.former, *([self.driver] if self.driver else [])):
            driver.__exit__()


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("seed", [int(os.environ.get("REFAVS_SEED", "0"))])
def test_sweep_survives_kills_of_driver_workers_and_server(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    victims = [victim for victim, count in KILLS.items() for _ in range(count)]
    generator.shuffle(victims)
    moments = sorted(generator.randrange(int(0.7 * NUM_TRIALS * EPOCHS)) for _ in victims)
    started = time.monotonic()
    undisturbed = Sweep(tmp_path / "undisturbed", GRID, "--max-concurrent", "2")
    status, out, err = undisturbed.run()
    assert status == 0 and f"{NUM_TRIALS} trials finished now" in out, err
    print(f"seed {seed}: undisturbed in {time.monotonic() - started:.0f} s", flush=True)

    found: list[str] = []
    with Server(tmp_path / "server") as server:
        sweep = Sweep(
            tmp_path / "killed", GRID, "--max-concurrent", "2", "--tracking-uri", server.uri, "--retry-failed",
            store=undisturbed.store,
        )  # fmt: skip
        killer = Killer(sweep, server, generator)
        try:
            for victim, moment in zip(victims, moments, strict=True):
                delay = generator.uniform(0, 4)
                found.append(killer.kill(victim, moment, delay))
                print(f"{time.monotonic() - started:5.0f} s: {victim}, {sweep.num_epochs} epochs done: {found[-1]}",
                      flush=True)  # fmt: skip
            server.wait()
            driver = killer.finish()
            assert "Traceback" not in driver.err
            for former in killer.former:
                assert ends_by_itself(former, GONE_S) is not None, f"Ray lives on: {former.processes()}"
        finally:
            killer.close()
        within(server.answers)
    print(f"{found.count('killed')} kills, exit statuses {killer.statuses}, {time.monotonic() - started:.0f} s")
    assert found.count("killed") >= 20

    assert [entry.state for entry in sweep.entries] == ["finished"] * NUM_TRIALS
    assert sweep.records() == undisturbed.records()
    assert all(len(records) == EPOCHS + 1 for records in sweep.records().values())
    assert_whole_in_mlflow(server.database, sweep)
    assert_whole_in_mlflow(f"sqlite:///{undisturbed.out.parent / 'mlflow.db'}", undisturbed)
    assert not list(sweep.out.glob(".tune-*")) and not list(sweep.out.glob("trials/*/state"))
