"""A sweep on a real Ray that is held, changed, let go and cancelled by commands from another terminal."""

import time
from pathlib import Path

import pytest

from experiments.records.ledger import read_metrics
from tests.faults.command import Python
from tests.faults.sweeps import BASE, COMMAND, Sweep, assert_whole_in_mlflow, within

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
EPOCHS = 6
TRAIN = f"\n  train: {{epochs: {EPOCHS}, steps_per_epoch: 40}}\n"
GRID = f"{TRAIN}cases: {{full: {{}}, no_text: {{model.text: false}}, no_audio: {{model.audio: false}}}}\n"


def command(*arguments: object) -> str:
    """What a command says that must succeed."""
    with Python("-c", COMMAND, *map(str, arguments)) as asked:
        assert asked.wait() == 0, asked.out + asked.err
        return asked.out


def test_running_sweep_is_held_changed_and_let_go(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, GRID, "--max-concurrent", "2")
    more = tmp_path / "more.yaml"
    more.write_text(f"{BASE}{TRAIN}cases: {{beta 3: {{model.beta: 3}}}}\n")
    with sweep.start() as driver:
        assert driver.until(lambda: sum(bool(read_metrics(entry.folder)) for entry in sweep.entries) == 2), driver.err
        assert "running trials stop after" in command("hold", sweep.out, "--now")
        assert within(lambda: "running" not in {entry.state for entry in sweep.entries})
        (waiting,) = (entry for entry in sweep.entries if not read_metrics(entry.folder))
        assert f"cancelled: {waiting.trial.title}" in command("cancel", sweep.out, waiting.key[:12])
        assert "1 of 1 trials are new and were added" in command("add", sweep.out, more)
        before = sweep.num_epochs
        time.sleep(5)
        assert driver.running and sweep.num_epochs == before < 2 * EPOCHS
        command("resume", sweep.out)
        assert driver.wait() == 0 and "3 trials finished now" in driver.out, driver.out + driver.err
    states = {entry.trial.name: entry.state for entry in sweep.entries}
    assert states == {**dict.fromkeys(("full", "no_text", "no_audio"), "finished"), waiting.trial.name: "pruned"}
    alone = Sweep(tmp_path / "alone", GRID, store=sweep.store)
    assert alone.run()[0] == 0
    wanted = alone.records()
    found = sweep.records()
    assert {title: found[title] for title in wanted if title != waiting.trial.title} == {
        title: records for title, records in wanted.items() if title != waiting.trial.title
    }  # fmt: skip


def test_cancelled_sweep_ends_after_the_epoch_and_goes_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, GRID, "--max-concurrent", "2")
    with sweep.start() as driver:
        assert driver.until(lambda: sweep.num_epochs >= 2), driver.err
        command("cancel", sweep.out)
        assert driver.wait() == 130, driver.out + driver.err
        assert not driver.processes()
    assert 2 <= sweep.num_epochs < 3 * EPOCHS
    status, out, err = sweep.run()
    assert status == 0 and "3 of 3 in all" in out, out + err
    assert_whole_in_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", sweep)
