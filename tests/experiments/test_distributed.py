"""Trials of two workers each under Ray Train, on two processors: the gradient of one worker, and no deadlock."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.cluster.resources import Resources
from experiments.cluster.tune_runner import run_trials
from experiments.grid.expand import expand
from experiments.records.ledger import Entry, Ledger, read_metrics
from experiments.records.stores import features_in
from experiments.training.loop import train
from refavs.store import FeatureStore
from tests.experiments.listed import Listed
from tests.experiments.small_store import make_store

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

BASE = {
    "model": {"num_layers": 1, "num_queries": 2, "num_heads": 2, "visual_downsample": 2, "decoder_layers": 0,
              "feedforward_channels": 16},
    "loss": {"num_points": 0},
    "train": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 5, "clip_norm": 1e9, "precision": "fp32"},
    "resources": {"workers": 2},
}
DIVERGES = {"train.learning_rate": 1e30, "train.steps_per_epoch": 3}


def run(folder: Path, cases: dict[str, Any]) -> tuple[list[Entry], dict[str, str], list[dict[str, Any]]]:
    """The trials by Ray on two processors, why each ended, and what was reported."""
    store = make_store(folder / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})
    ledger = Ledger(folder / "g")
    entries = ledger.entries(expand("g", {"base": BASE, "cases": cases}, "g.yaml", {}).trials, features_in(store))
    for entry in entries:
        ledger.enter(entry, store.fingerprint)
    trials = Listed(entries)
    run_trials(trials, store.location, Resources(), ledger.root, {entry.trial.config.resources for entry in entries})
    ended = {entry.trial.name: trials.reasons[entry.trial.title] for entry in entries}
    return entries, ended, [record for records in trials.records.values() for record in records]


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.cluster.tune_runner.num_processors", lambda: 2)


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    (full,), ended, records = run(tmp_path, {"full": {}})
    assert ended == {"full": ""} and records == read_metrics(full.folder)
    assert not (full.folder / ".workers").exists()

    wanted = train(full.trial.config, FeatureStore(tmp_path / "store"), tmp_path / "alone")
    assert full.result is not None
    for name, value in wanted["metrics"].items():
        assert name == "seconds" or full.result["metrics"][name] == pytest.approx(value, abs=1e-5), name
    # After one step the optimiser's first moment is a tenth of the gradient.
    moments = [
        load_file(folder / "state" / "epoch-000001" / "optimizer.safetensors")
        for folder in (full.folder, tmp_path / "alone")
    ]
    scale = max(float(value.abs().max()) for name, value in moments[1].items() if name.endswith("exp_avg"))
    for name, value in moments[1].items():
        assert torch.allclose(moments[0][name], value, rtol=0, atol=1e-5 * scale), name


@pytest.mark.slow
def test_more_trials_than_fit_at_once_end_one_after_another(tmp_path: Path) -> None:
    _, ended, _ = run(tmp_path, {"diverges": DIVERGES, "full": {}, "no_text": {"model.text": False}})
    assert ended["full"] == ended["no_text"] == ""
    assert "loss " in ended["diverges"] and "at epoch 1, step" in ended["diverges"]
