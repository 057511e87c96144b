"""Cost of a trial: counted arithmetic, parameters by part, time and disk; nothing is written."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments.cluster.resources import Resources
from experiments.grid.expand import Grid, expand
from experiments.records.ledger import Ledger
from experiments.records.stores import features_in
from experiments.sweep import dry_run
from experiments.sweep.dry_run import show, side_by_side
from experiments.training import cost
from experiments.training.cost import alike, measure, seconds
from experiments.training.learner import Learner
from refavs.store import FeatureStore
from refavs.terminal.console import PlainConsole
from tests.experiments.small_store import make_store

BASE = {
    "model": {"num_layers": 1, "num_queries": 2, "num_heads": 2, "visual_downsample": 2, "decoder_layers": 0},
    "loss": {"num_points": 0},
    "train": {"epochs": 4, "steps_per_epoch": 5, "batch_size": 4},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


def grid_of(cases: dict) -> Grid:
    return expand("g", {"base": BASE, "cases": cases, "seeds": [0, 1]}, "g.yaml", {})


@pytest.mark.long
def test_arithmetic_is_counted_and_grows_with_the_batch_not_with_its_parts(store: FeatureStore) -> None:
    cases = {"full": {}, "parts": {"train.accumulate": 2}, "double": {"train.batch_size": 8}}
    trials = {trial.name: trial.config for trial in grid_of(cases).trials}
    found = {name: measure(config, store, torch.device("cpu")) for name, config in trials.items()}
    (full, times), double = found["full"], found["double"].cost
    assert 2 * full.forward_flops < full.step_flops < 3.5 * full.forward_flops
    assert 1.3 * full.forward_flops < double.forward_flops <= 2 * full.forward_flops
    assert found["parts"].cost.forward_flops >= full.forward_flops
    assert times is not None and times.step > 0 and times.predict > 0 and times.measured
    assert sum(part.trained for part in full.parts) > 0
    num_bytes = 4 * sum(part.trained + part.frozen for part in full.parts)
    assert full.kept_bytes > num_bytes and full.state_bytes >= 3 * num_bytes
    config = trials["full"]
    assert seconds(times, config, store) == pytest.approx(4 * (5 * times.step + 3 * times.predict) + 9 * times.predict)
    assert seconds(times, config, store, num_done=4) == pytest.approx(9 * times.predict)


def test_concurrent_trials_are_limited_by_their_slots() -> None:
    assert side_by_side([(2, 3.0)] * 4) == (6.0, 2) and side_by_side([(1, 3.0)] * 4) == (12.0, 1)
    assert side_by_side([(2, 3.0), (1, 5.0), (2, 1.0)]) == (7.0, 2)
    assert side_by_side([(4, 3.0), (4, 1.0)]) == (3.0, 2) and side_by_side([]) == (0.0, 0)


class Clock:
    """A clock that a pretended step or prediction sets forward, by so many seconds for each expression."""

    def __init__(self, patch: pytest.MonkeyPatch, each_s: float, first_s: float = 0.0) -> None:
        self.now_s, self.each_s, self.first_s = 0.0, each_s, first_s
        self.steps: list[int] = []
        self.predicted: list[int] = []
        patch.setattr(cost.time, "perf_counter", lambda: self.now_s)
        patch.setattr(cost.time, "process_time", lambda: self.now_s)
        patch.setattr(cost, "_flops", lambda *_: (100, 300))
        patch.setattr(Learner, "step", self.step)
        patch.setattr(cost, "predictions", self.predict)

    def step(self, parts, step: int, num_steps: int) -> dict:
        self.steps.append(sum(len(batch.text) for _, batch in parts))
        self.pass_by(self.steps)
        return {}

    def predict(self, train, model, store, rows, device) -> Iterator:
        self.predicted.append(len(rows))
        self.pass_by(self.predicted)
        return iter(())

    def pass_by(self, calls: list[int]) -> None:
        self.now_s += self.first_s if calls.count(calls[-1]) == 1 else 0.0
        self.now_s += calls[-1] * self.each_s


def test_first_use_of_anything_is_not_timed(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5, first_s=50.0)
    times = measure(grid_of({"full": {}}).trials[0].config, store, torch.device("cpu")).times
    assert clock.steps == [1, 1, 4, 4] and clock.predicted == [1, 1, 4, 4, 9, 9]
    assert times is not None and (times.step, times.read, times.predict) == (2.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("budget_s", "steps"), [(0.0, [1]), (4.0, [1, 1]), (22.0, [1, 1, 4, 4]), (90.0, [1, 1, 4, 4, 8, 8])]
)
def test_where_a_step_is_slow_a_part_of_the_batch_is_timed(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, budget_s: float, steps: list[int]
) -> None:
    clock = Clock(monkeypatch, 1.0)
    config = grid_of({"full": {"train.batch_size": 8}}).trials[0].config
    times = measure(config, store, torch.device("cpu"), budget_s=budget_s).times
    assert clock.steps == steps and clock.predicted[0] == 1
    assert times is not None and times.step == 8.0 and times.predict == 1.0


def printed(store: FeatureStore, grid: Grid, tmp_path: Path, resources: Resources) -> str:
    console = PlainConsole(width=160, record=True, file=io.StringIO())
    show(console, Ledger(tmp_path / "g").entries(grid.trials, features_in(store)), store, resources)
    return " ".join(console.export_text().split())


def test_models_beyond_the_budget_are_estimated_from_their_arithmetic(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(monkeypatch, 30.0)
    grid = grid_of({"full": {}, "no_text": {"model.text": False}})
    text = printed(store, grid, tmp_path, Resources(max_concurrent=1))
    assert clock.steps == [1] and clock.predicted == [1]
    assert "GFLOP 120 " in text and "GFLOP ~120 " in text and "~: not run, estimated from the arithmetic" in text


def test_trials_on_a_gpu_that_is_not_here_are_counted_and_not_timed(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(monkeypatch, 0.1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    grid = grid_of({"full": {}, "on_cpu": {"resources.gpus": 0, "model.beta": 2}})
    text = printed(store, grid, tmp_path, Resources(gpus_per_trial=1))
    assert "no time was measured: trials ask for a GPU, and torch sees none on this machine" in text
    assert "GFLOP - - " in text and clock.steps == [1, 1, 4, 4], "the one on the CPU is timed"


def test_trials_are_timed_on_the_gpu_that_they_would_get(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices = []

    def no_memory(config, own, device, *more, **settings):
        devices.append(device)
        if device is not None:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
        return measure(config, own, None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dry_run, "measure", no_memory)
    text = printed(store, grid_of({"full": {}}), tmp_path, Resources(gpus_per_trial=0.5))
    assert devices == [torch.device("cuda"), None]
    assert "no time was measured: the GPU fails: CUDA out of memory." in text


@pytest.mark.long
def test_models_that_cost_the_same_are_measured_once(store: FeatureStore, tmp_path: Path) -> None:
    cases = {
        "full": {}, "beta": {"model.beta": 2.0}, "slow": {"train.learning_rate": 1e-5}, "no_text": {"model.text": False}
    }  # fmt: skip
    grid = grid_of(cases)
    assert len({alike(trial.config) for trial in grid.trials}) == 2
    more = grid_of({"one": {}, "two": {"resources.cpus": 2, "model.beta": 2.0}})
    assert len({alike(trial.config) for trial in more.trials}) == 2
    entries = Ledger(tmp_path / "g").entries(grid.trials, features_in(store))
    console = PlainConsole(width=160, record=True, file=io.StringIO())
    show(console, entries, store, Resources(max_concurrent=1))
    text = " ".join(console.export_text().split())
    assert text.count("fusion") == 2 and text.count("GFLOP") == 4
    assert "full, beta and 1 more" in text and "no_text" in text and "on this machine, 1 at once" in text
    assert not (tmp_path / "g").exists()
    fused = PlainConsole(width=160, record=True, file=io.StringIO())
    show(fused, entries, store, Resources(max_concurrent=1, fuse=3))
    assert "1 at once, up to 2 trials over one read" in " ".join(fused.export_text().split())
