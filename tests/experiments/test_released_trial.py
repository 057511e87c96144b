"""Trials with 0 epochs: they only evaluate a trained head or the release's checkpoint."""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tests.experiments.small_store as small_store
import tests.refavs.test_released as release
from experiments.cluster.resources import Resources
from experiments.grid.config import TrainConfig
from experiments.grid.expand import Grid, expand
from experiments.records.ledger import Ledger, read_metrics
from experiments.records.stores import features_in
from experiments.sweep.dry_run import show
from experiments.sweep.model_check import check_models
from experiments.training.initial_weights import with_checkpoints
from experiments.training.loop import build_model, train
from refavs.errors import ConfigError, StoreError, WeightsError
from refavs.metrics import STATISTICS_FILE
from refavs.model.checkpoint import load_model, save_model
from refavs.model.heads.released import ReleasedHead
from refavs.store import ArraySpec, FeatureStore, StreamSpec
from refavs.terminal.console import PlainConsole

FILE = "ckpt_best_miou.pth"
SIDES = {"res2": 8, "res3": 4, "res4": 2, "res5": 1}
PAPER = {"model.num_layers": 1, "model.num_queries": 2, "model.num_heads": 2, "model.visual_downsample": 2,
         "model.decoder_layers": 0, "train.epochs": 0}  # fmt: skip
RELEASED = {"model.head": "released", "train.epochs": 0, "train.eval_batch_size": 4,
            **{f"model.{name}": value for name, value in release.OPTIONS.items()}}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    """Made-up features: those of a pixel decoder, and a backbone's with text whose padding is kept."""
    folder, patch = tmp_path_factory.mktemp("stores"), pytest.MonkeyPatch()
    clips = {"train": 1, "val": 1, "test_s": 2, "test_n": 1}
    made = {"paper": small_store.make_store(folder / "paper", clips)}
    backbone = tuple(
        ArraySpec(name=name, shape=(small_store.SECONDS, 8 << index, side, side), dtype="float16",
                  axes=("t", "c", "h", "w"), statistics=True)
        for index, (name, side) in enumerate(SIDES.items())
    )  # fmt: skip
    maps, sound, text = "visual/made-up/backbone", small_store.AUDIO, small_store.TEXT
    streams = {
        maps: StreamSpec(fingerprint={"name": "made-up"}, arrays=backbone, rows_per_shard=4),
        sound: small_store.STREAMS[sound],
        text: replace(small_store.STREAMS[text], fingerprint=release.ENCODERS["text/roberta"]),
    }

    def features(name: str, *others: Any) -> dict[str, dict[str, np.ndarray]]:
        rng = np.random.default_rng(len(name))
        made = {spec.name: rng.standard_normal(spec.shape).astype(np.float16) for spec in backbone}
        return {maps: made, sound: {"features": rng.standard_normal((small_store.SECONDS, 4)).astype(np.float32)}}

    with patch.context() as patched:
        patched.setattr(small_store, "STREAMS", streams)
        patched.setattr(small_store, "clip_features", features)
        made["released"] = small_store.make_store(folder / "released", clips)
    return made


@pytest.fixture(scope="module")
def file(stores: Mapping[str, FeatureStore], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the release's layout, for the sizes of the store."""
    path, patch = tmp_path_factory.mktemp("released") / FILE, pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(release, "AUDIO", 4)
        patched.setattr(release, "TEXT", small_store.CHANNELS)
        twin = release.Twin()
        numbers = torch.Generator().manual_seed(0)
        with torch.no_grad():  # transformers leaves some of them uninitialised outside a whole Mask2Former
            for weight in twin.parameters():
                weight.normal_(std=0.05, generator=numbers)
        torch.save(twin.state_dict(), path)
    return path


def grid_of(store: FeatureStore, **settings: Any) -> Grid:
    return with_checkpoints(expand("g", {"base": settings}, "g.yaml", {}), features_in(store))


@pytest.mark.long
def test_trained_head_is_evaluated_as_it_is(stores: dict[str, FeatureStore], tmp_path: Path) -> None:
    store = stores["paper"]
    base = {**PAPER, "train.epochs": 1, "train.steps_per_epoch": 2, "loss.num_points": 0}
    first = train(grid_of(store, **base).trials[0].config, store, tmp_path / "first")
    head = tmp_path / "first" / "checkpoint"
    (trial,) = grid_of(store, **{**PAPER, "train.init": str(head), "loss.num_points": 0}).trials
    again = train(trial.config, store, tmp_path / "again")
    assert again["epoch"] == 0 and not read_metrics(tmp_path / "again")
    for name in ("test_s/J", "test_s/F", "test_n/S", "test_s/acoustic/J", "parameters"):
        assert again["metrics"][name] == first["metrics"][name], name
    assert (tmp_path / "again" / STATISTICS_FILE).is_file() and (tmp_path / "again" / "overlays").is_dir()
    kept = load_model(tmp_path / "again" / "checkpoint").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in load_model(head).state_dict().items())


@pytest.mark.long
def test_release_is_evaluated_from_its_checkpoint(
    stores: dict[str, FeatureStore], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, forward = [], ReleasedHead.forward
    monkeypatch.setattr(ReleasedHead, "forward", lambda head, batch, *more, **named: lengths.append(len(batch))
                        or forward(head, batch, *more, **named))  # fmt: skip
    store = stores["released"]
    grid = grid_of(store, **RELEASED, **{"train.init": str(file)})
    check_models(grid, store)
    (trial,) = grid.trials
    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / FILE)
    (other,) = grid_of(store, **RELEASED, **{"train.init": str(moved)}).trials
    moved.rename(file)
    assert trial.key("") == other.key("") and trial.digests["init"].startswith("sha256:")
    result = train(trial.config, store, tmp_path / "trial")
    assert result["epoch"] == 0 and 0 <= result["metrics"]["test_s/J"] <= 1 and "test_n/S" in result["metrics"]
    assert (tmp_path / "trial" / STATISTICS_FILE).is_file() and json.loads(
        (tmp_path / "trial" / "result.json").read_text()) == result
    kept = load_model(tmp_path / "trial" / "checkpoint").state_dict()
    wanted = build_model(trial.config, store).state_dict()
    assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], value) for name, value in wanted.items())
    alone = dataclasses.replace(trial.config, train=dataclasses.replace(trial.config.train, eval_batch_size=1))
    assert max(lengths) == RELEASED["train.eval_batch_size"], "its attention runs across the batch"
    lengths.clear()
    train(alone, store, tmp_path / "alone")
    assert set(lengths) == {1}


@pytest.mark.long
def test_cost_of_a_trial_without_an_epoch_is_that_of_its_evaluation(
    stores: dict[str, FeatureStore], file: Path, tmp_path: Path
) -> None:
    shown, store = io.StringIO(), stores["released"]
    entries = Ledger(tmp_path).entries(
        grid_of(store, **RELEASED, **{"train.init": str(file)}).trials, features_in(store)
    )
    show(PlainConsole(file=shown, width=160), entries, store, Resources())
    assert "pixel decoder" in shown.getvalue() and "0 GFLOP" in shown.getvalue()


def test_trial_that_cannot_be_evaluated_is_refused(stores: dict[str, FeatureStore], file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"epochs is 0; .* or 0 to evaluate a given train\.init"):
        TrainConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"released, which is evaluated, not trained: give --set train\.epochs=0 and"):
        grid_of(stores["released"], **{**RELEASED, "train.epochs": 1})
    with pytest.raises(WeightsError, match=r"none\.pth cannot be read .* accepted: ckpt_best_miou\.pth"):
        grid_of(stores["released"], **RELEASED, **{"train.init": str(tmp_path / "none.pth")})
    grid = grid_of(stores["paper"], **RELEASED, **{"train.init": str(file)})
    with pytest.raises(StoreError, match=r"trial 'g': .* has no maps res2, res3, res4, res5; .* --levels backbone"):
        check_models(grid, stores["paper"])
    wider = grid_of(stores["released"], **{**RELEASED, "model.channels": 64, "train.init": str(file)})
    with pytest.raises(WeightsError, match=r"trial 'g': .* has the wrong size of"):
        check_models(wider, stores["released"])
    save_model(tmp_path, build_model(grid_of(stores["paper"], **{**PAPER, "train.epochs": 1}).trials[0].config,
                                     stores["paper"]), {"store": stores["released"].fingerprint})  # fmt: skip
    folder = grid_of(stores["released"], **RELEASED, **{"train.init": str(file)}).trials[0].config
    folder = dataclasses.replace(folder, train=dataclasses.replace(folder.train, init=str(tmp_path)))
    with pytest.raises(WeightsError, match="cannot be read"):
        build_model(folder, stores["released"])
