"""What a trial will cost: counted arithmetic, parameters by part, time and disk; nothing is written."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from experiments import cost
from experiments.cost import _Flops, alike, measure, seconds, show, side_by_side
from experiments.grid import Grid, expand
from experiments.learner import Learner
from experiments.ledger import Ledger
from experiments.resources import Ask, Resources
from refavs.store import FeatureStore
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
    costs = {name: measure(config, store, torch.device("cpu")) for name, config in trials.items()}
    full, double = costs["full"], costs["double"]
    assert 2 * full.forward_flops < full.step_flops < 3.5 * full.forward_flops
    assert 1.3 * full.forward_flops < double.forward_flops <= 2 * full.forward_flops
    assert costs["parts"].forward_flops >= full.forward_flops
    assert sum(part.trained for part in full.parts) > 0 and full.step_s > 0 and full.eval_s > 0
    num_bytes = 4 * sum(part.trained + part.frozen for part in full.parts)
    assert full.kept_bytes > num_bytes and full.state_bytes >= 3 * num_bytes
    config = trials["full"]
    assert seconds(full, config, store) == pytest.approx(4 * (5 * full.step_s + 3 * full.eval_s) + 9 * full.eval_s)
    assert seconds(full, config, store, num_done=4) == pytest.approx(9 * full.eval_s)


def test_arithmetic_is_that_of_torchs_counter() -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    with _Flops() as found, FlopCounterMode(display=False) as wanted:
        layer(torch.rand(2, 3, 8, 8)).sum().backward()
    assert found.total == wanted.get_total_flops() > 2 * 2 * 36 * (4 * 27 + 4 * 5)


def test_fused_attention_counts_as_its_products() -> None:
    query, key, value = torch.rand(3, 2, 4, 256, 8, requires_grad=True).unbind()
    with _Flops() as found:
        torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    one_product = 2 * 2 * 4 * 256 * 256 * 8
    assert found.total == (2 + 5) * one_product  # the backward pass computes the scores again


def test_trials_side_by_side_take_what_their_places_allow() -> None:
    small, large = Ask(workers=1, cpus=1, gpus=0), Ask(workers=2, cpus=1, gpus=0)
    node = [{"CPU": 2.0}]
    assert side_by_side([(small, 3.0)] * 4, node, None) == (6.0, 2)
    assert side_by_side([(small, 3.0)] * 4, node, 1) == (12.0, 1)
    assert side_by_side([(small, 3.0), (large, 5.0), (small, 1.0)], node, None) == (9.0, 1)  # none is overtaken
    assert side_by_side([(small, 3.0), (small, 1.0), (small, 1.0)], node, None) == (3.0, 2)
    assert side_by_side([(large, 2.0)], [{"CPU": 1.0}], None) == (2.0, 1)  # more than there is: the sweep refuses it
    assert side_by_side([], node, None) == (0.0, 0)


def test_first_use_of_anything_is_not_timed(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, predicted, clock = [], [], [0.0]

    def step(learner: Learner, *args: object) -> dict:
        steps.append(args)
        clock[0] += 1.0 if len(steps) > 3 else 50.0  # one whose arithmetic is counted, two to warm up
        return plain(learner, *args)  # type: ignore[arg-type]

    def predict(*args: object) -> Iterator:
        predicted.append(args)
        clock[0] += 9.0 if len(predicted) > 1 else 50.0
        yield from evaluated(*args)  # type: ignore[arg-type]

    plain, evaluated = Learner.step, cost.predictions
    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(cost, "predictions", predict)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    found = measure(grid_of({"full": {}}).trials[0].config, store, torch.device("cpu"))
    assert (len(steps), len(predicted)) == (5, 2)
    assert (found.step_s, found.read_s, found.eval_s) == (1.0, 0.0, 1.0)


@pytest.mark.long
def test_models_that_cost_the_same_are_measured_once(store: FeatureStore, tmp_path: Path) -> None:
    cases = {
        "full": {}, "beta": {"model.beta": 2.0}, "slow": {"train.learning_rate": 1e-5}, "no_text": {"model.text": False}
    }  # fmt: skip
    grid = grid_of(cases)
    assert len({alike(trial.config) for trial in grid.trials}) == 2
    more = grid_of({"one": {}, "two": {"resources.cpus": 2, "model.beta": 2.0}})
    assert len({alike(trial.config) for trial in more.trials}) == 2
    entries = Ledger(tmp_path / "g").entries(grid.trials, store.fingerprint)
    console = Console(width=160, record=True, file=io.StringIO())
    show(console, entries, store, Resources(max_concurrent=1))
    printed = console.export_text()
    assert printed.count("fusion") == 2 and printed.count("GFLOP") == 4
    assert "full, beta and 1 more" in printed and "no_text" in printed and "for what is to do, 1 at once" in printed
    assert not (tmp_path / "g").exists()
    fused = Console(width=160, record=True, file=io.StringIO())
    show(fused, entries, store, Resources(max_concurrent=1, fuse=3))
    assert "1 at once, up to 2 trials over one read" in " ".join(fused.export_text().split())
