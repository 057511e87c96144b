"""A trained model as a folder: `model.safetensors` and `config.json`, written whole or not at all, never a pickle."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from refavs.config import digest, to_dict
from refavs.errors import RefAVSError, WeightsError
from refavs.finite import require_finite_weights
from refavs.model.eemc import EEMC, EEMCConfig
from refavs.model.pretrained import mismatch
from refavs.model.sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.variants import build_head
from refavs.partials import PARTIAL

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1


def save_model(folder: Path, model: EEMC, facts: Mapping[str, Any] | None = None) -> None:
    """Writes weights and configuration; a reader meets the old checkpoint or the new one, never a part.

    Args:
        facts: what else to keep with the model, e.g. the fingerprint of the store it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, "model": to_dict(model.config), "facts": dict(facts or {})}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # The weights name their configuration, so that a crash between the two files cannot pair old with new.
    _write(folder / WEIGHTS, save(weights, metadata={"config": digest(config["model"])}))
    _write(folder / CONFIG, json.dumps(config, indent=1).encode())


def load_model(folder: Path) -> EEMC:
    """The model saved in `folder`, on the CPU and in evaluation mode.

    Raises:
        WeightsError: a file is missing, truncated, of another format, does not belong to the other, or holds weights
            that are not finite.
    """
    config = read_config(folder)
    try:
        model = build_head(_config_of(config["model"]))
    except (KeyError, TypeError, RuntimeError, RefAVSError) as error:  # torch's refusal of a size is a RuntimeError
        raise WeightsError(
            f"{folder / CONFIG} does not describe an EEMC of this version ({error}); train again or use the version "
            "that wrote it"
        ) from error
    load_weights(folder, model)
    return model.eval()


def load_weights(folder: Path, model: EEMC) -> None:
    """Puts the weights saved in `folder` into `model`.

    Raises:
        WeightsError: as `load_model`, or the weights are of a model of other sizes.
    """
    config = read_config(folder)["model"]
    weights = _read_weights(folder / WEIGHTS, digest(config))
    heads = config.get("num_heads", model.config.num_heads)
    if heads != model.config.num_heads:  # the one size that no tensor tells
        raise WeightsError(
            f"{folder / CONFIG} says num_heads={heads}, the model has {model.config.num_heads}; take --set "
            f"model.num_heads={heads}"
        )
    _check_names_and_shapes(folder / WEIGHTS, model, weights)
    model.load_state_dict(weights)


def checkpoint_digest(folder: Path) -> str:
    """What names the weights saved in `folder`: the sha256 of their file.

    Raises:
        WeightsError: there is no checkpoint.
    """
    read_config(folder)
    try:
        with (folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"no weights at {folder / WEIGHTS}; copy the checkpoint again or train again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's description: `model`, its configuration, and `facts`, what was kept with it."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(
            f"no checkpoint in {folder}: {CONFIG} is missing; a checkpoint is a folder with {WEIGHTS} and {CONFIG}, "
            "such as a trial's folder `checkpoint`"
        ) from error
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}; copy the checkpoint again or train again") from error
    good = isinstance(config, dict) and config.get("format") == FORMAT
    if not good or not all(isinstance(config.get(part), dict) for part in ("model", "facts")):
        raise WeightsError(f"{path} is not a description of format {FORMAT}; use the version of refavs that wrote it")
    return config


def _config_of(facts: Mapping[str, Any]) -> EEMCConfig:
    sizes = facts["sizes"]
    known = FeatureSizes(
        audio=StreamSize(**sizes["audio"]), text=StreamSize(**sizes["text"]),
        maps=tuple(MapSize(**size) for size in sizes["maps"]),
    )
    return EEMCConfig(**{**facts, "sizes": known})


def _read_weights(path: Path, config_digest: str) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            belongs = (file.metadata() or {}).get("config") == config_digest
        weights = load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"no weights at {path}; copy the checkpoint again or train again") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}); truncated copies and pickles are refused: copy the "
            "checkpoint again or train again"
        ) from error
    if not belongs:
        raise WeightsError(f"{path} was not written with the {CONFIG} beside it; copy both files of one checkpoint")
    require_finite_weights(path, weights)
    return weights


def _check_names_and_shapes(path: Path, model: EEMC, weights: Mapping[str, Any]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wrong := mismatch(expected, found):
        raise WeightsError(f"{path} {wrong}; use the checkpoint as refavs wrote it, or train again")


def _write(path: Path, content: bytes) -> None:
    """Writes beside `path`, flushes to the disk, then takes its name; what a killed writer left beside it goes."""
    for left in path.parent.glob(f"{path.name}.*{PARTIAL}"):
        left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
