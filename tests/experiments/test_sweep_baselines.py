"""Constant predictions during a sweep without Ray: trials never wait for them, and the table contains them."""

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from experiments.baselines import cache as baseline_cache
from experiments.baselines import compute as constant_baselines
from experiments.records.ledger import Entry
from experiments.sweep.driver import run_sweep
from experiments.sweep.execution import SweepRun
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store
from tests.experiments.test_sweep import InProcess, grid_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    jobs = InProcess()
    runner = types.SimpleNamespace(run_trials=jobs.run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    return jobs


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


@pytest.mark.long
def test_first_trial_starts_before_the_constant_predictions_are_there(
    jobs: InProcess, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    begun, started, compute = threading.Event(), threading.Event(), constant_baselines.control_results_of
    run_trial = jobs.run_trial

    def computed(store: FeatureStore, progress: Any) -> Any:
        begun.set()
        assert started.wait(120), "no trial started while the constant predictions were computed"
        order.append("constants")
        return compute(store, progress)

    def started_one(trials: Any, entry: Entry, store: Path) -> None:
        assert begun.wait(120)
        order.append("trial")
        run_trial(trials, entry, store)
        started.set()

    monkeypatch.setenv("REFAVS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baseline_cache, "control_results_of", computed)
    jobs.run_trial = started_one
    outcome = run_sweep(grid_of("full"), store, tmp_path / "beside")
    assert order == ["trial", "constants"] and outcome.num_run == 1
    assert outcome.controls["all foreground"]["test_n/S"] == 1
    assert "all foreground" in (tmp_path / "beside" / "table.csv").read_text()


@pytest.mark.long
def test_sweep_that_is_stopped_does_not_wait_for_the_constant_predictions(
    jobs: InProcess, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = SweepRun.ended

    def ask(run: SweepRun, entry: Entry, reason: str) -> None:
        run.ledger.ask_to_stop()
        ended(run, entry, reason)

    def endless(store: FeatureStore, progress: Any) -> Any:
        while True:
            progress.stop.wait(0.01)
            progress.advance(0)

    out = tmp_path / "not_waiting"
    with monkeypatch.context() as patch:
        patch.setenv("REFAVS_CACHE", str(tmp_path / "cache"))
        patch.setattr(baseline_cache, "control_results_of", endless)
        patch.setattr(SweepRun, "ended", ask)
        outcome = run_sweep(grid_of("full", "no_text"), store, out)
    assert outcome.interrupted and outcome.controls == {} and not (out / "controls.json").exists()
    assert run_sweep(grid_of("full", "no_text"), store, out).controls
    assert "all foreground" in (out / "table.csv").read_text()
