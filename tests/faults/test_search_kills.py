"""kill -9 of the driver and of workers in the middle of a search: the same command goes on with the same points.

One trial runs at a time, so that what is known when a point is suggested is the same; then points, prunings and all
numbers are, to the last bit, those of a search that nothing disturbed.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from experiments.grid.expand import read_grid
from experiments.records.ledger import Entry, Ledger
from experiments.records.stores import features_in
from experiments.sweep.search import Search
from refavs.store import FeatureStore
from tests.faults.sweeps import Sweep, kill_driver, trial_workers

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

BUDGET, KILLS = 14, ("driver", "worker", "driver", "driver and its group", "worker", "driver")
SEARCH = f"""
  train: {{epochs: 3, steps_per_epoch: 20}}
search:
  budget: {BUDGET}
  asha: {{min_epochs: 1, reduction: 3}}
  ranges:
    train.learning_rate: {{loguniform: [1e-4, 1e-1]}}
    model.beta: {{uniform: [0, 2]}}
    model.num_layers: {{int: [1, 2]}}
"""


class Hunt(Sweep):
    """A sweep that searches."""

    @property
    def search(self) -> Search:
        """As the ledger knows it."""
        return Search(read_grid(str(self._grid)), Ledger(self.out), features_in(FeatureStore(self.store)))

    @property
    def entries(self) -> list[Entry]:
        """Trials of the points that were suggested."""
        return self.search.entries

    def outcome(self) -> list[tuple[str, str, str]]:
        """Key, state and why, of each trial in the order of the points."""
        return [(entry.key, entry.state, entry.status.get("reason", "")) for entry in self.entries]


def test_killed_search_resumes_with_the_same_points(tmp_path: Path) -> None:
    generator = random.Random(int(os.environ.get("REFAVS_SEED", "0")))
    undisturbed = Hunt(tmp_path / "undisturbed", SEARCH, "--max-concurrent", "1")
    status, out, err = undisturbed.run()
    assert status == 0 and "best point: point " in out, err
    states = [state for _, state, _ in undisturbed.outcome()]
    assert len(states) == BUDGET and set(states) == {"finished", "pruned"}

    killed = Hunt(tmp_path / "killed", SEARCH, "--max-concurrent", "1", store=undisturbed.store)
    moments = sorted(generator.randrange(1, int(0.8 * undisturbed.num_epochs)) for _ in KILLS)
    num_killed = 0
    for victim, moment in zip(KILLS, moments, strict=True):
        with killed.start() as driver:
            driver.until(lambda moment=moment: killed.num_epochs >= moment)
            time.sleep(generator.uniform(0, 1))
            if victim == "worker" and (workers := trial_workers(driver)):
                os.kill(workers[0], signal.SIGKILL)
                num_killed += 1
                time.sleep(2)
            if driver.running:
                kill_driver(driver, victim == "driver and its group")
                num_killed += 1
        known = [point for point, *_ in killed.outcome()]
        assert known == [point for point, *_ in undisturbed.outcome()][: len(known)]
    status, _, err = killed.run()
    print(f"{num_killed} kills at {moments} of {undisturbed.num_epochs} epochs")
    assert status == 0 and num_killed >= len(KILLS), err
    assert killed.outcome() == undisturbed.outcome()
    assert killed.records() == undisturbed.records()
    assert killed.search.best() == undisturbed.search.best()
