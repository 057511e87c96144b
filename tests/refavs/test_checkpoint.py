"""Checkpoints: a loaded model equals the saved one, and every damaged checkpoint is rejected with advice."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refavs.errors import WeightsError
from refavs.model import checkpoint
from refavs.model.checkpoint import load_model, load_weights, read_config, save_model
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions

SIZES = FeatureSizes(
    audio=StreamSize(path="clips/audio/vggish/features", channels=3),
    text=StreamSize(path="text/roberta/features", channels=5),
    maps=tuple(MapSize(name=name, path=f"clips/visual/made-up/pixel_decoder/{name}", channels=8, height=4, width=4)
               for name in ("mask_features", "s8", "s16", "s32")),
)  # fmt: skip


def make_model(beta: float = 1.0) -> EEMC:
    torch.manual_seed(0)
    model = EEMC(EEMCOptions(
        beta=beta, num_layers=1, num_queries=2, num_heads=2, feedforward_channels=4, visual_downsample=4,
        decoder_layers=1, decoder_feedforward_channels=4,
    ), SIZES)  # fmt: skip
    statistics = {size.path: (torch.randn(size.channels), torch.rand(size.channels) + 1)
                  for size in (SIZES.audio, SIZES.text, *SIZES.maps)}
    model.set_statistics(statistics)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "checkpoint", make_model(), {"store": "abc"})
    return tmp_path / "checkpoint"


@pytest.mark.long
def test_checkpoint_restores_every_tensor_and_the_configuration(folder: Path) -> None:
    known, loaded = make_model(), load_model(folder)
    assert (loaded.options, loaded.sizes) == (known.options, known.sizes) and not loaded.training
    state = loaded.state_dict()
    assert state.keys() == known.state_dict().keys() and "audio.standardise.mean" in state
    assert all(torch.equal(tensor, state[name]) for name, tensor in known.state_dict().items())
    assert read_config(folder)["facts"] == {"store": "abc"}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_checkpoint_is_replaced_whole(folder: Path) -> None:
    save_model(folder, make_model(beta=0.5))
    assert load_model(folder).options.beta == 0.5


def test_checkpoint_of_a_crash_between_the_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = checkpoint.write_atomically

    def crash_at_config(path: Path, content: bytes) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        written(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", crash_at_config)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, make_model(beta=0.5))
    with pytest.raises(WeightsError, match=r"model\.safetensors was not written with the config\.json beside it"):
        load_model(folder)


def test_checkpoint_leaves_nothing_of_a_failed_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        save_model(folder, make_model(beta=0.5))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert load_model(folder).options.beta == 1.0


def test_part_of_a_killed_writer_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.4711-0123abcd.partial").write_bytes(b"half")
    (tmp_path / "other.partial").write_bytes(b"of somebody else")
    save_model(tmp_path, make_model(beta=0.5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "other.partial"]


def test_checkpoint_that_is_missing_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(WeightsError, match=re.escape(f"no checkpoint in {tmp_path}: config.json is missing")):
        load_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no weights at .*model\.safetensors; copy the checkpoint again"):
        load_model(folder)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty"])
def test_checkpoint_of_damaged_weights_is_refused(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-100], "pickle": pickle.dumps({"a": 1}), "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"is not a whole safetensors file .* copy the checkpoint again or train"):
        load_model(folder)


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    weights = {**load_file(path), **change}
    with checkpoint.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path, metadata=metadata)


@pytest.mark.parametrize(("change", "text"), [
    ({"decoder.norm.bias": None}, "lacks decoder.norm.bias; use the checkpoint as refavs wrote it"),
    ({"decoder.extra": torch.zeros(1)}, "has the unknown decoder.extra"),
    ({"decoder.norm.bias": torch.zeros(9)}, "has the wrong size of decoder.norm.bias (9,) instead of (8,)"),
])  # fmt: skip
def test_checkpoint_of_other_tensors_is_refused(folder: Path, change: dict, text: str) -> None:
    rewrite(folder, change)
    with pytest.raises(WeightsError, match=re.escape(text)):
        load_model(folder)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "config.json cannot be read"),
    ("[]", "is not a description of format 1"),
    (json.dumps({"format": 1, "model": {"sizes": {}}}), "is not a description of format 1"),
    (json.dumps({"format": 1, "model": {"sizes": {}}, "facts": {}}), "does not describe a head of this version"),
])  # fmt: skip
def test_checkpoint_of_a_damaged_configuration_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_model(folder)


def test_weights_of_another_number_of_heads_are_refused(folder: Path) -> None:
    model = make_model()
    other = EEMC(dataclasses.replace(model.options, num_heads=4), model.sizes)
    load_weights(folder, model)
    with pytest.raises(WeightsError, match=r"says num_heads=2, the model has 4; take --set model.num_heads=2"):
        load_weights(folder, other)


@pytest.mark.parametrize(("names", "told"), [
    ([], "its maps are "), (["mask_features"], "its maps are "), (["", "s8", "s16", "s32"], "its maps are "),
    (["mask_features", "s8", "s16", "s32", ""], "module name can"),
])  # fmt: skip
def test_checkpoint_of_unknown_maps_is_refused(folder: Path, names: list[str], told: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    maps = [*config["model"]["sizes"]["maps"], config["model"]["sizes"]["maps"][0]]
    config["model"]["sizes"]["maps"] = [{**one, "name": name} for one, name in zip(maps, names, strict=False)]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"does not describe a head of this version \(.?{told}"):
        load_model(folder)


@pytest.mark.parametrize("channels", [-1, 10**12])
def test_checkpoint_of_an_impossible_size_is_refused(folder: Path, channels: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["sizes"]["audio"]["channels"] = channels
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="does not describe a head of this version"):
        load_model(folder)
