"""Trials that start from Mask2Former's decoder: their keys, their initial weights, and errors."""

import json
from dataclasses import replace as changed
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tests.experiments.small_store as small_store
from experiments.cli import main
from experiments.grid.config import TrialConfig
from experiments.grid.expand import Grid, expand
from experiments.records.ledger import Ledger
from experiments.records.stores import features_in
from experiments.sweep.model_check import check_models
from experiments.training.initial_weights import with_weights
from experiments.training.loop import build_model, train
from refavs.config import replace
from refavs.errors import ConfigError, WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.model.checkpoint import load_model
from refavs.model.pretrained import Mask2Former
from refavs.store import FeatureStore
from tests.experiments.small_store import CHANNELS, make_store

SETTINGS = {
    "model.decoder_weights": "mask2former", "model.num_layers": 1, "model.num_queries": 3, "model.num_heads": 2,
    "model.visual_downsample": 2, "model.decoder_layers": 2, "model.decoder_feedforward_channels": 16,
    "loss.num_points": 0, "train.epochs": 1, "train.steps_per_epoch": 1,
}  # fmt: skip
PREFIX = "model.transformer_module."


def write_decoder(weights_dir: Path, seed: int = 0, num_labels: int = 1) -> Path:
    """A checkpoint that holds no more than the transformer decoder and the class head."""
    ensure_torchvision()
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        hidden_dim=CHANNELS, mask_feature_size=CHANNELS, feature_size=CHANNELS, num_attention_heads=2,
        dim_feedforward=16, decoder_layers=3, num_queries=3, num_labels=num_labels,
    )
    module = Mask2FormerTransformerModule(in_features=CHANNELS, config=config)
    folder = weights_dir / "mask2former"
    folder.mkdir(parents=True)
    state = {PREFIX + name: value for name, value in module.state_dict().items()}
    classes = {"class_predictor.weight": torch.randn(num_labels + 1, CHANNELS),
               "class_predictor.bias": torch.randn(num_labels + 1)}  # fmt: skip
    save_file({**state, **classes}, folder / "model.safetensors")
    config.save_pretrained(folder)
    return weights_dir


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> FeatureStore:
    """Made-up features that say they come from the same checkpoint."""
    stamp = Mask2Former.within(weights).stamp
    patch = pytest.MonkeyPatch()
    maps = changed(small_store.STREAMS[small_store.VISUAL], fingerprint={"name": "made-up", "weights": stamp})
    patch.setattr(small_store, "STREAMS", small_store.STREAMS | {small_store.VISUAL: maps})
    try:
        return make_store(tmp_path_factory.mktemp("store") / "store", {"train": 4, "val": 2})
    finally:
        patch.undo()


def grid(settings: dict) -> Grid:
    return expand("tried", {"cases": {"": settings}}, "tried", {})


@pytest.mark.long
def test_trial_starts_from_the_checkpoint_and_is_kept_without_it(
    store: FeatureStore, weights: Path, tmp_path: Path
) -> None:
    config = replace(TrialConfig(), SETTINGS)
    theirs = Mask2Former.within(weights).tensors("")
    decoder = build_model(config, store, weights).decoder
    positions, embedder = decoder.query_positions, theirs[f"{PREFIX}queries_embedder.weight"]
    assert positions is not None and torch.equal(positions, embedder)
    assert torch.equal(decoder.class_head.weight, theirs["class_predictor.weight"])
    last = decoder.mask_head[-1]
    assert not last.weight[-1].any() and not last.bias[-1].any()
    frozen = changed(config, model=changed(config.model, trained="fusion"))
    result = train(frozen, store, tmp_path, weights_dir=weights)
    trained = load_model(tmp_path / "checkpoint")
    assert torch.equal(trained.decoder.query_positions, embedder)
    assert not torch.equal(trained.decoder.class_head.weight, theirs["class_predictor.weight"])
    assert result["metrics"]["parameters"] == sum(p.numel() for p in build_model(frozen, store, weights).parameters()
                                                  if p.requires_grad)  # fmt: skip


def test_key_names_the_weights_and_not_their_place(store: FeatureStore, weights: Path, tmp_path: Path) -> None:
    moved = write_decoder(tmp_path / "moved")
    other = write_decoder(tmp_path / "other", seed=1)
    keys = [with_weights(grid(SETTINGS), folder).trials[0].key(store.fingerprint) for folder in (weights, moved, other)]
    assert keys[0] == keys[1] != keys[2]
    random = grid({**SETTINGS, "model.decoder_weights": "random"})
    assert with_weights(random, weights).trials == random.trials
    (entry,) = Ledger(tmp_path / "out").entries(with_weights(grid(SETTINGS), weights).trials, features_in(store))
    Ledger(tmp_path / "out").enter(entry, store.fingerprint)
    facts = json.loads((entry.folder / "config.json").read_text())
    assert facts["weights_dir"] == str(weights) and facts["digests"] == {
        "decoder_weights": Mask2Former.within(weights).stamp}


@pytest.mark.long
def test_sweep_says_what_starts_fresh(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps({"base": SETTINGS}))
    arguments = [str(path), "--store", store.location, "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, "--weights-dir", str(weights)]) == 0
    assert "starts from random" not in capsys.readouterr().out
    assert main(arguments) == 2
    assert "has model.decoder_weights=mask2former; give the folder that has mask2former/ by" in capsys.readouterr().err
    assert main([*arguments, "--weights-dir", str(tmp_path)]) == 2
    assert f"{tmp_path}/mask2former has no model.safetensors; download the checkpoint" in capsys.readouterr().err


def test_decoder_that_does_not_belong_to_the_store_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    ade = write_decoder(tmp_path, num_labels=150)
    with pytest.raises(WeightsError, match=r"trial 'tried': the store's maps visual/made-up/pixel_decoder were made"):
        check_models(with_weights(grid(SETTINGS), ade), store)
    with pytest.raises(ConfigError, match=r"model\.decoder_weights is not random; give the folder"):
        build_model(replace(TrialConfig(), SETTINGS), store)


def test_trial_that_cannot_fit_into_memory_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    settings = {**SETTINGS, "model.decoder_weights": "random", "train.batch_size": 100_000_000}
    with pytest.raises(ConfigError, match=r"num_queries=3 with .* at least 681\.6 GB for masks and batches, and"):
        train(replace(TrialConfig(), {**settings, "train.frames": 1}), store, tmp_path)
    with pytest.raises(ConfigError, match=r"num_queries=1000000000 with .* need at least 1,536\.0 GB"):
        check_models(grid({**settings, "model.num_queries": 10**9}), store)
