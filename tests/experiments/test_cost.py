"""What a trial will cost: counted arithmetic, parameters by part, time and disk; nothing is written."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from experiments.cost import _Flops, alike, measure, seconds, show
from experiments.grid import Grid, expand
from experiments.ledger import Ledger
from experiments.resources import Resources
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


def test_models_that_cost_the_same_are_measured_once(store: FeatureStore, tmp_path: Path) -> None:
    cases = {
        "full": {}, "beta": {"model.beta": 2.0}, "slow": {"train.learning_rate": 1e-5}, "no_text": {"model.text": False}
    }  # fmt: skip
    grid = grid_of(cases)
    assert len({alike(trial.config) for trial in grid.trials}) == 2
    entries = Ledger(tmp_path / "g").entries(grid.trials, store.fingerprint)
    console = Console(width=160, record=True, file=io.StringIO())
    show(console, entries, store, Resources(max_concurrent=1))
    printed = console.export_text()
    assert printed.count("fusion") == 2 and printed.count("GFLOP") == 4
    assert "full, beta and 1 more" in printed and "no_text" in printed and "for what is to do, 1 at once" in printed
    assert not (tmp_path / "g").exists()
