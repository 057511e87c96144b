"""A running sweep steered from another terminal: cancel, hold, resume, add, and a web hook that hears of it."""

import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main
from experiments.records.ledger import Entry, Ledger, read_metrics
from experiments.sweep import control, web_hook
from experiments.sweep.driver import run_sweep
from experiments.sweep.outcome import Options
from refavs.errors import ConfigError
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store
from tests.experiments.test_sweep import BASE, InProcess, grid_of

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of MLflow and what it imports


class Steered(InProcess):
    """Trials one after another, as Tune runs them; `before` and `during` send commands.

    Attributes:
        before: called before each trial, with what runs them and the number of trials so far.
        during: called after each epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[Any, int], None] = lambda trials, number: None
        self.during: Callable[[Any, Entry, int], None] = lambda trials, entry, epoch: None

    def run_trials(self, trials: Any, store: Path, resources: Any, root: Path, asked: Any) -> None:
        trials.ready(lambda asked: 1)
        while True:
            self.before(trials, len(self.ran))
            group = trials.next()
            if not group and not trials.held:
                return
            for entry in group or ():
                progressed = trials.progressed

                def steer(entry: Entry, records: Any, told: Any = progressed) -> None:
                    told(entry, records)
                    self.during(trials, entry, records[-1]["epoch"])

                trials.progressed = steer
                self.run_trial(trials, entry, store)
                trials.progressed = progressed


def command(trials: Any, *arguments: object) -> int:
    """A command from another terminal while the driver goes on."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(main([str(argument) for argument in arguments])))
    thread.start()
    while thread.is_alive():
        trials.waited()
        time.sleep(0.005)
    return found[0]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Steered:
    monkeypatch.setattr(control, "INTERVAL_S", 0)
    jobs = Steered()
    runner = types.SimpleNamespace(run_trials=jobs.run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    return jobs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, and so one database, for the sweeps of all tests: making a database takes seconds."""
    return tmp_path_factory.mktemp("runs")


def test_trials_are_cancelled_and_added(
    jobs: Steered, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = runs / "changed", tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"base": BASE, "cases": {"beta 3": {"model.beta": 3}, "full": {}}}))
    answers: list[int] = []

    def steer(trials: Any, number: int) -> None:
        if number == 0:
            waiting = next(entry for entry in trials.outcome.entries if entry.trial.name == "no_text")
            answers.append(command(trials, "cancel", out, waiting.key[:12]))
            answers.append(command(trials, "add", out, more, "--set", "train.epochs=1"))
            answers.append(command(trials, "add", out, more, "--set", "model.bta=1"))
            answers.append(command(trials, "cancel", out, "nothing"))
            answers.append(command(trials, "status", out))

    jobs.before = steer
    outcome = run_sweep(grid_of("full", "no_text"), store, out)
    assert answers == [0, 0, 2, 2, 0]
    assert [(entry.trial.name, entry.state) for entry in outcome.entries] == [
        ("full", "finished"), ("no_text", "pruned"), ("beta 3", "finished"), ("full", "finished"),
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "cancelled: no_text, seed 0" in told.out and "2 of 2 trials are new and were added; 2 of" in told.out
    assert "did you mean 'model.beta'?" in told.err and "no trial of the grid has a key that begins with" in told.err
    assert "pruned: no_text, seed 0: cancelled by refavs-sweep cancel" in told.out
    assert len(list((out / "control" / "added").iterdir())) == 1 and "no_text, seed 0" not in jobs.ran
    before = list(jobs.ran)
    jobs.before = lambda trials, number: None
    again = run_sweep(grid_of("full", "no_text"), store, out)
    assert jobs.ran == before and len(again.entries) == 4 and again.num_ended == 0
    again = run_sweep(grid_of("full", "no_text"), store, out, options=Options(rerun=(outcome.entries[1].key[:12],)))
    assert [entry.state for entry in again.entries] == ["finished"] * 4


def test_running_trial_is_cancelled(jobs: Steered, store: FeatureStore, runs: Path) -> None:
    out = runs / "cancelled"
    statuses: list[int] = []

    def during(trials: Any, entry: Entry, epoch: int) -> None:
        if entry.trial.name == "full" and epoch == 1:
            statuses.extend(command(trials, "cancel", out, entry.key) for _ in range(2))

    jobs.during = during
    outcome = run_sweep(grid_of("full", "no_text"), store, out)
    assert [entry.state for entry in outcome.entries] == ["pruned", "finished"] and statuses == [0, 0]
    assert not outcome.failures
    assert len(read_metrics(outcome.entries[0].folder)) == 1 and not outcome.interrupted


def test_held_sweep_waits_and_goes_on(
    jobs: Steered, store: FeatureStore, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "held"
    asked: list[str] = []

    def during(trials: Any, entry: Entry, epoch: int) -> None:
        if not asked:
            asked.append("hold")
            assert command(trials, "hold", out, "--now") == 0

    def before(trials: Any, number: int) -> None:
        if number == 1 and asked == ["hold"]:
            assert trials.held and trials.next() is None and trials.num_changes >= 2
            assert command(trials, "status", out) == 0
            asked.append("resume")
            assert command(trials, "resume", out) == 0 and not trials.held

    jobs.during, jobs.before = during, before
    outcome = run_sweep(grid_of("full", "no_text"), store, out)
    assert jobs.ran == ["full, seed 0", "full, seed 0", "no_text, seed 0"] and outcome.num_ended == 2
    assert [entry.state for entry in outcome.entries] == ["finished", "finished"]
    assert [record["epoch"] for record in read_metrics(outcome.entries[0].folder)] == [1, 2]
    told = capsys.readouterr().out
    assert f"it is held; refavs-sweep resume {out} lets it go on" in told and "1 running trials stop after" in told
    assert not Ledger(out).sweep["held"]


def test_whole_sweep_is_cancelled_even_if_held(jobs: Steered, store: FeatureStore, runs: Path) -> None:
    out = runs / "stopped"

    def before(trials: Any, number: int) -> None:
        if number == 1:
            assert command(trials, "hold", out) == 0 and trials.held
            assert command(trials, "cancel", out) == 0 and not trials.held

    jobs.before = before
    outcome = run_sweep(grid_of("full", "no_text"), store, out)
    assert outcome.interrupted and [entry.state for entry in outcome.entries] == ["finished", "new"]
    jobs.before = lambda trials, number: None
    assert run_sweep(grid_of("full", "no_text"), store, out).num_run == 1


def test_sweep_that_does_not_run_takes_no_requests(
    jobs: Steered, store: FeatureStore, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "over"
    run_sweep(grid_of("full"), store, out)
    for action in ("cancel", "hold", "resume"):
        assert main([action, str(out)]) == 2
    assert main(["add", str(out), "smoke"]) == 2
    told = capsys.readouterr().err
    assert told.count(f"no refavs-sweep is running on {out}") == 4 and "with a larger grid instead" in told
    assert main(["hold", str(runs)]) == 2 and "is not the folder of a sweep" in capsys.readouterr().err


def test_request_that_nobody_takes_is_told(store: FeatureStore, tmp_path: Path) -> None:
    assert control.ask(tmp_path, 0.3, action="hold") is None
    assert len(list((tmp_path / "control").iterdir())) == 1
    control.Inbox(tmp_path)  # the next call of the sweep
    assert not list((tmp_path / "control").iterdir())


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    posted: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    Hook.posted = []
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x", Hook.posted
        server.shutdown()


def test_web_hook_hears_of_failures_and_of_the_end(
    jobs: Steered, store: FeatureStore, runs: Path, hook: tuple[str, list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url, posted = hook
    monkeypatch.setattr(web_hook, "TIMEOUT_S", 600)  # on a busy machine
    run_sweep(grid_of("diverges", "full"), store, runs / "told", options=Options(notify=url))
    first, last = posted
    assert first["event"] == "trial failed" and first["text"].startswith("told: diverges, seed 0 failed: loss ")
    assert last["event"] == "ended" and last["trials"] == {"failed": 1, "finished": 1}
    assert last["text"] == "told ended: 1 failed, 1 finished; best: full, seed 0" and last["folder"].endswith("told")

    def breaks(trials: Any, number: int) -> None:
        raise RuntimeError("no more")

    jobs.before = breaks
    with pytest.raises(RuntimeError):
        run_sweep(grid_of("no_text"), store, runs / "broken", options=Options(notify=url))
    assert posted[-1]["text"] == "broken broke off: RuntimeError: no more"
    jobs.before = lambda trials, number: None
    assert run_sweep(grid_of("no_text"), store, runs / "broken", options=Options(notify="http://127.0.0.1:9/")).num_run
    assert "a message to the web hook failed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="accepted: an address that begins with https://"):
        run_sweep(grid_of("no_text"), store, runs / "broken", options=Options(notify="file:///etc/passwd"))
