"""Watching a sweep: the live table, the plain lines, and refavs-sweep status from its folder alone."""

import errno
import fcntl
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.grid.expand import expand
from experiments.records.ledger import Entry, Ledger
from experiments.sweep.live_table import Watch, progress_of
from experiments.sweep.progress import Progress, duration, is_held, read_sweep, seconds_left
from refavs.terminal.console import PlainConsole
from tests.experiments.small_sweep import write_facts, write_trial

ROOT = Path(__file__).resolve().parents[2]


def record(epoch: int, seconds: float, score: float = 0.25) -> dict[str, Any]:
    return {"epoch": epoch, "time_ms": epoch, "seconds": seconds, "metrics": {"train/loss": 1.5, "val/J": score}}


def entries_of(folder: Path) -> list[Entry]:
    content = {"base": {"train.epochs": 4}, "grid": {"model.beta": [0, 1]}}
    return Ledger(folder).entries(expand("g", content, "g.yaml", {}).trials, lambda trial: "store")


def text_of(renderable: Any) -> str:
    console = PlainConsole(file=io.StringIO(), width=120)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_shows_what_runs_first_with_its_numbers_and_the_time_left(tmp_path: Path) -> None:
    first, second = entries_of(tmp_path)
    watch = Watch("sweep g", {entry.key: progress_of(entry) for entry in (first, second)}, to_come=3, epochs=4)
    watch.state(second, "running")
    watch.see(second, [record(1, 30), record(2, 30)])
    watch.tick("MLflow does not answer")
    lines = text_of(watch.view()).splitlines()
    (running,) = [line for line in lines if "running" in line and "beta" in line]
    assert running.split() == ["beta", "1", "0", "2/4", "1.500", "25.0", "30", "60", "s", "running"]
    assert lines.index(running) < next(index for index, line in enumerate(lines) if "beta 0" in line)
    assert "1 running, 1 new, 3 to come; about 9 min left" in "\n".join(lines) and "MLflow does not answer" in lines[-1]


def test_plain_lines_count_epochs_once_and_tell_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refavs.terminal.console.LINE_INTERVAL_S", 0)
    (entry, _) = entries_of(tmp_path)
    with Watch("sweep g", {entry.key: progress_of(entry)}) as watch:
        watch.state(entry, "running")
        watch.see(entry, [record(1, 40)])
        watch.see(entry, [record(1, 40), record(2, 40)])  # after the death of its worker
    printed = capsys.readouterr().err
    assert "sweep g: 1/4 epochs, " in printed
    assert "sweep g: 2/4 epochs, 0 s, beta 0, seed 0: epoch 2 val J 25.0, about 80 s left" in printed


def test_time_left_takes_the_longest_trial_and_those_at_once() -> None:
    def trial(state: str, epoch: int, seconds: float = math.nan) -> Progress:
        return Progress(key="k", name="n", seed=0, epochs=10, state=state, epoch=epoch, seconds_per_epoch=seconds)

    assert seconds_left([trial("running", 0, 1), trial("running", 9, 1)]) == 10
    assert seconds_left([trial("running", 5, 1), trial("running", 5, 3), *[trial("new", 0)] * 4]) == (5 + 15 + 80) / 2
    assert seconds_left([trial("finished", 10, 1), trial("failed", 3, 1)]) == 0
    assert math.isnan(seconds_left([trial("new", 0)])) and duration(math.nan) == ""
    assert [duration(seconds) for seconds in (5, 600, 7200, 200_000)] == ["5 s", "10 min", "2.0 h", "2.3 days"]


def test_time_of_an_epoch_of_trials_that_share_a_process_is_that_of_all_of_them() -> None:
    progress = Progress(key="k", name="n", seed=0, epochs=10, state="running", started_s=100.0)
    for epoch in range(1, 5):  # three trials, each of which counts its third of 30 s
        progress.see([{"epoch": epoch, "time_ms": 100_000 + 30_000 * epoch, "seconds": 10.0, "metrics": {}}])
        assert progress.seconds_per_epoch == 30 and progress.seconds_left() == 30 * (10 - epoch)


def test_pause_between_two_commands_is_no_time_of_an_epoch() -> None:
    progress = Progress(key="k", name="n", seed=0, epochs=3, state="running", started_s=9_000.0)
    ends = {1: 110.0, 2: 9_010.0}  # the second after a pause of hours; the start before the first is not known
    progress.see([{"epoch": n, "time_ms": 1000 * end, "seconds": 10.0, "metrics": {}} for n, end in ends.items()])
    assert progress.seconds_per_epoch == 10


@pytest.mark.long
def test_status_tells_failures_what_mlflow_lacks_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "s"
    write_facts(sweep)
    folders = {state: write_trial(sweep, f"case_{state}", state=state) for state in ("finished", "failed", "running")}
    status = folders["failed"] / "status.json"
    status.write_text(json.dumps({"state": "failed", "reason": "loss nan [at] epoch 3", "time_s": 2.0}))
    (folders["failed"] / "mlflow.json").write_text(json.dumps({"run_id": "r", "time_s": 1.0}))
    assert main(["status", str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert "1 failed, 1 stopped, 1 finished" in printed  # the one that ran was killed: nobody works here
    assert "no refavs-sweep is running; the command that started this sweep resumes it" in printed
    assert "failed: case_failed, seed 0: loss nan [at] epoch 3\n--retry-failed runs" in printed
    assert "not in MLflow yet: 2 trials (" in printed and "case_failed, seed 0" in printed
    assert f"refavs-report {sweep}" in printed and folders["failed"].name in printed

    with (sweep / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert {trial.state for trial in read_sweep(sweep).trials} == {"finished", "failed", "running"}
        assert main(["status", str(sweep)]) == 0
    assert "refavs-sweep is running" in capsys.readouterr().out


def test_status_on_a_file_system_without_locks_finds_nobody_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", without_locks)
    assert not is_held(tmp_path)


@pytest.mark.long
def test_status_shows_the_trials_of_the_last_command_in_their_order(tmp_path: Path) -> None:
    folders = [write_trial(tmp_path, name) for name in ("b", "a", "old")]
    write_facts(tmp_path, current=[folder.name for folder in folders[:2]])
    assert [trial.name for trial in read_sweep(tmp_path).trials] == ["b", "a"]


def test_status_of_no_sweep_is_refused_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"refavs-sweep status: {tmp_path} is not the folder of a sweep: it has no sweep.json; give")
    assert main(["--store", "s", "status"]) == 2
    assert "no grid is named 'status'; write 'refavs-sweep status SWEEP' to see" in capsys.readouterr().err
    assert not (ROOT / "experiments" / "grids" / "status.yaml").exists()


@pytest.mark.process
def test_status_starts_fast_because_it_imports_nothing_heavy(tmp_path: Path) -> None:
    write_facts(tmp_path)
    code = (
        "import sys; from experiments.cli import main; main(['status', sys.argv[1]])\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pandas', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
